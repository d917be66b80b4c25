//! `lowkey run`: completes a prompt, streaming. Ctrl-C finishes the line, prints the statistics and exits with 130.

mod args;
mod chat;
mod flow;
mod ongoing;
mod report;

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::sensors::Sensors;
use crate::session::Session;
use crate::text::{Held, Sampler, Tokenizer};

use super::interrupt;
use super::kept::Kept;
use super::output::{answer, answer_json, say};
use super::pack::{When, hint, make_for};
use super::past::keep_past;
use super::setup::{Done, Opened, check_tokens, open_to_generate};
use super::status::rss_anon_bytes;
use super::text::{Ending, read_text};
pub use args::RunArgs;
use chat::{Chat, encode_prompt, n_pinned};
use flow::{Outcome, Stop, generate};
use ongoing::{Log, Ongoing, n_on_record};
use report::{report, statistics};

/// A run that is ready but for its memory.
struct Ready {
    opened: Opened,
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
    n_kept: usize,
    n_top: usize,
    going_on: Option<GoingOn>,
}

/// What a run with a session knows of it.
struct GoingOn {
    ongoing: Ongoing,
    /// With a system's turn: the tokens that a conversation begins with that has it.
    beginning: Option<Vec<u32>>,
    /// First tokens that are the system's turn, of a stream that begins.
    n_pinned: u32,
}

pub fn run(args: RunArgs) -> Result<Done> {
    let started = Instant::now();
    if args.pack == Some(When::Auto) && !args.model.only_plan {
        let model = args.model.model.as_deref().ok_or_else(|| Error::usage("--model", "give a model with -m"))?;
        if let Some(code) = make_for(model, Kernels::choose(&args.model.session.kernels)?)? {
            return Ok(Done::Exit(code));
        }
    }
    let Ready { opened, mut sampler, tokenizer, prompt, n_kept, n_top, going_on } = match ready(&args)? {
        Ok(ready) => ready,
        Err(planned) => return Ok(Done::Planned(planned.into())),
    };
    let grammar = args.constraint.grammar(&tokenizer)?;
    let (mut session, plan) = opened.start()?;
    check_tokens(&session, &prompt)?;
    warn_past_context(&session, prompt.len(), args.n);
    let mut log = going_on.map(|going_on| going_on.start(&args, &prompt, &mut session, &mut sampler)).transpose()?;

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
        n_before: session.n_past(),
        is_whole: false,
    };
    interrupt::defer();
    let live = grammar.map(|grammar| grammar.begin());
    match generate(&args, &mut session, &tokenizer, &mut sampler, live, &prompt, log.is_some(), started, &mut outcome) {
        Err(Error::BrokenPipe) => return Err(Error::BrokenPipe),
        Err(Error::Stopped(what)) => (outcome.stop, outcome.error) = (Stop::Full, Some(Error::Stopped(what))),
        Err(other) => return Err(other),
        Ok(stop) => outcome.stop = stop,
    }
    outcome.rss_anon_peak = outcome.rss_anon_peak.max(rss_anon_bytes());
    let saved = match &mut log {
        Some(log) if outcome.is_whole => log.save(&mut session, &sampler),
        _ => Ok(()),
    };
    if args.json {
        answer_json(&report(&session, &tokenizer, &plan, &prompt, &outcome, log.as_ref()))?;
    } else {
        answer("")?;
    }
    say(&statistics(&session, &plan, &prompt, &outcome));
    let board = Sensors::read();
    if board.is_held_back() {
        say(&format!("lowkey: the board: {}", board.line()));
    }
    if let Some(log) = log.as_ref().filter(|_| saved.is_ok()) {
        say(&log.summary(&session));
    }
    match outcome.error {
        Some(error) => Err(error),
        None if saved.is_err() => saved.map(|()| Done::Exit(0)),
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
    let ongoing = Ongoing::find(args)?;
    let begins = ongoing.as_ref().is_none_or(|ongoing| !ongoing.has_begun());
    let mut opened = open_to_generate(&args.model, &args.drafts)?;
    if let Some(ongoing) = &ongoing {
        keep_past(&mut opened.params, &ongoing.name, ongoing.head.as_ref())?;
    }
    let (n_vocab, n_ctx) = (opened.model.config.n_vocab, opened.model.config.n_ctx);
    let sampling = args.sample.params(n_ctx);
    let sampler = Sampler::new(sampling, n_vocab)?;
    let (n_kept, n_top) = if args.json { (args.n as usize, args.top_logprobs.min(n_vocab)) } else { (0, 0) };
    let n_text_bytes = text.as_ref().map_or(0, String::len);
    let chat = if args.chat { Some(Chat::new(args, n_text_bytes, &opened)?) } else { None };
    let template_bytes = chat.as_ref().map(Chat::bytes);
    let plan = |opened: &mut Opened, prompt_bytes: usize| {
        plan_run(args, opened, prompt_bytes, template_bytes, sampling.repeat_last_n, n_kept, n_top)?;
        if ongoing.is_some() {
            opened.plan.private("session", Ongoing::bytes());
        }
        opened.check()
    };
    // What is rendered is at least the text; it and its tokens are planned again when they can be counted.
    plan(&mut opened, n_text_bytes)?;
    let Some(text) = text else { return Ok(Err(opened)) };
    opened.warn();
    if let Some(hint) = hint(&opened.model, opened.layout.kernels).filter(|_| args.pack.is_none()) {
        log::warn!("{hint}");
    }
    let tokenizer = opened.tokenizer()?;
    let text = match &chat {
        Some(chat) if begins => chat.render(&tokenizer, text)?,
        Some(chat) => chat.render_next(&tokenizer, text)?,
        None => text.into(),
    };
    let n_tokens = tokenizer.count(&text.pieces(), begins)?;
    let mut prompt_bytes = tokenizer.encode_bytes(&text.pieces(), n_tokens);
    if args.system.is_some() && args.pin_system {
        // Beside them those of another prompt, without the user's words.
        prompt_bytes += n_tokens * size_of::<u32>();
    }
    if let Some(ongoing) = &ongoing {
        opened.params.n_log = ongoing.most_tokens(n_on_record(args.n).saturating_add(n_tokens));
    }
    opened.replan()?;
    plan(&mut opened, prompt_bytes)?;
    let prompt = encode_prompt(args, &text, n_tokens, begins, &tokenizer)?;
    let n_pinned = if begins { n_pinned(args, &prompt, chat.as_ref(), &tokenizer)? } else { 0 };
    if ongoing.is_none() {
        drop(text);
        opened.params.kv.pinned = n_pinned;
        // Now that the longest stream is known, types can be chosen for it. (Those of a session must be the same every time.)
        opened.params.n_stream = usize::try_from(args.n).ok().map(|n| prompt.len().saturating_add(n));
        opened.replan()?;
        plan(&mut opened, prompt_bytes)?;
        return match only_plan {
            true => Ok(Err(opened)),
            false => Ok(Ok(Ready { opened, sampler, tokenizer, prompt, n_kept, n_top, going_on: None })),
        };
    }
    if only_plan {
        return Ok(Err(opened));
    }
    let beginning = chat.as_ref().filter(|_| args.system.is_some()).map(|chat| chat.beginning(&tokenizer)).transpose()?;
    let going_on = ongoing.map(|ongoing| GoingOn { ongoing, beginning, n_pinned });
    Ok(Ok(Ready { opened, sampler, tokenizer, prompt, n_kept, n_top, going_on }))
}

