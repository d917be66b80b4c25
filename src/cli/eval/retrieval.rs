//! `lowkey eval passkey`, `needle` and `ruler`: how often the model still finds, under a budget, what stood somewhere in a long prompt.
//! The prompts are the same for every budget and policy. Nothing is printed before all is done.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;

use super::plot::PlotArgs;
use super::{Budget, Keep, OFF, budget_opened, larger, open_plain, policies, rows_bytes};
use crate::cli::args::{Evict, ModelArgs, OutputArgs};
use crate::cli::setup::{Done, Opened, check_tokens};
use crate::cli::text::{Ending, read_text, text_bytes};
use crate::cli::{interrupt, progress};
use crate::error::{Error, Result};
use crate::eval::needle::{self, Haystack};
use crate::eval::passkey;
use crate::eval::retrieval::{ANSWER_TOKENS, Encoder, Mode, Prompt, ask, depth_of, rng, wilson};
use crate::eval::ruler::{self, Task};
use crate::kv::types::both_names;
use crate::session::Session;
use crate::text::ChatTemplate;
use crate::units::Bytes;

#[derive(Args)]
pub struct PasskeyArgs {
    #[command(flatten)]
    pub common: RetrievalArgs,
}

#[derive(Args)]
pub struct NeedleArgs {
    /// The prose to hide facts in; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    pub common: RetrievalArgs,
}

#[derive(Args)]
pub struct RulerArgs {
    /// Tasks: single, multi-key, multi-value, tracking
    #[arg(long, value_name = "TASK,…", value_delimiter = ',', default_value = "single,multi-key,multi-value,tracking")]
    tasks: Vec<Task>,
    #[command(flatten)]
    pub common: RetrievalArgs,
}

