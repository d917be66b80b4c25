//! How rows of keys and values in levels are read into vectors of f32.
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::*;

use crate::kernels::rows::codec::RowType;

/// How the levels of one `RowType` are read; see rows/codec.rs for their bytes. `p` is a row of `n_blocks`.
pub trait Levels {
    const TYPE: RowType;

    /// `q + offset` of elements `8 * part` and on of block `b`.
    ///
    /// # Safety
    /// The row is readable; AVX2.
    unsafe fn value8(p: *const u8, n_blocks: usize, b: usize, part: usize) -> __m256;

    /// `q + offset` of block `b`.
    ///
    /// # Safety
    /// The row is readable; AVX-512F.
    unsafe fn value32(p: *const u8, n_blocks: usize, b: usize) -> [__m512; 2];
}

pub struct Q8;
impl Levels for Q8 {
    const TYPE: RowType = RowType::Q8;

    #[inline(always)]
    unsafe fn value8(p: *const u8, n_blocks: usize, b: usize, part: usize) -> __m256 {
        // SAFETY: eight of the block's 32 bytes.
        unsafe {
            let q = _mm_loadl_epi64(p.add(Self::TYPE.levels_at(n_blocks, b) + 8 * part).cast());
            _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_cvtepi8_epi32(q), _mm256_set1_epi32(128)))
        }
    }

    #[inline(always)]
    unsafe fn value32(p: *const u8, n_blocks: usize, b: usize) -> [__m512; 2] {
        // SAFETY: the block's 32 bytes.
        unsafe {
            let p = p.add(Self::TYPE.levels_at(n_blocks, b));
            let (x, y) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(16).cast()));
            let (x, y, offset) = (_mm512_cvtepi8_epi32(x), _mm512_cvtepi8_epi32(y), _mm512_set1_epi32(128));
            [_mm512_cvtepi32_ps(_mm512_add_epi32(x, offset)), _mm512_cvtepi32_ps(_mm512_add_epi32(y, offset))]
        }
    }
}

/// Four bits and `PLANES` more.
pub struct BitPlanes<const PLANES: usize>;
impl<const PLANES: usize> Levels for BitPlanes<PLANES> {
    const TYPE: RowType = [RowType::Q4, RowType::Q5, RowType::Q6][PLANES];

    #[inline(always)]
    unsafe fn value8(p: *const u8, n_blocks: usize, b: usize, part: usize) -> __m256 {
        // SAFETY: eight of the block's 16 bytes, and a word for each plane.
        unsafe {
            let bytes = _mm_loadl_epi64(p.add(Self::TYPE.levels_at(n_blocks, b) + part % 2 * 8).cast());
            let wide = _mm256_cvtepu8_epi32(bytes);
            let mut u = if part < 2 { _mm256_and_si256(wide, _mm256_set1_epi32(15)) } else { _mm256_srli_epi32(wide, 4) };
            for plane in 0..PLANES {
                let word = p.add(Self::TYPE.planes_at(n_blocks, b) + 4 * plane).cast::<i32>().read_unaligned();
                // Byte `i % 4` of the word, bit `e / 4`; the highest plane is a sign.
                let own = _mm256_setr_epi32(1, 1 << 8, 1 << 16, 1 << 24, 2, 2 << 8, 2 << 16, 2 << 24);
                let own = _mm256_sll_epi32(own, _mm_cvtsi32_si128(2 * part as i32));
                let kept = _mm256_and_si256(_mm256_set1_epi32(word), own);
                let wanted = if plane + 1 == PLANES { _mm256_setzero_si256() } else { own };
                let set = _mm256_cmpeq_epi32(kept, wanted);
                u = _mm256_or_si256(u, _mm256_and_si256(set, _mm256_set1_epi32(16 << plane)));
            }
            _mm256_cvtepi32_ps(u)
        }
    }

    #[inline(always)]
    unsafe fn value32(p: *const u8, n_blocks: usize, b: usize) -> [__m512; 2] {
        // SAFETY: the block's 16 bytes, and a word for each plane.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.add(Self::TYPE.levels_at(n_blocks, b)).cast()));
            let mut u = [_mm512_and_si512(wide, _mm512_set1_epi32(15)), _mm512_srli_epi32(wide, 4)];
            for plane in 0..PLANES {
                let word = p.add(Self::TYPE.planes_at(n_blocks, b) + 4 * plane).cast::<i32>().read_unaligned();
                let word = _mm512_set1_epi32(word);
                for half in 0..2 {
                    let own = _mm512_broadcast_i32x4(_mm_setr_epi32(1, 1 << 8, 1 << 16, 1 << 24));
                    let own = _mm512_sllv_epi32(own, _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3));
                    let own = if half == 0 { own } else { _mm512_slli_epi32(own, 4) };
                    let set = match plane + 1 == PLANES {
                        true => _mm512_testn_epi32_mask(word, own), // A sign.
                        false => _mm512_test_epi32_mask(word, own),
                    };
                    u[half] = _mm512_mask_or_epi32(u[half], set, u[half], _mm512_set1_epi32(16 << plane));
                }
            }
            [_mm512_cvtepi32_ps(u[0]), _mm512_cvtepi32_ps(u[1])]
        }
    }
}
