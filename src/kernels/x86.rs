//! What the x86 sets share beside the products: attention, quantisation of activations, and the portable functions,
//! stamped with the features of each set (`stamp_x86!`). Eight lanes of AVX2 are the lanes of `portable.rs`, and every sum
//! keeps the order fixed there, so the bits are the same; only more of them are under way at once.
//!
//! All is `inline(always)`, to take the features of the set, which must have AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::kv_rows::{ROW_BLOCK, RowType, with_row};
use super::portable::{Lanes, LoadF16, exp, soft_cap, weights_of};
use super::{Attend, BLOCK, CHUNK, MAX_QUERIES, Partial};

/// Eight f16 by `vcvtph2ps`.
pub struct F16c;
impl LoadF16 for F16c {
    #[inline(always)]
    unsafe fn load8(p: *const u8) -> Lanes {
        // SAFETY: as `load8`; `__m256` is eight f32.
        unsafe { std::mem::transmute::<__m256, Lanes>(load8(p)) }
    }
}

/// # Safety
/// 16 readable bytes at `p`; F16C.
#[inline(always)]
unsafe fn load8(p: *const u8) -> __m256 {
    // SAFETY: readable by the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

/// As `portable::quantize`: for each block of 32
///
/// ```text
/// d = max|x| / 127;  q = round(x / d);  sum = Σ q
/// ```
///
/// # Safety
/// AVX2, FMA.
#[inline(always)]
pub unsafe fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
    const ROUND: f32 = 12_582_912.0;
    let (blocks, _) = x.as_chunks::<BLOCK>();
    let (q_blocks, _) = q.as_chunks_mut::<BLOCK>();
    for (b, (x, q)) in blocks.iter().zip(q_blocks).enumerate() {
        // SAFETY: loads and stores stay inside a block of 32 floats or bytes.
        unsafe {
            let mut x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
            let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
            let mut max = _mm256_setzero_ps();
            for x in x {
                max = _mm256_max_ps(_mm256_and_ps(x, magnitude), max);
            }
            let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
            let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
            let max = _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
            let scale = max / 127.0;
            // Below the smallest normal number 1/scale overflows: such a block is nought.
            let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut total = _mm256_setzero_si256();
            for x in &mut x {
                let shifted = _mm256_fmadd_ps(*x, _mm256_set1_ps(inverse), _mm256_set1_ps(ROUND));
                let rounded = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(ROUND.to_bits() as i32));
                total = _mm256_add_epi32(total, rounded);
                // The low byte alone, so that packing does not saturate.
                *x = _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(0xff)));
            }
            let [x0, x1, x2, x3] =
                [_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1]), _mm256_castps_si256(x[2]), _mm256_castps_si256(x[3])];
            // Packing works in each half: four bytes of x0, x1, x2, x3, then their upper ones.
            let packed = _mm256_packus_epi16(_mm256_packus_epi32(x0, x1), _mm256_packus_epi32(x2, x3));
            let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(q.as_mut_ptr().cast(), packed);
            let total = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
            let total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0b01_00_11_10));
            let total = _mm_cvtsi128_si32(_mm_add_epi32(total, _mm_shuffle_epi32(total, 0b10_11_00_01)));
            (d[b], sum[b], s[b]) = (scale, total, scale * total as f32);
        }
    }
}

/// How a set reads the rows of one `RowType`; see kv_rows.rs for their bytes.
pub trait Row {
    const TYPE: RowType;

    /// Elements `8 * part` and on of the block at `p`.
    ///
    /// # Safety
    /// The block is readable as far as these elements reach; AVX2, FMA, F16C.
    unsafe fn load8(p: *const u8, part: usize) -> __m256;

    /// Elements `16 * half` and on.
    ///
    /// # Safety
    /// As `load8`; AVX-512F.
    unsafe fn load16(p: *const u8, half: usize) -> __m512;

