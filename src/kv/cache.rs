//! The arena of keys and values: one allocation, carved at start, the same from the first token to the last.
//!
//! For each layer and KV head there are `n_slot` slots; a slot holds a key and a value (rounded to their types, the
//! key after RoPE), the score its policy gave it and its position. Slots fill in ring order; when all are taken the newcomer
//! overwrites the policy's victim in place. Heads choose for themselves: after a while they hold different tokens, but
//! always equally many. Where the model has layers with a sliding window (`Window`), those have as many slots as the window
//! and are rings: the oldest goes, whatever the policy.
//!
//! A batch of prefill is exactly the same as token by token: scores are fixed at insertion, so who dies at which step is
//! known before attention runs (`place`). The batch's rows wait in rows of their own behind the slots, attention sees
//! for each token the slots as they stand at its step (`rows_at`), and `commit` moves what survived into place.

mod thin;

use super::Pos;
use super::policy::{Policy, Protection, victim};
use super::types::KvType;
use super::window::Window;
use crate::error::{Error, Result};
use crate::mem::arena::{Arena, Buf, region_bytes};
use crate::mem::pool::Pool;
use crate::units::Bytes;

/// What the model and the batch ask of the arena.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub n_layer: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// Tokens of one prefill batch.
    pub n_batch: usize,
    /// The trained context: more slots than this would never be used.
    pub n_ctx: usize,
    /// Which layers see the latest tokens only, if any does.
    pub window: Option<Window>,
    /// How keys and values are stored.
    pub k_type: KvType,
    pub v_type: KvType,
}

impl KvShape {
    pub fn n_heads(&self) -> usize {
        self.n_layer * self.n_head_kv
    }

    /// Slots of each head of a layer where layers without a window have `n_slot`.
    pub fn slots(&self, layer: usize, n_slot: usize) -> usize {
        self.window.map_or(n_slot, |window| window.slots(layer, n_slot))
    }

    /// Slots of all heads of the first `n_layer` layers.
    fn slots_of(&self, n_layer: usize, n_slot: usize) -> usize {
        self.n_head_kv * self.window.map_or(n_layer * n_slot, |window| window.slots_of(n_layer, n_slot))
    }

    /// Bytes of one stored key.
    pub fn k_bytes(&self) -> usize {
        self.k_type.row().row_bytes(self.head_dim)
    }

    /// Bytes of one stored value.
    pub fn v_bytes(&self) -> usize {
        self.v_type.row().row_bytes(self.head_dim)
    }

    /// Keys and values of `n` tokens in f16, without anything beside them: what shares of a full cache refer to.
    pub fn full_f16_bytes(&self, n: usize) -> usize {
        2 * KvType::F16.row().row_bytes(self.head_dim) * self.slots_of(self.n_layer, n)
    }

    /// Key, value, score and position of one token in every head that no window limits.
    pub fn bytes_per_slot(&self) -> usize {
        let n_local = self.window.map_or(0, |window| window.n_local(self.n_layer));
        (self.n_layer - n_local) * self.n_head_kv * (self.k_bytes() + self.v_bytes() + size_of::<f32>() + size_of::<Pos>())
    }

    /// All bytes of an arena of `n_slot` slots, the rows of one batch included.
    pub fn arena_bytes(&self, n_slot: usize) -> usize {
        let slots = self.slots_of(self.n_layer, n_slot);
        let rows = slots + self.n_head_kv * self.n_batch;
        region_bytes::<u8>(rows * self.k_bytes())
            + region_bytes::<u8>(rows * self.v_bytes())
            + region_bytes::<f32>(slots)
            + region_bytes::<Pos>(slots)
            + region_bytes::<u32>(self.n_head_kv * self.n_batch)
    }

    /// The most slots that fit into `budget_bytes`: no more than the trained context, and no more than rows can be numbered.
    pub fn slots_within(&self, budget_bytes: u64) -> usize {
        let fits = |n: usize| self.arena_bytes(n) as u64 <= budget_bytes;
        let numbered = (u32::MAX as usize - self.n_head_kv * self.n_batch) / self.n_heads();
        let (mut low, mut high) = (0, self.n_ctx.min(numbered));
        if fits(high) {
            return high;
        }
        while low + 1 < high {
            let middle = (low + high) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }
}

/// KV heads of a layer at most: what `place` keeps on the stack.
pub const MAX_HEAD_KV: usize = 128;
/// Elements of a head at most: one fits on a stack.
pub const MAX_HEAD_DIM: usize = 1024;

/// What one head owns of the buffers that `place` writes.
struct HeadShare<'a> {
    scores: &'a mut [f32],
    positions: &'a mut [Pos],
    taken: &'a mut [u32],
    keys: &'a mut [u8],
    values: &'a mut [u8],
}

