//! Text of a user is text. What a template inserts never becomes a control token, whatever a message says: `<|im_end|>` in a
//! message is nine characters about a mark, and not the mark.
//!
//! In the messages, the first character of every control token that is written out there is replaced by a stand-in, a character
//! that occurs in neither messages nor template; so are the parts of one at either end of a content, which the template's own
//! text might complete. A stand-in is one character, so that lengths and slices stay what they are; a template that looks for a
//! control token in a message does not find it. In the rendered text stand-ins become what they stand for, and the tokenizer is
//! told to match no control token over them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::text::{Piece, Tokenizer};

/// What a template made of a conversation, and where no control token may be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Byte ranges of `text` in order, apart.
    plain: Vec<(usize, usize)>,
}

impl Rendered {
    /// The text as it is encoded: parts that may hold the template's own marks, and parts of messages that look like them.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::with_capacity(self.plain.len() * 2 + 1);
        let mut done = 0;
        for &(start, end) in &self.plain {
            pieces.push(Piece { text: &self.text[done..start], parse_special: true });
            pieces.push(Piece { text: &self.text[start..end], parse_special: false });
            done = end;
        }
        pieces.push(Piece { text: &self.text[done..], parse_special: true });
        pieces
    }

    /// Appends text in which no control token is read.
    pub fn push_plain(&mut self, text: &str) {
        if !text.is_empty() {
            self.plain.push((self.text.len(), self.text.len() + text.len()));
            self.text.push_str(text);
        }
    }

    /// Appends text that may hold control tokens.
    pub fn push_marks(&mut self, text: &str) {
        self.text.push_str(text);
    }
}

impl Rendered {
    /// The pieces of what follows the first `at` bytes, where a character begins.
    pub fn pieces_from(&self, at: usize) -> Vec<Piece<'_>> {
        let mut start = 0;
        let mut pieces = self.pieces();
        pieces.retain_mut(|piece| {
            let begins = start;
            start += piece.text.len();
            piece.text = &piece.text[at.saturating_sub(begins).min(piece.text.len())..];
            !piece.text.is_empty()
        });
        pieces
    }
}

impl Rendered {
    /// What of the text is behind its first `at` bytes.
    pub fn behind(&self, at: usize) -> Rendered {
        let plain = self.plain.iter().filter(|(_, end)| *end > at);
        Rendered { text: self.text[at..].to_owned(), plain: plain.map(|&(start, end)| (start.max(at) - at, end - at)).collect() }
    }
}

/// A text all of which may hold control tokens.
impl From<String> for Rendered {
    fn from(text: String) -> Self {
        Rendered { text, plain: Vec::new() }
    }
}

/// The control tokens of a vocabulary, and what stands for characters of messages.
pub struct Marks<'a> {
    /// In the order of their bytes.
    texts: Vec<&'a str>,
    stand_ins: BTreeMap<char, char>,
    /// Characters that nobody has used.
    free: Box<dyn Iterator<Item = char> + 'a>,
}

/// How a text begins.
#[derive(PartialEq)]
enum Beginning {
    Plain,
    /// It is the beginning of a control token, and ends before that does.
    Part,
    Whole,
}

impl<'a> Marks<'a> {
    /// `taken`: texts in which no stand-in may occur by itself.
    pub fn new(tokenizer: &'a Tokenizer, taken: Vec<&'a str>) -> Self {
        let mut texts: Vec<&str> = tokenizer.control_texts().collect();
        texts.sort_unstable();
        // Letters of two bytes, of the N'Ko script, so that little is added, then characters without a meaning.
        let rare = ('\u{7ca}'..='\u{7ea}')
            .chain('\u{e000}'..='\u{f8ff}')
            .chain('\u{f0000}'..='\u{ffffd}')
            .chain('\u{100000}'..='\u{10fffd}');
        let free = Box::new(rare.filter(move |c| !taken.iter().any(|text| text.contains(*c))));
        Marks { texts, stand_ins: BTreeMap::new(), free }
    }

    fn beginning(&self, text: &[u8]) -> Beginning {
        let mut among = &self.texts[..];
        for (at, byte) in text.iter().enumerate() {
            let start = among.partition_point(|mark| mark.as_bytes().get(at) < Some(byte));
            let n = among[start..].partition_point(|mark| mark.as_bytes().get(at) == Some(byte));
            among = &among[start..start + n];
            match among.first() {
                None => return Beginning::Plain,
                Some(mark) if mark.len() == at + 1 => return Beginning::Whole,
                Some(_) => {}
            }
        }
        if text.is_empty() { Beginning::Plain } else { Beginning::Part }
    }

    /// Whether a control token may end within `text` that began before it.
    fn ends_within(&self, text: &str) -> bool {
        let ends = |mark: &&str| {
            (1..mark.len()).filter_map(|at| mark.get(at..)).any(|end| text.starts_with(end) || end.starts_with(text))
        };
        !text.is_empty() && self.texts.iter().any(ends)
    }

    /// `text` with stand-ins. `joins`: what the template puts beside it may not make a control token with it.
    pub fn mark<'t>(&mut self, text: &'t str, joins: bool) -> Cow<'t, str> {
        let trimmed = text.trim();
        let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
        // Beginnings at the end count with and without the white space behind them.
        let breaks = |at: usize| {
            self.beginning(&text.as_bytes()[at..]) == Beginning::Whole
                || joins && at < end && self.beginning(&text.as_bytes()[at..end]) == Beginning::Part
                || joins && self.beginning(&text.as_bytes()[at..]) == Beginning::Part
                || joins && (at == 0 && self.ends_within(text) || at == start && self.ends_within(trimmed))
        };
        let mut places = text.char_indices().filter(|(at, _)| breaks(*at)).peekable();
        if places.peek().is_none() {
            return Cow::Borrowed(text);
        }
        let places: Vec<(usize, char)> = places.collect();
        let mut marked = String::with_capacity(text.len() + 3 * places.len());
        let mut done = 0;
        for (at, c) in places {
            marked.push_str(&text[done..at]);
            done = at + c.len_utf8();
            // There are more of them than a text may have; were all in use, the text would stay as it is.
            marked.push(*self.stand_ins.entry(c).or_insert_with(|| self.free.next().unwrap_or(c)));
        }
        marked.push_str(&text[done..]);
        Cow::Owned(marked)
    }

    /// What was rendered, with what stand-ins stand for.
    pub fn unmark(&self, rendered: String) -> Rendered {
        if self.stand_ins.is_empty() {
            return rendered.into();
        }
        let (mut text, mut plain) = (String::with_capacity(rendered.len()), Vec::<(usize, usize)>::new());
        for c in rendered.chars() {
            let Some((original, _)) = self.stand_ins.iter().find(|(_, stand_in)| **stand_in == c) else {
                text.push(c);
                continue;
            };
            let start = text.len();
            text.push(*original);
            match plain.last_mut() {
                // No mark of the template's lies between the two.
                Some(last) if !self.holds_mark(&text.as_bytes()[last.1..start]) => last.1 = text.len(),
                _ => plain.push((start, text.len())),
            }
        }
        Rendered { text, plain }
    }

    fn holds_mark(&self, text: &[u8]) -> bool {
        (0..text.len()).any(|at| self.beginning(&text[at..]) == Beginning::Whole)
    }
}
