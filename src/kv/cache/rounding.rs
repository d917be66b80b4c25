//! How keys are rounded to few bits: less what all keys of a head have in common, and so that errors lie where queries do not look.
//!
//! A constant is taken off all keys of a head. Every score of a query then lacks the same
//! amount, which softmax does not see: attention needs no correction, and steps of a fixed number of levels become smaller,
//! because keys of a head have much in common. (That keys cluster around a mean, and that it is worth taking off, is in KIVI,
//! arXiv 2402.02750, and KVQuant, arXiv 2401.18079, which do it channel by channel, with scales and offsets that attention
//! must know.) The constant is the mean key before RoPE of the stream's first tokens, in the mean of all the ways in which positions turn it:
//! of pairs that turn slowly most is left, of fast ones nothing. Where scores are capped that would be no shift, and nothing is taken off.
//!
//! What queries ask of each element is its mean square in theirs, those of a pair that RoPE turns taken together: what the rounding
//! of a key may do to an element is weighed by it (`RowType::store_shaped`).
//!
//! Both are fixed once, when `SEEN` tokens are in; those are then rounded anew. So a batch may not reach over that token (`together`).

use super::{KvCache, MAX_HEAD_DIM, RenumberScratch};
use crate::kernels::kv_rows::RowType;
use crate::kv::shape::KvShape;
use crate::kv::types::KvType;
use crate::mem::arena::{Arena, Buf};

/// Tokens from which is learned how to round.
pub const SEEN: usize = 64;
/// A share of what is asked in the mean that is asked of every element: so few tokens may not show what others will look at.
const UNSEEN: f32 = 0.02;

/// What is known of how to round the keys of one head; nothing yet, or nothing to know, where its fields are empty.
#[derive(Clone, Copy, Default)]
pub(in crate::kv) struct Rounding<'a> {
    /// What is taken off keys, in the basis of their type.
    pub centre: &'a [f32],
    /// What queries ask of each element, before it is turned into that basis.
    asked: &'a [f32],
}

impl Rounding<'_> {
    /// Rounds a key into a row.
    pub fn store(&self, ty: KvType, x: &[f32], row: &mut [u8]) {
        if !ty.is_turned() {
            return ty.row().store(x, row);
        }
        turned(ty, x, |x| {
            x.iter_mut().zip(self.centre).for_each(|(x, centre)| *x -= centre);
            self.store_turned(ty, x, row);
        });
    }

    /// Puts a vector into a row of f16, in the basis of a type.
    pub fn exact(ty: KvType, x: &[f32], row: &mut [u8]) {
        turned(ty, x, |x| RowType::F16.store(x, row));
    }

    /// Of what is in the basis of the type already, the centre taken off. `x` is left as anything.
    fn store_turned(&self, ty: KvType, x: &mut [f32], row: &mut [u8]) {
        match self.asked {
            [] => ty.row().store(x, row),
            asked => ty.row().store_shaped(x, asked, KvType::part(x.len()), row),
        }
    }
}

/// Hands on a vector in the basis of a type.
fn turned(ty: KvType, x: &[f32], then: impl FnOnce(&mut [f32])) {
    let mut room = [0f32; MAX_HEAD_DIM];
    let turned = &mut room[..x.len()];
    turned.copy_from_slice(x);
    ty.turn(turned, x.len());
    then(turned);
}

/// What is known of all heads.
pub(in crate::kv) struct Roundings {
    /// `[n_layer][n_head_kv][head_dim]`: the sum of keys before RoPE, and once it is fixed what is taken off, in the basis of their type.
    centres: Buf<f32>,
    /// The same of the squares of the queries' elements after RoPE; once it is fixed what is asked, as a multiple of the mean.
    asked: Buf<f32>,
    is_fixed: bool,
    head_dim: usize,
}

impl Roundings {
    pub fn carve(arena: &mut Arena, shape: &KvShape) -> Self {
        // None where keys are stored exactly.
        let turned = if shape.k_type.is_turned() { shape.n_heads() * shape.head_dim } else { 0 };
        let centres = arena.carve(if shape.capped { 0 } else { turned });
        Roundings { centres, asked: arena.carve(turned), is_fixed: false, head_dim: shape.head_dim }
    }

    pub fn clear(&mut self) {
        self.centres.fill(0.0);
        self.asked.fill(0.0);
        self.is_fixed = false;
    }

    /// Of heads `first` and on, one after the other.
    pub fn heads_from<'a>(&'a self, first: usize) -> impl Iterator<Item = Rounding<'a>> {
        let skipped = if self.is_fixed { first } else { usize::MAX };
        let heads = |known: &'a [f32]| known.chunks_exact(self.head_dim).skip(skipped).chain(std::iter::repeat(&[][..]));
        heads(&self.centres).zip(heads(&self.asked)).map(|(centre, asked)| Rounding { centre, asked })
    }

    pub fn of_head(&self, head: usize) -> Rounding<'_> {
        self.heads_from(head).next().unwrap_or_default()
    }

    fn is_learning(&self) -> bool {
        !self.is_fixed && !self.asked.is_empty()
    }
}

