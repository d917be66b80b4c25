//! The scan over the index of the past, in vectors of 256 bits: what spec/scan.rs specifies, bit for bit. Bytes of four rows are brought
//! side by side, so that what one shift and one mask leave are four elements of a key: a lane of 32 bits is a key, and the keys of a
//! chunk are four lanes side by side.
//!
//! All is `inline(always)`, to take the features of the set; no closures, for those would not.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::kernels::spec::scan::{self as spec, SCAN_CHUNKS, SCAN_TILE};
use crate::kernels::{Asked, MAX_HEAD_DIM};

/// Queries that meet a tile at once.
const MOST: usize = 4;
/// Rows that are brought side by side, and elements of a key in them.
const ROWS: usize = 4;
const ELEMENTS: usize = 4 * ROWS;
/// How many tiles further the next lines are asked for.
const AHEAD: usize = 3;

/// Sums of products of four codes and four elements of a query, in the lanes of keys.
pub trait Sums {
    /// # Safety
    /// The features of the set.
    unsafe fn add(sums: __m256i, codes: __m256i, q: __m256i) -> __m256i;

    /// Of each key one number of 32 bits.
    ///
    /// # Safety
    /// The features of the set.
    unsafe fn whole(sums: __m256i) -> __m256i;
}

/// Two sums of 16 bits for each key, which the specification's fit into: AVX2.
pub struct Pairs;

impl Sums for Pairs {
    #[inline(always)]
    unsafe fn add(sums: __m256i, codes: __m256i, q: __m256i) -> __m256i {
        // SAFETY: registers only.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, q)) }
    }

    #[inline(always)]
    unsafe fn whole(sums: __m256i) -> __m256i {
        // SAFETY: registers only.
        unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
    }
}

/// One: the VNNI of AVX-512.
pub struct Fours;

impl Sums for Fours {
    #[inline(always)]
    unsafe fn add(sums: __m256i, codes: __m256i, q: __m256i) -> __m256i {
        // SAFETY: registers only.
        unsafe { _mm256_dpbusd_epi32(sums, codes, q) }
    }

    #[inline(always)]
    unsafe fn whole(sums: __m256i) -> __m256i {
        sums
    }
}

/// See `Kernels::scan`. Heads that are not whole groups of rows go the way of the specification.
///
/// # Safety
/// The features of `S`, AVX2, F16C; a tile of the index, and room for what is written, as `Kernels::scan` asserts.
#[inline(always)]
pub unsafe fn scan<S: Sums>(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    if asked.head_dim == 0 || !asked.head_dim.is_multiple_of(ELEMENTS) || asked.head_dim > MAX_HEAD_DIM {
        return spec::scan_out_of_line(tile, wanted, asked, stride, out);
    }
    let (codes, scales) = tile.split_at(asked.head_dim / 4 * SCAN_TILE);
    // SAFETY: passed on; a prefetch reads nothing, even where no memory is.
    unsafe {
        // Tiles follow each other, in pages that memory's own prefetching does not reach across.
        let mut line = 0;
        while line < tile.len() {
            _mm_prefetch(tile.as_ptr().wrapping_add(AHEAD * tile.len() + line).cast(), _MM_HINT_T0);
            line += 64;
        }
        let keys = Keys::new(scales, wanted);
        let n_query = asked.scale.len();
        let mut first = 0;
        while first < n_query {
            match n_query - first {
                1 => queries::<S, 1>(codes, &keys, asked, first, stride, out),
                2 => queries::<S, 2>(codes, &keys, asked, first, stride, out),
                3 => queries::<S, 3>(codes, &keys, asked, first, stride, out),
                _ => queries::<S, MOST>(codes, &keys, asked, first, stride, out),
            }
            first += MOST;
        }
    }
}

/// The scale of each key, and infinity where a key is wanted, else -infinity: keys `4i` to `4i + 3` and those 16 further in vector `i`.
struct Keys {
    scale: [__m256; 4],
    mask: [__m256; 4],
}

impl Keys {
    /// # Safety
    /// AVX2, F16C; 64 bytes of scales.
    #[inline(always)]
    unsafe fn new(scales: &[u8], wanted: u32) -> Keys {
        assert!(scales.len() == 2 * SCAN_TILE);
        // SAFETY: four f16 at each place.
        unsafe {
            let mut keys = Keys { scale: [_mm256_setzero_ps(); 4], mask: [_mm256_setzero_ps(); 4] };
            for i in 0..4 {
                let four = scales.as_ptr().add(8 * i);
                let halves = _mm_unpacklo_epi64(_mm_loadl_epi64(four.cast()), _mm_loadl_epi64(four.add(SCAN_TILE).cast()));
                keys.scale[i] = _mm256_cvtph_ps(halves);
                // The bit of a key becomes the sign, which infinity has where the bit is not set.
                let of_lanes = _mm256_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19);
                let places = _mm256_sub_epi32(_mm256_set1_epi32(31 - 4 * i as i32), of_lanes);
                let signs = _mm256_sllv_epi32(_mm256_set1_epi32(!wanted as i32), places);
                let signs = _mm256_and_ps(_mm256_castsi256_ps(signs), _mm256_set1_ps(-0.0));
                keys.mask[i] = _mm256_or_ps(signs, _mm256_set1_ps(f32::INFINITY));
            }
            keys
        }
    }
}

