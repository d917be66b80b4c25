//! `lowkey run`: completes a prompt, streaming. Ctrl-C finishes the line, prints the statistics and exits with 130.

use std::io::{IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::mem::plan::Plan;
use crate::session::Session;
use crate::text::{ChatTemplate, Message, Sampler, Tokenizer, Utf8Stream, top_logprobs};
use crate::units::Bytes;

use super::args::{ModelArgs, SampleArgs};
use super::setup::{Opened, check_tokens, open};
use super::status::{rss_anon_bytes, rss_file_bytes};

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
        env = "LOWKEY_N",
        hide_env = true,
        default_value = "512",
        allow_negative_numbers = true
    )]
    n: i64,
    /// Put the prompt into the model's own chat template, as the user's turn
    #[arg(long, env = "LOWKEY_CHAT", hide_env = true)]
    chat: bool,
    /// With --chat: the system's turn before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// With --chat: a Jinja template to use instead of the model's own
    #[arg(long, value_name = "FILE", requires = "chat")]
    template: Option<String>,
    /// End when this text has been generated (may be given several times); it is not printed
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the model's end-of-generation token
    #[arg(long, env = "LOWKEY_IGNORE_EOS", hide_env = true)]
    ignore_eos: bool,
    #[command(flatten)]
    sample: SampleArgs,
    /// One JSON object on stdout instead of the text
    #[arg(long, env = "LOWKEY_JSON", hide_env = true)]
    json: bool,
    /// With --json: the K most likely tokens of each generated position, with their log-probabilities
    #[arg(long, value_name = "K", requires = "json", default_value = "0")]
    top_logprobs: usize,
}

/// The text of `-p`, of a file, or of standard input.
pub fn read_text(text: Option<&str>, file: Option<&str>) -> Result<String> {
    let not_text = |path: &str| Error::usage("--file", format!("{path} is not UTF-8 text"));
    match (text, file) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some("-")) => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Error::io("standard input", e))?;
            String::from_utf8(bytes).map_err(|_| not_text("standard input"))
        }
        (None, Some(path)) => {
            let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            String::from_utf8(bytes).map_err(|_| not_text(path))
        }
        (None, None) => Err(Error::usage("--prompt", "give a prompt with -p, or a file with -f")),
    }
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
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<Vec<(u32, f64)>>,
    load: Duration,
    prefill: Duration,
    decode: Duration,
    first_token: Duration,
    rss_anon_peak: u64,
}

pub fn run(args: RunArgs) -> Result<u8> {
    let started = Instant::now();
    let interrupted = catch_interrupt()?;
    if args.json && args.n < 0 {
        return Err(Error::usage("-n", "--json holds every token until the end: give the number of tokens to generate"));
    }
    let text = read_text(args.prompt.as_deref(), args.file.as_deref())?;
    let sampling = args.sample.params();
    let mut opened = open(&args.model.model, args.model.session.params(1))?;
    let mut sampler = Sampler::new(sampling, opened.model.config.n_vocab)?;
    plan_run(&mut opened, &args, &text, sampling.repeat_last_n);
    opened.check()?;
    let tokenizer = opened.tokenizer()?;
    let prompt = encode_prompt(&args, text, &opened, &tokenizer)?;
    let (mut session, plan) = opened.start()?;
    check_tokens(&session, &prompt)?;
    warn_past_context(&session, prompt.len(), args.n);

    let mut outcome = Outcome {
        stop: Stop::Length,
        error: None,
        n_generated: 0,
        tokens: resident(if args.json { args.n as usize } else { 0 }, u32::MAX),
        text: String::from_utf8(resident(if args.json { args.n as usize * 8 } else { 0 }, b' ')).expect("spaces are UTF-8"),
        logprobs: Vec::with_capacity(if args.top_logprobs > 0 { args.n as usize } else { 0 }),
        load: started.elapsed(),
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        first_token: Duration::ZERO,
        rss_anon_peak: rss_anon_bytes(),
    };
    let ended = generate(&args, &mut session, &tokenizer, &mut sampler, &prompt, &interrupted, started, &mut outcome);
    match ended {
        Err(Error::BrokenPipe) => return Err(Error::BrokenPipe),
        Err(Error::Stopped(what)) => (outcome.stop, outcome.error) = (Stop::Full, Some(Error::Stopped(what))),
        Err(other) => return Err(other),
        Ok(stop) => outcome.stop = stop,
    }
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    if args.json {
        super::answer(&super::to_json(&report(&session, &plan, &prompt, &outcome)))?;
    } else {
        super::answer("")?;
    }
    eprintln!("{}", statistics(&session, &plan, &prompt, &outcome));
    match outcome.error {
        Some(error) => Err(error),
        None if outcome.stop == Stop::Interrupt => Ok(130),
        None => Ok(0),
    }
}

