//! Lists of probabilities in whole answers. Of a long answer they are a hundred times its text, so they are not made at once: a gap
//! stands in their place, and is filled a piece at a time while the answer is sent.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use crate::text::Tokenizer;

use super::answers::{json_response, random_name, token_with_tops, tokens_with_tops};
use super::error::JSON;
use super::run::Token;
use super::unfold::Unfold;

/// Lists with fewer probabilities are made at once; of others so many are made for each piece.
const PIECE: usize = 256;

pub struct Gaps {
    tokenizer: Arc<Tokenizer>,
    /// What no answer says.
    name: String,
    lists: Vec<(Vec<Token>, usize)>,
}

impl Gaps {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Gaps { tokenizer, name: random_name("\u{0}gap-"), lists: Vec::new() }
    }

    /// The list of these tokens, each with `n_top` alternatives, or a gap for it.
    pub fn list(&mut self, tokens: Vec<Token>, n_top: usize) -> Value {
        if tokens.len() * (n_top + 1) <= PIECE {
            return tokens_with_tops(&self.tokenizer, &tokens, n_top);
        }
        self.lists.push((tokens, n_top));
        format!("{}-{}", self.name, self.lists.len() - 1).into()
    }

    /// The answer, whose gaps are filled while it is sent.
    pub fn response(self, answer: &Value) -> Response {
        if self.lists.is_empty() {
            return json_response(answer);
        }
        let text = answer.to_string();
        // As it is written in JSON, with the quotes around it.
        let mark = Value::from(format!("{}-", self.name)).to_string();
        let mark = mark.trim_end_matches('"');
        let mut lists: Vec<Option<(Vec<Token>, usize)>> = self.lists.into_iter().map(Some).collect();
        let mut parts = VecDeque::new();
        let mut texts = text.split(mark);
        parts.extend(texts.next().map(|first| Part::Text(first.to_owned())));
        for rest in texts {
            let (number, rest) = rest.split_once('"').unwrap_or((rest, ""));
            let list = number.parse().ok().and_then(|i: usize| lists.get_mut(i)?.take());
            parts.extend(list.map(|(tokens, n_top)| Part::List { tokens: tokens.into(), n_top, is_begun: false }));
            parts.push_back(Part::Text(rest.to_owned()));
        }
        let body = Body::new(Unfold::new(Filling { parts, tokenizer: self.tokenizer }, next));
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        response
    }
}

enum Part {
    Text(String),
    List { tokens: VecDeque<Token>, n_top: usize, is_begun: bool },
}

struct Filling {
    parts: VecDeque<Part>,
    tokenizer: Arc<Tokenizer>,
}

async fn next(mut filling: Filling) -> (Filling, Option<Bytes>) {
    let Some(part) = filling.parts.pop_front() else { return (filling, None) };
    let (mut tokens, n_top, is_begun) = match part {
        Part::Text(text) if text.is_empty() => return (filling, Some(Bytes::from_static(b" "))),
        Part::Text(text) => return (filling, Some(text.into())),
        Part::List { tokens, n_top, is_begun } => (tokens, n_top, is_begun),
    };
    let mut out = String::from(if is_begun { "" } else { "[" });
    for i in 0..(PIECE / (n_top + 1)).max(1) {
        let Some(token) = tokens.pop_front() else { break };
        if is_begun || i > 0 {
            out.push(',');
        }
        out.push_str(&token_with_tops(&filling.tokenizer, &token, n_top).to_string());
    }
    if tokens.is_empty() {
        out.push(']');
    } else {
        filling.parts.push_front(Part::List { tokens, n_top, is_begun: true });
    }
    (filling, Some(out.into()))
}
