//! The metadata keys of a model's architecture: which are read and under which names, which change nothing, and what stands
//! for "none". A key that is none of these may change what is computed, and is refused by name.
//!
//! Owns no number's meaning ([`super::config`] does), but what converters do to numbers: one for each layer where one would
//! do, a second name, -1 or the largest `u32` for none. Names are llama.cpp's; the second ones are Ollama's, or older.

use crate::error::{Error, Result};
use crate::gguf::{GgufError, GgufFile, Value, ValueType};

use super::arch::{Arch, LocalRope, QkNorm, Recurrent, Scales};

const DRAFT: &str = "nextn_predict_layers";

/// What is read: the name first, then others for the same.
const READ: [&[&str]; 23] = [
    &["block_count"],
    &[DRAFT],
    &["context_length"],
    &["embedding_length"],
    &["feed_forward_length"],
    &["attention.head_count"],
    &["attention.head_count_kv"],
    &["attention.key_length", "attention.head_dim"],
    &["attention.value_length"],
    &["attention.layer_norm_rms_epsilon"],
    &["attention.sliding_window"],
    &["attention.sliding_window_pattern"],
    &["rope.dimension_count"],
    &["rope.freq_base", "rope.global.freq_base"],
    &["rope.freq_base_swa", "rope.local.freq_base"],
    &["rope.scaling.type"],
    &["rope.scaling.factor", "rope.scale_linear"],
    &["rope.scaling.attn_factor"],
    &["rope.scaling.yarn_attn_factor"],
    &["rope.scaling.original_context_length"],
    &["rope.scaling.yarn_ext_factor", "rope.scaling.extrapolation_factor"],
    &["rope.scaling.yarn_beta_fast", "rope.scaling.beta_fast"],
    &["rope.scaling.yarn_beta_slow", "rope.scaling.beta_slow"],
];
pub(super) const CAPS: [&str; 2] = ["attn_logit_softcapping", "final_logit_softcapping"];
pub(super) const CONV: &str = "shortconv.l_cache";
/// Of a gated delta net: its convolution, its head, heads of keys and of values, and what the latter have together. Of Mamba-2: its
/// convolution, what a channel remembers, groups of heads, heads, channels.
pub(super) const SSM: [&str; 5] =
    ["ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size"];
/// Of mixtures: experts, those of a token, width of an FFN and of an expert, of the shared one, layers with an FFN like others.
pub(super) const EXPERTS: [&str; 6] = [
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "leading_dense_block_count",
];
/// What else a file may say of them; the weights of the chosen are always brought to a sum of 1.
const EXPERTS_TOO: [&str; 3] = ["expert_gating_func", "expert_weights_scale", "expert_weights_norm"];
pub(super) const INTERVAL: &str = "full_attention_interval";
pub(super) const RECURRENT_LAYERS: &str = "attention.recurrent_layers";
pub(super) const SECTIONS: &str = "rope.dimension_sections";
pub(super) const LOGIT_SCALE: &str = "logit_scale";
pub(super) const SCALES: [&str; 4] = ["embedding_scale", "residual_scale", LOGIT_SCALE, "attention.scale"];
pub(super) const GROWTH: &str = "attention.temperature_scale";
pub(super) const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
pub(super) const ALPHA: &str = "rope.scaling.alpha";
pub(super) const FINETUNED: &str = "rope.scaling.finetuned";
/// Of layers with a window: elements of a key, of a value, and of what is turned of a key.
pub(super) const LOCAL: [&str; 3] = ["attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"];
/// The last layers, which share keys and values of earlier ones.
pub(super) const SHARED: &str = "attention.shared_kv_layers";
/// What each layer is fed of the second table of embeddings.
pub(super) const INPUT: &str = "embedding_length_per_layer_input";

/// Layers at most: far beyond any model.
pub(super) const MAX_LAYERS: usize = 1 << 16;

/// What some families read, and which do.
type ReadBySome = (&'static [&'static str], fn(&Arch) -> bool);
const READ_BY_SOME: [ReadBySome; 9] = [
    (&[CONV], |arch| arch.recurrent == Recurrent::ShortConv),
    // Of a Granite without Mamba-2 they are written too, and mean nothing.
    (&SSM, |arch| arch.recurrent == Recurrent::DeltaNet || arch.recurrent.is_mamba() || arch.scales == Scales::Granite),
    (&[INTERVAL, RECURRENT_LAYERS], |arch| arch.recurrent == Recurrent::DeltaNet),
    (&[SCALES[0], SCALES[1], LOGIT_SCALE], |arch| matches!(arch.scales, Scales::Granite | Scales::MiniCpm)),
    (&[SCALES[3]], |arch| arch.scales == Scales::Granite),
    (&[GROWTH, LOG_MULTIPLIER], |arch| arch.query_growth),
    (&[ALPHA], |arch| arch.qk_norm == QkNorm::TurnedHeads),
    (&[LOCAL[0], LOCAL[1], LOCAL[2], SHARED, INPUT], |arch| arch.per_layer),
    // In the second they are of its relatives that see.
    (&[SECTIONS], |arch| arch.recurrent == Recurrent::DeltaNet || arch.name == "ernie4_5"),
];

