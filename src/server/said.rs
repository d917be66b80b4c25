//! What a stream has taken in, as text. A conversation comes back as text, and an answer need not be split into the tokens that it
//! was generated in: a stream that cannot be taken back to where tokens part goes on by its text.

use xxhash_rust::xxh3::Xxh3Default;

use crate::text::Tokenizer;

use super::desk::Said;

pub struct SaidLog {
    n_bytes: u64,
    hash: Xxh3Default,
}

impl SaidLog {
    pub fn new() -> Self {
        SaidLog { n_bytes: 0, hash: Xxh3Default::new() }
    }

    /// Of a text in pieces.
    pub fn of(pieces: &[&[u8]]) -> Said {
        let mut log = SaidLog::new();
        pieces.iter().for_each(|piece| log.add(piece));
        log.said()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.n_bytes += bytes.len() as u64;
    }

    pub fn clear(&mut self) {
        self.n_bytes = 0;
        self.hash.reset();
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, tokens: &[u32]) {
        for &token in tokens {
            self.add(tokenizer.token_bytes(token, true));
        }
    }

    pub fn said(&self) -> Said {
        Said { n_bytes: self.n_bytes, hash: self.hash.digest() }
    }
}
