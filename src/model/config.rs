//! The numbers of a model, from the metadata of its file (`reading`), checked to fit each other. What is asked for and not done
//! here is refused by name: a model is never run approximately.

use crate::kernels::{BLOCK, RopeOrder, Xielu};
use crate::kv::layout::{AttnLayer, LayerShape, MAX_HEAD_DIM, MAX_HEAD_KV, Window};

use super::arch::{Arch, ModelLayer, QkNorm, Recurrent, SoftCaps};
use super::keys::MAX_LAYERS;

#[derive(Clone, Debug)]
pub struct Config {
    pub arch: &'static Arch,
    pub n_layer: usize,
    /// Blocks of the file behind the layers, which draft tokens for others to check: they are left unread.
    pub n_draft: usize,
    pub recurrent: Option<RecurrentLayers>,
    pub experts: Option<ExpertConfig>,
    pub n_embd: usize,
    pub n_head: usize,
    /// KV heads and the elements of a head, in layers without a window and
    pub n_head_kv: usize,
    pub head_dim: usize,
    /// in those with one, where the file gives both.
    pub local_heads: Option<LayerShape>,
    /// The last layers, which have no keys and values and look at those of others.
    pub n_shared: usize,
    /// Width of what each layer is fed of the second table of embeddings; 0: there is none.
    pub n_embd_layer: usize,
    /// Width of the widest FFN.
    pub n_ff: usize,
    /// Of each layer's, of an expert's where there are some in its place, `[n_layer]`
    pub ffs: Box<[usize]>,
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
    pub query_growth: Option<QueryGrowth>,
    /// Which layers turn queries and keys; `[n_layer]`
    pub turns: Box<[bool]>,
    pub multipliers: Multipliers,
    /// `[n_layer]`, in families whose FFN is activated so; else empty.
    pub xielus: Box<[Xielu]>,
    pub soft_caps: Option<SoftCaps>,
}

/// What numbers of the pass are multiplied with; 1: they stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    pub embeddings: f32,
    /// What attention and FFN add.
    pub addends: f32,
    pub logits: f32,
}

/// A query at position `p` is multiplied by `1 + scale * ln(1 + floor(p / n_ctx))`, which is 1 within the first `n_ctx` tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    pub scale: f32,
    pub n_ctx: u32,
}

impl QueryGrowth {
    pub fn at(&self, position: u32) -> f32 {
        1.0 + self.scale * libm::log(1.0 + f64::from(position / self.n_ctx)) as f32
    }
}

/// Mixtures of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertConfig {
    pub n_expert: usize,
    /// Of them each token goes through so many.
    pub n_used: usize,
    /// Width of an expert, and of the one that all tokens share; 0: there is none.
    pub n_ff: usize,
    pub n_shared_ff: usize,
    /// The one that all share is an FFN as in layers without experts, with norms of its own.
    pub is_beside: bool,
    /// The first layers have an FFN without experts.
    pub n_dense: usize,
    /// Whether probabilities are sigmoids of logits, and not their softmax.
    pub is_sigmoid: bool,
    /// What the weights of the chosen are multiplied with, which together are 1.
    pub weight_scale: f32,
}

/// The layers that have a recurrence.
#[derive(Clone, Debug)]
pub struct RecurrentLayers {
    pub kind: Recurrence,
    /// `[n_layer]`
    pub layers: Box<[bool]>,
    /// They have attention too, and not a recurrence in place of it.
    pub is_beside: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Recurrence {
    /// A short convolution, channel by channel, in which an output sees `n_tap` tokens, its own included.
    ShortConv {
        n_tap: usize,
    },
    DeltaNet(DeltaShape),
    Mamba(MambaShape),
}

/// Mamba-2 behind a short convolution.
#[derive(Clone, Copy, Debug)]
pub struct MambaShape {
    pub n_tap: usize,
    /// Channels: what a layer gives before its last matrix.
    pub inner_dim: usize,
    /// Numbers that a channel remembers.
    pub n_state: usize,
    /// Heads, and groups of neighbouring heads that are written and read along the same vectors.
    pub n_head: usize,
    pub n_group: usize,
}

impl MambaShape {
    /// What goes through the convolution: channels, and two vectors of each group.
    pub fn conv_dim(&self) -> usize {
        self.inner_dim + 2 * self.n_group * self.n_state
    }
}

/// A gated delta net behind a short convolution.
#[derive(Clone, Copy, Debug)]
pub struct DeltaShape {
    pub n_tap: usize,
    /// Of queries, keys and values.
    pub head_dim: usize,
    /// Heads of queries and keys.
    pub n_k_head: usize,
    pub n_v_head: usize,
}

impl DeltaShape {
    /// What a layer gives before its last matrix.
    pub fn v_dim(&self) -> usize {
        self.n_v_head * self.head_dim
    }

