//! `lowkey sessions`: what is saved of conversations, as files of a folder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::error::{Error, Result, Setting, message};
use crate::kv::past::disk::PastFolder;
use crate::session_file::format::HEAD_BYTES;
use crate::session_file::shelf::BUFFER_BYTES;
use crate::session_file::{Failure, Folder, Head, Limits, Name, Shelf, Why};
use crate::units::Bytes;

use super::flags::spelled;

#[derive(Args)]
pub struct SessionsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Those that there are
    List(ListArgs),
    /// Read every byte of them and check it; exit code 1 if one is wrong
    Verify(VerifyArgs),
    /// Remove them
    Remove(RemoveArgs),
}

#[derive(Args, Clone)]
pub struct FolderArgs {
    /// The folder of saved conversations [default: $XDG_STATE_HOME/lowkey/sessions, or ~/.local/state/lowkey/sessions]
    #[arg(long, value_name = "DIR")]
    pub sessions: Option<PathBuf>,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// One JSON array on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct VerifyArgs {
    /// Which ones [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    folder: FolderArgs,
    /// One JSON array on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RemoveArgs {
    /// Which ones
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    folder: FolderArgs,
}

impl FolderArgs {
    pub fn path(&self) -> Result<PathBuf> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let state = || var("XDG_STATE_HOME").or_else(|| Some(var("HOME")?.join(".local/state")));
        self.sessions
            .clone()
            .or_else(|| Some(state()?.join("lowkey/sessions")))
            .ok_or_else(|| Error::usage("--sessions", "neither XDG_STATE_HOME nor HOME says where they are kept; give a folder"))
    }
}

/// A folder of sessions that cannot be used.
pub fn unusable(path: impl AsRef<Path>, e: &io::Error) -> Error {
    let what = format!(": {}: {e}: give a folder that you may write to", path.as_ref().display());
    Error::stopped(message![Setting::Sessions, what])
}

/// A name that is given on the command line.
pub fn named(flag: &'static str, text: &str, check: fn(&str) -> std::result::Result<Name, &'static str>) -> Result<Name> {
    check(text).map_err(|why| Error::usage(flag, format!("'{text}': {why}")))
}

/// Refuses to write over what another process has put under a name since `stands` was there (`Shelf::mark`).
pub fn check_stands(shelf: &mut Shelf, name: &Name, stands: Option<u64>) -> Result<()> {
    match shelf.mark(name) {
        now if now.is_none() || now == stands => Ok(()),
        _ => Err(Error::stopped(format!(
            "session '{name}' has been replaced by another process while this one went on: what is there stays, and this is not saved; \
             take turns, or give another name"
        ))),
    }
}

