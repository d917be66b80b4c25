//! The program as it is, with the demo model: answers are those of `lowkey run`, sessions outlive it, its memory stays.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::{demo_model, lowkey};
use serde_json::{Value, json};

use lowkey_test_kit::client::{get, post};

pub struct Program {
    child: Child,
    pub address: SocketAddr,
    pub said: Vec<String>,
}

impl Program {
    pub fn start(flags: &[&str]) -> Program {
        Self::of(&demo_model(), flags)
    }

    pub fn of(model: &Path, flags: &[&str]) -> Program {
        let mut command = lowkey!();
        command.args(["serve", "--port", "0", "--temp", "0", "-m"]).arg(model).args(flags);
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = Vec::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it has ended: {said:?}")).expect("text");
            let address = line.split_once("http://").map(|(_, rest)| rest.split(';').next().unwrap_or_default().to_owned());
            said.push(line);
            if let Some(address) = address.filter(|_| said.last().is_some_and(|line| line.starts_with("ready"))) {
                break address.parse().expect("an address");
            }
        };
        // What it says later is of no concern, and must not stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Program { child, address, said }
    }

    pub fn chat(&self, request: Value) -> Value {
        let reply = post(self.address, "/v1/chat/completions", &request);
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }

    pub fn rss_anon(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a status");
        let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.map_or(0, |kib: u64| kib * 1024)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let killed = std::process::Command::new("kill").args(["-9", &self.child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
    }

    /// Asks it to end; the exit code.
    pub fn stop(mut self) -> i32 {
        let begun = Instant::now();
        let ended = std::process::Command::new("kill").arg(self.child.id().to_string()).status().expect("kill");
        assert!(ended.success());
        let code = self.child.wait().expect("an end").code().unwrap_or(-1);
        assert!(begun.elapsed() < Duration::from_secs(5), "a supervisor would have killed it");
        code
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("content")
}

pub fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
}

/// What `lowkey run` says to a question.
fn asked_by_run(text: &str, n: usize, more: &[&str]) -> std::io::Result<Output> {
    let mut run = lowkey!();
    run.args(["run", "--chat", "--temp", "0", "-n", &n.to_string(), "-p", text, "--kv-budget", "8MiB", "-m"]).arg(demo_model());
    run.args(more).output()
}

#[test]
fn an_answer_is_what_run_says_and_memory_is_within_the_plan() {
    let program = Program::start(&["--streams", "2", "--kv-budget", "16MiB", "--kv-type", "q8_0"]);
    let ask = |text: &str| json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 24 });
    let out = asked_by_run("What is the capital of France?", 24, &["--kv-type", "q8_0"]).expect("the program");
    let expected = String::from_utf8(out.stdout).expect("text");
    assert_eq!(content(&program.chat(ask("What is the capital of France?"))), expected.trim_end_matches('\n'));
    let at_ready = program.rss_anon();
    for i in 0..30 {
        program.chat(ask(&format!("Say the number {i}.")));
    }
    let grown = program.rss_anon().saturating_sub(at_ready);
    // tests/abuse/serve_flood.py asks for a quarter of it, over ten thousand requests.
    assert!(grown <= 1 << 20, "{grown} bytes more after 30 answers");
    let metrics = get(program.address, "/metrics");
    let plan: u64 =
        metrics.text().lines().find_map(|line| line.strip_prefix("lowkey_memory_plan_bytes ")?.parse().ok()).expect("a plan");
    assert!(program.rss_anon() <= plan, "{} of {plan} planned; {:?}", program.rss_anon(), program.said);
    assert_eq!(program.stop(), 0);
}

