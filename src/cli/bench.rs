//! `lowkey bench`: prefill and decode speed, at several depths of the stream.
//!
//! A depth is how many tokens the stream has taken in before the clock starts. While the arena has room a deeper stream
//! means more to attend to; once it is full, nothing changes any more, and the figures show it.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::forward::Model;
use crate::sensors::Sensors;
use crate::session::{Session, SessionParams};

use super::args::{DraftArgs, ModelArgs, OutputArgs};
use super::bandwidth::{Read, Reader, token_bytes};
use super::choice::{Chosen, chosen};
use super::output::say;
use super::setup::{Done, open_with};
use super::turns::{Sets, Turns};

#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Tokens of the prefill test; 0 leaves it out
    // Its variable is not LOWKEY_PROMPT: that is a text.
    #[arg(id = "prompt_tokens", short = 'p', long = "prompt", value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens of the decode test; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n: usize,
    /// Depths of the stream at which to measure
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "0")]
    depth: Vec<usize>,
    /// Runs of each test; the median counts
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Measure a plain read of the mapped weights too, with one thread and with all, and decode's share of it
    #[arg(long)]
    bandwidth: bool,
    /// Let kernel sets take turns, token by token and batch by batch: how the default does beside each set for everything
    #[arg(long)]
    sets: bool,
    #[command(flatten)]
    pub drafts: DraftArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Tokens of the longest stream: days of work, and 64 MiB of ids.
const MAX_TOKENS: usize = 1 << 24;

