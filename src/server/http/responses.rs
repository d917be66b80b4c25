//! `/v1/responses`: OpenAI's responses, read as chats. Nothing is kept, so an earlier response cannot be gone on with by its name.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::server::desk::Finish;

use super::answers::{memory, now, prompt_progress, random_name, timings};
use super::app::{App, AppState};
use super::calls::Told;
use super::error::{Checked, Names, Refusal, quoted};
use super::fields::{Fields, wanted};
use super::gaps::Gaps;
use super::reader::Reader;
use super::run::{Facts, Manner, Piece};
use super::stream::{Format, Order, Part, answer};
use super::thinking::Splitter;
use super::tools::arguments_object;
use super::{body, messages, prompt, sampling};

pub async fn create(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let body = body::read(&app, request).await?;
    let reader = app.clone();
    let order = app
        .clerk
        .run(move || {
            let (body, _place) = body.json(&reader.settings)?;
            read(&reader, body)
        })
        .await?;
    answer(&app, order).await
}

fn read(app: &Arc<App>, body: Value) -> Checked<Order> {
    let fields = Fields::of_body(&body)?;
    check_forms(&fields)?;
    let pins = fields.bool("pin_system")?.unwrap_or(app.settings.pin_system);
    let mut names = Names::new();
    let (as_chat, base) = (as_chat(&fields, &mut names)?, base(app, &fields));
    drop(body);
    order(app, as_chat, base, pins).map_err(|refusal| refusal.renamed(&names))
}

/// Forms of OpenAI's responses that would change the answer, and are not here.
fn check_forms(fields: &Fields<'_>) -> Checked<()> {
    for (name, way_out) in [
        ("previous_response_id", "send the whole conversation as `input`"),
        ("conversation", "send the whole conversation as `input`"),
        ("prompt", "send its words as `instructions` or `input`"),
    ] {
        if fields.get(name).is_some() {
            return Err(fields.invalid(name, format!("nothing is kept here: {way_out}")));
        }
    }
    if fields.flag("background")? {
        return Err(Refusal::unsupported_field("background", "answers are given to who waits for them"));
    }
    let mut wants_logprobs = None;
    for word in fields.list("include")?.unwrap_or_default() {
        let word = word.as_str().ok_or_else(|| wanted("include", "a list of strings", word))?;
        wants_logprobs = wants_logprobs.or((word == "message.output_text.logprobs").then_some("include"));
    }
    let has_tops = sampling::n_tops(fields, "top_logprobs")?.is_some_and(|n| n > 0);
    match wants_logprobs.or(has_tops.then_some("top_logprobs")) {
        Some(name) => Err(Refusal::unsupported_field(name, "ask `/v1/chat/completions` for probabilities")),
        None => Ok(()),
    }
}

/// What is asked in the words of a chat.
fn order(app: &Arc<App>, as_chat: Value, mut base: Value, pins: bool) -> Checked<Order> {
    let fields = Fields::of_body(&as_chat)?;
    let wishes = sampling::read(app, &fields, &["max_output_tokens"])?;
    base["temperature"] = wishes.request.sampling.temp.into();
    base["top_p"] = wishes.request.sampling.top_p.into();
    let chat = prompt::read_chat(app, &fields)?;
    drop(as_chat);
    let tools = chat.tools.clone();
    let prompt = prompt::of_chat(app, chat, pins)?;
    let format = Responses {
        base,
        timings_per_token: wishes.timings_per_token,
        reader: Reader::new(app, Splitter::new(prompt.is_thinking), tools.as_ref()),
        app: app.clone(),
        n_events: 0,
        open: None,
        items: Vec::new(),
        text: String::new(),
        facts: Facts::default(),
    };
    Ok(Order {
        manner: Manner { progress: wishes.return_progress, ..Manner::default() },
        is_stream: wishes.is_stream,
        batch: sampling::batch(app, &wishes, vec![prompt], tools.as_ref())?,
        format: Box::new(format),
    })
}

/// Of the request at most, where the response repeats it.
const MAX_REPEATED: usize = 1024;

fn short(value: Value) -> Option<Value> {
    (value.to_string().len() <= MAX_REPEATED).then_some(value)
}

