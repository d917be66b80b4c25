"""ollama for Python against a real server, and what it must refuse."""

import json
import unittest

import ollama
from common import RESULT, TOOLS, TOOLS_ASK, Server, is_good_call

ASK = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a long story about a river."}]


def setUpModule():
    global server, client, model
    server = Server().__enter__()
    client = ollama.Client(host=server.url, timeout=120)
    model = client.list().models[0].model


def tearDownModule():
    server.__exit__(None)


def chat(messages=ASK, stream=False, **options):
    return client.chat(model=model, messages=messages, stream=stream, options={"temperature": 0, "num_predict": 24, **options})


class Ollama(unittest.TestCase):
    def test_list_show_ps(self):
        listed = client.list().models[0]
        self.assertEqual(listed.details.format, "gguf")
        self.assertGreater(listed.size, 1_000_000)
        self.assertTrue(client.show(model).modelinfo)
        self.assertIn("completion", client.show(model).capabilities)
        self.assertEqual(client.ps().models[0].model, model)

    def test_names_with_and_without_latest(self):
        for name in {model, model.removesuffix(":latest"), model.removesuffix(":latest") + ":latest"}:
            self.assertTrue(client.chat(model=name, messages=ASK, options={"num_predict": 2}).message.content)

    def test_streamed_is_the_whole(self):
        whole = chat()
        parts = list(chat(stream=True))
        self.assertEqual("".join(p.message.content for p in parts), whole.message.content)
        self.assertEqual([p.done for p in parts], [False] * (len(parts) - 1) + [True])
        self.assertIn(parts[-1].done_reason, ("stop", "length"))
        for told in (whole, parts[-1]):
            self.assertGreater(told.prompt_eval_count, 0)
            self.assertLessEqual(told.eval_count, 24)
            self.assertGreater(told.eval_duration, 0)
            self.assertGreaterEqual(told.total_duration, told.eval_duration)

    def test_options(self):
        self.assertEqual(chat(STORY, num_predict=3).eval_count, 3)
        self.assertEqual(chat(STORY, num_predict=3).done_reason, "length")
        one, other = (chat(STORY, temperature=1.3, seed=s).message.content for s in (5, 5))
        self.assertEqual(one, other)
        whole = chat(STORY).message.content
        word = whole.split()[4]
        self.assertEqual(chat(STORY, stop=[word]).message.content, whole[: whole.index(word)])
        chat(num_ctx=100000)

    def test_generate(self):
        whole = client.generate(
            model=model, prompt="What is the capital of France?", options={"temperature": 0, "num_predict": 12}
        )
        self.assertTrue(whole.response)
        parts = client.generate(
            model=model, prompt="What is the capital of France?", stream=True, options={"temperature": 0, "num_predict": 12}
        )
        self.assertEqual("".join(p.response for p in parts), whole.response)

    def test_tools_there_and_back(self):
        ask = [{"role": "user", "content": TOOLS_ASK}]
        # Ollama's interface cannot force a call, so the model may also say something.
        options = {"temperature": 0, "num_predict": 80}
        called = client.chat(model=model, messages=ask, tools=TOOLS, options=options)
        for call in called.message.tool_calls or []:
            self.assertTrue(is_good_call(call.function.name, dict(call.function.arguments)), call)
        # What a model would have called, whatever this one did.
        call = {"function": {"name": "set_light", "arguments": {"light": "kitchen", "state": "on"}}}
        result = {"role": "tool", "tool_name": "set_light", "content": RESULT}
        turns = [*ask, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
        answer = client.chat(model=model, messages=turns, tools=TOOLS, options={"temperature": 0, "num_predict": 16})
        self.assertTrue(answer.message.content.strip() or answer.message.tool_calls)
        parts = list(client.chat(model=model, messages=turns, tools=TOOLS, stream=True, options={"temperature": 0, "num_predict": 16}))
        self.assertEqual("".join(part.message.content or "" for part in parts), answer.message.content or "")

    def test_a_tool_s_call_comes_back_as_an_object(self):
        # Forced through OpenAI's interface of the same server, and told on by Ollama's.
        body = {"messages": [{"role": "user", "content": TOOLS_ASK}], "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False,
                "temperature": 0, "max_tokens": 80}  # fmt: skip
        status, told = server.post("/v1/chat/completions", body)
        self.assertEqual(status, 200, told)
        function = told["choices"][0]["message"]["tool_calls"][0]["function"]
        call = {"function": {"name": function["name"], "arguments": json.loads(function["arguments"])}}
        turns = [body["messages"][0], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": function["name"], "content": RESULT}]
        self.assertTrue(client.chat(model=model, messages=turns, tools=TOOLS, options={"num_predict": 8}).done)

    def test_a_schema(self):
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}
        answer = client.chat(model=model, messages=ASK, format=schema, options={"temperature": 0, "num_predict": 60})
        self.assertEqual(list(json.loads(answer.message.content)), ["city"])

    def test_an_empty_request_loads(self):
        self.assertEqual(client.chat(model=model, messages=[]).done_reason, "load")
        self.assertEqual(client.generate(model=model, prompt="").done_reason, "load")

    def test_refusals_are_one_text(self):
        for call, status in (
            (lambda: client.pull("anything"), 501),
            (lambda: client.embed(model=model, input="text"), 501),
            (lambda: client.chat(model=model, messages=[{"role": "nobody", "content": "x"}]), 400),
            (lambda: chat(temperature=-1), 400),
            (lambda: client.chat(model=model, messages=[{"role": "user", "content": "x", "images": [b"\x89PNG"]}]), 501),
        ):
            with self.assertRaises(ollama.ResponseError) as told:
                call()
            self.assertEqual(told.exception.status_code, status, told.exception.error)
            self.assertNotIn("{", told.exception.error[:1])

    def test_a_stream_that_is_left_ends_the_work(self):
        stream = chat(STORY, stream=True, num_predict=1000, temperature=1)
        next(stream)
        stream.close()
        self.assertTrue(server.wait_idle(2))


if __name__ == "__main__":
    unittest.main()
