//! The messages and tools of a chat, checked: what templates get of them, and what is refused by name.

use serde_json::{Map, Value, json};

use crate::constraint::MAX_RULES_BYTES;
use crate::text::Conversation;

use super::constraint::check_schema;
use super::error::{Checked, Refusal, quoted};
use super::fields::{Fields, wanted};
use super::tools::{Tools, objects};

const MAX_MESSAGES: usize = 256;
const MAX_TOOLS: usize = 64;
/// What tools may take when a template writes them out with indentation.
const MAX_WRITTEN_BYTES: usize = 256 << 10;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// A chat as a request has it.
#[derive(Debug, Default)]
pub struct Chat {
    pub conversation: Conversation,
    /// The last message is the assistant's and is gone on with: its text, which is not among the messages.
    pub continued: Option<String>,
    /// Messages that are the system's turn, with what is told of tools.
    pub n_system: usize,
    /// What the answer may call.
    pub tools: Option<Tools>,
}

/// Reads `messages`, `tools` and what goes with them.
pub fn read(fields: &Fields<'_>, arguments_as_objects: bool) -> Checked<Chat> {
    let list = fields.needed("messages", "a list of messages")?;
    let list = list.as_array().ok_or_else(|| wanted("messages", "a list of messages", list))?;
    if list.is_empty() || list.len() > MAX_MESSAGES {
        return Err(fields.invalid("messages", format!("{} messages: from 1 to {MAX_MESSAGES} are wanted", list.len())));
    }
    let mut messages = Vec::with_capacity(list.len());
    for (i, message) in list.iter().enumerate() {
        messages.push(one(message, &format!("messages[{i}]"), arguments_as_objects)?);
    }
    let role = |message: &Value| message["role"].as_str().unwrap_or_default().to_owned();
    let mut chat = Chat { n_system: usize::from(role(&messages[0]) == "system"), ..Chat::default() };
    let wants_prompt = fields.bool("add_generation_prompt")?;
    let wants_more = fields.bool("continue_final_message")?;
    if wants_prompt == Some(true) && wants_more == Some(true) {
        let what = "excludes `add_generation_prompt`: a message is continued, or a new one begins";
        return Err(fields.invalid("continue_final_message", what));
    }
    let is_open = messages.last().is_some_and(|last| role(last) == "assistant");
    if wants_more == Some(true) && !is_open {
        return Err(fields.invalid("continue_final_message", "the last message is not the assistant's"));
    }
    if is_open && messages.len() > 1 && role(&messages[messages.len() - 2]) == "assistant" {
        return Err(fields.invalid("messages", "two messages of the assistant at the end: only one can be continued"));
    }
    if is_open && wants_more != Some(false) {
        let last = messages.pop().unwrap_or_default();
        if last.get("tool_calls").is_some() {
            return Err(fields.invalid("messages", "the last message calls tools and cannot be continued: send their results"));
        }
        chat.continued = Some(last["content"].as_str().unwrap_or_default().to_owned());
    }
    let tools = tools(fields)?;
    chat.tools = Tools::read(fields, tools.as_ref())?;
    chat.conversation = Conversation {
        messages,
        tools,
        variables: variables(fields)?,
        // What is continued follows the mark that begins a message.
        add_generation_prompt: chat.continued.is_some() || wants_prompt.unwrap_or(true),
    };
    Ok(chat)
}

fn one(message: &Value, name: &str, arguments_as_objects: bool) -> Checked<Value> {
    let fields = Fields::of(message, name)?;
    let role = match fields.needed("role", "a string")? {
        Value::String(role) => role.as_str(),
        other => return Err(wanted(&fields.name("role"), "a string", other)),
    };
    if !ROLES.contains(&role) {
        return Err(fields.invalid("role", format!("{} is none of {}", quoted(role), ROLES.join(", "))));
    }
    // Templates know system only.
    let role = if role == "developer" { "system" } else { role };
    let calls = tool_calls(&fields, arguments_as_objects)?;
    let content = match fields.get("content") {
        Some(content) => text(content, &fields.name("content"))?,
        None if role == "assistant" && calls.is_some() => String::new(),
        None => return Err(fields.invalid("content", "a string or a list of text parts is wanted here, and there is none")),
    };
    let mut read = Map::new();
    read.insert("role".into(), role.into());
    read.insert("content".into(), content.into());
    if let Some(calls) = calls {
        read.insert("tool_calls".into(), calls);
    }
    for field in ["name", "tool_call_id", "reasoning_content"] {
        if let Some(text) = fields.string(field)? {
            read.insert(field.into(), text.into());
        }
    }
    Ok(Value::Object(read))
}

/// A text, or text parts joined by a blank line.
pub fn text(content: &Value, name: &str) -> Checked<String> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (i, part) in parts.iter().enumerate() {
                texts.push(part_text(part, &format!("{name}[{i}]"))?.to_owned());
            }
            Ok(texts.join("\n\n"))
        }
        other => Err(wanted(name, "a string or a list of text parts", other)),
    }
}

