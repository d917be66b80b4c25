//! A model's stream on a shelf and off it.

use lowkey::session::Session;
use lowkey::session_file::disk::Disk;
use lowkey::session_file::{Failure, Fingerprint, Name, Resumed, Shelf};

pub fn fingerprint(session: &Session) -> Fingerprint {
    Fingerprint::of(&session.model().file, b"a template", session.cache())
}

/// What is known of a stream beside its state: its tokens, as far as it keeps them, its text, and how much text there is room for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    pub tokens: Vec<u32>,
    pub text: Vec<u8>,
    pub room: usize,
}

impl Log {
    pub fn with_room(room: usize) -> Log {
        Log { room, ..Log::default() }
    }
}

pub fn save<D: Disk>(session: &mut Session, log: &Log, shelf: &mut Shelf<D>, name: &str) -> Result<u64, Failure> {
    let fingerprint = fingerprint(session);
    let (engine, stream) = session.parts();
    shelf.save_stream(&Name::any(name).expect("a name"), &fingerprint, stream, Some(engine), (&log.text, 1234))
}

pub fn restore<D: Disk>(session: &mut Session, log: &mut Log, shelf: &mut Shelf<D>, name: &str) -> Result<Resumed, Failure> {
    let fingerprint = fingerprint(session);
    let (engine, stream) = session.parts();
    log.text.resize(log.room, 0);
    let resumed = shelf.restore_stream(&Name::any(name).expect("a name"), &fingerprint, engine, stream, Some(&mut log.text))?;
    log.text.truncate(resumed.n_text);
    log.tokens = stream.first_tokens().to_vec();
    Ok(resumed)
}
