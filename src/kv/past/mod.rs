//! The past as a file. Every key (before RoPE) and value that goes through the cache is written to
//! a file, a ring of fixed size; an index of two-bit keys in the same file knows
//! what lies where. At each step every KV head finds in the index the few pieces of its past that its
//! queries ask for and that the arena has lost, and they are attended to beside the arena's entries.
//!
//! ```text
//! shape    what lies where in the file           disk     what is asked of a disk, and the files there are
//! index    keys of two bits, queries for them    recall   what a head fetches: scan, choose
//! angles   how positions turn keys               fetch    and what it finds there: read, turn, attend
//! files    the stream's, and the session's       kept     what a session keeps of it, and where
//! mod      the ring: what enters, what is there, what went wrong
//! ```
//!
//! Private memory is fixed; all else is the page cache's, which the system may drop. The file is written by `pwrite` and read where
//! it is mapped; a page that cannot be read is an error, and not the end of the process (`mem::view`).
//! What is in the file has the bits of its first rounding: it does not drift.

mod angles;
pub mod disk;
mod fetch;
mod files;
pub mod index;
mod kept;
mod recall;
pub mod shape;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::Rotary;
use super::layout::{AttnLayer, Head, KvShape, LayerShape};
use super::types::KvType;
use crate::error::{Error, Result, Setting, message};
use crate::kernels::{Kernels, MAX_HEAD_DIM};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;
use crate::units::Bytes;

use angles::Angles;
use disk::{Disk, PastFile};
use fetch::{Fetcher, merge_parts};
pub use files::Left;
use files::{Files, look};
pub use kept::PastNames;
use kept::{Home, Way};
pub use recall::Asking;
use recall::{Choice, Chooser, World};
pub use shape::PastShape;
use shape::{MAX_RECALL, TILE};

/// `--recall` where the user names none: 128 tokens.
pub const DEFAULT_RECALL: usize = 32;
/// The basis of the index, whatever that of the rows is.
const TURNED: KvType = KvType::Q4H;

/// What the user asks of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastParams {
    /// The folder of the file, and its name where a session keeps it.
    pub folder: PathBuf,
    pub name: Option<String>,
    /// The file, at most.
    pub space_bytes: u64,
    /// Pieces of four tokens that each KV head fetches at a step.
    pub n_recall: usize,
}

impl PastParams {
    /// What the past of this cache takes, or why it cannot have one.
    pub fn fit(&self, shape: PastShape, n_slot: usize) -> Result<PastShape> {
        if self.n_recall == 0 || self.n_recall > MAX_RECALL {
            return Err(Error::usage(Setting::Recall, format!("{} pieces; give 1 to {MAX_RECALL}", self.n_recall)));
        }
        if shape.n_layer() == 0 {
            return Err(Error::usage(
                Setting::Past,
                "all layers of this model see the latest tokens only, and hold them all: there is no past to fetch; leave it out",
            ));
        }
        let (k_type, head_dim) = (shape.kv.k_type, shape.kv.each.head_dim);
        if shape.k_bytes() > KvType::F16.row().row_bytes(head_dim) {
            let what =
                format!("keys of {head_dim} elements take more in {} than in f16: choose another type of keys", k_type.name());
            return Err(Error::usage(Setting::Past, what));
        }
        let shape = PastShape { n_recall: self.n_recall, n_tile: shape.tiles_within(self.space_bytes), ..shape };
        let least = n_slot + shape.kv.n_batch + TILE;
        if shape.n_tok() < least {
            let enough = shape.bytes_for(least);
            return Err(Error::budget(
                Setting::PastSpace,
                message![
                    format!(
                        "{} holds {} tokens of {} bytes, fewer than the arena's {n_slot} and a batch: give at least {enough} bytes, or lower ",
                        Bytes(self.space_bytes),
                        shape.n_tok(),
                        shape.tile_bytes() / TILE,
                    ),
                    Setting::KvBudget,
                ],
            ));
        }
        Ok(shape)
    }
}

