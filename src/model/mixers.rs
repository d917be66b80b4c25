//! The parts of a pass: attention, a short convolution, the feed-forward network, logits. By far the most time is spent in
//! `Kernels::matmul`, and in a long context in the step's attention.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{Kernels, Product};
use crate::kv::store::step::Step;
use crate::kv::{AttnLayer, LayerShape};
use crate::mem::pool::Pool;

use super::config::Config;
use super::ffn::{Room, add_bias, small_products};
use super::guard::Guard;
use super::norms::{add_to, multiply, normed, rms_norm};
use super::scratch::Scratch;
use super::state::RecurrentState;
use super::weights::{Attention, Conv, Delta, Files, Layer, Mamba, Weights};
use super::{Machine, Model};

/// The part of one stream in a pass: the rows that are its tokens, and its memory.
pub struct Part<'a> {
    pub rows: Range<usize>,
    pub step: Step<'a>,
    pub recurrent: Option<&'a mut RecurrentState>,
}

/// A pass of `n_tok` tokens: where weights come from, and where the results stand.
pub struct Pass<'m, 'a> {
    model: &'m Model,
    c: &'m Config,
    file: Files<'m>,
    kernels: Kernels,
    pool: &'a mut Pool,
    s: &'a mut Scratch,
    guard: &'a mut Guard,
    n_tok: usize,
}

impl<'m, 'a> Pass<'m, 'a> {
    pub fn new(model: &'m Model, machine: &'a mut Machine, n_tok: usize) -> Self {
        let Machine { kernels, pool, scratch: s, guard } = machine;
        Pass { model, c: &model.config, file: model.files(*kernels), kernels: *kernels, pool, s, guard, n_tok }
    }

    /// The scaled queries of the latest attention, that of a layer with these weights, `[rows][q_dim]`.
    pub fn queries(&self, w: &Attention, rows: &Range<usize>) -> &[f32] {
        let q_dim = self.c.n_head * w.heads.head_dim;
        &self.s.q[rows.start * q_dim..rows.end * q_dim]
    }

