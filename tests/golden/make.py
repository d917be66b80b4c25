"""Writes the goldens of the demo model: tokens, logits, ppl, evict and greedy .json, each with its provenance.

Owns: which texts, prompts, windows and policies are pinned. The f32 reference is the truth for numbers, llama.cpp for
tokens; llama.cpp's own numbers stand beside the reference's, to show how far apart two honest engines are.
Refuses: to read anything of lowkey. Run: python tests/golden/make.py [tokens logits ppl evict greedy]
"""

import argparse
import json

try:
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
from peer import Peer
from reference import Reference, log_softmax, nll_of_next

TEXTS = ("prose", "technical")
TOP = 20
PPL_CTX = (512, 1024)
EVICT = {"n_tokens": 400, "n_slot": 96, "sinks": 4, "recent": 32}
EVICT_HEADS = ((0, 0), (14, 1), (29, 2))
GREEDY_TOKENS = 40
CHAT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
GREEDY_PROMPTS = {
    "fact": "The capital of France is",
    "chat": CHAT.format("Name three colours and say why the sky is blue."),
    "list": "Here is a recipe for bread. Ingredients:\n- 500 g of flour\n- 300 ml of water\n",
}


class Tools:
    """The model in both engines, loaded when first asked for."""

    def __init__(self, model):
        self.model = model
        self._peer = self._reference = None

    @property
    def peer(self):
        self._peer = self._peer or Peer(self.model, n_ctx=2048)
        return self._peer

    @property
    def reference(self):
        self._reference = self._reference or Reference(self.model)
        return self._reference

    def text_ids(self, name):
        return self.peer.tokenize(read_text(name))


def read_text(name):
    return (common.DATA / f"{name}.txt").read_bytes().decode()


def rounded(values, digits=5):
    return [round(float(v), digits) for v in values]


def make_tokens(tools):
    nasty = json.loads((common.DATA / "nasty.json").read_text())
    texts = {}
    for name in TEXTS:
        ids = tools.text_ids(name)
        texts[name] = {"count": len(ids), "sha256_u32le": common.sha256_ids(ids), "first": ids[:64]}
    return {
        "texts": texts,
        "strings": "tests/data/nasty.json, in its order; no token added",
        "parse_special": [tools.peer.tokenize(s, True) for s in nasty],
        "no_special": [tools.peer.tokenize(s, False) for s in nasty],
    }


def logits_prompts(tools):
    prose, technical = tools.text_ids("prose"), tools.text_ids("technical")
    prompts = {
        "capital-5": tools.peer.tokenize("The capital of France is"),
        "count": tools.peer.tokenize("1, 2, 3, 4, 5, 6, 7,"),
        "code": tools.peer.tokenize("def fibonacci(n):\n    if n < 2:\n        return n\n    return"),
        "chat": tools.peer.tokenize(CHAT.format("What is the largest planet?")),
        "special-1": [1],
    }
    for name, ids, start, n in (
        ("prose-32", prose, 0, 32),
        ("prose-100", prose, 700, 100),
        ("technical-129", technical, 300, 129),
        ("technical-256", technical, 0, 256),
        ("prose-333", prose, 1500, 333),
        ("technical-500", technical, 1000, 500),
    ):
        prompts[name] = ids[start : start + n]
    return prompts


def make_logits(tools):
    rows = []
    for name, ids in logits_prompts(tools).items():
        ours = tools.reference.logits(ids, last_only=True)[0]
        theirs = tools.peer.logits(ids)[-1]
        top = np.argsort(-ours, kind="stable")[:TOP]
        rows.append(
            {
                "name": name,
                "n": len(ids),
                "prompt": ids,
                "top_ids": top.tolist(),
                "logits": rounded(ours[top]),
                "logprobs": rounded(log_softmax(ours)[top]),
                "llama_cpp_logits": rounded(theirs[top]),
                "llama_cpp_logprobs": rounded(log_softmax(theirs)[top]),
                "llama_cpp_mean_abs_error_top10": round(float(np.abs(ours - theirs)[top[:10]].mean()), 5),
                "llama_cpp_mean_abs_error": round(float(np.abs(ours - theirs).mean()), 5),
            }
        )
        print(name, len(ids), rows[-1]["llama_cpp_mean_abs_error_top10"])
    return {"reference": "f32 weights, activations and cache; last position", "prompts": rows}


