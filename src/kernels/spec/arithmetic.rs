//! The arithmetic that is not a dot product of integers, written once and compiled once for each set.
//!
//! This file fixes the order of every f32 sum, so that all sets on all CPUs give the same bits:
//! - a sum over elements runs in 8 lanes, lane `i` taking elements `i, i+8, i+16 …` with fused multiply-add;
//! - lanes are added as `((l0+l4)+(l1+l5)) + ((l2+l6)+(l3+l7))`, which is what NEON's and AVX's pairwise adds do;
//! - everything else is elementwise.
//!
//! All is `inline(always)`, so that a set that uses it compiles it with its own CPU features.

use crate::kernels::BLOCK;

pub type Lanes = [f32; 8];

/// How a set reads eight f16.
pub trait LoadF16 {
    /// # Safety
    /// 16 readable bytes at `p`; the set's CPU features.
    unsafe fn load8(p: *const u8) -> Lanes;
}

/// f16 to f32 in integer arithmetic. Exact for every finite value: the exponent is moved over and rescaled by 2^112,
/// which also normalises subnormals. (Infinity and NaN do not occur: rows are rounded from finite f32 and clamped.)
#[inline(always)]
pub fn f16_bits(h: u16) -> f32 {
    let rescale = f32::from_bits((112 + 127) << 23);
    let magnitude = f32::from_bits(((h & 0x7fff) as u32) << 13) * rescale;
    f32::from_bits(magnitude.to_bits() | ((h & 0x8000) as u32) << 16)
}

/// Elements beyond it are cut: squares of them, and f16 scales, stay finite.
pub const HUGE: f32 = 65504.0;

/// An element within those bounds; what is not a number becomes one.
#[expect(clippy::manual_clamp, reason = "clamp keeps NaN, which takes a branch an element")]
#[inline(always)]
pub fn bounded(x: f32) -> f32 {
    x.max(-HUGE).min(HUGE)
}

/// Elements as f16, within the bounds.
#[inline(always)]
pub fn store_f16(x: &[f32], row: &mut [u8]) {
    for (x, out) in x.iter().zip(row.as_chunks_mut::<2>().0) {
        *out = f16_of(bounded(*x)).to_le_bytes();
    }
}

/// The nearest f16 of a number that is not beyond the largest, ties to even: as `half`'s, in operations that the compiler does
/// on several elements at once, where `half`'s branch for each.
#[inline(always)]
fn f16_of(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // The exponent's bias becomes 15 instead of 127; half a step and the tie's bit round the mantissa.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    // Below 2^-14 steps are 2^-24, which is what the mantissa of a half and more has.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    (sign | if magnitude < 113 << 23 { small } else { normal }) as u16
}

pub struct Bits;
impl LoadF16 for Bits {
    #[inline(always)]
    unsafe fn load8(p: *const u8) -> Lanes {
        // SAFETY: 16 readable bytes by the caller's promise; u16 has no alignment demands in `read_unaligned`.
        let h = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        // Weights are a stranger's: infinity and NaN must stay what they are.
        h.map(|h| half::f16::from_bits(h).to_f32())
    }
}

#[inline(always)]
pub fn add_lanes(l: Lanes) -> f32 {
    ((l[0] + l[4]) + (l[1] + l[5])) + ((l[2] + l[6]) + (l[3] + l[7]))
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (whole, rest) = x.as_chunks::<8>();
    for x in whole {
        for i in 0..8 {
            lanes[i] = x[i].mul_add(x[i], lanes[i]);
        }
    }
    for (i, x) in rest.iter().enumerate() {
        lanes[i] = x.mul_add(*x, lanes[i]);
    }
    add_lanes(lanes)
}

#[inline(always)]
pub fn l2_norm(x: &[f32]) -> f32 {
    sum_of_squares(x).sqrt()
}

#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

#[inline(always)]
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// e^x for x in [-87, 88], clamped outside: x = n ln 2 + r, the Taylor polynomial of degree 7 on |r| <= ln 2 / 2, times 2^n.
/// Error below 2 units in the last place (tested); the same operations in the same order on every CPU.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    // 2^n, n in [-126, 127]: the low bits of `shifted` hold n.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[inline(always)]
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// The experts' activation of gpt-oss: a gate cut above `LIMIT`, times the sigmoid of `ALPHA` times it, times `up` within the limits
/// plus 1. (Both numbers are llama.cpp's; no file says them.) What is no number stays none, so that the guard sees it.
#[inline(always)]
pub fn clamped_silu_mul(gate: &mut [f32], up: &[f32]) {
    const ALPHA: f32 = 1.702;
    const LIMIT: f32 = 7.0;
    for (g, u) in gate.iter_mut().zip(up) {
        let x = if *g > LIMIT { LIMIT } else { *g };
        let u = if *u > LIMIT { LIMIT } else { *u };
        let u = if u < -LIMIT { -LIMIT } else { u };
        *g = x / (1.0 + exp(-ALPHA * x)) * (u + 1.0);
    }
}

