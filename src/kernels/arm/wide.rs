//! Attention in NEON over a chunk of rows that were widened once, for the many tokens of a batch that read it: what spec/attention.rs
//! specifies, bit for bit, as in attend.rs, with fewer loads and no conversions.
//!
//! ```text
//! keys           [CHUNK / 4][padded][4]   f32 of f16, by four keys: a key is a lane, and no score is added up sideways
//!                [CHUNK][padded]          or levels as i16, in the first half of a row
//! their scales   [n_blocks][CHUNK]        f32; of levels
//! values         [n_blocks][CHUNK][32]    f32 of f16, or of levels with their offset, as `Levels::value` has them
//! their scales   [n_blocks][CHUNK]
//! ```
//!
//! `padded` is `head_dim` rounded up to whole blocks. Rows that were never widened are noughts or older rows, and are read with
//! weights of nought only. What is read in a loop lies in one piece, so that one load brings four vectors.

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::float::splat;
use super::formats::widen_f16;
use super::levels::{BitPlanes, Levels, Q8, add_scores, finish_levels, scaled_weights};
use crate::kernels::rows::codec::{ROW_BLOCK, RowType, with_row};
use crate::kernels::spec::attention::{QueryBlock, Weights};
use crate::kernels::{Attend, CHUNK, MAX_HEAD_DIM};

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

