//! `/metrics` in the text format of Prometheus: what the network counts, and what the engine does. Nothing a client sends becomes a
//! label.

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

use crate::kv::past::PastCounts;
use crate::sensors::{Sensors, status_bytes};
use crate::server::desk::{StreamStatus, Totals};

use super::answers::unix_seconds;
use super::app::{App, AppState};
use super::error::{Checked, Refusal};

/// Counts up.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Endpoints and statuses that are told apart.
const ENDPOINTS: [&str; 8] = ["chat", "completion", "responses", "ollama", "tokens", "slots", "info", "other"];
const STATUSES: [u16; 16] = [200, 400, 401, 403, 404, 405, 408, 411, 413, 415, 422, 429, 500, 501, 503, 0];
/// Bounds of the time to the first token, in seconds.
const FIRST_TOKEN: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

fn endpoint(path: &str) -> usize {
    let bare = path.strip_prefix("/v1").unwrap_or(path);
    let name = match bare {
        "/chat/completions" => "chat",
        "/completion" | "/completions" => "completion",
        "/responses" => "responses",
        "/tokenize" | "/detokenize" | "/apply-template" | "/chat/completions/input_tokens" => "tokens",
        "/" | "/health" | "/props" | "/metrics" | "/models" | "/lowkey/arena" | "/lowkey/events" => "info",
        _ if bare.starts_with("/models/") => "info",
        _ if bare.starts_with("/api/") => "ollama",
        _ if bare == "/slots" || bare.starts_with("/slots/") => "slots",
        _ => "other",
    };
    ENDPOINTS.iter().position(|known| *known == name).unwrap_or(ENDPOINTS.len() - 1)
}

/// What the network counts.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [[Count; STATUSES.len()]; ENDPOINTS.len()],
    pub refused_queue: Count,
    pub refused_waits: Count,
    pub refused_connections: Count,
    pub disconnects: Count,
    /// Of each bound, of all, and their sum in microseconds.
    first_token: [Count; FIRST_TOKEN.len()],
    n_first_token: Count,
    first_token_us: Count,
    /// Anonymous memory when the server was ready.
    anon_at_ready: AtomicU64,
}

impl Counters {
    pub fn count_request(&self, path: &str, status: StatusCode) {
        let status = STATUSES.iter().position(|known| *known == status.as_u16()).unwrap_or(STATUSES.len() - 1);
        self.requests[endpoint(path)][status].add(1);
    }

    pub fn observe_first_token(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bound, count) in FIRST_TOKEN.iter().zip(&self.first_token) {
            if seconds <= *bound {
                count.add(1);
            }
        }
        self.n_first_token.add(1);
        self.first_token_us.add(time.as_micros() as u64);
    }

    pub fn note_memory_at_ready(&self) {
        self.anon_at_ready.store(memory("RssAnon"), Relaxed);
    }
}

/// A line of what the system says of this process.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status_bytes(&status, name).unwrap_or(0)
}

/// Pages that had to be read again from the card: field 12 of what the system says.
fn major_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may hold anything and ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(9).and_then(|field| field.parse().ok()).unwrap_or(0)
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }
}

pub async fn show(State(app): AppState) -> Checked<Response> {
    if !app.settings.metrics {
        return Err(Refusal::unsupported("this server was started without metrics"));
    }
    let (n_waiting, n_running) = app.shared.desk.n_waiting_and_running();
    let mut text = Text(String::with_capacity(16 << 10));
    app.shared.desk.status(|streams, totals| {
        own(&mut text, &app, n_waiting, n_running, streams, totals);
        theirs(&mut text, n_waiting, n_running, totals);
    });
    let mut response = Response::new(text.0.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert("process-start-time-unix", unix_seconds(app.shared.started).into());
    Ok(response)
}

fn requests(text: &mut Text, counters: &Counters) {
    text.head("lowkey_requests_total", "counter", "Requests answered, by endpoint and status.");
    for (endpoint, counts) in ENDPOINTS.iter().zip(&counters.requests) {
        for (status, count) in STATUSES.iter().zip(counts).filter(|(_, count)| count.get() > 0) {
            let status = if *status == 0 { "other".to_owned() } else { status.to_string() };
            text.line("lowkey_requests_total", &format!("{{endpoint=\"{endpoint}\",status=\"{status}\"}}"), count.get());
        }
    }
    text.head("lowkey_requests_refused_total", "counter", "Requests for which there was no place.");
    let reasons =
        [("queue", &counters.refused_queue), ("wait", &counters.refused_waits), ("connections", &counters.refused_connections)];
    for (reason, count) in reasons {
        text.line("lowkey_requests_refused_total", &format!("{{reason=\"{reason}\"}}"), count.get());
    }
    let help = "Requests given up by their clients.";
    text.one("lowkey_disconnects_total", "counter", help, counters.disconnects.get());
    let name = "lowkey_first_token_seconds";
    text.head(name, "histogram", "From a request's place in the queue to the first text.");
    for (bound, count) in FIRST_TOKEN.iter().zip(&counters.first_token) {
        text.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count.get());
    }
    text.line(&format!("{name}_bucket"), "{le=\"+Inf\"}", counters.n_first_token.get());
    text.line(&format!("{name}_sum"), "", counters.first_token_us.get() as f64 / 1e6);
    text.line(&format!("{name}_count"), "", counters.n_first_token.get());
}