/// `--recent`: a count of tokens, or a share of the slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recent {
    Tokens(u32),
    Percent(f32),
}

impl Recent {
    pub fn of(self, n_slot: usize) -> u32 {
        match self {
            Recent::Tokens(n) => n,
            Recent::Percent(p) => (n_slot as f64 * f64::from(p) / 100.0) as u32,
        }
    }
}

impl std::str::FromStr for Recent {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let help = || format!("'{text}' is not a number of tokens, such as 64, or a share of the slots, such as 50%");
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f32>() {
                Ok(p) if (0.0..=100.0).contains(&p) => Ok(Recent::Percent(p)),
                _ => Err(help()),
            },
            None => text.parse().map(Recent::Tokens).map_err(|_| help()),
        }
    }
}

/// What the user asks of the arena.
#[derive(Clone, Copy, Debug)]
pub struct KvParams {
    pub budget_bytes: u64,
    pub policy: Policy,
    pub sinks: u32,
    pub recent: Recent,
}

impl KvParams {
    /// The slots that the budget gives and what they protect, or the message that says which budget would do.
    pub fn fit(&self, shape: &KvShape) -> Result<(usize, Protection)> {
        let n_slot = shape.slots_within(self.budget_bytes);
        let protect = self.policy.protection(self.sinks, self.recent.of(n_slot));
        if n_slot >= protect.min_slots() {
            return Ok((n_slot, protect));
        }
        let enough = (1..=shape.n_ctx).find(|&n| n >= self.policy.protection(self.sinks, self.recent.of(n)).min_slots());
        let batch = Bytes((shape.arena_bytes(0)) as u64);
        let Some(enough) = enough else {
            let what = format!(
                "{} sinks and the recent tokens do not fit into a context of {}; lower --sinks or --recent",
                self.sinks, shape.n_ctx
            );
            return Err(Error::usage(if self.sinks as usize >= shape.n_ctx { "--sinks" } else { "--recent" }, what));
        };
        Err(Error::budget(
            "--kv-budget",
            format!(
                "{} holds {n_slot} tokens of {} bytes beside {batch} for a batch of {}; '{}' with {} sinks and {} recent needs {enough}: \
                 give at least {} bytes, or lower --batch, --sinks or --recent",
                Bytes(self.budget_bytes),
                shape.bytes_per_slot(),
                shape.n_batch,
                self.policy.name(),
                protect.sinks,
                protect.recent,
                shape.arena_bytes(enough),
            ),
        ))
    }
}

pub struct KvCache {
    shape: KvShape,
    policy: Policy,
    protect: Protection,
    n_slot: usize,
    /// Taken slots; the same in every head, but no more than a layer has.
    n_live: usize,
    /// Position that the next token gets.
    next_pos: Pos,
    n_evicted: u64,
    budget_bytes: u64,
    arena_bytes: usize,
    /// `[n_layer][n_head_kv][n_slot]` rows (fewer in layers with a window), then `[n_head_kv][n_batch]` rows of the batch under way.
    keys: Buf<u8>,
    values: Buf<u8>,
    /// As `keys`, without those of the batch.
    scores: Buf<f32>,
    positions: Buf<Pos>,
    /// `[n_head_kv][n_batch]`: the slot that each token of the batch takes, in the layer under way.
    taken: Buf<u32>,
}

