//! A disk in memory that remembers what was done to it: it can be full, or fail, at any operation, and shows what a power cut
//! after any of them may leave behind. (SQLite tests itself so, on a file system that holds writes back and drops or scrambles
//! them.)
//!
//! What a cut may leave: of a file what was synced, and of what was not any part, in any order, torn at sectors or pages, with
//! nothing or with old bytes where something is missing; of the names of the folder what was synced, and any of the changes
//! since.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use lowkey::kv::past::disk::{Disk as PastDisk, Pasts};
use lowkey::session_file::disk::{Disk, Found, Space};

#[derive(Clone, Debug)]
enum Op {
    Create {
        name: String,
        file: usize,
    },
    Write {
        file: usize,
        bytes: Vec<u8>,
    },
    /// Not behind what was written, but from this byte on.
    Place {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Sync {
        file: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Link {
        from: String,
        to: String,
    },
    SyncFolder,
    Remove {
        name: String,
    },
}

#[derive(Clone, Default)]
struct State {
    files: Vec<Vec<u8>>,
    /// Names and the files that they are of.
    names: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Inside {
    now: State,
    /// What was there when the recording began, all of it on the disk.
    base: State,
    record: Vec<Op>,
    /// Changes that were asked for, and from which on they fail.
    n_asked: usize,
    fail_at: Option<usize>,
    free_bytes: u64,
    has_no_links: bool,
    is_snatched: bool,
    /// Signs of life.
    n_beats: usize,
}

/// Clones are of the same disk.
#[derive(Clone)]
pub struct TestDisk(Arc<Mutex<Inside>>);

/// As much as the disk has room for.
const TOTAL_BYTES: u64 = 1 << 30;

impl Default for TestDisk {
    fn default() -> Self {
        TestDisk(Arc::new(Mutex::new(Inside { free_bytes: TOTAL_BYTES, ..Inside::default() })))
    }
}

impl TestDisk {
    fn of(now: State) -> TestDisk {
        TestDisk(Arc::new(Mutex::new(Inside { base: now.clone(), now, free_bytes: TOTAL_BYTES, ..Inside::default() })))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().expect("nobody panicked")
    }

    /// Bytes that were placed in files since the recording began.
    pub fn n_placed(&self) -> usize {
        self.inside().record.iter().map(|op| if let Op::Place { bytes, .. } = op { bytes.len() } else { 0 }).sum()
    }

    /// The most bytes that were written since the recording began and were not on the disk at some time.
    pub fn most_unsynced(&self) -> usize {
        let bytes = |op: &Op| match op {
            Op::Write { bytes, .. } | Op::Place { bytes, .. } => bytes.len(),
            _ => 0,
        };
        let n_after = |n: usize, op: &Op| if matches!(op, Op::Sync { .. }) { 0 } else { n + bytes(op) };
        let ns = self.inside().record.iter().scan(0, |n, op| (*n = n_after(*n, op), Some(*n)).1).max();
        ns.unwrap_or(0)
    }

    /// How often it was told that what takes long goes on.
    pub fn n_beats(&self) -> usize {
        self.inside().n_beats
    }

    /// No file has more than one name.
    pub fn forbid_links(&self) {
        self.inside().has_no_links = true;
    }

    /// From now on others change the files of pasts that are asked for.
    pub fn snatch(&self) {
        self.inside().is_snatched = true;
    }

    /// What is there is on the disk; what follows is recorded.
    pub fn record(&self) {
        let mut inside = self.inside();
        let now = inside.now.clone();
        (inside.base, inside.record, inside.n_asked) = (now, Vec::new(), 0);
    }

    /// Operations that were recorded.
    pub fn n_recorded(&self) -> usize {
        self.inside().record.len()
    }

    /// The change of this number, counted from the last `record`, fails, and so do those behind it, but not removing. `None`: none does.
    pub fn fail_at(&self, n: Option<usize>) {
        self.inside().fail_at = n;
    }

    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.inside().free_bytes = free_bytes;
    }

    pub fn names(&self) -> Vec<String> {
        self.inside().now.names.keys().cloned().collect()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let inside = self.inside();
        inside.now.files[inside.now.names[name]].clone()
    }

    /// Puts a file there, at once.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inside = self.inside();
        let file = inside.now.files.len();
        inside.now.files.push(bytes);
        inside.now.names.insert(name.to_owned(), file);
    }

    fn change(&self, op: Op) -> io::Result<()> {
        let mut inside = self.inside();
        let n = inside.n_asked;
        inside.n_asked += 1;
        if inside.fail_at.is_some_and(|at| n >= at) && !matches!(op, Op::Remove { .. }) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inside.now.apply(&op);
        inside.record.push(op);
        Ok(())
    }

    /// Calls `each` for every disk that a power cut after the first `n` recorded operations may leave. `lies`: the disk says that it has
    /// synced and has not.
    pub fn after_cut(&self, n: usize, lies: bool, each: &mut dyn FnMut(TestDisk)) {
        let (base, record) = {
            let inside = self.inside();
            (inside.base.clone(), inside.record[..n].to_vec())
        };
        let Cut { synced, files, writes, places, names } = cut(&base, &record, lies);
        let unsynced: Vec<usize> =
            (0..files.len()).filter(|&file| !(writes[file].is_empty() && places[file].is_empty())).collect();
        assert!(unsynced.len() <= 1, "more than one file is written at once: try their variants in pairs");
        let old: Vec<u8> = base.names.values().flat_map(|&file| base.files[file].clone()).collect();
        let variants = match unsynced.first() {
            Some(&file) if writes[file].is_empty() => placed(&files[file], &places[file]),
            Some(&file) => variants(&files[file], &writes[file], &old),
            None => vec![Vec::new()],
        };
        for applied in 0..1usize << names.len() {
            let mut left = State { files: files.clone(), names: synced.clone() };
            names.iter().enumerate().filter(|(i, _)| applied >> i & 1 == 1).for_each(|(_, change)| change.apply(&mut left.names));
            let is_seen = unsynced.first().is_some_and(|file| left.names.values().any(|named| named == file));
            // What has no name is lost, whatever is in it.
            for variant in variants.iter().take(if is_seen { variants.len() } else { 1 }) {
                let mut left = left.clone();
                if let Some(&file) = unsynced.first() {
                    left.files[file] = variant.clone();
                }
                each(TestDisk::of(left));
            }
        }
    }
}

impl State {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { name, file } => {
                self.files.resize(self.files.len().max(file + 1), Vec::new());
                self.names.insert(name.clone(), *file);
            }
            Op::Write { file, bytes } => self.files[*file].extend(bytes),
            Op::Place { file, at, bytes } => place(&mut self.files[*file], *at, bytes),
            Op::Rename { from, to } => {
                let file = self.names.remove(from).expect("a file to rename");
                self.names.insert(to.clone(), file);
            }
            Op::Link { from, to } => {
                self.names.insert(to.clone(), self.names[from]);
            }
            Op::Remove { name } => {
                self.names.remove(name);
            }
            Op::Sync { .. } | Op::SyncFolder => {}
        }
    }
}

