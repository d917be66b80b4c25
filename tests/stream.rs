//! The stream's promises, on a small model that is quick to run: a batch is the same as token by token, bit for bit, for
//! every policy, budget, batch size and number of threads; the arena never moves; sinks and recent tokens survive;
//! any length runs.

use lowkey::kernels::Kernels;
use lowkey::kv::policy::Policy;
use lowkey::kv::shape::{Recent, Share};
use lowkey::kv::types::KvType;
use lowkey::session::{Session, SessionParams};

const MODEL: &str = "tiny-gqa.gguf";

fn session(n_slot: usize, change: impl FnOnce(&mut SessionParams)) -> Session {
    let mut params = lowkey_test_kit::params(0);
    params.n_batch = 16;
    change(&mut params);
    params.kv.budget_bytes = lowkey_test_kit::budget_for(&lowkey_test_kit::data(MODEL), n_slot, &params);
    let session = lowkey_test_kit::session(&lowkey_test_kit::data(MODEL), &params);
    assert_eq!(session.cache().n_slot(), n_slot);
    session
}

fn tokens(n: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(11);
    (0..n).map(|_| rng.u32(..280)).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

/// Logits after the last token, and what every head holds, by slot.
fn end_of(session: &mut Session, tokens: &[u32], one_by_one: bool) -> (Vec<u32>, Vec<Vec<u32>>) {
    let mut last = Vec::new();
    if one_by_one {
        for &token in tokens {
            last = bits(session.step(token).expect("a step"));
        }
    } else {
        last = bits(session.prefill(tokens, |_| true).expect("prefill").expect("nobody stopped it"));
    }
    let c = &session.model().config;
    let kept =
        (0..c.n_layer).flat_map(|l| (0..c.n_head_kv).map(move |h| (l, h))).map(|(l, h)| session.cache().kept(l, h).to_vec());
    let kept = kept.collect();
    (last, kept)
}

#[test]
fn a_batch_is_the_same_as_token_by_token_bit_for_bit() {
    let tokens = tokens(100);
    for (policy, rare, pool) in FIXED {
        for n_slot in [9, 24, 99, 100, 130] {
            let with = |s: &mut SessionParams| (s.kv.policy, s.kv.rare, s.kv.pool) = (policy, Some(Share(rare)), Some(pool));
            let want = end_of(&mut session(n_slot, with), &tokens, true);
            for n_batch in [2, 3, 16] {
                for n_threads in [1, 2, 3] {
                    let mut batched = session(n_slot, |s| {
                        with(s);
                        (s.n_batch, s.n_threads) = (n_batch, Some(n_threads));
                    });
                    let got = end_of(&mut batched, &tokens, false);
                    assert!(got == want, "{policy:?}, {rare}, {n_slot} slots, batches of {n_batch}, {n_threads} threads");
                }
            }
        }
    }
}

/// Policies whose scores are fixed when an entry enters, with a reserve and with neighbours pooled too.
const FIXED: [(Policy, f32, u32); 9] = [
    (Policy::L2, 0.0, 0),
    (Policy::L2, 0.4, 0),
    (Policy::L2, 0.25, 3),
    (Policy::L2Paper, 0.0, 0),
    (Policy::L2High, 0.0, 2),
    (Policy::KeyDiffFrozen, 0.0, 0),
    (Policy::Outlier, 0.0, 0),
    (Policy::Random, 0.0, 0),
    (Policy::Window, 0.0, 0),
];

/// Policies that count attention, or compare anew, see a batch as one: but on every set and with any threads alike.
#[test]
fn every_policy_decides_alike_on_every_set_and_keeps_sinks_and_recent_tokens() {
    let tokens = tokens(90);
    for policy in Policy::ALL.into_iter().filter(|&p| p != Policy::Off) {
        let run = |name: &str, n_threads: usize| {
            let mut s = session(24, |s| {
                (s.kv.policy, s.kv.rare, s.kv.recent) = (policy, Some(Share(0.3)), Some(Recent::Tokens(8)));
                (s.kernels, s.n_threads) = (name.into(), Some(n_threads));
            });
            let end = end_of(&mut s, &tokens, false);
            let after = bits(s.step(7).expect("a step"));
            (end, after)
        };
        let want = run("scalar", 1);
        for kernels in Kernels::available() {
            for n_threads in [1, 2, 3] {
                let got = run(kernels.name(), n_threads);
                assert!(got == want, "{} on {} with {n_threads} threads", policy.name(), kernels.name());
            }
        }
        for kept in &want.0.1 {
            let has = |pos: u32| kept.contains(&pos);
            let free = matches!(policy, Policy::L2Paper | Policy::Window);
            assert!(policy == Policy::L2Paper || (0..4).all(has), "{}: sinks of {kept:?}", policy.name());
            assert!(free || (82..90).all(has), "{}: recent tokens of {kept:?}", policy.name());
        }
    }
}

/// Each query head gives a token's worth of attention; one by one and in a batch the same entries receive it.
#[test]
fn attention_received_adds_up() {
    let tokens = tokens(40);
    for policy in [Policy::Tova, Policy::H2o] {
        let run = |one_by_one: bool| {
            let mut s = session(60, |s| (s.kv.policy, s.kv.recent) = (policy, Some(Recent::Tokens(16))));
            end_of(&mut s, &tokens, one_by_one);
            s
        };
        let (single, batched) = (run(true), run(false));
        let c = &single.model().config;
        let given = (c.n_head / c.n_head_kv) as f32 * if policy == Policy::H2o { 40.0 } else { 1.0 };
        for (layer, head) in (0..c.n_layer).flat_map(|l| (0..c.n_head_kv).map(move |h| (l, h))) {
            let (a, b) = (single.cache().received(layer, head), batched.cache().received(layer, head));
            let sum: f32 = a.iter().sum();
            assert!((sum - given).abs() < 1e-3 * given, "{}: {sum} of {given}", policy.name());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * given), "{}", policy.name());
        }
    }
}

