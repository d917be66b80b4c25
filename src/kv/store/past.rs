//! What the cache tells its past, and what it asks of it.

use super::KvCache;
use crate::kernels::Kernels;
use crate::kv::Rotary;
use crate::kv::layout::{AttnLayer, Head, MAX_HEAD_KV};
use crate::kv::past::Asking;
use crate::mem::pool::Pool;

impl KvCache {
    /// Keys before RoPE and values of a layer, `[n_tok][n_head_kv * head_dim]`, go to the past.
    pub(super) fn append_to_past(&mut self, layer: AttnLayer, pool: &mut Pool, k: &[f32], v: &[f32]) {
        let (n_past, k_type, roundings) = (self.n_past(), self.shape.k_type, &self.roundings);
        if let Some(past) = &mut self.past {
            let round = |head, centre: &[f32], key: &[f32], row: &mut [u8]| {
                roundings.of_head(layer, head).around(centre).store(k_type, key, row);
            };
            past.append(layer, n_past, pool, &round, k, v);
        }
    }

    /// Looks in the past for what the queries of a layer (`[n_tok][n_head * head_dim]`, after RoPE)
    /// ask for.
    pub(super) fn recall(
        &mut self,
        layer: AttnLayer,
        pool: &mut Pool,
        kernels: Kernels,
        rotary: &impl Rotary,
        q: &[f32],
        n_tok: usize,
    ) {
        let n_head_kv = self.shape.of(layer).n_head_kv;
        let (n_slot, n_live, first) = (self.slots(layer), self.live(layer), self.first_slot(layer, Head(0)));
        let (n_past, next_pos) = (self.n_past(), self.next_pos);
        let Some(past) = &mut self.past else { return };
        let mut centres: [&[f32]; MAX_HEAD_KV] = [&[]; MAX_HEAD_KV];
        for (centre, rounding) in centres[..n_head_kv].iter_mut().zip(self.roundings.of_layer(layer)) {
            *centre = rounding.centre;
        }
        let slots = first..first + n_head_kv * n_slot;
        let (tokens, positions) = (&self.marks.tokens[slots.clone()], &self.marks.positions[slots]);
        let asking = Asking { layer, n_past, next_pos, tokens, positions, n_slot, n_live, centres };
        past.recall(&asking, pool, kernels, rotary, q, n_tok);
    }

    /// What token `t` of the batch under way found of its past in a head, `[max][sum][acc]` of each
    /// query, in the basis of values.
    pub(in crate::kv) fn recalled(&self, layer: AttnLayer, t: usize, head: Head) -> Option<&[f32]> {
        self.past.as_ref()?.found(layer, t, head)
    }
}
