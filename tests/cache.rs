//! The cache by the door that the engine uses: what fits, what is taken, rings beside policies, small and absurd sizes.

use lowkey::kv::policy::Rule;
use lowkey::kv::{AttnLayer, KvCache, KvShape, KvType, LayerShape, Policy, Recent, Window};
use lowkey_test_kit::tiny::{Tiny, tiny_shape};

const HEADS: usize = 2;

/// Of random shapes: what is measured is what is taken, and a slot costs the same wherever it is the next one.
#[test]
fn what_is_measured_is_what_is_taken() {
    let mut rng = fastrand::Rng::with_seed(4);
    for _ in 0..300 {
        let policy = rng.choice(Policy::all()).expect("a policy");
        let mut shape = KvShape {
            n_layer: rng.usize(1..9),
            each: LayerShape { n_head_kv: rng.usize(1..5), head_dim: 32 * rng.usize(1..5) },
            local: None,
            shared: false,
            n_batch: rng.usize(1..33),
            n_ctx: 1024,
            window: rng.bool().then(|| Window { n_tok: rng.usize(1..200), global_every: rng.usize(..4) }),
            k_type: rng.choice(KvType::ALL).expect("a type"),
            v_type: rng.choice(KvType::ALL).expect("a type"),
            capped: rng.bool(),
            keeps: policy.row().keeps(rng.bool(), Some(rng.u32(..4))),
        };
        if rng.bool() {
            (shape.each.head_dim, shape.k_type, shape.v_type) = (8 * rng.usize(1..17), KvType::F16, KvType::F16);
        }
        if shape.window.is_some_and(|window| !window.is_everywhere()) && rng.bool() {
            shape.local = Some(LayerShape { n_head_kv: rng.usize(1..5), head_dim: 32 * rng.usize(1..5) });
        }
        // `Arena::fill` compares the carving that takes with the one that measured.
        let (n_slot, bytes) = (rng.usize(1..300), |n: usize| shape.arena_bytes(n));
        let cache = KvCache::new(shape, n_slot, Rule::RING, u64::MAX).expect("memory");
        assert_eq!(cache.arena_bytes(), bytes(n_slot), "{shape:?}");
        let rows = shape.slots(AttnLayer(0), n_slot) * shape.k_bytes(AttnLayer(0));
        assert!(
            cache.keys(AttnLayer(0)).len() >= rows
                && cache.keys(AttnLayer(0)).len() + cache.values(AttnLayer(0)).len() <= bytes(n_slot),
            "{shape:?}"
        );
        if shape.ring_len().is_none() {
            assert_eq!(bytes(256 + 64) - bytes(256), 64 * shape.bytes_per_slot(), "{shape:?}");
        }
    }
}

#[test]
fn every_byte_of_a_ring_is_in_the_budget() {
    let window = Some(Window { n_tok: 6, global_every: 3 });
    let shape = KvShape {
        n_layer: 5,
        each: LayerShape { n_head_kv: HEADS, head_dim: 8 },
        n_batch: 4,
        n_ctx: 100,
        window,
        ..tiny_shape()
    };
    for n in [1, 5, 6, 7, 50, 100] {
        // A budget one byte short of n slots gives fewer, whether the windows are whole or not.
        assert!(shape.slots_within(shape.arena_bytes(n) as u64) >= n);
        assert!(shape.slots_within(shape.arena_bytes(n) as u64 - 1) < n);
    }
    // Beyond the windows a token costs what layer 2 of the five needs for it; up to there all do.
    let row = shape.k_bytes(AttnLayer(0)) + shape.v_bytes(AttnLayer(0)) + 8;
    assert_eq!(shape.bytes_per_slot(), HEADS * row);
    assert_eq!(shape.arena_bytes(96) - shape.arena_bytes(64), 32 * shape.bytes_per_slot());
    assert_eq!(shape.full_f16_bytes(50), HEADS * 2 * 16 * (50 + 4 * 6));
}

#[test]
fn no_shape_overflows_and_rows_can_be_numbered() {
    for (n_layer, n_head_kv, head_dim, n_ctx) in [(1, 1, 8, 8), (128, 128, 1024, 1 << 24), (65_536, 8, 1024, 1 << 24)] {
        let (n_batch, v_type) = (n_ctx / 8, if head_dim > 8 { KvType::Q4H } else { KvType::F16 });
        let shape = KvShape { n_layer, each: LayerShape { n_head_kv, head_dim }, n_batch, n_ctx, v_type, ..tiny_shape() };
        for budget in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
            let n = shape.slots_within(budget);
            let rows = shape.n_heads() * n + n_head_kv * shape.n_batch;
            assert!(n <= n_ctx && rows <= u32::MAX as usize);
            assert!(n == 0 || shape.arena_bytes(n) as u64 <= budget);
        }
    }
}

#[test]
fn shares_of_the_slots_never_exceed_them() {
    for n in (1..200_000).chain((1 << 24) - 1000..=1 << 24) {
        assert_eq!(Recent::Percent(100.0).of(n), n as u32);
        assert!(Recent::Percent(50.0).of(n) as usize == n / 2);
    }
}

#[test]
fn one_slot_is_enough_for_one_token_at_a_time() {
    let mut one = Tiny::with(1, |shape, _| shape.n_ctx = 8);
    // The rounding of regions may give a slot or two more.
    let n_slot = one.cache.n_slot();
    for t in 0..40 {
        assert!(one.feed_number(t));
        assert!(one.numbers().contains(&t) && one.numbers().len() == n_slot.min(t + 1));
    }
    assert_eq!(one.cache.n_evicted(), 40 - n_slot as u64);
}

