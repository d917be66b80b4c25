//! The tokens that a stream has taken in: the first of them as they are, all of them as a hash. By it a new prompt is compared with
//! what a stream holds.

use xxhash_rust::xxh3::xxh3_128;

pub struct TokenLog {
    first: Box<[u32]>,
    /// How many of the stream's first tokens are in `first`.
    n_first: usize,
    n: u64,
    /// Of all of them: each token's is made of the hash before it, so that it can be gone on with from here.
    hash: u128,
}

/// How much of a prompt a stream has taken in already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    /// Leading tokens that are the same, as far as the log reaches.
    pub n: usize,
    /// The prompt begins with all that the stream has taken in.
    pub is_all: bool,
}

impl TokenLog {
    /// That keeps so many tokens as they are.
    pub fn new(n_first: usize) -> Self {
        TokenLog { first: vec![0; n_first].into_boxed_slice(), n_first: 0, n: 0, hash: 0 }
    }

    pub fn bytes(n_first: usize) -> usize {
        n_first * size_of::<u32>() + size_of::<TokenLog>()
    }

    /// Tokens that were taken in.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Those that are kept as they are.
    pub fn tokens(&self) -> &[u32] {
        &self.first[..self.n_first]
    }

    pub fn hash(&self) -> u128 {
        self.hash
    }

    /// Whether every token is kept as it is.
    pub fn is_whole(&self) -> bool {
        self.n == self.n_first as u64
    }

    pub fn push(&mut self, tokens: &[u32]) {
        if self.is_whole() {
            let n = tokens.len().min(self.first.len() - self.n_first);
            self.first[self.n_first..][..n].copy_from_slice(&tokens[..n]);
            self.n_first += n;
        }
        self.hash = hash_of(self.hash, tokens);
        self.n += tokens.len() as u64;
    }

    pub fn clear(&mut self) {
        (self.n_first, self.n, self.hash) = (0, 0, 0);
    }

    /// Back to the first `n` tokens, all of which are kept as they are.
    pub fn truncate(&mut self, n: usize) {
        assert!(n <= self.n_first);
        (self.n_first, self.n, self.hash) = (n, n as u64, hash_of(0, &self.first[..n]));
    }

    /// All the room for tokens, to be filled with those of a log that is restored.
    pub fn room_mut(&mut self) -> &mut [u32] {
        &mut self.first
    }

    /// Is the log of `n` tokens with this hash, the first `n_first` of which have been put into its room.
    pub fn restore(&mut self, n_first: usize, n: u64, hash: u128) {
        (self.n_first, self.n, self.hash) = (n_first, n, hash);
        if self.is_whole() {
            self.truncate(n_first);
        }
    }

    pub fn common(&self, prompt: &[u32]) -> Common {
        let n = self.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let is_all = match usize::try_from(self.n) {
            Ok(all) if self.is_whole() => n == all,
            Ok(all) if n == self.n_first && all <= prompt.len() => hash_of(0, &prompt[..all]) == self.hash,
            _ => false,
        };
        Common { n, is_all }
    }
}

fn hash_of(before: u128, tokens: &[u32]) -> u128 {
    tokens.iter().fold(before, |hash, token| {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&hash.to_le_bytes());
        bytes[16..].copy_from_slice(&token.to_le_bytes());
        xxh3_128(&bytes)
    })
}

#[cfg(test)]
#[path = "../../tests/unit/session/log.rs"]
mod tests;