#[derive(Serialize)]
struct Row {
    test: String,
    depth: usize,
    threads: usize,
    kernels: &'static str,
    kv_type: String,
    n_slot: usize,
    tok_s_median: f64,
    tok_s_min: f64,
    tok_s_max: f64,
    runs: usize,
    kernel_choice: Vec<Chosen>,
    /// Weights in 1e9 bytes a second, and their share of a plain read with as many threads: of decoding, with `--bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    of_read: Option<f64>,
    /// For the table.
    #[serde(skip)]
    described: String,
    #[serde(skip)]
    is_decode: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Measured {
    Speed(Box<Row>),
    Read(Read),
    Sets(Turns),
}

pub fn run(args: BenchArgs) -> Result<Done> {
    if args.runs == 0 || (args.prompt == 0 && args.n == 0) {
        return Err(Error::usage("--runs", "nothing to measure; give at least one run of one test"));
    }
    let longest = args.depth.iter().max().copied().unwrap_or(0).saturating_add(args.prompt.max(args.n));
    for (flag, n) in [("--prompt", args.prompt), ("-n", args.n), ("--runs", args.runs), ("--depth", longest)] {
        if n > MAX_TOKENS {
            return Err(Error::usage(flag, format!("{n} is more than a bench can wait for; give at most {MAX_TOKENS} in all")));
        }
    }
    let params =
        |model: &Model| SessionParams { n_stream: Some(longest), ..args.drafts.with(args.model.session.params(1, model)) };
    let mut opened = open_with(&args.model, params)?;
    opened.plan.private("tokens", longest.max(1) * size_of::<u32>() + 2 * args.runs * size_of::<f64>());
    if args.bandwidth {
        opened.plan.private("reading threads", Reader::plan_bytes(opened.layout.n_threads, args.runs * args.depth.len()));
    }
    if args.sets {
        opened.plan.private("turns of sets", Sets::plan_bytes(args.runs * (args.n + args.prompt)));
    }
    opened.check()?;
    if args.model.only_plan {
        return Ok(Done::Planned(opened.into()));
    }
    opened.warn();
    let (mut session, _) = opened.start()?;
    let tokens = random_tokens(longest, session.model().config.n_vocab);
    let mut reader = args.bandwidth.then(|| Reader::new(session.n_threads())).transpose()?;
    let sets = args.sets.then(|| sets(&args, &session)).transpose()?;
    let mut rows = Vec::new();
    for &depth in &args.depth {
        rows.extend(at_depth(&args, &mut session, &tokens, depth, &mut reader)?);
    }
    let mut answer: Vec<Measured> = Vec::new();
    let reads = reader.map_or(Vec::new(), |reader| reader.rows(session.model(), session.kernels()));
    let token_bytes = token_bytes(session.model(), session.kernels());
    for mut row in rows {
        if let Some(all) = reads.last().filter(|_| row.is_decode) {
            let gb_s = token_bytes as f64 * row.tok_s_median / 1e9;
            (row.gb_s, row.of_read) = (Some(gb_s), Some(gb_s / all.gb_s_median));
        }
        answer.push(Measured::Speed(row.into()));
    }
    answer.extend(reads.into_iter().map(Measured::Read));
    if let Some(sets) = sets {
        answer.extend(in_turn(&args, &sets, &mut session, &tokens)?.into_iter().map(Measured::Sets));
    }
    args.output.answer(&answer, table)?;
    let board = Sensors::read().line();
    if !board.is_empty() {
        say(&format!("lowkey: the board after it: {board}"));
    }
    Ok(Done::Exit(0))
}

/// A row for each test.
fn at_depth(
    args: &BenchArgs,
    session: &mut Session,
    tokens: &[u32],
    depth: usize,
    reader: &mut Option<Reader>,
) -> Result<Vec<Row>> {
    let mut tests = Vec::new();
    if args.prompt > 0 {
        tests.push((format!("pp{}", args.prompt), args.prompt, How::Batched));
    }
    if args.n > 0 {
        tests.push((format!("tg{}", args.n), args.n, How::OneByOne));
    }
    if args.n > 0 && session.guesses() {
        tests.push((format!("tg{} guessed", args.n), args.n, How::Guessed));
    }
    let mut seconds = vec![Vec::new(); tests.len()];
    // Tests alternate, so that a noisy spell hits all of them.
    for _ in 0..args.runs {
        for ((_, n, how), seconds) in tests.iter().zip(&mut seconds) {
            to_depth(session, tokens, depth)?;
            if *how == How::Guessed {
                // Each token is guessed: the most that guesses can win.
                session.expect(&tokens[..*n]);
            }
            seconds.push(time(session, &tokens[..*n], *how)?);
        }
        if let Some(reader) = reader {
            reader.run(session.model(), session.kernels());
        }
    }
    let rows = tests.into_iter().zip(seconds);
    let of = |((test, n, how), seconds)| Row { is_decode: how == How::OneByOne, ..row(session, test, depth, n, seconds) };
    Ok(rows.map(of).collect())
}

/// What `--sets` compares, if there are two rounds of each test.
fn sets(args: &BenchArgs, session: &Session) -> Result<Sets> {
    let no_choice = "the kernels were named, or this processor has one set of them: there is nothing to compare; leave it out";
    let sets = Sets::of(session).ok_or_else(|| Error::usage("--sets", no_choice))?;
    for (flag, n, at_once) in [("--prompt", args.prompt, session.n_batch()), ("-n", args.n, 1)] {
        let least = sets.n_round(at_once);
        if n > 0 && n / least * args.runs < 2 {
            let what = format!(
                "{n} tokens are too few for --sets, which needs two rounds of all sets: give at least {least} and `--runs 2`, or 0"
            );
            return Err(Error::usage(flag, what));
        }
    }
    Ok(sets)
}

/// A row for each depth and test, of sets that take turns.
fn in_turn(args: &BenchArgs, sets: &Sets, session: &mut Session, tokens: &[u32]) -> Result<Vec<Turns>> {
    let mut rows = Vec::new();
    for &depth in &args.depth {
        for (what, n, at_once) in [("pp", args.prompt, session.n_batch()), ("tg", args.n, 1)] {
            let mut rounds = Vec::new();
            for _ in 0..if n > 0 { args.runs } else { 0 } {
                to_depth(session, tokens, depth)?;
                sets.take(session, &tokens[..n], at_once, &mut rounds)?;
            }
            if !rounds.is_empty() {
                rows.push(sets.row(session, format!("{what}{n} in turn"), depth, at_once, &rounds));
            }
        }
    }
    Ok(rows)
}

/// How the tokens of a test are taken in.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Batched,
    OneByOne,
    Guessed,
}

