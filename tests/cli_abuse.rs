//! The binary in rude hands: absurd numbers, wrong files, outputs that fail, Ctrl-C at every stage. Each mistake is one line
//! with its flag and the way out, nothing panics, no partial file stays.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::{data, lowkey};

fn tiny() -> String {
    data("tiny-gqa.gguf").to_str().expect("UTF-8").to_owned()
}

fn run(args: &[&str]) -> Output {
    lowkey!().args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

/// Expects this exit code and one line on stderr with all of `words`.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let out = run(args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.lines().count() == 1 && stderr.starts_with("lowkey: "), "{args:?}: one line, not: {stderr}");
    words.iter().for_each(|word| assert!(stderr.contains(word), "{args:?}: '{word}' is not in: {stderr}"));
}

/// A folder of this test's own.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lowkey-abuse-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a temporary folder");
        TempFolder(path)
    }
    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn absurd_numbers_are_refused_by_flag() {
    let (m, huge) = (tiny(), u64::MAX.to_string());
    let text = data("prose.txt").to_str().expect("UTF-8").to_owned();
    let with = |more: &[&'static str]| -> Vec<String> {
        ["run", "-m", &m, "-p", "x"].into_iter().chain(more.iter().copied()).map(String::from).collect()
    };
    for (more, code, flag) in [
        (&["-n", "9223372036854775807", "--json"][..], 2, "-n"),
        (&["-n", "9223372036854775808"], 2, "--n"),
        (&["-n", "-2"], 2, "--n"),
        (&["-n", "-1", "--json"], 2, "-n"),
        (&["--batch", "1000000"], 2, "--batch"),
        (&["--batch", "0"], 2, "--batch"),
        (&["--threads", "100000"], 2, "--threads"),
        (&["--threads", "0"], 2, "--threads"),
        (&["--sinks", "4294967295"], 2, "--sinks"),
        (&["--sinks", "-1"], 2, "--sinks"),
        (&["--recent", "4294967295"], 2, "--recent"),
        (&["--recent", "nan%"], 2, "--recent"),
        (&["--recent", "101%"], 2, "--recent"),
        (&["--kv-budget", "-1"], 2, "--kv-budget"),
        (&["--kv-budget", "0"], 1, "--kv-budget"),
        (&["--repeat-last-n", "18446744073709551615"], 2, "--repeat-last-n"),
        (&["--top-p", "-1"], 2, "--top-p"),
        (&["--min-p", "nan"], 2, "--min-p"),
        (&["--temp", "inf"], 2, "--temp"),
        (&["--repeat-penalty", "-3"], 2, "--repeat-penalty"),
        (&["--memory", "1"], 1, "--memory"),
    ] {
        let args = with(more);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, &[flag]);
    }
    for (flag, more) in [("--depth", "-d"), ("--runs", "-r"), ("--prompt", "-p"), ("-n", "-n")] {
        refused(&["bench", "-m", &m, more, &huge], 2, &[flag]);
    }
    for (flag, value) in [("--windows", "0"), ("--stride", "0"), ("--ctx", "1"), ("--ctx", &huge)] {
        refused(&["eval", "ppl", "-m", &m, "-f", &text, flag, value], 2, &[flag]);
    }
    refused(&["eval", "ppl", "-m", &m, "-f", &text, "--ctx", "64", "--keep", "50%", "--memory", "1MiB"], 1, &["--memory"]);
}

