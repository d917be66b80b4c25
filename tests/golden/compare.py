"""How far engines are from the f32 reference on one model and text: KL divergence, top-1 agreement, perplexity, and the
mean absolute logit error in the top ten at the ends of the prompts of logits.json.

Owns: the comparison of llama.cpp (its defaults, f16 cache) and of lowkey, both against the same reference logits.
Refuses: to judge; it prints. lowkey hands its logits over by `lowkey eval ppl … --logits-out FILE.npy`
(f32 [n_windows * ctx, n_vocab], row i after token i of the window). Any llama-arch GGUF goes in, so that
requantised models can be compared too. For other families `--truth FILE` names the same weights in F32 (requant.py
--types f32), and llama.cpp on them is the reference; prompts are left out then. Run: python tests/golden/compare.py --lowkey target/release/lowkey
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
from peer import Peer
from reference import Reference

CHUNK_ROWS = 256


def windows_of(ids, n_ctx, limit):
    found = [ids[i : i + n_ctx] for i in range(0, len(ids) - n_ctx + 1, n_ctx)]
    return found[:limit]


def log_probs(rows):
    x = rows.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def divergence(truth, other, windows):
    """Over every row of [n_windows * ctx, n_vocab]: KL(truth || other) in nats, top-1 agreement, nll of both."""
    n_ctx = len(windows[0])
    kl, same, nll_truth, nll_other = [], [], [], []
    for start in range(0, len(truth), CHUNK_ROWS):
        a, b = log_probs(truth[start : start + CHUNK_ROWS]), log_probs(other[start : start + CHUNK_ROWS])
        kl.append((np.exp(a) * (a - b)).sum(axis=-1))
        same.append(a.argmax(axis=-1) == b.argmax(axis=-1))
        for i in range(len(a)):
            window, offset = divmod(start + i, n_ctx)
            if offset + 1 < n_ctx:
                target = windows[window][offset + 1]
                nll_truth.append(-a[i, target])
                nll_other.append(-b[i, target])
    kl = np.concatenate(kl)
    return {
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.percentile(kl, 99)),
        "kl_max": float(kl.max()),
        "top1_agreement": float(np.concatenate(same).mean()),
        "ppl_reference": float(np.exp(np.mean(nll_truth))),
        "ppl": float(np.exp(np.mean(nll_other))),
        "n_scored": len(nll_other),
    }


def top_error(truth, other):
    top = np.argsort(-truth, kind="stable")[:10]
    return float(np.abs(truth - other)[top].mean())


class Lowkey:
    """Logits of the binary through files in a temporary directory."""

    def __init__(self, binary, model, extra):
        self.binary, self.model, self.extra = binary, model, extra

    def text_logits(self, text_path, n_ctx):
        with tempfile.TemporaryDirectory() as directory:
            out = pathlib.Path(directory) / "logits.npy"
            command = [self.binary, "eval", "ppl", "-m", self.model, "-f", text_path, "--ctx", n_ctx, "--keep", "100%", "--logits-out", out]
            done = subprocess.run([str(c) for c in command + self.extra], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"compare.py: {self.binary} exited {done.returncode}: {done.stderr.strip()[-500:]}")
            return np.load(out)

    def prompt_logits(self, text, n_tokens):
        """Last row of one window that is the whole text; None if its tokens are not n_tokens."""
        with tempfile.NamedTemporaryFile("wb", suffix=".txt") as file:
            file.write(text)
            file.flush()
            rows = self.text_logits(file.name, n_tokens)
        return rows[-1] if len(rows) == n_tokens else None


def compare_text(args, reference, engines):
    text = args.text.read_bytes().decode()
    ids = engines["llama.cpp"].tokenize(text)
    windows = windows_of(ids, args.ctx, args.windows)
    if not windows:
        sys.exit(f"compare.py: --ctx {args.ctx}: {args.text} has only {len(ids)} tokens; give a smaller --ctx")
    truth = np.concatenate([reference.logits(w) for w in windows])
    print(f"{args.text.name}: {len(windows)} windows of {args.ctx} tokens", file=sys.stderr)
    rows = {}
    for name, engine in engines.items():
        if isinstance(engine, Lowkey):
            other = engine.text_logits(args.text, args.ctx)[: len(truth)]
        else:
            other = np.concatenate([engine.logits(w) for w in windows])
        if other.shape != truth.shape:
            sys.exit(f"compare.py: {name} gave logits of shape {other.shape}, the reference {truth.shape}")
        rows[name] = divergence(truth, other, windows)
    return rows


def compare_prompts(reference, engines):
    """Mean over prompts of the top-ten error. lowkey is asked only where the prompt's text gives the same ids back."""
    peer = engines["llama.cpp"]
    errors = {name: [] for name in engines}
    for prompt in json.loads((common.GOLDEN / "logits.json").read_text())["prompts"]:
        ids = prompt["prompt"]
        if len(ids) < 2 or max(ids) >= reference.n_vocab:
            continue  # one window scores nothing below two tokens; a model of another vocabulary has none of these ids
        text = peer.detokenize(ids)
        if peer.tokenize(text) != ids:
            continue
        truth = reference.logits(ids, last_only=True)[0]
        for name, engine in engines.items():
            row = engine.prompt_logits(text, len(ids)) if isinstance(engine, Lowkey) else engine.logits(ids)[-1]
            if row is not None:
                errors[name].append(top_error(truth, row))
    return {
        name: {"top10_error_mean": float(np.mean(e)), "top10_error_max": float(np.max(e)), "top10_prompts": len(e)}
        for name, e in errors.items()
        if e
    }


