//! By how much a position turns a key, from two tables: an angle is the sum of that of a multiple
//! of `STEP` and that of what is left. Sines and cosines of thousands of keys at every step would
//! take longer than all else that is done with them.

use crate::kv::Rotary;
use crate::kv::layout::AttnLayer;
use crate::mem::arena::{Arena, Buf};

const STEP: i64 = 256;

/// Cosines and sines of pairs of elements, interleaved, of positions from `-reach` to `n_ctx`.
pub struct Angles {
    /// `[n_coarse][head_dim]`: of the multiples of `STEP` from `first` on.
    coarse: Buf<f32>,
    /// `[STEP][head_dim]`
    fine: Buf<f32>,
    /// The multiple with which `coarse` begins.
    first: i64,
    head_dim: usize,
}

impl Angles {
    pub fn carve(arena: &mut Arena, head_dim: usize, n_ctx: usize, reach: usize) -> Angles {
        let first = -(reach as i64).div_euclid(STEP) - 1;
        let n_coarse = (n_ctx as i64 / STEP + 1 - first) as usize;
        Angles { coarse: arena.carve(n_coarse * head_dim), fine: arena.carve(STEP as usize * head_dim), first, head_dim }
    }

    /// As a layer turns.
    pub fn fill(&mut self, layer: AttnLayer, rotary: &impl Rotary) {
        for (i, angles) in self.coarse.chunks_exact_mut(self.head_dim).enumerate() {
            rotary.set_angles(layer, (self.first + i as i64) * STEP, angles);
        }
        for (i, angles) in self.fine.chunks_exact_mut(self.head_dim).enumerate() {
            rotary.set_angles(layer, i as i64, angles);
        }
    }

    /// Those of a position, into `out`; those that turn back from it, where `back`.
    pub fn at(&self, pos: i64, back: bool, out: &mut [f32]) {
        let (coarse, fine) = (pos.div_euclid(STEP) - self.first, pos.rem_euclid(STEP));
        let row = |i: i64| i as usize * self.head_dim..(i as usize + 1) * self.head_dim;
        let (coarse, fine) = (&self.coarse[row(coarse)], &self.fine[row(fine)]);
        let sign = if back { -1.0 } else { 1.0 };
        let pairs = coarse.as_chunks::<2>().0.iter().zip(fine.as_chunks::<2>().0);
        for (out, (&[cos_a, sin_a], &[cos_b, sin_b])) in out.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
            *out = [cos_a * cos_b - sin_a * sin_b, sign * (sin_a * cos_b + cos_a * sin_b)];
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/past/angles.rs"]
mod tests;