impl KvCache {
    /// How many of `n` tokens may go in as one batch, one at least.
    pub fn together(&self, n: usize) -> usize {
        match SEEN.checked_sub(self.n_past() as usize) {
            Some(left) if left > 0 && self.roundings.is_learning() => n.min(left),
            _ => n,
        }
    }

    /// Keys before RoPE of one layer, `[n_tok][n_head_kv * head_dim]`: the first of a stream are added up.
    pub(super) fn learn_centres(&mut self, layer: usize, k: &[f32]) {
        let row = self.shape.n_head_kv * self.shape.head_dim;
        if !self.roundings.is_learning() || self.roundings.centres.is_empty() {
            return;
        }
        assert!(self.n_past() as usize + k.len() / row <= SEEN, "a batch ends where rounding is fixed");
        let sums = &mut self.roundings.centres[layer * row..][..row];
        for k in k.chunks_exact(row) {
            sums.iter_mut().zip(k).for_each(|(sum, k)| *sum += k);
        }
    }

    /// Queries after RoPE of one layer, `[n_tok][n_head * head_dim]`, those of the heads of a KV head one after the other: what the first of
    /// a stream ask is added up.
    pub fn learn_asked(&mut self, layer: usize, q: &[f32], n_tok: usize) {
        let KvShape { n_head_kv, head_dim, .. } = self.shape;
        if !self.roundings.is_learning() {
            return;
        }
        let sums = &mut self.roundings.asked[layer * n_head_kv * head_dim..];
        for q in q.chunks_exact(q.len() / n_tok) {
            for (q, sums) in q.chunks_exact(q.len() / n_head_kv).zip(sums.chunks_exact_mut(head_dim)) {
                for q in q.chunks_exact(head_dim) {
                    sums.iter_mut().zip(q).for_each(|(sum, q)| *sum += q * q);
                }
            }
        }
    }

    /// Whether enough was seen for `fix_roundings`, which must come before the next batch.
    pub fn must_fix_roundings(&self) -> bool {
        self.roundings.is_learning() && self.n_past() as usize >= SEEN
    }

