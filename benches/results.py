"""Runs the `lowkey eval` commands that a document quotes and puts their tables in place of those that follow them.

Owns: `make results`. A command is an indented line that begins with `lowkey eval` (continued by a backslash), its table the lines that
begin with `|` behind it; or one that begins with `$ lowkey eval`, with the table indented directly below. Pictures that a command
draws (--plot) go where it says. Nothing else of a document is touched; it is written after each command, whole.
Refuses: commands other than `lowkey eval`.
Run: python3 benches/results.py docs/results.md docs/policies.md   (from the top of the tree)
"""

import argparse
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

COMMAND = re.compile(r"^    (\$ )?lowkey eval ")


def table_of(command, args):
    words = shlex.split(command.removeprefix("$ "))
    print("results:", shlex.join(words), file=sys.stderr, flush=True)
    done = subprocess.run([args.lowkey, *words[1:]], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"results.py: {command}: {done.stderr.strip()}")
    return done.stdout.rstrip().splitlines()


def renew(document, args):
    lines = document.read_text(encoding="utf-8").splitlines()
    out, at = [], 0
    while at < len(lines):
        if not COMMAND.match(lines[at]):
            out.append(lines[at])
            at += 1
            continue
        quoted = [lines[at]]
        while quoted[-1].endswith("\\"):
            at += 1
            quoted.append(lines[at])
        at += 1
        command = " ".join(line.strip().removesuffix("\\") for line in quoted)
        if not re.search(args.only, command):
            out += quoted
            continue
        indent = "    " if command.startswith("$ ") else ""
        out += quoted
        if not indent:
            out.append("")
            while at < len(lines) and not lines[at].strip():
                at += 1
        is_table = lambda line: line.startswith(indent + "|")
        if any(is_table(line) for line in lines[at : at + 1]):
            while at < len(lines) and (is_table(lines[at]) or (not lines[at].strip() and any(map(is_table, lines[at + 1 : at + 2])))):
                at += 1
        out += [indent + line if line else "" for line in table_of(command, args)]
        if not indent and at < len(lines) and lines[at].strip():
            out.append("")
        write(document, out + lines[at:])


def write(document, lines):
    unfinished = document.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.rename(document)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("--only", default="", metavar="REGEX", help="run commands that match; leave the tables of others")
    parser.add_argument("document", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"results.py: {args.lowkey} is not there: run `make build`")
    for document in args.document:
        renew(document, args)


if __name__ == "__main__":
    main()
