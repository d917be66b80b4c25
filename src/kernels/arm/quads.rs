//! Batches on ARM with the dot product extension: activations interleaved by four tokens, and the products of a tile with them.
//!
//! Instructions are what a product of a batch costs: of 154 for four rows by twelve tokens by 32 columns, 96 multiply. So loads
//! bring four vectors at once, and sums of as many tokens as the registers hold run past each load of weights.
//!
//! ```text
//! for each group of three quads (the last may have one or two), each block of 32 columns:
//!     for both halves of the columns, each quad:
//!         columns 0..4 of token 0, of token 1, of token 2, of token 3;  columns 4..8 likewise, 8..12, 12..16
//!     the scale of each token, f32
//! ```
//!
//! Behind the last token come copies of it until its quad is full.

use std::arch::aarch64::*;
use std::arch::asm;

use super::blocks::{TILE_BLOCK, Tile, minimums};
use super::float::splat;
use super::formats::{ROWS, Range8};
use crate::kernels::{Acts, BLOCK, Out};

/// Tokens that are interleaved.
const QUAD: usize = 4;
/// Quads that are multiplied together.
const GROUP: usize = 3;
/// Bytes of a block of a quad.
const QUAD_BLOCK: usize = QUAD * (BLOCK + size_of::<f32>());

/// Bytes for `n_tok` tokens.
pub fn len(n_tok: usize, n_cols: usize) -> usize {
    n_tok.div_ceil(QUAD) * n_cols / BLOCK * QUAD_BLOCK
}

/// Bytes of a whole group.
pub fn group_len(n_cols: usize) -> usize {
    len(GROUP * QUAD, n_cols)
}

/// Interleaves the tokens of one group: `q` = `[n_tok][n_cols]`, `d` = `[n_tok][n_cols / 32]`, of the whole batch.
pub fn interleave(group: usize, n_cols: usize, q: &[i8], d: &[f32], out: &mut [i8]) {
    let (n_blocks, n_tok) = (n_cols / BLOCK, q.len() / n_cols);
    let n_quads = out.len() / (n_blocks * QUAD_BLOCK);
    assert!(n_quads * n_blocks * QUAD_BLOCK == out.len() && d.len() == n_tok * n_blocks);
    for quad in 0..n_quads {
        let first = (group * GROUP + quad) * QUAD;
        let at: [usize; QUAD] = std::array::from_fn(|t| (first + t).min(n_tok - 1) * n_blocks);
        let mut to = out.as_mut_ptr();
        for b in 0..n_blocks {
            // SAFETY: block `b` of four tokens, and of the group, whose lengths were asserted.
            unsafe {
                for half in 0..2 {
                    let [x, y, z, u] = at.map(|at| vld1q_s32(q.as_ptr().add((at + b) * BLOCK + 16 * half).cast()));
                    vst4q_s32(to.add((half * n_quads + quad) * 64).cast(), int32x4x4_t(x, y, z, u));
                }
                let scales: *mut [f32; QUAD] = to.add((2 * 64 * n_quads) + 16 * quad).cast();
                scales.write_unaligned(at.map(|at| *d.as_ptr().add(at + b)));
                to = to.add(n_quads * QUAD_BLOCK);
            }
        }
    }
}

/// Text of a block: sums of quad `q` are cleared.
macro_rules! clear {
    ($q:literal) => { clear!($q, 0, 1, 2, 3) };
    ($q:literal, $($t:literal),*) => { concat!($("movi {i", $q, $t, ":v}.4s, #0\n"),*) };
}

/// Text of a block: the next 16 columns of quad `q` times those of four rows, in `v0` to `v3`. A core that executes in order has
/// `meanwhile` to do while it waits for the tokens.
macro_rules! columns {
    ($q:literal $(, $meanwhile:ident)?) => {
        concat!(
            "ld1 {{v4.16b-v7.16b}}, [{a}], #64\n",
            $($meanwhile!($q),)?
            columns!($q, 0, 4; 0, 1, 2, 3),
            columns!($q, 1, 5; 0, 1, 2, 3),
            columns!($q, 2, 6; 0, 1, 2, 3),
            columns!($q, 3, 7; 0, 1, 2, 3)
        )
    };
    ($q:literal, $w:literal, $a:literal; $($t:literal),*) => {
        concat!($("sdot {i", $q, $t, ":v}.4s, v", $w, ".16b, v", $a, ".4b[", $t, "]\n"),*)
    };
}

