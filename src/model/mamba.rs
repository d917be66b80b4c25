//! Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), which Granite 4.0 H has in place of attention in most layers, and Falcon-H1 beside
//! attention in all:
//!
//! ```text
//! z, u, s = W_in x in parts;  x, b, c = silu(convolution(u) + bias) in parts
//! dt      = softplus(s + dt_bias);  decay = exp(a * dt)
//! out     = norm(silu(z) * scan(x, b, c, decay, dt)), a norm for each group of heads, in files that have its weights
//! ```
//!
//! The scan itself is a kernel (`kernels::mamba`), in which tokens come one after the other; a batch shares what is before and behind.

use std::ops::Range;

use crate::kernels::{Kernels, Mamba as Scan};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::{Config, MambaShape, Recurrence};
use super::delta::softplus;
use super::shortconv::{convolve, remember};
use super::weights::Mamba;

/// Where Mamba-2 computes.
pub struct MambaScratch {
    shape: MambaShape,
    eps: f32,
    pub entering: Buf<f32>, // [n_rows][conv_dim] what enters the convolution, then room of the norm
    leaving: Buf<f32>,      // [n_rows][conv_dim] x, b, c
    pub dt: Buf<f32>,       // [n_rows][n_head]
    decay: Buf<f32>,        // [n_rows][n_head]
}

impl MambaScratch {
    /// `None` for a model without Mamba-2.
    pub fn carve(arena: &mut Arena, c: &Config, n_rows: usize) -> Option<MambaScratch> {
        let Recurrence::Mamba(shape) = c.recurrent.as_ref()?.kind else { return None };
        arena.begin_part("recurrent scratch");
        let [entering, leaving] = [(); 2].map(|()| arena.carve(n_rows * shape.conv_dim()));
        let [dt, decay] = [(); 2].map(|()| arena.carve(n_rows * shape.n_head));
        Some(MambaScratch { shape, eps: c.rms_eps, entering, leaving, dt, decay })
    }

    /// Mixes the tokens of one stream, the rows `rows` of the pass, with those before them. `out`, `[rows][inner_dim]`, has the gates.
    pub fn mix(
        &mut self,
        w: &Mamba,
        state: &mut [f32],
        rows: &Range<usize>,
        (kernels, pool): (Kernels, &mut Pool),
        out: &mut [f32],
    ) {
        let shape @ MambaShape { n_tap, inner_dim, n_state, n_head, n_group } = self.shape;
        let width = shape.conv_dim();
        let of = |dim: usize| rows.start * dim..rows.end * dim;
        let (before, state) = state.split_at_mut((n_tap - 1) * width);
        let (entering, xbc) = (&mut self.entering[of(width)], &mut self.leaving[of(width)]);
        convolve((&w.taps, n_tap), before, entering, pool, xbc, |_, row| {
            kernels.add(row, &w.conv_bias);
            kernels.silu(row);
        });
        remember(before, entering);
        let (dt, decay) = (&mut self.dt[of(n_head)], &mut self.decay[of(n_head)]);
        for (dt, decay) in dt.chunks_exact_mut(n_head).zip(decay.chunks_exact_mut(n_head)) {
            for (head, (dt, decay)) in dt.iter_mut().zip(decay).enumerate() {
                let step = softplus(f64::from(*dt + w.dt_bias[head]));
                *decay = libm::exp(f64::from(w.a[head]) * step) as f32;
                *dt = step as f32;
            }
        }
        let head_dim = inner_dim / n_head;
        let net = Scan { head_dim, n_head, n_state, n_group, xbc, decay, dt, skip: &w.skip, state, gate: &mut *out };
        kernels.mamba(pool, net);
        if let Some(norm) = &w.norm {
            let (n, room) = (inner_dim / n_group, &mut entering[..out.len()]);
            let weight = |i: usize| &norm[i % n_group * n..][..n];
            pool.for_chunks(room, n, |i, room| kernels.rms_norm(&out[i * n..][..n], weight(i), self.eps, room));
            out.copy_from_slice(room);
        }
    }
}
