//! The eviction policies: one row each, saying in what a policy differs from the plain one, which evicts the entry of the highest score that
//! it got when it entered. To add a policy, add its name to `Policy` and its row here; help, documents and tests follow.

use super::{Entering, Keeps, Policy, Protection};

pub struct PolicyRow {
    pub policy: Policy,
    /// As `--evict` spells it.
    pub name: &'static str,
    /// What is evicted first.
    pub evicts: &'static str,
    /// Where it is from.
    pub source: &'static str,
    /// Whether the norm of values is read.
    pub reads_value: bool,
    /// Whether the mean direction of the head's keys is read.
    pub reads_direction: bool,
    /// Whether `--sinks` and `--recent` are protected.
    pub keeps_sinks: bool,
    pub keeps_recent: bool,
    pub judges: Judges,
    /// `--recent` where the user gives none, in percent of the slots.
    pub recent_percent: f32,
    /// The reserve for the rarest entries (`--rare`), of policies that may have one.
    pub reserve: Option<Reserve>,
    /// `--pool` where the user gives none, of policies whose scores neighbours can share.
    pub pool: Option<u32>,
    /// Tokens, as a multiple of the slots, by which a score doubles; 0: none does.
    pub half_life: u32,
    /// Fixed when the entry enters, from f32 before it is rounded for storage. Higher goes first.
    pub score: fn(&Entering) -> f32,
    pub priority: Priority,
}

/// When an entry gets what it is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judges {
    /// Once, as it enters. Only then is a batch the same as its tokens one by one.
    AtEntry,
    /// As attention falls on it: after each batch.
    ByAttention(Received),
    /// Anew with all others, before a batch evicts (`keydiff`).
    PerBatch,
    /// Once, when the tokens that follow it are in (`lagkv`).
    Late,
}

/// Which attention counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// That of the latest token.
    Latest,
    Sum,
    /// Since the entry came, forgetting what is far behind.
    Mean,
}

/// How much an entry ought to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Score,
    LeastReceived,
    ScorePerReceived,
    /// All are equal: the tie goes to the oldest.
    Age,
}

impl Priority {
    /// The higher, the sooner it goes.
    #[inline(always)]
    pub fn of(self, score: f32, received: f32) -> f32 {
        match self {
            Priority::Score => score,
            Priority::LeastReceived => -received,
            Priority::ScorePerReceived => score / received.max(f32::MIN_POSITIVE),
            Priority::Age => 0.0,
        }
    }
}

/// Slots for the entries that are least common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reserve {
    /// `--rare` where the user gives none.
    pub share: f32,
    /// Whether the worth decides (`Entering::worth`), where the score has no worth in it.
    pub by_worth: bool,
}

/// The plain policy: the highest key norm goes.
const PLAIN: PolicyRow = PolicyRow {
    policy: Policy::L2,
    name: "l2",
    evicts: "the highest key norm: attention looks at keys of a low one",
    source: "Devoto et al. 2024, arXiv 2406.11430, with sinks and recent tokens protected",
    reads_value: false,
    reads_direction: false,
    keeps_sinks: true,
    keeps_recent: true,
    judges: Judges::AtEntry,
    recent_percent: 50.0,
    reserve: None,
    pool: Some(0),
    half_life: 0,
    score: |e| e.key_norm,
    priority: Priority::Score,
};

/// One that has no score of its own.
const UNSCORED: PolicyRow = PolicyRow { pool: None, score: |_| 0.0, ..PLAIN };

