//! Float weight matrices. A few tokens go through dot products in the fixed order of `portable.rs`; a batch goes to
//! the crate `gemm`, whose order of summation is its own: equal to the scalar set within f32 rounding, not bit for bit.
//! ARM has its own, `arm_dense.rs`.

use super::MatmulTask;
#[cfg(target_arch = "x86_64")]
use super::TILE_ROWS;
use super::portable::{LoadF16, add_lanes};
use crate::gguf::quant::GgmlType;

/// From this many tokens on a batch is worth a matrix product.
pub const GEMM_FROM: usize = 8;

/// Tokens of one call of `gemm`. Larger products than 16 x 16 make it allocate room to pack its operands in; up to there it
/// works on them where they are, and nothing may be allocated in a prefill.
#[cfg(target_arch = "x86_64")]
const GEMM_TOKENS: usize = 16;

/// Row by row, token by token.
///
/// # Safety
/// The task's elements of `out` belong to the caller; the CPU features that `F` needs.
#[inline(always)]
pub unsafe fn rows<F: LoadF16>(task: &mut MatmulTask) {
    let acts = task.acts;
    let (whole, rest) = (acts.n_cols / 8, acts.n_cols % 8);
    let (ty, elem_bytes) = (task.w.ty, task.w.ty.block_bytes());
    for row in task.rows.clone() {
        let w = task.w.row(row);
        for t in 0..acts.n_tok {
            let x = &acts.x[t * acts.n_cols..][..acts.n_cols];
            let mut lanes = [0f32; 8];
            for i in 0..whole {
                // SAFETY: eight elements of this row start here.
                let w8 = unsafe { load8::<F>(ty, w.as_ptr().add(i * 8 * elem_bytes)) };
                for l in 0..8 {
                    lanes[l] = w8[l].mul_add(x[i * 8 + l], lanes[l]);
                }
            }
            for l in 0..rest {
                let w = element(ty, w, whole * 8 + l);
                lanes[l] = w.mul_add(x[whole * 8 + l], lanes[l]);
            }
            // SAFETY: the caller's element.
            unsafe { task.out.store(t, row, add_lanes(lanes)) };
        }
    }
}

/// Expands `TILE_ROWS` rows at a time and multiplies them with the whole batch.
///
/// # Safety
/// As `rows`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn batch<F: LoadF16>(task: &mut MatmulTask) {
    let (acts, n_cols) = (task.acts, task.acts.n_cols);
    if acts.n_tok < GEMM_FROM {
        // SAFETY: passed on.
        return unsafe { rows::<F>(task) };
    }
    let (ty, elem_bytes) = (task.w.ty, task.w.ty.block_bytes());
    // SAFETY: f32 has no invalid bits; `align_to_mut` gives only what is aligned.
    let (_, tile, _) = unsafe { task.tile.align_to_mut::<f32>() };
    assert!(tile.len() >= TILE_ROWS * n_cols, "tile scratch planned without float matrices");
    let mut first = task.rows.start;
    while first < task.rows.end {
        let n = TILE_ROWS.min(task.rows.end - first);
        for r in 0..n {
            let w = task.w.row(first + r);
            let expanded = &mut tile[r * n_cols..][..n_cols];
            for (i, eight) in expanded.chunks_mut(8).enumerate() {
                if eight.len() == 8 {
                    // SAFETY: eight elements of this row start here.
                    eight.copy_from_slice(&unsafe { load8::<F>(ty, w.as_ptr().add(i * 8 * elem_bytes)) });
                } else {
                    for (l, out) in eight.iter_mut().enumerate() {
                        *out = element(ty, w, i * 8 + l);
                    }
                }
            }
        }
        for t in (0..acts.n_tok).step_by(GEMM_TOKENS) {
            let tokens = GEMM_TOKENS.min(acts.n_tok - t);
            // SAFETY: out is [n_tok][stride] from column `first`, tile [n][n_cols], x [n_tok][n_cols]: all within their
            // buffers (checked by `Kernels::matmul` and above); the elements of `out` are the caller's.
            unsafe {
                gemm::gemm(
                    tokens,
                    n,
                    n_cols,
                    task.out.at(t, first),
                    1,
                    task.out.stride as isize,
                    false,
                    acts.x.as_ptr().add(t * n_cols),
                    1,
                    n_cols as isize,
                    tile.as_ptr(),
                    n_cols as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        first += n;
    }
}

/// # Safety
/// Eight elements of a float type at `p`; the CPU features that `F` needs.
#[inline(always)]
unsafe fn load8<F: LoadF16>(ty: GgmlType, p: *const u8) -> [f32; 8] {
    // SAFETY: 16 or 32 bytes by the caller's promise.
    unsafe {
        match ty {
            GgmlType::F16 => F::load8(p),
            GgmlType::BF16 => p.cast::<[u16; 8]>().read_unaligned().map(|h| f32::from_bits(u32::from(u16::from_le(h)) << 16)),
            _ => p.cast::<[f32; 8]>().read_unaligned(),
        }
    }
}

pub fn element(ty: GgmlType, w: &[u8], i: usize) -> f32 {
    let half = || [w[2 * i], w[2 * i + 1]];
    match ty {
        GgmlType::F16 => half::f16::from_le_bytes(half()).to_f32(),
        GgmlType::BF16 => half::bf16::from_le_bytes(half()).to_f32(),
        _ => f32::from_le_bytes([w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]]),
    }
}
