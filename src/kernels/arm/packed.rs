//! Packed matrices (spec/packed.rs) on ARM with the dot product extension.
//!
//! Eight rows lie interleaved, so that `sdot` by lane, which multiplies each group of four bytes of one vector with the
//! same four bytes of another, adds four columns to a sum of each of four rows, and no sum is added up sideways. One or two
//! tokens are multiplied from the packed bytes; for more, eight rows are expanded to the tile of blocks.rs, to which
//! they are already in order. The results are those of spec/weights.rs, bit for bit.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::blocks::{CACHED_ROWS, DIRECT, TILE_BLOCK, Tile, store};
use super::formats::{Format, Layout, Q4_0, Q4_1, Q8_0, ROWS, widen_f16};
use super::quads;
use crate::gguf::quant::GgmlType;
use crate::kernels::{BLOCK, MatmulTask};

/// Up to four blocks of a token: scales, scaled sums, and what the sum of products starts from (minus the offset of the
/// weights times the sum of the token).
struct TokenBlocks {
    d: float32x4_t,
    s: float32x4_t,
    start: int32x4_t,
    /// 15 in each lane.
    low_nibble: uint8x16_t,
}

/// Of eight rows, in lanes.
struct Sums {
    acc: [float32x4_t; 2],
    acc_m: [float32x4_t; 2],
}

trait Packed: Format {
    /// Block `LANE` of eight rows times a block of a token:
    ///
    ///     isum = start + Σ_k sdot(four columns of each row, columns 4k..4k+4 of the token)
    ///     acc  = fma(d * d_a, isum, acc);  acc_m = fma(m, s_a, acc_m)
    ///
    /// # Safety
    /// Blocks `0..=LANE` are readable: those of the rows from `BASE` bytes before `base` on, those of the token at `token`;
    /// the CPU has the dot product extension.
    unsafe fn step<const LANE: usize>(base: *const u8, token: *const i8, x: &TokenBlocks, sums: &mut Sums);
}

/// Loads of one vector reach from -256 bytes on, loads of two up to 1008: from here both reach all of four blocks.
const BASE: usize = 64;

/// Of a block of eight rows.
const fn block_bytes<F: Format>() -> usize {
    ROWS * F::BYTES
}

/// # Safety
/// The CPU has the dot product extension; the task's elements of `out` belong to the caller; its matrix is packed.
#[inline(always)]
pub unsafe fn matmul(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.w.ty {
            GgmlType::Q4_0 => product::<Q4_0>(task),
            GgmlType::Q4_1 => product::<Q4_1>(task),
            GgmlType::Q8_0 => product::<Q8_0>(task),
            ty => unreachable!("{ty:?} is not packed"),
        }
    }
}

/// # Safety
/// As `matmul`.
#[inline(always)]
unsafe fn product<F: Packed>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let rows = task.rows.clone();
    assert!(rows.start % ROWS == 0 && rows.end % ROWS == 0 && rows.end * row_bytes <= task.w.data.len());
    assert!(row_bytes == n_blocks * F::BYTES && acts.n_tok * acts.n_cols <= acts.q.len());
    if acts.n_tok <= DIRECT {
        let n_rows = if acts.n_tok == 1 { rows.len().max(1) } else { CACHED_ROWS };
        for first in rows.clone().step_by(n_rows) {
            for t in 0..acts.n_tok {
                // SAFETY: the rows are inside the matrix, the token inside the batch (asserted above); passed on.
                unsafe { matvec::<F>(task, first..rows.end.min(first + n_rows), t) };
            }
        }
        return;
    }
    let tile = Tile::new(task);
    for row in rows.step_by(ROWS) {
        // SAFETY: rows `row..row + 8` are inside the matrix, their expansion inside the tile, the tokens inside the batch
        // (asserted above); the elements of `out` are the caller's.
        unsafe {
            expand::<F>(task.w.data.as_ptr().add(row * row_bytes), tile, n_blocks);
            quads::batch::<F>(tile, &acts, task.out, row);
        }
    }
}

