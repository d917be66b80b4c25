//! Attention over the arena. All query heads of a KV head read its keys in one pass. Slots are visited in slot order, in
//! chunks of `CHUNK` whose partial results are merged in order, so neither the number of threads nor whether a token came
//! alone or in a batch changes a bit of the result.
//!
//! Tokens of a batch that follow each other see the same rows but for the one slot that each of them took. So a few of them are
//! taken past a chunk together: its rows are widened once (`Kernels::widen`), and then one row before each token.
//!
//! A model may give each query head a logit of its own that joins the softmax and has no value (`head_sinks`): it is merged last,
//! so that what is counted of each entry is its share beside it, and what a query gives sums to less than 1.
//!
//! Where the policy counts attention, what each entry received is summed over the query heads of its KV head and over the
//! tokens of the batch (`AttendScratch::given`), again in one order whatever the threads, and handed to the cache.

use std::ops::Range;

use super::layout::{AttnLayer, Head, KvShape, LayerShape};
use super::policy::table::Received;
use super::store::KvCache;
use crate::kernels::kv_rows::RowType;
use crate::kernels::{Attend, CHUNK, Kernels, Partial, Rows, weights_len};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

/// What decides the size of the scratch.
#[derive(Clone, Copy, Debug)]
pub struct AttendShape {
    pub kv: KvShape,
    pub n_slot: usize,
    pub n_threads: usize,
    /// Query heads of a KV head, in layers without a window.
    pub n_q: usize,
    pub kernels: Kernels,
    /// Caps scores (0: it does not); their scale is in the queries.
    pub soft_cap: f32,
}

/// The buffers of one layer's attention.
pub struct AttendScratch {
    shape: AttendShape,
    threads: Vec<ThreadScratch>,
    /// Partial results of one token: `[n_head_kv][n_chunk][partial_len]`.
    split: Buf<f32>,
    /// Attention given by parts of a batch: `[PARTS][n_head_kv][n_slot + n_batch]`, the slots and then the batch's rows.
    given: Buf<f32>,
}

/// What one thread needs for a tile: a table of rows, a widened chunk, the partial result of one token with one chunk, and for each
/// token of the tile the running one. Where attention is counted, also the highest scores and the weights of all chunks.
struct ThreadScratch {
    table: Buf<u32>,
    wide: Buf<f32>,
    /// The size of the heads that `wide` was last used for.
    wide_dim: usize,
    partial: Buf<f32>,
    running: Buf<f32>,
    tops: Buf<f32>,    // [TILE][n_chunks][n_q]
    weights: Buf<f32>, // [TILE][n_chunks][n_q][CHUNK]
}

/// Parts of a batch that are counted apart, so that threads need not wait for each other and sums keep one order.
const PARTS: usize = 8;
/// Tokens that are taken past a chunk together, at most.
const TILE: usize = 8;

/// The same for the layers of one kind.
#[derive(Clone, Copy)]
struct LayerAttend {
    heads: LayerShape,
    /// Query heads of a KV head.
    n_q: usize,
    n_slot: usize,
    n_batch: usize,
    counts: bool,
    kernels: Kernels,
    soft_cap: f32,
}

impl AttendShape {
    fn of(&self, heads: LayerShape, counts: bool) -> LayerAttend {
        let AttendShape { kv, n_slot, kernels, soft_cap, .. } = *self;
        // All layers have the same query heads.
        let n_q = self.n_q * kv.each.n_head_kv / heads.n_head_kv;
        LayerAttend { heads, n_q, n_slot, n_batch: kv.n_batch, counts, kernels, soft_cap }
    }

    /// The most of a number in the layers of any kind.
    fn most(&self, number: impl Fn(&LayerAttend) -> usize) -> usize {
        self.kv.kinds().map(|heads| number(&self.of(heads, self.kv.keeps.received))).max().unwrap_or(0)
    }
}

impl LayerAttend {
    /// Floats of a partial result, laid out `[max][sum][acc]`: n_q, n_q, n_q * head_dim.
    fn partial_len(&self) -> usize {
        self.n_q * (2 + self.heads.head_dim)
    }

    /// At most: the first token may be one of its own.
    fn n_chunks(&self) -> usize {
        self.n_slot.div_ceil(CHUNK) + 1
    }

    /// Floats of a chunk's weights.
    fn weights_len(&self) -> usize {
        if self.counts { weights_len(self.n_q) } else { 0 }
    }

    /// Of a partial result and its weights.
    fn split_len(&self) -> usize {
        self.partial_len() + self.weights_len()
    }