/// In the order of `Policy`.
#[rustfmt::skip]
pub static TABLE: [PolicyRow; 15] = [
    PolicyRow { reserve: Some(Reserve { share: 0.0, by_worth: true }), ..PLAIN },
    PolicyRow { policy: Policy::L2Paper, name: "l2-paper",
        evicts: "the highest key norm, nothing protected: it collapses in streaming",
        source: "Devoto et al. 2024, arXiv 2406.11430, as it stands",
        keeps_sinks: false, keeps_recent: false, ..PLAIN },
    PolicyRow { policy: Policy::L2High, name: "l2-high",
        evicts: "the lowest key norm: a control",
        source: "Devoto et al. 2024, arXiv 2406.11430, the paper's control",
        score: |e| -e.key_norm, ..PLAIN },
    // A low norm is how much attention an entry may expect, what it received is how much it gets. The direction is KeyDiff's measure,
    // the product of attention and value that of CAOTE.
    PolicyRow { policy: Policy::L2Attn, name: "l2-attn",
        evicts: "the highest norm(k) / ((1 - cos) norm(v) mean attention received), doubled for every 8 x slots tokens of age",
        source: "this project; norms as in l2, directions as in keydiff, attention times value as in CAOTE, arXiv 2504.14051",
        reads_value: true, reads_direction: true, judges: Judges::ByAttention(Received::Mean),
        recent_percent: 30.0, reserve: Some(Reserve { share: 0.45, by_worth: false }), pool: Some(2), half_life: 8,
        score: |e| e.key_norm / e.worth().max(f32::MIN_POSITIVE), priority: Priority::ScorePerReceived, ..PLAIN },
    // For keys that are normed: their norms say nothing of the attention they may expect, and the rarest say less.
    PolicyRow { policy: Policy::Attn, name: "attn",
        evicts: "the lowest (1 - cos) norm(v) mean attention received, halved for every 8 x slots tokens of age",
        source: "this project; l2-attn without the norm of keys",
        reads_value: true, reads_direction: true, judges: Judges::ByAttention(Received::Mean),
        recent_percent: 60.0, reserve: Some(Reserve { share: 0.08, by_worth: false }), pool: Some(4), half_life: 8,
        score: |e| e.worth().max(f32::MIN_POSITIVE).recip(), priority: Priority::ScorePerReceived, ..PLAIN },
    PolicyRow { policy: Policy::KeyDiff, name: "keydiff",
        evicts: "the highest cosine to the mean of the kept keys, compared anew for each batch",
        source: "Park et al. 2025, arXiv 2504.15364",
        judges: Judges::PerBatch, pool: None, score: |e| e.cos, ..PLAIN },
    PolicyRow { policy: Policy::KeyDiffFrozen, name: "keydiff-frozen",
        evicts: "the highest cos between the key before RoPE and the mean so far of its head's keys, compared once",
        source: "this project, after KeyDiff",
        reads_direction: true, score: |e| e.cos, ..PLAIN },
    PolicyRow { policy: Policy::Outlier, name: "outlier",
        evicts: "the lowest (1 - cos) norm(v)", source: "this project",
        reads_value: true, reads_direction: true, score: |e| (e.cos - 1.0) * e.value_norm, ..PLAIN },
    PolicyRow { policy: Policy::Ratio, name: "ratio",
        evicts: "the highest norm(k) / norm(v)", source: "this project",
        reads_value: true, score: |e| e.key_norm / e.value_norm, ..PLAIN },
    PolicyRow { policy: Policy::LagKv, name: "lagkv",
        evicts: "the token that varies least from channel to channel, in the ranges of the 32 that follow it",
        source: "Liang et al. 2025, arXiv 2504.04704",
        judges: Judges::Late, score: |_| f32::NEG_INFINITY, ..UNSCORED },
    PolicyRow { policy: Policy::Tova, name: "tova",
        evicts: "the lowest attention from the latest token", source: "Oren et al. 2024, arXiv 2401.06104",
        judges: Judges::ByAttention(Received::Latest), priority: Priority::LeastReceived, ..UNSCORED },
    PolicyRow { policy: Policy::H2o, name: "h2o",
        evicts: "the lowest sum of attention received", source: "Zhang et al. 2023, arXiv 2306.14048",
        judges: Judges::ByAttention(Received::Sum), priority: Priority::LeastReceived, ..UNSCORED },
    // What is kept is the most recent anyway.
    PolicyRow { policy: Policy::Window, name: "window",
        evicts: "the oldest", source: "Xiao et al. 2023, arXiv 2309.17453",
        keeps_recent: false, priority: Priority::Age, ..UNSCORED },
    PolicyRow { policy: Policy::Random, name: "random",
        evicts: "any, each as likely, the same in every run", source: "a control", score: |e| e.noise, ..UNSCORED },
    PolicyRow { policy: Policy::Off, name: "off",
        evicts: "nothing: the stream stops with an error when the arena is full", source: "",
        keeps_sinks: false, keeps_recent: false, priority: Priority::Age, ..UNSCORED },
];

