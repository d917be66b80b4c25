//! A session's file, byte by byte, all numbers little-endian:
//!
//! ```text
//! 0      head, 4096 bytes: what it is of, how long its regions are, the numbers of the cache, XXH3-128 of all that
//! 4096   tokens | text | logits | marks | rows      each followed by its XXH3-64, seeded with the head's hash
//! ...    "lowkeyE\n", the length of the whole file
//! ```
//!
//! Tokens, text and logits are the stream's; marks are what policies and the rounding of keys know, and the state of convolutions;
//! rows are keys and values, live ones only (`kv::store::saved`). A seed of the head's hash means that no region of
//! another file can stand in for one that was lost. XXH3 finds accidents, not forgers: what is read is checked besides.

use xxhash_rust::xxh3::xxh3_128;

use super::error::Why;
use super::fingerprint::{Fingerprint, MAX_MODEL_NAME, MAX_SETTINGS};
use super::name::Short;
use crate::kv::store::saved::Counts;

const MAGIC: [u8; 8] = *b"lowkeyS\n";
const END_MAGIC: [u8; 8] = *b"lowkeyE\n";
const VERSION: u32 = 1;

pub const HEAD_BYTES: usize = 4096;
/// Of the head, what its hash is over.
const HASHED: usize = HEAD_BYTES - 16;
/// Behind each region.
pub const SUM_BYTES: usize = 8;
pub const END_BYTES: usize = 16;

/// Bytes of each region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths {
    pub tokens: u64,
    pub text: u64,
    pub logits: u64,
    pub marks: u64,
    pub rows: u64,
}

impl Lengths {
    pub fn in_order(&self) -> [u64; 5] {
        [self.tokens, self.text, self.logits, self.marks, self.rows]
    }

    fn of([tokens, text, logits, marks, rows]: [u64; 5]) -> Self {
        Lengths { tokens, text, logits, marks, rows }
    }

    /// Of the whole file; `None` of lengths that no file has.
    pub fn file_bytes(&self) -> Option<u64> {
        let around = (HEAD_BYTES + self.in_order().len() * SUM_BYTES + END_BYTES) as u64;
        self.in_order().iter().try_fold(around, |sum, &len| sum.checked_add(len))
    }
}

/// What a session is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub fingerprint: Fingerprint,
    pub lengths: Lengths,
    pub counts: Counts,
    /// Of all tokens that the stream took in, `session::StreamState`.
    pub log_hash: u128,
    pub is_exact: bool,
    /// The state of the sampler's generator.
    pub generator: u64,
    /// Seconds since 1970.
    pub saved_at: u64,
}

impl Head {
    pub fn n_tokens(&self) -> u64 {
        self.lengths.tokens / 4
    }

    /// By which it is told from the head of another session, and of the same one at another time.
    pub fn mark(&self) -> u64 {
        self.bytes().1
    }

    /// The bytes of the head, and the seed of its regions' sums.
    pub fn bytes(&self) -> ([u8; HEAD_BYTES], u64) {
        let mut out = [0; HEAD_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&(HEAD_BYTES as u32).to_le_bytes());
        let Head { fingerprint, lengths, counts, log_hash, is_exact, generator, saved_at } = self;
        lengths.in_order().iter().chain(&counts.words()).chain([generator, saved_at]).for_each(|word| put(&word.to_le_bytes()));
        put(&u64::from(*is_exact).to_le_bytes());
        [fingerprint.model, fingerprint.template, *log_hash].iter().for_each(|hash| put(&hash.to_le_bytes()));
        for text in [fingerprint.settings.as_str(), fingerprint.model_name.as_str()] {
            put(&(text.len() as u32).to_le_bytes());
            put(text.as_bytes());
        }
        let hash = xxh3_128(&out[..HASHED]);
        out[HASHED..].copy_from_slice(&hash.to_le_bytes());
        (out, hash as u64)
    }

    /// Of a file of `file_bytes` that begins with `bytes`; and the seed of its regions' sums.
    pub fn parse(bytes: &[u8; HEAD_BYTES], file_bytes: u64) -> Result<(Head, u64), Why> {
        let mut fields = Fields { bytes: &bytes[..HASHED] };
        if fields.take()? != MAGIC {
            return Err(Why::Foreign);
        }
        let version = u32::from_le_bytes(fields.take()?);
        if version != VERSION {
            return Err(Why::Version(version));
        }
        let hash = xxh3_128(&bytes[..HASHED]);
        if hash.to_le_bytes() != bytes[HASHED..] || u32::from_le_bytes(fields.take()?) != HEAD_BYTES as u32 {
            return Err(Why::Damaged("the sum of its head is wrong"));
        }
        let (lengths, counts) = (Lengths::of(fields.words()?), Counts::from_words(fields.words()?));
        let [generator, saved_at, is_exact] = fields.words()?;
        let [model, template, log_hash] = [fields.hash()?, fields.hash()?, fields.hash()?];
        let (settings, model_name) = (fields.text::<MAX_SETTINGS>()?, fields.text::<MAX_MODEL_NAME>()?);
        if lengths.file_bytes() != Some(file_bytes) {
            return Err(Why::Damaged("its length is not the one it names"));
        }
        if lengths.tokens % 4 != 0 || lengths.logits % 4 != 0 {
            return Err(Why::Unsound("parts of numbers"));
        }
        let counts = counts.ok_or(Why::Unsound("marks that are not known"))?;
        let fingerprint = Fingerprint { model, template, settings, model_name };
        Ok((Head { fingerprint, lengths, counts, log_hash, is_exact: is_exact == 1, generator, saved_at }, hash as u64))
    }
}

/// What is left of the head.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Why> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Why::Damaged("its head is too short"))?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn words<const N: usize>(&mut self) -> Result<[u64; N], Why> {
        let mut words = [0; N];
        for word in &mut words {
            *word = u64::from_le_bytes(self.take()?);
        }
        Ok(words)
    }

    fn hash(&mut self) -> Result<u128, Why> {
        self.take().map(u128::from_le_bytes)
    }

    fn text<const N: usize>(&mut self) -> Result<Short<N>, Why> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (text, rest) =
            self.bytes.split_at_checked(len).filter(|_| len <= N).ok_or(Why::Unsound("a text that is too long"))?;
        self.bytes = rest;
        std::str::from_utf8(text).map(Short::of).map_err(|_| Why::Unsound("a text that is none"))
    }
}

/// What a file of so many bytes ends with.
pub fn end_bytes(file_bytes: u64) -> [u8; END_BYTES] {
    let mut end = [0; END_BYTES];
    end[..8].copy_from_slice(&END_MAGIC);
    end[8..].copy_from_slice(&file_bytes.to_le_bytes());
    end
}

#[cfg(test)]
#[path = "../../tests/unit/session_file/format.rs"]
mod tests;
