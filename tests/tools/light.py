#!/usr/bin/env python3
"""Does a model call a light switch correctly when it must call one of two tools? Fifty phrasings, `tool_choice` "required".

The tools are `set_light` (which light, on or off) and `read_temperature` (which room). A call is right if it is `set_light` with the
light and the state that the phrasing asks for. Nothing is drawn by chance: the temperature is 0.

    tests/tools/light.py [--model FILE] [--show] [--at-least N] [--suite house]      LOWKEY_BIN is the program

Ten more phrasings ask for a temperature; they are told apart, since a model that always turned lights would be right in the fifty.
`--suite house` asks for other things instead (house.py).
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import house  # noqa: E402
import lowkey_server  # noqa: E402

LIGHTS = ["kitchen", "bedroom", "hall", "garage", "garden"]
LIGHT = {"type": "function", "function": {
    "name": "set_light", "description": "Turn a light on or off.",
    "parameters": {
        "type": "object",
        "properties": {
            "light": {"type": "string", "enum": LIGHTS, "description": "Which light"},
            "state": {"type": "string", "enum": ["on", "off"], "description": "on or off"},
        },
        "required": ["light", "state"],
    },
}}  # fmt: skip
TEMPERATURE = {"type": "function", "function": {
    "name": "read_temperature", "description": "Read the temperature of a room.",
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "string", "enum": LIGHTS, "description": "Which room"}},
        "required": ["room"],
    },
}}  # fmt: skip
SYSTEM = "You control a house. Call the tool that does what the user asks for."

ON = [
    "Turn on the {} light.", "Switch on the {} light.", "Please turn the {} light on.", "Can you switch the {} light on?", "{} light on.",
    "I need light in the {}. Turn it on.", "Put the {} light on, please.", "Could you turn on the light in the {}?",
    "It is dark in the {}, switch the light on.", "Light on in the {}.", "Would you please switch on the {} light?",
    "Turn the light in the {} on.", "Set the {} light to on.",
]  # fmt: skip
OFF = [
    "Turn off the {} light.", "Switch off the {} light.", "Please turn the {} light off.", "Can you switch the {} light off?", "{} light off.",
    "Nobody is in the {}. Turn the light off.", "Put the {} light off, please.", "Could you turn off the light in the {}?",
    "I am leaving the {}, switch the light off.", "Light off in the {}.", "Would you please switch off the {} light?",
    "Turn the light in the {} off.",
]  # fmt: skip
WARM = ["How warm is it in the {}?", "What is the temperature of the {}?"]


def phrasings():
    """(text, the call that is right): fifty for the lights, with each light ten times, and ten for the temperature."""
    both = [(text, state) for pair in zip(ON, OFF + [None]) for text, state in zip(pair, ("on", "off")) if text]
    for i in range(50):
        text, state = both[i % len(both)]
        # The second time round another light.
        light = LIGHTS[(i + i // len(both)) % len(LIGHTS)]
        text = text.format(light)
        yield text[0].upper() + text[1:], {"name": "set_light", "arguments": {"light": light, "state": state}}
    for i in range(10):
        light = LIGHTS[i % len(LIGHTS)]
        yield WARM[i // len(LIGHTS)].format(light), {"name": "read_temperature", "arguments": {"room": light}}


def call_of(server, text: str, system: str, tools: list, choice: str) -> dict:
    """What is called; nothing, where the model answers in words."""
    body = {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}], "tools": tools,
        "tool_choice": choice, "parallel_tool_calls": False, "temperature": 0, "max_tokens": 60,
    }  # fmt: skip
    if not system:
        del body["messages"][0]
    status, answer = server.post("/v1/chat/completions", body, timeout=120)
    assert status == 200, (status, answer)
    calls = answer["choices"][0]["message"].get("tool_calls") or []
    if choice == "auto" and not calls:
        return {"name": "", "arguments": {}}
    assert len(calls) == 1 and answer["choices"][0]["finish_reason"] == "tool_calls", answer
    return {"name": calls[0]["function"]["name"], "arguments": json.loads(calls[0]["function"]["arguments"])}


def ask_house(server, show: bool, choice: str) -> int:
    n_right = n = 0
    for name, system, tools, questions in house.suites():
        right = 0
        for text, want in questions:
            text = text[0].upper() + text[1:]
            got = call_of(server, text, system, tools, choice)
            right += got == want
            if show and got != want:
                print(f"WRONG {text!r}: {json.dumps(got)}", flush=True)
        print(f"{name} {right} of {len(questions)}", flush=True)
        n_right, n = n_right + right, n + len(questions)
    print(f"house {n_right} of {n}")
    return n_right


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=lowkey_server.MODEL)
    options.add_argument("--system", default=SYSTEM, help="the system's turn")
    options.add_argument("--at-least", type=int, default=45)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--choice", choices=["required", "auto"], default="required", help="auto: the model may answer in words")
    options.add_argument("--suite", choices=["light", "house"], default="light")
    options.add_argument("--show", action="store_true")
    args = options.parse_args()
    lowkey_server.MODEL = args.model
    right = {"set_light": 0, "read_temperature": 0}
    of = {"tool": 0, "light": 0, "state": 0}
    with lowkey_server.Server(budget="24MiB", threads=args.threads) as server:
        if args.suite == "house":
            sys.exit(ask_house(server, args.show, args.choice) < args.at_least)
        for text, want in phrasings():
            got = call_of(server, text, args.system, [TEMPERATURE, LIGHT], args.choice)
            right[want["name"]] += got == want
            if want["name"] == "set_light":
                of["tool"] += got["name"] == want["name"]
                for key in ("light", "state"):
                    of[key] += got["arguments"].get(key) == want["arguments"][key]
            if args.show or got != want:
                print(f"{'right' if got == want else 'WRONG'} {text!r}: {json.dumps(got)}", flush=True)
    print(f"light {right['set_light']} of 50 (tool {of['tool']}, light {of['light']}, state {of['state']}); temperature {right['read_temperature']} of 10")
    sys.exit(right["set_light"] < args.at_least)


if __name__ == "__main__":
    main()
