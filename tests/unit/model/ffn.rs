//! Tests of `model::ffn`.

use super::*;

const CONFIG: ExpertConfig = ExpertConfig {
    n_expert: 5,
    n_used: 2,
    n_ff: 32,
    n_shared_ff: 0,
    is_beside: false,
    n_dense: 0,
    is_sigmoid: false,
    weight_scale: 1.0,
};

fn scratch(config: ExpertConfig, logits: &[f32]) -> ExpertScratch {
    let n_rows = logits.len() / config.n_expert;
    let mut scratch = Arena::fill(|arena| {
        let places = n_rows * config.n_used;
        ExpertScratch {
            config,
            logits: arena.carve(logits.len()),
            chosen: arena.carve(places),
            weights: arena.carve(places),
            order: arena.carve(places),
            ends: arena.carve(config.n_expert),
            gathered: arena.carve(0),
            given: arena.carve(0),
            shared: arena.carve(0),
            asks_ahead: false,
            biases: arena.carve(0),
        }
    })
    .expect("memory");
    scratch.logits.copy_from_slice(logits);
    scratch
}

#[test]
fn the_largest_are_chosen_the_first_of_equals_and_tokens_are_sorted_by_expert() {
    let mut s = scratch(CONFIG, &[0.0, 2.0, 1.0, 2.0, -1.0, 3.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]);
    s.choose(None, 3);
    assert_eq!(&s.chosen[..], [1, 3, 0, 4, 0, 1]);
    let exp = |x: f64| x.exp();
    let second = exp(1.0) / (exp(3.0) + exp(1.0));
    for (got, want) in s.weights.iter().zip([0.5, 0.5, 1.0 - second, second, 0.5, 0.5]) {
        assert!((f64::from(*got) - want).abs() < 1e-6, "{got} and not {want}");
    }
    // Expert 0 has tokens 1 and 2, expert 1 tokens 0 and 2, expert 3 token 0, expert 4 token 1.
    assert_eq!(&s.order[..], [2, 4, 0, 5, 1, 3]);
    assert_eq!(&s.ends[..], [2, 4, 4, 5, 6]);
}

#[test]
fn a_bias_counts_for_the_choice_alone() {
    let config = ExpertConfig { is_sigmoid: true, weight_scale: 2.0, ..CONFIG };
    let mut s = scratch(config, &[0.0, 2.0, 1.0, -2.0, -1.0]);
    s.choose(Some(&[0.0, 0.0, 0.0, 1.0, -1.0]), 1);
    assert_eq!(&s.chosen[..], [3, 1]);
    let [low, high] = [-2.0, 2.0].map(|x: f64| 1.0 / (1.0 + (-x).exp()));
    for (got, want) in s.weights.iter().zip([low, high]) {
        assert!((f64::from(*got) - 2.0 * want / (low + high)).abs() < 1e-6);
    }
}

#[test]
fn logits_that_are_no_numbers_choose_something() {
    let mut s = scratch(CONFIG, &[f32::NAN; 5]);
    s.choose(None, 1);
    assert_eq!((&s.chosen[..], s.ends.last()), (&[0, 1][..], Some(&2)));
}

#[test]
fn experts_without_a_token_are_passed_over() {
    assert_eq!(by_expert(&[0, 2, 2, 5]).collect::<Vec<_>>(), [(1, 0..2), (3, 2..5)]);
    assert_eq!(by_expert(&[1, 1]).collect::<Vec<_>>(), [(0, 0..1)]);
}
