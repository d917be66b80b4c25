//! The gated delta net that Qwen 3.5 has in place of attention in three layers of four:
//!
//! ```text
//! q, k, v = silu(convolution(W_qkv x)) in parts;  q, k of each head to length 1, q / sqrt(head_dim)
//! decay   = exp(a * softplus(W_alpha x + dt));    beta = sigmoid(W_beta x)
//! out     = norm(delta net(q, k, v, decay, beta)) * silu(W_gate x)
//! ```
//!
//! The net itself is a kernel (`kernels::delta`), in which tokens come one after the other; a batch shares what is before and behind.

use std::ops::Range;

use crate::kernels::{DeltaNet, Kernels};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

use super::config::{Config, DeltaShape, Recurrence};
use super::ffn::sigmoid;
use super::shortconv::{convolve, remember};
use super::weights::Delta;

/// Where a delta net computes.
pub struct DeltaScratch {
    shape: DeltaShape,
    eps: f32,
    pub entering: Buf<f32>, // [n_rows][conv_dim] what enters the convolution
    leaving: Buf<f32>,      // [n_rows][conv_dim] queries, keys, values
    pub alpha: Buf<f32>,    // [n_rows][n_v_head]
    pub beta: Buf<f32>,     // [n_rows][n_v_head]
}

impl DeltaScratch {
    /// `None` for a model without delta nets.
    pub fn carve(arena: &mut Arena, c: &Config, n_rows: usize) -> Option<DeltaScratch> {
        let Recurrence::DeltaNet(shape) = c.recurrent.as_ref()?.kind else { return None };
        arena.begin_part("recurrent scratch");
        let [entering, leaving] = [(); 2].map(|()| arena.carve(n_rows * shape.conv_dim()));
        let [alpha, beta] = [(); 2].map(|()| arena.carve(n_rows * shape.n_v_head));
        Some(DeltaScratch { shape, eps: c.rms_eps, entering, leaving, alpha, beta })
    }

    /// Mixes the tokens of one stream, the rows `rows` of the pass, with those before them. `out`, `[rows][v_dim]`, has the gates.
    pub fn mix(
        &mut self,
        w: &Delta,
        state: &mut [f32],
        rows: &Range<usize>,
        (kernels, pool): (Kernels, &mut Pool),
        out: &mut [f32],
    ) {
        let shape @ DeltaShape { n_tap, head_dim, n_k_head, n_v_head } = self.shape;
        let width = shape.conv_dim();
        let of = |dim: usize| rows.start * dim..rows.end * dim;
        let (before, state) = state.split_at_mut((n_tap - 1) * width);
        let (entering, qkv) = (&self.entering[of(width)], &mut self.leaving[of(width)]);
        convolve((&w.taps, n_tap), before, entering, pool, qkv, |_, row| {
            kernels.silu(row);
            let (q, behind) = row.split_at_mut(n_k_head * head_dim);
            let k = &mut behind[..n_k_head * head_dim];
            let q_scale = 1.0 / (head_dim as f32).sqrt();
            for (heads, scale) in [(q, q_scale), (k, 1.0)] {
                heads.chunks_exact_mut(head_dim).for_each(|head| set_length(kernels, head, scale, self.eps));
            }
        });
        remember(before, entering);
        let (decay, beta) = (&mut self.alpha[of(n_v_head)], &mut self.beta[of(n_v_head)]);
        for (decay, beta) in decay.chunks_exact_mut(n_v_head).zip(beta.chunks_exact_mut(n_v_head)) {
            for (head, (decay, beta)) in decay.iter_mut().zip(beta).enumerate() {
                let rate = f64::from(w.a[head]) * softplus(f64::from(*decay + w.dt[head]));
                *decay = libm::exp(rate) as f32;
                *beta = sigmoid(*beta);
            }
        }
        let net = DeltaNet { head_dim, n_k_head, n_v_head, qkv, decay, beta, norm: &w.norm, eps: self.eps, state, gate: out };
        kernels.delta_net(pool, net);
    }
}

/// `x * length / |x|`
fn set_length(kernels: Kernels, x: &mut [f32], length: f32, eps: f32) {
    let norm = kernels.l2_norm(x);
    let times = length / (norm * norm + eps).sqrt();
    x.iter_mut().for_each(|x| *x *= times);
}

pub(super) fn softplus(x: f64) -> f64 {
    if x > 20.0 { x } else { libm::log1p(libm::exp(x)) }
}
