//! `lowkey eval ppl`: perplexity in windows, for several cache budgets and policies.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::npy::NpyFile;
use super::plot::PlotArgs;
use super::{Budget, Keep, OFF, TextArgs, budget_opened, larger, open_plain, policies, rows_bytes};
use crate::cli::args::{Evict, OutputArgs};
use crate::cli::setup::{Done, Opened, check_tokens};
use crate::cli::text::{Ending, read_text, text_bytes};
use crate::cli::unfinished::Unfinished;
use crate::cli::{interrupt, progress};
use crate::error::{Error, Result, message};
use crate::eval::ppl::{Scores, score, windows};
use crate::kv::types::{KvType, both_names};
use crate::session::{Layout, Session};
use crate::units::Bytes;

#[derive(Args)]
pub struct PplArgs {
    #[command(flatten)]
    pub text: TextArgs,
    /// Tokens from one window's start to the next's [default: --ctx]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Budgets as shares of the bytes of a full f16 cache of --ctx tokens, such as 100%,50%,25%; instead of --kv-budget
    #[arg(long, value_name = "P%", value_delimiter = ',')]
    keep: Vec<Keep>,
    /// Policies to compare [default: --evict]
    #[arg(long, value_name = "POLICY", value_delimiter = ',')]
    policies: Vec<Evict>,
    /// Leave out the ratio to a full f16 cache, and the memory of one
    #[arg(long)]
    no_full: bool,
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
    pub output: OutputArgs,
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

pub fn run(args: PplArgs) -> Result<Done> {
    check(&args)?;
    let text = read_text(None, Some(&args.text.file), Ending::Kept)?;
    let (ctx, stride) = (args.text.ctx, args.stride.unwrap_or(args.text.ctx));
    let mut opened = open_plain(&args.text.model, N_LOGITS)?;
    opened.warn();
    // No token is shorter than a byte, but for the one that may begin the text.
    let most = (text.len() + 1).checked_sub(ctx).map_or(0, |rest| rest / stride + 1);
    plan_text(&mut opened, &args, &text, most.min(args.windows.unwrap_or(usize::MAX)))?;
    if args.keep.is_empty() {
        opened.check()?;
    }
    let n_ctx = opened.model.config.n_ctx;
    if ctx > n_ctx && !args.keep.is_empty() {
        let what = format!("a full cache of --ctx {ctx} tokens cannot be, the model was trained for {n_ctx}");
        return Err(Error::usage("--keep", format!("{what}; give --kv-budget, or a smaller --ctx")));
    }
    let mut tokens = opened.tokenizer()?.encode(&text, true, false)?;
    let n_windows = windows(&tokens, ctx, stride).count().min(args.windows.unwrap_or(usize::MAX));
    if n_windows == 0 {
        return Err(args.text.too_short(tokens.len()));
    }
    tokens.truncate((n_windows - 1) * stride + ctx);
    drop(opened);

    let has_full = ctx <= n_ctx && !args.no_full;
    let mut eval = Eval { args: &args, tokens: &tokens, stride, n_windows, text: &text, has_full, full: None };
    // What does not fit is refused now, not after hours.
    let runs = eval.runs();
    let planned = eval.plan(&runs)?;
    if args.text.model.only_plan {
        return Ok(Done::Planned(planned.into()));
    }
    drop(planned);
    interrupt::defer();
    let mut rows = Vec::new();
    for (i, &(keep, policy)) in runs.iter().enumerate() {
        let logits_out = args.logits_out.as_deref().filter(|_| i == 0);
        let Some(row) = eval.row(keep, policy, logits_out)? else { return Ok(super::interrupted()) };
        rows.push(row);
    }
    args.output.answer(&rows, table)?;
    args.plot.write(|| picture(&rows, ctx))?;
    Ok(Done::Exit(0))
}

/// What can be refused before anything is opened.
fn check(args: &PplArgs) -> Result<()> {
    if let Some(path) = &args.logits_out {
        Unfinished::check("--logits-out", path)?;
    }
    args.plot.check()?;
    if args.windows == Some(0) {
        return Err(Error::usage("--windows", "0 windows give no perplexity; give 1 at least"));
    }
    let ctx = args.text.ctx;
    if ctx < 2 {
        return Err(Error::usage("--ctx", "a window must have 2 tokens at least"));
    }
    if args.stride == Some(0) {
        return Err(Error::usage("--stride", "windows that do not move on never end; give 1 at least"));
    }
    if args.parts == 0 || args.parts >= ctx {
        return Err(Error::usage("--parts", format!("{} parts of {ctx} tokens; give 1 to {}", args.parts, ctx - 1)));
    }
    Ok(())
}

/// The lines that only `eval` knows of: the text and its tokens, a score for each of a window in this run and in that of the full
/// cache, the rows, and the buffer of a file.
fn plan_text(opened: &mut Opened, args: &PplArgs, text: &str, n_windows: usize) -> Result<()> {
    opened.plan.private("text", text_bytes(&opened.model.file, text)?);
    let n_scores = n_windows.saturating_mul(args.text.ctx - 1);
    opened.plan.private("scores", n_scores.saturating_mul(2 * size_of::<f64>()));
    let n_rows = args.keep.len().max(1) * args.policies.len().max(1);
    let parts = if args.parts > 1 { args.parts.saturating_mul(n_rows * (size_of::<Part>() + 40)) } else { 0 };
    let file = if args.logits_out.is_some() { 1 << 20 } else { 0 };
    opened.plan.private("rows", rows_bytes::<Row>(n_rows, &args.plot).saturating_add(parts).saturating_add(file));
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
}

impl Eval<'_> {
    /// All budgets, each with all policies, but for a full cache: nothing is evicted from it, and one run stands for all.
    fn runs(&self) -> Vec<(Option<Keep>, Evict)> {
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

    fn open(&self, budget: Budget, policy: Evict) -> Result<Opened> {
        let ctx = self.args.text.ctx;
        let plan = |opened: &mut Opened| plan_text(opened, self.args, self.text, self.n_windows);
        let opened = budget_opened(&self.args.text.model, budget, policy, ctx, ctx, N_LOGITS, plan)?;
        let Layout { kv, n_slot, .. } = opened.layout;
        if policy == OFF && n_slot < ctx && kv.ring_len().is_none() {
            let what = format!("off may not evict, and {n_slot} slots do not hold a window of {ctx} tokens");
            return Err(Error::usage("--policies", format!("{what}; leave it out, or give a larger budget")));
        }
        Ok(opened)
    }

    /// The largest of all that will be opened.
    fn plan(&self, runs: &[(Option<Keep>, Evict)]) -> Result<Opened> {
        let mut most: Option<Opened> = None;
        for &(keep, policy) in runs {
            let opened = self.open(self.budget(keep), policy)?;
            if self.needs_full(keep, &opened.layout) {
                let full = self.open(Budget::Full, OFF).map_err(|e| {
                    let what = "for the ratio to a full f16 cache (--no-full leaves it out): ";
                    Error::stopped(message![what, e.message()])
                })?;
                most = most.into_iter().chain([full]).reduce(larger);
            }
            most = most.into_iter().chain([opened]).reduce(larger);
        }
        Ok(most.expect("a budget and a policy at least"))
    }

    /// Whether a row's ratio takes the scores of the full cache. (Where the arena never fills, rounding alone is what costs.)
    fn needs_full(&self, keep: Option<Keep>, layout: &Layout) -> bool {
        let exact = (layout.kv.k_type, layout.kv.v_type) == (KvType::F16, KvType::F16);
        (layout.n_slot < self.args.text.ctx || !exact) && !self.is_full(keep) && self.has_full
    }

    fn session(&self, opened: Opened) -> Result<Session> {
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
            !interrupt::raised()
        })?;
        bar.finish_and_clear();
        if let (Some(file), Some(_)) = (file, &scores) {
            file.finish()?;
        }
        Ok(scores)
    }

    /// `None` if interrupted.
    fn row(&mut self, keep: Option<Keep>, policy: Evict, logits_out: Option<&Path>) -> Result<Option<Row>> {
        let whole = self.is_full(keep);
        let opened = self.open(self.budget(keep), policy)?;
        let needs_full = self.needs_full(keep, &opened.layout);
        let mut session = self.session(opened)?;
        let types = (session.cache().shape().k_type, session.cache().shape().v_type);
        let exact = types == (KvType::F16, KvType::F16);
        let Some(scores) = self.score(&mut session, logits_out)? else { return Ok(None) };
        let (n_slot, arena_bytes) = (session.cache().n_slot(), session.cache().arena_bytes());
        let policy = session.cache().policy().name();
        // One session at a time: the plan is for one.
        drop(session);
        let evicts = n_slot < self.args.text.ctx;
        if needs_full && self.full.is_none() {
            let mut session = self.session(self.open(Budget::Full, OFF)?)?;
            let Some(full) = self.score(&mut session, None)? else { return Ok(None) };
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
    use crate::kv::Policy;
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