    /// Of `tops` and `weights`.
    fn seen_len(&self) -> [usize; 2] {
        let chunks = TILE.min(self.n_batch) * self.n_chunks();
        [if self.counts { chunks * self.n_q } else { 0 }, chunks * self.weights_len()]
    }

    /// Floats of `given` for one part.
    fn given_len(&self) -> usize {
        if self.counts { self.heads.n_head_kv * (self.n_slot + self.n_batch) } else { 0 }
    }

    /// Tokens of a part. Where they are counted it decides the order of sums, so the batch at hand must not matter.
    fn part(&self, n_tok: usize) -> usize {
        if self.counts { self.n_batch.div_ceil(PARTS) } else { n_tok.div_ceil(PARTS) }
    }
}

impl AttendScratch {
    pub fn carve(arena: &mut Arena, shape: AttendShape) -> Self {
        let [tops, weights] = [0, 1].map(|i| shape.most(|of| of.seen_len()[i]));
        let (partial, n_q) = (shape.most(LayerAttend::partial_len), shape.most(|of| of.n_q));
        let thread = |_| ThreadScratch {
            table: arena.carve(shape.n_slot),
            wide: arena.carve(shape.kernels.wide_len(shape.kv.max_head_dim())),
            wide_dim: shape.kv.max_head_dim(),
            partial: arena.carve(partial),
            running: arena.carve(TILE * 2 * n_q),
            tops: arena.carve(tops),
            weights: arena.carve(weights),
        };
        AttendScratch {
            shape,
            threads: (0..shape.n_threads).map(thread).collect(),
            split: arena.carve(shape.most(|of| of.heads.n_head_kv * of.n_chunks() * of.split_len())),
            given: arena.carve(PARTS * shape.most(LayerAttend::given_len)),
        }
    }
}

impl AttendScratch {
    /// Lets other kernels attend, whose needs are the same.
    pub fn set_kernels(&mut self, kernels: Kernels) {
        self.shape.kernels = kernels;
    }

    /// Attends with the queries of one KV head to chunks whose rows are any bytes, such as `rows` holds, at most `n_chunks`:
    /// how many. What comes out is of no use; what it takes, is.
    pub fn rehearse(&mut self, kernels: Kernels, q: &[f32], rows: &[u8], n_chunks: usize) -> usize {
        let KvShape { k_type, v_type, each, keeps, .. } = self.shape.kv;
        let (shape, thread, head_dim) = (&self.shape.of(each, keeps.received), &mut self.threads[0], each.head_dim);
        let (k_type, v_type) = (k_type.row(), v_type.row());
        let n = n_chunks.min(rows.len() / (CHUNK * k_type.row_bytes(head_dim).max(v_type.row_bytes(head_dim))));
        let (q, soft_cap) = (&q[..shape.n_q * head_dim], shape.soft_cap);
        for chunk in 0..n {
            let rows_at = Rows::Dense { first: chunk * CHUNK };
            let (keys, values) = (rows, rows);
            let a = Attend { q, head_dim, keys, values, k_type, v_type, rows: rows_at, n_rows: CHUNK, wide: &[], soft_cap };
            let (partial, weights) = (&mut thread.partial[..shape.partial_len()], &mut thread.weights[..shape.weights_len()]);
            kernels.attend(&a, &mut as_partial(partial, weights, shape));
        }
        n
    }
}

fn as_partial<'a>(buf: &'a mut [f32], weights: &'a mut [f32], shape: &LayerAttend) -> Partial<'a> {
    let (max, rest) = buf.split_at_mut(shape.n_q);
    let (sum, acc) = rest.split_at_mut(shape.n_q);
    Partial { max, sum, acc, weights }
}

/// The attention of a layer whose tokens have been taken in.
pub(super) struct LayerAttention<'a> {
    pub cache: &'a KvCache,
    pub layer: AttnLayer,
    /// Whether what entries receive is counted.
    pub counts: bool,
    /// `[n_head]`, or empty: what joins the softmax of each query head without a value. Not the stream's first tokens.
    pub head_sinks: &'a [f32],
}

