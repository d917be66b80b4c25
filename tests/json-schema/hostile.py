#!/usr/bin/env python3
"""A thousand hostile grammars and schemas against one `lowkey serve`, one after the other.

Each is answered within a second (of the server's own processor time, for the machine may be busy; the wall is told too), by an
answer or by 400, 413 or 503 with a reason. Private memory grows by at most 256 KiB after the server was ready, its peak is within
the plan, no grammar's memory is lost, and afterwards the same question gets the same answer.

    tests/json-schema/run hostile [--n N] [--seed S] [--tokens N] [--show]
"""

import argparse
import collections
import json
import os
import pathlib
import random
import resource
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from lowkey_server import Server  # noqa: E402

sys.setrecursionlimit(20_000)
# What is hostile is made here, too: it must not take this machine's memory.
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
LIMIT_S = 1.0
GROWTH_MAX = 256 * 1024
TICKS = os.sysconf("SC_CLK_TCK")


class Makers:
    """Each method makes one hostile request of a random size: what is asked for, and under which field."""

    def __init__(self, chance: random.Random):
        self.r = chance

    def size(self, most: int) -> int:
        """Small or large, each magnitude as likely."""
        return max(1, int(most ** self.r.random()))

    def word(self) -> str:
        return "".join(self.r.choice("abcdefgxyz") for _ in range(self.r.randint(1, 12)))

    def nested(self, depth: int, wrap, inner):
        for _ in range(depth):
            inner = wrap(inner)
        return inner

    # Schemas.
    def s_length(self):
        return {"type": "string", self.r.choice(["minLength", "maxLength"]): self.size(10**12)}

    def s_lengths(self):
        n = self.size(10**9)
        return {"type": "string", "minLength": n, "maxLength": n + self.size(1000)}

    def s_items(self):
        return {"type": "array", self.r.choice(["minItems", "maxItems"]): self.size(10**10), "items": {"type": "integer"}}

    def s_items_of_items(self):
        return self.nested(self.size(60), lambda one: {"type": "array", "maxItems": self.size(9999), "items": one}, {})

    def s_deep(self):
        return self.nested(self.size(60), lambda one: {"type": "object", "properties": {self.word(): one}, "required": ["q"]}, {})

    def s_all_of(self):
        return self.nested(self.size(11), lambda one: {"allOf": [one, {"anyOf": [one, {"type": "object"}]}]}, {"minProperties": 1})

    def s_all_of_any(self):
        alternatives = [{"type": "object", "properties": {self.word(): {"type": "string"}}} for _ in range(self.size(300))]
        return {"allOf": [{"anyOf": alternatives}] * self.size(6)}

    def s_any_of(self):
        return {"anyOf": [{"type": "object", "properties": {self.word(): {"pattern": "^a+$"}}} for _ in range(self.size(1500))]}

    def s_one_of(self):
        return {"oneOf": [{"type": "object", "properties": {self.word(): {"const": i}}} for i in range(self.size(400))]}

    def s_enum(self):
        return {"enum": [self.word() + str(i) for i in range(self.size(4000))]}

    def s_enum_of_objects(self):
        return {"enum": [{self.word(): [i, {self.word(): None}]} for i in range(self.size(1500))]}

    def s_const_long(self):
        return {"const": "é\"\\\n" * self.size(8000)}

    def s_properties(self):
        n = self.size(2500)
        names = [f"{self.word()}{i}" for i in range(n)]
        return {"type": "object", "properties": {name: {"type": "integer"} for name in names}, "required": names[: self.size(n)]}

    def s_pattern_properties(self):
        return {"type": "object", "patternProperties": {f"^{self.word()}{i}.*$": {} for i in range(self.size(300))}}

    def s_pattern_properties_overlap(self):
        return {"type": "object", "patternProperties": {f"({'a|' * i}b)*c": {"type": "null"} for i in range(self.size(60))}}

    def s_pattern(self):
        n = self.size(2000)
        return {"type": "string", "pattern": self.r.choice([
            f"^(([a-z]{{1,{n}}}){{1,{n}}}){{1,{n}}}$", f"(a|b)*a(a|b){{{n}}}$", f"^\\p{{L}}{{1,{n}}}\\p{{N}}{{1,{n}}}$",
            "(" * n + "a" + ")" * n, "(a*)*" * self.size(500), f"(.*a){{{n}}}", f"^(a?){{{n}}}(a){{{n}}}$", "(x+x+)+y" * self.size(50),
            "|".join(self.word() for _ in range(n)), f"[{'a-z' * n}]", "\\" * n, f"(?i){'straße' * self.size(60)}", f".{{{n},}}b.{{{n},}}c",
            f"({'|'.join('.' * i for i in range(self.size(300)))})*",
        ])}  # fmt: skip

    def s_patterns_together(self):
        one = {"type": "string", "pattern": f".*a.{{{self.size(200)}}}b.*"}
        return {"allOf": [one, {"pattern": f"(c|d)*a(c|d){{{self.size(200)}}}"}, {"pattern": "^.*e.*f.*$", "maxLength": self.size(10**6)}]}

    def s_format(self):
        formats = ["date-time", "uri", "email", "hostname", "ipv6", "uuid", "duration"]
        chosen = [{"type": "string", "format": self.r.choice(formats), "maxLength": self.size(10**6)} for _ in range(self.size(60))]
        return {"type": "array", "prefixItems": chosen, "minItems": len(chosen)}

    def s_numbers(self):
        low = self.r.uniform(-1e6, 1e6) * 10 ** -self.size(12)
        return {"type": "number", "minimum": low, "maximum": low + self.size(10**15), "multipleOf": self.r.choice([1, 0.001, 7, 997, 999983])}

    def s_numbers_many(self):
        return {"type": "array", "prefixItems": [self.s_numbers() for _ in range(self.size(120))], "minItems": 5}

    def s_multiple(self):
        return {"type": "integer", "multipleOf": self.r.choice([self.size(10**9), 1e-9, 1e300, 0, -3])}

    def s_circle(self):
        n = self.size(300)
        defs = {f"d{i}": {"type": "object", "properties": {"n": {"$ref": f"#/$defs/d{(i + 1) % n}"}}} for i in range(n)}
        return {"$ref": "#/$defs/d0", "$defs": defs}

    def s_references_double(self):
        n = self.size(90)
        kind = self.r.choice(["allOf", "anyOf", "oneOf"])
        defs = {f"d{i}": {kind: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(n)}
        return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{n}": {"type": "array"}}}

    def s_references_fan(self):
        n = self.size(40)
        properties = {f"p{j}": {"$ref": "#/$defs/x"} for j in range(n)}
        return {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": properties, "required": list(properties)}}}

    def s_self(self):
        return self.r.choice([{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"items": {"$ref": "#"}, "type": "array", "minItems": 1},
                              {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}])  # fmt: skip

    def s_types(self):
        every = ["object", "array", "string", "number", "boolean", "null"]
        return self.nested(self.size(11), lambda one: {"type": every, "properties": {"a": one}, "items": one}, {})

    def s_wrong(self):
        """Not even a schema."""
        values = [[], 7, "x", {"type": {}}, {"properties": [1]}, {"items": 3}, {"enum": {}}, {"required": "a"}, {"pattern": 1},
                  {"minLength": -1}, {"maxItems": 1.5}, {"$ref": 5}, {"anyOf": {}}, {"allOf": []}, {"enum": []}, {"const": 1e999},
                  {"$defs": 3}, {"prefixItems": {}}, {"minimum": "a"}, {"required": [1]}, {"format": 3}]  # fmt: skip
        return self.nested(self.size(40), lambda one: {"properties": {"a": one}}, self.r.choice(values))

    def s_far(self):
        return self.nested(self.size(1500), lambda one: {"items": one}, {"type": "null"})

    def s_random(self):
        """Keywords thrown together."""
        words = {
            "type": lambda: self.r.choice(["object", "array", "string", "number", ["string", "array"]]), "minLength": lambda: self.size(10**6),
            "maxLength": lambda: self.size(10**6), "pattern": lambda: self.s_pattern()["pattern"], "items": self.s_small, "minItems": lambda: self.size(9999),
            "maxItems": lambda: self.size(9999), "anyOf": lambda: [self.s_small() for _ in range(self.size(40))], "allOf": lambda: [self.s_small(), self.s_small()],
            "properties": lambda: {self.word(): self.s_small() for _ in range(self.size(100))}, "minimum": lambda: self.r.uniform(-1e9, 1e9),
            "maxProperties": lambda: self.size(9999), "additionalProperties": self.s_small, "format": lambda: self.r.choice(["uri", "date", "email"]),
        }  # fmt: skip
        return {word: words[word]() for word in self.r.sample(sorted(words), self.r.randint(2, 7))}

    def s_small(self):
        return self.r.choice([{}, True, False, {"type": "string"}, {"maxLength": 99}, {"enum": [1, "a", None]}, self.s_lengths(), self.s_numbers()])

    # Grammars of llama.cpp.
    def g_alternatives(self):
        return "root ::= " + " | ".join(f'"{self.word()}{i}"' for i in range(self.size(5000)))

    def g_rules(self):
        n = self.size(3000)
        return "root ::= r0\n" + "\n".join(f'r{i} ::= "{self.word()}" r{(i * 7 + 1) % n}? | "x"' for i in range(n))

    def g_repeats(self):
        n, text = self.size(2500), "[a-z]"
        for _ in range(self.size(8)):
            text = f"({text}){{{self.r.choice([0, 1, n])},{n}}}"
        return f"root ::= {text}"

    def g_left(self):
        return self.r.choice(['root ::= root "a" | "b"', 'root ::= root root | "a" | ""', 'root ::= x*\nx ::= y*\ny ::= x | "a"',
                              'root ::= a\na ::= b\nb ::= a | "c"', 'root ::= "" root | "x"', "root ::= root", 'root ::= (root | "a")* root?',
                              'root ::= a b\na ::= root? "x"?\nb ::= a a | "y"'])  # fmt: skip

    def g_recursive(self):
        n = self.size(500)
        return f'root ::= ("a" root?){{0,{n}}}{{0,{n}}}'

    def g_ambiguous(self):
        return self.r.choice(['root ::= s\ns ::= s s | "a" | "aa" | ""', 'root ::= ([a-z] | [b-y] | "a" root "z")*', 'root ::= a a a a a a\na ::= ([a-z]* [a-z]*)*',
                              "root ::= [ab]* \"a\" " + "[ab] " * self.size(900), 'root ::= ("a"? "a"?){1000} "b"'])  # fmt: skip

    def g_deep(self):
        n = self.size(6000)
        return f'root ::= {"(" * n}"a"{")" * n}'

    def g_classes(self):
        return "root ::= [" + "".join(self.r.choice(["a-z", "\\u0100-\\uffff", "\\U00010000-\\U0010ffff", "^", "\\]", "é"]) for _ in range(self.size(3000))) + "]*"

    def g_long(self):
        return f'root ::= "{self.r.choice(["lorem ipsum ", "aa", "é", chr(92) + "x41"]) * self.size(5000)}"'

    def g_broken(self):
        whole = 'root ::= ("a" | [b-z]{2,3} x)* "\\n"\nx ::= <|im_end|> | [^\\]"]+ # end\n'
        bytes_ = list(whole)
        for _ in range(self.r.randint(1, 6)):
            bytes_[self.r.randrange(len(bytes_))] = self.r.choice('()[]{}"\\|*+?:=<>^-#\n\0é9a ')
        return "".join(bytes_)

    # Lark.
    def l_regexes(self):
        n = self.size(2000)
        return self.r.choice([f"start: A\nA: /(.*a){{1,{n}}}b{{1,{n}}}/ & /.*c.*d(.|\\n){{1,{n}}}/", f"start: A\nA: ~(/(a|b)*a(a|b){{{n}}}/)",
                              f"start: A+\nA: /a{{{n}}}/ | /[a-z]{{{n},}}/", "start: " + "|".join(f'"{i}"' for i in range(n)),
                              f"start: {'(' * n}\"a\"{')' * n}", "start: start start | \"a\" |", f'start: x{{{n}}}\nx: "a"? y\ny: x? "b"?'])  # fmt: skip

    def l_json(self):
        return f"start: %json {json.dumps(self.s_random())}"


FIELDS = {"s_": "json_schema", "g_": "grammar", "l_": "lark"}


def cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def question(server) -> str:
    ask = {"messages": [{"role": "user", "content": "Name a fruit."}], "temperature": 0, "max_tokens": 12, "json_schema": {"type": "string", "maxLength": 20}}
    status, answer = server.post("/v1/chat/completions", ask)
    assert status == 200, (status, answer)
    return answer["choices"][0]["message"]["content"]


class Run:
    """What came of the requests; a server that has lost memory is named with the request, and another one takes its place."""

    def __init__(self, args):
        self.args, self.faults, self.fates, self.slowest = args, [], collections.Counter(), []
        self.chance = random.Random(args.seed)
        self.makers = Makers(self.chance)
        self.names = [name for name in sorted(dir(self.makers)) if name[:2] in FIELDS and args.only in name]
        self.i = 0

    def wrong(self, name: str, rules, what: str):
        self.faults.append(f"{self.i} {name}: {what}: {json.dumps(rules)[:300]}")

    def ask(self, server, name: str, rules):
        """One request; false: the server is of no use any more."""
        body = {"prompt": "a", "temperature": 1.5, "seed": self.i, "n_predict": self.args.tokens, FIELDS[name[:2]]: rules}
        cpu, wall = cpu_seconds(server.process.pid), time.monotonic()
        try:
            status, answer = server.post("/completion", body, timeout=30)
        except OSError as error:
            self.wrong(name, rules, f"no answer: {error!r}")
            return False
        cpu, wall = cpu_seconds(server.process.pid) - cpu, time.monotonic() - wall
        self.slowest.append((round(min(cpu, wall), 3), round(wall, 3), self.i, name))
        told = answer["error"]["message"] if status != 200 else answer["stop_type"] + str(answer["lowkey"].get("error", ""))
        self.fates[f"{status} {'' if status == 400 else told[:60]}"] += 1
        if self.args.show:
            print(f"{self.i} {name}: {status} {cpu:.2f} s: {told[:150]}: {json.dumps(rules)[:80]}", flush=True)
        if status not in (200, 400, 413):
            self.wrong(name, rules, f"{status} {told[:200]}")
        if min(cpu, wall) > LIMIT_S:
            self.wrong(name, rules, f"{cpu:.2f} s of its own, {wall:.2f} in all: {status} {told[:100]}")
        if "is lost until the restart" in server.said():
            self.wrong(name, rules, f"memory for grammars is lost: {told[:150]}")
            return False
        return True

    def some(self):
        """Requests to one server, as long as it is well."""
        with Server("--log-level", "warn", "--grammar-memory", self.args.grammar_memory, budget="16MiB") as server:
            first = question(server)
            ready = server.memory()["RssAnon"]
            plan = server.metric("lowkey_memory_plan_bytes")
            is_well = True
            while is_well and self.i < self.args.n:
                name = self.names[self.i % len(self.names)]
                rules = getattr(self.makers, name)()
                is_well = self.ask(server, name, rules)
                if server.process.poll() is not None:
                    return
                now = server.memory()["RssAnon"]
                if now - ready > GROWTH_MAX:
                    self.wrong(name, rules, f"private memory has grown by {now - ready} bytes")
                    ready = now
                if now > plan:
                    self.wrong(name, rules, f"{now} bytes of {plan:.0f} planned")
                self.i += 1
            print(f"private memory: {ready} at the start, {now} at the end, {plan:.0f} planned")
            if is_well and question(server) != first:
                self.faults.append(f"the same question has another answer than {first!r}")
            self.faults += [f"the log: {line}" for line in server.said().splitlines() if "panic" in line]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--n", type=int, default=1000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--tokens", type=int, default=8, help="tokens of each answer at most")
    options.add_argument("--only", default="", help="a part of a maker's name")
    options.add_argument("--grammar-memory", default="8MiB", help="of the server")
    options.add_argument("--show", action="store_true", help="each request's fate")
    args = options.parse_args()
    run = Run(args)
    while run.i < args.n:
        run.some()
        if len(run.faults) > 50:
            break
    for fate, n in run.fates.most_common(30):
        print(f"{n:5} {fate}")
    print("slowest (own seconds, wall):", sorted(run.slowest, reverse=True)[:8])
    for fault in run.faults:
        print("WRONG", fault)
    print(f"{run.i} asked, {len(run.faults)} wrong")
    sys.exit(bool(run.faults))


if __name__ == "__main__":
    main()