/// What every state of a response says. Of what was sent it repeats what is short: it is kept, and said several times.
fn base(app: &App, fields: &Fields<'_>) -> Value {
    let repeated = |name: &str| fields.get(name).cloned().and_then(short);
    let reasoning = fields.get("reasoning").unwrap_or(&Value::Null);
    let reasoning = json!({ "effort": reasoning["effort"], "summary": reasoning["summary"] });
    json!({
        "id": random_name("resp_"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "error": null,
        "incomplete_details": null,
        "instructions": repeated("instructions"),
        "max_output_tokens": fields.get("max_output_tokens").filter(|n| n.is_number()),
        "model": app.shared.model.name(),
        "output": [],
        "parallel_tool_calls": fields.get("parallel_tool_calls").is_none_or(|is_parallel| is_parallel == true),
        "previous_response_id": null,
        "reasoning": short(reasoning),
        "store": false,
        "temperature": null,
        "top_p": null,
        "text": text(fields),
        "tool_choice": repeated("tool_choice").unwrap_or("auto".into()),
        "tools": tools(fields),
        "truncation": repeated("truncation").unwrap_or("disabled".into()),
        "usage": null,
        "metadata": repeated("metadata").unwrap_or(json!({})),
    })
}

/// The form that was asked for, or its name where it is long.
fn text(fields: &Fields<'_>) -> Value {
    let mut text = fields.get("text").cloned().unwrap_or(json!({}));
    let format = text["format"].take();
    let named = json!({ "type": format["type"], "name": format["name"] });
    text["format"] = if format.is_null() { json!({ "type": "text" }) } else { format };
    short(text).or_else(|| short(json!({ "format": named }))).unwrap_or_default()
}

/// The tools that were given, or their names where they are long.
fn tools(fields: &Fields<'_>) -> Value {
    let Some(Value::Array(tools)) = fields.get("tools") else { return json!([]) };
    let name = |tool: &Value| tool.get("name").unwrap_or(&tool["function"]["name"]).clone();
    let names = || tools.iter().map(|tool| json!({ "type": "function", "name": name(tool) })).collect();
    short(tools.clone().into()).or_else(|| short(names())).unwrap_or(json!([]))
}

/// What a chat calls as responses do.
const SAME: [&str; 26] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "repeat_last_n",
    "logit_bias",
    "ignore_eos",
    "max_output_tokens",
    "stream",
    "tool_choice",
    "id_slot",
    "session",
    "cache_prompt",
    "n_cache_reuse",
    "return_progress",
    "timings_per_token",
    "chat_template_kwargs",
    "grammar",
    "lark",
    "json_schema",
    "parallel_tool_calls",
];

/// The body of a chat that asks for the same; `names` gets what its fields are called in the request.
fn as_chat(fields: &Fields<'_>, names: &mut Names) -> Checked<Value> {
    let mut chat = Map::new();
    for name in SAME {
        if let Some(value) = fields.get(name) {
            chat.insert(name.into(), value.clone());
        }
    }
    if let Some(reasoning) = fields.get("reasoning")
        && let Some(effort) = Fields::of(reasoning, "reasoning")?.string("effort")?
    {
        chat.insert("reasoning_effort".into(), effort.into());
    }
    chat.insert("messages".into(), input(fields, names)?.into());
    if let Some(tools) = fields.list("tools")? {
        let mut read = Vec::with_capacity(tools.len());
        for (i, tool) in tools.iter().enumerate() {
            let name = format!("tools[{i}]");
            read.push(function(tool, &name)?);
            if tool.get("function").is_none() {
                names.push((format!("{name}.function"), name));
            }
        }
        chat.insert("tools".into(), read.into());
    }
    if let Some(text) = fields.get("text") {
        let text = Fields::of(text, "text")?;
        if let Some(format) = text.get("format") {
            chat.insert("response_format".into(), response_format(format)?);
            names.extend(["response_format.json_schema", "response_format"].map(|name| (name.into(), "text.format".into())));
        }
    }
    Ok(Value::Object(chat))
}

