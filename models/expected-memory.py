"""What `lowkey plan` says of the models of manifest.json, without their weights: private_mib of each entry.

Owns: the shapes of those models, from their makers' configurations. Writes a GGUF file of each with the right names, shapes
and types and a vocabulary of the right size, but no numbers (a hole in the file), and asks `lowkey plan --threads 4`, default
settings. Vocabularies are those of models/peer (models/fetch-peer-files), cut or filled to the size where the family's own
is not among them, so the tokenizer's part is near, not exact; so is the type of each matrix of a mix such as Q4_K_M.
Run: .venv/bin/python models/expected-memory.py [--lowkey target/release/lowkey]; it prints the lines for the manifest.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

try:
    import gguf
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

HERE = pathlib.Path(__file__).resolve().parent
KIND = gguf.GGMLQuantizationType
# arch, layers, embedding, heads, KV heads, head, FFN, vocabulary (of which file), context, other keys
MODELS = {
    "llama-3.2-1b-instruct": ("llama", 16, 2048, 32, 8, 64, 8192, 128256, "llama-bpe", 131072, {}),
    "tinyllama-1.1b-chat": ("llama", 22, 2048, 32, 4, 64, 5632, 32000, "llama-spm", 2048, {}),
    "mistral-7b-instruct-v0.3": ("llama", 32, 4096, 32, 8, 128, 14336, 32768, "llama-spm", 32768, {}),
    "qwen2.5-0.5b-instruct": ("qwen2", 24, 896, 14, 2, 64, 4864, 151936, "qwen2", 32768, {}),
    "qwen3-0.6b": ("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, "qwen2", 40960, {}),
    "smollm3-3b": ("smollm3", 36, 2048, 16, 4, 128, 11008, 128256, "llama-bpe", 65536, {}),
    "phi-3-mini-4k-instruct": ("phi3", 32, 3072, 32, 32, 96, 8192, 32064, "phi-3", 4096, {"attention.sliding_window": 2047}),
    "phi-4-mini-instruct": ("phi3", 32, 3072, 24, 8, 128, 8192, 200064, "command-r", 131072, {"rope.scaling.original_context_length": 4096}),
    "gemma-1.1-2b-it": ("gemma", 18, 2048, 8, 1, 256, 16384, 256000, "gemma3", 8192, {}),
    "gemma-2-2b-it": ("gemma2", 26, 2304, 8, 4, 256, 9216, 256000, "gemma3", 8192, {"attention.sliding_window": 4096}),
    "lfm2.5-1.2b-instruct": ("lfm2", 16, 2048, 32, 8, 64, 8192, 65536, "llama-bpe", 128000, {"shortconv.l_cache": 3}),
}  # fmt: skip
LFM2_ATTENTION = (2, 5, 8, 10, 12, 14)


def vocabulary(name, size):
    """Keys of another file's tokenizer, cut or filled to `size` tokens."""
    path = HERE / ("gemma3-270m-q4_k_m.gguf" if name == "gemma3" else f"peer/ggml-vocab-{name}.gguf")
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields[f"tokenizer.ggml.{key}"].contents() if f"tokenizer.ggml.{key}" in fields else None
    tokens = get("tokens")[:size]
    tokens += [f"<filler {i}>" for i in range(len(tokens), size)]
    known = set(tokens)
    merges = [m for m in get("merges") or [] if m.replace(" ", "", 1) in known and all(part in known for part in m.split(" "))]
    fill = lambda values, value: None if values is None else (values[:size] + [value] * size)[:size]
    return get("model"), get("pre"), tokens, fill(get("scores"), 0.0), fill(get("token_type"), 1), merges


