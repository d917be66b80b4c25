//! The set for every 64-bit ARM (Cortex-A53, A72; Raspberry Pi 3, 4, Zero 2 W), which has no dot product.
//!
//! `smull`, `smlal` and `smlal2` multiply eight pairs of int8 into 16-bit lanes. How many products a lane can take before it
//! must be widened depends on the type: nibbles a whole block, bytes two. Lanes of a row are added up four rows together.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{ByFour, Set, Sums, TILE_BLOCK, TOKENS, Tile, TokenBlocks, Walk, by_four};
use super::formats::{Format, Four, ROWS, Range8, next_32};
use super::scan::{self, Long};
use crate::kernels::{Acts, Asked, BLOCK, MatmulTask, Out, Table};

pub(crate) static TABLE: Table = super::table(matmul, scan);
super::stamp_arm!("neon", Neon, super::few::neon::Neon);

/// # Safety
/// The task's elements of `out` belong to the caller.
#[target_feature(enable = "neon")]
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe { super::matmul::<Neon>(task) }
}

/// # Safety
/// What `Kernels::scan` asserts.
#[target_feature(enable = "neon")]
unsafe fn scan(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { scan::scan::<Long>(tile, wanted, asked, stride, out) }
}

/// Whether `n` products of a type's elements and activations fit into 16 bits.
const fn fits<F: Range8>(n: i32) -> bool {
    n * F::LARGEST * 127 <= i16::MAX as i32
}

/// Text of a dot product: one instruction for each of four rows, products of their elements `w` with activations `a`.
macro_rules! products {
    ($op:literal, $t:literal, $w:literal, $lanes:literal, $a:literal) => {
        products!($op, $t, $w, $lanes, $a, 0, 1, 2, 3)
    };
    ($op:literal, $t:literal, $w:literal, $lanes:literal, $a:literal, $($r:literal),*) => {
        concat!($($op, " {", $t, $r, ":v}.8h, {", $w, $r, ":v}.", $lanes, ", {", $a, ":v}.", $lanes, "\n"),*)
    };
}

/// Text of a dot product: 16-bit sums of each of four rows, widened into 32-bit ones or added to them.
macro_rules! widen {
    ($op:literal, $t:literal, $u:literal) => {
        widen!($op, $t, $u, 0, 1, 2, 3)
    };
    ($op:literal, $t:literal, $u:literal, $($r:literal),*) => {
        concat!($($op, " {", $t, $r, ":v}.4s, {", $u, $r, ":v}.8h\n"),*)
    };
}

/// Text of a dot product: neighbouring lanes of four rows added up twice; what is left of row `r` are lane `r` and, where
/// lanes are of 16 bits, lane `r + 4`.
macro_rules! add_up {
    ($t:literal, $lanes:literal) => {
        concat!(add_up!($t, $lanes, 0, 1), add_up!($t, $lanes, 2, 3), add_up!($t, $lanes, 0, 2),)
    };
    ($t:literal, $lanes:literal, $x:literal, $y:literal) => {
        concat!("addp {", $t, $x, ":v}.", $lanes, ", {", $t, $x, ":v}.", $lanes, ", {", $t, $y, ":v}.", $lanes, "\n")
    };
}

