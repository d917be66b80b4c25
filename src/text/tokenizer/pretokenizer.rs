//! Cuts text into the words that byte-pair merges may not cross, by the rule that `tokenizer.ggml.pre` names.
//!
//! The rules are published as regular expressions; they are few, so each is a small scanner over `\p{L}`, `\p{N}`, `\p{M}`, `\p{P}`
//! (from regex-syntax's Unicode tables) and `\s`. A scanner allocates nothing, where a regex engine's caches grow as text flows.
//! Rules with several expressions apply them one after the other, each inside the pieces the earlier ones made, as llama.cpp does.
//! A name that is not in the table is refused: a near rule would give wrong ids without a sign of it.

use regex_syntax::hir::{self, HirKind};

/// What kind of character a rule sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\p{M}`
    Mark,
    /// `\p{P}`
    Punctuation,
    /// `\s`
    Space,
    Other,
}

/// One expression of a rule. Text that an expression does not match stays as pieces between the matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `\p{N}{1,n}`
    Numbers(usize),
    /// `[0-9][0-9][0-9]`
    DigitTriples,
    /// ``[\p{P}\$\+<=>\^~\|]+``, and the backtick when told so
    Punctuation { backtick: bool },
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, with
    /// `[\p{L}\p{M}]` for the run of letters, and `\p{M}` out of the run of others, when `marks` is set
    Llama3 { digits: usize, marks: bool },
    /// `L?A*B+C?|L?A+B*C?|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`, where `L` is `[^\r\n\p{L}\p{N}]`,
    /// `A` a letter but `a-z`, `B` a letter but `A-Z`, and `C`, where it is set, a contraction of any case as above
    Cased { digits: usize, contractions: bool },
    /// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``,
    /// in which what matches none (numbers, controls) stays between the matches
    Marked,
    /// `[\r\n]`
    Newline,
    /// `\s?X+`
    AfterSpace(Class),
    /// `X+`
    Run(Class),
    /// `\s+$`
    LastSpace,
}

/// A set of characters that an expression names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{P}`
    Punctuation,
    /// `[一-龥ࠀ-一가-퟿]`
    EastAsian,
    /// `[一-龥぀-ゟ゠-ヿ]`
    HanKana,
    /// `[!-/:-~！-／：-～‘-‟　-。]`
    Ascii,
    /// DeepSeek LLM's list of letters: those of scripts with two cases, but for some blocks (`CASED`).
    Cased,
}

use Stage::{AfterSpace, Cased, DigitTriples, Gpt2, LastSpace, Llama3, Marked, Newline, Numbers, Punctuation, Run};

/// What a name means: the expressions, whether a word that is a token is taken whole before any merge, and whether a text begins
/// with the beginning-of-sequence token when the file does not say.
struct Rule {
    names: &'static [&'static str],
    stages: &'static [Stage],
    ignore_merges: bool,
    add_bos: bool,
}

const fn rule(names: &'static [&'static str], stages: &'static [Stage]) -> Rule {
    Rule { names, stages, ignore_merges: false, add_bos: false }
}

const THREE_DIGITS: &[Stage] = &[Llama3 { digits: 3, marks: false }];

