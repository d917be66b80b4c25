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
    assert_eq!(one.why_not(&Fingerprint { model_name: Short::of("renamed"), ..one }), None);
    let why = |other: Fingerprint| {
        assert_ne!(one.hash(), other.hash());
        one.why_not(&other).expect("another one")
    };
    assert_eq!(why(Fingerprint { model: 2, ..one }), "it is of another model, 'a\\nmodel'");
    assert!(why(Fingerprint { template: 1, ..one }).contains("template"));
    assert_eq!(why(Fingerprint { settings: Short::of("h2o"), ..one }), "it was saved with other settings, 'l2' and not 'h2o'");
}
