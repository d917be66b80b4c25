//! Runs one matrix product again and again, for counting its instructions under an emulator or timing it.
//!
//! `matmul_count SET TYPE N_ROWS N_COLS N_TOK TIMES`: the difference of two runs, divided by the difference of TIMES
//! and by `N_ROWS * N_COLS / 32 * N_TOK`, is the cost of a block of 32 products. Prints a hash of the result, which is
//! the same for every set.

use lowkey::gguf::quant::GgmlType;
use lowkey::kernels::{ActBuf, Kernels, Matrix, Product, tile_bytes};
use lowkey::mem::arena::{Arena, region_bytes};
use lowkey::mem::pool::Pool;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [set, ty, numbers @ ..] = &args[..] else { panic!("SET TYPE N_ROWS N_COLS N_TOK TIMES") };
    let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().expect("a number")).collect();
    let [n_rows, n_cols, n_tok, times] = numbers[..] else { panic!("SET TYPE N_ROWS N_COLS N_TOK TIMES") };
    let ty = *GgmlType::ALL.iter().find(|t| t.name() == ty).expect("a type of ggml");
    let kernels = Kernels::choose(set).expect("a set of this CPU");

    let mut rng = fastrand::Rng::with_seed(1);
    let mut data: Vec<u8> = (0..n_rows * n_cols / ty.block_elems() * ty.block_bytes()).map(|_| rng.u8(..)).collect();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        // Scales and minimums are f16 at the start of a block: keep them finite and small.
        for at in [1, 3] {
            block[at.min(block.len() - 1)] &= 0x2b;
        }
    }
    let x: Vec<f32> = (0..n_tok * n_cols).map(|_| rng.f32() - 0.5).collect();
    let tile = tile_bytes(n_cols, true);
    let mut arena = Arena::new(region_bytes::<u8>(tile) + ActBuf::bytes(n_tok, n_cols)).expect("memory");
    let (mut tiles, mut acts) = ([arena.carve::<u8>(tile)], ActBuf::carve(&mut arena, n_tok, n_cols));
    let mut pool = Pool::new(1).expect("a pool");
    let mut out = vec![0f32; n_tok * n_rows];
    let w = Matrix { ty, n_rows, n_cols, data: &data };
    let acts = kernels.quantize(&mut pool, &x, n_cols, &mut acts);
    for _ in 0..times {
        kernels.matmul(&mut pool, &mut tiles, acts, &mut [Product { w, out: &mut out }]);
    }
    let hash = out.iter().fold(0u64, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x100_0000_01b3));
    println!("{hash:016x}");
}
