//! JSON schemas before the library sees them: what it would not hold to exactly is refused by the keyword's name, and so is what
//! would multiply beyond measure. What does not matter to it is taken out.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::pattern::{from_ecma, of_format};

/// Keywords that no grammar holds to, where they say anything.
const NEVER: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "uniqueItems",
    "$dynamicRef",
    "$recursiveRef",
    "x-guidance",
];
/// What says nothing about what may be written, here.
const NOTES: [&str; 3] = ["$dynamicAnchor", "$recursiveAnchor", "$vocabulary"];
const FORMATS: [&str; 10] = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Characters of a host's name, which no pattern of its parts says.
const MAX_HOSTNAME: u64 = 253;
const NUMBERS: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
const COUNTS: [&str; 6] = ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];
/// Whole numbers up to here are what they are in a double too.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Schemas in each other, references followed.
const MAX_DEPTH: usize = 96;
/// Bytes of a region for each schema that the library makes, multiplied where it wants several things at once.
const MADE_BYTES: usize = 2048;
/// The most that an exact number of items may be.
const MAX_ITEMS: u64 = 10_000;
/// Patterns for the names of one object's members. Whether two may match the same name is asked of each pair, so that 300 took three
/// seconds.
const MAX_NAME_PATTERNS: usize = 64;
/// The longest string that may be asked for: beyond it a length is nothing that the library counts.
const MAX_LENGTH: u64 = u32::MAX as u64;

/// Between the marks of JSON: nothing, a space, or a line break with what indents the next line. (Without an end to white space, small
/// models write nothing else.)
const WHITE_SPACE: &str = r"[ ]|\n[ \t]{0,40}";

/// A schema as the library takes it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub schema: Value,
    /// Schemas that the library makes of it.
    pub n_made: usize,
}

/// Schemas that may be made in a region of so many bytes.
pub fn most_made(region_bytes: usize) -> usize {
    region_bytes / MADE_BYTES
}

/// The schema as the library takes it, or which keyword is in its way; `n_most` schemas may be made of it.
pub fn prepared(schema: &Value, n_most: usize) -> Result<Prepared, String> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => return Err("the schema is `false`, which nothing is valid against".into()),
        other => other.clone(),
    };
    let copy = schema.clone();
    let mut check = Check { root: &copy, seen: HashMap::new(), n_made: 0, n_most, has_inner_id: None, has_ref: false };
    check.schema(&copy, "", 0)?;
    check.circles()?;
    if let Some(path) = check.has_inner_id.filter(|_| check.has_ref) {
        return Err(format!("`{path}`: with references in the schema, only its root may have an `$id`"));
    }
    let n_made = check.n_made;
    tidy(&mut schema, true);
    if let Value::Object(map) = &mut schema {
        map.insert("x-guidance".into(), json!({ "whitespace_pattern": WHITE_SPACE }));
    }
    Ok(Prepared { schema, n_made })
}

/// Takes out keywords that change nothing and that the library stumbles over, and writes anew what it reads otherwise.
fn tidy(schema: &mut Value, is_schema: bool) {
    match schema {
        Value::Object(map) if is_schema => {
            let idle: Vec<String> =
                map.iter().filter(|(key, value)| is_idle(map, key, value)).map(|(key, _)| key.clone()).collect();
            map.retain(|key, _| !NOTES.contains(&key.as_str()) && !idle.contains(key));
            for key in ["unevaluatedProperties", "unevaluatedItems"] {
                if let Some(name) = stands_for(map, key)
                    && let Some(value) = map.remove(key)
                {
                    map.insert(name.into(), value);
                }
            }
            // Only beside a list of items does it mean anything.
            if !map.get("items").is_some_and(Value::is_array) {
                map.remove("additionalItems");
            }
            written_anew(map);
            for (key, value) in map {
                match key.as_str() {
                    "const" | "enum" | "default" | "examples" => {}
                    "properties" | "patternProperties" | "$defs" | "definitions" => tidy(value, false),
                    _ => tidy(value, true),
                }
            }
        }
        Value::Object(map) => map.values_mut().for_each(|value| tidy(value, true)),
        Value::Array(items) => items.iter_mut().for_each(|item| tidy(item, true)),
        _ => {}
    }
}

