//! Attention over chunks, and what becomes of them.

use super::fixtures::{bits, random_x};
use crate::kernels::rows::codec::RowType;
use crate::kernels::{Attend, CHUNK, Kernels, Partial, Rows, weights_len};

#[test]
fn attention_equals_the_scalar_set_bit_for_bit_and_slot_tables_do_not_matter() {
    let scalar = Kernels::choose("scalar").unwrap();
    let types = RowType::ALL.into_iter().flat_map(|k| RowType::ALL.map(|v| (k, v)));
    for (k_type, v_type) in types {
        for head_dim in [8, 64, 80, 128, 256, 512] {
            let rows_of = |ty: RowType, seed| -> Vec<u8> {
                let mut rows = vec![0; (CHUNK + 2) * ty.row_bytes(head_dim)];
                let x = random_x((CHUNK + 2) * head_dim, seed);
                for (x, row) in x.chunks_exact(head_dim).zip(rows.chunks_exact_mut(ty.row_bytes(head_dim))) {
                    ty.store(x, row);
                }
                rows
            };
            let (keys, values) = (rows_of(k_type, 4), rows_of(v_type, 5));
            // All shapes where keys and values are alike; where they are not, the loops are the same ones.
            let (n_qs, n_rows): (&[usize], &[usize]) = match k_type == v_type {
                true => (&[1, 2, 3, 4, 5, 8], &[1, 2, 7, 8, 9, 127, 128]),
                false => (&[3], &[9]),
            };
            for (&n_q, &n_rows) in n_qs.iter().flat_map(|q| n_rows.iter().map(move |r| (q, r))) {
                let q = random_x(n_q * head_dim, 6);
                let run = |k: Kernels, rows: Rows, is_wide: bool, soft_cap: f32| {
                    let (mut max, mut sum, mut acc) = (vec![f32::NAN; n_q], vec![f32::NAN; n_q], vec![f32::NAN; n_q * head_dim]);
                    let mut weights = vec![f32::NAN; weights_len(n_q)];
                    let (q, keys, values) = (&q[..], &keys[..], &values[..]);
                    let at =
                        |rows, n_rows, wide| Attend { q, head_dim, keys, values, k_type, v_type, rows, n_rows, wide, soft_cap };
                    let mut wide = vec![0f32; k.wide_len(head_dim)];
                    if is_wide {
                        // Other rows at first, which all but the wanted ones stay.
                        k.widen(&at(Rows::Dense { first: 0 }, CHUNK, &[]), 0..CHUNK, &mut wide);
                        k.widen(&at(rows, n_rows, &[]), 0..n_rows, &mut wide);
                    }
                    let a = at(rows, n_rows, if is_wide { &wide } else { &[] });
                    k.attend(&a, &mut Partial { max: &mut max, sum: &mut sum, acc: &mut acc, weights: &mut weights });
                    let weights: Vec<f32> = weights.chunks(CHUNK).flat_map(|w| &w[..n_rows]).copied().collect();
                    (bits(&max), bits(&sum), bits(&acc), bits(&weights))
                };
                let table: Vec<u32> = (2..2 + n_rows as u32).collect();
                for soft_cap in [0.0, 5.0] {
                    let want = run(scalar, Rows::Dense { first: 2 }, false, soft_cap);
                    assert!(want.2.iter().chain(&want.3).all(|&b| f32::from_bits(b).is_finite()));
                    assert!(soft_cap == 0.0 || want.0.iter().all(|&max| f32::from_bits(max) <= soft_cap));
                    for kernels in Kernels::available() {
                        let what = format!("{} {k_type:?} {v_type:?} head {head_dim} n_q {n_q} rows {n_rows}", kernels.name());
                        assert_eq!(run(kernels, Rows::Dense { first: 2 }, false, soft_cap), want, "{what}, cap {soft_cap}");
                        assert_eq!(run(kernels, Rows::Table(&table), false, soft_cap), want, "{what}, by table, cap {soft_cap}");
                        assert_eq!(run(kernels, Rows::Table(&table), true, soft_cap), want, "{what}, widened, cap {soft_cap}");
                    }
                }
            }
        }
    }
}

/// Three chunks are merged and what they gave is counted: by the scalar set as f64 has it, by the others with the same bits.
#[test]
fn chunks_are_merged_and_counted() {
    const N_CHUNK: usize = 3;
    for (n_q, head_dim) in [(1, 8), (3, 64), (8, 80)] {
        let maxes: Vec<Vec<f32>> = (0..N_CHUNK).map(|c| random_x(n_q, 10 + c as u64)).collect();
        let sums: Vec<Vec<f32>> =
            (0..N_CHUNK).map(|c| random_x(n_q, 20 + c as u64).iter().map(|x| 1.0 + x * x).collect()).collect();
        let accs: Vec<Vec<f32>> = (0..N_CHUNK).map(|c| random_x(n_q * head_dim, 30 + c as u64)).collect();
        let weights = random_x(weights_len(n_q), 40);
        let run = |k: Kernels| {
            let (mut running, mut acc) = (vec![f32::NEG_INFINITY; 2 * n_q], vec![f32::NAN; n_q * head_dim]);
            for c in 0..N_CHUNK {
                let (max, sum, acc_c) = (&mut maxes[c].clone(), &mut sums[c].clone(), &mut accs[c].clone());
                k.merge(&mut running, &mut acc, &Partial { max, sum, acc: acc_c, weights: &mut [] });
            }
            let given = [1, 9, CHUNK].map(|n| {
                let mut total = vec![f32::NAN; n];
                k.received(&maxes[0], &weights, &running, &mut total);
                total
            });
            [running, acc, given.concat()]
        };
        let want = run(Kernels::choose("scalar").unwrap());
        let close = |got: f32, want: f64, what: &str| {
            assert!((f64::from(got) - want).abs() < 1e-4 * (1.0 + want.abs()), "{what} of {n_q} heads: {got}, {want}");
        };
        let mut given = [0f64; CHUNK];
        for n in 0..n_q {
            let highest = maxes.iter().map(|max| f64::from(max[n])).fold(f64::MIN, f64::max);
            let share = |c: usize| (f64::from(maxes[c][n]) - highest).exp();
            let sum: f64 = (0..N_CHUNK).map(|c| share(c) * f64::from(sums[c][n])).sum();
            close(want[0][n], highest, "highest score");
            close(want[0][n_q + n], sum, "sum");
            for e in n * head_dim..(n + 1) * head_dim {
                close(want[1][e], (0..N_CHUNK).map(|c| share(c) * f64::from(accs[c][e])).sum(), "values");
            }
            for (given, weight) in given.iter_mut().zip(&weights[n * CHUNK..]) {
                *given += f64::from(*weight) * share(0) / sum;
            }
        }
        want[2]
            .iter()
            .zip(given[..1].iter().chain(&given[..9]).chain(&given))
            .for_each(|(got, want)| close(*got, *want, "received"));
        for kernels in Kernels::available() {
            assert_eq!(run(kernels).map(|x| bits(&x)), want.clone().map(|x| bits(&x)), "{}: {n_q} x {head_dim}", kernels.name());
        }
    }
}