/// Some rows times token `t`.
///
/// # Safety
/// The rows, a multiple of eight, are inside the matrix, the token inside the batch; as `matmul`.
#[inline(always)]
unsafe fn matvec<F: Packed>(task: &MatmulTask, rows: Range<usize>, t: usize) {
    let (acts, n_blocks) = (&task.acts, task.acts.n_cols / BLOCK);
    let mut at = task.w.data.as_ptr().wrapping_add(rows.start * task.w.row_bytes());
    let first = t * n_blocks;
    let (q, d, s, sum) = (&acts.q[first * BLOCK..], &acts.d[first..], &acts.s[first..], &acts.sum[first..]);
    let (q, d, s, sum) = (q.as_ptr(), d.as_ptr(), s.as_ptr(), sum.as_ptr());
    // SAFETY: block `b`, or blocks `b..b + 2` or `b..b + 4`, are inside rows and token.
    unsafe {
        let (minus_offset, low_nibble) = (-i32::from(F::OFFSET), vdupq_n_u8(15));
        let blocks = |d, s, sum| TokenBlocks { d, s, start: vmulq_n_s32(sum, minus_offset), low_nibble };
        for row in rows.step_by(ROWS) {
            let mut sums = Sums { acc: [vdupq_n_f32(0.0); 2], acc_m: [vdupq_n_f32(0.0); 2] };
            let mut b = 0;
            while b + 4 <= n_blocks {
                let x = blocks(vld1q_f32(d.add(b)), vld1q_f32(s.add(b)), vld1q_s32(sum.add(b)));
                let (base, token) = (at.wrapping_add(BASE), q.add(b * BLOCK));
                F::step::<0>(base, token, &x, &mut sums);
                F::step::<1>(base, token, &x, &mut sums);
                F::step::<2>(base, token, &x, &mut sums);
                F::step::<3>(base, token, &x, &mut sums);
                at = at.wrapping_add(4 * block_bytes::<F>());
                b += 4;
            }
            if n_blocks & 2 != 0 {
                let two = |p: *const f32| vcombine_f32(vld1_f32(p.add(b)), vdup_n_f32(0.0));
                let x = blocks(two(d), two(s), vreinterpretq_s32_f32(two(sum.cast())));
                let (base, token) = (at.wrapping_add(BASE), q.add(b * BLOCK));
                F::step::<0>(base, token, &x, &mut sums);
                F::step::<1>(base, token, &x, &mut sums);
                at = at.wrapping_add(2 * block_bytes::<F>());
                b += 2;
            }
            if n_blocks & 1 != 0 {
                let x = blocks(vld1q_dup_f32(d.add(b)), vld1q_dup_f32(s.add(b)), vld1q_dup_s32(sum.add(b)));
                F::step::<0>(at.wrapping_add(BASE), q.add(b * BLOCK), &x, &mut sums);
                at = at.wrapping_add(block_bytes::<F>());
            }
            store([vaddq_f32(sums.acc[0], sums.acc_m[0]), vaddq_f32(sums.acc[1], sums.acc_m[1])], task.out.at(t, row));
        }
    }
}

/// Eight rows into the tile.
///
/// # Safety
/// `n_blocks` blocks of eight rows are readable at `p`; the tile is as long.
#[inline(always)]
unsafe fn expand<F: Packed>(mut p: *const u8, tile: Tile, n_blocks: usize) {
    for b in 0..n_blocks {
        // SAFETY: block `b` of the rows, and its place in the tile.
        unsafe {
            let to = tile.blocks.add(b * TILE_BLOCK);
            let next_eight = |p: &mut *const u8| {
                let eight = widen_f16(vreinterpretq_u16_u8(vld1q_u8(*p)));
                *p = p.add(16);
                eight
            };
            store(next_eight(&mut p), to.add(ROWS * BLOCK).cast());
            if F::HAS_MIN {
                store(next_eight(&mut p), tile.minimums.add(b * ROWS));
            }
            for half in 0..2 {
                let to = to.add(half * 4 * BLOCK);
                for k in 0..4 {
                    let [first, last] = match F::LAYOUT {
                        Layout::Nibbles => {
                            let x = vld1q_u8(p.add(16 * k));
                            [vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8(x, 4)].map(|q| vsubq_u8(q, vdupq_n_u8(F::OFFSET as u8)))
                        }
                        _ => [vld1q_u8(p.add(16 * k)), vld1q_u8(p.add(64 + 16 * k))],
                    };
                    vst1q_u8(to.add(16 * k), first);
                    vst1q_u8(to.add(64 + 16 * k), last);
                }
                p = p.add(if matches!(F::LAYOUT, Layout::Nibbles) { 64 } else { 128 });
            }
        }
    }
}

