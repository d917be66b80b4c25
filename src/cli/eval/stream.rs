//! `lowkey eval stream`: facts said in a long stream, each asked for a number of tokens later, and how fast the stream is read
//! as it goes on. The stream may be far longer than the trained context.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Budget, OFF, budget_opened};
use crate::cli::args::{ModelArgs, OutputArgs};
use crate::cli::past::past_line;
use crate::cli::setup::{Done, Opened};
use crate::cli::text::{Ending, read_text, text_bytes};
use crate::cli::{interrupt, progress};
use crate::error::{Error, Result};
use crate::eval::needle::Haystack;
use crate::eval::retrieval::wilson;
use crate::eval::stream::{self, Course, MAX_QUESTIONS, Measured, PIECE_BYTES};
use crate::kv::types::both_names;
use crate::session::Session;
use crate::units::Bytes;

#[derive(Args)]
pub struct StreamArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prose to say facts in, which goes round where it ends; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of the stream
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    tokens: usize,
    /// Tokens between a fact and the question about it, or a few more: as many as fill up a sentence
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "500,1000,5000")]
    back: Vec<usize>,
    /// Questions for each of --back in a stream
    #[arg(long, value_name = "N", default_value_t = 10)]
    samples: usize,
    /// Streams, each of which begins anew: with few questions in each, no facts of one kind are there to confuse
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams: usize,
    /// Seed of the facts and of where the text begins
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// More than anybody waits for.
const MAX_STREAMS: usize = 1000;

#[derive(Serialize)]
struct Row {
    back: usize,
    n: usize,
    correct: usize,
    policy: &'static str,
    k_type: &'static str,
    v_type: &'static str,
    n_slot: usize,
    arena_bytes: usize,
    /// Of whole streams, the same in each row: milliseconds for a token of the text, by tenths.
    tenths_ms: Vec<f64>,
}

pub fn run(args: StreamArgs) -> Result<Done> {
    let course = course(&args)?;
    let text = read_text(None, Some(&args.file), Ending::Kept)?;
    let hay = Haystack::new(&text);
    let plan = |opened: &mut Opened| {
        opened.plan.private("text", text.len() + Haystack::bytes(&text));
        let piece = text_bytes(&opened.model.file, &"x".repeat(PIECE_BYTES))?;
        opened.plan.private("questions", course.plan_bytes() + piece);
        Ok(())
    };
    let budget = Budget::Bytes(args.model.session.kv_budget.0);
    let opened = budget_opened(&args.model, budget, args.model.session.evict, course.n_tokens, course.n_tokens, 1, plan)?;
    opened.warn();
    if args.model.only_plan {
        return Ok(Done::Planned(opened.into()));
    }
    let tokenizer = opened.tokenizer()?;
    let bar = progress::tokens("stream".into(), course.n_tokens.saturating_mul(course.n_streams));
    interrupt::defer();
    let mut session = Session::new(opened.model, &opened.layout)?;
    let measured = stream::run(&mut session, &tokenizer, &hay, &course, |done| {
        bar.inc(done as u64);
        !interrupt::raised()
    })?;
    bar.finish_and_clear();
    let Some(measured) = measured else { return Ok(super::interrupted()) };
    let rows = rows(&session, &course, &measured);
    args.output.answer(&rows, table)?;
    if let Some(past) = session.cache().past() {
        log::info!("{}", past_line(past));
    }
    Ok(Done::Exit(0))
}

/// What can be refused before anything is opened.
fn course(args: &StreamArgs) -> Result<Course> {
    let StreamArgs { tokens: n_tokens, samples: n_samples, streams: n_streams, seed, .. } = *args;
    let course = Course { n_tokens, backs: args.back.clone(), n_samples, n_streams, seed };
    if args.model.session.evict == OFF {
        let what = "off evicts nothing, and this is of streams that are longer than what is held; leave it out";
        return Err(Error::usage("--evict", what));
    }
    if !(1..=MAX_QUESTIONS).contains(&course.n_questions()) {
        let what = format!(
            "{} questions in a stream; give 1 to {MAX_QUESTIONS} with --back, and --seed for others",
            course.n_questions()
        );
        return Err(Error::usage("--samples", what));
    }
    if !(1..=MAX_STREAMS).contains(&course.n_streams) {
        return Err(Error::usage("--streams", format!("{} streams; give 1 to {MAX_STREAMS}", course.n_streams)));
    }
    if course.n_tokens < course.least_tokens() {
        let what = format!(
            "{} tokens do not hold {} questions and what is asked for; give {} at least",
            course.n_tokens,
            course.n_questions(),
            course.least_tokens()
        );
        return Err(Error::usage("--tokens", what));
    }
    Ok(course)
}

fn rows(session: &Session, course: &Course, measured: &Measured) -> Vec<Row> {
    let (cache, shape) = (session.cache(), session.cache().shape());
    let ms = |&(n, time): &(usize, std::time::Duration)| time.as_secs_f64() * 1e3 / n.max(1) as f64;
    let tenths_ms: Vec<f64> = measured.tenths.iter().map(ms).collect();
    let of = |(&back, &correct): (&usize, &usize)| Row {
        back,
        n: course.n_samples * course.n_streams,
        correct,
        policy: cache.policy().name(),
        k_type: shape.k_type.name(),
        v_type: shape.v_type.name(),
        n_slot: cache.n_slot(),
        arena_bytes: cache.arena_bytes(),
        tenths_ms: tenths_ms.clone(),
    };
    course.backs.iter().zip(&measured.n_right).map(of).collect()
}

fn table(rows: &[Row]) -> String {
    let first = &rows[0];
    let mut out = "| tokens back | found | share | 95 % interval |\n|---|---|---|---|".to_owned();
    for row in rows {
        let (low, high) = wilson(row.correct, row.n);
        let share = 100.0 * row.correct as f64 / row.n as f64;
        let (low, high) = (100.0 * low, 100.0 * high);
        out += &format!("\n| {} | {} of {} | {share:.0}% | {low:.0}-{high:.0}% |", row.back, row.correct, row.n);
    }
    let times: Vec<String> = first.tenths_ms.iter().map(|ms| format!("{ms:.2}")).collect();
    out + &format!(
        "\n\n{} of {} slots in {}, {}; ms a token, by tenths of the stream: {}",
        first.policy,
        first.n_slot,
        both_names(first.k_type, first.v_type),
        Bytes(first.arena_bytes as u64),
        times.join(" ")
    )
}
