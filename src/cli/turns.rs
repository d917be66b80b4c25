//! Kernel sets that take turns: what `bench --sets` holds the choice that was made at start against. Each set does a token, or a batch,
//! and another one the next. All give the same bits, so the stream is the same one, and whatever else the machine does meets them alike.

use std::time::Instant;

use serde::Serialize;

use crate::error::Result;
use crate::kernels::Kernels;
use crate::session::Session;

/// How the choice did beside each set that does everything.
#[derive(Serialize)]
pub struct Turns {
    test: String,
    depth: usize,
    threads: usize,
    sets: Vec<Speed>,
    /// The choice's speed over that of the best set.
    of_best: f64,
    rounds: usize,
}

#[derive(Serialize)]
struct Speed {
    /// `auto` is the choice.
    kernels: &'static str,
    tok_s_median: f64,
}

/// The choice, and each set for everything.
pub struct Sets {
    all: Vec<(&'static str, Kernels)>,
}

impl Sets {
    /// `None` where one was asked for by name, or there is no other.
    pub fn of(session: &Session) -> Option<Sets> {
        let kernels = session.kernels();
        let forced = kernels.candidates().map(|set| (set.name(), kernels.with_all(set)));
        let all: Vec<_> = [("auto", kernels)].into_iter().chain(forced).collect();
        (kernels.is_auto() && all.len() > 2).then_some(Sets { all })
    }

    /// Tokens of a round.
    pub fn n_round(&self, at_once: usize) -> usize {
        at_once * self.all.len()
    }

    /// Private memory of it, for what is seen of so many tokens.
    pub const fn plan_bytes(n_tok: usize) -> usize {
        2 * n_tok * size_of::<f64>()
    }

    /// Takes in tokens, `at_once` by one set and the next by another. Of each round, in which each set has a turn, their seconds go to
    /// `rounds`.
    pub fn take(&self, session: &mut Session, tokens: &[u32], at_once: usize, rounds: &mut Vec<f64>) -> Result<()> {
        let n = self.all.len();
        for tokens in tokens.chunks_exact(self.n_round(at_once)) {
            let nth = rounds.len() / n;
            rounds.resize((nth + 1) * n, 0.0);
            for (i, tokens) in tokens.chunks_exact(at_once).enumerate() {
                // Another one begins each time, and the order is turned round, so that none always follows the same one.
                let set = (if nth % 2 == 0 { i } else { n - 1 - i } + nth / 2) % n;
                session.set_kernels(self.all[set].1);
                let started = Instant::now();
                match tokens {
                    [token] => drop(session.step(*token)?),
                    _ => drop(session.prefill(tokens, |_| true)?),
                }
                rounds[nth * n + set] = started.elapsed().as_secs_f64();
            }
        }
        session.set_kernels(self.all[0].1);
        Ok(())
    }

    /// What was seen in some rounds.
    pub fn row(&self, session: &Session, test: String, depth: usize, at_once: usize, rounds: &[f64]) -> Turns {
        let rounds = rounds.chunks_exact(self.all.len());
        let speed = |set: usize| at_once as f64 / median(rounds.clone().map(|seconds| seconds[set]));
        let named = self.all.iter().enumerate();
        let sets = named.map(|(set, (kernels, _))| Speed { kernels, tok_s_median: speed(set) }).collect();
        let (threads, of_best) = (session.n_threads(), of_best(self.all.len(), rounds.clone()));
        Turns { test, depth, threads, sets, of_best, rounds: rounds.len() }
    }
}

/// The speed of the first of `n` sets over that of the best of the others, which is chosen in half of the rounds and judged in the rest,
/// and the other way round: else the luckiest of several sets would pass for the best.
fn of_best<'a>(n: usize, rounds: impl Iterator<Item = &'a [f64]> + Clone) -> f64 {
    let half = |odd: usize| rounds.clone().skip(odd).step_by(2);
    let shares = [0, 1].map(|odd| {
        let of = |set: usize| median(half(odd).map(move |seconds| seconds[set]));
        let best = (1..n).min_by(|&a, &b| of(a).total_cmp(&of(b))).expect("sets");
        median(half(1 - odd).map(|seconds| seconds[best] / seconds[0]))
    });
    (shares[0] + shares[1]) / 2.0
}

impl Turns {
    pub const HEAD: &str =
        "| test | depth | threads | set for everything, tok/s | default over the best | rounds |\n|---|---|---|---|---|---|";

    pub fn line(&self) -> String {
        let speed =
            |set: &Speed| format!("{} {:.1}", if set.kernels == "auto" { "default" } else { set.kernels }, set.tok_s_median);
        let sets: Vec<String> = self.sets.iter().map(speed).collect();
        let Turns { test, depth, threads, of_best, rounds, .. } = self;
        format!("| {test} | {depth} | {threads} | {} | {of_best:.2} | {rounds} |", sets.join(", "))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
#[path = "../../tests/unit/cli/turns.rs"]
mod tests;