    /// Fixes how keys are rounded, and rounds those anew that are there. `spread(layer, asked, mean key, angles)` makes of what is asked, and of the
    /// mean key where it is taken off, the mean of what they are at all positions.
    pub fn fix_roundings(
        &mut self,
        scratch: &mut RenumberScratch,
        spread: impl Fn(usize, &mut [f32], Option<&mut [f32]>, &mut [f32]),
    ) {
        let KvShape { n_layer, n_head_kv, head_dim, k_type, .. } = self.shape;
        let row_bytes = self.shape.k_bytes();
        self.roundings.is_fixed = true;
        for (layer, head) in (0..n_layer).flat_map(|layer| (0..n_head_kv).map(move |head| (layer, head))) {
            let (first, live) = (self.first_row(layer, head), self.live(layer));
            let Roundings { centres, asked, .. } = &mut self.roundings;
            let at = (layer * n_head_kv + head) * head_dim;
            let centre = if centres.is_empty() { &mut [][..] } else { &mut centres[at..][..head_dim] };
            let asked = &mut asked[at..][..head_dim];
            centre.iter_mut().for_each(|sum| *sum *= 1.0 / SEEN as f32);
            spread(layer, asked, Some(&mut *centre).filter(|centre| !centre.is_empty()), &mut scratch.angles);
            k_type.turn(centre, head_dim);
            let mean = (asked.iter().sum::<f32>() / head_dim as f32).max(f32::MIN_POSITIVE);
            asked.iter_mut().for_each(|asked| *asked = *asked / mean + UNSEEN);
            let rounding = Rounding { centre, asked };
            self.first.take_off(layer, head, rounding.centre, &mut scratch.key[..head_dim]);
            for row in self.keys[first * row_bytes..][..live * row_bytes].chunks_exact_mut(row_bytes) {
                k_type.row().load(row, &mut scratch.key);
                scratch.key.iter_mut().zip(rounding.centre).for_each(|(key, centre)| *key -= centre);
                rounding.store_turned(k_type, &mut scratch.key, row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::cache::tests::cache_for;
    use crate::kv::cache::{KvParams, Recent};
    use crate::kv::policy::{Marks, Policy};
    use crate::mem::arena::Arena;
    use crate::mem::pool::Pool;

    const DIM: usize = 32;

    /// The magnitude of an element of every query.
    fn asks(i: usize) -> f32 {
        0.1 + i as f32
    }

    /// A cache of one head after 100 keys, `n_batch` at a time, and the keys.
    fn filled(k_type: KvType, capped: bool, n_batch: usize) -> (KvCache, Vec<f32>) {
        let (v_type, marks) = (KvType::F16, Marks::default());
        let shape =
            KvShape { n_layer: 1, n_head_kv: 1, head_dim: DIM, n_batch, n_ctx: 128, window: None, k_type, v_type, capped, marks };
        let (budget_bytes, policy) = (shape.arena_bytes(120) as u64, Policy::Window);
        let params =
            KvParams { budget_bytes, policy, sinks: 1, pinned: 0, recent: Some(Recent::Tokens(1)), rare: None, pool: None };
        let (mut cache, mut pool) = (cache_for(shape, &params), Pool::new(1).unwrap());
        let mut scratch = Arena::fill(|arena| RenumberScratch::carve(arena, 128, DIM)).unwrap();
        let mut rng = fastrand::Rng::with_seed(3);
        // What keys have in common is larger than what they differ in.
        let common: Vec<f32> = (0..DIM).map(|_| 8.0 * (rng.f32() - 0.5)).collect();
        let keys: Vec<f32> = (0..100 * DIM).map(|i| common[i % DIM] + rng.f32() - 0.5).collect();
        let mut done = 0;
        while done < 100 {
            let n = cache.together(n_batch.min(100 - done));
            if cache.must_fix_roundings() {
                cache.fix_roundings(&mut scratch, |_, _, _, _| ());
            }
            let batch = &keys[done * DIM..][..n * DIM];
            cache.rate(&mut pool, 0, batch, batch, |_| 0.0);
            // Two queries for each key: what they ask for most is the last elements.
            let queries =
                batch.chunks_exact(DIM).flat_map(|_| [1.0, -1.0]).flat_map(|sign| (0..DIM).map(move |i| sign * asks(i)));
            cache.learn_asked(0, &queries.collect::<Vec<_>>(), n);
            cache.place(&mut pool, 0, batch, batch);
            cache.commit(0, n);
            cache.advance(n);
            done += n;
        }
        (cache, keys)
    }

    /// The mean square between the keys that came once the centre was fixed and what is stored of them, with what was taken off.
    fn error(cache: &KvCache, keys: &[f32]) -> f32 {
        errors(cache, keys).iter().sum()
    }

    /// The same by element.
    fn errors(cache: &KvCache, keys: &[f32]) -> [f32; DIM] {
        let (ty, row_bytes) = (cache.shape.k_type, cache.shape.k_bytes());
        let rows = keys.chunks_exact(DIM).zip(cache.keys().chunks_exact(row_bytes));
        let mut squares = [0f32; DIM];
        for (key, row) in rows.skip(SEEN) {
            let mut back = [0f32; DIM];
            ty.row().load(row, &mut back);
            back.iter_mut().zip(cache.roundings.of_head(0).centre).for_each(|(back, centre)| *back += centre);
            ty.turn_back(&mut back, DIM);
            squares.iter_mut().zip(back.iter().zip(key)).for_each(|(sum, (back, key))| *sum += (back - key) * (back - key));
        }
        squares
    }

    #[test]
    fn keys_less_what_they_share_are_rounded_more_finely_and_what_was_taken_off_is_known() {
        for k_type in [KvType::Q6H, KvType::Q5H, KvType::Q4H] {
            let (centred, keys) = filled(k_type, false, 16);
            let (plain, _) = filled(k_type, true, 16);
            assert!(!centred.roundings.centres.is_empty() && plain.roundings.centres.is_empty());
            let (fine, coarse) = (error(&centred, &keys), error(&plain, &keys));
            assert!(fine < 0.25 * coarse, "{}: {fine}, plainly {coarse}", k_type.name());
        }
        for k_type in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
            assert!(filled(k_type, false, 16).0.roundings.asked.is_empty(), "{}", k_type.name());
        }
    }

    /// What queries ask for is rounded more finely, at the cost of the rest.
    #[test]
    fn errors_lie_where_queries_do_not_look() {
        let (cache, keys) = filled(KvType::Q5H, false, 16);
        let asked = cache.roundings.of_head(0).asked;
        let mean = (0..DIM).map(|i| asks(i) * asks(i)).sum::<f32>() / DIM as f32;
        for (i, &asked) in asked.iter().enumerate() {
            assert!((asked - asks(i) * asks(i) / mean - UNSEEN).abs() < 1e-4, "{i}: {asked}");
        }
        let by_element = errors(&cache, &keys);
        let [first, last] = [&by_element[..DIM / 2], &by_element[DIM / 2..]].map(|half| half.iter().sum::<f32>());
        assert!(last < 0.5 * first, "{last} {first}");
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
