//! What a policy keeps to decide by: for each entry its position and a score, and where the policy asks for them its worth
//! and the attention it received; for each head the mean direction of its keys and what the latest tokens scored. All of
//! it is carved from the arena and none of it grows. Means forget what is far behind, so that they are as good after ten million
//! tokens as after ten thousand; the sums of H2O are the paper's, and lose what is small beside them.

use super::Pos;
use super::policy::{Entering, Marks, Policy, Rule, urge, victim};
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
    n_slot: usize,
    /// `[n_layer][n_head_kv][n_slot]`, as the rows of keys; `worth` and `received` too.
    pub(super) positions: Buf<Pos>,
    pub(super) scores: Buf<f32>,
    worth: Buf<f32>,
    pub(super) received: Buf<f32>,
    /// `[n_layer][n_head_kv][head_dim]`: mean of the keys before RoPE, each of length one.
    mean: Buf<f32>,
    /// `[n_layer][n_head_kv][pool]`: score and worth of the latest tokens before pooling (`[2]`), and their slots.
    latest: Buf<f32>,
    latest_slots: Buf<u32>,
    /// `[n_head_kv][n_batch][2]`: score and worth of the tokens of the batch, in the layer under way.
    entering: Buf<f32>,
    /// `[n_head_kv][n_slot]`: room to look for the rarest.
    room: Buf<f32>,
}

