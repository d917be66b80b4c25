"""lowkey and llama.cpp side by side: the same model file, threads and token counts, alternating in one run.

Owns: `make bench-peer`. Prints a table of medians (tokens per second by the clock) and their ratio for prefill and decode,
and with --depth for decode after so many tokens, where lowkey keeps a bounded arena and llama.cpp, which has none, its
whole cache in the best of its cache types and flash-attention settings.
Refuses: to tune either side. llama.cpp is `llama-cpp-python` (tests/golden/requirements.txt), built from its source package.
Run: python benches/peer.py --lowkey target/release/lowkey --model MODEL.gguf …
"""

import json
import statistics
import subprocess
import time

import speed_flags

try:
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None


@llama_cpp.llama_log_callback
def quiet(_level, _text, _user_data):
    pass


class Peer:
    def __init__(self, path, threads, n_ctx, kv_type=None, flash=None):
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = n_ctx, 512
        settings.n_threads = settings.n_threads_batch = threads
        if kv_type is not None:
            settings.type_k = settings.type_v = kv_type
        if flash is not None:
            settings.flash_attn_type = flash
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot load it with these settings")
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.position = 0

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def cut(self, position):
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, position, -1)
        self.position = position

    def feed(self, n):
        """n tokens as one batch; the logits of the last."""
        self.batch.n_tokens = n
        for i in range(n):
            self.batch.token[i] = (self.position + i) * 31 % 40000 + 100
            self.batch.pos[i] = self.position + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = i == n - 1
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_get_logits(self.context)
        self.position += n

    def time(self, n, batch):
        started = time.perf_counter()
        for at in range(0, n, batch):
            self.feed(min(batch, n - at))
        return n / (time.perf_counter() - started)


def lowkey(binary, model, threads, test, depth, budget):
    n, p = (0, test[1]) if test[0] == "pp" else (test[1], 0)
    command = [binary, "bench", "-m", model, "-t", str(threads), "-p", str(p), "-n", str(n), "-d", str(depth)]
    command += ["-r", "1", "--kv-budget", budget, "--json"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]
    return row["tok_s_median"]


def compare(args, model, threads):
    """Rows of (test, peer, lowkey)."""
    peer = Peer(model, threads, 1024)
    for test in (("pp", args.prompt), ("tg", args.n)):
        ours, theirs = [], []
        for run in range(args.runs + 1):
            peer.clear()
            speed = peer.time(test[1], 512 if test[0] == "pp" else 1)
            other = lowkey(args.lowkey, model, threads, test, 0, args.kv_budget)
            if run > 0:  # the first pair warms the page cache
                theirs.append(speed)
                ours.append(other)
        yield f"{test[0]}{test[1]}", theirs, ours
    peer.close()
    if args.depth:
        yield from at_depth(args, model, threads)


def at_depth(args, model, threads):
    """Decode after --depth tokens: llama.cpp by each of its cache settings, the best of which counts."""
    kinds = {"f16": None, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
    results = {}
    for name, kv_type in kinds.items():
        for flash in (0, 1):
            if kv_type is not None and flash == 0:
                continue  # a quantised V needs flash attention
            peer = Peer(model, threads, args.depth + args.n, kv_type, flash)
            for at in range(0, args.depth, 512):
                peer.feed(min(512, args.depth - at))
            speeds = []
            for _ in range(args.runs):
                peer.cut(args.depth)
                speeds.append(peer.time(min(args.n, 16), 1))
            results[f"{name}, fa {flash}"] = speeds
            peer.close()
    ours = [lowkey(args.lowkey, model, threads, ("tg", args.n), args.depth, args.kv_budget) for _ in range(args.runs)]
    for name, speeds in results.items():
        print(f"  llama.cpp at depth {args.depth}, {name}: {statistics.median(speeds):.2f} tok/s", flush=True)
    best = max(results.values(), key=statistics.median)
    yield f"tg at {args.depth}", best, ours


def main():
    flags = speed_flags.parser(__doc__, n=128)
    flags.add_argument("--depth", type=int, default=0)
    args = speed_flags.parsed(flags)
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(quiet, None)
    print(f"llama-cpp-python {llama_cpp.__version__}; {llama_cpp.llama_print_system_info().decode().strip()}")
    print("| model | test | threads | llama.cpp tok/s | lowkey tok/s | ratio |\n|---|---|---|---|---|---|", flush=True)
    for model in args.model:
        for threads in args.threads:
            for test, theirs, ours in compare(args, model, threads):
                a, b = statistics.median(theirs), statistics.median(ours)
                name = model.rsplit("/", 1)[-1]
                print(f"| {name} | {test} | {threads} | {a:.1f} | {b:.1f} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