/// What was seen of the past of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PastCounts {
    /// Written to the file, and read of its rows; the index aside, which is read whole at every
    /// step.
    pub written_bytes: u64,
    pub read_bytes: u64,
    /// Pieces that were fetched.
    pub n_pieces: u64,
    /// Of steps of one token: pieces that were fetched, and those of them that the step before had
    /// fetched too.
    pub n_single: u64,
    pub n_again: u64,
    /// Tiles that could not be written, and reads that failed: what is not seen any more.
    pub n_lost: u64,
    pub n_unread: u64,
}

#[derive(Default)]
struct Counters {
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
    n_pieces: AtomicU64,
    n_single: AtomicU64,
    n_again: AtomicU64,
    n_lost: AtomicU64,
    n_unread: AtomicU64,
    has_warned: AtomicBool,
}

impl Counters {
    fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }

    /// Counts what went wrong, and says so the first time.
    fn failed(&self, counter: &AtomicU64, doing: &str, error: &io::Error) {
        counter.fetch_add(1, Relaxed);
        if !self.has_warned.swap(true, Relaxed) {
            log::warn!("the file of the past could not be {doing} ({error}): the stream goes on without that part of its past");
        }
    }
}

/// Stores a key of a head, less a centre in the basis of its type or nothing, in a row.
pub(super) type Round<'a> = &'a (dyn Fn(Head, &[f32], &[f32], &mut [u8]) + Sync);

/// The past of one stream.
pub struct Past {
    shape: PastShape,
    disk: Box<dyn Disk>,
    memory: Memory,
    /// The token that was next at the latest renumbering, and the position it was given.
    renumbered: [u64; 2],
    counters: Counters,
    /// What becomes of the file, and the file of a session that the stream goes on from.
    home: Home,
    left: Option<Left>,
    /// While it is saved: how it is left.
    way: Way,
}

impl Past {
    /// Takes the memory that `carve` measures, and makes the file in the folder.
    pub fn open(shape: PastShape, params: &PastParams, rotary: &impl Rotary) -> Result<Past> {
        let folder = &params.folder;
        let file = match &params.name {
            Some(name) => PastFile::kept(folder, name, shape.file_bytes()),
            None => PastFile::scratch(folder),
        };
        let file = file.map_err(|e| {
            let what = match &params.name {
                Some(name) if e.kind() == io::ErrorKind::WouldBlock => {
                    format!("another process has {} of {}: wait for it, or give another session", name, folder.display())
                }
                Some(name) => {
                    format!("{name} cannot be used in {} ({e}): name a folder that may be written to", folder.display())
                }
                None => format!("no file can be made in {} ({e}): name a folder that may be written to", folder.display()),
            };
            Error::usage(Setting::Past, what)
        })?;
        let free = file.free_bytes().unwrap_or(u64::MAX);
        if free < shape.file_bytes() {
            return Err(Error::budget(
                Setting::PastSpace,
                format!(
                    "the file takes {}, and {} has {} left: give less",
                    Bytes(shape.file_bytes()),
                    folder.display(),
                    Bytes(free)
                ),
            ));
        }
        if file.is_in_memory() {
            log::warn!("{} lies in memory: what the past takes there is not in the plan", folder.display());
        }
        let past = Past::on(shape, Box::new(file), rotary)?;
        Ok(if params.name.is_some() { past.kept() } else { past })
    }

    /// The same on any disk.
    pub fn on(shape: PastShape, mut disk: Box<dyn Disk>, rotary: &impl Rotary) -> Result<Past> {
        look(&mut *disk, &shape);
        let mut memory = Arena::fill(|arena| Memory::carve(arena, &shape))
            .map_err(|e| Error::budget(Setting::Memory, format!("the system did not give what the past needs: {e}")))?;
        for layer in shape.kv.layers() {
            memory.magnitudes[layer.0] = rotary.magnitude(layer).unwrap_or(1.0);
        }
        if let Some(turning) = shape.kv.layers().find(|&layer| !shape.kv.is_ring(layer) && rotary.magnitude(layer).is_some()) {
            memory.angles.fill(turning, rotary);
        }
        let (counters, home, way) = (Counters::default(), Home::Process, Way::Whole);
        Ok(Past { shape, disk, memory, renumbered: [0; 2], counters, home, left: None, way })
    }

