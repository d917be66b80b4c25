//! The arena of keys and values: one allocation, carved at start, the same from the first token to the last.
//!
//! For each layer and KV head there are `n_slot` slots; a slot holds a key and a value (rounded to their types, the
//! key after RoPE), the score its policy gave it and its position. Slots fill in ring order; when all are taken the newcomer
//! overwrites the policy's victim in place. Heads choose for themselves: after a while they hold different tokens, but
//! always equally many. Where the model has layers with a sliding window (`Window`), those have as many slots as the window
//! and are rings: the oldest goes, whatever the policy.
//!
//! Tokens enter in steps (`step`): one token, or a batch of them, whose rows wait behind the slots until attention has run.

mod compress;
mod key_rounding;
mod moved;
mod past;
mod renumber;
mod rewind;
pub mod saved;
mod sink_row;
pub mod step;
pub mod undo;

use super::Pos;
use super::layout::{AttnLayer, Head, KvShape, MAX_HEAD_KV};
use super::past::Past;
use super::policy::marks::{HeadMarks, Marks, StoredHead};
use super::policy::table::Judges;
use super::policy::{Policy, Rule, keydiff, lagkv};
use crate::error::{Error, Result, Setting};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;
use crate::units::Bytes;
pub use moved::Run;

use key_rounding::{KeyRounding, KeyRoundings};
use sink_row::{SinkRow, SinkRows};
use undo::Record;

/// First layers that `compress` left whole, and how many more entries each of their heads holds.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    n_layer: usize,
    n_more: usize,
}

pub struct KvCache {
    shape: KvShape,
    /// Which entries go in layers without a window.
    rule: Rule,
    /// `rule.protect.sinks` of a stream that has nothing pinned.
    n_sinks: u32,
    n_slot: usize,
    /// Taken slots; the same in every head, but no more than a layer has, and more in layers that were left whole.
    n_live: usize,
    whole: Whole,
    /// Position that the next token gets.
    next_pos: Pos,
    n_evicted: u64,
    n_renumbered: u64,
    /// Guesses that are in and not counted (`undo`).
    n_ahead: usize,
    arena_bytes: usize,
    budget_bytes: u64,
    /// Those of all layers; the second has some only where layers with a window have heads of their own (`KvShape::local`).
    stores: [Rows; 2],
    /// What is known of the entries, layer by layer.
    marks: Marks,
    roundings: KeyRoundings,
    sink_rows: SinkRows,
    /// What was evicted, in a file.
    past: Option<Past>,
}

/// Keys and values of layers whose heads are alike.
struct Rows {
    /// `[n_layer][n_head_kv][n_slot]` rows (fewer in layers with a window), then `[n_head_kv][n_batch]` rows of the batch under way.
    keys: Buf<u8>,
    values: Buf<u8>,
    /// `[n_head_kv][n_batch]`: the slot that each token of the batch takes, in the layer under way.
    taken: Buf<u32>,
    /// Bytes of a key and of a value.
    k_bytes: usize,
    v_bytes: usize,
}

impl Rows {
    fn carve(arena: &mut Arena, shape: &KvShape, store: usize, n_slot: usize) -> Rows {
        let (n_batch, [k_bytes, v_bytes]) = (shape.batch_rows_of(store), shape.row_bytes_of(store));
        let n = shape.rows_of(store, shape.n_layer, n_slot) + n_batch;
        // While room is measured a context may be too long for the addresses of a machine of 32 bits.
        let [keys, values] = [k_bytes, v_bytes].map(|bytes| arena.carve(n.saturating_mul(bytes)));
        Rows { keys, values, taken: arena.carve(n_batch), k_bytes, v_bytes }
    }

    /// A key and a value go from one row to another.
    fn copy(&mut self, from: usize, to: usize) {
        let (k, v) = (self.k_bytes, self.v_bytes);
        self.keys.copy_within(from * k..(from + 1) * k, to * k);
        self.values.copy_within(from * v..(from + 1) * v, to * v);
    }
}

