//! One suite for every set: each that this CPU can run against the scalar one, bit for bit, at the sizes where tiles
//! begin and end, with outputs pre-filled with NaN so that a result nobody wrote cannot pass.

use super::kv_rows::RowType;
use super::*;
use crate::gguf::quant::GgmlType;

pub const QUANTISED: [GgmlType; 13] = {
    use GgmlType::*;
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K]
};
pub const FLOATS: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];

/// Where the f16 scales of a block stand.
fn scales_at(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::MXFP4 => &[],
        _ => &[0],
    }
}

/// Random bytes with finite f16 scales of either sign, and the extreme integers now and then.
pub fn random_matrix(ty: GgmlType, n_rows: usize, n_cols: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let f16 = |rng: &mut fastrand::Rng| half::f16::from_f32((rng.f32() - 0.5) * 0.1).to_le_bytes();
    let mut bytes = Vec::new();
    for _ in 0..n_rows * n_cols / ty.block_elems() {
        let start = bytes.len();
        match ty {
            GgmlType::F32 => bytes.extend((rng.f32() - 0.5).to_le_bytes()),
            GgmlType::F16 => bytes.extend(f16(&mut rng)),
            GgmlType::BF16 => bytes.extend(half::bf16::from_f32(rng.f32() - 0.5).to_le_bytes()),
            _ => {
                let extreme = rng.u8(..8);
                bytes.extend((0..ty.block_bytes()).map(|_| match extreme {
                    0 => 0x80,
                    1 => 0xff,
                    2 => 0x7f,
                    3 => 0,
                    _ => rng.u8(..),
                }));
                for at in scales_at(ty) {
                    bytes[start + at..][..2].copy_from_slice(&f16(&mut rng));
                }
                match ty {
                    // A scale of the size of activations, or one so small that it is subnormal.
                    GgmlType::MXFP4 => bytes[start] = if rng.u8(..8) == 0 { rng.u8(..4) } else { rng.u8(115..130) },
                    // The largest sum there is: elements of -32, scales of -128.
                    GgmlType::Q6_K if extreme == 3 => bytes[start + 192..start + 208].fill(0x80),
                    _ => {}
                }
            }
        }
    }
    bytes
}

pub fn random_x(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut x: Vec<f32> = (0..n).map(|_| (rng.f32() - 0.5) * 4.0).collect();
    // Blocks of zeros, and blocks at the limits of int8.
    for block in x.chunks_mut(BLOCK) {
        match rng.u8(..8) {
            0 => block.fill(0.0),
            1 => block.fill(1.0),
            2 => block.fill(-1.0),
            _ => {}
        }
    }
    x
}

pub struct Bench {
    pool: Pool,
    tiles: Vec<Buf<u8>>,
    acts: ActBuf,
    /// What the matrices are.
    packed: bool,
}

impl Bench {
    pub fn new(n_tok: usize, n_cols: usize) -> Self {
        let (tile, auto) = (tile_bytes(n_cols, true), Kernels::choose("auto").unwrap());
        let mut arena = Arena::take(2 * region_bytes::<u8>(tile) + ActBuf::bytes(auto, n_tok, n_cols, true)).unwrap();
        Bench {
            pool: Pool::new(2).unwrap(),
            tiles: vec![arena.carve(tile), arena.carve(tile)],
            acts: ActBuf::carve(auto, &mut arena, n_tok, n_cols, true),
            packed: false,
        }
    }

