//! Why a session was not saved or not restored, and whether the stream is still what it was.

use std::fmt;
use std::io;

use super::name::Name;
use crate::error::{Error, Message, Setting, message};
use crate::units::Bytes;

#[derive(Debug)]
pub enum Why {
    /// There is no such session.
    Missing,
    /// The file is none of a session, or of another version of the format.
    Foreign,
    Version(u32),
    /// It cannot go on in this stream: it is of another model, template, settings.
    Other(Message),
    /// Bytes of it are not what was written.
    Damaged(&'static str),
    /// Its sums are right and its numbers cannot be.
    Unsound(&'static str),
    /// It has a longer text than there is room for.
    NoRoom {
        text_bytes: u64,
        room: u64,
    },
    /// Sessions may not take as much space.
    TooLarge {
        bytes: u64,
        left_bytes: u64,
        space_bytes: u64,
    },
    /// The disk has so little left that nothing is written to it.
    DiskFull {
        free_bytes: u64,
        total_bytes: u64,
    },
    /// Another process is saving under this name.
    Busy,
    Disk(io::Error),
    /// The file of its past.
    Past(io::Error),
}

/// What was done with which session, and why it failed.
#[derive(Debug)]
pub struct Failure {
    pub name: Name,
    pub why: Why,
    /// Whether the stream had been touched. Then it has been cleared.
    pub was_cleared: bool,
}

impl Failure {
    pub fn message(&self) -> Message {
        let name = self.name.as_str();
        let cleared = if self.was_cleared { "; the stream has been cleared" } else { "" };
        message![format!("session '{name}': "), self.why.message(), cleared]
    }
}

impl Why {
    /// What a file of a past came to.
    pub fn of_past(e: io::Error) -> Why {
        if e.kind() == io::ErrorKind::WouldBlock { Why::Busy } else { Why::Past(e) }
    }

    pub fn message(&self) -> Message {
        match self {
            Why::Missing => "there is none of this name; give the name of one that is there".into(),
            Why::Foreign => "the file is none of a session; remove it or give another name".into(),
            Why::Version(version) => format!(
                "the file is of version {version} of the format, which this program does not read; remove it or give another name"
            )
            .into(),
            Why::Other(what) => message![what.clone(), "; go on in such a stream, or give another name"],
            Why::Damaged(what) => format!("the file is damaged: {what}; remove it").into(),
            Why::Unsound(what) => format!("the file was not written by a stream like this one: it has {what}; remove it").into(),
            Why::NoRoom { text_bytes, room } => {
                format!("it has {text_bytes} bytes of text, and there is room for {room}; give another name").into()
            }
            Why::TooLarge { bytes, left_bytes, space_bytes } => message![
                format!(
                    "it takes {}, and of {} for sessions {} are left: raise ",
                    Bytes(*bytes),
                    Bytes(*space_bytes),
                    Bytes(*left_bytes)
                ),
                Setting::SessionSpace,
                ", or remove some",
            ],
            Why::DiskFull { free_bytes, total_bytes } => format!(
                "the disk has {} of {} left, and a tenth is left free: make room on it",
                Bytes(*free_bytes),
                Bytes(*total_bytes)
            )
            .into(),
            Why::Busy => "another process is at the file of this name; give another name or wait".into(),
            Why::Past(e) if e.kind() == io::ErrorKind::NotFound => {
                "the file of its past is not beside it: bring it back, or put an empty file of its name there to go on without it"
                    .into()
            }
            Why::Past(e) => format!("the file of its past: {e}; look after its disk and the folder that has it").into(),
            Why::Disk(e) => message![format!("{e}; look after the disk, or the folder that "), Setting::Sessions, " names"],
        }
    }
}

impl From<io::Error> for Why {
    fn from(e: io::Error) -> Why {
        match e.kind() {
            io::ErrorKind::NotFound => Why::Missing,
            io::ErrorKind::WouldBlock => Why::Busy,
            _ => Why::Disk(e),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        Error::stopped(failure.message())
    }
}
