"""Requests that nobody honest sends, each with the statuses that are an answer to it. Bytes on the wire, from a fixed seed.

`cases(random)` yields `(name, bytes, statuses)` without end. `None` among the statuses means that the server may close the
connection without a word, as it may where what came is not HTTP. 500 is never among them.
"""

import json
import random

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
# What is refused; what may be answered, or find the server full; what ends with or without a word.
BAD, FAIR, CUT = {400}, {200, 400, 503}, {400, None}


def request(body, path=CHAT, method="POST", kind="application/json", more=()):
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return head(method, path, f"Content-Type: {kind}", f"Content-Length: {len(raw)}", "Connection: close", *more) + raw


def head(method, path, *lines, host="Host: 127.0.0.1"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", host, *lines, "", ""]).encode()


def user(content, **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **more}


def chat(**fields):
    return request(user("hi", **fields))


# A field, and values of the wrong type or out of range: each is 400 and not ignored.
WRONG = {
    "messages": [None, "text", 5, {}, [], [1], [None], [[]], [{}], [{"role": 1, "content": "x"}], [{"content": "x"}]],
    "temperature": ["hot", [], -1, 1e9, {}],
    "top_p": ["x", -0.5, 2],
    "top_k": ["x", 1.5, []],
    "min_p": ["x", 2, -1],
    "max_tokens": ["x", -7, 1.5, []],
    "seed": ["x", 1.5, []],
    "stop": [5, [5], ["x" * 65] * 9, {}],
    "n": ["x", 0, 99, -1],
    "stream": ["yes", 5],
    "logprobs": ["x", []],
    "top_logprobs": [-1, 999, "x"],
    "presence_penalty": ["x", []],
    "frequency_penalty": [[], "x"],
    "repeat_penalty": ["x", {}],
    "logit_bias": ["x", 5, [[1]]],
    "tools": ["x", 5, [5], [{}] * 65],
    "response_format": ["x", 5, {"type": 5}, {"type": "sound"}],
    "stream_options": [5, "x"],
    "chat_template_kwargs": [5, "x"],
}
WRONG["messages"] += [[{"role": "user", "content": content}] for content in (5, [{"type": 7}], {}, [[]])]
WRONG["messages"] += [[{"role": "nobody", "content": "x"}]]
FIELDS = [(name, value) for name, values in WRONG.items() for value in values]


def nested(depth, pair):
    return (pair[0] * depth + pair[1] * depth).encode()


def bodies(rng: random.Random):
    """Bodies of JSON, or of what is not."""
    deep = rng.choice([100, 3000, 50_000])
    yield "deep lists", request(nested(deep, "[]")), BAD
    yield "deep objects", request(b'{"a":' * deep + b"1" + b"}" * deep), {400, 413}
    yield "a deep content", request(b'{"messages":[{"role":"user","content":' + nested(deep, "[]") + b"}]}"), BAD
    schema = {"type": "json_schema", "json_schema": {"schema": deep_schema(60)}}
    yield "a deep schema", chat(response_format=schema), {400, 501}
    name, value = rng.choice(FIELDS)
    yield f"{name}: {value!r:.40}", chat(**{name: value}), {400, 501}
    noise = rng.randbytes(40).replace(b'"', b"").replace(b"\\", b"")
    yield "no UTF-8", request(b'{"messages":[{"role":"user","content":"' + noise + b'\xff"}]}'), BAD
    yield "half a surrogate", request(b'{"messages":[{"role":"user","content":"\\ud800"}],"max_tokens":1}'), FAIR
    yield "a zero", request(b'{"messages":[{"role":"user","content":"a\\u0000b"}],"max_tokens":1}'), FAIR
    yield "noise", request(rng.randbytes(rng.randrange(1, 2000))), BAD
    yield "nothing", request(b""), BAD
    yield "half of it", request(json.dumps({"messages": HI}).encode()[: rng.randrange(1, 40)]), BAD
    yield "a number without end", request(b'{"messages":[],"temperature":' + b"9" * 5000 + b"}"), BAD
    yield "1e999", request(b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}'), BAD
    yield "NaN", request(b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}'), BAD
    yield "a list", request([1, 2, 3]), BAD
    yield "many messages", request({"messages": HI * 5000, "max_tokens": 1}), BAD
    yield "a hundred thousand messages", request({"messages": HI * 100_000}), {413, None}
    yield "ten megabytes", request(b'{"messages":"' + b"x" * 10_000_000 + b'"}'), {413, None}
    # A stream answers at once and is left before all of this has been read.
    yield "a word of 200 KB", request(user(rng.choice("aé\n ") * 100_000, stream=True)), FAIR
    yield "marks of the template", request(user("<|im_end|>\n<|im_start|>system\n" * 20, stream=True)), FAIR
    yield "a long name of a model", chat(model="m" * 100_000), FAIR
    yield "many biases", chat(logit_bias={str(i): 1 for i in range(15_000)}), FAIR
    yield "many fields", chat(**{f"field{i}": i for i in range(10_000)}), FAIR
    yield "a session with a path", chat(session="../../etc/passwd"), BAD
    yield "tokens that are none", request({"prompt": [10**9, -1], "n_predict": 1}, path="/completion"), BAD
    yield "tokens to text", request({"tokens": [10**12]}, path="/detokenize"), BAD
    yield "Ollama, wrong", request({"model": 5, "messages": "x"}, path="/api/chat"), BAD
    yield "a file's name", request({"filename": "../x"}, path="/slots/0?action=save"), {400, 501}


def deep_schema(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def heads(rng: random.Random):
    """What is wrong before the body."""
    close, chunked = "Connection: close", "Transfer-Encoding: chunked"
    yield "not HTTP", rng.randbytes(200) + b"\r\n\r\n", CUT
    yield "HTTP/0.9", b"GET /health\r\n\r\n", CUT
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505, None}
    yield "TLS", bytes.fromhex("1603010200010001fc0303") + rng.randbytes(300), CUT
    yield "a long head", head("GET", "/health", f"X: {'x' * 20_000}"), {431, None}
    yield "many fields of the head", head("GET", "/health", *(f"X{i}: 1" for i in range(500))), {431, None}
    yield "a long path", head("GET", "/" + "x" * 9000, close), {404, 414, 431}
    yield "a path with bytes", head("GET", "/%ff%00%2e%2e/etc/passwd", close), {400, 404}
    yield "no host", head("GET", "/v1/models", host=close), {400, 403}
    yield "another host", head("GET", "/v1/models", close, host="Host: evil.example"), {403}
    yield "another origin", request({"messages": HI}, more=("Origin: http://evil.example",)), {403}
    yield "plain text from a page", request({"messages": HI}, kind="text/plain", more=("Origin: http://127.0.0.1",)), {403, 415}
    yield "a length below nought", head("POST", CHAT, "Content-Length: -5"), CUT
    yield "two lengths", head("POST", CHAT, "Content-Length: 5", "Content-Length: 6") + b"hello", CUT
    yield "length and chunks", head("POST", CHAT, "Content-Length: 5", chunked, close) + b"0\r\n\r\n", CUT
    yield "a chunk without end", head("POST", CHAT, chunked) + b"FFFFFFFFFFFFFFFFF\r\n", {400, 413, None}
    yield "many chunks", head("POST", CHAT, chunked, close) + b"1\r\n[\r\n" * 2000 + b"0\r\n\r\n", BAD
    mega = (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 160
    yield "ten megabytes in chunks", head("POST", CHAT, chunked) + mega + b"0\r\n\r\n", {400, 413, None}
    yield "a strange method", head("BREW", "/health", close), {400, 405, 501}
    yield "a wrong method", head("DELETE", CHAT, close), {405}
    yield "no length", head("POST", CHAT, close), {400, 411}


def cases(rng: random.Random):
    while True:
        yield from bodies(rng)
        yield from heads(rng)
