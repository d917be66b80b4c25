//! Chat templates: the Jinja source that a model file carries, rendered over a conversation as the Hugging Face `transformers`
//! library would render it (block trimming, Python's string and dict methods, `raise_exception`, `strftime_now`, `tojson`).
//!
//! Refuses a template that does not parse, one that asks for more work or memory than its conversation deserves, and a
//! conversation that the template itself refuses, saying where. Never guesses another template: the user names one.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};

use crate::error::{Error, Message as Text, Result, Setting, message};
use crate::gguf::GgufFile;
use crate::mem::confined::confined;
use crate::text::Tokenizer;
use crate::units::Bytes;

use super::clock::Clock;
use super::marks::{Marks, Rendered};
use super::named::NAMED;
use super::python;
use super::source::{MAX_BYTES, prepare};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    clock: Arc<Clock>,
}

const NAME: &str = "chat template";

/// What is wrong with a template, and what to do.
fn refusal(what: String) -> Text {
    message![format!("{NAME}{what}set "), Setting::Template, " to another, by name or file"]
}

/// Instructions that any template may take, each 64 bytes of text that is made or read, and as many more for each message and each
/// byte of the conversation.
const FUEL: usize = 500_000;
const FUEL_OF_MESSAGE: usize = 5_000;
/// Calls of macros and blocks within each other.
const MAX_RECURSION: usize = 200;
/// The stack of the thread that renders, and what of it is used at the deepest that limits allow.
const STACK_BYTES: usize = 4 << 20;

impl ChatTemplate {
    /// What of its stack rendering uses at most.
    pub const STACK_USED_BYTES: usize = 1 << 20;

    pub fn new(source: &str) -> Result<Self> {
        Self::with_clock(source, Clock::System)
    }

    /// `clock`: what `strftime_now` writes.
    pub fn with_clock(source: &str, clock: Clock) -> Result<Self> {
        let source: Arc<str> = source.into();
        let (compiled, clock) = (source.clone(), Arc::new(clock));
        let own = clock.clone();
        let environment = confine(source.len(), 0, move || compile(&compiled, own))??;
        Ok(ChatTemplate { environment: Arc::new(environment), source, clock })
    }

