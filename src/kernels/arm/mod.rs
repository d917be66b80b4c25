//! The sets for 64-bit ARM: NEON (every one), with dot product, with the matrix extension for int8. They share how formats are
//! read (formats, superblocks, grids, few), the way through a matrix (blocks), attention (attend, wide), the scan over the index of the past
//! (scan), and what is no product (float); a set brings its integer products.

mod attend;
mod blocks;
mod dense;
mod direct;
pub mod dotprod;
mod few;
pub mod float;
mod formats;
mod grids;
pub mod i8mm;
mod levels;
pub mod neon;
mod packed;
mod placed;
pub mod quads;
mod scan;
mod superblocks;
pub mod wide;

use crate::gguf::quant::GgmlType;
use crate::kernels::spec::{arithmetic, attention, delta, mamba, scan as past};
use crate::kernels::{Asked, MatmulTask, Table};
use blocks::Set;

/// A set with these products and this scan; all else is the same on every ARM.
const fn table(matmul: unsafe fn(&mut MatmulTask), scan: unsafe fn(&[u8], u32, &Asked, usize, &mut [f32])) -> Table {
    Table {
        matmul,
        quantize: float::quantize,
        rms_norm: float::rms_norm,
        add: arithmetic::add,
        silu_mul: float::silu_mul,
        clamped_silu_mul: arithmetic::clamped_silu_mul,
        gelu_mul: float::gelu_mul,
        silu: arithmetic::silu,
        sigmoid_mul: arithmetic::sigmoid_mul,
        delta_step: delta::delta_step,
        mamba_step: mamba::mamba_step,
        relu2: arithmetic::relu2,
        xielu: arithmetic::xielu,
        soft_cap: float::soft_cap,
        l2_norm: float::l2_norm,
        attend: attend::attend,
        merge: attention::merge,
        received: attention::received,
        scan,
        add_shares: past::add_shares,
        place: placed::place,
        widen: Some(wide::widen),
    }
}

/// A set whose products of each type are functions of their own, compiled with its CPU features: compilers take longer over one
/// function of all types.
trait Stamped: Set {
    /// `blocks::quantised`
    ///
    /// # Safety
    /// As `matmul`.
    unsafe fn blocks<F: formats::Format>(task: &mut MatmulTask);

    /// `direct::quantised`
    ///
    /// # Safety
    /// As `matmul`.
    unsafe fn superblocks<F: superblocks::Type>(task: &mut MatmulTask);

    /// `grids::lone::quantised`
    ///
    /// # Safety
    /// As `matmul`.
    unsafe fn grids<F: grids::lone::Grid>(task: &mut MatmulTask);

    /// `few::quantised`
    ///
    /// # Safety
    /// As `matmul`.
    unsafe fn few<F: few::Few>(task: &mut MatmulTask);
}

/// Makes `$set` a set of functions compiled with `$features`; `$lone` multiplies a lone token with types of few bits and with grids.
macro_rules! stamp_arm {
    ($features:literal, $set:ident, $lone:ty) => {
        impl super::Stamped for $set {
            #[inline(always)]
            unsafe fn blocks<F: Format>(task: &mut MatmulTask) {
                // SAFETY: passed on.
                unsafe { blocks::<F>(task) }
            }

            #[inline(always)]
            unsafe fn superblocks<F: super::superblocks::Type>(task: &mut MatmulTask) {
                // SAFETY: passed on.
                unsafe { superblocks::<F>(task) }
            }

            #[inline(always)]
            unsafe fn grids<F: super::grids::lone::Grid>(task: &mut MatmulTask) {
                // SAFETY: passed on.
                unsafe { grids::<F>(task) }
            }

            #[inline(always)]
            unsafe fn few<F: super::few::Few>(task: &mut MatmulTask) {
                // SAFETY: passed on.
                unsafe { few::<F>(task) }
            }
        }

        /// # Safety
        /// As `Stamped::blocks`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn blocks<F: Format>(task: &mut MatmulTask) {
            // SAFETY: passed on.
            unsafe { super::blocks::quantised::<F, $set>(task) }
        }

        /// # Safety
        /// As `Stamped::superblocks`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn superblocks<F: super::superblocks::Type>(task: &mut MatmulTask) {
            // SAFETY: passed on.
            unsafe { super::direct::quantised::<F, $set>(task) }
        }

        /// # Safety
        /// As `Stamped::grids`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn grids<F: super::grids::lone::Grid>(task: &mut MatmulTask) {
            // SAFETY: passed on.
            unsafe { super::grids::lone::quantised::<F, $set, $lone>(task) }
        }

        /// # Safety
        /// As `Stamped::few`.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn few<F: super::few::Few>(task: &mut MatmulTask) {
            // SAFETY: passed on.
            unsafe { super::few::quantised::<F, $set, $lone>(task) }
        }
    };
}
use stamp_arm;

/// The product of a task by the type of its weights.
///
/// # Safety
/// The task's elements of `out` belong to the caller; the CPU features of the set.
#[inline(always)]
unsafe fn matmul<S: Stamped>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => S::blocks::<formats::Q4_0>(task),
            GgmlType::Q4_1 => S::blocks::<formats::Q4_1>(task),
            GgmlType::Q8_0 => S::blocks::<formats::Q8_0>(task),
            GgmlType::Q5_0 => S::blocks::<formats::Q5_0>(task),
            GgmlType::Q5_1 => S::blocks::<formats::Q5_1>(task),
            GgmlType::IQ4_NL => S::blocks::<formats::Iq4Nl>(task),
            GgmlType::Q1_0 => S::superblocks::<superblocks::Q1_0>(task),
            GgmlType::Q2_0 => S::few::<few::Q2_0>(task),
            GgmlType::MXFP4 => S::superblocks::<superblocks::Mxfp4>(task),
            GgmlType::IQ4_XS => S::superblocks::<superblocks::Iq4Xs>(task),
            GgmlType::Q2_K => S::superblocks::<superblocks::Q2K>(task),
            GgmlType::Q3_K => S::superblocks::<superblocks::Q3K>(task),
            GgmlType::Q4_K => S::superblocks::<superblocks::Q4K>(task),
            GgmlType::Q5_K => S::superblocks::<superblocks::Q5K>(task),
            GgmlType::Q6_K => S::superblocks::<superblocks::Q6K>(task),
            GgmlType::IQ2_XXS => S::grids::<grids::Iq2Xxs>(task),
            GgmlType::IQ2_XS => S::grids::<grids::Iq2Xs>(task),
            GgmlType::IQ2_S => S::grids::<grids::Iq2S>(task),
            GgmlType::IQ3_XXS => S::grids::<grids::Iq3Xxs>(task),
            GgmlType::IQ3_S => S::grids::<grids::Iq3S>(task),
            GgmlType::TQ1_0 => S::few::<few::Tq1_0>(task),
            GgmlType::TQ2_0 => S::few::<few::Tq2_0>(task),
            GgmlType::F16 | GgmlType::BF16 | GgmlType::F32 => dense::matmul(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}
