//! Thoughts and answer apart: what a model writes between `<think>` and `</think>` at the beginning, or as Gemma 4 and gpt-oss write it,
//! is told as its reasoning.
//!
//! Text comes in pieces; what could still become a mark, and white space around thoughts, is held back.

/// What opens a thought, and what ends it.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    open: &'static str,
    close: &'static str,
    /// Whether another thought may follow.
    again: bool,
}

/// The last is gpt-oss's, whose messages have headers.
const MARKS: [Marks; 3] = [
    Marks { open: "<think>", close: "</think>", again: false },
    Marks { open: "<|channel>thought", close: "<channel|>", again: false },
    Marks { open: "<|channel|>analysis<|message|>", close: "<|end|>", again: true },
];
/// What begins gpt-oss's next message, and the header of its answer.
const NEXT: &str = "<|start|>assistant";
const ANSWER: &str = "<|channel|>final<|message|>";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// Nothing but white space, or a part of a mark, has come.
    Start,
    /// What ends with this.
    Thought(&'static Marks),
    /// Behind thoughts; white space before the answer is none of it.
    Gap,
    Answer,
}

#[derive(Clone, Debug)]
pub struct Splitter {
    at: Where,
    held: String,
    /// White space before a thought is none of it.
    has_thought: bool,
}

/// What a piece of text came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parted {
    pub reasoning: String,
    pub content: String,
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

    pub fn push(&mut self, text: &str) -> Parted {
        let mut parted = Parted::default();
        self.held.push_str(text);
        loop {
            match self.at {
                Where::Answer => {
                    parted.content.push_str(&std::mem::take(&mut self.held));
                    return parted;
                }
                Where::Gap => {
                    let n_space = self.held.len() - self.held.trim_start().len();
                    self.held.drain(..n_space);
                    if self.held.is_empty() {
                        return parted;
                    }
                    self.at = Where::Answer;
                }
                Where::Start => {
                    let begun = self.held.trim_start();
                    let opened = MARKS.iter().find_map(|marks| Some((begun.strip_prefix(marks.open)?, marks)));
                    if let Some((thought, marks)) = opened {
                        self.held = thought.to_owned();
                        self.at = Where::Thought(marks);
                    } else if let Some(answer) = begun.strip_prefix(ANSWER) {
                        self.held = answer.to_owned();
                        self.at = Where::Gap;
                    } else if let Some(message) = begun.strip_prefix(NEXT) {
                        self.held = message.to_owned();
                    } else if MARKS.iter().map(|marks| marks.open).chain([ANSWER, NEXT]).any(|open| open.starts_with(begun)) {
                        return parted;
                    } else {
                        self.at = Where::Answer;
                    }
                }
                Where::Thought(marks) => {
                    let Some(end) = self.held.find(marks.close) else {
                        let n_safe = self.held[..safe(&self.held, marks.close)].trim_end().len();
                        let thought: String = self.held.drain(..n_safe).collect();
                        self.think(&thought, &mut parted);
                        return parted;
                    };
                    let rest = self.held.split_off(end + marks.close.len());
                    let thought = std::mem::replace(&mut self.held, rest);
                    self.think(thought[..end].trim_end(), &mut parted);
                    self.at = if marks.again { Where::Start } else { Where::Gap };
                }
            }
        }
    }

    fn think(&mut self, thought: &str, parted: &mut Parted) {
        let thought = if self.has_thought { thought } else { thought.trim_start() };
        self.has_thought |= !thought.is_empty();
        parted.reasoning.push_str(thought);
    }

    /// The end: what was held back for a mark that did not come.
    pub fn finish(&mut self) -> Parted {
        let held = std::mem::take(&mut self.held);
        let mut parted = Parted::default();
        match self.at {
            Where::Thought(_) => self.think(held.trim_end(), &mut parted),
            Where::Gap => {}
            Where::Start | Where::Answer => parted.content = held,
        }
        parted
    }

    /// The whole of a text at once.
    pub fn part(mut self, text: &str) -> Parted {
        let mut parted = self.push(text);
        let rest = self.finish();
        parted.reasoning.push_str(&rest.reasoning);
        parted.content.push_str(&rest.content);
        parted
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
