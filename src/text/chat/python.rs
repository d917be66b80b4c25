//! What templates expect of Python and of Jinja2 and minijinja has not, or has otherwise: methods of strings and lists, tests,
//! conversions, formatting by `%`. `transformers` renders in a sandbox where nothing can be changed, so methods that change
//! a value are refused by name.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::json::tojson;
use super::source::Names;

/// Lists in lists that a variable may hold.
const MAX_DEPTH: usize = 64;

pub fn teach(environment: &mut Environment<'static>, names: &Names) {
    environment.set_unknown_method_callback(method);
    environment.add_function("namespace", namespace);
    environment.add_filter("tojson", tojson);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter(names.kept.clone(), |state: &State, value: Value| kept(state, value, 0, false));
    environment.add_filter(names.kept_in_namespace.clone(), |state: &State, value: Value| kept(state, value, 0, true));
    environment.add_filter(names.percent.clone(), percent);
    environment.add_filter("format", |state: &State, text: &str, values: Rest<Value>| {
        formatted(state, FormatStyle::Printf, text, &values)
    });
    let is = |kinds: &'static [ValueKind]| move |value: &Value| kinds.contains(&value.kind());
    environment.add_test(
        "sequence",
        is(&[ValueKind::Undefined, ValueKind::String, ValueKind::Bytes, ValueKind::Seq, ValueKind::Iterable, ValueKind::Map]),
    );
    // To Python `none` is not iterable: templates ask `tools is iterable` before they count tools.
    environment.add_test("callable", |value: &Value| value.is_undefined() || value.kind() == ValueKind::Plain);
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
}

fn refused<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, what.into()))
}

/// A value that a variable goes on to hold: what is computed on demand becomes a list, as in Python, and lists in lists have a
/// limit, so that no loop nests them without end. A namespace holds no namespace, which might be itself, and no function.
fn kept(state: &State, value: Value, depth: usize, in_namespace: bool) -> Result<Value, Error> {
    let kind = value.kind();
    let Some(object) = value.as_object() else { return Ok(value) };
    state.consume_fuel(1)?;
    if depth == MAX_DEPTH {
        return refused(format!("a variable would hold more than {MAX_DEPTH} lists in lists"));
    }
    let is_namespace = object.type_name().ends_with("::Namespace");
    match kind {
        ValueKind::Seq | ValueKind::Iterable => {
            let items =
                value.try_iter()?.map(|item| kept(state, item, depth + 1, in_namespace)).collect::<Result<Vec<Value>, _>>()?;
            Ok(if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        ValueKind::Map if !is_namespace && object.type_name().contains("Map<") => {
            let mut pairs = Vec::new();
            for key in value.try_iter()? {
                let item = kept(state, value.get_item(&key)?, depth + 1, in_namespace)?;
                pairs.push((key, item));
            }
            Ok(Value::from_pairs(pairs))
        }
        _ if in_namespace || depth > 0 => refused("a namespace, or a list in a variable, would hold a namespace or a function"),
        _ => Ok(value),
    }
}

fn namespace(state: &State, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    for given in args.iter() {
        let Some(keys) = given.as_object().and_then(|object| object.try_iter()) else {
            return refused("namespace() of what is no dictionary");
        };
        for key in keys {
            pairs.push((key.clone(), kept(state, given.get_item(&key)?, 0, true)?));
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), kept(state, named.get(name)?, 0, true)?));
    }
    minijinja::functions::namespace(Some(Value::from_pairs(pairs).into()))
}

/// `int(default=0, base=10)`: what is no number is the default.
fn int(state: &State, value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0));
    let base = base.or(named.get("base")?);
    named.assert_all_used()?;
    match value.as_str() {
        _ if value.is_undefined() => Err(ErrorKind::UndefinedError.into()),
        Some(text) if text.to_lowercase().contains("inf") || text.to_lowercase().contains("nan") => Ok(default),
        _ => minijinja::filters::int(state, &trimmed(value), Some(default), base, Kwargs::from_iter([] as [(&str, Value); 0])),
    }
}

