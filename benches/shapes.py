"""Model files of random weights in the shapes of real models, for families of which no real file is at hand: speed does not look at
what the weights are.

Owns: the shapes. The tensors and keys of a family are those of tests/golden/families.py. Vocabularies are of 49,152 tokens, whatever
the real model's: the product with the embeddings is the same work in every family.
Run: .venv/bin/python benches/shapes.py FOLDER [NAME …], then benches/peer.py --model FOLDER/NAME-q8_0.gguf
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/golden"))

import families  # noqa: E402
import numpy as np  # noqa: E402
from families import delta, mamba, moe, spec  # noqa: E402

LONG = {"context_length": 8192}
# By the configurations that the authors publish beside their models; of mixtures fewer layers and experts, so that they fit a small machine.
SHAPES = {
    # Qwen3-0.6B: rows of 1,024 and 3,072 take every weight type.
    "qwen3-0.6b": dict(arch="qwen3", heads=(16, 8), head_dim=128, n_embd=1024, n_ff=3072, n_layer=28, output=False),
    # Qwen3.5-0.8B: eighteen layers with delta nets, six with attention.
    "qwen35-0.8b": dict(arch="qwen35", heads=(8, 2), head_dim=256, n_embd=1024, n_ff=3584, n_layer=24, n_rot=64, output=False, **delta(128, 16, 16)),
    # A sixth of Qwen3-30B-A3B's layers, of half its width.
    "qwen3moe-small": dict(arch="qwen3moe", heads=(16, 2), head_dim=64, n_embd=1024, n_layer=8, **moe(64, 8, 384)),
    # Granite 4.0 H 350M: four layers of 32 with attention.
    "granitehybrid-350m": dict(
        arch="granitehybrid", heads=(12, 4), head_dim=64, n_embd=768, n_ff=2048, n_layer=32, output=False,
        conv=tuple(i for i in range(32) if i not in (10, 13, 17, 27)), **families.HYBRID, **mamba(1536, 128, 48, 1),
    ),
    # Falcon-H1-0.5B: both in each of 36 layers.
    "falcon-h1-0.5b": dict(arch="falcon-h1", heads=(8, 2), head_dim=64, n_embd=1024, n_ff=2048, n_layer=36, ssm_norm=False, **mamba(1536, 128, 24, 1)),
    # A third of gpt-oss-20b's layers and of its width.
    "gpt-oss-small": dict(
        arch="gpt-oss", heads=(16, 4), head_dim=64, n_embd=960, n_layer=8, experts_kind="MXFP4", **{"attention.sliding_window": 128}, **moe(32, 4, 960)
    ),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("name", nargs="*", choices=[*SHAPES, []], metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--type", default="Q8_0", help="of the matrices: F16, Q8_0, " + ", ".join(families.BLOCKS) + " [default: Q8_0]")
    args = parser.parse_args()
    # The sum over all bytes, and bytes that another language draws too, are for golden values alone.
    families.fnv1a = lambda data, state=0xCBF29CE484222325, whole=families.fnv1a: whole(data[:64], state)
    families.int8s = lambda seed, n: np.random.default_rng(seed).integers(-128, 128, n, np.int8)
    for name in args.name or SHAPES:
        shape = SHAPES[name] | LONG
        s = spec(kind=args.type, n_vocab=49152, **shape)
        path = args.folder / f"{name}-{args.type.lower()}.gguf"
        families.write_model(path, name, s)
        print(path, path.stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main()
