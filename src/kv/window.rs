//! Layers that see the latest tokens only, among layers that see all or by themselves: which they are, and what that means
//! for the slots of an arena. Everything here is pure; the rings themselves are in cache.rs.

/// A sliding window over the layers of a model that has one: all of them, or all but every n-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Tokens that such a layer sees, the newest included.
    pub n_tok: usize,
    /// Every n-th layer has no window; 0: all have one.
    pub global_every: usize,
}

impl Window {
    /// Whether no layer sees more.
    pub fn is_everywhere(&self) -> bool {
        self.global_every == 0
    }

    /// Whether the layer sees the latest tokens only.
    pub fn limits(&self, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(self.global_every)
    }

    /// How many of the first `n_layer` layers do.
    pub fn n_local(&self, n_layer: usize) -> usize {
        n_layer - n_layer.checked_div(self.global_every).unwrap_or(0)
    }

    /// Slots of a head of the layer, where a layer without a window has `n_slot`.
    pub fn slots(&self, layer: usize, n_slot: usize) -> usize {
        if self.limits(layer) { self.n_tok.min(n_slot) } else { n_slot }
    }

    /// Slots of one head of each of the first `n_layer` layers together.
    pub fn slots_of(&self, n_layer: usize, n_slot: usize) -> usize {
        let n_local = self.n_local(n_layer);
        n_local * self.n_tok.min(n_slot) + (n_layer - n_local) * n_slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::cache::tests::cache_for;
    use crate::kv::cache::{KvCache, KvParams, KvShape, Recent, RenumberScratch};
    use crate::kv::policy::{Marks, Policy};
    use crate::kv::types::KvType;
    use crate::mem::arena::Arena;
    use crate::mem::pool::Pool;

    #[test]
    fn slots_add_up_layer_by_layer() {
        for (n_tok, global_every, n_slot) in [(4, 2, 9), (4, 6, 9), (9, 3, 4), (4, 1, 9), (1, 6, 1), (4, 0, 9)] {
            let window = Window { n_tok, global_every };
            let mut sum = 0;
            for layer in 0..20 {
                assert_eq!(window.slots_of(layer, n_slot), sum, "{window:?}, {layer}");
                assert_eq!(window.n_local(layer), (0..layer).filter(|&l| window.limits(l)).count());
                sum += window.slots(layer, n_slot);
            }
        }
        let six = Window { n_tok: 4, global_every: 6 };
        assert_eq!((0..13).filter(|&layer| !six.limits(layer)).collect::<Vec<_>>(), [5, 11]);
    }

    const N_LAYER: usize = 5;
    const HEADS: usize = 2;

    fn shape(n_tok: usize, n_batch: usize, n_ctx: usize) -> KvShape {
        let (k_type, v_type, window) = (KvType::F16, KvType::F16, Some(Window { n_tok, global_every: 3 }));
        KvShape {
            n_layer: N_LAYER,
            n_head_kv: HEADS,
            head_dim: 8,
            n_batch,
            n_ctx,
            window,
            k_type,
            v_type,
            capped: false,
            marks: Marks::default(),
        }
    }

    /// The token that each row of a head's values was made from: f16 holds its number.
    fn tokens_in(cache: &KvCache, rows: &[u32]) -> Vec<usize> {
        let bytes = cache.shape().v_bytes();
        let token = |&row: &u32| {
            let mut value = [0f32; 8];
            KvType::F16.row().load(&cache.values()[row as usize * bytes..][..bytes], &mut value);
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
            let shape = shape(n_tok, n_batch, n_ctx);
            let (policy, sinks, recent) = (Policy::L2, 1, Recent::Tokens(2));
            let params = KvParams {
                budget_bytes: shape.arena_bytes(n_slot) as u64,
                policy,
                sinks,
                pinned: 0,
                recent: Some(recent),
                rare: None,
                pool: None,
            };
            let mut cache = cache_for(shape, &params);
            let (n_slot, mut pool) = (cache.n_slot(), Pool::new(1).unwrap());
            let mut scratch = [Arena::fill(|arena| RenumberScratch::carve(arena, n_ctx, 8)).unwrap()];
            let (mut table, mut done, mut thinned) = (vec![0; n_slot], 0, false);
            while done < 150 {
                let n = 1 + done % n_batch;
                if cache.must_renumber(n) {
                    thinned |= cache.n_live() > n_ctx - n_ctx / 8;
                    cache.renumber(&mut pool, &mut scratch, |_, _, _| (), |_, _, _| ());
                }
                for layer in 0..N_LAYER {
                    let row: Vec<f32> = (done..done + n).flat_map(|token| [token as f32; 8 * HEADS]).collect();
                    cache.rate(&mut pool, layer, &row, &row, |key| key[0] % 7.0);
                    cache.place(&mut pool, layer, &row, &row);
                    for (head, t) in (0..HEADS).flat_map(|h| (0..n).map(move |t| (h, t))) {
                        let live = cache.rows_at(layer, head, t, &mut table);
                        assert_eq!(live, cache.live_at(layer, t));
                        let (seen, now) = (tokens_in(&cache, &table[..live]), done + t);
                        if layer % 3 != 2 && !thinned {
                            let first = (now + 1).saturating_sub(n_tok.min(n_slot));
                            assert_eq!(seen, (first..=now).collect::<Vec<_>>(), "window {n_tok}, token {now}");
                        } else if layer % 3 == 2 {
                            assert!(seen.contains(&0) && seen.contains(&now), "the sink, and the token itself");
                        }
                    }
                    cache.commit(layer, n);
                }
                cache.advance(n);
                done += n;
                for layer in 0..N_LAYER {
                    let mut kept = cache.kept(layer, 0).to_vec();
                    kept.sort_unstable();
                    assert_eq!(kept.last(), Some(&(cache.next_pos() - 1)), "the newest token has one position everywhere");
                    let first = cache.next_pos() as usize - kept.len();
                    assert!(layer % 3 == 2 || kept.iter().map(|&p| p as usize).eq(first..first + kept.len()));
                }
            }
        }
    }

    #[test]
    fn every_byte_of_a_ring_is_in_the_budget() {
        let shape = shape(6, 4, 100);
        for n in [1, 5, 6, 7, 50, 100] {
            // A budget one byte short of n slots gives fewer, whether the windows are whole or not.
            assert_eq!(shape.slots_within(shape.arena_bytes(n) as u64).max(n), shape.slots_within(shape.arena_bytes(n) as u64));
            assert!(shape.slots_within(shape.arena_bytes(n) as u64 - 1) < n);
        }
        // Beyond the windows a token costs what layer 2 of the five needs for it; up to there all do.
        let row = shape.k_bytes() + shape.v_bytes() + 8;
        assert_eq!(shape.bytes_per_slot(), HEADS * row);
        assert_eq!(shape.arena_bytes(96) - shape.arena_bytes(64), 32 * shape.bytes_per_slot());
        assert_eq!(shape.full_f16_bytes(50), HEADS * 2 * 16 * (50 + 4 * 6));
    }

    /// `--evict off` keeps what the layers without a window saw, and no more than that.
    #[test]
    fn evict_off_stops_when_the_other_layers_are_full() {
        let shape = shape(3, 4, 64);
        let (policy, recent) = (Policy::Off, Recent::Tokens(0));
        let params = KvParams {
            budget_bytes: shape.arena_bytes(32) as u64,
            policy,
            sinks: 0,
            pinned: 0,
            recent: Some(recent),
            rare: None,
            pool: None,
        };
        let (mut cache, mut pool) = (cache_for(shape, &params), Pool::new(1).unwrap());
        for _ in 0..8 {
            cache.admit(4).unwrap();
            (0..N_LAYER).for_each(|layer| {
                cache.rate(&mut pool, layer, &[1.0; 4 * 8 * HEADS], &[1.0; 4 * 8 * HEADS], |_| 0.0);
                cache.place(&mut pool, layer, &[1.0; 4 * 8 * HEADS], &[1.0; 4 * 8 * HEADS]);
                cache.commit(layer, 4);
            });
            cache.advance(4);
        }
        assert_eq!((cache.n_slot(), cache.n_live(), cache.kept(0, 0).len(), cache.n_evicted()), (32, 32, 3, 0));
        assert!(cache.admit(1).is_err());
    }
}