impl GoingOn {
    /// Restores the session, or begins it.
    fn start(self, args: &RunArgs, prompt: &[u32], session: &mut Session, sampler: &mut Sampler) -> Result<Log> {
        let GoingOn { ongoing, beginning, n_pinned } = self;
        let begins = !ongoing.has_begun();
        let log = ongoing.start(args, prompt.is_empty(), session, sampler)?;
        if begins {
            ongoing::pin(session, n_pinned)?;
        } else if beginning.is_some_and(|beginning| !session.parts().1.first_tokens().starts_with(&beginning)) {
            let what = format!("session '{}' began with another system's turn: leave it out, or give another name", log.name());
            return Err(Error::usage("--system", what));
        }
        Ok(log)
    }
}

/// Copies of an argument while the command line is parsed: the system's, clap's of the first and of the second pass, and ours.
const ARGUMENT_COPIES: usize = 6;

/// The lines that only `run` knows of.
fn plan_run(
    args: &RunArgs,
    opened: &mut Opened,
    prompt_bytes: usize,
    template_bytes: Option<usize>,
    repeat_last_n: usize,
    n_kept: usize,
    n_top: usize,
) -> Result<()> {
    opened.plan.private("sampler", Sampler::bytes(opened.model.config.n_vocab, repeat_last_n));
    opened.plan.private("prompt", prompt_bytes);
    if let Some(bytes) = template_bytes {
        opened.plan.private("template", bytes);
    }
    let given = args.prompt.iter().chain(&args.system).chain(&args.stop);
    opened.plan.private("arguments", given.map(String::len).sum::<usize>() * ARGUMENT_COPIES + Held::bytes(&args.stop));
    args.constraint.plan(opened)?;
    if n_kept > 0 {
        let bytes = Kept::bytes(n_kept, n_top).ok_or_else(|| {
            Error::usage("-n", format!("{n_kept} tokens are more than --json can hold until the end; give a smaller number"))
        })?;
        opened.plan.private("answer", bytes);
    }
    Ok(())
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
