//! The set for x86 with AVX-512 and its VNNI: sixteen rows of weights at a time, one f32 lane each.
//!
//! Built like `avx2.rs`, with vectors twice as long: lane `r` of vector `g` of a block holds columns `4g..4g+4` of row `r`.
//! `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32 bits, so all elements are made
//! unsigned here and the offset is taken off with the sum of the activations. A type adds only its `Format`.
//! Rows left over at the end of a matrix (at most fifteen) go to the scalar set, which gives the same bits.
#![allow(clippy::needless_range_loop)] // Indices name lanes, tokens and groups of columns.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::portable::Lanes;
use super::x86::{self, F16c, Width, stamp_x86};
use super::{Acts, Attend, BLOCK, CHUNK, MatmulTask, Out, TILE_ROWS, Table, float, scalar};
use crate::gguf::quant::GgmlType;

stamp_x86!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", Zmm);
pub(crate) static TABLE: Table = Table { matmul, quantize, rms_norm, add, silu_mul, l2_norm, attend };

/// Rows that are multiplied at once.
const ROWS: usize = TILE_ROWS;
/// Vectors of a block: each has four columns of every row.
const GROUPS: usize = BLOCK / 4;
/// Bytes of an expanded block: elements, scales, minimums.
const TILE_BLOCK: usize = ROWS * (BLOCK + 2 * size_of::<f32>());
/// Up to this many tokens are multiplied straight from the file's layout.
const DIRECT: usize = 4;
/// Groups of `ROWS` rows between what is multiplied and what is fetched.
const AHEAD: usize = 2;

/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => quantised::<Q4_0>(task),
            GgmlType::Q4_1 => quantised::<Q4_1>(task),
            GgmlType::Q8_0 => quantised::<Q8_0>(task),
            GgmlType::F16 | GgmlType::F32 => float::batch::<F16c>(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}

/// A block of sixteen rows in registers; `q` as described above.
struct Block {
    q: [__m512i; GROUPS],
    d: __m512,
    m: __m512,
}

/// How a type is read. An element counts as `q - OFFSET`, `q` unsigned.
trait Format {
    /// Bytes of a block of one row.
    const BYTES: usize;
    const HAS_MIN: bool;
    const OFFSET: i16;

    /// # Safety
    /// Blocks of sixteen rows, `stride` bytes apart from `p`, are readable; the CPU features of the set.
    unsafe fn load(p: *const u8, stride: usize) -> Block;
}

/// 16 bytes of a row, and of the fourth, eighth and twelfth after it.
///
/// # Safety
/// 16 bytes of these rows, `stride` bytes apart from `p`, are readable; AVX-512F.
#[inline(always)]
unsafe fn load_four(p: *const u8, stride: usize) -> __m512i {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let x = _mm512_castsi128_si512(_mm_loadu_si128(p.cast()));
        let x = _mm512_inserti32x4(x, _mm_loadu_si128(p.add(4 * stride).cast()), 1);
        let x = _mm512_inserti32x4(x, _mm_loadu_si128(p.add(8 * stride).cast()), 2);
        _mm512_inserti32x4(x, _mm_loadu_si128(p.add(12 * stride).cast()), 3)
    }
}

/// 16 bytes of sixteen rows; lane `r` of vector `k` holds bytes `4k..4k+4` of row `r`.
///
/// # Safety
/// 16 bytes at `p + r * stride` are readable for `r < 16`; AVX-512F.
#[inline(always)]
unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [__m512i; 4] {
    // SAFETY: readable by the caller's promise.
    unsafe {
        // A transposition of 4 x 4 in each quarter.
        let [r0, r1] = [load_four(p, stride), load_four(p.add(stride), stride)];
        let [r2, r3] = [load_four(p.add(2 * stride), stride), load_four(p.add(3 * stride), stride)];
        let (low01, high01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
        [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ]
    }
}

/// Nibbles of `load_16_bytes`: byte `i` of a row holds element `i` low and element `i + 16` high.
///
/// # Safety
/// As `load_16_bytes`.
#[inline(always)]
unsafe fn load_nibbles(p: *const u8, stride: usize) -> [__m512i; GROUPS] {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = load_16_bytes(p, stride);
        let mask = _mm512_set1_epi8(15);
        let mut q = [a, b, c, d, a, b, c, d];
        for g in 0..4 {
            q[g + 4] = _mm512_and_si512(_mm512_srli_epi16(q[g], 4), mask);
            q[g] = _mm512_and_si512(q[g], mask);
        }
        q
    }
}

/// The f16 in the lower halves of sixteen lanes.
///
/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn halves(x: __m512i) -> __m512 {
    // SAFETY: registers only.
    unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)) }
}

