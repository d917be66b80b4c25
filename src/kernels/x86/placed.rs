//! Keys that are read again, in AVX2: what spec/placed.rs specifies, bit for bit. A compiler makes vectors of two of how levels are
//! unpacked there, and shuffles of the neighbours in a Hadamard matrix.
//!
//! All is `inline(always)`, to take the features of the set; no closures, for those would not.

use std::arch::x86_64::*;

use super::float::load8;
use super::levels::{BitPlanes, Levels, Q8};
use crate::kernels::rows::codec::{ROW_BLOCK, RowType, with_row};
use crate::kernels::rows::hadamard::sign;
use crate::kernels::spec::arithmetic::HUGE;
use crate::kernels::spec::placed;
use crate::kernels::{AngleSum, Placing, RopeOrder};

/// The most elements that are turned together here.
const MOST: usize = 256;

/// What `rows::hadamard::flip` turns.
static FLIPS: [u32; MOST] = {
    let (mut flips, mut i) = ([0; MOST], 0);
    while i < MOST {
        flips[i] = sign(i);
        i += 1;
    }
    flips
};

/// See `Kernels::place`. Heads that are not whole blocks, or larger matrices, go the way of the specification.
///
/// # Safety
/// AVX2, FMA, F16C.
#[inline(always)]
pub unsafe fn place(p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]) {
    let n = p.head_dim;
    if !n.is_multiple_of(ROW_BLOCK) || !p.n_rot.is_multiple_of(16) || ![0, 32, 64, 128, MOST].contains(&p.turned) {
        return placed::place(p, row, mean, angles, key);
    }
    let AngleSum(a, b) = angles;
    assert!(key.len() == n && row.len() == RowType::F16.row_bytes(n) && (mean.is_empty() || mean.len() == n));
    assert!(p.n_rot <= n && a.len() >= p.n_rot && b.len() >= p.n_rot && (p.turned == 0 || n.is_multiple_of(p.turned)));
    // SAFETY: a row of whole blocks, in any type no longer than in f16; as many elements of `key`, and of `mean` if it has any;
    // angles of all that is turned.
    unsafe {
        with_row!(p.ty, R => load::<R>(row, mean, key), load_f16(row, mean, key));
        if p.turned > 0 {
            for part in key.chunks_exact_mut(p.turned) {
                match p.turned {
                    32 => turn::<4>(part),
                    64 => turn::<8>(part),
                    128 => turn::<16>(part),
                    _ => turn::<{ MOST / 8 }>(part),
                }
            }
        }
        match p.order {
            RopeOrder::Norm => norm(&mut key[..p.n_rot], a.as_ptr(), b.as_ptr()),
            RopeOrder::Neox => neox(&mut key[..p.n_rot], a.as_ptr(), b.as_ptr()),
        }
        store(key, row);
    }
}

/// `key = d * q + mean`
///
/// # Safety
/// A row of whole blocks; a mean of as many elements or none; AVX2.
#[inline(always)]
unsafe fn load<R: Levels>(row: &[u8], mean: &[f32], key: &mut [f32]) {
    let n_blocks = RowType::n_blocks(key.len());
    for (b, key) in key.as_chunks_mut::<ROW_BLOCK>().0.iter_mut().enumerate() {
        // SAFETY: block `b` of the row and of the mean.
        unsafe {
            let (d, offset) = (_mm256_set1_ps(R::TYPE.scale(row, b)), _mm256_set1_ps(R::TYPE.offset() as f32));
            for part in 0..ROW_BLOCK / 8 {
                let q = _mm256_sub_ps(R::value8(row.as_ptr(), n_blocks, b, part), offset);
                let mut x = _mm256_mul_ps(d, q);
                if !mean.is_empty() {
                    x = _mm256_add_ps(x, _mm256_loadu_ps(mean.as_ptr().add(b * ROW_BLOCK + 8 * part)));
                }
                _mm256_storeu_ps(key.as_mut_ptr().add(8 * part), x);
            }
        }
    }
}

/// # Safety
/// As `load`; F16C.
#[inline(always)]
unsafe fn load_f16(row: &[u8], mean: &[f32], key: &mut [f32]) {
    for (i, key) in key.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // SAFETY: eight elements of the row and of the mean.
        unsafe {
            let mut x = load8(row.as_ptr().add(16 * i));
            if !mean.is_empty() {
                x = _mm256_add_ps(x, _mm256_loadu_ps(mean.as_ptr().add(8 * i)));
            }
            _mm256_storeu_ps(key.as_mut_ptr(), x);
        }
    }
}

