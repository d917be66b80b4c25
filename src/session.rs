//! A model, its arena and a stream of tokens: what the command line, the server and a user of the library see.
//! Everything is taken from the system in `Session::new`, by a plan that `Layout::plan` shows beforehand; `prefill` and
//! `step` allocate nothing (tests/no_alloc.rs arms an allocator to check it).

use crate::error::{Error, Result, Setting, message};
use crate::kernels::Kernels;
use crate::kv::policy::Rule;
use crate::kv::{AttnLayer, KvCache, KvParams, KvShape, KvType};
use crate::mem::arena::Arena;
use crate::mem::plan::Plan;
use crate::mem::pool::{Pool, STACK_BYTES, default_threads};
use crate::model::choice::Choice;
use crate::model::forward::{Logits, Machine, Model, forward, forward_watched};
use crate::model::guard::Guard;
use crate::model::scratch::{Scratch, ScratchShape};
use crate::model::shortconv::ShortConvs;
use crate::model::weights::Weights;
use crate::units::Bytes;

/// Memory of a process that has done nothing yet: its writable data, the heap's first pages, the main thread's stack,
/// the argument parser. Half a MiB was seen on x86-64 (docs/architecture.md, "Memory"); the rest is for what was not.
const PROCESS_BYTES: usize = 2 << 20;

/// Tokens of a prefill batch where the user names none: enough to share the expansion of a weight tile among many.
pub const DEFAULT_BATCH: usize = 64;

#[derive(Clone, Debug)]
pub struct SessionParams {
    pub kv: KvParams,
    /// How keys and values are stored; what is `None` is chosen by the budget, see `KvShape::choose_types`.
    pub k_type: Option<KvType>,
    pub v_type: Option<KvType>,
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
    kv_budget_bytes: u64,
    scratch: ScratchShape,
    mlock: bool,
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
            n_head_kv: c.n_head_kv,
            head_dim: c.head_dim,
            // After renumbering an eighth of the context is free: a batch must fit into it.
            n_batch: self.n_batch.min(c.n_ctx / 8),
            n_ctx: c.n_ctx,
            window: c.window,
            k_type: KvType::F16,
            v_type: KvType::F16,
            capped: c.soft_caps.is_some(),
            keeps: self.kv.keeps(),
        };
        shape.choose_types(self.kv.budget_bytes, self.n_stream, self.k_type, self.v_type);
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

    /// Checks everything that can be checked before memory is taken.
    pub fn layout(&self, model: &Model) -> Result<Layout> {
        let kernels = Kernels::choose(&self.kernels)?;
        let n_threads = self.n_threads.unwrap_or_else(default_threads);
        if n_threads == 0 || n_threads > 1024 {
            return Err(Error::usage(Setting::Threads, format!("{n_threads} threads; give 1 to the number of cores")));
        }
        let mut kv = self.shape(model)?;
        let (n_slot, rule) = self.fit(&mut kv)?;
        let scratch = ScratchShape {
            kv,
            n_slot,
            n_threads,
            n_logits: self.n_logits.clamp(1, kv.n_batch),
            has_float: model.weights.has_float,
            has_halves: model.weights.types().any(|ty| kernels.wants_halves(ty)),
            kernels,
        };
        let (kv_budget_bytes, mlock) = (self.kv.budget_bytes, self.mlock);
        Ok(Layout { kv, n_slot, rule, kernels, n_threads, kv_budget_bytes, scratch, mlock })
    }
}

impl Layout {
    /// The regions of the session itself; callers add their own (tokenizer, sampler, prompt) before they check a limit.
    pub fn plan(&self, model: &Model, plan: &mut Plan) {
        plan.file("weights", model.file.file_bytes());
        if let Some(pack) = model.files(self.kernels).pack {
            plan.file("packed weights", pack.file_bytes());
        }
        plan.private("process", PROCESS_BYTES);
        plan.private("tensor index", model.file.tensors().len() * 256 + model.file.metadata().count() * 128);
        plan.private("norms", Weights::norm_bytes(&model.config));
        plan.private("threads", (self.n_threads - 1) * STACK_BYTES);
        plan.private("kv arena", self.kv.arena_bytes(self.n_slot));
        Scratch::plan(&model.config, &self.scratch, plan);
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
    /// What is left for them.
    pub left_bytes: u64,
}

impl Shortage {
    /// `None` where they fit, or where the system does not say what is available.
    pub fn of(plan: &Plan, available_bytes: Option<u64>) -> Option<Shortage> {
        let left_bytes = available_bytes?.saturating_sub(plan.private_bytes());
        let file_bytes = plan.file_bytes();
        (file_bytes > left_bytes).then_some(Shortage { file_bytes, left_bytes })
    }
}

impl std::fmt::Display for Shortage {
    /// Pages are dropped in the order in which they were read, so the next token finds few of those it needs: nearly all of
    /// the file is read for each.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |mb_per_s: f64| self.file_bytes as f64 / 1e6 / mb_per_s;
        write!(
            f,
            "the weights are {} and {} of memory are left for them, so most are read from the disk again for every token: \
             expect up to {:.1} s a token at 40 MB/s (an SD card), {:.1} s at 400 MB/s (an SSD); a smaller model or quantisation \
             that fits is many times faster",
            Bytes(self.file_bytes),
            Bytes(self.left_bytes),
            seconds(40.0),
            seconds(400.0)
        )
    }
}

