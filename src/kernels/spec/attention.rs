//! The specification of attention over some rows of a cache; the SIMD versions, in arm/attend.rs and x86/attend.rs, give the
//! same bits. For each query `n`:
//!
//! ```text
//! score[j] = q · key[j]                                        F16 keys: eight lanes, as in spec/arithmetic.rs
//!          = Σ over blocks b of fma(isum * d_k[j][b], d_q[b])  keys in levels: isum = Σ q_int * level, exact, in integers
//! w[j]     = weight(score[j] - max);  sum = Σ w in eight lanes
//! acc[e]   = Σ over j of fma(w[j], value[j][e])                F16 values
//!          = Σ over j of fma(t[j], level[j][e] + offset) - offset * Σ t,  t[j] = w[j] * d_v[j][b]   values in levels
//! ```
//!
//! Queries are rounded to integers by blocks of 32, as the levels of keys are; so finely (`steps`) that this adds at most
//! a few thousandths to the error that rounding the keys has made, and so coarsely that the products of four columns of
//! a block fit into 16 bits.

use super::arithmetic::{add_lanes, exp, soft_cap};
use crate::kernels::rows::codec::{ROW_BLOCK, RowType};
use crate::kernels::{Attend, CHUNK, MAX_QUERIES, Partial};

/// Scores or weights of a chunk, for up to four queries.
pub type Weights<const N: usize> = [[f32; CHUNK]; N];

/// The largest integer that an element of a query becomes. Of few bits: 4 * steps * |lowest level| < 2^15.
pub const fn steps(keys: RowType) -> i32 {
    match keys {
        RowType::Q4 => 1023,
        RowType::Q5 => 511,
        RowType::Q6 => 255,
        RowType::Q8 => 8191,
        RowType::F16 => 0,
    }
}

/// One block of `N` queries in integers: `d * q`.
pub struct QueryBlock<const N: usize> {
    pub q: [[i16; ROW_BLOCK]; N],
    pub d: [f32; N],
}

impl<const N: usize> QueryBlock<N> {
    /// Block `b`; beyond the head there are zeros. As `portable::quantize`: `d = max|x| / steps`, `q = round(x / d)`.
    #[inline(always)]
    pub fn new(keys: RowType, q: &[f32], head_dim: usize, b: usize) -> Self {
        const ROUND: f32 = 12_582_912.0;
        let mut block = QueryBlock { q: [[0; ROW_BLOCK]; N], d: [0.0; N] };
        let first = b * ROW_BLOCK;
        for n in 0..N {
            let mut x = [0f32; ROW_BLOCK];
            match q[n * head_dim..][..head_dim][first..].first_chunk() {
                Some(whole) => x = *whole,
                None => x[..head_dim - first].copy_from_slice(&q[n * head_dim + first..][..head_dim - first]),
            }
            let mut lanes = [0f32; 8];
            for i in 0..ROW_BLOCK {
                let magnitude = x[i].abs();
                lanes[i % 8] = if magnitude > lanes[i % 8] { magnitude } else { lanes[i % 8] };
            }
            let max = lanes.iter().fold(0f32, |a, &b| if b > a { b } else { a });
            block.d[n] = max / steps(keys) as f32;
            let inverse = if block.d[n] >= f32::MIN_POSITIVE { 1.0 / block.d[n] } else { 0.0 };
            for i in 0..ROW_BLOCK {
                // Within `steps` and thus 16 bits; a NaN becomes some number, as in `portable::quantize`.
                block.q[n][i] = ((x[i] * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i16;
            }
        }
        block
    }
}

/// e^x of what is not above nought, and of what is below -30 that of -30: beside a weight of 1, which the highest score has, no
/// f32 sum sees it. So weights times scales of f16 stay far above the subnormal numbers, in whatever unit a set counts levels.
/// As `portable::exp` with a polynomial of degree 5, the best for the relative error: 1e-7.
#[inline(always)]
pub fn weight(x: f32) -> f32 {
    let x = if x > LEAST { x } else { LEAST };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let r = (shifted - ROUND).mul_add(-std::f32::consts::LN_2, x);
    let mut p = WEIGHT[0];
    for c in &WEIGHT[1..] {
        p = r.mul_add(p, *c);
    }
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The lowest exponent of a weight.
pub const LEAST: f32 = -30.0;
/// 1.5 * 2^23: adding it rounds to an integer in the low bits.
pub const ROUND: f32 = 12_582_912.0;
/// From the fifth power down.
pub const WEIGHT: [f32; 6] = [0.008_290_272, 0.041_898_16, 0.166_676_39, 0.499_991_48, 0.999_999_7, 1.0];

/// See `Attend`: scores, their maximum, weights, weighted values.
pub fn attend(a: &Attend, out: &mut Partial) {
    for_queries!(a, out, attend_n)
}

/// `$call::<N>(a, q, part)` for up to four queries of `a` at a time and their parts of `out`.
macro_rules! for_queries {
    ($a:expr, $out:expr, $call:ident) => {{
        let (n_q, hd) = ($a.q.len() / $a.head_dim, $a.head_dim);
        for first in (0..n_q).step_by($crate::kernels::MAX_QUERIES) {
            let n = (n_q - first).min($crate::kernels::MAX_QUERIES);
            let q = &$a.q[first * hd..(first + n) * hd];
            let mut part = $crate::kernels::spec::attention::part_of($out, first, n, hd);
            match n {
                1 => $call::<1>($a, q, &mut part),
                2 => $call::<2>($a, q, &mut part),
                3 => $call::<3>($a, q, &mut part),
                _ => $call::<4>($a, q, &mut part),
            }
        }
    }};
}
pub(crate) use for_queries;

/// What queries `first..first + n` leave.
pub fn part_of<'a>(out: &'a mut Partial, first: usize, n: usize, head_dim: usize) -> Partial<'a> {
    let at = if out.weights.is_empty() { 0..0 } else { first * CHUNK..(first + n) * CHUNK };
    Partial {
        max: &mut out.max[first..first + n],
        sum: &mut out.sum[first..first + n],
        acc: &mut out.acc[first * head_dim..(first + n) * head_dim],
        weights: &mut out.weights[at],
    }
}

fn attend_n<const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
    const { assert!(N <= MAX_QUERIES) };
    let mut weights = [[0f32; CHUNK]; N];
    match a.k_type {
        RowType::F16 => float_scores(a, q, &mut weights),
        _ => level_scores(a, q, &mut weights),
    }
    for (n, w) in weights.iter_mut().enumerate() {
        (out.max[n], out.sum[n]) = to_weights(w, a.n_rows, a.soft_cap);
    }
    match a.v_type {
        RowType::F16 => float_mix(a, &weights, out.acc),
        _ => level_mix(a, &weights, out.acc),
    }
    give_weights(&weights, a.n_rows, out.weights);
}

