//! The way of both x86 sets through a quantised matrix: some rows at a time, a few tokens straight from the file's layout,
//! more of them from rows that are expanded once. A `Set` brings the vectors and the products; formats are in
//! formats.rs. Matrices of fewer rows than a vector has lanes go to the scalar set, which gives the same bits.
//!
//! All is `inline(always)`, to take the features of the set.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::marker::PhantomData;

use super::float;
use super::formats::{
    Block, Elements, Format, Iq4Nl, Iq4Xs, Mxfp4, Q1_0, Q2_0, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Vector,
};
use super::grids::{Grid, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Tq1_0, Tq2_0};
use crate::gguf::quant::GgmlType;
use crate::kernels::spec::arithmetic::LoadF16;
use crate::kernels::{Acts, BLOCK, MatmulTask, Out, spec::weights};

/// Groups of rows between what is multiplied and what is fetched from memory into the second cache, and bytes at most, of which
/// that cache holds several times as many. From there it is fetched a group before it is multiplied.
const AHEAD: usize = 4;
const AHEAD_BYTES: usize = 256 << 10;

/// Rows that are multiplied at once, where words of theirs are looked up, and up to how many tokens that is as quick as the tile or
/// quicker.
pub const WORD_ROWS: usize = 8;
const WORD_TOKENS: usize = 2;

/// What a set brings along. Its functions cross into functions that are compiled with its CPU features.
pub trait Set: Copy {
    type V: Vector;
    type F16: LoadF16;
    /// Rows that are multiplied at once: the lanes of a vector.
    const ROWS: usize;
    /// Up to this many tokens are multiplied straight from the file's layout.
    const DIRECT: usize;

    /// `Expanded::expand`, out of line.
    ///
    /// # Safety
    /// As `Expanded::expand`.
    unsafe fn expand<F: Format>(tile: Expanded<Self>, p: *const u8, stride: usize, n: usize);

    /// All tokens of `acts`, at most `DIRECT`.
    ///
    /// # Safety
    /// `rows` have a block for each 32 columns; their elements of `to` belong to the caller; the CPU features of the set.
    unsafe fn direct<F: Format>(rows: Native<Self, F>, acts: &Acts, to: RowsOut);

    /// `words::product`, out of line, for all tokens of `acts`, one or two.
    ///
    /// # Safety
    /// As `words::product`.
    unsafe fn by_words<G: Grid>(p: *const u8, stride: usize, acts: &Acts, to: RowsOut);

    /// All tokens of `acts`, as many at once as the set takes.
    ///
    /// # Safety
    /// As `direct`.
    unsafe fn tiled<E: Elements>(tile: Expanded<Self>, acts: &Acts, to: RowsOut);
}

/// The product of a task by the type of its weights.
///
/// # Safety
/// The CPU features of the set; the task's elements of `out` belong to the caller.
#[inline(always)]
pub unsafe fn matmul<S: Set>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => quantised::<S, Q4_0>(task),
            GgmlType::Q4_1 => quantised::<S, Q4_1>(task),
            GgmlType::Q5_0 => quantised::<S, Q5_0>(task),
            GgmlType::Q5_1 => quantised::<S, Q5_1>(task),
            GgmlType::Q8_0 => quantised::<S, Q8_0>(task),
            GgmlType::Q1_0 => quantised::<S, Q1_0>(task),
            GgmlType::Q2_0 => quantised::<S, Q2_0>(task),
            GgmlType::IQ4_NL => quantised::<S, Iq4Nl>(task),
            GgmlType::MXFP4 => quantised::<S, Mxfp4>(task),
            GgmlType::IQ4_XS => quantised::<S, Iq4Xs>(task),
            GgmlType::Q2_K => quantised::<S, Q2K>(task),
            GgmlType::Q3_K => quantised::<S, Q3K>(task),
            GgmlType::Q4_K => quantised::<S, Q4K>(task),
            GgmlType::Q5_K => quantised::<S, Q5K>(task),
            GgmlType::Q6_K => quantised::<S, Q6K>(task),
            GgmlType::IQ2_XXS => looked_up::<S, Iq2Xxs>(task),
            GgmlType::IQ2_XS => looked_up::<S, Iq2Xs>(task),
            GgmlType::IQ2_S => looked_up::<S, Iq2S>(task),
            GgmlType::IQ3_XXS => looked_up::<S, Iq3Xxs>(task),
            GgmlType::IQ3_S => looked_up::<S, Iq3S>(task),
            GgmlType::TQ1_0 => quantised::<S, Tq1_0>(task),
            GgmlType::TQ2_0 => quantised::<S, Tq2_0>(task),
            GgmlType::F16 | GgmlType::BF16 | GgmlType::F32 => float::batch::<S::F16>(task),
            ty => unreachable!("{ty:?} was refused when the model was loaded"),
        }
    }
}

