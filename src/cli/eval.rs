//! `lowkey eval`: what a cache budget costs in quality, on the user's model and text.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::eval::ppl::{Scores, score, windows};
use crate::kv::policy::Policy;
use crate::kv::types::KvType;
use crate::session::Session;
use crate::units::Bytes;

use super::args::{ModelArgs, OutputArgs};
use super::interrupt::Interrupt;
use super::progress;
use super::setup::{Opened, check_tokens, open};
use super::text::{read_text, text_bytes};
use super::unfinished::Unfinished;

#[derive(Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Perplexity in windows, for several cache budgets
    Ppl(PplArgs),
}

/// A share of a full f16 cache of `--ctx` tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Keep(f64);

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|p| p.parse::<f64>().ok());
        percent.filter(|p| *p > 0.0 && *p <= 100.0).map(Keep).ok_or(format!("'{text}' is not a share such as 50%"))
    }
}

#[derive(Args)]
struct PplArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: String,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// Tokens from one window's start to the next's [default: --ctx]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Budgets as shares of the bytes of a full f16 cache of --ctx tokens, such as 100%,50%,25%; instead of --kv-budget
    #[arg(long, value_name = "P%", value_delimiter = ',')]
    keep: Vec<Keep>,
    /// Windows to score at most
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Write the logits after every token of the first budget's run: f32 [windows * ctx, n_vocab], NumPy's format
    #[arg(long, value_name = "FILE.npy")]
    logits_out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    keep: Option<f64>,
    n_slot: usize,
    arena_bytes: usize,
    policy: &'static str,
    k_type: &'static str,
    v_type: &'static str,
    n_tokens: usize,
    nll: f64,
    ppl: f64,
    ppl_ratio_to_full: Option<f64>,
}

pub fn run(args: EvalArgs) -> Result<u8> {
    match args.what {
        What::Ppl(args) => ppl(args),
    }
}

/// Rows of logits at once: each is a whole vocabulary.
const N_LOGITS: usize = 16;

fn ppl(args: PplArgs) -> Result<u8> {
    let interrupt = Interrupt::catch_with_term()?;
    if let Some(path) = &args.logits_out {
        NpyFile::check(path)?;
    }
    if args.windows == Some(0) {
        return Err(Error::usage("--windows", "0 windows give no perplexity; give 1 at least"));
    }
    let text = read_text(None, Some(&args.file))?;
    let stride = args.stride.unwrap_or(args.ctx);
    if args.ctx < 2 {
        return Err(Error::usage("--ctx", "a window must have 2 tokens at least"));
    }
    if stride == 0 {
        return Err(Error::usage("--stride", "windows that do not move on never end; give 1 at least"));
    }
    let mut opened = open(&args.model.model, args.model.session.params(N_LOGITS))?;
    opened.warn();
    plan_text(&mut opened, &text)?;
    if args.keep.is_empty() {
        opened.check()?;
    }
    let n_ctx = opened.model.config.n_ctx;
    if args.ctx > n_ctx {
        return Err(Error::usage(
            "--ctx",
            format!("windows of {} tokens, the model was trained for {n_ctx}; give less", args.ctx),
        ));
    }
    let tokenizer = opened.tokenizer()?;
    let mut tokens = tokenizer.encode(&text, true, false)?;
    let n_windows = windows(&tokens, args.ctx, stride).count().min(args.windows.unwrap_or(usize::MAX));
    if n_windows == 0 {
        let what = format!(
            "{} has {} tokens, fewer than one window of {}; give a longer text or a smaller --ctx",
            args.file,
            tokens.len(),
            args.ctx
        );
        return Err(Error::usage("--file", what));
    }
    tokens.truncate((n_windows - 1) * stride + args.ctx);
    drop(opened);

    let mut eval = Eval { args: &args, tokens: &tokens, stride, n_windows, text: &text, full: None, interrupt };
    eval.interrupt.defer();
    let mut rows = Vec::new();
    let budgets: Vec<Option<Keep>> =
        if args.keep.is_empty() { vec![None] } else { args.keep.iter().copied().map(Some).collect() };
    for (i, keep) in budgets.into_iter().enumerate() {
        let logits_out = args.logits_out.as_deref().filter(|_| i == 0);
        let Some(row) = eval.row(keep, logits_out)? else {
            super::say("lowkey: interrupted, no result");
            return Ok(130);
        };
        rows.push(row);
    }
    args.output.answer(&rows, table)?;
    Ok(0)
}