/// Text of a block: sums of quad `q` become f32.
macro_rules! convert {
    ($q:literal) => { convert!($q, 0, 1, 2, 3) };
    ($q:literal, $($t:literal),*) => { concat!($("scvtf {i", $q, $t, ":v}.4s, {i", $q, $t, ":v}.4s\n"),*) };
}

/// The same where the tile is raised: by a sixteenth.
macro_rules! convert_raised {
    ($q:literal) => { convert_raised!($q, 0, 1, 2, 3) };
    ($q:literal, $($t:literal),*) => { concat!($("scvtf {i", $q, $t, ":v}.4s, {i", $q, $t, ":v}.4s, #4\n"),*) };
}

/// Text of a block: `acc = fma(d_w * d_a, isum, acc)` of a quad, the scales of the rows in `v0`, of the tokens in `v$d`.
macro_rules! scale {
    ($q:literal, $d:literal) => {
        concat!(scale!(mul $d, 0 1, 1 2, 2 3, 3 7), scale!(add $q, 0 1, 1 2, 2 3, 3 7))
    };
    (mul $d:literal, $($t:literal $x:literal),*) => {
        concat!($("fmul v", $x, ".4s, v0.4s, v", $d, ".s[", $t, "]\n"),*)
    };
    (add $q:literal, $($t:literal $x:literal),*) => {
        concat!($("fmla {f", $q, $t, ":v}.4s, {i", $q, $t, ":v}.4s, v", $x, ".4s\n"),*)
    };
}

/// Declares the product of four rows of a tile with some quads: `acc = fma(d_w * d_a, Σ q_w q_a, acc)` over all blocks, in lanes of
/// rows. `tile` is at the elements of these rows; `scales` says where their scales are, seen from the same place of the next block.
///
///     for each half of the columns: four vectors of weights; for each quad: four vectors of tokens, 16 `sdot`
macro_rules! product {
    ($name:ident, $convert:ident, $tokens:literal, $load_scales:literal, [$($q:literal $d:literal),*], $($i:ident $f:ident),*) => {
        /// # Safety
        /// `n_blocks` blocks at both pointers; the CPU has the dot product extension.
        #[inline(always)]
        unsafe fn $name(mut tile: *const u8, mut a: *const i8, scales: isize, n_blocks: usize) -> [float32x4_t; $tokens] {
            /// # Safety
            /// A block at both pointers, which move to the next; the CPU has the dot product extension.
            #[inline(always)]
            unsafe fn block(tile: &mut *const u8, a: &mut *const i8, scales: isize, acc: &mut [float32x4_t; $tokens]) {
                let [$($f),*] = acc;
                // SAFETY: by the caller's promise.
                unsafe {
                    asm!(
                        "ld1 {{v0.16b-v3.16b}}, [{tile}], #64",
                        $(columns!($q, clear),)*
                        "ld1 {{v0.16b-v3.16b}}, [{tile}], {next}",
                        $(columns!($q),)*
                        "ldr q0, [{tile}, {scales}]",
                        $load_scales,
                        $($convert!($q),)*
                        $(scale!($q, $d),)*
                        tile = inout(reg) *tile, a = inout(reg) *a, next = in(reg) TILE_BLOCK - 64, scales = in(reg) scales,
                        $($i = out(vreg) _, $f = inout(vreg) *$f,)*
                        out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                        options(readonly, nostack, preserves_flags),
                    );
                }
            }
            let mut acc = [splat(0.0); $tokens];
            // SAFETY: passed on.
            unsafe {
                for _ in 0..n_blocks / 2 {
                    block(&mut tile, &mut a, scales, &mut acc);
                    block(&mut tile, &mut a, scales, &mut acc);
                }
                if n_blocks % 2 != 0 {
                    block(&mut tile, &mut a, scales, &mut acc);
                }
            }
            acc
        }
    };
}

