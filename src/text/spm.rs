//! SentencePiece's merging, the tokenizer that GGUF calls `llama`: from single characters, the two neighbours that make the
//! token of the highest score are joined, the leftmost first among equals, until no two make one. A character without a
//! token becomes the tokens of its bytes. (Kudo & Richardson 2018, arXiv 1808.06226; ids are those of llama.cpp.)
//!
//! Spaces are `▁` in the vocabulary. Refuses a vocabulary in which a byte has no token, for then some text would have no ids.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::text_table::{NONE, TextTable};
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

const SPACE: char = '\u{2581}';
const SCORES: &str = "tokenizer.ggml.scores";

pub struct Spm {
    table: TextTable,
    scores: Box<[f32]>,
    byte_ids: [u32; 256],
    /// A space is put before the text, and before what follows a special token.
    pub space_prefix: bool,
    /// Words are merged each by itself, with equal ids.
    by_words: bool,
}

/// A part of the word: a character at first, later a token. Parts are a list, linked both ways.
struct Part {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours that make a token; out of date when their lengths no longer add up.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    len: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(self.len.cmp(&other.len))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

impl Spm {
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>) -> Result<Spm> {
        let refuse = |what: String| Error::unsupported(file.path(), what);
        let scores = file.f32s(SCORES)?;
        if scores.len() != tokens.len() {
            let what =
                format!("{SCORES} has {} values for {} tokens: the file is damaged, fetch it again", scores.len(), tokens.len());
            return Err(refuse(what));
        }
        let mut spm = Spm {
            table: TextTable::new(file, tokens)?,
            // Minus zero is zero: they are equal scores.
            scores: scores.map(|score| score + 0.0).collect(),
            byte_ids: [0; 256],
            space_prefix: file.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
            by_words: Spm::by_words(tokens),
        };
        for byte in 0..=255u8 {
            let id = spm.table.find(format!("<0x{byte:02X}>").as_bytes()).or(spm.table.find(&[byte]));
            spm.byte_ids[byte as usize] = id.ok_or_else(|| {
                refuse(format!(
                    "the vocabulary has no token for the byte 0x{byte:02X}, so some text has no ids: use another model"
                ))
            })?;
        }
        Ok(spm)
    }

    /// Bytes of `from_gguf`'s tables beside the tokenizer's own, from above.
    pub fn plan_bytes(tokens: &StringArray<'_>) -> u64 {
        TextTable::plan_bytes(tokens) + tokens.len() as u64 * 4
    }

    /// The byte that a byte token stands for.
    pub fn byte_of(text: &str) -> Option<u8> {
        let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
        u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
    }

    /// The text of a token as it is shown.
    pub fn push_shown(text: &str, bytes: &mut Vec<u8>) {
        text.chars().for_each(|c| bytes.extend_from_slice(if c == SPACE { ' ' } else { c }.encode_utf8(&mut [0; 4]).as_bytes()));
    }

    /// Whether words can be merged each by itself: no token reaches from a word over the space behind it.
    fn by_words(tokens: &StringArray<'_>) -> bool {
        !tokens.iter().any(|text| text.trim_start_matches(SPACE).contains(SPACE))
    }

    /// The most bytes of the text that are merged at once, its prefix included.
    pub fn longest_word(tokens: &StringArray<'_>, text: &str) -> usize {
        if text.is_empty() {
            return 1;
        }
        1 + words(text, Spm::by_words(tokens)).map(str::len).max().unwrap_or(0)
    }

    /// Appends the ids of a text without special tokens; `prefix`: it stands first, or behind a special token.
    pub fn encode(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) {
        let mut first = self.space_prefix && prefix && !text.is_empty();
        let mut word = String::new();
        // A text that begins with a space has its prefix in the same word.
        for piece in words(text, self.by_words) {
            word.clear();
            if std::mem::take(&mut first) {
                word.push(SPACE);
            }
            word.extend(piece.chars().map(|c| if c == ' ' { SPACE } else { c }));
            self.merge(word.as_bytes(), &word, ids);
        }
    }

    fn merge(&self, bytes: &[u8], word: &str, ids: &mut Vec<u32>) {
        let n = word.chars().count() as u32;
        let mut parts: Vec<Part> = Vec::with_capacity(n as usize);
        for (i, (start, c)) in word.char_indices().enumerate() {
            let i = i as u32;
            let (prev, next) = (i.wrapping_sub(1), if i + 1 < n { i + 1 } else { NONE });
            parts.push(Part { start: start as u32, len: c.len_utf8() as u32, prev, next });
        }
        // Each join takes a pair out and puts two in, at most.
        let mut pairs = BinaryHeap::with_capacity(2 * n as usize);
        let pair = |parts: &[Part], left: u32, right: u32| -> Option<Pair> {
            if left == NONE || right == NONE {
                return None;
            }
            let (start, len) = (parts[left as usize].start, parts[left as usize].len + parts[right as usize].len);
            let id = self.table.find(&bytes[start as usize..(start + len) as usize])?;
            Some(Pair { score: self.scores[id as usize], left, right, len })
        };
        pairs.extend((1..n).filter_map(|right| pair(&parts, right - 1, right)));
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (l, r) = (left as usize, right as usize);
            if parts[l].len == 0 || parts[r].len == 0 || parts[l].len + parts[r].len != len {
                continue;
            }
            let next = parts[r].next;
            (parts[l].len, parts[l].next, parts[r].len) = (len, next, 0);
            if next != NONE {
                parts[next as usize].prev = left;
            }
            pairs.extend(pair(&parts, parts[l].prev, left));
            pairs.extend(pair(&parts, left, next));
        }
        for part in parts.iter().filter(|part| part.len > 0) {
            let text = &bytes[part.start as usize..(part.start + part.len) as usize];
            match self.table.find(text) {
                Some(id) => ids.push(id),
                None => ids.extend(text.iter().map(|&byte| self.byte_ids[byte as usize])),
            }
        }
    }
}

/// The text in pieces that end before the spaces that follow a word, or in one piece.
fn words(text: &str, by_words: bool) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let is_space = |c: char| c == ' ' || c == SPACE;
        let spaces = rest.find(|c| !is_space(c)).unwrap_or(rest.len());
        let end = rest[spaces..].find(is_space).filter(|_| by_words).map_or(rest.len(), |at| spaces + at);
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}
