//! How models are told of tools whose templates know none, and the form of their calls: `name(light: kitchen, state: on)`. Words of an
//! enum stand bare: behind a space, as in the request, they are the tokens of the request, which small models copy. Other values are JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::constraint::quoted;

use super::scan::Scan;

/// What is shown of how to call: calls of all tools together, and of one.
const MANY_EXAMPLES: usize = 12;
const MOST_EXAMPLES: usize = 6;
/// Of a description, in an example.
const MAX_ASKED_CHARS: usize = 80;
/// Objects in objects of an example.
const MAX_DEPTH: usize = 4;

/// A name that stands bare before `(` and `:`.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// A text that stands bare as a value, and is not read as JSON.
fn is_bare(text: &str) -> bool {
    text.starts_with(char::is_alphanumeric)
        && !text.ends_with(' ')
        && !text.contains(|c: char| c.is_control() || matches!(c, ',' | '(' | ')' | '"'))
        && serde_json::from_str::<Value>(text).is_err()
}

/// The values of a property, where all may stand bare.
fn bare_values(schema: &Value) -> Option<Vec<&str>> {
    let is_plain = |key: &String| matches!(key.as_str(), "enum" | "type" | "description" | "title" | "default");
    let values: Vec<&str> = schema["enum"].as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
    let plain = schema.as_object()?.keys().all(is_plain) && schema.get("type").is_none_or(|kind| kind == "string");
    (plain && !values.is_empty() && values.iter().all(|value| is_bare(value))).then_some(values)
}

/// The properties of parameters that are written one by one. None: all are one JSON object.
fn properties(parameters: &Value) -> Option<&Map<String, Value>> {
    let map = parameters.as_object()?;
    let plain = ["type", "properties", "required", "additionalProperties", "description", "title", "$schema", "x-guidance"];
    let is_plain = map.keys().all(|key| plain.contains(&key.as_str()))
        && map.get("type").is_none_or(|kind| kind == "object")
        && map.get("additionalProperties").is_none_or(|more| more == false);
    let properties = map.get("properties")?.as_object()?;
    let names = |value: &Value| value.as_str().is_some_and(|name| properties.contains_key(name));
    let needed = map.get("required").and_then(Value::as_array).is_none_or(|list| list.iter().all(names));
    let own = properties.iter().all(|(name, schema)| is_name(name) && schema.is_object() && !refers(schema));
    (is_plain && needed && own).then_some(properties)
}

/// Whether a schema names others, which stand somewhere else.
fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("$ref") || map.contains_key("$id") || map.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

fn is_needed(parameters: &Value, name: &str) -> bool {
    parameters["required"].as_array().is_some_and(|list| list.iter().any(|needed| needed == name))
}

fn written_name(name: &str) -> String {
    if is_name(name) { name.to_owned() } else { Value::from(name).to_string() }
}

/// The rules of a call, whose first is `f{i}`. `parameters` are prepared.
pub fn rules(i: usize, name: &str, parameters: &Value, guidance: &Value) -> String {
    let head = quoted(&format!("{}(", written_name(name)));
    let json = |schema: &Value| {
        let mut schema = schema.clone();
        schema["x-guidance"] = guidance.clone();
        format!("%json {schema}")
    };
    let Some(properties) = properties(parameters) else {
        return format!("f{i}: {head} o{i} \")\"\no{i}: {}\n", json(parameters));
    };
    // `n{i}_{k}`: from the property k on, while nothing has been written; `m{i}_{k}`: behind others.
    let mut rules = format!("f{i}: {head} n{i}_0 \")\"\n");
    for (k, (name, schema)) in properties.iter().enumerate() {
        let key = quoted(&format!("{name}: "));
        let value = match bare_values(schema) {
            Some(values) => values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(" | "),
            None => json(schema),
        };
        let (next, needed) = (k + 1, is_needed(parameters, name));
        let without = if needed { String::new() } else { format!(" | n{i}_{next}") };
        let maybe = if needed { "" } else { "?" };
        let _ = writeln!(rules, "v{i}_{k}: {value}\np{i}_{k}: {key} v{i}_{k}");
        let _ = writeln!(rules, "n{i}_{k}: p{i}_{k} m{i}_{next}{without}");
        let _ = writeln!(rules, "m{i}_{k}: (\", \" p{i}_{k}){maybe} m{i}_{next}");
    }
    let end = properties.len();
    let _ = writeln!(rules, "n{i}_{end}: \"\"\nm{i}_{end}: \"\"");
    rules
}

