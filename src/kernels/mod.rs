//! The kernels: what a token's arithmetic is made of, in sets that are chosen at run time.
//!
//! A `Kernels` value is the proof that this CPU has the features of its set: only detection builds one, so calling
//! through it is safe. `portable.rs` and `scalar.rs` are the specification; every other set gives the same bits,
//! because integer block sums are exact and every f32 sum has one order that all sets keep (see `portable.rs`).
//! The one exception is a float weight matrix against a batch, which goes to the crate `gemm` (`float.rs`) or on
//! ARM to `arm_dense.rs`.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod arm_attend;
#[cfg(target_arch = "aarch64")]
mod arm_blocks;
#[cfg(target_arch = "aarch64")]
mod arm_dense;
#[cfg(target_arch = "aarch64")]
mod arm_float;
#[cfg(target_arch = "aarch64")]
mod arm_formats;
#[cfg(target_arch = "aarch64")]
mod arm_wide;
pub mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_attend;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod dotprod_packed;
#[cfg(target_arch = "aarch64")]
mod dotprod_quads;
mod float;
#[cfg(target_arch = "aarch64")]
mod i8mm;
pub mod kv_rows;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod packed;
pub mod portable;
pub mod scalar;
mod shaping;
#[cfg(test)]
mod suite;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_attend;
#[cfg(target_arch = "x86_64")]
mod x86_formats;
#[cfg(target_arch = "x86_64")]
mod x86_rows;

use std::ops::Range;

use crate::error::{Error, Result, Setting};
use crate::gguf::quant::GgmlType;
use crate::mem::arena::{Arena, Buf, region_bytes};
use crate::mem::pool::{Pool, SharedMut};

use kv_rows::RowType;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetName {
    Scalar,
    Neon,
    Dotprod,
    I8mm,
    Avx2,
    Avx512,
}

impl SetName {
    pub const ALL: [SetName; 6] =
        [SetName::Scalar, SetName::Neon, SetName::Dotprod, SetName::I8mm, SetName::Avx2, SetName::Avx512];

    pub fn name(self) -> &'static str {
        match self {
            SetName::Scalar => "scalar",
            SetName::Neon => "neon",
            SetName::Dotprod => "dotprod",
            SetName::I8mm => "i8mm",
            SetName::Avx2 => "avx2",
            SetName::Avx512 => "avx512",
        }
    }
}

/// A weight matrix: `n_rows` rows of `n_cols` elements (GGUF's ne1 and ne0).
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub ty: GgmlType,
    pub n_rows: usize,
    pub n_cols: usize,
    pub data: &'a [u8],
    /// Rows are interleaved as packed.rs says; otherwise they lie one behind the other, as in a model file.
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
    /// `q` and `d` once more, interleaved as dotprod_quads.rs says; empty where the set does not read them so.
    pub quads: &'a [i8],
}

impl Acts<'_> {
    /// Both halves of `sum16`.
    #[inline(always)]
    pub fn half_sums(&self, at: usize) -> [i32; 2] {
        [i32::from(self.sum16[at] as i16), self.sum16[at] >> 16]
    }
}

/// Room for the activations of a batch.
pub struct ActBuf {
    q: Buf<i8>,
    d: Buf<f32>,
    s: Buf<f32>,
    sum: Buf<i32>,
    sum16: Buf<i32>,
    quads: Buf<i8>,
}

