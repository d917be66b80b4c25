//! `lowkey run --session` and `lowkey sessions`, as a user meets them.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use lowkey_test_kit::{demo_model, emulated, ids, lowkey};
use serde_json::Value;

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("lowkey-run-sessions-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Temp(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn lowkey(args: &[&str]) -> Output {
    lowkey!().args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

/// What `lowkey run` answers in JSON with these flags, and its exit code and errors.
fn run(temp: &Temp, more: &[&str]) -> Result<Value, String> {
    let model = demo_model();
    let usual = ["run", "-m", model.to_str().expect("a path"), "--sessions", temp.path(), "--temp", "0", "--json"];
    let out = lowkey(&[&usual, more].concat());
    let errors = String::from_utf8(out.stderr).expect("text");
    match out.status.code() {
        Some(0) => Ok(serde_json::from_slice(&out.stdout).expect("JSON")),
        code => Err(format!("{code:?}: {errors}")),
    }
}

fn sessions(args: &[&str], temp: &Temp) -> (Option<i32>, String) {
    let out = lowkey(&[&["sessions"], args, &["--sessions", temp.path()]].concat());
    (out.status.code(), String::from_utf8(out.stdout).expect("text") + &String::from_utf8(out.stderr).expect("text"))
}

const N: &str = "2";

/// Where nothing is evicted a stream is the same however it is cut.
#[test]
fn two_runs_of_a_session_are_one_of_both_texts() {
    let temp = Temp::new("two");
    let with = ["--evict", "l2", "--kv-type", "q8_0", "--kv-budget", "4MiB"];
    let first = run(&temp, &[&with[..], &["--session", "a", "-p", "The capital of France is", "-n", N]].concat()).expect("a run");
    let text = first["text"].as_str().expect("text");
    let second =
        run(&temp, &[&with[..], &["--session", "a", "-p", " The capital of Italy is", "-n", N]].concat()).expect("a run");
    let both = format!("The capital of France is{text} The capital of Italy is");
    let one = run(&temp, &[&with[..], &["-p", &both, "-n", N]].concat()).expect("a run");
    assert_eq!(
        ids(&one["prompt_tokens"]),
        [ids(&first["prompt_tokens"]), ids(&first["tokens"]), ids(&second["prompt_tokens"])].concat(),
        "the test's texts are cut into tokens where the runs meet"
    );
    assert_eq!(one["tokens"], second["tokens"]);
    let session = &second["session"];
    let n_first = ids(&first["prompt_tokens"]).len() as u64 + 2;
    assert_eq!((session["n_before"].as_u64(), session["name"].as_str()), (Some(n_first), Some("a")));
    assert_eq!(session["n_tokens"].as_u64(), Some(n_first + ids(&second["prompt_tokens"]).len() as u64 + 2));
    assert_eq!(session["bytes"].as_u64(), std::fs::metadata(temp.0.join("a.lks")).ok().map(|meta| meta.len()));
    // Nothing new: it goes on where it ended.
    let third = run(&temp, &[&with[..], &["--session", "a", "-p", "", "-n", N]].concat()).expect("a run");
    let longer = run(&temp, &[&with[..], &["-p", &both, "-n", "4"]].concat()).expect("a run");
    assert_eq!(ids(&longer["tokens"]), [ids(&second["tokens"]), ids(&third["tokens"])].concat());
}

#[test]
fn with_a_template_only_the_new_turn_is_read() {
    let temp = Temp::new("chat");
    let n = if emulated().is_some() { "6" } else { "24" };
    let chat = ["--chat", "--system", "You are terse.", "--session", "c", "--kv-type", "q8_0", "--kv-budget", "8MiB", "-n", n];
    let say = |text: &str| run(&temp, &[&chat[..], &["-p", text]].concat()).expect("a run");
    let (first, second) = (say("My name is Ada."), say("What is my name?"));
    // The model's template, ChatML: what ends the first answer, and the turn.
    let tokenizer = lowkey::text::Tokenizer::from_gguf(&lowkey::gguf::GgufFile::open(&demo_model()).expect("the demo model"));
    let tokenizer = tokenizer.expect("a tokenizer");
    let read = tokenizer.decode(&ids(&second["prompt_tokens"]));
    assert_eq!(read, "<|im_end|>\n<|im_start|>user\nWhat is my name?<|im_end|>\n<|im_start|>assistant\n");
    let before = second["session"]["n_before"].as_u64().expect("a number");
    let answered = if first["stop"] == "eos" { ids(&first["tokens"]).len() - 1 } else { ids(&first["tokens"]).len() };
    assert_eq!(before, (ids(&first["prompt_tokens"]).len() + answered) as u64, "the end of the answer is of the next turn");
    // Read at once, the whole conversation is answered in the same way.
    let all =
        [&ids(&first["prompt_tokens"])[..], &ids(&first["tokens"])[..answered], &ids(&second["prompt_tokens"])[..]].concat();
    let flags = ["--kv-type", "q8_0", "--kv-budget", "8MiB", "-n", n, "-p", &tokenizer.decode(&all)];
    let one = run(&temp, &flags).expect("a run");
    assert_eq!((ids(&one["prompt_tokens"]), &one["tokens"]), (all, &second["tokens"]));
    let other = [
        "--chat",
        "--system",
        "You are wordy.",
        "--session",
        "c",
        "--kv-type",
        "q8_0",
        "--kv-budget",
        "8MiB",
        "-n",
        "1",
        "-p",
        "?",
    ];
    let refused = run(&temp, &other).expect_err("another system's turn");
    assert!(refused.starts_with("Some(2)") && refused.contains("--system"), "{refused}");
    let other_template = [&other[..1], &["--template", "llama3"], &other[3..]].concat();
    let refused = run(&temp, &other_template).expect_err("another template");
    assert!(refused.starts_with("Some(1)") && refused.contains("template"), "{refused}");
}

#[test]
fn an_answer_may_end_where_the_model_ends_it() {
    let temp = Temp::new("endless");
    let say = |text: &str| {
        let chat = ["--chat", "--session", "e", "--kv-budget", "8MiB", "-n", "-1", "-p", text];
        let mut command = lowkey!();
        command.args(["run", "--temp", "0", "--sessions", temp.path(), "-m"]).arg(demo_model()).args(chat);
        let out = command.output().expect("the program");
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stderr).expect("text")
    };
    // Greedy answers of so small a model may go round for ever: these end.
    say("Reply with one word: yes.");
    let second = say("Say hello.");
    assert!(second.contains("session 'e'") && !second.contains(" 0 tokens before"), "{second}");
}

