//! Why a request is refused, as each API says it: `{"error":{"message","type","code","param"}}`, and for Ollama's `{"error":"…"}`.
//!
//! A message quotes at most 200 characters of what a client sent, escaped.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Value, json};

#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    param: Option<String>,
    retry_after_s: Option<u64>,
    /// A repeat would fail again.
    is_final: bool,
    /// The body was not read to its end.
    closes: bool,
    /// Tokens of a prompt, and of the context that does not hold it.
    context: Option<(usize, usize)>,
}

pub const JSON: &str = "application/json; charset=utf-8";

pub type Checked<T> = Result<T, Refusal>;

/// What fields are called here, and by the request.
pub type Names = Vec<(String, String)>;

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let message = message.into();
        Refusal { status, kind, code, message, param: None, retry_after_s: None, is_final: false, closes: false, context: None }
    }

    /// 400: a field whose value cannot be used.
    pub fn invalid(param: &str, what: impl std::fmt::Display) -> Self {
        let mut refusal =
            Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), format!("`{param}`: {what}"));
        refusal.param = Some(param.into());
        refusal
    }

    /// 400: what is asked for and can never be.
    pub fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some(code), message)
    }

    /// 400: a schema or grammar that cannot be held to.
    pub fn grammar(param: &str, what: impl std::fmt::Display) -> Self {
        let mut refusal = Self::invalid(param, what);
        refusal.code = Some("invalid_grammar");
        refusal
    }

    /// 400: more tokens than the context has.
    pub fn context(n_prompt: usize, n_ctx: usize) -> Self {
        let message = format!(
            "the request ({n_prompt} tokens) exceeds the available context size ({n_ctx} tokens): shorten the prompt, or give the \
             server a larger context, or let it evict"
        );
        let mut refusal =
            Self::new(StatusCode::BAD_REQUEST, "exceed_context_size_error", Some("context_length_exceeded"), message);
        refusal.context = Some((n_prompt, n_ctx));
        refusal
    }

    /// 501: a feature that is not there, or is off.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", None, what)
    }

    /// 501 that names a field.
    pub fn unsupported_field(param: &str, what: impl std::fmt::Display) -> Self {
        let mut refusal = Self::unsupported(format!("`{param}`: {what}"));
        refusal.param = Some(param.into());
        refusal
    }

    pub fn unauthorised() -> Self {
        let message = "this server asks for a key: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", None, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", None, message)
    }

    /// 405, 408, 411, 413 and their like.
    pub fn protocol(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", None, message)
    }

    /// 500 that would come again.
    pub fn broken(message: impl Into<String>) -> Self {
        let mut refusal = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message);
        refusal.is_final = true;
        refusal
    }

    /// 503, to be tried again after so many seconds.
    pub fn unavailable(message: impl Into<String>, retry_after_s: u64) -> Self {
        let mut refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", None, message);
        refusal.retry_after_s = Some(retry_after_s.clamp(1, 60));
        refusal
    }

    /// The same for a request that calls fields otherwise: of `names` the longer come first.
    pub fn renamed(mut self, names: &[(String, String)]) -> Self {
        for (here, there) in names {
            for end in ['`', '.', '['] {
                self.message = self.message.replace(&format!("`{here}{end}"), &format!("`{there}{end}"));
            }
            let rest = self.param.as_deref().and_then(|param| param.strip_prefix(here.as_str()));
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(['.', '['])) {
                self.param = Some(format!("{there}{rest}"));
            }
        }
        self
    }

    /// The connection ends with the answer.
    pub fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// `{"message":…}`, as it stands in an answer or in a stream.
    pub fn object(&self) -> Value {
        let mut object = json!({ "message": self.message, "type": self.kind, "code": self.code, "param": self.param });
        if let Some((n_prompt, n_ctx)) = self.context {
            object["n_prompt_tokens"] = n_prompt.into();
            object["n_ctx"] = n_ctx.into();
        }
        object
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    fn with_body(&self, body: Value) -> Response {
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.is_final {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// As Ollama says it.
    pub fn for_ollama(&self) -> Response {
        self.with_body(json!({ "error": self.message }))
    }

    /// As the others say it.
    pub fn answer(&self) -> Response {
        self.with_body(json!({ "error": self.object() }))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.answer();
        // Whoever knows the path may say it otherwise.
        response.extensions_mut().insert(self);
        response
    }
}

/// A client's words in a message: escaped, and no more than 200 characters of them.
pub fn quoted(text: &str) -> String {
    let mut escaped = text.escape_debug();
    let mut shown: String = escaped.by_ref().take(200).collect();
    if escaped.next().is_some() {
        shown.push('…');
    }
    format!("'{shown}'")
}
