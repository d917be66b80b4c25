//! What the tests of kernels start from: random matrices and activations with their extremes, and one way to multiply them.

use crate::gguf::quant::GgmlType;
use crate::kernels::{ActBuf, BLOCK, Kernels, Matrix, Product, tile_bytes};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;

pub const QUANTISED: [GgmlType; 22] = {
    use GgmlType::*;
    [
        Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4, IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q1_0, Q2_0, IQ2_XXS, IQ2_XS, IQ2_S,
        IQ3_XXS, IQ3_S, TQ1_0, TQ2_0,
    ]
};
pub const FLOATS: [GgmlType; 3] = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];

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
    pub pool: Pool,
    tiles: Vec<Buf<u8>>,
    pub acts: ActBuf,
    /// What the matrices are.
    pub packed: bool,
}

impl Bench {
    pub fn new(n_tok: usize, n_cols: usize) -> Self {
        let (tile, auto) = (tile_bytes(n_cols, true), Kernels::choose("auto").unwrap());
        Arena::fill(|arena| Bench {
            pool: Pool::new(2).unwrap(),
            tiles: vec![arena.carve(tile), arena.carve(tile)],
            acts: ActBuf::carve(auto, arena, n_tok, n_cols, true),
            packed: false,
        })
        .unwrap()
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

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
