//! What sessions ask of a disk, as a trait: so few operations that a disk whose power fails between any two of them, or that is
//! full, can be played in tests (tests/power_cuts.rs). All of them are in one folder.

use std::io;

/// Room on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// What this user may still write.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A file of the folder.
pub struct Found<'a> {
    pub name: &'a str,
    /// Nanoseconds since 1970 of its last change, 0 where the system does not know.
    pub changed_ns: u64,
}

pub trait Disk {
    /// A file that is being written; nobody else writes it as long as this lives.
    type Writer;
    type Reader;

    /// A new and empty file, in place of what a dead writer left; `WouldBlock` where a living one is at it.
    fn create(&self, name: &str) -> io::Result<Self::Writer>;
    /// All of `bytes`, behind what was written.
    fn write(&self, file: &mut Self::Writer, bytes: &[u8]) -> io::Result<()>;
    /// Returns when what was written is on the disk.
    fn sync(&self, file: &mut Self::Writer) -> io::Result<()>;
    /// `to` is from now on the file that was `from`, at once and in place of what it was.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Returns when the names of the folder are on the disk.
    fn sync_folder(&self) -> io::Result<()>;

    /// The file and how long it is.
    fn open(&self, name: &str) -> io::Result<(Self::Reader, u64)>;
    /// Some of what follows; 0 at the end.
    fn read(&self, file: &mut Self::Reader, into: &mut [u8]) -> io::Result<usize>;

    fn remove(&self, name: &str) -> io::Result<()>;
    /// Removes a file that a dead writer left; false where a living one is at it.
    fn remove_abandoned(&self, name: &str) -> io::Result<bool>;
    /// Changes the time of the file's last change to the present.
    fn touch(&self, name: &str) -> io::Result<()>;
    /// Every regular file of the folder.
    fn list(&self, each: &mut dyn FnMut(Found<'_>)) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
    /// Called between the pieces of what is written or read.
    fn alive(&self) {}
}
