//! How a run becomes a response: events as they come, or one answer at the end. What either looks like is a `Format`'s.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

use super::app::App;
use super::error::{Checked, Refusal};
use super::gaps::Gaps;
use super::run::{Batch, Event, Facts, Manner, Piece, Run, Token};
use super::unfold::Unfold;
use crate::server::desk::{Finish, Request};

/// A stream's events are sent when there are so many bytes of them.
pub const CHUNK_BYTES: usize = 16 << 10;

/// An answer without an end of its own ends here, where it is given as a whole.
const MAX_WHOLE_BYTES: usize = 128 << 10;
/// Likewise one with so many probabilities.
const MAX_WHOLE_PROBS: usize = 32 << 10;
/// What a whole answer takes at most: its text as it comes, in JSON and as it is sent, and its probabilities.
pub const WHOLE_BYTES: usize = 3 * MAX_WHOLE_BYTES + 16 * MAX_WHOLE_PROBS;

/// A part that is complete.
#[derive(Debug, Default)]
pub struct Part {
    pub text: String,
    pub tokens: Vec<Token>,
    pub facts: Facts,
}

/// The words of an API.
pub trait Format: Send {
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }

    /// What a stream says while nothing happens; it may be nothing.
    fn ping(&self) -> &'static str {
        ": ping\n\n"
    }

    /// What a stream begins with, before anything of the prompt is read.
    fn begin(&mut self, _out: &mut String) {}

    fn progress(&mut self, _facts: &Facts, _out: &mut String) {}

    fn piece(&mut self, facts: &Facts, piece: &Piece, out: &mut String);

    /// A part is complete, which was made from this; what is wanted of it later is kept now.
    fn note(&mut self, _request: &Request) {}

    /// Comes after `note`.
    fn part_end(&mut self, facts: &Facts, out: &mut String);

    fn end(&mut self, out: &mut String);

    fn failed(&mut self, refusal: &Refusal, out: &mut String);

    /// The answer as a whole, after `note` of each part; long lists of it go into `gaps`.
    fn whole(&mut self, parts: Vec<Part>, gaps: &mut Gaps) -> Value;
}

/// A request that has been read: what the desk takes, and how it is answered.
pub struct Order {
    pub batch: Batch,
    pub format: Box<dyn Format>,
    pub manner: Manner,
    pub is_stream: bool,
}

/// Puts an order in the queue and answers it.
pub async fn answer(app: &Arc<App>, mut order: Order) -> Checked<Response> {
    if order.is_stream {
        let ping = app.settings.ping;
        order.manner.ping = (!ping.is_zero() && !order.format.ping().is_empty()).then_some(ping);
        let run = Run::start(app.clone(), order.batch, order.manner)?;
        return Ok(events(run, order.format));
    }
    // Nobody sees what happens meanwhile.
    (order.manner.ping, order.manner.progress) = (None, false);
    let mut format = order.format;
    let keeps_tokens = order.manner.keeps_tokens;
    let run = Run::start(app.clone(), order.batch, order.manner)?;
    let parts = collect(run, keeps_tokens, &mut *format).await?;
    let mut gaps = Gaps::new(app.shared.tokenizer.clone());
    let answer = format.whole(parts, &mut gaps);
    Ok(gaps.response(&answer))
}

/// All parts of a run.
async fn collect(mut run: Run, keeps_tokens: bool, format: &mut dyn Format) -> Checked<Vec<Part>> {
    let (mut parts, mut part) = (Vec::new(), Part::default());
    let (mut n_bytes, mut n_probs) = (0, 0);
    loop {
        match run.next().await {
            Event::Piece(facts, piece) => {
                n_bytes += piece.text.len();
                part.text.push_str(&piece.text);
                if keeps_tokens {
                    n_probs += piece.tokens.iter().map(|token| 1 + token.tops.len()).sum::<usize>();
                    part.tokens.extend(piece.tokens);
                }
                if n_bytes > MAX_WHOLE_BYTES || n_probs > MAX_WHOLE_PROBS {
                    // Whoever wants more may have it in events.
                    part.facts = Facts { finish: Some(Finish::Length), ..facts };
                    if let Some(request) = run.request() {
                        format.note(request);
                    }
                    parts.push(part);
                    run.leave();
                    return Ok(parts);
                }
            }
            Event::PartEnd(facts) => {
                part.facts = facts;
                if let Some(request) = run.request() {
                    format.note(request);
                }
                parts.push(std::mem::take(&mut part));
            }
            Event::End => return Ok(parts),
            Event::Failed(refusal) => return Err(refusal),
            Event::Progress(_) | Event::Silence => {}
        }
    }
}

struct Events {
    run: Run,
    format: Box<dyn Format>,
    has_begun: bool,
    is_over: bool,
}

impl Events {
    /// The next bytes, or none at the end.
    async fn next(mut self) -> (Self, Option<Bytes>) {
        let mut out = String::new();
        if !self.has_begun {
            self.has_begun = true;
            self.format.begin(&mut out);
        }
        while !self.is_over && (out.is_empty() || self.run.has_ready() && out.len() < CHUNK_BYTES) {
            match self.run.next().await {
                Event::Progress(facts) => self.format.progress(&facts, &mut out),
                Event::Piece(facts, piece) => self.format.piece(&facts, &piece, &mut out),
                Event::PartEnd(facts) => {
                    if let Some(request) = self.run.request() {
                        self.format.note(request);
                    }
                    self.format.part_end(&facts, &mut out);
                }
                Event::End => {
                    self.format.end(&mut out);
                    self.is_over = true;
                }
                Event::Silence => {
                    out.push_str(self.format.ping());
                    break;
                }
                Event::Failed(refusal) => {
                    log::warn!("a stream ended with an error: {}", refusal.message());
                    self.format.failed(&refusal, &mut out);
                    self.is_over = true;
                }
            }
        }
        let bytes = (!out.is_empty()).then(|| Bytes::from(out));
        (self, bytes)
    }
}

fn events(run: Run, format: Box<dyn Format>) -> Response {
    let content_type = HeaderValue::from_static(format.content_type());
    let events = Events { run, format, has_begun: false, is_over: false };
    let mut response = Response::new(Body::new(Unfold::new(events, Events::next)));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
