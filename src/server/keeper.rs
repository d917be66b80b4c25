//! Sessions of the server: what streams hold, kept in a folder.
//!
//! A card wears, so little is written: the state after a system's turn, once its text has been used twice; a conversation when its stream
//! is idle for a while or the server stops, and where its client named it also when the stream is given to another; what a client asks
//! for. Never for each token. A conversation without a name is found again by its text, and saved in place of what it was before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kv::past::disk::Pasts;
use crate::mem::arena::{Arena, Buf};
use crate::model::forward::{MAX_LANES, Model};
use crate::session::{Engine, Layout};
use crate::session_file::format::HEAD_BYTES;
use crate::session_file::{Failure, Fingerprint, Name, Shelf, Why};
use crate::text::Tokenizer;

use super::desk::{Desk, ErrandDone, SystemTurn};
use super::seat::{Bound, Seat};

/// A conversation that goes on is saved so often at most.
const SAVE_EVERY: Duration = Duration::from_secs(600);
/// Conversations without a name that have fewer tokens are as soon read again.
const LEAST_TOKENS: u64 = 64;
/// The longest text of a conversation by which it is found.
const TEXT_BYTES: usize = 256 << 10;
/// At the end of the process no save is begun later than this, of a conversation that has a name and of one that has none. Whoever
/// stopped it is asked for that time (`notify`).
const LEAVING_NAMED: Duration = Duration::from_secs(60);
const LEAVING: Duration = Duration::from_secs(1);

pub struct Keeper {
    shelf: Shelf,
    fingerprint: Fingerprint,
    /// How long a conversation must be idle.
    save_after: Duration,
    /// For the text of a conversation.
    text: Buf<u8>,
    desk: Arc<Desk>,
}

impl Keeper {
    /// Fails where the system has no memory.
    pub fn new(shelf: Shelf, fingerprint: Fingerprint, save_after: Duration, desk: Arc<Desk>) -> std::io::Result<Keeper> {
        let text = Arena::fill(|arena| arena.carve(TEXT_BYTES))?;
        let keeper = Keeper { shelf, fingerprint, save_after, text, desk };
        keeper.tell(0, keeper.shelf.n_wrong() as u64);
        Ok(keeper)
    }

    /// What a session takes on the disk at most, with its past.
    pub fn most_bytes(layout: &Layout, model: &Model) -> u64 {
        let past = layout.past.as_ref().map_or(0, |(past, _)| past.taken_bytes(past.n_tile));
        layout.session_bytes(model) + (HEAD_BYTES + TEXT_BYTES) as u64 + past
    }

    /// Private memory that it takes.
    pub const fn plan_bytes() -> usize {
        Shelf::plan_bytes() + TEXT_BYTES + size_of::<Keeper>()
    }

