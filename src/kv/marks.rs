//! What a policy keeps to decide by: for each entry a score, and where the policy asks for them its worth and the attention
//! it received; for each head the mean direction of its keys and what the latest tokens scored. All of it is carved from
//! the arena, none of it grows, and no sum runs away however long the stream (means forget what is far behind).

use super::Pos;
use super::cache::MAX_HEAD_DIM;
use super::policy::{Entering, Marks, Rule, urge, victim};
use super::shape::KvShape;
use crate::mem::arena::{Arena, Buf, region_bytes};

/// Tokens that means look back upon, at most: sums of so many f32 lose nothing, and a stream may change its subject.
const MEMORY: u64 = 4096;
/// The attention received of an entry is averaged as if it had been here for so many tokens before it came, each of
/// which gave it `PRIOR`.
const HEAD_START: f32 = 32.0;
const PRIOR: f32 = 3e-4;

/// The marks of all heads.
pub struct HeadMarks {
    marks: Marks,
    /// `[n_layer][n_head_kv][n_slot]`, as the rows of keys.
    scores: Buf<f32>,
    worth: Buf<f32>,
    received: Buf<f32>,
    /// `[n_layer][n_head_kv][head_dim]`: mean of the keys before RoPE, each of length one.
    mean: Buf<f32>,
    /// `[n_layer][n_head_kv][pool]`: score and worth of the latest tokens before pooling, and their slots.
    latest: Buf<f32>,
    latest_slots: Buf<u32>,
    /// `[n_head_kv][n_batch]`: score and worth of the tokens of the batch, in the layer under way.
    entering: Buf<f32>,
    /// `[n_head_kv][n_slot]`: room to look for the rarest.
    room: Buf<f32>,
}

/// Lengths of the buffers, in the order of the fields.
fn lengths(shape: &KvShape, n_slot: usize) -> [usize; 8] {
    let (slots, heads, m) = (shape.slots_of(shape.n_layer, n_slot), shape.n_heads(), shape.marks);
    let if_so = |wanted: bool, n: usize| if wanted { n } else { 0 };
    [
        slots,
        if_so(m.worth, slots),
        if_so(m.received, slots),
        if_so(m.direction, heads * shape.head_dim),
        2 * heads * m.pool,
        heads * m.pool,
        2 * shape.n_head_kv * shape.n_batch,
        if_so(m.reserve, shape.n_head_kv * n_slot),
    ]
}

impl HeadMarks {
    pub fn bytes(shape: &KvShape, n_slot: usize) -> usize {
        lengths(shape, n_slot).into_iter().map(region_bytes::<f32>).sum()
    }

    pub fn carve(arena: &mut Arena, shape: &KvShape, n_slot: usize) -> Self {
        let [scores, worth, received, mean, latest, latest_slots, entering, room] = lengths(shape, n_slot);
        HeadMarks {
            marks: shape.marks,
            scores: arena.carve(scores),
            worth: arena.carve(worth),
            received: arena.carve(received),
            mean: arena.carve(mean),
            latest: arena.carve(latest),
            latest_slots: arena.carve(latest_slots),
            entering: arena.carve(entering),
            room: arena.carve(room),
        }
    }

    pub fn scores(&self, rows: std::ops::Range<usize>) -> &[f32] {
        &self.scores[rows]
    }

    /// Attention received, where the policy counts it; otherwise nothing.
    pub fn received(&self, rows: std::ops::Range<usize>) -> &[f32] {
        if self.marks.received { &self.received[rows] } else { &[] }
    }

    pub fn clear(&mut self) {
        self.mean.fill(0.0);
        self.latest_slots.fill(u32::MAX);
    }

