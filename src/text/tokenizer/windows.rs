//! Merges of words of any length in a memory that does not grow: a window at a time.
//!
//! Byte-pair encoding and SentencePiece both join, again and again, the best two neighbours, the leftmost among equals; which
//! two are best depends on nothing but themselves. So a word is merged in two halves with equal parts whenever no merge
//! crosses the seam, and one does so in the whole word exactly if one does in the last part of the left half joined with the
//! first part of the right: until then all four merge as if each were alone. A seam is tried where the window's own parts
//! meet, some way before its end, and taken if those two parts stay two.

use std::ops::Range;

use super::ids::Part;
use crate::error::Result;

/// Bytes of text that are merged at once.
const WINDOW: usize = 2048;

/// Seams that are tried before the window is made larger.
const SEAMS: usize = 8;

/// The most that `Merge::WORK_BYTES` is.
pub const MOST_WORK_BYTES: usize = 160;

/// What joins neighbours until none are left to join.
pub trait Merge {
    /// Working memory, kept from one call to the next.
    type Room: Default;

    /// Bytes that merging takes for each byte of a window, from above: a list and a queue of its parts, and the parts of two
    /// windows.
    const WORK_BYTES: usize;

    /// Replaces `parts` by those of `text`, in order; `opens`: it is the beginning of what is merged.
    fn merge(&self, text: &[u8], opens: bool, room: &mut Self::Room, parts: &mut Vec<Part>) -> Result<()>;

    /// Bytes of the longest token.
    fn longest(&self) -> usize;
}

/// Merges within words.
pub trait WordMerge: Merge {
    /// The token of a byte, or `NONE`: such bytes drop out of the text, as in llama.cpp.
    fn byte_id(&self, byte: u8) -> u32;

    /// The token whose text, in the byte alphabet, is this.
    fn token(&self, spelled: &str) -> Option<u32>;
}

/// Bytes of text in a window over a vocabulary whose longest token has so many: several parts are in each.
fn window_bytes(longest: usize) -> usize {
    WINDOW.max(longest.saturating_mul(4))
}

/// Bytes that merging such a text takes, from above.
pub fn work_bytes<M: Merge>(merger: &M, n_text_bytes: usize) -> usize {
    window_bytes(merger.longest()).min(n_text_bytes) * M::WORK_BYTES + 1024
}

/// What `work_bytes` is at most for a vocabulary whose longest token has so many bytes.
pub fn most_work_bytes(longest: usize, n_text_bytes: usize) -> usize {
    window_bytes(longest).min(n_text_bytes) * MOST_WORK_BYTES + 1024
}

/// A window and the next, and the parts beside a seam.
pub struct Windows<M: Merge> {
    room: M::Room,
    now: Vec<Part>,
    next: Vec<Part>,
    seam: Vec<Part>,
}

impl<M: Merge> Default for Windows<M> {
    fn default() -> Self {
        Windows { room: M::Room::default(), now: Vec::new(), next: Vec::new(), seam: Vec::new() }
    }
}

impl<M: Merge> Windows<M> {
    /// Hands the parts of `text` to `each`, with the bytes that they stand for.
    pub fn merge(&mut self, merger: &M, text: &str, opens: bool, each: &mut impl FnMut(Part, &[u8])) -> Result<()> {
        self.merge_bytes(merger, text.as_bytes(), opens, |at| text.floor_char_boundary(at), each)
    }

    /// `floor`: the last place up to this one where the text may be cut.
    pub fn merge_bytes(
        &mut self,
        merger: &M,
        text: &[u8],
        opens: bool,
        floor: impl Fn(usize) -> usize,
        each: &mut impl FnMut(Part, &[u8]),
    ) -> Result<()> {
        let smallest = window_bytes(merger.longest());
        let end_of = |start: usize, n_bytes: usize| floor(text.len().min(start.saturating_add(n_bytes)));
        let (mut window, mut n_bytes) = (0..end_of(0, smallest), smallest);
        merger.merge(&text[window.clone()], opens, &mut self.room, &mut self.now)?;
        while window.end < text.len() {
            let (n_parts, seam) = match self.find_seam(merger, text, &window, |seam| end_of(seam, smallest))? {
                Some(found) => found,
                None => {
                    n_bytes *= 2;
                    window.end = end_of(window.start, n_bytes);
                    merger.merge(&text[window.clone()], opens && window.start == 0, &mut self.room, &mut self.now)?;
                    continue;
                }
            };
            hand_over(&self.now[..n_parts], &text[window.start..seam], each);
            std::mem::swap(&mut self.now, &mut self.next);
            (window, n_bytes) = (seam..end_of(seam, smallest), smallest);
        }
        hand_over(&self.now, &text[window], each);
        Ok(())
    }

    /// How many parts of the window stand before a seam that no merge crosses, and where that is; `next` has the parts of
    /// the window behind it then.
    fn find_seam(
        &mut self,
        merger: &M,
        text: &[u8],
        window: &Range<usize>,
        end: impl Fn(usize) -> usize,
    ) -> Result<Option<(usize, usize)>> {
        let mut seam = window.end;
        let (mut n_tried, latest) = (0, window.end - window.len() / 8);
        // The first part stays whole: it may have a prefix that is not in the text.
        for n_parts in (2..self.now.len()).rev() {
            seam -= self.now[n_parts].len as usize;
            if seam > latest {
                continue;
            }
            if n_tried == SEAMS {
                break;
            }
            n_tried += 1;
            merger.merge(&text[seam..end(seam)], false, &mut self.room, &mut self.next)?;
            let (left, right) = (self.now[n_parts - 1].len as usize, self.next[0].len as usize);
            merger.merge(&text[seam - left..seam + right], false, &mut self.room, &mut self.seam)?;
            if self.seam.len() == 2 && self.seam[0].len as usize == left {
                return Ok(Some((n_parts, seam)));
            }
        }
        Ok(None)
    }
}

fn hand_over(parts: &[Part], mut text: &[u8], each: &mut impl FnMut(Part, &[u8])) {
    for part in parts {
        let (own, rest) = text.split_at(part.len as usize);
        each(*part, own);
        text = rest;
    }
}
