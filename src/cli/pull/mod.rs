//! `lowkey pull`: brings a model to where `-m NAME` finds it. A file appears under its name only whole and checked; what was
//! broken off is kept beside it as `NAME.part` and goes on where it ended.
//!
//! `source` says which files are meant and where they are, `download` brings one of them, both through `client`; `partial` is
//! what has come of it.

mod client;
mod download;
mod partial;
mod source;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::units::Bytes;

use super::{answer, answer_json, models};

#[derive(Args)]
pub struct PullArgs {
    /// A name of `lowkey models`, hf:OWNER/REPO[:FILE or quantisation, such as Q4_K_M], or the URL of a GGUF file
    #[arg(value_name = "MODEL")]
    what: String,
    /// The folder it goes to [default: $LOWKEY_MODELS, or lowkey/models in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// What the file's SHA-256 must be, in hexadecimal, where the source does not say it
    #[arg(long, value_name = "HEX", value_parser = source::sha256)]
    sha256: Option<String>,
    /// One JSON object on stdout: paths, bytes, sums
    #[arg(long)]
    json: bool,
}

/// One file that is there now.
#[derive(Serialize)]
struct Pulled {
    path: PathBuf,
    bytes: u64,
    sha256: String,
    /// Whether the sum was known beforehand, and is the same.
    verified: bool,
    /// Bytes that came over the network this time.
    received_bytes: u64,
}

pub fn run(args: PullArgs) -> Result<u8> {
    let agent = client::agent()?;
    let mut wanted = source::find(&agent, &args.what)?;
    if let Some(sum) = args.sha256 {
        match &mut wanted[..] {
            [one] => match &one.sha256 {
                Some(known) if *known != sum => {
                    return Err(Error::usage("--sha256", format!("the source says that the sum of {} is {known}", one.file)));
                }
                _ => one.sha256 = Some(sum),
            },
            _ => return Err(Error::usage("--sha256", "the model is in several files: leave it out")),
        }
    }
    let folder = args.dir.or_else(models::own_folder).ok_or_else(|| {
        Error::usage("--dir", "neither $LOWKEY_MODELS nor $XDG_DATA_HOME nor $HOME says where models are kept: give a folder")
    })?;
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    download::check_space(&folder, &wanted)?;
    let pulled = wanted.iter().map(|one| download::fetch(&agent, one, &folder)).collect::<Result<Vec<_>>>()?;
    // The whole of it, with all its parts: what does not hold together is there, and said to be so.
    GgufFile::open(&pulled[0].path)?;
    if args.json {
        answer_json(&pulled)?;
        return Ok(0);
    }
    for file in &pulled {
        let sum = if file.verified { "its SHA-256 is as it should be" } else { "no SHA-256 was known to compare" };
        answer(&format!("{}: {}, {sum}", file.path.display(), Bytes(file.bytes)))?;
    }
    Ok(0)
}
