//! The first block formats of ggml: 32 elements share an f16 scale `d`, and in the `_1` formats an f16 minimum `m`.
//!
//! Two elements share a byte: the low half holds element j, the high half element j + 16. The fifth bits of Q5 stand
//! apart, bit j for element j. `_0` formats are centred: x = d * (q - 2^(bits-1)); `_1` formats: x = d * q + m.
//! Field order within a block: d, m, fifth bits, elements.

use super::float::scale;

/// The 32 four-bit elements of 16 bytes, in order.
pub(super) fn nibbles(qs: &[u8]) -> impl Iterator<Item = u8> {
    qs.iter().map(|byte| byte & 15).chain(qs.iter().map(|byte| byte >> 4))
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    for (out, q) in out.iter_mut().zip(nibbles(&block[2..18])) {
        *out = d * (f32::from(q) - 8.0);
    }
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block), scale(&block[2..]));
    for (out, q) in out.iter_mut().zip(nibbles(&block[4..20])) {
        *out = d * f32::from(q) + m;
    }
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    for (out, q) in out.iter_mut().zip(fives(&block[2..6], &block[6..22])) {
        *out = d * (f32::from(q) - 16.0);
    }
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (scale(block), scale(&block[2..]));
    for (out, q) in out.iter_mut().zip(fives(&block[4..8], &block[8..24])) {
        *out = d * f32::from(q) + m;
    }
}

/// The 32 five-bit elements: four bits from `qs`, the fifth from `qh`.
fn fives(qh: &[u8], qs: &[u8]) -> impl Iterator<Item = u8> {
    nibbles(qs).enumerate().map(|(j, q)| q | ((qh[j / 8] >> (j % 8)) & 1) << 4)
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    for (out, &q) in out.iter_mut().zip(&block[2..34]) {
        *out = d * f32::from(q as i8);
    }
}
