//! Tests of `eval::needle`.

use super::*;

const TEXT: &str = "A heading\n\nOne one. \"Two two!\" Three\nthree?\n  \nFour four. Five\n\n\n";

#[test]
fn texts_are_cut_into_paragraphs_and_sentences() {
    let hay = Haystack::new(TEXT);
    let sentences: Vec<_> = hay.sentences.iter().map(|s| (s.text, s.opens)).collect();
    let expected = [
        ("A heading", true),
        ("One one.", true),
        ("\"Two two!\"", false),
        ("Three\nthree?", false),
        ("Four four.", true),
        ("Five", false),
    ];
    assert_eq!(sentences, expected);
    assert_eq!(hay.paragraphs, [0, 1, 4]);
    let cut = |text| sentences_of(text).collect::<Vec<_>>();
    assert_eq!(cut("Version 1.5 of it. 「好。」他说。Yes."), ["Version 1.5 of it.", "「好。」", "他说。", "Yes."]);
    let (words, dense) = (["word"; 200].join(" "), "字".repeat(600));
    assert!(cut(&words).len() == 3 && cut(&words).iter().all(|s| s.len() <= 404 && s.ends_with("word")));
    assert_eq!((cut(&dense).len(), cut(&dense).concat()), (3, dense.clone()));
    for text in [TEXT, &words, &dense] {
        assert!(Haystack::new(text).sentences.capacity() * size_of::<Sentence>() <= Haystack::bytes(text));
    }
    for none in ["", " \n\n \n"] {
        assert!(Haystack::new(none).paragraphs.is_empty());
    }
}

#[test]
fn the_needle_stands_at_the_break_nearest_to_the_depth() {
    let hay = Haystack::new(TEXT);
    let at = |start, n, depth| hay.with_needle(start, n, depth, "NEEDLE.");
    assert_eq!(at(0, 2, 0.0), "NEEDLE.\n\nA heading\n\nOne one.");
    assert_eq!(at(0, 2, 0.5), "A heading\n\nNEEDLE.\n\nOne one.");
    assert_eq!(at(1, 4, 1.0), "One one. \"Two two!\" Three\nthree?\n\nFour four.\n\nNEEDLE.");
    // Nine tenths in, the nearest break is the end; two thirds in it is between the paragraphs.
    assert_eq!(at(1, 4, 0.66), "One one. \"Two two!\" Three\nthree?\n\nNEEDLE.\n\nFour four.");
    // A window without a break takes the ends of its sentences.
    assert_eq!(at(1, 3, 0.5), "One one. \"Two two!\"\n\nNEEDLE.\n\nThree\nthree?");
    // Around the end of the text.
    assert_eq!(at(4, 3, 0.9), "Four four. Five\n\nA heading\n\nNEEDLE.");
    assert_eq!(at(0, 0, 0.3), "NEEDLE.");
}

#[test]
fn a_fact_answers_its_question() {
    for kind in 0..8 {
        let fact = fact(kind, &mut fastrand::Rng::with_seed(kind as u64));
        assert!(fact.needle.starts_with(&fact.answer_start) && fact.needle.contains(&fact.phrase), "{}", fact.needle);
        assert!(!fact.question.contains(&fact.phrase) && !fact.answer_start.contains(&fact.phrase));
    }
}
