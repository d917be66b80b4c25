//! A stream of the server: its memory, the tokens that it has taken in, and the request that it works on.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::kv::Policy;
use crate::session::{Engine, Layout, Stream};
use crate::text::{Held, Sampler, SamplerParams, Tokenizer, top_logprobs};

use super::desk::{Doing, Finish, Job, Kept, MAX_PROBS, Out, Progress, Sampled, StreamStatus};
use super::log::TokenLog;

pub struct Seat {
    pub stream: Stream,
    pub log: TokenLog,
    sampler: Sampler,
    held: Held,
    tops: Vec<(u32, f64)>,
    pub running: Option<Running>,
    pub last_used: Instant,
    /// What is as if it had been read from its start; not after a rewind that a policy does not forget.
    is_exact: bool,
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
}

/// How a stream can take a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Tokens that need not be read.
    pub n_cached: usize,
    /// Leading tokens that were those of the stream.
    pub n_common: usize,
}

/// What a stream holds of a log, a window of penalties, and a text at most.
pub struct SeatSizes {
    pub n_log: usize,
    pub n_last: usize,
    pub held_bytes: usize,
}

impl SeatSizes {
    pub fn bytes(&self, n_vocab: usize) -> usize {
        TokenLog::bytes(self.n_log) + Sampler::bytes(n_vocab, self.n_last) + self.held_bytes + (MAX_PROBS + 1) * 16
    }
}

impl Seat {
    pub fn new(engine: &Engine, layout: &Layout, sizes: &SeatSizes) -> Result<Seat> {
        let params = SamplerParams { repeat_last_n: sizes.n_last, ..SamplerParams::default() };
        Ok(Seat {
            stream: engine.stream(layout)?,
            log: TokenLog::new(sizes.n_log),
            sampler: Sampler::new(params, engine.model().config.n_vocab)?,
            held: Held::with_room(sizes.held_bytes),
            tops: Vec::with_capacity(MAX_PROBS + 1),
            running: None,
            last_used: Instant::now(),
            is_exact: true,
        })
    }

    /// What of a prompt need not be read again. At least its last token is read, for the logits after it.
    pub fn prefix(&self, prompt: &[u32]) -> Prefix {
        let common = self.log.common(prompt);
        let n_past = self.log.n() as usize;
        if common.is_all && n_past < prompt.len() {
            return Prefix { n_cached: n_past, n_common: n_past };
        }
        let n = common.n.min(prompt.len() - 1);
        let n_cached = if self.stream.cannot_rewind(n as u64).is_none() { n } else { 0 };
        Prefix { n_cached, n_common: common.n }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    pub fn clear(&mut self) {
        self.stream.clear();
        self.log.clear();
        self.is_exact = true;
    }

    /// Begins a request on a stream that is idle.
    pub fn begin(&mut self, job: Job, index: usize) {
        let request = job.request();
        let mut prefix = self.prefix(&request.prompt);
        if !request.reuse_prefix {
            prefix.n_cached = 0;
        }
        if prefix.n_cached == 0 {
            self.clear();
        } else if (prefix.n_cached as u64) < self.log.n() {
            self.is_exact &= self.stream.cache().rewinds_exactly();
            self.stream.rewind(prefix.n_cached as u64);
            self.log.truncate(prefix.n_cached);
        }
        let held = self.log.n() as usize;
        let (n_prompt, n_cached) = (request.prompt.len(), prefix.n_cached);
        if !self.stream.pin(request.n_pinned) {
            log::info!(
                "{} tokens of a system turn are too many to be pinned in {} slots",
                request.n_pinned,
                self.stream.cache().n_slot()
            );
        }
        if n_cached < n_prompt.min(held) || prefix.n_common < held {
            log::debug!("stream {index}: {} of {n_prompt} tokens are as before, {n_cached} need not be read", prefix.n_common);
        }
        self.sampler.begin(&request.sampling);
        request.prompt.iter().for_each(|&token| self.sampler.accept(token));
        self.held.clear();
        let progress = Progress { n_prompt, n_cached, n_read: n_cached, ..Progress::default() };
        let cache = self.stream.cache();
        let kept = Kept {
            stream: index,
            evicted: 0,
            n_live: cache.n_live(),
            n_slot: cache.n_slot(),
            diverged_at: prefix.n_common,
            n_moved: 0,
            is_exact: self.is_exact,
        };
        job.tell(|out| (out.is_running, out.progress, out.kept) = (true, progress, kept));
        let n_evicted_before = cache.n_evicted();
        self.running =
            Some(Running { job, progress, kept, n_evicted_before, began: Instant::now(), decoding_since: None, next: 0 });
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
    pub fn has_read(&mut self, n: usize) {
        let Some(running) = &mut self.running else { return };
        let at = running.progress.n_read;
        self.log.push(&running.job.request().prompt[at..at + n]);
        running.progress.n_read += n;
        running.progress.prefill = running.began.elapsed();
        running.tell(&self.stream, |_| ());
    }

    /// The token `next` has been taken in.
    pub fn has_taken(&mut self) {
        if let Some(running) = &self.running {
            self.log.push(&[running.next]);
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
        let token = match sampler.sample_biased(logits, &request.logit_bias) {
            Ok(token) => token,
            Err(_) => {
                return self
                    .end(Finish::Error, Some("no token is left to choose: the logits are not numbers, or all are forbidden"));
            }
        };
        sampler.accept(token);
        running.next = token;
        running.progress.n_generated += 1;
        running.progress.decode = running.decoding_since.map_or(Duration::ZERO, |since| since.elapsed());
        let is_end = tokenizer.is_eog(token) && !request.ignore_eos;
        let n_probs = request.n_probs;
        let logprob = if n_probs > 0 && !is_end { logprobs(logits, token, n_probs, tops) } else { 0.0 };
        let (n_text, stop) = if is_end { (0, None) } else { held.push(tokenizer.token_bytes(token, false), &request.stops) };
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
            None if n_generated == max_tokens || stream.n_past() as usize >= n_ctx || is_full => self.end(Finish::Length, None),
            None => false,
        }
    }

    /// The request is over.
    pub fn end(&mut self, finish: Finish, error: Option<&'static str>) -> bool {
        if let Some(running) = self.running.take() {
            let n = if finish == Finish::Stop { 0 } else { self.held.finish() };
            running.tell(&self.stream, |out| {
                out.text.push_str(&self.held.text()[..n]);
                (out.finish, out.error) = (Some(finish), error);
            });
            self.last_used = Instant::now();
        }
        true
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
            n_prompt: progress.n_prompt,
            n_generated: progress.n_generated,
            n_remain,
        }
    }
}

impl Running {
    /// Tokens of the prompt that the stream holds.
    pub fn n_read(&self) -> usize {
        self.progress.n_read
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
