//! The first half of a step in the past: for each KV head the index is scanned, the pieces that the queries like best are chosen
//! among those that the arena has lost, and it is settled where their tokens stand. The second half is in fetch.rs.
//!
//! A few tokens of a batch share a choice, as the heads that share a KV head do: each adds its
//! softmax over all pieces. Where they stand: `stand`.

use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::angles::Angles;
use super::files::Files;
use super::shape::{PIECE, PIECES, PastShape, TILE};
use super::{Counters, TURNED, index};
use crate::kernels::{Asked, Kernels};
use crate::kv::layout::{AttnLayer, Head, MAX_HEAD_KV};
use crate::kv::{Pos, Rotary};
use crate::mem::arena::{Arena, Buf};
use crate::mem::pool::spin_until;

/// What the arena has as the tokens come.
pub struct Asking<'a> {
    pub layer: AttnLayer,
    /// Tokens of the stream before these, and the position of the first of these.
    pub n_past: u64,
    pub next_pos: Pos,
    /// `[n_head_kv][n_slot]`, of which the first `n_live` are taken: the tokens there, by their
    /// number in the stream (its low bits), and their positions.
    pub tokens: &'a [u32],
    pub positions: &'a [Pos],
    pub n_slot: usize,
    pub n_live: usize,
    /// `[n_head_kv]`, each empty or `[head_dim]`: what is taken off the arena's keys.
    pub centres: [&'a [f32]; MAX_HEAD_KV],
}

/// What all heads of a step share.
pub(super) struct World<'a, R> {
    pub shape: &'a PastShape,
    /// The layer, counted among those that have a past.
    pub own: usize,
    /// Tiles of the stream that may be read, and where the last of them lies in the ring.
    pub tiles: Range<u64>,
    pub last_slot: usize,
    pub asking: &'a Asking<'a>,
    pub files: Files<'a>,
    pub means: &'a [f32],
    pub angles: &'a Angles,
    pub renumbered: (u64, i64),
    /// `[n_head_kv][1 + n_recall]`: how many pieces the latest step fetched in this layer, and which.
    pub before: &'a [u32],
    pub counters: &'a Counters,
    pub kernels: Kernels,
    pub rotary: &'a R,
    pub q: &'a [f32],
    pub n_tok: usize,
}

/// What a group of tokens is to fetch for a KV head.
pub(super) struct Choice {
    /// Whether it has been made. Tasks that wait for it look here, and take the lock when it has.
    is_made: AtomicBool,
    made: RwLock<Chosen>,
}

pub(super) struct Chosen {
    n: usize,
    /// `[n_recall]`, the first `n`: pieces of the ring, oldest first, and a bit for each of their tokens that the arena has lost.
    pieces: Buf<u32>,
    lost: Buf<u8>,
    /// `[n_fetched]`: where these tokens stand.
    positions: Buf<i32>,
    /// `[head_dim]`: what is taken off the arena's keys, in the basis of queries; noughts where nothing is.
    centre: Buf<f32>,
}

/// Every token of a piece.
const ALL: u8 = (1 << PIECE) - 1;
/// Where one token asks, shares of pieces that the latest step fetched count so many times. Neighbouring tokens ask for much the same,
/// and what is read again is in memory; what it costs and gains is in docs/notebook/eviction.md.
const STAYING: f32 = 2.0;
/// And there a piece is not read that gets less than this of an even part, 1 / `n_recall`, of what the queries give to the past: few heads
/// have so many pieces that matter.
const WORTH: f32 = 0.1;

impl Choice {
    pub fn carve(arena: &mut Arena, s: &PastShape) -> Choice {
        let (pieces, lost, positions) = (arena.carve(s.n_recall), arena.carve(s.n_recall), arena.carve(s.n_fetched()));
        let centre = arena.carve(s.kv.each.head_dim);
        Choice { is_made: AtomicBool::new(false), made: RwLock::new(Chosen { n: 0, pieces, lost, positions, centre }) }
    }

    /// Before the next step.
    pub fn forget(&mut self) {
        *self.is_made.get_mut() = false;
    }

    /// Makes it. Who waits does not wait for ever, even if this panics.
    pub fn make(&self, how: impl FnOnce(&mut Chosen)) {
        struct Made<'a>(&'a AtomicBool);
        impl Drop for Made<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let _made = Made(&self.is_made);
        how(&mut self.made.write().expect("nobody panicked"));
    }

    /// What was made, where no task is under way.
    pub fn get(&mut self) -> &Chosen {
        self.made.get_mut().expect("nobody panicked")
    }

    /// Waits until it is made, by a task that was begun before.
    pub fn with<T>(&self, then: impl FnOnce(&Chosen) -> T) -> T {
        spin_until(|| self.is_made.load(Ordering::Acquire));
        then(&self.made.read().expect("the choice was made"))
    }
}