impl LayerAttention<'_> {
    fn shape_here(&self, shape: AttendShape) -> LayerAttend {
        shape.of(self.cache.shape().of(self.layer), self.counts)
    }

    /// With `n_rows` of the cache's rows.
    fn attend<'a>(&'a self, q: &'a [f32], rows: Rows<'a>, n_rows: usize, soft_cap: f32) -> Attend<'a> {
        let KvShape { k_type, v_type, .. } = *self.cache.shape();
        let head_dim = self.cache.shape().of(self.layer).head_dim;
        let (keys, values) = (self.cache.keys(self.layer), self.cache.values(self.layer));
        Attend { q, head_dim, keys, values, k_type: k_type.row(), v_type: v_type.row(), rows, n_rows, wide: &[], soft_cap }
    }

    /// With the first token of the stream, where it is a chunk of its own.
    fn attend_first<'a>(&'a self, q: &'a [f32], head: Head, soft_cap: f32) -> Option<Attend<'a>> {
        let (keys, values) = self.cache.sink_rows(self.layer)?;
        let (k_type, v_type) = (RowType::F16, RowType::F16);
        Some(Attend { keys, values, k_type, v_type, ..self.attend(q, Rows::Dense { first: head.0 }, 1, soft_cap) })
    }

    /// Adds the logits of a KV head's queries `q`, which are in the keys' basis, to what they found: a score like others, whose value
    /// is nought. The arena's scores lack what the centre taken off its keys would add to them, so these must too.
    fn merge_head_sinks(
        &self,
        shape: &LayerAttend,
        head: Head,
        q: &[f32],
        room: &mut [f32],
        running: &mut [f32],
        out: &mut [f32],
    ) {
        if self.head_sinks.is_empty() {
            return;
        }
        let room = &mut room[..shape.partial_len()];
        room.fill(0.0);
        let sink = as_partial(room, &mut [], shape);
        sink.sum.fill(1.0);
        let centre = self.cache.centre(self.layer, head);
        let logits = &self.head_sinks[head.0 * shape.n_q..][..shape.n_q];
        for ((max, logit), q) in sink.max.iter_mut().zip(logits).zip(q.chunks_exact(shape.heads.head_dim)) {
            *max = logit - q.iter().zip(centre).fold(0.0, |sum, (q, centre)| sum + q * centre);
        }
        shape.kernels.merge(running, out, &sink);
    }

    /// Slots of the first chunk, whose row is elsewhere.
    fn n_first(&self) -> usize {
        usize::from(self.cache.sink_rows(self.layer).is_some())
    }

    /// Chunks of `live` slots.
    fn n_chunks(&self, live: usize) -> usize {
        self.n_first() + (live - self.n_first()).div_ceil(CHUNK)
    }

    /// The slots of a chunk, where `live` are taken.
    fn slots(&self, chunk: usize, live: usize) -> Range<usize> {
        match (chunk, self.n_first()) {
            (0, 1) => 0..1,
            (chunk, n_first) => {
                let first = n_first + (chunk - n_first) * CHUNK;
                first..live.min(first + CHUNK)
            }
        }
    }

    /// `out[t] = softmax(q[t] · keys) · values` for `tokens` of a batch that is placed but not yet committed, to its last one; tasks are
    /// parts of them. `q`, `out`: `[tokens][n_head * head_dim]`; `q` is turned into the keys' basis.
    pub fn attend_batch(
        &self,
        pool: &mut Pool,
        scratch: &mut AttendScratch,
        q: &mut [f32],
        out: &mut [f32],
        tokens: Range<usize>,
    ) {
        let AttendScratch { shape, threads, given, .. } = scratch;
        let (cache, shape, n_tok) = (self.cache, &self.shape_here(*shape), tokens.len());
        let (head_dim, group_dim) = (shape.heads.head_dim, shape.n_q * shape.heads.head_dim);
        if cache.shape().k_type.is_turned() {
            pool.for_chunks(q, group_dim, |_, q| cache.shape().k_type.turn(q, head_dim));
        }
        let (q, part, given_len) = (&*q, shape.part(n_tok), shape.given_len());
        let row_dim = q.len() / n_tok;
        let given = &mut given[..n_tok.div_ceil(part) * given_len];
        pool.for_chunks2_with(threads, (out, part * row_dim), (given, given_len), |scratch, task, out, given| {
            given.fill(0.0);
            for (i, out) in out.chunks_mut(TILE * row_dim).enumerate() {
                let first = task * part + i * TILE;
                let n = out.len() / row_dim;
                let (q, first) = (&q[first * row_dim..][..n * row_dim], tokens.start + first);
                for head in shape.heads.heads() {
                    let tile = TokenTile { layer: self, shape, tokens: first..first + n, head, row_dim };
                    tile.attend(scratch, q, out);
                    if shape.counts {
                        tile.count(scratch, tokens.end, &mut given[head.0 * (shape.n_slot + shape.n_batch)..]);
                    }
                    for (t, out) in out.chunks_exact_mut(row_dim).enumerate() {
                        let out = &mut out[head.0 * group_dim..][..group_dim];
                        normalise(&scratch.running[t * 2 * shape.n_q..], out, shape.n_q);
                        cache.shape().v_type.turn_back(out, head_dim);
                    }
                }
            }
        });
        if shape.counts {
            let (sum, parts) = given.split_at_mut(given_len);
            for part in parts.chunks_exact(given_len) {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
    }

    /// The same for one token that is already committed; tasks are (KV head, chunk), so that few heads keep many threads busy.
    pub fn attend_one(&self, pool: &mut Pool, scratch: &mut AttendScratch, q: &mut [f32], out: &mut [f32]) {
        let AttendScratch { shape, threads, split, given } = scratch;
        let (cache, layer, shape) = (self.cache, self.layer, &self.shape_here(*shape));
        let LayerShape { n_head_kv, head_dim } = shape.heads;
        cache.shape().k_type.turn(q, head_dim);
        let (q, group_dim) = (&*q, shape.n_q * head_dim);
        let (live, len) = (cache.live_at(layer, 0), shape.split_len());
        let n_chunks = self.n_chunks(live);
        pool.for_chunks(&mut split[..n_head_kv * n_chunks * len], len, |task, partial| {
            let (head, chunk) = (task / n_chunks, task % n_chunks);
            let (q, slots) = (&q[head * group_dim..][..group_dim], self.slots(chunk, live));
            let rows = Rows::Dense { first: cache.first_row(layer, Head(head)) + slots.start };
            let (partial, weights) = partial.split_at_mut(shape.partial_len());
            let first = if chunk == 0 { self.attend_first(q, Head(head), shape.soft_cap) } else { None };
            let a = first.unwrap_or_else(|| self.attend(q, rows, slots.len(), shape.soft_cap));
            shape.kernels.attend(&a, &mut as_partial(partial, weights, shape));
        });
        let ThreadScratch { running, partial: room, .. } = &mut threads[0];
        let running = &mut running[..2 * shape.n_q];
        for (head, out) in out.chunks_exact_mut(group_dim).enumerate() {
            running.fill(f32::NEG_INFINITY);
            let partials = &mut split[head * n_chunks * len..][..n_chunks * len];
            for partial in partials.chunks_exact_mut(len) {
                let (partial, _) = partial.split_at_mut(shape.partial_len());
                shape.kernels.merge(running, out, &as_partial(partial, &mut [], shape));
            }
            merge_recalled(cache.recalled(layer, 0, Head(head)), shape, room, running, out);
            self.merge_head_sinks(shape, Head(head), &q[head * group_dim..][..group_dim], room, running, out);
            if shape.counts {
                let given = &mut given[head * (shape.n_slot + shape.n_batch)..];
                for (chunk, partial) in partials.chunks_exact(len).enumerate() {
                    let (partial, weights) = partial.split_at(shape.partial_len());
                    shape.kernels.received(&partial[..shape.n_q], weights, running, &mut given[self.slots(chunk, live)]);
                }
            }
            normalise(running, out, shape.n_q);
            cache.shape().v_type.turn_back(out, head_dim);
        }
    }
}

/// A few tokens of a batch, in one KV head.
struct TokenTile<'a> {
    layer: &'a LayerAttention<'a>,
    shape: &'a LayerAttend,
    tokens: Range<usize>,
    head: Head,
    row_dim: usize,
}

