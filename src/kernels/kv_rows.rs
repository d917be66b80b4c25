//! How a key or a value lies in its row of the cache. A row is blocks of 32 elements, the last one padded with zeros:
//!
//! ```text
//! F16          32 x f16 (a last block is as long as it needs to be)
//! Q8           d f16 | 32 x i8                                     x = d * q
//! Q4, Q5, Q6   d f16 | 16 bytes: low four bits of element i in the low half of byte i, of i + 16 in its high half
//!                    | 4 bytes for each further bit: bit e % 8 of byte e / 8 belongs to element e
//!                                                                  x = d * (u - 2^(bits - 1))
//! ```
//!
//! `d * q` has at most 19 significant bits, so that every set gets the same f32 from a row, exactly.

use half::f16;

use super::portable::{add_lanes, f16_bits};

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

    /// Rounds `x` into a row. Values beyond f16 (none in sane models) become its largest, not infinity: one entry must
    /// not poison the rest.
    pub fn store(self, x: &[f32], row: &mut [u8]) {
        if self == RowType::F16 {
            for (x, out) in x.iter().zip(row.as_chunks_mut::<2>().0) {
                *out = f16_of(bounded(*x)).to_le_bytes();
            }
            return;
        }
        for (x, block) in x.chunks(ROW_BLOCK).zip(row.chunks_exact_mut(self.block_bytes())) {
            self.store_block(x, block);
        }
    }

    /// As GGUF's Q8_0 of 8 bits: 254 steps around nought. Of fewer bits all levels are used, -2^(bits - 1) among them, and the
    /// scale is the one of a few that leaves the least square error: see `best_scale`.
    fn store_block(self, x: &[f32], block: &mut [u8]) {
        let mut padded = [0f32; ROW_BLOCK];
        for (to, x) in padded.iter_mut().zip(x) {
            *to = bounded(*x);
        }
        let lowest = -((1i32 << (self.bits() - 1)) as f32);
        let (d, inverse) = match self {
            RowType::Q8 => {
                let d = f16::from_f32(padded.iter().fold(0f32, |far, x| far.max(x.abs())) / 127.0);
                (d, 1.0 / d.to_f32())
            }
            _ => best_scale(&padded, lowest),
        };
        let inverse = if d == f16::ZERO { 0.0 } else { inverse };
        let (scale, data) = block.split_at_mut(2);
        scale.copy_from_slice(&d.to_le_bytes());
        // Counted from the lowest level.
        let levels: [u8; ROW_BLOCK] = std::array::from_fn(|e| (level_bits(padded[e] * inverse, lowest) - lowest as i32) as u8);
        if self == RowType::Q8 {
            data.iter_mut().zip(levels).for_each(|(byte, level)| *byte = level.wrapping_sub(128));
            return;
        }
        let (low_fours, planes) = data.split_at_mut(ROW_BLOCK / 2);
        let (first, second) = levels.split_at(ROW_BLOCK / 2);
        for (byte, (a, b)) in low_fours.iter_mut().zip(first.iter().zip(second)) {
            *byte = a & 15 | b << 4;
        }
        for (plane, bytes) in planes.chunks_exact_mut(ROW_BLOCK / 8).enumerate() {
            for (byte, eight) in bytes.iter_mut().zip(levels.as_chunks::<8>().0) {
                // The product brings the lowest bit of byte k to bit 56 + k; no two meet.
                let bits = u64::from_le_bytes(*eight) >> (4 + plane) & 0x0101_0101_0101_0101;
                *byte = (bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
            }
        }
    }

    /// The elements of a row, `out.len()` of them.
    pub fn load(self, row: &[u8], out: &mut [f32]) {
        for (eight, out) in out.chunks_mut(8).enumerate() {
            let block = &row[eight / 4 * self.block_bytes()..];
            out.copy_from_slice(&self.load8(block, eight % 4)[..out.len()]);
        }
    }

    /// Elements `8 * part` and on of the block that starts at `block`.
    #[inline(always)]
    pub fn load8(self, block: &[u8], part: usize) -> [f32; 8] {
        if self == RowType::F16 {
            let row = &block[16 * part..];
            return std::array::from_fn(|i| f16_bits(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])));
        }
        let (scale, data) = block.split_at(2);
        let d = f16_bits(u16::from_le_bytes([scale[0], scale[1]]));
        std::array::from_fn(|i| {
            let e = 8 * part + i;
            let q = match self {
                RowType::Q8 => i32::from(data[e] as i8),
                _ => {
                    let mut u = i32::from(data[e % 16] >> (e / 16 * 4) & 15);
                    for plane in 0..self.bits() - 4 {
                        u |= i32::from(data[16 + 4 * plane + e / 8] >> (e % 8) & 1) << (4 + plane);
                    }
                    u - (1 << (self.bits() - 1))
                }
            };
            d * q as f32
        })
    }
}

/// Elements beyond it are cut: squares of them, and f16 scales, stay finite.
const HUGE: f32 = 65504.0;

/// An element within those bounds; what is not a number becomes one.
#[expect(clippy::manual_clamp, reason = "clamp keeps NaN, which takes a branch an element")]
#[inline(always)]
fn bounded(x: f32) -> f32 {
    x.max(-HUGE).min(HUGE)
}

/// 1.5 * 2^23: adding it rounds to an integer, ties to even, in the low bits (`round_ties_even` is a call on CPUs before SSE4).
const ROUND: f32 = 12_582_912.0;

/// The nearest level to x. `max` and `min` are one instruction each, several elements at a time; `clamp` is not.
#[inline(always)]
fn level(x: f32, lowest: f32) -> f32 {
    (x.max(lowest).min(-lowest - 1.0) + ROUND) - ROUND
}

