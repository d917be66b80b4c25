//! Tools at `lowkey serve`: how models are told of them, how calls come back in each API, and that the next turn's prompt begins with
//! what was written. In place of the engine a thread says what prompts tell it to.

use crate::fake_engine::Server;
use lowkey::text::ChatTemplate;
use lowkey_test_kit::client::{Reply, post};
use serde_json::{Value, json};

pub const CALL: &str = "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\":  \"U{}C\"}}\n</tool_call>";
const ARGUMENTS: &str = "{\"zone\":  \"U{}C\"}";
/// A call of a model that is told of tools in the system's turn.
pub const IN_WORDS: &str = "<call>now( zone: \"U{}C\")";
const WORDS_ARGUMENTS: &str = "{\"zone\": \"U{}C\"}";

/// A server whose template tells of tools, as Hermes does.
pub fn hermes() -> Server {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if tools %}{{ tools | length }} <tool_call>{% endif %}<|im_start|>assistant\n";
    Server::with_template(ChatTemplate::new(template).expect("a template"), |_| ())
}

#[track_caller]
pub fn ok(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

pub fn tool() -> Value {
    let zone = json!({ "type": "object", "properties": { "zone": { "type": "string" } } });
    json!({ "type": "function", "function": { "name": "now", "description": "Tells the time", "parameters": zone } })
}

pub fn asks(said: &str) -> Value {
    json!([{ "role": "user", "content": format!("SAY{{{said}}}") }])
}

/// The data of a stream's events.
pub fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

#[test]
fn a_call_is_told_whole_or_in_deltas() {
    told(&hermes(), CALL, ARGUMENTS);
}

#[test]
fn a_call_in_words_is_told_as_json() {
    told(&Server::start(|_| ()), IN_WORDS, WORDS_ARGUMENTS);
}

#[track_caller]
pub fn told(server: &Server, written: &str, arguments: &str) {
    let said = format!("Let me see.\n{written}");
    let body = json!({ "messages": asks(&said), "tools": [tool()] });
    let answer = ok(&post(server.address, "/v1/chat/completions", &body));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Let me see.\n");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["type"], &call["function"]["name"], &call["function"]["arguments"]),
        (&json!("function"), &json!("now"), &json!(arguments))
    );
    assert!(call["id"].as_str().is_some_and(|id| id.len() > 8));

    // At a pace at which words do not wait for one another: those that do are told together.
    let paced = json!([{ "role": "user", "content": format!("PACE{{5}} SAY{{{said}}}") }]);
    let body = json!({ "messages": paced, "tools": [tool()], "stream": true });
    let reply = post(server.address, "/v1/chat/completions", &body);
    let events = events(reply.text());
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    let content: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(content, "Let me see.\n");
    let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta.get("tool_calls")).map(|calls| &calls[0]).collect();
    assert!(calls.len() > 2, "{events:?}");
    assert_eq!(
        (&calls[0]["index"], &calls[0]["function"]["name"], &calls[0]["function"]["arguments"]),
        (&json!(0), &json!("now"), &json!(""))
    );
    assert!(calls[0]["id"].is_string() && calls[0]["type"] == "function");
    let told: String = calls.iter().filter_map(|call| call["function"]["arguments"].as_str()).collect();
    assert_eq!(told, arguments);
    assert!(calls[1..].iter().all(|call| call["index"] == 0 && call.get("id").is_none()));
    assert_eq!(events.last().expect("an event")["choices"][0]["finish_reason"], "tool_calls");
    // Nobody asked for calls: it is text.
    for body in
        [json!({ "messages": asks(written) }), json!({ "messages": asks(written), "tools": [tool()], "tool_choice": "none" })]
    {
        let answer = ok(&post(server.address, "/v1/chat/completions", &body));
        assert_eq!(
            (&answer["choices"][0]["message"]["content"], &answer["choices"][0]["finish_reason"]),
            (&json!(written), &json!("stop"))
        );
    }
    let cut = json!({ "messages": asks(written), "tools": [tool()], "max_tokens": 12 });
    assert_eq!(ok(&post(server.address, "/v1/chat/completions", &cut))["choices"][0]["finish_reason"], "length");
}

#[test]
fn several_calls_are_counted() {
    let server = Server::start(|_| ());
    let body = json!({ "messages": asks(&format!("{IN_WORDS}\n{IN_WORDS}")), "tools": [tool()], "stream": true });
    let events = events(post(server.address, "/v1/chat/completions", &body).text());
    let calls = events.iter().filter_map(|event| event["choices"][0]["delta"].get("tool_calls"));
    let begun: Vec<&Value> = calls.map(|calls| &calls[0]).filter(|call| call.get("id").is_some()).collect();
    assert_eq!(begun.iter().map(|call| &call["index"]).collect::<Vec<_>>(), [&json!(0), &json!(1)]);
    assert_ne!(begun[0]["id"], begun[1]["id"]);
}

