#!/usr/bin/env python3
"""Writes quants.txt: random blocks of each tensor type and their expansion to f32 by the `gguf` package (pip install gguf).

One line a type: name, elements per block, bytes per block, blocks in hex, f32 little-endian in hex. Scales are kept finite,
of either sign, with zeros and subnormals among them. `-` where only the sizes of the table are compared.
Run: python3 tests/golden/quants.py > tests/golden/quants.txt
"""

from importlib.metadata import version

try:
    import ctypes
    import pathlib

    import llama_cpp
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
    from gguf.quants import dequantize
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

# Where the f16 scales stand in a block.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0], T.TQ1_0: [52], T.TQ2_0: [64],
    T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [], T.F16: [0], T.F32: [], T.BF16: [],
}
# What the package does not expand, llama.cpp's library does: ggml's number, elements, bytes, its function.
BY_LLAMA_CPP = {"Q1_0": (41, 128, 18, "dequantize_row_q1_0"), "Q2_0": (42, 64, 18, "dequantize_row_q2_0")}
rng = np.random.default_rng(20240607)


def finite_f16(n):
    """Any finite f16, by bits."""
    bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0xBFFF, bits).astype(np.uint16)


def blocks_of(ty, n):
    elems, size = GGML_QUANT_SIZES[ty]
    if ty in (T.F32, T.BF16):
        values = np.concatenate([[0.0, -0.0, 1.0, -1.5, 1e-40, -3e38], rng.standard_normal(n - 6)]).astype(np.float32)
        if ty == T.F32:
            return values.view(np.uint8).reshape(n, 4)
        return np.ascontiguousarray(values.view(np.uint8).reshape(n, 4)[:, 2:])
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in SCALES[ty]:
        blocks[:, at : at + 2] = finite_f16(n).view(np.uint8).reshape(n, 2)
    if ty == T.MXFP4:
        blocks[:, 0] = [0, 1, 2, 130][:n]  # exponents: both subnormal scales, the least normal one, an ordinary one
    return blocks


print(f"# made by quants.py with gguf {version('gguf')}, numpy {np.__version__}")
for ty in T:
    elems, size = GGML_QUANT_SIZES[ty]
    if ty == T.Q8_1:
        continue  # the package says 40 bytes, from before ggml stored its two scales as f16; no file holds it
    if ty.name in BY_LLAMA_CPP:
        continue
    if ty not in SCALES:
        print(ty.name, elems, size, "-", "-")
        continue
    blocks = blocks_of(ty, {1: 32, 32: 4, 256: 2}[elems])
    with np.errstate(all="ignore"):
        values = dequantize(blocks.reshape(-1), ty) if ty != T.F32 else blocks.reshape(-1).view(np.float32)
    values = np.asarray(values, dtype=np.float32).reshape(-1)
    assert values.size == blocks.shape[0] * elems and np.isfinite(values).all(), ty
    print(ty.name, elems, size, blocks.tobytes().hex(), values.astype("<f4").tobytes().hex())

ggml = ctypes.CDLL(next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so*")))
for name, (_, elems, size, function) in BY_LLAMA_CPP.items():
    blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
    blocks[:, :2] = finite_f16(3).view(np.uint8).reshape(3, 2)
    values = np.zeros(3 * elems, np.float32)
    getattr(ggml, function)(blocks.ctypes.data_as(ctypes.c_void_p), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(3 * elems))
    print(name, elems, size, blocks.tobytes().hex(), values.astype("<f4").tobytes().hex())
