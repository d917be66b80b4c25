//! Evicting without a newcomer: one entry of each head when the context is nearly full (`drop_one`, before renumbering), or
//! at once down to a number (`compress`, for what is measured of compression after the prompt). Refuses to choose by any other
//! rule than the policy's.

use super::{KvCache, RenumberScratch};
use crate::kv::Pos;
use crate::kv::policy::{Protected, Protection, victim};

impl KvCache {
    /// Evicts from every head, without newcomers, until `n_keep` entries are left: those that would go one by one under
    /// `protect`, which need not be what the stream protects. Where all that may go has gone, the oldest recent tokens
    /// follow, and then the latest sinks. Slots keep their order. A layer with a window that holds no more is left alone.
    pub fn compress(&mut self, n_keep: usize, protect: Protection, scratch: &mut RenumberScratch) {
        let n_live = self.n_live;
        if n_live <= n_keep {
            return;
        }
        for layer in 0..self.shape.n_layer {
            let live = self.live(layer);
            let protect = if self.is_ring(layer) { Protection::default() } else { protect };
            let n_head = if live > n_keep { self.shape.n_head_kv } else { 0 };
            for head in 0..n_head {
                self.compress_head(self.first_row(layer, head), n_keep, protect, &mut scratch.order[..live]);
            }
        }
        self.n_live = n_keep;
        self.n_evicted += (n_live - n_keep) as u64;
    }

    /// The head whose rows begin at `first`; `order` has room for each of its entries.
    fn compress_head(&mut self, first: usize, n_keep: usize, protect: Protection, order: &mut [u32]) {
        let (n_live, now) = (order.len(), self.next_pos);
        order.iter_mut().enumerate().for_each(|(slot, order)| *order = slot as u32);
        let (scores, positions) = (&self.scores[first..][..n_live], &self.positions[first..][..n_live]);
        let rank = |slot: u32| {
            let (score, pos) = (scores[slot as usize], positions[slot as usize]);
            match protect.of(pos, now) {
                Some(Protected::Sink) => (2, 0.0, Pos::MAX - pos),
                Some(Protected::Recent) => (1, 0.0, pos),
                None => (0, -score, pos),
            }
        };
        order.sort_unstable_by(|&a, &b| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
        });
        let kept = &mut order[n_live - n_keep..];
        kept.sort_unstable();
        for (to, &from) in kept.iter().enumerate() {
            let (from, to) = (first + from as usize, first + to);
            (self.scores[to], self.positions[to]) = (self.scores[from], self.positions[from]);
            self.copy_row(from, to);
        }
    }

    /// Evicts one entry without a newcomer from every head that has one for each live token: the last slot's entry moves
    /// into the hole. Where sinks and recent tokens are all there is, the oldest recent token goes; where all are sinks, the
    /// last of them.
    pub(super) fn drop_one(&mut self) {
        let last = self.n_live - 1;
        for layer in 0..self.shape.n_layer {
            // A ring is left alone while what remains elsewhere is still as much as it holds.
            let n_head = if last < self.slots(layer) { self.shape.n_head_kv } else { 0 };
            let (_, protect) = self.rule(layer);
            for head in 0..n_head {
                let first = self.first_row(layer, head);
                let (scores, positions) = (&mut self.scores[first..][..=last], &mut self.positions[first..][..=last]);
                let slot = victim(scores, positions, self.next_pos, protect).unwrap_or_else(|| {
                    let slots = 0..=last;
                    let recent = slots.clone().filter(|&slot| positions[slot] >= protect.sinks);
                    let oldest = recent.min_by_key(|&slot| positions[slot]);
                    oldest.or(slots.max_by_key(|&slot| positions[slot])).unwrap_or(last)
                });
                (scores[slot], positions[slot]) = (scores[last], positions[last]);
                self.copy_row(first + last, first + slot);
            }
        }
        self.n_live -= 1;
        self.n_evicted += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::cache::Recent;
    use crate::kv::cache::tests::{cache, feed};

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
            at_once.compress(n_keep, at_once.protection(), &mut scratch[0]);
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
}
