//! Quantisation of activations, eight f16, and float matrices against a batch, as both x86 sets have them. Eight lanes of AVX2 are the
//! lanes of `spec/arithmetic.rs`, and every sum keeps the order fixed there, so the bits are the same.
//!
//! All is `inline(always)`, to take the features of the set, which must have AVX2, FMA and F16C.

use std::arch::x86_64::*;

use crate::gguf::quant::element;
use crate::kernels::spec::arithmetic::{Lanes, LoadF16};
use crate::kernels::spec::float::{self, GEMM_FROM};
use crate::kernels::{BLOCK, MatmulTask, TILE_ROWS};

/// Tokens of one call of `gemm`. Larger products than 16 x 16 allocate memory to pack its operands in; up to there it
/// works on them where they are, and nothing may be allocated in a prefill.
const GEMM_TOKENS: usize = 16;

/// Eight f16 by `vcvtph2ps`.
pub struct F16c;
impl LoadF16 for F16c {
    #[inline(always)]
    unsafe fn load8(p: *const u8) -> Lanes {
        // SAFETY: as `load8`; `__m256` is eight f32.
        unsafe { std::mem::transmute::<__m256, Lanes>(load8(p)) }
    }
}

/// # Safety
/// 16 readable bytes at `p`; F16C.
#[inline(always)]
pub unsafe fn load8(p: *const u8) -> __m256 {
    // SAFETY: readable by the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// As `portable::quantize`: for each block of 32
///
/// ```text
/// d = max|x| / 127;  q = round(x / d);  sum = Σ q
/// ```
///
/// # Safety
/// AVX2, FMA.
#[inline(always)]
pub unsafe fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
    const ROUND: f32 = 12_582_912.0;
    let (blocks, _) = x.as_chunks::<BLOCK>();
    let (q_blocks, _) = q.as_chunks_mut::<BLOCK>();
    for (b, (x, q)) in blocks.iter().zip(q_blocks).enumerate() {
        // SAFETY: loads and stores stay inside a block of 32 floats or bytes.
        unsafe {
            let mut x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
            let mut max = _mm256_setzero_ps();
            for x in x {
                max = _mm256_max_ps(_mm256_and_ps(x, magnitude), max);
            }
            let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
            let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
            let max = _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
            let scale = max / 127.0;
            // Below the smallest normal number 1/scale overflows: such a block is nought.
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut total = _mm256_setzero_si256();
            for x in &mut x {
                let shifted = _mm256_fmadd_ps(*x, _mm256_set1_ps(inverse), _mm256_set1_ps(ROUND));
                let rounded = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(ROUND.to_bits() as i32));
                total = _mm256_add_epi32(total, rounded);
                // The low byte alone, so that packing does not saturate.
                *x = _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(0xff)));
            }
            let [x0, x1, x2, x3] =
                [_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1]), _mm256_castps_si256(x[2]), _mm256_castps_si256(x[3])];
            // Packing works in each half: four bytes of x0, x1, x2, x3, then their upper ones.
            let packed = _mm256_packus_epi16(_mm256_packus_epi32(x0, x1), _mm256_packus_epi32(x2, x3));
            let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(q.as_mut_ptr().cast(), packed);
            let total = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
            let total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0b01_00_11_10));
            let total = _mm_cvtsi128_si32(_mm_add_epi32(total, _mm_shuffle_epi32(total, 0b10_11_00_01)));
            (d[b], sum[b], s[b]) = (scale, total, scale * total as f32);
        }
    }
}

/// Expands `TILE_ROWS` rows at a time and multiplies them with the whole batch.
///
/// # Safety
/// As `spec::float::rows`.
#[inline(always)]
pub unsafe fn batch<F: LoadF16>(task: &mut MatmulTask) {
    let (acts, n_cols) = (task.acts, task.acts.n_cols);
    if acts.n_tok < GEMM_FROM {
        // SAFETY: passed on.
        return unsafe { float::rows::<F>(task) };
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
                    eight.copy_from_slice(&unsafe { float::load8::<F>(ty, w.as_ptr().add(i * 8 * elem_bytes)) });
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
