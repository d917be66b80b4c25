"""The scorecard of the cache: what a number of bytes is worth, by the default settings, by other rules, and in llama.cpp.

Owns: `make scorecard`, docs/scorecard.md. Seeds, texts and lengths are fixed here; they are others than those the default was
tuned on (docs/policies.md). Each measurement is one command, whose answer is kept in target/scorecard until the binary changes, so
that an interrupted run goes on where it was; the table says what is missing.
Refuses: to choose among results. llama.cpp (`llama-cpp-python`, tests/golden/requirements.txt) is asked only in its environment.
Run: .venv/bin/python benches/scorecard.py [GROUP …]   (groups in the order of GROUPS; without any, all)
"""

import argparse
import hashlib
import json
import math
import pathlib
import shutil
import subprocess
import sys

import texts

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("prose", "technical", "dialogue")
KEEP = (50, 25, 10, 5)
WINDOWS_TOKENS = 8192  # of each text, whatever the window
DEFAULT, OTHERS = "l2-attn", ("window", "random", "keydiff")
FEW_BITS = ("--k-type", "q5_h", "--v-type", "q4_h")
# What the default is held to: keep -> perplexity at most so much over the full f16 cache, answers found at least.
PPL_GOAL = {50: 0.2, 25: 0.9, 10: 2.5, 5: 3.5}
FOUND_GOAL = {"passkey": {50: 98, 25: 97, 10: 90}, "needle": {50: 95, 25: 85, 10: 40}}
NAMES = {DEFAULT: "lowkey's default", "window": "sinks and window", "random": "random, same protection", "keydiff": "KeyDiff"}


class Before(list):
    """Rows that another binary gave: shown, with a mark, until they are measured anew."""


class Card:
    def __init__(self, args):
        self.args = args
        self.model = pathlib.Path(args.model)
        binary = hashlib.sha256(pathlib.Path(args.lowkey).read_bytes()).hexdigest()[:16]
        self.folder = ROOT / "target" / "scorecard" / binary
        self.folder.mkdir(parents=True, exist_ok=True)
        self.before = ROOT / "target" / "scorecard" / args.before if args.before else None
        self.may_run = True

    def kept(self, key, measure):
        """The answer kept under `key`, or measured now; None where it is neither there nor wanted."""
        path = self.folder / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".json")
        if path.is_file():
            return json.loads(path.read_text())
        if not self.may_run:
            before = self.before and self.before / path.name
            return Before(json.loads(before.read_text())) if before and before.is_file() else None
        print("scorecard:", key, file=sys.stderr, flush=True)
        answer = measure()
        path.write_text(json.dumps(answer))
        return answer

    def lowkey(self, *command):
        """Rows of `lowkey eval`, with -m and -o json added."""
        words = [str(word) for word in command]

        def measure():
            full = [self.args.lowkey, *words, "-m", str(self.model), "-t", str(self.args.threads), "-o", "json"]
            return json.loads(subprocess.run(full, check=True, capture_output=True, text=True, cwd=ROOT).stdout)

        return self.kept("lowkey " + " ".join(words), measure)


def percents(keep):
    return ",".join(f"{k}%" for k in keep)


def perplexity_command(kind, ctx, *more):
    file = texts.path(kind).relative_to(ROOT)
    return "eval", "ppl", "-f", file, "--ctx", ctx, "--windows", WINDOWS_TOKENS // ctx, *more


def default_rows(card, kind, ctx):
    return card.lowkey(*perplexity_command(kind, ctx, "--keep", percents((100, *KEEP))))


def other_rows(card, kind, ctx):
    more = ("--keep", percents(KEEP[1:]), "--policies", ",".join(OTHERS), "--recent", "30%", *FEW_BITS)
    return card.lowkey(*perplexity_command(kind, ctx, *more))


def f16_window_rows(card, kind, ctx):
    return card.lowkey(*perplexity_command(kind, ctx, "--keep", percents(KEEP), "--policies", "window", "--kv-type", "f16"))


def retrieval_rows(card, test, length, policy, keep):
    more = FEW_BITS if policy != DEFAULT else ()
    more = (*more, "--recent", "30%") if policy in ("random", "keydiff") else more
    text = ("-f", texts.path("prose").relative_to(ROOT)) if test == "needle" else ()
    command = ("eval", test, *text, "--lengths", length, "--depths", 10, "--samples", 5, "--keep", percents(keep))
    return card.lowkey(*command, "--policies", policy, *more)


def full_rows(card, test, length):
    """The same prompts with nothing evicted and nothing rounded: what the model finds at all."""
    text = ("-f", texts.path("prose").relative_to(ROOT)) if test == "needle" else ()
    return card.lowkey("eval", test, *text, "--lengths", length, "--depths", 10, "--samples", 5, "--keep", "100%")


