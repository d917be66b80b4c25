"""Streaming eviction in other families than Llama: the naive model of reference.py with what they differ in: evicting.json.

Owns: biases, norms of heads, RoPE over halves and short convolutions, in numpy, over the small models of families.py. First
each is held against llama.cpp with nothing evicted; then it evicts, which llama.cpp cannot.
"""

import pathlib
import tempfile

try:
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
import families
import tiny
from reference import Reference, rms_norm

NAMES = ("qwen2-gqa", "qwen3-gqa", "lfm2-gqa")
RULES = [dict(policy=p, n_slot=n, sinks=2, recent=4) for p in ("l2", "window") for n in (10, 20)]
# Each token once: the same token twice has keys of one norm in the first layer, and which goes is a matter of rounding.
IDS = [int(i) for i in np.random.default_rng(9).permutation(36) + 1]


class Family(Reference):
    def __init__(self, path):
        self.arch = None
        super().__init__(path, "neox")

    def meta(self, key, default=None):
        if key == "general.architecture":
            self.arch = super().meta(key)
            return "llama"
        value = super().meta(key.replace("llama.", f"{self.arch}.", 1), default)
        # One number for each layer: none in those with a convolution.
        return max(value) if isinstance(value, (list, np.ndarray)) else value

    def weight(self, name):
        if name == "output_norm.weight" and self.arch == "lfm2":
            name = "token_embd_norm.weight"
        return super().weight(name)

    def attention(self, layer, x, table, attend):
        blk = f"blk.{layer}."
        n, x_norm = len(x), rms_norm(x, self.weight(blk + "attn_norm.weight"), self.eps)
        if blk + "shortconv.conv.weight" in self.tensors:
            return self.convolution(blk, x_norm)
        out = []
        for name, heads in (("q", self.n_head), ("k", self.n_head_kv), ("v", self.n_head_kv)):
            y = x_norm @ self.weight(f"{blk}attn_{name}.weight").T
            if self.arch == "qwen2":
                y = y + self.weight(f"{blk}attn_{name}.bias")
            y = y.reshape(n, heads, self.head_dim)
            if name != "v" and self.arch in ("qwen3", "lfm2"):
                y = rms_norm(y, self.weight(f"{blk}attn_{name}_norm.weight"), self.eps)
            out.append(y if name == "v" else self.rotate(y, table))
        return attend(layer, *out).reshape(n, -1) @ self.weight(blk + "attn_output.weight").T

    def convolution(self, blk, x_norm):
        b, c, x = np.split(x_norm @ self.weight(blk + "shortconv.in_proj.weight").T, 3, axis=-1)
        taps = self.weight(blk + "shortconv.conv.weight")  # [n_embd, n_tap]
        n_tap = taps.shape[1]
        entering = np.concatenate([np.zeros((n_tap - 1, x.shape[1]), np.float32), b * x])
        mixed = sum(entering[i : i + len(x)] * taps[:, i] for i in range(n_tap))
        return (c * mixed) @ self.weight(blk + "shortconv.out_proj.weight").T


def row(name):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        families.write_model(path, name, families.MODELS[name])
        engine = families.ExactPeer(path)
        apart = float(np.abs(engine.logits(IDS) - Family(path).logits(IDS)).max())
        engine.close()
        assert apart < 2e-3, f"{name}: {apart} from llama.cpp with nothing evicted"
        print(name, "apart from llama.cpp with a full cache:", apart)
        tiny.Reference, plain = Family, tiny.Reference
        tiny.POSITIONS, positions = (len(IDS) - 1,), tiny.POSITIONS
        streams = [tiny.stream_golden(path, IDS, rule) for rule in RULES]
        tiny.Reference, tiny.POSITIONS = plain, positions
    return {"full_cache_apart_from_llama_cpp": round(apart, 6), "streams": streams}


def main():
    rows = {name: row(name) for name in NAMES}
    source = common.provenance("python tests/golden/evicting.py")
    common.dump(common.GOLDEN / "evicting.json", {"provenance": source, "ids": IDS, "models": rows})


if __name__ == "__main__":
    main()
