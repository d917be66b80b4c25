//! The numbers of a model, from the metadata of its file, checked to fit each other. What is asked for and not done
//! here is refused by name: a model is never run approximately.

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::kernels::{BLOCK, RopeOrder};
use crate::kv::layout::{AttnLayer, MAX_HEAD_DIM, MAX_HEAD_KV, Window};

use super::arch::{Arch, ModelLayer, SoftCaps};

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
        let name = file.str("general.architecture")?;
        let arch = Arch::by_name(name).ok_or_else(|| {
            refuse(format!("architecture '{}' is not supported; this engine runs: {}", printable(name), Arch::known()))
        })?;
        let key = |name: &str| format!("{}.{name}", arch.name);
        let count = |name: &str| -> Result<usize> {
            match file.u32(&key(name))? {
                0 => Err(refuse(format!("{} is 0", key(name)))),
                n => Ok(n as usize),
            }
        };
        refuse_unknown_features(file, arch)?;
        let n_embd = count("embedding_length")?;
        let n_head = count("attention.head_count")?;
        let n_layer = count("block_count")?;
        let (n_head_kv, without) = kv_heads(file, arch, n_layer, n_head)?;
        let conv = match arch.short_conv {
            true => Some(ConvConfig { n_tap: count("shortconv.l_cache")?, layers: without }),
            false => None,
        };
        let head_dim = match file.opt_u32(&key("attention.key_length"))? {
            Some(n) => n as usize,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(refuse(format!("{n_head} heads do not divide an embedding of {n_embd}"))),
        };
        let value_dim = file.opt_u32(&key("attention.value_length"))?.map_or(head_dim, |n| n as usize);
        let n_rot = file.opt_u32(&key("rope.dimension_count"))?.map_or(head_dim, |n| n as usize);
        let vocab = file.strings("tokenizer.ggml.tokens")?.len();
        let rope = RopeConfig {
            order: arch.rope_order,
            n_rot,
            freq_base: file.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            scaling: rope_scaling(file, arch, count("context_length")? as u32)?,
            attn_factor: file.opt_f32(&key("rope.scaling.attn_factor"))?.unwrap_or(1.0),
        };
        let n_ctx = context(file, arch, count("context_length")?)?;
        let window = window(file, arch, n_ctx)?;
        let score_dim = if n_layer == arch.wide_scale_layers { n_embd / n_head } else { head_dim };
        let config = Config {
            n_layer,
            conv,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: count("feed_forward_length")?,
            n_vocab: vocab,
            n_ctx,
            rms_eps: file.f32(&key("attention.layer_norm_rms_epsilon"))?,
            local_rope: window
                .filter(|window| !window.is_everywhere())
                .map(|_| local_rope(file, arch, &rope))
                .transpose()?
                .flatten(),
            rope,
            window,
            q_scale: 1.0 / (score_dim as f32).sqrt(),
            soft_caps: soft_caps(file, arch)?,
            arch,
        };
        let c = &config;
        let ropes = || [Some(&c.rope), c.local_rope.as_ref()].into_iter().flatten();
        let caps = c.soft_caps.map_or([1.0; 2], |caps| [caps.scores, caps.logits]);
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
        match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, what)) => Err(refuse(format!("the metadata asks for {what}; this engine cannot run that"))),
            None => Ok(config),
        }
    }
}

/// KV heads of a layer, and which layers have none. One number for all layers, or a list with one for each.
fn kv_heads(file: &GgufFile, arch: &Arch, n_layer: usize, n_head: usize) -> Result<(usize, Box<[bool]>)> {
    let key = format!("{}.attention.head_count_kv", arch.name);
    let refuse = |what: String| Err(Error::unsupported(file.path(), format!("{key} {what}")));
    if !matches!(file.get(&key), Some(Value::Array(_))) {
        let n = file.opt_u32(&key)?.map_or(n_head, |n| n as usize);
        // So many layers no file holds; `from_gguf` says so.
        return Ok((n, vec![false; n_layer.min(1 << 16)].into()));
    }
    let of_layers = file.u32s(&key)?;
    if of_layers.len() != n_layer {
        return refuse(format!("has {} values for {n_layer} layers: the file is damaged; fetch it again", of_layers.len()));
    }
    let without: Box<[bool]> = of_layers.clone().map(|n| n == 0).collect();
    if !arch.short_conv && without.contains(&true) {
        return refuse("says that a layer has no KV heads, which this family does not know".into());
    }
    let mut with = of_layers.filter(|&n| n > 0);
    let Some(n) = with.next() else { return refuse("gives KV heads to no layer; this engine needs one that has some".into()) };
    match with.find(|&other| other != n) {
        Some(other) => refuse(format!("gives {n} KV heads to one layer and {other} to another, which this engine does not run")),
        None => Ok((n as usize, without)),
    }
}

