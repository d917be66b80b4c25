//! From GBNF to the grammars of llguidance, which are a kind of Lark's.
//!
//! GBNF knows characters only; there a lexer cuts the text into terminals first, each the longest that may stand. What does not
//! recur therefore becomes one terminal, a regular expression, and so does the longest run of such items between others: a grammar
//! without recursion is a single terminal, held to exactly. In a recursive one a terminal may take what the next item needed; then
//! fewer texts are possible than the grammar allows, and never others.

use std::fmt::Write;

use super::gbnf::{Gbnf, Node};
use super::quoted;

/// Rules that lead from one to the next, and parentheses in each other in them, are so deep together at most: the library goes down
/// by recursion.
pub const MAX_DEPTH: usize = 256;

/// The grammar in Lark's words.
pub fn from_gbnf(gbnf: &Gbnf) -> Result<String, String> {
    let kinds = Kinds::of(gbnf)?;
    let mut writer = Writer { gbnf, kinds: &kinds, out: String::new(), more: String::new(), n_more: 0 };
    writer.out.push_str("start: ");
    writer.reference(gbnf.root);
    writer.out.push('\n');
    for place in 0..gbnf.rules.len() {
        if kinds.is_reached[place] {
            writer.rule(place);
        }
    }
    let Writer { mut out, more, .. } = writer;
    out.push_str(&more);
    Ok(out)
}

/// What rules are.
struct Kinds {
    /// Neither recurs nor holds tokens.
    is_regular: Vec<bool>,
    is_reached: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

impl Kinds {
    fn of(gbnf: &Gbnf) -> Result<Kinds, String> {
        let n = gbnf.rules.len();
        let uses: Vec<Vec<usize>> = gbnf.rules.iter().map(|rule| uses(&rule.body)).collect();
        let mut visits = vec![Visit::New; n];
        let mut recurs = vec![false; n];
        // A walk along all references; a rule that is met while it is open leads to itself.
        let mut stack = vec![(gbnf.root, 0)];
        visits[gbnf.root] = Visit::Open;
        while let Some((rule, next)) = stack.last_mut() {
            let (at, user) = (*next, *rule);
            *next += 1;
            match uses[user].get(at) {
                None => {
                    visits[user] = Visit::Done;
                    stack.pop();
                }
                Some(&used) if visits[used] == Visit::New => {
                    visits[used] = Visit::Open;
                    stack.push((used, 0));
                }
                Some(&used) if visits[used] == Visit::Open => {
                    let since = stack.iter().position(|(rule, _)| *rule == used).unwrap_or(0);
                    stack[since..].iter().for_each(|(rule, _)| recurs[*rule] = true);
                }
                Some(_) => {}
            }
        }
        let mut is_regular: Vec<bool> = (0..n).map(|i| !recurs[i] && !has_tokens(&gbnf.rules[i].body)).collect();
        // Whoever uses a rule that is not regular is none either.
        loop {
            let lost: Vec<usize> = (0..n).filter(|&i| is_regular[i] && uses[i].iter().any(|&used| !is_regular[used])).collect();
            if lost.is_empty() {
                break;
            }
            lost.iter().for_each(|&i| is_regular[i] = false);
        }
        let is_reached = visits.iter().map(|visit| *visit == Visit::Done).collect::<Vec<_>>();
        let kinds = Kinds { is_regular, is_reached };
        check_ends(gbnf)?;
        kinds.check_chains(gbnf, &uses)?;
        Ok(kinds)
    }

