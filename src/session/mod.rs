//! A model that runs, and the streams that run through it: what the command line, the server and a user of the library see.
//!
//! ```text
//! Layout    what it would be, and its plan        Engine    model, kernels, threads, scratch
//! Stream    one conversation's memory             Session   an engine with one stream
//! ```
//!
//! Everything is taken from the system in `Engine::new` and `Engine::stream`, by a plan that `Layout::plan` shows beforehand; a pass
//! allocates nothing (tests/no_alloc.rs arms an allocator to check it).

mod drafts;
mod layout;
mod log;
mod reuse;
mod steps;

use std::sync::Arc;

use crate::error::{Error, Result, Setting};
use crate::kernels::Kernels;
use crate::kv::past::disk::Pasts;
use crate::kv::policy::Rule;
use crate::kv::store::KvScratch;
use crate::kv::store::undo::Undo;
use crate::kv::{AttnLayer, KvCache, Past};
use crate::mem::arena::Arena;
use crate::mem::pool::Pool;
use crate::model::choice::Choice;
use crate::model::forward::{Lane, Logits, Machine, Model, forward, forward_watched};
use crate::model::guard::Guard;
use crate::model::scratch::Scratch;
use crate::model::state::RecurrentState;
use crate::units::Bytes;
use log::TokenLog;
use steps::Guesses;

pub use drafts::{DraftCounts, Drafts, MAX_GUESSES};
pub use layout::{DEFAULT_BATCH, Layout, PastShortage, SessionParams, Shortage, check_memory};
pub use reuse::{MAX_RUNS, Runs};
pub use steps::Steps;

/// A model, and the machine that it runs on.
pub struct Engine {
    model: Model,
    machine: Machine,
    choice: Choice,
    n_batch: usize,
    n_logits: usize,
    guesses: Guesses,
    undo: Undo,
}

/// One conversation's memory: keys and values, what recurrent layers remember, and which tokens it has taken in.
pub struct Stream {
    cache: KvCache,
    recurrent: Option<RecurrentState>,
    log: TokenLog,
    /// What is as if it had been read from its start; not after a rewind that a policy does not forget.
    is_exact: bool,
    /// Where what may follow is guessed from, if it is.
    drafts: Option<Drafts>,
}

/// What a stream is, for `session_file`.
pub struct StreamState<'a> {
    pub cache: &'a mut KvCache,
    /// What recurrent layers remember; empty in a model without.
    pub recurrent: &'a mut [f32],
    /// Room for the stream's first tokens, `n_first` of which are there.
    pub first_tokens: &'a mut [u32],
    pub n_first: usize,
    /// Of all tokens.
    pub log_hash: u128,
    /// `Stream::is_exact`
    pub is_exact: bool,
}

/// How a stream can take a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Tokens that need not be read.
    pub n_cached: usize,
    /// Leading tokens that were those of the stream.
    pub n_common: usize,
}

/// Fewer, if they are less than half of a prompt, are read again rather than kept by a rewind that is not exact.
const FEW_TOKENS: usize = 16;

fn no_memory(e: std::io::Error) -> Error {
    Error::budget(Setting::Memory, format!("the system did not give what the plan asks for: {e}"))
}

impl Engine {
    /// Takes all the memory there will be but that of streams: what `Layout::plan` showed, which has been checked by the caller.
    pub fn new(model: Model, layout: &Layout) -> Result<Engine> {
        if layout.mlock {
            let pack = model.files(layout.kernels).pack.map(|pack| pack.map());
            model.file.maps().chain(pack).try_for_each(|map| map.lock()).map_err(|e| {
                Error::usage(
                    Setting::Mlock,
                    format!(
                        "the system did not lock {} of weights ({e}); raise `ulimit -l` or leave it out",
                        Bytes(model.file.file_bytes())
                    ),
                )
            })?;
        }
        let is_short = model.config.experts.is_some() && layout.is_short(&model);
        let mut scratch = Arena::fill(|arena| Scratch::carve(arena, &model.config, &layout.scratch)).map_err(no_memory)?;
        if let Some(experts) = scratch.experts.as_mut().filter(|_| is_short) {
            experts.asks_ahead = true;
            model.files(layout.kernels).read_experts_alone(&model.weights.layers);
        }
        let pool = Pool::new(layout.n_threads)
            .map_err(|e| Error::usage(Setting::Threads, format!("cannot start {} threads: {e}", layout.n_threads)))?;
        let mut machine = Machine { kernels: layout.kernels, pool, scratch, guard: Guard::default() };
        let choice = machine.choose_kernels(&model);
        let undo = Arena::fill(|arena| layout.undo(arena)).map_err(no_memory)?;
        let (n_batch, n_logits) = (layout.kv.n_batch, layout.scratch.n_logits);
        Ok(Engine { model, machine, choice, n_batch, n_logits, guesses: Guesses::default(), undo })
    }

