"""The scorecard of the cache: what a number of bytes is worth, by the default settings, by other rules, with its past, and in
llama.cpp.

Owns: `make scorecard` and the tables of docs/scorecard.md, each of which stands between two marks and names the commit that it is of.
What is measured, with every command, seed and size, is in benches/scorecard_commands.py. A table is written anew once all of its
answers are there from one binary; until then the one of an earlier commit stays, so that no table mixes two. Where a table is of the
same commit or there is none yet, it is written with what is there, and names what is missing.
Run: .venv/bin/python benches/scorecard.py [GROUP …]   (groups in the order of GROUPS; without any, all)
"""

import argparse
import math
import re
import shutil
import subprocess

from scorecard_commands import (
    DEFAULT,
    F16,
    FEW_BITS,
    FOR_BIASES,
    GEMMA,
    GROUPS,
    KEEP,
    KINDS,
    LONG,
    LONG_KEEP,
    MODEL_DEFAULT,
    MODEL_KEEP,
    OTHERS,
    PAST_FOUND_KEEP,
    PAST_KEEP,
    PAST_TOKENS,
    QWEN,
    ROOT,
    STREAMS,
    TASKS,
    TESTS,
    WAYS,
    Card,
    asked_rows,
    default_rows,
    f16_window_rows,
    full_rows,
    llama_rows,
    model_rows,
    other_rows,
    past_found_rows,
    past_full_rows,
    past_rows,
    retrieval_rows,
    ruler_rows,
    stream_rows,
)

NAMES = {DEFAULT: "lowkey's default", "window": "sinks and window", "random": "random, same protection", "keydiff": "KeyDiff"}
# What the default is held to: keep -> perplexity at most so much over the full f16 cache, answers found at least.
PPL_GOAL = {50: 0.2, 25: 1.2, 10: 3.0, 5: 6.5}
FOUND_GOAL = {"passkey": {50: 98, 25: 97, 10: 90}, "needle": {50: 95, 25: 85, 10: 40}}
# And with its past: found at least, in per cent of what the full cache finds.
PAST_PPL_GOAL = {10: 1.3, 5: 2.0, 2.5: 3.5}
PAST_FOUND_GOAL = {("passkey", 2048, 10): 98, ("passkey", 2048, 5): 98, ("needle", 2048, 10): 95, ("needle", 2048, 5): 92, ("needle", LONG, 5): 85}
MISSING, EMPTY = "not measured", "Not measured yet."


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells):
    return [row(*cells), "|" + "---|" * len(cells)]


def over(ratios):
    """Geometric mean of ratios, as per cent over one."""
    return 100 * (math.exp(sum(map(math.log, ratios)) / len(ratios)) - 1)


def ratio_cell(rows):
    ratios = [r["ppl_ratio_to_full"] for r in rows]
    each_text = ", ".join(f"{100 * (ratio - 1):.1f}" for ratio in ratios)
    return f"**{over(ratios):+.2f}** ({each_text})" if ratios else "nothing evicted"


def of(answers, **wanted):
    """The rows of several answers that have these values."""
    return [r for rows in answers for r in rows if all(r[name] == value for name, value in wanted.items())]


def slots(rows):
    return ", ".join(str(n) for n in sorted({r["n_slot"] for r in rows}))


def perplexity_table(card, ctx):
    lines = head(f"windows of {ctx}", "types", *(f"{k} %" for k in KEEP))
    lines.append(row("*at most*", "", *(PPL_GOAL[k] for k in KEEP)))
    sources = [(DEFAULT, default_rows), *((name, other_rows) for name in OTHERS), ("window", f16_window_rows)]
    for policy, source in sources:
        answers = [source(card, kind, ctx) for kind in KINDS]
        if None in answers:
            lines.append(row(NAMES[policy], "", *(MISSING for _ in KEEP)))
            continue
        found = [of(answers, policy=policy, keep=keep / 100) for keep in KEEP]
        types = {f"{r['k_type']}/{r['v_type']}" for rows in found for r in rows}
        lines.append(row(NAMES[policy], " ".join(sorted(types)), *map(ratio_cell, found)))
    answers = [llama_rows(card, kind, ctx) for kind in KINDS] if ctx == 2048 else []
    for kv_type in ("f16", "q8_0") if answers else ():
        cells = [MISSING if None in answers else ratio_cell(of(answers, type=kv_type, keep=k / 100)) for k in KEEP]
        lines.append(row("llama.cpp, context shift", kv_type, *cells))
    return lines


