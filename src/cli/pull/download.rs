//! One file over the network, whole or not at all.
//!
//! ```text
//! lock NAME.part                          somebody else may be at it
//! hash what it holds                      of an earlier try
//! repeat
//!     ask for the rest, if it is still the same file       (Range, If-Range)
//!     append what comes, hashing              until it ends, breaks off, or is more than it should be
//! until it is whole, or five times in a row nothing new came
//! compare length and sum, look at its first bytes, sync, rename
//! ```
//!
//! What lies on the disk can be gone on with at any moment, so that nothing need be ended in order: a signal ends the process at once.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode};

use crate::cli::progress;
use crate::cli::unfinished::sync_and_rename;
use crate::error::{Error, Result};
use crate::units::Bytes;

use super::Pulled;
use super::client::{get, refusal};
use super::source::Wanted;

/// Tries in a row that bring nothing new before it is given up.
const TRIES: u32 = 5;
const PIECE_BYTES: usize = 256 << 10;
/// What is left free on the disk beside the file: a full one hurts everybody on it.
const SPARE_BYTES: u64 = 64 << 20;
/// How often the disk is asked again for its room, where the length of the file is not known.
const LOOK_BYTES: u64 = 16 << 20;

fn part(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!("{file}.part"))
}

/// Whether the disk has room for what is still to come of the files whose size is known.
pub fn check_space(folder: &Path, wanted: &[Wanted]) -> Result<()> {
    let there = |path: PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let to_come = |one: &Wanted| {
        let is_there = folder.join(&one.file).exists();
        one.bytes.filter(|_| !is_there).map_or(0, |bytes| bytes.saturating_sub(there(part(folder, &one.file))))
    };
    check_room(folder, wanted.iter().map(to_come).sum())
}

fn check_room(folder: &Path, needed: u64) -> Result<()> {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > 0 && free < needed.saturating_add(SPARE_BYTES) {
        let (free, needed) = (Bytes(free), Bytes(needed));
        let what = format!("{} has {free} free, and {needed} are to come: make room, or give another folder", folder.display());
        return Err(Error::budget("--dir", what));
    }
    Ok(())
}

/// What has come of a file so far, and its sum.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// That came over the network this time.
    received: u64,
    hash: Sha256,
    /// What the server calls this version of the file; another one is begun anew.
    tag: Option<String>,
}

