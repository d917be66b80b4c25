//! How a key or a value lies in its row of the cache, and how it gets there.

pub mod codec;
pub mod hadamard;
mod shaping;
