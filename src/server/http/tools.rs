//! Tools: how a family of models writes calls of them, what a request says of them, and the grammar that makes calls good ones. How
//! written calls are read back is `calls`; what models are told whose templates know no tools is `words`.

use serde_json::{Value, json};

use crate::constraint::{Prepared, Rules, prepared, quoted};
use crate::text::{Conversation, Tokenizer};

use super::app::App;
use super::constraint;
use super::error::{Checked, Refusal, quoted as shown};
use super::fields::{Fields, wanted};
use super::harmony;
use super::ring::Ring;
use super::words;

/// What a family's calls are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    /// `words` has it.
    Words,
    /// `harmony` has it.
    Harmony,
}

/// How models of a family write calls: `open{"name": …, KEY: …}close`, or a list of such objects between the two, where they are JSON.
#[derive(Debug)]
pub struct Family {
    /// What a template of the family holds.
    sign: &'static str,
    pub form: Form,
    pub open: &'static str,
    pub close: &'static str,
    /// What arguments are called.
    pub key: &'static str,
    pub is_list: bool,
    /// A line break stands behind `open` and before `close`.
    is_on_lines: bool,
    /// Letters and digits of a call's id.
    pub n_id: usize,
}

#[rustfmt::skip]
const FAMILIES: [Family; 6] = [
    // gpt-oss
    Family { sign: harmony::SIGN, form: Form::Harmony, open: "", close: "", key: "", is_list: false, is_on_lines: false, n_id: 24 },
    // Mistral
    Family { sign: "[TOOL_CALLS]", form: Form::Json, open: "[TOOL_CALLS]", close: "", key: "arguments", is_list: true, is_on_lines: false, n_id: 9 },
    // LFM2, in JSON
    Family { sign: "<|tool_list_start|>", form: Form::Json, open: "<|tool_call_start|>", close: "<|tool_call_end|>", key: "arguments", is_list: true, is_on_lines: false, n_id: 24 },
    // Granite 3
    Family { sign: "<|tool_call|>", form: Form::Json, open: "<|tool_call|>", close: "", key: "arguments", is_list: true, is_on_lines: false, n_id: 24 },
    // Llama 3
    Family { sign: "\"parameters\":", form: Form::Json, open: "", close: "", key: "parameters", is_list: false, is_on_lines: false, n_id: 24 },
    // Hermes: Qwen, SmolLM3, Granite 4
    Family { sign: "<tool_call>", form: Form::Json, open: "<tool_call>", close: "</tool_call>", key: "arguments", is_list: false, is_on_lines: true, n_id: 24 },
];

/// Of models that are told of tools in the system's turn.
#[rustfmt::skip]
const WORDS: Family =
    Family { sign: "", form: Form::Words, open: "<call>", close: "", key: "", is_list: false, is_on_lines: false, n_id: 24 };

impl Family {
    /// Of a template, by its source.
    pub fn of(source: &str) -> &'static Family {
        if !tells_tools(source) {
            return &WORDS;
        }
        FAMILIES.iter().find(|family| source.contains(family.sign)).unwrap_or(&FAMILIES[FAMILIES.len() - 1])
    }

    /// Whether calls are in the form of `words`.
    pub fn is_words(&self) -> bool {
        self.form == Form::Words
    }

    /// Whether they are messages of gpt-oss.
    pub fn is_harmony(&self) -> bool {
        self.form == Form::Harmony
    }
}

/// Of the template that a server has.
pub fn family(app: &App) -> &'static Family {
    Family::of(app.shared.template.as_ref().map_or("", |template| template.source()))
}

/// Whether a template tells the model of tools in words of one of these families. Gemma 4's calls are no JSON: it is told as those are
/// whose templates know no tools.
fn tells_tools(source: &str) -> bool {
    source.contains("tools") && !source.contains("<|tool_call>call:")
}

#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    parameters: Value,
    /// The field that its parameters stand in.
    param: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    Named(usize),
}

/// The tools that an answer may call.
#[derive(Clone, Debug)]
pub struct Tools {
    functions: Vec<Function>,
    choice: Choice,
    is_parallel: bool,
}

