//! A stream of the server, and the request that it works on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::constraint::Live;
use crate::error::Result;
use crate::kv::{Past, Policy};
use crate::session::{Engine, Layout, Prefix, Runs, Stream};
use crate::session_file::Name;
use crate::text::{Held, Sampler, SamplerParams, Tokenizer, top_logprobs};

use super::desk::{Doing, Finish, Job, Kept, MAX_PROBS, Out, Progress, Request, Sampled, StreamStatus, SystemTurn};
use super::said::SaidLog;

pub struct Seat {
    pub stream: Stream,
    /// Empty where it is not known.
    said: SaidLog,
    sampler: Sampler,
    held: Held,
    tops: Vec<(u32, f64)>,
    pub running: Option<Running>,
    /// What has ended and has not been told so.
    ended: Option<Ended>,
    pub last_used: Instant,
    /// The session that it goes on with.
    pub bound: Bound,
}

/// What a seat knows of its session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    pub name: Option<Name>,
    /// Whether what is there under this name is whole and is another conversation, or could not be restored: then it is not written over.
    pub is_refused: bool,
    /// What stood under the name when the stream began with it, or was saved (`Shelf::mark`).
    pub stands: Option<u64>,
    /// Tokens that it had when it was saved or restored, and when.
    pub saved: Option<(u64, Instant)>,
    /// Under which it was saved by itself, of one without a name.
    pub automatic: Option<Name>,
    /// What it was restored from by itself, until a pass has shown that it can go on.
    pub untried: Option<Name>,
}

impl Bound {
    /// What is known where the stream holds nothing any more.
    pub fn of_empty(self) -> Bound {
        Bound { name: self.name, is_refused: self.is_refused, stands: self.stands, ..Bound::default() }
    }
}

/// A request whose end waits to be told, with so much of the text that was held back.
struct Ended {
    running: Running,
    n_held: usize,
    finish: Finish,
    error: Option<&'static str>,
}

/// A request that has a stream.
pub struct Running {
    pub job: Job,
    progress: Progress,
    kept: Kept,
    n_evicted_before: u64,
    began: Instant,
    /// Set with the first token.
    decoding_since: Option<Instant>,
    /// The token that was sampled last and has not been taken in.
    pub next: u32,
    /// Whether it goes on by text (`Request::continues`).
    by_text: bool,
    /// What is adopted on the way (`Request::reuse_runs`), and how many of them have been.
    runs: Runs,
    n_adopted: usize,
    /// What the answer obeys, as far as it has come.
    live: Option<Live>,
}

/// The longest window of penalties, and the most text that is held back.
pub struct SeatSizes {
    pub n_last: usize,
    pub held_bytes: usize,
}

impl SeatSizes {
    pub fn bytes(&self, n_vocab: usize) -> usize {
        Sampler::bytes(n_vocab, self.n_last) + self.held_bytes + (MAX_PROBS + 1) * 16
    }
}

