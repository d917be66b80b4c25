//! The source of a template before it is compiled: its size and nesting have limits, so that neither parser nor compiler runs out
//! of stack or time, and some of it is put into words that minijinja knows.
//!
//! - Line ends become `\n`, as Jinja2 makes them.
//! - `{% generation %}` and `{% endgeneration %}`, an extension of `transformers` that changes no text, become a condition that holds.
//! - `'format' % value` becomes a filter.
//! - What `{% set %}` keeps passes through a filter of ours (`python::kept`): a loop would otherwise nest values as deep as it runs.

use std::borrow::Cow;

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// The most of each that a template may have; the largest of seventy well-known ones has 16,738 bytes, 57 words and signs in a
/// tag, brackets four deep and 20 branches.
pub const MAX_BYTES: usize = 128 << 10;
const MAX_TAG_TOKENS: usize = 500;
const MAX_BRACKETS: usize = 32;
const MAX_BRANCHES: usize = 200;
/// The lexer counts lines, and bytes of a line, in 16 bits.
const MAX_LINE: usize = 60_000;

/// Names of the filters that the source calls after `prepare`; no template has them, since it would have been given others.
pub struct Names {
    pub kept: String,
    pub kept_in_namespace: String,
    pub percent: String,
}

/// A refusal: the line, and what is wrong there.
pub type Refused = (u32, String);

pub fn prepare(source: &str, syntax: SyntaxConfig) -> Result<(String, Names), Refused> {
    if source.len() > MAX_BYTES {
        return Err((1, format!("it is longer than {MAX_BYTES} bytes, the most that is read")));
    }
    let source: Cow<str> = match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    };
    check_lines(&source)?;
    let free = (0..).map(|n| format!("lowkey{n}")).find(|name| !source.contains(name.as_str())).unwrap_or_default();
    let names =
        Names { kept: format!("{free}_kept"), kept_in_namespace: format!("{free}_held"), percent: format!("{free}_percent") };
    let mut edits = Edits { names: &names, list: Vec::new() };
    let mut tag: Vec<(Token, Span)> = Vec::new();
    let (mut brackets, mut branches) = (0usize, 0);
    // What the lexer cannot read, the parser refuses with better words.
    for (token, span) in tokenize(&source, false, syntax).map_while(Result::ok) {
        let most = |what: &str, n: usize| Err((span.start_line.into(), format!("{what}, and {n} are the most that is read")));
        match token {
            Token::TemplateData(_) => continue,
            Token::VariableStart | Token::BlockStart => {
                tag.clear();
                brackets = 0;
            }
            Token::VariableEnd | Token::BlockEnd => {
                edits.tag(&tag, span.start_offset as usize);
                tag.clear();
            }
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => brackets += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose => brackets = brackets.saturating_sub(1),
            Token::Ident("elif") => branches += 1,
            _ => {}
        }
        if brackets > MAX_BRACKETS {
            return most("brackets within more brackets", MAX_BRACKETS);
        }
        if branches > MAX_BRANCHES {
            return most("more branches (elif)", MAX_BRANCHES);
        }
        tag.push((token, span));
        if tag.len() > MAX_TAG_TOKENS {
            return most("a tag of more words and signs", MAX_TAG_TOKENS);
        }
    }
    let edited = edits.apply(&source);
    check_lines(&edited)?;
    Ok((edited, names))
}

fn check_lines(source: &str) -> Result<(), Refused> {
    let longest = source.lines().zip(1u32..).find(|(line, n)| line.len() > MAX_LINE || *n as usize > MAX_LINE);
    match longest {
        Some((_, n)) => Err((n, format!("more lines, or a longer one, than {MAX_LINE}, the most that is read"))),
        None => Ok(()),
    }
}

/// What is put in place of bytes of the source.
struct Edits<'a> {
    names: &'a Names,
    list: Vec<(usize, usize, String)>,
}

impl Edits<'_> {
    /// `tag`: its tokens, from the opening one; it closes at `end`.
    fn tag(&mut self, tag: &[(Token, Span)], end: usize) {
        let tokens: Vec<&Token> = tag.iter().map(|(token, _)| token).collect();
        let range = |at: usize| (tag[at].1.start_offset as usize, tag[at].1.end_offset as usize);
        match tokens[..] {
            [Token::BlockStart, Token::Ident("generation")] => self.list.push((range(1).0, range(1).1, "if true".into())),
            [Token::BlockStart, Token::Ident("endgeneration")] => self.list.push((range(1).0, range(1).1, "endif".into())),
            [Token::BlockStart, Token::Ident("set"), ref rest @ ..] => {
                let assign = rest.iter().position(|token| matches!(token, Token::Assign | Token::Pipe));
                if let Some(at) = assign {
                    let dotted = rest[..at].iter().any(|token| matches!(token, Token::Dot));
                    let name = if dotted { &self.names.kept_in_namespace } else { &self.names.kept };
                    match rest[at] {
                        Token::Assign if rest.len() > at + 1 => {
                            self.list.push((range(at + 2).1, range(at + 2).1, "((".into()));
                            self.list.push((end, end, format!("))|{name}")));
                        }
                        Token::Pipe => self.list.push((end, end, format!("|{name}"))),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        for at in 1..tag.len() {
            if let (Token::Str(_) | Token::String(_), Some(Token::Mod)) = (tokens[at], tokens.get(at + 1)) {
                let last = operand(&tokens, at + 2);
                if last > at + 1 {
                    self.list.push((range(at + 1).0, range(at + 1).1, format!("|{}(", self.names.percent)));
                    self.list.push((range(last).1, range(last).1, ")".into()));
                }
            }
        }
    }

    fn apply(mut self, source: &str) -> String {
        self.list.sort_by_key(|(start, ..)| *start);
        let mut out = String::with_capacity(source.len() + 32 * self.list.len());
        let mut done = 0;
        for (start, end, text) in self.list {
            out.push_str(&source[done..start]);
            out.push_str(&text);
            done = end;
        }
        out.push_str(&source[done..]);
        out
    }
}

/// The last token of the operand that begins at `at`: a name or value with what follows it, or what stands in brackets. Where there
/// is none, the token before.
fn operand(tokens: &[&Token], at: usize) -> usize {
    let mut last = at - 1;
    let mut depth = 0usize;
    for (place, token) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => depth += 1,
            Token::ParenClose | Token::BracketClose | Token::BraceClose if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            Token::Dot | Token::Pipe => {}
            Token::Ident("if" | "else" | "and" | "or" | "not" | "in" | "is") => break,
            Token::Ident(_) | Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_)
                if place == at || matches!(tokens[place - 1], Token::Dot | Token::Pipe | Token::Minus) => {}
            Token::Minus if place == at => {}
            _ => break,
        }
        last = place;
    }
    last
}