#[test]
fn a_stream_that_evicts_goes_on() {
    let temp = Temp::new("evicts");
    let file = lowkey_test_kit::data("technical.txt");
    let text = std::fs::read_to_string(&file).expect("a text");
    let words: Vec<&str> = text.split_inclusive(' ').take(if emulated().is_some() { 60 } else { 300 }).collect();
    for part in words.chunks(words.len() / 3) {
        let text = part.concat();
        let flags = ["--kv-budget", "1MiB", "--session", "e", "-p", &text, "-n", "2", "-b", "8"];
        let answer = run(&temp, &flags).unwrap_or_else(|e| panic!("{e}"));
        // Emulated, the emulator's own memory counts.
        let (peak, plan) = (&answer["memory"]["rss_anon_peak_bytes"], &answer["memory"]["plan_bytes"]);
        assert!(emulated().is_some() || peak.as_u64() <= plan.as_u64(), "{peak} of {plan} planned");
    }
}

#[test]
fn what_cannot_go_on_is_one_line_that_says_why() {
    let temp = Temp::new("mistakes");
    run(&temp, &["--session", "m", "-p", "Hello", "-n", "1", "--kv-budget", "4MiB"]).expect("a run");
    let file = temp.0.join("m.lks");
    let before = std::fs::read(&file).expect("a file");
    for (args, code, what) in [
        (&["--session", "m", "-p", "x", "-n", "1", "--kv-budget", "5MiB"][..], 1, "slots"),
        (&["--session", "m", "-p", "x", "-n", "1", "--kv-budget", "4MiB", "--sinks", "5"], 1, "5 sinks"),
        (&["--session", "m", "-p", "x", "-n", "-1", "--kv-budget", "4MiB"], 2, "-n"),
        (&["--session", "../m", "-p", "x", "-n", "1"], 2, "--session"),
        (&["--session", "auto-m", "-p", "x", "-n", "1"], 2, "auto-"),
        (&["--session", "n", "-p", "", "-n", "1"], 1, "empty"),
        (&["--session", "n", "-p", "x", "-n", "1", "--session-space", "1KiB"], 1, "--session-space"),
    ] {
        let refused = run(&temp, args).expect_err(what);
        assert!(refused.starts_with(&format!("Some({code})")) && refused.contains(what), "{args:?}: {refused}");
        assert!(std::fs::read(&file).expect("a file") == before, "{args:?}: the session is as it was");
    }
    assert!(!temp.0.join("n.lks").exists());
}

/// Of two runs at once the one that ends first is saved, whether the session was there before or not.
#[test]
fn what_another_run_has_saved_meanwhile_stays() {
    let temp = Temp::new("at-once");
    for _ in 0..2 {
        let mut slow = lowkey!();
        slow.args(["run", "--session", "two", "-p", "Hello", "-n", "40", "--ignore-eos", "--kv-budget", "4MiB", "--temp", "0"]);
        slow.args(["--sessions", temp.path(), "-m"]).arg(demo_model()).stdin(Stdio::null());
        let mut slow = slow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        slow.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("an answer");
        signal(slow.id(), "-STOP");
        run(&temp, &["--session", "two", "-p", "Goodbye", "-n", "1", "--kv-budget", "4MiB"]).expect("a run");
        let other = std::fs::read(temp.0.join("two.lks")).expect("a session");
        signal(slow.id(), "-CONT");
        let out = slow.wait_with_output().expect("an end");
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && err.contains("replaced by another process"), "{err}");
        assert!(std::fs::read(temp.0.join("two.lks")).expect("a session") == other);
    }
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill").success());
}