/// What one thread needs to move, sort or round the entries of a head anew.
pub struct KvScratch {
    order: Buf<u32>,
    key: Buf<f32>,
    angles: Buf<f32>,
}

impl KvScratch {
    pub fn carve(arena: &mut Arena, n_slot: usize, head_dim: usize) -> Self {
        KvScratch { order: arena.carve(n_slot), key: arena.carve(head_dim), angles: arena.carve(head_dim) }
    }
}

/// What one head owns of the buffers that a step writes.
struct HeadShare<'a> {
    marks: HeadMarks<'a>,
    taken: &'a mut [u32],
    keys: &'a mut [u8],
    values: &'a mut [u8],
    rounding: KeyRounding<'a>,
    /// Where the first token of the stream is kept as well.
    sink: Option<SinkRow<'a>>,
    /// Where what a guess overwrites is kept (`undo`).
    record: &'a mut [u8],
}

impl KvCache {
    /// Takes the memory of `n_slot` slots, which `KvParams::fit` found for this shape.
    pub fn new(shape: KvShape, n_slot: usize, rule: Rule, budget_bytes: u64) -> Result<KvCache> {
        let arena_bytes = shape.arena_bytes(n_slot);
        assert!(arena_bytes as u64 <= budget_bytes);
        assert!(!shape.shared || shape.local.is_some(), "what is shared must not wait where other layers' batches do");
        let mut cache = Arena::fill(|arena| KvCache::carve(arena, &shape, n_slot)).map_err(|e| {
            Error::budget(Setting::KvBudget, format!("the system did not give {} for the arena: {e}", Bytes(arena_bytes as u64)))
        })?;
        (cache.rule, cache.arena_bytes, cache.budget_bytes) = (rule, arena_bytes, budget_bytes);
        cache.n_sinks = rule.protect.sinks;
        cache.clear();
        Ok(cache)
    }

    /// Every buffer of the arena.
    pub(super) fn carve(arena: &mut Arena, shape: &KvShape, n_slot: usize) -> KvCache {
        KvCache {
            shape: *shape,
            rule: Rule::RING,
            n_sinks: 0,
            n_slot,
            n_live: 0,
            whole: Whole::default(),
            next_pos: 0,
            n_evicted: 0,
            n_renumbered: 0,
            n_ahead: 0,
            arena_bytes: 0,
            budget_bytes: 0,
            stores: [0, 1].map(|store| Rows::carve(arena, shape, store, n_slot)),
            marks: Marks::carve(arena, shape, n_slot),
            roundings: KeyRoundings::carve(arena, shape),
            sink_rows: SinkRows::carve(arena, shape),
            past: None,
        }
    }

    /// Gives a cache that knows of each entry which token it is (`Keeps::token`) its past in a file.
    pub fn attach(&mut self, past: Past) {
        assert!(self.shape.keeps.token && self.n_past() == 0);
        self.past = Some(past);
    }

