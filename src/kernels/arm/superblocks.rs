//! Formats whose batches are multiplied from a tile, and single tokens in direct.rs: Q1_0, IQ4_XS, MXFP4 and the K-quants. A
//! `Type` says how 32 columns of a row are read.
//!
//! Types with grids are in grids/, of two bits and less in few/. What the numbers mean and in which order they are added up is fixed in
//! spec/weights.rs, layouts of bytes in gguf/quant.

use std::arch::aarch64::*;

use super::blocks::{Set, TILE_BLOCK, TOKENS, Tile, rest};
use super::formats::{ROWS, Range8, levels, widen_f16};
use crate::gguf::quant::iq4::LEVELS;
use crate::gguf::quant::mxfp4::{DOUBLED, half_power_of_two};
use crate::kernels::{Acts, BLOCK, MatmulTask};

/// What scales 32 columns, beside `d`.
#[derive(Clone, Copy, PartialEq)]
pub enum SubScales {
    /// Nothing.
    One,
    /// A minimum: its f32.
    OneMin,
    /// Integer scales of the first and of the last 16: i16 each.
    Two,
    /// The same, and integer minimums: scale, minimum, scale, minimum, a byte each.
    TwoMin,
}

/// Up to 256 columns of four rows, in lanes of rows.
pub struct FourScales {
    pub d: [float32x4_t; 8],
    /// See `SubScales`.
    pub x: [int32x4_t; 8],
    /// What multiplies the integer minimums.
    pub m: float32x4_t,
}

/// How a type is read.
pub trait Type: Range8 {
    /// Bytes of a block of the file, and how many times 32 columns it has.
    const BYTES: usize;
    const BLOCKS: usize;
    const SCALES: SubScales;

    /// # Safety
    /// A block of the file is readable at each pointer.
    unsafe fn scales(p: [*const u8; 4]) -> FourScales;

    /// Columns `32 sub..32 sub + 32`.
    ///
    /// # Safety
    /// A block of the file is readable at `p`.
    unsafe fn elements(p: *const u8, sub: usize) -> [int8x16_t; 2];
}

/// A batch: eight rows are expanded and multiplied with some tokens at a time.
///
/// # Safety
/// As `super::matmul`.
#[inline(always)]
pub unsafe fn quantised<F: Type, S: Set>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % ROWS;
    assert!(whole * row_bytes <= task.w.data.len() && row_bytes == n_blocks / F::BLOCKS * F::BYTES);
    assert!(acts.n_tok * acts.n_cols <= acts.q.len());
    let tile = Tile::new(task);
    for row in (task.rows.start..whole).step_by(ROWS) {
        let rows = task.w.data.as_ptr().wrapping_add(row * row_bytes);
        // SAFETY: eight rows from `row` on are inside the matrix, their expansion inside the tile, the tokens inside the batch
        // (asserted above); the elements of `out` are the caller's.
        unsafe {
            expand::<F, S>(rows, row_bytes, tile, n_blocks);
            if matches!(F::SCALES, SubScales::One | SubScales::OneMin) {
                S::batch::<F>(tile, &acts, task.out, row);
            } else {
                for t in (0..acts.n_tok).step_by(TOKENS) {
                    // Where the batch has fewer tokens, the last is multiplied again.
                    let four: [usize; TOKENS] = std::array::from_fn(|i| (t + i).min(acts.n_tok - 1));
                    for g in 0..2 {
                        for (t, sum) in (t..acts.n_tok).zip(product::<F, S>(tile, &acts, four, g)) {
                            vst1q_f32(task.out.at(t, row + 4 * g), sum);
                        }
                    }
                }
            }
        }
    }
    // SAFETY: passed on.
    unsafe { rest(task, whole) }
}