/// The call of a function, whose tool is `tool` where that is known.
pub fn written(name: &str, arguments: &Value, tool: Option<&Value>) -> String {
    let parameters = tool.map_or(&Value::Null, |tool| &tool["parameters"]);
    let name = written_name(name);
    let Some(map) = arguments.as_object() else { return format!("{name}({arguments})") };
    if properties(parameters).is_none() && parameters.is_object() || !map.keys().all(|key| is_name(key)) {
        return format!("{name}({arguments})");
    }
    let value = |key: &str, value: &Value| match value.as_str() {
        Some(text) if bare_values(&parameters["properties"][key]).is_some_and(|values| values.contains(&text)) => text.to_owned(),
        _ => value.to_string(),
    };
    let pairs: Vec<String> = map.iter().map(|(key, given)| format!("{key}: {}", value(key, given))).collect();
    format!("{name}({})", pairs.join(", "))
}

/// A type or the values, as a signature says it.
fn kind(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return values.iter().map(text).collect::<Vec<_>>().join(" | ");
    }
    let simple = ["type", "description", "title", "default"];
    match schema["type"].as_str() {
        Some(kind) if schema.as_object().is_some_and(|map| map.keys().all(|key| simple.contains(&key.as_str()))) => kind.into(),
        _ => schema.to_string(),
    }
}

/// A line for a tool.
fn signature(function: &Value) -> String {
    let name = function["name"].as_str().unwrap_or_default();
    let parameters = &function["parameters"];
    let described =
        |schema: &Value| schema["description"].as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let mut line = written_name(name);
    let mut notes = Vec::new();
    match properties(parameters) {
        Some(properties) => {
            let pairs = properties.iter().map(|(key, schema)| {
                notes.extend(described(schema).map(|text| format!("{key}: {}.", text.trim_end_matches('.'))));
                format!("{key}{}: {}", if is_needed(parameters, key) { "" } else { "?" }, kind(schema))
            });
            let _ = write!(line, "({})", pairs.collect::<Vec<_>>().join(", "));
        }
        None if parameters.is_object() => {
            let _ = write!(line, "({parameters})");
        }
        None => line.push_str("()"),
    }
    if let Some(text) = described(function) {
        let _ = write!(line, " - {text}");
    }
    for note in notes {
        let _ = write!(line, " {note}");
    }
    line
}

/// What stands in the system's turn.
pub fn told(tools: &[Value]) -> String {
    let lines: Vec<String> = tools.iter().map(|tool| signature(&tool["function"])).collect();
    format!("Tools:\n{}", lines.join("\n"))
}

/// A value that a schema may have, the `nth` of them. None: nothing is known of it.
fn value(schema: &Value, nth: usize, depth: usize) -> Option<Value> {
    let of = |list: &Vec<Value>| (!list.is_empty()).then(|| list[nth % list.len()].clone());
    for key in ["enum", "examples"] {
        if let Some(list) = schema[key].as_array() {
            return of(list);
        }
    }
    if let Some(given) = ["const", "default"].iter().find_map(|key| schema.get(*key)) {
        return Some(given.clone());
    }
    let kind = schema["type"].as_str()?;
    let simple =
        ["type", "description", "title", "minimum", "maximum", "items", "properties", "required", "additionalProperties"];
    if depth == MAX_DEPTH || !schema.as_object()?.keys().all(|key| simple.contains(&key.as_str())) {
        return None;
    }
    let within = |value: i64| {
        let least = schema["minimum"].as_f64().map_or(i64::MIN, |least| least.ceil() as i64);
        let most = schema["maximum"].as_f64().map_or(i64::MAX, |most| most.floor() as i64);
        value.min(most).max(least)
    };
    match kind {
        "integer" | "number" => Some(within([7, 25, 4, 60][nth % 4]).into()),
        "boolean" => Some((nth % 2 == 1).into()),
        "string" => Some(["example", "other", "word"][nth % 3].into()),
        "null" => Some(Value::Null),
        "array" => Some(json!([value(&schema["items"], nth, depth + 1)?])),
        "object" => arguments(schema, nth, depth + 1),
        _ => None,
    }
}

/// The needed properties of an object; all, where it needs none.
fn arguments(schema: &Value, nth: usize, depth: usize) -> Option<Value> {
    let Some(properties) = schema["properties"].as_object() else { return Some(json!({})) };
    let needs_some = properties.keys().any(|key| is_needed(schema, key));
    let shown = properties.iter().filter(|(key, _)| !needs_some || is_needed(schema, key)).enumerate();
    let pairs = shown.map(|(m, (key, schema))| Some((key.clone(), value(schema, nth + m, depth)?)));
    Some(Value::Object(pairs.collect::<Option<Map<_, _>>>()?))
}

