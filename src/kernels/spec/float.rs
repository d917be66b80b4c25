//! Float weight matrices: row by row, token by token, in dot products of the fixed order of `arithmetic.rs`. A batch goes other ways,
//! `x86/float.rs` and `arm/dense.rs`, whose order of summation is their own: equal to this within f32 rounding, not bit for bit.

use super::arithmetic::{LoadF16, add_lanes};
use crate::gguf::quant::{GgmlType, element};
use crate::kernels::MatmulTask;

/// From this many tokens on a batch is worth a matrix product.
pub const GEMM_FROM: usize = 8;

/// Row by row, token by token.
///
/// # Safety
/// The task's elements of `out` belong to the caller; the CPU features that `F` needs.
#[inline(always)]
pub unsafe fn rows<F: LoadF16>(task: &mut MatmulTask) {
    let acts = task.acts;
    let (whole, rest) = (acts.n_cols / 8, acts.n_cols % 8);
    let (ty, elem_bytes) = (task.w.ty, task.w.ty.block_bytes());
    for row in task.rows.clone() {
        let w = task.w.row(row);
        for t in 0..acts.n_tok {
            let x = &acts.x[t * acts.n_cols..][..acts.n_cols];
            let mut lanes = [0f32; 8];
            for i in 0..whole {
                // SAFETY: eight elements of this row start here.
                let w8 = unsafe { load8::<F>(ty, w.as_ptr().add(i * 8 * elem_bytes)) };
                for l in 0..8 {
                    lanes[l] = w8[l].mul_add(x[i * 8 + l], lanes[l]);
                }
            }
            for l in 0..rest {
                let w = element(ty, w, whole * 8 + l);
                lanes[l] = w.mul_add(x[whole * 8 + l], lanes[l]);
            }
            // SAFETY: the caller's element.
            unsafe { task.out.store(t, row, add_lanes(lanes)) };
        }
    }
}

/// # Safety
/// Eight elements of a float type at `p`; the CPU features that `F` needs.
#[inline(always)]
pub unsafe fn load8<F: LoadF16>(ty: GgmlType, p: *const u8) -> [f32; 8] {
    // SAFETY: 16 or 32 bytes by the caller's promise.
    unsafe {
        match ty {
            GgmlType::F16 => F::load8(p),
            GgmlType::BF16 => p.cast::<[u16; 8]>().read_unaligned().map(|h| f32::from_bits(u32::from(u16::from_le(h)) << 16)),
            _ => p.cast::<[f32; 8]>().read_unaligned(),
        }
    }
}
