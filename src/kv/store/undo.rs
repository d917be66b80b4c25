//! Guesses: tokens that enter behind a certain one before it is known whether they will follow it. What each of them
//! overwrites is kept until then, so that those that were wrong leave no trace, whatever was evicted for them: not in
//! rows, marks, counts of attention or rings.
//!
//! ```text
//! begin_guesses   a step whose first token is certain; in each layer its tokens enter one after the other, as in steps of their own
//! finish          the first token is counted; the guesses are ahead: their rows and marks are there, and nobody counts them yet
//! accept          the next guess was right: it is counted
//! take_back       those that are still ahead were wrong: what they overwrote is put back, the latest first
//! ```
//!
//! Each layer sees just what it would see token by token, so the bits are the same for every policy, also for those
//! that judge by attention or anew for each batch. What is saved is that the weights are read once for all of the
//! tokens.

use super::{KvCache, Rows};
use crate::kv::Pos;
use crate::kv::layout::{AttnLayer, Head, KvShape};
use crate::kv::policy::Policy;
use crate::kv::policy::marks::{HeadMarks, pieces};
use crate::mem::arena::{Arena, Buf};

/// Where a stream stands: what a step counts.
#[derive(Clone, Copy)]
pub(super) struct Place {
    n_live: usize,
    n_evicted: u64,
    next_pos: Pos,
}

impl Place {
    /// After `n` more tokens, where there are `n_slot` slots.
    pub fn after(self, n: usize, n_slot: usize) -> Place {
        let n_live = (self.n_live + n).min(n_slot);
        let n_evicted = self.n_evicted + (self.n_live + n - n_live) as u64;
        Place { n_live, n_evicted, next_pos: self.next_pos + n as Pos }
    }
}

/// What the guesses of a step overwrote.
pub struct Undo {
    n_guess: usize,
    /// Guesses of the latest step that had any.
    pub(super) n_in_step: usize,
    /// `[n_guess][n_layer][n_head_kv][head_len]`: the slot that was taken, what was known of its entry, and what the
    /// head knew.
    heads: Buf<u8>,
    /// `[n_guess][layers without a window][n_head_kv][n_slot]`, of policies for which a token changes something of
    /// every entry.
    all: Buf<f32>,
    /// `[n_guess][n_layer][n_head_kv]`: a key and a value.
    rows: Buf<u8>,
    lens: Lens,
}

/// Sizes of records: of a head's marks, of what is kept of all its entries, and of a row, of both its parts.
#[derive(Clone, Copy)]
struct Lens {
    head: usize,
    all: usize,
    row: usize,
}

/// The record of one guess in one layer; all of it is empty where nothing is kept.
#[derive(Default)]
pub(super) struct Record<'a> {
    /// `[n_head_kv][head_len]`
    heads: &'a mut [u8],
    /// `[n_head_kv][n_slot]`
    all: &'a mut [f32],
    /// `[n_head_kv]`: a key and a value.
    rows: &'a mut [u8],
    lens: Option<Lens>,
}

/// The slot's number, at the beginning of a head's record.
const SLOT_BYTES: usize = size_of::<u32>();

impl Undo {
    /// For `n_guess` guesses in a step; for none it is empty.
    pub fn carve(arena: &mut Arena, shape: &KvShape, policy: Policy, n_slot: usize, n_guess: usize) -> Undo {
        let all = if policy.row().changes_all() { n_slot } else { 0 };
        // Of the largest heads, and as many as there are most, in every layer.
        let row = shape.kinds().map(|of| [shape.k_type, shape.v_type].map(|ty| ty.row().row_bytes(of.head_dim)).iter().sum());
        let lens = Lens { head: SLOT_BYTES + HeadMarks::undo_bytes(shape), all, row: row.max().unwrap_or(0) };
        let n_heads = n_guess * shape.n_layer * shape.max_head_kv();
        Undo {
            n_guess,
            n_in_step: 0,
            heads: arena.carve(n_heads * lens.head),
            all: arena.carve(n_guess * shape.n_unlimited(shape.n_layer) * shape.max_head_kv() * lens.all),
            rows: arena.carve(n_heads * lens.row),
            lens,
        }
    }

