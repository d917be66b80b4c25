//! Calls of tools, read back from an answer as it comes: text before the mark is text, behind it stand calls. What turns out to be no
//! call is text after all.

use serde_json::Value;

use super::answers::random_name;
use super::scan::Scan;
use super::tools::{Family, arguments_object};
use super::words::{self, Name};

/// What a piece of an answer came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Thought(String),
    Text(String),
    /// A call begins; `index` counts the calls of an answer.
    Begin {
        index: usize,
        id: String,
        name: String,
    },
    /// More of its arguments.
    Arguments {
        index: usize,
        text: String,
    },
}

/// A call that has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl Call {
    /// Its arguments; none where the answer ended within them.
    pub fn object(&self) -> Option<Value> {
        arguments_object(&self.arguments)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    /// Before the first mark.
    Text,
    /// Before a call's arguments.
    Head,
    Arguments(Scan),
    /// The same, in the form of `words`.
    Words(words::Reader),
    /// No calls are looked for any more.
    Plain,
}

#[derive(Clone, Debug)]
pub struct Calls {
    /// None: nothing is a call.
    family: Option<&'static Family>,
    at: At,
    held: String,
    pub calls: Vec<Call>,
    /// All text from the first mark on.
    pub raw: String,
}

/// What stands between a mark and a call's arguments at most.
const MAX_HEAD_BYTES: usize = 512;

impl Calls {
    pub fn new(family: Option<&'static Family>) -> Calls {
        let at = match family {
            None => At::Plain,
            // They are told apart already.
            Some(family) if family.is_harmony() => At::Plain,
            // Without a mark the answer itself may be a call.
            Some(family) if family.open.is_empty() => At::Head,
            Some(_) => At::Text,
        };
        Calls { family, at, held: String::new(), calls: Vec::new(), raw: String::new() }
    }

    pub fn push(&mut self, text: &str, told: &mut Vec<Told>) {
        self.held.push_str(text);
        let Some(family) = self.family else {
            return say(std::mem::take(&mut self.held), told);
        };
        loop {
            match &mut self.at {
                At::Plain => return say(std::mem::take(&mut self.held), told),
                At::Text => {
                    let Some(at) = self.held.find(family.open) else {
                        let n_kept = (1..family.open.len()).rev().find(|n| self.held.ends_with(&family.open[..*n])).unwrap_or(0);
                        let rest = self.held.split_off(self.held.len() - n_kept);
                        return say(std::mem::replace(&mut self.held, rest), told);
                    };
                    let rest = self.held.split_off(at);
                    say(std::mem::replace(&mut self.held, rest), told);
                    self.at = At::Head;
                }
                At::Head => match head(&self.held, family) {
                    Head::Call { name, n_bytes } => {
                        let rest = self.held.split_off(n_bytes);
                        self.raw.push_str(&std::mem::replace(&mut self.held, rest));
                        self.begin(name, told);
                        let is_words = family.is_words();
                        self.at = if is_words { At::Words(words::Reader::default()) } else { At::Arguments(Scan::default()) };
                    }
                    Head::Part if self.held.len() <= MAX_HEAD_BYTES => return,
                    // Behind a call nothing but marks is worth telling.
                    _ if !self.calls.is_empty() => return self.raw.push_str(&std::mem::take(&mut self.held)),
                    _ => self.at = At::Plain,
                },
                At::Arguments(scan) => {
                    let (n, is_done) = scan.run(&self.held);
                    let rest = self.held.split_off(n);
                    let text = std::mem::replace(&mut self.held, rest);
                    self.raw.push_str(&text);
                    self.add(text, told);
                    if !is_done {
                        return;
                    }
                    self.at = At::Head;
                }
                At::Words(reader) => {
                    let mut json = String::new();
                    let (n, is_done) = reader.run(&self.held, &mut json);
                    let rest = self.held.split_off(n);
                    self.raw.push_str(&std::mem::replace(&mut self.held, rest));
                    self.add(json, told);
                    if !is_done {
                        return;
                    }
                    self.at = At::Head;
                }
            }
        }
    }

