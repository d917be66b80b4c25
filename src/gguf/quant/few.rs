//! One and two bits a weight, as models are trained that have no more: signs, and -1, 0, 1, with a fourth level that is seldom
//! used, or, where five of them share a byte, without.

use super::Block;
use super::float::f16_at;

/// `f16 d; u8 qs[16]`, 128 elements, lowest bit first: d where the bit is set, else -d.
pub(super) fn q1_0(bytes: &[u8], sub: usize) -> Block {
    let bits = &bytes[2 + 4 * sub..][..4];
    Block::new(std::array::from_fn(|i| 2 * (bits[i / 8] >> (i % 8) & 1)), 1, f16_at(bytes, 0), 0.0)
}

/// `f16 d; u8 qs[16]`, 64 elements, lowest two bits first: d * (q - 1)
pub(super) fn q2_0(bytes: &[u8], sub: usize) -> Block {
    let pairs = &bytes[2 + 8 * sub..][..8];
    Block::new(std::array::from_fn(|i| pairs[i / 4] >> (2 * (i % 4)) & 3), 1, f16_at(bytes, 0), 0.0)
}

/// `u8 qs[48]; u8 last[4]; f16 d`, 256 elements: d * (digit - 1). A byte is a fraction of 256 in base three, whose first five
/// digits, or four in `last`, are elements: of bytes 0..32 digits 0 to 4 are 32 elements each, then of bytes 32..48 16 each, then
/// of `last` four each.
pub(super) fn tq1_0(bytes: &[u8], sub: usize) -> Block {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let digit = |byte: usize, n: usize| (u16::from(bytes[byte].wrapping_mul(POWERS[n])) * 3 / 256) as u8;
    let q = std::array::from_fn(|i| match (sub, i) {
        (0..5, _) => digit(i, sub),
        (7, 16..) => digit(48 + i % 4, (i - 16) / 4),
        _ => digit(32 + i % 16, 2 * (sub - 5) + i / 16),
    });
    Block::new(q, 1, f16_at(bytes, 52), 0.0)
}

/// `u8 qs[64]; f16 d`, 256 elements: d * (q - 1), by bit pairs of 32 bytes
pub(super) fn tq2_0(bytes: &[u8], sub: usize) -> Block {
    Block::new(super::kquants::twos(bytes, sub), 1, f16_at(bytes, 64), 0.0)
}