def past_perplexity_table(card):
    lines = head("with its past", "tokens of each text", *(f"{k} %" for k in PAST_KEEP))
    lines.append(row("*at most*", "", *(PAST_PPL_GOAL[k] for k in PAST_KEEP)))
    for ctx, n_tokens in PAST_TOKENS.items():
        answers = [past_rows(card, kind, ctx) for kind in KINDS]
        found = [None if None in answers else of(answers, keep=k / 100) for k in PAST_KEEP]
        cells = [MISSING if rows is None else f"{ratio_cell(rows)}, {slots(rows)} slots" for rows in found]
        lines.append(row(f"windows of {ctx}", f"{n_tokens:,}", *cells))
    return lines


def wilson(correct, n):
    """The 95 % interval of a share (Wilson 1927), in per cent."""
    z, p = 1.959964, correct / n
    scale = 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{100 * max(0, middle - half):.0f}-{100 * min(1, middle + half):.0f}"


def counts(rows):
    return sum(r["correct"] for r in rows), sum(r["n"] for r in rows)


def found_cell(rows):
    correct, n = counts(rows)
    return f"**{100 * correct / n:.0f} %** ({correct}/{n}, {wilson(correct, n)} %)" if n else "nothing evicted"


def found_table(card, test):
    keep = KEEP[:3]
    lines = head(f"{test}, stream mode", "length", *(f"{k} %" for k in keep))
    lines.append(row("*at least*", "", *(f"{FOUND_GOAL[test][k]} %" for k in keep)))
    for policy, length in [(DEFAULT, 2048), *((name, 2048) for name in OTHERS), (DEFAULT, 4096)]:
        rows = retrieval_rows(card, test, length, policy, keep if policy == DEFAULT else keep[1:])
        lines.append(row(NAMES[policy], length, *(MISSING if rows is None else found_cell(of([rows], keep=k / 100)) for k in keep)))
    full = full_rows(card, test, 2048)
    lines.append(row("all in f16, whatever it takes", 2048, MISSING if full is None else found_cell(full), *("" for _ in keep[1:])))
    return lines


def past_found_table(card):
    lines = head("with its past", "length", "share of the bytes", "full f16 cache", "found", "of what the full cache finds", "*at least*")
    for length, keeps in ((2048, PAST_FOUND_KEEP), (LONG, LONG_KEEP)):
        for test in TESTS:
            full = past_full_rows(card, test, length)
            for keep in keeps:
                rows = past_found_rows(card, test, length, keep)
                cells = [MISSING if answer is None else found_cell(answer) for answer in (full, rows)]
                both = full is not None and rows is not None
                share = f"**{100 * counts(rows)[0] / counts(full)[0]:.0f} %**" if both else ""
                goal = PAST_FOUND_GOAL.get((test, length, keep))
                lines.append(row(test, length, f"{keep} %" + (f", {slots(rows)} slots" if rows else ""), *cells, share, f"{goal} %" if goal else ""))
    return lines


def model_table(card, model, types):
    lines = head(f"{model}, {' '.join(types)}", *(f"{k} %" for k in MODEL_KEEP[types]))
    answers = [model_rows(card, model, types, kind) for kind in KINDS]
    for policy in (MODEL_DEFAULT[model], *OTHERS):
        found = [[] if None in answers else of(answers, policy=policy, keep=k / 100) for k in MODEL_KEEP[types]]
        name = f"lowkey's default, `{policy}`" if policy == MODEL_DEFAULT[model] else NAMES[policy]
        lines.append(row(name, *(f"{ratio_cell(rows)}, {slots(rows)} slots" if rows else MISSING for rows in found)))
    return lines


