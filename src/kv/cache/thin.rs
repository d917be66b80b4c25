//! Evicting without newcomers, at once down to a number: when the context is nearly full, before renumbering, and for what is measured of
//! compression after the prompt. Refuses to choose by any other rule than the policy's.

use super::{KvCache, RenumberScratch, Whole, copy_row};
use crate::kv::Pos;
use crate::kv::marks::Head;
use crate::kv::policy::{Protected, Rule};

impl KvCache {
    /// Evicts from every head, without newcomers, until `n_keep` entries are left: those that would go one by one by `rule`,
    /// which need not protect what the stream's does. Where all that may go has gone, the oldest recent tokens follow, and
    /// then the latest sinks. Slots keep their order. A layer with a window that holds no more is left alone, and so are the first
    /// `n_whole` layers (until positions are renumbered).
    pub fn compress(&mut self, n_keep: usize, n_whole: usize, rule: Rule, scratch: &mut RenumberScratch) {
        self.level(scratch);
        let n_gone = self.n_live.saturating_sub(n_keep);
        if n_gone > 0 {
            if rule.protect.sinks == 0 {
                self.first.give_up();
            }
            self.thin(n_whole, n_keep, rule, scratch);
            self.whole = Whole { n_layer: n_whole, n_more: n_gone };
            self.n_live = n_keep;
            self.n_evicted += n_gone as u64;
        }
    }

    /// Brings layers that were left whole down to what the others hold.
    pub(super) fn level(&mut self, scratch: &mut RenumberScratch) {
        if self.whole.n_more > 0 {
            self.thin(0, self.n_live, self.rule, scratch);
            self.whole = Whole::default();
        }
    }

    /// Layers from `first_layer` on keep `n_keep` entries of each head at most.
    fn thin(&mut self, first_layer: usize, n_keep: usize, rule: Rule, scratch: &mut RenumberScratch) {
        for layer in first_layer..self.shape.n_layer {
            let (live, n_slot, first) = (self.live(layer), self.slots(layer), self.first_row(layer, 0));
            if live <= n_keep {
                continue;
            }
            self.compare_anew(layer);
            let rule = if self.is_ring(layer) { self.rule(layer) } else { rule };
            for (h, mut head) in self.marks.of_layer(&self.shape, layer, rule).enumerate() {
                let kept = last_to_go(&head, self.next_pos, n_keep, &mut scratch.order[..live]);
                for (to, &from) in kept.iter().enumerate() {
                    let (from, row) = (from as usize, first + h * n_slot);
                    head.moved(from, to);
                    copy_row(&self.shape, &mut self.keys, &mut self.values, row + from, row + to);
                }
            }
        }
    }
}

