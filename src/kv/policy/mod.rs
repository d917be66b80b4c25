//! Which entry is evicted when a head is full. One rule for every policy: among the entries that are not protected the one of the highest
//! priority; ties go to the oldest. `table` says in what policies differ, `marks` keeps what they read, `victim` finds the entry.
//! What is here is pure.

pub mod ageing;
pub mod keydiff;
pub mod lagkv;
pub mod marks;
pub mod table;
pub mod victim;

use std::str::FromStr;

use super::Pos;
use table::{PolicyRow, TABLE};

/// A row of `TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    L2,
    L2Paper,
    L2High,
    L2Attn,
    Attn,
    KeyDiff,
    KeyDiffFrozen,
    Outlier,
    Ratio,
    LagKv,
    Tova,
    H2o,
    Window,
    Random,
    Off,
}

impl Policy {
    pub fn all() -> impl ExactSizeIterator<Item = Policy> {
        TABLE.iter().map(|row| row.policy)
    }

    pub fn row(self) -> &'static PolicyRow {
        &TABLE[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Policy::all().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = Policy::all().map(Policy::name).collect();
            format!("'{name}' is not an eviction policy; there are {}", names.join(", "))
        })
    }
}

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
pub struct Keeps {
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
    /// Which token of the stream an entry is, for the past in a file: positions may be given anew.
    pub token: bool,
}

/// How a head decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub policy: Policy,
    pub protect: Protection,
    /// Slots reserved for the least common entries: those of the highest worth (`Entering::worth`), or of the lowest score
    /// where that has the worth in it (`Reserve::by_worth`).
    pub n_reserved: usize,
}

impl Rule {
    /// Of a layer with a window: the oldest entry goes, which no later token sees.
    pub const RING: Rule = Rule { policy: Policy::Window, protect: Protection { sinks: 0, recent: 0 }, n_reserved: 0 };
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
