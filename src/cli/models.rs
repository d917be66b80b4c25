//! Names for models: what `-m` takes is a path, or a name of the manifest whose file has been fetched.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::Bytes;

const MANIFEST: &str = include_str!("../../models/manifest.json");

/// An entry of `models/manifest.json`; what only the fetch script reads is left out.
#[derive(Deserialize, Serialize)]
struct Entry {
    name: String,
    file: String,
    what: String,
    quant: String,
    size_bytes: u64,
    licence: String,
}

#[derive(Args)]
pub struct ModelsArgs {
    /// One JSON array on stdout
    #[arg(long)]
    json: bool,
}

fn manifest() -> Vec<Entry> {
    serde_json::from_str(MANIFEST).expect("the manifest in the binary is JSON (a test reads it)")
}

/// Folders where fetched models are looked for, in order.
fn folders() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let beside_binary = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join("models")));
    let data = var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")));
    let data = data.map(|d| d.join("lowkey/models"));
    [var("LOWKEY_MODELS"), Some(PathBuf::from("models")), beside_binary, data].into_iter().flatten().collect()
}

fn fetched(entry: &Entry) -> Option<PathBuf> {
    folders().into_iter().map(|folder| folder.join(&entry.file)).find(|path| path.is_file())
}

/// The file that `-m` means.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() || model.contains('/') || model.ends_with(".gguf") {
        return Ok(path.to_owned());
    }
    let entries = manifest();
    let Some(entry) = entries.iter().find(|entry| entry.name == model) else {
        let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
        let what = format!("'{model}' is neither a file nor a known name ({}); give the path of a GGUF file", names.join(", "));
        return Err(Error::usage("--model", what));
    };
    fetched(entry).ok_or_else(|| {
        let what = format!(
            "{model} ({}) has not been fetched: run `models/fetch {model}` in the source folder, or give the path of a GGUF file",
            Bytes(entry.size_bytes)
        );
        Error::usage("--model", what)
    })
}

pub fn run(args: ModelsArgs) -> Result<u8> {
    let entries = manifest();
    if args.json {
        super::answer_json(&entries)?;
        return Ok(0);
    }
    let lines: Vec<_> = entries
        .iter()
        .map(|e| {
            let place = fetched(e).map_or_else(|| "not fetched".into(), |path| path.display().to_string());
            format!("{:<24} {:>10}  {}; {}\n{:<24} {:>10}  {place}", e.name, Bytes(e.size_bytes), e.what, e.licence, "", "")
        })
        .collect();
    super::answer(&lines.join("\n"))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_manifest_is_readable_and_unknown_names_are_refused() {
        assert!(super::manifest().iter().any(|e| e.name == "smollm2-135m-instruct"));
        let error = super::resolve("no-such-model").unwrap_err().to_string();
        assert!(error.contains("smollm2-135m-instruct") && error.starts_with("--model"), "{error}");
    }
}
