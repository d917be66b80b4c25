"""Small SentencePiece vocabularies, and llama.cpp's ids of awkward strings with them: spm.json.

Owns: pieces trained on the project's own prose by joining the most frequent pair, scores by rank, some of them equal.
Three models: as files usually are; no space prefix and tokens that reach over a space; and one named Phi-3, whose special
tokens swallow the white space behind them.
"""

import collections
import json
import random

try:
    import gguf
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
import vocabulary as vocabulary_file
from tiny import join_pair

N_PIECES = 160
KIND = gguf.TokenType


def train(text, by_words):
    """Pieces with their scores, single characters last."""
    text = "\u2581" + text.replace(" ", "\u2581")
    units = text.replace("\u2581", " \u2581").split(" ") if by_words else text.split("\u2581\u2581")
    words = {tuple(word): n for word, n in collections.Counter(units).items()}
    pieces = []
    while len(pieces) < N_PIECES:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        # Every third piece has the score of the one before: then the leftmost is joined first.
        pieces.append(("".join(best), -float(len(pieces) - (len(pieces) % 3 == 2))))
        words = {join_pair(word, best): n for word, n in words.items()}
    chars = sorted(set(text))
    return pieces + [(c, -1000.0 - i) for i, c in enumerate(chars)]


def vocabulary(text, by_words, special):
    rows = [("<unk>", 0.0, KIND.UNKNOWN), ("<s>", 0.0, KIND.CONTROL), ("</s>", 0.0, KIND.CONTROL)]
    rows += [(f"<0x{b:02X}>", 0.0, KIND.BYTE) for b in range(256)]
    rows += [(piece, score, KIND.NORMAL) for piece, score in train(text, by_words)]
    return rows + special


def strings():
    rng = random.Random(3)
    parts = [*" \t\n\u2581'sTaeiontrh.,<|>", "  ", " the", "and ", "<s>", "</s>", "<|end|>", "<|user|>", "<0x41>", "<unk>", "<u u>", "é", "字", "😀"]
    nasty = [s for s in json.loads((common.DATA / "nasty.json").read_text()) if len(s) < 40]
    # Equal pairs that overlap: the leftmost is joined first.
    repeated = [" ".join(c * 5 for c in "aeiolstn"), "esese erere ananan", *(c * 7 for c in "els")]
    return repeated + nasty[::6] + ["".join(rng.choice(parts) for _ in range(rng.randrange(1, 16))) for _ in range(60)]


def main():
    prose = (common.DATA / "prose.txt").read_text().replace("\n", " ")[:6000]
    own = [("<u u>", 0.0, KIND.USER_DEFINED), ("<|end|>", 0.0, KIND.CONTROL), ("<|user|>", 0.0, KIND.CONTROL)]
    own += [("<|endoftext|>", 0.0, KIND.CONTROL)]
    models = {
        "usual": ("small", True, vocabulary(prose, True, own)),
        "over-spaces": ("small", False, vocabulary(prose, False, own)),
        "phi-3": ("Phi-3 small", True, vocabulary(prose, True, own)),
    }
    texts, rows = strings(), {}
    for name, (title, prefix, vocab) in models.items():
        tokens, scores, kinds = map(list, zip(*vocab))

        def write_more(writer, title=title, scores=scores, prefix=prefix):
            writer.add_name(title)
            writer.add_token_scores(scores)
            writer.add_add_space_prefix(prefix)

        with vocabulary_file.loaded("llama", tokens, kinds, write_more) as peer:
            # From 3 on there are the 256 bytes, which the test puts in again.
            rest = vocab[:3] + vocab[259:]
            rows[name] = {
                "name": title,
                "space_prefix": prefix,
                "tokens": [[token, score, int(kind)] for token, score, kind in rest],
                "parse_special": [peer.tokenize(t) for t in texts],
                "no_special": [peer.tokenize(t, False) for t in texts],
            }
    source = common.provenance("python tests/golden/spm.py")
    common.dump(common.GOLDEN / "spm.json", {"provenance": source, "strings": texts, "models": rows})


if __name__ == "__main__":
    main()
