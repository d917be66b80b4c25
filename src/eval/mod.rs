//! What a cache budget costs in quality.

pub mod needle;
pub mod passkey;
pub mod ppl;
pub mod retrieval;
