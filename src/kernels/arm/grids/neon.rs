//! Without the dot product: `smull`, `smlal` and `smlal2` take eight elements of a row at once, into 16 bits.

use std::arch::asm;

use super::lone::{At, Products, iq3_s_grid};
use super::text::*;
use crate::gguf::quant::grids;
use crate::kernels::arm::few::neon::Neon;

/// Text: adds the products of two rows with their activations to the sums `$sum`, or begins these.
macro_rules! long {
    (0 $sum:tt, $r:literal $s:literal) => { long!("smull" $sum, $r $s) };
    (1 u, $r:literal $s:literal) => { long!("smull" u, $r $s) };
    (1 r, $r:literal $s:literal) => { long!("smlal" r, $r $s) };
    ($op:literal $sum:tt, $r:literal $s:literal) => {
        concat!(
            concat!($op, " {", stringify!($sum), $r, ":v}.8h, v16.8b, v20.8b\n"),
            concat!($op, " {", stringify!($sum), $s, ":v}.8h, v17.8b, v21.8b\n"),
            concat!("smlal2 {", stringify!($sum), $r, ":v}.8h, v16.16b, v20.16b\n"),
            concat!("smlal2 {", stringify!($sum), $s, ":v}.8h, v17.16b, v21.16b\n"),
        )
    };
}

/// Text: neighbouring lanes of four rows added up twice, and widened: first the lanes where sums of sixteen products fit into 16 bits,
/// else in the end. Into `v17`.
macro_rules! total {
    (15) => {
        "addp v16.8h, {r0:v}.8h, {r1:v}.8h
        addp v17.8h, {r2:v}.8h, {r3:v}.8h
        addp v17.8h, v16.8h, v17.8h
        saddlp v17.4s, v17.8h\n"
    };
    ($largest:tt) => {
        "saddlp v16.4s, {r0:v}.8h
        saddlp v17.4s, {r1:v}.8h
        saddlp v18.4s, {r2:v}.8h
        saddlp v19.4s, {r3:v}.8h
        addp v16.4s, v16.4s, v17.4s
        addp v17.4s, v18.4s, v19.4s
        addp v17.4s, v16.4s, v17.4s\n"
    };
}

macro_rules! a_whole {
    ($name:ident, $grid:expr, $largest:tt, $indices:ident, $words:ident, $($place:tt)*) => {
        #[inline(always)]
        unsafe fn $name<const SUB: usize>(at: &mut At, _: &mut ()) {
            const { assert!(fits(4 * $largest) && ($largest != 15 || fits(16 * $largest))) };
            // SAFETY: by the caller's promise.
            unsafe {
                product!(
                    at, $grid, whole!(long, total!($largest), $indices, $words), $($place)*,
                    r0 = out(vreg) _, r1 = out(vreg) _, r2 = out(vreg) _, r3 = out(vreg) _,
                );
            }
        }
    };
}

macro_rules! of_halves {
    ($name:ident, $grid:expr, $largest:tt, $indices:ident, $words:ident, $($place:tt)*) => {
        #[inline(always)]
        unsafe fn $name<const SUB: usize>(at: &mut At, _: &mut ()) {
            const { assert!(fits(4 * $largest)) };
            // SAFETY: by the caller's promise.
            unsafe {
                product!(
                    at, $grid, halves!(long, half_totals!(), $indices, $words), $($place)*,
                    r0 = out(vreg) _, r1 = out(vreg) _, r2 = out(vreg) _, r3 = out(vreg) _,
                    u0 = out(vreg) _, u1 = out(vreg) _, u2 = out(vreg) _, u3 = out(vreg) _,
                    last_scales = in(vreg) at.scales[1],
                );
            }
        }
    };
}

/// Text: of both halves, two products in a lane, of which two lanes fit into one. Into `v16` and `v17`.
macro_rules! half_totals {
    () => {
        "addp v16.8h, {r0:v}.8h, {r1:v}.8h
        addp v18.8h, {r2:v}.8h, {r3:v}.8h
        addp v17.8h, {u0:v}.8h, {u1:v}.8h
        addp v19.8h, {u2:v}.8h, {u3:v}.8h
        saddlp v16.4s, v16.8h
        saddlp v18.4s, v18.8h
        saddlp v17.4s, v17.8h
        saddlp v19.4s, v19.8h
        addp v16.4s, v16.4s, v18.4s
        addp v17.4s, v17.4s, v19.4s\n"
    };
}

/// Whether a sum of products of activations with elements that come to so much fits into 16 bits.
const fn fits(elements: i32) -> bool {
    elements * 127 <= i16::MAX as i32
}

impl Products for Neon {
    type Running = ();

    #[inline(always)]
    fn start() {}

    types!(a_whole, of_halves);
}
