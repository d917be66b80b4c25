//! The specification of the scan over the index of the past (`kv::past`): what each query would
//! make of keys of two bits.
//!
//! A tile of the index holds `SCAN_TILE` keys of one head. Keys lie across the tile, so that no sum
//! runs across lanes:
//!
//! ```text
//! head_dim / 4 x 32 bytes   byte j of row r holds the codes of elements 4r, 4r + 1, 4r + 2, 4r + 3 of key j, lowest bits first
//! 32 x f16                  the scale of each key                               x = d * (2 * code - 3)
//! ```
//!
//! A query is rounded to integers so small that its sum over a head fits into 16 bits, so all sets
//! give the same bits.

use super::arithmetic::{Lanes, add_lanes, f16_bits};
use super::attention::weight;

/// Keys of a tile.
pub const SCAN_TILE: usize = 32;
/// Tokens that are chosen together.
pub const SCAN_CHUNK: usize = 4;
/// Chunks of a tile.
pub const SCAN_CHUNKS: usize = SCAN_TILE / SCAN_CHUNK;

/// Bytes of a tile.
pub const fn scan_tile_bytes(head_dim: usize) -> usize {
    head_dim / 4 * SCAN_TILE + 2 * SCAN_TILE
}

/// The largest integer that an element of a query may become: `head_dim` products with codes of at
/// most 3 fit into 16 bits.
pub const fn scan_steps(head_dim: usize) -> i32 {
    let most = i16::MAX as i32 / (3 * head_dim as i32);
    if most < 127 { most } else { 127 }
}

/// Queries that ask for pieces of the past, in integers: `scale * q`.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// `[n_query][head_dim]`
    pub q: &'a [i8],
    pub scale: &'a [f32],
    /// The sum of a query's integers.
    pub sum: &'a [i32],
    pub head_dim: usize,
}

/// For each query and chunk of a tile the highest score of those keys that `wanted` has a bit for,
/// -inf where it has none: query `n` writes `SCAN_CHUNKS` numbers from `n * stride` on.
#[inline(always)]
pub fn scan(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    let (codes, scales) = tile.split_at(asked.head_dim / 4 * SCAN_TILE);
    let mut d = [0f32; SCAN_TILE];
    for (d, bytes) in d.iter_mut().zip(scales.as_chunks::<2>().0) {
        *d = f16_bits(u16::from_le_bytes(*bytes));
    }
    let mut mask = [f32::NEG_INFINITY; SCAN_TILE];
    for (j, mask) in mask.iter_mut().enumerate() {
        if wanted >> j & 1 == 1 {
            *mask = f32::INFINITY;
        }
    }
    let n_query = asked.scale.len();
    for first in (0..n_query).step_by(4) {
        let q = &asked.q[first * asked.head_dim..];
        let mut dots = [[0i16; SCAN_TILE]; 4];
        match n_query - first {
            1 => products::<1>(codes, q, asked.head_dim, &mut dots),
            2 => products::<2>(codes, q, asked.head_dim, &mut dots),
            3 => products::<3>(codes, q, asked.head_dim, &mut dots),
            _ => products::<4>(codes, q, asked.head_dim, &mut dots),
        }
        for (n, dots) in (first..n_query).zip(&dots) {
            let mut scores = [0f32; SCAN_TILE];
            for j in 0..SCAN_TILE {
                let score = (2 * i32::from(dots[j]) - 3 * asked.sum[n]) as f32 * (d[j] * asked.scale[n]);
                scores[j] = if score < mask[j] { score } else { mask[j] };
            }
            let best = |four: &[f32; SCAN_CHUNK]| four.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            let chunks = scores.as_chunks::<SCAN_CHUNK>().0;
            out[n * stride..][..SCAN_CHUNKS].iter_mut().zip(chunks).for_each(|(out, four)| *out = best(four));
        }
    }
}

/// The same for sets whose own way has no room for such a head: out of line, for it is large.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[cold]
#[inline(never)]
pub fn scan_out_of_line(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    scan(tile, wanted, asked, stride, out);
}

/// Products of `N` queries with the codes of a tile.
#[inline(always)]
fn products<const N: usize>(codes: &[u8], q: &[i8], head_dim: usize, dots: &mut [[i16; SCAN_TILE]; 4]) {
    let mut sums = [[0i16; SCAN_TILE]; N];
    for (r, bytes) in codes.as_chunks::<SCAN_TILE>().0.iter().enumerate() {
        for e in 0..4 {
            let mut code = [0i16; SCAN_TILE];
            for j in 0..SCAN_TILE {
                code[j] = i16::from(bytes[j] >> (2 * e) & 3);
            }
            for n in 0..N {
                let q = i16::from(q[n * head_dim + 4 * r + e]);
                for j in 0..SCAN_TILE {
                    sums[n][j] = sums[n][j].wrapping_add(code[j].wrapping_mul(q));
                }
            }
        }
    }
    dots[..N].copy_from_slice(&sums);
}

/// Adds to `total` what softmax makes of the scores of one query, eight lanes at a time. -inf
/// counts for next to nothing, but where nothing else is there. Both have a multiple of eight
/// elements. `scores` is left as anything.
#[inline(always)]
pub fn add_shares(scores: &mut [f32], total: &mut [f32]) {
    let mut lanes: Lanes = [f32::NEG_INFINITY; 8];
    for eight in scores.as_chunks::<8>().0 {
        for l in 0..8 {
            lanes[l] = if eight[l] > lanes[l] { eight[l] } else { lanes[l] };
        }
    }
    let highest = lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    if highest == f32::NEG_INFINITY {
        return;
    }
    // Alone in a loop, of which compilers make vectors; beside the sums they do not.
    scores.iter_mut().for_each(|x| *x = weight(*x - highest));
    let mut sums: Lanes = [0.0; 8];
    for eight in scores.as_chunks::<8>().0 {
        for l in 0..8 {
            sums[l] += eight[l];
        }
    }
    let inverse = 1.0 / add_lanes(sums);
    total.iter_mut().zip(scores).for_each(|(total, x)| *total += *x * inverse);
}
