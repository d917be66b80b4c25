//! What an answer may be made to obey: JSON, a schema, a grammar. The form of each is checked here; `compile` is the one place where
//! a grammar is made of it.

use std::sync::Arc;

use serde_json::Value;

use crate::constraint::{Grammar, MAX_RULES_BYTES, Refused, Rules};

use super::app::App;
use super::error::{Checked, Refusal, quoted};
use super::fields::{Fields, wanted};

const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "array", "object", "null"];
/// Names of schemas, lists of schemas, and objects whose values are schemas.
const ONE: [&str; 8] = ["items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames"];
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// What the request asks for, if it asks for anything, and the field that does.
pub fn read(fields: &Fields<'_>) -> Checked<Option<(Rules, &'static str)>> {
    let mut found = Vec::new();
    if let Some(format) = fields.get("response_format") {
        found.extend(response_format(format)?.map(|rules| (rules, "response_format")));
    }
    if let Some(schema) = fields.get("json_schema") {
        check_schema(schema, "json_schema")?;
        found.push((Rules::Schema(schema.clone()), "json_schema"));
    }
    for (name, make) in [("grammar", Rules::Gbnf as fn(String) -> Rules), ("lark", Rules::Lark)] {
        // An empty grammar is none: clients send it so.
        if let Some(text) = fields.string(name)?.filter(|text| !text.trim().is_empty()) {
            if text.len() > MAX_RULES_BYTES {
                return Err(fields.invalid(name, format!("more than {MAX_RULES_BYTES} bytes")));
            }
            found.push((make(text.to_owned()), name));
        }
    }
    if found.len() > 1 {
        return Err(Refusal::bad("invalid_value", "`response_format`, `json_schema` and `grammar` exclude each other: send one"));
    }
    Ok(found.pop())
}

fn response_format(format: &Value) -> Checked<Option<Rules>> {
    let fields = Fields::of(format, "response_format")?;
    let kind = fields.word("type", &["text", "json_object", "json_schema"])?;
    match kind {
        None => Err(fields.invalid("type", "one of text, json_object, json_schema is wanted here")),
        Some("text") => Ok(None),
        Some("json_object") => match fields.get("schema") {
            None => Ok(Some(Rules::Json)),
            Some(schema) => {
                check_schema(schema, "response_format.schema")?;
                Ok(Some(Rules::Schema(schema.clone())))
            }
        },
        _ => {
            let inner = Fields::of(fields.needed("json_schema", "an object with `schema`")?, "response_format.json_schema")?;
            let schema = inner.needed("schema", "a JSON schema")?;
            check_schema(schema, "response_format.json_schema.schema")?;
            Ok(Some(Rules::Schema(schema.clone())))
        }
    }
}

/// Whether a value is a schema at all.
pub fn check_schema(schema: &Value, name: &str) -> Checked<()> {
    if schema.to_string().len() > MAX_RULES_BYTES {
        return Err(Refusal::invalid(name, format!("a schema of more than {MAX_RULES_BYTES} bytes")));
    }
    check_types(schema, name)
}

fn check_types(schema: &Value, name: &str) -> Checked<()> {
    let map = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(map) => map,
        other => return Err(wanted(name, "a JSON schema", other)),
    };
    let is_type = |value: &Value| value.as_str().is_some_and(|word| TYPES.contains(&word));
    if let Some(kind) = map.get("type") {
        let is_good = is_type(kind) || kind.as_array().is_some_and(|kinds| !kinds.is_empty() && kinds.iter().all(is_type));
        if !is_good {
            let types = TYPES.join(", ");
            return Err(Refusal::invalid(&format!("{name}.type"), format!("{} is none of {types}", quoted(&kind.to_string()))));
        }
    }
    for (key, value) in map {
        let inner = format!("{name}.{key}");
        match value {
            Value::Array(items) if LISTS.contains(&&**key) || key == "items" => {
                items.iter().try_for_each(|item| check_types(item, &inner))?;
            }
            Value::Object(pairs) if MAPS.contains(&&**key) => pairs.values().try_for_each(|item| check_types(item, &inner))?,
            _ if ONE.contains(&&**key) => check_types(value, &inner)?,
            _ if LISTS.contains(&&**key) => return Err(wanted(&inner, "a list of JSON schemas", value)),
            _ if MAPS.contains(&&**key) => return Err(wanted(&inner, "an object of JSON schemas", value)),
            _ => {}
        }
    }
    Ok(())
}

/// The grammar of some rules, which the field `param` asks for.
pub fn compile(app: &App, rules: &Rules, param: &str) -> Checked<Arc<Grammar>> {
    let Some(constraints) = &app.shared.constraints else {
        let what = "this server has no memory for grammars, so that it holds no answer to a form: ask for it in the prompt";
        return Err(Refusal::unsupported_field(param, what));
    };
    constraints.compile(rules).map_err(|refused| match refused {
        Refused::Invalid(what) => Refusal::grammar(param, what),
        refused @ Refused::TooLarge(_) => Refusal::grammar(param, refused),
        refused @ Refused::Busy => Refusal::unavailable(refused.to_string(), 1),
        refused @ Refused::Lost => Refusal::unavailable(refused.to_string(), 60),
        Refused::Absent(what) => Refusal::unsupported_field(param, what),
    })
}
