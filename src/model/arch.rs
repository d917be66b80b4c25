//! The families of models: one line of a table each, saying in what a family differs from Llama. What is not a field here
//! is the same for all: RMSNorm before attention and before a gated FFN, RoPE, grouped queries, no bias on other matrices.
//! A family that is not in the table is refused by name.

use crate::kernels::RopeOrder::{self, Neox, Norm};

/// A layer of the model, whatever mixes its tokens. (`kv::AttnLayer` counts those with keys and values.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLayer(pub usize);

/// Any number of layers.
pub const ANY: usize = usize::MAX;

#[derive(Debug, PartialEq)]
pub struct Arch {
    /// `general.architecture`: also the prefix of the other keys.
    pub name: &'static str,
    pub rope_order: RopeOrder,
    pub unturned: Unturned,
    /// Queries, keys and values have biases, in every file; those of other families have them where they are in the file.
    pub qkv_bias: bool,
    /// So have what attention gives, the router, and each expert's matrices.
    pub all_biased: bool,
    /// Each query head has a logit that joins its softmax and has no value (`attn_sinks`). Not the first tokens that an arena keeps.
    pub head_sinks: bool,
    /// The output is never the embeddings.
    pub untied: bool,
    pub qk_norm: QkNorm,
    pub norms: Norms,
    /// The tensor of the norm before the FFN, where there is one.
    pub ffn_norm: &'static str,
    pub activation: Activation,
    /// `ffn_up` holds the rows of gate and up.
    pub fused_up: bool,
    /// Every n-th layer sees all tokens, the others those of a sliding window; 0: all layers are alike.
    pub global_every: usize,
    /// With this many layers there must be a window; `ANY`: with any number.
    pub windowed_layers: usize,
    /// The window where a file names none.
    pub usual_window: Option<usize>,
    pub local_rope: LocalRope,
    pub scales: Scales,
    /// Scores and logits are capped softly, at these where the file does not say.
    pub soft_caps: Option<SoftCaps>,
    /// Queries grow with their position (`attention.temperature_scale`).
    pub query_growth: bool,
    pub recurrent: Recurrent,
    /// Layers may have heads of their own size where they have a window, the last ones may share keys and values of earlier ones, and
    /// each may be fed from a second table of embeddings; values are normed, and scores are not scaled.
    pub per_layer: bool,
    /// A mixture of experts in place of the FFN, but perhaps in the first layers, or beside it.
    pub experts: Option<Mixture>,
    pub output_norm: &'static str,
    /// With this many layers scores are divided by the root of `n_embd / n_head` instead of that of `head_dim`.
    pub wide_scale_layers: usize,
}

/// Layers that leave queries and keys unturned and so know no positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unturned {
    No,
    /// Every n-th.
    Every(usize),
    /// Those without a window, in a model that has layers with one.
    Global,
    /// All, where `rope.scaling.finetuned` is false.
    AsSaid,
}

/// What of queries and keys is normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    No,
    /// Each head by itself, before it is turned.
    Heads,
    /// Each head by itself, after it is turned.
    TurnedHeads,
    /// All heads of a token together, before they are turned.
    Rows,
}

/// Where the residual stream is normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// What attention and FFN read.
    Before,
    /// What they add.
    After,
    Both,
}

/// Of the FFN: SiLU and GELU of a gate that is multiplied with `up`, or a function of `up` alone, in an FFN without gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// SiLU of a steeper sigmoid, of a gate that is cut above; it is multiplied with `up` within limits plus 1.
    ClampedSilu,
    Gelu,
    /// The square of what is above 0.
    Relu2,
    /// xIELU (Huang & Schlag 2024, arXiv 2411.13010), by four numbers for each layer.
    Xielu,
}

impl Activation {
    pub fn is_gated(self) -> bool {
        matches!(self, Activation::Silu | Activation::ClampedSilu | Activation::Gelu)
    }

    /// What the name of an activation in a file begins with.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu | Activation::ClampedSilu => "silu",
            Activation::Gelu => "gelu",
            Activation::Relu2 => "relu2",
            Activation::Xielu => "xielu",
        }
    }
}

/// How layers with a window turn, among layers without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LocalRope {
    /// As the others do, but for a base that the file may give.
    Same,
    /// By this base where the file gives none, and by positions that are not scaled.
    Base(f32),
    /// By the base of the others and by positions that are not scaled.
    Unscaled,
    /// Over elements of their own, by a base that the file may give.
    Own,
}

