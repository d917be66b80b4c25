//! Paths, and the way of every request: its place, who asks, its handler, and what every answer carries.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, HeaderValue, ORIGIN, SERVER};
use hyper::{Method, StatusCode};
use tower::ServiceExt;

use super::app::App;
use super::error::{Checked, Refusal, quoted};
use super::seats::Seat;
use super::wire::State;
use super::{arena, chat, clerk, completion, guard, metrics, models, ollama, responses, slots, text_completion, tokens};

pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/", get(models::page))
        .route("/props", get(models::props))
        .route("/slots", get(slots::list))
        .route("/slots/{id}", post(slots::act))
        .route("/metrics", get(metrics::show))
        .route("/completion", post(completion::native))
        .route("/completions", post(completion::native))
        .route("/v1/completions", post(text_completion::create))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/lowkey/arena", get(arena::show))
        .route("/lowkey/events", get(arena::events))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/{*rest}", axum::routing::any(ollama::other))
        .route("/embedding", post(not_here))
        .route("/infill", post(not_here));
    for root in ["", "/v1"] {
        router = router
            .route(&format!("{root}/health"), get(models::health))
            .route(&format!("{root}/models"), get(models::list))
            .route(&format!("{root}/models/{{*id}}"), get(models::one))
            .route(&format!("{root}/chat/completions"), post(chat::create))
            .route(&format!("{root}/chat/completions/input_tokens"), post(tokens::count_chat))
            .route(&format!("{root}/responses"), post(responses::create))
            .route(&format!("{root}/embeddings"), post(not_here))
            .route(&format!("{root}/rerank"), post(not_here))
            .route(&format!("{root}/messages"), post(not_here))
            .route(&format!("{root}/audio/transcriptions"), post(not_here));
    }
    router.method_not_allowed_fallback(some_wrong_method).fallback(nowhere).with_state(app)
}

async fn not_here(request: Request) -> Refusal {
    Refusal::unsupported(format!("{} is nothing that this server does: it answers with text", request.uri().path()))
}

async fn nowhere(request: Request) -> Refusal {
    Refusal::not_found(format!("there is nothing at {}", quoted(request.uri().path())))
}

/// The words come when it is known which methods there are.
async fn some_wrong_method() -> Refusal {
    Refusal::protocol(StatusCode::METHOD_NOT_ALLOWED, "")
}

fn wrong_method(method: &Method, path: &str, allowed: &HeaderValue) -> Refusal {
    let allowed = allowed.to_str().unwrap_or_default().replace(',', " or ");
    let message = format!("{} is asked with {allowed}, not with {}", quoted(path), quoted(method.as_str()));
    Refusal::protocol(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// What a busy server still answers.
fn is_reserved(path: &str) -> bool {
    ["/", "/health", "/v1/health", "/metrics"].contains(&path)
}

/// Everything about a request but its handler.
fn check(app: &App, seat: &Seat, is_local: bool, request: &Request) -> Checked<()> {
    let (path, headers) = (request.uri().path(), request.headers());
    let is_health = path.ends_with("/health");
    if !is_reserved(path) && !seat.may_ask() {
        let message = "all connections of this server but those for health, metrics and the page are taken: try again";
        return Err(Refusal::unavailable(message, 1).closing());
    }
    // No name leads to a socket in the file system.
    if !is_health && !is_local {
        guard::check_host(&app.settings, request.version(), headers)?;
    }
    guard::check_origin(&app.settings, request.method(), headers)?;
    if *request.method() == Method::OPTIONS {
        return Ok(());
    }
    guard::check_key(&app.settings, path, headers)?;
    if !app.shared.is_ready() && path != "/" {
        return Err(Refusal::unavailable("Loading model", 1));
    }
    if is_health {
        clerk::check_rendering()?;
    }
    Ok(())
}

/// A request from its head to its answer.
pub async fn handle(
    app: Arc<App>,
    router: Router,
    state: Arc<State>,
    seat: Arc<Seat>,
    is_local: bool,
    request: hyper::Request<Incoming>,
) -> Result<Response, std::convert::Infallible> {
    state.request_comes();
    let request = request.map(Body::new);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = request.headers().get(ORIGIN).cloned();
    let mut response = match check(&app, &seat, is_local, &request) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if method == Method::OPTIONS => StatusCode::OK.into_response(),
        Ok(()) => guarded(router.oneshot(request)).await,
    };
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        log::debug!("{method} {path}: {}", refusal.message());
        let allowed = response.headers().get(ALLOW).cloned();
        let refusal = match &allowed {
            Some(allowed) => wrong_method(&method, &path, allowed),
            None => refusal,
        };
        response = if path.starts_with("/api/") { refusal.for_ollama() } else { refusal.answer() };
        if let Some(allowed) = allowed {
            response.headers_mut().insert(ALLOW, allowed);
        }
    }
    app.shared.counters.count_request(&path, response.status());
    let headers = response.headers_mut();
    guard::add_cors(&app.settings, &method, origin.as_ref(), headers);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(SERVER, HeaderValue::from_static("lowkey"));
    let id = super::answers::random_name("req-");
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    Ok(response.map(|body| Body::new(super::unfold::Tracked::new(body, state))))
}

/// The answer of a handler; a panic of its is an answer too.
async fn guarded(answer: impl Future<Output = Result<Response, std::convert::Infallible>>) -> Response {
    let mut answer = pin!(answer);
    let answered = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(response))) => Poll::Ready(response),
        Err(_) => {
            log::error!("a request made the server panic: the lines above say where");
            Poll::Ready(Refusal::broken("the server failed at this request: its log says more").into_response())
        }
    });
    answered.await
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/router.rs"]
mod tests;