/// An empty vector with room for `n` elements whose pages have been written, so that filling it later takes no memory.
fn resident<T: Clone>(n: usize, filler: T) -> Vec<T> {
    let mut v = vec![filler; n];
    v.clear();
    v
}

/// The lines that only `run` knows of.
fn plan_run(opened: &mut Opened, args: &RunArgs, text: &str, repeat_last_n: usize) {
    opened.plan.private("sampler", Sampler::bytes(opened.model.config.n_vocab, repeat_last_n));
    // A token is a byte at least, its id four.
    opened.plan.private("prompt", text.len() * 5);
    if args.json {
        let per_token = 4 + 8 + args.top_logprobs * size_of::<(u32, f64)>() + size_of::<Vec<(u32, f64)>>();
        opened.plan.private("answer", args.n as usize * per_token);
    }
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
        return Err(Error::Stopped(format!("{flag}: the prompt is empty, 0 tokens to start from; give some text")));
    }
    Ok(prompt)
}

fn chat_prompt(args: &RunArgs, text: String, opened: &Opened, tokenizer: &Tokenizer) -> Result<String> {
    let template = match &args.template {
        Some(path) => {
            let source = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            ChatTemplate::new(&source).map_err(|e| Error::usage("--template", format!("{path}: {e}")))?
        }
        None => ChatTemplate::from_gguf(&opened.model.file)?,
    };
    let system = args.system.as_ref().map(|system| Message::new("system", system));
    let messages: Vec<_> = system.into_iter().chain([Message::new("user", text)]).collect();
    let name =
        |id: Option<u32>| id.map_or(String::new(), |id| String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned());
    template.render(&messages, true, &name(tokenizer.bos()), &name(tokenizer.eos()))
}

/// The flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
fn catch_interrupt() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let failed = |e| Error::io("signal SIGINT", e);
    signal_hook::flag::register_conditional_shutdown(signal_hook::consts::SIGINT, 130, flag.clone()).map_err(failed)?;
    signal_hook::flag::register(signal_hook::consts::SIGINT, flag.clone()).map_err(failed)?;
    Ok(flag)
}

fn warn_past_context(session: &Session, n_prompt: usize, n: i64) {
    let n_ctx = session.model().config.n_ctx;
    if n < 0 || n_prompt + n as usize > n_ctx {
        log::info!("the stream may pass the {n_ctx} positions the model was trained for: what is kept is then renumbered by age");
    }
}

#[allow(clippy::too_many_arguments)]
fn generate(
    args: &RunArgs,
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    interrupted: &AtomicBool,
    started: Instant,
    outcome: &mut Outcome,
) -> Result<Stop> {
    let go_on = || !interrupted.load(Ordering::Relaxed);
    prompt.iter().for_each(|&token| sampler.accept(token));
    let begun = Instant::now();
    let bar = progress(prompt.len());
    let first = session.prefill(prompt, |done| {
        bar.set_position(done as u64);
        go_on()
    });
    bar.finish_and_clear();
    outcome.prefill = begun.elapsed();
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    let Some(mut logits) = first? else { return Ok(Stop::Interrupt) };

    let mut writer = Writer::new(&args.stop, !args.json);
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
        if args.top_logprobs > 0 {
            let mut top = Vec::with_capacity(args.top_logprobs);
            top_logprobs(logits, args.top_logprobs, &mut top);
            outcome.logprobs.push(top);
        }
        sampler.accept(token);
        outcome.n_generated += 1;
        if outcome.n_generated == 1 {
            outcome.first_token = started.elapsed();
        }
        if args.json {
            outcome.tokens.push(token);
        }
        if tokenizer.is_eog(token) && !args.ignore_eos {
            break Stop::Eos;
        }
        if writer.push(tokenizer.token_bytes(token, false), &mut outcome.text)? {
            break Stop::Text;
        }
        if outcome.n_generated < limit {
            logits = match session.step(token) {
                Ok(logits) => logits,
                Err(error) => {
                    writer.finish(&mut outcome.text)?;
                    outcome.decode = begun.elapsed();
                    return Err(error);
                }
            };
        }
    };
    outcome.decode = begun.elapsed();
    if stop != Stop::Text {
        writer.finish(&mut outcome.text)?;
    }
    Ok(stop)
}

