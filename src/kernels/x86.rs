//! What the x86 sets share beside products and attention: quantisation of activations, and the portable functions, stamped
//! with the features of each set (`stamp_x86!`). Eight lanes of AVX2 are the lanes of `portable.rs`, and every sum keeps the
//! order fixed there, so the bits are the same; only more of them are under way at once.
//!
//! All is `inline(always)`, to take the features of the set, which must have AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::BLOCK;
use super::portable::{Lanes, LoadF16};

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

/// The functions of a set beside `matmul`, compiled with its features.
macro_rules! stamp_x86 {
    ($features:literal, $width:ty) => {
        #[target_feature(enable = $features)]
        unsafe fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
            // SAFETY: the set has the features.
            unsafe { crate::kernels::x86::quantize(x, q, d, s, sum) }
        }
        #[target_feature(enable = $features)]
        unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            crate::kernels::portable::rms_norm(x, weight, eps, out)
        }
        #[target_feature(enable = $features)]
        unsafe fn add(x: &mut [f32], y: &[f32]) {
            crate::kernels::portable::add(x, y)
        }
        #[target_feature(enable = $features)]
        unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::portable::silu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn gelu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::portable::gelu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn soft_cap(x: &mut [f32], cap: f32) {
            crate::kernels::portable::soft_cap(x, cap)
        }
        #[target_feature(enable = $features)]
        unsafe fn l2_norm(x: &[f32]) -> f32 {
            crate::kernels::portable::l2_norm(x)
        }
        #[target_feature(enable = $features)]
        unsafe fn attend(a: &crate::kernels::Attend, out: &mut crate::kernels::Partial) {
            // SAFETY: passed on to the caller; the set has the features.
            unsafe { crate::kernels::x86_attend::attend::<$width>(a, out) }
        }
        #[target_feature(enable = $features)]
        unsafe fn merge(running: &mut [f32], acc: &mut [f32], chunk: &crate::kernels::Partial) {
            crate::kernels::attend::merge(running, acc, chunk)
        }
        #[target_feature(enable = $features)]
        unsafe fn received(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) {
            crate::kernels::attend::received(tops, weights, running, total)
        }
    };
}
pub(crate) use stamp_x86;
