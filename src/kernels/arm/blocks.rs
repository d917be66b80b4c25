//! The way of the ARM sets through a quantised matrix: eight rows at a time, one or two tokens straight from the file's layout,
//! more of them from a tile that the rows are expanded to.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::float::load;
use super::formats::{Format, Four, Layout, ROWS, Range8, Scales, four_raised};
use crate::kernels::{Acts, BLOCK, MatmulTask, Out, spec::weights};

/// Tokens that are multiplied with a tile at once.
pub const TOKENS: usize = 4;
/// Up to this many tokens are multiplied straight from the file's layout, one after the other.
pub const DIRECT: usize = 2;
/// Rows that are then taken at a time, to stay in a cache from one token to the next.
pub const CACHED_ROWS: usize = 64;
/// Bytes of an expanded block of eight rows: elements (four rows, then four rows), then eight f32 scales.
pub const TILE_BLOCK: usize = ROWS * (BLOCK + size_of::<f32>());

/// Eight expanded rows in the scratch of a thread: for each block of 32 columns `TILE_BLOCK` bytes, and behind all of them,
/// for types that have minimums or sub-scales, eight f32 or u32 a block, and eight more f32 (see superblocks.rs).
#[derive(Clone, Copy)]
pub struct Tile {
    /// Elements are sixteen times what they stand for.
    pub raised: bool,
    pub blocks: *mut u8,
    pub minimums: *mut f32,
    pub scales_of_minimums: *mut f32,
}

impl Tile {
    /// Checks that the scratch is large enough.
    pub fn new(task: &mut MatmulTask) -> Self {
        let n_blocks = task.acts.n_cols / BLOCK;
        assert!(n_blocks * (TILE_BLOCK + 2 * ROWS * size_of::<f32>()) <= task.tile.len());
        let blocks = task.tile.as_mut_ptr();
        let minimums = blocks.wrapping_add(n_blocks * TILE_BLOCK).cast::<f32>();
        Tile { raised: false, blocks, minimums, scales_of_minimums: minimums.wrapping_add(n_blocks * ROWS) }
    }

    /// Expands eight rows.
    ///
    /// # Safety
    /// The pointers are at the start of rows of `n_blocks` blocks, for which `Tile::new` checked the length; the CPU features of the set.
    #[inline(always)]
    unsafe fn expand<F: Format, S: Set>(self, mut p: [*const u8; ROWS], n_blocks: usize) -> Tile {
        let raised = S::RAISES && F::LAYOUT == Layout::Nibbles && F::OFFSET == 8;
        for b in 0..n_blocks {
            // SAFETY: block `b` of each row, and its place in the tile.
            unsafe {
                let to = self.blocks.add(b * TILE_BLOCK);
                let scales = F::scales(&mut p);
                vst1q_f32(to.add(ROWS * BLOCK).cast(), scales.d[0]);
                vst1q_f32(to.add(ROWS * BLOCK + 16).cast(), scales.d[1]);
                if F::HAS_MIN {
                    vst1q_f32(self.minimums.add(b * ROWS), scales.m[0]);
                    vst1q_f32(self.minimums.add(b * ROWS + 4), scales.m[1]);
                }
                for half in 0..2 {
                    let four = match (raised, F::OFFSET) {
                        (true, _) => four_raised(&mut p, half * 4),
                        (_, 0) => F::elements(&mut p, half * 4),
                        (_, offset) => F::elements(&mut p, half * 4).map(|row| row.map(|q| vsubq_s8(q, vdupq_n_s8(offset)))),
                    };
                    S::put(to.add(half * 4 * BLOCK), four);
                }
            }
        }
        Tile { raised, ..self }
    }
}

/// Where a product from the file's layout has got to.
pub struct Walk {
    pub rows: [*const u8; ROWS],
    pub token: *const i8,
}

/// What it has added up, in lanes of rows.
pub struct Sums<R> {
    pub acc: [float32x4_t; 2],
    pub acc_m: [float32x4_t; 2],
    pub running: R,
}

impl<R> Sums<R> {
    /// Adds a block of four rows, group `g`: `isum` is of its products with the block of the token in lane `LANE` of `x`.
    #[inline(always)]
    pub fn add<F: Format, const LANE: i32>(&mut self, g: usize, isum: int32x4_t, scales: &Scales, x: &TokenBlocks) {
        let isum = if F::OFFSET != 0 { mls_lane::<LANE>(isum, x.offset, x.sum) } else { isum };
        // SAFETY: registers only.
        unsafe {
            self.acc[g] = vfmaq_f32(self.acc[g], vmulq_laneq_f32::<LANE>(scales.d[g], x.d), vcvtq_f32_s32(isum));
            if F::HAS_MIN {
                self.acc_m[g] = vfmaq_laneq_f32::<LANE>(self.acc_m[g], scales.m[g], x.s);
            }
        }
    }
}

