#!/usr/bin/env python3
"""What a step costs where memory does not hold what it reads, and a card reads so many megabytes a second.

    benches/slow_card.py past [--depth N …]      decoding with the past, of which the page cache holds --cache MiB
    benches/slow_card.py experts --model FILE    decoding of a mixture that is --times as large as what memory is left for it

Owns: the tables of docs/past.md and docs/performance.md on slow cards. The program runs in a memory group with a limit on reads
(memory_group.py: Linux, root). In `past` the weights are in the page cache beforehand, on nobody's account, so that what the group
may take is left to the past.
Refuses: to run without such a group.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

from memory_group import Group

PRIVATE = re.compile(r"^private memory in all +(\d+)", re.M)


def said(command, group=None):
    """What a command prints, and what it warns of."""
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, preexec_fn=group and group.enter)
    return done.stdout, done.stderr


def group_of(name, limit, args):
    group = Group(name, limit, int(args.mb_per_s * 1e6), args.folder)
    if not group.reads:
        sys.exit("slow_card.py: without a memory group there is nothing to measure")
    return group


def tokens_per_second(command, group=None):
    return json.loads(said([*command, "-o", "json"], group)[0])[0]["tok_s_median"]


def past(args):
    print("| depth | file | index | without a past | with it, pages in memory | to that without | on the card | to that without |")
    print("|---|---|---|---|---|---|---|---|")
    for depth in args.depth:
        space = ("--past", args.folder, "--past-space", depth * 9400)
        common = [args.lowkey, "bench", "-m", args.model, "-p", 0, "-n", args.n, "-d", depth, "-r", 1, "-t", args.threads]
        common += ["--kv-budget", args.kv_budget]
        plan = said([args.lowkey, "plan", *common[1:], *space])[0]
        file, index = re.search(r"a file of (\S+ \S+) holds .* reads its index, (\S+ \S+) when", plan).groups()
        limit = int(PRIVATE.search(plan).group(1)) + int(args.cache * 2**20)
        pathlib.Path(args.model).read_bytes()
        rows = ([], [], [])
        for run in range(args.runs):
            rows[0].append(tokens_per_second(common))
            rows[1].append(tokens_per_second([*common, *space]))
            group = group_of(f"past-{depth}-{run}", limit, args)
            rows[2].append(tokens_per_second([*common, *space], group))
            group.remove()
        alone, cached, card = (statistics.median(row) for row in rows)
        print(f"| {depth:,} | {file} | {index} | {alone:.0f} | {cached:.0f} | {cached / alone:.2f} | {card:.1f} | {card / alone:.2f} |", flush=True)


def chosen_bytes(path):
    """Of the experts of all layers, those that one token goes through."""
    import gguf

    reader = gguf.GGUFReader(path)
    number = lambda name: next(int(field.contents()) for key, field in reader.fields.items() if key.endswith(name))  # noqa: E731
    whole = sum(int(tensor.n_bytes) for tensor in reader.tensors if "_exps" in tensor.name)
    return whole * number(".expert_used_count") // number(".expert_count")


def experts(args):
    """Tokens that nobody has seen before, so that each chooses experts of its own."""
    run = [args.lowkey, "bench", "-m", args.model, "-p", 0, "-n", args.n, "-r", 1, "-t", args.threads, "--kv-budget", args.kv_budget]
    plan = said([args.lowkey, "plan", *run[1:]])[0]
    weights = int(re.search(r"^weights +(\d+)", plan, re.M).group(1))
    limit = int(PRIVATE.search(plan).group(1)) + int(weights / args.times)
    group = group_of("experts", limit, args)
    with open(args.model, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.monotonic()
    answer, warned = said([*run, "-o", "json"], group)
    speed, warned = json.loads(answer)[0]["tok_s_median"], warned.strip()
    n_read, seconds = group.n_read(), time.monotonic() - start
    chosen = chosen_bytes(args.model)
    bound = chosen / (args.mb_per_s * 1e6)
    print(f"weights {weights / 2**20:.0f} MiB, memory left for them {weights / args.times / 2**20:.0f} MiB, reads of {args.mb_per_s} MB/s")
    print(f"the program says: {warned}")
    print(f"the experts of a token are {chosen / 1e6:.1f} MB, which take {bound:.2f} s to read")
    print(f"seen: {1 / speed:.2f} s a token, {1 / speed / bound:.2f} of that; in all {n_read / 1e6:.0f} MB in {seconds:.1f} s")
    group.remove()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["past", "experts"])
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("--model", default="models/smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--folder", default="target", help="where the file of the past lies; its disk is the slow one")
    parser.add_argument("--depth", type=int, nargs="+", default=[1000, 4000, 6000, 8000])
    parser.add_argument("--cache", type=float, default=32, help="MiB of page cache for the past")
    parser.add_argument("--times", type=float, default=3)
    parser.add_argument("--mb-per-s", type=float, default=40)
    parser.add_argument("--kv-budget", default="1200000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("-n", type=int, default=64)
    args = parser.parse_args()
    {"past": past, "experts": experts}[args.what](args)


if __name__ == "__main__":
    main()