/// Counts as whole numbers; formats that the library is too lenient with, and patterns, as patterns of the library.
fn written_anew(map: &mut Map<String, Value>) {
    for key in COUNTS {
        if let Some(n) = map.get(key).and_then(whole) {
            map.insert(key.into(), n.into());
        }
    }
    let format = map.get("format").and_then(Value::as_str).unwrap_or_default();
    if format == "hostname" && map.get("maxLength").and_then(Value::as_u64).is_none_or(|n| n > MAX_HOSTNAME) {
        map.insert("maxLength".into(), MAX_HOSTNAME.into());
    } else if let Some(pattern) = of_format(format) {
        map.remove("format");
        if map.contains_key("pattern") {
            if let Some(all) = map.entry("allOf").or_insert_with(|| json!([])).as_array_mut() {
                all.push(json!({ "pattern": pattern }));
            }
        } else {
            map.insert("pattern".into(), pattern.into());
        }
    }
    if let Some(pattern) = map.get("pattern").and_then(Value::as_str).and_then(|pattern| from_ecma(pattern).ok()) {
        map.insert("pattern".into(), pattern.into());
    }
    if let Some(Value::Object(names)) = map.get_mut("patternProperties") {
        *names = std::mem::take(names).into_iter().map(|(name, inner)| (from_ecma(&name).unwrap_or(name), inner)).collect();
    }
}

/// Whether a keyword says nothing, by its value or for lack of another one.
fn is_idle(map: &Map<String, Value>, key: &str, value: &Value) -> bool {
    let is_anything = value == &Value::Bool(true) || value.as_object().is_some_and(Map::is_empty);
    match key {
        "uniqueItems" => value == &Value::Bool(false),
        "if" => !map.contains_key("then") && !map.contains_key("else"),
        "then" | "else" => !map.contains_key("if"),
        "minContains" | "maxContains" => !map.contains_key("contains"),
        // What a string holds is a note, since 2019; before, there was no such keyword.
        "contentSchema" => true,
        "propertyNames" => is_anything,
        "unevaluatedItems" => is_anything || map.get("items").is_some_and(|items| !items.is_array()),
        "unevaluatedProperties" => is_anything || map.contains_key("additionalProperties"),
        "dependencies" | "dependentRequired" | "dependentSchemas" => value.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Where nothing else says anything of the same object or list, what is not evaluated is what its own keywords leave.
fn stands_for(map: &Map<String, Value>, key: &str) -> Option<&'static str> {
    let is_alone = !["$ref", "allOf", "anyOf", "oneOf"].iter().any(|other| map.contains_key(*other));
    match key {
        "unevaluatedProperties" if is_alone => Some("additionalProperties"),
        "unevaluatedItems" if is_alone && map.contains_key("items") => Some("additionalItems"),
        "unevaluatedItems" if is_alone => Some("items"),
        _ => None,
    }
}

/// A whole number from 0, also one that is written as a fraction.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=EXACT).contains(n)).map(|n| n as u64))
}

/// What a schema comes to: so many alternatives, and so many schemas in all of them.
#[derive(Clone, Copy)]
struct Size {
    ways: usize,
    parts: usize,
}

const ONE: Size = Size { ways: 1, parts: 1 };

impl Size {
    /// Of one or the other.
    fn or(self, other: Size) -> Size {
        Size { ways: self.ways.saturating_add(other.ways), parts: self.parts.saturating_add(other.parts) }
    }

    /// Of both at once: each way of one with each of the other.
    fn and(self, other: Size) -> Size {
        let (a, b) = (self.parts.saturating_mul(other.ways), other.parts.saturating_mul(self.ways));
        Size { ways: self.ways.saturating_mul(other.ways), parts: a.saturating_add(b) }
    }
}

