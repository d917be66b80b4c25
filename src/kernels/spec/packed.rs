//! The packed layout: eight rows of a matrix interleaved, so that one load of 16 bytes holds four columns of four rows and
//! a lane of a dot product is a row. A permutation of the file's bytes: no value changes, and a packed matrix is as large
//! as the one it was made of. Which types are packed, how, and the way back, byte by byte; kernels for it are elsewhere.
//!
//! Block `b` of eight rows stands where their blocks `b` would stand together:
//!
//! ```text
//! d      8 x f16              scales of rows 0..8
//! m      8 x f16              minimums, only types that have them
//! low    rows 0..4            for k in order: bytes 4k..4k+4 of the elements of row 0, of row 1, of row 2, of row 3
//! high   rows 4..8            likewise
//! ```
//!
//! The elements of a row are its block behind scale and minimum: 16 bytes of nibbles, or 32 int8.

use crate::gguf::quant::GgmlType;
use crate::kernels::Matrix;

/// Rows that are interleaved; a matrix with another number of rows than a multiple of it stays as it is.
pub const ROWS: usize = 8;
/// The largest block of one row.
pub const MAX_BLOCK_BYTES: usize = 34;

/// Bytes of f16 scales and minimums of a row's block.
fn head_bytes(ty: GgmlType) -> Option<usize> {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q8_0 => Some(2),
        GgmlType::Q4_1 => Some(4),
        _ => None,
    }
}

/// Whether a matrix can have this layout.
pub fn can_pack(ty: GgmlType, n_rows: usize) -> bool {
    head_bytes(ty).is_some() && n_rows > 0 && n_rows % ROWS == 0
}

/// Where byte `i` of a block of row `r` goes among the bytes of eight such blocks.
fn place(head: usize, block_bytes: usize, r: usize, i: usize) -> usize {
    if i < head {
        return i / 2 * 2 * ROWS + 2 * r + i % 2;
    }
    let (i, half) = (i - head, (block_bytes - head) * ROWS / 2);
    head * ROWS + r / 4 * half + i / 4 * 16 + r % 4 * 4 + i % 4
}

/// Interleaves eight rows as they lie in the file, one behind the other; `packed` is as long.
pub fn pack_rows(ty: GgmlType, rows: &[u8], packed: &mut [u8]) {
    let (head, bytes) = (head_bytes(ty).expect("a type that is packed"), ty.block_bytes());
    assert!(rows.len() == packed.len() && rows.len() % (ROWS * bytes) == 0);
    for (r, row) in rows.chunks_exact(rows.len() / ROWS).enumerate() {
        for (block, packed) in row.chunks_exact(bytes).zip(packed.chunks_exact_mut(ROWS * bytes)) {
            for (i, &byte) in block.iter().enumerate() {
                packed[place(head, bytes, r, i)] = byte;
            }
        }
    }
}

/// Block `b` of row `row` of a packed matrix as it lay in the file.
pub fn block(w: &Matrix, row: usize, b: usize) -> [u8; MAX_BLOCK_BYTES] {
    let (head, bytes) = (head_bytes(w.ty).expect("a type that is packed"), w.ty.block_bytes());
    let packed = &w.data[row / ROWS * ROWS * w.row_bytes() + b * ROWS * bytes..][..ROWS * bytes];
    std::array::from_fn(|i| if i < bytes { packed[place(head, bytes, row % ROWS, i)] } else { 0 })
}

#[cfg(test)]
#[path = "../../../tests/unit/kernels/spec/packed.rs"]
mod tests;
