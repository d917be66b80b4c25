//! MXFP4: 32 elements of a sign, two exponent bits and one mantissa bit (E2M1), scaled by one power of two (E8M0).
//!
//! x = 2^(e-127) * element. OCP Microscaling Formats (MX) Specification v1.0, 2023.

use super::Block;
use super::legacy::nibbles;

/// The values of E2M1, doubled so that they are integers.
pub const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `u8 exponent; u8 qs[16]`, elements packed as in Q4_0: half the scale times the doubled value
pub(super) fn mxfp4(bytes: &[u8], _: usize) -> Block {
    Block::of_levels(&DOUBLED, nibbles(&bytes[1..]), half_power_of_two(bytes[0]))
}

/// 2^(e-128), half the scale that the exponent stands for, to go with the doubled values.
pub fn half_power_of_two(e: u8) -> f32 {
    // An f32 stores exponents from 1 up; 2^-127 and 2^-128 are subnormal, a single mantissa bit.
    let bits = if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 };
    f32::from_bits(bits)
}
