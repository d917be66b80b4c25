//! A lone token times a matrix of a type with grids: four rows at a time, half a block of the file at once.
//!
//! Signs are given to the activations and not to the magnitudes: of an activation and its negative, which stands beside it (`signed`),
//! a mask picks one by one instruction. Indices whose ninth and tenth bits stand apart are put together beforehand, for a block of all
//! four rows. What sets bring is in dot.rs and neon.rs, and the text of both in text.rs.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, tested};
use crate::gguf::quant::grids;
use crate::kernels::arm::blocks::{Set, rest};
use crate::kernels::arm::superblocks::{self, Type};
use crate::kernels::{Acts, BLOCK, MatmulTask};

/// Rows that are multiplied at once.
const FOUR: usize = 4;
/// Columns of half a block of the file, in blocks of the token.
const HALF: usize = 4;

/// Where a product has got to: half a block of the file.
pub struct At {
    /// A block of each row, behind its `d`.
    pub rows: [*const u8; FOUR],
    /// The indices of the block that were put down.
    pub index: *const u16,
    /// `BYTES`
    pub bytes: *const u8,
    /// What `signed` made of the token.
    pub token: *const i8,
    /// A byte for eight columns of each row.
    pub signs: [uint8x16_t; FOUR],
    /// The bit of each column in its byte.
    pub bit: uint8x16_t,
    /// As `Grid::half` gives them.
    pub scales: [uint8x16_t; 2],
    /// What scales are multiples of, for each row, and the scales of the token.
    pub d: float32x4_t,
    pub d_a: float32x4_t,
    /// The sums in floats, in lanes of rows.
    pub acc: float32x4_t,
}

/// The products of a set: `acc = fma(d * d_a, isum, acc)` of 32 columns of four rows.
pub trait Products {
    /// What they hand on from one to the next.
    type Running;
    fn start() -> Self::Running;

    /// # Safety
    /// Columns from `32 SUB` on of the block are in the half that `at` is at; as many activations are at its token, which moves behind
    /// them; the CPU features of the set.
    unsafe fn iq2_xxs<const SUB: usize>(at: &mut At, running: &mut Self::Running);

    /// # Safety
    /// As `iq2_xxs`.
    unsafe fn iq2_xs<const SUB: usize>(at: &mut At, running: &mut Self::Running);

    /// # Safety
    /// As `iq2_xxs`; the indices that were put down are those of the type's `indices`.
    unsafe fn iq2_s<const SUB: usize>(at: &mut At, running: &mut Self::Running);

    /// # Safety
    /// As `iq2_xxs`.
    unsafe fn iq3_xxs<const SUB: usize>(at: &mut At, running: &mut Self::Running);

    /// # Safety
    /// As `iq2_s`.
    unsafe fn iq3_s<const SUB: usize>(at: &mut At, running: &mut Self::Running);
}

/// A type with a grid.
pub trait Grid: Type {
    /// The bit of each of eight columns in their byte of signs.
    const BIT: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
    /// What scales are multiples of, in units of `d`.
    const FRACTION: f32;
    /// How many indices of a block of the file are put down.
    const PUT: usize = 0;

    /// Puts down those of a block of a row.
    ///
    /// # Safety
    /// The block behind its `d` is readable, as many elements are writable.
    #[inline(always)]
    unsafe fn indices(_p: *const u8, _to: *mut u16) {}

    /// The scales of both halves of a block, as `half` will want them.
    ///
    /// # Safety
    /// A block behind its `d` is readable at each pointer.
    #[inline(always)]
    unsafe fn both_scales(_p: [*const u8; FOUR]) -> [uint8x16_t; 2] {
        // SAFETY: registers only.
        unsafe { [vdupq_n_u8(0); 2] }
    }

    /// The signs of half a block: a byte for eight columns; and `2 * scale + 1` of 32 columns in each byte of the lane of a row, or of the
    /// first and of the last sixteen of them.
    ///
    /// # Safety
    /// A block behind its `d` is readable at each pointer; `scales` is of this half.
    unsafe fn half(p: [*const u8; FOUR], half: usize, scales: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]);

    /// The products of the type.
    ///
    /// # Safety
    /// As the function of `Products` that it is.
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running);
}

