#!/usr/bin/env python3
"""deploy/haproxy/haproxy.cfg in a real HAProxy, in front of boards that are a few lines each: who gets which request.

It owns the rules of the shelf: what names a conversation, that a name stays with its board, and what happens when a board is full,
dies or comes back. It needs the program haproxy, takes free ports of this machine alone, and is over in seconds. `make shelf` tries
the same file with real servers.
"""

import collections
import concurrent.futures
import grp
import http.client
import http.server
import json
import os
import pathlib
import pwd
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = pathlib.Path(os.environ.get("LOWKEY_HAPROXY_CFG", ROOT / "deploy/haproxy/haproxy.cfg"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Board:
    """What a board says: its number and the path that came, or 503 while it is full."""

    def __init__(self, number: int):
        self.number, self.is_full, self.hangs_up, self.delay, self.port = number, False, False, 0, free_port()
        self.server = None
        self.start()

    def start(self):
        board = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status: int, body: dict, **headers):
                raw = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(raw), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self):
                self.reply(200, {"board": board.number, "path": self.path})

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(board.delay)
                if board.hangs_up:
                    self.close_connection = True
                elif board.is_full:
                    self.reply(503, {"board": board.number}, Retry_After=6 + board.number)
                else:
                    self.do_GET()

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                """A connection that HAProxy has closed is no fault."""

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None


