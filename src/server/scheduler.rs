//! The engine thread: which stream takes which request, and which tokens go through the next pass. It allocates nothing once it runs.
//!
//! A round is a batch of one prompt, then a token of every stream that generates, in one pass: so whoever generates waits for one batch
//! at most, and the weights are read once for all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::kv::KvCache;
use crate::model::forward::{Logits, Model};
use crate::session::{Engine, Layout};
use crate::text::Tokenizer;

use super::desk::{ARENA_BUCKETS, ARENA_HEADS, Desk, Errand, ErrandDone, ErrandResult, Finish, Request};
use super::keeper::Keeper;
use super::seat::{Seat, SeatSizes};

/// A prefix is worth a stream's that holds another conversation if it has so many tokens, or this share of the prompt.
const WORTHY_TOKENS: usize = 64;
const WORTHY_SHARE: usize = 10;

const NO_FOLDER: &str = "this server keeps no sessions: it was started without a folder for them";

/// How long the thread sleeps at most.
const NAP: Duration = Duration::from_millis(250);

pub struct Scheduler {
    engine: Engine,
    seats: Vec<Seat>,
    /// Where sessions are kept, if they are.
    keeper: Option<Keeper>,
    desk: Arc<Desk>,
    tokenizer: Arc<Tokenizer>,
    /// Tokens that a stream may take under `--overflow error`; without it, no end.
    n_ctx: usize,
    /// The longest that a token, and what is held back before it, may be as text.
    room_bytes: usize,
    /// The seat whose prompt was read last.
    turn: usize,
}

impl Scheduler {
    pub fn new(
        engine: Engine,
        layout: &Layout,
        sizes: &SeatSizes,
        desk: Arc<Desk>,
        tokenizer: Arc<Tokenizer>,
        n_ctx: Option<usize>,
    ) -> Result<Scheduler> {
        let seats = (0..layout.n_streams).map(|_| Seat::new(&engine, layout, sizes)).collect::<Result<Vec<_>>>()?;
        let n_ctx = n_ctx.unwrap_or(usize::MAX);
        let scheduler = Scheduler { engine, seats, keeper: None, desk, tokenizer, n_ctx, room_bytes: sizes.held_bytes, turn: 0 };
        scheduler.tell_status();
        Ok(scheduler)
    }

    /// Keeps sessions.
    pub fn keep(&mut self, keeper: Keeper) {
        if let Some(pasts) = keeper.pasts() {
            self.seats.iter_mut().for_each(|seat| seat.stream.keep_past_in(pasts.clone()));
        }
        self.keeper = Some(keeper);
    }

    /// A stream's cache, by which sessions are told apart.
    pub fn cache(&self) -> &KvCache {
        self.seats[0].stream.cache()
    }

    pub fn model(&self) -> &Model {
        self.engine.model()
    }

    /// Works until `desk` is stopped and nothing runs any more, or `is_over` says so. `alive` is called between passes.
    pub fn run(&mut self, mut alive: impl FnMut(), mut is_over: impl FnMut() -> bool) {
        loop {
            alive();
            self.run_errands();
            self.give_up();
            let is_stopping = self.desk.is_stopping();
            self.admit(is_stopping);
            self.show_arena();
            let is_idle = self.seats.iter().all(Seat::is_idle);
            if is_over() || is_stopping && is_idle {
                break;
            }
            let (has_read, has_decoded) = (self.read(), self.decode());
            self.tell_status();
            self.tell_ends();
            if let Some(keeper) = self.keeper.as_mut().filter(|_| !has_read && !has_decoded) {
                keeper.look_around(&mut self.seats, &self.tokenizer);
            }
            if !has_read && !has_decoded {
                // Nothing to do, or all readers are slow.
                self.desk.wait(if is_idle { NAP } else { Duration::from_millis(5) });
            }
        }
        for seat in &mut self.seats {
            seat.end(Finish::Error, Some("the server is stopping"));
        }
        self.admit(true);
        self.tell_status();
        self.tell_ends();
        if let Some(keeper) = &mut self.keeper {
            keeper.put_all_away(&mut self.seats, &self.tokenizer);
        }
        self.tell_status();
    }

    /// Streams whose client has gone are free.
    fn give_up(&mut self) {
        for seat in &mut self.seats {
            if seat.running.as_ref().is_some_and(|running| running.job.is_given_up()) {
                seat.give_up();
            }
        }
    }

    /// Gives streams to those that wait; where the server stops, only the bad news.
    fn admit(&mut self, is_stopping: bool) {
        while let Some((job, at)) = self.desk.next_job(|request| if is_stopping { Some(0) } else { choose(&self.seats, request) })
        {
            if is_stopping {
                job.tell(|out| (out.finish, out.error) = (Some(Finish::Error), Some("the server is stopping")));
                continue;
            }
            log::debug!("stream {at} takes a request of {} tokens after {:.1?}", job.request().prompt.len(), job.waited());
            // One that ended as it began makes room for the next at once.
            self.seats[at].tell_end();
            if let Some(keeper) = &mut self.keeper {
                keeper.prepare(&mut self.seats[at], job.request(), &mut self.engine, &self.tokenizer);
            }
            self.seats[at].begin(job, at, &self.tokenizer, &mut self.engine);
            let cached = self.seats[at].progress().map_or(0, |progress| progress.n_cached);
            self.desk.tell_status(|streams, totals| {
                streams[at] = self.seats[at].status();
                totals.prompt_tokens_cached += cached as u64;
            });
        }
    }

