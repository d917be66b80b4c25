"""As peer.py, on a machine that others use too: tokens for each second of processor time, one thread on both sides, alternating.

Owns: nothing of its own but the clock. llama.cpp's time is the process's own; lowkey's is that of `lowkey bench` less that of a
shorter run, so that loading does not count. Prints medians of five and the ratio of each pair. Refuses more than one thread:
threads that wait by spinning take processor time as well.
Run: python benches/peer_cpu.py --lowkey target/release/lowkey --model MODEL.gguf
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import time

try:
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None
import peer


def child_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if not shutil.which(args.lowkey):
        raise SystemExit(f"peer_cpu.py: {args.lowkey} is not there: run `make build`")
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(peer.quiet, None)
    theirs = peer.Peer(args.model, 1, 1024)

    def lowkey(p, n):
        command = [args.lowkey, "bench", "-m", args.model, "-t", "1", "-d", "0", "-r", "1", "--kv-budget", "32MiB", "--json"]
        return child_seconds(command + ["-p", str(p), "-n", str(n)])

    def llama(n, batch):
        theirs.clear()
        started = time.process_time()
        for at in range(0, n, batch):
            theirs.feed(min(batch, n - at))
        return time.process_time() - started

    for name, n, batch in (("tg64", 64, 1), ("pp512", 512, 512)):
        pairs = []
        for _ in range(args.runs + 1):
            other = llama(n, batch)
            pairs.append((n / other, n / (lowkey(0, n + 16) - lowkey(0, 16) if batch == 1 else lowkey(n, 0) - lowkey(1, 0))))
        a, b = (statistics.median(side) for side in zip(*pairs[1:]))
        ratios = ", ".join(f"{ours / other:.2f}" for other, ours in pairs[1:])
        print(f"{name}: llama.cpp {a:.1f}, lowkey {b:.1f} tokens a second of processor time, ratio {b / a:.2f} ({ratios})", flush=True)


if __name__ == "__main__":
    main()
