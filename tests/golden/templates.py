"""Chat templates that llama.cpp's source package carries, rendered by Jinja2 as Hugging Face `transformers` does: templates.json.

Owns: the conversations, the clock, and what is kept of each rendering: a hash, or that the template refuses it.
Refuses: to keep the templates, which belong to their models; `models/fetch-peer-files` brings them.
With --show FILE N it prints the rendering of one conversation.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import pathlib
import platform

try:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import llama_cpp
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import common

CLOCK = 1_753_000_000  # 2025-07-20 08:26:40 UTC
# With the end of a turn that llama.cpp writes, whatever the model.
NAMES = ["chatml", "llama3", "gemma", "phi3", "zephyr", "mistral-v1", "mistral-v3", "mistral-v3-tekken"]
S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "Hello")],
    [(S, "Be brief."), (U, " What is 1 < 2 & \"3\"? ")],
    [(U, "Hi"), (A, "Hello!"), (U, "Bye")],
    [(S, "Du hilfst.\nKurz."), (U, "é 中 😀"), (A, "<think>\nhm, {{ no }}\n</think>\n\nYes."), (U, "and\n\nthen?"), (A, "Done.\n"), (U, "ok")],
    [(U, "Name?"), (A, "{\"name\": \"x\"}")],
    [(U, "")],
]  # fmt: skip


class Generation(jinja2.ext.Extension):
    """`{% generation %}` … `{% endgeneration %}` changes no text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def environment():
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    now = datetime.datetime.fromtimestamp(CLOCK, datetime.timezone.utc)
    env.globals["strftime_now"] = now.strftime
    return env


def render(env, source, conversation, prompt):
    messages = [{"role": role, "content": content} for role, content in conversation]
    return env.from_string(source).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )


def fnv1a(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{state:016x}"


def applied(name, conversation, prompt):
    """What llama.cpp makes of a conversation by a template that it knows by name."""
    turns = [(role.encode(), text.encode()) for role, text in conversation]
    chat = (llama_cpp.llama_chat_message * len(turns))(*turns)
    room = ctypes.create_string_buffer(1 << 14)
    n = llama_cpp.llama_chat_apply_template(name.encode(), chat, len(turns), prompt, room, len(room))
    assert 0 < n < len(room), name
    return room.raw[:n].decode()


def cases():
    return [(i, prompt) for i in range(len(CONVERSATIONS)) for prompt in (True, False)]


def row(env, source):
    out = []
    for i, prompt in cases():
        try:
            out.append(fnv1a(render(env, source, CONVERSATIONS[i], prompt).encode()))
        except jinja2.exceptions.TemplateError as error:
            out.append(f"refused: {error}" if type(error) is jinja2.exceptions.TemplateError else f"failed: {error}")
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            out.append(f"failed: {error}")
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--show", nargs=2, metavar=("FILE", "CASE"))
    args = parser.parse_args()
    env = environment()
    if args.show:
        i, prompt = cases()[int(args.show[1])]
        print(render(env, (args.folder / args.show[0]).read_text(), CONVERSATIONS[i], prompt), end="")
        return
    rows = {}
    named = {name: [fnv1a(applied(name, CONVERSATIONS[i], prompt).encode()) for i, prompt in cases()] for name in NAMES}
    for path in sorted(args.folder.glob("*.jinja")):
        rows[path.name] = {"sha256": common.sha256_file(path)[:16], "texts": row(env, path.read_text())}
    source = {"command": "python tests/golden/templates.py models/peer", "python": platform.python_version()}
    source["llama_cpp_python"] = llama_cpp.__version__
    source["jinja2"] = importlib.metadata.version("jinja2")
    source["files"] = "of " + (common.GOLDEN / "requirements.txt").read_text().split()[-1]
    whole = {"clock": CLOCK, "conversations": CONVERSATIONS, "named": named, "templates": rows}
    common.dump(common.GOLDEN / "templates.json", {"provenance": source} | whole)


if __name__ == "__main__":
    main()
