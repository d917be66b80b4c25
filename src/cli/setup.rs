//! From flags to a session: opens the file, adds up the plan, checks it, and only then takes memory.

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::mem::available::{available_bytes, limit_bytes, private_left_bytes};
use crate::mem::plan::Plan;
use crate::mem::pool::default_threads;
use crate::model::forward::Model;
use crate::session::{Layout, PastShortage, Session, SessionParams, Shortage, check_memory};
use crate::text::Tokenizer;
use crate::units::Bytes;

use super::args::{DraftArgs, ModelArgs};
use super::choice::described;
use super::models::resolve;
use super::status::{field, rss_anon_bytes};

/// How a command ended.
pub enum Done {
    /// With this exit code.
    Exit(u8),
    /// With its plan, since no more was wanted: the most that it takes at any time.
    Planned(Box<Opened>),
}

/// A model that has been opened and planned, and nothing more.
pub struct Opened {
    overcommit: bool,
    only_plan: bool,
    pub model: Model,
    pub params: SessionParams,
    pub layout: Layout,
    pub plan: Plan,
}

/// Opens the model that the flags name.
pub fn open(args: &ModelArgs, n_logits: usize) -> Result<Opened> {
    open_with(args, |model| args.session.params(n_logits, model))
}

/// Opens it to generate with it, by steps that may guess.
pub fn open_to_generate(args: &ModelArgs, drafts: &DraftArgs) -> Result<Opened> {
    open_with(args, |model| drafts.with(args.session.params(1, model)))
}

/// Opens it with other parameters than those of the flags.
pub fn open_with(args: &ModelArgs, params: impl FnOnce(&Model) -> SessionParams) -> Result<Opened> {
    let model = args.model.as_deref().ok_or_else(|| Error::usage("--model", "give a model with -m"))?;
    let model = Model::load(GgufFile::open(&resolve(model)?)?)?;
    if let Some(why) = &model.unused_pack {
        log::warn!("{}", super::flags::spelled(why));
    }
    let params = params(&model);
    let layout = params.layout(&model)?;
    let (overcommit, only_plan) = (args.session.overcommit, args.only_plan);
    let mut opened = Opened { overcommit, only_plan, model, params, layout, plan: Plan::default() };
    opened.replan()?;
    Ok(opened)
}

impl Opened {
    /// Once more, after `params` have been changed; lines that callers added are gone.
    pub fn replan(&mut self) -> Result<()> {
        self.layout = self.params.layout(&self.model)?;
        self.plan = Plan::default();
        self.layout.plan(&self.model, &mut self.plan);
        self.plan.private("tokenizer", Tokenizer::plan_bytes(&self.model.file)? as usize);
        Ok(())
    }

    /// Whether nothing but the plan is wanted.
    #[cfg(any(feature = "serve", feature = "chat"))]
    pub fn is_only_planned(&self) -> bool {
        self.only_plan
    }

    /// Private memory that commands have added to what a session itself takes.
    pub fn extra_bytes(&self) -> u64 {
        let mut own = Plan::default();
        self.layout.plan(&self.model, &mut own);
        self.plan.private_bytes() - own.private_bytes()
    }

    /// Checks the plan, which is complete by now, against `--memory` and against what the system has left.
    pub fn check(&self) -> Result<()> {
        if self.only_plan {
            return Ok(());
        }
        check_memory(&self.plan, self.params.memory_bytes)?;
        self.check_left()
    }

    /// Refuses what would be killed, or what the system would not give, in the middle of the work.
    fn check_left(&self) -> Result<()> {
        let taken = rss_anon_bytes();
        let more = self.plan.private_bytes().saturating_sub(taken);
        let left = |limit: &str, used: &str| Some(limit_bytes(limit)?.saturating_sub(field(used)));
        let memory = private_left_bytes().filter(|_| !self.overcommit);
        for (left, what, way_out) in [
            (memory, "the system, or the memory group that this process is in, has", ", or give --overcommit to start anyway"),
            (left("Max address space", "VmSize"), "the limit of address space has", ", or raise it with `ulimit -v`"),
            (left("Max data size", "VmData"), "the limit of data has", ", or raise it with `ulimit -d`"),
        ] {
            if let Some(left) = left.filter(|&left| more > left) {
                return Err(Error::stopped(format!(
                    "the plan takes {} of private memory, and {what} {} left for it; the largest parts are {}: lower --kv-budget, \
                     --batch or --threads{way_out}",
                    Bytes(self.plan.private_bytes()),
                    Bytes(left + taken),
                    self.plan.largest(3),
                )));
            }
        }
        Ok(())
    }

    /// Says which slow paths will be taken, once for a command.
    pub fn warn(&self) {
        let (kernels, n_threads, cores) = (self.layout.kernels, self.layout.n_threads, default_threads());
        if kernels.name() == "scalar" && self.params.kernels == "auto" {
            log::warn!("this CPU has no vector set that lowkey knows: running the scalar kernels, many times slower");
        }
        let slow = || self.model.weights.types().filter(|&ty| kernels.name() != "scalar" && !kernels.is_fast(ty));
        if let Some(ty) = slow().next() {
            let (n, set) = (slow().count(), kernels.name());
            log::warn!(
                "{n} matrices ({ty} and the like) have no {set} kernel: the scalar set multiplies them, many times slower"
            );
        }
        let kv = &self.params.kv;
        for (flag, given, taken) in [
            ("--rare", kv.rare.is_some(), kv.policy.row().reserve.is_some()),
            ("--pool", kv.pool.is_some(), kv.policy.row().pool.is_some()),
        ] {
            if given && !taken {
                log::warn!("{flag} changes nothing with --evict {}", kv.policy.name());
            }
        }
        self.warn_of_shortage();
        if n_threads > cores {
            log::warn!("--threads {n_threads} on {cores} cores: threads that wait for a core slow each other down; give {cores}");
        }
    }

    /// Says what memory will not hold, and how long a token then takes.
    pub fn warn_of_shortage(&self) {
        let available = available_bytes();
        if let Some(shortage) = Shortage::of(&self.plan, &self.model.weights, available) {
            log::warn!("{shortage}");
        }
        if let Some(shortage) = PastShortage::of(&self.plan, self.layout.past_index_bytes(), available) {
            log::warn!("{shortage}");
        }
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(&self.model.file)
    }

    /// Takes the memory.
    pub fn start(self) -> Result<(Session, Plan)> {
        let session = Session::new(self.model, &self.layout)?;
        log::info!(
            "all memory is taken: {} slots; kernels {}",
            session.cache().n_slot(),
            described(session.kernels(), session.choice(), session.n_threads())
        );
        Ok((session, self.plan))
    }
}

/// Every token of a prompt must be one of the model's: the vocabulary is the file's, yet files lie.
pub fn check_tokens(session: &Session, tokens: &[u32]) -> Result<()> {
    let n_vocab = session.model().config.n_vocab;
    match tokens.iter().find(|&&t| t as usize >= n_vocab) {
        Some(token) => {
            Err(Error::unsupported(session.model().file.path(), format!("token {token} of a vocabulary of {n_vocab}")))
        }
        None => Ok(()),
    }
}
