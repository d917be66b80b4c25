//! A constant is taken off all keys of a head before they are rounded to few bits. Every score of a query then lacks the same
//! amount, which softmax does not see: attention needs no correction, and steps of a fixed number of levels become smaller,
//! because keys of a head have much in common. (That keys cluster around a mean, and that it is worth taking off, is in KIVI,
//! arXiv 2402.02750, and KVQuant, arXiv 2401.18079, which do it channel by channel, with scales and offsets that attention
//! must know.)
//!
//! The constant is the mean key before RoPE of the stream's first tokens, in the mean of all the ways in which positions turn it:
//! of pairs that turn slowly most is left, of fast ones nothing. It is fixed once, when `SEEN` tokens are in; those are then
//! rounded anew. So a batch may not reach over that token (`together`).

use super::{KvCache, RenumberScratch};
use crate::kv::shape::KvShape;

/// Tokens whose mean key is taken off.
pub const SEEN: usize = 64;

impl KvShape {
    /// Floats of the constants of all heads; none where keys are stored exactly, or where scores are capped, which is no shift.
    pub fn centres_len(&self) -> usize {
        if self.k_type.is_turned() && !self.capped { self.n_heads() * self.head_dim } else { 0 }
    }
}

impl KvCache {
    /// How many of `n` tokens may go in as one batch, one at least.
    pub fn together(&self, n: usize) -> usize {
        match SEEN.checked_sub(self.n_past() as usize) {
            Some(left) if left > 0 && !self.centres.is_empty() => n.min(left),
            _ => n,
        }
    }

    /// Keys before RoPE of one layer, `[n_tok][n_head_kv * head_dim]`: the first of a stream are added up.
    pub(super) fn add_to_centres(&mut self, layer: usize, k: &[f32]) {
        let row = self.shape.n_head_kv * self.shape.head_dim;
        if self.is_centred || self.centres.is_empty() {
            return;
        }
        assert!(self.n_past() as usize + k.len() / row <= SEEN, "a batch ends where centres are fixed");
        let sums = &mut self.centres[layer * row..][..row];
        for k in k.chunks_exact(row) {
            sums.iter_mut().zip(k).for_each(|(sum, k)| *sum += k);
        }
    }

    /// Whether enough was seen for `fix_centres`, which must come before the next batch.
    pub fn must_centre(&self) -> bool {
        !self.is_centred && !self.centres.is_empty() && self.n_past() as usize >= SEEN
    }