impl Chosen {
    /// The pieces, each with the tokens that the arena has lost and the positions of these.
    pub fn pieces(&self) -> impl Iterator<Item = (u32, u8, &[i32])> + Clone {
        let mut rest = &self.positions[..];
        self.pieces[..self.n].iter().zip(&*self.lost).map(move |(&piece, &lost)| {
            let (own, others) = rest.split_at(lost.count_ones() as usize);
            rest = others;
            (piece, lost, own)
        })
    }

    /// Their numbers alone.
    pub fn numbers(&self) -> &[u32] {
        &self.pieces[..self.n]
    }

    pub fn centre(&self) -> &[f32] {
        &self.centre
    }
}

/// What a thread needs to choose.
pub(super) struct Chooser {
    /// `[share * n_q][head_dim]`, and a number of each: queries as the index is asked.
    asked: Buf<i8>,
    scales: Buf<f32>,
    sums: Buf<i32>,
    /// `[share * n_q][n_piece]`
    scores: Buf<f32>,
    /// `[n_piece]`
    shares: Buf<f32>,
    /// `[n_piece]`: pieces, below how little they are wanted.
    order: Buf<u64>,
    /// `[n_tile]`: a bit for each token that the arena has.
    live: Buf<u32>,
    /// Some tiles of the index, where they are copied.
    tiles: Buf<u8>,
    /// `[n_fetched]`: tokens that will be fetched.
    tokens: Buf<u32>,
    key: Buf<f32>,
    angles: Buf<f32>,
}

/// Bytes of the index that are read at once, or a tile.
const READ: usize = 32 << 10;

impl Chooser {
    pub fn carve(arena: &mut Arena, s: &PastShape) -> Chooser {
        let (n_query, head_dim) = (s.share() * s.n_q, s.kv.each.head_dim);
        Chooser {
            asked: arena.carve(n_query * head_dim),
            scales: arena.carve(n_query),
            sums: arena.carve(n_query),
            scores: arena.carve(n_query.saturating_mul(s.n_piece())),
            shares: arena.carve(s.n_piece()),
            order: arena.carve(s.n_piece()),
            live: arena.carve(s.n_tile),
            tiles: arena.carve(READ.max(s.index_tile_bytes())),
            tokens: arena.carve(s.n_fetched()),
            key: arena.carve(head_dim),
            angles: arena.carve(head_dim),
        }
    }

