//! `/v1/completions`: OpenAI's completions of a text.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::desk::Request;

use super::answers::{
    fingerprint, finish_reason, memory, now, prompt_progress, random_name, sse, timings, tokens_with_tops, usage,
};
use super::app::{App, AppState};
use super::error::{Checked, Refusal};
use super::fields::Fields;
use super::gaps::Gaps;
use super::run::{Facts, Manner, Piece, Token};
use super::stream::{Format, Order, Part, answer};
use super::{body, prompt, sampling};

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
    let mut wishes = sampling::read(app, &fields, &["max_tokens", "n_predict"])?;
    if fields.flag("echo")? {
        return Err(Refusal::unsupported_field("echo", "prompts are not given back"));
    }
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::unsupported_field("suffix", "text is gone on with, and not filled in"));
    }
    if fields.integer("best_of", 1, 128)?.is_some_and(|n| n as usize > wishes.n) {
        return Err(Refusal::unsupported_field("best_of", "no answers are made but those that are given: leave it out"));
    }
    let n_top = match fields.get("logprobs") {
        None | Some(Value::Bool(false)) => None,
        Some(_) => sampling::n_tops(&fields, "logprobs")?,
    };
    wishes.request.n_probs = n_top.map_or(0, |n| n.max(1));
    let prompts = prompt::of_completion(app, &fields)?;
    let format = Text {
        app: app.clone(),
        base: json!({
            "id": random_name("cmpl-"),
            "object": "text_completion",
            "created": now(),
            "model": app.shared.model.name(),
            "system_fingerprint": fingerprint(&app.shared),
        }),
        n_top,
        timings_per_token: wishes.timings_per_token,
        include_usage: wishes.include_usage,
        verbose: wishes.verbose.then(Vec::new),
        is_stream: wishes.is_stream,
        parts: Vec::new(),
    };
    Ok(Order {
        manner: Manner { by_token: n_top.is_some(), keeps_tokens: n_top.is_some(), progress: wishes.return_progress, ping: None },
        is_stream: wishes.is_stream,
        batch: sampling::batch(app, &wishes, prompts, None)?,
        format: Box::new(format),
    })
}

struct Text {
    app: Arc<App>,
    base: Value,
    n_top: Option<usize>,
    timings_per_token: bool,
    include_usage: bool,
    verbose: Option<Vec<Value>>,
    is_stream: bool,
    parts: Vec<Facts>,
}

impl Text {
    fn object(&self, choices: Value) -> Value {
        let mut object = self.base.clone();
        object["choices"] = choices;
        object
    }

    fn logprobs(&self, tokens: &[Token]) -> Value {
        self.n_top.map_or(Value::Null, |n| json!({ "content": tokens_with_tops(&self.app.shared.tokenizer, tokens, n) }))
    }

    fn chunk(&self, index: usize, text: &str, logprobs: Value, finish: Option<&str>) -> Value {
        self.object(json!([{ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish }]))
    }
}

impl Format for Text {
    fn progress(&mut self, facts: &Facts, out: &mut String) {
        let mut chunk = self.chunk(facts.part, "", Value::Null, None);
        chunk["prompt_progress"] = prompt_progress(&facts.progress);
        if self.timings_per_token {
            chunk["timings"] = timings(&facts.progress);
        }
        sse(out, &chunk);
    }

    fn piece(&mut self, facts: &Facts, piece: &Piece, out: &mut String) {
        let mut chunk = self.chunk(facts.part, &piece.text, self.logprobs(&piece.tokens), None);
        if self.timings_per_token {
            chunk["timings"] = timings(&facts.progress);
        }
        sse(out, &chunk);
    }

    fn note(&mut self, request: &Request) {
        let (app, is_stream) = (&self.app, self.is_stream);
        if let Some(verbose) = &mut self.verbose {
            verbose.push(sampling::verbose(app, request, is_stream));
        }
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        self.parts.push(*facts);
        let mut chunk = self.chunk(facts.part, "", Value::Null, Some(finish_reason(facts)));
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
            let mut chunk = self.object(json!([]));
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
        let facts: Vec<Facts> = parts.iter().map(|part| part.facts).collect();
        let choice = |part: Part| {
            let logprobs = self.n_top.map(|n_top| json!({ "content": gaps.list(part.tokens, n_top) }));
            json!({
                "index": part.facts.part,
                "text": part.text,
                "logprobs": logprobs,
                "finish_reason": finish_reason(&part.facts),
            })
        };
        let choices: Vec<Value> = parts.into_iter().map(choice).collect();
        let mut object = self.object(choices.into());
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