/// Of all entries of a head, as many as `order` has room for, the slots of those `n_keep` that go last, in slot order.
fn last_to_go<'a>(head: &Head, now: Pos, n_keep: usize, order: &'a mut [u32]) -> &'a [u32] {
    let class = |slot: usize| match head.rule.protect.of(head.positions[slot], now) {
        None => 0,
        Some(Protected::Recent) => 1,
        Some(Protected::Sink) => 2,
    };
    // Sooner to later: by class, and among equals the oldest first, but the latest of the sinks.
    let sort = |order: &mut [u32], rank: &dyn Fn(usize) -> f32| {
        let key = |slot: usize| {
            let pos = head.positions[slot];
            if class(slot) == 2 { Pos::MAX - pos } else { pos }
        };
        order.sort_unstable_by(|&a, &b| {
            let (a, b) = (a as usize, b as usize);
            class(a).cmp(&class(b)).then(rank(a).total_cmp(&rank(b))).then(key(a).cmp(&key(b)))
        });
    };
    order.iter_mut().enumerate().for_each(|(slot, order)| *order = slot as u32);
    let n_live = order.len();
    let n_open = (0..n_live).filter(|&slot| class(slot) == 0).count();
    // The reserve first: the least common of those that are open go last among them. The others by their urge.
    sort(order, &|slot| if class(slot) == 0 { -head.common(slot) } else { 0.0 });
    sort(&mut order[..n_open.saturating_sub(head.rule.n_rare)], &|slot| -head.urge(slot));
    let kept = &mut order[n_live - n_keep..];
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::cache::tests::{cache, cache_for, feed};
    use crate::kv::cache::{KvParams, KvShape, Recent};
    use crate::kv::policy::{Marks, Policy};
    use crate::kv::shape::Share;
    use crate::kv::types::KvType;
    use crate::mem::arena::Arena;
    use crate::mem::pool::Pool;

    impl KvCache {
        /// Evicts one entry without a newcomer from every head that has one for each live token: the last slot's entry moves
        /// into the hole. Where sinks and recent tokens are all there is, the oldest recent token goes; where all are sinks, the
        /// last of them.
        fn drop_one(&mut self) {
            let last = self.n_live - 1;
            // A ring is left alone while what remains elsewhere is still as much as it holds.
            for layer in (0..self.shape.n_layer).filter(|&layer| last < self.shape.slots(layer, self.n_slot)) {
                let (n_slot, first, rule) = (self.slots(layer), self.first_row(layer, 0), self.rule(layer));
                for (h, mut head) in self.marks.of_layer(&self.shape, layer, rule).enumerate() {
                    let slot = head.victim(last + 1, self.next_pos).unwrap_or_else(|| {
                        let slots = 0..=last;
                        let recent = slots.clone().filter(|&slot| head.positions[slot] >= rule.protect.sinks);
                        let oldest = recent.min_by_key(|&slot| head.positions[slot]);
                        oldest.or(slots.max_by_key(|&slot| head.positions[slot])).unwrap_or(last)
                    });
                    head.moved(last, slot);
                    let row = first + h * n_slot;
                    copy_row(&self.shape, &mut self.keys, &mut self.values, row + last, row + slot);
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
            let ((mut at_once, mut pool, mut scratch), (mut one_by_one, ..)) =
                (cache(64, sinks, recent), cache(64, sinks, recent));
            // Few norms, so that many tie.
            (0..n).map(|_| rng.usize(..5)).for_each(|token| {
                feed(&mut at_once, &mut pool, &mut scratch, token);
                feed(&mut one_by_one, &mut pool, &mut scratch, token);
            });
            let n_keep = rng.usize(1..=n);
            at_once.compress(n_keep, 0, at_once.rule, &mut scratch[0]);
            (n_keep..n).for_each(|_| one_by_one.drop_one());
            let kept = |cache: &KvCache| {
                let mut kept = cache.kept(0, 0).to_vec();
                kept.sort_unstable();
                (kept, cache.n_live(), cache.n_evicted())
            };
            assert_eq!(kept(&at_once), kept(&one_by_one), "{n} to {n_keep}, {sinks} sinks, {recent:?}");
            assert!(at_once.kept(0, 0).is_sorted(), "slots keep their order");
            for (slot, &score) in at_once.scores(0, 0).iter().enumerate() {
                let mut key = [0f32; 8];
                at_once.shape().k_type.row().load(&at_once.keys()[slot * 16..][..16], &mut key);
                assert_eq!(key, [score; 8], "keys move with their scores");
            }
        }
    }

    /// An arena with room for 48 entries of random keys and values, and 40 of them in it.
    fn filled(policy: Policy, rare: f32, rng: &mut fastrand::Rng) -> (KvCache, Vec<RenumberScratch>) {
        let (k_type, v_type) = (KvType::F16, KvType::F16);
        let mut params = KvParams {
            budget_bytes: 0,
            policy,
            sinks: 2,
            pinned: 0,
            recent: Some(Recent::Tokens(6)),
            rare: Some(Share(rare)),
            pool: Some(0),
        };
        let marks: Marks = params.marks();
        let shape = KvShape {
            n_layer: 2,
            n_head_kv: 2,
            head_dim: 8,
            n_batch: 1,
            n_ctx: 64,
            window: None,
            k_type,
            v_type,
            capped: false,
            marks,
        };
        params.budget_bytes = shape.arena_bytes(48) as u64;
        let (mut cache, mut pool) = (cache_for(shape, &params), Pool::new(1).unwrap());
        (0..40).for_each(|_| enter(&mut cache, &mut pool, rng));
        (cache, vec![Arena::fill(|arena| RenumberScratch::carve(arena, 64, 8)).unwrap()])
    }

    /// One more token.
    fn enter(cache: &mut KvCache, pool: &mut Pool, rng: &mut fastrand::Rng) {
        for layer in 0..2 {
            let row: Vec<f32> = (0..32).map(|_| rng.f32() - 0.3).collect();
            cache.rate(pool, layer, &row[..16], &row[16..], |x| x.iter().map(|x| x * x).sum::<f32>().sqrt());
            cache.place(pool, layer, &row[..16], &row[16..]);
            cache.commit(layer, 1);
            let given: Vec<f32> = (0..96).map(|_| rng.f32()).collect();
            cache.settle(layer, 1, |head| &given[head * 48..][..48]);
        }
        cache.advance(1);
    }

    /// The first layer keeps all, takes newcomers until its slots are full, and comes down to the others' number when positions
    /// are renumbered; the other layer does as if there were no such layer.
    #[test]
    fn a_layer_that_is_left_whole_goes_on_by_itself() {
        let mut rng = fastrand::Rng::with_seed(11);
        let ((mut cache, mut scratch), (mut plain, _)) =
            (filled(Policy::L2Attn, 0.3, &mut rng.clone()), filled(Policy::L2Attn, 0.3, &mut rng));
        let before = all_kept(&cache);
        cache.compress(16, 1, cache.rule, &mut scratch[0]);
        plain.compress(16, 0, plain.rule, &mut scratch[0]);
        assert_eq!((&all_kept(&cache)[..2], &all_kept(&cache)[2..]), (&before[..2], &all_kept(&plain)[2..]));
        let mut pool = Pool::new(1).unwrap();
        for more in 1..=18 {
            enter(&mut cache, &mut pool, &mut rng.clone());
            enter(&mut plain, &mut pool, &mut rng);
            let kept = all_kept(&cache);
            assert_eq!(kept[2..], all_kept(&plain)[2..]);
            assert!(kept[..2].iter().all(|kept| kept.len() == (40 + more).min(48) && kept.last() == Some(&(39 + more as Pos))));
        }
        assert_eq!((cache.n_live(), cache.n_evicted()), (34, 24));
        cache.renumber(&mut pool, &mut scratch, |_, _, _| (), |_, _, _| ());
        assert!(all_kept(&cache).iter().all(|kept| kept.iter().copied().eq(0..34)));
    }

    /// Through several renewals of the unit of scores, an entry whose score was a thousandth of all others', which the reserve keeps,
    /// leaves after some ten half-lives (8 * 48 tokens each) and not before a few.
    #[test]
    fn what_was_rare_once_leaves() {
        let mut rng = fastrand::Rng::with_seed(13);
        let (mut cache, _) = filled(Policy::L2Attn, 0.3, &mut rng);
        let (mut pool, half_life) = (Pool::new(1).unwrap(), 8 * 48);
        let slot = cache.kept(0, 0).iter().position(|&pos| pos == 10).expect("nothing was evicted");
        cache.marks.scores[slot] *= 1e-3;
        let mut left_after = None;
        // Positions of this stream pass the context, which matters only to RoPE.
        for n in 1..140 * half_life {
            enter(&mut cache, &mut pool, &mut rng);
            if left_after.is_none() && !cache.kept(0, 0).contains(&10) {
                left_after = Some(n / half_life);
            }
            assert!(cache.scores(0, 0).iter().all(|score| score.is_normal()), "after {n}");
        }
        assert!(left_after.is_some_and(|n| (5..40).contains(&n)), "{left_after:?} half-lives");
    }

    fn all_kept(cache: &KvCache) -> Vec<Vec<Pos>> {
        let sorted = |(layer, head)| {
            let mut kept = cache.kept(layer, head).to_vec();
            kept.sort_unstable();
            kept
        };
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(sorted).to_vec()
    }

    #[test]
    fn so_it_is_with_a_reserve_and_where_attention_counts() {
        for (policy, rare) in
            [(Policy::L2, 0.3), (Policy::L2Attn, 0.0), (Policy::L2Attn, 0.3), (Policy::H2o, 0.0), (Policy::Outlier, 0.0)]
        {
            for n_keep in [39, 30, 18, 10, 4] {
                let mut rng = fastrand::Rng::with_seed(n_keep as u64);
                let ((mut at_once, mut scratch), (mut one_by_one, _)) =
                    (filled(policy, rare, &mut rng.clone()), filled(policy, rare, &mut rng));
                at_once.compress(n_keep, 0, at_once.rule, &mut scratch[0]);
                (n_keep..40).for_each(|_| one_by_one.drop_one());
                assert_eq!(all_kept(&at_once), all_kept(&one_by_one), "{}, {rare}, to {n_keep}", policy.name());
            }
        }
    }

    /// What is kept by a rule for fewer slots is what its own reserve says, not that of the arena.
    #[test]
    fn compressing_goes_by_the_rule_it_is_given() {
        let kept = |n_rare: usize| {
            let (mut cache, mut scratch) = filled(Policy::L2, 0.3, &mut fastrand::Rng::with_seed(7));
            let rule = Rule { n_rare, ..cache.rule };
            cache.compress(16, 0, rule, &mut scratch[0]);
            all_kept(&cache)
        };
        // Without a reserve the lowest norms are kept, besides two sinks and five recent tokens (the next one is the sixth).
        let (cache, _) = filled(Policy::L2, 0.3, &mut fastrand::Rng::with_seed(7));
        let mut open: Vec<usize> = (2..35).collect();
        open.sort_by(|&a, &b| cache.scores(0, 0)[a].total_cmp(&cache.scores(0, 0)[b]));
        let mut expected: Vec<Pos> = open[..9].iter().map(|&slot| slot as Pos).chain([0, 1]).chain(35..40).collect();
        expected.sort_unstable();
        assert_eq!(kept(0)[0], expected);
        assert_ne!(kept(0), kept(5));
    }

    /// KeyDiff scores nothing when entries enter, so it must compare before it is asked who goes.
    #[test]
    fn keydiff_compares_before_it_evicts_without_a_newcomer() {
        let (mut cache, mut scratch) = filled(Policy::KeyDiff, 0.0, &mut fastrand::Rng::with_seed(9));
        let key = |cache: &KvCache, slot: usize| {
            let mut key = [0f32; 8];
            cache.shape.k_type.row().load(&cache.keys()[slot * 16..][..16], &mut key);
            let norm = key.iter().map(|k| k * k).sum::<f32>().sqrt();
            key.map(|k| k / norm)
        };
        let keys: Vec<[f32; 8]> = (0..40).map(|slot| key(&cache, slot)).collect();
        let mean: [f32; 8] = std::array::from_fn(|i| keys.iter().map(|key| key[i]).sum());
        let like = |slot: usize| (0..8).map(|i| keys[slot][i] * mean[i]).sum::<f32>();
        let mut open: Vec<usize> = (2..35).collect();
        open.sort_by(|&a, &b| like(a).total_cmp(&like(b)));
        let mut expected: Vec<Pos> = open[..13].iter().map(|&slot| slot as Pos).chain([0, 1]).chain(35..40).collect();
        expected.sort_unstable();
        cache.compress(20, 0, cache.rule, &mut scratch[0]);
        assert_eq!(all_kept(&cache)[0], expected);
    }
}
