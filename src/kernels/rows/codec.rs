//! How a key or a value lies in its row of the cache: blocks of 32 elements, the last one padded with zeros.
//!
//! ```text
//! F16          32 x f16 for each block (a last block is as long as it needs to be)
//! Q8           d f16 for each block | 32 x i8 for each                            x = d * q
//! Q4, Q5, Q6   d f16 for each block
//!              | 4 bytes for each block and further bit: bit e / 4 of byte e % 4 belongs to element e
//!              | 16 bytes for each: low four bits of element i in the low half of byte i, of i + 16 in its high half
//!                                                                                 x = d * q, -2^(bits - 1) <= q
//! ```
//!
//! Q4 holds `q + 8`, the others `q` in two's complement, whichever is read with less. `d * q` has at most 19 significant bits.

use half::f16;

#[cfg(target_arch = "aarch64")]
use crate::kernels::arm::float::store_f16;
#[cfg(not(target_arch = "aarch64"))]
use crate::kernels::spec::arithmetic::store_f16;
use crate::kernels::spec::arithmetic::{bounded, f16_bits};

/// Elements of a block.
pub const ROW_BLOCK: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowType {
    F16,
    Q8,
    Q6,
    Q5,
    Q4,
}

impl RowType {
    pub const ALL: [RowType; 5] = [RowType::F16, RowType::Q8, RowType::Q6, RowType::Q5, RowType::Q4];

    /// Bits of an element, without its share of the scale.
    pub const fn bits(self) -> usize {
        match self {
            RowType::F16 => 16,
            RowType::Q8 => 8,
            RowType::Q6 => 6,
            RowType::Q5 => 5,
            RowType::Q4 => 4,
        }
    }

    pub const fn block_bytes(self) -> usize {
        match self {
            RowType::F16 => 2 * ROW_BLOCK,
            _ => 2 + ROW_BLOCK / 8 * self.bits(),
        }
    }

