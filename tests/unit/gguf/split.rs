//! Tests of `gguf::split`.

use super::*;

#[test]
fn parts_are_named_by_number_and_count() {
    let here = Path::new("a/m-00002-of-00003.gguf");
    assert_eq!(sibling(here, 1, 3, 0), Some("a/m-00001-of-00003.gguf".into()));
    assert_eq!(sibling(here, 1, 3, 2), Some("a/m-00003-of-00003.gguf".into()));
    for (name, no, count) in [("a/m-00002-of-00003.gguf", 0, 3), ("a/m-00002-of-00003.gguf", 1, 4), ("a/m.gguf", 1, 3)] {
        assert_eq!(sibling(Path::new(name), no, count, 0), None, "{name}");
    }
    assert_eq!(suffix(u32::MAX, 100_000), "-4294967296-of-100000.gguf");
}
