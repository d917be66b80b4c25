//! What kernels take and give: matrices, activations, a product and its task, a chunk of attention and what it leaves.

use std::ops::Range;

use crate::gguf::quant::GgmlType;
use crate::mem::arena::{Arena, Buf};

use super::Kernels;
use super::rows::codec::RowType;

/// Elements that share one scale, in weights and in activations.
pub const BLOCK: usize = 32;
/// Rows of weights that a task takes at least; row ranges of tasks start at multiples of it.
pub const TILE_ROWS: usize = 16;
/// Cache entries that are attended to in one go; partial results of chunks are merged in order, so the result does
/// not depend on the number of threads. A multiple of 8.
pub const CHUNK: usize = 128;
/// Elements of a head, at most.
pub const MAX_HEAD_DIM: usize = 1024;
/// Query heads that share one pass over the keys.
pub const MAX_QUERIES: usize = 4;
/// A weight matrix: `n_rows` rows of `n_cols` elements (GGUF's ne1 and ne0).
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub ty: GgmlType,
    pub n_rows: usize,
    pub n_cols: usize,
    pub data: &'a [u8],
    /// Rows are interleaved as spec/packed.rs says; otherwise they lie one behind the other, as in a model file.
    pub packed: bool,
}

impl<'a> Matrix<'a> {
    pub fn row_bytes(&self) -> usize {
        self.n_cols / self.ty.block_elems() * self.ty.block_bytes()
    }

    /// Of a matrix that is not packed.
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(!self.packed, "a packed matrix has no rows in one piece");
        &self.data[row * self.row_bytes()..][..self.row_bytes()]
    }
}

/// The activations of a batch, `[n_tok][n_cols]`, quantised once and read by every matrix that takes them.
/// Block `b` of token `t` stands for `d * q`, with `sum` the sum of its 32 `q` and `s = d * sum`.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    pub n_tok: usize,
    pub n_cols: usize,
    /// Unquantised, for float weights.
    pub x: &'a [f32],
    pub q: &'a [i8],
    pub d: &'a [f32],
    pub s: &'a [f32],
    pub sum: &'a [i32],
    /// The sums of the first and of the last 16 `q`, i16 each, in the low and high half: one value to broadcast. Empty where no
    /// product reads them.
    pub sum16: &'a [i32],
    /// `q` and `d` once more, interleaved as arm/quads.rs says; empty where the set does not read them so.
    pub quads: &'a [i8],
}

impl Acts<'_> {
    /// Both halves of `sum16`.
    #[inline(always)]
    pub fn half_sums(&self, at: usize) -> [i32; 2] {
        [i32::from(self.sum16[at] as i16), self.sum16[at] >> 16]
    }
}

/// Where the activations of a batch are quantised to.
pub struct ActBuf {
    pub(super) q: Buf<i8>,
    pub(super) d: Buf<f32>,
    pub(super) s: Buf<f32>,
    pub(super) sum: Buf<i32>,
    pub(super) sum16: Buf<i32>,
    pub(super) quads: Buf<i8>,
}

impl ActBuf {
    /// Of at most `n_tok` tokens; `has_halves` says whether `Kernels::wants_halves` of some matrix.
    pub fn carve(kernels: Kernels, arena: &mut Arena, n_tok: usize, max_cols: usize, has_halves: bool) -> Self {
        let blocks = n_tok * max_cols / BLOCK;
        ActBuf {
            q: arena.carve(n_tok * max_cols),
            d: arena.carve(blocks),
            s: arena.carve(blocks),
            sum: arena.carve(blocks),
            sum16: arena.carve(if has_halves { blocks } else { 0 }),
            quads: arena.carve(kernels.quads_len(n_tok, max_cols)),
        }
    }
}

/// Where a matrix product goes: element (token, row) at `token * stride + row`.
#[derive(Clone, Copy)]
pub struct Out {
    pub(super) ptr: *mut f32,
    pub(super) stride: usize,
}

impl Out {
    /// # Safety
    /// The caller owns element (`token`, `row`): it is inside the buffer and no other thread touches it.
    #[inline(always)]
    pub unsafe fn store(&self, token: usize, row: usize, value: f32) {
        // SAFETY: by the caller's promise.
        unsafe { *self.ptr.add(token * self.stride + row) = value }
    }

