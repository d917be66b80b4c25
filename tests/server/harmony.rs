//! gpt-oss at `lowkey serve`: its messages with headers in each API, what its template gets of earlier calls, and the whole program
//! with a small random model of the family that must call, or answer to a form.

use lowkey::text::ChatTemplate;
use lowkey_test_kit::client::post;
use lowkey_test_kit::data;
use serde_json::{Value, json};

use crate::fake_engine::Server;
use crate::tools::{asks, events, ok, prompt, told, tool};

const ANALYSIS: &str = "<|channel|>analysis<|message|>I need the time.<|end|><|start|>assistant";
const PREAMBLE: &str = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant";
const CALL: &str = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{\"zone\":  \"U{}C\"}";
const BY_ROLE: &str = " to=functions.now<|channel|>commentary json<|message|>{\"zone\": \"CET\"}";
const ARGUMENTS: &str = "{\"zone\":  \"U{}C\"}";

/// As strict about earlier calls as the family's own template, and written as that writes.
const TEMPLATE: &str = "{%- if tools %}{% for tool in tools %}// {{ '' + tool.function.description }}\ntype {{ tool.function.name }}{% endfor %}{% endif %}\
{%- set last = namespace(name=none) %}\
{%- for m in messages %}\
{%- if m.role == 'assistant' and m.tool_calls %}\
{%- if m.content and m.thinking %}{{ raise_exception('both content and thinking') }}{% endif %}\
{%- if m.content or m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.content or m.thinking }}<|end|>{% endif %}\
{%- set last.name = m.tool_calls[0].function.name %}\
<|start|>assistant to=functions.{{ last.name }}<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments|tojson }}<|call|>\
{%- elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>\
{%- elif m.role == 'tool' %}{% if last.name is none %}{{ raise_exception('no call') }}{% endif %}\
<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>{{ m.content|tojson }}<|end|>\
{%- else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}\
{%- endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}";

fn server() -> Server {
    Server::with_template(ChatTemplate::new(TEMPLATE).expect("a template"), |_| ())
}

#[test]
fn a_call_of_gpt_oss_is_told_whole_or_in_deltas() {
    told(&server(), CALL, ARGUMENTS);
}

#[test]
fn thoughts_and_a_preamble_before_calls_are_told_apart_in_each_api() {
    let server = server();
    let said = format!("{ANALYSIS}{PREAMBLE}{CALL}<|end|><|start|>assistant{BY_ROLE}");
    let body = json!({ "messages": asks(&said), "tools": [tool()] });
    let answer = ok(&post(server.address, "/v1/chat/completions", &body));
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("I need the time."), &json!("Let me see.")));
    let arguments = |calls: &Value| -> Vec<Value> {
        calls.as_array().expect("calls").iter().map(|call| call["function"]["arguments"].clone()).collect()
    };
    assert_eq!(arguments(&message["tool_calls"]), [json!(ARGUMENTS), json!("{\"zone\": \"CET\"}")]);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    // Not parted, thoughts are as they were written, and calls are calls.
    let raw = json!({ "messages": asks(&said), "tools": [tool()], "reasoning_format": "none" });
    let answer = ok(&post(server.address, "/v1/chat/completions", &raw));
    let message = &answer["choices"][0]["message"];
    let content = message["content"].as_str().expect("content");
    assert!(content.starts_with("<|channel|>analysis<|message|>I need") && content.ends_with("Let me see.<|end|>"), "{content}");
    assert_eq!(message["tool_calls"].as_array().map(Vec::len), Some(2));

    let mut body = json!({ "model": "demo", "messages": asks(&said), "tools": [tool()], "stream": false });
    let answer = ok(&post(server.address, "/api/chat", &body))["message"].take();
    assert_eq!((&answer["thinking"], &answer["content"]), (&json!("I need the time."), &json!("Let me see.")));
    assert_eq!(arguments(&answer["tool_calls"]), [json!({ "zone": "U{}C" }), json!({ "zone": "CET" })]);
    body["stream"] = true.into();
    let reply = post(server.address, "/api/chat", &body);
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let joined = |name: &str| lines.iter().filter_map(|line| line["message"][name].as_str()).collect::<String>();
    assert_eq!((joined("thinking").as_str(), joined("content").as_str()), ("I need the time.", "Let me see."));
    let n_calls: usize = lines.iter().filter_map(|line| line["message"]["tool_calls"].as_array().map(Vec::len)).sum();
    assert_eq!(n_calls, 2);

    let function = json!({ "type": "function", "name": "now", "parameters": { "type": "object" } });
    for is_stream in [false, true] {
        let body = json!({ "input": format!("SAY{{{said}}}"), "tools": [function], "stream": is_stream });
        let reply = post(server.address, "/v1/responses", &body);
        let response = if is_stream { events(reply.text()).pop().expect("an event")["response"].take() } else { ok(&reply) };
        let kinds: Vec<&str> =
            response["output"].as_array().expect("items").iter().filter_map(|item| item["type"].as_str()).collect();
        assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"], "{response}");
    }

    // An answer without calls, and one that ends in a header.
    let body = json!({ "messages": asks(&format!("{ANALYSIS}<|channel|>final<|message|>It is noon.")), "tools": [tool()] });
    let answer = ok(&post(server.address, "/v1/chat/completions", &body));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!("It is noon."), &json!("stop")));
    assert!(choice["message"].get("tool_calls").is_none());
}

