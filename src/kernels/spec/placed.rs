//! The specification of how keys that are read again from the past (`kv::past`) become what attention reads: out of the row
//! that they were stored in, to the basis that they had before they were rounded, to the position where they stand, to f16.
//! Element by element, so all sets give the same bits.

use crate::kernels::RopeOrder;
use crate::kernels::rows::codec::RowType;
use crate::kernels::rows::hadamard::{flip, hadamard};

/// What the keys of a head have in common as they are placed.
#[derive(Clone, Copy, Debug)]
pub struct Placing {
    /// How they lie in their rows.
    pub ty: RowType,
    /// Elements that a Hadamard matrix turned together before they were rounded; 0: none were.
    pub turned: usize,
    pub head_dim: usize,
    /// Elements that RoPE turns, in pairs of this order; 0: none.
    pub n_rot: usize,
    pub order: RopeOrder,
}

/// Cosines and then sines of the angles of `n_rot / 2` pairs, of two positions whose sum is where a key stands.
#[derive(Clone, Copy)]
pub struct AngleSum<'a>(pub &'a [f32], pub &'a [f32]);

/// Of a pair.
#[inline(always)]
fn cos_sin(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    (a.0 * b.0 - a.1 * b.1, a.1 * b.0 + a.0 * b.1)
}

impl AngleSum<'_> {
    /// Cosine and sine of each pair, interleaved, into `out`: as they are, or (`back`) of the opposite angle.
    pub fn interleaved(self, back: bool, out: &mut [f32]) {
        let sign = if back { -1.0 } else { 1.0 };
        let half = self.0.len() / 2;
        for (i, out) in out.as_chunks_mut::<2>().0[..half].iter_mut().enumerate() {
            let (cos, sin) = cos_sin((self.0[i], self.0[half + i]), (self.1[i], self.1[half + i]));
            *out = [cos, sign * sin];
        }
    }
}

/// Brings the key at the beginning of `row`, as it was stored less `mean` (empty: nothing), to the position of `angles`, and leaves it
/// there in f16. `key`: `[head_dim]`, left as anything.
#[inline(always)]
pub fn place(p: &Placing, row: &mut [u8], mean: &[f32], angles: AngleSum, key: &mut [f32]) {
    p.ty.load(row, key);
    for (key, mean) in key.iter_mut().zip(mean) {
        *key += mean;
    }
    if p.turned > 0 {
        for part in key.chunks_exact_mut(p.turned) {
            hadamard(part);
            flip(part);
        }
    }
    turn(p.order, &mut key[..p.n_rot], angles);
    RowType::F16.store(key, row);
}

#[inline(always)]
fn turn(order: RopeOrder, key: &mut [f32], AngleSum(a, b): AngleSum) {
    let half = key.len() / 2;
    let ((cos_a, sin_a), (cos_b, sin_b)) = (a[..2 * half].split_at(half), b[..2 * half].split_at(half));
    let angles = cos_a.iter().zip(sin_a).zip(cos_b.iter().zip(sin_b));
    let angles = angles.map(|((cos_a, sin_a), (cos_b, sin_b))| cos_sin((*cos_a, *sin_a), (*cos_b, *sin_b)));
    match order {
        RopeOrder::Norm => {
            for (pair, (cos, sin)) in key.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                let [x, y] = *pair;
                *pair = [x * cos - y * sin, x * sin + y * cos];
            }
        }
        RopeOrder::Neox => {
            let (low, high) = key.split_at_mut(half);
            for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(angles) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}
