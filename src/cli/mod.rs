//! The command line: one file per subcommand. Answers go to stdout, everything else to stderr.

mod args;
mod bench;
mod eval;
mod info;
mod models;
mod plan;
mod run;
mod setup;
mod status;
mod tokenize;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    /// The models that can be named instead of a path
    Models(models::ModelsArgs),
}

/// Parses, runs, and returns the exit code: 0 done, 1 failure, 2 usage, 130 interrupted.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = Cli::command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
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
        Command::Models(args) => models::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(Error::BrokenPipe) => 0,
        Err(error) => {
            eprintln!("lowkey: {error}");
            error.exit_code()
        }
    }
}

/// Help and version as clap prints them; a mistake as one line that names the flag and where the help is.
fn usage(error: &clap::Error) -> u8 {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion) {
        return match error.print() {
            Ok(()) => 0,
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Err(_) => 1,
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
    eprintln!("lowkey: {}; see --help", line.strip_prefix("error: ").unwrap_or(&line));
    2
}

/// Writes one answer to stdout.
fn answer(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).map_err(stdout_error)
}

fn stdout_error(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::BrokenPipe => Error::BrokenPipe,
        _ => Error::io("standard output", e),
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data becomes JSON")
}
