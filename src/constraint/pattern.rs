//! Patterns and formats of schemas. Patterns are ECMA-262's, and the library reads those of the crate `regex`: each is written anew so
//! that it means the same there, or refused. Formats that the library holds to only nearly are patterns of our own.

use std::iter::Peekable;
use std::str::Chars;

/// `\s`, as members of a class.
const SPACE: &str = r"\t\n\x0B\x0C\r \u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}\u{FEFF}";
const DIGIT: &str = "0-9";
const WORD: &str = "0-9A-Za-z_";
/// `.`: any character that ends no line.
const DOT: &str = r"[^\n\r\u{2028}\u{2029}]";

/// Years from 0001, and those of them that have a 29th of February.
const YEAR: &str = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)";
const LEAP: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
const DAY: &str =
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
/// Without leap seconds: whether there was one is a question of history.
const TIME: &str = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";

/// The pattern of a format, where the library would let through what is none of it: it knows no years without a 29th of February, and
/// a leap second at any minute.
pub fn of_format(format: &str) -> Option<String> {
    let date = format!("(?:{YEAR}-{DAY}|{LEAP}-02-29)");
    match format {
        "date" => Some(format!("^{date}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{date}[tT]{TIME}$")),
        _ => None,
    }
}

/// A pattern of ECMA-262 for the library, or what in it cannot be held to.
pub fn from_ecma(pattern: &str) -> Result<String, String> {
    let mut reader = Reader { rest: pattern.chars().peekable(), out: String::with_capacity(pattern.len() + 16) };
    while let Some(c) = reader.rest.next() {
        reader.piece(c)?;
    }
    Ok(reader.out)
}

