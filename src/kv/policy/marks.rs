//! What a policy keeps to decide by: for each entry its position and a score, and where the policy asks for them how
//! common it is and the attention it received; for each head the mean direction of its keys and what the latest tokens scored. All of
//! it is carved from the arena and none of it grows. Means forget what is far behind, so that they are as good after ten million
//! tokens as after ten thousand; the sums of H2O are the paper's, and lose what is small beside them.

use std::ops::Range;

use super::ageing::Ageing;
use super::table::{Judges, Received};
use super::victim::{Entries, NO_LIMIT, victim};
use super::{Entering, Keeps, Rule};
use crate::kv::Pos;
use crate::kv::layout::{AttnLayer, KvShape};
use crate::mem::arena::{Arena, Buf, bytes_of_mut};

/// Tokens that means look back upon, at most: sums of so many f32 lose nothing, and a stream may change its subject.
const MEMORY: u64 = 4096;
/// The attention received of an entry is averaged as if it had been here for so many tokens before it came, each of
/// which gave it `PRIOR`.
const HEAD_START: f32 = 32.0;
const PRIOR: f32 = 3e-4;

/// The marks of all heads.
pub struct Marks {
    n_slot: usize,
    ageing: Ageing,
    /// `[n_layer][n_head_kv][n_slot]`, as the rows of keys; `common` and `received` too.
    pub positions: Buf<Pos>,
    pub scores: Buf<f32>,
    /// The worth with the sign of a score: the higher the sooner.
    common: Buf<f32>,
    pub received: Buf<f32>,
    /// Which token of the stream it is, the low bits of its number, where there is a past in a file.
    pub tokens: Buf<u32>,
    /// `[n_layer][n_head_kv][head_dim]`: mean of the keys before RoPE, each of length one.
    mean: Buf<f32>,
    /// `[n_layer][n_head_kv][pool]`: `score` and `common` of the latest tokens before pooling (`[2]`), and their slots.
    latest: Buf<f32>,
    latest_slots: Buf<u32>,
    /// `[n_head_kv][n_batch][2]`: `score` and `common` of the tokens of the batch, in the layer under way.
    entering: Buf<f32>,
    /// `[n_layer][n_head_kv]`: how common an entry must be to be outside the reserve.
    limits: Buf<i32>,
}

impl Marks {
    pub fn carve(arena: &mut Arena, shape: &KvShape, n_slot: usize) -> Self {
        let (slots, heads, m) = (shape.slots_of(shape.n_layer, n_slot), shape.n_heads(), shape.keeps);
        let if_so = |wanted: bool, n: usize| if wanted { n } else { 0 };
        Marks {
            n_slot,
            ageing: Ageing { unit_at: 0, half_life: m.half_life as u64 * n_slot as u64 },
            positions: arena.carve(slots),
            scores: arena.carve(slots),
            common: arena.carve(if_so(m.common, slots)),
            received: arena.carve(if_so(m.received, slots)),
            tokens: arena.carve(if_so(m.token, slots)),
            mean: arena.carve(if_so(m.direction, shape.dims_of(shape.n_layer))),
            latest: arena.carve(2 * heads * m.pool),
            latest_slots: arena.carve(heads * m.pool),
            entering: arena.carve(2 * shape.max_head_kv() * shape.n_batch),
            limits: arena.carve(if_so(m.reserve, heads)),
        }
    }

    pub fn clear(&mut self) {
        self.ageing.unit_at = 0;
        self.mean.fill(0.0);
        self.latest_slots.fill(u32::MAX);
        self.limits.fill(NO_LIMIT);
    }

    /// Goes over the marks of the first `n_live` entries of a head whose slots begin at `first`.
    pub fn visit_entries<E>(
        &mut self,
        (first, n_live): (usize, usize),
        see: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        see(bytes_of_mut(&mut self.positions[first..][..n_live]))?;
        for marks in [&mut self.scores, &mut self.common, &mut self.received] {
            if !marks.is_empty() {
                see(bytes_of_mut(&mut marks[first..][..n_live]))?;
            }
        }
        if !self.tokens.is_empty() {
            see(bytes_of_mut(&mut self.tokens[first..][..n_live]))?;
        }
        Ok(())
    }

