//! `lowkey run`: completes a prompt, streaming. Ctrl-C finishes the line, prints the statistics and exits with 130.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::mem::plan::Plan;
use crate::session::Session;
use crate::text::{ChatTemplate, Message, Sampler, Tokenizer};
use crate::units::Bytes;

use super::args::{ModelArgs, SampleArgs};
use super::interrupt::Interrupt;
use super::kept::{Kept, Logprobs, Text};
use super::progress;
use super::setup::{Opened, check_tokens, open};
use super::status::{rss_anon_bytes, rss_file_bytes};
use super::text::{read_text, text_bytes};
use super::writer::Writer;

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt
    #[arg(
        short,
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "file",
        required_unless_present = "file"
    )]
    prompt: Option<String>,
    /// Read the prompt from a file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Tokens to generate at most; -1 for as long as the model goes on
    #[arg(
        short,
        long,
        value_name = "N",
        default_value = "512",
        value_parser = clap::value_parser!(i64).range(-1..)
    )]
    n: i64,
    /// Put the prompt into the model's own chat template, as the user's turn
    #[arg(long)]
    chat: bool,
    /// With --chat: the system's turn before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// With --system: never evict the system's turn, of whatever policy protects sinks; --pin-system=false lets it go like the rest
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pin_system: bool,
    /// With --chat: a Jinja template to use instead of the model's own: a file, or a name such as chatml, llama3, gemma
    #[arg(long, value_name = "NAME|FILE", requires = "chat")]
    template: Option<String>,
    /// End when this text has been generated (may be given several times); it is not printed
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the model's end-of-generation token
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    sample: SampleArgs,
    /// One JSON object on stdout instead of the text
    #[arg(long)]
    json: bool,
    /// With --json: the K most likely tokens of each generated position, with their log-probabilities
    #[arg(long, value_name = "K", requires = "json", default_value = "0")]
    top_logprobs: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Eos,
    Length,
    Text,
    Interrupt,
    /// The arena is full and may not evict.
    Full,
}

