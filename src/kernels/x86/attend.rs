//! Attention in AVX2 and (with attend512.rs) AVX-512: what spec/attention.rs specifies, bit for bit. Scores and weights lie by query, a row of the cache in
//! each lane.
//!
//! Levels of keys are read as weights are: words of four columns of as many keys as a vector has lanes, transposed on the way,
//! so that integer products need no sum across lanes. Keys in f16, and all values, are read a row at a time.
//!
//! All is `inline(always)`, to take the features of the set; no closures, for those would not.

use std::arch::x86_64::*;

use super::float::load8;
use super::formats::Vector;
use super::levels::{BitPlanes, Levels, Q8};
use crate::kernels::rows::codec::{ROW_BLOCK, RowType, with_row};
use crate::kernels::spec::arithmetic::soft_cap;
use crate::kernels::spec::attention::{QueryBlock, Weights, give_weights, sum_of, to_weights};
use crate::kernels::{Attend, CHUNK, Partial};

/// The loops that differ by the length of vectors.
pub trait Width {
    /// For the scores of keys in levels: a key for each lane.
    type V: Vector;

    /// Scores of `2 * K` keys in f16 with `N` queries; of key `k` with query `n` at `k * P + n`, K * P = 8.
    ///
    /// # Safety
    /// A row of `head_dim` elements at each key, `N * head_dim` f32 at `q`; the CPU features of the width.
    unsafe fn float_scores<const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [__m256; 2];

    /// `acc[n]` = sum over rows `j` of `weights[n][j] * value[j]`, values in f16.
    ///
    /// # Safety
    /// A row of `head_dim` elements for each of the first `n_rows` of `at`; the CPU features of the width.
    unsafe fn float_mix<const N: usize>(
        at: &[*const u8; CHUNK],
        n_rows: usize,
        weights: &Weights<N>,
        head_dim: usize,
        acc: &mut [f32],
    );

    /// The same for `B` blocks of levels, offset and all, from block `b` on.
    ///
    /// # Safety
    /// As `float_mix`, rows of `n_blocks`.
    unsafe fn level_mix<R: Levels, const N: usize, const B: usize>(
        at: &[*const u8; CHUNK],
        n_rows: usize,
        weights: &[Weights<N>],
        n_blocks: usize,
        b: usize,
    ) -> [[[f32; ROW_BLOCK]; B]; N];
}

/// `N` heads of queries `q`, into as many of `out`: see `Attend` and spec/attention.rs.
///
/// # Safety
/// Rows `0..n_rows` lie inside `keys` and `values`; `q` and `out` have `N` heads; the CPU features of the width.
#[inline(always)]
pub unsafe fn attend_n<W: Width, const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
    if (a.n_rows, a.k_type, a.v_type) == (1, RowType::F16, RowType::F16) {
        // SAFETY: passed on; queries and results of N heads.
        return unsafe { one_row::<N>(a, q, out) };
    }
    let mut weights = [[0f32; CHUNK]; N];
    let (keys, values) = (a.addresses(a.keys, a.k_type), a.addresses(a.values, a.v_type));
    // SAFETY: passed on; rows at all addresses.
    unsafe {
        with_row!(a.k_type, R => level_scores::<W::V, R, N>(a, &keys, q, &mut weights), {
            assert!(q.len() == N * a.head_dim);
            match N {
                1 => float_scores::<W, N, 1, 8>(a, &keys, q, &mut weights),
                2 => float_scores::<W, N, 2, 4>(a, &keys, q, &mut weights),
                _ => float_scores::<W, N, 4, 2>(a, &keys, q, &mut weights),
            }
        });
        for n in 0..N {
            (out.max[n], out.sum[n]) = to_weights(&mut weights[n], a.n_rows, a.soft_cap);
        }
        with_row!(a.v_type, R => level_mix::<W, R, N>(a, &values, &weights, out.acc),
            W::float_mix::<N>(&values, a.n_rows, &weights, a.head_dim, out.acc));
    }
    give_weights(&weights, a.n_rows, out.weights);
}