/// `f16 d; u8 qs[16]`
struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const HAS_MIN: bool = false;
    const OFFSET: i16 = 8;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16 and 2..18.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            Block { q: load_nibbles(p.add(2), stride), d: halves(head), m: _mm512_setzero_ps() }
        }
    }
}

/// `f16 d; f16 m; u8 qs[16]`
struct Q4_1;
impl Format for Q4_1 {
    const BYTES: usize = 20;
    const HAS_MIN: bool = true;
    const OFFSET: i16 = 0;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16 and 4..20.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            Block { q: load_nibbles(p.add(4), stride), d: halves(head), m: halves(_mm512_srli_epi32(head, 16)) }
        }
    }
}

/// `f16 d; i8 qs[32]`, offset by 128.
struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 34;
    const HAS_MIN: bool = false;
    const OFFSET: i16 = 128;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16, 2..18 and 18..34.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            let [a, b, c, d] = load_16_bytes(p.add(2), stride);
            let [e, f, g, h] = load_16_bytes(p.add(18), stride);
            let mut q = [a, b, c, d, e, f, g, h];
            for q in &mut q {
                *q = _mm512_xor_si512(*q, _mm512_set1_epi8(-128));
            }
            Block { q, d: halves(head), m: _mm512_setzero_ps() }
        }
    }
}

/// Asks for the bytes that are met `AHEAD` groups of rows later. Hardware sees sixteen slow streams and fetches too late: this
/// makes decoding from memory two to four times as fast.
#[inline(always)]
fn prefetch<F: Format>(rows: *const u8, stride: usize, b: usize) {
    let ahead = rows.wrapping_add(ROWS * (AHEAD * stride + b * F::BYTES));
    for line in (0..ROWS * F::BYTES).step_by(64) {
        // SAFETY: a prefetch reads nothing, even where no memory is.
        unsafe { _mm_prefetch(ahead.wrapping_add(line).cast(), _MM_HINT_T0) };
    }
}

/// Where the blocks of sixteen rows come from, one after the other.
trait Source: Copy {
    type At;
    /// # Safety
    /// Block `b` is readable; the CPU features of the set.
    unsafe fn block(self, b: usize) -> Self::At;
    /// # Safety
    /// As `block`.
    unsafe fn q(at: &Self::At, group: usize) -> __m512i;
    /// # Safety
    /// As `block`.
    unsafe fn scales(at: &Self::At) -> (__m512, __m512);
}

/// The file's layout: a block is put together in registers.
struct Native<F>(*const u8, usize, PhantomData<F>);
impl<F> Copy for Native<F> {}
impl<F> Clone for Native<F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F: Format> Source for Native<F> {
    type At = Block;
    #[inline(always)]
    unsafe fn block(self, b: usize) -> Block {
        prefetch::<F>(self.0, self.1, b);
        // SAFETY: passed on.
        unsafe { F::load(self.0.add(b * F::BYTES), self.1) }
    }
    #[inline(always)]
    unsafe fn q(at: &Block, group: usize) -> __m512i {
        at.q[group]
    }
    #[inline(always)]
    unsafe fn scales(at: &Block) -> (__m512, __m512) {
        (at.d, at.m)
    }
}

/// Expanded rows: blocks of `q[8]`, `d`, `m`.
#[derive(Clone, Copy)]
struct Tile(*mut u8);
impl Tile {
    /// # Safety
    /// `n_blocks` blocks of sixteen rows at `p` are readable, as much of the tile is writable; the features of the set.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
    #[inline(never)]
    unsafe fn expand<F: Format>(self, p: *const u8, stride: usize, n_blocks: usize) {
        for b in 0..n_blocks {
            // SAFETY: block `b` of both.
            unsafe {
                prefetch::<F>(p, stride, b);
                let block = F::load(p.add(b * F::BYTES), stride);
                let to = self.0.add(b * TILE_BLOCK).cast::<__m512i>();
                for g in 0..GROUPS {
                    _mm512_storeu_si512(to.add(g), block.q[g]);
                }
                _mm512_storeu_ps(to.add(GROUPS).cast(), block.d);
                _mm512_storeu_ps(to.add(GROUPS + 1).cast(), block.m);
            }
        }
    }
}
impl Source for Tile {
    type At = *const __m512i;
    #[inline(always)]
    unsafe fn block(self, b: usize) -> *const __m512i {
        // SAFETY: block `b` is inside the tile.
        unsafe { self.0.add(b * TILE_BLOCK).cast() }
    }
    #[inline(always)]
    unsafe fn q(at: &*const __m512i, group: usize) -> __m512i {
        // SAFETY: inside the block.
        unsafe { _mm512_loadu_si512(at.add(group)) }
    }
    #[inline(always)]
    unsafe fn scales(at: &*const __m512i) -> (__m512, __m512) {
        // SAFETY: inside the block, behind `q`.
        unsafe { (_mm512_loadu_ps(at.add(GROUPS).cast()), _mm512_loadu_ps(at.add(GROUPS + 1).cast())) }
    }
}

