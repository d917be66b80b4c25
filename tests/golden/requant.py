"""Other quantisations of one model, made by llama.cpp's own quantiser, for tests and comparisons.

Owns: the list of targets and the names of the files (STEM-TYPE.gguf in the directory given).
With `--only PATTERN` tensors whose name has it get the type, and the rest Q4_1: types of one and two bits leave no sense in all of a model that
was not trained for them.
Refuses: to claim quality: the source is quantised already (Q4_1 for the demo model), so F32 and F16 here are the
same weights written out, and the others lose a second time. Files are for development and are not committed.
"""

import argparse
import ctypes
import pathlib
import sys

try:
    import gguf
    import llama_cpp
    import numpy as np

    import few
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

TARGETS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q5_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0,
    "q5_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_1,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q2_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
    "q3_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
    "iq4_nl": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL,
    "iq4_xs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_XS,
    "iq3_s": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S,
    "iq3_xxs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_XXS,
    "iq2_s": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_S,
    "iq2_xs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XS,
    "iq2_xxs": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XXS,
    "tq1_0": llama_cpp.LLAMA_FTYPE_MOSTLY_TQ1_0,
    "tq2_0": llama_cpp.LLAMA_FTYPE_MOSTLY_TQ2_0,
    "q2_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_0,
    "q1_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q1_0,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "f32": llama_cpp.LLAMA_FTYPE_ALL_F32,
}


def indifferent(source):
    """An importance matrix that prefers nothing, without which the quantiser refuses types of two bits: an array that ends with a null."""
    rows = []
    for tensor in gguf.GGUFReader(source).tensors:
        if len(tensor.shape) == 2:
            ones = np.ones(int(tensor.shape[0]), np.float32)
            rows.append((tensor.name.encode(), np.ctypeslib.as_ctypes(ones), ones.size))
    array = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, ones, size) in zip(array, rows):
        entry.name, entry.data, entry.size = name, ctypes.cast(ones, ctypes.POINTER(ctypes.c_float)), size
    return array


def tensors_alone(pattern, kind):
    """Overrides for tensors by a regular expression: an array that ends with a null."""
    rows = (llama_cpp.llama_model_tensor_override * 2)()
    number = few.SIZES[kind.upper()][0] if kind.upper() in few.SIZES else gguf.GGMLQuantizationType[kind.upper()].value
    rows[0].pattern, rows[0].type = pattern.encode(), number
    return rows


def requantise(source, target_path, kind, only=None):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TARGETS[kind]
    params.nthread = 2
    params.allow_requantize = True
    if only:
        overrides = tensors_alone(only, kind)
        params.ftype, params.tt_overrides = TARGETS["q4_1"], overrides
    if kind.startswith("iq2"):
        rows = indifferent(source)
        params.imatrix = rows
    part = target_path.with_suffix(".gguf.part")
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params))
    if status != 0:
        part.unlink(missing_ok=True)
        raise RuntimeError(f"{source}: llama.cpp's quantiser gave {status} for {kind}")
    part.rename(target_path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--stem", help="first part of the file names (default: the model's name)")
    most = ",".join(kind for kind in TARGETS if kind != "q1_0")  # whose blocks of 128 do not fit the demo model's 576 columns
    parser.add_argument("--types", default=most, help="comma-separated, of " + ", ".join(TARGETS) + " [default: all but q1_0]")
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression: tensors whose name has it get the type, and the rest Q4_1")
    args = parser.parse_args()
    kinds = args.types.split(",")
    unknown = [k for k in kinds if k not in TARGETS]
    if unknown:
        sys.exit(f"requant.py: --types {unknown[0]}: one of {', '.join(TARGETS)}")
    args.directory.mkdir(parents=True, exist_ok=True)
    llama_cpp.llama_backend_init()
    for kind in kinds:
        target = args.directory / f"{args.stem or args.model.stem}-{kind}.gguf"
        requantise(args.model, target, kind, args.only)
        print(f"{target} {target.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
