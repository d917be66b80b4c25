//! The set for x86 with the VNNI of AVX-512 in vectors of 256 bits: eight rows of weights at a time, one f32 lane each.
//!
//! It reads rows as `avx2.rs` does and multiplies as `avx512.rs` does (vnni.rs). Cores that split instructions of 512 bits, or
//! that follow sixteen rows of the file worse than eight, decode faster with it; `model/choice.rs` finds out.

use std::arch::x86_64::*;

use super::attend::Ymm;
use super::avx2::{copied_bits, one_bit};
use super::float::F16c;
use super::formats::{Elements, Format, Vector, in_registers};
use super::product::{self, Expanded, Native, RowsOut, Set, Source};
use super::stamp_x86;
use super::vnni::{self, Vnni};
use super::words::{self, Words};
use crate::kernels::{Acts, Attend, MatmulTask, Partial, Table};

stamp_x86!(
    "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c",
    Vnni256 { vector: Unsigned, rows: 8, direct: [1 2 3 4], tiled: [8 4 3 2 1], words: by_words, scan: Fours },
    Ymm
);

/// Eight rows, whose elements are made unsigned.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Unsigned(__m256i);

/// Functions of `Vector` that are those of eight rows in AVX2: of vectors, and of one vector and something else.
macro_rules! as_in_avx2 {
    ($($name:ident($($y:ident),*);)* ; $($other:ident($arg:ident: $ty:ty);)*) => {
        $(
            #[inline(always)]
            unsafe fn $name(self $(, $y: Self)*) -> Self {
                // SAFETY: passed on.
                Unsigned(unsafe { self.0.$name($($y.0),*) })
            }
        )*
        $(
            #[inline(always)]
            unsafe fn $other(self, $arg: $ty) -> Self {
                // SAFETY: passed on.
                Unsigned(unsafe { self.0.$other($arg) })
            }
        )*
    };
}

impl Vector for Unsigned {
    const SIGN: u8 = 0x80;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [Self; 4] {
        // SAFETY: passed on.
        let [a, b, c, d] = unsafe { __m256i::load_16_bytes(p, stride) };
        [Unsigned(a), Unsigned(b), Unsigned(c), Unsigned(d)]
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u8, stride: usize) -> Self {
        // SAFETY: passed on.
        Unsigned(unsafe { __m256i::load_words(p, stride) })
    }

    #[inline(always)]
    unsafe fn load_halves(p: *const u8, stride: usize) -> Self {
        // SAFETY: passed on.
        Unsigned(unsafe { __m256i::load_halves(p, stride) })
    }

    #[inline(always)]
    unsafe fn gather_16_bytes(rows: &[*const u8], at: usize) -> [Self; 4] {
        // SAFETY: passed on.
        let [a, b, c, d] = unsafe { __m256i::gather_16_bytes(rows, at) };
        [Unsigned(a), Unsigned(b), Unsigned(c), Unsigned(d)]
    }

    #[inline(always)]
    unsafe fn of_eights(eights: [__m256i; 2]) -> Self {
        Unsigned(eights[0])
    }

    #[inline(always)]
    unsafe fn load<T>(p: *const T) -> Self {
        // SAFETY: passed on.
        Unsigned(unsafe { __m256i::load(p) })
    }

    #[inline(always)]
    unsafe fn store<T>(self, p: *mut T) {
        // SAFETY: passed on.
        unsafe { self.0.store(p) }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        // SAFETY: passed on.
        Unsigned(unsafe { __m256i::splat(x) })
    }

    #[inline(always)]
    unsafe fn unzipped(self, y: Self) -> [Self; 2] {
        // SAFETY: passed on.
        let [even, odd] = unsafe { self.0.unzipped(y.0) };
        [Unsigned(even), Unsigned(odd)]
    }