/// Scores of one query become weights, noughts behind the last; gives their maximum and sum.
#[inline(always)]
pub fn to_weights(w: &mut [f32; CHUNK], n_rows: usize, cap: f32) -> (f32, f32) {
    if cap != 0.0 {
        soft_cap(&mut w[..n_rows], cap);
    }
    w[n_rows..].fill(f32::NEG_INFINITY);
    let eights = &mut w.as_chunks_mut::<8>().0[..n_rows.div_ceil(8)];
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in &*eights {
        for l in 0..8 {
            lanes[l] = if eight[l] > lanes[l] { eight[l] } else { lanes[l] };
        }
    }
    let highest = lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    for eight in eights {
        for l in 0..8 {
            eight[l] = weight(eight[l] - highest);
        }
    }
    w[n_rows..].fill(0.0);
    (highest, sum_of(&w[..n_rows.next_multiple_of(8)]))
}

/// Lays out the weights for who asked for them.
#[inline(always)]
pub fn give_weights<const N: usize>(weights: &Weights<N>, n_rows: usize, out: &mut [f32]) {
    for (out, weights) in out.chunks_exact_mut(CHUNK).zip(weights) {
        out[..n_rows].copy_from_slice(&weights[..n_rows]);
    }
}

/// In eight lanes.
#[inline(always)]
pub fn sum_of(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for eight in x.as_chunks::<8>().0 {
        for l in 0..8 {
            lanes[l] += eight[l];
        }
    }
    add_lanes(lanes)
}

impl<'a> Attend<'a> {
    fn key(&self, j: usize) -> &'a [u8] {
        row(self.keys, self.k_type, self.head_dim, self.rows.get(j))
    }

    fn value(&self, j: usize) -> &'a [u8] {
        row(self.values, self.v_type, self.head_dim, self.rows.get(j))
    }

    /// Where the rows of `from` (keys or values, of type `ty`) begin. Behind the last the last again, so that loops may
    /// round up.
    #[inline(always)]
    pub fn addresses(&self, from: &[u8], ty: RowType) -> [*const u8; CHUNK] {
        let (mut at, bytes) = ([from.as_ptr(); CHUNK], ty.row_bytes(self.head_dim));
        for (j, at) in at.iter_mut().enumerate().take(self.n_rows) {
            *at = from.as_ptr().wrapping_add(self.rows.get(j) * bytes);
        }
        let last = at[self.n_rows - 1];
        at[self.n_rows..].fill(last);
        at
    }
}

fn row(rows: &[u8], ty: RowType, head_dim: usize, at: usize) -> &[u8] {
    let bytes = ty.row_bytes(head_dim);
    &rows[at * bytes..][..bytes]
}