const RULES: &[Rule] = &[
    rule(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], &[Numbers(1), Gpt2]),
    rule(
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[Gpt2],
    ),
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        stages: THREE_DIGITS,
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["glm4"], stages: THREE_DIGITS, ignore_merges: true, add_bos: false },
    Rule { names: &["tekken"], stages: &[Cased { digits: 1, contractions: false }], ignore_merges: true, add_bos: true },
    // Phi-4-mini among others.
    rule(&["gpt-4o", "llama4", "kanana2", "talkie"], &[Cased { digits: 3, contractions: true }]),
    rule(
        &["deepseek-coder"],
        &[Newline, AfterSpace(Class::Letter), AfterSpace(Class::Punctuation), Run(Class::EastAsian), Numbers(1)],
    ),
    rule(
        &["deepseek-llm"],
        &[Newline, AfterSpace(Class::Cased), AfterSpace(Class::Ascii), LastSpace, Run(Class::EastAsian), Numbers(usize::MAX)],
    ),
    rule(&["hunyuan-dense"], &[Numbers(3), Run(Class::HanKana), Marked]),
    rule(&["smaug-bpe", "dbrx", "chatglm-bpe"], THREE_DIGITS),
    rule(
        &["qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open"],
        &[Llama3 { digits: 1, marks: false }],
    ),
    rule(&["qwen35"], &[Llama3 { digits: 1, marks: true }]),
    Rule {
        names: &["minicpm5"],
        stages: &[Numbers(3), Llama3 { digits: usize::MAX, marks: false }],
        ignore_merges: true,
        add_bos: false,
    },
    rule(&["falcon"], &[Punctuation { backtick: true }, Gpt2, DigitTriples]),
    rule(&["default"], &[Punctuation { backtick: false }, Gpt2, Numbers(usize::MAX), DigitTriples]),
];

/// What is in DeepSeek LLM's list of letters, found by comparing the list with the categories.
const CASED: &str = r"[[\p{Lu}\p{Ll}\p{Lt}&&\p{Age=15.1}]--[\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C88}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DFFF}]]";

pub struct PreTokenizer {
    rule: &'static Rule,
    kinds: KindTable,
    /// The ranges of `CASED`, for a rule that asks for them.
    cased: Vec<(u32, u32)>,
    /// Those of `\p{S}`, likewise.
    symbols: Vec<(u32, u32)>,
}

