//! Runs one kernel again and again, for counting its instructions under an emulator or timing it.
//!
//! `kernel_count SET {matmul|packed} TYPE N_ROWS N_COLS N_TOK TIMES`, `kernel_count SET {quantize|rms_norm|silu_mul|shares} N TIMES`,
//! `kernel_count SET {attend|wide} KV_TYPE HEAD_DIM N_QUERIES N_ROWS TIMES` (rows where they lie, or widened once), `kernel_count
//! SET scan HEAD_DIM N_QUERIES TIMES` (a tile of the index of the past), or `kernel_count SET {store|shape|turn} KV_TYPE HEAD_DIM
//! TIMES`, which round a value into its row, round a key of few bits into its row, and turn it (the same on every set). The
//! difference of two runs, divided by the difference of TIMES, is the cost of one. Prints a hash of the result, which is the same
//! for every set.

use lowkey::gguf::quant::GgmlType;
use lowkey::kernels::{
    ActBuf, Asked, Attend, Kernels, Matrix, Partial, Product, Rows, SCAN_CHUNKS, SCAN_TILE, packed, scan_tile_bytes, tile_bytes,
};
use lowkey::kv::KvType;
use lowkey::mem::arena::Arena;
use lowkey::mem::pool::Pool;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [set, kernel, rest @ ..] = &args[..] else { panic!("SET KERNEL …") };
    let kernels = Kernels::choose(set).expect("a set of this CPU");
    let numbers: Vec<usize> = rest.iter().filter_map(|n| n.parse().ok()).collect();
    let result = match (&kernel[..], &numbers[..]) {
        ("matmul" | "packed", &[n_rows, n_cols, n_tok, times]) => {
            matmul(kernels, kernel == "packed", &rest[0], n_rows, n_cols, n_tok, times)
        }
        ("attend" | "wide", &[head_dim, n_q, n_rows, times]) => {
            attend(kernels, kernel == "wide", &rest[0], head_dim, n_q, n_rows, times)
        }
        ("scan", &[head_dim, n_q, times]) => scan(kernels, head_dim, n_q, times),
        ("store", &[head_dim, times]) => store(&rest[0], head_dim, times),
        ("shape", &[head_dim, times]) => shape(&rest[0], head_dim, times),
        ("turn", &[head_dim, times]) => turn(&rest[0], head_dim, times),
        (_, &[n, times]) => elementwise(kernels, kernel, n, times),
        _ => panic!("SET KERNEL …"),
    };
    let hash = result.iter().fold(0u64, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3));
    println!("{hash:016x}");
}

fn random(n: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..n).map(|_| rng.f32() - 0.5).collect()
}

fn matmul(kernels: Kernels, is_packed: bool, ty: &str, n_rows: usize, n_cols: usize, n_tok: usize, times: usize) -> Vec<f32> {
    let ty = *GgmlType::ALL.iter().find(|t| t.name() == ty).expect("a type of ggml");
    let mut rng = fastrand::Rng::with_seed(1);
    let mut data: Vec<u8> = (0..n_rows * n_cols / ty.block_elems() * ty.block_bytes()).map(|_| rng.u8(..)).collect();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        // Scales and minimums are f16 at the start of a block: keep them finite and small.
        for at in [1, 3] {
            block[at.min(block.len() - 1)] &= 0x2b;
        }
    }
    if is_packed {
        let native = data.clone();
        let eight = native.len() / n_rows * packed::ROWS;
        native.chunks(eight).zip(data.chunks_mut(eight)).for_each(|(rows, packed)| packed::pack_rows(ty, rows, packed));
    }
    let x = random(n_tok * n_cols);
    let tile = tile_bytes(n_cols, true);
    let (mut tiles, mut acts) =
        Arena::fill(|arena| ([arena.carve::<u8>(tile)], ActBuf::carve(kernels, arena, n_tok, n_cols, true))).expect("memory");
    let mut pool = Pool::new(1).expect("a pool");
    let mut out = vec![0f32; n_tok * n_rows];
    let w = Matrix { ty, n_rows, n_cols, data: &data, packed: is_packed };
    let acts = kernels.quantize(&mut pool, &x, n_cols, &mut acts);
    for _ in 0..times {
        kernels.matmul(&mut pool, &mut tiles, acts, &mut [Product { w, out: &mut out }]);
    }
    out
}