/// Scales, scaled sums and sums of up to four blocks of a token; constants that should stay in registers.
pub struct TokenBlocks {
    pub d: float32x4_t,
    pub s: float32x4_t,
    pub sum: int32x4_t,
    /// The type's `OFFSET` in each lane.
    pub offset: int32x4_t,
    /// 15 in each lane.
    pub low_nibble: uint8x16_t,
}

/// What a set brings along: integer products. All of it `inline(always)`, to take the features of the caller.
pub trait Set {
    /// Whether rows are fetched ahead.
    const PREFETCH: bool;
    /// Whether `batch` takes raised tiles.
    const RAISES: bool;
    /// What `dot` hands on from block to block of the same rows.
    type Running;

    /// # Safety
    /// The CPU features of the set.
    unsafe fn start() -> Self::Running;

    /// One block of eight rows from the file's layout times a block of one token, of which lane `LANE` of `x` tells the rest.
    ///
    /// # Safety
    /// Each pointer is at the start of a block and moves to the next; the CPU features of the set.
    unsafe fn step<F: Format, const LANE: i32>(at: &mut Walk, sums: &mut Sums<Self::Running>, x: &TokenBlocks);

    /// Stores the elements of four rows of a block in the tile.
    ///
    /// # Safety
    /// 128 writable bytes; the CPU features of the set.
    unsafe fn put(to: *mut u8, four: Four);

    /// Four rows of a block of a tile with `T` tokens: the sums of the first and of the last 16 products, in lanes of rows.
    ///
    /// # Safety
    /// 128 bytes of elements at `w`, a block at each `a`; the CPU features of the set.
    unsafe fn half_sums<F: Range8, const T: usize>(w: *const u8, a: [*const i8; T]) -> [[int32x4_t; 2]; T];

    /// Four rows of a block with one token, as they are read: the sums of the products, in lanes of rows.
    ///
    /// # Safety
    /// The CPU features of the set.
    unsafe fn four_sums<F: Range8>(running: &mut Self::Running, w: Four, a: [int8x16_t; 2]) -> int32x4_t;

    /// The same of the first and of the last 16 columns.
    ///
    /// # Safety
    /// The CPU features of the set.
    unsafe fn four_half_sums<F: Range8>(w: Four, a: [int8x16_t; 2]) -> [int32x4_t; 2];

    /// Eight rows times all tokens, from the tile.
    ///
    /// # Safety
    /// The tile holds all blocks of rows `row..row + 8`, whose elements of `out` belong to the caller; the CPU features of the set.
    unsafe fn batch<F: Range8>(tile: Tile, acts: &Acts, out: Out, row: usize);
}

/// Sets that read the tokens of a batch where they lie, four at a time.
pub trait ByFour: Set {
    /// Eight rows of a tile with `TOKENS` tokens: `acc = fma(d_w * d_a, Σ q_w q_a, acc)` over all blocks, in lanes of rows.
    ///
    /// # Safety
    /// The tile and each token have `n_blocks` blocks; the CPU features of the set.
    unsafe fn product<F: Range8>(
        tile: *const u8,
        a: [*const i8; TOKENS],
        d: [*const f32; TOKENS],
        n_blocks: usize,
    ) -> [[float32x4_t; 2]; TOKENS];
}

/// A quantised matrix: eight rows at a time, from the file's layout for few tokens, else from the tile.
///
/// # Safety
/// The task's elements of `out` belong to the caller; the CPU features of the set.
#[inline(always)]
pub unsafe fn quantised<F: Format, S: Set>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % ROWS;
    assert!(
        whole * row_bytes <= task.w.data.len() && row_bytes == n_blocks * F::BYTES && acts.n_tok * acts.n_cols <= acts.q.len()
    );
    let tile = Tile::new(task);
    if acts.n_tok <= DIRECT {
        let n_rows = if acts.n_tok == 1 { task.rows.len().max(1) } else { CACHED_ROWS };
        for first in (task.rows.start..whole).step_by(n_rows) {
            for t in 0..acts.n_tok {
                // SAFETY: rows up to `whole` are inside the matrix, the token inside the batch (asserted above); passed on.
                unsafe { matvec::<F, S>(task, first..whole.min(first + n_rows), t) };
            }
        }
        // SAFETY: passed on.
        return unsafe { rest(task, whole) };
    }
    for row in (task.rows.start..whole).step_by(ROWS) {
        let p = std::array::from_fn(|r| task.w.data.as_ptr().wrapping_add((row + r) * row_bytes));
        // SAFETY: rows `row..row + 8` are inside the matrix, their expansion inside the tile, the tokens inside the batch
        // (asserted above); the elements of `out` are the caller's.
        unsafe {
            let tile = tile.expand::<F, S>(p, n_blocks);
            S::batch::<F>(tile, &acts, task.out, row);
        }
    }
    // SAFETY: passed on.
    unsafe { rest(task, whole) }
}

