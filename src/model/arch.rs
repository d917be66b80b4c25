//! The families of models: one line of a table each, saying in what a family differs from Llama. What is not a field here
//! is the same for all: RMSNorm before attention and before a gated FFN, RoPE, grouped queries, no bias on other matrices.
//! A family that is not in the table is refused by name.

use crate::kernels::RopeOrder::{self, Neox, Norm};

/// A layer of the model, whatever mixes its tokens. (`kv::AttnLayer` counts those with keys and values.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLayer(pub usize);

#[derive(Debug, PartialEq)]
pub struct Arch {
    /// `general.architecture`: also the prefix of the other keys.
    pub name: &'static str,
    pub rope_order: RopeOrder,
    /// Every n-th layer leaves queries and keys unturned and so knows no positions; 0: no layer does.
    pub unturned_every: usize,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Each head of queries and keys is normed by itself before it is turned.
    pub qk_norm: bool,
    /// `attn_qkv` holds the rows of Q, K and V, `ffn_up` those of gate and up.
    pub fused: bool,
    /// Every n-th layer sees all tokens, the others those of a sliding window; 0: all layers are alike.
    pub global_every: usize,
    /// The RoPE base of layers with a window, where it is not that of the others; their positions are not scaled then.
    pub local_base: Option<f32>,
    /// The FFN's gate is a GELU, where others have SiLU; embeddings are multiplied by `sqrt(n_embd)`.
    pub is_gemma: bool,
    /// What attention and FFN add to the residual stream is normed before.
    pub post_norm: bool,
    /// Scores and logits are capped softly, at these where the file does not say.
    pub soft_caps: Option<SoftCaps>,
    /// Layers without KV heads have a short convolution in place of attention; the output norm is named as if it were the
    /// embeddings'.
    pub short_conv: bool,
    /// With this many layers scores are divided by the root of `n_embd / n_head` instead of that of `head_dim`.
    pub wide_scale_layers: usize,
}

/// `cap * tanh(x / cap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftCaps {
    pub scores: f32,
    pub logits: f32,
}

const LLAMA: Arch = Arch {
    name: "llama",
    rope_order: Norm,
    unturned_every: 0,
    qkv_bias: false,
    qk_norm: false,
    fused: false,
    global_every: 0,
    local_base: None,
    is_gemma: false,
    post_norm: false,
    soft_caps: None,
    short_conv: false,
    wide_scale_layers: 0,
};

const GEMMA: Arch = Arch { name: "gemma", rope_order: Neox, is_gemma: true, ..LLAMA };
const GEMMA2: Arch = Arch {
    name: "gemma2",
    post_norm: true,
    global_every: 2,
    soft_caps: Some(SoftCaps { scores: 50.0, logits: 30.0 }),
    wide_scale_layers: 46,
    ..GEMMA
};
const GEMMA3: Arch = Arch {
    name: "gemma3",
    qk_norm: true,
    post_norm: true,
    global_every: 6,
    local_base: Some(10_000.0),
    wide_scale_layers: 62,
    ..GEMMA
};

const ARCHS: [Arch; 9] = [
    LLAMA,
    Arch { name: "qwen2", rope_order: Neox, qkv_bias: true, ..LLAMA },
    Arch { name: "qwen3", rope_order: Neox, qk_norm: true, ..LLAMA },
    Arch { name: "smollm3", unturned_every: 4, ..LLAMA },
    Arch { name: "phi3", rope_order: Neox, fused: true, ..LLAMA },
    GEMMA,
    GEMMA2,
    GEMMA3,
    Arch { name: "lfm2", rope_order: Neox, qk_norm: true, short_conv: true, ..LLAMA },
];

impl Arch {
    pub fn by_name(name: &str) -> Option<&'static Arch> {
        ARCHS.iter().find(|arch| arch.name == name)
    }

    pub fn known() -> String {
        ARCHS.each_ref().map(|arch| arch.name).join(", ")
    }

    /// Whether queries and keys of the layer are turned by their positions.
    pub fn turns(&self, ModelLayer(layer): ModelLayer) -> bool {
        self.unturned_every == 0 || !(layer + 1).is_multiple_of(self.unturned_every)
    }
}

#[cfg(test)]
#[path = "../../tests/unit/model/arch.rs"]
mod tests;
