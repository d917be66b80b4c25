"""Writes tiny random models of GGUF's `llama` architecture into tests/data, and their goldens into tiny.json.

Owns: the shapes (MHA, GQA, MQA; head sizes 32, 64, 80; tied and separate output; rope_freqs), the mix of weight types,
and a byte-level BPE vocabulary of 300 tokens trained on the project's own prose. Seeds are fixed: same bytes each run.
Refuses: to be a model of anything. Two of them are F32 in every matrix that a key depends on, so that an engine must
keep exactly the positions that the reference keeps; tiny.json states how near the nearest decision was.
"""

import argparse
import collections
import re

try:
    import gguf
    import numpy as np
    from gguf import GGMLQuantizationType as T
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
from peer import Peer
from reference import Reference, victim

N_VOCAB = 300
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
POSITIONS = (0, 19, 39)
STREAMS = tuple({"policy": p, "n_slot": 12, "sinks": 2, "recent": 4} for p in ("l2", "l2-paper", "window"))
STRINGS = (
    "The lamp was lit.", " the  town\n\n and the\tlight", "it's 1234 o'clock", "<|im_start|>the<|im_end|>\n", "é 字 😀\r\n", ""
)


def spec(n_embd, n_head, n_head_kv, head_dim, n_ff, types, output=None, freqs=False, base=10000.0, bos=False):
    return dict(
        n_embd=n_embd, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim, n_ff=n_ff, n_layer=2,
        types=types, output=output, freqs=freqs, base=base, bos=bos,
    )  # fmt: skip


