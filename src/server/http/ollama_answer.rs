//! Answers as Ollama gives them: lines of JSON, or one object.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::server::desk::Finish;

use super::app::App;
use super::error::Refusal;
use super::gaps::Gaps;
use super::run::{Facts, Piece};
use super::stream::{Format, Part};
use super::thinking::{Parted, Splitter};

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
    fresh: Splitter,
    splitter: Splitter,
    begun: Instant,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Answer {
    pub fn new(app: Arc<App>, is_chat: bool, splitter: Splitter) -> Self {
        Answer { app, is_chat, fresh: splitter.clone(), splitter, begun: Instant::now() }
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
        let parted = self.splitter.push(&piece.text);
        self.line(&parted, out);
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        let rest = self.splitter.finish();
        self.line(&rest, out);
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
        self.last(&part.facts, &self.fresh.clone().part(&part.text))
    }
}