fn part_text<'a>(part: &'a Value, name: &'a str) -> Checked<&'a str> {
    if let Value::String(text) = part {
        return Ok(text);
    }
    let fields = Fields::of(part, name)?;
    match fields.string("type")? {
        None | Some("text" | "input_text" | "output_text") => {
            fields.string("text")?.ok_or_else(|| fields.invalid("text", "a string is wanted here, and there is none"))
        }
        Some("refusal") => {
            fields.string("refusal")?.ok_or_else(|| fields.invalid("refusal", "a string is wanted here, and there is none"))
        }
        Some("image_url" | "input_image" | "input_audio" | "audio" | "video_url" | "file" | "input_file") => {
            Err(Refusal::unsupported_field(&fields.name("type"), "this server reads text only: no images, sound or files"))
        }
        Some(other) => Err(fields.invalid("type", format!("{} is none of text, image_url", quoted(other)))),
    }
}

fn tool_calls(fields: &Fields<'_>, arguments_as_objects: bool) -> Checked<Option<Value>> {
    let Some(calls) = fields.list("tool_calls")?.filter(|calls| !calls.is_empty()) else { return Ok(None) };
    let mut read = Vec::with_capacity(calls.len());
    for (i, call) in calls.iter().enumerate() {
        let name = fields.name(&format!("tool_calls[{i}]"));
        let call = Fields::of(call, &name)?;
        let inner = call.name("function");
        let function = Fields::of(call.needed("function", "an object with `name` and `arguments`")?, &inner)?;
        let called =
            function.string("name")?.ok_or_else(|| function.invalid("name", "a string is wanted here, and there is none"))?;
        let arguments = match function.get("arguments") {
            None => json!({}),
            Some(Value::String(text)) if arguments_as_objects => match serde_json::from_str::<Value>(text) {
                Ok(object @ Value::Object(_)) => object,
                _ => text.as_str().into(),
            },
            Some(given @ (Value::String(_) | Value::Object(_))) if arguments_as_objects || given.is_string() => given.clone(),
            Some(Value::Object(object)) => Value::Object(object.clone()).to_string().into(),
            Some(other) => return Err(wanted(&function.name("arguments"), "a string or an object", other)),
        };
        let mut object = json!({ "type": "function", "function": { "name": called, "arguments": arguments } });
        if let Some(id) = call.string("id")? {
            object["id"] = id.into();
        }
        read.push(object);
    }
    Ok(Some(read.into()))
}

/// `tools`, where there are any.
fn tools(fields: &Fields<'_>) -> Checked<Option<Value>> {
    let Some(tools) = fields.list("tools")?.filter(|tools| !tools.is_empty()) else { return Ok(None) };
    if tools.len() > MAX_TOOLS {
        return Err(fields.invalid("tools", format!("{} tools: at most {MAX_TOOLS}", tools.len())));
    }
    for (i, tool) in tools.iter().enumerate() {
        let name = format!("tools[{i}]");
        let tool = Fields::of(tool, &name)?;
        tool.word("type", &["function"])?;
        let inner = tool.name("function");
        let function = Fields::of(tool.needed("function", "an object with `name` and `parameters`")?, &inner)?;
        if function.string("name")?.is_none_or(str::is_empty) {
            return Err(function.invalid("name", "a string is wanted here, and there is none"));
        }
        function.string("description")?;
        if let Some(parameters) = function.get("parameters") {
            check_schema(parameters, &function.name("parameters"))?;
            if !parameters.is_object() || objects(parameters).is_none() {
                let what = "arguments are an object, which this schema allows none of: send one of `\"type\": \"object\"`";
                return Err(function.invalid("parameters", what));
            }
        }
    }
    let tools = Value::Array(tools.to_vec());
    if tools.to_string().len() > MAX_RULES_BYTES || crate::text::written_bytes(&tools) > MAX_WRITTEN_BYTES {
        let what = format!("more than {MAX_RULES_BYTES} bytes, or {MAX_WRITTEN_BYTES} when they are written out for the model");
        return Err(fields.invalid("tools", what));
    }
    Ok(Some(tools))
}

/// `chat_template_kwargs`: what templates ask for by name. `reasoning_effort` is `none`, which is no thinking, or a word for the template.
fn variables(fields: &Fields<'_>) -> Checked<Map<String, Value>> {
    let given = fields.object("chat_template_kwargs")?;
    if let Some(name) = given.and_then(|given| given.keys().find(|name| crate::text::RESERVED.contains(&name.as_str()))) {
        return Err(fields.invalid("chat_template_kwargs", format!("{} has a field of its own in the request", quoted(name))));
    }
    let mut variables = given.cloned().unwrap_or_default();
    // Clients send it as text too.
    if let Some(Value::String(word)) = variables.get("enable_thinking") {
        let is_on = match word.as_str() {
            "true" => true,
            "false" => false,
            _ => return Err(fields.invalid("chat_template_kwargs", "`enable_thinking` is true or false")),
        };
        variables.insert("enable_thinking".into(), is_on.into());
    }
    match fields.string("reasoning_effort")? {
        None => {}
        Some("none") => drop(variables.entry("enable_thinking").or_insert(false.into())),
        Some(effort) => drop(variables.entry("reasoning_effort").or_insert(effort.into())),
    }
    Ok(variables)
}
