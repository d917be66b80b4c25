//! `lowkey eval ppl`: perplexity in windows, for several cache budgets and policies.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::npy::NpyFile;
use super::plot::PlotArgs;
use super::{Budget, Keep, TextArgs, budget_opened, policies};
use crate::cli::args::OutputArgs;
use crate::cli::interrupt::Interrupt;
use crate::cli::progress;
use crate::cli::setup::{Opened, check_tokens, open};
use crate::cli::text::{read_text, text_bytes};
use crate::cli::unfinished::Unfinished;
use crate::error::{Error, Result};
use crate::eval::ppl::{Scores, score, windows};
use crate::kv::Policy;
use crate::kv::types::{KvType, both_names};
use crate::session::{Layout, Session};
use crate::units::Bytes;

#[derive(Args)]
pub struct PplArgs {
    #[command(flatten)]
    text: TextArgs,
    /// Tokens from one window's start to the next's [default: --ctx]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Budgets as shares of the bytes of a full f16 cache of --ctx tokens, such as 100%,50%,25%; instead of --kv-budget
    #[arg(long, value_name = "P%", value_delimiter = ',')]
    keep: Vec<Keep>,
    /// Policies to compare [default: --evict]
    #[arg(long, value_name = "POLICY", value_delimiter = ',')]
    policies: Vec<Policy>,
    /// Windows to score at most
    #[arg(long, value_name = "N")]
    windows: Option<usize>,
    /// Report each of N parts of a window as well, of all windows together: how a long stream fares as it goes on
    #[arg(long, value_name = "N", default_value_t = 1)]
    parts: usize,
    /// Write the logits after every token of the first budget's run: f32 [windows * ctx, n_vocab], NumPy's format
    #[arg(long, value_name = "FILE.npy")]
    logits_out: Option<PathBuf>,
    #[command(flatten)]
    plot: PlotArgs,
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
    /// With `--parts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    n_tokens: usize,
    nll: f64,
    ppl: f64,
}

/// Rows of logits at once: each is a whole vocabulary.
const N_LOGITS: usize = 16;

pub fn run(args: PplArgs) -> Result<u8> {
    let interrupt = Interrupt::catch_with_term()?;
    if let Some(path) = &args.logits_out {
        Unfinished::check("--logits-out", path)?;
    }
    if args.windows == Some(0) {
        return Err(Error::usage("--windows", "0 windows give no perplexity; give 1 at least"));
    }
    args.plot.check()?;
    let text = read_text(None, Some(&args.text.file))?;
    let stride = args.stride.unwrap_or(args.text.ctx);
    if args.text.ctx < 2 {
        return Err(Error::usage("--ctx", "a window must have 2 tokens at least"));
    }
    if stride == 0 {
        return Err(Error::usage("--stride", "windows that do not move on never end; give 1 at least"));
    }
    let mut opened = open(&args.text.model.model, args.text.model.session.params(N_LOGITS))?;
    opened.warn();
    // No token is shorter than a byte, but for the one that may begin the text.
    let most = (text.len() + 1).checked_sub(args.text.ctx).map_or(0, |rest| rest / stride + 1);
    plan_text(&mut opened, &text, most.min(args.windows.unwrap_or(usize::MAX)), args.text.ctx)?;
    if args.keep.is_empty() {
        opened.check()?;
    }
    let (ctx, n_ctx) = (args.text.ctx, opened.model.config.n_ctx);
    if ctx > n_ctx && !args.keep.is_empty() {
        let what = format!("a full cache of --ctx {ctx} tokens cannot be, the model was trained for {n_ctx}");
        return Err(Error::usage("--keep", format!("{what}; give --kv-budget, or a smaller --ctx")));
    }
    if args.parts == 0 || args.parts >= ctx {
        return Err(Error::usage("--parts", format!("{} parts of {ctx} tokens; give 1 to {}", args.parts, ctx - 1)));
    }
    let tokenizer = opened.tokenizer()?;
    let mut tokens = tokenizer.encode(&text, true, false)?;
    let n_windows = windows(&tokens, args.text.ctx, stride).count().min(args.windows.unwrap_or(usize::MAX));
    if n_windows == 0 {
        return Err(args.text.too_short(tokens.len()));
    }
    tokens.truncate((n_windows - 1) * stride + args.text.ctx);
    drop(opened);

    let has_full = ctx <= n_ctx;
    let mut eval = Eval { args: &args, tokens: &tokens, stride, n_windows, text: &text, has_full, full: None, interrupt };
    eval.interrupt.defer();
    let (runs, mut rows) = (eval.runs(), Vec::new());
    // What does not fit is refused now, not after hours.
    runs.iter().try_for_each(|&(keep, policy)| eval.open(eval.budget(keep), policy).map(drop))?;
    for (i, &(keep, policy)) in runs.iter().enumerate() {
        let logits_out = args.logits_out.as_deref().filter(|_| i == 0);
        let Some(row) = eval.row(keep, policy, logits_out)? else {
            crate::cli::say("lowkey: interrupted, no result");
            return Ok(130);
        };
        rows.push(row);
    }
    args.output.answer(&rows, table)?;
    args.plot.write(|| picture(&rows, args.text.ctx))?;
    Ok(0)
}