    /// What the index is read into, while nothing is chosen.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.tiles
    }

    /// What the tokens of a group ask of a head.
    pub fn choose<R: Rotary>(&mut self, w: &World<R>, group: usize, head: Head, chosen: &mut Chosen) {
        chosen.n = 0;
        // Where the arena holds all there is nothing to look for.
        if w.tiles.is_empty() || w.asking.n_live as u64 >= w.asking.n_past {
            return;
        }
        self.mark_live(w, head);
        let n_query = self.ask(w, head, w.tokens_of(group));
        self.scan(w, head, n_query);
        let n = self.best(w, head, n_query);
        for (&piece, (out, lost)) in self.order[..n].iter().zip(chosen.pieces.iter_mut().zip(&mut *chosen.lost)) {
            *out = piece as u32;
            let live = self.live[*out as usize / PIECES] >> (*out as usize % PIECES * PIECE);
            *lost = !live as u8 & ALL;
        }
        chosen.n = n;
        chosen.centre.fill(0.0);
        let centre = w.asking.centres[head.0];
        if !centre.is_empty() {
            chosen.centre.copy_from_slice(centre);
            w.shape.kv.k_type.turn_back(&mut chosen.centre, w.shape.kv.each.head_dim);
        }
        let mut n_tok = 0;
        for (&piece, &lost) in chosen.pieces[..n].iter().zip(&*chosen.lost) {
            let first = w.first_token(piece);
            for j in (0..PIECE).filter(|j| lost >> j & 1 == 1) {
                self.tokens[n_tok] = (first + j as u64) as u32;
                n_tok += 1;
            }
        }
        let (tokens, positions) = (&self.tokens[..n_tok], &mut chosen.positions[..n_tok]);
        stand(tokens, w.tokens(head), w.positions(head), |low| w.token(low), w.renumbered, positions);
        draw_near(positions, w.asking.next_pos as i32 - w.shape.near(w.renumbered.0 > 0) as i32);
    }

    /// Which tokens of the ring the arena has.
    fn mark_live<R>(&mut self, w: &World<R>, head: Head) {
        self.live.fill(0);
        for &token in w.tokens(head) {
            let token = w.token(token);
            if w.tiles.contains(&(token / TILE as u64)) {
                self.live[w.slot(token / TILE as u64)] |= 1 << (token % TILE as u64);
            }
        }
    }

    /// Makes questions of the queries of some tokens: as they are before RoPE, in the basis of the
    /// index.
    fn ask<R: Rotary>(&mut self, w: &World<R>, head: Head, tokens: Range<usize>) -> usize {
        let (head_dim, n_q) = (w.shape.kv.each.head_dim, w.shape.n_q);
        let mut n_query = 0;
        for t in tokens {
            w.angles.at(i64::from(w.asking.next_pos) + t as i64).interleaved(true, &mut self.angles);
            for q in w.queries(head, t).chunks_exact(head_dim) {
                self.key.copy_from_slice(q);
                w.rotary.turn(w.asking.layer, &mut self.key, &self.angles);
                TURNED.turn(&mut self.key, head_dim);
                let out = &mut self.asked[n_query * head_dim..][..head_dim];
                (self.scales[n_query], self.sums[n_query]) = index::ask(&self.key, out);
                n_query += 1;
            }
        }
        assert!(n_query <= w.shape.share() * n_q);
        n_query
    }

    /// Scores the pieces of a head.
    fn scan<R>(&mut self, w: &World<R>, head: Head, n_query: usize) {
        let (n_piece, bytes, n_used) = (w.shape.n_piece(), w.shape.index_tile_bytes(), w.n_used());
        let at_once = (self.tiles.len() / bytes).max(1);
        let (head_dim, Chooser { asked, scales, sums, scores, live, tiles, .. }) = (w.shape.kv.each.head_dim, &mut *self);
        let asked = Asked { q: &asked[..n_query * head_dim], scale: &scales[..n_query], sum: &sums[..n_query], head_dim };
        let forget = |scores: &mut [f32], slots: Range<usize>| {
            let of_query = scores[..n_query * n_piece].chunks_exact_mut(n_piece);
            of_query.for_each(|scores| scores[slots.start * PIECES..slots.end * PIECES].fill(f32::NEG_INFINITY));
        };
        forget(scores, 0..n_used);
        for first in (0..n_used).step_by(at_once) {
            let n = at_once.min(n_used - first);
            let scan = |tiles: &[u8]| {
                for (slot, tile) in (first..).zip(tiles.chunks_exact(bytes)) {
                    let wanted = !live[slot];
                    if w.files.is_there[slot] == 1 && wanted != 0 && w.tiles.contains(&w.tile(slot)) {
                        w.kernels.scan(tile, wanted, &asked, n_piece, &mut scores[slot * PIECES..]);
                    }
                }
            };
            if let Err(e) = w.files.see(&mut tiles[..n * bytes], w.shape.index_at(w.own, head.0, first), scan) {
                w.counters.failed(&w.counters.n_unread, "read", &e);
                // They may be of what was seen before it was known that it was not in the file.
                forget(scores, first..first + n);
            }
        }
    }

    /// Puts the pieces that are wanted most into `order`, oldest first: how many.
    fn best<R>(&mut self, w: &World<R>, head: Head, n_query: usize) -> usize {
        let (n_piece, n_recall, n_used) = (w.shape.n_piece(), w.shape.n_recall, w.n_used() * PIECES);
        let shares = &mut self.shares[..n_used];
        // Of any query: a piece has a score for all or for none.
        let mut n_scored = 0;
        for (share, &score) in shares.iter_mut().zip(&self.scores[..n_used]) {
            *share = if score > f32::NEG_INFINITY { 0.0 } else { f32::NEG_INFINITY };
            n_scored += usize::from(score > f32::NEG_INFINITY);
        }
        let mut least = f32::MIN;
        if n_scored > n_recall {
            for scores in self.scores[..n_query * n_piece].chunks_exact_mut(n_piece) {
                w.kernels.add_shares(&mut scores[..n_used], shares);
            }
            if w.n_tok == 1 {
                w.before(head).iter().for_each(|&piece| shares[piece as usize] *= STAYING);
                least = WORTH / n_recall as f32 * n_query as f32;
            }
            least = least.max(least_of_best(shares, n_recall));
        }
        // Shares are not negative, so their bits have their order. Of equal ones the piece that comes first in the ring.
        let mut n = 0;
        for (piece, share) in shares.iter().enumerate() {
            self.order[n] = u64::from(!share.to_bits()) << 32 | piece as u64;
            n += usize::from(*share >= least);
        }
        if n > n_recall {
            self.order[..n].select_nth_unstable(n_recall - 1);
            n = n_recall;
        }
        let order = &mut self.order[..n];
        order.iter_mut().for_each(|piece| *piece &= u64::from(u32::MAX));
        order.sort_unstable();
        // The oldest lie behind the last that was written.
        order.rotate_left(order.partition_point(|&piece| piece as usize / PIECES <= w.last_slot));
        n
    }
}

