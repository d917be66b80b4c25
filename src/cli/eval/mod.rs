//! `lowkey eval`: what a cache budget costs in quality, on the user's model and text. One file per instrument; here is what
//! they share: budgets as shares of a full cache, and the model opened for a budget and a policy.

mod correlation;
mod npy;
mod plot;
mod ppl;
mod retrieval;
mod stream;

use std::path::PathBuf;

use clap::Subcommand;

use super::args::{Evict, ModelArgs};
use super::setup::{Done, Opened, open_with};
use crate::error::{Error, Result};
use crate::kv::{KvShape, KvType, Policy};
use crate::session::SessionParams;
use crate::units::percent;

#[derive(clap::Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Perplexity in windows, for several cache budgets and policies
    Ppl(Box<ppl::PplArgs>),
    /// A number hidden among lines that say nothing: is it still there at the end?
    Passkey(Box<retrieval::PasskeyArgs>),
    /// A fact hidden in your own prose: is it still there at the end?
    Needle(Box<retrieval::NeedleArgs>),
    /// Tasks after RULER: one number, one of several, several at once, variables that copy each other
    Ruler(Box<retrieval::RulerArgs>),
    /// Facts said in a long stream, each asked for a number of tokens later; and the stream's speed as it goes on
    Stream(Box<stream::StreamArgs>),
    /// Whether low-norm keys receive the attention, head by head
    Correlation(Box<correlation::CorrelationArgs>),
}

pub fn run(args: EvalArgs) -> Result<Done> {
    match args.what {
        What::Ppl(args) => ppl::run(*args),
        What::Passkey(args) => retrieval::passkey(*args),
        What::Needle(args) => retrieval::needle(*args),
        What::Ruler(args) => retrieval::ruler(*args),
        What::Stream(args) => stream::run(*args),
        What::Correlation(args) => correlation::run(*args),
    }
}

impl EvalArgs {
    /// The model, and whether the answer is JSON.
    pub fn model_and_json(&mut self) -> (&mut ModelArgs, bool) {
        match &mut self.what {
            What::Ppl(args) => (&mut args.text.model, args.output.is_json()),
            What::Passkey(args) => args.common.model_and_json(),
            What::Needle(args) => args.common.model_and_json(),
            What::Ruler(args) => args.common.model_and_json(),
            What::Stream(args) => (&mut args.model, args.output.is_json()),
            What::Correlation(args) => (&mut args.text.model, args.output.is_json()),
        }
    }
}

fn interrupted() -> Done {
    crate::cli::say("lowkey: interrupted, no result");
    Done::Exit(crate::cli::interrupt::code().unwrap_or(1))
}

/// The larger of two plans.
fn larger(one: Opened, other: Opened) -> Opened {
    if other.plan.private_bytes() > one.plan.private_bytes() { other } else { one }
}

/// Bytes of a row of an answer, as it is kept, and as the table or the picture shows it.
fn rows_bytes<Row>(n_rows: usize, plot: &plot::PlotArgs) -> usize {
    n_rows.saturating_mul(size_of::<Row>() + 256).saturating_add(plot.bytes(n_rows))
}

/// A model, and a text that is cut into windows.
#[derive(clap::Args)]
struct TextArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
}

impl TextArgs {
    /// For a text of `n_tokens` that holds no window.
    fn too_short(&self, n_tokens: usize) -> Error {
        let what = format!("{} has {n_tokens} tokens, fewer than one window of {}", self.file.display(), self.ctx);
        Error::usage("--file", format!("{what}; give a longer text or a smaller --ctx"))
    }
}

/// A share of the bytes of keys and values of a full f16 cache, in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Keep(f64);

impl std::str::FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        percent(text).filter(|p| *p > 0.0).map(Keep).ok_or(format!("'{text}' is not a share such as 50%"))
    }
}

/// What a session is to have.
#[derive(Clone, Copy, PartialEq)]
enum Budget {
    Bytes(u64),
    /// A share of the bytes of keys and values of a full f16 cache of the tokens.
    Share(f64),
    /// All tokens in f16, and nothing is evicted.
    Full,
    /// All tokens in the user's types.
    Whole,
}

impl Budget {
    fn bytes(self, kv: &KvShape, n_tokens: usize) -> u64 {
        match self {
            Budget::Bytes(bytes) => bytes,
            Budget::Share(percent) => (kv.full_f16_bytes(n_tokens) as f64 * percent / 100.0) as u64,
            Budget::Full | Budget::Whole => kv.arena_bytes(n_tokens) as u64,
        }
    }
}

/// Opens the model with a budget of `n_tokens` and a policy, for streams of `n_stream`. `plan` adds what only the caller knows of.
fn budget_opened(
    args: &ModelArgs,
    budget: Budget,
    policy: Evict,
    n_tokens: usize,
    n_stream: usize,
    n_logits: usize,
    plan: impl Fn(&mut Opened) -> Result<()>,
) -> Result<Opened> {
    let mut opened = open_with(args, |model| {
        let mut params = args.session.params(n_logits, model);
        (params.kv.budget_bytes, params.kv.policy, params.n_stream) = (u64::MAX, policy.of(model), Some(n_stream));
        // What is lost of a smaller arena is known once that is.
        params.past = None;
        params
    })?;
    if budget == Budget::Full {
        let params = &mut opened.params;
        (params.kv.policy, params.k_type, params.v_type) = (Policy::Off, Some(KvType::F16), Some(KvType::F16));
        opened.replan()?;
    } else {
        opened.params.past = args.session.past();
    }
    let mut kv = opened.layout.kv;
    kv.keeps.token = opened.params.past.is_some();
    opened.params.kv.budget_bytes = budget.bytes(&kv, n_tokens);
    opened.replan()?;
    plan(&mut opened)?;
    opened.check()?;
    Ok(opened)
}

/// Opens the model for what does not depend on a budget.
fn open_plain(args: &ModelArgs, n_logits: usize) -> Result<Opened> {
    open_with(args, |model| SessionParams { past: None, ..args.session.params(n_logits, model) })
}

/// Nothing is evicted.
const OFF: Evict = Evict::Named(Policy::Off);

/// `--policies`, or the one that `--evict` names.
fn policies<'a>(policies: &'a [Evict], model: &'a ModelArgs) -> &'a [Evict] {
    if policies.is_empty() { std::slice::from_ref(&model.session.evict) } else { policies }
}
