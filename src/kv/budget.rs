//! How much fits into a budget: the types of keys and values, the slots, which entries are protected in them, and the message where
//! they are too few. All of it is known before any memory is taken.

use super::layout::KvShape;
use super::policy::{Keeps, Policy, Protection, Rule};
use super::store::KvCache;
use super::types::KvType;
use crate::error::{Error, Result, Setting, message};
use crate::mem::arena::Arena;
use crate::units::{Bytes, percent};

/// Types of keys and of values that are tried where the user names none, the most exact first. What each costs in perplexity
/// is in docs/policies.md.
const CHOICE: [(KvType, KvType); 7] = [
    (KvType::F16, KvType::F16),
    (KvType::Q8_0, KvType::Q8_0),
    (KvType::Q8_0, KvType::Q6H),
    (KvType::Q6H, KvType::Q6H),
    (KvType::Q6H, KvType::Q5H),
    (KvType::Q6H, KvType::Q4H),
    (KvType::Q5H, KvType::Q4H),
];

/// Where keys have long biases, which positions turn away from the constant that is taken off keys (kv/store/key_rounding.rs): keys of
/// few bits raise the perplexity of such a model by half and more (docs/policies.md, "Qwen 2.5").
const CHOICE_BIASED: [(KvType, KvType); 6] = [
    (KvType::F16, KvType::F16),
    (KvType::F16, KvType::Q8_0),
    (KvType::F16, KvType::Q6H),
    (KvType::F16, KvType::Q5H),
    (KvType::F16, KvType::Q4H),
    (KvType::Q8_0, KvType::Q4H),
];

impl KvShape {
    /// All bytes of an arena of `n_slot` slots, the rows of one batch included: what `KvCache` carves.
    pub fn arena_bytes(&self, n_slot: usize) -> usize {
        let mut arena = Arena::measure();
        KvCache::carve(&mut arena, self, n_slot);
        arena.used()
    }

    /// Where all layers have a window they are rings, and no policy keeps anything, only if the budget holds the whole window. In
    /// a smaller arena the policy decides what is kept, as in a model whose context is as long as the window: all that it holds
    /// see each other.
    pub fn within(self, budget_bytes: u64) -> KvShape {
        let rings = KvShape { keeps: Keeps::default(), ..self };
        match self.ring_len() {
            Some(n_tok) if rings.slots_within(budget_bytes) < n_tok => {
                KvShape { n_ctx: n_tok, n_batch: self.n_batch.min(n_tok / 8), window: None, ..self }
            }
            Some(_) => rings,
            None => self,
        }
    }

    /// Sets the types to those the user wants. What he leaves open is chosen: the most exact with which all tokens of the stream
    /// (of the trained context, where its length is not known) stay in the budget, so that nothing is evicted; else the smallest,
    /// for more tokens are then worth more than exact ones. `biased`: keys have long biases.
    pub fn choose_types(&mut self, budget_bytes: u64, n_stream: Option<usize>, wanted: [Option<KvType>; 2], biased: bool) {
        let n_tok = self.most_slots().min(n_stream.unwrap_or(usize::MAX)).max(1);
        let [k, v] = wanted;
        for &(k_type, v_type) in if biased { &CHOICE_BIASED[..] } else { &CHOICE } {
            (self.k_type, self.v_type) = (k.unwrap_or(k_type), v.unwrap_or(v_type));
            if self.slots_within(budget_bytes) >= n_tok {
                break;
            }
        }
    }

    /// The most slots that fit into `budget_bytes`: no more than are of use, and no more than rows can be numbered.
    pub fn slots_within(&self, budget_bytes: u64) -> usize {
        let fits = |n: usize| {
            let bytes = self.arena_bytes(n);
            isize::try_from(bytes).is_ok() && bytes as u64 <= budget_bytes
        };
        let numbered = (u32::MAX as usize - self.max_head_kv() * self.n_batch) / self.n_heads();
        let (mut low, mut high) = (0, self.most_slots().min(numbered));
        if fits(high) {
            return high;
        }
        while low + 1 < high {
            let middle = (low + high) / 2;
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }
}

/// `--recent`: a count of tokens, or a share of the slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recent {
    Tokens(u32),
    Percent(f32),
}

impl Recent {
    pub fn of(self, n_slot: usize) -> u32 {
        match self {
            Recent::Tokens(n) => n,
            Recent::Percent(p) => (n_slot as f64 * f64::from(p) / 100.0) as u32,
        }
    }
}

