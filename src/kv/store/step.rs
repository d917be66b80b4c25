//! A step: a token or a batch of tokens enters the cache, layer by layer. The order of what must be done is here and in the types:
//!
//! ```text
//! begin      room is made: the stream may end here, keys may be rounded anew, positions renumbered
//! rate       for each layer: what the policy reads of keys before RoPE and of values; they go to the past, if there is one
//! recall     what queries ask for of the past that the arena has lost
//! take       keys and values are rounded, and each token gets a slot, evicting where a head is full
//! attend     each token sees the slots as they stand when it enters; the policy learns what attention fell on them
//! finish     the tokens are in
//! ```
//!
//! A batch is exactly the same as token by token where scores are fixed at insertion, as most policies' are: which entry goes at which
//! token is known before attention runs. The others judge by what was known before the batch. A batch's rows wait behind the slots until
//! its attention is done, for its first tokens still see what its last ones overwrite; one token alone goes to its slot at once.

use super::undo::{Place, Record, Undo, keep_entry};
use super::{HeadShare, KvCache, KvScratch};
use crate::error::{Error, Result, Setting, message};
use crate::kernels::Kernels;
use crate::kv::attention::{AttendScratch, LayerAttention};
use crate::kv::layout::{AttnLayer, Head, KvShape, LayerShape};
use crate::kv::past::Past;
use crate::kv::policy::Policy;
use crate::kv::{Pos, Rotary};
use crate::mem::pool::Pool;

/// Tokens on their way in. Dropped before the first layer is told it leaves the cache as if they had never come.
#[must_use]
pub struct Step<'a> {
    cache: &'a mut KvCache,
    n_tok: usize,
    /// The layer that is next, and how many of the tokens it has taken in.
    next: AttnLayer,
    n_in: usize,
    /// Rows of the batch stay where they wait, in layers that later ones share, until the step ends.
    holds: bool,
    /// Where the stream stood, and what keeps that guesses can be taken back, if all tokens but the first are such.
    start: Place,
    undo: Option<&'a mut Undo>,
}

/// A layer whose newcomers have been rated.
#[must_use]
pub struct Rated<'a> {
    cache: &'a mut KvCache,
    layer: AttnLayer,
    n_tok: usize,
    holds: bool,
    kernels: Kernels,
    record: Record<'a>,
}

/// A layer whose newcomers have a slot.
#[must_use]
pub struct Taken<'a>(Rated<'a>);

impl KvCache {
    /// Makes room for `n_tok` more tokens at the positions that follow, or says why the stream cannot go on.
    pub fn begin(&mut self, n_tok: usize, pool: &mut Pool, scratch: &mut [KvScratch], rotary: &impl Rotary) -> Result<Step<'_>> {
        assert!(n_tok >= 1 && n_tok <= self.together(self.shape.n_batch), "a batch of {n_tok} tokens");
        self.make_room(n_tok, pool, scratch, rotary)?;
        let start = self.place();
        Ok(Step { cache: self, n_tok, next: AttnLayer(0), n_in: 0, holds: false, start, undo: None })
    }

    /// The same for a token and at most `most_guesses` guesses behind it, which enter each layer one by one.
    pub fn begin_guesses<'a>(
        &'a mut self,
        n_tok: usize,
        undo: &'a mut Undo,
        pool: &mut Pool,
        scratch: &mut [KvScratch],
        rotary: &impl Rotary,
    ) -> Result<Step<'a>> {
        assert!(n_tok >= 1 && n_tok - 1 <= self.most_guesses().min(undo.n_guess()), "{n_tok} tokens with guesses");
        self.make_room(n_tok, pool, scratch, rotary)?;
        let start = self.place();
        undo.n_in_step = n_tok - 1;
        Ok(Step { cache: self, n_tok, next: AttnLayer(0), n_in: 0, holds: false, start, undo: Some(undo) })
    }

    /// Whether the stream ends where the arena is full. (What leaves a ring no later token would see: nothing of the model is lost.)
    pub(super) fn ends_when_full(&self) -> bool {
        self.rule.policy == Policy::Off && self.shape.ring_len().is_none()
    }

    fn make_room(&mut self, n_tok: usize, pool: &mut Pool, scratch: &mut [KvScratch], rotary: &impl Rotary) -> Result<()> {
        assert!(self.n_ahead == 0, "guesses are accepted or taken back before others come");
        if self.ends_when_full() && self.n_live + n_tok > self.n_slot {
            return Err(Error::stopped(message![
                format!("the arena of {} tokens is full and ", self.n_slot),
                Setting::Evict,
                " off may not evict: raise ",
                Setting::KvBudget,
                " or choose a policy, such as auto",
            ]));
        }
        self.calibrate(&mut scratch[0], rotary);
        let reach = self.past.as_ref().map_or(0, Past::reach);
        if self.next_pos as usize + n_tok + reach > self.shape.n_ctx {
            let (pos, n_ctx) = (self.next_pos, self.shape.n_ctx);
            log::debug!("position {pos} nears the trained context of {n_ctx}: renumbering what is kept");
            self.renumber(pool, scratch, rotary);
        }
        Ok(())
    }

    /// Moves the batch's rows of this layer into the slots they took. Where a slot was taken twice the later stays.
    fn commit(&mut self, layer: AttnLayer, n_tok: usize) {
        for head in self.shape.of(layer).heads() {
            let (first, batch) = (self.first_row(layer, head), self.batch_row(layer, head));
            for t in 0..n_tok {
                let (slot, _) = self.taken_at(layer, head, t);
                self.stores[self.shape.store(layer)].copy(batch + t, first + slot);
            }
        }
    }
}

