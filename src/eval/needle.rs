//! A needle in prose: a sentence with a fact at a paragraph break of the user's text, asked for after the text (Kamradt 2023,
//! "Needle in a Haystack"; used by Devoto et al., arXiv 2406.11430). Facts are drawn, so that none can be guessed, and of
//! several kinds, so that samples differ in more than their words.
//!
//! The text is a ring: a prompt begins at a paragraph that is drawn, and goes on at the text's beginning where it ends.

use super::retrieval::{Answer, Draft, Encoder, Prompt};
use crate::error::{Error, Result, Setting};

/// The user's text, cut into sentences.
pub struct Haystack<'a> {
    sentences: Vec<Sentence<'a>>,
    /// The sentences that paragraphs begin with.
    paragraphs: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Sentence<'a> {
    text: &'a str,
    opens: bool,
}

impl<'a> Haystack<'a> {
    /// Bytes for the sentences of a text, from above: each ends with one of these, or is long; vectors grow by doubling.
    pub fn bytes(text: &str) -> usize {
        let ends = text.chars().filter(|c| ".!?。！？\n".contains(*c)).count() + text.len() / LONG_BYTES + 1;
        2 * ends * (size_of::<Sentence>() + size_of::<usize>())
    }

    pub fn new(text: &'a str) -> Haystack<'a> {
        let (mut sentences, mut paragraphs) = (Vec::new(), Vec::new());
        for paragraph in paragraphs_of(text) {
            paragraphs.push(sentences.len());
            for (i, text) in sentences_of(paragraph).enumerate() {
                sentences.push(Sentence { text, opens: i == 0 });
            }
        }
        Haystack { sentences, paragraphs }
    }

    /// Where a paragraph begins that is drawn.
    pub(super) fn draw(&self, rng: &mut fastrand::Rng) -> Result<usize> {
        match self.paragraphs.len() {
            0 => Err(Error::usage(Setting::File, "the text is empty; give one to hide a fact in")),
            n => Ok(self.paragraphs[rng.usize(..n)]),
        }
    }

    /// The sentences from `start` on, around the text's end for ever, each with whether a paragraph begins with it.
    pub(super) fn from(&self, start: usize) -> impl Iterator<Item = (&'a str, bool)> {
        self.sentences.iter().cycle().skip(start).map(|sentence| (sentence.text, sentence.opens))
    }

    /// `n` sentences from `start` on, around the text's end, with `needle` at the paragraph break nearest to `depth`.
    fn with_needle(&self, start: usize, n: usize, depth: f64, needle: &str) -> String {
        let at = |i: usize| self.sentences[(start + i) % self.sentences.len()];
        let n_bytes: usize = (0..n).map(|i| at(i).text.len()).sum();
        let has_breaks = (1..n).any(|i| at(i).opens);
        let (mut before, mut best) = (0, (f64::INFINITY, 0));
        for i in 0..=n {
            if i == 0 || i == n || at(i).opens || !has_breaks {
                let off = (before as f64 - depth * n_bytes as f64).abs();
                best = if off < best.0 { (off, i) } else { best };
            }
            before += if i < n { at(i).text.len() } else { 0 };
        }
        let mut text = String::with_capacity(n_bytes + 2 * n + needle.len() + 4);
        let mut add = |paragraph: bool, sentence: &str| {
            if !text.is_empty() {
                text.push_str(if paragraph { "\n\n" } else { " " });
            }
            text.push_str(sentence);
        };
        for (i, sentence) in (0..n).map(at).enumerate() {
            if i == best.1 {
                add(true, needle);
            }
            add(sentence.opens || i == best.1, sentence.text);
        }
        if best.1 == n {
            add(true, needle);
        }
        text
    }
}

/// Parts of a text between blank lines.
fn paragraphs_of(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let mut end = 0;
        for line in rest.split_inclusive('\n').take_while(|line| !line.trim().is_empty()) {
            end += line.len();
        }
        let (paragraph, after) = rest.split_at(end);
        rest = after;
        (!paragraph.is_empty()).then(|| paragraph.trim_end())
    })
}

/// Bytes after which a sentence that has not ended is cut at the next space, and after twice as many anywhere: a prompt grows
/// by sentences, and one that is longer than a prompt would leave it empty.
const LONG_BYTES: usize = 400;

/// Parts of a paragraph that end with a full stop, a question mark or an exclamation mark before white space, quotes and
/// brackets that close included, or with one of those of Chinese and Japanese; what follows the last one is a sentence too.
fn sentences_of(paragraph: &str) -> impl Iterator<Item = &str> {
    let mut rest = paragraph;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let (mut ended, mut ended_wide) = (false, false);
        let end = rest.char_indices().find_map(|(at, c)| {
            let closes = "\"'”’)]»」』".contains(c);
            let long = at > LONG_BYTES && (c.is_whitespace() || at > 2 * LONG_BYTES);
            if (ended && c.is_whitespace()) || (ended_wide && !closes) || long {
                return Some(at);
            }
            ended = ".!?".contains(c) || (ended && closes);
            ended_wide = "。！？".contains(c) || (ended_wide && closes);
            None
        });
        let (sentence, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!sentence.is_empty()).then_some(sentence)
    })
}

