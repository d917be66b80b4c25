//! A request from the queue to its end, and several one after the other: `Run` says what happens, and formats say it to clients.
//!
//! Dropped, a run gives up its request. Tokens are told with the text that they made: what is held back, since it may begin a
//! stop text or is no whole character yet, holds its tokens back too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::server::desk::{Finish, Kept, Out, Progress, Refused, Request, Sampled, Ticket};
use crate::text::{Tokenizer, Utf8Stream};

use super::app::App;
use super::error::{Checked, Refusal, quoted};
use super::prompt::Prompt;

#[derive(Clone, Debug)]
pub struct Token {
    pub id: u32,
    pub logprob: f32,
    /// The most likely tokens in its place.
    pub tops: Vec<(u32, f32)>,
}

/// Text that has come, and its tokens.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    pub text: String,
    pub tokens: Vec<Token>,
}

/// What is known of a part, which is one answer to one prompt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Counted over all prompts and their answers.
    pub part: usize,
    /// Which of the answers to its prompt.
    pub choice: usize,
    pub progress: Progress,
    pub kept: Kept,
    pub finish: Option<Finish>,
    /// Which of the request's stop texts ended it.
    pub stop: Option<usize>,
    pub max_tokens: usize,
    /// Why it ended early.
    pub error: Option<&'static str>,
}

impl Facts {
    /// Whether the stream lost something of prompt or answer, or ended for want of context.
    pub fn is_truncated(&self) -> bool {
        self.kept.evicted > 0 || self.finish == Some(Finish::Length) && self.progress.n_generated < self.max_tokens
    }
}

pub enum Event {
    /// More of the prompt has been read.
    Progress(Facts),
    Piece(Facts, Piece),
    /// A part is complete; tokens without text that ended it are not told.
    PartEnd(Facts),
    /// All parts are.
    End,
    /// Nothing has happened for as long as clients may be left waiting.
    Silence,
    Failed(Refusal),
}

/// Requests that are alike but for their prompts and seeds: so many answers to each of some prompts.
#[derive(Debug)]
pub struct Batch {
    /// Without its prompt.
    base: Request,
    prompts: Vec<Prompt>,
    n_choice: usize,
}

impl Batch {
    /// Prompts may have so many tokens together, and half as many where they are needed more than once.
    pub fn new(base: Request, mut prompts: Vec<Prompt>, n_choice: usize, max_tokens: usize) -> Checked<Batch> {
        let n_tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let most = if prompts.len() * n_choice > 1 { max_tokens / 2 } else { max_tokens };
        if n_tokens > most {
            return Err(Refusal::context(n_tokens, most));
        }
        // What can be gone on with by text may as well be read.
        let n_rest: usize = prompts.iter().filter_map(|prompt| Some(prompt.continues.as_ref()?.rest.len())).sum();
        if n_tokens + n_rest > most {
            prompts.iter_mut().for_each(|prompt| prompt.continues = None);
        }
        Ok(Batch { base, prompts, n_choice })
    }

    fn n_parts(&self) -> usize {
        self.prompts.len() * self.n_choice
    }

    /// The request of a part; a later answer to a prompt has another seed.
    fn request(&mut self, part: usize) -> Request {
        let is_only = self.n_parts() == 1;
        let Prompt { ids, continues, n_pinned, system, .. } = &mut self.prompts[part / self.n_choice];
        let mut request = self.base.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add((part % self.n_choice) as u64);
        (request.n_pinned, request.continues, request.system) = (*n_pinned, continues.clone(), system.clone());
        request.prompt = if is_only { std::mem::take(ids) } else { ids.clone() };
        request
    }
}

/// What happens is told in this manner.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Each token for itself.
    pub by_token: bool,
    /// A whole answer tells tokens too.
    pub keeps_tokens: bool,
    pub progress: bool,
    /// None: nobody waits for events.
    pub ping: Option<Duration>,
}

pub struct Run {
    app: Arc<App>,
    manner: Manner,
    batch: Batch,
    ticket: Option<Ticket>,
    facts: Facts,
    tokens: Pairing,
    ready: VecDeque<Piece>,
    /// Tokens of the prompt that were last told as read.
    told: Option<usize>,
    has_stream: bool,
    has_text: bool,
    /// The end of the part under way has been told; its ticket stays until the next event is asked for.
    has_ended: bool,
    is_over: bool,
    begun: Instant,
    submitted: Instant,
    last_event: Instant,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.is_over {
            self.app.shared.counters.disconnects.add(1);
        }
    }
}

/// How long a part that follows another waits before it asks for a place again.
const RETRY: Duration = Duration::from_millis(200);