    /// A template of `named.rs`, or that of a file; a file stands before a name.
    pub fn named(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.to_string_lossy();
        let known = NAMED.iter().find(|(known, ..)| **known == *name).filter(|_| !path.exists());
        if let Some((.., source)) = known {
            return Self::new(source);
        }
        let read = std::fs::File::open(path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
            // Where it is too long it is refused for that, wherever it was cut.
            if bytes.len() > MAX_BYTES {
                Ok("\n".repeat(bytes.len()))
            } else {
                String::from_utf8(bytes).map_err(std::io::Error::other)
            }
        });
        let source = read.map_err(|e| {
            let names = NAMED.map(|(known, models, _)| format!("{known} ({models})")).join(", ");
            Error::usage(Setting::Template, format!("{name}: {e}; give a file, or one of these names: {names}"))
        })?;
        Self::new(&source).map_err(|e| Error::usage(Setting::Template, message![format!("{name}: "), e.message()]))
    }

    /// The template in the model file, `tokenizer.chat_template`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let Some(source) = file.opt_str("tokenizer.chat_template")? else {
            let what = "has no chat template (metadata tokenizer.chat_template), so it may not be a chat model; set ";
            let what = message![what, Setting::Template, " to one, by name or file"];
            return Err(Error::unsupported(file.path(), what));
        };
        Self::new(source).map_err(|error| Error::unsupported(file.path(), error.message()))
    }

    /// Private memory for rendering messages of so many bytes, from above; what would take more is refused.
    pub fn plan_bytes(&self, text_bytes: usize) -> usize {
        // With stand-ins, and without them again.
        heap_bytes(self.source.len(), text_bytes) + Self::STACK_USED_BYTES + 2 * text_bytes
    }

    /// The text of the conversation; with `add_generation_prompt` it ends where the assistant's answer begins. `bos` and `eos` are
    /// the texts of those tokens. Whatever the messages hold becomes part of the text, control tokens too.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        self.render_within(text_bytes(messages), messages, add_generation_prompt, [bos, eos], vec![])
    }

    /// `render`, with `dates` for the template.
    pub fn render_today(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        self.render_within(text_bytes(messages), messages, add_generation_prompt, [bos, eos], self.dates())
    }

    /// What templates are told of today by llama.cpp's server, beside `strftime_now`: some have a date of their own where they are not,
    /// some need them.
    pub(super) fn dates(&self) -> Vec<(String, Value)> {
        let written = |name: &str, format: &str| (name.to_owned(), Value::from(self.clock.strftime(format)));
        // No tools as text; a conversation that has some says them behind this.
        let functions = ("functions".to_owned(), Value::from(""));
        vec![written("date_string", "%d %b %Y"), written("datetime", "%b %d %Y %H:%M:%S"), functions]
    }

    /// `text_bytes`: what limits go by; `more`: further variables.
    fn render_within(
        &self,
        text_bytes: usize,
        messages: &[Message],
        add_generation_prompt: bool,
        [bos, eos]: [&str; 2],
        more: Vec<(String, Value)>,
    ) -> Result<String> {
        let turns: Vec<Value> = messages
            .iter()
            .map(|turn| Value::from_pairs([("role", turn.role.as_str()), ("content", turn.content.as_str())]))
            .collect();
        let n_turns = turns.len();
        let context = [
            ("messages", Value::from(turns)),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", bos.into()),
            ("eos_token", eos.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        let context = context.map(|(name, value)| (name.to_owned(), value));
        self.render_values(text_bytes, n_turns, move || Value::from_pairs(context.into_iter().chain(more)))
    }

    /// Renders what `context` makes, which it makes within the limits.
    pub(super) fn render_values(
        &self,
        text_bytes: usize,
        n_messages: usize,
        context: impl FnOnce() -> Value + Send + 'static,
    ) -> Result<String> {
        let fuel = FUEL + FUEL_OF_MESSAGE * n_messages + text_bytes;
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel as u64));
        confine(self.source.len(), text_bytes, move || {
            let rendered = environment.get_template(NAME).and_then(|template| template.render(context()));
            rendered.map_err(|error| Error::stopped(describe(&error)))
        })?
    }

    /// What it was made from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `render` for a model: no control token is read where a message writes one out.
    pub fn render_for(&self, tokenizer: &Tokenizer, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered> {
        let taken = messages.iter().flat_map(|turn| [turn.role.as_str(), turn.content.as_str()]).chain([&*self.source]).collect();
        let mut marks = Marks::new(tokenizer, taken);
        let marked: Vec<Message> =
            messages.iter().map(|turn| Message::new(marks.mark(&turn.role, false), marks.mark(&turn.content, true))).collect();
        let [bos, eos] = tokenizer.bos_and_eos_texts();
        let text = self.render_within(text_bytes(messages), &marked, add_generation_prompt, [&bos, &eos], self.dates())?;
        Ok(marks.unmark(text))
    }
}

fn text_bytes(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.role.len() + message.content.len()).sum()
}

/// Bytes that compiling a template and rendering it may take.
fn heap_bytes(source_bytes: usize, text_bytes: usize) -> usize {
    (1 << 20) + source_bytes * 32 + text_bytes.saturating_mul(6)
}

fn confine<T: Send + 'static>(source_bytes: usize, text_bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let bytes = heap_bytes(source_bytes, text_bytes);
    confined(bytes, STACK_BYTES, work).ok_or_else(|| {
        Error::stopped(refusal(format!(
            ": it takes more memory than {}, which a conversation of this size may; ",
            Bytes(bytes as u64)
        )))
    })
}

fn compile(source: &str, clock: Arc<Clock>) -> Result<Environment<'static>> {
    let stopped = |error: minijinja::Error| Error::stopped(describe(&error));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(stopped)?;
    let (source, names) =
        prepare(source, syntax.clone()).map_err(|(line, what)| Error::stopped(refusal(format!(", line {line}: {what}; "))))?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| clock.strftime(format));
    python::teach(&mut environment, &names);
    environment.add_template_owned(NAME, source).map_err(stopped)?;
    Ok(environment)
}

/// Marks an error as one that the template raised by its own will.
const RAISED: &str = "raise_exception: ";

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn describe(error: &minijinja::Error) -> Text {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    // A raised message, or a text that something could not be done with, may be as long as the conversation.
    let detail: String = error.detail().unwrap_or_default().replace('\n', " ").chars().take(400).collect();
    let what = match detail.strip_prefix(RAISED) {
        Some(message) => format!("it refuses this conversation: {message}; change the messages or "),
        None if error.kind() == ErrorKind::OutOfFuel => "it asks for more work than a conversation of this size may; ".into(),
        None if detail.is_empty() => format!("{}; ", error.kind()),
        None => format!("{}: {detail}; ", error.kind()),
    };
    refusal(format!("{line}: {what}"))
}