impl Stop {
    fn name(self) -> &'static str {
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
struct Outcome {
    stop: Stop,
    error: Option<Error>,
    n_generated: usize,
    kept: Kept,
    load: Duration,
    prefill: Duration,
    decode: Duration,
    first_token: Duration,
    rss_anon_peak: u64,
}

pub fn run(args: RunArgs) -> Result<u8> {
    let started = Instant::now();
    let interrupt = Interrupt::catch()?;
    if args.json && args.n < 0 {
        return Err(Error::usage("-n", "--json holds every token until the end: give the number of tokens to generate"));
    }
    let text = read_text(args.prompt.as_deref(), args.file.as_deref())?;
    let sampling = args.sample.params();
    let mut opened = open(&args.model.model, args.model.session.params(1))?;
    let n_vocab = opened.model.config.n_vocab;
    let mut sampler = Sampler::new(sampling, n_vocab)?;
    let (n_kept, n_top) = if args.json { (args.n as usize, args.top_logprobs.min(n_vocab)) } else { (0, 0) };
    let system_bytes = text_bytes(&opened.model.file, args.system.as_deref().unwrap_or_default())?;
    let prompt_bytes = text_bytes(&opened.model.file, &text)?;
    plan_run(&mut opened, prompt_bytes + system_bytes, sampling.repeat_last_n, n_kept, n_top)?;
    opened.check()?;
    opened.warn();
    let tokenizer = opened.tokenizer()?;
    let prompt = encode_prompt(&args, text, &opened, &tokenizer)?;
    opened.params.kv.pinned = n_pinned(&args, &prompt, &opened, &tokenizer)?;
    // Now that the longest stream is known, types can be chosen for it.
    opened.params.n_stream = usize::try_from(args.n).ok().map(|n| prompt.len().saturating_add(n));
    opened.replan()?;
    plan_run(&mut opened, prompt_bytes + system_bytes, sampling.repeat_last_n, n_kept, n_top)?;
    opened.check()?;
    let (mut session, plan) = opened.start()?;
    check_tokens(&session, &prompt)?;
    warn_past_context(&session, prompt.len(), args.n);

    let mut outcome = Outcome {
        stop: Stop::Length,
        error: None,
        n_generated: 0,
        kept: Kept::new(n_kept, n_top)?,
        load: started.elapsed(),
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        first_token: Duration::ZERO,
        rss_anon_peak: rss_anon_bytes(),
    };
    interrupt.defer();
    let ended = generate(&args, &mut session, &tokenizer, &mut sampler, &prompt, &interrupt, started, &mut outcome);
    match ended {
        Err(Error::BrokenPipe) => return Err(Error::BrokenPipe),
        Err(Error::Stopped(what)) => (outcome.stop, outcome.error) = (Stop::Full, Some(Error::Stopped(what))),
        Err(other) => return Err(other),
        Ok(stop) => outcome.stop = stop,
    }
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    if args.json {
        super::answer_json(&report(&session, &tokenizer, &plan, &prompt, &outcome))?;
    } else {
        super::answer("")?;
    }
    super::say(&statistics(&session, &plan, &prompt, &outcome));
    match outcome.error {
        Some(error) => Err(error),
        None if outcome.stop == Stop::Interrupt => Ok(130),
        None => Ok(0),
    }
}

/// The lines that only `run` knows of.
fn plan_run(opened: &mut Opened, text_bytes: usize, repeat_last_n: usize, n_kept: usize, n_top: usize) -> Result<()> {
    opened.plan.private("sampler", Sampler::bytes(opened.model.config.n_vocab, repeat_last_n));
    opened.plan.private("prompt", text_bytes);
    if n_kept > 0 {
        let bytes = Kept::bytes(n_kept, n_top).ok_or_else(|| {
            Error::usage("-n", format!("{n_kept} tokens are more than --json can hold until the end; give a smaller number"))
        })?;
        opened.plan.private("answer", bytes);
    }
    Ok(())
}

fn encode_prompt(args: &RunArgs, text: String, opened: &Opened, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = match args.chat {
        true => chat_prompt(args, text, opened, tokenizer)?,
        false => text,
    };
    let mut prompt = tokenizer.encode(&text, true, true)?;
    prompt.shrink_to_fit();
    if prompt.is_empty() {
        let flag = if args.file.is_some() { "--file" } else { "--prompt" };
        return Err(Error::stopped(format!("{flag}: the prompt is empty, 0 tokens to start from; give some text")));
    }
    Ok(prompt)
}

fn chat_prompt(args: &RunArgs, text: String, opened: &Opened, tokenizer: &Tokenizer) -> Result<String> {
    let template = match &args.template {
        Some(name) => ChatTemplate::named(name)?,
        None => ChatTemplate::from_gguf(&opened.model.file)?,
    };
    let system = args.system.as_ref().map(|system| Message::new("system", system));
    let messages: Vec<_> = system.into_iter().chain([Message::new("user", text)]).collect();
    let name =
        |id: Option<u32>| id.map_or(String::new(), |id| String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned());
    template.render(&messages, true, &name(tokenizer.bos()), &name(tokenizer.eos()))
}

/// First tokens of the prompt that hold the system's turn, if it is to stay: what is the same whatever the user says.
fn n_pinned(args: &RunArgs, prompt: &[u32], opened: &Opened, tokenizer: &Tokenizer) -> Result<u32> {
    if args.system.is_none() || !args.pin_system {
        return Ok(0);
    }
    let saying = |text: &str| tokenizer.encode(&chat_prompt(args, text.into(), opened, tokenizer)?, true, true);
    let mut other = saying("")?;
    if other == prompt {
        other = saying("?")?;
    }
    let n = prompt.iter().zip(&other).take_while(|(a, b)| a == b).count() as u32;
    log::info!("{n} tokens of the system's turn are pinned");
    Ok(n)
}

fn warn_past_context(session: &Session, n_prompt: usize, n: i64) {
    let n_ctx = session.model().config.n_ctx;
    let text = format!("the model was trained for {n_ctx} positions: near them what is kept is renumbered by age");
    match usize::try_from(n) {
        Ok(n) if n_prompt.saturating_add(n) > n_ctx => log::warn!("{text}, which this stream may reach"),
        Ok(_) => {}
        Err(_) => log::info!("{text}, should the stream reach them"),
    }
}

fn generate(
    args: &RunArgs,
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    interrupt: &Interrupt,
    started: Instant,
    outcome: &mut Outcome,
) -> Result<Stop> {
    let go_on = || !interrupt.raised();
    prompt.iter().for_each(|&token| sampler.accept(token));
    let begun = Instant::now();
    let bar = progress::tokens("reading the prompt".into(), prompt.len());
    let first = session.prefill(prompt, |done| {
        bar.set_position(done as u64);
        go_on()
    });
    bar.finish_and_clear();
    outcome.prefill = begun.elapsed();
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    let Some(mut logits) = first? else { return Ok(Stop::Interrupt) };

    let kept = &mut outcome.kept;
    let (json, n_text_bytes) = (args.json, &mut kept.n_text_bytes);
    let mut writer = Writer::new(&args.stop, |text: &str| match json {
        true => {
            *n_text_bytes += text.len();
            Ok(())
        }
        false => super::stream(text),
    });
    let limit = if args.n < 0 { usize::MAX } else { args.n as usize };
    let begun = Instant::now();
    let stop = loop {
        if outcome.n_generated == limit {
            break Stop::Length;
        }
        if !go_on() {
            break Stop::Interrupt;
        }
        let token = sampler.sample(logits)?;
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
        if writer.push(tokenizer.token_bytes(token, false))? {
            break Stop::Text;
        }
        if outcome.n_generated < limit {
            logits = match session.step(token) {
                Ok(logits) => logits,
                Err(error) => {
                    writer.finish()?;
                    outcome.decode = begun.elapsed();
                    return Err(error);
                }
            };
        }
    };
    outcome.decode = begun.elapsed();
    if stop != Stop::Text {
        writer.finish()?;
    }
    Ok(stop)
}

#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: Text<'a>,
    stop: &'static str,
    timings: Timings,
    kv: Kv,
    memory: Memory,
    kernels: &'static str,
    threads: usize,
    #[serde(skip_serializing_if = "nothing_kept")]
    logprobs: &'a Logprobs,
}

