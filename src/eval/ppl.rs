//! Perplexity of a text under a bounded cache. Protocol: consecutive windows of `ctx` tokens, `stride` apart, a last
//! partial window left out, no token added; tokens 2…ctx of a window are scored from what the arena holds at that moment.
//! Eviction is streaming: the budget holds at every step.

use crate::error::Result;
use crate::session::Session;
use crate::text::sampler::nll;

/// Negative log-likelihoods, in nats, of tokens `1..ctx` of each window, window after window.
pub struct Scores {
    pub ctx: usize,
    pub nll: Vec<f64>,
}

impl Scores {
    pub fn mean(&self) -> f64 {
        mean(self.nll.iter().copied())
    }

    /// Of `n_parts` parts of a window that are as long as each other, the first ones first, how many tokens of them were scored and
    /// their mean; of all windows together.
    pub fn parts(&self, n_parts: usize) -> Vec<(usize, f64)> {
        let part_of = |i: usize| (i % (self.ctx - 1) + 1) * n_parts / self.ctx;
        let part = |part| {
            let nll = || self.nll.iter().enumerate().filter(move |&(i, _)| part_of(i) == part).map(|(_, &nll)| nll);
            (nll().count(), mean(nll()))
        };
        (0..n_parts).map(part).collect()
    }

    /// Mean over the tokens scored once `n_slot` tokens had been taken in: the arena is full by then.
    pub fn mean_after(&self, n_slot: usize) -> f64 {
        // Entry i of a window scores token i + 1, from a cache that has seen i + 1 tokens.
        let late = self.nll.iter().enumerate().filter(|(i, _)| i % (self.ctx - 1) + 1 >= n_slot);
        mean(late.map(|(_, &nll)| nll))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0usize);
    values.for_each(|v| (sum, n) = (sum + v, n + 1));
    sum / n as f64
}

/// Windows of `ctx` tokens that `tokens` holds.
pub fn windows(tokens: &[u32], ctx: usize, stride: usize) -> impl Iterator<Item = &[u32]> {
    tokens.windows(ctx).step_by(stride)
}

/// Scores every window. `rows` sees the logits after each token; `go_on` may stop between batches.
pub fn score(
    session: &mut Session,
    tokens: &[u32],
    ctx: usize,
    stride: usize,
    mut rows: impl FnMut(&[f32]) -> Result<()>,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Option<Scores>> {
    let n_vocab = session.model().config.n_vocab;
    let batch = session.n_logits().min(session.n_batch());
    let n_windows = windows(tokens, ctx, stride).count();
    let mut scores = Scores { ctx, nll: Vec::with_capacity(n_windows * (ctx - 1)) };
    for window in windows(tokens, ctx, stride) {
        session.clear();
        let mut done = 0;
        while done < window.len() {
            let n = session.together(batch.min(window.len() - done));
            let logits = session.prefill_all(&window[done..done + n])?;
            for row in logits.chunks_exact(n_vocab) {
                rows(row)?;
                done += 1;
                if let Some(&next) = window.get(done) {
                    scores.nll.push(nll(row, next));
                }
            }
            if !go_on(n) {
                return Ok(None);
            }
        }
    }
    Ok(Some(scores))
}

#[cfg(test)]
#[path = "../../tests/unit/eval/ppl.rs"]
mod tests;
