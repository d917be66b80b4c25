//! The tokens that a stream has taken in: the first of them as they are, all of them as a hash. By it a new prompt is compared with
//! what a stream holds.

use xxhash_rust::xxh3::Xxh3Default;

pub struct TokenLog {
    first: Box<[u32]>,
    n: u64,
    hash: Xxh3Default,
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
        TokenLog { first: vec![0; n_first].into_boxed_slice(), n: 0, hash: Xxh3Default::new() }
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
        &self.first[..self.n.min(self.first.len() as u64) as usize]
    }

    /// Whether every token is kept as it is.
    pub fn is_whole(&self) -> bool {
        self.n <= self.first.len() as u64
    }

    pub fn push(&mut self, tokens: &[u32]) {
        let at = self.tokens().len();
        let n = tokens.len().min(self.first.len() - at);
        self.first[at..at + n].copy_from_slice(&tokens[..n]);
        add(&mut self.hash, tokens);
        self.n += tokens.len() as u64;
    }

    pub fn clear(&mut self) {
        self.n = 0;
        self.hash.reset();
    }

    /// Back to the first `n` tokens, all of which are kept as they are.
    pub fn truncate(&mut self, n: usize) {
        assert!(n <= self.tokens().len());
        self.n = n as u64;
        self.hash.reset();
        add(&mut self.hash, &self.first[..n]);
    }

    pub fn common(&self, prompt: &[u32]) -> Common {
        let n = self.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let is_all = match usize::try_from(self.n) {
            Ok(all) if self.is_whole() => n == all,
            Ok(all) if n == self.first.len() && all <= prompt.len() => {
                let mut hash = Xxh3Default::new();
                add(&mut hash, &prompt[..all]);
                hash.digest128() == self.hash.digest128()
            }
            _ => false,
        };
        Common { n, is_all }
    }
}

fn add(hash: &mut Xxh3Default, tokens: &[u32]) {
    tokens.iter().for_each(|token| hash.update(&token.to_le_bytes()));
}

#[cfg(test)]
#[path = "../../tests/unit/session/log.rs"]
mod tests;