    /// Where the pasts of streams are left, if they have any.
    pub fn pasts(&self) -> Option<&Arc<dyn Pasts>> {
        self.shelf.pasts()
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
        if let Some(mark) = self.shelf.last_put().filter(|_| seat.bound.name == Some(*name)) {
            seat.bound.stands = Some(mark);
        }
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
            seat.bound = Bound { name, ..Bound::default() };
            if let Some(name) = name {
                self.bring_named(&name, seat, engine, tokenizer);
            }
        } else if name.is_none() && (seat.prefix(request).0.n_cached as u64) < seat.stream.n_past() {
            // Another conversation; what was saved of the one before stays.
            seat.bound = Bound { saved: seat.bound.saved.map(|(_, when)| (0, when)), ..Bound::default() };
        }
        if request.reuse_prefix {
            self.bring(seat, request, engine, tokenizer);
        }
    }

    /// Brings the conversation of this name. One that cannot go on here begins anew.
    fn bring_named(&mut self, name: &Name, seat: &mut Seat, engine: &mut Engine, tokenizer: &Tokenizer) {
        // The folder says what there is: another process may have saved or removed it since the start.
        seat.bound.stands = self.shelf.mark(name);
        match self.shelf.head(name).map(|head| head.fingerprint.why_not(&self.fingerprint)) {
            Err(Failure { why: Why::Missing, .. }) if !self.shelf.has(name, &self.fingerprint) => {}
            Ok(Some(why)) => {
                log::warn!("session '{name}': {why}; the conversation begins anew, and takes its place when it is saved");
            }
            _ => {
                let restored = self.shelf.restore_stream(name, &self.fingerprint, engine, &mut seat.stream, None);
                if let Err(Failure { why: Why::Past(_) | Why::Busy, .. }) = restored {
                    log::warn!("session '{name}' stays as it is: the conversation begins anew, and is not saved");
                    seat.bound.is_refused = true;
                }
                self.came_of(name, restored.map(|resumed| resumed.n_past), seat, tokenizer);
            }
        }
        if seat.bound.saved.is_none() {
            // What another conversation left is none of this one's.
            seat.clear();
        }
    }

    /// Brings what was saved by itself of the request's prompt, if that is more than the stream spares.
    fn bring(&mut self, seat: &mut Seat, request: &super::desk::Request, engine: &mut Engine, tokenizer: &Tokenizer) {
        let (n_text, _) = fill(&mut self.text, &request.prompt, tokenizer);
        let spared = request.prompt[..seat.n_spared(request).min(request.prompt.len())].iter();
        let n_spared = spared.map(|token| tokenizer.token_bytes(*token, true).len()).sum();
        let Some((name, n)) = self.shelf.longest_of(&self.text[..n_text], n_spared, &self.fingerprint) else { return };
        let restored = self.shelf.restore_text_stream(&self.text[..n], &self.fingerprint, engine, &mut seat.stream);
        let is_whole = restored.is_ok();
        self.came_of(&name, restored.map(|resumed| resumed.n_past), seat, tokenizer);
        // The state after a system's turn is for other conversations too.
        let is_system = request.system.as_ref().is_some_and(|system| n <= system.text.len());
        seat.bound.automatic = Some(name).filter(|_| is_whole && !is_system);
    }

    fn came_of(&mut self, name: &Name, restored: Result<u64, Failure>, seat: &mut Seat, tokenizer: &Tokenizer) {
        match restored {
            Ok(n_past) => {
                log::debug!("session '{name}' goes on with {n_past} tokens");
                seat.bound.saved = Some((n_past, Instant::now()));
                seat.bound.untried = Some(*name).filter(Name::is_automatic);
                self.tell(0, 0);
            }
            Err(failure) => {
                log::warn!("{failure}");
                self.tell(0, 1);
            }
        }
        seat.say_anew(tokenizer);
    }

    /// The first pass of a stream that was restored came to nothing: what it was restored from is not tried again.
    pub fn reject(&mut self, name: &Name) {
        log::warn!("session '{name}' is removed: the stream could not go on from it");
        if let Err(failure) = self.shelf.remove(name) {
            log::warn!("{failure}");
        }
        self.tell(0, 1);
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

    /// The name of a conversation that has gone on since it was saved.
    fn unsaved(seat: &Seat) -> Option<Name> {
        let n_past = seat.stream.n_past();
        let is_new = n_past > 0 && seat.bound.saved.is_none_or(|(n, _)| n != n_past);
        seat.bound.name.filter(|_| is_new && !seat.bound.is_refused)
    }

    /// Saves a named conversation that has gone on since it was saved. False: it has not.
    fn put_away(&mut self, seat: &mut Seat) -> bool {
        let Some(name) = Keeper::unsaved(seat) else { return false };
        if !self.may_save(&name, seat) {
            return true;
        }
        let (n_past, n_before) = (seat.stream.n_past(), seat.bound.saved.map_or(0, |(n, _)| n));
        let saved = self.save_as(&name, seat, &[]);
        // One that failed is tried again.
        seat.bound.saved = Some((if saved.is_ok() { n_past } else { n_before }, Instant::now()));
        if let Err(failure) = saved {
            log::warn!("{failure}");
        }
        true
    }

    /// Looks at what stands under the name: what has come there since this stream began or was saved is nobody's to write over.
    fn may_save(&mut self, name: &Name, seat: &mut Seat) -> bool {
        match (seat.bound.stands, self.shelf.mark(name)) {
            (before, now) if before == now => {}
            (_, None) => log::warn!("session '{name}' has been removed or renamed while it went on: it is saved anew"),
            (_, Some(_)) => {
                log::warn!(
                    "session '{name}' has been replaced while it went on: what is there now stays, and what was said since the last save is \
                     lost when another conversation takes the stream; save it under another name by /slots/ID?action=save"
                );
                seat.bound.is_refused = true;
            }
        }
        !seat.bound.is_refused
    }

    /// Saves a conversation without a name under that of its text, in place of what it was before. False: there is nothing new.
    fn put_aside(&mut self, seat: &mut Seat, tokenizer: &Tokenizer) -> bool {
        let n_past = seat.stream.n_past();
        let is_new = n_past >= LEAST_TOKENS && seat.bound.saved.is_none_or(|(n, _)| n != n_past);
        // By its tokens it is found, so all of them must be on record.
        if seat.bound.name.is_some() || !is_new || seat.stream.first_tokens().len() as u64 != n_past {
            return false;
        }
        let (n_text, is_all) = fill(&mut self.text, seat.stream.first_tokens(), tokenizer);
        let n_before = seat.bound.saved.map_or(0, |(n, _)| n);
        seat.bound.saved = Some((n_past, Instant::now()));
        let name = Name::of_text(&self.text[..n_text]);
        if !is_all || self.shelf.has(&name, &self.fingerprint) {
            return false;
        }
        let (before, text) = (seat.bound.automatic, (&self.text[..n_text], seat.rng_state()));
        let saved = self.shelf.save_text_stream(before.as_ref(), &self.fingerprint, &mut seat.stream, text);
        self.tell(u64::from(saved.is_ok()), u64::from(saved.is_err()));
        match saved {
            Ok(n_bytes) => {
                log::debug!("a conversation of {n_past} tokens is saved in {n_bytes} bytes");
                seat.bound.automatic = Some(name);
            }
            Err(failure) => {
                log::warn!("{failure}");
                seat.bound.saved = Some((n_before, Instant::now()));
            }
        }
        true
    }

    /// Between requests: a conversation that has been idle for long enough. One at a time, for who asks meanwhile waits.
    pub fn look_around(&mut self, seats: &mut [Seat], tokenizer: &Tokenizer) {
        for seat in seats {
            let is_at_rest = seat.is_idle() && seat.last_used.elapsed() >= self.save_after;
            let is_due = is_at_rest && seat.bound.saved.is_none_or(|(_, when)| when.elapsed() >= SAVE_EVERY);
            if is_due && (self.put_away(seat) || self.put_aside(seat, tokenizer)) {
                return;
            }
        }
    }

    /// Before the process ends, the one that was used last first: a supervisor may not wait for all.
    pub fn put_all_away(&mut self, seats: &mut [Seat], tokenizer: &Tokenizer) {
        let mut order: [usize; MAX_LANES] = std::array::from_fn(|i| i);
        let order = &mut order[..seats.len()];
        order.sort_unstable_by_key(|i| std::cmp::Reverse(seats[*i].last_used));
        let began = Instant::now();
        for &i in &*order {
            match Keeper::unsaved(&seats[i]) {
                Some(name) if began.elapsed() >= LEAVING_NAMED => {
                    log::warn!("session '{name}' is not saved: the disk took {LEAVING_NAMED:?} for others");
                }
                _ => {
                    self.put_away(&mut seats[i]);
                }
            }
        }
        let began = Instant::now();
        for &i in &*order {
            if began.elapsed() < LEAVING {
                self.put_aside(&mut seats[i], tokenizer);
            }
        }
    }
}

/// As much of the text of tokens as there is room for, and whether that is all.
fn fill(room: &mut [u8], tokens: &[u32], tokenizer: &Tokenizer) -> (usize, bool) {
    let mut n = 0;
    for &token in tokens {
        let bytes = tokenizer.token_bytes(token, true);
        let Some(place) = room.get_mut(n..n + bytes.len()) else { return (n, false) };
        place.copy_from_slice(bytes);
        n += bytes.len();
    }
    (n, true)
}
