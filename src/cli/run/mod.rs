//! `lowkey run`: completes a prompt, streaming. Ctrl-C finishes the line, prints the statistics and exits with 130.

mod args;
mod flow;
mod report;

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::session::Session;
use crate::text::{ChatTemplate, Message, Sampler, Tokenizer};

use super::interrupt;
use super::kept::Kept;
use super::output::{answer, answer_json, say};
use super::setup::{Done, Opened, check_tokens, open};
use super::status::rss_anon_bytes;
use super::text::{Ending, read_text, text_bytes};
use super::writer::held_bytes;
pub use args::RunArgs;
use flow::{Outcome, Stop, generate};
use report::{report, statistics};

/// A run that is ready but for its memory.
struct Ready {
    opened: Opened,
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
    n_kept: usize,
    n_top: usize,
}

pub fn run(args: RunArgs) -> Result<Done> {
    let started = Instant::now();
    let Ready { opened, mut sampler, tokenizer, prompt, n_kept, n_top } = match ready(&args)? {
        Ok(ready) => ready,
        Err(planned) => return Ok(Done::Planned(planned)),
    };
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
    interrupt::defer();
    match generate(&args, &mut session, &tokenizer, &mut sampler, &prompt, started, &mut outcome) {
        Err(Error::BrokenPipe) => return Err(Error::BrokenPipe),
        Err(Error::Stopped(what)) => (outcome.stop, outcome.error) = (Stop::Full, Some(Error::Stopped(what))),
        Err(other) => return Err(other),
        Ok(stop) => outcome.stop = stop,
    }
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    if args.json {
        answer_json(&report(&session, &tokenizer, &plan, &prompt, &outcome))?;
    } else {
        answer("")?;
    }
    say(&statistics(&session, &plan, &prompt, &outcome));
    match outcome.error {
        Some(error) => Err(error),
        None => Ok(Done::Exit(interrupt::code().filter(|_| outcome.stop == Stop::Interrupt).unwrap_or(0))),
    }
}

/// Plans the run, and makes tokens of its prompt; the plan alone where no more is wanted.
fn ready(args: &RunArgs) -> Result<std::result::Result<Ready, Opened>> {
    if args.json && args.n < 0 {
        return Err(Error::usage("-n", "--json holds every token until the end: give the number of tokens to generate"));
    }
    let only_plan = args.model.only_plan;
    let text = match (&args.prompt, &args.file) {
        (None, None) if only_plan => None,
        (prompt, file) => Some(read_text(prompt.as_deref(), file.as_deref(), Ending::Dropped)?),
    };
    let mut opened = open(&args.model, 1)?;
    let (n_vocab, n_ctx) = (opened.model.config.n_vocab, opened.model.config.n_ctx);
    let sampling = args.sample.params(n_ctx);
    let sampler = Sampler::new(sampling, n_vocab)?;
    let (n_kept, n_top) = if args.json { (args.n as usize, args.top_logprobs.min(n_vocab)) } else { (0, 0) };
    let mut prompt_bytes = 0;
    for text in text.iter().chain(&args.system) {
        prompt_bytes += text_bytes(&opened.model.file, text)?;
    }
    let plan = |opened: &mut Opened| plan_run(args, opened, prompt_bytes, sampling.repeat_last_n, n_kept, n_top);
    plan(&mut opened)?;
    opened.check()?;
    let Some(text) = text else { return Ok(Err(opened)) };
    opened.warn();
    let tokenizer = opened.tokenizer()?;
    let prompt = encode_prompt(args, text, &opened, &tokenizer)?;
    opened.params.kv.pinned = n_pinned(args, &prompt, &opened, &tokenizer)?;
    // Now that the longest stream is known, types can be chosen for it.
    opened.params.n_stream = usize::try_from(args.n).ok().map(|n| prompt.len().saturating_add(n));
    opened.replan()?;
    plan(&mut opened)?;
    opened.check()?;
    match only_plan {
        true => Ok(Err(opened)),
        false => Ok(Ok(Ready { opened, sampler, tokenizer, prompt, n_kept, n_top })),
    }
}

/// Copies of an argument while the command line is parsed: the system's, clap's of the first and of the second pass, and ours.
const ARGUMENT_COPIES: usize = 6;

/// The lines that only `run` knows of.
fn plan_run(
    args: &RunArgs,
    opened: &mut Opened,
    prompt_bytes: usize,
    repeat_last_n: usize,
    n_kept: usize,
    n_top: usize,
) -> Result<()> {
    opened.plan.private("sampler", Sampler::bytes(opened.model.config.n_vocab, repeat_last_n));
    opened.plan.private("prompt", prompt_bytes);
    let given = args.prompt.iter().chain(&args.system).chain(&args.stop);
    opened.plan.private("arguments", given.map(String::len).sum::<usize>() * ARGUMENT_COPIES + held_bytes(&args.stop));
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
        Some(name) => ChatTemplate::named(&name.to_string_lossy())?,
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
