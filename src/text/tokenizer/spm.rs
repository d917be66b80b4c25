//! SentencePiece's merging, the tokenizer that GGUF calls `llama`: from single characters, the two neighbours that make the
//! token of the highest score are joined, the leftmost first among equals, until no two make one. A character without a
//! token becomes the tokens of its bytes. (Kudo & Richardson 2018, arXiv 1808.06226; ids are those of llama.cpp.)
//!
//! Spaces are `▁` in the vocabulary. Refuses a vocabulary in which a byte has no token, for then some text would have no ids.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::ids::{Ids, Part};
use super::text_table::{NONE, TextTable};
use super::windows::{Merge, Windows};
use crate::error::{Error, Result};
use crate::gguf::{GgufFile, StringArray};

pub(super) const SPACE: &str = "\u{2581}";
const SCORES: &str = "tokenizer.ggml.scores";

pub struct Spm {
    table: TextTable,
    scores: Box<[f32]>,
    byte_ids: [u32; 256],
    /// A space is put before the text, and before what follows a special token.
    pub space_prefix: bool,
    longest: usize,
}

/// A part of the text: a character at first, later a token. Parts are a list, linked both ways.
struct Link {
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
        if let Some(at) = scores.clone().position(f32::is_nan) {
            return Err(refuse(format!("{SCORES} {at} is not a number: the file is damaged, fetch it again")));
        }
        if scores.len() != tokens.len() {
            let what =
                format!("{SCORES} has {} values for {} tokens: the file is damaged, fetch it again", scores.len(), tokens.len());
            return Err(refuse(what));
        }
        let table = TextTable::new(file, tokens)?;
        let mut spm = Spm {
            longest: table.longest(),
            table,
            // Minus zero is zero: they are equal scores.
            scores: scores.map(|score| score + 0.0).collect(),
            byte_ids: [0; 256],
            space_prefix: file.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
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
        for (i, word) in text.split(SPACE).enumerate() {
            bytes.extend_from_slice(if i > 0 { b" " } else { b"" });
            bytes.extend_from_slice(word.as_bytes());
        }
    }

    /// Appends the ids of a text without special tokens.
    pub fn encode(&self, text: &str, windows: &mut Windows<Spm>, ids: &mut Ids<'_>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        windows.merge(self, text, self.space_prefix, &mut |part, own| {
            if part.id != NONE {
                return ids.push(part.id);
            }
            // A prefix has no text of its own.
            let shown = if matches!(own, b"" | b" ") { SPACE.as_bytes() } else { own };
            shown.iter().for_each(|&byte| ids.push(self.byte_ids[byte as usize]));
        })
    }
}

/// Appends a text with its spaces as the vocabulary has them.
pub(super) fn spell(text: &str, spelled: &mut String) {
    for (i, word) in text.split(' ').enumerate() {
        spelled.push_str(if i > 0 { SPACE } else { "" });
        spelled.push_str(word);
    }
}

/// How long a part that is spelled in so many bytes is at the beginning of a text, where a space is one byte.
pub(super) fn part_len(text: &str, mut n_spelled: usize) -> usize {
    let end = text.find(|c: char| {
        let is_in = n_spelled > 0;
        n_spelled = n_spelled.saturating_sub(if c == ' ' { SPACE.len() } else { c.len_utf8() });
        !is_in
    });
    end.unwrap_or(text.len())
}

/// Working memory.
#[derive(Default)]
pub struct Room {
    /// The window with its spaces as the vocabulary has them.
    spelled: String,
    links: Vec<Link>,
    pairs: BinaryHeap<Pair>,
}

impl Merge for Spm {
    type Room = Room;

    const WORK_BYTES: usize = 96;

    fn longest(&self) -> usize {
        self.longest
    }

    fn merge(&self, text: &[u8], opens: bool, room: &mut Room, parts: &mut Vec<Part>) -> Result<()> {
        let text = std::str::from_utf8(text).expect("windows and parts end between characters");
        let Room { spelled, links, pairs } = room;
        spelled.clear();
        if opens {
            spelled.push_str(SPACE);
        }
        spell(text, spelled);
        let bytes = spelled.as_bytes();
        links.clear();
        links.extend(spelled.char_indices().zip(0..).map(|((start, c), i): (_, u32)| Link {
            start: start as u32,
            len: c.len_utf8() as u32,
            prev: i.wrapping_sub(1),
            next: i + 1,
        }));
        let n = links.len() as u32;
        if let Some(last) = links.last_mut() {
            last.next = NONE;
        }
        // Each join takes a pair out and puts two in, at most.
        pairs.reserve(2 * n as usize);
        let pair = |links: &[Link], left: u32, right: u32| -> Option<Pair> {
            if left == NONE || right == NONE {
                return None;
            }
            let (start, len) = (links[left as usize].start, links[left as usize].len + links[right as usize].len);
            let id = self.table.find(&bytes[start as usize..(start + len) as usize])?;
            Some(Pair { score: self.scores[id as usize], left, right, len })
        };
        pairs.extend((1..n).filter_map(|right| pair(links, right - 1, right)));
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            let (l, r) = (left as usize, right as usize);
            if links[l].len == 0 || links[r].len == 0 || links[l].len + links[r].len != len {
                continue;
            }
            let next = links[r].next;
            (links[l].len, links[l].next, links[r].len) = (len, next, 0);
            if next != NONE {
                links[next as usize].prev = left;
            }
            pairs.extend(pair(links, links[l].prev, left));
            pairs.extend(pair(links, left, next));
        }
        parts.clear();
        let (mut rest, mut prefix) = (text, if opens { SPACE.len() } else { 0 });
        for link in links.iter().filter(|link| link.len > 0) {
            let own = &bytes[link.start as usize..(link.start + link.len) as usize];
            // What the part is in the text, where a space is one byte, and a prefix none.
            let len = part_len(rest, own.len() - std::mem::take(&mut prefix));
            rest = &rest[len..];
            parts.push(Part { id: self.table.find(own).unwrap_or(NONE), len: len as u32 });
        }
        Ok(())
    }
}
