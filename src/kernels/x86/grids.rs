//! How the x86 sets read IQ2 and IQ3, whose elements are looked up in grids, and the ternary types TQ1_0 and TQ2_0.
//!
//! A look-up is a load of a word by an index from memory. No vector does it well: gathers take as long as the loads that they are made
//! of, and on many processors longer. What else there is to an index vectors do, for a superblock of a row at a time, and two words'
//! indices come back by one load. Four words make a vector as they come. Of a batch, two such vectors are brought to the order of all
//! other formats by a shuffle for each four columns; one token or two meet them as they are (words.rs). Signs are applied to vectors: a
//! lane of 32 bits has those of 32 columns of its row.
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::formats::{Block, Elements, Format, One, Raised, Signed, Two, Vector, a_format, bytes, moved};
use crate::gguf::quant::grids;

/// Rows of the widest vector.
const MAX_LANES: usize = 16;
/// Words of eight magnitudes in a row of a superblock.
const WORDS: usize = 32;

/// Eight magnitudes, the first in the lowest byte, as a grid has them.
pub trait Word: Copy {
    /// What an index stands for.
    type Entry: Copy + 'static;
    /// Indices of a word.
    const INDICES: usize;

    /// Words `2 half` and `2 half + 1` of a superblock. Their indices come by one load: loads are what look-ups wait for.
    ///
    /// # Safety
    /// The indices are readable and below the grid's length.
    unsafe fn two(grid: &[Self::Entry], indices: *const u16, half: usize) -> [Self; 2];
    /// Words of four rows.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn four(words: [Self; 4]) -> __m256i;
}

impl Word for u64 {
    type Entry = u64;
    const INDICES: usize = 1;

    #[inline(always)]
    unsafe fn two(grid: &[u64], indices: *const u16, half: usize) -> [u64; 2] {
        // SAFETY: by the caller's promise.
        unsafe {
            let two = indices.cast::<u32>().add(half).read_unaligned() as usize;
            [*grid.get_unchecked(two & 0xffff), *grid.get_unchecked(two >> 16)]
        }
    }

    /// As floats, of which compilers load the upper ones into their places.
    #[inline(always)]
    unsafe fn four(words: [u64; 4]) -> __m256i {
        let [a, b, c, d] =
            [f64::from_bits(words[0]), f64::from_bits(words[1]), f64::from_bits(words[2]), f64::from_bits(words[3])];
        // SAFETY: registers only.
        unsafe { _mm256_castpd_si256(_mm256_setr_pd(a, b, c, d)) }
    }
}

/// Of grids of four magnitudes. (As an array they would be brought together in a register of their own.)
#[derive(Clone, Copy)]
pub struct Pair(u32, u32);
impl Word for Pair {
    type Entry = u32;
    const INDICES: usize = 2;

    #[inline(always)]
    unsafe fn two(grid: &[u32], indices: *const u16, half: usize) -> [Pair; 2] {
        // SAFETY: by the caller's promise.
        unsafe {
            let four = indices.cast::<u64>().add(half).read_unaligned() as usize;
            let (first, second) = (*grid.get_unchecked(four & 0xffff), *grid.get_unchecked(four >> 16 & 0xffff));
            [Pair(first, second), Pair(*grid.get_unchecked(four >> 32 & 0xffff), *grid.get_unchecked(four >> 48))]
        }
    }

    #[inline(always)]
    unsafe fn four([a, b, c, d]: [Pair; 4]) -> __m256i {
        // SAFETY: registers only.
        unsafe {
            let (low, high) = (_mm_unpacklo_epi64(a.loaded(), b.loaded()), _mm_unpacklo_epi64(c.loaded(), d.loaded()));
            _mm256_set_m128i(high, low)
        }
    }
}

impl Pair {
    /// # Safety
    /// SSE2.
    #[inline(always)]
    unsafe fn loaded(self) -> __m128i {
        // SAFETY: registers only.
        unsafe { _mm_unpacklo_epi32(_mm_cvtsi32_si128(self.0 as i32), _mm_cvtsi32_si128(self.1 as i32)) }
    }
}

