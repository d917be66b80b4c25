//! Tests of `kv::policy::victim`.

use super::*;
use crate::kv::policy::{Policy, Protection};

/// The definition, word for word: of the open ones all but the least common `n_reserved` may go, one at least; of those the
/// one of the highest priority, of equals the oldest.
fn naive(rule: Rule, e: &Entries, now: Pos) -> Option<usize> {
    let Rule { policy, protect, n_reserved } = rule;
    let is_open =
        |&s: &usize| e.positions[s] >= protect.sinks && i64::from(e.positions[s]) <= i64::from(now) - i64::from(protect.recent);
    let mut open: Vec<usize> = (0..e.positions.len()).filter(is_open).collect();
    open.sort_by(|&a, &b| e.common[b].total_cmp(&e.common[a]));
    let n_common = open.len().saturating_sub(n_reserved).max(1).min(open.len());
    let limit = e.common[*open.get(n_common.checked_sub(1)?)?];
    let priority = |s: usize| policy.row().priority.of(e.scores[s], e.received[s]);
    let may_go = open.into_iter().filter(|&s| e.common[s] >= limit);
    may_go.min_by(|&a, &b| priority(b).total_cmp(&priority(a)).then(e.positions[a].cmp(&e.positions[b])))
}

/// Any entries, with ties; the limit is left over from another question.
#[test]
fn it_is_what_sorting_says() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut limit = NO_LIMIT;
    for _ in 0..40_000 {
        let n = rng.usize(..40);
        let mut positions: Vec<Pos> = (0..50).collect();
        rng.shuffle(&mut positions);
        positions.truncate(n);
        let levels = rng.u8(1..30);
        let mut random = || -> Vec<f32> { (0..n).map(|_| f32::from(rng.u8(..levels)) - 4.0).collect() };
        let (scores, received, common) = (random(), random(), random());
        let received: Vec<f32> = received.iter().map(|r| r.abs() + 0.5).collect();
        let entries = Entries { positions: &positions, scores: &scores, received: &received, common: &common };
        let now = positions.iter().max().map_or(0, |p| p + 1);
        let protect = Protection { sinks: rng.u32(..6), recent: rng.u32(..8) };
        let policy = rng.choice(Policy::all()).unwrap();
        let rule = Rule { policy, protect, n_reserved: if rng.bool() { 0 } else { rng.usize(..n + 3) } };
        assert_eq!(victim(rule, entries, now, &mut limit), naive(rule, &entries, now), "{rule:?} {entries:?}");
    }
}

/// A stream, where the limit moves by one entry at a time or stays.
#[test]
fn the_limit_follows_a_stream() {
    let mut rng = fastrand::Rng::with_seed(2);
    let (n, mut limit) = (64usize, NO_LIMIT);
    let rule = Rule { policy: Policy::L2, protect: Protection { sinks: 2, recent: 16 }, n_reserved: 20 };
    let mut positions: Vec<Pos> = (0..n as Pos).collect();
    let [mut scores, mut common] = [(); 2].map(|()| (0..n).map(|_| rng.f32()).collect::<Vec<f32>>());
    for now in n as Pos..3_000 {
        let entries = Entries { positions: &positions, scores: &scores, received: &scores, common: &common };
        let goes = victim(rule, entries, now, &mut limit);
        assert_eq!(goes, naive(rule, &entries, now));
        let slot = goes.unwrap();
        (positions[slot], scores[slot], common[slot]) = (now, rng.f32(), rng.f32());
    }
}

#[test]
fn protected_entries_stay_whatever_their_score() {
    // Position 0 is a sink, 8 and 9 are recent at step 10 with recent 3 (8, 9 and 10 itself).
    let rule = Rule { policy: Policy::L2, protect: Protection { sinks: 1, recent: 3 }, n_reserved: 0 };
    let of = |scores: &[f32], positions: &[Pos]| {
        victim(rule, Entries { positions, scores, received: scores, common: scores }, 10, &mut NO_LIMIT.clone())
    };
    assert_eq!(of(&[9.0, 1.0, 2.0, 8.0, 7.0], &[0, 4, 5, 8, 9]), Some(2));
    assert_eq!(of(&[9.0, 8.0, 7.0], &[0, 8, 9]), None);
    assert_eq!(of(&[], &[]), None);
    assert_eq!(rule.protect.min_slots(), 4);
}

/// A model may be broken: whatever its numbers, someone goes.
#[test]
fn not_a_number_does_not_panic() {
    for nan in [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX)] {
        for n_reserved in [0, 1, 5] {
            let (rule, scores) = (Rule { policy: Policy::L2Attn, protect: Protection::default(), n_reserved }, [nan; 3]);
            let entries = Entries { positions: &[0, 1, 2], scores: &scores, received: &scores, common: &scores };
            assert_eq!(victim(rule, entries, 3, &mut NO_LIMIT.clone()), Some(0));
        }
    }
}

#[test]
fn integers_order_as_numbers_do() {
    let numbers = [f32::NEG_INFINITY, -2.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 2.5, f32::INFINITY, f32::NAN];
    assert!(numbers.is_sorted_by(|&a, &b| order(a) < order(b)));
}