/// `float(default=0.0)`, likewise.
fn float(state: &State, value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(Value::from(0.0));
    named.assert_all_used()?;
    if value.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    minijinja::filters::float(state, &trimmed(value), Some(default), Kwargs::from_iter([] as [(&str, Value); 0]))
}

fn trimmed(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| Value::from(text.trim().replace('_', "")))
}

/// `'format' % value`.
fn percent(state: &State, text: &str, value: Value) -> Result<String, Error> {
    let values: Vec<Value> = if value.is_tuple() { value.try_iter()?.collect() } else { vec![value] };
    formatted(state, FormatStyle::Printf, text, &values)
}

/// `format(…)` of a template, by `%` or by braces. Five digits of width or precision are refused: minijinja panics at some.
fn formatted(state: &State, style: FormatStyle, text: &str, values: &[Value]) -> Result<String, Error> {
    state.consume_fuel(text.len() as u64 / 64)?;
    let spec = |part: &str| match style {
        FormatStyle::Printf => {
            let part = part.strip_prefix('(').and_then(|named| named.split_once(')')).map_or(part, |(_, spec)| spec);
            part.split(char::is_alphabetic).next().unwrap_or_default().to_owned()
        }
        FormatStyle::StrFormat => part.split(['{', '}']).next().unwrap_or_default().to_owned(),
    };
    let wide = |spec: String| spec.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.trim_start_matches('0').len() > 4);
    let opening = if style == FormatStyle::Printf { '%' } else { ':' };
    if text.split(opening).skip(1).any(|part| wide(spec(part))) {
        return refused("a format of five digits' width or precision");
    }
    format(style, text, values)
}

