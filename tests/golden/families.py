"""Describes small random models of every family and head layout, and what llama.cpp computes with them: families.json.

Owns: the shapes, and one rule for all numbers, so that the Rust tests can write the same files without Python: each is
an int8 of a fixed stream times a power of two. F32, F16 and Q8_0 then hold the same weights exactly.
Refuses: to be a model of anything, or to ship weights. llama.cpp runs with keys and values in f32 here, so that what is
left between the engines is the f16 of our arena, and the int8 or f16 of activations where weights are Q8_0 or F16.
"""

import argparse
import ctypes
import functools
import itertools
import json
import math
import pathlib
import tempfile

try:
    import gguf
    import llama_cpp
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
import few
import peer

IDS = [int(i) for i in np.random.default_rng(7).integers(1, 37, 24)]
POSITIONS = (0, 11, 23)
MASK = (1 << 64) - 1
TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}
# Blocks whose bytes are the stream's but for their scales: ggml's type, bytes, where the gain stands as f16, and where a
# multiple of it that centres the elements (f16 too). MXFP4's gain is a power of two, its exponent one byte.
BLOCKS = {
    "Q4_0": (2, 18, 0, None, 0), "Q4_1": (3, 20, 0, 2, -7.5), "Q5_0": (6, 22, 0, None, 0), "Q5_1": (7, 24, 0, 2, -15.5),
    "Q2_K": (10, 84, 80, 82, 1.5), "Q3_K": (11, 110, 108, None, 0), "Q4_K": (12, 144, 0, 2, 7.5), "Q5_K": (13, 176, 0, 2, 15.5),
    "Q6_K": (14, 210, 208, None, 0), "IQ4_NL": (20, 18, 0, None, 0), "IQ4_XS": (23, 136, 0, None, 0), "MXFP4": (39, 17, 0, None, 0),
    "Q1_0": (41, 18, 0, None, 0), "Q2_0": (42, 18, 0, None, 0), "TQ1_0": (34, 54, 52, None, 0), "TQ2_0": (35, 66, 64, None, 0),
    "IQ2_XXS": (16, 66, 0, None, 0), "IQ2_XS": (17, 74, 0, None, 0), "IQ2_S": (22, 82, 0, None, 0), "IQ3_XXS": (18, 98, 0, None, 0),
    "IQ3_S": (21, 110, 0, None, 0),
}  # fmt: skip
FEW = tuple(few.SIZES)
GRIDS = [kind for kind in BLOCKS if kind.startswith(("IQ2", "IQ3", "TQ"))]
MIX = ["BF16", *(kind for kind in BLOCKS if kind not in FEW and kind not in GRIDS), "Q8_0", "F16", "F32"]
MIXES = {"MIX": MIX, "GRIDS": GRIDS}
FEW_DEVIATIONS = {"Q1_0": 1.0, "Q2_0": math.sqrt(1.25)}  # of signs, and of -1 to 2: the package does not expand them
# Factors of RoPE that leave all but the first pairs unturned: the gain is the share of those.
TYPES |= {"BF16": 30, "PARTIAL": 0} | {kind: row[0] for kind, row in BLOCKS.items()}


WIDE = ("llama", "qwen3", "gemma", "gemma2", "gemma3", "gemma4")


def spec(
    arch, heads, head_dim, kind="F32", n_embd=None, n_ff=96, n_layer=2, n_vocab=37, n_rot=None, output=True, conv=(),
    fused="", bias=False, draft=0, freqs=False, joined=False, scaled=False, keyed=False, unused=False, experts_kind="", ssm_norm=True, **keys,
):  # fmt: skip
    """`conv`: layers without attention; `ssm_norm`: whether what Mamba-2 gives is normed; `fused`: "weights", or "all" with the biases; `draft`: blocks behind the layers;
    `joined`: gate and up of experts in one tensor; `experts_kind`: their type, where it is another. Of gemma4: `scaled`: layers end with a scale, and what experts give has one; `keyed`: layers without a window have no
    values; `unused`: layers that share keys have matrices of their own."""
    n_head, n_head_kv = heads
    # Only of these does llama.cpp take heads that together are wider or narrower than the embedding.
    n_embd = n_embd or (64 if arch in WIDE else n_head * head_dim)
    return dict(
        arch=arch, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim, kind=kind, n_embd=n_embd, n_ff=n_ff,
        n_layer=n_layer, n_vocab=n_vocab, n_rot=n_rot or head_dim, output=output, conv=conv, fused=fused or ("weights" if arch == "phi3" else ""),
        bias=bias or arch in ("qwen2", "gpt-oss"), draft=draft, freqs=freqs, joined=joined, scaled=scaled, keyed=keyed, unused=unused,
        experts_kind=experts_kind, ssm_norm=ssm_norm, keys=keys,
    )  # fmt: skip


# What families differ in, as far as their tensors go.
QWEN35 = ("qwen35", "qwen35moe")
MAMBA = ("granitehybrid", "falcon-h1")
LFM2 = ("lfm2", "lfm2moe")
HEAD_NORMS = ("qwen3", "qwen3moe", "gemma3", "gemma4", "hunyuan-dense", "exaone4", "apertus", *QWEN35, *LFM2)
POST_NORMS = ("gemma2", "gemma3", "gemma4", "exaone4", "olmo2")
NO_PRE_NORMS = ("exaone4", "olmo2")
NO_GATE = ("arcee", "apertus")


