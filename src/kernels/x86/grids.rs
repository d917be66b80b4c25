//! How the x86 sets read IQ2 and IQ3, whose elements are looked up in grids, and the ternary types TQ1_0 and TQ2_0.
//!
//! A look-up is a load of a word by an index from memory. No vector does it well: gathers take as long as the loads that they are made
//! of, and on many processors longer. A single token is multiplied as words come (words.rs). For a batch all look-ups of a superblock
//! come first, one row after the other, and their results wait on the stack, in an order that two vectors are brought apart from by one
//! shuffle each; by then they are in the cache. Signs are applied to vectors: a lane of 32 bits has those of 32 columns of its row.
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
    fn whole(self) -> u64;
    /// Words of four rows.
    ///
    /// # Safety
    /// AVX2.
    unsafe fn four(words: [Self; 4]) -> __m256i;
}

impl Word for u64 {
    #[inline(always)]
    fn whole(self) -> u64 {
        self
    }

    #[inline(always)]
    unsafe fn four([a, b, c, d]: [u64; 4]) -> __m256i {
        // SAFETY: registers only.
        unsafe { _mm256_castpd_si256(_mm256_setr_pd(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c), f64::from_bits(d))) }
    }
}

/// Of grids of four magnitudes. (As an array they would be brought together in a register of their own.)
#[derive(Clone, Copy)]
pub struct Pair(u32, u32);
impl Word for Pair {
    #[inline(always)]
    fn whole(self) -> u64 {
        u64::from(self.0) | u64::from(self.1) << 32
    }

    #[inline(always)]
    unsafe fn four([a, b, c, d]: [Pair; 4]) -> __m256i {
        let of = |x: u32| x as i32;
        // SAFETY: registers only.
        unsafe { _mm256_setr_epi32(of(a.0), of(a.1), of(b.0), of(b.1), of(c.0), of(c.1), of(d.0), of(d.1)) }
    }
}

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

    /// What is looked up in a superblock of a row.
    type Indices: Copy;

    /// # Safety
    /// A block of the file is readable at `row`; AVX2.
    unsafe fn indices(row: *const u8) -> Self::Indices;

    /// The magnitudes of columns `16 half..`, sixteen of them: indices of both words come by one load.
    ///
    /// # Safety
    /// The indices are those of a block.
    unsafe fn words(indices: &Self::Indices, half: usize) -> [Self::Word; 2];

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
            // Written where they stay: what is returned would be copied, while it is still on its way to the cache.
            let mut words = Words::uninit();
            look_up::<V, G>(p, stride, words.as_mut_ptr().cast());
            let mut heads = MaybeUninit::<[Head<V>; 8]>::uninit();
            let heads: *mut Head<V> = heads.as_mut_ptr().cast();
            G::heads(p, stride, heads);
            for sub in 0..8 {
                let Head { signs, d, m } = heads.add(sub).read();
                *to.add(sub) = Block { q: signed(&words, sub, signs), d, m };
            }
        }
    }
}

/// A word of each row for each eight columns, those of the first eight columns first.
type Words = MaybeUninit<[u64; WORDS * MAX_LANES]>;

/// Looks up all magnitudes of a superblock of each row. Of each four rows the first two stand in the first half of a place, the last
/// two in the second, so that even lanes of both halves are rows in order.
///
/// # Safety
/// A block of the file is readable at `p + r * stride` for every row `r`; `to` is the beginning of writable `Words`; AVX2.
#[inline(always)]
unsafe fn look_up<V: Vector, G: Grid>(p: *const u8, stride: usize, to: *mut u64) {
    for r in 0..V::LANES {
        let place = r / 2 % 2 * (V::LANES / 2) + r / 4 * 2 + r % 2;
        // SAFETY: a block of row `r`.
        let indices = unsafe { G::indices(p.add(r * stride)) };
        for half in 0..WORDS / 2 {
            // SAFETY: indices of the row, words of the array.
            unsafe {
                let [first, second] = G::words(&indices, half);
                to.add(2 * half * V::LANES + place).write(first.whole());
                to.add((2 * half + 1) * V::LANES + place).write(second.whole());
            }
        }
    }
}