impl Seat {
    pub fn new(engine: &Engine, layout: &Layout, sizes: &SeatSizes) -> Result<Seat> {
        let params = SamplerParams { repeat_last_n: sizes.n_last, ..SamplerParams::default() };
        Ok(Seat {
            stream: engine.stream(layout)?,
            said: SaidLog::new(),
            sampler: Sampler::new(params, engine.model().config.n_vocab)?,
            held: Held::with_room(sizes.held_bytes),
            tops: Vec::with_capacity(MAX_PROBS + 1),
            running: None,
            ended: None,
            last_used: Instant::now(),
            bound: Bound::default(),
        })
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Tokens of a request's prompt that need not be read, those that it has in common, and whether it goes on by text: where tokens
    /// part before the end of a stream that cannot be taken back.
    pub fn prefix(&self, request: &Request) -> (Prefix, bool) {
        let prefix = self.stream.prefix(&request.prompt);
        let n_past = self.stream.n_past() as usize;
        let goes_on = request.continues.as_ref().is_some_and(|continues| continues.said == self.said.said() && n_past > 0);
        match request.reuse_prefix {
            false => (Prefix { n_cached: 0, ..prefix }, false),
            true if prefix.n_cached == 0 && goes_on => (Prefix { n_cached: n_past, ..prefix }, true),
            true => (prefix, false),
        }
    }

    /// The runs that may be moved behind such a prefix.
    fn runs(&self, request: &Request, prefix: Prefix, by_text: bool) -> Runs {
        let is_shorter = !by_text && (prefix.n_cached as u64) < self.stream.n_past();
        if is_shorter { self.stream.runs(&request.prompt, prefix.n_cached, request.reuse_runs) } else { Runs::default() }
    }

    /// Tokens of a request's prompt that need not be computed here.
    pub fn n_spared(&self, request: &Request) -> usize {
        let (prefix, by_text) = self.prefix(request);
        prefix.n_cached + self.runs(request, prefix, by_text).n_tokens()
    }

    /// Where the random numbers stand.
    pub fn rng_state(&self) -> u64 {
        self.sampler.rng_state()
    }

    /// The stream holds something else than before: what it has said is found anew, where all its tokens are on record.
    pub fn say_anew(&mut self, tokenizer: &Tokenizer) {
        self.said.clear();
        if self.stream.first_tokens().len() as u64 == self.stream.n_past() {
            self.said.push(tokenizer, self.stream.first_tokens());
        }
    }

    /// The system's turn of the request, if the stream has not read so far yet or has read just that.
    pub fn system(&self) -> Option<&Arc<SystemTurn>> {
        let Running { job, progress, by_text, .. } = self.running.as_ref()?;
        job.request().system.as_ref().filter(|system| !by_text && progress.n_read <= system.n_tokens)
    }

    pub fn clear(&mut self) {
        self.stream.clear();
        self.said.clear();
    }

    /// Begins a request on a stream that is idle.
    pub fn begin(&mut self, job: Job, index: usize, tokenizer: &Tokenizer, engine: &mut Engine) {
        let request = job.request();
        let ((prefix, by_text), held) = (self.prefix(request), self.stream.n_past() as usize);
        let runs = self.runs(request, prefix, by_text);
        let (n_moved, is_moved) = (runs.n_tokens(), !runs.all().is_empty());
        let n_cached =
            if by_text || is_moved { prefix.n_cached } else { self.stream.worth_keeping(prefix.n_cached, request.prompt.len()) };
        let n_prompt = match &request.continues {
            Some(continues) if by_text => n_cached + continues.rest.len(),
            _ => request.prompt.len(),
        };
        if held > n_cached {
            log::debug!(
                "stream {index}: {} of {n_prompt} tokens are as before, {n_cached} need not be read, {} are forgotten",
                prefix.n_common,
                held - n_cached
            );
        }
        match runs.all() {
            [] => self.stream.keep(n_cached),
            _ => engine.move_runs(&mut self.stream, n_cached, &runs),
        }
        if n_cached < held {
            self.say_anew(tokenizer);
        }
        if !self.stream.pin(request.n_pinned) {
            log::info!(
                "{} tokens of a system turn are too many to be pinned in {} slots",
                request.n_pinned,
                self.stream.cache().n_slot()
            );
        }
        self.stream.begin_drafts();
        self.sampler.begin(&request.sampling);
        request.prompt.iter().for_each(|&token| self.sampler.accept(token));
        self.held.clear();
        let progress = Progress { n_prompt, n_cached: n_cached + n_moved, n_read: n_cached, ..Progress::default() };
        let cache = self.stream.cache();
        let kept = Kept {
            stream: index,
            evicted: 0,
            n_live: cache.n_live(),
            n_slot: cache.n_slot(),
            diverged_at: prefix.n_common,
            n_moved,
            is_exact: self.stream.is_exact(),
        };
        job.tell(|out| (out.is_running, out.progress, out.kept) = (true, progress, kept));
        let n_evicted_before = cache.n_evicted();
        let live = job.request().grammar.as_ref().map(|grammar| grammar.begin());
        self.running = Some(Running {
            job,
            progress,
            kept,
            n_evicted_before,
            began: Instant::now(),
            decoding_since: None,
            next: 0,
            by_text,
            runs,
            n_adopted: 0,
            live,
        });
        self.adopt(tokenizer);
    }

    /// Takes in the runs whose turn has come.
    fn adopt(&mut self, tokenizer: &Tokenizer) {
        let Some(running) = &mut self.running else { return };
        while let Some(run) = running.runs.all().get(running.n_adopted).filter(|run| run.to == running.progress.n_read) {
            let tokens = &running.job.request().prompt[run.to..run.to + run.n];
            self.stream.adopt(tokens);
            self.said.push(tokenizer, tokens);
            running.progress.n_read += run.n;
            running.n_adopted += 1;
        }
    }

    /// The tokens of the prompt that are still to be read.
    pub fn unread(&self) -> Option<usize> {
        let Running { progress, decoding_since, .. } = self.running.as_ref()?;
        decoding_since.is_none().then(|| progress.n_prompt - progress.n_read)
    }

    /// Whether it has a token to take in, and room for what comes of it.
    pub fn is_decoding(&self, room_bytes: usize) -> bool {
        self.running.as_ref().is_some_and(|running| running.decoding_since.is_some() && running.job.has_room(room_bytes))
    }

    /// `n` more tokens of the prompt have been taken in.
    pub fn has_read(&mut self, n: usize, tokenizer: &Tokenizer) {
        let Some(running) = &mut self.running else { return };
        self.said.push(tokenizer, &running.to_read()[..n]);
        running.progress.n_read += n;
        self.adopt(tokenizer);
        let Some(running) = &mut self.running else { return };
        running.progress.prefill = running.began.elapsed();
        running.tell(&self.stream, |_| ());
    }

    /// The token that is to be taken in next, and how many tokens may be guessed behind it.
    pub fn next(&self) -> Option<(u32, usize)> {
        let Running { job, progress, next, .. } = self.running.as_ref()?;
        let request = job.request();
        Some((*next, request.n_draft.min(request.max_tokens - progress.n_generated - 1)))
    }

    /// `n` tokens were guessed behind the one that was taken in.
    pub fn has_guessed(&mut self, n: usize) {
        if let Some(running) = &mut self.running {
            running.progress.draft_n += n;
        }
    }

    /// The token that was sampled last is taken in already, for it was guessed: whether that is so.
    pub fn was_guessed(&mut self, engine: &mut Engine) -> bool {
        let Some(running) = &mut self.running else { return false };
        let was_guessed = engine.accept(&mut self.stream, running.next);
        running.progress.draft_n_accepted += usize::from(was_guessed);
        was_guessed
    }

    /// The token that was sampled last has been taken in.
    pub fn has_taken(&mut self, tokenizer: &Tokenizer) {
        if let Some(running) = &self.running {
            self.said.push(tokenizer, &[running.next]);
        }
    }

    /// Chooses the next token from the logits, and says what it comes to. True: the request is done.
    pub fn sample(&mut self, logits: &[f32], tokenizer: &Tokenizer, n_ctx: usize) -> bool {
        let Seat { stream, sampler, held, tops, running, .. } = self;
        let Some(running) = running else { return true };
        running.decoding_since.get_or_insert_with(Instant::now);
        let request = running.job.request();
        if request.max_tokens == 0 {
            return self.end(Finish::Length, None);
        }
        let drawn = match &mut running.live {
            Some(live) => sampler.sample_filtered(logits, &request.logit_bias, live),
            None => sampler.sample_biased(logits, &request.logit_bias),
        };
        let Ok(token) = drawn else {
            let stuck = running.live.as_ref().and_then(Live::stuck);
            let (finish, why) = match stuck {
                Some(why) => (Finish::Length, why),
                None => (Finish::Error, "no token is left to choose: the logits are not numbers, or all are forbidden"),
            };
            return self.end(finish, Some(why));
        };
        let is_complete = running.live.as_mut().is_some_and(|live| live.accept(token));
        let stuck = running.live.as_ref().and_then(Live::stuck);
        sampler.accept(token);
        running.next = token;
        running.progress.n_generated += 1;
        running.progress.decode = running.decoding_since.map_or(Duration::ZERO, |since| since.elapsed());
        let is_end = tokenizer.is_eog(token) && !request.ignore_eos;
        let n_probs = request.n_probs;
        let logprob = if n_probs > 0 && !is_end { logprobs(logits, token, n_probs, tops) } else { 0.0 };
        let is_shown = request.shown.binary_search(&token).is_ok();
        let (n_text, stop) = match is_end {
            true => (0, None),
            false => held.push(tokenizer.token_bytes(token, is_shown), &request.stops),
        };
        running.tell(stream, |out| {
            if !is_end {
                let told = if n_probs > 0 { &tops[..n_probs.min(tops.len())] } else { &[] };
                out.tokens.push(Sampled { id: token, logprob, n_top: told.len() as u8 });
                out.tops.extend(told.iter().map(|&(id, logprob)| (id, logprob as f32)));
            }
            out.text.push_str(&held.text()[..n_text]);
            out.stop = stop;
        });
        held.sent(n_text);
        let (n_generated, max_tokens) = (running.progress.n_generated, request.max_tokens);
        let is_full = stream.cache().policy() == Policy::Off && stream.cache().n_live() == stream.cache().n_slot();
        match stop {
            _ if is_end => self.end(Finish::Eos, None),
            Some(_) => self.end(Finish::Stop, None),
            None if is_complete => self.end(Finish::Eos, None),
            None if stuck.is_some() => self.end(Finish::Length, stuck),
            None if n_generated == max_tokens || stream.n_past() as usize >= n_ctx || is_full => self.end(Finish::Length, None),
            None => false,
        }
    }

    /// The request is over.
    pub fn end(&mut self, finish: Finish, error: Option<&'static str>) -> bool {
        if let Some(running) = self.running.take() {
            let n_held = if finish == Finish::Stop { 0 } else { self.held.finish() };
            self.ended = Some(Ended { running, n_held, finish, error });
            self.last_used = Instant::now();
        }
        true
    }

    /// Tells a client of the end of its request: when the stream's status has been told, so that who has the answer finds it idle.
    pub fn tell_end(&mut self) {
        if let Some(Ended { running, n_held, finish, error }) = self.ended.take() {
            running.tell(&self.stream, |out| {
                out.text.push_str(&self.held.text()[..n_held]);
                (out.finish, out.error) = (Some(finish), error);
            });
        }
    }

    /// The request was given up.
    pub fn give_up(&mut self) {
        self.running = None;
        self.last_used = Instant::now();
    }

    pub fn progress(&self) -> Option<&Progress> {
        self.running.as_ref().map(|running| &running.progress)
    }

    pub fn status(&self) -> StreamStatus {
        let (cache, progress) = (self.stream.cache(), self.progress().copied().unwrap_or_default());
        let doing = match &self.running {
            None => Doing::Idle,
            Some(running) if running.decoding_since.is_some() => Doing::Decode,
            Some(_) => Doing::Prefill,
        };
        let n_remain = self.running.as_ref().map_or(0, |running| running.job.request().max_tokens - progress.n_generated);
        StreamStatus {
            doing,
            n_past: self.stream.n_past(),
            n_live: cache.n_live(),
            n_slot: cache.n_slot(),
            n_evicted: cache.n_evicted(),
            n_renumbered: cache.n_renumbered(),
            next_pos: cache.next_pos(),
            n_pinned: cache.n_pinned(),
            past: cache.past().map(Past::counts),
            said: self.said.said(),
            n_prompt: progress.n_prompt,
            n_generated: progress.n_generated,
            n_remain,
        }
    }
}

impl Running {
    /// The tokens that are to be read next, up to the end or to what is adopted. One batch ends where the system's turn does.
    pub fn to_read(&self) -> &[u32] {
        let (request, Progress { n_cached, n_read, n_prompt, .. }) = (self.job.request(), self.progress);
        match &request.continues {
            Some(continues) if self.by_text => &continues.rest[n_read - n_cached..],
            _ => {
                let adopted = self.runs.all().get(self.n_adopted).map(|run| run.to);
                let system = request.system.as_ref().map(|system| system.n_tokens).filter(|n| *n > n_read);
                &request.prompt[n_read..adopted.into_iter().chain(system).fold(n_prompt, usize::min)]
            }
        }
    }

    /// Whether the prompt ends with what is to be read next.
    pub fn reads_last(&self) -> bool {
        self.progress.n_read + self.to_read().len() == self.progress.n_prompt
    }

    fn tell(&self, stream: &Stream, change: impl FnOnce(&mut Out)) {
        let cache = stream.cache();
        let evicted = cache.n_evicted() - self.n_evicted_before;
        self.job.tell(|out| {
            out.progress = self.progress;
            out.kept = Kept { evicted, n_live: cache.n_live(), ..self.kept };
            change(out);
        });
    }
}

/// The log-probability of a token, and in `tops` the `n` most likely ones.
fn logprobs(logits: &[f32], token: u32, n: usize, tops: &mut Vec<(u32, f64)>) -> f32 {
    top_logprobs(logits, n, tops);
    let own = tops.iter().find(|(id, _)| *id == token).map(|(_, logprob)| *logprob);
    let from = |&(id, logprob): &(u32, f64)| logprob + f64::from(logits[token as usize]) - f64::from(logits[id as usize]);
    own.or_else(|| tops.first().map(from)).unwrap_or(0.0) as f32
}
