//! From a chat, or the prompt of a completion, to tokens.

use std::sync::Arc;

use serde_json::Value;

use crate::text::{ChatTemplate, Rendered};

use crate::server::desk::{Continues, Said, SystemTurn};
use crate::server::said::SaidLog;

use super::app::App;
use super::clerk;
use super::error::{Checked, Refusal};
use super::fields::{Fields, kind, wanted};
use super::harmony;
use super::messages::{self, Chat};
use super::tools::{self, Tools};
use super::{Overflow, Thinking};

/// A system's turn that is shorter is read as soon as it is brought.
const MIN_SYSTEM_TOKENS: usize = 64;

/// Prompts that one request may bring.
const MAX_PROMPTS: usize = 32;

/// What a model reads.
#[derive(Debug)]
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Where its text goes on with what a stream holds.
    pub continues: Option<Continues>,
    /// First tokens that are never evicted.
    pub n_pinned: usize,
    /// The system's turn, where sessions are kept.
    pub system: Option<Arc<SystemTurn>>,
    /// The model is thinking where the prompt ends.
    pub is_thinking: bool,
    /// The answer begins with a header of gpt-oss.
    pub is_headed: bool,
}

fn template(app: &App) -> Checked<&ChatTemplate> {
    let template = app.shared.template.as_ref();
    template.map_err(|why| Refusal::unsupported(format!("chats need a chat template: {why}")))
}

/// Whether a template writes arguments of calls as JSON, and so wants them as what JSON says.
fn wants_objects(template: &ChatTemplate) -> bool {
    let source: String = template.source().chars().filter(|c| !c.is_whitespace()).collect();
    source.contains("arguments|tojson") || source.contains("arguments|items") || source.contains("arguments.items()")
}

/// The chat of a request, as its template reads it.
pub fn read_chat(app: &App, fields: &Fields<'_>) -> Checked<Chat> {
    let template = template(app)?;
    let mut chat = messages::read(fields, wants_objects(template))?;
    chat.n_system = tools::tell(&mut chat.conversation, template.source(), &app.ring, Tools::must_call(fields));
    Ok(chat)
}

/// Marks between which models think.
const THINK: [&str; 2] = ["<think>", "</think>"];
const START_THINKING: &str = "<|START_THINKING|>";

/// The text of a chat.
pub fn render(app: &App, mut chat: Chat) -> Checked<Rendered> {
    let template = template(app)?;
    clerk::check_rendering()?;
    let (n_written, most) = (chat.conversation.text_bytes(), app.settings.max_written());
    if n_written > most {
        let what = format!(
            "written out for the template the conversation has {n_written} bytes, more than {most}: nest less, or say less"
        );
        return Err(Refusal::invalid("messages", what));
    }
    let variables = &mut chat.conversation.variables;
    let wished = match app.settings.thinking {
        // Templates with the switch differ in what they take its absence for; llama.cpp's server turns it on.
        Thinking::Auto => template.source().contains("enable_thinking").then_some(true),
        Thinking::On => Some(true),
        Thinking::Off => Some(false),
    };
    if let Some(wished) = wished {
        variables.entry("enable_thinking").or_insert(wished.into());
    }
    let is_off = variables.get("enable_thinking") == Some(&Value::Bool(false));
    let rendered = template.render_conversation(&app.shared.tokenizer, &chat.conversation);
    let mut rendered = rendered.map_err(|error| Refusal::bad("invalid_value", short(&error.to_string())))?;
    if chat.conversation.add_generation_prompt {
        let thinks = rendered.text.trim_end().ends_with(THINK[0]);
        if chat.continued.is_some() && is_headed(template.source(), &rendered) {
            rendered.push_marks(harmony::FINAL);
        }
        // Templates that always begin a thought know no switch: the thought is ended for them.
        if thinks && chat.continued.is_some() {
            rendered.push_marks("</think>\n\n");
        } else if thinks && is_off {
            rendered.push_marks(THINK[1]);
        } else if is_off && template.source().contains(START_THINKING) && !rendered.text.ends_with("<|END_THINKING|>") {
            rendered.push_marks("<|START_THINKING|><|END_THINKING|>");
        }
    }
    if let Some(text) = &chat.continued {
        rendered.push_plain(text);
    }
    Ok(rendered)
}