    /// The most guesses that a step may have.
    pub fn n_guess(&self) -> usize {
        self.n_guess
    }

    /// The record of a guess, counted from 0, in a layer.
    pub(super) fn record(&mut self, guess: usize, shape: &KvShape, layer: AttnLayer) -> Record<'_> {
        assert!(guess < self.n_guess);
        let (Lens { head, all, row }, n) = (self.lens, shape.max_head_kv());
        let at = (guess * shape.n_layer + layer.0) * n;
        let n_all = if shape.is_ring(layer) { 0 } else { n * all };
        let at_all = (guess * shape.n_unlimited(shape.n_layer) + shape.n_unlimited(layer.0)) * n * all;
        Record {
            heads: &mut self.heads[at * head..][..n * head],
            all: &mut self.all[at_all..][..n_all],
            rows: &mut self.rows[at * row..][..n * row],
            lens: Some(self.lens),
        }
    }
}

impl Record<'_> {
    /// The part of each head, for `keep_entry`; empty ones where nothing is kept.
    pub fn heads(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let len = self.lens.map_or(0, |lens| lens.head);
        pieces(self.heads, (0, len))
    }
}

/// Keeps in a head's part of a record which slot a guess takes and what is known of the entry there; nothing where
/// there is no record.
pub(super) fn keep_entry(record: &mut [u8], marks: &mut HeadMarks, slot: usize) {
    if !record.is_empty() {
        let (number, mut rest) = record.split_at_mut(SLOT_BYTES);
        number.copy_from_slice(&(slot as u32).to_le_bytes());
        marks.visit_entry(slot, &mut |bytes| put(&mut rest, bytes));
    }
}

/// Puts `bytes` at the beginning of `room`, which goes on behind them.
fn put(room: &mut &mut [u8], bytes: &[u8]) {
    let (place, rest) = std::mem::take(room).split_at_mut(bytes.len());
    place.copy_from_slice(bytes);
    *room = rest;
}

/// The reverse.
fn get(room: &mut &[u8], bytes: &mut [u8]) {
    let (place, rest) = room.split_at(bytes.len());
    bytes.copy_from_slice(place);
    *room = rest;
}

impl KvCache {
    pub(super) fn place(&self) -> Place {
        Place { n_live: self.n_live, n_evicted: self.n_evicted, next_pos: self.next_pos }
    }

    pub(super) fn set_place(&mut self, place: Place) {
        (self.n_live, self.n_evicted, self.next_pos) = (place.n_live, place.n_evicted, place.next_pos);
    }

    /// How many guesses may follow the next token in its step; none where what happens between steps would fall among
    /// them: rounding is fixed, positions are renumbered, scores get another unit, or the stream ends.
    pub fn most_guesses(&self) -> usize {
        let n_past = self.n_past();
        if self.is_learning() || self.next_pos as usize >= self.shape.n_ctx {
            return 0;
        }
        let to_end = if self.ends_when_full() { self.n_slot - self.n_live } else { usize::MAX };
        let to_renumbering = self.shape.n_ctx - self.next_pos as usize;
        // After the last of them the unit must not be due yet.
        let to_unit = usize::try_from(self.marks.unit_lasts(n_past)).unwrap_or(usize::MAX).saturating_sub(1);
        to_end.min(to_renumbering).min(to_unit).saturating_sub(1)
    }

    /// The next guess was right.
    pub fn accept(&mut self) {
        assert!(self.n_ahead > 0, "a guess that is ahead");
        self.n_ahead -= 1;
        self.set_place(self.place().after(1, self.n_slot));
    }

