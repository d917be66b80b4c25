//! The arena of keys and values: one allocation, carved at start, the same from the first token to the last.
//!
//! For each layer and KV head there are `n_slot` slots; a slot holds a key and a value (rounded to their types, the
//! key after RoPE), the score its policy gave it and its position. Slots fill in ring order; when all are taken the newcomer
//! overwrites the policy's victim in place. Heads choose for themselves: after a while they hold different tokens, but
//! always equally many. Where the model has layers with a sliding window (`Window`), those have as many slots as the window
//! and are rings: the oldest goes, whatever the policy.
//!
//! A batch of prefill is exactly the same as token by token where scores are fixed at insertion, as most policies' are: who dies
//! at which step is known before attention runs (`rate`, `place`). The others judge by what was known before the batch. The batch's rows wait in rows of their own behind the slots, attention sees
//! for each token the slots as they stand at its step (`rows_at`), and `commit` moves what survived into place.

mod anew;
mod first;
mod rounding;
mod thin;

use super::Pos;
use super::marks::{Head, HeadMarks};
use super::policy::{Policy, Rule};
pub use super::shape::{KvParams, KvShape, Recent};
use crate::error::{Error, Result};
pub use crate::kernels::MAX_HEAD_DIM;
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::Pool;
use crate::units::Bytes;
use first::{First, FirstRow};
use rounding::{Rounding, Roundings};

/// KV heads of a layer at most: what `place` keeps on the stack.
pub const MAX_HEAD_KV: usize = 128;

/// What one head owns of the buffers that `place` writes.
struct HeadShare<'a> {
    marks: Head<'a>,
    taken: &'a mut [u32],
    keys: &'a mut [u8],
    values: &'a mut [u8],
    rounding: Rounding<'a>,
    /// Where the first token of the stream is kept as well.
    first: Option<FirstRow<'a>>,
}

/// First layers that `compress` left whole, and how many more entries each of their heads holds.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    n_layer: usize,
    n_more: usize,
}

pub struct KvCache {
    shape: KvShape,
    /// Who goes in layers without a window.
    rule: Rule,
    n_slot: usize,
    /// Taken slots; the same in every head, but no more than a layer has, and more in layers that were left whole.
    n_live: usize,
    whole: Whole,
    /// Position that the next token gets.
    next_pos: Pos,
    n_evicted: u64,
    arena_bytes: usize,
    budget_bytes: u64,
    /// `[n_layer][n_head_kv][n_slot]` rows (fewer in layers with a window), then `[n_head_kv][n_batch]` rows of the batch under way.
    keys: Buf<u8>,
    values: Buf<u8>,
    /// What is known of the entries, in the order of `keys`.
    marks: HeadMarks,
    /// `[n_head_kv][n_batch]`: the slot that each token of the batch takes, in the layer under way.
    taken: Buf<u32>,
    /// How the keys of each head are rounded.
    roundings: Roundings,
    first: First,
}

impl KvCache {
    /// Takes the memory of `n_slot` slots, which `KvParams::fit` found for this shape.
    pub fn new(shape: KvShape, n_slot: usize, rule: Rule, budget_bytes: u64) -> Result<KvCache> {
        let arena_bytes = shape.arena_bytes(n_slot);
        assert!(arena_bytes as u64 <= budget_bytes);
        let mut cache = Arena::fill(|arena| KvCache::carve(arena, &shape, n_slot)).map_err(|e| {
            Error::budget("--kv-budget", format!("the system did not give {} for the arena: {e}", Bytes(arena_bytes as u64)))
        })?;
        (cache.rule, cache.arena_bytes, cache.budget_bytes) = (rule, arena_bytes, budget_bytes);
        cache.clear();
        Ok(cache)
    }

