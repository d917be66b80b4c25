//! How an answer is to be generated: from JSON to what the desk takes. Every number has a range, and out of it is refused.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::constraint::Rules;
use crate::server::desk::{MAX_PROBS, Request};
use crate::text::SamplerParams;

use super::app::App;
use super::error::{Checked, Refusal};
use super::fields::{Fields, wanted};
use super::prompt::Prompt;
use super::run::Batch;
use super::tools::{self, Tools};
use super::{answers, constraint, samplers};

const MAX_STOPS: usize = 8;
const MAX_STOP_BYTES: usize = 64;
/// Tokens that a bias is given to.
const MAX_BIASES: usize = 1024;

/// What a request says beside its prompt.
#[derive(Clone)]
pub struct Wishes {
    /// Without its prompt.
    pub request: Request,
    pub is_stream: bool,
    pub include_usage: bool,
    pub n: usize,
    pub timings_per_token: bool,
    pub return_progress: bool,
    pub verbose: bool,
    /// What the answer is to obey, and the field that says so.
    pub rules: Option<(Rules, &'static str)>,
}

/// The numbers of the sampler; what is not said is as the server has it.
pub fn params(app: &App, fields: &Fields<'_>) -> Checked<SamplerParams> {
    let mut params = app.shared.sampling;
    let set = |place: &mut f32, name: &str, least: f64, most: f64| -> Checked<()> {
        if let Some(number) = fields.number(name, least, most)? {
            *place = number;
        }
        Ok(())
    };
    set(&mut params.temp, "temperature", 0.0, 100.0)?;
    set(&mut params.top_p, "top_p", 0.0, 1.0)?;
    set(&mut params.min_p, "min_p", 0.0, 1.0)?;
    set(&mut params.repeat_penalty, "repeat_penalty", 0.01, 100.0)?;
    set(&mut params.presence_penalty, "presence_penalty", -2.0, 2.0)?;
    set(&mut params.frequency_penalty, "frequency_penalty", -2.0, 2.0)?;
    if let Some(k) = fields.integer("top_k", -1, u32::MAX as i64)? {
        params.top_k = k.max(0) as usize;
    }
    let longest = app.settings.max_repeat_last_n;
    if let Some(n) = fields.integer("repeat_last_n", -1, longest as i64)? {
        params.repeat_last_n = if n < 0 { longest } else { n as usize };
    }
    if let Some(seed) = seed(fields)? {
        params.seed = seed;
    }
    samplers::apply(fields, &mut params)?;
    params.validate().map_err(|error| Refusal::bad("invalid_value", error.to_string()))?;
    Ok(params)
}

/// A seed: any whole number that a generator takes, or -1 for one that nobody knows.
fn seed(fields: &Fields<'_>) -> Checked<Option<u64>> {
    let Some(value) = fields.get("seed") else { return Ok(None) };
    if let Some(seed) = value.as_u64() {
        return Ok(Some(seed));
    }
    match value.as_i64() {
        Some(-1) => Ok(Some(fastrand::u32(..) as u64)),
        _ => Err(wanted(&fields.name("seed"), "a whole number from 0, or -1 for any,", value)),
    }
}

/// Texts that end an answer: one, or a list. An empty one ends nothing and is left out.
pub fn stops<'a>(fields: &Fields<'a>) -> Checked<Vec<String>> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(texts) => {
            let text = |text: &'a Value| text.as_str().ok_or_else(|| wanted("stop", "a list of strings", text));
            texts.iter().map(text).collect::<Checked<_>>()?
        }
        other => return Err(wanted(&fields.name("stop"), "a string or a list of strings", other)),
    };
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect();
    if texts.len() > MAX_STOPS || texts.iter().any(|text| text.len() > MAX_STOP_BYTES) {
        return Err(fields.invalid("stop", format!("at most {MAX_STOPS} texts of {MAX_STOP_BYTES} bytes")));
    }
    Ok(texts)
}