/// # Safety
/// Eight f32 at `to` are writable.
#[inline(always)]
pub unsafe fn store(x: [float32x4_t; 2], to: *mut f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        vst1q_f32(to, x[0]);
        vst1q_f32(to.add(4), x[1]);
    }
}

/// `Set::batch` by four tokens. Where the batch has fewer, the last is multiplied again.
///
/// # Safety
/// As `Set::batch`.
#[inline(always)]
pub unsafe fn by_four<F: Range8, S: ByFour>(tile: Tile, acts: &Acts, out: Out, row: usize) {
    let n_blocks = acts.n_cols / BLOCK;
    for first in (0..acts.n_tok).step_by(TOKENS) {
        let at = |t: usize| (first + t).min(acts.n_tok - 1) * n_blocks;
        // SAFETY: pointers to tokens of the batch; the fields of `acts` have an element for each block.
        unsafe {
            let a = std::array::from_fn(|t| acts.q.as_ptr().add(at(t) * BLOCK));
            let d = std::array::from_fn(|t| acts.d.as_ptr().add(at(t)));
            let mut acc = S::product::<F>(tile.blocks, a, d, n_blocks);
            if F::HAS_MIN {
                let acc_m = minimums::<2, TOKENS>(tile.minimums, std::array::from_fn(|t| acts.s.as_ptr().add(at(t))), n_blocks);
                for t in 0..TOKENS {
                    acc[t] = [vaddq_f32(acc[t][0], acc_m[t][0]), vaddq_f32(acc[t][1], acc_m[t][1])];
                }
            }
            for t in 0..TOKENS.min(acts.n_tok - first) {
                store(acc[t], out.at(first + t, row));
            }
        }
    }
}

/// Some rows times token `t`, from the file's layout, eight rows at a time:
///
///     for each block b:
///         d, m  = f16 scales and minimums of eight rows, gathered
///         isum  = Σ q a - OFFSET Σ a
///         acc   = fma(d * d_a, isum, acc);  acc_m = fma(m, s_a, acc_m)
///
/// # Safety
/// The rows, a multiple of eight, are inside the matrix, the token inside the batch; as `quantised`.
#[inline(always)]
unsafe fn matvec<F: Format, S: Set>(task: &MatmulTask, rows: Range<usize>, t: usize) {
    let (acts, row_bytes, n_blocks) = (&task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let first = task.w.data.as_ptr().wrapping_add(rows.start * row_bytes);
    let at = t * n_blocks;
    let (token, d, s, sum) = (&acts.q[at * BLOCK..], &acts.d[at..], &acts.s[at..], &acts.sum[at..]);
    let (token, d, s, sum) = (token.as_ptr(), d.as_ptr(), s.as_ptr(), sum.as_ptr());
    // SAFETY: block `b`, or blocks `b..b + 2` or `b..b + 4`, are inside rows and token; prefetching touches nothing.
    unsafe {
        let (offset, low_nibble) = (vdupq_n_s32(i32::from(F::OFFSET)), vdupq_n_u8(15));
        let mut at = Walk { rows: std::array::from_fn(|r| first.wrapping_add(r * row_bytes)), token };
        let mut next_rows = first.wrapping_add(ROWS * row_bytes);
        let mut sums = Sums { acc: [vdupq_n_f32(0.0); 2], acc_m: [vdupq_n_f32(0.0); 2], running: S::start() };
        for row in rows.step_by(ROWS) {
            at.token = token;
            (sums.acc, sums.acc_m) = ([vdupq_n_f32(0.0); 2], [vdupq_n_f32(0.0); 2]);
            let mut b = 0;
            while b + 4 <= n_blocks {
                if S::PREFETCH {
                    next_rows = prefetch::<F>(next_rows);
                }
                let x = TokenBlocks {
                    d: vld1q_f32(d.add(b)),
                    s: vld1q_f32(s.add(b)),
                    sum: vld1q_s32(sum.add(b)),
                    offset,
                    low_nibble,
                };
                S::step::<F, 0>(&mut at, &mut sums, &x);
                S::step::<F, 1>(&mut at, &mut sums, &x);
                S::step::<F, 2>(&mut at, &mut sums, &x);
                S::step::<F, 3>(&mut at, &mut sums, &x);
                b += 4;
            }
            if n_blocks & 2 != 0 {
                let two = |p: *const f32| vcombine_f32(vld1_f32(p.add(b)), vdup_n_f32(0.0));
                let x = TokenBlocks { d: two(d), s: two(s), sum: vreinterpretq_s32_f32(two(sum.cast())), offset, low_nibble };
                S::step::<F, 0>(&mut at, &mut sums, &x);
                S::step::<F, 1>(&mut at, &mut sums, &x);
                b += 2;
            }
            if n_blocks & 1 != 0 {
                let x = TokenBlocks {
                    d: vld1q_dup_f32(d.add(b)),
                    s: vld1q_dup_f32(s.add(b)),
                    sum: vld1q_dup_s32(sum.add(b)),
                    offset,
                    low_nibble,
                };
                S::step::<F, 0>(&mut at, &mut sums, &x);
            }
            store([vaddq_f32(sums.acc[0], sums.acc_m[0]), vaddq_f32(sums.acc[1], sums.acc_m[1])], task.out.at(t, row));
            // Each row has come to the start of the one behind it.
            at.rows = at.rows.map(|p| p.wrapping_add((ROWS - 1) * row_bytes));
        }
    }
}

/// Fetches as many bytes as four steps consume, from where the next eight rows lie: read in eight places at once, they are no
/// stream that an in-order core's own prefetcher would recognise.
#[inline(always)]
fn prefetch<F: Format>(p: *const u8) -> *const u8 {
    const LINE: usize = 64;
    const { assert!(4 * ROWS * F::BYTES <= 18 * LINE) };
    macro_rules! lines {
        ($($i:literal)*) => { $(
            if $i * LINE < 4 * ROWS * F::BYTES {
                // SAFETY: a prefetch reads nothing and does not fault.
                unsafe { asm!("prfm pldl1strm, [{p}, {at}]", p = in(reg) p, at = const $i * LINE, options(readonly, nostack, preserves_flags)) };
            }
        )* };
    }
    lines!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17);
    p.wrapping_add(4 * ROWS * F::BYTES)
}

