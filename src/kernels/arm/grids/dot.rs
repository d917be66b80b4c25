//! With the dot product: `sdot` takes sixteen elements of a row at once.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lone::{At, Products, iq3_s_grid};
use super::text::*;
use crate::gguf::quant::grids;
use crate::kernels::arm::few::dot::Dot;

/// Text: adds the products of two rows with their activations to the sums `$sum`.
macro_rules! sdot {
    ($half:tt $sum:tt, $r:literal $s:literal) => {
        concat!(
            concat!("sdot {", stringify!($sum), $r, ":v}.4s, v16.16b, v20.16b\n"),
            concat!("sdot {", stringify!($sum), $s, ":v}.4s, v17.16b, v21.16b\n"),
        )
    };
}

/// Text: what four sums came to, which was `$before` the last time, into `$to` and `$new`.
macro_rules! since {
    ($sum:literal $before:literal $to:literal $new:literal) => {
        concat!(
            concat!("addp v18.4s, {", $sum, "0:v}.4s, {", $sum, "1:v}.4s\n"),
            concat!("addp v19.4s, {", $sum, "2:v}.4s, {", $sum, "3:v}.4s\n"),
            concat!("addp {", $to, ":v}.4s, v18.4s, v19.4s\n"),
            concat!("sub ", $new, ".4s, {", $to, ":v}.4s, {", $before, ":v}.4s\n"),
        )
    };
}

macro_rules! a_whole {
    ($name:ident, $grid:expr, $largest:literal, $indices:ident, $words:ident, $($place:tt)*) => {
        #[inline(always)]
        unsafe fn $name<const SUB: usize>(at: &mut At, ([r0, r1, r2, r3], _, before): &mut Self::Running) {
            // SAFETY: by the caller's promise.
            unsafe {
                product!(
                    at, $grid, whole!(sdot, since!("r" "b0" "t0" "v17"), $indices, $words), $($place)*,
                    r0 = inout(vreg) *r0, r1 = inout(vreg) *r1, r2 = inout(vreg) *r2, r3 = inout(vreg) *r3,
                    b0 = in(vreg) before[0], t0 = out(vreg) before[0],
                );
            }
        }
    };
}

macro_rules! of_halves {
    ($name:ident, $grid:expr, $largest:literal, $indices:ident, $words:ident, $($place:tt)*) => {
        #[inline(always)]
        unsafe fn $name<const SUB: usize>(at: &mut At, (first, last, before): &mut Self::Running) {
            let ([r0, r1, r2, r3], [u0, u1, u2, u3]) = (first, last);
            // SAFETY: by the caller's promise.
            unsafe {
                product!(
                    at, $grid, halves!(sdot, concat!(since!("r" "b0" "t0" "v16"), since!("u" "b1" "t1" "v17")), $indices, $words),
                    $($place)*,
                    r0 = inout(vreg) *r0, r1 = inout(vreg) *r1, r2 = inout(vreg) *r2, r3 = inout(vreg) *r3,
                    u0 = inout(vreg) *u0, u1 = inout(vreg) *u1, u2 = inout(vreg) *u2, u3 = inout(vreg) *u3,
                    b0 = in(vreg) before[0], t0 = out(vreg) before[0], b1 = in(vreg) before[1], t1 = out(vreg) before[1],
                    last_scales = in(vreg) at.scales[1],
                );
            }
        }
    };
}

impl Products for Dot {
    /// Four partial sums of each row over all columns so far, of the first and of the last sixteen of each 32, and what they came to. They
    /// are never set to zero: a difference of two totals is right even when these overflow.
    type Running = ([int32x4_t; 4], [int32x4_t; 4], [int32x4_t; 2]);

    #[inline(always)]
    fn start() -> Self::Running {
        // SAFETY: registers only.
        unsafe { ([vdupq_n_s32(0); 4], [vdupq_n_s32(0); 4], [vdupq_n_s32(0); 2]) }
    }

    types!(a_whole, of_halves);
}
