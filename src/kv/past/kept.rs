//! What a session keeps of the past beside its file, and how it finds in the file what it left there.
//!
//! The file is only ever written tile by tile, and the session knows the sum of each. So a tile that a
//! later run has overwritten, that a cut of the power tore or kept from the disk, or that was damaged
//! is told from the one that the session means, and counts as lost. Tiles that a session does not know
//! of are not looked at.
//!
//! Where a stream has one session (`run`, `chat`), its file is the session's. Where it has many, each session
//! has a file of its own, to which tiles are copied when it is saved: those alone that it lacks, if the stream
//! goes on from it and nobody else does; all of them, into a new file, if not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use xxhash_rust::xxh3::Xxh3;

use super::disk::{Disk, Pasts, SYNC_BYTES};
use super::files::{Files, Left, look};
use super::shape::{PIECES, TILE};
use super::{Counters, Past};
use crate::mem::arena::bytes_of_mut;

/// What becomes of the stream's file.
pub(super) enum Home {
    /// It goes with the process.
    Process,
    /// It is the session's.
    Session,
    /// It goes with the process, and sessions have files of their own.
    Folder(Arc<dyn Pasts>),
}

/// How the past of a stream gets where its session finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// All of it goes to a new file.
    Whole,
    /// What is new goes to the file of the session that the stream goes on from, which nobody else has,
    Same,
    /// and which has, beside its name, that of a file that is being written for the new session,
    Linked,
    /// and then the new session's.
    Renamed,
}

/// How the file of a session is called, how while it is written, and of which session it may be the file too: one that will be removed.
#[derive(Clone, Copy, Debug)]
pub struct PastNames<'a> {
    pub file: &'a str,
    pub part: &'a str,
    pub before: Option<&'a str>,
}

impl Past {
    /// One whose file is there for the next process.
    pub fn kept(self) -> Past {
        Past { home: Home::Session, ..self }
    }

    pub(in crate::kv) fn keep_in(&mut self, pasts: Arc<dyn Pasts>) {
        self.home = Home::Folder(pasts);
    }

    pub fn is_kept(&self) -> bool {
        !matches!(self.home, Home::Process)
    }

    /// The file that a session has left, where each has its own.
    pub(in crate::kv) fn open_left(&self, file: &str) -> io::Result<Option<Left>> {
        let Home::Folder(pasts) = &self.home else { return Ok(None) };
        let mut disk = pasts.open(file)?;
        look(&mut *disk, &self.shape);
        Ok(Some(Left { disk, name: file.to_owned() }))
    }

    /// Chooses how the past of a stream of `n_past` tokens is left, and gives what that takes of a disk at most, where sessions have files
    /// of their own. `end_leaving` follows, whatever came of it.
    pub(in crate::kv) fn begin_leaving(&mut self, n_past: u64, names: &PastNames) -> u64 {
        let Home::Folder(pasts) = &self.home else { return 0 };
        let pasts = pasts.clone();
        self.way = self.choose_way(&*pasts, names);
        let is_whole = self.way == Way::Whole;
        let slots = self.tiles(n_past).map(|tile| (tile % self.shape.n_tile as u64) as usize);
        let is_written = |slot: &usize| self.memory.is_there[*slot] == 1 && (is_whole || self.memory.is_left[*slot] == 0);
        self.shape.taken_bytes(slots.filter(is_written).count())
    }

    fn choose_way(&mut self, pasts: &dyn Pasts, names: &PastNames) -> Way {
        let Some(left) = &self.left else { return Way::Whole };
        let is_same = left.name == names.file;
        if !is_same && Some(left.name.as_str()) != names.before {
            return Way::Whole;
        }
        match left.disk.begin_change(&left.name) {
            Ok(true) if is_same => Way::Same,
            // Before anything is written: not every file system knows second names.
            Ok(true) => match pasts.link(&left.name, names.part) {
                Ok(()) => Way::Linked,
                Err(e) => {
                    if e.kind() != io::ErrorKind::AlreadyExists {
                        tell_no_links(&e);
                    }
                    self.end_change();
                    Way::Whole
                }
            },
            Ok(false) => Way::Whole,
            Err(e) => {
                self.give_up_left(&e);
                Way::Whole
            }
        }
    }

