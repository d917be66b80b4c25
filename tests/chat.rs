//! `lowkey chat` from a pipe and on a pseudo-terminal (util-linux's `script` holds it): turns, texts of several lines, commands, signals.
#![cfg(feature = "chat")]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::lowkey;

/// Emulated, a conversation takes minutes: what is tested there is that a turn works at all.
fn is_emulated() -> bool {
    lowkey_test_kit::emulated().is_some()
}

fn chat(args: &[&str]) -> Command {
    let mut command = lowkey!();
    command
        .args(["chat", "-m"])
        .arg(lowkey_test_kit::demo_model())
        .args(["--temp", "0", "-n", "24", TYPES[0], TYPES[1]])
        .args(args);
    command
}

/// Named, for a run knows how long its stream will be and might choose others.
const TYPES: [&str; 2] = ["--kv-type", "q8_0"];

/// What goes to stdout and to stderr, and the exit code.
fn pipe(args: &[&str], typed: &str) -> (String, String, i32) {
    let mut child = chat(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    child.stdin.take().expect("a pipe").write_all(typed.as_bytes()).expect("to be read");
    let out = child.wait_with_output().expect("an end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (text(out.stdout), text(out.stderr), out.status.code().unwrap_or(-1))
}

/// What `lowkey run --chat` says first.
fn run(prompt: &str, args: &[&str]) -> String {
    let mut command = lowkey!();
    command
        .args(["run", "-m"])
        .arg(lowkey_test_kit::demo_model())
        .args(["--temp", "0", "-n", "24", "--chat", "-p", prompt, TYPES[0], TYPES[1]]);
    let out = command.args(args).output().expect("the program");
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn a_turn_is_answered_as_run_answers_it() {
    let (out, err, code) = pipe(&[], "What is the capital of France?\n");
    assert_eq!((out.as_str(), err.as_str(), code), (run("What is the capital of France?", &[]).as_str(), "", 0));
    if is_emulated() {
        return;
    }
    let system = ["--system", "Answer with one word."];
    assert_eq!(pipe(&system, "What is the capital of France?\n").0, run("What is the capital of France?", &system));
    // The end of the pipe ends the last line too; empty lines are nothing.
    assert_eq!(pipe(&[], "\n\nWhat is the capital of France?").0, out);
}

/// Of `--stats`: tokens that were read for each answer, and how many have been evicted.
fn stats(err: &str) -> Vec<(usize, usize)> {
    let number = |text: &str| text.trim().parse().expect("a number");
    let line = |line: &str| {
        let (read, rest) = line.strip_prefix('[')?.split_once(" tokens read")?;
        let (_, evicted) = rest.split_once("; ")?;
        Some((number(read), number(evicted.split_once(" evicted")?.0)))
    };
    err.lines().filter_map(line).collect()
}

#[test]
fn a_conversation_is_read_once_whatever_is_evicted() {
    if is_emulated() {
        return;
    }
    let turns: Vec<String> =
        (0..12).map(|i| format!("Tell me something about the number {i} and why people like it.\n")).collect();
    let (out, err, code) = pipe(&["--stats", "--kv-budget", "1536KiB", "--batch", "16"], &turns.concat());
    assert_eq!(code, 0, "{err}");
    let stats = stats(&err);
    assert_eq!(stats.len(), 12, "{err}");
    assert!(stats.iter().skip(1).all(|(read, _)| *read < 40), "only the new turn is read: {stats:?}");
    assert!(stats.iter().map(|(_, evicted)| evicted).sum::<usize>() > 200, "{stats:?}");
    assert!(out.lines().count() >= 12);
}

#[test]
fn texts_of_several_lines_are_one_turn() {
    if is_emulated() {
        return;
    }
    let expected = run("first\nsecond", &[]);
    assert_eq!(pipe(&[], "\"\"\"first\nsecond\"\"\"\n").0, expected);
    assert_eq!(pipe(&[], "\"\"\"\nfirst\nsecond\"\"\"\n").0, expected);
    assert_eq!(pipe(&[], "first\\\nsecond\n").0, expected);
    // What is longer than may be is left out, and said.
    let (out, err, _) = pipe(&[], &format!("{}\nfirst\\\nsecond\n", "x".repeat(70_000)));
    assert!(err.contains("65536 bytes") && out.ends_with(&expected), "{err}");
}

#[test]
fn commands_are_obeyed_and_say_what_is_wrong() {
    if is_emulated() {
        return;
    }
    let (out, err, code) =
        pipe(&[], "/help\n/nonsense\n/set temp warm\n/set colour 3\n/set top-p 7\n/regenerate\n/exit\nnot read\n");
    assert_eq!((out.as_str(), code), ("", 0));
    for part in
        ["/regenerate", "/nonsense is no command", "'warm' is not a number", "no such setting", "top-p", "nothing has been said"]
    {
        assert!(err.contains(part), "{part}: {err}");
    }
    // Another answer at temperature 0 is the same one, and so is that after a reset.
    let (out, err, _) = pipe(
        &["--stats"],
        "What is the capital of France?\n/regenerate\n/reset\nWhat is the capital of France?\n/stats\n/arena\n",
    );
    let answer = run("What is the capital of France?", &[]);
    assert_eq!(out, answer.repeat(3), "{err}");
    assert_eq!(stats(&err)[1].0, 1, "the last token of the prompt alone is read again: {err}");
    assert!(err.contains("positions 0 to") && err.contains("layer   0"), "{err}");
    let (out, ..) = pipe(&[], "/system Answer with one word.\nWhat is the capital of France?\n");
    assert_eq!(out, run("What is the capital of France?", &["--system", "Answer with one word."]));
    let (out, ..) = pipe(&[], "/set n 3\nWhat is the capital of France?\n");
    assert!(answer.starts_with(out.trim_end()) && out.len() < answer.len());
}

/// Kept at the end and gone on with: only the new turn is read, and what is said is what would have been said.
#[test]
fn a_conversation_is_kept_and_goes_on() {
    if is_emulated() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("lowkey-chat-kept-{}", std::process::id()));
    let folder_text = folder.to_string_lossy().into_owned();
    let kept = ["--sessions", folder_text.as_str(), "--session", "kitchen", "--stats"];
    let (first, second) = ("What is the capital of France?\n", "And of Italy?\n");
    let whole = pipe(&[], &format!("{first}{second}")).0;
    let (out, err, code) = pipe(&kept, first);
    assert!(code == 0 && err.contains("'kitchen' is kept"), "{err}");
    let (more, err, _) = pipe(&kept, second);
    assert_eq!(out.clone() + &more, whole, "{err}");
    assert!(stats(&err)[0].0 < 30, "{err}");
    let (_, err, _) = pipe(&["--sessions", &folder_text], "/sessions\n/load kitchen\n/load other\n/save ../x\n");
    assert!(err.contains("kitchen  ") && err.contains("'kitchen' goes on") && err.contains("../x"), "{err}");
    // One that cannot be read is neither begun anew nor written over.
    let damaged = folder.join("cellar.lks");
    std::fs::write(&damaged, [7; 5000]).expect("a file");
    let (out, err, code) = pipe(&["--sessions", &folder_text, "--session", "cellar"], first);
    assert!(code == 1 && out.is_empty() && err.contains("cellar"), "{code}: {err}");
    assert_eq!(std::fs::read(&damaged).expect("the file"), [7; 5000]);
    std::fs::remove_file(&damaged).expect("the file");
    let (_, err, code) = pipe(&["--sessions", &folder_text, "--session", "kitchen", "--kv-budget", "8MiB"], first);
    assert!(code == 2 && err.contains("cannot go on here"), "{err}");
    std::fs::remove_dir_all(&folder).expect("the folder");
}

/// What a conversation that begins anew does with the one that was kept.
#[test]
fn after_a_reset_what_is_kept_stays_unless_its_name_was_given_at_the_start() {
    if is_emulated() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("lowkey-chat-reset-{}", std::process::id()));
    let folder_text = folder.to_string_lossy().into_owned();
    let (unnamed, named) = (["--sessions", &folder_text], ["--sessions", &folder_text, "--session", "keep"]);
    let (_, err, _) = pipe(&named, "/reset\nWhat is the capital of France?\n");
    assert!(err.contains("is forgotten.\n") && err.contains("'keep' is kept"), "{err}");
    let bytes = || std::fs::read(folder.join("keep.lks")).expect("a session");
    let first = bytes();
    for anew in ["/reset", "/system Be brief."] {
        let (_, err, code) = pipe(&unnamed, &format!("/load keep\n{anew}\nAnd of Italy?\n"));
        assert!(code == 0 && err.contains("'keep' stays as it was") && err.contains("/save NAME"), "{err}");
        assert!(!err.contains("'keep' is kept") && bytes() == first, "{err}");
    }
    let mut damaged = first.clone();
    damaged[first.len() / 2] ^= 1;
    std::fs::write(folder.join("bad.lks"), damaged).expect("a file");
    let (_, err, _) = pipe(&named, "/load bad\nAnd of Italy?\n");
    assert!(err.contains("begins anew, and /save NAME") && bytes() == first, "{err}");
    let (_, err, _) = pipe(&named, "/reset\n");
    assert!(err.contains("takes the place of 'keep'") && bytes() == first, "nothing was said: {err}");
    let (_, err, _) = pipe(&named, "/reset\nAnd of Italy?\n");
    assert!(err.contains("'keep' is kept") && bytes() != first, "{err}");
    std::fs::remove_dir_all(&folder).expect("the folder");
}

/// What another process kept meanwhile under the name stays.
#[test]
fn a_conversation_that_was_replaced_is_not_kept_over_it() {
    if is_emulated() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("lowkey-chat-replaced-{}", std::process::id()));
    let folder_text = folder.to_string_lossy().into_owned();
    let named = ["--sessions", folder_text.as_str(), "--session", "keep"];
    for _ in 0..2 {
        let mut child = chat(&named).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a chat");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"What is the capital of France?\n").expect("to be read");
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("an answer");
        let (_, err, code) = pipe(&named, "And of Italy?\n");
        assert!(code == 0 && err.contains("'keep' is kept"), "{err}");
        let other = std::fs::read(folder.join("keep.lks")).expect("a session");
        drop(stdin);
        let out = child.wait_with_output().expect("an end");
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && err.contains("replaced by another process"), "{err}");
        assert!(std::fs::read(folder.join("keep.lks")).expect("a session") == other);
    }
    // Its own are no other's.
    let (_, err, code) = pipe(&named, "And of Spain?\n/save\nAnd of Italy?\n/save\n/save more\n/load keep\nThanks.\n");
    assert!(code == 0 && err.matches("'keep' is kept").count() == 3, "{err}");
    std::fs::remove_dir_all(&folder).expect("the folder");
}