impl Tools {
    /// What a request says of `tools`, whose form has been checked. None: nothing may be called.
    pub fn read(fields: &Fields<'_>, tools: Option<&Value>) -> Checked<Option<Tools>> {
        let list = tools.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let functions: Vec<Function> = list.iter().enumerate().map(|(i, tool)| function(i, &tool["function"])).collect();
        let is_parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = match fields.get("tool_choice") {
            None => Choice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => Choice::Auto,
                "required" | "any" => Choice::Required,
                other => {
                    return Err(fields.invalid("tool_choice", format!("{} is none of auto, none, required", shown(other))));
                }
            },
            Some(choice @ Value::Object(map)) => {
                let name = map.get("function").and_then(|function| function.get("name")).or_else(|| map.get("name"));
                let name = name.and_then(Value::as_str);
                let name =
                    name.ok_or_else(|| wanted("tool_choice", "auto, none, required, or a function with its name", choice))?;
                let place = functions.iter().position(|function| function.name == name);
                Choice::Named(
                    place.ok_or_else(|| fields.invalid("tool_choice", format!("{} is none of the tools", shown(name))))?,
                )
            }
            Some(other) => {
                return Err(
                    fields.invalid("tool_choice", format!("{} is none of auto, none, required", shown(&other.to_string())))
                );
            }
        };
        match functions.is_empty() {
            true if choice == Choice::Required => Err(fields.invalid("tool_choice", "there are no tools to call")),
            true => Ok(None),
            false => Ok(Some(Tools { functions, choice, is_parallel })),
        }
    }

    /// Whether nothing but a call can come, by what a request says.
    pub fn must_call(fields: &Fields<'_>) -> bool {
        fields.get("tool_choice").is_some_and(|choice| choice.is_object() || matches!(choice.as_str(), Some("required" | "any")))
    }

    /// Names of functions that may be called.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().map(|function| function.name.as_str())
    }

    /// What an answer may be, `family`'s way. Control tokens among the marks are told by their ids.
    pub fn rules(&self, family: &Family, tokenizer: &Tokenizer) -> Checked<Rules> {
        let mut rules = String::new();
        let (mut places, mut n_made) = (Vec::new(), 0);
        for (i, function) in self.functions.iter().enumerate() {
            if matches!(self.choice, Choice::Named(named) if named != i) {
                continue;
            }
            let Prepared { mut schema, n_made: more } =
                prepared(&function.parameters, usize::MAX).map_err(|what| Refusal::grammar(&function.param, what))?;
            // As templates write calls, so that a small model does not go on with white space.
            let guidance = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
            n_made += more;
            places.push(i);
            if family.is_words() {
                rules += &words::rules(i, &function.name, &schema, &guidance);
                continue;
            }
            schema["x-guidance"] = guidance;
            if family.is_harmony() {
                rules += &harmony::rules(i, &function.name, &schema);
                continue;
            }
            let head = format!("{{\"name\": {}, \"{}\": ", Value::from(function.name.as_str()), family.key);
            rules += &format!("f{i}: {} %json {schema} \"}}\"\n", quoted(&head));
        }
        if family.is_harmony() {
            rules += &harmony::grammar(&places, self.is_forced(), if self.is_parallel { MAX_CALLS } else { 1 });
            return Ok(Rules::Own { text: rules, n_made });
        }
        let names: Vec<String> = places.iter().map(|i| format!("f{i}")).collect();
        rules += &format!("call: {}\n", names.join(" | "));
        let (open, close) = (Mark::of(family.open, tokenizer), Mark::of(family.close, tokenizer));
        let line = if family.is_on_lines { "\\n" } else { "" };
        let more = if self.is_parallel { MAX_CALLS - 1 } else { 0 };
        // Behind the first mark.
        let rest = match (family.is_list, more) {
            (true, 0) => format!("\"[\" call \"]\" {}", close.lark()),
            (true, n) => format!("\"[\" call (\", \" call){{0,{n}}} \"]\" {}", close.lark()),
            (false, 0) => format!("\"{line}\" call \"{line}\" {}", close.lark()),
            (false, _) if family.open.is_empty() => "call".to_owned(),
            (false, n) if family.is_words() => format!("call (\"\\n\" {} call){{0,{n}}}", open.lark()),
            (false, n) => {
                let (open, close) = (open.lark(), close.lark());
                format!("\"{line}\" call \"{line}\" {close} (\"{line}\" {open} \"{line}\" call \"{line}\" {close}){{0,{n}}}")
            }
        };
        rules += &format!("rest: {rest}\n");
        rules += &match (&self.choice, &open) {
            (Choice::Auto, Mark::None) => "start: OTHER | rest\nOTHER: /(?s:.*)/ & ~/\\s*\\{\\s*\"name\"(?s:.*)/\n".to_owned(),
            (Choice::Auto, Mark::Token(id)) => format!("start: LEAD | LEAD? <[{id}]> rest\nLEAD: /(?s:.+)/\n"),
            (Choice::Auto, Mark::Text(text)) => {
                let mark = quoted(text);
                format!("start: LEAD | MARKED rest\nMARKED: LEAD {mark}\nLEAD: /(?s:.*)/ & ~(/(?s:.*)/ {mark} /(?s:.*)/)\n")
            }
            (_, open) => format!("start: {} rest\n", open.lark()),
        };
        Ok(Rules::Own { text: rules, n_made })
    }

    /// Why a grammar cannot be made of the tools, where it is by the parameters of one alone.
    pub fn refusal(&self, app: &App) -> Option<Refusal> {
        let alone =
            |function: &Function| constraint::compile(app, &Rules::Schema(function.parameters.clone()), &function.param).err();
        self.functions.iter().find_map(alone)
    }

    /// Whether the answer must be a call.
    pub fn is_forced(&self) -> bool {
        self.choice != Choice::Auto
    }

    /// Tokens of the marks that are not told as text otherwise.
    pub fn shown(family: &Family, tokenizer: &Tokenizer) -> Vec<u32> {
        let id = |text| if let Mark::Token(id) = Mark::of(text, tokenizer) { Some(id) } else { None };
        let mut ids: Vec<u32> = [family.open, family.close].into_iter().filter_map(id).collect();
        ids.sort_unstable();
        ids
    }
}

