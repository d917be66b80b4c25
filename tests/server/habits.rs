//! What programs send that were written for other servers: it works, or is refused by name in the words of their API, and is never
//! answered as if it had not been said. In place of the engine a thread says what prompts tell it to.

use std::time::Duration;

use crate::fake_engine::Server;
use lowkey::text::ChatTemplate;
use lowkey_test_kit::client::{Client, Reply, post, request};
use serde_json::{Value, json};

fn server() -> Server {
    Server::start(|_| ())
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut client = Client::new(server.address);
    client.send(&request(method, path, headers, body));
    client.reply()
}

/// The text of an error in either form, and the field that it names.
fn error(reply: &Reply) -> (String, String) {
    let error = reply.json()["error"].clone();
    let text = error.as_str().or(error["message"].as_str()).unwrap_or_default().to_owned();
    (text, error["param"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn samplers_that_are_not_here_are_refused_where_they_would_change_the_answer() {
    let server = server();
    let places =
        [("/completion", json!({ "prompt": "SAY{x}" })), ("/v1/chat/completions", json!({ "messages": user("SAY{x}") }))];
    for (name, asks, idle) in [
        ("mirostat", json!(2), json!(0)),
        ("typical_p", json!(0.5), json!(1)),
        ("typ_p", json!(0.5), json!(1.0)),
        ("tfs_z", json!(0.9), json!(1)),
        ("top_n_sigma", json!(1.5), json!(-1)),
        ("dynatemp_range", json!(0.5), json!(0)),
        ("dry_multiplier", json!(0.8), json!(0)),
        ("xtc_probability", json!(0.1), json!(0)),
        ("t_max_predict_ms", json!(100), json!(0)),
        ("grammar_lazy", json!(true), json!(false)),
        ("lora", json!([{ "id": 0, "scale": 0.5 }]), json!([{ "id": 0, "scale": 0.0 }])),
        ("samplers", json!(["temperature", "top_k"]), json!([])),
        ("samplers", json!(["top_k", "nonsense"]), json!("edskypmxt")),
    ] {
        for (path, body) in &places {
            let reply = post(server.address, path, &with(body.clone(), &json!({ name: asks })));
            let (text, param) = error(&reply);
            assert_eq!((reply.status, param.as_str()), (501, name), "{path} {asks}: {}", reply.text());
            assert!(text.contains("leave it out") || text.contains("send some of") || name == "grammar_lazy", "{text}");
            let reply = post(server.address, path, &with(body.clone(), &json!({ name: idle })));
            assert_eq!(reply.status, 200, "{path} {name} {idle}: {}", reply.text());
        }
    }
    let wrong = post(server.address, "/completion", &json!({ "prompt": "x", "mirostat": "no" }));
    assert_eq!((wrong.status, error(&wrong).1.as_str()), (400, "mirostat"));
}

#[test]
fn samplers_that_a_list_leaves_out_are_off() {
    let server = server();
    let said =
        json!({ "prompt": "SAY{x}", "top_k": 7, "top_p": 0.5, "min_p": 0.25, "temperature": 0.5, "presence_penalty": 1.0 });
    let settings = |samplers: Value| {
        let reply = post(server.address, "/completion", &with(said.clone(), &json!({ "samplers": samplers })));
        let all = reply.json()["generation_settings"].clone();
        ["top_k", "top_p", "min_p", "temperature", "presence_penalty"].map(|name| all[name].as_f64().expect("a number"))
    };
    assert_eq!(
        settings(json!(["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"])),
        [7.0, 0.5, 0.25, 0.5, 1.0]
    );
    assert_eq!(settings(json!(["top_k"])), [7.0, 1.0, 0.0, 1.0, 0.0]);
    assert_eq!(settings(json!("pt")), [0.0, 0.5, 0.0, 0.5, 0.0]);
}

#[test]
fn pictures_sound_and_old_forms_are_refused_by_name() {
    let server = server();
    let chat = json!({ "messages": user("SAY{x}") });
    for (path, body, more) in [
        ("/completion", json!({ "prompt": "SAY{x}" }), json!({ "image_data": [{ "data": "AAAA", "id": 1 }] })),
        ("/v1/chat/completions", chat.clone(), json!({ "functions": [{ "name": "f" }] })),
        ("/v1/chat/completions", chat.clone(), json!({ "modalities": ["text", "audio"] })),
        ("/v1/chat/completions", chat.clone(), json!({ "audio": { "voice": "alloy" } })),
    ] {
        let reply = post(server.address, path, &with(body, &more));
        let name = more.as_object().and_then(|map| map.keys().next()).expect("a name");
        assert_eq!((reply.status, &error(&reply).1), (501, name), "{}", reply.text());
    }
    for more in [json!({ "functions": [] }), json!({ "modalities": ["text"], "audio": null }), json!({ "n_cmpl": 2 })] {
        assert_eq!(post(server.address, "/v1/chat/completions", &with(chat.clone(), &more)).status, 200, "{more}");
    }
    // llama-server's word for likely tokens, in a chat too.
    let reply = post(server.address, "/v1/chat/completions", &with(chat, &json!({ "n_probs": 2 }))).json();
    assert_eq!(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().map(Vec::len), Some(2), "{reply}");
}

#[test]
fn what_ollama_keeps_or_does_with_a_prompt_is_refused_in_its_words() {
    let server = server();
    let generate = |more: Value| {
        post(server.address, "/api/generate", &with(json!({ "model": "demo", "prompt": "SAY{x}", "stream": false }), &more))
    };
    for (more, status, words) in [
        (json!({ "context": [1, 2] }), 501, "/api/chat"),
        (json!({ "template": "{{ .Prompt }}" }), 501, "raw"),
        (json!({ "raw": true, "system": "Be brief." }), 400, "raw"),
        (json!({ "raw": true, "context": [1] }), 400, "raw"),
        (json!({ "context": "x" }), 400, "context"),
        (json!({ "logprobs": true }), 501, "/v1/chat/completions"),
        (json!({ "options": { "mirostat": 1 } }), 501, "mirostat"),
        (json!({ "options": { "typical_p": 0.5 } }), 501, "typical_p"),
    ] {
        let reply = generate(more.clone());
        assert!(reply.status == status && reply.json()["error"].is_string(), "{more}: {}", reply.text());
        assert!(error(&reply).0.contains(words), "{more}: {}", reply.text());
    }
    for good in [
        json!({ "context": [], "template": "", "system": "", "raw": true }),
        json!({ "options": { "mirostat": 0, "typical_p": 1.0, "tfs_z": 1.0, "num_keep": 5, "num_thread": 4 } }),
    ] {
        assert_eq!(generate(good.clone()).status, 200, "{good}");
    }
    assert_eq!(post(server.address, "/api/show", &json!({})).status, 400);
    assert_eq!(post(server.address, "/api/show", &json!({ "model": "other" })).status, 404);
}

#[test]
fn bodies_are_read_as_other_programs_write_them() {
    let server = server();
    let json = ("Content-Type", "application/json");
    let tokens = |body: &[u8]| ask(&server, "POST", "/tokenize", &[json], body).json()["tokens"].clone();
    let plain = tokens("{\"content\":\"Hi \u{fffd}\"}".as_bytes());
    assert!(plain.is_array());
    assert_eq!(tokens("\u{feff}{\"content\":\"Hi \u{fffd}\"}".as_bytes()), plain, "a mark before it");
    assert_eq!(tokens(br#"{"content":"Hi \ud83d"}"#), plain, "half an emoji");
    // What is packed is not taken for text.
    for coding in ["gzip", "br, gzip"] {
        let reply = ask(&server, "POST", "/tokenize", &[json, ("Content-Encoding", coding)], b"\x1f\x8b\x08\x00");
        assert_eq!((reply.status, reply.header("Accept-Encoding")), (415, Some("identity")), "{}", reply.text());
        assert!(error(&reply).0.contains(coding), "{}", reply.text());
    }
    assert_eq!(ask(&server, "POST", "/tokenize", &[json, ("Content-Encoding", "identity")], br#"{"content":"x"}"#).status, 200);
}

#[test]
fn refusals_name_the_way_out() {
    let server = server();
    for (method, path, allowed, words) in [
        ("PUT", "/v1/models", "GET,HEAD", "GET or HEAD"),
        ("GET", "/completion", "POST", "POST"),
        ("GET", "/api/chat", "POST", "POST"),
    ] {
        let reply = ask(&server, method, path, &[], b"");
        assert_eq!((reply.status, reply.header("Allow")), (405, Some(allowed)), "{method} {path}");
        let text = error(&reply).0;
        assert!(text.contains(&format!("asked with {words}, not with '{method}'")), "{text}");
    }
    let reply = ask(&server, "GET", "/api/tags", &[("Host", "pi.local:8080")], b"");
    assert_eq!(reply.status, 403);
    assert!(error(&reply).0.contains("'pi.local' among its `allowed-hosts`"), "{}", reply.text());
    let headers = [("Origin", "http://home.lan:3000"), ("Content-Type", "application/json")];
    let reply = ask(&server, "POST", "/tokenize", &headers, b"{}");
    assert_eq!(reply.status, 403);
    assert!(error(&reply).0.contains("'http://home.lan:3000' among its `cors-origins`"), "{}", reply.text());
}

#[test]
fn without_a_time_for_them_there_are_no_comments() {
    let server = Server::start(|s| s.ping = Duration::ZERO);
    let body = json!({ "messages": user("PACE{20} SAY{a few words}"), "stream": true });
    let text = post(server.address, "/v1/chat/completions", &body).text().to_owned();
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains(": ping"), "{} bytes", text.len());
}

#[test]
fn how_hard_to_think_is_told_to_the_template_and_none_is_not_at_all() {
    let source = "{{ reasoning_effort or 'as usual' }}, {{ enable_thinking }}: {{ messages[-1].content }}";
    let server = Server::with_template(ChatTemplate::new(source).expect("a template"), |_| ());
    let prompt = |more: Value| {
        let reply = post(server.address, "/apply-template", &with(json!({ "messages": user("x") }), &more));
        reply.json()["prompt"].as_str().unwrap_or_else(|| panic!("{}", reply.text())).to_owned()
    };
    assert_eq!(prompt(json!({})), "as usual, True: x");
    assert_eq!(prompt(json!({ "reasoning_effort": null })), "as usual, True: x");
    assert_eq!(prompt(json!({ "reasoning_effort": "low" })), "low, True: x");
    assert_eq!(prompt(json!({ "reasoning_effort": "none" })), "as usual, False: x");
    // What is said by the template's own name counts first.
    assert_eq!(
        prompt(json!({ "reasoning_effort": "low", "chat_template_kwargs": { "reasoning_effort": "high" } })),
        "high, True: x"
    );
    assert_eq!(
        prompt(json!({ "reasoning_effort": "none", "chat_template_kwargs": { "enable_thinking": true } })),
        "as usual, True: x"
    );
    for (path, body, field) in [
        ("/v1/chat/completions", json!({ "messages": user("x"), "reasoning_effort": 3 }), "reasoning_effort"),
        ("/v1/responses", json!({ "input": "x", "reasoning": { "effort": 3 } }), "reasoning.effort"),
        ("/api/chat", json!({ "messages": user("x"), "think": 3 }), "think"),
    ] {
        let reply = post(server.address, path, &body);
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert!(error(&reply).0.contains(field), "{}", reply.text());
    }
    // Of the other paths the length of what was read tells.
    let read = |path: &str, more: Value| {
        let body = with(json!({ "model": "m", "stream": false }), &more);
        let answer = post(server.address, path, &body).json();
        let n = if path == "/api/chat" { &answer["prompt_eval_count"] } else { &answer["usage"]["input_tokens"] };
        n.as_u64().expect("tokens")
    };
    let effort = "one two three four five six seven";
    let response = |more: Value| read("/v1/responses", with(json!({ "input": "x", "max_output_tokens": 1 }), &more));
    assert!(response(json!({ "reasoning": { "effort": effort } })) > response(json!({})));
    let ollama = |more: Value| read("/api/chat", with(json!({ "messages": user("x"), "options": { "num_predict": 1 } }), &more));
    assert!(ollama(json!({ "think": effort })) > ollama(json!({ "think": true })));
}
