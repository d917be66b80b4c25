#!/usr/bin/env python3
"""The JSON Schema Test Suite (drafts 7 and 2020-12) against `lowkey serve`: is every answer under a schema valid?

Each schema of the suite is asked for (`json_schema` of /completion). It is refused with 400, or accepted. For an accepted one
answers are drawn by chance, with several seeds and temperatures from 1 up, and each must be valid for the package `jsonschema`;
what `max_tokens` or the memory cut is counted apart. The tokens of the suite's own documents are made likelier, valid and invalid
ones, so that the answers come near what the schema is about.

    tests/json-schema/run suite [--model FILE] [--answers N] [--only DRAFT/FILE] [--report FILE]

A refusal must name a keyword that the schema has, or say of which kind it is (`KINDS`). Exit code 1: an answer is invalid, or a
refusal names nothing, or a request was answered by something else.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import random
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import judge  # noqa: E402
import lowkey_server  # noqa: E402

SUITE = pathlib.Path(os.environ["LOWKEY_SCHEMA_SUITE"])
TINY = HERE.parent / "data/tiny-gqa.gguf"
MARKS = '"{}[],:0123456789.-'
# Refusals that are of the whole and not of one keyword.
KINDS = re.compile(r"Unsatisfiable|the schema is `false`|more than \d+ bytes")
KEYWORD = re.compile(r"`([^`]+)`")


def cases(only):
    """(draft, file, description, schema, tests) of the suite, and of our own list, which has its documents without a verdict."""
    for case in json.loads((HERE / "more.json").read_text()):
        if not only or only in "more.json":
            yield "draft2020-12", "more.json", case["description"], case["schema"], [{"data": data} for data in case["data"]]
    for draft in judge.DRAFTS:
        for path in sorted((SUITE / draft).rglob("*.json")):
            name = f"{draft}/{path.relative_to(SUITE / draft)}"
            if only and only not in name:
                continue
            for case in json.loads(path.read_text()):
                yield draft, name, case["description"], case["schema"], case["tests"]


def mentions(value, word) -> bool:
    if isinstance(value, dict):
        return word in value or any(mentions(inner, word) for inner in value.values())
    return isinstance(value, list) and any(mentions(inner, word) for inner in value)


def is_named(message: str, schema) -> bool:
    """Whether a refusal says what of the schema is in its way."""
    words = KEYWORD.findall(message) + re.findall(r"\b[a-z][A-Za-z]+\b|\$[a-zA-Z]+", message)
    last = {part for word in words for part in (word, word.rsplit(".", 1)[-1], word.split("[")[0].rsplit(".", 1)[-1])}
    return any(mentions(schema, word) for word in last) or bool(KINDS.search(message))


class Asker:
    """Draws answers under one schema after the other."""

    def __init__(self, server, max_tokens: int):
        self.server, self.max_tokens = server, max_tokens
        self.ends = self.tokens("<|im_end|>", special=True) + self.tokens("<|endoftext|>", special=True)
        self.marks = sum((self.tokens(mark) for mark in MARKS), [])

    @functools.lru_cache(maxsize=4096)
    def tokens(self, text: str, special=False) -> list:
        status, answer = self.server.post("/tokenize", {"content": text, "add_special": False, "parse_special": special})
        assert status == 200, answer
        return answer["tokens"]

    def biases(self, tests, likely: float) -> list:
        """Marks of JSON and ends are likelier, or nothing would end; so are the words of the suite's documents."""
        bias = collections.Counter()
        for test in tests[:12]:
            for text in (json.dumps(test["data"])[:200], json.dumps(test["data"], ensure_ascii=False)[:200]):
                bias.update({token: likely for token in self.tokens(text) if token not in bias})
        bias.update({token: 4.0 for token in self.marks if token not in bias})
        return [[token, float(amount)] for token, amount in list(bias.items())[:240]] + [[end, 6.0] for end in self.ends]

    def ask(self, schema, seed: int = 0, temperature: float = 1.0, biases=(), n: int = 0):
        body = {
            "prompt": "a", "json_schema": schema, "n_predict": n or self.max_tokens, "temperature": temperature, "seed": seed,
            "logit_bias": list(biases), "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        }  # fmt: skip
        return self.server.post("/completion", body)


class Report:
    def __init__(self):
        self.rows, self.counts, self.wrong = [], collections.Counter(), []
        self.refused, self.of_valid = collections.Counter(), 0

    def refusal(self, row, message: str, schema):
        reason = re.sub(r"^`json_schema`: ", "", message)
        keyword = re.sub(r"[`.\[\]0-9:]", " ", reason).split()
        shown = next((word for word in reversed(KEYWORD.findall(reason)) if mentions(schema, word)), keyword[0] if keyword else "?")
        self.refused[shown] += 1
        self.counts["refused"] += 1
        self.rows.append({**row, "is": "refused", "why": reason})
        if not is_named(reason, schema):
            self.wrong.append(f"{row['case']}: the refusal names nothing: {reason}")

    def show(self):
        print("\nrefused, by what is named:")
        for word, n in self.refused.most_common():
            print(f"  {n:4} {word}")
        print("\n" + ", ".join(f"{name} {n}" for name, n in sorted(self.counts.items())))
        told = collections.Counter()
        for line in self.wrong:
            case = ": ".join(line.split(": ")[:2])
            told[case] += 1
            # Thirty answers that are wrong for one reason say no more than three.
            if told[case] <= 3:
                print("WRONG", line)
        print(f"{len(self.wrong)} wrong, in {len(told)} schemas")


def draw(asker, report, row, schema, tests, checks, n_answers: int, chance):
    """Answers under one accepted schema; what is wrong goes to the report."""
    n_whole = 0
    for i in range(n_answers):
        temperature, likely = (1.0, 1.3, 2.0)[i % 3], (6.0, 3.0, 8.0)[i // 3 % 3]
        status, answer = asker.ask(schema, chance.randrange(1 << 31), temperature, asker.biases(tests, likely))
        report.counts["answers"] += 1
        if status != 200:
            report.wrong.append(f"{row['case']}: {status} after it was accepted: {answer}")
            return
        if answer["stop_type"] == "limit":
            report.counts["cut"] += 1
            told = answer["lowkey"].get("error")
            report.counts["cut by memory"] += told is not None
            if told:
                row["error"] = told
            continue
        what = judge.problem(answer["content"], checks)
        n_whole += 1
        report.counts["whole"] += 1
        if what:
            report.counts["invalid"] += 1
            report.wrong.append(f"{row['case']}: {json.dumps(schema)[:300]}: {answer['content'][:200]!r}: {what}")
            row["invalid"] = row.get("invalid", 0) + 1
    report.rows.append({**row, "is": "accepted", "answers": n_answers, "whole": n_whole})
    report.counts["schemas without a whole answer"] += n_whole == 0 and n_answers > 0


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=str(TINY), help="the model (default: a random one)")
    options.add_argument("--answers", type=int, default=25, help="answers for each accepted schema")
    options.add_argument("--max-tokens", type=int, default=150)
    options.add_argument("--only", help="a part of DRAFT/FILE")
    options.add_argument("--report", help="where to write each schema's fate, as JSON")
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    lowkey_server.MODEL = args.model
    chance, report = random.Random(args.seed), Report()
    with lowkey_server.Server(budget="16MiB") as server:
        asker = Asker(server, args.max_tokens)
        for draft, name, description, schema, tests in cases(args.only):
            row = {"case": f"{name}: {description}"}
            report.counts["schemas"] += 1
            status, answer = asker.ask(schema, n=1)
            if status == 400:
                report.refusal(row, answer["error"]["message"], schema)
            elif status == 200:
                report.counts["accepted"] += 1
                wrong = judge.faults(draft, schema, [test for test in tests if "valid" in test], name)
                if wrong:
                    report.counts["schemas that the judge errs about"] += 1
                    row["judge"] = wrong
                draw(asker, report, row, schema, tests, judge.validators(draft, schema), args.answers, chance)
            else:
                report.wrong.append(f"{row['case']}: {status}: {answer}")
    report.show()
    if args.report:
        pathlib.Path(args.report).write_text(json.dumps(report.rows, indent=1, ensure_ascii=False))
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