/// Calls of one answer at most.
const MAX_CALLS: usize = 16;

/// What of a schema is objects, which arguments are; none where nothing is. References are taken to be what is wanted.
pub fn objects(schema: &Value) -> Option<Value> {
    let mut map = match schema {
        Value::Bool(true) => return Some(json!({ "type": "object" })),
        other => other.as_object()?.clone(),
    };
    let is_object = |kind: &Value| kind == "object" || kind.as_array().is_some_and(|kinds| kinds.contains(&"object".into()));
    let is_typed = match map.get("type") {
        Some(kind) if !is_object(kind) => return None,
        None if ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"].iter().any(|key| map.contains_key(*key)) => false,
        _ => {
            map.insert("type".into(), "object".into());
            true
        }
    };
    let part = |part: &Value| objects(part).map(|narrowed| if is_typed { part.clone() } else { narrowed });
    for key in ["anyOf", "oneOf"] {
        let Some(Value::Array(parts)) = map.get_mut(key) else { continue };
        *parts = parts.iter().filter_map(part).collect();
        if parts.is_empty() {
            return None;
        }
    }
    if let Some(Value::Array(parts)) = map.get_mut("allOf") {
        *parts = parts.iter().map(part).collect::<Option<_>>()?;
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(Value::is_object);
        if values.is_empty() {
            return None;
        }
    }
    let has_object = map.get("const").is_none_or(Value::is_object);
    has_object.then(|| map.into())
}

/// Arguments that a schema does not name are none of the tool's.
fn function(i: usize, function: &Value) -> Function {
    let given = function.get("parameters").filter(|given| !given.is_null()).and_then(objects);
    let mut parameters = given.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
    if let Value::Object(map) = &mut parameters {
        let is_open = map.get("additionalProperties").is_none() && map.contains_key("properties");
        let is_plain = !["anyOf", "allOf", "oneOf", "$ref", "patternProperties"].iter().any(|key| map.contains_key(*key));
        if is_open && is_plain {
            map.insert("additionalProperties".into(), false.into());
        }
    }
    let name = function["name"].as_str().unwrap_or_default().to_owned();
    Function { name, parameters, param: format!("tools[{i}].function.parameters") }
}

/// What stands before and behind calls, to the vocabulary.
enum Mark<'a> {
    None,
    Text(&'a str),
    /// A control token, which no text becomes.
    Token(u32),
}

