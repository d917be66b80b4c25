"""What the tests of clients share."""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lowkey_server import Server  # noqa: E402, F401


def wait_for(what, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


# A conversation with tools: what is asked, and the tools that may be called.
TOOLS_ASK = "Turn on the kitchen light."
TOOLS = [
    {"type": "function", "function": {
        "name": "set_light", "description": "Turn a light on or off.",
        "parameters": {
            "type": "object",
            "properties": {"light": {"type": "string", "enum": ["kitchen", "hall"]}, "state": {"type": "string", "enum": ["on", "off"]}},
            "required": ["light", "state"],
        },
    }},
    {"type": "function", "function": {"name": "read_temperature", "description": "Read the temperature.", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip
RESULT = "The light is on now."


def is_good_call(name: str, arguments: dict) -> bool:
    """Whether a call is one of the tools', with arguments that it takes."""
    if name == "read_temperature":
        return arguments == {}
    return name == "set_light" and arguments.keys() == {"light", "state"} and arguments["light"] in ("kitchen", "hall") and arguments["state"] in ("on", "off")