/// As `superblocks::quantised`, a lone token by `P`.
///
/// # Safety
/// As `super::matmul`; the CPU features of `P`.
#[inline(always)]
pub unsafe fn quantised<F: Grid, S: Set, P: Products>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.acts.n_tok {
            1 => one_token::<F, S, P>(task),
            _ => superblocks::quantised::<F, S>(task),
        }
    }
}

/// # Safety
/// As `quantised`.
#[inline(always)]
unsafe fn one_token<F: Grid, S: Set, P: Products>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % FOUR;
    assert!(whole * row_bytes <= task.w.data.len() && row_bytes == n_blocks / F::BLOCKS * F::BYTES && F::BLOCKS == 2 * HALF);
    assert!(acts.n_tok == 1 && n_blocks <= acts.d.len());
    let (token, indices) = task.tile.split_at_mut(2 * acts.n_cols);
    let token = signed(&acts.q[..acts.n_cols], token);
    // SAFETY: any bits are integers.
    let (_, indices, _) = unsafe { indices.align_to_mut::<u16>() };
    let indices = indices[..FOUR * F::PUT].as_mut_ptr();
    for row in (task.rows.start..whole).step_by(FOUR) {
        let rows = task.w.data.as_ptr().wrapping_add(row * row_bytes);
        // SAFETY: four rows from `row` on are inside the matrix, the token has as many blocks (asserted above); their elements of
        // `out` are the caller's.
        unsafe { vst1q_f32(task.out.at(0, row), four_rows::<F, S, P>(rows, row_bytes, &acts, token, indices)) };
    }
    // SAFETY: passed on.
    unsafe { rest(task, whole) }
}

/// Of each sixteen activations these, and then the same with the other sign.
#[inline(always)]
fn signed(q: &[i8], to: &mut [u8]) -> *const i8 {
    for (q, to) in q.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<{ 2 * BLOCK }>().0) {
        // SAFETY: 32 bytes are read and 64 written. No activation is -128.
        unsafe {
            let (x, y, to) = (vld1q_s8(q.as_ptr()), vld1q_s8(q[16..].as_ptr()), to.as_mut_ptr().cast());
            vst1q_s8_x4(to, int8x16x4_t(x, vnegq_s8(x), y, vnegq_s8(y)));
        }
    }
    to.as_ptr().cast()
}

/// Four rows times the token, in lanes of rows.
///
/// # Safety
/// Four rows of as many blocks as the token has, `row_bytes` apart, are readable; `signed` made `token` of it; indices of four rows are
/// writable; the CPU features of both sets.
#[inline(always)]
unsafe fn four_rows<F: Grid, S: Set, P: Products>(
    rows: *const u8,
    row_bytes: usize,
    acts: &Acts,
    mut token: *const i8,
    indices: *mut u16,
) -> float32x4_t {
    let mut p: [*const u8; FOUR] = std::array::from_fn(|r| rows.wrapping_add(r * row_bytes));
    let mut running = P::start();
    // SAFETY: registers, and an array of eight.
    let (bit, mut acc) = unsafe { (vcombine_u8(vld1_u8(F::BIT.as_ptr()), vld1_u8(F::BIT.as_ptr())), vdupq_n_f32(0.0)) };
    for first in (0..acts.n_cols / BLOCK).step_by(F::BLOCKS) {
        // SAFETY: a block of each row, and those of the token; a prefetch touches nothing.
        unsafe {
            if S::PREFETCH {
                prefetch::<F>(p, FOUR * row_bytes);
            }
            let (d, both) = (d::<F>(&mut p), F::both_scales(p));
            for r in 0..FOUR {
                F::indices(p[r], indices.add(r * F::PUT));
            }
            // Written out, so that places in a block are constants.
            macro_rules! half {
                ($half:literal: $($sub:literal)*) => {
                    let (signs, scales) = F::half(p, $half, both[$half]);
                    let d_a = vld1q_f32(acts.d.as_ptr().add(first + HALF * $half));
                    let mut at = At { rows: p, index: indices, bytes: BYTES.as_ptr().cast(), token, signs, bit, scales, d, d_a, acc };
                    $(F::columns::<P, $sub>(&mut at, &mut running);)*
                    (token, acc) = (at.token, at.acc);
                };
            }
            half!(0: 0 1 2 3);
            half!(1: 4 5 6 7);
        }
        p = p.map(|p| p.wrapping_add(F::BYTES - 2));
    }
    // SAFETY: registers only. A sum of -0 becomes 0, as in spec/weights.rs.
    unsafe { vaddq_f32(acc, vdupq_n_f32(0.0)) }
}

