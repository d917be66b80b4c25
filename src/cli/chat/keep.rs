//! Conversations that are kept: `--session`, `/save`, `/load`, `/sessions`.

use std::path::PathBuf;

use crate::cli::output::say;
use crate::cli::sessions::{check_stands, named, unusable};
use crate::error::{Error, Result, message};
use crate::kv::Past;
use crate::session_file::{Fingerprint, Limits, Name, Shelf, Why};
use crate::units::Bytes;

use super::args::ChatArgs;
use super::talk::Talk;

/// The folder of conversations, once it was asked for.
pub struct Kept<'a> {
    args: &'a ChatArgs,
    keep: Option<Keep>,
}

impl<'a> Kept<'a> {
    pub fn new(args: &'a ChatArgs) -> Self {
        Kept { args, keep: None }
    }

    pub fn get(&mut self, talk: &Talk) -> Result<&mut Keep> {
        if self.keep.is_none() {
            self.keep = Some(Keep::open(self.args, talk)?);
        }
        self.keep.as_mut().ok_or_else(|| Error::stopped("the folder of sessions is not open"))
    }

    /// Another conversation begins: what is to be said of the name of the one before. Only that of `--session` is taken along.
    pub fn begin_anew(&mut self, talk: &Talk) -> String {
        let Some(keep) = &mut self.keep else { return String::new() };
        let Some(name) = keep.name.filter(|_| keep.stands.is_some()) else { return String::new() };
        if talk.session.cache().past().is_some() || self.args.session.as_deref() == Some(name.as_str()) {
            return format!(" What is said from here on takes the place of '{name}' at the end.");
        }
        keep.name = None;
        format!(" '{name}' stays as it was kept; /save NAME keeps what is said from here on.")
    }

    /// At the end: the conversation that has a name is kept.
    pub fn end(&mut self, talk: &mut Talk) -> Result<()> {
        match &mut self.keep {
            Some(keep) if keep.name.is_some() && talk.session.n_past() > 0 => keep.save("", talk),
            _ => Ok(()),
        }
    }
}

pub struct Keep {
    shelf: Shelf,
    path: PathBuf,
    fingerprint: Fingerprint,
    /// What the conversation is called, if it is.
    pub name: Option<Name>,
    /// `Shelf::mark` of what stood under the name when the conversation began there or was kept.
    stands: Option<u64>,
}

impl Keep {
    fn open(args: &ChatArgs, talk: &Talk) -> Result<Keep> {
        let path = args.folder.path()?;
        let shelf = Shelf::open(&path, Limits::of(args.session_space.0)).map_err(|e| unusable(&path, &e))?;
        let (file, template) = (&talk.session.model().file, talk.template.source());
        let fingerprint = Fingerprint::of(file, template.as_bytes(), talk.session.cache());
        let name = args.session.as_deref().map(|name| named("--session", name, Name::new)).transpose()?;
        Ok(Keep { shelf, path, fingerprint, name, stands: None })
    }

    /// Goes on with the conversation of `--session`, if it was kept.
    pub fn begin(&mut self, talk: &mut Talk) -> Result<()> {
        match self.name.filter(|name| self.shelf.has(name, &self.fingerprint)) {
            Some(name) => self.load(name.as_str(), talk),
            // One of another model or with other settings is told, and not overwritten.
            None => self.name.map_or(Ok(()), |name| match self.shelf.head(&name) {
                Ok(head) => {
                    let why = head.fingerprint.why_not(&self.fingerprint).unwrap_or_default();
                    let what = message![format!("'{name}' cannot go on here: "), why, "; give another name"];
                    Err(Error::usage("--session", what))
                }
                Err(failure) if matches!(failure.why, Why::Missing) => Ok(()),
                Err(failure) => Err(failure.into()),
            }),
        }
    }

    pub fn save(&mut self, name: &str, talk: &mut Talk) -> Result<()> {
        let name = match (name, self.name) {
            ("", Some(name)) => name,
            ("", None) => return Err(Error::stopped("/save takes a name, such as /save kitchen")),
            (name, _) => named("/save", name, Name::new)?,
        };
        check_name(talk.session.cache().past(), self.name, name)?;
        if self.name == Some(name) {
            check_stands(&mut self.shelf, &name, self.stands)?;
        }
        talk.settle()?;
        let (text, generator) = (talk.text(), talk.sampler.rng_state());
        let (engine, stream) = talk.session.parts();
        let saved = self.shelf.save_stream(&name, &self.fingerprint, stream, Some(engine), (text.as_bytes(), generator));
        if saved.is_ok() || self.name == Some(name) {
            self.stands = self.shelf.last_put().or(self.stands);
        }
        let n_bytes = saved.map_err(|failure| Error::stopped(failure.to_string()))?;
        self.name = Some(name);
        say(&format!("'{name}' is kept: {} tokens in {}", talk.session.n_past(), Bytes(n_bytes)));
        Ok(())
    }

    pub fn load(&mut self, name: &str, talk: &mut Talk) -> Result<()> {
        let name = named("/load", name, Name::new)?;
        check_name(talk.session.cache().past(), self.name, name)?;
        let stands = self.shelf.mark(&name);
        let (engine, stream) = talk.session.parts();
        let restored = self.shelf.restore_stream(&name, &self.fingerprint, engine, stream, None);
        talk.go_on();
        let resumed = restored.map_err(|failure| {
            if !failure.was_cleared {
                return Error::stopped(failure.to_string());
            }
            talk.reset();
            // What is said from here on is none of the conversation that had the name.
            self.name = self.name.filter(|_| talk.session.cache().past().is_some());
            Error::stopped(format!("{failure}; the conversation begins anew, and /save NAME keeps it"))
        })?;
        (self.name, self.stands) = (Some(name), stands);
        say(&format!("'{name}' goes on after {} tokens", resumed.n_past));
        Ok(())
    }

    pub fn list(&self) {
        let mut all: Vec<_> = self.shelf.sessions().filter(|(name, _)| !name.is_automatic()).collect();
        all.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
        match all.is_empty() {
            true => say(&format!("nothing is kept in {}", self.path.display())),
            false => all.iter().for_each(|(name, bytes)| say(&format!("{name}  {}", Bytes(*bytes)))),
        }
    }
}

/// Why a conversation is kept under one name.
const ONE_NAME: &str =
    "the file of the past belongs to the conversation that --session names: no other is kept or taken up in this process";

/// Refuses to keep or take up a conversation under another name than that of the past's file.
fn check_name(past: Option<&Past>, own: Option<Name>, name: Name) -> Result<()> {
    match past.is_some() && own != Some(name) {
        true => Err(Error::usage("--past", ONE_NAME)),
        false => Ok(()),
    }
}
