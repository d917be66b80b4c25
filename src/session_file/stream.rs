//! What is saved of a stream, on its way into a file and out of one.

use std::convert::Infallible;
use std::io;

use super::disk::Disk;
use super::error::Why;
use super::fingerprint::Fingerprint;
use super::format::{Head, Lengths, end_bytes};
use super::name::Name;
use super::transfer::{In, Out};
use crate::kv::past::Left;
use crate::kv::store::KvScratch;
use crate::mem::arena::{bytes_of, bytes_of_mut};
use crate::session::StreamState;

/// A stream that is to be saved. (It is not changed: one function goes over it for saving and for restoring.)
pub struct Saved<'a> {
    pub stream: StreamState<'a>,
    /// The text that its tokens were made from.
    pub text: &'a [u8],
    /// After its last token, `[n_vocab]`; empty where there are none.
    pub logits: &'a [f32],
    /// The state of the sampler's generator.
    pub generator: u64,
}

/// A stream that is to become one that was saved.
pub struct Restored<'a> {
    pub stream: StreamState<'a>,
    /// Room for its text, whose beginning is filled; without room the text is passed over.
    pub text: Option<&'a mut [u8]>,
    /// `[n_vocab]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut KvScratch,
}

/// What was found beside what is in the stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// What `Stream::resume` asks for: first tokens that are known, fewer than were saved where there was no room for more.
    pub n_first: usize,
    pub log_hash: u128,
    pub is_exact: bool,
    /// Tokens that the stream took in.
    pub n_past: u64,
    pub n_text: usize,
    pub generator: u64,
    /// Whether there are logits after the last token.
    pub has_logits: bool,
    pub file_bytes: u64,
}

/// The marks of a stream.
fn visit_marks<E>(stream: &mut StreamState<'_>, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    stream.cache.visit_marks(see)?;
    see(bytes_of_mut(stream.recurrent))
}

fn counted(visit: impl FnOnce(&mut dyn FnMut(&mut [u8]) -> Result<(), Infallible>) -> Result<(), Infallible>) -> u64 {
    let mut n_bytes = 0;
    let Ok(()) = visit(&mut |bytes| {
        n_bytes += bytes.len() as u64;
        Ok(())
    });
    n_bytes
}

fn marks_and_rows(stream: &mut StreamState<'_>) -> [u64; 2] {
    let marks = counted(|see| visit_marks(stream, &mut |bytes| see(bytes)));
    [marks, counted(|see| stream.cache.visit_rows(&mut |bytes| see(bytes)))]
}

impl Saved<'_> {
    pub fn head(&mut self, fingerprint: &Fingerprint, saved_at: u64) -> Head {
        let [marks, rows] = marks_and_rows(&mut self.stream);
        let StreamState { cache, n_first, log_hash, is_exact, .. } = &self.stream;
        let lengths = Lengths {
            tokens: (n_first * size_of::<u32>()) as u64,
            text: self.text.len() as u64,
            logits: size_of_val(self.logits) as u64,
            marks,
            rows,
        };
        let (log_hash, is_exact, generator) = (*log_hash, *is_exact, self.generator);
        Head { fingerprint: *fingerprint, lengths, counts: cache.counts(), log_hash, is_exact, generator, saved_at }
    }

    /// Everything behind the head, and the end.
    pub(super) fn write<D: Disk>(&mut self, out: &mut Out<'_, D>, file_bytes: u64) -> io::Result<()> {
        let tokens = &self.stream.first_tokens[..self.stream.n_first];
        for region in [bytes_of(tokens), self.text, bytes_of(self.logits)] {
            out.add(region)?;
            out.end_region()?;
        }
        visit_marks(&mut self.stream, &mut |bytes| out.add(bytes))?;
        out.end_region()?;
        self.stream.cache.visit_rows(&mut |bytes| out.add(bytes))?;
        out.end_region()?;
        out.put(&end_bytes(file_bytes))?;
        out.flush()
    }
}

impl Restored<'_> {
    /// Makes ready for what the head says will come, or says why it cannot; the stream is then as it was.
    /// Gives the file of its past, where sessions have files of their own.
    pub(super) fn adopt(&mut self, head: &Head, fingerprint: &Fingerprint, name: &Name) -> Result<Option<Left>, Why> {
        if let Some(why) = head.fingerprint.why_not(fingerprint) {
            return Err(Why::Other(why));
        }
        let room = self.text.as_ref().map_or(u64::MAX, |text| text.len() as u64);
        if head.lengths.text > room {
            return Err(Why::NoRoom { text_bytes: head.lengths.text, room });
        }
        if ![0, size_of_val(self.logits) as u64].contains(&head.lengths.logits) {
            return Err(Why::Unsound("logits of another vocabulary"));
        }
        if head.counts.n_past().is_none_or(|n_past| head.n_tokens() > n_past) {
            return Err(Why::Unsound("more tokens than its stream took in"));
        }
        let left = self.stream.cache.open_past(name.past().as_str()).map_err(Why::of_past)?;
        self.stream.cache.adopt(&head.counts).map_err(Why::Unsound)?;
        Ok(left)
    }

    /// Fills the stream, which adopted the head; after an error it is to be cleared. `text`: what the text must be, if that is known.
    pub(super) fn read<D: Disk>(
        &mut self,
        head: &Head,
        left: Option<Left>,
        text: Option<&[u8]>,
        from: &mut In<'_, D>,
    ) -> Result<Resumed, Why> {
        if [head.lengths.marks, head.lengths.rows] != marks_and_rows(&mut self.stream) {
            return Err(Why::Unsound("another number of bytes than its entries take"));
        }
        let n_first = head.n_tokens().min(self.stream.first_tokens.len() as u64);
        let tokens = &mut self.stream.first_tokens[..n_first as usize];
        from.add(bytes_of_mut(tokens))?;
        from.pass((head.n_tokens() - n_first) * size_of::<u32>() as u64, |_| ())?;
        from.end_region(TOKENS)?;
        if tokens.iter().any(|&token| token as usize >= self.logits.len()) {
            return Err(Why::Unsound("tokens that are not in the vocabulary"));
        }
        // There is room for it, as was checked.
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
        visit_marks(&mut self.stream, &mut |bytes| from.add(bytes))?;
        from.end_region(MARKS)?;
        self.stream.cache.visit_rows(&mut |bytes| from.add(bytes))?;
        from.end_region(ROWS)?;
        check_end(head, from)?;
        if !self.stream.recurrent.iter().all(|x| x.is_finite()) {
            return Err(Why::Unsound("recurrent layers that remember what are no numbers"));
        }
        self.stream.cache.check_adopted(self.scratch).map_err(Why::Unsound)?;
        self.stream.cache.find_past(left);
        Ok(Resumed {
            n_first: n_first as usize,
            log_hash: head.log_hash,
            is_exact: head.is_exact,
            n_past: head.counts.n_past().expect("checked when it was adopted"),
            n_text: head.lengths.text as usize,
            generator: head.generator,
            has_logits,
            file_bytes: head.lengths.file_bytes().expect("checked with the head"),
        })
    }

    pub(super) fn clear(&mut self) {
        self.stream.cache.clear();
        self.stream.recurrent.fill(0.0);
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
