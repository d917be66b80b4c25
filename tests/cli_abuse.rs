//! The binary in rude hands: absurd numbers, wrong files, outputs that fail, Ctrl-C at every stage. Each mistake is one line
//! with its flag and the way out, nothing panics, no partial file stays.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::gguf_writer as w;
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
        (&["--temp", "nan"], 2, "--temp"),
        (&["--temp", "-1"], 2, "--temp"),
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

#[test]
fn files_and_folders_that_cannot_be_used_are_named_with_their_flag() {
    let m = tiny();
    let run_with = |more: &[&str], words: &[&str]| refused(&[&["run", "-m", &m, "-n", "1"], more].concat(), 1, words);
    run_with(&["-f", "/nope"], &["--file: /nope", "give a text file"]);
    run_with(&["-p", "x", "--grammar", "/nope"], &["--grammar: /nope", "give the file"]);
    run_with(&["-p", "x", "--json-schema", "5"], &["--json-schema: 5", "begins with {"]);
    run_with(&["-p", "x", "--session", "s", "--sessions", "/proc/x"], &["--sessions: /proc/x", "give a folder"]);
    refused(&["eval", "ppl", "-m", &m, "-f", "/nope"], 1, &["--file: /nope", "give a text file"]);
    refused(&["sessions", "list", "--sessions", "/proc/x"], 1, &["--sessions: /proc/x", "give a folder"]);
    refused(&["run", "-m", &m, "-p", "x", "--log-level", "foo"], 2, &["--log-level", "error, warn, info"]);
    #[cfg(feature = "serve")]
    refused(&["serve", "-m", &m, "--port", "0", "--api-key-file", "/nope"], 1, &["--api-key-file: /nope", "a key on each line"]);
    let out = lowkey!().args(["run", "-m", &m]).env("LOWKEY_FILE", "/nope").output().expect("the binary starts");
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("lowkey: LOWKEY_FILE: /nope: "), "{out:?}");
}

/// What `run` does not run `info` does not call runnable, and `plan` does not plan.
#[test]
fn info_and_plan_refuse_a_vocabulary_that_run_refuses() {
    let folder = TempFolder::new("vocabularies");
    let path = folder.file("m.gguf");
    let text = |text: &str| Some((w::STRING, w::string(text.as_bytes())));
    for (key, value, said) in [
        ("tokenizer.ggml.pre", text("smolxx"), "smolxx"),
        ("tokenizer.ggml.model", text("morse"), "morse"),
        ("tokenizer.ggml.merges", None, "merges"),
        ("tokenizer.ggml.token_type", Some((w::ARRAY, w::array(w::I32, 1, &[1, 0, 0, 0]))), "token_type"),
        ("tokenizer.ggml.bos_token_id", text("one"), "bos_token_id"),
        ("tokenizer.ggml.eos_token_id", text("two"), "eos_token_id"),
        ("general.name", Some((w::U32, vec![7, 0, 0, 0])), "general.name"),
    ] {
        let mut file = w::take_apart("tiny-gqa.gguf");
        file.keys.retain(|(name, ..)| name != key);
        if let Some((ty, value)) = value {
            file.raw(key, ty, value);
        }
        std::fs::write(&path, file.build()).expect("a file");
        let line = |args: &[&str]| {
            let out = run(args);
            assert_eq!(out.status.code(), Some(1), "{key}: {args:?}: {}", String::from_utf8_lossy(&out.stdout));
            String::from_utf8(out.stderr).expect("text")
        };
        let refused = line(&["run", "-m", &path, "-n", "1", "-p", "a"]);
        assert!(refused.lines().count() == 1 && refused.contains(said), "{key}: {refused}");
        assert_eq!(line(&["plan", "-m", &path]), refused, "{key}");
        let info: serde_json::Value = serde_json::from_slice(&run(&["info", &path, "--json"]).stdout).expect("JSON");
        let why = info["why_not"].as_str().unwrap_or_default();
        assert_eq!((&info["runs"], format!("lowkey: {why}\n")), (&false.into(), refused), "{key}");
    }
}

/// The answer is one object whose text is what the tokens say, cut at the stop text.
#[test]
fn forms_that_are_too_long_or_no_text_are_named() {
    let folder = TempFolder::new("forms");
    let (long, binary) = (folder.file("long.gbnf"), folder.file("binary.gbnf"));
    std::fs::write(&long, format!("root ::= \"{}\"", "é".repeat(40_000))).expect("a file");
    std::fs::write(&binary, [0xff, 0xfe]).expect("a file");
    for flag in ["--grammar", "--json-schema"] {
        refused(&["run", "-m", &tiny(), "-p", "x", flag, &long], 2, &[flag, "long.gbnf", "65536"]);
        refused(&["run", "-m", &tiny(), "-p", "x", flag, &binary], 2, &[flag, "binary.gbnf", "UTF-8"]);
    }
}

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

