//! Merges of byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): the two neighbours of a word that stand
//! first in the list of merges are joined, the leftmost first among equals, until no two are in the list.
//!
//! A merge is two ids and the id they make, found by a table of ranks: 280,000 of them take under 6 MiB and some tens of
//! milliseconds, where maps of strings, as the crate `tokenizers` has them (`library_bpe.rs`), take ten times that. Ids are those of
//! llama.cpp. Refuses merges of what is no token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh3::xxh3_64;

use super::text_table::{NONE, PLACES, TextTable, first_place};
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// The two tokens of a merge, or what is wrong with it.
pub(super) fn merge_parts(rank: usize, text: &str) -> std::result::Result<(&str, &str), String> {
    // Neither side is empty, so a leading space belongs to the left side.
    let split = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| (&text[..at], &text[at + 1..]));
    split.filter(|(_, right)| !right.is_empty()).ok_or_else(|| {
        format!("{MERGES} {rank} is '{}', not two tokens: the file is damaged, fetch it again", text.escape_debug())
    })
}

pub struct Bpe {
    /// In the order of the file, which is their rank: what is joined, and what that makes.
    pairs: Box<[[u32; 2]]>,
    made: Box<[u32]>,
    /// Ranks at the places of their pairs or behind them.
    by_pair: Box<[u32]>,
    /// The token of each byte, or `NONE`: such bytes drop out of the text, as in llama.cpp.
    byte_ids: [u32; 256],
    /// Where a word that is a token is taken whole, whatever the merges say.
    whole: Option<TextTable>,
}

/// A part of the word: a byte at first, later a token. Parts are a list, linked both ways.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours in the list of merges: their rank, then the place of the left one. Out of date where they are others by now.
type Candidate = Reverse<(u32, u32)>;

/// Room for the merging of words, taken anew for each text.
#[derive(Default)]
pub struct Room {
    parts: Vec<Part>,
    candidates: BinaryHeap<Candidate>,
    spelled: String,
}

impl Bpe {
    /// `alphabet`: the characters that stand for the bytes.
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>, alphabet: &[char; 256], takes_whole: bool) -> Result<Bpe> {
        let texts = file.strings(MERGES)?;
        let refuse = |what: String| Err(Error::unsupported(file.path(), what));
        if u32::try_from(texts.len()).is_err() {
            return refuse(format!("{MERGES} has {} entries: the file is damaged", texts.len()));
        }
        let table = TextTable::new(file, tokens)?;
        let mut utf8 = [0; 4];
        let mut bpe = Bpe {
            pairs: vec![[NONE; 2]; texts.len()].into_boxed_slice(),
            made: vec![NONE; texts.len()].into_boxed_slice(),
            by_pair: vec![NONE; texts.len() * PLACES].into_boxed_slice(),
            byte_ids: alphabet.map(|c| table.find(c.encode_utf8(&mut utf8).as_bytes()).unwrap_or(NONE)),
            whole: None,
        };
        let mut both = Vec::new();
        for (rank, text) in texts.iter().enumerate() {
            let (left, right) = merge_parts(rank, text).map_err(|what| Error::unsupported(file.path(), what))?;
            both.clear();
            both.extend_from_slice(left.as_bytes());
            both.extend_from_slice(right.as_bytes());
            let find = |part: &[u8]| {
                table.find(part).ok_or_else(|| {
                    let (merge, token) = (text.escape_debug(), String::from_utf8_lossy(part).escape_debug().to_string());
                    let what = format!(
                        "{MERGES} do not fit the tokens: '{merge}' needs '{token}', which is none; fetch the model again"
                    );
                    Error::unsupported(file.path(), what)
                })
            };
            let (left, right, made) = (find(left.as_bytes())?, find(right.as_bytes())?, find(&both)?);
            (bpe.pairs[rank], bpe.made[rank]) = ([left, right], made);
            // Of two equal merges the first counts.
            let place = bpe.place([left, right]);
            if bpe.by_pair[place] == NONE {
                bpe.by_pair[place] = rank as u32;
            }
        }
        bpe.whole = Some(table).filter(|_| takes_whole);
        Ok(bpe)
    }

    /// Bytes of `from_gguf` at its highest point, from above.
    pub fn plan_bytes(file: &GgufFile, tokens: &StringArray<'_>) -> Result<u64> {
        let n_merges = file.strings(MERGES)?.len() as u64;
        Ok(TextTable::plan_bytes(tokens) + n_merges * (8 + 4 + 4 * PLACES as u64))
    }

    /// Where the pair's rank stands, or the free place where it would.
    fn place(&self, pair: [u32; 2]) -> usize {
        let n = self.by_pair.len();
        let [a, b] = pair.map(u32::to_le_bytes);
        let [a0, a1, a2, a3] = a;
        let [b0, b1, b2, b3] = b;
        let first = first_place(xxh3_64(&[a0, a1, a2, a3, b0, b1, b2, b3]), n);
        let is_place = |&place: &usize| {
            let rank = self.by_pair[place];
            rank == NONE || self.pairs[rank as usize] == pair
        };
        (first..n).chain(0..first).find(is_place).expect("half of the places are free")
    }

    fn rank(&self, pair: [u32; 2]) -> Option<u32> {
        if self.by_pair.is_empty() {
            return None;
        }
        Some(self.by_pair[self.place(pair)]).filter(|&rank| rank != NONE)
    }

    /// Appends the ids of a word.
    pub fn encode(&self, word: &str, alphabet: &[char; 256], room: &mut Room, ids: &mut Vec<u32>) {
        if let Some(table) = &self.whole {
            room.spelled.clear();
            room.spelled.extend(word.bytes().map(|byte| alphabet[byte as usize]));
            if let Some(id) = table.find(room.spelled.as_bytes()) {
                return ids.push(id);
            }
        }
        // No merge reaches across the place of a byte that has no token.
        for run in word.as_bytes().split(|&byte| self.byte_ids[byte as usize] == NONE) {
            self.merge(run, room, ids);
        }
    }

    fn merge(&self, run: &[u8], room: &mut Room, ids: &mut Vec<u32>) {
        let Room { parts, candidates, .. } = room;
        let n = run.len() as u32;
        parts.clear();
        parts.extend(run.iter().zip(0..n).map(|(&byte, i)| Part {
            id: self.byte_ids[byte as usize],
            prev: i.wrapping_sub(1),
            next: if i + 1 < n { i + 1 } else { NONE },
        }));
        // Each join takes a candidate out and puts two in, at most.
        candidates.reserve(2 * run.len());
        let candidate = |parts: &[Part], left: u32| -> Option<Candidate> {
            let part = parts.get(left as usize)?;
            let next = parts.get(part.next as usize)?;
            Some(Reverse((self.rank([part.id, next.id])?, left)))
        };
        candidates.extend((0..n).filter_map(|left| candidate(parts, left)));
        while let Some(Reverse((rank, left))) = candidates.pop() {
            let (l, next) = (left as usize, parts[left as usize].next);
            // A part that was joined to its left has no id.
            let now = [parts[l].id, parts.get(next as usize).map_or(NONE, |part| part.id)];
            if now != self.pairs[rank as usize] {
                continue;
            }
            let after = parts[next as usize].next;
            parts[next as usize].id = NONE;
            (parts[l].id, parts[l].next) = (self.made[rank as usize], after);
            if let Some(part) = parts.get_mut(after as usize) {
                part.prev = left;
            }
            let before = parts[l].prev;
            candidates.extend(candidate(parts, before));
            candidates.extend(candidate(parts, left));
        }
        ids.extend(parts.iter().map(|part| part.id).filter(|&id| id != NONE));
    }
}
