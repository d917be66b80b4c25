//! The arithmetic of `portable.rs` in NEON, which is the same on both ARM sets: the same operations in the same order, so
//! the same bits; only faster than what a compiler makes of the portable text.
//!
//! A sum in eight lanes is two vectors. In attention the lanes are queries instead: four of them share each row of the cache,
//! and their scores, weights and sums are one vector.

use std::arch::aarch64::*;

use super::arm_blocks::widen_f16;
use super::kv_rows::{ROW_BLOCK, RowType, with_row};
use super::portable;
use super::{Attend, BLOCK, CHUNK, MAX_QUERIES, Partial};

/// # Safety
/// `N` vectors at `p` are readable.
#[inline(always)]
unsafe fn load<const N: usize>(p: *const f32) -> [float32x4_t; N] {
    // SAFETY: readable by the caller's promise.
    std::array::from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) })
}

#[inline(always)]
fn splat(x: f32) -> float32x4_t {
    // SAFETY: registers only; NEON is part of every 64-bit ARM.
    unsafe { vdupq_n_f32(x) }
}

pub use super::portable::add;

/// `portable::add_lanes`
#[inline(always)]
pub fn add_lanes(l: [float32x4_t; 2]) -> f32 {
    // SAFETY: registers only.
    unsafe {
        let four = vaddq_f32(l[0], l[1]);
        let two = vpaddq_f32(four, four);
        vpadds_f32(vget_low_f32(two))
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<8>();
    let mut lanes = [splat(0.0); 2];
    // SAFETY: eight elements are read from arrays of eight.
    unsafe {
        for x in whole {
            let x = load::<2>(x.as_ptr());
            lanes = [vfmaq_f32(lanes[0], x[0], x[0]), vfmaq_f32(lanes[1], x[1], x[1])];
        }
        // A missing element as nought leaves its lane as it is.
        let mut last = [0f32; 8];
        last[..rest.len()].copy_from_slice(rest);
        let x = load::<2>(last.as_ptr());
        add_lanes([vfmaq_f32(lanes[0], x[0], x[0]), vfmaq_f32(lanes[1], x[1], x[1])])
    }
}

pub fn l2_norm(x: &[f32]) -> f32 {
    sum_of_squares(x).sqrt()
}

pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    let ((x8, x), (w8, w), (out8, out)) = (x.as_chunks::<8>(), weight.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for ((x, w), out) in x8.iter().zip(w8).zip(out8) {
        // SAFETY: arrays of eight elements.
        unsafe {
            let (x, w) = (load::<2>(x.as_ptr()), load::<2>(w.as_ptr()));
            vst1q_f32(out.as_mut_ptr(), vmulq_f32(vmulq_n_f32(x[0], scale), w[0]));
            vst1q_f32(out[4..].as_mut_ptr(), vmulq_f32(vmulq_n_f32(x[1], scale), w[1]));
        }
    }
    for ((x, w), out) in x.iter().zip(w).zip(out) {
        *out = x * scale * w;
    }
}

/// 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// `portable::exp` of two times four.
#[inline(always)]
fn exp(x: [float32x4_t; 2]) -> [float32x4_t; 2] {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // SAFETY: registers only.
    unsafe {
        let x = x.map(|x| vminq_f32(vmaxq_f32(x, splat(-87.0)), splat(88.0)));
        let shifted = x.map(|x| vfmaq_f32(splat(ROUND), x, splat(std::f32::consts::LOG2_E)));
        let n = shifted.map(|s| vsubq_f32(s, splat(ROUND)));
        let r = [0, 1].map(|i| vfmsq_f32(vfmsq_f32(x[i], n[i], splat(LN2_HI)), n[i], splat(LN2_LO)));
        let mut p = [splat(1.0 / 5040.0); 2];
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = [vfmaq_f32(splat(c), r[0], p[0]), vfmaq_f32(splat(c), r[1], p[1])];
        }
        let power = shifted.map(|s| vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(s), 23), vdupq_n_s32(127 << 23)));
        [vmulq_f32(p[0], vreinterpretq_f32_s32(power[0])), vmulq_f32(p[1], vreinterpretq_f32_s32(power[1]))]
    }
}

pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let ((gate8, gate), (up8, up)) = (gate.as_chunks_mut::<8>(), up.as_chunks::<8>());
    for (gate, up) in gate8.iter_mut().zip(up8) {
        // SAFETY: arrays of eight elements.
        unsafe {
            let (g, u) = (load::<2>(gate.as_ptr()), load::<2>(up.as_ptr()));
            let e = exp(g.map(|g| vnegq_f32(g)));
            let silu = |i: usize| vmulq_f32(vdivq_f32(g[i], vaddq_f32(splat(1.0), e[i])), u[i]);
            vst1q_f32(gate.as_mut_ptr(), silu(0));
            vst1q_f32(gate[4..].as_mut_ptr(), silu(1));
        }
    }
    portable::silu_mul(gate, up);
}

pub fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    let ((gate8, gate), (up8, up)) = (gate.as_chunks_mut::<8>(), up.as_chunks::<8>());
    for (gate, up) in gate8.iter_mut().zip(up8) {
        // SAFETY: arrays of eight elements.
        unsafe {
            let (g, u) = (load::<2>(gate.as_ptr()), load::<2>(up.as_ptr()));
            let [linear, cubic] = portable::GELU.map(splat);
            let z = g.map(|g| vmulq_f32(g, vfmaq_f32(linear, vmulq_f32(g, g), cubic)));
            let e = exp(z.map(|z| vnegq_f32(z)));
            let gelu = |i: usize| vmulq_f32(vdivq_f32(g[i], vaddq_f32(splat(1.0), e[i])), u[i]);
            vst1q_f32(gate.as_mut_ptr(), gelu(0));
            vst1q_f32(gate[4..].as_mut_ptr(), gelu(1));
        }
    }
    portable::gelu_mul(gate, up);
}

/// `portable::soft_cap` of two times four.
#[inline(always)]
fn capped(x: [float32x4_t; 2], cap: f32) -> [float32x4_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let e = exp(x.map(|x| vmulq_f32(x, splat(2.0 / cap))));
        e.map(|e| {
            let over = vdivq_f32(splat(2.0), vaddq_f32(e, splat(1.0)));
            vmulq_f32(splat(cap), vsubq_f32(splat(1.0), over))
        })
    }
}

pub fn soft_cap(x: &mut [f32], cap: f32) {
    let (x8, x) = x.as_chunks_mut::<8>();
    for x in x8 {
        // SAFETY: arrays of eight elements.
        unsafe {
            let [low, high] = capped(load::<2>(x.as_ptr()), cap);
            vst1q_f32(x.as_mut_ptr(), low);
            vst1q_f32(x[4..].as_mut_ptr(), high);
        }
    }
    portable::soft_cap(x, cap);
}

/// Blocks of 32 in eight vectors; see `portable::quantize`.
pub fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
    let (blocks, q_blocks) = (x.as_chunks::<BLOCK>().0, q.as_chunks_mut::<BLOCK>().0);
    let scales = d.iter_mut().zip(s).zip(sum);
    for ((x, q), ((d, s), sum)) in blocks.iter().zip(q_blocks).zip(scales) {
        // SAFETY: arrays of 32 elements.
        unsafe {
            let x = load::<8>(x.as_ptr());
            let a = x.map(|x| vabsq_f32(x));
            let two = |i: usize| vmaxnmq_f32(a[i], a[i + 1]);
            let max = vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(two(0), two(2)), vmaxnmq_f32(two(4), two(6))));
            let scale = max / 127.0;
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            // The integer is in the low bits of the sum; the lowest eight are it.
            let bits = x.map(|x| vreinterpretq_s32_f32(vfmaq_n_f32(splat(ROUND), x, inverse)));
            let half = |i: usize| vuzp1q_s16(vreinterpretq_s16_s32(bits[i]), vreinterpretq_s16_s32(bits[i + 1]));
            let quarter = |i: usize| vuzp1q_s8(vreinterpretq_s8_s16(half(i)), vreinterpretq_s8_s16(half(i + 2)));
            vst1q_s8(q.as_mut_ptr(), quarter(0));
            vst1q_s8(q[16..].as_mut_ptr(), quarter(4));
            let two = |i: usize| vaddq_s32(bits[i], bits[i + 1]);
            let total = vaddvq_s32(vaddq_s32(vaddq_s32(two(0), two(2)), vaddq_s32(two(4), two(6))));
            let total = total.wrapping_sub((ROUND.to_bits() as i32).wrapping_mul(BLOCK as i32));
            (*d, *sum, *s) = (scale, total, scale * total as f32);
        }
    }
}

