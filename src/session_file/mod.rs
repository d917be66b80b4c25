//! Streams on disk: a conversation is saved and goes on later, in this process or another, on this machine or another, with the same
//! bits as if it had never stopped.
//!
//! ```text
//! shelf        a folder of sessions within a number of bytes: save, restore, verify, remove
//! stream       what is saved of a stream: into a file and out of it
//! format       the file, byte by byte           transfer   through one buffer, summed up on the way
//! fingerprint  in which streams it may go on    name       what sessions and their files are called
//! disk         what is asked of a disk          folder     the disk that there is
//! ```
//!
//! A session is written under another name, synced, and renamed: whenever the power fails there is the old one or the new one.

pub mod disk;
pub mod error;
pub mod fingerprint;
pub mod folder;
pub mod format;
pub mod name;
pub mod shelf;
pub mod stream;
mod transfer;

pub use error::{Failure, Why};
pub use fingerprint::Fingerprint;
pub use folder::Folder;
pub use format::Head;
pub use name::Name;
pub use shelf::{Limits, Shelf};
pub use stream::{Restored, Resumed, Saved};
