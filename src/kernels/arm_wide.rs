//! Attention in NEON over a chunk of rows that were widened once, for the many tokens of a batch that read it: what attend.rs
//! specifies, bit for bit, as in arm_attend.rs, with fewer loads and no conversions.
//!
//! ```text
//! keys           [CHUNK][padded]     f32 of f16; or levels as i16, in the first half of a row
//! their scales   [n_blocks][CHUNK]   f32; of levels
//! values         [CHUNK][padded]     f32 of f16; or of levels with their offset, as `Levels::value` has them
//! their scales   [n_blocks][CHUNK]
//! ```
//!
//! `padded` is `head_dim` rounded up to whole blocks. Rows that were never widened are noughts or older rows, and are read with
//! weights of nought only.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::arm_attend::{Levels, Packed, Q8, add_scores, finish_levels, scaled_weights};
use super::arm_blocks::widen_f16;
use super::arm_float::{load, splat};
use super::attend::{QueryBlock, Weights};
use super::kv_rows::{ROW_BLOCK, RowType, with_row};
use super::{Attend, CHUNK};

/// Where the parts of a widened chunk are.
#[derive(Clone, Copy)]
struct Parts<T> {
    keys: T,
    key_scales: T,
    values: T,
    value_scales: T,
}

fn padded(head_dim: usize) -> usize {
    RowType::n_blocks(head_dim) * ROW_BLOCK
}

/// Floats of a widened chunk.
pub fn len(head_dim: usize) -> usize {
    2 * CHUNK * (padded(head_dim) + RowType::n_blocks(head_dim))
}

impl Parts<*mut f32> {
    fn of(wide: *mut f32, head_dim: usize) -> Self {
        let (rows, scales) = (CHUNK * padded(head_dim), CHUNK * RowType::n_blocks(head_dim));
        let (key_scales, values) = (wide.wrapping_add(rows), wide.wrapping_add(rows + scales));
        Parts { keys: wide, key_scales, values, value_scales: values.wrapping_add(rows) }
    }
}

/// Widens rows `which` of a chunk, each to its place.
///
/// # Safety
/// These rows lie inside `keys` and `values`; `wide` has the chunk's length.
pub unsafe fn widen(a: &Attend, which: Range<usize>, wide: &mut [f32]) {
    let (parts, stride, n_blocks) = (Parts::of(wide.as_mut_ptr(), a.head_dim), padded(a.head_dim), RowType::n_blocks(a.head_dim));
    let (k_bytes, v_bytes) = (a.k_type.row_bytes(a.head_dim), a.v_type.row_bytes(a.head_dim));
    let key = |j: usize| a.keys.as_ptr().wrapping_add(a.rows.get(j) * k_bytes);
    let value = |j: usize| a.values.as_ptr().wrapping_add(a.rows.get(j) * v_bytes);
    // SAFETY: rows by the caller's promise; row `j` and column `j` of the parts.
    unsafe {
        with_row!(a.k_type, R => {
            for j in which.clone() {
                widen_scales(key(j), n_blocks, parts.key_scales.add(j));
                for b in 0..n_blocks {
                    let to = parts.keys.add(j * stride).cast::<i16>().add(b * ROW_BLOCK);
                    for (i, levels) in R::key(key(j), n_blocks, b).into_iter().enumerate() {
                        vst1q_s16(to.add(8 * i), levels);
                    }
                }
            }
        }, {
            for j in which.clone() {
                widen_float(key(j), a.head_dim, parts.keys.add(j * stride));
            }
        });
        with_row!(a.v_type, R => {
            for j in which {
                widen_scales(value(j), n_blocks, parts.value_scales.add(j));
                for half in 0..2 * n_blocks {
                    let to = parts.values.add(j * stride + 16 * half);
                    let [low, high] = R::value(value(j), n_blocks, half / 2, half % 2);
                    for (i, x) in [widen_f16(low), widen_f16(high)].as_flattened().iter().enumerate() {
                        vst1q_f32(to.add(4 * i), *x);
                    }
                }
            }
        }, {
            for j in which {
                widen_float(value(j), a.head_dim, parts.values.add(j * stride));
            }
        });
    }
}