    pub fn shape(&self) -> &PastShape {
        &self.shape
    }

    pub fn counts(&self) -> PastCounts {
        let c = &self.counters;
        let [written_bytes, read_bytes, n_pieces, n_single, n_again, n_lost, n_unread] =
            [&c.written_bytes, &c.read_bytes, &c.n_pieces, &c.n_single, &c.n_again, &c.n_lost, &c.n_unread]
                .map(|n| n.load(Relaxed));
        PastCounts { written_bytes, read_bytes, n_pieces, n_single, n_again, n_lost, n_unread }
    }

    /// Forgets the stream; what was counted stays.
    pub(super) fn clear(&mut self) {
        self.memory.is_there.fill(0);
        self.memory.is_left.fill(0);
        self.memory.before.fill(0);
        self.renumbered = [0; 2];
        self.left = None;
    }

    /// The token that comes next, the `n_past`-th, got the position `pos`, and those in the arena
    /// the positions before it.
    pub(super) fn renumber(&mut self, n_past: u64, pos: u32) {
        self.renumbered = [n_past, pos.into()];
    }

    /// How far before position 0 what is fetched may stand: the trained context must hold that too.
    pub(super) fn reach(&self) -> usize {
        self.shape.n_fetched().min(self.shape.kv.n_ctx / 16)
    }

    /// Takes in keys before RoPE and values of one layer, `[n_tok][n_head_kv * head_dim]`, of the
    /// tokens from the `n_past`-th on. A tile that is full goes to the file. `round` stores a key
    /// of a head, less a centre that may be empty, in a row.
    pub(super) fn append(&mut self, layer: AttnLayer, n_past: u64, pool: &mut Pool, round: Round, k: &[f32], v: &[f32]) {
        let Some(own) = self.shape.layer(layer) else { return };
        let LayerShape { n_head_kv, head_dim } = self.shape.kv.each;
        let n_tok = k.len() / (n_head_kv * head_dim);
        let mut done = 0;
        while done < n_tok {
            let first = n_past + done as u64;
            let (tile, at) = (first / TILE as u64, (first % TILE as u64) as usize);
            let n = (TILE - at).min(n_tok - done);
            let new = done * n_head_kv * head_dim..(done + n) * n_head_kv * head_dim;
            self.put_rows((layer, own), (tile, at), pool, round, &k[new.clone()], &v[new]);
            done += n;
            if at + n == TILE {
                self.complete(own, tile);
            }
        }
    }

    /// Rounds tokens into the places from `at` on of the tile that is being filled.
    fn put_rows(
        &mut self,
        (layer, own): (AttnLayer, usize),
        (tile, at): (u64, usize),
        pool: &mut Pool,
        round: Round,
        k: &[f32],
        v: &[f32],
    ) {
        let (shape, magnitude, means) = (self.shape, self.memory.magnitudes[layer.0], &self.memory.means);
        let (LayerShape { n_head_kv, head_dim }, KvShape { k_type, v_type, .. }) = (shape.kv.each, shape.kv);
        let n = k.len() / (n_head_kv * head_dim);
        let heads = &mut self.memory.rows[own * shape.layer_bytes()..][..n_head_kv * shape.head_bytes()];
        let job = |h: usize, rows: &mut [u8]| {
            let centre = if tile > 0 && k_type.is_turned() { mean(means, &shape, own, h) } else { &[] };
            let mut room = [0f32; MAX_HEAD_DIM];
            for t in 0..n {
                let from = (t * n_head_kv + h) * head_dim..(t * n_head_kv + h + 1) * head_dim;
                let key = &mut room[..head_dim];
                key.iter_mut().zip(&k[from.clone()]).for_each(|(key, k)| *key = k * magnitude);
                let (key_at, value_at) = shape.row_in_head(at + t);
                round(Head(h), centre, key, &mut rows[key_at..][..shape.k_bytes()]);
                v_type.store(&v[from], &mut rows[value_at..][..shape.v_bytes()]);
            }
        };
        match n {
            1 => heads.chunks_exact_mut(shape.head_bytes()).enumerate().for_each(|(h, rows)| job(h, rows)),
            _ => pool.for_chunks(heads, shape.head_bytes(), job),
        }
    }

