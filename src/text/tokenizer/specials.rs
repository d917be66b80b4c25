//! Tokens that are cut out of a text before it is merged: control tokens, and those that the file calls user-defined.
//!
//! As in llama.cpp, a longer one claims its text before a shorter, wherever they stand, and of equally long ones the one with the
//! smaller id; each claims from left to right. So those of equal length are a level, a search goes through the text with
//! the first level, then between what was found with the next, and so on. Nothing is kept but where each level has come
//! to, and tokens are found in the order of the text. Tokens of equal length that might overlap are put in levels of their own.

use std::ops::Range;

use super::bytes::ByteTable;
use super::vocabulary::TokenKind;

/// A token that is matched in text before the pre-tokenizer sees it.
#[derive(Clone, Copy)]
pub struct Special {
    pub id: u32,
    user_defined: bool,
    /// Swallows the white space behind it.
    pub strips: bool,
}

/// Tokens of equal length that never overlap one another, though each may overlap itself.
struct Level {
    len: usize,
    /// Where they are in `Specials::list`, sorted by text.
    places: Range<usize>,
    /// Sieve of their first two bytes.
    begins: Sieve,
}

/// A set of what texts begin with, two bytes or the only one, from above.
#[derive(Clone, Copy, Default)]
struct Sieve([u64; 4]);

impl Sieve {
    fn place(text: &[u8]) -> u8 {
        text[0].wrapping_mul(31).wrapping_add(text.get(1).map_or(0, |second| second.wrapping_mul(167)))
    }

    fn add(&mut self, text: &[u8]) {
        let place = Sieve::place(text);
        self.0[place as usize / 64] |= 1 << (place % 64);
    }

    fn has(&self, text: &[u8]) -> bool {
        let place = Sieve::place(text);
        self.0[place as usize / 64] >> (place % 64) & 1 == 1
    }
}

#[derive(Default)]
pub struct Specials {
    list: Box<[Special]>,
    /// Longest first.
    levels: Box<[Level]>,
    /// Whether one begins with the byte.
    starts: Sieve,
}

/// Bytes of memory for each token that is matched so, from above: its place in the list while that grows, and a level.
pub const BYTES_EACH: u64 = 2 * size_of::<Special>() as u64 + 2 * size_of::<Level>() as u64;

impl Specials {
    /// `bytes`: the texts of the tokens.
    pub fn new(kinds: &[TokenKind], bytes: &ByteTable, strips: impl Fn(&[u8]) -> bool) -> Specials {
        let is_special = |kind: TokenKind| matches!(kind, TokenKind::Control | TokenKind::Frame | TokenKind::UserDefined);
        let all = kinds.iter().zip(0u32..).filter(|&(kind, id)| is_special(*kind) && !bytes.of(id).is_empty());
        let of = |(kind, id): (&TokenKind, u32)| Special {
            id,
            user_defined: *kind == TokenKind::UserDefined,
            strips: strips(bytes.of(id)),
        };
        let mut list: Vec<Special> = all.map(of).collect();
        let text = |special: &Special| bytes.of(special.id);
        list.sort_by_key(|special| std::cmp::Reverse(text(special).len()));
        let mut specials = Specials::default();
        let (mut levels, mut start) = (Vec::new(), 0);
        while start < list.len() {
            let n = n_apart(list[start..].iter().map(text));
            let places = start..start + n;
            list[places.clone()].sort_unstable_by_key(text);
            let mut begins = Sieve::default();
            list[places.clone()].iter().for_each(|special| begins.add(text(special)));
            levels.push(Level { len: text(&list[start]).len(), places, begins });
            start += n;
        }
        list.iter().for_each(|special| specials.starts.add(&text(special)[..1]));
        (specials.list, specials.levels) = (list.into_boxed_slice(), levels.into_boxed_slice());
        specials
    }

    /// Those that steer the model, which text holds only where it is trusted.
    pub fn steering(&self) -> impl Iterator<Item = u32> {
        self.list.iter().filter(|special| !special.user_defined).map(|special| special.id)
    }

    /// Bytes that a search takes, from above.
    pub fn search_bytes(&self) -> usize {
        // Lists grow by doubling; a level has two stretches to do.
        self.levels.len() * 2 * (2 * size_of::<usize>() + 2 * size_of::<Todo>()) + 1024
    }

