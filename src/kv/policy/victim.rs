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
mod tests {
    use super::*;
    use crate::kv::policy::{Policy, Protection};

    /// The definition, word for word: of the open ones all but the least common `n_reserved` may go, one at least; of those the
    /// one of the highest priority, of equals the oldest.
    fn naive(rule: Rule, e: &Entries, now: Pos) -> Option<usize> {
        let Rule { policy, protect, n_reserved } = rule;
        let is_open = |&s: &usize| {
            e.positions[s] >= protect.sinks && i64::from(e.positions[s]) <= i64::from(now) - i64::from(protect.recent)
        };
        let mut open: Vec<usize> = (0..e.positions.len()).filter(is_open).collect();
        open.sort_by(|&a, &b| e.common[b].total_cmp(&e.common[a]));
        let n_common = open.len().saturating_sub(n_reserved).max(1).min(open.len());
        let limit = e.common[*open.get(n_common.checked_sub(1)?)?];
        let priority = |s: usize| policy.row().priority.of(e.scores[s], e.received[s]);
        let may_go = open.into_iter().filter(|&s| e.common[s] >= limit);
        may_go.min_by(|&a, &b| priority(b).total_cmp(&priority(a)).then(e.positions[a].cmp(&e.positions[b])))
    }

    /// Any entries, with ties; the limit is left over from another question.
    #[test]
    fn it_is_what_sorting_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut limit = NO_LIMIT;
        for _ in 0..40_000 {
            let n = rng.usize(..40);
            let mut positions: Vec<Pos> = (0..50).collect();
            rng.shuffle(&mut positions);
            positions.truncate(n);
            let levels = rng.u8(1..30);
            let mut random = || -> Vec<f32> { (0..n).map(|_| f32::from(rng.u8(..levels)) - 4.0).collect() };
            let (scores, received, common) = (random(), random(), random());
            let received: Vec<f32> = received.iter().map(|r| r.abs() + 0.5).collect();
            let entries = Entries { positions: &positions, scores: &scores, received: &received, common: &common };
            let now = positions.iter().max().map_or(0, |p| p + 1);
            let protect = Protection { sinks: rng.u32(..6), recent: rng.u32(..8) };
            let policy = rng.choice(Policy::all()).unwrap();
            let rule = Rule { policy, protect, n_reserved: if rng.bool() { 0 } else { rng.usize(..n + 3) } };
            assert_eq!(victim(rule, entries, now, &mut limit), naive(rule, &entries, now), "{rule:?} {entries:?}");
        }
    }

    /// A stream, where the limit moves by one entry at a time or stays.
    #[test]
    fn the_limit_follows_a_stream() {
        let mut rng = fastrand::Rng::with_seed(2);
        let (n, mut limit) = (64usize, NO_LIMIT);
        let rule = Rule { policy: Policy::L2, protect: Protection { sinks: 2, recent: 16 }, n_reserved: 20 };
        let mut positions: Vec<Pos> = (0..n as Pos).collect();
        let [mut scores, mut common] = [(); 2].map(|()| (0..n).map(|_| rng.f32()).collect::<Vec<f32>>());
        for now in n as Pos..3_000 {
            let entries = Entries { positions: &positions, scores: &scores, received: &scores, common: &common };
            let goes = victim(rule, entries, now, &mut limit);
            assert_eq!(goes, naive(rule, &entries, now));
            let slot = goes.unwrap();
            (positions[slot], scores[slot], common[slot]) = (now, rng.f32(), rng.f32());
        }
    }

    #[test]
    fn protected_entries_stay_whatever_their_score() {
        // Position 0 is a sink, 8 and 9 are recent at step 10 with recent 3 (8, 9 and 10 itself).
        let rule = Rule { policy: Policy::L2, protect: Protection { sinks: 1, recent: 3 }, n_reserved: 0 };
        let of = |scores: &[f32], positions: &[Pos]| {
            victim(rule, Entries { positions, scores, received: scores, common: scores }, 10, &mut NO_LIMIT.clone())
        };
        assert_eq!(of(&[9.0, 1.0, 2.0, 8.0, 7.0], &[0, 4, 5, 8, 9]), Some(2));
        assert_eq!(of(&[9.0, 8.0, 7.0], &[0, 8, 9]), None);
        assert_eq!(of(&[], &[]), None);
        assert_eq!(rule.protect.min_slots(), 4);
    }

    /// A model may be broken: whatever its numbers, someone goes.
    #[test]
    fn not_a_number_does_not_panic() {
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX)] {
            for n_reserved in [0, 1, 5] {
                let (rule, scores) = (Rule { policy: Policy::L2Attn, protect: Protection::default(), n_reserved }, [nan; 3]);
                let entries = Entries { positions: &[0, 1, 2], scores: &scores, received: &scores, common: &scores };
                assert_eq!(victim(rule, entries, 3, &mut NO_LIMIT.clone()), Some(0));
            }
        }
    }

    #[test]
    fn integers_order_as_numbers_do() {
        let numbers = [f32::NEG_INFINITY, -2.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 2.5, f32::INFINITY, f32::NAN];
        assert!(numbers.is_sorted_by(|&a, &b| order(a) < order(b)));
    }
}