/// What the next turn's prompt says of calls and their results.
fn earlier(server: &Server) -> String {
    let call = |id: &str, zone: &str| json!({ "id": id, "type": "function", "function": { "name": "now", "arguments": format!("{{\"zone\": \"{zone}\"}}") } });
    let calls = json!({
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "I need the time.",
        "tool_calls": [call("1", "UTC"), call("2", "CET")],
    });
    let result = |id: &str, text: &str| json!({ "role": "tool", "tool_call_id": id, "content": text });
    let messages = json!([{ "role": "user", "content": "hi" }, calls, result("2", "one"), result("1", "noon")]);
    let bare = json!({ "type": "function", "function": { "name": "bare" } });
    let text = prompt(server, &json!({ "messages": messages, "tools": [tool(), bare] }));
    let at = text.find("<|start|>user<|message|>hi<|end|>").unwrap_or_else(|| panic!("{text}"));
    text[at..].to_owned()
}

const EARLIER: &str = "<|start|>user<|message|>hi<|end|>\
<|start|>assistant<|channel|>analysis<|message|>I need the time.<|end|>\
<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{\"zone\": \"UTC\"}<|call|>\
<|start|>functions.now to=assistant<|channel|>commentary<|message|>\"noon\"<|end|>\
<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{\"zone\": \"CET\"}<|call|>\
<|start|>functions.now to=assistant<|channel|>commentary<|message|>\"one\"<|end|>\
<|start|>assistant";

#[test]
fn the_template_gets_one_call_a_message_with_its_result_and_its_thought() {
    let server = server();
    assert_eq!(earlier(&server), EARLIER);
    // What this server wrote is given to the template too, since marks in a message would be text.
    let mut messages = asks(&format!("{ANALYSIS}{CALL}"));
    let answer = ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": messages, "tools": [tool()] })));
    messages.as_array_mut().expect("a list").push(answer["choices"][0]["message"].clone());
    messages.as_array_mut().expect("a list").push(json!({ "role": "tool", "tool_call_id": "?", "content": "noon" }));
    let text = prompt(&server, &json!({ "messages": messages, "tools": [tool()] }));
    let call = "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{\"zone\": \"U{}C\"}<|call|>";
    assert!(text.contains(&format!("<|message|>I need the time.<|end|>{call}<|start|>functions.now to=")), "{text}");
    // Items of a response are given back as they came.
    let call = json!({ "type": "function_call", "call_id": "1", "name": "now", "arguments": "{\"zone\": \"U{}C\"}" });
    let thought =
        json!({ "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": "I need the time." }] });
    let input = json!([{ "role": "user", "content": "hi" }, thought, call, { "type": "function_call_output", "call_id": "1", "output": "noon" }]);
    let body = json!({ "input": input, "tools": [{ "type": "function", "name": "now" }] });
    let counted = ok(&post(server.address, "/v1/responses", &body))["usage"]["input_tokens"].as_u64();
    let mut without = body;
    without["input"].as_array_mut().expect("a list").remove(1);
    let fewer = ok(&post(server.address, "/v1/responses", &without))["usage"]["input_tokens"].as_u64();
    assert!(counted > fewer, "{counted:?}, {fewer:?}: the thought is in the prompt");
    // An answer that is gone on with has its header.
    let begun = json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "It is" }]);
    let text = prompt(&server, &json!({ "messages": begun }));
    assert!(text.ends_with("<|start|>assistant<|channel|>final<|message|>It is"), "{text}");
}

/// The family's own template, which `models/fetch-peer-files` brings.
#[test]
#[ignore = "`make peer-files`, a stage of .ci/run, fetches what it needs and runs it"]
fn the_familys_own_template_takes_earlier_calls() {
    let path = data("../../models/peer/openai-gpt-oss-120b.jinja");
    let source = std::fs::read_to_string(&path).expect("the template that models/fetch-peer-files brings");
    let server = Server::with_template(ChatTemplate::new(&source).expect("a template"), |_| ());
    assert_eq!(earlier(&server), EARLIER);
    let text = prompt(&server, &json!({ "messages": asks("x"), "tools": [tool()] }));
    assert!(text.contains("// Tells the time\ntype now = (_: {\nzone?: string,\n}) => any;"), "{text}");
    assert!(text.ends_with("<|end|><|start|>assistant"), "{text}");
    told(&server, CALL, ARGUMENTS);
}