#[test]
fn sessions_are_listed_verified_and_removed() {
    let temp = Temp::new("list");
    for name in ["one", "two"] {
        run(&temp, &["--session", name, "-p", "Hello", "-n", "1", "--kv-budget", "4MiB"]).expect("a run");
    }
    let (code, text) = sessions(&["list"], &temp);
    assert!(code == Some(0) && text.lines().count() == 2 && text.contains("one ") && text.contains("2 tokens"), "{text}");
    let (_, text) = sessions(&["list", "--json"], &temp);
    let rows: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (rows[1]["name"].as_str(), rows[1]["n_tokens"].as_u64(), rows[1]["is_automatic"].as_bool()),
        (Some("two"), Some(2), Some(false))
    );
    let (code, text) = sessions(&["verify"], &temp);
    assert!(code == Some(0) && text.lines().all(|line| line.contains("whole:")), "{text}");
    damage(&temp.0.join("two.lks"));
    let (code, text) = sessions(&["verify"], &temp);
    assert!(code == Some(1) && text.contains("two") && text.contains("sum") && text.contains("one"), "{text}");
    assert_eq!(text.matches("whole:").count(), 1, "{text}");
    assert_eq!(sessions(&["verify", "one"], &temp).0, Some(0));
    assert_eq!(sessions(&["verify", "three"], &temp).0, Some(1));
    assert_eq!(sessions(&["verify", "../one"], &temp).0, Some(2));
    assert_eq!(sessions(&["remove", "two"], &temp), (Some(0), String::new()));
    let (code, text) = sessions(&["remove", "two"], &temp);
    assert!(code == Some(1) && text.contains("two"), "{text}");
    assert_eq!(sessions(&["list"], &temp).1.lines().count(), 1);
    let (code, text) = sessions(&["list"], &Temp::new("nowhere"));
    assert!(code == Some(1) && text.contains("nowhere"), "{text}");
}

/// Changes a byte in the middle.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("a file");
}

/// A run goes on with the past of the one before, and refuses what would be another one.
#[test]
fn a_session_keeps_its_past() {
    let (temp, elsewhere) = (Temp::new("past"), Temp::new("past-elsewhere"));
    for folder in [&temp.0, &elsewhere.0] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let prose = std::fs::read_to_string(lowkey_test_kit::data("prose.txt")).expect("prose");
    let n = if emulated().is_some() { 500 } else { 1500 };
    let past = ["--kv-budget", "600KiB", "-b", "8", "-n", N, "--past", temp.path(), "--past-space"];
    let with = |space: &'static str, more: &[&str]| run(&temp, &[&past[..], &[space], more].concat());
    let first = with("16MiB", &["--session", "p", "-p", &prose[..n]]).expect("a run");
    let second = with("16MiB", &["--session", "p", "-p", &prose[n..2 * n]]).expect("a run");
    let number = |of: &Value, name: &str| of["past"][name].as_u64().unwrap_or_else(|| panic!("{name} in {of}"));
    assert!(number(&first, "written_bytes") > 0 && number(&second, "pieces") > 100, "{second}");
    assert_eq!((number(&first, "lost_tiles"), number(&second, "lost_tiles"), number(&second, "failed_reads")), (0, 0, 0));
    assert_eq!(second["session"]["n_before"], first["session"]["n_tokens"]);
    assert!(emulated().is_some() || second["memory"]["rss_anon_peak_bytes"].as_u64() <= second["memory"]["plan_bytes"].as_u64());
    let again = ["--session", "p", "-p", "x"];
    let elsewhere = ["--past", elsewhere.path(), "--past-space", "16MiB"];
    let small = &past[..past.len() - 3];
    run(&temp, &[small, &["--session", "q", "-p", "x"]].concat()).expect("a run without a past");
    for (refused, code, what) in [
        (with("17MiB", &again), 1, "a past of"),
        (with("16MiB", &[&again[..], &["--recall", "5"]].concat()), 1, "recall 32"),
        (run(&temp, &[small, &again[..]].concat()), 2, "p.past"),
        (run(&temp, &[small, &elsewhere[..], &again[..]].concat()), 2, "has no p.past"),
        (with("16MiB", &["--session", "q", "-p", "x"]), 2, "without a past"),
    ] {
        let refused = refused.expect_err(what);
        assert!(refused.starts_with(&format!("Some({code})")) && refused.contains(what), "{what}: {refused}");
    }
    assert_eq!(number(&with("16MiB", &again).expect("nothing was lost by those"), "lost_tiles"), 0);
    // Who gives the past up goes on all the same.
    let file = temp.0.join("p.past");
    let open_to_all = std::fs::Permissions::from_mode(0o644);
    std::fs::write(&file, "").and_then(|()| std::fs::set_permissions(&file, open_to_all)).expect("a file");
    assert!(number(&with("16MiB", &again).expect("a run"), "lost_tiles") > 0);
    assert_eq!(std::fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    assert_eq!(sessions(&["remove", "p"], &temp).0, Some(0));
    assert!(!temp.0.join("p.past").exists() && !temp.0.join("p.lks").exists());
}
