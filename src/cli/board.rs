//! `lowkey plan --board`: would the model run on that board, and with how much context? Owns the boards and what is assumed
//! of them. Weights count as resident here: a board that must read them again for each token is too slow to be of use.
//! Refuses to promise: RAM is the maker's figure, what a system leaves of it is an assumption that the answer states.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::kv::{KvParams, KvType};
use crate::mem::available::available_bytes;
use crate::model::forward::Model;
use crate::session::SessionParams;
use crate::units::Bytes;

/// RAM by the maker's data sheets; `reserved` is assumed: the GPU's share, the kernel, and a 64-bit Raspberry Pi OS Lite
/// without a desktop. `free -m` on the board ("available") is the truth.
pub struct Board {
    pub name: &'static str,
    what: &'static str,
    ram_mib: u64,
    reserved_mib: u64,
    cores: usize,
    reads_packed: bool,
}

pub const BOARDS: [Board; 3] = [
    Board { name: "pi-zero-2w", what: "Raspberry Pi Zero 2 W", ram_mib: 512, reserved_mib: 192, cores: 4, reads_packed: false },
    Board { name: "pi-4-2g", what: "Raspberry Pi 4, 2 GB", ram_mib: 2048, reserved_mib: 448, cores: 4, reads_packed: false },
    Board { name: "pi-5-8g", what: "Raspberry Pi 5, 8 GB", ram_mib: 8192, reserved_mib: 512, cores: 4, reads_packed: true },
];

impl Board {
    pub fn usable_bytes(&self) -> u64 {
        (self.ram_mib - self.reserved_mib) << 20
    }
}

/// What there is room in.
struct Room {
    name: &'static str,
    usable_bytes: u64,
    /// `None` for this machine: its own number.
    cores: Option<usize>,
    reads_packed: Option<bool>,
    from: String,
}

/// The boards that a `--board` names: one of `BOARDS`, `all` of them, or `here`.
fn rooms(name: &str) -> Result<Vec<Room>> {
    if name == "here" {
        let none = || Error::usage("--board", "this system does not say how much memory is available; name a board");
        let usable_bytes = available_bytes().ok_or_else(none)?;
        let from = "this machine: what it says is available now".to_owned();
        return Ok(vec![Room { name: "here", usable_bytes, cores: None, reads_packed: None, from }]);
    }
    let named: Vec<Room> = BOARDS.iter().filter(|board| name == "all" || board.name == name).map(Room::of).collect();
    if named.is_empty() {
        let names = BOARDS.map(|board| board.name).join(", ");
        return Err(Error::usage("--board", format!("'{name}' is no board that is known; give {names}, all, or here")));
    }
    Ok(named)
}

impl Room {
    fn of(board: &Board) -> Room {
        let (ram, reserved) = (Bytes(board.ram_mib << 20), Bytes(board.reserved_mib << 20));
        let from =
            format!("{}: {ram}, of which {reserved} are assumed to go to GPU, kernel and a system without desktop", board.what);
        let (cores, reads_packed) = (Some(board.cores), Some(board.reads_packed));
        Room { name: board.name, usable_bytes: board.usable_bytes(), cores, reads_packed, from }
    }
}

#[derive(Serialize)]
pub struct Row {
    board: &'static str,
    usable_bytes: u64,
    /// Where `usable_bytes` comes from.
    assumption: String,
    /// Mapped files that are read there.
    file_bytes: u64,
    /// With the `--kv-budget` that was given.
    private_bytes: u64,
    /// The rest, where they fit: what may be added to `--kv-budget`, roughly.
    left_bytes: u64,
    pub fits: bool,
    /// Whether it would at least start, reading weights from the disk again and again.
    starts: bool,
    /// The longest context in each type of keys and values.
    contexts: Vec<Context>,
}

#[derive(Serialize)]
struct Context {
    kv_type: &'static str,
    /// The most that `--kv-budget` may be with weights and all else resident.
    kv_budget_bytes: u64,
    n_slot: usize,
    /// Whether that is all that the model sees: its trained context, or the window of all its layers.
    whole: bool,
}