impl ActBuf {
    /// Of at most `n_tok` tokens; `has_halves` says whether `Kernels::wants_halves` of some matrix.
    pub fn bytes(kernels: Kernels, n_tok: usize, max_cols: usize, has_halves: bool) -> usize {
        let blocks = n_tok * max_cols / BLOCK;
        let sums = region_bytes::<i32>(blocks) + region_bytes::<i32>(if has_halves { blocks } else { 0 });
        let plain = region_bytes::<i8>(n_tok * max_cols) + 2 * region_bytes::<f32>(blocks) + sums;
        plain + region_bytes::<i8>(kernels.quads_len(n_tok, max_cols))
    }

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
    ptr: *mut f32,
    stride: usize,
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
    /// Room for `TILE_ROWS` expanded rows, 64-byte aligned, contents undefined: see `tile_bytes`.
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
    fn assert_stored(&self, which: Range<usize>) {
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

/// The functions of one set. All `unsafe`: they need the CPU features of their set.
pub(crate) struct Table {
    pub matmul: unsafe fn(&mut MatmulTask),
    pub quantize: unsafe fn(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]),
    pub rms_norm: unsafe fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    pub add: unsafe fn(x: &mut [f32], y: &[f32]),
    pub silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub soft_cap: unsafe fn(x: &mut [f32], cap: f32),
    pub l2_norm: unsafe fn(x: &[f32]) -> f32,
    pub attend: unsafe fn(&Attend, &mut Partial),
    pub merge: unsafe fn(running: &mut [f32], acc: &mut [f32], chunk: &Partial),
    pub received: unsafe fn(tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]),
    /// Sets that read rows as fast where they lie have none.
    pub widen: Option<unsafe fn(&Attend, Range<usize>, &mut [f32])>,
}

/// A set of kernels that this CPU can run.
#[derive(Clone, Copy)]
pub struct Kernels {
    name: SetName,
    table: &'static Table,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Kernels {
    /// Every set that this CPU can run, slowest first.
    pub fn available() -> impl Iterator<Item = Kernels> {
        SetName::ALL.into_iter().filter_map(Kernels::detect)
    }

