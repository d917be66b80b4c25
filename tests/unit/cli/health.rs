//! Tests of `cli::health`.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// Takes one connection, reads the head of its request, and says `answer` after `wait`; gives back what was asked.
fn serve_once<S: Read + Write>(mut stream: S, answer: &str, wait: Duration) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("a request") == 1 {
        head.push(byte[0]);
    }
    thread::sleep(wait);
    // Whoever waits no longer has closed.
    let _ = stream.write_all(answer.as_bytes());
    String::from_utf8(head).expect("text")
}

fn ask_tcp(answer: &'static str, wait: Duration, timeout: Duration) -> (Result<u8>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let server = thread::spawn(move || serve_once(listener.accept().expect("a client").0, answer, wait));
    (run(HealthArgs { url, timeout }), server.join().expect("a request"))
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn two_hundred_is_healthy_and_nothing_else() {
    let (outcome, asked) = ask_tcp("HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}", Duration::ZERO, LONG);
    assert!(matches!(outcome, Ok(0)), "{outcome:?}");
    assert!(asked.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked}");
    for (answer, says) in [
        ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n", "not ready"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        ("", "no HTTP"),
    ] {
        let error = ask_tcp(answer, Duration::ZERO, LONG).0.expect_err(answer);
        assert!(error.to_string().contains(says) && error.exit_code() == 1, "{answer:?}: {error}");
    }
}

#[test]
fn an_answer_that_is_late_or_never_ends_is_none() {
    let (outcome, _) = ask_tcp("HTTP/1.1 200 OK\r\n\r\n", Duration::from_millis(400), Duration::from_millis(100));
    let error = outcome.expect_err("it was late");
    assert!(error.to_string().contains("no answer within 100ms"), "{error}");
    let endless: &'static str = Box::leak("x".repeat(1 << 20).into_boxed_str());
    let error = ask_tcp(endless, Duration::ZERO, LONG).0.expect_err("no line");
    assert!(error.to_string().contains("no HTTP"), "{error}");
}

#[test]
fn nobody_there_is_a_failure_that_says_where() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let url = format!("http://127.0.0.1:{port}");
    let error = run(HealthArgs { url: url.clone(), timeout: LONG }).expect_err("nobody listens");
    assert!(error.to_string().starts_with(&url) && error.exit_code() == 1, "{error}");
}

#[test]
fn a_socket_is_asked_too() {
    let path = std::env::temp_dir().join(format!("lowkey-health-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    let server =
        thread::spawn(move || serve_once(listener.accept().expect("a client").0, "HTTP/1.1 200 OK\r\n\r\n", Duration::ZERO));
    let outcome = run(HealthArgs { url: path.to_string_lossy().into_owned(), timeout: LONG });
    assert!(matches!(outcome, Ok(0)), "{outcome:?}");
    assert!(server.join().expect("a request").contains("Host: localhost\r\n"));
    std::fs::remove_file(&path).expect("the socket goes");
}

#[test]
fn the_default_is_where_the_server_listens() {
    for (hosts, port, url) in [
        (None, None, "http://127.0.0.1:8080"),
        (Some("0.0.0.0"), Some("80"), "http://127.0.0.1:80"),
        (Some("::"), None, "http://[::1]:8080"),
        (Some(" 10.0.0.5,127.0.0.1"), Some("9000"), "http://10.0.0.5:9000"),
        (Some("/run/lowkey/http.sock,0.0.0.0"), Some("9000"), "/run/lowkey/http.sock"),
    ] {
        assert_eq!(url_of(hosts, port), url);
    }
}

#[test]
fn addresses_are_read_and_refused() {
    let tcp = |host: &str| Place::Tcp(host.to_owned());
    for (url, place) in [
        ("http://127.0.0.1:8080", tcp("127.0.0.1:8080")),
        ("http://pi.local", tcp("pi.local:80")),
        ("http://[::1]:8080/health", tcp("[::1]:8080")),
        ("http://[::1]", tcp("[::1]:80")),
        ("unix:/run/lowkey.sock", Place::Socket("/run/lowkey.sock".into())),
    ] {
        assert_eq!(Place::of(url).expect(url), place);
    }
    for (url, says) in [
        ("https://pi.local", "TLS"),
        ("pi.local:8080", "no address"),
        ("http:///", "no host"),
        ("http://a b:1", "no address"),
        ("", "no address"),
    ] {
        let error = Place::of(url).expect_err(url);
        assert!(error.to_string().contains(says) && error.exit_code() == 2, "{url}: {error}");
    }
    assert!(seconds("0").is_err() && seconds("x").is_err() && seconds("0.5") == Ok(Duration::from_millis(500)));
}
