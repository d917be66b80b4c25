//! lowkey: large language models on small ARM boards, in a memory that the owner sets and that never grows.
//!
//! The rooms, lowest first; a room imports only rooms above it in this list (a test checks it).
//! Start reading at `model/forward.rs`; `docs/design.md` draws the house.
#![deny(unsafe_code)]

pub mod cli;
pub mod constraint;
pub mod error;
pub mod eval;
pub mod gguf;
pub mod kernels;
pub mod kv;
pub mod mem;
pub mod model;
pub mod sensors;
#[cfg(feature = "serve")]
pub mod server;
pub mod session;
pub mod session_file;
pub mod text;
pub mod units;

pub use error::{Error, Result};
