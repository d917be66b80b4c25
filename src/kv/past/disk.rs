//! What the past asks of a disk, as a trait so small that tests can play a disk that is full or
//! fails; and the file that there is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// A file of fixed size that is written piece by piece and read anywhere.
pub trait Disk: Send + Sync {
    /// All of `bytes`, from the byte `at` on.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `into` from the byte `at` on.
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()>;
}

/// A file without a name: it goes with the process, whatever ends that.
#[derive(Debug)]
pub struct ScratchFile(File);

/// What a conversation says is nobody else's to read.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// `f_type` of a file system that lies in memory.
const TMPFS: u32 = 0x0102_1994;

impl ScratchFile {
    /// A file in the folder, which must be there.
    pub fn create(folder: &Path) -> io::Result<ScratchFile> {
        let dir = fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match fs::openat(&dir, ".", flags | OFlags::TMPFILE, MODE) {
            Ok(file) => return Ok(ScratchFile(file.into())),
            // File systems and kernels that know no files without a name.
            Err(Errno::NOTSUP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        let name = format!(".lowkey-past-{}", std::process::id());
        let file = fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, MODE)?;
        fs::unlinkat(&dir, &name, AtFlags::empty())?;
        Ok(ScratchFile(file.into()))
    }

    /// Bytes that this user may still write on the disk of the file.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let found = fs::fstatvfs(&self.0)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Whether the disk of the file is memory.
    pub fn is_in_memory(&self) -> bool {
        fs::fstatfs(&self.0).is_ok_and(|found| found.f_type as u32 == TMPFS)
    }
}

impl Disk for ScratchFile {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }
}
