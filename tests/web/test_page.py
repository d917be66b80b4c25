#!/usr/bin/env python3
"""The page in a headless Chromium, against `lowkey serve` with the demonstration model: what a person does with it, at a desk and
on a phone. After each test: no complaint in the console, and no request to another place than the server.

    tests/web/test_page.py [--picture FILE.png] [TEST ...]
"""

import json
import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import hashes  # noqa: E402
from devtools import Browser  # noqa: E402
from lowkey_server import Server  # noqa: E402

LONG = "Write a very long story about a lighthouse keeper, with many chapters."
ANSWER = (
    "[...document.querySelectorAll('.turn.assistant')].at(-1)?.querySelector('.text:not(.thoughts .text)')?.textContent ?? ''"
)
DONE = "!document.querySelector('.turn.running')"


def setUpModule():
    global server, browser
    # An arena that 300 tokens fill, so that eviction is seen.
    server = unittest.enterModuleContext(Server("--streams", "1", "--max-tokens", "700", budget="2500KiB"))
    browser = unittest.enterModuleContext(Browser())


class PageTest(unittest.TestCase):
    expected = ()

    def setUp(self):
        self.page = browser.page()
        self.page.size(1280, 800)
        self.open()

    def tearDown(self):
        page = self.page
        page.rest(0.1)
        complaints = [c for c in page.complaints if not any(e in c for e in self.expected)]
        elsewhere = [u for u in page.urls if not u.startswith((server.url, "data:"))]
        page.close()
        # A test that has failed already says more.
        self.assertEqual((complaints, elsewhere), ([], []))
        self.assertTrue(server.wait_idle(5), "a stream is still at work")

    def open(self, url=None):
        self.page.open((url or server.url) + "/")
        self.page.until("document.querySelector('#model').textContent")

    def say(self, text):
        self.page.run("document.querySelector('#message').focus()")
        self.page.type(text)
        self.page.key("Enter", 13, "\r")

    def settings(self, **values):
        for name, value in values.items():
            self.page.run(f"document.querySelector('#{name}').value = {json.dumps(str(value))}; keepSettings()")

    def ask(self, text, **settings):
        self.settings(**{"max_tokens": 24, "temperature": 0, **settings})
        self.say(text)
        self.page.until("document.querySelector('.turn.assistant')")
        self.page.until(DONE, 90)
        return self.page.run(ANSWER)


