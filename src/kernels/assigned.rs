//! Which set does what: for each type of weights a set for one token, one for a few and one for batches; one for attention. All
//! sets give the same bits, so this decides nothing but time. Measures nothing itself: model/choice.rs does, and `Kernels::with`
//! takes the outcome.
//!
//! Buffers are sized for the set that has the features of all the others, `auto`'s own, and serve whatever is assigned.

use std::fmt::Write;

use super::operands::Matrix;
use super::{Kernels, SetName, Table};
use crate::gguf::quant::GgmlType;

/// Tokens of a product at most that are no batch yet: those of streams that decode together, or guesses.
pub const FEW_TOKENS: usize = 4;

/// What a set may be assigned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Products of one token with weights of this type.
    Decode(GgmlType),
    /// Products of two to `FEW_TOKENS` tokens.
    Few(GgmlType),
    /// Products of more.
    Batch(GgmlType),
    /// Of a chunk of the cache.
    Attention,
}

impl Op {
    /// What a product with a matrix of this type is.
    pub fn product(ty: GgmlType, n_tok: usize) -> Op {
        match n_tok {
            0..=1 => Op::Decode(ty),
            2..=FEW_TOKENS => Op::Few(ty),
            _ => Op::Batch(ty),
        }
    }
}

/// Types are found by their ids.
const N_TYPES: usize = {
    let (mut n, mut i) = (0, 0);
    while i < GgmlType::ALL.len() {
        let id = GgmlType::ALL[i].id() as usize;
        n = if id >= n { id + 1 } else { n };
        i += 1;
    }
    n
};

#[derive(Clone, Copy)]
pub(super) struct Assigned {
    decode: [SetName; N_TYPES],
    few: [SetName; N_TYPES],
    batch: [SetName; N_TYPES],
    attention: SetName,
}

impl Assigned {
    pub(super) const fn to(set: SetName) -> Assigned {
        Assigned { decode: [set; N_TYPES], few: [set; N_TYPES], batch: [set; N_TYPES], attention: set }
    }

    fn of(&self, op: Op) -> SetName {
        match op {
            Op::Decode(ty) => self.decode[ty.id() as usize],
            Op::Few(ty) => self.few[ty.id() as usize],
            Op::Batch(ty) => self.batch[ty.id() as usize],
            Op::Attention => self.attention,
        }
    }

    fn assign(&mut self, op: Op, set: SetName) {
        match op {
            Op::Decode(ty) => self.decode[ty.id() as usize] = set,
            Op::Few(ty) => self.few[ty.id() as usize] = set,
            Op::Batch(ty) => self.batch[ty.id() as usize] = set,
            Op::Attention => self.attention = set,
        }
    }
}

impl Kernels {
    /// Whether sets may be chosen: none was asked for by name.
    pub fn is_auto(&self) -> bool {
        self.is_auto
    }

    /// The sets that something may be left to: those of this CPU that have vectors, or the one that was asked for by name.
    pub fn candidates(&self) -> impl Iterator<Item = SetName> {
        let (own, is_auto) = (self.name, self.is_auto);
        SetName::ALL.into_iter().filter(move |&set| set == own || (is_auto && set != SetName::Scalar && set.is_detected()))
    }

    /// The sets that may do it and have a way of their own, this one's last. Float matrices stay where they are: against a batch
    /// each set sums in an order of its own, and a few tokens go the same way on all.
    pub fn alternatives(&self, op: Op) -> impl Iterator<Item = SetName> {
        let own = self.name;
        let differs = move |set: SetName| match op {
            Op::Decode(ty) | Op::Few(ty) | Op::Batch(ty) => !ty.is_float() && Kernels::supports(ty),
            // Rows are widened on all sets of a processor or on none.
            Op::Attention => {
                let (table, own) = (set.table(), own.table());
                !std::ptr::fn_addr_eq(table.attend, own.attend) && table.widen.is_some() == own.widen.is_some()
            }
        };
        self.candidates().filter(move |&set| set != own && differs(set)).chain([own])
    }

    /// With `set` to do it, one of the alternatives.
    pub fn with(mut self, op: Op, set: SetName) -> Kernels {
        assert!(self.alternatives(op).any(|s| s == set), "{op:?} cannot be left to {}", set.name());
        self.assigned.assign(op, set);
        self
    }

    /// With `set` to do all that it may.
    pub fn with_all(self, set: SetName) -> Kernels {
        let of_types = GgmlType::ALL.iter().flat_map(|&ty| [Op::Decode(ty), Op::Few(ty), Op::Batch(ty)]);
        let may = |kernels: Kernels, op: Op| kernels.alternatives(op).any(|s| s == set);
        let ops = of_types.chain([Op::Attention]);
        ops.fold(self, |kernels, op| if may(kernels, op) { kernels.with(op, set) } else { kernels })
    }

    /// Which set does it.
    pub fn of(&self, op: Op) -> SetName {
        self.assigned.of(op)
    }

    /// The functions for attention, but for what becomes of its chunks.
    pub(super) fn attention(&self) -> &'static Table {
        self.assigned.attention.table()
    }

    /// The set that multiplies a matrix with `n_tok` tokens. A packed matrix goes to one that reads it.
    pub(super) fn multiplies(&self, w: &Matrix, n_tok: usize) -> SetName {
        let set = self.of(Op::product(w.ty, n_tok));
        let set = if w.packed && !set.reads_packed() { self.name } else { set };
        if set.is_fast(w.ty) && (!w.packed || set.reads_packed()) { set } else { SetName::Scalar }
    }

    /// The set, and what other sets do: `avx512 (decode of Q8_0: avx2)`.
    pub fn describe(&self) -> String {
        let mut text = self.name().to_owned();
        let mut others = Vec::new();
        for set in self.candidates().filter(|&set| set != self.name) {
            let Assigned { decode, few, batch, .. } = &self.assigned;
            for (what, sets) in [("decode", decode), ("a few tokens", few), ("batches", batch)] {
                let types = GgmlType::ALL.iter().filter(|ty| sets[ty.id() as usize] == set).map(|ty| ty.name());
                let types = types.collect::<Vec<_>>().join(", ");
                if !types.is_empty() {
                    others.push(format!("{what} of {types}: {}", set.name()));
                }
            }
            if self.assigned.attention == set {
                others.push(format!("attention: {}", set.name()));
            }
        }
        if !others.is_empty() {
            let _ = write!(text, " ({})", others.join("; "));
        }
        text
    }
}