impl<'a> Mark<'a> {
    fn of(text: &'a str, tokenizer: &Tokenizer) -> Mark<'a> {
        match tokenizer.encode(text, true, false).as_deref() {
            _ if text.is_empty() => Mark::None,
            Ok([id]) if tokenizer.is_control(*id) => Mark::Token(*id),
            _ => Mark::Text(text),
        }
    }

    fn lark(&self) -> String {
        match self {
            Mark::None => String::new(),
            Mark::Text(text) => quoted(text),
            Mark::Token(id) => format!("<[{id}]>"),
        }
    }
}

/// Rules behind a thought that is open where the answer begins.
pub fn after_thought(rules: Rules, tokenizer: &Tokenizer, param: &str) -> Checked<Rules> {
    let end = "</think>";
    let (head, lead) = match Mark::of(end, tokenizer) {
        Mark::Token(id) => (format!("LEAD? <[{id}]> SPACE"), "THOUGHT_: /(?s:.+)/".to_owned()),
        _ => (
            "DONE SPACE".to_owned(),
            format!("THOUGHT_: /(?s:.*)/ & ~(/(?s:.*)/ {0} /(?s:.*)/)\nDONE: THOUGHT_ {0}", quoted(end)),
        ),
    };
    behind(rules, &head.replace("LEAD", "THOUGHT_"), &format!("SPACE: /[ \\n]{{0,4}}/\n{lead}\n"), param)
}

/// Rules of a form where the answer begins with a header of gpt-oss.
pub fn in_last_message(rules: Rules, param: &str) -> Checked<Rules> {
    let (head, lead) = harmony::before_form();
    behind(rules, head, &lead, param)
}

/// Rules, which the field `param` asks for, behind others, `lead`, of which `head` is what comes first.
fn behind(rules: Rules, head: &str, lead: &str, param: &str) -> Checked<Rules> {
    let schema = match &rules {
        Rules::Json => json!({ "type": "object" }),
        Rules::Schema(schema) => schema.clone(),
        Rules::Own { text, n_made } => {
            let own = text.replacen("start: ", "answer: ", 1);
            return Ok(Rules::Own { text: format!("start: {head} answer\n{lead}{own}"), n_made: *n_made });
        }
        // Whoever writes a grammar says what it is of.
        Rules::Gbnf(_) | Rules::Lark(_) => return Ok(rules),
    };
    let Prepared { schema, n_made } = prepared(&schema, usize::MAX).map_err(|what| Refusal::grammar(param, what))?;
    Ok(Rules::Own { text: format!("start: {head} answer\n{lead}answer: %json {schema}\n"), n_made })
}

/// Makes a conversation of what its template knows: one that knows no tools is told of them in the system's turn and by examples behind
/// it; calls that this server made are what they were, byte for byte. How many messages are the system's turn then, with the examples.
pub fn tell(conversation: &mut Conversation, source: &str, ring: &Ring, must_call: bool) -> usize {
    let family = Family::of(source);
    let knows = tells_tools(source);
    let told = conversation.tools.as_ref().and_then(Value::as_array).filter(|_| !knows);
    let tools = told.cloned().unwrap_or_default();
    for message in &mut conversation.messages {
        let calls = message.get("tool_calls").and_then(Value::as_array).cloned();
        if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
            let exact = ring.find(&calls).filter(|_| !family.is_list && !family.is_harmony());
            let text = match (exact, knows) {
                (Some(text), _) => text,
                (None, false) => calls.iter().map(|call| call_in_words(&call["function"], &tools)).collect::<Vec<_>>().join("\n"),
                (None, true) => continue,
            };
            message["content"] = format!("{}{text}", message["content"].as_str().unwrap_or_default()).into();
            message.as_object_mut().map(|map| map.remove("tool_calls"));
        } else if !knows && message["role"] == "tool" {
            let text = message["content"].as_str().unwrap_or_default();
            *message = json!({ "role": "user", "content": format!("<tool_response>\n{text}\n</tool_response>") });
        }
    }
    if family.is_harmony() {
        harmony::prepare(conversation);
    }
    // SmolLM3 calls them so.
    if let Some(tools) = conversation.tools.as_ref().filter(|_| source.contains("xml_tools")) {
        conversation.variables.insert("xml_tools".into(), tools.clone());
    }
    let has_system = conversation.messages.first().is_some_and(|message| message["role"] == "system");
    if tools.is_empty() {
        return usize::from(has_system);
    }
    conversation.tools = None;
    let told = words::told(&tools);
    let system = if has_system { conversation.messages.remove(0) } else { json!({ "content": "" }) };
    let said = system["content"].as_str().unwrap_or_default();
    let text = if said.is_empty() { told } else { format!("{said}\n\n{told}") };
    let mut head = vec![json!({ "role": "system", "content": text })];
    head.extend(words::examples(&tools, family.open, family.close, must_call));
    let n_head = head.len();
    conversation.messages.splice(..0, head);
    n_head
}

fn call_in_words(function: &Value, tools: &[Value]) -> String {
    let name = function["name"].as_str().unwrap_or_default();
    let arguments = match &function["arguments"] {
        Value::String(text) => arguments_object(text).unwrap_or_else(|| json!({})),
        other => other.clone(),
    };
    let tool = tools.iter().map(|tool| &tool["function"]).find(|tool| tool["name"] == name);
    format!("{}{}{}", WORDS.open, words::written(name, &arguments, tool), WORDS.close)
}

/// A call, as OpenAI's chats have it.
pub fn call_json(id: &str, name: &str, arguments: &str) -> Value {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
}

/// Arguments as an object; none where they have no end, or are none.
pub fn arguments_object(arguments: &str) -> Option<Value> {
    serde_json::from_str(arguments).ok().filter(Value::is_object)
}
