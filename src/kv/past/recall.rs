//! One KV head's step in its past: the index is scanned, the pieces that the queries like best are
//! chosen among those that the arena has lost, fetched, turned to their positions, and attended to.
//!
//! A few tokens of a batch share a choice, as the heads that share a KV head do: each adds its
//! softmax over all pieces. Where they stand: `stand`.

use std::ops::Range;

use super::angles::Angles;
use super::disk::Disk;
use super::shape::{PIECE, PIECES, PastShape, TILE};
use super::{Counters, TURNED, index, mean};
use crate::kernels::kv_rows::RowType;
use crate::kernels::{Asked, Attend, CHUNK, Kernels, Partial, Placing, RopeOrder, Rows};
use crate::kv::layout::{AttnLayer, Head, MAX_HEAD_KV};
use crate::kv::{KvType, Pos, Rotary};
use crate::mem::arena::{Arena, Buf};

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
    /// Tiles of the stream that may be read.
    pub tiles: Range<u64>,
    pub asking: &'a Asking<'a>,
    pub disk: &'a dyn Disk,
    pub is_there: &'a [u8],
    pub means: &'a [f32],
    pub angles: &'a Angles,
    pub renumbered: (u64, i64),
    pub counters: &'a Counters,
    pub kernels: Kernels,
    pub rotary: &'a R,
    pub q: &'a [f32],
    pub n_tok: usize,
}

/// What a thread needs.
pub(super) struct Thread {
    /// `[share * n_q][head_dim]`, and a number of each: queries as the index is asked.
    asked: Buf<i16>,
    scales: Buf<f32>,
    sums: Buf<i32>,
    /// `[share * n_q][n_piece]`
    scores: Buf<f32>,
    /// `[n_piece]`
    shares: Buf<f32>,
    order: Buf<u32>,
    /// `[n_tile]`: a bit for each token that the arena has.
    live: Buf<u32>,
    /// Some tiles of the index; the rows of a tile.
    tiles: Buf<u8>,
    rows: Buf<u8>,
    /// `[n_fetched]`: which tokens, and where they stand; their keys in f16, and their values.
    tokens: Buf<u32>,
    positions: Buf<i32>,
    keys: Buf<u8>,
    values: Buf<u8>,
    partial: Buf<f32>,
    key: Buf<f32>,
    angles: Buf<f32>,
}

/// Bytes of the index that are read at once, or a tile.
const READ: usize = 32 << 10;

/// Where the key and the value of a token lie in its head's rows of a tile.
pub(super) fn row_in_head(shape: &PastShape, j: usize) -> (usize, usize) {
    let (k, v) = (shape.k_bytes(), shape.v_bytes());
    let piece = j / PIECE * PIECE * (k + v);
    (piece + j % PIECE * k, piece + PIECE * k + j % PIECE * v)
}

impl Thread {
    pub fn carve(arena: &mut Arena, s: &PastShape) -> Thread {
        let (n_query, n_fetched, head_dim) = (s.share() * s.n_q, s.n_fetched(), s.kv.each.head_dim);
        Thread {
            asked: arena.carve(n_query * head_dim),
            scales: arena.carve(n_query),
            sums: arena.carve(n_query),
            scores: arena.carve(n_query * s.n_piece()),
            shares: arena.carve(s.n_piece()),
            order: arena.carve(s.n_piece()),
            live: arena.carve(s.n_tile),
            tiles: arena.carve(READ.max(s.index_tile_bytes())),
            rows: arena.carve(s.head_bytes()),
            tokens: arena.carve(n_fetched),
            positions: arena.carve(n_fetched),
            keys: arena.carve(n_fetched * RowType::F16.row_bytes(head_dim)),
            values: arena.carve(n_fetched * s.v_bytes()),
            partial: arena.carve(s.partial_len()),
            key: arena.carve(head_dim),
            angles: arena.carve(head_dim),
        }
    }

