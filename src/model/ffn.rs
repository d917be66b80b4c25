//! The feed-forward network of a layer: a dense one, or a mixture of experts, of which a router chooses a few for each token:
//!
//! ```text
//! p = softmax(router x), or the sigmoid;   chosen = the experts with the largest p (+ bias);   w = p / sum of the chosen p
//! y = sum over the chosen of w * expert(x)   (+ what an expert gives that all tokens share)
//! ```
//!
//! Where p is the softmax, w is that of the chosen logits alone. Matrices of experts may have biases, which stay in the file as they do.
//! A mixture may also stand beside a dense network (`Room::beside`).
//!
//! The tokens of a batch go through an expert together, expert after expert. A token's sum runs over its experts in the order of their
//! numbers, and its router's product does not depend on the batch either, so that a batch gives the bits of single tokens.

use std::ops::Range;

use crate::gguf::quant::dequantize_row;
use crate::kernels::{ActBuf, GEMM_FROM, Kernels, Matrix, Product};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::{Config, ExpertConfig};
use super::guard::Guard;
use super::norms::{normed, rms_norm};
use super::weights::{Activation, Beside, Dense, Experts, Ffn, Files, Layer, Tensor};

/// Where an FFN computes.
pub struct Room<'a> {
    pub kernels: Kernels,
    pub file: &'a Files<'a>,
    pub pool: &'a mut Pool,
    pub tiles: &'a mut [Buf<u8>],
    pub acts: &'a mut ActBuf,
    pub gate: &'a mut [f32],
    pub up: &'a mut [f32],
    pub guard: &'a mut Guard,
    /// Of its norms.
    pub eps: f32,
}

/// What a mixture needs besides.
pub struct ExpertScratch {
    config: ExpertConfig,
    logits: Buf<f32>,   // [n_rows][n_expert] of the router, then what the choice is made by
    chosen: Buf<u32>,   // [n_rows][n_used]
    weights: Buf<f32>,  // [n_rows][n_used]
    order: Buf<u32>,    // [n_rows * n_used] places in `chosen`, by expert and then by token
    ends: Buf<u32>,     // [n_expert] where those of an expert end in `order`
    gathered: Buf<f32>, // [n_rows][n_embd] the tokens of an expert
    given: Buf<f32>,    // [n_rows][n_embd] what it makes of them
    shared: Buf<f32>,   // [n_rows] gates of the shared expert
    biases: Buf<f32>,   // [2 n_ff + n_embd] of an expert, where it has some: of gate, up and down
    /// Memory does not hold the weights: experts that were chosen are asked for before they are multiplied.
    pub asks_ahead: bool,
}