/// Words that ask for a call: the values, and what the tool does.
fn asked(function: &Value, arguments: &Value) -> String {
    let does = function["description"].as_str().unwrap_or_default().trim();
    let does = does.split_inclusive(['.', '\n']).next().unwrap_or_default().trim_end().trim_end_matches('.');
    let does = if does.is_empty() || does.chars().count() > MAX_ASKED_CHARS {
        function["name"].as_str().unwrap_or_default().replace('_', " ")
    } else {
        does.to_owned()
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let values: Vec<String> = arguments.as_object().into_iter().flat_map(|map| map.values().map(text)).collect();
    if values.is_empty() { format!("{does}.") } else { format!("{}: {does}.", values.join(", ")) }
}

/// Turns that show that a greeting is answered, and how a request becomes a call, made from the tools alone: in each round one of every
/// tool, with other values. What stands last is what a small model does next, with the same values. So the greeting is last where nothing
/// but a call can come, and first where the model is free to answer it.
pub fn examples(tools: &[Value], open: &str, close: &str, must_call: bool) -> Vec<Value> {
    let n_round = (MANY_EXAMPLES / tools.len().max(1)).clamp(1, MOST_EXAMPLES);
    let mut turns = vec![
        json!({ "role": "user", "content": "Hello!" }),
        json!({ "role": "assistant", "content": "Hello! How can I help you?" }),
    ];
    for round in 0..n_round {
        for (i, tool) in tools.iter().enumerate() {
            let function = &tool["function"];
            let Some(arguments) = arguments(&function["parameters"], 1 + i + round, 0) else { continue };
            let name = function["name"].as_str().unwrap_or_default();
            turns.push(json!({ "role": "user", "content": asked(function, &arguments) }));
            let call = format!("{open}{}{close}", written(name, &arguments, Some(function)));
            turns.push(json!({ "role": "assistant", "content": call }));
        }
    }
    if must_call {
        turns.rotate_left(2);
    }
    turns
}

/// The name of a call at the head of a text, and its bytes with `(`.
pub enum Name {
    Whole(String, usize),
    Part,
    None,
}

pub fn name(text: &str) -> Name {
    if text.starts_with('"') {
        let (n, is_done) = Scan::default().run(text);
        return match serde_json::from_str(&text[..n]) {
            _ if !is_done || n == text.len() => Name::Part,
            Ok(name) if text[n..].starts_with('(') => Name::Whole(name, n + 1),
            _ => Name::None,
        };
    }
    match text.find('(') {
        Some(n) if is_name(&text[..n]) => Name::Whole(text[..n].to_owned(), n + 1),
        None if text.is_empty() || is_name(text) => Name::Part,
        _ => Name::None,
    }
}

/// Arguments as they come, and what they are in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reader {
    at: At,
    n_read: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before a key, an object, or the end.
    #[default]
    Key,
    Value,
    Json(Scan),
    /// Behind an object that is all arguments.
    End,
}

impl Reader {
    /// How much of a text is read, the JSON of it, and whether the call ends there.
    pub fn run(&mut self, text: &str, json: &mut String) -> (usize, bool) {
        let mut rest = text;
        let n = |rest: &str| text.len() - rest.len();
        loop {
            match &mut self.at {
                At::Key if self.n_read == 0 && rest.starts_with('{') => self.at = At::Json(Scan::default()),
                At::Key => {
                    if let Some(behind) = rest.strip_prefix(')') {
                        json.push_str(if self.n_read == 0 { "{}" } else { "}" });
                        return (n(behind), true);
                    }
                    let trimmed = rest.trim_start_matches([',', ' ']);
                    let Some((key, behind)) = trimmed.split_once(": ").filter(|_| !trimmed.starts_with(')')) else {
                        return (n(rest), false);
                    };
                    json.push_str(if self.n_read == 0 { "{" } else { ", " });
                    let _ = write!(json, "{}: ", Value::from(key));
                    self.n_read += 1;
                    (self.at, rest) = (At::Value, behind);
                }
                At::Value => match rest.chars().next() {
                    None => return (n(rest), false),
                    Some('"' | '{' | '[') => self.at = At::Json(Scan::default()),
                    Some(_) => {
                        let Some(end) = rest.find([',', ')']) else { return (n(rest), false) };
                        match serde_json::from_str::<Value>(&rest[..end]) {
                            Ok(_) => json.push_str(&rest[..end]),
                            Err(_) => json.push_str(&Value::from(&rest[..end]).to_string()),
                        }
                        (self.at, rest) = (At::Key, &rest[end..]);
                    }
                },
                At::Json(scan) => {
                    let (n_json, is_done) = scan.run(rest);
                    json.push_str(&rest[..n_json]);
                    rest = &rest[n_json..];
                    if !is_done {
                        return (n(rest), false);
                    }
                    self.at = if self.n_read == 0 { At::End } else { At::Key };
                }
                At::End => {
                    return match rest.strip_prefix(')') {
                        Some(behind) => (n(behind), true),
                        None => (n(rest), false),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/words.rs"]
mod tests;