def stream_rows(card, ctx, policy):
    file = texts.path("verse").relative_to(ROOT)
    return card.lowkey("eval", "ppl", "-f", file, "--ctx", ctx, "--windows", 1, "--parts", 10, "--kv-budget", "1MiB", "--policies", policy)


def llama_rows(card, kind, ctx):
    """llama.cpp with the same bytes: cells of f16 or q8_0, and when they are full its context shift, which keeps four tokens and
    drops half of the rest. The ratio is to its own full f16 cache, over the tokens after its cells were full."""

    def measure():
        import llama_shift

        return llama_shift.rows(str(card.model), texts.path(kind), ctx, WINDOWS_TOKENS // ctx, KEEP, card.args.threads)

    return card.kept(f"llama.cpp {kind} {ctx} {WINDOWS_TOKENS} {KEEP}", measure)


def each(function, *ranges):
    """A group: the function for every combination."""

    def run(card):
        combinations = [()]
        for values in ranges:
            combinations = [(*before, value) for before in combinations for value in values]
        return [function(card, *combination) for combination in combinations]

    return run


def is_complete(card, group):
    return not any(rows is None or isinstance(rows, Before) for rows in group(card))


def mark(*answers):
    """What stands behind a row's name if another binary gave it."""
    return " °" if any(isinstance(rows, Before) for rows in answers) else ""


GROUPS = {
    "default": each(default_rows, KINDS, (2048,)),
    "default-4096": each(default_rows, KINDS, (4096,)),
    "found-full": each(full_rows, ("passkey", "needle"), (2048,)),
    "found": each(retrieval_rows, ("passkey", "needle"), (2048,), (DEFAULT,), (KEEP[:3],)),
    "stream": each(stream_rows, (100_000, 32_768), (DEFAULT, "window")),
    "window": each(retrieval_rows, ("passkey", "needle"), (2048,), ("window",), (KEEP[1:3],)),
    "others": each(other_rows, KINDS, (2048,)),
    "others-4096": each(other_rows, KINDS, (4096,)),
    "f16": each(f16_window_rows, KINDS, (2048, 4096)),
    "llama": each(llama_rows, KINDS, (2048,)),
    "found-others": each(retrieval_rows, ("passkey", "needle"), (2048,), OTHERS[1:], (KEEP[1:3],)),
    "found-4096": each(retrieval_rows, ("passkey", "needle"), (4096,), (DEFAULT,), (KEEP[:3],)),
}


def over(ratios):
    """Geometric mean of ratios, as per cent over one."""
    return 100 * (math.exp(sum(map(math.log, ratios)) / len(ratios)) - 1)


def perplexity_table(card, ctx):
    head = " | ".join(f"{k} %" for k in KEEP)
    lines = [f"| windows of {ctx} | types | {head} |", "|---|---|" + "---|" * len(KEEP)]
    goal = " | ".join(f"{PPL_GOAL[k]}" for k in KEEP)
    lines.append(f"| *at most* | | {goal} |")
    sources = [(DEFAULT, default_rows), *((name, other_rows) for name in OTHERS), ("window", f16_window_rows)]
    for policy, source in sources:
        answers = [source(card, kind, ctx) for kind in KINDS]
        if None in answers:
            continue
        cells, types = [], set()
        for keep in KEEP:
            found = [r for rows in answers for r in rows if r["policy"] == policy and r["keep"] == keep / 100]
            ratios = [r["ppl_ratio_to_full"] for r in found]
            types |= {f"{r['k_type']}/{r['v_type']}" for r in found}
            each_text = ", ".join(f"{100 * (ratio - 1):.1f}" for ratio in ratios)
            cells.append(f"**{over(ratios):+.2f}** ({each_text})" if ratios else "nothing evicted")
        lines.append(f"| {NAMES[policy]}{mark(*answers)} | {' '.join(sorted(types))} | {' | '.join(cells)} |")
    answers = [llama_rows(card, kind, ctx) for kind in KINDS] if ctx == 2048 else [None]
    for kv_type in () if None in answers else ("f16", "q8_0"):
        cells = []
        for keep in KEEP:
            ratios = [r["ppl_ratio_to_full"] for rows in answers for r in rows if (r["type"], r["keep"]) == (kv_type, keep / 100)]
            cells.append(f"**{over(ratios):+.2f}** ({', '.join(f'{100 * (ratio - 1):.1f}' for ratio in ratios)})")
        lines.append(f"| llama.cpp, context shift | {kv_type} | {' | '.join(cells)} |")
    return lines


def wilson(correct, n):
    """The 95 % interval of a share (Wilson 1927), in per cent."""
    z, p = 1.959964, correct / n
    scale = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{100 * max(0, middle - half):.0f}-{100 * min(1, middle + half):.0f}"


def found_table(card, test):
    keep = KEEP[:3]
    lines = [f"| {test}, stream mode | length | {' | '.join(f'{k} %' for k in keep)} |", "|---|---|" + "---|" * len(keep)]
    lines.append(f"| *at least* | | {' | '.join(f'{FOUND_GOAL[test][k]} %' for k in keep)} |")
    for policy, length in [(DEFAULT, 2048), *((name, 2048) for name in OTHERS), (DEFAULT, 4096)]:
        asked = keep if policy == DEFAULT else keep[1:]
        rows = retrieval_rows(card, test, length, policy, asked)
        if rows is None:
            continue
        cells = [found_cell([r for r in rows if r["keep"] == k / 100]) for k in keep]
        lines.append(f"| {NAMES[policy]}{mark(rows)} | {length} | {' | '.join(cells)} |")
    full = full_rows(card, test, 2048)
    if full is not None:
        lines.append(f"| all in f16, whatever it takes | 2048 | {' | '.join([found_cell(full)] + ['' for _ in keep[1:]])} |")
    return lines


def found_cell(rows):
    n, correct = sum(r["n"] for r in rows), sum(r["correct"] for r in rows)
    return f"**{100 * correct / n:.0f} %** ({correct}/{n}, {wilson(correct, n)} %)" if n else "nothing evicted"


def stream_table(card, ctx):
    lines = [f"| {ctx:,} tokens of verse, 1 MiB | slots | {' | '.join(str(i) for i in range(1, 11))} |", "|---|---|" + "---|" * 10]
    for policy in (DEFAULT, "window"):
        rows = stream_rows(card, ctx, policy)
        if rows is None:
            continue
        parts = [f"{part['ppl']:.2f}" for part in rows[0]["parts"]]
        lines.append(f"| {NAMES[policy]}{mark(rows)} | {rows[0]['n_slot']} | {' | '.join(parts)} |")
    return lines


INTRO = """# Scorecard: what a number of bytes is worth

Made by `make scorecard` (`benches/scorecard.py`, which has every command, seed and length); not edited by hand. Demonstration model,
commit {commit}. Budgets are shares of the bytes of a full f16 cache, everything included. Texts: Alice in Wonderland (prose), a workshop's
proceedings (technical), As You Like It (dialogue), Paradise Lost (verse); the default was tuned on others.

## Perplexity
Per cent over a full f16 cache, of the tokens scored once the arena was full: geometric mean of three texts, {tokens:,} tokens of each, and in brackets
each text: {kinds}. Differences below half a per cent are within the noise of such samples. At 25 % in types of few bits two thirds of a window
and more are held, and half of what is lost is rounding (with all tokens in q5_h/q4_h, `--kv-budget 64MiB`, the three texts lose 1.0, 0.7 and 0.7), so that the
rules hardly differ, but for the window at 4,096, and chance is about as good as any; below, they do.
"""


FOUND = """Fifty prompts a cell, ten depths; in brackets the count and its 95 % interval. What the model does not find with all tokens in f16, the last
row, no budget can be blamed for. At 50 % the default evicts nothing either, all fits in `q6_h`: what it misses there is the model's own."""


def report(card):
    card.may_run = False
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    lines = [INTRO.format(commit=commit, tokens=WINDOWS_TOKENS, kinds=", ".join(KINDS))]
    # Without a row below its head a table is left out.
    show = lambda table, n_head: [*table, ""] if len(table) > n_head else []
    for ctx in (2048, 4096):
        lines += show(perplexity_table(card, ctx), 3)
    found = [line for test in ("passkey", "needle") for line in show(found_table(card, test), 3)]
    if found:
        lines += ["## Found again", FOUND, "", *found]
    streams = [line for ctx in (32_768, 100_000) for line in show(stream_table(card, ctx), 2)]
    if streams:
        lines += ["## Streams past the trained context", "Perplexity of each tenth. Texts differ from tenth to tenth: compare down the column.", ""]
        lines += streams
    missing = [name for name, group in GROUPS.items() if not is_complete(card, group)]
    if missing:
        lines.append(f"Not measured yet with this binary (`benches/scorecard.py {' '.join(missing)}`): {', '.join(missing)}.")
    if missing and card.before:
        lines.append(f"Rows with ° are from the binary before, {card.args.before_is}.")
    out = ROOT / "docs" / "scorecard.md"
    unfinished = out.with_suffix(".md.part")
    unfinished.write_text("\n".join(lines).rstrip() + "\n")
    unfinished.rename(out)
    print(out.relative_to(ROOT))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default=str(ROOT / "target/release/lowkey"))
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m-instruct-q4_1.gguf"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--before", metavar="HASH", help="show, marked, what the binary of this folder of target/scorecard gave, where nothing newer is there")
    parser.add_argument("--before-is", metavar="TEXT", default="", help="what that binary is")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    args = parser.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"scorecard.py: {args.lowkey} is not there: run `make build`")
    card = Card(args)
    for group in args.groups or GROUPS:
        GROUPS[group](card)
        report(card)
        card.may_run = True


if __name__ == "__main__":
    main()
