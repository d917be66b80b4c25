//! The scan over the index of the past, in NEON: what spec/scan.rs specifies, bit for bit.
//!
//! Without dot product, rows of a tile meet one element of a query at a time, in `smlal`, and sums stay in 16 bits, as the
//! specification's do. With it, bytes of four rows are brought side by side, so that what one shift and one mask leave are four
//! elements of a key: there a lane of `sdot` is a key, and lanes of vector `k` are keys `k`, `k + 4`, `k + 8` and `k + 12`, the
//! best of which over all `k` are those of four chunks.

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::blocks::sdot_lane;
use super::formats::widen_f16;
use crate::kernels::Asked;
use crate::kernels::spec::scan::{self as spec, SCAN_TILE};

/// Queries that meet a tile at once.
const MOST: usize = 4;

/// Rows that are read together.
const ROWS: usize = 4;
/// Elements of a key in them.
const ELEMENTS: usize = 4 * ROWS;
/// Keys of a vector of bytes: half a tile.
const HALF: usize = 16;

/// How many tiles further the next lines are asked for.
const AHEAD: usize = 3;

/// What the queries of a call share.
pub struct Tile<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    wanted: u32,
    /// From a byte of this tile to the one that is asked for meanwhile.
    ahead: usize,
}

/// How products of codes and queries are made.
pub trait Products {
    /// Sums of the products of each key of a tile.
    type Dots: Copy;

    /// Those of `N` queries, whose elements are at `q`.
    ///
    /// # Safety
    /// As `scan`; so many queries, and room for as many at `dots`.
    unsafe fn dots<const N: usize>(tile: &Tile, q: *const i8, head_dim: usize, dots: *mut Self::Dots);

    /// Twice the sums of half a tile, of keys `k`, `k + 4`, … in vector `k`.
    fn twice(dots: Self::Dots, half: usize) -> [int32x4_t; 4];
}

/// See `Kernels::scan`. Heads that are not whole vectors go the way of the specification.
///
/// # Safety
/// The CPU features of `P`; a tile of the index, and room for what is written, as `Kernels::scan` asserts.
#[inline(always)]
pub unsafe fn scan<P: Products>(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    let Asked { q, scale, sum, head_dim } = *asked;
    if head_dim == 0 || !head_dim.is_multiple_of(ELEMENTS) {
        return spec::scan_out_of_line(tile, wanted, asked, stride, out);
    }
    let (codes, scales) = tile.split_at(head_dim / 4 * SCAN_TILE);
    let mut tile = Tile { codes, scales, wanted, ahead: AHEAD * tile.len() };
    prefetch(scales.as_ptr(), tile.ahead);
    let mut dots = MaybeUninit::<[P::Dots; MOST]>::uninit();
    let dots = dots.as_mut_ptr().cast::<P::Dots>();
    // SAFETY: passed on; of each query its elements, its scale, its sum, its dots, which were written, and its room.
    unsafe {
        let halves = [Keys::new(&tile, 0), Keys::new(&tile, 1)];
        for first in (0..scale.len()).step_by(MOST) {
            let (q, n) = (q.as_ptr().add(first * head_dim), (scale.len() - first).min(MOST));
            match n {
                1 => P::dots::<1>(&tile, q, head_dim, dots),
                2 => P::dots::<2>(&tile, q, head_dim, dots),
                3 => P::dots::<3>(&tile, q, head_dim, dots),
                _ => P::dots::<MOST>(&tile, q, head_dim, dots),
            }
            // Further queries need not ask again.
            tile.ahead = 0;
            for n in 0..n {
                let (dots, query) = (*dots.add(n), first + n);
                let (scale, sum) = (*scale.as_ptr().add(query), *sum.as_ptr().add(query));
                let out = out.as_mut_ptr().add(query * stride);
                vst1q_f32(out, halves[0].best(P::twice(dots, 0), scale, sum));
                vst1q_f32(out.add(4), halves[1].best(P::twice(dots, 1), scale, sum));
            }
        }
    }
}

#[inline(always)]
fn prefetch(p: *const u8, ahead: usize) {
    // SAFETY: a prefetch reads nothing and does not fault.
    unsafe {
        asm!("prfm pldl1keep, [{p}, {ahead}]", p = in(reg) p, ahead = in(reg) ahead, options(readonly, nostack, preserves_flags))
    };
}

/// `ELEMENTS` elements of each query from `q` on.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn elements<const N: usize>(q: *const i8, head_dim: usize) -> [int8x16_t; N] {
    // SAFETY: by the caller's promise.
    std::array::from_fn(|n| unsafe { vld1q_s8(q.add(n * head_dim)) })
}

/// The four codes of each byte.
#[inline(always)]
fn apart(bytes: uint8x16_t) -> [int8x16_t; 4] {
    // SAFETY: registers only; NEON is part of every 64-bit ARM.
    unsafe {
        let low = vdupq_n_u8(3);
        [
            vreinterpretq_s8_u8(vandq_u8(bytes, low)),
            vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<2>(bytes), low)),
            vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(bytes), low)),
            vreinterpretq_s8_u8(vshrq_n_u8::<6>(bytes)),
        ]
    }
}

