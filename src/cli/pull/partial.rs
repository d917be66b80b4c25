//! What has come of a file so far: `NAME.part`, and beside it `NAME.part.tag`, what the server calls this version. Owns both
//! files, the lock on the first, and whether an answer goes on with what is held.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::HeaderMap;

use crate::cli::progress;
use crate::error::{Error, Result};
use crate::gguf::{GgufError, parse};
use crate::mem::map::Map;

use super::source::Wanted;

pub const PIECE_BYTES: usize = 256 << 10;

/// What has come of a file so far, and its sum.
pub struct Partial {
    pub path: PathBuf,
    pub file: File,
    pub bytes: u64,
    /// That came over the network this time.
    pub received: u64,
    pub hash: Sha256,
    /// What the server calls this version of the file; another one is begun anew.
    pub tag: Option<String>,
    /// How long this version is, where somebody has said so.
    pub whole: Option<u64>,
}

impl Partial {
    /// Locks the file, and hashes what it holds.
    pub fn open(path: PathBuf, wanted: &Wanted) -> Result<(Self, ProgressBar)> {
        let io = |e| Error::io(&path, e);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        // Where there are no locks nobody is kept out.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(Error::stopped(format!("{}: another process is fetching it: wait for it", path.display())));
        }
        // It may have been given its name, or been removed, before it was locked.
        let held = file.metadata().map_err(io)?;
        if !std::fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Err(Error::stopped(format!("{}: another process has just ended with it: try again", path.display())));
        }
        let tag = std::fs::read_to_string(tag_path(&path)).ok().filter(|tag| !tag.is_empty());
        if tag.is_none() {
            // Nobody can say whether it is the beginning of the same file.
            file.set_len(0).map_err(io)?;
        }
        let bar = progress::bytes(wanted.file.clone(), wanted.bytes);
        let (bytes, hash) = hashed(&mut file, &bar).map_err(io)?;
        Ok((Partial { path, file, bytes, received: 0, hash, tag, whole: wanted.bytes }, bar))
    }

    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// From the start again.
    pub fn clear(&mut self) -> Result<()> {
        (self.bytes, self.hash, self.tag, self.whole) = (0, Sha256::new(), None, None);
        let _ = std::fs::remove_file(tag_path(&self.path));
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map(drop).map_err(|e| Error::io(&self.path, e))
    }

    /// The server's name of this version: a strong tag, or else its date, for a weak tag promises no equal bytes.
    pub fn remember(&mut self, headers: &HeaderMap) {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = header("etag").filter(|tag| tag.starts_with('"')).or_else(|| header("last-modified"));
        self.tag = tag.map(str::to_owned);
        // Without it the next call begins anew, which is slow and not wrong.
        let _ = match &self.tag {
            Some(tag) => std::fs::write(tag_path(&self.path), tag),
            None => std::fs::remove_file(tag_path(&self.path)),
        };
    }

    /// Whether an answer is the rest of what is held: how long the whole is, if it says so, or why it is not.
    pub fn goes_on_with(&self, headers: &HeaderMap) -> std::result::Result<Option<u64>, &'static str> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let range = header("content-range").and_then(range);
        let Some((_, whole)) = range.filter(|&(from, _)| from == self.bytes) else {
            return Err("the server sends another piece than the one that was asked for");
        };
        // A server that does not know If-Range goes on with whatever it has by now.
        let name = if self.tag.as_ref().is_some_and(|tag| tag.starts_with('"')) { "etag" } else { "last-modified" };
        let is_other_tag = header(name).is_some_and(|now| Some(now) != self.tag.as_deref());
        let is_other_length = self.whole.zip(whole).is_some_and(|(before, now)| before != now);
        match is_other_tag || is_other_length {
            true => Err("the server has another version by now"),
            false => Ok(whole),
        }
    }

    pub fn append(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(|e| Error::io(&self.path, e))?;
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
        self.received += piece.len() as u64;
        Ok(())
    }

    /// Whether it begins as a model does.
    pub fn is_gguf(&mut self) -> std::io::Result<bool> {
        let mut magic = [0; 4];
        self.file.seek(SeekFrom::Start(0))?;
        Ok(self.bytes >= 4 && self.file.read_exact(&mut magic).is_ok() && &magic == b"GGUF")
    }

    pub fn remove(&self) {
        let _ = std::fs::remove_file(tag_path(&self.path));
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What holds nothing is of no use to anybody, unless it has another name by now.
        if self.bytes == 0 {
            self.remove();
        }
    }
}

pub fn tag_path(part: &Path) -> PathBuf {
    part.with_extension("part.tag")
}

/// Where `bytes 40000-99999/100000` begins, and how long the whole is, where that is said.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (from, rest) = text.strip_prefix("bytes ")?.split_once('-')?;
    let (_, whole) = rest.split_once('/')?;
    Some((from.trim().parse().ok()?, whole.trim().parse().ok()))
}

/// What of a file is wrong or missing, so that nothing helps but to fetch it again.
pub fn damage(path: &Path) -> Result<Option<GgufError>> {
    let map = Map::open(path)?;
    Ok(parse(map.bytes()).err().filter(GgufError::wants_fetching))
}

/// Reads a file to its end: how long it is, and its sum.
pub fn hashed(file: &mut File, bar: &ProgressBar) -> std::io::Result<(u64, Sha256)> {
    let (mut hash, mut piece, mut bytes) = (Sha256::new(), vec![0; PIECE_BYTES], 0);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((bytes, hash)),
            n => hash.update(&piece[..n]),
        }
        bytes = file.stream_position()?;
        bar.set_position(bytes);
    }
}