    /// `load8` of two blocks, side by side.
    ///
    /// # Safety
    /// As `load8` for both; AVX-512F.
    #[inline(always)]
    unsafe fn load8_of_two(p: [*const u8; 2], part: usize) -> __m512 {
        // SAFETY: passed on.
        unsafe { side_by_side(Self::load8(p[0], part), Self::load8(p[1], part)) }
    }
}

/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn side_by_side(low: __m256, high: __m256) -> __m512 {
    // SAFETY: registers only.
    unsafe { _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)), _mm256_castps_pd(high), 1)) }
}

pub struct F16;
impl Row for F16 {
    const TYPE: RowType = RowType::F16;

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize) -> __m256 {
        // SAFETY: passed on.
        unsafe { load8(p.add(16 * part)) }
    }

    #[inline(always)]
    unsafe fn load16(p: *const u8, half: usize) -> __m512 {
        // SAFETY: passed on.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.add(32 * half).cast())) }
    }

    #[inline(always)]
    unsafe fn load8_of_two(p: [*const u8; 2], part: usize) -> __m512 {
        // SAFETY: passed on.
        unsafe {
            let (low, high) = (_mm_loadu_si128(p[0].add(16 * part).cast()), _mm_loadu_si128(p[1].add(16 * part).cast()));
            _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1))
        }
    }
}

/// The scale of a block, in every lane.
///
/// # Safety
/// Two readable bytes at `p`; F16C.
#[inline(always)]
unsafe fn row_scale(p: *const u8) -> __m256 {
    // SAFETY: readable by the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())) }
}

/// # Safety
/// As `row_scale`; AVX-512F.
#[inline(always)]
unsafe fn row_scale_16(p: *const u8) -> __m512 {
    // SAFETY: readable by the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) }
}

pub struct Q8;
impl Row for Q8 {
    const TYPE: RowType = RowType::Q8;

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize) -> __m256 {
        // SAFETY: eight bytes of the block's 32 behind its scale.
        unsafe {
            let q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(2 + 8 * part).cast()));
            _mm256_mul_ps(_mm256_cvtepi32_ps(q), row_scale(p))
        }
    }

    #[inline(always)]
    unsafe fn load16(p: *const u8, half: usize) -> __m512 {
        // SAFETY: sixteen bytes of the block's 32 behind its scale.
        unsafe {
            let q = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(2 + 16 * half).cast()));
            _mm512_mul_ps(_mm512_cvtepi32_ps(q), row_scale_16(p))
        }
    }

    #[inline(always)]
    unsafe fn load8_of_two(p: [*const u8; 2], part: usize) -> __m512 {
        // SAFETY: eight bytes of each block's 32 behind its scale.
        unsafe {
            let (low, high) = (_mm_loadl_epi64(p[0].add(2 + 8 * part).cast()), _mm_loadl_epi64(p[1].add(2 + 8 * part).cast()));
            let q = _mm512_cvtepi8_epi32(_mm_unpacklo_epi64(low, high));
            _mm512_mul_ps(_mm512_cvtepi32_ps(q), side_by_side(row_scale(p[0]), row_scale(p[1])))
        }
    }
}

/// Four bits and `PLANES` more.
pub struct Packed<const PLANES: usize>;
impl<const PLANES: usize> Row for Packed<PLANES> {
    const TYPE: RowType = [RowType::Q4, RowType::Q5, RowType::Q6][PLANES];

