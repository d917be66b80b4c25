//! Mamba-2 over the tokens of a stream: heads are spread over the threads, and in each the tokens come in order, so that a batch
//! gives the bits of single tokens.

use crate::mem::pool::{Pool, SharedMut};

use super::spec::mamba::MambaStep;
use super::{Kernels, MAX_HEAD_DIM};

/// The tokens of one stream, and what it remembers.
pub struct Mamba<'a> {
    pub head_dim: usize,
    pub n_head: usize,
    /// Numbers that a channel of a head remembers.
    pub n_state: usize,
    /// Neighbouring heads, `n_head / n_group` of them, read the same `b` and `c`.
    pub n_group: usize,
    /// `[n_tok][n_head head_dim + 2 n_group n_state]`: `x`, `b`, `c`.
    pub xbc: &'a [f32],
    /// `[n_tok][n_head]`: what is left of the state, and how much of the input enters it.
    pub decay: &'a [f32],
    pub dt: &'a [f32],
    /// `[n_head]`, how much of the input passes the state by.
    pub skip: &'a [f32],
    /// `[n_head][head_dim][n_state]`
    pub state: &'a mut [f32],
    /// `[n_tok][n_head head_dim]`: what gates the result by its SiLU, then the result.
    pub gate: &'a mut [f32],
}

impl Kernels {
    /// Takes the tokens into the state, and leaves what it gives, gated, in `gate`.
    pub fn mamba(&self, pool: &mut Pool, net: Mamba) {
        let Mamba { head_dim: d, n_head, n_state, n_group, xbc, decay, dt, skip, state, gate } = net;
        let (n_tok, inner, row) = (decay.len() / n_head, n_head * d, n_head * d + 2 * n_group * n_state);
        assert!(d % 4 == 0 && d <= MAX_HEAD_DIM && n_state % 8 == 0 && n_head % n_group == 0);
        assert!(skip.len() == n_head && state.len() == inner * n_state);
        assert!(decay.len() == n_tok * n_head && dt.len() == decay.len());
        assert!(xbc.len() == n_tok * row && gate.len() == n_tok * inner);
        let (state, gate) = (SharedMut::new(state), SharedMut::new(gate));
        pool.run(n_head, &|_, head| {
            let mut room = [0f32; MAX_HEAD_DIM];
            let out = &mut room[..d];
            // SAFETY: the state of each head is its own, and each head is one task.
            let state = unsafe { state.range(head * d * n_state, d * n_state) };
            let group = head / (n_head / n_group);
            for t in 0..n_tok {
                let (x, bc) = xbc[t * row..][..row].split_at(inner);
                let (b, c) = bc.split_at(n_group * n_state);
                let [b, c] = [b, c].map(|part| &part[group * n_state..][..n_state]);
                let at = t * n_head + head;
                let x = &x[head * d..][..d];
                let step = MambaStep { b, c, x, decay: decay[at], dt: dt[at], skip: skip[head] };
                // SAFETY: the set's features were detected.
                unsafe { (self.table().mamba_step)(state, &step, out) };
                // SAFETY: each (token, head) is visited once.
                self.silu_mul(unsafe { gate.range(at * d, d) }, out);
            }
        });
    }
}
