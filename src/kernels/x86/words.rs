//! One token times rows of the types with grids, word by word as they are looked up.
//!
//! A word of a grid, eight magnitudes of one row, goes straight to its place in a vector of four rows and meets eight activations there,
//! which take the signs: magnitudes are what a product of unsigned by signed bytes wants, and no word waits in memory. Batches have the
//! words brought to the order of all other formats instead (grids.rs).
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::__m256i;
use std::mem::MaybeUninit;

use super::formats::{Elements, Vector};
use super::grids::{Grid, Head, Word};
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

/// Eight rows times one token:
/// ```text
/// for each block b:
///     isum = sc0 Σ first 16 |q| * (a with the sign of q) + sc1 Σ last 16
///     acc  = fma(d * d_a, isum, acc)
/// ```
///
/// # Safety
/// Eight rows from `p` on, `stride` bytes apart, have a block for each 32 columns; the features of the set; the elements of `to`
/// belong to the caller.
#[inline(always)]
pub unsafe fn product<V: Words, G: Grid>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut) {
    const { assert!(V::LANES == ROWS) }
    let n_blocks = acts.n_cols / BLOCK;
    assert!(acts.n_cols <= acts.q.len() && n_blocks <= acts.d.len());
    // SAFETY: blocks of the rows, and of the token.
    unsafe {
        let mut acc = V::splat(0);
        let mut heads = MaybeUninit::<[Head<V>; 8]>::uninit();
        for b in (0..n_blocks).step_by(8) {
            let mut indices = MaybeUninit::<[G::Indices; ROWS]>::uninit();
            let indices: *mut G::Indices = indices.as_mut_ptr().cast();
            let (block, heads) = (p.add(b / 8 * G::BYTES), heads.as_mut_ptr().cast());
            G::heads::<V>(block, stride, heads);
            for r in 0..ROWS {
                *indices.add(r) = G::indices(block.add(r * stride));
            }
            for sub in 0..8 {
                (*heads.add(sub)).signs = V::parted((*heads.add(sub)).signs);
            }
            for sub in 0..8 {
                prefetch::<G>(ROWS, p, stride, b + sub);
                let (head, a) = (&*heads.add(sub), acts.q.as_ptr().add((b + sub) * BLOCK));
                let (x, y) = (four::<V, G, 0>(indices, sub, a, head), four::<V, G, 1>(indices, sub, a, head));
                let (first, last) = ([x[0], y[0]], [x[1], y[1]]);
                let isum = if G::Elements::SCALES.halves() {
                    let (sc0, sc1) = (head.m.and(V::splat(0xffff)), head.m.shr(16));
                    whole(first).times_i32(sc0).add(whole(last).times_i32(sc1))
                } else {
                    whole([first[0].add(last[0]), first[1].add(last[1])])
                };
                let d_a = V::splat(acts.d.get_unchecked(b + sub).to_bits());
                acc = head.d.times(d_a).times_plus(isum.to_floats(), acc);
            }
        }
        // What other products add for minimums, lest a nought have another sign.
        let acc = acc.times_plus(V::splat(1f32.to_bits()), V::splat(0));
        let mut lanes = [0f32; ROWS];
        acc.store(lanes.as_mut_ptr());
        for r in to.skip..ROWS {
            to.out.store(0, to.first + r, lanes[r]);
        }
    }
}

/// Both halves of 32 columns of four rows, see `Words::half`.
///
/// # Safety
/// As `product`; 32 activations at `a`.
#[inline(always)]
unsafe fn four<V: Words, G: Grid, const FOUR: usize>(
    indices: *const G::Indices,
    sub: usize,
    a: *const i8,
    head: &Head<V>,
) -> [V; 2] {
    // SAFETY: blocks of the rows.
    unsafe {
        let p = indices.add(2 * FOUR);
        let rows = [p, p.add(1), p.add(4), p.add(5)];
        let (first, last) = (vectors::<G>(rows, 2 * sub), vectors::<G>(rows, 2 * sub + 1));
        [V::half(first, a, &head.signs, FOUR, 0), V::half(last, a.add(16), &head.signs, FOUR, 1)]
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

/// Sixteen columns of four rows, in two words each.
///
/// # Safety
/// The indices of a block are readable at each; the features of the set.
#[inline(always)]
unsafe fn vectors<G: Grid>(rows: [*const G::Indices; 4], half: usize) -> [__m256i; 2] {
    // SAFETY: passed on.
    unsafe {
        let [a, b, c, d] = [G::words(&*rows[0], half), G::words(&*rows[1], half), G::words(&*rows[2], half), G::words(&*rows[3], half)];
        [Word::four([a[0], b[0], c[0], d[0]]), Word::four([a[1], b[1], c[1], d[1]])]
    }
}
