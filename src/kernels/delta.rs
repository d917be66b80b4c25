//! The recurrence of a gated delta net over some tokens, head by head: the state of a head is its own, and tokens come in order, so
//! that a batch gives the bits of single tokens.

use crate::mem::pool::{Pool, SharedMut};

use super::spec::delta::DeltaStep;
use super::{Kernels, MAX_HEAD_DIM};

/// The tokens of one stream, and what it remembers.
pub struct DeltaNet<'a> {
    pub head_dim: usize,
    /// Heads of queries and keys; head `h` of the values reads head `h % n_k_head` of them.
    pub n_k_head: usize,
    pub n_v_head: usize,
    /// `[n_tok][(2 n_k_head + n_v_head) head_dim]`: queries, keys, values.
    pub qkv: &'a [f32],
    /// `[n_tok][n_v_head]`: what is left of the state, and how much of a difference enters it.
    pub decay: &'a [f32],
    pub beta: &'a [f32],
    /// `[head_dim]`, of what a head gives.
    pub norm: &'a [f32],
    pub eps: f32,
    /// `[n_v_head][head_dim][head_dim]`
    pub state: &'a mut [f32],
    /// `[n_tok][n_v_head head_dim]`: what gates the result, then the result.
    pub gate: &'a mut [f32],
}

impl Kernels {
    pub fn delta_net(&self, pool: &mut Pool, net: DeltaNet) {
        let DeltaNet { head_dim: d, n_k_head, n_v_head, qkv, decay, beta, norm, eps, state, gate } = net;
        let (n_tok, width, v_dim) = (decay.len() / n_v_head, (2 * n_k_head + n_v_head) * d, n_v_head * d);
        assert!(d % 8 == 0 && d <= MAX_HEAD_DIM && n_v_head % n_k_head == 0 && norm.len() == d && state.len() == v_dim * d);
        assert!(decay.len() == n_tok * n_v_head && beta.len() == decay.len());
        assert!(qkv.len() == n_tok * width && gate.len() == n_tok * v_dim);
        let (state, gate) = (SharedMut::new(state), SharedMut::new(gate));
        pool.run(n_v_head, &|_, head| {
            let mut room = [[0f32; MAX_HEAD_DIM]; 2];
            let [out, normed] = room.each_mut().map(|room| &mut room[..d]);
            // SAFETY: the state of each head is its own, and each head is one task.
            let state = unsafe { state.range(head * d * d, d * d) };
            for t in 0..n_tok {
                let part = |n: usize| &qkv[t * width + n * d..][..d];
                let k_head = head % n_k_head;
                let (q, k, v) = (part(k_head), part(n_k_head + k_head), part(2 * n_k_head + head));
                let at = t * n_v_head + head;
                let step = DeltaStep { q, k, v, decay: decay[at], beta: beta[at] };
                // SAFETY: the set's features were detected.
                unsafe { (self.table().delta_step)(state, &step, out) };
                self.rms_norm(out, norm, eps, normed);
                // SAFETY: each (token, head) is visited once.
                self.silu_mul(unsafe { gate.range(at * d, d) }, normed);
            }
        });
    }
}