    /// Goes over what belongs to heads and to no entry.
    pub fn visit_heads<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        see(bytes_of_mut(&mut self.mean))?;
        see(bytes_of_mut(&mut self.latest))?;
        see(bytes_of_mut(&mut self.latest_slots))?;
        see(bytes_of_mut(&mut self.limits))
    }

    /// Tokens of the stream after which scores got the unit they are kept in.
    pub fn unit_at(&self) -> u64 {
        self.ageing.unit_at
    }

    /// Whether scores may have got their unit then, in a stream of `n_past` tokens.
    pub fn may_be_unit(&self, unit_at: u64, n_past: u64) -> bool {
        unit_at <= n_past && (unit_at == 0 || self.ageing.half_life > 0)
    }

    pub fn set_unit_at(&mut self, unit_at: u64) {
        self.ageing.unit_at = unit_at;
    }

    /// Whether what heads know are numbers.
    pub fn is_sound(&self) -> bool {
        self.mean.iter().all(|x| x.is_finite())
    }

    /// The tokens in slots from `first` on were taken back: they are no neighbours of those to come.
    pub fn forget_slots(&mut self, first: u32) {
        self.latest_slots.iter_mut().filter(|slot| **slot >= first).for_each(|slot| *slot = u32::MAX);
    }

    /// What is known of the entries in rows `from` goes to those from `to` on.
    pub fn move_slots(&mut self, from: Range<usize>, to: usize) {
        self.positions.copy_within(from.clone(), to);
        if !self.tokens.is_empty() {
            self.tokens.copy_within(from.clone(), to);
        }
        for marks in [&mut self.scores, &mut self.common, &mut self.received].into_iter().filter(|marks| !marks.is_empty()) {
            marks.copy_within(from.clone(), to);
        }
    }

    /// Tokens that may still come after `n_past` before scores are due to get another unit.
    pub fn unit_lasts(&self, n_past: u64) -> u64 {
        self.ageing.unit_lasts(n_past)
    }

    /// After `n_past` tokens, between batches.
    pub fn renew_unit(&mut self, n_past: u64) {
        if let Some(unit) = self.ageing.renew_unit(n_past) {
            self.scores.iter_mut().chain(self.latest.iter_mut()).for_each(|score| *score = (*score * unit).min(f32::MAX));
        }
    }

    /// The heads of a layer, one after the other, each with what is its own.
    pub fn of_layer(&mut self, shape: &KvShape, layer: AttnLayer, rule: Rule) -> impl Iterator<Item = HeadMarks<'_>> {
        let Keeps { common, received, direction, reserve, pool, token, .. } = shape.keeps;
        let (first, n_slot) = (shape.slots_of(layer.0, self.n_slot), shape.slots(layer, self.n_slot));
        let (of, heads) = (shape.of(layer), shape.heads_before(layer));
        let (dims, dim) = if direction { (shape.dims_of(layer.0), of.head_dim) } else { (0, 0) };
        let per_slot = move |wanted: bool| if wanted { (first, n_slot) } else { (0, 0) };
        let mut scores = pieces(&mut self.scores, (first, n_slot));
        let mut commons = pieces(&mut self.common, per_slot(common));
        let mut receiveds = pieces(&mut self.received, per_slot(received));
        let mut tokens = pieces(&mut self.tokens, per_slot(token));
        let mut mean = pieces(&mut self.mean, (dims, dim));
        let mut latest = pieces(&mut self.latest, (2 * heads * pool, 2 * pool));
        let mut latest_slots = pieces(&mut self.latest_slots, (heads * pool, pool));
        let mut entering = pieces(&mut self.entering, (0, 2 * shape.n_batch));
        let mut limits = pieces(&mut self.limits, if reserve { (heads, 1) } else { (0, 0) });
        let ageing = self.ageing;
        let positions = self.positions[first..][..of.n_head_kv * n_slot].chunks_exact_mut(n_slot);
        positions.map(move |positions| HeadMarks {
            rule,
            ageing,
            positions,
            scores: next(&mut scores),
            common: next(&mut commons),
            received: next(&mut receiveds),
            tokens: next(&mut tokens),
            mean: next(&mut mean),
            latest: next(&mut latest),
            latest_slots: next(&mut latest_slots),
            entering: next(&mut entering),
            limit: next(&mut limits),
        })
    }
}

