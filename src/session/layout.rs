//! What a session would be, known before any memory is taken: its shapes, its plan, and whether they fit.

use crate::error::{Error, Result, Setting, message};
use crate::kernels::{GEMM_FROM, Kernels};
use crate::kv::past::PastShape;
use crate::kv::policy::{Keeps, Policy, Rule};
use crate::kv::store::undo::Undo;
use crate::kv::{KvParams, KvShape, KvType, PastParams};
use crate::mem::arena::Arena;
use crate::mem::available::available_bytes;
use crate::mem::plan::Plan;
use crate::mem::pool::{STACK_BYTES, default_threads};
use crate::model::forward::{MAX_LANES, Model};
use crate::model::scratch::{Scratch, ScratchShape};
use crate::model::state::RecurrentState;
use crate::model::weights::Weights;
use crate::units::Bytes;

use super::drafts::{Drafts, MAX_GUESSES};
use super::log::TokenLog;

/// Memory of a process that has done nothing yet: its writable data, the heap's first pages, the main thread's stack,
/// the argument parser. Half a MiB was seen on x86-64 (docs/design.md, "Memory"); the rest is for what was not.
const PROCESS_BYTES: usize = 2 << 20;

/// Tokens of a prefill batch where the user names none: enough to share the expansion of a weight tile among many.
pub const DEFAULT_BATCH: usize = 64;

#[derive(Clone, Debug)]
pub struct SessionParams {
    /// Of each stream.
    pub kv: KvParams,
    /// Conversations that are held at once, 1 to `MAX_LANES`.
    pub n_streams: usize,
    /// First tokens of a stream that are kept on record, so that another prompt can be compared with them.
    pub n_log: usize,
    /// How keys and values are stored; what is `None` is chosen by the budget, see `KvShape::choose_types`.
    pub k_type: Option<KvType>,
    pub v_type: Option<KvType>,
    /// What is evicted goes to a file, if the user wishes.
    pub past: Option<PastParams>,
    /// Tokens that the stream will have at most, where that is known: what types are chosen for.
    pub n_stream: Option<usize>,
    /// Tokens of a prefill batch; made smaller where the trained context is very short.
    pub n_batch: usize,
    /// `None`: what CPU affinity and the cgroup's quota allow.
    pub n_threads: Option<usize>,
    /// `auto`, or the name of a set.
    pub kernels: String,
    /// Rows of logits that `prefill_all` may ask for at once.
    pub n_logits: usize,
    /// Tokens that a step may guess beside the one it takes in, at most `MAX_GUESSES`; 0: none.
    pub n_draft: usize,
    /// All private memory of the process, if limited.
    pub memory_bytes: Option<u64>,
    /// Lock the weights in memory.
    pub mlock: bool,
}

/// What a session of these parameters would be.
pub struct Layout {
    pub kv: KvShape,
    pub n_slot: usize,
    pub rule: Rule,
    pub kernels: Kernels,
    pub n_threads: usize,
    pub n_streams: usize,
    /// Tokens that a step may guess: fewer than were asked for where a larger batch would give other bits.
    pub n_draft: usize,
    pub(super) n_log: usize,
    pub(super) kv_budget_bytes: u64,
    pub(super) scratch: ScratchShape,
    pub(super) mlock: bool,
    /// The past in a file, and where the file is.
    pub past: Option<(PastShape, PastParams)>,
}

impl SessionParams {
    /// What the arena must hold for each token, whatever its size.
    pub fn shape(&self, model: &Model) -> Result<KvShape> {
        let c = &model.config;
        if self.n_batch == 0 || self.n_batch > 1 << 16 {
            return Err(Error::usage(Setting::Batch, format!("a batch of {} tokens; give 1 to 65536", self.n_batch)));
        }
        let mut shape = KvShape {
            n_layer: c.n_attn_layer(),
            each: c.heads(),
            local: c.local_heads,
            shared: c.n_shared > 0,
            // After renumbering an eighth of the context is free: a batch must fit into it.
            n_batch: self.n_batch.min(c.n_ctx / 8),
            n_ctx: c.n_ctx,
            window: c.window,
            k_type: KvType::F16,
            v_type: KvType::F16,
            capped: c.soft_caps.is_some_and(|caps| caps.scores > 0.0),
            keeps: Keeps { token: self.past.is_some(), ..self.kv.keeps() },
        };
        shape.choose_types(self.kv.budget_bytes, self.n_stream, [self.k_type, self.v_type], model.weights.has_long_key_biases());
        Ok(shape.within(self.kv.budget_bytes))
    }