def ruler_table(card):
    lines = head("task", "full f16 cache", "10 %", "10 % with its past")
    for task in TASKS:
        answers = [ruler_rows(card, task, way) for way in WAYS]
        lines.append(row(task, *(MISSING if rows is None else found_cell(rows) for rows in answers)))
    return lines


def stream_table(card, ctx):
    lines = head(f"{ctx:,} tokens of verse, 1 MiB", "slots", *range(1, 11))
    for policy in (DEFAULT, "window"):
        rows = stream_rows(card, ctx, policy)
        if rows is None:
            lines.append(row(NAMES[policy], "", *(MISSING for _ in range(10))))
        else:
            lines.append(row(NAMES[policy], rows[0]["n_slot"], *(f"{part['ppl']:.2f}" for part in rows[0]["parts"])))
    return lines


def asked_table(card):
    """A column for each stream, a row for each distance."""
    ways = [("short", "full"), ("short", "past"), ("long", "past"), ("longest", "past")]
    answers = [asked_rows(card, stream, way) for stream, way in ways]
    said = {"full": "full f16 cache", "past": "the past in 1 MiB"}
    lines = head("tokens back", *(f"{STREAMS[stream][0]:,} tokens, {said[way]}" for stream, way in ways))
    for back in sorted({back for _, backs, _ in STREAMS.values() for back in backs}):
        cells = []
        for (stream, _), rows in zip(ways, answers):
            if back not in STREAMS[stream][1]:
                cells.append("")
            elif rows is None:
                cells.append(MISSING)
            else:
                cells.append("{} of {}".format(*counts(of([rows], back=back))))
        lines.append(row(f"{back:,}", *cells))
    return lines


# The tables by the names of their marks.
PARTS = {
    "perplexity-2048": (perplexity_table, 2048),
    "perplexity-4096": (perplexity_table, 4096),
    "past-perplexity": (past_perplexity_table,),
    "passkey": (found_table, "passkey"),
    "needle": (found_table, "needle"),
    "past-found": (past_found_table,),
    "gemma": (model_table, GEMMA, FEW_BITS),
    "qwen": (model_table, QWEN, FEW_BITS),
    "qwen-chosen": (model_table, QWEN, FOR_BIASES),
    "qwen-f16": (model_table, QWEN, F16),
    "ruler": (ruler_table,),
    "streams-32768": (stream_table, 32_768),
    "streams-100000": (stream_table, 100_000),
    "asked": (asked_table,),
}


def renew(card, commit, document):
    """The document with the tables that may be written."""
    card.may_run = False
    for name, (table, *about) in PARTS.items():
        marks = re.compile(rf"(<!-- {name}:begin -->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)
        found = marks.search(document)
        if not found:
            raise SystemExit(f"scorecard.py: docs/scorecard.md has no place for the table {name}")
        card.n_there = card.n_absent = 0
        lines = table(card, *about)
        of_commit = f"Commit {commit}."
        is_empty = found[2].strip() in ("", EMPTY)
        if card.n_absent > 0 and not (is_empty or found[2].startswith(of_commit)):
            continue
        if card.n_there == 0 and not is_empty:
            continue
        written = "\n".join([of_commit, "", *lines] if card.n_there > 0 else [EMPTY]) + "\n"
        document = document[: found.start(2)] + written + document[found.end(2) :]
    card.may_run = True
    return document


def report(card):
    commit = card.args.commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    out = ROOT / "docs" / "scorecard.md"
    unfinished = out.with_suffix(".md.part")
    unfinished.write_text(renew(card, commit, out.read_text()))
    unfinished.rename(out)
    print(out.relative_to(ROOT))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default=str(ROOT / "target/release/lowkey"))
    parser.add_argument("--commit", help="of which the binary is [default: HEAD]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tables", action="store_true", help="measure nothing: only write the tables of what is there")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    args = parser.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"scorecard.py: {args.lowkey} is not there: run `make build`")
    card = Card(args)
    for group in () if args.tables else args.groups or GROUPS:
        GROUPS[group](card)
        report(card)
    if args.tables:
        report(card)


if __name__ == "__main__":
    main()
