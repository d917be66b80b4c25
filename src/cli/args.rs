//! Flags that several commands share. Every flag also reads `LOWKEY_<FLAG>`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::error::Result;
use crate::kv::past::DEFAULT_RECALL;
use crate::kv::{KvParams, KvType, PastParams, Policy, Recent, Share};
use crate::model::forward::Model;
use crate::session::{DEFAULT_BATCH, SessionParams};
use crate::text::SamplerParams;
use crate::units::Bytes;

#[derive(Args, Clone)]
pub struct ModelArgs {
    /// A GGUF file, a name that `lowkey models` lists, or that of a file that `lowkey pull` brought
    #[arg(short, long, value_name = "MODEL", required = true)]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub session: SessionArgs,
    /// Nothing but the plan is wanted, and nothing is refused for its size.
    #[arg(skip)]
    pub only_plan: bool,
}

#[derive(Args, Clone)]
pub struct SessionArgs {
    /// Threads [default, and -1: what CPU affinity and the cgroup's quota allow]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<OrMinusOne<usize>>,
    /// Kernel set: auto, or one that `lowkey info` lists for this machine
    #[arg(long, value_name = "SET", default_value = "auto")]
    pub kernels: String,
    /// The KV arena, every byte of it: keys, values, scores, positions, and the rows of one prefill batch
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    pub kv_budget: Bytes,
    /// How keys are stored: f16, q8_0, q4_0, or turned by a Hadamard matrix first: q6_h, q5_h, q4_h [default: the most exact with
    /// which nothing need be evicted; q5_h where something must, or q8_0 of a model whose keys have long biases, as Qwen 2.5]
    #[arg(long, value_name = "TYPE")]
    pub k_type: Option<KvType>,
    /// How values are stored: the same types [default: likewise]
    #[arg(long, value_name = "TYPE")]
    pub v_type: Option<KvType>,
    /// --k-type and --v-type at once
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<KvType>,
    #[arg(long, value_name = "POLICY", default_value = "auto", help = Evict::help())]
    pub evict: Evict,
    /// First tokens of the stream that are never evicted
    #[arg(long, value_name = "N", default_value = "4")]
    pub sinks: u32,
    /// Latest tokens that are not evicted: a number, or a share of the slots [default: 30% with l2-attn, 60% with attn, else 50%]
    #[arg(long, value_name = "N|N%")]
    pub recent: Option<Recent>,
    /// Share of the slots that l2, l2-attn or attn reserve for the entries of the rarest directions and largest values, such as 25%
    /// [default: 45% with l2-attn, 8% with attn, else 0%]
    #[arg(long, value_name = "F%")]
    pub rare: Option<Share>,
    /// Rate an entry as its best neighbour within N tokens [default: 2 with l2-attn, 4 with attn, else 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=64))]
    pub pool: Option<u32>,
    /// Write every key and value to a file in this folder, and read again what the queries of a step ask for of what was evicted. The
    /// file has no name and goes with the process; with --session NAME it is NAME.past, and stays. What a server saves in --sessions has
    /// a NAME.past of its own there
    #[arg(long, value_name = "DIR", requires = "past_space")]
    pub past: Option<PathBuf>,
    /// The file of --past at most; when it is full, the oldest tokens in it are overwritten
    #[arg(long, value_name = "SIZE", requires = "past")]
    pub past_space: Option<Bytes>,
    /// With --past: pieces of four tokens that each KV head reads again at a step, at most
    #[arg(long, value_name = "N", requires = "past", default_value_t = DEFAULT_RECALL)]
    pub recall: usize,
    /// Tokens of a prefill batch
    #[arg(short, long, value_name = "N", default_value_t = DEFAULT_BATCH)]
    pub batch: usize,
    /// All private memory of the process: refuse to start if the plan does not fit
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Start even where more private memory is planned than the system has left
    #[arg(long)]
    pub overcommit: bool,
    /// Lock the weights in memory
    #[arg(long)]
    pub mlock: bool,
}

#[derive(Args, Clone)]
pub struct DraftArgs {
    /// Guess up to N tokens, 16 at most, from what the stream has said before, and check them in one pass: the text is the same, and
    /// there sooner where it repeats itself. 0: guess nothing
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub speculate: usize,
}

impl DraftArgs {
    /// The parameters of a session with as many guesses.
    pub fn with(&self, params: SessionParams) -> SessionParams {
        SessionParams { n_draft: self.speculate, ..params }
    }
}

/// `SessionArgs` where nothing is given.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    session: SessionArgs,
}

impl SessionArgs {
    /// What holds where no flag and no variable says otherwise.
    pub fn defaults() -> SessionArgs {
        use clap::Parser;
        Defaults::parse_from(["lowkey"]).session
    }

    /// Types of keys and of values, where the user names them.
    pub fn kv_types(&self) -> (Option<KvType>, Option<KvType>) {
        (self.k_type.or(self.kv_type), self.v_type.or(self.kv_type))
    }

    /// Whether a cache that holds everything may be the f16 cache that others are compared with.
    pub fn allows_f16(&self) -> bool {
        let (k_type, v_type) = self.kv_types();
        [k_type, v_type].into_iter().flatten().all(|ty| ty == KvType::F16)
    }