/// Indices of a superblock of a row, in the order of its columns. (They are written where they stay: what a function returns may be
/// copied, and a copy waits for what has just been written.)
pub type Indices = MaybeUninit<[u16; 2 * WORDS]>;

/// What a type with a grid has beside magnitudes: of 32 columns of each row
#[derive(Clone, Copy)]
pub struct Head<V> {
    /// a set bit for minus,
    pub signs: V,
    /// and what the blocks of its format have.
    pub d: V,
    pub m: V,
}

/// How a type with a grid is read.
pub trait Grid {
    type Elements: Elements;
    /// Bytes of 256 columns of a row.
    const BYTES: usize;
    type Word: Word;

    fn grid() -> &'static [<Self::Word as Word>::Entry];

    /// The `n`th sixteen indices of a superblock, below the grid's length.
    ///
    /// # Safety
    /// A block of the file is readable at `row`; AVX2.
    unsafe fn sixteen(row: *const u8, n: usize) -> __m256i;

    /// All else.
    ///
    /// # Safety
    /// As `Format::load`.
    unsafe fn heads<V: Vector>(p: *const u8, stride: usize, to: *mut Head<V>);
}

impl<G: Grid> Format for G {
    type Elements = G::Elements;
    const BYTES: usize = G::BYTES;
    const BLOCKS: usize = 8;

    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const u8, stride: usize, to: *mut Block<V>) {
        // SAFETY: passed on; eight heads and blocks.
        unsafe {
            let mut indices = [Indices::uninit(); MAX_LANES];
            for r in 0..V::LANES {
                put_indices::<G>(p.add(r * stride), &mut indices[r]);
            }
            let mut heads = MaybeUninit::<[Head<V>; 8]>::uninit();
            let heads: *mut Head<V> = heads.as_mut_ptr().cast();
            G::heads(p, stride, heads);
            for sub in 0..8 {
                let Head { signs, d, m } = heads.add(sub).read();
                let mut q = [signs; 8];
                for half in 0..2 {
                    let pairs = [fours::<V, G>(&indices, 0, 2 * sub + half), fours::<V, G>(&indices, 2, 2 * sub + half)];
                    for i in 0..2 {
                        let (g, [even, odd]) = (4 * half + 2 * i, pairs[0][i].unzipped(pairs[1][i]));
                        q[g] = even.xor(V::splat(bytes(V::SIGN))).negated(signs, g);
                        q[g + 1] = odd.xor(V::splat(bytes(V::SIGN))).negated(signs, g + 1);
                    }
                }
                *to.add(sub) = Block { q, d, m };
            }
        }
    }
}

/// Puts the indices of a row together, in vectors: one by one they would take as long as the look-ups.
///
/// # Safety
/// A block of the file is readable at `row`; AVX2.
#[inline(always)]
pub unsafe fn put_indices<G: Grid>(row: *const u8, to: &mut Indices) {
    for n in 0..WORDS * G::Word::INDICES / 16 {
        // SAFETY: inside the array.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast::<__m256i>().add(n), G::sixteen(row, n)) };
    }
}

/// Sixteen columns of a superblock of rows `first` and `first + 1` and the fourth after each, in two words each.
///
/// # Safety
/// The indices of eight rows were put together; AVX2.
#[inline(always)]
pub unsafe fn four_rows<G: Grid>(indices: &[Indices], first: usize, half: usize) -> [__m256i; 2] {
    // SAFETY: passed on.
    unsafe {
        let (a, b) = (two_words::<G>(&indices[first], half), two_words::<G>(&indices[first + 1], half));
        let (c, d) = (two_words::<G>(&indices[first + 4], half), two_words::<G>(&indices[first + 5], half));
        [Word::four([a[0], b[0], c[0], d[0]]), Word::four([a[1], b[1], c[1], d[1]])]
    }
}

/// # Safety
/// The indices were put together.
#[inline(always)]
unsafe fn two_words<G: Grid>(indices: &Indices, half: usize) -> [G::Word; 2] {
    // SAFETY: they are below the grid's length, as `sixteen` promises.
    unsafe { G::Word::two(G::grid(), indices.as_ptr().cast(), half) }
}

