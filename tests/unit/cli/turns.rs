//! Tests of `cli/turns`.

use super::*;

/// Seconds of the choice, of a set that is always a tenth slower, and of one that is lucky in the first half of what is seen.
#[test]
fn the_best_set_is_judged_where_it_was_not_chosen() {
    let share = |rounds: &[[f64; 3]]| of_best(3, rounds.iter().map(|round| &round[..]));
    let steady = [[1.0, 1.1, 1.3]; 8];
    assert!((share(&steady) - 1.1).abs() < 1e-12);
    let behind = [[1.0, 0.8, 1.3]; 8];
    assert!((share(&behind) - 0.8).abs() < 1e-12);
    // The third was lucky in even rounds: chosen there it loses in the odd ones, and chosen in these the second is judged in those.
    let lucky: Vec<[f64; 3]> = (0..8).map(|nth| [1.0, 1.1, if nth % 2 == 0 { 0.5 } else { 1.3 }]).collect();
    assert!((share(&lucky) - (1.3 + 1.1) / 2.0).abs() < 1e-12);
}
