//! What a changed prompt has in common with what a stream holds, behind the first difference (llama.cpp's `--cache-reuse` is the model
//! for it): runs of at least so many tokens, in the same order.

use crate::kv::store::Run;

/// Runs at most; what follows the last is read.
pub const MAX_RUNS: usize = 16;
/// Tokens that may lie between runs, in either prompt: a clock, a name, a list of states.
const MAX_GAP: usize = 512;

/// The runs of a prompt, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    runs: [Run; MAX_RUNS],
    n: usize,
}

impl Runs {
    /// Of `old` and `new`, which are the same up to `n_common`; the last token of `new` is in none, for it must be read.
    pub fn find(old: &[u32], new: &[u32], n_common: usize, n_least: usize) -> Runs {
        let mut found = Runs::default();
        let new = &new[..new.len().saturating_sub(1)];
        let (mut i, mut j) = (n_common, n_common);
        while found.n < MAX_RUNS && n_least > 0 {
            let Some((from, to)) = next(old, new, i, j, n_least) else { break };
            let n = old[from..].iter().zip(&new[to..]).take_while(|(a, b)| a == b).count();
            found.runs[found.n] = Run { from, to, n };
            found.n += 1;
            (i, j) = (from + n, to + n);
        }
        found
    }

    pub fn all(&self) -> &[Run] {
        &self.runs[..self.n]
    }

    /// Tokens in all of them.
    pub fn n_tokens(&self) -> usize {
        self.all().iter().map(|run| run.n).sum()
    }
}

/// The nearest places from `i` and `j` on where so many tokens are the same: those with the fewest tokens between.
fn next(old: &[u32], new: &[u32], i: usize, j: usize, n_least: usize) -> Option<(usize, usize)> {
    let same = |from: usize, to: usize| {
        let (a, b) = (old.get(from..from + n_least)?, new.get(to..to + n_least)?);
        (a == b).then_some((from, to))
    };
    (0..2 * MAX_GAP).find_map(|gap| {
        let most = gap.min(MAX_GAP);
        (gap - most..=most).find_map(|left| same(i + left, j + gap - left))
    })
}

#[cfg(test)]
#[path = "../../tests/unit/session/reuse.rs"]
mod tests;
