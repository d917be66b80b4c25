//! Tasks after RULER (Hsieh et al. 2024, arXiv 2404.06654), in the project's own words: a number among noise, among numbers of
//! other keys, several numbers of one key, and variables that copy each other. Text is made, none is needed.
//!
//! What RULER draws at random has a depth here: it is that of the earliest line that the answer needs. An answer is worth as
//! many points as things are asked for.

use super::needle::WORDS;
use super::passkey::FILLER;
use super::retrieval::{Answer, Draft, Encoder, Prompt, place};
use crate::error::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One key with its number.
    Single,
    /// Four keys with a number each; one is asked for.
    MultiKey,
    /// One key with four numbers; all are asked for.
    MultiValue,
    /// A variable with a value, and four more that copy it in a chain; all five are asked for.
    Tracking,
}

impl Task {
    pub const ALL: [Task; 4] = [Task::Single, Task::MultiKey, Task::MultiValue, Task::Tracking];

    pub fn name(self) -> &'static str {
        match self {
            Task::Single => "single",
            Task::MultiKey => "multi-key",
            Task::MultiValue => "multi-value",
            Task::Tracking => "tracking",
        }
    }
}

impl std::str::FromStr for Task {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        Task::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| {
            let names: Vec<_> = Task::ALL.iter().map(|task| task.name()).collect();
            format!("'{name}' is not a task; there are {}", names.join(", "))
        })
    }
}

/// Keys beside the one asked for, values beside the first, copies of a variable.
const MORE: usize = 3;
const COPIES: usize = 4;

/// A task before its filler.
struct Puzzle {
    /// What is to be done, said before the text.
    opening: String,
    /// Lines and their depths, in the order of depths.
    lines: Vec<(f64, String)>,
    question: String,
    answer_start: String,
    answer: Vec<String>,
}

/// A prompt of at most `length` tokens; the earliest line that is needed stands at `depth` of 0 to 1.
pub fn prompt(encoder: &Encoder, task: Task, length: usize, depth: f64, rng: &mut fastrand::Rng) -> Result<Prompt> {
    let puzzle = match task {
        Task::Tracking => tracking(depth, rng),
        _ => numbers(task, depth, rng),
    };
    encoder.fit(length, |n| Some(puzzle.draft(n)))
}

impl Puzzle {
    fn draft(&self, n_filler: usize) -> Draft {
        let mut text = String::with_capacity(self.opening.len() + (n_filler + self.lines.len() + 2) * (FILLER.len() + 1));
        let mut add = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        add(&self.opening);
        let mut written = 0;
        for (depth, line) in &self.lines {
            let before = place(*depth, n_filler);
            (written..before).for_each(|_| add(FILLER));
            written = before;
            add(line);
        }
        (written..n_filler).for_each(|_| add(FILLER));
        text.push_str(&self.question);
        Draft { text, answer_start: self.answer_start.clone(), answer: Answer::Phrases(self.answer.clone()) }
    }
}

/// `n` different things that `draw` gives.
fn different(n: usize, mut draw: impl FnMut() -> String) -> Vec<String> {
    let mut all: Vec<String> = Vec::with_capacity(n);
    while all.len() < n {
        let one = draw();
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn numbers(task: Task, depth: f64, rng: &mut fastrand::Rng) -> Puzzle {
    let (n_keys, n_values) = match task {
        Task::MultiKey => (1 + MORE, 1),
        Task::MultiValue => (1, 1 + MORE),
        Task::Single | Task::Tracking => (1, 1),
    };
    let mut word = || WORDS[rng.usize(..WORDS.len())];
    let mut keys = different(n_keys + 1, || format!("{}-{}", word(), word()));
    let example_key = keys.pop().unwrap_or_default();
    // Seven digits, as in RULER.
    let mut values = different(n_keys * n_values + n_values, || rng.u32(1_000_000..10_000_000).to_string());
    let example = values.split_off(n_keys * n_values);
    let key = &keys[0];
    let line = |key: &str, value: &str| {
        let article = if n_values > 1 { "One" } else { "The" };
        format!("{article} magic number of {key} is {value}.")
    };
    let mut lines = Vec::new();
    for (i, value) in values.iter().enumerate() {
        // Other keys may stand anywhere, other values of the same key after the first.
        let at = match task {
            _ if i == 0 => depth,
            Task::MultiValue => depth + (1.0 - depth) * rng.f64(),
            _ => rng.f64(),
        };
        lines.push((at, line(&keys[i / n_values], value)));
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let opening = "Magic numbers are hidden in the following text. Remember them: a question about them comes at the end.";
    if n_values == 1 {
        let (question, answer_start) =
            (format!("What is the magic number of {key} in this text?"), format!("The magic number of {key} is"));
        return Puzzle { opening: opening.into(), lines, question, answer_start, answer: vec![values.swap_remove(0)] };
    }
    // An example first: that the answer is a list of numbers is not what is asked for.
    let question = |key: &str| format!("What are all the magic numbers of {key} in this text?");
    let answer_start = |key: &str| format!("The {n_values} magic numbers of {key} in this text are");
    let example = [
        example.iter().map(|value| line(&example_key, value)).collect::<Vec<_>>().join("\n"),
        format!("{} {} {}.\n", question(&example_key), answer_start(&example_key), example.join(", ")),
    ];
    let opening = format!("{opening}\n{}", example.join("\n"));
    Puzzle { opening, lines, question: question(key), answer_start: answer_start(key), answer: values }
}

fn tracking(depth: f64, rng: &mut fastrand::Rng) -> Puzzle {
    let names = different(2 * (1 + COPIES), || (0..3).map(|_| rng.char('A'..='Z')).collect());
    let values = different(2, || rng.u32(10_000..100_000).to_string());
    let (example, names) = names.split_at(1 + COPIES);
    let chain = |names: &[String], value: &str| -> Vec<String> {
        let mut lines = vec![format!("VAR {} = {value}", names[0])];
        lines.extend(names.windows(2).map(|pair| format!("VAR {} = VAR {}", pair[1], pair[0])));
        lines
    };
    let question = |value: &str| format!("Which variables have the value {value}?");
    let start = |value: &str| format!("These variables have the value {value}: VAR");
    // An example first, as RULER has one: the answer's form is not what is asked for.
    let opening = format!(
        "Variables get values in the following texts, from numbers or from each other. Follow them.\n{}\n{} {} {}.\n",
        chain(example, &values[0]).join("\n"),
        question(&values[0]),
        start(&values[0]),
        example.join(", VAR ")
    );
    let mut depths: Vec<f64> = (0..COPIES).map(|_| depth + (1.0 - depth) * rng.f64()).collect();
    depths.push(depth);
    depths.sort_by(f64::total_cmp);
    let lines = depths.into_iter().zip(chain(names, &values[1])).collect();
    Puzzle { opening, lines, question: question(&values[1]), answer_start: start(&values[1]), answer: names.to_vec() }
}

#[cfg(test)]
#[path = "../../tests/unit/eval/ruler.rs"]
mod tests;