/// A row in f16 that is a chunk of its own, as the first token of a stream is: whatever its score, its weight is 1.
///
/// # Safety
/// As `attend_n`.
#[inline(always)]
unsafe fn one_row<const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
    assert!(q.len() == N * a.head_dim && out.acc.len() == q.len());
    let (at, acc) = (a.rows.get(0) * RowType::F16.row_bytes(a.head_dim), out.acc.as_mut_ptr());
    let mut scores = [0f32; 8];
    // SAFETY: a row at `at` by the caller's promise, queries and results by the assertion.
    unsafe {
        let (key, value) = (a.keys.as_ptr().add(at), a.values.as_ptr().add(at));
        let mut dots = [_mm256_setzero_ps(); 8];
        for i in 0..a.head_dim / 8 {
            let (key, value) = (load8(key.add(16 * i)), load8(value.add(16 * i)));
            for n in 0..N {
                let to = n * a.head_dim + 8 * i;
                dots[n] = _mm256_fmadd_ps(_mm256_loadu_ps(q.as_ptr().add(to)), key, dots[n]);
                _mm256_storeu_ps(acc.add(to), _mm256_add_ps(value, _mm256_setzero_ps()));
            }
        }
        _mm256_storeu_ps(scores.as_mut_ptr(), add_lanes_of(&dots));
    }
    if a.soft_cap != 0.0 {
        soft_cap(&mut scores[..N], a.soft_cap);
    }
    out.max.copy_from_slice(&scores[..N]);
    out.sum.fill(1.0);
    out.weights.iter_mut().step_by(CHUNK).for_each(|weight| *weight = 1.0);
}

/// Sixteen keys at a time: `2 P` vectors of eight scores, brought from (key, query) to (query, key).
///
/// # Safety
/// As `attend_n`.
#[inline(always)]
unsafe fn float_scores<W: Width, const N: usize, const P: usize, const K: usize>(
    a: &Attend,
    at: &[*const u8; CHUNK],
    q: &[f32],
    weights: &mut Weights<N>,
) {
    const { assert!(CHUNK.is_multiple_of(16)) }
    for j in (0..a.n_rows).step_by(16) {
        // SAFETY: rows of the caller's.
        unsafe {
            let mut scores = [[_mm256_setzero_ps(); 2]; P];
            for (call, scores) in scores.iter_mut().enumerate() {
                let mut keys = [[at[0]; K]; 2];
                for i in 0..2 * K {
                    // The vector, where it is among the P of eight keys, and the key's place in it; see `by_query`.
                    let (v, k) = (2 * call + i / K, i % K);
                    keys[i / K][k] = at[j + v / P * 8 + place::<P>(v % P, k)];
                }
                *scores = W::float_scores::<N, P, K>(keys, q.as_ptr(), a.head_dim);
            }
            let scores: &[__m256] = scores.as_flattened();
            for (eight, scores) in scores.chunks_exact(P).enumerate() {
                let scores = by_query(scores);
                for n in 0..N {
                    _mm256_storeu_ps(weights[n][j + 8 * eight..][..8].as_mut_ptr(), scores[n]);
                }
            }
        }
    }
}

/// Which of eight keys the `k`th of vector `v` is, so that `by_query` brings them into order.
#[inline(always)]
const fn place<const P: usize>(v: usize, k: usize) -> usize {
    match P {
        1 => k,
        2 => k / 2 * 4 + k % 2 + 2 * v,
        _ => v + 4 * k,
    }
}