/// What a session is of, if it is there. Looks only: nothing is made.
pub fn head_of(name: &Name, folder: &FolderArgs) -> Result<Option<Head>> {
    let path = folder.path()?;
    let folder = match Folder::open(&path) {
        Ok(folder) => folder,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable(path, &e)),
    };
    let mut shelf = Shelf::bare(folder, Limits::of(0), HEAD_BYTES).map_err(|e| unusable(&path, &e))?;
    match shelf.head(name) {
        Ok(head) => Ok(Some(head)),
        Err(failure) if matches!(failure.why, Why::Missing) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// What is shown of a session.
#[derive(Serialize)]
struct Row {
    name: String,
    /// What is wrong with the file; of such a one nothing else is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
    #[serde(flatten)]
    known: Option<Known>,
}

#[derive(Serialize)]
struct Known {
    bytes: u64,
    /// Of its past, where that lies beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    past_bytes: Option<u64>,
    model: String,
    /// Tokens that the stream took in, and entries that each head holds.
    n_tokens: u64,
    n_live: u64,
    /// Seconds since 1970.
    saved_at: u64,
    settings: String,
    /// Saved by itself, and not under a name that somebody gave.
    is_automatic: bool,
}

impl Row {
    fn of(name: Name, found: std::result::Result<Head, Failure>, shelf: Option<&Shelf>) -> Row {
        let (known, wrong) = match found {
            Ok(head) => {
                let past_bytes = shelf.map(|shelf| shelf.past_bytes(&name)).filter(|_| head.fingerprint.has_past());
                (Some(Known::of(name, &head, past_bytes.filter(|&n| n > 0))), None)
            }
            Err(failure) => (None, Some(spelled(&failure.why.message()))),
        };
        Row { name: name.to_string(), wrong, known }
    }

    fn line(&self, whole: &str) -> String {
        let what = match (&self.known, &self.wrong) {
            (Some(known), _) => format!("{whole}{}", known.line()),
            (_, wrong) => wrong.clone().unwrap_or_default(),
        };
        format!("{:<24} {what}", self.name)
    }
}

impl Known {
    fn of(name: Name, head: &Head, past_bytes: Option<u64>) -> Known {
        Known {
            bytes: head.lengths.file_bytes().unwrap_or(0),
            past_bytes,
            model: head.fingerprint.model_name.as_str().into(),
            n_tokens: head.counts.n_past().unwrap_or(0),
            n_live: head.counts.n_live,
            saved_at: head.saved_at,
            settings: head.fingerprint.settings.as_str().into(),
            is_automatic: name.is_automatic(),
        }
    }

    fn line(&self) -> String {
        let at = i64::try_from(self.saved_at).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
        format!(
            "{:>10}{}  {}  {} tokens, {} live, of {}; {}",
            Bytes(self.bytes),
            self.past_bytes.map_or(String::new(), |n| format!(" and {} of past", Bytes(n))),
            at.map_or("at no time".into(), |at| at.to_string()),
            self.n_tokens,
            self.n_live,
            self.model.escape_debug(),
            self.settings.escape_debug()
        )
    }
}

/// The folder; `None` where there is none, and so no session.
fn open(folder: &FolderArgs) -> Result<Option<Shelf>> {
    let path = folder.path()?;
    let opened = Folder::open(&path).and_then(|folder| {
        let pasts = Arc::new(PastFolder::open(&path)?);
        Ok(Shelf::bare(folder, Limits::of(0), BUFFER_BYTES)?.with_pasts(pasts))
    });
    match opened {
        Ok(shelf) => Ok(Some(shelf)),
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder.sessions.is_none() => Ok(None),
        Err(e) => Err(unusable(path, &e)),
    }
}

fn all(shelf: &Option<Shelf>, folder: &FolderArgs) -> Result<Vec<Name>> {
    let names = shelf.as_ref().map_or(Ok(Vec::new()), Shelf::names);
    names.or_else(|e| Err(unusable(folder.path()?, &e)))
}

/// `whole`: what is said of one of which nothing is wrong.
fn show(rows: &[Row], json: bool, whole: &str) -> Result<()> {
    match json {
        true => super::answer_json(&rows),
        false => rows.iter().try_for_each(|row| super::answer(&row.line(whole))),
    }
}

pub fn run(args: SessionsArgs) -> Result<u8> {
    match args.what {
        What::List(ListArgs { folder, json }) => {
            let mut shelf = open(&folder)?;
            let names = all(&shelf, &folder)?;
            let row = |shelf: &mut Shelf, name: &Name| {
                let head = shelf.head(name);
                Row::of(*name, head, Some(shelf))
            };
            let rows: Vec<Row> = shelf.iter_mut().flat_map(|shelf| names.iter().map(|name| row(shelf, name))).collect();
            show(&rows, json, "")?;
            Ok(0)
        }
        What::Verify(VerifyArgs { names, folder, json }) => {
            let mut shelf = open(&folder)?;
            let names = match names.is_empty() {
                true => all(&shelf, &folder)?,
                false => names.iter().map(|text| named("NAME", text, Name::any)).collect::<Result<_>>()?,
            };
            let rows: Vec<Row> = names.iter().map(|name| verified(*name, shelf.as_mut())).collect();
            show(&rows, json, "whole: ")?;
            Ok(u8::from(rows.iter().any(|row| row.wrong.is_some())))
        }
        What::Remove(RemoveArgs { names, folder }) => {
            let names: Vec<Name> = names.iter().map(|text| named("NAME", text, Name::any)).collect::<Result<_>>()?;
            let mut shelf = open(&folder)?;
            for name in &names {
                match &mut shelf {
                    Some(shelf) => shelf.remove(name)?,
                    None => return Err(missing(name).into()),
                }
            }
            Ok(0)
        }
    }
}

fn missing(name: &Name) -> Failure {
    Failure { name: *name, why: Why::Missing, was_cleared: false }
}

fn verified(name: Name, shelf: Option<&mut Shelf>) -> Row {
    let Some(shelf) = shelf else { return Row::of(name, Err(missing(&name)), None) };
    let found = shelf.verify(&name);
    Row::of(name, found, Some(shelf))
}
