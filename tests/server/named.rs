//! What is refused, and how: by the name that the client gave it, in the form of the path. In place of the engine a thread says what
//! prompts tell it to.

use crate::fake_engine::Server;
use lowkey_test_kit::client::{Client, Reply, post, request};
use serde_json::{Value, json};

fn server() -> Server {
    Server::start(|_| ())
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// Refused with this status, by a message that begins with the name of a field.
#[track_caller]
fn refused(reply: &Reply, status: u16, name: &str) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let error = reply.json()["error"].clone();
    let message = error.as_str().or(error["message"].as_str()).unwrap_or_default();
    assert!(message.starts_with(&format!("`{name}`: ")), "{name}: {message}");
    assert!(error.is_string() || error["param"] == name, "{error}");
}

#[test]
fn parameters_of_a_tool_that_are_no_object_are_refused() {
    let server = server();
    let ask = |parameters: &Value| {
        let tool = json!({ "type": "function", "function": { "name": "f", "parameters": parameters } });
        post(server.address, "/v1/chat/completions", &json!({ "messages": user("SAY{x}"), "tools": [tool] }))
    };
    for bad in [
        json!(true),
        json!(false),
        json!({ "type": "string" }),
        json!({ "type": ["string", "null"] }),
        json!({ "type": "array", "items": { "type": "object" } }),
        json!({ "enum": ["a", "b"] }),
        json!({ "const": 3 }),
        json!({ "anyOf": [{ "type": "string" }, { "enum": [1] }] }),
        json!({ "allOf": [{ "type": "object" }, { "type": "string" }] }),
    ] {
        refused(&ask(&bad), 400, "tools[0].function.parameters");
    }
    for good in [
        Value::Null,
        json!({}),
        json!({ "type": "object" }),
        json!({ "type": ["object", "null"] }),
        json!({ "properties": { "a": { "type": "string" } } }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "type": "object" } } }),
        json!({ "anyOf": [{ "type": "object" }, { "type": "null" }] }),
        json!({ "enum": [{ "a": 1 }] }),
    ] {
        let reply = ask(&good);
        assert_eq!(reply.status, 200, "{good}: {}", reply.text());
    }
    let flat = json!({ "type": "function", "name": "f", "parameters": { "type": "string" } });
    refused(&post(server.address, "/v1/responses", &json!({ "input": "x", "tools": [flat] })), 400, "tools[0].parameters");
}

#[test]
fn responses_are_refused_in_their_own_words() {
    let server = server();
    let flat = |more: Value| {
        let mut tool = json!({ "type": "function" });
        tool.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!([tool])
    };
    for (body, status, name) in [
        (json!({ "input": [] }), 400, "input"),
        (json!({ "input": [{ "role": "pirate", "content": "x" }] }), 400, "input[0].role"),
        (json!({ "instructions": "x", "input": [{ "role": 3, "content": "x" }] }), 400, "input[0].role"),
        (
            json!({ "input": [{ "type": "reasoning", "content": [] }, { "type": "function_call", "name": "f", "arguments": 5 }] }),
            400,
            "input[1].arguments",
        ),
        (json!({ "input": [{ "type": "function_call", "name": 5 }] }), 400, "input[0].name"),
        (json!({ "input": [{ "type": "function_call", "call_id": 5, "name": "f" }] }), 400, "input[0].call_id"),
        (json!({ "input": [{ "type": "function_call_output", "call_id": 5, "output": "x" }] }), 400, "input[0].call_id"),
        (json!({ "input": "x", "text": { "format": { "type": "sound" } } }), 400, "text.format.type"),
        (
            json!({ "input": "x", "text": { "format": { "type": "json_schema", "schema": { "type": "hiccup" } } } }),
            400,
            "text.format.schema.type",
        ),
        (json!({ "input": "x", "text": { "format": { "type": "json_object" } } }), 501, "text.format"),
        (json!({ "input": "x", "tools": flat(json!({})) }), 400, "tools[0].name"),
        (json!({ "input": "x", "tools": flat(json!({ "name": "f", "parameters": 3 })) }), 400, "tools[0].parameters"),
        (json!({ "input": "x", "tools": [{ "type": "function", "function": {} }] }), 400, "tools[0].function.name"),
        (json!({ "input": "x", "conversation": "c" }), 400, "conversation"),
        (json!({ "input": "x", "conversation": { "id": "c" } }), 400, "conversation"),
        (json!({ "input": "x", "prompt": { "id": "p" } }), 400, "prompt"),
        (json!({ "input": "x", "include": ["message.output_text.logprobs"] }), 501, "include"),
        (json!({ "input": "x", "include": "all" }), 400, "include"),
        (json!({ "input": "x", "top_logprobs": 3 }), 501, "top_logprobs"),
        (json!({ "input": "x", "top_logprobs": "x" }), 400, "top_logprobs"),
    ] {
        refused(&post(server.address, "/v1/responses", &body), status, name);
    }
    // Both ways to ask for a form, by the names that were sent.
    let both = json!({ "input": "x", "text": { "format": { "type": "json_object" } }, "grammar": "root ::= \"a\"" });
    let reply = post(server.address, "/v1/responses", &both);
    assert!(reply.status == 400 && reply.text().contains("`text.format`"), "{}", reply.text());
    for good in [
        json!({ "input": "SAY{x}", "include": ["reasoning.encrypted_content"], "top_logprobs": 0, "conversation": null, "prompt": null }),
        json!({ "input": "SAY{x}", "include": [] }),
    ] {
        let reply = post(server.address, "/v1/responses", &good);
        assert_eq!(reply.status, 200, "{good}: {}", reply.text());
    }
}