fn float_scores<const N: usize>(a: &Attend, q: &[f32], weights: &mut Weights<N>) {
    let hd = a.head_dim;
    let mut key = [0f32; 8];
    for j in 0..a.n_rows {
        let mut dot = [[0f32; 8]; N];
        for (i, bytes) in a.key(j).as_chunks::<16>().0.iter().enumerate() {
            RowType::F16.load(bytes, &mut key);
            for n in 0..N {
                let q: &[f32; 8] = q[n * hd + i * 8..][..8].try_into().expect("eight");
                for l in 0..8 {
                    dot[n][l] = q[l].mul_add(key[l], dot[n][l]);
                }
            }
        }
        for n in 0..N {
            weights[n][j] = add_lanes(dot[n]);
        }
    }
}

fn level_scores<const N: usize>(a: &Attend, q: &[f32], weights: &mut Weights<N>) {
    let n_blocks = RowType::n_blocks(a.head_dim);
    for b in 0..n_blocks {
        let query = QueryBlock::<N>::new(a.k_type, q, a.head_dim, b);
        for j in 0..a.n_rows {
            let (d, levels) = (a.k_type.scale(a.key(j), b), a.k_type.levels(a.key(j), n_blocks, b));
            let key = levels.map(|level| i32::from(level) - a.k_type.offset());
            for n in 0..N {
                let isum: i32 = query.q[n].iter().zip(key).map(|(&q, k)| i32::from(q) * k).sum();
                weights[n][j] = (isum as f32 * d).mul_add(query.d[n], weights[n][j]);
            }
        }
    }
}

fn float_mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let mut value = [0f32; 8];
    for i in 0..a.head_dim / 8 {
        let mut total = [[0f32; 8]; N];
        for j in 0..a.n_rows {
            RowType::F16.load(&a.value(j)[16 * i..][..16], &mut value);
            for n in 0..N {
                for l in 0..8 {
                    total[n][l] = weights[n][j].mul_add(value[l], total[n][l]);
                }
            }
        }
        for n in 0..N {
            acc[n * a.head_dim + i * 8..][..8].copy_from_slice(&total[n]);
        }
    }
}

fn level_mix<const N: usize>(a: &Attend, weights: &Weights<N>, acc: &mut [f32]) {
    let (n_blocks, padded) = (RowType::n_blocks(a.head_dim), a.n_rows.next_multiple_of(8));
    for b in 0..n_blocks {
        let (mut total, mut scaled) = ([[0f32; ROW_BLOCK]; N], [[0f32; CHUNK]; N]);
        for j in 0..a.n_rows {
            let (d, levels) = (a.v_type.scale(a.value(j), b), a.v_type.levels(a.value(j), n_blocks, b));
            for n in 0..N {
                scaled[n][j] = weights[n][j] * d;
                for (total, level) in total[n].iter_mut().zip(levels) {
                    *total = scaled[n][j].mul_add(f32::from(level), *total);
                }
            }
        }
        for n in 0..N {
            let (offset, t) = (a.v_type.offset() as f32, sum_of(&scaled[n][..padded]));
            let out = acc[n * a.head_dim..][..a.head_dim][b * ROW_BLOCK..].iter_mut();
            out.zip(total[n]).for_each(|(out, total)| *out = t.mul_add(-offset, total));
        }
    }
}

/// See `Kernels::merge`: the usual rescaling of online softmax.
#[inline(always)]
pub fn merge(running: &mut [f32], acc: &mut [f32], chunk: &Partial) {
    let (max, sum) = running.split_at_mut(chunk.max.len());
    let head_dim = acc.len() / max.len();
    let chunk_accs = chunk.acc.chunks_exact(head_dim);
    for (n, (acc, chunk_acc)) in acc.chunks_exact_mut(head_dim).zip(chunk_accs).enumerate() {
        let (chunk_max, chunk_sum) = (chunk.max[n], chunk.sum[n]);
        if max[n] == f32::NEG_INFINITY {
            (max[n], sum[n]) = (chunk_max, chunk_sum);
            acc.copy_from_slice(chunk_acc);
            continue;
        }
        let higher = if chunk_max > max[n] { chunk_max } else { max[n] };
        let (old, new) = (exp(max[n] - higher), exp(chunk_max - higher));
        for (a, c) in acc.iter_mut().zip(chunk_acc) {
            *a = *a * old + c * new;
        }
        (max[n], sum[n]) = (higher, sum[n] * old + chunk_sum * new);
    }
}

/// See `Kernels::received`.
#[inline(always)]
pub fn received(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) {
    let (max, sum) = running.split_at(tops.len());
    total.fill(0.0);
    for (n, weights) in weights.as_chunks::<CHUNK>().0.iter().enumerate() {
        let share = exp(tops[n] - max[n]) / sum[n];
        total.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight * share);
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kernels/spec/attention.rs"]
mod tests;