/// A few tokens straight from the file's layout, more from the tile.
///
/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn quantised<S: Set, F: Format>(task: &mut MatmulTask) {
    if task.acts.n_tok > S::DIRECT || task.rows.end < S::ROWS {
        // SAFETY: passed on.
        return unsafe { from_tile::<S, F>(task) };
    }
    let stride = checked_stride::<F>(task);
    for row in task.rows.clone().step_by(S::ROWS) {
        let to = RowsOut::of(task, row, S::ROWS);
        // SAFETY: `ROWS` rows from `to.first` on are inside the matrix; the elements of `out` but those skipped are the caller's.
        unsafe {
            let rows = task.w.data.as_ptr().add(to.first * stride);
            S::direct(Native::<S, F>(rows, stride, PhantomData), &task.acts, to);
        }
    }
}

/// One token or two word by word, more from the tile.
///
/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn looked_up<S: Set, G: Grid>(task: &mut MatmulTask) {
    if task.acts.n_tok > WORD_TOKENS || task.rows.end < WORD_ROWS {
        // SAFETY: passed on.
        return unsafe { from_tile::<S, G>(task) };
    }
    let stride = checked_stride::<G>(task);
    for row in task.rows.clone().step_by(WORD_ROWS) {
        let to = RowsOut::of(task, row, WORD_ROWS);
        // SAFETY: as in `quantised`.
        unsafe { S::by_words::<G>(task.w.data.as_ptr().add(to.first * stride), stride, &task.acts, to) };
    }
}

/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn from_tile<S: Set, F: Format>(task: &mut MatmulTask) {
    if task.rows.end < S::ROWS {
        // SAFETY: the scalar set needs no feature; the elements of `out` are the caller's.
        return unsafe { weights::matmul(task) };
    }
    let (stride, n_blocks) = (checked_stride::<F>(task), task.acts.n_cols / BLOCK);
    assert!(n_blocks * size_of::<Block<S::V>>() <= task.tile.len());
    let tile = Expanded::<S>(task.tile.as_mut_ptr().cast());
    assert!(tile.0.is_aligned());
    for row in task.rows.clone().step_by(S::ROWS) {
        let to = RowsOut::of(task, row, S::ROWS);
        // SAFETY: as in `quantised`; the expansion is inside the tile (asserted above).
        unsafe {
            S::expand::<F>(tile, task.w.data.as_ptr().add(to.first * stride), stride, n_blocks / F::BLOCKS);
            S::tiled::<F::Elements>(tile, &task.acts, to);
        }
    }
}

/// Bytes from row to row. All rows of the task are inside the matrix, and have a block for each block of a token.
#[inline(always)]
fn checked_stride<F: Format>(task: &MatmulTask) -> usize {
    let (stride, n_blocks) = (task.w.row_bytes(), task.acts.n_cols / BLOCK);
    assert!(task.rows.end <= task.w.n_rows && task.rows.end * stride <= task.w.data.len());
    assert!(n_blocks.is_multiple_of(F::BLOCKS) && n_blocks / F::BLOCKS * F::BYTES == stride);
    stride
}

/// Where the products of `ROWS` rows go: all but the first `skip` are stored.
#[derive(Clone, Copy)]
pub struct RowsOut {
    pub first: usize,
    pub skip: usize,
    pub out: Out,
}

