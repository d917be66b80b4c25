//! One file over the network, whole or not at all.
//!
//! ```text
//! lock NAME.part                          somebody else may be at it
//! hash what it holds                      of an earlier try
//! repeat
//!     ask for the rest, if it is still the same file       (Range, If-Range; what answers may know neither)
//!     append what comes, hashing              until it ends, breaks off, or is more than it should be
//! until it is whole, or five times in a row nothing new came
//! compare length and sum, look whether it is a whole model, sync, rename
//! ```
//!
//! What lies on the disk can be gone on with at any moment, so that nothing need be ended in order: a signal ends the process at once.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use crate::cli::progress;
use crate::cli::unfinished::sync_and_rename;
use crate::error::{Error, Result};
use crate::units::Bytes;

use super::Pulled;
use super::client::{Unanswered, get, refusal};
use super::partial::{PIECE_BYTES, Partial, damage, hashed, tag_path};
use super::source::Wanted;

/// Tries in a row that bring nothing new before it is given up.
const TRIES: u32 = 5;
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
    check_room(folder, Some(wanted.iter().map(to_come).sum()))
}

/// Whether there is room for so many bytes, or for the next ones of a file whose length is not known.
fn check_room(folder: &Path, to_come: Option<u64>) -> Result<()> {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = to_come.unwrap_or(LOOK_BYTES);
    if needed > 0 && free < needed.saturating_add(SPARE_BYTES) {
        let to_come = to_come.map_or("how much is to come is not known".into(), |n| format!("{} are to come", Bytes(n)));
        let what = format!("{} has {} free, and {to_come}: make room, or give another folder", folder.display(), Bytes(free));
        return Err(Error::budget("--dir", what));
    }
    Ok(())
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
    if let Some(why) = damage(&partial.path)? {
        // Where nobody has said how long it is, it may have ended too early.
        let is_kept = partial.whole.is_none() && partial.tag.is_some();
        if !is_kept {
            partial.remove();
        }
        let what = if is_kept { "what came is kept, and the same command goes on" } else { "it has been removed" };
        return Err(Error::stopped(format!("{}: {why} ({what})", wanted.url)));
    }
    sync_and_rename(&partial.file, &partial.path, &path).map_err(|e| Error::io(&path, e))?;
    let _ = std::fs::remove_file(tag_path(&partial.path));
    Ok(Pulled { path, bytes: partial.bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: partial.received })
}

/// What is to be done after a download was given up.
fn way_out(partial: &Partial) -> String {
    match (partial.bytes, &partial.tag) {
        (0, _) => "nothing of it is here: try again later, or give another address".into(),
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
        Err(Unanswered::ForGood(why)) => return Err(Error::stopped(format!("{}: {why}", wanted.url))),
        Err(Unanswered::ForNow(why)) => return Ok(Ended::BrokenOff(why)),
    };
    match (answer.status(), range.is_some()) {
        (StatusCode::PARTIAL_CONTENT, true) => match partial.goes_on_with(answer.headers()) {
            Ok(whole) => partial.whole = whole.or(partial.whole),
            Err(why) => {
                partial.clear()?;
                return Ok(Ended::BrokenOff(why.into()));
            }
        },
        (status @ StatusCode::RANGE_NOT_SATISFIABLE, true) => {
            let why = format!("to what follows byte {} the server answers {status}", partial.bytes);
            partial.clear()?;
            return Ok(Ended::BrokenOff(why));
        }
        (StatusCode::OK, _) => {
            if partial.bytes > 0 {
                partial.clear()?;
            }
            partial.remember(answer.headers());
            partial.whole = None;
        }
        (status, _) if status.is_server_error() => return Ok(Ended::BrokenOff(format!("the server answers {status}"))),
        (status, _) => return Err(refusal(&wanted.asked(), status)),
    }
    let rest = answer.body().content_length();
    partial.whole = partial.whole.or(rest.map(|rest| partial.bytes.saturating_add(rest)));
    if let (Some(told), Some(expected)) = (partial.whole, wanted.bytes)
        && told != expected
    {
        return Err(Error::stopped(format!("{}: the server has {told} bytes, expected {expected}", wanted.url)));
    }
    partial.whole = partial.whole.or(wanted.bytes);
    if let Some(whole) = partial.whole {
        check_room(partial.folder(), Some(whole.saturating_sub(partial.bytes)))?;
        bar.set_length(whole);
    }
    take(answer.body_mut(), &wanted.url, partial, bar)
}

fn take(body: &mut ureq::Body, url: &str, partial: &mut Partial, bar: &ProgressBar) -> Result<Ended> {
    let (mut reader, mut piece, mut looked) = (body.as_reader(), vec![0; PIECE_BYTES], 0);
    let whole = partial.whole;
    loop {
        bar.set_position(partial.bytes);
        if whole.is_none() && partial.bytes >= looked {
            check_room(partial.folder(), None)?;
            looked = partial.bytes + LOOK_BYTES;
        }
        match reader.read(&mut piece) {
            Ok(0) => break,
            Ok(n) if whole.is_some_and(|whole| partial.bytes + n as u64 > whole) => {
                partial.clear()?;
                let whole = whole.unwrap_or_default();
                let what = format!("{url}: the server sends more than the {whole} bytes of the file: nothing is kept");
                return Err(Error::stopped(format!("{what}; give another address")));
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
        _ if partial.bytes == 0 => Ok(Ended::BrokenOff("the server sends a file without a byte".into())),
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
    if let Some(why) = damage(&path)? {
        return Err(Error::stopped(format!("{}: {why} (move it away first: it has that name already)", path.display())));
    }
    Ok(Pulled { path, bytes, sha256: sum, verified: wanted.sha256.is_some(), received_bytes: 0 })
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
