//! The scan over the index of the past, in AVX2: what spec/scan.rs specifies, bit for bit. Two elements of a key side by side meet
//! two of a query in one product of bytes; sums stay in 16 bits, as the specification's do.
//!
//! All is `inline(always)`, to take the features of the set; no closures, for those would not.

use std::arch::x86_64::*;

use crate::kernels::Asked;
use crate::kernels::spec::scan::{SCAN_CHUNKS, SCAN_TILE};

/// Queries that meet a tile at once.
const MOST: usize = 4;

/// How many tiles further the next lines are asked for.
const AHEAD: usize = 3;

/// See `Kernels::scan`.
///
/// # Safety
/// AVX2, F16C; a tile of the index, and room for what is written, as `Kernels::scan` asserts.
#[inline(always)]
pub unsafe fn scan(tile: &[u8], wanted: u32, asked: &Asked, stride: usize, out: &mut [f32]) {
    let (codes, scales) = tile.split_at(asked.head_dim / 4 * SCAN_TILE);
    // SAFETY: passed on.
    unsafe {
        // Tiles follow each other, in pages that memory's own prefetching does not reach across.
        for line in (0..tile.len()).step_by(64) {
            _mm_prefetch(tile.as_ptr().wrapping_add(AHEAD * tile.len() + line).cast(), _MM_HINT_T0);
        }
        let keys = Keys::new(scales, wanted);
        let n_query = asked.scale.len();
        let mut first = 0;
        while first < n_query {
            match n_query - first {
                1 => queries::<1>(codes, &keys, asked, first, stride, out),
                2 => queries::<2>(codes, &keys, asked, first, stride, out),
                3 => queries::<3>(codes, &keys, asked, first, stride, out),
                _ => queries::<MOST>(codes, &keys, asked, first, stride, out),
            }
            first += MOST;
        }
    }
}

/// Of eight keys in each vector the scale, and infinity where a key is wanted, else -infinity.
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
        // SAFETY: eight f16 at each place.
        unsafe {
            let mut keys = Keys { scale: [_mm256_setzero_ps(); 4], mask: [_mm256_setzero_ps(); 4] };
            for i in 0..4 {
                keys.scale[i] = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().add(16 * i).cast()));
                // Bit `8 * i + lane` becomes the sign, which infinity has where the bit is not set.
                let places = _mm256_sub_epi32(_mm256_set1_epi32(31 - 8 * i as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
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
unsafe fn queries<const N: usize>(codes: &[u8], keys: &Keys, asked: &Asked, first: usize, stride: usize, out: &mut [f32]) {
    let n_pairs = asked.head_dim / 2;
    let q = &asked.q[first * asked.head_dim..][..N * asked.head_dim];
    // SAFETY: rows of 32 bytes; pairs of elements of each query, two for each row.
    unsafe {
        let q = q.as_ptr().cast::<i16>();
        // Keys 0 to 7 and 16 to 23, then the others.
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        let low = _mm256_set1_epi8(3);
        for (r, row) in codes.as_chunks::<SCAN_TILE>().0.iter().enumerate() {
            let row = _mm256_loadu_si256(row.as_ptr().cast());
            let c0 = _mm256_and_si256(row, low);
            let c1 = _mm256_and_si256(_mm256_srli_epi16(row, 2), low);
            let c2 = _mm256_and_si256(_mm256_srli_epi16(row, 4), low);
            let c3 = _mm256_and_si256(_mm256_srli_epi16(row, 6), low);
            let first_two = [_mm256_unpacklo_epi8(c0, c1), _mm256_unpackhi_epi8(c0, c1)];
            let last_two = [_mm256_unpacklo_epi8(c2, c3), _mm256_unpackhi_epi8(c2, c3)];
            for n in 0..N {
                let pair = q.add(n * n_pairs + 2 * r);
                let (x, y) = (_mm256_set1_epi16(pair.read_unaligned()), _mm256_set1_epi16(pair.add(1).read_unaligned()));
                for i in 0..2 {
                    let products = _mm256_add_epi16(_mm256_maddubs_epi16(first_two[i], x), _mm256_maddubs_epi16(last_two[i], y));
                    sums[n][i] = _mm256_add_epi16(sums[n][i], products);
                }
            }
        }
        for n in 0..N {
            let (query, [x, y]) = (first + n, sums[n]);
            let (one, other) = (_mm256_permute2x128_si256(x, y, 0x20), _mm256_permute2x128_si256(x, y, 0x31));
            let best = best(keys, [one, other], asked.scale[query], asked.sum[query]);
            _mm256_storeu_ps(out[query * stride..][..SCAN_CHUNKS].as_mut_ptr(), best);
        }
    }
}

/// The best score of each four keys, of sums over codes in the order of keys.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn best(keys: &Keys, dots: [__m256i; 2], scale: f32, sum: i32) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let halves = [
            _mm256_castsi256_si128(dots[0]),
            _mm256_extracti128_si256(dots[0], 1),
            _mm256_castsi256_si128(dots[1]),
            _mm256_extracti128_si256(dots[1], 1),
        ];
        let mut best = [_mm256_setzero_ps(); 4];
        for i in 0..4 {
            let dots = _mm256_cvtepi16_epi32(halves[i]);
            let whole = _mm256_sub_epi32(_mm256_add_epi32(dots, dots), _mm256_set1_epi32(3 * sum));
            let scale = _mm256_mul_ps(keys.scale[i], _mm256_set1_ps(scale));
            let score = _mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(whole), scale), keys.mask[i]);
            // In the first lane of each four. Of zeros the maximum is the second operand: the one that comes first, as specified.
            let two = _mm256_max_ps(_mm256_permute_ps(score, 0b10_11_00_01), score);
            best[i] = _mm256_max_ps(_mm256_permute_ps(two, 0b01_00_11_10), two);
        }
        // Chunks 0 2 4 6 in the lower half, 1 3 5 7 in the upper one.
        let apart =
            _mm256_shuffle_ps(_mm256_shuffle_ps(best[0], best[1], 0), _mm256_shuffle_ps(best[2], best[3], 0), 0b10_00_10_00);
        _mm256_permutevar8x32_ps(apart, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}
