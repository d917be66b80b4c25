//! The sets for 64-bit ARM: NEON (every one), with dot product, with the matrix extension for int8. They share how formats are
//! read (formats, superblocks, grids), the way through a matrix (blocks), attention (attend, wide), and what is no product (float); a
//! set brings its integer products.

mod attend;
mod blocks;
mod dense;
mod direct;
pub mod dotprod;
pub mod float;
mod formats;
mod grids;
pub mod i8mm;
mod levels;
pub mod neon;
mod packed;
pub mod quads;
mod superblocks;
pub mod wide;

use crate::gguf::quant::GgmlType;
use crate::kernels::spec::{arithmetic, attention, delta, placed, scan};
use crate::kernels::{MatmulTask, Table};
use blocks::Set;

/// A set with these products; all else is the same on every ARM.
const fn table(matmul: unsafe fn(&mut MatmulTask)) -> Table {
    Table {
        matmul,
        quantize: float::quantize,
        rms_norm: float::rms_norm,
        add: arithmetic::add,
        silu_mul: float::silu_mul,
        gelu_mul: float::gelu_mul,
        silu: arithmetic::silu,
        sigmoid_mul: arithmetic::sigmoid_mul,
        delta_step: delta::delta_step,
        relu2: arithmetic::relu2,
        xielu: arithmetic::xielu,
        soft_cap: float::soft_cap,
        l2_norm: float::l2_norm,
        attend: attend::attend,
        merge: attention::merge,
        received: attention::received,
        scan: scan::scan,
        add_shares: scan::add_shares,
        place: placed::place,
        widen: Some(wide::widen),
    }
}

/// The product of a task by the type of its weights.
///
/// # Safety
/// The task's elements of `out` belong to the caller; the CPU features of the set.
#[inline(always)]
unsafe fn matmul<S: Set>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => blocks::quantised::<formats::Q4_0, S>(task),
            GgmlType::Q4_1 => blocks::quantised::<formats::Q4_1, S>(task),
            GgmlType::Q8_0 => blocks::quantised::<formats::Q8_0, S>(task),
            GgmlType::Q5_0 => blocks::quantised::<formats::Q5_0, S>(task),
            GgmlType::Q5_1 => blocks::quantised::<formats::Q5_1, S>(task),
            GgmlType::IQ4_NL => blocks::quantised::<formats::Iq4Nl, S>(task),
            GgmlType::Q1_0 => direct::quantised::<superblocks::Q1_0, S>(task),
            GgmlType::Q2_0 => direct::quantised::<superblocks::Q2_0, S>(task),
            GgmlType::MXFP4 => direct::quantised::<superblocks::Mxfp4, S>(task),
            GgmlType::IQ4_XS => direct::quantised::<superblocks::Iq4Xs, S>(task),
            GgmlType::Q2_K => direct::quantised::<superblocks::Q2K, S>(task),
            GgmlType::Q3_K => direct::quantised::<superblocks::Q3K, S>(task),
            GgmlType::Q4_K => direct::quantised::<superblocks::Q4K, S>(task),
            GgmlType::Q5_K => direct::quantised::<superblocks::Q5K, S>(task),
            GgmlType::Q6_K => direct::quantised::<superblocks::Q6K, S>(task),
            GgmlType::IQ2_XXS => direct::quantised::<grids::Iq2Xxs, S>(task),
            GgmlType::IQ2_XS => direct::quantised::<grids::Iq2Xs, S>(task),
            GgmlType::IQ2_S => direct::quantised::<grids::Iq2S, S>(task),
            GgmlType::IQ3_XXS => direct::quantised::<grids::Iq3Xxs, S>(task),
            GgmlType::IQ3_S => direct::quantised::<grids::Iq3S, S>(task),
            GgmlType::TQ1_0 => direct::quantised::<grids::Tq1_0, S>(task),
            GgmlType::TQ2_0 => direct::quantised::<grids::Tq2_0, S>(task),
            GgmlType::F16 | GgmlType::BF16 | GgmlType::F32 => dense::matmul(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}