#[test]
fn a_line_that_is_no_text_is_left_out() {
    let mut child = chat(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    let typed = b"caf\xe9\nWhat is the capital of France?\n";
    child.stdin.take().expect("a pipe").write_all(typed).expect("to be read");
    let out = child.wait_with_output().expect("an end");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && err.contains("not UTF-8") && err.contains("left out"), "{err}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), run("What is the capital of France?", &[]));
}

#[test]
fn the_plan_holds_and_is_told_beforehand() {
    let mut command = lowkey!();
    let out = command.args(["plan", "chat", "--json", "-m"]).arg(lowkey_test_kit::demo_model()).output().expect("the program");
    let plan: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let names: Vec<&str> = plan["regions"].as_array().expect("lines").iter().filter_map(|r| r["name"].as_str()).collect();
    assert!(names.contains(&"conversation") && names.contains(&"line editing"), "{names:?}");
}

/// A chat on a pseudo-terminal.
struct Terminal {
    child: Child,
    home: PathBuf,
    /// What is shown and was not waited for.
    shown: Vec<u8>,
}

impl Terminal {
    fn open(name: &str, args: &[&str]) -> Terminal {
        let home = std::env::temp_dir().join(format!("lowkey-chat-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&home).expect("a folder");
        let words: Vec<String> = std::iter::once(env!("CARGO_BIN_EXE_lowkey")).chain(["chat", "-m"]).map(str::to_owned).collect();
        let model = lowkey_test_kit::demo_model();
        let line = [words, vec![model.to_string_lossy().into_owned()], args.iter().map(|arg| arg.to_string()).collect()].concat();
        let mut command = Command::new("script");
        // In place of the shell: one that waits would end by a Ctrl-C that the chat has outlived, as dash does.
        command
            .args(["-q", "-e", "-c", &format!("exec {}", line.join(" ")), "/dev/null"])
            .env("XDG_STATE_HOME", &home)
            .env("TERM", "xterm");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("script(1)");
        Terminal { child, home, shown: Vec::new() }
    }

    fn press(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(keys.as_bytes()).and_then(|()| stdin.flush()).expect("to be read");
    }

    /// Waits until `text` is shown.
    fn until(&mut self, text: &str) {
        let since = Instant::now();
        let stdout = self.child.stdout.as_mut().expect("a pipe");
        let mut buf = [0; 4096];
        loop {
            if let Some(at) = self.shown.windows(text.len()).position(|shown| shown == text.as_bytes()) {
                self.shown.drain(..at + text.len());
                return;
            }
            let shown = String::from_utf8_lossy(&self.shown).into_owned();
            assert!(since.elapsed() < Duration::from_secs(240), "'{text}' is not shown: {shown}");
            let n = stdout.read(&mut buf).expect("to be shown");
            assert!(n > 0, "the end, before '{text}': {shown}");
            self.shown.extend_from_slice(&buf[..n]);
        }
    }

    fn code(mut self) -> i32 {
        let code = self.child.wait().expect("an end").code().unwrap_or(-1);
        std::fs::remove_dir_all(&self.home).expect("the folder");
        code
    }
}

#[test]
fn on_a_terminal_an_answer_is_stopped_and_the_conversation_goes_on() {
    if is_emulated() {
        return;
    }
    let mut terminal = Terminal::open("stop", &["--temp", "0", "-n", "2000", "--stats"]);
    terminal.until("Ctrl-D leaves");
    terminal.until("> ");
    terminal.press("Write a very long story about a river.\r");
    std::thread::sleep(Duration::from_millis(1500));
    terminal.press("\u{3}");
    terminal.until("generated at");
    terminal.until("> ");
    terminal.press("/set n 8\r");
    terminal.until("> ");
    terminal.press("And now shorter.\r");
    terminal.until(" 8 generated");
    let history = terminal.home.join("lowkey/history");
    let text = std::fs::read_to_string(&history).expect("a history");
    assert!(text.contains("And now shorter."), "{text}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&history).expect("a file").permissions().mode() & 0o777, 0o600);
    terminal.until("> ");
    terminal.press("\u{4}");
    assert_eq!(terminal.code(), 0);
}

#[test]
fn on_a_terminal_ctrl_c_twice_leaves() {
    if is_emulated() {
        return;
    }
    let mut terminal = Terminal::open("leave", &["--no-history"]);
    terminal.until("> ");
    terminal.press("\u{3}");
    terminal.until("once more");
    terminal.until("> ");
    terminal.press("\u{3}");
    assert!(!terminal.home.join("lowkey/history").exists());
    assert_eq!(terminal.code(), 130);
}
