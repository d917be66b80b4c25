//! gpt-oss's format, "harmony": an answer is a few messages, each behind a header that names its channel and, where it is a call, its
//! recipient. Here they are told apart as they come; here is the grammar of calls, and what the template wants of earlier ones.
//!
//! A call is `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>`, and as the template writes it
//! ` to=functions.NAME<|channel|>commentary json<|message|>{…}<|call|>`, the prompt ending with `<|start|>assistant`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::constraint::quoted;
use crate::text::Conversation;

use super::scan::Scan;

/// What a template of the format holds.
pub const SIGN: &str = "<|channel|>analysis<|message|>";
/// What a prompt ends with, behind which a header follows.
pub const PROMPT_END: &str = "<|start|>assistant";
/// The header of an answer's last message.
pub const FINAL: &str = "<|channel|>final<|message|>";

pub const START: &str = "<|start|>";
pub const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const TO: &str = "to=";
const FUNCTIONS: &str = "functions.";
/// What ends a message. The last two end an answer too, and are no text then.
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
/// Recipients that are no tools.
const NO_TOOLS: [&str; 3] = ["assistant", "user", "all"];
/// Of a header, beside a name that is offered.
const MAX_HEAD_BYTES: usize = 512;
/// Of a text, at a time.
const PIECE_BYTES: usize = 1024;

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    Thought(String),
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments.
    Arguments(String),
}

