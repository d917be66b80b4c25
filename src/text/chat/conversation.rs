//! A conversation as requests to a server bring it: messages with calls of tools, the tools, and variables for the template, all as
//! JSON. Every string of it is text, wherever it stands: none becomes a mark of the template's (`marks`).
//!
//! Limits go by what all of it takes when it is written out with indentation, since templates write tools so: lists in lists
//! are small in a request and large in a prompt.

use std::io::{self, Write};

use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value as Json};

use crate::error::Result;
use crate::text::Tokenizer;

use super::marks::{Marks, Rendered};
use super::template::ChatTemplate;

#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// Objects with `role` and `content` and what else templates know.
    pub messages: Vec<Json>,
    /// A list; none where there are none.
    pub tools: Option<Json>,
    /// What else the template may ask for; the names of `RESERVED` are not among them.
    pub variables: Map<String, Json>,
    pub add_generation_prompt: bool,
}

/// Variables that a conversation sets itself.
pub const RESERVED: [&str; 5] = ["messages", "tools", "bos_token", "eos_token", "add_generation_prompt"];

/// Strings that templates compare with their own words and that are no one's text: they are marked where they hold a whole control
/// token, and not where they are a part of one.
const COMPARED: [&str; 2] = ["role", "type"];

/// Counts what is written.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a value that is written with four spaces for each list around a line.
pub fn written_bytes(value: &impl Serialize) -> usize {
    let mut count = Count(0);
    let mut serializer = Serializer::with_formatter(&mut count, PrettyFormatter::with_indent(b"    "));
    // Counting does not fail, and what JSON holds can be written.
    let _ = value.serialize(&mut serializer);
    count.0
}

impl Conversation {
    /// What limits of rendering go by.
    pub fn text_bytes(&self) -> usize {
        written_bytes(&self.messages) + self.tools.as_ref().map_or(0, written_bytes) + written_bytes(&self.variables)
    }

    fn values(&self) -> impl Iterator<Item = &Json> {
        self.messages.iter().chain(&self.tools).chain(self.variables.values())
    }
}

/// Every string of a value, names included.
fn strings<'a>(value: &'a Json, found: &mut Vec<&'a str>) {
    match value {
        Json::String(text) => found.push(text),
        Json::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Json::Object(pairs) => pairs.iter().for_each(|(name, item)| {
            found.push(name);
            strings(item, found);
        }),
        _ => {}
    }
}

/// The value with stand-ins in its strings. `joins` as `Marks::mark` has it.
fn marked(marks: &mut Marks<'_>, value: &Json, joins: bool) -> Json {
    match value {
        Json::String(text) => marks.mark(text, joins).into_owned().into(),
        Json::Array(items) => items.iter().map(|item| marked(marks, item, joins)).collect(),
        Json::Object(pairs) => {
            let pairs = pairs.iter().map(|(name, item)| {
                let item = marked(marks, item, !COMPARED.contains(&name.as_str()));
                (marks.mark(name, false).into_owned(), item)
            });
            Json::Object(pairs.collect())
        }
        other => other.clone(),
    }
}

impl ChatTemplate {
    /// The text of a conversation for a model, in which no control token is read where anybody but the template writes one out.
    pub fn render_conversation(&self, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Rendered> {
        let mut taken = vec![self.source()];
        conversation.values().for_each(|value| strings(value, &mut taken));
        let mut marks = Marks::new(tokenizer, taken);
        let messages: Vec<Json> = conversation.messages.iter().map(|message| marked(&mut marks, message, true)).collect();
        let tools = conversation.tools.as_ref().map(|tools| marked(&mut marks, tools, true));
        let variables: Vec<(String, Json)> = conversation
            .variables
            .iter()
            .filter(|(name, _)| !RESERVED.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), marked(&mut marks, value, true)))
            .collect();
        let [bos, eos] = tokenizer.bos_and_eos_texts();
        let (add_generation_prompt, dates) = (conversation.add_generation_prompt, self.dates());
        let wants_functions = self.source().contains("functions");
        let context = move || {
            let own = [
                ("messages".to_owned(), Value::from(Serde(&messages))),
                ("tools".to_owned(), tools.as_ref().map_or(Value::from(()), |tools| Serde(tools).into())),
                ("documents".to_owned(), Value::from(())),
                ("bos_token".to_owned(), bos.into()),
                ("eos_token".to_owned(), eos.into()),
                ("add_generation_prompt".to_owned(), add_generation_prompt.into()),
            ];
            // The same tools as text, for templates that do not write them themselves.
            let functions = tools.as_ref().filter(|_| wants_functions).and_then(|tools| serde_json::to_string_pretty(tools).ok());
            let functions = functions.map(|text| ("functions".to_owned(), Value::from(text)));
            let given = variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
            // A later one of the same name counts.
            Value::from_pairs(own.into_iter().chain(dates).chain(functions).chain(given))
        };
        let rendered = self.render_values(conversation.text_bytes(), conversation.messages.len(), context)?;
        Ok(marks.unmark(rendered))
    }
}
