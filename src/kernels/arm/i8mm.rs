//! The set for ARM with the matrix extension for int8 (Cortex-A510 and A710 onwards, Neoverse V1, Apple M2).
//!
//! `smmla` multiplies eight columns of two rows with eight columns of two tokens and adds the products to the four sums, twice as
//! many as `sdot`. It serves batches: the tile pairs rows, tokens are paired as they are read. A single token has nothing to
//! pair, and goes the way of dotprod.rs, as packed matrices do. The intrinsic is not stable yet, hence the `asm!`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{ByFour, Set, Sums, TILE_BLOCK, TOKENS, Tile, TokenBlocks, Walk, by_four};
use super::dotprod::{self, Dotprod};
use super::formats::{Format, Four, Range8};
use super::packed;
use crate::kernels::{Acts, MatmulTask, Out, Table};

pub(crate) static TABLE: Table = super::table(matmul, dotprod::scan);
super::stamp_arm!("neon,dotprod,i8mm", I8mm, super::few::dot::Dot);

/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.packed {
            true => packed::matmul(task),
            false => super::matmul::<I8mm>(task),
        }
    }
}

/// `acc[2r + t] += Σ_k w[r][k] * a[t][k]`, two rows and two tokens of eight columns.
///
/// # Safety
/// The CPU has the matrix extension.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!("smmla {acc:v}.4s, {w:v}.16b, {a:v}.16b", acc = inlateout(vreg) acc, w = in(vreg) w, a = in(vreg) a, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

/// The lower or the upper eight columns of two rows or tokens.
#[inline(always)]
fn paired(x: int8x16_t, y: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let (x, y) = (vreinterpretq_s64_s8(x), vreinterpretq_s64_s8(y));
        [vreinterpretq_s8_s64(vzip1q_s64(x, y)), vreinterpretq_s8_s64(vzip2q_s64(x, y))]
    }
}

/// 16 columns of two tokens, paired.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn pair_at(x: *const i8, y: *const i8) -> [int8x16_t; 2] {
    // SAFETY: by the caller's promise.
    unsafe { paired(vld1q_s8(x), vld1q_s8(y)) }
}

struct I8mm;
impl Set for I8mm {
    const PREFETCH: bool = Dotprod::PREFETCH;
    const RAISES: bool = false;
    type Running = <Dotprod as Set>::Running;

    #[inline(always)]
    unsafe fn start() -> Self::Running {
        // SAFETY: passed on.
        unsafe { Dotprod::start() }
    }

    #[inline(always)]
    unsafe fn step<F: Format, const LANE: i32>(at: &mut Walk, sums: &mut Sums<Self::Running>, x: &TokenBlocks) {
        // SAFETY: passed on; a CPU with the matrix extension has the dot product.
        unsafe { Dotprod::step::<F, LANE>(at, sums, x) }
    }

    /// All columns of rows 0 and 1, eight at a time, then of rows 2 and 3.
    #[inline(always)]
    unsafe fn put(to: *mut u8, four: Four) {
        // SAFETY: 64 + 64 bytes.
        unsafe {
            for half in 0..2 {
                let (r01, r23) = (paired(four[0][half], four[1][half]), paired(four[2][half], four[3][half]));
                for i in 0..2 {
                    vst1q_s8(to.add(32 * half + 16 * i).cast(), r01[i]);
                    vst1q_s8(to.add(64 + 32 * half + 16 * i).cast(), r23[i]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn half_sums<F: Range8, const T: usize>(w: *const u8, a: [*const i8; T]) -> [[int32x4_t; 2]; T] {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            for half in 0..2 {
                let w = [0, 64].map(|pair| [0, 16].map(|i| vld1q_s8(w.add(pair + 32 * half + i).cast())));
                for t in (0..T).step_by(2) {
                    // A single token is paired with itself.
                    let a = pair_at(a[t].add(16 * half), a[(t + 1).min(T - 1)].add(16 * half));
                    let rows = |pair: usize| smmla(smmla(vdupq_n_s32(0), w[pair][0], a[0]), w[pair][1], a[1]);
                    let (r01, r23) = (rows(0), rows(1));
                    sums[t][half] = vuzp1q_s32(r01, r23);
                    if t + 1 < T {
                        sums[t + 1][half] = vuzp2q_s32(r01, r23);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn four_sums<F: Range8>(running: &mut Self::Running, w: Four, a: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: passed on; a CPU with the matrix extension has the dot product.
        unsafe { Dotprod::four_sums::<F>(running, w, a) }
    }

    #[inline(always)]
    unsafe fn four_half_sums<F: Range8>(w: Four, a: [int8x16_t; 2]) -> [int32x4_t; 2] {
        // SAFETY: likewise.
        unsafe { Dotprod::four_half_sums::<F>(w, a) }
    }

    #[inline(always)]
    unsafe fn batch<F: Range8>(tile: Tile, acts: &Acts, out: Out, row: usize) {
        // SAFETY: passed on.
        unsafe { by_four::<F, Self>(tile, acts, out, row) }
    }
}

impl ByFour for I8mm {
    /// In lanes of two rows times two tokens, brought apart at the end.
    #[inline(always)]
    unsafe fn product<F: Range8>(
        mut tile: *const u8,
        a: [*const i8; TOKENS],
        d: [*const f32; TOKENS],
        n_blocks: usize,
    ) -> [[float32x4_t; 2]; TOKENS] {
        const { assert!(TOKENS == 4) };
        // SAFETY: `n_blocks` blocks at each pointer; the extension is there by the caller's promise.
        unsafe {
            // By pairs of rows and pairs of tokens.
            let mut acc = [[vdupq_n_f32(0.0); 2]; 4];
            for b in 0..n_blocks {
                let at = |t: usize, half: usize| a[t].add(32 * b + 16 * half);
                let [low, high] = [0, 1].map(|half| [pair_at(at(0, half), at(1, half)), pair_at(at(2, half), at(3, half))]);
                let d_a = [0, 2].map(|t| {
                    let two = vset_lane_f32::<1>(*d[t + 1].add(b), vdup_n_f32(*d[t].add(b)));
                    vcombine_f32(two, two)
                });
                for g in 0..2 {
                    let d_w = vld1q_f32(tile.add(256 + 16 * g).cast());
                    let d_w = [vzip1q_f32(d_w, d_w), vzip2q_f32(d_w, d_w)];
                    for pair in 0..2 {
                        let w: [int8x16_t; 4] = std::array::from_fn(|k| vld1q_s8(tile.add(128 * g + 64 * pair + 16 * k).cast()));
                        for tokens in 0..2 {
                            let isum = smmla(smmla(vdupq_n_s32(0), w[0], low[tokens][0]), w[1], low[tokens][1]);
                            let isum = smmla(smmla(isum, w[2], high[tokens][0]), w[3], high[tokens][1]);
                            let acc = &mut acc[2 * g + pair][tokens];
                            *acc = vfmaq_f32(*acc, vcvtq_f32_s32(isum), vmulq_f32(d_w[pair], d_a[tokens]));
                        }
                    }
                }
                tile = tile.add(TILE_BLOCK);
            }
            std::array::from_fn(|t| {
                [0, 1].map(|g| {
                    let (r01, r23) = (acc[2 * g][t / 2], acc[2 * g + 1][t / 2]);
                    if t % 2 == 0 { vuzp1q_f32(r01, r23) } else { vuzp2q_f32(r01, r23) }
                })
            })
        }
    }
}
