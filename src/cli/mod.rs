//! The command line: one file per subcommand. Answers go to stdout, everything else to stderr.

mod args;
mod bench;
mod board;
mod eval;
mod flags;
mod info;
mod interrupt;
mod kept;
mod models;
mod pack;
mod plan;
mod progress;
mod run;
mod setup;
mod status;
mod summary;
mod text;
mod tokenize;
mod unfinished;
mod writer;

use std::ffi::OsString;

use clap::builder::FalseyValueParser;
use clap::{Arg, ArgAction, Command as ClapCommand, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Result};

#[derive(Parser)]
#[command(name = "lowkey", version, about, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged to stderr: error, warn, info, debug, trace (RUST_LOG, where set, has the last word)
    #[arg(long, global = true, value_name = "LEVEL", env = "LOWKEY_LOG_LEVEL", default_value = "warn", hide_env = true)]
    log_level: log::LevelFilter,
}

#[derive(Subcommand)]
enum Command {
    /// Complete a prompt, streaming
    Run(run::RunArgs),
    /// Every byte a model would use, before it uses any
    Plan(plan::PlanArgs),
    /// What a GGUF file holds, and which kernel sets this machine runs
    Info(info::InfoArgs),
    /// The token ids of a text
    Tokenize(tokenize::TokenizeArgs),
    /// What a cache budget costs in quality, on your model and text
    Eval(eval::EvalArgs),
    /// Prefill and decode speed, at several depths of the stream
    Bench(bench::BenchArgs),
    /// Write the model's weights once more, laid out for the dot products of newer ARM CPUs, to a file beside it
    Pack(pack::PackArgs),
    /// The models that can be named instead of a path
    Models(models::ModelsArgs),
}

/// Parses, runs, and returns the exit code: 0 done, 1 failure, 2 usage, 130 interrupted.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = with_variables(Cli::command()).try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    env_logger::Builder::new().filter_level(cli.log_level).parse_default_env().format_timestamp(None).format_target(false).init();
    let outcome = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Info(args) => info::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Models(args) => models::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(Error::BrokenPipe) => 0,
        Err(error) => {
            say(&format!("lowkey: {}", one_line(&flags::spelled(&error.message()))));
            error.exit_code()
        }
    }
}

/// Every flag also reads `LOWKEY_<FLAG>` (a switch is on unless its variable is empty, 0, no, off or false), and every
/// value may begin with a minus, so that what is wrong with it is said by who knows.
fn with_variables(command: ClapCommand) -> ClapCommand {
    let flag = |arg: Arg| {
        let Some(long) = arg.get_long() else { return arg };
        let name = format!("LOWKEY_{}", long.to_uppercase().replace('-', "_"));
        let arg = match arg.get_env() {
            // Once for each flag, for as long as the process lives.
            None if !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version) => arg.env(&*name.leak()).hide_env(true),
            _ => arg,
        };
        match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
            ArgAction::Set | ArgAction::Append => arg.allow_negative_numbers(true),
            _ => arg,
        }
    };
    command.mut_args(flag).mut_subcommands(with_variables)
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

/// A line on stderr; where nobody can read it, it is lost, and the work goes on.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
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
    let line = parts.join(" ");
    say(&format!("lowkey: {}; see --help", one_line(line.strip_prefix("error: ").unwrap_or(&line))));
    2
}

/// Writes one answer to stdout.
fn answer(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).map_err(stdout_error)
}

/// A piece of a streamed answer, out at once.
fn stream(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_error)
}

/// One JSON answer to stdout, written as it is made: a long one is never in memory as a whole.
fn answer_json(value: &impl serde::Serialize) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::BufWriter::with_capacity(8192, std::io::stdout().lock());
    serde_json::to_writer(&mut out, value).map_err(std::io::Error::from).map_err(stdout_error)?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(stdout_error)
}

fn stdout_error(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::BrokenPipe,
        _ => Error::io("standard output", e),
    }
}