#[test]
fn answers_that_a_stop_cuts_say_so() {
    for _ in 0..4 {
        let program = Program::start(&["--streams", "2", "--kv-budget", "8MiB", "--stop-wait", "0.3", "--max-tokens", "-1"]);
        let (address, asks) = (program.address, [true, false]);
        let replies = asks.map(|stream| {
            let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
            let body = json!({ "messages": messages, "ignore_eos": true, "max_tokens": 1_000_000, "stream": stream });
            std::thread::spawn(move || post(address, "/v1/chat/completions", &body))
        });
        let begun = Instant::now();
        while !get(address, "/metrics").text().contains("lowkey_requests_running 2") {
            assert!(begun.elapsed() < Duration::from_secs(60), "they never begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(program.stop(), 0);
        let [told, whole] = replies.map(|reply| reply.join().expect("a reply"));
        let (events, is_done) = told.events();
        let error = &events.last().expect("an event")["error"];
        assert!(!is_done && error["type"] == "unavailable_error", "{error}");
        assert_eq!((whole.status, &whole.json()["error"]["type"]), (503, &json!("unavailable_error")));
    }
}

/// Two streams, each with an arena that holds a quarter of the prompt, and a past.
#[test]
fn streams_with_a_past_in_a_file_answer_as_run_does_with_one() {
    let past = ["--past", "/tmp", "--past-space", "64MiB"];
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/prose.txt")).expect("a text");
    let ask = format!("{}\nWho is this about?", text.chars().take(3000).collect::<String>());
    let mut run = lowkey!();
    run.args(["run", "--chat", "--temp", "0", "-n", "12", "-p", &ask, "--kv-budget", "2MiB", "-m"]).arg(demo_model()).args(past);
    let expected = String::from_utf8(run.output().expect("the program").stdout).expect("text");

    let flags: Vec<_> = ["--streams", "2", "--kv-budget", "4MiB"].into_iter().chain(past).collect();
    let program = Program::start(&flags);
    let request = |text: &str| json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 12 });
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| program.chat(request(&format!("Hello. {ask}"))));
        (program.chat(request(&ask)), other.join().expect("an answer"))
    });
    assert_eq!(content(&one), expected.trim_end_matches('\n'));
    assert!(!content(&other).is_empty());
    let metrics = get(program.address, "/metrics");
    let metrics = metrics.text();
    for name in ["written_bytes", "read_bytes", "pieces", "pieces_compared"] {
        for stream in 0..2 {
            let name = format!("lowkey_past_{name}_total{{stream=\"{stream}\"}} ");
            let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
            assert!(value.is_some_and(|value| value > 0), "{name}{value:?}");
        }
    }
    assert!(metrics.contains("lowkey_past_failed_reads_total{stream=\"0\"} 0"));
    assert_eq!(program.stop(), 0);
}

pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lowkey-serve-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }

    fn start(&self) -> Program {
        let folder = self.0.to_string_lossy().into_owned();
        Program::start(&["--sessions", &folder, "--kv-budget", "8MiB"])
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Used twice, the system's turn is saved; after a restart it need not be read, and the answer is the same.
#[test]
fn a_system_turn_is_there_after_a_restart() {
    let folder = Folder::new("system");
    let system = "You are the voice of a house. The lamp in the kitchen is on, the heater in the hall is off. ".repeat(12);
    let ask = |text: &str| json!({ "messages": [{ "role": "system", "content": system }, { "role": "user", "content": text }], "max_tokens": 12 });
    let program = folder.start();
    let first = program.chat(ask("What is on?"));
    assert_eq!(cached(&first), 0);
    // Another conversation in between, so that the stream must read the turn again.
    program.chat(json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 2 }));
    assert_eq!(cached(&program.chat(ask("Is it warm?"))), 0);
    assert_eq!(program.stop(), 0);
    let files = std::fs::read_dir(&folder.0).expect("the folder").count();
    assert!(files >= 1, "a session of the system's turn");
    let program = folder.start();
    let again = program.chat(ask("What is on?"));
    assert!(cached(&again) > 200, "{again}");
    assert_eq!(content(&again), content(&first));
    assert_eq!(program.stop(), 0);
}