    #[inline(always)]
    unsafe fn load8(p: *const u8, part: usize) -> __m256 {
        // SAFETY: behind the scale 16 bytes of low bits, then four bytes for each plane.
        unsafe {
            let bytes = _mm_loadl_epi64(p.add(2 + part % 2 * 8).cast());
            let bytes = if part < 2 { bytes } else { _mm_srli_epi16(bytes, 4) };
            let mut u = _mm256_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
            for plane in 0..PLANES {
                let bits = _mm256_set1_epi32(i32::from(*p.add(18 + 4 * plane + part)));
                let own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, own), own);
                u = _mm256_or_si256(u, _mm256_and_si256(set, _mm256_set1_epi32(16 << plane)));
            }
            let q = _mm256_sub_epi32(u, _mm256_set1_epi32(8 << PLANES));
            _mm256_mul_ps(_mm256_cvtepi32_ps(q), row_scale(p))
        }
    }

    #[inline(always)]
    unsafe fn load16(p: *const u8, half: usize) -> __m512 {
        // SAFETY: as `load8`, with two bytes of each plane.
        unsafe {
            let bytes = _mm_loadu_si128(p.add(2).cast());
            let bytes = if half == 0 { bytes } else { _mm_srli_epi16(bytes, 4) };
            let mut u = _mm512_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
            for plane in 0..PLANES {
                let mask = p.add(18 + 4 * plane + 2 * half).cast::<u16>().read_unaligned();
                u = _mm512_mask_or_epi32(u, mask, u, _mm512_set1_epi32(16 << plane));
            }
            let q = _mm512_sub_epi32(u, _mm512_set1_epi32(8 << PLANES));
            _mm512_mul_ps(_mm512_cvtepi32_ps(q), row_scale_16(p))
        }
    }

    #[inline(always)]
    unsafe fn load8_of_two(p: [*const u8; 2], part: usize) -> __m512 {
        // SAFETY: as `load8` for both.
        unsafe {
            let at = 2 + part % 2 * 8;
            let bytes = _mm_unpacklo_epi64(_mm_loadl_epi64(p[0].add(at).cast()), _mm_loadl_epi64(p[1].add(at).cast()));
            let bytes = if part < 2 { bytes } else { _mm_srli_epi16(bytes, 4) };
            let mut u = _mm512_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
            for plane in 0..PLANES {
                let [low, high] = p.map(|p| u16::from(*p.add(18 + 4 * plane + part)));
                u = _mm512_mask_or_epi32(u, low | high << 8, u, _mm512_set1_epi32(16 << plane));
            }
            let q = _mm512_sub_epi32(u, _mm512_set1_epi32(8 << PLANES));
            _mm512_mul_ps(_mm512_cvtepi32_ps(q), side_by_side(row_scale(p[0]), row_scale(p[1])))
        }
    }
}

/// The two loops of `attend` that multiply, by length of vectors.
pub trait Width {
    /// Scores of `2 * K` keys with `N` queries; of key `k` with query `n` at `k * P + n`.
    ///
    /// # Safety
    /// A row of `head_dim` elements at each key, `N * head_dim` f32 at `q`; the CPU features of the width.
    unsafe fn scores<R: Row, const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [Lanes; 2];

    /// `acc[n]` = sum over rows `j` of `weights[j][n] * value[j]`.
    ///
    /// # Safety
    /// `at` holds the numbers of `n_rows` rows of values, `weights` is `[n_rows][P]`; the CPU features of the width.
    unsafe fn mix<R: Row, const N: usize, const P: usize, const K: usize>(
        a: &Attend,
        at: &[usize; CHUNK],
        weights: *const f32,
        acc: &mut [f32],
    );
}

/// As `portable::attend`.
///
/// # Safety
/// Rows `0..n_rows` lie inside `keys` and `values`; the CPU features of the width.
#[inline(always)]
pub unsafe fn attend<W: Width>(a: &Attend, out: &mut Partial) {
    let (n_q, hd) = (a.q.len() / a.head_dim, a.head_dim);
    // The number of each row; behind the last the last again, so that loops may round up.
    let at: [usize; CHUNK] = std::array::from_fn(|j| a.rows.get(j.min(a.n_rows - 1)));
    let mut first = 0;
    while first < n_q {
        let n = (n_q - first).min(MAX_QUERIES);
        let heads = first..first + n;
        let q = &a.q[first * hd..][..n * hd];
        let mut part = Partial {
            max: &mut out.max[heads.clone()],
            sum: &mut out.sum[heads],
            acc: &mut out.acc[first * hd..][..n * hd],
            weights: weights_of(first, out.weights),
        };
        // SAFETY: passed on; `at` holds rows of the caller's, `q` and `part` have `n` heads.
        unsafe {
            match n {
                1 => attend_n::<W, 1, 1, 8>(a, &at, q, &mut part),
                2 => attend_n::<W, 2, 2, 4>(a, &at, q, &mut part),
                3 => attend_n::<W, 3, 4, 2>(a, &at, q, &mut part),
                _ => attend_n::<W, 4, 4, 2>(a, &at, q, &mut part),
            }
        }
        first += n;
    }
}