#[test]
fn so_it_is_whatever_keys_and_values_are_stored_in() {
    let tokens = tokens(60);
    for (k, v) in TYPES {
        let with = |s: &mut SessionParams| (s.k_type, s.v_type) = (Some(k), Some(v));
        let want = end_of(&mut session(24, with), &tokens, true);
        assert!(end_of(&mut session(24, with), &tokens, false) == want, "{} {}", k.name(), v.name());
    }
}

/// Each type once as keys, once as values.
const TYPES: [(KvType, KvType); 6] = [
    (KvType::F16, KvType::Q8_0),
    (KvType::Q8_0, KvType::F16),
    (KvType::Q4_0, KvType::Q6H),
    (KvType::Q6H, KvType::Q4H),
    (KvType::Q5H, KvType::Q4_0),
    (KvType::Q4H, KvType::Q5H),
];

#[test]
fn kernel_sets_agree_through_a_whole_stream() {
    let tokens = tokens(80);
    for (k, v) in TYPES.into_iter().chain([(KvType::F16, KvType::F16)]) {
        let run = |name: &str| {
            let with = |s: &mut SessionParams| (s.kernels, s.k_type, s.v_type) = (name.into(), Some(k), Some(v));
            end_of(&mut session(30, with), &tokens, false)
        };
        let want = run("scalar");
        for kernels in Kernels::available() {
            let what = format!("{} differs from scalar with {} {}", kernels.name(), k.name(), v.name());
            assert!(run(kernels.name()) == want, "{what}");
        }
    }
}

/// The kept tokens do not depend on how keys are stored in the first layer, for scores come from the key before that.
#[test]
fn scores_are_those_of_the_unrounded_key() {
    let tokens = tokens(60);
    let kept = |k: KvType| {
        let mut s = session(24, |s| (s.k_type, s.v_type) = (Some(k), Some(k)));
        s.prefill(&tokens, |_| true).expect("prefill");
        (0..s.model().config.n_head_kv).map(|h| s.cache().kept(0, h).to_vec()).collect::<Vec<_>>()
    };
    for k in KvType::ALL {
        assert_eq!(kept(k), kept(KvType::F16), "{}", k.name());
    }
}

#[test]
fn sinks_and_recent_tokens_survive_and_slots_are_distinct() {
    let mut s = session(20, |s| (s.kv.sinks, s.kv.recent) = (3, Some(Recent::Tokens(6))));
    let base = s.cache().keys().as_ptr();
    for (i, &token) in tokens(90).iter().enumerate() {
        s.step(token).expect("a step");
        let now = i as u32;
        for layer in 0..s.model().config.n_layer {
            for head in 0..s.model().config.n_head_kv {
                let mut kept = s.cache().kept(layer, head).to_vec();
                kept.sort_unstable();
                let n = kept.len();
                kept.dedup();
                assert_eq!((kept.len(), n), (n, 20.min(i + 1)), "step {i}: each slot holds its own token");
                let must = (0..3.min(now + 1)).chain(now.saturating_sub(5)..=now);
                assert!(must.into_iter().all(|p| kept.binary_search(&p).is_ok()), "step {i}: {kept:?}");
            }
        }
    }
    assert_eq!(s.cache().keys().as_ptr(), base);
    assert_eq!(s.cache().n_evicted(), 70);
}