/// What no family here computes with, whatever the value: `x.` and `x_` stand for all that begins so.
const INERT: [&str; 9] = [
    "vocab_size",
    "tensor_data_layout",
    "decoder_start_token_id",
    "pooling_type",
    "attention.layer_norm_epsilon",
    FINETUNED,
    "vision.", // tensors of these parts are refused where they are in the file
    "audio.",
    "mm.",
];

/// Of layers with a window; harmless where it is what the others have.
const LIKE_OTHERS: [(&str, &str); 5] = [
    ("attention.key_length_swa", "attention.key_length"),
    ("attention.value_length_swa", "attention.value_length"),
    ("rope.dimension_count_swa", "rope.dimension_count"),
    ("rope.freq_base_swa", "rope.freq_base"),
    ("rope.local.freq_base", "rope.freq_base"),
];

/// The keys of one model.
pub(super) struct Keys<'a> {
    pub file: &'a GgufFile,
    pub arch: &'static Arch,
    pub n_layer: usize,
    /// Layers, and the blocks behind them that draft tokens, which are left unread.
    pub n_block: usize,
}

impl<'a> Keys<'a> {
    /// Refuses a file with keys that may change the computation and are not known here, or floats that are not numbers.
    pub fn of(file: &'a GgufFile, arch: &'static Arch) -> Result<Self> {
        let mut keys = Keys { file, arch, n_layer: 0, n_block: 0 };
        keys.n_block = keys.count("block_count")?;
        let n_draft = keys.opt_count(DRAFT)?.unwrap_or(0);
        keys.n_layer = keys.n_block.saturating_sub(n_draft);
        if keys.n_layer == 0 {
            return keys.refuse(
                DRAFT,
                format!("is {n_draft} of {} blocks, which leaves no layer: use another file of the model", keys.n_block),
            );
        }
        for (key, value) in file.metadata() {
            match key.strip_prefix(arch.name).and_then(|name| name.strip_prefix('.')) {
                Some(name) => keys.check(name, &value)?,
                None => keys.check_elsewhere(key)?,
            }
        }
        Ok(keys)
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch.name)
    }

    pub fn refuse<T>(&self, name: &str, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::unsupported(self.file.path(), format!("metadata key {} {what}", printable(&self.key(name)))))
    }

    /// A number that must be there and is not 0.
    pub fn count(&self, name: &str) -> Result<usize> {
        match self.opt_count(name)? {
            Some(0) => self.refuse(name, "is 0: convert the model again with a current tool"),
            Some(n) => Ok(n),
            None => self.missing(name, "u32"),
        }
    }

    /// A number that must be there.
    pub fn float(&self, name: &str) -> Result<f32> {
        self.opt_float(name)?.map_or_else(|| self.missing(name, "f32"), Ok)
    }

    /// Refuses the want of a number: what is there stands for none.
    pub fn missing<T>(&self, name: &str, wanted: &'static str) -> Result<T> {
        if let Some(none) = self.file.get(&self.key(name)).and_then(|value| value.as_int()) {
            let what = format!("is {none}, which stands for none, and the model needs one: convert it again with a current tool");
            return self.refuse(name, what);
        }
        Err(Error::gguf(self.file.path(), GgufError::MissingKey { key: self.key(name), wanted }))
    }

    /// -1 and the largest `u32` stand for none.
    pub fn opt_count(&self, name: &str) -> Result<Option<usize>> {
        let none = |value: &Value| matches!(value.as_int(), Some(-1 | 0xffff_ffff));
        self.find(name, |key, value| if none(&value) { Ok(None) } else { value.to_u32(key).map(|n| Some(n as usize)) })
    }

    pub fn opt_float(&self, name: &str) -> Result<Option<f32>> {
        self.find(name, |key, value| as_float(&value).map_or_else(|| value.to_f32(key), Ok).map(Some))
    }

    pub fn opt_bool(&self, name: &str) -> Result<Option<bool>> {
        self.find(name, |_, value| Ok(Some(!is_off(&value))))
    }

    /// A number that must be there and is not 0, for each layer: one for all, or a list.
    pub fn counts(&self, name: &str) -> Result<Box<[usize]>> {
        let key = self.key(name);
        let Some(Value::Array(list)) = self.file.get(&key) else {
            return Ok(vec![self.count(name)?; self.n_layer.min(MAX_LAYERS)].into());
        };
        self.check_len(name, list.len())?;
        let counts = list.iter().take(self.n_layer).map(|value| value.to_u32(&key).map(|n| n as usize));
        let counts: Box<[usize]> =
            counts.collect::<std::result::Result<_, _>>().map_err(|source| Error::gguf(self.file.path(), source))?;
        match counts.contains(&0) {
            true => self.refuse(name, "is 0 in some layer, which this engine does not run; use another model of the family"),
            false => Ok(counts),
        }
    }

    /// Whole numbers or flags, where there is a list.
    pub fn list(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let key = self.key(name);
        let list = match self.file.get(&key) {
            None => return Ok(None),
            Some(Value::Array(list)) => list,
            Some(_) => return self.refuse(name, "is no list: the file is damaged, or of another model; fetch it again"),
        };
        let number = |value: Value| match value {
            Value::Bool(on) => Ok(usize::from(on)),
            value => value.to_u32(&key).map(|n| n as usize).map_err(|source| Error::gguf(self.file.path(), source)),
        };
        list.iter().map(number).collect::<Result<_>>().map(Some)
    }

    /// Numbers of each layer, or one for all, under a key without the name of the architecture.
    pub fn floats_of(&self, key: &str) -> Result<Vec<f32>> {
        let wrong = |source| Error::gguf(self.file.path(), source);
        let Some(value) = self.file.get(key) else {
            return Err(wrong(GgufError::MissingKey { key: key.to_owned(), wanted: "f32" }));
        };
        let float = |value: Value| as_float(&value).map_or_else(|| value.to_f32(key), Ok).map_err(wrong);
        match value {
            Value::Array(list) if list.len() >= self.n_layer => list.iter().take(self.n_layer).map(float).collect(),
            Value::Array(list) => {
                let what = format!(
                    "metadata key {key} has {} values for {} layers: the file is damaged; fetch it again",
                    list.len(),
                    self.n_layer
                );
                Err(Error::unsupported(self.file.path(), what))
            }
            value => Ok(vec![float(value)?; self.n_layer.min(MAX_LAYERS)]),
        }
    }

    /// A list has one value for each layer, those behind the model's included.
    pub fn check_len(&self, name: &str, len: usize) -> Result<()> {
        match len == self.n_block {
            true => Ok(()),
            false => {
                self.refuse(name, format!("has {len} values for {} layers: the file is damaged; fetch it again", self.n_block))
            }
        }
    }

    /// What a key holds under any of its names; of a list with one value for each layer the one that all have.
    fn find<T: PartialEq + std::fmt::Display>(
        &self,
        name: &str,
        read: impl Fn(&str, Value) -> std::result::Result<Option<T>, GgufError>,
    ) -> Result<Option<T>> {
        let names = READ.iter().find(|names| names[0] == name).copied();
        let mut found: Option<(&str, T)> = None;
        for &other in names.unwrap_or(&[name]) {
            let key = self.key(other);
            let read = |value| read(&key, value).map_err(|source| Error::gguf(self.file.path(), source));
            let value = match self.file.get(&key) {
                None => continue,
                Some(Value::Array(list)) => self.same_in_all(other, list.iter().map(read).collect::<Result<Vec<_>>>()?)?,
                Some(value) => read(value)?,
            };
            let Some(value) = value else { continue };
            match &found {
                Some((first, same)) if *same != value => {
                    let what = format!("is {value}, and {} is {same}: convert the model again", self.key(first));
                    return self.refuse(other, what);
                }
                Some(_) => {}
                None => found = Some((other, value)),
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    fn same_in_all<T: PartialEq + std::fmt::Display>(&self, name: &str, mut list: Vec<Option<T>>) -> Result<Option<T>> {
        if self.n_layer == 0 {
            return self.refuse(name, "is a list, and one number is wanted: convert the model again with a current tool");
        }
        self.check_len(name, list.len())?;
        list.truncate(self.n_layer);
        let others: Vec<usize> = (1..list.len()).filter(|&i| list[i] != list[0]).collect();
        let Some(&other) = others.first() else { return Ok(list.swap_remove(0)) };
        let shown = |value: &Option<T>| value.as_ref().map_or("none".to_owned(), T::to_string);
        let what = format!(
            "is {} in layer 0 and {} in layer {other} ({} of {} layers differ from the first); this engine runs models whose layers are alike",
            shown(&list[0]),
            shown(&list[other]),
            others.len(),
            list.len()
        );
        self.refuse(name, what)
    }

    fn check(&self, name: &str, value: &Value) -> Result<()> {
        if not_finite(value) {
            return self.refuse(name, "is not a finite number: the file is damaged; fetch it again");
        }
        let arch = self.arch;
        let some = READ_BY_SOME.iter().find(|(names, _)| names.contains(&name));
        let ours = match name {
            _ if some.is_some() => some.is_some_and(|(_, reads)| reads(arch)),
            // Written with their defaults by tools that write all keys, read in the families that have caps alone.
            _ if name == CAPS[0] && arch.per_layer => false,
            _ if CAPS.contains(&name) => arch.soft_caps.is_some() || !matches!(arch.local_rope, LocalRope::Base(_)),
            "rope.freq_base_swa" | "rope.local.freq_base" => arch.global_every > 0 || arch.per_layer,
            "leading_dense_block_count" => arch.experts.is_none_or(|mixture| mixture.biased),
            _ if name.starts_with("expert_") => match arch.experts {
                None => name != EXPERTS[0] || value.as_int() == Some(1),
                Some(_) => EXPERTS.contains(&name) || EXPERTS_TOO.contains(&name) || value.as_int() == Some(1),
            },
            "attention.causal" => !is_off(value),
            "hidden_activation" | "hidden_act" => {
                matches!(value, Value::Str(act) if act.starts_with(arch.activation.name()))
            }
            _ => READ.iter().any(|names| names.contains(&name)) || is_inert(name),
        };
        let scale = || name.ends_with("scale") && name != "attention.scale" && value.as_float() == Some(1.0);
        let like_others = || {
            let other = LIKE_OTHERS.iter().find(|like| like.0 == name).and_then(|like| self.opt_float(like.1).ok()?);
            other.is_some() && other == as_float(value)
        };
        if ours || (is_off(value) && name != "attention.causal") || scale() || like_others() {
            return Ok(());
        }
        let what = match name {
            "expert_count" => "asks for a mixture of experts, which this engine does not run; use a model without it",
            "attention.causal" => "asks for attention to later tokens, which this engine does not run; use a model without it",
            _ => "is not known here and may change what the model computes: use a newer lowkey, or a model without it",
        };
        self.refuse(name, what)
    }

    /// A key that would be read, had it the name of the architecture in front, must not be missed for a default.
    fn check_elsewhere(&self, key: &str) -> Result<()> {
        if ["general.", "tokenizer.", "split.", "quantize.", "imatrix."].iter().any(|own| key.starts_with(own)) {
            return Ok(());
        }
        let means = |name: &&str| key.strip_suffix(*name).is_some_and(|front| front.is_empty() || front.ends_with('.'));
        let missed =
            |names: &&&[&str]| names.iter().any(means) && !names.iter().any(|name| self.file.get(&self.key(name)).is_some());
        match READ.iter().find(missed) {
            Some(names) => {
                let what = format!(
                    "metadata key {} is there in place of {}: convert the model again with a current tool",
                    printable(key),
                    self.key(names[0])
                );
                Err(Error::unsupported(self.file.path(), what))
            }
            None => Ok(()),
        }
    }
}

fn is_inert(name: &str) -> bool {
    INERT.iter().any(|inert| if inert.ends_with(['.', '_']) { name.starts_with(inert) } else { name == *inert })
}

fn as_float(value: &Value) -> Option<f32> {
    value.as_int().map(|n| n as f32).or_else(|| value.as_float())
}

/// What switches a feature off: 0, false, -1, nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Str(text) => matches!(*text, "" | "none"),
        Value::Array(list) => list.iter().all(|value| is_off(&value)),
        number => match (number.as_int(), number.as_float()) {
            (Some(n), _) => matches!(n, 0 | -1 | 0xffff_ffff),
            (_, float) => matches!(float, Some(0.0 | -1.0)),
        },
    }
}

fn not_finite(value: &Value) -> bool {
    match value {
        Value::Array(list) if matches!(list.elem_type(), ValueType::F32 | ValueType::F64) => {
            list.iter().any(|value| not_finite(&value))
        }
        scalar => scalar.as_float().is_some_and(|v| !v.is_finite()),
    }
}

/// A name from the file as part of one line: control characters escaped, cut after 80 characters.
pub(super) fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}
