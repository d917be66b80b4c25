//! Plain floats, one element to a block: F32, F16 (IEEE 754 binary16) and BF16 (the upper half of an f32).
//!
//! Little-endian bytes in, f32 out, exactly. Owns the reading of the f16 scales of every other family.

use half::{bf16, f16 as Half};

/// The f16 in the first two bytes of a field.
pub(super) fn scale(bytes: &[u8]) -> f32 {
    Half::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

pub(super) fn f32(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

pub(super) fn f16(block: &[u8], out: &mut [f32]) {
    out[0] = scale(block);
}

pub(super) fn bf16(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}
