//! `lowkey plan`: every byte a model would use, before it uses any.

use clap::Args;
use serde::Serialize;

use crate::error::Result;
use crate::mem::plan::{Kind, Plan};
use crate::text::{Sampler, SamplerParams};
use crate::units::Bytes;

use super::args::ModelArgs;
use super::board;
use super::setup::open;

#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Whether it fits on a board too, and with how much context: pi-zero-2w, pi-4-2g, pi-5-8g, all, or here
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    regions: Vec<Region<'a>>,
    private_bytes: u64,
    file_bytes: u64,
    kv: Kv,
    /// For each board that was asked for; empty without `--board`.
    boards: Vec<board::Row>,
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
    let session = &args.model.session;
    let mut opened = open(&args.model.model, session.params(1))?;
    opened.plan.private("sampler", Sampler::bytes(opened.model.config.n_vocab, SamplerParams::default().repeat_last_n));
    let (plan, layout) = (&opened.plan, &opened.layout);
    let limit = session.memory.map(|m| m.0);
    let within = limit.is_none_or(|limit| plan.private_bytes() <= limit);
    let boards = match &args.board {
        Some(name) => board::rows(name, &opened.model, &opened.params, opened.extra_bytes())?,
        None => Vec::new(),
    };
    let fits = within && boards.iter().all(|row| row.fits);
    if args.json {
        let regions = plan.regions.iter().map(|r| Region { name: r.name, bytes: r.bytes, kind: kind(r.kind) }).collect();
        let kv = Kv {
            n_slot: layout.n_slot,
            bytes_per_slot: layout.kv.bytes_per_slot(),
            arena_bytes: layout.kv.arena_bytes(layout.n_slot),
            budget_bytes: session.kv_budget.0,
            policy: layout.rule.policy.name(),
            k_type: layout.kv.k_type.name(),
            v_type: layout.kv.v_type.name(),
        };
        let (private_bytes, file_bytes) = (plan.private_bytes(), plan.file_bytes());
        super::answer_json(&Answer { regions, private_bytes, file_bytes, kv, boards, fits })?;
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
        if let Some(limit) = limit {
            super::answer(&format!("--memory {}: {}", Bytes(limit), if within { "fits" } else { "does not fit" }))?;
        }
        for row in &boards {
            super::answer(&format!("\n{}", row.text()))?;
        }
    }
    Ok(if fits { 0 } else { 1 })
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Private => "private",
        Kind::File => "file",
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
