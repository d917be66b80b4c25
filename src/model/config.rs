//! The numbers of a model, from the metadata of its file, checked to fit each other. What is asked for and not done
//! here is refused by name: a model is never run approximately.

use crate::error::{Error, Result};
use crate::gguf::GgufFile;
use crate::kernels::{BLOCK, RopeOrder};
use crate::kv::cache::MAX_HEAD_KV;

#[derive(Clone, Debug)]
pub struct Config {
    /// `general.architecture`: also the prefix of the other keys.
    pub arch: String,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub head_dim: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
    /// Positions the model was trained for.
    pub n_ctx: usize,
    pub rms_eps: f32,
    pub rope: RopeConfig,
}

#[derive(Clone, Debug)]
pub struct RopeConfig {
    pub order: RopeOrder,
    /// Elements of a head that are turned; the rest passes.
    pub n_rot: usize,
    pub freq_base: f32,
}

impl Config {
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    pub fn kv_dim(&self) -> usize {
        self.n_head_kv * self.head_dim
    }

    /// The widest row of activations that is quantised.
    pub fn max_cols(&self) -> usize {
        self.n_embd.max(self.q_dim()).max(self.n_ff)
    }

    pub fn from_gguf(file: &GgufFile) -> Result<Config> {
        let arch = file.str("general.architecture")?.to_owned();
        let refuse = |what: String| Error::unsupported(file.path(), what);
        if arch != "llama" {
            return Err(refuse(format!("architecture '{}' is not supported; this engine runs: llama", printable(&arch))));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let count = |name: &str| -> Result<usize> {
            match file.u32(&key(name))? {
                0 => Err(refuse(format!("{} is 0", key(name)))),
                n => Ok(n as usize),
            }
        };
        refuse_unknown_features(file, &arch)?;
        let n_embd = count("embedding_length")?;
        let n_head = count("attention.head_count")?;
        let n_head_kv = file.opt_u32(&key("attention.head_count_kv"))?.map_or(n_head, |n| n as usize);
        let head_dim = match file.opt_u32(&key("attention.key_length"))? {
            Some(n) => n as usize,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(refuse(format!("{n_head} heads do not divide an embedding of {n_embd}"))),
        };
        let value_dim = file.opt_u32(&key("attention.value_length"))?.map_or(head_dim, |n| n as usize);
        let n_rot = file.opt_u32(&key("rope.dimension_count"))?.map_or(head_dim, |n| n as usize);
        let vocab = file.strings("tokenizer.ggml.tokens")?.len();
        let config = Config {
            n_layer: count("block_count")?,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            n_ff: count("feed_forward_length")?,
            n_vocab: vocab,
            n_ctx: count("context_length")?,
            rms_eps: file.f32(&key("attention.layer_norm_rms_epsilon"))?,
            rope: RopeConfig {
                order: RopeOrder::Norm,
                n_rot,
                freq_base: file.opt_f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            },
            arch,
        };
        let c = &config;
        let wrong = [
            // Far beyond any model, and small enough that no product of them overflows.
            (
                c.n_layer > 1 << 16 || c.max_cols() > 1 << 24,
                format!("{} layers with rows of up to {} elements", c.n_layer, c.max_cols()),
            ),
            (n_head_kv == 0 || n_head % n_head_kv != 0, format!("{n_head} heads cannot share {n_head_kv} KV heads")),
            (n_head_kv > MAX_HEAD_KV, format!("{n_head_kv} KV heads, more than {MAX_HEAD_KV}")),
            (
                head_dim == 0 || head_dim % 8 != 0 || head_dim > 1024,
                format!("a head of {head_dim} elements: must be a multiple of 8, 1024 at most"),
            ),
            (value_dim != head_dim, format!("values of {value_dim} elements beside keys of {head_dim}")),
            (n_rot == 0 || n_rot % 2 != 0 || n_rot > head_dim, format!("RoPE over {n_rot} elements of a head of {head_dim}")),
            (
                c.n_embd % BLOCK != 0 || c.q_dim() % BLOCK != 0 || c.n_ff % BLOCK != 0,
                format!("rows of {}, {} and {} elements: each must be a multiple of {BLOCK}", c.n_embd, c.q_dim(), c.n_ff),
            ),
            (!(c.rms_eps.is_finite() && c.rms_eps >= 0.0), format!("an RMSNorm epsilon of {}", c.rms_eps)),
            (!(c.rope.freq_base.is_finite() && c.rope.freq_base > 0.0), format!("a RoPE base of {}", c.rope.freq_base)),
            (c.n_ctx < 8 || c.n_ctx > 1 << 24, format!("a context of {} tokens", c.n_ctx)),
        ];
        match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, what)) => Err(refuse(format!("the metadata asks for {what}; this engine cannot run that"))),
            None => Ok(config),
        }
    }
}

/// A name from the file as part of one line: control characters escaped, cut after 80 characters.
pub(super) fn printable(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Keys that change the computation and are not computed here.
fn refuse_unknown_features(file: &GgufFile, arch: &str) -> Result<()> {
    let refuse = |key: &str, what: &str| {
        Err(Error::unsupported(
            file.path(),
            format!("{key} asks for {what}, which this engine does not run; use a model without it"),
        ))
    };
    let key = |name: &str| format!("{arch}.{name}");
    for (name, what) in [("expert_count", "a mixture of experts"), ("attention.sliding_window", "a sliding window")] {
        if file.opt_u32(&key(name))?.is_some_and(|n| n > 0) {
            return refuse(&key(name), what);
        }
    }
    if file.opt_bool(&key("attention.causal"))? == Some(false) {
        return refuse(&key("attention.causal"), "attention to later tokens");
    }
    let scaling = file.opt_str(&key("rope.scaling.type"))?;
    if let Some(kind) = scaling.filter(|kind| *kind != "none") {
        return refuse(&key("rope.scaling.type"), &format!("RoPE scaling '{}'", printable(kind)));
    }
    let scales =
        ["rope.scale_linear", "rope.scaling.attn_factor", "logit_scale", "attention.scale", "residual_scale", "embedding_scale"];
    // Without a type a factor means linear scaling; the type `none` switches it off.
    let factor = if scaling.is_none() { &["rope.scaling.factor"][..] } else { &[] };
    for name in scales.iter().chain(factor) {
        if file.opt_f32(&key(name))?.is_some_and(|f| f != 0.0 && f != 1.0) {
            return refuse(&key(name), "a scale");
        }
    }
    for name in ["attention.clamp_kqv", "final_logit_softcapping", "attn_logit_softcapping"] {
        if file.opt_f32(&key(name))?.is_some_and(|f| f != 0.0) {
            return refuse(&key(name), "a clamp");
        }
    }
    Ok(())
}