fn elementwise(kernels: Kernels, kernel: &str, n: usize, times: usize) -> Vec<f32> {
    let (mut x, mut out) = (random(n), vec![0f32; n]);
    let mut acts = Arena::fill(|arena| ActBuf::carve(kernels, arena, 1, n, true)).expect("memory");
    let mut pool = Pool::new(1).expect("a pool");
    for _ in 0..times {
        match kernel {
            "quantize" => out[0] = kernels.quantize(&mut pool, &x, n, &mut acts).d[0],
            "rms_norm" => kernels.rms_norm(&x, &x, 1e-5, &mut out),
            "silu_mul" => kernels.silu_mul(&mut out, &x),
            "shares" => kernels.add_shares(&mut x, &mut out),
            _ => panic!("'{kernel}' is no kernel"),
        }
    }
    out
}

fn scan(kernels: Kernels, head_dim: usize, n_q: usize, times: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut tile: Vec<u8> = (0..scan_tile_bytes(head_dim)).map(|_| rng.u8(..)).collect();
    for scale in tile[head_dim / 4 * SCAN_TILE..].as_chunks_mut::<2>().0 {
        scale[1] &= 0x3b;
    }
    let q: Vec<i8> = (0..n_q * head_dim).map(|_| rng.i8(-20..=20)).collect();
    let sum: Vec<i32> = q.chunks_exact(head_dim).map(|q| q.iter().map(|&q| i32::from(q)).sum()).collect();
    let scale = random(n_q);
    let mut out = vec![0f32; n_q * SCAN_CHUNKS];
    for _ in 0..times {
        let asked = Asked { q: &q, scale: &scale, sum: &sum, head_dim };
        kernels.scan(std::hint::black_box(&tile), !0x0f00_0201, &asked, SCAN_CHUNKS, &mut out);
    }
    out
}

fn store(ty: &str, head_dim: usize, times: usize) -> Vec<f32> {
    let ty = ty.parse::<KvType>().expect("a type of keys and values").row();
    let (x, mut row) = (random(head_dim), vec![0; ty.row_bytes(head_dim)]);
    for _ in 0..times {
        ty.store(std::hint::black_box(&x), &mut row);
    }
    row.into_iter().map(f32::from).collect()
}

fn shape(ty: &str, head_dim: usize, times: usize) -> Vec<f32> {
    let ty = ty.parse::<KvType>().expect("a type of keys and values");
    assert!(ty.is_turned(), "errors are shaped in types of few bits");
    let (x, mut row) = (random(head_dim), vec![0; ty.row().row_bytes(head_dim)]);
    let asked: Vec<f32> = x.iter().map(|x| 0.02 + x * x).collect();
    let mut key = x.clone();
    for _ in 0..times {
        key.copy_from_slice(std::hint::black_box(&x));
        ty.row().store_shaped(&mut key, &asked, KvType::part(head_dim), &mut row);
    }
    row.into_iter().map(f32::from).collect()
}

fn turn(ty: &str, head_dim: usize, times: usize) -> Vec<f32> {
    let (ty, mut x) = (ty.parse::<KvType>().expect("a type of keys and values"), random(head_dim));
    for _ in 0..times {
        ty.turn(std::hint::black_box(&mut x), head_dim);
    }
    x
}

fn attend(kernels: Kernels, is_wide: bool, ty: &str, head_dim: usize, n_q: usize, n_rows: usize, times: usize) -> Vec<f32> {
    let ty = ty.parse::<KvType>().expect("a type of keys and values").row();
    let mut cache = vec![0; n_rows * ty.row_bytes(head_dim)];
    for (x, row) in random(n_rows * head_dim).chunks_exact(head_dim).zip(cache.chunks_exact_mut(ty.row_bytes(head_dim))) {
        ty.store(x, row);
    }
    let q = random(n_q * head_dim);
    let (mut max, mut sum, mut acc) = (vec![0f32; n_q], vec![0f32; n_q], vec![0f32; n_q * head_dim]);
    let rows = Rows::Dense { first: 0 };
    let mut a =
        Attend { q: &q, head_dim, keys: &cache, values: &cache, k_type: ty, v_type: ty, rows, n_rows, wide: &[], soft_cap: 0.0 };
    let mut wide = vec![0f32; kernels.wide_len(head_dim)];
    if is_wide {
        kernels.widen(&a, 0..n_rows, &mut wide);
        a.wide = &wide;
    }
    for _ in 0..times {
        kernels.attend(&a, &mut Partial { max: &mut max, sum: &mut sum, acc: &mut acc, weights: &mut [] });
    }
    acc
}