/// Declares the products of one, two and three quads.
macro_rules! products {
    ($convert:ident: $one:ident, $two:ident, $three:ident) => {
        product!($one, $convert, 4, "ld1 {{v4.4s}}, [{a}], #16", [0 4], i00 f00, i01 f01, i02 f02, i03 f03);
        product!(
            $two, $convert, 8, "ld1 {{v4.4s-v5.4s}}, [{a}], #32", [0 4, 1 5],
            i00 f00, i01 f01, i02 f02, i03 f03, i10 f10, i11 f11, i12 f12, i13 f13
        );
        product!(
            $three, $convert, 12, "ld1 {{v4.4s-v6.4s}}, [{a}], #48", [0 4, 1 5, 2 6],
            i00 f00, i01 f01, i02 f02, i03 f03, i10 f10, i11 f11, i12 f12, i13 f13, i20 f20, i21 f21, i22 f22, i23 f23
        );
    };
}

products!(convert: one_quad, two_quads, three_quads);
products!(convert_raised: one_raised, two_raised, three_raised);

/// See `Set::batch`.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn batch<F: Range8>(tile: Tile, acts: &Acts, out: Out, row: usize) {
    // SAFETY: passed on.
    unsafe {
        match (F::HAS_MIN, tile.raised) {
            (true, _) => groups::<true, false>(tile, acts, out, row),
            (_, true) => groups::<false, true>(tile, acts, out, row),
            _ => groups::<false, false>(tile, acts, out, row),
        }
    }
}

/// Not inlined, for it is the same for many types.
///
/// # Safety
/// As `batch`.
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn groups<const HAS_MIN: bool, const RAISED: bool>(tile: Tile, acts: &Acts, out: Out, row: usize) {
    assert!(len(acts.n_tok, acts.n_cols) <= acts.quads.len() && !(HAS_MIN && tile.raised));
    let mut a = acts.quads.as_ptr();
    for first in (0..acts.n_tok).step_by(GROUP * QUAD) {
        let (from, to) = ((tile, a), (out, row));
        // SAFETY: the group that begins with this token, inside the buffer by the assertion; passed on.
        unsafe {
            match ((acts.n_tok - first).div_ceil(QUAD), RAISED) {
                (1, false) => group::<HAS_MIN, 4>(acts, first, from, to, one_quad),
                (2, false) => group::<HAS_MIN, 8>(acts, first, from, to, two_quads),
                (_, false) => group::<HAS_MIN, 12>(acts, first, from, to, three_quads),
                (1, true) => group::<HAS_MIN, 4>(acts, first, from, to, one_raised),
                (2, true) => group::<HAS_MIN, 8>(acts, first, from, to, two_raised),
                (_, true) => group::<HAS_MIN, 12>(acts, first, from, to, three_raised),
            }
        }
        a = a.wrapping_add(group_len(acts.n_cols));
    }
}

/// Eight rows times the `T` tokens of the group at `a`, which begins with token `first`.
///
/// # Safety
/// As `batch`.
#[inline(always)]
unsafe fn group<const HAS_MIN: bool, const T: usize>(
    acts: &Acts,
    first: usize,
    (tile, a): (Tile, *const i8),
    (out, row): (Out, usize),
    product: unsafe fn(*const u8, *const i8, isize, usize) -> [float32x4_t; T],
) {
    let n_blocks = acts.n_cols / BLOCK;
    for g in 0..2 {
        let (elements, scales) = (g * 4 * BLOCK, ROWS * BLOCK + 16 * g);
        // SAFETY: the tile and the group have `n_blocks` blocks; tokens of the batch.
        unsafe {
            let mut acc = product(tile.blocks.add(elements), a, (scales - elements) as isize - TILE_BLOCK as isize, n_blocks);
            if HAS_MIN {
                let s = std::array::from_fn(|t| acts.s.as_ptr().add((first + t).min(acts.n_tok - 1) * n_blocks));
                let acc_m = minimums::<1, T>(tile.minimums.add(4 * g), s, n_blocks);
                for t in 0..T {
                    acc[t] = vaddq_f32(acc[t], acc_m[t][0]);
                }
            }
            let to = out.at(first, row + 4 * g);
            if first + T <= acts.n_tok {
                for t in 0..T {
                    vst1q_f32(to.add(t * out.stride), acc[t]);
                }
            } else {
                for t in 0..acts.n_tok - first {
                    vst1q_f32(to.add(t * out.stride), acc[t]);
                }
            }
        }
    }
}
