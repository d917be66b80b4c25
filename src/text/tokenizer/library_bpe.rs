//! Merges by the crate `tokenizers`, for vocabularies of the usual size. Its cache is off: memory does not grow as text flows. It keeps
//! its vocabulary and merges as strings in maps, 15 MiB for 49,000 tokens and 70 for 128,000, so that larger ones are merged by `bpe.rs`.

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::bpe::{MERGES, merge_parts};
use super::bytes::BYTE_CHARS;
use super::ids::Part;
use super::text_table::NONE;
use super::windows::{MOST_WORK_BYTES, Merge, WordMerge};
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

pub struct LibraryBpe {
    bpe: BPE,
    byte_ids: [u32; 256],
    longest: usize,
}

impl LibraryBpe {
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>) -> Result<Self> {
        let refuse = |what: String| Error::unsupported(file.path(), what);
        let mut vocab = Vocab::default();
        let mut longest = 0;
        vocab.reserve(tokens.len());
        // Empty texts have no entry: nothing may become them.
        for (id, text) in tokens.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
            longest = longest.max(text.len());
            if let Some(first) = vocab.insert(text.to_owned(), id as u32) {
                let text = text.escape_debug();
                let what = format!("tokens {first} and {id} are both '{text}': the vocabulary is damaged, fetch the model again");
                return Err(refuse(what));
            }
        }
        let mut utf8 = [0; 4];
        let byte_ids = BYTE_CHARS.map(|c| vocab.get(&*c.encode_utf8(&mut utf8)).copied().unwrap_or(NONE));
        let texts = file.strings(MERGES)?;
        let mut merges = Vec::with_capacity(texts.len());
        for (rank, text) in texts.iter().enumerate() {
            let (left, right) = merge_parts(rank, text).map_err(refuse)?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        // Words that are tokens are taken whole by the caller: a window of a word is none.
        let builder = BPE::builder().vocab_and_merges(vocab, merges).cache_capacity(0);
        let bpe = builder.build().map_err(|e| refuse(format!("{MERGES} do not fit the tokens: {e}; fetch the model again")))?;
        Ok(LibraryBpe { bpe, byte_ids, longest })
    }

    /// Bytes of `from_gguf` at its highest point, from above.
    pub fn plan_bytes(file: &GgufFile, tokens: &StringArray<'_>) -> Result<u64> {
        let merges = file.strings(MERGES)?;
        let token_chunks: u64 = tokens.lengths().map(heap_chunk).sum();
        // Two strings of a merge together are no longer than its text.
        let merge_chunks: u64 = merges.lengths().map(|n_bytes| heap_chunk(0) + heap_chunk(n_bytes)).sum();
        let (n_vocab, n_merges) = (tokens.len() as u64, merges.len() as u64);
        let string_table = table_bytes(n_vocab, 32) + token_chunks;
        // The table of merges grows by doubling, beside the list that it is made from.
        let merge_table = table_bytes(n_merges, 16) * 3 / 2;
        Ok(2 * string_table + merge_table + n_merges * 48 + merge_chunks)
    }
}

impl WordMerge for LibraryBpe {
    fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[byte as usize]
    }

    fn token(&self, spelled: &str) -> Option<u32> {
        self.bpe.token_to_id(spelled)
    }
}

impl Merge for LibraryBpe {
    type Room = String;

    // The crate makes a small string for each part.
    const WORK_BYTES: usize = MOST_WORK_BYTES;

    fn longest(&self) -> usize {
        self.longest
    }

    fn merge(&self, run: &[u8], _opens: bool, room: &mut String, parts: &mut Vec<Part>) -> Result<()> {
        room.clear();
        room.extend(run.iter().map(|&byte| BYTE_CHARS[byte as usize]));
        let tokens = self.bpe.tokenize(room).map_err(|error| Error::stopped(format!("cannot tokenize '{room}': {error}")))?;
        parts.clear();
        // A character of the alphabet is a byte of the text.
        parts.extend(tokens.iter().map(|token| Part { id: token.id, len: token.value.chars().count() as u32 }));
        Ok(())
    }
}

/// What a block of `len` bytes takes of the heap: a header of 8, rounded up to 16, at least 32.
fn heap_chunk(len: usize) -> u64 {
    ((len as u64 + 8).next_multiple_of(16)).max(32)
}

/// Bytes of a hash table as the standard library's: a power of two of places, seven of eight in use, one byte more for each.
fn table_bytes(entries: u64, entry_bytes: u64) -> u64 {
    (entries * 8).div_ceil(7).next_power_of_two().max(4) * (entry_bytes + 1)
}

#[cfg(test)]
#[path = "../../../tests/unit/text/tokenizer/library_bpe.rs"]
mod tests;