/// `[[id or text, bias or false], …]`, or an object of ids or texts. A text stands for each of its tokens; false forbids.
fn logit_bias(app: &App, fields: &Fields<'_>) -> Checked<Vec<(u32, f32)>> {
    let mut biases: Vec<(u32, f32)> = Vec::new();
    let mut add = |which: &Value, bias: &Value| -> Checked<()> {
        let amount = match bias {
            Value::Bool(false) => f32::NEG_INFINITY,
            Value::Number(number) => number.as_f64().unwrap_or_default() as f32,
            other => return Err(wanted("logit_bias", "a number or false for each token", other)),
        };
        let ids = match which {
            Value::Number(id) => {
                let id = id.as_u64().filter(|id| *id < app.shared.tokenizer.n_vocab() as u64);
                vec![id.ok_or_else(|| fields.invalid("logit_bias", format!("{which} is no token of this model")))? as u32]
            }
            Value::String(text) => app.encode(text, false, false)?,
            other => return Err(wanted("logit_bias", "a token's number or a text", other)),
        };
        biases.extend(ids.into_iter().map(|id| (id, amount)));
        if biases.len() > MAX_BIASES {
            return Err(fields.invalid("logit_bias", format!("more than {MAX_BIASES} tokens")));
        }
        Ok(())
    };
    match fields.get("logit_bias") {
        None => {}
        Some(Value::Array(pairs)) => {
            for pair in pairs {
                match pair.as_array().map(Vec::as_slice) {
                    Some([which, bias]) => add(which, bias)?,
                    _ => return Err(wanted("logit_bias", "a list of pairs", pair)),
                }
            }
        }
        Some(Value::Object(pairs)) => {
            for (which, bias) in pairs {
                // Names of an object are strings; one that is a number is a token's.
                let which = which.parse::<u32>().map_or_else(|_| Value::from(which.as_str()), Value::from);
                add(&which, bias)?;
            }
        }
        Some(other) => return Err(wanted("logit_bias", "a list of pairs or an object", other)),
    }
    // Each token once.
    biases.sort_by_key(|(id, _)| *id);
    biases.dedup_by(|later, first| {
        let is_same = later.0 == first.0;
        if is_same {
            first.1 += later.1;
        }
        is_same
    });
    Ok(biases)
}

/// A name of a conversation.
fn session(fields: &Fields<'_>) -> Checked<Option<String>> {
    let Some(name) = fields.string("session")? else { return Ok(None) };
    match is_name(name) {
        true => Ok(Some(name.to_owned())),
        false => {
            Err(fields.invalid("session", "1 to 64 letters, digits, dots, dashes and underscores, no dot and no auto- in front"))
        }
    }
}

pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        // Kept for what the server saves by itself.
        && !name.starts_with("auto-")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// What the APIs of OpenAI and llama-server share. `limits`: names of the cap on an answer's tokens.
pub fn read(app: &App, fields: &Fields<'_>, limits: &[&str]) -> Checked<Wishes> {
    let settings = &app.settings;
    if fields.flag("post_sampling_probs")? {
        return Err(Refusal::unsupported_field("post_sampling_probs", "probabilities are told as they are before sampling"));
    }
    let max_tokens = match fields.integer_of(limits, -2, u32::MAX as i64)? {
        Some(n) if n >= 0 => (n as usize).min(settings.max_tokens),
        _ => settings.max_tokens,
    };
    let ignore_eos = fields.flag("ignore_eos")?;
    let mut biases = logit_bias(app, fields)?;
    if ignore_eos {
        let ends = app.shared.tokenizer.eog_ids();
        biases.retain(|(id, _)| !ends.contains(id));
        biases.extend(ends.iter().map(|id| (*id, f32::NEG_INFINITY)));
    }
    let most_streams = settings.n_streams as i64 - 1;
    let stream_options = fields.get("stream_options").map(|value| Fields::of(value, "stream_options")).transpose()?;
    let n = fields.integer_of(&["n", "n_cmpl"], 1, 128)?.unwrap_or(1) as usize;
    if n > 4 {
        return Err(Refusal::unsupported_field("n", "at most 4 answers to a request, one after the other"));
    }
    Ok(Wishes {
        request: Request {
            prompt: Vec::new(),
            continues: None,
            n_pinned: 0,
            system: None,
            sampling: params(app, fields)?,
            logit_bias: biases,
            stops: stops(fields)?,
            max_tokens,
            ignore_eos,
            n_probs: 0,
            stream: fields.integer("id_slot", -1, most_streams)?.filter(|id| *id >= 0).map(|id| id as usize),
            session: session(fields)?,
            reuse_prefix: fields.bool("cache_prompt")?.unwrap_or(true),
            grammar: None,
            shown: Vec::new(),
            n_draft: fields
                .integer("speculative.n_max", 0, 1 << 20)?
                .map_or(settings.n_draft, |n| settings.n_draft.min(n as usize)),
            reuse_runs: fields.integer("n_cache_reuse", 0, 1 << 20)?.map_or(settings.reuse_runs, |n| n as usize),
        },
        is_stream: fields.flag("stream")?,
        include_usage: match stream_options {
            Some(options) => options.flag("include_usage")?,
            None => false,
        },
        n,
        timings_per_token: fields.flag("timings_per_token")?,
        return_progress: fields.flag("return_progress")?,
        verbose: settings.verbose || fields.flag("verbose")?,
        rules: constraint::read(fields)?,
    })
}