/// Text of `step`: eight columns of eight rows, lane `k` of the token in `a` times a vector of four columns of rows 0 to 4 and one of
/// rows 4 to 8.
macro_rules! sdot_four {
    ($a:literal, $($k:literal $low:literal $high:literal),*) => {
        concat!($(
            "sdot {i0:v}.4s, {", $low, ":v}.16b, {", $a, ":v}.4b[", $k, "]\n",
            "sdot {i1:v}.4s, {", $high, ":v}.16b, {", $a, ":v}.4b[", $k, "]\n",
        )*)
    };
}

/// Text of `step`: nibbles in `w0` to `w7`, the first four of rows 0 to 4: first the low ones, then the high ones.
macro_rules! sdot_nibbles {
    () => { sdot_nibbles!(0, 4, 1, 5, 2, 6, 3, 7) };
    ($($w:literal),*) => {
        concat!(
            $("and {l", $w, ":v}.16b, {w", $w, ":v}.16b, {low:v}.16b\n",)*
            sdot_four!("a0", 0 "l0" "l4", 1 "l1" "l5", 2 "l2" "l6", 3 "l3" "l7"),
            $("ushr {w", $w, ":v}.16b, {w", $w, ":v}.16b, #4\n",)*
            sdot_four!("a1", 0 "w0" "w4", 1 "w1" "w5", 2 "w2" "w6", 3 "w3" "w7")
        )
    };
}

/// Text of `step`: `acc = fma(d_w * d_a, isum, acc)`, the f16 scales in `s`.
macro_rules! scale {
    () => {
        "fcvtl {l0:v}.4s, {s:v}.4h
        fcvtl2 {l1:v}.4s, {s:v}.8h
        fmul {l0:v}.4s, {l0:v}.4s, {d:v}.s[{lane}]
        fmul {l1:v}.4s, {l1:v}.4s, {d:v}.s[{lane}]
        scvtf {i0:v}.4s, {i0:v}.4s
        scvtf {i1:v}.4s, {i1:v}.4s
        fmla {f0:v}.4s, {i0:v}.4s, {l0:v}.4s
        fmla {f1:v}.4s, {i1:v}.4s, {l1:v}.4s"
    };
}

/// One block of eight rows. The text is written out so that each load is one instruction with its offset in it, and `sdot`
/// takes its lane. Sums of rows 0 to 4 and 4 to 8 take turns, since each `sdot` waits for the last one into its sum.
macro_rules! step {
    ($F:ty, $base:ident, $token:ident, $x:ident, $sums:ident, [$($text:expr),*], $($operands:tt)*) => {
        asm!(
            "ldp {a0:q}, {a1:q}, [{token}, {column}]",
            $($text,)*
            scale!(),
            base = in(reg) $base, token = in(reg) $token, lane = const LANE, column = const LANE * BLOCK,
            at = const (LANE * block_bytes::<$F>()) as isize - BASE as isize,
            a0 = out(vreg) _, a1 = out(vreg) _, s = out(vreg) _, i0 = out(vreg) _, i1 = out(vreg) _,
            w0 = out(vreg) _, w1 = out(vreg) _, w2 = out(vreg) _, w3 = out(vreg) _,
            w4 = out(vreg) _, w5 = out(vreg) _, w6 = out(vreg) _, w7 = out(vreg) _,
            l0 = out(vreg) _, l1 = out(vreg) _, d = in(vreg) $x.d,
            f0 = inout(vreg) $sums.acc[0], f1 = inout(vreg) $sums.acc[1], $($operands)*
            options(readonly, nostack, preserves_flags),
        )
    };
}

