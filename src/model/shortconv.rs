//! The short convolution that LFM2 has in place of attention in most layers: each channel of a token is a weighted sum of the
//! last few tokens' channel, gated before and after,
//!
//! ```text
//! out[t] = gate_out[t] * sum over i of taps[i] * (gate_in * input)[t - (n_tap - 1) + i]
//! ```
//!
//! with the three factors made by one matrix each. What a stream must remember of it are the `n_tap - 1` latest rows that
//! entered each layer's convolution: a state of fixed size that no policy touches, since it knows neither positions nor
//! distances. Renumbering and eviction leave it as it is. A batch is token by token, bit for bit: sums run over the taps
//! in order, plain multiplications and additions, the same on every CPU.

use crate::kernels::{Acts, Kernels, Product};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::Config;
use super::weights::{Conv, Files};

pub struct ShortConvs {
    n_embd: usize,
    n_tap: usize,
    /// Of the stream: `[n_conv_layer][n_tap - 1][n_embd]`, the newest last.
    state: Buf<f32>,
    gate_in: Buf<f32>,  // [n_batch][n_embd]
    gate_out: Buf<f32>, // [n_batch][n_embd]
    rows: Buf<f32>,     // [n_tap - 1 + n_batch][n_embd]: the state, then what the batch puts in
}

impl ShortConvs {
    /// `None` for a model without convolutions.
    pub fn carve(arena: &mut Arena, c: &Config, n_batch: usize) -> Option<ShortConvs> {
        let (n_tap, n_embd) = (c.conv.as_ref()?.n_tap, c.n_embd);
        arena.begin_part("convolution state");
        let state = arena.carve(c.n_conv_layer() * (n_tap - 1) * n_embd);
        arena.begin_part("convolution scratch");
        let [gate_in, gate_out] = [(); 2].map(|()| arena.carve(n_batch * n_embd));
        Some(ShortConvs { n_embd, n_tap, state, gate_in, gate_out, rows: arena.carve((n_tap - 1 + n_batch) * n_embd) })
    }

    /// Forgets the stream.
    pub fn clear(&mut self) {
        self.state.fill(0.0);
    }

    /// What the stream must remember.
    pub fn state_mut(&mut self) -> &mut [f32] {
        &mut self.state
    }

    /// Mixes the tokens of `acts` with those before them in the `nth` of the layers with a convolution: `out` = `[n_tok][n_embd]`.
    pub fn mix(
        &mut self,
        (conv, nth): (&Conv, usize),
        (kernels, file): (Kernels, &Files),
        (pool, tiles): (&mut Pool, &mut [Buf<u8>]),
        acts: Acts<'_>,
        out: &mut [f32],
    ) {
        let ShortConvs { n_embd, n_tap, .. } = *self;
        let (n, past) = (out.len(), (n_tap - 1) * n_embd);
        let (gate_in, gate_out) = (&mut self.gate_in[..n], &mut self.gate_out[..n]);
        let state = &mut self.state[nth * past..][..past];
        let (before, entering) = self.rows[..past + n].split_at_mut(past);
        let products = &mut [
            Product { w: conv.gate_in.in_file(file), out: &mut *gate_in },
            Product { w: conv.gate_out.in_file(file), out: &mut *gate_out },
            Product { w: conv.input.in_file(file), out: &mut *entering },
        ];
        kernels.matmul(pool, tiles, acts, products);
        before.copy_from_slice(state);
        entering.iter_mut().zip(&*gate_in).for_each(|(x, gate)| *x *= gate);
        let (rows, gate_out) = (&self.rows[..past + n], &self.gate_out[..n]);
        pool.for_chunks(out, n_embd, |t, out| {
            let row = |i: usize| &rows[(t + i) * n_embd..][..n_embd];
            let tap = |i: usize| &conv.taps[i * n_embd..][..n_embd];
            out.iter_mut().zip(row(0)).zip(tap(0)).for_each(|((out, x), tap)| *out = x * tap);
            for i in 1..n_tap {
                out.iter_mut().zip(row(i)).zip(tap(i)).for_each(|((out, x), tap)| *out += x * tap);
            }
            out.iter_mut().zip(&gate_out[t * n_embd..]).for_each(|(out, gate)| *out *= gate);
        });
        state.copy_from_slice(&rows[n..]);
    }
}
