//! Merges of byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): the two neighbours of a word that stand
//! first in the list of merges are joined, the leftmost first among equals, until no two are in the list.
//!
//! A merge is two ids and the id they make, found by a table of ranks: 280,000 of them take under 6 MiB and some tens of
//! milliseconds, where maps of strings, as the crate `tokenizers` has them (`library_bpe.rs`), take ten times that. Ids are those of
//! llama.cpp. Refuses merges of what is no token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh3::xxh3_64;

use super::bytes::BYTE_CHARS;
use super::ids::Part;
use super::text_table::{NONE, PLACES, TextTable, first_place};
use super::windows::{Merge, WordMerge};
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
    /// Texts, where they are kept: a word that is a token is then taken whole, whatever the merges say.
    whole: Option<TextTable>,
    longest: usize,
}

/// A part of the word: a byte or a character at first, later a token. Parts are a list, linked both ways.
#[derive(Clone, Copy)]
struct Link {
    id: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours in the list of merges: their rank, then the place of the left one. Out of date where they are others by now.
type Candidate = Reverse<(u32, u32)>;

/// Working memory.
#[derive(Default)]
pub struct Room {
    links: Vec<Link>,
    candidates: BinaryHeap<Candidate>,
}

impl Bpe {
    pub fn from_gguf(file: &GgufFile, tokens: &StringArray<'_>, takes_whole: bool) -> Result<Bpe> {
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
            byte_ids: BYTE_CHARS.map(|c| table.find(c.encode_utf8(&mut utf8).as_bytes()).unwrap_or(NONE)),
            whole: None,
            longest: table.longest(),
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

    /// The token of this text, where texts are kept.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        self.whole.as_ref()?.find(text)
    }

    /// Joins neighbours of `ids` until none are in the list: the parts that are left, each as long as the ids that it was made of.
    pub fn join(&self, ids: impl Iterator<Item = u32>, room: &mut Room, parts: &mut Vec<Part>) {
        let Room { links, candidates } = room;
        links.clear();
        links.extend(ids.zip(0..).map(|(id, i): (_, u32)| Link { id, prev: i.wrapping_sub(1), next: i + 1 }));
        let n = links.len() as u32;
        if let Some(last) = links.last_mut() {
            last.next = NONE;
        }
        // Each join takes a candidate out and puts two in, at most.
        candidates.reserve(2 * links.len());
        let candidate = |links: &[Link], left: u32| -> Option<Candidate> {
            let link = links.get(left as usize)?;
            let next = links.get(link.next as usize)?;
            Some(Reverse((self.rank([link.id, next.id])?, left)))
        };
        candidates.extend((0..n).filter_map(|left| candidate(links, left)));
        while let Some(Reverse((rank, left))) = candidates.pop() {
            let (l, next) = (left as usize, links[left as usize].next);
            // A part that was joined to its left has no id.
            let now = [links[l].id, links.get(next as usize).map_or(NONE, |link| link.id)];
            if now != self.pairs[rank as usize] {
                continue;
            }
            let after = links[next as usize].next;
            links[next as usize].id = NONE;
            (links[l].id, links[l].next) = (self.made[rank as usize], after);
            if let Some(link) = links.get_mut(after as usize) {
                link.prev = left;
            }
            let before = links[l].prev;
            candidates.extend(candidate(links, before));
            candidates.extend(candidate(links, left));
        }
        parts.clear();
        let joined = links.iter().zip(0..n).filter(|(link, _)| link.id != NONE);
        parts.extend(joined.map(|(link, at)| Part { id: link.id, len: link.next.min(n) - at }));
    }
}

impl WordMerge for Bpe {
    fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[byte as usize]
    }

    fn token(&self, spelled: &str) -> Option<u32> {
        self.find(spelled.as_bytes())
    }
}

impl Merge for Bpe {
    type Room = Room;

    const WORK_BYTES: usize = 96;

    fn longest(&self) -> usize {
        self.longest
    }

    fn merge(&self, run: &[u8], _opens: bool, room: &mut Room, parts: &mut Vec<Part>) -> Result<()> {
        self.join(run.iter().map(|&byte| self.byte_ids[byte as usize]), room, parts);
        Ok(())
    }
}
