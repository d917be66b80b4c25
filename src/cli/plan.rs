//! `lowkey plan`: every byte a model would use, before it uses any.

use std::ffi::OsString;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::error::Result;
use crate::mem::plan::{Kind, Plan};
use crate::units::Bytes;

use super::bench::{self, BenchArgs};
use super::board;
#[cfg(feature = "chat")]
use super::chat::{self, ChatArgs};
use super::choice::threads;
use super::eval::{self, EvalArgs};
use super::run::{self, RunArgs};
#[cfg(feature = "serve")]
use super::serve::{self, ServeArgs};
use super::setup::{Done, Opened};

/// What a group of processes is charged beside a plan: pages of the program's own file, and what the kernel keeps for it (page
/// tables, sockets).
const GROUP_BYTES: u64 = 16 << 20;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct PlanArgs {
    /// What is planned, with all of its flags [default: run]
    #[command(subcommand)]
    of: Option<Of>,
    #[command(flatten)]
    run: RunArgs,
    /// Whether it fits on a board too, and with how much context: pi-zero-2w, pi-4-2g, pi-5-8g, all, or here
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
}

#[derive(Subcommand)]
enum Of {
    /// What `lowkey run` takes
    Run(Box<RunArgs>),
    /// What `lowkey eval` takes: the most of all its budgets and policies
    Eval(EvalArgs),
    /// What `lowkey bench` takes
    Bench(Box<BenchArgs>),
    /// What `lowkey chat` takes
    #[cfg(feature = "chat")]
    Chat(Box<ChatPlanArgs>),
    /// What `lowkey serve` takes; `lowkey plan --serve` is the same
    #[cfg(feature = "serve")]
    Serve(Box<ServePlanArgs>),
}

/// A chat's plan.
#[cfg(feature = "chat")]
#[derive(Args)]
struct ChatPlanArgs {
    #[command(flatten)]
    chat: ChatArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A server's plan.
#[cfg(feature = "serve")]
#[derive(Args)]
struct ServePlanArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Whether it fits on a board too
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
    /// How to print it: the plan as text or JSON, or nothing but the limit that holds the server to it, for a systemd unit or for a
    /// container of Kubernetes
    #[arg(short, long, value_enum, value_name = "FORM", default_value = "text", conflicts_with_all = ["unit", "json"])]
    output: Form,
    /// The same as -o unit
    #[arg(long, conflicts_with = "json")]
    unit: bool,
    /// The same as -o json
    #[arg(long)]
    json: bool,
}

#[cfg(feature = "serve")]
impl ServePlanArgs {
    fn form(&self) -> Form {
        match (self.unit, self.json) {
            (true, _) => Form::Unit,
            (_, true) => Form::Json,
            _ => self.output,
        }
    }
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
    Unit,
    K8s,
}

impl Form {
    fn of(is_json: bool) -> Form {
        if is_json { Form::Json } else { Form::Text }
    }

    /// The limit of a group of processes, in bytes, as another program reads it; none if the plan itself is wanted.
    fn limit(self, n_bytes: u64) -> Option<String> {
        match self {
            Form::Text | Form::Json => None,
            Form::Unit => Some(format!("MemoryMax={n_bytes}\nMemorySwapMax=0")),
            // A request as large as the limit, so that a node is never promised to more pods than it holds.
            Form::K8s => {
                let n_mib = n_bytes.div_ceil(1 << 20);
                Some(format!("resources:\n  requests:\n    memory: {n_mib}Mi\n  limits:\n    memory: {n_mib}Mi"))
            }
        }
    }
}

/// `lowkey plan --serve …` is `lowkey plan serve …`.
pub fn as_subcommand(mut args: Vec<OsString>) -> Vec<OsString> {
    let is = |at: usize, name: &str| args.get(at).is_some_and(|arg| arg == name);
    if is(1, "plan")
        && let Some(at) = (2..args.len()).find(|&at| is(at, "--serve"))
    {
        args.remove(at);
        args.insert(2, "serve".into());
    }
    args
}

#[derive(Serialize)]
struct Answer<'a> {
    regions: Vec<Region<'a>>,
    private_bytes: u64,
    file_bytes: u64,
    /// Of files that it may write: those of `--past`, and sessions of a server.
    disk_bytes: u64,
    kv: Kv,
    /// For each board that was asked for; empty without `--board`.
    boards: &'a [board::Row],
    /// Into `--memory`, and on every board that was asked for.
    fits: bool,
}

#[derive(Serialize)]
struct Region<'a> {
    name: &'a str,
    bytes: u64,
    kind: &'static str,
}

#[derive(Serialize)]
struct Kv {
    n_slot: usize,
    bytes_per_slot: usize,
    arena_bytes: usize,
    budget_bytes: u64,
    policy: &'static str,
    k_type: &'static str,
    v_type: &'static str,
}

