//! What a lone token times four rows of a type of few bits is made of, for sets with the dot product and without (dot.rs, neon.rs).
//!
//! Registers are named in the text, for loads of three and four vectors want neighbours: `v0` to `v7` for sums, activations and
//! what is short-lived, weights from `v8` on, constants and what lasts longer above them.

use std::arch::aarch64::*;

use crate::kernels::BLOCK;

/// Rows that are multiplied at once.
pub const FOUR: usize = 4;

/// Where a product has got to.
pub struct At {
    pub rows: [*const u8; FOUR],
    /// The token, and what `Lone` says of each type that it begins sums with; the scales of the token.
    pub token: *const i8,
    pub start: *const i32,
    pub d: *const f32,
    /// Where the next four rows lie, for sets that fetch them ahead.
    pub next: *const u8,
    /// The sums in floats, in lanes of rows.
    pub acc: float32x4_t,
}

/// The products of a set: `acc = fma(d * d_a, isum, acc)` for each 32 columns of a block of the file. What they begin sums with they
/// put down beforehand, once for all rows: the sums of the activations, by which the products come out too large since elements
/// count as `q - 1` and are multiplied as `q`.
pub trait Lone {
    /// `start` of TQ2_0, from the sums of the token's blocks; how many it takes of each.
    const TQ2_0: usize;
    fn prepare_tq2_0(sum: &[i32], start: &mut [i32]);

    /// `start` of Q2_0: activations in the order of bit pairs, scales and sums; how many of 32 bits it takes for 64 columns.
    const Q2_0: usize;
    fn prepare_q2_0(token: Token, start: &mut [i32]);

    /// # Safety
    /// A block of the file at each of `rows`, 256 columns at `token`, eight times what was prepared at `start`, eight scales at `d`,
    /// and the pointers move behind them; the CPU features of the set.
    unsafe fn tq2_0(at: &mut At);

    /// # Safety
    /// As `tq2_0`; at `start` are the sums of the token's blocks.
    unsafe fn tq1_0(at: &mut At);

    /// # Safety
    /// A block of the file at each of `rows`, and what was prepared for its 64 columns at `start`; all else as `tq2_0`.
    unsafe fn q2_0(at: &mut At);
}

/// A token, by blocks.
#[derive(Clone, Copy)]
pub struct Token<'a> {
    pub q: &'a [i8],
    pub d: &'a [f32],
    pub sum: &'a [i32],
}

impl Token<'_> {
    /// Its activations, scales and sums for 64 columns at a time.
    #[inline(always)]
    pub fn by_64(&self) -> impl Iterator<Item = (&[i8; 2 * BLOCK], &[f32; 2], &[i32; 2])> {
        let two = self.d.as_chunks().0.iter().zip(self.sum.as_chunks().0);
        self.q.as_chunks().0.iter().zip(two).map(|(q, (d, sum))| (q, d, sum))
    }
}

/// 64 columns in the order of bit pairs: first the lowest pair of sixteen bytes, then the next.
#[inline(always)]
pub fn by_pairs(q: &[i8; 2 * BLOCK], to: &mut [i32; 16]) {
    // SAFETY: 64 bytes are read, and written.
    unsafe {
        let int8x16x4_t(a, b, c, d) = vld4q_s8(q.as_ptr());
        for (x, to) in [a, b, c, d].into_iter().zip(to.as_chunks_mut::<4>().0) {
            vst1q_s32(to.as_mut_ptr(), vreinterpretq_s32_s8(x));
        }
    }
}

/// What TQ2_0's sums of four blocks begin with: bit pairs are multiplied where they stand in their bytes, the highest at their place.
#[inline(always)]
pub fn raised(sum: &[i32; 4]) -> int32x4_t {
    const UP: [i32; 4] = [0, 2, 4, 0];
    // SAFETY: arrays of four.
    unsafe { vnegq_s32(vshlq_s32(vld1q_s32(sum.as_ptr()), vld1q_s32(UP.as_ptr()))) }
}

/// Text: the f16 scales of four rows into `$d`.
macro_rules! scales {
    ($d:literal) => {
        concat!(
            "ldr h",
            $d,
            ", [{p0}], #2\n",
            "ld1 {{v",
            $d,
            ".h}}[1], [{p1}], #2\n",
            "ld1 {{v",
            $d,
            ".h}}[2], [{p2}], #2\n",
            "ld1 {{v",
            $d,
            ".h}}[3], [{p3}], #2\n",
            "fcvtl v",
            $d,
            ".4s, v",
            $d,
            ".4h\n",
        )
    };
}
pub(super) use scales;

/// Text: bit pairs `$k` of `$w` into `$t`, where they stand; the highest, which would be signed, at their place. Masks are in `v24`
/// to `v26`.
macro_rules! pairs {
    (0, $t:literal, $w:literal) => {
        concat!("and v", $t, ".16b, v", $w, ".16b, v24.16b\n")
    };
    (1, $t:literal, $w:literal) => {
        concat!("and v", $t, ".16b, v", $w, ".16b, v25.16b\n")
    };
    (2, $t:literal, $w:literal) => {
        concat!("and v", $t, ".16b, v", $w, ".16b, v26.16b\n")
    };
    (3, $t:literal, $w:literal) => {
        concat!("ushr v", $t, ".16b, v", $w, ".16b, #6\n")
    };
}
pub(super) use pairs;

/// Text: `acc = fma(d * d_a, x, acc)`, where `x` is made of integers that are as much too large as `pairs` left them. `v27` are the
/// scales of the rows, `v29` those of the token, `v28` is `acc`.
macro_rules! add_pairs {
    (0, $x:literal) => {
        add_pairs!($x, "", 0)
    };
    (1, $x:literal) => {
        add_pairs!($x, ", #2", 1)
    };
    (2, $x:literal) => {
        add_pairs!($x, ", #4", 2)
    };
    (3, $x:literal) => {
        add_pairs!($x, "", 3)
    };
    ($x:literal, $shift:literal, $lane:literal) => {
        concat!(
            "fmul v1.4s, v27.4s, v29.s[",
            $lane,
            "]\n",
            "scvtf v",
            $x,
            ".4s, v",
            $x,
            ".4s",
            $shift,
            "\n",
            "fmla v28.4s, v",
            $x,
            ".4s, v1.4s\n",
        )
    };
}
pub(super) use add_pairs;

/// `asm!` of a block: `$text` with the pointers of `$at`, `acc` and the registers that all of them overwrite.
macro_rules! block {
    ($at:ident, [$($text:expr),* $(,)?], $($operands:tt)*) => {{
        let [p0, p1, p2, p3] = &mut $at.rows;
        asm!(
            $($text,)*
            p0 = inout(reg) *p0, p1 = inout(reg) *p1, p2 = inout(reg) *p2, p3 = inout(reg) *p3, inout("v28") $at.acc,
            $($operands)*
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _, out("v8") _,
            out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _, out("v16") _,
            out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v27") _, out("v29") _,
            options(readonly, nostack, preserves_flags),
        )
    }};
}
pub(super) use block;