    /// `mixed` = what each token gathers from those before it and itself.
    pub fn attention(&mut self, layer: &Layer, w: &Attention, attn: AttnLayer, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (x, x_norm) = (&s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        let x = normed(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        // What each token asks for, offers, and holds.
        let (LayerShape { head_dim, .. }, kv_dim) = (w.heads, w.heads.row_dim());
        let q_dim = c.n_head * head_dim;
        let q = &mut s.q[..n_tok * q_dim];
        let (k, v) = (&mut s.k[..n_tok * kv_dim], &mut s.v[..n_tok * kv_dim]);
        // Where rows of gates are between those of queries, both come out together.
        let q_gate = &mut s.q_gate[..if c.gates_attention() { 2 * q.len() } else { 0 }];
        let attn_k = w.attn_k.as_ref().expect("a layer with keys");
        let products = &mut [
            Product { w: w.attn_q.in_file(file), out: if c.gates_attention() { &mut *q_gate } else { &mut *q } },
            Product { w: attn_k.in_file(file), out: &mut *k },
            Product { w: w.attn_v.as_ref().unwrap_or(attn_k).in_file(file), out: &mut *v },
        ];
        let acts = kernels.quantize(pool, x, c.n_embd, &mut s.acts);
        // Where values have no matrix of their own they are keys, before those are normed.
        let n_products = if w.attn_v.is_some() { 3 } else { 2 };
        kernels.matmul(pool, &mut s.tiles, acts, &mut products[..n_products]);
        if w.attn_v.is_none() {
            v.copy_from_slice(k);
        }
        let of_heads = q.chunks_exact_mut(head_dim).zip(q_gate.chunks_exact(2 * head_dim));
        of_heads.for_each(|(q, both)| q.copy_from_slice(&both[..head_dim]));
        if let Some([q_bias, k_bias, v_bias]) = &w.qkv_bias {
            add_bias(kernels, q, q_bias);
            add_bias(kernels, k, k_bias);
            add_bias(kernels, v, v_bias);
        }
        for (x, dim, norm) in [(&mut *q, q_dim, &w.q_norm), (&mut *k, kv_dim, &w.k_norm), (&mut *v, kv_dim, &w.v_norm)] {
            self.guard.see(x, dim);
            if let Some(norm) = norm {
                norm_heads(kernels, pool, x, dim, norm, c.rms_eps, &mut s.mixed);
            }
        }
        let head_sinks = w.head_sinks.as_deref().unwrap_or_default();
        for Part { rows, step, .. } in parts.iter_mut().flatten() {
            let n_together = step.n_together();
            for first in rows.clone().step_by(n_together) {
                let of = |dim: usize| first * dim..(first + n_together) * dim;
                let (q, k, v) = (&mut q[of(q_dim)], &mut k[of(kv_dim)], &v[of(kv_dim)]);
                let rated = step.rate(attn, pool, kernels, k, v);
                s.angles.turn(&self.model.ropes, attn, first, q, q_dim, head_dim);
                s.angles.turn(&self.model.ropes, attn, first, k, kv_dim, head_dim);
                s.angles.scale(first, q, q_dim);
                if let Some(weight) = &w.q_weight {
                    q.chunks_exact_mut(head_dim).for_each(|q| q.iter_mut().zip(&**weight).for_each(|(q, w)| *q *= w));
                }
                rated.take(pool, &self.model.ropes, q, k, v).attend(pool, &mut s.attend, head_sinks, q, &mut s.mixed[of(q_dim)]);
            }
        }
        let of_heads = s.mixed.chunks_exact_mut(head_dim).zip(q_gate.chunks_exact(2 * head_dim));
        of_heads.for_each(|(mixed, both)| kernels.sigmoid_mul(mixed, &both[head_dim..]));
    }

    /// The same of a layer that has no keys and values and looks at those that `shared` holds, for the rows from `first` on.
    pub fn shared_attention(
        &mut self,
        layer: &Layer,
        w: &Attention,
        shared: AttnLayer,
        first: usize,
        parts: &mut [Option<Part>],
    ) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (rows, head_dim) = (n_tok - first, w.heads.head_dim);
        let (x, x_norm) = (&s.x[first * c.n_embd..n_tok * c.n_embd], &mut s.x_norm[..rows * c.n_embd]);
        let x = normed(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let q_dim = c.n_head * head_dim;
        let q = &mut s.q[first * q_dim..n_tok * q_dim];
        let acts = kernels.quantize(pool, x, c.n_embd, &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: w.attn_q.in_file(file), out: &mut *q }]);
        self.guard.see(q, q_dim);
        if let Some(norm) = &w.q_norm {
            norm_heads(kernels, pool, q, q_dim, norm, c.rms_eps, &mut s.mixed);
        }
        s.angles.turn(&self.model.ropes, shared, first, q, q_dim, head_dim);
        s.angles.scale(first, q, q_dim);
        for Part { rows, step, .. } in parts.iter().flatten().filter(|part| part.rows.end > first) {
            let from = rows.start.max(first);
            let q = &mut q[(from - first) * q_dim..(rows.end - first) * q_dim];
            let mixed = &mut s.mixed[from * q_dim..rows.end * q_dim];
            step.look(shared, from - rows.start, pool, &mut s.attend, q, mixed);
        }
    }