    /// Makes the index of a tile that is full, and writes both.
    fn complete(&mut self, own: usize, tile: u64) {
        let (shape, slot) = (self.shape, (tile % self.shape.n_tile as u64) as usize);
        if own == 0 {
            (self.memory.is_there[slot], self.memory.is_left[slot]) = (1, 0);
        } else if self.memory.is_there[slot] == 0 {
            // A layer before this one could not write it.
            return;
        }
        let rows = &self.memory.rows[own * shape.layer_bytes()..][..shape.layer_bytes()];
        if tile == 0 {
            learn_means(&shape, own, rows, &mut self.memory.means);
        }
        let mut sum = self.begin_sum(own, tile);
        sum.update(rows);
        let mut written = self.disk.write(rows, shape.rows_at(own, slot));
        for h in 0..shape.kv.each.n_head_kv {
            let (mean, mut key) = (mean(&self.memory.means, &shape, own, h), [0f32; MAX_HEAD_DIM]);
            let key = &mut key[..shape.kv.each.head_dim];
            for j in 0..TILE {
                load_turned(&shape, &rows[h * shape.head_bytes()..], j, key);
                if tile == 0 || !shape.kv.k_type.is_turned() {
                    key.iter_mut().zip(mean).for_each(|(key, mean)| *key -= mean);
                }
                index::put(&mut self.memory.tile, j, key);
            }
            sum.update(&self.memory.tile);
            written = written.and_then(|()| self.disk.write(&self.memory.tile, shape.index_at(own, h, slot)));
        }
        self.memory.sums[slot] = sum.digest();
        match written {
            Ok(()) => {
                let n_bytes = shape.layer_bytes() + shape.kv.each.n_head_kv * shape.index_tile_bytes();
                Counters::add(&self.counters.written_bytes, n_bytes);
            }
            Err(e) => {
                self.memory.is_there[slot] = 0;
                self.counters.failed(&self.counters.n_lost, "written", &e);
            }
        }
    }

