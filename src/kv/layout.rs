//! What a model and a batch ask of the arena: layers, heads, slots, the bytes of a row. Layers with a sliding window see the latest
//! tokens only; which they are and what that means for slots is here, the rings themselves are in the store. Everything here is pure.

use super::Pos;
use super::policy::Keeps;
use super::types::{KvType, both_names};
pub use crate::kernels::MAX_HEAD_DIM;

/// KV heads of a layer at most: what a step keeps on the stack.
pub const MAX_HEAD_KV: usize = 128;

/// A layer, counted among those that have keys and values. (`ModelLayer` counts those with a convolution too.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttnLayer(pub usize);

/// A KV head of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head(pub usize);

/// What the model and the batch ask of the arena.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub n_layer: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Tokens of one prefill batch.
    pub n_batch: usize,
    /// The trained context: more slots than this would never be used.
    pub n_ctx: usize,
    /// Which layers see the latest tokens only, if any does.
    pub window: Option<Window>,
    /// How keys and values are stored.
    pub k_type: KvType,
    pub v_type: KvType,
    /// Whether the model caps scores: then what is added to all scores of a query is not lost in softmax.
    pub capped: bool,
    /// What the policy keeps of entries and heads, beside a score and a position for each entry.
    pub keeps: Keeps,
}

impl KvShape {
    pub fn layers(&self) -> impl Iterator<Item = AttnLayer> + use<> {
        (0..self.n_layer).map(AttnLayer)
    }

    pub fn heads(&self) -> impl Iterator<Item = Head> + use<> {
        (0..self.n_head_kv).map(Head)
    }

    /// KV heads of all layers.
    pub fn n_heads(&self) -> usize {
        self.n_layer * self.n_head_kv
    }

    /// How many of the first `n_layer` layers are no rings.
    pub fn n_unlimited(&self, n_layer: usize) -> usize {
        self.window.map_or(n_layer, |window| window.n_global(n_layer))
    }

    /// Whether a layer is a ring: the oldest entry goes, whatever the policy.
    pub fn is_ring(&self, layer: AttnLayer) -> bool {
        self.window.is_some_and(|window| window.limits(layer))
    }

    /// Slots of each head of a layer where layers without a window have `n_slot`.
    pub fn slots(&self, layer: AttnLayer, n_slot: usize) -> usize {
        self.window.map_or(n_slot, |window| window.slots(layer, n_slot))
    }

    /// Slots of all heads of the first `n_layer` layers.
    pub(super) fn slots_of(&self, n_layer: usize, n_slot: usize) -> usize {
        self.n_head_kv * self.window.map_or(n_layer * n_slot, |window| window.slots_of(n_layer, n_slot))
    }

    /// `f16`, or `q5_h/q4_h` where keys and values differ.
    pub fn type_names(&self) -> String {
        both_names(self.k_type.name(), self.v_type.name())
    }

    /// Bytes of one stored key.
    pub fn k_bytes(&self) -> usize {
        self.k_type.row().row_bytes(self.head_dim)
    }

    /// Bytes of one stored value.
    pub fn v_bytes(&self) -> usize {
        self.v_type.row().row_bytes(self.head_dim)
    }

    /// Keys and values of `n` tokens in f16, without anything beside them: what shares of a full cache refer to.
    pub fn full_f16_bytes(&self, n: usize) -> usize {
        2 * KvType::F16.row().row_bytes(self.head_dim) * self.slots_of(self.n_layer, n)
    }

    /// Key, value, position and marks of one token in every head that no window limits; in every head, where all are limited.
    pub fn bytes_per_slot(&self) -> usize {
        let n_local = self.window.filter(|w| !w.is_everywhere()).map_or(0, |window| window.n_local(self.n_layer));
        (self.n_layer - n_local) * self.n_head_kv * self.slot_bytes()
    }

    /// Key, value, position and marks in one head.
    fn slot_bytes(&self) -> usize {
        let Keeps { common, received, token, .. } = self.keeps;
        let marks = size_of::<Pos>() + size_of::<f32>() * (1 + usize::from(common) + usize::from(received) + usize::from(token));
        self.k_bytes() + self.v_bytes() + marks
    }

    /// What the first `n_layer` layers take beyond `n_slot` slots if they keep `n_tok` tokens.
    pub fn bytes_beyond(&self, n_slot: usize, n_tok: usize, n_layer: usize) -> usize {
        let n_layer = n_layer.min(self.n_layer);
        let (whole, kept) = (self.slots_of(n_layer, n_tok), self.slots_of(n_layer, n_slot));
        whole.saturating_sub(kept) * self.slot_bytes()
    }

    /// The most slots that are of use: one for each token that a layer may see.
    pub fn most_slots(&self) -> usize {
        self.ring_len().map_or(self.n_ctx, |n_tok| self.n_ctx.min(n_tok))
    }

    /// Slots of each ring, where all layers are rings.
    pub fn ring_len(&self) -> Option<usize> {
        self.window.filter(|window| window.is_everywhere()).map(|window| window.n_tok)
    }
}

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
    pub fn limits(&self, layer: AttnLayer) -> bool {
        !(layer.0 + 1).is_multiple_of(self.global_every)
    }

    /// How many of the first `n_layer` layers do.
    pub fn n_local(&self, n_layer: usize) -> usize {
        n_layer - n_layer.checked_div(self.global_every).unwrap_or(0)
    }

    /// How many of them see everything.
    pub fn n_global(&self, n_layer: usize) -> usize {
        n_layer - self.n_local(n_layer)
    }

    /// Slots of a head of the layer, where a layer without a window has `n_slot`.
    pub fn slots(&self, layer: AttnLayer, n_slot: usize) -> usize {
        if self.limits(layer) { self.n_tok.min(n_slot) } else { n_slot }
    }

    /// Slots of one head of each of the first `n_layer` layers together.
    pub fn slots_of(&self, n_layer: usize, n_slot: usize) -> usize {
        let n_local = self.n_local(n_layer);
        n_local * self.n_tok.min(n_slot) + (n_layer - n_local) * n_slot
    }
}

#[cfg(test)]
#[path = "../../tests/unit/kv/layout.rs"]
mod tests;