/// # Safety
/// Eight rows of `n_blocks` times 32 columns, `row_bytes` apart, are readable; the tile is as long; as `quantised`.
#[inline(always)]
unsafe fn expand<F: Type, S: Set>(rows: *const u8, row_bytes: usize, tile: Tile, n_blocks: usize) {
    for block in 0..n_blocks / F::BLOCKS {
        for g in 0..2 {
            // SAFETY: a block of each of four rows, and its place in the tile.
            unsafe {
                let p: [*const u8; 4] = std::array::from_fn(|r| rows.add((4 * g + r) * row_bytes + block * F::BYTES));
                let scales = F::scales(p);
                // Written out, so that shifts are constants.
                macro_rules! subs {
                    ($($sub:literal)*) => { $(
                        if $sub < F::BLOCKS {
                            let b = block * F::BLOCKS + $sub;
                            let to = tile.blocks.add(b * TILE_BLOCK);
                            // Not by `map`, which becomes a call.
                            let rows = [F::elements(p[0], $sub), F::elements(p[1], $sub), F::elements(p[2], $sub), F::elements(p[3], $sub)];
                            S::put(to.add(g * 4 * BLOCK), rows);
                            vst1q_f32(to.add(ROWS * BLOCK + 16 * g).cast(), scales.d[$sub]);
                            if F::SCALES != SubScales::One {
                                vst1q_s32(tile.minimums.add(b * ROWS + 4 * g).cast(), scales.x[$sub]);
                            }
                            if F::SCALES == SubScales::TwoMin {
                                vst1q_f32(tile.scales_of_minimums.add(b * ROWS + 4 * g), scales.m);
                            }
                        }
                    )* };
                }
                subs!(0 1 2 3 4 5 6 7);
            }
        }
    }
}

/// Rows `4 g..4 g + 4` of the tile times some tokens, in lanes of rows, of a type with scales of halves:
///
///     for each block b, token t:
///         isum  = sc0 Σ first 16 products + sc1 Σ last 16
///         acc   = fma(d * d_a, isum, acc)
///         acc_m = fma(m * d_a, m0 Σ first 16 a + m1 Σ last 16 a, acc_m)     for types with minimums
///
/// # Safety
/// The tile holds the rows; the tokens are inside the batch; as `quantised`.
#[inline(always)]
unsafe fn product<F: Type, S: Set>(tile: Tile, acts: &Acts, tokens: [usize; TOKENS], g: usize) -> [float32x4_t; TOKENS] {
    let n_blocks = acts.n_cols / BLOCK;
    // SAFETY: block `b` of the tile and of each token.
    unsafe {
        let (mut acc, mut acc_m) = ([vdupq_n_f32(0.0); TOKENS], [vdupq_n_f32(0.0); TOKENS]);
        for b in 0..n_blocks {
            let at = tokens.map(|t| t * n_blocks + b);
            let w = tile.blocks.add(b * TILE_BLOCK);
            let isum = S::half_sums::<F, TOKENS>(w.add(g * 4 * BLOCK), at.map(|at| acts.q.as_ptr().add(at * BLOCK)));
            let d_w = vld1q_f32(w.add(ROWS * BLOCK + 16 * g).cast());
            let x = vld1q_s32(tile.minimums.add(b * ROWS + 4 * g).cast());
            for t in 0..TOKENS {
                let d_a = *acts.d.as_ptr().add(at[t]);
                acc[t] = vfmaq_f32(acc[t], vmulq_n_f32(d_w, d_a), vcvtq_f32_s32(scaled::<F>(isum[t], x)));
                if F::SCALES == SubScales::TwoMin {
                    let sum = minimums(x, acts.half_sums(at[t]));
                    let m = vld1q_f32(tile.scales_of_minimums.add(b * ROWS + 4 * g));
                    acc_m[t] = vfmaq_f32(acc_m[t], vmulq_n_f32(m, d_a), vcvtq_f32_s32(sum));
                }
            }
        }
        std::array::from_fn(|t| vaddq_f32(acc[t], acc_m[t]))
    }
}

