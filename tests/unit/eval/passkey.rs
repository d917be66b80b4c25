//! Tests of `eval::passkey`.

use super::*;

#[test]
fn the_key_stands_where_the_depth_says() {
    for (depth, line) in [(0.0, 1), (0.5, 6), (1.0, 11)] {
        let draft = draft(417, 10, depth);
        let lines: Vec<&str> = draft.text.lines().collect();
        assert_eq!((lines.len(), lines[line]), (13, "The pass key is 417. Remember it. 417 is the pass key."));
        assert_eq!((lines[0], lines[12]), (TASK, QUESTION));
        assert_eq!(lines.iter().filter(|&&l| l == FILLER).count(), 10);
        assert_eq!(draft.answer, Answer::Number("417".into()));
    }
}
