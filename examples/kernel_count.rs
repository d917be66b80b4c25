//! One product of a matrix of 1,024 rows and columns with one token, some times over, for a counter of instructions: what two counts
//! differ by has no start in it.
//!
//! `kernel_count TYPE TIMES`

use lowkey::gguf::quant::GgmlType;
use lowkey::kernels::{ActBuf, Kernels, Matrix, Product, tile_bytes};
use lowkey::mem::arena::Arena;
use lowkey::mem::pool::Pool;

const N: usize = 1024;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, name, times] = args.as_slice() else { panic!("kernel_count TYPE TIMES") };
    let ty = *GgmlType::ALL.iter().find(|ty| ty.name().eq_ignore_ascii_case(name)).expect("a type of ggml");
    let times: usize = times.parse().expect("a number");
    let kernels = Kernels::choose("auto").expect("some set");
    let (mut tiles, mut acts) =
        Arena::fill(|arena| ([arena.carve(tile_bytes(N, false))], ActBuf::carve(kernels, arena, 1, N, true))).expect("memory");
    let mut pool = Pool::new(1).expect("no thread is started");
    let mut rng = fastrand::Rng::with_seed(1);
    let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(N * N / ty.block_elems() * ty.block_bytes()).collect();
    let x: Vec<f32> = std::iter::repeat_with(|| rng.f32() - 0.5).take(N).collect();
    let mut out = vec![0f32; N];
    for _ in 0..times {
        let acts = kernels.quantize(&mut pool, &x, N, &mut acts);
        let w = Matrix { ty, n_rows: N, n_cols: N, data: &data, packed: false };
        kernels.matmul(&mut pool, &mut tiles, acts, &mut [Product { w, out: &mut out }]);
    }
    println!("{} {}", kernels.name(), out[0]);
}
