"""A headless Chromium, driven over a pair of pipes by the DevTools protocol. Python's standard library alone.

`Browser` starts it, `Page` is a tab. Requests to other hosts than this machine find no address, so that a page that asks for
something from elsewhere fails here too; they are noted in `Page.urls`.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

FLAGS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
PATIENCE = 3


def find_chromium() -> str:
    for name in filter(None, (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")):
        path = shutil.which(name)
        if path:
            return path
    raise SystemExit("tests/web: no chromium: apt-get install chromium, or name one by CHROMIUM=")


class Browser:
    def __enter__(self) -> "Browser":
        self.home = tempfile.TemporaryDirectory()
        to_read, self.out = os.pipe()
        self.into, to_write = os.pipe()
        # The browser reads from descriptor 3 and writes to 4; ours are put above these first, so that none is lost.
        to_read, to_write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, to_write))

        def hand_over():
            os.dup2(to_read, 3)
            os.dup2(to_write, 4)

        flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])
        self.process = subprocess.Popen(
            [find_chromium(), *flags, f"--user-data-dir={self.home.name}", "about:blank"],
            preexec_fn=hand_over,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.number = 0
        self.buffer = b""
        self.answers = {}
        self.pages = {}
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
            self.process.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.into)
        self.home.cleanup()

    def call(self, method: str, session: str = None, within: float = 120, **params):
        self.number += 1
        number = self.number
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + within
        while number not in self.answers:
            if not self.pump(end - time.monotonic()):
                raise RuntimeError(f"{method}: no answer within {within} s")
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def pump(self, seconds: float) -> bool:
        """Takes in what the browser has said; false if it said nothing for so long."""
        if not select.select([self.into], [], [], max(0, seconds))[0]:
            return False
        data = os.read(self.into, 1 << 20)
        if not data:
            raise RuntimeError("the browser has ended")
        *whole, self.buffer = (self.buffer + data).split(b"\0")
        for raw in whole:
            message = json.loads(raw)
            if "id" in message:
                self.answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].happened(message["method"], message["params"])
        return True

    def page(self) -> "Page":
        # A context of its own: storage of one test is not that of another.
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, target, context)


class Page:
    def __init__(self, browser: Browser, session: str, target: str, context: str):
        self.browser, self.session, self.target, self.context = browser, session, target, context
        self.urls, self.complaints, self.answers = [], [], {}
        browser.pages[session] = self
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def close(self):
        # With it go its connections, which a tab alone would leave open for a while.
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)
        del self.browser.pages[self.session]

    def call(self, method: str, **params):
        return self.browser.call(method, self.session, **params)

    def happened(self, method: str, params: dict):
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif method == "Fetch.requestPaused":
            self.answer_paused(params)

    def fake(self, path: str, status: int, body: bytes, headers: dict):
        """Requests for `path` get this answer and do not reach the server. `status` 0: no connection. None: let through again."""
        if status is None:
            self.answers.pop(path, None)
        else:
            self.answers[path] = (status, body, headers)
        self.call("Fetch.enable", patterns=[{"urlPattern": "*" + p} for p in self.answers] or [{"urlPattern": "*nothing*"}])

    def answer_paused(self, params: dict):
        path = params["request"]["url"].split("?")[0]
        found = [answer for end, answer in self.answers.items() if path.endswith(end)]
        call, more = "Fetch.continueRequest", {}
        if found and found[0][0] == 0:
            call, more = "Fetch.failRequest", {"errorReason": "ConnectionRefused"}
        elif found:
            status, body, headers = found[0]
            call = "Fetch.fulfillRequest"
            more = {
                "responseCode": status,
                "body": base64.b64encode(body).decode(),
                "responseHeaders": [{"name": n, "value": v} for n, v in headers.items()],
            }
        # This runs while another call waits, so its own answer is not waited for.
        self.browser.number += 1
        message = {
            "id": self.browser.number,
            "method": call,
            "sessionId": self.session,
            "params": {"requestId": params["requestId"], **more},
        }
        os.write(self.browser.out, json.dumps(message).encode() + b"\0")

    def open(self, url: str):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str):
        """What an expression comes to, promises waited for."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails'].get('exception', {}).get('description')}")
        return result["result"].get("value")

    def until(self, script: str, within: float = 20):
        """The first value of an expression that is not false, or a failure; a machine that is busy gets more time."""
        end = time.monotonic() + within * PATIENCE
        while True:
            value = self.run(script)
            # An element comes back as an empty object.
            if value or value == {}:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {within * PATIENCE} s: {script}; complaints: {self.complaints}")
            self.browser.pump(0.05)

    def rest(self, seconds: float):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.browser.pump(left)

    def type(self, text: str):
        self.call("Input.insertText", text=text)

    def key(self, key: str, code: int, text: str = None):
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def click(self, selector: str):
        """With the mouse, where the element is: what lies over it takes the click, as for a person."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}}); "
            "const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2, b.width]; })()"
        )
        assert box[2] > 0, f"{selector} cannot be seen"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def size(self, width: int, height: int, mobile: bool = False, scale: float = 1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def scheme(self, name: str):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
