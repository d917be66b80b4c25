//! One token of one head of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060). Each channel of the head's input has a row of state, which
//! fades by the same factor and takes the channel in along `b`; what it gives is read along `c`:
//!
//! ```text
//! S_p = decay * S_p + (dt * x_p) * b;   out_p = S_p . c + skip * x_p
//! ```
//!
//! One pass over each row; its sum runs in eight lanes, as all sums do (`arithmetic`). Four rows go together, because a sum alone
//! waits for each of its additions.

use super::arithmetic::add_lanes;

/// What a token brings to a head.
pub struct MambaStep<'a> {
    /// `[n_state]` each, of the head's group
    pub b: &'a [f32],
    pub c: &'a [f32],
    /// `[head_dim]`
    pub x: &'a [f32],
    pub decay: f32,
    pub dt: f32,
    pub skip: f32,
}

const ROWS: usize = 4;

/// `state`: `[head_dim][n_state]`, row after row; `out`: `[head_dim]`. The dimension is a multiple of 4, the row one of 8.
#[inline(always)]
pub fn mamba_step(state: &mut [f32], step: &MambaStep, out: &mut [f32]) {
    let (b, c) = (step.b.as_chunks::<8>().0, step.c.as_chunks::<8>().0);
    let four = state.chunks_exact_mut(ROWS * step.b.len());
    for (four, (x, out)) in four.zip(step.x.chunks_exact(ROWS).zip(out.chunks_exact_mut(ROWS))) {
        let mut rows = four.as_chunks_mut::<8>().0.chunks_exact_mut(b.len());
        let rows: [&mut [[f32; 8]]; ROWS] = std::array::from_fn(|_| rows.next().expect("four rows"));
        let taken: [f32; ROWS] = std::array::from_fn(|r| step.dt * x[r]);
        let mut lanes = [[0f32; 8]; ROWS];
        for (n, (b, c)) in b.iter().zip(c).enumerate() {
            for r in 0..ROWS {
                for i in 0..8 {
                    rows[r][n][i] = b[i].mul_add(taken[r], rows[r][n][i] * step.decay);
                    lanes[r][i] = rows[r][n][i].mul_add(c[i], lanes[r][i]);
                }
            }
        }
        (0..ROWS).for_each(|r| out[r] = step.skip.mul_add(x[r], add_lanes(lanes[r])));
    }
}
