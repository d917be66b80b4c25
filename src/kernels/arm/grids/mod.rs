//! How the ARM sets read IQ2 and IQ3, whose elements are looked up in grids, into the tile; a lone token has a way of its own (lone.rs).
//!
//! A look-up is a load of eight or four bytes by an index that is itself loaded; four or eight of them fill the vectors of 32 columns.
//! Signs are eight bits to eight columns: each byte of a vector picks the byte that holds its bit, tests it, and is negated by it.
//! What the numbers mean and in which order they are added up is fixed in spec/weights.rs, layouts of bytes in gguf/quant.

mod dot;
pub mod lone;
mod neon;
mod text;

use std::arch::aarch64::*;
use std::arch::asm;

use super::formats::Range8;
use super::superblocks::{FourScales, SubScales, Type, a_type, f16, halves, times, transposed};
use crate::gguf::quant::grids;

/// Bytes `BYTE` and `NEXT` of `signs` as the signs of sixteen columns, a set bit for minus.
///
/// # Safety
/// None but those of NEON, which every 64-bit ARM has.
#[inline(always)]
unsafe fn signed<const BYTE: u8, const NEXT: u8>(magnitudes: int8x16_t, signs: uint8x16_t) -> int8x16_t {
    const BIT: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: registers only, and a table of sixteen bytes.
    unsafe {
        let byte = vcombine_u8(vdup_n_u8(BYTE), vdup_n_u8(NEXT));
        let (signs, bit) = (vqtbl1q_u8(signs, byte), vld1q_u8(BIT.as_ptr()));
        let minus = vreinterpretq_s8_u8(tested(signs, bit));
        vsubq_s8(veorq_s8(magnitudes, minus), minus)
    }
}

/// All bits of a byte where one is set that is also set in `bit`. Left to the compiler, this and what follows becomes five or six
/// instructions instead of three.
#[inline(always)]
fn tested(x: uint8x16_t, bit: uint8x16_t) -> uint8x16_t {
    let set;
    // SAFETY: registers only.
    unsafe {
        asm!("cmtst {x:v}.16b, {y:v}.16b, {z:v}.16b", x = lateout(vreg) set, y = in(vreg) x, z = in(vreg) bit, options(pure, nomem, nostack, preserves_flags))
    };
    set
}

/// The signs of 32 columns from four times seven bits, in the lowest byte of each lane of 32 bits: the eighth bit makes the number of
/// set ones even (`grids::even_signs`).
#[inline(always)]
fn packed_signs(word: u32) -> uint8x16_t {
    const DOWN: [i32; 4] = [0, -7, -14, -21];
    // SAFETY: registers only, and a table of four words.
    unsafe {
        let x = vandq_u32(vshlq_u32(vdupq_n_u32(word), vld1q_s32(DOWN.as_ptr())), vdupq_n_u32(127));
        let x = vreinterpretq_u8_u32(x);
        vsliq_n_u8::<7>(x, vcntq_u8(x))
    }
}

/// Four words of eight magnitudes, as 32 columns.
#[inline(always)]
fn eights(words: [u64; 4]) -> [int8x16_t; 2] {
    let [a, b, c, d] = words;
    // SAFETY: registers only.
    unsafe { [vcombine_s8(vcreate_s8(a), vcreate_s8(b)), vcombine_s8(vcreate_s8(c), vcreate_s8(d))] }
}

/// Four words of four magnitudes, as 16 columns.
#[inline(always)]
fn fours(a: &u32, b: &u32, c: &u32, d: &u32) -> int8x16_t {
    // SAFETY: a word for each lane.
    unsafe {
        let x = vld1q_lane_u32::<1>(b, vdupq_n_u32(*a));
        let x = vld1q_lane_u32::<2>(c, x);
        vreinterpretq_s8_u32(vld1q_lane_u32::<3>(d, x))
    }
}

/// # Safety
/// Four bytes at `p` are readable.
#[inline(always)]
unsafe fn u32_at(p: *const u8) -> u32 {
    // SAFETY: by the caller's promise.
    unsafe { p.cast::<u32>().read_unaligned() }
}