/// The same as an integer.
#[inline(always)]
fn level_bits(x: f32, lowest: f32) -> i32 {
    (x.max(lowest).min(-lowest - 1.0) + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
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
        let levels: [f32; ROW_BLOCK] = std::array::from_fn(|e| level(x[e] * inverse, lowest));
        let (mut xq, mut qq) = ([0f32; 8], [0f32; 8]);
        for (x, q) in x.as_chunks::<8>().0.iter().zip(levels.as_chunks::<8>().0) {
            xq = std::array::from_fn(|l| xq[l] + x[l] * q[l]);
            qq = std::array::from_fn(|l| qq[l] + q[l] * q[l]);
        }
        let (xq, qq) = (add_lanes(xq), add_lanes(qq));
        // What the error lacks of Σx². Not a number where all is nought, and then not the best.
        let explained = xq * xq / qq;
        if explained > least {
            (least, best) = (explained, (xq / qq, inverse));
        }
    }
    (f16::from_f32(best.0), best.1)
}

/// The nearest f16 of a number that is not beyond the largest, ties to even: as `half`'s, in operations that the compiler does
/// on several elements at once, where `half`'s branch for each.
#[inline(always)]
fn f16_of(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // The exponent's bias becomes 15 instead of 127; half a step and the tie's bit round the mantissa.
    let normal = (magnitude.wrapping_sub(112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // Below 2^-14 steps are 2^-24, which is what the mantissa of a half and more has.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    (sign | if magnitude < 113 << 23 { small } else { normal }) as u16
}

/// `$call` with `$row` standing for a set's reader of rows of `$ty`: the caller's `F16`, `Q8` or `Packed<bits beyond four>`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! with_row {
    ($ty:expr, $row:ident => $call:expr) => {
        match $ty {
            RowType::F16 => {
                type $row = F16;
                $call
            }
            RowType::Q8 => {
                type $row = Q8;
                $call
            }
            RowType::Q6 => {
                type $row = Packed<2>;
                $call
            }
            RowType::Q5 => {
                type $row = Packed<1>;
                $call
            }
            RowType::Q4 => {
                type $row = Packed<0>;
                $call
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use with_row;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_rows_by_hand() {
        // A head of 64: two blocks of 2 + 32, 24, 20, 16 bytes; a head of 80 takes three.
        let sizes = |head_dim| RowType::ALL.map(|ty| ty.row_bytes(head_dim));
        assert_eq!((sizes(64), sizes(80)), ([128, 68, 52, 44, 36], [160, 102, 78, 66, 54]));
    }

    #[test]
    fn what_is_stored_comes_back_closer_than_by_the_farthest_element_alone() {
        let mut rng = fastrand::Rng::with_seed(3);
        for ty in RowType::ALL {
            let (mut squares, mut plain_squares) = (0.0, 0.0);
            for n in [8, 32, 40, 64, 80, 128] {
                let x: Vec<f32> = (0..n).map(|_| (rng.f32() - 0.5) * 10.0).collect();
                let (mut row, mut back) = (vec![0xaa; ty.row_bytes(n)], vec![f32::NAN; n]);
                ty.store(&x, &mut row);
                ty.load(&row, &mut back);
                for (x, back) in x.chunks(ROW_BLOCK).zip(back.chunks(ROW_BLOCK)) {
                    let far = x.iter().fold(0f32, |far, &x| if x.abs() > far.abs() { x } else { far });
                    let lowest = -((1 << (ty.bits() - 1)) as f32);
                    let step = if ty == RowType::F16 { far.abs() / 1024.0 } else { far / lowest };
                    for (x, back) in x.iter().zip(back) {
                        let plain = (x / step).round().clamp(lowest, -lowest - 1.0) * step;
                        squares += (x - back) * (x - back);
                        plain_squares += (x - plain) * (x - plain);
                        // At the far end there is no level for the other sign, and the scale may leave a step out.
                        assert!((x - back).abs() <= 2.3 * step.abs(), "{ty:?} of {n}: {x} became {back}, step {step}");
                    }
                }
            }
            assert!(squares < 1.01 * plain_squares, "{ty:?}: {squares}, plainly {plain_squares}");
            assert!(ty.bits() >= 8 || squares < 0.9 * plain_squares, "{ty:?}: {squares}, plainly {plain_squares}");
        }
    }

    #[test]
    fn f16_is_rounded_as_half_does_it() {
        for h in (0..=u16::MAX).map(f16::from_bits).filter(|h| h.is_finite()) {
            let x = h.to_f32();
            let next = f16::from_bits(h.to_bits() + 1).to_f32();
            // The value, what lies on either side of half way to the next, and half way itself.
            let middle = x + (next - x) / 2.0;
            for y in [x, middle, f32::from_bits(middle.to_bits() + 1), f32::from_bits(middle.to_bits().wrapping_sub(1))] {
                if y.abs() <= HUGE {
                    assert_eq!(f16_of(y), f16::from_f32(y).to_bits(), "{y}");
                }
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for ty in RowType::ALL {
            for x in [[0.0; 32], [f32::MAX; 32], [f32::MIN; 32], [1e-30; 32], [f32::INFINITY; 32]] {
                let (mut row, mut back) = (vec![0; ty.row_bytes(32)], [f32::NAN; 32]);
                ty.store(&x, &mut row);
                ty.load(&row, &mut back);
                assert!(back.iter().all(|b| b.is_finite()), "{ty:?} {}", x[0]);
            }
        }
    }
}
