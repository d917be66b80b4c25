//! What the integration tests share: a writer of small GGUF files, right or wrong on purpose.
//!
//! No assertions here; each test says itself what it expects.

pub mod gguf_writer;