def make_ppl(tools):
    rows = []
    for name in TEXTS:
        ids = tools.text_ids(name)
        for n_ctx in PPL_CTX:
            windows = [ids[i : i + n_ctx] for i in range(0, len(ids) - n_ctx + 1, n_ctx)]
            row = {"text": name, "ctx": n_ctx, "n_windows": len(windows), "n_tokens": len(windows) * (n_ctx - 1)}
            for engine, logits in (("reference", tools.reference.logits), ("llama_cpp", tools.peer.logits)):
                nll = [float(nll_of_next(logits(w), w).mean()) for w in windows]
                row[engine] = {
                    "nll": round(float(np.mean(nll)), 6),
                    "ppl": round(float(np.exp(np.mean(nll))), 5),
                    "window_nll": rounded(nll, 6),
                }
            print(row)
            rows.append(row)
    protocol = "consecutive windows of ctx tokens, a last partial one left out, no token added, tokens 2..ctx scored"
    return {"protocol": protocol, "rows": rows}


def make_evict(tools):
    ids = tools.text_ids("prose")[: EVICT["n_tokens"]]
    reference = tools.reference
    norms = key_norms(reference, ids)
    rows = []
    for policy in ("off", "l2", "l2-paper", "window"):
        n_slot = None if policy == "off" else EVICT["n_slot"]
        logits, kept = reference.stream(ids, n_slot, policy, EVICT["sinks"], EVICT["recent"])
        nll = nll_of_next(logits, ids)
        row = {"policy": policy, "n_slot": n_slot, "nll": round(float(nll.mean()), 6)}
        row["nll_after_full"] = round(float(nll[EVICT["n_slot"] :].mean()), 6)
        if n_slot:
            row["kept"] = [{"layer": la, "head": he, "positions": kept[la][he]} for la, he in EVICT_HEADS]
        print(policy, row["nll"], row["nll_after_full"])
        rows.append(row)
    return {
        "text": "prose",
        **EVICT,
        "cache": "f16 keys and values, scores from the unrounded f32 key",
        "nll": "mean over tokens 2..n_tokens; nll_after_full: mean over tokens n_slot + 2..n_tokens (1-based)",
        "kept_note": "exact only for an engine with the same keys: with quantised activations compare the overlap",
        "rows": rows,
        "key_norms_note": "layer 0 only: deeper keys depend on what was evicted below; f32 to nine digits, by position",
        "key_norms_layer0": [[float(f"{x:.9g}") for x in norms[:, head]] for head in range(reference.n_head_kv)],
    }


def key_norms(reference, ids):
    """Norms [n, n_head_kv] of layer 0's keys, which no eviction can change."""
    found = []

    def attend(_layer, q, k, v):
        if not found:
            found.append(np.sqrt(np.sum(np.square(k), axis=-1, dtype=np.float32)))
        return reference._full_attention(q, k, v)

    reference.forward(ids, attend)
    return found[0]


def make_greedy(tools):
    rows = []
    for name, text in GREEDY_PROMPTS.items():
        prompt = tools.peer.tokenize(text)
        tokens, margins = tools.reference.greedy(prompt, GREEDY_TOKENS)
        rows.append(
            {"name": name, "text": text, "prompt": prompt, "tokens": tokens, "margins": rounded(margins, 4)}
        )
        print(name, sorted(margins)[:3])
    return {"note": "end-of-text tokens do not stop it; stop comparing where the margin is small", "prompts": rows}


MAKERS = {
    "tokens": make_tokens,
    "logits": make_logits,
    "ppl": make_ppl,
    "evict": make_evict,
    "greedy": make_greedy,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=", ".join(MAKERS) + "; default all")
    parser.add_argument("--model")
    args = parser.parse_args()
    parts = args.parts or list(MAKERS)
    if unknown := [p for p in parts if p not in MAKERS]:
        parser.error(f"{unknown[0]}: one of {', '.join(MAKERS)}")
    tools = Tools(common.find_model(args.model))
    for part in parts:
        source = common.provenance(f"python tests/golden/make.py {part}", tools.model)
        common.dump(common.GOLDEN / f"{part}.json", {"provenance": source} | MAKERS[part](tools))


if __name__ == "__main__":
    main()