/// `N` queries, for which a vector of eight holds `K` entries times `P` (`N` or one more) queries, K * P = 8:
///
/// ```text
/// score[j][n] = q[n] · key[j]                 many keys at once, so that their chains of fma hide each other's latency
/// max[n] = max over j;  weight[j][n] = exp(score[j][n] - max[n]);  sum[n] = Σ over j
/// acc[n] = Σ over j of weight[j][n] * value[j]      many elements at once, likewise
/// ```
///
/// # Safety
/// `at` holds the numbers of `n_rows` rows of keys and values, `q` and `out` have `N` heads; the CPU features of the width.
#[inline(always)]
unsafe fn attend_n<W: Width, const N: usize, const P: usize, const K: usize>(
    a: &Attend,
    at: &[usize; CHUNK],
    q: &[f32],
    out: &mut Partial,
) {
    const { assert!(K * P == 8 && N <= P) }
    // [j][P], as vectors of eight.
    let mut weights = [[0f32; 8]; CHUNK * MAX_QUERIES / 8];
    let weights = &mut weights[..a.n_rows.div_ceil(2 * K) * 2];
    // SAFETY: rows of the caller's; `N` queries of `head_dim`.
    let mut highest = unsafe { with_row!(a.k_type, R => all_scores::<W, R, N, P, K>(a, at, q, weights)) };
    if a.soft_cap != 0.0 {
        // The cap keeps order, so that of the highest is the highest.
        soft_cap(weights.as_flattened_mut(), a.soft_cap);
        soft_cap(&mut highest, a.soft_cap);
    }
    for n in 0..N {
        out.max[n] = (0..K).fold(f32::NEG_INFINITY, |max, k| if highest[k * P + n] > max { highest[k * P + n] } else { max });
    }
    let highest: Lanes = std::array::from_fn(|l| if l % P < N { out.max[l % P] } else { 0.0 });
    for weights in weights.iter_mut() {
        for l in 0..8 {
            weights[l] = exp(weights[l] - highest[l]);
        }
    }
    let flat = weights.as_flattened_mut();
    flat[a.n_rows * P..].fill(0.0);
    // Lane `j % 8` of query `n`, at [j % 8][n].
    let mut lanes = [[0f32; 8]; P];
    for (v, weights) in weights.iter().enumerate() {
        for l in 0..8 {
            lanes[v % P][l] += weights[l];
        }
    }
    let lanes = lanes.as_flattened();
    for n in 0..N {
        out.sum[n] = super::portable::add_lanes(std::array::from_fn(|l| lanes[l * P + n]));
    }
    // SAFETY: a weight for each row.
    unsafe { with_row!(a.v_type, R => W::mix::<R, N, P, K>(a, at, weights.as_ptr().cast(), out.acc)) };
    for (row, weights) in out.weights.iter_mut().zip(weights.as_flattened().chunks_exact(P)) {
        row[..P].copy_from_slice(weights);
    }
}

