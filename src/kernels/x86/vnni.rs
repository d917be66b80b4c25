//! The product of the sets with VNNI, written once for vectors of eight and of sixteen rows.
//!
//! Lane `r` of vector `g` of a block holds columns `4g..4g+4` of row `r`. `vpdpbusd` multiplies unsigned by signed bytes and
//! adds four products to a lane of 32 bits, so all elements are made unsigned here and the offset is taken off with the sum of
//! the activations.
//!
//! All is `inline(always)`, to take the features of the set.

use std::mem::MaybeUninit;

use super::formats::{Block, Elements, Scales, Vector};
use super::product::{RowsOut, Source};
use crate::kernels::{Acts, BLOCK};

/// Vectors of a block: each has four columns of every row.
const GROUPS: usize = BLOCK / 4;

/// What a product needs beside `Vector`; `SIGN` is 0x80.
///
/// # Safety
/// As `Vector`.
pub trait Vnni: Vector {
    /// `self` and four products in each lane of 32 bits, unsigned bytes of `w` times signed ones of `a`.
    unsafe fn add_byte_products(self, w: Self, a: Self) -> Self;
    unsafe fn times_i16(self, y: Self) -> Self;
    /// Lanes of 32 bits, shifted right with their sign.
    unsafe fn shr_i32(self, n: u32) -> Self;
    unsafe fn add_floats(self, y: Self) -> Self;
    /// Writes the lanes from `skip` on to their places from `p` on.
    ///
    /// # Safety
    /// These lanes are writable.
    unsafe fn store_from(self, skip: usize, p: *mut f32);
}

/// The rows of a vector times `T` tokens:
/// ```text
/// for each block b, group g of 4 columns, token t:
///     isum[t] += Σ q[b][g] (u8) * broadcast(a[t][b][4g..4g+4])     four columns to a lane of 32 bits
/// isum[t] -= OFFSET * Σa                                        (of one token a sum for g < 4 and one for the others)
/// acc[t] = fma(d * d_a, isum, acc[t]);  acc_m[t] = fma(m, s_a, acc_m[t])
/// ```
/// With a scale for each half of a block: isum = sc0 * (isum of g < 4) + sc1 * (isum of g >= 4) - OFFSET * (sc0 Σa0 + sc1 Σa1).
///
/// # Safety
/// `source` has a block for each 32 columns; tokens `first..first + T` are inside `acts`; the features of the set; the
/// elements of `to` belong to the caller.
#[inline(always)]
pub unsafe fn product<V: Vnni, E: Elements, S: Source<V>, const T: usize>(source: S, acts: &Acts, first: usize, to: RowsOut) {
    // All elements are unsigned here: signed ones have been flipped.
    let zero_point = const {
        assert!(V::SIGN == 0x80);
        if E::SIGNED { 128 } else { E::OFFSET }
    };
    // Each product of a sum waits for the one before it: those of one token alone go to two sums.
    let has_two_sums = E::SCALES.halves() || T == 1;
    let n_blocks = acts.n_cols / BLOCK;
    assert!((first + T) * acts.n_cols <= acts.q.len());
    // SAFETY: pointers to token `first`; token `first + t` is `t * n_blocks` blocks behind. The other fields have one
    // element for each block of `q`.
    unsafe {
        let (q, d) = (acts.q.as_ptr().add(first * acts.n_cols), acts.d.as_ptr().add(first * n_blocks));
        let (s, sum16) = (acts.s.as_ptr().add(first * n_blocks), acts.sum16.as_ptr().add(first * n_blocks));
        // For the product with both halves of `sum16`.
        let zero_points = V::splat(u32::from(-zero_point as i16 as u16) * 0x0001_0001);
        let mut acc = [V::splat(0); T];
        let mut acc_m = [V::splat(0); T];
        let mut first_half = [V::splat(0); T];
        let mut scratch = MaybeUninit::<[Block<V>; 8]>::uninit();
        for file_block in 0..n_blocks / S::BLOCKS {
            let blocks = source.blocks(file_block, scratch.as_mut_ptr().cast());
            for sub in 0..S::BLOCKS {
                let (block, b) = (&*blocks.add(sub), file_block * S::BLOCKS + sub);
                source.look_ahead(b);
                let scales = match E::SCALES {
                    Scales::TwoMin => block.m.and(V::splat(0x00ff_00ff)),
                    _ => block.m,
                };
                let mut isum = [V::splat(0); T];
                for g in 0..GROUPS {
                    if has_two_sums && g == GROUPS / 2 {
                        // What a lane holds so far is the first half.
                        let sc0 = scales.shl(16).shr_i32(16);
                        for t in 0..T {
                            first_half[t] = if E::SCALES.halves() { isum[t].times_i32(sc0) } else { isum[t] };
                            isum[t] = V::splat(0);
                        }
                    }
                    let w = block.q[g];
                    for t in 0..T {
                        let four = q.add((t * n_blocks + b) * BLOCK + 4 * g).cast::<u32>().read_unaligned();
                        isum[t] = isum[t].add_byte_products(w, V::splat(four));
                    }
                }
                let (sc1, sub_zero) = (scales.shr_i32(16), scales.times_i16(zero_points));
                let (w_d, w_m) = block.scales::<E>();
                for t in 0..T {
                    let at = t * n_blocks + b;
                    let (d, sums) = (V::splat((*d.add(at)).to_bits()), V::splat(*sum16.add(at) as u32));
                    if E::SCALES.halves() {
                        isum[t] = isum[t].times_i32(sc1);
                    }
                    if has_two_sums {
                        isum[t] = isum[t].add(first_half[t]);
                    }
                    if zero_point != 0 {
                        isum[t] = isum[t].add_products(if E::SCALES.halves() { sub_zero } else { zero_points }, sums);
                    }
                    acc[t] = w_d.times(d).times_plus(isum[t].to_floats(), acc[t]);
                    if E::SCALES == Scales::OneMin {
                        acc_m[t] = w_m.times_plus(V::splat((*s.add(at)).to_bits()), acc_m[t]);
                    }
                    if E::SCALES == Scales::TwoMin {
                        let minimums = block.m.shr(8).and(V::splat(0x00ff_00ff));
                        let minimum = V::splat(0).add_products(minimums, sums).to_floats();
                        acc_m[t] = w_m.times(d).times_plus(minimum, acc_m[t]);
                    }
                }
            }
        }
        for t in 0..T {
            acc[t].add_floats(acc_m[t]).store_from(to.skip, to.out.at(first + t, to.first));
        }
    }
}
