//! A part of Ollama's API: `/api/version`, `tags`, `ps`, `show`, `chat` and `generate`.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answers::json_response;
use super::app::{App, AppState};
use super::error::{Checked, Names, Refusal, quoted};
use super::fields::{Fields, wanted};
use super::messages;
use super::ollama_answer::{Answer, date, loaded};
use super::reader::Reader;
use super::run::Manner;
use super::stream::{Order, answer};
use super::thinking::Splitter;
use super::{body, prompt, sampling};

/// What clients ask for at least; it is this API's, and not the program's.
const VERSION: &str = "0.12.0";

fn check_on(app: &App) -> Checked<()> {
    match app.settings.ollama {
        true => Ok(()),
        false => Err(Refusal::unsupported("Ollama's API is turned off on this server")),
    }
}

pub async fn version(State(app): AppState) -> Checked<Response> {
    check_on(&app)?;
    Ok(json_response(&json!({ "version": VERSION, "lowkey": env!("CARGO_PKG_VERSION") })))
}

/// A number of parameters as people say it.
fn parameter_size(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.1}B", n as f64 / 1e9),
        _ => format!("{:.0}M", n as f64 / 1e6),
    }
}

fn details(app: &App) -> Value {
    let model = &app.shared.model;
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": parameter_size(model.n_params),
        "quantization_level": model.quantisation,
    })
}

fn models(app: &App) -> Vec<Map<String, Value>> {
    let model = &app.shared.model;
    let one = |name: &String| {
        let fields = json!({
            "name": name,
            "model": name,
            "modified_at": date(model.modified.unwrap_or(app.shared.started)),
            "size": model.file_bytes,
            "digest": model.digest,
            "details": details(app),
        });
        if let Value::Object(fields) = fields { fields } else { Map::new() }
    };
    model.aliases.iter().map(one).collect()
}

pub async fn tags(State(app): AppState) -> Checked<Response> {
    check_on(&app)?;
    Ok(json_response(&json!({ "models": models(&app) })))
}

pub async fn ps(State(app): AppState) -> Checked<Response> {
    check_on(&app)?;
    let mut running = models(&app);
    for model in &mut running {
        // It stays.
        model.insert("expires_at".into(), "2318-01-01T00:00:00Z".into());
        model.insert("size_vram".into(), 0.into());
        model.insert("context_length".into(), app.settings.n_ctx.into());
    }
    Ok(json_response(&json!({ "models": running })))
}

pub async fn show(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    check_on(&app)?;
    let body = body::read(&app, request).await?;
    let reader = app.clone();
    app.clerk
        .run(move || {
            let (body, _place) = body.json(&reader.settings)?;
            let fields = Fields::of_body(&body)?;
            let name = fields.string("model")?.or(fields.string("name")?);
            let name = name.ok_or_else(|| fields.invalid("model", "the name of the model is wanted here, and there is none"))?;
            check_known(&reader, name)
        })
        .await?;
    let model = &app.shared.model;
    let mut info = Map::new();
    info.insert("general.architecture".into(), model.family.as_str().into());
    info.insert("general.parameter_count".into(), model.n_params.into());
    info.insert(format!("{}.context_length", model.family), app.settings.n_ctx.into());
    info.insert(format!("{}.embedding_length", model.family), model.n_embd.into());
    Ok(json_response(&json!({
        "modelfile": "",
        "parameters": "",
        "template": app.shared.template.as_ref().map_or("", |template| template.source()),
        "details": details(&app),
        "model_info": info,
        "capabilities": ["completion", "tools"],
        "modified_at": date(model.modified.unwrap_or(app.shared.started)),
    })))
}

/// Names count with and without their `:latest`.
fn check_known(app: &App, name: &str) -> Checked<()> {
    let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    let is_known = app.shared.model.aliases.iter().any(|alias| bare(alias) == bare(name));
    if is_known {
        Ok(())
    } else {
        Err(Refusal::not_found(format!("model {} not found: this server has {}", quoted(name), app.shared.model.name())))
    }
}