GRANITE = {"embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0, "attention.scale": 0.0625}
HYBRID = GRANITE | {"logit_scale": 0.5, "rope.scaling.finetuned": False}


def delta(head_dim, n_k_head, n_v_head):
    """The keys of gated delta nets; the sections are those of a third of the pairs."""
    return {
        "ssm.conv_kernel": 4, "ssm.state_size": head_dim, "ssm.group_count": n_k_head, "ssm.time_step_rank": n_v_head,
        "ssm.inner_size": head_dim * n_v_head,
    }  # fmt: skip


def mamba(inner, state, n_head, n_group, n_tap=4):
    """The keys of Mamba-2. llama.cpp runs granitehybrid only where it is twice as wide as the embedding."""
    return {
        "ssm.conv_kernel": n_tap, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": n_head, "ssm.group_count": n_group,
    }  # fmt: skip


def moe(n_expert, n_used, n_ff, shared=0, dense=0, gating=0):
    keys = {"expert_count": n_expert, "expert_used_count": n_used, "expert_feed_forward_length": n_ff}
    keys |= {"expert_shared_feed_forward_length": shared, "leading_dense_block_count": dense, "expert_gating_func": gating}
    return {key: value for key, value in keys.items() if value}


XIELU = {"xielu.alpha_n": [0.6, -0.3], "xielu.alpha_p": [0.4, 1.1], "xielu.beta": [0.5, 0.4], "xielu.eps": [-1e-6, -0.125]}
GROWTH = {"attention.temperature_scale": 0.25, "rope.scaling.yarn_log_multiplier": 1.0, "rope.scaling.yarn_beta_fast": 16.0}


def gemma4(local_dim, every, n_layer, shared=0, width=0, local_heads=None, heads=None, ff=None, n_rot=None, window=5, **more):
    """The keys of Gemma 4: heads of another size where layers have a window, layers that share keys and values, what is fed to each."""
    keys = {
        "attention.key_length_swa": local_dim, "attention.value_length_swa": local_dim, "rope.dimension_count_swa": n_rot or local_dim,
        "attention.sliding_window": window, "attention.sliding_window_pattern": [(i + 1) % every != 0 for i in range(n_layer)],
        "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0, "attention.shared_kv_layers": shared, "embedding_length_per_layer_input": width,
    }  # fmt: skip
    if local_heads:
        keys["attention.head_count_kv"] = [local_heads if (i + 1) % every else heads for i in range(n_layer)]
    if ff:
        keys["feed_forward_length"] = [ff[0]] * (n_layer - shared) + [ff[1]] * shared
    return keys | more


few.know()
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
OSS_YARN = YARN | {"rope.freq_base": 150000.0, "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 16}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
WINDOW = {"attention.sliding_window": 5}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
LOGIT_CAP = {"final_logit_softcapping": 6.0}
LINEAR = {"rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
MODELS = {
    "llama-linear": spec("llama", (2, 1), 64, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-factor-only": spec("llama", (1, 1), 64, **{"rope.scaling.factor": 2.0}),
    "llama-yarn": spec("llama", (4, 2), 64, **YARN),
    "llama-yarn-128": spec("llama", (1, 1), 128, **YARN | {"rope.freq_base": 500000.0, "rope.scaling.attn_factor": 0.9}),
    # Every weight type in one file; rows that all blocks divide.
    "llama-mix": spec("llama", (4, 2), 64, "MIX", n_embd=256, n_ff=256, n_layer=3),
    # IQ2, IQ3 and the ternary types, each three times and more.
    "llama-grids-mix": spec("llama", (4, 2), 64, "GRIDS", n_embd=256, n_ff=512, n_layer=3),
    "phi3-mix": spec("phi3", (4, 2), 64, "MIX", n_ff=512, n_layer=5, n_vocab=43),
    "qwen2-mha": spec("qwen2", (2, 2), 64, n_vocab=41, output=False),
    "qwen2-gqa": spec("qwen2", (4, 2), 80, **{"rope.freq_base": 1000000.0}),
    "qwen2-mqa": spec("qwen2", (3, 1), 128, "F16"),
    "qwen2-q8": spec("qwen2", (4, 2), 64, "Q8_0", n_vocab=53),
    "qwen2-yarn": spec("qwen2", (2, 1), 64, **YARN),
    "qwen3-mha": spec("qwen3", (2, 2), 96, output=False),
    "qwen3-gqa": spec("qwen3", (4, 2), 128, **{"rope.freq_base": 1000000.0}),
    "qwen3-mqa": spec("qwen3", (4, 1), 64, "F16", n_vocab=45),
    "qwen3-q8": spec("qwen3", (2, 1), 80, "Q8_0", n_embd=96),
    "smollm3-gqa": spec("smollm3", (4, 2), 64, n_layer=5, output=False, **{"rope.freq_base": 5000000.0}),
    "smollm3-mqa": spec("smollm3", (2, 1), 80, n_layer=4, n_vocab=39),
    "smollm3-q8": spec("smollm3", (2, 2), 32, "Q8_0", n_layer=4),
    "phi3-mha": spec("phi3", (2, 2), 96),
    "phi3-gqa-partial": spec("phi3", (4, 2), 128, n_rot=96, output=False, n_vocab=43),
    "phi3-factors": spec(
        "phi3", (2, 1), 64, "F16", **{"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.19}
    ),
    "phi3-q8": spec("phi3", (2, 1), 64, "Q8_0"),
    # A window that is as long as the context changes nothing.
    "phi3-window": spec("phi3", (2, 1), 64, **{"attention.sliding_window": 256}),
    "gemma-mqa": spec("gemma", (4, 1), 128, output=False),
    "gemma-gqa": spec("gemma", (4, 2), 256, "F16", output=False, n_vocab=41),
    # Windows much shorter than the text; caps low enough to bend scores and logits, and those that the family implies.
    "gemma2-mha": spec("gemma2", (2, 2), 64, n_layer=4, output=False, **WINDOW, **CAPS),
    "gemma2-gqa": spec("gemma2", (4, 2), 128, "F16", n_layer=3, output=False, n_vocab=45, **WINDOW, **CAPS),
    "gemma2-mqa": spec("gemma2", (4, 1), 256, n_layer=2, output=False, **{"attention.sliding_window": 1}),
    "gemma2-q8": spec("gemma2", (4, 2), 64, "Q8_0", n_layer=3, output=False, **WINDOW, **CAPS),
    # The count of layers by which llama.cpp knows the largest model, whose scores are scaled otherwise.
    "gemma2-46-layers": spec("gemma2", (1, 1), 32, n_ff=32, n_layer=46, output=False, **WINDOW, **CAPS),
    "gemma3-mha": spec("gemma3", (2, 2), 64, n_layer=7, output=False, **WINDOW, **{"rope.freq_base": 1000000.0}),
    "gemma3-gqa": spec("gemma3", (4, 2), 128, n_layer=8, output=False, n_vocab=43, **WINDOW, **LINEAR),
    "gemma3-mqa": spec("gemma3", (4, 1), 256, "F16", n_layer=6, n_vocab=39, **WINDOW, **{"rope.freq_base": 1000000.0}),
    "gemma3-q8": spec("gemma3", (2, 1), 96, "Q8_0", n_embd=96, n_layer=7, output=False, **WINDOW),
    # Layers with a short convolution, the first and the last among them in one, and as many taps as LFM2 has, fewer and more.
    "lfm2-gqa": spec("lfm2", (4, 2), 64, n_layer=5, output=False, conv=(0, 1, 3), **{"shortconv.l_cache": 3, "rope.freq_base": 1000000.0}),
    "lfm2-mqa": spec("lfm2", (4, 1), 128, "F16", n_layer=4, n_vocab=45, conv=(1, 3), **{"shortconv.l_cache": 2}),
    "lfm2-mha": spec("lfm2", (2, 2), 96, n_layer=3, output=False, n_vocab=41, conv=(0, 2), **{"shortconv.l_cache": 5}),
    "lfm2-q8": spec("lfm2", (4, 2), 64, "Q8_0", n_layer=5, output=False, conv=(0, 1, 3), **{"shortconv.l_cache": 3}),
    # Four scales; without RoPE; grouped heads; a fused matrix with its biases and without.
    "granite-gqa": spec("granite", (4, 2), 64, output=False, **GRANITE),
    "granite-mqa": spec("granite", (4, 1), 32, "F16", n_vocab=43, **{"logit_scale": 4.0, "rope.scaling.finetuned": False}),
    # As the converter of the hybrids writes one without Mamba-2.
    "granite-of-hybrids": spec("granite", (4, 2), 64, output=False, **GRANITE | mamba(256, 128, 8, 1)),
    "granite-q8": spec("granite", (2, 2), 64, "Q8_0", output=False, n_layer=3, fused="weights", **GRANITE),
    "minicpm-gqa": spec("minicpm", (4, 2), 64, output=False, **{k: GRANITE[k] for k in ("embedding_scale", "residual_scale", "logit_scale")}),
    "minicpm-factors": spec("minicpm", (2, 1), 64, **{"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 256}),
    "minicpm-factors-alone": spec("minicpm", (4, 2), 64, output=False, **{"rope.scaling.type": "longrope"}),
    "minicpm-q8": spec("minicpm", (2, 1), 96, "Q8_0", n_layer=3),
    # Queries that grow within the text; the magnitude of YaRN taken back in part.
    "mistral3-gqa-growth": spec("mistral3", (4, 2), 64, output=False, **YARN | GROWTH | {"rope.scaling.original_context_length": 8}),
    "mistral3-mqa": spec("mistral3", (4, 1), 128, "F16", n_embd=96, **YARN | {"rope.scaling.yarn_log_multiplier": 0.5}),
    "mistral3-q8-growth": spec("mistral3", (2, 1), 64, "Q8_0", fused="all", bias=True, **YARN | GROWTH | {"rope.scaling.original_context_length": 16}),
    "ernie4_5-gqa": spec("ernie4_5", (4, 1), 64, n_vocab=41, output=False, **{"rope.freq_base": 500000.0}),
    "ernie4_5-q8": spec("ernie4_5", (2, 2), 64, "Q8_0", bias=True),
    "hunyuan-dense-gqa": spec("hunyuan-dense", (4, 2), 64, output=False, **{"rope.freq_base": 11158840.0}),
    "hunyuan-dense-mha": spec("hunyuan-dense", (2, 2), 96, "F16", n_vocab=45, **{"rope.scaling.alpha": 1000.0}),
    "hunyuan-dense-q8": spec("hunyuan-dense", (4, 1), 64, "Q8_0", n_layer=3, fused="weights"),
    "exaone4-gqa": spec("exaone4", (4, 2), 64, n_layer=3, output=False, freqs=True, **{"rope.freq_base": 1000000.0}),
    "exaone4-q8": spec("exaone4", (2, 1), 96, "Q8_0", draft=1),
    # The count of layers by which llama.cpp knows the one that has windows, and global layers that do not turn.
    "exaone4-64-layers": spec("exaone4", (1, 1), 32, n_ff=32, n_layer=64, output=False, **WINDOW),
    "olmo2-gqa": spec("olmo2", (4, 2), 64, n_layer=3),
    "olmo2-mha": spec("olmo2", (2, 2), 96, "F16", n_vocab=43, **{"rope.freq_base": 500000.0}),
    "olmo2-q8": spec("olmo2", (4, 2), 32, "Q8_0", n_layer=5, **YARN | WINDOW),
    "olmo2-magnitude": spec("olmo2", (2, 1), 64, n_layer=4, **YARN | WINDOW | {"rope.scaling.yarn_attn_factor": 1.1386294361}),
    "olmo2-windows": spec("olmo2", (2, 1), 64, n_layer=4, **YARN | WINDOW | {"rope.scaling.attn_factor": 1.25}),
    "arcee-gqa": spec("arcee", (4, 2), 64, freqs=True, output=False),
    "arcee-q8": spec("arcee", (2, 1), 96, "Q8_0", n_layer=3),
    "apertus-gqa": spec("apertus", (4, 2), 64, freqs=True, **XIELU),
    "apertus-q8": spec("apertus", (2, 1), 96, "Q8_0", n_vocab=41, **XIELU),
    "seed_oss-gqa": spec("seed_oss", (4, 2), 64, n_embd=96, bias=True, output=False, **{"rope.freq_base": 10000000.0}),
    "seed_oss-q8": spec("seed_oss", (2, 1), 128, "Q8_0", n_embd=64, n_layer=3, bias=True),
    # One tensor in place of three where the family has three.
    "qwen2-fused": spec("qwen2", (4, 2), 64, "Q8_0", fused="all", output=False),
    "qwen3-fused": spec("qwen3", (4, 2), 64, fused="weights", n_embd=96),
    # Three layers of four with a delta net, one head of keys for two of values or for each; a list in place of the interval.
    "qwen35-gqa": spec("qwen35", (4, 2), 64, n_embd=96, n_layer=4, n_rot=32, output=False, **delta(32, 2, 4)),
    "qwen35-mqa": spec("qwen35", (2, 1), 96, "F16", n_layer=3, n_rot=48, n_vocab=43, draft=1, **delta(64, 2, 2), **{"full_attention_interval": 2}),
    "qwen35-list": spec("qwen35", (2, 2), 64, n_embd=128, n_layer=4, n_rot=64, **delta(32, 1, 3), **{"attention.recurrent_layers": [True, False, False, True]}),
    "qwen35-q8": spec("qwen35", (4, 2), 64, "Q8_0", n_embd=96, n_layer=5, n_rot=32, output=False, **delta(32, 2, 4)),
    # Experts: most of them idle; a bias of the choice behind a layer with an FFN; a shared expert with a gate and without; gate and up in one.
    "qwen3moe-gqa": spec("qwen3moe", (4, 2), 64, n_embd=96, output=False, **moe(8, 2, 64)),
    "qwen3moe-q8": spec("qwen3moe", (2, 1), 64, "Q8_0", n_layer=3, n_vocab=43, **moe(6, 3, 32)),
    "lfm2moe-gqa": spec("lfm2moe", (4, 2), 64, n_layer=4, output=False, conv=(0, 2), **{"shortconv.l_cache": 3}, **moe(8, 2, 64, dense=1, gating=2)),
    "lfm2moe-q8": spec("lfm2moe", (4, 2), 64, "Q8_0", n_layer=4, output=False, conv=(0, 1, 3), **{"shortconv.l_cache": 3}, **moe(4, 2, 32, dense=2, gating=2)),
    "qwen35moe-gqa": spec("qwen35moe", (4, 2), 64, n_embd=96, n_layer=4, n_rot=32, output=False, **delta(32, 2, 4), **moe(8, 2, 64, shared=32)),
    "qwen35moe-q8": spec("qwen35moe", (2, 1), 64, "Q8_0", n_embd=96, n_layer=4, n_rot=32, joined=True, **delta(32, 2, 2), **moe(6, 2, 32, shared=64)),
    "granitemoe-gqa": spec("granitemoe", (4, 2), 64, output=False, **GRANITE, **moe(8, 2, 0)),
    "granitemoe-q8": spec("granitemoe", (2, 2), 64, "Q8_0", n_layer=3, n_ff=64, **GRANITE, **moe(6, 3, 0, shared=32)),
    # One and two bits a weight, as models that are trained so have them in every matrix.
    "qwen3-q1": spec("qwen3", (2, 1), 64, "Q1_0", n_embd=128, n_ff=256, output=False),
    "qwen3-q2": spec("qwen3", (2, 1), 64, "Q2_0", n_embd=128, n_ff=256, n_vocab=43),
    # Heads of two sizes; layers that share what the fourth and the third hold, with a wider FFN; a second table of embeddings; low caps of
    # logits; RoPE of a quarter of the pairs in layers without a window; values that are keys before their norm; KV heads of two numbers.
    "gemma4-gqa": spec("gemma4", (4, 2), 64, n_layer=7, output=False, freqs=True, scaled=True, **gemma4(32, 2, 7, shared=3, width=32, ff=(96, 192), **LOGIT_CAP)),
    "gemma4-mqa": spec("gemma4", (2, 1), 512, "F16", n_embd=96, n_layer=6, n_vocab=43, freqs=True, **gemma4(256, 3, 6, shared=3, width=64)),
    "gemma4-mha-keys": spec("gemma4", (4, 2), 64, n_layer=6, output=False, freqs=True, keyed=True, **gemma4(96, 3, 6, local_heads=4, heads=2, n_rot=48, **LOGIT_CAP)),
    "gemma4-alike": spec("gemma4", (4, 2), 64, n_layer=5, n_vocab=41, freqs=True, unused=True, **gemma4(64, 2, 5, shared=1, width=32)),
    # Layers with a window are not scaled.
    "gemma4-linear": spec("gemma4", (4, 2), 64, n_layer=4, output=False, freqs=True, **gemma4(32, 2, 4, **LINEAR)),
    "gemma4-q8": spec("gemma4", (4, 2), 64, "Q8_0", n_embd=96, n_layer=7, output=False, freqs=True, scaled=True, **gemma4(32, 2, 7, shared=3, width=32, ff=(96, 192), **LOGIT_CAP)),
    # Experts beside the FFN of every layer: in one tensor with a scale for each, in two without; all of them chosen.
    "gemma4-moe": spec("gemma4", (4, 2), 64, n_layer=6, output=False, freqs=True, keyed=True, scaled=True, joined=True, **gemma4(32, 3, 6, local_heads=4, heads=2, **LOGIT_CAP), **moe(8, 2, 32)),
    "gemma4-moe-apart": spec("gemma4", (2, 1), 64, "F16", n_embd=96, n_layer=5, n_vocab=43, freqs=True, **gemma4(64, 2, 5, shared=1, width=32, ff=(128, 192)), **moe(5, 3, 64)),
    "gemma4-moe-q8": spec("gemma4", (4, 2), 64, "Q8_0", n_embd=96, n_layer=4, output=False, freqs=True, keyed=True, scaled=True, joined=True, **gemma4(32, 2, 4, **LOGIT_CAP), **moe(4, 4, 64)),
    # Layers without KV heads have Mamba-2: with and without RoPE, groups of one and two, the last layer among them; experts and a shared one.
    "granitehybrid-gqa": spec("granitehybrid", (4, 2), 32, output=False, n_layer=4, conv=(0, 1, 3), **HYBRID, **mamba(256, 32, 4, 1)),
    "granitehybrid-mqa-rope": spec("granitehybrid", (2, 1), 64, "F16", n_layer=3, n_vocab=43, conv=(0, 2), **{"logit_scale": 0.5}, **mamba(256, 64, 8, 2, n_tap=2)),
    "granitehybrid-moe": spec("granitehybrid", (2, 2), 32, n_layer=3, n_ff=64, conv=(1, 2), **HYBRID, **moe(8, 2, 0, shared=32), **mamba(128, 16, 2, 2)),
    "granitehybrid-q8": spec("granitehybrid", (4, 2), 32, "Q8_0", n_vocab=43, n_layer=4, conv=(0, 1, 3), **HYBRID, **mamba(256, 32, 4, 1)),
    "granitehybrid-moe-q8": spec("granitehybrid", (2, 1), 64, "Q8_0", n_layer=3, n_ff=64, conv=(0, 2), **GRANITE | {"logit_scale": 0.5}, **moe(6, 3, 0, shared=32), **mamba(256, 32, 8, 2)),
    # Both in every layer.
    "falcon-h1-gqa": spec("falcon-h1", (4, 2), 64, n_embd=96, **{"rope.freq_base": 1e11}, **mamba(192, 64, 6, 1)),
    "falcon-h1-mha-plain": spec("falcon-h1", (2, 2), 64, n_layer=3, output=False, ssm_norm=False, **mamba(64, 32, 4, 2, n_tap=3)),
    "falcon-h1-mqa": spec("falcon-h1", (3, 1), 64, "F16", n_embd=64, n_vocab=45, **mamba(128, 128, 2, 2)),
    "falcon-h1-wide": spec("falcon-h1", (1, 1), 32, n_embd=32, n_ff=32, n_vocab=39, ssm_norm=False, **mamba(512, 24, 8, 1)),
    "falcon-h1-q8": spec("falcon-h1", (4, 2), 64, "Q8_0", n_embd=96, n_layer=3, **mamba(192, 32, 6, 2)),
    "falcon-h1-q8-plain": spec("falcon-h1", (2, 1), 64, "Q8_0", output=False, ssm_norm=False, **mamba(192, 64, 3, 1)),
    # A window in every second layer, YaRN beyond its original context, three, five and eight query heads for a KV head, one KV head for
    # each; a list of layers with windows; experts in MXFP4 between matrices in Q8_0 (three of six, no choice of which is so near that
    # a rounding makes it another: one of eight such models was off by 0.47, while eight whose experts are all used were off by 0.13 at most).
    "gpt-oss-gqa": spec("gpt-oss", (6, 2), 64, n_embd=96, n_layer=3, **WINDOW, **OSS_YARN, **moe(8, 3, 64)),
    "gpt-oss-mqa": spec("gpt-oss", (5, 1), 64, "F16", n_embd=64, n_layer=4, n_vocab=43, **WINDOW, **OSS_YARN, **moe(6, 2, 96, gating=3)),
    "gpt-oss-mha": spec("gpt-oss", (2, 2), 96, n_embd=64, n_layer=2, n_vocab=41, **WINDOW, **moe(5, 5, 32), **{"attention.sliding_window_pattern": [True, False]}),
    "gpt-oss-q8": spec("gpt-oss", (8, 1), 64, "Q8_0", n_embd=96, n_layer=4, experts_kind="MXFP4", **WINDOW, **OSS_YARN, **moe(6, 3, 64)),
    "gemma3-wide-window": spec("gemma3", (2, 1), 64, n_layer=6, output=False, **{"attention.sliding_window": 512}),
}  # fmt: skip


def metadata(s):
    """(key, kind, value) in the order of the file."""
    numbers = [
        ("context_length", "u32", 256),
        ("embedding_length", "u32", s["n_embd"]),
        ("block_count", "u32", s["n_layer"] + s["draft"]),
        ("feed_forward_length", "u32", s["n_ff"]),
        ("attention.head_count", "u32", s["n_head"]),
        ("attention.head_count_kv", *kv_heads(s)),
        ("attention.key_length", "u32", s["head_dim"]),
        ("attention.value_length", "u32", s["head_dim"]),
        ("rope.dimension_count", "u32", s["n_rot"]),
        ("attention.layer_norm_rms_epsilon", "f32", 1e-5),
    ]
    if s["draft"]:
        numbers.append(("nextn_predict_layers", "u32", s["draft"]))

    def kind(value):
        if isinstance(value, list):
            return "i32s" if type(value[0]) is int else kind(value[0]) + "s"
        return {str: "str", bool: "bool", int: "u32", float: "f32"}[type(value)]

    if s["arch"] in QWEN35:
        pairs = s["n_rot"] // 2
        numbers.append(("rope.dimension_sections", "i32s", [pairs // 3, pairs // 3, pairs - 2 * (pairs // 3), 0]))
    own = s["keys"]
    numbers = [row for row in numbers if row[0] not in own] + [(key, kind(value), value) for key, value in own.items()]
    return [(key if key.startswith("xielu.") else f"{s['arch']}.{key}", kind, value) for key, kind, value in numbers]


def kv_heads(s):
    """One number, or one for each layer where some have a convolution in place of attention."""
    if not s["conv"]:
        return "u32", s["n_head_kv"]
    return "i32s", [0 if i in s["conv"] else s["n_head_kv"] for i in range(s["n_layer"])]


def tensors(s):
    """(name, shape with the row length last, type, gain, offset): an element is int8 * gain + offset."""
    keys = s["keys"]
    embd = s["n_embd"]
    mix = itertools.cycle(MIXES.get(s["kind"], ()))

    def matrix(name, n_out, n_in, gain=1.5, kind=""):
        kind = kind or next(mix, s["kind"])
        return f"{name}.weight", (n_out, n_in), kind, 2.0 ** round(math.log2(gain / math.sqrt(n_in) / deviation(kind))), 0.0

    def vector(name, n, gain=2.0**-8, offset=1.0):
        return name, (n,), "F32", gain, offset

    yield matrix("token_embd", s["n_vocab"], embd, 2.0 * (math.sqrt(embd) if s["output"] else 1.0))
    width = keys.get("embedding_length_per_layer_input", 0)
    if width:
        yield matrix("per_layer_token_embd", s["n_vocab"], width * s["n_layer"], 1.0)
        yield "per_layer_model_proj.weight", (width * s["n_layer"], embd), "F32", 2.0**-9, 0.0
        yield vector("per_layer_proj_norm.weight", width)
    for i in range(s["n_layer"] + s["draft"]):
        b = f"blk.{i}."
        head_dim, q, kv, ff, has_kv, has_v = shape_of_layer(s, i)
        if s["arch"] not in NO_PRE_NORMS:
            yield vector(b + "attn_norm.weight", embd)
        is_delta = s["arch"] in QWEN35 and i < s["n_layer"] and has_delta(keys, i)
        if is_delta:
            d, n_k, n_v = (keys[f"ssm.{x}"] for x in ("state_size", "group_count", "time_step_rank"))
            yield matrix(b + "attn_qkv", (2 * n_k + n_v) * d, embd)
            yield matrix(b + "attn_gate", n_v * d, embd)
            yield from ((b + f"ssm_{x}.weight", (n_v, embd), "F32", 2.0**-9, 0.0) for x in ("alpha", "beta"))
            yield b + "ssm_conv1d.weight", ((2 * n_k + n_v) * d, keys["ssm.conv_kernel"]), "F32", 2.0**-7, 0.0
            yield b + "ssm_a", (n_v,), "F32", 2.0**-9, -0.375
            yield b + "ssm_dt.bias", (n_v,), "F32", 2.0**-7, 0.0
            yield vector(b + "ssm_norm.weight", d)
            yield matrix(b + "ssm_out", embd, n_v * d)
        elif s["arch"] in MAMBA and i in s["conv"]:
            yield from mamba_tensors(s, b, matrix)
        elif i in s["conv"]:
            yield b + "shortconv.conv.weight", (embd, s["keys"]["shortconv.l_cache"]), "F32", 2.0**-7, 0.0
            yield matrix(b + "shortconv.in_proj", 3 * embd, embd, 3.0)
            yield matrix(b + "shortconv.out_proj", embd, embd)
        elif s["fused"]:
            yield matrix(b + "attn_qkv", q + 2 * kv, embd)
        else:
            yield matrix(b + "attn_q", (2 if s["arch"] in QWEN35 else 1) * q, embd)
            if has_kv or s["unused"]:
                yield matrix(b + "attn_k", kv, embd)
            if has_v or s["unused"]:
                yield matrix(b + "attn_v", kv, embd)
        if s["bias"] and s["fused"] == "all":
            yield vector(b + "attn_qkv.bias", q + 2 * kv, 2.0**-6, 0.0)
        elif s["bias"]:
            yield from (vector(b + f"attn_{x}.bias", n, 2.0**-6, 0.0) for x, n in (("q", q), ("k", kv), ("v", kv)))
        if s["arch"] in HEAD_NORMS and i not in s["conv"] and not is_delta:
            # Where scores are not scaled the norm of queries does it, or softmax would magnify the rounding of keys.
            scale = 2.0 ** -round(math.log2(head_dim) / 2) if s["arch"] == "gemma4" else 1.0
            yield vector(b + "attn_q_norm.weight", head_dim, scale * 2.0**-8, scale)
            if has_kv or s["unused"]:
                yield vector(b + "attn_k_norm.weight", head_dim)
        if s["arch"] == "olmo2":
            yield from (vector(b + f"attn_{x}_norm.weight", n) for x, n in (("q", q), ("k", kv)))
        if i not in s["conv"] and not is_delta:
            yield matrix(b + "attn_output", embd, q)
        if s["arch"] == "gpt-oss":
            yield vector(b + "attn_output.bias", embd, 2.0**-6, 0.0)
            # Below and above the scores, which reach from -4 to 4.
            yield vector(b + "attn_sinks.weight", s["n_head"], 2.0**-5, 1.0)
        if s["arch"] == "falcon-h1":
            yield from mamba_tensors(s, b, matrix)
        if s["arch"] in POST_NORMS:
            yield from (vector(b + f"post_{x}_norm.weight", embd) for x in ("attention", "ffw"))
        if s["arch"] == "falcon-h1":
            yield vector(b + "ffn_norm", embd)
        elif s["arch"] not in NO_PRE_NORMS:
            yield vector(b + ("post_attention_norm.weight" if s["arch"] in ("seed_oss", "gpt-oss", *QWEN35) else "ffn_norm.weight"), embd)
        has_experts = "expert_count" in keys and i >= keys.get("leading_dense_block_count", 0)
        has_dense = not has_experts or s["arch"] == "gemma4"
        if has_experts:
            yield from experts(s, b, matrix)
        if has_dense and s["arch"] == "phi3":
            yield matrix(b + "ffn_up", 2 * ff, embd)
        elif has_dense:
            yield from (matrix(b + f"ffn_{x}", ff, embd) for x in (["up"] if s["arch"] in NO_GATE else ["gate", "up"]))
        if has_dense:
            yield matrix(b + "ffn_down", embd, ff)
        if width:
            yield matrix(b + "inp_gate", width, embd)
            yield matrix(b + "proj", embd, width)
            yield vector(b + "post_norm.weight", embd)
        if s["scaled"]:
            yield vector(b + "layer_output_scale.weight", 1, 2.0**-9, 0.75)
        if i >= s["n_layer"]:
            yield matrix(b + "nextn.eh_proj", embd, 2 * embd)
            yield from (vector(b + f"nextn.{x}.weight", embd) for x in ("enorm", "hnorm"))
    if s["freqs"] and s["arch"] == "gemma4":
        yield "rope_freqs.weight", (s["n_rot"] // 2,), "PARTIAL", 0.25, 0.0
    elif s["freqs"]:
        yield vector("rope_freqs.weight", s["n_rot"] // 2, 2.0**-5, 5.0)
    yield vector("token_embd_norm.weight" if s["arch"] in LFM2 else "output_norm.weight", embd)
    if s["output"]:
        yield matrix("output", s["n_vocab"], embd, 2.0)
    if s["keys"].get("rope.scaling.type") == "longrope" or "rope.scaling.attn_factor" in s["keys"] and s["arch"] == "phi3":
        yield vector("rope_factors_long.weight", s["n_rot"] // 2, 2.0**-8, 8.0)
        yield vector("rope_factors_short.weight", s["n_rot"] // 2)


def mamba_tensors(s, b, matrix):
    inner, state, heads, groups, n_tap = (s["keys"][f"ssm.{x}"] for x in ("inner_size", "state_size", "time_step_rank", "group_count", "conv_kernel"))
    width = inner + 2 * groups * state
    yield matrix(b + "ssm_in", inner + width + heads, s["n_embd"])
    yield b + "ssm_conv1d.weight", (width, n_tap), "F32", 2.0**-7, 0.0
    yield b + "ssm_conv1d.bias", (width,), "F32", 2.0**-8, 0.0
    yield b + "ssm_dt.bias", (heads,), "F32", 2.0**-7, 0.0
    yield b + "ssm_a", (heads, 1), "F32", 2.0**-9, -0.375
    yield b + "ssm_d", (heads, 1), "F32", 2.0**-8, 1.0
    if s["ssm_norm"]:
        yield b + "ssm_norm.weight", (groups, inner // groups), "F32", 2.0**-8, 1.0
    yield matrix(b + "ssm_out", s["n_embd"], inner)


def shape_of_layer(s, i):
    """Elements of a head, of all heads' queries and of all keys, width of the FFN, whether there are keys, and values."""
    keys, head_dim, n_kv, has_kv, has_v = s["keys"], s["head_dim"], s["n_head_kv"], True, True
    ff = keys.get("feed_forward_length", s["n_ff"])
    if s["arch"] == "gemma4" and i < s["n_layer"]:
        is_local = keys["attention.sliding_window_pattern"][i]
        head_dim = keys["attention.key_length_swa"] if is_local else head_dim
        n_kv = keys["attention.head_count_kv"][i] if "attention.head_count_kv" in keys else n_kv
        has_kv = i < s["n_layer"] - keys["attention.shared_kv_layers"]
        has_v = has_kv and (is_local or not s["keyed"])
    return head_dim, s["n_head"] * head_dim, n_kv * head_dim, ff[i] if isinstance(ff, list) else ff, has_kv, has_v


def has_delta(keys, i):
    if "attention.recurrent_layers" in keys:
        return keys["attention.recurrent_layers"][i]
    return (i + 1) % keys.get("full_attention_interval", 4) != 0


def experts(s, b, matrix):
    keys, embd = s["keys"], s["n_embd"]
    n, ff = keys["expert_count"], keys.get("expert_feed_forward_length", s["n_ff"])

    def stack(name, n_out, n_in):
        label, _, kind, gain, offset = matrix(name, n_out, n_in, kind=s["experts_kind"])
        return label, (n, n_out, n_in), kind, gain, offset

    yield b + "ffn_gate_inp.weight", (n, embd), "F32", 2.0**-8, 0.0
    if s["arch"] == "gpt-oss":
        yield b + "ffn_gate_inp.bias", (n,), "F32", 2.0**-7, 0.0
        # Wide enough that many elements pass the limits of gates, and of what goes up, on either side.
        yield from ((b + f"ffn_{x}_exps.bias", (n, ff), "F32", 2.0**-4, 0.0) for x in ("gate", "up"))
        yield b + "ffn_down_exps.bias", (n, embd), "F32", 2.0**-6, 0.0
    if s["arch"] == "lfm2moe":
        yield b + "exp_probs_b.bias", (n,), "F32", 2.0**-8, 0.0
    if s["joined"]:
        yield stack(b + "ffn_gate_up_exps", 2 * ff, embd)
    else:
        yield from (stack(b + f"ffn_{x}_exps", ff, embd) for x in ("gate", "up"))
    yield stack(b + "ffn_down_exps", embd, ff)
    if s["arch"] == "gemma4":
        yield b + "ffn_gate_inp.scale", (embd,), "F32", 2.0**-5, 8.0
        if s["scaled"]:
            yield b + "ffn_down_exps.scale", (n,), "F32", 2.0**-8, 1.0
        yield from ((b + f"{norm}.weight", (embd,), "F32", 2.0**-8, 1.0) for norm in ("post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"))
    if shared := keys.get("expert_shared_feed_forward_length"):
        if s["arch"] == "qwen35moe":
            yield b + "ffn_gate_inp_shexp.weight", (embd,), "F32", 2.0**-8, 0.0
        yield from (matrix(b + f"ffn_{x}_shexp", shared, embd) for x in ("gate", "up"))
        yield matrix(b + "ffn_down_shexp", embd, shared)


def fnv1a(data, state=0xCBF29CE484222325):
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & MASK
    return state


def int8s(seed, n):
    """Knuth's 64-bit linear congruential generator, its top byte."""
    out = bytearray(n)
    for i in range(n):
        seed = (seed * 6364136223846793005 + 1442695040888963407) & MASK
        out[i] = seed >> 56
    return np.frombuffer(out, np.int8)


def blocks(kind, gain, seed, n_blocks):
    """`[n_blocks][block_bytes]` of the stream, with the scales of this gain."""
    _, size, at_gain, at_centre, centre = BLOCKS[kind]
    out = int8s(seed, n_blocks * size).view(np.uint8).reshape(n_blocks, size).copy()
    if kind == "MXFP4":
        out[:, at_gain] = 127 + int(math.log2(gain))
        return out
    for at, value in [(at_gain, gain)] + ([] if at_centre is None else [(at_centre, centre * gain)]):
        out[:, at : at + 2] = np.array([value], "<f2").view(np.uint8)
    return out


@functools.cache
def deviation(kind):
    """The standard deviation of a type's elements where the gain is one; that of int8 where they are the stream's."""
    if kind not in BLOCKS:
        return 74
    if kind in FEW:
        return FEW_DEVIATIONS[kind]
    return float(gguf.quants.dequantize(blocks(kind, 1.0, 1, 64), gguf.GGMLQuantizationType(TYPES[kind])).std())


def encoded(name, tensor):
    """The bytes of a tensor as the file has them."""
    label, shape, kind, gain, offset = tensor
    if kind in BLOCKS:
        n_elems = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPES[kind])][0]
        return blocks(kind, gain, fnv1a(f"{name}/{label}".encode()), math.prod(shape) // n_elems).reshape(*shape[:-1], -1)
    if kind == "PARTIAL":
        return np.where(np.arange(shape[0]) < shape[0] * gain, 1, 1e30).astype(np.float32)
    q = int8s(fnv1a(f"{name}/{label}".encode()), math.prod(shape))
    if kind == "Q8_0":
        scale = np.full((q.size // 32, 1), gain, "<f2").view(np.uint8)
        return np.concatenate([scale, q.view(np.uint8).reshape(-1, 32)], 1).reshape(*shape[:-1], shape[-1] // 32 * 34)
    values = (q.astype(np.float32) * np.float32(gain) + np.float32(offset)).reshape(shape)
    if kind == "BF16":
        return (values.view("<u4") >> 16).astype("<u2").view(np.uint8)  # exact: eight bits of a product are left
    return values.astype("<f2") if kind == "F16" else values


def write_model(path, name, s):
    """Writes the file; gives FNV-1a over the bytes of its tensors in order."""
    writer, digest = gguf.GGUFWriter(path, s["arch"]), fnv1a(b"")
    for key, kind, value in metadata(s):
        one = {"u32": writer.add_uint32, "f32": writer.add_float32, "str": writer.add_string, "bool": writer.add_bool}
        one.get(kind, writer.add_array)(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(s["n_vocab"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * s["n_vocab"])
    writer.add_token_merges(["t 0"])
    for tensor in tensors(s):
        data = encoded(name, tensor)
        digest = fnv1a(data.tobytes(), digest)
        writer.add_tensor(tensor[0], data, raw_dtype=gguf.GGMLQuantizationType(TYPES[tensor[2]]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"{digest:016x}"


class ExactPeer(peer.Peer):
    """llama.cpp with keys and values in f32."""

    def __init__(self, path):
        super().__init__(path, n_ctx=256)
        llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_threads, settings.n_threads_batch = 256, peer.N_BATCH, 1, 1
        settings.type_k = settings.type_v = ctypes.c_int(llama_cpp.GGML_TYPE_F32).value
        settings.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, settings)


def cross(kind):
    """Every family with every head layout and width of head, in weights of one type."""
    layouts, n = {"mha": (2, 2), "gqa": (4, 2), "mqa": (4, 1)}, 0
    for arch in ("llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma", "gemma2", "gemma3", "lfm2"):
        for layout, heads in layouts.items():
            for head_dim in (64, 80, 96, 128, 256):
                n += 1
                more = WINDOW if arch in ("gemma2", "gemma3") else {"shortconv.l_cache": 3} if arch == "lfm2" else {}
                n_layer = {"gemma2": 3, "gemma3": 6, "smollm3": 4, "lfm2": 4}.get(arch, 2)
                yield f"{arch}-{layout}-{head_dim}", spec(
                    arch, heads, head_dim, kind, n_layer=n_layer, n_vocab=37 + 2 * (n % 13), conv=(0, 2) if arch == "lfm2" else (),
                    output=n % 2 == 0 and not arch.startswith("gemma"), **more,
                )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--cross", nargs=2, metavar=("FILE", "TYPE"), help="describe every family in every head layout instead, for LOWKEY_FAMILIES"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ask for these families or models alone, and keep the rest of families.json")
    args = parser.parse_args()
    rows, asked = {}, dict(cross(args.cross[1]) if args.cross else MODELS)
    if args.only:
        kept = json.loads((common.GOLDEN / "families.json").read_text())["models"]
        rows = {name: kept.get(name) for name in asked}
        asked = {name: s for name, s in asked.items() if name in args.only or s["arch"] in args.only}
    for name, s in asked.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            digest = write_model(path, name, s)
            engine = ExactPeer(path)
            logits = engine.logits(IDS)
            engine.close()
        rows[name] = {
            "arch": s["arch"],
            "n_vocab": s["n_vocab"],
            "keys": [list(row) for row in metadata(s)],
            "tensors": [[label, list(shape), kind, gain, offset] for label, shape, kind, gain, offset in tensors(s)],
            "tensors_fnv1a": digest,
            "logits": [[round(float(v), 4) for v in logits[p]] for p in POSITIONS],
        }
        print(name, digest, "logits up to", round(float(np.abs(logits).max()), 2), flush=True)
    source = common.provenance("python tests/golden/families.py")
    common.dump(args.cross[0] if args.cross else common.GOLDEN / "families.json", {"provenance": source, "ids": IDS, "positions": list(POSITIONS), "models": rows})


if __name__ == "__main__":
    main()
