//! What makes tokens out of weights: files, memory, kernels, the cache of keys and values, the forward pass, and text to and from
//! tokens. A package of its own, for it is compiled for speed and what is around it for size.
//!
//! The rooms, lowest first; a room imports only rooms above it in this list (a test checks it).
//! Start reading at `model/forward.rs`; `docs/design.md` draws the house.
#![deny(unsafe_code)]

pub mod error;
pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod mem;
pub mod model;
pub mod session;
pub mod text;
pub mod units;

pub use error::{Error, Result};
