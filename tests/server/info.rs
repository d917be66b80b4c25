//! What `lowkey serve` tells of itself: its model, its streams and their arenas, its metrics; and texts as tokens. In place of the
//! engine a thread says what prompts tell it to.

use crate::fake_engine::Server;
use lowkey_test_kit::client::{Client, Reply, get, post, request};
use serde_json::{Value, json};

#[track_caller]
fn ok(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn texts_and_tokens_are_turned_into_each_other() {
    let server = Server::start(|_| ());
    let ids = ok(&post(server.address, "/tokenize", &json!({ "content": "What is 媽?" })))["tokens"].clone();
    assert_eq!(ok(&post(server.address, "/detokenize", &json!({ "tokens": ids })))["content"], "What is 媽?");
    let pieces = ok(&post(server.address, "/tokenize", &json!({ "content": "媽🤗", "with_pieces": true })))["tokens"].clone();
    let bytes: Vec<u8> = pieces
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|piece| match &piece["piece"] {
            Value::String(text) => text.as_bytes().to_vec(),
            bytes => bytes.as_array().expect("bytes").iter().map(|byte| byte.as_u64().expect("a byte") as u8).collect(),
        })
        .collect();
    assert_eq!(String::from_utf8(bytes).expect("text"), "媽🤗");
    assert!(pieces.as_array().expect("a list").iter().any(|piece| piece["piece"].is_array()), "a token is no whole character");
    let special = |parse: bool| {
        ok(&post(server.address, "/tokenize", &json!({ "content": "<|im_end|>", "parse_special": parse })))["tokens"]
            .as_array()
            .map(Vec::len)
    };
    assert_eq!(special(true), Some(1));
    assert!(special(false) > Some(1));
    for bad in [json!({}), json!({ "content": 3 }), json!({ "content": "x", "with_pieces": "y" })] {
        assert_eq!(post(server.address, "/tokenize", &bad).status, 400, "{bad}");
    }
    assert_eq!(post(server.address, "/detokenize", &json!({ "tokens": [1, 99_999_999] })).status, 400);
}

#[test]
fn models_and_properties_are_told() {
    let server = Server::start(|s| (s.n_streams, s.n_ctx) = (2, 256));
    for path in ["/models", "/v1/models"] {
        let list = ok(&get(server.address, path));
        assert_eq!(list["data"].as_array().map(Vec::len), Some(1));
        let model = &list["data"][0];
        assert_eq!((&model["id"], &model["aliases"]), (&json!("another"), &json!(["another", "demo"])));
        assert_eq!(
            (&model["owned_by"], &model["tags"], &model["meta"]["n_embd"]),
            (&json!("lowkey"), &json!(["small", "chat"]), &json!(576))
        );
    }
    assert_eq!(ok(&get(server.address, "/v1/models/demo"))["id"], "another");
    assert_eq!(get(server.address, "/v1/models/none").status, 404);
    let props = ok(&get(server.address, "/props"));
    assert!(props["model_path"].as_str().is_some_and(|path| path.contains(".gguf")));
    assert_eq!((&props["total_slots"], &props["default_generation_settings"]["n_ctx"]), (&json!(2), &json!(256)));
    assert_eq!(props["default_generation_settings"]["params"]["seed"], 42);
}

#[test]
fn slots_are_told_and_errands_are_run() {
    let server = Server::start(|s| (s.n_streams, s.sessions) = (2, true));
    let slots = ok(&get(server.address, "/slots"));
    assert_eq!(slots.as_array().map(Vec::len), Some(2));
    assert_eq!((&slots[1]["id"], &slots[1]["is_processing"]), (&json!(1), &json!(false)));
    assert_eq!(slots[0]["next_token"][0], json!({ "has_next_token": false, "n_remain": -1, "n_decoded": 0 }));
    assert!(slots[0].get("params").is_none());
    let act = |path: &str, name: &str| post(server.address, path, &json!({ "filename": name }));
    let saved = ok(&act("/slots/1?action=save", "talk.1"));
    assert_eq!((&saved["id_slot"], &saved["filename"], &saved["n_written"]), (&json!(1), &json!("talk.1"), &json!(100)));
    assert_eq!(ok(&act("/slots/0?action=restore", "talk.1"))["n_restored"], 7);
    assert_eq!(ok(&post(server.address, "/slots/0?action=erase", &json!({})))["n_erased"], 0);
    assert_eq!(act("/slots/0?action=restore", "none").status, 400);
    for (path, name) in [
        ("/slots/2?action=save", "x"),
        ("/slots/x?action=save", "x"),
        ("/slots/0", "x"),
        ("/slots/0?action=drop", "x"),
        ("/slots/0?action=save", "../x"),
        ("/slots/0?action=save", ".x"),
        ("/slots/0?action=save", ""),
    ] {
        assert_eq!(act(path, name).status, 400, "{path} {name}");
    }
    let without = server_with_busy_stream();
    assert_eq!(post(without.address, "/slots/0?action=save", &json!({ "filename": "x" })).status, 501);
    assert_eq!(get(without.address, "/slots?fail_on_no_slot=1").status, 503);
    assert_eq!(ok(&get(without.address, "/slots"))[0]["is_processing"], true);
}

