//! The program with the demo model under schemas, grammars and forced calls: what it says obeys, and its memory stays in the plan.
#![cfg(feature = "constraint")]

use lowkey_test_kit::{demo_model, lowkey};
use serde_json::{Value, json};

use crate::whole::Program;
use lowkey_test_kit::client::{get, post};

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn answers_obey_schemas_grammars_and_tools() {
    let program = Program::start(&["--streams", "2", "--kv-budget", "16MiB", "--grammar-memory", "8MiB"]);
    let ask =
        json!({ "messages": user("Which city is the capital of France, and how many people live there?"), "max_tokens": 80 });
    let people = json!({ "type": "integer", "minimum": 1, "maximum": 99_999_999 });
    let schema = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "maxLength": 30 }, "people": people, "isLarge": { "type": "boolean" } },
        "required": ["city", "people", "isLarge"],
        "additionalProperties": false,
    });
    let format = json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "city", "schema": schema } } });
    let answer = program.chat(with(&ask, format.clone()));
    let choice = &answer["choices"][0];
    let value: Value = serde_json::from_str(choice["message"]["content"].as_str().expect("content")).expect("JSON");
    println!("{value}");
    assert!(
        value["city"].is_string() && value["people"].as_u64().is_some_and(|n| n > 0) && value["isLarge"].is_boolean(),
        "{value}"
    );
    assert_eq!((value.as_object().map(|map| map.len()), &choice["finish_reason"]), (Some(3), &json!("stop")));
    let cut = program.chat(with(&with(&ask, format), json!({ "max_tokens": 4 })));
    assert_eq!(cut["choices"][0]["finish_reason"], "length");

    // Several streams, each under its own.
    let both = std::thread::scope(|scope| {
        let asks =
            ["root ::= \"yes\" | \"no\"", "root ::= [0-9]{3} \"!\""].map(|grammar| with(&ask, json!({ "grammar": grammar })));
        asks.map(|body| scope.spawn(|| program.chat(body))).map(|thread| thread.join().expect("an answer"))
    });
    let texts = both.each_ref().map(|answer| answer["choices"][0]["message"]["content"].as_str().expect("content"));
    assert!(["yes", "no"].contains(&texts[0]), "{texts:?}");
    assert!(texts[1].len() == 4 && texts[1].ends_with('!') && texts[1][..3].bytes().all(|b| b.is_ascii_digit()), "{texts:?}");
    assert!(both.iter().all(|answer| answer["choices"][0]["finish_reason"] == "stop"));

    let light = json!({ "type": "function", "function": { "name": "set_light", "description": "Turns a light on or off", "parameters": {
        "type": "object",
        "properties": { "room": { "enum": ["kitchen", "hall"] }, "on": { "type": "boolean" } },
        "required": ["room", "on"],
    } } });
    let time = json!({ "type": "function", "function": { "name": "now" } });
    let tools = json!({ "messages": user("Turn on the light in the kitchen."), "tools": [time, light], "max_tokens": 80 });
    let named =
        json!({ "tool_choice": { "type": "function", "function": { "name": "set_light" } }, "parallel_tool_calls": false });
    let answer = program.chat(with(&tools, named));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null), "{answer}");
    let call = &choice["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().expect("a string")).expect("JSON");
    println!("{call}");
    assert_eq!(call["name"], "set_light");
    assert!(
        ["kitchen", "hall"].contains(&arguments["room"].as_str().unwrap_or_default()) && arguments["on"].is_boolean(),
        "{arguments}"
    );
    // As templates write it, without other white space.
    let written = format!("{{\"room\": {}, \"on\": {}}}", arguments["room"], arguments["on"]);
    assert_eq!(call["arguments"], written);
    let any = program.chat(with(&tools, json!({ "tool_choice": "required", "parallel_tool_calls": false })));
    let name = &any["choices"][0]["message"]["tool_calls"][0]["function"]["name"];
    assert!(name == "now" || name == "set_light", "{any}");
    // Left to itself it may say anything, and what it calls is among the tools.
    let free = program.chat(tools);
    let calls = free["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
    assert!(
        calls.iter().all(|call| ["now", "set_light"].contains(&call["function"]["name"].as_str().unwrap_or_default())),
        "{free}"
    );

    let body = json!({ "model": "x", "messages": user("Name a fruit."), "format": schema, "stream": false, "options": { "num_predict": 80 } });
    let reply = post(program.address, "/api/chat", &body).json();
    assert!(serde_json::from_str::<Value>(reply["message"]["content"].as_str().expect("content")).is_ok(), "{reply}");

    for (more, param, word) in [
        (json!({ "json_schema": { "type": "array", "uniqueItems": true } }), "json_schema", "uniqueItems"),
        (json!({ "response_format": { "type": "json_object", "schema": { "not": {} } } }), "response_format", "not"),
        (json!({ "grammar": "root ::= a" }), "grammar", "line 1"),
        (json!({ "lark": "start: b" }), "lark", "b"),
    ] {
        let reply = post(program.address, "/v1/chat/completions", &with(&ask, more));
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, &error["code"], &error["param"]),
            (400, &json!("invalid_grammar"), &json!(param)),
            "{}",
            reply.text()
        );
        assert!(error["message"].as_str().is_some_and(|message| message.contains(word)), "{error}");
    }
    let metrics = get(program.address, "/metrics");
    let plan: u64 =
        metrics.text().lines().find_map(|line| line.strip_prefix("lowkey_memory_plan_bytes ")?.parse().ok()).expect("a plan");
    println!("{} of {plan}", program.rss_anon());
    assert!(program.rss_anon() <= plan, "{} of {plan} planned; {:?}", program.rss_anon(), program.said);
    assert_eq!(program.stop(), 0);
}

