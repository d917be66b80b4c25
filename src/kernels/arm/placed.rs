//! Keys that are read again, in NEON: what spec/placed.rs specifies, bit for bit.

use std::arch::aarch64::*;

use super::float::{hadamard, load, store_f16};
use super::formats::widen_f16;
use super::levels::{BitPlanes, Levels, Q8};
use crate::kernels::rows::codec::{ROW_BLOCK, RowType, with_row};
use crate::kernels::rows::hadamard::flip;
use crate::kernels::spec::placed;
use crate::kernels::{AngleSum, Placing, RopeOrder};

/// See `Kernels::place`. Heads that are not whole blocks go the way of the specification.
pub fn place(p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]) {
    let n = p.head_dim;
    if !n.is_multiple_of(ROW_BLOCK) || !p.n_rot.is_multiple_of(8) {
        return placed::place(p, row, mean, angles, key);
    }
    let AngleSum(a, b) = angles;
    assert!(key.len() == n && row.len() == RowType::F16.row_bytes(n));
    assert!(p.n_rot <= n && a.len() >= p.n_rot && b.len() >= p.n_rot);
    // SAFETY: a row of whole blocks, in any type no longer than in f16, and as many elements of `key`; angles of all that is turned.
    unsafe {
        with_row!(p.ty, R => load_levels::<R>(row, key), load_f16(row, key));
        for (key, mean) in key.iter_mut().zip(mean) {
            *key += mean;
        }
        if p.turned > 0 {
            for part in key.chunks_exact_mut(p.turned) {
                hadamard(part);
                flip(part);
            }
        }
        turn(p.order, &mut key[..p.n_rot], a.as_ptr(), b.as_ptr());
    }
    store_f16(key, row);
}

/// # Safety
/// A row of whole blocks.
#[inline(always)]
unsafe fn load_levels<R: Levels>(row: &[u8], key: &mut [f32]) {
    let n_blocks = RowType::n_blocks(key.len());
    for (b, key) in key.as_chunks_mut::<ROW_BLOCK>().0.iter_mut().enumerate() {
        let d = R::TYPE.scale(row, b);
        // SAFETY: block `b` of the row, and as many elements.
        unsafe {
            for (i, q) in R::key(row.as_ptr(), n_blocks, b).into_iter().enumerate() {
                let (low, high) = (vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), vcvtq_f32_s32(vmovl_high_s16(q)));
                vst1q_f32(key.as_mut_ptr().add(8 * i), vmulq_n_f32(low, d));
                vst1q_f32(key.as_mut_ptr().add(8 * i + 4), vmulq_n_f32(high, d));
            }
        }
    }
}

/// # Safety
/// A row of whole blocks.
#[inline(always)]
unsafe fn load_f16(row: &[u8], key: &mut [f32]) {
    for (key, row) in key.as_chunks_mut::<8>().0.iter_mut().zip(row.as_chunks::<16>().0) {
        // SAFETY: eight elements of each.
        unsafe {
            let [low, high] = widen_f16(vld1q_u16(row.as_ptr().cast()));
            vst1q_f32(key.as_mut_ptr(), low);
            vst1q_f32(key.as_mut_ptr().add(4), high);
        }
    }
}

/// Turns pairs by sums of two angles, four at a time.
///
/// # Safety
/// As many cosines and sines as elements at both pointers; a multiple of eight.
#[inline(always)]
unsafe fn turn(order: RopeOrder, key: &mut [f32], a: *const f32, b: *const f32) {
    let (half, p) = (key.len() / 2, key.as_mut_ptr());
    for i in (0..half / 4 * 4).step_by(4) {
        // SAFETY: four pairs, and their angles.
        unsafe {
            let ([cos_a], [sin_a]) = (load::<1>(a.add(i)), load::<1>(a.add(half + i)));
            let ([cos_b], [sin_b]) = (load::<1>(b.add(i)), load::<1>(b.add(half + i)));
            let cos = vsubq_f32(vmulq_f32(cos_a, cos_b), vmulq_f32(sin_a, sin_b));
            let sin = vaddq_f32(vmulq_f32(sin_a, cos_b), vmulq_f32(cos_a, sin_b));
            let float32x4x2_t(x, y) = match order {
                RopeOrder::Norm => vld2q_f32(p.add(2 * i)),
                RopeOrder::Neox => float32x4x2_t(vld1q_f32(p.add(i)), vld1q_f32(p.add(half + i))),
            };
            let x_turned = vsubq_f32(vmulq_f32(x, cos), vmulq_f32(y, sin));
            let y_turned = vaddq_f32(vmulq_f32(x, sin), vmulq_f32(y, cos));
            match order {
                RopeOrder::Norm => vst2q_f32(p.add(2 * i), float32x4x2_t(x_turned, y_turned)),
                RopeOrder::Neox => {
                    vst1q_f32(p.add(i), x_turned);
                    vst1q_f32(p.add(half + i), y_turned);
                }
            }
        }
    }
}
