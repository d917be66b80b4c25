"""openai for Python against a real server: chat, streams, usage, errors, stop, seed, cancelling, retries."""

import asyncio
import json
import time
import unittest

import openai
from common import RESULT, TOOLS, TOOLS_ASK, Server, is_good_call, wait_for

ASK = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": "Tell me a long story about a river."}]


def setUpModule():
    global server, client
    server = Server("--streams", "2", budget="16MiB").__enter__()
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def tearDownModule():
    server.__exit__(None)


def chat(**more):
    return client.chat.completions.create(**{"model": "any", "messages": ASK, "max_tokens": 24, "temperature": 0, **more})


class Chat(unittest.TestCase):
    def test_models(self):
        models = list(client.models.list())
        self.assertEqual(len(models), 1)
        self.assertEqual(client.models.retrieve(models[0].id).id, models[0].id)

    def test_whole(self):
        answer = chat()
        choice = answer.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content.strip())
        self.assertIn(choice.finish_reason, ("stop", "length"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertLessEqual(usage.completion_tokens, 24)
        self.assertEqual(answer.object, "chat.completion")
        self.assertLess(abs(answer.created - time.time()), 60)

    def test_streamed_is_the_whole(self):
        text, finishes, usage, ids, roles = "", [], [], set(), []
        for chunk in chat(stream=True, stream_options={"include_usage": True}):
            ids.add(chunk.id)
            if chunk.usage:
                usage.append(chunk.usage)
            for choice in chunk.choices:
                if choice.delta.role:
                    roles.append(choice.delta.role)
                self.assertNotEqual(choice.delta.content, "")
                text += choice.delta.content or ""
                if choice.finish_reason:
                    finishes.append(choice.finish_reason)
        whole = chat()
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(finishes, [whole.choices[0].finish_reason])
        self.assertEqual(len(ids), 1)
        self.assertEqual(roles, ["assistant"])
        self.assertEqual([u.completion_tokens for u in usage], [whole.usage.completion_tokens])

    def test_without_include_usage_none_is_told(self):
        self.assertFalse(any(chunk.usage for chunk in chat(stream=True)))

    def test_max_tokens(self):
        for name in ("max_tokens", "max_completion_tokens"):
            answer = client.chat.completions.create(model="any", messages=COUNT, temperature=0, **{name: 3})
            self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (3, "length"), name)

    def test_seed(self):
        def say(seed):
            return chat(messages=COUNT, temperature=1.3, seed=seed).choices[0].message.content

        self.assertEqual(say(7), say(7))
        self.assertGreater(len({say(seed) for seed in (1, 2, 3)}), 1)

    def test_stop(self):
        whole = chat(messages=COUNT).choices[0].message.content
        word = whole.split()[4]
        answer = chat(messages=COUNT, stop=[word, "never said"])
        self.assertEqual(answer.choices[0].message.content, whole[: whole.index(word)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        streamed = "".join(c.choices[0].delta.content or "" for c in chat(messages=COUNT, stop=word, stream=True) if c.choices)
        self.assertEqual(streamed, whole[: whole.index(word)])

    def test_several_choices(self):
        answer = chat(n=2, temperature=1.2, seed=3)
        self.assertEqual([c.index for c in answer.choices], [0, 1])

    def test_logprobs(self):
        answer = chat(logprobs=True, top_logprobs=4, max_tokens=5)
        tokens = answer.choices[0].logprobs.content
        self.assertEqual("".join(t.token for t in tokens), answer.choices[0].message.content)
        for token in tokens:
            self.assertEqual(len(token.top_logprobs), 4)
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(bytes(token.bytes).decode(), token.token)

    def test_parts_and_a_system_s_turn(self):
        parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
        answer = chat(messages=[{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": parts}])
        self.assertTrue(answer.choices[0].message.content)

    def test_a_second_turn_reads_what_is_new(self):
        first = [{"role": "user", "content": "Remember the word heron. " * 12}]
        answer = chat(messages=first)
        second = first + [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": "And now?"},
        ]
        usage = chat(messages=second).usage
        self.assertGreaterEqual(usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens // 2)

    def test_what_became_of_the_arena_is_told(self):
        told = chat().model_extra["lowkey"]
        self.assertLessEqual(told["n_live"], told["n_slot"])
        self.assertEqual(told["evicted"], 0)

    def test_completions(self):
        answer = client.completions.create(model="any", prompt="The capital of France is", max_tokens=8, temperature=0)
        self.assertTrue(answer.choices[0].text)
        streamed = client.completions.create(
            model="any", prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
        )
        self.assertEqual("".join(c.choices[0].text for c in streamed if c.choices), answer.choices[0].text)

    def test_responses(self):
        answer = client.responses.create(model="any", input="What is the capital of France?", max_output_tokens=16, temperature=0)
        self.assertTrue(answer.output_text.strip())
        self.assertGreater(answer.usage.output_tokens, 0)
        events = list(
            client.responses.create(
                model="any", input="What is the capital of France?", max_output_tokens=16, temperature=0, stream=True
            )
        )
        self.assertEqual(events[0].type, "response.created")
        self.assertEqual((events[-1].type, events[-1].response.status), ("response.completed", answer.status))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), answer.output_text)
        cut = client.responses.create(model="any", input="Tell me a long story.", max_output_tokens=4, stream=True)
        *_, last = cut
        self.assertEqual((last.type, last.response.status, last.response.output[0].status), ("response.completed", "incomplete", "incomplete"))


class Tools(unittest.TestCase):
    """A call, its result, and an answer; nothing is read twice."""

    ask = [{"role": "user", "content": TOOLS_ASK}]
    forced = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}

    def check(self, call):
        self.assertEqual(call.type, "function")
        self.assertTrue(is_good_call(call.function.name, json.loads(call.function.arguments)), call)

    def test_there_and_back(self):
        called = chat(messages=self.ask, **self.forced)
        message = called.choices[0].message
        self.assertEqual((called.choices[0].finish_reason, message.content, len(message.tool_calls)), ("tool_calls", None, 1))
        self.check(message.tool_calls[0])
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
        answer = chat(messages=[*self.ask, message, result], tools=TOOLS, tool_choice="none")
        self.assertTrue(answer.choices[0].message.content.strip())
        self.assertIsNone(answer.choices[0].message.tool_calls)
        third = [*self.ask, message, result, {"role": "assistant", "content": answer.choices[0].message.content}]
        again = chat(messages=[*third, {"role": "user", "content": "Now turn it off."}], **self.forced)
        self.check(again.choices[0].message.tool_calls[0])
        # The call comes back byte for byte; its tokens need not be those that its text is split into, so some may be read again.
        # The answer between was of another prompt: where a call must come, a model that is told of tools has its examples in another order.
        self.assertGreaterEqual(again.usage.prompt_tokens_details.cached_tokens, called.usage.prompt_tokens)

    def test_streamed_is_the_whole(self):
        whole = chat(messages=self.ask, **self.forced).choices[0].message.tool_calls[0]
        names, arguments, finishes, ids = [], "", [], []
        for chunk in chat(messages=self.ask, stream=True, **self.forced):
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    self.assertEqual(call.index, 0)
                    names += [call.function.name] if call.function.name else []
                    ids += [call.id] if call.id else []
                    arguments += call.function.arguments or ""
                finishes += [choice.finish_reason] if choice.finish_reason else []
        self.assertEqual((names, arguments, finishes), ([whole.function.name], whole.function.arguments, ["tool_calls"]))
        self.assertEqual(len(ids), 1)

    def test_the_library_s_own_way(self):
        with client.chat.completions.stream(model="any", messages=self.ask, temperature=0, **self.forced) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        self.assertEqual(len(done), 1)
        self.check(stream.get_final_completion().choices[0].message.tool_calls[0])

    def test_responses(self):
        tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
        ask = [{"role": "user", "content": TOOLS_ASK}]
        called = client.responses.create(model="any", input=ask, tools=tools, tool_choice="required", max_output_tokens=80, temperature=0)
        call = next(item for item in called.output if item.type == "function_call")
        self.assertTrue(is_good_call(call.name, json.loads(call.arguments)), call)
        result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
        own = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
        answer = client.responses.create(
            model="any", input=[*ask, own, result], tools=tools, tool_choice="none", max_output_tokens=24, temperature=0
        )
        self.assertTrue(answer.output_text.strip())

    def test_schemas_by_a_class(self):
        schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}
        answer = chat(response_format=form, max_tokens=60)
        self.assertEqual(list(json.loads(answer.choices[0].message.content)), ["city"])
        with self.assertRaises(openai.BadRequestError) as told:
            chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "null"}}}})
        self.assertIn("`not`", told.exception.body["message"])


