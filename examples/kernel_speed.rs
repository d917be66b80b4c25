//! How fast each kernel set multiplies the matrices of SmolLM2-135M on one thread, for one token and for a batch, and
//! what that implies for the tokens per second of the whole model (attention and the small operations left out).
//!
//! Every matrix is timed on its own, sets and types take turns, and the median counts: other processes share the cores.
//! Superblocks of 256 columns do not fill 576: their matrices have 512, and the time is scaled up.
//! `cargo run --release --example kernel_speed [ROUNDS [TYPE,TYPE…]]`

use std::time::Instant;

use lowkey::gguf::quant::GgmlType;
use lowkey::kernels::{ActBuf, BLOCK, Kernels, Matrix, Product, tile_bytes};
use lowkey::mem::arena::{Arena, Buf};
use lowkey::mem::pool::Pool;

const N_LAYER: usize = 30;
const N_EMBD: usize = 576;
const N_KV: usize = 192;
const N_FF: usize = 1536;
const N_VOCAB: usize = 49152;
const BATCH: usize = 64;
/// Q8_0 last: the output matrix of every estimate.
const TYPES: [GgmlType; 20] = {
    use GgmlType::*;
    [
        Q4_1, Q4_0, Q5_0, Q5_1, IQ4_NL, MXFP4, IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S,
        TQ1_0, TQ2_0, Q8_0,
    ]
};

/// Name, rows, columns, and how many such matrices a token meets. All lie one after the other, so that decoding reads
/// them from memory, not from a cache. The output matrix is cut into pieces of 1536 rows.
const MATRICES: [(&str, usize, usize, usize); 5] = [
    ("q, o", N_EMBD, N_EMBD, 2 * N_LAYER),
    ("k, v", N_KV, N_EMBD, 2 * N_LAYER),
    ("gate, up", N_FF, N_EMBD, 2 * N_LAYER),
    ("down", N_EMBD, N_FF, N_LAYER),
    ("output", N_VOCAB / 32, N_EMBD, 32),
];

/// Where the f16 scales of a block stand.
fn scales_at(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::TQ1_0 => &[52],
        GgmlType::TQ2_0 => &[64],
        GgmlType::MXFP4 => &[],
        _ => &[0],
    }
}

/// Blocks of random elements with small scales.
fn random_matrix(ty: GgmlType, elems: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(elems / ty.block_elems() * ty.block_bytes()).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in scales_at(ty) {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(rng.f32() * 0.01).to_le_bytes());
        }
        if ty == GgmlType::MXFP4 {
            block[0] = rng.u8(110..120);
        }
    }
    bytes
}

struct Run {
    pool: Pool,
    tiles: [Buf<u8>; 1],
    acts: ActBuf,
    x: Vec<f32>,
    out: Vec<f32>,
}

impl Run {
    fn new() -> Run {
        let (tile, kernels) = (tile_bytes(N_FF, false), Kernels::choose("auto").expect("some set"));
        let x = std::iter::repeat_with(|| fastrand::f32() - 0.5).take(BATCH * N_FF).collect();
        let (tiles, acts) =
            Arena::fill(|arena| ([arena.carve(tile)], ActBuf::carve(kernels, arena, BATCH, N_FF, true))).expect("memory");
        Run { pool: Pool::new(1).expect("no thread is started"), tiles, acts, x, out: vec![0.0; BATCH * N_VOCAB] }
    }

    /// Adds the seconds for each matrix of `data` to `times`.
    fn time(&mut self, kernels: Kernels, ty: GgmlType, data: &[u8], shape: (usize, usize), n_tok: usize, times: &mut Vec<f64>) {
        let (n_rows, n_cols) = shape;
        let acts = kernels.quantize(&mut self.pool, &self.x[..n_tok * n_cols], n_cols, &mut self.acts);
        let w = |data| Matrix { ty, n_rows, n_cols, data, packed: false };
        for data in data.chunks_exact(n_rows * w(data).row_bytes()) {
            let start = Instant::now();
            let out = &mut self.out[..n_tok * n_rows];
            kernels.matmul(&mut self.pool, &mut self.tiles, acts, &mut [Product { w: w(data), out }]);
            times.push(start.elapsed().as_secs_f64());
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Types of the command line, and Q8_0.
fn wanted_types() -> Vec<GgmlType> {
    let wanted = std::env::args().nth(2);
    let named = |ty: &GgmlType| wanted.as_ref().is_none_or(|w| w.split(',').any(|name| name.eq_ignore_ascii_case(ty.name())));
    TYPES.into_iter().filter(|ty| named(ty) || *ty == GgmlType::Q8_0).collect()
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5);
    let types = wanted_types();
    let mut rng = fastrand::Rng::with_seed(1);
    let data: Vec<Vec<u8>> = types.iter().map(|&ty| random_matrix(ty, 2 * N_LAYER * N_FF * N_EMBD, &mut rng)).collect();
    let sets: Vec<Kernels> = Kernels::available().filter(|k| k.name() != "scalar").collect();
    let mut run = Run::new();
    println!("{:<8} {:<7} {:<9} {:>7} {:>12} {:>12}", "set", "type", "matrix", "tokens", "GMAC/s", "ns/block");
    // [set][type][batch or not]: seconds for all layers, and for the output matrix.
    let mut totals = vec![vec![[[0.0; 2]; 2]; types.len()]; sets.len()];
    for (name, n_rows, n_cols, count) in MATRICES {
        for (batched, n_tok) in [1, BATCH].into_iter().enumerate() {
            let mut times = vec![vec![Vec::new(); types.len()]; sets.len()];
            for _ in 0..rounds {
                for (set, kernels) in sets.iter().enumerate() {
                    for (i, &ty) in types.iter().enumerate() {
                        let n_cols = n_cols / ty.block_elems() * ty.block_elems();
                        let bytes = count * n_rows * n_cols / ty.block_elems() * ty.block_bytes();
                        run.time(*kernels, ty, &data[i][..bytes], (n_rows, n_cols), n_tok, &mut times[set][i]);
                    }
                }
            }
            for (set, kernels) in sets.iter().enumerate() {
                for (i, &ty) in types.iter().enumerate() {
                    let whole = n_cols as f64 / (n_cols / ty.block_elems() * ty.block_elems()) as f64;
                    let seconds = median(&mut times[set][i]) * whole;
                    totals[set][i][batched][usize::from(name == "output")] += seconds * count as f64;
                    let macs = (n_rows * n_cols * n_tok) as f64;
                    let (rate, each) = (macs / seconds / 1e9, seconds * 1e9 / (macs / BLOCK as f64));
                    println!("{:<8} {:<7} {name:<9} {n_tok:>7} {rate:>12.2} {each:>12.3}", kernels.name(), ty.name());
                }
            }
        }
    }
    println!(
        "\n{:<8} {:<7} {:>18} {:>18}   (output matrix in Q8_0; a prefill skips it)",
        "set", "type", "decode tok/s", "prefill tok/s"
    );
    for (set, kernels) in sets.iter().enumerate() {
        for (i, ty) in types.iter().enumerate() {
            let decode = 1.0 / (totals[set][i][0][0] + totals[set][types.len() - 1][0][1]);
            let prefill = BATCH as f64 / totals[set][i][1][0];
            println!("{:<8} {:<7} {decode:>18.1} {prefill:>18.1}", kernels.name(), ty.name());
        }
    }
}