pub struct Session {
    model: Model,
    machine: Machine,
    choice: Choice,
    cache: KvCache,
    n_batch: usize,
    n_logits: usize,
    n_past: u64,
}

impl Session {
    /// Takes all the memory there will be: what `Layout::plan` showed, which has been checked by the caller.
    pub fn new(model: Model, layout: &Layout) -> Result<Session> {
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
        let cache = KvCache::new(layout.kv, layout.n_slot, layout.rule, layout.kv_budget_bytes)?;
        let no_memory =
            |e: std::io::Error| Error::budget(Setting::Memory, format!("the system did not give what the plan asks for: {e}"));
        let scratch = Arena::fill(|arena| Scratch::carve(arena, &model.config, &layout.scratch)).map_err(no_memory)?;
        let pool = Pool::new(layout.n_threads)
            .map_err(|e| Error::usage(Setting::Threads, format!("cannot start {} threads: {e}", layout.n_threads)))?;
        let mut machine = Machine { kernels: layout.kernels, pool, scratch, guard: Guard::default() };
        let choice = machine.choose_kernels(&model);
        Ok(Session { model, machine, choice, cache, n_batch: layout.kv.n_batch, n_logits: layout.scratch.n_logits, n_past: 0 })
    }

    pub fn model(&self) -> &Model {
        &self.model
    }
    pub fn cache(&self) -> &KvCache {
        &self.cache
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
    /// Tokens taken in so far, whatever became of them.
    pub fn n_past(&self) -> u64 {
        self.n_past
    }

    /// Forgets the stream; the memory stays.
    pub fn clear(&mut self) {
        self.cache.clear();
        self.machine.scratch.convs.iter_mut().for_each(ShortConvs::clear);
        self.n_past = 0;
    }

    /// Evicts at once until `n_keep` tokens are left, by `rule` and no longer by that of the stream; the first `n_whole` layers keep all.
    pub fn compress(&mut self, n_keep: usize, n_whole: usize, rule: Rule) {
        self.cache.compress(n_keep, n_whole, rule, &mut self.machine.scratch.cache[0]);
    }

    /// How many of `n` tokens may go in as one batch now.
    pub fn together(&self, n: usize) -> usize {
        self.cache.together(n.min(self.n_batch))
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
            forward(&self.model, &mut self.machine, &mut self.cache, &tokens[done..done + n], wanted)?;
            done += n;
            self.n_past += n as u64;
            if !go_on(done) {
                return Ok(None);
            }
            if done == tokens.len() {
                return Ok(Some(&self.machine.scratch.logits[..self.model.config.n_vocab]));
            }
        }
    }

    /// One token in, the logits after it out, `[n_vocab]`.
    pub fn step(&mut self, token: u32) -> Result<&[f32]> {
        self.n_past += 1;
        forward(&self.model, &mut self.machine, &mut self.cache, &[token], Logits::Last)
    }

    /// At most `n_logits` tokens in, and no more than go `together`, the logits after each of them out, `[tokens.len()][n_vocab]`.
    pub fn prefill_all(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        assert!(tokens.len() <= self.n_logits);
        self.n_past += tokens.len() as u64;
        forward(&self.model, &mut self.machine, &mut self.cache, tokens, Logits::All)
    }

    /// As many tokens in as go `together`; `watch` sees the queries and the cache of each layer (`forward_watched`).
    pub fn prefill_watched(&mut self, tokens: &[u32], watch: impl FnMut(AttnLayer, &KvCache, &[f32])) -> Result<()> {
        assert!(tokens.len() <= self.n_batch);
        self.n_past += tokens.len() as u64;
        forward_watched(&self.model, &mut self.machine, &mut self.cache, tokens, Logits::None, watch)?;
        Ok(())
    }

    pub fn n_logits(&self) -> usize {
        self.n_logits
    }
}

#[cfg(test)]
#[path = "../tests/unit/session.rs"]
mod tests;
