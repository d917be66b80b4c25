//! The numbers of a model, from the metadata of its file, checked to fit each other. What is asked for and not done
//! here is refused by name: a model is never run approximately.

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::kernels::{BLOCK, RopeOrder};
use crate::kv::layout::{AttnLayer, MAX_HEAD_DIM, MAX_HEAD_KV, Window};

use super::arch::{Arch, ModelLayer, SoftCaps};
use super::keys::{CAPS, CONV, Keys, printable};

#[derive(Clone, Debug)]
pub struct Config {
    pub arch: &'static Arch,
    pub n_layer: usize,
    /// The layers that have a convolution in place of attention, if any.
    pub conv: Option<ConvConfig>,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
    /// Positions the model was trained for; within them every token sees all before it, or those of a window.
    pub n_ctx: usize,
    pub rms_eps: f32,
    pub rope: RopeConfig,
    /// Of the layers with a window, where it differs.
    pub local_rope: Option<RopeConfig>,
    /// The layers that see the latest tokens only; a window as long as the context is none.
    pub window: Option<Window>,
    /// What queries are multiplied with once they are turned.
    pub q_scale: f32,
    pub soft_caps: Option<SoftCaps>,
}

/// Short convolutions over the latest tokens, channel by channel.
#[derive(Clone, Debug)]
pub struct ConvConfig {
    /// Tokens that an output sees, its own included.
    pub n_tap: usize,
    /// `[n_layer]`
    pub layers: Box<[bool]>,
}

#[derive(Clone, Debug)]
pub struct RopeConfig {
    pub order: RopeOrder,
    /// Elements of a head that are turned; the rest passes.
    pub n_rot: usize,
    pub freq_base: f32,
    pub scaling: RopeScaling,
    /// What turned queries and keys are multiplied with, besides what the scaling says.
    pub attn_factor: f32,
}

/// How positions beyond those of the first training were fitted in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided by the factor (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        factor: f32,
        n_ctx_orig: u32,
        beta_fast: f32,
        beta_slow: f32,
    },
}

