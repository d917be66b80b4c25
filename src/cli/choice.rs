//! What is said of the choice of kernels (model/choice.rs): fields of `--json`, and words.

use serde::Serialize;

use crate::kernels::{Kernels, Op};
use crate::model::choice::Choice;

/// An operation that was measured.
#[derive(Clone, Serialize)]
pub struct Chosen {
    /// `decode`, `few`, `batch` or `attention`.
    op: &'static str,
    /// Of the weights; null for attention.
    #[serde(rename = "type")]
    ty: Option<&'static str>,
    /// The set that does it.
    kernels: &'static str,
    /// The default set's time over that of this one.
    gain: f64,
    /// Weights in 1e9 bytes a second, of decoding.
    read_gb_s: Option<f64>,
}

pub fn chosen(choice: &Choice) -> Vec<Chosen> {
    let rounded = |x: f64| (x * 100.0).round() / 100.0;
    let one = |found: &crate::model::choice::Found| {
        let (op, ty) = match found.op {
            Op::Decode(ty) => ("decode", Some(ty.name())),
            Op::Few(ty) => ("few", Some(ty.name())),
            Op::Batch(ty) => ("batch", Some(ty.name())),
            Op::Attention => ("attention", None),
        };
        let read_gb_s = found.read_gb_s.map(rounded);
        Chosen { op, ty, kernels: found.set.name(), gain: rounded(found.gain), read_gb_s }
    };
    choice.found.iter().map(one).collect()
}

/// The sets in use, and how fast weights were read.
pub fn described(kernels: Kernels, choice: &Choice, n_threads: usize) -> String {
    let read = choice.read_gb_s().map_or(String::new(), |gb_s| format!("; weights were read at {gb_s:.1} GB/s"));
    format!("{} with {}{read}", kernels.describe(), threads(n_threads))
}

pub fn threads(n: usize) -> String {
    if n == 1 { "1 thread".to_owned() } else { format!("{n} threads") }
}
