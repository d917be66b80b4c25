"""The default choice of kernel sets beside each set for everything: prefill and decode, sets in turn within one process.

Owns: `make bench-sets`. Prints what `lowkey bench --sets` saw of each model and number of threads, and what the choice had left to
which set. Refuses: llama.cpp, which peer.py has, and the scalar set, which is no choice. Needs nothing but Python.
Run: python3 benches/sets.py --lowkey target/release/lowkey --model MODEL.gguf …
"""

import json
import os
import platform
import subprocess

import speed_flags


def cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            fields = dict([part.strip() for part in line.split(":", 1)] for line in info if ":" in line)
    except OSError:
        fields = {}
    names = [fields.get(key) for key in ("model name", "Model", "CPU part")]
    return next((name for name in names if name), platform.machine())


def measure(args, model, threads):
    """The rows of sets in turn, and the choice."""
    command = [args.lowkey, "bench", "-m", model, "-t", str(threads), "-p", str(args.prompt), "-n", str(args.n), "-r", str(args.runs)]
    command += ["--kv-budget", args.kv_budget, "--sets", "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [row for row in rows if "sets" in row], rows[0]["kernel_choice"]


def left_to_others(choice, default):
    """`decode Q8_0: vnni256 1.31`, for what another set than the default one does."""
    others = [row for row in choice if row["kernels"] != default]
    return ", ".join(f"{row['op']} {row['type'] or ''}: {row['kernels']} ({row['gain']:.2f})" for row in others) or "nothing"


def main():
    flags = speed_flags.parser(__doc__, n=256)
    flags.set_defaults(prompt=2048, runs=4)
    args = speed_flags.parsed(flags)
    print(f"{cpu()}, {os.cpu_count()} cores\n")
    notes = []
    for model in args.model:
        stem = os.path.basename(model).removesuffix(".gguf")
        for threads in args.threads:
            rows, choice = measure(args, model, threads)
            names = [speed["kernels"] for speed in rows[0]["sets"]]
            if not notes:
                print(f"| model | test | threads | default | {' | '.join(names[1:])} | default over the best | rounds |")
                print("|---|---|---|---|" + "---|" * (len(names) + 1))
            for row in rows:
                speeds = " | ".join(f"{speed['tok_s_median']:.1f}" for speed in row["sets"])
                test = row["test"].removesuffix(" in turn")
                print(f"| {stem} | {test} | {threads} | {speeds} | {row['of_best']:.2f} | {row['rounds']} |", flush=True)
            notes.append(f"{stem}, {threads} threads: left to others: {left_to_others(choice, names[-1])}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