impl PreTokenizer {
    /// `None` when the name is not known.
    pub fn by_name(name: &str) -> Option<Self> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name))?;
        let cased = if rule.stages.contains(&AfterSpace(Class::Cased)) { ranges(CASED).collect() } else { Vec::new() };
        // Not what Unicode assigned after 15.1, as in `KindTable`.
        let symbols = if rule.stages.contains(&Marked) { ranges(r"[\p{S}&&\p{Age=15.1}]").collect() } else { Vec::new() };
        Some(PreTokenizer { rule, kinds: KindTable::new(), cased, symbols })
    }

    /// The name most models use for each rule.
    pub fn known() -> String {
        RULES.iter().map(|rule| rule.names[0]).collect::<Vec<_>>().join(", ")
    }

    pub fn ignore_merges(&self) -> bool {
        self.rule.ignore_merges
    }

    pub fn add_bos(&self) -> bool {
        self.rule.add_bos
    }

    /// Hands the words of `text` to `each` in order; together they are the text.
    pub fn split<E>(&self, text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        self.split_from(self.rule.stages, text, each)
    }

    fn split_from<E>(&self, stages: &[Stage], text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
        let Some((stage, later)) = stages.split_first() else { return each(text) };
        let mut rest = text;
        while !rest.is_empty() {
            let (word, after) = rest.split_at(self.piece_len(*stage, rest));
            self.split_from(later, word, each)?;
            rest = after;
        }
        Ok(())
    }

    /// Bytes of the next piece, at least one character.
    fn piece_len(&self, stage: Stage, text: &str) -> usize {
        match stage {
            Numbers(most) => self.match_or_gap(text, most, |c| self.kinds.of(c) == Kind::Number),
            Punctuation { backtick } => self.match_or_gap(text, usize::MAX, |c| {
                self.kinds.of(c) == Kind::Punctuation || "$+<=>^~|".contains(c) || (backtick && c == '`')
            }),
            DigitTriples => digit_triple_or_gap(text),
            Gpt2 => self.gpt2_len(text),
            Llama3 { digits, marks } => self.llama3_len(text, digits, marks),
            Cased { digits, contractions } => self.cased_len(text, digits, contractions),
            Marked => self.marked_or_gap(text),
            Newline => self.match_or_gap(text, 1, |c| matches!(c, '\r' | '\n')),
            Run(class) => self.match_or_gap(text, usize::MAX, |c| self.is_in(class, c)),
            AfterSpace(class) => self.after_space_or_gap(text, class),
            LastSpace => match text.trim_end_matches(char::is_whitespace).len() {
                0 => text.len(),
                len => len,
            },
        }
    }

    /// A run of at most `most` matching characters, or all up to the first that matches.
    fn match_or_gap(&self, text: &str, most: usize, matches: impl Fn(char) -> bool) -> usize {
        match run_len(text, most, &matches) {
            0 => run_len(text, usize::MAX, |c| !matches(c)),
            matched => matched,
        }
    }

    fn is_in(&self, class: Class, c: char) -> bool {
        match class {
            Class::Letter => self.kinds.of(c) == Kind::Letter,
            Class::Punctuation => self.kinds.of(c) == Kind::Punctuation,
            // White space within these ranges is none of them to llama.cpp.
            Class::EastAsian => matches!(c, '\u{800}'..='龥' | '가'..='\u{d7ff}') && !c.is_whitespace(),
            Class::HanKana => matches!(c, '一'..='龥' | '\u{3040}'..='\u{30ff}'),
            Class::Ascii => matches!(c, '!'..='/' | ':'..='~' | '！'..='／' | '：'..='～' | '‘'..='‟' | '\u{3001}'..='。'),
            Class::Cased => {
                let after = self.cased.partition_point(|range| range.0 <= c as u32);
                after > 0 && c as u32 <= self.cased[after - 1].1
            }
        }
    }

    /// `\s?X+`, or all up to where that matches.
    fn after_space_or_gap(&self, text: &str, class: Class) -> usize {
        let mut before: Option<(usize, char)> = None;
        for (at, c) in text.char_indices() {
            if self.is_in(class, c) {
                let start = before.filter(|(_, c)| c.is_whitespace()).map_or(at, |(at, _)| at);
                // A gap ends where the match begins.
                return if start > 0 { start } else { at + run_len(&text[at..], usize::MAX, |c| self.is_in(class, c)) };
            }
            before = Some((at, c));
        }
        text.len()
    }

    /// `Marked` here, or all up to where it matches.
    fn marked_or_gap(&self, text: &str) -> usize {
        match self.marked_len(text) {
            0 => text.char_indices().skip(1).map(|(at, _)| at).find(|&at| self.marked_len(&text[at..]) > 0).unwrap_or(text.len()),
            len => len,
        }
    }

    /// Bytes that `Marked` matches from the first on; 0: none.
    fn marked_len(&self, text: &str) -> usize {
        let in_word = |c: char| matches!(self.kinds.of(c), Kind::Letter | Kind::Mark);
        let is_sign = |c: char| self.kinds.of(c) == Kind::Punctuation || self.is_symbol(c);
        let mut chars = text.chars();
        let (first, next) = (chars.next().unwrap_or_default(), chars.next());
        if first.is_ascii_punctuation() && next.is_some_and(|c| c.is_ascii_alphabetic()) {
            return 1 + run_len(&text[1..], usize::MAX, |c| c.is_ascii_alphabetic());
        }
        // One character may lead a word, but no letter, sign or end of line.
        let leads = !matches!(first, '\r' | '\n') && self.kinds.of(first) != Kind::Letter && !is_sign(first);
        if leads && next.is_some_and(in_word) {
            return first.len_utf8() + run_len(&text[first.len_utf8()..], usize::MAX, in_word);
        }
        if in_word(first) {
            return run_len(text, usize::MAX, in_word);
        }
        let space = usize::from(first == ' ' && next.is_some_and(is_sign));
        let signs = run_len(&text[space..], usize::MAX, is_sign);
        if signs > 0 {
            let end = space + signs;
            return end + run_len(&text[end..], usize::MAX, |c| matches!(c, '\r' | '\n'));
        }
        let spaces = run_len(text, usize::MAX, char::is_whitespace);
        match text[..spaces].rfind(['\r', '\n']) {
            Some(newline) => newline + 1,
            None if spaces > 0 => space_len(text),
            None => 0,
        }
    }

    /// `\p{S}`
    fn is_symbol(&self, c: char) -> bool {
        let after = self.symbols.partition_point(|range| range.0 <= c as u32);
        after > 0 && c as u32 <= self.symbols[after - 1].1
    }

    fn gpt2_len(&self, text: &str) -> usize {
        if let Some(len) = contraction_len(text, false) {
            return len;
        }
        let (space, kind) = self.after_optional_space(text);
        match kind {
            Kind::Space => space_len(text),
            Kind::Letter => space + run_len(&text[space..], usize::MAX, |c| self.kinds.of(c) == Kind::Letter),
            Kind::Number => space + run_len(&text[space..], usize::MAX, |c| self.kinds.of(c) == Kind::Number),
            _ => space + run_len(&text[space..], usize::MAX, |c| self.is_other(c, false)),
        }
    }

    fn llama3_len(&self, text: &str, digits: usize, marks: bool) -> usize {
        if let Some(len) = contraction_len(text, true) {
            return len;
        }
        let in_word = |c: char| matches!(self.kinds.of(c), Kind::Letter) || (marks && self.kinds.of(c) == Kind::Mark);
        let mut chars = text.chars();
        let first = chars.next().unwrap_or_default();
        let first_kind = self.kinds.of(first);
        // One character of any sort but these may lead a word.
        if !matches!(first, '\r' | '\n') && first_kind != Kind::Number && (in_word(first) || chars.next().is_some_and(in_word)) {
            return first.len_utf8() + run_len(&text[first.len_utf8()..], usize::MAX, in_word);
        }
        if first_kind == Kind::Number {
            return run_len(text, digits, |c| self.kinds.of(c) == Kind::Number);
        }
        self.wordless_len(text, marks, &['\r', '\n'])
    }

    fn cased_len(&self, text: &str, digits: usize, contractions: bool) -> usize {
        let is_letter = |c: char| self.kinds.of(c) == Kind::Letter;
        let first = text.chars().next().unwrap_or_default();
        let first_kind = self.kinds.of(first);
        let lead = if is_letter(first) { 0 } else { first.len_utf8() };
        if !matches!(first, '\r' | '\n') && first_kind != Kind::Number && text[lead..].starts_with(is_letter) {
            let word = lead + capitals_then_small_len(&text[lead..], is_letter);
            return word + if contractions { contraction_len(&text[word..], true).unwrap_or(0) } else { 0 };
        }
        if first_kind == Kind::Number {
            return run_len(text, digits, |c| self.kinds.of(c) == Kind::Number);
        }
        self.wordless_len(text, false, &['\r', '\n', '/'])
    }

    /// ` ?[^\s\p{L}\p{N}]+[after]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn wordless_len(&self, text: &str, marks: bool, after: &[char]) -> usize {
        let (space, kind) = self.after_optional_space(text);
        if kind != Kind::Space {
            let len = space + run_len(&text[space..], usize::MAX, |c| self.is_other(c, marks));
            // After the one space there may be a number, which is none of `[^\s\p{L}\p{N}]`.
            if len > space {
                return len + run_len(&text[len..], usize::MAX, |c| after.contains(&c));
            }
        }
        let spaces = run_len(text, usize::MAX, char::is_whitespace);
        match text[..spaces].rfind(['\r', '\n']) {
            Some(newline) => newline + 1,
            None => space_len(text),
        }
    }

    /// Whether a space leads, and the kind of what comes after it; a space that ends the text is itself what comes.
    fn after_optional_space(&self, text: &str) -> (usize, Kind) {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(' '), Some(next)) => (1, self.kinds.of(next)),
            (Some(first), _) => (0, self.kinds.of(first)),
            (None, _) => (0, Kind::Space),
        }
    }

    /// `[^\s\p{L}\p{N}]`, and not `\p{M}` either when `marks` are letters.
    fn is_other(&self, c: char, marks: bool) -> bool {
        match self.kinds.of(c) {
            Kind::Letter | Kind::Number | Kind::Space => false,
            Kind::Mark => !marks,
            Kind::Punctuation | Kind::Other => true,
        }
    }
}