/// The scores of all keys, and the highest in each lane.
///
/// # Safety
/// As `attend_n`.
#[inline(always)]
unsafe fn all_scores<W: Width, R: Row, const N: usize, const P: usize, const K: usize>(
    a: &Attend,
    at: &[usize; CHUNK],
    q: &[f32],
    weights: &mut [Lanes],
) -> Lanes {
    let row_bytes = R::TYPE.row_bytes(a.head_dim);
    let mut highest = [f32::NEG_INFINITY; 8];
    for (v, two) in weights.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let key = |k: usize| a.keys.as_ptr().wrapping_add(at[v * 2 * K + k] * row_bytes);
        let keys = [std::array::from_fn(key), std::array::from_fn(|k| key(K + k))];
        // SAFETY: rows of the caller's.
        *two = unsafe { W::scores::<R, N, P, K>(keys, q.as_ptr(), a.head_dim) };
        for score in two {
            for l in 0..8 {
                highest[l] = if score[l] > highest[l] { score[l] } else { highest[l] };
            }
        }
    }
    highest
}

/// Vectors of eight.
pub struct Ymm;
impl Width for Ymm {
    #[inline(always)]
    unsafe fn scores<R: Row, const N: usize, const P: usize, const K: usize>(
        keys: [[*const u8; K]; 2],
        q: *const f32,
        head_dim: usize,
    ) -> [Lanes; 2] {
        // SAFETY: passed on.
        unsafe { [scores::<R, N, P, K>(keys[0], q, head_dim), scores::<R, N, P, K>(keys[1], q, head_dim)] }
    }

    #[inline(always)]
    unsafe fn mix<R: Row, const N: usize, const P: usize, const K: usize>(
        a: &Attend,
        at: &[usize; CHUNK],
        weights: *const f32,
        acc: &mut [f32],
    ) {
        let (n8, mut i) = (a.head_dim / 8, 0);
        // SAFETY: vectors `i..` of the rows; `i` is a multiple of `K` in the first loop. The rest passed on.
        unsafe {
            while i + K <= n8 {
                mix::<R, N, P, K>(a, at, weights, i, acc);
                i += K;
            }
            while i < n8 {
                mix::<R, N, P, 1>(a, at, weights, i, acc);
                i += 1;
            }
        }
    }
}

/// Scores of `K` keys with `N` queries, at `k * P + n`.
///
/// # Safety
/// A row of `head_dim` elements at each key, `N * head_dim` f32 at `q`; AVX2, FMA, F16C.
#[inline(always)]
unsafe fn scores<R: Row, const N: usize, const P: usize, const K: usize>(
    keys: [*const u8; K],
    q: *const f32,
    head_dim: usize,
) -> Lanes {
    // SAFETY: part `p` of block `b` of a row, inside `head_dim`.
    unsafe {
        let mut dots = [[_mm256_setzero_ps(); P]; K];
        for b in 0..head_dim / ROW_BLOCK {
            for p in 0..4 {
                products::<R, N, P, K>(&keys, q, head_dim, b, p, &mut dots);
            }
        }
        for p in 0..head_dim % ROW_BLOCK / 8 {
            products::<R, N, P, K>(&keys, q, head_dim, head_dim / ROW_BLOCK, p, &mut dots);
        }
        let dots: &[__m256; 8] = dots.as_flattened().try_into().expect("K * P = 8");
        std::mem::transmute::<__m256, Lanes>(add_lanes_of(dots))
    }
}

/// Part `p` of block `b` of keys and queries. (No closure: one would not have the CPU features of its surroundings.)
///
/// # Safety
/// As `scores`, `p` inside `head_dim`.
#[inline(always)]
unsafe fn products<R: Row, const N: usize, const P: usize, const K: usize>(
    keys: &[*const u8; K],
    q: *const f32,
    head_dim: usize,
    b: usize,
    p: usize,
    dots: &mut [[__m256; P]; K],
) {
    // SAFETY: by the caller's promise.
    unsafe {
        let mut key = [_mm256_setzero_ps(); K];
        for k in 0..K {
            key[k] = R::load8(keys[k].add(b * R::TYPE.block_bytes()), p);
        }
        for n in 0..N {
            let q = _mm256_loadu_ps(q.add(n * head_dim + (4 * b + p) * 8));
            for k in 0..K {
                dots[k][n] = _mm256_fmadd_ps(q, key[k], dots[k][n]);
            }
        }
    }
}

