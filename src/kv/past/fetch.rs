//! The second half of a step in the past: pieces that were chosen are fetched, their keys turned to where they stand, and
//! attended to.

use std::ops::Range;

use super::recall::{Chosen, World};
use super::shape::{PIECE, PIECES, PastShape};
use super::{Counters, mean};
use crate::kernels::kv_rows::RowType;
use crate::kernels::{Attend, CHUNK, Kernels, Partial, Placing, RopeOrder, Rows};
use crate::kv::layout::Head;
use crate::kv::{KvType, Rotary};
use crate::mem::arena::{Arena, Buf};

/// What a thread needs to fetch.
pub(super) struct Fetcher {
    /// The rows of a tile, where they are copied.
    room: Buf<u8>,
    fetched: Fetched,
    partial: Buf<f32>,
}

/// `[n_fetched]`: keys in f16 where they stand, and values.
struct Fetched {
    keys: Buf<u8>,
    values: Buf<u8>,
    key: Buf<f32>,
}

impl Fetcher {
    pub fn carve(arena: &mut Arena, s: &PastShape) -> Fetcher {
        let head_dim = s.kv.each.head_dim;
        let room = arena.carve(s.head_bytes());
        let keys = arena.carve(s.n_fetched() * RowType::F16.row_bytes(head_dim));
        let values = arena.carve(s.n_fetched() * s.v_bytes());
        Fetcher { room, fetched: Fetched { keys, values, key: arena.carve(head_dim) }, partial: arena.carve(s.partial_len()) }
    }

    /// What tokens find in some of the pieces that were chosen for a head, `[tokens][partial_len]` into `found`.
    pub fn recall<R: Rotary>(
        &mut self,
        w: &World<R>,
        head: Head,
        (chosen, some): (&Chosen, Range<usize>),
        tokens: Range<usize>,
        found: &mut [f32],
    ) {
        let n = chosen.numbers().len();
        let n_rows = self.fetch(w, head, chosen, some.start.min(n)..some.end.min(n));
        for (t, found) in tokens.zip(found.chunks_exact_mut(w.shape.partial_len())) {
            self.attend(w, w.queries(head, t), chosen.centre(), n_rows, found);
        }
    }

    /// Reads pieces and lays out those of their tokens that the arena has lost: how many.
    fn fetch<R: Rotary>(&mut self, w: &World<R>, head: Head, chosen: &Chosen, some: Range<usize>) -> usize {
        let piece_bytes = PIECE * w.shape.row_bytes();
        let placing = placing(w);
        let piece_at = |piece: usize| {
            w.shape.rows_at(w.own, piece / PIECES) + (head.0 * w.shape.head_bytes() + piece % PIECES * piece_bytes) as u64
        };
        for &piece in &chosen.numbers()[some.clone()] {
            w.files.expect(piece_at(piece as usize), piece_bytes);
        }
        let (mut pieces, mut n_rows) = (chosen.pieces().skip(some.start), 0);
        // Those of a tile are read together, with what lies between them, which costs less than another call.
        for numbers in chosen.numbers()[some].chunk_by(|a, b| *a as usize / PIECES == *b as usize / PIECES) {
            let (first, last) = (numbers[0] as usize, numbers[numbers.len() - 1] as usize);
            let n_bytes = (last + 1 - first) * piece_bytes;
            let (Fetcher { room, fetched, .. }, n_before) = (&mut *self, n_rows);
            let seen = w.files.see(&mut room[..n_bytes], piece_at(first), |rows| {
                n_rows = n_before;
                for (piece, lost, positions) in pieces.clone().take(numbers.len()) {
                    let rows = &rows[(piece as usize - first) * piece_bytes..][..piece_bytes];
                    n_rows = fetched.lay_out(w, head, &placing, (piece, lost, positions), rows, n_rows);
                }
            });
            pieces.by_ref().take(numbers.len()).for_each(drop);
            match seen {
                Ok(()) => {
                    Counters::add(&w.counters.n_pieces, numbers.len());
                    Counters::add(&w.counters.read_bytes, n_bytes);
                }
                Err(e) => {
                    n_rows = n_before;
                    w.counters.failed(&w.counters.n_unread, "read", &e);
                }
            }
        }
        n_rows
    }