/// `Σ w a` over a block of four rows, in lanes of rows:
///
///     nibbles: 4 products a lane; add pairs of lanes across rows twice (16 products); widen (32)
///     bytes:   2 products a lane; widen into 4 lanes (8 products); add pairs of lanes across rows twice (32)
///
/// Written out because compilers, left to order it, run out of registers; rows alternate, so that a core that executes in
/// order need not wait for the last product.
///
/// # Safety
/// None but those of NEON, which every 64-bit ARM has.
#[inline(always)]
unsafe fn dot4<F: Range8>(w: Four, a: [int8x16_t; 2]) -> int32x4_t {
    let first: int32x4_t;
    // SAFETY: registers only.
    unsafe {
        if fits::<F>(16) {
            asm!(
                products!("smull", "t", "l", "8b", "a0"),
                products!("smlal2", "t", "l", "16b", "a0"),
                products!("smlal", "t", "h", "8b", "a1"),
                products!("smlal2", "t", "h", "16b", "a1"),
                add_up!("t", "8h"),
                "saddlp {t0:v}.4s, {t0:v}.8h",
                l0 = in(vreg) w[0][0], l1 = in(vreg) w[1][0], l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
                h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
                a0 = in(vreg) a[0], a1 = in(vreg) a[1],
                t0 = out(vreg) first, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
                options(nomem, nostack, preserves_flags),
            );
        } else {
            const { assert!(fits::<F>(2)) };
            asm!(
                products!("smull", "t", "l", "8b", "a0"),
                products!("smlal2", "t", "l", "16b", "a0"),
                widen!("saddlp", "t", "t"),
                products!("smull", "u", "h", "8b", "a1"),
                products!("smlal2", "u", "h", "16b", "a1"),
                widen!("sadalp", "t", "u"),
                add_up!("t", "4s"),
                l0 = in(vreg) w[0][0], l1 = in(vreg) w[1][0], l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
                h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
                a0 = in(vreg) a[0], a1 = in(vreg) a[1],
                t0 = out(vreg) first, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
                u0 = out(vreg) _, u1 = out(vreg) _, u2 = out(vreg) _, u3 = out(vreg) _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
    first
}

/// `Σ w a` over 16 columns of four rows, in lanes of rows.
#[inline(always)]
fn half4<F: Range8>(w: [int8x16_t; 4], a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; NEON is part of every 64-bit ARM.
    unsafe {
        let [x, y, z, u] = w.map(|w| vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a));
        if fits::<F>(8) {
            return vpaddlq_s16(vpaddq_s16(vpaddq_s16(x, y), vpaddq_s16(z, u)));
        }
        let [x, y, z, u] = [x, y, z, u].map(|x| vpaddlq_s16(x));
        vpaddq_s32(vpaddq_s32(x, y), vpaddq_s32(z, u))
    }
}

/// `dot4` with two tokens, which move on by a block: what one waits for at its end the other fills.
///
/// # Safety
/// A block at both `a`.
#[inline(always)]
unsafe fn dot4x2<F: Range8>(w: Four, a: &mut [*const i8; 2]) -> [int32x4_t; 2] {
    let [first, second]: [int32x4_t; 2];
    // SAFETY: readable by the caller's promise.
    unsafe {
        if fits::<F>(16) {
            asm!(
                "ldp {a0:q}, {a1:q}, [{p0}], #32",
                "ldp {b0:q}, {b1:q}, [{p1}], #32",
                products!("smull", "t", "l", "8b", "a0"),
                products!("smull", "v", "l", "8b", "b0"),
                products!("smlal2", "t", "l", "16b", "a0"),
                products!("smlal2", "v", "l", "16b", "b0"),
                products!("smlal", "t", "h", "8b", "a1"),
                products!("smlal", "v", "h", "8b", "b1"),
                products!("smlal2", "t", "h", "16b", "a1"),
                products!("smlal2", "v", "h", "16b", "b1"),
                add_up!("t", "8h", 0, 1),
                add_up!("t", "8h", 2, 3),
                add_up!("v", "8h", 0, 1),
                add_up!("v", "8h", 2, 3),
                add_up!("t", "8h", 0, 2),
                add_up!("v", "8h", 0, 2),
                "saddlp {t0:v}.4s, {t0:v}.8h",
                "saddlp {v0:v}.4s, {v0:v}.8h",
                l0 = in(vreg) w[0][0], l1 = in(vreg) w[1][0], l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
                h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
                p0 = inout(reg) a[0], p1 = inout(reg) a[1],
                a0 = out(vreg) _, a1 = out(vreg) _, b0 = out(vreg) _, b1 = out(vreg) _,
                t0 = out(vreg) first, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
                v0 = out(vreg) second, v1 = out(vreg) _, v2 = out(vreg) _, v3 = out(vreg) _,
                options(readonly, nostack, preserves_flags),
            );
        } else {
            const { assert!(fits::<F>(2)) };
            asm!(
                "ldp {a0:q}, {a1:q}, [{p0}], #32",
                "ldp {b0:q}, {b1:q}, [{p1}], #32",
                products!("smull", "t", "l", "8b", "a0"),
                products!("smull", "v", "l", "8b", "b0"),
                products!("smlal2", "t", "l", "16b", "a0"),
                products!("smlal2", "v", "l", "16b", "b0"),
                widen!("saddlp", "t", "t"),
                widen!("saddlp", "v", "v"),
                products!("smull", "u", "h", "8b", "a1"),
                products!("smlal2", "u", "h", "16b", "a1"),
                widen!("sadalp", "t", "u"),
                products!("smull", "u", "h", "8b", "b1"),
                products!("smlal2", "u", "h", "16b", "b1"),
                widen!("sadalp", "v", "u"),
                add_up!("t", "4s", 0, 1),
                add_up!("t", "4s", 2, 3),
                add_up!("v", "4s", 0, 1),
                add_up!("v", "4s", 2, 3),
                add_up!("t", "4s", 0, 2),
                add_up!("v", "4s", 0, 2),
                l0 = in(vreg) w[0][0], l1 = in(vreg) w[1][0], l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
                h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
                p0 = inout(reg) a[0], p1 = inout(reg) a[1],
                a0 = out(vreg) _, a1 = out(vreg) _, b0 = out(vreg) _, b1 = out(vreg) _,
                t0 = out(vreg) first, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
                v0 = out(vreg) second, v1 = out(vreg) _, v2 = out(vreg) _, v3 = out(vreg) _,
                u0 = out(vreg) _, u1 = out(vreg) _, u2 = out(vreg) _, u3 = out(vreg) _,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
    [first, second]
}

struct Neon;
impl Set for Neon {
    const PREFETCH: bool = true;
    const RAISES: bool = false;
    type Running = ();

    #[inline(always)]
    unsafe fn start() {}

    #[inline(always)]
    unsafe fn step<F: Format, const LANE: i32>(at: &mut Walk, sums: &mut Sums<()>, x: &TokenBlocks) {
        // SAFETY: a block at each pointer.
        unsafe {
            let scales = F::scales(&mut at.rows);
            let a = next_32(&mut at.token);
            for g in 0..2 {
                let isum = dot4::<F>(F::elements(&mut at.rows, 4 * g), a);
                sums.add::<F, LANE>(g, isum, &scales, x);
            }
        }
    }

    /// Row after row.
    #[inline(always)]
    unsafe fn put(to: *mut u8, four: Four) {
        // SAFETY: four times 32 bytes.
        unsafe {
            for (r, q) in four.iter().enumerate() {
                vst1q_s8(to.add(r * BLOCK).cast(), q[0]);
                vst1q_s8(to.add(r * BLOCK + 16).cast(), q[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn half_sums<F: Range8, const T: usize>(w: *const u8, a: [*const i8; T]) -> [[int32x4_t; 2]; T] {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            for half in 0..2 {
                let w: [int8x16_t; 4] = std::array::from_fn(|r| vld1q_s8(w.add(r * BLOCK + 16 * half).cast()));
                for t in 0..T {
                    sums[t][half] = half4::<F>(w, vld1q_s8(a[t].add(16 * half)));
                }
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn four_sums<F: Range8>(_: &mut (), w: Four, a: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: passed on.
        unsafe { dot4::<F>(w, a) }
    }

    #[inline(always)]
    unsafe fn four_half_sums<F: Range8>(w: Four, a: [int8x16_t; 2]) -> [int32x4_t; 2] {
        [half4::<F>(w.map(|w| w[0]), a[0]), half4::<F>(w.map(|w| w[1]), a[1])]
    }

    #[inline(always)]
    unsafe fn batch<F: Range8>(tile: Tile, acts: &Acts, out: Out, row: usize) {
        // SAFETY: passed on.
        unsafe { by_four::<F, Self>(tile, acts, out, row) }
    }
}

impl ByFour for Neon {
    ///     for four rows, for each block: the block of all four rows in registers, two tokens past it at a time
    #[inline(always)]
    unsafe fn product<F: Range8>(
        tile: *const u8,
        a: [*const i8; TOKENS],
        d: [*const f32; TOKENS],
        n_blocks: usize,
    ) -> [[float32x4_t; 2]; TOKENS] {
        // SAFETY: `n_blocks` blocks at each pointer.
        unsafe {
            let mut out = [[vdupq_n_f32(0.0); 2]; TOKENS];
            for g in 0..2 {
                let (mut tile, mut a) = (tile, a);
                let mut acc = [vdupq_n_f32(0.0); TOKENS];
                for b in 0..n_blocks {
                    let w = std::array::from_fn(|r| {
                        let at = tile.add((g * 4 + r) * BLOCK).cast();
                        [vld1q_s8(at), vld1q_s8(at.add(16))]
                    });
                    let d_w = vld1q_f32(tile.add(ROWS * BLOCK + g * 16).cast());
                    let mut isum = [vdupq_n_s32(0); TOKENS];
                    for (a, isum) in a.as_chunks_mut::<2>().0.iter_mut().zip(isum.as_chunks_mut::<2>().0) {
                        *isum = dot4x2::<F>(w, a);
                    }
                    for t in 0..TOKENS {
                        acc[t] = vfmaq_f32(acc[t], vmulq_n_f32(d_w, *d[t].add(b)), vcvtq_f32_s32(isum[t]));
                    }
                    tile = tile.add(TILE_BLOCK);
                }
                for t in 0..TOKENS {
                    out[t][g] = acc[t];
                }
            }
            out
        }
    }
}
