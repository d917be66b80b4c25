//! A server without a model: the network's side of `lowkey serve`, and in place of the engine a thread that says what prompts tell
//! it to. So what the network does with slow, endless or failing answers can be tried in no time.
//!
//! A prompt may hold orders: `SAY{text}`, `EVER{}` (words without end), `WAIT{ms}` (for the prompt to be read), `PACE{ms}` (for each
//! token), `FAIL{}` (after the first token). Without any it says a sentence that depends on prompt and seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lowkey::gguf::GgufFile;
use lowkey::server::desk::{
    ARENA_BUCKETS, Desk, Doing, Errand, ErrandDone, Finish, Job, Kept, Progress, Request, Sampled, StreamStatus,
};
use lowkey::server::http::{ModelInfo, Network, Settings, Shared};
use lowkey::text::{ChatTemplate, Held, SamplerParams, Tokenizer};

use lowkey_test_kit::demo_model;

/// Tokens of a prompt that are read at once.
const BATCH: usize = 16;
const WORDS: [&str; 8] = [" stone", " river", " light", " 媽", " seven", "\n", " wind", " é"];

pub struct Server {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The demo model's tokenizer and its own template, which are read once.
fn texts() -> &'static (Arc<Tokenizer>, ChatTemplate) {
    static TEXTS: std::sync::OnceLock<(Arc<Tokenizer>, ChatTemplate)> = std::sync::OnceLock::new();
    TEXTS.get_or_init(|| {
        let file = GgufFile::open(&demo_model()).expect("the demo model");
        (Arc::new(Tokenizer::from_gguf(&file).expect("its tokenizer")), ChatTemplate::from_gguf(&file).expect("its template"))
    })
}

impl Server {
    pub fn start(change: impl FnOnce(&mut Settings)) -> Server {
        Self::with_template(texts().1.clone(), change)
    }

    pub fn with_template(template: ChatTemplate, change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings { port: 0, ..Settings::default() };
        change(&mut settings);
        let tokenizer = texts().0.clone();
        let model = ModelInfo {
            aliases: vec!["demo".into(), "another".into()],
            tags: vec!["small".into(), "chat".into()],
            path: "models/demo.gguf".into(),
            n_vocab: tokenizer.n_vocab(),
            n_ctx_train: 8192,
            n_embd: 576,
            n_params: 134_515_008,
            file_bytes: 98_362_432,
            quantisation: "Q4_1".into(),
            family: "llama".into(),
            modified: None,
            digest: "0123456789abcdef0123456789abcdef".into(),
        };
        let desk = Arc::new(Desk::new(settings.n_streams, settings.n_queue));
        let sampling = SamplerParams { seed: 42, ..SamplerParams::default() };
        let shared = Arc::new(Shared::new(desk.clone(), tokenizer.clone(), Ok(template), model, sampling, 1 << 20));
        let network = Network::open(&settings).expect("an address");
        let address = network.addresses().first().copied().unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        let is_over = Arc::new(AtomicBool::new(false));
        let engine = Engine {
            desk,
            tokenizer,
            seats: (0..settings.n_streams).map(|_| None).collect(),
            held: vec![Vec::new(); settings.n_streams],
        };
        let (ended, of_network) = (is_over.clone(), shared.clone());
        let threads = vec![
            std::thread::spawn(move || engine.run(&ended)),
            std::thread::spawn(move || network.serve(settings, of_network).expect("it serves")),
        ];
        shared.set_ready();
        Server { address, shared, is_over, threads }
    }

    /// Requests that have a stream.
    pub fn n_running(&self) -> usize {
        self.shared.desk.n_waiting_and_running().1
    }

    /// Waits until something is so, for ten seconds at most; how long it took.
    pub fn wait_until(&self, what: impl Fn(&Server) -> bool) -> Duration {
        let begun = Instant::now();
        while !what(self) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it never comes");
            std::thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.desk.stop();
        self.shared.stop();
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the server panicked");
        }
    }
}

struct Seat {
    job: Job,
    /// What it will say, and how much of it is said.
    tokens: Vec<u32>,
    n_said: usize,
    is_endless: bool,
    fails: bool,
    held: Held,
    progress: Progress,
    pace: Duration,
    wait: Duration,
    since: Instant,
    decoding: Option<Instant>,
}

