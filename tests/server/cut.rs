//! Calls of tools that do not come to their end: no client is told of one as of a call that may be run. In place of the engine a
//! thread says what prompts tell it to.

use crate::fake_engine::Server;
use crate::tools::{CALL, IN_WORDS, asks, events, hermes, ok, tool};
use lowkey_test_kit::client::post;
use serde_json::{Value, json};

/// What ends an answer within a call, and the word for that end.
struct Cut {
    n_tokens: Option<usize>,
    stop: Option<&'static str>,
    reason: &'static str,
}

/// A call behind a sentence, cut by its length and by a text.
fn cuts(server: &Server, written: &str) -> [Cut; 2] {
    let until = written.find("U{").expect("a value");
    let n_tokens = server.shared.tokenizer.encode(&written[..until], false, false).expect("ids").len();
    [Cut { n_tokens: Some(n_tokens), stop: None, reason: "length" }, Cut { n_tokens: None, stop: Some("}C"), reason: "stop" }]
}

fn both() -> [(Server, String); 2] {
    [(hermes(), CALL), (Server::start(|_| ()), IN_WORDS)].map(|(server, call)| (server, format!("Let me see.\n{call}")))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn ollamas_clients_are_not_told_of_half_a_call() {
    for (server, written) in both() {
        for cut in cuts(&server, &written) {
            let options = json!({ "num_predict": cut.n_tokens, "stop": cut.stop });
            let mut body = json!({ "messages": asks(&written), "tools": [tool()], "options": options, "stream": false });
            let answer = ok(&post(server.address, "/api/chat", &body));
            let message = &answer["message"];
            assert!(message.get("tool_calls").is_none(), "{answer}");
            assert_eq!((&message["content"], &answer["done_reason"]), (&json!("Let me see.\n"), &json!(cut.reason)), "{answer}");
            body["stream"] = true.into();
            let lines = lines(post(server.address, "/api/chat", &body).text());
            assert!(lines.iter().all(|line| line["message"].get("tool_calls").is_none()), "{lines:?}");
            let content: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
            assert_eq!((content.as_str(), &lines.last().expect("a line")["done_reason"]), ("Let me see.\n", &json!(cut.reason)));
        }
    }
    // The calls before it are whole.
    let server = Server::start(|_| ());
    let body = json!({
        "messages": asks(&format!("{IN_WORDS}\n<call>now(zone: \"CET\")")),
        "tools": [tool()],
        "options": { "stop": ["ET"] },
        "stream": false,
    });
    let answer = ok(&post(server.address, "/api/chat", &body));
    let calls = answer["message"]["tool_calls"].as_array().expect("calls");
    assert_eq!((calls.len(), &calls[0]["function"]["arguments"]), (1, &json!({ "zone": "U{}C" })), "{answer}");
}

#[test]
fn a_chat_does_not_end_with_calls_where_one_has_no_end() {
    for (server, written) in both() {
        let reasons = |cut: &Cut| {
            let mut body = json!({ "messages": asks(&written), "tools": [tool()], "max_tokens": cut.n_tokens, "stop": cut.stop });
            let whole = ok(&post(server.address, "/v1/chat/completions", &body))["choices"][0]["finish_reason"].take();
            body["stream"] = true.into();
            let events = events(post(server.address, "/v1/chat/completions", &body).text());
            let told = events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect::<Vec<_>>();
            assert_eq!(told, [whole.as_str().expect("a word")]);
            whole
        };
        for cut in cuts(&server, &written) {
            assert_eq!(reasons(&cut), cut.reason, "{written}");
        }
        // What stands behind the arguments is no part of them.
        assert_eq!(reasons(&Cut { n_tokens: None, stop: Some("\n</tool_call>"), reason: "stop" }), "tool_calls");
    }
}

#[test]
fn items_of_a_response_that_was_cut_are_incomplete() {
    let function = json!({ "type": "function", "name": "now", "parameters": { "type": "object" } });
    let response = |server: &Server, said: &str, n_tokens: Option<usize>| {
        let mut body = json!({ "input": format!("SAY{{{said}}}"), "tools": [function], "max_output_tokens": n_tokens });
        let whole = ok(&post(server.address, "/v1/responses", &body));
        body["stream"] = true.into();
        let events = events(post(server.address, "/v1/responses", &body).text());
        let kinds: Vec<String> = events.iter().filter_map(|event| event["type"].as_str()).map(str::to_owned).collect();
        let last = &events.last().expect("an event")["response"];
        let status = whole["status"].as_str().expect("a word");
        assert_eq!(kinds.last().map(String::as_str), Some("response.completed"));
        let statuses = |response: &Value| -> Vec<String> {
            let items = response["output"].as_array().expect("items");
            items.iter().map(|item| item["status"].as_str().expect("a word").to_owned()).collect()
        };
        let done: Vec<String> = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.done")
            .map(|event| event["item"]["status"].as_str().expect("a word").to_owned())
            .collect();
        assert_eq!((&last["status"], statuses(last), done), (&whole["status"], statuses(&whole), statuses(&whole)));
        (status.to_owned(), statuses(&whole), kinds)
    };
    for (server, written) in both() {
        let [cut, _] = cuts(&server, &written);
        let (status, items, kinds) = response(&server, &written, cut.n_tokens);
        assert_eq!((status.as_str(), items), ("incomplete", vec!["completed".to_owned(), "incomplete".to_owned()]), "{written}");
        assert!(!kinds.contains(&"response.function_call_arguments.done".to_owned()), "{kinds:?}");
        // A message, and a thought.
        for (said, n_tokens, n_items) in [("Let me see.", 3, 1), ("<think>Let me see", 6, 2)] {
            let (status, items, _) = response(&server, said, Some(n_tokens));
            assert_eq!((status.as_str(), items), ("incomplete", vec!["incomplete".to_owned(); n_items]), "{said}");
        }
        let (status, items, _) = response(&server, &written, None);
        assert_eq!((status.as_str(), items), ("completed", vec!["completed".to_owned(); 2]), "{written}");
    }
}
