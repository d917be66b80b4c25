//! Who must go when a head is full. One rule for every policy: among the entries that are not protected, the one with
//! the highest urge; ties go to the oldest. Policies differ in the score an entry gets when it enters, in whether the
//! attention it receives counts, and in what is protected. Everything here is pure.

use std::str::FromStr;

use super::Pos;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The entry whose key has the highest L2 norm goes: low-norm keys are the ones attention looks at (Devoto et al. 2024,
    /// arXiv 2406.11430). Sinks, recent tokens and, by `--rare`, the rarest entries are protected; without the first two
    /// the rule collapses in streaming.
    L2,
    /// The paper's rule as it stands: nothing is protected.
    L2Paper,
    /// The paper's control: the lowest norm goes.
    L2High,
    /// The norm, set against what else is known: norm(k) / ((1 - cos) · norm(v) · the mean attention received), cos between the
    /// key before RoPE and the mean of its head's; the highest goes. A low norm is how much attention an entry may expect, what it
    /// received is how much it gets. It ages (`Marks::half_life`). The direction is KeyDiff's measure, the product of attention and value that of CAOTE (arXiv
    /// 2504.14051).
    L2Attn,
    /// KeyDiff (Park et al. 2025, arXiv 2504.15364): the key most like the mean of the kept keys of length one goes. As in the
    /// paper, compared anew for each batch of a prompt; a newcomer of the batch counts as unlike the rest until then.
    KeyDiff,
    /// The same compared once, when the entry enters, with the mean so far of keys before RoPE.
    KeyDiffFrozen,
    /// The lowest (1 - cos) · norm(v) goes, cos as in `KeyDiffFrozen`.
    Outlier,
    /// The highest norm(k) / norm(v) goes.
    Ratio,
    /// LagKV (Liang et al. 2025, arXiv 2504.04704): the token goes that varies least from channel to channel, in the ranges of the `LAG`
    /// tokens that follow. Rated once those are in.
    LagKv,
    /// TOVA (Oren et al. 2024, arXiv 2401.06104): the lowest attention from the latest token goes.
    Tova,
    /// H2O (Zhang et al. 2023, arXiv 2306.14048): the lowest sum of attention received goes.
    H2o,
    /// Sinks and a sliding window (Xiao et al. 2023, arXiv 2309.17453): the oldest unprotected entry goes.
    Window,
    /// Any unprotected entry goes, each as likely.
    Random,
    /// Nothing is evicted: the stream stops when the arena is full.
    Off,
}

/// Tokens of a chunk of `Policy::LagKv`. (The paper's usual 128 is more than a small arena has slots.)
pub const LAG: usize = 32;

/// See `Marks::half_life`: what was rare once is not kept for ever. What was tried is in docs/kv-cache.md.
const HALF_LIFE: u32 = 8;

/// What is known of an entry when it enters, before it is rounded for storage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entering {
    pub key_norm: f32,
    pub value_norm: f32,
    /// Cosine between the key before RoPE and the mean of its head's keys, each of length one.
    pub cos: f32,
    /// Evenly spread over 0..1.
    pub noise: f32,
}

impl Entering {
    /// What the entry may contribute once attention falls on it.
    pub fn worth(&self) -> f32 {
        (1.0 - self.cos) * self.value_norm
    }
}

/// What a policy keeps beside a score and a position for each entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// How common it is, beside another score.
    pub common: bool,
    /// The attention it received.
    pub received: bool,
    /// The mean direction of each head's keys.
    pub direction: bool,
    /// The limit of the reserve for the rarest entries.
    pub reserve: bool,
    /// The latest tokens of each head, to be pooled with those to come.
    pub pool: usize,
    /// Tokens, as a multiple of the slots, by which a score doubles; 0: none does.
    pub half_life: u32,
}

