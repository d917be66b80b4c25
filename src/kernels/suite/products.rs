//! Products of matrices: each set against the scalar one, and the scalar one against f64.

use super::fixtures::{Bench, FLOATS, QUANTISED, bits, random_matrix, random_x};
use crate::gguf::quant::{GgmlType, dequantize_row};
use crate::kernels::Kernels;
use crate::kernels::spec::float::GEMM_FROM;
use crate::kernels::spec::packed;

#[test]
fn quantised_products_equal_the_scalar_set_bit_for_bit() {
    let scalar = Kernels::choose("scalar").unwrap();
    for ty in QUANTISED {
        let sizes: &[usize] = match ty.block_elems() {
            256 => &[256, 512, 1536],
            128 => &[128, 256, 640, 1536],
            64 => &[64, 128, 192, 576, 1536],
            _ => &[32, 64, 96, 576, 1536],
        };
        for &n_cols in sizes {
            let mut bench = Bench::new(25, n_cols);
            for n_rows in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48] {
                for n_tok in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 25] {
                    if n_cols > 256 && (n_rows > 17 || n_tok > 4) {
                        continue;
                    }
                    let w = random_matrix(ty, n_rows, n_cols, (n_rows * 1000 + n_cols) as u64);
                    let x = random_x(n_tok * n_cols, n_tok as u64);
                    let mut want = None;
                    for kernels in Kernels::available() {
                        // What is not fast goes to the scalar set, once is enough to see it.
                        if !kernels.is_fast(ty) && (n_rows, n_tok) != (17, 3) {
                            continue;
                        }
                        let want = want.get_or_insert_with(|| bench.matmul(scalar, ty, &w, n_cols, &x));
                        assert!(want.iter().all(|v| v.is_finite()));
                        let got = bench.matmul(kernels, ty, &w, n_cols, &x);
                        assert_eq!(bits(&got), bits(want), "{} {ty:?} {n_rows}x{n_cols}, {n_tok} tokens", kernels.name());
                    }
                }
            }
        }
    }
}

/// Packed matrices give the bits of those they were made of, on every set.
#[test]
fn packed_products_equal_those_of_the_file_bit_for_bit() {
    let scalar = Kernels::choose("scalar").unwrap();
    for ty in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0] {
        for n_cols in [32, 64, 96, 128, 160, 224, 576] {
            let mut bench = Bench::new(9, n_cols);
            for n_rows in [8, 16, 24, 72, 136] {
                for n_tok in [1, 2, 3, 4, 5, 9] {
                    if n_rows > 24 && n_cols % 96 != 0 {
                        continue;
                    }
                    let w = random_matrix(ty, n_rows, n_cols, (n_rows * 1000 + n_cols) as u64);
                    let x = random_x(n_tok * n_cols, n_tok as u64);
                    let mut packed = vec![0; w.len()];
                    let eight = w.len() / n_rows * packed::ROWS;
                    w.chunks(eight).zip(packed.chunks_mut(eight)).for_each(|(w, p)| packed::pack_rows(ty, w, p));
                    bench.packed = false;
                    let want = bench.matmul(scalar, ty, &w, n_cols, &x);
                    bench.packed = true;
                    for kernels in Kernels::available() {
                        let got = bench.matmul(kernels, ty, &packed, n_cols, &x);
                        assert_eq!(bits(&got), bits(&want), "{} {ty:?} {n_rows}x{n_cols}, {n_tok} tokens", kernels.name());
                    }
                }
            }
        }
    }
}

/// The scalar set itself, against plain f64 arithmetic on dequantised weights and activations.
#[test]
fn scalar_products_are_products() {
    let scalar = Kernels::choose("scalar").unwrap();
    for ty in QUANTISED.into_iter().chain(FLOATS) {
        let (n_rows, n_cols, n_tok) = (5, if ty.block_elems() > 32 { 512 } else { 96 }, 3);
        let w = random_matrix(ty, n_rows, n_cols, 7);
        let x = random_x(n_tok * n_cols, 8);
        let mut dense = vec![0f32; n_rows * n_cols];
        dequantize_row(ty, &w, &mut dense).unwrap();
        let mut bench = Bench::new(n_tok, n_cols);
        let got = bench.matmul(scalar, ty, &w, n_cols, &x);
        let acts = scalar.quantize(&mut bench.pool, &x, n_cols, &mut bench.acts);
        for t in 0..n_tok {
            for r in 0..n_rows {
                let a = |c: usize| match ty {
                    ty if FLOATS.contains(&ty) => f64::from(x[t * n_cols + c]),
                    _ => f64::from(acts.d[t * n_cols / 32 + c / 32]) * f64::from(acts.q[t * n_cols + c]),
                };
                let terms: Vec<f64> = (0..n_cols).map(|c| f64::from(dense[r * n_cols + c]) * a(c)).collect();
                let (want, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                let error = (f64::from(got[t * n_rows + r]) - want).abs();
                assert!(error <= 1e-5 * size + 1e-9, "{ty:?} row {r} token {t}: {error} of {want}");
            }
        }
    }
}

/// Float weights: few tokens bit for bit; batches go through `gemm`, which sums in another order: within the rounding
/// of f32 sums, 2^-24 for each of the terms at worst, in practice far below.
#[test]
fn float_products_equal_the_scalar_set() {
    let scalar = Kernels::choose("scalar").unwrap();
    for kernels in Kernels::available() {
        for ty in FLOATS {
            for (n_rows, n_cols) in [(1, 32), (16, 64), (17, 96), (33, 576)] {
                for n_tok in [1, 2, GEMM_FROM - 1, GEMM_FROM, 17] {
                    let w = random_matrix(ty, n_rows, n_cols, n_rows as u64);
                    let x = random_x(n_tok * n_cols, n_tok as u64);
                    let mut bench = Bench::new(n_tok, n_cols);
                    let want = bench.matmul(scalar, ty, &w, n_cols, &x);
                    let got = bench.matmul(kernels, ty, &w, n_cols, &x);
                    if n_tok < GEMM_FROM {
                        assert_eq!(bits(&got), bits(&want), "{} {ty:?}", kernels.name());
                    }
                    let largest = want.iter().fold(1f32, |a, v| a.max(v.abs()));
                    assert!(
                        got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5 * largest),
                        "{} {ty:?} {n_rows}x{n_cols} {n_tok}",
                        kernels.name()
                    );
                }
            }
        }
    }
}