/// Of half a tile the scale of each key, and infinity where it is wanted, else -infinity: keys `k`, `k + 4`, … in vector `k`.
struct Keys {
    scale: [float32x4_t; 4],
    mask: [float32x4_t; 4],
}

impl Keys {
    /// # Safety
    /// As `scan`.
    #[inline(always)]
    unsafe fn new(tile: &Tile, half: usize) -> Keys {
        /// Bits of keys `k`, `k + 4`, … of a half.
        static BITS: [[u32; 4]; 4] = [
            [1, 1 << 4, 1 << 8, 1 << 12],
            [2, 2 << 4, 2 << 8, 2 << 12],
            [4, 4 << 4, 4 << 8, 4 << 12],
            [8, 8 << 4, 8 << 8, 8 << 12],
        ];
        // SAFETY: 16 f16 of the half.
        unsafe {
            let uint16x4x4_t(a, b, c, d) = vld4_u16(tile.scales.as_ptr().add(2 * HALF * half).cast());
            let [scale_a, scale_b] = widen_f16(vcombine_u16(a, b));
            let [scale_c, scale_d] = widen_f16(vcombine_u16(c, d));
            let wanted = vdupq_n_u32(tile.wanted >> (HALF * half));
            let mask = |k: usize| {
                let is_wanted = vtstq_u32(wanted, vld1q_u32(BITS[k].as_ptr()));
                vbslq_f32(is_wanted, vdupq_n_f32(f32::INFINITY), vdupq_n_f32(f32::NEG_INFINITY))
            };
            Keys { scale: [scale_a, scale_b, scale_c, scale_d], mask: [mask(0), mask(1), mask(2), mask(3)] }
        }
    }

    /// The best scores of the chunks of the half, of twice the products of its keys with codes. Of zeros the first, as specified, where the
    /// instruction for maxima would give the positive one.
    #[inline(always)]
    fn best(&self, twice: [int32x4_t; 4], scale: f32, sum: i32) -> float32x4_t {
        // SAFETY: registers only.
        unsafe {
            let mut score = [vdupq_n_f32(0.0); 4];
            for k in 0..4 {
                let whole = vsubq_s32(twice[k], vdupq_n_s32(3 * sum));
                let score_k = vmulq_f32(vcvtq_f32_s32(whole), vmulq_n_f32(self.scale[k], scale));
                score[k] = vminnmq_f32(score_k, self.mask[k]);
            }
            let larger = |a, b| vbslq_f32(vcgtq_f32(b, a), b, a);
            larger(larger(larger(score[0], score[1]), score[2]), score[3])
        }
    }
}

/// Products of 16 bits, for every 64-bit ARM.
pub struct Long;

impl Products for Long {
    type Dots = [int16x8_t; 4];

    #[inline(always)]
    unsafe fn dots<const N: usize>(tile: &Tile, mut q: *const i8, head_dim: usize, dots: *mut Self::Dots) {
        let Range { start: mut rows, end } = tile.codes.as_ptr_range();
        // SAFETY: rows of the tile, which has some; elements of `N` queries, and room for their sums.
        unsafe {
            let mut sums = [[vdupq_n_s16(0); 4]; N];
            while rows != end {
                prefetch(rows, tile.ahead);
                prefetch(rows.add(64), tile.ahead);
                let x = elements::<N>(q, head_dim);
                macro_rules! products {
                    ($($r:literal: $($e:literal $i:literal),*;)*) => { $(
                        let [low, high] = [0, HALF].map(|i| apart(vld1q_u8(rows.add($r * SCAN_TILE + i))));
                        $(for n in 0..N {
                            let q = vdupq_laneq_s8::<$i>(x[n]);
                            sums[n][0] = vmlal_s8(sums[n][0], vget_low_s8(low[$e]), vget_low_s8(q));
                            sums[n][1] = vmlal_high_s8(sums[n][1], low[$e], q);
                            sums[n][2] = vmlal_s8(sums[n][2], vget_low_s8(high[$e]), vget_low_s8(q));
                            sums[n][3] = vmlal_high_s8(sums[n][3], high[$e], q);
                        })*
                    )* };
                }
                products!(0: 0 0, 1 1, 2 2, 3 3; 1: 0 4, 1 5, 2 6, 3 7; 2: 0 8, 1 9, 2 10, 3 11; 3: 0 12, 1 13, 2 14, 3 15;);
                (rows, q) = (rows.add(ROWS * SCAN_TILE), q.add(ELEMENTS));
            }
            for n in 0..N {
                let [a, b, c, d] = sums[n];
                let ([a, c], [b, d]) = ([vuzp1q_s16(a, b), vuzp1q_s16(c, d)], [vuzp2q_s16(a, b), vuzp2q_s16(c, d)]);
                *dots.add(n) = [vuzp1q_s16(a, c), vuzp1q_s16(b, d), vuzp2q_s16(a, c), vuzp2q_s16(b, d)];
            }
        }
    }

