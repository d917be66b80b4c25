//! `lowkey chat`: a conversation on a terminal, or turn by turn from a pipe.

mod args;
mod command;
mod input;
mod keep;
mod talk;

use std::io::IsTerminal;

use crate::error::{Error, Result};
use crate::session_file::{Name, Shelf};
use crate::text::{ChatTemplate, Held, Sampler, Tokenizer};

use super::args::SampleArgs;
use super::interrupt;
use super::output::{say, stream};
use super::past::keep_past;
use super::sessions::{head_of, named};
use super::setup::{Done, Opened, open_to_generate};
use super::text::{Ending, read_text};
pub use args::ChatArgs;
use command::After;
use input::{Input, Typed};
use keep::Kept;
use talk::{Answered, Talk};

pub fn run(args: ChatArgs) -> Result<Done> {
    let system = match &args.file {
        Some(path) => Some(read_text(None, Some(path), Ending::Dropped)?),
        None => args.system.clone(),
    };
    let mut opened = open_to_generate(&args.model, &args.drafts)?;
    let template = match &args.template {
        Some(name) => ChatTemplate::named(name)?,
        None => ChatTemplate::from_gguf(&opened.model.file)?,
    };
    if let Some(name) = &args.session {
        let name = named("--session", name, Name::new)?;
        keep_past(&mut opened.params, &name, head_of(&name, &args.folder)?.as_ref())?;
    }
    plan(&args, &mut opened, &template, system.as_ref().map_or(0, String::len))?;
    opened.check()?;
    if opened.is_only_planned() {
        return Ok(Done::Planned(opened.into()));
    }
    opened.warn();
    let tokenizer = opened.tokenizer()?;
    let mut sample = args.sample.clone();
    let sampler = Sampler::new(sample.params(opened.model.config.n_ctx), opened.model.config.n_vocab)?;
    let grammar = args.constraint.grammar(&tokenizer)?;
    let (mut session, _) = opened.start()?;
    let mut input = Input::open(!args.no_history)?;
    let mut talk = Talk::new(&mut session, sampler, template, &tokenizer);
    (talk.system, talk.pins_system, talk.thinks, talk.grammar) = (system, args.pin_system, args.think, grammar);
    (talk.n_answer, talk.escapes) = (args.n.0.unwrap_or(usize::MAX), std::io::stdout().is_terminal());
    if input.is_terminal() {
        say("Type a message; /help tells what else there is, Ctrl-D leaves.");
    }
    let mut kept = Kept::new(&args);
    if args.session.is_some() {
        kept.get(&talk)?.begin(&mut talk)?;
    }
    let ended = converse(&args, &mut input, &mut talk, &mut kept, &mut sample);
    kept.end(&mut talk)?;
    ended.map(Done::Exit)
}

/// Turn by turn, until the end; the exit code.
fn converse(args: &ChatArgs, input: &mut Input, talk: &mut Talk, kept: &mut Kept, sample: &mut SampleArgs) -> Result<u8> {
    let (mut last, mut n_interrupts) = (Answered::default(), 0);
    loop {
        let text = match input.next()? {
            Typed::Text(text) => text,
            Typed::End => return Ok(0),
            Typed::Interrupt => {
                n_interrupts += 1;
                if n_interrupts == 2 {
                    return Ok(130);
                }
                say("Ctrl-C once more leaves, Ctrl-D too.");
                continue;
            }
        };
        n_interrupts = 0;
        if text.trim().is_empty() {
            continue;
        }
        let is_command = text.starts_with('/');
        let after = match is_command {
            true => command::run(text.trim_end(), talk, kept, sample, &last),
            false => Ok(After::Nothing),
        };
        // From here to the end of the answer a signal stops the answer; before and after it, the program.
        interrupt::defer();
        let answered = match after {
            Ok(After::Exit) => return Ok(0),
            Ok(After::Regenerate) => talk.regenerate().map(Some),
            Ok(After::Nothing) if is_command => Ok(None),
            Ok(After::Nothing) => talk.say(text).map(Some),
            Err(error) => Err(error),
        };
        let signal = interrupt::take();
        match answered {
            Ok(Some(answered)) => {
                last = answered;
                if args.stats {
                    say(&command::line(&last, talk));
                }
                // A request to end is one, and who pipes text in has no other way to stop.
                if let Some(code) = signal.filter(|code| *code == interrupt::TERMINATED || !input.is_terminal()) {
                    return Ok(code);
                }
                if last.was_interrupted {
                    stream("")?;
                }
            }
            Ok(None) => {}
            Err(error @ (Error::BrokenPipe | Error::Io { .. })) => return Err(error),
            Err(error) if input.is_terminal() || is_command => say(&super::flags::spelled(&error.message())),
            Err(error) => return Err(error),
        }
    }
}

/// The lines that only `chat` knows of.
fn plan(args: &ChatArgs, opened: &mut Opened, template: &ChatTemplate, system_bytes: usize) -> Result<()> {
    opened.params.n_log = opened.layout.n_slot;
    opened.replan()?;
    let c = &opened.model.config;
    let (n_vocab, sampling) = (c.n_vocab, args.sample.params(c.n_ctx));
    opened.plan.private("sampler", Sampler::bytes(n_vocab, sampling.repeat_last_n));
    // The turns, what they are rendered to, and what is rendered anew; a turn more than is held may come in.
    let text_bytes = talk::MAX_BYTES + input::MAX_BYTES + system_bytes;
    let tokens_bytes = 4 * text_bytes + Tokenizer::most_work_bytes(&opened.model.file, text_bytes)?;
    opened.plan.private("conversation", 4 * text_bytes + tokens_bytes + Held::bytes(&[]));
    opened.plan.private("template", template.plan_bytes(text_bytes));
    opened.plan.private("line editing", 1 << 20);
    args.constraint.plan(opened)?;
    opened.plan.private("sessions", Shelf::plan_bytes());
    Ok(())
}
