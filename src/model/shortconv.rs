//! The short convolution that LFM2 has in place of attention in most layers: each channel of a token is a weighted sum of the
//! last few tokens' channel, gated before and after,
//!
//! ```text
//! out[t] = gate_out[t] * sum over i of taps[i] * (gate_in * input)[t - (n_tap - 1) + i]
//! ```
//!
//! with the three factors made by one matrix each. What a stream must remember of it are the `n_tap - 1` latest rows that
//! entered each layer's convolution: a state of fixed size that no policy touches, since it knows neither positions nor
//! distances (`state`). A batch is token by token, bit for bit: sums run over the taps
//! in order, plain multiplications and additions, the same on every CPU.

use crate::kernels::{Acts, Kernels, Product};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::{Config, Recurrence};
use super::weights::{Conv, Files};

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
        let Recurrence::ShortConv { n_tap } = c.recurrent.as_ref()?.kind else { return None };
        let n_embd = c.n_embd;
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

    /// Mixes the tokens of one stream, which entered as the rows from `first` on, with those before them in a layer with this state:
    /// `out` = `[n_tok][n_embd]`.
    pub fn mix(&self, conv: &Conv, state: &mut [f32], first: usize, pool: &mut Pool, out: &mut [f32]) {
        let n_embd = self.n_embd;
        let (entering, gate_out) = (&self.entering[first * n_embd..][..out.len()], &self.gate_out[first * n_embd..]);
        convolve((&conv.taps, self.n_tap), state, entering, pool, out, |t, out| {
            out.iter_mut().zip(&gate_out[t * n_embd..]).for_each(|(out, gate)| *out *= gate);
        });
        remember(state, entering);
    }
}

/// `out[t] = sum over i of taps[i] * entering[t - (n_tap - 1) + i]`, channel by channel, then what `finish` makes of it. `taps`:
/// `[n_tap][width]`; `before`: the `n_tap - 1` rows that entered last; `entering` and `out`: `[n_tok][width]`.
pub(super) fn convolve(
    (taps, n_tap): (&[f32], usize),
    before: &[f32],
    entering: &[f32],
    pool: &mut Pool,
    out: &mut [f32],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let width = taps.len() / n_tap;
    pool.for_chunks(out, width, |t, out| {
        let row = |i: usize| match (t + i).checked_sub(n_tap - 1) {
            Some(entered) => &entering[entered * width..][..width],
            None => &before[(t + i) * width..][..width],
        };
        let tap = |i: usize| &taps[i * width..][..width];
        out.iter_mut().zip(row(0)).zip(tap(0)).for_each(|((out, x), tap)| *out = x * tap);
        for i in 1..n_tap {
            out.iter_mut().zip(row(i)).zip(tap(i)).for_each(|((out, x), tap)| *out += x * tap);
        }
        finish(t, out);
    });
}

/// Keeps the latest of the rows before and those that entered, as many as there were before.
pub(super) fn remember(before: &mut [f32], entering: &[f32]) {
    let kept = before.len().saturating_sub(entering.len());
    let all = before.len();
    before.copy_within(all - kept.., 0);
    before[kept..].copy_from_slice(&entering[entering.len() - (all - kept)..]);
}