/// GELU by its tanh (Hendrycks & Gimpel 2016, arXiv 1606.08415), times `up`. `x/2 (1 + tanh(z/2))` is `x / (1 + e^-z)`.
#[inline(always)]
pub fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        let z = *g * (*g * *g).mul_add(GELU[1], GELU[0]);
        *g = *g / (1.0 + exp(-z)) * u;
    }
}

/// `2 sqrt(2/pi)`, and that times 0.044715: of x and of its cube.
pub const GELU: [f32; 2] = [1.595_769, 0.071_354_81];

/// `x * sigmoid(x)`, in place.
#[inline(always)]
pub fn silu(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + exp(-*x);
    }
}

/// `x * sigmoid(gate)`
#[inline(always)]
pub fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    for (x, gate) in x.iter_mut().zip(gate) {
        *x /= 1.0 + exp(-*gate);
    }
}

/// The square of what is above 0, in place.
#[inline(always)]
pub fn relu2(x: &mut [f32]) {
    for x in x {
        let above = if *x > 0.0 { *x } else { 0.0 };
        *x = above * above;
    }
}

/// xIELU (Huang & Schlag 2024, arXiv 2411.13010): `positive x^2 + beta x` above 0, else
/// `negative (e^min(x, eps) - 1 - x) + beta x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    pub positive: f32,
    pub negative: f32,
    pub beta: f32,
    pub eps: f32,
}

impl Xielu {
    /// Of the numbers that were trained: the softplus of two of them counts.
    pub fn new(alpha_n: f32, alpha_p: f32, beta: f32, eps: f32) -> Self {
        let softplus = |x: f32| if x > 20.0 { x } else { libm::log1p(libm::exp(f64::from(x))) as f32 };
        Xielu { positive: softplus(alpha_p), negative: beta + softplus(alpha_n), beta, eps }
    }

    /// Whether all numbers are, and of a size that overflows nothing.
    pub fn is_sound(&self) -> bool {
        [self.positive, self.negative, self.beta, self.eps].into_iter().all(|x| x.abs() <= 1e3)
    }
}

#[inline(always)]
pub fn xielu(x: &mut [f32], by: &Xielu) {
    for x in x {
        let bent = if *x > 0.0 {
            by.positive * *x * *x
        } else {
            let low = if *x < by.eps { *x } else { by.eps };
            by.negative * (exp(low) - 1.0 - *x)
        };
        *x = by.beta.mul_add(*x, bent);
    }
}

/// `cap * tanh(x / cap)`: what is far below the cap stays, nothing passes it.
#[inline(always)]
pub fn soft_cap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (1.0 - 2.0 / (exp(*x * (2.0 / cap)) + 1.0));
    }
}

/// The orthonormal Hadamard matrix of the order of `x`, its own inverse: sums and differences of neighbours, of pairs of these,
/// and so on, then one multiplication an element. Every CPU takes this order.
#[inline(always)]
pub fn hadamard(x: &mut [f32]) {
    let (eights, rest) = x.as_chunks_mut::<8>();
    for eight in eights {
        neighbours::<1>(eight);
        neighbours::<2>(eight);
        neighbours::<4>(eight);
    }
    // Of an order below eight nothing is done yet.
    let mut half = if rest.is_empty() { 8 } else { 1 };
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

/// Of elements that are `HALF` apart sum and difference, in one vector: what is taken off is added with the other sign.
#[inline(always)]
fn neighbours<const HALF: usize>(x: &mut Lanes) {
    let mut out = [0f32; 8];
    for i in 0..8 {
        out[i] = x[i ^ HALF] + if i & HALF == 0 { x[i] } else { -x[i] };
    }
    *x = out;
}

/// Blocks of 32: `d = max|x| / 127`, `q = round(x / d)` (ties to even).
#[inline(always)]
pub fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
    const ROUND: f32 = 12_582_912.0;
    let (blocks, _) = x.as_chunks::<BLOCK>();
    let (q_blocks, _) = q.as_chunks_mut::<BLOCK>();
    for (b, (x, q)) in blocks.iter().zip(q_blocks).enumerate() {
        let mut lanes = [0f32; 8];
        for i in 0..BLOCK {
            let magnitude = x[i].abs();
            lanes[i % 8] = if magnitude > lanes[i % 8] { magnitude } else { lanes[i % 8] };
        }
        let max = lanes.iter().fold(0f32, |a, &b| if b > a { b } else { a });
        let scale = max / 127.0;
        // Below the smallest normal number 1/scale overflows: such a block is nought.
        let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
        let mut rounded = [0i32; BLOCK];
        for i in 0..BLOCK {
            rounded[i] = (x[i].mul_add(inverse, ROUND)).to_bits() as i32 - ROUND.to_bits() as i32;
        }
        let mut total = 0i32;
        for i in 0..BLOCK {
            q[i] = rounded[i] as i8;
            total = total.wrapping_add(rounded[i]); // of NaN anything
        }
        (d[b], sum[b], s[b]) = (scale, total, scale * total as f32);
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kernels/spec/arithmetic.rs"]
mod tests;
