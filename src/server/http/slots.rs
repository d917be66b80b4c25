//! `/slots`: what streams are doing, and errands on them. Clients of llama-server call a stream a slot.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::response::Response;
use serde_json::{Value, json};

use crate::server::desk::{Doing, Errand, StreamStatus};

use super::answers::json_response;
use super::app::{App, AppState};
use super::error::{Checked, Refusal, quoted};
use super::fields::Fields;
use super::{body, sampling};

/// A word of a path's query, as it stands there: none that is known here needs escapes.
pub fn asked<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    let mut pairs = request.uri().query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(given, _)| *given == name).map(|(_, value)| value)
}

/// A piece of a path that says `name`.
pub fn piece(piece: Result<Path<String>, PathRejection>, name: &str) -> Checked<String> {
    let Path(piece) =
        piece.map_err(|_| Refusal::invalid(name, "the path is no UTF-8 there: escape the bytes of whole letters"))?;
    Ok(piece)
}

fn check_on(app: &App) -> Checked<()> {
    match app.settings.slots {
        true => Ok(()),
        false => Err(Refusal::unsupported("the slots of this server are not told: it was started without them")),
    }
}

pub async fn list(State(app): AppState, request: HttpRequest) -> Checked<Response> {
    check_on(&app)?;
    let (streams, n_idle) = app.shared.desk.streams(|streams| {
        let told: Vec<Value> = streams.iter().enumerate().map(|(id, stream)| one(&app, id, stream)).collect();
        (told, streams.iter().filter(|stream| stream.doing == Doing::Idle).count())
    });
    if n_idle == 0 && asked(&request, "fail_on_no_slot").is_some_and(|word| word != "0") {
        return Err(Refusal::unavailable("no slot available", app.shared.desk.retry_after_s()));
    }
    Ok(json_response(&streams.into()))
}

fn one(app: &App, id: usize, stream: &StreamStatus) -> Value {
    let is_busy = stream.doing != Doing::Idle;
    let doing = match stream.doing {
        Doing::Idle => "idle",
        Doing::Prefill => "prefill",
        Doing::Decode => "decode",
    };
    // An idle stream has nothing left to do, whatever it did last.
    let (n_remain, n_decoded) = if is_busy { (stream.n_remain as i64, stream.n_generated) } else { (-1, 0) };
    json!({
        "id": id,
        "n_ctx": app.settings.n_ctx,
        "speculative": app.settings.n_draft > 0,
        "is_processing": is_busy,
        "next_token": [{ "has_next_token": is_busy, "n_remain": n_remain, "n_decoded": n_decoded }],
        "lowkey": {
            "doing": doing,
            "n_past": stream.n_past,
            "n_live": stream.n_live,
            "n_slot": stream.n_slot,
            "n_evicted": stream.n_evicted,
            "n_renumbered": stream.n_renumbered,
            "n_pinned": stream.n_pinned,
            "next_pos": stream.next_pos,
            "n_prompt": stream.n_prompt,
        },
    })
}

pub async fn act(State(app): AppState, id: Result<Path<String>, PathRejection>, request: HttpRequest) -> Checked<Response> {
    check_on(&app)?;
    let id = piece(id, "id_slot")?;
    let stream = id.parse::<usize>().ok().filter(|id| *id < app.settings.n_streams).ok_or_else(|| {
        Refusal::invalid("id_slot", format!("{} is no slot: they are from 0 to {}", quoted(&id), app.settings.n_streams - 1))
    })?;
    let action = asked(&request, "action").unwrap_or_default().to_owned();
    match action.as_str() {
        "erase" => {
            let done = errand(&app, Errand::Erase { stream }).await?;
            Ok(json_response(&json!({ "id_slot": stream, "n_erased": done.n_tokens })))
        }
        "save" | "restore" => {
            if !app.settings.sessions {
                return Err(Refusal::unsupported("this server keeps no sessions: start it with a folder for them"));
            }
            let body = body::read(&app, request).await?;
            let reader = app.clone();
            let name = app.clerk.run(move || name(&body.json(&reader.settings)?.0)).await?;
            saved(&app, stream, name, action == "save").await
        }
        other => Err(Refusal::invalid("action", format!("{} is none of save, restore, erase", quoted(other)))),
    }
}

fn name(body: &Value) -> Checked<String> {
    let fields = Fields::of_body(body)?;
    let name =
        fields.string("filename")?.ok_or_else(|| fields.invalid("filename", "a string is wanted here, and there is none"))?;
    match sampling::is_name(name) {
        true => Ok(name.to_owned()),
        false => {
            let what = "1 to 64 letters, digits, dots, dashes and underscores, no dot and no auto- in front, no path";
            Err(fields.invalid("filename", what))
        }
    }
}

async fn saved(app: &App, stream: usize, name: String, is_save: bool) -> Checked<Response> {
    let errand_of = |name: String| if is_save { Errand::Save { stream, name } } else { Errand::Restore { stream, name } };
    let done = errand(app, errand_of(name.clone())).await?;
    let took = done.took.as_secs_f64() * 1e3;
    Ok(json_response(&match is_save {
        true => json!({
            "id_slot": stream, "filename": name, "n_saved": done.n_tokens, "n_written": done.n_bytes,
            "timings": { "save_ms": took },
        }),
        false => json!({
            "id_slot": stream, "filename": name, "n_restored": done.n_tokens, "n_read": done.n_bytes,
            "timings": { "restore_ms": took },
        }),
    }))
}

async fn errand(app: &App, errand: Errand) -> Checked<crate::server::desk::ErrandDone> {
    let busy = || Refusal::unavailable("as many saves and restores as may are under way: try again", 1);
    let answer = app.shared.desk.run_errand(errand).ok_or_else(busy)?;
    match answer.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(why)) => Err(Refusal::bad("invalid_value", why)),
        Err(_) => Err(Refusal::unavailable("the server is stopping", 5)),
    }
}