/// The same of all rows, of each eight that there are.
///
/// # Safety
/// The indices of all rows were put together; the CPU features of `V`.
#[inline(always)]
unsafe fn fours<V: Vector, G: Grid>(indices: &[Indices; MAX_LANES], first: usize, half: usize) -> [V; 2] {
    // SAFETY: passed on.
    unsafe {
        let low = four_rows::<G>(&indices[..8], first, half);
        let high = if V::LANES > 8 { four_rows::<G>(&indices[8..], first, half) } else { low };
        [V::of_eights([low[0], high[0]]), V::of_eights([low[1], high[1]])]
    }
}

/// What makes the number of set bits of a nibble even, as the eighth bit of a byte.
const PARITY: [u8; 16] = {
    let mut of = [0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        of[nibble] = (nibble.count_ones() as u8) << 7;
        nibble += 1;
    }
    of
};

/// Seven bits in each byte, and the eighth that makes the number of set bits even: `grids::even_signs`.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn even<V: Vector>(x: V) -> V {
    // SAFETY: registers only. What is shifted in from the next byte is cut off.
    unsafe { x.or(x.xor(x.shr(4)).and(V::splat(bytes(15))).lookup(&PARITY)) }
}

/// The signs of 32 columns from four times seven bits, one behind the other.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn packed_signs<V: Vector>(x: V) -> V {
    // SAFETY: registers only.
    unsafe {
        let low = x.and(V::splat(0x7f)).or(x.shl(1).and(V::splat(0x7f00)));
        even(low.or(x.shl(2).and(V::splat(0x7f_0000))).or(x.shl(3).and(V::splat(0x7f00_0000))))
    }
}

/// `d * (2 * scale + 1) * fraction`
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn scaled<V: Vector>(d: V, scale: V, fraction: f32) -> V {
    // SAFETY: registers only.
    unsafe { d.times(scale.shl(1).or(V::splat(1)).to_floats()).times(V::splat(fraction.to_bits())) }
}

/// `2 * scale + 1` of the nibbles of byte `sub % 4` of each lane, as i16, the low one first.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn odd_halves<V: Vector>(scales: V, sub: usize) -> V {
    // SAFETY: registers only.
    unsafe {
        let both = scales.shr(8 * (sub as u32 % 4));
        let both = both.and(V::splat(15)).or(both.shl(12).and(V::splat(0x000f_0000)));
        both.shl(1).or(V::splat(0x0001_0001))
    }
}

/// Sixteen bytes as numbers of 16 bits.
///
/// # Safety
/// They are readable; AVX2.
#[inline(always)]
unsafe fn widened(p: *const u8) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast())) }
}

