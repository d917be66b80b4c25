//! The k-quants of ggml: 256 elements to a block, in groups of 16 or 32 whose scales are themselves quantised.
//!
//! Elements of two bits are packed so that 32 bytes hold four runs of 32 elements, by bit pair; elements of four bits so
//! that 32 bytes hold two runs. Extra high bits stand apart in a mask of 32 bytes, one bit plane per run.
//! Q2_K, Q4_K, Q5_K: x = d * sc * q - dmin * m. Q3_K, Q6_K: x = d * sc * (q - centre).

use super::Block;
use super::float::f16_at;

/// 32 of four bits: in the low halves of 32 bytes, then in their high halves.
fn fours(qs: &[u8], sub: usize) -> [u8; 32] {
    std::array::from_fn(|i| qs[sub / 2 * 32 + i] >> (4 * (sub % 2)) & 15)
}

/// 32 of two bits: by bit pairs of 32 bytes.
pub(super) fn twos(qs: &[u8], sub: usize) -> [u8; 32] {
    std::array::from_fn(|i| qs[sub / 4 * 32 + i] >> (2 * (sub % 4)) & 3)
}

/// `u8 scales[16]; u8 qs[64]; f16 d; f16 dmin`: d * scale * q - dmin * min, scale in the low half of a byte, min in the high
pub(super) fn q2_k(bytes: &[u8], sub: usize) -> Block {
    let halves = [bytes[2 * sub], bytes[2 * sub + 1]];
    let (sc, m_sub) = (halves.map(|b| i32::from(b & 15)), halves.map(|b| i32::from(b >> 4)));
    Block { sc, m_sub, ..Block::new(twos(&bytes[16..], sub), 0, f16_at(bytes, 80), -f16_at(bytes, 82)) }
}

/// `u8 third[32]; u8 qs[64]; u8 scales[12]; f16 d`: d * (scale - 32) * (q - 4). Of scale g the lower four bits are half of
/// byte g % 8, the upper two a bit pair of byte 8 + g % 4.
pub(super) fn q3_k(bytes: &[u8], sub: usize) -> Block {
    let low = twos(&bytes[32..], sub);
    let q = std::array::from_fn(|i| low[i] | (bytes[i] >> sub & 1) << 2);
    let sc = [2 * sub, 2 * sub + 1].map(|g| {
        let (low, high) = (bytes[96 + g % 8] >> (4 * (g / 8)) & 15, bytes[104 + g % 4] >> (2 * (g / 4)) & 3);
        i32::from(low | high << 4) - 32
    });
    Block { sc, ..Block::new(q, 4, f16_at(bytes, 108), 0.0) }
}

/// `f16 d; f16 dmin; u8 scales[12]; u8 qs[128]`: d * scale * q - dmin * min
pub(super) fn q4_k(bytes: &[u8], sub: usize) -> Block {
    let (sc, m) = scale_and_min(&bytes[4..16], sub);
    let (d, m) = (f16_at(bytes, 0) * f32::from(sc), f16_at(bytes, 2) * f32::from(m));
    Block::new(fours(&bytes[16..], sub), 0, d, -m)
}

/// `f16 d; f16 dmin; u8 scales[12]; u8 fifth[32]; u8 qs[128]`: as Q4_K
pub(super) fn q5_k(bytes: &[u8], sub: usize) -> Block {
    let low = fours(&bytes[48..], sub);
    let q = std::array::from_fn(|i| (low[i] | (bytes[16 + i] >> sub & 1) << 4) as i8);
    Block { q, ..q4_k(bytes, sub) }
}

/// `u8 low[128]; u8 high[64]; i8 scales[16]; f16 d`: d * scale * (q - 32); 64 bytes hold two runs of 64
pub(super) fn q6_k(bytes: &[u8], sub: usize) -> Block {
    let high = twos(&bytes[128..], sub);
    let (at, shift) = (sub / 4 * 64 + sub % 2 * 32, 4 * (sub / 2 % 2));
    let q = std::array::from_fn(|i| bytes[at + i] >> shift & 15 | high[i] << 4);
    let sc = [0, 1].map(|half| i32::from(bytes[192 + 2 * sub + half] as i8));
    Block { sc, ..Block::new(q, 32, f16_at(bytes, 208), 0.0) }
}

/// Scale and minimum of group 0 to 7, six bits each. The first four groups fill the low six bits of bytes 0-3 (scales) and
/// 4-7 (minima); the last four have their low halves in bytes 8-11 and their top bits in what the first four leave.
fn scale_and_min(scales: &[u8], group: usize) -> (u8, u8) {
    let (sc, m) = (scales[group % 4], scales[4 + group % 4]);
    if group < 4 {
        return (sc & 63, m & 63);
    }
    let low = scales[4 + group];
    ((low & 15) | sc >> 6 << 4, low >> 4 | m >> 6 << 4)
}