    /// Fixes what is taken off and rounds the keys anew that are there. `spread(layer, key, angles)` turns the mean key of a head
    /// to the mean of what it is at all positions.
    pub fn fix_centres(&mut self, scratch: &mut RenumberScratch, spread: impl Fn(usize, &mut [f32], &mut [f32])) {
        let KvShape { n_layer, n_head_kv, head_dim, k_type, .. } = self.shape;
        let row_bytes = self.shape.k_bytes();
        for (layer, head) in (0..n_layer).flat_map(|layer| (0..n_head_kv).map(move |head| (layer, head))) {
            let (first, live) = (self.first_row(layer, head), self.live(layer));
            let centre = &mut self.centres[(layer * n_head_kv + head) * head_dim..][..head_dim];
            centre.iter_mut().for_each(|sum| *sum *= 1.0 / SEEN as f32);
            spread(layer, centre, &mut scratch.angles);
            k_type.turn(centre, head_dim);
            for row in self.keys[first * row_bytes..][..live * row_bytes].chunks_exact_mut(row_bytes) {
                k_type.row().load(row, &mut scratch.key);
                scratch.key.iter_mut().zip(&*centre).for_each(|(key, centre)| *key -= centre);
                k_type.row().store(&scratch.key, row);
            }
        }
        self.is_centred = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::cache::{KvParams, KvType, Recent};
    use crate::kv::policy::{Marks, Policy};
    use crate::mem::arena::Arena;
    use crate::mem::pool::Pool;

    const DIM: usize = 32;

    /// A cache of one head after 100 keys, `n_batch` at a time, and the keys.
    fn filled(k_type: KvType, capped: bool, n_batch: usize) -> (KvCache, Vec<f32>) {
        let (v_type, marks) = (KvType::F16, Marks::default());
        let shape =
            KvShape { n_layer: 1, n_head_kv: 1, head_dim: DIM, n_batch, n_ctx: 128, window: None, k_type, v_type, capped, marks };
        let (budget_bytes, policy) = (shape.arena_bytes(120) as u64, Policy::Window);
        let params =
            KvParams { budget_bytes, policy, sinks: 1, pinned: 0, recent: Some(Recent::Tokens(1)), rare: None, pool: None };
        let (mut cache, mut pool) = (KvCache::new(shape, &params).unwrap(), Pool::new(1).unwrap());
        let mut arena = Arena::new(RenumberScratch::bytes(128, DIM)).unwrap();
        let mut scratch = RenumberScratch::carve(&mut arena, 128, DIM);
        let mut rng = fastrand::Rng::with_seed(3);
        // What keys have in common is larger than what they differ in.
        let common: Vec<f32> = (0..DIM).map(|_| 8.0 * (rng.f32() - 0.5)).collect();
        let keys: Vec<f32> = (0..100 * DIM).map(|i| common[i % DIM] + rng.f32() - 0.5).collect();
        let mut done = 0;
        while done < 100 {
            let n = cache.together(n_batch.min(100 - done));
            if cache.must_centre() {
                cache.fix_centres(&mut scratch, |_, _, _| ());
            }
            let batch = &keys[done * DIM..][..n * DIM];
            cache.rate(&mut pool, 0, batch, batch, |_| 0.0);
            cache.place(&mut pool, 0, batch, batch);
            cache.commit(0, n);
            cache.advance(n);
            done += n;
        }
        (cache, keys)
    }

    /// The mean square between the keys that came once the centre was fixed and what is stored of them, with what was taken off.
    fn error(cache: &KvCache, keys: &[f32]) -> f32 {
        let (ty, row_bytes) = (cache.shape.k_type, cache.shape.k_bytes());
        let rows = keys.chunks_exact(DIM).zip(cache.keys().chunks_exact(row_bytes));
        let squares = rows.skip(SEEN).map(|(key, row)| {
            let mut back = [0f32; DIM];
            ty.row().load(row, &mut back);
            back.iter_mut().zip(cache.centres.iter()).for_each(|(back, centre)| *back += centre);
            ty.turn_back(&mut back, DIM);
            back.iter().zip(key).map(|(back, key)| (back - key) * (back - key)).sum::<f32>()
        });
        squares.sum()
    }

    #[test]
    fn keys_less_what_they_share_are_rounded_more_finely_and_what_was_taken_off_is_known() {
        for k_type in [KvType::Q6H, KvType::Q5H, KvType::Q4H] {
            let (centred, keys) = filled(k_type, false, 16);
            let (plain, _) = filled(k_type, true, 16);
            assert!(centred.is_centred && !plain.is_centred);
            let (fine, coarse) = (error(&centred, &keys), error(&plain, &keys));
            assert!(fine < 0.25 * coarse, "{}: {fine}, plainly {coarse}", k_type.name());
        }
        for k_type in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
            assert!(filled(k_type, false, 16).0.centres.is_empty(), "{}", k_type.name());
        }
    }

    #[test]
    fn batches_end_where_centres_are_fixed_and_change_nothing() {
        let (one, _) = filled(KvType::Q5H, false, 1);
        for n_batch in [3, 16] {
            assert!(
                filled(KvType::Q5H, false, n_batch).0.keys()[..one.shape.k_bytes() * 100]
                    == one.keys()[..one.shape.k_bytes() * 100]
            );
        }
    }
}
