//! A long stream in which facts are said now and then, and each is asked for a number of tokens later: what a device that
//! never forgets its conversation would be asked. What was asked and answered stays in the stream.
//!
//! Facts are those of `needle`, no two of a stream with the same question. The text goes round where it ends. A small model confuses
//! facts of one kind, however near they are; so there may be several streams with few facts in each, whose kinds take turns.

use std::time::{Duration, Instant};

use super::needle::{Fact, Haystack, KINDS, QUESTIONS, fact};
use super::retrieval::{answered, rng};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::text::{Tokenizer, greedy};

/// What is asked for in a stream.
#[derive(Clone, Debug)]
pub struct Course {
    /// Tokens of the stream.
    pub n_tokens: usize,
    /// Tokens between a fact and the question about it.
    pub backs: Vec<usize>,
    /// Questions of each distance in a stream.
    pub n_samples: usize,
    /// Streams, each of which begins anew.
    pub n_streams: usize,
    pub seed: u64,
}

/// Facts of a stream at most, so that no question is asked twice.
pub const MAX_QUESTIONS: usize = KINDS * QUESTIONS;
/// Tokens before the first fact, and from one question to the next at least: a question takes some forty.
const LEAD: usize = 64;
const APART: usize = 128;
/// Tokens that are read at once, and of a fact or a question at most.
const AT_ONCE: usize = 512;
/// Bytes of a sentence, a fact or a question at most.
pub const PIECE_BYTES: usize = 1024;

/// Parts of the stream whose time is told.
pub const TENTHS: usize = 10;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// For each distance how many of its questions were answered rightly.
    pub n_right: Vec<usize>,
    /// For each tenth of the streams the tokens of their text, and how long they took.
    pub tenths: [(usize, Duration); TENTHS],
}

/// A fact on its way.
struct Asked {
    fact: Fact,
    /// Which distance.
    place: usize,
    /// Tokens of the stream after which it is due to be said; and what the stream had when it was.
    due: usize,
    said: Option<usize>,
}

impl Course {
    /// Of a stream.
    pub fn n_questions(&self) -> usize {
        self.backs.len().saturating_mul(self.n_samples)
    }

    /// Tokens that the stream must have.
    pub fn least_tokens(&self) -> usize {
        let furthest = self.backs.iter().copied().max().unwrap_or(0);
        furthest.saturating_add(LEAD).saturating_add(self.n_questions().saturating_mul(APART))
    }

    /// Bytes that `run` takes beside the session.
    pub fn plan_bytes(&self) -> usize {
        self.n_questions() * (size_of::<Asked>() + 512) + 4 * (AT_ONCE + PIECE_BYTES)
    }

    /// Facts in the order of their questions, which come one after the other from where the furthest can be asked for to the end.
    fn asked(&self, stream: usize, rng: &mut fastrand::Rng) -> Vec<Asked> {
        let furthest = self.backs.iter().copied().max().unwrap_or(0);
        let apart = (self.n_tokens - furthest - LEAD) / self.n_questions();
        let mut all: Vec<Asked> = Vec::with_capacity(self.n_questions());
        for i in 0..self.n_questions() {
            let (sample, place) = (i / self.backs.len(), i % self.backs.len());
            let fact = loop {
                let fact = fact(sample + place + stream, rng);
                if all.iter().all(|other| other.fact.question != fact.question) {
                    break fact;
                }
            };
            all.push(Asked { fact, place, due: furthest + LEAD + i * apart - self.backs[place], said: None });
        }
        all
    }
}

/// The stream as it is read.
struct Reading<'a> {
    session: &'a mut Session,
    tokenizer: &'a Tokenizer,
    /// Tokens that wait to be read.
    waiting: Vec<u32>,
    measured: Measured,
    n_tokens: usize,
}