struct Engine {
    desk: Arc<Desk>,
    tokenizer: Arc<Tokenizer>,
    seats: Vec<Option<Seat>>,
    /// Tokens that each stream holds.
    held: Vec<Vec<u32>>,
}

/// What an order says, if the prompt gives it.
fn order<'a>(prompt: &'a str, name: &str) -> Option<&'a str> {
    let rest = prompt.rsplit_once(&format!("{name}{{"))?.1;
    // Braces within are in pairs.
    let mut depth = 1;
    let end = rest.bytes().position(|byte| {
        depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        depth == 0
    });
    end.map(|end| &rest[..end])
}

fn time(prompt: &str, name: &str) -> Duration {
    Duration::from_millis(order(prompt, name).and_then(|ms| ms.parse().ok()).unwrap_or(0))
}

impl Engine {
    fn run(mut self, is_over: &AtomicBool) {
        while !is_over.load(Ordering::Relaxed) {
            self.errands();
            let idle: Vec<bool> = self.seats.iter().map(Option::is_none).collect();
            let fits = |request: &Request| match request.stream {
                Some(at) => idle[at].then_some(at),
                None => idle.iter().position(|idle| *idle),
            };
            if let Some((job, at)) = self.desk.next_job(fits) {
                self.seats[at] = Some(self.begin(job, at));
            }
            for at in 0..self.seats.len() {
                self.turn(at);
            }
            self.tell();
            let is_idle = self.seats.iter().all(Option::is_none);
            self.desk.wait(if is_idle { Duration::from_millis(20) } else { Duration::from_micros(200) });
            if !is_idle {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn begin(&mut self, job: Job, at: usize) -> Seat {
        let request = job.request();
        let prompt = self.tokenizer.decode(&request.prompt);
        let n_same = self.held[at].iter().zip(&request.prompt).take_while(|(a, b)| a == b).count();
        let n_cached = if request.reuse_prefix { n_same.min(request.prompt.len() - 1) } else { 0 };
        self.held[at] = request.prompt.clone();
        let text = match order(&prompt, "SAY") {
            Some(text) => text.to_owned(),
            None => {
                let mut rng =
                    fastrand::Rng::with_seed(request.sampling.seed ^ request.prompt.iter().map(|id| *id as u64).sum::<u64>());
                (0..12).map(|_| WORDS[rng.usize(..WORDS.len())]).collect()
            }
        };
        let progress = Progress { n_prompt: request.prompt.len(), n_cached, n_read: n_cached, ..Progress::default() };
        let seat = Seat {
            tokens: self.tokenizer.encode(&text, false, false).expect("ids"),
            n_said: 0,
            is_endless: order(&prompt, "EVER").is_some() || request.ignore_eos,
            fails: order(&prompt, "FAIL").is_some(),
            held: Held::with_room(Held::bytes(&request.stops)),
            progress,
            pace: time(&prompt, "PACE"),
            wait: time(&prompt, "WAIT"),
            since: Instant::now(),
            decoding: None,
            job,
        };
        let kept = Kept { stream: at, n_slot: 1000, n_live: n_cached, diverged_at: n_same, is_exact: true, ..Kept::default() };
        seat.job.tell(|out| (out.is_running, out.kept, out.progress) = (true, kept, progress));
        self.desk.tell_status(|_, totals| totals.prompt_tokens_cached += n_cached as u64);
        seat
    }

    /// A batch of the prompt, or a token.
    fn turn(&mut self, at: usize) {
        let Some(mut seat) = self.seats[at].take() else { return };
        if seat.job.is_given_up() {
            return;
        }
        if seat.progress.n_read < seat.progress.n_prompt {
            let n_left = (seat.progress.n_prompt - seat.progress.n_read).div_ceil(BATCH) as u32;
            if seat.since.elapsed() >= seat.wait / n_left {
                let n = BATCH.min(seat.progress.n_prompt - seat.progress.n_read);
                seat.progress.n_read += n;
                seat.progress.prefill = seat.since.elapsed();
                self.desk.tell_status(|_, totals| {
                    totals.prompt_tokens += n as u64;
                    totals.n_decode += 1;
                    totals.n_busy += 1;
                });
                seat.job.tell(|out| out.progress = seat.progress);
            }
            self.seats[at] = Some(seat);
            return;
        }
        let since = *seat.decoding.get_or_insert_with(Instant::now);
        if since.elapsed() < seat.pace * seat.progress.n_generated as u32 || !seat.job.has_room(4096) {
            self.seats[at] = Some(seat);
            return;
        }
        if !self.say(&mut seat, since) {
            self.seats[at] = Some(seat);
        }
    }

    /// One token. True: it was the last.
    fn say(&self, seat: &mut Seat, since: Instant) -> bool {
        let Seat { job, held, tokens, progress, .. } = seat;
        let request = job.request();
        let token = tokens.get(seat.n_said).copied();
        seat.n_said += 1;
        if seat.is_endless && seat.n_said >= tokens.len() {
            seat.n_said = 0;
        }
        let end = |finish: Finish, text: &str, stop: Option<usize>, progress: Progress| {
            let error = (finish == Finish::Error).then_some("the engine was told to fail");
            job.tell(|out| {
                out.text.push_str(text);
                (out.finish, out.stop, out.error, out.progress) = (Some(finish), stop, error, progress);
            });
            true
        };
        if request.max_tokens == 0 {
            return end(Finish::Length, "", None, *progress);
        }
        progress.n_generated += 1;
        progress.decode = since.elapsed();
        self.desk.tell_status(|_, totals| totals.generated_tokens += 1);
        let Some(token) = token else {
            held.finish();
            return end(Finish::Eos, held.text(), None, *progress);
        };
        let (n, stop) = held.push(self.tokenizer.token_bytes(token, false), &request.stops);
        job.tell(|out| {
            let n_top = request.n_probs;
            out.tokens.push(Sampled { id: token, logprob: if n_top > 0 { -0.5 } else { 0.0 }, n_top: n_top as u8 });
            out.tops.extend((0..n_top).map(|i| (token + i as u32, -0.5 - i as f32)));
            out.text.push_str(&held.text()[..n]);
            out.progress = *progress;
        });
        held.sent(n);
        if stop.is_some() {
            return end(Finish::Stop, "", stop, *progress);
        }
        if seat.fails {
            return end(Finish::Error, "", None, *progress);
        }
        if progress.n_generated == request.max_tokens {
            held.finish();
            return end(Finish::Length, held.text(), None, *progress);
        }
        false
    }

    fn tell(&self) {
        self.desk.tell_status(|streams, totals| {
            for (seat, status) in self.seats.iter().zip(streams) {
                *status = match seat {
                    None => StreamStatus { n_slot: 1000, ..StreamStatus::default() },
                    Some(seat) => StreamStatus {
                        doing: if seat.decoding.is_some() { Doing::Decode } else { Doing::Prefill },
                        n_slot: 1000,
                        n_prompt: seat.progress.n_prompt,
                        n_generated: seat.progress.n_generated,
                        n_remain: seat.job.request().max_tokens - seat.progress.n_generated,
                        ..StreamStatus::default()
                    },
                };
                totals.n_tokens_max = totals.n_tokens_max.max(status.n_prompt as u64);
            }
        });
        if let Some(stream) = self.desk.arena_wanted() {
            self.desk.tell_arena(|view| {
                view.stream = stream;
                view.heads = vec![(0, 0), (1, 2)];
                view.kept = vec![3; 2 * ARENA_BUCKETS];
                (view.n_slot, view.n_live, view.next_pos) = (1000, 384, 500);
            });
        }
    }

    fn errands(&mut self) {
        while let Some((errand, sender)) = self.desk.next_errand() {
            let done = |n_tokens| Ok(ErrandDone { n_tokens, n_bytes: 100, took: Duration::from_millis(1) });
            let _ = sender.send(match errand {
                Errand::Erase { stream } => done(std::mem::take(&mut self.held[stream]).len()),
                Errand::Save { stream, .. } => done(self.held[stream].len()),
                Errand::Restore { name, .. } if name == "none" => Err("there is no session 'none'".into()),
                Errand::Restore { .. } => done(7),
            });
        }
    }
}
