//! Memory and threads: what the rest of the crate stands on. With `gguf::quant`'s byte casts and the SIMD kernels,
//! the only rooms that may be `unsafe`.
#![allow(unsafe_code)]

pub mod arena;
pub mod map;
pub mod plan;
pub mod pool;
