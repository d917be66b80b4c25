use super::*;

fn after(tokens: &[u32]) -> Drafts {
    let mut drafts = Drafts::new();
    drafts.push(tokens);
    drafts
}

#[test]
fn what_followed_the_same_words_is_guessed_half_as_much_as_has_matched() {
    let mut drafts = after(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]);
    assert_eq!(drafts.guess(16), [3], "two words have matched");
    drafts.push(&[3, 4, 5]);
    assert_eq!(drafts.guess(16), [6, 7], "and three that were expected");
    assert_eq!(drafts.guess(1), [6]);
    assert!(drafts.guess(0).is_empty());
    // Another word: what followed the latest two is not known.
    drafts.push(&[50]);
    assert!(drafts.guess(16).is_empty());
    // The latest place counts, and three words before two.
    let mut drafts = after(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]);
    assert_eq!(drafts.guess(1), [3]);
    let mut drafts = after(&[7, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2]);
    assert_eq!(drafts.guess(1), [4]);
    assert!(after(&[]).guess(4).is_empty());
    assert!(after(&[3, 3]).guess(4).is_empty());
}

#[test]
fn what_repeats_itself_is_guessed_beyond_its_end() {
    let mut drafts = after(&[9, 1, 2, 3, 1, 2, 3, 1, 2, 3]);
    assert_eq!(drafts.guess(3), [1]);
    drafts.push(&[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]);
    assert_eq!(drafts.guess(7), [3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn what_is_far_behind_is_forgotten() {
    let mut drafts = after(&[1, 2, 3, 4, 5]);
    // Unlike each other, and longer than what is remembered.
    let others: Vec<u32> = (0..N_TOKENS as u32).map(|i| 100 + i).collect();
    drafts.push(&others[..N_TOKENS - 20]);
    drafts.push(&[1, 2, 3]);
    drafts.push(&others);
    drafts.push(&[1, 2, 3]);
    // 1, 2, 3 came again in between, further back than is remembered.
    assert!(drafts.guess(16).is_empty());
}

#[test]
fn too_few_right_ones_make_a_pause_and_a_place_that_holds_ends_it() {
    let phrase: Vec<u32> = (1000..1020).collect();
    let mut drafts = after(&[1, 2, 3, 4]);
    drafts.push(&phrase);
    drafts.begin();
    (1..N_JUDGED).for_each(|_| drafts.judge(3, 0));
    drafts.push(&[1, 2, 3]);
    assert!(!drafts.guess(4).is_empty(), "four are not judged yet");
    drafts.judge(3, 2);
    assert_eq!(drafts.counts(), DraftCounts { n_drafts: 5, n_guessed: 15, n_right: 2 });
    drafts.push(&[1, 2, 3]);
    assert!(drafts.guess(4).is_empty(), "2 of 15 are less than a fifth");
    // Followed in silence.
    drafts.push(&phrase[..3]);
    assert!(drafts.guess(4).is_empty());
    drafts.push(&phrase[3..12]);
    assert_eq!(drafts.guess(4), &phrase[12..16]);
    // After the pause again, and the next one is longer, until enough are right.
    drafts.push(&(0..PAUSE as u32).map(|i| 5000 + i).collect::<Vec<_>>());
    drafts.push(&[1, 2]);
    assert!(!drafts.guess(4).is_empty());
    (0..N_JUDGED).for_each(|_| drafts.judge(4, 0));
    assert_eq!(drafts.paused, 2 * PAUSE);
    (0..N_JUDGED).for_each(|_| drafts.judge(4, 1));
    assert_eq!(drafts.pause, PAUSE);
    drafts.begin();
    assert_eq!((drafts.counts(), drafts.paused), (DraftCounts::default(), 0));
}

#[test]
fn what_a_stream_has_forgotten_is_guessed_no_more() {
    let mut drafts = after(&[1, 2, 3, 4, 5, 6, 1, 2, 3]);
    assert_eq!(drafts.guess(1), [4]);
    // Back to 1, 2, 3, 4; another way from there.
    drafts.forget(5);
    drafts.push(&[9, 1, 2, 3]);
    assert_eq!(drafts.guess(1), [4]);
    drafts.push(&[4]);
    assert_eq!(drafts.guess(2), [9, 1], "and not 5");
    drafts.clear();
    drafts.push(&[1, 2, 3]);
    assert_eq!(drafts.guess(4), [0; 0], "another conversation");
    drafts.push(&[1, 2, 3]);
    assert_eq!(drafts.guess(1), [1]);
    // So many have come and gone that the first ones have been written over.
    drafts.clear();
    drafts.push(&[1, 2, 3, 4, 5]);
    drafts.push(&vec![8; N_TOKENS]);
    drafts.forget(N_TOKENS);
    drafts.push(&[1, 2, 3]);
    assert_eq!(drafts.guess(1), [0; 0]);
}