/// Bytes of the longest start of `text` with at most `most` characters that all match.
fn run_len(text: &str, most: usize, matches: impl Fn(char) -> bool) -> usize {
    text.char_indices().enumerate().find(|&(count, (_, c))| count == most || !matches(c)).map_or(text.len(), |(_, (at, _))| at)
}

/// `A*B+|A+B*` over letters, at least one of which is there: capitals of ASCII, then small ones, and letters beyond ASCII
/// are both. Where none but capitals follow, the first expression still ends in the last letter that is both.
fn capitals_then_small_len(text: &str, is_letter: impl Fn(char) -> bool) -> usize {
    let capitals = run_len(text, usize::MAX, |c| is_letter(c) && !c.is_ascii_lowercase());
    let small = run_len(&text[capitals..], usize::MAX, |c| is_letter(c) && !c.is_ascii_uppercase());
    if small > 0 {
        return capitals + small;
    }
    let last_both = text[..capitals].char_indices().rfind(|(_, c)| !c.is_ascii());
    last_both.map_or(capitals, |(at, c)| at + c.len_utf8())
}

/// `\s+(?!\S)|\s+`: all the white space, but for its last character when a word follows and there is more than that one.
fn space_len(text: &str) -> usize {
    let len = run_len(text, usize::MAX, char::is_whitespace);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len < text.len() && last < len { len - last } else { len }
}