#[test]
fn a_schema_that_nothing_can_follow_is_named_and_a_form_is_repeated() {
    let program = Program::start(&["--kv-budget", "8MiB", "--grammar-memory", "8MiB"]);
    let tool = |name: &str, needed: &str| {
        let parameters = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": [needed] });
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
    };
    let body = json!({ "messages": user("Hi"), "tools": [tool("f", "a"), tool("g", "b")] });
    let refused = |path: &str, body: &Value, param: &str| {
        let reply = post(program.address, path, body);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"], &error["param"]), (400, &json!("invalid_grammar"), &json!(param)), "{error}");
    };
    refused("/v1/chat/completions", &body, "tools[1].function.parameters");
    let flat = |tool: Value| with(&json!({ "type": "function" }), tool["function"].clone());
    let tools = json!([flat(tool("f", "a")), flat(tool("g", "b"))]);
    refused("/v1/responses", &json!({ "input": "Hi", "tools": tools }), "tools[1].parameters");
    let format = json!({ "type": "json_schema", "name": "n", "schema": { "not": {} } });
    refused("/v1/responses", &json!({ "input": "Hi", "text": { "format": format } }), "text.format");
    let reply = post(program.address, "/api/chat", &json!({ "messages": user("Hi"), "format": { "not": {} } }));
    assert!(
        reply.status == 400 && reply.json()["error"].as_str().is_some_and(|e| e.starts_with("`format`: ")),
        "{}",
        reply.text()
    );

    let format = json!({ "type": "json_schema", "name": "n", "schema": { "enum": ["yes", "no"] }, "strict": true });
    let body = json!({ "input": "Is it?", "max_output_tokens": 8, "text": { "format": format } });
    let answer = post(program.address, "/v1/responses", &body).json();
    assert_eq!(answer["text"]["format"], format, "{answer}");
    // What arguments may be is an object, whatever else a schema allows.
    for parameters in
        [json!({}), json!({ "type": ["object", "string"] }), json!({ "anyOf": [{ "type": "string" }, { "type": "object" }] })]
    {
        let tool = json!({ "type": "function", "function": { "name": "note", "parameters": parameters } });
        let body = json!({ "messages": user("Note: milk."), "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 100 });
        let answer = program.chat(with(&body, json!({ "logit_bias": { "\"": 20 } })));
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        assert!(call["arguments"].as_str().is_some_and(|arguments| arguments.starts_with('{')), "{answer}");
    }
    assert_eq!(program.stop(), 0);
}

#[test]
fn run_obeys_a_grammar_and_a_schema_within_its_plan() {
    let file = std::env::temp_dir().join(format!("lowkey-grammar-{}.gbnf", std::process::id()));
    std::fs::write(&file, "root ::= (\"left\" | \"right\") \".\"\n").expect("a file");
    let run = |flags: &[&str]| {
        let mut command = lowkey!();
        command.args([
            "run",
            "--temp",
            "0",
            "--kv-budget",
            "4MiB",
            "--chat",
            "-p",
            "Where is the door?",
            "--json",
            "-n",
            "60",
            "-m",
        ]);
        command.arg(demo_model()).args(flags).output().expect("the program")
    };
    let answer = |flags: &[&str]| -> Value { serde_json::from_slice(&run(flags).stdout).expect("JSON") };
    let said = answer(&["--grammar", file.to_str().expect("a path")]);
    assert!(["left.", "right."].contains(&said["text"].as_str().expect("text")) && said["stop"] == "eos", "{said}");
    let memory = &said["memory"];
    assert!(memory["rss_anon_peak_bytes"].as_u64() <= memory["plan_bytes"].as_u64(), "{memory}");
    let said = answer(&["--json-schema", r#"{"type": "array", "items": {"enum": ["door", "wall"]}, "maxItems": 3}"#]);
    let value: Value = serde_json::from_str(said["text"].as_str().expect("text")).expect("JSON");
    assert!(value.as_array().is_some_and(|items| items.iter().all(|item| item == "door" || item == "wall")), "{value}");
    std::fs::write(&file, "root ::= \"a\"\nb ::= (\n").expect("a file");
    let out = run(&["--grammar", file.to_str().expect("a path")]);
    let error = String::from_utf8(out.stderr).expect("text");
    assert!(out.status.code() == Some(2) && error.contains("--grammar") && error.contains("rule 'b'"), "{error}");
    let out = run(&["--json-schema", r#"{"type": "string", "format": "colour"}"#]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("`format`"), "{out:?}");
    std::fs::remove_file(file).expect("it is there");
}
