//! Tests of `kernels::spec::attention`.

use super::*;
use crate::kernels::{Rows, weights_len};

#[test]
fn weights_are_exponentials() {
    let mut x = 0f32;
    while x > LEAST {
        let want = f64::from(x).exp();
        // The last term: n ln 2 with ln 2 in one f32, n up to 43.
        let error = (f64::from(weight(x)) - want).abs() / want;
        assert!(error < 2.5e-7 + 4e-8 * f64::from(-x), "{x}: {error}");
        x -= 0.000_731;
    }
    assert_eq!(weight(0.0), 1.0);
    assert_eq!(weight(f32::NEG_INFINITY), weight(LEAST));
}

#[test]
fn four_products_fit_into_sixteen_bits() {
    for ty in [RowType::Q6, RowType::Q5, RowType::Q4] {
        assert!(4 * steps(ty) * ty.offset() < 1 << 15, "{ty:?}");
    }
}

#[test]
fn a_query_in_integers_by_hand() {
    let mut q = [0f32; 40];
    (q[0], q[1], q[2], q[35]) = (-511.0, 255.5, 0.5, 1.0);
    let first = QueryBlock::<1>::new(RowType::Q5, &q, 40, 0);
    assert_eq!((&first.q[0][..4], first.d[0]), (&[-511, 256, 0, 0][..], 1.0)); // ties to even
    let second = QueryBlock::<1>::new(RowType::Q5, &q, 40, 1);
    assert_eq!((second.q[0][2], second.q[0][3], second.q[0][31]), (0, 511, 0));
}

/// Against f64 on the same stored rows: what rounding of queries adds is far below what rounding of keys did.
#[test]
fn attention_is_softmax() {
    let (hd, n_q, n_rows) = (80, 3, 100);
    for ty in RowType::ALL {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() - 0.5).collect() };
        let rows = |x: Vec<f32>| -> (Vec<u8>, Vec<f32>) {
            let (mut rows, mut back) = (vec![0; n_rows * ty.row_bytes(hd)], vec![0f32; n_rows * hd]);
            for (x, (row, back)) in x.chunks(hd).zip(rows.chunks_mut(ty.row_bytes(hd)).zip(back.chunks_mut(hd))) {
                ty.store(x, row);
                ty.load(row, back);
            }
            (rows, back)
        };
        let ((keys, k), (values, v)) = (rows(random(n_rows * hd)), rows(random(n_rows * hd)));
        let q: Vec<f32> = random(n_q * hd).iter().map(|q| 4.0 * q).collect();
        let (mut max, mut sum, mut acc) = (vec![0f32; n_q], vec![0f32; n_q], vec![0f32; n_q * hd]);
        let mut weights = vec![0f32; weights_len(n_q)];
        let (k_type, v_type, rows) = (ty, ty, Rows::Dense { first: 0 });
        let (q, keys, values) = (&q[..], &keys[..], &values[..]);
        let a = Attend { q, head_dim: hd, keys, values, k_type, v_type, rows, n_rows, wide: &[], soft_cap: 0.0 };
        attend(&a, &mut Partial { max: &mut max, sum: &mut sum, acc: &mut acc, weights: &mut weights });
        for n in 0..n_q {
            let dot = |j: usize| (0..hd).map(|e| f64::from(q[n * hd + e]) * f64::from(k[j * hd + e])).sum::<f64>();
            let scores: Vec<f64> = (0..n_rows).map(dot).collect();
            let highest = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
            let exps: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total: f64 = exps.iter().sum();
            // A random walk of 80 steps, each up to half a step of the query times an element: five times its deviation.
            let rounding = if ty == RowType::F16 { 0.0 } else { 8.0 / f64::from(steps(ty)) };
            assert!((f64::from(max[n]) - highest).abs() < 1e-5 + rounding, "{ty:?}: {} {highest}", max[n]);
            for j in 0..n_rows {
                let (got, want) = (f64::from(weights[n * CHUNK + j] / sum[n]), exps[j] / total);
                assert!((got - want).abs() < (2.0 * rounding + 1e-5) * want, "{ty:?} weight {j}: {got}, {want}");
            }
            for e in 0..hd {
                let want = (0..n_rows).map(|j| exps[j] * f64::from(v[j * hd + e])).sum::<f64>() / total;
                let got = f64::from(acc[n * hd + e] / sum[n]);
                assert!((got - want).abs() < 0.2 * rounding + 1e-5, "{ty:?} element {e}: {got}, {want}");
            }
        }
    }
}

#[test]
fn merging_chunks_is_softmax_over_all() {
    // Two chunks of one entry each, scores 1 and 3, values 10 and 20.
    let (mut running, mut acc) = ([f32::NEG_INFINITY, 0.0], [0f32]);
    for (score, value) in [(1.0, 10.0), (3.0, 20.0)] {
        let chunk = Partial { max: &mut [score], sum: &mut [1.0], acc: &mut [value], weights: &mut [] };
        merge(&mut running, &mut acc, &chunk);
    }
    let e = (-2f64).exp();
    assert!((f64::from(acc[0] / running[1]) - (10.0 * e + 20.0) / (e + 1.0)).abs() < 1e-5);
}
