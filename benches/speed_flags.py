"""The flags that scripts about speed have in common, and the check that there is a program to measure.

Owns: `--lowkey`, `--model`, `--threads`, `--prompt`, `-n`, `--runs` and `--kv-budget` of peer.py and sets.py. Run: neither; they do.
"""

import argparse
import shutil


def parser(doc, n):
    """With the first line of `doc`, and `n` tokens to generate by default."""
    flags = argparse.ArgumentParser(description=doc.splitlines()[0])
    flags.add_argument("--lowkey", default="target/release/lowkey")
    flags.add_argument("--model", action="append", required=True)
    flags.add_argument("--threads", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2])
    flags.add_argument("--prompt", type=int, default=512)
    flags.add_argument("-n", type=int, default=n)
    flags.add_argument("--runs", type=int, default=5)
    flags.add_argument("--kv-budget", default="32MiB")
    return flags


def parsed(flags):
    args = flags.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"{flags.prog}: {args.lowkey} is not there: run `make build`")
    return args