impl Reading<'_> {
    /// Tokens of the stream, those that wait included.
    fn n(&self) -> usize {
        self.session.n_past() as usize + self.waiting.len()
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let begins = self.n() == 0;
        self.waiting.extend(self.tokenizer.encode(text, false, begins)?);
        Ok(())
    }

    /// Reads what waits: the token that is likeliest to follow; `None` where `go_on` stopped it.
    fn read(&mut self, go_on: &mut impl FnMut(usize) -> bool) -> Result<Option<u32>> {
        let (before, mut seen) = (self.session.n_past() as usize, 0);
        let at = Instant::now();
        let told = |done: usize| go_on(done - std::mem::replace(&mut seen, done));
        let Some(logits) = self.session.prefill(&self.waiting, told)? else { return Ok(None) };
        let token = greedy(logits)?;
        let (n, time) = &mut self.measured.tenths[(before * TENTHS / self.n_tokens).min(TENTHS - 1)];
        (*n, *time) = (*n + self.waiting.len(), *time + at.elapsed());
        self.waiting.clear();
        Ok(Some(token))
    }

    fn ask(&mut self, asked: &Asked, go_on: &mut impl FnMut(usize) -> bool) -> Result<Option<()>> {
        self.add(&format!("\n\nQuestion: {}\nAnswer: {}", asked.fact.question, asked.fact.answer_start))?;
        let Some(token) = self.read(go_on)? else { return Ok(None) };
        let n_right = answered(self.session, self.tokenizer, token, &asked.fact.answer())?;
        log::info!("{} tokens after it was said: '{}' {}", self.n() - asked.said.unwrap_or(0), asked.fact.needle, n_right > 0);
        self.measured.n_right[asked.place] += n_right;
        Ok(Some(()))
    }
}

/// Reads the streams and asks their questions; `None` where `go_on`, told the tokens taken in, stopped it.
pub fn run(
    session: &mut Session,
    tokenizer: &Tokenizer,
    hay: &Haystack,
    course: &Course,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Option<Measured>> {
    if course.n_tokens < course.least_tokens() || !(1..=MAX_QUESTIONS).contains(&course.n_questions()) {
        return Err(Error::stopped("the stream is too short for its questions"));
    }
    let measured = Measured { n_right: vec![0; course.backs.len()], ..Measured::default() };
    let waiting = Vec::with_capacity(AT_ONCE + PIECE_BYTES);
    let mut reading = Reading { session, tokenizer, waiting, measured, n_tokens: course.n_tokens };
    for stream in 0..course.n_streams {
        if one(&mut reading, hay, course, stream, &mut go_on)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(reading.measured))
}

/// One of the streams.
fn one(
    reading: &mut Reading,
    hay: &Haystack,
    course: &Course,
    stream: usize,
    go_on: &mut impl FnMut(usize) -> bool,
) -> Result<Option<()>> {
    reading.session.clear();
    reading.waiting.clear();
    let mut rng = rng(course.seed, course.n_tokens, stream, 0);
    let start = hay.draw(&mut rng)?;
    let mut all = course.asked(stream, &mut rng);
    // Several times in a tenth, for its time.
    let at_once = AT_ONCE.min(course.n_tokens / (4 * TENTHS));
    let mut n_asked = 0;
    let mut sentences = hay.from(start);
    while n_asked < all.len() || reading.n() < course.n_tokens {
        let mut opens = reading.n() == 0;
        for asked in &mut all {
            if asked.said.is_none() && asked.due <= reading.n() {
                reading.add(&format!("{}{}", if opens { "" } else { "\n\n" }, asked.fact.needle))?;
                (asked.said, opens) = (Some(reading.n()), false);
            }
        }
        let next =
            all.get(n_asked).filter(|asked| asked.said.is_some_and(|said| reading.n() >= said + course.backs[asked.place]));
        if let Some(asked) = next {
            if reading.ask(asked, go_on)?.is_none() {
                return Ok(None);
            }
            n_asked += 1;
            reading.add("\n\n")?;
            opens = true;
        }
        let (sentence, begins) = sentences.next().expect("a text that is not empty goes round");
        let between = if opens {
            ""
        } else if begins {
            "\n\n"
        } else {
            " "
        };
        reading.add(&format!("{between}{sentence}"))?;
        if reading.waiting.len() >= at_once && reading.read(go_on)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

#[cfg(test)]
#[path = "../../tests/unit/eval/stream.rs"]
mod tests;
