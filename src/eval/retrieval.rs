//! A question about something that a long prompt holds: how prompts are cut to a length in tokens, how the model is asked,
//! and when its answer counts. What the prompts say is in `passkey`, `needle` and `ruler`.
//!
//! Answers are greedy and judged by their text alone. Refuses prompts longer than asked for: a length is the most that the
//! whole prompt has in tokens.

use crate::error::{Error, Result, Setting, message};
use crate::kv::policy::Rule;
use crate::session::Session;
use crate::text::{ChatTemplate, Message, Tokenizer, greedy};

/// A prompt before it is cut into tokens.
pub struct Draft {
    pub text: String,
    /// How the answer begins, up to what is asked for: small models answer far better when they only have to go on.
    pub answer_start: String,
    pub answer: Answer,
}

/// What a right answer holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The first number of the answer is this one.
    Number(String),
    /// Each of these stands in it, as a word of its own; upper and lower case are the same.
    Phrases(Vec<String>),
}

impl Answer {
    /// How many things are asked for.
    pub fn n(&self) -> usize {
        match self {
            Answer::Number(_) => 1,
            Answer::Phrases(phrases) => phrases.len(),
        }
    }

    /// How many of them `text` has.
    pub fn found(&self, text: &str) -> usize {
        match self {
            Answer::Number(number) => {
                let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
                let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                usize::from(&digits[..end] == number)
            }
            Answer::Phrases(phrases) => phrases.iter().filter(|phrase| has_words(text, phrase)).count(),
        }
    }

    /// Tokens to generate at most; a number is a token for each digit at worst.
    pub fn most_tokens(&self) -> usize {
        match self {
            Answer::Number(_) => 12,
            Answer::Phrases(phrases) => ANSWER_TOKENS.min(8 + 16 * phrases.len()),
        }
    }
}

/// Tokens of an answer at most.
pub const ANSWER_TOKENS: usize = 64;

fn has_words(text: &str, words: &str) -> bool {
    let (text, words) = (text.to_lowercase(), words.to_lowercase());
    text.match_indices(&words).any(|(at, _)| {
        !text[..at].ends_with(char::is_alphanumeric) && !text[at + words.len()..].starts_with(char::is_alphanumeric)
    })
}

/// A prompt as the model gets it.
pub struct Prompt {
    pub tokens: Vec<u32>,
    pub answer: Answer,
}

/// How text becomes tokens: as it is, or as the user's turn in the model's template.
pub struct Encoder<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: Option<ChatTemplate>,
}

impl Encoder<'_> {
    pub fn encode(&self, draft: &Draft) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer;
        let Some(template) = &self.template else {
            return tokenizer.encode(&format!("{} {}", draft.text, draft.answer_start), false, true);
        };
        let name = |id: Option<u32>| {
            id.map_or(String::new(), |id| String::from_utf8_lossy(tokenizer.token_bytes(id, true)).into_owned())
        };
        let turn = [Message::new("user", &draft.text)];
        let opened = template.render(&turn, true, &name(tokenizer.bos()), &name(tokenizer.eos()))?;
        tokenizer.encode(&(opened + &draft.answer_start), true, true)
    }

    /// The longest prompt of at most `length` tokens among the drafts of 0, 1 … units of filler; an error where none of
    /// them is short enough, or where `draft` has no more filler (`None`) before one is long enough.
    pub fn fit(&self, length: usize, draft: impl Fn(usize) -> Option<Draft>) -> Result<Prompt> {
        let attempt = |n: usize| -> Result<Option<(Vec<u32>, Answer)>> {
            let Some(draft) = draft(n) else { return Ok(None) };
            let tokens = self.encode(&draft)?;
            Ok(Some((tokens, draft.answer)))
        };
        let short = |n: usize| {
            let what = format!("the text ends after {n} sentences, before a prompt of {length} tokens is full");
            Error::usage(Setting::File, message![what, "; give a longer text, or smaller ", Setting::Lengths])
        };
        let (mut low, mut step) = (0, 1);
        let mut best = match attempt(0)? {
            Some(first) if first.0.len() <= length => first,
            Some((least, _)) => {
                let what = format!("{length} tokens do not hold the question alone, which takes {}; give more", least.len());
                return Err(Error::usage(Setting::Lengths, what));
            }
            None => return Err(short(0)),
        };
        // Twice as far each time, then halves of what is left: a prompt is never much longer than asked for.
        let mut high = loop {
            match attempt(low + step)? {
                Some(more) if more.0.len() <= length => (low, best, step) = (low + step, more, step * 2),
                Some(_) => break low + step,
                None if step == 1 => return Err(short(low)),
                None => step = (step / 2).max(1),
            }
        };
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match attempt(middle)? {
                Some(more) if more.0.len() <= length => (low, best) = (middle, more),
                _ => high = middle,
            }
        }
        Ok(Prompt { tokens: best.0, answer: best.1 })
    }
}