/// Block `sub` of 32 columns with its signs, a set bit for minus.
///
/// # Safety
/// The words were looked up for this `V`; its CPU features.
#[inline(always)]
unsafe fn signed<V: Vector>(words: &Words, sub: usize, signs: V) -> [V; 8] {
    let mut q = [signs; 8];
    for i in 0..4 {
        // SAFETY: the words of a group of columns, a place for each row.
        unsafe {
            let at = words.as_ptr().cast::<u64>().add((4 * sub + i) * V::LANES);
            let [even, odd] = V::load(at).unzipped(V::load(at.add(V::LANES / 2)));
            q[2 * i] = even.xor(V::splat(bytes(V::SIGN))).negated(signs, 2 * i);
            q[2 * i + 1] = odd.xor(V::splat(bytes(V::SIGN))).negated(signs, 2 * i + 1);
        }
    }
    q
}

/// Seven bits in each byte, and the eighth that makes the number of set bits even: `grids::even_signs`.
///
/// # Safety
/// The CPU features of `V`.
#[inline(always)]
unsafe fn even<V: Vector>(x: V) -> V {
    // SAFETY: registers only. What is shifted in from the next byte never reaches the lowest bit.
    unsafe {
        let parity = x.xor(x.shr(4));
        let parity = parity.xor(parity.shr(2));
        x.or(parity.xor(parity.shr(1)).and(V::splat(bytes(1))).shl(7))
    }
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

/// # Safety
/// Two bytes at `p` are readable.
#[inline(always)]
unsafe fn u16_at(p: *const u8) -> usize {
    // SAFETY: by the caller's promise.
    usize::from(unsafe { p.cast::<u16>().read_unaligned() })
}

/// # Safety
/// `at` is below the grid's length.
#[inline(always)]
unsafe fn looked_up<W: Copy>(grid: &[W], at: u32) -> W {
    // SAFETY: by the caller's promise.
    unsafe { *grid.get_unchecked(at as usize) }
}

#[inline(always)]
unsafe fn every_other(p: *const u8) -> [u32; 16] {
    let mut to = MaybeUninit::<[u32; 16]>::uninit();
    // SAFETY: by the caller's promise.
    unsafe {
        let order = _mm_setr_epi8(0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11, -1);
        for quarter in 0..4 {
            let x = _mm_shuffle_epi8(_mm_loadu_si128(p.cast::<__m128i>().add(quarter)), order);
            _mm_storeu_si128(to.as_mut_ptr().cast::<__m128i>().add(quarter), x);
        }
        to.assume_init()
    }
}

#[inline(always)]
unsafe fn widened(p: *const u8) -> [u64; 16] {
    let mut to = MaybeUninit::<[u64; 16]>::uninit();
    // SAFETY: by the caller's promise.
    unsafe {
        for quarter in 0..4 {
            let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast::<__m128i>().add(quarter)));
            _mm256_storeu_si256(to.as_mut_ptr().cast::<__m256i>().add(quarter), x);
        }
        to.assume_init()
    }
}

/// Indices of ten bits: a byte of each in `low`, two bits in `high`.
///
/// # Safety
/// 32 bytes at `low` and eight at `high` are readable; AVX2.
#[inline(always)]
unsafe fn ten_bits(low: *const u8, high: *const u8) -> [u32; 16] {
    let mut to = MaybeUninit::<[u32; 16]>::uninit();
    // SAFETY: by the caller's promise; both halves are written.
    unsafe {
        // The byte of four indices to each of them, and up to where its two bits stand at eight.
        let four = _mm256_setr_epi8(0, -1, 0, -1, 0, -1, 0, -1, 1, -1, 1, -1, 1, -1, 1, -1, 2, -1, 2, -1, 2, -1, 2, -1, 3, -1, 3, -1, 3, -1, 3, -1);
        let up = _mm256_set1_epi64x(0x0004_0010_0040_0100);
        for half in 0..2 {
            let high = _mm256_set1_epi32(high.cast::<i32>().add(half).read_unaligned());
            let high = _mm256_mullo_epi16(_mm256_shuffle_epi8(high, four), up);
            let low = _mm256_cvtepu8_epi16(_mm_loadu_si128(low.cast::<__m128i>().add(half)));
            let both = _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi16(0x300)));
            _mm256_storeu_si256(to.as_mut_ptr().cast::<__m256i>().add(half), both);
        }
        to.assume_init()
    }
}

