//! Two bits a weight and less, of one scale for 64 or 256 columns: Q2_0, TQ2_0 and TQ1_0. How they are read into the tile, and a lone
//! token's way of its own: four rows times all columns of a block of the file at once, in text (dot.rs, neon.rs).
//!
//! What the numbers mean and in which order they are added up is fixed in spec/weights.rs, layouts of bytes in gguf/quant.

pub mod dot;
mod lone;
pub mod neon;

use std::arch::aarch64::*;

use super::blocks::{Set, rest};
use super::formats::Range8;
use super::superblocks::{self, FourScales, SubScales, Type, a_type, f16, minus, one, twos};
use crate::kernels::{Acts, BLOCK, MatmulTask};
use lone::{At, FOUR, Lone, Token};

/// A type that is multiplied so.
pub trait Few: Type {
    /// Puts down what the products begin with; `At::start`.
    fn prepare<L: Lone>(acts: &Acts, scratch: &mut [i32]) -> *const i32;

    /// A block of the file, of four rows.
    ///
    /// # Safety
    /// As the function of `Lone` that it is.
    unsafe fn block<L: Lone>(at: &mut At);
}

/// As `superblocks::quantised`, a lone token by `L`.
///
/// # Safety
/// As `super::matmul`; the CPU features of `L`.
#[inline(always)]
pub unsafe fn quantised<F: Few, S: Set, L: Lone>(task: &mut MatmulTask) {
    // SAFETY: passed on.
    unsafe {
        match task.acts.n_tok {
            1 => one_token::<F, L>(task),
            _ => superblocks::quantised::<F, S>(task),
        }
    }
}

/// # Safety
/// As `quantised`.
#[inline(always)]
unsafe fn one_token<F: Few, L: Lone>(task: &mut MatmulTask) {
    let (acts, row_bytes, n_blocks) = (task.acts, task.w.row_bytes(), task.acts.n_cols / BLOCK);
    let whole = task.rows.end - task.rows.len() % FOUR;
    assert!(whole * row_bytes <= task.w.data.len() && row_bytes == n_blocks / F::BLOCKS * F::BYTES);
    assert!(acts.n_tok == 1 && acts.n_cols <= acts.q.len() && n_blocks <= acts.d.len().min(acts.sum.len()));
    // SAFETY: any bits are integers.
    let (before, scratch, _) = unsafe { task.tile.align_to_mut() };
    assert!(before.is_empty(), "scratch is aligned");
    let start = F::prepare::<L>(&acts, scratch);
    for row in (task.rows.start..whole).step_by(FOUR) {
        let p = task.w.data.as_ptr().wrapping_add(row * row_bytes);
        let rows = std::array::from_fn(|r| p.wrapping_add(r * row_bytes));
        let next = p.wrapping_add(FOUR * row_bytes);
        // SAFETY: four rows from `row` on are inside the matrix, the token has as many blocks (asserted above), for which `prepare` wrote;
        // their elements of `out` are the caller's.
        unsafe {
            let mut at = At { rows, token: acts.q.as_ptr(), start, d: acts.d.as_ptr(), next, acc: vdupq_n_f32(0.0) };
            for _ in 0..n_blocks / F::BLOCKS {
                F::block::<L>(&mut at);
            }
            vst1q_f32(task.out.at(0, row), at.acc);
        }
    }
    // SAFETY: passed on.
    unsafe { rest(task, whole) }
}

