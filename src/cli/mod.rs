//! The command line: one file per subcommand. Answers go to stdout, everything else to stderr.

mod args;
mod bandwidth;
mod bench;
mod board;
#[cfg(feature = "chat")]
mod chat;
mod choice;
mod constraint;
mod eval;
mod flags;
#[cfg(feature = "serve")]
mod health;
mod info;
mod interrupt;
mod kept;
mod models;
mod output;
mod pack;
mod past;
mod plan;
mod progress;
#[cfg(feature = "pull")]
mod pull;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod sessions;
mod setup;
mod status;
mod summary;
mod text;
mod tokenize;
mod turns;
mod unfinished;
mod writer;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Result};
use output::{answer, answer_json, say};

/// What the program is, at the head of its help and of its manual page.
const ABOUT: &str = "Large language models on small ARM boards, in a memory that the owner sets and that never grows";

#[derive(Parser)]
#[command(name = "lowkey", version, about = ABOUT, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to stderr: error, warn, info, debug, trace (RUST_LOG, where set, has the last word)
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn", display_order = 900, value_parser = log_level)]
    log_level: log::LevelFilter,
}

fn log_level(text: &str) -> std::result::Result<log::LevelFilter, &'static str> {
    text.parse().map_err(|_| "write off, error, warn, info, debug or trace")
}

#[derive(Subcommand)]
enum Command {
    /// Complete a prompt, streaming
    Run(Box<run::RunArgs>),
    /// Talk with a model, turn by turn
    #[cfg(feature = "chat")]
    Chat(Box<chat::ChatArgs>),
    /// Serve the model over HTTP: OpenAI's, llama.cpp's and Ollama's ways of asking, and a page
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArgs>),
    /// Whether a server is ready: exit code 0 if it is, 1 if not
    #[cfg(feature = "serve")]
    Health(health::HealthArgs),
    /// Every byte a model would use, before it uses any
    Plan(Box<plan::PlanArgs>),
    /// What a GGUF file holds, and which kernel sets this machine runs
    Info(info::InfoArgs),
    /// The token ids of a text
    Tokenize(tokenize::TokenizeArgs),
    /// What a cache budget costs in quality, on your model and text
    Eval(eval::EvalArgs),
    /// Prefill and decode speed, at several depths of the stream
    Bench(Box<bench::BenchArgs>),
    /// Write the model's weights once more, laid out for the dot products of newer ARM CPUs, to a file beside it
    Pack(pack::PackArgs),
    /// The models that can be named instead of a path
    Models(models::ModelsArgs),
    /// Fetch a model to where its name finds it
    #[cfg(feature = "pull")]
    Pull(pull::PullArgs),
    /// Saved conversations: which there are, whether they are whole, and removing them
    Sessions(sessions::SessionsArgs),
}

/// The whole command line, as manual pages and completions describe it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses, runs, and returns the exit code: 0 done, 1 failure, 2 usage, 130 and 143 interrupted.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = flags::parse(Cli::command, &plan::as_subcommand(args.into_iter().collect()))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    env_logger::Builder::new().filter_level(cli.log_level).parse_default_env().format_timestamp(None).format_target(false).init();
    match interrupt::catch().and_then(|()| run(cli.command)) {
        // What an interrupted command could not say any more is no success.
        Ok(code) => {
            if code == 0 {
                interrupt::code().unwrap_or(0)
            } else {
                code
            }
        }
        Err(Error::BrokenPipe) => 0,
        Err(error) => {
            say(&format!("lowkey: {}", one_line(&flags::spelled(&error.message()))));
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Plan(args) => plan::run(*args),
        Command::Run(args) => done(run::run(*args)),
        #[cfg(feature = "chat")]
        Command::Chat(args) => done(chat::run(*args)),
        #[cfg(feature = "serve")]
        Command::Serve(args) => done(serve::run(*args)),
        #[cfg(feature = "serve")]
        Command::Health(args) => health::run(args),
        Command::Eval(args) => done(eval::run(args)),
        Command::Bench(args) => done(bench::run(*args)),
        Command::Info(args) => info::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Models(args) => models::run(args),
        #[cfg(feature = "pull")]
        Command::Pull(args) => pull::run(args),
        Command::Sessions(args) => sessions::run(args),
    }
}

fn done(outcome: Result<setup::Done>) -> Result<u8> {
    match outcome? {
        setup::Done::Exit(code) => Ok(code),
        setup::Done::Planned(_) => unreachable!("only `plan` asks for no more than a plan"),
    }
}

/// A message as one line that a terminal can bear, whatever names from files and paths it holds.
fn one_line(message: &str) -> String {
    const MOST_CHARS: usize = 1000;
    let mut line = String::new();
    for c in message.chars().take(MOST_CHARS) {
        match c.is_control() {
            true => line.extend(c.escape_debug()),
            false => line.push(c),
        }
    }
    if message.chars().nth(MOST_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// Help and version as clap prints them; a mistake as one line that names the flag and where the help is.
fn usage(error: &clap::Error) -> u8 {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion) {
        return match error.print() {
            Ok(()) => 0,
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Err(e) => {
                say(&format!("lowkey: standard output: {e}"));
                1
            }
        };
    }
    if error.kind() == DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return 2;
    }
    let text = error.to_string();
    let parts: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let mut line = parts.join(" ");
    if let (Some(why), Some(source)) = (flags::why_no_number(error), std::error::Error::source(error)) {
        line = line.replace(&source.to_string(), why);
    }
    say(&format!("lowkey: {}; see --help", one_line(line.strip_prefix("error: ").unwrap_or(&line))));
    2
}