impl TokenTile<'_> {
    /// Leaves what is not yet divided by the sums in `out`, and the sums in `running`. `q`, `out`: the rows of the tokens.
    fn attend(&self, scratch: &mut ThreadScratch, q: &[f32], out: &mut [f32]) {
        let TokenTile { shape, head, row_dim, layer: &LayerAttention { cache, layer, .. }, .. } = *self;
        let ThreadScratch { table, wide, wide_dim, partial, running, tops, weights } = scratch;
        let partial = &mut partial[..shape.partial_len()];
        let wide = &mut wide[..shape.kernels.wide_len(shape.heads.head_dim)];
        // Rows that are not there are multiplied with weights of nought, and what heads of another size left is no number everywhere.
        if *wide_dim != shape.heads.head_dim {
            wide.fill(0.0);
            *wide_dim = shape.heads.head_dim;
        }
        running.fill(f32::NEG_INFINITY);
        let (n_q, group_dim, mut widened) = (shape.n_q, shape.n_q * shape.heads.head_dim, self.layer.n_first());
        cache.rows_at(layer, head, self.tokens.start, table);
        for chunk in 0..self.layer.n_chunks(cache.live_at(layer, self.tokens.end - 1)) {
            for (i, (t, out)) in self.tokens.clone().zip(out.chunks_exact_mut(row_dim)).enumerate() {
                let live = cache.live_at(layer, t);
                let ((slot, row), slots) = (cache.taken_at(layer, head, t), self.layer.slots(chunk, live));
                if slots.is_empty() {
                    continue;
                }
                if slots.contains(&slot) {
                    table[slot] = row;
                }
                let (own, q) = (head.0 * group_dim..(head.0 + 1) * group_dim, &q[i * row_dim..][..row_dim]);
                let first = if chunk == 0 { self.layer.attend_first(&q[own.clone()], head, shape.soft_cap) } else { None };
                let a = first.unwrap_or_else(|| {
                    let mut a =
                        self.layer.attend(&q[own.clone()], Rows::Table(&table[slots.clone()]), slots.len(), shape.soft_cap);
                    if widened == chunk {
                        shape.kernels.widen(&a, 0..slots.len(), wide);
                        widened += 1;
                    } else if slots.contains(&slot) {
                        shape.kernels.widen(&a, slot - slots.start..slot - slots.start + 1, wide);
                    }
                    a.wide = wide;
                    a
                });
                let seen = i * shape.n_chunks() + chunk;
                let weights = &mut weights[seen * shape.weights_len()..][..shape.weights_len()];
                let mut partial = as_partial(partial, weights, shape);
                shape.kernels.attend(&a, &mut partial);
                if shape.counts {
                    tops[seen * n_q..][..n_q].copy_from_slice(partial.max);
                }
                shape.kernels.merge(&mut running[i * 2 * n_q..][..2 * n_q], &mut out[own], &partial);
            }
        }
        for (i, (t, out)) in self.tokens.clone().zip(out.chunks_exact_mut(row_dim)).enumerate() {
            let (own, running) = (head.0 * group_dim..(head.0 + 1) * group_dim, &mut running[i * 2 * n_q..][..2 * n_q]);
            let (q, out) = (&q[i * row_dim..][own.clone()], &mut out[own]);
            merge_recalled(cache.recalled(layer, t, head), shape, partial, running, out);
            self.layer.merge_head_sinks(shape, head, q, partial, running, out);
        }
    }

    /// Adds what the tokens gave to each entry, in the order of the tokens.
    fn count(&self, scratch: &mut ThreadScratch, n_tok: usize, given: &mut [f32]) {
        let TokenTile { shape, head, layer: &LayerAttention { cache, layer, .. }, .. } = *self;
        let ThreadScratch { running, tops, weights, .. } = scratch;
        let (n_q, only_last) = (shape.n_q, cache.policy().row().received() == Some(Received::Latest));
        let (slots_given, batch_given) = given.split_at_mut(shape.n_slot);
        for (i, t) in self.tokens.clone().enumerate() {
            if only_last && t + 1 != n_tok {
                continue;
            }
            let live = cache.live_at(layer, t);
            for chunk in 0..self.layer.n_chunks(live) {
                let slots = self.layer.slots(chunk, live);
                let seen = i * shape.n_chunks() + chunk;
                let weights = &weights[seen * shape.weights_len()..][..shape.weights_len()];
                let mut total = [0f32; CHUNK];
                let total = &mut total[..slots.len()];
                shape.kernels.received(&tops[seen * n_q..][..n_q], weights, &running[i * 2 * n_q..][..2 * n_q], total);
                // A slot stands for the latest token of the batch that took it; it waits behind the slots.
                for t in (0..=t).rev() {
                    let (slot, _) = cache.taken_at(layer, head, t);
                    if slots.contains(&slot) {
                        batch_given[t] += std::mem::take(&mut total[slot - slots.start]);
                    }
                }
                shape.kernels.add(&mut slots_given[slots], total);
            }
        }
    }
}

impl AttendScratch {
    /// What the tokens of the latest batch gave a KV head: to each slot, and behind the slots to each token of the batch.
    pub(super) fn given(&self, head: Head) -> &[f32] {
        let len = self.shape.n_slot + self.shape.kv.n_batch;
        &self.given[head.0 * len..][..len]
    }
}

/// Adds what a token found in its past to what it found in the arena.
fn merge_recalled(found: Option<&[f32]>, shape: &LayerAttend, room: &mut [f32], running: &mut [f32], out: &mut [f32]) {
    if let Some(found) = found {
        let room = &mut room[..found.len()];
        room.copy_from_slice(found);
        shape.kernels.merge(running, out, &as_partial(room, &mut [], shape));
    }
}

fn normalise(running: &[f32], out: &mut [f32], n_q: usize) {
    let head_dim = out.len() / n_q;
    for (i, acc) in out.chunks_exact_mut(head_dim).enumerate() {
        let inverse = 1.0 / running[n_q + i];
        acc.iter_mut().for_each(|a| *a *= inverse);
    }
}