/// A change of names that may have reached the disk or not.
#[derive(Clone)]
struct Names {
    gone: Option<String>,
    new: Option<(String, usize)>,
}

impl Names {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(name) = &self.gone {
            names.remove(name);
        }
        names.extend(self.new.clone());
    }
}

/// What is certain after some operations, and what is not.
struct Cut {
    synced: BTreeMap<String, usize>,
    files: Vec<Vec<u8>>,
    /// Of each file, in order.
    writes: Vec<Vec<Vec<u8>>>,
    places: Vec<Vec<(usize, Vec<u8>)>>,
    names: Vec<Names>,
}

fn cut(base: &State, record: &[Op], lies: bool) -> Cut {
    let mut seen = base.clone();
    let mut cut = Cut {
        synced: base.names.clone(),
        files: base.files.clone(),
        writes: vec![Vec::new(); base.files.len()],
        places: vec![Vec::new(); base.files.len()],
        names: Vec::new(),
    };
    for op in record {
        match op {
            Op::Create { name, file } => {
                cut.files.resize(cut.files.len().max(file + 1), Vec::new());
                cut.writes.resize(cut.files.len(), Vec::new());
                cut.places.resize(cut.files.len(), Vec::new());
                cut.names.push(Names { gone: None, new: Some((name.clone(), *file)) });
            }
            Op::Write { file, bytes } => cut.writes[*file].push(bytes.clone()),
            Op::Place { file, at, bytes } => cut.places[*file].push((*at, bytes.clone())),
            Op::Sync { file } if !lies => {
                let written = std::mem::take(&mut cut.writes[*file]);
                cut.files[*file].extend(written.concat());
                std::mem::take(&mut cut.places[*file]).iter().for_each(|(at, bytes)| place(&mut cut.files[*file], *at, bytes));
            }
            Op::Rename { from, to } => {
                cut.names.push(Names { gone: Some(from.clone()), new: Some((to.clone(), seen.names[from])) });
            }
            Op::Link { from, to } => cut.names.push(Names { gone: None, new: Some((to.clone(), seen.names[from])) }),
            Op::Remove { name } => cut.names.push(Names { gone: Some(name.clone()), new: None }),
            Op::SyncFolder if !lies => {
                let changes = std::mem::take(&mut cut.names);
                changes.iter().for_each(|change| change.apply(&mut cut.synced));
            }
            Op::Sync { .. } | Op::SyncFolder => {}
        }
        seen.apply(op);
    }
    cut
}