fn contraction_len(text: &str, any_case: bool) -> Option<usize> {
    let after = text.strip_prefix('\'')?.as_bytes();
    ["s", "t", "re", "ve", "m", "ll", "d"].into_iter().find_map(|ending| {
        let found = after.get(..ending.len())?;
        let same = if any_case { found.eq_ignore_ascii_case(ending.as_bytes()) } else { found == ending.as_bytes() };
        same.then_some(1 + ending.len())
    })
}

fn digit_triple_or_gap(text: &str) -> usize {
    let bytes = text.as_bytes();
    let triple = bytes.windows(3).position(|window| window.iter().all(u8::is_ascii_digit));
    match triple {
        Some(0) => 3,
        Some(start) => start,
        None => text.len(),
    }
}

/// The ranges of a class of characters, in order.
fn ranges(class: &str) -> impl Iterator<Item = (u32, u32)> {
    let parsed = regex_syntax::parse(class).expect("the classes of this file are well formed");
    let HirKind::Class(hir::Class::Unicode(class)) = parsed.into_kind() else { unreachable!("a class of characters") };
    class.ranges().iter().map(|range| (range.start() as u32, range.end() as u32)).collect::<Vec<_>>().into_iter()
}

/// Kinds of characters: ASCII by index, the rest by binary search in sorted ranges that do not overlap.
struct KindTable {
    ascii: [Kind; 128],
    ranges: Vec<(u32, u32, Kind)>,
}

impl KindTable {
    fn new() -> Self {
        let mut ranges = Vec::with_capacity(2048);
        for (category, kind) in [('L', Kind::Letter), ('N', Kind::Number), ('M', Kind::Mark), ('P', Kind::Punctuation)] {
            // Characters that Unicode assigned after 15.1 have no kind in llama.cpp either: the ids stay the same.
            let class = format!(r"[\p{{{category}}}&&\p{{Age=15.1}}]");
            ranges.extend(self::ranges(&class).map(|(start, end)| (start, end, kind)));
        }
        ranges.sort_unstable_by_key(|range| range.0);
        ranges.shrink_to_fit();
        let mut table = KindTable { ascii: [Kind::Other; 128], ranges };
        for byte in 0..128u8 {
            table.ascii[byte as usize] = table.search(byte as char);
        }
        table
    }

    fn of(&self, c: char) -> Kind {
        match self.ascii.get(c as usize) {
            Some(kind) => *kind,
            None => self.search(c),
        }
    }

    fn search(&self, c: char) -> Kind {
        if c.is_whitespace() {
            return Kind::Space;
        }
        let code = c as u32;
        let after = self.ranges.partition_point(|range| range.0 <= code);
        match after.checked_sub(1).map(|place| self.ranges[place]) {
            Some((_, end, kind)) if code <= end => kind,
            _ => Kind::Other,
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/text/tokenizer/pretokenizer.rs"]
mod tests;
