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
    let n_layer = if is_rounded { n_unlimited(shape.window, shape.n_layer) } else { 0 };
    n_layer * shape.n_head_kv * RowType::F16.row_bytes(shape.head_dim)
}

/// How many of the first `n_layer` layers are no rings.
fn n_unlimited(window: Option<Window>, n_layer: usize) -> usize {
    n_layer - window.map_or(0, |window| window.n_local(n_layer))
}

/// Of one head, to be written.
pub struct SinkRow<'a> {
    key: &'a mut [u8],
    value: &'a mut [u8],
}

impl SinkRows {
    pub fn carve(arena: &mut Arena, shape: &KvShape) -> Self {
        let row = RowType::F16.row_bytes(shape.head_dim);
        let (window, layer, is_there) = (shape.window, shape.n_head_kv * row, false);
        SinkRows { keys: arena.carve(len(shape)), values: arena.carve(len(shape)), window, row, layer, is_there }
    }

    /// For a new stream, whose rule lets its first token go or not.
    pub fn clear(&mut self, stays: bool) {
        self.is_there = stays && !self.keys.is_empty();
    }

    /// It may have left the first slots.
    pub fn give_up(&mut self) {
        self.is_there = false;
    }

    /// Where the rows of a layer are, if they are read.
    fn of_layer(&self, layer: AttnLayer) -> Option<Range<usize>> {
        let is_ring = self.window.is_some_and(|window| window.limits(layer));
        let at = n_unlimited(self.window, layer.0) * self.layer;
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
mod tests {
    use super::*;
    use crate::kv::policy::Rule;
    use crate::kv::testkit::Tiny;
    use crate::kv::{KvCache, Policy};

    /// Eight slots or so for 64 positions; the oldest goes.
    fn tiny(k_type: KvType, v_type: KvType, sinks: u32) -> Tiny {
        Tiny::with(8, |shape, params| {
            (shape.head_dim, shape.n_ctx, shape.k_type, shape.v_type) = (64, 64, k_type, v_type);
            (params.policy, params.sinks) = (Policy::Window, sinks);
        })
    }

    fn first(cache: &KvCache) -> Option<(&[u8], &[u8])> {
        cache.sink_rows(AttnLayer(0))
    }

    #[test]
    fn it_is_kept_exactly_for_as_long_as_it_is_protected() {
        let key: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        let close = |got: &[u8], ty: KvType, want: &[f32]| {
            let mut back = [0f32; 64];
            RowType::F16.load(got, &mut back);
            ty.turn_back(&mut back, 64);
            back.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-3)
        };
        for (k_type, v_type, sinks) in
            [(KvType::Q5H, KvType::Q4H, 1), (KvType::F16, KvType::Q4H, 1), (KvType::Q5H, KvType::Q4H, 0)]
        {
            let mut tiny = tiny(k_type, v_type, sinks);
            for t in 0..40 {
                let key: Vec<f32> = key.iter().map(|k| k * (1 + t) as f32).collect();
                tiny.feed(&key, &key);
            }
            assert!(tiny.cache.n_evicted() > 0);
            assert_eq!(first(&tiny.cache).is_some(), sinks > 0, "{k_type:?} {v_type:?} {sinks}");
            if let Some((keys, values)) = first(&tiny.cache) {
                assert!(close(keys, k_type, &key) && close(values, v_type, &key), "{k_type:?} {v_type:?}");
                // By a rule that protects none it may have gone.
                let rule = tiny.cache.rule;
                tiny.cache.compress(8, 0, rule, &mut tiny.scratch[0]);
                assert!(first(&tiny.cache).is_some());
                tiny.cache.compress(4, 0, Rule { protect: Default::default(), ..rule }, &mut tiny.scratch[0]);
                assert!(first(&tiny.cache).is_none());
                tiny.cache.clear();
                assert!(first(&tiny.cache).is_some());
            }
        }
        let exact = tiny(KvType::F16, KvType::Q8_0, 1).cache;
        assert!(first(&exact).is_none() && exact.sink_rows.keys.is_empty());
    }

    #[test]
    fn rings_have_none_and_a_policy_that_evicts_nothing_keeps_it_without_a_sink() {
        let shape = KvShape { n_layer: 6, n_head_kv: 2, ..*tiny(KvType::Q5H, KvType::Q4H, 1).cache.shape() };
        let layer = 2 * 2 * RowType::F16.row_bytes(shape.head_dim);
        for (global_every, n_unlimited) in [(0, 0), (1, 6), (3, 2), (6, 1)] {
            let shape = KvShape { window: Some(Window { n_tok: 16, global_every }), ..shape };
            let mut rows = Arena::fill(|arena| SinkRows::carve(arena, &shape)).unwrap();
            assert_eq!(rows.keys.len() + rows.values.len(), n_unlimited * layer);
            rows.clear(true);
            for layer in shape.layers() {
                let is_there = !shape.is_ring(layer);
                assert_eq!(rows.rows(layer).is_some(), is_there);
                assert_eq!(rows.rows_mut(layer).take(2).flatten().count(), if is_there { 2 } else { 0 });
            }
        }
        let off = Tiny::with(8, |of, params| (*of, params.policy) = (shape, Policy::Off));
        assert!(off.cache.sink_rows(AttnLayer(5)).is_some());
    }
}