/// A name from the file as part of one line: control characters escaped, cut after 80 characters.
pub(super) fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
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
fn context(file: &GgufFile, arch: &Arch, trained: usize) -> Result<usize> {
    let short = match file.tensor(SHORT_FACTORS) {
        Some(_) => Some(file.u32(&format!("{}.rope.scaling.original_context_length", arch.name))? as usize),
        None => None,
    };
    let n_ctx = short.map_or(trained, |short| trained.min(short));
    if n_ctx < trained {
        log::info!("of a context of {trained} tokens {n_ctx} are used: the rest has other RoPE factors");
    }
    Ok(n_ctx)
}

/// The window of a family that has layers with one among layers without, or of a file that gives one to all layers.
fn window(file: &GgufFile, arch: &Arch, n_ctx: usize) -> Result<Option<Window>> {
    let key = |name: &str| format!("{}.attention.{name}", arch.name);
    let n_tok = file.opt_u32(&key("sliding_window"))?.map(|n| n as usize).filter(|&n| n > 0);
    if arch.global_every == 0 {
        return Ok(n_tok.filter(|&n| n < n_ctx).map(|n_tok| Window { n_tok, global_every: 0 }));
    }
    let pattern = file.opt_u32(&key("sliding_window_pattern"))?;
    if pattern.is_some_and(|n| n as usize != arch.global_every) {
        let what = format!(
            "{} is another than {}, the one of this family that this engine runs; use another model of it",
            key("sliding_window_pattern"),
            arch.global_every
        );
        return Err(Error::unsupported(file.path(), what));
    }
    Ok(n_tok.map(|n_tok| Window { n_tok, global_every: arch.global_every }))
}

/// How layers with a window turn, if not as the others do.
fn local_rope(file: &GgufFile, arch: &Arch, rope: &RopeConfig) -> Result<Option<RopeConfig>> {
    let said = file.opt_f32(&format!("{}.rope.freq_base_swa", arch.name))?;
    Ok(match (arch.local_base, said) {
        (Some(usual), said) => Some(RopeConfig { freq_base: said.unwrap_or(usual), scaling: RopeScaling::None, ..rope.clone() }),
        (None, Some(freq_base)) => Some(RopeConfig { freq_base, ..rope.clone() }),
        (None, None) => None,
    })
}

fn soft_caps(file: &GgufFile, arch: &Arch) -> Result<Option<SoftCaps>> {
    let Some(usual) = arch.soft_caps else { return Ok(None) };
    let cap = |name: &str, usual: f32| Ok::<_, Error>(file.opt_f32(&format!("{}.{name}", arch.name))?.unwrap_or(usual));
    let scores = cap("attn_logit_softcapping", usual.scores)?;
    Ok(Some(SoftCaps { scores, logits: cap("final_logit_softcapping", usual.logits)? }))
}

/// What RoPE's frequencies are divided by within the original context, and beyond it.
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

fn rope_scaling(file: &GgufFile, arch: &Arch, n_ctx: u32) -> Result<RopeScaling> {
    let key = |name: &str| format!("{}.{name}", arch.name);
    let float = |name: &str| file.opt_f32(&key(name));
    // The second is the older name. A factor of 0 stands for none.
    let factor = match float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => float("rope.scale_linear")?,
    };
    let factor = factor.filter(|&f| f != 0.0).unwrap_or(1.0);
    // Without a type a factor means linear scaling; the type `none` switches it off.
    match file.opt_str(&key("rope.scaling.type"))?.unwrap_or("linear") {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor,
            n_ctx_orig: file.opt_u32(&key("rope.scaling.original_context_length"))?.unwrap_or(n_ctx),
            beta_fast: float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        }),
        kind => Err(Error::unsupported(
            file.path(),
            format!(
                "{} asks for RoPE scaling '{}', which this engine does not run; use a model without it",
                key("rope.scaling.type"),
                printable(kind)
            ),
        )),
    }
}

/// Keys that change the computation and are not computed here.
fn refuse_unknown_features(file: &GgufFile, arch: &Arch) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", arch.name);
    let refuse = |name: &str, what: &str| {
        Err(Error::unsupported(
            file.path(),
            format!("{} asks for {what}, which this engine does not run; use a model without it", key(name)),
        ))
    };
    if file.opt_u32(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return refuse("expert_count", "a mixture of experts");
    }
    if file.opt_bool(&key("attention.causal"))? == Some(false) {
        return refuse("attention.causal", "attention to later tokens");
    }
    let scales = ["logit_scale", "attention.scale", "residual_scale", "embedding_scale"];
    let yarn = ["rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_log_multiplier"];
    for name in scales.iter().chain(&yarn) {
        if file.opt_f32(&key(name))?.is_some_and(|f| f != 0.0 && f != 1.0) {
            return refuse(name, "a scale");
        }
    }
    let caps: &[&str] = if arch.soft_caps.is_some() { &[] } else { &["final_logit_softcapping", "attn_logit_softcapping"] };
    for name in ["attention.clamp_kqv"].iter().chain(caps) {
        if file.opt_f32(&key(name))?.is_some_and(|f| f != 0.0) {
            return refuse(name, "a clamp");
        }
    }
    Ok(())
}
