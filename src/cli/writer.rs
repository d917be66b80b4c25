//! Generated text on its way to the user.

use crate::error::Result;
use crate::text::Held;

pub struct Writer<'a, F> {
    held: Held,
    stops: &'a [String],
    emit: F,
}

impl<'a, F: FnMut(&str) -> Result<()>> Writer<'a, F> {
    pub fn new(stops: &'a [String], emit: F) -> Self {
        Writer { held: Held::with_room(Held::bytes(stops)), stops, emit }
    }

    /// Takes the bytes of a token; true once a stop text has appeared.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        let (n, stop) = self.held.push(bytes, self.stops);
        self.emit(n)?;
        Ok(stop.is_some())
    }

    pub fn finish(&mut self) -> Result<()> {
        let n = self.held.finish();
        self.emit(n)
    }

    fn emit(&mut self, n: usize) -> Result<()> {
        (self.emit)(&self.held.text()[..n])?;
        self.held.sent(n);
        Ok(())
    }
}

#[cfg(test)]
#[path = "../../tests/unit/cli/writer.rs"]
mod tests;
