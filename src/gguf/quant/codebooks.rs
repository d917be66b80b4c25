//! IQ2 and IQ3: an index into a grid for each eight or four magnitudes, signs apart, 256 elements to a block.
//!
//! x = d * (2 * scale + 1) * fraction * magnitude, or minus that, with a scale of four bits for each 16 or 32; the fraction, an
//! eighth or a quarter, makes the magnitudes integers. The `XXS` and `XS` types have seven bits for eight signs, the `S` types all
//! eight.

use super::Block;
use super::float::f16_at;
use super::grids::{self, even_signs};

/// 32 elements from four words of the grid, with a word of signs.
fn signed(grid: [u64; 4], signs: u32, sc: [i32; 2], d: f32) -> Block {
    let q = std::array::from_fn(|i| {
        let magnitude = (grid[i / 8] >> (8 * (i % 8))) as i8;
        if signs >> i & 1 == 1 { -magnitude } else { magnitude }
    });
    Block { q, sc, d, m: 0.0, m_sub: [0; 2] }
}

/// Two indices of four magnitudes as one word of eight.
fn pair(grid: &[u32], low: usize, high: usize) -> u64 {
    u64::from(grid[low]) | u64::from(grid[high]) << 32
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The signs of 32 elements from four indices of seven bits.
fn four_signs(index: impl Fn(usize) -> u32) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| even_signs(index(i) as u8)))
}

/// Twice a scale and one: the scales of the halves of 32 elements, low half of the byte first.
fn halves(scales: u8) -> [i32; 2] {
    [i32::from(scales & 15) * 2 + 1, i32::from(scales >> 4) * 2 + 1]
}

/// `2 * scale + 1`
fn odd(scale: u32) -> f32 {
    (scale * 2 + 1) as f32
}

/// `f16 d; (u8 index[4]; u32 signs_and_scale)[8]`: four times seven bits of signs, then the scale in the top four; eighths
pub(super) fn iq2_xxs(bytes: &[u8], sub: usize) -> Block {
    let (index, word) = (&bytes[2 + 8 * sub..][..4], u32_at(bytes, 6 + 8 * sub));
    let grid = std::array::from_fn(|i| grids::IQ2_XXS[usize::from(index[i])]);
    let d = f16_at(bytes, 0) * odd(word >> 28) * 0.125;
    signed(grid, four_signs(|i| word >> (7 * i)), [1; 2], d)
}

/// `f16 d; u16 qs[32]; u8 scales[8]`: nine bits of index and seven of signs; eighths
pub(super) fn iq2_xs(bytes: &[u8], sub: usize) -> Block {
    let q: [u16; 4] = std::array::from_fn(|i| u16_at(bytes, 2 + 8 * sub + 2 * i));
    let grid = q.map(|q| grids::IQ2_XS[usize::from(q & 511)]);
    signed(grid, four_signs(|i| u32::from(q[i] >> 9)), halves(bytes[66 + sub]), f16_at(bytes, 0) * 0.125)
}

/// `f16 d; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8]`: ten bits of index, the upper two by pairs in `high`;
/// eighths
pub(super) fn iq2_s(bytes: &[u8], sub: usize) -> Block {
    let index = |i: usize| usize::from(bytes[2 + 4 * sub + i]) | usize::from(bytes[66 + sub] >> (2 * i) & 3) << 8;
    let grid = std::array::from_fn(|i| grids::IQ2_S[index(i)]);
    signed(grid, u32_at(bytes, 34 + 4 * sub), halves(bytes[74 + sub]), f16_at(bytes, 0) * 0.125)
}

/// `f16 d; u8 index[64]; u32 signs_and_scale[8]`, the latter as in IQ2_XXS; quarters
pub(super) fn iq3_xxs(bytes: &[u8], sub: usize) -> Block {
    let (index, word) = (&bytes[2 + 8 * sub..][..8], u32_at(bytes, 66 + 4 * sub));
    let index = |i: usize| usize::from(index[i]);
    let grid = std::array::from_fn(|i| pair(&grids::IQ3_XXS, index(2 * i), index(2 * i + 1)));
    let d = f16_at(bytes, 0) * odd(word >> 28) * 0.25;
    signed(grid, four_signs(|i| word >> (7 * i)), [1; 2], d)
}

/// `f16 d; u8 low[64]; u8 ninth[8]; u8 signs[32]; u8 scales[4]`: nine bits of index, the last by bits of `ninth`; whole
pub(super) fn iq3_s(bytes: &[u8], sub: usize) -> Block {
    let index = |i: usize| usize::from(bytes[2 + 8 * sub + i]) | usize::from(bytes[66 + sub] >> i & 1) << 8;
    let grid = std::array::from_fn(|i| pair(&grids::IQ3_S, index(2 * i), index(2 * i + 1)));
    let d = f16_at(bytes, 0) * odd(u32::from(bytes[106 + sub / 2] >> (4 * (sub % 2)) & 15));
    signed(grid, u32_at(bytes, 74 + 4 * sub), [1; 2], d)
}