TABLE_HEAD = """| model | engine | KL, mean | 99th percentile | same first choice | perplexity (f32) | over f32 |
|---|---|---|---|---|---|---|"""


def table_row(model, engine, row):
    more = 100 * (row["ppl"] / row["ppl_reference"] - 1)
    return (
        f"| {model.stem} | {engine} | {row['kl_mean']:.5f} | {row['kl_p99']:.4f} | {100 * row['top1_agreement']:.1f} % "
        f"| {row['ppl']:.3f} ({row['ppl_reference']:.3f}) | {more:+.2f} % |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=[None], help="any llama-arch GGUF, or several (default: the demo model)")
    parser.add_argument("--truth", help="the same weights in F32: llama.cpp on them is the reference")
    parser.add_argument("--text", type=pathlib.Path, default=common.DATA / "prose.txt")
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4, help="at most so many windows of the text")
    parser.add_argument("--lowkey", help="the binary; without it only llama.cpp is compared")
    parser.add_argument("--lowkey-args", default="", help="more flags for lowkey, in one string")
    parser.add_argument("--no-prompts", action="store_true", help="leave the top-ten errors out")
    parser.add_argument("-o", choices=("text", "json", "md"), default="text", help="md: a table, a row for each model and engine")
    args = parser.parse_args()
    if args.o == "md":
        print(TABLE_HEAD)
    for model in args.model:
        compare_model(args, common.find_model(model))


def compare_model(args, model):
    reference = Peer(args.truth, n_ctx=max(args.ctx, 512)) if args.truth else Reference(model)
    engines = {"llama.cpp": Peer(model, n_ctx=max(args.ctx, 512))}
    if args.lowkey:
        engines["lowkey"] = Lowkey(args.lowkey, model, args.lowkey_args.split())
    rows = compare_text(args, reference, engines)
    if not (args.no_prompts or args.truth):
        for name, more in compare_prompts(reference, engines).items():
            rows[name] |= more
    if args.o == "md":
        for name, row in rows.items():
            print(table_row(model, name, row), flush=True)
        return
    if args.o == "json":
        print(json.dumps({"model": model.name, "text": args.text.name, "ctx": args.ctx, "engines": rows}))
        return
    for name, row in rows.items():
        print(name)
        for key, value in row.items():
            print(f"  {key:18} {value:.6g}")


if __name__ == "__main__":
    main()
