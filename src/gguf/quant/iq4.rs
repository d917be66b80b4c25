//! Four bits to an element, each an index into one table of 16 uneven levels: IQ4_NL and IQ4_XS.
//!
//! IQ4_NL is Q4_0 with the table in place of the even steps. IQ4_XS has 256 elements to a block, in eight groups of 32 that
//! are packed as in IQ4_NL and have a six-bit scale each.

use super::Block;
use super::float::f16_at;
use super::legacy::nibbles;

/// The levels, from the format.
pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `f16 d; u8 qs[16]`: d * level
pub(super) fn iq4_nl(bytes: &[u8], _: usize) -> Block {
    Block::of_levels(&LEVELS, nibbles(&bytes[2..]), f16_at(bytes, 0))
}

/// `f16 d; u16 high; u8 low[4]; u8 qs[128]`: d * (scale - 32) * level, the upper two bits of eight scales in `high`, their
/// lower four in `low`, low half first
pub(super) fn iq4_xs(bytes: &[u8], sub: usize) -> Block {
    let high = u16::from_le_bytes([bytes[2], bytes[3]]) >> (2 * sub) & 3;
    let scale = bytes[4 + sub / 2] >> (4 * (sub % 2)) & 15 | (high << 4) as u8;
    Block::of_levels(&LEVELS, nibbles(&bytes[8 + 16 * sub..]), f16_at(bytes, 0) * (f32::from(scale) - 32.0))
}
