//! Fields of a JSON object by name and type. A field of another type is refused by its name; null counts as absent.

use serde_json::{Map, Value};

use super::error::{Checked, Refusal, quoted};

/// The fields of an object; `within` is what its own name is preceded by in messages.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    within: &'a str,
}

/// What a value is, in a sentence.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub fn wanted(name: &str, what: &str, found: &Value) -> Refusal {
    Refusal::invalid(name, format!("{what} is wanted here, not {}", kind(found)))
}

impl<'a> Fields<'a> {
    /// Of the body as a whole. A model may be called anything, for there is one; what is no name is refused on every path.
    pub fn of_body(body: &'a Value) -> Checked<Self> {
        let Value::Object(map) = body else {
            return Err(Refusal::bad("invalid_json", format!("the body is {}: send a JSON object", kind(body))));
        };
        let fields = Fields { map, within: "" };
        fields.string("model")?;
        Ok(fields)
    }

    /// Of a value that is called `within`.
    pub fn of(value: &'a Value, within: &'a str) -> Checked<Self> {
        match value {
            Value::Object(map) => Ok(Fields { map, within }),
            other => Err(wanted(within, "an object", other)),
        }
    }

    /// What a field is called in messages.
    pub fn name(&self, field: &str) -> String {
        if self.within.is_empty() { field.into() } else { format!("{}.{field}", self.within) }
    }

    /// What is there and not null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn invalid(&self, field: &str, what: impl std::fmt::Display) -> Refusal {
        Refusal::invalid(&self.name(field), what)
    }

    fn typed<T>(&self, field: &str, what: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Checked<Option<T>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wanted(&self.name(field), what, value))
    }

    pub fn string(&self, field: &str) -> Checked<Option<&'a str>> {
        self.typed(field, "a string", Value::as_str)
    }

    pub fn bool(&self, field: &str) -> Checked<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub fn flag(&self, field: &str) -> Checked<bool> {
        Ok(self.bool(field)?.unwrap_or(false))
    }

    pub fn list(&self, field: &str) -> Checked<Option<&'a [Value]>> {
        self.typed(field, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub fn object(&self, field: &str) -> Checked<Option<&'a Map<String, Value>>> {
        self.typed(field, "an object", Value::as_object)
    }

    /// A number within a range.
    pub fn number(&self, field: &str, least: f64, most: f64) -> Checked<Option<f32>> {
        let Some(number) = self.typed(field, "a number", Value::as_f64)? else { return Ok(None) };
        if !(least..=most).contains(&number) {
            return Err(self.invalid(field, format!("{number} is out of range: a number from {least} to {most}")));
        }
        Ok(Some(number as f32))
    }

    /// A whole number within a range; `8.0` is one.
    pub fn integer(&self, field: &str, least: i64, most: i64) -> Checked<Option<i64>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
            other => return Err(wanted(&self.name(field), "a whole number", other)),
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(self.invalid(field, format!("{value} is out of range: a whole number from {least} to {most}"))),
        }
    }

    /// The first of several names that is there; what the others say is checked too.
    pub fn integer_of(&self, names: &[&str], least: i64, most: i64) -> Checked<Option<i64>> {
        let mut first = None;
        for name in names {
            let number = self.integer(name, least, most)?;
            first = first.or(number);
        }
        Ok(first)
    }

    /// One of a set of words.
    pub fn word(&self, field: &str, known: &[&'static str]) -> Checked<Option<&'static str>> {
        let Some(word) = self.string(field)? else { return Ok(None) };
        match known.iter().find(|known| **known == word) {
            Some(known) => Ok(Some(known)),
            None => Err(self.invalid(field, format!("{} is none of {}", quoted(word), known.join(", ")))),
        }
    }

    /// A field that must be there.
    pub fn needed(&self, field: &str, what: &str) -> Checked<&'a Value> {
        self.get(field).ok_or_else(|| self.invalid(field, format!("{what} is wanted here, and there is none")))
    }
}