    /// `mixed` = what the `nth` convolution makes of each token and the few before it.
    pub fn convolution(&mut self, layer: &Layer, conv: &Conv, nth: usize, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (x, x_norm) = (&s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        let x = normed(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let acts = kernels.quantize(pool, x, c.n_embd, &mut s.acts);
        let convs = s.convs.as_mut().expect("carved for a model with convolutions");
        convs.enter(conv, (kernels, file), (pool, &mut s.tiles), acts);
        let mixed = &mut s.mixed[..n_tok * c.q_dim()];
        for Part { rows, recurrent, .. } in parts.iter_mut().flatten() {
            let state = recurrent.as_deref_mut().expect("carved for a stream of such a model").layer_mut(nth);
            convs.mix(conv, state, rows.start, pool, &mut mixed[rows.start * c.q_dim()..rows.end * c.q_dim()]);
        }
        self.guard.see(mixed, c.q_dim());
    }

    /// `mixed` = what the `nth` layer with a delta net makes of each token and its state.
    pub fn delta_net(&mut self, layer: &Layer, w: &Delta, nth: usize, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (x, x_norm) = (&s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        let x = normed(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let deltas = s.deltas.as_mut().expect("carved for a model with delta nets");
        let (heads, v_dim) = (w.a.len(), layer.mixer_output.n_cols());
        let few = n_tok * heads;
        let [alpha, beta] =
            [(w.alpha, &mut deltas.alpha[..few]), (w.beta, &mut deltas.beta[..few])].map(|(w, out)| (w.in_file(file), out));
        small_products((kernels, pool, &mut s.tiles, &mut s.acts), (x, c.n_embd), [alpha, beta]);
        let mixed = &mut s.mixed[..n_tok * v_dim];
        let acts = kernels.quantize(pool, x, c.n_embd, &mut s.acts);
        let products = &mut [
            Product { w: w.qkv.in_file(file), out: &mut deltas.entering },
            Product { w: w.gate.in_file(file), out: &mut *mixed },
        ];
        kernels.matmul(pool, &mut s.tiles, acts, products);
        for Part { rows, recurrent, .. } in parts.iter_mut().flatten() {
            let state = recurrent.as_deref_mut().expect("carved for a stream of such a model").layer_mut(nth);
            deltas.mix(w, state, rows, (kernels, pool), &mut mixed[rows.start * v_dim..rows.end * v_dim]);
        }
        self.guard.see(mixed, v_dim);
    }

    /// `mixed`, or what stands beside it where that is attention's, = what the `nth` layer with Mamba-2 makes of each token and its state.
    pub fn mamba(&mut self, layer: &Layer, w: &Mamba, nth: usize, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let Scratch { x, x_norm, mixed, beside, tiles, acts, mambas, .. } = &mut **s;
        let (x, x_norm) = (&x[..n_tok * c.n_embd], &mut x_norm[..n_tok * c.n_embd]);
        let x = normed(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let mambas = mambas.as_mut().expect("carved for a model with Mamba-2");
        let inner_dim = w.gate.n_rows();
        let mixed = &mut if layer.beside.is_some() { beside } else { mixed }[..n_tok * inner_dim];
        let acts = kernels.quantize(pool, x, c.n_embd, acts);
        let products = &mut [
            Product { w: w.gate.in_file(file), out: &mut *mixed },
            Product { w: w.entering.in_file(file), out: &mut mambas.entering },
            Product { w: w.dt.in_file(file), out: &mut mambas.dt },
        ];
        kernels.matmul(pool, tiles, acts, products);
        for Part { rows, recurrent, .. } in parts.iter_mut().flatten() {
            let state = recurrent.as_deref_mut().expect("carved for a stream of such a model").layer_mut(nth);
            mambas.mix(w, state, rows, (kernels, pool), &mut mixed[rows.start * inner_dim..rows.end * inner_dim]);
        }
        self.guard.see(mixed, inner_dim);
    }

    /// Adds to the rows of `x` from `first` on what their mixer gives them, or both of them.
    pub fn mixer_output(&mut self, layer: &Layer, first: usize) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let Scratch { x, x_norm, mixed, beside, proj, tiles, acts, .. } = &mut **s;
        let rows = n_tok - first;
        let x = &mut x[first * c.n_embd..][..rows * c.n_embd];
        let (x_norm, proj) = (&mut x_norm[..rows * c.n_embd], &mut proj[..rows * c.n_embd]);
        let both = [
            Some((layer.mixer_output, mixed, &layer.mixer_bias)),
            layer.beside.as_ref().map(|(_, output)| (*output, beside, &None)),
        ];
        for (output, mixed, bias) in both.into_iter().flatten() {
            let width = output.n_cols();
            let acts = kernels.quantize(pool, &mixed[first * width..n_tok * width], width, acts);
            kernels.matmul(pool, tiles, acts, &mut [Product { w: output.in_file(file), out: &mut *proj }]);
            if let Some(bias) = bias {
                add_bias(kernels, proj, bias);
            }
            add_to(kernels, pool, x, proj, c.multipliers.addends, (&layer.attn_post_norm, c.rms_eps), x_norm);
        }
    }

    /// Adds to the rows of `x` from `first` on what the feed-forward network makes of them.
    pub fn feed_forward(&mut self, layer: &Layer, first: usize) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, ref mut guard, .. } = *self;
        let Scratch { x, x_norm, proj, gate, up, tiles, acts, experts, .. } = &mut **s;
        let rows = n_tok - first;
        let x = &mut x[first * c.n_embd..][..rows * c.n_embd];
        let (x_norm, proj) = (&mut x_norm[..rows * c.n_embd], &mut proj[..rows * c.n_embd]);
        let mut room = Room { kernels, file, pool, tiles, acts, gate, up, guard, eps: c.rms_eps };
        room.ffn(layer, experts, x, x_norm, proj);
        add_to(kernels, pool, x, proj, c.multipliers.addends, (&layer.ffn_post_norm, c.rms_eps), x_norm);
    }

    /// Adds to the rows of `x` from `first` on what the layer, the `i`th, is fed from the second table of embeddings, and scales them.
    pub fn layer_end(&mut self, layer: &Layer, i: usize, first: usize) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, ref mut guard, .. } = *self;
        let Scratch { x, x_norm, proj, tiles, acts, inputs, .. } = &mut **s;
        let rows = n_tok - first;
        let x = &mut x[first * c.n_embd..][..rows * c.n_embd];
        if let (Some(w), Some(inputs)) = (&layer.input, inputs) {
            let n = rows * inputs.n_embd_layer;
            let read = kernels.quantize(pool, x, c.n_embd, acts);
            let gate = &mut inputs.gate[..n];
            kernels.matmul(pool, tiles, read, &mut [Product { w: w.gate.in_file(file), out: gate }]);
            inputs.apply(i, first, rows, kernels);
            guard.see(&inputs.gate[..n], inputs.n_embd_layer);
            let read = kernels.quantize(pool, &inputs.gate[..n], inputs.n_embd_layer, acts);
            let (x_norm, proj) = (&mut x_norm[..rows * c.n_embd], &mut proj[..rows * c.n_embd]);
            kernels.matmul(pool, tiles, read, &mut [Product { w: w.proj.in_file(file), out: &mut *proj }]);
            rms_norm(kernels, pool, proj, &w.norm, c.rms_eps, x_norm);
            kernels.add(x, x_norm);
        }
        multiply(x, layer.output_scale);
    }