/// Whether a header of gpt-oss follows.
fn is_headed(source: &str, rendered: &Rendered) -> bool {
    source.contains(harmony::SIGN) && rendered.text.ends_with(harmony::PROMPT_END)
}

/// An error of a template may quote the conversation.
fn short(message: &str) -> String {
    message.chars().take(600).collect()
}

/// The tokens of a chat. `pins`: whether the system's turn is to stay.
pub fn of_chat(app: &App, chat: Chat, pins: bool) -> Checked<Prompt> {
    let head = ((pins || app.settings.sessions) && chat.n_system > 0).then(|| system_alone(&chat));
    let is_continued = chat.continued.is_some();
    let rendered = render(app, chat)?;
    let is_thinking = !is_continued && rendered.text.trim_end().ends_with(THINK[0]);
    let is_headed = !is_continued && is_headed(template(app)?.source(), &rendered);
    let ids = tokens(app, &rendered)?;
    let continues = continues(app, &rendered, &ids)?;
    let mut n_system = 0;
    for other in head.into_iter().flatten() {
        // What a template does not take alone is not pinned.
        let Ok(other) = render(app, other).and_then(|rendered| tokens(app, &rendered)) else { continue };
        let n_same = ids.iter().zip(&other).take_while(|(a, b)| a == b).count();
        if n_same < ids.len() {
            n_system = n_same;
            break;
        }
    }
    let system = (app.settings.sessions && n_system >= MIN_SYSTEM_TOKENS).then(|| {
        let text = ids[..n_system].iter().flat_map(|id| app.shared.tokenizer.token_bytes(*id, true)).copied().collect();
        Arc::new(SystemTurn { n_tokens: n_system, text })
    });
    let n_pinned = if pins { n_system } else { 0 };
    Ok(Prompt { ids: checked(app, ids)?, continues, n_pinned, system, is_thinking, is_headed })
}

/// The longest of the streams' texts that a chat begins with, and the tokens that follow it.
fn continues(app: &App, rendered: &Rendered, ids: &[u32]) -> Checked<Option<Continues>> {
    // What is added before the text is in the streams too.
    let tokenizer = &app.shared.tokenizer;
    let bos = ids.first().filter(|id| Some(**id) == tokenizer.bos()).map_or(&[][..], |id| tokenizer.token_bytes(*id, true));
    let added = if rendered.text.as_bytes().starts_with(bos) { 0 } else { bos.len() };
    let begins = |said: &Said| {
        let n = usize::try_from(said.n_bytes).ok()?.checked_sub(added).filter(|n| *n > 0 && *n < rendered.text.len())?;
        (SaidLog::of(&[bos].into_iter().filter(|_| added > 0).chain([rendered.text.as_bytes().get(..n)?]).collect::<Vec<_>>())
            == *said)
            .then_some((n, *said))
    };
    let said: Vec<Said> = app.shared.desk.streams(|streams| streams.iter().map(|stream| stream.said).collect());
    let Some((n, said)) = said.iter().filter_map(begins).max_by_key(|(n, _)| *n) else { return Ok(None) };
    let rest = tokenizer.encode_pieces(&rendered.pieces_from(n), false);
    let rest = rest.map_err(|error| Refusal::bad("invalid_value", format!("the chat cannot be split into tokens: {error}")))?;
    Ok((!rest.is_empty()).then_some(Continues { said, rest }))
}

/// The system's turn with other words of a user behind it: what both chats begin with is the system's.
fn system_alone(chat: &Chat) -> [Chat; 2] {
    ["", "?"].map(|text| {
        let mut conversation = chat.conversation.clone();
        conversation.messages.truncate(chat.n_system);
        conversation.messages.push(serde_json::json!({ "role": "user", "content": text }));
        Chat { conversation, n_system: chat.n_system, ..Chat::default() }
    })
}