#[test]
fn the_kept_set_is_what_a_naive_model_keeps() {
    // Norms are read back from a session whose arena holds everything; the naive model sorts.
    let tokens = tokens(60);
    for (policy, sinks, recent) in [(Policy::L2, 4, 8), (Policy::L2Paper, 0, 0), (Policy::Window, 4, 0)] {
        let mut small = session(17, |s| (s.kv.policy, s.kv.sinks, s.kv.recent) = (policy, sinks, Some(Recent::Tokens(recent))));
        small.prefill(&tokens, |_| true).expect("prefill");
        // In the first layer keys depend on the token and its position alone, so eviction elsewhere cannot change them.
        let mut whole = session(60, |s| s.kv.policy = Policy::L2);
        whole.prefill(&tokens, |_| true).expect("prefill");
        for head in 0..small.model().config.n_head_kv {
            let score: Vec<f32> = match policy {
                Policy::Window => vec![0.0; 60],
                _ => whole.cache().scores(0, head).to_vec(),
            };
            let mut kept: Vec<usize> = Vec::new();
            for now in 0..60 {
                if kept.len() == 17 {
                    let mut old: Vec<usize> =
                        kept.iter().copied().filter(|&p| p >= sinks as usize && p + recent as usize <= now).collect();
                    old.sort_by(|&a, &b| score[b].total_cmp(&score[a]).then(a.cmp(&b)));
                    kept.retain(|&p| p != old[0]);
                }
                kept.push(now);
            }
            let mut got: Vec<usize> = small.cache().kept(0, head).iter().map(|&p| p as usize).collect();
            got.sort_unstable();
            kept.sort_unstable();
            assert_eq!(got, kept, "{policy:?}, head {head}");
        }
    }
}

#[test]
fn a_full_arena_that_may_not_evict_stops_with_a_message() {
    let mut s = session(20, |s| s.kv.policy = Policy::Off);
    s.prefill(&tokens(20), |_| true).expect("20 tokens fit");
    let error = s.step(1).map(|_| ()).expect_err("the 21st does not").to_string();
    assert!(error.contains("--evict off") && error.contains("--kv-budget"), "{error}");
}

#[test]
fn a_stream_past_the_trained_context_is_renumbered_and_goes_on() {
    // Full budget too: the arena of a whole context is thinned by an eighth, then renumbered.
    for n_slot in [24, 250, 256] {
        let mut s = session(n_slot, |_| ());
        let n_ctx = s.model().config.n_ctx;
        assert_eq!(n_ctx, 256, "the test's numbers are for this context");
        for (i, &token) in tokens(3 * n_ctx).iter().enumerate() {
            let logits = s.step(token).expect("a step");
            assert!(logits.iter().all(|l| l.is_finite()), "step {i}");
            assert!(s.cache().next_pos() as usize <= n_ctx);
        }
        let mut kept = s.cache().kept(1, 0).to_vec();
        kept.sort_unstable();
        assert_eq!(kept[..4], [0, 1, 2, 3], "sinks stay the first positions");
        assert_eq!(s.n_past(), 3 * n_ctx as u64);
    }
}

#[test]
fn a_cleared_session_starts_anew() {
    let tokens = tokens(50);
    let mut s = session(24, |_| ());
    let first = end_of(&mut s, &tokens, false);
    s.clear();
    assert!(end_of(&mut s, &tokens, false) == first);
}

/// Where attention is counted a batch is no longer than the recent tokens; a budget that does not hold the rows of a longer one is enough.
#[test]
fn small_budgets_are_not_refused_for_rows_that_would_not_be_used() {
    let model = lowkey_test_kit::model(&lowkey_test_kit::data(MODEL));
    let mut params = lowkey_test_kit::params(0);
    (params.kv.policy, params.kv.recent) = (Policy::L2Attn, None);
    let (mut n_refused, mut n_smaller) = (0, 0);
    for kib in 1..64 {
        params.kv.budget_bytes = kib << 10;
        let [long, single] = [32, 1].map(|n_batch| SessionParams { n_batch, ..params.clone() }.layout(&model));
        assert_eq!(long.is_ok(), single.is_ok(), "{kib} KiB");
        let Ok(long) = long else {
            n_refused += 1;
            continue;
        };
        assert!(long.kv.n_batch <= 32.min(long.rule.protect.recent.max(1) as usize), "{kib} KiB");
        assert!(long.kv.arena_bytes(long.n_slot) as u64 <= params.kv.budget_bytes, "{kib} KiB");
        n_smaller += usize::from(long.kv.n_batch < 32);
    }
    assert!(n_refused > 0 && n_smaller > 0, "{n_refused} refused, {n_smaller} with a smaller batch");
}
