//! Tests of `session_file::fingerprint`.

use super::*;

#[test]
fn blocks_are_spread_from_the_first_byte_to_the_last() {
    for len in [0, 1, 100, N_BLOCKS * BLOCK_BYTES] {
        let found: Vec<_> = blocks(10..10 + len).collect();
        assert_eq!((found.len(), &found[0]), (1, &(10..10 + len)));
    }
    for len in [N_BLOCKS * BLOCK_BYTES + 1, 98_362_432, 1 << 40] {
        let found: Vec<_> = blocks(10..10 + len).collect();
        assert_eq!(found.len() as u64, N_BLOCKS);
        assert_eq!((found[0].start, found[63].end), (10, 10 + len));
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start && pair[0].end - pair[0].start == BLOCK_BYTES));
    }
}

#[test]
fn why_a_stream_is_another_is_said_in_words() {
    let one = Fingerprint { model: 1, template: 2, settings: Short::of("l2"), model_name: Short::of("a\nmodel") };
    assert!(one.why_not(&Fingerprint { model_name: Short::of("renamed"), ..one }).is_none());
    let why = |other: Fingerprint| {
        assert_ne!(one.hash(), other.hash());
        one.why_not(&other).expect("another one")
    };
    assert_eq!(why(Fingerprint { model: 2, ..one }).to_string(), "it is of another model, 'a\\nmodel'");
    assert!(why(Fingerprint { template: 1, ..one }).to_string().contains("template"));
    let odd = why(Fingerprint { settings: Short::of("h2o"), ..one });
    assert_eq!(odd.to_string(), "it was saved with other settings, 'l2' and not 'h2o'", "settings of no known form");
}

#[test]
fn only_what_differs_is_said_and_what_decides_it() {
    let settings = |types: &str, slots: u32, rule: &str, past: &str| {
        Short::of(&format!("{types} {slots} slots; {rule}, pool 2, half-life 8; no window{past}; arithmetic 1"))
    };
    let with = |settings| Fingerprint { model: 1, template: 2, settings, model_name: Short::of("m") };
    let l2 = "l2-attn, 4 sinks, 603 recent, 905 reserved";
    let one = with(settings("q5_h/q4_h", 2012, l2, ""));
    let spell = |setting: Setting| format!("<{setting:?}>");
    for (other, right) in [
        // The recent and the reserved are shares of the slots.
        (
            settings("q5_h/q4_h", 999, "l2-attn, 4 sinks, 299 recent, 449 reserved", ""),
            "2012 slots and not 999 slots (<KvBudget> or <Batch>)",
        ),
        (
            settings("f16", 2012, "l2-attn, 5 sinks, 603 recent, 905 reserved", ""),
            "q5_h/q4_h and not f16 (<KvType>), 4 sinks and not 5 sinks (<Sinks>)",
        ),
        (settings("q5_h/q4_h", 2012, "window, 4 sinks, 0 recent, 0 reserved", ""), "l2-attn and not window (<Evict>)"),
        (settings("q5_h/q4_h", 2012, "l2-attn, 4 sinks, 7 recent, 905 reserved", ""), "603 recent and not 7 recent (<Recent>)"),
        (
            settings("q5_h/q4_h", 2012, l2, "; a past of 64 bytes, recall 4"),
            "no past and not a past of 64 bytes, recall 4 (<Past> or <PastSpace> or <Recall>)",
        ),
    ] {
        let why = one.why_not(&with(other)).expect("another one");
        assert_eq!(why.spelled(&spell), format!("it was saved with {right}"));
    }
}