/// # Safety
/// Eight bytes at `p` are readable.
#[inline(always)]
unsafe fn u64_at(p: *const u8) -> u64 {
    // SAFETY: by the caller's promise.
    unsafe { p.cast::<u64>().read_unaligned() }
}

/// A word of signs in each lane.
///
/// # Safety
/// Four bytes at `p` are readable.
#[inline(always)]
unsafe fn plain_signs(p: *const u8) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe { vreinterpretq_u8_u32(vdupq_n_u32(u32_at(p))) }
}

/// Eight low bytes of indices at `low`, each with the bits of `high` that come to `mask`, all above the byte, when it is shifted up by
/// its place of `up`.
///
/// # Safety
/// Eight bytes are readable.
#[inline(always)]
unsafe fn indices(low: *const u8, high: u8, up: [i16; 8], mask: u16) -> uint16x8_t {
    // SAFETY: by the caller's promise, and a table of eight numbers.
    unsafe {
        let high = vshlq_u16(vdupq_n_u16(u16::from(high)), vld1q_s16(up.as_ptr()));
        vbslq_u16(vdupq_n_u16(mask), high, vmovl_u8(vld1_u8(low)))
    }
}

/// `d * (2 * scale + 1) * fraction` for eight scales of each row: of the lowest four bits of two times four lanes.
#[inline(always)]
fn odd_scales(scales: [[int32x4_t; 2]; 4], d: float32x4_t, fraction: f32) -> FourScales {
    // SAFETY: registers only.
    unsafe {
        let odd = scales.map(|row| row.map(|x| vorrq_s32(vshlq_n_s32::<1>(x), vdupq_n_s32(1))));
        let m = vdupq_n_f32(0.0);
        FourScales { d: times(transposed(odd), vmulq_n_f32(d, fraction)), x: [vdupq_n_s32(0); 8], m }
    }
}

/// `2 * scale + 1` of sixteen nibbles of each row, as i16, the low one of a byte first; with an eighth of `d`.
///
/// # Safety
/// Eight bytes at `p + at` of each row, two at its start are readable.
#[inline(always)]
unsafe fn odd_halves(p: [*const u8; 4], at: usize) -> FourScales {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let x = p.map(|p| {
            let both = vld1_u8(p.add(at));
            let x = vzip1q_u8(vcombine_u8(vand_u8(both, vdup_n_u8(15)), both), vcombine_u8(vshr_n_u8::<4>(both), both));
            let odd = vorrq_u8(vshlq_n_u8::<1>(x), vdupq_n_u8(1));
            [vmovl_u8(vget_low_u8(odd)), vmovl_high_u8(odd)].map(|x| vreinterpretq_s32_u16(x))
        });
        halves(vmulq_n_f32(f16(p, 0), 0.125), x, vdupq_n_f32(0.0))
    }
}

