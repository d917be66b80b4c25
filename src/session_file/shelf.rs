//! A folder of sessions that takes no more than a number of bytes. What is there is known by an index in memory, made at the start; other
//! processes may add and remove files, so a file is always looked at again before it is relied on.
//!
//! A session's past lies beside it, in a file of its own (`kv::past`), if the shelf was told to keep pasts; it is counted with the session,
//! and goes with it.
//!
//! Where room is needed, what was saved by itself goes first, least recently used first; sessions that somebody named go only
//! where the owner allows it. A new one is on the disk before an old one goes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::disk::Disk;
use super::error::{Failure, Why};
use super::fingerprint::Fingerprint;
use super::folder::Folder;
use super::format::{HEAD_BYTES, Head};
use super::name::{FileName, Name};
use super::stream::{Restored, Resumed, Saved, verify};
use super::transfer::{In, Out};
use crate::kv::past::PastNames;
use crate::kv::past::disk::{PastFolder, Pasts, Pulse};
use crate::mem::arena::{Arena, Buf};
use crate::session::{Engine, Stream};

/// What files are written and read through.
pub const BUFFER_BYTES: usize = 1 << 20;
/// Sessions of a folder at most.
pub const MAX_SESSIONS: usize = 1024;
/// Texts of which is remembered that they were used.
const N_SEEN: usize = 64;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all sessions together.
    pub space_bytes: u64,
    /// Whether sessions that somebody named may go for the space.
    pub may_remove_named: bool,
    /// What is to stay free on the disk, in percent.
    pub free_percent: u64,
}

impl Limits {
    pub const fn of(space_bytes: u64) -> Limits {
        Limits { space_bytes, may_remove_named: false, free_percent: 10 }
    }
}

/// What the index knows of a session.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    /// With those of its past.
    file_bytes: u64,
    /// Of the text in it.
    text_bytes: u64,
    /// Greater for those that were used later.
    used: u64,
    /// `Fingerprint::hash`, or `ASIDE`
    fingerprint: u128,
}

/// Of one that was saved by itself and whose past is not there: nobody can go on from it.
const ASIDE: u128 = 0;

const _: () = assert!(size_of::<Entry>() <= 128);

pub struct Shelf<D: Disk = Folder> {
    disk: D,
    limits: Limits,
    buffer: Buf<u8>,
    index: Vec<Entry>,
    /// Hashes of texts that were used once, the oldest overwritten first.
    seen: [u128; N_SEEN],
    n_seen: usize,
    n_wrong: usize,
    /// `mark` of what the latest save put under its name, if it came so far.
    last_put: Option<u64>,
    /// The folder, for pasts.
    pasts: Option<Arc<dyn Pasts>>,
}

impl Shelf {
    /// The sessions of a folder, which is made where it is not there.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Shelf> {
        Shelf::on(Folder::make(path)?, limits, BUFFER_BYTES)
    }

    /// The same, and sessions have pasts. `pulse` is called while they are saved and restored.
    pub fn open_with_pasts(path: &Path, limits: Limits, pulse: Pulse) -> io::Result<Shelf> {
        let shelf = Shelf::on(Folder::make(path)?.beating(pulse.clone()), limits, BUFFER_BYTES)?;
        Ok(shelf.with_pasts(Arc::new(PastFolder::beating(path, pulse)?)))
    }

    /// Private memory that a shelf takes.
    pub const fn plan_bytes() -> usize {
        BUFFER_BYTES + (MAX_SESSIONS + 1) * size_of::<Entry>() + size_of::<Shelf>()
    }
}

impl<D: Disk> Shelf<D> {
    /// One that knows nothing yet of what is there: for looking at sessions one by one.
    pub fn bare(disk: D, limits: Limits, buffer_bytes: usize) -> io::Result<Shelf<D>> {
        let buffer = Arena::fill(|arena| arena.carve(buffer_bytes.max(1)))?;
        // One more while a new session is on the disk and an old one has not gone yet.
        let index = Vec::with_capacity(MAX_SESSIONS + 1);
        Ok(Shelf { disk, limits, buffer, index, seen: [0; N_SEEN], n_seen: 0, n_wrong: 0, last_put: None, pasts: None })
    }

