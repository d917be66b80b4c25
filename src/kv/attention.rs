//! Attention over the arena. All query heads of a KV head read its keys in one pass. Slots are visited in slot order, in
//! chunks of `CHUNK` whose partial results are merged in order, so neither the number of threads nor whether a token came
//! alone or in a batch changes a bit of the result.
//!
//! Where the policy counts attention, what each entry received is summed over the query heads of its KV head and over the
//! tokens of the batch (`AttendRoom::given`), again in one order whatever the threads, and handed to the cache.

use super::cache::KvCache;
use super::policy::Policy;
use crate::kernels::attend::merge_partial;
use crate::kernels::portable::exp;
use crate::kernels::{Attend, CHUNK, Kernels, Partial, Rows, weights_len};
use crate::mem::arena::{Arena, Buf, region_bytes};
use crate::mem::pool::Pool;

/// What decides the size of the room.
#[derive(Clone, Copy, Debug)]
pub struct AttendShape {
    pub n_slot: usize,
    pub n_batch: usize,
    pub n_threads: usize,
    pub n_head_kv: usize,
    /// Query heads of a KV head.
    pub n_q: usize,
    pub head_dim: usize,
    /// Whether attention is counted.
    pub counts: bool,
}

/// Room for one layer's attention.
pub struct AttendRoom {
    shape: AttendShape,
    threads: Vec<ThreadRoom>,
    /// Partial results of one token: `[n_head_kv][n_chunk][partial_len]`.
    split: Buf<f32>,
    /// Attention given by parts of a batch: `[PARTS][n_head_kv][n_slot + n_batch]`, the slots and then the batch's rows.
    given: Buf<f32>,
}

/// What one thread needs: a table of rows, and the partial result of a chunk (of all, if their weights are asked for)
/// beside the running one.
struct ThreadRoom {
    table: Buf<u32>,
    partial: Buf<f32>,
    running: Buf<f32>,
}

/// Parts of a batch that are counted apart, so that threads need not wait for each other and sums keep one order.
const PARTS: usize = 8;

impl AttendShape {
    /// Floats of a partial result, laid out `[max][sum][acc]`: n_q, n_q, n_q * head_dim; then the weights, if asked for.
    fn partial_len(&self) -> usize {
        let weights = if self.counts { weights_len(self.n_q) } else { 0 };
        self.n_q * (2 + self.head_dim) + weights
    }

    fn n_chunks(&self) -> usize {
        self.n_slot.div_ceil(CHUNK)
    }

    fn partials_len(&self) -> usize {
        self.partial_len() * if self.counts { self.n_chunks() } else { 1 }
    }

    fn split_len(&self) -> usize {
        self.n_head_kv * self.n_chunks() * self.partial_len()
    }

    /// Floats of `given` for one part.
    fn given_len(&self) -> usize {
        if self.counts { self.n_head_kv * (self.n_slot + self.n_batch) } else { 0 }
    }

    /// Tokens of a part.
    fn part(&self) -> usize {
        if self.counts { self.n_batch.div_ceil(PARTS) } else { 1 }
    }

    pub fn bytes(&self) -> usize {
        let thread =
            region_bytes::<u32>(self.n_slot) + region_bytes::<f32>(self.partials_len()) + region_bytes::<f32>(2 * self.n_q);
        self.n_threads * thread + region_bytes::<f32>(self.split_len()) + region_bytes::<f32>(PARTS * self.given_len())
    }
}

impl AttendRoom {
    pub fn carve(arena: &mut Arena, shape: AttendShape) -> Self {
        let thread = |_| ThreadRoom {
            table: arena.carve(shape.n_slot),
            partial: arena.carve(shape.partials_len()),
            running: arena.carve(2 * shape.n_q),
        };
        AttendRoom {
            shape,
            threads: (0..shape.n_threads).map(thread).collect(),
            split: arena.carve(shape.split_len()),
            given: arena.carve(PARTS * shape.given_len()),
        }
    }
}