/// What the keywords of one schema come to.
struct Sum {
    /// What the schema says itself.
    own: usize,
    /// What it wants together, with what it names to be valid too.
    size: Size,
    plain: usize,
}

impl Sum {
    fn wants(&mut self, more: Size) {
        self.size = self.size.and(more);
        self.plain = self.plain.saturating_add(more.parts);
    }

    fn has(&mut self, inner: Size) {
        self.own = self.own.saturating_add(inner.parts);
    }
}

struct Check<'a> {
    root: &'a Value,
    /// References that have been followed, and what they come to.
    seen: HashMap<&'a str, Size>,
    n_made: usize,
    n_most: usize,
    has_inner_id: Option<String>,
    has_ref: bool,
}

impl<'a> Check<'a> {
    /// Checks a schema; what it comes to.
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) -> Result<Size, String> {
        let map = match schema {
            Value::Bool(_) => return Ok(ONE),
            Value::Object(map) => map,
            _ => return Err(format!("`{path}`: a schema is an object, true or false")),
        };
        if depth > MAX_DEPTH {
            return Err(format!("`{path}`: schemas and references lie more than {MAX_DEPTH} deep in each other"));
        }
        let of = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        let mut sum = Sum { own: 1, size: ONE, plain: 0 };
        for (key, value) in map {
            self.keyword(map, key, value, &of(key), depth, &mut sum)?;
        }
        least_properties(map, &of("minProperties"))?;
        if has_own(map) {
            let n_types = map.get("type").map_or(6, |kind| kind.as_array().map_or(1, Vec::len));
            sum.wants(Size { ways: n_types, parts: sum.own.saturating_add(n_types) });
        }
        // Itself, and what is more than its parts.
        let Sum { size, plain, .. } = sum;
        self.n_made = self.n_made.saturating_add(1 + size.parts.saturating_sub(plain.saturating_add(1)));
        if self.n_made > self.n_most {
            return Err(too_many(if path.is_empty() { "the schema" } else { path }, self.n_most));
        }
        Ok(size)
    }

    /// Checks one keyword of the schema `map`, and adds what it comes to.
    fn keyword(
        &mut self,
        map: &'a Map<String, Value>,
        key: &'a str,
        value: &'a Value,
        name: &str,
        depth: usize,
        sum: &mut Sum,
    ) -> Result<(), String> {
        match key {
            key if is_idle(map, key, value) => {}
            key if stands_for(map, key).is_some() => sum.has(self.schema(value, name, depth + 1)?),
            key if NEVER.contains(&key) => return Err(format!("`{name}`: it cannot be held to exactly: leave it out")),
            "$id" | "id" if name != key && value.is_string() => self.has_inner_id = Some(name.to_owned()),
            "$ref" => sum.wants(self.reference(value, name, depth)?),
            "allOf" => {
                for (i, one) in list(value, name)?.iter().enumerate() {
                    sum.wants(self.schema(one, &format!("{name}[{i}]"), depth + 1)?);
                }
            }
            "anyOf" | "oneOf" => {
                let mut any = Size { ways: 0, parts: 0 };
                for (i, one) in list(value, name)?.iter().enumerate() {
                    any = any.or(self.schema(one, &format!("{name}[{i}]"), depth + 1)?);
                }
                sum.wants(any);
            }
            "enum" => {
                let items = list(value, name)?;
                items.iter().try_for_each(|item| exact(item, name))?;
                sum.wants(self.constants(items));
            }
            "properties" | "patternProperties" => {
                let inner = value.as_object().ok_or_else(|| format!("`{name}`: an object of schemas is wanted"))?;
                if key == "patternProperties" && inner.len() > MAX_NAME_PATTERNS {
                    let n = inner.len();
                    return Err(format!(
                        "`{name}`: {n} patterns are more than can be told apart: write at most {MAX_NAME_PATTERNS}"
                    ));
                }
                let mut names = HashSet::new();
                for (property, schema) in inner {
                    if key == "patternProperties" && !names.insert(pattern(property, name)?) {
                        return Err(format!("`{name}`: two patterns that mean the same: write one of them"));
                    }
                    sum.has(self.schema(schema, &format!("{name}.{property}"), depth + 1)?);
                }
            }
            "items" | "prefixItems" if value.is_array() => {
                if key == "items" && map.contains_key("prefixItems") {
                    return Err(format!("`{name}`: a list of items beside `prefixItems`: leave one of them out"));
                }
                for (i, one) in list(value, name)?.iter().enumerate() {
                    sum.has(self.schema(one, &format!("{name}[{i}]"), depth + 1)?);
                }
            }
            "items" | "additionalItems" | "additionalProperties" => sum.has(self.schema(value, name, depth + 1)?),
            "pattern" => drop(pattern(value.as_str().ok_or_else(|| format!("`{name}`: a string is wanted"))?, name)?),
            "format" if !value.as_str().is_some_and(|format| FORMATS.contains(&format)) => {
                return Err(format!("`{name}`: `format` {value} is not known: {} are", FORMATS.join(", ")));
            }
            "multipleOf" => multiple(value, name)?,
            "const" => {
                exact(value, name)?;
                sum.wants(self.constants(std::slice::from_ref(value)));
            }
            key if NUMBERS.contains(&key) => exact(value, name)?,
            key if COUNTS.contains(&key) => count(value, key, name)?,
            _ => {}
        }
        Ok(())
    }

    /// What constants come to, which are made like schemas.
    fn constants(&mut self, items: &[Value]) -> Size {
        let parts = items.iter().map(values).sum();
        self.n_made = self.n_made.saturating_add(parts);
        Size { ways: items.len(), parts }
    }

    fn target(&self, text: &str) -> Result<&'a Value, &'static str> {
        let inner = text.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let Some(inner) = inner.filter(|rest| !rest.contains(['~', '%'])) else {
            return Err("cannot be followed: only references such as \"#/$defs/name\" can");
        };
        let mut found = self.root;
        for segment in inner.split('/').skip(1).filter(|segment| !segment.is_empty()) {
            let next = match found {
                Value::Array(items) => segment.parse().ok().and_then(|i: usize| items.get(i)),
                other => other.get(segment),
            };
            found = next.ok_or("leads nowhere")?;
        }
        Ok(found)
    }

    /// A schema that is itself, by references and nothing between, says nothing.
    fn circles(&self) -> Result<(), String> {
        let next = |text: &str| {
            let mut next = Vec::new();
            if let Ok(target) = self.target(text) {
                in_place(target, &mut next);
            }
            next
        };
        let mut done = HashSet::new();
        for start in self.seen.keys() {
            // What is being followed, and what of it is left.
            let mut open = vec![(*start, next(start))];
            let mut is_open = HashSet::from([*start]);
            while let Some((text, rest)) = open.last_mut() {
                match rest.pop() {
                    None => {
                        is_open.remove(text);
                        done.insert(*text);
                        open.pop();
                    }
                    Some(again) if is_open.contains(again) => {
                        return Err(format!("`$ref`: {again:?} leads to itself, with nothing between"));
                    }
                    Some(known) if done.contains(known) => {}
                    Some(new) => {
                        is_open.insert(new);
                        open.push((new, next(new)));
                    }
                }
            }
        }
        Ok(())
    }

    /// References lead into the schema itself, by its members' names.
    fn reference(&mut self, value: &'a Value, name: &str, depth: usize) -> Result<Size, String> {
        self.has_ref = true;
        let Some(text) = value.as_str() else { return Err(format!("`{name}`: a string is wanted")) };
        let found = self.target(text).map_err(|what| format!("`{name}`: `$ref` {text:?} {what}"))?;
        // One that is still being followed counts as one: it is not written out again.
        if let Some(size) = self.seen.get(text) {
            return Ok(*size);
        }
        self.seen.insert(text, ONE);
        let size = self.schema(found, text, depth + 1)?;
        self.seen.insert(text, size);
        Ok(size)
    }
}

