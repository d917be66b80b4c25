//! Keys and values in levels, in NEON: how their rows are read, and what scores and sums over them have in common wherever the rows
//! lie, in the cache (attend.rs) or widened (wide.rs).

use std::arch::aarch64::*;

use super::float::{add_lanes, load, splat};
use crate::kernels::rows::codec::RowType;
use crate::kernels::spec::attention::Weights;
use crate::kernels::{Attend, CHUNK};

/// How the levels of one `RowType` are read; see rows/codec.rs for their bytes. `p` is a row of `n_blocks`.
pub trait Levels {
    const TYPE: RowType;

    /// `q` of block `b`.
    ///
    /// # Safety
    /// The row is readable.
    unsafe fn key(p: *const u8, n_blocks: usize, b: usize) -> [int16x8_t; 4];

    /// `q + offset` of one half of block `b`.
    ///
    /// # Safety
    /// The row is readable.
    unsafe fn value(p: *const u8, n_blocks: usize, b: usize, half: usize) -> [uint16x8_t; 2];

    /// Products with a query, in four lanes.
    #[inline(always)]
    fn dot(q: &[int16x8_t; 4], key: &[int16x8_t; 4]) -> int32x4_t {
        // SAFETY: registers only. Four products of a lane fit into it.
        unsafe {
            let sum = vmlaq_s16(vmulq_s16(q[0], key[0]), q[1], key[1]);
            vpaddlq_s16(vmlaq_s16(vmlaq_s16(sum, q[2], key[2]), q[3], key[3]))
        }
    }
}

pub struct Q8;
impl Levels for Q8 {
    const TYPE: RowType = RowType::Q8;

    #[inline(always)]
    unsafe fn key(p: *const u8, n_blocks: usize, b: usize) -> [int16x8_t; 4] {
        // SAFETY: the block's 32 bytes.
        unsafe {
            let p = p.add(Self::TYPE.levels_at(n_blocks, b)).cast();
            let (x, y) = (vld1q_s8(p), vld1q_s8(p.add(16)));
            [vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x), vmovl_s8(vget_low_s8(y)), vmovl_high_s8(y)]
        }
    }

    #[inline(always)]
    unsafe fn value(p: *const u8, n_blocks: usize, b: usize, half: usize) -> [uint16x8_t; 2] {
        // SAFETY: 16 of the block's 32 bytes.
        unsafe { raised::<128>(vld1q_s8(p.add(Self::TYPE.levels_at(n_blocks, b) + 16 * half).cast())) }
    }

    #[inline(always)]
    fn dot(q: &[int16x8_t; 4], key: &[int16x8_t; 4]) -> int32x4_t {
        // SAFETY: registers only.
        unsafe {
            let mut sum = vmull_s16(vget_low_s16(q[0]), vget_low_s16(key[0]));
            sum = vmlal_high_s16(sum, q[0], key[0]);
            for i in 1..4 {
                sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(q[i]), vget_low_s16(key[i])), q[i], key[i]);
            }
            sum
        }
    }
}

/// `q + OFFSET` of 16.
#[inline(always)]
fn raised<const OFFSET: i16>(q: int8x16_t) -> [uint16x8_t; 2] {
    // SAFETY: registers only.
    unsafe {
        let offset = vdupq_n_s16(OFFSET);
        [vreinterpretq_u16_s16(vaddw_s8(offset, vget_low_s8(q))), vreinterpretq_u16_s16(vaddw_high_s8(offset, q))]
    }
}

/// See rows/codec.rs: of bytes 0..4, then of 4..8 and so on.
const OWN_BITS: [[u32; 4]; 2] =
    [[0x0101_0101, 0x0202_0202, 0x0404_0404, 0x0808_0808], [0x1010_1010, 0x2020_2020, 0x4040_4040, 0x8080_8080]];

/// Four bits and `PLANES` more.
pub struct BitPlanes<const PLANES: usize>;
impl<const PLANES: usize> BitPlanes<PLANES> {
    /// The levels as they are stored: `q + 8` of four bits, else `q`.
    ///
    /// # Safety
    /// The row is readable.
    #[inline(always)]
    unsafe fn half(p: *const u8, n_blocks: usize, b: usize, half: usize) -> int8x16_t {
        // SAFETY: the block's 16 bytes, and a word for each plane.
        unsafe {
            let bytes = vld1q_u8(p.add(Self::TYPE.levels_at(n_blocks, b)));
            let mut q = match half {
                0 if PLANES == 0 => vandq_u8(bytes, vdupq_n_u8(15)),
                0 => bytes, // The upper bits are overwritten.
                _ => vshrq_n_u8::<4>(bytes),
            };
            // The bit of each element in its byte of the word.
            let own = vreinterpretq_u8_u32(vld1q_u32(OWN_BITS[half].as_ptr()));
            for plane in 0..PLANES {
                let word = p.add(Self::TYPE.planes_at(n_blocks, b) + 4 * plane).cast::<u32>().read_unaligned();
                let set = vtstq_u8(vreinterpretq_u8_u32(vdupq_n_u32(word)), own);
                q = if plane == 0 { vsliq_n_u8::<4>(q, set) } else { vsliq_n_u8::<5>(q, set) };
            }
            vreinterpretq_s8_u8(q)
        }
    }
}

