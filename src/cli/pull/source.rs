//! Which files a model is, and where they are: by the manifest, by a repository of Hugging Face's, or by an address.

use serde::Deserialize;

use crate::cli::models;
use crate::error::{Error, Result};

use super::client::{self, Asked};

/// The choice where none is named, as llama.cpp's and ollama's.
const USUAL_QUANT: &str = "Q4_K_M";

/// The hub's list of files, at most.
const MOST_LIST_BYTES: u64 = 8 << 20;

/// One file to bring.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub url: String,
    /// Its name, without folders.
    pub file: String,
    pub bytes: Option<u64>,
    /// In hexadecimal, small letters.
    pub sha256: Option<String>,
    /// Whether the hub's token goes with the request.
    pub is_hub: bool,
}

impl Wanted {
    pub fn asked(&self) -> Asked<'_> {
        Asked { url: &self.url, is_hub: self.is_hub }
    }
}

pub fn sha256(text: &str) -> std::result::Result<String, String> {
    match text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a SHA-256 is 64 hexadecimal digits".into()),
    }
}

/// The files of `what`, the first one first.
pub fn find(agent: &ureq::Agent, what: &str) -> Result<Vec<Wanted>> {
    if let Some(name) = what.strip_prefix("hf:") {
        return hub_files(agent, name);
    }
    if what.starts_with("http://") || what.starts_with("https://") {
        return by_address(what);
    }
    match models::source_of(what)? {
        models::Origin::Url { url, file, bytes, sha256 } => Ok(vec![Wanted { is_hub: is_hub(&url), url, file, bytes, sha256 }]),
        models::Origin::Hub { repo, file } => hub_files(agent, &format!("{repo}:{file}")),
    }
}

/// The file of an address, whose last part is its name; of a part of a model all parts.
fn by_address(url: &str) -> Result<Vec<Wanted>> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    file_name(name)?;
    let (before, after) = (&path[..path.len() - name.len()], &url[path.len()..]);
    let wanted = |file: String| {
        let url = format!("{before}{file}{after}");
        Wanted { is_hub: is_hub(&url), url, file, bytes: None, sha256: None }
    };
    Ok(match part_of(name) {
        Some((stem, _, n)) => (1..=n).map(|i| wanted(part_name(stem, i, n))).collect(),
        None => vec![wanted(name.to_owned())],
    })
}

fn is_hub(url: &str) -> bool {
    url.starts_with(&format!("{}/", hub()))
}

/// A name that a stranger gives, as the name of a file: no folders, nothing hidden, no more than a disk takes.
fn file_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    match name.ends_with(".gguf") && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::usage("MODEL", format!("{name:?} is no name of a GGUF file: letters, digits and .-_+, then .gguf"))),
    }
}

/// Where the hub is: HF_ENDPOINT, as the hub's own tools read it.
fn hub() -> String {
    let set = std::env::var("HF_ENDPOINT").ok().filter(|url| !url.is_empty());
    set.unwrap_or_else(|| "https://huggingface.co".into()).trim_end_matches('/').to_owned()
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    size: u64,
    /// What large files have: their SHA-256 as `oid`.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
}

fn hub_files(agent: &ureq::Agent, name: &str) -> Result<Vec<Wanted>> {
    let (repo, file) = name.split_once(':').map_or((name, None), |(repo, file)| (repo, Some(file)));
    let part = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if !repo.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name)) || file == Some("") {
        return Err(Error::usage("MODEL", format!("hf:{name}: give hf:OWNER/REPO, hf:OWNER/REPO:FILE or hf:OWNER/REPO:Q4_K_M")));
    }
    let hub = hub();
    let url = format!("{hub}/api/models/{repo}/tree/main?recursive=true");
    let text = client::text(agent, &Asked { url: &url, is_hub: true }, MOST_LIST_BYTES)?;
    let listed: Vec<Listed> = serde_json::from_str(&text).map_err(|e| {
        Error::stopped(format!("{url}: the list of files is not as expected ({e}): give the URL of the file itself"))
    })?;
    let chosen = choose(&listed, repo, file)?;
    chosen
        .into_iter()
        .map(|listed| {
            let name = listed.path.rsplit('/').next().unwrap_or_default();
            file_name(name)?;
            let sum = listed.lfs.as_ref().map(|lfs| sha256(&lfs.oid)).transpose();
            Ok(Wanted {
                url: format!("{hub}/{repo}/resolve/main/{}", escaped(&listed.path)),
                file: name.to_owned(),
                bytes: Some(listed.size),
                sha256: sum.map_err(|e| Error::stopped(format!("{}: {e}", listed.path)))?,
                is_hub: true,
            })
        })
        .collect()
}