    /// Returns when all tiles are on the disk where a session finds them: before it is, for it relies on them.
    pub(in crate::kv) fn leave(&mut self, n_past: u64, names: &PastNames) -> io::Result<()> {
        let Home::Folder(pasts) = &self.home else { return self.disk.sync() };
        let pasts = pasts.clone();
        if self.way != Way::Whole
            && let Some(left) = self.left.take()
        {
            let written = self.copy_to(&*left.disk, n_past, false).and_then(|()| left.disk.sync());
            self.left = Some(left);
            written?;
            self.memory.is_left.copy_from_slice(&self.memory.is_there);
            if self.way == Way::Linked {
                pasts.rename(names.part, names.file)?;
                self.way = Way::Renamed;
                pasts.sync()?;
            }
            return Ok(());
        }
        let mut disk = pasts.create(names.part)?;
        let left = self
            .copy_to(&*disk, n_past, true)
            .and_then(|()| disk.sync())
            .and_then(|()| pasts.rename(names.part, names.file))
            .and_then(|()| pasts.sync());
        if let Err(e) = left {
            // What cannot be removed now is removed by the next process.
            let _ = pasts.remove(names.part);
            return Err(e);
        }
        look(&mut *disk, &self.shape);
        // Like one that was there and is being changed.
        (self.left, self.way) = (Some(Left { disk, name: names.file.to_owned() }), Way::Same);
        self.memory.is_left.copy_from_slice(&self.memory.is_there);
        Ok(())
    }

    /// The session has been saved, or not: others may have the file again.
    pub(in crate::kv) fn end_leaving(&mut self, names: &PastNames, is_saved: bool) {
        let (Home::Folder(pasts), way) = (&self.home, std::mem::replace(&mut self.way, Way::Whole)) else { return };
        match &mut self.left {
            Some(left) if way == Way::Renamed && is_saved => names.file.clone_into(&mut left.name),
            // There is no session of this name. What cannot be removed now is removed by the next process.
            Some(_) if way == Way::Renamed => drop(pasts.remove(names.file)),
            Some(_) if way == Way::Linked => drop(pasts.remove(names.part)),
            _ => {}
        }
        if way != Way::Whole {
            self.end_change();
        }
    }

    fn end_change(&mut self) {
        if let Some(Err(e)) = self.left.as_ref().map(|left| left.disk.end_change()) {
            self.give_up_left(&e);
        }
    }

    /// Others may change what was left, so that nothing of it can be relied on.
    fn give_up_left(&mut self, e: &io::Error) {
        self.left = None;
        let is_lost = |slot: &usize| self.memory.is_there[*slot] == 1 && self.memory.is_left[*slot] == 1;
        let n_lost = (0..self.shape.n_tile).filter(is_lost).count();
        for (is_there, is_left) in self.memory.is_there.iter_mut().zip(self.memory.is_left.iter_mut()) {
            *is_there &= 1 - *is_left;
            *is_left = 0;
        }
        Counters::add(&self.counters.n_lost, n_lost);
        log::warn!(
            "another process has taken the file of a session's past ({e}): the stream goes on without {} tokens of it",
            n_lost * TILE
        );
    }

    /// What of a disk the whole file of a session takes at most, where each has its own.
    pub(in crate::kv) fn left_bytes(&self) -> u64 {
        let n_tile = self.memory.is_there.iter().filter(|there| **there == 1).count();
        if matches!(self.home, Home::Folder(_)) { self.shape.taken_bytes(n_tile) } else { 0 }
    }

    /// Copies tiles of a stream of `n_past` tokens: all that are there, or those that the session's file has not. One that is not as it
    /// was written is lost.
    fn copy_to(&mut self, disk: &dyn Disk, n_past: u64, all: bool) -> io::Result<()> {
        let (mut n_held, mut n_lost, mut n_unsynced) = (0, 0, 0);
        for tile in self.tiles(n_past) {
            let slot = (tile % self.shape.n_tile as u64) as usize;
            if self.memory.is_there[slot] == 0 || !all && self.memory.is_left[slot] == 1 {
                continue;
            }
            n_held += 1;
            let mut failed = None;
            let sum = self.sum_of(tile, &mut |part, at| {
                if failed.is_none() {
                    failed = disk.write(part, at).err();
                }
            });
            if let Some(e) = failed {
                return Err(e);
            }
            if sum.ok() != Some(self.memory.sums[slot]) {
                self.memory.is_there[slot] = 0;
                n_lost += 1;
            }
            n_unsynced += self.shape.tile_bytes();
            if n_unsynced >= SYNC_BYTES {
                disk.sync()?;
                n_unsynced = 0;
            }
            self.beat();
        }
        self.tell_lost(n_lost, n_held);
        Ok(())
    }

    /// Those that the ring may have of a stream.
    fn tiles(&self, n_past: u64) -> std::ops::Range<u64> {
        let n_whole = n_past / TILE as u64;
        n_whole.saturating_sub(self.shape.n_tile as u64)..n_whole
    }

    /// Of a layer's part of a tile, whose sum goes on from that of the layer before. The number of the tile is in it: no tile stands
    /// in for the one that lay there before.
    pub(super) fn begin_sum(&self, own: usize, tile: u64) -> Xxh3 {
        let slot = (tile % self.shape.n_tile as u64) as usize;
        Xxh3::with_seed(if own == 0 { tile } else { self.memory.sums[slot] })
    }