/// The lines that only `eval` knows of: the text and its tokens, a score for each of a window in this run and in that of the full cache.
fn plan_text(opened: &mut Opened, text: &str, n_windows: usize, ctx: usize) -> Result<()> {
    opened.plan.private("text", text_bytes(&opened.model.file, text)?);
    opened.plan.private("scores", n_windows.saturating_mul(ctx - 1).saturating_mul(2 * size_of::<f64>()));
    Ok(())
}

struct Eval<'a> {
    args: &'a PplArgs,
    tokens: &'a [u32],
    stride: usize,
    n_windows: usize,
    text: &'a str,
    /// Whether the model can see a whole window: beyond its trained context there is nothing to compare with.
    has_full: bool,
    /// Scores of the full f16 cache, once some row has needed them.
    full: Option<Scores>,
    interrupt: Interrupt,
}

impl Eval<'_> {
    /// All budgets, each with all policies, but for a full cache: nothing is evicted from it, and one run stands for all.
    fn runs(&self) -> Vec<(Option<Keep>, Policy)> {
        let keep = &self.args.keep;
        let budgets: Vec<Option<Keep>> = if keep.is_empty() { vec![None] } else { keep.iter().copied().map(Some).collect() };
        let policies = policies(&self.args.policies, &self.args.text.model);
        let n_policies = |keep| if self.is_full(keep) { 1 } else { policies.len() };
        budgets.into_iter().flat_map(|keep| policies[..n_policies(keep)].iter().map(move |&policy| (keep, policy))).collect()
    }

    fn budget(&self, keep: Option<Keep>) -> Budget {
        match keep {
            None => Budget::Bytes(self.args.text.model.session.kv_budget.0),
            Some(_) if self.is_full(keep) => Budget::Full,
            Some(keep) => Budget::Share(keep.0),
        }
    }

    fn open(&self, budget: Budget, policy: Policy) -> Result<Opened> {
        let ctx = self.args.text.ctx;
        let plan = |opened: &mut Opened| plan_text(opened, self.text, self.n_windows, ctx);
        let opened = budget_opened(&self.args.text.model, budget, policy, ctx, ctx, N_LOGITS, plan)?;
        let Layout { kv, n_slot, .. } = opened.layout;
        if policy == Policy::Off && n_slot < ctx && kv.ring_len().is_none() {
            let what = format!("off may not evict, and {n_slot} slots do not hold a window of {ctx} tokens");
            return Err(Error::usage("--policies", format!("{what}; leave it out, or give a larger budget")));
        }
        Ok(opened)
    }

    fn session(&self, budget: Budget, policy: Policy) -> Result<Session> {
        let opened = self.open(budget, policy)?;
        let session = Session::new(opened.model, &opened.layout)?;
        check_tokens(&session, self.tokens)?;
        Ok(session)
    }

    fn is_full(&self, keep: Option<Keep>) -> bool {
        self.args.text.model.session.allows_f16() && keep == Some(Keep(100.0))
    }

    /// `None` if interrupted.
    fn score(&self, session: &mut Session, logits_out: Option<&Path>) -> Result<Option<Scores>> {
        let what = format!("{} slots, {}", session.cache().n_slot(), session.cache().policy().name());
        let bar = progress::tokens(what, self.n_windows * self.args.text.ctx);
        let n_vocab = session.model().config.n_vocab;
        let mut file = logits_out.map(|path| NpyFile::create(path, n_vocab)).transpose()?;
        let rows = |row: &[f32]| file.as_mut().map_or(Ok(()), |file| file.row(row));
        let scores = score(session, self.tokens, self.args.text.ctx, self.stride, rows, |n| {
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
    fn row(&mut self, keep: Option<Keep>, policy: Policy, logits_out: Option<&Path>) -> Result<Option<Row>> {
        let whole = self.is_full(keep);
        let mut session = self.session(self.budget(keep), policy)?;
        let types = (session.cache().shape().k_type, session.cache().shape().v_type);
        let exact = types == (KvType::F16, KvType::F16);
        let Some(scores) = self.score(&mut session, logits_out)? else { return Ok(None) };
        let (n_slot, arena_bytes) = (session.cache().n_slot(), session.cache().arena_bytes());
        let policy = session.cache().policy().name();
        // One session at a time: the plan is for one.
        drop(session);
        let evicts = n_slot < self.args.text.ctx;
        if (evicts || !exact) && !whole && self.full.is_none() && self.has_full {
            let Some(full) = self.score(&mut self.session(Budget::Full, Policy::Off)?, None)? else { return Ok(None) };
            self.full = Some(full);
        }
        // Where the arena never fills, rounding alone is what costs: all tokens count.
        let from = if evicts { n_slot } else { 0 };
        let ratio = match &self.full {
            _ if whole || !evicts && exact => Some(1.0),
            Some(full) => Some((scores.mean_after(from) - full.mean_after(from)).exp()),
            None => None,
        };
        let parts = if self.args.parts > 1 { scores.parts(self.args.parts) } else { Vec::new() };
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
            parts: parts.into_iter().map(|(n_tokens, nll)| Part { n_tokens, nll, ppl: nll.exp() }).collect(),
        }))
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| keep | slots | arena | keys/values | policy | tokens | nll | ppl | ratio to full |\n|---|---|---|---|---|---|---|---|---|",
    );
    for r in rows {
        let keep = r.keep.map_or("".into(), |k| format!("{}%", k * 100.0));
        let ratio = r.ppl_ratio_to_full.map_or("".into(), |r| format!("{r:.4}"));
        let arena = Bytes(r.arena_bytes as u64);
        out.push_str(&format!(
            "\n| {keep} | {} | {arena} | {} | {} | {} | {:.4} | {:.3} | {ratio} |",
            r.n_slot,
            both_names(r.k_type, r.v_type),
            r.policy,
            r.n_tokens,
            r.nll,
            r.ppl
        ));
    }
    let n_parts = rows[0].parts.len();
    if n_parts > 0 {
        let head: String = (1..=n_parts).map(|i| format!(" {i} |")).collect();
        out.push_str(&format!(
            "\n\nPerplexity by parts of a window:\n\n| slots | policy |{head}\n|---|---|{}",
            "---|".repeat(n_parts)
        ));
    }
    for r in rows.iter().filter(|r| !r.parts.is_empty()) {
        let parts: String = r.parts.iter().map(|part| format!(" {:.3} |", part.ppl)).collect();
        out.push_str(&format!("\n| {} | {} |{parts}", r.n_slot, r.policy));
    }
    out
}

/// A curve for each policy. The full cache belongs to all of them.
#[cfg(feature = "plot")]
fn picture(rows: &[Row], ctx: usize) -> Result<String> {
    use crate::eval::plot::{Curve, curves};
    let full = |r: &Row| r.policy == Policy::Off.name();
    let mut all: Vec<Curve> = Vec::new();
    for row in rows.iter().filter(|r| !full(r) || rows.iter().all(full)) {
        if all.iter().all(|curve| curve.name != row.policy) {
            let points = rows.iter().filter(|r| r.policy == row.policy || full(r));
            let points = points.map(|r| (r.arena_bytes as f64 / f64::from(1 << 20), r.ppl)).collect();
            all.push(Curve { name: row.policy.to_owned(), points });
        }
    }
    let types = |r: &Row| both_names(r.k_type, r.v_type);
    let same = rows.iter().all(|r| types(r) == types(&rows[0]));
    let stored = if same { format!("; keys and values in {}", types(&rows[0])) } else { String::new() };
    curves(&format!("Perplexity in windows of {ctx} tokens{stored}"), "perplexity", &all)
}

#[cfg(not(feature = "plot"))]
fn picture(_: &[Row], _: usize) -> Result<String> {
    unreachable!("--plot was refused at the start")
}
