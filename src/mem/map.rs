//! A model file mapped read-only: its pages belong to the page cache, not to this process, and the kernel may drop and
//! re-read them at will. That is what lets weights larger than the free memory run at all.
//!
//! It refuses what cannot be mapped (missing, empty, a directory, a pipe) with one clear line, before any byte is read.
//!
//! Caveat of every map: when another process truncates the file while it is mapped, touching a page past the new end
//! raises SIGBUS and ends this process; when it rewrites the file in place, the weights change under us. Replace a model
//! by writing a new file and renaming it over the old one; the map then keeps the old bytes.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::SystemTime;

use memmap2::{Advice, Mmap};

use crate::{Error, Result};

/// A whole file, read-only. The first byte is page-aligned, so an offset in the file that is a multiple of 8 is one in memory.
#[derive(Debug)]
pub struct Map {
    mmap: Mmap,
    modified: Option<SystemTime>,
}

impl Map {
    /// Maps the file at `path`. Every failure is [`Error::Io`] with the path and what to do.
    pub fn open(path: &Path) -> Result<Map> {
        let fail = |source: io::Error| Error::io(path, explain(source));
        let refuse = |kind: ErrorKind, what: &str| Error::io(path, io::Error::new(kind, what));

        // Asked before opening: opening a pipe would wait for a writer that never comes.
        let meta = fs::metadata(path).map_err(fail)?;
        if meta.is_dir() {
            return Err(refuse(ErrorKind::IsADirectory, "this is a directory: name the .gguf file inside it"));
        }
        if !meta.is_file() {
            return Err(refuse(
                ErrorKind::InvalidInput,
                "not a regular file, so it cannot be memory-mapped: copy the model to a disk",
            ));
        }
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let file_bytes = meta.len();
        if file_bytes == 0 {
            return Err(refuse(ErrorKind::InvalidData, "the file is empty: the download failed; fetch it again"));
        }
        if isize::try_from(file_bytes).is_err() {
            let what = format!(
                "{file_bytes} bytes do not fit the address space of this machine: use a smaller model or a 64-bit system"
            );
            return Err(refuse(ErrorKind::FileTooLarge, &what));
        }
        // SAFETY: the map is read-only and private to this value, and `bytes` borrows from it, so no slice outlives it.
        // Another process that changes the file breaks the promise of `&[u8]`; the caveat above tells the user so, and
        // readers of the map re-check what they read instead of relying on what an earlier pass saw.
        let mmap = unsafe { Mmap::map(&file) }.map_err(fail)?;
        Ok(Map { mmap, modified: meta.modified().ok() })
    }

    /// The bytes of the file, as long as it was when it was opened; never empty.
    pub fn bytes(&self) -> &[u8] {
        &self.mmap
    }

    /// When the file was last modified, as of its opening.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
    }

    /// Asks the kernel to begin reading this part of the map into the page cache, all of it and no more. What lies in another map is
    /// passed over, and so is a refusal: the bytes are then read when they are touched.
    pub fn will_need(&self, part: &[u8]) {
        self.advise(Advice::WillNeed, part);
    }

    /// Tells the kernel not to read what lies around a page of this part that is touched.
    pub fn is_read_here_and_there(&self, part: &[u8]) {
        self.advise(Advice::Random, part);
    }

    fn advise(&self, advice: Advice, part: &[u8]) {
        let at = (part.as_ptr() as usize).wrapping_sub(self.mmap.as_ptr() as usize);
        if at < self.mmap.len() && part.len() <= self.mmap.len() - at {
            let _ = self.mmap.advise_range(advice, at, part.len());
        }
    }

    /// Keeps every page of the file in memory until the map is dropped. Fails where `ulimit -l` is lower than the file.
    pub fn lock(&self) -> io::Result<()> {
        self.mmap.lock()
    }
}

/// The system's word for a failure says what; this adds what to do.
fn explain(source: io::Error) -> io::Error {
    let what = match source.kind() {
        ErrorKind::NotFound => "no such file: check the path".to_owned(),
        ErrorKind::PermissionDenied => "this user may not read the file: change its permissions (chmod +r)".to_owned(),
        ErrorKind::NotADirectory => "a part of the path is a file, not a directory: check the path".to_owned(),
        ErrorKind::OutOfMemory => "no address space left to map the file: raise `ulimit -v` or use a smaller model".to_owned(),
        _ => format!("{source}: check that the disk is readable"),
    };
    io::Error::new(source.kind(), what)
}

#[cfg(test)]
#[path = "../../tests/unit/mem/map.rs"]
mod tests;