/// Methods that change what they are called on.
const CHANGING: [&str; 14] = [
    "append",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "clear",
    "sort",
    "reverse",
    "update",
    "setdefault",
    "add",
    "discard",
    "move_to_end",
];

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => match string_method(state, text, name, args)? {
            Some(answer) => Ok(answer),
            None => pycompat::unknown_method_callback(state, value, name, args),
        },
        (ValueKind::Seq | ValueKind::Map | ValueKind::Iterable, _) if CHANGING.contains(&name) => {
            refused(format!("{name}() would change a value, and templates are rendered where nothing can be changed"))
        }
        (ValueKind::Seq | ValueKind::Map | ValueKind::Iterable, _) if name == "copy" => kept(state, value.clone(), 0, false),
        (ValueKind::Seq | ValueKind::Iterable, _) if name == "index" => {
            let (what,): (Value,) = from_args(args)?;
            match value.try_iter()?.position(|item| item == what) {
                Some(at) => Ok(Value::from(at)),
                None => refused("index() of what is not in the list"),
            }
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// None: a method that pycompat has as Python has it, or one that nobody has.
fn string_method(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    state.consume_fuel(1 + text.len() as u64 / 64)?;
    let answer: Value = match name {
        "split" | "rsplit" => {
            let (separator, n, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let (separator, n) = (separator.or(named.get("sep")?), n.or(named.get("maxsplit")?));
            named.assert_all_used()?;
            let n = n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            split(text, separator, n, name == "rsplit")?.into_iter().collect()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            split_lines(text, keep).into_iter().collect()
        }
        "format" => formatted(state, FormatStyle::StrFormat, text, args)?.into(),
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let from_right = name == "rpartition";
            let parts = match if from_right { text.rsplit_once(separator) } else { text.split_once(separator) } {
                _ if separator.is_empty() => return refused("an empty separator"),
                Some((before, behind)) => [before, separator, behind],
                None if from_right => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let rest = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            rest.unwrap_or(text).into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" => return place(text, name, args).map(Some),
        "ljust" | "rjust" | "center" | "zfill" => return fill(text, name, args).map(Some),
        "casefold" => {
            let () = from_args(args)?;
            text.to_uppercase().to_lowercase().replace('ς', "σ").into()
        }
        "title" => {
            let () = from_args(args)?;
            let mut inside = false;
            let cased = text.chars().flat_map(|c| {
                let c = if inside { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() };
                inside = c.chars().all(char::is_alphabetic);
                c.chars().collect::<Vec<_>>()
            });
            cased.collect::<String>().into()
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped =
                text.chars().map(|c| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() });
            swapped.collect::<String>().into()
        }
        "expandtabs" => {
            let (width,): (Option<usize>,) = from_args(args)?;
            expand_tabs(text, width.unwrap_or(8).min(MAX_WIDTH)).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(answer))
}

/// `separator`: none for runs of white space. At most `n` cuts, the last ones if `from_right`.
fn split<'a>(text: &'a str, separator: Option<&str>, n: usize, from_right: bool) -> Result<Vec<&'a str>, Error> {
    let n = n.saturating_add(1);
    let mut parts: Vec<&str> = match separator {
        Some("") => return refused("an empty separator"),
        Some(separator) if from_right => text.rsplitn(n, separator).collect(),
        Some(separator) => text.splitn(n, separator).collect(),
        None => {
            // White space at the end where the cuts are made goes; the last part keeps what is behind it.
            let trim = |rest: &'a str| if from_right { rest.trim_end() } else { rest.trim_start() };
            let (mut parts, mut rest) = (Vec::new(), trim(text));
            while !rest.is_empty() {
                let cut = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
                let (part, left) = match cut.filter(|_| parts.len() + 1 < n) {
                    None => (rest, ""),
                    Some(at) if from_right => (rest[at..].trim_start(), &rest[..at]),
                    Some(at) => (&rest[..at], &rest[at..]),
                };
                parts.push(part);
                rest = trim(left);
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}

fn split_lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let at = rest.find(ends).unwrap_or(rest.len());
        let end = match rest[at..].chars().next() {
            Some('\r') if rest[at..].starts_with("\r\n") => 2,
            end => end.map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    lines
}

/// `find(what, start, end)` and its kin, in characters.
fn place(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let n = text.chars().count() as i64;
    let within = |at: i64| (if at < 0 { at.saturating_add(n).max(0) } else { at.min(n) }) as usize;
    // Behind the end Python finds nothing, not even an empty text.
    let beyond = start.is_some_and(|start| start > n);
    let (start, end) = (within(start.unwrap_or(0)), within(end.unwrap_or(n)));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let part = &text[byte(start)..byte(end.max(start))];
    let found = match name {
        "count" if !beyond => return Ok(Value::from(part.matches(what).count())),
        "count" => return Ok(Value::from(0)),
        _ if beyond => None,
        "find" | "index" => part.find(what),
        _ => part.rfind(what),
    };
    match found {
        Some(at) => Ok(Value::from(start + part[..at].chars().count())),
        None if name.ends_with("index") => refused("a text without what is asked for: substring not found"),
        None => Ok(Value::from(-1)),
    }
}

/// The most characters that a text is filled up to.
const MAX_WIDTH: usize = 1 << 16;

fn fill(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, with): (i64, Option<char>) = from_args(args)?;
    if width > MAX_WIDTH as i64 {
        return refused(format!("{name}({width}): {MAX_WIDTH} characters are the most that a text is filled up to"));
    }
    let width = width.max(0) as usize;
    let missing = width.saturating_sub(text.chars().count());
    let many = |n: usize, c: char| c.to_string().repeat(n);
    let with = with.unwrap_or(' ');
    Ok(Value::from(match name {
        "ljust" => text.to_owned() + &many(missing, with),
        "rjust" => many(missing, with) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(text.starts_with(['+', '-']) as usize);
            format!("{sign}{}{digits}", many(missing, '0'))
        }
        // Python puts the odd one to the left where the width is odd.
        _ => {
            let left = missing / 2 + (missing & width & 1);
            many(left, with) + text + &many(missing - left, with)
        }
    }))
}

fn expand_tabs(text: &str, width: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' if width == 0 => {}
            '\t' => {
                let n = width - column % width;
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            c => {
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    out
}