    pub fn past(&self) -> Option<&Past> {
        self.past.as_ref()
    }
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }
    pub fn policy(&self) -> Policy {
        self.rule.policy
    }
    pub fn n_slot(&self) -> usize {
        self.n_slot
    }
    pub fn n_live(&self) -> usize {
        self.n_live
    }
    pub fn next_pos(&self) -> Pos {
        self.next_pos
    }
    /// Tokens evicted so far (each from every head).
    pub fn n_evicted(&self) -> u64 {
        self.n_evicted
    }
    /// How often positions were given anew.
    pub fn n_renumbered(&self) -> u64 {
        self.n_renumbered
    }
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }
    /// The rows among which a layer's are.
    pub fn keys(&self, layer: AttnLayer) -> &[u8] {
        &self.store(layer).keys
    }
    pub fn values(&self, layer: AttnLayer) -> &[u8] {
        &self.store(layer).values
    }
    fn store(&self, layer: AttnLayer) -> &Rows {
        &self.stores[self.shape.store(layer)]
    }

    /// Positions that a head holds, by slot.
    pub fn kept(&self, layer: AttnLayer, head: Head) -> &[Pos] {
        &self.marks.positions[self.first_slot(layer, head)..][..self.live(layer)]
    }

    /// Scores of what a head holds, by slot.
    pub fn scores(&self, layer: AttnLayer, head: Head) -> &[f32] {
        &self.marks.scores[self.first_slot(layer, head)..][..self.live(layer)]
    }

    /// The attention that what a head holds received, by slot, of a policy that counts it: the latest token's, a sum or a mean.
    pub fn received(&self, layer: AttnLayer, head: Head) -> &[f32] {
        &self.marks.received[self.first_slot(layer, head)..][..self.live(layer)]
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        (self.n_live, self.next_pos, self.n_evicted, self.n_renumbered, self.n_ahead) = (0, 0, 0, 0, 0);
        self.whole = Whole::default();
        self.past.iter_mut().for_each(Past::clear);
        self.rule.protect.sinks = self.n_sinks;
        self.marks.clear();
        self.roundings.clear();
        self.sink_rows.clear(self.rule.protect.sinks > 0 || self.rule.policy == Policy::Off);
    }

    fn slots(&self, layer: AttnLayer) -> usize {
        self.shape.slots(layer, self.n_slot)
    }

    /// Taken slots of each head of a layer, if it had enough of them.
    fn n_taken(&self, layer: AttnLayer) -> usize {
        self.n_live + if layer.0 < self.whole.n_layer { self.whole.n_more } else { 0 }
    }

    /// Entries of each head of a layer.
    fn live(&self, layer: AttnLayer) -> usize {
        self.n_taken(layer).min(self.slots(layer))
    }

    /// Entries that the token `t` of the batch under way sees, itself included.
    pub fn live_at(&self, layer: AttnLayer, t: usize) -> usize {
        (self.n_taken(layer) + t + 1).min(self.slots(layer))
    }

    /// Which entry goes in a layer: the policy's victim; in one with a window the oldest, which no later token sees.
    fn rule(&self, layer: AttnLayer) -> Rule {
        if self.shape.is_ring(layer) { Rule::RING } else { self.rule }
    }

    /// Whether it matters here what attention entries receive.
    pub(super) fn counts_attention(&self, layer: AttnLayer) -> bool {
        self.shape.keeps.received && !self.shape.is_ring(layer)
    }

    /// First of a head's rows; behind it its other slots. Valid for attention once the batch is committed.
    pub fn first_row(&self, layer: AttnLayer, head: Head) -> usize {
        self.shape.rows_of(self.shape.store(layer), layer.0, self.n_slot) + head.0 * self.slots(layer)
    }

    /// First of a head's slots among those of all layers, as marks are kept.
    fn first_slot(&self, layer: AttnLayer, head: Head) -> usize {
        self.shape.slots_of(layer.0, self.n_slot) + head.0 * self.slots(layer)
    }

    /// First of the rows where a head's tokens of the batch wait.
    fn batch_row(&self, layer: AttnLayer, head: Head) -> usize {
        self.shape.rows_of(self.shape.store(layer), self.shape.n_layer, self.n_slot) + head.0 * self.shape.n_batch
    }

    /// Tokens of the stream before the batch under way.
    fn n_past(&self) -> u64 {
        self.n_live as u64 + self.n_evicted
    }

    /// Keys and values in f16 of the first token of the stream, a row for each head of a layer, where its slot is not to be read for it.
    pub(super) fn sink_rows(&self, layer: AttnLayer) -> Option<(&[u8], &[u8])> {
        self.sink_rows.rows(layer)
    }

    /// Writes into `table` the row of every entry that token `t` of the batch sees in this head, in slot order.
    pub fn rows_at(&self, layer: AttnLayer, head: Head, t: usize, table: &mut [u32]) -> usize {
        let (first, live) = (self.first_row(layer, head) as u32, self.live_at(layer, t));
        for (slot, row) in table[..live].iter_mut().enumerate() {
            *row = first + slot as u32;
        }
        for t in 0..=t {
            let (slot, row) = self.taken_at(layer, head, t);
            table[slot] = row;
        }
        live
    }

    /// The slot that token `t` of the batch took in a head, and the row where it waits.
    pub(super) fn taken_at(&self, layer: AttnLayer, head: Head, t: usize) -> (usize, u32) {
        let slot = self.store(layer).taken[head.0 * self.shape.n_batch + t];
        (slot as usize, (self.batch_row(layer, head) + t) as u32)
    }

    /// Calls `job(head, its share)` for each KV head of a layer; many tokens in parallel.
    fn for_heads(
        &mut self,
        pool: &mut Pool,
        layer: AttnLayer,
        n_tok: usize,
        record: &mut Record,
        job: impl Fn(usize, &mut HeadShare) + Sync,
    ) {
        let (n_head_kv, n_batch) = (self.shape.of(layer).n_head_kv, self.shape.n_batch);
        let batch = self.batch_row(layer, Head(0));
        let marks = self.marks.of_layer(&self.shape, layer, self.rule(layer));
        let Rows { keys, values, taken, k_bytes, v_bytes } = &mut self.stores[self.shape.store(layer)];
        let taken = taken.chunks_exact_mut(n_batch);
        let keys = keys[batch * *k_bytes..].chunks_exact_mut(n_batch * *k_bytes);
        let values = values[batch * *v_bytes..].chunks_exact_mut(n_batch * *v_bytes);
        let exact = self.roundings.of_layer(layer).zip(self.sink_rows.rows_mut(layer));
        let mut heads = marks.zip(taken).zip(keys.zip(values).zip(exact)).zip(record.heads()).map(
            |(((marks, taken), ((keys, values), (rounding, sink))), record)| HeadShare {
                marks,
                taken,
                keys,
                values,
                rounding,
                sink,
                record,
            },
        );
        if n_tok == 1 {
            return heads.enumerate().for_each(|(h, mut share)| job(h, &mut share));
        }
        let mut shares: [Option<HeadShare>; MAX_HEAD_KV] = [const { None }; MAX_HEAD_KV];
        shares[..n_head_kv].fill_with(|| heads.next());
        pool.for_chunks(&mut shares[..n_head_kv], 1, |h, share| job(h, share[0].as_mut().expect("carved for n_head_kv heads")));
    }

    /// Scores that are not fixed when an entry enters and come from keys and values as they are stored: must be done before
    /// anything is evicted from a layer.
    fn rejudge(&mut self, layer: AttnLayer) {
        let rule = self.rule(layer);
        let judges = rule.policy.row().judges;
        if !matches!(judges, Judges::PerBatch | Judges::Late) {
            return;
        }
        let (shape, live, n_slot, first) = (self.shape, self.live(layer), self.slots(layer), self.first_row(layer, Head(0)));
        let Rows { keys, values, k_bytes, v_bytes, .. } = &self.stores[shape.store(layer)];
        let heads = self.marks.of_layer(&self.shape, layer, rule).zip(self.roundings.of_layer(layer));
        for (h, (mut head, rounding)) in heads.enumerate() {
            let (row, head_dim) = (first + h * n_slot, shape.of(layer).head_dim);
            let stored = StoredHead { shape, head_dim, keys: &keys[row * k_bytes..], values: &values[row * v_bytes..] };
            match judges {
                Judges::Late => lagkv::rate(&mut head, &stored, live, self.next_pos),
                _ => keydiff::rescore(&mut head, &stored, live, rounding.centre),
            }
        }
    }
}
