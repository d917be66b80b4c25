//! The sets for x86.

mod attend;
mod attend512;
pub mod avx2;
pub mod avx512;
mod float;
mod formats;
mod product;

/// The functions of a set beside `matmul`, compiled with its features.
macro_rules! stamp_x86 {
    ($features:literal, $width:ty) => {
        #[target_feature(enable = $features)]
        unsafe fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
            // SAFETY: the set has the features.
            unsafe { crate::kernels::x86::float::quantize(x, q, d, s, sum) }
        }
        #[target_feature(enable = $features)]
        unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            crate::kernels::spec::arithmetic::rms_norm(x, weight, eps, out)
        }
        #[target_feature(enable = $features)]
        unsafe fn add(x: &mut [f32], y: &[f32]) {
            crate::kernels::spec::arithmetic::add(x, y)
        }
        #[target_feature(enable = $features)]
        unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::spec::arithmetic::silu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn gelu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::spec::arithmetic::gelu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn soft_cap(x: &mut [f32], cap: f32) {
            crate::kernels::spec::arithmetic::soft_cap(x, cap)
        }
        #[target_feature(enable = $features)]
        unsafe fn l2_norm(x: &[f32]) -> f32 {
            crate::kernels::spec::arithmetic::l2_norm(x)
        }
        #[target_feature(enable = $features)]
        unsafe fn attend(a: &crate::kernels::Attend, out: &mut crate::kernels::Partial) {
            // SAFETY: passed on to the caller; the set has the features.
            unsafe { crate::kernels::x86::attend::attend::<$width>(a, out) }
        }
        #[target_feature(enable = $features)]
        unsafe fn merge(running: &mut [f32], acc: &mut [f32], chunk: &crate::kernels::Partial) {
            crate::kernels::spec::attention::merge(running, acc, chunk)
        }
        #[target_feature(enable = $features)]
        unsafe fn received(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) {
            crate::kernels::spec::attention::received(tops, weights, running, total)
        }
    };
}
pub(crate) use stamp_x86;