    /// Pointer to element (`token`, `row`), for a store of several rows at once.
    ///
    /// # Safety
    /// As `store`.
    #[inline(always)]
    pub unsafe fn at(&self, token: usize, row: usize) -> *mut f32 {
        // SAFETY: by the caller's promise.
        unsafe { self.ptr.add(token * self.stride + row) }
    }
}

/// One task of a matrix product: `out[t][r] = Σ_c w[r][c] * acts[t][c]` for `r` in `rows`.
pub struct MatmulTask<'a> {
    pub w: Matrix<'a>,
    pub rows: Range<usize>,
    pub acts: Acts<'a>,
    pub out: Out,
    /// Scratch for `TILE_ROWS` expanded rows, 64-byte aligned, contents undefined: see `tile_bytes`.
    pub tile: &'a mut [u8],
}

/// Bytes of scratch for each thread: 16 rows of int8 with an f32 scale and minimum for each 32, or of f32 where a model has float matrices.
pub fn tile_bytes(max_cols: usize, has_float: bool) -> usize {
    let quantised = TILE_ROWS * (max_cols + 2 * max_cols / BLOCK * size_of::<f32>());
    let float = if has_float { TILE_ROWS * max_cols * size_of::<f32>() } else { 0 };
    quantised.max(float) + 1024
}

/// One matrix of a product that shares its activations with others.
pub struct Product<'a> {
    pub w: Matrix<'a>,
    /// `[n_tok][w.n_rows]`
    pub out: &'a mut [f32],
}

/// Rows of a cache, numbered in units of rows from the start of its buffer.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// `first`, `first + 1`, …
    Dense {
        first: usize,
    },
    Table(&'a [u32]),
}

impl Rows<'_> {
    #[inline(always)]
    pub fn get(&self, j: usize) -> usize {
        match self {
            Rows::Dense { first } => first + j,
            Rows::Table(table) => table[j] as usize,
        }
    }
}

/// Attention of `n_q` query heads over at most `CHUNK` entries of the KV head they share.
pub struct Attend<'a> {
    /// `[n_q][head_dim]`, already multiplied by the scale of scores.
    pub q: &'a [f32],
    pub head_dim: usize,
    /// Rows of `head_dim` elements, row after row.
    pub keys: &'a [u8],
    pub values: &'a [u8],
    pub k_type: RowType,
    pub v_type: RowType,
    pub rows: Rows<'a>,
    pub n_rows: usize,
    /// The rows once more, brought by `Kernels::widen` to what the set reads fastest; `rows` are then not looked at. Empty: it
    /// reads them where they lie.
    pub wide: &'a [f32],
    /// Scores become `cap * tanh(score / cap)`; 0: they stay.
    pub soft_cap: f32,
}

impl Attend<'_> {
    /// Rows `which` are inside `keys` and `values`.
    pub(super) fn assert_stored(&self, which: Range<usize>) {
        let stored = |rows: &[u8], ty: RowType| rows.len() / ty.row_bytes(self.head_dim);
        let n_stored = stored(self.keys, self.k_type).min(stored(self.values, self.v_type));
        match self.rows {
            Rows::Dense { first } => assert!(first + which.end <= n_stored),
            Rows::Table(table) => assert!(table[which].iter().all(|&r| (r as usize) < n_stored)),
        }
    }
}

/// What a chunk leaves: for each query its highest score, the sum of exp(score - highest), and the values so weighted.
pub struct Partial<'a> {
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[n_q][head_dim]`
    pub acc: &'a mut [f32],
    /// exp(score - highest) of each row, for who asks: `[n_q][CHUNK]`. What lies behind `n_rows` is undefined. Empty: not
    /// asked for.
    pub weights: &'a mut [f32],
}

/// Elements of `Partial::weights`.
pub fn weights_len(n_q: usize) -> usize {
    n_q * CHUNK
}

/// Order in which a head's elements are turned in pairs by RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeOrder {
    /// Pairs (2i, 2i+1): GGUF's `llama`, whose converter permutes the rows of Q and K.
    Norm,
    /// Pairs (i, i + n/2): GPT-NeoX and most others.
    Neox,
}