    /// Goes over all that is known of the stream's past and is not in the file, as bytes that may be read or filled.
    pub(in crate::kv) fn visit<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        see(bytes_of_mut(&mut self.renumbered))?;
        see(bytes_of_mut(&mut self.memory.means))?;
        see(&mut self.memory.is_there)?;
        see(bytes_of_mut(&mut self.memory.sums))?;
        see(bytes_of_mut(&mut self.memory.before))?;
        see(&mut self.memory.rows)
    }

    /// Whether what was filled in can be of a stream of `n_past` tokens, the next of which has the position `next_pos`.
    pub(in crate::kv) fn is_sound(&self, n_past: u64, next_pos: u64) -> bool {
        let ([since, pos], n_whole) = (self.renumbered, n_past / TILE as u64);
        let is_slot = |(slot, &there): (usize, &u8)| there == 0 || there == 1 && (slot as u64) < n_whole;
        let n_piece = n_whole.min(self.shape.n_tile as u64) * PIECES as u64;
        let is_before = |of_head: &[u32]| {
            let (n, pieces) = (of_head[0] as usize, &of_head[1..]);
            n <= pieces.len() && pieces[..n].iter().all(|&piece| u64::from(piece) < n_piece)
        };
        since <= n_past
            && self.memory.before.chunks_exact(1 + self.shape.n_recall).all(is_before)
            && pos.checked_add(n_past - since) == Some(next_pos)
            && self.memory.means.iter().all(|x| x.is_finite())
            && self.memory.is_there.iter().enumerate().all(is_slot)
    }

    /// Reads all tiles of a stream of `n_past` tokens, of which `left` has those that are not in its own file, and counts as lost those
    /// that are not as they were left.
    pub(in crate::kv) fn find(&mut self, n_past: u64, left: Option<Left>) {
        if left.is_some() {
            self.memory.is_left.copy_from_slice(&self.memory.is_there);
        }
        self.left = left;
        let (mut n_held, mut n_lost) = (0, 0);
        for tile in self.tiles(n_past) {
            let slot = (tile % self.shape.n_tile as u64) as usize;
            if self.memory.is_there[slot] == 0 {
                continue;
            }
            n_held += 1;
            if self.sum_of(tile, &mut |_, _| ()).ok() != Some(self.memory.sums[slot]) {
                self.memory.is_there[slot] = 0;
                n_lost += 1;
            }
            self.beat();
        }
        self.tell_lost(n_lost, n_held);
    }

    fn beat(&self) {
        if let Home::Folder(pasts) = &self.home {
            pasts.alive();
        }
    }

    fn tell_lost(&self, n_lost: usize, n_held: usize) {
        if n_lost > 0 {
            Counters::add(&self.counters.n_lost, n_lost);
            log::warn!(
                "of the past in the file {} of {} tokens are not as they were left, overwritten by a later run or damaged: the stream \
                 goes on without them",
                n_lost * TILE,
                n_held * TILE
            );
        }
    }

    /// Of a tile as it is in the file. `see` sees it part by part, and where each lies.
    fn sum_of(&mut self, tile: u64, see: &mut impl FnMut(&[u8], u64)) -> io::Result<u64> {
        let (shape, slot) = (self.shape, (tile % self.shape.n_tile as u64) as usize);
        let files = Files {
            shape: &shape,
            own: &*self.disk,
            left: self.left.as_ref().map(|left| &*left.disk),
            is_there: &self.memory.is_there,
            is_left: &self.memory.is_left,
        };
        let room = self.memory.threads[0].chooser.room();
        let mut sum = tile;
        for own in 0..shape.n_layer() {
            let mut layer = Xxh3::with_seed(sum);
            let rows = (shape.rows_at(own, slot), shape.layer_bytes());
            let index = (0..shape.kv.each.n_head_kv).map(|h| (shape.index_at(own, h, slot), shape.index_tile_bytes()));
            for (at, n_bytes) in std::iter::once(rows).chain(index) {
                let at_once = room.len();
                for first in (0..n_bytes).step_by(at_once) {
                    let part = &mut room[..at_once.min(n_bytes - first)];
                    files.read(part, at + first as u64)?;
                    layer.update(part);
                    see(part, at + first as u64);
                }
            }
            sum = layer.digest();
        }
        Ok(sum)
    }
}

/// Said once: it is of the file system, and will not change.
fn tell_no_links(e: &io::Error) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Relaxed) {
        log::warn!(
            "a file in the folder of sessions cannot have a second name ({e}): each save of a conversation without a name writes its whole \
             past"
        );
    }
}
