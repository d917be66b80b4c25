//! The sets for 64-bit ARM.

mod attend;
mod blocks;
mod dense;
pub mod dotprod;
pub mod float;
mod formats;
pub mod i8mm;
pub mod neon;
mod packed;
pub mod quads;
pub mod wide;
