//! The flags of `lowkey run`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{DraftArgs, ModelArgs, SampleArgs};
use crate::cli::constraint::ConstraintArgs;
use crate::cli::pack::When;
use crate::cli::sessions::FolderArgs;
use crate::units::Bytes;

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read the prompt from a file; - is standard input. One line break at its end is left out
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Tokens to generate at most; -1 for as long as the model goes on
    #[arg(
        short,
        long,
        value_name = "N",
        default_value = "512",
        value_parser = clap::value_parser!(i64).range(-1..)
    )]
    pub n: i64,
    /// Put the prompt into the model's own chat template, as the user's turn
    #[arg(long)]
    pub chat: bool,
    /// With --chat: the system's turn before it
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// With --system: never evict the system's turn, of whatever policy protects sinks; --pin-system=false lets it go like the rest
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub pin_system: bool,
    /// With --chat: a Jinja template to use instead of the model's own: a file, or a name such as chatml, llama3, gemma
    #[arg(long, value_name = "NAME|FILE", requires = "chat")]
    pub template: Option<PathBuf>,
    /// Let control tokens that are written out in the messages be read as control tokens, as llama.cpp does; without it they are
    /// text. (Without --chat the whole prompt is read so.)
    #[arg(long, requires = "chat")]
    pub parse_special: bool,
    /// End when this text has been generated (may be given several times); it is not printed
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end-of-generation token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Whether to write a pack, which `lowkey pack` makes by hand: the weights once more, laid out for ARM with dotprod [default: use,
    /// and a line where a pack would help]
    #[arg(long, value_name = "WHEN")]
    pub pack: Option<When>,
    #[command(flatten)]
    pub constraint: ConstraintArgs,
    #[command(flatten)]
    pub drafts: DraftArgs,
    #[command(flatten)]
    pub sample: SampleArgs,
    /// Go on with the conversation that was saved under this name, if there is one, and save it under this name at the end. The prompt
    /// is the text that follows; with --chat it is the user's next turn. Needs the same model, budget and policy every time
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    #[command(flatten)]
    pub folder: FolderArgs,
    /// Bytes that saved conversations may take together
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub session_space: Bytes,
    /// One JSON object on stdout instead of the text
    #[arg(long)]
    pub json: bool,
    /// With --json: the K most likely tokens of each generated position, with their log-probabilities
    #[arg(long, value_name = "K", requires = "json", default_value = "0")]
    pub top_logprobs: usize,
}
