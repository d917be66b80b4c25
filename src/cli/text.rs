//! Texts that come in: from a flag, a file or standard input, never more of them than fits, and what turning one into
//! tokens takes.

use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result, Setting, message};
use crate::gguf::GgufFile;
use crate::text::Tokenizer;
use crate::units::Bytes;

/// Text that is read at most: it is held in memory, and so are its tokens.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Whether the end of a file's last line is a part of the text.
#[derive(Clone, Copy, PartialEq)]
pub enum Ending {
    Kept,
    /// One line break at the end is the editor's or the shell's, as llama.cpp has it.
    Dropped,
}

/// The text of `-p`, of a file, or of standard input.
pub fn read_text(text: Option<&str>, file: Option<&Path>, ending: Ending) -> Result<String> {
    let mut text = match (text, file) {
        (Some(text), _) => return Ok(text.to_owned()),
        (None, Some(path)) if path == "-" => read_at_most(std::io::stdin().lock(), 0, "standard input")?,
        (None, Some(path)) => {
            let file = std::fs::File::open(path).map_err(|e| unreadable("--file", path, &e, A_TEXT))?;
            let len = file.metadata().map_or(0, |m| m.len());
            read_at_most(file, len, &path.to_string_lossy())?
        }
        (None, None) => return Err(Error::usage("--prompt", "give a prompt with -p, or a file with -f")),
    };
    if ending == Ending::Dropped && text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

/// A file that a flag names and that cannot be read, with what the flag takes.
pub fn unreadable(flag: &'static str, path: impl AsRef<Path>, e: &io::Error, takes: &str) -> Error {
    Error::stopped(message![Setting::Own(flag), format!(": {}: {e}: give {takes}", path.as_ref().display())])
}

/// What `--file` takes.
const A_TEXT: &str = "a text file, or - for standard input";

fn read_at_most(from: impl Read, expected: u64, name: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(expected.min(MAX_TEXT_BYTES) as usize + 1);
    from.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(|e| unreadable("--file", name, &e, A_TEXT))?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        let what =
            format!("{name} is more than {} of text, which is the most that is read; give a part of it", Bytes(MAX_TEXT_BYTES));
        return Err(Error::usage("--file", what));
    }
    String::from_utf8(bytes).map_err(|_| Error::usage("--file", format!("{name} is not UTF-8 text; give a text file")))
}

/// Bytes for turning a text into tokens, from above, before there is a tokenizer: the text, its ids (a token is a byte at least,
/// its id four; a beginning and an end may be added), and working memory.
pub fn text_bytes(file: &GgufFile, text: &str) -> Result<usize> {
    Ok(text.len() + 4 * (text.len() + 2) + Tokenizer::most_work_bytes(file, text.len())?)
}