/// What the `n` best shares are not below: the least of the highest of `n` stretches, however low others may be. So most are passed
/// over before they are put in order.
fn least_of_best(shares: &[f32], n: usize) -> f32 {
    let len = shares.len() / PIECES / n * PIECES;
    if len == 0 {
        return f32::MIN;
    }
    let highest = |stretch: &[f32]| {
        let mut lanes = [f32::MIN; PIECES];
        for eight in stretch.as_chunks::<PIECES>().0 {
            for l in 0..PIECES {
                lanes[l] = if eight[l] > lanes[l] { eight[l] } else { lanes[l] };
            }
        }
        lanes.into_iter().fold(f32::MIN, f32::max)
    };
    shares.chunks_exact(len).take(n).map(highest).fold(f32::MAX, f32::min)
}

/// Where fetched tokens stand, `fetched` oldest first, beside those of the arena, `live` at `at`. Tokens from the `since`-th on stand
/// where they stood, for that one was given the position `pos`. Those before it got new positions as ranks of what was live then, in
/// which they have no place: they stand one below the other, each below all that is younger.
fn stand(fetched: &[u32], live: &[u32], at: &[Pos], token: impl Fn(u32) -> u64, (since, pos): (u64, i64), positions: &mut [i32]) {
    // Of the arena's entries between a row and the next one the lowest.
    positions.fill(i32::MAX);
    if since > 0 {
        for (&live, &at) in live.iter().zip(at) {
            let n_older = fetched.partition_point(|&row| token(row) < token(live));
            if let Some(row) = n_older.checked_sub(1) {
                positions[row] = positions[row].min(at as i32);
            }
        }
    }
    let mut below = pos as i32;
    for (&row, position) in fetched.iter().zip(&mut *positions).rev() {
        below = below.min(*position);
        *position = match token(row).checked_sub(since) {
            Some(n) => (pos + n as i64) as i32,
            None => {
                below -= 1;
                below
            }
        };
    }
}

/// Brings those that stand below `nearest` up to it, one below the other and in their order: further back a model finds less.
fn draw_near(positions: &mut [i32], nearest: i32) {
    for (n, position) in (1..).zip(positions.iter_mut().rev()) {
        *position = (*position).max(nearest - n);
    }
}

impl<R> World<'_, R> {
    /// The tokens of a group, which share a choice.
    pub fn tokens_of(&self, group: usize) -> Range<usize> {
        let share = self.shape.share();
        group * share..self.n_tok.min((group + 1) * share)
    }

    /// The tokens that the arena has in a head.
    fn tokens(&self, head: Head) -> &[u32] {
        &self.asking.tokens[head.0 * self.asking.n_slot..][..self.asking.n_live]
    }

    fn positions(&self, head: Head) -> &[Pos] {
        &self.asking.positions[head.0 * self.asking.n_slot..][..self.asking.n_live]
    }

    /// The pieces that the latest step fetched.
    fn before(&self, head: Head) -> &[u32] {
        let (n, pieces) = self.before[head.0 * (1 + self.shape.n_recall)..].split_first().expect("a number of each head");
        &pieces[..*n as usize]
    }

    /// The queries of a token that share a KV head.
    pub fn queries(&self, head: Head, t: usize) -> &[f32] {
        let (group, row) = (self.shape.n_q * self.shape.kv.each.head_dim, self.q.len() / self.n_tok);
        &self.q[t * row + head.0 * group..][..group]
    }

    /// A token of the past by its low bits.
    fn token(&self, low: u32) -> u64 {
        let n_past = self.asking.n_past;
        n_past - u64::from((n_past as u32).wrapping_sub(low))
    }

    /// Tiles of the ring that have been written.
    fn n_used(&self) -> usize {
        self.shape.n_tile.min(self.tiles.end as usize)
    }

    /// Where one of `tiles` lies in the ring.
    fn slot(&self, tile: u64) -> usize {
        let back = (self.tiles.end - 1 - tile) as usize;
        self.last_slot + if back > self.last_slot { self.shape.n_tile } else { 0 } - back
    }

    /// The tile of the stream that lies in the ring there: the latest that is whole. Beyond the last where none has been written.
    pub fn tile(&self, slot: usize) -> u64 {
        let back = self.last_slot + if slot > self.last_slot { self.shape.n_tile } else { 0 } - slot;
        (self.tiles.end - 1).wrapping_sub(back as u64)
    }

    /// The first token of a piece of the ring.
    pub fn first_token(&self, piece: u32) -> u64 {
        let piece = piece as usize;
        self.tile(piece / PIECES) * TILE as u64 + (piece % PIECES * PIECE) as u64
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/past/recall.rs"]
mod tests;
