//! The one error type of the crate, and the exit code that goes with each kind.
//!
//! Every message is one line that says what is wrong, where, and what to do about it. Mistakes of the user
//! (flags, files, budgets) are values of this type; mistakes of ours are `assert!`s.

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub enum Error {
    /// A flag whose value cannot be used: exit 2. `flag` is spelt as the user typed it, `--kv-budget`.
    Usage { flag: &'static str, what: String },
    /// The operating system refused something about a file.
    Io { path: PathBuf, source: std::io::Error },
    /// The bytes of a model file are not what the format promises.
    Gguf { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    /// The file is well-formed and asks for something this engine does not do.
    Unsupported { path: PathBuf, what: String },
    /// A size set by the user does not hold what was asked: exit 1. Names the flag and the size that would do.
    Budget { flag: &'static str, what: String },
    /// The stream cannot go on (an arena that may not evict is full, an empty prompt …).
    Stopped(String),
    /// The reader of our output went away: exit 0, silently.
    BrokenPipe,
}

impl Error {
    pub fn usage(flag: &'static str, what: impl Into<String>) -> Self {
        Error::Usage { flag, what: what.into() }
    }

    pub fn budget(flag: &'static str, what: impl Into<String>) -> Self {
        Error::Budget { flag, what: what.into() }
    }

    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    pub fn gguf(path: impl AsRef<Path>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Gguf { path: path.as_ref().to_owned(), source: Box::new(source) }
    }

    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// 0 done, 1 failure, 2 usage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::BrokenPipe => 0,
            Error::Usage { .. } => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage { flag, what } | Error::Budget { flag, what } => write!(f, "{flag}: {what}"),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Gguf { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Unsupported { path, what } => write!(f, "{}: {what}", path.display()),
            Error::Stopped(what) => f.write_str(what),
            Error::BrokenPipe => f.write_str("the reader of the output has gone"),
        }
    }
}

impl std::error::Error for Error {}
