"""LangChain's ChatOpenAI, and `llm` on the command line with its openai-compatible configuration."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import openai
from common import Server
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI


def setUpModule():
    global server
    server = Server().__enter__()


def tearDownModule():
    server.__exit__(None)


def model(**more):
    return ChatOpenAI(
        base_url=server.url + "/v1",
        api_key="none",
        model="any",
        **{"temperature": 0, "max_tokens": 24, "max_retries": 0, "timeout": 120, **more},
    )


class LangChain(unittest.TestCase):
    def test_invoke_and_stream(self):
        whole = model().invoke([SystemMessage("You are brief."), HumanMessage("What is the capital of France?")])
        self.assertIsInstance(whole, AIMessage)
        self.assertTrue(whole.content)
        self.assertGreater(whole.usage_metadata["input_tokens"], 0)
        self.assertIn(whole.response_metadata["finish_reason"], ("stop", "length"))
        parts = list(
            model(stream_usage=True).stream([SystemMessage("You are brief."), HumanMessage("What is the capital of France?")])
        )
        self.assertEqual("".join(p.content for p in parts), whole.content)
        self.assertEqual(
            sum(p.usage_metadata["output_tokens"] for p in parts if p.usage_metadata), whole.usage_metadata["output_tokens"]
        )

    def test_chain_stop_and_seed(self):
        chain = ChatPromptTemplate.from_messages([("system", "You tell stories."), ("human", "Tell me of {thing}.")]) | model(
            seed=3, temperature=1.1
        )
        self.assertEqual(chain.invoke({"thing": "a river"}).content, chain.invoke({"thing": "a river"}).content)
        whole = model().invoke("Tell me a long story about a river.").content
        word = whole.split()[4]
        self.assertEqual(
            model().bind(stop=[word]).invoke("Tell me a long story about a river.").content, whole[: whole.index(word)]
        )

    def test_tools_that_need_not_be_called(self):
        def weather(place: str) -> str:
            """The weather at a place."""
            return "fair"

        answer = model().bind_tools([weather]).invoke("Say hello.")
        self.assertTrue(answer.content or answer.tool_calls)

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError):
            model(temperature=-1).invoke("hi")


class Llm(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)
        config = f'- model_id: small\n  model_name: any\n  api_base: "{server.url}/v1"\n'
        (pathlib.Path(self.home.name) / "extra-openai-models.yaml").write_text(config)

    def llm(self, *args):
        program = str(pathlib.Path(sys.executable).parent / "llm")
        done = subprocess.run(
            [program, *args], env={**os.environ, "LLM_USER_PATH": self.home.name}, capture_output=True, text=True, timeout=120
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_prompt_stream_and_conversation(self):
        options = ["-m", "small", "-o", "temperature", "0", "-o", "max_tokens", "24"]
        streamed = self.llm(*options, "What is the capital of France?")
        self.assertTrue(streamed.strip())
        self.assertEqual(self.llm(*options, "--no-stream", "What is the capital of France?"), streamed)
        self.assertTrue(self.llm("-c", "-o", "max_tokens", "8", "And of Spain?").strip())
        last = json.loads(self.llm("logs", "-n", "1", "--json"))[0]
        self.assertGreater(last["input_tokens"], 30)


if __name__ == "__main__":
    unittest.main()