impl RowsOut {
    /// `n` rows from `row` on. At the ragged end of a matrix the last rows are read together with some before them, which are not
    /// stored.
    #[inline(always)]
    fn of(task: &MatmulTask, row: usize, n: usize) -> RowsOut {
        let first = row.min(task.rows.end - n);
        RowsOut { first, skip: row - first, out: task.out }
    }
}

/// Where the blocks of some rows come from, some at a time.
pub trait Source<V>: Copy {
    /// How many blocks of 32 columns come at a time.
    const BLOCKS: usize;

    /// The `n`th `BLOCKS` of them, in `scratch` or elsewhere.
    ///
    /// # Safety
    /// They are readable, `scratch` holds eight blocks; the CPU features of the set.
    unsafe fn blocks(self, n: usize, scratch: *mut Block<V>) -> *const Block<V>;

    /// Called for each block of 32 columns.
    fn look_ahead(self, b: usize);
}

/// The file's layout, from a first row on, by the bytes between rows: blocks are put together in registers, or in the
/// scratch where they are many.
pub struct Native<S, F>(*const u8, usize, PhantomData<(S, F)>);
impl<S, F> Clone for Native<S, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, F> Copy for Native<S, F> {}
impl<S: Set, F: Format> Source<S::V> for Native<S, F> {
    const BLOCKS: usize = F::BLOCKS;

    #[inline(always)]
    unsafe fn blocks(self, n: usize, scratch: *mut Block<S::V>) -> *const Block<S::V> {
        // SAFETY: passed on.
        unsafe { F::load(self.0.add(n * F::BYTES), self.1, scratch) };
        scratch
    }

    #[inline(always)]
    fn look_ahead(self, b: usize) {
        prefetch::<F>(S::ROWS, self.0, self.1, b);
    }
}

/// Expanded rows.
#[derive(Clone, Copy)]
pub struct Expanded<S: Set>(*mut Block<S::V>);
impl<S: Set> Expanded<S> {
    /// # Safety
    /// `n` blocks of `ROWS` rows of the file at `p` are readable, `n * F::BLOCKS` blocks of the tile writable; the features
    /// of the set.
    #[inline(always)]
    pub unsafe fn expand<F: Format>(self, p: *const u8, stride: usize, n: usize) {
        for b in 0..n {
            for sub in 0..F::BLOCKS {
                prefetch::<F>(S::ROWS, p, stride, b * F::BLOCKS + sub);
            }
            // SAFETY: block `b` of both.
            unsafe { F::load(p.add(b * F::BYTES), stride, self.0.add(b * F::BLOCKS)) };
        }
    }
}
impl<S: Set> Source<S::V> for Expanded<S> {
    const BLOCKS: usize = 1;

    #[inline(always)]
    unsafe fn blocks(self, n: usize, _: *mut Block<S::V>) -> *const Block<S::V> {
        // SAFETY: inside the tile.
        unsafe { self.0.add(n) }
    }

    #[inline(always)]
    fn look_ahead(self, _: usize) {}
}

/// Asks for the bytes that are met some groups of `n_rows` rows later. Hardware sees as many slow streams as there are rows and
/// fetches too late: this makes decoding from memory two to four times as fast. What goes to the first cache at once waits in the
/// few places that it has for lines under way, which gives half of what memory can (docs/notebook/speed.md).
///
/// For each 32 columns that are multiplied, block `b` of them, as many bytes: a core has few loads under way at once, and a
/// burst of prefetches, such as for a superblock, would wait for them.
#[inline(always)]
pub fn prefetch<F: Format>(n_rows: usize, rows: *const u8, stride: usize, b: usize) {
    let (bytes, group) = (n_rows * F::BYTES / F::BLOCKS, n_rows * stride);
    let near = rows.wrapping_add(group + b * bytes);
    let far = rows.wrapping_add((AHEAD * group).min(AHEAD_BYTES.max(group)) + b * bytes);
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing, even where no memory is.
        unsafe {
            _mm_prefetch(far.wrapping_add(line).cast(), _MM_HINT_T1);
            _mm_prefetch(near.wrapping_add(line).cast(), _MM_HINT_T0);
        }
    }
}