impl KvCache {
    pub fn new(shape: KvShape, params: &KvParams) -> Result<KvCache> {
        let (n_slot, protect) = params.fit(&shape)?;
        let arena_bytes = shape.arena_bytes(n_slot);
        assert!(arena_bytes as u64 <= params.budget_bytes);
        let mut arena = Arena::new(arena_bytes).map_err(|e| {
            Error::budget("--kv-budget", format!("the system did not give {} for the arena: {e}", Bytes(arena_bytes as u64)))
        })?;
        let (slots, batch) = (shape.slots_of(shape.n_layer, n_slot), shape.n_head_kv * shape.n_batch);
        let rows = slots + batch;
        let cache = KvCache {
            shape,
            policy: params.policy,
            protect,
            n_slot,
            n_live: 0,
            next_pos: 0,
            n_evicted: 0,
            budget_bytes: params.budget_bytes,
            arena_bytes,
            keys: arena.carve(rows * shape.k_bytes()),
            values: arena.carve(rows * shape.v_bytes()),
            scores: arena.carve(slots),
            positions: arena.carve(slots),
            taken: arena.carve(batch),
        };
        assert_eq!(arena.used(), arena_bytes);
        Ok(cache)
    }

    pub fn shape(&self) -> &KvShape {
        &self.shape
    }
    pub fn policy(&self) -> Policy {
        self.policy
    }
    pub fn protection(&self) -> Protection {
        self.protect
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
        &self.positions[self.first_row(layer, head)..][..self.live(layer)]
    }

    /// Scores of what a head holds, by slot.
    pub fn scores(&self, layer: usize, head: usize) -> &[f32] {
        &self.scores[self.first_row(layer, head)..][..self.live(layer)]
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        (self.n_live, self.next_pos, self.n_evicted) = (0, 0, 0);
    }

    /// Room for `n_tok` more tokens at the positions that follow, or the reason why not.
    pub fn admit(&self, n_tok: usize) -> Result<()> {
        assert!(n_tok <= self.shape.n_batch);
        if self.policy == Policy::Off && self.n_live + n_tok > self.n_slot {
            return Err(Error::Stopped(format!(
                "the arena of {} tokens is full and --evict off may not evict: raise --kv-budget or choose a policy such as l2",
                self.n_slot
            )));
        }
        Ok(())
    }

    fn slots(&self, layer: usize) -> usize {
        self.shape.slots(layer, self.n_slot)
    }

    /// Entries of each head of a layer.
    fn live(&self, layer: usize) -> usize {
        self.n_live.min(self.slots(layer))
    }

    /// Entries that the token `t` of the batch under way sees, itself included.
    pub fn live_at(&self, layer: usize, t: usize) -> usize {
        (self.n_live + t + 1).min(self.slots(layer))
    }

    /// Who goes in a layer: the policy's victim; in one with a window the oldest entry, which no later token sees.
    fn rule(&self, layer: usize) -> (Policy, Protection) {
        match self.is_ring(layer) {
            true => (Policy::Window, Protection::default()),
            false => (self.policy, self.protect),
        }
    }

    fn is_ring(&self, layer: usize) -> bool {
        self.shape.window.is_some_and(|window| window.limits(layer))
    }

    /// First of a head's rows; behind it its other slots. Valid for attention once the batch is committed.
    pub fn first_row(&self, layer: usize, head: usize) -> usize {
        self.shape.slots_of(layer, self.n_slot) + head * self.slots(layer)
    }

    fn batch_row(&self, head: usize) -> usize {
        self.shape.slots_of(self.shape.n_layer, self.n_slot) + head * self.shape.n_batch
    }

    /// Takes in the keys and values (`[n_tok][n_head_kv * head_dim]`, f32, keys turned) of one layer: rounds them into
    /// the batch's rows, and decides for every token which slot it takes, evicting where a head is full.
    pub fn place(&mut self, pool: &mut Pool, layer: usize, k: &[f32], v: &[f32], norm: impl Fn(&[f32]) -> f32 + Sync) {
        let KvShape { n_head_kv, head_dim, n_batch, k_type, v_type, .. } = self.shape;
        let (n_slot, n_live, next_pos, (policy, protect)) = (self.slots(layer), self.n_live, self.next_pos, self.rule(layer));
        let (n_tok, k_bytes, v_bytes) = (k.len() / (n_head_kv * head_dim), self.shape.k_bytes(), self.shape.v_bytes());
        let (heads, batch) = (self.first_row(layer, 0), self.batch_row(0));
        let mut scores = self.scores[heads..][..n_head_kv * n_slot].chunks_exact_mut(n_slot);
        let mut positions = self.positions[heads..][..n_head_kv * n_slot].chunks_exact_mut(n_slot);
        let mut taken = self.taken.chunks_exact_mut(n_batch);
        let mut keys = self.keys[batch * k_bytes..].chunks_exact_mut(n_batch * k_bytes);
        let mut values = self.values[batch * v_bytes..].chunks_exact_mut(n_batch * v_bytes);
        let mut shares: [Option<HeadShare>; MAX_HEAD_KV] = [const { None }; MAX_HEAD_KV];
        for share in &mut shares[..n_head_kv] {
            *share = (|| {
                let (scores, positions, taken) = (scores.next()?, positions.next()?, taken.next()?);
                Some(HeadShare { scores, positions, taken, keys: keys.next()?, values: values.next()? })
            })();
        }
        pool.for_chunks(&mut shares[..n_head_kv], 1, |h, share| {
            let HeadShare { scores, positions, taken, keys, values } = share[0].as_mut().expect("carved for n_head_kv heads");
            for t in 0..n_tok {
                let at = (t * n_head_kv + h) * head_dim;
                let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                store(k_type, key, &mut keys[t * k_bytes..][..k_bytes]);
                store(v_type, value, &mut values[t * v_bytes..][..v_bytes]);
                let now = next_pos + t as Pos;
                let slot = if n_live + t < n_slot {
                    n_live + t
                } else {
                    victim(scores, positions, now, protect).expect("the budget was checked to leave an entry that may go")
                };
                (scores[slot], positions[slot], taken[t]) = (policy.score(norm(key)), now, slot as u32);
            }
        });
    }