impl Partial {
    /// Locks the file, and hashes what it holds.
    fn open(path: PathBuf, wanted: &Wanted) -> Result<(Self, ProgressBar)> {
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
        Ok((Partial { path, file, bytes, received: 0, hash, tag }, bar))
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// From the start again.
    fn clear(&mut self) -> Result<()> {
        (self.bytes, self.hash, self.tag) = (0, Sha256::new(), None);
        let _ = std::fs::remove_file(tag_path(&self.path));
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map(drop).map_err(|e| Error::io(&self.path, e))
    }

    /// The server's name of this version: a strong tag, or else its date, for a weak tag promises no equal bytes.
    fn remember(&mut self, headers: &HeaderMap) {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let tag = header("etag").filter(|tag| tag.starts_with('"')).or_else(|| header("last-modified"));
        self.tag = tag.map(str::to_owned);
        // Without it the next call begins anew, which is slow and not wrong.
        let _ = match &self.tag {
            Some(tag) => std::fs::write(tag_path(&self.path), tag),
            None => std::fs::remove_file(tag_path(&self.path)),
        };
    }

    fn append(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(|e| Error::io(&self.path, e))?;
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
        self.received += piece.len() as u64;
        Ok(())
    }

    /// Whether it begins as a model does.
    fn is_gguf(&mut self) -> std::io::Result<bool> {
        let mut magic = [0; 4];
        self.file.seek(SeekFrom::Start(0))?;
        Ok(self.bytes >= 4 && self.file.read_exact(&mut magic).is_ok() && &magic == b"GGUF")
    }

    fn remove(&self) {
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

fn tag_path(part: &Path) -> PathBuf {
    part.with_extension("part.tag")
}

/// Reads a file to its end: how long it is, and its sum.
fn hashed(file: &mut File, bar: &ProgressBar) -> std::io::Result<(u64, Sha256)> {
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

/// How a request ended.
enum Ended {
    Whole,
    /// Why it should be asked again.
    BrokenOff(String),
}

/// Brings the file to the folder.
pub fn fetch(agent: &ureq::Agent, wanted: &Wanted, folder: &Path) -> Result<Pulled> {
    let path = folder.join(&wanted.file);
    if path.exists() {
        return already_there(wanted, path);
    }
    let (mut partial, bar) = Partial::open(part(folder, &wanted.file), wanted)?;
    let (mut furthest, mut tries) = (partial.bytes, 0);
    while wanted.bytes != Some(partial.bytes) || partial.bytes == 0 {
        let Ended::BrokenOff(why) = request(agent, wanted, &mut partial, &bar)? else { break };
        (furthest, tries) = if partial.bytes > furthest { (partial.bytes, 0) } else { (furthest, tries + 1) };
        if tries == TRIES {
            return Err(Error::stopped(format!("{}: {why}; {}", wanted.url, way_out(&partial))));
        }
        log::info!("{}: {why}; asked again from byte {}", wanted.url, partial.bytes);
        std::thread::sleep(Duration::from_millis(250 << tries));
    }
    bar.finish_and_clear();
    let sum = hex(partial.hash.clone());
    if let Some(known) = wanted.sha256.as_ref().filter(|known| **known != sum) {
        partial.remove();
        let what = format!("{}: the SHA-256 of what came is {sum}, expected {known}: it has been removed", wanted.url);
        return Err(Error::stopped(what));
    }
    if !partial.is_gguf().map_err(|e| Error::io(&partial.path, e))? {
        partial.remove();
        let what = format!("{}: what came is no GGUF file (a page, perhaps), and has been removed", wanted.url);
        return Err(Error::stopped(what));
    }
    sync_and_rename(&partial.file, &partial.path, &path).map_err(|e| Error::io(&path, e))?;
    let _ = std::fs::remove_file(tag_path(&partial.path));
    Ok(Pulled { path, bytes: partial.bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: partial.received })
}

/// What is to be done after a download was given up.
fn way_out(partial: &Partial) -> String {
    match (partial.bytes, &partial.tag) {
        (0, _) => "nothing came: is the network up, and are HTTPS_PROXY and SSL_CERT_FILE as they should be?".into(),
        (_, None) => "this server cannot go on in the middle: the same command begins anew".into(),
        (n, _) => format!("the {} that came are kept, and the same command goes on", Bytes(n)),
    }
}

/// Asks for what is missing, and takes what comes.
fn request(agent: &ureq::Agent, wanted: &Wanted, partial: &mut Partial, bar: &ProgressBar) -> Result<Ended> {
    let tag = partial.tag.clone();
    let range = tag.as_deref().filter(|_| partial.bytes > 0).map(|tag| (partial.bytes, tag));
    let mut answer = match get(agent, &wanted.asked(), range) {
        Ok(answer) => answer,
        Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_))) => {
            return Err(Error::stopped(format!("{}: {error}", wanted.url)));
        }
        Err(error) => return Ok(Ended::BrokenOff(error.to_string())),
    };
    match (answer.status(), range.is_some()) {
        (StatusCode::PARTIAL_CONTENT, true) if starts_at(answer.headers(), partial.bytes) => {}
        // The rest of another version, or more than there is.
        (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, true) => {
            partial.clear()?;
            return Ok(Ended::BrokenOff("the server has another version".into()));
        }
        (StatusCode::OK, _) => {
            if partial.bytes > 0 {
                partial.clear()?;
            }
            partial.remember(answer.headers());
        }
        (status, _) if status.is_server_error() => return Ok(Ended::BrokenOff(format!("the server answers {status}"))),
        (status, _) => return Err(refusal(&wanted.asked(), status)),
    }
    let told = answer.body().content_length().map(|rest| partial.bytes.saturating_add(rest));
    if let (Some(told), Some(expected)) = (told, wanted.bytes)
        && told != expected
    {
        return Err(Error::stopped(format!("{}: the server has {told} bytes, expected {expected}", wanted.url)));
    }
    if let Some(bytes) = told {
        check_room(partial.folder(), bytes - partial.bytes)?;
        bar.set_length(bytes);
    }
    take(answer.body_mut(), told.or(wanted.bytes), partial, bar)
}

/// Whether `Content-Range` begins where what is held ends.
fn starts_at(headers: &HeaderMap, at: u64) -> bool {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()) == Some(at)
}

fn take(body: &mut ureq::Body, whole: Option<u64>, partial: &mut Partial, bar: &ProgressBar) -> Result<Ended> {
    let (mut reader, mut piece, mut looked) = (body.as_reader(), vec![0; PIECE_BYTES], 0);
    loop {
        bar.set_position(partial.bytes);
        if whole.is_none() && partial.bytes >= looked {
            check_room(partial.folder(), LOOK_BYTES)?;
            looked = partial.bytes + LOOK_BYTES;
        }
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(n) if whole.is_some_and(|whole| partial.bytes + n as u64 > whole) => {
                partial.clear()?;
                let whole = whole.unwrap_or_default();
                return Err(Error::stopped(format!("the server sends more than the {whole} bytes of the file: nothing is kept")));
            }
            Ok(n) => partial.append(&piece[..n])?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Ok(Ended::BrokenOff(e.to_string())),
        }
    }
    match whole {
        Some(whole) if partial.bytes < whole => {
            Ok(Ended::BrokenOff(format!("it ended after {} of {whole} bytes", partial.bytes)))
        }
        _ if partial.bytes == 0 => Ok(Ended::BrokenOff("nothing came".into())),
        _ => Ok(Ended::Whole),
    }
}

/// A file of that name that was there before: the one that is meant, as far as can be told, or left alone.
fn already_there(wanted: &Wanted, path: PathBuf) -> Result<Pulled> {
    let io = |e| Error::io(&path, e);
    let mut file = File::open(&path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let another =
        |how: String| Error::stopped(format!("{} is there and is another file ({how}): move it away first", path.display()));
    if let Some(known) = wanted.bytes.filter(|known| *known != length) {
        return Err(another(format!("{length} bytes, expected {known}")));
    }
    let bar = progress::bytes(wanted.file.clone(), Some(length));
    let (bytes, hash) = hashed(&mut file, &bar).map_err(io)?;
    bar.finish_and_clear();
    let sum = hex(hash);
    if let Some(known) = wanted.sha256.as_ref().filter(|known| **known != sum) {
        return Err(another(format!("its SHA-256 is {sum}, expected {known}")));
    }
    Ok(Pulled { path, bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: 0 })
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