/// The messages that instructions and input are.
fn input(fields: &Fields<'_>, names: &mut Names) -> Checked<Vec<Value>> {
    let mut list = Vec::new();
    if let Some(instructions) = fields.string("instructions")? {
        list.push(json!({ "role": "system", "content": instructions }));
    }
    match fields.needed("input", "a string or a list of items")? {
        Value::String(text) => list.push(json!({ "role": "user", "content": text })),
        Value::Array(items) => {
            let mut thought = None;
            for (i, item) in items.iter().enumerate() {
                let name = format!("input[{i}]");
                let mut message = message(item, &name)?;
                // What was thought before a call belongs to it; what was thought before an answer is not given back.
                let call = message.as_mut().filter(|message| message.get("tool_calls").is_some());
                if let (Some(call), Some(thought)) = (call, thought) {
                    call["reasoning_content"] = thought;
                }
                thought = if message.is_none() { thought_of(item) } else { None };
                if let Some(message) = message {
                    names.push((format!("messages[{}]", list.len()), name));
                    list.push(message);
                }
            }
        }
        other => return Err(wanted("input", "a string or a list of items", other)),
    }
    names.push(("messages".into(), "input".into()));
    Ok(list)
}

/// The text of what was thought.
fn thought_of(item: &Value) -> Option<Value> {
    let texts = item["content"].as_array()?.iter().filter_map(|part| part["text"].as_str());
    Some(texts.collect::<Vec<_>>().join("\n\n").into())
}

/// A message of the input as a chat has it; none of what was thought.
fn message(item: &Value, name: &str) -> Checked<Option<Value>> {
    let fields = Fields::of(item, name)?;
    match fields.string("type")? {
        None | Some("message") => {
            let role = fields.needed("role", "a string")?;
            let content = messages::text(fields.needed("content", "a string or a list of text parts")?, &fields.name("content"))?;
            Ok(Some(json!({ "role": role, "content": content })))
        }
        Some("function_call") => {
            let arguments = match fields.get("arguments") {
                None => "{}".into(),
                Some(given @ (Value::String(_) | Value::Object(_))) => given.clone(),
                Some(other) => return Err(wanted(&fields.name("arguments"), "a string or an object", other)),
            };
            fields.needed("name", "a string")?;
            let function = json!({ "name": fields.string("name")?, "arguments": arguments });
            let call = json!({ "id": fields.string("call_id")?, "type": "function", "function": function });
            Ok(Some(json!({ "role": "assistant", "content": null, "tool_calls": [call] })))
        }
        Some("function_call_output") => {
            let output = messages::text(fields.needed("output", "a string")?, &fields.name("output"))?;
            Ok(Some(json!({ "role": "tool", "content": output, "tool_call_id": fields.string("call_id")? })))
        }
        Some("reasoning") => Ok(None),
        Some(other) => {
            Err(Refusal::unsupported_field(&fields.name("type"), format!("{} is nothing that this server reads", quoted(other))))
        }
    }
}

fn function(tool: &Value, name: &str) -> Checked<Value> {
    let fields = Fields::of(tool, name)?;
    match fields.string("type")? {
        Some("function") => {}
        other => {
            let other = quoted(other.unwrap_or_default());
            return Err(Refusal::unsupported_field(
                &fields.name("type"),
                format!("{other}: this server has no tools of its own"),
            ));
        }
    }
    // As a chat has it already.
    if fields.get("function").is_some() {
        return Ok(tool.clone());
    }
    let mut function = Map::new();
    for field in ["name", "description", "parameters", "strict"] {
        if let Some(value) = fields.get(field) {
            function.insert(field.into(), value.clone());
        }
    }
    Ok(json!({ "type": "function", "function": function }))
}

fn response_format(format: &Value) -> Checked<Value> {
    let fields = Fields::of(format, "text.format")?;
    match fields.string("type")? {
        Some("json_schema") => {
            let schema = fields.needed("schema", "a JSON schema")?;
            Ok(json!({ "type": "json_schema", "json_schema": { "name": fields.get("name"), "schema": schema } }))
        }
        _ => Ok(format.clone()),
    }
}

