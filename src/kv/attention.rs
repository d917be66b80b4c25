//! Attention over the arena. All query heads of a KV head read its keys in one pass. Slots are visited in slot order, in
//! chunks of `CHUNK` whose partial results are merged in order, so neither the number of threads nor whether a token came
//! alone or in a batch changes a bit of the result.

use super::cache::KvCache;
use crate::kernels::portable::merge_partial;
use crate::kernels::{Attend, CHUNK, Kernels, Partial, Rows};
use crate::mem::arena::{Arena, Buf, region_bytes};
use crate::mem::pool::Pool;

/// What one thread needs: a table of rows, and a chunk's partial result beside the running one.
pub struct AttendScratch {
    table: Buf<u32>,
    partial: Buf<f32>,
    running: Buf<f32>,
}

impl AttendScratch {
    pub fn bytes(n_slot: usize, n_q: usize, head_dim: usize) -> usize {
        region_bytes::<u32>(n_slot) + region_bytes::<f32>(partial_len(n_q, head_dim)) + region_bytes::<f32>(2 * n_q)
    }

    pub fn carve(arena: &mut Arena, n_slot: usize, n_q: usize, head_dim: usize) -> Self {
        AttendScratch {
            table: arena.carve(n_slot),
            partial: arena.carve(partial_len(n_q, head_dim)),
            running: arena.carve(2 * n_q),
        }
    }
}

/// Floats of a partial result, laid out `[max][sum][acc]`: n_q, n_q, n_q * head_dim.
fn partial_len(n_q: usize, head_dim: usize) -> usize {
    n_q * (2 + head_dim)
}

/// Floats for the partial results of all chunks of all KV heads: one token's work, split by chunks.
pub fn split_len(n_slot: usize, n_head_kv: usize, n_q: usize, head_dim: usize) -> usize {
    n_head_kv * n_slot.div_ceil(CHUNK) * partial_len(n_q, head_dim)
}

fn as_partial(buf: &mut [f32], n_q: usize) -> Partial<'_> {
    let (max, rest) = buf.split_at_mut(n_q);
    let (sum, acc) = rest.split_at_mut(n_q);
    Partial { max, sum, acc }
}

/// `out[t] = softmax(q[t] · keys) · values` for a batch that is placed but not yet committed; tasks are (token, KV head).
/// `q`, `out`: `[n_tok][n_head * head_dim]`, `q` already multiplied by the scale of scores; it is turned into the keys' basis.
/// `soft_cap`: of the scores, 0 for none.
pub fn attend_batch(
    cache: &KvCache,
    kernels: Kernels,
    pool: &mut Pool,
    scratch: &mut [AttendScratch],
    layer: usize,
    soft_cap: f32,
    q: &mut [f32],
    out: &mut [f32],
    n_tok: usize,
) {
    let (n_head_kv, head_dim) = (cache.shape().n_head_kv, cache.shape().head_dim);
    let (k_type, v_type) = (cache.shape().k_type.row(), cache.shape().v_type.row());
    let group_dim = q.len() / n_tok / n_head_kv;
    if cache.shape().k_type.is_turned() {
        pool.for_chunks(q, group_dim, |_, q| cache.shape().k_type.turn(q, head_dim));
    }
    let q = &*q;
    let n_q = group_dim / head_dim;
    pool.for_chunks_with(scratch, out, group_dim, |scratch, task, out| {
        let AttendScratch { table, partial, running } = scratch;
        let live = cache.rows_at(layer, task % n_head_kv, task / n_head_kv, table);
        let q = &q[task * group_dim..][..group_dim];
        running[..n_q].fill(f32::NEG_INFINITY);
        for first in (0..live).step_by(CHUNK) {
            let n_rows = CHUNK.min(live - first);
            let rows = Rows::Table(&table[first..first + n_rows]);
            kernels.attend(
                &Attend { q, head_dim, keys: cache.keys(), values: cache.values(), k_type, v_type, rows, n_rows, soft_cap },
                &mut as_partial(partial, n_q),
            );
            merge(running, out, partial, n_q);
        }
        normalise(running, out, n_q);
        cache.shape().v_type.turn_back(out, head_dim);
    });
}

/// The same for one token that is already committed; tasks are (KV head, chunk), so that few heads keep many threads busy.
pub fn attend_one(
    cache: &KvCache,
    kernels: Kernels,
    pool: &mut Pool,
    scratch: &mut [AttendScratch],
    split: &mut [f32],
    layer: usize,
    soft_cap: f32,
    q: &mut [f32],
    out: &mut [f32],
) {
    let (n_head_kv, head_dim) = (cache.shape().n_head_kv, cache.shape().head_dim);
    let (k_type, v_type) = (cache.shape().k_type.row(), cache.shape().v_type.row());
    cache.shape().k_type.turn(q, head_dim);
    let q = &*q;
    let group_dim = q.len() / n_head_kv;
    let n_q = group_dim / head_dim;
    let (live, len) = (cache.live_at(layer, 0), partial_len(n_q, head_dim));
    let n_chunks = live.div_ceil(CHUNK);
    pool.for_chunks(&mut split[..n_head_kv * n_chunks * len], len, |task, partial| {
        let (head, chunk) = (task / n_chunks, task % n_chunks);
        let rows = Rows::Dense { first: cache.first_row(layer, head) + chunk * CHUNK };
        let n_rows = CHUNK.min(live - chunk * CHUNK);
        let q = &q[head * group_dim..][..group_dim];
        kernels.attend(
            &Attend { q, head_dim, keys: cache.keys(), values: cache.values(), k_type, v_type, rows, n_rows, soft_cap },
            &mut as_partial(partial, n_q),
        );
    });
    let running = &mut scratch[0].running;
    for (head, out) in out.chunks_exact_mut(group_dim).enumerate() {
        running[..n_q].fill(f32::NEG_INFINITY);
        for partial in split[head * n_chunks * len..][..n_chunks * len].chunks_exact(len) {
            merge(running, out, partial, n_q);
        }
        normalise(running, out, n_q);
        cache.shape().v_type.turn_back(out, head_dim);
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
