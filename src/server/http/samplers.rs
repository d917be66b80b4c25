//! What other servers sample by and this one does not. A request may name it where it changes nothing, as programs do that send all they
//! know; where it would change the answer, the request is refused instead of being answered as if it had not been said.

use serde_json::Value;

use crate::text::SamplerParams;

use super::error::{Checked, Refusal};
use super::fields::{Fields, kind, wanted};

/// A number, and whether it asks for nothing.
type Idle = (&'static str, fn(f64) -> bool, &'static str);

/// Numbers of samplers and limits that are not here; the words say which value asks for nothing.
const ABSENT: [Idle; 10] = [
    ("mirostat", |n| n == 0.0, "0"),
    ("typical_p", |n| n >= 1.0, "1"),
    ("typ_p", |n| n >= 1.0, "1"),
    ("tfs_z", |n| n >= 1.0, "1"),
    ("top_n_sigma", |n| n <= 0.0, "-1"),
    ("dynatemp_range", |n| n <= 0.0, "0"),
    ("dry_multiplier", |n| n == 0.0, "0"),
    ("xtc_probability", |n| n <= 0.0, "0"),
    ("adaptive_target", |n| n < 0.0, "-1"),
    ("t_max_predict_ms", |n| n <= 0.0, "-1"),
];

/// The samplers of llama-server, in the order of this one's where it has them, with the letters for which a string may have them.
const OWN: [(&str, char); 5] = [("penalties", 'e'), ("top_k", 'k'), ("top_p", 'p'), ("min_p", 'm'), ("temperature", 't')];
const OTHERS: [(&str, char); 6] =
    [("dry", 'd'), ("top_n_sigma", 's'), ("typ_p", 'y'), ("typical_p", 'y'), ("xtc", 'x'), ("adaptive_p", 'a')];

/// Refuses what cannot be done, and turns off what `samplers` leaves out.
pub fn apply(fields: &Fields<'_>, params: &mut SamplerParams) -> Checked<()> {
    for (name, is_idle, idle) in ABSENT {
        if fields.number(name, f64::MIN, f64::MAX)?.is_some_and(|n| !is_idle(n.into())) {
            return Err(Refusal::unsupported_field(name, format!("this server has none: leave it out, or send {idle}")));
        }
    }
    if fields.flag("grammar_lazy")? {
        return Err(Refusal::unsupported_field("grammar_lazy", "a grammar holds from the first token on"));
    }
    let has_scale = |adapter: &Value| adapter.get("scale").is_none_or(|scale| scale.as_f64() != Some(0.0));
    if fields.list("lora")?.is_some_and(|adapters| adapters.iter().any(has_scale)) {
        return Err(Refusal::unsupported_field("lora", "this server has no adapters: leave it out"));
    }
    if let Some(value) = fields.get("samplers") {
        order(value, params)?;
    }
    Ok(())
}

/// The samplers of a request: some of this server's, in its order.
fn order(value: &Value, params: &mut SamplerParams) -> Checked<()> {
    let names: Vec<&str> = match value {
        Value::String(letters) => {
            let named = |letter: char| OWN.iter().chain(&OTHERS).find(|(_, own)| *own == letter).map_or("?", |(name, _)| name);
            letters.chars().map(named).collect()
        }
        Value::Array(names) => {
            let name = |name: &'static str, value: &Value| wanted(name, "a list of strings", value);
            names.iter().map(|value| value.as_str().ok_or_else(|| name("samplers", value))).collect::<Checked<_>>()?
        }
        other => return Err(Refusal::invalid("samplers", format!("a list of names is wanted here, not {}", kind(other)))),
    };
    if names.is_empty() {
        return Ok(());
    }
    // Those that are not here do nothing unless a number of theirs says so, which is refused.
    let own: Vec<usize> = names
        .iter()
        .filter(|name| OTHERS.iter().all(|(other, _)| other != *name))
        .map(|name| OWN.iter().position(|(own, _)| own == name))
        .collect::<Option<_>>()
        .ok_or_else(|| refused("one of them is not known"))?;
    if !own.is_sorted_by(|a, b| a < b) {
        return Err(refused("they work in this order alone"));
    }
    for i in (0..OWN.len()).filter(|i| !own.contains(i)) {
        match OWN[i].0 {
            "penalties" => (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) = (1.0, 0.0, 0.0),
            "top_k" => params.top_k = 0,
            "top_p" => params.top_p = 1.0,
            "min_p" => params.min_p = 0.0,
            _ => params.temp = 1.0,
        }
    }
    Ok(())
}

fn refused(what: &str) -> Refusal {
    let names: Vec<&str> = OWN.iter().map(|(name, _)| *name).collect();
    Refusal::unsupported_field("samplers", format!("{what}: send some of {}", names.join(", ")))
}
