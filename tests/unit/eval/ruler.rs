//! Tests of `eval::ruler`.

use super::*;

fn puzzle(task: Task, depth: f64, seed: u64) -> Puzzle {
    let mut rng = fastrand::Rng::with_seed(seed);
    if task == Task::Tracking { tracking(depth, &mut rng) } else { numbers(task, depth, &mut rng) }
}

#[test]
fn puzzles_hold_what_they_ask_for_from_their_depth_on() {
    for (task, n_lines, n_answer) in
        [(Task::Single, 1, 1), (Task::MultiKey, 4, 1), (Task::MultiValue, 4, 4), (Task::Tracking, 5, 5)]
    {
        for (seed, depth) in [(1, 0.0), (2, 0.3), (3, 1.0)] {
            let puzzle = puzzle(task, depth, seed);
            let draft = puzzle.draft(10);
            let lines: Vec<&str> = draft.text.strip_prefix(&puzzle.opening).expect("the opening").trim_start().lines().collect();
            assert_eq!((puzzle.lines.len(), lines.len(), puzzle.answer.len()), (n_lines, 10 + n_lines + 1, n_answer));
            assert_eq!(lines.iter().filter(|&&line| line == FILLER).count(), 10);
            let of = |answer: &String| lines.iter().position(|line| line.contains(answer.as_str())).expect("its line");
            let first = puzzle.answer.iter().map(of).min().expect("an answer");
            let fillers_before = lines[..first].iter().filter(|&&line| line == FILLER).count();
            assert_eq!(fillers_before, place(depth, 10), "{task:?} {depth}");
            assert!(
                puzzle.answer.iter().all(|a| !puzzle.question.contains(a.as_str()) && !puzzle.answer_start.contains(a.as_str()))
            );
        }
    }
}

#[test]
fn a_chain_of_copies_comes_in_its_order() {
    let puzzle = puzzle(Task::Tracking, 0.2, 5);
    assert!(puzzle.lines.is_sorted_by(|a, b| a.0 <= b.0));
    for (i, (_, line)) in puzzle.lines.iter().enumerate() {
        assert!(line.starts_with(&format!("VAR {} = ", puzzle.answer[i])));
        assert!(i == 0 || line.ends_with(&format!("= VAR {}", puzzle.answer[i - 1])));
    }
    assert!(puzzle.answer.iter().all(|name| !puzzle.opening.contains(name.as_str())), "the example has others");
}

#[test]
fn names_of_tasks_are_read() {
    assert!(Task::ALL.into_iter().all(|task| task.name().parse() == Ok(task)));
    assert!("vt".parse::<Task>().is_err_and(|e| e.contains("multi-value")));
}