    /// The heads of a layer, one after the other, each with what is its own. `first`: the layer's first row, `n_slot`: slots of
    /// each head.
    pub(super) fn of_layer<'a>(
        &'a mut self,
        shape: &KvShape,
        layer: usize,
        (first, n_slot): (usize, usize),
        positions: &'a mut [Pos],
        rule: Rule,
    ) -> impl Iterator<Item = Head<'a>> {
        let Marks { worth, received, direction, reserve, pool } = self.marks;
        let (heads, dim) = (layer * shape.n_head_kv, if direction { shape.head_dim } else { 0 });
        let per_slot = move |wanted: bool| if wanted { (first, n_slot) } else { (0, 0) };
        let mut scores = pieces(&mut self.scores, (first, n_slot));
        let mut worths = pieces(&mut self.worth, per_slot(worth));
        let mut receiveds = pieces(&mut self.received, per_slot(received));
        let mut mean = pieces(&mut self.mean, (heads * dim, dim));
        let mut latest = pieces(&mut self.latest, (2 * heads * pool, 2 * pool));
        let mut latest_slots = pieces(&mut self.latest_slots, (heads * pool, pool));
        let mut entering = pieces(&mut self.entering, (0, 2 * shape.n_batch));
        let mut room = pieces(&mut self.room, (0, if reserve { n_slot } else { 0 }));
        let positions = positions[first..][..shape.n_head_kv * n_slot].chunks_exact_mut(n_slot);
        positions.map(move |positions| Head {
            rule,
            positions,
            scores: next(&mut scores),
            worth: next(&mut worths),
            received: next(&mut receiveds),
            mean: next(&mut mean),
            latest: next(&mut latest),
            latest_slots: next(&mut latest_slots),
            entering: next(&mut entering),
            room: next(&mut room),
        })
    }
}

/// Pieces of `len` elements from `first` on; empty ones where there is nothing to cut.
fn pieces<T>(buf: &mut [T], (first, len): (usize, usize)) -> impl Iterator<Item = &mut [T]> {
    buf[first..].chunks_mut(len.max(1)).chain(std::iter::repeat_with(|| -> &mut [T] { &mut [] })).map(move |piece| {
        let n = len.min(piece.len());
        &mut piece[..n]
    })
}

fn next<T>(mut pieces: impl Iterator<Item = T>) -> T {
    pieces.next().expect("pieces never end")
}

/// What belongs to one head.
pub(super) struct Head<'a> {
    pub rule: Rule,
    pub positions: &'a mut [Pos],
    pub scores: &'a mut [f32],
    worth: &'a mut [f32],
    received: &'a mut [f32],
    mean: &'a mut [f32],
    latest: &'a mut [f32],
    latest_slots: &'a mut [u32],
    entering: &'a mut [f32],
    room: &'a mut [f32],
}

