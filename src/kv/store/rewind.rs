//! A stream that is taken back to what it began with, and one whose beginning must stay.

use super::KvCache;
use super::key_rounding::SEEN;
use crate::kv::Pos;

impl KvCache {
    /// Why the first `n` tokens cannot be had back as if the others had never come; `None`: they can.
    pub fn cannot_rewind(&self, n: u64) -> Option<&'static str> {
        let n_past = self.n_past();
        let in_window = self.shape.window.map_or(u64::MAX, |window| window.n_tok.min(self.n_slot) as u64);
        if n >= n_past {
            (n > n_past).then_some("there are fewer tokens")
        } else if self.past.is_some() {
            Some("its past is in a file, which goes on")
        } else if self.n_evicted > 0 || self.whole.n_layer > 0 {
            Some("tokens have been evicted")
        } else if u64::from(self.next_pos) != n_past {
            Some("positions have been renumbered")
        } else if n_past > in_window {
            Some("layers with a window have forgotten tokens")
        } else if self.shape.k_type.is_turned() && n < SEEN as u64 {
            Some("how keys are rounded was learned from later tokens")
        } else {
            None
        }
    }

    /// Whether eviction after `rewind` goes as if the dropped tokens had never come: means and counts that policies keep do not
    /// forget them.
    pub fn rewinds_exactly(&self) -> bool {
        let keeps = self.shape.keeps;
        !keeps.received && !keeps.direction && !keeps.reserve
    }

    /// Forgets all but the first `n` tokens, of which `cannot_rewind` says that they are there. While nothing has been evicted slots are
    /// in the order of the stream.
    pub fn rewind(&mut self, n: u64) {
        assert!(self.cannot_rewind(n).is_none());
        self.n_live = n as usize;
        self.next_pos = n as Pos;
        self.marks.forget_slots(n as u32);
    }

    /// Never evicts the first `n` tokens from here on (nor the sinks), if as many can stay beside the recent ones.
    pub fn pin(&mut self, n: usize) -> bool {
        let row = self.rule.policy.row();
        let sinks = n.max(self.n_sinks as usize).min(u32::MAX as usize) as u32;
        let protect = row.protection(sinks, self.rule.protect.recent);
        if protect.min_slots() + self.rule.n_reserved.min(1) > self.n_slot && n > self.n_sinks as usize {
            return false;
        }
        if self.shape.ring_len() != Some(self.n_slot) {
            self.rule.protect = protect;
        }
        true
    }

    /// First tokens that are never evicted.
    pub fn n_pinned(&self) -> usize {
        self.rule.protect.sinks as usize
    }

    /// Latest tokens that are not evicted yet.
    pub fn n_recent(&self) -> usize {
        self.rule.protect.recent as usize
    }
}