    /// What goes through the convolution: queries, keys and values.
    pub fn conv_dim(&self) -> usize {
        (2 * self.n_k_head + self.n_v_head) * self.head_dim
    }
}

impl Recurrence {
    fn n_tap(&self) -> usize {
        match self {
            Recurrence::ShortConv { n_tap } => *n_tap,
            Recurrence::DeltaNet(DeltaShape { n_tap, .. }) | Recurrence::Mamba(MambaShape { n_tap, .. }) => *n_tap,
        }
    }
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
        /// By how much of the logarithm of the factor the magnitude is taken back.
        log_multiplier: f32,
    },
}

impl Config {
    /// The KV heads of layers without a window, and where those with one have others, of those.
    pub fn heads(&self) -> LayerShape {
        LayerShape { n_head_kv: self.n_head_kv, head_dim: self.head_dim }
    }

    /// The KV heads of a layer, those that it shares included.
    pub fn heads_of(&self, layer: usize) -> LayerShape {
        self.local_heads.filter(|_| self.has_window(layer)).unwrap_or(self.heads())
    }

    /// Of a model whose layers all have attention: whether one of them sees the latest tokens only.
    pub fn has_window(&self, layer: usize) -> bool {
        self.window.is_some_and(|window| window.limits(AttnLayer(layer)))
    }

