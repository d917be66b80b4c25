//! The set for ARM with the dot product extension (Cortex-A55 and A76 onwards; Raspberry Pi 5).
//!
//! `sdot` multiplies 16 pairs of int8 and adds four of them into each of four 32-bit lanes. On rows as they lie in the file
//! the four lanes belong to one row and are added up afterwards, eight rows together; the tile is interleaved so that they
//! are four rows. The intrinsic is not stable yet, hence the `asm!`.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{Set, Sums, Tile, TokenBlocks, Walk, sdot_lane};
use super::formats::{Format, Four, Layout, ROWS, Range8, next_32};
use super::scan::{self, Dot};
use super::{packed, quads};
use crate::kernels::{Acts, Asked, MatmulTask, Out, Table};

pub(crate) static TABLE: Table = super::table(matmul, scan);
super::stamp_arm!("neon,dotprod", Dotprod, super::few::dot::Dot);

/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[target_feature(enable = "neon,dotprod")]
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.packed {
            true => packed::matmul(task),
            false => super::matmul::<Dotprod>(task),
        }
    }
}

/// # Safety
/// The CPU features of the set; what `Kernels::scan` asserts.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn scan(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { scan::scan::<Dot>(tile, wanted, asked, stride, out) }
}

/// Text of `step`: two bytes of each of four rows into lanes of `s`, of the other four into `r`. They take turns, because
/// each read waits for the last one into the same vector.
macro_rules! gather_scales {
    () => {
        "ldr {s:h}, [{p0}], #2
        ldr {r:h}, [{p4}], #2
        ld1 {{{s:v}.h}}[1], [{p1}], #2
        ld1 {{{r:v}.h}}[1], [{p5}], #2
        ld1 {{{s:v}.h}}[2], [{p2}], #2
        ld1 {{{r:v}.h}}[2], [{p6}], #2
        ld1 {{{s:v}.h}}[3], [{p3}], #2
        ld1 {{{r:v}.h}}[3], [{p7}], #2"
    };
}

/// Text of `step`: scale and minimum of each row into `s` and `m`.
macro_rules! gather_scales_and_minimums {
    () => {
        "ldr {l0:s}, [{p0}], #4
        ldr {l1:s}, [{p4}], #4
        ld1 {{{l0:v}.s}}[1], [{p1}], #4
        ld1 {{{l1:v}.s}}[1], [{p5}], #4
        ld1 {{{l0:v}.s}}[2], [{p2}], #4
        ld1 {{{l1:v}.s}}[2], [{p6}], #4
        ld1 {{{l0:v}.s}}[3], [{p3}], #4
        ld1 {{{l1:v}.s}}[3], [{p7}], #4
        uzp1 {s:v}.8h, {l0:v}.8h, {l1:v}.8h
        uzp2 {m:v}.8h, {l0:v}.8h, {l1:v}.8h"
    };
}

/// Text of `step`: 16 bytes of nibbles from each of four rows, at `p`, into `l` and `h` of rows `r`.
macro_rules! load_nibbles {
    ($($r:literal $p:literal),*) => {
        concat!(
            $("ldr {h", $r, ":q}, [{", $p, "}], #16\n",)*
            $("and {l", $r, ":v}.16b, {h", $r, ":v}.16b, {low:v}.16b\n",)*
            $("ushr {h", $r, ":v}.16b, {h", $r, ":v}.16b, #4\n",)*
        )
    };
}

/// Text of `step`: 32 bytes of the same.
macro_rules! load_bytes {
    ($($r:literal $p:literal),*) => { concat!($("ldp {l", $r, ":q}, {h", $r, ":q}, [{", $p, "}], #32\n",)*) };
}

/// Text of `step`: adds the products to four partial sums `s` for each of four rows; the totals of the rows.
macro_rules! dot4 {
    ($s0:literal, $s1:literal, $s2:literal, $s3:literal, $total:literal) => {
        concat!(
            dot4!(products 0 $s0, 1 $s1, 2 $s2, 3 $s3),
            dot4!(add "l0", $s0, $s1),
            dot4!(add "l1", $s2, $s3),
            dot4!(add $total, "l0", "l1")
        )
    };
    (products $($r:literal $s:literal),*) => {
        concat!(
            $("sdot {", $s, ":v}.4s, {l", $r, ":v}.16b, {a0:v}.16b\n",)*
            $("sdot {", $s, ":v}.4s, {h", $r, ":v}.16b, {a1:v}.16b\n",)*
        )
    };
    (add $to:literal, $x:literal, $y:literal) => { concat!("addp {", $to, ":v}.4s, {", $x, ":v}.4s, {", $y, ":v}.4s\n") };
}

