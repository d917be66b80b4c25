//! `/completion`: llama-server's own, for a text or tokens as they stand.

use std::sync::Arc;

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::server::desk::{Finish, Request};

use super::answers::{memory, prompt_progress, sse, timings, tokens_with_tops};
use super::app::{App, AppState};
use super::error::{Checked, Refusal};
use super::fields::{Fields, wanted};
use super::gaps::Gaps;
use super::run::{Facts, Manner, Piece, Token};
use super::stream::{Format, Order, Part, answer};
use super::{body, prompt, sampling};

/// Fields that an answer may be cut to.
const MAX_FIELDS: usize = 64;

pub async fn native(State(app): AppState, request: HttpRequest) -> Checked<Response> {
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
    let mut wishes = sampling::read(app, &fields, &["n_predict", "max_tokens"])?;
    wishes.request.n_probs = sampling::n_tops(&fields, "n_probs")?.unwrap_or(0);
    let mut paths = Vec::new();
    for path in fields.list("response_fields")?.unwrap_or_default() {
        paths.push(path.as_str().ok_or_else(|| wanted("response_fields", "a list of strings", path))?.to_owned());
    }
    if paths.len() > MAX_FIELDS {
        return Err(fields.invalid("response_fields", format!("more than {MAX_FIELDS}")));
    }
    if fields.list("image_data")?.is_some_and(|images| !images.is_empty()) {
        return Err(Refusal::unsupported_field("image_data", "this server reads text only"));
    }
    let prompts = prompt::of_completion(app, &fields)?;
    let format = Native {
        app: app.clone(),
        n_probs: wishes.request.n_probs,
        timings_per_token: wishes.timings_per_token,
        return_tokens: fields.flag("return_tokens")?,
        is_stream: wishes.is_stream,
        paths,
        made_from: Vec::new(),
        has_new_line: false,
    };
    Ok(Order {
        manner: Manner {
            by_token: wishes.request.n_probs > 0,
            keeps_tokens: wishes.request.n_probs > 0 || format.return_tokens,
            progress: wishes.return_progress,
            ping: None,
        },
        is_stream: wishes.is_stream,
        batch: sampling::batch(app, &wishes, prompts, None)?,
        format: Box::new(format),
    })
}

/// What a part was made from.
struct MadeFrom {
    prompt: Value,
    settings: Value,
    stops: Vec<String>,
}

struct Native {
    app: Arc<App>,
    n_probs: usize,
    timings_per_token: bool,
    return_tokens: bool,
    is_stream: bool,
    /// What the last object is cut to; none: nothing.
    paths: Vec<String>,
    made_from: Vec<MadeFrom>,
    has_new_line: bool,
}

impl Native {
    fn probabilities(&self, tokens: &[Token]) -> Value {
        tokens_with_tops(&self.app.shared.tokenizer, tokens, self.n_probs)
    }

    /// What all objects of a stream have.
    fn partial(&self, facts: &Facts, content: &str, tokens: &[Token]) -> Value {
        json!({
            "index": facts.part,
            "content": content,
            "tokens": tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
            "stop": false,
            "id_slot": facts.kept.stream,
            "tokens_predicted": facts.progress.n_generated,
            "tokens_evaluated": facts.progress.n_prompt,
        })
    }

    fn last(&self, facts: &Facts, content: &str, tokens: &[Token], has_new_line: bool) -> Value {
        let mut object = self.partial(facts, content, if self.return_tokens { tokens } else { &[] });
        let made_from = self.made_from.get(facts.part);
        let word = facts.stop.and_then(|i| made_from?.stops.get(i)).map_or("", String::as_str);
        let stop_type = match facts.finish {
            Some(Finish::Eos) => "eos",
            Some(Finish::Stop) => "word",
            Some(Finish::Length) => "limit",
            Some(Finish::Error) | None => "none",
        };
        let own = json!({
            "stop": true,
            "model": self.app.shared.model.name(),
            "generation_settings": made_from.map(|from| &from.settings),
            "prompt": made_from.map(|from| &from.prompt),
            "has_new_line": has_new_line,
            "truncated": facts.is_truncated(),
            "stop_type": stop_type,
            "stopping_word": word,
            "tokens_cached": (facts.progress.n_prompt + facts.progress.n_generated).saturating_sub(1),
            "timings": timings(&facts.progress),
            "lowkey": memory(facts),
        });
        if let (Value::Object(object), Value::Object(own)) = (&mut object, own) {
            object.extend(own);
        }
        object
    }

    /// Only what was asked for, by its path.
    fn cut(&self, object: Value) -> Value {
        if self.paths.is_empty() {
            return object;
        }
        let mut cut = Map::new();
        for path in &self.paths {
            let found = path.split('/').try_fold(&object, |at, name| at.get(name));
            if let Some(found) = found {
                cut.insert(path.clone(), found.clone());
            }
        }
        Value::Object(cut)
    }
}

impl Format for Native {
    fn progress(&mut self, facts: &Facts, out: &mut String) {
        let mut object = self.partial(facts, "", &[]);
        object["prompt_progress"] = prompt_progress(&facts.progress);
        if self.timings_per_token {
            object["timings"] = timings(&facts.progress);
        }
        sse(out, &object);
    }

    fn piece(&mut self, facts: &Facts, piece: &Piece, out: &mut String) {
        self.has_new_line |= piece.text.contains('\n');
        let mut object = self.partial(facts, &piece.text, &piece.tokens);
        if self.n_probs > 0 {
            object["completion_probabilities"] = self.probabilities(&piece.tokens);
        }
        if self.timings_per_token {
            object["timings"] = timings(&facts.progress);
        }
        sse(out, &object);
    }

    fn note(&mut self, request: &Request) {
        self.made_from.push(MadeFrom {
            prompt: sampling::prompt_text(&self.app, request),
            settings: sampling::generation_settings(request, self.is_stream, self.timings_per_token),
            stops: request.stops.clone(),
        });
    }

    fn part_end(&mut self, facts: &Facts, out: &mut String) {
        let has_new_line = std::mem::take(&mut self.has_new_line);
        sse(out, &self.cut(self.last(facts, "", &[], has_new_line)));
    }

    fn end(&mut self, _out: &mut String) {}

    fn failed(&mut self, refusal: &Refusal, out: &mut String) {
        sse(out, &json!({ "error": refusal.object() }));
    }

    fn whole(&mut self, parts: Vec<Part>, gaps: &mut Gaps) -> Value {
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            let mut answer = self.last(&part.facts, &part.text, &part.tokens, part.text.contains('\n'));
            if self.n_probs > 0 {
                answer["completion_probabilities"] = gaps.list(part.tokens, self.n_probs);
            }
            answers.push(self.cut(answer));
        }
        // One answer stands for itself, as it does at llama-server.
        if answers.len() > 1 { answers.into() } else { answers.pop().unwrap_or_default() }
    }
}
