#!/usr/bin/env python3
"""What `lowkey serve` does for its owner, in figures: streams together, a prompt beside an answer, snapshots, prompts that change at
their head, a long stream, the start.

    benches/serve.py [decode|beside|snapshot|reuse|long|start ...]

Owns: the table "Figures" of docs/serve.md, whose rows it prints. The ratios are of runs that alternate, and medians: the machine is
shared. Refuses: to judge; what is asked of each figure stands beside it. `--tokens` is the length of the long stream, `--questions` the
number of those for `reuse`. LOWKEY_BIN is the program, LOWKEY_TEST_MODEL the model.
"""

import argparse
import http.client
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
from lowkey_server import MODEL, PROGRAM, ROOT, Server  # noqa: E402

median = statistics.median
PROSE = (ROOT / "tests/data/prose.txt").read_text()
# No keys of few bits: whatever changes within the first 64 tokens can be taken back.
EXACT = ("--kv-type", "q8_0")


def row(what, asked, seen):
    print(f"| {what} | {asked} | {seen} |", flush=True)


def complete(server, prompt, **more):
    status, answer = server.post("/completion", {"prompt": prompt, "temperature": 0, **more}, timeout=3600)
    assert status == 200, (status, answer)
    return answer


def tokens(server, text):
    return server.post("/tokenize", {"content": text, "add_special": False})[1]["tokens"]


