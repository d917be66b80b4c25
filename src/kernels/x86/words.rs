//! One or two tokens times rows of the types with grids, word by word as they are looked up.
//!
//! A word of a grid, eight magnitudes of one row, goes straight to its place in a vector of four rows and meets eight activations there,
//! which take the signs: magnitudes are what a product of unsigned by signed bytes wants, and no word waits in memory. Batches have the
//! words brought to the order of all other formats instead (grids.rs).
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::__m256i;
use std::mem::MaybeUninit;

use super::formats::{Elements, Vector};
use super::grids::{Grid, Head, Indices, four_rows, put_indices};
use super::product::{RowsOut, WORD_ROWS as ROWS, prefetch};
use crate::kernels::{Acts, BLOCK};

/// What vectors of eight rows need beside `Vector`.
///
/// # Safety
/// As `Vector`.
pub trait Words: Vector {
    /// The signs of 32 columns of each row, a set bit for minus, in an order that suits `half`.
    unsafe fn parted(signs: Self) -> Self;
    /// Sixteen columns of rows 0, 1, 4 and 5 (`four` 0) or 2, 3, 6 and 7 (1), in two words each, times sixteen activations at `a`: a
    /// sum in two parts, lanes `2r` and `2r + 1`, for each of these rows. `half` says which half of the signs counts.
    ///
    /// # Safety
    /// Sixteen activations are readable.
    unsafe fn half(words: [__m256i; 2], a: *const i8, signs: &Self, four: usize, half: usize) -> Self;
}

/// Eight rows times `T` tokens:
/// ```text
/// for each block b, token t:
///     isum   = sc0 Σ first 16 |q| * (a[t] with the sign of q) + sc1 Σ last 16
///     acc[t] = fma(d * d_a, isum, acc[t])
/// ```
///
/// # Safety
/// Eight rows from `p` on, `stride` bytes apart, have a block for each 32 columns; the features of the set; the elements of `to`
/// belong to the caller.
#[inline(always)]
pub unsafe fn product<V: Words, G: Grid, const T: usize>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut) {
    const { assert!(V::LANES == ROWS) }
    let n_blocks = acts.n_cols / BLOCK;
    assert!(T * acts.n_cols <= acts.q.len() && T * n_blocks <= acts.d.len());
    // SAFETY: blocks of the rows, and of the tokens.
    unsafe {
        let mut acc = [V::splat(0); T];
        let mut heads = MaybeUninit::<[Head<V>; 8]>::uninit();
        let mut indices = [Indices::uninit(); ROWS];
        for b in (0..n_blocks).step_by(8) {
            let (block, heads) = (p.add(b / 8 * G::BYTES), heads.as_mut_ptr().cast());
            G::heads::<V>(block, stride, heads);
            for sub in 0..8 {
                (*heads.add(sub)).signs = V::parted((*heads.add(sub)).signs);
            }
            for r in 0..ROWS {
                put_indices::<G>(block.add(r * stride), &mut indices[r]);
            }
            for sub in 0..8 {
                prefetch::<G>(ROWS, p, stride, b + sub);
                let head = &*heads.add(sub);
                let x = [four_rows::<G>(&indices, 0, 2 * sub), four_rows::<G>(&indices, 0, 2 * sub + 1)];
                let y = [four_rows::<G>(&indices, 2, 2 * sub), four_rows::<G>(&indices, 2, 2 * sub + 1)];
                for t in 0..T {
                    let at = t * n_blocks + b + sub;
                    let (a, d_a) = (acts.q.as_ptr().add(at * BLOCK), V::splat(acts.d.get_unchecked(at).to_bits()));
                    let first = [V::half(x[0], a, &head.signs, 0, 0), V::half(y[0], a, &head.signs, 1, 0)];
                    let last = [V::half(x[1], a.add(16), &head.signs, 0, 1), V::half(y[1], a.add(16), &head.signs, 1, 1)];
                    let isum = if G::Elements::SCALES.halves() {
                        let (sc0, sc1) = (head.m.and(V::splat(0xffff)), head.m.shr(16));
                        whole(first).times_i32(sc0).add(whole(last).times_i32(sc1))
                    } else {
                        whole([first[0].add(last[0]), first[1].add(last[1])])
                    };
                    acc[t] = head.d.times(d_a).times_plus(isum.to_floats(), acc[t]);
                }
            }
        }
        for t in 0..T {
            // What other products add for minimums, lest a nought have another sign.
            let acc = acc[t].times_plus(V::splat(1f32.to_bits()), V::splat(0));
            let mut lanes = [0f32; ROWS];
            acc.store(lanes.as_mut_ptr());
            for r in to.skip..ROWS {
                to.out.store(t, to.first + r, lanes[r]);
            }
        }
    }
}

/// Both parts of the sums of all rows, in order.
///
/// # Safety
/// The features of the set.
#[inline(always)]
unsafe fn whole<V: Vector>([x, y]: [V; 2]) -> V {
    // SAFETY: registers only.
    unsafe {
        let [even, odd] = x.unzipped(y);
        even.add(odd)
    }
}
