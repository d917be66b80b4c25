//! The set for x86 with AVX-512 and its VNNI: sixteen rows of weights at a time, one f32 lane each.
//!
//! Built like `avx2.rs`, with vectors twice as long; the product is that of vnni.rs. A type adds only its `Format`, in
//! formats.rs.

use std::arch::x86_64::*;

use super::attend512::Zmm;
use super::avx2::load_eight_halves;
use super::float::F16c;
use super::formats::{Elements, FIRST_BYTES, Format, SIXTEENS, Vector, in_registers};
use super::product::{self, Expanded, Native, RowsOut, Set, Source};
use super::stamp_x86;
use super::vnni::{self, Vnni};
use super::vnni256::by_words;
use crate::kernels::{Acts, Attend, MatmulTask, Partial, TILE_ROWS, Table};

stamp_x86!(
    "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c",
    Avx512 { vector: __m512i, rows: TILE_ROWS, direct: [1 2 3 4], tiled: [8 4 3 2 1], words: by_words, scan: Fours },
    Zmm
);

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
    unsafe fn load_words(p: *const u8, stride: usize) -> __m512i {
        // SAFETY: passed on: the first eight rows, the others.
        unsafe { Self::of_eights([__m256i::load_words(p, stride), __m256i::load_words(p.add(8 * stride), stride)]) }
    }

    #[inline(always)]
    unsafe fn load_halves(p: *const u8, stride: usize) -> __m512i {
        // SAFETY: passed on: the first eight rows, the others.
        unsafe {
            let (first, last) = (load_eight_halves(p, stride), load_eight_halves(p.add(8 * stride), stride));
            _mm512_castps_si512(_mm512_cvtph_ps(_mm256_set_m128i(last, first)))
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
    unsafe fn of_eights(eights: [__m256i; 2]) -> Self {
        // SAFETY: registers only.
        unsafe { _mm512_inserti64x4(_mm512_castsi256_si512(eights[0]), eights[1], 1) }
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

    #[inline(always)]
    unsafe fn unzipped(self, y: Self) -> [Self; 2] {
        // SAFETY: registers only.
        unsafe {
            let (x, y) = (_mm512_castsi512_ps(self), _mm512_castsi512_ps(y));
            let (even, odd) = (_mm512_shuffle_ps::<0x88>(x, y), _mm512_shuffle_ps::<0xdd>(x, y));
            [_mm512_castps_si512(even), _mm512_castps_si512(odd)]
        }
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
        times_i32(v, y: Self) => _mm512_mullo_epi32(v, y);
        shl(v, n: u32) => _mm512_sll_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr(v, n: u32) => _mm512_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr_i16(v, n: u32) => _mm512_sra_epi16(v, _mm_cvtsi32_si128(n as i32));
        lookup(v, table: &[u8; 16]) => _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v);
        fifth_bits(v, g: usize) => {
            let bit = _mm512_and_si512(copied_bits(v, g), one_bit(g));
            if g.is_multiple_of(2) { bit.lookup(&SIXTEENS) } else { _mm512_min_epu8(bit, _mm512_set1_epi8(16)) }
        };
        low_nibbles_and(v, y: Self) => _mm512_ternarylogic_epi32::<0xe4>(v, y, _mm512_set1_epi8(15)); // As in vnni256.rs.
        negated(v, bits: Self, g: usize) => _mm512_mask_sub_epi8(v, has_bits(bits, g), _mm512_setzero_si512(), v);
        halves(v) => _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)));
        to_floats(v) => _mm512_castps_si512(_mm512_cvtepi32_ps(v));
        times(v, y: Self) => _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(y)));
    }
}

/// Which of the bits `4g..4g+4` of each lane, one a byte, are set.
///
/// # Safety
/// AVX-512BW.
#[inline(always)]
unsafe fn has_bits(v: __m512i, g: usize) -> __mmask64 {
    // SAFETY: registers only.
    unsafe { _mm512_test_epi8_mask(copied_bits(v, g), one_bit(g)) }
}

/// The byte that holds bits `4g..4g+4` of each lane, four times.
///
/// # Safety
/// AVX-512BW.
#[inline(always)]
unsafe fn copied_bits(v: __m512i, g: usize) -> __m512i {
    // SAFETY: registers only.
    unsafe { _mm512_shuffle_epi8(v, _mm512_add_epi8(_mm512_broadcast_i32x4(FIRST_BYTES), _mm512_set1_epi8(g as i8 / 2))) }
}

/// Of `copied_bits` the one that each byte keeps.
///
/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn one_bit(g: usize) -> __m512i {
    // SAFETY: registers only.
    unsafe { _mm512_set1_epi32(if g.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 }) }
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

impl Vnni for __m512i {
    in_registers! {
        add_byte_products(v, w: Self, a: Self) => _mm512_dpbusd_epi32(v, w, a);
        times_i16(v, y: Self) => _mm512_mullo_epi16(v, y);
        shr_i32(v, n: u32) => _mm512_sra_epi32(v, _mm_cvtsi32_si128(n as i32));
        add_floats(v, y: Self) => _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(v), _mm512_castsi512_ps(y)));
    }

    #[inline(always)]
    unsafe fn store_from(self, skip: usize, p: *mut f32) {
        // SAFETY: lanes from `skip` on are writable by the caller's promise.
        unsafe { _mm512_mask_storeu_ps(p, u16::MAX << skip, _mm512_castsi512_ps(self)) }
    }
}

/// `vnni::product` for sixteen rows.
///
/// # Safety
/// As `vnni::product`; the features of the set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all registers. The compiler heeds it where there are several callers.
unsafe fn product<E: Elements, S: Source<__m512i>, const T: usize>(source: S, acts: &Acts, first: usize, to: RowsOut) {
    // SAFETY: passed on.
    unsafe { vnni::product::<__m512i, E, S, T>(source, acts, first, to) }
}
