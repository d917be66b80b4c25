//! What is saved of a stream, on its way into a file and out of one.

use std::convert::Infallible;
use std::io;

use super::disk::Disk;
use super::error::Why;
use super::fingerprint::Fingerprint;
use super::format::{Head, Lengths, end_bytes};
use super::transfer::{In, Out};
use crate::kv::KvCache;
use crate::kv::store::KvScratch;
use crate::mem::arena::{bytes_of, bytes_of_mut};

/// A stream that is to be saved. (The cache is not changed: one function goes over it for saving and for restoring.)
pub struct Saved<'a> {
    pub cache: &'a mut KvCache,
    /// What convolutions remember; empty for a model without.
    pub convs: &'a mut [f32],
    /// The tokens that it took in, as many of the first as its owner remembers.
    pub tokens: &'a [u32],
    /// The text that they were made from.
    pub text: &'a [u8],
    /// After the last token, `[n_vocab]`; empty where there are none.
    pub logits: &'a [f32],
    /// The state of the sampler's generator.
    pub generator: u64,
}

/// A stream that is to become one that was saved.
pub struct Restored<'a> {
    pub cache: &'a mut KvCache,
    pub convs: &'a mut [f32],
    /// Room for its tokens and its text, whose beginnings are filled; without room for the text, it is passed over.
    pub tokens: &'a mut [u32],
    pub text: Option<&'a mut [u8]>,
    /// `[n_vocab]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut KvScratch,
}

/// What was found beside what is in the stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    pub generator: u64,
    /// Whether there are logits after the last token.
    pub has_logits: bool,
    /// Tokens that the stream took in.
    pub n_past: u64,
    /// Tokens and bytes of text that were saved.
    pub n_tokens: usize,
    pub n_text: usize,
    pub file_bytes: u64,
}

/// The marks of a stream, and how many bytes they and its rows are.
fn visit_marks<E>(cache: &mut KvCache, convs: &mut [f32], see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    cache.visit_marks(see)?;
    see(bytes_of_mut(convs))
}

fn counted(visit: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> Result<(), Infallible>) -> Result<(), Infallible>) -> u64 {
    let mut n_bytes = 0;
    let Ok(()) = visit(&mut |bytes| {
        n_bytes += bytes.len() as u64;
        Ok(())
    });
    n_bytes
}

fn marks_and_rows(cache: &mut KvCache, convs: &mut [f32]) -> [u64; 2] {
    let marks = counted(|see| visit_marks(cache, convs, &mut |bytes| see(bytes)));
    [marks, counted(|see| cache.visit_rows(&mut |bytes| see(bytes)))]
}

impl Saved<'_> {
    pub fn head(&mut self, fingerprint: &Fingerprint, saved_at: u64) -> Head {
        let [marks, rows] = marks_and_rows(self.cache, self.convs);
        let lengths = Lengths {
            tokens: size_of_val(self.tokens) as u64,
            text: self.text.len() as u64,
            logits: size_of_val(self.logits) as u64,
            marks,
            rows,
        };
        Head { fingerprint: *fingerprint, lengths, counts: self.cache.counts(), generator: self.generator, saved_at }
    }

    /// Everything behind the head, and the end.
    pub(super) fn write<D: Disk>(&mut self, out: &mut Out<'_, D>, file_bytes: u64) -> io::Result<()> {
        for region in [bytes_of(self.tokens), self.text, bytes_of(self.logits)] {
            out.add(region)?;
            out.end_region()?;
        }
        visit_marks(self.cache, self.convs, &mut |bytes| out.add(bytes))?;
        out.end_region()?;
        self.cache.visit_rows(&mut |bytes| out.add(bytes))?;
        out.end_region()?;
        out.put(&end_bytes(file_bytes))?;
        out.flush()
    }
}