    /// The slots and who goes from them, with the batch as large as it may be.
    fn fit(&self, kv: &mut KvShape) -> Result<(usize, Rule)> {
        if !kv.keeps.received {
            return self.kv.fit(kv);
        }
        // A token must not be judged before its attention is counted, which is after its batch: it is recent that long. So a budget
        // that does not hold the rows of a larger batch need not.
        let (_, rule) = loop {
            match self.kv.fit(kv) {
                Err(_) if kv.n_batch > 1 => kv.n_batch /= 2,
                fitted => break fitted?,
            }
        };
        kv.n_batch = kv.n_batch.min(rule.protect.recent.max(1) as usize);
        self.kv.fit(kv)
    }

    /// Tokens that a step may guess.
    fn n_draft(&self, model: &Model) -> Result<usize> {
        if self.n_draft > MAX_GUESSES {
            let what = format!("{} tokens are more than a step can guess; give 0 to {MAX_GUESSES}", self.n_draft);
            return Err(Error::usage(Setting::Speculate, what));
        }
        if self.n_draft > 0 && model.config.recurrent.is_some() {
            let what = "this model has layers that cannot forget a token, so that a wrong guess would stay in it; give 0";
            return Err(Error::usage(Setting::Speculate, what));
        }
        if self.n_draft > 0 && model.config.n_shared > 0 {
            let what = "this model has layers that share keys and values, which would see a wrong guess in them; give 0";
            return Err(Error::usage(Setting::Speculate, what));
        }
        if self.n_draft > 0 && self.past.is_some() {
            let what = message![Setting::Past, " and guesses do not go together: a guess that was wrong would stay in the file"];
            return Err(Error::usage(Setting::Speculate, what));
        }
        // A float matrix against a batch sums in another order than against single tokens.
        let most = if model.weights.has_float { GEMM_FROM - 2 } else { MAX_GUESSES };
        Ok(self.n_draft.min(most))
    }

    /// Checks everything that can be checked before memory is taken.
    pub fn layout(&self, model: &Model) -> Result<Layout> {
        let kernels = Kernels::choose(&self.kernels)?;
        let n_threads = self.n_threads.unwrap_or_else(default_threads);
        if n_threads == 0 || n_threads > 1024 {
            return Err(Error::usage(Setting::Threads, format!("{n_threads} threads; give 1 to the number of cores")));
        }
        let n_streams = self.n_streams;
        if n_streams == 0 || n_streams > MAX_LANES {
            return Err(Error::usage(Setting::Streams, format!("{n_streams} streams; give 1 to {MAX_LANES}")));
        }
        let n_draft = self.n_draft(model)?;
        let mut kv = self.shape(model)?;
        let (n_slot, rule) = self.fit(&mut kv)?;
        let scratch = ScratchShape {
            kv,
            n_slot,
            n_rows: kv.n_batch.max(n_streams).max(1 + n_draft),
            n_threads,
            n_logits: self.n_logits.clamp(1, kv.n_batch).max(n_streams).max(1 + n_draft),
            has_float: model.weights.has_float,
            has_halves: model.weights.types().any(|ty| kernels.wants_halves(ty)),
            kernels,
        };
        let (kv_budget_bytes, mlock, n_log) = (self.kv.budget_bytes, self.mlock, self.n_log);
        let past = self.past_shape(model, kv, (n_slot, rule), n_threads)?;
        Ok(Layout { kv, n_slot, rule, kernels, n_threads, n_streams, n_draft, n_log, kv_budget_bytes, scratch, mlock, past })
    }

    fn past_shape(
        &self,
        model: &Model,
        kv: KvShape,
        (n_slot, rule): (usize, Rule),
        n_threads: usize,
    ) -> Result<Option<(PastShape, PastParams)>> {
        let Some(past) = &self.past else { return Ok(None) };
        if rule.policy == Policy::Off {
            let what = message![Setting::Evict, " off evicts nothing that could be read again: choose a policy, or leave it out"];
            return Err(Error::usage(Setting::Past, what));
        }
        let c = &model.config;
        if c.n_shared > 0 {
            let what =
                "this model has layers that share keys and values of others, and for those nothing is looked for; leave it out";
            return Err(Error::usage(Setting::Past, what));
        }
        let (n_q, soft_cap) = (c.n_head / c.n_head_kv, c.soft_caps.map_or(0.0, |caps| caps.scores));
        let shape = PastShape { kv, n_q, soft_cap, n_threads, n_recall: past.n_recall, n_tile: 0 };
        Ok(Some((past.fit(shape, n_slot)?, past.clone())))
    }
}

