//! What a cache budget costs in quality.

pub mod correlation;
pub mod needle;
pub mod passkey;
#[cfg(feature = "plot")]
pub mod plot;
pub mod ppl;
pub mod retrieval;
pub mod ruler;
pub mod stream;