    pub fn matmul(&mut self, kernels: Kernels, ty: GgmlType, w: &[u8], n_cols: usize, x: &[f32]) -> Vec<f32> {
        let n_rows = w.len() / ty.block_bytes() * ty.block_elems() / n_cols;
        let n_tok = x.len() / n_cols;
        let mut out = vec![f32::NAN; n_tok * n_rows];
        for tile in &mut self.tiles {
            tile.fill(0xff);
        }
        let acts = kernels.quantize(&mut self.pool, x, n_cols, &mut self.acts);
        let w = Matrix { ty, n_rows, n_cols, data: w, packed: self.packed };
        kernels.matmul(&mut self.pool, &mut self.tiles, acts, &mut [Product { w, out: &mut out }]);
        out
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn quantised_products_equal_the_scalar_set_bit_for_bit() {
    let scalar = Kernels::choose("scalar").unwrap();
    for ty in QUANTISED {
        let sizes: &[usize] = if ty.block_elems() == 256 { &[256, 512, 1536] } else { &[32, 64, 96, 576, 1536] };
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
        let (n_rows, n_cols, n_tok) = (5, if ty.block_elems() == 256 { 512 } else { 96 }, 3);
        let w = random_matrix(ty, n_rows, n_cols, 7);
        let x = random_x(n_tok * n_cols, 8);
        let mut dense = vec![0f32; n_rows * n_cols];
        crate::gguf::quant::dequantize_row(ty, &w, &mut dense).unwrap();
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
                for n_tok in [1, 2, float::GEMM_FROM - 1, float::GEMM_FROM, 17] {
                    let w = random_matrix(ty, n_rows, n_cols, n_rows as u64);
                    let x = random_x(n_tok * n_cols, n_tok as u64);
                    let mut bench = Bench::new(n_tok, n_cols);
                    let want = bench.matmul(scalar, ty, &w, n_cols, &x);
                    let got = bench.matmul(kernels, ty, &w, n_cols, &x);
                    if n_tok < float::GEMM_FROM {
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

#[test]
fn elementwise_kernels_equal_the_scalar_set_bit_for_bit() {
    let scalar = Kernels::choose("scalar").unwrap();
    for kernels in Kernels::available() {
        for n in [1, 7, 8, 9, 31, 64, 576] {
            let (x, y) = (random_x(n, 1), random_x(n, 2));
            let run = |k: Kernels| {
                let mut norm = vec![f32::NAN; n];
                k.rms_norm(&x, &y, 1e-5, &mut norm);
                let (mut sum, mut silu, mut gelu, mut capped) = (x.clone(), x.clone(), x.clone(), x.clone());
                k.add(&mut sum, &y);
                k.silu_mul(&mut silu, &y);
                k.gelu_mul(&mut gelu, &y);
                k.soft_cap(&mut capped, 1.5);
                [bits(&norm), bits(&sum), bits(&silu), bits(&gelu), bits(&capped), bits(&[k.l2_norm(&x)])]
            };
            assert_eq!(run(kernels), run(scalar), "{} n = {n}", kernels.name());
        }
        for n_cols in [32, 64, 576] {
            let x = random_x(3 * n_cols, 3);
            let run = |k: Kernels| {
                let mut bench = Bench::new(3, n_cols);
                let a = k.quantize(&mut bench.pool, &x, n_cols, &mut bench.acts);
                (a.q.to_vec(), bits(a.d), bits(a.s), a.sum.to_vec(), a.sum16.to_vec())
            };
            assert_eq!(run(kernels), run(scalar), "{} n_cols = {n_cols}", kernels.name());
        }
    }
}

#[test]
fn the_hadamard_turn_is_the_portable_one_bit_for_bit() {
    for n in [8, 16, 32, 64, 128, 256, 512, 1024] {
        let (mut got, mut want) = (random_x(n, 1), random_x(n, 1));
        hadamard(&mut got);
        portable::hadamard(&mut want);
        assert_eq!(bits(&got), bits(&want), "{n}");
    }
}

#[test]
fn rows_in_f16_are_the_portable_ones() {
    let special = [0.0, -0.0, 1e9, -1e9, f32::INFINITY, f32::NAN, 65_519.0, 1e-8, -3e-8, 6.1e-5, 1.0 / 3.0, 1.000_488_3];
    for n in [8, 16, 80, 88] {
        let mut x = random_x(n, 9);
        x[..n.min(special.len())].copy_from_slice(&special[..n.min(special.len())]);
        let (mut got, mut want) = (vec![0; 2 * n], vec![0; 2 * n]);
        store_f16(&x, &mut got);
        kv_rows::store_f16(&x, &mut want);
        assert_eq!(got, want, "{n}");
    }
}

#[test]
fn attention_equals_the_scalar_set_bit_for_bit_and_slot_tables_do_not_matter() {
    let scalar = Kernels::choose("scalar").unwrap();
    let types = RowType::ALL.into_iter().flat_map(|k| RowType::ALL.map(|v| (k, v)));
    for (k_type, v_type) in types {
        for head_dim in [8, 64, 80, 128, 256] {
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
                    let at = |rows, n_rows, wide| Attend {
                        q: &q,
                        head_dim,
                        keys: &keys,
                        values: &values,
                        k_type,
                        v_type,
                        rows,
                        n_rows,
                        wide,
                        soft_cap,
                    };
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

#[test]
fn chunks_are_merged_and_what_they_gave_is_counted_as_in_the_scalar_set_bit_for_bit() {
    for (n_q, head_dim) in [(1, 8), (3, 64), (8, 80)] {
        let run = |k: Kernels| {
            let (mut running, mut acc) = (vec![f32::NEG_INFINITY; 2 * n_q], vec![f32::NAN; n_q * head_dim]);
            let mut given = Vec::new();
            for chunk in 0..3 {
                let [mut max, sum, mut chunk_acc] =
                    [(1, 10), (1, 20), (head_dim, 30)].map(|(n, seed)| random_x(n * n_q, seed + chunk));
                let mut sum: Vec<f32> = sum.iter().map(|sum| 1.0 + sum * sum).collect();
                k.merge(&mut running, &mut acc, &Partial { max: &mut max, sum: &mut sum, acc: &mut chunk_acc, weights: &mut [] });
                for n in [1, 9, CHUNK] {
                    let mut total = vec![f32::NAN; n];
                    k.received(&max, &random_x(weights_len(n_q), 40 + chunk), &running, &mut total);
                    given.extend(total);
                }
            }
            [bits(&running), bits(&acc), bits(&given)]
        };
        let want = run(Kernels::choose("scalar").unwrap());
        assert!(want.iter().flatten().all(|&b| f32::from_bits(b).is_finite()));
        for kernels in Kernels::available() {
            assert_eq!(run(kernels), want, "{} of {n_q} heads of {head_dim}", kernels.name());
        }
    }
}

/// CI runs the suites on emulated CPUs and says which set must have been picked on each.
#[test]
fn the_expected_set_is_picked() {
    if let Ok(expected) = std::env::var("LOWKEY_EXPECT_KERNELS") {
        assert_eq!(Kernels::choose("auto").unwrap().name(), expected);
    }
}