fn tokens(app: &App, rendered: &Rendered) -> Checked<Vec<u32>> {
    let ids = app.shared.tokenizer.encode_pieces(&rendered.pieces(), true);
    ids.map_err(|error| Refusal::bad("invalid_value", format!("the chat cannot be split into tokens: {error}")))
}

/// Tokens of a chat, whether or not they fit.
pub fn count(app: &App, chat: Chat) -> Checked<usize> {
    Ok(tokens(app, &render(app, chat)?)?.len())
}

/// A prompt that can be answered.
fn checked(app: &App, ids: Vec<u32>) -> Checked<Vec<u32>> {
    let settings = &app.settings;
    if ids.is_empty() {
        return Err(Refusal::bad("invalid_value", "the prompt is empty, 0 tokens to start from: give some text"));
    }
    if settings.overflow == Overflow::Error && ids.len() >= settings.n_ctx {
        return Err(Refusal::context(ids.len(), settings.n_ctx));
    }
    Ok(ids)
}

/// The prompts of a completion.
pub fn of_completion(app: &App, fields: &Fields<'_>) -> Checked<Vec<Prompt>> {
    let prompt = fields.needed("prompt", "a string, a list of tokens, or a list of those")?;
    let one = |ids: Vec<u32>| -> Checked<Prompt> {
        let ids = checked(app, ids)?;
        Ok(Prompt { ids, continues: None, n_pinned: 0, system: None, is_thinking: false, is_headed: false })
    };
    let Value::Array(items) = prompt else { return Ok(vec![one(sequence(app, prompt)?)?]) };
    if items.is_empty() {
        return Err(fields.invalid("prompt", "an empty list"));
    }
    // Numbers belong to one sequence, with the texts between them.
    let is_flat = items.iter().all(|item| item.is_number() || item.is_string());
    if is_flat && items.iter().any(Value::is_number) {
        return Ok(vec![one(sequence(app, prompt)?)?]);
    }
    if items.len() > MAX_PROMPTS {
        return Err(fields.invalid("prompt", format!("{} prompts: at most {MAX_PROMPTS} in a request", items.len())));
    }
    items.iter().map(|item| one(sequence(app, item)?)).collect()
}

/// One sequence: a text, an object with one, or tokens and texts mixed.
fn sequence(app: &App, prompt: &Value) -> Checked<Vec<u32>> {
    match prompt {
        Value::String(text) => app.encode(text, true, true),
        Value::Object(_) => {
            let fields = Fields::of(prompt, "prompt")?;
            if fields.get("multimodal_data").is_some() {
                return Err(Refusal::unsupported_field("prompt.multimodal_data", "this server reads text only"));
            }
            let text = fields.needed("prompt_string", "a string")?;
            match text {
                Value::String(text) => app.encode(text, true, true),
                other => Err(wanted("prompt.prompt_string", "a string", other)),
            }
        }
        Value::Array(items) => {
            let mut ids = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                match item {
                    Value::Number(_) => ids.push(token(app, item, "prompt")?),
                    Value::String(text) => ids.extend(app.encode(text, i == 0, true)?),
                    other => return Err(wanted("prompt", "a token or a text in a sequence", other)),
                }
            }
            Ok(ids)
        }
        other => Err(Refusal::invalid("prompt", format!("a string or a list is wanted here, not {}", kind(other)))),
    }
}

/// A token's number.
pub fn token(app: &App, value: &Value, name: &str) -> Checked<u32> {
    let n_vocab = app.shared.tokenizer.n_vocab();
    let id = value.as_u64().filter(|id| *id < n_vocab as u64);
    id.map(|id| id as u32)
        .ok_or_else(|| Refusal::invalid(name, format!("{value} is no token: they are from 0 to {}", n_vocab - 1)))
}
