//! Tests of `kernels::spec::packed`.

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
    let rows: Vec<u8> = (0..8u8).flat_map(|r| [r, 100 + r, 200, r].into_iter().chain((0..16).map(move |i| 16 * r + i))).collect();
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
