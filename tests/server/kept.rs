//! Conversations that are put away and brought back with their pasts in files: each goes on with the answers and the log-probabilities
//! of one that never was, and knows what the arena alone has lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use lowkey_test_kit::client::post;
use lowkey_test_kit::{demo_model, lowkey};
use serde_json::{Value, json};

use super::whole::{Folder, Program, cached, content};

/// A stream's memory: a fraction of what a conversation here would take.
const STREAM: u64 = 1 << 20;

/// A server with so many streams, whose sessions are in the folder.
fn start(folder: &Path, n_streams: u64, more: &[&str]) -> Program {
    let (streams, budget, folder) = (n_streams.to_string(), (n_streams * STREAM).to_string(), folder.to_string_lossy());
    let flags = ["--streams", &streams, "--kv-budget", &budget, "--sessions", &folder, "--past", "/tmp", "--past-space", "16MiB"];
    Program::start(&[&flags[..], more].concat())
}

/// Text in which what was said before it is lost.
fn prose(part: usize) -> String {
    let all = std::fs::read_to_string(lowkey_test_kit::data("prose.txt")).expect("a text");
    all.chars().skip(part * 1400).take(1400).collect()
}

/// A conversation that has a name: what was said in it.
struct Talk {
    name: &'static str,
    messages: Vec<Value>,
}

impl Talk {
    fn new(name: &'static str) -> Talk {
        Talk { name, messages: Vec::new() }
    }

    /// The answer, its log-probabilities, and how much of the prompt was there already.
    fn say(&mut self, program: &Program, text: &str) -> (String, Value, u64) {
        self.messages.push(json!({ "role": "user", "content": text }));
        let ask =
            json!({ "messages": self.messages, "session": self.name, "max_tokens": 16, "logprobs": true, "top_logprobs": 3 });
        let answer = program.chat(ask);
        let said = content(&answer).to_owned();
        self.messages.push(json!({ "role": "assistant", "content": said }));
        (said, answer["choices"][0]["logprobs"].clone(), cached(&answer))
    }
}

const RADIO: &str = "What is the password of the radio?";

/// Two conversations: what is said in each, in which order.
fn said(who: usize, turn: usize) -> String {
    match turn {
        0 => format!("The password of the radio is {}. Remember it.\n{}", ["SILVER-FOX-77", "BLUE-HERON-12"][who], prose(who)),
        1 => RADIO.into(),
        _ => "Say that again.".into(),
    }
}

/// Named ones share one stream, are saved when the other comes, and go on after a restart; beside them the same two, each in a stream
/// that nobody else has.
#[test]
fn conversations_that_share_a_stream_go_on_with_their_pasts() {
    let (own, shared) = (Folder::new("past-own"), Folder::new("past-shared"));
    let talks = || [Talk::new("kitchen"), Talk::new("attic")];
    let answers =
        |program: &Program, talks: &mut [Talk; 2], turn: usize| [0, 1].map(|who| talks[who].say(program, &said(who, turn)));
    let (program, mut each) = (start(&own.0, 2, &[]), talks());
    let alone: Vec<_> = (0..3).flat_map(|turn| answers(&program, &mut each, turn)).collect();
    drop(program);
    let (program, mut each) = (start(&shared.0, 1, &[]), talks());
    let mut by_turns: Vec<_> = (0..2).flat_map(|turn| answers(&program, &mut each, turn)).collect();
    assert_eq!(program.stop(), 0);
    let program = start(&shared.0, 1, &[]);
    by_turns.extend(answers(&program, &mut each, 2));
    for (i, (alone, by_turns)) in alone.iter().zip(&by_turns).enumerate() {
        assert_eq!(by_turns.0, alone.0, "answer {i}");
        assert!(by_turns.1 == alone.1, "the log-probabilities of answer {i}");
        assert!(
            by_turns.2 == alone.2 && (i < 2 || alone.2 > 300),
            "{} and {} tokens were there, answer {i}",
            by_turns.2,
            alone.2
        );
    }
    assert!(by_turns[2].0.contains("SILVER-FOX") && by_turns[3].0.contains("BLUE-HERON"), "{by_turns:?}");
    let metrics = lowkey_test_kit::client::get(program.address, "/metrics");
    assert!(metrics.text().contains("lowkey_past_lost_tiles_total{stream=\"0\"} 0"));
    assert_eq!(program.stop(), 0);
    let mut files: Vec<_> = names(&shared.0);
    assert_eq!(files, ["attic.lks", "attic.past", "kitchen.lks", "kitchen.past"]);
    // A run goes on with what the server has left, and the folder is looked after by its own command.
    let sessions = |args: &[&str]| {
        let out = lowkey!().arg("sessions").args(args).arg("--sessions").arg(&shared.0).output().expect("the program");
        (out.status.code(), String::from_utf8(out.stdout).expect("text"))
    };
    let (code, list) = sessions(&["list"]);
    assert!(code == Some(0) && list.lines().all(|line| line.contains("of past")), "{list}");
    assert_eq!(sessions(&["verify"]).0, Some(0));
    assert_eq!(sessions(&["remove", "attic"]).0, Some(0));
    files.drain(..2);
    assert_eq!(names(&shared.0), files);
    let mut run = lowkey!();
    run.args([
        "run",
        "--chat",
        "--temp",
        "0",
        "-n",
        "12",
        "-p",
        RADIO,
        "--session",
        "kitchen",
        "--past-space",
        "16MiB",
        "--json",
    ]);
    run.args(["--kv-budget", &STREAM.to_string(), "-m"]).arg(demo_model());
    let out = run.arg("--sessions").arg(&shared.0).arg("--past").arg(&shared.0).output().expect("the program");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert!(answer["text"].as_str().is_some_and(|text| text.contains("SILVER-FOX")), "{answer}");
    assert_eq!(answer["past"]["lost_tiles"], 0);
}