/// Lengths of the buffers, in the order of the fields; each element takes four bytes.
fn lengths(shape: &KvShape, n_slot: usize) -> [usize; 9] {
    let (slots, heads, m) = (shape.slots_of(shape.n_layer, n_slot), shape.n_heads(), shape.marks);
    let if_so = |wanted: bool, n: usize| if wanted { n } else { 0 };
    [
        slots,
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
        let [positions, scores, worth, received, mean, latest, latest_slots, entering, room] = lengths(shape, n_slot);
        HeadMarks {
            n_slot,
            positions: arena.carve(positions),
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

    pub fn clear(&mut self) {
        self.mean.fill(0.0);
        self.latest_slots.fill(u32::MAX);
    }

    /// The heads of a layer, one after the other, each with what is its own.
    pub(super) fn of_layer(&mut self, shape: &KvShape, layer: usize, rule: Rule) -> impl Iterator<Item = Head<'_>> {
        let Marks { worth, received, direction, reserve, pool } = shape.marks;
        let (first, n_slot) = (shape.slots_of(layer, self.n_slot), shape.slots(layer, self.n_slot));
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
        let positions = self.positions[first..][..shape.n_head_kv * n_slot].chunks_exact_mut(n_slot);
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
    scores: &'a mut [f32],
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
        let Rule { protect, n_rare, .. } = self.rule;
        if n_rare == 0 {
            return victim(n_live, |slot| self.urge(slot), self.positions, now, protect);
        }
        let room = std::mem::take(&mut self.room);
        let open = (0..n_live).filter(|&slot| protect.of(self.positions[slot], now).is_none());
        let n_open = open.zip(&mut *room).map(|(slot, room)| *room = self.rarity(slot)).count();
        // The reserve: all that are rarer than the rarest of the common ones. One at least is common.
        let n_common = n_open.saturating_sub(n_rare).max(1);
        let rarest_common = (n_open > 0).then(|| *room[..n_open].select_nth_unstable_by(n_common - 1, f32::total_cmp).1);
        self.room = room;
        let is_common = |slot: usize| self.rarity(slot).total_cmp(&rarest_common?).is_le().then_some(slot);
        let urge = |slot: usize| is_common(slot).map_or(f32::NEG_INFINITY, |slot| self.urge(slot));
        victim(n_live, urge, self.positions, now, protect)
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
            score = score.min(theirs[0]);
            worth = worth.max(theirs[1]);
            if self.positions.get(slot) == Some(&now.wrapping_sub(back as Pos)) {
                self.scores[slot] = self.scores[slot].min(raw_score);
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
            *received = if self.rule.policy == Policy::L2Attn { PRIOR } else { 0.0 };
        }
    }

    /// Adds to a slot's received attention what `n_tok` tokens gave it together, its own among them if it is new.
    pub fn settle(&mut self, slot: usize, given: f32, n_tok: usize, now: Pos) {
        // Renumbering makes entries younger than they are; their means then learn a little faster.
        let age = (now - self.positions[slot] + 1) as usize - n_tok;
        let before = age.min(MEMORY as usize) as f32 + HEAD_START;
        let received = &mut self.received[slot];
        *received = match self.rule.policy {
            Policy::Tova => given,
            Policy::H2o => *received + given,
            _ => (*received * before + given) / (before + n_tok as f32),
        };
    }

    /// Scores anew, by a function of the slot.
    pub fn rescore(&mut self, n_live: usize, mut score: impl FnMut(usize) -> f32) {
        for (slot, s) in self.scores[..n_live].iter_mut().enumerate() {
            *s = score(slot);
        }
    }

    /// How much the entry ought to go, the reserve aside.
    pub fn urge(&self, slot: usize) -> f32 {
        urge(self.rule.policy, self.scores[slot], *self.received.get(slot).unwrap_or(&0.0))
    }

    /// What the reserve goes by: the worth; with `l2-attn` the score, which has the worth in it.
    pub fn rarity(&self, slot: usize) -> f32 {
        *self.worth.get(slot).unwrap_or(&-self.scores[slot])
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

/// Of vectors of a multiple of eight elements, as heads are; 0 where there is no direction yet.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::policy::Protection;

    /// What a head owns, for a policy with a reserve, pooled neighbours and a mean direction.
    struct Owned {
        rule: Rule,
        positions: Vec<Pos>,
        floats: [Vec<f32>; 7],
        latest_slots: Vec<u32>,
    }

    impl Owned {
        fn new(policy: Policy, n_slot: usize, dim: usize, pool: usize, n_rare: usize) -> Self {
            let rule = Rule { policy, protect: Protection { sinks: 1, recent: 3 }, n_rare };
            let lens = [n_slot, n_slot, n_slot, dim, 2 * pool, 2, n_slot];
            Owned { rule, positions: vec![0; n_slot], floats: lens.map(|n| vec![0.0; n]), latest_slots: vec![u32::MAX; pool] }
        }

        fn head(&mut self) -> Head<'_> {
            let [scores, worth, received, mean, latest, entering, room] = &mut self.floats;
            let (rule, positions, latest_slots) = (self.rule, &mut self.positions[..], &mut self.latest_slots[..]);
            Head { rule, positions, scores, worth, received, mean, latest, latest_slots, entering, room }
        }
    }

    #[test]
    fn the_reserve_is_what_sorting_says() {
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..5_000 {
            let (n, n_rare) = (rng.usize(5..20), rng.usize(..20));
            let policy = if rng.bool() { Policy::L2 } else { Policy::L2Attn };
            let mut owned = Owned::new(policy, n, 8, 0, n_rare);
            let mut positions: Vec<Pos> = (0..n as Pos).collect();
            rng.shuffle(&mut positions);
            owned.positions.copy_from_slice(&positions);
            owned.floats[0].fill_with(|| rng.f32());
            owned.floats[1].fill_with(|| rng.f32());
            let score = owned.floats[0].clone();
            // `l2` keeps the rare by their worth, whatever their norm; `l2-attn` by its score, and of the rest counts attention too.
            let (rarity, urge): (Vec<f32>, Vec<f32>) = match policy {
                Policy::L2 => (owned.floats[1].clone(), score),
                _ => {
                    owned.floats[1].clear();
                    owned.floats[2] = (0..n).map(|_| rng.f32() + 0.1).collect();
                    (score.iter().map(|s| 1.0 / s).collect(), score.iter().zip(&owned.floats[2]).map(|(s, r)| s / r).collect())
                }
            };
            // By definition: of the open ones all but the rarest are common, one at least, and the most urgent among them goes.
            let now = n as Pos;
            let mut open: Vec<usize> = (0..n).filter(|&s| positions[s] >= 1 && positions[s] + 3 <= now).collect();
            open.sort_by(|&a, &b| rarity[a].total_cmp(&rarity[b]));
            open.truncate(open.len().saturating_sub(n_rare).max(1));
            let expected = open.into_iter().max_by(|&a, &b| urge[a].total_cmp(&urge[b]));
            assert_eq!(owned.head().victim(n, now), expected);
        }
    }

    #[test]
    fn pooled_scores_are_the_best_within_reach() {
        let mut rng = fastrand::Rng::with_seed(5);
        for pool in [0usize, 1, 3] {
            let (n, mut owned) = (30usize, Owned::new(Policy::L2, 30, 8, pool, 0));
            let raw: Vec<[f32; 2]> = (0..n).map(|_| [rng.f32(), rng.f32()]).collect();
            for (t, raw) in raw.iter().enumerate() {
                owned.floats[5].copy_from_slice(raw);
                owned.head().enter(t, 0, t as u64, t as Pos);
            }
            for t in 0..n {
                let near = || raw[t.saturating_sub(pool)..(t + pool + 1).min(n)].iter();
                let (lowest, highest) = (near().map(|r| r[0]).fold(1.0, f32::min), near().map(|r| r[1]).fold(0.0, f32::max));
                assert_eq!((owned.floats[0][t], owned.floats[1][t]), (lowest, highest), "token {t}, pool {pool}");
            }
        }
    }

    #[test]
    fn directions_are_compared_with_the_mean_so_far() {
        let mut owned = Owned::new(Policy::KeyDiffFrozen, 1, 8, 0, 0);
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut cos = |n_past: u64, key: [f32; 8]| {
            owned.head().rate(0, n_past, &key, &[1.0; 8], 0.0, norm);
            owned.floats[5][0]
        };
        let along = |i: usize, length: f32| std::array::from_fn(|j| if i == j { length } else { 0.0 });
        // No mean yet; the same direction whatever its length; then one at a right angle, and half way between both.
        assert_eq!([cos(0, along(0, 5.0)), cos(1, along(0, 0.1)), cos(2, along(1, 2.0))], [0.0, 1.0, 0.0]);
        // The mean is now (2, 1) / 3.
        assert!((cos(3, along(0, 1.0)) - 2.0 / 5f32.sqrt()).abs() < 1e-6);
    }

    /// Ten million steps: means neither run away nor stand still, and a change of subject is learned.
    #[test]
    fn means_are_sound_after_ten_million_steps() {
        let n = if cfg!(target_arch = "aarch64") { 1_000_000u32 } else { 10_000_000 };
        let mut owned = Owned::new(Policy::L2Attn, 1, 8, 0, 0);
        let mut head = owned.head();
        head.enter(0, 0, 0, 0);
        for now in 0..n {
            head.settle(0, if now % 2 == 0 { 0.001 } else { 0.003 }, 1, now);
        }
        assert!((head.received[0] - 0.002).abs() < 1e-5, "{}", head.received[0]);
        (n..n + 40_000).for_each(|now| head.settle(0, 0.5, 1, now));
        assert!((head.received[0] - 0.5).abs() < 1e-3, "{}", head.received[0]);

        let unit = |i: usize| -> [f32; 8] { std::array::from_fn(|j| if i == j { 1.0 } else { 0.0 }) };
        let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        (0..u64::from(n)).for_each(|past| head.rate(0, past, &unit(past as usize % 2), &[1.0; 8], 0.0, norm));
        assert!((head.mean[0] - 0.5).abs() < 1e-3 && (head.mean[1] - 0.5).abs() < 1e-3, "{:?}", head.mean);
        (0..40_000).for_each(|past| head.rate(0, u64::from(n) + past, &unit(2), &[1.0; 8], 0.0, norm));
        assert!(head.mean[2] > 0.999 && head.mean[0] < 1e-3, "{:?}", head.mean);
    }
}