/// Integer minimums of both halves times the sums of their activations.
#[inline(always)]
pub fn minimums(x: int32x4_t, [a0, a1]: [i32; 2]) -> int32x4_t {
    // SAFETY: registers only.
    unsafe { vmlaq_n_s32(vmulq_n_s32(byte::<8>(x), a0), byte::<24>(x), a1) }
}

/// The sums of two halves, with their integer scales where the type has some.
#[inline(always)]
pub fn scaled<F: Type>([first, last]: [int32x4_t; 2], x: int32x4_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        match F::SCALES {
            SubScales::One | SubScales::OneMin => vaddq_s32(first, last),
            SubScales::Two => vmlaq_s32(vmulq_s32(first, vshrq_n_s32::<16>(vshlq_n_s32::<16>(x))), last, vshrq_n_s32::<16>(x)),
            SubScales::TwoMin => vmlaq_s32(vmulq_s32(first, byte::<0>(x)), last, byte::<16>(x)),
        }
    }
}

/// The byte that starts at bit `FROM` of each lane.
#[inline(always)]
fn byte<const FROM: i32>(x: int32x4_t) -> int32x4_t {
    // SAFETY: registers only; NEON is part of every 64-bit ARM.
    unsafe { vandq_s32(vshlq_s32(x, vdupq_n_s32(-FROM)), vdupq_n_s32(255)) }
}

/// An f16 from each row.
///
/// # Safety
/// Two bytes at `p[r] + at` are readable.
#[inline(always)]
pub(super) unsafe fn f16(p: [*const u8; 4], at: usize) -> float32x4_t {
    // SAFETY: readable by the caller's promise.
    let h = p.map(|p| unsafe { p.add(at).cast::<u16>().read_unaligned() });
    // SAFETY: 16 bytes on the stack are read.
    let h = unsafe { vld1_u16(h.as_ptr()) };
    // SAFETY: registers only.
    widen_f16(unsafe { vcombine_u16(h, h) })[0]
}

/// Row `r` of four times eight as lane `r` of eight vectors.
#[inline(always)]
pub(super) fn transposed(rows: [[int32x4_t; 2]; 4]) -> [int32x4_t; 8] {
    // SAFETY: registers only.
    unsafe {
        let four = |half: usize| {
            let [a, b, c, d] = rows.map(|row| row[half]);
            let (low_ab, high_ab) = (vreinterpretq_s64_s32(vzip1q_s32(a, b)), vreinterpretq_s64_s32(vzip2q_s32(a, b)));
            let (low_cd, high_cd) = (vreinterpretq_s64_s32(vzip1q_s32(c, d)), vreinterpretq_s64_s32(vzip2q_s32(c, d)));
            [vzip1q_s64(low_ab, low_cd), vzip2q_s64(low_ab, low_cd), vzip1q_s64(high_ab, high_cd), vzip2q_s64(high_ab, high_cd)]
                .map(|x| vreinterpretq_s32_s64(x))
        };
        let ([a, b, c, d], [e, f, g, h]) = (four(0), four(1));
        [a, b, c, d, e, f, g, h]
    }
}

/// Integers of eight times four rows, each times a scale of its row.
#[inline(always)]
pub(super) fn times(x: [int32x4_t; 8], d: float32x4_t) -> [float32x4_t; 8] {
    // SAFETY: registers only.
    x.map(|x| unsafe { vmulq_f32(d, vcvtq_f32_s32(x)) })
}

#[inline(always)]
fn widen_u8(x: uint8x8_t) -> [int32x4_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let x = vmovl_u8(x);
        [vmovl_u16(vget_low_u16(x)), vmovl_high_u16(x)].map(|x| vreinterpretq_s32_u32(x))
    }
}

#[inline(always)]
fn widen_s8(x: int8x16_t) -> [int32x4_t; 2] {
    // SAFETY: registers only. Two i16 are a lane of 32 bits.
    unsafe { [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x)].map(|x| vreinterpretq_s32_s16(x)) }
}

