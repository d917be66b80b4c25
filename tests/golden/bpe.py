"""One small byte-level vocabulary under the name of every rule for cutting words, and llama.cpp's ids: bpe.json.

Owns: merges trained on whole texts, across spaces and lines, so that wherever a rule cuts, the ids change; and words that
are tokens but that no merges make, which only rules that take whole words first can give.
"""

import collections
import json

try:
    import gguf
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common
import vocabulary
from tiny import join_pair
from vocabs import PARTS, Dice, hash_of

N_MERGES, N_RANDOM = 500, 160
NAMES = """default smollm starcoder refact command-r codeshell exaone minerva-7b mellum2 gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt
olmo jais trillion granite-docling llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 glm4 tekken gpt-4o llama4 kanana2
talkie deepseek-coder deepseek-llm smaug-bpe dbrx chatglm-bpe qwen2 deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open qwen35
minicpm5 falcon hunyuan-dense""".split()
WHOLE = ["Then", " reading", "Servers", "снег", "\n\n\n", "4567", "'ll", "中ア", "HTTP", " //", "x\u0301y"]
SPECIAL = ["<s>", "</s>", "<|im_end|>", "<fim_prefix>", "<fim_pad>", "<|repo_name|>"]
KIND = gguf.TokenType


def byte_chars():
    """The character that stands for each byte (GPT-2)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in own]
    return {b: chr(b if b in own else 256 + rest.index(b)) for b in range(256)}


CHARS = byte_chars()


def spelled(text):
    return "".join(CHARS[b] for b in text.encode())


def texts():
    dice = Dice("bpe")
    drawn = ["".join(PARTS[dice.below(len(PARTS))] for _ in range(1 + dice.below(14))) for _ in range(N_RANDOM)]
    return drawn + [t for t in json.loads((common.DATA / "nasty.json").read_text()) if len(t) < 60]


def train(texts):
    words = collections.Counter(tuple(spelled(t)) for t in texts if t)
    merges = []
    while len(merges) < N_MERGES:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min((p for p in pairs if "".join(p) not in SPECIAL), key=lambda p: (-pairs[p], p))
        merges.append(best)
        words = {join_pair(word, best): n for word, n in words.items()}
    return merges


def main():
    strings = texts()
    merges = train(strings)
    # Two merges may make the same token.
    tokens = list(dict.fromkeys([*CHARS.values(), *("".join(m) for m in merges), *map(spelled, WHOLE)]))
    kinds = [KIND.NORMAL] * len(tokens) + [KIND.CONTROL] * 2 + [KIND.NORMAL] * (len(SPECIAL) - 2)
    bos = len(tokens)
    tokens += SPECIAL
    assert len(set(tokens)) == len(tokens)
    groups = {}
    for name in NAMES:

        def write_more(writer, name=name):
            writer.add_tokenizer_pre(name)
            writer.add_token_merges([" ".join(m) for m in merges])
            writer.add_bos_token_id(bos)
            writer.add_eos_token_id(bos + 1)

        with vocabulary.loaded("gpt2", tokens, kinds, write_more) as peer:
            row = {
                "adds_bos": llama_cpp.llama_vocab_get_add_bos(peer.vocab),
                "eog": [i for i in range(peer.n_vocab) if llama_cpp.llama_vocab_is_eog(peer.vocab, i)],
                "ids": "".join(f"{hash_of(peer.tokenize(t, i % 2 == 0)) & 0xFFFF:04x}" for i, t in enumerate(strings)),
            }
        groups.setdefault(json.dumps(row), []).append(name)
    rows = [{"names": names} | json.loads(row) for row, names in groups.items()]
    print(len(strings), "texts,", len(rows), "rules that differ")
    source = common.provenance("python tests/golden/bpe.py")
    whole = {"tokens": tokens, "merges": [" ".join(m) for m in merges], "bos": bos, "strings": strings, "rules": rows}
    common.dump(common.GOLDEN / "bpe.json", {"provenance": source} | whole)


if __name__ == "__main__":
    main()
