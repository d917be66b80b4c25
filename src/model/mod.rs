//! The transformer: what a file must hold to be one (`arch`, `config`, `weights`), the room it computes in (`scratch`), and the
//! pass itself (`forward`).

pub mod arch;
pub mod config;
pub mod forward;
pub mod rope;
pub mod scratch;
pub mod weights;