impl Config {
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    pub fn kv_dim(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// Layers that have a convolution in place of attention.
    pub fn n_conv_layer(&self) -> usize {
        self.conv.iter().flat_map(|conv| &conv.layers).filter(|&&is_conv| is_conv).count()
    }

    /// Layers that have keys and values. In the cache they are counted by themselves.
    pub fn n_attn_layer(&self) -> usize {
        self.n_layer - self.n_conv_layer()
    }

    /// The layers that have keys and values, as the cache counts them and as the model does.
    pub fn attn_layers(&self) -> impl Iterator<Item = (AttnLayer, ModelLayer)> {
        let is_conv = |i: &usize| self.conv.as_ref().is_some_and(|conv| conv.layers[*i]);
        (0..self.n_layer).filter(move |i| !is_conv(i)).enumerate().map(|(attn, i)| (AttnLayer(attn), ModelLayer(i)))
    }

    /// The widest row of activations that is quantised.
    pub fn max_cols(&self) -> usize {
        self.n_embd.max(self.q_dim()).max(self.n_ff)
    }

    pub fn from_gguf(file: &GgufFile) -> Result<Config> {
        let refuse = |what: String| Error::unsupported(file.path(), what);
        if let Some((what, advice)) = not_a_model(file) {
            return Err(refuse(format!("this is {what} and no model: {advice}")));
        }
        let name = file.str("general.architecture")?;
        let arch = Arch::by_name(name).ok_or_else(|| {
            refuse(format!("architecture '{}' is not supported; this engine runs: {}", printable(name), Arch::known()))
        })?;
        let keys = Keys::of(file, arch)?;
        let (n_layer, n_embd, n_head) = (keys.n_layer, keys.count("embedding_length")?, keys.count("attention.head_count")?);
        let (n_head_kv, without) = kv_heads(&keys, n_head)?;
        let conv = match arch.short_conv {
            true => Some(ConvConfig { n_tap: keys.count(CONV)?, layers: without }),
            false => None,
        };
        let head_dim = match keys.opt_count("attention.key_length")? {
            Some(n) => n,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(refuse(format!("{n_head} heads do not divide an embedding of {n_embd}"))),
        };
        let trained = keys.count("context_length")?;
        let rope = RopeConfig {
            order: arch.rope_order,
            n_rot: keys.opt_count("rope.dimension_count")?.unwrap_or(head_dim),
            freq_base: keys.opt_float("rope.freq_base")?.unwrap_or(10_000.0),
            scaling: rope_scaling(&keys, trained as u32)?,
            attn_factor: keys.opt_float("rope.scaling.attn_factor")?.filter(|&f| f != 0.0).unwrap_or(1.0),
        };
        let n_ctx = context(&keys, trained)?;
        let window = window(&keys, n_ctx)?;
        let score_dim = if n_layer == arch.wide_scale_layers { n_embd / n_head } else { head_dim };
        let local_rope = match window.filter(|window| !window.is_everywhere()) {
            Some(_) => local_rope(&keys, &rope)?,
            None => None,
        };
        let config = Config {
            n_layer,
            conv,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: keys.count("feed_forward_length")?,
            n_vocab: file.strings("tokenizer.ggml.tokens")?.len(),
            n_ctx,
            rms_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            local_rope,
            rope,
            window,
            q_scale: 1.0 / (score_dim as f32).sqrt(),
            soft_caps: soft_caps(&keys)?,
            arch,
        };
        match config.wrong(keys.opt_count("attention.value_length")?.unwrap_or(head_dim)) {
            Some(what) => Err(refuse(format!("the metadata asks for {what}; this engine cannot run that"))),
            None => Ok(config),
        }
    }

    /// What does not fit together or is beyond this engine.
    fn wrong(&self, value_dim: usize) -> Option<String> {
        let c = self;
        let ropes = || [Some(&c.rope), c.local_rope.as_ref()].into_iter().flatten();
        let caps = c.soft_caps.map_or([1.0; 2], |caps| [caps.scores, caps.logits]);
        let (n_head, n_head_kv, head_dim, n_rot) = (c.n_head, c.n_head_kv, c.head_dim, c.rope.n_rot);
        let wrong = [
            // Far beyond any model, and small enough that no product of them overflows.
            (
                c.n_layer > 1 << 16 || c.max_cols() > 1 << 24,
                format!("{} layers with rows of up to {} elements", c.n_layer, c.max_cols()),
            ),
            (
                c.conv.is_some() && c.q_dim() != c.n_embd,
                format!("heads of {} elements together beside convolutions of {}", c.q_dim(), c.n_embd),
            ),
            (
                c.conv.as_ref().is_some_and(|conv| !(2..=64).contains(&conv.n_tap)),
                format!("a convolution over {} tokens", c.conv.as_ref().map_or(0, |conv| conv.n_tap)),
            ),
            (n_head_kv == 0 || n_head % n_head_kv != 0, format!("{n_head} heads cannot share {n_head_kv} KV heads")),
            (n_head_kv > MAX_HEAD_KV, format!("{n_head_kv} KV heads, more than {MAX_HEAD_KV}")),
            (
                head_dim == 0 || head_dim % 8 != 0 || head_dim > MAX_HEAD_DIM,
                format!("a head of {head_dim} elements: must be a multiple of 8, {MAX_HEAD_DIM} at most"),
            ),
            (value_dim != head_dim, format!("values of {value_dim} elements beside keys of {head_dim}")),
            (n_rot == 0 || n_rot % 2 != 0 || n_rot > head_dim, format!("RoPE over {n_rot} elements of a head of {head_dim}")),
            (
                c.n_embd % BLOCK != 0 || c.q_dim() % BLOCK != 0 || c.n_ff % BLOCK != 0,
                format!("rows of {}, {} and {} elements: each must be a multiple of {BLOCK}", c.n_embd, c.q_dim(), c.n_ff),
            ),
            (!(c.rms_eps.is_finite() && c.rms_eps >= 0.0), format!("an RMSNorm epsilon of {}", c.rms_eps)),
            (ropes().any(|r| !(r.freq_base.is_finite() && r.freq_base > 0.0)), format!("a RoPE base of {}", c.rope.freq_base)),
            (!(1e-3..=1e3).contains(&c.rope.attn_factor), format!("turned keys times {}", c.rope.attn_factor)),
            (!c.rope.scaling.is_sound(), format!("a RoPE scaling of {:?}", c.rope.scaling)),
            (caps.iter().any(|cap| !(1e-3..=1e6).contains(cap)), format!("soft caps of {} and {}", caps[0], caps[1])),
            (c.n_ctx < 8 || c.n_ctx > 1 << 24, format!("a context of {} tokens", c.n_ctx)),
            (c.window.is_some_and(|w| w.is_everywhere() && w.n_tok < 8), "a window of less than 8 tokens in all layers".into()),
        ];
        wrong.into_iter().find(|(is_wrong, _)| *is_wrong).map(|(_, what)| what)
    }
}

/// What a file without the makings of a model is, and what to do with it.
fn not_a_model(file: &GgufFile) -> Option<(&'static str, &'static str)> {
    let text = |key: &str| file.opt_str(key).ok().flatten().unwrap_or_default();
    let has = |end: &str| file.tensors().iter().any(|t| t.name.ends_with(end));
    Some(match (text("general.type"), text("general.architecture")) {
        ("adapter", _) => ADAPTER,
        ("imatrix", _) | (_, "imatrix") => IMATRIX,
        ("mmproj", _) | (_, "clip" | "mmproj") => ("the part of a model that sees or hears", "give the file of its text model"),
        (_, "controlvector") => ("a control vector, which steers a model", "give the file of the model"),
        _ if has(".lora_a") || has(".loraA") => ADAPTER,
        _ if has(".in_sum2") => IMATRIX,
        ("vocab", _) => VOCABULARY,
        _ if file.tensors().is_empty() && file.get("tokenizer.ggml.tokens").is_some() => VOCABULARY,
        _ => return None,
    })
}

const ADAPTER: (&str, &str) =
    ("a LoRA adapter, which changes a model", "merge it into its model with llama.cpp's llama-export-lora and give the result");
const IMATRIX: (&str, &str) = ("an importance matrix, which guides quantising", "give the file of the model");
const VOCABULARY: (&str, &str) = ("a vocabulary without weights", "give the file of the model; `lowkey tokenize` takes this one");

/// KV heads of a layer, and which layers have none. One number for all layers, or a list with one for each.
fn kv_heads(keys: &Keys, n_head: usize) -> Result<(usize, Box<[bool]>)> {
    const KEY: &str = "attention.head_count_kv";
    let (file, key, n_layer) = (keys.file, keys.key(KEY), keys.n_layer);
    if !keys.arch.short_conv || !matches!(file.get(&key), Some(Value::Array(_))) {
        // So many layers no file holds; `from_gguf` says so.
        return Ok((keys.opt_count(KEY)?.unwrap_or(n_head), vec![false; n_layer.min(1 << 16)].into()));
    }
    let of_layers = file.u32s(&key)?;
    if of_layers.len() != n_layer {
        return keys
            .refuse(KEY, format!("has {} values for {n_layer} layers: the file is damaged; fetch it again", of_layers.len()));
    }
    let mut with = of_layers.clone().filter(|&n| n > 0);
    let Some(n) = with.next() else {
        return keys.refuse(KEY, "gives KV heads to no layer; this engine needs one that has some");
    };
    match with.find(|&other| other != n) {
        Some(other) => {
            keys.refuse(KEY, format!("gives {n} KV heads to one layer and {other} to another, which this engine does not run"))
        }
        None => Ok((n as usize, of_layers.map(|n| n == 0).collect())),
    }
}

impl RopeScaling {
    fn is_sound(&self) -> bool {
        let sound = |v: f32| (1e-6..=1e6).contains(&v);
        match *self {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => sound(factor),
            RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow } => {
                n_ctx_orig > 0 && [factor, beta_fast, beta_slow].into_iter().all(sound)
            }
        }
    }
}