    in_registers! {
        add_products(v, x: Self, y: Self) => Unsigned(_mm256_dpwssd_epi32(v.0, x.0, y.0));
        negated(v, bits: Self, g: usize) => {
            let set = _mm256_test_epi8_mask(copied_bits(bits.0, g), one_bit(g));
            Unsigned(_mm256_mask_sub_epi8(v.0, set, _mm256_setzero_si256(), v.0))
        };
        // v where the third is set, y elsewhere.
        low_nibbles_and(v, y: Self) => Unsigned(_mm256_ternarylogic_epi32::<0xe4>(v.0, y.0, _mm256_set1_epi8(15)));
    }

    as_in_avx2! {
        times_plus(y, z);
        and(y);
        or(y);
        xor(y);
        add(y);
        times_i32(y);
        halves();
        to_floats();
        times(y);
        ;
        shl(n: u32);
        shr(n: u32);
        shr_i16(n: u32);
        lookup(table: &[u8; 16]);
        fifth_bits(g: usize);
    }
}

impl Vnni for Unsigned {
    in_registers! {
        add_byte_products(v, w: Self, a: Self) => Unsigned(_mm256_dpbusd_epi32(v.0, w.0, a.0));
        times_i16(v, y: Self) => Unsigned(_mm256_mullo_epi16(v.0, y.0));
        shr_i32(v, n: u32) => Unsigned(_mm256_sra_epi32(v.0, _mm_cvtsi32_si128(n as i32)));
        add_floats(v, y: Self) => {
            Unsigned(_mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(v.0), _mm256_castsi256_ps(y.0))))
        };
    }

    #[inline(always)]
    unsafe fn store_from(self, skip: usize, p: *mut f32) {
        // SAFETY: lanes from `skip` on are writable by the caller's promise.
        unsafe { _mm256_mask_storeu_ps(p, u8::MAX << skip, _mm256_castsi256_ps(self.0)) }
    }
}

impl Words for Unsigned {
    /// Words of 32 bits, in the order of the vectors that they belong to: a bit for each byte of it.
    #[inline(always)]
    unsafe fn parted(signs: Self) -> Self {
        // SAFETY: registers only.
        unsafe {
            // Of each byte of a lane those of two rows behind each other, then those of the two rows four further on.
            let order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            let twos = _mm256_shuffle_epi8(signs.0, _mm256_broadcastsi128_si256(order));
            let (low, high) = (_mm256_castsi256_si128(twos), _mm256_extracti128_si256(twos, 1));
            Unsigned(_mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn half(words: [__m256i; 2], a: *const i8, signs: &Self, four: usize, half: usize) -> Self {
        // SAFETY: the activations by the caller's promise; a word of the vector.
        unsafe {
            let mut sum = _mm256_setzero_si256();
            for i in 0..2 {
                let minus = (&raw const *signs).cast::<u32>().add(4 * four + 2 * half + i).read();
                let a = _mm256_set1_epi64x(a.add(8 * i).cast::<i64>().read_unaligned());
                let a = _mm256_mask_sub_epi8(a, minus, _mm256_setzero_si256(), a);
                sum = _mm256_dpbusd_epi32(sum, words[i], a);
            }
            Unsigned(sum)
        }
    }
}

/// `words::product` for both sets with VNNI: a vector twice as long would take more instructions to fill.
///
/// # Safety
/// As `words::product`; the features of the set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)] // As `product`.
pub unsafe fn by_words<G: Grid, const T: usize>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut) {
    // SAFETY: passed on.
    unsafe { words::product::<Unsigned, G, T>(p, stride, acts, to) }
}

/// `vnni::product` for eight rows.
///
/// # Safety
/// As `vnni::product`; the features of the set.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all registers. The compiler heeds it where there are several callers.
unsafe fn product<E: Elements, S: Source<Unsigned>, const T: usize>(source: S, acts: &Acts, first: usize, to: RowsOut) {
    // SAFETY: passed on.
    unsafe { vnni::product::<Unsigned, E, S, T>(source, acts, first, to) }
}