/// `/api/pull` and the rest: one model is here, and no other will be.
pub async fn other(State(app): AppState, request: HttpRequest) -> Refusal {
    if let Err(refusal) = check_on(&app) {
        return refusal;
    }
    let path = request.uri().path();
    Refusal::unsupported(format!("{} is nothing that this server does: it has one model and answers with text", quoted(path)))
}

pub async fn chat(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    generation(app, request, true).await
}

pub async fn generate(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    generation(app, request, false).await
}

async fn generation(app: Arc<App>, request: HttpRequest, is_chat: bool) -> Checked<Response> {
    check_on(&app)?;
    let body = body::read(&app, request).await?;
    let reader = app.clone();
    let order = app
        .clerk
        .run(move || {
            let (body, _place) = body.json(&reader.settings)?;
            read(&reader, body, is_chat)
        })
        .await?;
    match order {
        Some(order) => answer(&app, order).await,
        None => Ok(json_response(&loaded(&app, is_chat))),
    }
}

/// What `options` and OpenAI's chats call alike; the last ones are here to be refused where they would change the answer.
const OPTIONS: [&str; 14] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "num_predict",
    "mirostat",
    "typical_p",
    "tfs_z",
];

/// The request in the words of a chat; none: nothing is asked but that the model be there, which it is.
fn read(app: &Arc<App>, body: Value, is_chat: bool) -> Checked<Option<Order>> {
    let fields = Fields::of_body(&body)?;
    let (mut chat, mut names) = (Map::new(), Names::new());
    if let Some(options) = fields.object("options")? {
        let given = OPTIONS.iter().filter_map(|name| Some(((*name).to_owned(), options.get(*name)?.clone())));
        chat.extend(given);
        names.extend(chat.keys().map(|name| (name.clone(), format!("options.{name}"))));
        if options.contains_key("num_ctx") {
            log::debug!("num_ctx of a request changes nothing: the context is the server's");
        }
    }
    names.extend(["response_format", "json_schema"].map(|name| (name.into(), "format".into())));
    match fields.get("format") {
        None => {}
        Some(Value::String(word)) if word.is_empty() => {}
        Some(Value::String(word)) if word == "json" => {
            chat.insert("response_format".into(), json!({ "type": "json_object" }));
        }
        Some(schema @ Value::Object(_)) => {
            chat.insert("json_schema".into(), schema.clone());
        }
        Some(other) => return Err(wanted("format", "`json` or a JSON schema", other)),
    }
    if let Some(think) = fields.get("think") {
        match think {
            Value::Bool(is_on) => drop(chat.insert("chat_template_kwargs".into(), json!({ "enable_thinking": is_on }))),
            Value::String(effort) => {
                if effort != "none" {
                    chat.insert("chat_template_kwargs".into(), json!({ "enable_thinking": true }));
                }
                chat.insert("reasoning_effort".into(), effort.as_str().into());
            }
            _ => return Err(wanted("think", "true, false, or how hard: low, medium or high", think)),
        }
    }
    for name in ["session", "id_slot", "pin_system", "tools"] {
        if let Some(value) = fields.get(name) {
            chat.insert(name.into(), value.clone());
        }
    }
    if fields.flag("logprobs")? {
        return Err(Refusal::unsupported_field("logprobs", "ask `/v1/chat/completions` for them"));
    }
    let is_asked = if is_chat { read_messages(&fields, &mut chat)? } else { read_prompt(&fields, &mut chat)? };
    if !is_chat {
        names.push(("messages".into(), "prompt".into()));
    }
    if !is_asked {
        return Ok(None);
    }
    let is_stream = fields.bool("stream")?.unwrap_or(true);
    let is_raw = !is_chat && fields.flag("raw")?;
    drop(body);
    let order = order(app, Value::Object(chat), is_chat, is_raw, is_stream);
    order.map(Some).map_err(|refusal| refusal.renamed(&names))
}

