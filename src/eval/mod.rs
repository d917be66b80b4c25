//! What a cache budget costs in quality.

pub mod ppl;
