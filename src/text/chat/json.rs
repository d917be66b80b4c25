//! `tojson` as Hugging Face `transformers` defines it: Python's `json.dumps`, with nothing escaped for HTML.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Lists in lists that are written at most.
const MAX_DEPTH: usize = 200;

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, by place or by name.
pub fn tojson(state: &State, value: &Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let option = |place: usize, name: &str| -> Result<Value, Error> {
        let given = match args.get(place) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.unwrap_or(Value::from(())))
    };
    let (ensure_ascii, indent, separators, sort_keys) =
        (option(0, "ensure_ascii")?, option(1, "indent")?, option(2, "separators")?, option(3, "sort_keys")?);
    named.assert_all_used()?;
    let indent = match indent.as_str() {
        Some(text) => Some(text.to_owned()),
        None if indent.is_none() => None,
        None => Some(" ".repeat(usize::try_from(i64::try_from(indent)?.clamp(0, 1 << 20)).unwrap_or(0))),
    };
    let (item, key) = match separators.is_none() {
        true => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        false => (separators.get_item_by_index(0)?.to_string(), separators.get_item_by_index(1)?.to_string()),
    };
    let mut writer = Writer {
        state,
        out: String::new(),
        ensure_ascii: ensure_ascii.is_true(),
        sort_keys: sort_keys.is_true(),
        indent,
        item,
        key,
        depth: 0,
    };
    writer.value(value)?;
    Ok(writer.out)
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        let refused = |what: String| Err(Error::new(ErrorKind::BadSerialization, what));
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => write!(self.out, "{value}").expect("a string"),
            ValueKind::Number => self.out.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.block(['[', ']'], items)?;
            }
            ValueKind::Map => {
                let keys = value.try_iter()?;
                let mut pairs = Vec::new();
                for key in keys {
                    self.state.consume_fuel(1)?;
                    let item = value.get_item(&key)?;
                    pairs.push((Some(key), item));
                }
                if self.sort_keys {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.block(['{', '}'], pairs.into_iter())?;
            }
            kind => return refused(format!("{kind} is not JSON serializable")),
        }
        Ok(())
    }

    fn block(&mut self, signs: [char; 2], items: impl Iterator<Item = (Option<Value>, Value)>) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::new(ErrorKind::BadSerialization, format!("more than {MAX_DEPTH} lists in lists")));
        }
        self.out.push(signs[0]);
        self.depth += 1;
        let mut empty = true;
        for (key, item) in items {
            if !empty {
                self.out.push_str(&self.item);
            }
            empty = false;
            self.new_line()?;
            if let Some(key) = key {
                match key.kind() {
                    ValueKind::String => self.string(key.as_str().unwrap_or_default())?,
                    ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                        self.out.push('"');
                        self.value(&key)?;
                        self.out.push('"');
                    }
                    kind => return Err(Error::new(ErrorKind::BadSerialization, format!("a key that is {kind}"))),
                }
                self.out.push_str(&self.key);
            }
            self.value(&item)?;
        }
        self.depth -= 1;
        if !empty {
            self.new_line()?;
        }
        self.out.push(signs[1]);
        Ok(())
    }

    fn new_line(&mut self) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.state.consume_fuel((indent.len() * self.depth / 64) as u64)?;
        self.out.push('\n');
        (0..self.depth).for_each(|_| self.out.push_str(indent));
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel((text.len() / 16) as u64)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("a string");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// As Python's `repr` writes it: with a sign and two digits in the exponent.
fn python_float(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{}e{sign}{exponent:0>2}", digits.trim_end_matches(".0"))
        }
        None => text.replace("inf", "Infinity"),
    }
}