impl PolicyRow {
    /// Whether a batch is the same as its tokens one by one, bit for bit.
    pub fn is_exact_in_batches(&self) -> bool {
        self.judges == Judges::AtEntry
    }

    /// Whether a token may change something of every entry: the attention that they received, or their scores.
    pub fn changes_all(&self) -> bool {
        self.judges != Judges::AtEntry
    }

    /// Which attention counts, if any does.
    pub fn received(&self) -> Option<Received> {
        match self.judges {
            Judges::ByAttention(received) => Some(received),
            _ => None,
        }
    }

    /// The share of the slots reserved where the user gives none.
    pub fn reserve_share(&self) -> f32 {
        self.reserve.map_or(0.0, |reserve| reserve.share)
    }

    /// What is kept of entries with a reserve or without; `pool` where the user gives one.
    pub fn keeps(&self, has_reserve: bool, pool: Option<u32>) -> Keeps {
        let reserve = self.reserve.filter(|_| has_reserve);
        let common = reserve.is_some_and(|reserve| reserve.by_worth);
        Keeps {
            common,
            received: self.received().is_some(),
            direction: common || self.reads_direction,
            reserve: reserve.is_some(),
            pool: self.pool.map_or(0, |usual| pool.unwrap_or(usual)) as usize,
            half_life: self.half_life,
            token: false,
        }
    }

    /// What is protected of the user's `--sinks` and `--recent`.
    pub fn protection(&self, sinks: u32, recent: u32) -> Protection {
        Protection { sinks: if self.keeps_sinks { sinks } else { 0 }, recent: if self.keeps_recent { recent } else { 0 } }
    }

    fn protects(&self) -> &'static str {
        match (self.keeps_sinks, self.keeps_recent) {
            (true, true) => "sinks, recent",
            (true, false) => "sinks",
            _ => "nothing",
        }
    }
}

/// The help of `--evict`.
pub fn help() -> String {
    let mut text = "Which entry is evicted when the arena is full:".to_owned();
    for row in &TABLE {
        let also = if row.keeps_sinks && row.keeps_recent { String::new() } else { format!(" (protects {})", row.protects()) };
        text += &format!("\n{:<15}{}{also}", row.name, row.evicts);
    }
    text + "\nSinks and recent tokens are protected unless a line says otherwise"
}

/// The table of docs/policies.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "| policy | evicts first | source | protects | judged | recent | reserve | pool |\n|---|---|---|---|---|---|---|---|\n",
    );
    for row in &TABLE {
        let judged = match row.judges {
            Judges::AtEntry => "at entry",
            Judges::ByAttention(_) => "by attention",
            Judges::PerBatch => "per batch",
            Judges::Late => "late",
        };
        let recent = if row.keeps_recent { format!("{}%", row.recent_percent) } else { "-".into() };
        let reserve = row.reserve.map_or("-".into(), |reserve| format!("{}%", (reserve.share * 100.0).round()));
        let pool = row.pool.map_or("-".into(), |pool| pool.to_string());
        let (name, evicts, source, protects) = (row.name, row.evicts, row.source, row.protects());
        text += &format!("| `{name}` | {evicts} | {source} | {protects} | {judged} | {recent} | {reserve} | {pool} |\n");
    }
    text
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/policy/table.rs"]
mod tests;
