//! Tests of `eval::stream`.

use super::*;

fn course(n_tokens: usize, backs: &[usize], n_samples: usize) -> Course {
    Course { n_tokens, backs: backs.to_vec(), n_samples, n_streams: 1, seed: 3 }
}

#[test]
fn questions_differ_and_are_asked_as_late_as_was_said() {
    let course = course(9000, &[300, 1000, 4000, 40], MAX_QUESTIONS / 4);
    let all = course.asked(0, &mut fastrand::Rng::with_seed(5));
    assert_eq!(all.len(), MAX_QUESTIONS);
    let when: Vec<usize> = all.iter().map(|asked| asked.due + course.backs[asked.place]).collect();
    assert!(when.is_sorted() && when[0] == 4000 + LEAD && when[MAX_QUESTIONS - 1] < 9000);
    assert!(when.windows(2).all(|two| two[1] - two[0] == (9000 - 4000 - LEAD) / MAX_QUESTIONS));
    let mut questions: Vec<&str> = all.iter().map(|asked| asked.fact.question.as_str()).collect();
    questions.sort();
    questions.dedup();
    assert_eq!(questions.len(), MAX_QUESTIONS);
    // Each distance has facts of every kind.
    for place in 0..4 {
        let starts = all.iter().filter(|asked| asked.place == place).map(|asked| &asked.fact.question[..14]);
        assert_eq!(starts.collect::<std::collections::BTreeSet<_>>().len(), KINDS);
    }
}

/// A lone fact of each distance is of another kind in each of as many streams as there are kinds.
#[test]
fn kinds_take_turns_over_streams() {
    let course = course(9000, &[300, 4000], 1);
    for place in 0..2 {
        let of =
            |stream| course.asked(stream, &mut fastrand::Rng::with_seed(5)).swap_remove(place).fact.question[..14].to_owned();
        assert_eq!((0..KINDS).map(of).collect::<std::collections::BTreeSet<_>>().len(), KINDS);
    }
}

#[test]
fn a_stream_must_hold_its_questions() {
    assert_eq!(course(0, &[10, 500], 3).least_tokens(), 500 + LEAD + 6 * APART);
    assert_eq!(course(0, &[usize::MAX], usize::MAX).least_tokens(), usize::MAX);
}
