//! The arithmetic of `portable.rs` in NEON, which is the same on both ARM sets: the same operations in the same order, so
//! the same bits; only faster than what a compiler makes of the portable text.
//!
//! A sum in eight lanes is two vectors.

use std::arch::aarch64::*;
use std::arch::asm;

use super::BLOCK;
use super::kv_rows::{self, HUGE};
use super::portable;

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

/// `portable::hadamard`, two of its steps in one pass.
pub fn hadamard(x: &mut [f32]) {
    if !x.len().is_power_of_two() || x.len() < 16 {
        return portable::hadamard(x);
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

/// `kv_rows::store_f16`; `fcvtn` rounds to the nearest, ties to even.
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
    kv_rows::store_f16(x, row);
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