    /// The past in a file, where the user wants one.
    pub fn past(&self) -> Option<PastParams> {
        let (folder, space) = (self.past.as_ref()?, self.past_space?);
        Some(PastParams { folder: folder.clone(), name: None, space_bytes: space.0, n_recall: self.recall })
    }

    pub fn params(&self, n_logits: usize, model: &Model) -> SessionParams {
        let (k_type, v_type) = self.kv_types();
        SessionParams {
            n_streams: 1,
            n_log: 0,
            k_type,
            v_type,
            past: self.past(),
            n_stream: None,
            kv: KvParams {
                budget_bytes: self.kv_budget.0,
                policy: self.evict.of(model),
                sinks: self.sinks,
                pinned: 0,
                recent: self.recent,
                rare: self.rare,
                pool: self.pool,
            },
            n_batch: self.batch,
            n_threads: self.threads.and_then(|n| n.0),
            kernels: self.kernels.clone(),
            n_logits,
            n_draft: 0,
            memory_bytes: self.memory.map(|m| m.0),
            mlock: self.mlock,
        }
    }
}

/// `--evict`: a policy by its name, or the one that suits a model's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evict {
    Auto,
    Named(Policy),
}

impl Evict {
    /// Where a model norms its keys, their norms say nothing of the attention that they may expect.
    pub fn of(self, model: &Model) -> Policy {
        match self {
            Evict::Named(policy) => policy,
            Evict::Auto if model.config.arch.norms_keys() => Policy::Attn,
            Evict::Auto => Policy::L2Attn,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Evict::Auto => "auto",
            Evict::Named(policy) => policy.name(),
        }
    }

    fn help() -> String {
        let (usual, normed) = (Policy::L2Attn.name(), Policy::Attn.name());
        format!("{}\nauto is {usual}, and {normed} for models that norm their keys", crate::kv::policy::table::help())
    }
}

impl FromStr for Evict {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        if name == "auto" { Ok(Evict::Auto) } else { name.parse().map(Evict::Named).map_err(|e: String| e + ", auto") }
    }
}

/// A whole number, or -1, which leaves the choice to the program, as llama.cpp has it.
#[derive(Clone, Copy, Debug)]
pub struct OrMinusOne<N>(pub Option<N>);

impl<N: FromStr> FromStr for OrMinusOne<N> {
    type Err = N::Err;

    fn from_str(text: &str) -> std::result::Result<Self, N::Err> {
        if text == "-1" { Ok(OrMinusOne(None)) } else { text.parse().map(|n| OrMinusOne(Some(n))) }
    }
}

#[derive(Args, Clone)]
pub struct SampleArgs {
    /// Seed of the sampler [default, and -1: from the clock]
    #[arg(long, value_name = "N")]
    pub seed: Option<OrMinusOne<u64>>,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value = "0.8")]
    pub temp: f32,
    /// Sample among the K most likely tokens; 0 or -1 for all
    #[arg(long, value_name = "K", default_value = "40")]
    pub top_k: OrMinusOne<usize>,
    /// Sample among the fewest tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value = "0.95")]
    pub top_p: f32,
    /// Leave out tokens less likely than P times the most likely one
    #[arg(long, value_name = "P", default_value = "0.05")]
    pub min_p: f32,
    /// Divide the logits of recent tokens by this (multiply if negative); 1 for none
    #[arg(long, value_name = "R", default_value = "1.0")]
    pub repeat_penalty: f32,
    /// Subtract this from the logits of recent tokens
    #[arg(long, value_name = "P", default_value = "0.0")]
    pub presence_penalty: f32,
    /// Subtract this from the logits of recent tokens for each time that they occur
    #[arg(long, value_name = "P", default_value = "0.0")]
    pub frequency_penalty: f32,
    /// How many recent tokens the penalties look at; -1 for as many as the model was trained for
    #[arg(long, value_name = "N", default_value = "64")]
    pub repeat_last_n: OrMinusOne<usize>,
}

impl SampleArgs {
    /// For a model of `n_ctx` positions.
    pub fn params(&self, n_ctx: usize) -> SamplerParams {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        SamplerParams {
            temp: self.temp,
            top_k: self.top_k.0.unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n: self.repeat_last_n.0.unwrap_or(n_ctx),
            seed: self.seed.and_then(|seed| seed.0).unwrap_or_else(clock),
        }
    }
}

/// How rows of measurements are printed.
#[derive(Args)]
pub struct OutputArgs {
    /// How to print the rows
    #[arg(short, long, value_enum, default_value = "md")]
    output: Output,
    /// The same as -o json
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Json,
    Md,
}

impl OutputArgs {
    pub fn is_json(&self) -> bool {
        self.json || self.output == Output::Json
    }

    /// One JSON array, or what `table` makes of the rows.
    pub fn answer<R: Serialize>(&self, rows: &[R], table: impl Fn(&[R]) -> String) -> Result<()> {
        match self.is_json() {
            true => super::answer_json(&rows),
            false => super::answer(&table(rows)),
        }
    }
}
