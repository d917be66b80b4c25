//! What a stream remembers of recurrent layers beside keys and values: a state of fixed size, whatever the stream's length. No policy touches
//! it, since it knows neither positions nor distances: renumbering and eviction leave it as it is. And it cannot forget a
//! token, so that a stream of such a model cannot be taken back.

use crate::mem::arena::{Arena, Buf};

use super::config::{Config, Recurrence};

/// `[n_recurrent_layer][layer_len]`: the rows that entered the layer's convolution last, then what a delta net or Mamba-2 remembers.
pub struct RecurrentState {
    all: Buf<f32>,
    layer_len: usize,
    why_no_rewind: &'static str,
}

impl RecurrentState {
    /// `None` for a model without recurrent layers.
    pub fn carve(arena: &mut Arena, c: &Config) -> Option<RecurrentState> {
        let (part, why_no_rewind) = match c.recurrent.as_ref()?.kind {
            Recurrence::ShortConv { .. } => ("convolution state", "convolutions remember only the latest tokens"),
            Recurrence::DeltaNet(_) | Recurrence::Mamba(_) => ("recurrent state", "recurrent layers cannot forget a token"),
        };
        arena.begin_part(part);
        let layer_len = Self::layer_len(c);
        Some(RecurrentState { all: arena.carve(c.n_recurrent_layer() * layer_len), layer_len, why_no_rewind })
    }

    /// Numbers of one layer.
    fn layer_len(c: &Config) -> usize {
        match c.recurrent.as_ref().map(|recurrent| recurrent.kind) {
            None => 0,
            Some(Recurrence::ShortConv { n_tap }) => (n_tap - 1) * c.n_embd,
            Some(Recurrence::DeltaNet(shape)) => (shape.n_tap - 1) * shape.conv_dim() + shape.v_dim() * shape.head_dim,
            Some(Recurrence::Mamba(shape)) => (shape.n_tap - 1) * shape.conv_dim() + shape.inner_dim * shape.n_state,
        }
    }

    /// Forgets the stream.
    pub fn clear(&mut self) {
        self.all.fill(0.0);
    }

    /// Of the `nth` of these layers.
    pub fn layer_mut(&mut self, nth: usize) -> &mut [f32] {
        &mut self.all[nth * self.layer_len..][..self.layer_len]
    }

    pub fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.all
    }

    pub fn why_no_rewind(&self) -> &'static str {
        self.why_no_rewind
    }
}
