//! Tests of `text::tokenizer::library_bpe`.

use super::*;

#[test]
fn tables_are_estimated_from_above() {
    for entries in [1u64, 6, 7, 8, 13, 14, 15, 28, 29, 1000, 48_900, 49_152, 57_344, 57_345] {
        let mut map: std::collections::HashMap<u64, u64> = std::collections::HashMap::new();
        map.reserve(entries as usize);
        // A table of 2^k places (from 4) takes at most 7/8 of them.
        assert!(table_bytes(entries, 16) >= map.capacity() as u64 * 8 / 7 * 17, "{entries}: {}", map.capacity());
    }
    assert_eq!([heap_chunk(0), heap_chunk(24), heap_chunk(25), heap_chunk(41)], [32, 32, 48, 64]);
}