fn nothing_kept(logprobs: &&Logprobs) -> bool {
    logprobs.is_empty()
}

#[derive(Serialize)]
struct Timings {
    load_ms: f64,
    prefill_ms: f64,
    prefill_tok_s: f64,
    decode_ms: f64,
    decode_tok_s: f64,
    first_token_ms: f64,
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

fn report<'a>(session: &Session, tokenizer: &'a Tokenizer, plan: &Plan, prompt: &'a [u32], outcome: &'a Outcome) -> Report<'a> {
    let cache = session.cache();
    Report {
        prompt_tokens: prompt,
        tokens: &outcome.kept.tokens,
        text: outcome.kept.text(tokenizer),
        stop: outcome.stop.name(),
        timings: Timings {
            load_ms: ms(outcome.load),
            prefill_ms: ms(outcome.prefill),
            prefill_tok_s: rate(n_read(session, prompt), outcome.prefill),
            decode_ms: ms(outcome.decode),
            decode_tok_s: rate(steps(outcome), outcome.decode),
            first_token_ms: ms(outcome.first_token),
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
        kernels: session.kernels().name(),
        threads: session.n_threads(),
        logprobs: &outcome.kept.logprobs,
    }
}

/// Tokens of the prompt that were taken in: not all where it was interrupted.
fn n_read(session: &Session, prompt: &[u32]) -> usize {
    prompt.len().min(session.n_past() as usize)
}

fn statistics(session: &Session, plan: &Plan, prompt: &[u32], outcome: &Outcome) -> String {
    let cache = session.cache();
    format!(
        "[{}] prompt {} tokens in {:.2} s ({:.1} tok/s), {} tokens in {:.2} s ({:.1} tok/s); cache {} of {}: {} of {} slots live, {} evicted ({}); \
         private memory {} of {} planned; kernels {}, {} threads",
        outcome.stop.name(),
        n_read(session, prompt),
        outcome.prefill.as_secs_f64(),
        rate(n_read(session, prompt), outcome.prefill),
        outcome.n_generated,
        outcome.decode.as_secs_f64(),
        rate(steps(outcome), outcome.decode),
        Bytes(cache.arena_bytes() as u64),
        cache.shape().type_names(),
        cache.n_live(),
        cache.n_slot(),
        cache.n_evicted(),
        cache.policy().name(),
        Bytes(outcome.rss_anon_peak),
        Bytes(plan.private_bytes()),
        session.kernels().name(),
        session.n_threads(),
    )
}