impl Policy {
    pub const ALL: [Policy; 14] = [
        Policy::L2,
        Policy::L2Paper,
        Policy::L2High,
        Policy::L2Attn,
        Policy::KeyDiff,
        Policy::KeyDiffFrozen,
        Policy::Outlier,
        Policy::Ratio,
        Policy::LagKv,
        Policy::Tova,
        Policy::H2o,
        Policy::Window,
        Policy::Random,
        Policy::Off,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Policy::L2 => "l2",
            Policy::L2Paper => "l2-paper",
            Policy::L2High => "l2-high",
            Policy::L2Attn => "l2-attn",
            Policy::KeyDiff => "keydiff",
            Policy::KeyDiffFrozen => "keydiff-frozen",
            Policy::Outlier => "outlier",
            Policy::Ratio => "ratio",
            Policy::LagKv => "lagkv",
            Policy::Tova => "tova",
            Policy::H2o => "h2o",
            Policy::Window => "window",
            Policy::Random => "random",
            Policy::Off => "off",
        }
    }

    /// What this policy keeps, with a reserve for the rarest entries or without, and neighbours pooled or not.
    pub fn marks(self, reserve: bool, pool: usize) -> Marks {
        let common = reserve && self == Policy::L2;
        Marks {
            common,
            received: matches!(self, Policy::L2Attn | Policy::Tova | Policy::H2o),
            direction: common || matches!(self, Policy::L2Attn | Policy::KeyDiffFrozen | Policy::Outlier),
            reserve: reserve && self.has_reserve(),
            pool: if self.has_pool() { pool } else { 0 },
            half_life: if self == Policy::L2Attn { HALF_LIFE } else { 0 },
        }
    }

    /// Whether `--rare` reserves slots.
    pub fn has_reserve(self) -> bool {
        matches!(self, Policy::L2 | Policy::L2Attn)
    }

    /// Whether entries have a score of their own that `--pool` can share among neighbours.
    pub fn has_pool(self) -> bool {
        use Policy::*;
        !matches!(self, KeyDiff | LagKv | Tova | H2o | Window | Random | Off)
    }

    /// `--recent` where the user gives none, in percent of the slots. What was tried is in docs/kv-cache.md.
    pub fn usual_recent(self) -> f32 {
        if self == Policy::L2Attn { 30.0 } else { 50.0 }
    }

    /// `--rare` where the user gives none, as a share of the slots. It is what finds rare facts again.
    pub fn usual_reserve(self) -> f32 {
        if self == Policy::L2Attn { 0.45 } else { 0.0 }
    }

    /// `--pool` where the user gives none.
    pub fn usual_pool(self) -> u32 {
        if self == Policy::L2Attn { 2 } else { 0 }
    }

    /// Whether the length of values counts.
    pub fn asks_value(self) -> bool {
        matches!(self, Policy::L2Attn | Policy::Outlier | Policy::Ratio)
    }

    /// Fixed when the entry enters, from f32 before it is rounded for storage. Higher goes first.
    pub fn score(self, e: &Entering) -> f32 {
        match self {
            Policy::L2 | Policy::L2Paper => e.key_norm,
            Policy::L2High => -e.key_norm,
            Policy::L2Attn => e.key_norm / e.worth().max(f32::MIN_POSITIVE),
            Policy::KeyDiff | Policy::KeyDiffFrozen => e.cos,
            Policy::Outlier => (e.cos - 1.0) * e.value_norm,
            Policy::Ratio => e.key_norm / e.value_norm,
            Policy::Random => e.noise,
            Policy::LagKv => f32::NEG_INFINITY,
            Policy::Tova | Policy::H2o | Policy::Window | Policy::Off => 0.0,
        }
    }

    /// What this policy protects of the user's `--sinks` and `--recent`.
    pub fn protection(self, sinks: u32, recent: u32) -> Protection {
        match self {
            // The oldest goes first, so whatever is kept is the most recent.
            Policy::Window => Protection { sinks, recent: 0 },
            Policy::L2Paper | Policy::Off => Protection { sinks: 0, recent: 0 },
            _ => Protection { sinks, recent },
        }
    }
}

/// How much an entry ought to go: the higher the sooner.
pub fn urge(policy: Policy, score: f32, received: f32) -> f32 {
    match policy {
        Policy::Tova | Policy::H2o => -received,
        Policy::L2Attn => score / received.max(f32::MIN_POSITIVE),
        // All equal: the tie goes to the oldest.
        Policy::Window | Policy::Off => 0.0,
        _ => score,
    }
}

/// How a head decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub policy: Policy,
    pub protect: Protection,
    /// Slots reserved for the least common entries: those of the highest worth (`Entering::worth`); with `l2-attn`, whose score
    /// has the worth in it, those of the lowest score.
    pub n_rare: usize,
}

impl Rule {
    /// Of a layer with a window: the oldest entry goes, which no later token sees.
    pub const RING: Rule = Rule { policy: Policy::Window, protect: Protection { sinks: 0, recent: 0 }, n_rare: 0 };
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

    /// The first and the last position that may go while the token at `now` enters, if there are such.
    pub fn open(self, now: Pos) -> Option<(Pos, Pos)> {
        let last = now.checked_sub(self.recent)?;
        (self.sinks <= last).then_some((self.sinks, last))
    }

    /// Slots without which an entry that may go is not certain to exist at every step.
    pub fn min_slots(self) -> usize {
        self.sinks as usize + self.recent.max(1) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_by_hand() {
        let e = Entering { key_norm: 6.0, value_norm: 2.0, cos: 0.25, noise: 0.5 };
        let of = |policy: Policy| urge(policy, policy.score(&e), 0.1);
        use Policy::*;
        let expected = [
            (L2, 6.0),
            (L2Paper, 6.0),
            (L2High, -6.0),
            (L2Attn, 6.0 / (0.75 * 2.0 * 0.1)),
            (KeyDiffFrozen, 0.25),
            (Outlier, -0.75 * 2.0),
            (Ratio, 3.0),
            (Tova, -0.1),
            (H2o, -0.1),
            (Window, 0.0),
            (Random, 0.5),
        ];
        for (policy, urge) in expected {
            assert!((of(policy) - urge).abs() < 1e-5, "{}: {}", policy.name(), of(policy));
        }
    }
}