/// The scale of a block of each row, in units of the scales of columns. The pointers move behind it.
///
/// # Safety
/// Two bytes at each pointer are readable.
#[inline(always)]
unsafe fn d<F: Grid>(p: &mut [*const u8; FOUR]) -> float32x4_t {
    let d: float32x4_t;
    let [p0, p1, p2, p3] = p;
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "ldr {d:h}, [{p0}], #2",
            "ld1 {{{d:v}.h}}[1], [{p1}], #2",
            "ld1 {{{d:v}.h}}[2], [{p2}], #2",
            "ld1 {{{d:v}.h}}[3], [{p3}], #2",
            "fcvtl {d:v}.4s, {d:v}.4h",
            d = out(vreg) d, p0 = inout(reg) *p0, p1 = inout(reg) *p1, p2 = inout(reg) *p2, p3 = inout(reg) *p3,
            options(pure, readonly, nostack, preserves_flags),
        );
        if F::FRACTION == 1.0 { d } else { vmulq_n_f32(d, F::FRACTION) }
    }
}

/// Fetches what lies so far behind blocks of four rows; what the last few bytes of a block lie in comes with the next one.
#[inline(always)]
fn prefetch<F: Type>(p: [*const u8; FOUR], behind: usize) {
    for line in (0..F::BYTES - 8).step_by(64) {
        for p in p {
            // SAFETY: a prefetch reads nothing and does not fault.
            unsafe {
                asm!("prfm pldl1strm, [{p}, {at}]", p = in(reg) p, at = in(reg) behind + line, options(readonly, nostack, preserves_flags))
            };
        }
    }
}

/// Bytes `2 i` and `2 i + 1` of a row's signs, for sixteen columns each.
static BYTES: [[u8; 16]; 8] = {
    let mut bytes = [[0; 16]; 8];
    let mut i = 0;
    while i < 128 {
        bytes[i / 16][i % 16] = i as u8 / 8;
        i += 1;
    }
    bytes
};

/// The grid of IQ3_S, of which the second half is in front: an index whose ninth bit is set in all of its upper byte is below zero.
static TURNED: [u32; 512] = {
    let mut turned = [0; 512];
    let mut i = 0;
    while i < 512 {
        turned[i] = grids::IQ3_S[i ^ 256];
        i += 1;
    }
    turned
};

/// Where the first word of the grid is.
#[inline(always)]
pub fn iq3_s_grid() -> *const u32 {
    TURNED[256..].as_ptr()
}

/// `2 * scale + 1` of scales in the upper halves of bytes.
#[inline(always)]
fn odd(x: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only.
    unsafe { vshrq_n_u8::<3>(vorrq_u8(x, vdupq_n_u8(8))) }
}

/// Eight bytes of each row: the first four of all rows in lanes of rows, and the last.
///
/// # Safety
/// As many at each pointer are readable.
#[inline(always)]
unsafe fn gathered(p: [*const u8; FOUR]) -> [uint8x16_t; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let [a, b, c, d] = p.map(|p| vreinterpretq_u32_u8(vcombine_u8(vld1_u8(p), vdup_n_u8(0))));
        let (x, y) = (vreinterpretq_u64_u32(vzip1q_u32(a, b)), vreinterpretq_u64_u32(vzip1q_u32(c, d)));
        [vreinterpretq_u8_u64(vzip1q_u64(x, y)), vreinterpretq_u8_u64(vzip2q_u64(x, y))]
    }
}