    /// Every buffer of the arena.
    pub(super) fn carve(arena: &mut Arena, shape: &KvShape, n_slot: usize) -> KvCache {
        let batch = shape.n_head_kv * shape.n_batch;
        let rows = shape.slots_of(shape.n_layer, n_slot) + batch;
        KvCache {
            shape: *shape,
            rule: Rule::RING,
            n_slot,
            n_live: 0,
            whole: Whole::default(),
            next_pos: 0,
            n_evicted: 0,
            arena_bytes: 0,
            budget_bytes: 0,
            keys: arena.carve(rows * shape.k_bytes()),
            values: arena.carve(rows * shape.v_bytes()),
            taken: arena.carve(batch),
            marks: HeadMarks::carve(arena, shape, n_slot),
            roundings: Roundings::carve(arena, shape),
            first: First::carve(arena, shape),
        }
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
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }
    pub fn keys(&self) -> &[u8] {
        &self.keys
    }
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// Positions that a head holds, by slot.
    pub fn kept(&self, layer: usize, head: usize) -> &[Pos] {
        &self.marks.positions[self.first_row(layer, head)..][..self.live(layer)]
    }

    /// Scores of what a head holds, by slot.
    pub fn scores(&self, layer: usize, head: usize) -> &[f32] {
        &self.marks.scores[self.first_row(layer, head)..][..self.live(layer)]
    }

    /// The attention that what a head holds received, by slot, of a policy that counts it: the latest token's, a sum or a mean.
    pub fn received(&self, layer: usize, head: usize) -> &[f32] {
        &self.marks.received[self.first_row(layer, head)..][..self.live(layer)]
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        (self.n_live, self.next_pos, self.n_evicted) = (0, 0, 0);
        self.whole = Whole::default();
        self.marks.clear();
        self.roundings.clear();
        self.first.clear(self.rule.protect.sinks > 0 || self.rule.policy == Policy::Off);
    }

    /// Room for `n_tok` more tokens at the positions that follow, or the reason why not.
    pub fn admit(&self, n_tok: usize) -> Result<()> {
        assert!(n_tok <= self.shape.n_batch);
        // What leaves a ring no later token would see: nothing of the model is lost.
        if self.rule.policy == Policy::Off && self.shape.rings().is_none() && self.n_live + n_tok > self.n_slot {
            return Err(Error::Stopped(format!(
                "the arena of {} tokens is full and --evict off may not evict: raise --kv-budget or choose a policy such as l2-attn",
                self.n_slot
            )));
        }
        Ok(())
    }

    fn slots(&self, layer: usize) -> usize {
        self.shape.slots(layer, self.n_slot)
    }

    /// Taken slots of each head of a layer, if it had enough of them.
    fn n_taken(&self, layer: usize) -> usize {
        self.n_live + if layer < self.whole.n_layer { self.whole.n_more } else { 0 }
    }

    /// Entries of each head of a layer.
    fn live(&self, layer: usize) -> usize {
        self.n_taken(layer).min(self.slots(layer))
    }

    /// Entries that the token `t` of the batch under way sees, itself included.
    pub fn live_at(&self, layer: usize, t: usize) -> usize {
        (self.n_taken(layer) + t + 1).min(self.slots(layer))
    }

    /// Who goes in a layer: the policy's victim; in one with a window the oldest entry, which no later token sees.
    fn rule(&self, layer: usize) -> Rule {
        match self.is_ring(layer) {
            true => Rule::RING,
            false => self.rule,
        }
    }

    /// Whether it matters here what attention entries receive.
    pub(super) fn counts_attention(&self, layer: usize) -> bool {
        self.shape.marks.received && !self.is_ring(layer)
    }

    fn is_ring(&self, layer: usize) -> bool {
        self.shape.window.is_some_and(|window| window.limits(layer))
    }

    /// First of a head's rows; behind it its other slots. Valid for attention once the batch is committed.
    pub fn first_row(&self, layer: usize, head: usize) -> usize {
        self.shape.slots_of(layer, self.n_slot) + head * self.slots(layer)
    }

