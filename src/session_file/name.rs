//! Names of sessions, and of their files: `NAME.lks`, `.NAME.tmp` while it is written; `NAME.past` of its past, `.NAME.past-tmp` while
//! that is written. A name is a part of a path and comes from strangers: letters, digits, `.`, `_` and `-`, at most 64 of them, no dot
//! at the start. Names that begin with `auto-` are kept for what is saved by itself.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128;

/// A text of at most `N` bytes, held in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Short<const N: usize> {
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Short<N> {
    /// As much of the text as there is room for.
    pub fn of(text: &str) -> Self {
        let len = (0..=text.len().min(N)).rev().find(|&len| text.is_char_boundary(len)).unwrap_or(0);
        let mut bytes = [0; N];
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Short { len, bytes }
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).expect("made of a text, cut at a character")
    }
}

impl<const N: usize> fmt::Debug for Short<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl<const N: usize> fmt::Write for Short<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Bytes of a name at most.
pub const MAX_NAME: usize = 64;
const AUTOMATIC: &str = "auto-";
const FILE: &str = ".lks";
const PART: &str = ".tmp";
const PAST: &str = ".past";
const PAST_PART: &str = ".past-tmp";

/// The name of a file in the folder of sessions.
pub type FileName = Short<{ MAX_NAME + 10 }>;

/// The name of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name(Short<MAX_NAME>);

impl Name {
    /// A name that somebody gives to a session.
    pub fn new(text: &str) -> Result<Name, &'static str> {
        match Name::any(text)? {
            name if name.is_automatic() => Err("names that begin with auto- are kept for what is saved by itself"),
            name => Ok(name),
        }
    }

    /// The name of any session, also of one that was saved by itself.
    pub fn any(text: &str) -> Result<Name, &'static str> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err("a name has 1 to 64 characters");
        }
        if text.starts_with('.') {
            return Err("a name does not begin with a dot");
        }
        match text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            true => Ok(Name(Short::of(text))),
            false => Err("a name consists of letters, digits, dots, _ and -"),
        }
    }

    /// Under which the stream that has read just this text is saved by itself.
    pub fn of_text(text: &[u8]) -> Name {
        use fmt::Write;
        let mut name = Short::of(AUTOMATIC);
        write!(name, "{:032x}", xxh3_128(text)).expect("shorter than a name may be");
        Name(name)
    }

    pub fn is_automatic(&self) -> bool {
        self.as_str().starts_with(AUTOMATIC)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub fn file(&self) -> FileName {
        joined(&[self.as_str(), FILE])
    }

    /// The file that is written.
    pub fn part(&self) -> FileName {
        joined(&[".", self.as_str(), PART])
    }

    /// The file of its past, where it has one.
    pub fn past(&self) -> FileName {
        joined(&[self.as_str(), PAST])
    }

    /// The file of its past that is written.
    pub fn past_part(&self) -> FileName {
        joined(&[".", self.as_str(), PAST_PART])
    }

    /// Whose past a file of the folder is, if it is one.
    pub fn of_past(file: &str) -> Option<Name> {
        Name::any(file.strip_suffix(PAST)?).ok()
    }

    /// Whose past was to be written into a file of the folder.
    pub fn of_past_part(file: &str) -> Option<Name> {
        Name::any(file.strip_prefix('.')?.strip_suffix(PAST_PART)?).ok()
    }

    /// Whose session a file of the folder is, if it is one.
    pub fn of_file(file: &str) -> Option<Name> {
        Name::any(file.strip_suffix(FILE)?).ok()
    }

    /// Whose session was to be written into a file of the folder.
    pub fn of_part(file: &str) -> Option<Name> {
        Name::any(file.strip_prefix('.')?.strip_suffix(PART)?).ok()
    }
}

fn joined(parts: &[&str]) -> FileName {
    use fmt::Write;
    let mut name = Short::of("");
    parts.iter().for_each(|part| name.write_str(part).expect("room for a name and what is put around it"));
    name
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
#[path = "../../tests/unit/session_file/name.rs"]
mod tests;
