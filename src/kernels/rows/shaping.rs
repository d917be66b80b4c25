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
mod tests {
    use super::*;
    use crate::kernels::hadamard;

    /// `n` elements whose squares are unlike each other, as heads' are.
    fn vector(rng: &mut fastrand::Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..4).map(|_| rng.f32() - 0.5).sum()).collect()
    }

    fn asked(rng: &mut fastrand::Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| (6.0 * (rng.f32() - 0.5)).exp()).collect()
    }

    /// The same by its definition, in f64: with G written out and its Cholesky factor, element by element.
    fn plane_in_full(x: &[f32], asked: &[f32], steps: &[f32], lowest: f64) -> Vec<f64> {
        let n = x.len();
        let h = |i: usize, j: usize| if (i & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
        let g = |i: usize, j: usize| (0..n).map(|k| h(i, k) * f64::from(asked[k]) * h(k, j)).sum::<f64>() / n as f64;
        // G = Uᵀ D U with U unit and lower: what an element answers for of those before it. From the last element up.
        let mut left: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| g(i, j)).collect()).collect();
        let mut share = vec![vec![0.0; n]; n];
        for i in (0..n).rev() {
            for j in 0..i {
                share[i][j] = left[i][j] / left[i][i];
            }
            for j in 0..i {
                for k in 0..i {
                    left[j][k] -= share[i][j] * left[i][k];
                }
            }
        }
        let mut errors = vec![0f64; n];
        for i in 0..n {
            let aim = f64::from(x[i]) + (0..i).map(|j| share[i][j] * errors[j]).sum::<f64>();
            let step = f64::from(steps[i / ROW_BLOCK]);
            let level = (aim / step).round_ties_even().clamp(lowest, -lowest - 1.0);
            errors[i] = f64::from(x[i]) - level * step;
        }
        errors
    }

    #[test]
    fn halves_of_halves_are_the_nearest_plane() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (ty, n) in [(RowType::Q4, 8), (RowType::Q5, 32), (RowType::Q6, 64), (RowType::Q5, 64)] {
            for _ in 0..20 {
                let (x, asked) = (vector(&mut rng, n), asked(&mut rng, n));
                let (mut row, mut errors) = (vec![0u8; ty.row_bytes(n)], x.clone());
                ty.store_shaped(&mut errors, &asked, n, &mut row);
                let steps: Vec<f32> = (0..n.div_ceil(ROW_BLOCK)).map(|b| ty.scale(&row, b)).collect();
                let want = plane_in_full(&x, &asked, &steps, -f64::from(ty.offset()));
                let mut back = vec![0f32; n];
                ty.load(&row, &mut back);
                for i in 0..n {
                    // A tie that f32 breaks the other way would change all that follows; none does here.
                    assert!(
                        (f64::from(errors[i]) - want[i]).abs() < 1e-4,
                        "{ty:?} of {n}, element {i}: {} {}",
                        errors[i],
                        want[i]
                    );
                    assert!(
                        (x[i] - back[i] - errors[i]).abs() < 1e-5,
                        "{ty:?} of {n}: what is left in x is not what the row lacks"
                    );
                }
            }
        }
    }

    /// Whatever the head: 80 elements are turned in parts of 16, the last block is half empty.
    #[test]
    fn errors_lie_where_little_is_asked() {
        let mut rng = fastrand::Rng::with_seed(2);
        for (n, part) in [(8, 8), (64, 64), (80, 16), (96, 32), (128, 128), (256, 256), (1024, 1024)] {
            for ty in [RowType::Q6, RowType::Q5, RowType::Q4] {
                let [mut shaped, mut plain] = [0f64; 2];
                for _ in 0..30 {
                    let (x, asked) = (vector(&mut rng, n), asked(&mut rng, n));
                    let (mut row, mut back) = (vec![0u8; ty.row_bytes(n)], vec![0f32; n]);
                    let mut cost = |row: &[u8]| {
                        ty.load(row, &mut back);
                        let errors = back.iter().zip(&x).map(|(back, x)| back - x).collect::<Vec<_>>();
                        let parts = errors.chunks(part).zip(asked.chunks(part)).map(|(errors, asked)| {
                            let mut errors = errors.to_vec();
                            hadamard(&mut errors);
                            errors.iter().zip(asked).map(|(e, asked)| f64::from(e * e * asked)).sum::<f64>()
                        });
                        parts.sum::<f64>()
                    };
                    ty.store(&x, &mut row);
                    plain += cost(&row);
                    ty.store_shaped(&mut x.clone(), &asked, part, &mut row);
                    shaped += cost(&row);
                }
                // The geometric mean of what is asked is 0.3 of the mean here; small parts have little to choose from.
                let most = if part <= 16 { 0.8 } else { 0.6 };
                assert!(shaped < most * plain, "{ty:?}, {n} in parts of {part}: {shaped} of {plain}");
            }
        }
    }

    /// Where all elements are asked alike there is nothing to shape.
    #[test]
    fn what_is_asked_alike_goes_to_the_nearest_levels() {
        let mut rng = fastrand::Rng::with_seed(3);
        let x = vector(&mut rng, 64);
        let (mut row, mut errors) = (vec![0u8; RowType::Q5.row_bytes(64)], x.clone());
        RowType::Q5.store_shaped(&mut errors, &[0.7; 64], 64, &mut row);
        for (b, errors) in errors.chunks(ROW_BLOCK).enumerate() {
            let inside =
                errors.iter().zip(&x[b * ROW_BLOCK..]).filter(|(_, x)| x.abs() < 15.0 * RowType::Q5.scale(&row, b).abs());
            assert!(inside.map(|(e, _)| e.abs()).all(|e| e <= 0.5001 * RowType::Q5.scale(&row, b).abs()));
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for x in [[0.0; 64], [f32::MAX; 64], [1e-30; 64], [f32::INFINITY; 64], [f32::NAN; 64]] {
            for asked in [[1e-30; 64], [1e30; 64]] {
                let (mut row, mut back) = (vec![0; RowType::Q5.row_bytes(64)], [f32::NAN; 64]);
                RowType::Q5.store_shaped(&mut x.clone(), &asked, 64, &mut row);
                RowType::Q5.load(&row, &mut back);
                assert!(back.iter().all(|b| b.is_finite()), "{} {}", x[0], asked[0]);
            }
        }
    }
}
