//! The network's side of `lowkey serve`, below the APIs: what clients may send and how slowly, who may ask, how many at once, and
//! that whoever goes away is noticed. In place of the engine a thread says what prompts tell it to.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::fake_engine::Server;
use lowkey_test_kit::client::{Client, Reply, get, post, request};
use serde_json::{Value, json};

const MS: fn(u64) -> Duration = Duration::from_millis;
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn server() -> Server {
    Server::start(|_| ())
}

/// A request on a connection of its own.
fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut client = Client::new(server.address);
    client.send(&request(method, path, headers, body.as_bytes()));
    client.reply()
}

#[track_caller]
fn refused(reply: &Reply, status: u16, kind: &str) -> Value {
    assert_eq!(reply.status, status, "{}", reply.text());
    assert_eq!(reply.header("Content-Type"), Some("application/json; charset=utf-8"));
    let error = reply.json()["error"].clone();
    assert_eq!(error["type"], kind, "{error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()) && error.get("param").is_some(), "{error}");
    error
}

#[test]
fn every_answer_says_what_it_is() {
    let server = server();
    for (path, kind) in [
        ("/health", "application/json; charset=utf-8"),
        ("/", "text/html; charset=utf-8"),
        ("/nothing", "application/json; charset=utf-8"),
    ] {
        let reply = get(server.address, path);
        assert_eq!(reply.header("Content-Type"), Some(kind), "{path}");
        assert_eq!(reply.header("Cache-Control"), Some("no-store"));
        assert_eq!(reply.header("Server"), Some("lowkey"));
        assert!(reply.header("X-Request-Id").is_some_and(|id| id.len() > 20));
        assert_eq!(reply.header("Access-Control-Allow-Origin"), None);
    }
    assert_eq!(get(server.address, "/health").json(), json!({ "status": "ok" }));
    assert_eq!(get(server.address, "/v1/health").status, 200);
    let page = get(server.address, "/");
    assert!(page.text().contains("<!doctype html>") && page.header("Content-Security-Policy").is_some());
}

#[test]
fn paths_and_methods_that_are_not_there_are_refused() {
    let server = server();
    refused(&get(server.address, "/nothing"), 404, "not_found_error");
    refused(&get(server.address, "/v1/chat/completions"), 405, "invalid_request_error");
    refused(&ask(&server, "DELETE", "/slots", &[], ""), 405, "invalid_request_error");
    refused(&post(server.address, "/v1/embeddings", &json!({})), 501, "not_supported_error");
    let off = Server::start(|s| (s.metrics, s.slots, s.ui, s.ollama) = (false, false, false, false));
    for path in ["/metrics", "/slots"] {
        refused(&get(off.address, path), 501, "not_supported_error");
    }
    refused(&get(off.address, "/"), 404, "not_found_error");
    let ollama = get(off.address, "/api/tags");
    assert!(ollama.status == 501 && ollama.json()["error"].is_string(), "as Ollama says it");
    assert_eq!(post(server.address, "/api/pull", &json!({})).status, 501);
}

#[test]
fn connections_are_kept_and_closed_as_asked() {
    let server = server();
    let mut client = Client::new(server.address);
    for _ in 0..3 {
        client.send(&request("GET", "/health", &[], b""));
        assert_eq!(client.reply().status, 200);
    }
    // Two at once are answered one after the other.
    let two = request("GET", "/health", &[], b"").repeat(2);
    client.send(&two);
    assert_eq!([client.reply().status, client.reply().status], [200, 200]);
    client.send(&request("GET", "/health", &[("Connection", "close")], b""));
    assert_eq!(client.reply().status, 200);
    assert!(client.is_closed_within(5 * MS(2000)));
    let mut old = Client::new(server.address);
    old.send(b"GET /health HTTP/1.0\r\n\r\n");
    assert_eq!(old.reply().status, 200);
    assert!(old.is_closed_within(5 * MS(2000)));
}

#[test]
fn bad_http_is_refused_and_the_server_goes_on() {
    let server = server();
    for bytes in [
        &b"nonsense\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n bad\x00header: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: abc\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET http://evil/ HTTP/9.9\r\n\r\n",
    ] {
        let mut client = Client::new(server.address);
        client.send(bytes);
        let _ = client.socket().shutdown(Shutdown::Write);
        let reply = client.try_reply();
        assert!(reply.as_ref().is_none_or(|reply| reply.status >= 400), "{:?}: {reply:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(get(server.address, "/health").status, 200);
}

#[test]
fn heads_have_a_limit() {
    let server = server();
    let long = "x".repeat(15 << 10);
    assert_eq!(ask(&server, "GET", "/health", &[("X-Long", &long)], "").status, 200);
    let long = "x".repeat(17 << 10);
    let mut client = Client::new(server.address);
    client.send(&request("GET", "/health", &[("X-Long", &long)], b""));
    assert_eq!(client.try_reply().map(|reply| reply.status), Some(431));
    let many: Vec<(String, String)> = (0..100).map(|i| (format!("X-{i}"), "x".into())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut client = Client::new(server.address);
    client.send(&request("GET", "/health", &many, b""));
    assert_eq!(client.try_reply().map(|reply| reply.status), Some(431));
}

#[test]
fn bodies_have_a_limit_that_holds_before_they_are_read() {
    let server = Server::start(|s| s.max_body = 64 << 10);
    let body = |n: usize| json!({ "content": "a".repeat(n) }).to_string();
    let fits = body((64 << 10) - 20);
    assert_eq!(ask(&server, "POST", "/tokenize", &[JSON], &fits).status, 200);
    refused(&ask(&server, "POST", "/tokenize", &[JSON], &body(65 << 10)), 413, "invalid_request_error");
    // Unread: the answer comes to the head alone, and a client that asks first is not told to send it.
    let mut client = Client::new(server.address);
    client.send(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.reply().status, 413);
    assert!(client.is_closed_within(5 * MS(3000)));
    // One that sends it all first gets the answer, and no reset.
    let large = body(600 << 10);
    let mut client = Client::new(server.address);
    client.send(&request("POST", "/tokenize", &[JSON], large.as_bytes()));
    assert_eq!(client.reply().status, 413);
    // In chunks there is no length: it is counted.
    let mut client = Client::new(server.address);
    client.send(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..10 {
        client.send(format!("4000\r\n{}\r\n", "a".repeat(0x4000)).as_bytes());
    }
    assert_eq!(client.reply().status, 413);
}

#[test]
fn bodies_in_chunks_are_read_and_a_client_that_asks_first_is_told_to_send() {
    let server = server();
    let mut client = Client::new(server.address);
    client.send(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in [r#"{"conte"#, r#"nt":"Hello"#, r#" there"}"#] {
        client.send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    let reply = client.reply();
    assert_eq!(reply.json()["tokens"].as_array().map(Vec::len), Some(2), "{}", reply.text());
    let mut client = Client::new(server.address);
    client.send(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 16\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().map(|head| head.status), Some(100));
    client.send(br#"{"content":"Hi"}"#);
    assert_eq!(client.reply().status, 200);
}

#[test]
fn bodies_that_say_nothing_are_refused_by_what_is_wrong() {
    let server = server();
    let error = |body: &str| refused(&ask(&server, "POST", "/v1/chat/completions", &[JSON], body), 400, "invalid_request_error");
    assert_eq!(error("")["code"], "invalid_json");
    assert_eq!(error("{")["code"], "invalid_json");
    assert_eq!(error("[]")["code"], "invalid_json");
    assert_eq!(error(&"[".repeat(3000))["code"], "invalid_json");
    let named = error(r#"{"messages": 3}"#);
    assert_eq!((&named["code"], &named["param"]), (&json!("invalid_value"), &json!("messages")));
    let mut client = Client::new(server.address);
    client.send(&request("POST", "/tokenize", &[JSON], b"{\"content\":\"\xff\xfe\"}"));
    assert_eq!(client.reply().json()["error"]["code"], "invalid_json");
    // What a client says is quoted in part, and escaped.
    let long = format!("<script>\u{1b}[2J{}", "x".repeat(5000));
    let reply = post(server.address, "/v1/chat/completions", &json!({ "messages": [{ "role": long, "content": "" }] }));
    let message = refused(&reply, 400, "invalid_request_error")["message"].as_str().expect("text").to_owned();
    assert!(message.len() < 500 && message.contains("\\u{1b}") && !message.contains('\u{1b}'), "{message}");
    let reply = get(server.address, &format!("/{}", "y".repeat(5000)));
    assert!(refused(&reply, 404, "not_found_error")["message"].as_str().expect("text").len() < 300);
}

#[test]
fn slow_heads_and_bodies_and_idle_connections_are_ended() {
    let server = Server::start(|s| (s.io_timeout, s.keep_alive) = (MS(300), MS(300)));
    // A head that comes byte by byte, each in time.
    let (mut client, begun) = (Client::new(server.address), Instant::now());
    for byte in b"GET /health HTTP/1.1\r\nX: " {
        client.send(&[*byte]);
        std::thread::sleep(MS(25));
    }
    assert_eq!(client.try_reply().map(|reply| reply.status), Some(408));
    assert!(client.is_closed_within(5 * MS(2000)) && begun.elapsed() < 5 * MS(5000));
    // One that never comes.
    assert!(Client::new(server.address).is_closed_within(5 * MS(3000)));
    // A body that comes too slowly.
    let mut client = Client::new(server.address);
    client.send(b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{");
    refused(&client.reply(), 408, "invalid_request_error");
    assert!(client.is_closed_within(5 * MS(3000)));
    // Idle between requests, which is no error.
    let mut client = Client::new(server.address);
    client.send(&request("GET", "/health", &[], b""));
    assert_eq!(client.reply().status, 200);
    let begun = Instant::now();
    assert!(client.is_closed_within(5 * MS(3000)) && begun.elapsed() > MS(150), "{:?}", begun.elapsed());
    // An answer that takes longer than either is no idleness.
    let reply = post(server.address, "/completion", &json!({ "prompt": "WAIT{1000} SAY{ done}" }));
    assert_eq!((reply.status, &reply.json()["content"]), (200, &json!(" done")));
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let server = Server::start(|s| (s.io_timeout, s.max_tokens) = (MS(500), usize::MAX));
    let mut client = Client::new(server.address);
    let body = json!({ "prompt": "EVER{} SAY{ words words words}", "stream": true, "n_probs": 20 }).to_string();
    client.send(&request("POST", "/completion", &[JSON], body.as_bytes()));
    assert_eq!(client.head().map(|head| head.status), Some(200));
    server.wait_until(|server| server.n_running() == 1);
    // All buffers between the two are full, then half a second.
    server.wait_until(|server| server.n_running() == 0);
    assert_eq!(server.shared.counters.disconnects.get(), 1);
}

#[test]
fn clients_that_go_are_noticed_in_every_state() {
    let server = Server::start(|s| (s.n_queue, s.max_tokens) = (2, usize::MAX));
    for (stream, prompt) in [
        (false, "EVER{} PACE{20}"),
        (true, "EVER{} PACE{20}"),
        // While the prompt is read, and nothing can be sent.
        (false, "WAIT{60000}"),
        (true, "WAIT{60000}"),
    ] {
        let before = server.shared.counters.disconnects.get();
        let mut client = Client::new(server.address);
        let body = json!({ "prompt": prompt, "stream": stream }).to_string();
        client.send(&request("POST", "/completion", &[JSON], body.as_bytes()));
        server.wait_until(|server| server.n_running() == 1);
        drop(client);
        let took = server.wait_until(|server| server.n_running() == 0);
        assert!(took < 5 * MS(1500), "{prompt}, stream {stream}: {took:?}");
        assert_eq!(server.shared.counters.disconnects.get(), before + 1);
    }
    // In the queue too, and the one that runs is not touched.
    let running = std::thread::spawn({
        let address = server.address;
        move || post(address, "/completion", &json!({ "prompt": "WAIT{800} SAY{ still here}" }))
    });
    server.wait_until(|server| server.n_running() == 1);
    let mut waiting = Client::new(server.address);
    waiting.send(&request("POST", "/completion", &[JSON], json!({ "prompt": "Hi" }).to_string().as_bytes()));
    server.wait_until(|server| server.shared.desk.n_waiting_and_running() == (1, 1));
    drop(waiting);
    server.wait_until(|server| server.shared.desk.n_waiting_and_running().0 == 0);
    assert_eq!(running.join().expect("a reply").json()["content"], " still here");
}

#[test]
fn more_requests_than_may_wait_are_refused_and_those_that_wait_too_long() {
    let server = Server::start(|s| (s.n_queue, s.queue_wait) = (1, MS(400)));
    let start = |prompt: &str| {
        let mut client = Client::new(server.address);
        client.send(&request("POST", "/completion", &[JSON], json!({ "prompt": prompt }).to_string().as_bytes()));
        client
    };
    let mut running = start("WAIT{1500} SAY{ first}");
    server.wait_until(|server| server.n_running() == 1);
    let mut waiting = start("SAY{ second}");
    server.wait_until(|server| server.shared.desk.n_waiting_and_running() == (1, 1));
    let third = post(server.address, "/completion", &json!({ "prompt": "SAY{ third}" }));
    refused(&third, 503, "unavailable_error");
    let seconds: u64 = third.header("Retry-After").expect("a time").parse().expect("seconds");
    assert!((1..=60).contains(&seconds));
    // A stream is refused by its status too.
    refused(&post(server.address, "/completion", &json!({ "prompt": "x", "stream": true })), 503, "unavailable_error");
    // The one that waits has waited long enough.
    refused(&waiting.reply(), 503, "unavailable_error");
    assert_eq!(running.reply().json()["content"], " first");
    // One that had been promised an answer hears of it within its stream.
    let mut running = start("WAIT{1000} SAY{ first}");
    server.wait_until(|server| server.n_running() == 1);
    let late = post(
        server.address,
        "/v1/chat/completions",
        &json!({ "messages": [{ "role": "user", "content": "x" }], "stream": true }),
    );
    let (events, is_done) = late.events();
    assert_eq!((late.status, is_done), (200, false));
    assert_eq!(events.last().expect("an event")["error"]["type"], "unavailable_error");
    assert_eq!(running.reply().status, 200);
}

#[test]
fn all_connections_may_be_taken_and_health_is_still_answered() {
    let server = Server::start(|s| (s.n_connections, s.io_timeout) = (5, Duration::from_secs(20)));
    // Three are for anything, two for health, metrics and the page.
    let idle: Vec<Client> = (0..3).map(|_| Client::new(server.address)).collect();
    std::thread::sleep(MS(200));
    let reply = get(server.address, "/props");
    refused(&reply, 503, "unavailable_error");
    assert_eq!((reply.header("Retry-After"), reply.header("Connection")), (Some("1"), Some("close")));
    for path in ["/health", "/metrics", "/"] {
        assert_eq!(get(server.address, path).status, 200, "{path}");
    }
    let others: Vec<Client> = (0..2).map(|_| Client::new(server.address)).collect();
    std::thread::sleep(MS(200));
    for path in ["/props", "/metrics"] {
        let reply = get(server.address, path);
        assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("1")), "{path}");
        assert_eq!(reply.json()["error"]["type"], "unavailable_error");
    }
    assert_eq!(get(server.address, "/health").json(), json!({ "status": "ok" }));
    // Many at once, of whom some say nothing.
    let silent: Vec<Client> = (0..30).map(|_| Client::new(server.address)).collect();
    assert_eq!(get(server.address, "/v1/health").status, 200);
    drop((idle, others, silent));
    server.wait_until(|server| get(server.address, "/props").status == 200);
}

#[test]
fn the_longest_idle_connection_makes_way() {
    let server = Server::start(|s| (s.n_connections, s.keep_alive) = (5, Duration::from_secs(60)));
    let ask = request("GET", "/props", &[], b"");
    let mut idle: Vec<Client> = (0..3).map(|_| Client::new(server.address)).collect();
    for client in &mut idle {
        assert!(client.send(&ask));
        assert_eq!(client.reply().status, 200);
    }
    // The second is not the longest idle any more.
    assert!(idle[0].send(&ask));
    assert_eq!(idle[0].reply().status, 200);
    let mut fourth = Client::new(server.address);
    assert!(fourth.send(&ask));
    assert_eq!(fourth.reply().status, 200, "an idle connection held the place");
    assert!(idle[1].is_closed_within(Duration::from_secs(5)));
    for client in [&mut idle[0], &mut fourth] {
        assert!(client.send(&ask));
        assert_eq!(client.reply().status, 200, "another than the longest idle made way");
    }
    // As many as come: each has an answer, whoever stays idle behind it.
    let mut many: Vec<Client> = Vec::new();
    for _ in 0..20 {
        let mut client = Client::new(server.address);
        assert!(client.send(&ask));
        assert_eq!(client.reply().status, 200);
        many.push(client);
    }
}

#[test]
fn whoever_works_does_not_make_way() {
    let server = Server::start(|s| s.n_connections = 3);
    let mut running = Client::new(server.address);
    running.send(&request("POST", "/completion", &[], json!({ "prompt": "EVER{}", "stream": true }).to_string().as_bytes()));
    assert_eq!(running.head().expect("a head").status, 200);
    for _ in 0..4 {
        refused(&get(server.address, "/props"), 503, "unavailable_error");
    }
    for _ in 0..3 {
        assert!(running.chunk().is_some(), "a connection at work was closed");
    }
}

#[test]
fn health_is_answered_at_once_behind_hundreds_of_half_requests() {
    let server = Server::start(|s| s.io_timeout = Duration::from_secs(20));
    let half: Vec<Client> = (0..500)
        .map(|_| {
            let mut client = Client::new(server.address);
            client.send(b"GET /props HTTP/1.1\r\nHo");
            client
        })
        .collect();
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let began = std::time::Instant::now();
            assert_eq!(get(server.address, "/health").status, 200);
            began.elapsed()
        })
        .collect();
    times.sort();
    // The machine may stand still now and then.
    assert!(times[10] < MS(50) && times[17] < MS(500), "{times:?}");
    drop(half);
}

#[test]
fn keys_are_asked_for_and_never_said() {
    let server = Server::start(|s| s.api_keys = vec!["secret-key".into(), "other".into()]);
    for path in ["/health", "/v1/health", "/"] {
        assert_eq!(get(server.address, path).status, 200, "{path}");
    }
    for path in ["/props", "/v1/models", "/metrics", "/slots", "/nothing", "/lowkey/arena", "/api/tags"] {
        let reply = get(server.address, path);
        assert_eq!((reply.status, reply.header("Www-Authenticate")), (401, Some("Bearer")), "{path}");
        assert!(!reply.text().contains("secret"));
    }
    let reply = get(server.address, "/props");
    assert_eq!(refused(&reply, 401, "authentication_error")["code"], "invalid_api_key");
    // The body of a request without a key is not read.
    let mut client = Client::new(server.address);
    client.send(b"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n");
    assert_eq!(client.reply().status, 401);
    for (name, value) in [("Authorization", "Bearer secret-key"), ("X-Api-Key", "other")] {
        assert_eq!(ask(&server, "GET", "/props", &[(name, value)], "").status, 200);
    }
    assert_eq!(ask(&server, "GET", "/props", &[("Authorization", "Bearer wrong")], "").status, 401);
}

#[test]
fn pages_of_other_sites_get_nothing() {
    let body = json!({ "content": "x" }).to_string();
    let server = Server::start(|s| s.cors_origins = vec!["https://app.example".into()]);
    let post = |headers: &[(&str, &str)]| ask(&server, "POST", "/tokenize", headers, &body);
    refused(&post(&[("Origin", "https://evil.example"), JSON]), 403, "permission_error");
    refused(&post(&[("Origin", "https://app.example"), ("Content-Type", "text/plain")]), 403, "permission_error");
    let good = post(&[("Origin", "https://app.example"), JSON]);
    assert_eq!((good.status, good.header("Access-Control-Allow-Origin")), (200, Some("https://app.example")));
    // Its own page, by the name in the address bar.
    assert_eq!(post(&[("Host", "192.168.1.5:8080"), ("Origin", "http://192.168.1.5:8080"), JSON]).status, 200);
    refused(&post(&[("Host", "evil.example"), ("Origin", "http://evil.example"), JSON]), 403, "permission_error");
    refused(&ask(&server, "GET", "/props", &[("Host", "evil.example:8080")], ""), 403, "permission_error");
    assert_eq!(ask(&server, "GET", "/health", &[("Host", "evil.example")], "").status, 200);
    // Reading is the browser's to forbid.
    let reply = ask(&server, "GET", "/props", &[("Origin", "https://evil.example")], "");
    assert_eq!((reply.status, reply.header("Access-Control-Allow-Origin")), (200, None));
}

/// As llama.cpp's tests have it, with an adapter that gives both settings.
#[test]
fn questions_of_browsers_are_answered_as_llama_server_does() {
    let options = |server: &Server, origin: &str| {
        let headers =
            [("Origin", origin), ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "Authorization")];
        let reply = ask(server, "OPTIONS", "/completions", &headers, "");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("Access-Control-Allow-Methods"), Some("GET, POST, DELETE, OPTIONS"));
        assert_eq!(reply.header("Access-Control-Allow-Headers"), Some("*"));
        ["Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"].map(|name| reply.header(name).map(str::to_owned))
    };
    let any = Server::start(|s| {
        (s.cors_origins, s.cors_credentials, s.api_keys) = (vec!["*".into()], true, vec!["key".into()]);
    });
    for origin in ["localhost", "web.mydomain.fr", "origin"] {
        assert_eq!(options(&any, origin), [Some(origin.to_owned()), Some("true".into())]);
    }
    let local = Server::start(|s| s.cors_origins = vec!["localhost".into()]);
    for origin in [
        "http://localhost",
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://127.0.0.1:3000",
        "http://[::1]",
        "http://[::1]:3000",
    ] {
        assert_eq!(options(&local, origin), [Some(origin.to_owned()), None]);
    }
    for origin in ["http://web.mydomain.fr", "http://evil.com", "http://notlocalhost", "http://localhost.evil.com"] {
        assert_eq!(options(&local, origin), [None, None]);
    }
}

#[test]
fn a_socket_in_the_file_system_serves_too() {
    let folder = std::env::temp_dir().join(format!("lowkey-{}-{}", std::process::id(), fastrand::u32(..)));
    std::fs::create_dir(&folder).expect("a folder");
    let path = folder.join("server.sock");
    // One that nobody listens on any more is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let server = Server::start(|s| s.hosts = vec![path.to_string_lossy().into_owned(), "127.0.0.1".into()]);
    let mut socket = std::os::unix::net::UnixStream::connect(&path).expect("a connection");
    socket.write_all(b"GET /props HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n").expect("a write");
    let mut reply = String::new();
    socket.read_to_string(&mut reply).expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o660, "others may not use it");
    assert_eq!(get(server.address, "/health").status, 200);
    drop(server);
    assert!(!path.exists());
    std::fs::remove_dir(&folder).expect("it is empty");
}

#[test]
fn a_server_that_stops_ends_answers_in_time() {
    let server = Server::start(|s| s.stop_wait = MS(1500));
    let mut idle = Client::new(server.address);
    idle.send(&request("GET", "/health", &[], b""));
    assert_eq!(idle.reply().status, 200);
    let mut client = Client::new(server.address);
    client.send(&request("POST", "/completion", &[JSON], json!({ "prompt": "WAIT{600} SAY{ done}" }).to_string().as_bytes()));
    server.wait_until(|server| server.n_running() == 1);
    let begun = Instant::now();
    server.shared.desk.stop();
    server.shared.stop();
    assert!(idle.is_closed_within(5 * MS(1000)), "idle connections are closed at once");
    assert_eq!(client.reply().json()["content"], " done", "answers under way are given");
    assert!(client.is_closed_within(5 * MS(1000)));
    drop(server);
    assert!(begun.elapsed() < 5 * MS(3000), "{:?}", begun.elapsed());
}

/// Requests with bytes changed, lost, doubled and cut off: each has an answer or an end, and the server goes on.
#[test]
fn damaged_requests_harm_nobody() {
    let server = Server::start(|s| (s.io_timeout, s.keep_alive, s.max_tokens) = (MS(150), MS(150), 8));
    let chat =
        json!({ "messages": [{ "role": "user", "content": "Hi é" }], "stream": true, "logit_bias": { "a": 1 }, "stop": ["x"] });
    let whole = [
        request("POST", "/v1/chat/completions", &[JSON, ("Origin", "http://localhost")], chat.to_string().as_bytes()),
        request(
            "POST",
            "/completion",
            &[("Expect", "100-continue")],
            json!({ "prompt": [1, "x"], "n_probs": 2 }).to_string().as_bytes(),
        ),
        request("GET", "/lowkey/arena?stream=0", &[("X-Api-Key", "x")], b""),
        b"POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"content\":\"Hi\"}\r\n0\r\n\r\n"
            .to_vec(),
    ];
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut bytes = whole[rng.usize(..whole.len())].clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..bytes.len());
            match rng.u8(..5) {
                0 => bytes[at] = rng.u8(..),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, rng.choice(*b"\r\n :{}[]\"\\0\x00\xff").expect("a byte")),
                3 => bytes.truncate(at + 1),
                _ => {
                    let again = bytes[at..].to_vec();
                    bytes.extend(again);
                }
            }
        }
        let mut client = Client::new(server.address);
        client.send(&bytes);
        let _ = client.socket().shutdown(Shutdown::Write);
        assert!(client.is_closed_within(5 * MS(10_000)), "seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
    }
    server.wait_until(|server| server.n_running() == 0);
    assert_eq!(get(server.address, "/health").status, 200);
}