    /// Bytes of a row of `head_dim` elements.
    pub const fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            RowType::F16 => 2 * head_dim,
            _ => head_dim.div_ceil(ROW_BLOCK) * self.block_bytes(),
        }
    }

    /// Blocks of a row of `head_dim` elements.
    pub const fn n_blocks(head_dim: usize) -> usize {
        head_dim.div_ceil(ROW_BLOCK)
    }

    /// Where the levels of block `b` begin in a row of `n_blocks`; not of F16. Scales are at `2 * b`.
    #[inline(always)]
    pub const fn levels_at(self, n_blocks: usize, b: usize) -> usize {
        self.planes_at(n_blocks, n_blocks) + b * ROW_BLOCK / 8 * if self.bits() == 8 { 8 } else { 4 }
    }

    /// Where the words of further bits of block `b` begin. Here, and where scales stand, 16 bytes can be read.
    #[inline(always)]
    pub const fn planes_at(self, n_blocks: usize, b: usize) -> usize {
        2 * n_blocks + 4 * b * self.planes()
    }

    /// Further bits beyond four, each in a word of its own.
    pub const fn planes(self) -> usize {
        match self {
            RowType::Q6 => 2,
            RowType::Q5 => 1,
            _ => 0,
        }
    }

    /// What makes levels numbers that are not negative: `q + offset`.
    pub const fn offset(self) -> i32 {
        1 << (self.bits() - 1)
    }

    /// Rounds `x` into a row. Values beyond f16 (none in sane models) become its largest, not infinity: one entry must
    /// not poison the rest.
    #[inline(always)]
    pub fn store(self, x: &[f32], row: &mut [u8]) {
        if self == RowType::F16 {
            return store_f16(x, row);
        }
        let n_blocks = Self::n_blocks(x.len());
        for (b, x) in x.chunks(ROW_BLOCK).enumerate() {
            let mut padded = [0f32; ROW_BLOCK];
            padded[..x.len()].copy_from_slice(x);
            let step = self.step_for(&mut padded);
            let lowest = -(self.offset() as f32);
            let levels = padded.map(|x| (level_bits(x * step.inverse, lowest) - lowest as i32) as u8);
            self.put(row, n_blocks, b, step.d, &levels);
        }
    }

    /// Writes block `b`: its scale and its levels, counted from the lowest.
    pub(super) fn put(self, row: &mut [u8], n_blocks: usize, b: usize, d: f16, levels: &[u8; ROW_BLOCK]) {
        row[2 * b..][..2].copy_from_slice(&d.to_le_bytes());
        let at = self.levels_at(n_blocks, b);
        if self == RowType::Q8 {
            row[at..][..ROW_BLOCK].iter_mut().zip(levels).for_each(|(byte, level)| *byte = level ^ 128);
            return;
        }
        let (first, second) = levels.split_at(ROW_BLOCK / 2);
        for (byte, (a, b)) in row[at..][..ROW_BLOCK / 2].iter_mut().zip(first.iter().zip(second)) {
            *byte = a & 15 | b << 4;
        }
        for plane in 0..self.planes() {
            let bits = |four: &[u8; 4]| u32::from_le_bytes(*four) >> (4 + plane) & 0x0101_0101;
            let words = levels.as_chunks::<4>().0.iter().enumerate();
            let word = words.fold(0, |word, (g, four)| word | bits(four) << g) ^ self.flips(plane);
            row[self.planes_at(n_blocks, b) + 4 * plane..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// What turns a word of further bits of `q + offset` into that of `q`, and back: the highest bit is a sign there.
    const fn flips(self, plane: usize) -> u32 {
        if plane + 1 == self.planes() { u32::MAX } else { 0 }
    }

    /// As GGUF's Q8_0 of 8 bits: 254 steps around nought. Of fewer bits all levels are used, -2^(bits - 1) among them, and the
    /// scale is the one of a few that leaves the least square error: see `best_scale`. Brings the elements, a block of them at most, within bounds.
    pub(super) fn step_for(self, x: &mut [f32]) -> Step {
        x.iter_mut().for_each(|x| *x = bounded(*x));
        let (d, inverse) = match self {
            RowType::Q8 => {
                let d = f16::from_f32(x.iter().fold(0f32, |far, x| far.max(x.abs())) / 127.0);
                (d, 1.0 / d.to_f32())
            }
            _ => {
                let mut padded = [0f32; ROW_BLOCK];
                padded[..x.len()].copy_from_slice(x);
                best_scale(&padded, -(self.offset() as f32))
            }
        };
        Step { d, inverse: if d == f16::ZERO { 0.0 } else { inverse } }
    }

    /// The elements of a row, `out.len()` of them.
    #[inline(always)]
    pub fn load(self, row: &[u8], out: &mut [f32]) {
        if self == RowType::F16 {
            for (out, h) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                *out = f16_bits(u16::from_le_bytes(*h));
            }
            return;
        }
        let n_blocks = Self::n_blocks(out.len());
        for (b, out) in out.chunks_mut(ROW_BLOCK).enumerate() {
            let (d, levels) = (self.scale(row, b), self.levels(row, n_blocks, b));
            // Not `map`, of which the compiler makes vectors of two.
            let mut elements = [0f32; ROW_BLOCK];
            for (x, level) in elements.iter_mut().zip(&levels) {
                *x = d * (i32::from(*level) - self.offset()) as f32;
            }
            match out.as_mut_array::<ROW_BLOCK>() {
                Some(out) => *out = elements,
                None => out.copy_from_slice(&elements[..out.len()]),
            }
        }
    }

    /// The scale of block `b`; not of F16.
    #[inline(always)]
    pub fn scale(self, row: &[u8], b: usize) -> f32 {
        f16_bits(u16::from_le_bytes([row[2 * b], row[2 * b + 1]]))
    }

    /// `q + offset` of the elements of block `b`; not of F16.
    #[inline(always)]
    pub fn levels(self, row: &[u8], n_blocks: usize, b: usize) -> [u8; ROW_BLOCK] {
        let bytes = &row[self.levels_at(n_blocks, b)..];
        if self == RowType::Q8 {
            return std::array::from_fn(|e| bytes[e] ^ 128);
        }
        let bytes: &[u8; ROW_BLOCK / 2] = bytes[..ROW_BLOCK / 2].try_into().expect("sixteen");
        let mut levels = [0u8; ROW_BLOCK];
        let (low, high) = levels.split_at_mut(ROW_BLOCK / 2);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
        for plane in 0..self.planes() {
            let at = self.planes_at(n_blocks, b) + 4 * plane;
            let word: [u8; 4] = row[at..][..4].try_into().expect("four");
            let word = u32::from_le_bytes(word) ^ self.flips(plane);
            for (g, four) in levels.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let bits = (word >> g & 0x0101_0101) << (4 + plane);
                *four = (u32::from_le_bytes(*four) | bits).to_le_bytes();
            }
        }
        levels
    }
}

