#!/usr/bin/env python3
"""A server that answers /health and refuses everything else: what passes against it says nothing about lowkey.

LOWKEY_BIN=tests/peer/stand_in.py tests/peer/run suite    which tests of the list these are
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        status, body = (200, {"status": "ok"}) if self.path == "/health" else (501, {"error": {"message": "a stand-in"}})
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_OPTIONS = do_DELETE = answer

    def log_message(self, *_):
        pass


if sys.argv[1] == "plan":
    print(json.dumps({"kv": {"bytes_per_slot": 24120}}))
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
