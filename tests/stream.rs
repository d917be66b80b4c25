//! The stream's promises, on a small model that is quick to run: a batch is the same as token by token, bit for bit, for
//! every policy that judges at entry, every budget, batch size and number of threads; the arena never moves; sinks and
//! recent tokens survive; any length runs. Which entries a policy keeps is checked in tests/policies.rs.

use lowkey::kernels::Kernels;
use lowkey::kv::{AttnLayer, Head, KvCache, KvType, Policy, Recent, Share};
use lowkey::session::{Session, SessionParams};
use lowkey_test_kit::tried;

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
    let kept = heads(session.cache()).map(|(layer, head)| session.cache().kept(layer, head).to_vec()).collect();
    (last, kept)
}

/// Every head of every layer.
fn heads(cache: &KvCache) -> impl Iterator<Item = (AttnLayer, Head)> {
    let shape = *cache.shape();
    shape.all_heads()
}

#[test]
fn a_batch_is_the_same_as_token_by_token_bit_for_bit() {
    let tokens = tokens(100);
    assert_eq!(fixed().count(), 16);
    for (policy, rare, pool) in fixed() {
        for n_slot in tried(vec![9, 24, 99, 100, 130], vec![9, 99, 100]) {
            let with = |s: &mut SessionParams| (s.kv.policy, s.kv.rare, s.kv.pool) = (policy, Some(Share(rare)), Some(pool));
            let want = end_of(&mut session(n_slot, with), &tokens, true);
            for n_batch in [2, 3, 16] {
                for n_threads in tried(vec![1, 2, 3], vec![2]) {
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

/// Policies whose scores are fixed when an entry enters, by the table, with a reserve and with neighbours pooled too.
fn fixed() -> impl Iterator<Item = (Policy, f32, u32)> {
    let fixed = Policy::all().filter(|p| p.row().is_exact_in_batches() && *p != Policy::Off);
    fixed.flat_map(|policy| {
        let row = policy.row();
        let more = [(0.4, 0, row.reserve.is_some()), (0.25, 3, row.reserve.is_some()), (0.0, 2, row.pool.is_some())];
        let more = more.into_iter().filter(|(.., fits)| *fits).map(|(rare, pool, _)| (rare, pool));
        [(0.0, 0)].into_iter().chain(more).map(move |(rare, pool)| (policy, rare, pool))
    })
}

/// Policies that count attention, or compare anew, see a batch as one: but on every set and with any threads alike.
#[test]
fn every_policy_decides_alike_on_every_set_and_keeps_sinks_and_recent_tokens() {
    let tokens = tokens(90);
    for policy in Policy::all().filter(|&p| p != Policy::Off) {
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
            let row = policy.row();
            assert!(!row.keeps_sinks || (0..4).all(has), "{}: sinks of {kept:?}", row.name);
            assert!(!row.keeps_recent || (82..90).all(has), "{}: recent tokens of {kept:?}", row.name);
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
        for (layer, head) in heads(single.cache()) {
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
        s.cache().shape().each.heads().map(|h| s.cache().kept(AttnLayer(0), h).to_vec()).collect::<Vec<_>>()
    };
    for k in KvType::ALL {
        assert_eq!(kept(k), kept(KvType::F16), "{}", k.name());
    }
}

#[test]
fn sinks_and_recent_tokens_survive_and_slots_are_distinct() {
    let mut s = session(20, |s| (s.kv.sinks, s.kv.recent) = (3, Some(Recent::Tokens(6))));
    let base = s.cache().keys(AttnLayer(0)).as_ptr();
    for (i, &token) in tokens(90).iter().enumerate() {
        s.step(token).expect("a step");
        let now = i as u32;
        for (layer, head) in heads(s.cache()) {
            let mut kept = s.cache().kept(layer, head).to_vec();
            kept.sort_unstable();
            let n = kept.len();
            kept.dedup();
            assert_eq!((kept.len(), n), (n, 20.min(i + 1)), "step {i}: each slot holds its own token");
            let must = (0..3.min(now + 1)).chain(now.saturating_sub(5)..=now);
            assert!(must.into_iter().all(|p| kept.binary_search(&p).is_ok()), "step {i}: {kept:?}");
        }
    }
    assert_eq!(s.cache().keys(AttnLayer(0)).as_ptr(), base);
    assert_eq!(s.cache().n_evicted(), 70);
}

#[test]
fn a_full_arena_that_may_not_evict_stops_with_a_message() {
    let mut s = session(20, |s| s.kv.policy = Policy::Off);
    s.prefill(&tokens(20), |_| true).expect("20 tokens fit");
    let error = s.step(1).map(|_| ()).expect_err("the 21st does not").to_string();
    assert!(error.contains("the eviction policy off may not evict") && error.contains("raise the KV budget"), "{error}");
}

#[test]
fn a_stream_past_the_trained_context_is_renumbered_and_goes_on() {
    // Full budget too: the arena of a whole context is thinned by an eighth, then renumbered.
    for n_slot in [24, 250, 256] {
        let mut s = session(n_slot, |_| ());
        let n_ctx = s.model().config.n_ctx;
        assert_eq!(n_ctx, 256, "the test's numbers are for this context");
        let mut sinks = None;
        for (i, &token) in tokens(3 * n_ctx).iter().enumerate() {
            let logits = s.step(token).expect("a step");
            assert!(logits.iter().all(|l| l.is_finite()), "step {i}");
            assert!(s.cache().next_pos() as usize <= n_ctx);
            if i == 3 {
                sinks = Some(first_entries(s.cache()));
            }
        }
        // Their positions never changed, so nor did their bytes: those that are first are those that were.
        assert!(sinks == Some(first_entries(s.cache())), "sinks stay, and stay the first positions, in {n_slot} slots");
        assert_eq!(s.n_past(), 3 * n_ctx as u64);
    }
}

/// The bytes of keys and values of the four first positions, in every head.
fn first_entries(cache: &KvCache) -> Vec<Vec<u8>> {
    let (k_bytes, v_bytes) = (cache.shape().k_bytes(AttnLayer(0)), cache.shape().v_bytes(AttnLayer(0)));
    let entry = |(layer, head): (AttnLayer, Head), pos: u32| {
        let slot = cache.kept(layer, head).iter().position(|&p| p == pos).expect("a first position");
        let row = cache.first_row(layer, head) + slot;
        [&cache.keys(AttnLayer(0))[row * k_bytes..][..k_bytes], &cache.values(AttnLayer(0))[row * v_bytes..][..v_bytes]].concat()
    };
    heads(cache).flat_map(|head| (0..4).map(move |pos| (head, pos))).map(|(head, pos)| entry(head, pos)).collect()
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