pub fn run(args: PlanArgs) -> Result<u8> {
    let mut of = args.of.unwrap_or(Of::Run(Box::new(args.run)));
    let (model, form, board) = match &mut of {
        Of::Run(args) => (&mut args.model, Form::of(args.json), None),
        Of::Eval(args) => {
            let (model, json) = args.model_and_json();
            (model, Form::of(json), None)
        }
        Of::Bench(args) => (&mut args.model, Form::of(args.output.is_json()), None),
        #[cfg(feature = "chat")]
        Of::Chat(args) => (&mut args.chat.model, Form::of(args.json), None),
        #[cfg(feature = "serve")]
        Of::Serve(args) => {
            let form = args.form();
            (&mut args.serve.model, form, args.board.take())
        }
    };
    let board = board.or(args.board);
    model.only_plan = true;
    let has_text = !matches!(of, Of::Bench(_));
    let done = match of {
        Of::Run(args) => run::run(*args)?,
        Of::Eval(args) => eval::run(args)?,
        Of::Bench(args) => bench::run(*args)?,
        #[cfg(feature = "chat")]
        Of::Chat(args) => chat::run(args.chat)?,
        #[cfg(feature = "serve")]
        Of::Serve(args) => serve::run(args.serve)?,
    };
    let Done::Planned(opened) = done else { unreachable!("nothing but the plan was wanted") };
    if has_text {
        // A plan is of what would run: a file whose vocabulary is refused has none.
        opened.tokenizer()?;
    }
    // Pages of the file count towards the group too: with less the weights are read from the disk again and again.
    if let Some(limit) = form.limit(opened.plan.private_bytes() + opened.plan.file_bytes() + GROUP_BYTES) {
        return super::answer(&limit).map(|()| 0);
    }
    let boards = match &board {
        Some(name) => board::rows(name, &opened.model, &opened.params, opened.extra_bytes())?,
        None => Vec::new(),
    };
    opened.warn_of_shortage();
    show(&opened, &boards, form == Form::Json)
}

/// The answer, and whether it all fits as the exit code.
fn show(opened: &Opened, boards: &[board::Row], json: bool) -> Result<u8> {
    let (plan, layout) = (&opened.plan, &opened.layout);
    let limit = opened.params.memory_bytes;
    let within = limit.is_none_or(|limit| plan.private_bytes() <= limit);
    let fits = within && boards.iter().all(|row| row.fits);
    if json {
        let regions = plan.regions.iter().map(|r| Region { name: r.name, bytes: r.bytes, kind: kind(r.kind) }).collect();
        let kv = Kv {
            n_slot: layout.n_slot,
            bytes_per_slot: layout.kv.bytes_per_slot(),
            arena_bytes: layout.kv.arena_bytes(layout.n_slot),
            budget_bytes: opened.params.kv.budget_bytes,
            policy: layout.rule.policy.name(),
            k_type: layout.kv.k_type.name(),
            v_type: layout.kv.v_type.name(),
        };
        let (private_bytes, file_bytes) = (plan.private_bytes(), plan.file_bytes());
        let disk_bytes = plan.disk_bytes();
        super::answer_json(&Answer { regions, private_bytes, file_bytes, disk_bytes, kv, boards, fits })?;
    } else {
        super::answer(&table(plan))?;
        let mut kept =
            format!("{} tokens of {} bytes ({}) kept", layout.n_slot, layout.kv.bytes_per_slot(), layout.kv.type_names());
        kept += &format!(", of a context of {}; who goes: {}", layout.kv.n_ctx, layout.rule.policy.name());
        if let Some(window) = layout.kv.window {
            let n_local = window.n_local(layout.kv.n_layer);
            kept += &format!(", the latest {} in {n_local} layers with a window", window.n_tok.min(layout.n_slot));
        }
        super::answer(&format!("\n{kept}; {}, kernels {}", threads(layout.n_threads), layout.kernels.name()))?;
        if let Some((past, _)) = &layout.past {
            let saved = plan.regions.iter().find(|region| region.name == super::past::SAVED);
            let session_bytes = saved.map(|region| region.bytes - past.taken_bytes(past.n_tile));
            super::answer(&super::past::plan_line(past, session_bytes))?;
        }
        if let Some(limit) = limit {
            super::answer(&format!("--memory {}: {}", Bytes(limit), if within { "fits" } else { "does not fit" }))?;
        }
        for row in boards {
            super::answer(&format!("\n{}", row.text()))?;
        }
    }
    Ok(if fits { 0 } else { 1 })
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Private => "private",
        Kind::File => "file",
        Kind::Lookup => "lookup",
        Kind::Disk => "disk",
    }
}

fn table(plan: &Plan) -> String {
    let line = |r: &crate::mem::plan::Region| format!("{:<24} {:>12} {:>11}  {}", r.name, r.bytes, Bytes(r.bytes), kind(r.kind));
    let mut lines: Vec<String> = plan.regions.iter().map(line).collect();
    for (name, bytes) in [("private memory in all", plan.private_bytes()), ("file pages, reclaimable", plan.file_bytes())] {
        lines.push(format!("{name:<24} {bytes:>12} {:>11}", Bytes(bytes)));
    }
    lines.join("\n")
}
