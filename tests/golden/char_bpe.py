"""A small vocabulary of the tokenizer model `gemma4`, and llama.cpp's ids of awkward strings with it: char_bpe.json.

Owns: merges trained on the project's own prose by joining the most frequent pair, spaces as `▁`; tokens that are runs of newlines
and whose merges are not in the list; a byte without a token; characters without one.
"""

import collections

try:
    import gguf
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
import spm
import vocabulary as vocabulary_file
from tiny import join_pair

N_MERGES = 200
KIND = gguf.TokenType
# A byte that is no token drops out of the text.
NO_BYTE = 0xB7


def train(text):
    units = collections.Counter(tuple(unit) for unit in text.replace(" ", "\u2581").split("\n"))
    merges = []
    while len(merges) < N_MERGES:
        pairs = collections.Counter()
        for unit, n in units.items():
            for pair in zip(unit, unit[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        units = collections.Counter({join_pair(unit, best): n for unit, n in units.items()})
    return merges


def vocabulary(text, merges):
    rows = [("<pad>", KIND.CONTROL), ("<eos>", KIND.CONTROL), ("<bos>", KIND.CONTROL), ("<unk>", KIND.UNKNOWN)]
    rows += [("<|turn>", KIND.CONTROL), ("<turn|>", KIND.CONTROL), ("<|channel>", KIND.USER_DEFINED), ("</s>", KIND.NORMAL)]
    rows += [("<|tool_response>", KIND.USER_DEFINED)]
    rows += [(f"<0x{b:02X}>", KIND.BYTE) for b in range(256) if b != NO_BYTE]
    seen = {text for text, _ in rows}
    for piece in [*sorted(set(text.replace(" ", "\u2581"))), "\n", "\n\n", "\n\n\n\n", "\u2581\u2581", *(a + b for a, b in merges)]:
        if piece not in seen:
            seen.add(piece)
            rows.append((piece, KIND.NORMAL))
    return rows


def main():
    prose = (common.DATA / "prose.txt").read_text()[:6000]
    merges = train(prose)
    tokens, kinds = map(list, zip(*vocabulary(prose, merges)))
    lists = [" ".join(pair) for pair in merges]
    texts = spm.strings() + ["\n" * n for n in range(1, 8)] + ["a\n\n b\n\n\n c\n", " \n  \n", "<|turn>user\nthe <turn|>\n\n", "·ñ\n·"]

    def write_more(writer):
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_merges(lists)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)

    with vocabulary_file.loaded("gemma4", tokens, kinds, write_more) as peer:
        row = {
            "provenance": common.provenance("python tests/golden/char_bpe.py"),
            "tokens": [[token, int(kind)] for token, kind in zip(tokens, kinds)],
            "merges": lists,
            "strings": texts,
            "parse_special": [peer.tokenize(t) for t in texts],
            "no_special": [peer.tokenize(t, False) for t in texts],
            "eog": [i for i in range(peer.n_vocab) if llama_cpp.llama_vocab_is_eog(peer.vocab, i)],
            "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(peer.vocab)),
        }
    common.dump(common.GOLDEN / "char_bpe.json", row)


if __name__ == "__main__":
    main()
