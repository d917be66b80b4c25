//! What a stream keeps for its answer in JSON: token ids and log-probabilities, in memory that is planned and taken before
//! the first token. The text is not kept: it is made from the tokens again while the answer is written.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::text::{Tokenizer, Utf8Stream, top_logprobs};

pub struct Kept {
    pub tokens: Vec<u32>,
    pub logprobs: Logprobs,
    /// Of `tokens`, those whose text went to the writer, and the bytes of text that left it.
    pub n_text_tokens: usize,
    pub n_text_bytes: usize,
}

/// The most likely tokens of each position, position after position in one list.
pub struct Logprobs {
    n_top: usize,
    all: Vec<(u32, f64)>,
    /// Where each position's entries end: fewer than `n_top` where logits were not numbers.
    ends: Vec<usize>,
    row: Vec<(u32, f64)>,
}

impl Kept {
    /// Bytes for `n` tokens with `n_top` log-probabilities each, or `None` where no machine has as many.
    pub fn bytes(n: usize, n_top: usize) -> Option<usize> {
        let (entry, end) = (size_of::<(u32, f64)>(), if n_top > 0 { size_of::<usize>() } else { 0 });
        let bytes = n.checked_mul(n_top.checked_mul(entry)?.checked_add(size_of::<u32>() + end)?)?;
        bytes.checked_add(n_top * entry).filter(|&bytes| isize::try_from(bytes).is_ok())
    }

    pub fn new(n: usize, n_top: usize) -> Result<Kept> {
        let n_rows = if n_top > 0 { n } else { 0 };
        let logprobs = Logprobs {
            n_top,
            all: resident(n_rows * n_top, (u32::MAX, f64::NAN))?,
            ends: resident(n_rows, usize::MAX)?,
            row: resident(n_top, (u32::MAX, f64::NAN))?,
        };
        Ok(Kept { tokens: resident(n, u32::MAX)?, logprobs, n_text_tokens: 0, n_text_bytes: 0 })
    }

    pub fn text<'a>(&'a self, tokenizer: &'a Tokenizer) -> Text<'a> {
        Text { tokenizer, tokens: &self.tokens[..self.n_text_tokens], n_bytes: self.n_text_bytes }
    }
}

/// An empty vector with room for `n` elements whose pages have been written, so that filling it later takes no memory.
fn resident<T: Clone>(n: usize, filler: T) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|e| {
        let bytes = n * size_of::<T>();
        Error::budget(
            "-n",
            format!("the system did not give {bytes} bytes for the answer ({e}): generate fewer tokens with --json"),
        )
    })?;
    v.resize(n, filler);
    v.clear();
    Ok(v)
}

impl Logprobs {
    pub fn push(&mut self, logits: &[f32]) {
        if self.n_top > 0 {
            top_logprobs(logits, self.n_top, &mut self.row);
            self.all.extend_from_slice(&self.row);
            self.ends.push(self.all.len());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl Serialize for Logprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        serializer.collect_seq(starts.zip(&self.ends).map(|(start, &end)| &self.all[start..end]))
    }
}

/// The text of tokens, as it was streamed, up to a length.
pub struct Text<'a> {
    tokenizer: &'a Tokenizer,
    tokens: &'a [u32],
    n_bytes: usize,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut utf8, mut piece, mut left) = (Utf8Stream::new(), String::new(), self.n_bytes);
        let mut show = |piece: &mut String, f: &mut fmt::Formatter<'_>| {
            let shown = &piece[..piece.len().min(left)];
            left -= shown.len();
            f.write_str(shown)?;
            piece.clear();
            Ok(())
        };
        for &token in self.tokens {
            utf8.push(self.tokenizer.token_bytes(token, false), &mut piece);
            show(&mut piece, f)?;
        }
        utf8.finish(&mut piece);
        show(&mut piece, f)
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
#[path = "../../tests/unit/cli/kept.rs"]
mod tests;