/// Adds to what has come; more of the same is one text.
pub fn add(got: &mut Vec<Got>, more: Got) {
    match (got.last_mut(), more) {
        (Some(Got::Thought(text)), Got::Thought(more))
        | (Some(Got::Text(text)), Got::Text(more))
        | (Some(Got::Arguments(text)), Got::Arguments(more)) => text.push_str(&more),
        (_, Got::Thought(more) | Got::Text(more) | Got::Arguments(more)) if more.is_empty() => {}
        (_, more) => got.push(more),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Body {
    is_thought: bool,
    /// Its marks are told too.
    is_raw: bool,
    /// White space that it begins with is none of it.
    is_fresh: bool,
}

const PLAIN: Body = Body { is_thought: false, is_raw: false, is_fresh: false };

#[derive(Clone, Debug)]
enum At {
    /// In a header, or before it. `mark` ended a text, and is part of it where no header follows.
    Head {
        mark: &'static str,
        is_first: bool,
    },
    Body(Body),
    /// Behind the header of a call, before its arguments.
    Call {
        head: String,
        name: String,
    },
    Arguments(Scan),
    /// Behind arguments.
    Behind,
}

/// The messages of an answer, in pieces.
#[derive(Clone, Debug)]
pub struct Messages {
    at: At,
    held: String,
    /// Names of functions that are offered. None: nothing is a call.
    names: Option<Arc<[String]>>,
    /// Thoughts are told apart from text, and headers are not told.
    is_parted: bool,
    has_thought: bool,
    /// Behind a call nothing but thoughts and calls is worth telling.
    has_called: bool,
}

impl Messages {
    pub fn new(names: Option<Arc<[String]>>, is_parted: bool) -> Self {
        let at = At::Head { mark: "", is_first: true };
        Messages { at, held: String::new(), names, is_parted, has_thought: false, has_called: false }
    }

    pub fn push(&mut self, mut text: &str, got: &mut Vec<Got>) {
        // What is held is gone through again and again, so it stays short.
        while !text.is_empty() {
            let (piece, rest) = text.split_at(text.floor_char_boundary(PIECE_BYTES));
            self.held.push_str(piece);
            self.go_on(got);
            text = rest;
        }
    }

    fn go_on(&mut self, got: &mut Vec<Got>) {
        loop {
            let goes_on = match self.at {
                At::Head { mark, is_first } => self.head(mark, is_first, got),
                At::Body(body) => self.body(body, got),
                At::Call { .. } => self.call(got),
                At::Arguments(mut scan) => {
                    let (n, is_done) = scan.run(&self.held);
                    add(got, Got::Arguments(self.held.drain(..n).collect()));
                    self.at = if is_done { At::Behind } else { At::Arguments(scan) };
                    is_done
                }
                At::Behind => {
                    self.held.drain(..self.held.len() - self.held.trim_start().len());
                    let end = ENDS.iter().find(|end| self.held.starts_with(**end));
                    let is_part = end.is_none() && ENDS.iter().any(|end| end.starts_with(&self.held));
                    if !is_part {
                        self.held.drain(..end.map_or(0, |end| end.len()));
                        self.at = At::Head { mark: "", is_first: false };
                    }
                    !is_part
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The end: what was held back for a mark, a header or a call that did not come.
    pub fn finish(&mut self, got: &mut Vec<Got>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.at, At::Body(PLAIN)) {
            At::Head { mark, .. } if !mark.is_empty() && held.trim().is_empty() => {}
            At::Head { mark, .. } => self.say(&mut PLAIN.clone(), &format!("{mark}{held}"), got),
            At::Body(mut body) => {
                let text = if body.is_thought { held.trim_end() } else { &held };
                self.say(&mut body, text, got);
            }
            At::Call { head, .. } => self.say(&mut PLAIN.clone(), &format!("{head}{held}"), got),
            At::Arguments(_) | At::Behind => {}
        }
    }

    fn say(&mut self, body: &mut Body, text: &str, got: &mut Vec<Got>) {
        let is_trimmed = if body.is_thought { !self.has_thought } else { body.is_fresh };
        let text = if is_trimmed { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        body.is_fresh = false;
        self.has_thought |= body.is_thought;
        match body.is_thought {
            true => add(got, Got::Thought(text.to_owned())),
            false if self.has_called => {}
            false => add(got, Got::Text(text.to_owned())),
        }
    }

    fn header(&self, text: &str, is_first: bool) -> Read {
        let names = self.names.as_deref();
        let most = MAX_HEAD_BYTES + names.unwrap_or_default().iter().map(String::len).max().unwrap_or(0);
        match header(text, names.unwrap_or_default(), is_first && names.is_some()) {
            Read::Part if text.len() > most => Read::None,
            Read::Whole { n_bytes, .. } if n_bytes > most => Read::None,
            read => read,
        }
    }

    /// True: it has ended, or was none.
    fn head(&mut self, mark: &'static str, is_first: bool, got: &mut Vec<Got>) -> bool {
        let mut body = Body { is_fresh: true, ..PLAIN };
        match self.header(&self.held, is_first) {
            Read::Part => return false,
            Read::None => {
                body = PLAIN;
                self.say(&mut body, mark, got);
            }
            Read::Whole { channel, tool, n_bytes } => {
                let head: String = self.held.drain(..n_bytes).collect();
                // What begins a message is no part of what is told of it.
                let head = head.strip_prefix(PROMPT_END).filter(|_| self.is_parted).map_or_else(|| head.clone(), str::to_owned);
                match tool {
                    Some(name) if self.names.is_some() => {
                        self.at = At::Call { head, name };
                        return true;
                    }
                    // What is no thought and no text is told as it is.
                    tool if tool.is_some() || !self.is_parted => {
                        body = Body { is_raw: true, ..PLAIN };
                        self.say(&mut body, &head, got);
                    }
                    _ => body.is_thought = channel == Some(Channel::Analysis),
                }
            }
        }
        self.at = At::Body(body);
        true
    }

    /// True: it has ended.
    fn body(&mut self, mut body: Body, got: &mut Vec<Got>) -> bool {
        let begins: &[&str] = if self.names.is_some() { &[START, CHANNEL] } else { &[] };
        let mut from = 0;
        let (n_told, is_over) = loop {
            let marks = ENDS.iter().chain(begins);
            let found = marks.clone().filter_map(|mark| Some((from + self.held[from..].find(mark)?, *mark)));
            let Some((place, mark)) = found.min() else {
                let is_part = |n: &usize| marks.clone().any(|mark| *n < mark.len() && self.held.ends_with(&mark[..*n]));
                break (self.held.len() - (1..START.len().max(CHANNEL.len())).rev().find(is_part).unwrap_or(0), None);
            };
            if ENDS.contains(&mark) {
                break (place, Some(mark));
            }
            // Within a message only a call begins another.
            match self.header(&self.held[place..], false) {
                Read::Whole { tool: Some(_), .. } => break (place, Some("")),
                Read::Part => break (place, None),
                _ => from = place + mark.len(),
            }
        };
        let told = &self.held[..n_told];
        let told = if body.is_thought { told.trim_end() } else { told };
        let n_drained = if is_over.is_some() { n_told } else { told.len() };
        let told = told.to_owned();
        self.held.drain(..n_drained);
        self.say(&mut body, &told, got);
        self.at = At::Body(body);
        let Some(mark) = is_over else { return false };
        self.held.drain(..mark.len());
        if body.is_raw {
            self.say(&mut body, mark, got);
        }
        let mark = if body.is_thought || body.is_raw { "" } else { mark };
        self.at = At::Head { mark, is_first: false };
        true
    }

    /// Whether arguments follow. True: it is known.
    fn call(&mut self, got: &mut Vec<Got>) -> bool {
        let n_space = self.held.len() - self.held.trim_start().len();
        if n_space == self.held.len() && n_space <= MAX_HEAD_BYTES {
            return false;
        }
        let At::Call { head, name } = std::mem::replace(&mut self.at, At::Arguments(Scan::default())) else { return false };
        if n_space <= MAX_HEAD_BYTES && self.held[n_space..].starts_with('{') {
            self.held.drain(..n_space);
            self.has_called = true;
            got.push(Got::Call(name));
        } else {
            let mut body = Body { is_raw: true, ..PLAIN };
            self.say(&mut body, &head, got);
            self.at = At::Body(body);
        }
        true
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Analysis,
    Text,
}

enum Read {
    Whole {
        channel: Option<Channel>,
        /// Whom it calls.
        tool: Option<String>,
        n_bytes: usize,
    },
    /// It may become one.
    Part,
    None,
}

/// A word of a header.
fn word<'a>(rest: &mut &'a str) -> &'a str {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let (word, behind) = rest.split_at(rest.find(|c| !is_of_word(c)).unwrap_or(rest.len()));
    *rest = behind;
    word
}

/// A header at the head of a text. `is_bare`: it may begin with its recipient.
fn header(text: &str, names: &[String], is_bare: bool) -> Read {
    let mut rest = text.trim_start();
    let (mut channel, mut to, mut has_begun) = (None, None, false);
    if let Some(behind) = rest.strip_prefix(START) {
        match behind.strip_prefix("assistant") {
            Some(behind) => (rest, has_begun) = (behind, true),
            None if "assistant".starts_with(behind) => return Read::Part,
            None => return Read::None,
        }
    } else if START.starts_with(rest) {
        return Read::Part;
    }
    loop {
        let is_known = channel.is_some() || to.is_some();
        rest = rest.trim_start();
        if rest.is_empty() {
            return Read::Part;
        } else if let Some(behind) = rest.strip_prefix(MESSAGE).filter(|_| has_begun || is_known) {
            let tool: Option<(bool, String)> = to;
            let tool = tool.filter(|(is_function, name)| *is_function || !NO_TOOLS.contains(&name.as_str()));
            return Read::Whole { channel, tool: tool.map(|(_, name)| name), n_bytes: text.len() - behind.len() };
        } else if let Some(behind) = rest.strip_prefix(CHANNEL) {
            rest = behind;
            channel = match word(&mut rest) {
                _ if rest.is_empty() => return Read::Part,
                "analysis" => Some(Channel::Analysis),
                "commentary" | "final" => Some(Channel::Text),
                _ => return Read::None,
            };
        } else if let Some(behind) = rest.strip_prefix(TO).filter(|_| is_bare || has_begun || is_known) {
            match recipient(behind, names) {
                Recipient::Whole { is_function, name, behind } => (to, rest) = (Some((is_function, name)), behind),
                Recipient::Part => return Read::Part,
                Recipient::None => return Read::None,
            }
        } else if let Some(behind) = rest.strip_prefix(CONSTRAIN).filter(|_| is_known) {
            rest = behind;
            word(&mut rest);
        } else if [MESSAGE, CHANNEL, CONSTRAIN].iter().any(|mark| mark.starts_with(rest))
            || TO.starts_with(rest) && (is_bare || has_begun || is_known)
        {
            return Read::Part;
        } else if !is_known || word(&mut rest).is_empty() {
            return Read::None;
        }
    }
}

enum Recipient<'a> {
    Whole { is_function: bool, name: String, behind: &'a str },
    Part,
    None,
}

/// The recipient at the head of a text: a name that is offered, whatever stands in it, or else a word.
fn recipient<'a>(text: &'a str, names: &[String]) -> Recipient<'a> {
    if FUNCTIONS.starts_with(text) {
        return Recipient::Part;
    }
    let (is_function, rest) = text.strip_prefix(FUNCTIONS).map_or((false, text), |rest| (true, rest));
    let ends =
        |name: &str| rest.strip_prefix(name).filter(|behind| behind.starts_with("<|") || behind.starts_with(char::is_whitespace));
    let longest = names.iter().filter(|name| ends(name).is_some()).max_by_key(|name| name.len());
    let is_part =
        |name: &String| name.starts_with(rest) || rest.strip_prefix(name.as_str()).is_some_and(|behind| "<|".starts_with(behind));
    if names.iter().filter(|name| longest.is_none_or(|longest| longest.len() < name.len())).any(is_part) {
        return Recipient::Part;
    }
    let name = match (longest, rest.find(|c: char| c.is_whitespace() || c == '<')) {
        (Some(name), _) => name.as_str(),
        (None, Some(n)) => &rest[..n],
        (None, None) => return Recipient::Part,
    };
    if name.is_empty() {
        return Recipient::None;
    }
    Recipient::Whole { is_function, name: name.to_owned(), behind: &rest[name.len()..] }
}

/// In a header, the kind of what it heads.
const KIND: &str = r"/( ?(<\|constrain\|>)?json)?<\|message\|>/";

/// The rules of a function's call behind `to=functions.`, by both headers: `c{i}` and `r{i}`.
pub fn rules(i: usize, name: &str, parameters: &Value) -> String {
    let name = quoted(name);
    format!(
        "c{i}: C{i} a{i}\nr{i}: R{i} a{i}\na{i}: %json {parameters}\n\
         C{i}: {name} {KIND}\nR{i}: {name} {CHANNEL:?} /commentary|analysis/ {KIND}\n"
    )
}

/// The grammar around such rules. `most`: calls of an answer at most.
pub fn grammar(places: &[usize], is_forced: bool, most: usize) -> String {
    let any = |head: &str| places.iter().map(|i| format!("{head}{i}")).collect::<Vec<_>>().join(" | ");
    let again = match most {
        1 => "again: \"\"\n".to_owned(),
        most => format!("again: (AGAIN call){{0,{}}}\nAGAIN: \"<|end|>{PROMPT_END}\"\n", most - 1),
    };
    let start = if is_forced {
        format!("start: AHEAD* call again\n{}", ahead("/analysis|commentary/"))
    } else {
        // What must not stand in a lead is one expression: of several the library does not see that together they leave nothing.
        format!(
            "start: LEAD | LEAD_CHANNEL ofc again | LEAD_ROLE ofr again\n\
             LEAD: /(?s:.*)/ & ~((/(?s:.*)/ (CHANNEL | {PROMPT_END:?} TO) | TO) /(?s:.*)/)\n\
             LEAD_CHANNEL: LEAD CHANNEL\nLEAD_ROLE: LEAD {PROMPT_END:?} TO | TO\n"
        )
    };
    format!(
        "{start}{again}call: CHANNEL ofc | TO ofr\nofc: {}\nofr: {}\n\
         CHANNEL: {CHANNEL:?} /commentary|analysis/ TO\nTO: \" {TO}{FUNCTIONS}\"\n",
        any("c"),
        any("r")
    )
}

/// Messages that come before the last: `AHEAD`, of channels by an expression.
fn ahead(channels: &str) -> String {
    format!(
        "AHEAD: {CHANNEL:?} {channels} {MESSAGE:?} INNER \"<|end|>{PROMPT_END}\"\n\
         INNER: /(?s:.*)/ & ~(/(?s:.*)/ \"<|end|>\" /(?s:.*)/)\n"
    )
}

/// What stands before an answer to a form: thoughts, and the header. In Lark: what the answer follows, and its rules.
pub fn before_form() -> (&'static str, String) {
    ("AHEAD* FINAL", format!("{}FINAL: \"{CHANNEL}final\" {KIND}\n", ahead("/analysis/")))
}

/// Makes of a conversation what the template wants: thoughts by its word for them, and either them or a text beside a call, since it
/// refuses both; a call in each message, with its result behind it; and a description of each tool.
pub fn prepare(conversation: &mut Conversation) {
    let mut messages = Vec::with_capacity(conversation.messages.len());
    let mut given = std::mem::take(&mut conversation.messages).into_iter().peekable();
    while let Some(message) = given.next() {
        let mut calls = one_by_one(message);
        if calls.last().is_some_and(calls_tool) {
            while let Some(next) = given.next_if(calls_tool) {
                calls.extend(one_by_one(next));
            }
            let mut results = Vec::new();
            while let Some(result) = given.next_if(|next| next["role"] == "tool") {
                results.push(result);
            }
            results_behind(calls, results, &mut messages);
        } else {
            messages.append(&mut calls);
        }
    }
    conversation.messages = messages;
    for tool in conversation.tools.iter_mut().filter_map(Value::as_array_mut).flatten() {
        if tool["function"].get("description").is_none_or(Value::is_null) {
            tool["function"]["description"] = "".into();
        }
    }
}

fn calls_tool(message: &Value) -> bool {
    message["role"] == "assistant" && message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
}

/// A message, or one for each of its calls.
fn one_by_one(mut message: Value) -> Vec<Value> {
    if message["role"] != "assistant" {
        return vec![message];
    }
    let calls = message.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default();
    let thought = message["reasoning_content"].as_str().filter(|text| !text.trim().is_empty()).map(str::to_owned);
    if let Some(thought) = thought {
        message["thinking"] = thought.into();
        if !calls.is_empty() {
            message["content"] = "".into();
        }
    }
    let mut messages = vec![message];
    for (i, call) in calls.into_iter().enumerate() {
        if i > 0 {
            messages.push(json!({ "role": "assistant", "content": "" }));
        }
        messages[i]["tool_calls"] = json!([call]);
    }
    messages
}

/// Puts behind each call its result: the one with its id, or else, of those that have no call's id, the first of its name or of none.
fn results_behind(calls: Vec<Value>, mut results: Vec<Value>, messages: &mut Vec<Value>) {
    let call_of = |message: &Value| message["tool_calls"][0].clone();
    let ids: Vec<Value> = calls.iter().map(|message| call_of(message)["id"].take()).collect();
    for (message, id) in calls.into_iter().zip(&ids) {
        let name = call_of(&message)["function"]["name"].take();
        let is_free = |result: &Value| !result["tool_call_id"].is_string() || !ids.contains(&result["tool_call_id"]);
        let place = results.iter().position(|result| id.is_string() && result["tool_call_id"] == *id);
        let place = place.or_else(|| results.iter().position(|result| is_free(result) && result["name"] == name));
        let place = place.or_else(|| results.iter().position(|result| is_free(result) && result["name"].is_null()));
        messages.push(message);
        messages.extend(place.map(|place| results.remove(place)));
    }
    messages.append(&mut results);
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/harmony.rs"]
mod tests;