class Chat(PageTest):
    def test_the_answer_streams(self):
        self.settings(max_tokens=60, temperature=0)
        self.say("Tell me a story about a river.")
        lengths = set()
        self.page.until(f"({ANSWER}).length > 0", 60)
        while not self.page.run(DONE):
            lengths.add(self.page.run(f"({ANSWER}).length"))
            self.page.rest(0.02)
        self.assertGreater(len(lengths), 5, "the answer came at once")
        self.assertEqual(sorted(lengths), sorted(n for n in lengths if n <= self.page.run(f"({ANSWER}).length")))
        note = self.page.run("document.querySelector('.turn.assistant .note').textContent")
        self.assertRegex(note, r"\d+ tokens? · [\d.]+ a second · .* read")
        self.assertEqual(self.page.run("document.querySelector('#speed').textContent > '0'"), True)

    def test_enter_sends_and_shift_enter_does_not(self):
        self.settings(max_tokens=4)
        self.page.run("document.querySelector('#message').focus()")
        self.page.type("one")
        self.page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13, modifiers=8, text="\r")
        self.page.type("two")
        self.assertEqual(self.page.run("document.querySelector('#message').value"), "one\ntwo")
        self.page.click("#send")
        self.page.until("document.querySelector('.turn.assistant')")
        self.page.until(DONE, 60)
        self.assertEqual(self.page.run("document.querySelector('.turn.user .text').textContent"), "one\ntwo")

    def test_stop(self):
        self.settings(temperature=1)
        self.say(LONG)
        self.page.until(f"({ANSWER}).length > 20", 60)
        self.page.click("#stop")
        self.page.until(DONE, 3)
        text = self.page.run(ANSWER)
        self.assertTrue(server.wait_idle(3))
        self.page.rest(0.3)
        self.assertEqual(self.page.run(ANSWER), text)
        self.assertTrue(self.page.run("document.querySelector('.turn.assistant .note').textContent").startswith("Stopped"))
        # Escape does the same, and what was stopped goes on where it is asked to.
        self.page.run("[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'Go on').click()")
        self.page.until(f"({ANSWER}).length > {len(text)}", 60)
        self.assertTrue(self.page.run(ANSWER).startswith(text))
        self.page.key("Escape", 27)
        self.page.until(DONE, 3)

    def test_regenerate(self):
        first = self.ask("Tell me a story about a river.", temperature=1.3, seed=1)
        self.settings(seed=2)
        self.page.run("[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'Regenerate').click()")
        self.page.until(DONE + " && document.querySelector('.turn.assistant .note').textContent", 60)
        self.assertNotEqual(self.page.run(ANSWER), first)
        self.assertEqual(self.page.run("document.querySelectorAll('.turn').length"), 2)

    def test_what_is_written_is_text(self):
        evil = "<img src=x onerror=alert(1)><b>bold</b> **stars** <script>alert(2)</script>"
        self.ask("Say: " + evil, max_tokens=8)
        self.assertEqual(self.page.run("document.querySelector('.turn.user .text').textContent"), "Say: " + evil)
        self.assertEqual(self.page.run("document.querySelectorAll('#turns img, #turns b, #turns script').length"), 0)
        # Nor could the page itself: the policy forbids it.
        self.expected = ("TrustedHTML", "Trusted Type", "require-trusted-types-for")
        self.assertTrue(
            self.page.run("(() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } })()")
        )

    def test_the_system_s_text_is_sent(self):
        asked = self.page.run(
            "(() => { $('system').value = 'Be brief.'; turns = [{role: 'user', text: 'a'}, {role: 'user', text: 'b'}]; return messages(); })()"
        )
        self.assertEqual(asked, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\n\nb"}])

    def test_the_conversation_stays_and_the_key_does_not(self):
        answer = self.ask("Name a colour.")
        self.page.run("$('key').value = 'secret-key'; $('system').value = 'Be brief.'; keepSettings()")
        kept = self.page.run("JSON.stringify(localStorage)")
        self.assertNotIn("secret-key", kept)
        self.page.run("$('key').value = ''; keepSettings()")
        self.open()
        self.assertEqual(self.page.run(ANSWER), answer)
        self.assertEqual(self.page.run("$('system').value"), "Be brief.")
        self.page.click("#new")
        self.assertEqual(self.page.run("document.querySelectorAll('.turn').length"), 0)
        self.open()
        self.assertEqual(self.page.run("document.querySelectorAll('.turn').length"), 0)


class Arena(PageTest):
    # How many colours the picture has, and how much of it is neither transparent nor the commonest.
    PIXELS = """(() => { const c = $('arena'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, seen = {};
        for (let i = 0; i < d.length; i += 16) { const k = d[i] + ',' + d[i+1] + ',' + d[i+2] + ',' + d[i+3]; seen[k] = (seen[k] ?? 0) + 1; }
        return Object.values(seen).sort((a, b) => b - a); })()"""

    def test_the_arena_is_drawn_and_evicts(self):
        self.ask(LONG, max_tokens=420)
        self.page.until("Number($('evicted').textContent.replace(',', '')) > 0", 10)
        seen = self.page.run(self.PIXELS)
        self.assertGreater(len(seen), 8)
        self.assertGreater(sum(seen[1:]) / sum(seen), 0.2)
        self.assertIn("places taken", self.page.run("$('arena').getAttribute('aria-label')"))
        told = self.page.run("document.querySelector('.turn.assistant .evicted').textContent")
        self.assertRegex(told, r"[\d,]+ tokens? evicted")
        # The view agrees with what the server says.
        view = server.get("/lowkey/arena?stream=0")[1]
        self.assertEqual(self.page.run("$('live').textContent"), f"{view['n_live']:,}")
        self.assertEqual(len(view["heads"][0]["kept"]), 128)
        self.assertLessEqual(sum(view["heads"][0]["kept"]), view["n_slot"])

    def test_cells_are_told_to_keys_and_pointer(self):
        self.ask("Name a colour.")
        self.page.until("view && view.next_pos > 0", 10)
        self.page.run("$('arena').focus()")
        self.page.key("ArrowRight", 39)
        self.assertRegex(self.page.run("$('under').textContent"), r"Layer \d+, head \d+, positions \d+ to \d+: \d+ of \d+ kept")

    def test_memory_stands_against_the_plan(self):
        self.page.until("/ of the .* planned/.test($('plan').textContent)", 10)
        filled = self.page.run("parseFloat($('filled').style.width)")
        self.assertTrue(10 < filled <= 100, filled)


class Refusals(PageTest):
    expected = ("Failed to load resource",)

    def refused(self, status, error, **headers):
        body = json.dumps({"error": error}).encode()
        self.page.fake("/v1/chat/completions", status, body, {"Content-Type": "application/json", **headers})
        self.say("hello")
        words = self.page.until("[...document.querySelectorAll('.wrong')].find(e => !e.hidden)?.textContent", 10)
        self.assertTrue(self.page.run(DONE))
        return words

    def test_busy(self):
        words = self.refused(503, {"message": "the queue is full", "type": "unavailable_error"}, **{"Retry-After": "12"})
        self.assertIn("busy", words)
        self.assertIn("12 seconds", words)
        # Then it is free again, and the same question is asked once more.
        self.page.fake("/v1/chat/completions", None, b"", {})
        self.settings(max_tokens=8)
        self.page.run("[...document.querySelectorAll('.tools button')].find(b => b.textContent === 'Try again').click()")
        self.page.until(f"{DONE} && ({ANSWER}).length > 0", 60)
        self.assertEqual(self.page.run("document.querySelectorAll('.turn').length"), 2)

    def test_too_long(self):
        words = self.refused(
            400,
            {
                "message": "exceeds the available context size",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9000,
                "n_ctx": 8192,
            },
        )
        self.assertIn("9,000 tokens, more than the 8,192", words)

    def test_a_wrong_value_from_the_server_itself(self):
        self.settings(temperature=-1)
        self.say("hello")
        words = self.page.until("[...document.querySelectorAll('.wrong')].find(e => !e.hidden)?.textContent", 10)
        self.assertIn("temperature", words)

    def test_nobody_there(self):
        self.page.fake("/v1/chat/completions", 0, b"", {})
        self.say("hello")
        words = self.page.until("[...document.querySelectorAll('.wrong')].find(e => !e.hidden)?.textContent", 10)
        self.assertIn("does not answer", words)

    def test_an_error_in_the_middle(self):
        stream = b'data: {"choices":[{"delta":{"content":"Once"}}]}\n\n: ping\n\ndata: {"error":{"message":"out of luck"}}\n\n'
        self.page.fake("/v1/chat/completions", 200, stream, {"Content-Type": "text/event-stream"})
        self.say("hello")
        words = self.page.until("[...document.querySelectorAll('.wrong')].find(e => !e.hidden)?.textContent", 10)
        self.assertIn("out of luck", words)
        self.assertEqual(self.page.run(ANSWER), "Once")

    def test_a_stream_that_breaks_off(self):
        self.page.fake(
            "/v1/chat/completions",
            200,
            b'data: {"choices":[{"delta":{"content":"Once"}}]}\n\n',
            {"Content-Type": "text/event-stream"},
        )
        self.say("hello")
        words = self.page.until("[...document.querySelectorAll('.wrong')].find(e => !e.hidden)?.textContent", 10)
        self.assertIn("lost before the end", words)


class Keys(unittest.TestCase):
    def test_the_key_is_asked_for_and_kept_for_the_tab(self):
        with Server("--api-key", "right") as locked:
            page = browser.page()
            page.open(locked.url + "/")
            page.until("/API key/.test($('state').textContent)", 20)
            page.run("$('message').value = 'hello'; send()")
            page.until("$('settings').open && document.activeElement === $('key')", 10)
            page.type("right")
            page.click("#close-settings")
            page.until("$('model').textContent", 10)
            page.run("$('max_tokens').value = '8'; regenerate()")
            page.until(f"{DONE} && ({ANSWER}).length > 0", 60)
            self.assertEqual(page.run("JSON.parse(sessionStorage['lowkey.key'])"), "right")
            page.close()


class Looks(PageTest):
    def test_a_phone(self):
        for width in (360, 390, 768):
            self.page.size(width, 740, mobile=True, scale=2)
            self.ask("Unbreakable" * 20, max_tokens=12)
            self.assertLessEqual(self.page.run("document.documentElement.scrollWidth"), width)
            box = self.page.run(
                "(() => { const b = $('send').getBoundingClientRect(); return [b.top >= 0, b.bottom <= innerHeight, b.height]; })()"
            )
            self.assertEqual(box[:2], [True, True], "the button to send cannot be seen")
            self.assertGreaterEqual(box[2], 40)
            self.page.run("openSettings()")
            self.assertLessEqual(self.page.run("$('settings').getBoundingClientRect().right"), width)
            self.assertLessEqual(self.page.run("$('settings').scrollWidth - $('settings').clientWidth"), 0)
            self.page.click("#close-settings")
        self.page.size(360, 740, mobile=True, scale=2)
        self.page.click("#to-arena")
        self.page.until("$('arena').getBoundingClientRect().top < innerHeight")

    def test_everything_has_a_name(self):
        self.ask("Name a colour.", max_tokens=8)
        self.page.run("openSettings()")
        open_names = self.names()
        self.page.click("#close-settings")
        names = self.names()
        for role, name in names + open_names:
            self.assertTrue(name, f"a {role} without a name")
        self.assertIn(("button", "Send"), names)
        self.assertIn(("textbox", "System text"), open_names)

    def names(self):
        roles = (
            "button",
            "textbox",
            "spinbutton",
            "combobox",
            "dialog",
            "log",
            "meter",
            "image",
            "img",
            "region",
            "complementary",
        )
        self.page.call("Accessibility.enable")
        nodes = self.page.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (n["role"]["value"], n.get("name", {}).get("value", ""))
            for n in nodes
            if not n.get("ignored") and n["role"]["value"] in roles
        ]

    def test_contrast_in_light_and_dark(self):
        """WCAG AA: 4.5 between text and ground, 3 between what the picture shows and its ground."""
        ratio = """(a, b) => { const l = c => { const v = colour(c).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; }; const [x, y] = [l(a), l(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); }"""
        pairs = [
            ("ink", "paper"),
            ("ink", "sheet"),
            ("ink", "mine"),
            ("soft", "paper"),
            ("soft", "sheet"),
            ("on-accent", "accent"),
            ("warn", "warn-sheet"),
        ]
        for scheme in ("light", "dark"):
            self.page.scheme(scheme)
            for a, b in pairs:
                self.assertGreaterEqual(self.page.run(f"({ratio})('{a}', '{b}')"), 4.5, (scheme, a, b))
            for a, b in [("kept", "track"), ("pinned", "sheet"), ("recent", "sheet"), ("edge", "sheet"), ("accent", "paper")]:
                self.assertGreaterEqual(self.page.run(f"({ratio})('{a}', '{b}')"), 3, (scheme, a, b))

    def test_the_hashes_are_right_and_the_page_is_small(self):
        page = hashes.PAGE.read_text(encoding="utf-8")
        self.assertEqual(page, hashes.with_hashes(page), "run tests/web/hashes.py")
        self.assertLessEqual(len(page.encode()), hashes.MAX_BYTES)
        self.assertNotRegex(page, r"""(src|href)=["'](?!data:)""")

    def test_served_as_it_should_be(self):
        status, headers, body = server.request("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("default-src 'none'", headers["Content-Security-Policy"])
        self.assertEqual(body, hashes.PAGE.read_bytes())


def take_picture(path):
    """The page as docs/serve.md shows it."""
    with Server("--streams", "1", budget="1800KiB") as served, Browser() as chromium:
        page = chromium.page()
        page.size(1180, 780)
        page.open(served.url + "/")
        page.until("$('model').textContent")
        page.run("$('max_tokens').value = '260'; $('temperature').value = '0'; keepSettings()")
        for text in ("What is a tide, in two sentences?", "Write a story about a lighthouse keeper and a storm."):
            page.run("$('message').focus()")
            page.type(text)
            page.key("Enter", 13, "\r")
            page.until("document.querySelector('.turn.running')")
            page.until(DONE, 120)
        page.rest(0.6)
        page.picture(path)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--picture":
        take_picture(sys.argv[2])
    else:
        unittest.main(verbosity=2)
