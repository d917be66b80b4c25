//! How scores age, so that what was rare once is not kept for ever. Instead of all that is kept growing more urgent with each token, newcomers
//! score lower: to whoever compares two entries that is the same, and a score stays what it was when its entry came.

use crate::kernels::portable::exp;

/// Half-lives after which scores get a new unit.
const HALF_LIVES: u64 = 64;

#[derive(Clone, Copy, Debug, Default)]
pub struct Ageing {
    /// Tokens of the stream after which a newcomer's score is its own in the unit in which scores are kept now.
    pub unit_at: u64,
    /// Tokens by which a score doubles; 0: none does.
    pub half_life: u64,
}

impl Ageing {
    /// What the score of a newcomer is multiplied by, after `n_past` tokens.
    pub fn youth(self, n_past: u64) -> f32 {
        if self.half_life == 0 {
            return 1.0;
        }
        exp(-std::f32::consts::LN_2 * ((n_past - self.unit_at) as f32 / self.half_life as f32))
    }

    /// Tokens that may still come after `n_past` before a new unit is due.
    pub fn unit_lasts(self, n_past: u64) -> u64 {
        match HALF_LIVES * self.half_life {
            0 => u64::MAX,
            // A session may say that many tokens have come since.
            span => span.saturating_sub(n_past - self.unit_at),
        }
    }

    /// A new unit before newcomers' scores become too small: what all scores are to be multiplied by, a power of two, so that nothing
    /// changes but what is too old to be kept anyway.
    pub fn renew_unit(&mut self, n_past: u64) -> Option<f32> {
        let span = HALF_LIVES * self.half_life;
        if span == 0 || n_past - self.unit_at < span {
            return None;
        }
        self.unit_at += span;
        Some((1u128 << HALF_LIVES) as f32)
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/kv/policy/ageing.rs"]
mod tests;