a_type!(
    /// `f16 d; (u8 index[4]; u32 signs_and_scale)[8]`
    Iq2Xxs, 66, 8, One, 43,
    |p| {
        let scales = p.map(|p| {
            [2, 34].map(|at| {
                let both = vld2q_u32(p.add(at).cast());
                vreinterpretq_s32_u32(vshrq_n_u32::<28>(both.1))
            })
        });
        odd_scales(scales, f16(p, 0), 0.125)
    },
    |p, sub| {
        let (index, signs) = (p.add(2 + 8 * sub), packed_signs(u32_at(p.add(6 + 8 * sub))));
        let word = |i: usize| grids::IQ2_XXS[usize::from(*index.add(i))];
        let [x, y] = eights([word(0), word(1), word(2), word(3)]);
        [signed::<0, 4>(x, signs), signed::<8, 12>(y, signs)]
    }
);
a_type!(
    /// `f16 d; u16 qs[32]; u8 scales[8]`: nine bits of index and seven of signs.
    Iq2Xs, 74, 8, Two, 43, |p| odd_halves(p, 66), |p, sub| {
        let q = u64_at(p.add(2 + 8 * sub));
        let seven = vreinterpret_u8_u16(vshr_n_u16::<9>(vcreate_u16(q)));
        let signs = vsli_n_u8::<7>(seven, vcnt_u8(seven));
        let signs = vcombine_u8(signs, signs);
        let word = |at: u32| grids::IQ2_XS[(q >> at) as usize & 511];
        let [x, y] = eights([word(0), word(16), word(32), word(48)]);
        [signed::<0, 2>(x, signs), signed::<4, 6>(y, signs)]
    }
);
a_type!(
    /// `f16 d; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8]`: ten bits of index.
    Iq2S, 82, 8, Two, 43, |p| odd_halves(p, 74), |p, sub| {
        // Bytes up to 2 + 4 * 7 + 8 are read; the grid has a word for each index of ten bits.
        let i = indices(p.add(2 + 4 * sub), *p.add(66 + sub), [8, 6, 4, 2, 0, 0, 0, 0], 0x300);
        let word = |i: u16| *grids::IQ2_S.get_unchecked(usize::from(i));
        let [x, y] = eights([word(vgetq_lane_u16(i, 0)), word(vgetq_lane_u16(i, 1)), word(vgetq_lane_u16(i, 2)), word(vgetq_lane_u16(i, 3))]);
        let signs = plain_signs(p.add(34 + 4 * sub));
        [signed::<0, 1>(x, signs), signed::<2, 3>(y, signs)]
    }
);
a_type!(
    /// `f16 d; u8 index[64]; u32 signs_and_scale[8]`
    Iq3Xxs, 98, 8, One, 62,
    |p| {
        let scales = p.map(|p| [66, 82].map(|at| vreinterpretq_s32_u32(vshrq_n_u32::<28>(vld1q_u32(p.add(at).cast())))));
        odd_scales(scales, f16(p, 0), 0.25)
    },
    |p, sub| {
        let (index, signs) = (p.add(2 + 8 * sub), packed_signs(u32_at(p.add(66 + 4 * sub))));
        let word = |i: usize| &grids::IQ3_XXS[usize::from(*index.add(i))];
        let (x, y) = (fours(word(0), word(1), word(2), word(3)), fours(word(4), word(5), word(6), word(7)));
        [signed::<0, 4>(x, signs), signed::<8, 12>(y, signs)]
    }
);
a_type!(
    /// `f16 d; u8 low[64]; u8 ninth[8]; u8 signs[32]; u8 scales[4]`: nine bits of index.
    Iq3S, 110, 8, One, 15,
    |p| {
        const DOWN: [i32; 8] = [0, -4, -8, -12, -16, -20, -24, -28];
        let scales = p.map(|p| {
            let eight = vdupq_n_u32(u32_at(p.add(106)));
            [0, 4].map(|i| vreinterpretq_s32_u32(vandq_u32(vshlq_u32(eight, vld1q_s32(DOWN[i..].as_ptr())), vdupq_n_u32(15))))
        });
        odd_scales(scales, f16(p, 0), 1.0)
    },
    |p, sub| {
        // The grid has a word for each index of nine bits.
        let i = indices(p.add(2 + 8 * sub), *p.add(66 + sub), [8, 7, 6, 5, 4, 3, 2, 1], 0x100);
        let word = |i: u16| grids::IQ3_S.get_unchecked(usize::from(i));
        let (a, b) = (word(vgetq_lane_u16(i, 0)), word(vgetq_lane_u16(i, 1)));
        let x = fours(a, b, word(vgetq_lane_u16(i, 2)), word(vgetq_lane_u16(i, 3)));
        let (a, b) = (word(vgetq_lane_u16(i, 4)), word(vgetq_lane_u16(i, 5)));
        let y = fours(a, b, word(vgetq_lane_u16(i, 6)), word(vgetq_lane_u16(i, 7)));
        let signs = plain_signs(p.add(74 + 4 * sub));
        [signed::<0, 1>(x, signs), signed::<2, 3>(y, signs)]
    }
);
