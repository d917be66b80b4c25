//! How a key or a value lies in its row of the cache (codec), and what is done to it on the way there: the Hadamard turn, and
//! rounding that puts errors where queries do not look (shaping).

pub mod codec;
pub mod hadamard;
mod shaping;
