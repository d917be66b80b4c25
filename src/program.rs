//! What brings the engine to people and programs: the command line, the server, sessions on disk, answers that obey, measuring. A
//! package of its own, for it is compiled for size and the engine for speed.
#![deny(unsafe_code)]

pub mod cli;
pub mod constraint;
pub mod eval;
pub mod sensors;
#[cfg(feature = "serve")]
pub mod server;
pub mod session_file;

// Its modules name those of the engine as their own.
pub use lowkey_engine::{Error, Result, error, gguf, kernels, kv, mem, model, session, text, units};
