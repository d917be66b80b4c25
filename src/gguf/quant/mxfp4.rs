//! MXFP4: 32 elements of a sign, two exponent bits and one mantissa bit (E2M1), scaled by one power of two (E8M0).
//!
//! A byte of exponent e, then 16 bytes of elements packed as in Q4_0. x = 2^(e-127) * element.
//! OCP Microscaling Formats (MX) Specification v1.0, 2023.

use super::legacy::nibbles;

/// The values of E2M1, doubled so that they are integers.
pub const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    let half_scale = half_power_of_two(block[0]);
    for (out, q) in out.iter_mut().zip(nibbles(&block[1..17])) {
        *out = half_scale * f32::from(DOUBLED[usize::from(q)]);
    }
}

/// 2^(e-128), half the scale that the exponent stands for, to go with the doubled values.
pub fn half_power_of_two(e: u8) -> f32 {
    // An f32 stores exponents from 1 up; 2^-127 and 2^-128 are subnormal, a single mantissa bit.
    let bits = if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 };
    f32::from_bits(bits)
}