    /// A call begins.
    pub fn begin(&mut self, name: String, told: &mut Vec<Told>) {
        let n_id = self.family.map_or(24, |family| family.n_id);
        let id = random_name("").chars().take(n_id).collect::<String>();
        let id = if n_id < 24 { id } else { format!("call_{id}") };
        self.calls.push(Call { id: id.clone(), name: name.clone(), arguments: String::new() });
        told.push(Told::Begin { index: self.calls.len() - 1, id, name });
    }

    /// More of the latest call's arguments.
    pub fn add(&mut self, text: String, told: &mut Vec<Told>) {
        let index = self.calls.len().saturating_sub(1);
        if let Some(call) = self.calls.last_mut().filter(|_| !text.is_empty()) {
            call.arguments.push_str(&text);
            told.push(Told::Arguments { index, text });
        }
    }

    /// The end: what was held back for a mark or a call that did not come.
    pub fn finish(&mut self, told: &mut Vec<Told>) {
        let held = std::mem::take(&mut self.held);
        match self.calls.is_empty() {
            true => say(held, told),
            false => self.raw.push_str(&held),
        }
    }

    /// Whether there are calls, and each has come to its end.
    pub fn are_whole(&self) -> bool {
        !self.calls.is_empty() && self.calls.iter().all(|call| call.object().is_some())
    }

    /// `(id, name, arguments)` of each.
    pub fn triples(&self) -> Vec<(String, String, String)> {
        self.calls.iter().map(|call| (call.id.clone(), call.name.clone(), call.arguments.clone())).collect()
    }
}

fn say(text: String, told: &mut Vec<Told>) {
    if !text.is_empty() {
        told.push(Told::Text(text));
    }
}

enum Head {
    Call {
        name: String,
        n_bytes: usize,
    },
    /// It may become one.
    Part,
    None,
}

/// Goes past what stands between calls. True: the text may have ended in the middle of a mark.
fn skip(rest: &mut &str, family: &Family) -> bool {
    let marks = [family.open, family.close];
    loop {
        let trimmed = rest.trim_start();
        *rest = trimmed;
        if let Some(behind) = marks.iter().filter(|mark| !mark.is_empty()).find_map(|mark| trimmed.strip_prefix(mark)) {
            *rest = behind;
        } else if marks.iter().any(|mark| !mark.is_empty() && mark.starts_with(trimmed)) {
            return true;
        } else if let Some(behind) = trimmed.strip_prefix(['[', ']', ',', '}']) {
            // A mark may begin with one of these, so it was looked for before.
            *rest = behind;
        } else {
            return false;
        }
    }
}

/// Goes past a word and the space before it. `part`: whether what is there instead may become it.
fn eat(rest: &mut &str, word: &str, part: &mut bool) -> bool {
    *rest = rest.trim_start();
    match rest.strip_prefix(word) {
        Some(behind) => *rest = behind,
        None => {
            *part = word.starts_with(*rest);
            return false;
        }
    }
    true
}

/// What stands before the arguments of a call: what closes the one before, marks, and `{"name": "…", "arguments": `.
fn head(text: &str, family: &Family) -> Head {
    let mut rest = text;
    if skip(&mut rest, family) {
        return Head::Part;
    }
    if family.is_words() {
        return match words::name(rest) {
            Name::Whole(name, n) => Head::Call { name, n_bytes: text.len() - rest.len() + n },
            Name::Part => Head::Part,
            Name::None => Head::None,
        };
    }
    let mut part = true;
    let begins = ["{", "\"name\"", ":", "\""].iter().all(|word| eat(&mut rest, word, &mut part));
    if !begins {
        return if part { Head::Part } else { Head::None };
    }
    let mut is_escaped = false;
    let end = rest.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    });
    let Some(end) = end else { return Head::Part };
    let Ok(name) = serde_json::from_str::<String>(&format!("\"{}\"", &rest[..end])) else { return Head::None };
    rest = &rest[end + 1..];
    let key = format!("\"{}\"", family.key);
    match [",", &key, ":"].iter().all(|word| eat(&mut rest, word, &mut part)) {
        true => {
            let rest = rest.trim_start();
            match rest.as_bytes().first() {
                None => Head::Part,
                Some(b'{') => Head::Call { name, n_bytes: text.len() - rest.len() },
                Some(_) => Head::None,
            }
        }
        false if part => Head::Part,
        false => Head::None,
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/calls.rs"]
mod tests;
