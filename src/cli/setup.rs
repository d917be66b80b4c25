//! From flags to a session: opens the file, adds up the plan, checks it, and only then takes memory.

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::mem::plan::Plan;
use crate::model::forward::Model;
use crate::session::{Layout, Session, SessionParams, check_memory};
use crate::text::Tokenizer;

use super::models::resolve;

/// A model that has been opened and planned, and nothing more.
pub struct Opened {
    pub model: Model,
    pub params: SessionParams,
    pub layout: Layout,
    pub plan: Plan,
}

pub fn open(model: &str, params: SessionParams) -> Result<Opened> {
    let model = Model::load(GgufFile::open(&resolve(model)?)?)?;
    let layout = params.layout(&model)?;
    let mut opened = Opened { model, params, layout, plan: Plan::default() };
    opened.replan()?;
    Ok(opened)
}

impl Opened {
    /// Once more, after `params` have been changed; lines that callers added are gone.
    pub fn replan(&mut self) -> Result<()> {
        self.layout = self.params.layout(&self.model)?;
        self.plan = Plan::default();
        self.layout.plan(&self.model, &mut self.plan);
        self.plan.private("tokenizer", Tokenizer::plan_bytes(&self.model.file)? as usize);
        Ok(())
    }

    /// Checks the plan, which is complete by now, against `--memory`.
    pub fn check(&self) -> Result<()> {
        if self.layout.kernels.name() == "scalar" && self.params.kernels == "auto" {
            log::warn!("this CPU has no vector set that lowkey knows: running the scalar kernels, many times slower");
        }
        let kernels = self.layout.kernels;
        let slow =
            self.model.weights.types().filter(|&ty| kernels.name() != "scalar" && !kernels.is_fast(ty)).collect::<Vec<_>>();
        if let Some(ty) = slow.first() {
            let (n, set) = (slow.len(), kernels.name());
            log::warn!(
                "{n} matrices ({ty} and the like) have no {set} kernel and run many times slower by the scalar set; Q4_0, Q4_1 and Q8_0 have one everywhere"
            );
        }
        check_memory(&self.plan, self.params.memory_bytes)
    }

    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(&self.model.file)
    }

    /// Takes the memory.
    pub fn start(self) -> Result<(Session, Plan)> {
        let session = Session::new(self.model, &self.params)?;
        log::info!(
            "all memory is taken: {} slots, {} threads, kernels {}",
            session.cache().n_slot(),
            session.n_threads(),
            session.kernels().name()
        );
        Ok((session, self.plan))
    }
}

/// Merging a word takes a list and a queue of its parts, and a small string for each: measured at 105 bytes for each byte of
/// the word at most.
const WORD_BYTES: usize = 128;

/// Bytes for turning a text into tokens, from above: the text, its ids (a token is a byte at least, its id four), and the
/// merging of its longest word. Words are bounded by white space here, whatever the model's own rule is.
pub fn text_bytes(text: &str) -> usize {
    let (mut longest, mut word, mut in_space) = (0, 0, false);
    for c in text.chars() {
        let space = c.is_whitespace();
        // White space that follows may belong to a word, as one space before it may.
        if in_space && !space {
            word = 1;
        }
        in_space = space;
        word += c.len_utf8();
        longest = longest.max(word);
    }
    text.len() * 5 + longest * WORD_BYTES
}

/// Every token of a prompt must be one of the model's: the vocabulary is the file's, yet files lie.
pub fn check_tokens(session: &Session, tokens: &[u32]) -> Result<()> {
    let n_vocab = session.model().config.n_vocab;
    match tokens.iter().find(|&&t| t as usize >= n_vocab) {
        Some(token) => {
            Err(Error::unsupported(session.model().file.path(), format!("token {token} of a vocabulary of {n_vocab}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{WORD_BYTES, text_bytes};

    #[test]
    fn text_is_planned_by_its_longest_word() {
        for (text, longest) in [("", 0), ("abc", 3), ("a bcd e", 1 + 3 + 1), ("\u{e9}\u{e9}", 4), ("a    b", 5), ("    ", 4)] {
            assert_eq!(text_bytes(text), text.len() * 5 + longest * WORD_BYTES, "{text:?}");
        }
    }
}
