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

use xxhash_rust::xxh3::Xxh3;

use super::disk::{Disk, Pasts};
use super::files::{Files, Left};
use super::shape::TILE;
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
        Ok(Some(Left { disk: pasts.open(file)?, name: file.to_owned() }))
    }

    /// Returns when all tiles are on the disk where a session finds them: before it is, for it relies on them.
    pub(in crate::kv) fn leave(&mut self, n_past: u64, names: &PastNames) -> io::Result<()> {
        let Home::Folder(pasts) = &self.home else { return self.disk.sync() };
        let pasts = pasts.clone();
        if self.leave_new(n_past, &*pasts, names)? {
            return Ok(());
        }
        let disk = pasts.create(names.part)?;
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
        disk.end_change();
        self.left = Some(Left { disk, name: names.file.to_owned() });
        self.memory.is_left.copy_from_slice(&self.memory.is_there);
        Ok(())
    }

    /// Leaves what is new since the stream was saved or restored in the file of then. False, and nothing has happened: that is another
    /// session's, or others read it, or it has been removed.
    fn leave_new(&mut self, n_past: u64, pasts: &dyn Pasts, names: &PastNames) -> io::Result<bool> {
        let Some(left) = self.left.take_if(|left| {
            let is_meant = left.name == names.file || Some(left.name.as_str()) == names.before;
            is_meant && left.disk.begin_change()
        }) else {
            return Ok(false);
        };
        let written = self.copy_to(&*left.disk, n_past, false).and_then(|()| left.disk.sync());
        left.disk.end_change();
        let Left { disk, mut name } = left;
        // A file system that knows no second name of a file gets a second file.
        let linked = written.map(|()| name == names.file || link(pasts, &name, names.file).is_ok());
        if matches!(linked, Ok(true)) {
            names.file.clone_into(&mut name);
        }
        if linked.is_ok() {
            self.memory.is_left.copy_from_slice(&self.memory.is_there);
        }
        self.left = Some(Left { disk, name });
        linked
    }

    /// What of a disk the file of a session takes at most, where each has its own.
    pub(in crate::kv) fn left_bytes(&self) -> u64 {
        let n_tile = self.memory.is_there.iter().filter(|there| **there == 1).count();
        if matches!(self.home, Home::Folder(_)) { self.shape.taken_bytes(n_tile) } else { 0 }
    }

    /// Copies tiles of a stream of `n_past` tokens: all that are there, or those that the session's file has not. One that is not as it
    /// was written is lost.
    fn copy_to(&mut self, disk: &dyn Disk, n_past: u64, all: bool) -> io::Result<()> {
        let (mut n_held, mut n_lost) = (0, 0);
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
        see(&mut self.memory.rows)
    }

    /// Whether what was filled in can be of a stream of `n_past` tokens, the next of which has the position `next_pos`.
    pub(in crate::kv) fn is_sound(&self, n_past: u64, next_pos: u64) -> bool {
        let ([since, pos], n_whole) = (self.renumbered, n_past / TILE as u64);
        let is_slot = |(slot, &there): (usize, &u8)| there == 0 || there == 1 && (slot as u64) < n_whole;
        since <= n_past
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
        }
        self.tell_lost(n_lost, n_held);
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

fn link(pasts: &dyn Pasts, from: &str, to: &str) -> io::Result<()> {
    // What a process left that ended between the past and its session.
    match pasts.remove(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    pasts.link(from, to)?;
    pasts.sync()
}
