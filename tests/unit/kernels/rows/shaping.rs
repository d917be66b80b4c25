//! Tests of `kernels::rows::shaping`.

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
                assert!((f64::from(errors[i]) - want[i]).abs() < 1e-4, "{ty:?} of {n}, element {i}: {} {}", errors[i], want[i]);
                assert!((x[i] - back[i] - errors[i]).abs() < 1e-5, "{ty:?} of {n}: what is left in x is not what the row lacks");
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
        let inside = errors.iter().zip(&x[b * ROW_BLOCK..]).filter(|(_, x)| x.abs() < 15.0 * RowType::Q5.scale(&row, b).abs());
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
