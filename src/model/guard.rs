//! Numbers that are not numbers. One bad scale in a file of a hundred millions gives an answer that looks like any other, for
//! rounding to int8 or to a row of the cache takes NaN for nought. So the pass is watched where a NaN can still be seen, and
//! where it is found the weights are searched for the one that made it.
//!
//! What is always looked at, the embeddings and the last norm's output, is a few hundred numbers a token. The rest is looked at
//! until logits have come out once: a weight that is not a number spoils every token alike, but for one of an expert, which spoils
//! the tokens that choose it. So what goes up in each expert is always looked at.

use crate::error::{Error, Result};
use crate::gguf::quant::dequantize_row;
use crate::gguf::{GgmlType, GgufFile, TensorInfo};

use super::Model;
use super::keys::printable;
use super::pack::Pack;

#[derive(Default)]
pub struct Guard {
    /// A whole pass has been seen and was sound.
    passed: bool,
    found: bool,
}

impl Guard {
    /// Looks at the last row, `n` numbers, of an intermediate result.
    #[inline]
    pub fn see(&mut self, rows: &[f32], n: usize) {
        if !self.passed {
            self.always(&rows[rows.len() - n..]);
        }
    }

    pub fn always(&mut self, x: &[f32]) {
        const INFINITE: u32 = 0x7f80_0000;
        self.found |= x.iter().fold(false, |found, x| found | (x.to_bits() & INFINITE == INFINITE));
    }

    /// At the end of a pass, which may have been a whole one, down to logits. An error names what is not a number.
    pub fn judge(&mut self, model: &Model, whole: bool) -> Result<()> {
        self.passed |= whole && !self.found;
        if std::mem::take(&mut self.found) { Err(culprit(model)) } else { Ok(()) }
    }
}

#[cold]
fn culprit(model: &Model) -> Error {
    let file = &model.file;
    if let Some((tensor, at, value)) = file.tensors().iter().find_map(|t| first_in(file, t).map(|(at, value)| (t, at, value))) {
        let path = file.paths().nth(tensor.part as usize).unwrap_or(file.path());
        let what = match tensor.ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => "a weight",
            _ => "a scale",
        };
        let is = if value.is_nan() { "not a number" } else { "infinite" };
        let (name, row) = (printable(&tensor.name), at / tensor.row_len());
        return Error::unsupported(
            path,
            format!("tensor {name}, row {row}: {what} is {is}: the file is damaged; fetch it again"),
        );
    }
    if let Some(Err(why)) = model.pack.as_ref().and_then(|pack| pack.verify(file, &mut || true)) {
        return Error::unsupported(Pack::path_of(file.path()), why.message());
    }
    let what = "the model computes what is not a finite number, though its weights are finite: use another quantisation of it";
    Error::unsupported(file.path(), what)
}

/// Where in a tensor the first element is that is not finite, and what it is.
fn first_in(file: &GgufFile, tensor: &TensorInfo) -> Option<(usize, f32)> {
    const AT_ONCE: usize = 256; // whole blocks of every type
    let n_bytes = AT_ONCE / tensor.ty.block_elems() * tensor.ty.block_bytes();
    file.data(tensor).chunks(n_bytes).enumerate().find_map(|(i, bytes)| {
        let mut elems = [0f32; AT_ONCE];
        let elems = &mut elems[..bytes.len() / tensor.ty.block_bytes() * tensor.ty.block_elems()];
        dequantize_row(tensor.ty, bytes, elems).ok()?;
        let at = elems.iter().position(|x| !x.is_finite())?;
        Some((i * AT_ONCE + at, elems[at]))
    })
}
