//! One file over the network, whole or not at all.
//!
//! ```text
//! lock NAME.part                          somebody else may be at it
//! hash what it holds                      of an earlier try
//! repeat
//!     ask for the rest, if it is still the same file       (Range, If-Range)
//!     append what comes, hashing              until it ends, breaks off, or is more than it should be
//! until it is whole, or five times in a row nothing came
//! compare length and sum, sync, rename
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode};

use crate::cli::{interrupt, progress};
use crate::error::{Error, Result};
use crate::units::Bytes;

use super::Pulled;
use super::client::{Asked, get, refusal};
use super::source::Wanted;

/// Tries in a row that bring nothing before it is given up.
const TRIES: u32 = 5;
const PIECE_BYTES: usize = 256 << 10;
/// What is left free on the disk beside the file: a full one hurts everybody on it.
const SPARE_BYTES: u64 = 64 << 20;

fn part(folder: &Path, file: &str) -> PathBuf {
    folder.join(format!("{file}.part"))
}

/// Whether the disk has room for what is still to come.
pub fn check_space(folder: &Path, wanted: &[Wanted]) -> Result<()> {
    let there = |path: PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let to_come = |one: &Wanted| {
        let is_there = folder.join(&one.file).exists();
        one.bytes.filter(|_| !is_there).map_or(0, |bytes| bytes.saturating_sub(there(part(folder, &one.file))))
    };
    let needed: u64 = wanted.iter().map(to_come).sum();
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > 0 && free < needed + SPARE_BYTES {
        let text = "{0} has {1} free, and {2} are to come: make room, or give another folder";
        let text = text.replace("{0}", &folder.display().to_string()).replace("{1}", &Bytes(free).to_string());
        return Err(Error::budget("--dir", text.replace("{2}", &Bytes(needed).to_string())));
    }
    Ok(())
}

/// What has come of a file so far, and its sum.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Sha256,
    /// What the server calls this version of the file; another one is begun anew.
    tag: Option<String>,
}

impl Partial {
    /// Locks the file, and hashes what it holds.
    fn open(path: PathBuf) -> Result<Self> {
        let io = |e| Error::io(&path, e);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        if file.try_lock().is_err() {
            return Err(Error::stopped(format!("{}: another process is fetching it", path.display())));
        }
        let tag = std::fs::read_to_string(tag_path(&path)).ok().filter(|tag| !tag.is_empty());
        if tag.is_none() {
            // Nobody can say whether it is the beginning of the same file.
            file.set_len(0).map_err(io)?;
        }
        let (mut hash, mut piece, mut bytes) = (Sha256::new(), vec![0; PIECE_BYTES], 0);
        loop {
            match file.read(&mut piece).map_err(io)? {
                0 => break,
                n => hash.update(&piece[..n]),
            }
            bytes = file.stream_position().map_err(io)?;
        }
        Ok(Partial { path, file, bytes, hash, tag })
    }

    /// From the start again.
    fn clear(&mut self) -> Result<()> {
        (self.bytes, self.hash, self.tag) = (0, Sha256::new(), None);
        let _ = std::fs::remove_file(tag_path(&self.path));
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map(drop).map_err(|e| Error::io(&self.path, e))
    }

    /// The server's name of this version: a strong tag, or else nothing, for a weak one promises no equal bytes.
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
        Ok(())
    }

    fn remove(self) {
        let _ = std::fs::remove_file(tag_path(&self.path));
        let _ = std::fs::remove_file(&self.path);
    }

    /// Syncs, and gives it its name.
    fn finish(self, path: &Path) -> Result<()> {
        self.file.sync_all().and_then(|()| std::fs::rename(&self.path, path)).map_err(|e| Error::io(path, e))?;
        let _ = std::fs::remove_file(tag_path(&self.path));
        if let Some(folder) = path.parent() {
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(())
    }
}

fn tag_path(part: &Path) -> PathBuf {
    part.with_extension("part.tag")
}

