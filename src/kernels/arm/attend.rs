//! Attention in NEON, the same on all ARM sets: what spec/attention.rs specifies, bit for bit. Rows are read where they lie; scores and
//! weights lie by query, a row of the cache in each lane.
//!
//! Levels of keys become 16-bit integers and meet the query's in plain multiply-adds, for four products of a lane fit there
//! (`attend::steps`). Levels of values become f32 without an integer conversion: as 16 bits they are subnormal f16, which `fcvtl`
//! widens exactly, in units of 2^-24 that are taken off at the end.

use std::arch::aarch64::*;

use super::float::{add_lanes, by_sixteen, fifth_degree, load, scaled, shifted, soft_cap, splat};
use super::formats::widen_f16;
use super::levels::{BitPlanes, Levels, Q8, add_scores, finish_levels, put, scaled_weights};
use super::wide;
use crate::kernels::rows::codec::{ROW_BLOCK, RowType, with_row};
use crate::kernels::spec::attention::{LEAST, QueryBlock, ROUND, WEIGHT, Weights, for_queries, give_weights};
use crate::kernels::{Attend, CHUNK, Partial};

/// See `Attend` and spec/attention.rs.
///
/// # Safety
/// Rows `0..n_rows` lie inside `keys` and `values`, or `wide` is a widened chunk.
pub unsafe fn attend(a: &Attend, out: &mut Partial) {
    // SAFETY: passed on.
    unsafe { for_queries!(a, out, attend_n) }
}

/// # Safety
/// As `attend`.
unsafe fn attend_n<const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
    let mut weights = [[0f32; CHUNK]; N];
    // SAFETY: passed on; `q` and `out` have `N` heads.
    unsafe {
        if a.wide.is_empty() {
            with_row!(a.k_type, R => level_scores::<R, N>(a, q, &mut weights), float_scores(a, q, &mut weights));
        } else {
            wide::scores(a, q, &mut weights);
        }
        for (n, w) in weights.iter_mut().enumerate() {
            (out.max[n], out.sum[n]) = to_weights(w, a.n_rows, a.soft_cap);
        }
        if a.wide.is_empty() {
            with_row!(a.v_type, R => level_mix::<R, N>(a, &weights, out.acc), float_mix(a, &weights, out.acc));
        } else {
            wide::mix(a, &weights, out.acc);
        }
    }
    give_weights(&weights, a.n_rows, out.weights);
}

/// `attend::weight` of four times four.
#[inline(always)]
fn weight(x: [float32x4_t; 4]) -> [float32x4_t; 4] {
    static TABLE: [[f32; 16]; 6] = by_sixteen(WEIGHT);
    // SAFETY: registers only.
    unsafe {
        let x = x.map(|x| vmaxnmq_f32(x, splat(LEAST)));
        let shifted = shifted(x);
        let n = shifted.map(|s| vsubq_f32(s, splat(ROUND)));
        let r = std::array::from_fn(|i| vfmsq_f32(x[i], n[i], splat(std::f32::consts::LN_2)));
        scaled(fifth_degree(&TABLE, r), shifted)
    }
}

/// Scores of one query become weights; gives their maximum and sum.
fn to_weights(w: &mut [f32; CHUNK], n_rows: usize, cap: f32) -> (f32, f32) {
    if cap != 0.0 {
        soft_cap(&mut w[..n_rows], cap);
    }
    let last = w[n_rows - 1];
    w[n_rows..n_rows.next_multiple_of(16)].fill(last);
    let (whole, rest) = (n_rows / 16, n_rows % 16);
    let sixteens = &mut w.as_chunks_mut::<16>().0[..n_rows.div_ceil(16)];
    // SAFETY: arrays of sixteen elements.
    unsafe {
        let mut highest = [splat(last); 4];
        for w in &*sixteens {
            let w = load::<4>(w.as_ptr());
            highest = std::array::from_fn(|i| vmaxnmq_f32(highest[i], w[i]));
        }
        let max = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(highest[0], highest[1]), vmaxnmq_f32(highest[2], highest[3])));
        let mut lanes = [splat(0.0); 2];
        for (i, sixteen) in sixteens.iter_mut().enumerate() {
            let mut w = weight(load::<4>(sixteen.as_ptr()).map(|w| vsubq_f32(w, splat(max))));
            for (i, w) in w.iter().enumerate() {
                vst1q_f32(sixteen[4 * i..].as_mut_ptr(), *w);
            }
            if i == whole {
                // Only the last sixteen may have rows that are none.
                sixteen[rest..].fill(0.0);
                w = load(sixteen.as_ptr());
            }
            lanes = [vaddq_f32(vaddq_f32(lanes[0], w[0]), w[2]), vaddq_f32(vaddq_f32(lanes[1], w[1]), w[3])];
        }
        (max, add_lanes(lanes))
    }
}