    /// The sessions on a disk, written and read through a buffer of so many bytes. Removes what dead writers left.
    pub fn on(disk: D, limits: Limits, buffer_bytes: usize) -> io::Result<Shelf<D>> {
        let mut shelf = Shelf::bare(disk, limits, buffer_bytes)?;
        let (mut parts, mut pasts): (Vec<FileName>, Vec<Name>) = (Vec::new(), Vec::new());
        let mut found: Vec<(Name, u64)> = Vec::new();
        shelf.disk.list(&mut |file| {
            found.extend(Name::of_file(file.name).map(|name| (name, file.changed_ns)));
            parts.extend(Name::of_part(file.name).map(|name| name.part()));
            parts.extend(Name::of_past_part(file.name).map(|name| name.past_part()));
            pasts.extend(Name::of_past(file.name).filter(Name::is_automatic));
        })?;
        // One that somebody named may be of a session that is still to be saved.
        pasts.retain(|past| found.iter().all(|(name, _)| name != past));
        for part in parts.into_iter().chain(pasts.iter().map(Name::past)) {
            match shelf.disk.remove_abandoned(part.as_str()) {
                Ok(true) => log::info!("{}: left by a process that ended while it saved, and removed", part.as_str()),
                Ok(false) => {}
                Err(e) => log::warn!("{}: left by another process, and cannot be removed: {e}", part.as_str()),
            }
        }
        found.sort_unstable_by_key(|&(_, changed_ns)| std::cmp::Reverse(changed_ns));
        for (name, used) in found {
            match shelf.read_head(name) {
                Ok((head, file_bytes)) if shelf.index.len() < MAX_SESSIONS => {
                    let (fingerprint, text_bytes) = (head.fingerprint.hash(), head.lengths.text);
                    shelf.index.push(Entry { name, file_bytes, text_bytes, used, fingerprint });
                }
                Ok(_) => {
                    log::warn!("session '{name}' is left aside: the folder has more than {MAX_SESSIONS}");
                    shelf.n_wrong += 1;
                }
                Err(why) => {
                    log::warn!("session '{name}' is left aside: {}", why.message());
                    shelf.n_wrong += 1;
                }
            }
        }
        Ok(shelf)
    }

    /// Sessions have pasts, which lie in this folder.
    pub fn with_pasts(mut self, pasts: Arc<dyn Pasts>) -> Self {
        self.pasts = Some(pasts);
        for at in 0..self.index.len() {
            self.index[at].file_bytes += self.past_bytes(&self.index[at].name);
        }
        self
    }

    /// Where the pasts of streams are left that are saved here.
    pub fn pasts(&self) -> Option<&Arc<dyn Pasts>> {
        self.pasts.as_ref()
    }

    /// What the past of a session takes, where it is known where that lies.
    pub fn past_bytes(&self, name: &Name) -> u64 {
        self.pasts.as_ref().and_then(|pasts| pasts.taken_bytes(name.past().as_str()).ok()).unwrap_or(0)
    }

