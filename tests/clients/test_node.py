"""The clients for Node, by its own test runner: node_clients.test.mjs."""

import os
import pathlib
import shutil
import subprocess
import unittest

from common import Server

HERE = pathlib.Path(__file__).resolve().parent


class Node(unittest.TestCase):
    def test_clients(self):
        node = shutil.which("node")
        self.assertIsNotNone(node, "no node: apt-get install nodejs npm")
        # Modules are looked for beside the file that asks for them, so the tests run where the packages were installed.
        packages = pathlib.Path(os.environ["LOWKEY_NODE_PACKAGES"])
        shutil.copy(HERE / "node_clients.test.mjs", packages)
        with Server("--streams", "2", budget="16MiB") as server:
            done = subprocess.run(
                [node, "--test", "node_clients.test.mjs"],
                cwd=packages,
                env={**os.environ, "LOWKEY_URL": server.url},
                capture_output=True,
                text=True,
                timeout=300,
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        print(done.stdout[-300:])


if __name__ == "__main__":
    unittest.main()
