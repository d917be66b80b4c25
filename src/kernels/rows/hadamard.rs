//! The Hadamard turn of a row: it spreads a large element over all, so that few bits hold them better.

/// Turns `x` by the orthonormal Hadamard matrix of its order, a power of two; see spec/arithmetic.rs. The same for all sets of a family,
/// for it takes no feature that a CPU could lack.
pub fn hadamard(x: &mut [f32]) {
    #[cfg(target_arch = "aarch64")]
    crate::kernels::arm::float::hadamard(x);
    #[cfg(not(target_arch = "aarch64"))]
    crate::kernels::spec::arithmetic::hadamard(x);
}
