//! llama.cpp's grammars (GBNF), read into a tree. An error names the line, and the rule where there is one.
//!
//! ```text
//! rule     name ::= choice                       choice   sequence | sequence …
//! item     "text"  [class]  .  name  (choice)  <token>  <[number]>     each with * + ? {m} {m,} {m,n} behind it
//! ```
//! A rule ends with its line, unless a parenthesis is open or the line ends with `|` or `::=`.

use std::collections::HashMap;

/// Parentheses in parentheses at most.
const MAX_NESTING: usize = 64;
/// A repetition's numbers at most, as llama.cpp has it.
const MAX_REPEAT: u32 = 2000;

#[derive(Debug, PartialEq)]
pub enum Node {
    Text(String),
    /// Ranges of characters, ends included; all others where it is negated.
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
    Any,
    /// A rule, by its place in `Gbnf::rules`.
    Rule(usize),
    /// A token of the vocabulary, or any but it.
    Token {
        is_negated: bool,
        id: u32,
    },
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    Repeat {
        of: Box<Node>,
        least: u32,
        /// None: any number.
        most: Option<u32>,
    },
}

#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub body: Node,
    /// The line that it begins on, from 1.
    pub line: usize,
}

#[derive(Debug)]
pub struct Gbnf {
    pub rules: Vec<Rule>,
    /// The rule `root`.
    pub root: usize,
}

