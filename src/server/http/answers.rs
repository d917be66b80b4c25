//! What answers of all APIs share: names, times, counts, probabilities, and the rest of what a stream did.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use crate::server::desk::{Finish, Progress};
use crate::text::Tokenizer;

use super::Shared;
use super::error::JSON;
use super::run::{Facts, Token};

/// A name that no other answer has: `prefix` and 24 letters and digits.
pub fn random_name(prefix: &str) -> String {
    prefix.chars().chain(std::iter::repeat_with(fastrand::alphanumeric).take(24)).collect()
}

pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub fn now() -> u64 {
    unix_seconds(SystemTime::now())
}

/// Of program and model: the same words with the same fingerprint are the same answer.
pub fn fingerprint(shared: &Shared) -> String {
    format!("b{}-{}", env!("CARGO_PKG_VERSION"), &shared.model.digest[..shared.model.digest.len().min(12)])
}

pub fn json_response(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A rate, or 0 where nothing was done in no time.
fn per(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { 1e3 / ms(time) * n as f64 }
}

fn each(n: usize, time: Duration) -> f64 {
    if n == 0 { 0.0 } else { ms(time) / n as f64 }
}

/// llama-server's `timings`. The first token comes of the prompt's last pass, so rates count those behind it.
pub fn timings(progress: &Progress) -> Value {
    let n_read = progress.n_read.saturating_sub(progress.n_cached);
    let n_steps = progress.n_generated.saturating_sub(1);
    let mut timings = json!({
        "cache_n": progress.n_cached,
        "prompt_n": n_read,
        "prompt_ms": ms(progress.prefill),
        "prompt_per_token_ms": each(n_read, progress.prefill),
        "prompt_per_second": per(n_read, progress.prefill),
        "predicted_n": progress.n_generated,
        "predicted_ms": ms(progress.decode),
        "predicted_per_token_ms": each(n_steps, progress.decode),
        "predicted_per_second": per(n_steps, progress.decode),
    });
    if progress.draft_n > 0 {
        timings["draft_n"] = progress.draft_n.into();
        timings["draft_n_accepted"] = progress.draft_n_accepted.into();
    }
    timings
}

/// llama-server's `prompt_progress`.
pub fn prompt_progress(progress: &Progress) -> Value {
    json!({
        "total": progress.n_prompt,
        "cache": progress.n_cached,
        "processed": progress.n_read,
        "time_ms": progress.prefill.as_millis() as u64,
    })
}

/// Of all parts together.
pub fn usage(parts: &[Facts]) -> Value {
    let sum = |count: fn(&Progress) -> usize| parts.iter().map(|part| count(&part.progress)).sum::<usize>();
    // Several answers to one prompt: it is counted once, as its tokens were given once.
    let n_prompt = parts.iter().filter(|part| part.choice == 0).map(|part| part.progress.n_prompt).sum::<usize>();
    let n_cached = parts.iter().filter(|part| part.choice == 0).map(|part| part.progress.n_cached).sum::<usize>();
    let n_generated = sum(|progress| progress.n_generated);
    json!({
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": { "cached_tokens": n_cached },
    })
}

/// What became of the stream's memory.
pub fn memory(facts: &Facts) -> Value {
    let kept = &facts.kept;
    let mut memory = json!({
        "stream": kept.stream,
        "evicted": kept.evicted,
        "n_live": kept.n_live,
        "n_slot": kept.n_slot,
        "diverged_at": kept.diverged_at,
        "n_moved": kept.n_moved,
        "is_exact": kept.is_exact,
    });
    if let Some(error) = facts.error {
        memory["error"] = error.into();
    }
    memory
}

/// OpenAI's word for an end.
pub fn finish_reason(facts: &Facts) -> &'static str {
    match facts.finish {
        Some(Finish::Length) => "length",
        _ => "stop",
    }
}

/// JSON has no infinity.
fn logprob(value: f32) -> f32 {
    if value.is_finite() { value } else { -9999.0 }
}

fn token_json(tokenizer: &Tokenizer, id: u32, value: f32) -> Value {
    let bytes = tokenizer.token_bytes(id, true);
    json!({ "id": id, "token": String::from_utf8_lossy(bytes), "bytes": bytes, "logprob": logprob(value) })
}

/// A token with `n_top` of its alternatives, as both OpenAI and llama-server have it.
pub fn token_with_tops(tokenizer: &Tokenizer, token: &Token, n_top: usize) -> Value {
    let mut object = token_json(tokenizer, token.id, token.logprob);
    let tops: Vec<Value> = token.tops.iter().take(n_top).map(|&(id, value)| token_json(tokenizer, id, value)).collect();
    object["top_logprobs"] = tops.into();
    object
}

pub fn tokens_with_tops(tokenizer: &Tokenizer, tokens: &[Token], n_top: usize) -> Value {
    tokens.iter().map(|token| token_with_tops(tokenizer, token, n_top)).collect()
}

/// One event of `text/event-stream`.
pub fn sse(out: &mut String, value: &Value) {
    out.push_str("data: ");
    out.push_str(&value.to_string());
    out.push_str("\n\n");
}
