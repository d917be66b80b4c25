//! The disk that there is: a folder, held open, so that names are all that is asked for and no path is put together.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::disk::{Disk, Found, Space};
use crate::kv::past::disk::Pulse;

pub struct Folder {
    dir: OwnedFd,
    pulse: Pulse,
}

/// A session holds a conversation: nobody else reads it.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Folder {
    /// One that is there.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder { dir: fs::open(path, flags, Mode::empty())?, pulse: Pulse::default() })
    }

    /// The same one, that says between the pieces of a long work that it goes on.
    pub fn beating(self, pulse: Pulse) -> Folder {
        Folder { pulse, ..self }
    }

    /// One that is made where it is not there, for its owner alone.
    pub fn make(path: &Path) -> io::Result<Folder> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Folder::open(path)
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        // No link is followed, and what is no file is not waited for.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(fs::openat(&self.dir, name, flags, MODE)?)
    }
}

/// Whether nobody holds the file; from then on this process does.
fn lock(file: impl AsFd) -> io::Result<bool> {
    match fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

impl Disk for Folder {
    type Writer = File;
    type Reader = File;

    fn create(&self, name: &str) -> io::Result<File> {
        loop {
            let file = match self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.remove_abandoned(name)? {
                    true => continue,
                    false => return Err(io::ErrorKind::WouldBlock.into()),
                },
                file => file?,
            };
            // Where there are no locks nobody takes the file for abandoned either.
            let is_ours = lock(&file).unwrap_or(true);
            // Another process may have taken it for abandoned before it was locked.
            if is_ours && fs::fstat(&file)?.st_nlink > 0 {
                return Ok(file.into());
            }
        }
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn sync_folder(&self) -> io::Result<()> {
        match fs::fsync(&self.dir) {
            // A file system that cannot do it for folders has done what it can.
            Ok(()) | Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn open(&self, name: &str) -> io::Result<(File, u64)> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let stat = fs::fstat(&file)?;
        match is_file(&stat) {
            true => Ok((file.into(), stat.st_size as u64)),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        }
    }

    fn read(&self, file: &mut File, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match file.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn remove_abandoned(&self, name: &str) -> io::Result<bool> {
        let file = match self.open_file(name, OFlags::RDONLY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
            file => file?,
        };
        if !lock(&file)? {
            return Ok(false);
        }
        match self.remove(name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(true),
        }
    }

    fn touch(&self, name: &str) -> io::Result<()> {
        let (now, as_it_is) = (Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT });
        let times = Timestamps { last_access: as_it_is, last_modification: now };
        Ok(fs::utimensat(&self.dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn list(&self, each: &mut dyn FnMut(Found<'_>)) -> io::Result<()> {
        for entry in fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Ok(stat) = fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if is_file(&stat) {
                let ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
                each(Found { name, changed_ns: u64::try_from(ns).unwrap_or(0) });
            }
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let found = fs::fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { free_bytes: bytes(found.f_bavail), total_bytes: bytes(found.f_blocks) })
    }

    fn alive(&self) {
        self.pulse.beat();
    }
}
