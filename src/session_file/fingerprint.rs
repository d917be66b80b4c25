//! Which streams a session may go on in: those of the same model and template, whose cache keeps the same and lets the same go. The
//! number of threads, the batch and the kernel set are left out, for where they change nothing they must not matter: a session
//! saved on x86 opens on ARM.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::name::Short;
use crate::error::{Message, Setting, message};
use crate::gguf::{GgufFile, Value};
use crate::kv::KvCache;
use crate::kv::store::saved::PAST;

/// To be raised with each change after which the same tokens give other bits in the cache or other logits. The file that
/// tests/sessions.rs keeps says when.
pub const ARITHMETIC: u32 = 1;
/// The same of what a stream with a past finds in it.
const PAST_ARITHMETIC: u32 = 2;

/// What the parts of the settings come from.
const CAUSES: [&[Setting]; 11] = [
    &[Setting::KvType],
    &[Setting::KvBudget, Setting::Batch],
    &[Setting::Evict],
    &[Setting::Sinks],
    &[Setting::Recent],
    &[Setting::Rare],
    &[Setting::Pool],
    &[],
    &[],
    &[Setting::Past, Setting::PastSpace, Setting::Recall],
    &[],
];
const SLOTS: usize = 1;
const POLICY: usize = 2;
/// Parts that follow from slots and policy, where nothing else is said.
const FOLLOWS: std::ops::RangeInclusive<usize> = 4..=7;

/// The parts of `KvCache::settings`, and the arithmetic. None: it is not of this form.
fn parts(settings: &str) -> Option<[&str; CAUSES.len()]> {
    let (rest, arithmetic) = settings.rsplit_once("; ")?;
    let mut pieces = rest.splitn(4, "; ");
    let (types, slots) = pieces.next()?.split_once(' ')?;
    let rule: Vec<&str> = pieces.next()?.split(", ").collect();
    let [policy, sinks, recent, reserved, pool, half_life] = rule[..] else { return None };
    let (window, past) = (pieces.next()?, pieces.next().unwrap_or("no past"));
    Some([types, slots, policy, sinks, recent, reserved, pool, half_life, window, past, arithmetic])
}

/// What differs between settings, and what decides it.
fn differences(own: &str, others: &str) -> Message {
    let Some((own_parts, other_parts)) = parts(own).zip(parts(others)) else {
        return format!("it was saved with other settings, '{}' and not '{others}'", own.escape_debug()).into();
    };
    let differs = |i: usize| own_parts[i] != other_parts[i];
    let shown = (0..CAUSES.len()).filter(|i| differs(*i) && !(FOLLOWS.contains(i) && (differs(SLOTS) || differs(POLICY))));
    let mut told: Vec<Message> = vec!["it was saved with ".into()];
    for i in shown {
        let comma = if told.len() > 1 { ", " } else { "" };
        told.push(format!("{comma}{} and not {}", own_parts[i].escape_debug(), other_parts[i]).into());
        for (n, cause) in CAUSES[i].iter().enumerate() {
            told.extend([if n == 0 { " (" } else { " or " }.into(), (*cause).into()]);
        }
        told.extend((!CAUSES[i].is_empty()).then(|| ")".into()));
    }
    told.into_iter().collect()
}

/// A whole hash of a large model takes minutes on a card; this many blocks of it, spread over the weights, take a second.
const N_BLOCKS: u64 = 64;
const BLOCK_BYTES: u64 = 64 << 10;

pub const MAX_SETTINGS: usize = 512;
pub const MAX_MODEL_NAME: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Metadata, directory, size, and blocks of the weights.
    pub model: u128,
    pub template: u128,
    /// What the cache keeps and how, as it is shown.
    pub settings: Short<MAX_SETTINGS>,
    /// To be shown, and not compared.
    pub model_name: Short<MAX_MODEL_NAME>,
}

impl Fingerprint {
    /// Of a stream with this cache; `template` is the text of the chat template, empty where there is none.
    pub fn of(file: &GgufFile, template: &[u8], cache: &KvCache) -> Fingerprint {
        let of_past = cache.past().map_or(String::new(), |_| format!(", of the past {PAST_ARITHMETIC}"));
        let settings = format!("{}; arithmetic {ARITHMETIC}{of_past}", cache.settings());
        assert!(settings.len() <= MAX_SETTINGS, "settings that cannot be told apart: {settings}");
        let stem = file.path().file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
        let model_name = match file.get("general.name") {
            Some(Value::Str(name)) if !name.trim().is_empty() => name,
            _ => &stem,
        };
        Fingerprint {
            model: model_hash(file),
            template: xxh3_128(template),
            settings: Short::of(&settings),
            model_name: Short::of(model_name),
        }
    }

    /// Why a session of `self` is none for a stream of `other`; `None`: it is.
    pub fn why_not(&self, other: &Fingerprint) -> Option<Message> {
        if self.model != other.model {
            return Some(format!("it is of another model, '{}'", self.model_name.as_str().escape_debug()).into());
        }
        if self.template != other.template {
            return Some(message!["it was saved with another chat template (", Setting::Template, ")"]);
        }
        let (own, others) = (self.settings.as_str(), other.settings.as_str());
        (own != others).then(|| differences(own, others))
    }

    /// Whether its stream has a past in a file.
    pub fn has_past(&self) -> bool {
        self.settings.as_str().contains(PAST)
    }

    /// Of all that is compared.
    pub fn hash(&self) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(&self.model.to_le_bytes());
        hash.update(&self.template.to_le_bytes());
        hash.update(self.settings.as_str().as_bytes());
        hash.digest128()
    }
}

/// Of each part of the model: its length, all bytes before the first tensor, and blocks of what follows.
fn model_hash(file: &GgufFile) -> u128 {
    let mut hash = Xxh3::new();
    for (part, map) in file.maps().enumerate() {
        let bytes = map.bytes();
        hash.update(&(bytes.len() as u64).to_le_bytes());
        let tensors = file.tensors().iter().filter(|t| t.part as usize == part);
        let weights = tensors.map(|t| t.offset).min().unwrap_or(bytes.len() as u64);
        hash.update(&bytes[..weights as usize]);
        for block in blocks(weights..bytes.len() as u64) {
            hash.update(&bytes[block.start as usize..block.end as usize]);
        }
    }
    hash.digest128()
}

/// `N_BLOCKS` blocks from the first to the last byte, or all of it where it is no more than they are.
fn blocks(all: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let len = all.end - all.start;
    let is_short = len <= N_BLOCKS * BLOCK_BYTES;
    let (n, bytes) = if is_short { (1, len) } else { (N_BLOCKS, BLOCK_BYTES) };
    (0..n).map(move |i| {
        let start = all.start + (u128::from(len - bytes) * u128::from(i) / u128::from((n - 1).max(1))) as u64;
        start..start + bytes
    })
}

#[cfg(test)]
#[path = "../../tests/unit/session_file/fingerprint.rs"]
mod tests;
