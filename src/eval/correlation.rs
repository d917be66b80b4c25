//! How far the norm of a key tells the attention that it will receive: the claim that norm eviction rests on (Devoto et al.
//! 2024, arXiv 2406.11430, figures 1 and 2), for each layer and KV head of the user's model, on the user's text.
//!
//! Attention is computed anew from the keys in a full cache and from the queries of the pass, in plain f32, off the normal path.
//! Refuses nothing itself; a cache that evicts would show only what survived.

use crate::error::Result;
use crate::kv::{AttnLayer, KvCache, LayerShape};
use crate::session::Session;

/// Whose attention counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Keys of a window's first half, queries of its second: all keys are asked by the same queries, from afar. This is what an
    /// evicted entry would have been asked by.
    Distant,
    /// Each key but the last sixteen, by all queries after it. What neighbours give to each other weighs most, and early keys are
    /// asked by queries that have little choice.
    Later,
}

impl Queries {
    /// Of a window of `ctx` tokens: how many keys count, from the first on, and which query is the first to count.
    fn of(self, ctx: usize) -> (usize, usize) {
        match self {
            Queries::Distant => (ctx / 2, ctx / 2),
            Queries::Later => (ctx.saturating_sub(LEAST_LATER), 0),
        }
    }
}

/// Queries that must come after a key for what it receives to be a mean of anything.
const LEAST_LATER: usize = 16;

/// What the keys of one window receive, head after head.
struct Received {
    n_head: usize,
    ctx: usize,
    queries: Queries,
    /// `[n_layer]`, each `[n_head]` or empty: logits that join the softmax without a value.
    head_sinks: Vec<Vec<f32>>,
    /// `[n_layer][n_head_kv][ctx]`: probabilities summed over later queries and the query heads of the group.
    sums: Vec<f64>,
    /// `[n_layer][n_head_kv][ctx]`
    norms: Vec<f64>,
    /// `[ctx][head_dim]`: the keys of the head under way.
    keys: Vec<f32>,
    /// `[ctx]`
    row: Vec<f32>,
}

/// Coefficients of one head, means over the windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coefficients {
    pub spearman: f64,
    pub pearson: f64,
}

/// Private bytes of a measurement with windows of `ctx` tokens.
pub fn bytes(n_heads_kv: usize, head_dim: usize, ctx: usize) -> usize {
    let per_head = 2 * size_of::<f64>() * ctx + size_of::<Coefficients>();
    // The ranks of one head, twice.
    n_heads_kv * per_head + size_of::<f32>() * ctx * (head_dim + 1) + 6 * size_of::<f64>() * ctx
}