    /// Without logits; an error where something was not a number.
    pub fn end(self) -> Result<&'a [f32]> {
        self.guard.judge(self.model, false).map(|()| &[][..])
    }

    /// Logits of the rows of `x` from `first` on, `[rows][n_vocab]`; an error likewise.
    pub fn logits(self, first: usize) -> Result<&'a [f32]> {
        let Pass { model, c, file, kernels, pool, s, guard, n_tok } = self;
        let Weights { output_norm, output, .. } = &model.weights;
        let rows = n_tok - first;
        let (x, x_norm) = (&s.x[first * c.n_embd..][..rows * c.n_embd], &mut s.x_norm[..rows * c.n_embd]);
        rms_norm(kernels, pool, x, output_norm, c.rms_eps, x_norm);
        guard.always(x_norm);
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        let logits = &mut s.logits[..rows * c.n_vocab];
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: output.in_file(&file), out: &mut *logits }]);
        guard.see(logits, c.n_vocab);
        guard.judge(model, true)?;
        multiply(logits, c.multipliers.logits);
        if let Some(caps) = c.soft_caps.filter(|caps| caps.logits > 0.0) {
            pool.for_chunks(logits, c.n_vocab.div_ceil(64), |_, logits| kernels.soft_cap(logits, caps.logits));
        }
        Ok(logits)
    }
}

/// Norms each head of each row of `x` = `[n_tok][row]`, in place; or the whole row, if the weights are as many. `room` is as large.
fn norm_heads(kernels: Kernels, pool: &mut Pool, x: &mut [f32], row: usize, weight: &[f32], eps: f32, room: &mut [f32]) {
    let room = &mut room[..x.len()];
    pool.for_chunks(room, row, |t, out| kernels.rms_norm(&x[t * row..][..row], weight, eps, out));
    x.copy_from_slice(room);
}
