//! Memory and threads: what the rest of the crate stands on. With the kernels the only room that may be `unsafe`.
#![allow(unsafe_code)]

pub mod arena;
pub mod available;
pub mod confined;
pub mod map;
pub mod plan;
pub mod pool;
pub mod view;
pub mod warm;