/// A path of the hub's in an address.
fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// `model-00002-of-00003.gguf` is the second of three.
fn part_of(path: &str) -> Option<(&str, u32, u32)> {
    let stem = path.strip_suffix(".gguf")?;
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (name, index) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
    let (index, of) = (number(index)?, number(of)?);
    (1..=of).contains(&index).then_some((name, index, of))
}

fn part_name(stem: &str, index: u32, of: u32) -> String {
    format!("{stem}-{index:05}-of-{of:05}.gguf")
}

/// Of the files of a repository those that are meant: one, or all parts of one.
fn choose<'a>(listed: &'a [Listed], repo: &str, file: Option<&str>) -> Result<Vec<&'a Listed>> {
    // What goes with a model and is none: projectors of pictures, matrices of importance.
    let beside = |path: &str| ["mmproj", "imatrix"].iter().any(|word| path.to_ascii_lowercase().contains(word));
    let mut models: Vec<&Listed> = listed.iter().filter(|f| f.path.ends_with(".gguf") && !beside(&f.path)).collect();
    models.retain(|f| part_of(&f.path).is_none_or(|(_, index, _)| index == 1));
    let names = || models.iter().map(|f| f.path.as_str()).take(40).collect::<Vec<_>>().join(", ");
    if models.is_empty() {
        return Err(Error::usage("MODEL", format!("hf:{repo} has no GGUF file: look for one whose name ends in -GGUF")));
    }
    let of_quant = |quant: &str| -> Vec<&Listed> {
        let quant = quant.to_ascii_uppercase();
        models.iter().copied().filter(|f| is_quant(&f.path, &quant)).collect()
    };
    let found = match file {
        Some(file) if file.ends_with(".gguf") => {
            let own = |f: &&Listed| f.path == file || f.path.ends_with(&format!("/{file}"));
            models.iter().copied().filter(own).collect()
        }
        Some(quant) => of_quant(quant),
        None if models.len() == 1 => models.clone(),
        None => of_quant(USUAL_QUANT),
    };
    let first = match found[..] {
        [one] => one,
        [] => return Err(Error::usage("MODEL", format!("hf:{repo}: which file? There are {}", names()))),
        _ => {
            let found: Vec<_> = found.iter().map(|f| f.path.as_str()).collect();
            return Err(Error::usage("MODEL", format!("hf:{repo}: several files are meant: {}", found.join(", "))));
        }
    };
    let Some((stem, _, n)) = part_of(&first.path) else { return Ok(vec![first]) };
    let part = |i: u32| {
        let path = part_name(stem, i, n);
        let found = listed.iter().find(|f| f.path == path);
        found.ok_or_else(|| Error::stopped(format!("hf:{repo} lacks {path}, a part of the model")))
    };
    (1..=n).map(part).collect()
}

/// Whether a file's name ends in the quantisation, as in `name-Q4_K_M.gguf`, or is in a folder of that name.
fn is_quant(path: &str, quant: &str) -> bool {
    let whole = path.to_ascii_uppercase();
    let stem = part_of(path).map_or(path.strip_suffix(".gguf").unwrap_or(path), |(stem, ..)| stem).to_ascii_uppercase();
    let ends = stem.strip_suffix(quant).is_some_and(|rest| rest.is_empty() || rest.ends_with(['-', '.', '_', '/']));
    ends || whole.split('/').rev().skip(1).any(|folder| folder == quant)
}

#[cfg(test)]
#[path = "../../../tests/unit/cli/pull.rs"]
mod tests;