a_type!(
    /// `f16 d; u8 qs[16]`, two bits an element
    Q2_0, 18, 2, One, 2, |p| one(f16(p, 0), vdupq_n_f32(0.0)), |p, sub| {
        const BYTE: [[u8; 16]; 2] =
            [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], [4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7]];
        const DOWN: [i8; 16] = [0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6];
        let x = vcombine_u8(vld1_u8(p.add(2 + 8 * sub)), vdup_n_u8(0));
        let pairs = BYTE.map(|byte| vshlq_u8(vqtbl1q_u8(x, vld1q_u8(byte.as_ptr())), vld1q_s8(DOWN.as_ptr())));
        minus(pairs.map(|pair| vandq_u8(pair, vdupq_n_u8(3))), 1)
    }
);
impl Few for Q2_0 {
    #[inline(always)]
    fn prepare<L: Lone>(acts: &Acts, scratch: &mut [i32]) -> *const i32 {
        let start = &mut scratch[..acts.n_cols / (2 * BLOCK) * L::Q2_0];
        L::prepare_q2_0(Token { q: acts.q, d: acts.d, sum: acts.sum }, start);
        start.as_ptr()
    }

    #[inline(always)]
    unsafe fn block<L: Lone>(at: &mut At) {
        // SAFETY: passed on.
        unsafe { L::q2_0(at) }
    }
}

a_type!(
    /// `u8 qs[48]; u8 last[4]; f16 d`: five digits in base three in a byte, in `last` four.
    Tq1_0, 54, 8, One, 1, |p| one(f16(p, 52), vdupq_n_f32(0.0)), |p, sub| match sub {
        0..5 => [digits(vld1q_u8(p), sub), digits(vld1q_u8(p.add(16)), sub)],
        5 | 6 => {
            let fives = vld1q_u8(p.add(32));
            [digits(fives, 2 * sub - 10), digits(fives, 2 * sub - 9)]
        }
        _ => {
            const POWERS: [u8; 16] = [1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27];
            let last = vreinterpretq_u8_u32(vdupq_n_u32(p.add(48).cast::<u32>().read_unaligned()));
            [digits(vld1q_u8(p.add(32)), 4), first_digit(vmulq_u8(last, vld1q_u8(POWERS.as_ptr())))]
        }
    }
);
impl Few for Tq1_0 {
    #[inline(always)]
    fn prepare<L: Lone>(acts: &Acts, _scratch: &mut [i32]) -> *const i32 {
        acts.sum.as_ptr()
    }

    #[inline(always)]
    unsafe fn block<L: Lone>(at: &mut At) {
        // SAFETY: passed on.
        unsafe { L::tq1_0(at) }
    }
}

a_type!(
    /// `u8 qs[64]; f16 d`: bit pairs of 32 bytes for each four times 32 columns.
    Tq2_0, 66, 8, One, 2, |p| one(f16(p, 64), vdupq_n_f32(0.0)), |p, sub| minus(twos(p, sub, 0), 1)
);
impl Few for Tq2_0 {
    #[inline(always)]
    fn prepare<L: Lone>(acts: &Acts, scratch: &mut [i32]) -> *const i32 {
        let n_blocks = acts.n_cols / BLOCK;
        let start = &mut scratch[..n_blocks * L::TQ2_0];
        L::prepare_tq2_0(&acts.sum[..n_blocks], start);
        start.as_ptr()
    }

    #[inline(always)]
    unsafe fn block<L: Lone>(at: &mut At) {
        // SAFETY: passed on.
        unsafe { L::tq2_0(at) }
    }
}

/// Digit `n` in base three, less one, of bytes that are fractions of 256.
#[inline(always)]
fn digits(x: uint8x16_t, n: usize) -> int8x16_t {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    // SAFETY: registers only.
    first_digit(if n == 0 { x } else { unsafe { vmulq_u8(x, vdupq_n_u8(POWERS[n])) } })
}

/// The first one: 0 below a third of 256, 2 from two thirds on; less one.
#[inline(always)]
fn first_digit(x: uint8x16_t) -> int8x16_t {
    // SAFETY: registers only. Comparisons give -1.
    unsafe {
        let (is_two, is_none) = (vcgeq_u8(x, vdupq_n_u8(171)), vcltq_u8(x, vdupq_n_u8(86)));
        vreinterpretq_s8_u8(vsubq_u8(is_none, is_two))
    }
}