#[test]
fn ollama_gets_objects_and_responses_get_items() {
    let server = hermes();
    let body = json!({ "model": "demo", "messages": asks(CALL), "tools": [tool()], "stream": false });
    let answer = ok(&post(server.address, "/api/chat", &body));
    let call = &answer["message"]["tool_calls"][0]["function"];
    assert_eq!((&call["name"], &call["arguments"]), (&json!("now"), &json!({ "zone": "U{}C" })));
    let mut body = body;
    body["stream"] = true.into();
    let reply = post(server.address, "/api/chat", &body);
    let lines: Vec<Value> = reply.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<&Value> = lines.iter().filter_map(|line| line["message"].get("tool_calls")).collect();
    assert_eq!((told.len(), &told[0][0]["function"]["arguments"]["zone"]), (1, &json!("U{}C")));
    assert!(lines.last().is_some_and(|last| last["done"] == true));

    let function = json!({ "type": "function", "name": "now", "parameters": { "type": "object" } });
    let body = json!({ "input": format!("SAY{{{CALL}}}"), "tools": [function], "stream": true });
    let events = events(post(server.address, "/v1/responses", &body).text());
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    for kind in [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let output = &events.last().expect("an event")["response"]["output"];
    assert_eq!(
        (&output[0]["type"], &output[0]["name"], &output[0]["arguments"]),
        (&json!("function_call"), &json!("now"), &json!(ARGUMENTS))
    );
    assert!(output[0]["call_id"].is_string() && output.as_array().is_some_and(|items| items.len() == 1), "{output}");
}

#[track_caller]
pub fn prompt(server: &Server, body: &Value) -> String {
    ok(&post(server.address, "/apply-template", body))["prompt"].as_str().expect("text").to_owned()
}

#[test]
fn the_next_turn_begins_with_what_was_written() {
    let server = Server::start(|_| ());
    let mut messages = asks(&format!("Well.\n{IN_WORDS}"));
    let first = prompt(&server, &json!({ "messages": messages, "tools": [tool()] }));
    let answer = ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": messages, "tools": [tool()] })));
    let message = answer["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let list = messages.as_array_mut().expect("a list");
    list.push(message);
    list.push(json!({ "role": "tool", "tool_call_id": id, "content": "noon" }));
    let second = prompt(&server, &json!({ "messages": messages, "tools": [tool()] }));
    let begins = format!("{first}Well.\n{IN_WORDS}");
    assert!(second.starts_with(&begins), "{second}");
    assert!(second[begins.len()..].contains("<tool_response>\nnoon\n</tool_response>"), "{second}");
    // What the client has changed is what counts.
    messages[1]["tool_calls"][0]["function"]["arguments"] = "{\"zone\": \"other\"}".into();
    assert!(prompt(&server, &json!({ "messages": messages, "tools": [tool()] })).contains("<call>now(zone: \"other\")"));
}

#[test]
fn a_template_that_knows_no_tools_has_them_told_in_the_systems_turn() {
    let server = Server::start(|_| ());
    let text = prompt(&server, &json!({ "messages": asks("x"), "tools": [tool()] }));
    assert!(text.contains("Tools:\nnow(zone?: string) - Tells the time<|im_end|>"), "{text}");
    // Examples of calls follow, then what was asked.
    assert_eq!(text.matches("<call>now(zone: \"").count(), 6, "{text}");
    assert!(
        text.contains(
            "<|im_start|>user\nother: Tells the time.<|im_end|>\n<|im_start|>assistant\n<call>now(zone: \"other\")<|im_end|>"
        ),
        "{text}"
    );
    // A greeting is last where a call must come, and first elsewhere.
    let greeting = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\nHello! How can I help you?<|im_end|>\n";
    let forced = json!({ "type": "function", "function": { "name": "now" } });
    for (choice, is_last) in [("auto".into(), false), ("none".into(), false), ("required".into(), true), (forced, true)] {
        let text = prompt(&server, &json!({ "messages": asks("x"), "tools": [tool()], "tool_choice": choice }));
        assert_eq!(text.contains(&format!("{greeting}<|im_start|>user\nSAY{{x}}<|im_end|>")), is_last, "{text}");
        assert_eq!(text.matches(greeting).count(), 1, "{text}");
    }
    let with_system = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "x" }]);
    let text = prompt(&server, &json!({ "messages": with_system, "tools": [tool()] }));
    assert!(text.contains("Be brief.\n\nTools:\n"), "{text}");
    // Others tell them themselves.
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if tools %}{{ tools | length }} tools <tool_call>{% endif %}";
    let server = Server::with_template(ChatTemplate::new(template).expect("a template"), |_| ());
    assert!(prompt(&server, &json!({ "messages": asks("x"), "tools": [tool()] })).ends_with("1 tools <tool_call>"));
}