/// Any tokens do: time does not depend on what they say.
fn random_tokens(n: usize, n_vocab: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..n.max(1)).map(|_| rng.u32(..n_vocab as u32)).collect()
}

/// A stream that has taken in `depth` tokens. An arena that is full already stays as it is: more tokens change nothing.
fn to_depth(session: &mut Session, tokens: &[u32], depth: usize) -> Result<()> {
    let cache = session.cache();
    let full = cache.past().is_none() && cache.n_live() == cache.n_slot();
    if full && session.n_past() >= depth as u64 && depth >= session.cache().n_slot() {
        return Ok(());
    }
    session.clear();
    if depth > 0 {
        session.prefill(&tokens[..depth], |_| true)?;
    }
    Ok(())
}

fn time(session: &mut Session, tokens: &[u32], how: How) -> Result<f64> {
    let started = Instant::now();
    match how {
        How::Batched => {
            session.prefill(tokens, |_| true)?;
        }
        How::OneByOne => {
            for &token in tokens {
                session.step(token)?;
            }
        }
        How::Guessed => {
            let mut steps = session.steps();
            for (i, &token) in tokens.iter().enumerate() {
                steps.step(token, tokens.len() - i - 1)?;
            }
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

fn row(session: &Session, test: String, depth: usize, n: usize, mut seconds: Vec<f64>) -> Row {
    seconds.sort_by(f64::total_cmp);
    let speed = |seconds: f64| n as f64 / seconds;
    let middle = seconds.len() / 2;
    let median = if seconds.len() % 2 == 1 { seconds[middle] } else { (seconds[middle - 1] + seconds[middle]) / 2.0 };
    Row {
        test,
        depth,
        threads: session.n_threads(),
        kernels: session.kernels().name(),
        kv_type: session.cache().shape().type_names(),
        n_slot: session.cache().n_slot(),
        tok_s_median: speed(median),
        tok_s_min: speed(seconds[seconds.len() - 1]),
        tok_s_max: speed(seconds[0]),
        runs: seconds.len(),
        kernel_choice: chosen(session.choice()),
        gb_s: None,
        of_read: None,
        described: session.kernels().describe(),
        is_decode: false,
    }
}

fn table(rows: &[Measured]) -> String {
    let mut out = String::from(
        "| test | depth | threads | kernels | keys/values | slots | tok/s | min | max | runs |\n|---|---|---|---|---|---|---|---|---|---|",
    );
    let speeds = || rows.iter().filter_map(|row| if let Measured::Speed(row) = row { Some(row) } else { None });
    for r in speeds() {
        let (median, min, max) = (r.tok_s_median, r.tok_s_min, r.tok_s_max);
        out.push_str(&format!(
            "\n| {} | {} | {} | {} | {} | {} | {median:.1} | {min:.1} | {max:.1} | {} |",
            r.test, r.depth, r.threads, r.described, r.kv_type, r.n_slot, r.runs
        ));
    }
    let reads: Vec<String> =
        rows.iter().filter_map(|row| if let Measured::Read(read) = row { Some(read.line()) } else { None }).collect();
    if !reads.is_empty() {
        out.push_str("\n\nA plain read of all weights:\n");
        out.push_str("\n| threads | GB/s | min | max | runs |\n|---|---|---|---|---|\n");
        out.push_str(&reads.join("\n"));
    }
    let turns: Vec<String> =
        rows.iter().filter_map(|row| if let Measured::Sets(turns) = row { Some(turns.line()) } else { None }).collect();
    if !turns.is_empty() {
        out.push_str(&format!("\n\nKernel sets in turn:\n\n{}\n{}", Turns::HEAD, turns.join("\n")));
    }
    for r in speeds() {
        if let (Some(gb_s), Some(share)) = (r.gb_s, r.of_read) {
            out.push_str(&format!("\n\n{} at depth {} reads {gb_s:.1} GB/s, {share:.2} of it.", r.test, r.depth));
        }
    }
    out
}
