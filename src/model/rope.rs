//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pairs of a head's elements are turned by
//! `position * base^(-2i / n_rot)`. Plain multiplications and additions, the same on every CPU; sines and cosines from
//! the crate libm in f64, so that they too do not depend on the platform.

use std::ops::Range;

use crate::kernels::RopeOrder;
use crate::kv::{AttnLayer, Pos, Rotary};
use crate::mem::arena::{Arena, Buf};

use super::arch::ModelLayer;
use super::config::{Config, QueryGrowth, RopeConfig, RopeScaling};

/// How each layer turns: layers with a window may do so by a base of their own, some layers not at all.
pub struct Ropes {
    /// That of layers without a window, and that of layers with one where it differs.
    ropes: Vec<Rope>,
    /// `[n_attn_layer]`: which of them a layer turns by.
    of: Vec<Option<usize>>,
    /// Positions over which the mean key is spread.
    n_positions: usize,
}

/// Positions at most over which the mean key is spread. Of 2,048, 4,096 and 8,192 the first left the least rounding error in
/// windows of 2,048 tokens; pairs that turn slowly enough to matter later gain from it as well.
const POSITIONS: usize = 2048;

impl Ropes {
    /// `factors`: of the layers without a window.
    pub fn new(config: &Config, factors: Option<&[f32]>) -> Self {
        let local = config.local_rope.as_ref().map(|rope| Rope::new(rope, None));
        let is_local = |layer| local.is_some() && config.window.is_some_and(|window| window.limits(layer));
        let of = |(attn, layer): (_, ModelLayer)| config.turns[layer.0].then(|| usize::from(is_local(attn)));
        let of = config.attn_layers().map(of).collect();
        let ropes = [Rope::new(&config.rope, factors)].into_iter().chain(local).collect();
        Ropes { ropes, of, n_positions: config.n_ctx.min(POSITIONS) }
    }

    /// `None` where a layer leaves queries and keys unturned.
    fn of(&self, layer: AttnLayer) -> Option<&Rope> {
        self.of[layer.0].map(|i| &self.ropes[i])
    }
}

impl Rotary for Ropes {
    fn magnitude(&self, layer: AttnLayer) -> Option<f32> {
        self.of(layer).map(|rope| rope.magnitude)
    }

    fn pairs(&self, layer: AttnLayer) -> Option<(RopeOrder, usize)> {
        self.of(layer).map(|rope| (rope.order, rope.n_rot))
    }

    fn set_angles(&self, layer: AttnLayer, steps: i64, angles: &mut [f32]) {
        self.of(layer).into_iter().for_each(|rope| rope.angles(steps, &mut angles[..rope.n_rot]));
    }

    fn turn(&self, layer: AttnLayer, key: &mut [f32], angles: &[f32]) {
        self.of(layer).into_iter().for_each(|rope| rope.turn(key, &angles[..rope.n_rot]));
    }

    fn mean_squares(&self, layer: AttnLayer, squares: &mut [f32]) {
        self.of(layer).into_iter().for_each(|rope| rope.even_out(squares));
    }

    fn mean_key(&self, layer: AttnLayer, key: &mut [f32], angles: &mut [f32]) {
        if let Some(rope) = self.of(layer) {
            let angles = &mut angles[..rope.n_rot];
            rope.mean_angles(self.n_positions, angles);
            rope.turn(key, angles);
        }
    }
}

pub struct Rope {
    order: RopeOrder,
    n_rot: usize,
    /// Angle per position of each pair, in f64 because positions are large and angles are taken modulo a turn.
    freqs: Vec<f64>,
    /// What queries and keys are multiplied with as they are turned to their positions, and no later.
    magnitude: f32,
}

