//! Tests of `kv::store::compress`.

use super::*;
use crate::kv::layout::AttnLayer;
use crate::kv::testkit::Tiny;
use crate::kv::{Policy, Recent, Share};

const ONE: (AttnLayer, Head) = (AttnLayer(0), Head(0));

impl KvCache {
    /// Evicts one entry without a newcomer from every head that has one for each live token: the last slot's entry moves
    /// into the hole. Where sinks and recent tokens are all there is, the oldest recent token goes; where all are sinks, the
    /// last of them.
    fn drop_one(&mut self) {
        let last = self.n_live - 1;
        // A ring is left alone while what remains elsewhere is still as much as it holds.
        for layer in self.shape.layers().filter(|&layer| last < self.shape.slots(layer, self.n_slot)) {
            let (n_slot, first, rule) = (self.slots(layer), self.first_row(layer, Head(0)), self.rule(layer));
            for (h, mut head) in self.marks.of_layer(&self.shape, layer, rule).enumerate() {
                let slot = head.victim(last + 1, self.next_pos).unwrap_or_else(|| {
                    let slots = 0..=last;
                    let recent = slots.clone().filter(|&slot| head.positions[slot] >= rule.protect.sinks);
                    let oldest = recent.min_by_key(|&slot| head.positions[slot]);
                    oldest.or(slots.max_by_key(|&slot| head.positions[slot])).unwrap_or(last)
                });
                head.moved(last, slot);
                let row = first + h * n_slot;
                self.stores[0].copy(row + last, row + slot);
            }
        }
        self.n_live -= 1;
        self.n_evicted += 1;
    }
}

#[test]
fn compressing_at_once_keeps_what_dropping_one_by_one_keeps() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..60 {
        let (n, sinks, recent) = (rng.usize(1..64), rng.u32(..6), Recent::Tokens(rng.u32(1..9)));
        let [mut at_once, mut one_by_one] = [(); 2].map(|()| Tiny::new(64, 64, sinks, recent));
        // Few norms, so that many tie.
        (0..n).map(|_| rng.usize(..5)).for_each(|token| {
            at_once.feed_number(token);
            one_by_one.feed_number(token);
        });
        let n_keep = rng.usize(1..=n);
        compress(&mut at_once, n_keep, 0);
        (n_keep..n).for_each(|_| one_by_one.cache.drop_one());
        let kept = |tiny: &Tiny| (tiny.kept(0, 0), tiny.cache.n_live(), tiny.cache.n_evicted());
        assert_eq!(kept(&at_once), kept(&one_by_one), "{n} to {n_keep}, {sinks} sinks, {recent:?}");
        let cache = &at_once.cache;
        assert!(cache.kept(ONE.0, ONE.1).is_sorted(), "slots keep their order");
        for (slot, &score) in cache.scores(ONE.0, ONE.1).iter().enumerate() {
            let mut key = [0f32; 8];
            cache.shape().k_type.row().load(&cache.keys(AttnLayer(0))[slot * 16..][..16], &mut key);
            assert_eq!(key[0], score, "keys move with their scores");
        }
    }
}

/// An arena with room for 48 entries of random keys and values, and 40 of them in it.
fn filled(policy: Policy, rare: f32, rng: &mut fastrand::Rng) -> Tiny {
    let mut tiny = Tiny::with(48, |shape, params| {
        (shape.n_layer, shape.each.n_head_kv, shape.n_ctx) = (2, 2, 1 << 20);
        (params.policy, params.sinks, params.recent) = (policy, 2, Some(Recent::Tokens(6)));
        (params.rare, params.pool) = (Some(Share(rare)), Some(0));
    });
    (0..40).for_each(|_| enter(&mut tiny, rng));
    tiny
}

/// One more token.
fn enter(tiny: &mut Tiny, rng: &mut fastrand::Rng) {
    tiny.feed_each(|_| [(); 3].map(|()| (0..16).map(|_| rng.f32() - 0.3).collect()));
}

/// The first layer keeps all, takes newcomers until its slots are full, and comes down to the others' number when positions
/// are renumbered; the other layer does as if there were no such layer.
#[test]
fn a_layer_that_is_left_whole_goes_on_by_itself() {
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut one, mut plain) = (filled(Policy::L2Attn, 0.3, &mut rng.clone()), filled(Policy::L2Attn, 0.3, &mut rng));
    let before = all_kept(&one);
    compress(&mut one, 16, 1);
    compress(&mut plain, 16, 0);
    assert_eq!((&all_kept(&one)[..2], &all_kept(&one)[2..]), (&before[..2], &all_kept(&plain)[2..]));
    for more in 1..=18 {
        enter(&mut one, &mut rng.clone());
        enter(&mut plain, &mut rng);
        let kept = all_kept(&one);
        assert_eq!(kept[2..], all_kept(&plain)[2..]);
        assert!(kept[..2].iter().all(|kept| kept.len() == (40 + more).min(48) && kept.last() == Some(&(39 + more as Pos))));
    }
    assert_eq!((one.cache.n_live(), one.cache.n_evicted()), (34, 24));
    one.cache.renumber(&mut one.pool, &mut one.scratch, &());
    assert!(all_kept(&one).iter().all(|kept| kept.iter().copied().eq(0..34)));
}

