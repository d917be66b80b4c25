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
mod tests {
    use super::*;

    const TYPES: [GgmlType; 3] = [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0];

    #[test]
    fn packing_is_a_permutation_with_a_way_back() {
        for ty in TYPES {
            let (n_rows, n_blocks, bytes) = (16, 3, ty.block_bytes());
            let row_bytes = n_blocks * bytes;
            // Every byte another one, as far as bytes go: the place of each is checked by the way back.
            let rows: Vec<u8> = (0..n_rows * row_bytes).map(|i| (i * 7 + i / 251) as u8).collect();
            let mut packed = vec![0; rows.len()];
            for (rows, packed) in rows.chunks(ROWS * row_bytes).zip(packed.chunks_mut(ROWS * row_bytes)) {
                pack_rows(ty, rows, packed);
            }
            let mut counts = [[0; 256]; 2];
            (0..rows.len()).for_each(|i| {
                counts[0][usize::from(rows[i])] += 1;
                counts[1][usize::from(packed[i])] += 1;
            });
            assert_eq!(counts[0], counts[1], "{ty}");
            let w = Matrix { ty, n_rows, n_cols: n_blocks * 32, data: &packed, packed: true };
            for row in 0..n_rows {
                for b in 0..n_blocks {
                    let want = &rows[row * row_bytes + b * bytes..][..bytes];
                    assert_eq!(&block(&w, row, b)[..bytes], want, "{ty} row {row} block {b}");
                }
            }
        }
    }

    #[test]
    fn the_layout_by_hand() {
        // Row r of one block of Q4_1: scale (r, 100 + r), minimum (200, r), elements 16 r + i.
        let rows: Vec<u8> =
            (0..8u8).flat_map(|r| [r, 100 + r, 200, r].into_iter().chain((0..16).map(move |i| 16 * r + i))).collect();
        let mut packed = vec![0; rows.len()];
        pack_rows(GgmlType::Q4_1, &rows, &mut packed);
        assert_eq!(&packed[..6], [0, 100, 1, 101, 2, 102]);
        assert_eq!(&packed[16..22], [200, 0, 200, 1, 200, 2]);
        assert_eq!(&packed[32..52], [0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51, 4, 5, 6, 7]);
        assert_eq!(&packed[96..100], [64, 65, 66, 67]);
    }

    #[test]
    fn what_is_not_packed() {
        assert!(can_pack(GgmlType::Q8_0, 8) && !can_pack(GgmlType::Q8_0, 12) && !can_pack(GgmlType::Q8_0, 0));
        assert!(!can_pack(GgmlType::F16, 8) && !can_pack(GgmlType::Q4_K, 8) && !can_pack(GgmlType::Q5_0, 8));
        assert!(TYPES.iter().all(|ty| can_pack(*ty, 16) && ty.block_bytes() <= MAX_BLOCK_BYTES && ty.block_elems() == 32));
    }
}
