//! Float weight matrices on ARM. A few tokens go row by row in the order of `spec/arithmetic.rs`, four rows at a time. For a batch
//! rows are expanded into a tile and multiplied with four tokens at once; such a sum runs from the first column to the last,
//! equal to the scalar set within f32 rounding, not bit for bit. (The crate `gemm` would have to allocate for this.)

use std::arch::aarch64::*;

use super::blocks::TOKENS;
use super::float::add_lanes;
use super::formats::widen_f16;
use crate::gguf::quant::{GgmlType, element};
use crate::kernels::spec::float::GEMM_FROM;
use crate::kernels::{Acts, MatmulTask, Matrix, Out};

/// Rows of a tile. They are stored in two halves: four rows of column 0, of column 1, …
const ROWS: usize = 8;

/// # Safety
/// The task's elements of `out` belong to the caller.
pub unsafe fn matmul(task: &mut MatmulTask) {
    assert!(
        task.rows.end <= task.w.n_rows
            && task.acts.n_cols == task.w.n_cols
            && task.acts.x.len() >= task.acts.n_tok * task.acts.n_cols
    );
    // SAFETY: passed on.
    unsafe {
        match (task.w.ty, task.acts.n_tok < GEMM_FROM) {
            (GgmlType::F16, true) => rows::<F16>(task),
            (GgmlType::F16, false) => batch::<F16>(task),
            (GgmlType::BF16, true) => rows::<BF16>(task),
            (GgmlType::BF16, false) => batch::<BF16>(task),
            (_, true) => rows::<F32>(task),
            (_, false) => batch::<F32>(task),
        }
    }
}

/// How a float type is read.
trait Float {
    const TYPE: GgmlType;

    /// Eight elements from column `at` on.
    ///
    /// # Safety
    /// They are in the row that starts at `row`.
    unsafe fn load8(row: *const u8, at: usize) -> [float32x4_t; 2];
}

struct F16;
impl Float for F16 {
    const TYPE: GgmlType = GgmlType::F16;
    #[inline(always)]
    unsafe fn load8(row: *const u8, at: usize) -> [float32x4_t; 2] {
        // SAFETY: 16 bytes by the caller's promise.
        widen_f16(unsafe { vreinterpretq_u16_u8(vld1q_u8(row.add(2 * at))) })
    }
}

struct BF16;
impl Float for BF16 {
    const TYPE: GgmlType = GgmlType::BF16;
    #[inline(always)]
    unsafe fn load8(row: *const u8, at: usize) -> [float32x4_t; 2] {
        // SAFETY: 16 bytes by the caller's promise.
        unsafe {
            let h = vreinterpretq_u16_u8(vld1q_u8(row.add(2 * at)));
            [vshll_n_u16::<16>(vget_low_u16(h)), vshll_high_n_u16::<16>(h)].map(|x| vreinterpretq_f32_u32(x))
        }
    }
}

struct F32;
impl Float for F32 {
    const TYPE: GgmlType = GgmlType::F32;
    #[inline(always)]
    unsafe fn load8(row: *const u8, at: usize) -> [float32x4_t; 2] {
        // SAFETY: 32 bytes by the caller's promise.
        unsafe {
            let p = row.add(4 * at);
            [vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8(p.add(16)))]
        }
    }
}

/// # Safety
/// As `matmul`.
unsafe fn rows<F: Float>(task: &MatmulTask) {
    for t in 0..task.acts.n_tok {
        let x = &task.acts.x[t * task.acts.n_cols..][..task.acts.n_cols];
        let mut row = task.rows.start;
        while row < task.rows.end {
            // SAFETY: rows of the task and their elements of `out`.
            unsafe {
                if row + 4 <= task.rows.end {
                    some_rows::<F, 4>(task.w, row, x, task.out, t);
                    row += 4;
                } else {
                    some_rows::<F, 1>(task.w, row, x, task.out, t);
                    row += 1;
                }
            }
        }
    }
}

/// `N` rows from `first` on times one token, each sum in eight lanes.
///
/// # Safety
/// The rows are in the matrix, their elements of `out` are the caller's, `x` is as long as a row.
unsafe fn some_rows<F: Float, const N: usize>(w: Matrix, first: usize, x: &[f32], out: Out, t: usize) {
    let start: [&[u8]; N] = std::array::from_fn(|r| w.row(first + r));
    // SAFETY: eight columns are inside each row and `x`; registers and the stack.
    unsafe {
        let mut lanes = [[vdupq_n_f32(0.0); 2]; N];
        let (whole, rest) = x.as_chunks::<8>();
        for (i, x) in whole.iter().enumerate() {
            let x = [vld1q_f32(x.as_ptr()), vld1q_f32(x[4..].as_ptr())];
            for r in 0..N {
                let w = F::load8(start[r].as_ptr(), 8 * i);
                lanes[r] = [vfmaq_f32(lanes[r][0], w[0], x[0]), vfmaq_f32(lanes[r][1], w[1], x[1])];
            }
        }
        for r in 0..N {
            let mut sums = [0f32; 8];
            vst1q_f32(sums.as_mut_ptr(), lanes[r][0]);
            vst1q_f32(sums[4..].as_mut_ptr(), lanes[r][1]);
            for (l, x) in rest.iter().enumerate() {
                sums[l] = element(F::TYPE, start[r], whole.len() * 8 + l).mul_add(*x, sums[l]);
            }
            out.store(t, first + r, add_lanes([vld1q_f32(sums.as_ptr()), vld1q_f32(sums[4..].as_ptr())]));
        }
    }
}

