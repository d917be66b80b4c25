//! What the keys of a file say, by family, put together to a `Config`. What is asked for and not done here is refused by name: a model
//! is never run approximately.

use crate::error::{Error, Result};
use crate::gguf::{GgufFile, Value};
use crate::kernels::{BLOCK, Xielu};
use crate::kv::layout::{AttnLayer, LayerShape, MAX_HEAD_DIM, Window};

use super::arch::{ANY, Activation, Arch, LocalRope, Mixture, Recurrent, Scales, SharedExpert, SoftCaps, Unturned};
use super::config::{
    Config, DeltaShape, ExpertConfig, MambaShape, Multipliers, QueryGrowth, Recurrence, RecurrentLayers, RopeConfig, RopeScaling,
};
use super::keys::{
    ALPHA, CAPS, CONV, EXPERTS, FINETUNED, GROWTH, INPUT, INTERVAL, Keys, LOCAL, LOG_MULTIPLIER, LOGIT_SCALE, MAX_LAYERS,
    RECURRENT_LAYERS, SCALES, SECTIONS, SHARED, SSM, printable,
};

impl Config {
    pub fn from_gguf(file: &GgufFile) -> Result<Config> {
        let refuse = |what: String| Error::unsupported(file.path(), what);
        if let Some((what, advice)) = not_a_model(file) {
            return Err(refuse(format!("this is {what} and no model: {advice}")));
        }
        let name = file.str("general.architecture")?;
        let arch = Arch::by_name(name).ok_or_else(|| {
            let why = Arch::why_refused(name).map_or(String::new(), |why| format!(" ({why})"));
            refuse(format!("architecture '{}' is not supported{why}; this engine runs: {}", printable(name), Arch::known()))
        })?;
        let keys = Keys::of(file, arch)?;
        let (n_layer, n_embd, n_head) = (keys.n_layer, keys.count("embedding_length")?, keys.count("attention.head_count")?);
        let experts = arch.experts.map_or(Ok(None), |mixture| expert_config(&keys, mixture))?;
        let ffs = widths(&keys, experts)?;
        let (n_head_kv, n_local_kv, without) = kv_heads(&keys, n_head)?;
        let recurrent = recurrent_layers(&keys, without)?;
        let head_dim = match keys.opt_count("attention.key_length")? {
            Some(n) => n,
            None if n_embd % n_head == 0 => n_embd / n_head,
            None => return Err(refuse(format!("{n_head} heads do not divide an embedding of {n_embd}"))),
        };
        let trained = keys.count("context_length")?;
        let rope = RopeConfig {
            order: arch.rope_order,
            n_rot: keys.opt_count("rope.dimension_count")?.unwrap_or(head_dim),
            freq_base: rope_base(&keys, head_dim)?,
            scaling: rope_scaling(&keys, trained as u32)?,
            attn_factor: keys.opt_float("rope.scaling.attn_factor")?.filter(|&f| f != 0.0).unwrap_or(1.0),
        };
        let n_ctx = context(&keys, trained)?;
        let window = window(&keys, n_ctx)?;
        let score_dim = if n_layer == arch.wide_scale_layers { n_embd / n_head } else { head_dim };
        let usual = if arch.per_layer { 1.0 } else { 1.0 / (score_dim as f32).sqrt() };
        let (q_scale, multipliers) = scales(&keys, n_embd, usual)?;
        let local_heads = local_heads(&keys, n_local_kv)?;
        let local_rope = match window.filter(|window| !window.is_everywhere()) {
            Some(_) => local_rope(&keys, &rope, local_heads)?,
            None => None,
        };
        let config = Config {
            n_layer,
            n_draft: keys.n_block - n_layer,
            recurrent,
            n_embd,
            n_head,
            n_head_kv,
            head_dim,
            local_heads,
            n_shared: keys.opt_count(SHARED)?.filter(|_| arch.per_layer).unwrap_or(0).min(n_layer),
            n_embd_layer: keys.opt_count(INPUT)?.filter(|_| arch.per_layer).unwrap_or(0),
            n_ff: ffs.iter().copied().chain(experts.iter().flat_map(|e| [e.n_ff, e.n_shared_ff])).max().unwrap_or(0),
            experts,
            ffs,
            n_vocab: file.strings("tokenizer.ggml.tokens")?.len(),
            n_ctx,
            rms_eps: keys.float("attention.layer_norm_rms_epsilon")?,
            local_rope,
            rope,
            window,
            q_scale,
            query_growth: query_growth(&keys)?,
            turns: turns(&keys, window)?,
            multipliers,
            xielus: xielus(&keys)?,
            soft_caps: soft_caps(&keys)?,
            arch,
        };
        match config.wrong(value_dims(&keys, &config)?) {
            Some(what) => Err(refuse(format!("the metadata asks for {what}; this engine cannot run that"))),
            None => Ok(config),
        }
    }
}

