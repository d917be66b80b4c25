//! An answer, token by token, of which several may be taken in by one pass: what is guessed of it (`drafts`) goes in
//! behind the token that is certain, and whoever draws the next tokens finds out which guesses were right. The logits
//! after each token, and so the text, are those that there would be without guesses.

use super::drafts::MAX_GUESSES;
use super::{Engine, Lane, Stream};
use crate::error::Result;
use crate::model::forward::{Logits, forward};

/// The guesses of the latest step.
#[derive(Default)]
pub(super) struct Guesses {
    tokens: [u32; MAX_GUESSES],
    n: usize,
    n_right: usize,
}

impl Guesses {
    /// Those that are neither accepted nor taken back.
    fn open(&self) -> &[u32] {
        &self.tokens[self.n_right..self.n]
    }
}

impl Engine {
    /// One token into a stream, and behind it what may follow, at most `most` guesses: the logits after it are
    /// `logits_of(0)`, those after the guesses follow. Then `accept` is asked for each token that comes, until one
    /// was not guessed, and `settle` ends it.
    pub fn step(&mut self, stream: &mut Stream, token: u32, most: usize) -> Result<()> {
        self.settle(stream);
        stream.take_down(&[token]);
        let most = most.min(self.undo.n_guess()).min(stream.cache.most_guesses());
        let guessed = stream.drafts.as_mut().filter(|_| most > 0).map_or(&[][..], |drafts| drafts.guess(most));
        if guessed.is_empty() {
            return forward(&self.model, &mut self.machine, [stream.lane(&[token])], Logits::Last).map(|_| ());
        }
        let mut tokens = [token; MAX_GUESSES + 1];
        let n = guessed.len();
        tokens[1..=n].copy_from_slice(guessed);
        self.guesses.tokens[..n].copy_from_slice(guessed);
        let lane = Lane { undo: Some(&mut self.undo), ..stream.lane(&tokens[..=n]) };
        forward(&self.model, &mut self.machine, [lane], Logits::All)?;
        (self.guesses.n, self.guesses.n_right) = (n, 0);
        Ok(())
    }

    /// The next token of a stream is this one: whether it was guessed, so that it is in already.
    pub fn accept(&mut self, stream: &mut Stream, token: u32) -> bool {
        let is_right = self.guesses.open().first() == Some(&token);
        if is_right {
            self.guesses.n_right += 1;
            stream.cache.accept();
            stream.take_down(&[token]);
        }
        is_right
    }

    /// What was guessed of a stream and has not come has never been in it.
    pub fn settle(&mut self, stream: &mut Stream) {
        let Guesses { n, n_right, .. } = std::mem::take(&mut self.guesses);
        stream.cache.take_back(&mut self.undo);
        if let Some(drafts) = stream.drafts.as_mut().filter(|_| n > 0) {
            drafts.judge(n, n_right);
        }
    }

    /// Tokens that the latest step guessed.
    pub fn n_guessed(&self) -> usize {
        self.guesses.n
    }

    /// A row of the logits of the latest pass, `[n_vocab]`.
    pub fn logits_of(&self, row: usize) -> &[f32] {
        let n_vocab = self.model.config.n_vocab;
        &self.machine.scratch.logits[row * n_vocab..][..n_vocab]
    }
}

/// The steps of a stream. Dropped, it leaves the stream with the tokens that were stepped on, and with no guesses.
pub struct Steps<'a> {
    engine: &'a mut Engine,
    stream: &'a mut Stream,
    /// Row of the logits that are current.
    row: usize,
}

impl<'a> Steps<'a> {
    /// After a pass that gave the logits of the stream's last token.
    pub fn new(engine: &'a mut Engine, stream: &'a mut Stream) -> Steps<'a> {
        Steps { engine, stream, row: 0 }
    }

    /// After the latest token, `[n_vocab]`.
    pub fn logits(&self) -> &[f32] {
        self.engine.logits_of(self.row)
    }

    /// One token in, the logits after it out, `[n_vocab]`. At most `n_more` tokens will follow it.
    pub fn step(&mut self, token: u32, n_more: usize) -> Result<&[f32]> {
        if self.engine.accept(self.stream, token) {
            self.row += 1;
        } else {
            self.row = 0;
            self.engine.step(self.stream, token, n_more)?;
        }
        Ok(self.logits())
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        let n_vocab = self.engine.model.config.n_vocab;
        if self.row > 0 {
            // The logits after the last token are `logits` again.
            self.engine.machine.scratch.logits.copy_within(self.row * n_vocab..(self.row + 1) * n_vocab, 0);
        }
        self.engine.settle(self.stream);
    }
}