fn own(text: &mut Text, app: &App, n_waiting: usize, n_running: usize, streams: &[StreamStatus], totals: &Totals) {
    let counters = &app.shared.counters;
    text.head("lowkey_build_info", "gauge", "The program.");
    text.line("lowkey_build_info", concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
    requests(text, counters);
    let mut counter = |name: &str, help: &str, value: f64| text.one(&format!("lowkey_{name}"), "counter", help, value);
    counter("prompt_tokens_total", "Tokens of prompts that were read.", totals.prompt_tokens as f64);
    counter("prompt_tokens_cached_total", "Tokens of prompts that streams held already.", totals.prompt_tokens_cached as f64);
    counter("generated_tokens_total", "Tokens generated.", totals.generated_tokens as f64);
    counter("prefill_seconds_total", "Time spent reading prompts.", totals.prefill.as_secs_f64());
    counter("decode_seconds_total", "Time spent generating.", totals.decode.as_secs_f64());
    let n_renumbered: u64 = streams.iter().map(|stream| stream.n_renumbered).sum();
    counter("renumbered_total", "Times that positions were numbered anew.", n_renumbered as f64);
    counter("draft_tokens_total", "Tokens drafted.", totals.draft_tokens as f64);
    counter("draft_accepted_total", "Drafted tokens that were right.", totals.draft_accepted as f64);
    counter("sessions_saved_total", "Sessions written.", totals.sessions_saved as f64);
    counter("sessions_failed_total", "Sessions that could not be written or read.", totals.sessions_failed as f64);
    counter("major_faults_total", "Pages read again from the file system.", major_faults() as f64);
    let mut gauge = |name: &str, help: &str, value: f64| text.one(&format!("lowkey_{name}"), "gauge", help, value);
    gauge("requests_running", "Requests that have a stream.", n_running as f64);
    gauge("requests_waiting", "Requests that wait for one.", n_waiting as f64);
    gauge("sessions_files", "Sessions kept.", totals.sessions_files as f64);
    gauge("sessions_bytes", "Bytes of sessions kept.", totals.sessions_bytes as f64);
    gauge("memory_plan_bytes", "Private memory as planned.", app.shared.plan_bytes as f64);
    gauge("process_resident_memory_bytes", "Resident memory, file pages included.", memory("VmRSS") as f64);
    gauge("memory_anon_bytes", "Private resident memory.", memory("RssAnon") as f64);
    gauge("memory_anon_at_ready_bytes", "The same when the server became ready.", counters.anon_at_ready.load(Relaxed) as f64);
    gauge("process_start_time_seconds", "When the server started.", unix_seconds(app.shared.started) as f64);
    gauge("process_uptime_seconds", "Since then.", app.shared.uptime().as_secs_f64());
    board(text, &Sensors::read());
    let each: [(&str, &str, &str, fn(&StreamStatus) -> u64); 3] = [
        ("kv_slots", "gauge", "Slots of a stream's arena.", |stream| stream.n_slot as u64),
        ("kv_slots_live", "gauge", "Slots that hold a token.", |stream| stream.n_live as u64),
        ("kv_evicted_total", "counter", "Tokens evicted.", |stream| stream.n_evicted),
    ];
    for (name, kind, help, value) in each {
        let name = format!("lowkey_{name}");
        text.head(&name, kind, help);
        for (i, stream) in streams.iter().enumerate() {
            text.line(&name, &format!("{{stream=\"{i}\"}}"), value(stream));
        }
    }
    past(text, streams);
}

/// What streams made of their pasts in files, where they have them.
fn past(text: &mut Text, streams: &[StreamStatus]) {
    let each: [(&str, &str, fn(&PastCounts) -> u64); 7] = [
        ("written_bytes", "Bytes written to the file of a stream's past.", |past| past.written_bytes),
        ("read_bytes", "Bytes of keys and values read again from it.", |past| past.read_bytes),
        ("pieces", "Pieces of four tokens read again, in one KV head.", |past| past.n_pieces),
        ("pieces_compared", "Those of steps of one token.", |past| past.n_single),
        ("pieces_again", "Those of them that the step before had read too.", |past| past.n_again),
        ("lost_tiles", "Tiles of 32 tokens that could not be written.", |past| past.n_lost),
        ("failed_reads", "Reads of the file that failed.", |past| past.n_unread),
    ];
    for (name, help, value) in each.iter().filter(|_| streams.iter().any(|stream| stream.past.is_some())) {
        let name = format!("lowkey_past_{name}_total");
        text.head(&name, "counter", help);
        for (i, past) in streams.iter().enumerate().filter_map(|(i, stream)| Some((i, stream.past.as_ref()?))) {
            text.line(&name, &format!("{{stream=\"{i}\"}}"), value(past));
        }
    }
}

/// What the board tells of itself, if it does.
fn board(text: &mut Text, seen: &Sensors) {
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            text.one(&format!("lowkey_{name}"), "gauge", help, value);
        }
    };
    gauge("temperature_celsius", "The warmest sensor of the board.", seen.temperature_c);
    let is_now = seen.throttled.map(|bits| f64::from(bits & 0xf != 0));
    gauge("throttled", "Whether a Raspberry Pi is held back now, by voltage or temperature.", is_now);
    let was_ever = seen.throttled.map(|bits| f64::from(bits >> 16 & 0xf != 0));
    gauge("throttled_since_start", "The same since the board was started.", was_ever);
    gauge("swap_bytes", "Bytes of this process in swap.", seen.swapped_bytes.map(|bytes| bytes as f64));
}

