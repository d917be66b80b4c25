"""A `lowkey serve` for the tests that are written in Python: started on a free port, ended in order, watched.

    with Server("--streams", "2") as server:
        status, answer = server.post("/v1/chat/completions", {"messages": [...]})

`LOWKEY_BIN` is the program (default target/release/lowkey), `LOWKEY_TEST_MODEL` the model, `LOWKEY_TEST_THREADS` its threads. The
program's log is shown where a test fails to start it or it does not end with 0.
"""

import http.client
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = os.environ.get("LOWKEY_TEST_MODEL", str(ROOT / "models/smollm2-135m-instruct-q4_1.gguf"))
# A machine that is busy with other things is faster with one: threads wait for each other.
THREADS = int(os.environ.get("LOWKEY_TEST_THREADS", "2"))
PROGRAM = shlex.split(os.environ.get("LOWKEY_BIN", str(ROOT / "target/release/lowkey")))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, *flags: str, budget: str = "8MiB", threads: int = THREADS):
        self.port = free_port()
        self.flags = ["--kv-budget", budget, "--threads", str(threads), *flags]
        self.process = None
        self.log = tempfile.TemporaryFile()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list:
        return [*PROGRAM, "serve", "-m", MODEL, "--host", "127.0.0.1", "--port", str(self.port), *self.flags]

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{shlex.join(self.command())} ended with {self.process.returncode}:\n{self.said()}")
            try:
                if self.get("/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise RuntimeError(f"no /health within 60 s:\n{self.said()}")

    def __exit__(self, kind, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = "nothing within 10 s of SIGTERM"
        said = self.said()
        self.log.close()
        if code != 0 and kind is None:
            raise RuntimeError(f"the server ended with {code}:\n{said}")

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-4000:]

    def request(self, method: str, path: str, body=None, headers=None, timeout: float = 60):
        """Status, headers and body; the body is what the JSON says, or bytes where it is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = dict(headers or {})
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
                headers.setdefault("Content-Type", "application/json")
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            return response.status, response.headers, json.loads(raw)
        except ValueError:
            return response.status, response.headers, raw

    def get(self, path: str, **more):
        status, _, body = self.request("GET", path, **more)
        return status, body

    def post(self, path: str, body, **more):
        status, _, answer = self.request("POST", path, body, **more)
        return status, answer

    def metric(self, name: str) -> float:
        status, body = self.get("/metrics")
        assert status == 200, (status, body)
        for line in body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise KeyError(name)

    def memory(self) -> dict:
        """Bytes of the process as the system counts them: RssAnon, VmHWM and so on."""
        out = {}
        for line in open(f"/proc/{self.process.pid}/status", encoding="ascii"):
            name, _, rest = line.partition(":")
            if rest.strip().endswith(" kB"):
                out[name] = int(rest.split()[0]) * 1024
        return out

    def wait_idle(self, within: float) -> bool:
        """Whether no stream is at work within so many seconds; needs /slots."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            status, slots = self.get("/slots")
            assert status in (200, 503), (status, slots)
            if status == 200 and not any(slot["is_processing"] for slot in slots):
                return True
            time.sleep(0.05)
        return False