/// Through several renewals of the unit of scores, an entry whose score was a thousandth of all others', which the reserve keeps,
/// leaves after some ten half-lives (8 * 48 tokens each) and not before a few.
#[test]
fn what_was_rare_once_leaves() {
    let mut rng = fastrand::Rng::with_seed(13);
    let (mut tiny, half_life) = (filled(Policy::L2Attn, 0.3, &mut rng), 8 * 48);
    let slot = tiny.cache.kept(ONE.0, ONE.1).iter().position(|&pos| pos == 10).expect("nothing was evicted");
    tiny.cache.marks.scores[slot] *= 1e-3;
    let mut left_after = None;
    for n in 1..140 * half_life {
        enter(&mut tiny, &mut rng);
        if left_after.is_none() && !tiny.kept(0, 0).contains(&10) {
            left_after = Some(n / half_life);
        }
        assert!(tiny.cache.scores(ONE.0, ONE.1).iter().all(|score| score.is_normal()), "after {n}");
    }
    assert!(left_after.is_some_and(|n| (5..40).contains(&n)), "{left_after:?} half-lives");
}

fn all_kept(tiny: &Tiny) -> Vec<Vec<Pos>> {
    [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(layer, head)| tiny.kept(layer, head)).to_vec()
}

fn compress(tiny: &mut Tiny, n_keep: usize, n_whole: usize) {
    let rule = tiny.cache.rule;
    tiny.cache.compress(n_keep, n_whole, rule, &mut tiny.scratch[0]);
}

#[test]
fn so_it_is_with_a_reserve_and_where_attention_counts() {
    for (policy, rare) in
        [(Policy::L2, 0.3), (Policy::L2Attn, 0.0), (Policy::L2Attn, 0.3), (Policy::H2o, 0.0), (Policy::Outlier, 0.0)]
    {
        for n_keep in [39, 30, 18, 10, 4] {
            let mut rng = fastrand::Rng::with_seed(n_keep as u64);
            let (mut at_once, mut one_by_one) = (filled(policy, rare, &mut rng.clone()), filled(policy, rare, &mut rng));
            compress(&mut at_once, n_keep, 0);
            (n_keep..40).for_each(|_| one_by_one.cache.drop_one());
            assert_eq!(all_kept(&at_once), all_kept(&one_by_one), "{}, {rare}, to {n_keep}", policy.name());
        }
    }
}

/// What is kept by a rule for fewer slots is what its own reserve says, not that of the arena.
#[test]
fn compressing_goes_by_the_rule_it_is_given() {
    let kept = |n_reserved: usize| {
        let mut tiny = filled(Policy::L2, 0.3, &mut fastrand::Rng::with_seed(7));
        let rule = Rule { n_reserved, ..tiny.cache.rule };
        tiny.cache.compress(16, 0, rule, &mut tiny.scratch[0]);
        all_kept(&tiny)
    };
    // Without a reserve the lowest norms are kept, besides two sinks and five recent tokens (the next one is the sixth).
    let cache = filled(Policy::L2, 0.3, &mut fastrand::Rng::with_seed(7)).cache;
    let mut open: Vec<usize> = (2..35).collect();
    open.sort_by(|&a, &b| cache.scores(ONE.0, ONE.1)[a].total_cmp(&cache.scores(ONE.0, ONE.1)[b]));
    let mut expected: Vec<Pos> = open[..9].iter().map(|&slot| slot as Pos).chain([0, 1]).chain(35..40).collect();
    expected.sort_unstable();
    assert_eq!(kept(0)[0], expected);
    assert_ne!(kept(0), kept(5));
}

/// KeyDiff scores nothing when entries enter, so it must compare before it is asked who goes.
#[test]
fn keydiff_compares_before_it_evicts_without_a_newcomer() {
    let mut tiny = filled(Policy::KeyDiff, 0.0, &mut fastrand::Rng::with_seed(9));
    let key = |cache: &KvCache, slot: usize| {
        let mut key = [0f32; 8];
        cache.shape.k_type.row().load(&cache.keys(AttnLayer(0))[slot * 16..][..16], &mut key);
        let norm = key.iter().map(|k| k * k).sum::<f32>().sqrt();
        key.map(|k| k / norm)
    };
    let keys: Vec<[f32; 8]> = (0..40).map(|slot| key(&tiny.cache, slot)).collect();
    let mean: [f32; 8] = std::array::from_fn(|i| keys.iter().map(|key| key[i]).sum());
    let like = |slot: usize| (0..8).map(|i| keys[slot][i] * mean[i]).sum::<f32>();
    let mut open: Vec<usize> = (2..35).collect();
    open.sort_by(|&a, &b| like(a).total_cmp(&like(b)));
    let mut expected: Vec<Pos> = open[..13].iter().map(|&slot| slot as Pos).chain([0, 1]).chain(35..40).collect();
    expected.sort_unstable();
    compress(&mut tiny, 20, 0);
    assert_eq!(all_kept(&tiny)[0], expected);
}