/// # Safety
/// `n_blocks` f16 at `row`; a column of as many f32 at `to`.
#[inline(always)]
unsafe fn widen_scales(row: *const u8, n_blocks: usize, to: *mut f32) {
    for b in 0..n_blocks {
        // SAFETY: by the caller's promise.
        unsafe {
            *to.add(b * CHUNK) = vgetq_lane_f32::<0>(widen_f16(vdupq_n_u16(row.add(2 * b).cast::<u16>().read_unaligned()))[0])
        };
    }
}

/// # Safety
/// `n` f16 at `row`, and room for as many f32 at `to`; `n` is a multiple of eight.
#[inline(always)]
unsafe fn widen_float(mut row: *const u8, n: usize, mut to: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        for _ in 0..n / ROW_BLOCK {
            // All of a block at once, so that vectors are read and written in pairs.
            let block = [0, 16, 32, 48].map(|at| widen_f16(vld1q_u16(row.add(at).cast())));
            for (i, x) in block.as_flattened().iter().enumerate() {
                vst1q_f32(to.add(4 * i), *x);
            }
            (row, to) = (row.add(2 * ROW_BLOCK), to.add(ROW_BLOCK));
        }
        for i in 0..n % ROW_BLOCK / 8 {
            let [low, high] = widen_f16(vld1q_u16(row.add(16 * i).cast()));
            vst1q_f32(to.add(8 * i), low);
            vst1q_f32(to.add(8 * i + 4), high);
        }
    }
}

/// Scores of a widened chunk.
///
/// # Safety
/// `a.wide` is a widened chunk; `q` has `N` heads.
pub unsafe fn scores<const N: usize>(a: &Attend, q: &[f32], weights: &mut Weights<N>) {
    let parts = Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim);
    // SAFETY: passed on.
    unsafe {
        with_row!(a.k_type, R => level_scores::<R, N>(a, parts, q, weights), match N {
            // As many keys as their sums leave room for in registers.
            4 => float_scores::<N, 2>(a, parts.keys, q, weights, eight),
            3 => float_scores(a, parts.keys, q, weights, eight_4x3),
            _ => float_scores::<N, 4>(a, parts.keys, q, weights, eight),
        });
    }
}

/// Eight elements of `K` keys times those of `N` queries, each in two vectors; all pointers move on.
///
/// # Safety
/// 32 bytes at each pointer are readable.
#[inline(always)]
unsafe fn eight<const N: usize, const K: usize>(
    key: &mut [*const f32; K],
    query: &mut [*const f32; N],
    dot: &mut [[[float32x4_t; 2]; N]; K],
) {
    // SAFETY: passed on.
    unsafe {
        let q = query.each_ref().map(|q| load::<2>(*q));
        *query = query.map(|q| q.add(8));
        for (key, dot) in key.iter_mut().zip(dot) {
            let k = load::<2>(*key);
            *key = key.add(8);
            for n in 0..N {
                dot[n] = [vfmaq_f32(dot[n][0], q[n][0], k[0]), vfmaq_f32(dot[n][1], q[n][1], k[1])];
            }
        }
    }
}