/// The trained context, shortened to what this engine computes exactly: within the original context the short RoPE factors
/// hold. Beyond it a stream goes on as beyond any trained context.
fn context(keys: &Keys, trained: usize) -> Result<usize> {
    let n_ctx = match keys.file.tensor(SHORT_FACTORS) {
        Some(_) => trained.min(keys.count("rope.scaling.original_context_length")?),
        None => trained,
    };
    if n_ctx < trained {
        log::info!("of a context of {trained} tokens {n_ctx} are used: the rest has other RoPE factors");
    }
    Ok(n_ctx)
}

/// The window of a family that has layers with one among layers without, or of a file that gives one to all layers.
fn window(keys: &Keys, n_ctx: usize) -> Result<Option<Window>> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let global_every = keys.arch.global_every;
    let Some(n_tok) = keys.opt_count("attention.sliding_window")?.filter(|&n| n > 0) else { return Ok(None) };
    let window = Some(Window { n_tok, global_every }).filter(|window| !window.is_everywhere() || n_tok < n_ctx);
    let Some(window) = window else { return Ok(None) };
    // A list says of each layer whether it has the window.
    if let Some(Value::Array(list)) = keys.file.get(&keys.key(PATTERN)) {
        let flag = |value: Value| if let Value::Bool(on) = value { Some(i128::from(on)) } else { value.as_int() };
        let flags: Vec<Option<i128>> = list.iter().map(flag).collect();
        if flags.iter().all(|flag| matches!(flag, Some(0 | 1))) {
            let differs = |&i: &usize| flags.get(i) != Some(&Some(window.limits(AttnLayer(i)).into()));
            return match (0..keys.n_layer.max(flags.len())).find(differs) {
                None => Ok(Some(window)),
                Some(i) => {
                    keys.refuse(PATTERN, format!("says of layer {i} what this engine does not run: {}", every(global_every)))
                }
            };
        }
    }
    match keys.opt_count(PATTERN)?.filter(|&n| n != 0) {
        Some(n) if n != global_every => {
            keys.refuse(PATTERN, format!("is {n}, which this engine does not run: {}", every(global_every)))
        }
        _ => Ok(Some(window)),
    }
}