/// The command line wins over a variable; an empty one is none; one that needs a flag which is not there says nothing; a wrong
/// value names its variable, whoever finds it.
#[test]
fn variables_stand_in_where_the_command_line_is_silent() {
    let m = tiny();
    let with = |vars: &[(&str, &str)], more: &[&str]| {
        let args = [&["run", "-m", &m, "-n", "1", "--temp", "0"], more].concat();
        lowkey!().args(args).envs(vars.iter().copied()).stdin(Stdio::null()).output().expect("it starts")
    };
    let plain = with(&[], &["-p", "hi"]).stdout;
    for vars in [
        &[("LOWKEY_FILE", "/no/such/file")][..],
        &[("LOWKEY_SYSTEM", "x"), ("LOWKEY_TEMPLATE", "y"), ("LOWKEY_TOP_LOGPROBS", "3")],
        &[("LOWKEY_MEMORY", ""), ("LOWKEY_KV_BUDGET", ""), ("LOWKEY_JSON", "")],
        &[("LOWKEY_N", "7"), ("LOWKEY_TEMP", "none"), ("LOWKEY_PROMPT", "something else")],
    ] {
        let out = with(vars, &["-p", "hi"]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && out.stdout == plain, "{vars:?}: {stderr}");
    }
    let text = data("prose.txt").to_str().expect("UTF-8").to_owned();
    for (vars, code, name) in [
        (&[("LOWKEY_KV_BUDGET", "4MB")][..], 2, "LOWKEY_KV_BUDGET"),
        (&[("LOWKEY_KV_BUDGET", "4")], 1, "LOWKEY_KV_BUDGET"),
        (&[("LOWKEY_TOP_P", "7")], 2, "LOWKEY_TOP_P"),
        (&[("LOWKEY_SEED", "x")], 2, "LOWKEY_SEED"),
        (&[("LOWKEY_MEMORY", "1")], 1, "LOWKEY_MEMORY"),
        (&[("LOWKEY_FILE", &text), ("LOWKEY_PROMPT", "x")], 2, "LOWKEY_FILE"),
    ] {
        let prompt: &[&str] = if vars.len() == 2 { &[] } else { &["-p", "hi"] };
        let out = with(vars, prompt);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(code) && stderr.contains(name) && stderr.lines().count() == 1, "{vars:?}: {stderr}");
    }
}

/// As llama.cpp has it: one line break at the end of a file is not a part of the prompt.
#[test]
fn one_line_break_at_the_end_of_a_prompt_s_file_is_left_out() {
    let folder = TempFolder::new("newline");
    let ids = |text: &str| {
        let file = folder.file("prompt.txt");
        std::fs::write(&file, text).expect("a text");
        let out = run(&["run", "-m", &tiny(), "-f", &file, "-n", "1", "--json"]);
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        answer["prompt_tokens"].as_array().expect("ids").len()
    };
    let plain = ids("hi");
    assert_eq!([ids("hi\n"), ids("hi\r\n")], [plain, plain]);
    assert!(ids("hi\n\n") > plain && ids("hi\r") > plain && ids("\nhi") > plain);
}

#[test]
fn minus_one_is_what_llama_cpp_makes_of_it_and_no_number_is_said_in_words() {
    let m = tiny();
    let minus = ["--seed", "-1", "--top-k", "-1", "--repeat-last-n", "-1", "--threads", "-1", "--repeat-penalty", "1.1"];
    let out = run(&[&["run", "-m", &m, "-p", "x", "-n", "3"], &minus[..]].concat());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let flags = ["--seed", "--top-k", "--repeat-last-n", "--threads", "--sinks", "--batch", "--pool", "-n", "--temp", "--top-p"];
    for flag in flags.iter().chain(&["--min-p", "--repeat-penalty", "--top-logprobs", "--recent", "--rare"]) {
        for value in ["x", "-7.5", "1e", "99999999999999999999999999"] {
            let out = run(&["run", "-m", &m, "-p", "x", "-n", "1", "--json", flag, value]);
            let stderr = String::from_utf8_lossy(&out.stderr);
            let is_good = stderr.lines().count() == 1 && stderr.contains(flag) && !stderr.contains("found in string");
            assert!(out.status.success() || is_good && !stderr.contains("literal"), "{flag} {value}: {stderr}");
        }
    }
}