/// Reads a grammar. `token`: the id of a token that is written out, if the vocabulary has it.
pub fn parse(text: &str, token: &dyn Fn(&str) -> Option<u32>) -> Result<Gbnf, String> {
    let mut reader = Reader { text, at: 0, nesting: 0, token, names: HashMap::new(), uses: Vec::new() };
    let mut bodies: Vec<Option<(Node, usize)>> = Vec::new();
    loop {
        reader.skip(true);
        if reader.at == text.len() {
            break;
        }
        let line = reader.line();
        let name = reader.name().ok_or_else(|| reader.error("a rule is wanted here: NAME ::= …"))?.to_owned();
        let rule = |what: String| format!("{what} (rule '{name}')");
        reader.skip(false);
        if !reader.eat("::=") {
            return Err(rule(reader.error("`::=` is wanted behind the name of a rule")));
        }
        reader.skip(true);
        let body = reader.choice().map_err(rule)?;
        reader.skip(false);
        if !matches!(reader.peek(), None | Some('\n' | '\r')) {
            return Err(rule(reader.error("the rule ends here, and something follows")));
        }
        let place = reader.place(&name, line);
        bodies.resize_with(reader.names.len(), || None);
        if bodies[place].replace((body, line)).is_some() {
            return Err(format!("line {line}: rule '{name}' is there twice"));
        }
    }
    let Reader { names, uses, .. } = reader;
    bodies.resize_with(names.len(), || None);
    let Some(&root) = names.get("root").filter(|place| bodies[**place].is_some()) else {
        return Err("there is no rule 'root', with which a grammar begins".into());
    };
    let mut sorted: Vec<(String, usize)> = names.into_iter().collect();
    sorted.sort_by_key(|(_, place)| *place);
    let mut rules = Vec::with_capacity(sorted.len());
    for ((name, place), body) in sorted.into_iter().zip(bodies) {
        match body {
            Some((body, line)) => rules.push(Rule { name, body, line }),
            None => return Err(format!("line {}: there is no rule '{name}'", uses[place])),
        }
    }
    Ok(Gbnf { rules, root })
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    nesting: usize,
    token: &'a dyn Fn(&str) -> Option<u32>,
    /// Rules that have been named, and the line on which each was first.
    names: HashMap<String, usize>,
    uses: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, text: &str) -> bool {
        let is_there = self.rest().starts_with(text);
        self.at += if is_there { text.len() } else { 0 };
        is_there
    }

    fn line(&self) -> usize {
        self.text[..self.at].matches('\n').count() + 1
    }

    fn error(&self, what: &str) -> String {
        format!("line {}: {what}", self.line())
    }

    /// White space and comments; line breaks only where a rule may go on behind them.
    fn skip(&mut self, with_lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\n' | '\r' if with_lines => self.at += 1,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let n = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        self.at += n;
        (n > 0).then(|| &rest[..n])
    }

    fn place(&mut self, name: &str, line: usize) -> usize {
        if let Some(place) = self.names.get(name) {
            return *place;
        }
        self.uses.push(line);
        self.names.insert(name.to_owned(), self.uses.len() - 1);
        self.uses.len() - 1
    }

    /// Inside of parentheses line breaks are white space.
    fn space(&mut self) {
        self.skip(self.nesting > 0);
    }

    fn choice(&mut self) -> Result<Node, String> {
        let mut choices = vec![self.sequence()?];
        loop {
            self.space();
            if !self.eat("|") {
                break;
            }
            self.skip(true);
            choices.push(self.sequence()?);
        }
        Ok(if choices.len() == 1 { choices.remove(0) } else { Node::Choice(choices) })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut items = Vec::new();
        loop {
            self.space();
            let Some(item) = self.item()? else { break };
            let item = self.repeated(item)?;
            items.push(item);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Node::Sequence(items) })
    }

    fn item(&mut self) -> Result<Option<Node>, String> {
        let is_token = self.rest().starts_with('<') || self.rest().starts_with("!<");
        Ok(Some(match self.peek() {
            _ if is_token => self.token()?,
            Some('"') => self.text()?,
            Some('[') => self.class()?,
            Some('.') => {
                self.at += 1;
                Node::Any
            }
            Some('(') => {
                self.at += 1;
                self.nesting += 1;
                if self.nesting > MAX_NESTING {
                    return Err(self.error(&format!("more than {MAX_NESTING} parentheses in each other")));
                }
                self.skip(true);
                let inner = self.choice()?;
                self.skip(true);
                if !self.eat(")") {
                    return Err(self.error("`)` is missing"));
                }
                self.nesting -= 1;
                inner
            }
            Some(c) if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {
                let line = self.line();
                let name = self.name().unwrap_or_default();
                Node::Rule(self.place(name, line))
            }
            _ => return Ok(None),
        }))
    }

    /// The item with what stands behind it.
    fn repeated(&mut self, mut item: Node) -> Result<Node, String> {
        loop {
            self.skip(false);
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let range = self.range()?;
                    item = Node::Repeat { of: item.into(), least: range.0, most: range.1 };
                    continue;
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Node::Repeat { of: item.into(), least, most };
        }
    }

    /// `m}`, `m,}`, `,n}` and `m,n}`.
    fn range(&mut self) -> Result<(u32, Option<u32>), String> {
        let first = self.number()?;
        let range = match (first, self.eat(",")) {
            (Some(n), false) => (n, Some(n)),
            (least, true) => (least.unwrap_or(0), self.number()?),
            (None, false) => return Err(self.error("a number is wanted in {…}")),
        };
        self.skip(true);
        if !self.eat("}") {
            return Err(self.error("`}` is missing"));
        }
        match range {
            (least, Some(most)) if least > most => Err(self.error(&format!("{{{least},{most}}}: the second is the smaller"))),
            range => Ok(range),
        }
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        self.skip(true);
        let rest = self.rest();
        let n = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        self.at += n;
        let digits = &rest[..n];
        self.skip(true);
        match digits.parse() {
            _ if digits.is_empty() => Ok(None),
            Ok(number) if number <= MAX_REPEAT => Ok(Some(number)),
            _ => Err(self.error(&format!("more than {MAX_REPEAT} times: write * or fewer"))),
        }
    }

    /// `<name>` and `<[number]>`.
    fn token(&mut self) -> Result<Node, String> {
        let is_negated = self.eat("!");
        let rest = self.rest();
        let end = rest.find('>').filter(|end| !rest[..*end].contains(char::is_whitespace));
        let Some(end) = end else { return Err(self.error("`>` is missing behind a token")) };
        let written = &rest[..=end];
        let inner = &written[1..end];
        let id = match inner.strip_prefix('[').and_then(|number| number.strip_suffix(']')) {
            Some(number) => number.parse().ok(),
            None => (self.token)(written),
        };
        let id = id.ok_or_else(|| self.error(&format!("{written:?} is no token of this model's vocabulary")))?;
        self.at += written.len();
        Ok(Node::Token { is_negated, id })
    }

    fn text(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n' | '\r') => return Err(self.error("a quotation mark is missing at the end of a text")),
                Some('"') => {
                    self.at += 1;
                    return Ok(Node::Text(text));
                }
                Some(_) => text.push(self.character()?),
            }
        }
    }

    fn class(&mut self) -> Result<Node, String> {
        self.at += 1;
        let is_negated = self.eat("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n' | '\r') => return Err(self.error("`]` is missing at the end of a class")),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            self.at += usize::from(is_range);
            let last = if is_range { self.character()? } else { first };
            if first > last {
                return Err(self.error(&format!("the range from {first:?} to {last:?} holds nothing")));
            }
            ranges.push((first, last));
        }
        self.at += 1;
        match ranges.is_empty() {
            true if is_negated => Ok(Node::Any),
            true => Err(self.error("a class of no characters matches nothing")),
            false => Ok(Node::Class { is_negated, ranges }),
        }
    }

    /// A character of a text or class, escaped or not.
    fn character(&mut self) -> Result<char, String> {
        let missing = |reader: &Self| reader.error("the grammar ends in the middle of a text");
        let c = self.next().ok_or_else(|| missing(self))?;
        if c != '\\' {
            return Ok(c);
        }
        match self.next().ok_or_else(|| missing(self))? {
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'x' => self.code(2),
            'u' => self.code(4),
            'U' => self.code(8),
            same @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/' | '\'' | '.') => Ok(same),
            other => {
                Err(self
                    .error(&format!("\\{} is no escape: \\n \\r \\t \\\\ \\\" \\[ \\] \\xHH \\uHHHH are", other.escape_debug())))
            }
        }
    }

    fn code(&mut self, n_digits: usize) -> Result<char, String> {
        let digits = self.rest().get(..n_digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| char::from_u32(u32::from_str_radix(digits, 16).ok()?));
        self.at += if code.is_some() { n_digits } else { 0 };
        code.ok_or_else(|| self.error(&format!("an escape wants {n_digits} hexadecimal digits of a character")))
    }
}
