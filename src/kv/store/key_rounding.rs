//! How keys are rounded to few bits: less what all keys of a head have in common, and so that errors lie where queries do not look.
//!
//! A constant is taken off all keys of a head. Every score of a query then lacks the same
//! amount, which softmax does not see: attention needs no correction, and steps of a fixed number of levels become smaller,
//! because keys of a head have much in common. (That keys cluster around a mean, and that it is worth taking off, is in KIVI,
//! arXiv 2402.02750, and KVQuant, arXiv 2401.18079, which do it channel by channel, with scales and offsets that attention
//! must know.) The constant is the mean key before RoPE of the stream's first tokens, in the mean of all the ways in which positions turn it:
//! of pairs that turn slowly most is left, of fast ones nothing. Where scores are capped that would be no shift, and nothing is taken off.
//!
//! The query weight of an element is its mean square in queries, those of a pair that RoPE turns taken together: what the rounding
//! of a key may do to an element is weighed by it (`RowType::store_shaped`).
//!
//! Both are fixed once, when `SEEN` tokens are in; those are then rounded anew. So a batch may not reach over that token (`together`).

use super::{KvCache, KvScratch};
use crate::kv::Rotary;
use crate::kv::layout::{AttnLayer, Head, KvShape, LayerShape};
use crate::kv::types::KvType;
use crate::mem::arena::{Arena, Buf, bytes_of_mut};

/// Tokens from which is learned how to round.
pub const SEEN: usize = 64;
/// A share of the mean weight that every element gets: so few tokens may not show what others will look at.
const UNSEEN: f32 = 0.02;

/// What is known of how to round the keys of one head; nothing yet, or nothing to know, where its fields are empty.
#[derive(Clone, Copy, Default)]
pub(in crate::kv) struct KeyRounding<'a> {
    /// What is taken off keys, in the basis of their type.
    pub centre: &'a [f32],
    /// How much queries weigh each element, before it is turned into that basis.
    query_weight: &'a [f32],
}

impl KeyRounding<'_> {
    /// Rounds a key into a row.
    pub fn store(&self, ty: KvType, x: &[f32], row: &mut [u8]) {
        if !ty.is_turned() {
            return ty.store(x, row);
        }
        ty.turned(x, |x| {
            x.iter_mut().zip(self.centre).for_each(|(x, centre)| *x -= centre);
            self.store_turned(ty, x, row);
        });
    }

    /// The same around another centre.
    pub fn around<'c>(&'c self, centre: &'c [f32]) -> KeyRounding<'c> {
        KeyRounding { centre, query_weight: self.query_weight }
    }

    /// Reads a key from a row, in the basis of its type.
    pub fn load(&self, ty: KvType, row: &[u8], out: &mut [f32]) {
        ty.row().load(row, out);
        out.iter_mut().zip(self.centre).for_each(|(x, centre)| *x += centre);
    }

    /// Of what is in the basis of the type already, the centre taken off. `x` is left as anything.
    fn store_turned(&self, ty: KvType, x: &mut [f32], row: &mut [u8]) {
        match self.query_weight {
            [] => ty.row().store(x, row),
            weight => ty.row().store_shaped(x, weight, KvType::part(x.len()), row),
        }
    }
}

/// What is known of all heads.
pub(in crate::kv) struct KeyRoundings {
    /// `[n_layer][n_head_kv][head_dim]`, each layer's as it has them: the sum of keys before RoPE, and once it is fixed what is taken off, in the basis of their type.
    centres: Buf<f32>,
    /// The same of the squares of the queries' elements after RoPE; once it is fixed the weights, as multiples of their mean.
    query_weights: Buf<f32>,
    is_fixed: bool,
    shape: KvShape,
}

impl KeyRoundings {
    pub fn carve(arena: &mut Arena, shape: &KvShape) -> Self {
        // None where keys are stored exactly.
        let turned = if shape.k_type.is_turned() { shape.dims_of(shape.n_layer) } else { 0 };
        let centres = arena.carve(if shape.capped { 0 } else { turned });
        KeyRoundings { centres, query_weights: arena.carve(turned), is_fixed: false, shape: *shape }
    }

    pub fn clear(&mut self) {
        self.centres.fill(0.0);
        self.query_weights.fill(0.0);
        self.is_fixed = false;
    }

