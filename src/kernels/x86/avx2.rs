//! The set for x86 with AVX2, FMA and F16C: eight rows of weights at a time, one f32 lane each.
//!
//! A block of eight rows is eight vectors: lane `r` of vector `g` holds columns `4g..4g+4` of row `r`, so that four
//! activations, broadcast, meet all rows at once and no sum ever runs across lanes. A few tokens are multiplied while the
//! block is still in registers; for more, the rows are expanded once into the tile. A type adds only its `Format`, in
//! formats.rs.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::attend::Ymm;
use super::float::F16c;
use super::formats::{self, Elements, FIRST_BYTES, Format, SIXTEENS, Scales, Vector, in_registers};
use super::product::{self, Expanded, Native, RowsOut, Set, Source};
use super::stamp_x86;
use super::words::{self, Words};
use crate::kernels::{Acts, Attend, BLOCK, MatmulTask, Partial, Table};

stamp_x86!(
    "avx2,fma,f16c",
    Avx2 { vector: __m256i, rows: 8, direct: [1 2], tiled: [4 3 2 1], words: by_words, scan: Pairs },
    Ymm
);

/// Vectors of a block: each has four columns of every row.
const GROUPS: usize = BLOCK / 4;

type Block = formats::Block<__m256i>;

/// Eight rows.
impl Vector for __m256i {
    const SIGN: u8 = 0;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn load_16_bytes(p: *const u8, stride: usize) -> [__m256i; 4] {
        // SAFETY: readable by the caller's promise.
        unsafe {
            transposed([
                load_pair(p, stride),
                load_pair(p.add(stride), stride),
                load_pair(p.add(2 * stride), stride),
                load_pair(p.add(3 * stride), stride),
            ])
        }
    }

    #[inline(always)]
    unsafe fn load_words(p: *const u8, stride: usize) -> __m256i {
        // SAFETY: readable by the caller's promise.
        unsafe {
            let mut words = [0; 8];
            for r in 0..8 {
                words[r] = p.add(r * stride).cast::<i32>().read_unaligned();
            }
            let [a, b, c, d, e, f, g, h] = words;
            _mm256_setr_epi32(a, b, c, d, e, f, g, h)
        }
    }

    #[inline(always)]
    unsafe fn load_halves(p: *const u8, stride: usize) -> __m256i {
        // SAFETY: passed on.
        unsafe { _mm256_castps_si256(_mm256_cvtph_ps(load_eight_halves(p, stride))) }
    }

    #[inline(always)]
    unsafe fn gather_16_bytes(rows: &[*const u8], at: usize) -> [__m256i; 4] {
        let rows: &[*const u8; 8] = rows.first_chunk().expect("a row for each lane");
        // SAFETY: readable by the caller's promise.
        unsafe {
            transposed([
                gather_pair([rows[0], rows[4]], at),
                gather_pair([rows[1], rows[5]], at),
                gather_pair([rows[2], rows[6]], at),
                gather_pair([rows[3], rows[7]], at),
            ])
        }
    }

    #[inline(always)]
    unsafe fn of_eights(eights: [__m256i; 2]) -> Self {
        eights[0]
    }

    #[inline(always)]
    unsafe fn load<T>(p: *const T) -> Self {
        // SAFETY: readable by the caller's promise.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store<T>(self, p: *mut T) {
        // SAFETY: writable by the caller's promise.
        unsafe { _mm256_storeu_si256(p.cast(), self) }
    }

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        // SAFETY: registers only.
        unsafe { _mm256_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn unzipped(self, y: Self) -> [Self; 2] {
        // SAFETY: registers only.
        unsafe {
            let (x, y) = (_mm256_castsi256_ps(self), _mm256_castsi256_ps(y));
            let (even, odd) = (_mm256_shuffle_ps::<0x88>(x, y), _mm256_shuffle_ps::<0xdd>(x, y));
            [_mm256_castps_si256(even), _mm256_castps_si256(odd)]
        }
    }

    in_registers! {
        add_products(v, x: Self, y: Self) => _mm256_add_epi32(v, _mm256_madd_epi16(x, y));
        times_plus(v, y: Self, z: Self) => {
            let (x, y, z) = (_mm256_castsi256_ps(v), _mm256_castsi256_ps(y), _mm256_castsi256_ps(z));
            _mm256_castps_si256(_mm256_fmadd_ps(x, y, z))
        };
        and(v, y: Self) => _mm256_and_si256(v, y);
        or(v, y: Self) => _mm256_or_si256(v, y);
        xor(v, y: Self) => _mm256_xor_si256(v, y);
        add(v, y: Self) => _mm256_add_epi32(v, y);
        times_i32(v, y: Self) => _mm256_mullo_epi32(v, y);
        shl(v, n: u32) => _mm256_sll_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr(v, n: u32) => _mm256_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
        shr_i16(v, n: u32) => _mm256_sra_epi16(v, _mm_cvtsi32_si128(n as i32));
        lookup(v, table: &[u8; 16]) => _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), v);
        fifth_bits(v, g: usize) => {
            let bit = _mm256_and_si256(copied_bits(v, g), one_bit(g));
            if g.is_multiple_of(2) { bit.lookup(&SIXTEENS) } else { _mm256_min_epu8(bit, _mm256_set1_epi8(16)) }
        };
        low_nibbles_and(v, y: Self) => _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi8(15)), y);
        negated(v, bits: Self, g: usize) => _mm256_sign_epi8(v, _mm256_or_si256(has_bits(bits, g), _mm256_set1_epi8(1)));
        halves(v) => {
            let x = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
            let x = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            _mm256_castps_si256(_mm256_cvtph_ps(x))
        };
        to_floats(v) => _mm256_castps_si256(_mm256_cvtepi32_ps(v));
        times(v, y: Self) => _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(v), _mm256_castsi256_ps(y)));
    }
}