/// Scales in nibbles, the low ones and the high ones.
#[inline(always)]
fn nibbles(x: uint8x16_t) -> [uint8x16_t; 2] {
    // SAFETY: registers only.
    [odd(unsafe { vshlq_n_u8::<4>(x) }), odd(x)]
}

/// Words of four times seven signs and, in the highest four bits, a scale, of 32 columns each: as `Grid::half`. The eighth sign makes the
/// number of set ones even (`grids::even_signs`): it is bit 7 of a product without carries with ones but for the lowest.
#[inline(always)]
fn sevens_and_scales(words: [uint32x4_t; FOUR]) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
    // SAFETY: registers only.
    unsafe {
        let high = |x, y| vreinterpretq_u8_u16(vuzp2q_u16(vreinterpretq_u16_u32(x), vreinterpretq_u16_u32(y)));
        let scales = odd(vuzp2q_u8(high(words[0], words[1]), high(words[2], words[3])));
        let signs = words.map(|x| {
            let x = vreinterpretq_u16_u32(vsliq_n_u32::<16>(x, vshrq_n_u32::<14>(x)));
            let x = vreinterpretq_u8_u16(vsliq_n_u16::<8>(x, vshrq_n_u16::<7>(x)));
            let even = vmulq_p8(vreinterpretq_p8_u8(x), vdupq_n_p8(0xfe));
            inserted(x, even, vdupq_n_u8(128))
        });
        (signs, [scales; 2])
    }
}

/// Bits of `y` where the mask is set, else of `x`. Left to the compiler, the mask is copied first.
#[inline(always)]
fn inserted(mut x: uint8x16_t, y: poly8x16_t, mask: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only.
    unsafe {
        asm!("bit {x:v}.16b, {y:v}.16b, {mask:v}.16b", x = inlateout(vreg) x, y = in(vreg) y, mask = in(vreg) mask, options(pure, nomem, nostack, preserves_flags))
    };
    x
}

/// Stores sixteen low bytes with their high ones.
///
/// # Safety
/// As many elements at `to` are writable.
#[inline(always)]
unsafe fn put(low: uint8x16_t, high: uint8x16_t, to: *mut u16) {
    // SAFETY: by the caller's promise.
    unsafe { vst1q_u8_x2(to.cast(), uint8x16x2_t(vzip1q_u8(low, high), vzip2q_u8(low, high))) }
}

impl Grid for Iq2Xxs {
    const FRACTION: f32 = 0.125;

    #[inline(always)]
    unsafe fn half(p: [*const u8; FOUR], half: usize, _: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
        // SAFETY: inside the block.
        unsafe { sevens_and_scales(p.map(|p| vld2q_u32(p.add(32 * half).cast()).1)) }
    }

    #[inline(always)]
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running) {
        // SAFETY: passed on.
        unsafe { P::iq2_xxs::<SUB>(at, running) }
    }
}

impl Grid for Iq2Xs {
    /// Seven signs are above an index of nine bits, so the eighth goes below them.
    const BIT: [u8; 8] = [2, 4, 8, 16, 32, 64, 128, 1];
    const FRACTION: f32 = 0.125;

    #[inline(always)]
    unsafe fn both_scales(p: [*const u8; FOUR]) -> [uint8x16_t; 2] {
        // SAFETY: inside the block.
        unsafe { gathered(p.map(|p| p.add(64))) }
    }

    #[inline(always)]
    unsafe fn half(p: [*const u8; FOUR], half: usize, scales: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
        // SAFETY: inside the block.
        unsafe {
            let signs = p.map(|p| {
                let p = p.add(32 * half);
                let x = vuzp2q_u8(vld1q_u8(p), vld1q_u8(p.add(16)));
                // As in `sevens_and_scales`.
                let even = vmulq_p8(vreinterpretq_p8_u8(x), vdupq_n_p8(0x7f));
                vsriq_n_u8::<7>(x, vreinterpretq_u8_p8(even))
            });
            (signs, nibbles(scales))
        }
    }

    #[inline(always)]
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running) {
        // SAFETY: passed on.
        unsafe { P::iq2_xs::<SUB>(at, running) }
    }
}