impl Restored<'_> {
    /// Makes ready for what the head says will come, or says why it cannot; the stream is then as it was.
    pub(super) fn adopt(&mut self, head: &Head, fingerprint: &Fingerprint) -> Result<(), Why> {
        if let Some(why) = head.fingerprint.why_not(fingerprint) {
            return Err(Why::Other(why));
        }
        let text_room = self.text.as_ref().map_or(usize::MAX, |text| text.len());
        for (what, n, room) in [("tokens", head.n_tokens(), self.tokens.len()), ("bytes of text", head.lengths.text, text_room)] {
            if n > room as u64 {
                return Err(Why::NoRoom { what, n, room: room as u64 });
            }
        }
        if ![0, size_of_val(self.logits) as u64].contains(&head.lengths.logits) {
            return Err(Why::Unsound("logits of another vocabulary"));
        }
        if head.counts.n_past().is_none_or(|n_past| head.n_tokens() > n_past) {
            return Err(Why::Unsound("more tokens than its stream took in"));
        }
        self.cache.adopt(&head.counts).map_err(Why::Unsound)
    }

    /// Fills the stream, which adopted the head; after an error it is to be cleared. `text`: what the text must be, if that is known.
    pub(super) fn read<D: Disk>(&mut self, head: &Head, text: Option<&[u8]>, from: &mut In<'_, D>) -> Result<Resumed, Why> {
        let [marks, rows] = marks_and_rows(self.cache, self.convs);
        if [head.lengths.marks, head.lengths.rows] != [marks, rows] {
            return Err(Why::Unsound("another number of bytes than its entries take"));
        }
        // There is room for both, as was checked.
        let tokens = &mut self.tokens[..head.n_tokens() as usize];
        from.add(bytes_of_mut(tokens))?;
        from.end_region(TOKENS)?;
        let is_text = read_text(head.lengths.text, text, self.text.as_deref_mut(), from)?;
        from.end_region(TEXT)?;
        if !is_text {
            return Err(Why::Other("it is of another text with the same hash".into()));
        }
        let has_logits = head.lengths.logits > 0;
        if has_logits {
            from.add(bytes_of_mut(self.logits))?;
        }
        from.end_region(LOGITS)?;
        visit_marks(self.cache, self.convs, &mut |bytes| from.add(bytes))?;
        from.end_region(MARKS)?;
        self.cache.visit_rows(&mut |bytes| from.add(bytes))?;
        from.end_region(ROWS)?;
        check_end(head, from)?;
        if tokens.iter().any(|&token| token as usize >= self.logits.len()) {
            return Err(Why::Unsound("tokens that are not in the vocabulary"));
        }
        if !self.convs.iter().all(|x| x.is_finite()) {
            return Err(Why::Unsound("convolutions that remember what are no numbers"));
        }
        self.cache.check_adopted(self.scratch).map_err(Why::Unsound)?;
        let n_past = head.counts.n_past().expect("checked when it was adopted");
        let file_bytes = head.lengths.file_bytes().expect("checked with the head");
        let (n_tokens, n_text) = (tokens.len(), head.lengths.text as usize);
        Ok(Resumed { generator: head.generator, has_logits, n_past, n_tokens, n_text, file_bytes })
    }

    pub(super) fn clear(&mut self) {
        self.cache.clear();
        self.convs.fill(0.0);
    }
}

/// Reads a text of so many bytes, into `room` if there is one; whether it is `expected`, if something is.
fn read_text<D: Disk>(n_bytes: u64, expected: Option<&[u8]>, room: Option<&mut [u8]>, from: &mut In<'_, D>) -> Result<bool, Why> {
    let Some(room) = room else {
        let (mut rest, mut is_text) = (expected.unwrap_or_default(), true);
        from.pass(n_bytes, |part| match rest.strip_prefix(part) {
            Some(behind) => rest = behind,
            None => is_text = false,
        })?;
        return Ok(expected.is_none() || is_text && rest.is_empty());
    };
    let text = &mut room[..n_bytes as usize];
    from.add(text)?;
    Ok(expected.is_none_or(|expected| expected == text))
}

const TOKENS: &str = "the sum of its tokens is wrong";
const TEXT: &str = "the sum of its text is wrong";
const LOGITS: &str = "the sum of its logits is wrong";
const MARKS: &str = "the sum of its marks is wrong";
const ROWS: &str = "the sum of its keys and values is wrong";

/// Reads everything behind the head, for its sums alone.
pub(super) fn verify<D: Disk>(head: &Head, from: &mut In<'_, D>) -> Result<(), Why> {
    for (n_bytes, wrong) in head.lengths.in_order().into_iter().zip([TOKENS, TEXT, LOGITS, MARKS, ROWS]) {
        from.pass(n_bytes, |_| ())?;
        from.end_region(wrong)?;
    }
    check_end(head, from)
}

fn check_end<D: Disk>(head: &Head, from: &mut In<'_, D>) -> Result<(), Why> {
    let mut end = end_bytes(0);
    from.take(&mut end)?;
    match Some(end) == head.lengths.file_bytes().map(end_bytes) {
        true => Ok(()),
        false => Err(Why::Damaged("its end is missing")),
    }
}