    /// The widest rows of queries and of keys.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim.max(self.local_heads.map_or(0, |local| local.head_dim))
    }
    pub fn kv_dim(&self) -> usize {
        self.heads().row_dim().max(self.local_heads.map_or(0, |local| local.row_dim()))
    }

    /// Layers that hold something of the stream: all but those that share keys and values.
    pub fn n_holding(&self) -> usize {
        self.n_layer - self.n_shared
    }

    /// Whose keys and values a layer shares: of the last that holds some and has a window, or of the last that has none.
    pub fn shares(&self, layer: usize) -> Option<AttnLayer> {
        let n_holding = self.n_holding();
        (layer >= n_holding).then(|| AttnLayer(n_holding - if self.has_window(layer) { 2 } else { 1 }))
    }

    /// Layers that have a recurrence.
    pub fn n_recurrent_layer(&self) -> usize {
        self.recurrent.iter().flat_map(|recurrent| &recurrent.layers).filter(|&&is_recurrent| is_recurrent).count()
    }

    /// Layers that have keys and values. In the cache they are counted by themselves.
    pub fn n_attn_layer(&self) -> usize {
        self.n_holding() - if self.beside().is_some() { 0 } else { self.n_recurrent_layer() }
    }

    /// Whether a layer has a recurrence in place of attention.
    pub fn is_recurrent(&self, layer: usize) -> bool {
        self.recurrent.as_ref().is_some_and(|recurrent| recurrent.layers[layer] && !recurrent.is_beside)
    }

    /// Mamba-2 that the layers have beside attention.
    pub fn beside(&self) -> Option<MambaShape> {
        match self.recurrent.as_ref().filter(|recurrent| recurrent.is_beside)?.kind {
            Recurrence::Mamba(shape) => Some(shape),
            _ => None,
        }
    }

    /// The layers that have keys and values, as the cache counts them and as the model does.
    pub fn attn_layers(&self) -> impl Iterator<Item = (AttnLayer, ModelLayer)> {
        (0..self.n_holding()).filter(|&i| !self.is_recurrent(i)).enumerate().map(|(attn, i)| (AttnLayer(attn), ModelLayer(i)))
    }

    /// Whether what attention gives is multiplied by the sigmoid of a gate, whose rows in `attn_q` are behind those of each head.
    pub fn gates_attention(&self) -> bool {
        self.arch.recurrent == Recurrent::DeltaNet
    }

    /// The widest row that attention gives, or a recurrence in place of it.
    pub fn mixed_dim(&self) -> usize {
        match self.recurrent.as_ref().map(|recurrent| recurrent.kind) {
            Some(Recurrence::DeltaNet(shape)) => self.q_dim().max(shape.v_dim()),
            Some(Recurrence::Mamba(shape)) if self.beside().is_none() => self.q_dim().max(shape.inner_dim),
            _ => self.q_dim(),
        }
    }

    /// The widest row of activations that is quantised.
    pub fn max_cols(&self) -> usize {
        self.n_embd.max(self.mixed_dim()).max(self.n_ff).max(self.beside().map_or(0, |shape| shape.inner_dim))
    }

    /// What does not fit together or is beyond this engine.
    pub(super) fn wrong(&self, value_dims: [usize; 2]) -> Option<String> {
        let c = self;
        let ropes = || [Some(&c.rope), c.local_rope.as_ref()].into_iter().flatten();
        let caps = c.soft_caps.map_or([1.0; 2], |caps| [caps.scores, caps.logits]);
        let n_tap = c.recurrent.as_ref().map_or(0, |recurrent| recurrent.kind.n_tap());
        let wrong = [
            // Far beyond any model, and small enough that no product of them overflows.
            (
                c.n_layer > MAX_LAYERS || c.max_cols() > 1 << 24,
                format!("{} layers with rows of up to {} elements", c.n_layer, c.max_cols()),
            ),
            (
                c.arch.recurrent == Recurrent::ShortConv && c.q_dim() != c.n_embd,
                format!("heads of {} elements together beside convolutions of {}", c.q_dim(), c.n_embd),
            ),
            (c.recurrent.is_some() && !(2..=64).contains(&n_tap), format!("a convolution over {n_tap} tokens")),
            (
                c.experts.is_some_and(|e| {
                    e.n_used > e.n_expert
                        || e.n_expert > 1 << 12
                        || [e.n_ff, e.n_shared_ff].iter().any(|n| n % BLOCK != 0)
                        || !sound(e.weight_scale)
                }),
                c.experts.map_or(String::new(), |e| {
                    let ExpertConfig { n_expert, n_used, n_ff, n_shared_ff, weight_scale, .. } = e;
                    format!("{n_used} (expert_used_count) of {n_expert} experts (expert_count) with rows of {n_ff}, a shared one with {n_shared_ff}, and weights times {weight_scale} (expert_weights_scale)")
                }),
            ),
            (c.n_attn_layer() == 0, "attention in no layer".into()),
            wrong_heads("", c.n_head, c.heads(), value_dims[0], c.rope.n_rot),
            c.local_heads.map_or_else(Default::default, |local| {
                wrong_heads("_swa", c.n_head, local, value_dims[1], c.local_rope.as_ref().map_or(0, |rope| rope.n_rot))
            }),
            (
                c.n_embd_layer % BLOCK != 0 || c.n_embd_layer > c.n_embd || c.n_embd_layer.saturating_mul(c.n_layer) > 1 << 24,
                format!("{} elements of a second embedding for each of {} layers", c.n_embd_layer, c.n_layer),
            ),
            (
                c.n_shared > 0
                    && (c.n_shared + 2 > c.n_layer || c.has_window(c.n_holding() - 1) || !c.has_window(c.n_holding() - 2)),
                format!(
                    "{} of {} layers that share keys and values, behind others than one with a window and one without",
                    c.n_shared, c.n_layer
                ),
            ),
            (
                c.n_embd % BLOCK != 0 || c.q_dim() % BLOCK != 0 || c.ffs.iter().any(|n| n % BLOCK != 0),
                format!(
                    "rows of {} (embedding_length), {} (all heads) and {:?} (feed_forward_length) elements: each must be a multiple of {BLOCK}",
                    c.n_embd,
                    c.q_dim(),
                    few(&c.ffs)
                ),
            ),
            (!(c.rms_eps.is_finite() && c.rms_eps >= 0.0), format!("an RMSNorm epsilon of {} (layer_norm_rms_epsilon)", c.rms_eps)),
            (ropes().any(|r| !(r.freq_base.is_finite() && r.freq_base > 0.0)), format!("a RoPE base of {} (rope.freq_base)", c.rope.freq_base)),
            (!(1e-3..=1e3).contains(&c.rope.attn_factor), format!("turned keys times {} (rope.scaling.attn_factor)", c.rope.attn_factor)),
            (
                c.arch.qk_norm == QkNorm::TurnedHeads && (c.rope.attn_factor != 1.0 || c.rope.scaling.magnitude() != 1.0),
                "turned keys of another magnitude before they are normed".into(),
            ),
            (!c.multipliers.are_sound() || !sound(c.q_scale), {
                let Multipliers { embeddings, addends, logits } = c.multipliers;
                format!("embeddings times {embeddings} (embedding_scale), addends times {addends} (residual_scale), logits times {logits} (logit_scale) and queries times {} (attention.scale)", c.q_scale)
            }),
            (c.query_growth.is_some_and(|g| !sound(g.scale)), format!("queries that grow by {} (attention.temperature_scale)", c.query_growth.map_or(0.0, |g| g.scale))),
            (c.xielus.iter().any(|x| !x.is_sound()), "an xIELU (xielu.alpha_n, alpha_p, beta, eps) that is no number or huge".into()),
            (!c.rope.scaling.is_sound(), c.rope.scaling.described()),
            (
                !caps.iter().all(|cap| (1e-3..=1e6).contains(cap) || *cap == 0.0 && c.arch.per_layer),
                format!("soft caps of {} (attn_logit_softcapping) and {} (final_logit_softcapping)", caps[0], caps[1]),
            ),
            (c.n_ctx < 8 || c.n_ctx > 1 << 24, format!("a context of {} tokens (context_length)", c.n_ctx)),
            (c.window.is_some_and(|w| w.is_everywhere() && w.n_tok < 8), "a window of less than 8 tokens in all layers".into()),
        ];
        wrong.into_iter().find(|(is_wrong, _)| *is_wrong).map(|(_, what)| what)
    }
}

