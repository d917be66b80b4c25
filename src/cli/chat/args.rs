//! The flags of `lowkey chat`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{DraftArgs, ModelArgs, OrMinusOne, SampleArgs};
use crate::cli::constraint::ConstraintArgs;
use crate::cli::sessions::FolderArgs;
use crate::units::Bytes;

#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "file")]
    pub system: Option<String>,
    /// Read it from a file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Never evict it, of whatever policy protects sinks; --pin-system=false lets it go like the rest
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
    /// A Jinja template to use instead of the model's own: a file, or a name such as chatml, llama3, gemma
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<PathBuf>,
    /// Let a model that can think before it answers do so, or not [default: as its template has it]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub think: Option<bool>,
    /// Tokens of an answer at most; -1 for as long as the model goes on
    #[arg(short, long, value_name = "N", default_value = "1024")]
    pub n: OrMinusOne<usize>,
    /// After each answer, a line with its tokens, speed, and what was evicted
    #[arg(long)]
    pub stats: bool,
    /// Keep no history of what was typed
    #[arg(long)]
    pub no_history: bool,
    /// Go on with the conversation that was kept under this name, if there is one, and keep it at the end. Needs the same model,
    /// budget and policy every time
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    #[command(flatten)]
    pub folder: FolderArgs,
    /// Bytes that kept conversations may take together
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub session_space: Bytes,
    #[command(flatten)]
    pub constraint: ConstraintArgs,
    #[command(flatten)]
    pub drafts: DraftArgs,
    #[command(flatten)]
    pub sample: SampleArgs,
}