/// What embeddings, scores, the residual stream's addends and logits are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    No,
    /// Embeddings with `sqrt(n_embd)`.
    RootOfWidth,
    /// All of them, as the file says.
    Granite,
    /// Likewise, with defaults for files that do not say it.
    MiniCpm,
}

/// What some layers have in place of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrent {
    No,
    /// Layers without KV heads have a short convolution.
    ShortConv,
    /// Layers without KV heads have Mamba-2.
    Mamba,
    /// All layers have Mamba-2 beside attention, which reads the same and adds to the same.
    MambaBeside,
    /// All but every n-th layer have a gated delta net; what attention gives in the others is gated too, by rows of `attn_q`.
    DeltaNet,
}

/// In what families with experts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts are chosen by probabilities plus a bias (`exp_probs_b`), the file says by what function these come of logits, and
    /// the first layers may have an FFN like others.
    pub biased: bool,
    pub shared: SharedExpert,
    /// A file may have none: its FFNs are like others.
    pub optional: bool,
}

impl Mixture {
    const PLAIN: Mixture = Mixture { biased: false, shared: SharedExpert::No, optional: false };
}

impl Recurrent {
    /// Whether layers without KV heads are those that have it.
    pub fn is_where_no_kv_heads_are(self) -> bool {
        matches!(self, Recurrent::ShortConv | Recurrent::Mamba)
    }

    pub fn is_mamba(self) -> bool {
        matches!(self, Recurrent::Mamba | Recurrent::MambaBeside)
    }
}

/// An expert that all tokens go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedExpert {
    No,
    /// Where the file gives its width.
    Optional,
    /// Multiplied by the sigmoid of a gate.
    Gated,
    /// It is an FFN like those of files without experts, and both have norms of their own (`ffn::Room::beside`).
    Beside,
}

/// `cap * tanh(x / cap)`; 0: none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftCaps {
    pub scores: f32,
    pub logits: f32,
}

const LLAMA: Arch = Arch {
    name: "llama",
    rope_order: Norm,
    unturned: Unturned::No,
    qkv_bias: false,
    all_biased: false,
    head_sinks: false,
    untied: false,
    qk_norm: QkNorm::No,
    norms: Norms::Before,
    ffn_norm: "ffn_norm",
    activation: Activation::Silu,
    fused_up: false,
    global_every: 0,
    windowed_layers: 0,
    usual_window: None,
    local_rope: LocalRope::Same,
    scales: Scales::No,
    soft_caps: None,
    query_growth: false,
    recurrent: Recurrent::No,
    per_layer: false,
    experts: None,
    output_norm: "output_norm",
    wide_scale_layers: 0,
};

const QWEN3: Arch = Arch { name: "qwen3", rope_order: Neox, qk_norm: QkNorm::Heads, ..LLAMA };
const GEMMA: Arch = Arch { name: "gemma", rope_order: Neox, activation: Activation::Gelu, scales: Scales::RootOfWidth, ..LLAMA };
const GEMMA2: Arch = Arch {
    name: "gemma2",
    norms: Norms::Both,
    global_every: 2,
    usual_window: Some(4096),
    soft_caps: Some(SoftCaps { scores: 50.0, logits: 30.0 }),
    wide_scale_layers: 46,
    ..GEMMA
};
const GEMMA3: Arch = Arch {
    name: "gemma3",
    qk_norm: QkNorm::Heads,
    norms: Norms::Both,
    global_every: 6,
    local_rope: LocalRope::Base(10_000.0),
    wide_scale_layers: 62,
    ..GEMMA
};
const GEMMA4: Arch = Arch {
    name: "gemma4",
    qk_norm: QkNorm::Heads,
    norms: Norms::Both,
    local_rope: LocalRope::Own,
    soft_caps: Some(SoftCaps { scores: 0.0, logits: 30.0 }),
    per_layer: true,
    experts: Some(Mixture { shared: SharedExpert::Beside, optional: true, ..Mixture::PLAIN }),
    ..GEMMA
};
const LFM2: Arch = Arch { name: "lfm2", recurrent: Recurrent::ShortConv, output_norm: "token_embd_norm", ..QWEN3 };
const QWEN35: Arch = Arch { name: "qwen35", recurrent: Recurrent::DeltaNet, ffn_norm: "post_attention_norm", ..QWEN3 };
const GRANITE: Arch = Arch { name: "granite", unturned: Unturned::AsSaid, scales: Scales::Granite, ..LLAMA };
const EXAONE4: Arch =
    Arch { name: "exaone4", norms: Norms::After, unturned: Unturned::Global, global_every: 4, windowed_layers: 64, ..QWEN3 };