impl Run {
    /// Puts the first of the requests in the queue.
    pub fn start(app: Arc<App>, mut batch: Batch, manner: Manner) -> Checked<Run> {
        if batch.n_parts() == 0 {
            return Err(Refusal::broken("a request without a prompt"));
        }
        let first = batch.request(0);
        let facts = Facts { max_tokens: first.max_tokens, ..Facts::default() };
        let tokens = Pairing { shown: first.shown.clone(), ..Pairing::default() };
        let ticket = app.shared.desk.submit(first).map_err(|refused| refusal(&app, refused))?;
        let now = Instant::now();
        Ok(Run {
            app,
            manner,
            batch,
            ticket: Some(ticket),
            facts,
            tokens,
            ready: VecDeque::new(),
            told: None,
            has_stream: false,
            has_text: false,
            has_ended: false,
            is_over: false,
            begun: now,
            submitted: now,
            last_event: now,
        })
    }

    /// The request under way.
    pub fn request(&self) -> Option<&Request> {
        self.ticket.as_ref().map(Ticket::request)
    }

    /// What is left of it is not wanted, which is no fault of the client's.
    pub fn leave(mut self) {
        self.is_over = true;
    }

    /// Whether `next` gives more at once.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What happens next. After `End` and `Failed` nothing does.
    pub async fn next(&mut self) -> Event {
        let event = self.wait().await;
        self.last_event = Instant::now();
        if matches!(event, Event::End | Event::Failed(_)) {
            self.is_over = true;
            self.ticket = None;
        }
        event
    }

    async fn wait(&mut self) -> Event {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                if !self.has_text {
                    self.has_text = true;
                    self.app.shared.counters.observe_first_token(self.begun.elapsed());
                }
                return Event::Piece(self.facts, piece);
            }
            if self.ticket.is_none() || self.facts.finish.is_some() {
                match self.after_part().await {
                    Some(event) => return event,
                    None => continue,
                }
            }
            if let Some(event) = self.fetch() {
                return event;
            }
            if self.has_ready() || self.facts.finish.is_some() {
                continue;
            }
            let queue_end = (!self.has_stream).then(|| self.submitted + self.app.settings.queue_wait);
            let ping = self.manner.ping.map(|ping| self.last_event + ping);
            let Some(ticket) = &self.ticket else { continue };
            match queue_end.into_iter().chain(ping).min() {
                None => ticket.changed().await,
                Some(until) => {
                    let is_late = timeout_at(until, ticket.changed()).await.is_err();
                    if is_late && queue_end.is_some_and(|end| end <= Instant::now()) {
                        self.app.shared.counters.refused_waits.add(1);
                        let retry = self.app.shared.desk.retry_after_s();
                        return Event::Failed(Refusal::unavailable("no stream has become free in time: try again", retry));
                    }
                    if is_late && ping.is_some_and(|ping| ping <= Instant::now()) {
                        return Event::Silence;
                    }
                }
            }
        }
    }

    /// The part under way is complete, or the next has no place yet.
    async fn after_part(&mut self) -> Option<Event> {
        if let Some(ticket) = self.ticket.as_ref().filter(|_| !self.has_ended) {
            if self.facts.finish == Some(Finish::Error) {
                let what = ticket.out().error.unwrap_or("the engine could not go on");
                let is_stopping = self.app.shared.desk.is_stopping();
                let refusal = if is_stopping { Refusal::unavailable(what, 5) } else { Refusal::broken(what) };
                return Some(Event::Failed(refusal));
            }
            (self.has_ended, self.submitted) = (true, Instant::now());
            return Some(Event::PartEnd(self.facts));
        }
        self.ticket = None;
        let part = self.facts.part + 1;
        if part == self.batch.n_parts() {
            return Some(Event::End);
        }
        match self.app.shared.desk.submit(self.batch.request(part)) {
            Ok(ticket) => {
                let choice = part % self.batch.n_choice;
                self.facts = Facts { part, choice, max_tokens: self.facts.max_tokens, ..Facts::default() };
                let shown = std::mem::take(&mut self.tokens.shown);
                (self.ticket, self.tokens) = (Some(ticket), Pairing { shown, ..Pairing::default() });
                (self.told, self.has_stream, self.has_ended, self.submitted) = (None, false, false, Instant::now());
                None
            }
            Err(Refused::Full { .. }) if self.submitted.elapsed() < self.app.settings.queue_wait => {
                sleep_until(Instant::now() + RETRY).await;
                let is_silent = self.manner.ping.is_some_and(|ping| self.last_event.elapsed() >= ping);
                is_silent.then_some(Event::Silence)
            }
            Err(refused) => Some(Event::Failed(refusal(&self.app, refused))),
        }
    }

    /// Takes what lies ready. Progress that is due is an event by itself, before the text.
    fn fetch(&mut self) -> Option<Event> {
        let ticket = self.ticket.as_ref()?;
        let mut out = ticket.out();
        if !out.is_running && out.finish.is_none() {
            return None;
        }
        if !std::mem::replace(&mut self.has_stream, true) {
            say_divergence(&self.app, ticket.request(), &out.kept, &out.progress);
        }
        let now = out.progress;
        if self.manner.progress {
            // First of all what is there before anything is read, last of all that everything is.
            let told = match self.told {
                None => Progress { n_read: now.n_cached, prefill: Duration::ZERO, n_generated: 0, decode: Duration::ZERO, ..now },
                Some(_) => now,
            };
            if self.told.is_none_or(|last| told.n_read > last) {
                self.told = Some(told.n_read);
                return Some(Event::Progress(Facts { progress: told, kept: out.kept, ..self.facts }));
            }
        }
        (self.facts.progress, self.facts.kept) = (now, out.kept);
        (self.facts.finish, self.facts.stop, self.facts.error) = (out.finish, out.stop, out.error);
        let finish = out.finish;
        let Out { text: lies, tokens, tops, .. } = &mut *out;
        let mut tops = tops.drain(..);
        let sampled: Vec<(Sampled, Vec<(u32, f32)>)> =
            tokens.drain(..).map(|token| (token, tops.by_ref().take(token.n_top as usize).collect())).collect();
        drop(tops);
        // The outbox keeps its capacity.
        let text = lies.clone();
        lies.clear();
        drop(out);
        let tokenizer = &self.app.shared.tokenizer;
        self.tokens.push(tokenizer, sampled, &text);
        self.tokens.pair(tokenizer, self.manner.by_token, finish, &mut self.ready);
        None
    }
}