/// A bar for the prompt, where there is a terminal to draw it on.
fn progress(n_tokens: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(n_tokens as u64), ProgressDrawTarget::stderr_with_hz(8));
    let style = ProgressStyle::with_template("reading the prompt [{bar:32}] {pos}/{len} tokens, {per_sec}, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
}

/// Text on its way out: whole characters only, and held back while it may be the beginning of a stop text.
struct Writer<'a> {
    utf8: Utf8Stream,
    pending: String,
    stops: &'a [String],
    to_stdout: bool,
}

impl<'a> Writer<'a> {
    fn new(stops: &'a [String], to_stdout: bool) -> Self {
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Writer { utf8: Utf8Stream::new(), pending: String::with_capacity(4096 + 2 * longest), stops, to_stdout }
    }

    /// Takes the bytes of a token; true once a stop text has appeared.
    fn push(&mut self, bytes: &[u8], kept: &mut String) -> Result<bool> {
        self.utf8.push(bytes, &mut self.pending);
        let found = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.pending.find(s.as_str())).min();
        let held = match found {
            Some(at) => self.pending.len() - at,
            None => self.stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0),
        };
        self.emit(self.pending.len() - held, kept)?;
        Ok(found.is_some())
    }

    fn finish(&mut self, kept: &mut String) -> Result<()> {
        self.utf8.finish(&mut self.pending);
        self.emit(self.pending.len(), kept)
    }

    fn emit(&mut self, len: usize, kept: &mut String) -> Result<()> {
        let text = &self.pending[..len];
        if self.to_stdout {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(super::stdout_error)?;
        } else {
            kept.push_str(text);
        }
        self.pending.drain(..len);
        Ok(())
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
    stop: &'static str,
    timings: Timings,
    kv: Kv,
    memory: Memory,
    kernels: &'static str,
    threads: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    logprobs: &'a [Vec<(u32, f64)>],
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

fn report<'a>(session: &Session, plan: &Plan, prompt: &'a [u32], outcome: &'a Outcome) -> Report<'a> {
    let cache = session.cache();
    Report {
        prompt_tokens: prompt,
        tokens: &outcome.tokens,
        text: &outcome.text,
        stop: outcome.stop.name(),
        timings: Timings {
            load_ms: ms(outcome.load),
            prefill_ms: ms(outcome.prefill),
            prefill_tok_s: rate(prompt.len(), outcome.prefill),
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
            k_type: "f16",
            v_type: "f16",
        },
        memory: Memory {
            plan_bytes: plan.private_bytes(),
            rss_anon_peak_bytes: outcome.rss_anon_peak,
            rss_file_bytes: rss_file_bytes(),
            weights_bytes: session.model().file.file_bytes(),
        },
        kernels: session.kernels().name(),
        threads: session.n_threads(),
        logprobs: &outcome.logprobs,
    }
}

fn statistics(session: &Session, plan: &Plan, prompt: &[u32], outcome: &Outcome) -> String {
    let cache = session.cache();
    format!(
        "[{}] prompt {} tokens in {:.2} s ({:.1} tok/s), {} tokens in {:.2} s ({:.1} tok/s); cache {}: {} of {} slots live, {} evicted ({}); \
         private memory {} of {} planned; kernels {}, {} threads",
        outcome.stop.name(),
        prompt.len(),
        outcome.prefill.as_secs_f64(),
        rate(prompt.len(), outcome.prefill),
        outcome.n_generated,
        outcome.decode.as_secs_f64(),
        rate(steps(outcome), outcome.decode),
        Bytes(cache.arena_bytes() as u64),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let (mut writer, mut kept, mut stopped) = (Writer::new(&stops, false), String::new(), false);
        for piece in pieces {
            stopped = writer.push(piece.as_bytes(), &mut kept).unwrap();
            if stopped {
                return (kept, true);
            }
        }
        writer.finish(&mut kept).unwrap();
        (kept, stopped)
    }

    #[test]
    fn stop_texts_are_found_across_tokens_and_not_printed() {
        assert_eq!(feed(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(feed(&["END"], &["one E", "N", "x"]), ("one ENx".into(), false));
        assert_eq!(feed(&["\n\n", "é!"], &["a\n", "b caf\u{e9}", "!"]), ("a\nb caf".into(), true));
        assert_eq!(feed(&[], &["plain"]), ("plain".into(), false));
        assert_eq!(feed(&[""], &["plain"]), ("plain".into(), false));
    }
}