/// Queries from `first` on.
///
/// # Safety
/// As `scan`.
#[inline(always)]
unsafe fn queries<S: Sums, const N: usize>(
    codes: &[u8],
    keys: &Keys,
    asked: &Asked,
    first: usize,
    stride: usize,
    out: &mut [f32],
) {
    let head_dim = asked.head_dim;
    let q = &asked.q[first * head_dim..][..N * head_dim];
    let mut room = [[MaybeUninit::<i8>::uninit(); MAX_HEAD_DIM]; N];
    // SAFETY: groups of rows, and as many elements of each query, which were brought to `room`.
    unsafe {
        let own = room.as_mut_ptr().cast::<i8>();
        for n in 0..N {
            arrange(q.as_ptr().add(n * head_dim), own.add(n * MAX_HEAD_DIM), head_dim);
        }
        let mut sums = [[_mm256_setzero_si256(); 4]; N];
        for g in 0..head_dim / ELEMENTS {
            let (row, q) = (codes.as_ptr().add(g * ROWS * SCAN_TILE), own.add(g * ELEMENTS));
            let bytes = side_by_side(row);
            macro_rules! products {
                ($e:literal) => {
                    for i in 0..4 {
                        let codes = _mm256_and_si256(_mm256_srli_epi16::<{ 2 * $e }>(bytes[i]), _mm256_set1_epi8(3));
                        for n in 0..N {
                            let q = q.add(n * MAX_HEAD_DIM + 4 * $e).cast::<i32>().read_unaligned();
                            sums[n][i] = S::add(sums[n][i], codes, _mm256_set1_epi32(q));
                        }
                    }
                };
            }
            products!(0);
            products!(1);
            products!(2);
            products!(3);
        }
        for n in 0..N {
            let query = first + n;
            let best = best::<S>(keys, sums[n], asked.scale[query], asked.sum[query]);
            _mm256_storeu_ps(out[query * stride..][..SCAN_CHUNKS].as_mut_ptr(), best);
        }
    }
}

/// Brings elements of a query to where those of four rows stand: of each sixteen every fourth side by side.
///
/// # Safety
/// So many elements, in whole groups, to read and to write.
#[inline(always)]
unsafe fn arrange(q: *const i8, out: *mut i8, head_dim: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for g in 0..head_dim / ELEMENTS {
            let sixteen = _mm_loadu_si128(q.add(g * ELEMENTS).cast());
            _mm_storeu_si128(out.add(g * ELEMENTS).cast(), _mm_shuffle_epi8(sixteen, order));
        }
    }
}

/// Four rows from `row` on, the bytes of a key side by side; keys as those of `Keys`.
///
/// # Safety
/// AVX2; four rows.
#[inline(always)]
unsafe fn side_by_side(row: *const u8) -> [__m256i; 4] {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut rows = [_mm256_setzero_si256(); ROWS];
        for r in 0..ROWS {
            rows[r] = _mm256_loadu_si256(row.add(r * SCAN_TILE).cast());
        }
        let [a, b, c, d] = rows;
        let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (further_ab, further_cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_unpacklo_epi16(ab, cd),
            _mm256_unpackhi_epi16(ab, cd),
            _mm256_unpacklo_epi16(further_ab, further_cd),
            _mm256_unpackhi_epi16(further_ab, further_cd),
        ]
    }
}

/// The best score of each four keys.
///
/// # Safety
/// As `Sums`.
#[inline(always)]
unsafe fn best<S: Sums>(keys: &Keys, sums: [__m256i; 4], scale: f32, sum: i32) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let mut score = [_mm256_setzero_ps(); 4];
        for i in 0..4 {
            let dots = S::whole(sums[i]);
            let whole = _mm256_sub_epi32(_mm256_add_epi32(dots, dots), _mm256_set1_epi32(3 * sum));
            let scale = _mm256_mul_ps(keys.scale[i], _mm256_set1_ps(scale));
            score[i] = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale), keys.mask[i]);
        }
        let [a, b, c, d] = score;
        best_of_two(best_of_two(a, b), best_of_two(c, d))
    }
}

/// The maximum of each two lanes side by side, those of `a` before those of `b` in each half. Of zeros the instruction gives its second
/// operand: the one that comes first, as specified.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn best_of_two(a: __m256, b: __m256) -> __m256 {
    // SAFETY: registers only.
    unsafe { _mm256_max_ps(_mm256_shuffle_ps(a, b, 0b11_01_11_01), _mm256_shuffle_ps(a, b, 0b10_00_10_00)) }
}
