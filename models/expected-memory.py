"""What `lowkey plan` says of the models of manifest.json, without their weights: private_mib of each entry.

Owns: the shapes of those models, from their makers' configurations. Writes a GGUF file of each with the keys and tensors of
its family (tests/golden/families.py) and a vocabulary of the right size, but no numbers (a hole in the file), and asks `lowkey
plan --threads 4`, default settings. Vocabularies are those of models/peer (models/fetch-peer-files), cut or filled to the size where
the family's own is not among them, so the tokenizer's part is near, not exact; so is the type of each matrix of a mix such as Q4_K_M.
Run: .venv/bin/python models/expected-memory.py [--lowkey target/release/lowkey] [NAME …]; it prints the lines for the manifest.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/golden"))

import families  # noqa: E402
import gguf  # noqa: E402
import numpy as np  # noqa: E402
from families import delta, gemma4, mamba, moe, spec  # noqa: E402

KIND = gguf.GGMLQuantizationType
# Name -> (vocabulary's file, context, the shape; `every`: layers with attention, where the others have something else in its place).
MODELS = {
    "llama-3.2-1b-instruct": ("llama-bpe", 131072, dict(arch="llama", n_layer=16, n_embd=2048, heads=(32, 8), head_dim=64, n_ff=8192, n_vocab=128256, output=False)),
    "tinyllama-1.1b-chat": ("llama-spm", 2048, dict(arch="llama", n_layer=22, n_embd=2048, heads=(32, 4), head_dim=64, n_ff=5632, n_vocab=32000)),
    "mistral-7b-instruct-v0.3": ("llama-spm", 32768, dict(arch="llama", n_layer=32, n_embd=4096, heads=(32, 8), head_dim=128, n_ff=14336, n_vocab=32768)),
    "ministral-3-3b-instruct": ("llama-bpe", 262144, dict(arch="mistral3", n_layer=26, n_embd=3072, heads=(32, 8), head_dim=128, n_ff=9216, n_vocab=131072, output=False)),
    "qwen2.5-0.5b-instruct": ("qwen2", 32768, dict(arch="qwen2", n_layer=24, n_embd=896, heads=(14, 2), head_dim=64, n_ff=4864, n_vocab=151936, output=False)),
    "qwen3-0.6b": ("qwen2", 40960, dict(arch="qwen3", n_layer=28, n_embd=1024, heads=(16, 8), head_dim=128, n_ff=3072, n_vocab=151936, output=False)),
    "qwen3-4b-instruct-2507": ("qwen2", 262144, dict(arch="qwen3", n_layer=36, n_embd=2560, heads=(32, 8), head_dim=128, n_ff=9728, n_vocab=151936, output=False)),
    "qwen3.5-0.8b": ("qwen35", 262144, dict(arch="qwen35", n_layer=24, n_embd=1024, heads=(8, 2), head_dim=256, n_rot=64, n_ff=3584, n_vocab=248320, output=False, **delta(128, 16, 16))),
    "qwen3.5-2b": ("qwen35", 262144, dict(arch="qwen35", n_layer=24, n_embd=2048, heads=(8, 2), head_dim=256, n_rot=64, n_ff=6144, n_vocab=248320, output=False, **delta(128, 16, 16))),
    "qwen3.5-4b": ("qwen35", 262144, dict(arch="qwen35", n_layer=32, n_embd=2560, heads=(16, 4), head_dim=256, n_rot=64, n_ff=9216, n_vocab=248320, output=False, **delta(128, 16, 32))),
    "smollm3-3b": ("llama-bpe", 65536, dict(arch="smollm3", n_layer=36, n_embd=2048, heads=(16, 4), head_dim=128, n_ff=11008, n_vocab=128256, output=False)),
    "phi-3-mini-4k-instruct": ("phi-3", 4096, dict(arch="phi3", n_layer=32, n_embd=3072, heads=(32, 32), head_dim=96, n_ff=8192, n_vocab=32064, **{"attention.sliding_window": 2047})),
    "phi-4-mini-instruct": ("command-r", 131072, dict(arch="phi3", n_layer=32, n_embd=3072, heads=(24, 8), head_dim=128, n_rot=96, n_ff=8192, n_vocab=200064, output=False, **{"rope.scaling.original_context_length": 4096})),
    "gemma-1.1-2b-it": ("gemma3", 8192, dict(arch="gemma", n_layer=18, n_embd=2048, heads=(8, 1), head_dim=256, n_ff=16384, n_vocab=256000, output=False)),
    "gemma-2-2b-it": ("gemma3", 8192, dict(arch="gemma2", n_layer=26, n_embd=2304, heads=(8, 4), head_dim=256, n_ff=9216, n_vocab=256000, output=False, **{"attention.sliding_window": 4096})),
    "gemma-3-1b-it": ("gemma3", 32768, dict(arch="gemma3", n_layer=26, n_embd=1152, heads=(4, 1), head_dim=256, n_ff=6912, n_vocab=262144, output=False, **{"attention.sliding_window": 512})),
    "gemma-4-e2b-it": ("gemma-4", 131072, dict(arch="gemma4", n_layer=35, n_embd=1536, heads=(8, 1), head_dim=512, n_ff=6144, n_vocab=262144, output=False, freqs=True, scaled=True, **gemma4(256, 5, 35, shared=20, width=256, ff=(6144, 12288), window=512))),
    "lfm2.5-1.2b-instruct": ("llama-bpe", 128000, dict(arch="lfm2", n_layer=16, n_embd=2048, heads=(32, 8), head_dim=64, n_ff=8192, n_vocab=65536, output=False, every=(2, 5, 8, 10, 12, 14), **{"shortconv.l_cache": 3})),
    "lfm2-8b-a1b": ("llama-bpe", 128000, dict(arch="lfm2moe", n_layer=24, n_embd=2048, heads=(32, 8), head_dim=64, n_ff=7168, n_vocab=65536, output=False, every=(2, 6, 10, 14, 18, 21), **{"shortconv.l_cache": 3}, **moe(32, 4, 1792, dense=2, gating=2))),
    "granite-4.0-h-350m": ("llama-bpe", 32768, dict(arch="granitehybrid", n_layer=32, n_embd=768, heads=(12, 4), head_dim=64, n_ff=2048, n_vocab=100352, output=False, every=(10, 13, 17, 27), **families.HYBRID, **mamba(1536, 128, 48, 1))),
    "granite-4.0-h-1b": ("llama-bpe", 131072, dict(arch="granitehybrid", n_layer=40, n_embd=1536, heads=(12, 4), head_dim=128, n_ff=4096, n_vocab=100352, output=False, every=(5, 15, 25, 35), **families.HYBRID, **mamba(3072, 128, 48, 1))),
}  # fmt: skip


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


def write(path, vocab_file, n_ctx, shape):
    shape = dict(shape)
    every = shape.pop("every", None)
    if every:
        shape["conv"] = tuple(i for i in range(shape["n_layer"]) if i not in every)
    s = spec(**shape, kind="Q8_0", context_length=n_ctx)
    writer = gguf.GGUFWriter(path, s["arch"])
    put = {"u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool, "str": writer.add_string}
    for key, kind, value in families.metadata(s):
        (writer.add_array if kind.endswith("s") else put[kind])(key, value)
    model, pre, tokens, scores, kinds, merges = vocabulary(vocab_file, s["n_vocab"])
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    for add, values in ((writer.add_token_scores, scores), (writer.add_token_types, kinds), (writer.add_token_merges, merges)):
        if values:
            add(values)
    end, ones = 0, None
    for name, dims, kind, _, _ in families.tensors(s):
        whole = kind in ("F32", "PARTIAL")
        kind = KIND.F32 if whole else KIND.MXFP4 if kind == "MXFP4" else KIND.Q8_0 if dims[-1] % 256 else KIND.Q4_K
        elems, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(dims)) // elems * size
        writer.add_tensor_info(name, dims if whole else (*dims[:-1], dims[-1] // elems * size), np.dtype(np.float32 if whole else np.uint8), n_bytes, raw_dtype=None if whole else kind)
        if name == "rope_freqs.weight":
            ones = end, int(np.prod(dims))
        end += (n_bytes + 31) // 32 * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate((size + 31) // 32 * 32 + end)
        if ones:
            file.seek((size + 31) // 32 * 32 + ones[0])
            file.write(np.ones(ones[1], "<f4").tobytes())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("name", nargs="*", choices=[*MODELS, []], metavar="NAME", help=", ".join(MODELS))
    args = parser.parse_args()
    for name in args.name or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.gguf"
            write(path, *MODELS[name])
            command = [args.lowkey, "plan", "-m", str(path), "--threads", "4", "--json"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode and not done.stdout:
                raise SystemExit(f"{name}: {done.stderr}")
            plan = json.loads(done.stdout)
            parts = {r["name"]: r["bytes"] / 2**20 for r in plan["regions"] if r["kind"] == "private"}
            print(f'{name}: "private_mib": {round(plan["private_bytes"] / 2**20)}, weights {plan["file_bytes"] / 1e9:.2f} GB,', {k: round(v, 1) for k, v in parts.items() if v > 2}, flush=True)


if __name__ == "__main__":
    main()
