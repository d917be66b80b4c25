//! `/v1/chat/completions`: OpenAI's chats.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::desk::Request;

use super::answers::{
    fingerprint, finish_reason, memory, now, prompt_progress, random_name, sse, timings, tokens_with_tops, usage,
};
use super::app::{App, AppState};
use super::calls::{Calls, Told};
use super::error::{Checked, Refusal};
use super::fields::Fields;
use super::gaps::Gaps;
use super::reader::Reader;
use super::run::{Facts, Manner, Piece, Token};
use super::stream::{Format, Order, Part, answer};
use super::thinking::Splitter;
use super::tools::call_json;
use super::{body, prompt, sampling};

/// What caps an answer, by any of its names.
const LIMITS: [&str; 3] = ["max_completion_tokens", "max_tokens", "n_predict"];

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
    let mut wishes = sampling::read(app, &fields, &LIMITS)?;
    let n_probs = sampling::n_tops(&fields, "n_probs")?;
    let n_top = match fields.flag("logprobs")? {
        true => Some(sampling::n_tops(&fields, "top_logprobs")?.unwrap_or(0)),
        false if fields.get("top_logprobs").is_some_and(|n| n != 0) => {
            return Err(fields.invalid("top_logprobs", "needs `logprobs`: true"));
        }
        // llama-server's word for the same.
        false => n_probs.filter(|n| *n > 0),
    };
    check_forms(&fields)?;
    // The chosen token's own is told where any are.
    wishes.request.n_probs = n_top.map_or(0, |n| n.max(1));
    let is_parted = fields.word("reasoning_format", &["none", "auto", "deepseek", "deepseek-legacy"])? != Some("none");
    let pins = fields.bool("pin_system")?.unwrap_or(app.settings.pin_system);
    let chat = prompt::read_chat(app, &fields)?;
    // What it holds is in the chat by now.
    drop(body);
    let tools = chat.tools.clone();
    let prompt = prompt::of_chat(app, chat, pins)?;
    let splitter = if is_parted { Splitter::new(prompt.is_thinking) } else { Splitter::off() };
    let reader = Reader::new(app, splitter, tools.as_ref());
    let format = Chat {
        app: app.clone(),
        base: json!({
            "id": random_name("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": now(),
            "model": app.shared.model.name(),
            "system_fingerprint": fingerprint(&app.shared),
        }),
        n_top,
        timings_per_token: wishes.timings_per_token,
        include_usage: wishes.include_usage,
        verbose: wishes.verbose.then(Vec::new),
        is_stream: wishes.is_stream,
        fresh: reader.clone(),
        reader,
        held: Vec::new(),
        parts: Vec::new(),
        n_met: 0,
    };
    Ok(Order {
        manner: Manner { by_token: n_top.is_some(), keeps_tokens: n_top.is_some(), progress: wishes.return_progress, ping: None },
        is_stream: wishes.is_stream,
        batch: sampling::batch(app, &wishes, vec![prompt], tools.as_ref())?,
        format: Box::new(format),
    })
}

/// Forms of OpenAI's chats that would change the answer, and are not here.
fn check_forms(fields: &Fields<'_>) -> Checked<()> {
    if fields.list("functions")?.is_some_and(|functions| !functions.is_empty()) {
        return Err(Refusal::unsupported_field("functions", "an old form of `tools`: send them as `tools`"));
    }
    let speaks = fields.list("modalities")?.is_some_and(|kinds| kinds.iter().any(|kind| kind != "text"));
    for (name, is_asked) in [("modalities", speaks), ("audio", fields.get("audio").is_some())] {
        if is_asked {
            return Err(Refusal::unsupported_field(name, "this server answers with text only"));
        }
    }
    Ok(())
}

struct Chat {
    app: Arc<App>,
    /// What all objects have in common.
    base: Value,
    n_top: Option<usize>,
    timings_per_token: bool,
    include_usage: bool,
    /// What each part was made from, where that is wanted.
    verbose: Option<Vec<Value>>,
    is_stream: bool,
    fresh: Reader,
    reader: Reader,
    /// Tokens whose text is held back.
    held: Vec<Token>,
    parts: Vec<Facts>,
    /// Parts whose role has been told.
    n_met: usize,
}

impl Chat {
    fn object(&self, kind: &str, choices: Value) -> Value {
        let mut object = self.base.clone();
        object["object"] = kind.into();
        object["choices"] = choices;
        object
    }

    fn chunk(&self, index: usize, delta: Value, finish: Option<&str>) -> Value {
        self.object(
            "chat.completion.chunk",
            json!([{ "index": index, "delta": delta, "logprobs": null, "finish_reason": finish }]),
        )
    }

    fn role(&self, index: usize, out: &mut String) {
        sse(out, &self.chunk(index, json!({ "role": "assistant", "content": null }), None));
    }

    /// The role of a part that is new.
    fn meet(&mut self, facts: &Facts, out: &mut String) {
        if self.n_met == facts.part {
            self.n_met += 1;
            self.role(facts.part, out);
        }
    }

