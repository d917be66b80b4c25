//! The desk between the network and the engine: requests wait here for a stream, and what is generated is fetched here.
//!
//! Everything that the network hands over is allocated by the network: the request, and an outbox with room for all that may lie in
//! it. The engine fills outboxes and allocates nothing. When an outbox is full, its stream waits until the network has fetched
//! something; when its `Ticket` is dropped, the request is given up after the batch under way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::constraint::Grammar;
use crate::kv::past::PastCounts;
use crate::text::SamplerParams;

/// Log-probabilities for each token at most, `top_logprobs` and `n_probs`.
pub const MAX_PROBS: usize = 20;
/// Text that lies in an outbox at most, and the tokens.
pub const OUTBOX_TEXT_BYTES: usize = 16 << 10;
pub const OUTBOX_TOKENS: usize = 256;

/// What one generation needs, checked by the network.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token, each of the vocabulary.
    pub prompt: Vec<u32>,
    /// The same by text: an answer may come back split into other tokens than it was generated in.
    pub continues: Option<Continues>,
    /// First tokens of the prompt that are the system's turn and are never evicted.
    pub n_pinned: usize,
    /// The system's turn, where it may be kept as a session.
    pub system: Option<Arc<SystemTurn>>,
    pub sampling: SamplerParams,
    /// What is added to logits; `f32::NEG_INFINITY` forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    pub stops: Vec<String>,
    /// Tokens to generate at most; 0: the prompt is read and nothing more.
    pub max_tokens: usize,
    pub ignore_eos: bool,
    /// Most likely tokens that are told of each token, and its own log-probability if any are: 0 to `MAX_PROBS`.
    pub n_probs: usize,
    /// The stream that must take it.
    pub stream: Option<usize>,
    /// The conversation that it goes on with, by name: the stream that holds it takes it.
    pub session: Option<String>,
    /// Whether what a stream holds of the prompt already need not be read again.
    pub reuse_prefix: bool,
    /// `--reuse` for this request: runs of at least so many tokens behind a change are moved instead of read; 0: none.
    pub reuse_runs: usize,
    /// Tokens that a step may guess at most; no more than the server does.
    pub n_draft: usize,
    /// What the answer obeys.
    pub grammar: Option<Arc<Grammar>>,
    /// Control tokens that are told as text, in order: marks of calls of tools.
    pub shown: Vec<u32>,
}

/// What a prompt begins with, whatever the user says.
#[derive(Clone, Debug)]
pub struct SystemTurn {
    pub n_tokens: usize,
    /// What those tokens were made from.
    pub text: Vec<u8>,
}

/// A prompt whose text begins with all that a stream has taken in.
#[derive(Clone, Debug)]
pub struct Continues {
    /// `StreamStatus::said` of that stream.
    pub said: Said,
    /// The tokens of the text behind it.
    pub rest: Vec<u32>,
}

/// What a stream has taken in, as text: its length, and its hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub n_bytes: u64,
    pub hash: u64,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends generations.
    Eos,
    /// One of the request's stop texts.
    Stop,
    /// `max_tokens`, or the context under `--overflow error`; or the grammar's memory, and `Out::error` says so.
    Length,
    /// The engine could not go on: `Out::error` says why.
    Error,
}

/// A token that was generated.
#[derive(Clone, Copy, Debug)]
pub struct Sampled {
    pub id: u32,
    /// The natural logarithm of its probability; 0 where `n_probs` is 0.
    pub logprob: f32,
    /// How many of `Out::tops` are its alternatives.
    pub n_top: u8,
}

/// What a request took, as it stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Tokens of the prompt, and how many of them the stream held already.
    pub n_prompt: usize,
    pub n_cached: usize,
    /// How many have been read, those that it held included.
    pub n_read: usize,
    pub n_generated: usize,
    pub prefill: Duration,
    /// From the first generated token on.
    pub decode: Duration,
    pub draft_n: usize,
    pub draft_n_accepted: usize,
}

/// What became of the stream's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    pub stream: usize,
    pub evicted: u64,
    pub n_live: usize,
    pub n_slot: usize,
    /// Leading tokens of the prompt that were those of the stream.
    pub diverged_at: usize,
    /// Tokens that were moved instead of read (`reuse_runs`).
    pub n_moved: usize,
    /// Whether everything is as if the prompt had been read from its start.
    pub is_exact: bool,
}