/// Scores of keys in f16, four keys at a time.
///
/// # Safety
/// As `attend`.
unsafe fn float_scores<const N: usize>(a: &Attend, q: &[f32], weights: &mut Weights<N>) {
    let (at, hd) = (a.addresses(a.keys, RowType::F16), a.head_dim);
    assert!(q.len() == N * hd);
    // SAFETY: rows inside `keys` by the caller's promise; `q` by the assertion.
    unsafe {
        for j in (0..a.n_rows).step_by(4) {
            let mut sums = [[splat(0.0); 4]; N];
            for pair in [0, 2] {
                let keys = [at[j + pair], at[j + pair + 1]];
                let mut dot = [[[splat(0.0); 2]; N]; 2];
                let mut eight = |i: usize| {
                    let k = keys.map(|key| widen_f16(vld1q_u16(key.add(16 * i).cast())));
                    for n in 0..N {
                        let q = load::<2>(q.as_ptr().add(n * hd + 8 * i));
                        for (dot, k) in dot.iter_mut().zip(&k) {
                            dot[n] = [vfmaq_f32(dot[n][0], q[0], k[0]), vfmaq_f32(dot[n][1], q[1], k[1])];
                        }
                    }
                };
                for block in 0..hd / ROW_BLOCK {
                    for part in 0..4 {
                        eight(4 * block + part);
                    }
                }
                for i in hd / ROW_BLOCK * 4..hd / 8 {
                    eight(i);
                }
                for (k, dot) in dot.iter().enumerate() {
                    for n in 0..N {
                        sums[n][pair + k] = vaddq_f32(dot[n][0], dot[n][1]);
                    }
                }
            }
            for n in 0..N {
                let [s0, s1, s2, s3] = sums[n];
                vst1q_f32(weights[n][j..][..4].as_mut_ptr(), vpaddq_f32(vpaddq_f32(s0, s1), vpaddq_f32(s2, s3)));
            }
        }
    }
}

/// The scales of blocks `2 * pair` and `2 * pair + 1` of each row (of a block that is none: anything).
///
/// # Safety
/// Rows of levels at `at`.
#[inline(always)]
unsafe fn scales(at: &[*const u8; CHUNK], n_rows: usize, pair: usize) -> [[f32; CHUNK]; 2] {
    let mut d = [[0f32; CHUNK]; 2];
    for (j, at) in at.as_chunks::<4>().0.iter().enumerate().take(n_rows.div_ceil(4)) {
        // SAFETY: two scales, or one and the levels behind it.
        unsafe {
            let both = at.map(|row| row.add(4 * pair).cast::<u32>().read_unaligned());
            let both = vreinterpretq_u16_u32(vld1q_u32(both.as_ptr()));
            vst1q_f32(d[0][4 * j..][..4].as_mut_ptr(), widen_f16(vuzp1q_u16(both, both))[0]);
            vst1q_f32(d[1][4 * j..][..4].as_mut_ptr(), widen_f16(vuzp2q_u16(both, both))[0]);
        }
    }
    d
}

/// Scores of keys in levels, a block at a time, four keys at a time.
///
/// # Safety
/// As `attend`.
unsafe fn level_scores<R: Levels, const N: usize>(a: &Attend, q: &[f32], weights: &mut Weights<N>) {
    let (at, n_blocks) = (a.addresses(a.keys, R::TYPE), RowType::n_blocks(a.head_dim));
    // SAFETY: rows inside `keys` by the caller's promise.
    unsafe {
        for pair in 0..n_blocks.div_ceil(2) {
            let d = scales(&at, a.n_rows, pair);
            for b in 2 * pair..n_blocks.min(2 * pair + 2) {
                let query = QueryBlock::<N>::new(R::TYPE, q, a.head_dim, b);
                let ints = query.q.map(|q| [0, 1, 2, 3].map(|i| vld1q_s16(q[8 * i..][..8].as_ptr())));
                for j in (0..a.n_rows).step_by(4) {
                    let mut sums = [[vdupq_n_s32(0); 4]; N];
                    for k in 0..4 {
                        let key = R::key(at[j + k], n_blocks, b);
                        for n in 0..N {
                            sums[n][k] = R::dot(&ints[n], &key);
                        }
                    }
                    let d = vld1q_f32(d[b % 2][j..][..4].as_ptr());
                    add_scores(&sums, d, &query.d, j, &mut *weights);
                }
            }
        }
    }
}

