// openai for Node, Vercel's openai-compatible provider and ollama for Node against the server at LOWKEY_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { Ollama } from "ollama";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const url = process.env.LOWKEY_URL;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const story = [{ role: "user", content: "Tell me a long story about a river." }];

async function idle() {
  for (let i = 0; i < 40; i++) {
    const slots = await (await fetch(url + "/slots")).json();
    if (!slots.some(slot => slot.is_processing)) return true;
    await new Promise(done => setTimeout(done, 50));
  }
  return false;
}

const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0, timeout: 120000 });
const ask = more => client.chat.completions.create({ model: "any", messages, max_tokens: 24, temperature: 0, ...more });

test("openai: streamed is the whole, with usage", async () => {
  const whole = await ask();
  let text = "", usage, finishes = [];
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
    usage = chunk.usage ?? usage;
  }
  assert.ok(text.trim());
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(finishes, [whole.choices[0].finish_reason]);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("openai: stop and seed", async () => {
  const whole = (await ask({ messages: story })).choices[0].message.content;
  const word = whole.split(/\s+/)[4];
  const cut = (await ask({ messages: story, stop: [word] })).choices[0];
  assert.equal(cut.message.content, whole.slice(0, whole.indexOf(word)));
  assert.equal(cut.finish_reason, "stop");
  const say = async seed => (await ask({ messages: story, temperature: 1.3, seed })).choices[0].message.content;
  assert.equal(await say(5), await say(5));
});

test("openai: errors", async () => {
  await assert.rejects(ask({ temperature: -1 }), e => e instanceof OpenAI.BadRequestError && e.type === "invalid_request_error");
  await assert.rejects(ask({ messages: [{ role: "nobody", content: "x" }] }), OpenAI.BadRequestError);
});

test("openai: a stream that is aborted ends the work", async () => {
  const stream = await ask({ messages: story, stream: true, max_tokens: 1000, ignore_eos: true });
  let n = 0;
  for await (const _ of stream) if (++n > 3) break;
  stream.controller.abort();
  assert.ok(await idle());
});

test("openai: responses", async () => {
  const answer = await client.responses.create({ model: "any", input: "What is the capital of France?", max_output_tokens: 16, temperature: 0 });
  assert.ok(answer.output_text.trim());
});

const vercel = createOpenAICompatible({ name: "lowkey", baseURL: url + "/v1", includeUsage: true })("any");

test("vercel: text, stream, usage, finish", async () => {
  const whole = await generateText({ model: vercel, messages, maxOutputTokens: 24, temperature: 0, maxRetries: 0 });
  assert.ok(whole.text.trim());
  assert.ok(["stop", "length"].includes(whole.finishReason), whole.finishReason);
  const streamed = streamText({ model: vercel, messages, maxOutputTokens: 24, temperature: 0, maxRetries: 0 });
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, whole.text);
  assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
});

test("vercel: errors and abort", async () => {
  await assert.rejects(generateText({ model: vercel, messages, temperature: -1, maxRetries: 0 }), e => APICallError.isInstance(e) && e.statusCode === 400);
  const abort = new AbortController();
  const streamed = streamText({ model: vercel, messages: story, maxOutputTokens: 1000, abortSignal: abort.signal, maxRetries: 0 });
  let n = 0;
  try {
    for await (const _ of streamed.textStream) if (++n === 3) abort.abort();
  } catch (e) {
    assert.equal(e.name, "AbortError");
  }
  assert.ok(await idle());
});

test("ollama: list, chat, stream, abort", async () => {
  const ollama = new Ollama({ host: url });
  const model = (await ollama.list()).models[0].model;
  const options = { temperature: 0, num_predict: 24 };
  const whole = await ollama.chat({ model, messages, options });
  let text = "", last;
  for await (const part of await ollama.chat({ model, messages, options, stream: true })) { text += part.message.content; last = part; }
  assert.equal(text, whole.message.content);
  assert.equal(last.done, true);
  const stream = await ollama.chat({ model, messages: story, options: { num_predict: 1000 }, stream: true });
  let n = 0;
  try {
    for await (const _ of stream) if (++n === 3) stream.abort();
  } catch (e) {
    assert.equal(e.name, "AbortError");
  }
  assert.ok(await idle());
});

const parameters = {
  type: "object",
  properties: { light: { type: "string", enum: ["kitchen", "hall"] }, state: { type: "string", enum: ["on", "off"] } },
  required: ["light", "state"],
  additionalProperties: false,
};
const command = [{ role: "user", content: "Turn on the kitchen light." }];
const isGood = args => ["kitchen", "hall"].includes(args.light) && ["on", "off"].includes(args.state) && Object.keys(args).length === 2;

test("openai: a tool, there and back", async () => {
  const tools = [{ type: "function", function: { name: "set_light", description: "Turn a light on or off.", parameters } }];
  const called = await ask({ messages: command, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 80 });
  const message = called.choices[0].message;
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  assert.ok(isGood(JSON.parse(message.tool_calls[0].function.arguments)));
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "The light is on now." };
  const answer = await ask({ messages: [...command, message, result], tools, tool_choice: "none" });
  assert.ok(answer.choices[0].message.content.trim());
  assert.ok(answer.usage.prompt_tokens_details.cached_tokens >= called.usage.prompt_tokens, JSON.stringify(answer.usage));
});

test("vercel: a tool, called by the library and answered, streamed and not", async () => {
  const calls = [];
  const tools = {
    set_light: tool({
      description: "Turn a light on or off.",
      inputSchema: jsonSchema(parameters),
      execute: async args => { calls.push(args); return "The light is on now."; },
    }),
  };
  // The first step must call, the second must say something.
  const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" });
  const settings = { model: vercel, messages: command, tools, prepareStep, stopWhen: stepCountIs(2), maxOutputTokens: 80, temperature: 0, maxRetries: 0 };
  const whole = await generateText(settings);
  assert.ok(calls.length >= 1 && calls.every(isGood), JSON.stringify(calls));
  assert.deepEqual(whole.steps.map(step => step.finishReason)[0], "tool-calls");
  assert.equal(whole.steps.length, 2);
  assert.ok(whole.text.trim());
  assert.ok(whole.steps[1].usage.cachedInputTokens >= whole.steps[0].usage.inputTokens, JSON.stringify(whole.steps.map(step => step.usage)));
  const streamed = streamText(settings);
  let text = "";
  for await (const part of streamed.textStream) text += part;
  assert.equal(text, whole.text);
});

test("vercel: an object by its schema", async () => {
  const { generateObject } = await import("ai");
  const schema = jsonSchema({ type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"], additionalProperties: false });
  const provider = createOpenAICompatible({ name: "lowkey", baseURL: url + "/v1", supportsStructuredOutputs: true });
  const { object } = await generateObject({ model: provider("any"), messages, schema, maxOutputTokens: 60, temperature: 0, maxRetries: 0 });
  assert.deepEqual(Object.keys(object), ["city"]);
});

test("ollama: tools are told on", async () => {
  const ollama = new Ollama({ host: url });
  const model = (await ollama.list()).models[0].model;
  const tools = [{ type: "function", function: { name: "set_light", description: "Turn a light on or off.", parameters } }];
  const call = { function: { name: "set_light", arguments: { light: "kitchen", state: "on" } } };
  const turns = [...command, { role: "assistant", content: "", tool_calls: [call] }, { role: "tool", tool_name: "set_light", content: "The light is on now." }];
  const answer = await ollama.chat({ model, messages: turns, tools, options: { temperature: 0, num_predict: 16 } });
  assert.ok(answer.message.content || answer.message.tool_calls);
});
