//! The first block formats of ggml: 32 elements share an f16 scale `d`, and in the `_1` formats an f16 minimum `m`.
//!
//! Two elements share a byte: the low half holds element j, the high half element j + 16. The fifth bits of Q5 stand
//! apart, bit j for element j. `_0` formats are centred: x = d * (q - 2^(bits-1)); `_1` formats: x = d * q + m.

use super::Block;
use super::float::f16_at;

/// 32 elements of four bits: byte `i` holds element `i` low and element `i + 16` high.
pub(super) fn nibbles(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// Nibbles with a fifth bit each from the 32 bits before them.
fn fives(bytes: &[u8]) -> [u8; 32] {
    let low = nibbles(&bytes[4..]);
    std::array::from_fn(|i| low[i] | (bytes[i / 8] >> (i % 8) & 1) << 4)
}

/// `f16 d; u8 qs[16]`: d * (q - 8)
pub(super) fn q4_0(bytes: &[u8], _: usize) -> Block {
    Block::new(nibbles(&bytes[2..]), 8, f16_at(bytes, 0), 0.0)
}

/// `f16 d; f16 m; u8 qs[16]`: d * q + m
pub(super) fn q4_1(bytes: &[u8], _: usize) -> Block {
    Block::new(nibbles(&bytes[4..]), 0, f16_at(bytes, 0), f16_at(bytes, 2))
}

/// `f16 d; u8 fifth[4]; u8 qs[16]`: d * (q - 16)
pub(super) fn q5_0(bytes: &[u8], _: usize) -> Block {
    Block::new(fives(&bytes[2..]), 16, f16_at(bytes, 0), 0.0)
}

/// `f16 d; f16 m; u8 fifth[4]; u8 qs[16]`: d * q + m
pub(super) fn q5_1(bytes: &[u8], _: usize) -> Block {
    Block::new(fives(&bytes[4..]), 0, f16_at(bytes, 0), f16_at(bytes, 2))
}

/// `f16 d; i8 qs[32]`: d * q
pub(super) fn q8_0(bytes: &[u8], _: usize) -> Block {
    Block::new(std::array::from_fn(|i| bytes[2 + i]), 0, f16_at(bytes, 0), 0.0)
}