/// How the model with these parameters fits on the boards that `name` stands for. `extra_bytes`: what commands add to a
/// session's plan.
pub fn rows(name: &str, model: &Model, params: &SessionParams, extra_bytes: u64) -> Result<Vec<Row>> {
    rooms(name)?.into_iter().map(|room| row(room, model, params, extra_bytes)).collect()
}

fn row(room: Room, model: &Model, params: &SessionParams, extra_bytes: u64) -> Result<Row> {
    let params = SessionParams { n_threads: params.n_threads.or(room.cores), ..params.clone() };
    let private = |params: &SessionParams| -> Result<(u64, usize)> {
        let layout = params.layout(model)?;
        let mut plan = Default::default();
        layout.plan(model, &mut plan);
        Ok((plan.private_bytes() + extra_bytes, layout.n_slot))
    };
    let here = || params.layout(model).is_ok_and(|layout| layout.kernels.reads_packed());
    let packed = model.pack.as_ref().filter(|_| room.reads_packed.unwrap_or_else(here));
    // Of a table that is looked up a token needs a row.
    let looked_up = if params.mlock { 0 } else { model.weights.table_bytes };
    let file_bytes = model.file.file_bytes().saturating_sub(looked_up) + packed.map_or(0, |pack| pack.file_bytes());
    let (private_bytes, _) = private(&params)?;
    let unlimited = KvParams { budget_bytes: u64::MAX, ..params.kv };
    let most = SessionParams { kv: unlimited, ..params.clone() }.shape(model)?.most_slots();
    let usable = room.usable_bytes;
    let mut contexts = Vec::new();
    for ty in KvType::ALL {
        let mut p = SessionParams { k_type: Some(ty), v_type: Some(ty), ..params.clone() };
        p.kv.budget_bytes = usable.saturating_sub(file_bytes);
        // Scratch grows with the slots: what is too much goes off the budget, and both get smaller. A budget that does not
        // hold even the sinks is an error of the layout: then there is no context at all.
        let found = loop {
            match private(&p) {
                Ok((bytes, n_slot)) if file_bytes + bytes <= usable => break Some((p.kv.budget_bytes, n_slot)),
                Ok((bytes, _)) if file_bytes + bytes - usable <= p.kv.budget_bytes => {
                    p.kv.budget_bytes -= file_bytes + bytes - usable
                }
                _ => break None,
            }
        };
        let (budget, n_slot) = found.unwrap_or((0, 0));
        p.kv.budget_bytes = budget;
        let arena = |p: &SessionParams| p.layout(model).map(|layout| layout.kv.arena_bytes(layout.n_slot) as u64);
        let kv_budget_bytes = if n_slot > 0 { arena(&p)? } else { 0 };
        contexts.push(Context { kv_type: ty.name(), kv_budget_bytes, n_slot, whole: n_slot == most });
    }
    Ok(Row {
        board: room.name,
        usable_bytes: usable,
        assumption: room.from,
        file_bytes,
        private_bytes,
        left_bytes: usable.saturating_sub(file_bytes + private_bytes),
        fits: file_bytes + private_bytes <= usable,
        starts: private_bytes <= usable,
        contexts,
    })
}

impl Row {
    pub fn text(&self) -> String {
        let mut out = format!("{}: {} usable ({})\n", self.board, Bytes(self.usable_bytes), self.assumption);
        let sum = format!("{} of files and {} private", Bytes(self.file_bytes), Bytes(self.private_bytes));
        out += &match (self.fits, self.starts) {
            (true, _) => format!("  {sum}: fits, {} are left\n", Bytes(self.left_bytes)),
            (false, true) => {
                format!("  {sum}: does not fit; it would start and read weights from the disk again for every token\n")
            }
            (false, false) => format!("  {sum}: does not fit, and would not start\n"),
        };
        for c in &self.contexts {
            out += &match c.n_slot {
                0 => format!("  {:<6} no room for any context\n", c.kv_type),
                n => format!(
                    "  {:<6} up to {n} tokens{}, with --kv-type {} --kv-budget {}\n",
                    c.kv_type,
                    if c.whole { ", all that the model sees" } else { "" },
                    c.kv_type,
                    c.kv_budget_bytes
                ),
            };
        }
        out.trim_end().to_owned()
    }
}