/// The lines that only `eval` knows of: the text and its tokens, a score for each in this run and in that of the full cache.
fn plan_text(opened: &mut Opened, text: &str) -> Result<()> {
    opened.plan.private("text", text_bytes(&opened.model.file, text)?);
    opened.plan.private("scores", 2 * text.len() * size_of::<f64>());
    Ok(())
}

struct Eval<'a> {
    args: &'a PplArgs,
    tokens: &'a [u32],
    stride: usize,
    n_windows: usize,
    text: &'a str,
    /// Scores of the full f16 cache, once some row has needed them.
    full: Option<Scores>,
    interrupt: Interrupt,
}

/// What a session is to have.
#[derive(Clone, Copy, PartialEq)]
enum Budget {
    Bytes(u64),
    /// A share of the bytes of keys and values of a full f16 cache of a window.
    Share(f64),
    /// A whole window.
    Full,
}

impl Eval<'_> {
    fn session(&self, budget: Budget) -> Result<Session> {
        let mut params = self.args.model.session.params(N_LOGITS);
        params.kv.budget_bytes = u64::MAX;
        let mut opened = open(&self.args.model.model, params)?;
        if budget == Budget::Full {
            let params = &mut opened.params;
            (params.kv.policy, params.k_type, params.v_type) = (Policy::Off, KvType::F16, KvType::F16);
            opened.replan()?;
        }
        let (kv, ctx) = (opened.layout.kv, self.args.ctx);
        opened.params.kv.budget_bytes = match budget {
            Budget::Bytes(bytes) => bytes,
            Budget::Share(percent) => (kv.full_f16_bytes(ctx) as f64 * percent / 100.0) as u64,
            Budget::Full => kv.arena_bytes(ctx) as u64,
        };
        opened.replan()?;
        plan_text(&mut opened, self.text)?;
        opened.check()?;
        let session = Session::new(opened.model, &opened.params)?;
        check_tokens(&session, self.tokens)?;
        Ok(session)
    }

    /// `None` if interrupted.
    fn score(&self, session: &mut Session, logits_out: Option<&Path>) -> Result<Option<Scores>> {
        let what = format!("{} slots, {}", session.cache().n_slot(), session.cache().policy().name());
        let bar = progress::tokens(what, self.n_windows * self.args.ctx);
        let n_vocab = session.model().config.n_vocab;
        let mut file = logits_out.map(|path| NpyFile::create(path, n_vocab)).transpose()?;
        let rows = |row: &[f32]| file.as_mut().map_or(Ok(()), |file| file.row(row));
        let scores = score(session, self.tokens, self.args.ctx, self.stride, rows, |n| {
            bar.inc(n as u64);
            !self.interrupt.raised()
        })?;
        bar.finish_and_clear();
        if let (Some(file), Some(_)) = (file, &scores) {
            file.finish()?;
        }
        Ok(scores)
    }

    /// `None` if interrupted.
    fn row(&mut self, keep: Option<Keep>, logits_out: Option<&Path>) -> Result<Option<Row>> {
        let types = self.args.model.session.kv_types();
        let exact = types == (KvType::F16, KvType::F16);
        let whole = exact && keep.is_some_and(|keep| keep.0 == 100.0);
        let mut session = self.session(match keep {
            None => Budget::Bytes(self.args.model.session.kv_budget.0),
            Some(_) if whole => Budget::Full,
            Some(keep) => Budget::Share(keep.0),
        })?;
        let Some(scores) = self.score(&mut session, logits_out)? else { return Ok(None) };
        let (n_slot, arena_bytes) = (session.cache().n_slot(), session.cache().arena_bytes());
        let policy = session.cache().policy().name();
        // One session at a time: the plan is for one.
        drop(session);
        let evicts = n_slot < self.args.ctx;
        if (evicts || !exact) && self.full.is_none() {
            let Some(full) = self.score(&mut self.session(Budget::Full)?, None)? else { return Ok(None) };
            self.full = Some(full);
        }
        // Where the arena never fills, rounding alone is what costs: all tokens count.
        let from = if evicts { n_slot } else { 0 };
        let ratio = match (&self.full, evicts || !exact) {
            (Some(full), true) => Some((scores.mean_after(from) - full.mean_after(from)).exp()),
            _ => Some(1.0),
        };
        let (nll, n_tokens) = (scores.mean(), scores.nll.len());
        if whole {
            self.full = Some(scores);
        }
        Ok(Some(Row {
            keep: keep.map(|keep| keep.0 / 100.0),
            n_slot,
            arena_bytes,
            policy,
            k_type: types.0.name(),
            v_type: types.1.name(),
            n_tokens,
            nll,
            ppl: nll.exp(),
            ppl_ratio_to_full: ratio,
        }))
    }
}

