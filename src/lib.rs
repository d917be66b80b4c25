//! lowkey: large language models on small ARM boards, in a memory that the owner sets and that never grows.
//!
//! One crate to use, of two others: `engine.rs` is compiled for speed, `program.rs` for size. Start reading at `model/forward.rs`;
//! `docs/design.md` draws the house.
#![deny(unsafe_code)]

pub use lowkey_engine::{Error, Result, error, gguf, kernels, kv, mem, model, session, text, units};
#[cfg(feature = "serve")]
pub use lowkey_program::server;
pub use lowkey_program::{cli, constraint, eval, sensors, session_file};