impl Step<'_> {
    pub fn cache(&self) -> &KvCache {
        self.cache
    }

    /// Tokens that a layer takes in together: all, or where there are guesses one.
    pub fn n_together(&self) -> usize {
        if self.undo.is_some() { 1 } else { self.n_tok }
    }

    /// Rates the keys before RoPE and the values (`[n_together][n_head_kv * head_dim]`, f32) of the next tokens of a layer.
    pub fn rate(&mut self, layer: AttnLayer, pool: &mut Pool, kernels: Kernels, k: &[f32], v: &[f32]) -> Rated<'_> {
        let n_tok = self.n_together();
        let holds = self.holds && self.cache.shape.is_shared(layer);
        let (cache, t) = (&mut *self.cache, self.n_in);
        let (shape, n_slot, of @ LayerShape { n_head_kv, head_dim }) = (cache.shape, cache.n_slot, cache.shape.of(layer));
        assert!(layer == self.next && k.len() == n_tok * of.row_dim(), "each layer once, in order");
        cache.set_place(self.start.after(t, n_slot));
        self.n_in += n_tok;
        if self.n_in == self.n_tok {
            (self.next.0, self.n_in) = (self.next.0 + 1, 0);
        }
        let record = self.undo.as_deref_mut().filter(|_| t > 0).map(|undo| undo.record(t - 1, &shape, layer));
        let mut record = record.unwrap_or_default();
        cache.keep_heads(layer, &mut record);
        cache.learn_centres(layer, k);
        let (n_past, first_head) = (cache.n_past(), shape.heads_before(layer));
        cache.append_to_past(layer, pool, k, v);
        if !shape.is_ring(layer) {
            cache.for_heads(pool, layer, n_tok, &mut Record::default(), |h, share| {
                for t in 0..n_tok {
                    let (at, n_past) = ((t * n_head_kv + h) * head_dim, n_past + t as u64);
                    let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                    let noise = noise(first_head + h, n_past);
                    share.marks.rate(t, n_past, key, value, noise, |x| kernels.l2_norm(x));
                }
            });
        }
        Rated { cache, layer, n_tok, holds, kernels, record }
    }

    /// Each token of a batch will look at what shared layers hold as it stands for that token (`look`), and not the last one alone.
    pub fn hold_shared(&mut self) {
        self.holds = self.n_tok > 1 && self.cache.shape.shared;
    }

    /// The attention of a layer that holds nothing to `layer`, which it shares, and whose tokens are in: of those from `first` on, as in
    /// `Taken::attend`. It is not counted: of tokens whose logits nobody wants such layers are not computed, and what is kept must not
    /// depend on that.
    pub fn look(
        &self,
        layer: AttnLayer,
        first: usize,
        pool: &mut Pool,
        scratch: &mut AttendScratch,
        q: &mut [f32],
        out: &mut [f32],
    ) {
        assert!(self.cache.shape.is_shared(layer) && self.next > layer && self.undo.is_none());
        assert!(self.holds || first + 1 == self.n_tok, "the others' rows may have been overwritten");
        let attention = LayerAttention { cache: self.cache, layer, counts: false, head_sinks: &[] };
        match self.n_tok {
            1 => attention.attend_one(pool, scratch, q, out),
            n_tok => attention.attend_batch(pool, scratch, q, out, first..n_tok),
        }
    }

    /// The tokens are in; guesses are ahead.
    pub fn finish(self) {
        let Step { cache, n_tok, next, n_in, holds, start, undo } = self;
        assert!(next.0 == cache.shape.n_layer && n_in == 0, "every layer was told");
        let shape = cache.shape;
        shape.layers().filter(|&layer| holds && shape.is_shared(layer)).for_each(|layer| cache.commit(layer, n_tok));
        cache.n_ahead = undo.map_or(0, |undo| undo.n_in_step);
        cache.set_place(start.after(n_tok - cache.n_ahead, cache.n_slot));
        cache.marks.renew_unit(cache.n_past());
    }
}

