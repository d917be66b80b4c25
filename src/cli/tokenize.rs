//! `lowkey tokenize`: the ids of a text, as a JSON array.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::gguf::GgufFile;
use crate::text::Tokenizer;

use super::models::resolve;
use super::text::{Ending, read_text};

#[derive(Args)]
pub struct TokenizeArgs {
    /// A GGUF file, a name that `lowkey models` lists, or that of a file that `lowkey pull` brought
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    #[arg(value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file", required_unless_present = "file")]
    text: Option<String>,
    /// Read the text from a file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Treat the names of special tokens as plain text
    #[arg(long)]
    no_parse_special: bool,
    /// Leave out the tokens that the model wants before or after a text
    #[arg(long)]
    no_bos: bool,
    /// The answer is always JSON; accepted for symmetry
    #[arg(long, hide = true)]
    json: bool,
}

pub fn run(args: TokenizeArgs) -> Result<u8> {
    let file = GgufFile::open(&resolve(&args.model)?)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let text = read_text(args.text.as_deref(), args.file.as_deref(), Ending::Kept)?;
    let ids = tokenizer.encode(&text, !args.no_parse_special, !args.no_bos)?;
    super::answer_json(&ids)?;
    Ok(0)
}
