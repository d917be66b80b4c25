//! What the past asks of a disk, and sessions of the folder with their pasts, as traits so small that tests can play a disk that is
//! full, fails or loses its power; and the file and the folder that there are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{self, Advice, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::mem::view::View;

/// What is saved is on the disk after so many bytes, and not only at the end: no wait for a slow card is then long, and the page cache
/// holds little that is still to be written.
pub const SYNC_BYTES: usize = 8 << 20;

/// Called between the pieces of what may take long: the process is alive.
#[derive(Clone, Default)]
pub struct Pulse(Option<Arc<dyn Fn() + Send + Sync>>);

impl Pulse {
    pub fn new(beat: impl Fn() + Send + Sync + 'static) -> Pulse {
        Pulse(Some(Arc::new(beat)))
    }

    pub fn beat(&self) {
        if let Some(beat) = &self.0 {
            beat();
        }
    }
}

/// A file of fixed size that is written piece by piece and read anywhere.
pub trait Disk: Send + Sync {
    /// All of `bytes`, from the byte `at` on.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Fills `into` from the byte `at` on.
    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()>;
    /// The file without a copy, where it can be had and `look` was called.
    fn view(&self) -> Option<&View> {
        None
    }
    /// Makes a view of `n_bytes`, of which the first `n_index` are read in order and the others here and there.
    fn look(&mut self, n_bytes: u64, n_index: u64) -> io::Result<()> {
        let _ = (n_bytes, n_index);
        Ok(())
    }
    /// Returns when what was written is on the disk.
    fn sync(&self) -> io::Result<()>;
    /// Whether what is in it may be changed: `name` is its one name, and nobody else reads it, nor opens it before `end_change`.
    /// `WouldBlock` where somebody else changes it from now on.
    fn begin_change(&self, name: &str) -> io::Result<bool> {
        let _ = name;
        Ok(true)
    }
    /// Others may read it, and nobody changes it; `WouldBlock` where somebody does from now on.
    fn end_change(&self) -> io::Result<()> {
        Ok(())
    }
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
    /// Called between the pieces of what is copied or looked through.
    fn alive(&self) {}
}

/// The file that there is.
#[derive(Debug)]
pub struct PastFile {
    file: File,
    view: Option<View>,
    /// Of one that others may read.
    dir: Option<Arc<Dir>>,
}

/// What a conversation says is nobody else's to read.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// `f_type` of a file system that lies in memory.
const TMPFS: u32 = 0x0102_1994;

impl PastFile {
    /// Pieces are read here and there, and the index in large blocks: a system that reads ahead on its own reads pages that nobody
    /// asks for, and drops others for them. Where it takes no advice nothing is lost.
    fn of(file: File, dir: Option<Arc<Dir>>) -> PastFile {
        let _ = fs::fadvise(&file, 0, None, Advice::Random);
        PastFile { file, view: None, dir }
    }

    /// A file in the folder, which must be there. It has no name, and goes with the process, whatever ends that.
    pub fn scratch(folder: &Path) -> io::Result<PastFile> {
        let dir = open_folder(folder)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match fs::openat(&dir, ".", flags | OFlags::TMPFILE, MODE) {
            Ok(file) => return Ok(PastFile::of(file.into(), None)),
            // File systems and kernels that know no files without a name.
            Err(Errno::NOTSUP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
        let name = format!(".lowkey-past-{}", std::process::id());
        let file = fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, MODE)?;
        fs::unlinkat(&dir, &name, AtFlags::empty())?;
        Ok(PastFile::of(file.into(), None))
    }

    /// The file of this name in the folder, as it is or new; `WouldBlock` where another process has it. Nobody else opens it as long
    /// as this lives. It is `n_bytes` long at least: what nobody wrote reads as noughts.
    pub fn kept(folder: &Path, name: &str, n_bytes: u64) -> io::Result<PastFile> {
        let dir = Dir::open(folder)?;
        let file = open_file(&dir.fd, name, OFlags::CREATE)?;
        dir.lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        if file.metadata()?.len() < n_bytes {
            file.set_len(n_bytes)?;
        }
        // A session that tells of the file must not be on the disk before its name is.
        sync_folder(&dir.fd)?;
        Ok(PastFile::of(file, None))
    }

    /// Bytes that this user may still write on the disk of the file, and those that it takes already.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let (found, own) = (fs::fstatvfs(&self.file)?, fs::fstat(&self.file)?);
        Ok(found.f_bavail.saturating_mul(found.f_frsize).saturating_add(512 * own.st_blocks as u64))
    }

    /// Whether the disk of the file is memory.
    pub fn is_in_memory(&self) -> bool {
        fs::fstatfs(&self.file).is_ok_and(|found| found.f_type as u32 == TMPFS)
    }
}

/// A folder whose files processes share. `flock` gives a lock up before it makes a shared one exclusive or the other way round, and
/// in between somebody else may get it (flock(2)): so who has one to change, or would have an exclusive one, holds the folder's first.
#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    /// Locks are a process's: among its threads this decides.
    gate: Mutex<()>,
}

struct Gate<'a> {
    dir: &'a Dir,
    _alone: MutexGuard<'a, ()>,
}

/// How often a lock is tried that nobody holds for longer than some system calls, and how long it is waited in between: a second or so.
const TRIES: u32 = 1000;
const BETWEEN: std::ops::Range<u64> = 20..1000;

