//! One token times a matrix of a type of superblocks.rs: four rows at a time, each 32 columns multiplied as soon as they
//! are read, with nothing written between. Batches go through the tile (superblocks.rs).
//!
//! What is computed, in which order: spec/weights.rs.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{Set, rest};
use super::superblocks::{self, FourScales, SubScales, Type, scaled};
use crate::kernels::{Acts, BLOCK, MatmulTask};

/// Rows that are read at once.
const FOUR: usize = 4;

/// A matrix of a type that has no way of its own in blocks.rs.
///
/// # Safety
/// As `super::matmul`.
#[inline(always)]
pub unsafe fn quantised<F: Type, S: Set>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.acts.n_tok {
            1 => one_token::<F, S>(task),
            _ => superblocks::quantised::<F, S>(task),
        }
    }
}

/// # Safety
/// As `super::matmul`.
#[inline(always)]
unsafe fn one_token<F: Type, S: Set>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % FOUR;
    assert!(whole * row_bytes <= task.w.data.len() && row_bytes == n_blocks / F::BLOCKS * F::BYTES);
    assert!(acts.n_tok == 1 && acts.n_cols <= acts.q.len() && n_blocks <= acts.d.len());
    for row in (task.rows.start..whole).step_by(FOUR) {
        let rows = task.w.data.as_ptr().wrapping_add(row * row_bytes);
        // SAFETY: four rows from `row` on are inside the matrix, the token has as many blocks (asserted above); their elements of
        // `out` are the caller's.
        unsafe { vst1q_f32(task.out.at(0, row), four_rows::<F, S>(rows, row_bytes, &acts)) };
    }
    // SAFETY: passed on.
    unsafe { rest(task, whole) }
}

/// Four rows times the token, in lanes of rows.
///
/// # Safety
/// Four rows of as many blocks as the token has, `row_bytes` apart, are readable; the CPU features of the set.
#[inline(always)]
unsafe fn four_rows<F: Type, S: Set>(rows: *const u8, row_bytes: usize, acts: &Acts) -> float32x4_t {
    let mut p: [*const u8; FOUR] = std::array::from_fn(|r| rows.wrapping_add(r * row_bytes));
    // SAFETY: registers only.
    let (mut sums, mut running) = unsafe { ([vdupq_n_f32(0.0); 2], S::start()) };
    for first in (0..acts.n_cols / BLOCK).step_by(F::BLOCKS) {
        // SAFETY: a block of each row, and those of the token; a prefetch touches nothing.
        unsafe {
            if S::PREFETCH {
                p.iter().for_each(|p| prefetch::<F>(p.wrapping_add(FOUR * row_bytes)));
            }
            let scales = F::scales(p);
            // Written out, so that shifts are constants.
            macro_rules! subs {
                ($($sub:literal)*) => { $(
                    if $sub < F::BLOCKS {
                        // Not by `map`, which becomes a call.
                        let four = [F::elements(p[0], $sub), F::elements(p[1], $sub), F::elements(p[2], $sub), F::elements(p[3], $sub)];
                        let a = acts.q.as_ptr().add((first + $sub) * BLOCK);
                        let a = [vld1q_s8(a), vld1q_s8(a.add(16))];
                        let isum = match F::SCALES {
                            SubScales::One | SubScales::OneMin => S::four_sums::<F>(&mut running, four, a),
                            SubScales::Two | SubScales::TwoMin => scaled::<F>(S::four_half_sums::<F>(four, a), scales.x[$sub]),
                        };
                        add::<F>(&mut sums, isum, &scales, $sub, acts, first + $sub);
                    }
                )* };
            }
            subs!(0 1 2 3 4 5 6 7);
        }
        p = p.map(|p| p.wrapping_add(F::BYTES));
    }
    // SAFETY: registers only.
    unsafe { vaddq_f32(sums[0], sums[1]) }
}

/// `acc = fma(d * d_a, isum, acc)` of block `sub` of the file's, `at` of the token, and what the minimums add.
///
/// # Safety
/// Block `at` is one of the token's.
#[inline(always)]
unsafe fn add<F: Type>(sums: &mut [float32x4_t; 2], isum: int32x4_t, scales: &FourScales, sub: usize, acts: &Acts, at: usize) {
    let [acc, acc_m] = sums;
    // SAFETY: an element for each block of the token.
    unsafe {
        let d_a = *acts.d.as_ptr().add(at);
        *acc = vfmaq_f32(*acc, vmulq_n_f32(scales.d[sub], d_a), vcvtq_f32_s32(isum));
        match F::SCALES {
            SubScales::OneMin => *acc_m = vfmaq_n_f32(*acc_m, vreinterpretq_f32_s32(scales.x[sub]), *acts.s.as_ptr().add(at)),
            SubScales::TwoMin => {
                let sum = superblocks::minimums(scales.x[sub], acts.half_sums(at));
                *acc_m = vfmaq_f32(*acc_m, vmulq_n_f32(scales.m, d_a), vcvtq_f32_s32(sum));
            }
            SubScales::One | SubScales::Two => {}
        }
    }
}

/// Fetches a block of the file.
#[inline(always)]
fn prefetch<F: Type>(p: *const u8) {
    for line in (0..F::BYTES).step_by(64) {
        // SAFETY: a prefetch reads nothing and does not fault.
        unsafe { asm!("prfm pldl1strm, [{p}]", p = in(reg) p.wrapping_add(line), options(readonly, nostack, preserves_flags)) };
    }
}
