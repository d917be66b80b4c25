//! Tests of `session::reuse`.

use super::*;

fn runs(old: &[u32], new: &[u32], n_least: usize) -> Vec<(usize, usize, usize)> {
    let n_common = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    Runs::find(old, new, n_common, n_least).all().iter().map(|run| (run.from, run.to, run.n)).collect()
}

#[test]
fn what_follows_a_change_is_found_where_it_stands_now() {
    let old: Vec<u32> = (0..40).collect();
    let changed = |at: usize, gone: usize, come: &[u32]| [&old[..at], come, &old[at + gone..]].concat();
    // As many tokens, more, fewer; the last one is read in any case.
    assert_eq!(runs(&old, &changed(10, 2, &[90, 91]), 4), [(12, 12, 27)]);
    assert_eq!(runs(&old, &changed(10, 2, &[90, 91, 92]), 4), [(12, 13, 27)]);
    assert_eq!(runs(&old, &changed(10, 5, &[90]), 4), [(15, 11, 24)]);
    // Two changes, and a run that is too short to be one.
    let twice = [&old[..10], &[90], &old[11..20], &[91, 92], &old[21..]].concat();
    assert_eq!(runs(&old, &twice, 4), [(11, 11, 9), (21, 22, 18)]);
    assert_eq!(runs(&old, &twice, 10), [(21, 22, 18)]);
    assert_eq!(runs(&old, &twice, 30), []);
    assert_eq!(runs(&old, &twice, 0), []);
    // The new prompt is longer, or ends within the old one.
    let longer = [&changed(10, 1, &[90])[..], &[70, 71]].concat();
    assert_eq!(runs(&old, &longer, 4), [(11, 11, 29)]);
    assert_eq!(runs(&old, &changed(10, 1, &[90])[..20], 4), [(11, 11, 8)]);
    assert_eq!(runs(&old, &old, 4), []);
    assert_eq!(Runs::find(&old, &twice, 10, 4).n_tokens(), 27);
}

#[test]
fn there_are_no_more_runs_than_have_a_place() {
    let old: Vec<u32> = (0..400).collect();
    let new: Vec<u32> = old.iter().map(|&t| if t % 8 == 7 { 1000 + t } else { t }).collect();
    let found = Runs::find(&old, &new, 7, 4);
    assert_eq!((found.all().len(), found.n_tokens()), (MAX_RUNS, MAX_RUNS * 7));
}