/// Another process may save a conversation while a server runs: the server goes on with it, and does not write it over.
#[test]
fn a_conversation_that_was_saved_since_the_start_goes_on() {
    let (own, other) = (Folder::new("past-early"), Folder::new("past-late"));
    let (program, elsewhere) = (start(&own.0, 1, &[]), start(&other.0, 1, &[]));
    let mut talk = Talk::new("late");
    talk.say(&elsewhere, &said(0, 0));
    assert_eq!(elsewhere.stop(), 0);
    for file in ["late.past", "late.lks"] {
        std::fs::copy(other.0.join(file), own.0.join(file)).expect("a copy");
    }
    let (answer, _, n_cached) = talk.say(&program, RADIO);
    assert!(n_cached > 300 && answer.contains("SILVER-FOX"), "{answer:?}, {n_cached} tokens were there");
}

/// Files are renamed, copied and removed by hand while the server holds what it read in them: what is there then is not written over, and
/// what was said is saved under its name where nothing else stands.
#[test]
fn what_is_moved_by_hand_while_a_conversation_goes_on_stays_and_nothing_is_written_over() {
    let folder = Folder::new("past-moved");
    let read = |file: &str| std::fs::read(folder.0.join(file)).unwrap_or_default();
    let mv = |from: &str, to: &str| {
        for kind in ["lks", "past"] {
            std::fs::rename(folder.0.join(format!("{from}.{kind}")), folder.0.join(format!("{to}.{kind}"))).expect("a file");
        }
    };
    let program = start(&folder.0, 1, &[]);
    let mut talks = [Talk::new("kitchen"), Talk::new("attic")];
    talks.iter_mut().enumerate().for_each(|(who, talk)| drop(talk.say(&program, &said(who, 0))));
    assert_eq!(program.stop(), 0);
    // It goes on with the kitchen's, which is then called otherwise.
    let program = start(&folder.0, 1, &[]);
    let (answer, _, n_cached) = talks[0].say(&program, RADIO);
    assert!(n_cached > 300 && answer.contains("SILVER-FOX"), "{answer:?}, {n_cached} tokens were there");
    mv("kitchen", "larder");
    let larder = [read("larder.lks"), read("larder.past")];
    talks[0].say(&program, &prose(3)[..400]);
    assert_eq!(program.stop(), 0);
    assert_eq!(names(&folder.0).len(), 6, "{:?}", names(&folder.0));
    assert!([read("larder.lks"), read("larder.past")] == larder, "what has another name is another's");
    // And once more, and the attic's takes its name.
    let program = start(&folder.0, 1, &[]);
    let (answer, _, n_cached) = talks[0].say(&program, RADIO);
    assert!(n_cached > 500 && answer.contains("SILVER-FOX"), "{answer:?}, {n_cached} tokens were there");
    let attic = [read("attic.lks"), read("attic.past")];
    mv("attic", "kitchen");
    assert_eq!(program.stop(), 0);
    assert!([read("kitchen.lks"), read("kitchen.past")] == attic, "what was put there is not written over");
    let program = start(&folder.0, 1, &[]);
    (talks[0].messages, talks[1].name) = (Vec::new(), "kitchen");
    assert!(talks[1].say(&program, RADIO).0.contains("BLUE-HERON"));
    let metrics = lowkey_test_kit::client::get(program.address, "/metrics");
    assert!(metrics.text().contains("lowkey_past_lost_tiles_total{stream=\"0\"} 0"));
}

