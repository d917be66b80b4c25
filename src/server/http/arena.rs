//! Which tokens a stream's arena holds: once, or twice a second for as long as somebody watches.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use crate::server::desk::{ARENA_BUCKETS, ArenaView};

use super::answers::{json_response, sse};
use super::app::{App, AppState};
use super::error::{Checked, Refusal, quoted};
use super::slots::asked;
use super::unfold::Unfold;

/// A view is told as it was last when the engine is busy for longer.
const PATIENCE: Duration = Duration::from_millis(400);
const PERIOD: Duration = Duration::from_millis(500);

/// The stream that is asked for, the first where none is.
fn stream_of(app: &App, request: &HttpRequest) -> Checked<usize> {
    let word = asked(request, "stream").unwrap_or("0");
    let most = app.settings.n_streams - 1;
    let stream = word.parse().ok().filter(|stream| *stream <= most);
    stream.ok_or_else(|| Refusal::invalid("stream", format!("{} is no stream: they are from 0 to {most}", quoted(word))))
}

fn told(view: &ArenaView) -> Value {
    let heads: Vec<Value> = view
        .heads
        .iter()
        .zip(view.kept.chunks(ARENA_BUCKETS))
        .map(|((layer, head), kept)| json!({ "layer": layer, "head": head, "kept": kept }))
        .collect();
    json!({
        "stream": view.stream,
        "n_slot": view.n_slot,
        "n_live": view.n_live,
        "n_evicted": view.n_evicted,
        "next_pos": view.next_pos,
        "pinned": view.n_pinned,
        "recent": view.n_recent,
        "policy": view.policy,
        "types": view.types.join("/"),
        "bytes": view.bytes,
        "buckets": ARENA_BUCKETS,
        "heads": heads,
        "version": view.version,
    })
}

pub async fn show(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let stream = stream_of(&app, &request)?;
    Ok(json_response(&told(&app.shared.desk.arena(stream, PATIENCE).await)))
}

struct Watch {
    app: Arc<App>,
    stream: usize,
    is_first: bool,
    _place: OwnedSemaphorePermit,
}

async fn next(mut watch: Watch) -> (Watch, Option<Bytes>) {
    if !std::mem::take(&mut watch.is_first) && tokio::time::timeout(PERIOD, watch.app.shared.stopped()).await.is_ok() {
        return (watch, None);
    }
    let view = watch.app.shared.desk.arena(watch.stream, PATIENCE).await;
    let mut out = String::new();
    sse(&mut out, &told(&view));
    (watch, Some(out.into()))
}

pub async fn events(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    let stream = stream_of(&app, &request)?;
    let place = app.watchers.clone().try_acquire_owned();
    let place = place.map_err(|_| Refusal::unavailable("as many as may are watching already", 10))?;
    let watch = Watch { app, stream, is_first: true, _place: place };
    let mut response = Response::new(Body::new(Unfold::new(watch, next)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}
