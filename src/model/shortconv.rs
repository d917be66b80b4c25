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

/// What a stream remembers of its convolutions: `[n_conv_layer][n_tap - 1][n_embd]`, the newest last.
pub struct ConvState(Buf<f32>);

impl ConvState {
    /// `None` for a model without convolutions.
    pub fn carve(arena: &mut Arena, c: &Config) -> Option<ConvState> {
        let n_tap = c.conv.as_ref()?.n_tap;
        arena.begin_part("convolution state");
        Some(ConvState(arena.carve(c.n_conv_layer() * (n_tap - 1) * c.n_embd)))
    }

    /// Forgets the stream.
    pub fn clear(&mut self) {
        self.0.fill(0.0);
    }

    pub fn numbers(&self) -> &[f32] {
        &self.0
    }

    pub fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

/// Where a convolution computes.
pub struct ShortConvs {
    n_embd: usize,
    n_tap: usize,
    gate_in: Buf<f32>,  // [n_rows][n_embd]
    gate_out: Buf<f32>, // [n_rows][n_embd]
    entering: Buf<f32>, // [n_rows][n_embd]
}

impl ShortConvs {
    /// `None` for a model without convolutions.
    pub fn carve(arena: &mut Arena, c: &Config, n_rows: usize) -> Option<ShortConvs> {
        let (n_tap, n_embd) = (c.conv.as_ref()?.n_tap, c.n_embd);
        arena.begin_part("convolution scratch");
        let [gate_in, gate_out, entering] = [(); 3].map(|()| arena.carve(n_rows * n_embd));
        Some(ShortConvs { n_embd, n_tap, gate_in, gate_out, entering })
    }

    /// The gates of the tokens of `acts`, and what enters the convolution.
    pub fn enter(
        &mut self,
        conv: &Conv,
        (kernels, file): (Kernels, &Files),
        (pool, tiles): (&mut Pool, &mut [Buf<u8>]),
        acts: Acts<'_>,
    ) {
        let n = acts.n_tok * self.n_embd;
        let (gate_in, gate_out, entering) = (&mut self.gate_in[..n], &mut self.gate_out[..n], &mut self.entering[..n]);
        let products = &mut [
            Product { w: conv.gate_in.in_file(file), out: &mut *gate_in },
            Product { w: conv.gate_out.in_file(file), out: &mut *gate_out },
            Product { w: conv.input.in_file(file), out: &mut *entering },
        ];
        kernels.matmul(pool, tiles, acts, products);
        entering.iter_mut().zip(&*gate_in).for_each(|(x, gate)| *x *= gate);
    }

    /// Mixes the tokens of one stream, which entered as the rows from `first` on, with those before them in the `nth` of the layers
    /// with a convolution: `out` = `[n_tok][n_embd]`.
    pub fn mix(&self, (conv, nth): (&Conv, usize), state: &mut ConvState, first: usize, pool: &mut Pool, out: &mut [f32]) {
        let ShortConvs { n_embd, n_tap, .. } = *self;
        let past = (n_tap - 1) * n_embd;
        let state = &mut state.0[nth * past..][..past];
        let (entering, gate_out) = (&self.entering[first * n_embd..][..out.len()], &self.gate_out[first * n_embd..]);
        let before = &*state;
        pool.for_chunks(out, n_embd, |t, out| {
            let row = |i: usize| match (t + i).checked_sub(n_tap - 1) {
                Some(entered) => &entering[entered * n_embd..][..n_embd],
                None => &before[(t + i) * n_embd..][..n_embd],
            };
            let tap = |i: usize| &conv.taps[i * n_embd..][..n_embd];
            out.iter_mut().zip(row(0)).zip(tap(0)).for_each(|((out, x), tap)| *out = x * tap);
            for i in 1..n_tap {
                out.iter_mut().zip(row(i)).zip(tap(i)).for_each(|((out, x), tap)| *out += x * tap);
            }
            out.iter_mut().zip(&gate_out[t * n_embd..]).for_each(|(out, gate)| *out *= gate);
        });
        let kept = past.saturating_sub(entering.len());
        state.copy_within(past - kept.., 0);
        state[kept..].copy_from_slice(&entering[entering.len() - (past - kept)..]);
    }
}
