//! What the network's side of `lowkey serve` takes in memory, whatever clients do: no more than its lines of the plan say. The
//! allocator counts, and as many clients as there may be send what takes most, all at once.
#![cfg(feature = "serve")]

#[path = "server/fake_engine.rs"]
mod fake_engine;

use std::time::Duration;

use fake_engine::Server;
use lowkey::server::http::{Settings, json_bytes};
use lowkey_test_kit::client::{Client, post, request};
use lowkey_test_kit::counting::{Counting, Since, alone};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bodies that become as much as they may.
fn bodies(max_body: usize) -> Vec<(&'static str, String)> {
    let fill = |head: &str, item: &dyn Fn(usize) -> String, tail: &str| {
        let mut body = head.to_owned();
        for i in 0.. {
            let item = item(i);
            if body.len() + item.len() + tail.len() + 2 > max_body {
                break;
            }
            if i > 0 {
                body.push(',');
            }
            body.push_str(&item);
        }
        body + tail
    };
    // A little fewer than may be, of a context of 2,048 tokens.
    let (n_values, n_names) = (8192 - 20, (max_body / 80).max(1 << 10) - 20);
    let list = |n: usize, item: &str| vec![item; n].join(",");
    vec![
        ("/v1/chat/completions", fill(r#"{"messages":["#, &|_| r#"{"role":"user","content":"say something"}"#.into(), "]}")),
        (
            "/v1/chat/completions",
            format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "é <|im_end|> ".repeat(max_body / 14 - 10)),
        ),
        ("/completion", format!(r#"{{"prompt":"{}"}}"#, "a b ".repeat(max_body / 4 - 10))),
        ("/completion", format!(r#"{{"prompt":[{}],"n_predict":1}}"#, list(n_values, "17"))),
        ("/completion", format!(r#"{{"prompt":"SAY{{x}}","x":[{}]}}"#, list(n_values, r#""a""#))),
        (
            "/completion",
            format!(
                r#"{{"prompt":"SAY{{x}}","x":{{{}}}}}"#,
                (0..n_names).map(|i| format!("\"{i}\":0")).collect::<Vec<_>>().join(",")
            ),
        ),
        ("/completion", format!(r#"{{"prompt":"SAY{{x}}","x":[{}]}}"#, list(n_names, r#"{"a":1}"#))),
        (
            "/v1/chat/completions",
            format!(
                r#"{{"messages":[{{"role":"user","content":"x"}}],"chat_template_kwargs":{{"x":[{}]}}}}"#,
                list((max_body / 24).min(n_values), r#""a""#)
            ),
        ),
        (
            "/v1/responses",
            format!(
                r#"{{"input":[{{"type":"function_call","name":"f","arguments":{{{}}}}},{{"role":"user","content":"x"}}]}}"#,
                (0..n_names - 10).map(|i| format!("\"{i}\":\"<|im_end|>\"")).collect::<Vec<_>>().join(",")
            ),
        ),
        ("/tokenize", format!(r#"{{"content":"{}","with_pieces":true}}"#, "1".repeat(max_body / 8))),
    ]
}

#[test]
fn a_flood_of_requests_stays_within_the_plan() {
    let _alone = alone();
    for max_body in [32 << 10, 256 << 10] {
        let mut settings = Settings::default();
        let server = Server::start(|s| {
            (s.max_body, s.n_queue, s.n_connections) = (max_body, 4, 13);
            (s.queue_wait, s.max_tokens) = (Duration::from_millis(400), 256);
            settings = s.clone();
        });
        let template = server.shared.template.as_ref().expect("a template");
        let plan = settings.connection_bytes() + settings.request_bytes(|n| template.plan_bytes(n));
        // One before, for what is made once.
        assert_eq!(
            post(server.address, "/v1/chat/completions", &json!({ "messages": [{ "role": "user", "content": "SAY{x}" }] }))
                .status,
            200
        );
        for (path, body) in bodies(max_body) {
            let since = Since::now();
            {
                // Clients take memory too: each has its text, and nothing is made while they wait.
                let text = request("POST", path, &[], body.as_bytes());
                let mut clients: Vec<Client> = (0..13).map(|_| Client::new(server.address)).collect();
                for client in &mut clients {
                    client.send(&text);
                }
                // Answers, and refusals of those that waited too long.
                std::thread::sleep(Duration::from_millis(700));
                for client in &mut clients {
                    client.is_closed_within(Duration::from_millis(1));
                }
            }
            let taken = since.most();
            let own = 2 * body.len() + 13 * 1024;
            println!("{path} of {} bytes: {taken} of {plan} planned", body.len());
            assert!(taken <= plan + own, "{path}: {taken} bytes of {plan} planned and {own} of the test's own: {}", &body[..60]);
            server.wait_until(|server| server.n_running() == 0);
        }
    }
}

#[test]
fn json_takes_no_more_than_is_planned_for_it() {
    let _alone = alone();
    let max_body = 256 << 10;
    let mut settings = Settings::default();
    let server = Server::start(|s| {
        s.max_body = max_body;
        settings = s.clone();
    });
    let mut most = 0;
    for (path, body) in bodies(max_body).into_iter().filter(|(path, _)| *path == "/completion") {
        let text = request("POST", path, &[], body.as_bytes());
        let mut client = Client::new(server.address);
        let since = Since::now();
        client.send(&text);
        client.is_closed_within(Duration::from_millis(500));
        most = most.max(since.most());
    }
    // With the outbox of a request, the prompt, and an answer.
    let plan = json_bytes(&settings) + (1 << 20);
    assert!(most <= plan, "{most} bytes of {plan}");
    assert!(most > plan / 8, "{most} bytes of {plan}: the bodies do not take what they were made to take");
}

#[test]
fn nothing_is_left_behind() {
    let _alone = alone();
    let server = Server::start(|_| ());
    let round = || {
        for body in
            [json!({ "prompt": "SAY{one two}" }), json!({ "prompt": "SAY{one two}", "stream": true }), json!({ "prompt": 3 })]
        {
            post(server.address, "/completion", &body);
        }
        let mut client = Client::new(server.address);
        client.send(&request("POST", "/completion", &[], json!({ "prompt": "EVER{}" }).to_string().as_bytes()));
        server.wait_until(|server| server.n_running() == 1);
        drop(client);
        server.wait_until(|server| server.n_running() == 0);
        std::thread::sleep(Duration::from_millis(20));
    };
    (0..3).for_each(|_| round());
    let since = Since::now();
    (0..20).for_each(|_| round());
    assert!(since.kept() < 4 << 10, "{} bytes are left of twenty rounds", since.kept());
}