    /// Writes into `table` the row of every entry that token `t` of the batch sees in this head, in slot order.
    pub fn rows_at(&self, layer: usize, head: usize, t: usize, table: &mut [u32]) -> usize {
        let (first, live) = (self.first_row(layer, head) as u32, self.live_at(layer, t));
        for (slot, row) in table[..live].iter_mut().enumerate() {
            *row = first + slot as u32;
        }
        let batch = self.batch_row(head) as u32;
        for (i, &slot) in self.taken[head * self.shape.n_batch..][..t + 1].iter().enumerate() {
            table[slot as usize] = batch + i as u32;
        }
        live
    }

    /// Moves the batch's rows of this layer into the slots they took. Where a slot was taken twice the later stays.
    pub fn commit(&mut self, layer: usize, n_tok: usize) {
        for head in 0..self.shape.n_head_kv {
            let (first, batch) = (self.first_row(layer, head), self.batch_row(head));
            for t in 0..n_tok {
                self.copy_row(batch + t, first + self.taken[head * self.shape.n_batch + t] as usize);
            }
        }
    }

    fn copy_row(&mut self, from: usize, to: usize) {
        let (k, v) = (self.shape.k_bytes(), self.shape.v_bytes());
        self.keys.copy_within(from * k..(from + 1) * k, to * k);
        self.values.copy_within(from * v..(from + 1) * v, to * v);
    }

    /// After all layers: the tokens are in.
    pub fn advance(&mut self, n_tok: usize) {
        let live = (self.n_live + n_tok).min(self.n_slot);
        self.n_evicted += (self.n_live + n_tok - live) as u64;
        self.n_live = live;
        self.next_pos += n_tok as Pos;
    }

    /// Whether the next `n_tok` positions would pass the trained context.
    pub fn must_renumber(&self, n_tok: usize) -> bool {
        self.next_pos as usize + n_tok > self.shape.n_ctx
    }

