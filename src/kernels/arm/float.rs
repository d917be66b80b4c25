//! The arithmetic of `spec/arithmetic.rs` in NEON, which is the same on both ARM sets: the same operations in the same order, so
//! the same bits; only faster than what a compiler makes of the portable text.
//!
//! A sum in eight lanes is two vectors.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::kernels::BLOCK;
use crate::kernels::spec::arithmetic::{self, HUGE};

/// # Safety
/// `N` vectors at `p` are readable.
#[inline(always)]
pub unsafe fn load<const N: usize>(p: *const f32) -> [float32x4_t; N] {
    // SAFETY: readable by the caller's promise.
    std::array::from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) })
}

#[inline(always)]
pub fn splat(x: f32) -> float32x4_t {
    // SAFETY: registers only; NEON is part of every 64-bit ARM.
    unsafe { vdupq_n_f32(x) }
}

/// `arithmetic::add_lanes`
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
    let ((x16, x), (w16, w), (out16, out)) = (x.as_chunks::<16>(), weight.as_chunks::<16>(), out.as_chunks_mut::<16>());
    for ((x, w), out) in x16.iter().zip(w16).zip(out16) {
        // SAFETY: arrays of sixteen elements.
        unsafe {
            let (x, w) = (load::<4>(x.as_ptr()), load::<4>(w.as_ptr()));
            for i in 0..4 {
                vst1q_f32(out[4 * i..].as_mut_ptr(), vmulq_f32(vmulq_n_f32(x[i], scale), w[i]));
            }
        }
    }
    for ((x, w), out) in x.iter().zip(w).zip(out) {
        *out = x * scale * w;
    }
}

/// 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// The coefficients of a polynomial, each as often as `horner` reads it.
pub const fn by_sixteen<const N: usize>(c: [f32; N]) -> [[f32; 16]; N] {
    let (mut table, mut i) = ([[0.0; 16]; N], 0);
    while i < N {
        table[i] = [c[i]; 16];
        i += 1;
    }
    table
}