fn every(n: usize) -> String {
    let all = match n {
        0 => "all layers have the window".to_owned(),
        n => format!("every {n}th layer is without the window"),
    };
    format!("here {all}; use another model of the family")
}

/// How layers with a window turn, if not as the others do.
fn local_rope(keys: &Keys, rope: &RopeConfig) -> Result<Option<RopeConfig>> {
    let said = keys.opt_float("rope.freq_base_swa")?;
    Ok(match (keys.arch.local_base, said) {
        (Some(usual), said) => Some(RopeConfig { freq_base: said.unwrap_or(usual), scaling: RopeScaling::None, ..rope.clone() }),
        (None, Some(freq_base)) => Some(RopeConfig { freq_base, ..rope.clone() }),
        (None, None) => None,
    })
}

fn soft_caps(keys: &Keys) -> Result<Option<SoftCaps>> {
    let Some(usual) = keys.arch.soft_caps else { return Ok(None) };
    let [scores, logits] = CAPS.map(|name| keys.opt_float(name));
    Ok(Some(SoftCaps { scores: scores?.unwrap_or(usual.scores), logits: logits?.unwrap_or(usual.logits) }))
}

/// What RoPE's frequencies are divided by within the original context, and beyond it.
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

fn rope_scaling(keys: &Keys, n_ctx: u32) -> Result<RopeScaling> {
    const TYPE: &str = "rope.scaling.type";
    const MIX: &str = "rope.scaling.yarn_ext_factor";
    // A factor of 0 or -1 stands for none.
    let factor = keys.opt_float("rope.scaling.factor")?.filter(|&f| f != 0.0 && f != -1.0).unwrap_or(1.0);
    // Without a type a factor means linear scaling; the type `none` switches it off.
    let scaling = match keys.file.opt_str(&keys.key(TYPE))?.unwrap_or("linear") {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => RopeScaling::Yarn {
            factor,
            n_ctx_orig: keys.opt_count("rope.scaling.original_context_length")?.filter(|&n| n > 0).map_or(n_ctx, |n| n as u32),
            beta_fast: keys.opt_float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.opt_float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        },
        kind => {
            return keys
                .refuse(TYPE, format!("is '{}', which this engine does not run; use a model without it", printable(kind)));
        }
    };
    // How much of YaRN's ramp is mixed in: all, where there is scaling. Below 0 stands for that.
    let usual = if let RopeScaling::Yarn { .. } = scaling { 1.0 } else { 0.0 };
    match keys.opt_float(MIX)?.filter(|&mix| mix >= 0.0 && mix != usual && scaling != RopeScaling::None) {
        Some(mix) => keys.refuse(MIX, format!("is {mix}, and {usual} is what this engine runs; use a model without it")),
        None => Ok(scaling),
    }
}
