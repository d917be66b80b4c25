//! Tests of `session`.

use super::*;

#[test]
fn a_shortage_is_weights_beyond_what_private_memory_leaves() {
    let mut plan = Plan::default();
    plan.file("weights", 4_000_000_000);
    plan.private("kv arena", 100);
    let of = |of_experts, available| Shortage::of_bytes(&plan, of_experts, available);
    assert_eq!(of((0, 0), None), None);
    assert_eq!(of((0, 0), Some(4_000_000_100)), None);
    let short = of((0, 0), Some(4_000_000_099)).expect("a byte is missing");
    let (file_bytes, left_bytes) = (4_000_000_000, 3_999_999_999);
    assert_eq!(short, Shortage { file_bytes, read_bytes: 4_000_000_000, chosen_bytes: 0, left_bytes });
    assert_eq!(of((0, 0), Some(7)).expect("no room").left_bytes, 0);
    let line = short.to_string();
    assert!(line.contains("up to 100.0 s a token at 40 MB/s") && line.contains("10.0 s at 400 MB/s"), "{line}");
    assert!(!line.contains('\n') && !line.contains("  "), "{line}");
}

/// Of a mixture what all tokens go through stays in memory, where it fits beside the experts of one.
#[test]
fn a_mixture_reads_the_experts_that_it_chooses() {
    let mut plan = Plan::default();
    plan.file("weights", 4_000_000_000);
    let of =
        |available| Shortage::of_bytes(&plan, (3_000_000_000, 400_000_000), Some(available)).expect("a shortage").to_string();
    for (available, seconds) in [(1_000_000_000, "10.0 s"), (999_999_999, "25.0 s")] {
        let line = of(available);
        assert!(line.contains(&format!("up to {seconds} a token at 40 MB/s")) && !line.contains("  "), "{line}");
        assert!(line.contains("through 953.7 MiB of them, of which 381.5 MiB are experts"), "{line}");
    }
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