/// A rate, 0 where there was no time.
fn rate(n: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// The same numbers under llama-server's names.
fn theirs(text: &mut Text, n_waiting: usize, n_running: usize, totals: &Totals) {
    let counters: [(&str, &str, f64); 10] = [
        ("prompt_tokens_total", "Number of prompt tokens processed.", totals.prompt_tokens as f64),
        ("prompt_tokens_cached_total", "Number of prompt tokens that were held already.", totals.prompt_tokens_cached as f64),
        ("prompt_seconds_total", "Prompt process time.", totals.prefill.as_secs_f64()),
        ("tokens_predicted_total", "Number of generation tokens processed.", totals.generated_tokens as f64),
        ("tokens_predicted_seconds_total", "Predict process time.", totals.decode.as_secs_f64()),
        ("n_decode_total", "Number of passes through the model.", totals.n_decode as f64),
        ("n_tokens_max", "Largest number of tokens that a stream has held.", totals.n_tokens_max as f64),
        ("spec_decode_num_draft_tokens_total", "Number of drafted tokens.", totals.draft_tokens as f64),
        ("spec_decode_num_accepted_tokens_total", "Number of drafted tokens accepted.", totals.draft_accepted as f64),
        ("spec_decode_num_drafts_total", "Number of drafts.", totals.n_drafts as f64),
    ];
    let n_busy = if totals.n_decode == 0 { 0.0 } else { totals.n_busy as f64 / totals.n_decode as f64 };
    let gauges: [(&str, &str, f64); 5] = [
        ("prompt_tokens_seconds", "Average prompt throughput in tokens/s.", rate(totals.prompt_tokens, totals.prefill)),
        ("predicted_tokens_seconds", "Average generation throughput in tokens/s.", rate(totals.generated_tokens, totals.decode)),
        ("requests_processing", "Number of requests processing.", n_running as f64),
        ("requests_deferred", "Number of requests deferred.", n_waiting as f64),
        ("n_busy_slots_per_decode", "Average number of busy streams in a pass.", n_busy),
    ];
    for (kind, list) in [("counter", &counters[..]), ("gauge", &gauges[..])] {
        for (name, help, value) in list {
            text.one(&format!("llamacpp:{name}"), kind, help, value);
        }
    }
}