    /// Takes the memory of one of the streams of the layout.
    pub fn stream(&self, layout: &Layout) -> Result<Stream> {
        let mut cache = KvCache::new(layout.kv, layout.n_slot, layout.rule, layout.kv_budget_bytes)?;
        if let Some((shape, params)) = &layout.past {
            cache.attach(Past::open(*shape, params, &self.model.ropes)?);
        }
        let recurrent = Arena::fill(|arena| RecurrentState::carve(arena, &self.model.config)).map_err(no_memory)?;
        let drafts = (layout.n_draft > 0).then(Drafts::new);
        Ok(Stream { cache, recurrent, log: TokenLog::new(layout.n_log), is_exact: true, drafts })
    }

    pub fn model(&self) -> &Model {
        &self.model
    }
    pub fn kernels(&self) -> Kernels {
        self.machine.kernels
    }
    /// What was measured when kernels were chosen.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }
    pub fn n_threads(&self) -> usize {
        self.machine.pool.n_threads()
    }
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// Takes in tokens, no more than go `together`, and gives the wanted logits after them, `[rows][n_vocab]`.
    pub fn prefill(&mut self, stream: &mut Stream, tokens: &[u32], wanted: Logits) -> Result<&[f32]> {
        stream.take_down(tokens);
        forward(&self.model, &mut self.machine, [stream.lane(tokens)], wanted)
    }

    /// One token into each of some streams, in one pass: the weights are read once for all of them. The logits after each,
    /// `[streams][n_vocab]`, are those that it would have alone.
    pub fn step_all<'s>(&mut self, streams: impl Iterator<Item = (&'s mut Stream, &'s u32)>) -> Result<&[f32]> {
        let lanes = streams.map(|(stream, token)| {
            stream.take_down(std::slice::from_ref(token));
            stream.lane(std::slice::from_ref(token))
        });
        forward(&self.model, &mut self.machine, lanes, Logits::All)
    }

    /// Keeps the first `n_kept` tokens of a stream, and lays the runs that `Stream::runs` found where `Stream::adopt` takes them in, once
    /// the tokens before each have been read. What comes of them is not what reading would give.
    pub fn move_runs(&mut self, stream: &mut Stream, n_kept: usize, runs: &Runs) {
        stream.cache.move_runs(n_kept, runs.all(), &mut self.machine.scratch.cache[0], &self.model.ropes);
        stream.log.truncate(n_kept);
        stream.is_exact = false;
    }

    /// What restoring a stream needs beside it: the logits after its last token, `[n_vocab]`, and room to sort entries.
    pub fn restoring(&mut self) -> (&mut [f32], &mut KvScratch) {
        let Scratch { logits, cache, .. } = &mut self.machine.scratch;
        (&mut logits[..self.model.config.n_vocab], &mut cache[0])
    }

    /// The logits of the latest pass, or those that were restored, `[n_vocab]`.
    pub fn logits(&self) -> &[f32] {
        self.logits_of(0)
    }

    /// How many of `n` tokens may go into a stream as one batch now.
    pub fn together(&self, stream: &Stream, n: usize) -> usize {
        stream.cache.together(n.min(self.n_batch))
    }
}

