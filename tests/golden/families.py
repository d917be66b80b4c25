"""Describes small random models of every family and head layout, and what llama.cpp computes with them: families.json.

Owns: the shapes, and one rule for all numbers, so that the Rust tests can write the same files without Python: each is
an int8 of a fixed stream times a power of two. F32, F16 and Q8_0 then hold the same weights exactly.
Refuses: to be a model of anything, or to ship weights. llama.cpp runs with keys and values in f32 here, so that what is
left between the engines is the f16 of our arena, and the int8 or f16 of activations where weights are Q8_0 or F16.
"""

import argparse
import ctypes
import functools
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
}  # fmt: skip
MIX = ["BF16", *BLOCKS, "Q8_0", "F16", "F32"]
TYPES |= {"BF16": 30} | {kind: row[0] for kind, row in BLOCKS.items()}


def spec(arch, heads, head_dim, kind="F32", n_embd=None, n_ff=96, n_layer=2, n_vocab=37, n_rot=None, output=True, conv=(), **keys):
    n_head, n_head_kv = heads
    # Only of these does llama.cpp take heads that together are wider or narrower than the embedding.
    n_embd = n_embd or (64 if arch in ("llama", "qwen3", "gemma", "gemma2", "gemma3") else n_head * head_dim)
    return dict(
        arch=arch, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim, kind=kind, n_embd=n_embd, n_ff=n_ff,
        n_layer=n_layer, n_vocab=n_vocab, n_rot=n_rot or head_dim, output=output, conv=conv, keys=keys,
    )  # fmt: skip


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
WINDOW = {"attention.sliding_window": 5}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
LINEAR = {"rope.freq_base": 1000000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
MODELS = {
    "llama-linear": spec("llama", (2, 1), 64, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-factor-only": spec("llama", (1, 1), 64, **{"rope.scaling.factor": 2.0}),
    "llama-yarn": spec("llama", (4, 2), 64, **YARN),
    "llama-yarn-128": spec("llama", (1, 1), 128, **YARN | {"rope.freq_base": 500000.0, "rope.scaling.attn_factor": 0.9}),
    # Every weight type in one file; rows that all blocks divide.
    "llama-mix": spec("llama", (4, 2), 64, "MIX", n_embd=256, n_ff=256, n_layer=3),
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
    "gemma3-wide-window": spec("gemma3", (2, 1), 64, n_layer=6, output=False, **{"attention.sliding_window": 512}),
}  # fmt: skip


def metadata(s):
    """(key, kind, value) in the order of the file."""
    numbers = [
        ("context_length", "u32", 256),
        ("embedding_length", "u32", s["n_embd"]),
        ("block_count", "u32", s["n_layer"]),
        ("feed_forward_length", "u32", s["n_ff"]),
        ("attention.head_count", "u32", s["n_head"]),
        ("attention.head_count_kv", *kv_heads(s)),
        ("attention.key_length", "u32", s["head_dim"]),
        ("attention.value_length", "u32", s["head_dim"]),
        ("rope.dimension_count", "u32", s["n_rot"]),
        ("attention.layer_norm_rms_epsilon", "f32", 1e-5),
    ]
    kinds = {str: "str", int: "u32", float: "f32"}
    numbers += [(key, kinds[type(value)], value) for key, value in s["keys"].items()]
    return [(f"{s['arch']}.{key}", kind, value) for key, kind, value in numbers]


def kv_heads(s):
    """One number, or one for each layer where some have a convolution in place of attention."""
    if not s["conv"]:
        return "u32", s["n_head_kv"]
    return "i32s", [0 if i in s["conv"] else s["n_head_kv"] for i in range(s["n_layer"])]


def tensors(s):
    """(name, shape with the row length last, type, gain, offset): an element is int8 * gain + offset."""
    embd, ff, q, kv = s["n_embd"], s["n_ff"], s["n_head"] * s["head_dim"], s["n_head_kv"] * s["head_dim"]
    mix = iter(MIX * 4)

    def matrix(name, n_out, n_in, gain=1.5):
        kind = next(mix) if s["kind"] == "MIX" else s["kind"]
        return f"{name}.weight", (n_out, n_in), kind, 2.0 ** round(math.log2(gain / math.sqrt(n_in) / deviation(kind))), 0.0

    def vector(name, n, gain=2.0**-8, offset=1.0):
        return name, (n,), "F32", gain, offset

    yield matrix("token_embd", s["n_vocab"], embd, 2.0 * (math.sqrt(embd) if s["output"] else 1.0))
    for i in range(s["n_layer"]):
        b = f"blk.{i}."
        yield vector(b + "attn_norm.weight", embd)
        if i in s["conv"]:
            yield b + "shortconv.conv.weight", (embd, s["keys"]["shortconv.l_cache"]), "F32", 2.0**-7, 0.0
            yield matrix(b + "shortconv.in_proj", 3 * embd, embd, 3.0)
            yield matrix(b + "shortconv.out_proj", embd, embd)
        elif s["arch"] == "phi3":
            yield matrix(b + "attn_qkv", q + 2 * kv, embd)
        else:
            yield from (matrix(b + "attn_q", q, embd), matrix(b + "attn_k", kv, embd), matrix(b + "attn_v", kv, embd))
        if s["arch"] == "qwen2":
            yield from (vector(b + f"attn_{x}.bias", n, 2.0**-6, 0.0) for x, n in (("q", q), ("k", kv), ("v", kv)))
        if s["arch"] in ("qwen3", "gemma3", "lfm2") and i not in s["conv"]:
            yield from (vector(b + f"attn_{x}_norm.weight", s["head_dim"]) for x in "qk")
        if i not in s["conv"]:
            yield matrix(b + "attn_output", embd, q)
        if s["arch"] in ("gemma2", "gemma3"):
            yield from (vector(b + f"post_{x}_norm.weight", embd) for x in ("attention", "ffw"))
        yield vector(b + "ffn_norm.weight", embd)
        if s["arch"] == "phi3":
            yield matrix(b + "ffn_up", 2 * ff, embd)
        else:
            yield from (matrix(b + "ffn_gate", ff, embd), matrix(b + "ffn_up", ff, embd))
        yield matrix(b + "ffn_down", embd, ff)
    yield vector("token_embd_norm.weight" if s["arch"] == "lfm2" else "output_norm.weight", embd)
    if s["output"]:
        yield matrix("output", s["n_vocab"], embd, 2.0)
    if "rope.scaling.attn_factor" in s["keys"] and s["arch"] == "phi3":
        yield vector("rope_factors_long.weight", s["n_rot"] // 2, 2.0**-8, 8.0)
        yield vector("rope_factors_short.weight", s["n_rot"] // 2)


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
    return float(gguf.quants.dequantize(blocks(kind, 1.0, 1, 64), gguf.GGMLQuantizationType(TYPES[kind])).std())


def encoded(name, tensor):
    """The bytes of a tensor as the file has them."""
    label, shape, kind, gain, offset = tensor
    if kind in BLOCKS:
        n_elems = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(TYPES[kind])][0]
        return blocks(kind, gain, fnv1a(f"{name}/{label}".encode()), math.prod(shape) // n_elems).reshape(*shape[:-1], -1)
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
        {"u32": writer.add_uint32, "f32": writer.add_float32, "str": writer.add_string, "i32s": writer.add_array}[kind](key, value)
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
    args = parser.parse_args()
    rows = {}
    for name, s in cross(args.cross[1]) if args.cross else MODELS.items():
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
