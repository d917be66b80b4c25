//! What is typed: lines with editing and history on a terminal, plain lines from a pipe; several lines make one text between `"""`,
//! or where a line ends with `\`.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use crate::cli::output::say;
use crate::error::{Error, Result};

/// A text at most: what is typed or pasted is held, and so are its tokens.
pub const MAX_BYTES: usize = 64 << 10;
const HISTORY_LINES: usize = 1000;
const QUOTES: &str = "\"\"\"";

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Text(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the end of the pipe.
    End,
}

enum Source {
    Terminal(Box<Editor<(), FileHistory>>),
    Pipe,
}

pub struct Input {
    source: Source,
    history: Option<PathBuf>,
}

fn failed(e: ReadlineError) -> Error {
    Error::stopped(format!("the terminal cannot be read: {e}"))
}

/// `$XDG_STATE_HOME/lowkey/history`.
fn history_path() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from).or_else(home)?;
    Some(state.join("lowkey/history"))
}

impl Input {
    pub fn open(keeps_history: bool) -> Result<Input> {
        if !std::io::stdin().is_terminal() {
            return Ok(Input { source: Source::Pipe, history: None });
        }
        let config = Config::builder().max_history_size(HISTORY_LINES).map_err(failed)?.auto_add_history(false).build();
        let mut editor = Editor::with_config(config).map_err(failed)?;
        let history = history_path().filter(|_| keeps_history);
        if let Some(path) = &history {
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            // The first time there is none.
            let loaded = made.and_then(|()| private(path)).map(|()| editor.load_history(path));
            if let Err(e) = loaded {
                log::warn!("{}: {e}: what is typed will not be remembered", path.display());
            }
        }
        Ok(Input { source: Source::Terminal(Box::new(editor)), history })
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Terminal(_))
    }

    /// The next text, whole.
    pub fn next(&mut self) -> Result<Typed> {
        let mut text = String::new();
        let mut quoted = false;
        loop {
            let line = match self.line(if text.is_empty() && !quoted { "> " } else { ". " })? {
                Typed::Text(line) => line,
                // What was begun is thrown away; at the end of a pipe it is the last text.
                Typed::End if !self.is_terminal() && !text.is_empty() => return Ok(Typed::Text(text)),
                other => return Ok(other),
            };
            if text.len() + line.len() > MAX_BYTES {
                say(&format!("lowkey: a text of more than {MAX_BYTES} bytes cannot be taken; it was left out"));
                (text, quoted) = (String::new(), false);
                continue;
            }
            let mut rest = line.as_str();
            if !quoted && text.is_empty() && rest.trim_start().starts_with(QUOTES) {
                (quoted, rest) = (true, &rest.trim_start()[QUOTES.len()..]);
            }
            if quoted {
                match rest.trim_end().strip_suffix(QUOTES) {
                    Some(last) => text.push_str(last),
                    None => {
                        text.push_str(rest);
                        if !(text.is_empty() && line.trim() == QUOTES) {
                            text.push('\n');
                        }
                        continue;
                    }
                }
            } else if let Some(begun) = rest.strip_suffix('\\') {
                text.push_str(begun);
                text.push('\n');
                continue;
            } else {
                text.push_str(rest);
            }
            self.remember(&text);
            return Ok(Typed::Text(text));
        }
    }

    fn line(&mut self, prompt: &str) -> Result<Typed> {
        match &mut self.source {
            Source::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Typed::Text(line)),
                Err(ReadlineError::Eof) => Ok(Typed::End),
                Err(ReadlineError::Interrupted) => Ok(Typed::Interrupt),
                Err(e) => Err(failed(e)),
            },
            Source::Pipe => loop {
                let mut bytes = Vec::new();
                let stdin = std::io::stdin().lock();
                // One more than may be, so that it is refused and not cut.
                let n =
                    stdin.take(MAX_BYTES as u64 + 2).read_until(b'\n', &mut bytes).map_err(|e| Error::io("standard input", e))?;
                if n == 0 {
                    return Ok(Typed::End);
                }
                if n > MAX_BYTES && bytes.last() != Some(&b'\n') {
                    // It will be left out, and so is what follows of the line.
                    std::io::stdin().lock().skip_until(b'\n').map_err(|e| Error::io("standard input", e))?;
                }
                let Ok(line) = String::from_utf8(bytes) else {
                    say("lowkey: a line that is not UTF-8 text cannot be taken; it was left out");
                    continue;
                };
                let line = line.strip_suffix('\n').map_or(line.as_str(), |l| l.strip_suffix('\r').unwrap_or(l));
                return Ok(Typed::Text(line.to_owned()));
            },
        }
    }

    fn remember(&mut self, text: &str) {
        if let (Source::Terminal(editor), Some(path)) = (&mut self.source, &self.history)
            && !text.trim().is_empty()
        {
            let _ = editor.add_history_entry(text);
            if let Err(e) = editor.save_history(path) {
                log::debug!("{}: {e}", path.display());
            }
        }
    }
}

/// Makes the file if there is none, for its owner alone.
fn private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}