    /// First of the rows where a head's tokens of the batch wait.
    pub(super) fn batch_row(&self, head: usize) -> usize {
        self.shape.slots_of(self.shape.n_layer, self.n_slot) + head * self.shape.n_batch
    }

    /// Tokens of the stream before the batch under way.
    fn n_past(&self) -> u64 {
        self.n_live as u64 + self.n_evicted
    }

    /// Calls `job(head, its share)` for each KV head of a layer; many tokens in parallel.
    fn for_heads(&mut self, pool: &mut Pool, layer: usize, n_tok: usize, job: impl Fn(usize, &mut HeadShare) + Sync) {
        let KvShape { n_head_kv, n_batch, .. } = self.shape;
        let (k_bytes, v_bytes, batch) = (self.shape.k_bytes(), self.shape.v_bytes(), self.batch_row(0));
        let marks = self.marks.of_layer(&self.shape, layer, self.rule(layer));
        let taken = self.taken.chunks_exact_mut(n_batch);
        let keys = self.keys[batch * k_bytes..].chunks_exact_mut(n_batch * k_bytes);
        let values = self.values[batch * v_bytes..].chunks_exact_mut(n_batch * v_bytes);
        let exact = self.roundings.heads_from(layer * n_head_kv).zip(self.first.rows_mut(layer));
        let mut heads =
            marks.zip(taken).zip(keys.zip(values).zip(exact)).map(|((marks, taken), ((keys, values), (rounding, first)))| {
                HeadShare { marks, taken, keys, values, rounding, first }
            });
        if n_tok == 1 {
            return heads.enumerate().for_each(|(h, mut share)| job(h, &mut share));
        }
        let mut shares: [Option<HeadShare>; MAX_HEAD_KV] = [const { None }; MAX_HEAD_KV];
        shares[..n_head_kv].fill_with(|| heads.next());
        pool.for_chunks(&mut shares[..n_head_kv], 1, |h, share| job(h, share[0].as_mut().expect("carved for n_head_kv heads")));
    }

    /// Rates the keys before RoPE and the values (`[n_tok][n_head_kv * head_dim]`, f32) of one layer, for `place`.
    pub fn rate(&mut self, pool: &mut Pool, layer: usize, k: &[f32], v: &[f32], norm: impl Fn(&[f32]) -> f32 + Sync) {
        self.learn_centres(layer, k);
        if self.is_ring(layer) {
            return;
        }
        let KvShape { n_head_kv, head_dim, .. } = self.shape;
        let (n_past, n_tok) = (self.n_past(), k.len() / (n_head_kv * head_dim));
        self.for_heads(pool, layer, n_tok, |h, share| {
            for t in 0..n_tok {
                let at = (t * n_head_kv + h) * head_dim;
                let noise = noise(layer * n_head_kv + h, n_past + t as u64);
                share.marks.rate(t, n_past + t as u64, &k[at..at + head_dim], &v[at..at + head_dim], noise, &norm);
            }
        });
    }

    /// Takes in the keys and values of one layer, which were rated, now with the keys turned: rounds them into the batch's
    /// rows, and decides for every token which slot it takes, evicting where a head is full.
    pub fn place(&mut self, pool: &mut Pool, layer: usize, k: &[f32], v: &[f32]) {
        let KvShape { n_head_kv, head_dim, k_type, v_type, .. } = self.shape;
        let (n_slot, n_live, next_pos, n_past) = (self.slots(layer), self.n_taken(layer), self.next_pos, self.n_past());
        let (n_tok, k_bytes, v_bytes) = (k.len() / (n_head_kv * head_dim), self.shape.k_bytes(), self.shape.v_bytes());
        if n_live + n_tok > n_slot {
            self.compare_anew(layer);
        }
        self.for_heads(pool, layer, n_tok, |h, HeadShare { marks, taken, keys, values, rounding, first }| {
            for t in 0..n_tok {
                let at = (t * n_head_kv + h) * head_dim;
                let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                rounding.store(k_type, key, &mut keys[t * k_bytes..][..k_bytes]);
                Rounding::default().store(v_type, value, &mut values[t * v_bytes..][..v_bytes]);
                if let Some(first) = first.as_mut().filter(|_| n_past + t as u64 == 0) {
                    first.store((k_type, key), (v_type, value));
                }
                let now = next_pos + t as Pos;
                let slot = if n_live + t < n_slot {
                    n_live + t
                } else {
                    marks.victim(n_slot, now).expect("the budget was checked to leave an entry that may go")
                };
                marks.enter(slot, t, n_past + t as u64, now);
                taken[t] = slot as u32;
            }
        });
    }