/// What was said last is saved first, for nobody knows how long the server will be waited for.
#[test]
fn the_conversation_that_was_used_last_is_saved_first() {
    let folder = Folder::new("past-order");
    let program = start(&folder.0, 3, &[]);
    for name in ["first", "second", "third"] {
        Talk::new(name).say(&program, name);
    }
    assert_eq!(program.stop(), 0);
    let changed = |name: &str| std::fs::metadata(folder.0.join(name)).and_then(|file| file.modified()).expect("a file");
    assert!(changed("third.lks") < changed("second.lks") && changed("second.lks") < changed("first.lks"));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

/// What was saved after the system's turn is the start of two conversations, which part there; each finds its own, and what stands in
/// the turn itself.
#[test]
fn conversations_that_begin_with_one_system_turn_find_each_its_own() {
    let (own, shared) = (Folder::new("past-system-own"), Folder::new("past-system"));
    let system = json!({ "role": "system", "content": format!("The name of the cat is Marzipan.\n{}", prose(2)) });
    let talk = |program: &Program| -> Vec<(String, Value, u64)> {
        let mut talks = [Talk::new("a"), Talk::new("b")];
        talks.iter_mut().for_each(|talk| talk.messages.push(system.clone()));
        (0..2).flat_map(|turn| [0, 1].map(|who| talks[who].say(program, &said(who, turn)))).collect()
    };
    let program = start(&own.0, 2, &[]);
    let alone = talk(&program);
    drop(program);
    let program = start(&shared.0, 1, &[]);
    for text in ["Hello", "Good morning"] {
        let other = json!({ "role": "system", "content": prose(3) });
        program.chat(json!({ "messages": [other, { "role": "user", "content": text }], "max_tokens": 1 }));
        program.chat(json!({ "messages": [system, { "role": "user", "content": text }], "max_tokens": 1 }));
    }
    let saved = names(&shared.0);
    assert!(saved.iter().filter(|name| name.ends_with(".past")).count() >= 1, "{saved:?}");
    let by_turns = talk(&program);
    for (i, (alone, by_turns)) in alone.iter().zip(&by_turns).enumerate() {
        assert_eq!(by_turns.0, alone.0, "answer {i}");
        assert!(by_turns.1 == alone.1, "the log-probabilities of answer {i}");
        assert!(by_turns.2 > 300, "{} tokens were there, answer {i}", by_turns.2);
    }
    assert!(by_turns[2].0.contains("SILVER-FOX") && by_turns[3].0.contains("BLUE-HERON"), "{by_turns:?}");
    assert_eq!(program.stop(), 0);
}

/// `kill -9` while a conversation is saved over and over: it goes on with all of its past, with the answer that it would have given.
#[test]
fn a_server_that_is_killed_while_it_saves_leaves_the_conversation_and_its_past() {
    let folder = Folder::new("past-kill");
    let slot = |program: &Program, action: &str| {
        post(program.address, &format!("/slots/0?action={action}"), &json!({ "filename": "radio" }))
    };
    let ask = |program: &Program, text: &str| {
        let reply =
            post(program.address, "/completion", &json!({ "prompt": text, "n_predict": 12, "cache_prompt": true, "id_slot": 0 }));
        reply.json()["content"].as_str().expect("content").to_owned()
    };
    let text = format!("{}\n\nThe password of the radio is", said(0, 0));
    let program = start(&folder.0, 1, &[]);
    let answer = ask(&program, &text);
    assert!(answer.contains("SILVER-FOX"), "{answer}");
    assert_eq!(slot(&program, "save").status, 200);
    // What it goes on with, in a stream that was never away.
    let (more, rng) = (format!("{text}{answer} and the colour of the fox is"), &mut fastrand::Rng::with_seed(3));
    let expected = ask(&program, &more);
    drop(program);
    for kill in 0..6 {
        let program = start(&folder.0, 1, &[]);
        let parts = names(&folder.0);
        assert_eq!(parts, ["radio.lks", "radio.past"], "kill {kill}: leftovers go");
        let restored = slot(&program, "restore");
        assert_eq!(restored.status, 200, "{}", restored.text());
        assert_eq!(ask(&program, &more), expected, "kill {kill}");
        let metrics = lowkey_test_kit::client::get(program.address, "/metrics");
        assert!(metrics.text().contains("lowkey_past_lost_tiles_total{stream=\"0\"} 0"), "kill {kill}");
        // It goes back to where it was, and is saved under another name and this one by turns, each time as a whole.
        assert_eq!(slot(&program, "restore").status, 200);
        std::thread::scope(|scope| {
            let saving = scope.spawn(|| {
                let other = json!({ "filename": "other" });
                while asks_to_save(&program, &other) && asks_to_save(&program, &json!({ "filename": "radio" })) {}
            });
            std::thread::sleep(Duration::from_micros(rng.u64(20_000..120_000)));
            program.kill();
            saving.join().expect("an end");
        });
        let _ = std::fs::remove_file(folder.0.join("other.lks"));
        let _ = std::fs::remove_file(folder.0.join("other.past"));
    }
}

/// False: nobody answers any more.
fn asks_to_save(program: &Program, body: &Value) -> bool {
    let Ok(mut socket) = TcpStream::connect(program.address) else { return false };
    let (body, mut answer) = (body.to_string(), Vec::new());
    let head = format!(
        "POST /slots/0?action=save HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_ok() && socket.read_to_end(&mut answer).is_ok_and(|n| n > 0)
}

#[test]
fn what_does_not_go_together_is_told_and_what_is_written_is_in_the_plan() {
    let folder = Folder::new("past-told");
    let program = start(&folder.0, 1, &[]);
    Talk::new("kitchen").say(&program, "Hello");
    assert_eq!(program.stop(), 0);
    let restore = |program: &Program| post(program.address, "/slots/0?action=restore", &json!({ "filename": "kitchen" }));
    let program = start(&folder.0, 1, &["--recall", "5"]);
    let reply = restore(&program);
    assert!(reply.status == 400 && reply.text().contains("recall 32"), "{}", reply.text());
    assert_eq!(program.stop(), 0);
    std::fs::remove_file(folder.0.join("kitchen.past")).expect("a file");
    let saved = std::fs::read(folder.0.join("kitchen.lks")).expect("a file");
    let program = start(&folder.0, 1, &[]);
    let reply = restore(&program);
    assert!(reply.status == 400 && reply.text().contains("the file of its past is not beside it"), "{}", reply.text());
    // Nor is it written over by a conversation that could not go on from it.
    Talk::new("kitchen").say(&program, "Good morning");
    assert_eq!(program.stop(), 0);
    assert!(std::fs::read(folder.0.join("kitchen.lks")).expect("a file") == saved);
    let plan = |more: &[&str]| {
        let mut plan = lowkey!();
        plan.args(["plan", "serve", "--streams", "2", "--kv-budget", "2MiB", "--past", "/tmp", "--past-space", "16MiB", "-m"]);
        let out = plan.arg(demo_model()).args(["--sessions", "/tmp/none", "--json"]).args(more).output().expect("the program");
        (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).expect("text"))
    };
    let (code, said) = plan(&["--session-space", "16MiB"]);
    assert!(code == Some(1) && said.contains("--session-space") && said.contains("--past-space"), "{said}");
    let (code, said) = plan(&["--session-space", "64MiB"]);
    let answer: Value = serde_json::from_str(&said).expect("JSON");
    let regions = answer["regions"].as_array().expect("regions");
    let disk = |name: &str| {
        let found = regions.iter().find(|region| region["name"] == name && region["kind"] == "disk");
        found.and_then(|region| region["bytes"].as_u64()).unwrap_or_else(|| panic!("{name} in {said}"))
    };
    assert!(code == Some(0) && disk("sessions") == 64 << 20, "{said}");
    assert!(disk("past") > 24 << 20 && (12 << 20..24 << 20).contains(&disk("session that is being saved")), "{said}");
    assert!(!Path::new("/tmp/none").exists());
}

/// With sessions each token is written twice: to the stream's file, and to that of its session.
#[test]
fn the_plan_tells_what_a_day_writes_to_both_files() {
    let day = |more: &[&str]| {
        let mut plan = lowkey!();
        plan.args(["plan", "serve", "--kv-budget", "2MiB", "--past", "/tmp", "--past-space", "16MiB", "-m"]).arg(demo_model());
        let out = plan.args(more).output().expect("the program");
        let said = String::from_utf8([out.stdout, out.stderr].concat()).expect("text");
        let (_, day) = said.split_once("a day at 10 tokens a second writes ").unwrap_or_else(|| panic!("{said}"));
        let n = day.split_once(" GiB").and_then(|(n, _)| n.parse::<f64>().ok()).unwrap_or_else(|| panic!("{said}"));
        (n, day.lines().next().unwrap_or_default().to_owned())
    };
    let (alone, both) = (day(&[]), day(&["--sessions", "/tmp/none", "--session-space", "64MiB"]));
    assert!((1.98..2.02).contains(&(both.0 / alone.0)), "{alone:?}, {both:?}");
    assert!(
        both.1.contains("to its session's; each save of a session writes up to ") && !alone.1.contains("session"),
        "{both:?}"
    );
}