/// How a request ended.
enum Ended {
    Whole,
    /// Why it should be asked again.
    BrokenOff(String),
    Interrupted,
}

/// Brings the file to the folder; nothing if a signal broke it off.
pub fn fetch(agent: &ureq::Agent, wanted: &Wanted, folder: &Path) -> Result<Option<Pulled>> {
    let path = folder.join(&wanted.file);
    if path.exists() {
        return already_there(wanted, path).map(Some);
    }
    let mut partial = Partial::open(part(folder, &wanted.file))?;
    let held = partial.bytes;
    let bar = progress::bytes(wanted.file.clone(), wanted.bytes, held);
    let (mut received, mut tries) = (0, 0);
    loop {
        let before = partial.bytes;
        let ended =
            if wanted.bytes == Some(before) && before > 0 { Ended::Whole } else { request(agent, wanted, &mut partial, &bar)? };
        received += partial.bytes.saturating_sub(before);
        match ended {
            Ended::Whole => break,
            Ended::Interrupted => return Ok(None),
            Ended::BrokenOff(why) => {
                tries = if partial.bytes > before { 0 } else { tries + 1 };
                if tries == TRIES {
                    let kept = Bytes(partial.bytes);
                    return Err(Error::stopped(format!(
                        "{}: {why}; the {kept} that came are kept, and the same command goes on",
                        wanted.url
                    )));
                }
                log::info!("{}: {why}; asked again from byte {}", wanted.url, partial.bytes);
                std::thread::sleep(Duration::from_millis(250 << tries));
            }
        }
    }
    bar.finish_and_clear();
    let sum = hex(partial.hash.clone());
    if let Some(known) = wanted.sha256.as_ref().filter(|known| **known != sum) {
        let text = format!("{}: the SHA-256 of what came is {sum}, expected {known}: it has been removed", wanted.url);
        partial.remove();
        return Err(Error::stopped(text));
    }
    let bytes = partial.bytes;
    partial.finish(&path)?;
    Ok(Some(Pulled { path, bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: received }))
}

/// Asks for what is missing, and takes what comes.
fn request(agent: &ureq::Agent, wanted: &Wanted, partial: &mut Partial, bar: &ProgressBar) -> Result<Ended> {
    let asked = Asked { url: &wanted.url, is_hub: wanted.is_hub };
    let tag = partial.tag.clone();
    let range = tag.as_deref().filter(|_| partial.bytes > 0).map(|tag| (partial.bytes, tag));
    let mut answer = match get(agent, &asked, range) {
        Ok(answer) => answer,
        Err(error) if interrupt::raised() => {
            log::debug!("{error}");
            return Ok(Ended::Interrupted);
        }
        Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::HostNotFound)) => {
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
        (status, _) => return Err(refusal(&wanted.url, status)),
    }
    let told = answer.body().content_length().map(|rest| partial.bytes + rest);
    if let (Some(told), Some(expected)) = (told, wanted.bytes)
        && told != expected
    {
        return Err(Error::stopped(format!("{}: the server has {told} bytes, expected {expected}", wanted.url)));
    }
    if let Some(bytes) = told {
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
    let mut reader = body.as_reader();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        bar.set_position(partial.bytes);
        if interrupt::raised() {
            return Ok(Ended::Interrupted);
        }
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(n) if whole.is_some_and(|whole| partial.bytes + n as u64 > whole) => {
                let whole = whole.unwrap_or_default();
                partial.clear()?;
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
    let bytes = file.metadata().map_err(io)?.len();
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(io)?;
    let sum = hex(hash);
    let differs = wanted.sha256.as_ref().is_some_and(|known| *known != sum) || wanted.bytes.is_some_and(|known| known != bytes);
    if differs {
        let text =
            format!("{} is there and is another file ({}, SHA-256 {sum}): move it away first", path.display(), Bytes(bytes));
        return Err(Error::stopped(text));
    }
    Ok(Pulled { path, bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: 0 })
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
