//! The network's side of `lowkey serve`: HTTP/1.1 on one thread, and a clerk who reads requests on another.
//!
//! ```text
//! accept    listeners, connections and their number        wire      time-outs of a connection       router   paths, each request's way
//! guard     keys, hosts, origins                           body      bodies and JSON with limits     fields   typed access to JSON
//! clerk     where requests are read, one at a time         messages, prompt, sampling, constraint    JSON to what the desk takes
//! tools, words   calls of them: forms, grammars            calls, scan, ring   calls read back, and kept
//! run       a request from the queue to its end            stream    events and whole answers        answers  what the APIs share
//! chat, completion, text_completion, responses, ollama     the APIs                                  models, tokens, slots, metrics, arena
//! ```
//!
//! A request goes: head, guard, body, clerk (all checks, template, tokens), desk, and only then a status line. Everything has a limit:
//! connections, bytes of a head and a body, values in a body, time.

mod accept;
mod answers;
mod app;
mod arena;
mod body;
mod calls;
mod chat;
mod clerk;
mod completion;
mod constraint;
mod error;
mod fields;
mod gaps;
mod guard;
mod harmony;
mod messages;
mod metrics;
mod models;
mod ollama;
mod ollama_answer;
mod prompt;
mod reader;
mod responses;
mod ring;
mod router;
mod run;
mod samplers;
mod sampling;
mod scan;
mod seats;
mod slots;
mod stream;
mod text_completion;
mod thinking;
mod tokens;
mod tools;
mod unfold;
mod wire;
mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::constraint::Constraints;
use crate::text::{ChatTemplate, SamplerParams, Tokenizer};

use super::desk::{Desk, MAX_PROBS, OUTBOX_TEXT_BYTES, OUTBOX_TOKENS, Sampled};

pub use accept::Network;
pub use body::json_bytes;
pub use guard::{can_be_host, can_be_key, can_be_origin};

/// What ordinary work takes of the stacks of the network's thread and of the clerk.
pub const WARM_STACK_BYTES: usize = 128 << 10;

/// What a stream does whose context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Evicts, and goes on.
    Evict,
    /// A prompt that does not fit is refused; an answer ends where the context does.
    Error,
}

/// Whether models that think before they answer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// They do, if their template has a switch for it; else as the template has it.
    Auto,
    On,
    Off,
}

/// What the owner sets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses and names, or paths that end in `.sock`.
    pub hosts: Vec<String>,
    pub port: u16,
    pub n_streams: usize,
    /// Tokens of prompt and answer that a stream may have under `Overflow::Error`; reported in any case.
    pub n_ctx: usize,
    pub overflow: Overflow,
    /// Cap and default of an answer; `usize::MAX`: none.
    pub max_tokens: usize,
    /// Requests that wait for a stream, and how long.
    pub n_queue: usize,
    pub queue_wait: Duration,
    /// Connections at once; two of them are for health, metrics and the page alone.
    pub n_connections: usize,
    pub max_body: usize,
    /// For a whole head, for 64 KiB of a body, and for a write.
    pub io_timeout: Duration,
    pub keep_alive: Duration,
    /// After so long without an event a stream sends a comment; 0: it sends none.
    pub ping: Duration,
    pub api_keys: Vec<String>,
    /// Origins, `localhost` for any port of this machine, or `*`.
    pub cors_origins: Vec<String>,
    /// Any origin may send cookies and keys that a browser holds.
    pub cors_credentials: bool,
    pub allowed_hosts: Vec<String>,
    pub thinking: Thinking,
    pub pin_system: bool,
    /// For constrained output; 0: off.
    pub grammar_bytes: usize,
    /// Runs of at least so many tokens behind a change of the prompt are moved instead of read; 0: none.
    pub reuse_runs: usize,
    /// `Request::n_draft` where a request does not say, and at most.
    pub n_draft: usize,
    /// The longest window of penalties that a request may ask for.
    pub max_repeat_last_n: usize,
    pub metrics: bool,
    pub slots: bool,
    pub ui: bool,
    pub ollama: bool,
    /// Whether streams may be saved and restored.
    pub sessions: bool,
    /// Every answer says what it was made from (`__verbose`).
    pub verbose: bool,
    /// For answers under way when the server stops.
    pub stop_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            hosts: vec!["127.0.0.1".into()],
            port: 8080,
            n_streams: 1,
            n_ctx: 2048,
            overflow: Overflow::Evict,
            max_tokens: 1024,
            n_queue: 4,
            queue_wait: Duration::from_secs(120),
            n_connections: 13,
            max_body: 256 << 10,
            io_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(15),
            ping: Duration::from_secs(15),
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            cors_credentials: false,
            allowed_hosts: Vec::new(),
            thinking: Thinking::Auto,
            pin_system: true,
            grammar_bytes: 8 << 20,
            reuse_runs: 0,
            n_draft: 0,
            max_repeat_last_n: 1024,
            metrics: true,
            slots: true,
            ui: true,
            ollama: true,
            sessions: false,
            verbose: false,
            stop_wait: Duration::from_secs(2),
        }
    }
}

