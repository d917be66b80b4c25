//! The set for x86 with AVX2, FMA and F16C: eight rows of weights at a time, one f32 lane each.
//!
//! A block of eight rows is eight vectors: lane `r` of vector `g` holds columns `4g..4g+4` of row `r`, so that four
//! activations, broadcast, meet all rows at once and no sum ever runs across lanes. A few tokens are multiplied while the
//! block is still in registers; for more, the rows are expanded once into the tile. A type adds only its `Format`.
//! Rows left over at the end of a matrix (at most seven) go to the scalar set, which gives the same bits.
#![allow(clippy::needless_range_loop)] // Indices name lanes, tokens and groups of columns.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::x86::{F16c, Ymm, stamp_x86};
use super::{Acts, BLOCK, MatmulTask, Out, Table, float, scalar};
use crate::gguf::quant::GgmlType;

stamp_x86!("avx2,fma,f16c", Ymm);
pub(crate) static TABLE: Table = Table { matmul, quantize, rms_norm, add, silu_mul, l2_norm, attend };

/// Rows that are multiplied at once.
const ROWS: usize = 8;
/// Vectors of a block: each has four columns of every row.
const GROUPS: usize = BLOCK / 4;
/// Bytes of an expanded block: elements, scales, minimums.
const TILE_BLOCK: usize = ROWS * (BLOCK + 2 * size_of::<f32>());
/// Up to this many tokens are multiplied straight from the file's layout.
const DIRECT: usize = 2;
/// Groups of `ROWS` rows between what is multiplied and what is fetched.
const AHEAD: usize = 2;

/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[target_feature(enable = "avx2,fma,f16c")]
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

/// A block of eight rows in registers; `q` as described above.
struct Block {
    q: [__m256i; GROUPS],
    d: __m256,
    m: __m256,
}

/// How a type is read. An element counts as `q - OFFSET`.
trait Format {
    /// Bytes of a block of one row.
    const BYTES: usize;
    const HAS_MIN: bool;
    const OFFSET: i32;
    /// Whether `q` is signed. If so, it is split into magnitude and sign.
    const SIGNED: bool;
    /// How many products of four columns fit into 16 bits: `n * 2 * largest q * 127 < 32768`.
    const SUMMED: usize;

    /// # Safety
    /// Blocks of eight rows, `stride` bytes apart from `p`, are readable; the CPU features of the set.
    unsafe fn load(p: *const u8, stride: usize) -> Block;
}

/// 16 bytes of a row, and of the fourth after it.
///
/// # Safety
/// 16 bytes at `p` and `p + 4 * stride` are readable; AVX2.
#[inline(always)]
unsafe fn load_pair(p: *const u8, stride: usize) -> __m256i {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
        _mm256_inserti128_si256(low, _mm_loadu_si128(p.add(4 * stride).cast()), 1)
    }
}

/// 16 bytes of eight rows; lane `r` of vector `k` holds bytes `4k..4k+4` of row `r`.
///
/// # Safety
/// 16 bytes at `p + r * stride` are readable for `r < 8`; AVX2.
#[inline(always)]
unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [__m256i; 4] {
    // SAFETY: readable by the caller's promise.
    unsafe {
        // A transposition of 4 x 4 in each half.
        let [r0, r1] = [load_pair(p, stride), load_pair(p.add(stride), stride)];
        let [r2, r3] = [load_pair(p.add(2 * stride), stride), load_pair(p.add(3 * stride), stride)];
        let (low01, high01) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
        let (low23, high23) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
        [
            _mm256_unpacklo_epi64(low01, low23),
            _mm256_unpackhi_epi64(low01, low23),
            _mm256_unpacklo_epi64(high01, high23),
            _mm256_unpackhi_epi64(high01, high23),
        ]
    }
}

/// Nibbles of `load_16_bytes`: byte `i` of a row holds element `i` low and element `i + 16` high.
///
/// # Safety
/// As `load_16_bytes`.
#[inline(always)]
unsafe fn load_nibbles(p: *const u8, stride: usize) -> [__m256i; GROUPS] {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = load_16_bytes(p, stride);
        let mask = _mm256_set1_epi8(15);
        let mut q = [a, b, c, d, a, b, c, d];
        for g in 0..4 {
            q[g + 4] = _mm256_and_si256(_mm256_srli_epi16(q[g], 4), mask);
            q[g] = _mm256_and_si256(q[g], mask);
        }
        q
    }
}

/// The f16 in the lower halves of eight lanes.
///
/// # Safety
/// AVX2, F16C.
#[inline(always)]
unsafe fn halves(x: __m256i) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let x = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
        _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)))
    }
}