def events(server, path, body):
    """The events of a stream, each with the time at which it came."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=3600)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: {"):
            yield time.perf_counter(), json.loads(line[6:])
    connection.close()


def decode(args):
    """Tokens per second of four streams beside each other and of one, and of one beside those of `lowkey run`."""
    n, prompt = 160, "Once upon a time, in a village by the sea,"
    run = [*PROGRAM, "run", "-m", MODEL, "-p", prompt, "-n", str(n), "--temp", "0", "--ignore-eos", "--json", "--threads", "2"]

    def rate_of_run():
        out = json.loads(subprocess.run([*run, "--kv-budget", "8MiB", *EXACT], check=True, capture_output=True).stdout)
        return (n - 1) / out["timings"]["decode_ms"] * 1e3

    ask = {"n_predict": n, "ignore_eos": True, "cache_prompt": False}
    ratios, rates, beside_run = [], [], []
    with Server("--streams", "4", *EXACT, budget="32MiB") as four, Server(*EXACT) as one:
        for _ in range(args.rounds):
            alone = complete(four, prompt, **ask)["timings"]["predicted_per_second"]
            spans = []

            def work(i):
                answer = complete(four, f"{i}. {prompt}", **ask, id_slot=i)
                spans.append(answer["timings"]["predicted_per_second"])

            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            ratios.append(sum(spans) / alone)
            rates.append((alone, sum(spans)))
            served = complete(one, prompt, **ask)["timings"]["predicted_per_second"]
            ran = rate_of_run()
            beside_run.append(served / ran)
    alone, together = (median(rate[i] for rate in rates) for i in (0, 1))
    row("tokens/s of 4 streams together, to one", "≥ 2.2", f"{median(ratios):.2f} ({together:.0f} to {alone:.0f})")
    row("tokens/s of one stream of `serve`, to `run`", "≥ 0.97", f"{median(beside_run):.2f}")


def beside(args):
    """The longest that a token waits while another stream reads 4,000 tokens, in batches of that stream."""
    longest, batches = [], []
    with Server("--streams", "2", "--batch", "64", *EXACT, budget="128MiB") as server:
        for i in range(args.rounds):
            long = tokens(server, f"{i}. {PROSE}" * 2)[:4000]
            assert len(long) == 4000, len(long)
            times, read = [], {}
            reader = threading.Thread(
                target=lambda: read.update(complete(server, long, n_predict=1, id_slot=1, cache_prompt=False)["timings"])
            )
            body = {"prompt": "A long story:", "n_predict": 4000, "ignore_eos": True, "temperature": 0, "id_slot": 0}
            for when, _ in events(server, "/completion", body):
                times.append(when)
                if len(times) == 20:
                    reader.start()
                if len(times) > 20 and read:
                    break
            gaps = [b - a for a, b in zip(times[20:-1], times[21:])]
            # A round is a batch and a token of the other stream.
            batch = read["prompt_ms"] / 1e3 / math.ceil(read["prompt_n"] / 64)
            longest.append(max(gaps) / batch)
            batches.append(batch)
            server.wait_idle(10)
    what = "longest wait of a token while another stream reads 4,000, in batches"
    row(what, "≤ 2", f"{median(longest):.2f} (of {median(batches) * 1e3:.0f} ms)")


DEVICES = [
    f"- {kind} in the {room}: {state}"
    for room in ("kitchen", "hall", "garden", "bedroom", "attic", "cellar", "garage", "bathroom", "study", "porch",
                 "workshop", "nursery", "pantry")
    for kind, state in (
        ("lamp", "on, brightness 60 %"),
        ("heater", "off, 18.5 degrees wanted"),
        ("window sensor", "closed, battery at 81 %"),
        ("socket", "on, 42 W"),
        ("motion sensor", "nobody since 20 minutes"),
        ("shutter", "half open"),
        ("smoke detector", "quiet, battery at 64 %"),
        ("speaker", "paused, volume 30 %"),
        ("thermometer", "19.2 degrees, humidity 48 %"),
        ("lock", "locked"),
        ("fan", "off"),
        ("camera", "idle"),
        ("clock", "showing the time"),
    )
]
QUESTIONS = [
    f"{ask} the {thing} in the {room}?"
    for ask, thing in (("What is the state of", "lamp"), ("Tell me about", "heater"), ("What do you know of", "socket"),
                       ("How is", "shutter"), ("What can you say about", "thermometer"))
    for room in ("kitchen", "hall", "garden", "bedroom", "attic", "cellar", "garage", "bathroom", "study", "porch")
]


def system(server, clock, n=2000):
    """A system turn of about so many tokens that begins with a time of day."""
    text = f"The time is {clock}. You are the voice of a house and answer briefly. These are its devices:\n" + "\n".join(DEVICES)
    return server.post("/detokenize", {"tokens": tokens(server, text)[:n]})[1]["content"]


def snapshot(args):
    """The time to the first token of a system turn of 2,000 tokens: cold, and after a restart with its snapshot on disk."""
    ratios, colds, warms, same = [], [], [], 0
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            flags = ("--sessions", folder, *EXACT)

            def first(server, question):
                turn = [{"role": "system", "content": system(server, f"{i} o'clock")}, {"role": "user", "content": question}]
                began, text, at = time.perf_counter(), "", None
                for when, event in events(server, "/v1/chat/completions", {"messages": turn, "temperature": 0, "max_tokens": 32}):
                    piece = (event["choices"] or [{"delta": {}}])[0]["delta"].get("content")
                    at, text = at or (when if piece else None), text + (piece or "")
                return at - began, text

            with Server(*flags, budget="40MiB") as server:
                cold, said = first(server, QUESTIONS[0])
                complete(server, "Something else entirely.", n_predict=1)
                first(server, QUESTIONS[1])
            with Server(*flags, budget="40MiB") as server:
                warm, again = first(server, QUESTIONS[0])
        ratios.append(warm / cold)
        colds.append(cold)
        warms.append(warm)
        same += said == again
    seen = f"{median(ratios):.3f} ({median(warms) * 1e3:.0f} to {median(colds) * 1e3:.0f} ms); same answer {same} of {args.rounds}"
    row("first token of a 2,000-token turn whose snapshot is on disk, to cold", "≤ 0.1, same answer", seen)


def distributions(server, prompt, n, path=None):
    """The first `n` distributions behind a prompt, along `path` or the most likely tokens: each as {token: logprob} of the 20 first."""
    found, taken, first_ms = [], [], None
    more = {}
    for i in range(n):
        answer = complete(server, prompt + taken, n_predict=1, n_probs=20, id_slot=0, ignore_eos=True, **more)
        if first_ms is None:
            first_ms = answer["timings"]["prompt_ms"]
        tops = answer["completion_probabilities"][0]["top_logprobs"]
        found.append({top["id"]: top["logprob"] for top in tops})
        taken.append(path[i] if path else tops[0]["id"])
    return found, taken, first_ms


def kl(p, q):
    """KL of two distributions by the tokens that both name; the rest of each is one more. From below."""
    both = p.keys() & q.keys()
    rest = [max(1e-9, 1 - sum(math.exp(side[token]) for token in both)) for side in (p, q)]
    return sum(math.exp(p[token]) * (p[token] - q[token]) for token in both) + rest[0] * math.log(rest[0] / rest[1])


CLOCK = "18:04 on Friday, 6 March 2026"
# What a stream holds when the prompt comes with the time above.
EARLIER = {
    "a minute": "18:03 on Friday, 6 March 2026",
    "an hour and a half": "16:34 on Friday, 6 March 2026",
    "four days": "07:31 on Monday, 2 March 2026",
}


def reuse(args):
    """A system turn of 2,000 tokens whose clock has changed: what moving it costs in answers and spares in time."""
    colds, moved = [], []
    with tempfile.TemporaryDirectory() as folder, Server("--sessions", folder, *EXACT, budget="48MiB") as server:

        def prompt(clock, question):
            turn = [{"role": "system", "content": system(server, clock)}, {"role": "user", "content": question}]
            return tokens(server, server.post("/apply-template", {"messages": turn})[1]["prompt"])

        def slot(action, name):
            status, answer = server.post(f"/slots/0?action={action}", {"filename": name})
            assert status == 200, answer

        def is_same(run, path):
            return all(max(found, key=found.get) == token for found, token in zip(run[:8], path))

        names = {clock: f"clock-{i}" for i, clock in enumerate([CLOCK, *EARLIER.values()])}
        for clock, name in names.items():
            complete(server, prompt(clock, "?")[:-8], n_predict=0, id_slot=0, cache_prompt=False)
            slot("save", name)
        found = {earlier: [] for earlier in EARLIER}
        for question in QUESTIONS[: args.questions]:
            asked = prompt(CLOCK, question)
            slot("restore", names[CLOCK])
            exact, path, _ = distributions(server, asked, 32)
            for earlier, clock in EARLIER.items():
                slot("restore", names[clock])
                # The first request moves; those behind it go on.
                began = complete(server, asked, n_predict=1, id_slot=0, n_cache_reuse=32)
                assert began["lowkey"]["n_moved"] > 1000, began["lowkey"]
                moved.append(began["timings"]["prompt_ms"])
                near, _, _ = distributions(server, asked, 32, path)
                slot("restore", names[clock])
                far, _, _ = distributions(server, prompt(clock, question), 32, path)
                kls = [statistics.mean(map(kl, exact, run)) for run in (near, far)]
                found[earlier].append((*kls, is_same(near, path), is_same(far, path)))
            if len(colds) < 5:
                colds.append(complete(server, asked, n_predict=1, id_slot=0, cache_prompt=False)["timings"]["prompt_ms"])
    seen = f"{median(moved) / median(colds):.3f} ({median(moved):.0f} to {median(colds):.0f} ms)"
    row(f"`--reuse`: first token of {len(asked)} tokens whose clock changed, to cold", "≤ 0.2", seen)
    for earlier, runs in found.items():
        near, far, same, same_far = (sum(column) for column in zip(*runs))
        n = len(runs)
        row(f"by {earlier}: mean KL of 32 tokens to the exact run, beside an exact run with the old clock", "told",
            f"{near / n:.4f} beside {far / n:.4f}")
        row(f"by {earlier}: same first 8 tokens as the exact run, beside an exact run with the old clock",
            "≥ 45 of 50", f"{same} of {n} beside {same_far}")


def long(args):
    """A stream of many tokens in 2 MiB: private memory and time by tenths."""
    with Server("--max-tokens", "-1", budget="2MiB") as server:
        memory, times = [server.memory()["RssAnon"]], [time.perf_counter()]
        body = {"prompt": "The story of the world:", "n_predict": args.tokens, "ignore_eos": True, "temperature": 0.8, "seed": 1}
        tenth, n = args.tokens // 10, 0
        for when, event in events(server, "/completion", body):
            n += len(event.get("tokens") or [0])
            if n >= tenth * len(times):
                times.append(when)
                memory.append(server.memory()["RssAnon"])
    spans = [b - a for a, b in zip(times, times[1:])]
    grown = (max(memory) - memory[0]) / 1024
    seen = f"{grown:+.0f} KiB; {tenth / spans[0]:.0f} tokens/s in the first tenth, {tenth / spans[-1]:.0f} in the last, {n} tokens"
    row(f"{args.tokens} tokens through `serve` in 2 MiB", "flat memory, flat time", seen)


def start(args):
    times = []
    for _ in range(max(7, args.rounds)):
        with Server() as server:
            times.append(float(re.search(r"ready after ([\d.]+) ms", server.said())[1]))
    row("from the start to `ready`, the file in the page cache", "told", f"{median(times):.0f} ms, best {min(times):.0f}")


PARTS = {f.__name__: f for f in (start, decode, beside, snapshot, reuse, long)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=100_000)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    print("| what | asked for | seen |\n|---|---|---|", flush=True)
    for name, part in PARTS.items():
        if not args.parts or name in args.parts:
            part(args)


if __name__ == "__main__":
    main()