/// A conversation that has a name goes on after a restart, also when it has outgrown its memory.
#[test]
fn a_named_conversation_goes_on_after_a_restart() {
    let folder = Folder::new("named");
    let mut messages = vec![json!({ "role": "user", "content": "Tell me about rivers. ".repeat(260) })];
    let ask = |messages: &[Value]| json!({ "messages": messages, "max_tokens": 16, "session": "garden" });
    let program = folder.start();
    let first = program.chat(ask(&messages));
    assert!(first["lowkey"]["evicted"].as_u64().expect("a number") > 100, "{first}");
    messages.push(json!({ "role": "assistant", "content": content(&first) }));
    messages.push(json!({ "role": "user", "content": "And lakes?" }));
    assert_eq!(program.stop(), 0);
    let program = folder.start();
    let second = program.chat(ask(&messages));
    let n_first = first["usage"]["total_tokens"].as_u64().expect("a number");
    assert!(cached(&second) >= n_first - 2, "{second}");
    // What another conversation asks in the same stream comes after it was put away.
    program.chat(json!({ "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 2, "session": "attic" }));
    messages.push(json!({ "role": "assistant", "content": content(&second) }));
    messages.push(json!({ "role": "user", "content": "And seas?" }));
    let third = program.chat(ask(&messages));
    assert!(cached(&third) > cached(&second), "{third}");
    assert_eq!(program.stop(), 0);
}

/// One without a name too, by its text; what it was before is not kept beside it.
#[test]
fn a_conversation_without_a_name_goes_on_after_a_restart() {
    let folder = Folder::new("unnamed");
    let mut messages = vec![json!({ "role": "user", "content": "The garden has a pond and nine trees. ".repeat(30) })];
    let ask = |messages: &[Value]| json!({ "messages": messages, "max_tokens": 12 });
    let n_files = || std::fs::read_dir(&folder.0).expect("the folder").count();
    let mut program = folder.start();
    let mut answer = program.chat(ask(&messages));
    for question in ["How many trees?", "And ponds?"] {
        messages.push(json!({ "role": "assistant", "content": content(&answer) }));
        messages.push(json!({ "role": "user", "content": question }));
        assert_eq!(program.stop(), 0);
        assert_eq!(n_files(), 1);
        let n_before = answer["usage"]["total_tokens"].as_u64().expect("a number");
        program = folder.start();
        answer = program.chat(ask(&messages));
        // All but an end of a turn, which an answer has and a prompt may write in another way.
        assert!(cached(&answer) + 8 >= n_before, "{answer}");
    }
    let text = content(&answer).to_owned();
    assert_eq!(program.stop(), 0);
    // As if it had been read from its start.
    let _ = std::fs::remove_dir_all(&folder.0);
    let program = folder.start();
    let anew = program.chat(ask(&messages));
    assert_eq!((cached(&anew), content(&anew)), (0, text.as_str()));
    assert_eq!(program.stop(), 0);
}

/// `lowkey run` goes on with what the server saved, and knows the system's turn of it.
#[test]
fn run_goes_on_with_a_conversation_of_the_server() {
    let folder = Folder::new("shared");
    let program = folder.start();
    program.chat(json!({
        "messages": [{ "role": "system", "content": "You are terse." }, { "role": "user", "content": "My name is Ada." }],
        "max_tokens": 8,
        "session": "ada",
    }));
    assert_eq!(program.stop(), 0);
    let run = |system: &str| {
        let sessions = folder.0.to_str().expect("UTF-8");
        let out = asked_by_run("What is my name?", 4, &["--session", "ada", "--system", system, "--sessions", sessions]);
        let out = out.expect("the program");
        (out.status.code(), String::from_utf8(out.stderr).expect("text"))
    };
    let (code, said) = run("You are wordy.");
    assert!(code == Some(2) && said.contains("--system"), "{said}");
    let (code, said) = run("You are terse.");
    assert!(code == Some(0) && said.contains("session 'ada'"), "{said}");
}

#[test]
fn streams_are_saved_restored_and_erased_on_request() {
    let folder = Folder::new("slots");
    let program = folder.start();
    let slot = |action: &str, body: Value| post(program.address, &format!("/slots/0?action={action}"), &body);
    let ask = json!({ "prompt": "The quick brown fox jumps over the lazy dog. ".repeat(12), "n_predict": 8 });
    let first = post(program.address, "/completion", &ask).json();
    let saved = slot("save", json!({ "filename": "fox" }));
    assert_eq!(saved.status, 200, "{}", saved.text());
    let n_saved = saved.json()["n_saved"].as_u64().expect("a number");
    assert!(n_saved > 100 && saved.json()["n_written"].as_u64().expect("a number") > 10_000, "{}", saved.text());
    assert_eq!(slot("erase", json!({})).json()["n_erased"].as_u64(), Some(n_saved));
    assert_eq!(slot("restore", json!({ "filename": "fox" })).json()["n_restored"].as_u64(), Some(n_saved));
    let again = post(program.address, "/completion", &ask).json();
    assert_eq!(again["content"], first["content"]);
    assert!(again["timings"]["cache_n"].as_u64().expect("a number") > 100, "{again}");
    for (action, body) in
        [("save", json!({ "filename": "../x" })), ("restore", json!({ "filename": "none" })), ("save", json!({}))]
    {
        assert_eq!(slot(action, body).status, 400, "{action}");
    }
    assert_eq!(program.stop(), 0);
}