/// `hadamard` and `flip` of `8 * N` elements.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn turn<const N: usize>(x: &mut [f32]) {
    const { assert!(8 * N <= MOST) }
    assert!(x.len() == 8 * N);
    // SAFETY: N vectors of the slice, and of the table.
    unsafe {
        let odd = [
            _mm256_setr_ps(0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0),
            _mm256_setr_ps(0.0, 0.0, -0.0, -0.0, 0.0, 0.0, -0.0, -0.0),
        ];
        let upper = _mm256_setr_ps(0.0, 0.0, 0.0, 0.0, -0.0, -0.0, -0.0, -0.0);
        let mut v = [_mm256_setzero_ps(); N];
        for i in 0..N {
            let x = _mm256_loadu_ps(x.as_ptr().add(8 * i));
            let x = _mm256_add_ps(_mm256_permute_ps(x, 0b10_11_00_01), _mm256_xor_ps(x, odd[0]));
            let x = _mm256_add_ps(_mm256_permute_ps(x, 0b01_00_11_10), _mm256_xor_ps(x, odd[1]));
            v[i] = _mm256_add_ps(_mm256_permute2f128_ps(x, x, 1), _mm256_xor_ps(x, upper));
        }
        let mut half = 1;
        while half < N {
            for i in 0..N {
                if i & half == 0 {
                    (v[i], v[i + half]) = (_mm256_add_ps(v[i], v[i + half]), _mm256_sub_ps(v[i], v[i + half]));
                }
            }
            half *= 2;
        }
        let scale = _mm256_set1_ps(1.0 / ((8 * N) as f32).sqrt());
        for i in 0..N {
            let flips = _mm256_loadu_ps(FLIPS.as_ptr().add(8 * i).cast());
            _mm256_storeu_ps(x.as_mut_ptr().add(8 * i), _mm256_xor_ps(_mm256_mul_ps(v[i], scale), flips));
        }
    }
}

/// Cosine and sine of eight sums of two angles.
///
/// # Safety
/// Eight of each at the pointers and `half` behind them; AVX2.
#[inline(always)]
unsafe fn cos_sin(a: *const f32, b: *const f32, half: usize) -> [__m256; 2] {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let (cos_a, sin_a) = (_mm256_loadu_ps(a), _mm256_loadu_ps(a.add(half)));
        let (cos_b, sin_b) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(half)));
        let cos = _mm256_sub_ps(_mm256_mul_ps(cos_a, cos_b), _mm256_mul_ps(sin_a, sin_b));
        [cos, _mm256_add_ps(_mm256_mul_ps(sin_a, cos_b), _mm256_mul_ps(cos_a, sin_b))]
    }
}

/// Turns pairs of neighbours.
///
/// # Safety
/// As many cosines and sines as elements at both pointers; a multiple of sixteen; AVX2.
#[inline(always)]
unsafe fn norm(key: &mut [f32], a: *const f32, b: *const f32) {
    let half = key.len() / 2;
    for (i, key) in key.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // SAFETY: eight pairs, and their angles.
        unsafe {
            let angles = cos_sin(a.add(8 * i), b.add(8 * i), half);
            for (j, key) in key.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // An angle for both elements of each of four pairs.
                let twice = _mm256_add_epi32(_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), _mm256_set1_epi32(4 * j as i32));
                let (cos, sin) = (_mm256_permutevar8x32_ps(angles[0], twice), _mm256_permutevar8x32_ps(angles[1], twice));
                let x = _mm256_loadu_ps(key.as_ptr());
                let swapped = _mm256_permute_ps(x, 0b10_11_00_01);
                let x = _mm256_addsub_ps(_mm256_mul_ps(x, cos), _mm256_mul_ps(swapped, sin));
                _mm256_storeu_ps(key.as_mut_ptr(), x);
            }
        }
    }
}

/// Turns pairs of elements half of them apart.
///
/// # Safety
/// As `norm`.
#[inline(always)]
unsafe fn neox(key: &mut [f32], a: *const f32, b: *const f32) {
    let half = key.len() / 2;
    let (low, high) = key.split_at_mut(half);
    let pairs = low.as_chunks_mut::<8>().0.iter_mut().zip(high.as_chunks_mut::<8>().0);
    for (i, (low, high)) in pairs.enumerate() {
        // SAFETY: eight pairs, and their angles.
        unsafe {
            let [cos, sin] = cos_sin(a.add(8 * i), b.add(8 * i), half);
            let (x, y) = (_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr()));
            _mm256_storeu_ps(low.as_mut_ptr(), _mm256_sub_ps(_mm256_mul_ps(x, cos), _mm256_mul_ps(y, sin)));
            _mm256_storeu_ps(high.as_mut_ptr(), _mm256_add_ps(_mm256_mul_ps(x, sin), _mm256_mul_ps(y, cos)));
        }
    }
}

/// `arithmetic::store_f16` of whole vectors.
///
/// # Safety
/// As many f16 in `row` as elements; F16C.
#[inline(always)]
unsafe fn store(key: &[f32], row: &mut [u8]) {
    for (key, row) in key.as_chunks::<8>().0.iter().zip(row.as_chunks_mut::<16>().0) {
        // SAFETY: eight elements and their f16.
        unsafe {
            // What is not a number becomes the bound, which is the second operand.
            let x = _mm256_max_ps(_mm256_loadu_ps(key.as_ptr()), _mm256_set1_ps(-HUGE));
            let x = _mm256_min_ps(x, _mm256_set1_ps(HUGE));
            _mm_storeu_si128(row.as_mut_ptr().cast(), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
        }
    }
}