    /// Reads a batch of one prompt; prompts take turns. False: there is none.
    fn read(&mut self) -> bool {
        let n_seats = self.seats.len();
        let waiting = |i: &usize| self.seats[*i].unread().is_some();
        let Some(at) = (1..=n_seats).map(|i| (self.turn + i) % n_seats).find(waiting) else { return false };
        self.turn = at;
        let Scheduler { engine, seats, tokenizer, n_ctx, desk, keeper, .. } = self;
        let Seat { stream, running: Some(running), .. } = &mut seats[at] else { return false };
        let (tokens, began) = (running.to_read(), Instant::now());
        let n = engine.together(stream, tokens.len());
        let wanted = if n == tokens.len() && running.reads_last() { Logits::Last } else { Logits::None };
        match engine.prefill(stream, &tokens[..n], wanted) {
            Ok(logits) => {
                let seat = &mut seats[at];
                seat.bound.untried = None;
                seat.has_read(n, tokenizer);
                if let (Some(keeper), Some(system)) = (keeper, seat.system().cloned())
                    && seat.stream.n_past() == system.n_tokens as u64
                {
                    keeper.after_system(seat, &system);
                }
                if wanted == Logits::Last {
                    seat.sample(logits, tokenizer, *n_ctx);
                }
                let is_token = wanted == Logits::Last && seats[at].progress().is_none_or(|progress| progress.n_generated > 0);
                desk.tell_status(|_, totals| {
                    totals.prompt_tokens += n as u64;
                    totals.prefill += began.elapsed();
                    totals.n_decode += 1;
                    totals.n_busy += 1;
                    totals.generated_tokens += u64::from(is_token);
                });
            }
            Err(error) => self.fail(&error),
        }
        true
    }

    /// A token into every stream that generates, and the next out of each. False: there is none.
    fn decode(&mut self) -> bool {
        let Scheduler { engine, seats, tokenizer, n_ctx, desk, room_bytes, .. } = self;
        let began = Instant::now();
        let mut takes_part = [false; crate::model::forward::MAX_LANES];
        for (seat, takes_part) in seats.iter().zip(&mut takes_part) {
            *takes_part = seat.is_decoding(*room_bytes);
        }
        let n = takes_part.iter().filter(|part| **part).count();
        match n {
            0 => return false,
            1 => return self.decode_alone(takes_part.iter().position(|part| *part).unwrap_or(0)),
            _ => {}
        }
        let lanes = seats.iter_mut().zip(&takes_part).filter(|(_, part)| **part).filter_map(|(seat, _)| {
            let Seat { stream, running, .. } = seat;
            running.as_ref().map(|running| (stream, &running.next))
        });
        match engine.step_all(lanes) {
            Ok(logits) => {
                let rows = logits.chunks_exact(logits.len() / n);
                for ((seat, _), logits) in seats.iter_mut().zip(&takes_part).filter(|(_, part)| **part).zip(rows) {
                    seat.has_taken(tokenizer);
                    seat.sample(logits, tokenizer, *n_ctx);
                }
                desk.tell_status(|_, totals| {
                    totals.generated_tokens += n as u64;
                    totals.decode += began.elapsed();
                    totals.n_decode += 1;
                    totals.n_busy += n as u64;
                });
            }
            Err(error) => self.fail(&error),
        }
        true
    }

    /// The next token into the one stream that generates, and what is guessed to follow it; then as many out of it as were right, and one.
    /// Where several streams generate nothing is guessed: they share the weights as it is, and a pass is the longer for each guess.
    fn decode_alone(&mut self, at: usize) -> bool {
        let Scheduler { engine, seats, tokenizer, n_ctx, desk, room_bytes, .. } = self;
        let (seat, began) = (&mut seats[at], Instant::now());
        let Some((token, most)) = seat.next() else { return false };
        if let Err(error) = engine.step(&mut seat.stream, token, most) {
            self.fail(&error);
            return true;
        }
        let n_guessed = engine.n_guessed();
        seat.has_guessed(n_guessed);
        let mut n = 0;
        loop {
            seat.has_taken(tokenizer);
            seat.sample(engine.logits_of(n), tokenizer, *n_ctx);
            n += 1;
            // What no room is left for, or comes otherwise than guessed, is taken in the next time.
            if !seat.is_decoding(*room_bytes) || !seat.was_guessed(engine) {
                break;
            }
        }
        engine.settle(&mut seat.stream);
        desk.tell_status(|_, totals| {
            totals.generated_tokens += n as u64;
            totals.decode += began.elapsed();
            totals.n_decode += 1;
            totals.n_busy += 1;
            totals.n_drafts += u64::from(n_guessed > 0);
            totals.draft_tokens += n_guessed as u64;
            totals.draft_accepted += n as u64 - 1;
        });
        true
    }