/// See `Attend` and `portable::attend`.
///
/// # Safety
/// Rows `0..n_rows` lie inside `keys` and `values`.
pub unsafe fn attend(a: &Attend, out: &mut Partial) {
    let (n_q, hd) = (a.q.len() / a.head_dim, a.head_dim);
    for first in (0..n_q).step_by(MAX_QUERIES) {
        let n = (n_q - first).min(MAX_QUERIES);
        let q = &a.q[first * hd..(first + n) * hd];
        let mut part = Partial {
            max: &mut out.max[first..first + n],
            sum: &mut out.sum[first..first + n],
            acc: &mut out.acc[first * hd..(first + n) * hd],
            weights: portable::weights_of(first, out.weights),
        };
        // SAFETY: passed on.
        unsafe {
            match n {
                1 => attend_n::<1>(a, q, &mut part),
                2 => attend_n::<2>(a, q, &mut part),
                3 => attend_n::<3>(a, q, &mut part),
                _ => attend_n::<4>(a, q, &mut part),
            }
        }
    }
}

/// `N` queries, a lane each; missing ones are zeros whose results nobody reads.
///
/// # Safety
/// As `attend`.
unsafe fn attend_n<const N: usize>(a: &Attend, q: &[f32], out: &mut Partial) {
    let Partial { max, sum, acc, .. } = out;
    let mut weights = [[0f32; 4]; CHUNK];
    // SAFETY: passed on.
    let mut highest = unsafe { with_row!(a.k_type, R => scores::<R, N>(a, q, &mut weights)) };
    if a.soft_cap != 0.0 {
        // The cap keeps order, so that of the highest is the highest.
        soft_cap(weights[..a.n_rows].as_flattened_mut(), a.soft_cap);
        [highest, _] = capped([highest; 2], a.soft_cap);
    }
    // SAFETY: vectors of four floats on the stack; rows inside `values` by the caller's promise.
    unsafe {
        let padded = a.n_rows.next_multiple_of(8);
        // Two at a time, because one is a chain in which each operation waits for the last.
        for [x, y] in weights[..padded].as_chunks_mut::<2>().0 {
            let [e, f] = exp([vsubq_f32(vld1q_f32(x.as_ptr()), highest), vsubq_f32(vld1q_f32(y.as_ptr()), highest)]);
            vst1q_f32(x.as_mut_ptr(), e);
            vst1q_f32(y.as_mut_ptr(), f);
        }
        weights[a.n_rows..padded].fill([0.0; 4]);
        // Lane `j % 8` of a query's sum is vector `j % 8` here.
        let mut lanes = [splat(0.0); 8];
        for eight in weights[..padded].as_chunks::<8>().0 {
            for (lane, w) in lanes.iter_mut().zip(eight) {
                *lane = vaddq_f32(*lane, vld1q_f32(w.as_ptr()));
            }
        }
        let [l0, l1, l2, l3, l4, l5, l6, l7] = lanes;
        let low = vaddq_f32(vaddq_f32(l0, l4), vaddq_f32(l1, l5));
        let total = vaddq_f32(low, vaddq_f32(vaddq_f32(l2, l6), vaddq_f32(l3, l7)));
        let (mut highest_4, mut total_4) = ([0f32; 4], [0f32; 4]);
        vst1q_f32(highest_4.as_mut_ptr(), highest);
        vst1q_f32(total_4.as_mut_ptr(), total);
        max.copy_from_slice(&highest_4[..N]);
        sum.copy_from_slice(&total_4[..N]);
        with_row!(a.v_type, R => mix::<R, N>(a, &weights, acc));
    }
    let wanted = out.weights.len().min(a.n_rows);
    out.weights[..wanted].copy_from_slice(&weights[..wanted]);
}