impl Head<'_> {
    /// Rates the token `t` of the batch, the `n_past`-th of the stream, by its key before RoPE and its value.
    pub fn rate(&mut self, t: usize, n_past: u64, key: &[f32], value: &[f32], noise: f32, norm: impl Fn(&[f32]) -> f32) {
        let key_norm = norm(key);
        let mut entering = Entering { key_norm, value_norm: 0.0, cos: 0.0, noise };
        if self.rule.policy.asks_value() || !self.worth.is_empty() {
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
        self.entering[2 * t..][..2].copy_from_slice(&[self.rule.policy.score(&entering), entering.worth()]);
    }

    /// The slot of the entry among the first `n_live` that goes so that the token at `now` can enter.
    pub fn victim(&mut self, n_live: usize, now: Pos) -> Option<usize> {
        let Rule { policy, protect, n_rare } = self.rule;
        let Head { positions, scores, worth, received, room, .. } = self;
        let at = |slot: usize| urge(policy, scores[slot], *received.get(slot).unwrap_or(&0.0));
        if n_rare == 0 {
            return victim(n_live, at, positions, now, protect);
        }
        let rarity = |slot: usize| if worth.is_empty() { scores[slot] } else { worth[slot] };
        let mut n_open = 0;
        for (slot, &pos) in positions[..n_live].iter().enumerate() {
            if protect.of(pos, now).is_none() {
                room[n_open] = rarity(slot);
                n_open += 1;
            }
        }
        let n_common = n_open.saturating_sub(n_rare).max(1);
        if n_open == 0 {
            return None;
        }
        let (_, &mut rarest_common, _) = room[..n_open].select_nth_unstable_by(n_common - 1, f32::total_cmp);
        let at = |slot: usize| if rarity(slot).total_cmp(&rarest_common).is_le() { at(slot) } else { f32::NEG_INFINITY };
        victim(n_live, at, positions, now, protect)
    }

    /// The token `t` of the batch takes a slot.
    pub fn enter(&mut self, slot: usize, t: usize, n_past: u64, now: Pos) {
        let [raw_score, raw_worth] = [self.entering[2 * t], self.entering[2 * t + 1]];
        let (mut score, mut worth) = (raw_score, raw_worth);
        // Neighbours lend each other what keeps them: the lower score, the higher worth.
        let pool = self.latest_slots.len();
        for back in 1..=pool.min(n_past as usize) {
            let i = ((n_past - back as u64) % pool as u64) as usize;
            let (theirs, slot) = (&self.latest[2 * i..][..2], self.latest_slots[i] as usize);
            score = self.rule.policy.better(score, theirs[0]);
            worth = worth.max(theirs[1]);
            if self.positions.get(slot) == Some(&now.wrapping_sub(back as Pos)) {
                self.scores[slot] = self.rule.policy.better(self.scores[slot], raw_score);
                if let Some(worth) = self.worth.get_mut(slot) {
                    *worth = worth.max(raw_worth);
                }
            }
        }
        if pool > 0 {
            let i = (n_past % pool as u64) as usize;
            self.latest[2 * i..][..2].copy_from_slice(&[raw_score, raw_worth]);
            self.latest_slots[i] = slot as u32;
        }
        (self.positions[slot], self.scores[slot]) = (now, score);
        if let Some(w) = self.worth.get_mut(slot) {
            *w = worth;
        }
        if let Some(received) = self.received.get_mut(slot) {
            *received = PRIOR;
        }
    }

    /// Adds to a slot's received attention what `n_tok` tokens gave it together, its own first among them if it is new.
    /// `last`: what the latest of them gave.
    pub fn settle(&mut self, slot: usize, given: f32, n_tok: usize, now: Pos) {
        let age = (now.saturating_sub(self.positions[slot]) as usize + 1).saturating_sub(n_tok).min(MEMORY as usize);
        let before = age as f32 + HEAD_START;
        let received = &mut self.received[slot];
        *received = match self.rule.policy.sums_attention() {
            true if age == 0 => given,
            true => *received + given,
            false => (*received * before + given) / (before + n_tok as f32),
        };
    }

    /// For policies that see the last token's attention only.
    pub fn replace(&mut self, slot: usize, given: f32) {
        self.received[slot] = given;
    }

    /// Scores anew, by a function of the slot.
    pub fn rescore(&mut self, n_live: usize, mut score: impl FnMut(usize) -> f32) {
        for (slot, s) in self.scores[..n_live].iter_mut().enumerate() {
            *s = score(slot);
        }
    }

    /// The order in which entries go, first to last: lower `rank` first. Rare ones behind the rest.
    pub fn urge(&self, slot: usize) -> f32 {
        urge(self.rule.policy, self.scores[slot], *self.received.get(slot).unwrap_or(&0.0))
    }

    /// What the reserve goes by.
    pub fn rarity(&self, slot: usize) -> f32 {
        if self.worth.is_empty() { self.scores[slot] } else { self.worth[slot] }
    }

    /// An entry changes its slot.
    pub fn moved(&mut self, from: usize, to: usize) {
        (self.positions[to], self.scores[to]) = (self.positions[from], self.scores[from]);
        for marks in [&mut self.worth, &mut self.received] {
            if !marks.is_empty() {
                marks[to] = marks[from];
            }
        }
        for slot in self.latest_slots.iter_mut().filter(|slot| **slot == from as u32) {
            *slot = to as u32;
        }
    }
}

/// 0 where there is no direction yet.
pub(super) fn cosine(a: &[f32], a_norm: f32, b: &[f32], b_norm: f32) -> f32 {
    let mut dot = [0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for l in 0..8 {
            dot[l] += a[l] * b[l];
        }
    }
    let norms = a_norm * b_norm;
    if norms > 0.0 { dot.iter().sum::<f32>() / norms } else { 0.0 }
}

const _: () = assert!(MAX_HEAD_DIM.is_multiple_of(8));
