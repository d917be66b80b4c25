//! Evicting without a newcomer: one entry of each head when the context is nearly full (`drop_one`, before renumbering), or
//! at once down to a number (`compress`, for what is measured of compression after the prompt). Refuses to choose by any other
//! rule than the policy's.

use super::{KvCache, RenumberScratch};
use crate::kv::Pos;
use crate::kv::marks::Head;
use crate::kv::policy::{Protected, Protection};

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
                self.compress_head((layer, head), n_keep, protect, &mut scratch.order[..live]);
            }
        }
        self.n_live = n_keep;
        self.n_evicted += (n_live - n_keep) as u64;
    }

    /// The head whose rows begin at `first`; `order` has room for each of its entries.
    fn compress_head(&mut self, (layer, head): (usize, usize), n_keep: usize, protect: Protection, order: &mut [u32]) {
        let (n_live, now, first) = (order.len(), self.next_pos, self.first_row(layer, head));
        order.iter_mut().enumerate().for_each(|(slot, order)| *order = slot as u32);
        let (rows, rule) = ((self.first_row(layer, 0), self.slots(layer)), self.rule(layer));
        let rank = |marks: &Head, slot: u32| {
            let slot = slot as usize;
            let pos = marks.positions[slot];
            match protect.of(pos, now) {
                Some(Protected::Sink) => (2, 0.0, Pos::MAX - pos),
                Some(Protected::Recent) => (1, 0.0, pos),
                None => (0, -marks.urge(slot), pos),
            }
        };
        let order_of = |a: (u8, f32, Pos), b: (u8, f32, Pos)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2));
        let mut heads = self.marks.of_layer(&self.shape, layer, rows, &mut self.positions, rule);
        let mut marks = heads.nth(head).expect("a head of the layer");
        // The reserve: of those that are open, the rarest go last.
        order.sort_unstable_by(|&a, &b| {
            let of = |slot: u32| (rank(&marks, slot).0, marks.rarity(slot as usize), marks.positions[slot as usize]);
            order_of(of(a), of(b))
        });
        let n_open = order.iter().filter(|&&slot| rank(&marks, slot).0 == 0).count();
        let n_common = n_open.saturating_sub(rule.n_rare);
        order[..n_common].sort_unstable_by(|&a, &b| order_of(rank(&marks, a), rank(&marks, b)));
        order[n_open..].sort_unstable_by(|&a, &b| order_of(rank(&marks, a), rank(&marks, b)));
        let kept = &mut order[n_live - n_keep..];
        kept.sort_unstable();
        for (to, &from) in kept.iter().enumerate() {
            marks.moved(from as usize, to);
        }
        drop(heads);
        for (to, &from) in kept.iter().enumerate() {
            self.copy_row(first + from as usize, first + to);
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
            let (rows, rule) = ((self.first_row(layer, 0), self.slots(layer)), self.rule(layer));
            for h in 0..n_head {
                let mut heads = self.marks.of_layer(&self.shape, layer, rows, &mut self.positions, rule);
                let mut head = heads.nth(h).expect("a head of the layer");
                let slot = head.victim(last + 1, self.next_pos).unwrap_or_else(|| {
                    let slots = 0..=last;
                    let recent = slots.clone().filter(|&slot| head.positions[slot] >= rule.protect.sinks);
                    let oldest = recent.min_by_key(|&slot| head.positions[slot]);
                    oldest.or(slots.max_by_key(|&slot| head.positions[slot])).unwrap_or(last)
                });
                head.moved(last, slot);
                drop(heads);
                let first = self.first_row(layer, h);
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
