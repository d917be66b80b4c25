#!/usr/bin/env python3
"""A shelf of three servers behind HAProxy (and LiteLLM), one of which is killed and started again: does a client lose anything?

    benches/shelf.py [--chats N] [--conversations N] [--workers N] [--through haproxy|litellm]

Many conversations go on beside each other, by the `openai` client with its usual two retries; every second turn is
streamed. In the middle one server is killed (kill -9; --how term: SIGTERM) and started again after some seconds. It owns
the table that it prints, and fails where a row is worse than what is asked. The configurations are those of deploy/, as
they are. Each server is held to the limit that `lowkey plan --serve --unit` names by a memory group, where groups can be
made (root), and it says so where not.

It needs haproxy and openai, for `litellm` also litellm[proxy] in this Python (shelf.txt). LOWKEY_BIN is the program,
LOWKEY_TEST_MODEL the model.
"""

import argparse
import collections
import contextlib
import grp
import os
import pathlib
import pwd
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import openai

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
from lowkey_server import MODEL, PROGRAM, ROOT, free_port  # noqa: E402
from memory_group import Group  # noqa: E402

SYSTEM = """You are the assistant of a small library. You answer in one short sentence, and say so when you do not know.
The library is open from nine to five, on Saturdays until noon, and closed on Sundays. It has four thousand books, two
cats called Ink and Paper, one reading room with eleven chairs, and a garden that is open in summer. Books may be borrowed
for three weeks and once for three more. A book that is late costs ten cents a day. Children borrow for nothing. The
librarian is called Ada and is in on weekdays."""
# The program's own, to which `maxconn` of deploy/haproxy/haproxy.cfg is made: more than streams and queue together.
QUEUE = 4
QUESTIONS = ["When do you open?", "Do you have books about {}?", "Tell me more about {}.", "What are the cats called?",
             "Why is that so?", "Who wrote about {} first?", "Is the reading room quiet?", "Name another book about {}."]
TOPICS = ["trains", "the sea", "bees", "old maps", "Greek temples", "volcanoes", "bread", "clocks", "the moon", "chess"]


def get(url: str, timeout: float = 5) -> str:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return response.read().decode()