/// Paths are bytes, wherever one is given.
#[cfg(unix)]
#[test]
fn paths_need_not_be_utf_8() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    let folder = TempFolder::new("bytes");
    let path = |name: &[u8]| folder.0.join(OsStr::from_bytes(name)).into_os_string();
    let (m, text) = (path(b"m\xff.gguf"), path(b"t\xfe.txt"));
    std::fs::copy(tiny(), &m).expect("a copy");
    std::fs::copy(data("prose.txt"), &text).expect("a copy");
    std::fs::write(path(b"chat\xfd.jinja"), "{{ messages[0].content }}").expect("a template");
    let plot = path(b"p\xfc.svg");
    for line in [
        "tokenize -m M x",
        "tokenize -m M -f T",
        "info M",
        "plan -m M -p x",
        "run -m M -p x -n 1",
        "run -m M -f T -n 1 --evict l2",
        "run -m M -p x -n 1 --chat --template C",
        "bench -m M -p 4 -n 2 -r 1",
        "eval ppl -m M -f T --ctx 32 --windows 1 --plot P",
    ] {
        let args = line.split(' ').map(|word| match word {
            "M" => m.clone(),
            "T" => text.clone(),
            "C" => path(b"chat\xfd.jinja"),
            "P" => plot.clone(),
            word => OsString::from(word),
        });
        let out = lowkey!().args(args).stdin(Stdio::null()).output().expect("it starts");
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let out = lowkey!().args(["run", "-p", "x", "-n", "1"]).env("LOWKEY_MODEL", &m).output().expect("it starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = lowkey!().args(["run", "-m"]).arg(&m).arg("-p").arg(OsStr::from_bytes(b"\xff")).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && stderr.contains("not UTF-8"), "{stderr}");
}

/// More than the system would give is one line at the start, not the end of the process in the middle.
#[test]
fn what_the_system_would_not_give_is_refused_at_start() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("limits under emulation are the emulator's");
    }
    let demo = lowkey_test_kit::demo_model();
    let file_kib = std::fs::metadata(&demo).expect("the model").len() >> 10;
    let limited = |limit: &str, kib: u64| {
        let run = format!("{} run -m '{}' -p x -n 1", env!("CARGO_BIN_EXE_lowkey"), demo.display());
        let line = format!("ulimit {limit} {kib}; exec {run} --kv-budget 60MiB --kv-type f16 --evict l2");
        let out = Command::new("bash").args(["-c", &line]).stdin(Stdio::null()).output().expect("bash is there");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for (limit, base) in [("-v", file_kib + 80_000), ("-d", 4_000)] {
        for more in [0, 1_500, 3_000, 6_000, 12_000, 24_000, 48_000] {
            let (code, stderr) = limited(limit, base + more);
            let one_line = stderr.lines().count() == 1 && stderr.starts_with("lowkey: ");
            assert!(code == Some(1) && one_line || code == Some(0), "{limit} {base} + {more}: {code:?}, {stderr}");
        }
        let (code, stderr) = limited(limit, base + 40_000 * u64::from(limit == "-d"));
        assert!(code == Some(1) && stderr.contains("--kv-budget") && stderr.contains("ulimit"), "{stderr}");
        let (code, stderr) = limited(limit, 4_000_000);
        assert_eq!(code, Some(0), "{stderr}");
    }
    let m = tiny();
    // No machine has that much; with a flag it is tried all the same.
    let huge = ["run", "-m", &m, "-p", "x", "--json", "--top-logprobs", "300", "-n", "2000000000"];
    refused(&huge, 1, &["private memory", "answer", "--overcommit"]);
    let out = run(&[&huge[..], &["--overcommit"]].concat());
    assert!(!out.status.success() && !String::from_utf8_lossy(&out.stderr).contains("--overcommit"));
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

/// A reader that does not read holds nobody up once the user wants the end.
#[test]
fn a_signal_ends_a_run_whose_reader_does_not_read() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("signals under emulation are the emulator's");
    }
    for (name, code, json) in [("-INT", 130, ""), ("-TERM", 143, ""), ("-INT", 130, "--json --top-logprobs 20 -n 30")] {
        // A pipe that is full before it begins: nothing of 64 KiB is ever read.
        let run = format!("{} run -m {} -p x --ignore-eos {json}", env!("CARGO_BIN_EXE_lowkey"), tiny());
        let line = format!("head -c 65536 /dev/zero; exec {run}");
        let piped = || Stdio::piped();
        let mut command = Command::new("bash");
        let mut child = command.args(["-c", &line]).stdout(piped()).stderr(piped()).spawn().expect("bash is there");
        let (status, started) = (format!("/proc/{}/comm", child.id()), Instant::now());
        while std::fs::read_to_string(&status).is_ok_and(|name| name.trim() != "lowkey") {
            assert!(started.elapsed() < Duration::from_secs(60), "it never starts");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_secs(2));
        assert!(child.try_wait().expect("a child").is_none(), "it waits for its reader");
        signal(&child, name);
        let sent = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            assert!(sent.elapsed() < Duration::from_secs(3), "{name}: it waits for its reader after the signal");
            std::thread::sleep(Duration::from_millis(5));
        }
        let out = child.wait_with_output().expect("its output");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(code) && stderr.contains("tok/s"), "{name} {json}: {stderr}");
    }
}