/// What stands for something in a class, or behind a backslash.
enum Atom {
    Char(char),
    /// Members of a class.
    Set(&'static str),
    NotSet(&'static str),
    /// A property of Unicode, as it is written.
    Property(String),
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    out: String,
}

impl Reader<'_> {
    fn piece(&mut self, c: char) -> Result<(), String> {
        match c {
            '\\' => {
                let atom = self.escape(false)?;
                self.alone(&atom);
            }
            '.' => self.out.push_str(DOT),
            '[' => self.class()?,
            '(' if self.rest.peek() == Some(&'?') => self.group()?,
            '(' | ')' | '|' | '*' | '+' | '?' | '^' | '$' => self.out.push(c),
            '{' => match repetition(self.rest.clone()) {
                Some(text) => {
                    self.rest.nth(text.len() - 2);
                    self.out.push_str(&text);
                }
                None => self.literal('{'),
            },
            c => self.literal(c),
        }
        Ok(())
    }

    fn literal(&mut self, c: char) {
        match c {
            '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' | '#' | '&' | '-' | '~' => {
                self.out.push('\\');
                self.out.push(c);
            }
            c if c.is_control() || c.is_whitespace() && c != ' ' => self.out.push_str(&format!("\\u{{{:X}}}", u32::from(c))),
            c => self.out.push(c),
        }
    }

    /// Outside of a class.
    fn alone(&mut self, atom: &Atom) {
        match atom {
            Atom::Char(c) => self.literal(*c),
            Atom::Set(members) => self.out.push_str(&format!("[{members}]")),
            Atom::NotSet(members) => self.out.push_str(&format!("[^{members}]")),
            Atom::Property(text) => self.out.push_str(text),
        }
    }

    /// Within a class.
    fn member(&mut self, atom: &Atom) {
        match atom {
            Atom::Set(members) => self.out.push_str(members),
            other => self.alone(other),
        }
    }

    /// Behind `(`, at a question mark.
    fn group(&mut self) -> Result<(), String> {
        self.rest.next();
        let mut mark = String::new();
        for c in self.rest.by_ref().take(64) {
            mark.push(c);
            match mark.as_str() {
                "=" | "!" | "<=" | "<!" => return Err("look-around".into()),
                // Names say nothing about what may be written.
                ":" => {
                    self.out.push_str("(?:");
                    return Ok(());
                }
                "i:" | "i)" => {
                    self.out.push_str(&format!("(?{mark}"));
                    return Ok(());
                }
                named if c == '>' && (named.starts_with('<') || named.starts_with("P<")) => {
                    self.out.push_str("(?:");
                    return Ok(());
                }
                other if other.starts_with(['<', 'P', 'i']) => {}
                other => return Err(format!("`(?{other}`")),
            }
        }
        Err("a group without an end".into())
    }

    /// Behind `[`.
    fn class(&mut self) -> Result<(), String> {
        let is_not = self.rest.next_if_eq(&'^').is_some();
        if self.rest.next_if_eq(&']').is_some() {
            if is_not {
                self.out.push_str("(?s:.)");
                return Ok(());
            }
            return Err("`[]`, which holds nothing,".into());
        }
        self.out.push_str(if is_not { "[^" } else { "[" });
        while let Some(first) = self.atom()? {
            let mut ahead = self.rest.clone();
            // A hyphen between two characters makes a range; any other is itself.
            let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
            if !is_range {
                self.member(&first);
                continue;
            }
            self.rest.next();
            let Some(last) = self.atom()? else { break };
            match (&first, &last) {
                (Atom::Char(low), Atom::Char(high)) if low > high => {
                    return Err(format!("the range `{low}-{high}`, which is upside down,"));
                }
                (Atom::Char(low), Atom::Char(high)) => {
                    self.literal(*low);
                    self.out.push('-');
                    self.literal(*high);
                }
                _ => {
                    self.member(&first);
                    self.literal('-');
                    self.member(&last);
                }
            }
        }
        self.out.push(']');
        Ok(())
    }

    /// The next of a class; none at its end.
    fn atom(&mut self) -> Result<Option<Atom>, String> {
        match self.rest.next() {
            None => Err("a class without an end".into()),
            Some(']') => Ok(None),
            Some('\\') => self.escape(true).map(Some),
            Some(c) => Ok(Some(Atom::Char(c))),
        }
    }

    /// Behind a backslash.
    fn escape(&mut self, in_class: bool) -> Result<Atom, String> {
        let Some(c) = self.rest.next() else { return Err("a backslash at the end".into()) };
        let atom = match c {
            'd' => Atom::Set(DIGIT),
            'D' => Atom::NotSet(DIGIT),
            'w' => Atom::Set(WORD),
            'W' => Atom::NotSet(WORD),
            's' => Atom::Set(SPACE),
            'S' => Atom::NotSet(SPACE),
            't' => Atom::Char('\t'),
            'n' => Atom::Char('\n'),
            'r' => Atom::Char('\r'),
            'v' => Atom::Char('\u{B}'),
            'f' => Atom::Char('\u{C}'),
            'b' if in_class => Atom::Char('\u{8}'),
            'b' | 'B' => return Err("a word boundary".into()),
            '0' if !self.rest.peek().is_some_and(char::is_ascii_digit) => Atom::Char('\0'),
            '0'..='9' | 'k' => return Err("a reference back".into()),
            'c' => match self.rest.next().filter(char::is_ascii_alphabetic) {
                Some(letter) => Atom::Char(char::from(letter as u8 % 32)),
                None => return Err("`\\c` without its letter".into()),
            },
            'x' => Atom::Char(self.code(2)?),
            'u' => Atom::Char(self.code(4)?),
            'p' | 'P' => Atom::Property(self.property(c)?),
            c if c.is_ascii_alphabetic() => return Err(format!("`\\{c}`, which is no escape of ECMA-262,")),
            c => Atom::Char(c),
        };
        Ok(atom)
    }

    /// So many hexadecimal digits, or any in braces; two halves of a character are one.
    fn code(&mut self, n_digits: usize) -> Result<char, String> {
        let wrong = || "an escape that is no character".to_owned();
        let first = self.hex(n_digits).ok_or_else(wrong)?;
        if !(0xD800..0xDC00).contains(&first) {
            return char::from_u32(first).ok_or_else(wrong);
        }
        let is_pair = self.rest.next() == Some('\\') && self.rest.next() == Some('u');
        let second = if is_pair { self.hex(4) } else { None };
        let second = second.filter(|second| (0xDC00..0xE000).contains(second)).ok_or_else(wrong)?;
        char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)).ok_or_else(wrong)
    }

    fn hex(&mut self, n_digits: usize) -> Option<u32> {
        let text: String = match self.rest.next_if_eq(&'{').filter(|_| n_digits == 4) {
            Some(_) => self.rest.by_ref().take_while(|c| *c != '}').take(8).collect(),
            None => self.rest.by_ref().take(n_digits).collect(),
        };
        u32::from_str_radix(&text, 16).ok().filter(|_| text.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    /// Behind `\p`.
    fn property(&mut self, c: char) -> Result<String, String> {
        let wrong = || format!("`\\{c}` without a property in braces");
        self.rest.next_if_eq(&'{').ok_or_else(wrong)?;
        let name: String = self.rest.by_ref().take(64).take_while(|c| *c != '}').collect();
        match !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_=".contains(c)) {
            true => Ok(format!("\\{c}{{{name}}}")),
            false => Err(wrong()),
        }
    }
}

/// `{n}`, `{n,}` or `{n,m}`, behind its first brace; anything else is text.
fn repetition(rest: Peekable<Chars<'_>>) -> Option<String> {
    let mut text = String::from("{");
    for c in rest.take(24) {
        text.push(c);
        if c == '}' {
            let inner = &text[1..text.len() - 1];
            let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
            let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
            return Some(text.clone()).filter(|_| !low.is_empty() && is_number(low) && is_number(high));
        }
    }
    None
}

#[cfg(test)]
#[path = "../../tests/unit/constraint/pattern.rs"]
mod tests;