/// `f16 d; u8 qs[16]`
struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const HAS_MIN: bool = false;
    const OFFSET: i32 = 8;
    const SIGNED: bool = false;
    const SUMMED: usize = 8;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16 and 2..18.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            Block { q: load_nibbles(p.add(2), stride), d: halves(head), m: _mm256_setzero_ps() }
        }
    }
}

/// `f16 d; f16 m; u8 qs[16]`
struct Q4_1;
impl Format for Q4_1 {
    const BYTES: usize = 20;
    const HAS_MIN: bool = true;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;
    const SUMMED: usize = 8;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16 and 4..20.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            Block { q: load_nibbles(p.add(4), stride), d: halves(head), m: halves(_mm256_srli_epi32(head, 16)) }
        }
    }
}

/// `f16 d; i8 qs[32]`. A magnitude of 128 is one too many for i8, not for the unsigned operand: 2 * 128 * 127 < 32768.
struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 34;
    const HAS_MIN: bool = false;
    const OFFSET: i32 = 0;
    const SIGNED: bool = true;
    const SUMMED: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const u8, stride: usize) -> Block {
        // SAFETY: all of it lies inside the blocks: bytes 0..16, 2..18 and 18..34.
        unsafe {
            let [head, ..] = load_16_bytes(p, stride);
            let [a, b, c, d] = load_16_bytes(p.add(2), stride);
            let [e, f, g, h] = load_16_bytes(p.add(18), stride);
            Block { q: [a, b, c, d, e, f, g, h], d: halves(head), m: _mm256_setzero_ps() }
        }
    }
}

/// Asks for the bytes that are met `AHEAD` groups of rows later. Hardware sees eight slow streams and fetches too late: this
/// makes decoding from memory two to four times as fast.
#[inline(always)]
fn prefetch<F: Format>(rows: *const u8, stride: usize, b: usize) {
    let ahead = rows.wrapping_add(ROWS * (AHEAD * stride + b * F::BYTES));
    for line in (0..ROWS * F::BYTES).step_by(64) {
        // SAFETY: a prefetch reads nothing, even where no memory is.
        unsafe { _mm_prefetch(ahead.wrapping_add(line).cast(), _MM_HINT_T0) };
    }
}

/// Where the blocks of eight rows come from, one after the other.
trait Source: Copy {
    type At;
    /// # Safety
    /// Block `b` is readable; the CPU features of the set.
    unsafe fn block(self, b: usize) -> Self::At;
    /// # Safety
    /// As `block`.
    unsafe fn q(at: &Self::At, group: usize) -> __m256i;
    /// # Safety
    /// As `block`.
    unsafe fn scales(at: &Self::At) -> (__m256, __m256);
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
    unsafe fn q(at: &Block, group: usize) -> __m256i {
        at.q[group]
    }
    #[inline(always)]
    unsafe fn scales(at: &Block) -> (__m256, __m256) {
        (at.d, at.m)
    }
}

/// Expanded rows: blocks of `q[8]`, `d`, `m`, read when they are needed, because registers are few.
#[derive(Clone, Copy)]
struct Tile(*mut u8);
impl Tile {
    /// # Safety
    /// `n_blocks` blocks of eight rows at `p` are readable, as much of the tile is writable; the features of the set.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline(never)]
    unsafe fn expand<F: Format>(self, p: *const u8, stride: usize, n_blocks: usize) {
        for b in 0..n_blocks {
            // SAFETY: block `b` of both.
            unsafe {
                prefetch::<F>(p, stride, b);
                let block = F::load(p.add(b * F::BYTES), stride);
                let to = self.0.add(b * TILE_BLOCK).cast::<__m256i>();
                for g in 0..GROUPS {
                    _mm256_storeu_si256(to.add(g), block.q[g]);
                }
                _mm256_storeu_ps(to.add(GROUPS).cast(), block.d);
                _mm256_storeu_ps(to.add(GROUPS + 1).cast(), block.m);
            }
        }
    }
}
impl Source for Tile {
    type At = *const __m256i;
    #[inline(always)]
    unsafe fn block(self, b: usize) -> *const __m256i {
        // SAFETY: block `b` is inside the tile.
        unsafe { self.0.add(b * TILE_BLOCK).cast() }
    }
    #[inline(always)]
    unsafe fn q(at: &*const __m256i, group: usize) -> __m256i {
        // SAFETY: inside the block.
        unsafe { _mm256_loadu_si256(at.add(group)) }
    }
    #[inline(always)]
    unsafe fn scales(at: &*const __m256i) -> (__m256, __m256) {
        // SAFETY: inside the block, behind `q`.
        unsafe { (_mm256_loadu_ps(at.add(GROUPS).cast()), _mm256_loadu_ps(at.add(GROUPS + 1).cast())) }
    }
}