    /// What the tokens of a group find in a head, `[tokens][partial_len]` into `found`. `before`:
    /// how many pieces the head fetched a step ago, and which; empty where steps are not compared.
    pub fn recall<R: Rotary>(&mut self, w: &World<R>, group: usize, head: Head, found: &mut [f32], before: &mut [u32]) {
        let share = w.shape.share();
        let tokens = group * share..w.n_tok.min((group + 1) * share);
        let mut n_chosen = 0;
        // Where the arena holds all there is nothing to look for.
        if !w.tiles.is_empty() && (w.asking.n_live as u64) < w.asking.n_past {
            self.mark_live(w, head);
            let n_query = self.ask(w, head, tokens.clone());
            n_chosen = self.choose(w, head, n_query);
        }
        count_again(w, before, &self.order[..n_chosen]);
        let n_rows = self.fetch(w, head, n_chosen);
        for (t, found) in tokens.zip(found.chunks_exact_mut(w.shape.partial_len())) {
            self.attend(w, head, t, n_rows, found);
        }
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

    /// Scans the index: the pieces that are chosen, oldest first, in `order`.
    fn choose<R>(&mut self, w: &World<R>, head: Head, n_query: usize) -> usize {
        let (n_tile, n_piece, bytes) = (w.shape.n_tile, w.shape.n_piece(), w.shape.index_tile_bytes());
        let (n_used, at_once) = (n_tile.min(w.tiles.end as usize), (self.tiles.len() / bytes).max(1));
        let n_piece_used = n_used * PIECES;
        self.scores[..n_query * n_piece]
            .chunks_exact_mut(n_piece)
            .for_each(|scores| scores[..n_piece_used].fill(f32::NEG_INFINITY));
        let (head_dim, asked) = (w.shape.kv.each.head_dim, &self.asked);
        let asked =
            Asked { q: &asked[..n_query * head_dim], scale: &self.scales[..n_query], sum: &self.sums[..n_query], head_dim };
        for first in (0..n_used).step_by(at_once) {
            let n = at_once.min(n_used - first);
            let tiles = &mut self.tiles[..n * bytes];
            if let Err(e) = w.disk.read(tiles, w.shape.index_at(w.own, head.0, first)) {
                w.counters.failed(&w.counters.n_unread, "read", &e);
                continue;
            }
            for (slot, tile) in (first..).zip(tiles.chunks_exact(bytes)) {
                let wanted = !self.live[slot];
                if w.is_there[slot] == 1 && wanted != 0 && w.tiles.contains(&w.tile(slot)) {
                    w.kernels.scan(tile, wanted, &asked, n_piece, &mut self.scores[slot * PIECES..]);
                }
            }
        }
        // Of any query: a piece has a score for all or for none.
        let mut n = 0;
        for (piece, &score) in self.scores[..n_piece_used].iter().enumerate() {
            if score > f32::NEG_INFINITY {
                self.order[n] = piece as u32;
                n += 1;
            }
        }
        let shares = &mut self.shares[..n_piece_used];
        if n > w.shape.n_recall {
            shares.fill(0.0);
            for scores in self.scores[..n_query * n_piece].chunks_exact_mut(n_piece) {
                w.kernels.add_shares(&mut scores[..n_piece_used], shares);
            }
            let better = |a: &u32, b: &u32| shares[*b as usize].total_cmp(&shares[*a as usize]).then(a.cmp(b));
            self.order[..n].select_nth_unstable_by(w.shape.n_recall - 1, better);
            n = w.shape.n_recall;
        }
        self.order[..n].sort_unstable_by_key(|&piece| w.first_token(piece));
        n
    }

    /// Reads the chosen pieces and lays out those of their tokens that the arena has lost: how
    /// many.
    fn fetch<R: Rotary>(&mut self, w: &World<R>, head: Head, n_chosen: usize) -> usize {
        let piece_bytes = PIECE * w.shape.row_bytes();
        let (mut n_rows, mut i) = (0, 0);
        while i < n_chosen {
            // Those of a tile are read together, with what lies between them, which costs less than another call.
            let (first, tile) = (self.order[i] as usize, self.order[i] as usize / PIECES);
            let n = self.order[i..n_chosen].iter().take_while(|&&piece| piece as usize / PIECES == tile).count();
            let n_bytes = (self.order[i + n - 1] as usize + 1 - first) * piece_bytes;
            let at = w.shape.rows_at(w.own, tile) + (head.0 * w.shape.head_bytes() + first % PIECES * piece_bytes) as u64;
            match w.disk.read(&mut self.rows[..n_bytes], at) {
                Ok(()) => {
                    Counters::add(&w.counters.n_pieces, n);
                    Counters::add(&w.counters.read_bytes, n_bytes);
                    for piece in i..i + n {
                        let piece = self.order[piece] as usize;
                        n_rows = self.lay_out(w, piece, (piece - first) * piece_bytes, n_rows);
                    }
                }
                Err(e) => w.counters.failed(&w.counters.n_unread, "read", &e),
            }
            i += n;
        }
        self.place(w, head, n_rows);
        n_rows
    }

    /// The lost tokens of a piece whose rows were read to `at`, behind the `n_rows` that are there:
    /// how many there are then. Keys are left where values are, as they are stored: `place` makes of
    /// them what attention reads.
    fn lay_out<R>(&mut self, w: &World<R>, piece: usize, at: usize, mut n_rows: usize) -> usize {
        let (k, v, first) = (w.shape.k_bytes(), w.shape.v_bytes(), w.first_token(piece as u32));
        let f16 = RowType::F16.row_bytes(w.shape.kv.each.head_dim);
        for j in 0..PIECE {
            let token = first + j as u64;
            if self.live[piece / PIECES] >> (token % TILE as u64) & 1 == 1 {
                continue;
            }
            let (key_at, value_at) = row_in_head(w.shape, j);
            self.keys[n_rows * f16..][..k].copy_from_slice(&self.rows[at + key_at..][..k]);
            self.values[n_rows * v..][..v].copy_from_slice(&self.rows[at + value_at..][..v]);
            self.tokens[n_rows] = token as u32;
            n_rows += 1;
        }
        n_rows
    }

    /// Turns the keys that were fetched to where they stand. They are not brought to the basis of
    /// the arena's keys: that would take a Hadamard matrix for each of them, where queries are few.
    fn place<R: Rotary>(&mut self, w: &World<R>, head: Head, n_rows: usize) {
        let (fetched, positions) = (&self.tokens[..n_rows], &mut self.positions[..n_rows]);
        stand(fetched, w.tokens(head), w.positions(head), |low| w.token(low), w.renumbered, positions);
        let (k_type, head_dim) = (w.shape.kv.k_type, w.shape.kv.each.head_dim);
        let (order, n_rot) = w.rotary.pairs(w.asking.layer).unwrap_or((RopeOrder::Norm, 0));
        let turned = if k_type.is_turned() { KvType::part(head_dim) } else { 0 };
        let placing = Placing { ty: k_type.row(), turned, head_dim, n_rot, order };
        let mean = mean(w.means, w.shape, w.own, head.0);
        let rows = self.keys.chunks_exact_mut(RowType::F16.row_bytes(head_dim));
        for (row, (&token, &pos)) in rows.zip(self.tokens[..n_rows].iter().zip(&self.positions[..n_rows])) {
            let mean = if turned > 0 && w.token(token) >= TILE as u64 { mean } else { &[] };
            w.kernels.place(&placing, row, mean, w.angles.at(i64::from(pos)), &mut self.key);
        }
    }

    /// What a token makes of the rows that were fetched. The arena's scores lack what its centre
    /// would add to them, so these must too.
    fn attend<R>(&mut self, w: &World<R>, head: Head, t: usize, n_rows: usize, found: &mut [f32]) {
        let (n_q, head_dim) = (w.shape.n_q, w.shape.kv.each.head_dim);
        let (running, acc) = found.split_at_mut(2 * n_q);
        running.fill(f32::NEG_INFINITY);
        let q = w.queries(head, t);
        let (k_type, v_type) = (RowType::F16, w.shape.kv.v_type.row());
        for first in (0..n_rows).step_by(CHUNK) {
            let (keys, values, rows) = (&self.keys[..], &self.values[..], Rows::Dense { first });
            let n_rows = CHUNK.min(n_rows - first);
            let soft_cap = w.shape.soft_cap;
            let a = Attend { q, head_dim, keys, values, k_type, v_type, rows, n_rows, wide: &[], soft_cap };
            let (max, rest) = self.partial.split_at_mut(n_q);
            let (sum, part) = rest.split_at_mut(n_q);
            let mut partial = Partial { max, sum, acc: part, weights: &mut [] };
            w.kernels.attend(&a, &mut partial);
            w.kernels.merge(running, acc, &partial);
        }
        let centre = w.asking.centres[head.0];
        if n_rows > 0 && !centre.is_empty() {
            for (max, q) in running.iter_mut().zip(q.chunks_exact(head_dim)) {
                self.key.copy_from_slice(q);
                w.shape.kv.k_type.turn(&mut self.key, head_dim);
                *max -= self.key.iter().zip(centre).fold(0.0, |sum, (q, centre)| sum + q * centre);
            }
        }
    }
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
    for (&row, position) in fetched.iter().zip(positions).rev() {
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

/// How many of the pieces were fetched a step ago too; and remembers them.
fn count_again<R>(w: &World<R>, before: &mut [u32], chosen: &[u32]) {
    let Some((n_before, before)) = before.split_first_mut() else { return };
    let n_again = chosen.iter().filter(|piece| before[..*n_before as usize].contains(piece)).count();
    Counters::add(&w.counters.n_single, chosen.len());
    Counters::add(&w.counters.n_again, n_again);
    before[..chosen.len()].copy_from_slice(chosen);
    *n_before = chosen.len() as u32;
}

impl<R> World<'_, R> {
    /// The tokens that the arena has in a head.
    fn tokens(&self, head: Head) -> &[u32] {
        &self.asking.tokens[head.0 * self.asking.n_slot..][..self.asking.n_live]
    }

    fn positions(&self, head: Head) -> &[Pos] {
        &self.asking.positions[head.0 * self.asking.n_slot..][..self.asking.n_live]
    }

    /// The queries of a token that share a KV head.
    fn queries(&self, head: Head, t: usize) -> &[f32] {
        let (group, row) = (self.shape.n_q * self.shape.kv.each.head_dim, self.q.len() / self.n_tok);
        &self.q[t * row + head.0 * group..][..group]
    }

    /// A token of the past by its low bits.
    fn token(&self, low: u32) -> u64 {
        let n_past = self.asking.n_past;
        n_past - u64::from((n_past as u32).wrapping_sub(low))
    }

    /// Where a tile of the stream lies in the ring.
    fn slot(&self, tile: u64) -> usize {
        (tile % self.shape.n_tile as u64) as usize
    }

    /// The tile of the stream that lies in the ring there: the latest that is whole.
    fn tile(&self, slot: usize) -> u64 {
        let n_tile = self.shape.n_tile as u64;
        let last = self.tiles.end - 1;
        let back = (last % n_tile + n_tile - slot as u64) % n_tile;
        last.wrapping_sub(back)
    }

    /// The first token of a piece of the ring.
    fn first_token(&self, piece: u32) -> u64 {
        let piece = piece as usize;
        self.tile(piece / PIECES) * TILE as u64 + (piece % PIECES * PIECE) as u64
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/past/recall.rs"]
mod tests;