    /// A pass came to nothing: the weights are damaged, and no stream can be trusted.
    fn fail(&mut self, error: &crate::error::Error) {
        log::error!("{error}");
        for seat in &mut self.seats {
            seat.end(Finish::Error, Some("the model cannot be computed: see the server's log"));
            seat.tell_end();
            seat.clear();
            if let (Some(keeper), Some(name)) = (&mut self.keeper, seat.bound.untried.take()) {
                keeper.reject(&name);
            }
            seat.bound = seat.bound.of_empty();
        }
    }

    fn run_errands(&mut self) {
        while let Some((errand, sender)) = self.desk.next_errand() {
            let _ = sender.send(self.run_errand(&errand));
        }
    }

    fn run_errand(&mut self, errand: &Errand) -> ErrandResult {
        let began = Instant::now();
        match errand {
            Errand::Erase { stream } => {
                let seat = self.idle(*stream)?;
                let n_tokens = seat.stream.n_past() as usize;
                seat.clear();
                seat.bound = seat.bound.of_empty();
                Ok(ErrandDone { n_tokens, n_bytes: 0, took: began.elapsed() })
            }
            Errand::Save { stream, name } => {
                self.idle(*stream)?;
                let keeper = self.keeper.as_mut().ok_or(NO_FOLDER)?;
                keeper.save(name, &mut self.seats[*stream])
            }
            Errand::Restore { stream, name } => {
                self.idle(*stream)?;
                let keeper = self.keeper.as_mut().ok_or(NO_FOLDER)?;
                keeper.restore(name, &mut self.seats[*stream], &mut self.engine, &self.tokenizer)
            }
        }
    }

    fn idle(&mut self, stream: usize) -> std::result::Result<&mut Seat, String> {
        let n = self.seats.len();
        let seat = self.seats.get_mut(stream).ok_or_else(|| format!("there is no stream {stream}, there are {n}"))?;
        if seat.is_idle() { Ok(seat) } else { Err(format!("stream {stream} is at work: try again when it is idle")) }
    }

    fn tell_status(&self) {
        self.desk.tell_status(|streams, totals| {
            for (seat, status) in self.seats.iter().zip(streams) {
                *status = seat.status();
                totals.n_tokens_max = totals.n_tokens_max.max(status.n_past);
            }
        });
    }

    fn tell_ends(&mut self) {
        self.seats.iter_mut().for_each(Seat::tell_end);
    }

    /// What the heads of a stream hold, for whoever looks at the page.
    fn show_arena(&self) {
        let Some(seat) = self.desk.arena_wanted().map(|i| i.min(self.seats.len() - 1)) else { return };
        let cache = self.seats[seat].stream.cache();
        let shape = *cache.shape();
        let apart = shape.n_heads().div_ceil(ARENA_HEADS);
        self.desk.tell_arena(|view| {
            view.heads.clear();
            view.kept.clear();
            for (layer, head) in shape.all_heads().step_by(apart) {
                let at = view.kept.len();
                view.heads.push((layer.0 as u16, head.0 as u16));
                view.kept.resize(at + ARENA_BUCKETS, 0);
                let next = u64::from(cache.next_pos()).max(1);
                for &pos in cache.kept(layer, head) {
                    view.kept[at + (u64::from(pos) * ARENA_BUCKETS as u64 / next) as usize] += 1;
                }
            }
            (view.stream, view.next_pos, view.n_live, view.n_slot) = (seat, cache.next_pos(), cache.n_live(), cache.n_slot());
            (view.policy, view.types, view.bytes) =
                (cache.policy().name(), [shape.k_type.name(), shape.v_type.name()], cache.arena_bytes());
            (view.n_evicted, view.n_pinned, view.n_recent) = (cache.n_evicted(), cache.n_pinned(), cache.n_recent());
        });
    }
}

/// The idle stream that a request should take: the one it names, the one that holds most of its prompt if that is worth anything, else
/// the one that was idle longest.
fn choose(seats: &[Seat], request: &Request) -> Option<usize> {
    if let Some(at) = request.stream {
        return seats.get(at).filter(|seat| seat.is_idle()).map(|_| at);
    }
    // A conversation has one stream: who names it waits for that.
    if let Some(name) = &request.session
        && let Some(at) = seats.iter().position(|seat| seat.bound.name.is_some_and(|bound| bound.as_str() == name))
    {
        return Some(at).filter(|at| seats[*at].is_idle());
    }
    let idle = || seats.iter().enumerate().filter(|(_, seat)| seat.is_idle());
    let (at, cached) =
        idle().map(|(i, seat)| (i, seat.n_spared(request))).max_by_key(|&(i, cached)| (cached, std::cmp::Reverse(i)))?;
    if cached >= WORTHY_TOKENS || cached > 0 && cached * WORTHY_SHARE >= request.prompt.len() {
        return Some(at);
    }
    idle().min_by_key(|(_, seat)| (seat.stream.n_past() > 0, seat.last_used)).map(|(i, _)| i)
}