/// An item of the output that is being written.
struct Open {
    is_reasoning: bool,
    id: String,
    text: String,
    /// It is a call: its id and name; `text` is its arguments.
    call: Option<(String, String)>,
}

struct Responses {
    base: Value,
    timings_per_token: bool,
    reader: Reader,
    app: Arc<App>,
    n_events: usize,
    open: Option<Open>,
    /// Complete items.
    items: Vec<Value>,
    /// Of the answer.
    text: String,
    facts: Facts,
}

fn content(is_reasoning: bool, text: &str) -> Value {
    match is_reasoning {
        true => json!({ "type": "reasoning_text", "text": text }),
        false => json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }),
    }
}

fn item(open: &Open, status: &str) -> Value {
    if let Some((id, name)) = &open.call {
        let (own, arguments) = (&open.id, &open.text);
        return json!({ "type": "function_call", "id": own, "call_id": id, "name": name, "arguments": arguments, "status": status });
    }
    let content = if status == "in_progress" { json!([]) } else { json!([content(open.is_reasoning, &open.text)]) };
    match open.is_reasoning {
        true => json!({ "type": "reasoning", "id": open.id, "summary": [], "content": content, "status": status }),
        false => json!({ "type": "message", "id": open.id, "role": "assistant", "content": content, "status": status }),
    }
}

/// Whether an answer ended for want of tokens.
fn is_cut(facts: &Facts) -> bool {
    facts.finish == Some(Finish::Length)
}

impl Responses {
    fn event(&mut self, kind: &str, mut value: Value, out: &mut String) {
        value["type"] = kind.into();
        value["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        out.push_str(&format!("event: {kind}\ndata: {value}\n\n"));
    }

    fn open(&mut self, is_reasoning: bool, out: &mut String) {
        let open =
            Open { is_reasoning, id: random_name(if is_reasoning { "rs_" } else { "msg_" }), text: String::new(), call: None };
        let (index, id) = (self.items.len(), open.id.clone());
        self.event("response.output_item.added", json!({ "output_index": index, "item": item(&open, "in_progress") }), out);
        let part = json!({ "item_id": id, "output_index": index, "content_index": 0, "part": content(is_reasoning, "") });
        self.event("response.content_part.added", part, out);
        self.open = Some(open);
    }

    /// The item that was being written ends. `is_cut`: so does the answer, for want of tokens. A call is whole or it is not.
    fn close(&mut self, is_cut: bool, out: &mut String) {
        let Some(open) = self.open.take() else { return };
        let index = self.items.len();
        if open.call.is_some() {
            let is_whole = arguments_object(&open.text).is_some();
            if is_whole {
                let done = json!({ "item_id": open.id, "output_index": index, "arguments": open.text });
                self.event("response.function_call_arguments.done", done, out);
            }
            return self.done(&open, is_whole, out);
        }
        let place = json!({ "item_id": open.id, "output_index": index, "content_index": 0 });
        let mut done = place.clone();
        done["text"] = open.text.as_str().into();
        if !open.is_reasoning {
            done["logprobs"] = json!([]);
        }
        let kind = if open.is_reasoning { "response.reasoning_text.done" } else { "response.output_text.done" };
        self.event(kind, done, out);
        let mut done = place;
        done["part"] = content(open.is_reasoning, &open.text);
        self.event("response.content_part.done", done, out);
        self.done(&open, !is_cut, out);
    }

    fn done(&mut self, open: &Open, is_whole: bool, out: &mut String) {
        let item = item(open, if is_whole { "completed" } else { "incomplete" });
        self.event("response.output_item.done", json!({ "output_index": self.items.len(), "item": item.clone() }), out);
        self.items.push(item);
    }

    /// What has come, as items.
    fn told(&mut self, facts: &Facts, told: Vec<Told>, out: &mut String) {
        for told in told {
            match told {
                Told::Thought(text) => self.write(facts, true, &text, out),
                Told::Text(text) => self.write(facts, false, &text, out),
                Told::Begin { id, name, .. } => {
                    self.close(false, out);
                    let open = Open { is_reasoning: false, id: random_name("fc_"), text: String::new(), call: Some((id, name)) };
                    let added = json!({ "output_index": self.items.len(), "item": item(&open, "in_progress") });
                    self.event("response.output_item.added", added, out);
                    self.open = Some(open);
                }
                Told::Arguments { text, .. } => {
                    let index = self.items.len();
                    let Some(open) = &mut self.open else { continue };
                    open.text.push_str(&text);
                    let delta = json!({ "item_id": open.id, "output_index": index, "delta": text });
                    self.event("response.function_call_arguments.delta", delta, out);
                }
            }
        }
    }

    fn write(&mut self, facts: &Facts, is_reasoning: bool, text: &str, out: &mut String) {
        if self.open.as_ref().is_none_or(|open| open.is_reasoning != is_reasoning || open.call.is_some()) {
            self.close(false, out);
            self.open(is_reasoning, out);
        }
        let index = self.items.len();
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let mut delta = json!({ "item_id": open.id, "output_index": index, "content_index": 0, "delta": text });
        if self.timings_per_token {
            delta["timings"] = timings(&facts.progress);
        }
        if !is_reasoning {
            delta["logprobs"] = json!([]);
            self.text.push_str(text);
        }
        self.event(if is_reasoning { "response.reasoning_text.delta" } else { "response.output_text.delta" }, delta, out);
    }

    /// The response when all has been written.
    fn complete(&self) -> Value {
        let mut response = self.base.clone();
        let progress = &self.facts.progress;
        let is_cut = is_cut(&self.facts);
        response["status"] = if is_cut { "incomplete" } else { "completed" }.into();
        if is_cut {
            response["incomplete_details"] = json!({ "reason": "max_output_tokens" });
        }
        response["output"] = self.items.clone().into();
        response["output_text"] = self.text.as_str().into();
        response["usage"] = json!({
            "input_tokens": progress.n_prompt,
            "input_tokens_details": { "cached_tokens": progress.n_cached },
            "output_tokens": progress.n_generated,
            "output_tokens_details": { "reasoning_tokens": 0 },
            "total_tokens": progress.n_prompt + progress.n_generated,
        });
        response["timings"] = timings(progress);
        response["lowkey"] = memory(&self.facts);
        response
    }
}

impl Format for Responses {
    fn begin(&mut self, out: &mut String) {
        let response = self.base.clone();
        self.event("response.created", json!({ "response": response.clone() }), out);
        self.event("response.in_progress", json!({ "response": response }), out);
    }

