//! Plain floats, one element to a block: F32, F16 (IEEE 754 binary16) and BF16 (the upper half of an f32).
//!
//! Little-endian bytes in, f32 out, exactly. Owns the reading of the f16 scales of every other family.

use half::{bf16, f16};

use super::GgmlType;

/// The f16 in bytes `at` and `at + 1`.
pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element `i` of a row of a float type.
pub fn element(ty: GgmlType, row: &[u8], i: usize) -> f32 {
    match ty {
        GgmlType::F16 => f16_at(row, 2 * i),
        GgmlType::BF16 => bf16::from_le_bytes([row[2 * i], row[2 * i + 1]]).to_f32(),
        _ => f32::from_le_bytes([row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]]),
    }
}