impl Room<'_> {
    /// `out` = what the network of `layer` makes of `x`, both `[n_tok][n_embd]`; `room` is as large as they are.
    pub fn ffn(&mut self, layer: &Layer, scratch: &mut Option<ExpertScratch>, x: &[f32], room: &mut [f32], out: &mut [f32]) {
        const CARVED: &str = "carved for a model with experts";
        let norm = &layer.ffn_norm;
        match &layer.ffn {
            Ffn::Dense(dense) => {
                let x = normed(self.kernels, self.pool, x, norm, self.eps, room);
                self.dense(dense, None, x, out);
            }
            Ffn::Experts(experts) => {
                let x = normed(self.kernels, self.pool, x, norm, self.eps, room);
                self.mixture(experts, scratch.as_mut().expect(CARVED), x, out);
            }
            Ffn::Beside(both) => self.beside(both, scratch.as_mut().expect(CARVED), x, room, out),
        }
    }

    /// `biases`: of gate, up and down.
    fn dense(&mut self, w: &Dense, biases: Option<[&[f32]; 3]>, x: &[f32], out: &mut [f32]) {
        let (n_embd, n_ff, kernels) = (w.up.n_cols(), w.up.n_rows(), self.kernels);
        let n_tok = x.len() / n_embd;
        let (gate, up) = (&mut self.gate[..n_tok * n_ff], &mut self.up[..n_tok * n_ff]);
        let acts = kernels.quantize(self.pool, x, n_embd, self.acts);
        // Without a gate what goes up takes its place.
        let products = match &w.gate {
            Some(gate_weights) => &mut [
                Product { w: gate_weights.in_file(self.file), out: &mut *gate },
                Product { w: w.up.in_file(self.file), out: &mut *up },
            ][..],
            None => &mut [Product { w: w.up.in_file(self.file), out: &mut *gate }],
        };
        kernels.matmul(self.pool, self.tiles, acts, products);
        if let Some([of_gate, of_up, _]) = biases {
            add_bias(kernels, gate, of_gate);
            add_bias(kernels, up, of_up);
        }
        self.pool.for_chunks(gate, n_ff, |t, gate| activate(kernels, w.activation, gate, &up[t * n_ff..][..n_ff]));
        self.guard.see(gate, n_ff);
        let acts = kernels.quantize(self.pool, gate, n_ff, self.acts);
        kernels.matmul(self.pool, self.tiles, acts, &mut [Product { w: w.down.in_file(self.file), out: &mut *out }]);
        if let Some([_, _, of_down]) = biases {
            add_bias(kernels, out, of_down);
        }
    }

    fn mixture(&mut self, w: &Experts, s: &mut ExpertScratch, x: &[f32], out: &mut [f32]) {
        self.route(w, s, x);
        self.experts(w, s, x, out);
        self.shared(w, s, x, out);
    }

    /// A mixture beside a dense network. Each reads `x` and gives what it gives by norms of its own, and the router reads by another:
    /// `out = norm(dense(norm x)) + norm(experts(norm x))`.
    fn beside(&mut self, w: &Beside, s: &mut ExpertScratch, x: &[f32], room: &mut [f32], out: &mut [f32]) {
        let (kernels, eps) = (self.kernels, self.eps);
        rms_norm(kernels, self.pool, x, &w.router_norm, eps, room);
        self.route(&w.experts, s, room);
        rms_norm(kernels, self.pool, x, &w.experts_norm, eps, room);
        self.experts(&w.experts, s, room, out);
        rms_norm(kernels, self.pool, out, &w.experts_post_norm, eps, &mut s.given[..x.len()]);
        rms_norm(kernels, self.pool, x, &w.dense_norm, eps, room);
        self.dense(&w.dense, None, room, out);
        rms_norm(kernels, self.pool, out, &w.dense_post_norm, eps, room);
        out.copy_from_slice(room);
        kernels.add(out, &s.given[..x.len()]);
    }

    /// Chooses the experts of each token of `x`.
    fn route(&mut self, w: &Experts, s: &mut ExpertScratch, x: &[f32]) {
        let (n_embd, n_expert) = (w.router.n_cols(), s.config.n_expert);
        let n_tok = x.len() / n_embd;
        let room = (self.kernels, &mut *self.pool, &mut *self.tiles, &mut *self.acts);
        small_products(room, (x, n_embd), [(w.router.in_file(self.file), &mut s.logits)]);
        if let Some(bias) = &w.router_bias {
            add_bias(self.kernels, &mut s.logits[..n_tok * n_expert], bias);
        }
        self.guard.see(&s.logits[..n_tok * n_expert], n_expert);
        s.choose(w.bias.as_deref(), n_tok);
    }

    /// `out` = what the chosen experts make of `x` together.
    fn experts(&mut self, w: &Experts, s: &mut ExpertScratch, x: &[f32], out: &mut [f32]) {
        let (n_embd, n_used) = (w.router.n_cols(), s.config.n_used);
        out.fill(0.0);
        // As many ahead as a token chooses: all those of a batch may be more than memory holds.
        let mut ahead = by_expert(&s.ends).filter(|_| s.asks_ahead);
        let mut ask = |n| ahead.by_ref().take(n).for_each(|(expert, _)| self.file.will_need(&w.expert(expert)));
        ask(n_used);
        for (expert, places) in by_expert(&s.ends) {
            let n = places.len();
            let token = |place: u32| place as usize / n_used * n_embd;
            for (gathered, &place) in s.gathered.chunks_exact_mut(n_embd).zip(&s.order[places.clone()]) {
                gathered.copy_from_slice(&x[token(place)..][..n_embd]);
            }
            let biases = w.biases(expert).map(|biases| self.load(biases, &mut s.biases));
            self.dense(&w.expert(expert), biases, &s.gathered[..n * n_embd], &mut s.given[..n * n_embd]);
            // An expert may be met long after a whole pass was sound.
            let n_ff = s.config.n_ff;
            self.guard.always(&self.gate[(n - 1) * n_ff..n * n_ff]);
            let scale = w.down_scale.as_ref().map_or(1.0, |scale| scale[expert]);
            for (given, &place) in s.given.chunks_exact(n_embd).zip(&s.order[places]) {
                add_times(&mut out[token(place)..][..n_embd], given, s.weights[place as usize] * scale);
            }
            ask(1);
        }
    }

    /// Adds what the expert gives that all tokens share.
    fn shared(&mut self, w: &Experts, s: &mut ExpertScratch, x: &[f32], out: &mut [f32]) {
        let Some((shared, gate)) = &w.shared else { return };
        let n_embd = w.router.n_cols();
        let n_tok = x.len() / n_embd;
        self.dense(shared, None, x, &mut s.given[..x.len()]);
        match gate {
            Some(gate) => {
                let room = (self.kernels, &mut *self.pool, &mut *self.tiles, &mut *self.acts);
                small_products(room, (x, n_embd), [(gate.in_file(self.file), &mut s.shared)]);
                s.shared[..n_tok].iter_mut().for_each(|gate| *gate = sigmoid(*gate));
            }
            None => s.shared[..n_tok].fill(1.0),
        }
        for ((out, given), gate) in out.chunks_exact_mut(n_embd).zip(s.given.chunks_exact(n_embd)).zip(&*s.shared) {
            add_times(out, given, *gate);
        }
    }

    /// The biases of an expert, one behind the other in `room`.
    fn load<'r>(&self, biases: [Tensor; 3], room: &'r mut [f32]) -> [&'r [f32]; 3] {
        let mut rest = room;
        biases.map(|bias| {
            let (own, behind) = std::mem::take(&mut rest).split_at_mut(bias.n_cols());
            rest = behind;
            let row = bias.in_model(self.file.model);
            dequantize_row(row.ty, row.row(0), own).expect("floats, as was checked when they were found");
            &*own
        })
    }
}