/// Declares a type with a grid: its elements, its bytes, its words and where they are looked up, `Grid::sixteen` and `Grid::heads`.
macro_rules! a_grid {
    (
        $(#[$doc:meta])* $name:ident: $elements:ty, $bytes:literal, $word:ty, $grid:path,
        |$row:ident, $n:ident| $sixteen:expr, |$p:ident, $stride:ident, $to:ident| $heads:expr
    ) => {
        $(#[$doc])*
        pub struct $name;
        impl Grid for $name {
            type Elements = $elements;
            const BYTES: usize = $bytes;
            type Word = $word;

            #[inline(always)]
            fn grid() -> &'static [<Self::Word as Word>::Entry] {
                &$grid
            }

            #[inline(always)]
            unsafe fn sixteen($row: *const u8, $n: usize) -> __m256i {
                // SAFETY: all that is read lies inside the block, as the formats say.
                unsafe { $sixteen }
            }

            #[inline(always)]
            unsafe fn heads<V: Vector>($p: *const u8, $stride: usize, $to: *mut Head<V>) {
                // SAFETY: all that is read lies inside a block of each row, as the formats say; eight heads are written.
                unsafe { $heads }
            }
        }
    };
}

a_grid!(
    /// `f16 d; (u8 index[4]; u32 signs_and_scale)[8]`
    Iq2Xxs: Signed<One, 64>, 66, u64, grids::IQ2_XXS,
    |row, n| {
        let order = _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1);
        _mm256_shuffle_epi8(_mm256_loadu_si256(row.add(2 + 32 * n).cast()), _mm256_broadcastsi128_si256(order))
    },
    |p, stride, to| {
        // Inside the blocks: bytes 0..16, and 16 from 2 + 16 * 3 on.
        let [head, ..] = V::load_16_bytes(p, stride);
        for two in 0..4 {
            let [_, first, _, second] = V::load_16_bytes(p.add(2 + 16 * two), stride);
            for (sub, both) in [(2 * two, first), (2 * two + 1, second)] {
                let d = scaled(head.halves(), both.shr(28), 0.125);
                *to.add(sub) = Head { signs: packed_signs(both), d, m: V::splat(0) };
            }
        }
    }
);
a_grid!(
    /// `f16 d; u16 qs[32]; u8 scales[8]`: nine bits of index and seven of signs.
    Iq2Xs: Signed<Two, 64>, 74, u64, grids::IQ2_XS,
    |row, n| _mm256_and_si256(_mm256_loadu_si256(row.add(2 + 32 * n).cast()), _mm256_set1_epi16(511)),
    |p, stride, to| {
        // Inside the blocks: bytes 0..16, 16 from 2 + 16 * 3 on, and the last 16, 58..74.
        let ([head, ..], [_, _, low, high]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(58), stride));
        let d = head.halves().times(V::splat(0.125f32.to_bits()));
        for two in 0..4 {
            let [a, b, c, e] = V::load_16_bytes(p.add(2 + 16 * two), stride);
            for (sub, low_two, high_two) in [(2 * two, a, b), (2 * two + 1, c, e)] {
                let signs = low_two.shr(9).and(V::splat(0x7f)).or(low_two.shr(17).and(V::splat(0x7f00)));
                let signs = signs.or(high_two.shl(7).and(V::splat(0x7f_0000))).or(high_two.shr(1).and(V::splat(0x7f00_0000)));
                *to.add(sub) = Head { signs: even(signs), d, m: odd_halves(if sub < 4 { low } else { high }, sub) };
            }
        }
    }
);
a_grid!(
    /// `f16 d; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8]`: ten bits of index.
    Iq2S: Signed<Two, 64>, 82, u64, grids::IQ2_S,
    |row, n| {
        // A byte of `high` for each four indices, each time two bits lower.
        let order = _mm256_setr_epi64x(0, 0x0001_0001_0001_0001, 0x0002_0002_0002_0002, 0x0003_0003_0003_0003);
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(row.add(66 + 4 * n).cast::<i32>().read_unaligned()), order);
        let high = _mm256_mullo_epi16(bytes, _mm256_set1_epi64x(0x0004_0010_0040_0100));
        _mm256_or_si256(widened(row.add(2 + 16 * n)), _mm256_and_si256(high, _mm256_set1_epi16(0x300)))
    },
    |p, stride, to| {
        // Inside the blocks: bytes 0..16, 34..66, and the last 16, 66..82.
        let ([head, ..], [_, _, low, high]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(66), stride));
        let d = head.halves().times(V::splat(0.125f32.to_bits()));
        for half in 0..2 {
            let signs = V::load_16_bytes(p.add(34 + 16 * half), stride);
            for i in 0..4 {
                *to.add(4 * half + i) = Head { signs: signs[i], d, m: odd_halves(if half == 0 { low } else { high }, i) };
            }
        }
    }
);
a_grid!(
    /// `f16 d; u8 index[64]; u32 signs_and_scale[8]`
    Iq3Xxs: Signed<One, 64>, 98, Pair, grids::IQ3_XXS,
    |row, n| widened(row.add(2 + 16 * n)),
    |p, stride, to| {
        // Inside the blocks: bytes 0..16, and 16 from 66 + 16 on.
        let [head, ..] = V::load_16_bytes(p, stride);
        for half in 0..2 {
            let both = V::load_16_bytes(p.add(66 + 16 * half), stride);
            for i in 0..4 {
                let d = scaled(head.halves(), both[i].shr(28), 0.25);
                *to.add(4 * half + i) = Head { signs: packed_signs(both[i]), d, m: V::splat(0) };
            }
        }
    }
);
a_grid!(
    /// `f16 d; u8 low[64]; u8 ninth[8]; u8 signs[32]; u8 scales[4]`: nine bits of index.
    Iq3S: Signed<One, 16>, 110, Pair, grids::IQ3_S,
    |row, n| {
        let bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN);
        let ninth = _mm256_and_si256(_mm256_set1_epi16(row.add(66 + 2 * n).cast::<i16>().read_unaligned()), bits);
        let ninth = _mm256_and_si256(_mm256_cmpeq_epi16(ninth, bits), _mm256_set1_epi16(256));
        _mm256_or_si256(widened(row.add(2 + 16 * n)), ninth)
    },
    |p, stride, to| {
        // Inside the blocks: bytes 0..16, 74..106, and the last 16, 94..110.
        let ([head, ..], [.., scales]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(94), stride));
        for half in 0..2 {
            let signs = V::load_16_bytes(p.add(74 + 16 * half), stride);
            for i in 0..4 {
                let d = scaled(head.halves(), scales.shr(4 * (4 * half + i) as u32).and(V::splat(15)), 1.0);
                *to.add(4 * half + i) = Head { signs: signs[i], d, m: V::splat(0) };
            }
        }
    }
);

