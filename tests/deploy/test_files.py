#!/usr/bin/env python3
"""What the files of deploy/ and the workflows say of the program and of each other: names of metrics, variables, numbers
of the plan, ports, targets of make.

It owns what no tool of those files can know. LOWKEY_BIN is the program (default target/release/lowkey),
LOWKEY_TEST_MODEL the model. It needs PyYAML, and promtool to read the queries of the dashboard.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MODEL = os.environ.get("LOWKEY_TEST_MODEL", str(ROOT / "models/smollm2-135m-instruct-q4_1.gguf"))
PROGRAM = shlex.split(os.environ.get("LOWKEY_BIN", str(ROOT / "target/release/lowkey")))


def program(*args: str, **variables: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOWKEY_")}
    return subprocess.run([*PROGRAM, *args], env={**env, **variables}, check=True, capture_output=True, text=True).stdout


def documents(path: str) -> list:
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def one(path: str, kind: str) -> dict:
    found = [d for d in documents(path) if d["kind"] == kind]
    assert len(found) == 1, (path, kind, len(found))
    return found[0]


def queries() -> list:
    """The queries of the dashboard, with what Grafana puts in place."""
    board = json.loads((DEPLOY / "grafana/lowkey.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [q.replace("$__rate_interval", "1m").replace("$board", ".*") for q in found]


def metrics(text: str) -> set:
    """Names of this program's metrics in a text, without what histograms add."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\blowkey_([a-z_]+)", text)}


class Files(unittest.TestCase):
    def test_each_metric_is_one_of_the_server(self):
        source = (ROOT / "src/server/http/metrics.rs").read_text()
        known = set(re.findall(r'"(?:lowkey_)?([a-z_]+)"', source))
        used = metrics((DEPLOY / "prometheus/alerts.yml").read_text()) | metrics(" ".join(queries()))
        self.assertGreater(len(used), 15)
        self.assertEqual(used - known, set())

    def test_queries_of_the_dashboard_are_promql(self):
        rules = [{"record": f"query:{i}", "expr": q} for i, q in enumerate(queries())]
        self.assertGreater(len(rules), 15)
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
            file.flush()
            seen = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
        self.assertEqual(seen.returncode, 0, seen.stdout + seen.stderr)

    def test_panels_have_numbers_and_places_of_their_own(self):
        panels = json.loads((DEPLOY / "grafana/lowkey.json").read_text())["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        cells = [(x, y) for panel in panels for p in [panel["gridPos"]]
                 for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
        self.assertEqual(len(set(cells)), len(cells), "panels lie on each other")
        self.assertTrue(all(x < 24 for x, _ in cells))

    def test_each_alert_has_a_test(self):
        rules = documents("prometheus/alerts.yml")[0]["groups"][0]["rules"]
        tests = yaml.safe_load((ROOT / "tests/deploy/alerts.test.yml").read_text())["tests"]
        cases = [case for test in tests for case in test.get("alert_rule_test", [])]
        for name in [rule["alert"] for rule in rules]:
            self.assertTrue(any(c["alertname"] == name and c.get("exp_alerts") for c in cases), f"{name} is told in no test")
            self.assertTrue(any(c["alertname"] == name and not c.get("exp_alerts") for c in cases), f"{name} is silent in no test")

    def test_variables_of_the_manifests_and_the_image_are_flags(self):
        text = program("serve", "--help")
        flags = {"LOWKEY_" + flag.upper().replace("-", "_") for flag in re.findall(r"^ +(?:-\w, +)?--([a-z-]+)", text, re.M)}
        self.assertGreater(len(flags), 30)
        image = set(re.findall(r"\b(LOWKEY_[A-Z_]+)=", (DEPLOY / "image/Containerfile").read_text()))
        self.assertTrue(image)
        settings = {name for name in one("k3s/lowkey.yaml", "ConfigMap")["data"] if name.startswith("LOWKEY_")}
        self.assertEqual((image | settings) - flags, set())

    def test_the_memory_of_the_pod_is_the_plan(self):
        settings = one("k3s/lowkey.yaml", "ConfigMap")["data"]
        # Files that are in the pod alone; they take no memory of the plan.
        del settings["LOWKEY_API_KEY_FILE"]
        unit = program("plan", "serve", "--unit", **{**settings, "LOWKEY_MODEL": MODEL})
        planned = int(re.match(r"MemoryMax=(\d+)", unit)[1]) / 2**20
        pod = one("k3s/lowkey.yaml", "StatefulSet")["spec"]["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        self.assertEqual(resources["requests"], resources["limits"])
        given = int(resources["limits"]["memory"].removesuffix("Mi"))
        # Kernel sets differ by some hundred KiB, and with them machines.
        self.assertTrue(planned <= given <= planned * 1.02 + 2, f"{given} MiB are given, the plan is {planned:.1f}")

    def test_pods_end_after_their_answers(self):
        settings = one("k3s/lowkey.yaml", "ConfigMap")["data"]
        pod = one("k3s/lowkey.yaml", "StatefulSet")["spec"]["template"]["spec"]
        self.assertGreaterEqual(pod["terminationGracePeriodSeconds"], float(settings["LOWKEY_STOP_WAIT"]) + 5)

    def test_haproxy_asks_the_pods_that_there_are(self):
        pods = one("k3s/lowkey.yaml", "StatefulSet")
        port = one("k3s/lowkey.yaml", "ConfigMap")["data"]["LOWKEY_PORT"]
        name, space, n = pods["metadata"]["name"], pods["metadata"]["namespace"], pods["spec"]["replicas"]
        container = one("k3s/haproxy.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0]
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        expected = [f"{name}-{i}.{pods['spec']['serviceName']}.{space}.svc.cluster.local:{port}" for i in range(n)]
        self.assertEqual([env.get(f"BOARD_{i}") for i in range(1, n + 1)], expected)
        config = (DEPLOY / "haproxy/haproxy.cfg").read_text()
        known = set(re.findall(r"presetenv (\w+)", config))
        self.assertEqual(set(env) - known, set(), "variables that haproxy.cfg does not read")
        for backend in ("shelf", "shelf_by_text"):
            section = config.split(f"\nbackend {backend}\n")[1].split("\nbackend")[0]
            self.assertEqual(len(re.findall(r"^ +server ", section, re.M)), n, backend)

    def test_the_gateway_has_its_keys_from_outside(self):
        config = documents("litellm/config.yaml")[0]
        for model in config["model_list"]:
            for name in ("api_base", "api_key"):
                self.assertTrue(model["litellm_params"][name].startswith("os.environ/"), name)
            self.assertTrue(model["litellm_params"]["model"].startswith("openai/"))
        self.assertEqual(config["general_settings"]["master_key"], "os.environ/LITELLM_MASTER_KEY")
        self.assertIs(config["general_settings"]["forward_client_headers_to_llm_api"], True)

    def test_workflows_call_targets_of_make_and_nothing_else(self):
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        n = 0
        for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
            for name, job in yaml.safe_load(path.read_text())["jobs"].items():
                for command in [step["run"] for step in job["steps"] if "run" in step]:
                    words = re.sub(r"\$\{\{.*?\}\}", "x", command).split()
                    self.assertEqual(words[0], "make", f"{path.name}: {name}")
                    wanted = {word for word in words[1:] if "=" not in word}
                    self.assertTrue(wanted and wanted <= targets, f"{path.name}: {name}: {command}: no such target")
                    n += 1
        self.assertGreater(n, 10)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]])