def tensors(arch, n_layer, embd, heads, kv, dim, ff, vocab, n_rot):
    yield "token_embd.weight", (vocab, embd)
    q, k = heads * dim, kv * dim
    for i in range(n_layer):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", (embd,)
        yield b + "ffn_norm.weight", (embd,)
        if arch == "lfm2" and i not in LFM2_ATTENTION:
            yield from ((b + "shortconv.conv.weight", (embd, 3)), (b + "shortconv.in_proj.weight", (3 * embd, embd)), (b + "shortconv.out_proj.weight", (embd, embd)))
        elif arch == "phi3":
            yield from ((b + "attn_qkv.weight", (q + 2 * k, embd)), (b + "attn_output.weight", (embd, q)))
        else:
            yield from ((b + f"attn_{x}.weight", (n, embd)) for x, n in (("q", q), ("k", k), ("v", k)))
            yield b + "attn_output.weight", (embd, q)
            if arch == "qwen2":
                yield from ((b + f"attn_{x}.bias", (n,)) for x, n in (("q", q), ("k", k), ("v", k)))
            if arch in ("qwen3", "lfm2"):
                yield from ((b + f"attn_{x}_norm.weight", (dim,)) for x in "qk")
        if arch == "gemma2":
            yield from ((b + f"post_{x}_norm.weight", (embd,)) for x in ("attention", "ffw"))
        yield b + "ffn_up.weight", (2 * ff if arch == "phi3" else ff, embd)
        if arch != "phi3":
            yield b + "ffn_gate.weight", (ff, embd)
        yield b + "ffn_down.weight", (embd, ff)
    yield ("token_embd_norm.weight" if arch == "lfm2" else "output_norm.weight"), (embd,)
    if "rope.scaling.original_context_length" in n_rot:
        yield from ((f"rope_factors_{x}.weight", (dim * 3 // 8,)) for x in ("short", "long"))


def write(path, arch, n_layer, embd, heads, kv, dim, ff, vocab, vocab_file, n_ctx, more):
    writer = gguf.GGUFWriter(path, arch)
    numbers = {
        "context_length": n_ctx, "embedding_length": embd, "block_count": n_layer, "feed_forward_length": ff,
        "attention.head_count": heads, "attention.key_length": dim, "attention.value_length": dim,
        "rope.dimension_count": dim * 3 // 4 if "rope.scaling.original_context_length" in more else dim,
    }  # fmt: skip
    for key, value in (numbers | more).items():
        writer.add_uint32(f"{arch}.{key}", value)
    if arch == "lfm2":
        writer.add_array("lfm2.attention.head_count_kv", [kv if i in LFM2_ATTENTION else 0 for i in range(n_layer)])
    else:
        writer.add_uint32(f"{arch}.attention.head_count_kv", kv)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    model, pre, tokens, scores, kinds, merges = vocabulary(vocab_file, vocab)
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    for add, values in ((writer.add_token_scores, scores), (writer.add_token_types, kinds), (writer.add_token_merges, merges)):
        if values:
            add(values)
    end = 0
    for name, shape in tensors(arch, n_layer, embd, heads, kv, dim, ff, vocab, more):
        kind = KIND.F32 if len(shape) == 1 or "shortconv.conv" in name else KIND.Q8_0 if shape[-1] % 256 else KIND.Q4_K
        elems, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(shape)) // elems * size
        writer.add_tensor_info(name, (*shape[:-1], shape[-1] // elems * size) if kind != KIND.F32 else shape, np.dtype(np.uint8 if kind != KIND.F32 else np.float32), n_bytes, raw_dtype=kind if kind != KIND.F32 else None)
        end += (n_bytes + 31) // 32 * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate((size + 31) // 32 * 32 + end)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lowkey", default="target/release/lowkey")
    args = parser.parse_args()
    for name, row in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            write(path, *row)
            command = [args.lowkey, "plan", "-m", str(path), "--threads", "4", "--json"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
            plan = json.loads(done.stdout)
            parts = {r["name"]: r["bytes"] / 2**20 for r in plan["regions"] if r["kind"] == "private"}
            print(f'{name}: "private_mib": {round(plan["private_bytes"] / 2**20)},', {k: round(v, 1) for k, v in parts.items() if v > 2})


if __name__ == "__main__":
    main()