const GPT_OSS: Arch = Arch {
    name: "gpt-oss",
    rope_order: Neox,
    qkv_bias: true,
    all_biased: true,
    head_sinks: true,
    untied: true,
    ffn_norm: "post_attention_norm",
    activation: Activation::ClampedSilu,
    global_every: 2,
    windowed_layers: ANY,
    experts: Some(Mixture::PLAIN),
    ..LLAMA
};
const OLMO2: Arch = Arch {
    name: "olmo2",
    rope_order: Neox,
    qk_norm: QkNorm::Rows,
    norms: Norms::After,
    global_every: 4,
    local_rope: LocalRope::Unscaled,
    ..LLAMA
};

const ARCHS: &[Arch] = &[
    LLAMA,
    Arch { name: "qwen2", rope_order: Neox, qkv_bias: true, ..LLAMA },
    QWEN3,
    Arch { name: "smollm3", unturned: Unturned::Every(4), ..LLAMA },
    Arch { name: "phi3", rope_order: Neox, fused_up: true, ..LLAMA },
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    LFM2,
    QWEN35,
    Arch { name: "qwen3moe", experts: Some(Mixture::PLAIN), ..QWEN3 },
    Arch { name: "lfm2moe", experts: Some(Mixture { biased: true, ..Mixture::PLAIN }), ..LFM2 },
    Arch { name: "qwen35moe", experts: Some(Mixture { shared: SharedExpert::Gated, ..Mixture::PLAIN }), ..QWEN35 },
    GRANITE,
    Arch { name: "granitemoe", experts: Some(Mixture { shared: SharedExpert::Optional, ..Mixture::PLAIN }), ..GRANITE },
    Arch {
        name: "granitehybrid",
        recurrent: Recurrent::Mamba,
        experts: Some(Mixture { shared: SharedExpert::Optional, optional: true, ..Mixture::PLAIN }),
        ..GRANITE
    },
    Arch { name: "falcon-h1", rope_order: Neox, recurrent: Recurrent::MambaBeside, ..LLAMA },
    Arch { name: "minicpm", scales: Scales::MiniCpm, ..LLAMA },
    Arch { name: "mistral3", query_growth: true, ..LLAMA },
    Arch { name: "ernie4_5", ..LLAMA },
    Arch { name: "hunyuan-dense", qk_norm: QkNorm::TurnedHeads, ..QWEN3 },
    EXAONE4,
    OLMO2,
    Arch { name: "arcee", activation: Activation::Relu2, ..LLAMA },
    Arch { name: "apertus", activation: Activation::Xielu, ..QWEN3 },
    GPT_OSS,
    Arch { name: "seed_oss", rope_order: Neox, ffn_norm: "post_attention_norm", ..LLAMA },
];

/// Families that are near to one of these and are not run as if they were it, and why.
const REFUSED: [(&str, &str); 9] = [
    ("qwen3next", "its layers are those of qwen35 in other tensors"),
    ("qwen4exp", "it has hyper-connections and sparse attention"),
    ("granite_swa", "it has windows, a list of layers with RoPE, and sinks"),
    ("nemotron_h", "its layers have Mamba-2, attention or an FFN, and no two of them"),
    ("gemma3n", "it feeds every layer from a second table of embeddings"),
    ("gemma4-assistant", "it guesses for another model, whose keys and values it reads"),
    ("ernie4_5-moe", "its layers with experts are spread as this engine does not know"),
    ("hunyuan-moe", "its experts are not computed here"),
    ("phimoe", "its experts are not computed here"),
];

impl Arch {
    /// Whether all keys are of about the same length.
    pub fn norms_keys(&self) -> bool {
        self.qk_norm != QkNorm::No
    }

    /// Why a family is not run that is near to one that is.
    pub fn why_refused(name: &str) -> Option<&'static str> {
        REFUSED.iter().find(|refused| refused.0 == name).map(|refused| refused.1)
    }

    pub fn by_name(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.name == name)
    }

    pub fn known() -> String {
        ARCHS.iter().map(|arch| arch.name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
#[path = "../../tests/unit/model/arch.rs"]
mod tests;