class Refusals(unittest.TestCase):
    def refused(self, kind, **more):
        with self.assertRaises(kind) as told:
            chat(**more)
        return told.exception

    def test_wrong_values_name_the_field(self):
        for field, value in (
            ("temperature", -1),
            ("temperature", "hot"),
            ("top_p", -1),
            ("n", 0),
            ("stop", [1]),
            ("seed", "x"),
            ("max_tokens", -5),
        ):
            error = self.refused(openai.BadRequestError, extra_body={field: value})
            self.assertEqual(error.body["type"], "invalid_request_error", (field, value))
            self.assertIn(field, error.body["message"] + str(error.body["param"]), (field, value))

    def test_wrong_messages(self):
        for messages in (
            [],
            "text",
            [1],
            [{}],
            [{"role": 1, "content": "x"}],
            [{"role": "nobody", "content": "x"}],
            [{"role": "user", "content": 5}],
        ):
            with self.subTest(messages=messages):
                self.refused(openai.BadRequestError, extra_body={"messages": messages})

    def test_images_are_not_supported(self):
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        error = self.refused(openai.APIStatusError, messages=[{"role": "user", "content": [image]}])
        self.assertEqual((error.status_code, error.body["type"]), (501, "not_supported_error"))

    def test_unknown_paths(self):
        with self.assertRaises(openai.NotFoundError):
            client.get("/no/such/path", cast_to=object)

    def test_embeddings_are_not_supported(self):
        with self.assertRaises(openai.APIStatusError) as told:
            client.embeddings.create(model="any", input="text")
        self.assertEqual(told.exception.status_code, 501)

    def test_an_error_of_a_stream_comes_before_it(self):
        self.refused(openai.BadRequestError, stream=True, extra_body={"temperature": -1})