/// References that say something of the same value.
fn in_place<'a>(schema: &'a Value, found: &mut Vec<&'a str>) {
    found.extend(schema.get("$ref").and_then(Value::as_str));
    for key in ["allOf", "anyOf", "oneOf"] {
        schema.get(key).and_then(Value::as_array).into_iter().flatten().for_each(|one| in_place(one, found));
    }
}

/// Whether a schema says something of values by itself, not only by schemas that it names.
fn has_own(map: &Map<String, Value>) -> bool {
    map.keys().any(|key| {
        matches!(
            key.as_str(),
            "type" | "properties" | "patternProperties" | "additionalProperties" | "required" | "items" | "prefixItems"
        ) || key == "pattern"
            || key == "format"
            || NUMBERS.contains(&key.as_str())
            || COUNTS.contains(&key.as_str())
    })
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("`{name}`: a list is wanted"))
}

/// Numbers in it must be what they are in a double.
fn exact(value: &Value, name: &str) -> Result<(), String> {
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|number| !number.is_finite() || number.abs() > EXACT) => {
            Err(format!("`{name}`: {number} is beyond ±2^53, where numbers are no longer exact"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| exact(item, name)),
        Value::Object(map) => map.values().try_for_each(|item| exact(item, name)),
        _ => Ok(()),
    }
}

