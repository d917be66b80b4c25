//! The index: what of a key two bits an element can tell. Keys are those before RoPE, so that it
//! does not matter where they stood, turned by a Hadamard matrix, so that no element is far from
//! the others, and less what the keys of their head have in common, which says nothing about any of
//! them.

use half::f16;

use super::shape::TILE;
use crate::kernels::{SCAN_TILE, scan_steps};

/// Four levels, -3, -1, 1 and 3 times half a step, of what is spread as a normal distribution:
/// bounds are at 0 and at so many standard deviations (Max 1960, "Quantizing for minimum
/// distortion").
const BOUND: f32 = 0.98;
/// 1.5 * 2^23
const ROUND: f32 = 12_582_912.0;

/// Writes key `j` of a tile, `[head_dim]` as the index has it.
pub fn put(tile: &mut [u8], j: usize, key: &[f32]) {
    let mut square = 0f32;
    key.iter().for_each(|x| square += x * x);
    let bound = BOUND * (square / key.len() as f32).sqrt();
    let (codes, scales) = tile.split_at_mut(key.len() / 4 * SCAN_TILE);
    // The scale that leaves the least square error for these levels.
    let (mut along, mut levels) = (0f32, 0f32);
    for (four, row) in key.as_chunks::<4>().0.iter().zip(codes.as_chunks_mut::<TILE>().0) {
        row[j] = 0;
        for (e, &x) in four.iter().enumerate() {
            let code = if x >= 0.0 { 2 + u8::from(x >= bound) } else { u8::from(x > -bound) };
            let level = f32::from(2 * code as i8 - 3);
            row[j] |= code << (2 * e);
            along += x * level;
            levels += level * level;
        }
    }
    let scale = f16::from_f32((along / levels).min(crate::kernels::portable::HUGE));
    scales[2 * j..][..2].copy_from_slice(&scale.to_le_bytes());
}

/// Rounds a query to integers: its scale and their sum.
pub fn ask(query: &[f32], out: &mut [i8]) -> (f32, i32) {
    let far = query.iter().fold(0f32, |far, x| if x.abs() > far { x.abs() } else { far });
    let scale = far / scan_steps(query.len()) as f32;
    let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let mut sum = 0;
    for (x, out) in query.iter().zip(out) {
        // Ties to even: the low bits of what is so large are whole numbers. (`round_ties_even` is a
        // call on some processors.)
        *out = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
        sum += i32::from(*out);
    }
    (scale, sum)
}