/// Declares a function of four vectors, of odd degree: `p = c[0]`, then `p = fma(r, p, c[i])` for each further coefficient, of the
/// table that `by_sixteen` makes. A fused multiply-add overwrites what it adds to, so each coefficient must be brought anew: by loads, four
/// vectors at once, it costs a quarter of copies from registers.
macro_rules! horner {
    ($name:ident, $n:literal, $($step:ident)*) => {
        #[inline(always)]
        pub fn $name(table: &[[f32; 16]; $n], r: [float32x4_t; 4]) -> [float32x4_t; 4] {
            let [p0, p1, p2, p3]: [float32x4_t; 4];
            // SAFETY: reads the table.
            unsafe {
                asm!(
                    "ld1 {{v0.4s-v3.4s}}, [{c}], #64",
                    $($step!(),)*
                    c = inout(reg) table.as_ptr() => _, r0 = in(vreg) r[0], r1 = in(vreg) r[1], r2 = in(vreg) r[2], r3 = in(vreg) r[3],
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") p0, out("v5") p1, out("v6") p2, out("v7") p3,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            [p0, p1, p2, p3]
        }
    };
}

/// Text of `horner`: from `v0` to `v3` into `v4` to `v7`.
macro_rules! there {
    () => {
        "ld1 {{v4.4s-v7.4s}}, [{c}], #64
        fmla v4.4s, {r0:v}.4s, v0.4s
        fmla v5.4s, {r1:v}.4s, v1.4s
        fmla v6.4s, {r2:v}.4s, v2.4s
        fmla v7.4s, {r3:v}.4s, v3.4s"
    };
}

/// Text of `horner`: and back.
macro_rules! back {
    () => {
        "ld1 {{v0.4s-v3.4s}}, [{c}], #64
        fmla v0.4s, {r0:v}.4s, v4.4s
        fmla v1.4s, {r1:v}.4s, v5.4s
        fmla v2.4s, {r2:v}.4s, v6.4s
        fmla v3.4s, {r3:v}.4s, v7.4s"
    };
}

horner!(fifth_degree, 6, there back there back there);
horner!(seventh_degree, 8, there back there back there back there);

/// `fma(x, log2(e), ROUND)`: an integer in the low bits. Outside the registers of `horner`, past which it is kept.
#[inline(always)]
pub fn shifted(x: [float32x4_t; 4]) -> [float32x4_t; 4] {
    static TABLE: [[f32; 16]; 1] = by_sixteen([ROUND]);
    let [s0, s1, s2, s3]: [float32x4_t; 4];
    // SAFETY: reads the table.
    unsafe {
        asm!(
            "ld1 {{v16.4s-v19.4s}}, [{c}]",
            "fmla v16.4s, {x0:v}.4s, {log2_e:v}.4s",
            "fmla v17.4s, {x1:v}.4s, {log2_e:v}.4s",
            "fmla v18.4s, {x2:v}.4s, {log2_e:v}.4s",
            "fmla v19.4s, {x3:v}.4s, {log2_e:v}.4s",
            c = in(reg) TABLE.as_ptr(), log2_e = in(vreg) splat(std::f32::consts::LOG2_E),
            x0 = in(vreg) x[0], x1 = in(vreg) x[1], x2 = in(vreg) x[2], x3 = in(vreg) x[3],
            out("v16") s0, out("v17") s1, out("v18") s2, out("v19") s3,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [s0, s1, s2, s3]
}

/// `p * 2^n`, `n` in the low bits of `shifted`: for a `p` near 1 whose product is a normal number.
#[inline(always)]
pub fn scaled(p: [float32x4_t; 4], shifted: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: registers only.
    std::array::from_fn(|i| unsafe {
        let power = vshlq_n_s32::<23>(vreinterpretq_s32_f32(shifted[i]));
        vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p[i]), power))
    })
}

/// `arithmetic::exp` of four times four.
#[inline(always)]
fn exp(x: [float32x4_t; 4]) -> [float32x4_t; 4] {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    static TAYLOR: [[f32; 16]; 8] = by_sixteen([1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]);
    // SAFETY: registers only.
    unsafe {
        let x = x.map(|x| vminq_f32(vmaxq_f32(x, splat(-87.0)), splat(88.0)));
        let shifted = shifted(x);
        let n = shifted.map(|s| vsubq_f32(s, splat(ROUND)));
        let r = std::array::from_fn(|i| vfmsq_f32(vfmsq_f32(x[i], n[i], splat(LN2_HI)), n[i], splat(LN2_LO)));
        scaled(seventh_degree(&TAYLOR, r), shifted)
    }
}

/// `x = f(x, y)`, sixteen elements at a time; behind the last there are noughts.
#[inline(always)]
fn by_sixteens(x: &mut [f32], y: &[f32], f: impl Fn([float32x4_t; 4], [float32x4_t; 4]) -> [float32x4_t; 4]) {
    let sixteen = |x: &mut [f32; 16], y: &[f32; 16]| {
        // SAFETY: arrays of sixteen elements.
        unsafe {
            for (i, x4) in f(load(x.as_ptr()), load(y.as_ptr())).into_iter().enumerate() {
                vst1q_f32(x[4 * i..].as_mut_ptr(), x4);
            }
        }
    };
    let ((xs, x), (ys, y)) = (x.as_chunks_mut::<16>(), y.as_chunks::<16>());
    xs.iter_mut().zip(ys).for_each(|(x, y)| sixteen(x, y));
    if !x.is_empty() {
        let (mut last_x, mut last_y) = ([0f32; 16], [0f32; 16]);
        last_x[..x.len()].copy_from_slice(x);
        last_y[..y.len()].copy_from_slice(y);
        sixteen(&mut last_x, &last_y);
        x.copy_from_slice(&last_x[..x.len()]);
    }
}

/// `x / (1 + e^-z) * up`
#[inline(always)]
fn gated(x: [float32x4_t; 4], z: [float32x4_t; 4], up: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: registers only.
    unsafe {
        let e = exp(z.map(|z| vnegq_f32(z)));
        std::array::from_fn(|i| vmulq_f32(vdivq_f32(x[i], vaddq_f32(splat(1.0), e[i])), up[i]))
    }
}

pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    by_sixteens(gate, up, |g, u| gated(g, g, u));
}

pub fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    let [linear, cubic] = arithmetic::GELU.map(splat);
    // SAFETY: registers only.
    let z = |g| unsafe { vmulq_f32(g, vfmaq_f32(linear, vmulq_f32(g, g), cubic)) };
    by_sixteens(gate, up, |g, u| gated(g, g.map(z), u));
}