/// The heads of layers with a window, in a family where they may be others.
fn local_heads(keys: &Keys, n_head_kv: usize) -> Result<Option<LayerShape>> {
    if !keys.arch.per_layer {
        return Ok(None);
    }
    Ok(Some(LayerShape { n_head_kv, head_dim: keys.count(LOCAL[0])? }))
}

/// Elements of a value in layers without a window, and in those with one.
fn value_dims(keys: &Keys, c: &Config) -> Result<[usize; 2]> {
    let each = keys.opt_count("attention.value_length")?.unwrap_or(c.head_dim);
    match c.local_heads {
        None => Ok([each; 2]),
        Some(local) => Ok([each, keys.opt_count(LOCAL[1])?.unwrap_or(local.head_dim)]),
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

/// KV heads of a layer without a window and of one with, and which layers have none. One number for all layers, or a list with
/// one for each.
fn kv_heads(keys: &Keys, n_head: usize) -> Result<(usize, usize, Box<[bool]>)> {
    const KEY: &str = "attention.head_count_kv";
    let (file, key, n_layer) = (keys.file, keys.key(KEY), keys.n_layer);
    if keys.arch.per_layer && matches!(file.get(&key), Some(Value::Array(_))) {
        let (counts, every) = (keys.counts(KEY)?, pattern(keys)?);
        let of = |local: bool| (0..n_layer).filter(move |i| (i + 1).is_multiple_of(every) != local).map(|i| counts[i]);
        let [each, local] = [false, true].map(|local| of(local).next());
        if [(false, each), (true, local)].into_iter().any(|(is_local, first)| of(is_local).any(|n| Some(n) != first)) {
            return keys.refuse(KEY, "differs among layers of one kind, which this engine does not run");
        }
        let each = each.or(local).unwrap_or(n_head);
        return Ok((each, local.unwrap_or(each), [].into()));
    }
    if !keys.arch.recurrent.is_where_no_kv_heads_are() || !matches!(file.get(&key), Some(Value::Array(_))) {
        // So many layers no file holds; `from_gguf` says so.
        let n = keys.opt_count(KEY)?.unwrap_or(n_head);
        return Ok((n, n, vec![false; n_layer.min(MAX_LAYERS)].into()));
    }
    let of_layers = file.u32s(&key)?;
    if of_layers.len() != keys.n_block {
        return keys.refuse(
            KEY,
            format!("has {} values for {} layers: the file is damaged; fetch it again", of_layers.len(), keys.n_block),
        );
    }
    let of_layers = of_layers.take(n_layer);
    let mut with = of_layers.clone().filter(|&n| n > 0);
    let Some(n) = with.next() else {
        return keys.refuse(KEY, "gives KV heads to no layer; this engine needs one that has some");
    };
    match with.find(|&other| other != n) {
        Some(other) => {
            keys.refuse(KEY, format!("gives {n} KV heads to one layer and {other} to another, which this engine does not run"))
        }
        None => Ok((n as usize, n as usize, of_layers.map(|n| n == 0).collect())),
    }
}

/// The base, raised where positions are stretched by `alpha` (NTK-aware scaling: `base * alpha^(d / (d - 2))`).
fn rope_base(keys: &Keys, head_dim: usize) -> Result<f32> {
    let base = keys.opt_float("rope.freq_base")?.unwrap_or(10_000.0);
    Ok(match keys.opt_float(ALPHA)?.filter(|&alpha| alpha > 0.0) {
        Some(alpha) => base * libm::powf(alpha, head_dim as f32 / (head_dim as f32 - 2.0)),
        None => base,
    })
}

fn expert_config(keys: &Keys, mixture: Mixture) -> Result<Option<ExpertConfig>> {
    const GATING: &str = "expert_gating_func";
    let [n_expert, n_used, ff, n_ff, shared, dense] = EXPERTS.map(|name| keys.opt_count(name));
    let Some(n_expert) = n_expert?.filter(|&n| n > 0) else {
        return if mixture.optional { Ok(None) } else { keys.missing(EXPERTS[0], "u32") };
    };
    let Some(n_used) = n_used?.filter(|&n| n > 0) else { return keys.missing(EXPERTS[1], "u32") };
    let is_sigmoid = match (keys.opt_count(GATING)?, mixture.biased) {
        (Some(1), _) | (None | Some(0), false) => false,
        // The softmax of the chosen logits: what that of all gives once the weights of the chosen are 1 together.
        (Some(3), false) if keys.arch.all_biased => false,
        (Some(2), true) => true,
        (None, true) => return keys.missing(GATING, "u32"),
        (Some(other), _) => {
            return keys.refuse(GATING, format!("is {other}, which this engine does not run; use another model of the family"));
        }
    };
    let n_shared_ff = match mixture.shared {
        SharedExpert::No | SharedExpert::Beside => 0,
        SharedExpert::Optional => shared?.unwrap_or(0),
        SharedExpert::Gated => match shared? {
            Some(n) if n > 0 => n,
            _ => return keys.missing(EXPERTS[4], "u32"),
        },
    };
    let is_beside = mixture.shared == SharedExpert::Beside;
    // The other is read only where this one is not there: of a model with dense layers it may be a list.
    let n_ff = match n_ff? {
        None if !is_beside => ff?,
        n_ff => n_ff,
    };
    let Some(n_ff) = n_ff.filter(|&n| n > 0) else { return keys.missing(EXPERTS[3], "u32") };
    let weight_scale = keys.opt_float("expert_weights_scale")?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
    let n_dense = if mixture.biased { dense?.unwrap_or(0).min(keys.n_layer) } else { 0 };
    Ok(Some(ExpertConfig { n_expert, n_used, n_ff, n_shared_ff, is_beside, n_dense, is_sigmoid, weight_scale }))
}

/// Of the FFN of each layer, or of its experts where they are in its place.
fn widths(keys: &Keys, experts: Option<ExpertConfig>) -> Result<Box<[usize]>> {
    const KEY: &str = "feed_forward_length";
    let Some(experts) = experts.filter(|experts| !experts.is_beside) else { return keys.counts(KEY) };
    let mut widths = match experts.n_dense {
        0 => vec![experts.n_ff; keys.n_layer.min(MAX_LAYERS)].into(),
        _ => keys.counts(KEY)?,
    };
    widths.iter_mut().skip(experts.n_dense).for_each(|width| *width = experts.n_ff);
    Ok(widths)
}

/// The layers that have a recurrence; `without`: those that have no KV heads.
fn recurrent_layers(keys: &Keys, without: Box<[bool]>) -> Result<Option<RecurrentLayers>> {
    let (kind, layers) = match keys.arch.recurrent {
        Recurrent::No => return Ok(None),
        Recurrent::ShortConv => (Recurrence::ShortConv { n_tap: keys.count(CONV)? }, without),
        Recurrent::Mamba => (Recurrence::Mamba(mamba_shape(keys)?), without),
        Recurrent::MambaBeside => (Recurrence::Mamba(mamba_shape(keys)?), vec![true; keys.n_layer.min(MAX_LAYERS)].into()),
        Recurrent::DeltaNet => return delta_layers(keys).map(Some),
    };
    Ok(Some(RecurrentLayers { kind, layers, is_beside: keys.arch.recurrent == Recurrent::MambaBeside }))
}

fn mamba_shape(keys: &Keys) -> Result<MambaShape> {
    let [n_tap, n_state, n_group, n_head, inner_dim] = SSM.map(|name| keys.count(name));
    let shape = MambaShape { n_tap: n_tap?, n_state: n_state?, n_group: n_group?, n_head: n_head?, inner_dim: inner_dim? };
    let MambaShape { n_tap: _, n_state, n_group, n_head, inner_dim } = shape;
    let wrong = [
        (
            SSM[4],
            inner_dim > 1 << 18 || inner_dim % BLOCK != 0,
            format!("is {inner_dim}: must be a multiple of {BLOCK}, 262144 at most"),
        ),
        (SSM[1], n_state > 1 << 10 || n_state % 8 != 0, format!("is {n_state}: must be a multiple of 8, 1024 at most")),
        (SSM[3], inner_dim % n_head != 0, format!("is {n_head}, and so many heads do not divide {inner_dim} channels")),
        (SSM[2], n_head % n_group != 0, format!("is {n_group}, and so many groups do not divide {n_head} heads")),
        (
            SSM[3],
            inner_dim / n_head % 4 != 0 || inner_dim / n_head > MAX_HEAD_DIM,
            format!("is {n_head}, of {inner_dim} channels: a head must have a multiple of 4, {MAX_HEAD_DIM} at most"),
        ),
    ];
    match wrong.into_iter().find(|wrong| wrong.1) {
        Some((key, _, what)) => keys.refuse(key, format!("{what}; this engine cannot run that")),
        None => Ok(shape),
    }
}

/// The layers with a gated delta net: all but every n-th, or as a list says.
fn delta_layers(keys: &Keys) -> Result<RecurrentLayers> {
    let [n_tap, head_dim, n_k_head, n_v_head, inner] = SSM.map(|name| keys.count(name));
    let shape = DeltaShape { n_tap: n_tap?, head_dim: head_dim?, n_k_head: n_k_head?, n_v_head: n_v_head? };
    let inner = inner?;
    let is_small = [shape.n_tap, shape.head_dim, shape.n_k_head, shape.n_v_head].into_iter().all(|n| n <= 1 << 12);
    let fits = is_small
        && shape.head_dim % 8 == 0
        && shape.head_dim <= MAX_HEAD_DIM
        && shape.n_v_head % shape.n_k_head == 0
        && shape.v_dim() % BLOCK == 0
        && shape.v_dim() == inner;
    if !fits {
        let DeltaShape { n_tap, head_dim, n_k_head, n_v_head } = shape;
        let what = format!(
            "is {inner}, and with {n_v_head} heads of values ({}) and {n_k_head} of keys ({}) of {head_dim} elements ({}) and {n_tap} taps ({}) this engine cannot run that",
            SSM[3], SSM[2], SSM[1], SSM[0]
        );
        return keys.refuse(SSM[4], what);
    }
    let sections = keys.list(SECTIONS)?.unwrap_or_default();
    let n_rot = keys.count("rope.dimension_count")?;
    if sections.len() != 4 || sections.iter().sum::<usize>() != n_rot / 2 {
        let (n, first) = (sections.len(), &sections[..sections.len().min(4)]);
        let what = format!(
            "has {n} numbers, the first {first:?}, and {} pairs are turned: this engine runs models whose four sections are all pairs",
            n_rot / 2
        );
        return keys.refuse(SECTIONS, what);
    }
    let layers = match keys.list(RECURRENT_LAYERS)? {
        Some(flags) => {
            keys.check_len(RECURRENT_LAYERS, flags.len())?;
            flags.iter().take(keys.n_layer).map(|&flag| flag != 0).collect()
        }
        None => {
            let every = keys.opt_count(INTERVAL)?.unwrap_or(4);
            (0..keys.n_layer.min(MAX_LAYERS)).map(|i| every == 0 || (i + 1) % every != 0).collect()
        }
    };
    Ok(RecurrentLayers { kind: Recurrence::DeltaNet(shape), layers, is_beside: false })
}

/// What queries are multiplied with, where `usual` is what the family does, and what else is multiplied.
fn scales(keys: &Keys, n_embd: usize, usual: f32) -> Result<(f32, Multipliers)> {
    let [embeddings, residual, logits, scores] = SCALES.map(|name| keys.opt_float(name));
    let given = |scale: Result<Option<f32>>, default: f32| Ok::<f32, Error>(scale?.filter(|&s| s != 0.0).unwrap_or(default));
    let none = Multipliers { embeddings: 1.0, addends: 1.0, logits: 1.0 };
    Ok(match keys.arch.scales {
        Scales::No => (usual, none),
        Scales::RootOfWidth => (usual, Multipliers { embeddings: (n_embd as f32).sqrt(), ..none }),
        Scales::Granite => {
            let logits = match logits? {
                Some(logits) => logits,
                // Files of hybrids may leave it out.
                None if keys.arch.recurrent == Recurrent::Mamba => 1.0,
                None => return keys.missing(LOGIT_SCALE, "f32"),
            };
            let (embeddings, addends) = (given(embeddings, 1.0)?, given(residual, 1.0)?);
            (given(scores, usual)?, Multipliers { embeddings, addends, logits: 1.0 / logits })
        }
        Scales::MiniCpm => {
            let addends = given(residual, 1.4 / (keys.n_layer as f32).sqrt())?;
            let logits = 1.0 / given(logits, 256.0 / n_embd as f32)?;
            (usual, Multipliers { embeddings: given(embeddings, 12.0)?, addends, logits })
        }
    })
}

fn query_growth(keys: &Keys) -> Result<Option<QueryGrowth>> {
    let Some(scale) = keys.opt_float(GROWTH)?.filter(|&scale| scale != 0.0 && keys.arch.query_growth) else { return Ok(None) };
    Ok(Some(QueryGrowth { scale, n_ctx: keys.count("rope.scaling.original_context_length")? as u32 }))
}

/// Which layers turn queries and keys by their positions.
fn turns(keys: &Keys, window: Option<Window>) -> Result<Box<[bool]>> {
    let some_global = window.filter(|window| !window.is_everywhere());
    let all = keys.arch.unturned != Unturned::AsSaid || keys.opt_bool(FINETUNED)?.unwrap_or(true);
    let turns = |layer: usize| match keys.arch.unturned {
        Unturned::Every(n) => !(layer + 1).is_multiple_of(n),
        Unturned::Global => some_global.is_none_or(|window| window.limits(AttnLayer(layer))),
        Unturned::No | Unturned::AsSaid => all,
    };
    Ok((0..keys.n_layer.min(MAX_LAYERS)).map(turns).collect())
}

fn xielus(keys: &Keys) -> Result<Box<[Xielu]>> {
    if keys.arch.activation != Activation::Xielu {
        return Ok([].into());
    }
    let [alpha_n, alpha_p, beta, eps] =
        ["alpha_n", "alpha_p", "beta", "eps"].map(|name| keys.floats_of(&format!("xielu.{name}")));
    let (alpha_n, alpha_p, beta, eps) = (alpha_n?, alpha_p?, beta?, eps?);
    Ok((0..alpha_n.len()).map(|i| Xielu::new(alpha_n[i], alpha_p[i], beta[i], eps[i])).collect())
}

/// The trained context, shortened to what this engine computes exactly: within the original context the short RoPE factors
/// hold, and in all of it where a file names no original one. Beyond it a stream goes on as beyond any trained context.
fn context(keys: &Keys, trained: usize) -> Result<usize> {
    let n_ctx = match keys.file.tensor(SHORT_FACTORS) {
        Some(_) => keys.opt_count("rope.scaling.original_context_length")?.filter(|&n| n > 0).map_or(trained, |n| trained.min(n)),
        None => trained,
    };
    if n_ctx < trained {
        log::info!("of a context of {trained} tokens {n_ctx} are used: the rest has other RoPE factors");
    }
    Ok(n_ctx)
}

const PATTERN: &str = "attention.sliding_window_pattern";

/// Every how many layers one has no window, in a family whose files say it of each layer.
fn pattern(keys: &Keys) -> Result<usize> {
    let Some(flags) = keys.list(PATTERN)? else { return keys.missing(PATTERN, "list of bools") };
    keys.check_len(PATTERN, flags.len())?;
    let Some(first) = flags.iter().position(|&is_local| is_local == 0) else {
        return keys.refuse(PATTERN, "gives a window to all layers; this engine needs one that has none");
    };
    let every = first + 1;
    match flags.iter().enumerate().find(|(i, is_local)| (i + 1).is_multiple_of(every) != (**is_local == 0)) {
        Some((i, _)) => keys.refuse(PATTERN, format!("says of layer {i} what does not go on as in the layers before; this engine runs models in which every n-th layer has no window")),
        None => Ok(every),
    }
}

/// The window of a family that has layers with one among layers without, or of a file that gives one to all layers.
fn window(keys: &Keys, n_ctx: usize) -> Result<Option<Window>> {
    let n_tok = keys.opt_count("attention.sliding_window")?.filter(|&n| n > 0);
    if keys.arch.per_layer {
        let Some(n_tok) = n_tok else { return keys.missing("attention.sliding_window", "u32") };
        return Ok(Some(Window { n_tok, global_every: pattern(keys)? }));
    }
    let global_every = keys.arch.global_every;
    if n_tok.is_none() && keys.n_layer > 0 && [keys.n_layer, ANY].contains(&keys.arch.windowed_layers) {
        return keys.missing("attention.sliding_window", "u32");
    }
    let Some(n_tok) = n_tok.or(keys.arch.usual_window) else { return Ok(None) };
    let window = Some(Window { n_tok, global_every }).filter(|window| !window.is_everywhere() || n_tok < n_ctx);
    let Some(window) = window else { return Ok(None) };
    // A list says of each layer whether it has the window.
    if let Some(Value::Array(list)) = keys.file.get(&keys.key(PATTERN)) {
        let flag = |value: Value| if let Value::Bool(on) = value { Some(i128::from(on)) } else { value.as_int() };
        let flags: Vec<Option<i128>> = list.iter().map(flag).collect();
        keys.check_len(PATTERN, flags.len())?;
        if flags.iter().all(|flag| matches!(flag, Some(0 | 1))) {
            let differs = |&i: &usize| flags.get(i) != Some(&Some(window.limits(AttnLayer(i)).into()));
            return match (0..keys.n_layer).find(differs) {
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
        n => format!("one of every {n} layers is without the window"),
    };
    format!("here {all}; use another model of the family")
}

/// How layers with a window turn, if not as the others do.
fn local_rope(keys: &Keys, rope: &RopeConfig, heads: Option<LayerShape>) -> Result<Option<RopeConfig>> {
    let said = keys.opt_float("rope.freq_base_swa")?;
    Ok(match (keys.arch.local_rope, said) {
        (LocalRope::Base(usual), said) => {
            Some(RopeConfig { freq_base: said.unwrap_or(usual), scaling: RopeScaling::None, ..rope.clone() })
        }
        (LocalRope::Unscaled, said) => Some(RopeConfig {
            freq_base: said.unwrap_or(rope.freq_base),
            scaling: RopeScaling::None,
            attn_factor: 1.0,
            ..rope.clone()
        }),
        (LocalRope::Own, said) => {
            let n_rot = keys.opt_count(LOCAL[2])?.unwrap_or(heads.map_or(rope.n_rot, |heads| heads.head_dim));
            Some(RopeConfig { n_rot, freq_base: said.unwrap_or(rope.freq_base), scaling: RopeScaling::None, ..rope.clone() })
        }
        (LocalRope::Same, Some(freq_base)) => Some(RopeConfig { freq_base, ..rope.clone() }),
        (LocalRope::Same, None) => None,
    })
}

fn soft_caps(keys: &Keys) -> Result<Option<SoftCaps>> {
    let Some(usual) = keys.arch.soft_caps else { return Ok(None) };
    let [scores, logits] = CAPS.map(|name| keys.opt_float(name));
    // Of a family that caps no scores the key is refused, or says none.
    let scores = scores?.filter(|_| usual.scores > 0.0).unwrap_or(usual.scores);
    Ok(Some(SoftCaps { scores, logits: logits?.unwrap_or(usual.logits) }))
}

/// What RoPE's frequencies are divided by within the original context, and beyond it.
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

fn rope_scaling(keys: &Keys, n_ctx: u32) -> Result<RopeScaling> {
    const TYPE: &str = "rope.scaling.type";
    const MIX: &str = "rope.scaling.yarn_ext_factor";
    // What a converter writes of OLMo 3 is what YaRN does to magnitudes anyway.
    const MAGNITUDE: &str = "rope.scaling.yarn_attn_factor";
    // A factor of 0 or -1 stands for none.
    let factor = keys.opt_float("rope.scaling.factor")?.filter(|&f| f != 0.0 && f != -1.0).unwrap_or(1.0);
    // Without a type a factor means linear scaling; the type `none` switches it off.
    let scaling = match keys.file.opt_str(&keys.key(TYPE))?.unwrap_or("linear") {
        "none" => RopeScaling::None,
        // Factors in the file, of which those of the original context are used.
        "longrope" if factor == 1.0 && keys.file.tensor(SHORT_FACTORS).is_some() => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => RopeScaling::Yarn {
            factor,
            n_ctx_orig: keys.opt_count("rope.scaling.original_context_length")?.filter(|&n| n > 0).map_or(n_ctx, |n| n as u32),
            beta_fast: keys.opt_float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: keys.opt_float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            log_multiplier: keys.opt_float(LOG_MULTIPLIER)?.unwrap_or(0.0),
        },
        kind => {
            return keys
                .refuse(TYPE, format!("is '{}', which this engine does not run; use a model without it", printable(kind)));
        }
    };
    if matches!(scaling, RopeScaling::Yarn { factor, .. } if factor < 1.0) {
        return keys.refuse(
            "rope.scaling.factor",
            format!("is {factor}, and YaRN is for factors of 1 and more: use a model without it"),
        );
    }
    let magnitude = scaling.magnitude() as f32;
    if let Some(other) = keys.opt_float(MAGNITUDE)?.filter(|said| *said != 0.0 && (said - magnitude).abs() > 1e-3) {
        return keys.refuse(MAGNITUDE, format!("is {other}, and {magnitude} is what this engine runs; use a model without it"));
    }
    // How much of YaRN's ramp is mixed in: all, where there is scaling. Below 0 stands for that.
    let usual = if let RopeScaling::Yarn { .. } = scaling { 1.0 } else { 0.0 };
    match keys.opt_float(MIX)?.filter(|&mix| mix >= 0.0 && mix != usual && scaling != RopeScaling::None) {
        Some(mix) => keys.refuse(MIX, format!("is {mix}, and {usual} is what this engine runs; use a model without it")),
        None => Ok(scaling),
    }
}