/// # Safety
/// As `matmul`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn quantised<F: Format>(task: &mut MatmulTask) {
    let (acts, stride, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % ROWS;
    assert!(whole * stride <= task.w.data.len() && n_blocks * TILE_BLOCK <= task.tile.len());
    let tile = Tile(task.tile.as_mut_ptr());
    for row in (task.rows.start..whole).step_by(ROWS) {
        // SAFETY: rows `row..row + 16` are inside the matrix, their expansion inside the tile (asserted above);
        // tokens `t..t + T` are inside the batch; the elements of `out` are the caller's.
        unsafe {
            let rows = task.w.data.as_ptr().add(row * stride);
            let native = Native::<F>(rows, stride, PhantomData);
            match acts.n_tok {
                1 => product::<F, _, 1>(native, &acts, 0, task.out, row),
                2 => product::<F, _, 2>(native, &acts, 0, task.out, row),
                3 => product::<F, _, 3>(native, &acts, 0, task.out, row),
                DIRECT => product::<F, _, DIRECT>(native, &acts, 0, task.out, row),
                n_tok => {
                    tile.expand::<F>(rows, stride, n_blocks);
                    let mut t = 0;
                    while t + 8 <= n_tok {
                        product::<F, _, 8>(tile, &acts, t, task.out, row);
                        t += 8;
                    }
                    if t + 4 <= n_tok {
                        product::<F, _, 4>(tile, &acts, t, task.out, row);
                        t += 4;
                    }
                    match n_tok - t {
                        1 => product::<F, _, 1>(tile, &acts, t, task.out, row),
                        2 => product::<F, _, 2>(tile, &acts, t, task.out, row),
                        3 => product::<F, _, 3>(tile, &acts, t, task.out, row),
                        _ => {}
                    }
                }
            }
        }
    }
    if whole < task.rows.end {
        let mut rest = MatmulTask { w: task.w, rows: whole..task.rows.end, acts, out: task.out, tile: &mut *task.tile };
        // SAFETY: the scalar set needs no feature; the elements of `out` are the caller's.
        unsafe { (scalar::TABLE.matmul)(&mut rest) };
    }
}

/// Sixteen rows times `T` tokens:
///
///     for each block b, group g of 4 columns, token t:
///         isum[t] += Σ q[b][g] (u8) * broadcast(a[t][b][4g..4g+4])     four columns to a lane of 32 bits
///     isum[t] -= OFFSET * Σa
///     acc[t] = fma(d * d_a, isum, acc[t]);  acc_m[t] = fma(m, s_a, acc_m[t])
///
/// # Safety
/// `source` has a block for each 32 columns; tokens `first..first + T` are inside `acts`; the features of the set; the
/// elements of `out` belong to the caller.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all registers.
unsafe fn product<F: Format, S: Source, const T: usize>(source: S, acts: &Acts, first: usize, out: Out, row: usize) {
    let n_blocks = acts.n_cols / BLOCK;
    assert!((first + T) * acts.n_cols <= acts.q.len());
    // SAFETY: pointers to token `first`; token `first + t` is `t * n_blocks` blocks behind. The other fields have one
    // element for each block of `q`.
    unsafe {
        let (q, d) = (acts.q.as_ptr().add(first * acts.n_cols), acts.d.as_ptr().add(first * n_blocks));
        let (s, sum) = (acts.s.as_ptr().add(first * n_blocks), acts.sum.as_ptr().add(first * n_blocks));
        // The sum of a block fits into 16 bits (32 * 127): `vpdpwssd` takes it from the low half and ignores the high one.
        let offset = _mm512_set1_epi32(i32::from(-F::OFFSET) & 0xffff);
        let mut acc = [_mm512_setzero_ps(); T];
        let mut acc_m = [_mm512_setzero_ps(); T];
        for b in 0..n_blocks {
            let block = source.block(b);
            let mut isum = [_mm512_setzero_si512(); T];
            for g in 0..GROUPS {
                let w = S::q(&block, g);
                for t in 0..T {
                    let four = q.add((t * n_blocks + b) * BLOCK + 4 * g).cast::<i32>().read_unaligned();
                    isum[t] = _mm512_dpbusd_epi32(isum[t], w, _mm512_set1_epi32(four));
                }
            }
            let (w_d, w_m) = S::scales(&block);
            for t in 0..T {
                let at = t * n_blocks + b;
                if F::OFFSET != 0 {
                    isum[t] = _mm512_dpwssd_epi32(isum[t], offset, _mm512_set1_epi32(*sum.add(at)));
                }
                acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(w_d, _mm512_set1_ps(*d.add(at))), _mm512_cvtepi32_ps(isum[t]), acc[t]);
                if F::HAS_MIN {
                    acc_m[t] = _mm512_fmadd_ps(w_m, _mm512_set1_ps(*s.add(at)), acc_m[t]);
                }
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(out.at(first + t, row), _mm512_add_ps(acc[t], acc_m[t]));
        }
    }
}