/// `acc[i] += Σ_j w[4i + j] * a[4 LANE + j]`
///
/// # Safety
/// The CPU has the dot product extension.
#[inline(always)]
pub unsafe fn sdot_lane<const LANE: usize>(mut acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the extension is there by the caller's promise.
    unsafe {
        asm!("sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]", acc = inlateout(vreg) acc, w = in(vreg) w, a = in(vreg) a, lane = const LANE, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

/// `x - y * z[LANE]`. The compiler would take the intrinsic apart, into more instructions.
#[inline(always)]
pub fn mls_lane<const LANE: i32>(mut x: int32x4_t, y: int32x4_t, z: int32x4_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        asm!("mls {x:v}.4s, {y:v}.4s, {z:v}.s[{lane}]", x = inlateout(vreg) x, y = in(vreg) y, z = in(vreg) z, lane = const LANE, options(pure, nomem, nostack, preserves_flags))
    };
    x
}

/// `Σ_b m[row][b] * s[token][b]` in order, for `G` times four rows and `T` tokens, in lanes of rows.
///
/// # Safety
/// Minimums of `n_blocks` blocks of eight rows, from the first of these rows on, and as many elements at each `s` are readable.
#[inline(always)]
pub unsafe fn minimums<const G: usize, const T: usize>(
    m: *const f32,
    s: [*const f32; T],
    n_blocks: usize,
) -> [[float32x4_t; G]; T] {
    // SAFETY: block `b`, or blocks `b..b + 4`, by the caller's promise.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); G]; T];
        let mut b = 0;
        while b + 4 <= n_blocks {
            let s4: [float32x4_t; T] = std::array::from_fn(|t| vld1q_f32(s[t].add(b)));
            macro_rules! step {
                ($i:literal) => {
                    let m = load::<G>(m.add((b + $i) * ROWS));
                    for t in 0..T {
                        for g in 0..G {
                            acc[t][g] = vfmaq_laneq_f32(acc[t][g], m[g], s4[t], $i);
                        }
                    }
                };
            }
            step!(0);
            step!(1);
            step!(2);
            step!(3);
            b += 4;
        }
        while b < n_blocks {
            let m = load::<G>(m.add(b * ROWS));
            for t in 0..T {
                for g in 0..G {
                    acc[t][g] = vfmaq_n_f32(acc[t][g], m[g], *s[t].add(b));
                }
            }
            b += 1;
        }
        acc
    }
}

/// The rows behind the last whole eight of a task, at most seven: the scalar set gives the same bits.
///
/// # Safety
/// The task's elements of `out` belong to the caller.
pub unsafe fn rest(task: &mut MatmulTask, first: usize) {
    if first < task.rows.end {
        let mut rest =
            MatmulTask { w: task.w, rows: first..task.rows.end, acts: task.acts, out: task.out, tile: &mut *task.tile };
        // SAFETY: the scalar set needs no feature; passed on.
        unsafe { weights::matmul(&mut rest) };
    }
}