/// The byte that holds bits `4g..4g+4` of each lane, four times.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub(super) unsafe fn copied_bits(v: __m256i, g: usize) -> __m256i {
    // SAFETY: registers only.
    unsafe { _mm256_shuffle_epi8(v, _mm256_add_epi8(_mm256_broadcastsi128_si256(FIRST_BYTES), _mm256_set1_epi8(g as i8 / 2))) }
}

/// Bytes of ones where bits `4g..4g+4` of the lane, one a byte, are set.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn has_bits(v: __m256i, g: usize) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        let one = one_bit(g);
        _mm256_cmpeq_epi8(_mm256_and_si256(copied_bits(v, g), one), one)
    }
}

/// Of `copied_bits` the one that each byte keeps.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub(super) unsafe fn one_bit(g: usize) -> __m256i {
    // SAFETY: registers only.
    unsafe { _mm256_set1_epi32(if g.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 }) }
}

/// An f16 of each of eight rows. They are put together as integers: vectors have enough to load.
///
/// # Safety
/// 2 bytes at `p + r * stride` are readable for every row `r`; AVX2.
#[inline(always)]
pub(super) unsafe fn load_eight_halves(p: *const u8, stride: usize) -> __m128i {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let mut fours = [0u64; 2];
        for r in 0..8 {
            fours[r / 4] |= u64::from(p.add(r * stride).cast::<u16>().read_unaligned()) << (r % 4 * 16);
        }
        _mm_set_epi64x(fours[1] as i64, fours[0] as i64)
    }
}

/// 16 bytes of a row, and of the fourth after it.
///
/// # Safety
/// 16 bytes at `p` and `p + 4 * stride` are readable; AVX2.
#[inline(always)]
unsafe fn load_pair(p: *const u8, stride: usize) -> __m256i {
    // SAFETY: passed on.
    unsafe { gather_pair([p, p.add(4 * stride)], 0) }
}

/// 16 bytes of two rows, `at` bytes behind where they begin.
///
/// # Safety
/// They are readable; AVX2.
#[inline(always)]
unsafe fn gather_pair(rows: [*const u8; 2], at: usize) -> __m256i {
    // SAFETY: readable by the caller's promise.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(rows[0].add(at).cast()));
        _mm256_inserti128_si256(low, _mm_loadu_si128(rows[1].add(at).cast()), 1)
    }
}

/// A transposition of 4 x 4 in each half.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn transposed([r0, r1, r2, r3]: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: registers only.
    unsafe {
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

impl Words for __m256i {
    #[inline(always)]
    unsafe fn parted(signs: Self) -> Self {
        signs
    }

    #[inline(always)]
    unsafe fn half(words: [__m256i; 2], a: *const i8, signs: &Self, four: usize, half: usize) -> Self {
        // SAFETY: the activations by the caller's promise.
        unsafe {
            let mut pairs = [*signs; 2];
            for i in 0..2 {
                // Of both rows in a half of 128 bits the byte with these signs, eight times.
                let byte = (8 * four + 2 * half + i) as i64 * 0x0101_0101_0101_0101;
                let byte = _mm256_setr_epi64x(byte, byte + FOUR, byte, byte + FOUR);
                let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                let minus = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(*signs, byte), one), one);
                let a = _mm256_set1_epi64x(a.add(8 * i).cast::<i64>().read_unaligned());
                let a = _mm256_sign_epi8(a, _mm256_or_si256(minus, _mm256_set1_epi8(1)));
                pairs[i] = _mm256_maddubs_epi16(words[i], a);
            }
            _mm256_madd_epi16(_mm256_add_epi16(pairs[0], pairs[1]), _mm256_set1_epi16(1))
        }
    }
}

/// The number four in each byte.
const FOUR: i64 = 0x0404_0404_0404_0404;

/// `words::product`
///
/// # Safety
/// As `words::product`; the features of the set.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)] // As `product`.
unsafe fn by_words<G: Grid, const T: usize>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut) {
    // SAFETY: passed on.
    unsafe { words::product::<__m256i, G, T>(p, stride, acts, to) }
}