    /// Before a guess enters a layer: keeps what its heads know.
    pub(super) fn keep_heads(&mut self, layer: AttnLayer, record: &mut Record) {
        let Some(lens) = record.lens else { return };
        let (rule, live, entry) = (self.rule(layer), self.live(layer), SLOT_BYTES + HeadMarks::entry_bytes(&self.shape));
        let kept = record.heads.chunks_exact_mut(lens.head).zip(pieces(record.all, (0, lens.all)));
        for (mut marks, (head, all)) in self.marks.of_layer(&self.shape, layer, rule).zip(kept) {
            let mut rest = &mut head[entry..];
            marks.visit_head(&mut |bytes| put(&mut rest, bytes));
            if let Some(all) = all.get_mut(..live) {
                all.copy_from_slice(&marks.changing()[..live]);
            }
        }
    }

    /// Before the rows of a guess go to the slots that it took: keeps those that are there.
    pub(super) fn keep_rows(&self, layer: AttnLayer, record: &mut Record) {
        let Some(lens) = record.lens else { return };
        let Rows { keys, values, k_bytes, v_bytes, .. } = self.store(layer);
        for (head, row) in self.shape.of(layer).heads().zip(record.rows.chunks_exact_mut(lens.row)) {
            let at = self.first_row(layer, head) + self.taken_at(layer, head, 0).0;
            let (key, value) = row.split_at_mut(*k_bytes);
            key.copy_from_slice(&keys[at * k_bytes..][..*k_bytes]);
            value[..*v_bytes].copy_from_slice(&values[at * v_bytes..][..*v_bytes]);
        }
    }

    /// The guesses that are still ahead were wrong: all is as if they had never come.
    pub fn take_back(&mut self, undo: &mut Undo) {
        let (here, n_ahead) = (self.place(), std::mem::take(&mut self.n_ahead));
        for ahead in (0..n_ahead).rev() {
            self.set_place(here.after(ahead, self.n_slot));
            for layer in self.shape.layers() {
                let record = undo.record(undo.n_in_step - n_ahead + ahead, &self.shape, layer);
                self.put_back(layer, record);
            }
        }
        self.set_place(here);
    }

    /// What one guess overwrote in a layer, where it is now as if those before it were counted.
    fn put_back(&mut self, layer: AttnLayer, record: Record) {
        let Some(lens) = record.lens else { return };
        let (rule, live, entry) = (self.rule(layer), self.live(layer), HeadMarks::entry_bytes(&self.shape));
        let (first, n_slot) = (self.first_row(layer, Head(0)), self.slots(layer));
        let Rows { keys, values, k_bytes, v_bytes, .. } = &mut self.stores[self.shape.store(layer)];
        let kept = record.heads.chunks_exact(lens.head).zip(pieces(record.all, (0, lens.all)));
        let rows = record.rows.chunks_exact(lens.row);
        for (h, (mut marks, ((head, all), row))) in self.marks.of_layer(&self.shape, layer, rule).zip(kept.zip(rows)).enumerate()
        {
            let (number, known) = head.split_at(SLOT_BYTES);
            let slot = u32::from_le_bytes(number.try_into().expect("four bytes")) as usize;
            // In the reverse of the order in which they were kept.
            let (mut of_entry, mut of_head) = known.split_at(entry);
            marks.visit_entry(slot, &mut |bytes| get(&mut of_entry, bytes));
            marks.visit_head(&mut |bytes| get(&mut of_head, bytes));
            if let Some(all) = all.get(..live) {
                marks.changing()[..live].copy_from_slice(all);
            }
            let (key, value) = row.split_at(*k_bytes);
            let at = first + h * n_slot + slot;
            keys[at * *k_bytes..][..*k_bytes].copy_from_slice(key);
            values[at * *v_bytes..][..*v_bytes].copy_from_slice(&value[..*v_bytes]);
        }
    }
}
