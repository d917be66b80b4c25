//! The short of a model file: what a user wants to know before running it, from `lowkey info`. Owns the names of the fields
//! of `--json`'s `summary`, which stay; a field that a file does not say, or that only a model that runs here has, is null.
//! Refuses to estimate quality: bits and sizes are facts of the file, the rest is a matter of trying.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::gguf::GgufFile;
use crate::gguf::quant::GgmlType;
use crate::kernels::Kernels;
use crate::kv::KvType;
use crate::model::arch::Recurrent;
use crate::model::config::{RopeConfig, RopeScaling};
use crate::model::forward::Model;
use crate::session::SessionParams;
use crate::units::Bytes;

use super::args::SessionArgs;

/// The arena that `tokens_in_4mib` is about: small enough for any board.
const SHOWN_BUDGET: u64 = 4 << 20;

#[derive(Serialize)]
pub struct Summary {
    architecture: Option<String>,
    name: Option<String>,
    licence: Option<String>,
    /// Elements of all tensors.
    n_params: u64,
    file_bytes: u64,
    weight_types: Vec<WeightType>,
    tokenizer: Option<String>,
    pre_tokenizer: Option<String>,
    n_vocab: Option<usize>,
    has_chat_template: bool,
    /// Of models that run here.
    model: Option<Shape>,
    kv: Vec<Kv>,
}

#[derive(Serialize)]
struct WeightType {
    #[serde(rename = "type")]
    ty: &'static str,
    n_tensors: usize,
    n_elems: u64,
    bytes: u64,
    /// The default kernel set for it on this machine; null where none does.
    kernels: Option<&'static str>,
    /// Whether that is a vector kernel.
    is_fast: bool,
}

#[derive(Serialize)]
struct Shape {
    n_ctx: usize,
    n_layer: usize,
    n_embd: usize,
    n_ff: usize,
    n_head: usize,
    n_head_kv: usize,
    head_dim: usize,
    /// The same of layers with a sliding window, where it differs.
    window_heads: Option<[usize; 2]>,
    /// The last layers, which share keys and values of earlier ones.
    n_shared_layers: usize,
    /// Tokens that layers with a sliding window see.
    window: Option<usize>,
    /// Layers that have one.
    n_window_layers: usize,
    /// Layers with a short convolution and neither keys nor values.
    n_conv_layers: usize,
    /// Layers with a gated delta net and neither keys nor values.
    n_delta_layers: usize,
    /// Layers with Mamba-2 and neither keys nor values.
    n_mamba_layers: usize,
    /// Layers that have it beside attention.
    n_mamba_beside_layers: usize,
    /// Experts of a layer, and those that a token goes through; 0: the FFN is one network.
    n_expert: usize,
    n_expert_used: usize,
    /// Width of one.
    n_expert_ff: usize,
    rope_base: f32,
    rope_scaling: String,
}

#[derive(Serialize)]
struct Kv {
    #[serde(rename = "type")]
    ty: &'static str,
    /// With what the default policy keeps beside it; of layers without a window, where there are any.
    bytes_per_token: usize,
    tokens_in_4mib: usize,
}

impl Shape {
    /// What some layers have in place of attention or beside it, or keys and values.
    fn recurrent_layers(&self) -> String {
        let without = [
            (self.n_conv_layers, "a short convolution"),
            (self.n_delta_layers, "a gated delta net"),
            (self.n_mamba_layers, "Mamba-2"),
        ];
        match (without.into_iter().find(|&(n, _)| n > 0), self.n_mamba_beside_layers, self.n_shared_layers) {
            (Some((n, what)), ..) => format!(" ({n} of them with {what}, without keys and values)"),
            (None, 0, 0) => String::new(),
            (None, 0, n) => format!(" (the last {n} share keys and values of earlier ones)"),
            (None, ..) => " (with Mamba-2 beside attention)".to_owned(),
        }
    }
}

impl Summary {
    /// What can be said of any file.
    pub fn of_file(file: &GgufFile) -> Result<Summary> {
        let text = |key: &str| file.opt_str(key).ok().flatten().map(str::to_owned);
        let mut sums: BTreeMap<&'static str, (GgmlType, usize, u64, u64)> = BTreeMap::new();
        for t in file.tensors() {
            let sum = sums.entry(t.ty.name()).or_insert((t.ty, 0, 0, 0));
            *sum = (t.ty, sum.1 + 1, sum.2 + t.n_elems() as u64, sum.3 + t.n_bytes);
        }
        let kernels = Kernels::choose("auto")?;
        let weight_type = |(name, (ty, n_tensors, n_elems, bytes))| {
            let is_fast = kernels.is_fast(ty);
            let set = if is_fast { kernels.name() } else { "scalar" };
            WeightType { ty: name, n_tensors, n_elems, bytes, kernels: Kernels::supports(ty).then_some(set), is_fast }
        };
        let mut weight_types: Vec<WeightType> = sums.into_iter().map(weight_type).collect();
        weight_types.sort_by_key(|ty| std::cmp::Reverse(ty.bytes));
        Ok(Summary {
            architecture: text("general.architecture"),
            name: text("general.name"),
            licence: text("general.license"),
            n_params: file.tensors().iter().map(|t| t.n_elems() as u64).sum(),
            file_bytes: file.file_bytes(),
            weight_types,
            tokenizer: text("tokenizer.ggml.model"),
            pre_tokenizer: text("tokenizer.ggml.pre"),
            n_vocab: file.opt_strings("tokenizer.ggml.tokens").ok().flatten().map(|tokens| tokens.len()),
            has_chat_template: file.opt_str("tokenizer.chat_template").ok().flatten().is_some(),
            model: None,
            kv: Vec::new(),
        })
    }

