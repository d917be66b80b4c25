//! `lowkey eval correlation`: whether low-norm keys receive the attention in this model, head by head. Where the coefficients
//! are not clearly negative, a policy that goes by norms has little to go by.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::plot::PlotArgs;
use super::{Budget, OFF, TextArgs, budget_opened, rows_bytes};
use crate::cli::args::OutputArgs;
use crate::cli::setup::{Done, Opened, check_tokens, open};
use crate::cli::text::{Ending, read_text, text_bytes};
use crate::cli::{interrupt, progress};
use crate::error::{Error, Result};
use crate::eval::correlation::{self, Coefficients, Queries};
use crate::eval::ppl::windows;
use crate::kv::{AttnLayer, Head};
use crate::session::Session;

#[derive(Args)]
pub struct CorrelationArgs {
    #[command(flatten)]
    pub text: TextArgs,
    /// Windows at most
    #[arg(long, value_name = "N", default_value_t = 4)]
    windows: usize,
    /// Whose attention counts: distant (keys of a window's first half, queries of its second), or later (all queries after a key)
    #[arg(long, value_enum, default_value = "distant")]
    queries: WhichQueries,
    #[command(flatten)]
    plot: PlotArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhichQueries {
    Distant,
    Later,
}

impl From<WhichQueries> for Queries {
    fn from(which: WhichQueries) -> Queries {
        match which {
            WhichQueries::Distant => Queries::Distant,
            WhichQueries::Later => Queries::Later,
        }
    }
}

#[derive(Serialize)]
struct Row {
    layer: usize,
    head: usize,
    n_tokens: usize,
    spearman: f64,
    pearson: f64,
}

/// Tokens of a window at least: a coefficient of fewer keys is noise.
const LEAST_CTX: usize = 64;

pub fn run(args: CorrelationArgs) -> Result<Done> {
    args.plot.check()?;
    if args.windows == 0 {
        return Err(Error::usage("--windows", "0 windows measure nothing; give 1 at least"));
    }
    let text = read_text(None, Some(&args.text.file), Ending::Kept)?;
    let opened = open(&args.text.model, 1)?;
    opened.warn();
    let n_ctx = opened.model.config.n_ctx;
    if !(LEAST_CTX..=n_ctx).contains(&args.text.ctx) {
        let what = format!("windows of {} tokens; give {LEAST_CTX} at least and no more than the trained {n_ctx}", args.text.ctx);
        return Err(Error::usage("--ctx", what));
    }
    if let Some(window) = opened.model.config.window.filter(|window| args.text.ctx > window.n_tok) {
        let what = format!("some layers of this model see the latest {n} tokens only; give {n} at most", n = window.n_tok);
        return Err(Error::usage("--ctx", what));
    }
    if opened.model.config.soft_caps.is_some_and(|caps| caps.scores > 0.0) {
        log::warn!("this model caps its attention scores: the attention measured here is that of scores without the cap");
    }
    let tokens = opened.tokenizer()?.encode(&text, true, false)?;
    let windows: Vec<&[u32]> = windows(&tokens, args.text.ctx, args.text.ctx).take(args.windows).collect();
    if windows.is_empty() {
        return Err(args.text.too_short(tokens.len()));
    }
    drop(opened);
    let plan = |opened: &mut Opened| {
        let (kv, text_bytes) = (opened.layout.kv, text_bytes(&opened.model.file, &text)?);
        opened.plan.private("text", text_bytes);
        opened.plan.private("rows", rows_bytes::<Row>(kv.n_heads(), &args.plot));
        opened.plan.private("correlation", correlation::bytes(kv.n_heads(), kv.max_head_dim(), args.text.ctx));
        Ok(())
    };
    let opened = budget_opened(&args.text.model, Budget::Full, OFF, args.text.ctx, args.text.ctx, 1, plan)?;
    if args.text.model.only_plan {
        return Ok(Done::Planned(opened.into()));
    }
    let mut session = Session::new(opened.model, &opened.layout)?;
    check_tokens(&session, &tokens)?;
    interrupt::defer();
    let bar = progress::tokens("full cache".into(), windows.len() * args.text.ctx);
    let measured = correlation::measure(&mut session, &windows, args.queries.into(), |done| {
        bar.inc(done as u64);
        !interrupt::raised()
    })?;
    bar.finish_and_clear();
    let Some(measured) = measured else { return Ok(super::interrupted()) };
    let shape = *session.cache().shape();
    let row = |((layer, head), c): ((AttnLayer, Head), &Coefficients)| Row {
        layer: layer.0,
        head: head.0,
        n_tokens: windows.len() * args.text.ctx,
        spearman: c.spearman,
        pearson: c.pearson,
    };
    let rows: Vec<Row> = shape.all_heads().zip(&measured).map(row).collect();
    let n_head_kv = shape.max_head_kv();
    args.output.answer(&rows, |rows| table(rows, n_head_kv))?;
    args.plot.write(|| picture(&rows, n_head_kv))?;
    Ok(Done::Exit(0))
}

/// A line for each layer, a column for each head, and what they come to.
fn table(rows: &[Row], n_head_kv: usize) -> String {
    let heads: String = (0..n_head_kv).map(|head| format!(" head {head} |")).collect();
    let mut out = format!("| layer |{heads}\n|---|{}", "---|".repeat(n_head_kv));
    for layer in rows.chunk_by(|a, b| a.layer == b.layer) {
        out.push_str(&format!("\n| {} |", layer[0].layer));
        layer.iter().for_each(|r| out.push_str(&format!(" {:+.2} |", r.spearman)));
    }
    let n = rows.len();
    let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / n as f64;
    let negative = rows.iter().filter(|r| r.spearman < 0.0).count();
    let (spearman, pearson) = (mean(|r| r.spearman), mean(|r| r.pearson));
    out + &format!("\n\nSpearman above; mean {spearman:+.3}, negative in {negative} of {n} heads; mean Pearson {pearson:+.3}")
}

/// Green where low norms receive the attention, red where high ones do.
#[cfg(feature = "plot")]
fn picture(rows: &[Row], n_head_kv: usize) -> Result<String> {
    use crate::eval::plot::{Cell, Map, maps};
    let map = |title: &str, of: fn(&Row) -> f64| Map {
        title: title.to_owned(),
        columns: (0..n_head_kv).map(|head| head.to_string()).collect(),
        rows: rows.chunk_by(|a, b| a.layer == b.layer).map(|layer| layer[0].layer.to_string()).collect(),
        cells: rows
            .chunk_by(|a, b| a.layer == b.layer)
            .flat_map(|layer| (0..n_head_kv).map(|head| layer.get(head)))
            .map(|row| row.map(|r| Cell { colour: (1.0 - of(r)) / 2.0, label: format!("{:+.2}", of(r)) }))
            .collect(),
    };
    let both = [map("Spearman, norm and attention", |r| r.spearman), map("Pearson, norm and attention", |r| r.pearson)];
    maps(&both, "KV head", "layer")
}

#[cfg(not(feature = "plot"))]
fn picture(_: &[Row], _: usize) -> Result<String> {
    unreachable!("--plot was refused at the start")
}