/// Eight rows times `T` tokens:
///
///     for each block b, group g of 4 columns, token t:
///         pairs[t]  += q[b][g] (u8) * broadcast(a[t][b][4g..4g+4])      16 bits, two columns each
///         after SUMMED groups: isum[t] += pairs[t].even + pairs[t].odd  32 bits, a lane for each row
///     isum[t] -= OFFSET * Σa
///     acc[t] = fma(d * d_a, isum, acc[t]);  acc_m[t] = fma(m, s_a, acc_m[t])
///
/// Signed elements as |q| * (a with the sign of q). With a scale for each half of a block the pairs are multiplied by it when
/// they are added up, and Σa = sc0 Σa0 + sc1 Σa1.
///
/// # Safety
/// `source` has a block for each 32 columns; tokens `first..first + T` are inside `acts`; the features of the set; the
/// elements of `to` belong to the caller.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)] // On its own the loop has all sixteen registers. The compiler heeds it where there are several callers.
unsafe fn product<E: Elements, S: Source<__m256i>, const T: usize>(source: S, acts: &Acts, first: usize, to: RowsOut) {
    let n_blocks = acts.n_cols / BLOCK;
    assert!((first + T) * acts.n_cols <= acts.q.len());
    // SAFETY: pointers to token `first`; token `first + t` is `t * n_blocks` blocks behind. The other fields have one
    // element for each block of `q`.
    unsafe {
        let (q, d) = (acts.q.as_ptr().add(first * acts.n_cols), acts.d.as_ptr().add(first * n_blocks));
        let (s, sum) = (acts.s.as_ptr().add(first * n_blocks), acts.sum.as_ptr().add(first * n_blocks));
        let sum16 = acts.sum16.as_ptr().add(first * n_blocks);
        let mut acc = [_mm256_setzero_ps(); T];
        let mut acc_m = [_mm256_setzero_ps(); T];
        let mut scratch = MaybeUninit::<[Block; 8]>::uninit();
        for file_block in 0..n_blocks / S::BLOCKS {
            let blocks = source.blocks(file_block, scratch.as_mut_ptr().cast());
            for sub in 0..S::BLOCKS {
                let (block, b) = (&*blocks.add(sub), file_block * S::BLOCKS + sub);
                source.look_ahead(b);
                let scales = match E::SCALES {
                    Scales::TwoMin => _mm256_and_si256(block.m, _mm256_set1_epi16(0xff)),
                    _ => block.m,
                };
                let mut isum = [_mm256_setzero_si256(); T];
                for first_g in (0..GROUPS).step_by(E::SUMMED) {
                    let mut pairs = [_mm256_setzero_si256(); T];
                    for g in first_g..first_g + E::SUMMED {
                        let w = block.q[g];
                        let magnitude = if E::SIGNED { _mm256_abs_epi8(w) } else { w };
                        for t in 0..T {
                            let four = q.add((t * n_blocks + b) * BLOCK + 4 * g).cast::<i32>().read_unaligned();
                            let a = _mm256_set1_epi32(four);
                            let a = if E::SIGNED { _mm256_sign_epi8(a, w) } else { a };
                            pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(magnitude, a));
                        }
                    }
                    let factors = match (E::SCALES.halves(), first_g < GROUPS / 2) {
                        (false, _) => _mm256_set1_epi16(1),
                        (true, true) => _mm256_blend_epi16(scales, _mm256_slli_epi32(scales, 16), 0xaa),
                        (true, false) => _mm256_blend_epi16(_mm256_srli_epi32(scales, 16), scales, 0xaa),
                    };
                    for t in 0..T {
                        isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(pairs[t], factors));
                    }
                }
                let (w_d, w_m) = block.scales::<E>();
                let (w_d, w_m) = (_mm256_castsi256_ps(w_d), _mm256_castsi256_ps(w_m));
                let sub_offset = _mm256_mullo_epi16(scales, _mm256_set1_epi16(E::OFFSET as i16));
                for t in 0..T {
                    let at = t * n_blocks + b;
                    let (d, halves) = (_mm256_set1_ps(*d.add(at)), _mm256_set1_epi32(*sum16.add(at)));
                    if E::OFFSET != 0 {
                        let offset = match E::SCALES.halves() {
                            true => _mm256_madd_epi16(sub_offset, halves),
                            false => _mm256_set1_epi32((*sum.add(at)).wrapping_mul(E::OFFSET)),
                        };
                        isum[t] = _mm256_sub_epi32(isum[t], offset);
                    }
                    acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(w_d, d), _mm256_cvtepi32_ps(isum[t]), acc[t]);
                    if E::SCALES == Scales::OneMin {
                        acc_m[t] = _mm256_fmadd_ps(w_m, _mm256_set1_ps(*s.add(at)), acc_m[t]);
                    }
                    if E::SCALES == Scales::TwoMin {
                        let minimum = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_srli_epi16(block.m, 8), halves));
                        acc_m[t] = _mm256_fmadd_ps(_mm256_mul_ps(w_m, d), minimum, acc_m[t]);
                    }
                }
            }
        }
        for t in 0..T {
            let (at, sum) = (to.out.at(first + t, to.first), _mm256_add_ps(acc[t], acc_m[t]));
            if to.skip == 0 {
                _mm256_storeu_ps(at, sum);
            } else {
                let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                _mm256_maskstore_ps(at, _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(to.skip as i32 - 1)), sum);
            }
        }
    }
}