class Gone(unittest.TestCase):
    def test_a_stream_that_is_closed_ends_the_work(self):
        stream = chat(messages=COUNT, max_tokens=1000, stream=True, extra_body={"ignore_eos": True})
        for _, _ in zip(range(4), stream):
            pass
        stream.close()
        self.assertTrue(server.wait_idle(2))

    def test_a_client_that_waits_no_longer_ends_the_work(self):
        with self.assertRaises(openai.APITimeoutError):
            client.with_options(timeout=0.7).chat.completions.create(
                model="any", messages=COUNT, max_tokens=1000, extra_body={"ignore_eos": True}
            )
        self.assertTrue(server.wait_idle(2))

    def test_many_at_once(self):
        async def all_of_them():
            many = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)
            ask = [many.chat.completions.create(model="any", messages=ASK, max_tokens=16, temperature=0) for _ in range(6)]
            return [a.choices[0].message.content for a in await asyncio.gather(*ask)]

        self.assertEqual(len(set(asyncio.run(all_of_them()))), 1)


class Keys(unittest.TestCase):
    def test_keys(self):
        with Server("--api-key", "right") as locked:
            with self.assertRaises(openai.AuthenticationError):
                openai.OpenAI(base_url=locked.url + "/v1", api_key="wrong", max_retries=0).models.list()
            self.assertTrue(openai.OpenAI(base_url=locked.url + "/v1", api_key="right", max_retries=0).models.list().data)
            self.assertEqual(locked.get("/health")[0], 200)


class Full(unittest.TestCase):
    def test_a_full_queue_is_told_and_tried_again(self):
        with Server("--streams", "1", "--queue", "0") as small:
            impatient = openai.OpenAI(base_url=small.url + "/v1", api_key="none", max_retries=0)
            patient = impatient.with_options(max_retries=5)
            long = impatient.chat.completions.create(
                model="any", messages=COUNT, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
            )
            next(iter(long))
            with self.assertRaises(openai.InternalServerError) as told:
                impatient.chat.completions.create(model="any", messages=ASK, max_tokens=4)
            self.assertEqual(told.exception.status_code, 503)
            self.assertTrue(1 <= int(told.exception.response.headers["retry-after"]) <= 60)
            long.close()
            self.assertTrue(wait_for(lambda: small.wait_idle(0.1), 3))
            self.assertTrue(patient.chat.completions.create(model="any", messages=ASK, max_tokens=4).choices)


if __name__ == "__main__":
    unittest.main()