/// A fact, the question about it, and how the answer goes.
pub(super) struct Fact {
    pub needle: String,
    pub question: String,
    pub answer_start: String,
    phrase: String,
}

impl Fact {
    pub fn answer(&self) -> Answer {
        match self.phrase.parse::<u32>() {
            Ok(_) => Answer::Number(self.phrase.clone()),
            Err(_) => Answer::Phrases(vec![self.phrase.clone()]),
        }
    }
}

/// Questions that facts can have, of each of as many kinds.
pub(super) const QUESTIONS: usize = 16;
pub(super) const KINDS: usize = 4;

const CITIES: [&str; QUESTIONS] = [
    "Bruges",
    "Lisbon",
    "Kyoto",
    "Tallinn",
    "Cusco",
    "Bergen",
    "Dakar",
    "Quebec",
    "Hobart",
    "Porto",
    "Riga",
    "Oaxaca",
    "Ghent",
    "Aarhus",
    "Tbilisi",
    "Valparaiso",
];
const ACTIVITIES: [&str; 12] = [
    "eat a warm pear cake",
    "fly a red kite",
    "row a small boat",
    "feed the old horses",
    "climb the clock tower",
    "listen to the organ",
    "buy a straw hat",
    "paint the harbour",
    "ride the night tram",
    "drink cold plum juice",
    "visit the glass garden",
    "walk along the canal",
];
pub const WORDS: [&str; QUESTIONS] = [
    "lantern", "walnut", "velvet", "harvest", "compass", "thunder", "marble", "saddle", "pepper", "falcon", "ribbon", "copper",
    "orchard", "anchor", "candle", "meadow",
];
const OBJECTS: [&str; 12] = [
    "the blue flower pot",
    "the broken bench",
    "the third stair",
    "the stone lion",
    "the rain barrel",
    "the green carpet",
    "the kitchen stove",
    "the apple tree",
    "the church bell",
    "the empty beehive",
    "the garden gate",
    "the iron anvil",
];

/// Kinds of facts in turn, so that few samples see all of them.
pub(super) fn fact(kind: usize, rng: &mut fastrand::Rng) -> Fact {
    let mut pick = |of: &[&'static str]| of[rng.usize(..of.len())];
    let (needle, question, answer_start, phrase) = match kind % KINDS {
        0 => {
            let (city, activity) = (pick(&CITIES), pick(&ACTIVITIES));
            let start = format!("The best thing to do in {city} is to");
            (format!("{start} {activity}."), format!("What is the best thing to do in {city}?"), start, activity.to_owned())
        }
        1 => {
            let (city, word) = (pick(&CITIES), pick(&WORDS));
            let start = format!("The secret code word of the {city} office is");
            let question = format!("What is the secret code word of the {city} office?");
            (format!("{start} \"{word}\"."), question, format!("{start} \""), word.to_owned())
        }
        2 => {
            let (city, number) = (pick(&CITIES), rng.u32(1000..10_000));
            let start = format!("The special magic number for {city} is");
            (format!("{start} {number}."), format!("What is the special magic number for {city}?"), start, number.to_string())
        }
        _ => {
            let (word, object) = (pick(&WORDS), pick(&OBJECTS));
            let start = format!("The key to the {word} room is hidden under");
            (format!("{start} {object}."), format!("Where is the key to the {word} room hidden?"), start, object.to_owned())
        }
    };
    Fact { needle, question, answer_start, phrase }
}

/// A prompt of at most `length` tokens of the text with a fact at `depth` of 0 to 1. `sample` decides the kind of fact.
pub fn prompt(
    encoder: &Encoder,
    hay: &Haystack,
    length: usize,
    depth: f64,
    sample: usize,
    rng: &mut fastrand::Rng,
) -> Result<Prompt> {
    let start = hay.draw(rng)?;
    let fact = fact(sample, rng);
    let draft = |n| {
        (n <= hay.sentences.len()).then(|| Draft {
            text: format!("{}\n\nQuestion: {}\nAnswer:", hay.with_needle(start, n, depth, &fact.needle), fact.question),
            answer_start: fact.answer_start.clone(),
            answer: fact.answer(),
        })
    };
    encoder.fit(length, draft)
}

#[cfg(test)]
#[path = "../../tests/unit/eval/needle.rs"]
mod tests;