/// Pieces of `len` elements from `first` on; empty ones where there is nothing to cut.
pub(in crate::kv) fn pieces<T>(buf: &mut [T], (first, len): (usize, usize)) -> impl Iterator<Item = &mut [T]> {
    buf[first..].chunks_mut(len.max(1)).chain(std::iter::repeat_with(|| -> &mut [T] { &mut [] })).map(move |piece| {
        let n = len.min(piece.len());
        &mut piece[..n]
    })
}

fn next<T>(mut pieces: impl Iterator<Item = T>) -> T {
    pieces.next().expect("pieces never end")
}

/// What belongs to one head.
pub struct HeadMarks<'a> {
    pub rule: Rule,
    ageing: Ageing,
    pub positions: &'a mut [Pos],
    scores: &'a mut [f32],
    common: &'a mut [f32],
    received: &'a mut [f32],
    tokens: &'a mut [u32],
    mean: &'a mut [f32],
    latest: &'a mut [f32],
    latest_slots: &'a mut [u32],
    entering: &'a mut [f32],
    /// One, of a policy with a reserve.
    limit: &'a mut [i32],
}

impl HeadMarks<'_> {
    /// Rates the token `t` of the batch, the `n_past`-th of the stream, by its key before RoPE and its value.
    pub fn rate(&mut self, t: usize, n_past: u64, key: &[f32], value: &[f32], noise: f32, norm: impl Fn(&[f32]) -> f32) {
        let key_norm = norm(key);
        let mut entering = Entering { key_norm, value_norm: 0.0, cos: 0.0, noise };
        if self.rule.policy.row().reads_value || !self.common.is_empty() {
            entering.value_norm = norm(value);
        }
        if !self.mean.is_empty() {
            entering.cos = cosine(key, key_norm, self.mean, norm(self.mean));
            let share = 1.0 / (n_past + 1).min(MEMORY) as f32;
            let unit = if key_norm > 0.0 { 1.0 / key_norm } else { 0.0 };
            for (mean, k) in self.mean.iter_mut().zip(key) {
                *mean += (k * unit - *mean) * share;
            }
        }
        let score = (self.rule.policy.row().score)(&entering) * self.ageing.youth(n_past);
        self.entering[2 * t..][..2].copy_from_slice(&[score, -entering.worth()]);
    }

    /// The slot of the entry among the first `n_live` that goes so that the token at `now` can enter.
    pub fn victim(&mut self, n_live: usize, now: Pos) -> Option<usize> {
        let (positions, scores) = (&self.positions[..n_live], &self.scores[..n_live]);
        let (received, common) = (self.received.get(..n_live).unwrap_or(scores), self.common.get(..n_live).unwrap_or(scores));
        let mut none = NO_LIMIT;
        let limit = self.limit.first_mut().unwrap_or(&mut none);
        victim(self.rule, Entries { positions, scores, received, common }, now, limit)
    }

    /// The token `t` of the batch takes a slot.
    pub fn enter(&mut self, slot: usize, t: usize, n_past: u64, now: Pos) {
        // What enters a ring is not rated.
        let is_rated = self.rule != Rule::RING;
        let [raw_score, raw_common] = if is_rated { [self.entering[2 * t], self.entering[2 * t + 1]] } else { [0.0; 2] };
        let (mut score, mut common) = (raw_score, raw_common);
        // Neighbours lend each other what keeps them: the lower score, the less common.
        let pool = self.latest_slots.len();
        for back in 1..=pool.min(n_past as usize) {
            let i = ((n_past - back as u64) % pool as u64) as usize;
            let (theirs, slot) = (&self.latest[2 * i..][..2], self.latest_slots[i] as usize);
            score = score.min(theirs[0]);
            common = common.min(theirs[1]);
            if self.positions.get(slot) == Some(&now.wrapping_sub(back as Pos)) {
                self.scores[slot] = self.scores[slot].min(raw_score);
                if let Some(common) = self.common.get_mut(slot) {
                    *common = common.min(raw_common);
                }
            }
        }
        if pool > 0 {
            let i = (n_past % pool as u64) as usize;
            self.latest[2 * i..][..2].copy_from_slice(&[raw_score, raw_common]);
            self.latest_slots[i] = slot as u32;
        }
        (self.positions[slot], self.scores[slot]) = (now, score);
        if let Some(token) = self.tokens.get_mut(slot) {
            *token = n_past as u32;
        }
        if let Some(c) = self.common.get_mut(slot) {
            *c = common;
        }
        if let Some(received) = self.received.get_mut(slot) {
            *received = if self.rule.policy.row().received() == Some(Received::Mean) { PRIOR } else { 0.0 };
        }
    }

    /// Adds to the attention received of the first `n_live` slots what the `n_tok` tokens from `next_pos` on gave them. `given`:
    /// to each slot, then from `waiting` on to each token of the batch, which is in its slot only if it came alone.
    pub fn settle(&mut self, n_live: usize, given: &[f32], waiting: usize, n_tok: usize, next_pos: Pos) {
        let last = next_pos + n_tok as Pos - 1;
        match self.rule.policy.row().received() {
            Some(Received::Mean) if n_tok == 1 => {
                for ((received, &pos), given) in self.received[..n_live].iter_mut().zip(&*self.positions).zip(given) {
                    *received = mean_received(*received, *given, 1, last, pos);
                }
            }
            how => {
                for (slot, (received, &pos)) in self.received[..n_live].iter_mut().zip(&*self.positions).enumerate() {
                    let (n_seen, given) = match pos.checked_sub(next_pos) {
                        Some(t) if n_tok > 1 => (n_tok as Pos - t, given[waiting + t as usize]),
                        _ => (n_tok as Pos, given[slot]),
                    };
                    *received = match how {
                        Some(Received::Latest) => given,
                        Some(Received::Sum) => *received + given,
                        _ => mean_received(*received, given, n_seen, last, pos),
                    };
                }
            }
        }
    }

    /// Scores anew, by a function of the slot.
    pub fn rescore(&mut self, n_live: usize, mut score: impl FnMut(usize) -> f32) {
        for (slot, s) in self.scores[..n_live].iter_mut().enumerate() {
            *s = score(slot);
        }
    }

    /// Whether the entry has a score, of a policy that rates late.
    pub fn is_rated(&self, slot: usize) -> bool {
        self.scores[slot] > f32::NEG_INFINITY
    }

    /// The score of an entry that had none.
    pub fn rate_late(&mut self, slot: usize, score: f32) {
        self.scores[slot] = score;
    }

    /// How much the entry ought to go, the reserve aside.
    pub fn priority(&self, slot: usize) -> f32 {
        self.rule.policy.row().priority.of(self.scores[slot], *self.received.get(slot).unwrap_or(&0.0))
    }

    /// How common the entry is: the reserve is for the least common.
    pub fn common(&self, slot: usize) -> f32 {
        *self.common.get(slot).unwrap_or(&self.scores[slot])
    }

    /// Goes over what is known of an entry, `entry_bytes` of them.
    pub fn visit_entry(&mut self, slot: usize, see: &mut impl FnMut(&mut [u8])) {
        see(bytes_of_mut(&mut self.positions[slot..=slot]));
        for marks in [&mut *self.scores, &mut *self.common, &mut *self.received] {
            if !marks.is_empty() {
                see(bytes_of_mut(&mut marks[slot..=slot]));
            }
        }
    }

    /// Goes over what a token may change besides the entry whose slot it takes, and besides `changing`: what belongs to no entry, and what
    /// the latest tokens are lent by the next.
    pub fn visit_head(&mut self, see: &mut impl FnMut(&mut [u8])) {
        see(bytes_of_mut(self.mean));
        see(bytes_of_mut(self.latest));
        see(bytes_of_mut(self.latest_slots));
        see(bytes_of_mut(self.limit));
        for &slot in self.latest_slots.iter() {
            let slot = slot as usize;
            if slot < self.positions.len() {
                see(bytes_of_mut(&mut self.scores[slot..=slot]));
                self.common.get_mut(slot..=slot).into_iter().for_each(|common| see(bytes_of_mut(common)));
            }
        }
    }

    /// Of an entry.
    pub fn entry_bytes(shape: &KvShape) -> usize {
        let Keeps { common, received, .. } = shape.keeps;
        size_of::<u32>() * (2 + usize::from(common) + usize::from(received))
    }

    /// The most that `visit_entry` and `visit_head` go over together.
    pub fn undo_bytes(shape: &KvShape) -> usize {
        let Keeps { common, direction, reserve, pool, .. } = shape.keeps;
        let of_head = if direction { shape.max_head_dim() } else { 0 } + usize::from(reserve);
        Self::entry_bytes(shape) + size_of::<u32>() * (of_head + pool * (3 + 1 + usize::from(common)))
    }

    /// What a token changes of every entry, by slot; empty where that is nothing.
    pub fn changing(&mut self) -> &mut [f32] {
        match self.rule.policy.row().judges {
            Judges::AtEntry => &mut [],
            Judges::ByAttention(_) => self.received,
            Judges::PerBatch | Judges::Late => self.scores,
        }
    }

    /// An entry changes its slot.
    pub fn moved(&mut self, from: usize, to: usize) {
        (self.positions[to], self.scores[to]) = (self.positions[from], self.scores[from]);
        for marks in [&mut self.common, &mut self.received] {
            if !marks.is_empty() {
                marks[to] = marks[from];
            }
        }
        if !self.tokens.is_empty() {
            self.tokens[to] = self.tokens[from];
        }
        for slot in self.latest_slots.iter_mut().filter(|slot| **slot == from as u32) {
            *slot = to as u32;
        }
    }
}

