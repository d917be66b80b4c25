//! The parts of a pass: attention, a short convolution, the feed-forward network, logits. By far the most time is spent in
//! `Kernels::matmul`, and in a long context in the step's attention.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{Kernels, Product};
use crate::kv::AttnLayer;
use crate::kv::layout::MAX_HEAD_DIM;
use crate::kv::store::step::Step;
use crate::mem::arena::Buf;
use crate::mem::pool::Pool;

use super::config::Config;
use super::guard::Guard;
use super::scratch::Scratch;
use super::shortconv::ConvState;
use super::weights::{Attention, Conv, Files, Layer, Weights};
use super::{Machine, Model};

/// The part of one stream in a pass: the rows that are its tokens, and its memory.
pub struct Part<'a> {
    pub rows: Range<usize>,
    pub step: Step<'a>,
    pub convs: Option<&'a mut ConvState>,
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

    /// The scaled queries of the latest attention, `[rows][q_dim]`.
    pub fn queries(&self, rows: &Range<usize>) -> &[f32] {
        &self.s.q[rows.start * self.c.q_dim()..rows.end * self.c.q_dim()]
    }

    /// `mixed` = what each token gathers from those before it and itself.
    pub fn attention(&mut self, layer: &Layer, w: &Attention, attn: AttnLayer, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (x, x_norm) = (&s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        rms_norm(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        // What each token asks for, offers, and holds.
        let q = &mut s.q[..n_tok * c.q_dim()];
        let (k, v) = (&mut s.k[..n_tok * c.kv_dim()], &mut s.v[..n_tok * c.kv_dim()]);
        let products = &mut [
            Product { w: w.attn_q.in_file(file), out: &mut *q },
            Product { w: w.attn_k.in_file(file), out: &mut *k },
            Product { w: w.attn_v.in_file(file), out: &mut *v },
        ];
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, products);
        if let Some([q_bias, k_bias, v_bias]) = &w.qkv_bias {
            add_bias(kernels, q, q_bias);
            add_bias(kernels, k, k_bias);
            add_bias(kernels, v, v_bias);
        }
        self.guard.see(q, c.q_dim());
        self.guard.see(k, c.kv_dim());
        self.guard.see(v, c.kv_dim());
        if let Some([q_norm, k_norm]) = &w.qk_norm {
            norm_heads(kernels, pool, q, c.q_dim(), q_norm, c.rms_eps);
            norm_heads(kernels, pool, k, c.kv_dim(), k_norm, c.rms_eps);
        }
        for Part { rows, step, .. } in parts.iter_mut().flatten() {
            let of = |dim: usize| rows.start * dim..rows.end * dim;
            let (q, k, v) = (&mut q[of(c.q_dim())], &mut k[of(c.kv_dim())], &v[of(c.kv_dim())]);
            let rated = step.rate(attn, pool, kernels, k, v);
            s.angles.turn(&self.model.ropes, attn, rows.start, q, c.q_dim(), c.head_dim);
            s.angles.turn(&self.model.ropes, attn, rows.start, k, c.kv_dim(), c.head_dim);
            q.iter_mut().for_each(|q| *q *= c.q_scale);
            rated.take(pool, q, k, v).attend(pool, &mut s.attend, q, &mut s.mixed[of(c.q_dim())]);
        }
    }

    /// `mixed` = what the `nth` convolution makes of each token and the few before it.
    pub fn convolution(&mut self, layer: &Layer, conv: &Conv, nth: usize, parts: &mut [Option<Part>]) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let (x, x_norm) = (&s.x[..n_tok * c.n_embd], &mut s.x_norm[..n_tok * c.n_embd]);
        rms_norm(kernels, pool, x, &layer.attn_norm, c.rms_eps, x_norm);
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        let convs = s.convs.as_mut().expect("carved for a model with convolutions");
        convs.enter(conv, (kernels, file), (pool, &mut s.tiles), acts);
        let mixed = &mut s.mixed[..n_tok * c.q_dim()];
        for Part { rows, convs: state, .. } in parts.iter_mut().flatten() {
            let state = state.as_deref_mut().expect("carved for a stream of such a model");
            convs.mix((conv, nth), state, rows.start, pool, &mut mixed[rows.start * c.q_dim()..rows.end * c.q_dim()]);
        }
        self.guard.see(mixed, c.q_dim());
    }

    /// Adds to the rows of `x` from `first` on what their mixer gives them.
    pub fn mixer_output(&mut self, layer: &Layer, first: usize) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let rows = n_tok - first;
        let (x, mixed) = (&mut s.x[first * c.n_embd..][..rows * c.n_embd], &s.mixed[first * c.q_dim()..n_tok * c.q_dim()]);
        let (x_norm, proj) = (&mut s.x_norm[..rows * c.n_embd], &mut s.proj[..rows * c.n_embd]);
        let acts = kernels.quantize(pool, mixed, c.q_dim(), &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: layer.mixer_output.in_file(file), out: &mut *proj }]);
        add_to(kernels, pool, x, proj, &layer.attn_post_norm, c.rms_eps, x_norm);
    }

    /// Adds to the rows of `x` from `first` on what the feed-forward network makes of them: SwiGLU or GeGLU.
    pub fn feed_forward(&mut self, layer: &Layer, first: usize) {
        let Pass { c, ref file, kernels, ref mut pool, ref mut s, n_tok, .. } = *self;
        let rows = n_tok - first;
        let x = &mut s.x[first * c.n_embd..][..rows * c.n_embd];
        let (x_norm, proj) = (&mut s.x_norm[..rows * c.n_embd], &mut s.proj[..rows * c.n_embd]);
        rms_norm(kernels, pool, x, &layer.ffn_norm, c.rms_eps, x_norm);
        let (gate, up) = (&mut s.gate[..rows * c.n_ff], &mut s.up[..rows * c.n_ff]);
        let acts = kernels.quantize(pool, x_norm, c.n_embd, &mut s.acts);
        let products = &mut [
            Product { w: layer.ffn_gate.in_file(file), out: &mut *gate },
            Product { w: layer.ffn_up.in_file(file), out: &mut *up },
        ];
        kernels.matmul(pool, &mut s.tiles, acts, products);
        pool.for_chunks(gate, c.n_ff, |t, gate| {
            let up = &up[t * c.n_ff..][..c.n_ff];
            if c.arch.is_gemma { kernels.gelu_mul(gate, up) } else { kernels.silu_mul(gate, up) }
        });
        self.guard.see(gate, c.n_ff);
        let acts = kernels.quantize(pool, gate, c.n_ff, &mut s.acts);
        kernels.matmul(pool, &mut s.tiles, acts, &mut [Product { w: layer.ffn_down.in_file(file), out: &mut *proj }]);
        add_to(kernels, pool, x, proj, &layer.ffn_post_norm, c.rms_eps, x_norm);
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
        if let Some(caps) = c.soft_caps {
            pool.for_chunks(logits, c.n_vocab.div_ceil(64), |_, logits| kernels.soft_cap(logits, caps.logits));
        }
        Ok(logits)
    }
}