/// Widens rows `which` of a chunk, each to its place; of keys in f16 all of the fours they are in.
///
/// # Safety
/// Rows of these fours lie inside `keys` and `values` as far as the chunk has them; `wide` has the chunk's length.
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
            for j in (which.start / 4 * 4..which.end).step_by(4) {
                // Behind the last row the last again.
                let four = [0, 1, 2, 3].map(|i| key((j + i).min(a.n_rows - 1)));
                widen_keys(four, a.head_dim, parts.keys.add(j * stride));
            }
        });
        with_row!(a.v_type, R => {
            for j in which {
                widen_scales(value(j), n_blocks, parts.value_scales.add(j));
                for half in 0..2 * n_blocks {
                    let to = parts.values.add((half / 2 * CHUNK + j) * ROW_BLOCK + half % 2 * 16);
                    let [low, high] = R::value(value(j), n_blocks, half / 2, half % 2);
                    for (i, x) in [widen_f16(low), widen_f16(high)].as_flattened().iter().enumerate() {
                        vst1q_f32(to.add(4 * i), *x);
                    }
                }
            }
        }, {
            for j in which {
                widen_value(value(j), a.head_dim, parts.values.add(j * ROW_BLOCK));
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
/// `n` f16 at each row, as many f32 writable at `to`; `n` is a multiple of eight.
#[inline(always)]
unsafe fn widen_keys(rows: [*const u8; 4], n: usize, mut to: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        for i in 0..n / 8 {
            let [x, y, z, u] = rows.map(|row| widen_f16(vld1q_u16(row.add(16 * i).cast())));
            vst4q_f32(to, float32x4x4_t(x[0], y[0], z[0], u[0]));
            vst4q_f32(to.add(16), float32x4x4_t(x[1], y[1], z[1], u[1]));
            to = to.add(32);
        }
    }
}

/// # Safety
/// `n` f16 at `row`, its blocks writable, the first at `to`; `n` is a multiple of eight.
#[inline(always)]
unsafe fn widen_value(mut row: *const u8, n: usize, mut to: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        for _ in 0..n / ROW_BLOCK {
            // All of a block at once, so that vectors are read and written in pairs.
            let block = [0, 16, 32, 48].map(|at| widen_f16(vld1q_u16(row.add(at).cast())));
            for (i, x) in block.as_flattened().iter().enumerate() {
                vst1q_f32(to.add(4 * i), *x);
            }
            (row, to) = (row.add(2 * ROW_BLOCK), to.add(CHUNK * ROW_BLOCK));
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
    let (parts, hd) = (Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim), a.head_dim);
    // SAFETY: passed on.
    unsafe {
        with_row!(a.k_type, R => level_scores::<R, N>(a, parts, q, weights), match N {
            1 => scores_of_one(a, parts.keys, q, weights),
            2 => scores_of_two(a, parts.keys, q, weights),
            3 => scores_of_three(a, parts.keys, q, weights),
            // Sums of four queries would not fit into the registers.
            _ => {
                scores_of_two(a, parts.keys, &q[..2 * hd], &mut weights[..2]);
                scores_of_two(a, parts.keys, &q[2 * hd..], &mut weights[2..]);
            }
        });
    }
}

/// Text of the scores: lane `l` of each query, four columns: column `c` of four keys, in `v$c`, times that of the queries.
macro_rules! column {
    ($op:literal, $c:literal, $l:literal; $($n:literal $q:literal),*) => {
        concat!($($op, " {d", $l, $n, ":v}.4s, v", $c, ".4s, v", $q, ".s[", $c, "]\n"),*)
    };
}

/// Declares the scores of keys in f16 with some queries. Each sum in eight lanes is eight vectors, a key in each lane:
///
///     for each eight columns: for both halves: four columns of four keys, of each query; a multiply-add for each column and query
///
/// All lanes but the first start from their first product instead of nought: the first brings the sign of a sum that is nought.
macro_rules! float_scores {
    ($name:ident, $first:ident, $step:ident, $n:literal, $load_queries:literal, [$($i:literal $q:literal),*], $($d:ident),*) => {
        /// # Safety
        /// Eight columns of four keys and of all queries at the pointers, which move on.
        #[inline(always)]
        unsafe fn $first(key: &mut *const f32, query: &mut *const f32) -> [float32x4_t; 8 * $n] {
            let [$($d),*]: [float32x4_t; 8 * $n];
            // SAFETY: by the caller's promise.
            unsafe {
                asm!(
                    "ld1 {{v0.4s-v3.4s}}, [{key}], #64",
                    $load_queries,
                    $(concat!("movi {d0", $i, ":v}.4s, #0"),)*
                    column!("fmla", 0, 0; $($i $q),*),
                    column!("fmul", 1, 1; $($i $q),*),
                    column!("fmul", 2, 2; $($i $q),*),
                    column!("fmul", 3, 3; $($i $q),*),
                    "ld1 {{v0.4s-v3.4s}}, [{key}], #64",
                    $load_queries,
                    column!("fmul", 0, 4; $($i $q),*),
                    column!("fmul", 1, 5; $($i $q),*),
                    column!("fmul", 2, 6; $($i $q),*),
                    column!("fmul", 3, 7; $($i $q),*),
                    key = inout(reg) *key, query = inout(reg) *query, $($d = out(vreg) $d,)*
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    options(readonly, nostack, preserves_flags),
                );
            }
            [$($d),*]
        }

        /// # Safety
        /// As the first.
        #[inline(always)]
        unsafe fn $step(key: &mut *const f32, query: &mut *const f32, dot: &mut [float32x4_t; 8 * $n]) {
            let [$($d),*] = dot;
            // SAFETY: by the caller's promise.
            unsafe {
                asm!(
                    "ld1 {{v0.4s-v3.4s}}, [{key}], #64",
                    $load_queries,
                    column!("fmla", 0, 0; $($i $q),*),
                    column!("fmla", 1, 1; $($i $q),*),
                    column!("fmla", 2, 2; $($i $q),*),
                    column!("fmla", 3, 3; $($i $q),*),
                    "ld1 {{v0.4s-v3.4s}}, [{key}], #64",
                    $load_queries,
                    column!("fmla", 0, 4; $($i $q),*),
                    column!("fmla", 1, 5; $($i $q),*),
                    column!("fmla", 2, 6; $($i $q),*),
                    column!("fmla", 3, 7; $($i $q),*),
                    key = inout(reg) *key, query = inout(reg) *query, $($d = inout(vreg) *$d,)*
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    options(readonly, nostack, preserves_flags),
                );
            }
        }

        /// # Safety
        /// `keys` are those of a widened chunk.
        unsafe fn $name(a: &Attend, keys: *const f32, q: &[f32], weights: &mut [[f32; CHUNK]]) {
            let (hd, stride) = (a.head_dim, padded(a.head_dim));
            assert!(q.len() == $n * hd && weights.len() == $n && hd <= MAX_HEAD_DIM);
            // Four columns of each query, then the next four.
            let mut queries = [const { MaybeUninit::<[f32; 4]>::uninit() }; $n * MAX_HEAD_DIM / 4];
            for n in 0..$n {
                let fours = q[n * hd..][..hd].as_chunks::<4>().0;
                for (to, four) in queries.iter_mut().skip(n).step_by($n).zip(fours) {
                    to.write(*four);
                }
            }
            for j in (0..a.n_rows).step_by(4) {
                let (mut key, mut query) = (keys.wrapping_add(j * stride), queries.as_ptr().cast());
                // SAFETY: rows of the widened chunk, which has a multiple of four; all columns of the queries were written.
                let dot = unsafe {
                    let mut dot = $first(&mut key, &mut query);
                    let steps = hd / 8 - 1;
                    for _ in 0..steps % 4 {
                        $step(&mut key, &mut query, &mut dot);
                    }
                    for _ in 0..steps / 4 {
                        $step(&mut key, &mut query, &mut dot);
                        $step(&mut key, &mut query, &mut dot);
                        $step(&mut key, &mut query, &mut dot);
                        $step(&mut key, &mut query, &mut dot);
                    }
                    dot
                };
                for n in 0..$n {
                    // SAFETY: an array of four.
                    unsafe {
                        let two = |l: usize| vaddq_f32(dot[l * $n + n], dot[(l + 4) * $n + n]);
                        let sum = vaddq_f32(vaddq_f32(two(0), two(1)), vaddq_f32(two(2), two(3)));
                        vst1q_f32(weights[n].as_chunks_mut::<4>().0[j / 4].as_mut_ptr(), sum);
                    }
                }
            }
        }
    };
}

float_scores!(
    scores_of_one, first_of_one, step_of_one, 1, "ld1 {{v4.4s}}, [{query}], #16", [0 4],
    d00, d10, d20, d30, d40, d50, d60, d70
);
float_scores!(
    scores_of_two, first_of_two, step_of_two, 2, "ld1 {{v4.4s-v5.4s}}, [{query}], #32", [0 4, 1 5],
    d00, d01, d10, d11, d20, d21, d30, d31, d40, d41, d50, d51, d60, d61, d70, d71
);
float_scores!(
    scores_of_three, first_of_three, step_of_three, 3, "ld1 {{v4.4s-v6.4s}}, [{query}], #48", [0 4, 1 5, 2 6],
    d00, d01, d02, d10, d11, d12, d20, d21, d22, d30, d31, d32, d40, d41, d42, d50, d51, d52, d60, d61, d62, d70, d71, d72
);

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
        match N {
            1 => mix_of(a, weights, acc, block_of_one),
            2 => mix_of(a, weights, acc, block_of_two),
            3 => mix_of(a, weights, acc, block_of_three),
            // Sums of four queries would not fit into the registers.
            _ => {
                let (first, last) = acc.split_at_mut(2 * a.head_dim);
                mix_of(a, &weights[..2], first, block_of_two);
                mix_of(a, &weights[2..], last, block_of_two);
            }
        }
    }
}