impl<'a> Rated<'a> {
    /// Takes in the keys and values, now with the keys turned, and sees the queries (`[n_tok][n_head * head_dim]`, those of the heads of a KV head
    /// one after the other): rounds into the batch's rows, and decides for every token which slot it takes.
    pub fn take(self, pool: &mut Pool, rotary: &impl Rotary, q: &[f32], k: &[f32], v: &[f32]) -> Taken<'a> {
        let Rated { cache, layer, n_tok, holds, kernels, mut record } = self;
        let (KvShape { k_type, v_type, .. }, LayerShape { n_head_kv, head_dim }) = (cache.shape, cache.shape.of(layer));
        cache.learn_query_weights(layer, q, n_tok);
        // Before anything is evicted for these tokens: what they see in the arena they do not fetch.
        cache.recall(layer, pool, kernels, rotary, q, n_tok);
        let (n_slot, n_live, next_pos, n_past) = (cache.slots(layer), cache.n_taken(layer), cache.next_pos, cache.n_past());
        let (k_bytes, v_bytes) = (cache.shape.k_bytes(layer), cache.shape.v_bytes(layer));
        if n_live + n_tok > n_slot {
            cache.rejudge(layer);
        }
        cache.for_heads(pool, layer, n_tok, &mut record, |h, share| {
            let HeadShare { marks, taken, keys, values, rounding, sink, record } = share;
            for t in 0..n_tok {
                let at = (t * n_head_kv + h) * head_dim;
                let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
                rounding.store(k_type, key, &mut keys[t * k_bytes..][..k_bytes]);
                v_type.store(value, &mut values[t * v_bytes..][..v_bytes]);
                if let Some(sink) = sink.as_mut().filter(|_| n_past + t as u64 == 0) {
                    sink.store((k_type, key), (v_type, value));
                }
                let now = next_pos + t as Pos;
                let slot = if n_live + t < n_slot {
                    n_live + t
                } else {
                    marks.victim(n_slot, now).expect("the budget was checked to leave an entry that may go")
                };
                keep_entry(record, marks, slot);
                marks.enter(slot, t, n_past + t as u64, now);
                taken[t] = slot as u32;
            }
        });
        Taken(Rated { cache, layer, n_tok, holds, kernels, record })
    }
}

impl Taken<'_> {
    /// The cache as it is before attention.
    pub fn cache(&self) -> &KvCache {
        self.0.cache
    }

    /// `out[t] = softmax(q[t] · keys) · values`. `q`, `out`: `[n_tok][n_head * head_dim]`; `q` is turned into the keys' basis.
    /// `head_sinks`: `[n_head]` logits that join the softmax without a value, or none.
    pub fn attend(self, pool: &mut Pool, scratch: &mut AttendScratch, head_sinks: &[f32], q: &mut [f32], out: &mut [f32]) {
        let Taken(Rated { cache, layer, n_tok, holds, mut record, .. }) = self;
        // That of a ring is not.
        let counts = cache.counts_attention(layer);
        if n_tok == 1 {
            cache.keep_rows(layer, &mut record);
            cache.commit(layer, 1);
            LayerAttention { cache, layer, counts, head_sinks }.attend_one(pool, scratch, q, out);
        } else {
            LayerAttention { cache, layer, counts, head_sinks }.attend_batch(pool, scratch, q, out, 0..n_tok);
            if !holds {
                cache.commit(layer, n_tok);
            }
        }
        if counts {
            let (n_slot, live, next_pos) = (cache.slots(layer), cache.live_at(layer, n_tok - 1), cache.next_pos);
            for (h, mut head) in cache.marks.of_layer(&cache.shape, layer, cache.rule).enumerate() {
                head.settle(live, scratch.given(Head(h)), n_slot, n_tok, next_pos);
            }
        }
    }
}

/// A number in 0..1 for each token of each head, the same in every run.
fn noise(head: usize, token: u64) -> f32 {
    let mut x = (token << 16 ^ head as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x >> 40) as f32 / (1u64 << 24) as f32
}