/// `add_lanes` of eight vectors: ((l0+l4)+(l1+l5)) + ((l2+l6)+(l3+l7)) of each.
///
/// # Safety
/// AVX2.
#[inline(always)]
pub unsafe fn add_lanes_of(x: &[__m256; 8]) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        // x0 and x4 give [x0: l0+l4, l1+l5, l2+l6, l3+l7 | x4: the same].
        let mut halves = [x[0]; 4];
        for i in 0..4 {
            let straight = _mm256_blend_ps(x[i], x[i + 4], 0xf0);
            let crossed = _mm256_permute2f128_ps(x[i], x[i + 4], 0x21);
            halves[i] = _mm256_add_ps(straight, crossed);
        }
        let pairs01 = _mm256_hadd_ps(halves[0], halves[1]);
        let pairs23 = _mm256_hadd_ps(halves[2], halves[3]);
        _mm256_hadd_ps(pairs01, pairs23)
    }
}

/// Vectors `i..i + D` of the weighted sum of values.
///
/// # Safety
/// As `Width::mix`; AVX2, FMA, F16C.
#[inline(always)]
pub unsafe fn mix<R: Row, const N: usize, const P: usize, const D: usize>(
    a: &Attend,
    at: &[usize; CHUNK],
    weights: *const f32,
    i: usize,
    acc: &mut [f32],
) {
    let row_bytes = R::TYPE.row_bytes(a.head_dim);
    // SAFETY: vectors of rows and weights that exist, by the caller's promise.
    unsafe {
        let mut total = [[_mm256_setzero_ps(); D]; N];
        for (j, at) in at.iter().enumerate().take(a.n_rows) {
            let row = a.values.as_ptr().add(at * row_bytes + i / 4 * R::TYPE.block_bytes());
            let mut value = [_mm256_setzero_ps(); D];
            for c in 0..D {
                let part = i % 4 + c;
                value[c] = R::load8(row.add(part / 4 * R::TYPE.block_bytes()), part % 4);
            }
            for n in 0..N {
                let weight = _mm256_set1_ps(*weights.add(j * P + n));
                for c in 0..D {
                    total[n][c] = _mm256_fmadd_ps(weight, value[c], total[n][c]);
                }
            }
        }
        for n in 0..N {
            for c in 0..D {
                _mm256_storeu_ps(acc[n * a.head_dim + (i + c) * 8..][..8].as_mut_ptr(), total[n][c]);
            }
        }
    }
}

/// The functions of a set beside `matmul`, compiled with its features.
macro_rules! stamp_x86 {
    ($features:literal, $width:ty) => {
        #[target_feature(enable = $features)]
        unsafe fn quantize(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32], sum: &mut [i32]) {
            // SAFETY: the set has the features.
            unsafe { crate::kernels::x86::quantize(x, q, d, s, sum) }
        }
        #[target_feature(enable = $features)]
        unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            crate::kernels::portable::rms_norm(x, weight, eps, out)
        }
        #[target_feature(enable = $features)]
        unsafe fn add(x: &mut [f32], y: &[f32]) {
            crate::kernels::portable::add(x, y)
        }
        #[target_feature(enable = $features)]
        unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::portable::silu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn gelu_mul(gate: &mut [f32], up: &[f32]) {
            crate::kernels::portable::gelu_mul(gate, up)
        }
        #[target_feature(enable = $features)]
        unsafe fn soft_cap(x: &mut [f32], cap: f32) {
            crate::kernels::portable::soft_cap(x, cap)
        }
        #[target_feature(enable = $features)]
        unsafe fn l2_norm(x: &[f32]) -> f32 {
            crate::kernels::portable::l2_norm(x)
        }
        #[target_feature(enable = $features)]
        unsafe fn attend(a: &crate::kernels::Attend, out: &mut crate::kernels::Partial) {
            // SAFETY: passed on to the caller; the set has the features.
            unsafe { crate::kernels::x86::attend::<$width>(a, out) }
        }
    };
}
pub(crate) use stamp_x86;