/// When entries are evicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Whenever the arena is full, from the first token on, the question coming last: as a device would run it.
    Stream,
    /// Once, when all of the prompt but its last token is in, down to this many entries: the protocol of Devoto et al. (arXiv
    /// 2406.11430), except that no logits of the full cache count. The first `n_whole` layers keep all.
    Once { n_keep: usize, n_whole: usize, rule: Rule },
}

/// How many of the things asked for the model finds, or `None` if `go_on`, told the tokens taken in, stopped it.
pub fn ask(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &Prompt,
    mode: Mode,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Option<usize>> {
    session.clear();
    let mut seen = 0;
    let mut told = |done: usize| go_on(done - std::mem::replace(&mut seen, done));
    let token = match mode {
        Mode::Stream => match session.prefill(&prompt.tokens, told)? {
            Some(logits) => greedy(logits)?,
            None => return Ok(None),
        },
        Mode::Once { n_keep, n_whole, rule } => {
            let (&last, before) = prompt.tokens.split_last().expect("a prompt has a question");
            if session.prefill(before, &mut told)?.is_none() {
                return Ok(None);
            }
            session.compress(n_keep, n_whole, rule);
            greedy(session.step(last)?)?
        }
    };
    Ok(Some(answered(session, tokenizer, token, &prompt.answer)?))
}

/// How many of the things asked for are in the answer that begins with `token`.
pub(super) fn answered(session: &mut Session, tokenizer: &Tokenizer, mut token: u32, right: &Answer) -> Result<usize> {
    let (mut answer, mut text) = (Vec::with_capacity(ANSWER_TOKENS), String::new());
    for left in (0..right.most_tokens()).rev() {
        if tokenizer.is_eog(token) {
            break;
        }
        answer.push(token);
        text = tokenizer.decode(&answer);
        // A word is whole once something follows it.
        let whole = text.char_indices().next_back().map_or("", |(at, _)| &text[..at]);
        if text.trim_start().contains('\n') || right.found(whole) == right.n() || left == 0 {
            break;
        }
        token = greedy(session.step(token)?)?;
    }
    log::debug!("{right:?}: {text:?}");
    Ok(right.found(text.trim_start().lines().next().unwrap_or_default()))
}

/// Where something at `depth` of 0 to 1 stands among `n` units: how many come before it.
pub fn place(depth: f64, n: usize) -> usize {
    ((depth * n as f64).round() as usize).min(n)
}

/// The i-th of `n` depths, from 0 (at the beginning) to 1 (just before the question); one alone stands in the middle.
pub fn depth_of(i: usize, n: usize) -> f64 {
    if n == 1 { 0.5 } else { i as f64 / (n - 1) as f64 }
}

/// What a prompt draws its numbers from: the same for a seed, a length, a depth and a sample, whatever else is asked.
pub fn rng(seed: u64, length: usize, depth: usize, sample: usize) -> fastrand::Rng {
    let mut mixed = seed;
    for part in [length, depth, sample] {
        // One step of SplitMix64 for each part, so that neighbours have nothing in common.
        mixed = (mixed ^ part as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    fastrand::Rng::with_seed(mixed)
}

/// The 95 % interval of a share of which `correct` of `n` were seen (Wilson 1927): sound for few trials and near 0 and 1.
pub fn wilson(correct: usize, n: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    if n == 0 {
        return (0.0, 1.0);
    }
    let (p, n) = (correct as f64 / n as f64, n as f64);
    let scale = 1.0 + Z * Z / n;
    let middle = (p + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

#[cfg(test)]
#[path = "../../tests/unit/eval/retrieval.rs"]
mod tests;
