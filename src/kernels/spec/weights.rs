//! The plain set: what every other one must equal, and what runs where no better one can.
//!
//! A row times a token, for a quantised type: for each 32 columns in order one step of
//!
//! ```text
//! acc  = fma(d_w * d_a, isum, acc)       isum exact, in integers, below 2^24 so that it is exact as f32 too
//! accm = fma(m_w, s_a, accm)             only for types with a minimum; s_a = d_a Σ q_a
//! ```
//!
//! and the result is `acc + accm`. This order is the contract of all sets. What a step is made of, by type:
//! - a scale for each 32 (Q4_0 to Q8_0, IQ4_NL, MXFP4, Q1_0, Q2_0, TQ1_0, TQ2_0; Q4_K, Q5_K, IQ4_XS, IQ2_XXS, IQ3_XXS, IQ3_S, whose
//!   d_w = d * scale, with the fraction of IQ2 and IQ3, and m_w = -(dmin * min) are exact): isum = Σ q_w q_a;
//! - a scale for each 16 (Q3_K, Q6_K, IQ2_XS, IQ2_S): isum = sc0 * Σ first 16 + sc1 * Σ last 16, and d_w = d of the superblock, an
//!   eighth of it in IQ2;
//! - and a minimum for each 16 (Q2_K): besides, accm = fma(-(dmin * d_a), m0 * Σ q_a first 16 + m1 * Σ q_a last 16, accm).

use super::arithmetic::Bits;
use super::{float, packed};
use crate::gguf::quant::{Min, Unpack, unpacking};
use crate::kernels::MatmulTask;

/// # Safety
/// The task's elements of `out` belong to the caller.
pub unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on; `Bits` needs no CPU feature.
    unsafe {
        match unpacking(task.w.ty) {
            Some((unpack, min)) => by_blocks(task, unpack, min),
            None => float::rows::<Bits>(task),
        }
    }
}

/// Tokens that share the unpacking of a block.
const TOKENS: usize = 8;

/// # Safety
/// As `matmul`.
unsafe fn by_blocks(task: &mut MatmulTask, unpack: Unpack, min: Min) {
    let acts = task.acts;
    let (n_blocks, per_block, bytes) = (acts.n_cols / 32, task.w.ty.block_elems() / 32, task.w.ty.block_bytes());
    let is_packed = task.w.packed;
    for row in task.rows.clone() {
        let native = if is_packed { &[][..] } else { task.w.row(row) };
        for first in (0..acts.n_tok).step_by(TOKENS) {
            let n = TOKENS.min(acts.n_tok - first);
            let (mut acc, mut acc_m) = ([0f32; TOKENS], [0f32; TOKENS]);
            for b in 0..n_blocks {
                let w = match is_packed {
                    true => unpack(&packed::block(&task.w, row, b), 0),
                    false => unpack(&native[b / per_block * bytes..][..bytes], b % per_block),
                };
                for t in 0..n {
                    let at = (first + t) * n_blocks + b;
                    let d_a = acts.d[at];
                    let isum = w.sc[0] * dot(&w.q, &acts.q[at * 32..], 0) + w.sc[1] * dot(&w.q, &acts.q[at * 32..], 16);
                    acc[t] = (w.d * d_a).mul_add(isum as f32, acc[t]);
                    match min {
                        Min::None => {}
                        Min::Whole => acc_m[t] = w.m.mul_add(acts.s[at], acc_m[t]),
                        Min::Halves => {
                            let [a0, a1] = acts.half_sums(at);
                            acc_m[t] = (w.m * d_a).mul_add((w.m_sub[0] * a0 + w.m_sub[1] * a1) as f32, acc_m[t]);
                        }
                    }
                }
            }
            for t in 0..n {
                // SAFETY: the caller's element.
                unsafe { task.out.store(first + t, row, acc[t] + acc_m[t]) };
            }
        }
    }
}

/// Of 16 elements from `at` on.
#[inline(always)]
fn dot(w: &[i8; 32], a: &[i8], at: usize) -> i32 {
    w[at..at + 16].iter().zip(&a[at..at + 16]).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()
}