/// `arithmetic::soft_cap` of each.
#[inline(always)]
fn capped(x: [float32x4_t; 4], cap: f32) -> [float32x4_t; 4] {
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
    let (sixteens, rest) = x.as_chunks_mut::<16>();
    let put = |x: &mut [f32; 16]| {
        // SAFETY: an array of sixteen elements.
        unsafe {
            for (i, x4) in capped(load(x.as_ptr()), cap).into_iter().enumerate() {
                vst1q_f32(x[4 * i..].as_mut_ptr(), x4);
            }
        }
    };
    sixteens.iter_mut().for_each(put);
    if !rest.is_empty() {
        let mut last = [0f32; 16];
        last[..rest.len()].copy_from_slice(rest);
        put(&mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// `arithmetic::hadamard`, two of its steps in one pass.
pub fn hadamard(x: &mut [f32]) {
    if !x.len().is_power_of_two() || x.len() < 16 {
        return arithmetic::hadamard(x);
    }
    // SAFETY: arrays of sixteen elements.
    unsafe {
        for x in x.as_chunks_mut::<16>().0 {
            // The neighbours of one group of four are in four vectors here.
            let float32x4x4_t(a, b, c, d) = vld4q_f32(x.as_ptr());
            let [a, b, c, d] = butterfly([a, b, c, d]);
            vst4q_f32(x.as_mut_ptr(), float32x4x4_t(a, b, c, d));
        }
    }
    let scale = splat(1.0 / (x.len() as f32).sqrt());
    let fours = x.as_chunks_mut::<4>().0;
    let (n, p) = (fours.len(), fours.as_mut_ptr().cast::<f32>());
    let mut step = 1;
    // SAFETY: vectors below `n`, by the bounds of the loops.
    unsafe {
        while 4 * step <= n {
            for first in (0..n).step_by(4 * step) {
                for i in first..first + step {
                    let at = |k: usize| p.add(4 * (i + k * step));
                    let x = butterfly([0, 1, 2, 3].map(|k| vld1q_f32(at(k))));
                    for (k, x) in x.into_iter().enumerate() {
                        vst1q_f32(at(k), x);
                    }
                }
            }
            step *= 4;
        }
        if step < n {
            for i in 0..step {
                let (a, b) = (p.add(4 * i), p.add(4 * (i + step)));
                let (x, y) = (vld1q_f32(a), vld1q_f32(b));
                vst1q_f32(a, vaddq_f32(x, y));
                vst1q_f32(b, vsubq_f32(x, y));
            }
        }
        for four in fours {
            vst1q_f32(four.as_mut_ptr(), vmulq_f32(vld1q_f32(four.as_ptr()), scale));
        }
    }
}

/// `arithmetic::store_f16`; `fcvtn` rounds to the nearest, ties to even.
pub fn store_f16(x: &[f32], row: &mut [u8]) {
    let ((x8, x), (row16, row)) = (x.as_chunks::<8>(), row.as_chunks_mut::<16>());
    for (x, row) in x8.iter().zip(row16) {
        // SAFETY: arrays of eight elements.
        unsafe {
            let [low, high] = load::<2>(x.as_ptr()).map(|x| vminnmq_f32(vmaxnmq_f32(x, splat(-HUGE)), splat(HUGE)));
            let mut h: uint16x8_t;
            asm!("fcvtn {h:v}.4h, {low:v}.4s", h = out(vreg) h, low = in(vreg) low, options(pure, nomem, nostack, preserves_flags));
            asm!("fcvtn2 {h:v}.8h, {high:v}.4s", h = inlateout(vreg) h, high = in(vreg) high, options(pure, nomem, nostack, preserves_flags));
            vst1q_u16(row.as_mut_ptr().cast(), h);
        }
    }
    arithmetic::store_f16(x, row);
}

/// Sums and differences of neighbours, and of pairs of these.
#[inline(always)]
fn butterfly([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: registers only.
    unsafe {
        let (ab, ba, cd, dc) = (vaddq_f32(a, b), vsubq_f32(a, b), vaddq_f32(c, d), vsubq_f32(c, d));
        [vaddq_f32(ab, cd), vaddq_f32(ba, dc), vsubq_f32(ab, cd), vsubq_f32(ba, dc)]
    }
}

/// Blocks of 32 in eight vectors; see `arithmetic::quantize`.
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
            let (first, last) = (quarter(0), quarter(4));
            vst1q_s8(q.as_mut_ptr(), first);
            vst1q_s8(q[16..].as_mut_ptr(), last);
            let total = i32::from(vaddvq_s16(vpadalq_s8(vpaddlq_s8(first), last)));
            (*d, *sum, *s) = (scale, total, scale * total as f32);
        }
    }
}
