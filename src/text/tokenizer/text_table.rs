//! Ids of a vocabulary by their texts. All texts lie in one buffer and are found by a table of ids alone, two places for each
//! token: a quarter of a million of them are in place within some milliseconds. Refuses a vocabulary in which two tokens have
//! the same text. Empty texts are found by nothing.

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

pub struct TextTable {
    /// Text of token `id`: `texts[starts[id]..starts[id + 1]]`.
    texts: Box<[u8]>,
    starts: Box<[u32]>,
    /// Ids at the places of their texts or behind them.
    by_text: Box<[u32]>,
}

/// No id.
pub const NONE: u32 = u32::MAX;

/// Places for each entry of a table; half of all stay free.
pub const PLACES: usize = 2;

/// Of `n` places the one where the search for what has this hash begins: the upper half of the product is below `n`, and evenly
/// spread as the hash is.
pub fn first_place(hash: u64, n: usize) -> usize {
    ((u128::from(hash) * n as u128) >> 64) as usize
}

impl TextTable {
    pub fn new(file: &GgufFile, tokens: &StringArray<'_>) -> Result<TextTable> {
        let refuse = |what: String| Error::unsupported(file.path(), what);
        let mut texts = Vec::with_capacity(tokens.text_bytes());
        let mut starts = Vec::with_capacity(tokens.len() + 1);
        starts.push(0);
        for text in tokens.iter() {
            texts.extend_from_slice(text.as_bytes());
            starts.push(u32::try_from(texts.len()).map_err(|_| refuse("more than 4 GiB of tokens: the file is damaged".into()))?);
        }
        let mut table = TextTable {
            texts: texts.into_boxed_slice(),
            starts: starts.into_boxed_slice(),
            by_text: vec![NONE; tokens.len() * PLACES].into_boxed_slice(),
        };
        for id in 0..tokens.len() as u32 {
            let Some(place) = table.place(table.text(id)) else { continue };
            let twin = std::mem::replace(&mut table.by_text[place], id);
            if twin != NONE {
                let text = String::from_utf8_lossy(table.text(id)).escape_debug().to_string();
                let what = format!("tokens {twin} and {id} are both '{text}': the vocabulary is damaged, fetch the model again");
                return Err(refuse(what));
            }
        }
        Ok(table)
    }

    /// Bytes of such a table.
    pub fn plan_bytes(tokens: &StringArray<'_>) -> u64 {
        tokens.text_bytes() as u64 + tokens.len() as u64 * 4 * (1 + PLACES as u64) + 4
    }

    /// Bytes of the longest text.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0)
    }

    fn text(&self, id: u32) -> &[u8] {
        &self.texts[self.starts[id as usize] as usize..self.starts[id as usize + 1] as usize]
    }

    pub fn find(&self, text: &[u8]) -> Option<u32> {
        let place = self.place(text)?;
        Some(self.by_text[place]).filter(|&id| id != NONE)
    }

    /// Where the text's id stands, or the free place where it would. Nothing has no place.
    fn place(&self, text: &[u8]) -> Option<usize> {
        if text.is_empty() {
            return None;
        }
        let n = self.by_text.len();
        let first = first_place(xxh3_64(text), n);
        (first..n).chain(0..first).find(|&place| self.by_text[place] == NONE || self.text(self.by_text[place]) == text)
    }
}