    fn detect(name: SetName) -> Option<Kernels> {
        let table = match name {
            SetName::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "aarch64")]
            SetName::Neon if std::arch::is_aarch64_feature_detected!("neon") => &neon::TABLE,
            #[cfg(target_arch = "aarch64")]
            SetName::Dotprod if std::arch::is_aarch64_feature_detected!("dotprod") => &dotprod::TABLE,
            #[cfg(target_arch = "aarch64")]
            SetName::I8mm if Kernels::detect(SetName::Dotprod).is_some() && std::arch::is_aarch64_feature_detected!("i8mm") => {
                &i8mm::TABLE
            }
            #[cfg(target_arch = "x86_64")]
            SetName::Avx2
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c") =>
            {
                &avx2::TABLE
            }
            #[cfg(target_arch = "x86_64")]
            SetName::Avx512
                if Kernels::detect(SetName::Avx2).is_some()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vnni") =>
            {
                &avx512::TABLE
            }
            _ => return None,
        };
        Some(Kernels { name, table })
    }

    /// The set named by `--kernels`: `auto` is the fastest that this CPU can run.
    pub fn choose(wanted: &str) -> Result<Kernels> {
        let names = || Kernels::available().map(|k| k.name.name()).collect::<Vec<_>>().join(", ");
        if wanted == "auto" {
            return Ok(Kernels::available().last().expect("scalar always runs"));
        }
        let Some(name) = SetName::ALL.into_iter().find(|n| n.name() == wanted) else {
            return Err(Error::usage(
                Setting::Kernels,
                format!("'{wanted}' is not a kernel set; this CPU runs auto, {}", names()),
            ));
        };
        Kernels::detect(name)
            .ok_or_else(|| Error::usage(Setting::Kernels, format!("this CPU cannot run '{wanted}'; it runs auto, {}", names())))
    }

    pub fn name(&self) -> &'static str {
        self.name.name()
    }

    pub fn set(&self) -> SetName {
        self.name
    }

    /// Whether matrices of this type can be multiplied.
    pub fn supports(ty: GgmlType) -> bool {
        use GgmlType::*;
        matches!(
            ty,
            F32 | F16 | BF16 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ4_NL | IQ4_XS | MXFP4
        )
    }

    /// Whether products with matrices of this type read `Acts::sum16`: minimums of halves need them, and on x86 all else that is
    /// taken off sums.
    pub fn wants_halves(&self, ty: GgmlType) -> bool {
        ty == GgmlType::Q2_K || matches!(self.name, SetName::Avx2 | SetName::Avx512)
    }

    /// Whether this set has vector kernels for the type. What it has none for is multiplied by the scalar set, which gives
    /// the same bits, many times slower.
    pub fn is_fast(&self, ty: GgmlType) -> bool {
        match self.name {
            SetName::Scalar => false,
            _ => Kernels::supports(ty),
        }
    }

    /// Whether this set multiplies packed matrices better than others. The scalar set reads them because it is the
    /// specification; all others leave them to it.
    pub fn reads_packed(&self) -> bool {
        matches!(self.name, SetName::Scalar | SetName::Dotprod | SetName::I8mm)
    }

    /// Quantises `x` = `[n_tok][n_cols]` into `buf`, one token a task.
    pub fn quantize<'a>(&self, pool: &mut Pool, x: &'a [f32], n_cols: usize, buf: &'a mut ActBuf) -> Acts<'a> {
        assert!(n_cols % BLOCK == 0 && x.len() % n_cols == 0);
        let (n_tok, blocks) = (x.len() / n_cols, n_cols / BLOCK);
        let halves = if buf.sum16.is_empty() { 0 } else { blocks };
        let (q, d, s, sum, sum16) = (
            SharedMut::new(&mut buf.q[..x.len()]),
            SharedMut::new(&mut buf.d[..n_tok * blocks]),
            SharedMut::new(&mut buf.s[..n_tok * blocks]),
            SharedMut::new(&mut buf.sum[..n_tok * blocks]),
            SharedMut::new(&mut buf.sum16[..n_tok * halves]),
        );
        let one = |t: usize| {
            let at = t * blocks;
            // SAFETY: each token's ranges are its own; the set's features were detected.
            unsafe {
                let (d, s, sum) = (d.range(at, blocks), s.range(at, blocks), sum.range(at, blocks));
                let q = q.range(t * n_cols, n_cols);
                (self.table.quantize)(&x[t * n_cols..][..n_cols], &mut *q, d, s, &mut *sum);
                sum_halves(q, sum, sum16.range(t * halves, halves));
            }
        };
        pool.run(n_tok, &|_, t| one(t));
        let quads = &mut buf.quads[..self.quads_len(n_tok, n_cols)];
        #[cfg(target_arch = "aarch64")]
        if !quads.is_empty() {
            let (q, d) = (&buf.q[..x.len()], &buf.d[..n_tok * blocks]);
            pool.for_chunks(quads, dotprod_quads::group_len(n_cols), |group, out| {
                dotprod_quads::interleave(group, n_cols, q, d, out);
            });
        }
        Acts {
            n_tok,
            n_cols,
            x,
            q: &buf.q[..x.len()],
            d: &buf.d[..n_tok * blocks],
            s: &buf.s[..n_tok * blocks],
            sum: &buf.sum[..n_tok * blocks],
            sum16: &buf.sum16[..n_tok * halves],
            quads,
        }
    }

    /// Every product of `products` with the same activations, split over the pool by rows.
    pub fn matmul(&self, pool: &mut Pool, tiles: &mut [Buf<u8>], acts: Acts, products: &mut [Product]) {
        const MAX_PRODUCTS: usize = 3;
        let n_threads = pool.n_threads();
        let total_rows: usize = products.iter().map(|p| p.w.n_rows).sum();
        // Enough tasks to even out noisy cores, each large enough to be worth handing over.
        let rows_per_task = (total_rows / (n_threads * 8)).next_multiple_of(TILE_ROWS).clamp(TILE_ROWS, 1024);
        let mut first_task = [0; MAX_PRODUCTS + 1];
        let mut outs = [Out { ptr: std::ptr::null_mut(), stride: 0 }; MAX_PRODUCTS];
        for (i, p) in products.iter_mut().enumerate() {
            assert!(
                p.w.n_cols == acts.n_cols
                    && p.out.len() >= acts.n_tok * p.w.n_rows
                    && p.w.data.len() >= p.w.n_rows * p.w.row_bytes()
                    && (!p.w.packed || packed::can_pack(p.w.ty, p.w.n_rows))
                    && (!self.wants_halves(p.w.ty) || acts.sum16.len() == acts.sum.len())
            );
            first_task[i + 1] = first_task[i] + p.w.n_rows.div_ceil(rows_per_task);
            outs[i] = Out { ptr: p.out.as_mut_ptr(), stride: p.w.n_rows };
        }
        let n_products = products.len();
        let (products, outs) = (SharedRef(&*products), SharedRef(&outs));
        let is_fast = |w: &Matrix| self.is_fast(w.ty) && (!w.packed || self.reads_packed());
        let matmul = |w: &Matrix| if is_fast(w) { self.table.matmul } else { scalar::TABLE.matmul };
        let n_tasks = first_task[n_products];
        pool.run_with(tiles, n_tasks, |tile: &mut Buf<u8>, task| {
            let i =
                (0..n_products).rfind(|&i| first_task[i] <= task && task < first_task[i + 1]).expect("a task of some product");
            let w = products.get()[i].w;
            let start = (task - first_task[i]) * rows_per_task;
            let rows = start..(start + rows_per_task).min(w.n_rows);
            // SAFETY: the features were detected; the rows of a task are its own, so are their elements of `out`,
            // whose length was checked above.
            unsafe { matmul(&w)(&mut MatmulTask { w, rows, acts, out: outs.get()[i], tile }) };
        });
    }

    /// `out = x / rms(x) * weight` for each row of `weight.len()` elements.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == out.len() && x.len() % weight.len() == 0);
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            // SAFETY: the set's features were detected.
            unsafe { (self.table.rms_norm)(x, weight, eps, out) };
        }
    }

    /// `x += y`
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table.add)(x, y) };
    }

    /// `gate = silu(gate) * up`
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table.silu_mul)(gate, up) };
    }

    /// `gate = gelu(gate) * up`, GELU by its tanh
    pub fn gelu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table.gelu_mul)(gate, up) };
    }

    /// `x = cap * tanh(x / cap)`
    pub fn soft_cap(&self, x: &mut [f32], cap: f32) {
        // SAFETY: the set's features were detected.
        unsafe { (self.table.soft_cap)(x, cap) };
    }

    pub fn l2_norm(&self, x: &[f32]) -> f32 {
        // SAFETY: the set's features were detected.
        unsafe { (self.table.l2_norm)(x) }
    }

    pub fn attend(&self, a: &Attend, out: &mut Partial) {
        let n_q = a.q.len() / a.head_dim;
        assert!(a.head_dim % 8 == 0 && a.head_dim <= MAX_HEAD_DIM && a.n_rows <= CHUNK && a.n_rows > 0);
        assert!(out.max.len() == n_q && out.sum.len() == n_q && out.acc.len() == a.q.len());
        assert!(out.weights.is_empty() || out.weights.len() == weights_len(n_q));
        match a.wide.is_empty() {
            true => a.assert_stored(0..a.n_rows),
            false => assert!(a.wide.len() == self.wide_len(a.head_dim)),
        }
        // SAFETY: the set's features were detected; rows are inside the buffers by the assertions above.
        unsafe { (self.table.attend)(a, out) };
    }

    /// Adds what a later chunk left to what those before it left: `running`, `[max][sum]` of each query, and `acc`. Before the first,
    /// `max` is -inf.
    pub fn merge(&self, running: &mut [f32], acc: &mut [f32], chunk: &Partial) {
        assert!(running.len() == 2 * chunk.max.len() && chunk.sum.len() == chunk.max.len() && acc.len() == chunk.acc.len());
        // SAFETY: the set's features were detected.
        unsafe { (self.table.merge)(running, acc, chunk) };
    }

    /// `total`: the attention that each entry of a chunk received, over the queries together. That is the chunk's weights, brought from its
    /// own highest scores, `tops`, to the highest of all chunks and divided by the sums of all, both in `running` as `merge` left them.
    pub fn received(&self, tops: &[f32], weights: &[f32], running: &[f32], total: &mut [f32]) {
        assert!(running.len() == 2 * tops.len() && weights.len() == weights_len(tops.len()) && total.len() <= CHUNK);
        // SAFETY: the set's features were detected.
        unsafe { (self.table.received)(tops, weights, running, total) };
    }

    /// Bytes of `Acts::quads`: also for sets that come to read them only where a matrix is packed.
    fn quads_len(&self, n_tok: usize, n_cols: usize) -> usize {
        #[cfg(target_arch = "aarch64")]
        if matches!(self.name, SetName::Dotprod | SetName::I8mm) {
            return dotprod_quads::len(n_tok, n_cols);
        }
        let _ = (n_tok, n_cols);
        0
    }

    /// Floats of `Attend::wide`; 0 where the set reads rows as fast where they lie.
    pub fn wide_len(&self, head_dim: usize) -> usize {
        #[cfg(target_arch = "aarch64")]
        if self.table.widen.is_some() {
            return arm_wide::len(head_dim);
        }
        let _ = head_dim;
        0
    }

    /// Brings rows `which` of a chunk to their places in `wide`, and with them those of the same four; nothing where the set needs
    /// none. A row may be brought again.
    pub fn widen(&self, a: &Attend, which: Range<usize>, wide: &mut [f32]) {
        let Some(widen) = self.table.widen else { return };
        assert!(a.head_dim % 8 == 0 && which.end <= a.n_rows && a.n_rows <= CHUNK && wide.len() == self.wide_len(a.head_dim));
        a.assert_stored(which.start / 4 * 4..which.end.next_multiple_of(4).min(a.n_rows));
        // SAFETY: the set's features were detected; the rows are inside the buffers, their places inside `wide`.
        unsafe { widen(a, which, wide) };
    }
}