/// One block of eight rows from the file's layout. Written out because compilers, left to order it, run out of registers.
macro_rules! step {
    ($at:ident, $sums:ident, $x:ident, $gather:ident, $load:ident, [$($special:literal),*], $($operands:tt)*) => {
        let (partial, before) = &mut $sums.running;
        let [s0, s1, s2, s3, s4, s5, s6, s7] = partial;
        let [p0, p1, p2, p3, p4, p5, p6, p7] = &mut $at.rows;
        asm!(
            $gather!(),
            "ldp {a0:q}, {a1:q}, [{token}], #32",
            $load!(0 "p0", 1 "p1", 2 "p2", 3 "p3"),
            dot4!("s0", "s1", "s2", "s3", "t0"),
            $load!(0 "p4", 1 "p5", 2 "p6", 3 "p7"),
            dot4!("s4", "s5", "s6", "s7", "t1"),
            "sub {h0:v}.4s, {t0:v}.4s, {b0:v}.4s",
            "sub {h1:v}.4s, {t1:v}.4s, {b1:v}.4s",
            "fcvtl {l0:v}.4s, {s:v}.4h",
            $($special,)*
            "fmul {l0:v}.4s, {l0:v}.4s, {d:v}.s[{lane}]",
            "fmul {l1:v}.4s, {l1:v}.4s, {d:v}.s[{lane}]",
            "scvtf {h0:v}.4s, {h0:v}.4s",
            "scvtf {h1:v}.4s, {h1:v}.4s",
            "fmla {f0:v}.4s, {h0:v}.4s, {l0:v}.4s",
            "fmla {f1:v}.4s, {h1:v}.4s, {l1:v}.4s",
            p0 = inout(reg) *p0, p1 = inout(reg) *p1, p2 = inout(reg) *p2, p3 = inout(reg) *p3,
            p4 = inout(reg) *p4, p5 = inout(reg) *p5, p6 = inout(reg) *p6, p7 = inout(reg) *p7,
            token = inout(reg) $at.token, a0 = out(vreg) _, a1 = out(vreg) _, s = out(vreg) _,
            l0 = out(vreg) _, l1 = out(vreg) _, l2 = out(vreg) _, l3 = out(vreg) _,
            h0 = out(vreg) _, h1 = out(vreg) _, h2 = out(vreg) _, h3 = out(vreg) _,
            s0 = inout(vreg) *s0, s1 = inout(vreg) *s1, s2 = inout(vreg) *s2, s3 = inout(vreg) *s3,
            s4 = inout(vreg) *s4, s5 = inout(vreg) *s5, s6 = inout(vreg) *s6, s7 = inout(vreg) *s7,
            b0 = in(vreg) before[0], b1 = in(vreg) before[1], t0 = out(vreg) before[0], t1 = out(vreg) before[1],
            f0 = inout(vreg) $sums.acc[0], f1 = inout(vreg) $sums.acc[1],
            d = in(vreg) $x.d, lane = const LANE, $($operands)*
            options(readonly, nostack, preserves_flags),
        )
    };
}

/// Adds the products of a block to four partial sums for each of four rows; gives the total of each row.
///
/// # Safety
/// The CPU has the dot product extension; `acc` has four.
#[inline(always)]
unsafe fn dot4(acc: &mut [int32x4_t], w: Four, a: [int8x16_t; 2]) -> int32x4_t {
    let [s0, s1, s2, s3] = acc else { unreachable!("four rows") };
    let total: int8x16_t;
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!(
            dot4!("s0", "s1", "s2", "s3", "l0"),
            s0 = inout(vreg) *s0, s1 = inout(vreg) *s1, s2 = inout(vreg) *s2, s3 = inout(vreg) *s3,
            l0 = inout(vreg) w[0][0] => total, l1 = inout(vreg) w[1][0] => _, l2 = in(vreg) w[2][0], l3 = in(vreg) w[3][0],
            h0 = in(vreg) w[0][1], h1 = in(vreg) w[1][1], h2 = in(vreg) w[2][1], h3 = in(vreg) w[3][1],
            a0 = in(vreg) a[0], a1 = in(vreg) a[1], options(nomem, nostack, preserves_flags),
        );
        vreinterpretq_s32_s8(total)
    }
}

/// `acc[i] += Σ_j w[4i + j] * a[4i + j]`
///
/// # Safety
/// The CPU has the dot product extension.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b", acc = inlateout(vreg) acc, w = in(vreg) w, a = in(vreg) a, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

pub struct Dotprod;
impl Set for Dotprod {
    /// Cores with this extension mostly run out of order and follow many streams by themselves.
    const PREFETCH: bool = false;
    const RAISES: bool = true;
    /// Four partial sums of each row over all blocks so far, and their sums up to the last block. They are never set to
    /// zero: the sum of a block is a difference of two totals, which is right even when these overflow.
    type Running = ([int32x4_t; ROWS], [int32x4_t; 2]);

    #[inline(always)]
    unsafe fn start() -> Self::Running {
        // SAFETY: registers only.
        unsafe { ([vdupq_n_s32(0); ROWS], [vdupq_n_s32(0); 2]) }
    }