/// Declares `step` of a type: the text behind the load of the token, and its operands besides those that all have.
macro_rules! a_step {
    ($name:ident, |$x:ident, $sums:ident| [$($text:expr),* $(,)?], $($operands:tt)*) => {
        impl Packed for $name {
            #[inline(always)]
            unsafe fn step<const LANE: usize>(base: *const u8, token: *const i8, $x: &TokenBlocks, $sums: &mut Sums) {
                // SAFETY: by the caller's promise.
                unsafe { step!($name, base, token, $x, $sums, [$($text),*], $($operands)*) }
            }
        }
    };
}

a_step!(
    Q4_0, |x, sums| [
        "ldp {s:q}, {w0:q}, [{base}, {at}]",
        "ldp {w1:q}, {w2:q}, [{base}, {at} + 32]",
        "ldp {w3:q}, {w4:q}, [{base}, {at} + 64]",
        "ldp {w5:q}, {w6:q}, [{base}, {at} + 96]",
        "ldr {w7:q}, [{base}, {at} + 128]",
        "dup {i0:v}.4s, {start:v}.s[{lane}]",
        "dup {i1:v}.4s, {start:v}.s[{lane}]",
        sdot_nibbles!()
    ], start = in(vreg) x.start, low = in(vreg) x.low_nibble,
    l2 = out(vreg) _, l3 = out(vreg) _, l4 = out(vreg) _, l5 = out(vreg) _, l6 = out(vreg) _, l7 = out(vreg) _,
);
a_step!(
    Q4_1, |x, sums| [
        "ldp {s:q}, {m:q}, [{base}, {at}]",
        "ldp {w0:q}, {w1:q}, [{base}, {at} + 32]",
        "ldp {w2:q}, {w3:q}, [{base}, {at} + 64]",
        "ldp {w4:q}, {w5:q}, [{base}, {at} + 96]",
        "ldp {w6:q}, {w7:q}, [{base}, {at} + 128]",
        "movi {i0:v}.4s, #0",
        "movi {i1:v}.4s, #0",
        sdot_nibbles!(),
        "fcvtl {l2:v}.4s, {m:v}.4h",
        "fcvtl2 {l3:v}.4s, {m:v}.8h",
        "fmla {m0:v}.4s, {l2:v}.4s, {sa:v}.s[{lane}]",
        "fmla {m1:v}.4s, {l3:v}.4s, {sa:v}.s[{lane}]"
    ], sa = in(vreg) x.s, low = in(vreg) x.low_nibble, m = out(vreg) _,
    m0 = inout(vreg) sums.acc_m[0], m1 = inout(vreg) sums.acc_m[1],
    l2 = out(vreg) _, l3 = out(vreg) _, l4 = out(vreg) _, l5 = out(vreg) _, l6 = out(vreg) _, l7 = out(vreg) _,
);
a_step!(Q8_0, |x, sums| [
    "ldr {s:q}, [{base}, {at}]",
    "ldp {w0:q}, {w1:q}, [{base}, {at} + 16]",
    "ldp {w4:q}, {w5:q}, [{base}, {at} + 144]",
    "ldp {w2:q}, {w3:q}, [{base}, {at} + 48]",
    "ldp {w6:q}, {w7:q}, [{base}, {at} + 176]",
    "movi {i0:v}.4s, #0",
    "movi {i1:v}.4s, #0",
    sdot_four!("a0", 0 "w0" "w4", 1 "w1" "w5", 2 "w2" "w6", 3 "w3" "w7"),
    "ldp {w0:q}, {w1:q}, [{base}, {at} + 80]",
    "ldp {w4:q}, {w5:q}, [{base}, {at} + 208]",
    "ldp {w2:q}, {w3:q}, [{base}, {at} + 112]",
    "ldp {w6:q}, {w7:q}, [{base}, {at} + 240]",
    sdot_four!("a1", 0 "w0" "w4", 1 "w1" "w5", 2 "w2" "w6", 3 "w3" "w7")
],);