/// The experts that were chosen, and the places of their tokens in `order`.
fn by_expert(ends: &[u32]) -> impl Iterator<Item = (usize, Range<usize>)> {
    let starts = [0].into_iter().chain(ends.iter().copied());
    let places = starts.zip(ends).map(|(start, &end)| start as usize..end as usize);
    places.enumerate().filter(|(_, places)| !places.is_empty())
}

impl ExpertScratch {
    /// `None` for a model without experts.
    pub fn carve(arena: &mut Arena, c: &Config, n_rows: usize) -> Option<ExpertScratch> {
        let config = c.experts?;
        arena.begin_part("experts");
        let (n_places, n_expert) = (n_rows * config.n_used, config.n_expert);
        Some(ExpertScratch {
            config,
            logits: arena.carve(n_rows * n_expert),
            chosen: arena.carve(n_places),
            weights: arena.carve(n_places),
            order: arena.carve(n_places),
            ends: arena.carve(n_expert),
            gathered: arena.carve(n_rows * c.n_embd),
            given: arena.carve(n_rows * c.n_embd),
            shared: arena.carve(n_rows),
            asks_ahead: false,
            biases: arena.carve(if c.arch.all_biased { 2 * config.n_ff + c.n_embd } else { 0 }),
        })
    }

    /// Chooses the experts of the first `n_tok` tokens by the router's logits, weighs them, and sorts the tokens by expert.
    fn choose(&mut self, bias: Option<&[f32]>, n_tok: usize) {
        let ExpertConfig { n_expert, n_used, is_sigmoid, weight_scale, .. } = self.config;
        self.ends.fill(0);
        let rows = self.logits.chunks_exact_mut(n_expert).zip(self.chosen.chunks_exact_mut(n_used));
        for ((logits, chosen), weights) in rows.zip(self.weights.chunks_exact_mut(n_used)).take(n_tok) {
            // A logit that is no number (the guard will tell) is the last choice, so that no expert is chosen twice.
            logits.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = f32::NEG_INFINITY);
            let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp = |x: f32| libm::exp(f64::from(x - top)) as f32;
            let sum: f32 = if is_sigmoid { 1.0 } else { logits.iter().map(|&x| exp(x)).sum() };
            let probability = |x: f32| if is_sigmoid { sigmoid(x) } else { exp(x) / sum };
            for (chosen, weight) in chosen.iter_mut().zip(&mut *weights) {
                let rank = |i: usize| probability(logits[i]) + bias.map_or(0.0, |bias| bias[i]);
                // The first of equals. One that was taken is out of the choice: its logit is no number.
                let mut best = (f32::NEG_INFINITY, None);
                for i in (0..n_expert).filter(|&i| !logits[i].is_nan()) {
                    let rank = if bias.is_some() { rank(i) } else { logits[i] };
                    if rank > best.0 || best.1.is_none() {
                        best = (rank, Some(i));
                    }
                }
                let i = best.1.unwrap_or(0);
                (*chosen, *weight) = (i as u32, probability(logits[i]));
                logits[i] = f32::NAN;
                self.ends[i] += 1;
            }
            // Of an f16 the smallest number at full precision: what the weights are divided by at least.
            let total = weights.iter().sum::<f32>().max(6.103_515_6e-5);
            weights.iter_mut().for_each(|weight| *weight = *weight / total * weight_scale);
        }
        self.sort(n_tok * n_used);
    }

    /// Counts become ends, and places are laid in order: from the last one down, each before where its expert's so far begin.
    fn sort(&mut self, n_places: usize) {
        let mut end = 0;
        for count in &mut *self.ends {
            end += *count;
            *count = end;
        }
        for place in (0..n_places).rev() {
            let begin = &mut self.ends[self.chosen[place] as usize];
            *begin -= 1;
            self.order[*begin as usize] = place as u32;
        }
        // Each is now where its expert's begin, which is where those of the expert before end.
        self.ends.copy_within(1.., 0);
        if let Some(last) = self.ends.last_mut() {
            *last = n_places as u32;
        }
    }
}

