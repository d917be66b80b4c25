//! What the past asks of a disk, and sessions of the folder with their pasts, as traits so small that tests can play a disk that is
//! full, fails or loses its power; and the file and the folder that there are.

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
    /// Whether what is in it may be changed: nobody else reads it, nor opens it before `end_change`, and it has one name.
    fn begin_change(&self) -> bool {
        true
    }
    fn end_change(&self) {}
}

/// A folder in which each session has its past in a file of its own.
pub trait Pasts: Send + Sync {
    /// The file of this name, which nobody changes as long as this lives; `WouldBlock` where another process does.
    fn open(&self, name: &str) -> io::Result<Box<dyn Disk>>;
    /// A new and empty file that nobody else has (`Disk::begin_change`), in place of what a dead writer left; `WouldBlock` where a living
    /// one is at it.
    fn create(&self, name: &str) -> io::Result<Box<dyn Disk>>;
    /// `to` is from now on the file that was `from`, in place of what it was. Who reads that goes on; where another process changes it,
    /// `WouldBlock`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Another name of the same file, where there is none of it yet and the file system can do it.
    fn link(&self, from: &str, to: &str) -> io::Result<()>;
    /// Returns when the names of the folder are on the disk.
    fn sync(&self) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// What a file takes of the disk.
    fn taken_bytes(&self, name: &str) -> io::Result<u64>;
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
        let file = open_file(&dir, name, OFlags::CREATE)?;
        lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        if file.metadata()?.len() < n_bytes {
            file.set_len(n_bytes)?;
        }
        // A session that tells of the file must not be on the disk before its name is.
        sync_folder(&dir)?;
        Ok(PastFile(file))
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

/// A file to read and write. No link is followed, and what is no file is not waited for.
fn open_file(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = fs::openat(dir, name, flags, MODE)?.into();
    match FileType::from_raw_mode(fs::fstat(&file)?.st_mode) == FileType::RegularFile {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// `WouldBlock` where somebody has a lock that this one does not go with. Where there are no locks nobody can be told.
fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    match fs::flock(file, how) {
        Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

/// A file system that cannot do it for folders has done what it can.
fn sync_folder(dir: &OwnedFd) -> io::Result<()> {
    match fs::fsync(dir) {
        Ok(()) | Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
        Err(e) => Err(e.into()),
    }
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

    /// Who reads it has locked it too. Where there are no locks it is never changed.
    fn begin_change(&self) -> bool {
        let is_alone = fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive).is_ok();
        let may_change = is_alone && fs::fstat(&self.0).is_ok_and(|stat| stat.st_nlink == 1);
        if !may_change {
            self.end_change();
        }
        may_change
    }

    fn end_change(&self) {
        let _ = fs::flock(&self.0, FlockOperation::NonBlockingLockShared);
    }
}

/// The folder that there is.
pub struct PastFolder(OwnedFd);

impl PastFolder {
    pub fn open(folder: &Path) -> io::Result<PastFolder> {
        open_folder(folder).map(PastFolder)
    }

    /// Removes a file that a dead writer left; `WouldBlock` where a living one is at it.
    fn remove_abandoned(&self, name: &str) -> io::Result<()> {
        let file = open_file(&self.0, name, OFlags::empty())?;
        lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        self.remove(name)
    }
}

impl Pasts for PastFolder {
    fn open(&self, name: &str) -> io::Result<Box<dyn Disk>> {
        let file = open_file(&self.0, name, OFlags::empty())?;
        lock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(Box::new(PastFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Disk>> {
        loop {
            let file = match open_file(&self.0, name, OFlags::CREATE | OFlags::EXCL) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.remove_abandoned(name) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => continue,
                },
                file => file?,
            };
            // Another process may have taken it for abandoned before it was locked.
            if lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && fs::fstat(&file)?.st_nlink > 0 {
                return Ok(Box::new(PastFile(file)));
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self.open(to) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            _ => {}
        }
        Ok(fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        sync_folder(&self.0)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    fn taken_bytes(&self, name: &str) -> io::Result<u64> {
        Ok(512 * fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?.st_blocks as u64)
    }
}
