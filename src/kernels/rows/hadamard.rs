//! The Hadamard turn of a row: it spreads a large element over all, so that few bits hold them better.

/// Turns `x` by the orthonormal Hadamard matrix of its order, a power of two; see spec/arithmetic.rs. The same for all sets of a family,
/// for it takes no feature that a CPU could lack.
#[inline(always)]
pub fn hadamard(x: &mut [f32]) {
    #[cfg(target_arch = "aarch64")]
    crate::kernels::arm::float::hadamard(x);
    #[cfg(not(target_arch = "aarch64"))]
    crate::kernels::spec::arithmetic::hadamard(x);
}

/// Signs without a pattern, so that a vector of equal elements is not gathered into one: bits of a Weyl sequence.
#[inline(always)]
pub fn flip(x: &mut [f32]) {
    for (i, x) in x.iter_mut().enumerate() {
        *x = f32::from_bits(x.to_bits() ^ sign(i));
    }
}

/// The sign bit, if `flip` turns element `i`.
#[inline(always)]
pub const fn sign(i: usize) -> u32 {
    (i as u32 + 1).wrapping_mul(0x9e37_79b9) & 0x8000_0000
}