    /// What a token's queries make of the rows that were fetched. The arena's scores lack what its centre would add to them, so
    /// these must too.
    fn attend<R>(&mut self, w: &World<R>, q: &[f32], centre: &[f32], n_rows: usize, found: &mut [f32]) {
        let (n_q, head_dim, soft_cap) = (w.shape.n_q, w.shape.kv.each.head_dim, w.shape.soft_cap);
        let (running, acc) = found.split_at_mut(2 * n_q);
        running.fill(f32::NEG_INFINITY);
        let (k_type, v_type) = (RowType::F16, w.shape.kv.v_type.row());
        for first in (0..n_rows).step_by(CHUNK) {
            let (keys, values, rows) = (&self.fetched.keys[..], &self.fetched.values[..], Rows::Dense { first });
            let n_rows = CHUNK.min(n_rows - first);
            let a = Attend { q, head_dim, keys, values, k_type, v_type, rows, n_rows, wide: &[], soft_cap };
            let mut partial = as_partial(&mut self.partial, n_q);
            w.kernels.attend(&a, &mut partial);
            w.kernels.merge(running, acc, &partial);
        }
        if n_rows > 0 {
            running.iter_mut().zip(q.chunks_exact(head_dim)).for_each(|(max, q)| *max -= dot(q, centre));
        }
    }
}

impl Fetched {
    /// Puts the lost tokens of a piece, of which these are the rows, behind the `n_rows` that are there: how many there are then. Keys
    /// are turned to where they stand. They are not brought to the basis of the arena's keys: that would take a Hadamard matrix
    /// for each of them, where queries are few.
    fn lay_out<R: Rotary>(
        &mut self,
        w: &World<R>,
        head: Head,
        placing: &Placing,
        (piece, lost, positions): (u32, u8, &[i32]),
        rows: &[u8],
        mut n_rows: usize,
    ) -> usize {
        let (k, v) = (w.shape.k_bytes(), w.shape.v_bytes());
        let f16 = RowType::F16.row_bytes(w.shape.kv.each.head_dim);
        // The keys of the first tile are stored whole.
        let is_less_mean = placing.turned > 0 && w.tile(piece as usize / PIECES) > 0;
        let mean = if is_less_mean { mean(w.means, w.shape, w.own, head.0) } else { &[] };
        for (j, &pos) in (0..PIECE).filter(|j| lost >> j & 1 == 1).zip(positions) {
            let (key_at, value_at) = w.shape.row_in_head(j);
            let row = &mut self.keys[n_rows * f16..][..f16];
            row[..k].copy_from_slice(&rows[key_at..][..k]);
            w.kernels.place(placing, row, mean, w.angles.at(i64::from(pos)), &mut self.key);
            self.values[n_rows * v..][..v].copy_from_slice(&rows[value_at..][..v]);
            n_rows += 1;
        }
        n_rows
    }
}

/// In eight lanes.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for l in 0..8 {
            lanes[l] += a[l] * b[l];
        }
    }
    lanes.iter().sum()
}

/// `[max][sum][acc]`
fn as_partial(found: &mut [f32], n_q: usize) -> Partial<'_> {
    let (max, rest) = found.split_at_mut(n_q);
    let (sum, acc) = rest.split_at_mut(n_q);
    Partial { max, sum, acc, weights: &mut [] }
}

/// Adds what the later parts of a head found to what the first did.
pub(super) fn merge_parts(kernels: Kernels, n_q: usize, first: &mut [f32], later: &mut [f32]) {
    let len = first.len();
    let (running, acc) = first.split_at_mut(2 * n_q);
    for part in later.chunks_exact_mut(len) {
        // Where there were no rows there is nothing.
        if part[0] > f32::NEG_INFINITY {
            kernels.merge(running, acc, &as_partial(part, n_q));
        }
    }
}

/// How keys that are fetched become what attention reads.
fn placing<R: Rotary>(w: &World<R>) -> Placing {
    let (k_type, head_dim) = (w.shape.kv.k_type, w.shape.kv.each.head_dim);
    let (order, n_rot) = w.rotary.pairs(w.asking.layer).unwrap_or((RopeOrder::Norm, 0));
    let turned = if k_type.is_turned() { KvType::part(head_dim) } else { 0 };
    Placing { ty: k_type.row(), turned, head_dim, n_rot, order }
}