fn rms_norm(kernels: Kernels, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    pool.for_chunks(out, n, |t, out| kernels.rms_norm(&x[t * n..][..n], weight, eps, out));
}

/// `x += y`, or what the norm makes of `y`, for which `room` is as large as they are.
fn add_to(kernels: Kernels, pool: &mut Pool, x: &mut [f32], y: &[f32], norm: &Option<Buf<f32>>, eps: f32, room: &mut [f32]) {
    let Some(norm) = norm else { return kernels.add(x, y) };
    rms_norm(kernels, pool, y, norm, eps, room);
    kernels.add(x, room);
}

fn add_bias(kernels: Kernels, x: &mut [f32], bias: &[f32]) {
    x.chunks_exact_mut(bias.len()).for_each(|x| kernels.add(x, bias));
}

/// Norms each head of each row of `x` = `[n_tok][row]`, in place.
fn norm_heads(kernels: Kernels, pool: &mut Pool, x: &mut [f32], row: usize, weight: &[f32], eps: f32) {
    pool.for_chunks(x, row, |_, x| {
        for head in x.chunks_exact_mut(weight.len()) {
            let mut raw = [0f32; MAX_HEAD_DIM];
            let raw = &mut raw[..head.len()];
            raw.copy_from_slice(head);
            kernels.rms_norm(raw, weight, eps, head);
        }
    });
}
