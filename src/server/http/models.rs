//! What the server is: its health, its model, its properties, its page.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use serde_json::{Value, json};

use super::answers::{fingerprint, json_response, unix_seconds};
use super::app::{App, AppState};
use super::error::{Checked, Refusal, quoted};
use super::{sampling, slots};

const PAGE: &str = include_str!("../page.html");
/// The page's own script and style, and this server.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub async fn health() -> Response {
    json_response(&json!({ "status": "ok" }))
}

pub async fn page(State(app): AppState) -> Checked<Response> {
    if !app.settings.ui {
        return Err(Refusal::not_found("the page is turned off on this server"));
    }
    let mut response = Response::new(PAGE.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn model(app: &App) -> Value {
    let model = &app.shared.model;
    let mut aliases = model.aliases.clone();
    aliases.sort();
    json!({
        "id": model.name(),
        "object": "model",
        "created": unix_seconds(app.shared.started),
        "owned_by": "lowkey",
        "aliases": aliases,
        "tags": model.tags,
        "meta": {
            "n_vocab": model.n_vocab,
            "n_ctx_train": model.n_ctx_train,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "size": model.file_bytes,
        },
    })
}

pub async fn list(State(app): AppState) -> Response {
    json_response(&json!({ "object": "list", "data": [model(&app)] }))
}

pub async fn one(State(app): AppState, id: Result<Path<String>, PathRejection>) -> Checked<Response> {
    let id = slots::piece(id, "id")?;
    match app.shared.model.aliases.contains(&id) {
        true => Ok(json_response(&model(&app))),
        false => Err(Refusal::not_found(format!("model {} not found: this server has {}", quoted(&id), app.shared.model.name()))),
    }
}

pub async fn props(State(app): AppState) -> Response {
    let tokenizer = &app.shared.tokenizer;
    let [bos, eos] = tokenizer.bos_and_eos_texts();
    json_response(&json!({
        "default_generation_settings": { "n_ctx": app.settings.n_ctx, "params": sampling::default_settings(&app) },
        "total_slots": app.settings.n_streams,
        "model_alias": app.shared.model.name(),
        "model_path": app.shared.model.path,
        "chat_template": app.shared.template.as_ref().map_or("", |template| template.source()),
        "bos_token": bos,
        "eos_token": eos,
        "modalities": { "vision": false, "audio": false },
        "build_info": fingerprint(&app.shared),
        "max_tokens": sampling::default_settings(&app)["max_tokens"],
        "features": {
            "metrics": app.settings.metrics,
            "slots": app.settings.slots,
            "sessions": app.settings.sessions,
            "ollama": app.settings.ollama,
        },
    }))
}
