//! The transformer: what a file must hold to be one (`arch`, `config`, `weights`), the same weights laid out for some CPUs in
//! a file beside it (`pack`), the room it computes in (`scratch`), and the pass itself (`forward`, in parts `mixers`).

pub mod arch;
pub mod config;
pub mod forward;
pub mod guard;
mod keys;
mod mixers;
pub mod pack;
pub mod rope;
pub mod scratch;
pub mod shortconv;
pub mod weights;
