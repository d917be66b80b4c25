//! Tests of `session`.

use super::*;

#[test]
fn a_shortage_is_weights_beyond_what_private_memory_leaves() {
    let mut plan = Plan::default();
    plan.file("weights", 4_000_000_000);
    plan.private("kv arena", 100);
    assert_eq!(Shortage::of(&plan, 0, None), None);
    assert_eq!(Shortage::of(&plan, 0, Some(4_000_000_100)), None);
    let short = Shortage::of(&plan, 0, Some(4_000_000_099)).expect("a byte is missing");
    assert_eq!(short, Shortage { file_bytes: 4_000_000_000, read_bytes: 4_000_000_000, left_bytes: 3_999_999_999 });
    assert_eq!(Shortage::of(&plan, 0, Some(7)).expect("no room").left_bytes, 0);
    let line = short.to_string();
    assert!(line.contains("up to 100.0 s a token at 40 MB/s") && line.contains("10.0 s at 400 MB/s"), "{line}");
    assert!(!line.contains('\n') && !line.contains("  "), "{line}");
}

#[test]
fn a_shortage_of_the_past_is_an_index_beyond_what_weights_leave() {
    let mut plan = Plan::default();
    plan.file("weights", 3_000_000_000);
    plan.private("kv arena", 100);
    assert_eq!(PastShortage::of(&plan, 0, Some(7)), None);
    assert_eq!(PastShortage::of(&plan, 400_000_000, None), None);
    assert_eq!(PastShortage::of(&plan, 400_000_000, Some(3_400_000_100)), None);
    let short = PastShortage::of(&plan, 400_000_000, Some(3_400_000_099)).expect("a byte is missing");
    assert_eq!(short, PastShortage { index_bytes: 400_000_000, left_bytes: 399_999_999 });
    assert_eq!(PastShortage::of(&plan, 1, Some(7)).expect("no room").left_bytes, 0);
    let line = short.to_string();
    assert!(line.contains("up to 10.0 s a token at 40 MB/s") && !line.contains("  "), "{line}");
}