    #[inline(always)]
    fn twice(dots: Self::Dots, half: usize) -> [int32x4_t; 4] {
        // SAFETY: registers only.
        dots.map(|x| unsafe { if half == 0 { vshll_n_s16::<1>(vget_low_s16(x)) } else { vshll_high_n_s16::<1>(x) } })
    }
}

/// Products of four elements at once.
pub struct Dot;

impl Products for Dot {
    type Dots = [[int32x4_t; 4]; 2];

    #[inline(always)]
    unsafe fn dots<const N: usize>(tile: &Tile, q: *const i8, head_dim: usize, dots: *mut Self::Dots) {
        // SAFETY: passed on. Sums of few queries have room in registers for a whole tile.
        unsafe {
            if N <= 2 {
                add_dots::<N, 2>(tile, 0, q, head_dim, dots);
            } else {
                add_dots::<N, 1>(tile, 0, q, head_dim, dots);
                add_dots::<N, 1>(tile, 1, q, head_dim, dots);
            }
        }
    }

    #[inline(always)]
    fn twice(dots: Self::Dots, half: usize) -> [int32x4_t; 4] {
        // SAFETY: registers only.
        dots[half].map(|x| unsafe { vaddq_s32(x, x) })
    }
}

/// `G` halves of a tile from `half` on.
///
/// # Safety
/// As `Products::dots`; the dot product extension.
#[inline(always)]
unsafe fn add_dots<const N: usize, const G: usize>(
    tile: &Tile,
    half: usize,
    mut q: *const i8,
    head_dim: usize,
    dots: *mut [[int32x4_t; 4]; 2],
) {
    /// Elements of four rows, those of the same place in a byte side by side.
    static TURNED: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    let Range { start: mut rows, end } = tile.codes.as_ptr_range();
    // SAFETY: rows of the tile, which has some; elements of `N` queries, and room for their sums.
    unsafe {
        let turned = vld1q_u8(TURNED.as_ptr());
        let mut sums = [[[vdupq_n_s32(0); 4]; N]; G];
        while rows != end {
            let x = elements::<N>(q, head_dim).map(|x| vqtbl1q_s8(x, turned));
            prefetch(rows.add(64 * half), tile.ahead);
            add_four_rows(&mut sums[0], rows.add(HALF * half), &x);
            if G == 2 {
                prefetch(rows.add(64), tile.ahead);
                add_four_rows(&mut sums[1], rows.add(HALF), &x);
            }
            (rows, q) = (rows.add(ROWS * SCAN_TILE), q.add(ELEMENTS));
        }
        for g in 0..G {
            for n in 0..N {
                (*dots.add(n))[half + g] = sums[g][n];
            }
        }
    }
}

/// Adds the products of four rows of half a tile with their elements of `N` queries.
///
/// # Safety
/// Half rows are readable at every `SCAN_TILE` bytes from `rows` on; the dot product extension.
#[inline(always)]
unsafe fn add_four_rows<const N: usize>(sums: &mut [[int32x4_t; 4]; N], rows: *const u8, x: &[int8x16_t; N]) {
    // SAFETY: by the caller's promise.
    unsafe {
        let bytes = side_by_side([0, 1, 2, 3].map(|r| vld1q_u8(rows.add(r * SCAN_TILE))));
        // Written out: in loops the compiler leaves sums in memory.
        macro_rules! products {
            ($($k:literal)*) => { $(
                let codes = apart(bytes[$k]);
                products!($k, codes, 0 1 2 3);
            )* };
            ($k:literal, $codes:ident, $($e:literal)*) => {
                $(for n in 0..N {
                    sums[n][$k] = sdot_lane::<$e>(sums[n][$k], $codes[$e], x[n]);
                })*
            };
        }
        products!(0 1 2 3);
    }
}

/// Of keys `k`, `k + 4`, … the bytes of four rows, in vector `k`.
#[inline(always)]
fn side_by_side(rows: [uint8x16_t; ROWS]) -> [uint8x16_t; 4] {
    // SAFETY: registers only.
    unsafe {
        let pairs = |x: uint8x16_t, y: uint8x16_t| [vreinterpretq_u16_u8(vtrn1q_u8(x, y)), vreinterpretq_u16_u8(vtrn2q_u8(x, y))];
        let [[even, odd], [even_2, odd_2]] = [pairs(rows[0], rows[1]), pairs(rows[2], rows[3])];
        [vtrn1q_u16(even, even_2), vtrn1q_u16(odd, odd_2), vtrn2q_u16(even, even_2), vtrn2q_u16(odd, odd_2)]
            .map(|x| vreinterpretq_u8_u16(x))
    }
}