/// A random gpt-oss of 37 tokens: those of its frame, with the numbers that its vocabulary has them in, and letters.
#[cfg(feature = "constraint")]
mod whole {
    use super::*;
    use crate::whole::Program;
    use lowkey_test_kit::{families::family_model, golden};

    const SPECIAL: &str =
        "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>";
    /// The letters of a call and of channels, in the alphabet of bytes.
    const LETTERS: &str = "a b c d e f h i j l m n o r s t u x y \u{120} = . { } \" : , 0";
    const N_LETTERS: usize = 28;
    const CHANNEL: usize = N_LETTERS + 4;

    struct Model(std::path::PathBuf);

    impl Drop for Model {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn model() -> Model {
        let golden = golden("families.json");
        let mut file = family_model("gpt-oss-q8", &golden["models"]["gpt-oss-q8"]);
        let tokens: Vec<&str> = LETTERS.split_ascii_whitespace().chain(SPECIAL.split(' ')).collect();
        let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id < N_LETTERS { 1 } else { 3 }).collect();
        assert_eq!(tokens.len(), 37);
        file.keys.retain(|(key, ..)| !key.starts_with("tokenizer."));
        file.str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "gpt-4o")
            .strs("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &kinds)
            .strs("tokenizer.ggml.merges", &[])
            .u32("tokenizer.ggml.bos_token_id", N_LETTERS as u32)
            .u32("tokenizer.ggml.eos_token_id", N_LETTERS as u32 + 2)
            .str("tokenizer.chat_template", "{% if tools %}{% endif %}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant{% if false %}<|channel|>analysis<|message|>{% endif %}");
        let path = std::env::temp_dir().join(format!("lowkey-serve-harmony-{}.gguf", std::process::id()));
        std::fs::write(&path, file.build()).expect("a temporary file");
        Model(path)
    }

    #[test]
    fn a_random_model_calls_where_it_must_and_answers_to_a_form() {
        let model = model();
        let program = Program::of(&model.0, &["--kv-budget", "256KiB", "--grammar-memory", "8MiB"]);
        let parameters = json!({ "type": "object", "properties": { "a": { "enum": ["sun", "moon"] } }, "required": ["a"] });
        let tool = json!({ "type": "function", "function": { "name": "set.it", "parameters": parameters } });
        // By chance alone it would think for ever: a space leads to a recipient.
        let ask = |more: Value| {
            let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 150 });
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            program.chat(body)
        };
        let space = N_LETTERS - 9;
        for bias in [json!([[space, 50]]), json!([[space, 50], [CHANNEL, 100]])] {
            for choice in [json!("required"), json!({ "type": "function", "function": { "name": "set.it" } })] {
                let body = json!({ "tools": [tool], "tool_choice": choice, "parallel_tool_calls": false, "logit_bias": bias });
                let answer = ask(body.clone());
                let choice = &answer["choices"][0];
                let call = &choice["message"]["tool_calls"][0]["function"];
                println!("{bias}: {call}");
                assert_eq!((&choice["finish_reason"], &call["name"]), (&json!("tool_calls"), &json!("set.it")), "{answer}");
                let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("a text")).expect("JSON");
                assert!(arguments == json!({ "a": "sun" }) || arguments == json!({ "a": "moon" }), "{answer}");
                assert_eq!(choice["message"]["content"], Value::Null, "{answer}");
            }
        }
        let schema = json!({ "type": "json_schema", "json_schema": { "name": "a", "schema": parameters } });
        let f = LETTERS.split_ascii_whitespace().position(|letter| letter == "f");
        let form = json!({ "response_format": schema, "logit_bias": [[CHANNEL, 50], [f, 50]] });
        let answer = ask(form.clone());
        let content = answer["choices"][0]["message"]["content"].as_str().expect("content");
        println!("{content}");
        assert!(serde_json::from_str::<Value>(content).is_ok_and(|value| value["a"].is_string()), "{answer}");
        let mut raw = form;
        raw["reasoning_format"] = "none".into();
        let answer = ask(raw);
        let told = answer["choices"][0]["message"]["content"].as_str().expect("content");
        assert!(told.starts_with("<|channel|>final") && told.ends_with(&format!("<|message|>{content}")), "{told}");
        assert_eq!(program.stop(), 0);
    }
}
