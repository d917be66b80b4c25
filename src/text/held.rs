//! Generated text on its way out, token by token: whole characters, and nothing of a text that ends the generation, which is held
//! back while it may be the beginning of one.

use super::Utf8Stream;

#[derive(Debug, Default)]
pub struct Held {
    utf8: Utf8Stream,
    pending: String,
}

impl Held {
    /// With room for what `bytes` says, so that it never grows.
    pub fn with_room(room_bytes: usize) -> Self {
        Held { utf8: Utf8Stream::new(), pending: String::with_capacity(room_bytes) }
    }

    /// Bytes of text that is held back at most, where no token has more than 4,000.
    pub fn bytes(stops: &[String]) -> usize {
        4096 + 2 * stops.iter().map(String::len).max().unwrap_or(0)
    }

    /// Takes the bytes of a token. How much of `text` may go out now, and which of `stops` has appeared behind it.
    pub fn push(&mut self, bytes: &[u8], stops: &[String]) -> (usize, Option<usize>) {
        self.utf8.push(bytes, &mut self.pending);
        let places = stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty());
        let found = places.filter_map(|(i, stop)| Some((self.pending.find(stop.as_str())?, i))).min();
        match found {
            Some((at, i)) => (at, Some(i)),
            None => {
                let held = stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0);
                (self.pending.len() - held, None)
            }
        }
    }

    /// Nothing follows: all of `text` may go out.
    pub fn finish(&mut self) -> usize {
        self.utf8.finish(&mut self.pending);
        self.pending.len()
    }

    pub fn text(&self) -> &str {
        &self.pending
    }

    /// So many bytes of `text` have gone out.
    pub fn sent(&mut self, n: usize) {
        self.pending.drain(..n);
    }

    /// For another generation; the room stays.
    pub fn clear(&mut self) {
        self.utf8 = Utf8Stream::new();
        self.pending.clear();
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}
