//! By how much a position turns a key, from two tables: an angle is the sum of that of a multiple
//! of `STEP` and that of what is left. Sines and cosines of thousands of keys at every step would
//! take longer than all else that is done with them.

use crate::kernels::{AngleSum, MAX_HEAD_DIM};
use crate::kv::Rotary;
use crate::kv::layout::AttnLayer;
use crate::mem::arena::{Arena, Buf};

const STEP: i64 = 256;

/// Cosines and then sines of pairs of elements, of positions from `-reach` to `n_ctx`.
pub struct Angles {
    /// `[n_coarse][head_dim]`: of the multiples of `STEP` from `first` on.
    coarse: Buf<f32>,
    /// `[STEP][head_dim]`
    fine: Buf<f32>,
    /// The multiple with which `coarse` begins.
    first: i64,
    head_dim: usize,
    /// Elements that are turned: as many cosines and sines there are in a row.
    n_rot: usize,
}

impl Angles {
    pub fn carve(arena: &mut Arena, head_dim: usize, n_ctx: usize, reach: usize) -> Angles {
        let first = -(reach as i64).div_euclid(STEP) - 1;
        let n_coarse = (n_ctx as i64 / STEP + 1 - first) as usize;
        Angles {
            coarse: arena.carve(n_coarse * head_dim),
            fine: arena.carve(STEP as usize * head_dim),
            first,
            head_dim,
            n_rot: 0,
        }
    }

    /// As a layer turns.
    pub fn fill(&mut self, layer: AttnLayer, rotary: &impl Rotary) {
        let Angles { coarse, fine, first, head_dim, n_rot } = self;
        *n_rot = rotary.pairs(layer).map_or(0, |(_, n_rot)| n_rot);
        let mut room = [0f32; MAX_HEAD_DIM];
        let mut put = |pos: i64, row: &mut [f32]| {
            let pairs = &mut room[..*n_rot];
            rotary.set_angles(layer, pos, pairs);
            for (i, [cos, sin]) in pairs.as_chunks::<2>().0.iter().enumerate() {
                (row[i], row[*n_rot / 2 + i]) = (*cos, *sin);
            }
        };
        coarse.chunks_exact_mut(*head_dim).enumerate().for_each(|(i, row)| put((*first + i as i64) * STEP, row));
        fine.chunks_exact_mut(*head_dim).enumerate().for_each(|(i, row)| put(i as i64, row));
    }

    /// Those of a position.
    pub fn at(&self, pos: i64) -> AngleSum<'_> {
        let (coarse, fine) = (pos.div_euclid(STEP) - self.first, pos.rem_euclid(STEP));
        let row = |i: i64| i as usize * self.head_dim..i as usize * self.head_dim + self.n_rot;
        AngleSum(&self.coarse[row(coarse)], &self.fine[row(fine)])
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/past/angles.rs"]
mod tests;