/// A block of values of some rows, by fours, times their weights: `Σ_j weights[n][j] * values[j][0..32]`.
type MixBlock<const N: usize> = unsafe fn(*const f32, usize, &Weights<N>) -> [[float32x4_t; 8]; N];

/// # Safety
/// As `mix`.
#[inline(always)]
unsafe fn mix_of<const N: usize>(a: &Attend, weights: &[[f32; CHUNK]], acc: &mut [f32], block: MixBlock<N>) {
    let weights = weights.first_chunk().expect("weights of all queries");
    // SAFETY: passed on.
    unsafe {
        match a.v_type {
            RowType::F16 => float_mix(a, weights, acc, block),
            _ => level_mix(a, weights, acc, block),
        }
    }
}

/// # Safety
/// As `mix`.
#[inline(always)]
unsafe fn float_mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32], block: MixBlock<N>) {
    let (values, hd) = (Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim).values, a.head_dim);
    for b in 0..RowType::n_blocks(hd) {
        // SAFETY: a block of the rows of the widened chunk, which has a multiple of four; as many elements of `acc`, or of `last`.
        unsafe {
            let total = block(values.add(b * CHUNK * ROW_BLOCK), a.n_rows.div_ceil(4), weights);
            for n in 0..N {
                let out = &mut acc[n * hd..(n + 1) * hd][b * ROW_BLOCK..];
                // Sums that were looked up by an index would not stay in registers.
                let mut last = [0f32; ROW_BLOCK];
                let to = if out.len() < ROW_BLOCK { last.as_mut_ptr() } else { out.as_mut_ptr() };
                for (i, x) in total[n].iter().enumerate() {
                    vst1q_f32(to.add(4 * i), *x);
                }
                if out.len() < ROW_BLOCK {
                    out.copy_from_slice(&last[..out.len()]);
                }
            }
        }
    }
}