impl Layout {
    /// The regions of the session itself; callers add their own (tokenizer, sampler, prompt) before they check a limit.
    pub fn plan(&self, model: &Model, plan: &mut Plan) {
        // Of a table that is looked up a token needs a row, unless all is to be locked in memory.
        let looked_up = if self.mlock { 0 } else { model.weights.table_bytes };
        plan.file("weights", model.file.file_bytes().saturating_sub(looked_up));
        if looked_up > 0 {
            plan.lookup("embeddings by layer", looked_up);
        }
        if let Some(pack) = model.files(self.kernels).pack {
            plan.file("packed weights", pack.file_bytes());
        }
        plan.private("process", PROCESS_BYTES);
        plan.private("tensor index", model.file.tensors().len() * 256 + model.file.metadata().count() * 128);
        plan.private("norms", model.weights.norm_bytes);
        plan.private("threads", (self.n_threads - 1) * STACK_BYTES);
        plan.private("kv arena", self.n_streams * self.kv.arena_bytes(self.n_slot));
        if self.n_log > 0 {
            plan.private("token logs", self.n_streams * TokenLog::bytes(self.n_log));
        }
        if self.n_draft > 0 {
            plan.private("draft tables", self.n_streams * Drafts::BYTES);
        }
        let mut states = Arena::measure();
        RecurrentState::carve(&mut states, &model.config);
        states.parts().iter().for_each(|&(name, bytes)| plan.private(name, self.n_streams * bytes));
        let mut undo = Arena::measure();
        self.undo(&mut undo);
        undo.parts().iter().for_each(|&(name, bytes)| plan.private(name, bytes));
        Scratch::plan(&model.config, &self.scratch, plan);
        if let Some((past, _)) = &self.past {
            past.parts().iter().for_each(|&(name, bytes)| plan.private(name, self.n_streams.saturating_mul(bytes)));
            plan.disk("past", self.n_streams as u64 * past.file_bytes());
        }
    }

    /// Memory will not hold the weights beside what the session itself takes, as far as the system says.
    pub fn is_short(&self, model: &Model) -> bool {
        let mut plan = Plan::default();
        self.plan(model, &mut plan);
        Shortage::of(&plan, &model.weights, available_bytes()).is_some()
    }

    /// What a step of every stream reads of its past in order, when the files are full.
    pub fn past_index_bytes(&self) -> u64 {
        self.past.as_ref().map_or(0, |(past, _)| self.n_streams as u64 * past.index_bytes())
    }

    /// What is saved of a stream in a session takes at most, its text and the file of its past aside.
    pub fn session_bytes(&self, model: &Model) -> u64 {
        let mut states = Arena::measure();
        RecurrentState::carve(&mut states, &model.config);
        let past = self.past.as_ref().map_or(Vec::new(), |(past, _)| past.parts());
        let others: u64 = states.parts().iter().chain(&past).map(|&(_, bytes)| bytes as u64).sum();
        self.kv.arena_bytes(self.n_slot) as u64 + TokenLog::bytes(self.n_log) as u64 + others
    }

    /// What lets guesses be taken back.
    pub(super) fn undo(&self, arena: &mut Arena) -> Undo {
        if self.n_draft > 0 {
            arena.begin_part("draft undo");
        }
        Undo::carve(arena, &self.kv, self.rule.policy, self.n_slot, self.n_draft)
    }
}

/// Refuses a plan that is larger than the user's `--memory`.
pub fn check_memory(plan: &Plan, memory_bytes: Option<u64>) -> Result<()> {
    match memory_bytes {
        Some(limit) if plan.private_bytes() > limit => Err(Error::budget(
            Setting::Memory,
            message![
                format!(
                    "the plan takes {} of private memory, {} is allowed; the largest parts are {}: give at least {} bytes, or lower ",
                    Bytes(plan.private_bytes()),
                    Bytes(limit),
                    plan.largest(3),
                    plan.private_bytes(),
                ),
                Setting::KvBudget,
                ", ",
                Setting::Batch,
                " or ",
                Setting::Threads,
            ],
        )),
        _ => Ok(()),
    }
}

