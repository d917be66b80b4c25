//! Those loops of attend.rs that are others with vectors of sixteen: two keys in f16 side by side, or sixteen elements of a
//! value. All is `inline(always)`, to take the features of the set; no closures, for those would not.

use std::arch::x86_64::*;

use super::attend::{Width, add_lanes_of, mix8};
use super::levels::Levels;
use crate::kernels::CHUNK;
use crate::kernels::rows::codec::ROW_BLOCK;
use crate::kernels::spec::attention::Weights;

/// Vectors of sixteen.
pub struct Zmm;
impl Width for Zmm {
    type V = __m512i;

    #[inline(always)]
    unsafe fn float_scores<const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [__m256; 2] {
        // SAFETY: elements of rows and queries, by the caller's promise.
        unsafe {
            // The lower half of `dots[k]` belongs to keys[0][k], the upper to keys[1][k].
            let mut dots = [[_mm512_setzero_ps(); P]; K];
            for i in 0..head_dim / 8 {
                let mut key = [_mm512_setzero_ps(); K];
                for k in 0..K {
                    let (low, high) =
                        (_mm_loadu_si128(keys[0][k].add(16 * i).cast()), _mm_loadu_si128(keys[1][k].add(16 * i).cast()));
                    key[k] = _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
                }
                for n in 0..N {
                    let q = _mm256_loadu_pd(q.add(n * head_dim + 8 * i).cast());
                    let q = _mm512_castpd_ps(_mm512_broadcast_f64x4(q));
                    for k in 0..K {
                        dots[k][n] = _mm512_fmadd_ps(q, key[k], dots[k][n]);
                    }
                }
            }
            let dots: &[__m512; 8] = dots.as_flattened().try_into().expect("K * P = 8");
            let (mut low, mut high) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
            for i in 0..8 {
                low[i] = _mm512_castps512_ps256(dots[i]);
                high[i] = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(dots[i]), 1));
            }
            [add_lanes_of(&low), add_lanes_of(&high)]
        }
    }

    #[inline(always)]
    unsafe fn float_mix<const N: usize>(
        at: &[*const u8; CHUNK],
        n_rows: usize,
        weights: &Weights<N>,
        head_dim: usize,
        acc: &mut [f32],
    ) {
        let (n16, mut i) = (head_dim / 16, 0);
        // SAFETY: vectors `i..` of the rows.
        unsafe {
            while i + 4 <= n16 {
                mix16::<N, 4>(at, n_rows, weights, head_dim, i, acc);
                i += 4;
            }
            while i < n16 {
                mix16::<N, 1>(at, n_rows, weights, head_dim, i, acc);
                i += 1;
            }
            if head_dim % 16 != 0 {
                mix8::<N, 1>(at, n_rows, weights, head_dim, 2 * n16, acc);
            }
        }
    }

    #[inline(always)]
    unsafe fn level_mix<R: Levels, const N: usize, const B: usize>(
        at: &[*const u8; CHUNK],
        n_rows: usize,
        weights: &[Weights<N>],
        n_blocks: usize,
        b: usize,
    ) -> [[[f32; ROW_BLOCK]; B]; N] {
        let mut out = [[[0f32; ROW_BLOCK]; B]; N];
        // SAFETY: blocks of rows, by the caller's promise.
        unsafe {
            let mut total = [[[_mm512_setzero_ps(); 2]; B]; N];
            for j in 0..n_rows {
                for i in 0..B {
                    let value = R::value32(at[j], n_blocks, b + i);
                    for n in 0..N {
                        let weight = _mm512_set1_ps(weights[i][n][j]);
                        for half in 0..2 {
                            total[n][i][half] = _mm512_fmadd_ps(weight, value[half], total[n][i][half]);
                        }
                    }
                }
            }
            for n in 0..N {
                for i in 0..B {
                    for half in 0..2 {
                        _mm512_storeu_ps(out[n][i][16 * half..].as_mut_ptr(), total[n][i][half]);
                    }
                }
            }
        }
        out
    }
}

/// Vectors `i..i + D` of the weighted sum of values in f16.
///
/// # Safety
/// As `Width::float_mix`; AVX-512F.
#[inline(always)]
unsafe fn mix16<const N: usize, const D: usize>(
    at: &[*const u8; CHUNK],
    n_rows: usize,
    weights: &Weights<N>,
    head_dim: usize,
    i: usize,
    acc: &mut [f32],
) {
    // SAFETY: vectors of rows that exist, by the caller's promise.
    unsafe {
        let mut total = [[_mm512_setzero_ps(); D]; N];
        for j in 0..n_rows {
            let mut value = [_mm512_setzero_ps(); D];
            for c in 0..D {
                value[c] = _mm512_cvtph_ps(_mm256_loadu_si256(at[j].add(32 * (i + c)).cast()));
            }
            for n in 0..N {
                let weight = _mm512_set1_ps(weights[n][j]);
                for c in 0..D {
                    total[n][c] = _mm512_fmadd_ps(weight, value[c], total[n][c]);
                }
            }
        }
        for n in 0..N {
            for c in 0..D {
                _mm512_storeu_ps(acc[n * head_dim + (i + c) * 16..][..16].as_mut_ptr(), total[n][c]);
            }
        }
    }
}