/// Two vectors at `p`.
///
/// # Safety
/// 32 bytes at `p` are readable.
#[inline(always)]
unsafe fn bytes_32(p: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: readable by the caller's promise.
    unsafe { [vld1q_u8(p), vld1q_u8(p.add(16))] }
}

/// Nibbles: byte `i` holds element `i` low and element `i + 16` high.
///
/// # Safety
/// 16 bytes at `p` are readable.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let x = vld1q_u8(p);
        [vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8(x, 4)]
    }
}

/// `q - offset`
#[inline(always)]
pub(super) fn minus(q: [uint8x16_t; 2], offset: i8) -> [int8x16_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let offset = vdupq_n_s8(offset);
        [vsubq_s8(vreinterpretq_s8_u8(q[0]), offset), vsubq_s8(vreinterpretq_s8_u8(q[1]), offset)]
    }
}

/// Bits `shift..` of bytes, of which `mask` stay, moved up by `to`.
#[inline(always)]
fn bits(x: [uint8x16_t; 2], shift: usize, mask: u8, to: usize) -> [uint8x16_t; 2] {
    [bits_16(x[0], shift, mask, to), bits_16(x[1], shift, mask, to)]
}

/// The same of sixteen bytes.
#[inline(always)]
fn bits_16(x: uint8x16_t, shift: usize, mask: u8, to: usize) -> uint8x16_t {
    // SAFETY: registers only. The matches are decided at compile time.
    unsafe {
        let x = match shift {
            0 => x,
            1 => vshrq_n_u8::<1>(x),
            2 => vshrq_n_u8::<2>(x),
            3 => vshrq_n_u8::<3>(x),
            4 => vshrq_n_u8::<4>(x),
            5 => vshrq_n_u8::<5>(x),
            6 => vshrq_n_u8::<6>(x),
            _ => vshrq_n_u8::<7>(x),
        };
        let x = if mask as usize == 255 >> shift { x } else { vandq_u8(x, vdupq_n_u8(mask)) };
        match to {
            0 => x,
            2 => vshlq_n_u8::<2>(x),
            _ => vshlq_n_u8::<4>(x),
        }
    }
}

#[inline(always)]
fn or(x: [uint8x16_t; 2], y: [uint8x16_t; 2]) -> [uint8x16_t; 2] {
    // SAFETY: registers only.
    unsafe { [vorrq_u8(x[0], y[0]), vorrq_u8(x[1], y[1])] }
}

/// 32 of four bits: in the low halves of 32 bytes, then in their high halves.
///
/// # Safety
/// 128 bytes at `p` are readable.
#[inline(always)]
unsafe fn fours(p: *const u8, sub: usize) -> [uint8x16_t; 2] {
    // SAFETY: readable by the caller's promise.
    bits(unsafe { bytes_32(p.add(sub / 2 * 32)) }, 4 * (sub % 2), 15, 0)
}

/// 32 of two bits, moved up by `to`: by bit pairs of 32 bytes.
///
/// # Safety
/// 64 bytes at `p` are readable.
#[inline(always)]
pub(super) unsafe fn twos(p: *const u8, sub: usize, to: usize) -> [uint8x16_t; 2] {
    // SAFETY: readable by the caller's promise.
    bits(unsafe { bytes_32(p.add(sub / 4 * 32)) }, 2 * (sub % 4), 3, to)
}

/// A type with blocks of 32.
#[inline(always)]
pub(super) fn one(d: float32x4_t, m: float32x4_t) -> FourScales {
    // SAFETY: registers only.
    FourScales { d: [d; 8], x: [unsafe { vreinterpretq_s32_f32(m) }; 8], m }
}

/// Types with sub-scales in integers.
#[inline(always)]
pub(super) fn halves(d: float32x4_t, x: [[int32x4_t; 2]; 4], m: float32x4_t) -> FourScales {
    FourScales { d: [d; 8], x: transposed(x), m }
}