/// # Safety
/// As `mix`.
#[inline(always)]
unsafe fn level_mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32], block: MixBlock<N>) {
    let parts = Parts::of(a.wide.as_ptr().cast_mut(), a.head_dim);
    let mut scaled = [[0f32; CHUNK]; N];
    for b in 0..RowType::n_blocks(a.head_dim) {
        // SAFETY: a block of the rows of the widened chunk, which has a multiple of four.
        unsafe {
            let d = &*parts.value_scales.add(b * CHUNK).cast::<[f32; CHUNK]>();
            let sums = scaled_weights(weights, d, a.n_rows, &mut scaled);
            let total = block(parts.values.add(b * CHUNK * ROW_BLOCK), a.n_rows.div_ceil(4), &scaled);
            for n in 0..N {
                finish_levels(a, total[n].as_chunks::<4>().0, sums[n], 2 * b, n, acc);
            }
        }
    }
}

/// Text of the mix: four vectors of row `r`, of which the first is the block's vector `i`, times the weights of all queries.
macro_rules! half_row {
    ($r:literal, [$($n:literal),*], $i0:literal, $i1:literal, $i2:literal, $i3:literal) => {
        concat!(
            "ld1 {{v0.4s-v3.4s}}, [{value}], #64\n",
            $(half_row!($r, $n, $i0 0, $i1 1, $i2 2, $i3 3)),*
        )
    };
    ($r:literal, $n:literal, $($i:literal $v:literal),*) => {
        concat!($("fmla {t", $n, $i, ":v}.4s, v", $v, ".4s, {w", $n, ":v}.s[", $r, "]\n"),*)
    };
}

/// Declares `MixBlock` for some queries.
///
///     for each four rows: a vector of weights of each query; for each row: twice four vectors
macro_rules! mix_block {
    ($name:ident, $n:literal, $ns:tt, [$($w:ident $at:literal),*], $([$($t:ident),*]),*) => {
        /// # Safety
        /// `fours` times four rows at `value`, of which each has a weight.
        #[inline(always)]
        unsafe fn $name(mut value: *const f32, fours: usize, weights: &Weights<$n>) -> [[float32x4_t; 8]; $n] {
            let mut total = [[splat(0.0); 8]; $n];
            let [$([$($t),*]),*] = &mut total;
            let mut weight = weights.as_ptr().cast::<f32>();
            assert!(fours <= CHUNK / 4);
            for _ in 0..fours {
                // SAFETY: by the caller's promise; weights by the assertion.
                unsafe {
                    asm!(
                        $(concat!("ldr {", stringify!($w), ":q}, [{weight}, ", $at, "]"),)*
                        half_row!(0, $ns, 0, 1, 2, 3),
                        half_row!(0, $ns, 4, 5, 6, 7),
                        half_row!(1, $ns, 0, 1, 2, 3),
                        half_row!(1, $ns, 4, 5, 6, 7),
                        half_row!(2, $ns, 0, 1, 2, 3),
                        half_row!(2, $ns, 4, 5, 6, 7),
                        half_row!(3, $ns, 0, 1, 2, 3),
                        half_row!(3, $ns, 4, 5, 6, 7),
                        value = inout(reg) value, weight = in(reg) weight, $($w = out(vreg) _,)* $($($t = inout(vreg) *$t,)*)*
                        out("v0") _, out("v1") _, out("v2") _, out("v3") _, options(readonly, nostack, preserves_flags),
                    );
                }
                weight = weight.wrapping_add(4);
            }
            total
        }
    };
}

const _: () = assert!(CHUNK * size_of::<f32>() == 512, "the distance of weights in the text below");

mix_block!(block_of_one, 1, [0], [w0 0], [t00, t01, t02, t03, t04, t05, t06, t07]);
mix_block!(
    block_of_two, 2, [0, 1], [w0 0, w1 512],
    [t00, t01, t02, t03, t04, t05, t06, t07], [t10, t11, t12, t13, t14, t15, t16, t17]
);
mix_block!(
    block_of_three, 3, [0, 1, 2], [w0 0, w1 512, w2 1024],
    [t00, t01, t02, t03, t04, t05, t06, t07], [t10, t11, t12, t13, t14, t15, t16, t17], [t20, t21, t22, t23, t24, t25, t26, t27]
);