fn table(rows: &[Row]) -> String {
    let mut out =
        String::from("| keep | slots | arena | policy | tokens | nll | ppl | ratio to full |\n|---|---|---|---|---|---|---|---|");
    for r in rows {
        let keep = r.keep.map_or("".into(), |k| format!("{}%", k * 100.0));
        let ratio = r.ppl_ratio_to_full.map_or("".into(), |r| format!("{r:.4}"));
        let arena = Bytes(r.arena_bytes as u64);
        out.push_str(&format!(
            "\n| {keep} | {} | {arena} | {} | {} | {:.4} | {:.3} | {ratio} |",
            r.n_slot, r.policy, r.n_tokens, r.nll, r.ppl
        ));
    }
    out
}

/// Rows of f32 in NumPy's file format, version 1.0.
struct NpyFile {
    file: Unfinished,
    n_rows: usize,
    n_cols: usize,
}

/// The header is of fixed length so that the number of rows can be filled in at the end.
const NPY_HEADER: usize = 128;

impl NpyFile {
    /// Refuses, before hours of work, a name that could not be given to the file at their end.
    fn check(path: &Path) -> Result<()> {
        let usage = |what: &str| Err(Error::usage("--logits-out", format!("{} {what}; give the name of a file", path.display())));
        match std::fs::metadata(path) {
            Ok(meta) if !meta.is_file() => usage("is there and is no regular file"),
            _ if path.file_name().is_none() => usage("is no name"),
            _ => Ok(()),
        }
    }

    fn create(path: &Path, n_cols: usize) -> Result<Self> {
        let mut file = Unfinished::create(path).map_err(|e| Self::failed(path, &e))?;
        file.out.write_all(&[0; NPY_HEADER]).map_err(|e| Self::failed(path, &e))?;
        Ok(NpyFile { file, n_rows: 0, n_cols })
    }

    fn failed(path: &Path, e: &std::io::Error) -> Error {
        Error::budget(
            "--logits-out",
            format!("{}: {e}: give a name in a folder that can be written and has room", path.display()),
        )
    }

    fn row(&mut self, row: &[f32]) -> Result<()> {
        self.n_rows += 1;
        let written = row.iter().try_for_each(|v| self.file.out.write_all(&v.to_le_bytes()));
        written.map_err(|e| Self::failed(self.file.path(), &e))
    }

    fn finish(self) -> Result<()> {
        let NpyFile { mut file, n_rows, n_cols } = self;
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(((NPY_HEADER - 10) as u16).to_le_bytes());
        bytes.extend(format!("{header:<width$}\n", width = NPY_HEADER - 11).bytes());
        let path = file.path().to_owned();
        let written = file.out.seek(std::io::SeekFrom::Start(0)).and_then(|_| file.out.write_all(&bytes));
        written.and_then(|()| file.finish()).map_err(|e| Self::failed(&path, &e))
    }
}
