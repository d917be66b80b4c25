//! The first token of a stream, kept in f16 beside its slot. Heads that look for nothing look at it (the attention sink of Xiao et al. 2023,
//! arXiv 2309.17453), its key is like no other, and so what a few bits leave out of it is felt in every token that follows. Attention reads it
//! here and all other entries from the slots. That it stays in the first slot of each head is by protection: where the stream's rule protects no
//! sinks, where a layer is a ring, and once a rule without protection compressed, it is an entry as all are.

use std::ops::Range;

use crate::kernels::kv_rows::RowType;
use crate::kv::layout::{AttnLayer, Head, KvShape, Window};
use crate::kv::types::KvType;
use crate::mem::arena::{Arena, Buf};

pub struct SinkRows {
    /// `[layers that are no rings][n_head_kv][head_dim]` in f16, in the basis of their types, the keys less what is taken off keys.
    keys: Buf<u8>,
    values: Buf<u8>,
    window: Option<Window>,
    /// Bytes of a row, and of the rows of a layer.
    row: usize,
    layer: usize,
    /// Whether it is in the first slots still, where there is no ring.
    is_there: bool,
}

/// Bytes of `keys` and of `values`; none where nothing is rounded to few bits.
fn len(shape: &KvShape) -> usize {
    let is_rounded = shape.k_type.is_turned() || shape.v_type.is_turned();
    let n_layer = if is_rounded { shape.n_unlimited(shape.n_layer) } else { 0 };
    n_layer * shape.each.n_head_kv * RowType::F16.row_bytes(shape.each.head_dim)
}

/// Of one head, to be written.
pub struct SinkRow<'a> {
    key: &'a mut [u8],
    value: &'a mut [u8],
}

impl SinkRows {
    pub fn carve(arena: &mut Arena, shape: &KvShape) -> Self {
        let row = RowType::F16.row_bytes(shape.each.head_dim);
        let (window, layer, is_there) = (shape.window, shape.each.n_head_kv * row, false);
        SinkRows { keys: arena.carve(len(shape)), values: arena.carve(len(shape)), window, row, layer, is_there }
    }

    /// For a new stream, whose rule lets its first token go or not.
    pub fn clear(&mut self, stays: bool) {
        self.is_there = self.may_be_there(stays);
    }

    /// It may have left the first slots.
    pub fn give_up(&mut self) {
        self.is_there = false;
    }

    /// Whether a stream's rows are here, and whether they may be in one whose rule lets its first token go or not.
    pub fn is_there(&self) -> bool {
        self.is_there
    }
    pub fn may_be_there(&self, stays: bool) -> bool {
        stays && !self.keys.is_empty()
    }

    /// Goes over the rows, of a stream that has them here.
    pub fn visit<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        if self.is_there {
            see(&mut self.keys)?;
            see(&mut self.values)?;
        }
        Ok(())
    }

    /// Where the rows of a layer are, if they are read.
    fn of_layer(&self, layer: AttnLayer) -> Option<Range<usize>> {
        let is_ring = self.window.is_some_and(|window| window.limits(layer));
        let at = self.window.map_or(layer.0, |window| window.n_global(layer.0)) * self.layer;
        (self.is_there && !is_ring).then(|| at..at + self.layer)
    }

    /// Keys and values of a layer, a row for each head; `None` where its first slots are read as all are.
    pub fn rows(&self, layer: AttnLayer) -> Option<(&[u8], &[u8])> {
        self.of_layer(layer).map(|at| (&self.keys[at.clone()], &self.values[at]))
    }

    /// The heads of a layer, one after the other.
    pub fn rows_mut(&mut self, layer: AttnLayer) -> impl Iterator<Item = Option<SinkRow<'_>>> {
        let (at, row) = (self.of_layer(layer).unwrap_or(0..0), self.row);
        let [keys, values] = [&mut self.keys, &mut self.values].map(|rows| rows[at.clone()].chunks_exact_mut(row));
        let rows = keys.zip(values).map(|(key, value)| Some(SinkRow { key, value }));
        rows.chain(std::iter::repeat_with(|| None))
    }

    /// Subtracts what keys have in common from the key of a head.
    pub fn subtract(&mut self, layer: AttnLayer, head: Head, centre: &[f32], room: &mut [f32]) {
        if let Some(row) = self.rows_mut(layer).nth(head.0).flatten() {
            RowType::F16.load(row.key, room);
            room.iter_mut().zip(centre).for_each(|(key, centre)| *key -= centre);
            RowType::F16.store(room, row.key);
        }
    }
}

impl SinkRow<'_> {
    /// A key and a value as they are.
    pub fn store(&mut self, (k_type, key): (KvType, &[f32]), (v_type, value): (KvType, &[f32])) {
        k_type.store_f16(key, self.key);
        v_type.store_f16(value, self.value);
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/store/sink_row.rs"]
mod tests;
