//! Tests of `eval::ppl`.

use super::*;

#[test]
fn windows_leave_out_the_partial_one_and_late_tokens_are_those_after_the_arena_filled() {
    let tokens: Vec<u32> = (0..10).collect();
    assert_eq!(windows(&tokens, 4, 4).collect::<Vec<_>>(), [&[0, 1, 2, 3][..], &[4, 5, 6, 7]]);
    assert_eq!(windows(&tokens, 4, 2).count(), 4);
    assert_eq!(windows(&tokens, 11, 1).count(), 0);
    // Two windows of 4: entries score tokens 1, 2, 3, from 1, 2, 3 tokens.
    let scores = Scores { ctx: 4, nll: vec![1.0, 2.0, 3.0, 1.0, 2.0, 5.0] };
    assert_eq!((scores.mean_after(3), scores.mean_after(2)), (4.0, 3.0));
    // Of four tokens the first half has one that is scored, the second two.
    assert_eq!(scores.parts(2), [(2, 1.0), (4, 3.0)]);
    assert_eq!(scores.parts(1), [(6, 14.0 / 6.0)]);
}