/// Declares a type; `$p` is a pointer to a block of the file and `$sub` numbers 32 columns of it.
macro_rules! a_type {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $blocks:literal, $scales:ident, $largest:literal, |$p:ident| $row_scales:expr, |$q:ident, $sub:ident| $elements:expr) => {
        $(#[$doc])*
        pub struct $name;
        impl Range8 for $name {
            const LARGEST: i32 = $largest;
            const HAS_MIN: bool = matches!(SubScales::$scales, SubScales::OneMin | SubScales::TwoMin);
        }
        impl Type for $name {
            const BYTES: usize = $bytes;
            const BLOCKS: usize = $blocks;
            const SCALES: SubScales = SubScales::$scales;

            #[inline(always)]
            unsafe fn scales($p: [*const u8; 4]) -> FourScales {
                // SAFETY: inside the block.
                unsafe { $row_scales }
            }

            #[inline(always)]
            unsafe fn elements($q: *const u8, $sub: usize) -> [int8x16_t; 2] {
                // SAFETY: inside the block.
                unsafe { $elements }
            }
        }
    };
}
pub(super) use a_type;

a_type!(
    /// `u8 exponent; u8 qs[16]`, indices of doubled levels
    Mxfp4, 17, 1, One, 12, |p| one(vld1q_f32(p.map(|p| half_power_of_two(*p)).as_ptr()), vdupq_n_f32(0.0)), |p, _sub| levels(&DOUBLED, minus(nibbles(p.add(1)), 0))
);
a_type!(
    /// `f16 d; u8 qs[16]`, a bit an element: 1 where it is set, else -1
    Q1_0, 18, 4, One, 1, |p| one(f16(p, 0), vdupq_n_f32(0.0)), |p, sub| {
        const BYTE: [[u8; 16]; 2] =
            [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]];
        const BIT: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
        let x = vreinterpretq_u8_u32(vdupq_n_u32(p.add(2 + 4 * sub).cast::<u32>().read_unaligned()));
        BYTE.map(|byte| {
            let is_set = vtstq_u8(vqtbl1q_u8(x, vld1q_u8(byte.as_ptr())), vld1q_u8(BIT.as_ptr()));
            vbslq_s8(is_set, vdupq_n_s8(1), vdupq_n_s8(-1))
        })
    }
);
a_type!(
    /// `f16 d; u16 high; u8 low[4]; u8 qs[128]`
    Iq4Xs, 136, 8, One, 127,
    |p| {
        const SHIFT: [i16; 8] = [0, -2, -4, -6, -8, -10, -12, -14];
        let scales = p.map(|p| {
            let low = vreinterpret_u8_u32(vdup_n_u32(p.add(4).cast::<u32>().read_unaligned()));
            let low = vmovl_u8(vzip1_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8::<4>(low)));
            let high = vshlq_u16(vdupq_n_u16(p.add(2).cast::<u16>().read_unaligned()), vld1q_s16(SHIFT.as_ptr()));
            let scale = vorrq_u16(low, vshlq_n_u16::<4>(vandq_u16(high, vdupq_n_u16(3))));
            let scale = vsubq_s16(vreinterpretq_s16_u16(scale), vdupq_n_s16(32));
            [vmovl_s16(vget_low_s16(scale)), vmovl_high_s16(scale)]
        });
        FourScales { d: times(transposed(scales), f16(p, 0)), x: [vdupq_n_s32(0); 8], m: vdupq_n_f32(0.0) }
    },
    |p, sub| levels(&LEVELS, minus(nibbles(p.add(8 + 16 * sub)), 0))
);
a_type!(
    /// `u8 scales[16]; u8 qs[64]; f16 d; f16 dmin`: scale in the low half of a byte, minimum in the high
    Q2K, 84, 8, TwoMin, 3,
    |p| {
        let both = p.map(|p| {
            let x = vld1q_u8(p);
            let (scale, minimum) = (vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8::<4>(x));
            [vzip1q_u8(scale, minimum), vzip2q_u8(scale, minimum)].map(|x| vreinterpretq_s32_u8(x))
        });
        halves(f16(p, 80), both, vnegq_f32(f16(p, 82)))
    },
    |p, sub| minus(twos(p.add(16), sub, 0), 0)
);
a_type!(
    /// `u8 third[32]; u8 qs[64]; u8 scales[12]; f16 d`
    Q3K, 110, 8, Two, 4,
    |p| {
        const SHIFT: [i8; 16] = [0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4, -6, -6, -6, -6];
        let scales = p.map(|p| {
            let low = vld1_u8(p.add(96));
            let low = vcombine_u8(vand_u8(low, vdup_n_u8(15)), vshr_n_u8::<4>(low));
            let high = vreinterpretq_u8_u32(vdupq_n_u32(p.add(104).cast::<u32>().read_unaligned()));
            let high = vandq_u8(vshlq_u8(high, vld1q_s8(SHIFT.as_ptr())), vdupq_n_u8(3));
            let scale = vreinterpretq_s8_u8(vorrq_u8(low, vshlq_n_u8::<4>(high)));
            widen_s8(vsubq_s8(scale, vdupq_n_s8(32)))
        });
        halves(f16(p, 108), scales, vdupq_n_f32(0.0))
    },
    |p, sub| minus(or(twos(p.add(32), sub, 0), bits(bytes_32(p), sub, 1, 2)), 4)
);
a_type!(
    /// `f16 d; f16 dmin; u8 scales[12]; u8 qs[128]`
    Q4K, 144, 8, OneMin, 15, |p| k_scales(p), |p, sub| minus(fours(p.add(16), sub), 0)
);
a_type!(
    /// `f16 d; f16 dmin; u8 scales[12]; u8 fifth[32]; u8 qs[128]`
    Q5K, 176, 8, OneMin, 31, |p| k_scales(p), |p, sub| minus(or(fours(p.add(48), sub), bits(bytes_32(p.add(16)), sub, 1, 4)), 0)
);
a_type!(
    /// `u8 low[128]; u8 high[64]; i8 scales[16]; f16 d`; 64 bytes of `low` hold two runs of 64
    Q6K, 210, 8, Two, 32,
    |p| halves(f16(p, 208), p.map(|p| widen_s8(vld1q_s8(p.add(192).cast()))), vdupq_n_f32(0.0)),
    |p, sub| {
        let low = bits(bytes_32(p.add(sub / 4 * 64 + sub % 2 * 32)), 4 * (sub / 2 % 2), 15, 0);
        minus(or(low, twos(p.add(128), sub, 4)), 32)
    }
);

/// SubScales and minimums of Q4_K and Q5_K: twelve bytes, of which the first four and the next four hold six bits of scales and
/// of minimums 0 to 3, and two bits more of scales and minimums 4 to 7, whose other four are in the last.
///
/// # Safety
/// 16 bytes at each pointer are readable.
#[inline(always)]
unsafe fn k_scales(p: [*const u8; 4]) -> FourScales {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let words = p.map(|p| [4, 8, 12].map(|at| u32::from_le(p.add(at).cast::<u32>().read_unaligned())));
        let eight = |first: u32, last: u32| {
            let high = last & 0x0f0f_0f0f | (first >> 6 & 0x0303_0303) << 4;
            widen_u8(vcreate_u8(u64::from(first & 0x3f3f_3f3f) | u64::from(high) << 32))
        };
        let scales = words.map(|[s, _, both]| eight(s, both));
        let minimums = words.map(|[_, m, both]| eight(m, both >> 4));
        FourScales {
            d: times(transposed(scales), f16(p, 0)),
            // (-dmin) * min is -(dmin * min).
            x: times(transposed(minimums), vnegq_f32(f16(p, 2))).map(|m| vreinterpretq_s32_f32(m)),
            m: vdupq_n_f32(0.0),
        }
    }
}