impl Stream {
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }
    /// Tokens taken in so far, whatever became of them.
    pub fn n_past(&self) -> u64 {
        self.log.n()
    }
    /// The first of them, as many as are kept as they are (`SessionParams::n_log`).
    pub fn first_tokens(&self) -> &[u32] {
        self.log.tokens()
    }
    /// Whether everything is as if the stream had been read from its start.
    pub fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// What drafts came to since `begin_drafts`.
    pub fn draft_counts(&self) -> DraftCounts {
        self.drafts.as_ref().map_or_else(DraftCounts::default, Drafts::counts)
    }
    /// Another answer begins.
    pub fn begin_drafts(&mut self) {
        self.drafts.iter_mut().for_each(Drafts::begin);
    }

    /// Forgets everything; the memory stays.
    pub fn clear(&mut self) {
        self.cache.clear();
        self.recurrent.iter_mut().for_each(RecurrentState::clear);
        self.log.clear();
        self.drafts.iter_mut().for_each(Drafts::clear);
        self.is_exact = true;
    }

    /// What of a prompt need not be read again. At least its last token is read, for the logits after it.
    pub fn prefix(&self, prompt: &[u32]) -> Prefix {
        let (common, n_past) = (self.log.common(prompt), self.log.n() as usize);
        if common.is_all && n_past < prompt.len() {
            return Prefix { n_cached: n_past, n_common: n_past };
        }
        let n = common.n.min(prompt.len().saturating_sub(1));
        let n_cached = if self.cannot_rewind(n as u64).is_none() { n } else { 0 };
        Prefix { n_cached, n_common: common.n }
    }

    /// How many of the first `n_cached` of a prompt's `n_prompt` tokens are better kept than read again: a rewind that the policy does not
    /// forget leaves the stream inexact, and a few tokens, such as those with which every conversation begins, are not worth that. A
    /// short prompt that is asked again is.
    pub fn worth_keeping(&self, n_cached: usize, n_prompt: usize) -> usize {
        let is_rewind = (n_cached as u64) < self.log.n();
        let is_few = n_cached < FEW_TOKENS.min(n_prompt / 2);
        if is_rewind && is_few && !self.cache.rewinds_exactly() { 0 } else { n_cached }
    }

    /// Makes the stream hold the first `n_cached` tokens of a prompt, as `prefix` found them, and nothing else.
    pub fn keep(&mut self, n_cached: usize) {
        if n_cached == 0 {
            self.clear();
        } else if (n_cached as u64) < self.log.n() {
            self.is_exact &= self.cache.rewinds_exactly();
            self.rewind(n_cached as u64);
        }
    }

    /// Why the stream cannot be taken back to its first `n` tokens as if the others had never come; `None`: it can.
    pub fn cannot_rewind(&self, n: u64) -> Option<&'static str> {
        match &self.recurrent {
            Some(state) if n < self.log.n() => Some(state.why_no_rewind()),
            _ if n > self.log.tokens().len() as u64 && n < self.log.n() => Some("its tokens are not all on record"),
            _ => self.cache.cannot_rewind(n),
        }
    }

    /// The runs of a prompt that can be moved behind the `n_kept` tokens that it keeps, of at least `n_least` tokens; none where that
    /// would not be sound.
    pub fn runs(&self, prompt: &[u32], n_kept: usize, n_least: usize) -> Runs {
        let is_sound = n_least > 0
            && n_kept > 0
            && self.recurrent.is_none()
            && self.log.is_whole()
            && self.cache.cannot_move(n_kept, prompt.len()).is_none();
        if is_sound { Runs::find(self.log.tokens(), prompt, n_kept, n_least) } else { Runs::default() }
    }

    /// Takes in the tokens of a run that `Engine::move_runs` has laid behind the latest one.
    pub fn adopt(&mut self, tokens: &[u32]) {
        self.cache.take_moved(tokens.len());
        self.take_down(tokens);
    }

    /// Tokens that are taken in.
    fn take_down(&mut self, tokens: &[u32]) {
        self.log.push(tokens);
        self.drafts.iter_mut().for_each(|drafts| drafts.push(tokens));
    }

    /// Forgets all but the first `n` tokens, where nothing speaks against it.
    fn rewind(&mut self, n: u64) {
        assert!(self.cannot_rewind(n).is_none());
        self.drafts.iter_mut().for_each(|drafts| drafts.forget((self.log.n() - n) as usize));
        self.cache.rewind(n);
        self.log.truncate(n as usize);
    }

    /// Never evicts the first `n` tokens, where as many can stay beside the recent ones; false: they cannot, and nothing has changed.
    pub fn pin(&mut self, n: usize) -> bool {
        self.cache.pin(n)
    }

    /// Sessions of it leave its past in files of their own, in this folder.
    pub fn keep_past_in(&mut self, pasts: Arc<dyn Pasts>) {
        self.cache.keep_past_in(pasts);
    }

    /// All that is saved of it and restored, but for the file of its past, which is kept then. Whoever fills it says so by `resume`, or
    /// clears the stream.
    pub fn state_mut(&mut self) -> StreamState<'_> {
        assert!(self.cache.past().is_none_or(Past::is_kept), "the file of its past goes with the process");
        let (n_first, log_hash) = (self.log.tokens().len(), self.log.hash());
        StreamState {
            cache: &mut self.cache,
            recurrent: self.recurrent.as_mut().map_or(&mut [], RecurrentState::numbers_mut),
            first_tokens: self.log.room_mut(),
            n_first,
            log_hash,
            is_exact: self.is_exact,
        }
    }

    /// Goes on as the stream whose state was filled in.
    pub fn resume(&mut self, n_first: usize, log_hash: u128, is_exact: bool) {
        let n_past = self.cache.counts().n_past().expect("a cache holds what it was checked to hold");
        self.log.restore(n_first, n_past, log_hash);
        if let Some(drafts) = &mut self.drafts {
            drafts.clear();
            drafts.push(self.log.tokens());
        }
        self.is_exact = is_exact;
    }

    fn lane<'a>(&'a mut self, tokens: &'a [u32]) -> Lane<'a> {
        Lane { cache: &mut self.cache, recurrent: self.recurrent.as_mut(), tokens, undo: None }
    }
}

/// An engine with one stream.
pub struct Session {
    engine: Engine,
    stream: Stream,
}