#[test]
fn large_numbers_that_mean_something_run() {
    let m = tiny();
    for more in [
        &["--kv-budget", "18446744073709551615"][..],
        &["--kv-budget", "1000GiB"],
        &["--batch", "65536"],
        &["--recent", "100%", "--sinks", "0"],
        &["--top-k", "18446744073709551615"],
        &["--json", "--top-logprobs", "1000000000"],
        &["--stop", ""],
        &["--temp", "-1"],
        &["--seed", "18446744073709551615"],
    ] {
        let out = run(&[&["run", "-m", &m, "-p", "x", "-n", "3"], more].concat());
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let text = data("prose.txt").to_str().expect("UTF-8").to_owned();
    let huge = u64::MAX.to_string();
    let out = run(&["eval", "ppl", "-m", &m, "-f", &text, "--ctx", "64", "--windows", &huge, "--stride", &huge, "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn wrong_files_are_named() {
    let m = tiny();
    refused(&["run", "-m", &m, "-f", "/"], 1, &["/: "]);
    refused(&["run", "-m", &m, "-f", &m], 2, &["--file", "UTF-8"]);
    refused(&["run", "-m", &m, "-f", "/dev/zero"], 2, &["--file", "64 MiB"]);
    refused(&["run", "-m", "a\nb\u{1b}.gguf", "-p", "x"], 1, &["a\\nb\\u{1b}.gguf"]);
    refused(&["run", "-m", "", "-p", "x"], 2, &["--model"]);
}

/// The answer is one object whose text is what the tokens say, cut at the stop text.
#[test]
fn json_text_is_what_was_streamed() {
    let m = tiny();
    let args = ["run", "-m", &m, "-p", "Hello", "-n", "200", "--seed", "7", "--temp", "1.5", "--ignore-eos"];
    let streamed = String::from_utf8(run(&args).stdout).expect("text");
    let streamed = streamed.strip_suffix('\n').expect("a line break at the end");
    assert!(streamed.chars().count() > 150);
    let json = |more: &[&str]| -> serde_json::Value {
        serde_json::from_slice(&run(&[&args, &["--json"][..], more].concat()).stdout).expect("JSON")
    };
    assert_eq!(json(&[])["text"], streamed);
    let stop: String = streamed.chars().skip(60).take(3).collect();
    let at = streamed.find(&stop).expect("it is there");
    let stopped = json(&["--stop", &stop]);
    assert_eq!((&stopped["text"], &stopped["stop"]), (&streamed[..at].into(), &"stop".into()));
}

#[test]
fn outputs_that_fail_fail_in_one_line_or_silently() {
    let m = tiny();
    let full = || File::options().write(true).open("/dev/full");
    if full().is_err() {
        return println!("there is no /dev/full here");
    }
    let text = data("prose.txt").to_str().expect("UTF-8").to_owned();
    for args in [
        &["run", "-m", &m, "-p", "x", "-n", "3"][..],
        &["run", "-m", &m, "-p", "x", "-n", "3", "--json"],
        &["plan", "-m", &m],
        &["info", &m],
        &["tokenize", "-m", &m, "x"],
        &["eval", "ppl", "-m", &m, "-f", &text, "--ctx", "32", "--windows", "1"],
        &["models"],
        &["--help"],
    ] {
        let out = lowkey!().args(args).stdin(Stdio::null()).stdout(full().expect("opened before")).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("standard output"), "{args:?}: {stderr}");
    }
    // Statistics and messages that nobody can read are lost; the answer and the exit code are not.
    for (args, code) in [(&["run", "-m", &m, "-p", "x", "-n", "3", "--log-level", "debug"][..], 0), (&["run", "-x"], 2)] {
        let out = lowkey!().args(args).stdin(Stdio::null()).stderr(full().expect("opened before")).output().expect("it starts");
        assert_eq!((out.status.code(), out.stdout.is_empty()), (Some(code), code == 2), "{args:?}");
    }
}

#[test]
fn every_flag_reads_its_variable() {
    let m = tiny();
    let with = |vars: &[(&str, &str)], args: &[&str]| {
        lowkey!().args(args).envs(vars.iter().copied()).stdin(Stdio::null()).output().expect("it starts")
    };
    let out = with(
        &[("LOWKEY_MODEL", &m), ("LOWKEY_PROMPT", "x"), ("LOWKEY_N", "2"), ("LOWKEY_JSON", "1"), ("LOWKEY_TOP_LOGPROBS", "2")],
        &["run"],
    );
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((answer["tokens"].as_array().map(Vec::len), answer["logprobs"][0].as_array().map(Vec::len)), (Some(2), Some(2)));
    let text = data("prose.txt").to_str().expect("UTF-8").to_owned();
    for (vars, args) in [
        (&[("LOWKEY_FILE", text.as_str()), ("LOWKEY_NO_BOS", "yes")][..], &["tokenize", "-m", &m][..]),
        (
            &[("LOWKEY_DEPTH", "0,4"), ("LOWKEY_RUNS", "1"), ("LOWKEY_OUTPUT", "json"), ("LOWKEY_PROMPT_TOKENS", "2")],
            &["bench", "-m", &m, "-n", "2"],
        ),
        (
            &[
                ("LOWKEY_FILE", &text),
                ("LOWKEY_CTX", "32"),
                ("LOWKEY_WINDOWS", "1"),
                ("LOWKEY_KEEP", "100%"),
                ("LOWKEY_STRIDE", "8"),
                ("LOWKEY_OUTPUT", "json"),
            ],
            &["eval", "ppl", "-m", &m],
        ),
        (&[("LOWKEY_JSON", "true")], &["models"]),
    ] {
        let out = with(vars, args);
        assert!(out.status.success() && out.stdout.starts_with(b"["), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let out = with(&[("LOWKEY_JSON", "0"), ("LOWKEY_STOP", "zzz")], &["run", "-m", &m, "-p", "x", "-n", "1"]);
    assert!(out.status.success() && !out.stdout.starts_with(b"{"));
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill is there");
    assert!(sent.success());
}

/// Waits until `ready`, sends the signal, and expects this exit code soon.
fn interrupted(mut child: Child, name: &str, ready: impl Fn() -> bool, code: i32) -> (String, String) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().expect("a child").is_none(), "never got there");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, name);
    let sent = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        assert!(sent.elapsed() < Duration::from_secs(30), "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = child.wait_with_output().expect("its output");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(out.status.code(), Some(code), "{}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

fn spawn(args: &[&str], stdin: Stdio) -> Child {
    lowkey!().args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

#[test]
fn ctrl_c_while_the_prompt_is_read_ends_at_once() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("signals under emulation are the emulator's");
    }
    let mut child = spawn(&["run", "-m", &tiny(), "-f", "-"], Stdio::piped());
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"y\n").expect("it listens");
    // The handler is there once the process reads; nothing says so but time.
    std::thread::sleep(Duration::from_millis(500));
    let (stdout, _) = interrupted(child, "-INT", || true, 130);
    assert!(stdout.is_empty());
    drop(stdin);
}

#[test]
fn an_interrupted_eval_leaves_no_partial_file() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("signals under emulation are the emulator's");
    }
    let folder = TempFolder::new("eval");
    let text = folder.file("long.txt");
    std::fs::write(&text, std::fs::read_to_string(data("prose.txt")).expect("prose").repeat(200)).expect("a text");
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let out = folder.file("logits.npy");
        let args = ["eval", "ppl", "-m", &tiny(), "-f", &text, "--ctx", "256", "--logits-out", &out];
        let (stdout, stderr) = interrupted(spawn(&args, Stdio::null()), name, || folder.names().len() == 2, code);
        assert!(stdout.is_empty() && stderr.lines().count() == 1, "{stdout}{stderr}");
        assert_eq!(folder.names(), ["long.txt"], "{name}");
    }
}

#[test]
fn logits_are_written_whole_or_not_at_all() {
    let folder = TempFolder::new("logits");
    let (m, text) = (tiny(), data("technical.txt").to_str().expect("UTF-8").to_owned());
    let args = |out: &str| -> Vec<String> {
        let fixed = ["eval", "ppl", "-m", &m, "-f", &text, "--ctx", "32", "--windows", "2", "--logits-out", out];
        fixed.into_iter().map(String::from).collect()
    };
    let refused = |out: &str, code| {
        let args = args(out);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, &["--logits-out"]);
    };
    refused(&folder.file("no/such/folder.npy"), 1);
    refused(folder.0.to_str().expect("UTF-8"), 2);
    refused("/dev/null", 2);
    assert!(folder.names().is_empty() && !Path::new("/dev/null").is_file());
    let out = folder.file("logits.npy");
    let done = lowkey!().args(args(&out)).output().expect("it starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(folder.names(), ["logits.npy"]);
    let mut bytes = Vec::new();
    File::open(&out).expect("the file").read_to_end(&mut bytes).expect("its bytes");
    assert_eq!(bytes.len(), 128 + 64 * 300 * 4, "two windows of 32 tokens, 300 logits each");
}