/// A number of alternatives for each token.
pub fn n_tops(fields: &Fields<'_>, name: &str) -> Checked<Option<usize>> {
    Ok(fields.integer(name, 0, MAX_PROBS as i64)?.map(|n| n as usize))
}

/// The requests of prompts, each with as many answers as were wished, which may call `tools`.
pub fn batch(app: &App, wishes: &Wishes, prompts: Vec<Prompt>, tools: Option<&Tools>) -> Checked<Batch> {
    let mut request = wishes.request.clone();
    let opens = prompts.first().map(|prompt| (prompt.is_thinking, prompt.is_headed));
    let (is_thinking, is_headed) = opens.unwrap_or_default();
    let tokenizer = &app.shared.tokenizer;
    let (rules, param) = match (&wishes.rules, tools) {
        (None, None) => return Batch::new(request, prompts, wishes.n, app.settings.max_prompt_tokens()),
        (Some((_, param)), Some(_)) => {
            return Err(Refusal::invalid(
                param,
                "an answer to a form calls no tools: leave one of them out, or send `tool_choice`: none",
            ));
        }
        (Some((rules, param)), None) => (rules.clone(), *param),
        (None, Some(tools)) => {
            let family = tools::family(app);
            request.shown = Tools::shown(family, tokenizer);
            if app.shared.constraints.is_none() && !tools.is_forced() {
                return Batch::new(request, prompts, wishes.n, app.settings.max_prompt_tokens());
            }
            (tools.rules(family, tokenizer)?, "tools")
        }
    };
    let rules = match tools {
        None if is_headed => tools::in_last_message(rules, param)?,
        _ if is_thinking && tools.is_none_or(Tools::is_forced) => tools::after_thought(rules, tokenizer, param)?,
        _ => rules,
    };
    let grammar = constraint::compile(app, &rules, param).map_err(|refusal| match tools {
        // Of all tools together it is not known whose parameters are in the way.
        Some(tools) if refusal.status == StatusCode::BAD_REQUEST => tools.refusal(app).unwrap_or(refusal),
        _ => refusal,
    });
    request.grammar = Some(grammar?);
    Batch::new(request, prompts, wishes.n, app.settings.max_prompt_tokens())
}

/// A cap as llama-server tells it: -1 for none.
fn cap(max_tokens: usize) -> i64 {
    if max_tokens == usize::MAX { -1 } else { max_tokens as i64 }
}

/// llama-server's `params` of what requests do not say.
pub fn default_settings(app: &App) -> Value {
    settings_json(&app.shared.sampling, cap(app.settings.max_tokens), app.settings.n_draft)
}

fn settings_json(sampling: &SamplerParams, n_predict: i64, n_draft: usize) -> Value {
    json!({
        "seed": sampling.seed,
        "temperature": sampling.temp,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "n_predict": n_predict,
        "max_tokens": n_predict,
        "speculative.n_max": n_draft,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    })
}

/// llama-server's `generation_settings`.
pub fn generation_settings(request: &Request, is_stream: bool, timings_per_token: bool) -> Value {
    let mut settings = settings_json(&request.sampling, cap(request.max_tokens), request.n_draft);
    // JSON has no infinity: null is a token that cannot come.
    let bias = |(id, bias): &(u32, f32)| json!({ "token": id, "bias": bias.is_finite().then_some(*bias) });
    let own = json!({
        "stop": request.stops,
        "ignore_eos": request.ignore_eos,
        "logit_bias": request.logit_bias.iter().map(bias).collect::<Vec<_>>(),
        "n_probs": request.n_probs,
        "stream": is_stream,
        "timings_per_token": timings_per_token,
        "n_keep": request.n_pinned,
        "grammar": "",
    });
    merge(&mut settings, own);
    settings
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// A prompt's text at most that an answer repeats.
const MAX_PROMPT_TEXT: usize = 32 << 10;

/// The prompt as the model reads it; null where that is long.
pub fn prompt_text(app: &App, request: &Request) -> Value {
    let tokenizer = &app.shared.tokenizer;
    let n_bytes: usize = request.prompt.iter().map(|id| tokenizer.token_bytes(*id, true).len()).sum();
    if n_bytes > MAX_PROMPT_TEXT { Value::Null } else { tokenizer.decode(&request.prompt).into() }
}

/// What an answer was made from, for those who look for a mistake: llama-server's `__verbose`.
pub fn verbose(app: &App, request: &Request, is_stream: bool) -> Value {
    let mut object = Map::new();
    object.insert("prompt".into(), prompt_text(app, request));
    object.insert("generation_settings".into(), generation_settings(request, is_stream, false));
    object.insert("n_prompt_tokens".into(), request.prompt.len().into());
    object.insert("system_fingerprint".into(), answers::fingerprint(&app.shared).into());
    Value::Object(object)
}
