//! Generated text on its way out, token by token: whole characters, and nothing of a text that ends the generation.

use crate::error::Result;
use crate::text::Utf8Stream;

/// Text on its way out: whole characters only, and held back while it may be the beginning of a stop text.
pub struct Writer<'a, F> {
    utf8: Utf8Stream,
    pending: String,
    stops: &'a [String],
    emit: F,
}

impl<'a, F: FnMut(&str) -> Result<()>> Writer<'a, F> {
    pub fn new(stops: &'a [String], emit: F) -> Self {
        Writer { utf8: Utf8Stream::new(), pending: String::with_capacity(held_bytes(stops)), stops, emit }
    }

    /// Takes the bytes of a token; true once a stop text has appeared.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        self.utf8.push(bytes, &mut self.pending);
        let found = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| self.pending.find(s.as_str())).min();
        let held = match found {
            Some(at) => self.pending.len() - at,
            None => self.stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0),
        };
        self.emit(self.pending.len() - held)?;
        Ok(found.is_some())
    }

    pub fn finish(&mut self) -> Result<()> {
        self.utf8.finish(&mut self.pending);
        self.emit(self.pending.len())
    }

    fn emit(&mut self, len: usize) -> Result<()> {
        (self.emit)(&self.pending[..len])?;
        self.pending.drain(..len);
        Ok(())
    }
}

/// Bytes of text that is held back at most.
pub fn held_bytes(stops: &[String]) -> usize {
    4096 + 2 * stops.iter().map(String::len).max().unwrap_or(0)
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
#[path = "../../tests/unit/cli/writer.rs"]
mod tests;