def wait_for(what: str, is_so, seconds: float = 120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if is_so():
                return
        time.sleep(0.1)
    raise RuntimeError(f"no {what} within {seconds:.0f} s")


class Board:
    """One server with a port, a folder of sessions and a memory group, which outlives it."""

    def __init__(self, number: int, folder: pathlib.Path, args):
        self.name, self.port, self.process = f"board-{number}", free_port(), None
        self.log = open(folder / f"{self.name}.log", "ab")
        self.flags = ["-m", MODEL, "--kv-budget", args.kv_budget, "--streams", str(args.streams), "--threads", "1",
                      "--queue", str(QUEUE), "--sessions", str(folder / self.name), "--session-space", "1GiB", "--save-after", "2", "--temp", "0"]
        unit = subprocess.run([*PROGRAM, "plan", "serve", "--unit", *self.flags], check=True, capture_output=True, text=True).stdout
        self.limit = int(unit.splitlines()[0].removeprefix("MemoryMax="))
        self.group = Group(self.name, self.limit)
        self.anon, self.plan, self.n_running = 0, 0, 0

    def start(self):
        command = [*PROGRAM, "serve", *self.flags, "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
                                        preexec_fn=self.group.enter, start_new_session=True)
        wait_for(f"health of {self.name}", lambda: get(f"http://127.0.0.1:{self.port}/health"))

    def look(self):
        """Keeps the most private memory that was seen, the plan, and how many answers are under way."""
        with contextlib.suppress(OSError):
            for line in get(f"http://127.0.0.1:{self.port}/metrics").splitlines():
                name, _, value = line.partition(" ")
                if name == "lowkey_memory_anon_bytes":
                    self.anon = max(self.anon, int(value))
                elif name == "lowkey_memory_plan_bytes":
                    self.plan = int(value)
                elif name == "lowkey_requests_running":
                    self.n_running = int(value)

    def stop(self, how=signal.SIGTERM):
        if self.process:
            self.process.send_signal(how)
            self.process.wait(20)
        self.process = None


class Trial:
    """Conversations and what became of each turn."""

    def __init__(self, args, url: str, key: str):
        self.args, self.lock, self.random = args, threading.Lock(), random.Random(args.seed)
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=300)
        self.idle = [{"id": f"{args.seed}-{i}", "turns": [{"role": "system", "content": SYSTEM}], "n_tokens": 0}
                     for i in range(args.conversations)]
        self.n_begun, self.n_done, self.counts, self.failures = 0, 0, collections.Counter(), []
        self.is_over = False
        self.seconds = []

    def take(self):
        """A conversation that nobody works at, any of them; None when all chats have begun, or no more are wanted."""
        with self.lock:
            if self.n_begun >= self.args.chats or not self.idle or self.is_over:
                return None
            self.n_begun += 1
            return self.idle.pop(self.random.randrange(len(self.idle)))

    def work(self):
        while (talk := self.take()) is not None:
            n = len(talk["turns"])
            question = QUESTIONS[n // 2 % len(QUESTIONS)].format(TOPICS[sum(talk["id"].encode()) % len(TOPICS)])
            talk["turns"].append({"role": "user", "content": question})
            started = time.monotonic()
            try:
                text, usage = self.turn(talk, streamed=n // 2 % 2 == 1)
            except Exception as error:
                with self.lock:
                    self.failures.append(f"conversation {talk['id']}: {type(error).__name__}: {error}")
                talk["turns"].pop()
            else:
                talk["turns"].append({"role": "assistant", "content": text})
                self.count(talk, usage, time.monotonic() - started)
            with self.lock:
                self.idle.append(talk)
                self.n_done += 1

    def turn(self, talk, streamed: bool):
        """The answer and its usage. A stream that breaks off is asked for again, as often as the client asks for others."""
        ask = {"model": self.args.model, "messages": talk["turns"], "max_tokens": self.args.max_tokens, "user": talk["id"],
               "extra_headers": {"X-Session-Id": talk["id"]}, "extra_body": {"session": f"talk-{talk['id']}"}}
        if not streamed:
            answer = self.client.chat.completions.create(**ask)
            assert answer.choices[0].finish_reason in ("stop", "length"), answer
            return answer.choices[0].message.content, answer.usage
        for _ in range(self.client.max_retries):
            try:
                return self.streamed(ask)
            except Exception as error:
                with self.lock:
                    self.counts["broken"] += 1
                    self.counts[f"broken by {type(error).__name__}"] += 1
        return self.streamed(ask)

    def streamed(self, ask):
        text, usage, reason = "", None, None
        for chunk in self.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        if reason not in ("stop", "length") or usage is None:
            raise ConnectionError(f"the stream ended without its end (finish_reason {reason}, usage {usage})")
        return text, usage

    def count(self, talk, usage, seconds: float):
        """A turn has found its prefix if all that the conversation held before was there: its tokens but for the last few."""
        cached = (usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0) or 0
        with self.lock:
            self.seconds.append(seconds)
            self.counts["first" if talk["n_tokens"] == 0 else "later"] += 1
            if talk["n_tokens"] == 0:
                self.counts["first found"] += cached > 0
            else:
                self.counts["later found"] += cached >= talk["n_tokens"] - 8
            self.counts["cached"] += cached
            self.counts["prompt"] += usage.prompt_tokens
        talk["n_tokens"] = usage.prompt_tokens + usage.completion_tokens - 1


def run(trial: Trial, boards: list, args):
    workers = [threading.Thread(target=trial.work, daemon=True) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    victim, stopped_at, n_stops = None, 0.0, 0
    while any(worker.is_alive() for worker in workers):
        # Rarely, for a look takes time of boards that have little.
        time.sleep(1)
        for board in boards:
            board.look()
        if victim is None and n_stops < args.stops and trial.n_done >= args.chats * (n_stops + 1) // (args.stops + 1):
            # One that is at work, if any is.
            victim = max(boards, key=lambda board: board.n_running)
            print(f"{trial.n_done} chats: {victim.name} is stopped with {victim.n_running} answers under way", file=sys.stderr)
            victim.stop(signal.SIGKILL if args.how == "kill" else signal.SIGTERM)
            stopped_at, n_stops = time.monotonic(), n_stops + 1
        elif victim and time.monotonic() - stopped_at > args.down:
            victim.start()
            print(f"{trial.n_done} chats: {victim.name} is back", file=sys.stderr)
            victim = None


def report(trial: Trial, boards: list, args, seconds: float) -> bool:
    counts, is_good = trial.counts, True

    def row(what, asked, seen, holds):
        nonlocal is_good
        is_good &= bool(holds)
        print(f"| {what} | {asked} | {seen} | {'yes' if holds else '**no**'} |")

    print(f"{trial.n_done} of {args.chats} chats of {args.conversations} conversations, {args.workers} at once, "
          f"through {args.through}; {seconds:.0f} s, median turn {sorted(trial.seconds)[len(trial.seconds) // 2]:.2f} s\n")
    print("| what | asked | seen | holds |\n|---|---|---|---|")
    row("chats that failed for good", "0", len(trial.failures), not trial.failures)
    # Those that the server had: its streams, and its queue.
    most = args.stops * (args.streams + QUEUE)
    row("streams that broke off and were asked for again", f"at most {most}", counts["broken"], counts["broken"] <= most)
    share = counts["later found"] / max(counts["later"], 1)
    row("turns after the first that found their prefix", "≥ 90 %", f"{share:.1%} of {counts['later']}", share >= 0.9)
    both = (counts["later found"] + counts["first found"]) / max(counts["later"] + counts["first"], 1)
    row("all turns that found theirs (of a first one, the system's turn)", "≥ 90 %", f"{both:.1%}", both >= 0.9)
    row("tokens of prompts that were there", "", f"{counts['cached'] / max(counts['prompt'], 1):.1%}", True)
    for board in boards:
        held = f"{board.anon / 2**20:.1f} of {board.plan / 2**20:.1f} MiB"
        row(f"{board.name}: private memory, of its plan", "within", held, 0 < board.anon <= board.plan)
        if board.group.folder:
            seen = f"peak {board.group.peak() / 2**20:.1f} of {board.limit / 2**20:.1f} MiB, {board.group.n_killed()} killed"
            row(f"{board.name}: its group", "none killed", seen, board.group.n_killed() == 0)
    for name, n in counts.items():
        if name.startswith("broken by"):
            print(f"{name}: {n}", file=sys.stderr)
    for failure in trial.failures[:20]:
        print(failure, file=sys.stderr)
    return is_good


def start_haproxy(boards: list, folder: pathlib.Path, log, stack) -> int:
    port = free_port()
    env = dict(os.environ, SHELF_BIND=f"127.0.0.1:{port}", SHELF_METRICS=f"127.0.0.1:{free_port()}",
               SHELF_ADMIN=str(folder / "admin.sock"), SHELF_USER=pwd.getpwuid(os.getuid()).pw_name,
               SHELF_GROUP=grp.getgrgid(os.getgid()).gr_name,
               **{f"BOARD_{i}": f"127.0.0.1:{b.port}" for i, b in enumerate(boards, 1)})
    process = subprocess.Popen(["haproxy", "-db", "-f", str(ROOT / "deploy/haproxy/haproxy.cfg")], env=env, stdout=log, stderr=log,
                               start_new_session=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    wait_for("HAProxy", lambda: get(f"http://127.0.0.1:{port}/health"))
    # Its first checks of all boards.
    time.sleep(2.5)
    return port


def start_litellm(port: int, log, stack):
    """The port of LiteLLM in front of a port, and the key that it asks for."""
    own, key = free_port(), "sk-" + secrets.token_hex(8)
    program = shutil.which("litellm", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("litellm")
    if not program:
        raise RuntimeError("litellm is not installed in this Python: pip install 'litellm[proxy]', or --through haproxy")
    env = dict(os.environ, SHELF_URL=f"http://127.0.0.1:{port}/v1", LOWKEY_API_KEY="none", LITELLM_MASTER_KEY=key,
               LITELLM_LOCAL_MODEL_COST_MAP="True", NO_PROXY="127.0.0.1")
    command = [program, "--config", str(ROOT / "deploy/litellm/config.yaml"), "--port", str(own), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    wait_for("LiteLLM", lambda: get(f"http://127.0.0.1:{own}/health/liveliness"), 180)
    return own, key


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=int, default=40)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4, help="chats at once")
    parser.add_argument("--streams", type=int, default=2, help="of each server")
    parser.add_argument("--kv-budget", default="16MiB", help="of each server")
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--down", type=float, default=5, help="seconds that the stopped server is away")
    parser.add_argument("--stops", type=int, default=1, help="how often a server is stopped")
    parser.add_argument("--how", choices=["kill", "term"], default="kill", help="kill -9, or SIGTERM, which lets answers end")
    parser.add_argument("--through", choices=["haproxy", "litellm"], default="litellm")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for logs and sessions [default: none are kept]")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context(open(folder / "gateways.log", "ab"))
        boards = []
        for number in (1, 2, 3):
            boards.append(Board(number, folder, args))
            stack.callback(boards[-1].group.remove)
            stack.callback(boards[-1].stop)
            boards[-1].start()
        port, key = start_haproxy(boards, folder, log, stack), "none"
        if args.through == "litellm":
            port, key = start_litellm(port, log, stack)
        trial = Trial(args, f"http://127.0.0.1:{port}/v1", key)
        # Ctrl-C ends it early, with the table of what was seen until then. It reaches this script alone, for the others have
        # sessions of their own.
        signal.signal(signal.SIGINT, lambda *_: setattr(trial, "is_over", True))
        started = time.monotonic()
        run(trial, boards, args)
        return 0 if report(trial, boards, args, time.monotonic() - started) else 1


if __name__ == "__main__":
    sys.exit(main())