/// `total[n][i] = fma(values[i], weights[n][lane], total[n][i])`
macro_rules! add_row {
    ($total:ident, $values:expr, $weights:ident, $lane:literal) => {{
        let values = $values;
        for (total, weights) in $total.iter_mut().zip(&$weights) {
            for (total, values) in total.iter_mut().zip(values) {
                *total = vfmaq_laneq_f32::<$lane>(*total, values, *weights);
            }
        }
    }};
}

/// Sixteen elements of `$rows` rows at a time, by fours: `$value` gives those of the row at `$p`.
macro_rules! mix_sixteen {
    ($at:ident, $n_rows:expr, $weights:expr, $p:ident => $value:expr) => {{
        let mut total = [[splat(0.0); 4]; N];
        for (j, at) in $at.as_chunks::<4>().0.iter().enumerate().take($n_rows.div_ceil(4)) {
            let mut weights = [splat(0.0); N];
            for n in 0..N {
                weights[n] = vld1q_f32($weights[n].as_chunks::<4>().0[j].as_ptr());
            }
            macro_rules! row {
                ($lane:literal) => {{
                    let $p = at[$lane];
                    add_row!(total, $value, weights, $lane);
                }};
            }
            row!(0);
            row!(1);
            row!(2);
            row!(3);
        }
        total
    }};
}

/// # Safety
/// As `attend`.
unsafe fn float_mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let (at, hd) = (a.addresses(a.values, RowType::F16), a.head_dim);
    // SAFETY: elements of rows inside `values` by the caller's promise.
    unsafe {
        let mut first = 0;
        while first + 16 <= hd {
            let total = mix_sixteen!(at, a.n_rows, weights, p => {
                let p = p.add(2 * first).cast();
                let ([v0, v1], [v2, v3]) = (widen_f16(vld1q_u16(p)), widen_f16(vld1q_u16(p.add(8))));
                [v0, v1, v2, v3]
            });
            for n in 0..N {
                put(acc, n * hd + first, &total[n]);
            }
            first += 16;
        }
        if first < hd {
            let total = mix_sixteen!(at, a.n_rows, weights, p => widen_f16(vld1q_u16(p.add(2 * first).cast())));
            for n in 0..N {
                put(acc, n * hd + first, &total[n][..2]);
            }
        }
    }
}

/// # Safety
/// As `attend`.
unsafe fn level_mix<R: Levels, const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let (at, n_blocks) = (a.addresses(a.values, R::TYPE), RowType::n_blocks(a.head_dim));
    let mut scaled = [[0f32; CHUNK]; N];
    // SAFETY: rows inside `values` by the caller's promise.
    unsafe {
        for pair in 0..n_blocks.div_ceil(2) {
            let d = scales(&at, a.n_rows, pair);
            for b in 2 * pair..n_blocks.min(2 * pair + 2) {
                let sums = scaled_weights(weights, &d[b % 2], a.n_rows, &mut scaled);
                half::<R, N>(a, &at, &scaled, &sums, 2 * b, acc);
                half::<R, N>(a, &at, &scaled, &sums, 2 * b + 1, acc);
            }
        }
    }
}

/// Sixteen elements from `16 * i` on, fewer where the head ends.
///
/// # Safety
/// As `attend`.
#[inline(always)]
unsafe fn half<R: Levels, const N: usize>(
    a: &Attend,
    at: &[*const u8; CHUNK],
    scaled: &Weights<N>,
    sums: &[f32; N],
    i: usize,
    acc: &mut [f32],
) {
    let n_blocks = RowType::n_blocks(a.head_dim);
    // SAFETY: a block of rows inside `values` by the caller's promise.
    unsafe {
        let total = mix_sixteen!(at, a.n_rows, scaled, p => {
            let [low, high] = R::value(p, n_blocks, i / 2, i % 2);
            let ([v0, v1], [v2, v3]) = (widen_f16(low), widen_f16(high));
            [v0, v1, v2, v3]
        });
        for n in 0..N {
            finish_levels(a, &[total[n]], sums[n], i, n, acc);
        }
    }
}

const _: () = assert!(CHUNK.is_multiple_of(16) && ROW_BLOCK == 32);