fn activate(kernels: Kernels, activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => kernels.silu_mul(gate, up),
        Activation::ClampedSilu => kernels.clamped_silu_mul(gate, up),
        Activation::Gelu => kernels.gelu_mul(gate, up),
        Activation::Relu2 => kernels.relu2(gate),
        Activation::Xielu(by) => kernels.xielu(gate, &by),
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + libm::exp(f64::from(-x)))) as f32
}

/// Adds `bias` to each row of `x`.
pub(super) fn add_bias(kernels: Kernels, x: &mut [f32], bias: &[f32]) {
    x.chunks_exact_mut(bias.len()).for_each(|x| kernels.add(x, bias));
}

fn add_times(x: &mut [f32], y: &[f32], times: f32) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += times * y);
}

/// The products of `x`, rows of `n_cols`, with matrices of few rows, which may be of floats: a few tokens at a time, since a float
/// matrix against many has sums in another order, and what it gives here must not depend on the batch.
pub(super) fn small_products<const N: usize>(
    (kernels, pool, tiles, acts): (Kernels, &mut Pool, &mut [Buf<u8>], &mut ActBuf),
    (x, n_cols): (&[f32], usize),
    mut products: [(Matrix, &mut [f32]); N],
) {
    let n_at_once = GEMM_FROM - 1;
    for (i, x) in x.chunks(n_at_once * n_cols).enumerate() {
        let acts = kernels.quantize(pool, x, n_cols, acts);
        let mut of_chunk = products.each_mut().map(|(w, out)| {
            let n = w.n_rows;
            Product { w: *w, out: &mut out[i * n_at_once * n..][..x.len() / n_cols * n] }
        });
        kernels.matmul(pool, tiles, acts, &mut of_chunk);
    }
}

#[cfg(test)]
#[path = "../../tests/unit/model/ffn.rs"]
mod tests;
