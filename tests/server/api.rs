//! The APIs of `lowkey serve`: what requests may say, what answers are made of, whole and as events. In place of the engine a thread
//! says what prompts tell it to, in tokens of the demo model.

use std::time::Duration;

use crate::fake_engine::Server;
use lowkey::server::http::{Overflow, Thinking};
use lowkey::text::ChatTemplate;
use lowkey_test_kit::client::{Client, Reply, post, request};
use serde_json::{Value, json};

fn server() -> Server {
    Server::start(|_| ())
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

#[track_caller]
fn ok(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// A body with more fields.
fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[track_caller]
fn refused(reply: &Reply, status: u16, param: &str) {
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, error["param"].as_str().unwrap_or_default()), (status, param), "{error}");
}

#[test]
fn a_chat_is_answered_as_a_whole() {
    let server = server();
    let reply =
        ok(&post(server.address, "/v1/chat/completions", &json!({ "model": "whatever", "messages": user("SAY{Hello, 媽!}") })));
    assert!(reply["id"].as_str().is_some_and(|id| id.len() == 9 + 24 && id.starts_with("chatcmpl-")), "{reply}");
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("another")));
    assert!(reply["system_fingerprint"].as_str().is_some_and(|print| print.starts_with('b')));
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": "Hello, 媽!" }));
    assert_eq!((&choice["finish_reason"], &choice["index"], &choice["logprobs"]), (&json!("stop"), &json!(0), &Value::Null));
    let (usage, timings) = (&reply["usage"], &reply["timings"]);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
    assert_eq!(usage["prompt_tokens"], timings["prompt_n"]);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(reply["lowkey"]["stream"], 0);
    // The same again: all but the last token is there already.
    let again = ok(&post(server.address, "/chat/completions", &json!({ "messages": user("SAY{Hello, 媽!}") })));
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], json!(usage["prompt_tokens"].as_u64().unwrap() - 1));
    assert_eq!(again["timings"]["cache_n"], again["usage"]["prompt_tokens_details"]["cached_tokens"]);
    let cut =
        ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": user("EVER{}"), "max_completion_tokens": 5 })));
    assert_eq!((&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]), (&json!("length"), &json!(5)));
}

#[test]
fn a_chat_is_answered_in_events_in_their_order() {
    let server = server();
    let body =
        json!({ "messages": user("PACE{5} SAY{Hello, 媽 world}"), "stream": true, "stream_options": { "include_usage": true } });
    let reply = post(server.address, "/v1/chat/completions", &body);
    assert_eq!(reply.header("Content-Type"), Some("text/event-stream"));
    assert_eq!(reply.header("X-Accel-Buffering"), Some("no"));
    let (events, is_done) = reply.events();
    assert!(is_done);
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({ "role": "assistant", "content": null }));
    assert!(events.iter().all(|event| event["id"] == events[0]["id"] && event["object"] == "chat.completion.chunk"));
    let mut text = String::new();
    for event in &events[1..events.len() - 2] {
        let choice = &event["choices"][0];
        let delta = choice["delta"].as_object().expect("a delta");
        assert!(delta.keys().eq(["content"]) && choice["finish_reason"].is_null(), "{event}");
        let piece = delta["content"].as_str().expect("text");
        assert!(!piece.is_empty());
        text.push_str(piece);
    }
    assert!(events.len() > 5, "it came in pieces");
    assert_eq!(text, "Hello, 媽 world");
    let end = &events[events.len() - 2]["choices"][0];
    assert_eq!((&end["delta"], &end["finish_reason"]), (&json!({}), &json!("stop")));
    let last = &events[events.len() - 1];
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["total_tokens"].is_u64() && last["timings"]["predicted_per_second"].is_f64());
    // Without usage the end has the times.
    let reply = post(server.address, "/v1/chat/completions", &json!({ "messages": user("SAY{Hi}"), "stream": true }));
    let (events, is_done) = reply.events();
    assert!(is_done && events.last().expect("one")["timings"]["predicted_n"].is_u64());
}

