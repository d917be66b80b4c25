//! Texts and chats as tokens, and back, without an answer.

use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::answers::json_response;
use super::app::{App, AppState};
use super::error::Checked;
use super::fields::{Fields, wanted};
use super::{body, prompt};

/// Reads the body and has the clerk make an answer of it.
async fn read(
    app: AppState,
    request: HttpRequest,
    make: impl FnOnce(&App, &Fields<'_>) -> Checked<Value> + Send + 'static,
) -> Checked<Response> {
    let State(app) = app;
    let body = body::read(&app, request).await?;
    let reader = app.clone();
    let answer = app
        .clerk
        .run(move || {
            let body = body.json(reader.settings.max_body)?;
            make(&reader, &Fields::of_body(&body)?)
        })
        .await?;
    Ok(json_response(&answer))
}

pub async fn tokenize(app: AppState, request: HttpRequest) -> Checked<Response> {
    read(app, request, |app, fields| {
        let content = fields.needed("content", "a string")?;
        let content = content.as_str().ok_or_else(|| wanted("content", "a string", content))?;
        let parse_special = fields.bool("parse_special")?.unwrap_or(true);
        let ids = app.encode(content, fields.flag("add_special")?, parse_special)?;
        if !fields.flag("with_pieces")? {
            return Ok(json!({ "tokens": ids }));
        }
        let piece = |id: &u32| {
            let bytes = app.shared.tokenizer.token_bytes(*id, true);
            match std::str::from_utf8(bytes) {
                Ok(text) => json!({ "id": id, "piece": text }),
                Err(_) => json!({ "id": id, "piece": bytes }),
            }
        };
        Ok(json!({ "tokens": ids.iter().map(piece).collect::<Vec<_>>() }))
    })
    .await
}

pub async fn detokenize(app: AppState, request: HttpRequest) -> Checked<Response> {
    read(app, request, |app, fields| {
        let list = fields.needed("tokens", "a list of tokens")?;
        let list = list.as_array().ok_or_else(|| wanted("tokens", "a list of tokens", list))?;
        let ids: Checked<Vec<u32>> = list.iter().map(|id| prompt::token(app, id, "tokens")).collect();
        Ok(json!({ "content": app.shared.tokenizer.decode(&ids?) }))
    })
    .await
}

pub async fn apply_template(app: AppState, request: HttpRequest) -> Checked<Response> {
    read(app, request, |app, fields| {
        let chat = prompt::read_chat(app, fields)?;
        Ok(json!({ "prompt": prompt::render(app, chat)?.text }))
    })
    .await
}

pub async fn count_chat(app: AppState, request: HttpRequest) -> Checked<Response> {
    read(app, request, |app, fields| {
        let chat = prompt::read_chat(app, fields)?;
        let n = prompt::count(app, chat)?;
        Ok(json!({ "object": "response.input_tokens", "input_tokens": n }))
    })
    .await
}
