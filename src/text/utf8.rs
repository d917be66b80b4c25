//! Turns the bytes of tokens into text as they arrive: a token may end in the middle of a character, and only whole
//! characters leave here.
//!
//! Bytes that can no longer become a character leave as U+FFFD at the moment this is known, one for each maximal part, so that
//! all the output together is what `String::from_utf8_lossy` makes of all the bytes together (Unicode 16, section 3.9, table 3-8).
//! Holds three bytes at most and allocates nothing itself; a `String` with enough spare capacity does not grow either.

/// The longest beginning of a character that is not yet one: three of four bytes.
const MAX_PENDING: usize = 3;

#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of a character, in `pending[..len]`; always a valid prefix of some character.
    pending: [u8; MAX_PENDING + 1],
    len: usize,
}

impl Utf8Stream {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `out` every character that `bytes` completes.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut String) {
        while self.len > 0 {
            let Some((&next, rest)) = bytes.split_first() else { return };
            self.pending[self.len] = next;
            match std::str::from_utf8(&self.pending[..self.len + 1]) {
                Ok(character) => {
                    out.push_str(character);
                    self.len = 0;
                    bytes = rest;
                }
                Err(error) if error.error_len().is_none() => {
                    self.len += 1;
                    bytes = rest;
                }
                // What was held cannot go on with `next`; `next` itself begins something of its own.
                Err(_) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.len = 0;
                }
            }
        }
        self.push_from_boundary(bytes, out);
    }

    fn push_from_boundary(&mut self, mut bytes: &[u8], out: &mut String) {
        loop {
            let error = match std::str::from_utf8(bytes) {
                Ok(text) => return out.push_str(text),
                Err(error) => error,
            };
            let (valid, rest) = bytes.split_at(error.valid_up_to());
            // Checked above: an empty string cannot come of it.
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(invalid) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    bytes = &rest[invalid..];
                }
                None => {
                    self.pending[..rest.len()].copy_from_slice(rest);
                    self.len = rest.len();
                    return;
                }
            }
        }
    }

    /// The stream ends: a character that was begun and never completed leaves as one U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if self.len > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
            self.len = 0;
        }
    }

    /// Whether the beginning of a character is being held back.
    pub fn is_pending(&self) -> bool {
        self.len > 0
    }
}

#[cfg(test)]
#[path = "../../tests/unit/text/utf8.rs"]
mod tests;
