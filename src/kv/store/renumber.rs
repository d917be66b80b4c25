//! Renumbering: what is kept gets new positions before the stream passes the trained context.

use super::{KvCache, KvScratch};
use crate::kv::layout::{Head, LayerShape};
use crate::kv::past::Past;
use crate::kv::{Pos, Rotary};
use crate::mem::pool::Pool;

impl KvCache {
    /// Past the trained context RoPE's angles mean nothing to the model. So before it is reached, every entry gets its
    /// rank by age in its head as its new position, and its key is turned by the difference, in place: as if the stream
    /// had consisted of just what is kept. Order by age is unchanged, sinks are still the first positions, recent
    /// entries the last, so protection is unchanged too. In layers with a window ranks end where they end in the others, for
    /// the newest token has one position.
    ///
    /// If the entries alone would (nearly) fill the context, the policy first evicts an eighth of it, and room for what is read again
    /// of a past in a file.
    pub(super) fn renumber(&mut self, pool: &mut Pool, scratch: &mut [KvScratch], rotary: &impl Rotary) {
        let reach = self.past.as_ref().map_or(0, Past::reach);
        self.compress(self.shape.n_ctx - self.shape.n_ctx / 8 - reach, 0, self.rule, &mut scratch[0]);
        let k_type = self.shape.k_type;
        for layer in self.shape.layers() {
            let (LayerShape { head_dim, n_head_kv }, row_bytes) = (self.shape.of(layer), self.shape.k_bytes(layer));
            let (n_slot, live) = (self.slots(layer), self.live(layer));
            let [row, slot] = [self.first_row(layer, Head(0)), self.first_slot(layer, Head(0))];
            let oldest = self.n_live - live;
            let keys = &mut self.stores[self.shape.store(layer)].keys[row * row_bytes..][..n_head_kv * n_slot * row_bytes];
            let positions = &mut self.marks.positions[slot..][..n_head_kv * n_slot];
            let roundings = &self.roundings;
            pool.for_chunks2_with(scratch, (keys, n_slot * row_bytes), (positions, n_slot), |scratch, head, keys, positions| {
                let rounding = roundings.of_head(layer, Head(head));
                let positions = &mut positions[..live];
                let KvScratch { order, key, angles } = scratch;
                let (order, key) = (&mut order[..live], &mut key[..head_dim]);
                for (i, slot) in order.iter_mut().enumerate() {
                    *slot = i as u32;
                }
                order.sort_unstable_by_key(|&slot| positions[slot as usize]);
                // Neighbours that lost none between them move by as many steps: angles are set once for them.
                let mut set = None;
                for (rank, &slot) in order.iter().enumerate() {
                    let row = &mut keys[slot as usize * row_bytes..][..row_bytes];
                    let (pos, new) = (&mut positions[slot as usize], (oldest + rank) as Pos);
                    if *pos != new {
                        rounding.load(k_type, row, key);
                        k_type.turn_back(key, head_dim);
                        let steps = i64::from(new) - i64::from(*pos);
                        if set.replace(steps) != Some(steps) {
                            rotary.set_angles(layer, steps, angles);
                        }
                        rotary.turn(layer, key, angles);
                        rounding.store(k_type, key, row);
                        *pos = new;
                    }
                }
            });
        }
        self.next_pos = self.n_live as Pos;
        let (n_past, next_pos) = (self.n_past(), self.next_pos);
        self.past.iter_mut().for_each(|past| past.renumber(n_past, next_pos));
        self.n_renumbered += 1;
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/store/renumber.rs"]
mod tests;
