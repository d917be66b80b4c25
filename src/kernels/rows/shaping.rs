//! Rounding a key so that its errors lie where queries do not look.
//!
//! A query tells of the error `e` of a key only `q · e`: over all queries its square is `eᵀ G e`, with the mean of `q qᵀ` for G. To each
//! element the nearest level is the best for G = 1. Otherwise what one element is off by is made up for by those that are rounded after
//! it: element by element, each aims at its own place less what the errors so far have in common with it under G. That is Babai's nearest
//! plane, as GPTQ (arXiv 2210.17323) has it for weights; the error falls from the mean of G's eigenvalues to their geometric mean. Nothing
//! is stored of it, and readers know nothing of it.
//!
//! Here G is diagonal before keys are turned by a Hadamard matrix H (`asked`: what each element of the queries squares to in the mean), so
//! it is H D H for the row: of two by two blocks A and B, which are of that kind too. So the plane is found in halves, each half in halves,
//! and G is never there: for `asked` = `[u, v]`, A is H ((u + v) / 2) H, B is H ((u - v) / 2) H. Given the error e of the first half, the
//! second is off least if it aims A⁻¹ B e away, and each error of it costs A; so that of the first costs A - B A⁻¹ B, which is
//! H (2uv / (u + v)) H.

use half::f16;

use super::codec::{ROUND, ROW_BLOCK, RowType, bounded_level};
use crate::kernels::MAX_HEAD_DIM;

