//! `lowkey serve`: one engine thread that owns weights and streams, one network thread, and a desk between them.
//!
//! ```text
//! desk      requests, what is generated for them, what streams are doing      engine   which stream takes what, passes, prefixes
//! http/     routes, requests and answers of each API, limits                  page     the chat page
//! ```

pub mod desk;
pub mod http;