#[derive(Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of a prompt: as many as fill up to this
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1024")]
    lengths: Vec<usize>,
    /// Depths to hide it at, evenly from the beginning to just before the question
    #[arg(long, value_name = "N", default_value_t = 10)]
    depths: usize,
    /// Prompts for each length and depth
    #[arg(long, value_name = "N", default_value_t = 5)]
    samples: usize,
    /// Budgets as shares of the bytes of a full f16 cache of the length, such as 100%,50%,25%; instead of --kv-budget
    #[arg(long, value_name = "P%", value_delimiter = ',')]
    keep: Vec<Keep>,
    /// Policies to compare [default: --evict]
    #[arg(long, value_name = "POLICY", value_delimiter = ',')]
    policies: Vec<Evict>,
    /// stream: the budget holds from the first token on. once: the whole prompt goes in first, then entries are evicted once
    #[arg(long, value_enum, default_value = "stream")]
    mode: HowEvicted,
    /// With --mode once, leave the first N layers whole, beside what --keep is a share of (Devoto et al. left 2)
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip_layers: usize,
    /// Seed of what is hidden and where texts begin
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Put the prompt into the model's own chat template, as the user's turn
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    plot: PlotArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl RetrievalArgs {
    pub fn model_and_json(&mut self) -> (&mut ModelArgs, bool) {
        (&mut self.model, self.output.is_json())
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum HowEvicted {
    Stream,
    Once,
}

impl HowEvicted {
    fn name(self) -> &'static str {
        if self == HowEvicted::Once { "once" } else { "stream" }
    }
}

#[derive(Serialize)]
struct Row {
    #[serde(skip_serializing_if = "str::is_empty")]
    task: &'static str,
    length: usize,
    depth: f64,
    keep: Option<f64>,
    mode: &'static str,
    policy: &'static str,
    k_type: &'static str,
    v_type: &'static str,
    n_slot: usize,
    /// Layers that keep all.
    #[serde(skip_serializing_if = "is_none")]
    skip_layers: usize,
    /// Of an arena with as many slots, whatever `--mode once` needed on the way, and of what layers that keep all hold beyond them.
    arena_bytes: usize,
    n: usize,
    correct: usize,
}

fn is_none(n: &usize) -> bool {
    *n == 0
}

/// One prompt among the many.
struct Wanted {
    /// Number of the task, where there are several.
    task: usize,
    length: usize,
    depth: f64,
    /// Number of the depth.
    place: usize,
    sample: usize,
}

impl Wanted {
    /// The same draws whatever the budget, the policy and the other lengths, depths and samples.
    fn rng(&self, seed: u64) -> fastrand::Rng {
        rng(seed, self.length, self.place, self.sample)
    }
}

pub fn passkey(args: PasskeyArgs) -> Result<Done> {
    let args = &args.common;
    measure(args, "", &[""], |encoder, w| passkey::prompt(encoder, w.length, w.depth, &mut w.rng(args.seed)))
}

pub fn needle(args: NeedleArgs) -> Result<Done> {
    let text = read_text(None, Some(&args.file), Ending::Kept)?;
    let (args, hay) = (&args.common, Haystack::new(&text));
    measure(args, &text, &[""], |encoder, w| {
        needle::prompt(encoder, &hay, w.length, w.depth, w.place + w.sample, &mut w.rng(args.seed))
    })
}

pub fn ruler(args: RulerArgs) -> Result<Done> {
    let names: Vec<&str> = args.tasks.iter().map(|task| task.name()).collect();
    let (args, tasks) = (&args.common, &args.tasks);
    measure(args, "", &names, |encoder, w| ruler::prompt(encoder, tasks[w.task], w.length, w.depth, &mut w.rng(args.seed)))
}

/// Prompts at most of one length: weeks of work.
const MAX_PROMPTS: usize = 1_000_000;

/// Asks all prompts under all budgets and policies. `text` is what needles are hidden in, `tasks` are names of kinds of
/// prompts, and `prompts` makes one prompt.
fn measure(
    args: &RetrievalArgs,
    text: &str,
    tasks: &[&'static str],
    prompts: impl Fn(&Encoder, &Wanted) -> Result<Prompt>,
) -> Result<Done> {
    check(args)?;
    let opened = open_plain(&args.model, 1)?;
    opened.warn();
    check_model(args, &opened)?;
    let template = if args.chat { Some(ChatTemplate::from_gguf(&opened.model.file)?) } else { None };
    let tokenizer = opened.tokenizer()?;
    let encoder = Encoder { tokenizer: &tokenizer, template };
    // One prompt of each length, so that one that cannot be made is refused now. The longest is planned for: others like it
    // differ by a few words, and trying lengths takes two at a time.
    let mut bytes = 0;
    for (task, &length) in (0..tasks.len()).flat_map(|task| args.lengths.iter().map(move |length| (task, length))) {
        let wanted = Wanted { task, length, depth: depth_of(0, args.depths), place: 0, sample: 0 };
        let text = tokenizer.decode(&prompts(&encoder, &wanted)?.tokens);
        bytes = text_bytes(&opened.model.file, &text)?.max(bytes);
    }
    let text_bytes = if text.is_empty() { 0 } else { text.len() + Haystack::bytes(text) };
    drop(opened);
    let runs = runs(args, tasks.len());
    let n_rows = runs.len().saturating_mul(args.depths);
    let plan = |opened: &mut Opened| {
        opened.plan.private("text", text_bytes);
        opened.plan.private("rows", rows_bytes::<Row>(n_rows, &args.plot));
        opened.plan.private("prompt", 4 * bytes);
        Ok(())
    };

    let mut most: Option<Opened> = None;
    for run in &runs {
        most = most.into_iter().chain([run.open(args, &plan)?.0]).reduce(larger);
    }
    if let Some(most) = most.filter(|_| args.model.only_plan) {
        return Ok(Done::Planned(most.into()));
    }
    let n_tokens: usize = runs.iter().map(|run| run.length * args.depths * args.samples).sum();
    let bar = progress::tokens(String::new(), n_tokens);
    interrupt::defer();
    let mut rows = Vec::new();
    for run in runs {
        bar.set_message(run.name(tasks[run.task]));
        let (opened, mode, n_slot) = run.open(args, &plan)?;
        let mut session = Session::new(opened.model, &opened.layout)?;
        for place in 0..args.depths {
            let depth = depth_of(place, args.depths);
            let (mut n, mut correct) = (0, 0);
            for sample in 0..args.samples {
                let wanted = Wanted { task: run.task, length: run.length, depth, place, sample };
                let prompt = prompts(&encoder, &wanted)?;
                check_tokens(&session, &prompt.tokens)?;
                let found = ask(&mut session, &tokenizer, &prompt, mode, |done| told(&bar, done))?;
                let Some(found) = found else {
                    bar.finish_and_clear();
                    return Ok(super::interrupted());
                };
                // A prompt that is shorter than its length by a unit of filler is done all the same.
                bar.inc((run.length - prompt.tokens.len()) as u64);
                (n, correct) = (n + prompt.answer.n(), correct + found);
            }
            log::info!("{}, {:.0}% deep: {correct} of {n}", run.name(tasks[run.task]), depth * 100.0);
            rows.push(run.row(args, tasks[run.task], &session, n_slot, depth, n, correct));
        }
    }
    bar.finish_and_clear();
    args.output.answer(&rows, table)?;
    args.plot.write(|| picture(&rows, args.mode))?;
    Ok(Done::Exit(0))
}

fn told(bar: &ProgressBar, done: usize) -> bool {
    bar.inc(done as u64);
    !interrupt::raised()
}

/// What the model must have for these prompts.
fn check_model(args: &RetrievalArgs, opened: &Opened) -> Result<()> {
    let n_layer = opened.model.config.n_attn_layer();
    if args.skip_layers >= n_layer {
        let what = format!("of {n_layer} layers with attention all would be left whole; give {} at most", n_layer - 1);
        return Err(Error::usage("--skip-layers", what));
    }
    let n_ctx = opened.model.config.n_ctx;
    let longest = args.lengths.iter().copied().max().unwrap_or(0);
    if longest.saturating_add(ANSWER_TOKENS) > n_ctx {
        let what = format!("prompts of {longest} tokens and an answer, the model was trained for {n_ctx}");
        return Err(Error::usage("--lengths", format!("{what}; give at most {}", n_ctx.saturating_sub(ANSWER_TOKENS))));
    }
    Ok(())
}

fn check(args: &RetrievalArgs) -> Result<()> {
    args.plot.check()?;
    let n = args.depths.saturating_mul(args.samples);
    for (flag, zero) in [("--depths", args.depths == 0), ("--samples", args.samples == 0)] {
        if zero {
            return Err(Error::usage(flag, "0 prompts measure nothing; give 1 at least"));
        }
    }
    if n > MAX_PROMPTS {
        return Err(Error::usage("--samples", format!("{n} prompts of a length; give at most {MAX_PROMPTS} with --depths")));
    }
    let off = policies(&args.policies, &args.model).contains(&OFF);
    if args.mode == HowEvicted::Stream && args.skip_layers > 0 {
        let what = "a stream has no room for layers that keep all; give --mode once with it";
        return Err(Error::usage("--skip-layers", what));
    }
    if args.mode == HowEvicted::Once && off {
        return Err(Error::usage("--policies", "off evicts nothing, and --mode once has something to evict; leave it out"));
    }
    Ok(())
}

/// One session's work: a length, a budget and a policy.
struct Run {
    task: usize,
    length: usize,
    keep: Option<Keep>,
    policy: Evict,
    /// Nothing is evicted, so that the policy does not matter: one run stands for all.
    full: bool,
}

/// A full cache comes once for each length; other budgets for each policy.
fn runs(args: &RetrievalArgs, n_tasks: usize) -> Vec<Run> {
    let budgets: Vec<Option<Keep>> =
        if args.keep.is_empty() { vec![None] } else { args.keep.iter().copied().map(Some).collect() };
    let exact = args.model.session.allows_f16();
    let mut runs = Vec::new();
    let lengths = || args.lengths.iter().copied();
    for (task, length) in (0..n_tasks).flat_map(|task| lengths().map(move |length| (task, length))) {
        for &keep in &budgets {
            if exact && keep == Some(Keep(100.0)) {
                runs.push(Run { task, length, keep, policy: OFF, full: true });
                continue;
            }
            let policies = policies(&args.policies, &args.model).iter();
            runs.extend(policies.map(|&policy| Run { task, length, keep, policy, full: false }));
        }
    }
    runs
}

impl Run {
    fn name(&self, task: &str) -> String {
        let keep = self.keep.map_or(String::new(), |keep| format!(" {}%", keep.0));
        format!("{task} {}{keep}, {} tokens", self.policy.name(), self.length).trim_start().to_owned()
    }

    /// The model with its plan, how entries are to be evicted, and how many are kept.
    fn open(&self, args: &RetrievalArgs, plan: &impl Fn(&mut Opened) -> Result<()>) -> Result<(Opened, Mode, usize)> {
        let whole = self.length + ANSWER_TOKENS;
        let budget = match self.keep {
            None => Budget::Bytes(args.model.session.kv_budget.0),
            Some(keep) => Budget::Share(keep.0),
        };
        if self.full {
            let opened = budget_opened(&args.model, Budget::Full, self.policy, whole, whole, 1, plan)?;
            return Ok((opened, Mode::Stream, self.length));
        }
        if args.mode == HowEvicted::Stream {
            let opened = budget_opened(&args.model, budget, self.policy, self.length, whole, 1, plan)?;
            let n_slot = opened.layout.n_slot;
            if self.policy == OFF && n_slot < whole {
                let what = format!("off may not evict, and {n_slot} slots do not hold {} tokens and an answer", self.length);
                return Err(Error::usage("--policies", format!("{what}; leave it out, or give a larger budget")));
            }
            return Ok((opened, Mode::Stream, n_slot));
        }
        // The budget says how many entries are kept, and in which types; the arena holds the whole prompt until then, and the
        // answer. So the first plan is asked for its layout, and only the second is checked and taken.
        let mut model = args.model.clone();
        model.only_plan = true;
        let kept = budget_opened(&model, budget, self.policy, self.length, whole, 1, plan)?.layout;
        model.only_plan = args.model.only_plan;
        (model.session.k_type, model.session.v_type) = (Some(kept.kv.k_type), Some(kept.kv.v_type));
        let opened = budget_opened(&model, Budget::Whole, self.policy, whole, whole, 1, plan)?;
        Ok((opened, Mode::Once { n_keep: kept.n_slot, n_whole: args.skip_layers, rule: kept.rule }, kept.n_slot))
    }

    fn row(
        &self,
        args: &RetrievalArgs,
        task: &'static str,
        session: &Session,
        n_slot: usize,
        depth: f64,
        n: usize,
        correct: usize,
    ) -> Row {
        let shape = session.cache().shape();
        Row {
            task,
            length: self.length,
            depth,
            keep: self.keep.map(|keep| keep.0 / 100.0),
            mode: args.mode.name(),
            policy: session.cache().policy().name(),
            k_type: shape.k_type.name(),
            v_type: shape.v_type.name(),
            n_slot,
            skip_layers: args.skip_layers,
            arena_bytes: shape.arena_bytes(n_slot) + shape.bytes_beyond(n_slot, self.length, args.skip_layers),
            n,
            correct,
        }
    }
}

/// A line for each run: rows of its depths come one after the other.
fn table(rows: &[Row]) -> String {
    let per_run = rows.iter().position(|r| r.depth == 1.0).map_or(1, |last| last + 1);
    let depths: Vec<String> = rows.iter().take(per_run).map(|r| format!("{:.0}% deep", r.depth * 100.0)).collect();
    let task = |name: &str| if rows[0].task.is_empty() { String::new() } else { format!("| {name} ") };
    let mut out = format!(
        "{}| keep | keys/values | policy | length | slots | correct | accuracy | 95 % interval | {} |\n|{}",
        task("task"),
        depths.join(" | "),
        "---|".repeat(8 + per_run + usize::from(!rows[0].task.is_empty()))
    );
    for run in rows.chunks(per_run) {
        let (first, n, correct) = (&run[0], run.iter().map(|r| r.n).sum::<usize>(), run.iter().map(|r| r.correct).sum::<usize>());
        let keep = first.keep.map_or(Bytes(first.arena_bytes as u64).to_string(), |k| format!("{}%", k * 100.0));
        let (low, high) = wilson(correct, n);
        let percent = |share: f64| share * 100.0;
        out.push_str(&format!(
            "\n{}| {keep} | {} | {} | {} | {} | {correct}/{n} | {:.1}% | {:.0}-{:.0}% |",
            task(first.task),
            both_names(first.k_type, first.v_type),
            match first.skip_layers {
                0 => first.policy.to_owned(),
                n => format!("{}, {n} layers whole", first.policy),
            },
            first.length,
            first.n_slot,
            percent(correct as f64 / n as f64),
            percent(low),
            percent(high)
        ));
        run.iter().for_each(|r| out.push_str(&format!(" {:.0}% |", percent(r.correct as f64 / r.n as f64))));
    }
    out
}

/// A map of depths and lengths for each budget and policy.
#[cfg(feature = "plot")]
fn picture(rows: &[Row], mode: HowEvicted) -> Result<String> {
    use crate::eval::plot::{Cell, Map, maps};
    use crate::kv::Policy;
    let mut all: Vec<Map> = Vec::new();
    let distinct = |of: &dyn Fn(&Row) -> f64| {
        let mut values: Vec<f64> = rows.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    };
    let (lengths, depths) = (distinct(&|r| r.length as f64), distinct(&|r| r.depth));
    // Rows of one run stand one after the other within a length, so the first of each budget and policy opens its map.
    let same_run = |a: &Row, b: &Row| (a.task, a.keep, a.policy) == (b.task, b.keep, b.policy);
    for (i, row) in rows.iter().enumerate() {
        if rows[..i].iter().any(|before| same_run(before, row)) {
            continue;
        }
        let of_run = || rows.iter().filter(|other| same_run(other, row));
        let share = of_run().map(|r| r.correct).sum::<usize>() as f64 / of_run().map(|r| r.n).sum::<usize>() as f64;
        let name = match row.keep {
            Some(_) if row.policy == Policy::Off.name() => "full cache".to_owned(),
            Some(keep) => format!("{}, {}% of the bytes", row.policy, keep * 100.0),
            None => row.policy.to_owned(),
        };
        let title = format!("{} {name}, {}: {:.0}%", row.task, mode.name(), share * 100.0).trim_start().to_owned();
        let cell = |depth: f64, length: f64| {
            let share =
                of_run().find(|r| (r.depth, r.length as f64) == (depth, length)).map(|r| r.correct as f64 / r.n as f64)?;
            Some(Cell { colour: share, label: format!("{:.0}%", share * 100.0) })
        };
        all.push(Map {
            title,
            columns: lengths.iter().map(f64::to_string).collect(),
            rows: depths.iter().map(|depth| format!("{:.0}%", depth * 100.0)).collect(),
            cells: depths
                .iter()
                .flat_map(|&depth| lengths.iter().map(move |&length| (depth, length)))
                .map(|(d, l)| cell(d, l))
                .collect(),
        });
    }
    maps(&all, "tokens", "depth")
}

#[cfg(not(feature = "plot"))]
fn picture(_: &[Row], _: HowEvicted) -> Result<String> {
    unreachable!("--plot was refused at the start")
}