impl Grid for Iq2S {
    const FRACTION: f32 = 0.125;
    const PUT: usize = 32;

    #[inline(always)]
    unsafe fn indices(p: *const u8, to: *mut u16) {
        const BYTE: [u8; 16] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];
        const DOWN: [i8; 16] = [0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6];
        // SAFETY: inside the block, and tables of sixteen bytes.
        unsafe {
            let pairs = vcombine_u8(vld1_u8(p.add(64)), vdup_n_u8(0));
            let byte = vld1q_u8(BYTE.as_ptr());
            for (i, byte) in [byte, vaddq_u8(byte, vdupq_n_u8(4))].into_iter().enumerate() {
                let high = vandq_u8(vshlq_u8(vqtbl1q_u8(pairs, byte), vld1q_s8(DOWN.as_ptr())), vdupq_n_u8(3));
                put(vld1q_u8(p.add(16 * i)), high, to.add(16 * i));
            }
        }
    }

    #[inline(always)]
    unsafe fn both_scales(p: [*const u8; FOUR]) -> [uint8x16_t; 2] {
        // SAFETY: inside the block.
        unsafe { gathered(p.map(|p| p.add(72))) }
    }

    #[inline(always)]
    unsafe fn half(p: [*const u8; FOUR], half: usize, scales: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
        // SAFETY: inside the block.
        (p.map(|p| unsafe { vld1q_u8(p.add(32 + 16 * half)) }), nibbles(scales))
    }

    #[inline(always)]
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running) {
        // SAFETY: passed on.
        unsafe { P::iq2_s::<SUB>(at, running) }
    }
}

impl Grid for Iq3Xxs {
    const FRACTION: f32 = 0.25;

    #[inline(always)]
    unsafe fn half(p: [*const u8; FOUR], half: usize, _: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
        // SAFETY: inside the block.
        unsafe { sevens_and_scales(p.map(|p| vld1q_u32(p.add(64 + 16 * half).cast()))) }
    }

    #[inline(always)]
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running) {
        // SAFETY: passed on.
        unsafe { P::iq3_xxs::<SUB>(at, running) }
    }
}

impl Grid for Iq3S {
    const FRACTION: f32 = 1.0;
    const PUT: usize = 64;

    #[inline(always)]
    unsafe fn indices(p: *const u8, to: *mut u16) {
        // SAFETY: inside the block, and tables of sixteen bytes.
        unsafe {
            let ninth = vcombine_u8(vld1_u8(p.add(64)), vdup_n_u8(0));
            let bit = vcombine_u8(vld1_u8(Self::BIT.as_ptr()), vld1_u8(Self::BIT.as_ptr()));
            for i in 0..4 {
                let high = tested(vqtbl1q_u8(ninth, vld1q_u8(BYTES[i].as_ptr())), bit);
                put(vld1q_u8(p.add(16 * i)), high, to.add(16 * i));
            }
        }
    }

    #[inline(always)]
    unsafe fn both_scales(p: [*const u8; FOUR]) -> [uint8x16_t; 2] {
        // SAFETY: inside the block.
        unsafe {
            let [_, x] = gathered(p.map(|p| p.add(100)));
            let low = vshlq_n_u8::<4>(x);
            let two = |x| vreinterpretq_u32_u8(odd(x));
            let (x, y) = (two(vzip1q_u8(low, x)), two(vzip2q_u8(low, x)));
            [vreinterpretq_u8_u32(vuzp1q_u32(x, y)), vreinterpretq_u8_u32(vuzp2q_u32(x, y))]
        }
    }

    #[inline(always)]
    unsafe fn half(p: [*const u8; FOUR], half: usize, scales: uint8x16_t) -> ([uint8x16_t; FOUR], [uint8x16_t; 2]) {
        // SAFETY: inside the block.
        (p.map(|p| unsafe { vld1q_u8(p.add(72 + 16 * half)) }), [scales; 2])
    }

    #[inline(always)]
    unsafe fn columns<P: Products, const SUB: usize>(at: &mut At, running: &mut P::Running) {
        // SAFETY: passed on.
        unsafe { P::iq3_s::<SUB>(at, running) }
    }
}