    /// After a layer's attention, where the policy counts it: adds what each entry received. `given(head)` is what the batch
    /// gave to each slot, and behind the slots of the arena to each token of the batch.
    pub fn settle<'a>(&mut self, layer: usize, n_tok: usize, mut given: impl FnMut(usize) -> &'a [f32]) {
        if !self.counts_attention(layer) {
            return;
        }
        let (n_slot, live, next_pos) = (self.slots(layer), self.live_at(layer, n_tok - 1), self.next_pos);
        for (h, mut head) in self.marks.of_layer(&self.shape, layer, self.rule(layer)).enumerate() {
            head.settle(live, given(h), n_slot, n_tok, next_pos);
        }
    }

    /// Keys and values in f16 of the first token of the stream, a row for each head of a layer, where its slot is not to be read for it.
    pub(super) fn first(&self, layer: usize) -> Option<(&[u8], &[u8])> {
        self.first.rows(layer)
    }

    /// Writes into `table` the row of every entry that token `t` of the batch sees in this head, in slot order.
    pub fn rows_at(&self, layer: usize, head: usize, t: usize, table: &mut [u32]) -> usize {
        let (first, live) = (self.first_row(layer, head) as u32, self.live_at(layer, t));
        for (slot, row) in table[..live].iter_mut().enumerate() {
            *row = first + slot as u32;
        }
        for t in 0..=t {
            let (slot, row) = self.taken_at(head, t);
            table[slot] = row;
        }
        live
    }

    /// The slot that token `t` of the batch took in a head, and the row where it waits.
    pub fn taken_at(&self, head: usize, t: usize) -> (usize, u32) {
        (self.taken[head * self.shape.n_batch + t] as usize, (self.batch_row(head) + t) as u32)
    }

    /// Moves the batch's rows of this layer into the slots they took. Where a slot was taken twice the later stays.
    pub fn commit(&mut self, layer: usize, n_tok: usize) {
        for head in 0..self.shape.n_head_kv {
            let (first, batch) = (self.first_row(layer, head), self.batch_row(head));
            for t in 0..n_tok {
                let to = first + self.taken[head * self.shape.n_batch + t] as usize;
                copy_row(&self.shape, &mut self.keys, &mut self.values, batch + t, to);
            }
        }
    }

    /// After all layers: the tokens are in.
    pub fn advance(&mut self, n_tok: usize) {
        let live = (self.n_live + n_tok).min(self.n_slot);
        self.n_evicted += (self.n_live + n_tok - live) as u64;
        self.n_live = live;
        self.next_pos += n_tok as Pos;
        self.marks.renew_unit(self.n_past());
    }

    /// Whether the next `n_tok` positions would pass the trained context.
    pub fn must_renumber(&self, n_tok: usize) -> bool {
        self.next_pos as usize + n_tok > self.shape.n_ctx
    }

    /// Past the trained context RoPE's angles mean nothing to the model. So before it is reached, every entry gets its
    /// rank by age in its head as its new position, and its key is turned by the difference, in place: as if the stream
    /// had consisted of just what is kept. Order by age is unchanged, sinks are still the first positions, recent
    /// entries the last, so protection is unchanged too. In layers with a window ranks end where they end in the others, for
    /// the newest token has one position. `set_angles(layer, steps, angles)` sets the angles by which `turn(layer, key, angles)` re-rotates one f32 key.
    ///
    /// If the entries alone would (nearly) fill the context, the policy first evicts an eighth of it.
    pub fn renumber(
        &mut self,
        pool: &mut Pool,
        scratch: &mut [RenumberScratch],
        set_angles: impl Fn(usize, i64, &mut [f32]) + Sync,
        turn: impl Fn(usize, &mut [f32], &[f32]) + Sync,
    ) {
        self.compress(self.shape.n_ctx - self.shape.n_ctx / 8, 0, self.rule, &mut scratch[0]);
        let KvShape { n_layer, head_dim, n_head_kv, k_type, .. } = self.shape;
        let row_bytes = self.shape.k_bytes();
        for layer in 0..n_layer {
            let (n_slot, live, heads) = (self.slots(layer), self.live(layer), self.first_row(layer, 0));
            let oldest = self.n_live - live;
            let keys = &mut self.keys[heads * row_bytes..][..n_head_kv * n_slot * row_bytes];
            let positions = &mut self.marks.positions[heads..][..n_head_kv * n_slot];
            let roundings = &self.roundings;
            pool.for_chunks2_with(scratch, (keys, n_slot * row_bytes), (positions, n_slot), |scratch, head, keys, positions| {
                let rounding = roundings.of_head(layer * n_head_kv + head);
                let positions = &mut positions[..live];
                let RenumberScratch { order, key, angles } = scratch;
                let order = &mut order[..live];
                for (i, slot) in order.iter_mut().enumerate() {
                    *slot = i as u32;
                }
                order.sort_unstable_by_key(|&slot| positions[slot as usize]);
                // Neighbours that lost none between them move by as many steps: angles are set once for them.
                let mut set = None;
                for (rank, &slot) in order.iter().enumerate() {
                    let row = &mut keys[slot as usize * row_bytes..][..row_bytes];
                    let (pos, new) = (&mut positions[slot as usize], (oldest + rank) as Pos);
                    if *pos != new {
                        k_type.row().load(row, key);
                        key.iter_mut().zip(rounding.centre).for_each(|(key, centre)| *key += centre);
                        k_type.turn_back(key, head_dim);
                        let steps = i64::from(new) - i64::from(*pos);
                        if set.replace(steps) != Some(steps) {
                            set_angles(layer, steps, angles);
                        }
                        turn(layer, key, angles);
                        rounding.store(k_type, key, row);
                        *pos = new;
                    }
                }
            });
        }
        self.next_pos = self.n_live as Pos;
    }
}

