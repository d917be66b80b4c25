//! What a session keeps of the past beside its file, and how it finds in the file what it left there.
//!
//! The file is only ever written tile by tile, and the session knows the sum of each. So a tile that a
//! later run has overwritten, that a cut of the power tore or kept from the disk, or that was damaged
//! is told from the one that the session means, and counts as lost. Tiles that a session does not know
//! of are not looked at.

use std::io;

use xxhash_rust::xxh3::Xxh3;

use super::shape::TILE;
use super::{Counters, Past};
use crate::mem::arena::bytes_of_mut;

impl Past {
    /// One whose file is there for the next process.
    pub fn kept(self) -> Past {
        Past { is_kept: true, ..self }
    }

    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Returns when all tiles are on the disk: before a session is, that relies on them.
    pub fn sync(&self) -> io::Result<()> {
        self.disk.sync()
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

    /// Reads all tiles of a stream of `n_past` tokens, and counts as lost those that are not as they were left.
    pub(in crate::kv) fn find(&mut self, n_past: u64) {
        let (n_tile, n_whole) = (self.shape.n_tile as u64, n_past / TILE as u64);
        let (mut n_held, mut n_lost) = (0, 0);
        for tile in n_whole.saturating_sub(n_tile)..n_whole {
            let slot = (tile % n_tile) as usize;
            if self.memory.is_there[slot] == 0 {
                continue;
            }
            n_held += 1;
            if self.sum_of(tile).ok() != Some(self.memory.sums[slot]) {
                self.memory.is_there[slot] = 0;
                n_lost += 1;
            }
        }
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

    /// Of a tile as it is in the file.
    fn sum_of(&mut self, tile: u64) -> io::Result<u64> {
        let (shape, slot) = (self.shape, (tile % self.shape.n_tile as u64) as usize);
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
                    self.disk.read(part, at + first as u64)?;
                    layer.update(part);
                }
            }
            sum = layer.digest();
        }
        Ok(sum)
    }
}
