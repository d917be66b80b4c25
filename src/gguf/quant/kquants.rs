//! The k-quants of ggml: 256 elements to a block, in groups of 16 or 32 whose scales are themselves quantised.
//!
//! Elements of two bits are packed so that 32 bytes hold four runs of 32 elements, by bit pair; elements of four bits so
//! that 32 bytes hold two runs. Extra high bits stand apart in a mask of 32 bytes, one bit plane per run.
//! Q2_K, Q4_K, Q5_K: x = d * sc * q - dmin * m. Q3_K, Q6_K: x = d * sc * (q - centre).

use super::float::scale;

/// Fields: sixteen bytes of scale (low half) and minimum (high half), 64 bytes of elements, d, dmin.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (scale(&block[80..]), scale(&block[82..]));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let (sc, m) = (d * f32::from(scales[group] & 15), dmin * f32::from(scales[group] >> 4));
        for (l, out) in out.iter_mut().enumerate() {
            *out = sc * f32::from(two_bits(qs, 16 * group + l)) - m;
        }
    }
}

/// Fields: 32 bytes of third bits, 64 bytes of elements, 12 bytes of sixteen 6-bit scales, d.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, qs, scales, d) = (&block[..32], &block[32..96], &block[96..108], scale(&block[108..]));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        // Scale g: its lower four bits are half of byte g % 8, its upper two a bit pair of byte 8 + g % 4.
        let low = (scales[group % 8] >> (4 * (group / 8))) & 15;
        let high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
        let sc = d * (f32::from(low | high << 4) - 32.0);
        for (l, out) in out.iter_mut().enumerate() {
            let i = 16 * group + l;
            // A set third bit stands for 4, and the centre is 4: clear means minus 4.
            let centre = if bit(third, i) == 1 { 0.0 } else { 4.0 };
            *out = sc * (f32::from(two_bits(qs, i)) - centre);
        }
    }
}

/// Fields: d, dmin, 12 bytes of eight 6-bit scales and minima, 128 bytes of elements.
pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, qs) = (scale(block), scale(&block[2..]), &block[4..16], &block[16..144]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_and_min(scales, group);
        let (sc, m) = (d * f32::from(sc), dmin * f32::from(m));
        for (l, out) in out.iter_mut().enumerate() {
            *out = sc * f32::from(four_bits(qs, 32 * group + l)) - m;
        }
    }
}

/// Fields: as Q4_K, with 32 bytes of fifth bits before the elements.
pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, fifth, qs) = (scale(block), scale(&block[2..]), &block[4..16], &block[16..48], &block[48..176]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (sc, m) = scale_and_min(scales, group);
        let (sc, m) = (d * f32::from(sc), dmin * f32::from(m));
        for (l, out) in out.iter_mut().enumerate() {
            let i = 32 * group + l;
            *out = sc * f32::from(four_bits(qs, i) | bit(fifth, i) << 4) - m;
        }
    }
}

/// Fields: 128 bytes of lower four bits, 64 bytes of upper two, sixteen i8 scales, d.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) = (&block[..128], &block[128..192], &block[192..208], scale(&block[208..]));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let sc = d * f32::from(scales[group] as i8);
        for (l, out) in out.iter_mut().enumerate() {
            let i = 16 * group + l;
            // Here 64 bytes hold two runs of 64, unlike the other four-bit elements.
            let low = (ql[i / 128 * 64 + i % 64] >> (4 * (i / 64 % 2))) & 15;
            *out = sc * (f32::from(low | two_bits(qh, i) << 4) - 32.0);
        }
    }
}

/// Element i of two bits: 32 bytes hold elements i, i + 32, i + 64, i + 96 of each 128.
fn two_bits(qs: &[u8], i: usize) -> u8 {
    (qs[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4))) & 3
}

/// Element i of four bits: 32 bytes hold elements i and i + 32 of each 64.
fn four_bits(qs: &[u8], i: usize) -> u8 {
    (qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15
}

/// Bit i of a mask with one bit plane per 32 elements.
fn bit(mask: &[u8], i: usize) -> u8 {
    (mask[i % 32] >> (i / 32)) & 1
}

/// Scale and minimum of group 0 to 7, six bits each. The first four groups fill the low six bits of bytes 0-3 (scales) and
/// 4-7 (minima); the last four have their low halves in bytes 8-11 and their top bits in what the first four leave.
pub fn scale_and_min(scales: &[u8], group: usize) -> (u8, u8) {
    let (sc, m) = (scales[group % 4], scales[4 + group % 4]);
    if group < 4 {
        return (sc & 63, m & 63);
    }
    let low = scales[4 + group];
    ((low & 15) | sc >> 6 << 4, low >> 4 | m >> 6 << 4)
}