/// # Safety
/// As `matmul`.
unsafe fn batch<F: Float>(task: &mut MatmulTask) {
    let (acts, n_cols) = (task.acts, task.acts.n_cols);
    // SAFETY: f32 has no invalid bits; `align_to_mut` gives only what is aligned.
    let (_, tile, _) = unsafe { task.tile.align_to_mut::<f32>() };
    let tile = &mut tile[..ROWS * n_cols];
    for first in task.rows.clone().step_by(ROWS) {
        let n_rows = ROWS.min(task.rows.end - first);
        for (half, tile) in tile.chunks_exact_mut(4 * n_cols).enumerate() {
            // Where the matrix ends, its last row stands in for the missing ones.
            let rows = std::array::from_fn(|r| task.w.row((first + 4 * half + r).min(task.rows.end - 1)));
            expand::<F>(rows, tile);
        }
        for t in (0..acts.n_tok).step_by(TOKENS) {
            let sums = product(tile, &acts, t);
            for (t, sums) in (t..acts.n_tok).zip(sums) {
                for (r, sum) in sums[..n_rows].iter().enumerate() {
                    // SAFETY: an element of the task.
                    unsafe { task.out.store(t, first + r, *sum) };
                }
            }
        }
    }
}

/// Four rows as f32, a column after the other.
fn expand<F: Float>(rows: [&[u8]; 4], tile: &mut [f32]) {
    let n_cols = tile.len() / 4;
    let whole = n_cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: eight columns of each row; 32 floats of the tile.
        unsafe {
            let [a, b, c, d] = rows.map(|row| F::load8(row.as_ptr(), at));
            vst4q_f32(tile[4 * at..].as_mut_ptr(), float32x4x4_t(a[0], b[0], c[0], d[0]));
            vst4q_f32(tile[4 * at + 16..].as_mut_ptr(), float32x4x4_t(a[1], b[1], c[1], d[1]));
        }
    }
    for at in whole..n_cols {
        for (r, row) in rows.iter().enumerate() {
            tile[4 * at + r] = element(F::TYPE, row, at);
        }
    }
}

/// The rows of a tile times `TOKENS` tokens from `first` on, of which those behind the last are the last again:
///
///     for each four columns, token t, four rows g, column k:
///         acc[t][g] = fma(w[g][k], x[t] lane k, acc[t][g])
fn product(tile: &[f32], acts: &Acts, first: usize) -> [[f32; ROWS]; TOKENS] {
    let n_cols = acts.n_cols;
    let x: [&[f32]; TOKENS] = std::array::from_fn(|t| &acts.x[(first + t).min(acts.n_tok - 1) * n_cols..][..n_cols]);
    let (low, high) = tile.split_at(4 * n_cols);
    assert!(high.len() == 4 * n_cols);
    let mut out = [[0f32; ROWS]; TOKENS];
    // SAFETY: four columns from `at` on are inside each `x` and each half of the tile, by the lengths above.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); 2]; TOKENS];
        let whole = n_cols / 4 * 4;
        for at in (0..whole).step_by(4) {
            let x = x.map(|x| vld1q_f32(x.as_ptr().add(at)));
            macro_rules! column {
                ($k:literal) => {
                    let w = [vld1q_f32(low.as_ptr().add(4 * (at + $k))), vld1q_f32(high.as_ptr().add(4 * (at + $k)))];
                    for t in 0..TOKENS {
                        acc[t] = [vfmaq_laneq_f32::<$k>(acc[t][0], w[0], x[t]), vfmaq_laneq_f32::<$k>(acc[t][1], w[1], x[t])];
                    }
                };
            }
            column!(0);
            column!(1);
            column!(2);
            column!(3);
        }
        for (acc, out) in acc.iter().zip(&mut out) {
            vst1q_f32(out.as_mut_ptr(), acc[0]);
            vst1q_f32(out[4..].as_mut_ptr(), acc[1]);
        }
        for at in whole..n_cols {
            for (x, out) in x.iter().zip(&mut out) {
                for r in 0..4 {
                    out[r] = low[4 * at + r].mul_add(x[at], out[r]);
                    out[4 + r] = high[4 * at + r].mul_add(x[at], out[4 + r]);
                }
            }
        }
    }
    out
}
