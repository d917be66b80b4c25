//! The set for x86 with AVX-512 and its VNNI: sixteen rows of weights at a time, one f32 lane each.
//!
//! Built like `avx2.rs`, with vectors twice as long: lane `r` of vector `g` of a block holds columns `4g..4g+4` of row `r`.
//! `vpdpbusd` multiplies unsigned by signed bytes and adds four products to a lane of 32 bits, so all elements are made
//! unsigned here and the offset is taken off with the sum of the activations. A type adds only its `Format`, in formats.rs.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::attend512::Zmm;
use super::float::F16c;
use super::formats::{self, FIRST_BYTES, Format, Scales, Vector, in_registers};
use super::product::{self, Expanded, RowsOut, Set, Source};
use super::stamp_x86;
use crate::kernels::{Acts, Attend, BLOCK, MatmulTask, Partial, TILE_ROWS, Table};

stamp_x86!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c", Avx512, Zmm);

/// Vectors of a block: each has four columns of every row.
const GROUPS: usize = BLOCK / 4;

#[derive(Clone, Copy)]
struct Avx512;
impl Set for Avx512 {
    type V = __m512i;
    type F16 = F16c;
    const ROWS: usize = TILE_ROWS;
    const DIRECT: usize = 4;
    const TOKENS: usize = 8;

    #[inline(always)]
    unsafe fn expand<F: Format>(tile: Expanded<Self>, p: *const u8, stride: usize, n: usize) {
        // SAFETY: passed on.
        unsafe { expand::<F>(tile, p, stride, n) }
    }

    #[inline(always)]
    unsafe fn product<F: Format, From: Source<Self::V>, const T: usize>(from: From, acts: &Acts, first: usize, to: RowsOut) {
        // SAFETY: passed on.
        unsafe { product::<F, _, T>(from, acts, first, to) }
    }
}

type Block = formats::Block<__m512i>;

/// Sixteen rows.
impl Vector for __m512i {
    const SIGN: u8 = 0x80;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [__m512i; 4] {
        // SAFETY: readable by the caller's promise.
        unsafe {
            transposed([
                load_four(p, stride),
                load_four(p.add(stride), stride),
                load_four(p.add(2 * stride), stride),
                load_four(p.add(3 * stride), stride),
            ])
        }
    }

    #[inline(always)]
    unsafe fn gather_16_bytes(rows: &[*const u8], at: usize) -> [__m512i; 4] {
        let rows: &[*const u8; 16] = rows.first_chunk().expect("a row for each lane");
        // SAFETY: readable by the caller's promise.
        unsafe {
            transposed([
                gather_four([rows[0], rows[4], rows[8], rows[12]], at),
                gather_four([rows[1], rows[5], rows[9], rows[13]], at),
                gather_four([rows[2], rows[6], rows[10], rows[14]], at),
                gather_four([rows[3], rows[7], rows[11], rows[15]], at),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load<T>(p: *const T) -> Self {
        // SAFETY: readable by the caller's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store<T>(self, p: *mut T) {
        // SAFETY: writable by the caller's promise.
        unsafe { _mm512_storeu_si512(p.cast(), self) }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        // SAFETY: registers only.
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    in_registers! {
        add_products(v, x: Self, y: Self) => _mm512_dpwssd_epi32(v, x, y);
        times_plus(v, y: Self, z: Self) => {
            let (x, y, z) = (_mm512_castsi512_ps(v), _mm512_castsi512_ps(y), _mm512_castsi512_ps(z));
            _mm512_castps_si512(_mm512_fmadd_ps(x, y, z))
        };
        and(v, y: Self) => _mm512_and_si512(v, y);
        or(v, y: Self) => _mm512_or_si512(v, y);
        xor(v, y: Self) => _mm512_xor_si512(v, y);
        add(v, y: Self) => _mm512_add_epi32(v, y);
        shl(v, n: u32) => _mm512_sll_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr(v, n: u32) => _mm512_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr_i16(v, n: u32) => _mm512_sra_epi16(v, _mm_cvtsi32_si128(n as i32));
        lookup(v, table: &[u8; 16]) => _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v);
        fifth_bits(v, g: usize) => {
            // The byte that holds the four bits, four times; then each of its copies keeps one.
            let copied =
                _mm512_shuffle_epi8(v, _mm512_add_epi8(_mm512_broadcast_i32x4(FIRST_BYTES), _mm512_set1_epi8(g as i8 / 2)));
            let one = _mm512_set1_epi32(if g.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 });
            _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(copied, one), 16)
        };
        halves(v) => _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)));
        to_floats(v) => _mm512_castps_si512(_mm512_cvtepi32_ps(v));
        times(v, y: Self) => _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(y)));
    }
}

/// 16 bytes of a row, and of the fourth, eighth and twelfth after it.
///
/// # Safety
/// 16 bytes of these rows, `stride` bytes apart from `p`, are readable; AVX-512F.
#[inline(always)]
unsafe fn load_four(p: *const u8, stride: usize) -> __m512i {
    // SAFETY: passed on.
    unsafe { gather_four([p, p.add(4 * stride), p.add(8 * stride), p.add(12 * stride)], 0) }
}