class Shelf(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.boards = [Board(n) for n in (1, 2, 3)]
        cls.folder = tempfile.TemporaryDirectory()
        cls.port, cls.metrics = free_port(), free_port()
        env = dict(os.environ, SHELF_BIND=f"127.0.0.1:{cls.port}", SHELF_METRICS=f"127.0.0.1:{cls.metrics}",
                   SHELF_ADMIN=f"{cls.folder.name}/admin.sock", SHELF_USER=pwd.getpwuid(os.getuid()).pw_name,
                   SHELF_GROUP=grp.getgrgid(os.getgid()).gr_name,
                   **{f"BOARD_{b.number}": f"127.0.0.1:{b.port}" for b in cls.boards})
        cls.log = open(f"{cls.folder.name}/log", "w+", encoding="utf-8")
        cls.haproxy = subprocess.Popen(["haproxy", "-db", "-f", CONFIG], env=env, stdout=cls.log, stderr=cls.log)
        cls.wait_for(lambda: cls.n_up() == 3, "three boards that are up")

    @classmethod
    def tearDownClass(cls):
        cls.haproxy.terminate()
        cls.haproxy.wait()
        for board in cls.boards:
            board.stop()
        cls.log.close()
        cls.folder.cleanup()

    def tearDown(self):
        for board in self.boards:
            board.is_full = board.hangs_up = False
            board.delay = 0
            if not board.server:
                board.start()
        self.wait_for(lambda: self.n_up() == 3, "three boards again")

    @classmethod
    def wait_for(cls, is_so, what: str):
        end = time.monotonic() + 15
        while not is_so():
            if time.monotonic() > end or cls.haproxy.poll() is not None:
                cls.log.seek(0)
                raise AssertionError(f"no {what}:\n{cls.log.read()}")
            time.sleep(0.05)

    @classmethod
    def admin(cls, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f"{cls.folder.name}/admin.sock")
            s.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: s.recv(65536), b"")).decode()

    @classmethod
    def n_up(cls) -> int:
        """Servers of the backend `shelf` whose check has passed; -1 before there is anybody to ask."""
        try:
            rows = [line.split(",") for line in cls.admin("show stat").splitlines()]
        except OSError:
            return -1
        at = rows[0].index("check_status")
        return sum(row[0] == "shelf" and row[1].startswith("board-") and row[17] == "UP" and row[at] == "L7OK" for row in rows[1:])

    @classmethod
    def n_running(cls) -> int:
        """Requests that HAProxy counts as under way at some board; of one that is answered it does so a moment longer."""
        rows = [line.split(",") for line in cls.admin("show stat").splitlines()]
        at = rows[0].index("scur")
        return sum(int(row[at]) for row in rows[1:] if len(row) > at and row[1].startswith("board-"))

    def get(self, path: str, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def ask(self, body: dict, session=None, path="/v1/chat/completions"):
        """Status, headers, and the number of the board that answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Content-Type": "application/json", **({"X-Session-Id": session} if session else {})}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, response.headers, answer.get("board")

    def board_of(self, body: dict, session=None) -> int:
        status, _, board = self.ask(body, session)
        self.assertEqual(status, 200)
        return board

    def one_of_each(self) -> dict:
        """A name for each board."""
        found = {}
        for i in range(100):
            found.setdefault(self.board_of({}, f"name-{i}"), f"name-{i}")
        self.assertEqual(sorted(found), [1, 2, 3])
        return found

    def test_names_are_spread_and_stay(self):
        def boards():
            return [self.board_of({"messages": [{"content": f"{i} {time.monotonic()}"}]}, f"s{i}") for i in range(150)]

        before = boards()
        self.assertEqual(before, boards())
        counts = collections.Counter(before)
        self.assertTrue(all(counts[n] >= 15 for n in (1, 2, 3)), counts)

    def test_what_names_a_conversation(self):
        def turn(i, **more):
            return {"messages": [{"role": "system", "content": f"text {i}"}, {"content": str(time.monotonic())}], **more}

        def parts(i):
            return {"messages": [{"role": "system", "content": [{"type": "text", "text": f"text {i}"}]}]}

        by_name = [self.board_of({}, f"n{i}") for i in range(20)]
        for field in ("session", "user"):
            self.assertEqual([self.board_of(turn(j, **{field: f"n{i}"})) for i, j in enumerate(range(20, 0, -1))], by_name, field)
        self.assertEqual([self.board_of(turn(1, user="other", session=f"n{i}")) for i in range(20)], by_name, "session before user")
        by_header = [self.board_of(turn(1, session="other", user="other"), f"n{i}") for i in range(20)]
        self.assertEqual(by_header, by_name, "the header first")

        def alone(body):
            """By a text the next board is taken where one has too much to do, which the request before would be."""
            self.wait_for(lambda: self.n_running() == 0, "moment without requests")
            return self.board_of(body)

        by_text = [alone(turn(i)) for i in range(20)]
        self.assertEqual(set(by_text), {1, 2, 3})
        self.assertEqual([alone(turn(i)) for i in range(20)], by_text, "the user's turn does not count")
        self.assertEqual([alone(parts(i)) for i in range(20)], by_text, "a list of parts is the same text")

    def test_a_text_of_many_spills_over_and_a_name_does_not(self):
        for board in self.boards:
            board.delay = 0.5

        def boards_of_many(body: dict) -> set:
            with concurrent.futures.ThreadPoolExecutor(9) as pool:
                return set(pool.map(self.board_of, [body] * 9))

        self.assertGreater(len(boards_of_many({"messages": [{"role": "system", "content": "the same for all"}]})), 1)
        self.assertEqual(len(boards_of_many({"user": "one"})), 1)

    def test_a_full_board_is_passed_over(self):
        for number, name in self.one_of_each().items():
            self.boards[number - 1].is_full = True
            self.assertNotEqual(self.board_of({}, name), number)
            self.boards[number - 1].is_full = False
            self.assertEqual(self.board_of({}, name), number)

    def test_when_all_are_full_the_client_learns_when_to_come_back(self):
        for board in self.boards:
            board.is_full = True
        status, headers, board = self.ask({}, "x")
        self.assertEqual((status, headers["Retry-After"]), (503, str(6 + board)))

    def test_a_board_that_dies_loses_no_request(self):
        names = self.one_of_each()
        # It takes the request and says nothing.
        self.boards[0].hangs_up = True
        self.assertNotEqual(self.board_of({}, names[1]), 1)
        self.boards[0].hangs_up = False
        # It is not there at all, and comes back to what was its own.
        self.boards[1].stop()
        self.assertNotEqual(self.board_of({}, names[2]), 2)
        self.wait_for(lambda: self.n_up() == 2, "board that is down")
        self.assertEqual([self.board_of({}, names[n]) for n in (1, 3)], [1, 3], "the others keep theirs")
        self.boards[1].start()
        self.wait_for(lambda: self.n_up() == 3, "board that is back")
        self.assertEqual(self.board_of({}, names[2]), 2)

    def test_a_board_that_is_drained_gets_nothing_new(self):
        names = self.one_of_each()
        self.admin("set server shelf/board-3 state drain")
        self.assertNotEqual(self.board_of({}, names[3]), 3)
        by_text = {self.board_of({"messages": [{"content": str(i)}]}) for i in range(40)}
        self.assertEqual(by_text, {1, 2}, "those without a name keep off too")
        self.admin("set server shelf/board-3 state ready")
        self.assertEqual(self.board_of({}, names[3]), 3)

    def test_only_the_apis_pass(self):
        for path in ("/", "/metrics", "/slots", "/props", "/lowkey/arena?stream=0", "/slots/0?action=erase"):
            self.assertEqual(self.get(path)[0], 404, path)
        for path in ("/v1/models", "/api/tags", "/health"):
            self.assertEqual(self.get(path)[0], 200, path)
        self.assertEqual(self.ask({}, path="/completion")[0], 200)
        status, body = self.get("/metrics", self.metrics)
        self.assertTrue(status == 200 and b"haproxy_server_status" in body)

    def test_health_is_bad_when_no_board_is_left(self):
        for board in self.boards:
            board.stop()
        self.wait_for(lambda: self.get("/health")[0] == 503, "health that is bad")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
