//! One token of one head of a gated delta net (Yang et al. 2024, arXiv 2412.06464). The state is a matrix that maps keys to values; it is
//! kept transposed, so that row `j`, which is contiguous, gives channel `j` of the value:
//!
//! ```text
//! S_j = decay * S_j;   S_j = S_j + beta * (v_j - S_j . k) * k;   out_j = S_j . q
//! ```
//!
//! Each row is read once from memory; its two sums run in eight lanes, as all sums do (`arithmetic`). Four rows go together, because
//! a sum alone waits for each of its additions.

use super::arithmetic::add_lanes;

/// What a token brings to a head.
pub struct DeltaStep<'a> {
    /// `[head_dim]` each
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub decay: f32,
    pub beta: f32,
}

const ROWS: usize = 4;

/// `state`: `[head_dim][head_dim]`, row after row; `out`: `[head_dim]`. The dimension is a multiple of 8.
#[inline(always)]
pub fn delta_step(state: &mut [f32], step: &DeltaStep, out: &mut [f32]) {
    let (q, k) = (step.q.as_chunks::<8>().0, step.k.as_chunks::<8>().0);
    let four = state.chunks_exact_mut(ROWS * step.k.len());
    for (four, (v, out)) in four.zip(step.v.chunks_exact(ROWS).zip(out.chunks_exact_mut(ROWS))) {
        let mut rows = four.as_chunks_mut::<8>().0.chunks_exact_mut(k.len());
        let rows: [&mut [[f32; 8]]; ROWS] = std::array::from_fn(|_| rows.next().expect("four rows"));
        let mut lanes = [[0f32; 8]; ROWS];
        for (c, k) in k.iter().enumerate() {
            for r in 0..ROWS {
                for i in 0..8 {
                    rows[r][c][i] *= step.decay;
                    lanes[r][i] = rows[r][c][i].mul_add(k[i], lanes[r][i]);
                }
            }
        }
        let delta: [f32; ROWS] = std::array::from_fn(|r| step.beta * (v[r] - add_lanes(lanes[r])));
        let mut lanes = [[0f32; 8]; ROWS];
        for (c, (k, q)) in k.iter().zip(q).enumerate() {
            for r in 0..ROWS {
                for i in 0..8 {
                    rows[r][c][i] = k[i].mul_add(delta[r], rows[r][c][i]);
                    lanes[r][i] = rows[r][c][i].mul_add(q[i], lanes[r][i]);
                }
            }
        }
        (0..ROWS).for_each(|r| out[r] = add_lanes(lanes[r]));
    }
}
