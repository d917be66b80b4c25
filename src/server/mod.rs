//! `lowkey serve`: one engine thread that owns weights and streams, one network thread, and a desk between them.
//!
//! ```text
//! desk        requests, what is generated for them, what streams are doing       scheduler   the engine thread: passes, streams
//! seat, log   a stream, its request, and the tokens that it has taken in          http/       routes, requests, answers, limits
//! ```

pub mod desk;
mod log;
pub mod scheduler;
pub mod seat;
