//! Passkey retrieval: a number in a line of its own among lines that say nothing, asked for at the end (Mohtashami and Jaggi
//! 2023, arXiv 2305.16300; used by Devoto et al., arXiv 2406.11430). The lines are those of the literature.

use super::retrieval::{Answer, Draft, Encoder, Prompt, place};
use crate::error::Result;

const TASK: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you \
                    about the important information there.";
pub const FILLER: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
const QUESTION: &str = "What is the pass key?";
const ANSWER_START: &str = "The pass key is";

/// A prompt of at most `length` tokens with the key's line at `depth` of 0 to 1 between the lines of filler.
pub fn prompt(encoder: &Encoder, length: usize, depth: f64, rng: &mut fastrand::Rng) -> Result<Prompt> {
    let key = rng.u32(1..=50_000);
    encoder.fit(length, |n| Some(draft(key, n, depth)))
}

fn draft(key: u32, n_filler: usize, depth: f64) -> Draft {
    let before = place(depth, n_filler);
    let mut text = String::with_capacity((n_filler + 4) * (FILLER.len() + 1));
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    line(TASK);
    (0..before).for_each(|_| line(FILLER));
    line(&format!("The pass key is {key}. Remember it. {key} is the pass key."));
    (before..n_filler).for_each(|_| line(FILLER));
    text.push_str(QUESTION);
    Draft { text, answer_start: ANSWER_START.into(), answer: Answer::Number(key.to_string()) }
}

#[cfg(test)]
#[path = "../../tests/unit/eval/passkey.rs"]
mod tests;