#[test]
fn the_role_comes_before_the_prompt_is_read_and_comments_while_it_is() {
    let server = Server::start(|s| s.ping = Duration::from_millis(500));
    let mut client = Client::new(server.address);
    let body = json!({ "messages": user("WAIT{6000} SAY{Hi}"), "stream": true }).to_string();
    let begun = std::time::Instant::now();
    client.send(&request("POST", "/v1/chat/completions", &[], body.as_bytes()));
    assert_eq!(client.head().expect("a head").status, 200);
    let first = client.chunk().expect("an event");
    assert!(begun.elapsed() < Duration::from_millis(4000), "{:?}", begun.elapsed());
    assert!(String::from_utf8_lossy(&first).contains(r#""role":"assistant""#));
    let mut rest = String::new();
    while let Some(chunk) = client.chunk() {
        rest.push_str(std::str::from_utf8(&chunk).expect("whole characters in each part"));
    }
    let n_pings = rest.matches(": ping\n\n").count();
    assert!((5..=12).contains(&n_pings), "{n_pings}: {rest}");
    assert!(rest.ends_with("data: [DONE]\n\n"));
    // Headers of a stream without a first event come at once too.
    let mut client = Client::new(server.address);
    client.send(&request("POST", "/completion", &[], json!({ "prompt": "WAIT{6000}", "stream": true }).to_string().as_bytes()));
    let begun = std::time::Instant::now();
    assert_eq!(client.head().expect("a head").status, 200);
    assert!(begun.elapsed() < Duration::from_millis(4000));
}

#[test]
fn an_error_after_the_first_event_is_an_event_and_no_end() {
    let server = server();
    let reply = post(server.address, "/v1/chat/completions", &json!({ "messages": user("SAY{Hi you} FAIL{}"), "stream": true }));
    let (events, is_done) = reply.events();
    assert!(!is_done);
    let error = &events.last().expect("an event")["error"];
    assert_eq!((&error["type"], &error["message"]), (&json!("server_error"), &json!("the engine was told to fail")));
    let whole = post(server.address, "/v1/chat/completions", &json!({ "messages": user("SAY{Hi you} FAIL{}") }));
    assert_eq!((whole.status, whole.header("X-Should-Retry")), (500, Some("false")));
}

#[test]
fn stop_texts_are_never_given_out_and_what_only_begins_like_one_is() {
    let server = server();
    for stream in [false, true] {
        let say = |text: &str, stop: Value| {
            let reply = post(
                server.address,
                "/completion",
                &json!({ "prompt": format!("SAY{{{text}}}"), "stop": stop, "stream": stream }),
            );
            if !stream {
                return ok(&reply);
            }
            let (events, _) = reply.events();
            let content: String = events.iter().filter_map(|event| event["content"].as_str()).collect();
            with(events.last().expect("an end").clone(), json!({ "content": content }))
        };
        let found = say("one two STOP three", json!(["nothing", " STOP"]));
        assert_eq!(
            (&found["content"], &found["stop_type"], &found["stopping_word"]),
            (&json!("one two"), &json!("word"), &json!(" STOP"))
        );
        let begun = say("one two STO", json!(" STOP"));
        assert_eq!(
            (&begun["content"], &begun["stop_type"], &begun["stopping_word"]),
            (&json!("one two STO"), &json!("eos"), &json!(""))
        );
    }
}

/// A request may want fewer guesses than the server makes, never more.
#[test]
fn guesses_are_as_many_as_a_request_wants() {
    for (n_draft, wanted, got) in [(8, json!({}), 8), (8, json!(3), 3), (8, json!(0), 0), (8, json!(16), 8), (0, json!(16), 0)] {
        let server = Server::start(|settings| settings.n_draft = n_draft);
        let field = if wanted.is_number() { json!({ "speculative.n_max": wanted }) } else { wanted };
        let whole = ok(&post(server.address, "/completion", &with(json!({ "prompt": "SAY{x}" }), field)));
        assert_eq!(whole["generation_settings"]["speculative.n_max"], got);
    }
}

#[test]
fn llama_servers_own_completion_has_its_fields() {
    let server = server();
    let body = json!({ "prompt": "SAY{ a\nb c d}", "n_predict": 3, "return_tokens": true, "ignore_eos": true, "seed": 7 });
    let whole = ok(&post(server.address, "/completion", &body));
    assert_eq!((&whole["stop"], &whole["stop_type"], &whole["has_new_line"]), (&json!(true), &json!("limit"), &json!(true)));
    assert_eq!(whole["tokens"].as_array().map(Vec::len), Some(3));
    assert_eq!((&whole["tokens_predicted"], &whole["truncated"], &whole["id_slot"]), (&json!(3), &json!(false), &json!(0)));
    assert_eq!(whole["prompt"], "SAY{ a\nb c d}");
    let settings = &whole["generation_settings"];
    assert_eq!((&settings["n_predict"], &settings["seed"]), (&json!(3), &json!(7)));
    assert!(
        settings["logit_bias"]
            .as_array()
            .is_some_and(|biases| !biases.is_empty() && biases.iter().all(|bias| bias["bias"].is_null()))
    );
    let plain = ok(&post(server.address, "/completions", &json!({ "prompt": "SAY{x}" })));
    assert_eq!((&plain["tokens"], &plain["generation_settings"]["logit_bias"]), (&json!([]), &json!([])));
    assert_eq!(plain["generation_settings"]["seed"], 42, "the server's own");
    // The events say the same.
    let streamed = post(server.address, "/completion", &with(body.clone(), json!({ "stream": true })));
    let (events, _) = streamed.events();
    let content: String = events.iter().map(|event| event["content"].as_str().expect("text")).collect();
    assert_eq!(content, whole["content"].as_str().expect("text"));
    let (last, rest) = events.split_last().expect("events");
    assert!(
        rest.iter().all(|event| event["stop"] == false && event["tokens"].as_array().is_some_and(|tokens| !tokens.is_empty()))
    );
    assert_eq!((&last["stop"], &last["content"], &last["stop_type"]), (&json!(true), &json!(""), &json!("limit")));
    // Only what is wanted of it.
    let fields = json!({ "response_fields": ["content", "generation_settings/n_predict"] });
    let cut = ok(&post(server.address, "/completion", &with(body, fields)));
    assert_eq!(cut, json!({ "content": whole["content"], "generation_settings/n_predict": 3 }));
}

#[test]
fn prompts_come_in_many_forms() {
    let server = server();
    let ids = ok(&post(server.address, "/tokenize", &json!({ "content": "SAY{same}", "add_special": true })))["tokens"].clone();
    let say = |prompt: Value| post(server.address, "/completion", &json!({ "prompt": prompt }));
    assert_eq!(ok(&say(ids.clone()))["content"], "same");
    assert_eq!(ok(&say(json!({ "prompt_string": "SAY{same}" })))["content"], "same");
    for prompt in [json!([ids, ids]), json!([ids, "SAY{same}"]), json!([ids, { "prompt_string": "SAY{same}" }])] {
        let both = ok(&say(prompt));
        assert_eq!(both.as_array().map(Vec::len), Some(2));
        assert_eq!((&both[0]["content"], &both[1]["content"], &both[1]["index"]), (&json!("same"), &json!("same"), &json!(1)));
    }
    let mixed = [json!([1, 2, 3, " SAY{", 9, "ixed}"])];
    assert!(ok(&say(mixed[0].clone()))["content"].is_string());
    for (bad, status) in [
        (json!(""), 400),
        (json!([]), 400),
        (json!(3), 400),
        (json!([1, true]), 400),
        (json!([49152]), 400),
        (json!([-1]), 400),
        (json!({}), 400),
        (json!([[1], []]), 400),
        (json!(vec!["x"; 33]), 400),
        (json!({ "prompt_string": "x", "multimodal_data": "x" }), 501),
    ] {
        let reply = say(bad.clone());
        assert_eq!(reply.status, status, "{bad}: {}", reply.text());
    }
    assert_eq!(post(server.address, "/completion", &json!({})).status, 400);
}

#[test]
fn probabilities_come_for_each_token() {
    let server = server();
    let body = json!({ "prompt": "SAY{ one two three}", "n_probs": 4, "n_predict": 3 });
    let whole = ok(&post(server.address, "/completion", &body));
    let list = whole["completion_probabilities"].as_array().expect("a list");
    assert_eq!(list.len(), 3);
    for token in list {
        assert!(token["token"].is_string() && token["bytes"].is_array() && token["logprob"].as_f64().is_some_and(|p| p <= 0.0));
        assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(4));
    }
    let (events, _) = post(server.address, "/completion", &with(body, json!({ "stream": true }))).events();
    for event in events.iter().filter(|event| event["stop"] == false) {
        assert_eq!(event["completion_probabilities"].as_array().map(Vec::len), Some(1));
    }
    // OpenAI's, in a chat: joined they are the text, of characters in several tokens too.
    let body = json!({ "messages": user("SAY{Hi there}"), "logprobs": true, "top_logprobs": 2 });
    let whole = ok(&post(server.address, "/v1/chat/completions", &body));
    let joined = |tokens: &Value| -> String {
        tokens.as_array().expect("a list").iter().map(|t| t["token"].as_str().expect("text")).collect()
    };
    assert_eq!(joined(&whole["choices"][0]["logprobs"]["content"]), "Hi there");
    let (events, _) = post(server.address, "/v1/chat/completions", &with(body, json!({ "stream": true }))).events();
    let (mut text, mut tokens) = (String::new(), String::new());
    for choice in events.iter().map(|event| &event["choices"][0]) {
        if let Some(content) = choice["delta"]["content"].as_str() {
            text.push_str(content);
            tokens.push_str(&joined(&choice["logprobs"]["content"]));
        }
    }
    assert_eq!((text.as_str(), tokens.as_str()), ("Hi there", "Hi there"));
    let texts = ok(&post(server.address, "/v1/completions", &json!({ "prompt": "SAY{Hi there}", "logprobs": 1 })));
    assert_eq!(joined(&texts["choices"][0]["logprobs"]["content"]), "Hi there");
    refused(
        &post(server.address, "/v1/chat/completions", &json!({ "messages": user("x"), "top_logprobs": 3 })),
        400,
        "top_logprobs",
    );
}

#[test]
fn several_answers_come_one_after_the_other() {
    let server = server();
    let body = json!({ "messages": user("Tell me"), "n": 3, "id_slot": 0, "max_tokens": 6 });
    let reply = ok(&post(server.address, "/v1/chat/completions", &body));
    let texts: Vec<&str> = (0..3).map(|i| reply["choices"][i]["message"]["content"].as_str().expect("text")).collect();
    assert_ne!(texts[0], texts[1], "each has a seed of its own");
    assert_eq!(reply["choices"][2]["index"], 2);
    let one = ok(&post(server.address, "/v1/chat/completions", &with(body.clone(), json!({ "n": 1 }))));
    assert_eq!(one["choices"][0]["message"]["content"], texts[0], "the first is that of a single one");
    assert_eq!(reply["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"], "the prompt is counted once");
    assert_eq!(reply["usage"]["completion_tokens"], 18);
    let (events, is_done) = post(server.address, "/v1/chat/completions", &with(body.clone(), json!({ "stream": true }))).events();
    assert!(is_done);
    for (i, text) in texts.iter().enumerate() {
        let of_part = || events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == i);
        let joined: String = of_part().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(joined, *text);
        assert_eq!(of_part().filter(|choice| choice["delta"]["role"] == "assistant").count(), 1);
        assert_eq!(of_part().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
    }
    assert_eq!(post(server.address, "/v1/chat/completions", &with(body, json!({ "n": 5 }))).status, 501);
    let texts = ok(&post(server.address, "/v1/completions", &json!({ "prompt": ["SAY{a}", "SAY{b}"], "n": 2 })));
    let said: Vec<&Value> = texts["choices"].as_array().expect("a list").iter().map(|choice| &choice["text"]).collect();
    assert_eq!(said, ["a", "a", "b", "b"]);
}

#[test]
fn same_seed_same_words_and_the_servers_seed_where_there_is_none() {
    let server = server();
    let say = |more: Value| ok(&post(server.address, "/completion", &with(json!({ "prompt": "Once" }), more)))["content"].clone();
    assert_eq!(say(json!({})), say(json!({ "seed": 42 })));
    assert_eq!(say(json!({})), say(json!({})));
    assert_ne!(say(json!({ "seed": 1 })), say(json!({ "seed": 2 })));
}

#[test]
fn numbers_out_of_range_and_wrong_types_are_refused_by_name() {
    let server = server();
    let cases = [
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("min_p", json!([])),
        ("top_k", json!(1.5)),
        ("presence_penalty", json!(3)),
        ("repeat_penalty", json!(0)),
        ("repeat_last_n", json!(1_000_000)),
        ("seed", json!(1.5)),
        ("seed", json!(-2)),
        ("stop", json!(3)),
        ("stop", json!([1])),
        ("stop", json!(vec!["x"; 9])),
        ("stop", json!("x".repeat(65))),
        ("stream", json!("yes")),
        ("max_tokens", json!("many")),
        ("n", json!(0)),
        ("logit_bias", json!("x")),
        ("logit_bias", json!({ "99999999": 1 })),
        ("logit_bias", json!([[1]])),
        ("logit_bias", json!([["x", true]])),
        ("logit_bias", json!({ (" word".repeat(2000)): 1 })),
        ("id_slot", json!(1)),
        ("session", json!("../etc")),
        ("cache_prompt", json!(1)),
        ("stream_options", json!(true)),
        ("grammar", json!(3)),
        ("json_schema", json!(3)),
        ("ignore_eos", json!(0)),
        ("speculative.n_max", json!("x")),
    ];
    for (name, value) in cases {
        for (path, body) in
            [("/v1/chat/completions", json!({ "messages": user("x") })), ("/completion", json!({ "prompt": "x" }))]
        {
            let reply = post(server.address, path, &with(body, json!({ name: value })));
            let param = reply.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
            assert!(reply.status == 400 && param == name, "{path} {name} {value}: {}", reply.text());
        }
    }
    for good in [
        json!({ "temperature": 0, "top_k": -1, "seed": -1, "max_tokens": -1, "stop": [], "n_predict": 8.0 }),
        json!({ "logit_bias": { " word": -100, "12": 1.5 }, "stop": "", "user": "me", "store": true, "metadata": {} }),
        json!({ "logit_bias": [[12, false], [" word", -1]], "seed": u64::MAX, "temperature": null, "stop": null }),
        json!({ "grammar": "", "response_format": { "type": "text" }, "id_slot": -1, "session": "my-talk_1.x" }),
    ] {
        ok(&post(server.address, "/completion", &with(json!({ "prompt": "SAY{x}" }), good)));
    }
}

#[test]
fn biases_of_a_token_add_up_and_a_text_stands_for_all_of_its_tokens() {
    let server = server();
    let settings = |bias: Value| {
        let reply = ok(&post(server.address, "/completion", &json!({ "prompt": "SAY{x}", "logit_bias": bias })));
        reply["generation_settings"]["logit_bias"].clone()
    };
    let ids = server.shared.tokenizer.encode("unbelievably", false, false).expect("ids");
    assert!(ids.len() > 1);
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    for form in [json!([["unbelievably", -2]]), json!({ "unbelievably": -2 })] {
        let told: Vec<Value> = sorted.iter().map(|id| json!({ "token": id, "bias": -2.0 })).collect();
        assert_eq!(settings(form), json!(told));
    }
    assert_eq!(settings(json!([[5, 1], [5, 2]])), json!([{ "token": 5, "bias": 3.0 }]));
    assert_eq!(settings(json!([[5, false]])), json!([{ "token": 5, "bias": null }]));
    // A number in a list is a token, in quotes it is a text; a name in an object that is a number is a token.
    assert_eq!(
        settings(json!([["7", 1]]))[0]["token"],
        json!(server.shared.tokenizer.encode("7", false, false).expect("ids")[0])
    );
    assert_eq!(settings(json!({ "7": 1 })), json!([{ "token": 7, "bias": 1.0 }]));
}

#[test]
fn without_memory_for_grammars_forms_are_refused_and_what_is_no_form_too() {
    let server = server();
    let format = |format: Value| {
        post(server.address, "/v1/chat/completions", &json!({ "messages": user("x"), "response_format": format })).status
    };
    for bad in [
        json!({ "type": "sound" }),
        json!({ "type": "json_object", "schema": 123 }),
        json!({ "type": "json_object", "schema": { "type": 123 } }),
        json!({ "type": "json_object", "schema": { "type": "hiccup" } }),
        json!({ "type": "json_schema" }),
        json!({ "type": "json_schema", "json_schema": { "schema": { "properties": { "a": { "items": [3] } } } } }),
        json!("json"),
    ] {
        assert_eq!(format(bad.clone()), 400, "{bad}");
    }
    assert_eq!(format(json!({ "type": "json_object" })), 501);
    assert_eq!(format(json!({ "type": "json_schema", "json_schema": { "schema": { "const": "x" } } })), 501);
    assert_eq!(post(server.address, "/completion", &json!({ "prompt": "x", "grammar": "root ::= \"a\"" })).status, 501);
    for (choice, status) in [
        (json!("auto"), 200),
        (json!("none"), 200),
        (Value::Null, 200),
        (json!("required"), 501),
        (json!("maybe"), 400),
        (json!({ "type": "function" }), 400),
        (json!({ "type": "function", "function": { "name": "u" } }), 400),
        (json!({ "type": "function", "function": { "name": "t" } }), 501),
    ] {
        let tools = json!([{ "type": "function", "function": { "name": "t", "parameters": { "type": "object" } } }]);
        let reply = post(
            server.address,
            "/v1/chat/completions",
            &json!({ "messages": user("SAY{x}"), "tools": tools, "tool_choice": choice }),
        );
        assert_eq!(reply.status, status, "{choice}: {}", reply.text());
    }
}

#[test]
fn a_context_that_is_too_small_is_told_before_anything_else() {
    let server = Server::start(|s| (s.overflow, s.n_ctx) = (Overflow::Error, 64));
    for stream in [false, true] {
        let body = json!({ "messages": user(&"word ".repeat(200)), "stream": stream });
        let reply = post(server.address, "/v1/chat/completions", &body);
        assert_eq!(reply.status, 400);
        let error = reply.json()["error"].clone();
        assert_eq!((&error["type"], &error["n_ctx"]), (&json!("exceed_context_size_error"), &json!(64)));
        assert!(error["n_prompt_tokens"].as_u64().is_some_and(|n| n > 200));
        assert!(error["message"].as_str().is_some_and(|message| message.contains("exceeds the available context size")));
    }
    assert_eq!(post(server.address, "/completion", &json!({ "prompt": "word ".repeat(200) })).status, 400);
    // Counting is no answering.
    let reply =
        ok(&post(server.address, "/v1/chat/completions/input_tokens", &json!({ "messages": user(&"word ".repeat(200)) })));
    assert!(reply["input_tokens"].as_u64().is_some_and(|n| n > 200));
    let evicting = Server::start(|s| s.n_ctx = 64);
    ok(&post(evicting.address, "/completion", &json!({ "prompt": format!("{} SAY{{x}}", "word ".repeat(200)) })));
}

#[test]
fn progress_of_a_prompt_begins_with_nothing_and_ends_with_all() {
    let server = server();
    let body = json!({ "prompt": format!("{} SAY{{x y}}", "word ".repeat(100)), "stream": true, "return_progress": true, "timings_per_token": true });
    let (events, _) = post(server.address, "/completion", &body).events();
    let progress: Vec<&Value> = events.iter().filter(|event| event.get("prompt_progress").is_some()).collect();
    assert!(progress.len() > 1);
    let first = progress[0];
    assert_eq!(first["prompt_progress"]["cache"], first["prompt_progress"]["processed"]);
    assert_eq!(
        (&first["timings"]["prompt_n"], &first["timings"]["prompt_ms"], &first["timings"]["predicted_n"]),
        (&json!(0), &json!(0.0), &json!(0))
    );
    let processed: Vec<u64> =
        progress.iter().map(|event| event["prompt_progress"]["processed"].as_u64().expect("a number")).collect();
    assert!(processed.windows(2).all(|pair| pair[0] < pair[1]), "{processed:?}");
    let last = progress.last().expect("one");
    assert_eq!(last["prompt_progress"]["processed"], last["prompt_progress"]["total"]);
    for timings in events.iter().filter_map(|event| event.get("timings")) {
        assert!(
            timings.as_object().expect("an object").values().all(|value| value.as_f64().is_some_and(|value| value >= 0.0)),
            "{timings}"
        );
    }
    // In a chat: the role first, without times.
    let body = json!({ "messages": user("SAY{x y}"), "stream": true, "return_progress": true, "timings_per_token": true });
    let (events, _) = post(server.address, "/v1/chat/completions", &body).events();
    assert!(events[0]["choices"][0]["delta"]["role"] == "assistant" && events[0].get("timings").is_none());
    assert!(events[1].get("prompt_progress").is_some() && events[1]["choices"][0]["delta"].get("role").is_none());
}

#[test]
fn what_an_answer_was_made_from_is_told_on_demand() {
    let server = server();
    for (verbose, path, body) in [
        (true, "/v1/chat/completions", json!({ "messages": user("SAY{x} Book") })),
        (false, "/v1/chat/completions", json!({ "messages": user("SAY{x} Book") })),
        (true, "/v1/completions", json!({ "prompt": "SAY{x} Book" })),
    ] {
        let reply = ok(&post(server.address, path, &with(body, json!({ "verbose": verbose }))));
        let told = reply["__verbose"]["prompt"].as_str().is_some_and(|prompt| prompt.contains("Book"));
        assert_eq!((told, reply.get("__verbose").is_some()), (verbose, verbose));
    }
    let always = Server::start(|s| s.verbose = true);
    let reply = ok(&post(
        always.address,
        "/v1/chat/completions",
        &json!({ "messages": [
        { "role": "user", "content": "What" },
        { "role": "assistant", "content": [{ "type": "text", "text": "Wh" }, { "type": "text", "text": "ill" }] },
    ] }),
    ));
    assert!(
        reply["__verbose"]["prompt"].as_str().is_some_and(|prompt| prompt.ends_with("<|im_start|>assistant\nWh\n\nill")),
        "{reply}"
    );
}

#[test]
fn thoughts_are_told_apart_from_answers() {
    let server = server();
    let say = "SAY{<think>\nHm.\n</think>\n\nYes.}";
    let whole = ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": user(say) })));
    assert_eq!(whole["choices"][0]["message"], json!({ "role": "assistant", "content": "Yes.", "reasoning_content": "Hm." }));
    let (events, _) = post(server.address, "/v1/chat/completions", &json!({ "messages": user(say), "stream": true })).events();
    let joined =
        |name: &str| -> String { events.iter().filter_map(|event| event["choices"][0]["delta"][name].as_str()).collect() };
    assert_eq!((joined("reasoning_content").as_str(), joined("content").as_str()), ("Hm.", "Yes."));
    let whole = ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": user(say), "reasoning_format": "none" })));
    assert_eq!(whole["choices"][0]["message"]["content"], "<think>\nHm.\n</think>\n\nYes.");
    // A template that opens a thought itself.
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: <think>\n{% endif %}";
    let template = ChatTemplate::new(source).expect("a template");
    let server = Server::with_template(template.clone(), |_| ());
    let whole = ok(&post(server.address, "/v1/chat/completions", &json!({ "messages": user("SAY{Hm.\n</think>\nYes.}") })));
    assert_eq!(whole["choices"][0]["message"]["reasoning_content"], "Hm.");
    let prompt = |server: &Server, more: Value| {
        ok(&post(server.address, "/apply-template", &with(json!({ "messages": user("x") }), more)))["prompt"]
            .as_str()
            .expect("text")
            .to_owned()
    };
    assert!(prompt(&server, json!({})).ends_with("bot: <think>\n"));
    assert!(prompt(&server, json!({ "chat_template_kwargs": { "enable_thinking": false } })).ends_with("<think>\n</think>"));
    let off = Server::with_template(template, |s| s.thinking = Thinking::Off);
    assert!(prompt(&off, json!({})).ends_with("<think>\n</think>"));
    assert!(prompt(&off, json!({ "chat_template_kwargs": { "enable_thinking": "true" } })).ends_with("<think>\n"));
}

#[test]
fn long_lists_of_probabilities_are_whole() {
    let server = server();
    let body = json!({ "prompt": ["EVER{} SAY{ one two three}", "EVER{} SAY{ four}"], "n_probs": 20, "n_predict": 100, "return_tokens": true });
    let reply = post(server.address, "/completion", &body);
    assert_eq!(reply.header("Transfer-Encoding"), Some("chunked"), "it is made while it is sent");
    for answer in ok(&reply).as_array().expect("two answers") {
        let list = answer["completion_probabilities"].as_array().expect("a list");
        let ids: Vec<&Value> = list.iter().map(|token| &token["id"]).collect();
        assert_eq!(ids, answer["tokens"].as_array().expect("a list").iter().collect::<Vec<_>>());
        assert_eq!(ids.len(), 100);
        assert!(list.iter().all(|token| token["top_logprobs"].as_array().map(Vec::len) == Some(20)));
    }
    let body =
        json!({ "messages": user("EVER{} SAY{ one gap- \"two}"), "n": 2, "logprobs": true, "top_logprobs": 9, "max_tokens": 60 });
    let reply = ok(&post(server.address, "/v1/chat/completions", &body));
    for choice in reply["choices"].as_array().expect("two") {
        let tokens = choice["logprobs"]["content"].as_array().expect("a list");
        let text: String = tokens.iter().map(|token| token["token"].as_str().expect("text")).collect();
        assert_eq!((tokens.len(), text.as_str()), (60, choice["message"]["content"].as_str().expect("text")));
    }
}

#[test]
fn an_answer_without_an_end_ends_where_it_is_given_as_a_whole() {
    let server = Server::start(|s| s.max_tokens = usize::MAX);
    let reply = ok(&post(server.address, "/completion", &json!({ "prompt": "EVER{} SAY{ characteristically internationally}" })));
    let n = reply["content"].as_str().expect("text").len();
    assert!((100_000..300_000).contains(&n), "{n} bytes");
    assert_eq!((&reply["stop_type"], &reply["generation_settings"]["n_predict"]), (&json!("limit"), &json!(-1)));
    server.wait_until(|server| server.n_running() == 0);
    assert_eq!(server.shared.counters.disconnects.get(), 0, "nobody went away");
}