/// `P` vectors of (key, query) as so many of (query, key).
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn by_query(x: &[__m256]) -> [__m256; 4] {
    // SAFETY: registers only.
    unsafe {
        match *x {
            [x] => [x; 4],
            [x, y] => {
                let [even, odd] = [_mm256_shuffle_ps(x, y, 0b10_00_10_00), _mm256_shuffle_ps(x, y, 0b11_01_11_01)];
                [even, odd, even, odd]
            }
            [x, y, z, w] => {
                let (low_xy, high_xy) = (_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
                let (low_zw, high_zw) = (_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
                [
                    _mm256_shuffle_ps(low_xy, low_zw, 0b01_00_01_00),
                    _mm256_shuffle_ps(low_xy, low_zw, 0b11_10_11_10),
                    _mm256_shuffle_ps(high_xy, high_zw, 0b01_00_01_00),
                    _mm256_shuffle_ps(high_xy, high_zw, 0b11_10_11_10),
                ]
            }
            _ => unreachable!("one, two or four"),
        }
    }
}

/// Scores of keys in levels, `V::LANES` keys and a block at a time: word `g` of four columns of all keys is two vectors of
/// 16-bit integers, columns 0 and 2, columns 1 and 3, which meet the query's, broadcast.
///
/// # Safety
/// As `attend_n`.
#[inline(always)]
unsafe fn level_scores<V: Vector, R: Levels, const N: usize>(
    a: &Attend,
    at: &[*const u8; CHUNK],
    q: &[f32],
    weights: &mut Weights<N>,
) {
    let n_blocks = RowType::n_blocks(a.head_dim);
    for b in 0..n_blocks {
        let query = QueryBlock::<N>::new(R::TYPE, q, a.head_dim, b);
        let (mut pairs, mut start) = ([[[0u32; 2]; 8]; N], [0u32; N]);
        for n in 0..N {
            for (pairs, q) in pairs[n].iter_mut().zip(query.q[n].as_chunks::<4>().0) {
                let pair = |x: i16, y: i16| u32::from(x as u16) | u32::from(y as u16) << 16;
                *pairs = [pair(q[0], q[2]), pair(q[1], q[3])];
            }
            // Levels are read as `q + offset`, but for those of eight bits.
            let sum: i32 = query.q[n].iter().map(|&q| i32::from(q)).sum();
            start[n] = if R::TYPE.bits() == 8 { 0 } else { -(sum * R::TYPE.offset()) as u32 };
        }
        for j in (0..a.n_rows).step_by(V::LANES) {
            // SAFETY: a row for each lane, all readable.
            unsafe {
                let rows = &at[j..][..V::LANES];
                let scales = V::gather_16_bytes(rows, 4 * (b / 2))[0];
                let d = if b % 2 == 0 { scales.halves() } else { scales.shr(16).halves() };
                let mut isum = [V::splat(0); N];
                for n in 0..N {
                    isum[n] = V::splat(start[n]);
                }
                match R::TYPE.bits() {
                    8 => eight_bits::<V, N>(rows, R::TYPE.levels_at(n_blocks, b), &pairs, &mut isum),
                    _ => few_bits::<V, R, N>(rows, n_blocks, b, &pairs, &mut isum),
                }
                for n in 0..N {
                    let scores = weights[n][j..][..V::LANES].as_mut_ptr();
                    let dq = V::splat(query.d[n].to_bits());
                    isum[n].to_floats().times(d).times_plus(dq, V::load(scores)).store(scores);
                }
            }
        }
    }
}

/// # Safety
/// 32 bytes at `at` of each row; the CPU features of `V`.
#[inline(always)]
unsafe fn eight_bits<V: Vector, const N: usize>(rows: &[*const u8], at: usize, pairs: &[[[u32; 2]; 8]; N], isum: &mut [V; N]) {
    // SAFETY: passed on.
    unsafe {
        for half in 0..2 {
            let words = V::gather_16_bytes(rows, at + 16 * half);
            for m in 0..4 {
                let even = words[m].shl(8).shr_i16(8);
                let odd = words[m].shr_i16(8);
                for n in 0..N {
                    let [x, y] = pairs[n][4 * half + m];
                    isum[n] = isum[n].add_products(even, V::splat(x)).add_products(odd, V::splat(y));
                }
            }
        }
    }
}

/// # Safety
/// As `level_scores`.
#[inline(always)]
unsafe fn few_bits<V: Vector, R: Levels, const N: usize>(
    rows: &[*const u8],
    n_blocks: usize,
    b: usize,
    pairs: &[[[u32; 2]; 8]; N],
    isum: &mut [V; N],
) {
    let planes = const { R::TYPE.planes() };
    // SAFETY: 16 bytes can be read wherever levels or further bits stand.
    unsafe {
        let words = V::gather_16_bytes(rows, R::TYPE.levels_at(n_blocks, b));
        let mut bits = [V::splat(0); 4];
        if planes > 0 {
            bits = V::gather_16_bytes(rows, R::TYPE.planes_at(n_blocks, b));
            bits[planes - 1] = bits[planes - 1].xor(V::splat(u32::MAX)); // A sign.
        }
        for g in 0..8 {
            let fours = if g < 4 { words[g] } else { words[g - 4].shr(4) };
            let mut u = fours.and(V::splat(0x0f0f_0f0f));
            for plane in 0..planes {
                let (from, to) = (g as u32, 4 + plane as u32);
                let moved = if from < to { bits[plane].shl(to - from) } else { bits[plane].shr(from - to) };
                u = u.or(moved.and(V::splat(0x0101_0101 << to)));
            }
            let (even, odd) = (u.and(V::splat(0x00ff_00ff)), u.shr_i16(8));
            for n in 0..N {
                let [x, y] = pairs[n][g];
                isum[n] = isum[n].add_products(even, V::splat(x)).add_products(odd, V::splat(y));
            }
        }
    }
}

/// # Safety
/// As `attend_n`.
#[inline(always)]
unsafe fn level_mix<W: Width, R: Levels, const N: usize>(
    a: &Attend,
    at: &[*const u8; CHUNK],
    weights: &Weights<N>,
    acc: &mut [f32],
) {
    let (n_blocks, lanes) = (RowType::n_blocks(a.head_dim), W::V::LANES);
    let mut scaled = [[[0f32; CHUNK]; N]; 2];
    let mut b = 0;
    while b < n_blocks {
        let two = b + 2 <= n_blocks;
        // SAFETY: a row for each lane, all readable.
        unsafe {
            for j in (0..a.n_rows).step_by(lanes) {
                let scales = W::V::gather_16_bytes(&at[j..][..lanes], 2 * b)[0];
                let d = [scales.halves(), scales.shr(16).halves()];
                for n in 0..N {
                    let weights = W::V::load(weights[n][j..][..lanes].as_ptr());
                    for i in 0..1 + usize::from(two) {
                        weights.times(d[i]).store(scaled[i][n][j..][..lanes].as_mut_ptr());
                    }
                }
            }
            if two {
                let total = W::level_mix::<R, N, 2>(at, a.n_rows, &scaled, n_blocks, b);
                take_offset::<R, N, 2>(&total, &scaled, a, b, acc);
            } else {
                let total = W::level_mix::<R, N, 1>(at, a.n_rows, &scaled, n_blocks, b);
                take_offset::<R, N, 1>(&total, &scaled, a, b, acc);
            }
        }
        b += 2;
    }
}

/// Blocks from `b` on of the result, without the offset of their levels.
#[inline(always)]
fn take_offset<R: Levels, const N: usize, const B: usize>(
    total: &[[[f32; ROW_BLOCK]; B]; N],
    scaled: &[Weights<N>],
    a: &Attend,
    b: usize,
    acc: &mut [f32],
) {
    let padded = a.n_rows.next_multiple_of(8);
    for n in 0..N {
        for i in 0..B {
            let sum = sum_of(&scaled[i][n][..padded]);
            let out = &mut acc[n * a.head_dim..][..a.head_dim][(b + i) * ROW_BLOCK..];
            for (out, total) in out.iter_mut().zip(&total[n][i]) {
                *out = sum.mul_add(-(R::TYPE.offset() as f32), *total);
            }
        }
    }
}

/// Vectors of eight.
pub struct Ymm;
impl Width for Ymm {
    type V = __m256i;

    #[inline(always)]
    unsafe fn float_scores<const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [__m256; 2] {
        // SAFETY: elements of rows and queries, by the caller's promise.
        unsafe {
            let mut both = [_mm256_setzero_ps(); 2];
            for half in 0..2 {
                let mut dots = [[_mm256_setzero_ps(); P]; K];
                for i in 0..head_dim / 8 {
                    let mut key = [_mm256_setzero_ps(); K];
                    for k in 0..K {
                        key[k] = load8(keys[half][k].add(16 * i));
                    }
                    for n in 0..N {
                        let q = _mm256_loadu_ps(q.add(n * head_dim + 8 * i));
                        for k in 0..K {
                            dots[k][n] = _mm256_fmadd_ps(q, key[k], dots[k][n]);
                        }
                    }
                }
                both[half] = add_lanes_of(dots.as_flattened().try_into().expect("K * P = 8"));
            }
            both
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
        let mut i = 0;
        // SAFETY: vectors `i..` of the rows.
        unsafe {
            while i + 2 <= head_dim / 8 {
                mix8::<N, 2>(at, n_rows, weights, head_dim, i, acc);
                i += 2;
            }
            if i < head_dim / 8 {
                mix8::<N, 1>(at, n_rows, weights, head_dim, i, acc);
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
            for i in 0..B {
                let mut total = [[_mm256_setzero_ps(); 4]; N];
                for j in 0..n_rows {
                    for part in 0..4 {
                        let value = R::value8(at[j], n_blocks, b + i, part);
                        for n in 0..N {
                            total[n][part] = _mm256_fmadd_ps(_mm256_set1_ps(weights[i][n][j]), value, total[n][part]);
                        }
                    }
                }
                for n in 0..N {
                    for part in 0..4 {
                        _mm256_storeu_ps(out[n][i][8 * part..].as_mut_ptr(), total[n][part]);
                    }
                }
            }
        }
        out
    }
}

/// `add_lanes` of eight vectors: ((l0+l4)+(l1+l5)) + ((l2+l6)+(l3+l7)) of each.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub unsafe fn add_lanes_of(x: &[__m256; 8]) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        // x0 and x4 give [x0: l0+l4, l1+l5, l2+l6, l3+l7 | x4: the same].
        let mut halves = [x[0]; 4];
        for i in 0..4 {
            let straight = _mm256_blend_ps(x[i], x[i + 4], 0xf0);
            let crossed = _mm256_permute2f128_ps(x[i], x[i + 4], 0x21);
            halves[i] = _mm256_add_ps(straight, crossed);
        }
        let pairs01 = _mm256_hadd_ps(halves[0], halves[1]);
        let pairs23 = _mm256_hadd_ps(halves[2], halves[3]);
        _mm256_hadd_ps(pairs01, pairs23)
    }
}

/// Vectors `i..i + D` of the weighted sum of values in f16.
///
/// # Safety
/// As `Width::float_mix`; AVX2, FMA, F16C.
#[inline(always)]
pub unsafe fn mix8<const N: usize, const D: usize>(
    at: &[*const u8; CHUNK],
    n_rows: usize,
    weights: &Weights<N>,
    head_dim: usize,
    i: usize,
    acc: &mut [f32],
) {
    // SAFETY: vectors of rows that exist, by the caller's promise.
    unsafe {
        let mut total = [[_mm256_setzero_ps(); D]; N];
        for j in 0..n_rows {
            let mut value = [_mm256_setzero_ps(); D];
            for c in 0..D {
                value[c] = load8(at[j].add(16 * (i + c)));
            }
            for n in 0..N {
                let weight = _mm256_set1_ps(weights[n][j]);
                for c in 0..D {
                    total[n][c] = _mm256_fmadd_ps(weight, value[c], total[n][c]);
                }
            }
        }
        for n in 0..N {
            for c in 0..D {
                _mm256_storeu_ps(acc[n * head_dim + (i + c) * 8..][..8].as_mut_ptr(), total[n][c]);
            }
        }
    }
}