/// Says in the log why a prompt is read again: the first text of it that is not what the stream holds. Clocks at the head of prompts
/// do that.
fn say_divergence(app: &App, request: &Request, kept: &Kept, progress: &Progress) {
    let (at, n) = (kept.diverged_at, request.prompt.len());
    if at > 0 && at + 1 < n && log::log_enabled!(log::Level::Info) {
        let text = app.shared.tokenizer.decode(&request.prompt[at..n.min(at + 8)]);
        let n_read = progress.n_prompt - progress.n_cached;
        log::info!("stream {}: {at} of {n} tokens are as before, then comes {}; {n_read} are read", kept.stream, quoted(&text));
    }
}

fn refusal(app: &App, refused: Refused) -> Refusal {
    match refused {
        Refused::Full { retry_after_s } => {
            app.shared.counters.refused_queue.add(1);
            Refusal::unavailable("as many requests as may are waiting for a stream: try again", retry_after_s)
        }
        Refused::Stopping => Refusal::unavailable("the server is stopping", 5),
    }
}

/// Tokens whose text has not come, and text whose tokens have not been told.
#[derive(Default)]
struct Pairing {
    /// With the bytes of text that each has completed.
    tokens: VecDeque<(Token, usize)>,
    text: String,
    characters: Utf8Stream,
    /// Control tokens that are told as text.
    shown: Vec<u32>,
}

impl Pairing {
    fn push(&mut self, tokenizer: &Tokenizer, sampled: Vec<(Sampled, Vec<(u32, f32)>)>, text: &str) {
        let mut completed = String::new();
        for (sampled, tops) in sampled {
            completed.clear();
            self.characters.push(tokenizer.token_bytes(sampled.id, self.shown.contains(&sampled.id)), &mut completed);
            self.tokens.push_back((Token { id: sampled.id, logprob: sampled.logprob, tops }, completed.len()));
        }
        self.text.push_str(text);
    }

    /// Moves what belongs together into pieces. At the end all text goes; tokens of a stop text, and one that ends, do not.
    fn pair(&mut self, tokenizer: &Tokenizer, by_token: bool, finish: Option<Finish>, ready: &mut VecDeque<Piece>) {
        let (mut piece, mut n_taken) = (Piece::default(), 0);
        while let Some((_, n_bytes)) = self.tokens.front() {
            // A token that completes nothing waits for one that does.
            let n_until = self.tokens.iter().take_while(|(_, n)| *n == 0).count();
            let n_next = self.tokens.get(n_until).map_or(*n_bytes, |(_, n)| *n);
            if n_next == 0 || n_taken + n_next > self.text.len() || !self.text.is_char_boundary(n_taken + n_next) {
                break;
            }
            piece.tokens.extend(self.tokens.drain(..=n_until).map(|(token, _)| token));
            piece.text.push_str(&self.text[n_taken..n_taken + n_next]);
            n_taken += n_next;
            if by_token {
                ready.push_back(std::mem::take(&mut piece));
            }
        }
        self.text.drain(..n_taken);
        if let Some(finish) = finish {
            piece.text.push_str(&std::mem::take(&mut self.text));
            let rest = self.tokens.drain(..).map(|(token, _)| token);
            if finish != Finish::Stop {
                piece.tokens.extend(rest.filter(|token| finish != Finish::Eos || !tokenizer.is_eog(token.id)));
            }
        }
        if !piece.text.is_empty() || !piece.tokens.is_empty() {
            ready.push_back(piece);
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/server/http/run.rs"]
mod tests;