    fn deltas(&mut self, facts: &Facts, told: Vec<Told>, out: &mut String) {
        for told in told {
            let delta = match told {
                Told::Thought(text) => json!({ "reasoning_content": text }),
                Told::Text(text) => json!({ "content": text }),
                Told::Begin { index, id, name } => {
                    let mut call = call_json(&id, &name, "");
                    call["index"] = index.into();
                    json!({ "tool_calls": [call] })
                }
                Told::Arguments { index, text } => {
                    json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
                }
            };
            let mut chunk = self.chunk(facts.part, delta, None);
            if let Some(n_top) = self.n_top {
                let tokens = std::mem::take(&mut self.held);
                chunk["choices"][0]["logprobs"] =
                    json!({ "content": tokens_with_tops(&self.app.shared.tokenizer, &tokens, n_top) });
            }
            if self.timings_per_token {
                chunk["timings"] = timings(&facts.progress);
            }
            sse(out, &chunk);
        }
    }
}

/// How an answer ended. One that ended within a call does not say `tool_calls`: clients run what ended so.
fn reason(facts: &Facts, calls: &Calls) -> &'static str {
    match finish_reason(facts) {
        "stop" if calls.are_whole() => "tool_calls",
        other => other,
    }
}

impl Format for Chat {
    fn begin(&mut self, out: &mut String) {
        self.meet(&Facts::default(), out);
    }

    fn progress(&mut self, facts: &Facts, out: &mut String) {
        self.meet(facts, out);
        let mut chunk = self.chunk(facts.part, json!({ "content": null }), None);
        chunk["prompt_progress"] = prompt_progress(&facts.progress);
        if self.timings_per_token {
            chunk["timings"] = timings(&facts.progress);
        }
        sse(out, &chunk);
    }

    fn piece(&mut self, facts: &Facts, piece: &Piece, out: &mut String) {
        self.meet(facts, out);
        if self.n_top.is_some() {
            self.held.extend(piece.tokens.iter().cloned());
        }
        let told = self.reader.push(&piece.text);
        self.deltas(facts, told, out);
    }

    fn note(&mut self, request: &Request) {
        let (app, is_stream) = (&self.app, self.is_stream);
        if let Some(verbose) = &mut self.verbose {
            verbose.push(sampling::verbose(app, request, is_stream));
        }
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        self.meet(facts, out);
        let rest = self.reader.finish();
        self.deltas(facts, rest, out);
        let calls = std::mem::replace(&mut self.reader, self.fresh.clone()).calls;
        let reason = reason(facts, &calls);
        self.app.ring.keep(calls.triples(), &calls.raw);
        self.held.clear();
        self.parts.push(*facts);
        let mut chunk = self.chunk(facts.part, json!({}), Some(reason));
        if !self.include_usage {
            chunk["timings"] = timings(&facts.progress);
            chunk["lowkey"] = memory(facts);
        }
        if let Some(verbose) = &self.verbose {
            chunk["__verbose"] = verbose.last().cloned().unwrap_or_default();
        }
        sse(out, &chunk);
    }

    fn end(&mut self, out: &mut String) {
        if let Some(last) = self.parts.last().filter(|_| self.include_usage) {
            let mut chunk = self.object("chat.completion.chunk", json!([]));
            chunk["usage"] = usage(&self.parts);
            chunk["timings"] = timings(&last.progress);
            chunk["lowkey"] = memory(last);
            sse(out, &chunk);
        }
        out.push_str("data: [DONE]\n\n");
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut String) {
        sse(out, &json!({ "error": refusal.object() }));
    }

    fn whole(&mut self, parts: Vec<Part>, gaps: &mut Gaps) -> Value {
        let mut facts = Vec::with_capacity(parts.len());
        let mut choices = Vec::with_capacity(parts.len());
        for part in parts {
            let mut reader = self.fresh.clone();
            let (thoughts, content) = reader.whole(&part.text);
            let calls = reader.calls;
            let mut message = json!({ "role": "assistant", "content": content });
            let reason = reason(&part.facts, &calls);
            if !calls.calls.is_empty() {
                let all = calls.calls.iter().map(|call| call_json(&call.id, &call.name, &call.arguments));
                message["tool_calls"] = all.collect();
                message["content"] = if content.is_empty() { Value::Null } else { content.into() };
                self.app.ring.keep(calls.triples(), &calls.raw);
            }
            if !thoughts.is_empty() {
                message["reasoning_content"] = thoughts.into();
            }
            let logprobs = self.n_top.map(|n_top| json!({ "content": gaps.list(part.tokens, n_top) }));
            choices.push(json!({
                "index": part.facts.part,
                "message": message,
                "finish_reason": reason,
                "logprobs": logprobs,
            }));
            facts.push(part.facts);
        }
        let mut object = self.object("chat.completion", choices.into());
        object["usage"] = usage(&facts);
        if let Some(last) = facts.last() {
            object["timings"] = timings(&last.progress);
            object["lowkey"] = memory(last);
        }
        if let Some(verbose) = &self.verbose {
            object["__verbose"] = verbose.first().cloned().unwrap_or_default();
        }
        object
    }
}
