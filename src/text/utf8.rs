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
mod tests {
    use super::*;

    fn streamed(parts: &[&[u8]]) -> String {
        let mut stream = Utf8Stream::new();
        let mut out = String::new();
        parts.iter().for_each(|part| stream.push(part, &mut out));
        stream.finish(&mut out);
        out
    }

    #[test]
    fn every_split_in_three_equals_the_lossy_whole() {
        let cases: [&[u8]; 12] = [
            b"",
            b"plain",
            "é€😀!".as_bytes(),
            b"\xf0\x9f\x98",
            b"\xf0\x9fa\x98\x80",
            b"\xe2\x82\xe2\x82\xac\xff\xc3",
            b"\xed\xa0\x80x",
            b"\xf4\x90\x80\x80",
            b"\xc0\xaf\xe0\x80\xbf",
            b"\xf0\x80\x80\x41",
            b"\x80\xbf\xf0\x9f\x98\x80\xf0",
            b"\xe0\xa0\xf0\x90\x80\xc2\xa9",
        ];
        for bytes in cases {
            for first in 0..=bytes.len() {
                for second in first..=bytes.len() {
                    let got = streamed(&[&bytes[..first], &bytes[first..second], &bytes[second..]]);
                    assert_eq!(got, String::from_utf8_lossy(bytes), "{bytes:x?} split at {first}, {second}");
                }
            }
        }
    }

    #[test]
    fn random_bytes_in_random_pieces_equal_the_lossy_whole() {
        let mut rng = fastrand::Rng::with_seed(7);
        // Lead and continuation bytes far more often than chance, so that nearly-valid sequences abound.
        let alphabet = b"a\x80\x8f\x90\x9f\xa0\xbf\xc2\xdf\xe0\xe1\xed\xef\xf0\xf1\xf4\xf5\xff";
        for round in 0..20_000 {
            let bytes: Vec<u8> = (0..rng.usize(..12))
                .map(|_| if rng.u8(..8) == 0 { rng.u8(..) } else { alphabet[rng.usize(..alphabet.len())] })
                .collect();
            let mut parts = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rng.usize(..=rest.len().min(3)));
                parts.push(part);
                rest = after;
            }
            assert_eq!(streamed(&parts), String::from_utf8_lossy(&bytes), "round {round}: {bytes:x?} as {parts:x?}");
        }
    }

    #[test]
    fn a_bad_byte_is_shown_as_soon_as_it_is_known() {
        let mut stream = Utf8Stream::new();
        let mut out = String::with_capacity(16);
        let place = out.as_ptr();
        stream.push(b"\xf0\x9f", &mut out);
        assert!(out.is_empty() && stream.is_pending());
        stream.push(b"x", &mut out);
        assert_eq!(out, "\u{fffd}x");
        assert!(!stream.is_pending());
        assert_eq!(out.as_ptr(), place, "a string with spare capacity moved");
    }
}