/// From one level of a block to the next, and what elements are multiplied by to find theirs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub d: f16,
    pub inverse: f32,
}

/// 1.5 * 2^23: adding it rounds to an integer, ties to even, in the low bits (`round_ties_even` is a call on CPUs before SSE4).
pub(super) const ROUND: f32 = 12_582_912.0;

/// The nearest level to x, plus `ROUND`. `max` and `min` are one instruction each, several elements at a time; `clamp` is not.
#[inline(always)]
pub(super) fn bounded_level(x: f32, lowest: f32) -> f32 {
    x.max(lowest).min(-lowest - 1.0) + ROUND
}

/// The nearest level to x.
#[inline(always)]
fn level(x: f32, lowest: f32) -> f32 {
    bounded_level(x, lowest) - ROUND
}

/// The same as an integer.
#[inline(always)]
fn level_bits(x: f32, lowest: f32) -> i32 {
    bounded_level(x, lowest).to_bits() as i32 - ROUND.to_bits() as i32
}

/// Scales that are tried: the element of the largest magnitude lies so many steps beyond the lowest level.
const BEYOND: [f32; 7] = [-1.2, -0.8, -0.4, 0.0, 0.4, 0.8, 1.2];

/// A scale and the inverse to round by. For each scale tried, the levels q that x is rounded to are best multiplied by
/// d = Σxq / Σq², which leaves the error Σx² - (Σxq)² / Σq²; the scale with the least wins. One order of sums on every CPU.
fn best_scale(x: &[f32; ROW_BLOCK], lowest: f32) -> (f16, f32) {
    let far = x.iter().fold(0f32, |far, &x| if x.abs() > far.abs() { x } else { far });
    let (mut least, mut best) = (0f32, (0f32, 0f32));
    for beyond in BEYOND {
        let inverse = (lowest + beyond) / far;
        let mut lanes = [[0f32; 4]; 2];
        fit(x, inverse, lowest, &mut lanes);
        let [xq, qq] = lanes.map(|l| (l[0] + l[1]) + (l[2] + l[3]));
        // What the error lacks of Σx². Not a number where all is nought, and then not the best.
        let explained = xq * xq / qq;
        if explained > least {
            (least, best) = (explained, (xq / qq, inverse));
        }
    }
    (f16::from_f32(best.0), best.1)
}

/// Σxq and Σq² in four lanes each. A function of its own that writes them to memory: else LLVM, which begins at what is done
/// with the lanes, makes vectors of two.
#[inline(never)]
fn fit(x: &[f32; ROW_BLOCK], inverse: f32, lowest: f32, lanes: &mut [[f32; 4]; 2]) {
    let [mut xq, mut qq] = *lanes;
    for x in x.as_chunks::<4>().0 {
        let q = x.map(|x| level(x * inverse, lowest));
        xq = std::array::from_fn(|l| xq[l] + x[l] * q[l]);
        qq = std::array::from_fn(|l| qq[l] + q[l] * q[l]);
    }
    *lanes = [xq, qq];
}

/// `$call` with `$row` standing for a set's reader of levels of `$ty`: the caller's `Q8` or `BitPlanes<bits beyond four>`;
/// `$float` for F16.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! with_row {
    ($ty:expr, $row:ident => $call:expr, $float:expr) => {
        match $ty {
            RowType::F16 => $float,
            RowType::Q8 => {
                type $row = Q8;
                $call
            }
            RowType::Q6 => {
                type $row = BitPlanes<2>;
                $call
            }
            RowType::Q5 => {
                type $row = BitPlanes<1>;
                $call
            }
            RowType::Q4 => {
                type $row = BitPlanes<0>;
                $call
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use with_row;

#[cfg(test)]
#[path = "../../../tests/unit/kernels/rows/codec.rs"]
mod tests;
