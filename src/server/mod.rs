//! `lowkey serve`: one engine thread that owns weights and streams, one network thread, and a desk between them.
//!
//! ```text
//! desk   requests, what is generated for them, what streams are doing    scheduler   the engine thread: passes, streams
//! seat   a stream and the request that it works on                       http/       routes, requests, answers, limits
//! ```

pub mod desk;
pub mod http;
pub mod keeper;
pub mod notify;
mod said;
pub mod scheduler;
pub mod seat;
