//! What the past asks of a disk, as a trait so small that tests can play a disk that is full, fails or
//! loses its power; and the file that there is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// A file of fixed size that is written piece by piece and read anywhere.
pub trait Disk: Send + Sync {
    /// All of `bytes`, from the byte `at` on.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `into` from the byte `at` on.
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// Returns when what was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// The file that there is.
#[derive(Debug)]
pub struct PastFile(File);

/// What a conversation says is nobody else's to read.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// `f_type` of a file system that lies in memory.
const TMPFS: u32 = 0x0102_1994;

impl PastFile {
    /// A file in the folder, which must be there. It has no name, and goes with the process, whatever ends that.
    pub fn scratch(folder: &Path) -> io::Result<PastFile> {
        let dir = open_folder(folder)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match fs::openat(&dir, ".", flags | OFlags::TMPFILE, MODE) {
            Ok(file) => return Ok(PastFile(file.into())),
            // File systems and kernels that know no files without a name.
            Err(Errno::NOTSUP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        let name = format!(".lowkey-past-{}", std::process::id());
        let file = fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, MODE)?;
        fs::unlinkat(&dir, &name, AtFlags::empty())?;
        Ok(PastFile(file.into()))
    }

    /// The file of this name in the folder, as it is or new; `WouldBlock` where another process has it. Nobody else opens it as long
    /// as this lives. It is `n_bytes` long at least: what nobody wrote reads as noughts.
    pub fn kept(folder: &Path, name: &str, n_bytes: u64) -> io::Result<PastFile> {
        let dir = open_folder(folder)?;
        // No link is followed, and what is no file is not waited for.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file: File = fs::openat(&dir, name, flags, MODE)?.into();
        if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // Where there are no locks nobody can be told.
        if fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if file.metadata()?.len() < n_bytes {
            file.set_len(n_bytes)?;
        }
        // A session that tells of the file must not be on the disk before its name is.
        match fs::fsync(&dir) {
            Ok(()) | Err(Errno::INVAL | Errno::NOTSUP) => Ok(PastFile(file)),
            Err(e) => Err(e.into()),
        }
    }

    /// Bytes that this user may still write on the disk of the file, and those that it takes already.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let (found, own) = (fs::fstatvfs(&self.0)?, fs::fstat(&self.0)?);
        Ok(found.f_bavail.saturating_mul(found.f_frsize).saturating_add(512 * own.st_blocks as u64))
    }

    /// Whether the disk of the file is memory.
    pub fn is_in_memory(&self) -> bool {
        fs::fstatfs(&self.0).is_ok_and(|found| found.f_type as u32 == TMPFS)
    }
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Disk for PastFile {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.0.read_exact_at(into, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
