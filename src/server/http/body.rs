//! Bodies and the JSON in them, both with limits that hold before anything is made of them.
//!
//! A body is refused by its length unread, or read at a rate: 64 KiB in the time of the settings. Few bodies of size are held
//! at once. What JSON becomes in memory is many times its text where values are small, so values are counted first.

use axum::body::Body;
use axum::extract::Request;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

use super::Settings;
use super::app::App;
use super::error::{Checked, Refusal};

/// What must come in the time of the settings.
const RATE_BYTES: usize = 64 << 10;
/// A body of this size is none of the few.
pub const SMALL_BYTES: usize = 16 << 10;
/// Lists and objects within each other.
const MAX_DEPTH: usize = 64;
/// What a value takes in a list at most, with its text where that is short, and what a name and a value take that are an object of
/// their own.
const VALUE_BYTES: usize = 96;
const PAIR_BYTES: usize = 352;

/// Values and names that a body may hold: a prompt as large as the context in tokens, and all messages and tools that there may be.
fn most_values(settings: &Settings) -> (usize, usize) {
    let n_values = (settings.n_ctx + 1024).clamp(8 << 10, 64 << 10);
    let n_names = (settings.max_body / 80).max(1 << 10);
    (n_values.min(settings.max_body / 2), n_names.min(settings.max_body / 4))
}

/// Private memory that the JSON of a body takes, from above.
pub fn json_bytes(settings: &Settings) -> usize {
    let (n_values, n_names) = most_values(settings);
    settings.max_body + n_values * VALUE_BYTES + n_names * PAIR_BYTES
}

/// A place among the few bodies of size; small ones need none.
pub type Place = Option<OwnedSemaphorePermit>;

/// A body, and its place.
pub struct Bytes {
    bytes: Vec<u8>,
    place: Place,
}

/// Reads the body of a request.
pub async fn read(app: &App, request: Request) -> Checked<Bytes> {
    read_with(app, request, false).await
}

/// Reads a body to which the answer will be larger than it is: it has a place, however small it is.
pub async fn read_for_more(app: &App, request: Request) -> Checked<Bytes> {
    read_with(app, request, true).await
}

async fn read_with(app: &App, request: Request, needs_place: bool) -> Checked<Bytes> {
    let most = app.settings.max_body;
    let too_large = || {
        let message = format!("the body has more than {most} bytes, the most that this server takes: send less");
        Refusal::protocol(StatusCode::PAYLOAD_TOO_LARGE, message).closing()
    };
    let coding = request.headers().get(CONTENT_ENCODING).map(|coding| String::from_utf8_lossy(coding.as_bytes()).into_owned());
    if let Some(coding) = coding.filter(|coding| !coding.trim().is_empty() && !coding.trim().eq_ignore_ascii_case("identity")) {
        let message = format!("a body with `Content-Encoding: {coding}` is not unpacked here: send it as it is");
        return Err(Refusal::protocol(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).closing());
    }
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let length = length.map(|length| length as usize);
    let mut body = request.into_body();
    let place = match length {
        Some(length) if length <= SMALL_BYTES && !needs_place => None,
        _ if body.is_end_stream() => None,
        _ => Some(place(app).await?),
    };
    let mut bytes = Vec::with_capacity(length.unwrap_or(0));
    let mut late = Instant::now() + app.settings.io_timeout;
    let mut n_since = 0;
    while let Some(frame) = next(&mut body, late).await? {
        if bytes.len() + frame.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&frame);
        n_since += frame.len();
        if n_since >= RATE_BYTES {
            (late, n_since) = (Instant::now() + app.settings.io_timeout, 0);
        }
    }
    Ok(Bytes { bytes, place })
}

async fn place(app: &App) -> Checked<OwnedSemaphorePermit> {
    match timeout(app.settings.io_timeout, app.bodies.clone().acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Refusal::unavailable("as many requests as the server holds are being read: try again", 1).closing()),
    }
}

/// The next bytes, or none at the end.
async fn next(body: &mut Body, late: Instant) -> Checked<Option<hyper::body::Bytes>> {
    loop {
        match timeout_at(late, body.frame()).await {
            Err(_) => {
                let message = "the body came too slowly: 64 KiB must come within the server's time for input";
                return Err(Refusal::protocol(StatusCode::REQUEST_TIMEOUT, message).closing());
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                let message = format!("the body could not be read: {error}");
                return Err(Refusal::protocol(StatusCode::BAD_REQUEST, message).closing());
            }
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

impl Bytes {
    /// What the body says, and its place, which is kept for as long as there is something of that size.
    pub fn json(self, settings: &Settings) -> Checked<(Value, Place)> {
        let Bytes { mut bytes, place } = self;
        Ok((parse(&mut bytes, settings)?, place))
    }
}

fn parse(bytes: &mut [u8], settings: &Settings) -> Checked<Value> {
    let invalid = |what: String| Refusal::bad("invalid_json", what);
    replace_halves(bytes);
    // The mark that some editors and shells put before UTF-8.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes)
        .map_err(|e| invalid(format!("the body is no UTF-8 at byte {}: send JSON in UTF-8", e.valid_up_to())))?;
    if text.trim_ascii().is_empty() {
        return Err(invalid("the body is empty: send a JSON object".into()));
    }
    check_shape(bytes, settings)?;
    serde_json::from_str(text).map_err(|e| invalid(format!("the body is no JSON: {e}")))
}

/// Half a character that stands alone, as programs write it (`\ud83d`) that cut a text within an emoji, becomes U+FFFD, which is as long.
fn replace_halves(bytes: &mut [u8]) {
    let unit = |bytes: &[u8], at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u").filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while let Some(n) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += n;
        at += match unit(bytes, at) {
            None => 2,
            Some(0xd800..0xdc00) if matches!(unit(bytes, at + 6), Some(0xdc00..0xe000)) => 12,
            Some(0xd800..0xe000) => {
                bytes[at..at + 6].copy_from_slice(b"\\ufffd");
                6
            }
            Some(_) => 6,
        };
    }
}

/// Counts what the JSON would become. What is no JSON is counted somehow, and refused later.
fn check_shape(bytes: &[u8], settings: &Settings) -> Checked<()> {
    let (most_values, most_names) = most_values(settings);
    let (mut depth, mut n_values, mut n_names) = (0usize, 0, 0);
    let (mut in_string, mut is_escaped) = (false, false);
    for &byte in bytes {
        if in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                n_values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => n_values += 1,
            b':' => n_names += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(Refusal::bad(
                "invalid_json",
                format!("the body has more than {MAX_DEPTH} lists or objects in each other"),
            ));
        }
    }
    if n_values > most_values || n_names > most_names {
        let message =
            format!("the body has more than {most_values} values or {most_names} names, the most that this server takes");
        return Err(Refusal::bad("invalid_json", message));
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/body.rs"]
mod tests;