    /// What can be said of a model that loads.
    pub fn add_model(&mut self, model: &Model) -> Result<()> {
        let c = &model.config;
        let n_with = |recurrent: Recurrent| if c.arch.recurrent == recurrent { c.n_recurrent_layer() } else { 0 };
        self.model = Some(Shape {
            n_ctx: c.n_ctx,
            n_layer: c.n_layer,
            n_embd: c.n_embd,
            n_ff: c.n_ff,
            n_head: c.n_head,
            n_head_kv: c.n_head_kv,
            head_dim: c.head_dim,
            window_heads: c.local_heads.filter(|&local| local != c.heads()).map(|local| [local.n_head_kv, local.head_dim]),
            n_shared_layers: c.n_shared,
            window: c.window.map(|window| window.n_tok),
            n_window_layers: c.window.map_or(0, |window| window.n_local(c.n_attn_layer())),
            n_conv_layers: n_with(Recurrent::ShortConv),
            n_delta_layers: n_with(Recurrent::DeltaNet),
            n_mamba_layers: n_with(Recurrent::Mamba),
            n_mamba_beside_layers: n_with(Recurrent::MambaBeside),
            n_expert: c.experts.map_or(0, |experts| experts.n_expert),
            n_expert_used: c.experts.map_or(0, |experts| experts.n_used),
            n_expert_ff: c.experts.map_or(0, |experts| experts.n_ff),
            rope_base: c.rope.freq_base,
            rope_scaling: rope(&c.rope, model.weights.rope_freqs.is_some()),
        });
        let params = SessionArgs::defaults().params(1, model);
        for ty in KvType::ALL {
            let params = SessionParams { k_type: Some(ty), v_type: Some(ty), ..params.clone() };
            let kv = params.shape(model)?;
            let tokens_in_4mib = kv.slots_within(SHOWN_BUDGET);
            self.kv.push(Kv { ty: ty.name(), bytes_per_token: kv.bytes_per_slot(), tokens_in_4mib });
        }
        Ok(())
    }

    pub fn text(&self) -> String {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        let mut lines = vec![
            format!("{}: {:.1} M parameters in {}", or(&self.architecture), millions(self.n_params), Bytes(self.file_bytes)),
            format!("licence: {}", or(&self.licence)),
            format!(
                "tokenizer: {}, pre-tokenizer {}, {} tokens; {}",
                or(&self.tokenizer),
                or(&self.pre_tokenizer),
                self.n_vocab.map_or("no".into(), |n| n.to_string()),
                if self.has_chat_template { "with a chat template" } else { "no chat template: --chat will not work" }
            ),
        ];
        let n: usize = self.weight_types.iter().map(|ty| ty.n_tensors).sum();
        let types = self.weight_types.iter().map(|ty| {
            let kernels = ty.kernels.map_or("no kernel".to_owned(), |set| format!("{set} kernel"));
            format!("{} {} ({:.1} M elements, {}, {kernels})", ty.n_tensors, ty.ty, millions(ty.n_elems), Bytes(ty.bytes))
        });
        lines.push(format!("{n} tensors: {}", types.collect::<Vec<_>>().join(", ")));
        if let Some(m) = &self.model {
            let local = m.window_heads.map_or(String::new(), |[n, dim]| format!(" with {n} KV heads of {dim}"));
            let window = m
                .window
                .map_or(String::new(), |n| format!(", sliding window of {n} tokens in {} layers{local}", m.n_window_layers));
            let conv = m.recurrent_layers();
            let ffn = match (m.n_expert, m.n_expert_used) {
                (0, _) => format!("FFN {}", m.n_ff),
                (n, used) => format!("{n} experts of {}, {used} for a token", m.n_expert_ff),
            };
            lines.push(format!(
                "{} layers{conv} of {}, {ffn}; {} heads and {} KV heads of {}; context {}{window}; RoPE base {}, {}",
                m.n_layer, m.n_embd, m.n_head, m.n_head_kv, m.head_dim, m.n_ctx, m.rope_base, m.rope_scaling
            ));
        }
        if !self.kv.is_empty() {
            let kv = self.kv.iter().map(|kv| format!("{} {} bytes ({})", kv.ty, kv.bytes_per_token, kv.tokens_in_4mib));
            let local = self.model.as_ref().is_some_and(|m| {
                m.window.is_some_and(|n| n < m.n_ctx)
                    && m.n_window_layers + m.n_conv_layers + m.n_delta_layers + m.n_mamba_layers < m.n_layer
            });
            lines.push(format!(
                "keys and values of a token{} (tokens in an arena of {}): {}",
                if local { ", in layers without a window" } else { "" },
                Bytes(SHOWN_BUDGET),
                kv.collect::<Vec<_>>().join(", ")
            ));
        }
        lines.into_iter().map(|line| super::one_line(&line)).collect::<Vec<_>>().join("\n")
    }
}

fn millions(n: u64) -> f64 {
    n as f64 / 1e6
}

fn rope(rope: &RopeConfig, has_factors: bool) -> String {
    match rope.scaling {
        RopeScaling::None if has_factors => "scaled by factors in the file".into(),
        RopeScaling::None => "not scaled".into(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::Yarn { factor, n_ctx_orig, .. } => format!("YaRN scaling by {factor} from {n_ctx_orig} tokens"),
    }
}
