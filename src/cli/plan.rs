//! `lowkey plan`: every byte a model would use, before it uses any.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::error::Result;
use crate::mem::plan::{Kind, Plan};
use crate::units::Bytes;

use super::bench::{self, BenchArgs};
use super::board;
#[cfg(feature = "chat")]
use super::chat::{self, ChatArgs};
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
    /// Nothing but the line for a systemd unit that holds the server to its plan
    #[arg(long)]
    unit: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
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
    /// Of files of its own, which `--past` makes.
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
    let (model, json, board, unit) = match &mut of {
        Of::Run(args) => (&mut args.model, args.json, None, false),
        Of::Eval(args) => {
            let (model, json) = args.model_and_json();
            (model, json, None, false)
        }
        Of::Bench(args) => (&mut args.model, args.output.is_json(), None, false),
        #[cfg(feature = "chat")]
        Of::Chat(args) => (&mut args.chat.model, args.json, None, false),
        #[cfg(feature = "serve")]
        Of::Serve(args) => (&mut args.serve.model, args.json, args.board.take(), args.unit),
    };
    let board = board.or(args.board);
    model.only_plan = true;
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
    if unit {
        // Pages of the file count towards the group too: with less the weights are read from the disk again and again.
        let most = opened.plan.private_bytes() + opened.plan.file_bytes() + GROUP_BYTES;
        super::answer(&format!("MemoryMax={most}\nMemorySwapMax=0"))?;
        return Ok(0);
    }
    let boards = match &board {
        Some(name) => board::rows(name, &opened.model, &opened.params, opened.extra_bytes())?,
        None => Vec::new(),
    };
    show(&opened, &boards, json)
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
        super::answer(&format!("\n{kept}; {} threads, kernels {}", layout.n_threads, layout.kernels.name()))?;
        if let Some((past, _)) = &layout.past {
            super::answer(&super::past::plan_line(past))?;
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