/// Attention with vectors of sixteen: two keys side by side, or sixteen elements of a value.
struct Zmm;
impl Width for Zmm {
    #[inline(always)]
    unsafe fn scores<const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [Lanes; 2] {
        // SAFETY: vector `i` of a row, `i < head_dim / 8`.
        unsafe {
            // The lower half of `dots[k]` belongs to keys[0][k], the upper to keys[1][k].
            let mut dots = [[_mm512_setzero_ps(); P]; K];
            for i in 0..head_dim / 8 {
                let mut key = [_mm512_setzero_ps(); K];
                for k in 0..K {
                    let low = _mm256_castsi128_si256(_mm_loadu_si128(keys[0][k].add(i * 16).cast()));
                    let both = _mm256_inserti128_si256(low, _mm_loadu_si128(keys[1][k].add(i * 16).cast()), 1);
                    key[k] = _mm512_cvtph_ps(both);
                }
                for n in 0..N {
                    let q = _mm256_loadu_pd(q.add(n * head_dim + i * 8).cast());
                    let q = _mm512_castpd_ps(_mm512_broadcast_f64x4(q));
                    for k in 0..K {
                        dots[k][n] = _mm512_fmadd_ps(q, key[k], dots[k][n]);
                    }
                }
            }
            let dots: &[__m512; 8] = dots.as_flattened().try_into().expect("K * P = 8");
            let (mut low, mut high) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
            for i in 0..8 {
                low[i] = _mm512_castps512_ps256(dots[i]);
                high[i] = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(dots[i]), 1));
            }
            std::mem::transmute::<[__m256; 2], [Lanes; 2]>([x86::add_lanes_of(&low), x86::add_lanes_of(&high)])
        }
    }

    #[inline(always)]
    unsafe fn mix<const N: usize, const P: usize, const K: usize>(
        a: &Attend,
        at: &[usize; CHUNK],
        weights: *const f32,
        acc: &mut [f32],
    ) {
        let (n16, mut i) = (a.head_dim / 16, 0);
        // SAFETY: vectors `i..` of the rows; the rest passed on.
        unsafe {
            while i + 4 <= n16 {
                mix::<N, P, 4>(a, at, weights, i, acc);
                i += 4;
            }
            while i < n16 {
                mix::<N, P, 1>(a, at, weights, i, acc);
                i += 1;
            }
            if !a.head_dim.is_multiple_of(16) {
                x86::mix::<N, P, 1>(a, at, weights, 2 * n16, acc);
            }
        }
    }
}

/// Vectors `i..i + D` of the weighted sum of values.
///
/// # Safety
/// As `Width::mix`; AVX-512F.
#[inline(always)]
unsafe fn mix<const N: usize, const P: usize, const D: usize>(
    a: &Attend,
    at: &[usize; CHUNK],
    weights: *const f32,
    i: usize,
    acc: &mut [f32],
) {
    // SAFETY: vectors of rows and weights that exist, by the caller's promise.
    unsafe {
        let mut total = [[_mm512_setzero_ps(); D]; N];
        for (j, at) in at.iter().enumerate().take(a.n_rows) {
            let row = a.values.as_ptr().add(at + i * 32);
            let mut value = [_mm512_setzero_ps(); D];
            for c in 0..D {
                value[c] = _mm512_cvtph_ps(_mm256_loadu_si256(row.add(c * 32).cast()));
            }
            for n in 0..N {
                let weight = _mm512_set1_ps(*weights.add(j * P + n));
                for c in 0..D {
                    total[n][c] = _mm512_fmadd_ps(weight, value[c], total[n][c]);
                }
            }
        }
        for n in 0..N {
            for c in 0..D {
                _mm512_storeu_ps(acc[n * a.head_dim + (i + c) * 16..][..16].as_mut_ptr(), total[n][c]);
            }
        }
    }
}