/// Keys and values of a head, by slot.
pub struct StoredHead<'a> {
    pub shape: KvShape,
    pub head_dim: usize,
    pub keys: &'a [u8],
    pub values: &'a [u8],
}

impl StoredHead<'_> {
    /// In the basis in which it is stored.
    pub fn key(&self, slot: usize, out: &mut [f32]) {
        let ty = self.shape.k_type.row();
        ty.load(&self.keys[slot * ty.row_bytes(self.head_dim)..], out);
    }

    pub fn value(&self, slot: usize, out: &mut [f32]) {
        let ty = self.shape.v_type.row();
        ty.load(&self.values[slot * ty.row_bytes(self.head_dim)..], out);
    }
}

/// The mean attention that the entry at `pos` received until `last`, the latest `n_tok` tokens, its own among them if it is new,
/// having given it `given` together. Renumbering makes entries younger than they are; their means then learn a little faster.
fn mean_received(mean: f32, given: f32, n_tok: Pos, last: Pos, pos: Pos) -> f32 {
    let age = (last + 1 - pos - n_tok).min(MEMORY as Pos);
    let before = age as i32 as f32 + HEAD_START;
    (mean * before + given) / (before + n_tok as i32 as f32)
}

/// Of vectors of a multiple of eight elements, as heads are; 0 where there is no direction yet.
pub fn cosine(a: &[f32], a_norm: f32, b: &[f32], b_norm: f32) -> f32 {
    let mut dot = [0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for l in 0..8 {
            dot[l] += a[l] * b[l];
        }
    }
    let norms = a_norm * b_norm;
    if norms > 0.0 { dot.iter().sum::<f32>() / norms } else { 0.0 }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/policy/marks.rs"]
mod tests;
