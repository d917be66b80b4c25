//! What is said of a run at its end: one object in JSON, and a line of statistics.

use std::time::Duration;

use serde::Serialize;

use crate::cli::choice::{Chosen, chosen, threads};
use crate::cli::kept::{Logprobs, Text};
use crate::cli::past::{PastReport, past_line};
use crate::cli::status::{guessed, rss_file_bytes};
use crate::mem::plan::Plan;
use crate::session::Session;
use crate::text::Tokenizer;
use crate::units::Bytes;

use super::flow::Outcome;
use super::ongoing::Log;

#[derive(Serialize)]
pub struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: Text<'a>,
    stop: &'static str,
    timings: Timings,
    kv: Kv,
    memory: Memory,
    /// With `--past`.
    #[serde(skip_serializing_if = "Option::is_none")]
    past: Option<PastReport>,
    /// The set that does whatever no other one does.
    kernels: &'static str,
    /// What was measured at start, and left to which set.
    kernel_choice: Vec<Chosen>,
    /// Weights in 1e9 bytes a second, as read then.
    read_gb_s: Option<f64>,
    threads: usize,
    /// Of a run that goes on with a conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SavedSession<'a>>,
    #[serde(skip_serializing_if = "nothing_kept")]
    logprobs: &'a Logprobs,
}

fn nothing_kept(logprobs: &&Logprobs) -> bool {
    logprobs.is_empty()
}

#[derive(Serialize)]
struct SavedSession<'a> {
    name: &'a str,
    /// Tokens before this run, and with it.
    n_before: u64,
    n_tokens: u64,
    /// Of its file; 0 where it was not saved.
    bytes: u64,
}

#[derive(Serialize)]
struct Timings {
    load_ms: f64,
    prefill_ms: f64,
    prefill_tok_s: f64,
    decode_ms: f64,
    decode_tok_s: f64,
    first_token_ms: f64,
    #[serde(flatten)]
    drafts: Option<Drafted>,
}

/// What was guessed (`--speculate`).
#[derive(Serialize)]
struct Drafted {
    draft_n: u64,
    draft_n_accepted: u64,
}

#[derive(Serialize)]
struct Kv {
    budget_bytes: u64,
    arena_bytes: usize,
    n_slot: usize,
    live: usize,
    evicted: u64,
    policy: &'static str,
    k_type: &'static str,
    v_type: &'static str,
}

#[derive(Serialize)]
struct Memory {
    plan_bytes: u64,
    rss_anon_peak_bytes: u64,
    rss_file_bytes: u64,
    weights_bytes: u64,
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn rate(n: usize, d: Duration) -> f64 {
    if d.is_zero() { 0.0 } else { n as f64 / d.as_secs_f64() }
}

/// Steps that decoding took: the first token came from the prompt.
fn steps(outcome: &Outcome) -> usize {
    outcome.n_generated.saturating_sub(1)
}

pub fn report<'a>(
    session: &Session,
    tokenizer: &'a Tokenizer,
    plan: &Plan,
    prompt: &'a [u32],
    outcome: &'a Outcome,
    log: Option<&'a Log>,
) -> Report<'a> {
    let cache = session.cache();
    Report {
        prompt_tokens: prompt,
        tokens: &outcome.kept.tokens,
        text: outcome.kept.text(tokenizer),
        stop: outcome.stop.name(),
        timings: Timings {
            load_ms: ms(outcome.load),
            prefill_ms: ms(outcome.prefill),
            prefill_tok_s: rate(n_read(session, prompt, outcome), outcome.prefill),
            decode_ms: ms(outcome.decode),
            decode_tok_s: rate(steps(outcome), outcome.decode),
            first_token_ms: ms(outcome.first_token),
            drafts: session
                .guesses()
                .then(|| session.draft_counts())
                .map(|counts| Drafted { draft_n: counts.n_guessed, draft_n_accepted: counts.n_right }),
        },
        kv: Kv {
            budget_bytes: cache.budget_bytes(),
            arena_bytes: cache.arena_bytes(),
            n_slot: cache.n_slot(),
            live: cache.n_live(),
            evicted: cache.n_evicted(),
            policy: cache.policy().name(),
            k_type: cache.shape().k_type.name(),
            v_type: cache.shape().v_type.name(),
        },
        memory: Memory {
            plan_bytes: plan.private_bytes(),
            rss_anon_peak_bytes: outcome.rss_anon_peak,
            rss_file_bytes: rss_file_bytes(),
            weights_bytes: session.model().file.file_bytes(),
        },
        past: cache.past().map(PastReport::of),
        kernels: session.kernels().name(),
        kernel_choice: chosen(session.choice()),
        read_gb_s: session.choice().read_gb_s(),
        threads: session.n_threads(),
        session: log.map(|log| SavedSession {
            name: log.name(),
            n_before: log.n_before,
            n_tokens: session.n_past(),
            bytes: log.file_bytes,
        }),
        logprobs: &outcome.kept.logprobs,
    }
}

/// Tokens of the prompt that were taken in: not all where it was interrupted.
fn n_read(session: &Session, prompt: &[u32], outcome: &Outcome) -> usize {
    prompt.len().min((session.n_past() - outcome.n_before) as usize)
}

pub fn statistics(session: &Session, plan: &Plan, prompt: &[u32], outcome: &Outcome) -> String {
    let cache = session.cache();
    let past = cache.past().map_or(String::new(), |past| format!("; {}", past_line(past)));
    format!(
        "[{}] prompt {} tokens in {:.2} s ({:.1} tok/s), {} tokens in {:.2} s ({:.1} tok/s{}); cache {} of {}: {} of {} slots live, {} evicted ({}); \
         private memory {} of {} planned; kernels {}, {}{past}",
        outcome.stop.name(),
        n_read(session, prompt, outcome),
        outcome.prefill.as_secs_f64(),
        rate(n_read(session, prompt, outcome), outcome.prefill),
        outcome.n_generated,
        outcome.decode.as_secs_f64(),
        rate(steps(outcome), outcome.decode),
        guessed(session.guesses(), session.draft_counts()),
        Bytes(cache.arena_bytes() as u64),
        cache.shape().type_names(),
        cache.n_live(),
        cache.n_slot(),
        cache.n_evicted(),
        cache.policy().name(),
        Bytes(outcome.rss_anon_peak),
        Bytes(plan.private_bytes()),
        session.kernels().describe(),
        threads(session.n_threads()),
    )
}