/// Indices of nine bits: a byte of each in `low`, a bit in `ninth`.
///
/// # Safety
/// 64 bytes at `low` and eight at `ninth` are readable; AVX2.
#[inline(always)]
unsafe fn nine_bits(low: *const u8, ninth: *const u8) -> [u64; 16] {
    let mut to = MaybeUninit::<[u64; 16]>::uninit();
    // SAFETY: by the caller's promise; all quarters are written.
    unsafe {
        let bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN);
        for quarter in 0..4 {
            let ninth = _mm256_set1_epi16(ninth.cast::<i16>().add(quarter).read_unaligned());
            let set = _mm256_cmpeq_epi16(_mm256_and_si256(ninth, bits), bits);
            let low = _mm256_cvtepu8_epi16(_mm_loadu_si128(low.cast::<__m128i>().add(quarter)));
            let both = _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi16(256)));
            _mm256_storeu_si256(to.as_mut_ptr().cast::<__m256i>().add(quarter), both);
        }
        to.assume_init()
    }
}

/// Declares a type with a grid: its elements, its bytes, its words and how one is looked up, and `Grid::heads`.
macro_rules! a_grid {
    (
        $(#[$doc:meta])* $name:ident: $elements:ty, $bytes:literal, $word:ty, $index:ty, |$row:ident| $of_row:expr,
        |$two:ident| $look_up:expr, |$p:ident, $stride:ident, $to:ident| $heads:expr
    ) => {
        $(#[$doc])*
        pub struct $name;
        impl Grid for $name {
            type Elements = $elements;
            const BYTES: usize = $bytes;
            type Word = $word;
            type Indices = [$index; WORDS / 2];

            #[inline(always)]
            unsafe fn indices($row: *const u8) -> Self::Indices {
                // SAFETY: all that is read lies inside the block, as the formats say.
                unsafe { $of_row }
            }

            #[inline(always)]
            unsafe fn words(indices: &Self::Indices, half: usize) -> [$word; 2] {
                let $two = indices[half];
                // SAFETY: indices are below the grid's length, as they were put together.
                unsafe { $look_up }
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
    Iq2Xxs: Signed<One, 64>, 66, u64,
    u32, |row| every_other(row.add(2)),
    |two| [looked_up(&grids::IQ2_XXS, two & 0xffff), looked_up(&grids::IQ2_XXS, two >> 16)],
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
    Iq2Xs: Signed<Two, 64>, 74, u64,
    u32, |row| row.add(2).cast::<[u32; 16]>().read_unaligned(),
    |two| [grids::IQ2_XS[two as usize & 511], grids::IQ2_XS[(two >> 16) as usize & 511]],
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
    Iq2S: Signed<Two, 64>, 82, u64,
    u32, |row| ten_bits(row.add(2), row.add(66)),
    |two| [looked_up(&grids::IQ2_S, two & 0xffff), looked_up(&grids::IQ2_S, two >> 16)],
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
    Iq3Xxs: Signed<One, 64>, 98, Pair,
    u64, |row| widened(row.add(2)),
    |four| {
        let of = |at: u64| looked_up(&grids::IQ3_XXS, at as u32 & 0xffff);
        [Pair(of(four), of(four >> 16)), Pair(of(four >> 32), of(four >> 48))]
    },
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
    Iq3S: Signed<One, 16>, 110, Pair,
    u64, |row| nine_bits(row.add(2), row.add(66)),
    |four| {
        let of = |at: u64| looked_up(&grids::IQ3_S, at as u32 & 0xffff);
        [Pair(of(four), of(four >> 16)), Pair(of(four >> 32), of(four >> 48))]
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