    /// Looks for what the queries of a layer (`[n_tok][n_head * head_dim]`, scaled, after RoPE) ask
    /// for, and keeps what attention to it gives until the next call. `asking` says what the arena
    /// still has.
    pub(super) fn recall(
        &mut self,
        asking: &Asking,
        pool: &mut Pool,
        kernels: Kernels,
        rotary: &impl Rotary,
        q: &[f32],
        n_tok: usize,
    ) {
        let Some(own) = self.shape.layer(asking.layer) else { return };
        let (shape, n_past) = (self.shape, asking.n_past);
        let (share, n_head) = (shape.share(), shape.kv.each.n_head_kv);
        let before = &mut self.memory.before[own * n_head * (1 + shape.n_recall)..][..n_head * (1 + shape.n_recall)];
        // Of this batch nothing is looked for, nor what its tiles have overwritten.
        let (n_whole, n_full) = (n_past / TILE as u64, (n_past + n_tok as u64) / TILE as u64);
        let tiles = n_full.saturating_sub(shape.n_tile as u64)..n_whole;
        let world = World {
            shape: &shape,
            own,
            last_slot: (tiles.end.saturating_sub(1) % shape.n_tile as u64) as usize,
            tiles,
            asking,
            files: Files {
                shape: &shape,
                own: &*self.disk,
                left: self.left.as_ref().map(|left| &*left.disk),
                is_there: &self.memory.is_there,
                is_left: &self.memory.is_left,
            },
            means: &self.memory.means,
            angles: &self.memory.angles,
            renumbered: (self.renumbered[0], self.renumbered[1] as i64),
            before,
            counters: &self.counters,
            kernels,
            rotary,
            q,
            n_tok,
        };
        // Of one token many tasks find parts; of more, one finds what the tokens of a group do.
        let (n_part, per_head) = if n_tok == 1 { (shape.n_part(), shape.n_part()) } else { (1, share) };
        let n_group_head = n_tok.div_ceil(share) * n_head;
        let (part_len, part_recall) = (per_head / n_part * shape.partial_len(), shape.n_recall.div_ceil(n_part));
        let found = &mut self.memory.found[..n_group_head * n_part * part_len];
        let choices = &mut self.memory.choices[..n_group_head];
        choices.iter_mut().for_each(Choice::forget);
        let made = &*choices;
        pool.for_chunks_behind(&mut self.memory.threads, n_group_head, found, part_len, |thread, task, found| {
            if task < n_group_head {
                made[task].make(|chosen| thread.chooser.choose(&world, task / n_head, Head(task % n_head), chosen));
                return;
            }
            let (task, part) = ((task - n_group_head) / n_part, (task - n_group_head) % n_part);
            let (tokens, some) = (world.tokens_of(task / n_head), part * part_recall..(part + 1) * part_recall);
            made[task].with(|chosen| thread.fetcher.recall(&world, Head(task % n_head), (chosen, some), tokens, found));
        });
        self.memory.per_head = per_head;
        let latest = choices[n_group_head - n_head..].iter_mut().map(|choice| choice.get().numbers());
        for (chosen, before) in latest.zip(before.chunks_exact_mut(1 + shape.n_recall)) {
            if n_tok == 1 {
                count_again(&self.counters, before, chosen);
            }
            before[0] = chosen.len() as u32;
            before[1..][..chosen.len()].copy_from_slice(chosen);
        }
        if n_tok == 1 {
            for found in found.chunks_exact_mut(n_part * part_len) {
                let (first, later) = found.split_at_mut(part_len);
                merge_parts(kernels, shape.n_q, first, later);
            }
        }
    }

    /// What token `t` of the batch under way found in a head, `[max][sum][acc]`, in the basis of
    /// values; `None`: nothing.
    pub(super) fn found(&self, layer: AttnLayer, t: usize, head: Head) -> Option<&[f32]> {
        self.shape.layer(layer)?;
        let (share, len) = (self.shape.share(), self.shape.partial_len());
        let at = (t / share * self.shape.kv.each.n_head_kv + head.0) * self.memory.per_head + t % share;
        let found = &self.memory.found[at * len..][..len];
        (found[0] > f32::NEG_INFINITY).then_some(found)
    }
}

/// Every buffer of a past.
struct Memory {
    /// `[n_layer][layer_bytes]`: the rows of the tile that is being filled, as they will lie in the
    /// file.
    rows: Buf<u8>,
    /// One tile of the index, on its way to the file.
    tile: Buf<u8>,
    /// `[n_layer][n_head_kv][head_dim]`: what the keys of the first tile have in common, in the
    /// basis of the index.
    means: Buf<f32>,
    /// `[n_tile]`: 1 where the ring has a tile, 0 where it could not be written or has not been.
    is_there: Buf<u8>,
    /// `[n_tile]`: 1 where the file of a session has it, and not the stream's own.
    is_left: Buf<u8>,
    /// `[n_tile]`: of what was written of each (`kept`).
    sums: Buf<u64>,
    /// `[n_layer][n_head_kv][1 + n_recall]`: how many pieces the latest step fetched (of a batch, its last
    /// tokens), and which.
    before: Buf<u32>,
    /// `[n_batch / share][n_head_kv][per_head][partial_len]`: what the tokens under way found; `per_head` tokens, or parts of what one
    /// token found, of which the first has all.
    found: Buf<f32>,
    per_head: usize,
    /// `[n_batch / share][n_head_kv]`
    choices: Vec<Choice>,
    angles: Angles,
    threads: Vec<Thread>,
    /// `[n_attn_layer]`: what keys are multiplied with as they are turned.
    magnitudes: Buf<f32>,
}

