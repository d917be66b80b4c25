//! Answers as Ollama gives them: lines of JSON, or one object.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::server::desk::Finish;

use super::app::App;
use super::calls::{Call, Told};
use super::error::Refusal;
use super::gaps::Gaps;
use super::reader::Reader;
use super::run::{Facts, Piece};
use super::stream::{Format, Part};

/// What is said in a line.
#[derive(Default)]
struct Parted {
    reasoning: String,
    content: String,
}

pub fn date(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// The answer to a request that asks for nothing but the model.
pub fn loaded(app: &App, is_chat: bool) -> Value {
    let mut object = object(app, is_chat, &Parted::default());
    object["done"] = true.into();
    object["done_reason"] = "load".into();
    object
}

fn object(app: &App, is_chat: bool, parted: &Parted) -> Value {
    let mut object = json!({ "model": app.shared.model.name(), "created_at": date(SystemTime::now()) });
    match is_chat {
        true => {
            object["message"] = json!({ "role": "assistant", "content": parted.content });
            if !parted.reasoning.is_empty() {
                object["message"]["thinking"] = parted.reasoning.as_str().into();
            }
        }
        false => {
            object["response"] = parted.content.as_str().into();
            if !parted.reasoning.is_empty() {
                object["thinking"] = parted.reasoning.as_str().into();
            }
        }
    }
    object["done"] = false.into();
    object
}

pub struct Answer {
    app: Arc<App>,
    is_chat: bool,
    fresh: Reader,
    reader: Reader,
    /// Calls that have been told.
    n_told: usize,
    begun: Instant,
}

/// Arguments are objects here, so that half a call cannot be told: it is left out, as Ollama does. An id is not Ollama's; it does no
/// harm, and comes back with what was called.
fn calls_json(calls: &[Call]) -> Vec<Value> {
    let one = |call: &Call| Some(json!({ "id": call.id, "function": { "name": call.name, "arguments": call.object()? } }));
    calls.iter().filter_map(one).collect()
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Answer {
    pub fn new(app: Arc<App>, is_chat: bool, reader: Reader) -> Self {
        Answer { app, is_chat, fresh: reader.clone(), reader, n_told: 0, begun: Instant::now() }
    }

    /// What has come; calls are told whole, so the last one waits for the next or the end.
    fn told(&mut self, told: Vec<Told>, is_end: bool, out: &mut String) {
        let mut parted = Parted::default();
        for told in told {
            match told {
                Told::Thought(text) => parted.reasoning.push_str(&text),
                Told::Text(text) => parted.content.push_str(&text),
                Told::Begin { .. } | Told::Arguments { .. } => {}
            }
        }
        self.line(&parted, out);
        let calls = &self.reader.calls;
        let n_whole = if is_end { calls.calls.len() } else { calls.calls.len().saturating_sub(1) };
        let whole = calls_json(&calls.calls[self.n_told..n_whole]);
        self.n_told = n_whole;
        if !whole.is_empty() {
            let mut line = object(&self.app, self.is_chat, &Parted::default());
            line["message"]["tool_calls"] = whole.into();
            out.push_str(&line.to_string());
            out.push('\n');
        }
        if is_end {
            self.app.ring.keep(calls.triples(), &calls.raw);
            (self.reader, self.n_told) = (self.fresh.clone(), 0);
        }
    }

    fn line(&self, parted: &Parted, out: &mut String) {
        if !parted.content.is_empty() || !parted.reasoning.is_empty() {
            out.push_str(&object(&self.app, self.is_chat, parted).to_string());
            out.push('\n');
        }
    }

    fn last(&self, facts: &Facts, parted: &Parted) -> Value {
        let mut last = object(&self.app, self.is_chat, parted);
        let progress = &facts.progress;
        last["done"] = true.into();
        last["done_reason"] = if facts.finish == Some(Finish::Length) { "length" } else { "stop" }.into();
        last["total_duration"] = ns(self.begun.elapsed()).into();
        // It is loaded before anybody can ask.
        last["load_duration"] = 0.into();
        last["prompt_eval_count"] = progress.n_prompt.into();
        last["prompt_eval_duration"] = ns(progress.prefill).into();
        last["eval_count"] = progress.n_generated.into();
        last["eval_duration"] = ns(progress.decode).into();
        last
    }
}

impl Format for Answer {
    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    /// Its clients read every line as JSON: there is nothing that says nothing.
    fn ping(&self) -> &'static str {
        ""
    }

    fn piece(&mut self, _facts: &Facts, piece: &Piece, out: &mut String) {
        let told = self.reader.push(&piece.text);
        self.told(told, false, out);
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        let rest = self.reader.finish();
        self.told(rest, true, out);
        out.push_str(&self.last(facts, &Parted::default()).to_string());
        out.push('\n');
    }

    fn end(&mut self, _out: &mut String) {}

    fn failed(&mut self, refusal: &Refusal, out: &mut String) {
        out.push_str(&json!({ "error": refusal.message() }).to_string());
        out.push('\n');
    }

    fn whole(&mut self, mut parts: Vec<Part>, _gaps: &mut Gaps) -> Value {
        let part = parts.pop().unwrap_or_default();
        let mut reader = self.fresh.clone();
        let (reasoning, content) = reader.whole(&part.text);
        let (mut answer, calls) = (self.last(&part.facts, &Parted { reasoning, content }), reader.calls);
        let whole = calls_json(&calls.calls);
        if !whole.is_empty() {
            answer["message"]["tool_calls"] = whole.into();
        }
        self.app.ring.keep(calls.triples(), &calls.raw);
        answer
    }
}
