//! What a stream's cache is, as bytes: for saving a stream and going on with it later, in this process or in another.
//!
//! One function goes over it in one order, whether it is written or read, so that the two cannot differ: `visit_marks`, then
//! `visit_rows`. Only taken slots are visited; what is behind them no token sees. How much is visited follows from a few numbers,
//! `Counts`, which a reader must have first.
//!
//! Whoever restores gives `Counts` to `adopt`, which refuses what this cache cannot hold and changes nothing then; fills what is visited;
//! and asks `check_adopted`, for what was read may be anything. A cache that was filled in part or is not sound is to be cleared.

use std::sync::Arc;

use super::{KvCache, KvScratch, Rows, Whole};
use crate::kv::Pos;
use crate::kv::layout::{AttnLayer, Head};
use crate::kv::past::disk::Pasts;
use crate::kv::past::{Left, Past, PastNames};
use crate::kv::policy::{Policy, Protection};

/// The numbers of a stream's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub n_live: u64,
    pub n_evicted: u64,
    pub next_pos: u64,
    /// First layers that `compress` left whole, and how many entries more they hold.
    pub n_whole: u64,
    pub n_more: u64,
    /// Tokens of the stream after which scores got the unit they are kept in.
    pub unit_at: u64,
    /// First positions that are protected, those of a pinned system's turn included.
    pub sinks: u64,
    pub n_renumbered: u64,
    /// Whether it is known how keys are rounded, and whether the stream's first token is kept apart.
    pub is_fixed: bool,
    pub has_sink_rows: bool,
}

impl Counts {
    pub const N_WORDS: usize = 9;

    pub fn words(&self) -> [u64; Self::N_WORDS] {
        let Counts { n_live, n_evicted, next_pos, n_whole, n_more, unit_at, sinks, n_renumbered, is_fixed, has_sink_rows } =
            *self;
        let flags = u64::from(is_fixed) | u64::from(has_sink_rows) << 1;
        [n_live, n_evicted, next_pos, n_whole, n_more, unit_at, sinks, n_renumbered, flags]
    }

    /// `None` where they are not what `words` gives.
    pub fn from_words(
        [n_live, n_evicted, next_pos, n_whole, n_more, unit_at, sinks, n_renumbered, flags]: [u64; Self::N_WORDS],
    ) -> Option<Self> {
        let (is_fixed, has_sink_rows) = (flags & 1 != 0, flags & 2 != 0);
        (flags < 4).then_some(Counts {
            n_live,
            n_evicted,
            next_pos,
            n_whole,
            n_more,
            unit_at,
            sinks,
            n_renumbered,
            is_fixed,
            has_sink_rows,
        })
    }

    /// Tokens of the stream, of which there are fewer than any machine will ever take in.
    pub fn n_past(&self) -> Option<u64> {
        self.n_live.checked_add(self.n_evicted).filter(|&n| n < 1 << 56)
    }
}

/// Of the settings of a cache with a past in a file, before its size.
pub const PAST: &str = "; a past of ";

impl KvCache {
    pub fn counts(&self) -> Counts {
        Counts {
            n_live: self.n_live as u64,
            n_evicted: self.n_evicted,
            next_pos: self.next_pos.into(),
            n_whole: self.whole.n_layer as u64,
            n_more: self.whole.n_more as u64,
            unit_at: self.marks.unit_at(),
            sinks: self.rule.protect.sinks.into(),
            n_renumbered: self.n_renumbered,
            is_fixed: self.roundings.is_fixed(),
            has_sink_rows: self.sink_rows.is_there(),
        }
    }