fn as_partial<'a>(buf: &'a mut [f32], shape: &AttendShape) -> Partial<'a> {
    let (max, rest) = buf.split_at_mut(shape.n_q);
    let (sum, rest) = rest.split_at_mut(shape.n_q);
    let (acc, weights) = rest.split_at_mut(shape.n_q * shape.head_dim);
    Partial { max, sum, acc, weights }
}

/// A layer's attention: the scale of scores is in the queries, `soft_cap` caps them (0: it does not).
pub struct Layer<'a> {
    pub cache: &'a KvCache,
    pub kernels: Kernels,
    pub layer: usize,
    pub soft_cap: f32,
}

impl Layer<'_> {
    /// Of this layer: a ring's attention is not counted.
    fn shape_here(&self, shape: AttendShape) -> AttendShape {
        AttendShape { counts: shape.counts && self.cache.counts_attention(self.layer), ..shape }
    }

    fn chunk(&self, q: &[f32], rows: Rows, n_rows: usize, out: &mut Partial) {
        let (cache, soft_cap) = (self.cache, self.soft_cap);
        let (k_type, v_type) = (cache.shape().k_type.row(), cache.shape().v_type.row());
        let (head_dim, keys, values) = (cache.shape().head_dim, cache.keys(), cache.values());
        self.kernels.attend(&Attend { q, head_dim, keys, values, k_type, v_type, rows, n_rows, soft_cap }, out);
    }

    /// `out[t] = softmax(q[t] · keys) · values` for a batch that is placed but not yet committed; tasks are parts of the batch,
    /// single tokens where nothing is counted. `q`, `out`: `[n_tok][n_head * head_dim]`; `q` is turned into the keys' basis.
    pub fn attend_batch(&self, pool: &mut Pool, room: &mut AttendRoom, q: &mut [f32], out: &mut [f32], n_tok: usize) {
        let AttendRoom { shape, threads, given, .. } = room;
        let (cache, layer, shape) = (self.cache, self.layer, &self.shape_here(*shape));
        let group_dim = shape.n_q * shape.head_dim;
        if cache.shape().k_type.is_turned() {
            pool.for_chunks(q, group_dim, |_, q| cache.shape().k_type.turn(q, shape.head_dim));
        }
        let (q, part, given_len) = (&*q, shape.part(), shape.given_len());
        let row_dim = q.len() / n_tok;
        let given = &mut given[..n_tok.div_ceil(part) * given_len];
        pool.for_chunks2_with(threads, (out, part * row_dim), (given, given_len), |room, task, out, given| {
            let ThreadRoom { table, partial, running } = room;
            given.fill(0.0);
            for (i, out) in out.chunks_exact_mut(group_dim).enumerate() {
                let (t, head) = (task * part + i / shape.n_head_kv, i % shape.n_head_kv);
                let live = cache.rows_at(layer, head, t, table);
                let q = &q[t * row_dim + head * group_dim..][..group_dim];
                running[..shape.n_q].fill(f32::NEG_INFINITY);
                let len = shape.partial_len();
                for first in (0..live).step_by(CHUNK) {
                    let n_rows = CHUNK.min(live - first);
                    let at = if shape.counts { first / CHUNK * len } else { 0 };
                    let partial = &mut partial[at..at + len];
                    self.chunk(q, Rows::Table(&table[first..first + n_rows]), n_rows, &mut as_partial(partial, shape));
                    merge(running, out, partial, shape.n_q);
                }
                if shape.counts && (cache.policy() != Policy::Tova || t + 1 == n_tok) {
                    let (batch, given) = (cache.batch_row(head), &mut given[head * (shape.n_slot + shape.n_batch)..]);
                    received(shape, &mut partial[..live.div_ceil(CHUNK) * len], running, live, |slot, sum| {
                        let row = (table[slot] as usize).checked_sub(batch).map_or(slot, |waiting| shape.n_slot + waiting);
                        given[row] += sum;
                    });
                }
                normalise(running, out, shape.n_q);
                cache.shape().v_type.turn_back(out, shape.head_dim);
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
    pub fn attend_one(&self, pool: &mut Pool, room: &mut AttendRoom, q: &mut [f32], out: &mut [f32]) {
        let AttendRoom { shape, threads, split, given } = room;
        let (cache, layer, shape) = (self.cache, self.layer, &self.shape_here(*shape));
        cache.shape().k_type.turn(q, shape.head_dim);
        let (q, group_dim) = (&*q, shape.n_q * shape.head_dim);
        let (live, len) = (cache.live_at(layer, 0), shape.partial_len());
        let n_chunks = live.div_ceil(CHUNK);
        pool.for_chunks(&mut split[..shape.n_head_kv * n_chunks * len], len, |task, partial| {
            let (head, chunk) = (task / n_chunks, task % n_chunks);
            let rows = Rows::Dense { first: cache.first_row(layer, head) + chunk * CHUNK };
            let n_rows = CHUNK.min(live - chunk * CHUNK);
            self.chunk(&q[head * group_dim..][..group_dim], rows, n_rows, &mut as_partial(partial, shape));
        });
        let running = &mut threads[0].running;
        for (head, out) in out.chunks_exact_mut(group_dim).enumerate() {
            running[..shape.n_q].fill(f32::NEG_INFINITY);
            let partials = &mut split[head * n_chunks * len..][..n_chunks * len];
            for partial in partials.chunks_exact(len) {
                merge(running, out, partial, shape.n_q);
            }
            if shape.counts {
                let given = &mut given[head * (shape.n_slot + shape.n_batch)..];
                received(shape, partials, running, live, |slot, sum| given[slot] = sum);
            }
            normalise(running, out, shape.n_q);
            cache.shape().v_type.turn_back(out, shape.head_dim);
        }
    }
}

impl AttendRoom {
    /// What the tokens of the latest batch gave a KV head: to each slot, and behind the slots to each token of the batch.
    pub fn given(&self, head: usize) -> &[f32] {
        let len = self.shape.n_slot + self.shape.n_batch;
        &self.given[head * len..][..len]
    }
}

/// Tells, for each of `live` slots, the attention it received from one token, over the query heads together: of the chunks'
/// partial results the weights, brought to the highest score and the sum of all chunks.
fn received(shape: &AttendShape, partials: &mut [f32], running: &[f32], live: usize, mut tell: impl FnMut(usize, f32)) {
    let n_q = shape.n_q;
    let (max, sum) = running.split_at(n_q);
    for (chunk, partial) in partials.chunks_exact_mut(shape.partial_len()).enumerate() {
        let partial = as_partial(partial, shape);
        for n in 0..n_q {
            partial.max[n] = exp(partial.max[n] - max[n]) / sum[n];
        }
        let mut total = [0f32; CHUNK];
        for (weights, factor) in partial.weights.as_chunks::<CHUNK>().0.iter().zip(&*partial.max) {
            total.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight * factor);
        }
        for (j, total) in total.into_iter().enumerate().take(live - chunk * CHUNK) {
            tell(chunk * CHUNK + j, total);
        }
    }
}

fn merge(running: &mut [f32], out: &mut [f32], partial: &[f32], n_q: usize) {
    let head_dim = out.len() / n_q;
    let (max, sum) = running.split_at_mut(n_q);
    for (i, acc) in out.chunks_exact_mut(head_dim).enumerate() {
        let chunk_acc = &partial[2 * n_q + i * head_dim..][..head_dim];
        merge_partial((&mut max[i], &mut sum[i], acc), (partial[i], partial[n_q + i], chunk_acc));
    }
}

fn normalise(running: &[f32], out: &mut [f32], n_q: usize) {
    let head_dim = out.len() / n_q;
    for (i, acc) in out.chunks_exact_mut(head_dim).enumerate() {
        let inverse = 1.0 / running[n_q + i];
        acc.iter_mut().for_each(|a| *a *= inverse);
    }
}
