"""From the start of the process to the first token, and private memory at its peak, with the model's pages in the page cache.

Owns: two tables of docs/performance.md. The best and the median of some runs of `lowkey run --json`: on a busy machine the best is what
the program takes. `plan` and `tokenize` are whole processes, which open the model, and open it and build its tokenizer.
Refuses: to judge; it prints.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import time

PROMPT = "The capital of France is"


def seconds(command):
    start = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - start, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("--model", default="models/smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--long", default="models/demo-prompt.txt", help="a prompt that fills the arena")
    args = parser.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"start.py: {args.lowkey} is not there: run `make build`")
    common = ["-m", args.model, "--kv-budget", "4MiB", "-t", args.threads]
    run = [args.lowkey, "run", *common, "--temp", "0", "--json"]
    steps = {
        "open the model: `plan`": lambda: seconds([args.lowkey, "plan", *common])[0],
        "open it, build the tokenizer: `tokenize`": lambda: seconds([args.lowkey, "tokenize", "-m", args.model, PROMPT])[0],
    }
    timings = ("load_ms", "prefill_ms", "first_token_ms")
    times = {name: [] for name in [*steps, *timings, "whole process, one token"]}
    for _ in range(args.runs):
        for name, step in steps.items():
            times[name].append(1e3 * step())
        whole, out = seconds([*run, "-p", PROMPT, "-n", "1"])
        times["whole process, one token"].append(1e3 * whole)
        for name in timings:
            times[name].append(json.loads(out)["timings"][name])
    print("| | best, ms | median, ms |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {min(found):.0f} | {statistics.median(found):.0f} |")
    memory = json.loads(seconds([*run, "-f", args.long, "-n", "160"])[1])["memory"]
    print("\n" + "\n".join(f"{name}: {memory[name] / 2**20:.1f} MiB" for name in ("plan_bytes", "rss_anon_peak_bytes")))


if __name__ == "__main__":
    main()
