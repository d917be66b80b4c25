//! Tests of `text::sampler`.

use super::*;

const ALL: SamplerParams = SamplerParams {
    temp: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    repeat_last_n: 64,
    seed: 1,
};

fn kept(params: SamplerParams, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(params, logits.len()).unwrap();
    let mut seen: Vec<u32> = (0..4000).map(|_| sampler.sample(logits).unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Logits whose softmax is 0.4, 0.3, 0.2, 0.1, out of order.
fn tenths() -> [f32; 4] {
    [0.2f32.ln(), 0.4f32.ln(), 0.1f32.ln(), 0.3f32.ln()]
}

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    const N: usize = 200_000;
    for temp in [0.5f64, 1.0, 2.0] {
        let logits = [0.0f32, 1.0, -1.0, 2.5, 0.5];
        let exact: Vec<f64> = logits.iter().map(|&l| (l as f64 / temp).exp()).collect();
        let total: f64 = exact.iter().sum();
        let mut sampler = Sampler::new(SamplerParams { temp: temp as f32, ..ALL }, 5).unwrap();
        let mut counts = [0usize; 5];
        (0..N).for_each(|_| counts[sampler.sample(&logits).unwrap() as usize] += 1);
        for (count, weight) in counts.iter().zip(&exact) {
            let p = weight / total;
            let sigma = (p * (1.0 - p) / N as f64).sqrt();
            let got = *count as f64 / N as f64;
            assert!((got - p).abs() < 4.5 * sigma, "temp {temp}: {got} drawn, {p} expected");
        }
    }
}

#[test]
fn each_filter_keeps_the_set_computed_by_hand() {
    let logits = tenths();
    assert_eq!(kept(ALL, &logits), [0, 1, 2, 3]);
    for (k, set) in [(1, &[1][..]), (2, &[1, 3]), (3, &[0, 1, 3]), (4, &[0, 1, 2, 3]), (9, &[0, 1, 2, 3])] {
        assert_eq!(kept(SamplerParams { top_k: k, ..ALL }, &logits), set, "top-k {k}");
    }
    // The token whose probability crosses the sum stays.
    for (p, set) in [(0.0, &[1][..]), (0.39, &[1]), (0.41, &[1, 3]), (0.69, &[1, 3]), (0.71, &[0, 1, 3]), (0.91, &[0, 1, 2, 3])] {
        assert_eq!(kept(SamplerParams { top_p: p, ..ALL }, &logits), set, "top-p {p}");
    }
    // Fractions of the largest: 1, 0.75, 0.5, 0.25.
    for (p, set) in [(0.2, &[0, 1, 2, 3][..]), (0.26, &[0, 1, 3]), (0.51, &[1, 3]), (0.76, &[1]), (1.0, &[1])] {
        assert_eq!(kept(SamplerParams { min_p: p, ..ALL }, &logits), set, "min-p {p}");
    }
    // top-p sees the probabilities that top-k left: 0.4/0.7 = 0.571 already exceeds 0.55.
    assert_eq!(kept(SamplerParams { top_k: 2, top_p: 0.55, ..ALL }, &logits), [1]);
    // Filters come before the temperature: a high one does not bring tokens back.
    assert_eq!(kept(SamplerParams { top_p: 0.69, temp: 100.0, ..ALL }, &logits), [1, 3]);
}

#[test]
fn top_p_over_a_long_flat_vocabulary_keeps_the_right_count() {
    let logits: Vec<f32> = (0..1000).map(|id| if id % 2 == 0 { 0.0 } else { -30.0 }).collect();
    let mut sampler = Sampler::new(SamplerParams { top_p: 0.5005, ..ALL }, 1000).unwrap();
    sampler.sample(&logits).unwrap();
    assert_eq!(sampler.candidates.len(), 251);
    assert!(sampler.candidates.iter().enumerate().all(|(place, c)| c.id == 2 * place as u32));
}

#[test]
fn the_quick_greedy_choice_is_the_first_largest_number() {
    let mut rng = fastrand::Rng::with_seed(3);
    for n in 0..40 {
        for _ in 0..50 {
            let of = [f32::NAN, f32::NEG_INFINITY, -1.0, 0.5, 2.0, f32::INFINITY];
            let logits: Vec<f32> = (0..n).map(|_| of[rng.usize(..of.len())]).collect();
            let numbers = || logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
            let best = numbers().fold(None, |best: Option<(usize, f32)>, (id, &logit)| match best {
                Some((_, largest)) if logit <= largest => best,
                _ => Some((id, logit)),
            });
            assert_eq!(most_likely(&logits), best.map(|(id, _)| id as u32), "{logits:?}");
        }
    }
}

#[test]
fn greedy_takes_the_largest_and_ties_go_to_the_lowest_id() {
    let greedy = SamplerParams { temp: 0.0, ..ALL };
    for (logits, want) in
        [(&[1.0f32, 3.0, 3.0, 2.0][..], 1), (&[-0.0, 0.0], 0), (&[f32::NAN, -5.0, -4.0], 2), (&[1.0, f32::INFINITY], 1)]
    {
        assert_eq!(Sampler::new(greedy, logits.len()).unwrap().sample(logits).unwrap(), want, "{logits:?}");
    }
}

#[test]
fn penalty_divides_positive_and_multiplies_negative_logits_once() {
    let params = SamplerParams { repeat_penalty: 2.0, repeat_last_n: 3, ..ALL };
    let mut sampler = Sampler::new(params, 4).unwrap();
    let logits = [4.0f32, -4.0, 1.0, f32::NAN];
    let penalised = |sampler: &mut Sampler| {
        sampler.gather(&logits, None);
        sampler.penalise();
        sampler.candidates.iter().map(|c| (c.id, c.logit)).collect::<Vec<_>>()
    };
    [0, 1, 0].into_iter().for_each(|token| sampler.accept(token));
    assert_eq!(penalised(&mut sampler), [(0, 2.0), (1, -8.0), (2, 1.0)]);
    // Token 1 leaves the window of three; tokens that are out of range or not numbers change nothing.
    [3, 9, 2].into_iter().for_each(|token| sampler.accept(token));
    assert_eq!(penalised(&mut sampler), [(0, 4.0), (1, -4.0), (2, 0.5)]);
    let mut greedy = Sampler::new(SamplerParams { temp: 0.0, repeat_penalty: 5.0, ..params }, 2).unwrap();
    assert_eq!(greedy.sample(&[2.0, 1.0]).unwrap(), 0);
    greedy.accept(0);
    assert_eq!(greedy.sample(&[2.0, 1.0]).unwrap(), 1, "the penalty reaches greedy choices too");
}

#[test]
fn a_seed_fixes_the_stream_on_every_machine() {
    let logits: Vec<f32> = (0..100u32).map(|id| (id * 37 % 100) as f32 * 0.05).collect();
    let stream = |seed| {
        let mut sampler = Sampler::new(SamplerParams { seed, ..SamplerParams::default() }, 100).unwrap();
        (0..8).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(stream(42), stream(42));
    assert_ne!(stream(42), stream(43));
    // Known values: a change of generator, order or exponential shows here, on any processor.
    assert_eq!(stream(42), [86, 81, 35, 62, 27, 48, 8, 40]);
    let mut sampler = Sampler::new(SamplerParams { seed: 42, ..SamplerParams::default() }, 100).unwrap();
    let first = sampler.sample(&logits).unwrap();
    sampler.reset();
    assert_eq!(sampler.sample(&logits).unwrap(), first);
}
#[test]
fn splitmix_gives_the_published_numbers() {
    let mut rng = SplitMix64(1234567);
    assert_eq!([rng.next(), rng.next(), rng.next()], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
}

#[test]
fn what_is_not_a_number_is_never_chosen_and_never_panics() {
    let nan = f32::NAN;
    for params in [ALL, SamplerParams::default(), SamplerParams { temp: 0.0, ..ALL }, SamplerParams { temp: 1e-30, ..ALL }] {
        let mut sampler = Sampler::new(params, 4).unwrap();
        for _ in 0..200 {
            assert!([1, 3].contains(&sampler.sample(&[nan, 1.0, f32::NEG_INFINITY, 1.0]).unwrap()));
            assert_eq!(sampler.sample(&[-nan, f32::MIN, f32::INFINITY, 0.0]).unwrap(), 2);
        }
        let error = sampler.sample(&[nan, nan, f32::NEG_INFINITY, nan]).unwrap_err();
        assert!(error.to_string().contains("not numbers"), "{error}");
    }
}

#[test]
fn buffers_are_made_once_and_counted_right() {
    let mut sampler = Sampler::new(ALL, 1000).unwrap();
    let (place, capacity) = (sampler.candidates.as_ptr(), sampler.candidates.capacity());
    let logits: Vec<f32> = (0..1000).map(|id| (id as f32).sin()).collect();
    for _ in 0..100 {
        let token = sampler.sample(&logits).unwrap();
        sampler.accept(token);
    }
    assert_eq!((sampler.candidates.as_ptr(), sampler.candidates.capacity()), (place, capacity));
    assert_eq!(Sampler::bytes(1000, 64), capacity * 8 + (sampler.recent.len() + sampler.sorted.len()) * 4);
}

#[test]
fn bad_values_are_refused_by_name() {
    let cases = [
        (SamplerParams { temp: f32::NAN, ..ALL }, Setting::Temp),
        (SamplerParams { temp: f32::INFINITY, ..ALL }, Setting::Temp),
        (SamplerParams { top_p: 1.01, ..ALL }, Setting::TopP),
        (SamplerParams { top_p: f32::NAN, ..ALL }, Setting::TopP),
        (SamplerParams { min_p: -0.1, ..ALL }, Setting::MinP),
        (SamplerParams { repeat_penalty: 0.0, ..ALL }, Setting::RepeatPenalty),
        (SamplerParams { repeat_last_n: usize::MAX, ..ALL }, Setting::RepeatLastN),
    ];
    for (params, setting) in cases {
        let error = Sampler::new(params, 4).err().expect("a refusal");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().starts_with(setting.words()), "{error}");
    }
}

#[test]
fn logprobs_are_the_log_softmax_sorted() {
    let mut out = Vec::with_capacity(4);
    top_logprobs(&tenths(), 3, &mut out);
    let want = [(1, 0.4f64), (3, 0.3), (0, 0.2)];
    assert_eq!(out.len(), 3);
    for ((id, logprob), (want_id, p)) in out.iter().zip(want) {
        assert_eq!(*id, want_id);
        assert!((logprob - p.ln()).abs() < 1e-7, "{logprob} for {p}");
    }
    // Large logits do not overflow, ties keep the lower id first, what is no number is left out, k may exceed the rest.
    top_logprobs(&[1e30, f32::NAN, 1e30, f32::NEG_INFINITY], 9, &mut out);
    assert_eq!(out.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 2]);
    assert!(out.iter().all(|e| (e.1 - 0.5f64.ln()).abs() < 1e-12));
    top_logprobs(&[f32::NAN], 2, &mut out);
    assert!(out.is_empty());
}

#[test]
fn penalties_of_presence_and_frequency_take_from_logits_of_recent_tokens() {
    let params = SamplerParams { temp: 0.0, presence_penalty: 0.5, frequency_penalty: 0.4, ..ALL };
    let mut sampler = Sampler::new(params, 3).unwrap();
    let mut next = |logits: &[f32], accepted: u32| {
        let id = sampler.sample(logits).unwrap();
        sampler.accept(accepted);
        id
    };
    let logits = [3.0, 2.4, 1.5];
    assert_eq!(next(&logits, 0), 0);
    // 3.0 - 0.5 - 0.4 = 2.1 is below 2.4, then 2.4 - 0.9 = 1.5 is below 2.1, and 3.0 - 0.5 - 2 x 0.4 = 1.7.
    assert_eq!(next(&logits, 1), 1);
    assert_eq!(next(&logits, 0), 0);
    assert_eq!(next(&logits, 0), 0);
    // Four times: 3.0 - 0.5 - 3 x 0.4 = 1.3.
    assert_eq!(next(&logits, 0), 1);
}

#[test]
fn a_bias_moves_a_token_and_forbids_it() {
    let mut sampler = Sampler::new(SamplerParams { temp: 0.0, ..ALL }, 3).unwrap();
    let logits = [3.0, 2.0, 1.0];
    assert_eq!(sampler.sample_biased(&logits, &[(2, 2.5)]).unwrap(), 2);
    assert_eq!(sampler.sample_biased(&logits, &[(0, f32::NEG_INFINITY)]).unwrap(), 1);
    // What is forbidden once stays so, whatever else is said of it; tokens that are none are nothing.
    assert_eq!(sampler.sample_biased(&logits, &[(0, f32::NEG_INFINITY), (0, 100.0), (9, 1.0)]).unwrap(), 1);
    assert!(sampler.sample_biased(&logits, &[0, 1, 2].map(|id| (id, f32::NEG_INFINITY))).is_err());
    assert_eq!(sampler.sample(&logits).unwrap(), 0);
}

#[test]
fn a_sampler_that_begins_anew_is_a_new_one() {
    let (params, logits) = (SamplerParams { repeat_penalty: 1.3, ..ALL }, tenths());
    let mut used = Sampler::new(SamplerParams { repeat_last_n: 100, seed: 9, ..ALL }, 4).unwrap();
    (0..50).for_each(|_| used.accept(1));
    used.begin(&params);
    let mut fresh = Sampler::new(params, 4).unwrap();
    for _ in 0..100 {
        let (a, b) = (used.sample(&logits).unwrap(), fresh.sample(&logits).unwrap());
        assert_eq!(a, b);
        used.accept(a);
        fresh.accept(b);
    }
    assert_eq!(used.rng_state(), fresh.rng_state());
}

/// Allows some tokens, and counts how often it was asked for all of them.
struct Only(Vec<u32>, usize);

impl Filter for Only {
    fn allows(&mut self, token: u32) -> bool {
        self.0[0] >> token & 1 == 1
    }

    fn mask(&mut self) -> Option<&[u32]> {
        self.1 += 1;
        (self.0[0] != 0).then_some(self.0.as_slice())
    }
}

#[test]
fn of_filtered_tokens_each_is_as_likely_as_among_those_alone() {
    let params = SamplerParams { temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerParams::default() };
    let mut sampler = Sampler::new(params, 4).expect("a sampler");
    let logits = [3.0, 1.0, 0.0, 1.0];
    let mut filter = Only(vec![0b1110], 0);
    let mut counts = [0; 4];
    for _ in 0..6000 {
        counts[sampler.sample_filtered(&logits, &[], &mut filter).expect("a token") as usize] += 1;
    }
    // e : 1 : e of 6,000.
    assert_eq!(counts[0], 0);
    for (count, want) in counts[1..].iter().zip([2534.0, 932.0, 2534.0]) {
        assert!((f64::from(*count) - want).abs() < 150.0, "{counts:?}");
    }
    assert!(filter.1 > 4000 && filter.1 < 5500, "asked {} times for the mask", filter.1);
    assert!(sampler.sample_filtered(&logits, &[], &mut Only(vec![0], 0)).is_err());
}

#[test]
fn nll_by_hand() {
    assert!((nll(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-12);
    assert!((nll(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
}
