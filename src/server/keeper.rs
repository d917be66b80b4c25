//! Sessions of the server: what streams hold, kept in a folder.
//!
//! A card wears, so little is written: the state after a system's turn, once its text has been used twice; a conversation that its client
//! named, when its stream is idle for a while, is given to another, or the server stops; what a client asks for. Never for each token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::session::Engine;
use crate::session_file::{Failure, Fingerprint, Name, Shelf};
use crate::text::Tokenizer;

use super::desk::{Desk, ErrandDone, SystemTurn};
use super::seat::{Bound, Seat};

/// A conversation that goes on is saved so often at most.
const SAVE_EVERY: Duration = Duration::from_secs(600);

pub struct Keeper {
    shelf: Shelf,
    fingerprint: Fingerprint,
    /// How long a named conversation must be idle.
    save_after: Duration,
    desk: Arc<Desk>,
}

impl Keeper {
    pub fn new(shelf: Shelf, fingerprint: Fingerprint, save_after: Duration, desk: Arc<Desk>) -> Keeper {
        let keeper = Keeper { shelf, fingerprint, save_after, desk };
        keeper.tell(0, 0);
        keeper
    }

    /// Private memory that it takes.
    pub const fn plan_bytes() -> usize {
        Shelf::plan_bytes() + size_of::<Keeper>()
    }

    fn tell(&self, saved: u64, failed: u64) {
        let (n_files, n_bytes) = (self.shelf.sessions().len() as u64, self.shelf.used_bytes());
        self.desk.tell_status(|_, totals| {
            (totals.sessions_files, totals.sessions_bytes) = (n_files, n_bytes);
            totals.sessions_saved += saved;
            totals.sessions_failed += failed;
        });
    }

    fn save_as(&mut self, name: &Name, seat: &mut Seat, text: &[u8]) -> Result<ErrandDone, Failure> {
        let (began, n_tokens) = (Instant::now(), seat.stream.n_past() as usize);
        let generator = seat.rng_state();
        let saved = self.shelf.save_stream(name, &self.fingerprint, &mut seat.stream, None, (text, generator));
        self.tell(u64::from(saved.is_ok()), u64::from(saved.is_err()));
        saved.map(|n_bytes| ErrandDone { n_tokens, n_bytes, took: began.elapsed() })
    }

    /// A client asks to save what a stream holds.
    pub fn save(&mut self, name: &str, seat: &mut Seat) -> Result<ErrandDone, String> {
        let name = Name::new(name)?;
        self.save_as(&name, seat, &[]).map_err(|failure| failure.to_string())
    }

    /// A client asks to go on with what was saved. A stream that cannot is empty afterwards.
    pub fn restore(
        &mut self,
        name: &str,
        seat: &mut Seat,
        engine: &mut Engine,
        tokenizer: &Tokenizer,
    ) -> Result<ErrandDone, String> {
        let (name, began) = (Name::new(name)?, Instant::now());
        let restored = self.shelf.restore_stream(&name, &self.fingerprint, engine, &mut seat.stream, None);
        seat.say_anew(tokenizer);
        seat.bound = Bound::default();
        self.tell(0, u64::from(restored.is_err()));
        let resumed = restored.map_err(|failure| failure.to_string())?;
        Ok(ErrandDone { n_tokens: resumed.n_past as usize, n_bytes: resumed.file_bytes, took: began.elapsed() })
    }

    /// A request is about to begin on an idle stream: whose conversation that was is saved, and the one that the request names, or the
    /// state after its system's turn, is brought, where the stream does not hold it.
    pub fn prepare(&mut self, seat: &mut Seat, request: &super::desk::Request, engine: &mut Engine, tokenizer: &Tokenizer) {
        let name = request.session.as_deref().and_then(|name| Name::new(name).ok());
        if seat.bound.name != name {
            self.put_away(seat);
            seat.bound = Bound { name, saved: None };
            if let Some(name) = name.filter(|name| self.shelf.has(name, &self.fingerprint)) {
                let restored = self.shelf.restore_stream(&name, &self.fingerprint, engine, &mut seat.stream, None);
                self.came_of(&name, restored.map(|resumed| resumed.n_past), seat, tokenizer);
            } else if name.is_some() && seat.stream.n_past() > 0 {
                // What another conversation left is none of this one's.
                seat.clear();
            }
        }
        let n_held = seat.n_spared(request);
        if let Some(system) = request.system.as_ref().filter(|system| request.reuse_prefix && system.n_tokens > n_held) {
            let name = Name::of_text(&system.text);
            if self.shelf.has(&name, &self.fingerprint) {
                let restored = self.shelf.restore_text_stream(&system.text, &self.fingerprint, engine, &mut seat.stream);
                self.came_of(&name, restored.map(|resumed| resumed.n_past), seat, tokenizer);
            }
        }
    }

    fn came_of(&mut self, name: &Name, restored: Result<u64, Failure>, seat: &mut Seat, tokenizer: &Tokenizer) {
        match restored {
            Ok(n_past) => {
                log::debug!("session '{name}' goes on with {n_past} tokens");
                seat.bound.saved = Some((n_past, Instant::now()));
                self.tell(0, 0);
            }
            Err(failure) => {
                log::warn!("{failure}");
                self.tell(0, 1);
            }
        }
        seat.say_anew(tokenizer);
    }

    /// A stream has read just the system's turn of its request.
    pub fn after_system(&mut self, seat: &mut Seat, system: &SystemTurn) {
        if self.shelf.is_worth_saving(&system.text, &self.fingerprint) {
            match self.save_as(&Name::of_text(&system.text), seat, &system.text) {
                Ok(done) => log::info!("the {} tokens of a system's turn are saved in {} bytes", done.n_tokens, done.n_bytes),
                Err(failure) => log::warn!("{failure}"),
            }
        }
    }

    /// Saves a named conversation that has gone on since it was saved.
    fn put_away(&mut self, seat: &mut Seat) {
        let (Some(name), n_past) = (seat.bound.name, seat.stream.n_past()) else { return };
        if n_past > 0 && seat.bound.saved.is_none_or(|(n, _)| n != n_past) {
            if let Err(failure) = self.save_as(&name, seat, &[]) {
                log::warn!("{failure}");
            }
            seat.bound.saved = Some((n_past, Instant::now()));
        }
    }

    /// Between requests: conversations that have been idle for long enough.
    pub fn look_around(&mut self, seats: &mut [Seat]) {
        for seat in seats {
            let is_at_rest = seat.is_idle() && seat.last_used.elapsed() >= self.save_after;
            if is_at_rest && seat.bound.saved.is_none_or(|(_, when)| when.elapsed() >= SAVE_EVERY) {
                self.put_away(seat);
            }
        }
    }

    /// Before the process ends.
    pub fn put_all_away(&mut self, seats: &mut [Seat]) {
        seats.iter_mut().for_each(|seat| self.put_away(seat));
    }
}