/// The messages of `/api/chat`. False: there are none.
fn read_messages(fields: &Fields<'_>, chat: &mut Map<String, Value>) -> Checked<bool> {
    let list = fields.list("messages")?.unwrap_or_default();
    let read: Checked<Vec<Value>> = list.iter().enumerate().map(|(i, one)| message(one, &format!("messages[{i}]"))).collect();
    chat.insert("messages".into(), read?.into());
    Ok(!list.is_empty())
}

/// The prompt of `/api/generate`, as the user's turn. False: there is none.
fn read_prompt(fields: &Fields<'_>, chat: &mut Map<String, Value>) -> Checked<bool> {
    if fields.list("images")?.is_some_and(|images| !images.is_empty()) {
        return Err(Refusal::unsupported_field("images", "this server reads text only"));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::unsupported_field("suffix", "text is gone on with, and not filled in"));
    }
    let has_context = fields.list("context")?.is_some_and(|tokens| !tokens.is_empty());
    let given = |name: &str| Ok(fields.string(name)?.is_some_and(|text| !text.is_empty()));
    if fields.flag("raw")? && (has_context || given("template")? || given("system")?) {
        return Err(fields.invalid("raw", "such a prompt has no template, system or context: leave them out"));
    }
    if has_context {
        return Err(Refusal::unsupported_field(
            "context",
            "nothing is kept from one prompt to the next: send the turns to `/api/chat`",
        ));
    }
    if given("template")? {
        return Err(Refusal::unsupported_field(
            "template",
            "the template is the server's: send the text as `prompt` with `raw`: true",
        ));
    }
    let text = fields.string("prompt")?.unwrap_or_default();
    let mut list = Vec::new();
    if let Some(system) = fields.string("system")?.filter(|system| !system.is_empty()) {
        list.push(json!({ "role": "system", "content": system }));
    }
    list.push(json!({ "role": "user", "content": text }));
    chat.insert("messages".into(), list.into());
    chat.insert("prompt".into(), text.into());
    Ok(!text.is_empty())
}

fn order(app: &Arc<App>, as_chat: Value, is_chat: bool, is_raw: bool, is_stream: bool) -> Checked<Order> {
    let fields = Fields::of_body(&as_chat)?;
    let wishes = sampling::read(app, &fields, &["num_predict"])?;
    let pins = fields.bool("pin_system")?.unwrap_or(app.settings.pin_system);
    let mut tools = None;
    let prompt = match is_raw {
        true => prompt::of_completion(app, &fields)?.pop().ok_or_else(|| fields.invalid("prompt", "there is none"))?,
        false => {
            let chat = prompt::read_chat(app, &fields)?;
            tools = chat.tools.clone();
            drop(as_chat);
            prompt::of_chat(app, chat, pins)?
        }
    };
    let splitter = if is_raw { Splitter::off() } else { Splitter::new(prompt.is_thinking) };
    Ok(Order {
        manner: Manner::default(),
        is_stream,
        batch: sampling::batch(app, &wishes, vec![prompt], tools.as_ref())?,
        format: Box::new(Answer::new(app.clone(), is_chat, Reader::new(app, splitter, tools.as_ref()))),
    })
}

/// A message as OpenAI's chats have it: calls of tools have no names of their own here.
fn message(message: &Value, name: &str) -> Checked<Value> {
    let fields = Fields::of(message, name)?;
    if fields.list("images")?.is_some_and(|images| !images.is_empty()) {
        return Err(Refusal::unsupported_field(&fields.name("images"), "this server reads text only"));
    }
    let mut read = Map::new();
    for field in ["role", "tool_calls", "name", "tool_call_id"] {
        if let Some(value) = fields.get(field) {
            read.insert(field.into(), value.clone());
        }
    }
    let content = fields.get("content").map(|content| messages::text(content, &fields.name("content"))).transpose()?;
    read.insert("content".into(), content.unwrap_or_default().into());
    for (theirs, ours) in [("tool_name", "name"), ("thinking", "reasoning_content")] {
        if let Some(text) = fields.string(theirs)? {
            read.insert(ours.into(), text.into());
        }
    }
    Ok(Value::Object(read))
}
