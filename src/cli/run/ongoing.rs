//! A run that goes on with a saved conversation, and saves it again (`--session`). The prompt is the next text of the stream; with
//! `--chat` it is the user's next turn, and what closes the answer before it. Only that is read: the rest is in the file.

use crate::cli::sessions::{check_stands, head_of, named, unusable};
use crate::error::{Error, Result, Setting};
use crate::gguf::GgufFile;
use crate::session::Session;
use crate::session_file::{Fingerprint, Head, Limits, Name, Shelf};
use crate::text::{ChatTemplate, Sampler};
use crate::units::Bytes;

use super::args::RunArgs;

/// The session that a run names, as far as the folder tells.
pub struct Ongoing {
    pub name: Name,
    /// What there is of it; `None`: it begins with this run.
    pub head: Option<Head>,
}

/// It, with the memory that it takes.
pub struct Log {
    name: Name,
    shelf: Shelf,
    fingerprint: Fingerprint,
    /// `Shelf::mark` of what the run began from.
    stands: Option<u64>,
    /// Tokens before this run, and bytes of the file once it is saved.
    pub n_before: u64,
    pub file_bytes: u64,
}

/// Tokens of an answer without an end that are kept on record. A stream goes on behind them all the same, by their hash.
const N_ON_RECORD: usize = 8192;

/// Tokens of an answer to be kept on record; `n` as the command line gives it.
pub fn n_on_record(n: i64) -> usize {
    usize::try_from(n).unwrap_or(N_ON_RECORD)
}

impl Ongoing {
    /// `None` where the run names no session. Looks only: nothing is made.
    pub fn find(args: &RunArgs) -> Result<Option<Ongoing>> {
        let Some(name) = &args.session else { return Ok(None) };
        let name = named("--session", name, Name::new)?;
        Ok(Some(Ongoing { name, head: head_of(&name, &args.folder)? }))
    }

    /// Whether there is something to go on with.
    pub fn has_begun(&self) -> bool {
        self.head.is_some()
    }

    /// Tokens of the stream to be kept on record, where a run adds so many.
    pub fn most_tokens(&self, n_more: usize) -> usize {
        self.head.map_or(0, |head| head.n_tokens() as usize).saturating_add(n_more)
    }

    /// Private memory that `start` takes.
    pub fn bytes() -> usize {
        Shelf::plan_bytes()
    }

    /// Takes the memory, and makes of the session's stream the one that was saved, if one was.
    pub fn start(self, args: &RunArgs, needs_logits: bool, session: &mut Session, sampler: &mut Sampler) -> Result<Log> {
        let path = args.folder.path()?;
        let shelf = Shelf::open(&path, Limits::of(args.session_space.0)).map_err(|e| unusable(&path, &e))?;
        let fingerprint =
            Fingerprint::of(&session.model().file, template(args, &session.model().file)?.as_bytes(), session.cache());
        let mut log = Log { name: self.name, shelf, fingerprint, stands: None, n_before: 0, file_bytes: 0 };
        if self.has_begun() {
            log.stands = log.shelf.mark(&log.name);
            log.restore(session, sampler, args.sample.seed.is_none(), needs_logits)?;
        }
        Ok(log)
    }
}

/// The template that a conversation is bound to: the model's own, where no other is given.
fn template(args: &RunArgs, file: &GgufFile) -> Result<String> {
    match &args.template {
        Some(name) => Ok(ChatTemplate::named(name)?.source().to_owned()),
        None => Ok(file.opt_str("tokenizer.chat_template")?.unwrap_or_default().to_owned()),
    }
}

impl Log {
    fn restore(&mut self, session: &mut Session, sampler: &mut Sampler, goes_on_drawing: bool, needs_logits: bool) -> Result<()> {
        let (engine, stream) = session.parts();
        let resumed = self.shelf.restore_stream(&self.name, &self.fingerprint, engine, stream, None)?;
        self.n_before = resumed.n_past;
        stream.first_tokens().iter().for_each(|&token| sampler.accept(token));
        if goes_on_drawing {
            sampler.set_rng_state(resumed.generator);
        }
        if needs_logits && !resumed.has_logits {
            let what = format!("session '{}' does not say what its next token may be; give some text to go on with", self.name);
            return Err(Error::stopped(what));
        }
        Ok(())
    }

    /// Saves the stream.
    pub fn save(&mut self, session: &mut Session, sampler: &Sampler) -> Result<()> {
        check_stands(&mut self.shelf, &self.name, self.stands)?;
        let (engine, stream) = session.parts();
        let more = (&[][..], sampler.rng_state());
        self.file_bytes = self.shelf.save_stream(&self.name, &self.fingerprint, stream, Some(engine), more)?;
        Ok(())
    }

    /// One line.
    pub fn summary(&self, session: &Session) -> String {
        let (name, before, n) = (self.name, self.n_before, session.n_past());
        match self.file_bytes {
            0 => format!("session '{name}' was not saved: it stays at {before} tokens"),
            bytes => format!("session '{name}': {before} tokens before, {n} saved in {}", Bytes(bytes)),
        }
    }

    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

/// Never evicts the first tokens of a stream that begins.
pub fn pin(session: &mut Session, n_pinned: u32) -> Result<()> {
    match session.parts().1.pin(n_pinned as usize) {
        true => Ok(()),
        false => {
            let n_slot = session.cache().n_slot();
            let what = format!(
                "{n_pinned} pinned tokens of it do not fit into {n_slot} slots beside the recent ones; give --pin-system=false or raise --kv-budget"
            );
            Err(Error::budget(Setting::System, what))
        }
    }
}
