//! How the x86 sets read IQ2 and IQ3, whose elements are looked up in grids, and the ternary types TQ1_0 and TQ2_0.
//!
//! A look-up is a load of eight bytes by an index from memory. No vector does it well: gathers take as long as the loads that they
//! are made of, and on many processors longer. So all look-ups of a superblock come first, one row after the other, and their results
//! wait on the stack, in an order that two vectors are brought apart from by one shuffle each; by then they are in the cache.
//! Signs are applied to vectors: a lane of 32 bits has those of 32 columns of its row.
//!
//! All is `inline(always)`, to take the features of the set.

use std::mem::MaybeUninit;

use super::formats::{Block, Format, One, Raised, Signed, Two, Vector, a_format, bytes, moved};
use crate::gguf::quant::grids;

/// Rows of the widest vector.
const MAX_LANES: usize = 16;
/// Words of eight magnitudes in a row of a superblock.
const WORDS: usize = 32;

/// A word of each row for each eight columns, those of the first eight columns first.
type Words = MaybeUninit<[u64; WORDS * MAX_LANES]>;

/// Looks up all magnitudes of a superblock of each row: `word(row, i)` is of columns `8i..8i + 8`. Of each four rows the first two
/// stand in the first half of a place, the last two in the second, so that even lanes of both halves are rows in order.
///
/// # Safety
/// `word` may read a block of the file at `p + r * stride` for every row `r`.
#[inline(always)]
unsafe fn look_up<V: Vector>(p: *const u8, stride: usize, word: impl Fn(*const u8, usize) -> u64) -> Words {
    let mut words = Words::uninit();
    let to: *mut u64 = words.as_mut_ptr().cast();
    for r in 0..V::LANES {
        let place = r / 2 % 2 * (V::LANES / 2) + r / 4 * 2 + r % 2;
        for i in 0..WORDS {
            // SAFETY: a block of row `r`; a word of the array.
            unsafe { to.add(i * V::LANES + place).write(word(p.add(r * stride), i)) };
        }
    }
    words
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

/// Two indices of four magnitudes as one word of eight.
#[inline(always)]
fn pair(grid: &[u32], low: usize, high: usize) -> u64 {
    u64::from(grid[low]) | u64::from(grid[high]) << 32
}

a_format!(
    /// `f16 d; (u8 index[4]; u32 signs_and_scale)[8]`
    Iq2Xxs: Signed<One, 64>, 66 / 8, |p, stride, to| {
        // Inside the blocks: indices up to 2 + 8 * 7 + 3, 16 bytes from 2 + 16 * 3 on; eight blocks.
        let words = look_up::<V>(p, stride, |row, i| grids::IQ2_XXS[usize::from(*row.add(2 + 8 * (i / 4) + i % 4))]);
        let [head, ..] = V::load_16_bytes(p, stride);
        for two in 0..4 {
            let [_, first, _, second] = V::load_16_bytes(p.add(2 + 16 * two), stride);
            for (sub, both) in [(2 * two, first), (2 * two + 1, second)] {
                let d = scaled(head.halves(), both.shr(28), 0.125);
                *to.add(sub) = Block { q: signed(&words, sub, packed_signs(both)), d, m: V::splat(0) };
            }
        }
    }
);
a_format!(
    /// `f16 d; u16 qs[32]; u8 scales[8]`: nine bits of index and seven of signs.
    Iq2Xs: Signed<Two, 64>, 74 / 8, |p, stride, to| {
        // Inside the blocks: indices up to 2 + 2 * 31, the last 16 bytes are 58..74; eight blocks.
        let words = look_up::<V>(p, stride, |row, i| grids::IQ2_XS[u16_at(row.add(2 + 2 * i)) & 511]);
        let ([head, ..], [_, _, low, high]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(58), stride));
        let d = head.halves().times(V::splat(0.125f32.to_bits()));
        for two in 0..4 {
            let [a, b, c, e] = V::load_16_bytes(p.add(2 + 16 * two), stride);
            for (sub, low_two, high_two) in [(2 * two, a, b), (2 * two + 1, c, e)] {
                let signs = low_two.shr(9).and(V::splat(0x7f)).or(low_two.shr(17).and(V::splat(0x7f00)));
                let signs = signs.or(high_two.shl(7).and(V::splat(0x7f_0000))).or(high_two.shr(1).and(V::splat(0x7f00_0000)));
                let m = odd_halves(if sub < 4 { low } else { high }, sub);
                *to.add(sub) = Block { q: signed(&words, sub, even(signs)), d, m };
            }
        }
    }
);
a_format!(
    /// `f16 d; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8]`: ten bits of index.
    Iq2S: Signed<Two, 64>, 82 / 8, |p, stride, to| {
        // Inside the blocks: indices up to 66 + 7, the last 16 bytes are 66..82; eight blocks.
        let words = look_up::<V>(p, stride, |row, i| {
            let high = usize::from(*row.add(66 + i / 4) >> (2 * (i % 4)) & 3);
            grids::IQ2_S[usize::from(*row.add(2 + i)) | high << 8]
        });
        let ([head, ..], [_, _, low, high]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(66), stride));
        let d = head.halves().times(V::splat(0.125f32.to_bits()));
        for half in 0..2 {
            let signs = V::load_16_bytes(p.add(34 + 16 * half), stride);
            for i in 0..4 {
                let (sub, m) = (4 * half + i, odd_halves(if half == 0 { low } else { high }, i));
                *to.add(sub) = Block { q: signed(&words, sub, signs[i]), d, m };
            }
        }
    }
);
a_format!(
    /// `f16 d; u8 index[64]; u32 signs_and_scale[8]`
    Iq3Xxs: Signed<One, 64>, 98 / 8, |p, stride, to| {
        // Inside the blocks: indices up to 2 + 63, the last 16 bytes are 82..98; eight blocks.
        let words = look_up::<V>(p, stride, |row, i| {
            let at = row.add(2 + 2 * i);
            pair(&grids::IQ3_XXS, usize::from(*at), usize::from(*at.add(1)))
        });
        let [head, ..] = V::load_16_bytes(p, stride);
        for half in 0..2 {
            let both = V::load_16_bytes(p.add(66 + 16 * half), stride);
            for i in 0..4 {
                let d = scaled(head.halves(), both[i].shr(28), 0.25);
                let q = signed(&words, 4 * half + i, packed_signs(both[i]));
                *to.add(4 * half + i) = Block { q, d, m: V::splat(0) };
            }
        }
    }
);
a_format!(
    /// `f16 d; u8 low[64]; u8 ninth[8]; u8 signs[32]; u8 scales[4]`: nine bits of index.
    Iq3S: Signed<One, 16>, 110 / 8, |p, stride, to| {
        // Inside the blocks: indices up to 66 + 7, the last 16 bytes are 94..110; eight blocks.
        let words = look_up::<V>(p, stride, |row, i| {
            let (at, ninth) = (row.add(2 + 2 * i), usize::from(*row.add(66 + i / 4)) << 8 >> (2 * (i % 4)));
            pair(&grids::IQ3_S, usize::from(*at) | ninth & 256, usize::from(*at.add(1)) | ninth >> 1 & 256)
        });
        let ([head, ..], [.., scales]) = (V::load_16_bytes(p, stride), V::load_16_bytes(p.add(94), stride));
        for half in 0..2 {
            let signs = V::load_16_bytes(p.add(74 + 16 * half), stride);
            for i in 0..4 {
                let sub = 4 * half + i;
                let d = scaled(head.halves(), scales.shr(4 * sub as u32).and(V::splat(15)), 1.0);
                *to.add(sub) = Block { q: signed(&words, sub, signs[i]), d, m: V::splat(0) };
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
