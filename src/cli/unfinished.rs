//! A file that comes into being whole or not at all: it is written under another name beside its own, synced and renamed,
//! and removed if it is never finished.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    pub out: BufWriter<File>,
}

impl Unfinished {
    /// Refuses a name that could not be given to the file in the end.
    pub fn check(flag: &'static str, path: &Path) -> Result<()> {
        let usage = |what: &str| Err(Error::usage(flag, format!("{} {what}; give the name of a file", path.display())));
        match std::fs::metadata(path) {
            Ok(meta) if !meta.is_file() => usage("is there and is no regular file"),
            _ if path.file_name().is_none() => usage("is no name"),
            _ => Ok(()),
        }
    }

    pub fn create(path: &Path) -> io::Result<Self> {
        Self::sweep(path);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = loop {
            let file = File::create(&temporary)?;
            // The lock says that somebody is still writing. Where there are no locks nobody sweeps either.
            let _ = file.lock();
            // Another process may have swept it away before it was locked.
            if file.metadata()?.nlink() > 0 {
                break file;
            }
        };
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Unfinished { path: path.to_owned(), temporary, out })
    }

    /// Removes what processes that were killed have left of the file, `NAME.PID.part`: those that nobody holds a lock on.
    pub fn sweep(path: &Path) {
        let Some((folder, name)) = path.parent().zip(path.file_name()) else { return };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (found, entry_path) = (entry.file_name(), entry.path());
            let pid = found.as_bytes().strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
            let is_part = pid.and_then(|rest| rest.strip_suffix(b".part")).is_some_and(|pid| pid.iter().all(u8::is_ascii_digit));
            if is_part && entry.file_type().is_ok_and(|ty| ty.is_file()) {
                let left = File::open(&entry_path)
                    .is_ok_and(|file| file.try_lock().is_ok() && std::fs::remove_file(&entry_path).is_ok());
                if left {
                    log::info!("{}: left by a process that was killed, and removed", entry_path.display());
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()?;
        sync_and_rename(self.out.get_ref(), &self.temporary, &self.path)
    }
}

/// Gives a file that is whole its name, in the same folder, once its bytes are on the disk.
pub fn sync_and_rename(file: &File, from: &Path, to: &Path) -> io::Result<()> {
    file.sync_all()?;
    std::fs::rename(from, to)?;
    // The name is on the disk once its folder is; a file system that cannot say so has done what it can.
    if let Some(folder) = to.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After `finish` there is nothing at this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