#[test]
fn compressing_a_context_that_is_all_protected_drops_the_oldest_recent_or_the_last_sinks() {
    let after_17 = |sinks: u32, recent: Recent| {
        let mut tiny = Tiny::with(16, |shape, params| (shape.n_ctx, params.sinks, params.recent) = (16, sinks, Some(recent)));
        (0..17).for_each(|t| assert!(tiny.feed_number(t)));
        tiny.numbers()
    };
    assert_eq!(after_17(2, Recent::Tokens(14)), [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(after_17(0, Recent::Percent(100.0)), (2..17).collect::<Vec<_>>());
    assert_eq!(after_17(15, Recent::Tokens(1)), (0..14).chain([16]).collect::<Vec<_>>());
}

/// Five layers, every third without a window.
fn windowed(n_tok: usize, n_slot: usize, n_batch: usize, n_ctx: usize, policy: Policy) -> Tiny {
    Tiny::with(n_slot, |shape, params| {
        (shape.n_layer, shape.each.n_head_kv, shape.n_batch, shape.n_ctx) = (5, HEADS, n_batch, n_ctx);
        shape.window = Some(Window { n_tok, global_every: 3 });
        (params.policy, params.sinks, params.recent) = (policy, 1, Some(Recent::Tokens(2)));
    })
}

/// The token that each row of a head's values was made from: f16 holds its number.
fn tokens_in(cache: &KvCache, rows: &[u32]) -> Vec<usize> {
    let bytes = cache.shape().v_bytes(AttnLayer(0));
    let token = |&row: &u32| {
        let mut value = [0f32; 8];
        KvType::F16.row().load(&cache.values(AttnLayer(0))[row as usize * bytes..][..bytes], &mut value);
        value[0] as usize
    };
    let mut tokens: Vec<_> = rows.iter().map(token).collect();
    tokens.sort_unstable();
    tokens
}

/// Whatever is evicted elsewhere and however a stream is cut into batches, a token sees in a layer with a window just
/// the tokens of the window, at their true distances, past the trained context too.
#[test]
fn layers_with_a_window_hold_the_latest_tokens_and_the_others_follow_the_policy() {
    for (n_tok, n_slot, n_batch, n_ctx) in
        [(3, 7, 1, 64), (3, 7, 4, 64), (5, 40, 8, 64), (6, 4, 3, 64), (30, 32, 4, 32), (3, 9, 4, 16)]
    {
        let mut tiny = windowed(n_tok, n_slot, n_batch, n_ctx, Policy::L2);
        let n_slot = tiny.cache.n_slot();
        let (mut table, mut done, mut thinned) = (vec![0; n_slot], 0, false);
        while done < 150 {
            let n = 1 + done % n_batch;
            thinned |= tiny.cache.next_pos() as usize + n > n_ctx && tiny.cache.n_live() > n_ctx - n_ctx / 8;
            let values: Vec<f32> = (done..done + n).flat_map(|token| [token as f32; 8 * HEADS]).collect();
            let keys: Vec<f32> = values.iter().map(|token| token % 7.0).collect();
            let see = |layer: AttnLayer, cache: &KvCache| {
                for (head, t) in cache.shape().each.heads().flat_map(|h| (0..n).map(move |t| (h, t))) {
                    let live = cache.rows_at(layer, head, t, &mut table);
                    assert_eq!(live, cache.live_at(layer, t));
                    let (seen, now) = (tokens_in(cache, &table[..live]), done + t);
                    if layer.0 % 3 != 2 && !thinned {
                        let first = (now + 1).saturating_sub(n_tok.min(n_slot));
                        assert_eq!(seen, (first..=now).collect::<Vec<_>>(), "window {n_tok}, token {now}");
                    } else if layer.0 % 3 == 2 {
                        assert!(seen.contains(&0) && seen.contains(&now), "the sink, and the token itself");
                    }
                }
            };
            assert!(tiny.feed(n, |_| [vec![0.0; keys.len()], keys.clone(), values.clone()], see));
            done += n;
            for layer in 0..5 {
                let (kept, next) = (tiny.kept(layer, 0), tiny.cache.next_pos());
                assert_eq!(kept.last(), Some(&(next - 1)), "the newest token has one position everywhere");
                assert!(layer % 3 == 2 || kept.iter().copied().eq(next - kept.len() as u32..next));
            }
        }
    }
}

/// `--evict off` keeps what the layers without a window saw, and no more than that; the token that is refused leaves no trace.
#[test]
fn evict_off_stops_when_the_other_layers_are_full() {
    let mut tiny = windowed(3, 32, 4, 64, Policy::Off);
    let rows = |n: usize| move |_: AttnLayer| [(); 3].map(|()| vec![1.0; n * 8 * HEADS]);
    (0..8).for_each(|_| assert!(tiny.feed(4, rows(4), |_, _| ())));
    for _ in 0..2 {
        assert_eq!((tiny.cache.n_slot(), tiny.cache.n_live(), tiny.cache.n_evicted()), (32, 32, 0));
        assert_eq!(tiny.kept(0, 0), [29, 30, 31]);
        assert!(!tiny.feed(1, rows(1), |_, _| ()));
    }
}
