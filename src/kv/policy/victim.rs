//! The choice of who goes, for one head and one newcomer: of the entries that are neither protected nor of the reserve the
//! one of the highest priority, of equals the oldest. It is asked for every head of every token, so it is a few straight passes over what a
//! head knows of its entries, in integers that order as the numbers do: loops that compilers turn into vectors. Pure, but for
//! the limit of the reserve, which a head remembers because it hardly moves from one token to the next.

use std::cmp::Ordering;

use super::Rule;
use super::table::Priority;
use crate::kv::Pos;

/// What a head knows of its entries, by slot. Positions are unlike each other.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    pub positions: &'a [Pos],
    pub scores: &'a [f32],
    /// The attention received; anything as long where it does not count.
    pub received: &'a [f32],
    /// How common an entry is: the least common ones are the reserve.
    pub common: &'a [f32],
}

/// The first and the last position that may go.
type Open = (Pos, Pos);

/// Before any limit was found.
pub const NO_LIMIT: i32 = i32::MIN;

/// The slot of the entry that goes so that the token at `now` can enter, or `None` if all are protected. `limit` is what it
/// was left at the last time.
pub fn victim(rule: Rule, entries: Entries, now: Pos, limit: &mut i32) -> Option<usize> {
    let open = rule.protect.open(now)?;
    let from = match rule.n_reserved {
        0 => NO_LIMIT,
        n_reserved => {
            *limit = entries.limit(open, n_reserved, *limit);
            *limit
        }
    };
    match rule.policy.row().priority {
        // A loop of its own: what `Priority::of` matches is known in it.
        Priority::ScorePerReceived => {
            entries.highest(open, from, |score, received| Priority::ScorePerReceived.of(score, received))
        }
        priority => entries.highest(open, from, |score, received| priority.of(score, received)),
    }
}

impl Entries<'_> {
    /// Of the open entries that are at least as common as `from` the slot of the one with the highest `priority(score, received)`,
    /// of equals the oldest.
    fn highest(&self, open: Open, from: i32, priority: impl Fn(f32, f32) -> f32) -> Option<usize> {
        // Asked of all, protected or not: a loop without branches.
        let rank = |pos: Pos, score: f32, received: f32, common: f32| {
            let priority = order(priority(score, received)).max(i32::MIN + 1);
            if is_open(pos, open) & (order(common) >= from) { priority } else { i32::MIN }
        };
        let each = || self.positions.iter().zip(self.scores).zip(self.received.iter().zip(self.common));
        let mut highest = i32::MIN;
        for ((&pos, &score), (&received, &common)) in each() {
            highest = highest.max(rank(pos, score, received, common));
        }
        let mut goes = Pos::MAX;
        for ((&pos, &score), (&received, &common)) in each() {
            goes = goes.min(if rank(pos, score, received, common) == highest { pos } else { Pos::MAX });
        }
        self.positions.iter().position(|&pos| pos == goes).filter(|_| highest > i32::MIN)
    }

    /// How common an open entry must be to be outside the reserve of `n_reserved`: as the last of those that are not of it, one at
    /// least, most common first. `last` is what it was: since then an entry left and another one opened, so it is that or near.
    fn limit(&self, open: Open, n_reserved: usize, last: i32) -> i32 {
        let mut at = last;
        for _ in 0..4 {
            let counts = self.count(open, at);
            match counts.compare(n_reserved) {
                Ordering::Less => at = counts.next_above,
                Ordering::Equal => return at,
                Ordering::Greater => at = counts.next_below,
            }
        }
        // Halving: `low` leaves enough outside, `high` does not.
        let (mut low, mut high) = (i64::from(i32::MIN), i64::from(i32::MAX) + 1);
        while high - low > 1 {
            let middle = (low + high).div_euclid(2);
            match self.count(open, middle as i32).compare(n_reserved) {
                Ordering::Less | Ordering::Equal => low = middle,
                Ordering::Greater => high = middle,
            }
        }
        low as i32
    }

    fn count(&self, open: Open, at: i32) -> Counts {
        let mut counts = Counts { n_open: 0, n_from: 0, n_above: 0, next_below: i32::MIN, next_above: i32::MAX };
        for (&pos, &common) in self.positions.iter().zip(self.common) {
            let (is_open, common) = (is_open(pos, open), order(common));
            counts.n_open += u32::from(is_open);
            counts.n_from += u32::from(is_open & (common >= at));
            counts.n_above += u32::from(is_open & (common > at));
            counts.next_below = counts.next_below.max(if is_open & (common < at) { common } else { i32::MIN });
            counts.next_above = counts.next_above.min(if is_open & (common > at) { common } else { i32::MAX });
        }
        counts
    }
}

/// How many entries are open; how many of them are at least as common as some limit, and how many more so; the nearest to it.
struct Counts {
    n_open: u32,
    n_from: u32,
    n_above: u32,
    next_below: i32,
    next_above: i32,
}

impl Counts {
    /// The limit they were counted at beside the right one.
    fn compare(&self, n_reserved: usize) -> Ordering {
        let n_common = self.n_open.saturating_sub(n_reserved as u32).max(1);
        if self.n_from < n_common {
            Ordering::Greater
        } else if self.n_above >= n_common {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    }
}

fn is_open(pos: Pos, (first, last): Open) -> bool {
    (first <= pos) & (pos <= last)
}

/// An integer for each number, in the order of `f32::total_cmp`.
fn order(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/policy/victim.rs"]
mod tests;
