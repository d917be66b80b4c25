//! How keys and values are stored (`--k-type`, `--v-type`). The types with an `h` turn each vector by a Hadamard matrix
//! before it is rounded: outliers are spread over all elements, so few bits cost less (QuaRot, arXiv 2404.00456). Queries
//! are turned likewise, which leaves every product with a key as it was, and what attention gives is turned back.
//! Scores of policies come from the key before all this.

use std::str::FromStr;

use crate::kernels::kv_rows::RowType;
use crate::kernels::{MAX_HEAD_DIM, flip, hadamard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F16,
    Q8_0,
    Q4_0,
    Q6H,
    Q5H,
    Q4H,
}

impl KvType {
    pub const ALL: [KvType; 6] = [KvType::F16, KvType::Q8_0, KvType::Q4_0, KvType::Q6H, KvType::Q5H, KvType::Q4H];

    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
            KvType::Q6H => "q6_h",
            KvType::Q5H => "q5_h",
            KvType::Q4H => "q4_h",
        }
    }

    pub fn row(self) -> RowType {
        match self {
            KvType::F16 => RowType::F16,
            KvType::Q8_0 => RowType::Q8,
            KvType::Q6H => RowType::Q6,
            KvType::Q5H => RowType::Q5,
            KvType::Q4H | KvType::Q4_0 => RowType::Q4,
        }
    }

    pub fn is_turned(self) -> bool {
        matches!(self, KvType::Q6H | KvType::Q5H | KvType::Q4H)
    }

    /// Turns vectors of `head_dim` elements, lying one after the other, into the basis in which they are stored.
    pub fn turn(self, x: &mut [f32], head_dim: usize) {
        for part in self.turned_parts(x, head_dim) {
            flip(part);
            hadamard(part);
        }
    }

    /// The inverse of `turn`.
    pub fn turn_back(self, x: &mut [f32], head_dim: usize) {
        for part in self.turned_parts(x, head_dim) {
            hadamard(part);
            flip(part);
        }
    }

    /// Rounds a vector into a row.
    pub fn store(self, x: &[f32], row: &mut [u8]) {
        match self.is_turned() {
            true => self.turned(x, |x| self.row().store(x, row)),
            false => self.row().store(x, row),
        }
    }

    /// Puts a vector into a row of f16, in the basis of this type.
    pub fn store_f16(self, x: &[f32], row: &mut [u8]) {
        self.turned(x, |x| RowType::F16.store(x, row));
    }

    /// Hands on a vector in the basis of this type.
    pub fn turned(self, x: &[f32], then: impl FnOnce(&mut [f32])) {
        let mut room = [0f32; MAX_HEAD_DIM];
        let turned = &mut room[..x.len()];
        turned.copy_from_slice(x);
        self.turn(turned, x.len());
        then(turned);
    }

    /// What is turned by one matrix each; nothing of a type that is stored as it is.
    fn turned_parts(self, x: &mut [f32], head_dim: usize) -> std::slice::ChunksExactMut<'_, f32> {
        let turned = if self.is_turned() { x.len() } else { 0 };
        x[..turned].chunks_exact_mut(Self::part(head_dim))
    }

    /// The order of the matrix: the largest power of two that divides the head, so that a head of 80 is turned in five parts of 16.
    pub fn part(head_dim: usize) -> usize {
        1 << head_dim.trailing_zeros()
    }
}

/// `f16`, or `q5_h/q4_h` where keys and values differ.
pub fn both_names(k: &str, v: &str) -> String {
    if k == v { k.to_owned() } else { format!("{k}/{v}") }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        KvType::ALL.into_iter().find(|ty| ty.name() == text).ok_or_else(|| {
            let names: Vec<_> = KvType::ALL.iter().map(|ty| ty.name()).collect();
            format!("'{text}' is not a type that keys and values can be stored in; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
#[path = "../../tests/unit/kv/types.rs"]
mod tests;