/// The weighted values, sixteen elements at a time.
///
/// # Safety
/// As `attend`.
#[inline(always)]
unsafe fn mix<R: Row, const N: usize>(a: &Attend, weights: &[[f32; 4]; CHUNK], acc: &mut [f32]) {
    let mut at = 0;
    // SAFETY: elements of the head; the rest passed on.
    unsafe {
        while at + 16 <= a.head_dim {
            match at % ROW_BLOCK {
                0 => values::<R, N, 4, 0>(a, weights, at, acc),
                _ => values::<R, N, 4, 2>(a, weights, at, acc),
            }
            at += 16;
        }
        if at < a.head_dim {
            match at % ROW_BLOCK {
                0 => values::<R, N, 2, 0>(a, weights, at, acc),
                _ => values::<R, N, 2, 2>(a, weights, at, acc),
            }
        }
    }
}

/// How the rows of one `RowType` are read; see kv_rows.rs for their bytes.
trait Row {
    const TYPE: RowType;

    /// The scale of the block at `p`, in every lane.
    ///
    /// # Safety
    /// The block is readable.
    #[inline(always)]
    unsafe fn scale(p: *const u8) -> float32x4_t {
        // SAFETY: its first two bytes.
        unsafe { widen_f16(vdupq_n_u16(p.cast::<u16>().read_unaligned()))[0] }
    }

    /// Elements `8 * part` and on of the block at `p`, whose scale is `d`.
    ///
    /// # Safety
    /// The block is readable as far as these elements reach.
    unsafe fn load8(p: *const u8, part: usize, d: float32x4_t) -> [float32x4_t; 2];
}

struct F16;
impl Row for F16 {
    const TYPE: RowType = RowType::F16;

    #[inline(always)]
    unsafe fn scale(_: *const u8) -> float32x4_t {
        splat(1.0)
    }

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize, _: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: readable by the caller's promise.
        unsafe { widen_f16(vld1q_u16(p.add(16 * part).cast())) }
    }
}

/// `d * q` of eight.
#[inline(always)]
fn scaled(q: int8x8_t, d: float32x4_t) -> [float32x4_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let q = vmovl_s8(q);
        let (low, high) = (vmovl_s16(vget_low_s16(q)), vmovl_high_s16(q));
        [vmulq_f32(vcvtq_f32_s32(low), d), vmulq_f32(vcvtq_f32_s32(high), d)]
    }
}

struct Q8;
impl Row for Q8 {
    const TYPE: RowType = RowType::Q8;

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize, d: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: eight bytes of the block's 32 behind its scale.
        unsafe { scaled(vld1_s8(p.add(2 + 8 * part).cast()), d) }
    }
}

/// Four bits and `PLANES` more.
struct Packed<const PLANES: usize>;
impl<const PLANES: usize> Row for Packed<PLANES> {
    const TYPE: RowType = [RowType::Q4, RowType::Q5, RowType::Q6][PLANES];

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize, d: float32x4_t) -> [float32x4_t; 2] {
        // SAFETY: behind the scale 16 bytes of low bits, then four bytes for each plane.
        unsafe {
            let bytes = vld1_u8(p.add(2 + part % 2 * 8));
            let mut u = if part < 2 { vand_u8(bytes, vdup_n_u8(15)) } else { vshr_n_u8(bytes, 4) };
            for plane in 0..PLANES {
                let own = vcreate_u8(0x8040_2010_0804_0201);
                let set = vtst_u8(vld1_dup_u8(p.add(18 + 4 * plane + part)), own);
                u = vorr_u8(u, vand_u8(set, vdup_n_u8(16 << plane)));
            }
            scaled(vreinterpret_s8_u8(vsub_u8(u, vdup_n_u8(8 << PLANES))), d)
        }
    }
}