    /// Past the trained context RoPE's angles mean nothing to the model. So before it is reached, every entry gets its
    /// rank by age in its head as its new position, and its key is turned by the difference, in place: as if the stream
    /// had consisted of just what is kept. Order by age is unchanged, sinks are still the first positions, recent
    /// entries the last, so protection is unchanged too. In layers with a window ranks end where they end in the others, for
    /// the newest token has one position. `turn(layer, key, angles, steps)` re-rotates one f32 key.
    ///
    /// If the entries alone would (nearly) fill the context, the policy first evicts an eighth of it.
    pub fn renumber(
        &mut self,
        pool: &mut Pool,
        scratch: &mut [RenumberScratch],
        turn: impl Fn(usize, &mut [f32], &mut [f32], i64) + Sync,
    ) {
        let most = self.shape.n_ctx - self.shape.n_ctx / 8;
        while self.n_live > most {
            self.drop_one();
        }
        let KvShape { n_layer, head_dim, n_head_kv, k_type, .. } = self.shape;
        let row_bytes = self.shape.k_bytes();
        for layer in 0..n_layer {
            let (n_slot, live, heads) = (self.slots(layer), self.live(layer), self.first_row(layer, 0));
            let oldest = self.n_live - live;
            let keys = &mut self.keys[heads * row_bytes..][..n_head_kv * n_slot * row_bytes];
            let positions = &mut self.positions[heads..][..n_head_kv * n_slot];
            pool.for_chunks2_with(scratch, (keys, n_slot * row_bytes), (positions, n_slot), |scratch, _, keys, positions| {
                let positions = &mut positions[..live];
                let RenumberScratch { order, key, angles } = scratch;
                let order = &mut order[..live];
                for (i, slot) in order.iter_mut().enumerate() {
                    *slot = i as u32;
                }
                order.sort_unstable_by_key(|&slot| positions[slot as usize]);
                for (rank, &slot) in order.iter().enumerate() {
                    let row = &mut keys[slot as usize * row_bytes..][..row_bytes];
                    let (pos, new) = (&mut positions[slot as usize], (oldest + rank) as Pos);
                    if *pos != new {
                        k_type.row().load(row, key);
                        k_type.turn_back(key, head_dim);
                        turn(layer, key, angles, i64::from(new) - i64::from(*pos));
                        k_type.turn(key, head_dim);
                        k_type.row().store(key, row);
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
    pub fn bytes(n_slot: usize, head_dim: usize) -> usize {
        region_bytes::<u32>(n_slot) + 2 * region_bytes::<f32>(head_dim)
    }

    pub fn carve(arena: &mut Arena, n_slot: usize, head_dim: usize) -> Self {
        RenumberScratch { order: arena.carve(n_slot), key: arena.carve(head_dim), angles: arena.carve(head_dim) }
    }
}

/// Rounds a vector into a row, in the basis of its type.
fn store(ty: KvType, x: &[f32], row: &mut [u8]) {
    if !ty.is_turned() {
        return ty.row().store(x, row);
    }
    let mut room = [0f32; MAX_HEAD_DIM];
    let turned = &mut room[..x.len()];
    turned.copy_from_slice(x);
    ty.turn(turned, x.len());
    ty.row().store(turned, row);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One layer, one head, as many slots as positions unless told otherwise. A token's number is its key's norm, so that it can be known again.
    pub(super) fn cache(n_ctx: usize, sinks: u32, recent: Recent) -> (KvCache, Pool, Vec<RenumberScratch>) {
        cache_of(n_ctx, n_ctx, sinks, recent)
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
        };
        let params = KvParams { budget_bytes: shape.arena_bytes(n_slot) as u64, policy: Policy::L2, sinks, recent };
        let mut arena = Arena::new(RenumberScratch::bytes(n_ctx, 8)).unwrap();
        let scratch = vec![RenumberScratch::carve(&mut arena, n_ctx, 8)];
        (KvCache::new(shape, &params).unwrap(), Pool::new(1).unwrap(), scratch)
    }

    pub(super) fn feed(cache: &mut KvCache, pool: &mut Pool, scratch: &mut [RenumberScratch], token: usize) {
        cache.admit(1).unwrap();
        if cache.must_renumber(1) {
            cache.renumber(pool, scratch, |_, _, _, _| ());
        }
        let row = [token as f32; 8];
        cache.place(pool, 0, &row, &row, |key| key[0]);
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
            let shape = KvShape {
                n_layer: 1,
                n_head_kv: 1,
                head_dim: 64,
                n_batch: 1,
                n_ctx: 16,
                window: None,
                k_type,
                v_type: KvType::F16,
            };
            let budget_bytes = shape.arena_bytes(8) as u64;
            let params = KvParams { budget_bytes, policy: Policy::Window, sinks: 1, recent: Recent::Tokens(1) };
            let mut cache = KvCache::new(shape, &params).unwrap();
            let mut arena = Arena::new(RenumberScratch::bytes(16, 64)).unwrap();
            let (mut scratch, mut pool) = (vec![RenumberScratch::carve(&mut arena, 16, 64)], Pool::new(1).unwrap());
            let mut rng = fastrand::Rng::with_seed(5);
            for _ in 0..16 {
                let key: Vec<f32> = (0..64).map(|_| rng.f32() - 0.5).collect();
                cache.place(&mut pool, 0, &key, &key, |key| key[0]);
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
            cache.renumber(&mut pool, &mut scratch, |_, _, _, _| ());
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