#[test]
fn ollamas_requests_are_refused_in_their_own_words() {
    let server = server();
    for (more, status, name) in [
        (json!({ "format": { "type": "hiccup" } }), 400, "format.type"),
        (json!({ "format": { "type": "object" } }), 501, "format"),
        (json!({ "format": "json" }), 501, "format"),
        (json!({ "options": { "temperature": "hot" } }), 400, "options.temperature"),
        (json!({ "options": { "num_predict": "x" } }), 400, "options.num_predict"),
        (json!({ "options": { "stop": [3] } }), 400, "options.stop"),
        (json!({ "options": { "seed": 1.5 } }), 400, "options.seed"),
        (json!({ "options": { "mirostat": 2 } }), 501, "options.mirostat"),
        (json!({ "model": 5 }), 400, "model"),
    ] {
        for (path, mut body) in [("/api/chat", json!({ "messages": user("x") })), ("/api/generate", json!({ "prompt": "x" }))] {
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            refused(&post(server.address, path, &body), status, name);
        }
    }
}

#[test]
fn a_model_that_is_no_name_is_refused_and_so_is_a_limit_beside_another() {
    let server = server();
    for (path, body) in [
        ("/v1/chat/completions", json!({ "messages": user("x") })),
        ("/v1/completions", json!({ "prompt": "x" })),
        ("/completion", json!({ "prompt": "x" })),
        ("/v1/responses", json!({ "input": "x" })),
        ("/api/chat", json!({ "messages": user("x") })),
        ("/api/generate", json!({ "prompt": "x" })),
        ("/api/show", json!({})),
        ("/tokenize", json!({ "content": "x" })),
        ("/apply-template", json!({ "messages": user("x") })),
    ] {
        for model in [json!(true), json!(-1), json!([]), json!({})] {
            let mut body = body.clone();
            body["model"] = model;
            refused(&post(server.address, path, &body), 400, "model");
        }
    }
    for (more, name) in [
        (json!({ "max_tokens": 4, "n_predict": "x" }), "n_predict"),
        (json!({ "max_tokens": "x", "n_predict": 4 }), "max_tokens"),
        (json!({ "n": 1, "n_cmpl": "x" }), "n_cmpl"),
        (json!({ "logprobs": true, "n_probs": "x" }), "n_probs"),
    ] {
        let mut body = json!({ "messages": user("x") });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        refused(&post(server.address, "/v1/chat/completions", &body), 400, name);
    }
}

#[test]
fn a_path_that_is_no_text_is_refused_as_others_are() {
    let server = server();
    for (method, path, name) in
        [("GET", "/v1/models/%ff", "id"), ("GET", "/v1/models/%E2%82", "id"), ("POST", "/slots/%ff?action=save", "id_slot")]
    {
        let mut client = Client::new(server.address);
        client.send(&request(method, path, &[("Content-Type", "application/json")], b"{}"));
        let reply = client.reply();
        refused(&reply, 400, name);
        assert_eq!(reply.header("Content-Type"), Some("application/json; charset=utf-8"));
    }
}

#[test]
fn a_response_repeats_what_was_asked() {
    let server = server();
    let tool = json!({ "type": "function", "name": "f", "description": "Does", "parameters": { "type": "object" } });
    let asked = json!({
        "tools": [tool],
        "tool_choice": "none",
        "parallel_tool_calls": false,
        "truncation": "auto",
        "metadata": { "a": "b" },
        "reasoning": { "effort": "low", "summary": null },
        "instructions": "Be brief.",
        "text": { "format": { "type": "text" } },
        "max_output_tokens": 50,
    });
    let mut body = json!({ "input": "SAY{x}" });
    body.as_object_mut().expect("an object").extend(asked.as_object().expect("an object").clone());
    let reply = post(server.address, "/v1/responses", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json();
    for (name, value) in asked.as_object().expect("an object") {
        assert_eq!(&answer[name], value, "{name}");
    }
    let bare = post(server.address, "/v1/responses", &json!({ "input": "SAY{x}" })).json();
    for (name, value) in [
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("truncation", json!("disabled")),
        ("metadata", json!({})),
        ("reasoning", json!({ "effort": null, "summary": null })),
        ("text", json!({ "format": { "type": "text" } })),
    ] {
        assert_eq!(bare[name], value, "{name}");
    }
    // Of many tools it says the names.
    let tools: Vec<Value> = (0..8)
        .map(|i| json!({ "type": "function", "name": format!("f{i}"), "description": "x".repeat(300), "parameters": {} }))
        .collect();
    let many = post(server.address, "/v1/responses", &json!({ "input": "SAY{x}", "tools": tools })).json();
    let told = many["tools"].as_array().expect("a list");
    assert_eq!((told.len(), &told[7]), (8, &json!({ "type": "function", "name": "f7" })));
}