fn place(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What may be in a file of which `synced` is on the disk and `places` may be: the first of them, all but one, all with one torn.
fn placed(synced: &[u8], places: &[(usize, Vec<u8>)]) -> Vec<Vec<u8>> {
    let with = |is_there: &dyn Fn(usize, usize) -> bool| {
        let mut file = synced.to_vec();
        for (i, (at, bytes)) in places.iter().enumerate() {
            bytes
                .chunks(512)
                .enumerate()
                .filter(|(j, _)| is_there(i, *j))
                .for_each(|(j, part)| place(&mut file, at + j * 512, part));
        }
        file
    };
    let mut found = Vec::new();
    for n in 0..=places.len() {
        found.push(with(&|i, _| i < n));
        found.push(with(&|i, _| i != n));
        found.push(with(&|i, j| i < n || i == n && j % 2 == 0));
        found.push(with(&|i, j| i != n || j % 2 == 1));
    }
    found.sort();
    found.dedup();
    found
}

/// What may be in a file of which `synced` is on the disk and `writes` may be, where `old` bytes lay before.
fn variants(synced: &[u8], writes: &[Vec<u8>], old: &[u8]) -> Vec<Vec<u8>> {
    let whole = [synced, &writes.concat()].concat();
    let ends: Vec<usize> = writes.iter().scan(synced.len(), |end, write| (*end += write.len(), Some(*end)).1).collect();
    let starts = || std::iter::once(synced.len()).chain(ends.iter().copied());
    // Nothing, all, and everything up to the end of a write.
    let mut found: Vec<Vec<u8>> = starts().map(|end| whole[..end].to_vec()).collect();
    let without = |lost: std::ops::Range<usize>, filled: bool| {
        let mut bytes = whole.clone();
        for (i, byte) in bytes[lost.clone()].iter_mut().enumerate() {
            *byte = if filled { old.get(lost.start + i).copied().unwrap_or(0) } else { 0 };
        }
        bytes
    };
    for (start, &end) in starts().zip(&ends) {
        for unit in [512, 4096] {
            // Torn: the beginning of the write is there, its end is not, nor anything behind it; or only its end is there.
            let inside = [start + unit, (start + end) / 2 / unit * unit, (end - 1) / unit * unit];
            for tear in inside.into_iter().filter(|tear| (start + 1..end).contains(tear)) {
                found.push(whole[..tear].to_vec());
                found.extend([false, true].map(|filled| without(tear..end, filled)));
                found.extend([false, true].map(|filled| without(start..tear, filled)));
            }
        }
        // Reordered: all others are there.
        found.extend([false, true].map(|filled| without(start..end, filled)));
    }
    // As long as it should be, and nothing in it.
    found.extend([false, true].map(|filled| without(synced.len()..whole.len(), filled)));
    found.sort();
    found.dedup();
    found
}

pub struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Disk for &TestDisk {
    type Writer = usize;
    type Reader = Reader;

    fn create(&self, name: &str) -> io::Result<usize> {
        let file = self.inside().now.files.len();
        self.change(Op::Create { name: name.to_owned(), file }).map(|()| file)
    }

    fn write(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        self.change(Op::Write { file: *file, bytes: bytes.to_vec() })
    }

    fn sync(&self, file: &mut usize) -> io::Result<()> {
        self.change(Op::Sync { file: *file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Op::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.change(Op::SyncFolder)
    }

    fn open(&self, name: &str) -> io::Result<(Reader, u64)> {
        let inside = self.inside();
        let file = *inside.now.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        let bytes = inside.now.files[file].clone();
        let len = bytes.len() as u64;
        Ok((Reader { bytes, at: 0 }, len))
    }

    fn read(&self, file: &mut Reader, into: &mut [u8]) -> io::Result<usize> {
        // Never all that is asked for, where that is much.
        let n = (file.bytes.len() - file.at).min(into.len()).min(1500);
        into[..n].copy_from_slice(&file.bytes[file.at..][..n]);
        file.at += n;
        Ok(n)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.inside().now.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(Op::Remove { name: name.to_owned() })
    }

    fn remove_abandoned(&self, name: &str) -> io::Result<bool> {
        self.remove(name).map(|()| true)
    }

    fn touch(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, each: &mut dyn FnMut(Found<'_>)) -> io::Result<()> {
        for (name, &file) in &self.inside().now.names {
            each(Found { name, changed_ns: file as u64 });
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { free_bytes: self.inside().free_bytes, total_bytes: TOTAL_BYTES })
    }

    fn alive(&self) {
        self.inside().n_beats += 1;
    }
}

/// A file of a past.
struct Placing {
    disk: TestDisk,
    file: usize,
}

impl PastDisk for Placing {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.disk.change(Op::Place { file: self.file, at: at as usize, bytes: bytes.to_vec() })
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let (inside, at) = (self.disk.inside(), at as usize);
        let from = inside.now.files[self.file].get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(Op::Sync { file: self.file })
    }

    fn begin_change(&self, name: &str) -> io::Result<bool> {
        let inside = self.disk.inside();
        if inside.is_snatched {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut names = inside.now.names.iter().filter(|(_, file)| **file == self.file);
        Ok(names.next().is_some_and(|(found, _)| found == name) && names.next().is_none())
    }
}

impl Pasts for TestDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn PastDisk>> {
        let file = *self.inside().now.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Placing { disk: self.clone(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PastDisk>> {
        let file = (&self).create(name)?;
        Ok(Box::new(Placing { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (&self).rename(from, to)
    }

    fn alive(&self) {
        self.inside().n_beats += 1;
    }

    fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let inside = self.inside();
        let (has_no_links, is_there) = (inside.has_no_links, inside.now.names.contains_key(to));
        drop(inside);
        if has_no_links || is_there {
            return Err(if is_there { io::ErrorKind::AlreadyExists } else { io::ErrorKind::PermissionDenied }.into());
        }
        self.change(Op::Link { from: from.to_owned(), to: to.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        (&self).sync_folder()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        (&self).remove(name)
    }

    fn taken_bytes(&self, name: &str) -> io::Result<u64> {
        let inside = self.inside();
        let file = inside.now.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(inside.now.files[*file].len() as u64)
    }
}
