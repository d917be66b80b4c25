"""What Home Assistant's Ollama integration asks of a server, replayed with the client library that it uses.

From its source (homeassistant/components/ollama, 2026): the configuration lists the models and wants `models[].model` to be the
name that was chosen; a coordinator asks for the list and for what is loaded every 30 seconds; a conversation is a stream with
tools, `keep_alive` -1, `num_ctx` 8192, `think` false, and takes deltas of text until `done`; what a tool gave is a message of
the role `tool` that holds JSON and names no call. The instructions begin with the time, so the first line changes every minute.
"""

import asyncio
import json
import unittest

import ollama
from common import Server

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "HassTurnOn",
            "description": "Turns on/opens/presses a device or entity.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "area": {"type": "string"},
                    "floor": {"type": "string"},
                    "domain": {"type": "array", "items": {"type": "string"}},
                    "device_class": {
                        "type": "array",
                        "items": {"type": "string", "enum": ["awning", "blind", "switch", "outlet"]},
                    },
                },
                "required": [],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "GetLiveContext",
            "description": "Provides real-time information about the current state of devices, sensors, entities, or areas.",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    },
]


def system(minute: int) -> str:
    return (
        f"Current time is 07:{minute:02}:00. Today's date is 2026-11-28.\n"
        "You are a voice assistant for Home Assistant.\nAnswer questions about the world truthfully.\n"
        "Answer in plain text. Keep it simple and to the point.\nWhen controlling Home Assistant always call the intent tools.\n"
        "An overview of the areas and the devices in this smart home:\n"
        "- names: Kitchen lamp\n  domain: light\n  areas: Kitchen\n- names: Desk fan\n  domain: fan\n  areas: Office\n"
    )


class HomeAssistant(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-tokens", "48", budget="16MiB").__enter__()
        cls.addClassCleanup(cls.server.__exit__, None)

    def client(self) -> ollama.AsyncClient:
        return ollama.AsyncClient(host=self.server.url, timeout=120)

    async def say(self, client, model, messages, **more):
        stream = await client.chat(
            model=model,
            messages=list(messages),
            tools=TOOLS,
            stream=True,
            keep_alive=more.pop("keep_alive", -1),
            options={"num_ctx": 8192},
            think=more.pop("think", False),
            format=None,
            **more,
        )
        text, calls, ends = "", [], 0
        async for part in stream:
            message = part["message"]
            # The integration begins a new message for each role that it sees after `done`.
            self.assertEqual(message["role"], "assistant")
            calls += message.get("tool_calls") or []
            text += message.get("content") or ""
            ends += bool(part["done"])
        self.assertEqual(ends, 1)
        return text, calls

    def test_set_up_and_poll(self):
        async def run():
            client = self.client()
            installed, loaded = await asyncio.gather(client.list(), client.ps())
            names = {m["model"] for m in installed.get("models", [])}
            self.assertEqual(len(names), 1)
            self.assertEqual({m.model for m in loaded.models}, names)
            with self.assertRaises(ollama.ResponseError) as told:
                await client.pull("llama3.2:latest")
            self.assertEqual(told.exception.status_code, 501)

        asyncio.run(run())

    def test_a_conversation_with_tools(self):
        async def run():
            client = self.client()
            model = (await client.list()).models[0].model
            messages = [
                ollama.Message(role="system", content=system(1)),
                ollama.Message(role="user", content="Is the kitchen lamp on?"),
            ]
            text, calls = await self.say(client, model, messages)
            self.assertTrue(text or calls)
            # The next turn, as if a tool had been called and had answered.
            call = ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name="GetLiveContext", arguments={}))
            messages += [
                ollama.Message(role="assistant", content="", thinking=None, tool_calls=[call]),
                ollama.Message(
                    role="tool", content=json.dumps({"data": {"success": True, "result": "Kitchen lamp: on"}, "error": None})
                ),
            ]
            text, calls = await self.say(client, model, messages, keep_alive="300s", think=None)
            self.assertTrue(text or calls)

        asyncio.run(run())

    def test_a_minute_later(self):
        """The system's turn begins with the time: what can be kept of the prompt is what stands before it."""

        async def run():
            client = self.client()
            model = (await client.list()).models[0].model
            for minute in (1, 2):
                text, calls = await self.say(
                    client,
                    model,
                    [ollama.Message(role="system", content=system(minute)), ollama.Message(role="user", content="Hello")],
                )
                self.assertTrue(text or calls)

        asyncio.run(run())

    def test_the_user_leaves(self):
        async def run():
            client = self.client()
            model = (await client.list()).models[0].model
            stream = await client.chat(model=model, messages=[{"role": "user", "content": "Tell me a long story."}], stream=True)
            async for _ in stream:
                break
            await stream.aclose()

        asyncio.run(run())
        self.assertTrue(self.server.wait_idle(3))

    def test_a_wrong_key_is_told_apart(self):
        async def run(url):
            wrong = ollama.AsyncClient(host=url, headers={"Authorization": "Bearer wrong"})
            with self.assertRaises(ollama.ResponseError) as told:
                await wrong.list()
            self.assertEqual(told.exception.status_code, 401)
            right = ollama.AsyncClient(host=url, headers={"Authorization": "Bearer right"})
            self.assertTrue((await right.list()).models)

        with Server("--api-key", "right") as locked:
            asyncio.run(run(locked.url))


if __name__ == "__main__":
    unittest.main()