/// What lies ready for the network. It takes `text`, `tokens` and `tops` out and leaves their capacity.
#[derive(Debug)]
pub struct Out {
    /// Whole characters only; nothing of a stop text.
    pub text: String,
    pub tokens: Vec<Sampled>,
    pub tops: Vec<(u32, f32)>,
    /// The request has a stream.
    pub is_running: bool,
    pub progress: Progress,
    pub kept: Kept,
    /// The stop text that was found, as its place in `Request::stops`.
    pub stop: Option<usize>,
    /// The end: nothing follows.
    pub finish: Option<Finish>,
    pub error: Option<&'static str>,
}

struct Order {
    request: Request,
    out: Mutex<Out>,
    changed: tokio::sync::Notify,
    is_given_up: AtomicBool,
    since: Instant,
}

/// What the network holds of a request. Dropped, the request is given up.
pub struct Ticket(Arc<Order>);

/// What the engine holds of a request.
pub struct Job(Arc<Order>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl Ticket {
    /// What lies ready now.
    pub fn out(&self) -> MutexGuard<'_, Out> {
        self.0.out.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Returns once something has changed since the last call.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    pub fn request(&self) -> &Request {
        &self.0.request
    }
}

impl Job {
    pub fn request(&self) -> &Request {
        &self.0.request
    }

    pub fn is_given_up(&self) -> bool {
        self.0.is_given_up.load(Ordering::Relaxed)
    }

    /// Since it was submitted.
    pub fn waited(&self) -> Duration {
        self.0.since.elapsed()
    }

    /// Changes what lies ready, and wakes the network.
    pub fn tell<R>(&self, change: impl FnOnce(&mut Out) -> R) -> R {
        let told = change(&mut self.0.out.lock().unwrap_or_else(|e| e.into_inner()));
        self.0.changed.notify_one();
        told
    }

    /// Whether another token and what it may add have room.
    pub fn has_room(&self, text_bytes: usize) -> bool {
        let out = self.0.out.lock().unwrap_or_else(|e| e.into_inner());
        out.text.len() + text_bytes <= out.text.capacity() && out.tokens.len() < OUTBOX_TOKENS
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may; try again after so many seconds.
    Full { retry_after_s: u64 },
    /// The server is stopping.
    Stopping,
}

/// What a stream is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    #[default]
    Idle,
    Prefill,
    Decode,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct StreamStatus {
    pub doing: Doing,
    /// Tokens that it has taken in, and what is left of them.
    pub n_past: u64,
    pub n_live: usize,
    pub n_slot: usize,
    pub n_evicted: u64,
    pub n_renumbered: u64,
    pub next_pos: u32,
    pub n_pinned: usize,
    /// What was seen of its past in a file, where it has one.
    pub past: Option<PastCounts>,
    pub said: Said,
    /// Of the request under way.
    pub n_prompt: usize,
    pub n_generated: usize,
    pub n_remain: usize,
}

/// Sums since the start, by the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub prompt_tokens: u64,
    pub prompt_tokens_cached: u64,
    pub generated_tokens: u64,
    pub prefill: Duration,
    pub decode: Duration,
    /// Passes, and how many streams had a part in each, summed.
    pub n_decode: u64,
    pub n_busy: u64,
    /// The most tokens that a stream has held.
    pub n_tokens_max: u64,
    /// Drafts, their tokens, and those that were right.
    pub n_drafts: u64,
    pub draft_tokens: u64,
    pub draft_accepted: u64,
    pub sessions_files: u64,
    pub sessions_bytes: u64,
    pub sessions_saved: u64,
    pub sessions_failed: u64,
}

/// Positions are told in so many buckets, of so many heads at most.
pub const ARENA_BUCKETS: usize = 128;
pub const ARENA_HEADS: usize = 64;

/// Which positions the heads of a stream hold, for the page.
#[derive(Clone, Debug)]
pub struct ArenaView {
    pub stream: usize,
    /// `(layer, head)` of each row of `kept`.
    pub heads: Vec<(u16, u16)>,
    /// `[heads][ARENA_BUCKETS]`: entries in each of equal parts of `0..next_pos`.
    pub kept: Vec<u16>,
    pub next_pos: u32,
    pub n_live: usize,
    pub n_slot: usize,
    pub n_evicted: u64,
    pub n_pinned: usize,
    pub n_recent: usize,
    /// The policy's name, and those of the types of keys and values.
    pub policy: &'static str,
    pub types: [&'static str; 2],
    /// Of the stream's arena.
    pub bytes: usize,
    /// Counts up with each view.
    pub version: u64,
}

/// Things to do between requests, on an idle stream.
#[derive(Clone, Debug)]
pub enum Errand {
    Save { stream: usize, name: String },
    Restore { stream: usize, name: String },
    Erase { stream: usize },
}

/// What an errand came to.
#[derive(Clone, Debug)]
pub struct ErrandDone {
    pub n_tokens: usize,
    pub n_bytes: u64,
    pub took: Duration,
}

/// How an errand ended; the text of the error is for the client.
pub type ErrandResult = std::result::Result<ErrandDone, String>;

/// What waits for the engine.
struct Waiting {
    jobs: VecDeque<Job>,
    errands: VecDeque<(Errand, tokio::sync::oneshot::Sender<ErrandResult>)>,
    is_stopping: bool,
}

pub struct Desk {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    n_waiting_max: usize,
    status: Mutex<(Vec<StreamStatus>, Totals)>,
    arena: Mutex<ArenaView>,
    /// The stream whose arena someone has asked for, and when, in milliseconds after `started`, plus one.
    arena_asked: AtomicU64,
    arena_stream: AtomicU64,
    arena_changed: tokio::sync::Notify,
    started: Instant,
}

impl Desk {
    /// For so many streams and so many requests that wait for one; errands are counted apart.
    pub fn new(n_streams: usize, n_waiting: usize) -> Desk {
        let arena = ArenaView {
            stream: 0,
            heads: Vec::with_capacity(ARENA_HEADS),
            kept: Vec::with_capacity(ARENA_HEADS * ARENA_BUCKETS),
            next_pos: 0,
            n_live: 0,
            n_slot: 0,
            n_evicted: 0,
            n_pinned: 0,
            n_recent: 0,
            policy: "",
            types: [""; 2],
            bytes: 0,
            version: 0,
        };
        Desk {
            waiting: Mutex::new(Waiting {
                jobs: VecDeque::with_capacity(n_waiting + n_streams),
                errands: VecDeque::with_capacity(MAX_ERRANDS),
                is_stopping: false,
            }),
            bell: Condvar::new(),
            n_waiting_max: n_waiting,
            status: Mutex::new((vec![StreamStatus::default(); n_streams], Totals::default())),
            arena: Mutex::new(arena),
            arena_asked: AtomicU64::new(0),
            arena_stream: AtomicU64::new(0),
            arena_changed: tokio::sync::Notify::new(),
            started: Instant::now(),
        }
    }
}

/// Errands that wait at most.
const MAX_ERRANDS: usize = 4;

/// The network's side.
impl Desk {
    /// Puts a request in the queue. `retry_after_s` of a refusal is an estimate from the tokens that running streams have left.
    pub fn submit(&self, request: Request) -> Result<Ticket, Refused> {
        let n_top = OUTBOX_TOKENS * request.n_probs;
        let out = Out {
            text: String::with_capacity(OUTBOX_TEXT_BYTES),
            tokens: Vec::with_capacity(OUTBOX_TOKENS),
            tops: Vec::with_capacity(n_top),
            is_running: false,
            progress: Progress::default(),
            kept: Kept::default(),
            stop: None,
            finish: None,
            error: None,
        };
        let order = Arc::new(Order {
            request,
            out: Mutex::new(out),
            changed: tokio::sync::Notify::new(),
            is_given_up: AtomicBool::new(false),
            since: Instant::now(),
        });
        let mut waiting = self.waiting();
        if waiting.is_stopping {
            return Err(Refused::Stopping);
        }
        waiting.jobs.retain(|job| !job.is_given_up());
        let n_idle = self.streams(|all| all.iter().filter(|s| s.doing == Doing::Idle).count());
        if waiting.jobs.len() >= self.n_waiting_max + n_idle {
            return Err(Refused::Full { retry_after_s: self.retry_after_s() });
        }
        waiting.jobs.push_back(Job(order.clone()));
        self.bell.notify_one();
        Ok(Ticket(order))
    }

    /// Asks the engine to save, restore or erase a stream. None: too many are under way.
    pub fn run_errand(&self, errand: Errand) -> Option<tokio::sync::oneshot::Receiver<ErrandResult>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.errands.len() == MAX_ERRANDS {
            return None;
        }
        waiting.errands.push_back((errand, sender));
        self.bell.notify_one();
        Some(receiver)
    }

    /// Seconds until a stream may be free.
    pub fn retry_after_s(&self) -> u64 {
        let (least, totals) = self.status(|streams, totals| (streams.iter().map(|s| s.n_remain).min().unwrap_or(0), *totals));
        let per_token = totals.decode.as_secs_f64() / totals.generated_tokens.max(1) as f64;
        ((least as f64 * per_token).ceil() as u64).clamp(1, 60)
    }

    /// Requests that wait, and those that run.
    pub fn n_waiting_and_running(&self) -> (usize, usize) {
        let n_waiting = self.waiting().jobs.iter().filter(|job| !job.is_given_up()).count();
        (n_waiting, self.streams(|all| all.iter().filter(|s| s.doing != Doing::Idle).count()))
    }

    pub fn streams<R>(&self, look: impl FnOnce(&[StreamStatus]) -> R) -> R {
        self.status(|streams, _| look(streams))
    }

    pub fn status<R>(&self, look: impl FnOnce(&[StreamStatus], &Totals) -> R) -> R {
        let status = self.status.lock().unwrap_or_else(|e| e.into_inner());
        look(&status.0, &status.1)
    }

    /// The latest view of a stream's arena after the engine has made one, or what there is after `patience`.
    pub async fn arena(&self, stream: usize, patience: Duration) -> ArenaView {
        let version = self.look_at_arena(|view| view.version);
        self.arena_stream.store(stream as u64, Ordering::Relaxed);
        self.arena_asked.store(self.started.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        self.bell.notify_one();
        let fresh = async {
            while self.look_at_arena(|view| view.version == version || view.stream != stream) {
                self.arena_changed.notified().await;
            }
        };
        let _ = tokio::time::timeout(patience, fresh).await;
        self.look_at_arena(Clone::clone)
    }

    fn look_at_arena<R>(&self, look: impl FnOnce(&ArenaView) -> R) -> R {
        look(&self.arena.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// No more requests are taken; those that wait are told, running ones go on until `Engine` is told to stop.
    pub fn stop(&self) {
        self.waiting().is_stopping = true;
        self.bell.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The engine's side.
impl Desk {
    /// The first request that waits and for which `fits` finds a stream; others keep their places.
    pub fn next_job(&self, mut fits: impl FnMut(&Request) -> Option<usize>) -> Option<(Job, usize)> {
        let mut waiting = self.waiting();
        waiting.jobs.retain(|job| !job.is_given_up());
        let (place, stream) = waiting.jobs.iter().enumerate().find_map(|(i, job)| Some((i, fits(job.request())?)))?;
        waiting.jobs.remove(place).map(|job| (job, stream))
    }

    pub fn next_errand(&self) -> Option<(Errand, tokio::sync::oneshot::Sender<ErrandResult>)> {
        self.waiting().errands.pop_front()
    }

    /// Sleeps until there may be something to do, for `at_most`.
    pub fn wait(&self, at_most: Duration) {
        let waiting = self.waiting();
        if waiting.jobs.is_empty() && waiting.errands.is_empty() && !waiting.is_stopping {
            drop(self.bell.wait_timeout(waiting, at_most));
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.waiting().is_stopping
    }

    pub fn tell_status(&self, change: impl FnOnce(&mut [StreamStatus], &mut Totals)) {
        let mut status = self.status.lock().unwrap_or_else(|e| e.into_inner());
        let (streams, totals) = &mut *status;
        change(streams, totals);
    }

    /// The stream whose arena someone wants to see, if anybody asked since `view` was last made.
    pub fn arena_wanted(&self) -> Option<usize> {
        let asked = self.arena_asked.swap(0, Ordering::Relaxed);
        (asked != 0).then(|| self.arena_stream.load(Ordering::Relaxed) as usize)
    }

    pub fn tell_arena(&self, fill: impl FnOnce(&mut ArenaView)) {
        let mut view = self.arena.lock().unwrap_or_else(|e| e.into_inner());
        fill(&mut view);
        view.version += 1;
        self.arena_changed.notify_waiters();
    }
}