impl std::str::FromStr for Recent {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let tokens = || text.parse().ok().map(Recent::Tokens);
        percent(text)
            .map(|p| Recent::Percent(p as f32))
            .or_else(tokens)
            .ok_or(format!("'{text}' is not a number of tokens, such as 64, or a share of the slots, such as 50%"))
    }
}

/// `--rare`: a share of the slots, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f32);

impl Share {
    pub fn of(self, n_slot: usize) -> usize {
        (n_slot as f64 * f64::from(self.0)) as usize
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let share = percent(text).map(|p| Share((p / 100.0) as f32));
        share.ok_or(format!("'{text}' is not a share of the slots, such as 25%"))
    }
}

/// What the user asks of the arena.
#[derive(Clone, Copy, Debug)]
pub struct KvParams {
    pub budget_bytes: u64,
    pub policy: Policy,
    pub sinks: u32,
    /// First tokens of the stream that hold what the system says: protected as sinks are, by every policy that protects sinks.
    pub pinned: u32,
    /// Tokens that are protected because they are the latest; `None`: what is usual for the policy.
    pub recent: Option<Recent>,
    /// What is reserved for the rarest entries, by policies that have a reserve; `None`: what is usual for the policy.
    pub rare: Option<Share>,
    /// An entry is rated as its best neighbour within this many tokens; `None`: what is usual for the policy.
    pub pool: Option<u32>,
}

impl KvParams {
    /// What these rules keep of entries beside a score and a position.
    pub fn keeps(&self) -> Keeps {
        self.policy.row().keeps(self.reserve().0 > 0.0, self.pool)
    }

    /// First tokens that are never evicted.
    fn first(&self) -> u32 {
        self.sinks.max(self.pinned)
    }

    fn recent(&self) -> Recent {
        self.recent.unwrap_or(Recent::Percent(self.policy.row().recent_percent))
    }

    fn reserve(&self) -> Share {
        self.rare.unwrap_or(Share(self.policy.row().reserve_share()))
    }

    /// The slots that the budget gives and who goes from them, or the message that says which budget would do.
    pub fn fit(&self, shape: &KvShape) -> Result<(usize, Rule)> {
        let n_slot = shape.slots_within(self.budget_bytes);
        if shape.ring_len() == Some(n_slot) {
            // The oldest goes, in every layer: there is nothing to protect, nor to rate.
            return Ok((n_slot, Rule { policy: self.policy, protect: Protection::default(), n_reserved: 0 }));
        }
        let protect = self.policy.row().protection(self.first(), self.recent().of(n_slot));
        if n_slot >= protect.min_slots() {
            let n_reserved = if shape.keeps.reserve { self.reserve().of(n_slot) } else { 0 };
            return Ok((n_slot, Rule { policy: self.policy, protect, n_reserved }));
        }
        let enough =
            (1..=shape.n_ctx).find(|&n| n >= self.policy.row().protection(self.first(), self.recent().of(n)).min_slots());
        let batch = Bytes((shape.arena_bytes(0)) as u64);
        let (first, setting) = match self.pinned > self.sinks {
            true => (format!("{} pinned tokens of the system's turn", self.pinned), Setting::System),
            false => (format!("{} sinks", self.sinks), Setting::Sinks),
        };
        let unpin = if setting == Setting::System { message![", give ", Setting::PinSystem] } else { "".into() };
        let Some(enough) = enough else {
            let what = format!("{first} and the recent tokens do not fit into a context of {}; lower ", shape.n_ctx);
            let blamed = if self.first() as usize >= shape.n_ctx { setting } else { Setting::Recent };
            return Err(Error::usage(blamed, message![what, setting, unpin, " or ", Setting::Recent]));
        };
        Err(Error::budget(
            Setting::KvBudget,
            message![
                format!(
                    "{} holds {n_slot} tokens of {} bytes beside {batch} for a batch of {}; '{}' with {first} and {} recent needs {enough}: \
                     give at least {} bytes, or lower ",
                    Bytes(self.budget_bytes),
                    shape.bytes_per_slot(),
                    shape.n_batch,
                    self.policy.name(),
                    protect.recent,
                    shape.arena_bytes(enough),
                ),
                Setting::Batch,
                ", ",
                setting,
                unpin,
                " or ",
                Setting::Recent,
            ],
        ))
    }
}

#[cfg(test)]
#[path = "../../tests/unit/kv/budget.rs"]
mod tests;