/// Heads that do not fit together or are beyond this engine, and what is wrong with them; `which` ends the names of their keys.
fn wrong_heads(
    which: &str,
    n_head: usize,
    LayerShape { n_head_kv, head_dim }: LayerShape,
    value_dim: usize,
    n_rot: usize,
) -> (bool, String) {
    let wrong = [
        (
            n_head_kv == 0 || n_head % n_head_kv != 0,
            format!("{n_head} heads (attention.head_count) that share {n_head_kv} KV heads (attention.head_count_kv)"),
        ),
        (n_head_kv > MAX_HEAD_KV, format!("{n_head_kv} KV heads, more than {MAX_HEAD_KV}")),
        (
            head_dim == 0 || head_dim % 8 != 0 || head_dim > MAX_HEAD_DIM,
            format!(
                "a head of {head_dim} elements (attention.key_length{which}): must be a multiple of 8, {MAX_HEAD_DIM} at most"
            ),
        ),
        (
            value_dim != head_dim,
            format!(
                "values of {value_dim} elements (attention.value_length{which}) beside keys of {head_dim} (attention.key_length{which})"
            ),
        ),
        (
            n_rot == 0 || n_rot % 2 != 0 || n_rot > head_dim,
            format!("RoPE over {n_rot} elements (rope.dimension_count{which}) of a head of {head_dim}"),
        ),
        (n_head * head_dim % BLOCK != 0, format!("{n_head} heads of {head_dim} elements: together a multiple of {BLOCK}")),
    ];
    wrong.into_iter().find(|(is_wrong, _)| *is_wrong).unwrap_or_default()
}

/// A factor that cannot overflow what it is multiplied with.
fn sound(factor: f32) -> bool {
    (1e-6..=1e6).contains(&factor)
}

impl Multipliers {
    fn are_sound(&self) -> bool {
        [self.embeddings, self.addends, self.logits].into_iter().all(sound)
    }
}

/// The widths that occur, three at most.
fn few(ffs: &[usize]) -> Vec<usize> {
    let mut ffs = ffs.to_vec();
    ffs.sort_unstable();
    ffs.dedup();
    ffs.truncate(3);
    ffs
}

impl RopeScaling {
    fn is_sound(&self) -> bool {
        match *self {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => sound(factor),
            RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, log_multiplier } => {
                n_ctx_orig > 0 && [factor, beta_fast, beta_slow].into_iter().all(sound) && (0.0..=1e3).contains(&log_multiplier)
            }
        }
    }

    fn described(&self) -> String {
        match self {
            RopeScaling::None => "no RoPE scaling".into(),
            RopeScaling::Linear { factor } => format!("a linear RoPE scaling by {factor} (rope.scaling.factor)"),
            RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, log_multiplier } => format!(
                "a RoPE scaling by YaRN of {factor} (rope.scaling.factor) from {n_ctx_orig} tokens (original_context_length), with {beta_fast} (yarn_beta_fast), {beta_slow} (yarn_beta_slow) and {log_multiplier} (yarn_log_multiplier)"
            ),
        }
    }

    /// What turned queries and keys are multiplied with.
    pub fn magnitude(&self) -> f64 {
        match *self {
            RopeScaling::Yarn { factor, log_multiplier, .. } if factor > 1.0 => {
                let log = 0.1 * libm::log(f64::from(factor));
                (1.0 + log) / (1.0 + f64::from(log_multiplier) * log)
            }
            _ => 1.0,
        }
    }
}
