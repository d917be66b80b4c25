//! One and two bits a weight, as models are trained that have no more: signs, and -1, 0, 1 with a fourth level that is seldom used.

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