impl Rope {
    /// `factors`: what each frequency is divided by (`rope_freqs.weight`).
    pub fn new(config: &RopeConfig, factors: Option<&[f32]>) -> Self {
        let &RopeConfig { order, n_rot, freq_base, scaling, attn_factor } = config;
        let base = f64::from(freq_base);
        let freqs = (0..n_rot / 2).map(|i| {
            let freq = libm::pow(base, -2.0 * i as f64 / n_rot as f64) / factors.map_or(1.0, |f| f64::from(f[i]));
            match scaling {
                RopeScaling::None => freq,
                RopeScaling::Linear { factor } => freq / f64::from(factor),
                RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, .. } => {
                    // The pair that makes `turns` turns over the original context.
                    let pair = |turns: f32| {
                        let per_turn = f64::from(n_ctx_orig) / (f64::from(turns) * std::f64::consts::TAU);
                        n_rot as f64 * libm::log(per_turn) / (2.0 * libm::log(base))
                    };
                    let first = pair(beta_fast).floor().max(0.0);
                    let last = pair(beta_slow).ceil().min(n_rot as f64 - 1.0);
                    let slowed = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                    freq * (1.0 - slowed) + freq / f64::from(factor) * slowed
                }
            }
        });
        Rope { order, n_rot, freqs: freqs.collect(), magnitude: scaling.magnitude() as f32 * attn_factor }
    }

    /// Cosine and sine of each pair, interleaved, `n_rot` floats, for an angle of `steps` positions (negative turns back).
    pub fn angles(&self, steps: i64, out: &mut [f32]) {
        for (freq, pair) in self.freqs.iter().zip(out.as_chunks_mut::<2>().0) {
            let (sin, cos) = libm::sincos(steps as f64 * freq);
            *pair = [cos as f32, sin as f32];
        }
    }

    /// The mean of `angles` over positions 0 to `n` (taken as a continuum), times the magnitude: what is left of a vector, on
    /// average, that is turned to all of them. Fast pairs cancel out.
    pub fn mean_angles(&self, n: usize, out: &mut [f32]) {
        for (freq, pair) in self.freqs.iter().zip(out.as_chunks_mut::<2>().0) {
            let whole = n as f64 * freq;
            let (sin, cos) = libm::sincos(whole);
            let mean = if whole > 1e-6 { [sin / whole, (1.0 - cos) / whole] } else { [1.0, 0.0] };
            *pair = mean.map(|x| x as f32 * self.magnitude);
        }
    }

    /// Turns one head in place.
    pub fn turn(&self, head: &mut [f32], angles: &[f32]) {
        let (angles, _) = angles.as_chunks::<2>();
        match self.order {
            RopeOrder::Norm => {
                for (pair, &[cos, sin]) in head[..self.n_rot].as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
            RopeOrder::Neox => {
                let (low, high) = head[..self.n_rot].split_at_mut(self.n_rot / 2);
                for ((a, b), &[cos, sin]) in low.iter_mut().zip(high).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }

    /// Gives both of each pair their mean: of squares of elements, what they are over all turns.
    pub fn even_out(&self, squares: &mut [f32]) {
        for i in 0..self.n_rot / 2 {
            let (a, b) = match self.order {
                RopeOrder::Norm => (2 * i, 2 * i + 1),
                RopeOrder::Neox => (i, i + self.n_rot / 2),
            };
            let mean = 0.5 * (squares[a] + squares[b]);
            (squares[a], squares[b]) = (mean, mean);
        }
    }
}

/// What the positions of a pass do to queries and keys.
pub struct Angles {
    /// Cosines and sines, times the magnitude: `[n_rows][n_rot]` for each rope there is.
    turns: Vec<Buf<f32>>,
    /// What turned queries are multiplied with: `[n_rows]`
    q_scales: Buf<f32>,
    q_scale: f32,
    growth: Option<QueryGrowth>,
}

impl Angles {
    pub fn carve(arena: &mut Arena, config: &Config, n_rows: usize) -> Self {
        let ropes = [Some(&config.rope), config.local_rope.as_ref()].into_iter().flatten();
        let turns = ropes.map(|rope| arena.carve(n_rows * rope.n_rot)).collect();
        Angles { turns, q_scales: arena.carve(n_rows), q_scale: config.q_scale, growth: config.query_growth }
    }

    /// Those of the rows `rows`, whose positions begin with `first`.
    pub fn set(&mut self, ropes: &Ropes, rows: Range<usize>, first: Pos) {
        for (all, rope) in self.turns.iter_mut().zip(&ropes.ropes) {
            for (t, angles) in all.chunks_exact_mut(rope.n_rot).skip(rows.start).take(rows.len()).enumerate() {
                rope.angles(i64::from(first) + t as i64, angles);
                angles.iter_mut().for_each(|a| *a *= rope.magnitude);
            }
        }
        for (t, scale) in self.q_scales[rows].iter_mut().enumerate() {
            *scale = self.q_scale * self.growth.map_or(1.0, |growth| growth.at(first + t as Pos));
        }
    }

    /// Multiplies turned queries, `[rows][row]` of the pass from `first` on, as their positions ask for.
    pub fn scale(&self, first: usize, q: &mut [f32], row: usize) {
        for (q, scale) in q.chunks_exact_mut(row).zip(&self.q_scales[first..]) {
            q.iter_mut().for_each(|q| *q *= scale);
        }
    }

    /// Turns every head of every token of `x` = `[rows][n_head * head_dim]`, which are those of the pass from `first` on, as the layer
    /// does, if it does.
    pub fn turn(&self, ropes: &Ropes, layer: AttnLayer, first: usize, x: &mut [f32], row: usize, head_dim: usize) {
        let Some(i) = ropes.of[layer.0] else { return };
        let (rope, angles) = (&ropes.ropes[i], &self.turns[i]);
        for (token, angles) in x.chunks_exact_mut(row).zip(angles.chunks_exact(rope.n_rot).skip(first)) {
            for head in token.chunks_exact_mut(head_dim) {
                rope.turn(head, angles);
            }
        }
    }
}

#[cfg(test)]
#[path = "../../tests/unit/model/rope.rs"]
mod tests;
