"""llama.cpp's ids on the vocabulary files that its source package carries, as hashes: vocabs.json.

Owns: which texts are asked (tests/data/nasty.json and random strings of awkward parts, by one rule that tests/vocabs.rs
follows too), and what is kept of the answers: 16 bits for each nasty text, 64 for each fifty of the random ones, and the
tokens that end a generation.
Refuses: to keep the vocabularies; `models/fetch-peer-files` brings them. With --show FILE it prints the ids of one text.
"""

import argparse
import json
import pathlib

try:
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
from families import MASK, fnv1a
from peer import Peer

PARTS = [
    *" \t\n\r'\"sSdmtTlreavéßÉǅ中ア한ا1٣½Ⅷ!.,($`~|</_-\u0301\u200d\u3000\u00a0\u0085😀\u0000\u1c80\ua7a0",
    "  ", "   ", " the", "Then", "'ll", "'S", "I'M", "\r\n", "\n\n", "123", "4567", "foo(bar);", "//", "https://a.b/c?d=e", "“quoted”", "１２",
    "über", "ÀÉÎ", "ABCdef", "HTTPServer", "снег", "ξένος", "שלום", "मन", "ไทย", "你好世界", "日本語", "ｗｉｄｅ", "！？", "±≤", "\U0001d400", "e\u0301",
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<fim_prefix>", "<0x0A>", "▁", "▁▁", "Ġ", "Ċ",
]  # fmt: skip
N_RANDOM, GROUP = 1000, 50


class Dice:
    """Knuth's 64-bit linear congruential generator; the high bits are good."""

    def __init__(self, name):
        self.state = fnv1a(name.encode())

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return (self.state >> 33) % n


def random_texts(name):
    dice = Dice(name)
    return ["".join(PARTS[dice.below(len(PARTS))] for _ in range(1 + dice.below(14))) for _ in range(N_RANDOM)]


def hash_of(ids, state=None):
    state = fnv1a(b"") if state is None else state
    # Each row ends with what is no id, so that rows do not run together.
    return fnv1a(b"".join(i.to_bytes(4, "little") for i in [*ids, MASK >> 32]), state)


def row(path, nasty):
    peer = Peer(path, vocab_only=True)
    both = (True, False)
    groups = []
    texts = random_texts(path.name)
    for at in range(0, N_RANDOM, GROUP):
        state = None
        for i, text in enumerate(texts[at : at + GROUP]):
            state = hash_of(peer.tokenize(text, i % 2 == 0), state)
        groups.append(f"{state:016x}")
    is_eog = llama_cpp.llama_vocab_is_eog
    out = {
        "sha256": common.sha256_file(path),
        "n_vocab": peer.n_vocab,
        "adds": [llama_cpp.llama_vocab_get_add_bos(peer.vocab), llama_cpp.llama_vocab_get_add_eos(peer.vocab)],
        "eog": [i for i in range(peer.n_vocab) if is_eog(peer.vocab, i)],
        "nasty": ["".join(f"{hash_of(peer.tokenize(t, special)) & 0xFFFF:04x}" for t in nasty) for special in both],
        "random": groups,
    }
    peer.close()
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--show", nargs=2, metavar=("FILE", "TEXT"), help="print llama.cpp's ids and pieces of a text")
    args = parser.parse_args()
    if args.show:
        peer = Peer(args.folder / args.show[0], vocab_only=True)
        text = json.loads(args.show[1])
        for special in (True, False):
            ids = peer.tokenize(text, special)
            print(special, ids, [peer.detokenize([i]) for i in ids])
        return
    nasty = json.loads((common.DATA / "nasty.json").read_text())
    rows = {path.name: row(path, nasty) for path in sorted(args.folder.glob("ggml-vocab-*.gguf"))}
    source = common.provenance("python tests/golden/vocabs.py models/peer")
    common.dump(common.GOLDEN / "vocabs.json", {"provenance": source, "parts": PARTS, "files": rows})


if __name__ == "__main__":
    main()