    /// What `search_bytes` is at most where so many tokens are special.
    pub fn most_search_bytes(n_special: u64) -> usize {
        // Of hundreds of tokens not all have a length of their own.
        (n_special as usize).min(256) * 2 * (2 * size_of::<usize>() + 2 * size_of::<Todo>()) + 1024
    }

    /// The special tokens of the text and where each begins, in order. Control tokens are found within the ranges of `trusted`,
    /// which are in order and do not touch.
    pub fn find<'a>(&'a self, text: &'a str, trusted: &'a [Range<usize>], bytes: &'a ByteTable) -> Found<'a> {
        let mut found = Found { specials: self, text: text.as_bytes(), trusted, bytes, levels: Vec::new(), todo: Vec::new() };
        found.levels = found.present();
        found.todo.push(Todo::Search(0, 0..text.len()));
        found
    }
}

/// How many tokens from the first on have its length and overlap none but themselves: where no other of them begins with
/// a byte that is within one.
fn n_apart<'a>(texts: impl Iterator<Item = &'a [u8]>) -> usize {
    let (mut firsts, mut inners, mut len, mut n) = ([false; 256], [false; 256], 0, 0);
    for text in texts {
        let (first, inner) = (text[0] as usize, &text[1..]);
        let apart = !inners[first] && !inner.iter().any(|&byte| firsts[byte as usize]);
        if n > 0 && (text.len() != len || !apart) {
            break;
        }
        firsts[first] = true;
        inner.iter().for_each(|&byte| inners[byte as usize] = true);
        (len, n) = (text.len(), n + 1);
    }
    n
}

/// What is left to do, the latest first.
enum Todo {
    /// Search the range with this level of those that are present, and with the later ones.
    Search(usize, Range<usize>),
    Give(usize, Special),
}

/// The search through a text.
pub struct Found<'a> {
    specials: &'a Specials,
    text: &'a [u8],
    trusted: &'a [Range<usize>],
    bytes: &'a ByteTable,
    /// Levels that have a token in the text, in order.
    levels: Vec<usize>,
    todo: Vec<Todo>,
}

impl Found<'_> {
    /// The level's token that stands at the place, if one does and may.
    fn at(&self, level: &Level, place: usize) -> Option<Special> {
        let text = self.text.get(place..place + level.len)?;
        if !level.begins.has(text) {
            return None;
        }
        let list = &self.specials.list[level.places.clone()];
        let special = list[list.binary_search_by(|special| self.bytes.of(special.id).cmp(text)).ok()?];
        let end = place + level.len;
        let trusted = || self.trusted.get(self.trusted.partition_point(|range| range.end < end));
        (special.user_defined || trusted().is_some_and(|range| range.start <= place)).then_some(special)
    }

    /// Which levels have a token anywhere in the text.
    fn present(&self) -> Vec<usize> {
        let (levels, starts) = (&self.specials.levels, &self.specials.starts);
        let mut absent: Vec<usize> = (0..levels.len()).collect();
        for place in 0..self.text.len() {
            if starts.has(&self.text[place..place + 1]) {
                absent.retain(|&level| self.at(&levels[level], place).is_none());
            }
            if absent.is_empty() {
                break;
            }
        }
        let mut absent = absent.into_iter().peekable();
        (0..levels.len()).filter(|&level| absent.next_if_eq(&level).is_none()).collect()
    }
}

impl Iterator for Found<'_> {
    type Item = (usize, Special);

    fn next(&mut self) -> Option<(usize, Special)> {
        loop {
            let (nth, range) = match self.todo.pop()? {
                Todo::Give(place, special) => return Some((place, special)),
                Todo::Search(nth, range) => (nth, range),
            };
            // Levels whose tokens are too long for the range have none in it.
            let levels = &self.specials.levels;
            let nth = nth + self.levels[nth..].partition_point(|&level| levels[level].len > range.len());
            let Some(level) = self.levels.get(nth).map(|&level| &levels[level]) else { continue };
            let mut places = range.start..(range.end + 1).saturating_sub(level.len);
            match places.find_map(|place| Some((place, self.at(level, place)?))) {
                Some((place, special)) => {
                    self.todo.push(Todo::Search(nth, place + level.len..range.end));
                    self.todo.push(Todo::Give(place, special));
                    self.todo.push(Todo::Search(nth + 1, range.start..place));
                }
                None => self.todo.push(Todo::Search(nth + 1, range)),
            }
        }
    }
}