/// Weights that the memory does not hold: they are read from the disk again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    pub file_bytes: u64,
    /// What a token goes through of them: all but the experts that it does not choose.
    pub read_bytes: u64,
    /// The experts among these.
    pub chosen_bytes: u64,
    /// What is left for them.
    pub left_bytes: u64,
}

impl Shortage {
    /// `None` where they fit, or where the system does not say what is available.
    pub fn of(plan: &Plan, weights: &Weights, available_bytes: Option<u64>) -> Option<Shortage> {
        Self::of_bytes(plan, (weights.idle_bytes, weights.chosen_bytes), available_bytes)
    }

    fn of_bytes(plan: &Plan, (idle_bytes, chosen_bytes): (u64, u64), available_bytes: Option<u64>) -> Option<Shortage> {
        let left_bytes = available_bytes?.saturating_sub(plan.private_bytes());
        let file_bytes = plan.file_bytes();
        let read_bytes = file_bytes.saturating_sub(idle_bytes);
        (file_bytes > left_bytes).then_some(Shortage { file_bytes, read_bytes, chosen_bytes, left_bytes })
    }

    /// What a token reads of the disk at most. Experts are asked for as they are chosen; what every token goes through stays, if it
    /// fits beside those of one token.
    fn again_bytes(&self) -> u64 {
        if self.chosen_bytes > 0 && self.read_bytes <= self.left_bytes { self.chosen_bytes } else { self.read_bytes }
    }
}

impl std::fmt::Display for Shortage {
    /// Pages are dropped in the order in which they were read, so the next token finds few of those it needs: nearly all of
    /// the file is read for each.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |mb_per_s: f64| self.again_bytes() as f64 / 1e6 / mb_per_s;
        let (file, left) = (Bytes(self.file_bytes), Bytes(self.left_bytes));
        if self.chosen_bytes > 0 {
            return write!(
                f,
                "the weights are {file} and {left} of memory are left for them, so some are read from the disk again: a token goes \
                 through {} of them, of which {} are experts, others than those of the token before. Expect up to {:.1} s a token at \
                 40 MB/s (an SD card), {:.1} s at 400 MB/s (an SSD)",
                Bytes(self.read_bytes),
                Bytes(self.chosen_bytes),
                seconds(40.0),
                seconds(400.0)
            );
        }
        write!(
            f,
            "the weights are {file} and {left} of memory are left for them, so most are read from the disk again for every token: \
             expect up to {:.1} s a token at 40 MB/s (an SD card), {:.1} s at 400 MB/s (an SSD); a smaller model or quantisation \
             that fits is many times faster",
            seconds(40.0),
            seconds(400.0)
        )
    }
}

/// An index of the past that the memory does not hold beside the weights: each step reads all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PastShortage {
    /// Of all streams, when their files are full.
    pub index_bytes: u64,
    pub left_bytes: u64,
}

impl PastShortage {
    /// `None` where it fits, where there is no past, or where the system does not say what is available.
    pub fn of(plan: &Plan, index_bytes: u64, available_bytes: Option<u64>) -> Option<PastShortage> {
        let left_bytes = available_bytes?.saturating_sub(plan.private_bytes()).saturating_sub(plan.file_bytes());
        (index_bytes > left_bytes).then_some(PastShortage { index_bytes, left_bytes })
    }
}

impl std::fmt::Display for PastShortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |mb_per_s: f64| self.index_bytes as f64 / 1e6 / mb_per_s;
        write!(
            f,
            "the index of the past is {} when the file is full, and {} of memory are left for it beside the weights, so most of it \
             will be read from the disk again for every token: expect up to {:.1} s a token at 40 MB/s (an SD card), {:.1} s at \
             400 MB/s (an SSD); a past of fewer tokens is many times faster",
            Bytes(self.index_bytes),
            Bytes(self.left_bytes),
            seconds(40.0),
            seconds(400.0)
        )
    }
}

#[cfg(test)]
#[path = "../../tests/unit/session/layout.rs"]
mod tests;