/// Turns `x` by the orthonormal Hadamard matrix of its order, a power of two; see portable.rs. The same for all sets of a family,
/// for it takes no feature that a CPU could lack.
pub fn hadamard(x: &mut [f32]) {
    #[cfg(target_arch = "aarch64")]
    arm_float::hadamard(x);
    #[cfg(not(target_arch = "aarch64"))]
    portable::hadamard(x);
}

/// `kv_rows::store_f16`; as `hadamard`, the same for all sets of a family.
fn store_f16(x: &[f32], row: &mut [u8]) {
    #[cfg(target_arch = "aarch64")]
    arm_float::store_f16(x, row);
    #[cfg(not(target_arch = "aarch64"))]
    kv_rows::store_f16(x, row);
}

/// `sum16` of each block of 32 `q`, whose whole sum is known, where there is room for it.
fn sum_halves(q: &[i8], sum: &[i32], sum16: &mut [i32]) {
    for ((q, sum), sum16) in q.as_chunks::<BLOCK>().0.iter().zip(sum).zip(sum16) {
        let first: i32 = q[..BLOCK / 2].iter().map(|&q| i32::from(q)).sum();
        *sum16 = first & 0xffff | (sum - first) << 16;
    }
}

/// Lets tasks on other threads read a value that holds raw pointers or `&mut`, which they do not follow at once.
struct SharedRef<'a, T: ?Sized>(&'a T);
// SAFETY: tasks read plain fields (shapes, pointers); what the pointers point at is split by rows.
unsafe impl<T: ?Sized> Sync for SharedRef<'_, T> {}
impl<T: ?Sized> SharedRef<'_, T> {
    fn get(&self) -> &T {
        self.0
    }
}
