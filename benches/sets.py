"""The default choice of kernel sets beside each set forced by --kernels: prefill and decode, alternating in one run.

Owns: `make bench-sets`. Prints a table of medians (tokens per second by the clock) and the default's share of the best forced set;
then which sets the last default run had left what to.
Refuses: llama.cpp, which peer.py has, and the scalar set, which is no choice. Needs nothing but Python.
Run: python3 benches/sets.py --lowkey target/release/lowkey --model MODEL.gguf …
"""

import json
import os
import platform
import statistics
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


def answer(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(args, model, threads, name):
    command = [args.lowkey, "bench", "-m", model, "-t", str(threads), "--kernels", name, "-p", str(args.prompt), "-n", str(args.n)]
    rows = answer(command + ["-r", "1", "--kv-budget", args.kv_budget, "--json"])
    return {row["test"]: row["tok_s_median"] for row in rows}, rows[0]["kernel_choice"]


def left_to_others(choice, default):
    """`decode Q8_0: vnni256 1.31`, for what another set than the default one does."""
    others = [row for row in choice if row["kernels"] != default]
    return ", ".join(f"{row['op']} {row['type'] or ''}: {row['kernels']} ({row['gain']:.2f})" for row in others) or "nothing"


def over_the_best(seen, sets):
    """The default's share of the best forced set: that is the best of half of the rounds, compared round by round in the other half,
    and the other way round. Else the luckiest of several sets would pass for the best."""
    shares = []
    for chosen, judged in ((0, 1), (1, 0)):
        best = max(sets, key=lambda name: statistics.median(seen[name][chosen::2]))
        shares.append(statistics.median(mine / its for mine, its in zip(seen["auto"][judged::2], seen[best][judged::2])))
    return statistics.mean(shares)


def main():
    args = speed_flags.parsed(speed_flags.parser(__doc__, n=64))
    sets = [name for name in answer([args.lowkey, "info", args.model[0], "--json"])["kernels"] if name != "scalar"]
    names = ["auto"] + sets
    if args.runs < 2:
        raise SystemExit("--runs: at least 2, of which one half chooses the best set and the other judges it")
    print(f"{cpu()}, {os.cpu_count()} cores; medians of {args.runs}\n")
    print(f"| model | test | threads | default | {' | '.join(sets)} | default over the best |")
    print("|---|---|---|---|" + "---|" * len(sets) + "---|", flush=True)
    notes = []
    for model in args.model:
        stem = os.path.basename(model).removesuffix(".gguf")
        for threads in args.threads:
            seen = {name: {} for name in names}
            for run in range(args.runs + 1):
                # Each begins a round in turn, so that none always follows the same one.
                for name in names[run % len(names):] + names[:run % len(names)]:
                    speeds, choice = measure(args, model, threads, name)
                    if run == 0:
                        continue  # the first round warms the page cache
                    for test, speed in speeds.items():
                        seen[name].setdefault(test, []).append(speed)
                    if name == "auto":
                        last = choice
            for test in seen["auto"]:
                medians = {name: statistics.median(seen[name][test]) for name in names}
                share = over_the_best({name: seen[name][test] for name in names}, sets)
                speeds = " | ".join(f"{medians[name]:.1f}" for name in names)
                print(f"| {stem} | {test} | {threads} | {speeds} | {share:.2f} |", flush=True)
            notes.append(f"{stem}, {threads} threads: left to others: {left_to_others(last, sets[-1])}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