impl Dir {
    fn open(folder: &Path) -> io::Result<Dir> {
        Ok(Dir { fd: open_folder(folder)?, gate: Mutex::new(()) })
    }

    /// `None` where there are no locks; `WouldBlock` where somebody stays.
    fn gate(&self) -> io::Result<Option<Gate<'_>>> {
        let alone = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        match patiently(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Gate { dir: self, _alone: alone })),
            Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
            Err(_) => Ok(None),
        }
    }

    /// `WouldBlock` where somebody has a lock that this one does not go with. Where there are no locks nobody can be told.
    fn lock(&self, file: &File, how: FlockOperation) -> io::Result<()> {
        let _gate = self.gate()?;
        lock(file, how)
    }

    /// Whether the file has one name, which is this one.
    fn has_just(&self, name: &str, file: &File) -> bool {
        let (Ok(own), Ok(named)) = (fs::fstat(file), fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)) else { return false };
        own.st_nlink == 1 && (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino)
    }
}

impl Drop for Gate<'_> {
    fn drop(&mut self) {
        let _ = fs::flock(&self.dir.fd, FlockOperation::Unlock);
    }
}

/// A lock that others hold for a moment at most.
fn patiently(file: impl AsFd, how: FlockOperation) -> rustix::io::Result<()> {
    let mut wait_us = BETWEEN.start;
    for _ in 1..TRIES {
        match fs::flock(&file, how) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_micros(wait_us)),
            locked => return locked,
        }
        wait_us = (2 * wait_us).min(BETWEEN.end);
    }
    fs::flock(file, how)
}

fn open_folder(folder: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file to read and write. No link is followed, and what is no file is not waited for.
fn open_file(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file: File = fs::openat(dir, name, flags, MODE)?.into();
    let found = fs::fstat(&file)?.st_mode;
    if FileType::from_raw_mode(found) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // One that somebody has put there. A file system that has no modes has done what it can.
    if Mode::from_raw_mode(found) != MODE {
        let _ = fs::fchmod(&file, MODE);
    }
    Ok(file)
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
        self.file.write_all_at(bytes, at)
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Addresses of 32 bits are too few for files of any size: there it is read by calls alone.
    fn look(&mut self, n_bytes: u64, n_index: u64) -> io::Result<()> {
        if cfg!(target_pointer_width = "64") {
            let view = View::of(&self.file, n_bytes)?;
            view.is_read_here_and_there(n_index..n_bytes);
            self.view = Some(view);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Who reads it has locked it too. Where there are no locks it is never changed.
    fn begin_change(&self, name: &str) -> io::Result<bool> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let Ok(Some(_gate)) = dir.gate() else { return Ok(false) };
        let is_alone = fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok();
        let may_change = is_alone && dir.has_just(name, &self.file);
        if !may_change {
            share_again(&self.file)?;
        }
        Ok(may_change)
    }

    fn end_change(&self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let _gate = dir.gate();
        share_again(&self.file)
    }
}

/// `WouldBlock` where somebody has got an exclusive lock meanwhile, which none does that holds the folder's first.
fn share_again(file: &File) -> io::Result<()> {
    match patiently(file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

/// The folder that there is.
pub struct PastFolder {
    dir: Arc<Dir>,
    pulse: Pulse,
}

impl PastFolder {
    pub fn open(folder: &Path) -> io::Result<PastFolder> {
        PastFolder::beating(folder, Pulse::default())
    }

    /// One that says between the pieces of a long work that it goes on.
    pub fn beating(folder: &Path, pulse: Pulse) -> io::Result<PastFolder> {
        Ok(PastFolder { dir: Arc::new(Dir::open(folder)?), pulse })
    }

    /// Removes a file that a dead writer left; `WouldBlock` where a living one is at it.
    fn remove_abandoned(&self, name: &str) -> io::Result<()> {
        let file = open_file(&self.dir.fd, name, OFlags::empty())?;
        self.dir.lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        self.remove(name)
    }

    fn shared(&self, file: File) -> Box<dyn Disk> {
        Box::new(PastFile::of(file, Some(self.dir.clone())))
    }
}

impl Pasts for PastFolder {
    fn open(&self, name: &str) -> io::Result<Box<dyn Disk>> {
        let file = open_file(&self.dir.fd, name, OFlags::empty())?;
        self.dir.lock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(self.shared(file))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Disk>> {
        loop {
            let file = match open_file(&self.dir.fd, name, OFlags::CREATE | OFlags::EXCL) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.remove_abandoned(name) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => continue,
                },
                file => file?,
            };
            // Another process may have taken it for abandoned before it was locked.
            if lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && fs::fstat(&file)?.st_nlink > 0 {
                return Ok(self.shared(file));
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self.open(to) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            _ => {}
        }
        Ok(fs::renameat(&self.dir.fd, from, &self.dir.fd, to)?)
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::linkat(&self.dir.fd, from, &self.dir.fd, to, AtFlags::empty())?)
    }

    fn sync(&self) -> io::Result<()> {
        sync_folder(&self.dir.fd)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.dir.fd, name, AtFlags::empty())?)
    }

    fn taken_bytes(&self, name: &str) -> io::Result<u64> {
        Ok(512 * fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)?.st_blocks as u64)
    }

    fn alive(&self) {
        self.pulse.beat();
    }
}