    fn check_chains(&self, gbnf: &Gbnf, uses: &[Vec<usize>]) -> Result<(), String> {
        let mut seen = vec![false; uses.len()];
        let (mut stack, mut total) = (vec![(gbnf.root, 0)], depth(&gbnf.rules[gbnf.root].body));
        seen[gbnf.root] = true;
        while let Some((rule, next)) = stack.last_mut() {
            let (at, user) = (*next, *rule);
            *next += 1;
            match uses[user].get(at) {
                None => {
                    total -= depth(&gbnf.rules[user].body);
                    stack.pop();
                }
                Some(&used) if !seen[used] => {
                    seen[used] = true;
                    stack.push((used, 0));
                    let rule = &gbnf.rules[used];
                    total += depth(&rule.body);
                    if total > MAX_DEPTH {
                        let what = format!("rules lead to it, and hold parentheses, more than {MAX_DEPTH} deep");
                        return Err(format!("line {}: rule '{}': {what}", rule.line, rule.name));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Every rule must come to an end in some way.
fn check_ends(gbnf: &Gbnf) -> Result<(), String> {
    let mut ends = vec![false; gbnf.rules.len()];
    loop {
        let n_before = ends.iter().filter(|ends| **ends).count();
        for (place, rule) in gbnf.rules.iter().enumerate() {
            ends[place] = ends[place] || can_end(&rule.body, &ends);
        }
        if ends.iter().filter(|ends| **ends).count() == n_before {
            break;
        }
    }
    match gbnf.rules.iter().zip(&ends).find(|(_, ends)| !**ends) {
        Some((rule, _)) => Err(format!("line {}: rule '{}' leads to itself in every case, and never ends", rule.line, rule.name)),
        None => Ok(()),
    }
}

fn can_end(node: &Node, ends: &[bool]) -> bool {
    match node {
        Node::Rule(rule) => ends[*rule],
        Node::Sequence(items) => items.iter().all(|item| can_end(item, ends)),
        Node::Choice(items) => items.iter().any(|item| can_end(item, ends)),
        Node::Repeat { of, least, .. } => *least == 0 || can_end(of, ends),
        Node::Text(_) | Node::Class { .. } | Node::Any | Node::Token { .. } => true,
    }
}

/// How many levels a rule's body has, itself included.
fn depth(node: &Node) -> usize {
    match node {
        Node::Sequence(items) | Node::Choice(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Node::Repeat { of, .. } => 1 + depth(of),
        _ => 1,
    }
}

fn walk(node: &Node, see: &mut dyn FnMut(&Node)) {
    see(node);
    match node {
        Node::Sequence(items) | Node::Choice(items) => items.iter().for_each(|item| walk(item, see)),
        Node::Repeat { of, .. } => walk(of, see),
        _ => {}
    }
}

fn uses(node: &Node) -> Vec<usize> {
    let mut used = Vec::new();
    walk(node, &mut |node| {
        if let Node::Rule(rule) = node {
            used.push(*rule);
        }
    });
    used
}

fn has_tokens(node: &Node) -> bool {
    let mut found = false;
    walk(node, &mut |node| found |= matches!(node, Node::Token { .. }));
    found
}

struct Writer<'a> {
    gbnf: &'a Gbnf,
    kinds: &'a Kinds,
    out: String,
    /// Terminals for what stands between rules.
    more: String,
    n_more: usize,
}

impl Writer<'_> {
    fn reference(&mut self, rule: usize) {
        let prefix = if self.kinds.is_regular[rule] { 'T' } else { 'r' };
        let _ = write!(self.out, "{prefix}{rule}");
    }

    fn is_regular(&self, node: &Node) -> bool {
        let mut is_regular = !has_tokens(node);
        walk(node, &mut |node| {
            if let Node::Rule(rule) = node {
                is_regular &= self.kinds.is_regular[*rule];
            }
        });
        is_regular
    }

    fn rule(&mut self, place: usize) {
        let body = &self.gbnf.rules[place].body;
        self.reference(place);
        self.out.push_str(": ");
        match self.kinds.is_regular[place] {
            true => self.terminal(body),
            false => self.node(body),
        }
        self.out.push('\n');
    }

    /// In the words of rules.
    fn node(&mut self, node: &Node) {
        if self.is_regular(node) {
            return self.lifted(std::slice::from_ref(node));
        }
        match node {
            Node::Rule(rule) => self.reference(*rule),
            Node::Token { is_negated, id } => {
                let not = if *is_negated { "^" } else { "" };
                let _ = write!(self.out, "<[{not}{id}]>");
            }
            Node::Sequence(items) => {
                let mut rest = items.as_slice();
                while let Some(first) = rest.first() {
                    let n = rest.iter().take_while(|item| self.is_regular(item)).count();
                    if n > 0 {
                        self.lifted(&rest[..n]);
                    } else {
                        self.grouped(first);
                    }
                    self.out.push(' ');
                    rest = &rest[n.max(1)..];
                }
            }
            Node::Choice(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.out.push_str(if i > 0 { " | " } else { "" });
                    self.node(item);
                }
            }
            Node::Repeat { of, least, most } => {
                if *most == Some(0) {
                    return self.out.push_str("\"\"");
                }
                self.grouped(of);
                self.times(*least, *most);
            }
            // The others are regular.
            Node::Text(_) | Node::Class { .. } | Node::Any => {}
        }
    }

    fn grouped(&mut self, node: &Node) {
        self.out.push('(');
        self.node(node);
        self.out.push(')');
    }

    fn times(&mut self, least: u32, most: Option<u32>) {
        let _ = match (least, most) {
            (0, None) => write!(self.out, "*"),
            (1, None) => write!(self.out, "+"),
            (0, Some(1)) => write!(self.out, "?"),
            (least, None) => write!(self.out, "{{{least},}}"),
            (least, Some(most)) => write!(self.out, "{{{least},{most}}}"),
        };
    }

    /// A terminal of its own for items in a row.
    fn lifted(&mut self, items: &[Node]) {
        if let [Node::Rule(rule)] = items {
            return self.reference(*rule);
        }
        let out = std::mem::take(&mut self.out);
        for item in items {
            self.terminal_group(item);
        }
        let definition = std::mem::replace(&mut self.out, out);
        let _ = writeln!(self.more, "G{}: {definition}", self.n_more);
        let _ = write!(self.out, "G{}", self.n_more);
        self.n_more += 1;
    }

    fn terminal_group(&mut self, node: &Node) {
        self.out.push('(');
        self.terminal(node);
        self.out.push(')');
    }

    /// In the words of terminals.
    fn terminal(&mut self, node: &Node) {
        match node {
            Node::Text(text) => self.text(text),
            Node::Class { is_negated, ranges } => {
                self.out.push_str(if *is_negated { "/[^" } else { "/[" });
                for (first, last) in ranges {
                    let _ = write!(self.out, "\\u{{{:x}}}-\\u{{{:x}}}", u32::from(*first), u32::from(*last));
                }
                self.out.push_str("]/");
            }
            Node::Any => self.out.push_str("/(?s:.)/"),
            Node::Rule(rule) => self.reference(*rule),
            Node::Sequence(items) if items.is_empty() => self.out.push_str("\"\""),
            Node::Sequence(items) => items.iter().for_each(|item| self.terminal_group(item)),
            Node::Choice(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.out.push_str(if i > 0 { " | " } else { "" });
                    self.terminal_group(item);
                }
            }
            Node::Repeat { most: Some(0), .. } => self.out.push_str("\"\""),
            Node::Repeat { of, least, most } => {
                self.terminal_group(of);
                self.times(*least, *most);
            }
            // Never part of what is regular.
            Node::Token { .. } => {}
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push_str(&quoted(text));
    }
}

/// A grammar in Lark's own words, whose rules are not known here: parentheses and rules must not lie too deep in each other.
pub fn check(text: &str) -> Result<(), String> {
    let (mut open, mut total) = (0usize, 0usize);
    let mut deepest = 0;
    for (i, line) in text.lines().enumerate() {
        let mut chars = line.chars().peekable();
        let mut is_definition = false;
        while let Some(c) = chars.next() {
            match c {
                '"' => {
                    while let Some(c) = chars.next().filter(|c| *c != '"') {
                        if c == '\\' {
                            chars.next();
                        }
                    }
                }
                '/' if chars.peek() == Some(&'/') => break,
                '/' => {
                    while let Some(c) = chars.next().filter(|c| *c != '/') {
                        if c == '\\' {
                            chars.next();
                        }
                    }
                }
                '#' => break,
                '(' | '[' | '{' => open += 1,
                ')' | ']' | '}' => open = open.saturating_sub(1),
                ':' if open == 0 => is_definition = true,
                _ => {}
            }
            deepest = deepest.max(open);
        }
        if is_definition {
            total += 1 + std::mem::take(&mut deepest);
        }
        if total + deepest > MAX_DEPTH {
            return Err(format!("line {}: rules and parentheses in each other may be more than {MAX_DEPTH} deep", i + 1));
        }
    }
    Ok(())
}

/// Words, texts and marks of a grammar, from above: the library's tree of it grows with them.
pub fn n_items(text: &str) -> usize {
    let (mut n, mut in_word) = (0, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let is_word = c.is_alphanumeric() || c == '_';
        n += usize::from(!(c.is_whitespace() || is_word && in_word));
        in_word = is_word;
        if c == '"' {
            while let Some(c) = chars.next().filter(|c| *c != '"') {
                if c == '\\' {
                    chars.next();
                }
            }
        }
    }
    n
}
