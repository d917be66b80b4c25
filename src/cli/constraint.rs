//! `--json-schema` and `--grammar`: answers that obey.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::constraint::{Constraints, Grammar, Live, MAX_RULES_BYTES, MIN_BYTES, Refused, Rules};
use crate::error::{Error, Result};
use crate::text::{Sampler, Tokenizer};
use crate::units::Bytes;

use super::setup::Opened;
use super::text::unreadable;

#[derive(Args, Clone)]
pub struct ConstraintArgs {
    /// Hold the answer to a JSON schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|TEXT", conflicts_with = "grammar")]
    json_schema: Option<String>,
    /// Hold the answer to a grammar: a file of llama.cpp's GBNF, or of llguidance's Lark where its name ends in .lark
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
    /// Memory for --json-schema or --grammar
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    grammar_memory: Bytes,
}

/// The size of a region, checked.
pub fn region_bytes(size: Bytes) -> Result<usize> {
    match usize::try_from(size.0) {
        Ok(0) => Ok(0),
        Ok(bytes) if (MIN_BYTES..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err(Error::usage("--grammar-memory", format!("{size} cannot be used: give 1MiB to 1GiB, or 0 for no grammars"))),
    }
}

/// The text of a file that a flag names.
fn text_of(flag: &'static str, path: &Path, takes: &str) -> Result<String> {
    let io = |e| unreadable(flag, path, &e, takes);
    let mut text = Vec::new();
    File::open(path).map_err(io)?.take(MAX_RULES_BYTES as u64 + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() > MAX_RULES_BYTES {
        return Err(Error::usage(flag, format!("{} holds more than {MAX_RULES_BYTES} bytes: write less", path.display())));
    }
    String::from_utf8(text).map_err(|_| Error::usage(flag, format!("{} is not UTF-8", path.display())))
}

/// The next token, one that the grammar allows; `None`: it can say no more, which the user is told.
pub fn draw(sampler: &mut Sampler, live: &mut Option<Live>, logits: &[f32]) -> Result<Option<u32>> {
    let Some(live) = live else { return sampler.sample(logits).map(Some) };
    let token = sampler.sample_filtered(logits, &[], live);
    match live.stuck() {
        Some(why) => {
            log::warn!("{why}");
            Ok(None)
        }
        None => token.map(Some),
    }
}

impl ConstraintArgs {
    /// The flag that asks for a form.
    fn flag(&self) -> Option<&'static str> {
        if self.json_schema.is_some() { Some("--json-schema") } else { self.grammar.as_ref().map(|_| "--grammar") }
    }

    fn rules(&self) -> Result<Option<Rules>> {
        if let Some(given) = &self.json_schema {
            let is_text = given.trim_start().starts_with('{') || ["true", "false"].contains(&given.trim());
            let text = match is_text {
                true => given.clone(),
                false => text_of("--json-schema", given.as_ref(), "the file of a schema, or a schema, which begins with {")?,
            };
            let schema = serde_json::from_str(&text).map_err(|e| Error::usage("--json-schema", format!("it is no JSON: {e}")))?;
            return Ok(Some(Rules::Schema(schema)));
        }
        let Some(path) = &self.grammar else { return Ok(None) };
        let text = text_of("--grammar", path, "the file of a grammar")?;
        let is_lark = path.extension().is_some_and(|ending| ending == "lark");
        Ok(Some(if is_lark { Rules::Lark(text) } else { Rules::Gbnf(text) }))
    }

    /// The line of the plan, where a form is asked for.
    pub fn plan(&self, opened: &mut Opened) -> Result<()> {
        if self.flag().is_some() {
            let bytes = Constraints::plan_bytes(&opened.model.file, region_bytes(self.grammar_memory)?)?;
            opened.plan.private("grammar", bytes);
        }
        Ok(())
    }

    /// The grammar that is asked for, before anything is generated.
    pub fn grammar(&self, tokenizer: &Tokenizer) -> Result<Option<Arc<Grammar>>> {
        let Some((flag, rules)) = self.flag().zip(self.rules()?) else { return Ok(None) };
        let bytes = region_bytes(self.grammar_memory)?;
        if bytes == 0 {
            return Err(Error::usage("--grammar-memory", format!("0 turns {flag} off: give it some")));
        }
        match Constraints::new(tokenizer, bytes).compile(&rules) {
            Ok(grammar) => Ok(Some(grammar)),
            Err(refused @ Refused::Absent(_)) => Err(Error::stopped(format!("{flag}: {refused}"))),
            Err(refused @ Refused::Invalid(_)) => Err(Error::usage(flag, refused.to_string())),
            Err(refused) => Err(Error::budget("--grammar-memory", format!("{flag}: {refused}"))),
        }
    }
}