impl<const PLANES: usize> Levels for BitPlanes<PLANES> {
    const TYPE: RowType = [RowType::Q4, RowType::Q5, RowType::Q6][PLANES];

    #[inline(always)]
    unsafe fn key(p: *const u8, n_blocks: usize, b: usize) -> [int16x8_t; 4] {
        // SAFETY: passed on.
        unsafe {
            let [x, y] = [0, 1].map(|half| Self::half(p, n_blocks, b, half));
            // Of four bits `q + 8`.
            let offset = vdupq_n_s16(if PLANES == 0 { -8 } else { 0 });
            let wide = |q: int8x16_t| [vaddw_s8(offset, vget_low_s8(q)), vaddw_high_s8(offset, q)];
            let ([k0, k1], [k2, k3]) = (wide(x), wide(y));
            [k0, k1, k2, k3]
        }
    }

    #[inline(always)]
    unsafe fn value(p: *const u8, n_blocks: usize, b: usize, half: usize) -> [uint16x8_t; 2] {
        // SAFETY: passed on.
        let q = unsafe { Self::half(p, n_blocks, b, half) };
        match PLANES {
            0 => raised::<0>(q),
            1 => raised::<16>(q),
            _ => raised::<32>(q),
        }
    }
}

/// A block's share in the scores of keys `j..j + 4`, whose products with `N` queries are in four lanes each.
#[inline(always)]
pub fn add_scores<const N: usize>(
    sums: &[[int32x4_t; 4]; N],
    d: float32x4_t,
    d_q: &[f32; N],
    j: usize,
    weights: &mut Weights<N>,
) {
    for n in 0..N {
        let [s0, s1, s2, s3] = sums[n];
        let scores = &mut weights[n].as_chunks_mut::<4>().0[j / 4];
        // SAFETY: an array of four.
        unsafe {
            let isum = vpaddq_s32(vpaddq_s32(s0, s1), vpaddq_s32(s2, s3));
            let score = vmulq_f32(vcvtq_f32_s32(isum), d);
            vst1q_f32(scores.as_mut_ptr(), vfmaq_n_f32(vld1q_f32(scores.as_ptr()), score, d_q[n]));
        }
    }
}

/// `scaled = weights * d` and its sum, of each query.
#[inline(always)]
pub fn scaled_weights<const N: usize>(
    weights: &Weights<N>,
    d: &[f32; CHUNK],
    n_rows: usize,
    scaled: &mut Weights<N>,
) -> [f32; N] {
    let mut sums = [0f32; N];
    for n in 0..N {
        let eights = weights[n].as_chunks::<8>().0.iter().zip(d.as_chunks::<8>().0);
        // SAFETY: arrays of eight.
        unsafe {
            let mut lanes = [splat(0.0); 2];
            for (scaled, (w, d)) in scaled[n].as_chunks_mut::<8>().0.iter_mut().zip(eights).take(n_rows.div_ceil(8)) {
                let (w, d) = (load::<2>(w.as_ptr()), load::<2>(d.as_ptr()));
                for i in 0..2 {
                    let t = vmulq_f32(w[i], d[i]);
                    vst1q_f32(scaled[4 * i..].as_mut_ptr(), t);
                    lanes[i] = vaddq_f32(lanes[i], t);
                }
            }
            sums[n] = add_lanes(lanes);
        }
    }
    sums
}

/// Sums over values in levels become what they stand for and go to query `n` of `acc`: sixteen elements from `16 * i` on, and so on,
/// fewer where the head ends.
#[inline(always)]
pub fn finish_levels(a: &Attend, totals: &[[float32x4_t; 4]], sum: f32, i: usize, n: usize, acc: &mut [f32]) {
    let acc = &mut acc[n * a.head_dim..][..a.head_dim];
    for (i, total) in (i..).zip(totals) {
        // SAFETY: registers only.
        let total = total.map(|total| unsafe {
            let offset = splat(-(a.v_type.offset() as f32));
            vfmaq_n_f32(vmulq_f32(total, splat((1 << 24) as f32)), offset, sum)
        });
        let end = acc.len().min(16 * i + 16);
        put(&mut acc[..end], (16 * i).min(end), &total);
    }
}

/// Writes vectors to `acc` from element `at` on.
#[inline(always)]
pub fn put(acc: &mut [f32], at: usize, x: &[float32x4_t]) {
    for (four, x) in acc[at..].as_chunks_mut::<4>().0.iter_mut().zip(x) {
        // SAFETY: an array of four.
        unsafe { vst1q_f32(four.as_mut_ptr(), *x) };
    }
}