/// Products of the queries with each key, two keys at a time; gives the highest of each query.
///
/// # Safety
/// As `attend`.
#[inline(always)]
unsafe fn scores<R: Row, const N: usize>(a: &Attend, q: &[f32], weights: &mut [[f32; 4]; CHUNK]) -> float32x4_t {
    const { assert!(CHUNK.is_multiple_of(2) && N <= 4) };
    let hd = a.head_dim;
    // SAFETY: rows inside `keys` by the caller's promise; `q` is `N` times `head_dim`, a multiple of eight.
    unsafe {
        let key = |j: usize| a.keys.as_ptr().add(a.rows.get(j) * R::TYPE.row_bytes(hd));
        let mut highest = splat(f32::NEG_INFINITY);
        for j in (0..a.n_rows).step_by(2) {
            // An odd last row is taken twice: it changes no maximum, and nobody reads the second score.
            let keys = [key(j), key((j + 1).min(a.n_rows - 1))];
            let mut dot = [[[splat(0.0); 2]; 4]; 2];
            let mut eight = |b: usize, part: usize, d: [float32x4_t; 2]| {
                let k = [0, 1].map(|i| R::load8(keys[i].add(b * R::TYPE.block_bytes()), part, d[i]));
                for n in 0..N {
                    let q = load::<2>(q.as_ptr().add(n * hd + b * ROW_BLOCK + part * 8));
                    for (dot, k) in dot.iter_mut().zip(&k) {
                        dot[n] = [vfmaq_f32(dot[n][0], q[0], k[0]), vfmaq_f32(dot[n][1], q[1], k[1])];
                    }
                }
            };
            let scales = |b: usize| keys.map(|key| R::scale(key.add(b * R::TYPE.block_bytes())));
            for b in 0..hd / ROW_BLOCK {
                let d = scales(b);
                for part in 0..4 {
                    eight(b, part, d);
                }
            }
            if !hd.is_multiple_of(ROW_BLOCK) {
                let d = scales(hd / ROW_BLOCK);
                for part in 0..hd % ROW_BLOCK / 8 {
                    eight(hd / ROW_BLOCK, part, d);
                }
            }
            for (dot, w) in dot.into_iter().zip(&mut weights[j..j + 2]) {
                // `portable::add_lanes`, four queries together.
                let [a, b, c, d] = dot.map(|l| vaddq_f32(l[0], l[1]));
                let score = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
                highest = vmaxnmq_f32(highest, score);
                vst1q_f32(w.as_mut_ptr(), score);
            }
        }
        highest
    }
}

/// `V` vectors of the weighted values, from element `at` on, which is where part `PART` of a block begins.
///
/// # Safety
/// As `attend`; elements `at..at + 4 V` are in the head.
#[inline(always)]
unsafe fn values<R: Row, const N: usize, const V: usize, const PART: usize>(
    a: &Attend,
    weights: &[[f32; 4]; CHUNK],
    at: usize,
    acc: &mut [f32],
) {
    let (hd, row_bytes) = (a.head_dim, R::TYPE.row_bytes(a.head_dim));
    assert!(acc.len() == N * hd && at + 4 * V <= hd);
    // SAFETY: rows inside `values` by the caller's promise; `acc` by the assertion.
    unsafe {
        let mut total = [[splat(0.0); V]; N];
        for (j, w) in weights[..a.n_rows].iter().enumerate() {
            let block = a.values.as_ptr().add(a.rows.get(j) * row_bytes + at / ROW_BLOCK * R::TYPE.block_bytes());
            let (mut v, d) = ([splat(0.0); V], R::scale(block));
            for i in 0..V / 2 {
                [v[2 * i], v[2 * i + 1]] = R::load8(block, PART + i, d);
            }
            let w = vld1q_f32(w.as_ptr());
            macro_rules! query {
                ($n:literal) => {
                    if $n < N {
                        for i in 0..V {
                            total[$n % N][i] = vfmaq_laneq_f32::<$n>(total[$n % N][i], v[i], w);
                        }
                    }
                };
            }
            query!(0);
            query!(1);
            query!(2);
            query!(3);
        }
        for (n, total) in total.into_iter().enumerate() {
            for (i, total) in total.into_iter().enumerate() {
                vst1q_f32(acc.as_mut_ptr().add(n * hd + at + 4 * i), total);
            }
        }
    }
}