/// Coefficients for each layer and KV head, `[n_layer][n_head_kv]`, over windows of `ctx` tokens. The session's cache must hold a
/// whole window in types that are stored as they are. `go_on` may stop between batches: then there is no result.
pub fn measure(
    session: &mut Session,
    windows: &[&[u32]],
    queries: Queries,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Option<Vec<Coefficients>>> {
    let ctx = windows.first().map_or(0, |window| window.len());
    let shape = *session.cache().shape();
    assert!(session.cache().n_slot() >= ctx && !shape.k_type.is_turned(), "keys are read back from a full cache");
    let n_heads = shape.n_heads();
    let mut received = Received {
        n_head: session.model().config.n_head,
        ctx,
        queries,
        head_sinks: session.model().weights.head_sinks(),
        sums: vec![0.0; n_heads * ctx],
        norms: vec![0.0; n_heads * ctx],
        keys: vec![0.0; ctx * shape.max_head_dim()],
        row: vec![0.0; ctx],
    };
    let mut means = vec![Coefficients::default(); n_heads];
    for window in windows {
        session.clear();
        received.sums.fill(0.0);
        for batch in window.chunks(session.n_batch()) {
            session.prefill_watched(batch, |layer, cache, q| received.take(layer, cache, q))?;
            if !go_on(batch.len()) {
                return Ok(None);
            }
        }
        for (head, mean) in means.iter_mut().enumerate() {
            let one = received.coefficients(head);
            mean.spearman += one.spearman / windows.len() as f64;
            mean.pearson += one.pearson / windows.len() as f64;
        }
    }
    Ok(Some(means))
}

impl Received {
    /// Adds what the queries `[n_tok][n_head * head_dim]` of a batch give to each key before them. Scaled by 1/sqrt(head_dim).
    fn take(&mut self, layer: AttnLayer, cache: &KvCache, q: &[f32]) {
        let (shape, ctx) = (cache.shape(), self.ctx);
        let LayerShape { n_head_kv, head_dim } = shape.of(layer);
        let n_q = self.n_head / n_head_kv;
        let (k_bytes, k_type, q_dim) = (shape.k_bytes(layer), shape.k_type.row(), self.n_head * head_dim);
        let n_tok = q.len() / q_dim;
        // The batch is committed, not yet counted as live.
        let first = cache.n_live();
        for head in shape.of(layer).heads() {
            let rows = cache.keys(layer)[cache.first_row(layer, head) * k_bytes..].chunks_exact(k_bytes);
            let keys = self.keys.chunks_exact_mut(head_dim).take(first + n_tok);
            let place = (shape.heads_before(layer) + head.0) * ctx;
            for ((row, key), norm) in rows.zip(keys).zip(&mut self.norms[place..]) {
                k_type.load(row, key);
                *norm = key.iter().map(|&k| f64::from(k) * f64::from(k)).sum::<f64>().sqrt();
            }
            let sums = &mut self.sums[place..][..ctx];
            let skipped = self.queries.of(ctx).1.saturating_sub(first).min(n_tok);
            for t in skipped..n_tok {
                let group = &q[t * q_dim + head.0 * n_q * head_dim..][..n_q * head_dim];
                let n_keys = first + t + 1;
                for (n, q) in group.chunks_exact(head_dim).enumerate() {
                    let sink = self.head_sinks[layer.0].get(head.0 * n_q + n).copied();
                    probabilities(q, &self.keys[..n_keys * head_dim], sink, &mut self.row[..n_keys]);
                    // What a key gives to itself says nothing of later queries.
                    let later = self.row[..n_keys - 1].iter();
                    sums.iter_mut().zip(later).for_each(|(sum, &p)| *sum += f64::from(p) / n_q as f64);
                }
            }
        }
    }

    fn coefficients(&self, head: usize) -> Coefficients {
        let (n, first_query) = self.queries.of(self.ctx);
        let norms = &self.norms[head * self.ctx..][..n];
        let received: Vec<f64> = self.sums[head * self.ctx..][..n]
            .iter()
            .enumerate()
            .map(|(pos, sum)| sum / (self.ctx - first_query.max(pos + 1)) as f64)
            .collect();
        Coefficients { spearman: pearson(&ranks(norms), &ranks(&received)), pearson: pearson(norms, &received) }
    }
}

/// `out[i] = softmax(q · keys)[i]`, beside a logit of the head's own if it has one.
fn probabilities(q: &[f32], keys: &[f32], sink: Option<f32>, out: &mut [f32]) {
    let mut max = sink.unwrap_or(f32::NEG_INFINITY);
    for (out, key) in out.iter_mut().zip(keys.chunks_exact(q.len())) {
        // Eight sums, so that the compiler may take eight lanes.
        let mut lanes = [0f32; 8];
        for (q, k) in q.chunks_exact(8).zip(key.chunks_exact(8)) {
            (0..8).for_each(|i| lanes[i] += q[i] * k[i]);
        }
        let whole = q.len() / 8 * 8;
        *out = lanes.iter().sum::<f32>() + q[whole..].iter().zip(&key[whole..]).map(|(q, k)| q * k).sum::<f32>();
        max = max.max(*out);
    }
    let mut sum = sink.map_or(0.0, |sink| (sink - max).exp());
    for out in out.iter_mut() {
        *out = (*out - max).exp();
        sum += *out;
    }
    out.iter_mut().for_each(|out| *out /= sum);
}

/// Ranks from 0; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let ties = order[from..].iter().take_while(|&&i| values[i] == values[order[from]]).count().max(1);
        let rank = from as f64 + (ties - 1) as f64 / 2.0;
        order[from..from + ties].iter().for_each(|&i| ranks[i] = rank);
        from += ties;
    }
    ranks
}

/// 0 where one of the two does not vary.
fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    if aa > 0.0 && bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
#[path = "../../tests/unit/eval/correlation.rs"]
mod tests;