impl Settings {
    /// Private memory for connections, from above: for each the task, a head, what hyper buffers of either direction, a small body,
    /// and a piece of an answer; the runtime and the clerk besides.
    pub fn connection_bytes(&self) -> usize {
        const TASK: usize = 24 << 10;
        self.n_connections * (TASK + 2 * wire::BUFFER_BYTES + body::SMALL_BYTES + stream::CHUNK_BYTES) + (512 << 10)
    }

    /// Tokens that the prompts of a request may have together.
    pub fn max_prompt_tokens(&self) -> usize {
        (self.max_body / size_of::<u32>()).max(self.n_ctx)
    }

    /// What a conversation may take when it is written out with indentation: little more than its body.
    fn max_written(&self) -> usize {
        self.max_body + self.max_body / 4
    }

    /// Private memory for requests, from above: bodies and prompts of all that may run or wait, and what reading one of them takes,
    /// which the clerk does one at a time. `render_bytes`: what the template takes for text of so many bytes (its `plan_bytes`).
    pub fn request_bytes(&self, render_bytes: impl Fn(usize) -> usize) -> usize {
        // A body is gone when its tokens are there.
        let prompt = self.max_body.max(self.max_prompt_tokens() * size_of::<u32>());
        let outbox = OUTBOX_TEXT_BYTES + OUTBOX_TOKENS * (size_of::<Sampled>() + MAX_PROBS * size_of::<(u32, f32)>());
        let each = prompt + outbox + (4 << 10);
        // The JSON and what is taken out of it; a conversation that is stopped keeps its share, and after the last none is rendered.
        let reading = 2 * json_bytes(self) + clerk::MAX_LOST * render_bytes(self.max_written());
        (self.n_streams + self.n_queue) * each + self.n_streams * stream::WHOLE_BYTES + reading + ring::Ring::BYTES
    }
}

/// What the model is, for those who ask.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// Names under which it is known, at least one; the first in alphabetical order is its name.
    pub aliases: Vec<String>,
    pub tags: Vec<String>,
    pub path: String,
    pub n_vocab: usize,
    pub n_ctx_train: usize,
    pub n_embd: usize,
    pub n_params: u64,
    pub file_bytes: u64,
    /// `Q4_1`, as files are called by it.
    pub quantisation: String,
    /// `llama`, the architecture in the file.
    pub family: String,
    /// When the file was last changed.
    pub modified: Option<SystemTime>,
    /// Hash of the file's directory and metadata.
    pub digest: String,
}

impl ModelInfo {
    pub fn name(&self) -> &str {
        self.aliases.iter().min().map_or("model", |name| name)
    }
}

/// What the threads of the server share.
pub struct Shared {
    pub desk: Arc<Desk>,
    pub tokenizer: Arc<Tokenizer>,
    /// Or why there is none.
    pub template: Result<ChatTemplate, String>,
    /// None: answers obey nothing.
    pub constraints: Option<Constraints>,
    pub model: ModelInfo,
    /// What requests do not say; each that names no seed starts from this one.
    pub sampling: SamplerParams,
    /// Private memory as planned.
    pub plan_bytes: u64,
    pub counters: metrics::Counters,
    pub started: SystemTime,
    started_at: Instant,
    is_ready: AtomicBool,
    n_warm: AtomicUsize,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Shared {
    pub fn new(
        desk: Arc<Desk>,
        tokenizer: Arc<Tokenizer>,
        template: Result<ChatTemplate, String>,
        model: ModelInfo,
        sampling: SamplerParams,
        plan_bytes: u64,
    ) -> Shared {
        Shared {
            desk,
            tokenizer,
            template,
            constraints: None,
            model,
            sampling,
            plan_bytes,
            counters: metrics::Counters::default(),
            started: SystemTime::now(),
            started_at: Instant::now(),
            is_ready: AtomicBool::new(false),
            n_warm: AtomicUsize::new(0),
            stop: tokio::sync::watch::Sender::new(false),
        }
    }

    /// Answers may obey schemas and grammars.
    pub fn with_constraints(self, constraints: Option<Constraints>) -> Shared {
        Shared { constraints, ..self }
    }

    /// A thread of the network's side has taken the memory that it works in.
    fn is_warm(&self) {
        self.n_warm.fetch_add(1, Ordering::Release);
    }

    /// From now on requests are taken.
    pub fn set_ready(&self) {
        // Both threads have long taken their memory, unless the machine is very busy.
        let since = Instant::now();
        while self.n_warm.load(Ordering::Acquire) < 2 && since.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.counters.note_memory_at_ready();
        self.is_ready.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// No more connections are taken; `Network::serve` returns once answers under way have ended, or their time is over.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Returns once the server is to stop.
    async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|is_stopped| *is_stopped).await;
    }

    /// Since the server started.
    fn uptime(&self) -> Duration {
        self.started_at.elapsed()
    }
}
