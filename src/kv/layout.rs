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

/// The KV heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    pub n_head_kv: usize,
    pub head_dim: usize,
}

impl LayerShape {
    pub fn heads(&self) -> impl Iterator<Item = Head> + use<> {
        (0..self.n_head_kv).map(Head)
    }

    /// Elements of the keys of a token, or of its values.
    pub fn row_dim(&self) -> usize {
        self.n_head_kv * self.head_dim
    }
}

/// What the model and the batch ask of the arena.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub n_layer: usize,
    /// The heads of each layer,
    pub each: LayerShape,
    /// or of those without a window, where those with one have heads of their own. Their rows are then kept apart.
    pub local: Option<LayerShape>,
    /// Whether later layers, which hold nothing, look at what the last layer with a window and the last one without hold.
    pub shared: bool,
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

    /// The heads of a layer.
    pub fn of(&self, layer: AttnLayer) -> LayerShape {
        if self.is_ring(layer) { self.of_local() } else { self.each }
    }

    fn of_local(&self) -> LayerShape {
        self.local.unwrap_or(self.each)
    }

    /// The shapes that layers have.
    pub fn kinds(&self) -> impl Iterator<Item = LayerShape> + use<> {
        [Some(self.each), self.local].into_iter().flatten()
    }

    /// Every head of every layer, in the order in which they are kept.
    pub fn all_heads(&self) -> impl Iterator<Item = (AttnLayer, Head)> + use<> {
        let shape = *self;
        shape.layers().flat_map(move |layer| shape.of(layer).heads().map(move |head| (layer, head)))
    }

    /// The most of the heads of a layer, and of the elements of one.
    pub fn max_head_kv(&self) -> usize {
        self.each.n_head_kv.max(self.of_local().n_head_kv)
    }
    pub fn max_head_dim(&self) -> usize {
        self.each.head_dim.max(self.of_local().head_dim)
    }

    /// Layers without a window among the first `n_layer`, and those with one.
    fn split(&self, n_layer: usize) -> [usize; 2] {
        let n_unlimited = self.n_unlimited(n_layer);
        [n_unlimited, n_layer - n_unlimited]
    }

    /// KV heads of all layers, and of those before a layer.
    pub fn n_heads(&self) -> usize {
        self.heads_before(AttnLayer(self.n_layer))
    }
    pub fn heads_before(&self, layer: AttnLayer) -> usize {
        let [n, n_local] = self.split(layer.0);
        n * self.each.n_head_kv + n_local * self.of_local().n_head_kv
    }

    /// Elements of the keys of a token in the first `n_layer` layers.
    pub(super) fn dims_of(&self, n_layer: usize) -> usize {
        let [n, n_local] = self.split(n_layer);
        n * self.each.row_dim() + n_local * self.of_local().row_dim()
    }

    /// Which of the two stores of rows a layer's are in: the second is that of layers with a window, where their heads are others.
    pub(super) fn store(&self, layer: AttnLayer) -> usize {
        usize::from(self.local.is_some() && self.is_ring(layer))
    }

    /// Rows in a store of the first `n_layer` layers.
    pub(super) fn rows_of(&self, store: usize, n_layer: usize, n_slot: usize) -> usize {
        let Some(local) = self.local else { return if store == 0 { self.slots_of(n_layer, n_slot) } else { 0 } };
        let [n, n_local] = self.split(n_layer);
        if store == 0 { n * self.each.n_head_kv * n_slot } else { n_local * local.n_head_kv * self.ring(n_slot) }
    }

    /// Bytes of a key and of a value in a store, and the rows of a batch there.
    pub(super) fn row_bytes_of(&self, store: usize) -> [usize; 2] {
        let dim = if store == 0 { self.each.head_dim } else { self.of_local().head_dim };
        [self.k_type, self.v_type].map(|ty| ty.row().row_bytes(dim))
    }
    pub(super) fn batch_rows_of(&self, store: usize) -> usize {
        let of = if store == 0 { Some(self.each) } else { self.local };
        of.map_or(0, |of| of.n_head_kv * self.n_batch)
    }

    /// Slots of a head of a layer with a window.
    fn ring(&self, n_slot: usize) -> usize {
        self.window.map_or(n_slot, |window| window.n_tok.min(n_slot))
    }

    /// Whether later layers look at what this one holds.
    pub fn is_shared(&self, layer: AttnLayer) -> bool {
        self.shared && (layer.0 + 1..self.n_layer).all(|later| self.is_ring(AttnLayer(later)) != self.is_ring(layer))
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
        let [n, n_local] = self.split(n_layer);
        n * self.each.n_head_kv * n_slot + n_local * self.of_local().n_head_kv * self.ring(n_slot)
    }

    /// `f16`, or `q5_h/q4_h` where keys and values differ.
    pub fn type_names(&self) -> String {
        both_names(self.k_type.name(), self.v_type.name())
    }

    /// Bytes of one stored key of a layer.
    pub fn k_bytes(&self, layer: AttnLayer) -> usize {
        self.k_type.row().row_bytes(self.of(layer).head_dim)
    }

    /// Bytes of one stored value of a layer.
    pub fn v_bytes(&self, layer: AttnLayer) -> usize {
        self.v_type.row().row_bytes(self.of(layer).head_dim)
    }

    /// Keys and values of `n` tokens in f16, without anything beside them: what shares of a full cache refer to.
    pub fn full_f16_bytes(&self, n: usize) -> usize {
        self.bytes_of(self.n_layer, n, |of| 2 * KvType::F16.row().row_bytes(of.head_dim))
    }

    /// Key, value, position and marks of one token in every head that no window limits; in every head, where all are limited.
    pub fn bytes_per_slot(&self) -> usize {
        let n_local = self.window.filter(|w| !w.is_everywhere()).map_or(0, |window| window.n_local(self.n_layer));
        (self.n_layer - n_local) * self.each.n_head_kv * self.slot_bytes(self.each)
    }

    /// Key, value, position and marks in one head of such a layer.
    fn slot_bytes(&self, of: LayerShape) -> usize {
        let Keeps { common, received, token, .. } = self.keeps;
        let marks = size_of::<Pos>() + size_of::<f32>() * (1 + usize::from(common) + usize::from(received) + usize::from(token));
        self.k_type.row().row_bytes(of.head_dim) + self.v_type.row().row_bytes(of.head_dim) + marks
    }

    /// What the slots of the first `n_layer` layers take, by what one takes in a layer.
    fn bytes_of(&self, n_layer: usize, n_slot: usize, slot: impl Fn(LayerShape) -> usize) -> usize {
        let ([n, n_local], local) = (self.split(n_layer), self.of_local());
        n * self.each.n_head_kv * n_slot * slot(self.each) + n_local * local.n_head_kv * self.ring(n_slot) * slot(local)
    }

    /// What the first `n_layer` layers take beyond `n_slot` slots if they keep `n_tok` tokens.
    pub fn bytes_beyond(&self, n_slot: usize, n_tok: usize, n_layer: usize) -> usize {
        let n_layer = n_layer.min(self.n_layer);
        let [whole, kept] = [n_tok, n_slot].map(|n| self.bytes_of(n_layer, n, |of| self.slot_bytes(of)));
        whole.saturating_sub(kept)
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
}

#[cfg(test)]
#[path = "../../tests/unit/kv/layout.rs"]
mod tests;