/// There is a state for each remainder.
fn multiple(value: &Value, name: &str) -> Result<(), String> {
    let digits: String = value.to_string().chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_matches('0');
    match value.as_f64() {
        Some(number) if number > 0.0 && digits.len() <= 3 && (1e-6..=1e6).contains(&number) => Ok(()),
        _ => Err(format!("`{name}`: {value}: a number above 0 of at most three digits can be held to")),
    }
}

fn count(value: &Value, key: &str, name: &str) -> Result<(), String> {
    let n = whole(value).ok_or_else(|| format!("`{name}`: a whole number from 0 is wanted"))?;
    let most = if key.ends_with("Length") { MAX_LENGTH } else { MAX_ITEMS };
    match n > most {
        true => Err(format!("`{name}`: {n} are more than {most}: give a smaller number, or leave it out")),
        false => Ok(()),
    }
}

/// What a constant comes to: a schema for each value in it; those within others want an object or a list around them too.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(|item| 1 + values(item)).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(|item| 1 + values(item)).sum::<usize>(),
        _ => 1,
    }
}

pub fn too_many(what: &str, n_most: usize) -> String {
    format!(
        "{what}: its alternatives, its members or its constants come to more than {n_most} schemas: say `type` where it is missing, \
         write fewer, or give grammars more memory"
    )
}

/// What goes from left to right, and is read as ECMA-262 has it: the pattern as the library takes it.
fn pattern(pattern: &str, name: &str) -> Result<String, String> {
    let written =
        from_ecma(pattern).map_err(|what| format!("`{name}`: {what} in a pattern cannot be held to: write it without"))?;
    regex_syntax::ast::parse::ParserBuilder::new()
        .nest_limit(64)
        .build()
        .parse(&written)
        .map_err(|error| format!("`{name}`: the pattern cannot be read: {}", error.kind()))?;
    Ok(written)
}

/// A name may come twice in an object, and then counts once: a least number of others than the required ones cannot be held to.
fn least_properties(map: &Map<String, Value>, name: &str) -> Result<(), String> {
    let least = map.get("minProperties").and_then(whole).unwrap_or(0);
    let n_required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    let is_closed = map.get("additionalProperties") == Some(&Value::Bool(false)) && !map.contains_key("patternProperties");
    match least > n_required.max(1) || least > n_required && !is_closed {
        true => {
            Err(format!("`{name}`: `minProperties` above the number of `required` ones cannot be held to exactly: name them"))
        }
        false => Ok(()),
    }
}