/// `eight` of four keys and three queries, which takes all registers: compilers keep a sum in memory.
///
/// # Safety
/// As `eight`.
#[inline(always)]
unsafe fn eight_4x3(key: &mut [*const f32; 4], query: &mut [*const f32; 3], dot: &mut [[[float32x4_t; 2]; 3]; 4]) {
    macro_rules! of_key {
        ($k:literal) => {
            concat!(
                "ldp {k0:q}, {k1:q}, [{p",
                $k,
                "}], #32\n",
                "fmla {d",
                $k,
                "00:v}.4s, {k0:v}.4s, {q00:v}.4s\n",
                "fmla {d",
                $k,
                "01:v}.4s, {k1:v}.4s, {q01:v}.4s\n",
                "fmla {d",
                $k,
                "10:v}.4s, {k0:v}.4s, {q10:v}.4s\n",
                "fmla {d",
                $k,
                "11:v}.4s, {k1:v}.4s, {q11:v}.4s\n",
                "fmla {d",
                $k,
                "20:v}.4s, {k0:v}.4s, {q20:v}.4s\n",
                "fmla {d",
                $k,
                "21:v}.4s, {k1:v}.4s, {q21:v}.4s\n"
            )
        };
    }
    let [p0, p1, p2, p3] = key;
    let [n0, n1, n2] = query;
    let [[[d000, d001], [d010, d011], [d020, d021]], rest @ ..] = dot;
    let [[[d100, d101], [d110, d111], [d120, d121]], rest @ ..] = rest;
    let [[[d200, d201], [d210, d211], [d220, d221]], rest @ ..] = rest;
    let [[[d300, d301], [d310, d311], [d320, d321]]] = rest;
    // SAFETY: readable by the caller's promise.
    unsafe {
        asm!(
            "ldp {q00:q}, {q01:q}, [{n0}], #32",
            "ldp {q10:q}, {q11:q}, [{n1}], #32",
            "ldp {q20:q}, {q21:q}, [{n2}], #32",
            of_key!(0),
            of_key!(1),
            of_key!(2),
            of_key!(3),
            p0 = inout(reg) *p0, p1 = inout(reg) *p1, p2 = inout(reg) *p2, p3 = inout(reg) *p3,
            n0 = inout(reg) *n0, n1 = inout(reg) *n1, n2 = inout(reg) *n2,
            k0 = out(vreg) _, k1 = out(vreg) _, q00 = out(vreg) _, q01 = out(vreg) _,
            q10 = out(vreg) _, q11 = out(vreg) _, q20 = out(vreg) _, q21 = out(vreg) _,
            d000 = inout(vreg) *d000, d001 = inout(vreg) *d001, d010 = inout(vreg) *d010,
            d011 = inout(vreg) *d011, d020 = inout(vreg) *d020, d021 = inout(vreg) *d021,
            d100 = inout(vreg) *d100, d101 = inout(vreg) *d101, d110 = inout(vreg) *d110,
            d111 = inout(vreg) *d111, d120 = inout(vreg) *d120, d121 = inout(vreg) *d121,
            d200 = inout(vreg) *d200, d201 = inout(vreg) *d201, d210 = inout(vreg) *d210,
            d211 = inout(vreg) *d211, d220 = inout(vreg) *d220, d221 = inout(vreg) *d221,
            d300 = inout(vreg) *d300, d301 = inout(vreg) *d301, d310 = inout(vreg) *d310,
            d311 = inout(vreg) *d311, d320 = inout(vreg) *d320, d321 = inout(vreg) *d321,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// # Safety
/// As `scores`.
#[inline(always)]
unsafe fn float_scores<const N: usize, const K: usize>(
    a: &Attend,
    keys: *const f32,
    q: &[f32],
    weights: &mut [[f32; CHUNK]],
    step: unsafe fn(&mut [*const f32; K], &mut [*const f32; N], &mut [[[float32x4_t; 2]; N]; K]),
) {
    let (hd, stride) = (a.head_dim, padded(a.head_dim));
    assert!(q.len() == N * hd);
    // SAFETY: rows of the widened chunk, which has a multiple of four; `q` by the assertion.
    unsafe {
        for j in (0..a.n_rows).step_by(4) {
            let mut sums = [[splat(0.0); 4]; N];
            for first in (0..4).step_by(K) {
                let mut key: [*const f32; K] = std::array::from_fn(|k| keys.add((j + first + k) * stride));
                let mut query: [*const f32; N] = std::array::from_fn(|n| q.as_ptr().add(n * hd));
                let mut dot = [[[splat(0.0); 2]; N]; K];
                for _ in 0..hd / ROW_BLOCK {
                    for _ in 0..ROW_BLOCK / 8 {
                        step(&mut key, &mut query, &mut dot);
                    }
                }
                for _ in 0..hd % ROW_BLOCK / 8 {
                    step(&mut key, &mut query, &mut dot);
                }
                for (k, dot) in dot.iter().enumerate() {
                    for n in 0..N {
                        sums[n][first + k] = vaddq_f32(dot[n][0], dot[n][1]);
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

/// # Safety
/// As `scores`.
unsafe fn level_scores<R: Levels, const N: usize>(a: &Attend, parts: Parts<*mut f32>, q: &[f32], weights: &mut Weights<N>) {
    let stride = padded(a.head_dim);
    for b in 0..RowType::n_blocks(a.head_dim) {
        let query = QueryBlock::<N>::new(R::TYPE, q, a.head_dim, b);
        // SAFETY: rows of the widened chunk, which has a multiple of four.
        unsafe {
            let ints = query.q.map(|q| [0, 1, 2, 3].map(|i| vld1q_s16(q[8 * i..][..8].as_ptr())));
            for j in (0..a.n_rows).step_by(4) {
                let mut sums = [[vdupq_n_s32(0); 4]; N];
                for k in 0..4 {
                    let key = parts.keys.add((j + k) * stride).cast::<i16>().add(b * ROW_BLOCK);
                    let key = [0, 1, 2, 3].map(|i| vld1q_s16(key.add(8 * i)));
                    for n in 0..N {
                        sums[n][k] = R::dot(&ints[n], &key);
                    }
                }
                let d = vld1q_f32(parts.key_scales.add(b * CHUNK + j));
                add_scores(&sums, d, &query.d, j, weights);
            }
        }
    }
}

/// Weighted values of a widened chunk.
///
/// # Safety
/// `a.wide` is a widened chunk; `acc` has `N` heads.
pub unsafe fn mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    // SAFETY: passed on.
    unsafe {
        match (a.v_type, N) {
            (RowType::F16, ..4) => float_mix::<N, 8>(a, weights, acc),
            (_, ..4) => level_mix::<N, 8>(a, weights, acc),
            // Half a block, for else the sums would not find room in registers.
            (RowType::F16, _) => float_mix::<N, 4>(a, weights, acc),
            _ => level_mix::<N, 4>(a, weights, acc),
        }
    }
}

/// # Safety
/// As `mix`.
#[inline(always)]
unsafe fn float_mix<const N: usize, const V: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let (values, stride, hd) = (Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim).values, padded(a.head_dim), a.head_dim);
    for first in (0..hd).step_by(4 * V) {
        // SAFETY: elements of the rows of the widened chunk, which has a multiple of four; `4 V` elements of `acc`, or of a block.
        unsafe {
            let total = mix_vectors::<N, V>(values.add(first), stride, a.n_rows, weights);
            for n in 0..N {
                let out = &mut acc[n * hd + first..(n + 1) * hd];
                // Sums that were looked up by an index would not stay in registers.
                let mut last = [0f32; ROW_BLOCK];
                let to = if out.len() < 4 * V { last.as_mut_ptr() } else { out.as_mut_ptr() };
                for (i, x) in total[n].iter().enumerate() {
                    vst1q_f32(to.add(4 * i), *x);
                }
                if out.len() < 4 * V {
                    out.copy_from_slice(&last[..out.len()]);
                }
            }
        }
    }
}

/// # Safety
/// As `mix`.
#[inline(always)]
unsafe fn level_mix<const N: usize, const V: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let (parts, stride) = (Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim), padded(a.head_dim));
    let mut scaled = [[0f32; CHUNK]; N];
    for b in 0..RowType::n_blocks(a.head_dim) {
        // SAFETY: a block of the rows of the widened chunk, which has a multiple of four.
        unsafe {
            let d = &*parts.value_scales.add(b * CHUNK).cast::<[f32; CHUNK]>();
            let sums = scaled_weights(weights, d, a.n_rows, &mut scaled);
            for first in (0..ROW_BLOCK).step_by(4 * V) {
                let total = mix_vectors::<N, V>(parts.values.add(b * ROW_BLOCK + first), stride, a.n_rows, &scaled);
                for n in 0..N {
                    finish_levels(a, total[n].as_chunks::<4>().0, sums[n], 2 * b + first / 16, n, acc);
                }
            }
        }
    }
}

/// `Σ_j weights[n][j] * values[j][0..4 V]`
///
/// # Safety
/// `n_rows`, rounded up to a multiple of four, rows at `values`.
#[inline(always)]
unsafe fn mix_vectors<const N: usize, const V: usize>(
    values: *const f32,
    stride: usize,
    n_rows: usize,
    weights: &Weights<N>,
) -> [[float32x4_t; V]; N] {
    let mut total = [[splat(0.0); V]; N];
    let mut row = values;
    for j in 0..n_rows.div_ceil(4) {
        // SAFETY: arrays of four weights; rows by the caller's promise.
        unsafe {
            let w: [float32x4_t; N] = std::array::from_fn(|n| vld1q_f32(weights[n].as_chunks::<4>().0[j].as_ptr()));
            macro_rules! row {
                ($lane:literal) => {
                    for i in (0..V).step_by(2) {
                        let [x, y] = load::<2>(row.add(4 * i));
                        for n in 0..N {
                            total[n][i] = vfmaq_laneq_f32::<$lane>(total[n][i], x, w[n]);
                            total[n][i + 1] = vfmaq_laneq_f32::<$lane>(total[n][i + 1], y, w[n]);
                        }
                    }
                    row = row.add(stride);
                };
            }
            row!(0);
            row!(1);
            row!(2);
            row!(3);
        }
    }
    total
}
