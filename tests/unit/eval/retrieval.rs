//! Tests of `eval::retrieval`.

use super::*;

#[test]
fn answers_are_judged_by_their_text() {
    let number = Answer::Number("4217".into());
    for (text, found) in [(" 4217.", 1), ("4217", 1), (": 4217 is", 1), (" 42170", 0), (" 421, 4217", 0), ("", 0), ("x", 0)] {
        assert_eq!(number.found(text), found, "{text:?}");
    }
    let phrases = Answer::Phrases(vec!["fly a kite".into(), "17".into()]);
    for (text, found) in
        [("Fly a kite.", 1), ("17, fly a kite", 2), ("fly a kites", 0), ("170", 0), ("a17", 0), ("1 17 7", 1), ("\u{e9}17", 0)]
    {
        assert_eq!(phrases.found(text), found, "{text:?}");
    }
    assert_eq!((number.n(), phrases.n()), (1, 2));
}

#[test]
fn wilson_by_hand() {
    // 8 of 10: the centre is (0.8 + 0.19207) / 1.38415, the half width 1.95996 / 1.38415 * sqrt(0.016 + 0.0096036).
    let (low, high) = wilson(8, 10);
    assert!((low - 0.49016).abs() < 1e-4 && (high - 0.94332).abs() < 1e-4, "{low} {high}");
    assert!(wilson(0, 5).0 == 0.0 && wilson(5, 5).1 == 1.0 && wilson(0, 0) == (0.0, 1.0));
}

#[test]
fn depths_run_from_the_beginning_to_the_end() {
    assert_eq!((0..5).map(|i| depth_of(i, 5)).collect::<Vec<_>>(), [0.0, 0.25, 0.5, 0.75, 1.0]);
    assert_eq!(depth_of(0, 1), 0.5);
    assert_eq!([place(0.0, 7), place(0.5, 7), place(1.0, 7), place(0.5, 0)], [0, 4, 7, 0]);
}

#[test]
fn draws_differ_by_every_part_of_what_they_are_for() {
    let first = |seed, length, depth, sample| rng(seed, length, depth, sample).u64(..);
    let all = [first(1, 1024, 0, 0), first(2, 1024, 0, 0), first(1, 2048, 0, 0), first(1, 1024, 1, 0), first(1, 1024, 0, 1)];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    assert_eq!(first(1, 1024, 0, 0), all[0]);
}