/// What one thread needs to renumber a head.
pub struct RenumberScratch {
    order: Buf<u32>,
    key: Buf<f32>,
    /// For `turn`: the angles of one key.
    pub angles: Buf<f32>,
}

impl RenumberScratch {
    pub fn carve(arena: &mut Arena, n_slot: usize, head_dim: usize) -> Self {
        RenumberScratch { order: arena.carve(n_slot), key: arena.carve(head_dim), angles: arena.carve(head_dim) }
    }
}

/// A number in 0..1 for each token of each head, the same in every run.
fn noise(head: usize, token: u64) -> f32 {
    let mut x = (token << 16 ^ head as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x >> 40) as f32 / (1u64 << 24) as f32
}

/// A key and a value go from one row to another.
fn copy_row(shape: &KvShape, keys: &mut [u8], values: &mut [u8], from: usize, to: usize) {
    let (k, v) = (shape.k_bytes(), shape.v_bytes());
    keys.copy_within(from * k..(from + 1) * k, to * k);
    values.copy_within(from * v..(from + 1) * v, to * v);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kv::policy::Marks;
    use crate::kv::types::KvType;

    /// One layer, one head, as many slots as positions unless told otherwise. A token's number is its key's norm, so that it can be known again.
    pub(super) fn cache(n_ctx: usize, sinks: u32, recent: Recent) -> (KvCache, Pool, Vec<RenumberScratch>) {
        cache_of(n_ctx, n_ctx, sinks, recent)
    }

    pub(in crate::kv) fn cache_for(shape: KvShape, params: &KvParams) -> KvCache {
        let (n_slot, rule) = params.fit(&shape).unwrap();
        KvCache::new(shape, n_slot, rule, params.budget_bytes).unwrap()
    }

    fn cache_of(n_slot: usize, n_ctx: usize, sinks: u32, recent: Recent) -> (KvCache, Pool, Vec<RenumberScratch>) {
        let shape = KvShape {
            n_layer: 1,
            n_head_kv: 1,
            head_dim: 8,
            n_batch: 1,
            n_ctx,
            window: None,
            k_type: KvType::F16,
            v_type: KvType::F16,
            capped: false,
            marks: Marks::default(),
        };
        let params = KvParams {
            budget_bytes: shape.arena_bytes(n_slot) as u64,
            policy: Policy::L2,
            sinks,
            pinned: 0,
            recent: Some(recent),
            rare: None,
            pool: None,
        };
        let scratch = vec![Arena::fill(|arena| RenumberScratch::carve(arena, n_ctx, 8)).unwrap()];
        (cache_for(shape, &params), Pool::new(1).unwrap(), scratch)
    }

    /// One layer, one head of 64 elements, eight slots or so for 64 positions; the oldest goes.
    pub(super) fn typed_cache(k_type: KvType, v_type: KvType, sinks: u32) -> (KvCache, Pool, RenumberScratch) {
        let (head_dim, n_ctx, marks) = (64, 64, Marks::default());
        let shape =
            KvShape { n_layer: 1, n_head_kv: 1, head_dim, n_batch: 1, n_ctx, window: None, k_type, v_type, capped: false, marks };
        let (budget_bytes, policy, recent) = (shape.arena_bytes(8) as u64, Policy::Window, Some(Recent::Tokens(1)));
        let params = KvParams { budget_bytes, policy, sinks, pinned: 0, recent, rare: None, pool: None };
        let scratch = Arena::fill(|arena| RenumberScratch::carve(arena, n_ctx, head_dim)).unwrap();
        (cache_for(shape, &params), Pool::new(1).unwrap(), scratch)
    }

    pub(super) fn feed(cache: &mut KvCache, pool: &mut Pool, scratch: &mut [RenumberScratch], token: usize) {
        cache.admit(1).unwrap();
        if cache.must_renumber(1) {
            cache.renumber(pool, scratch, |_, _, _| (), |_, _, _| ());
        }
        let row = [token as f32; 8];
        cache.rate(pool, 0, &row, &row, |key| key[0]);
        cache.place(pool, 0, &row, &row);
        cache.commit(0, 1);
        cache.advance(1);
    }

    /// The tokens kept, oldest first.
    fn tokens(cache: &KvCache) -> Vec<usize> {
        let mut kept: Vec<_> = cache.kept(0, 0).iter().zip(cache.scores(0, 0)).map(|(&p, &s)| (p, s as usize)).collect();
        kept.sort_unstable();
        kept.into_iter().map(|(_, token)| token).collect()
    }

    #[test]
    fn thinning_a_context_that_is_all_protected_drops_the_oldest_recent_or_the_last_sinks() {
        let (mut all_recent, mut pool, mut scratch) = cache(16, 2, Recent::Tokens(14));
        (0..17).for_each(|t| feed(&mut all_recent, &mut pool, &mut scratch, t));
        assert_eq!(tokens(&all_recent), [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let (mut no_sinks, ..) = cache(16, 0, Recent::Percent(100.0));
        (0..17).for_each(|t| feed(&mut no_sinks, &mut pool, &mut scratch, t));
        assert_eq!(tokens(&no_sinks), (2..17).collect::<Vec<_>>());
        let (mut all_sinks, ..) = cache(16, 15, Recent::Tokens(1));
        (0..17).for_each(|t| feed(&mut all_sinks, &mut pool, &mut scratch, t));
        assert_eq!(tokens(&all_sinks), (0..14).chain([16]).collect::<Vec<_>>());
    }

    /// Renumbering rounds keys again, in the basis they are stored in, and moves them no further than that.
    #[test]
    fn renumbered_keys_are_those_of_before_whatever_they_are_stored_in() {
        for k_type in KvType::ALL {
            let (mut cache, mut pool, scratch) = typed_cache(k_type, KvType::F16, 1);
            let (mut scratch, shape) = (vec![scratch], *cache.shape());
            let mut rng = fastrand::Rng::with_seed(5);
            for _ in 0..16 {
                let key: Vec<f32> = (0..64).map(|_| rng.f32() - 0.5).collect();
                cache.rate(&mut pool, 0, &key, &key, |key| key[0]);
                cache.place(&mut pool, 0, &key, &key);
                cache.commit(0, 1);
                cache.advance(1);
            }
            let keys = |cache: &KvCache| -> Vec<f32> {
                let rows = cache.keys().chunks_exact(shape.k_bytes()).take(cache.n_live());
                rows.flat_map(|row| {
                    let mut key = [0f32; 64];
                    k_type.row().load(row, &mut key);
                    k_type.turn_back(&mut key, 64);
                    key
                })
                .collect()
            };
            let before = keys(&cache);
            cache.renumber(&mut pool, &mut scratch, |_, _, _| (), |_, _, _| ());
            assert!(cache.kept(0, 0).iter().all(|&pos| (pos as usize) < cache.n_live()), "{}", k_type.name());
            let moved = keys(&cache).iter().zip(&before).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            // Half a step of the coarsest type is a thirty-second of its largest element; turned back it is spread.
            assert!(moved < 0.05, "{}: moved by {moved}", k_type.name());
        }
    }

    #[test]
    fn one_slot_is_enough_for_one_token_at_a_time() {
        let (mut one, mut pool, mut scratch) = cache_of(1, 8, 0, Recent::Tokens(1));
        // The rounding of regions may give a slot or two more.
        let n_slot = one.n_slot();
        for t in 0..40 {
            feed(&mut one, &mut pool, &mut scratch, t);
            assert!(tokens(&one).contains(&t) && tokens(&one).len() == n_slot.min(t + 1));
        }
        assert_eq!(one.n_evicted(), 40 - n_slot as u64);
    }

    #[test]
    fn no_shape_overflows_and_rows_can_be_numbered() {
        for (n_layer, n_head_kv, head_dim, n_ctx) in [(1, 1, 8, 8), (128, 128, 1024, 1 << 24), (65_536, 8, 1024, 1 << 24)] {
            let shape = KvShape {
                n_layer,
                n_head_kv,
                head_dim,
                n_batch: n_ctx / 8,
                n_ctx,
                window: None,
                k_type: KvType::F16,
                v_type: KvType::Q4H,
                capped: false,
                marks: Marks::default(),
            };
            for budget in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
                let n = shape.slots_within(budget);
                let rows = shape.n_heads() * n + n_head_kv * shape.n_batch;
                assert!(n <= n_ctx && rows <= u32::MAX as usize);
                assert!(n == 0 || shape.arena_bytes(n) as u64 <= budget);
            }
        }
    }

    #[test]
    fn shares_of_the_slots_never_exceed_them() {
        for n in (1..200_000).chain((1 << 24) - 1000..=1 << 24) {
            assert_eq!(Recent::Percent(100.0).of(n), n as u32);
            assert!(Recent::Percent(50.0).of(n) as usize == n / 2);
        }
    }
}
