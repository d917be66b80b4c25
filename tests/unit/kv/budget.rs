//! Tests of `kv::budget`.

use super::*;
use crate::kv::layout::LayerShape;
use crate::kv::testkit::tiny_shape;

fn shape(n_ctx: usize) -> KvShape {
    KvShape { n_layer: 2, each: LayerShape { n_head_kv: 3, head_dim: 64 }, n_batch: 8, n_ctx, ..tiny_shape() }
}

/// What docs/policies.md and the help say of each policy, and that a flag is stronger.
#[test]
fn protection_is_what_is_usual_for_the_policy_unless_it_is_given() {
    let rule = |policy: Policy, recent: Option<Recent>, rare: Option<Share>| {
        let mut kv = shape(1000);
        let mut params = KvParams { budget_bytes: u64::MAX, policy, sinks: 4, pinned: 0, recent, rare, pool: None };
        kv.keeps = params.keeps();
        params.budget_bytes = kv.arena_bytes(200) as u64;
        let (n_slot, rule) = params.fit(&kv).expect("it fits");
        assert!((200..204).contains(&n_slot), "{n_slot}");
        let share = |n: usize| (n as f64 * 100.0 / n_slot as f64).round() as u32;
        (share(rule.protect.recent as usize), share(rule.n_reserved), params.keeps().pool)
    };
    assert_eq!(rule(Policy::L2Attn, None, None), (30, 45, 2));
    assert_eq!(rule(Policy::L2, None, None), (50, 0, 0));
    assert_eq!(rule(Policy::Outlier, None, None), (50, 0, 0));
    assert_eq!(rule(Policy::L2Attn, Some(Recent::Percent(10.0)), Some(Share(0.0))), (10, 0, 2));
    assert_eq!(rule(Policy::L2, None, Some(Share(0.2))), (50, 20, 0));
    assert_eq!(rule(Policy::Outlier, None, Some(Share(0.2))), (50, 0, 0), "it has no reserve");
}

#[test]
fn what_is_pinned_is_protected_as_sinks_are() {
    let kv = shape(1000);
    let of = |sinks: u32, pinned: u32, n_slot: usize| {
        let (budget_bytes, policy, recent) = (kv.arena_bytes(n_slot) as u64, Policy::L2, Some(Recent::Tokens(20)));
        KvParams { budget_bytes, policy, sinks, pinned, recent, rare: None, pool: None }.fit(&kv)
    };
    assert_eq!([of(4, 30, 100), of(40, 30, 100)].map(|fit| fit.expect("it fits").1.protect.sinks), [30, 40]);
    let refused = of(4, 90, 100).expect_err("no room").to_string();
    assert!(refused.contains("90 pinned tokens of the system's turn") && refused.contains("not pinned"), "{refused}");
    assert!(of(90, 4, 100).expect_err("no room").to_string().contains("90 sinks"));
}

#[test]
fn types_are_the_most_exact_that_hold_the_stream_or_else_the_smallest() {
    let mut kv = shape(1000);
    let mut chosen = |budget: u64, n_stream: Option<usize>, k: Option<KvType>, v: Option<KvType>| {
        kv.choose_types(budget, n_stream, [k, v], false);
        (kv.k_type, kv.v_type)
    };
    for pair in CHOICE {
        let of = |n: usize| KvShape { k_type: pair.0, v_type: pair.1, ..shape(1000) }.arena_bytes(n) as u64;
        assert_eq!(chosen(of(1000), None, None, None), pair, "the whole context");
        assert_eq!(chosen(of(1000), Some(5000), None, None), pair, "no stream has more positions than the context");
        assert_eq!(chosen(of(300), Some(300), None, None), pair);
        // A slot fewer: the next type, or the same if there is none.
        let next = CHOICE.iter().position(|&p| p == pair).map(|i| CHOICE[(i + 1).min(CHOICE.len() - 1)]);
        assert_eq!(Some(chosen(of(299), Some(300), None, None)), next);
    }
    let small = (KvType::Q5H, KvType::Q4H);
    assert_eq!([chosen(0, None, None, None), chosen(20_000, Some(300), None, None)], [small, small]);
    // What the user names stays.
    assert_eq!(chosen(0, None, Some(KvType::F16), None), (KvType::F16, KvType::Q4H));
    assert_eq!(chosen(u64::MAX, None, None, Some(KvType::Q4_0)), (KvType::F16, KvType::Q4_0));
}

#[test]
fn keys_with_long_biases_are_not_kept_in_few_bits() {
    let mut kv = shape(1000);
    let mut chosen = |budget: u64, wanted: [Option<KvType>; 2]| {
        kv.choose_types(budget, Some(300), wanted, true);
        (kv.k_type, kv.v_type)
    };
    let of = |k_type, v_type| KvShape { k_type, v_type, ..shape(1000) }.arena_bytes(300) as u64;
    for (k, v) in CHOICE_BIASED {
        assert_eq!(chosen(of(k, v), [None; 2]), (k, v));
    }
    assert_eq!(chosen(0, [None; 2]), (KvType::Q8_0, KvType::Q4H));
    // What the user names stays.
    assert_eq!(chosen(0, [Some(KvType::Q5H), None]), (KvType::Q5H, KvType::Q4H));
}
