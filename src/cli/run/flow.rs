//! From a prompt to the last token, and what it took.

use std::time::{Duration, Instant};

use crate::cli::constraint::draw;
use crate::cli::kept::Kept;
use crate::cli::output::stream;
use crate::cli::status::rss_anon_bytes;
use crate::cli::writer::Writer;
use crate::cli::{interrupt, progress};
use crate::constraint::Live;
use crate::error::{Error, Result};
use crate::session::Session;
use crate::text::{Sampler, Tokenizer};

use super::args::RunArgs;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Eos,
    Length,
    Text,
    Interrupt,
    /// The arena is full and may not evict.
    Full,
}

impl Stop {
    pub fn name(self) -> &'static str {
        match self {
            Stop::Eos => "eos",
            Stop::Length => "length",
            Stop::Text => "stop",
            Stop::Interrupt => "interrupt",
            Stop::Full => "full",
        }
    }
}

/// What was generated, and what it took.
pub struct Outcome {
    pub stop: Stop,
    pub error: Option<Error>,
    pub n_generated: usize,
    pub kept: Kept,
    pub load: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    pub first_token: Duration,
    pub rss_anon_peak: u64,
    /// Tokens of the stream before this run.
    pub n_before: u64,
    /// Whether the stream has taken in all that was read and generated.
    pub is_whole: bool,
}

/// Reads the prompt and generates, into `outcome`. `is_kept`: the stream is saved, so that it takes in its last token too.
pub fn generate(
    args: &RunArgs,
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    mut live: Option<Live>,
    prompt: &[u32],
    is_kept: bool,
    started: Instant,
    outcome: &mut Outcome,
) -> Result<Stop> {
    prompt.iter().for_each(|&token| sampler.accept(token));
    if !read(session, prompt, outcome)? {
        return Ok(Stop::Interrupt);
    }
    let mut steps = session.steps();
    let mut logits = steps.logits();
    let kept = &mut outcome.kept;
    let (json, n_text_bytes) = (args.json, &mut kept.n_text_bytes);
    let mut writer = Writer::new(&args.stop, |text: &str| match json {
        true => {
            *n_text_bytes += text.len();
            Ok(())
        }
        false => stream(text),
    });
    let limit = if args.n < 0 { usize::MAX } else { args.n as usize };
    // The latter is what was generated and has not been taken in.
    let (begun, mut pending) = (Instant::now(), None);
    let stop = loop {
        if outcome.n_generated == limit {
            break Stop::Length;
        }
        if interrupt::raised() {
            break Stop::Interrupt;
        }
        let Some(token) = draw(sampler, &mut live, logits)? else { break Stop::Length };
        kept.logprobs.push(logits);
        sampler.accept(token);
        outcome.n_generated += 1;
        if outcome.n_generated == 1 {
            outcome.first_token = started.elapsed();
        }
        if args.json {
            kept.tokens.push(token);
        }
        if tokenizer.is_eog(token) && !args.ignore_eos {
            break Stop::Eos;
        }
        kept.n_text_tokens = kept.tokens.len();
        pending = Some(token);
        if writer.push(tokenizer.token_bytes(token, false))? {
            break Stop::Text;
        }
        if live.as_mut().is_some_and(|live| live.accept(token)) {
            break Stop::Eos;
        }
        if outcome.n_generated < limit {
            pending = None;
            logits = match steps.step(token, limit - outcome.n_generated - 1) {
                Ok(logits) => logits,
                Err(error) => {
                    writer.finish()?;
                    outcome.decode = begun.elapsed();
                    return Err(error);
                }
            };
        }
    };
    drop(steps);
    outcome.decode = begun.elapsed();
    if stop != Stop::Text {
        writer.finish()?;
    }
    if let Some(token) = pending.filter(|_| is_kept) {
        session.step(token)?;
    }
    outcome.is_whole = true;
    Ok(stop)
}

/// Takes in the prompt, unless it is interrupted: whether the session has the logits after it.
fn read(session: &mut Session, prompt: &[u32], outcome: &mut Outcome) -> Result<bool> {
    let begun = Instant::now();
    let bar = progress::tokens("reading the prompt".into(), prompt.len());
    let is_read = match prompt {
        // Nothing new: what was saved has the logits after it.
        [] => Ok(true),
        _ => session
            .prefill(prompt, |done| {
                bar.set_position(done as u64);
                !interrupt::raised()
            })
            .map(|logits| logits.is_some()),
    };
    bar.finish_and_clear();
    outcome.prefill = begun.elapsed();
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    is_read
}