    /// Of the heads of a layer, one after the other.
    pub fn of_layer<'a>(&'a self, layer: AttnLayer) -> impl Iterator<Item = KeyRounding<'a>> {
        let (first, head_dim) = (self.shape.dims_of(layer.0), self.shape.of(layer).head_dim);
        let heads = |known: &'a [f32]| {
            let known = if self.is_fixed { known.get(first..).unwrap_or_default() } else { &[] };
            known.chunks_exact(head_dim).chain(std::iter::repeat(&[][..]))
        };
        heads(&self.centres).zip(heads(&self.query_weights)).map(|(centre, query_weight)| KeyRounding { centre, query_weight })
    }

    pub fn of_head(&self, layer: AttnLayer, head: Head) -> KeyRounding<'_> {
        self.of_layer(layer).nth(head.0).unwrap_or_default()
    }

    /// Goes over what is known or being learned.
    pub fn visit<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        see(bytes_of_mut(&mut self.centres))?;
        see(bytes_of_mut(&mut self.query_weights))
    }

    pub fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// Whether there is anything to know of keys of this type.
    pub fn is_used(&self) -> bool {
        !self.query_weights.is_empty()
    }

    pub fn set_fixed(&mut self, is_fixed: bool) {
        self.is_fixed = is_fixed;
    }

    /// Whether keys can be rounded by what is known: by numbers, and weights above nought.
    pub fn is_sound(&self) -> bool {
        let lowest = if self.is_fixed { f32::MIN_POSITIVE } else { 0.0 };
        self.centres.iter().all(|x| x.is_finite()) && self.query_weights.iter().all(|x| x.is_finite() && *x >= lowest)
    }

    fn is_learning(&self) -> bool {
        !self.is_fixed && !self.query_weights.is_empty()
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

    /// What is taken off a head's keys, in the basis of their type: `[head_dim]`, or nothing.
    pub(in crate::kv) fn centre(&self, layer: AttnLayer, head: Head) -> &[f32] {
        self.roundings.of_head(layer, head).centre
    }

    /// Whether tokens are still missing from which is learned how keys are rounded.
    pub(super) fn is_learning(&self) -> bool {
        self.roundings.is_learning() && (self.n_past() as usize) < SEEN
    }

    /// Keys before RoPE of one layer, `[n_tok][n_head_kv * head_dim]`: the first of a stream are added up.
    pub(super) fn learn_centres(&mut self, layer: AttnLayer, k: &[f32]) {
        let row = self.shape.of(layer).row_dim();
        if !self.roundings.is_learning() || self.roundings.centres.is_empty() {
            return;
        }
        assert!(self.n_past() as usize + k.len() / row <= SEEN, "a batch ends where rounding is fixed");
        let sums = &mut self.roundings.centres[self.shape.dims_of(layer.0)..][..row];
        for k in k.chunks_exact(row) {
            sums.iter_mut().zip(k).for_each(|(sum, k)| *sum += k);
        }
    }

    /// Queries after RoPE of one layer, `[n_tok][n_head * head_dim]`, those of the heads of a KV head one after the other: the squares of the
    /// first of a stream are added up.
    pub(super) fn learn_query_weights(&mut self, layer: AttnLayer, q: &[f32], n_tok: usize) {
        let LayerShape { n_head_kv, head_dim } = self.shape.of(layer);
        if !self.roundings.is_learning() {
            return;
        }
        let sums = &mut self.roundings.query_weights[self.shape.dims_of(layer.0)..][..n_head_kv * head_dim];
        for q in q.chunks_exact(q.len() / n_tok) {
            for (q, sums) in q.chunks_exact(q.len() / n_head_kv).zip(sums.chunks_exact_mut(head_dim)) {
                for q in q.chunks_exact(head_dim) {
                    sums.iter_mut().zip(q).for_each(|(sum, q)| *sum += q * q);
                }
            }
        }
    }

    /// Once enough was seen, fixes how keys are rounded and rounds those anew that are there.
    pub(super) fn calibrate(&mut self, scratch: &mut KvScratch, rotary: &impl Rotary) {
        if !self.roundings.is_learning() || (self.n_past() as usize) < SEEN {
            return;
        }
        self.roundings.is_fixed = true;
        let (shape, k_type) = (self.shape, self.shape.k_type);
        for (layer, head) in shape.all_heads() {
            let (head_dim, row_bytes) = (shape.of(layer).head_dim, shape.k_bytes(layer));
            let (first, live) = (self.first_row(layer, head), self.live(layer));
            let KeyRoundings { centres, query_weights, .. } = &mut self.roundings;
            let at = shape.dims_of(layer.0) + head.0 * head_dim;
            let centre = if centres.is_empty() { &mut [][..] } else { &mut centres[at..][..head_dim] };
            let query_weight = &mut query_weights[at..][..head_dim];
            rotary.mean_squares(layer, query_weight);
            if !centre.is_empty() {
                centre.iter_mut().for_each(|sum| *sum *= 1.0 / SEEN as f32);
                rotary.mean_key(layer, centre, &mut scratch.angles);
                k_type.turn(centre, head_dim);
            }
            let mean = (query_weight.iter().sum::<f32>() / head_dim as f32).max(f32::MIN_POSITIVE);
            query_weight.iter_mut().for_each(|weight| *weight = *weight / mean + UNSEEN);
            let rounding = KeyRounding { centre, query_weight };
            let (key, keys) = (&mut scratch.key[..head_dim], &mut self.stores[shape.store(layer)].keys);
            self.sink_rows.subtract(layer, head, rounding.centre, key);
            for row in keys[first * row_bytes..][..live * row_bytes].chunks_exact_mut(row_bytes) {
                k_type.row().load(row, key);
                key.iter_mut().zip(rounding.centre).for_each(|(key, centre)| *key -= centre);
                rounding.store_turned(k_type, key, row);
            }
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/store/key_rounding.rs"]
mod tests;
