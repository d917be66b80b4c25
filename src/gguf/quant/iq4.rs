//! Four bits to an element, each an index into one table of 16 uneven levels: IQ4_NL and IQ4_XS.
//!
//! IQ4_NL is Q4_0 with the table in place of the even steps. IQ4_XS has 256 elements to a block: d (f16), the upper two
//! bits of eight sub-scales (u16), their lower four bits (4 bytes, low half first), then eight groups of 32 elements
//! packed as in IQ4_NL; x = d * (sub-scale - 32) * level.

use super::float::scale;
use super::legacy::nibbles;

/// The levels, from the format.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

fn levels(d: f32, qs: &[u8], out: &mut [f32]) {
    for (out, q) in out.iter_mut().zip(nibbles(qs)) {
        *out = d * f32::from(LEVELS[usize::from(q)]);
    }
}

pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    levels(scale(block), &block[2..18], out);
}

pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = scale(block);
    let high = u16::from_le_bytes([block[2], block[3]]);
    let (low, qs) = (&block[4..8], &block[8..136]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let low = (low[group / 2] >> (4 * (group % 2))) & 15;
        let high = ((high >> (2 * group)) & 3) as u8;
        let sub_scale = f32::from(low | high << 4) - 32.0;
        levels(d * sub_scale, &qs[16 * group..][..16], out);
    }
}