    fn progress(&mut self, facts: &Facts, out: &mut String) {
        let mut event = json!({ "response": self.base.clone(), "prompt_progress": prompt_progress(&facts.progress) });
        if self.timings_per_token {
            event["timings"] = timings(&facts.progress);
        }
        self.event("response.in_progress", event, out);
    }

    fn piece(&mut self, facts: &Facts, piece: &Piece, out: &mut String) {
        let told = self.reader.push(&piece.text);
        self.told(facts, told, out);
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        let rest = self.reader.finish();
        self.told(facts, rest, out);
        self.close(is_cut(facts), out);
        self.app.ring.keep(self.reader.calls.triples(), &self.reader.calls.raw);
        // An answer that calls nothing has a message, be it empty.
        if self.items.iter().all(|item| item["type"] == "reasoning") {
            self.open(false, out);
            self.close(is_cut(facts), out);
        }
        self.facts = *facts;
    }

    fn end(&mut self, out: &mut String) {
        let event = json!({ "response": self.complete(), "timings": timings(&self.facts.progress) });
        // Clients of llama.cpp's server wait for this event, whatever ended the answer; the response's status says what did.
        self.event("response.completed", event, out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut String) {
        let error = refusal.object();
        let event = json!({ "code": error["code"], "message": error["message"], "param": error["param"], "error": error });
        self.event("error", event, out);
    }

    fn whole(&mut self, parts: Vec<Part>, _gaps: &mut Gaps) -> Value {
        // The same events, of which nobody hears.
        let mut unheard = String::new();
        for part in parts {
            let piece = Piece { text: part.text, tokens: Vec::new() };
            self.piece(&part.facts, &piece, &mut unheard);
            self.part_end(&part.facts, &mut unheard);
        }
        self.complete()
    }
}