# types: of token_embd, then of q k v output gate up down in layer 0 and layer 1
MODELS = {
    "mha": spec(32, 2, 2, 32, 32, (T.F32, [T.F32] * 7, [T.F32] * 7)),
    "gqa-f32": spec(32, 4, 2, 32, 32, (T.Q8_0, [T.F32] * 7, [T.F32] * 7), base=100000.0),
    "gqa": spec(
        64, 4, 2, 64, 96,
        (T.Q4_0, [T.Q4_0, T.Q4_1, T.Q8_0, T.Q4_1, T.Q4_0, T.Q4_0, T.Q4_1], [T.Q4_1, T.Q4_0, T.Q4_1, T.Q4_0, T.Q8_0, T.Q4_1, T.Q4_0]),
        output=T.Q8_0,
    ),
    "mqa": spec(96, 2, 1, 80, 96, (T.Q8_0, [T.Q4_1] * 7, [T.Q4_1, T.F16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q8_0, T.Q4_1]), bos=True),
    "freqs": spec(
        64, 2, 1, 64, 64,
        (T.Q4_1, [T.F16, T.F16, T.Q8_0, T.Q8_0, T.Q8_0, T.Q8_0, T.Q8_0], [T.Q8_0, T.Q8_0, T.Q8_0, T.Q8_0, T.Q8_0, T.F16, T.Q8_0]),
        output=T.F16, freqs=True, base=500000.0,
    ),
}  # fmt: skip
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def byte_alphabet():
    """The 256 printable stand-ins of byte-level BPE: printable Latin-1 bytes stand for themselves, others from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, next_free = {}, 0x100
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(next_free)
            next_free += 1
    return table


def train_vocab():
    """Tokens, their types and merges; the most frequent pair first, ties to the smaller pair."""
    alphabet = byte_alphabet()
    words = collections.Counter(re.findall(r" ?[A-Za-z]+", (common.DATA / "prose.txt").read_text()))
    words = {tuple(alphabet[b] for b in word.encode()): n for word, n in words.items()}
    tokens = list(SPECIAL) + [alphabet[b] for b in range(256)]
    merges = []
    while len(tokens) < N_VOCAB:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(" ".join(best))
        tokens.append("".join(best))
        words = {join_pair(word, best): n for word, n in words.items()}
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(SPECIAL))
    return tokens, kinds, merges


def join_pair(word, pair):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append("".join(pair))
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def write_model(path, name, s, seed):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"tiny {name}")
    writer.add_context_length(256)
    writer.add_embedding_length(s["n_embd"])
    writer.add_block_count(s["n_layer"])
    writer.add_feed_forward_length(s["n_ff"])
    writer.add_head_count(s["n_head"])
    writer.add_head_count_kv(s["n_head_kv"])
    writer.add_key_length(s["head_dim"])
    writer.add_value_length(s["head_dim"])
    writer.add_rope_dimension_count(s["head_dim"])
    writer.add_rope_freq_base(s["base"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    tokens, kinds, merges = train_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(s["bos"])
    writer.add_add_space_prefix(False)
    for tensor, data, kind in tensors(s, np.random.default_rng(seed)):
        if kind == T.F32:
            writer.add_tensor(tensor, data)
        else:
            writer.add_tensor(tensor, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(s, rng):
    """(name, f32 array, type) of each; matrices are [n_out, n_in] with variance 1 / n_in, norms lie around 1."""
    q_dim, kv_dim = s["n_head"] * s["head_dim"], s["n_head_kv"] * s["head_dim"]
    n_embd, n_ff = s["n_embd"], s["n_ff"]
    shapes = ((q_dim, n_embd), (kv_dim, n_embd), (kv_dim, n_embd), (n_embd, q_dim), (n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff))

    def matrix(n_out, n_in, gain=1.0):
        return (rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def norm():
        return rng.uniform(0.5, 1.5, n_embd).astype(np.float32)

    yield "token_embd.weight", matrix(N_VOCAB, n_embd, 2.0), s["types"][0]
    for layer in range(s["n_layer"]):
        yield f"blk.{layer}.attn_norm.weight", norm(), T.F32
        yield f"blk.{layer}.ffn_norm.weight", norm(), T.F32
        for name, shape, kind in zip(MATRICES, shapes, s["types"][1 + layer]):
            yield f"blk.{layer}.{name}.weight", matrix(*shape, 1.5), kind
    yield "output_norm.weight", norm(), T.F32
    if s["output"] is not None:
        yield "output.weight", matrix(N_VOCAB, n_embd, 2.0), s["output"]
    if s["freqs"]:
        yield "rope_freqs.weight", np.linspace(1.0, 8.0, s["head_dim"] // 2, dtype=np.float32), T.F32


def goldens(path, s, ids):
    ours, theirs = Reference(path).logits(ids), Peer(path, n_ctx=256)
    peer_logits = theirs.logits(ids)
    row = {
        "file": f"tests/data/{path.name}",
        "sha256": common.sha256_file(path),
        "shape": {k: s[k] for k in ("n_embd", "n_head", "n_head_kv", "head_dim", "n_ff", "n_layer")},
        "logits": [listed(ours[p]) for p in POSITIONS],
        "llama_cpp_logits": [listed(peer_logits[p]) for p in POSITIONS],
        "llama_cpp_max_abs_error": round(float(np.abs(ours - peer_logits).max()), 5),
        "strings": [{"text": t, "ids": theirs.tokenize(t), "no_special": theirs.tokenize(t, False)} for t in STRINGS],
    }
    theirs.close()
    print(path.name, path.stat().st_size, "bytes, llama.cpp max abs error", row["llama_cpp_max_abs_error"])
    if all(kind == T.F32 for layer in s["types"][1:] for kind in layer):
        row["streams"] = [stream_golden(path, ids, rule) for rule in STREAMS]
    return row


def listed(row):
    return [round(float(v), 4) for v in row]


def stream_golden(path, ids, rule):
    """Kept positions of every head, logits, and the smallest relative gap between a victim and the runner-up."""
    gaps = []

    class Watched(Reference):
        def _stream_head(self, q, k, v, norms, n_slot, policy):
            gaps.append(closest_decision(norms, n_slot, policy, len(q)))
            return super()._stream_head(q, k, v, norms, n_slot, policy)

    logits, kept = Watched(path).stream(ids, rule["n_slot"], rule["policy"], rule["sinks"], rule["recent"])
    out = dict(rule) | {"kept": kept, "logits": [listed(logits[p]) for p in POSITIONS]}
    if rule["policy"] != "window":
        out["closest_decision"] = float(f"{min(gaps):.3g}")
        print("  ", rule["policy"], "closest decision", out["closest_decision"])
    return out


def closest_decision(norms, n_slot, rule, n):
    live, gap = [], np.inf
    for t in range(n):
        if len(live) == n_slot:
            first = victim(live, norms, t, *rule)
            rest = [p for p in live if p != first and (rule[0] != "l2" or rule[1] <= p <= t - rule[2])]
            if rest and rule[0] != "window":
                gap = min(gap, min((norms[first] - norms[p]) / norms[first] for p in rest))
            live.remove(first)
        live.append(t)
    return gap


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    # Distinct ids: equal tokens have equal key norms in layer 0 but for rounding, and no engine could be held to those.
    ids = [int(i) for i in 3 + np.random.default_rng(40).permutation(N_VOCAB - 3)[:40]]
    rows = {}
    for seed, (name, s) in enumerate(MODELS.items()):
        path = common.DATA / f"tiny-{name}.gguf"
        write_model(path, name, s, 1000 + seed)
        rows[name] = goldens(path, s, ids)
    source = common.provenance("python tests/golden/tiny.py")
    common.dump(
        common.GOLDEN / "tiny.json",
        {"provenance": source, "ids": ids, "positions": list(POSITIONS), "models": rows},
    )


if __name__ == "__main__":
    main()
