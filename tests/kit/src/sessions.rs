//! A model's stream on a shelf and off it.

use lowkey::session::Session;
use lowkey::session_file::disk::Disk;
use lowkey::session_file::{Failure, Fingerprint, Name, Restored, Resumed, Saved, Shelf};

pub fn fingerprint(session: &Session) -> Fingerprint {
    Fingerprint::of(&session.model().file, b"a template", session.cache())
}

/// What a stream's owner remembers of it beside its state, and how much of each there is room for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    pub tokens: Vec<u32>,
    pub text: Vec<u8>,
    room: usize,
}

impl Log {
    pub fn with_room(room: usize) -> Log {
        Log { room, ..Log::default() }
    }
}

pub fn save<D: Disk>(session: &mut Session, log: &Log, shelf: &mut Shelf<D>, name: &str) -> Result<u64, Failure> {
    let fingerprint = fingerprint(session);
    let (engine, stream) = session.parts();
    let logits = if stream.n_past() > 0 { engine.logits() } else { &[] };
    let (cache, convs) = stream.state_mut();
    let saved = Saved { cache, convs, tokens: &log.tokens, text: &log.text, logits, generator: 1234 };
    shelf.save(&Name::any(name).expect("a name"), &fingerprint, saved)
}

pub fn restore<D: Disk>(session: &mut Session, log: &mut Log, shelf: &mut Shelf<D>, name: &str) -> Result<Resumed, Failure> {
    let fingerprint = fingerprint(session);
    let (engine, stream) = session.parts();
    let (logits, scratch) = engine.restoring();
    let (cache, convs) = stream.state_mut();
    let Log { tokens, text, room } = log;
    tokens.resize(*room, 0);
    text.resize(*room, 0);
    let restored = Restored { cache, convs, tokens, text: Some(text), logits, scratch };
    let resumed = shelf.restore(&Name::any(name).expect("a name"), &fingerprint, restored);
    let [n_tokens, n_text] = resumed.as_ref().map_or([0, 0], |resumed| [resumed.n_tokens, resumed.n_text]);
    tokens.truncate(n_tokens);
    text.truncate(n_text);
    stream.resume();
    resumed
}