/// The next digit in base three of bytes that are fractions of 256: they stand two to a lane of 32 bits, even ones and odd ones, and stay
/// behind without that digit.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn next_digit<V: Vector>(even: &mut V, odd: &mut V) -> V {
    // SAFETY: registers only.
    unsafe {
        let low = V::splat(0x00ff_00ff);
        let (e, o) = (even.add(even.shl(1)), odd.add(odd.shl(1)));
        (*even, *odd) = (e.and(low), o.and(low));
        e.shr(8).and(low).or(o.and(V::splat(0xff00_ff00)))
    }
}

a_format!(
    /// `u8 qs[48]; u8 last[4]; f16 d`: five digits in a byte, in `last` four.
    Tq1_0: Raised<One, 1, 16>, 54 / 8, |p, stride, to| {
        // Inside the blocks: the last 16 bytes are 38..54; eight blocks.
        let low = V::splat(0x00ff_00ff);
        let [.., before, end] = V::load_16_bytes(p.add(38), stride);
        for part in 0..3 {
            let fives = V::load_16_bytes(p.add(16 * part), stride);
            for g in 0..4 {
                let (mut even, mut odd) = (fives[g].and(low), fives[g].shr(8).and(low));
                for n in 0..5 {
                    // Vectors of four columns: the first two parts have eight for each digit, the last four.
                    let at = if part < 2 { 8 * n + 4 * part + g } else { 40 + 4 * n + g };
                    (*to.add(at / 8)).q[at % 8] = next_digit(&mut even, &mut odd);
                }
            }
        }
        let last = before.shr(16).or(end.shl(16));
        let (mut even, mut odd) = (last.and(low), last.shr(8).and(low));
        for n in 0..4 {
            (*to.add(7)).q[4 + n] = next_digit(&mut even, &mut odd);
        }
        for sub in 0..8 {
            (*to.add(sub)).d = end.shr(16).halves();
            (*to.add(sub)).m = V::splat(0);
        }
    }
);
a_format!(
    /// `u8 qs[64]; f16 d`: bit pairs of 32 bytes for each four blocks.
    Tq2_0: Raised<One, 1, 16>, 66 / 8, |p, stride, to| {
        // Inside the blocks: the last 16 bytes are 50..66; eight blocks.
        let [.., end] = V::load_16_bytes(p.add(50), stride);
        for sub in 0..8 {
            (*to.add(sub)).d = end.shr(16).halves();
            (*to.add(sub)).m = V::splat(0);
        }
        for part in 0..4 {
            let (four, half) = (part / 2, part % 2);
            let q = V::load_16_bytes(p.add(32 * four + 16 * half), stride);
            for i in 0..4 {
                for g in 0..4 {
                    (*to.add(4 * four + i)).q[4 * half + g] = moved(q[g], 2 * i as u32, 0, 3);
                }
            }
        }
    }
);
