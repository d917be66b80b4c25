//! `lowkey pack`: writes the pack of a model beside it, or checks the one that is there. An error or Ctrl-C leaves none.
//! `lowkey run --pack auto` does the first where the kernels read packs.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::Kernels;
use crate::model::forward::Model;
use crate::model::pack::{Contents, Pack, Unusable};
use crate::units::Bytes;

use super::interrupt;
use super::models::resolve;
use super::unfinished::Unfinished;

#[derive(Args)]
pub struct PackArgs {
    /// A GGUF file, a name that `lowkey models` lists, or that of a file that `lowkey pull` brought
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Write it even where there is one already
    #[arg(long)]
    force: bool,
    /// Check the one that is there against the whole model, and accept it where the model was only copied or touched
    #[arg(long, conflicts_with = "force")]
    verify: bool,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    path: String,
    /// `written`, `present` (nothing was to do) or `verified`.
    outcome: &'a str,
    n_packed: usize,
    n_left: usize,
    bytes: u64,
    /// Whether the kernel set that `auto` means on this machine reads it.
    used_here: bool,
    kernels: &'a str,
}

pub fn run(args: PackArgs) -> Result<u8> {
    let model = Model::load_without_pack(GgufFile::open(&resolve(&args.model)?)?)?;
    let path = Pack::path_of(model.file.path());
    let contents = Contents::of(&model.file, model.weights.matrices().map(|t| t.index()));
    interrupt::defer();
    Unfinished::sweep(&path);
    let outcome = match Pack::open(&path, &model.file) {
        found if args.verify => verify(&path, found, &model)?,
        found => make(&path, found, &contents, &model, args.force)?,
    };
    let Some(outcome) = outcome else { return Ok(interrupt::code().unwrap_or(1)) };
    answer(&args, &path, outcome, &contents)?;
    Ok(0)
}

type Found = Option<std::result::Result<Pack, Unusable>>;

/// Writes it unless one is there that fits; `None` where the user interrupted.
fn make(path: &Path, found: Found, contents: &Contents, model: &Model, force: bool) -> Result<Option<&'static str>> {
    match found {
        Some(Ok(pack)) if !force && pack.is_fresh(&model.file).is_ok() => Ok(Some("present")),
        Some(Err(why @ (Unusable::Foreign | Unusable::Unreadable(_)))) if !force => Err(Error::unsupported(path, why.message())),
        _ => write(path, contents, model),
    }
}

/// When a run writes a pack.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum When {
    /// Never; one that is there is read
    Use,
    /// Where the kernels read packs, none that fits is there, and the model's folder can be written
    Auto,
}

/// Makes the pack of a model that is to be run, where that is of use and possible; a line says why not. The exit code where the
/// user interrupted.
pub fn make_for(model: &Path, kernels: Kernels) -> Result<Option<u8>> {
    if !kernels.reads_packed() {
        log::warn!("--pack auto: the kernel set {} reads the model itself, so no pack is written", kernels.name());
        return Ok(None);
    }
    let model = Model::load_without_pack(GgufFile::open(&resolve(model)?)?)?;
    let path = Pack::path_of(model.file.path());
    let contents = Contents::of(&model.file, model.weights.matrices().map(|t| t.index()));
    interrupt::defer();
    let made = make(&path, Pack::open(&path, &model.file), &contents, &model, false);
    if let Some(code) = interrupt::take() {
        return Ok(Some(code));
    }
    match made {
        Ok(outcome) => log::info!("{}: {}", path.display(), outcome.unwrap_or("interrupted")),
        Err(error) => log::warn!("--pack auto: running without a pack: {}", super::flags::spelled(&error.message())),
    }
    Ok(None)
}

/// What a pack would be worth to a run that has none: one line, where the kernels would read it.
pub fn hint(model: &Model, kernels: Kernels) -> Option<String> {
    if !kernels.reads_packed() || model.pack.is_some() || model.unused_pack.is_some() || kernels.name() == "scalar" {
        return None;
    }
    let contents = Contents::of(&model.file, model.weights.matrices().map(|t| t.index()));
    (contents.n_tensors() > 0).then(|| {
        format!(
            "a pack would save this CPU about a quarter of the instructions of a generated token, and takes {} beside the model: give --pack auto, or run `lowkey pack` once; --pack use ends this line",
            Bytes(contents.file_bytes)
        )
    })
}

fn answer(args: &PackArgs, path: &Path, outcome: &str, contents: &Contents) -> Result<()> {
    let kernels = Kernels::choose("auto")?;
    let used_here = kernels.reads_packed();
    let (n_packed, n_left, bytes) = (contents.n_tensors(), contents.n_left, contents.file_bytes);
    let path = path.display().to_string();
    if args.json {
        return super::answer_json(&Answer { path, outcome, n_packed, n_left, bytes, used_here, kernels: kernels.name() });
    }
    let what = match outcome {
        "present" => "is there already and fits the model",
        "verified" => "holds the model's weights, byte for byte",
        _ => "written",
    };
    super::answer(&format!("{path}: {what}: {n_packed} matrices, {} ({bytes} bytes)", Bytes(bytes)))?;
    if n_left > 0 {
        super::answer(&format!("{n_left} matrices have no packed layout and are read from the model"))?;
    }
    if !used_here {
        let set = kernels.name();
        super::answer(&format!("the kernel set of this machine ({set}) reads the model itself; a pack is for ARM with dotprod"))?;
    }
    Ok(())
}

/// `None` where the user interrupted.
fn write(path: &Path, contents: &Contents, model: &Model) -> Result<Option<&'static str>> {
    if contents.n_tensors() == 0 {
        return Err(Error::unsupported(
            model.file.path(),
            "no matrix of it has a packed layout; packing is for Q4_0, Q4_1 and Q8_0: run it as it is",
        ));
    }
    let failed = |e| no_room(path, contents, e);
    let mut unfinished = Unfinished::create(path).map_err(failed)?;
    let whole = contents.write(&model.file, &mut unfinished.out, &mut || !interrupt::raised());
    if !whole.map_err(failed)? || interrupt::raised() {
        return Ok(None);
    }
    unfinished.finish().map_err(failed)?;
    Ok(Some("written"))
}

fn no_room(path: &Path, contents: &Contents, e: std::io::Error) -> Error {
    let what = format!("{e}: the model's folder must be writable and have room for {}", Bytes(contents.file_bytes));
    Error::io(path, std::io::Error::new(e.kind(), what))
}

/// `None` where the user interrupted.
fn verify(path: &Path, found: Found, model: &Model) -> Result<Option<&'static str>> {
    let refuse = |why: Unusable| Error::unsupported(path, why.message());
    let Some(pack) = found else {
        return Err(Error::unsupported(path, "no such file: run `lowkey pack` without --verify"));
    };
    let pack = pack.map_err(refuse)?;
    match pack.verify(&model.file, &mut || !interrupt::raised()) {
        None => return Ok(None),
        Some(checked) => checked.map_err(refuse)?,
    }
    if let Some(header) = pack.retimed(&model.file) {
        // In place: a header that is cut short has a wrong sum, and the pack is then left aside.
        let mut file = OpenOptions::new().write(true).open(path).map_err(|e| Error::io(path, e))?;
        file.write_all(&header).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, e))?;
    }
    Ok(Some("verified"))
}
