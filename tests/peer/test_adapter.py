#!/usr/bin/env python3
"""What the adapter makes of llama.cpp's arguments. With --suite also: that llama.cpp's tests run through it, and how few of them
pass against a server that does nothing (a minute)."""

import importlib.machinery
import os
import pathlib
import re
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
STAND_IN = str(HERE / "stand_in.py")
os.environ["LOWKEY_BIN"] = STAND_IN
sys.dont_write_bytecode = True
adapter = importlib.machinery.SourceFileLoader("adapter", str(HERE / "lowkey-as-llama-server")).load_module()


class Arguments(unittest.TestCase):
    def flags(self, *args) -> dict:
        out, self.left_out = adapter.command(args)
        self.assertEqual(out[:2], [STAND_IN, "serve"])
        found = {}
        for i, word in enumerate(out):
            if word.startswith("-"):
                value = out[i + 1] if i + 1 < len(out) and not out[i + 1].startswith("--") else True
                self.assertNotIn(word, found)
                found[word] = value
        return found

    def test_a_context_is_shared_by_the_slots(self):
        found = self.flags("--ctx-size", "512", "--parallel", "2", "--batch-size", "32", "--n-predict", "64", "--no-slots")
        self.assertEqual((found["--streams"], found["--ctx"], found["--batch"], found["--max-tokens"]), ("2", "256", "32", "64"))
        self.assertGreaterEqual(int(found["--kv-budget"]), 2 * 256 * 24120)
        self.assertEqual((found["--overflow"], found["--no-slots"], found["--no-metrics"]), ("error", True, True))
        self.assertEqual(found["-m"], adapter.MODEL)

    def test_the_model_is_always_ours(self):
        for args in (["--model", "x.gguf"], ["--hf-repo", "a/b", "--hf-file", "c"], ["--model-url", "u"], []):
            self.assertEqual(self.flags(*args)["-m"], adapter.MODEL)

    def test_what_differs(self):
        self.assertEqual(self.flags("--context-shift")["--overflow"], "evict")
        self.assertEqual(self.flags()["--cors-origins"], "*")
        self.assertEqual(self.flags("--tools", "all")["--cors-origins"], "localhost")
        self.assertEqual(self.flags("--cors-origins", "http://a")["--cors-origins"], "http://a")
        self.assertNotIn("--no-metrics", self.flags("--metrics"))
        self.assertEqual(self.flags("--n-predict", "-1")["--max-tokens"], "-1")
        self.assertEqual(self.flags()["--max-tokens"], "-1")
        self.assertEqual(self.flags("-ctk", "q8_0")["--k-type"], "q8_0")

    def test_templates(self):
        self.assertEqual(self.flags("--chat-template", "llama3")["--template"], "llama3")
        self.assertEqual(self.flags("--chat-template", "command-r")["--template"], str(HERE / "command-r.jinja"))
        written = pathlib.Path(self.flags("--chat-template", "{{ messages }}")["--template"])
        self.addCleanup(written.unlink)
        self.assertEqual(written.read_text(), "{{ messages }}")

    def test_nothing_unknown_stops_it(self):
        self.flags("--embedding", "--new-switch", "--new-value", "7", "--lora", "a", "--port", "99")
        self.assertEqual(self.left_out, ["--embedding", "--new-switch", "--new-value", "7", "--lora a"])


class Suite(unittest.TestCase):
    @unittest.skipUnless("--suite" in sys.argv, "takes a minute: --suite")
    def test_a_server_that_does_nothing_passes_almost_nothing(self):
        done = subprocess.run([str(HERE / "run"), "suite", "features", "grammar"], env=os.environ, capture_output=True, text=True)
        passed = re.findall(r"(\d+) (passed|failed|error)", done.stdout.splitlines()[-1])
        self.assertEqual({kind for _, kind in passed}, {"passed", "failed"}, done.stdout[-2000:])
        print(done.stdout.splitlines()[-1])
        self.assertLessEqual(int(dict((k, n) for n, k in passed)["passed"]), 4)


if __name__ == "__main__":
    unittest.main(argv=[a for a in sys.argv if a != "--suite"], verbosity=2)