/// # Safety
/// As `matmul`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantised<F: Format>(task: &mut MatmulTask) {
    let (acts, stride, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % ROWS;
    assert!(whole * stride <= task.w.data.len() && n_blocks * TILE_BLOCK <= task.tile.len());
    let tile = Tile(task.tile.as_mut_ptr());
    for row in (task.rows.start..whole).step_by(ROWS) {
        // SAFETY: rows `row..row + 8` are inside the matrix, their expansion inside the tile (asserted above);
        // tokens `t..t + T` are inside the batch; the elements of `out` are the caller's.
        unsafe {
            let rows = task.w.data.as_ptr().add(row * stride);
            let native = Native::<F>(rows, stride, PhantomData);
            match acts.n_tok {
                1 => product::<F, _, 1>(native, &acts, 0, task.out, row),
                DIRECT => product::<F, _, DIRECT>(native, &acts, 0, task.out, row),
                n_tok => {
                    tile.expand::<F>(rows, stride, n_blocks);
                    let mut t = 0;
                    while t + 4 <= n_tok {
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

/// Eight rows times `T` tokens:
///
///     for each block b, group g of 4 columns, token t:
///         pairs[t]  += q[b][g] (u8) * broadcast(a[t][b][4g..4g+4])      16 bits, two columns each
///         after SUMMED groups: isum[t] += pairs[t].even + pairs[t].odd  32 bits, a lane for each row
///     acc[t] = fma(d * d_a, isum - OFFSET * Σa, acc[t]);  acc_m[t] = fma(m, s_a, acc_m[t])
///
/// Signed elements as |q| * (a with the sign of q).
///
/// # Safety
/// `source` has a block for each 32 columns; tokens `first..first + T` are inside `acts`; the features of the set; the
/// elements of `out` belong to the caller.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all sixteen registers.
unsafe fn product<F: Format, S: Source, const T: usize>(source: S, acts: &Acts, first: usize, out: Out, row: usize) {
    let n_blocks = acts.n_cols / BLOCK;
    assert!((first + T) * acts.n_cols <= acts.q.len());
    // SAFETY: pointers to token `first`; token `first + t` is `t * n_blocks` blocks behind. The other fields have one
    // element for each block of `q`.
    unsafe {
        let (q, d) = (acts.q.as_ptr().add(first * acts.n_cols), acts.d.as_ptr().add(first * n_blocks));
        let (s, sum) = (acts.s.as_ptr().add(first * n_blocks), acts.sum.as_ptr().add(first * n_blocks));
        let ones = _mm256_set1_epi16(1);
        let mut acc = [_mm256_setzero_ps(); T];
        let mut acc_m = [_mm256_setzero_ps(); T];
        for b in 0..n_blocks {
            let block = source.block(b);
            let mut isum = [_mm256_setzero_si256(); T];
            for first_g in (0..GROUPS).step_by(F::SUMMED) {
                let mut pairs = [_mm256_setzero_si256(); T];
                for g in first_g..first_g + F::SUMMED {
                    let w = S::q(&block, g);
                    let magnitude = if F::SIGNED { _mm256_abs_epi8(w) } else { w };
                    for t in 0..T {
                        let four = q.add((t * n_blocks + b) * BLOCK + 4 * g).cast::<i32>().read_unaligned();
                        let a = _mm256_set1_epi32(four);
                        let a = if F::SIGNED { _mm256_sign_epi8(a, w) } else { a };
                        pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(magnitude, a));
                    }
                }
                for t in 0..T {
                    isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(pairs[t], ones));
                }
            }
            let (w_d, w_m) = S::scales(&block);
            for t in 0..T {
                let at = t * n_blocks + b;
                if F::OFFSET != 0 {
                    isum[t] = _mm256_sub_epi32(isum[t], _mm256_set1_epi32(*sum.add(at) * F::OFFSET));
                }
                acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(w_d, _mm256_set1_ps(*d.add(at))), _mm256_cvtepi32_ps(isum[t]), acc[t]);
                if F::HAS_MIN {
                    acc_m[t] = _mm256_fmadd_ps(w_m, _mm256_set1_ps(*s.add(at)), acc_m[t]);
                }
            }
        }
        for t in 0..T {
            _mm256_storeu_ps(out.at(first + t, row), _mm256_add_ps(acc[t], acc_m[t]));
        }
    }
}
