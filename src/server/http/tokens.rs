//! Texts and chats as tokens, and back, without an answer of the model.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use super::answers::json_response;
use super::app::{App, AppState};
use super::body::{self, Place};
use super::error::{Checked, JSON, Refusal};
use super::fields::{Fields, wanted};
use super::prompt;
use super::unfold::Unfold;

/// Reads the body and has the clerk make something of it; the body's place is kept beside that.
async fn read<T: Send + 'static>(
    app: &Arc<App>,
    request: HttpRequest,
    make: impl FnOnce(&App, &Fields<'_>) -> Checked<T> + Send + 'static,
) -> Checked<(T, Place)> {
    let body = body::read_for_more(app, request).await?;
    let reader = app.clone();
    app.clerk
        .run(move || {
            let (body, place) = body.json(&reader.settings)?;
            Ok((make(&reader, &Fields::of_body(&body)?)?, place))
        })
        .await
}

/// Tokens on their way out, as numbers or with their texts. Of a large body they are several times its size in JSON.
struct Telling {
    app: Arc<App>,
    ids: Vec<u32>,
    with_pieces: bool,
    n_told: usize,
    is_over: bool,
    _place: Place,
}

/// Told at once.
const PIECE: usize = 256;

fn tell(mut telling: Telling) -> (Telling, Option<Bytes>) {
    if telling.is_over {
        return (telling, None);
    }
    let mut out = String::from(if telling.n_told == 0 { "{\"tokens\":[" } else { "" });
    let end = telling.ids.len().min(telling.n_told + PIECE);
    for (i, id) in telling.ids.iter().enumerate().take(end).skip(telling.n_told) {
        if i > 0 {
            out.push(',');
        }
        match telling.with_pieces {
            true => out.push_str(&piece(&telling.app, *id).to_string()),
            false => out.push_str(&id.to_string()),
        }
    }
    telling.n_told = end;
    if end == telling.ids.len() {
        out.push_str("]}");
        telling.is_over = true;
    }
    (telling, Some(out.into()))
}

/// A token and its text, or its bytes where they are no whole characters.
fn piece(app: &App, id: u32) -> Value {
    let bytes = app.shared.tokenizer.token_bytes(id, true);
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "id": id, "piece": text }),
        Err(_) => json!({ "id": id, "piece": bytes }),
    }
}

pub async fn tokenize(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let make = |app: &App, fields: &Fields<'_>| {
        let content = fields.needed("content", "a string")?;
        let content = content.as_str().ok_or_else(|| wanted("content", "a string", content))?;
        let parse_special = fields.bool("parse_special")?.unwrap_or(true);
        let ids = app.encode(content, fields.flag("add_special")?, parse_special)?;
        let most = app.settings.max_prompt_tokens();
        if ids.len() > most {
            return Err(fields.invalid("content", format!("{} tokens, more than {most}: send it in parts", ids.len())));
        }
        Ok((ids, fields.flag("with_pieces")?))
    };
    let ((ids, with_pieces), place) = read(&app, request, make).await?;
    let telling = Telling { app, ids, with_pieces, n_told: 0, is_over: false, _place: place };
    let mut response = Response::new(Body::new(Unfold::new(telling, |telling| std::future::ready(tell(telling)))));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    Ok(response)
}

pub async fn detokenize(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let make = |app: &App, fields: &Fields<'_>| {
        let list = fields.needed("tokens", "a list of tokens")?;
        let list = list.as_array().ok_or_else(|| wanted("tokens", "a list of tokens", list))?;
        let ids = list.iter().map(|id| prompt::token(app, id, "tokens")).collect::<Checked<Vec<u32>>>()?;
        let n_bytes: usize = ids.iter().map(|id| app.shared.tokenizer.token_bytes(*id, true).len()).sum();
        if n_bytes > app.settings.max_body {
            let what = format!("a text of {n_bytes} bytes, more than {}: send them in parts", app.settings.max_body);
            return Err(fields.invalid("tokens", what));
        }
        Ok(json!({ "content": app.shared.tokenizer.decode(&ids) }))
    };
    let (answer, _place) = read(&app, request, make).await?;
    Ok(json_response(&answer))
}

pub async fn apply_template(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let make = |app: &App, fields: &Fields<'_>| {
        let text = prompt::render(app, prompt::read_chat(app, fields)?)?.text;
        // It may repeat what it was given as often as its memory allows.
        if text.len() > 4 * app.settings.max_body {
            return Err(Refusal::invalid("messages", format!("the template makes {} bytes of them: send less", text.len())));
        }
        Ok(json!({ "prompt": text }))
    };
    let (answer, _place) = read(&app, request, make).await?;
    Ok(json_response(&answer))
}

pub async fn count_chat(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let make = |app: &App, fields: &Fields<'_>| {
        let n = prompt::count(app, prompt::read_chat(app, fields)?)?;
        Ok(json!({ "object": "response.input_tokens", "input_tokens": n }))
    };
    let (answer, _place) = read(&app, request, make).await?;
    Ok(json_response(&answer))
}
