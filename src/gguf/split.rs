//! Split models: one model in several files, `NAME-00001-of-00003.gguf` and so on, each with `split.no` (from 0),
//! `split.count` and `split.tensors.count`; the first has the metadata, the tensors are spread over all.
//! <https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split>
//!
//! Owns the names of the parts and the check that they are parts of one whole: none missing, repeated, renamed or of
//! another model. Refuses to guess: the parts lie in one folder under their names, and each mistake names the file.

use std::io;
use std::path::{Path, PathBuf};

use super::{Index, Part, open_part, parse};
use crate::{Error, Result};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const N_TENSORS: &str = "split.tensors.count";
/// What one part may say otherwise than another.
const OWN: [&str; 2] = [NO, "general.alignment"];

/// What a part says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Said {
    /// From 0.
    no: u32,
    count: u32,
    n_tensors: u32,
}

impl Said {
    /// `None` for a file that is no part of a split model.
    fn of(part: &Part, index: &Index) -> Result<Option<Said>> {
        let number = |key: &str| match index.get(part.map.bytes(), key) {
            None => Ok(None),
            Some(value) => value.to_u32(key).map(Some).map_err(|source| Error::gguf(&part.path, source)),
        };
        let Some(count) = number(COUNT)?.filter(|&count| count > 1) else { return Ok(None) };
        let Some((no, n_tensors)) = number(NO)?.zip(number(N_TENSORS)?) else {
            let what = format!(
                "this is one of {count} parts of a split model, and {NO} or {N_TENSORS} is missing: split the model again"
            );
            return Err(Error::unsupported(&part.path, what));
        };
        Ok(Some(Said { no, count, n_tensors }))
    }
}

/// The name of part `no` (from 0) of the model that `path` is part `no_here` of; `None` where `path` is not so named.
fn sibling(path: &Path, no_here: u32, count: u32, no: u32) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(&suffix(no_here, count))?;
    Some(path.with_file_name(format!("{stem}{}", suffix(no, count))))
}

fn suffix(no: u32, count: u32) -> String {
    format!("-{:05}-of-{count:05}.gguf", u64::from(no) + 1)
}

/// All parts of the model that `here` is one of, the first in front, and the index of them all; `here` alone if it is whole.
pub(super) fn join(here: Part, index: Index) -> Result<(Vec<Part>, Index)> {
    let Some(said) = Said::of(&here, &index)? else { return Ok((vec![here], index)) };
    let refuse = |path: &Path, what: String| Err(Error::unsupported(path, what));
    if said.no >= said.count {
        let what = format!("{NO} is {}, of {} parts: the file is damaged; fetch it again", said.no, said.count);
        return refuse(&here.path, what);
    }
    if sibling(&here.path, said.no, said.count, 0).is_none() {
        let what = format!(
            "this is part {} of {} of a split model, and its name does not end in {}, by which the others are found: name all parts so",
            said.no + 1,
            said.count,
            suffix(said.no, said.count)
        );
        return refuse(&here.path, what);
    }
    let (no_here, path_here) = (said.no, here.path.clone());
    let mut opened = Some((here, index));
    let mut parts: Vec<Part> = Vec::new();
    let mut whole: Option<Index> = None;
    for no in 0..said.count {
        let (part, index) = match opened.take_if(|_| no == no_here) {
            Some(opened) => opened,
            None => {
                let path = sibling(&path_here, no_here, said.count, no).unwrap_or_default();
                open_sibling(&path, said, no, &path_here)?
            }
        };
        match whole.as_mut() {
            None => whole = Some(index),
            Some(whole) => {
                check_same(whole, &parts[0], &index, &part)?;
                whole.absorb(index, no).map_err(|source| Error::gguf(&part.path, source))?;
            }
        }
        parts.push(part);
    }
    match whole {
        Some(whole) if whole.tensors().len() as u64 == u64::from(said.n_tensors) => Ok((parts, whole)),
        whole => {
            let n = whole.map_or(0, |whole| whole.tensors().len());
            let what = format!(
                "its {} parts hold {n} tensors, and {N_TENSORS} asks for {}: they are not of one model; fetch all parts again",
                said.count, said.n_tensors
            );
            refuse(&parts[0].path, what)
        }
    }
}

/// Part `no`, which says the same of the whole as the part that was opened.
fn open_sibling(path: &Path, said: Said, no: u32, here: &Path) -> Result<(Part, Index)> {
    let part = open_part(path).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let what = format!(
                "part {} of {} of a split model is missing: put it beside {}",
                no + 1,
                said.count,
                here.file_name().unwrap_or_default().to_string_lossy()
            );
            Error::io(path, io::Error::new(io::ErrorKind::NotFound, what))
        }
        error => error,
    })?;
    let index = parse(part.map.bytes()).map_err(|source| Error::gguf(path, source))?;
    let what = match Said::of(&part, &index)? {
        None => "and the file is no part of a split model".to_owned(),
        Some(other) if other == (Said { no, ..said }) => return Ok((part, index)),
        Some(other) if other.count != said.count || other.n_tensors != said.n_tensors => {
            format!("and the file is of another model, of {} parts and {} tensors", other.count, other.n_tensors)
        }
        Some(other) => format!("and the file says that it is part {}", u64::from(other.no) + 1),
    };
    let what = format!("by its name this is part {} of {}, {what}: fetch this part again", no + 1, said.count);
    Err(Error::unsupported(path, what))
}

/// Most parts have no metadata but the split's own; what one has must not contradict the first.
fn check_same(first: &Index, first_part: &Part, index: &Index, part: &Part) -> Result<()> {
    for (key, value) in index.metadata(part.map.bytes()).filter(|(key, _)| !OWN.contains(key)) {
        if first.get(first_part.map.bytes(), key).is_some_and(|other| !value.is_same(&other)) {
            let what = format!(
                "metadata key {} is another than in the first part: the parts are not of one model; fetch all parts again",
                super::error::Name(key)
            );
            return Err(Error::unsupported(&part.path, what));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../tests/unit/gguf/split.rs"]
mod tests;