impl RowType {
    /// `store` for a type of few bits and a row that was turned in parts of `part` elements, a power of two from 8 on, its errors shaped by
    /// what is `asked` of each element before the turn, all above nought. Leaves in `x` what the row lacks.
    pub fn store_shaped(self, x: &mut [f32], asked: &[f32], part: usize, row: &mut [u8]) {
        let n_blocks = Self::n_blocks(x.len());
        let mut scales = [f16::ZERO; MAX_HEAD_DIM / ROW_BLOCK];
        let mut steps = [Step::default(); MAX_HEAD_DIM / ROW_BLOCK];
        let mut levels = [self.offset() as u8; MAX_HEAD_DIM];
        for (x, (scale, step)) in x.chunks_mut(ROW_BLOCK).zip(scales.iter_mut().zip(&mut steps)) {
            *scale = self.step_for(x).d;
            let size = scale.to_f32();
            *step = Step { size, inverse: if size == 0.0 { 0.0 } else { 1.0 / size } };
        }
        let plane = Plane { lowest: -(self.offset() as f32), steps: &steps };
        let parts = x.chunks_exact_mut(part).zip(asked.chunks_exact(part)).zip(levels.chunks_exact_mut(part));
        for (i, ((x, asked), levels)) in parts.enumerate() {
            plane.round(x, asked, levels, i * part);
        }
        for (b, (levels, scale)) in levels.as_chunks::<ROW_BLOCK>().0.iter().zip(&scales[..n_blocks]).enumerate() {
            self.put(row, n_blocks, b, *scale, levels);
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Step {
    size: f32,
    inverse: f32,
}

struct Plane<'a> {
    lowest: f32,
    /// Of each block.
    steps: &'a [Step],
}

/// Rounds `$n` elements by halves.
macro_rules! by_halves {
    ($name:ident, $n:literal, $half:ident, $(#[$inline:meta])?) => {
        $(#[$inline])?
        fn $name(&self, x: &mut [f32; $n], asked: &[f32; $n], levels: &mut [u8; $n], at: usize) {
            const HALF: usize = $n / 2;
            let ([x, y], [u, v], [first, second]) = (halves_mut(x), halves::<_, $n, HALF>(asked), halves_mut(levels));
            // What each half is asked, and what share of the first half's errors the second makes up for. (Loops, for `array::from_fn` is a
            // call an element.)
            let [mut ours, mut theirs, mut share] = [[0f32; HALF]; 3];
            for i in 0..HALF {
                let both = u[i] + v[i];
                let inverse = 1.0 / both;
                (ours[i], theirs[i]) = (2.0 * u[i] * v[i] * inverse, 0.5 * both);
                share[i] = (u[i] - v[i]) * inverse * (1.0 / HALF as f32);
            }
            self.$half(x, &ours, first, at);
            let mut due = *x;
            butterflies(&mut due);
            due.iter_mut().zip(&share).for_each(|(due, share)| *due *= share);
            butterflies(&mut due);
            y.iter_mut().zip(&due).for_each(|(y, due)| *y += due);
            self.$half(y, &theirs, second, at + HALF);
            y.iter_mut().zip(&due).for_each(|(y, due)| *y -= due);
        }
    };
}

impl Plane<'_> {
    /// Levels of the elements `x` from `at` on, `asked` of those they were made of; leaves their errors in `x`.
    fn round(&self, x: &mut [f32], asked: &[f32], levels: &mut [u8], at: usize) {
        macro_rules! call {
            ($($n:literal $name:ident),*) => {
                match x.len() {
                    $($n => self.$name(array_mut(x), array(asked), array_mut(levels), at),)*
                    n => unreachable!("parts of {n}"),
                }
            };
        }
        call!(8 by_8, 16 by_16, 32 by_32, 64 by_64, 128 by_128, 256 by_256, 512 by_512, 1024 by_1024)
    }

    by_halves!(by_1024, 1024, by_512,);
    by_halves!(by_512, 512, by_256,);
    by_halves!(by_256, 256, by_128,);
    by_halves!(by_128, 128, by_64,);
    by_halves!(by_64, 64, by_32,);
    by_halves!(by_32, 32, by_16,);
    by_halves!(by_16, 16, by_8,);

    fn by_8(&self, x: &mut [f32; 8], asked: &[f32; 8], levels: &mut [u8; 8], at: usize) {
        Grid { lowest: self.lowest, step: self.steps[at / ROW_BLOCK] }.by_8(x, asked, levels, at);
    }
}

/// The levels of one block.
#[derive(Clone, Copy)]
struct Grid {
    lowest: f32,
    step: Step,
}

impl Grid {
    by_halves!(by_8, 8, by_4, #[inline(always)]);
    by_halves!(by_4, 4, by_2, #[inline(always)]);
    by_halves!(by_2, 2, nearest, #[inline(always)]);

    #[inline(always)]
    fn nearest(&self, [x]: &mut [f32; 1], _: &[f32; 1], [to]: &mut [u8; 1], _: usize) {
        let nearest = bounded_level(*x * self.step.inverse, self.lowest);
        *to = (nearest.to_bits() - (ROUND + self.lowest).to_bits()) as u8;
        *x -= (nearest - ROUND) * self.step.size;
    }
}

/// `hadamard`, but for a factor: each time the root of the order too large.
#[inline(always)]
fn butterflies<const N: usize>(x: &mut [f32; N]) {
    let mut half = 1;
    while half < N {
        for first in (0..N).step_by(2 * half) {
            for i in first..first + half {
                (x[i], x[i + half]) = (x[i] + x[i + half], x[i] - x[i + half]);
            }
        }
        half *= 2;
    }
}

fn array<T, const N: usize>(x: &[T]) -> &[T; N] {
    x.try_into().expect("as long as was matched")
}

fn array_mut<T, const N: usize>(x: &mut [T]) -> &mut [T; N] {
    x.try_into().expect("as long as was matched")
}

#[inline(always)]
fn halves<T, const N: usize, const H: usize>(x: &[T; N]) -> [&[T; H]; 2] {
    const { assert!(N == 2 * H) }
    let (a, b) = x.split_at(H);
    [array(a), array(b)]
}

#[inline(always)]
fn halves_mut<T, const N: usize, const H: usize>(x: &mut [T; N]) -> [&mut [T; H]; 2] {
    const { assert!(N == 2 * H) }
    let (a, b) = x.split_at_mut(H);
    [array_mut(a), array_mut(b)]
}

#[cfg(test)]
#[path = "../../../tests/unit/kernels/rows/shaping.rs"]
mod tests;
