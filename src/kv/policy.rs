//! Who must go when a head is full. One rule for every policy: among the entries that are not protected, the one with
//! the highest score; ties go to the oldest. Policies differ in the score an entry gets when it enters and in what is
//! protected. Everything here is pure.

use std::str::FromStr;

use super::Pos;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The entry whose key has the highest L2 norm goes: low-norm keys are the ones attention looks at (Devoto et al. 2024,
    /// arXiv 2406.11430). Sinks and recent tokens are protected; without them the rule collapses in streaming.
    L2,
    /// The paper's rule as it stands: nothing is protected.
    L2Paper,
    /// Sinks and a sliding window (Xiao et al. 2023, arXiv 2309.17453): the oldest unprotected entry goes.
    Window,
    /// Nothing is evicted: the stream stops when the arena is full.
    Off,
}

impl Policy {
    pub const ALL: [Policy; 4] = [Policy::L2, Policy::L2Paper, Policy::Window, Policy::Off];

    pub fn name(self) -> &'static str {
        match self {
            Policy::L2 => "l2",
            Policy::L2Paper => "l2-paper",
            Policy::Window => "window",
            Policy::Off => "off",
        }
    }

    /// Fixed when the entry enters, from the f32 key before it is rounded for storage.
    pub fn score(self, key_norm: f32) -> f32 {
        match self {
            Policy::L2 | Policy::L2Paper => key_norm,
            // All equal: the tie goes to the oldest.
            Policy::Window | Policy::Off => 0.0,
        }
    }

    /// What this policy protects of the user's `--sinks` and `--recent`.
    pub fn protection(self, sinks: u32, recent: u32) -> Protection {
        match self {
            Policy::L2 => Protection { sinks, recent },
            // The oldest goes first, so whatever is kept is the most recent.
            Policy::Window => Protection { sinks, recent: 0 },
            Policy::L2Paper | Policy::Off => Protection { sinks: 0, recent: 0 },
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Policy::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = Policy::ALL.iter().map(|p| p.name()).collect();
            format!("'{name}' is not an eviction policy; there are {}", names.join(", "))
        })
    }
}

/// Entries that may not be evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Positions below this.
    pub sinks: u32,
    /// At step t, positions above `t - recent`; the newcomer itself counts as one.
    pub recent: u32,
}

/// Why an entry may not be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protected {
    Sink,
    Recent,
}

impl Protection {
    /// Whether the entry at `pos` is protected while the token at `now` enters.
    pub fn of(self, pos: Pos, now: Pos) -> Option<Protected> {
        if pos < self.sinks {
            return Some(Protected::Sink);
        }
        (u64::from(pos) + u64::from(self.recent) > u64::from(now)).then_some(Protected::Recent)
    }

    /// Slots without which an entry that may go is not certain to exist at every step.
    pub fn min_slots(self) -> usize {
        self.sinks as usize + self.recent.max(1) as usize
    }
}

/// The slot of the entry that goes so that the token at position `now` can enter, or `None` if all are protected.
pub fn victim(scores: &[f32], positions: &[Pos], now: Pos, protect: Protection) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (slot, (&score, &pos)) in scores.iter().zip(positions).enumerate() {
        if protect.of(pos, now).is_some() {
            continue;
        }
        best = match best {
            Some(b) if !(score > scores[b] || (score == scores[b] && pos < positions[b])) => Some(b),
            _ => Some(slot),
        };
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word: gather, sort, take the first.
    fn naive(scores: &[f32], positions: &[Pos], now: Pos, protect: Protection) -> Option<usize> {
        let mut old: Vec<usize> = (0..scores.len())
            .filter(|&s| positions[s] >= protect.sinks && i64::from(positions[s]) <= i64::from(now) - i64::from(protect.recent))
            .collect();
        old.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(positions[a].cmp(&positions[b])));
        old.first().copied()
    }

    #[test]
    fn victim_is_what_sorting_says() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let n = rng.usize(..12);
            let mut positions: Vec<Pos> = (0..20).collect();
            rng.shuffle(&mut positions);
            positions.truncate(n);
            let scores: Vec<f32> = (0..n).map(|_| rng.u8(..4) as f32).collect();
            let now = positions.iter().max().map_or(0, |p| p + 1);
            let protect = Protection { sinks: rng.u32(..6), recent: rng.u32(..8) };
            assert_eq!(victim(&scores, &positions, now, protect), naive(&scores, &positions, now, protect));
        }
    }

    #[test]
    fn protected_entries_stay_whatever_their_score() {
        // Position 0 is a sink, 8 and 9 are recent at step 10 with recent 3 (8, 9 and 10 itself).
        let protect = Protection { sinks: 1, recent: 3 };
        assert_eq!(victim(&[9.0, 1.0, 2.0, 8.0, 7.0], &[0, 4, 5, 8, 9], 10, protect), Some(2));
        assert_eq!(victim(&[9.0, 8.0, 7.0], &[0, 8, 9], 10, protect), None);
        assert_eq!(protect.min_slots(), 4);
    }

    #[test]
    fn not_a_number_does_not_panic() {
        assert_eq!(victim(&[f32::NAN, f32::NAN], &[0, 1], 2, Protection::default()), Some(0));
    }
}
