"""Weights of one and two bits, Q1_0 and Q2_0, of which the package `gguf` reads and expands neither.

Owns: the package's knowledge of their sizes, and their expansion to f32.
Refuses: Q2_0 of 128 elements a block, which older files have; their sizes do not fit and the package says so.
"""

import gguf
import numpy as np

# ggml's number, elements of a block, its bytes: a scale in f16, then the elements, the first in the lowest bits.
SIZES = {"Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18)}


def know():
    """Makes the package read and write these types where it has no name for them yet."""
    types = gguf.GGMLQuantizationType
    for name, (number, elems, size) in SIZES.items():
        if number not in types._value2member_map_:
            member = int.__new__(types, number)
            member._name_, member._value_ = name, number
            types._value2member_map_[number] = member
        gguf.GGML_QUANT_SIZES.setdefault(types(number), (elems, size))


def expand(data, name):
    """f32 of the blocks in `data`: signs of Q1_0, -1 to 2 of Q2_0, times the scale of their block."""
    _, elems, size = SIZES[name]
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(-1, size)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = 128 // elems
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (blocks[:, 2:, None] >> shifts) & ((1 << bits) - 1)
    codes = codes.reshape(-1, elems).astype(np.float32)
    return scales * (2.0 * codes - 1.0 if bits == 1 else codes - 1.0)