    /// The names of all files that are called like sessions, whatever is in them, in order.
    pub fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        self.disk.list(&mut |file| names.extend(Name::of_file(file.name)))?;
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(names)
    }

    /// Those that there are, in no order, and their bytes.
    pub fn sessions(&self) -> impl ExactSizeIterator<Item = (Name, u64)> {
        self.index.iter().map(|entry| (entry.name, entry.file_bytes))
    }

    /// Bytes of all of them.
    pub fn used_bytes(&self) -> u64 {
        self.index.iter().map(|entry| entry.file_bytes).sum()
    }

    /// Files that are called like sessions and were left aside when the shelf was made.
    pub fn n_wrong(&self) -> usize {
        self.n_wrong
    }

    /// Whether there is one that a stream of this fingerprint can go on from.
    pub fn has(&self, name: &Name, fingerprint: &Fingerprint) -> bool {
        self.index.iter().any(|entry| entry.name == *name && entry.fingerprint == fingerprint.hash())
    }

    /// Of the streams that were saved by themselves, the one that has read the most of this text from its beginning, where that is more
    /// than `n_least` bytes. Gives the name and those bytes; they are compared when it is restored.
    pub fn longest_of(&self, text: &[u8], n_least: usize, fingerprint: &Fingerprint) -> Option<(Name, usize)> {
        let fits = |entry: &&Entry| entry.name.is_automatic() && entry.fingerprint == fingerprint.hash();
        let longest = self.index.iter().filter(fits).fold((None, n_least), |(found, n), entry| {
            let n_text = usize::try_from(entry.text_bytes).unwrap_or(usize::MAX);
            let is_longer = n_text > n && n_text <= text.len() && Name::of_text(&text[..n_text]) == entry.name;
            if is_longer { (Some(entry.name), n_text) } else { (found, n) }
        });
        longest.0.map(|name| (name, longest.1))
    }

    /// What a session is of. Reads its head.
    pub fn head(&mut self, name: &Name) -> Result<Head, Failure> {
        self.read_head(*name).map(|(head, _)| head).map_err(failure(name))
    }

    /// What stands under a name, so that it is told from whatever comes there later; `None`: nothing.
    pub fn mark(&mut self, name: &Name) -> Option<u64> {
        match self.read_head(*name) {
            Ok((head, _)) => Some(head.mark()),
            Err(Why::Missing) => None,
            // All that cannot be read is the same.
            Err(_) => Some(0),
        }
    }

    /// `mark` of what the latest save put under its name; `None`: it did not come so far.
    pub fn last_put(&self) -> Option<u64> {
        self.last_put
    }

    fn read_head(&mut self, name: Name) -> Result<(Head, u64), Why> {
        self.begin(name, HEAD_BYTES).map(|(head, file_bytes, _)| (head, file_bytes))
    }

    /// Opens a session and reads its head, and so many bytes at once.
    fn begin(&mut self, name: Name, at_once: usize) -> Result<(Head, u64, In<'_, D>), Why> {
        let (file, file_bytes) = self.disk.open(name.file().as_str())?;
        let at_once = at_once.min(self.buffer.len());
        let mut from = In::new(&self.disk, file, &mut self.buffer[..at_once]);
        let mut bytes = [0; HEAD_BYTES];
        if file_bytes < HEAD_BYTES as u64 {
            return Err(Why::Foreign);
        }
        from.take(&mut bytes)?;
        let (head, seed) = Head::parse(&bytes, file_bytes)?;
        from.set_seed(seed);
        Ok((head, file_bytes, from))
    }

    /// Saves a stream, in place of the session that had this name. Gives the bytes that it takes.
    pub fn save(&mut self, name: &Name, fingerprint: &Fingerprint, stream: Saved<'_>) -> Result<u64, Failure> {
        self.save_after(None, name, fingerprint, stream)
    }

    /// The same for a stream that was saved under another name before. What that was goes when the new one is there; until then both may
    /// have one past.
    fn save_after(
        &mut self,
        before: Option<&Name>,
        name: &Name,
        fingerprint: &Fingerprint,
        mut stream: Saved<'_>,
    ) -> Result<u64, Failure> {
        let head = stream.head(fingerprint, now_ns() / 1_000_000_000);
        let file_bytes = head.lengths.file_bytes().expect("what is in memory fits a file");
        let (past, part, past_before) = (name.past(), name.past_part(), before.map(Name::past));
        let names = PastNames { file: past.as_str(), part: part.as_str(), before: past_before.as_ref().map(FileName::as_str) };
        self.disk.alive();
        let written_bytes = file_bytes + stream.stream.cache.begin_past(&names);
        let written = self
            .check_space(name, file_bytes + stream.stream.cache.past_bytes(), written_bytes)
            .and_then(|()| self.write(name, &names, &head, file_bytes, &mut stream));
        stream.stream.cache.end_past(&names, written.is_ok());
        self.last_put = written.is_ok().then(|| head.mark());
        written.map_err(failure(name))?;
        let (used, text_bytes, file_bytes) = (self.next_use(), head.lengths.text, file_bytes + self.past_bytes(name));
        self.index.retain(|entry| entry.name != *name);
        self.index.push(Entry { name: *name, file_bytes, text_bytes, used, fingerprint: fingerprint.hash() });
        // Until this is done the disk may still have the old one under this name.
        self.disk.sync_folder().map_err(|e| failure(name)(Why::Disk(e)))?;
        if let Some(Err(failure)) = before.map(|before| self.remove(before)) {
            log::debug!("{failure}");
        }
        self.make_room(name);
        Ok(file_bytes)
    }

    /// The past comes last before the session gets its name: the one is seldom there without the other.
    fn write(&mut self, name: &Name, names: &PastNames, head: &Head, file_bytes: u64, stream: &mut Saved<'_>) -> Result<(), Why> {
        let part = name.part();
        let busy = |e: io::Error| if e.kind() == io::ErrorKind::WouldBlock { Why::Busy } else { Why::Disk(e) };
        let mut file = self.disk.create(part.as_str()).map_err(busy)?;
        let (bytes, seed) = head.bytes();
        let mut out = Out::new(&self.disk, &mut file, &mut self.buffer, seed);
        let written = out.put(&bytes).and_then(|()| stream.write(&mut out, file_bytes));
        let synced = written.and_then(|()| self.disk.sync(&mut file)).map_err(Why::Disk);
        let left = synced.and_then(|()| stream.stream.cache.leave_past(names).map_err(Why::of_past));
        let renamed = left.and_then(|()| self.disk.rename(part.as_str(), name.file().as_str()).map_err(Why::Disk));
        renamed.inspect_err(|_| {
            // What cannot be removed now is removed when a shelf is made the next time.
            let _ = self.disk.remove(part.as_str());
        })
    }

    /// Refuses what would not fit, with all gone that may go: a session of so many bytes, for which so many are written.
    fn check_space(&self, name: &Name, file_bytes: u64, written_bytes: u64) -> Result<(), Why> {
        let space_bytes = self.limits.space_bytes;
        let stays = |entry: &&Entry| entry.name != *name && !self.may_go(entry);
        let stay_bytes: u64 = self.index.iter().filter(stays).map(|entry| entry.file_bytes).sum();
        let left_bytes = space_bytes.saturating_sub(stay_bytes);
        let n_stay = self.index.iter().filter(stays).count();
        if file_bytes > left_bytes || n_stay >= MAX_SESSIONS {
            return Err(Why::TooLarge { bytes: file_bytes, left_bytes, space_bytes });
        }
        let space = self.disk.space().map_err(Why::Disk)?;
        let least = u128::from(space.total_bytes) * u128::from(self.limits.free_percent) / 100;
        if u128::from(space.free_bytes.saturating_sub(written_bytes)) < least {
            return Err(Why::DiskFull { free_bytes: space.free_bytes, total_bytes: space.total_bytes });
        }
        Ok(())
    }

    fn may_go(&self, entry: &Entry) -> bool {
        entry.name.is_automatic() || self.limits.may_remove_named
    }

    /// Removes sessions until they fit, but not the one that was just saved.
    fn make_room(&mut self, saved: &Name) {
        while self.used_bytes() > self.limits.space_bytes || self.index.len() > MAX_SESSIONS {
            let may_go = self.index.iter().filter(|entry| entry.name != *saved && self.may_go(entry));
            let Some(&Entry { name, .. }) = may_go.min_by_key(|entry| (!entry.name.is_automatic(), entry.used)) else { return };
            match self.remove_files(&name) {
                Err(why) if !matches!(why, Why::Missing) => log::warn!("session '{name}' cannot be removed: {}", why.message()),
                _ if name.is_automatic() => log::info!("session '{name}' was removed: the space for sessions is full"),
                _ => log::warn!("session '{name}' was removed: the space for sessions is full"),
            }
            self.index.retain(|entry| entry.name != name);
        }
    }

    /// Makes of a stream the one that was saved. Where it cannot be, and the stream was touched, it is cleared.
    pub fn restore(&mut self, name: &Name, fingerprint: &Fingerprint, stream: Restored<'_>) -> Result<Resumed, Failure> {
        self.restore_checked(name, fingerprint, stream, None)
    }

    /// `save` for a stream of an engine; with the logits of the engine's latest pass, if that was this stream's.
    pub fn save_stream(
        &mut self,
        name: &Name,
        fingerprint: &Fingerprint,
        stream: &mut Stream,
        logits: Option<&Engine>,
        (text, generator): (&[u8], u64),
    ) -> Result<u64, Failure> {
        let logits = logits.filter(|_| stream.n_past() > 0).map_or(&[][..], Engine::logits);
        self.save(name, fingerprint, Saved { stream: stream.state_mut(), text, logits, generator })
    }

    /// Saves by itself a stream that has read just this text, in place of what it was saved as before. Where it is saved, that has gone.
    pub fn save_text_stream(
        &mut self,
        before: Option<&Name>,
        fingerprint: &Fingerprint,
        stream: &mut Stream,
        (text, generator): (&[u8], u64),
    ) -> Result<u64, Failure> {
        self.save_text(before, fingerprint, Saved { stream: stream.state_mut(), text, logits: &[], generator })
    }

    /// The same for the parts of a stream.
    pub fn save_text(&mut self, before: Option<&Name>, fingerprint: &Fingerprint, stream: Saved<'_>) -> Result<u64, Failure> {
        let name = Name::of_text(stream.text);
        let before = before.filter(|before| **before != name);
        self.save_after(before, &name, fingerprint, stream)
    }

    /// `restore` for a stream of an engine, which is then as ready as it was, or cleared. The engine's logits are those that were saved.
    pub fn restore_stream(
        &mut self,
        name: &Name,
        fingerprint: &Fingerprint,
        engine: &mut Engine,
        stream: &mut Stream,
        text: Option<&mut [u8]>,
    ) -> Result<Resumed, Failure> {
        let (logits, scratch) = engine.restoring();
        let restored = self.restore(name, fingerprint, Restored { stream: stream.state_mut(), text, logits, scratch });
        resume(stream, restored)
    }

    /// The stream of an engine that has read just this text and was saved by itself.
    pub fn restore_text_stream(
        &mut self,
        text: &[u8],
        fingerprint: &Fingerprint,
        engine: &mut Engine,
        stream: &mut Stream,
    ) -> Result<Resumed, Failure> {
        let (logits, scratch) = engine.restoring();
        let restored = self.restore_text(text, fingerprint, Restored { stream: stream.state_mut(), text: None, logits, scratch });
        resume(stream, restored)
    }

    /// The stream that has read just this text and was saved by itself, `Name::of_text`.
    pub fn restore_text(&mut self, text: &[u8], fingerprint: &Fingerprint, stream: Restored<'_>) -> Result<Resumed, Failure> {
        self.restore_checked(&Name::of_text(text), fingerprint, stream, Some(text))
    }

    fn restore_checked(
        &mut self,
        name: &Name,
        fingerprint: &Fingerprint,
        mut stream: Restored<'_>,
        text: Option<&[u8]>,
    ) -> Result<Resumed, Failure> {
        let adopted = self
            .begin(*name, BUFFER_BYTES)
            .and_then(|(head, _, from)| stream.adopt(&head, fingerprint, name).map(|left| (head, left, from)));
        let (head, left, mut from) = match adopted {
            Ok(adopted) => adopted,
            Err(why) => {
                match why {
                    Why::Missing => self.index.retain(|entry| entry.name != *name),
                    Why::Past(_) if name.is_automatic() => {
                        self.index.iter_mut().filter(|entry| entry.name == *name).for_each(|entry| entry.fingerprint = ASIDE);
                    }
                    _ => {}
                }
                return Err(failure(name)(why));
            }
        };
        let resumed = stream.read(&head, left, text, &mut from).map_err(|why| {
            stream.clear();
            Failure { name: *name, why, was_cleared: true }
        })?;
        drop(from);
        let used = self.next_use();
        let (file_bytes, text_bytes) = (resumed.file_bytes + self.past_bytes(name), head.lengths.text);
        let entry = Entry { name: *name, file_bytes, text_bytes, used, fingerprint: fingerprint.hash() };
        self.index.retain(|entry| entry.name != *name);
        if self.index.len() < MAX_SESSIONS {
            self.index.push(entry);
        }
        // The order in which sessions go is no reason to fail.
        let _ = self.disk.touch(name.file().as_str());
        Ok(resumed)
    }

    /// Reads a whole session and checks its sums; what it is of.
    pub fn verify(&mut self, name: &Name) -> Result<Head, Failure> {
        let checked = self.begin(*name, BUFFER_BYTES).and_then(|(head, _, mut from)| verify(&head, &mut from).map(|()| head));
        checked.map_err(failure(name))
    }

    pub fn remove(&mut self, name: &Name) -> Result<(), Failure> {
        self.index.retain(|entry| entry.name != *name);
        let removed = self.remove_files(name).and_then(|()| self.disk.sync_folder().map_err(Why::Disk));
        removed.map_err(failure(name))
    }

    /// The file of its past first: without the session nobody asks for it again.
    fn remove_files(&self, name: &Name) -> Result<(), Why> {
        match self.disk.remove(name.past().as_str()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Why::Past(e)),
            _ => {}
        }
        Ok(self.disk.remove(name.file().as_str())?)
    }

    /// Whether a stream that has read just this text is worth saving by itself: the text is used for the second time, and there is no
    /// such session. Remembers that it was used.
    pub fn is_worth_saving(&mut self, text: &[u8], fingerprint: &Fingerprint) -> bool {
        if self.has(&Name::of_text(text), fingerprint) {
            return false;
        }
        let hash = xxhash_rust::xxh3::xxh3_128(text);
        if self.seen[..self.n_seen.min(N_SEEN)].contains(&hash) {
            return true;
        }
        self.seen[self.n_seen % N_SEEN] = hash;
        self.n_seen += 1;
        false
    }

    /// A time of use that is later than all before, also where the clock was set back.
    fn next_use(&self) -> u64 {
        let last = self.index.iter().map(|entry| entry.used).max().unwrap_or(0);
        now_ns().max(last.saturating_add(1))
    }
}

/// The stream goes on as it was restored, is cleared where it was touched, or stays as it was.
fn resume(stream: &mut Stream, restored: Result<Resumed, Failure>) -> Result<Resumed, Failure> {
    match &restored {
        Ok(resumed) => stream.resume(resumed.n_first, resumed.log_hash, resumed.is_exact),
        Err(failure) if failure.was_cleared => stream.clear(),
        Err(_) => {}
    }
    restored
}

fn failure(name: &Name) -> impl Fn(Why) -> Failure {
    let name = *name;
    move |why| Failure { name, why, was_cleared: false }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