/// Without sessions, and its only stream is at work for as long as the test lasts.
fn server_with_busy_stream() -> Server {
    let server = Server::start(|s| s.max_tokens = usize::MAX);
    let address = server.address;
    std::thread::spawn(move || {
        let mut client = Client::new(address);
        client.send(&request("POST", "/completion", &[], json!({ "prompt": "EVER{} PACE{50}" }).to_string().as_bytes()));
        let _ = client.try_reply();
    });
    server.wait_until(|server| server.n_running() == 1);
    server
}

#[test]
fn metrics_are_of_two_families_with_the_same_numbers() {
    let server = Server::start(|_| ());
    let (mut n_read, mut n_cached, mut n_said) = (0, 0, 0);
    for _ in 0..2 {
        let timings = ok(&post(
            server.address,
            "/completion",
            &json!({ "prompt": "SAY{one two} the quick brown fox", "n_predict": 4 }),
        ))["timings"]
            .clone();
        n_read += timings["prompt_n"].as_u64().expect("a number");
        n_cached += timings["cache_n"].as_u64().expect("a number");
        n_said += timings["predicted_n"].as_u64().expect("a number");
    }
    assert_eq!(post(server.address, "/v1/chat/completions", &json!({})).status, 400);
    // A stream is given back after its answer has gone out.
    server.wait_until(|server| server.n_running() == 0);
    let reply = get(server.address, "/metrics");
    assert!(reply.header("Process-Start-Time-Unix").is_some_and(|time| time.parse::<u64>().is_ok()));
    assert_eq!(reply.header("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.text();
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.parse().expect("a number")
    };
    for (theirs, ours, want) in [
        ("prompt_tokens_total", "prompt_tokens_total", n_read),
        ("prompt_tokens_cached_total", "prompt_tokens_cached_total", n_cached),
        ("tokens_predicted_total", "generated_tokens_total", n_said),
    ] {
        assert_eq!((value(&format!("llamacpp:{theirs}")), value(&format!("lowkey_{ours}"))), (want as f64, want as f64));
    }
    assert!(n_cached > 0 && value("llamacpp:n_decode_total") > 0.0);
    assert_eq!(value("llamacpp:requests_processing"), 0.0);
    assert_eq!(value("lowkey_requests_total{endpoint=\"completion\",status=\"200\"}"), 2.0);
    assert_eq!(value("lowkey_requests_total{endpoint=\"chat\",status=\"400\"}"), 1.0);
    assert_eq!(value("lowkey_first_token_seconds_count"), 2.0);
    assert_eq!(value("lowkey_memory_plan_bytes"), (1 << 20) as f64);
    assert!(value("lowkey_memory_anon_at_ready_bytes") > 0.0);
    // Every name once with its kind and help, and every line has them.
    let mut kinds = std::collections::BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a kind");
            assert!(kinds.insert(name, kind).is_none() && text.contains(&format!("# HELP {name} ")), "{name}");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().expect("a name");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|base| kinds.contains_key(base));
            assert!(kinds.contains_key(base.unwrap_or(name)), "{line}");
        }
    }
}

#[test]
fn an_arena_is_shown_once_or_for_as_long_as_somebody_watches() {
    let server = Server::start(|_| ());
    let view = ok(&get(server.address, "/lowkey/arena?stream=0"));
    assert_eq!((&view["n_slot"], &view["heads"][1]["layer"], &view["heads"][0]["kept"][0]), (&json!(1000), &json!(1), &json!(3)));
    assert_eq!(get(server.address, "/lowkey/arena?stream=1").status, 400);
    assert_eq!(get(server.address, "/lowkey/arena?stream=x").status, 400);
    let watch = || {
        let mut client = Client::new(server.address);
        client.send(&request("GET", "/lowkey/events", &[], b""));
        assert_eq!(client.head().expect("a head").status, 200);
        client
    };
    let (mut first, second) = (watch(), watch());
    assert_eq!(get(server.address, "/lowkey/events").status, 503, "two watch already");
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        assert!(first.chunk().expect("an event").starts_with(b"data: {"));
    }
    assert!((600..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    drop((first, second));
    server.wait_until(|server| {
        let mut client = Client::new(server.address);
        client.send(&request("GET", "/lowkey/events", &[], b""));
        client.head().expect("a head").status == 200
    });
}
