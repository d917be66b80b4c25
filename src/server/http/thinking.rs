//! Thoughts and answer apart: what a model writes between `<think>` and `</think>` at the beginning, or as Gemma 4 and gpt-oss write it,
//! is told as its reasoning.
//!
//! Text comes in pieces; what could still become a mark, and white space around thoughts, is held back.

use std::sync::Arc;

use super::harmony::{self, Got, Messages};

/// What opens a thought, and what ends it.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    open: &'static str,
    close: &'static str,
}

const MARKS: [Marks; 2] =
    [Marks { open: "<think>", close: "</think>" }, Marks { open: "<|channel>thought", close: "<channel|>" }];

#[derive(Clone, Debug)]
enum Where {
    /// Nothing but white space, or a part of a mark, has come.
    Start,
    /// What ends with this.
    Thought(&'static Marks),
    /// Behind thoughts; white space before the answer is none of it.
    Gap,
    Answer,
    /// gpt-oss's messages, with headers.
    Messages(Messages),
}

#[derive(Clone, Debug)]
pub struct Splitter {
    at: Where,
    held: String,
    /// White space before a thought is none of it.
    has_thought: bool,
}

impl Splitter {
    /// `is_thinking`: the prompt ended with `<think>`.
    pub fn new(is_thinking: bool) -> Self {
        Splitter {
            at: if is_thinking { Where::Thought(&MARKS[0]) } else { Where::Start },
            held: String::new(),
            has_thought: false,
        }
    }

    /// One that tells everything as answer.
    pub fn off() -> Self {
        Splitter { at: Where::Answer, held: String::new(), has_thought: false }
    }

    /// The same, but that it tells gpt-oss's calls of functions with these names.
    pub fn with_calls(self, names: Arc<[String]>) -> Self {
        let is_parted = !matches!(self.at, Where::Answer);
        Splitter { at: Where::Messages(Messages::new(Some(names), is_parted)), ..self }
    }

    pub fn push(&mut self, text: &str, got: &mut Vec<Got>) {
        if let Where::Messages(messages) = &mut self.at {
            return messages.push(text, got);
        }
        self.held.push_str(text);
        loop {
            match &mut self.at {
                Where::Messages(messages) => return messages.push(&std::mem::take(&mut self.held), got),
                Where::Answer => return harmony::add(got, Got::Text(std::mem::take(&mut self.held))),
                Where::Gap => {
                    let n_space = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..n_space);
                    if self.held.is_empty() {
                        return;
                    }
                    self.at = Where::Answer;
                }
                Where::Start => {
                    let begun = self.held.trim_start();
                    let opened = MARKS.iter().find_map(|marks| Some((begun.strip_prefix(marks.open)?, marks)));
                    let headers = [harmony::START, harmony::CHANNEL];
                    if let Some((thought, marks)) = opened {
                        self.held = thought.to_owned();
                        self.at = Where::Thought(marks);
                    } else if headers.iter().any(|mark| begun.starts_with(mark)) {
                        self.at = Where::Messages(Messages::new(None, true));
                    } else if MARKS.iter().map(|marks| marks.open).chain(headers).any(|open| open.starts_with(begun)) {
                        return;
                    } else {
                        self.at = Where::Answer;
                    }
                }
                Where::Thought(marks) => {
                    let close = marks.close;
                    let Some(end) = self.held.find(close) else {
                        let n_safe = self.held[..safe(&self.held, close)].trim_end().len();
                        let thought: String = self.held.drain(..n_safe).collect();
                        return self.think(&thought, got);
                    };
                    let rest = self.held.split_off(end + close.len());
                    let thought = std::mem::replace(&mut self.held, rest);
                    self.think(thought[..end].trim_end(), got);
                    self.at = Where::Gap;
                }
            }
        }
    }

    fn think(&mut self, thought: &str, got: &mut Vec<Got>) {
        let thought = if self.has_thought { thought } else { thought.trim_start() };
        self.has_thought |= !thought.is_empty();
        harmony::add(got, Got::Thought(thought.to_owned()));
    }

    /// The end: what was held back for a mark that did not come.
    pub fn finish(&mut self, got: &mut Vec<Got>) {
        let held = std::mem::take(&mut self.held);
        match &mut self.at {
            Where::Thought(_) => self.think(held.trim_end(), got),
            Where::Gap => {}
            Where::Start | Where::Answer => harmony::add(got, Got::Text(held)),
            Where::Messages(messages) => messages.finish(got),
        }
    }
}

/// How much of a thought cannot belong to the mark that ends it.
fn safe(held: &str, close: &str) -> usize {
    let longest = (1..close.len()).rev().find(|n| held.ends_with(&close[..*n])).unwrap_or(0);
    held.len() - longest
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/thinking.rs"]
mod tests;