/// The request to end ends every command with its own code, wherever it is.
#[test]
fn a_request_to_end_is_143_in_every_command() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("signals under emulation are the emulator's");
    }
    let m = tiny();
    for args in [
        &["run", "-m", &m, "-f", "-"][..],
        &["plan", "-m", &m, "-f", "-"],
        &["tokenize", "-m", &m, "-f", "-"],
        &["eval", "ppl", "-m", &m, "-f", "-"],
        &["bench", "-m", &m, "-r", "100000"],
        &["run", "-m", &m, "-p", "x", "-n", "-1", "--ignore-eos"],
    ] {
        let mut child = spawn(args, Stdio::piped());
        let stdin = child.stdin.take();
        let reader = child.stdout.take().map(|mut out| std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink())));
        std::thread::sleep(Duration::from_millis(500));
        interrupted(child, "-TERM", || true, 143);
        drop((stdin, reader));
    }
}

/// What somebody reads first says what the program is, and what all commands take stands behind what one of them takes.
#[test]
fn help_says_what_the_program_is_and_what_is_common_to_all_comes_last() {
    let help = |args: &[&str]| String::from_utf8(run(args).stdout).expect("UTF-8");
    assert!(help(&["--help"]).starts_with("Large language models on small ARM boards"), "{}", help(&["--help"]));
    for args in [&["run", "--help"][..], &["plan", "-h"], &["eval", "ppl", "-h"], &["bench", "-h"]] {
        let text = help(args);
        let flags: Vec<&str> = text.lines().filter_map(|line| line.trim_start().split_once("--")).map(|(_, name)| name).collect();
        let at = flags.iter().rposition(|flag| flag.starts_with("log-level"));
        assert_eq!(at, Some(flags.len() - 2), "{args:?}: only --help comes after it: {flags:?}");
    }
}

/// The parser names the flag that is missing; people gave the other one.
#[test]
fn a_flag_that_lacks_another_one_is_named_with_it() {
    let m = tiny();
    let refused_with = |more: &[&str], words: &str| {
        refused(&[&["run", "-m", &m, "-p", "x"], more].concat(), 2, &[words]);
    };
    refused_with(&["--system", "Be brief."], "lowkey: --system cannot be without --chat; see --help");
    refused_with(&["--template=chatml", "--parse-special"], "--template and --parse-special cannot be without --chat");
    refused_with(&["--top-logprobs", "3"], "--top-logprobs cannot be without --json");
    refused_with(&["--recall", "5"], "--recall cannot be without --past");
    refused_with(&["--past", "/tmp"], "--past cannot be without --past-space <SIZE>");
    // What was left out altogether is named as ever.
    refused(&["run", "-p", "x", "--system", "y"], 2, &["--model <MODEL>"]);
    refused(&["sessions", "remove"], 2, &["<NAME>"]);
}

/// A key from a variable that was not set must not leave the server open to all.
#[test]
#[cfg(feature = "serve")]
fn an_empty_key_is_refused_and_a_time_in_which_nothing_can_come() {
    let m = tiny();
    for empty in ["", "  "] {
        refused(&["plan", "serve", "-m", &m, "--api-key", "one", "--api-key", empty], 2, &["--api-key", "empty"]);
    }
    refused(&["plan", "serve", "-m", &m, "--api-key", "one,"], 2, &["--api-key", "empty"]);
    assert!(run(&["plan", "serve", "-m", &m, "--api-key", "one"]).status.success());
    refused(&["plan", "serve", "-m", &m, "--io-timeout", "0"], 2, &["--io-timeout"]);
}

/// What no request can say would never match.
#[test]
#[cfg(feature = "serve")]
fn hosts_origins_and_keys_that_cannot_come_are_refused() {
    let m = tiny();
    for (flag, bad, way_out) in [
        ("--allowed-hosts", "pi,pi.local:8192", "without http://"),
        ("--allowed-hosts", "http://pi.local", "without http://"),
        ("--cors-origins", "localhost,b.com", "its scheme"),
        ("--cors-origins", "http://b.com/", "without a path"),
        ("--api-key", "one,t\nwo", "line break"),
    ] {
        refused(&["plan", "serve", "-m", &m, flag, bad], 2, &[flag, way_out]);
    }
    let good = ["--allowed-hosts", "pi,pi.local", "--cors-origins", "http://b.com:3000,localhost", "--api-key", "one,two"];
    assert!(run(&[&["plan", "serve", "-m", &m][..], &good].concat()).status.success());
}
