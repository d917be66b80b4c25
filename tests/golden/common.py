"""What the golden scripts share: finding the model, hashing, provenance, and JSON that is kind to diffs.

Owns: paths below the repository root and the layout of the JSON files.
Refuses: to run without a model; the message says how to get one.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

try:
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "tests" / "golden"
MODEL = "models/smollm2-135m-instruct-q4_1.gguf"


def find_model(path=None):
    """The path given, else LOWKEY_TEST_MODEL, else the demo model below the root."""
    found = pathlib.Path(path or os.environ.get("LOWKEY_TEST_MODEL") or ROOT / MODEL)
    if not found.is_file():
        sys.exit(f"{found}: no such model; run `make model` or set LOWKEY_TEST_MODEL")
    return found


def sha256_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_ids(ids):
    """SHA-256 over the ids as little-endian u32, four bytes each."""
    return hashlib.sha256(np.asarray(ids, "<u4").tobytes()).hexdigest()


def provenance(command, model=None):
    from peer import provenance as peer_provenance

    out = {"command": command}
    if model is not None:
        out["model_sha256"] = sha256_file(model)
        out["model_bytes"] = model.stat().st_size
    out |= {"python": platform.python_version(), "numpy": np.__version__, "gguf": importlib.metadata.version("gguf")}
    return out | peer_provenance()


def dump(path, value):
    """Objects and lists are opened down to the third level, one entry a line; below that they stay on one line."""
    pathlib.Path(path).write_text(_layout(value, 0) + "\n")
    print(path, pathlib.Path(path).stat().st_size, "bytes", file=sys.stderr)


def _layout(value, level):
    plain = json.dumps(value)
    if level == 3 or len(plain) < 100 or not isinstance(value, (dict, list)):
        return plain
    if isinstance(value, list) and not any(isinstance(v, (dict, list)) for v in value):
        return plain
    pad = " " * (level + 1)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(k)}: {_layout(v, level + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * level + "}"
    return "[\n" + ",\n".join(pad + _layout(v, level + 1) for v in value) + "\n" + " " * level + "]"