impl Session {
    /// Takes all the memory there will be: what `Layout::plan` showed, which has been checked by the caller.
    pub fn new(model: Model, layout: &Layout) -> Result<Session> {
        let engine = Engine::new(model, layout)?;
        let stream = engine.stream(layout)?;
        Ok(Session { engine, stream })
    }

    pub fn model(&self) -> &Model {
        &self.engine.model
    }
    pub fn cache(&self) -> &KvCache {
        &self.stream.cache
    }
    pub fn kernels(&self) -> Kernels {
        self.engine.kernels()
    }
    pub fn choice(&self) -> &Choice {
        self.engine.choice()
    }
    /// From the next pass on, others do what the choice left to some: for measuring. They are made of those of the session.
    pub fn set_kernels(&mut self, kernels: Kernels) {
        self.engine.machine.set_kernels(kernels);
    }
    pub fn n_threads(&self) -> usize {
        self.engine.n_threads()
    }
    pub fn n_batch(&self) -> usize {
        self.engine.n_batch
    }
    pub fn n_logits(&self) -> usize {
        self.engine.n_logits
    }
    /// Tokens taken in so far, whatever became of them.
    pub fn n_past(&self) -> u64 {
        self.stream.log.n()
    }
    /// The logits of the latest pass, or those that were restored, `[n_vocab]`.
    pub fn logits(&self) -> &[f32] {
        self.engine.logits()
    }
    /// Whether steps guess what follows.
    pub fn guesses(&self) -> bool {
        self.stream.drafts.is_some()
    }
    /// What drafts came to.
    pub fn draft_counts(&self) -> DraftCounts {
        self.stream.draft_counts()
    }
    /// What may follow is known to be like these tokens: for measuring.
    pub fn expect(&mut self, tokens: &[u32]) {
        self.stream.drafts.iter_mut().for_each(|drafts| drafts.push(tokens));
    }
    /// The steps that follow on the latest pass.
    pub fn steps(&mut self) -> Steps<'_> {
        Steps::new(&mut self.engine, &mut self.stream)
    }
    /// The engine and its stream, for those who need both.
    pub fn parts(&mut self) -> (&mut Engine, &mut Stream) {
        (&mut self.engine, &mut self.stream)
    }

    /// Forgets the stream; the memory stays.
    pub fn clear(&mut self) {
        self.stream.clear();
    }

    /// Evicts at once until `n_keep` tokens are left, by `rule` and no longer by that of the stream; the first `n_whole` layers keep all.
    pub fn compress(&mut self, n_keep: usize, n_whole: usize, rule: Rule) {
        self.stream.cache.compress(n_keep, n_whole, rule, &mut self.engine.machine.scratch.cache[0]);
    }

    /// How many of `n` tokens may go in as one batch now.
    pub fn together(&self, n: usize) -> usize {
        self.engine.together(&self.stream, n)
    }

    /// Takes in a prompt, batch by batch, and returns the logits after its last token, `[n_vocab]`. `go_on` is told the
    /// number of tokens done after each batch and may stop by returning false: then there are no logits.
    pub fn prefill(&mut self, tokens: &[u32], mut go_on: impl FnMut(usize) -> bool) -> Result<Option<&[f32]>> {
        if tokens.is_empty() {
            return Err(Error::stopped("the prompt is empty: 0 tokens to start from; give some text"));
        }
        let mut done = 0;
        loop {
            let n = self.together(tokens.len() - done);
            let wanted = if done + n == tokens.len() { Logits::Last } else { Logits::None };
            self.engine.prefill(&mut self.stream, &tokens[done..done + n], wanted)?;
            done += n;
            if !go_on(done) {
                return Ok(None);
            }
            if done == tokens.len() {
                return Ok(Some(&self.engine.machine.scratch.logits[..self.engine.model.config.n_vocab]));
            }
        }
    }

    /// One token in, the logits after it out, `[n_vocab]`.
    pub fn step(&mut self, token: u32) -> Result<&[f32]> {
        self.engine.prefill(&mut self.stream, &[token], Logits::Last)
    }

    /// At most `n_logits` tokens in, and no more than go `together`, the logits after each of them out, `[tokens.len()][n_vocab]`.
    pub fn prefill_all(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        assert!(tokens.len() <= self.engine.n_logits);
        self.engine.prefill(&mut self.stream, tokens, Logits::All)
    }

    /// As many tokens in as go `together`; `watch` sees the queries and the cache of each layer (`forward_watched`).
    pub fn prefill_watched(&mut self, tokens: &[u32], watch: impl FnMut(AttnLayer, &KvCache, &[f32])) -> Result<()> {
        let Engine { model, machine, n_batch, .. } = &mut self.engine;
        assert!(tokens.len() <= *n_batch);
        self.stream.take_down(tokens);
        forward_watched(model, machine, [self.stream.lane(tokens)], Logits::None, watch)?;
        Ok(())
    }
}