    #[inline(always)]
    unsafe fn step<F: Format, const LANE: i32>(at: &mut Walk, sums: &mut Sums<Self::Running>, x: &TokenBlocks) {
        // SAFETY: a block at each pointer; the extension is there by the caller's promise.
        unsafe {
            match (F::LAYOUT, F::HAS_MIN) {
                (Layout::Nibbles, false) => {
                    step!(at, sums, x, gather_scales, load_nibbles, [
                        "fcvtl {l1:v}.4s, {r:v}.4h",
                        "mls {h0:v}.4s, {offset:v}.4s, {sum:v}.s[{lane}]",
                        "mls {h1:v}.4s, {offset:v}.4s, {sum:v}.s[{lane}]"
                    ], r = out(vreg) _, low = in(vreg) x.low_nibble, offset = in(vreg) x.offset, sum = in(vreg) x.sum,);
                }
                (Layout::Nibbles, true) => {
                    step!(at, sums, x, gather_scales_and_minimums, load_nibbles, [
                        "fcvtl2 {l1:v}.4s, {s:v}.8h",
                        "fcvtl {l2:v}.4s, {m:v}.4h",
                        "fcvtl2 {l3:v}.4s, {m:v}.8h",
                        "fmla {m0:v}.4s, {l2:v}.4s, {sa:v}.s[{lane}]",
                        "fmla {m1:v}.4s, {l3:v}.4s, {sa:v}.s[{lane}]"
                    ], low = in(vreg) x.low_nibble, sa = in(vreg) x.s, m = out(vreg) _,
                    m0 = inout(vreg) sums.acc_m[0], m1 = inout(vreg) sums.acc_m[1],);
                }
                (Layout::Bytes, _) => {
                    const { assert!(!matches!(F::LAYOUT, Layout::Bytes) || !F::HAS_MIN && F::OFFSET == 0) };
                    step!(at, sums, x, gather_scales, load_bytes, ["fcvtl {l1:v}.4s, {r:v}.4h"], r = out(vreg) _,);
                }
                (Layout::Other, _) => {
                    let scales = F::scales(&mut at.rows);
                    let a = next_32(&mut at.token);
                    for g in 0..2 {
                        let (partial, before) = &mut sums.running;
                        let total = dot4(&mut partial[4 * g..4 * g + 4], F::elements(&mut at.rows, 4 * g), a);
                        let isum = vsubq_s32(total, before[g]);
                        before[g] = total;
                        sums.add::<F, LANE>(g, isum, &scales, x);
                    }
                }
            }
        }
    }

    /// Four columns of row 0, of row 1, of row 2, of row 3; the next four columns; and so on.
    #[inline(always)]
    unsafe fn put(to: *mut u8, four: Four) {
        // SAFETY: 64 + 64 bytes.
        unsafe {
            for half in 0..2 {
                let [a, b, c, d] = four.map(|q| vreinterpretq_s32_s8(q[half]));
                vst4q_s32(to.add(half * 64).cast(), int32x4x4_t(a, b, c, d));
            }
        }
    }

    #[inline(always)]
    unsafe fn half_sums<F: Range8, const T: usize>(w: *const u8, a: [*const i8; T]) -> [[int32x4_t; 2]; T] {
        // SAFETY: by the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            for half in 0..2 {
                let a = a.map(|a| vld1q_s8(a.add(16 * half)));
                macro_rules! columns {
                    ($k:literal) => {
                        let w = vld1q_s8(w.add(64 * half + 16 * $k).cast());
                        for t in 0..T {
                            sums[t][half] = sdot_lane::<$k>(sums[t][half], w, a[t]);
                        }
                    };
                }
                columns!(0);
                columns!(1);
                columns!(2);
                columns!(3);
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn four_sums<F: Range8>((partial, before): &mut Self::Running, w: Four, a: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: the extension is there by the caller's promise.
        unsafe {
            let total = dot4(&mut partial[..4], w, a);
            let isum = vsubq_s32(total, before[0]);
            before[0] = total;
            isum
        }
    }

    #[inline(always)]
    unsafe fn four_half_sums<F: Range8>(w: Four, a: [int8x16_t; 2]) -> [int32x4_t; 2] {
        // SAFETY: the extension is there by the caller's promise. Loops, for what a closure holds may be compiled without it.
        unsafe {
            let mut sums = [vdupq_n_s32(0); 2];
            for half in 0..2 {
                let mut rows = [vdupq_n_s32(0); 4];
                for r in 0..4 {
                    rows[r] = sdot(rows[r], w[r][half], a[half]);
                }
                sums[half] = vpaddq_s32(vpaddq_s32(rows[0], rows[1]), vpaddq_s32(rows[2], rows[3]));
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn batch<F: Range8>(tile: Tile, acts: &Acts, out: Out, row: usize) {
        // SAFETY: passed on.
        unsafe { quads::batch::<F>(tile, acts, out, row) }
    }
}
