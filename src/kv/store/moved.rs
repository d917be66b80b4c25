//! Runs of tokens that a changed prompt has in common with the stream, behind the place of the change: their rows are moved to where
//! they stand now, and their keys turned by the difference, in place of computing them anew.
//!
//! It is not exact. What a moved token's keys and values in deeper layers know of the changed tokens is what they knew of the old ones.
//! While nothing has been evicted the slot of a token is its position, so a run moves as a block.

use super::{KvCache, KvScratch, Rows};
use crate::kv::{Pos, Rotary};

/// `n` tokens that stood at `from` and stand at `to` in the new prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub from: usize,
    pub to: usize,
    pub n: usize,
}

impl KvCache {
    /// Why no runs can be moved of a stream that keeps its first `n_kept` tokens and will hold `n_tokens`; `None`: they can.
    pub fn cannot_move(&self, n_kept: usize, n_tokens: usize) -> Option<&'static str> {
        let fewest = self.shape.layers().map(|layer| self.slots(layer)).min().unwrap_or(0);
        match self.cannot_rewind(n_kept as u64) {
            None if n_tokens > fewest => Some("the new prompt does not fit into the slots, or into a window"),
            None if n_tokens + self.shape.n_batch > self.shape.n_ctx => Some("the new prompt reaches the trained context"),
            why => why,
        }
    }

    /// Keeps the first `n_kept` tokens, and lays `runs` (in order, `from` and `to` not below `n_kept`) where they will be adopted.
    pub fn move_runs(&mut self, n_kept: usize, runs: &[Run], scratch: &mut KvScratch, rotary: &impl Rotary) {
        let ends = runs.iter().map(|run| run.to + run.n).max().unwrap_or(n_kept);
        assert!(self.cannot_move(n_kept, ends).is_none());
        // Those that move towards the beginning go first, from the first on; then those that move to the end, from the last on: so no
        // row is overwritten before it has moved.
        let back = runs.iter().filter(|run| run.to < run.from);
        let on = runs.iter().rev().filter(|run| run.to > run.from);
        for run in back.chain(on) {
            self.move_run(*run, scratch, rotary);
        }
        self.rewind(n_kept as u64);
    }

    fn move_run(&mut self, run: Run, scratch: &mut KvScratch, rotary: &impl Rotary) {
        let shape = self.shape;
        let steps = run.to as i64 - run.from as i64;
        for layer in shape.layers() {
            let (head_dim, Rows { keys, values, k_bytes: k, v_bytes: v, .. }) =
                (shape.of(layer).head_dim, &mut self.stores[shape.store(layer)]);
            let (k, v, key) = (*k, *v, &mut scratch.key[..head_dim]);
            rotary.set_angles(layer, steps, &mut scratch.angles);
            for head in shape.of(layer).heads() {
                let first = shape.rows_of(shape.store(layer), layer.0, self.n_slot) + head.0 * shape.slots(layer, self.n_slot);
                let (from, to) = (first + run.from, first + run.to);
                keys.copy_within(from * k..(from + run.n) * k, to * k);
                values.copy_within(from * v..(from + run.n) * v, to * v);
                let rounding = self.roundings.of_head(layer, head);
                for row in keys[to * k..(to + run.n) * k].chunks_exact_mut(k) {
                    rounding.load(shape.k_type, row, key);
                    shape.k_type.turn_back(key, head_dim);
                    rotary.turn(layer, key, &scratch.angles);
                    rounding.store(shape.k_type, key, row);
                }
                let first = shape.slots_of(layer.0, self.n_slot) + head.0 * shape.slots(layer, self.n_slot);
                let (from, to) = (first + run.from, first + run.to);
                self.marks.move_slots(from..from + run.n, to);
                let positions = &mut self.marks.positions[to..to + run.n];
                positions.iter_mut().enumerate().for_each(|(i, pos)| *pos = (run.to + i) as Pos);
            }
        }
    }

    /// Takes in the `n` tokens that were laid behind the latest one.
    pub fn take_moved(&mut self, n: usize) {
        assert!(self.n_live + n <= self.n_slot);
        self.n_live += n;
        self.next_pos += n as Pos;
    }
}
