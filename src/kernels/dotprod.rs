//! The set for ARM with the dot product extension (Cortex-A55 and A76 onwards; Raspberry Pi 5).
//!
//! `sdot` multiplies 16 pairs of int8 and adds four of them into each of four 32-bit lanes. On rows as they lie in the file
//! the four lanes belong to one row and are added up afterwards, eight rows together; the tile is interleaved so that they
//! are four rows. The intrinsic is not stable yet, hence the `asm!`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::arm_blocks::{self, Fcvtl, Format, Four, Q4_0, Q4_1, Q8_0, ROWS, Set, TILE_BLOCK, next_32};
use super::portable::stamp_portable;
use super::{BLOCK, MatmulTask, Table, float};
use crate::gguf::quant::GgmlType;

stamp_portable!("neon,dotprod", Fcvtl);
pub(crate) static TABLE: Table = Table { matmul, quantize, rms_norm, add, silu_mul, l2_norm, attend };

/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[target_feature(enable = "neon,dotprod")]
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => arm_blocks::quantised::<Q4_0, Dotprod>(task),
            GgmlType::Q4_1 => arm_blocks::quantised::<Q4_1, Dotprod>(task),
            GgmlType::Q8_0 => arm_blocks::quantised::<Q8_0, Dotprod>(task),
            GgmlType::F16 | GgmlType::F32 => float::batch::<Fcvtl>(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}

/// Adds the products of a block to four partial sums for each of four rows; gives the total of each row.
///
/// # Safety
/// The CPU has the dot product extension.
#[inline(always)]
unsafe fn dot4(acc: &mut [int32x4_t], w: Four, a: [int8x16_t; 2]) -> int32x4_t {
    let total: int8x16_t;
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!(
            "sdot {s0:v}.4s, {l0:v}.16b, {a0:v}.16b",
            "sdot {s1:v}.4s, {l1:v}.16b, {a0:v}.16b",
            "sdot {s2:v}.4s, {l2:v}.16b, {a0:v}.16b",
            "sdot {s3:v}.4s, {l3:v}.16b, {a0:v}.16b",
            "sdot {s0:v}.4s, {h0:v}.16b, {a1:v}.16b",
            "sdot {s1:v}.4s, {h1:v}.16b, {a1:v}.16b",
            "sdot {s2:v}.4s, {h2:v}.16b, {a1:v}.16b",
            "sdot {s3:v}.4s, {h3:v}.16b, {a1:v}.16b",
            "addp {l0:v}.4s, {s0:v}.4s, {s1:v}.4s",
            "addp {l1:v}.4s, {s2:v}.4s, {s3:v}.4s",
            "addp {l0:v}.4s, {l0:v}.4s, {l1:v}.4s",
            s0 = inout(vreg) acc[0], s1 = inout(vreg) acc[1], s2 = inout(vreg) acc[2], s3 = inout(vreg) acc[3],
            l0 = inout(vreg) w[0][0] => total, l1 = inout(vreg) w[1][0] => _, l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
            h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
            a0 = in(vreg) a[0], a1 = in(vreg) a[1], options(nomem, nostack, preserves_flags),
        );
        vreinterpretq_s32_s8(total)
    }
}

/// `acc[i] += Σ_j w[4i + j] * a[4 LANE + j]`
///
/// # Safety
/// As `sdot`.
#[inline(always)]
unsafe fn sdot_lane<const LANE: usize>(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]", acc = inlateout(vreg) acc, w = in(vreg) w, a = in(vreg) a, lane = const LANE, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

struct Dotprod;
impl Set for Dotprod {
    /// Four partial sums of each row over all blocks so far, and their sums up to the last block. They are never set to
    /// zero: the sum of a block is a difference of two totals, which is right even when these overflow.
    type Running = ([int32x4_t; ROWS], [int32x4_t; 2]);

    #[inline(always)]
    unsafe fn start() -> Self::Running {
        // SAFETY: registers only.
        unsafe { ([vdupq_n_s32(0); ROWS], [vdupq_n_s32(0); 2]) }
    }

    #[inline(always)]
    unsafe fn dot<F: Format>((acc, before): &mut Self::Running, p: &mut [*const u8; ROWS], a: [int8x16_t; 2]) -> [int32x4_t; 2] {
        // SAFETY: a block's elements are at each pointer; the extension is there by the caller's promise.
        unsafe {
            let low = F::elements(p, 0);
            let low = dot4(&mut acc[..4], low, a);
            let high = F::elements(p, 4);
            let total = [low, dot4(&mut acc[4..], high, a)];
            let isum = [vsubq_s32(total[0], before[0]), vsubq_s32(total[1], before[1])];
            *before = total;
            isum
        }
    }

    /// Four columns of row 0, of row 1, of row 2, of row 3; the next four columns; and so on.
    #[inline(always)]
    unsafe fn put(to: *mut u8, four: Four) {
        // SAFETY: 64 + 64 bytes.
        unsafe {
            for half in 0..2 {
                let [a, b, c, d] = four.map(|q| vreinterpretq_s32_s8(q[half]));
                vst4q_s32(to.add(half * 64).cast(), int32x4x4_t(a, b, c, d));
            }
        }
    }

    ///     for each block, each four columns k, token t, four rows g:
    ///         isum[t][g] = sdot(isum[t][g], w[g][k], a[t] lane k)
    #[inline(always)]
    unsafe fn product<F: Format, const T: usize>(mut tile: *const u8, mut a: [*const i8; T], d: [*const f32; T], n_blocks: usize) -> [[float32x4_t; 2]; T] {
        // SAFETY: `n_blocks` blocks at each pointer; the extension is there by the caller's promise.
        unsafe {
            let mut acc = [[vdupq_n_f32(0.0); 2]; T];
            for b in 0..n_blocks {
                let mut isum = [[vdupq_n_s32(0); 2]; T];
                let mut q = [[vdupq_n_s8(0); 2]; T];
                for t in 0..T {
                    q[t] = next_32(&mut a[t]);
                }
                for half in 0..2 {
                    for g in 0..2 {
                        macro_rules! columns {
                            ($k:literal) => {
                                let w = vld1q_s8(tile.add(g * 4 * BLOCK + half * 64 + $k * 16).cast());
                                for t in 0..T {
                                    isum[t][g] = sdot_lane::<$k>(isum[t][g], w, q[t][half]);
                                }
                            };
                        }
                        columns!(0);
                        columns!(1);
                        columns!(2);
                        columns!(3);
                    }
                }
                let d_w = [vld1q_f32(tile.add(ROWS * BLOCK).cast()), vld1q_f32(tile.add(ROWS * BLOCK + 16).cast())];
                for t in 0..T {
                    let d_a = *d[t].add(b);
                    for g in 0..2 {
                        acc[t][g] = vfmaq_f32(acc[t][g], vmulq_n_f32(d_w[g], d_a), vcvtq_f32_s32(isum[t][g]));
                    }
                }
                tile = tile.add(TILE_BLOCK);
            }
            acc
        }
    }
}