/// What a thread needs.
struct Thread {
    chooser: Chooser,
    fetcher: Fetcher,
}

impl Memory {
    fn carve(arena: &mut Arena, s: &PastShape) -> Memory {
        let heads = s.n_layer() * s.kv.each.n_head_kv;
        arena.begin_part("past, to be written");
        let (rows, tile) = (arena.carve(s.n_layer() * s.layer_bytes()), arena.carve(s.index_tile_bytes()));
        arena.begin_part("past, found");
        let (before, share) = (arena.carve(heads * (1 + s.n_recall)), s.share());
        let (n_group, n_head) = (s.kv.n_batch.div_ceil(share), s.kv.each.n_head_kv);
        let found = arena.carve((n_group * share).max(s.n_part()) * n_head * s.partial_len());
        let choices = (0..n_group * n_head).map(|_| Choice::carve(arena, s)).collect();
        arena.begin_part("past, to look for it");
        let means = arena.carve(heads * s.kv.each.head_dim);
        let (is_there, is_left) = (arena.carve(s.n_tile), arena.carve(s.n_tile));
        let (sums, magnitudes) = (arena.carve(s.n_tile), arena.carve(s.kv.n_layer));
        let angles = Angles::carve(arena, s.kv.each.head_dim, s.kv.n_ctx, s.n_fetched());
        let threads =
            (0..s.n_threads).map(|_| Thread { chooser: Chooser::carve(arena, s), fetcher: Fetcher::carve(arena, s) }).collect();
        Memory {
            rows,
            tile,
            means,
            is_there,
            is_left,
            sums,
            before,
            found,
            per_head: share,
            choices,
            angles,
            threads,
            magnitudes,
        }
    }
}

impl PastShape {
    /// The lines of the plan and their bytes.
    pub fn parts(&self) -> Vec<(&'static str, usize)> {
        let mut arena = Arena::measure();
        Memory::carve(&mut arena, self);
        arena.parts().to_vec()
    }
}

/// Counts the pieces that the step `before` had fetched too.
fn count_again(counters: &Counters, before: &[u32], chosen: &[u32]) {
    let before = &before[1..][..before[0] as usize];
    Counters::add(&counters.n_single, chosen.len());
    Counters::add(&counters.n_again, chosen.iter().filter(|piece| before.contains(piece)).count());
}

/// What the keys of a head have in common, in the basis of the index.
fn mean<'a>(means: &'a [f32], shape: &PastShape, own: usize, head: usize) -> &'a [f32] {
    &means[(own * shape.kv.each.n_head_kv + head) * shape.kv.each.head_dim..][..shape.kv.each.head_dim]
}

/// The key of token `j` of a tile's rows in a head, in the basis of the index, as it is stored.
fn load_turned(shape: &PastShape, rows: &[u8], j: usize, key: &mut [f32]) {
    shape.kv.k_type.row().load(&rows[shape.row_in_head(j).0..], key);
    if !shape.kv.k_type.is_turned() {
        TURNED.turn(key, shape.kv.each.head_dim);
    }
}

/// Of the tokens of the first tile but the very first, whose key is like no other.
fn learn_means(shape: &PastShape, own: usize, rows: &[u8], means: &mut [f32]) {
    let mut key = [0f32; MAX_HEAD_DIM];
    let (n, key) = (shape.kv.each.head_dim, &mut key[..shape.kv.each.head_dim]);
    let heads = means[own * shape.kv.each.n_head_kv * n..].chunks_exact_mut(n).take(shape.kv.each.n_head_kv);
    for (h, mean) in heads.enumerate() {
        mean.fill(0.0);
        for j in 1..TILE {
            load_turned(shape, &rows[h * shape.head_bytes()..], j, key);
            mean.iter_mut().zip(&*key).for_each(|(mean, key)| *mean += key * (1.0 / (TILE - 1) as f32));
        }
    }
}
