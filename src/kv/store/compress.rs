//! Evicting without newcomers, at once down to a number: when the context is nearly full, before renumbering, and for what is measured of
//! compression after the prompt.

use super::{KvCache, KvScratch, Whole};
use crate::kv::Pos;
use crate::kv::layout::Head;
use crate::kv::policy::marks::HeadMarks;
use crate::kv::policy::{Protected, Rule};

impl KvCache {
    /// Evicts from every head, without newcomers, until `n_keep` entries are left: those that would go one by one by `rule`,
    /// which need not protect what the stream's does. Where all that may go has gone, the oldest recent tokens follow, and
    /// then the latest sinks. Slots keep their order. A layer with a window that holds no more is left alone, and so are the first
    /// `n_whole` layers (until positions are renumbered).
    pub fn compress(&mut self, n_keep: usize, n_whole: usize, rule: Rule, scratch: &mut KvScratch) {
        self.level(scratch);
        let n_gone = self.n_live.saturating_sub(n_keep);
        if n_gone > 0 {
            if rule.protect.sinks == 0 {
                self.sink_rows.give_up();
            }
            self.compress_layers(n_whole, n_keep, rule, scratch);
            self.whole = Whole { n_layer: n_whole, n_more: n_gone };
            self.n_live = n_keep;
            self.n_evicted += n_gone as u64;
        }
    }

    /// Brings layers that were left whole down to what the others hold.
    fn level(&mut self, scratch: &mut KvScratch) {
        if self.whole.n_more > 0 {
            self.compress_layers(0, self.n_live, self.rule, scratch);
            self.whole = Whole::default();
        }
    }

    /// Layers from `first_layer` on keep `n_keep` entries of each head at most.
    fn compress_layers(&mut self, first_layer: usize, n_keep: usize, rule: Rule, scratch: &mut KvScratch) {
        for layer in self.shape.layers().skip(first_layer) {
            let (live, n_slot, first) = (self.live(layer), self.slots(layer), self.first_row(layer, Head(0)));
            if live <= n_keep {
                continue;
            }
            self.rejudge(layer);
            let rule = if self.shape.is_ring(layer) { self.rule(layer) } else { rule };
            for (h, mut head) in self.marks.of_layer(&self.shape, layer, rule).enumerate() {
                let kept = last_to_go(&head, self.next_pos, n_keep, &mut scratch.order[..live]);
                for (to, &from) in kept.iter().enumerate() {
                    let (from, row) = (from as usize, first + h * n_slot);
                    head.moved(from, to);
                    self.stores[self.shape.store(layer)].copy(row + from, row + to);
                }
            }
        }
    }
}

/// Of all entries of a head, as many as `order` has room for, the slots of those `n_keep` that go last, in slot order.
fn last_to_go<'a>(head: &HeadMarks, now: Pos, n_keep: usize, order: &'a mut [u32]) -> &'a [u32] {
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
    // The reserve first: the least common of those that are open go last among them. The others by their priority.
    sort(order, &|slot| if class(slot) == 0 { -head.common(slot) } else { 0.0 });
    sort(&mut order[..n_open.saturating_sub(head.rule.n_reserved)], &|slot| -head.priority(slot));
    let kept = &mut order[n_live - n_keep..];
    kept.sort_unstable();
    kept
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/store/compress.rs"]
mod tests;