/// 16 bytes of four rows, `at` bytes behind where they begin.
///
/// # Safety
/// They are readable; AVX-512F.
#[inline(always)]
unsafe fn gather_four(rows: [*const u8; 4], at: usize) -> __m512i {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let x = _mm512_castsi128_si512(_mm_loadu_si128(rows[0].add(at).cast()));
        let x = _mm512_inserti32x4(x, _mm_loadu_si128(rows[1].add(at).cast()), 1);
        let x = _mm512_inserti32x4(x, _mm_loadu_si128(rows[2].add(at).cast()), 2);
        _mm512_inserti32x4(x, _mm_loadu_si128(rows[3].add(at).cast()), 3)
    }
}

/// A transposition of 4 x 4 in each quarter.
///
/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn transposed([r0, r1, r2, r3]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: registers only.
    unsafe {
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

/// Sixteen rows times `T` tokens:
///
///     for each block b, group g of 4 columns, token t:
///         isum[t] += Σ q[b][g] (u8) * broadcast(a[t][b][4g..4g+4])     four columns to a lane of 32 bits
///     isum[t] -= OFFSET * Σa
///     acc[t] = fma(d * d_a, isum, acc[t]);  acc_m[t] = fma(m, s_a, acc_m[t])
///
/// With a scale for each half of a block: isum = sc0 * (isum of g < 4) + sc1 * (isum of g >= 4) - OFFSET * (sc0 Σa0 + sc1 Σa1).
///
/// # Safety
/// `source` has a block for each 32 columns; tokens `first..first + T` are inside `acts`; the features of the set; the
/// elements of `to` belong to the caller.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all registers.
unsafe fn product<F: Format, S: Source<__m512i>, const T: usize>(source: S, acts: &Acts, first: usize, to: RowsOut) {
    // All elements are unsigned here: signed ones have been flipped.
    let zero_point = const { if F::SIGNED { 128 } else { F::OFFSET } };
    let n_blocks = acts.n_cols / BLOCK;
    assert!((first + T) * acts.n_cols <= acts.q.len());
    // SAFETY: pointers to token `first`; token `first + t` is `t * n_blocks` blocks behind. The other fields have one
    // element for each block of `q`.
    unsafe {
        let (q, d) = (acts.q.as_ptr().add(first * acts.n_cols), acts.d.as_ptr().add(first * n_blocks));
        let (s, sum16) = (acts.s.as_ptr().add(first * n_blocks), acts.sum16.as_ptr().add(first * n_blocks));
        // `vpdpwssd` with both halves of `sum16`.
        let zero_points = _mm512_set1_epi16(-zero_point as i16);
        let mut acc = [_mm512_setzero_ps(); T];
        let mut acc_m = [_mm512_setzero_ps(); T];
        let mut first_half = [_mm512_setzero_si512(); T];
        let mut scratch = MaybeUninit::<[Block; 8]>::uninit();
        for file_block in 0..n_blocks / F::BLOCKS {
            let blocks = source.blocks::<F>(file_block, scratch.as_mut_ptr().cast());
            for sub in 0..F::BLOCKS {
                let (block, b) = (&*blocks.add(sub), file_block * F::BLOCKS + sub);
                source.look_ahead::<F>(b);
                let scales = match F::SCALES {
                    Scales::TwoMin => _mm512_and_si512(block.m, _mm512_set1_epi16(0xff)),
                    _ => block.m,
                };
                let mut isum = [_mm512_setzero_si512(); T];
                for g in 0..GROUPS {
                    if F::SCALES.halves() && g == GROUPS / 2 {
                        // What a lane holds so far is the first half.
                        let sc0 = _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16);
                        for t in 0..T {
                            first_half[t] = _mm512_mullo_epi32(isum[t], sc0);
                            isum[t] = _mm512_setzero_si512();
                        }
                    }
                    let w = block.q[g];
                    for t in 0..T {
                        let four = q.add((t * n_blocks + b) * BLOCK + 4 * g).cast::<i32>().read_unaligned();
                        isum[t] = _mm512_dpbusd_epi32(isum[t], w, _mm512_set1_epi32(four));
                    }
                }
                let (sc1, sub_zero) = (_mm512_srai_epi32(scales, 16), _mm512_mullo_epi16(scales, zero_points));
                let (w_d, w_m) = block.scales::<F>();
                let (w_d, w_m) = (_mm512_castsi512_ps(w_d), _mm512_castsi512_ps(w_m));
                for t in 0..T {
                    let at = t * n_blocks + b;
                    let (d, sums) = (_mm512_set1_ps(*d.add(at)), _mm512_set1_epi32(*sum16.add(at)));
                    if F::SCALES.halves() {
                        isum[t] = _mm512_add_epi32(_mm512_mullo_epi32(isum[t], sc1), first_half[t]);
                    }
                    if zero_point != 0 {
                        isum[t] = _mm512_dpwssd_epi32(isum[t], if F::SCALES.halves() { sub_zero } else { zero_points }, sums);
                    }
                    acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(w_d, d), _mm512_cvtepi32_ps(isum[t]), acc[t]);
                    if F::SCALES == Scales::OneMin {
                        acc_m[t] = _mm512_fmadd_ps(w_m, _mm512_set1_ps(*s.add(at)), acc_m[t]);
                    }
                    if F::SCALES == Scales::TwoMin {
                        let minimum = _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_srli_epi16(block.m, 8), sums));
                        acc_m[t] = _mm512_fmadd_ps(_mm512_mul_ps(w_m, d), minimum, acc_m[t]);
                    }
                }
            }
        }
        for t in 0..T {
            let mask = u16::MAX << to.skip;
            _mm512_mask_storeu_ps(to.out.at(first + t, to.first), mask, _mm512_add_ps(acc[t], acc_m[t]));
        }
    }
}