    /// What must be the same of two caches so that one can hold a stream of the other: how rows are stored, how many there are, and who
    /// goes from them. What follows from the model is left out.
    pub fn settings(&self) -> String {
        let (rule, keeps) = (self.rule, self.shape.keeps);
        let past = self.past.as_ref().map_or(String::new(), |past| {
            let shape = past.shape();
            format!("{PAST}{} bytes, recall {}", shape.bytes_for(shape.n_tok()), shape.n_recall)
        });
        format!(
            "{} {} slots; {}, {} sinks, {} recent, {} reserved, pool {}, half-life {}; {}{past}",
            self.shape.type_names(),
            self.n_slot,
            rule.policy.name(),
            self.n_sinks,
            rule.protect.recent,
            rule.n_reserved,
            keeps.pool,
            keeps.half_life,
            match self.shape.window {
                Some(window) => format!("a window of {} in all layers but every {}th", window.n_tok, window.global_every),
                None => "no window".into(),
            },
        )
    }

    /// Forgets its stream for one of these numbers, whose marks and rows are then to be filled; or says why it cannot, and is
    /// as it was.
    pub fn adopt(&mut self, counts: &Counts) -> Result<(), &'static str> {
        let refuse = |wrong: bool, why: &'static str| if wrong { Err(why) } else { Ok(()) };
        let Counts { n_live, n_evicted, next_pos, n_whole, n_more, unit_at, sinks, n_renumbered, is_fixed, has_sink_rows } =
            *counts;
        let n_past = counts.n_past().ok_or("more tokens than a stream can have")?;
        let (n_slot, row) = (self.n_slot as u64, self.rule.policy.row());
        refuse(n_live > n_slot, "more entries than the arena has slots")?;
        refuse(next_pos < n_live || next_pos > n_past, "positions that its tokens cannot have")?;
        refuse(next_pos > self.shape.n_ctx as u64, "positions beyond the trained context")?;
        refuse(n_whole > self.shape.n_layer as u64 || n_more > n_slot, "more whole layers or entries than there are")?;
        refuse(n_renumbered > n_past, "positions renumbered more often than there are tokens")?;
        refuse(!self.marks.may_be_unit(unit_at, n_past), "scores of an age that they cannot have")?;
        refuse(is_fixed && !self.roundings.is_used(), "a rounding of keys that are not rounded so")?;
        let protect = Protection { sinks: sinks.min(u32::MAX.into()) as u32, ..self.rule.protect };
        let may_protect = sinks == 0 || row.keeps_sinks && sinks.saturating_add(u64::from(protect.recent.max(1))) <= n_slot;
        refuse(!may_protect, "more protected tokens than the arena can hold beside others")?;
        let stays = sinks > 0 || self.rule.policy == Policy::Off;
        refuse(has_sink_rows && !self.sink_rows.may_be_there(stays), "a first token that is kept apart where none can be")?;
        self.clear();
        self.rule.protect = protect;
        self.sink_rows.clear(has_sink_rows);
        self.marks.set_unit_at(unit_at);
        self.roundings.set_fixed(is_fixed);
        // In range, as was checked.
        self.whole = Whole { n_layer: n_whole as usize, n_more: n_more as usize };
        (self.n_live, self.next_pos) = (n_live as usize, next_pos as Pos);
        (self.n_evicted, self.n_renumbered) = (n_evicted, n_renumbered);
        Ok(())
    }

    /// Goes over all that policies and the rounding of keys know, as bytes that may be read or filled.
    pub fn visit_marks<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        let shape = self.shape;
        for (layer, head) in shape.all_heads() {
            let entries = (self.first_slot(layer, head), self.live(layer));
            self.marks.visit_entries(entries, see)?;
        }
        self.marks.visit_heads(see)?;
        self.roundings.visit(see)?;
        self.past.as_mut().map_or(Ok(()), |past| past.visit(see))
    }

    /// Goes over the keys and values of all entries, likewise.
    pub fn visit_rows<E>(&mut self, see: &mut impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        let shape = self.shape;
        for (layer, head) in shape.all_heads() {
            let (first, live) = (self.first_row(layer, head), self.live(layer));
            let Rows { keys, values, k_bytes, v_bytes, .. } = &mut self.stores[shape.store(layer)];
            see(&mut keys[first * *k_bytes..][..live * *k_bytes])?;
            see(&mut values[first * *v_bytes..][..live * *v_bytes])?;
        }
        self.sink_rows.visit(see)
    }

    /// Whether a stream can go on with what was adopted and filled: with entries at positions that are unlike each other and have been,
    /// for otherwise one that may be evicted would not be certain to be found; and with numbers.
    pub fn check_adopted(&self, scratch: &mut KvScratch) -> Result<(), &'static str> {
        for (layer, head) in self.shape.all_heads() {
            let positions = self.kept(layer, head);
            // While nothing has been evicted the slot of a token is its position (`rewind` relies on it).
            let in_order = || positions.iter().zip(0..).all(|(pos, slot)| *pos == slot);
            if self.n_evicted == 0 && positions.len() == self.n_live && !in_order() {
                return Err("entries at other positions than those of a stream that has evicted nothing");
            }
            let sorted = &mut scratch.order[..positions.len()];
            sorted.copy_from_slice(positions);
            sorted.sort_unstable();
            if sorted.windows(2).any(|pair| pair[0] == pair[1]) || sorted.last().is_some_and(|&last| last >= self.next_pos) {
                return Err("entries of one head at the same position, or at one that has not been yet");
            }
        }
        if !(self.marks.is_sound() && self.roundings.is_sound()) {
            return Err("numbers that are none in what is known of its keys");
        }
        let Some(past) = &self.past else { return Ok(()) };
        let n_past = self.n_past();
        // By its low bits a token is told from those before it, back to the first.
        let has_been = |&token: &u32| (1..=n_past).contains(&u64::from((n_past as u32).wrapping_sub(token)));
        let all_have_been = |(layer, head): (AttnLayer, Head)| {
            self.marks.tokens[self.first_slot(layer, head)..][..self.live(layer)].iter().all(has_been)
        };
        match past.is_sound(n_past, self.next_pos.into()) && self.shape.all_heads().all(all_have_been) {
            true => Ok(()),
            false => Err("numbers that cannot be in what is known of its past"),
        }
    }

    /// The file in which a session left its past, where sessions have files of their own.
    pub fn open_past(&self, file: &str) -> std::io::Result<Option<Left>> {
        self.past.as_ref().map_or(Ok(None), |past| past.open_left(file))
    }

    /// Looks for what was adopted of a past in its file; what is not there any more is lost, and that is told.
    pub fn find_past(&mut self, left: Option<Left>) {
        let n_past = self.n_past();
        if let Some(past) = &mut self.past {
            past.find(n_past, left);
        }
    }

    /// Chooses how the past is left, and gives what that takes of a disk at most. `end_past` follows, whatever comes of it.
    pub fn begin_past(&mut self, names: &PastNames) -> u64 {
        let n_past = self.n_past();
        self.past.as_mut().map_or(0, |past| past.begin_leaving(n_past, names))
    }

    /// The session has been saved, or not.
    pub fn end_past(&mut self, names: &PastNames, is_saved: bool) {
        if let Some(past) = &mut self.past {
            past.end_leaving(names, is_saved);
        }
    }

    /// Returns when what is known of the past is on the disk, where a session finds it.
    pub fn leave_past(&mut self, names: &PastNames) -> std::io::Result<()> {
        let n_past = self.n_past();
        self.past.as_mut().map_or(Ok(()), |past| past.leave(n_past, names))
    }

    /// What of a disk the whole past takes at most in a file of a session's own, where sessions have such.
    pub fn past_bytes(&self) -> u64 {
        self.past.as_ref().map_or(0, Past::left_bytes)
    }

    /// Sessions leave the past in files of their own, in this folder.
    pub fn keep_past_in(&mut self, pasts: Arc<dyn Pasts>) {
        if let Some(past) = &mut self.past {
            past.keep_in(pasts);
        }
    }
}
