//! `lowkey info`: what a GGUF file holds (summary.rs has the short of it), whether this engine can run it, whether a pack
//! is there, the kernel sets of this machine, and which of them are fastest at what.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value as Json, json};

use crate::error::Result;
use crate::gguf::{GgufFile, Value};
use crate::kernels::Kernels;
use crate::mem::pool::default_threads;
use crate::model::choice::{Choice, choose_alone};
use crate::model::forward::Model;
use crate::model::pack::Pack;
use crate::text::Tokenizer;
use crate::units::Bytes;

use super::choice::{chosen, described};
use super::models::resolve;
use super::summary::Summary;

#[derive(Args)]
pub struct InfoArgs {
    /// A GGUF file, a name that `lowkey models` lists, or that of a file that `lowkey pull` brought
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// List every tensor too
    #[arg(long)]
    tensors: bool,
    /// One JSON object on stdout, with all metadata and tensors
    #[arg(long)]
    json: bool,
}

/// Elements of an array that are shown; vocabularies are long.
const SHOWN: usize = 8;
const SHOWN_CHARS: usize = 60;

pub fn run(args: InfoArgs) -> Result<u8> {
    let file = GgufFile::open(&resolve(&args.model)?)?;
    let kernels: Vec<_> = Kernels::available().map(|k| k.name()).collect();
    let text = if args.json { None } else { Some(as_text(&file, args.tensors)) };
    let mut json = args.json.then(|| as_json(&file, &kernels));
    let mut summary = Summary::of_file(&file)?;
    let pack = pack_state(&file);
    let mut choice = None;
    let verdict = match Model::load(file) {
        Ok(model) => {
            choice = measured(&model);
            summary.add_model(&model).and_then(|()| Tokenizer::from_gguf(&model.file)).err()
        }
        Err(error) => Some(error),
    };
    let verdict = verdict.map(|e| super::flags::spelled(&e.message()));
    if let Some(json) = &mut json {
        (json["runs"], json["why_not"]) = (json!(verdict.is_none()), json!(verdict));
        (json["summary"], json["pack"]) = (json!(summary), pack);
        let (list, read_gb_s) = choice.as_ref().map_or((Vec::new(), None), |(_, _, c)| (chosen(c), c.read_gb_s()));
        (json["kernel_choice"], json["read_gb_s"]) = (json!(list), json!(read_gb_s));
        super::answer_json(&*json)?;
    } else if let Some(text) = text {
        super::answer(&text)?;
        super::answer(&summary.text())?;
        super::answer(&format!("pack: {}", pack["state"].as_str().unwrap_or_default()))?;
        super::answer(&format!("kernel sets of this machine: {}", kernels.join(", ")))?;
        if let Some((kernels, n_threads, choice)) = &choice {
            super::answer(&format!("measured on these weights: {}", described(*kernels, choice, *n_threads)))?;
        }
        super::answer(&verdict.map_or("this engine runs it".to_owned(), |why| format!("this engine does not run it: {why}")))?;
    }
    Ok(0)
}

/// Which sets would do what, with as many threads as a run has by default.
fn measured(model: &Model) -> Option<(Kernels, usize, Choice)> {
    let n_threads = default_threads();
    match Kernels::choose("auto").map(|kernels| choose_alone(model, kernels, n_threads)) {
        Ok(Ok((kernels, choice))) => Some((kernels, n_threads, choice)),
        Ok(Err(why)) => {
            log::warn!("the kernel sets were not measured, for want of memory or threads: {why}");
            None
        }
        Err(why) => {
            log::warn!("the kernel sets were not measured: {why}");
            None
        }
    }
}

/// Whether a pack is there, and would be used.
fn pack_state(file: &GgufFile) -> Json {
    let path = Pack::path_of(file.path());
    let reads = Kernels::choose("auto").is_ok_and(|kernels| kernels.reads_packed());
    let state = match Pack::open(&path, file).map(|pack| pack.and_then(|pack| pack.in_time(file))) {
        None => "none".to_owned(),
        Some(Ok(_)) => format!(
            "fresh, and {} (some rows were compared, not every byte: `lowkey pack --verify` does that)",
            if reads { "used on this machine" } else { "not read by the kernel set of this machine" }
        ),
        Some(Err(why)) => format!("not used: {}", super::flags::spelled(&why.message())),
    };
    json!({ "path": path.display().to_string(), "state": state, "used_here": reads && state.starts_with("fresh") })
}

fn as_text(file: &GgufFile, tensors: bool) -> String {
    let (size, n) = (Bytes(file.file_bytes()), file.paths().count());
    let parts = if n > 1 { format!(" in {n} files") } else { String::new() };
    let mut out =
        format!("{}: GGUF version {}, {size}{parts}, alignment {}\n", file.path().display(), file.version(), file.alignment());
    for (key, value) in file.metadata() {
        out.push_str(&format!("  {key} = {}\n", shown(&value)));
    }
    for t in file.tensors().iter().filter(|_| tensors) {
        out.push_str(&format!("  {:<28} {:<6} {:?} at {}, {} bytes\n", t.name, t.ty.name(), t.shape(), t.offset, t.n_bytes));
    }
    out.trim_end().to_owned()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Str(s) if s.chars().count() > SHOWN_CHARS => {
            format!("{:?}… ({} bytes)", s.chars().take(SHOWN_CHARS).collect::<String>(), s.len())
        }
        Value::Array(a) => {
            let first: Vec<_> = a.iter().take(SHOWN).map(|v| shown(&v)).collect();
            let more = if a.len() > SHOWN { ", …" } else { "" };
            format!("[{}{more}] ({} of {})", first.join(", "), a.len(), a.elem_type().name())
        }
        other => to_json(other).to_string(),
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Str(s) => json!(s),
        Value::Bool(b) => json!(b),
        Value::Array(a) if a.len() > 64 => {
            let first: Vec<_> = a.iter().take(SHOWN).map(|v| to_json(&v)).collect();
            json!({ "type": a.elem_type().name(), "len": a.len(), "first": first })
        }
        Value::Array(a) => Json::Array(a.iter().map(|v| to_json(&v)).collect()),
        number => match (number.as_int(), number.as_float()) {
            (Some(i), _) => i64::try_from(i).map_or_else(|_| json!(i.to_string()), |i| json!(i)),
            (_, Some(f)) => json!(f),
            _ => Json::Null,
        },
    }
}

fn as_json(file: &GgufFile, kernels: &[&str]) -> Json {
    let metadata: Map<String, Json> = file.metadata().map(|(key, value)| (key.to_owned(), to_json(&value))).collect();
    let tensor = |t: &crate::gguf::TensorInfo| json!({ "name": t.name, "type": t.ty.name(), "shape": t.shape(), "part": t.part, "offset": t.offset, "bytes": t.n_bytes });
    json!({
        "path": file.path().display().to_string(), "paths": file.paths().map(|p| p.display().to_string()).collect::<Vec<_>>(), "version": file.version(), "file_bytes": file.file_bytes(),
        "alignment": file.alignment(), "metadata": metadata, "tensors": file.tensors().iter().map(tensor).collect::<Vec<_>>(),
        "kernels": kernels,
    })
}
