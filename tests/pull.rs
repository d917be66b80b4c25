//! `lowkey pull` against a server that breaks off, lies, redirects and changes its mind.
#![cfg(feature = "pull")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lowkey_test_kit::{data, lowkey};

/// What was asked: the path, and the headers by small names.
type Asked = (String, HashMap<String, String>);

/// A server on its own thread, and what it has been asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (port, asked) = (listener.local_addr().expect("an address").port(), Arc::default());
        let server = Server { port, asked: Arc::clone(&asked) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked: Arc<Mutex<Vec<Asked>>> = Arc::clone(&asked);
                std::thread::spawn(move || answer(stream, &asked, port));
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn n_asked(&self, path: &str) -> usize {
        self.asked.lock().expect("the list").iter().filter(|asked| asked.0 == path).count()
    }
}

fn model() -> Vec<u8> {
    std::fs::read(data("tiny-gqa.gguf")).expect("a model")
}

fn answer(stream: TcpStream, asked: &Mutex<Vec<Asked>>, port: u16) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<_, _> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let n_before = asked.lock().expect("the list").iter().filter(|asked| asked.0 == path).count();
    asked.lock().expect("the list").push((path.clone(), headers.clone()));
    // The client may have gone, as it should where it is lied to.
    let _ = reply(stream, &path, &headers, n_before, port);
}

fn reply(mut out: TcpStream, path: &str, headers: &HashMap<String, String>, n_before: usize, port: u16) -> std::io::Result<()> {
    let model = model();
    let whole = |out: &mut TcpStream, bytes: &[u8]| {
        write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"one\"\r\n\r\n", bytes.len())?;
        out.write_all(bytes)
    };
    // What is asked for, and at most 40 KB of it before the line goes dead.
    let piece = |out: &mut TcpStream, tag: &str, delay: u64| -> std::io::Result<()> {
        let same = headers.get("if-range").is_some_and(|held| *held == format!("\"{tag}\""));
        let from =
            headers.get("range").filter(|_| same).and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let (from, n) = (from.unwrap_or(0usize), model.len());
        match from {
            0 => write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nETag: \"{tag}\"\r\n\r\n")?,
            _ => write!(
                out,
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{n}\r\nETag: \"{tag}\"\r\n\r\n",
                n - from,
                n - 1
            )?,
        }
        for chunk in model[from..n.min(from + 40_000)].chunks(4000) {
            out.write_all(chunk)?;
            std::thread::sleep(Duration::from_millis(delay));
        }
        Ok(())
    };
    match path {
        "/whole/m.gguf"
        | "/parts/m-00001-of-00002.gguf"
        | "/parts/m-00002-of-00002.gguf"
        | "/o/r/resolve/main/sub/m-Q4_K_M.gguf" => whole(&mut out, &model),
        "/breaks/m.gguf" => piece(&mut out, "one", 0),
        "/slow/m.gguf" => piece(&mut out, "one", 30),
        "/changes/m.gguf" => piece(&mut out, if n_before < 2 { "one" } else { "two" }, 0),
        "/redirect/m.gguf" => write!(out, "HTTP/1.1 302 Found\r\nLocation: /whole/m.gguf\r\nContent-Length: 0\r\n\r\n"),
        "/o/r/resolve/main/m-Q8_0.gguf" => {
            write!(out, "HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/whole/m.gguf\r\nContent-Length: 0\r\n\r\n")
        }
        "/o/r/resolve/main/m-Q2_K.gguf" => whole(&mut out, &model[..1000]),
        "/o/r/resolve/main/m-Q3_K_M.gguf" => {
            write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for chunk in model.chunks(4096).chain(model.chunks(4096)) {
                write!(out, "{:x}\r\n", chunk.len())?;
                out.write_all(chunk)?;
                write!(out, "\r\n")?;
            }
            write!(out, "0\r\n\r\n")
        }
        // Another version goes on where the first ended, whatever If-Range says.
        "/joins/m.gguf" | "/grows/m.gguf" if headers.contains_key("range") => {
            let (tag, n) = if path == "/joins/m.gguf" { ("ETag: \"two\"\r\n", model.len()) } else { ("", model.len() + 100) };
            write!(out, "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n{tag}", n - 40_000)?;
            write!(out, "Content-Range: bytes 40000-{}/{n}\r\n\r\n", n - 1)?;
            out.write_all(&vec![0; n - 40_000])
        }
        "/joins/m.gguf" | "/grows/m.gguf" | "/rests/m.gguf" if n_before == 0 => piece(&mut out, "one", 0),
        "/joins/m.gguf" | "/grows/m.gguf" => whole(&mut out, &model),
        // No more than 30 KB at once, however much is asked for.
        "/rests/m.gguf" => {
            let from: usize = headers["range"].trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number");
            let to = model.len().min(from + 30_000);
            write!(out, "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nETag: \"one\"\r\n", to - from)?;
            write!(out, "Content-Range: bytes {from}-{}/{}\r\n\r\n", to - 1, model.len())?;
            out.write_all(&model[from..to])
        }
        // Nobody says how long it is, and it ends early.
        "/short/m.gguf" if !headers.contains_key("range") => {
            write!(out, "HTTP/1.1 200 OK\r\nConnection: close\r\nETag: \"one\"\r\n\r\n")?;
            out.write_all(&model[..60_000])
        }
        "/short/m.gguf" => {
            let n = model.len();
            write!(out, "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nETag: \"one\"\r\n", n - 60_000)?;
            write!(out, "Content-Range: bytes 60000-{}/{n}\r\n\r\n", n - 1)?;
            out.write_all(&model[60_000..])
        }
        // The server's own copy is half of one at first.
        "/cut/m.gguf" | "/cut/p-00002-of-00002.gguf" if n_before == 0 => whole(&mut out, &model[..60_000]),
        "/cut/m.gguf" | "/cut/p-00001-of-00002.gguf" | "/cut/p-00002-of-00002.gguf" => whole(&mut out, &model),
        "/error/m.gguf" => write!(out, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
        "/never/m.gguf" if headers.contains_key("range") => write!(out, "HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n"),
        "/elsewhere/m.gguf" if headers.contains_key("range") => {
            let n = model.len();
            write!(out, "HTTP/1.1 206 Partial Content\r\nContent-Length: {n}\r\n")?;
            write!(out, "Content-Range: bytes 0-{}/{n}\r\n\r\n", n - 1)
        }
        "/never/m.gguf" | "/elsewhere/m.gguf" => piece(&mut out, "one", 0),
        "/loop/m.gguf" => write!(out, "HTTP/1.1 302 Found\r\nLocation: /loop/m.gguf\r\nContent-Length: 0\r\n\r\n"),
        "/nowhere/m.gguf" => write!(out, "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
        "/page/m.gguf" => whole(&mut out, b"<!doctype html><title>Log in</title>"),
        "/busy/m.gguf" if n_before < 2 => write!(out, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
        "/busy/m.gguf" => whole(&mut out, &model),
        "/denied/m.gguf" => write!(out, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"),
        "/api/models/o/r/tree/main?recursive=true" => {
            let row = |name: &str, size: usize| {
                format!(r#"{{"type":"file","path":"{name}","size":{size},"lfs":{{"oid":"{MODEL_SHA256}","size":{size}}}}}"#)
            };
            let n = model.len();
            let rows =
                [("sub/m-Q4_K_M.gguf", n), ("m-Q8_0.gguf", n), ("m-Q2_K.gguf", n), ("m-Q3_K_M.gguf", n), ("m-F32.gguf", 1 << 60)];
            whole(&mut out, format!("[{}]", rows.map(|(name, size)| row(name, size)).join(",")).as_bytes())
        }
        _ => write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    }
}

/// Of tests/data/tiny-gqa.gguf, by `sha256sum`.
const MODEL_SHA256: &str = "276d11887c5af68c21c7fbd45d4c1a682d23c3103949ce3a2bfc265e451ffd88";

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("lowkey-pull-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).expect("the folder").flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn command(server: &Server, what: &str, folder: &Path) -> Command {
    let mut command = lowkey!();
    command.args(["pull", what, "--json", "--dir"]).arg(folder).stdin(Stdio::null());
    command.env("HF_ENDPOINT", server.url("")).env_remove("HF_TOKEN").env("NO_PROXY", "*");
    command
}

fn pull(server: &Server, what: &str, folder: &Path) -> Output {
    command(server, what, folder).output().expect("the program")
}

fn fetched(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The one line of a failure, with its exit code.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    let line = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    assert!(!line.contains('\n') && line.starts_with("lowkey: "), "{line:?}");
    line
}

#[test]
fn what_breaks_off_is_asked_for_from_there_and_whole_files_are_checked() {
    let (server, folder) = (Server::start(), Folder::new("breaks"));
    let url = server.url("/breaks/m.gguf");
    let output = command(&server, &url, &folder.0).args(["--sha256", MODEL_SHA256]).output().expect("the program");
    let file = &fetched(&output)[0];
    assert_eq!((&file["sha256"], &file["verified"]), (&MODEL_SHA256.into(), &true.into()));
    assert_eq!(file["received_bytes"], file["bytes"], "nothing came twice");
    assert_eq!((std::fs::read(folder.0.join("m.gguf")).expect("the file"), folder.names()), (model(), vec!["m.gguf".to_owned()]));
    assert_eq!(server.n_asked("/breaks/m.gguf"), model().len().div_ceil(40_000));
    // Once more: it is there, and nothing is asked.
    assert_eq!(fetched(&pull(&server, &url, &folder.0))[0]["received_bytes"], 0);
    assert_eq!(server.n_asked("/breaks/m.gguf"), model().len().div_ceil(40_000));
    // Another sum is another file, which is left alone.
    let other = "0".repeat(64);
    let output = command(&server, &url, &folder.0).args(["--sha256", &other]).output().expect("the program");
    assert!(failure(&output).contains("is there and is another file"));
    assert_eq!(folder.names(), ["m.gguf"]);
}

#[test]
fn a_wrong_sum_a_page_and_a_file_that_changes_leave_nothing_half() {
    let (server, folder) = (Server::start(), Folder::new("wrong"));
    let other = "0".repeat(64);
    let mut wrong = command(&server, &server.url("/whole/m.gguf"), &folder.0);
    assert!(failure(&wrong.args(["--sha256", &other]).output().expect("the program")).contains("expected 0000"));
    assert!(failure(&pull(&server, &server.url("/page/m.gguf"), &folder.0)).contains("has been removed"));
    let denied = failure(&pull(&server, &server.url("/denied/m.gguf"), &folder.0));
    assert!(denied.contains("401") && denied.contains("HF_TOKEN"), "{denied}");
    assert!(failure(&pull(&server, &server.url("/none/m.gguf"), &folder.0)).contains("404"));
    assert_eq!(folder.names(), [""; 0]);
    // What somebody has put there stays, whatever it is.
    std::fs::write(folder.0.join("m.gguf"), "half a copy").expect("a file");
    failure(&pull(&server, &server.url("/whole/m.gguf"), &folder.0));
    assert_eq!(std::fs::read(folder.0.join("m.gguf")).expect("the file"), b"half a copy");
    std::fs::remove_file(folder.0.join("m.gguf")).expect("the file");
    // Another version in the middle: begun anew, with nothing of the first.
    let file = &fetched(&pull(&server, &server.url("/changes/m.gguf"), &folder.0))[0];
    assert_eq!((&file["sha256"], &file["verified"]), (&MODEL_SHA256.into(), &false.into()));
    assert_eq!(file["path"], folder.0.join("m.gguf").to_str().expect("a path"));
}

#[test]
fn the_rest_of_another_version_is_never_joined_to_what_is_held() {
    let (server, folder) = (Server::start(), Folder::new("joins"));
    for (path, n_asked) in [("/joins/m.gguf", 3), ("/grows/m.gguf", 3), ("/rests/m.gguf", 4)] {
        let file = &fetched(&pull(&server, &server.url(path), &folder.0))[0];
        assert_eq!((&file["sha256"], server.n_asked(path)), (&MODEL_SHA256.into(), n_asked), "{path}");
        assert_eq!(folder.names(), ["m.gguf"], "{path}");
        std::fs::remove_file(folder.0.join("m.gguf")).expect("the file");
    }
}

#[test]
fn half_a_file_never_has_the_name_and_the_same_command_comes_right() {
    let (server, folder) = (Server::start(), Folder::new("half"));
    // Perhaps the line broke: what came is kept.
    let failed = failure(&pull(&server, &server.url("/short/m.gguf"), &folder.0));
    assert!(failed.contains("incomplete") && failed.contains("the same command goes on"), "{failed}");
    assert_eq!(folder.names(), ["m.gguf.part", "m.gguf.part.tag"]);
    let file = &fetched(&pull(&server, &server.url("/short/m.gguf"), &folder.0))[0];
    assert_eq!((&file["sha256"], folder.names()), (&MODEL_SHA256.into(), vec!["m.gguf".to_owned()]));
    // All that the server has came, and it is half.
    std::fs::write(folder.0.join("m.gguf"), &model()[..60_000]).expect("a file");
    let there = failure(&pull(&server, &server.url("/cut/m.gguf"), &folder.0));
    assert!(there.contains("move it away") && server.n_asked("/cut/m.gguf") == 0, "{there}");
    std::fs::remove_file(folder.0.join("m.gguf")).expect("the file");
    let failed = failure(&pull(&server, &server.url("/cut/m.gguf"), &folder.0));
    assert!(failed.contains("incomplete") && failed.contains("removed"), "{failed}");
    assert_eq!(folder.names(), [""; 0]);
    fetched(&pull(&server, &server.url("/cut/m.gguf"), &folder.0));
    // Of a model in parts those that are whole stay.
    failure(&pull(&server, &server.url("/cut/p-00001-of-00002.gguf"), &folder.0));
    assert_eq!(folder.names(), ["m.gguf", "p-00001-of-00002.gguf"]);
    fetched(&pull(&server, &server.url("/cut/p-00001-of-00002.gguf"), &folder.0));
    assert_eq!(folder.names(), ["m.gguf", "p-00001-of-00002.gguf", "p-00002-of-00002.gguf"]);
}

#[test]
fn a_failure_says_what_the_server_answered() {
    let server = Server::start();
    let cases = [
        ("error", "answers 500"),
        ("never", "answers 416"),
        ("elsewhere", "another piece"),
        ("loop", "without an end"),
        ("nowhere", "location header"),
    ];
    let tries = cases.map(|(name, said)| {
        let (folder, url) = (Folder::new(name), server.url(&format!("/{name}/m.gguf")));
        let child = command(&server, &url, &folder.0).stderr(Stdio::piped()).spawn().expect("the program");
        (folder, child, said)
    });
    for (folder, child, said) in tries {
        let line = failure(&child.wait_with_output().expect("its end"));
        assert!(line.contains(said) && !line.contains("is the network up"), "{line}");
        assert!(["try again", "the address of the file", "goes on"].iter().any(|way| line.contains(way)), "{line}");
        assert!(!folder.names().contains(&"m.gguf".to_owned()), "{line}");
    }
    let folder = Folder::new("unreached");
    let mut certificates = command(&server, &server.url("/whole/m.gguf"), &folder.0);
    let line = failure(&certificates.env("SSL_CERT_FILE", "/nope").output().expect("the program"));
    assert!(line.contains("SSL_CERT_FILE") && line.contains("PEM"), "{line}");
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("an address");
    let line = failure(&pull(&server, &format!("http://{closed}/m.gguf"), &folder.0));
    assert!(line.contains("is the network up") && line.contains("HTTPS_PROXY"), "{line}");
}

#[test]
fn redirects_are_followed_and_a_busy_server_is_asked_again() {
    let (server, folder) = (Server::start(), Folder::new("redirect"));
    fetched(&pull(&server, &server.url("/redirect/m.gguf"), &folder.0));
    std::fs::remove_file(folder.0.join("m.gguf")).expect("the file");
    fetched(&pull(&server, &server.url("/busy/m.gguf"), &folder.0));
    assert_eq!(server.n_asked("/busy/m.gguf"), 3);
    // A part of a model means all of it.
    let parts = fetched(&pull(&server, &server.url("/parts/m-00002-of-00002.gguf"), &folder.0));
    assert_eq!(parts.as_array().map(Vec::len), Some(2));
    assert_eq!(folder.names(), ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.gguf"]);
}

#[test]
fn a_repository_says_size_and_sum_and_is_held_to_them() {
    let (server, folder) = (Server::start(), Folder::new("hub"));
    let file = &fetched(&pull(&server, "hf:o/r", &folder.0))[0];
    assert_eq!((&file["verified"], file["path"].as_str()), (&true.into(), folder.0.join("m-Q4_K_M.gguf").to_str()));
    // The token goes to the hub, and not where the hub sends on to.
    let mut with_token = command(&server, "hf:o/r:q8_0", &folder.0);
    fetched(&with_token.env("HF_TOKEN", "secret").output().expect("the program"));
    let sent = server.asked.lock().expect("the list").clone();
    let token = |path: &str| sent.iter().filter(|a| a.0 == path).map(|a| a.1.get("authorization").cloned()).next_back().flatten();
    assert_eq!(token("/o/r/resolve/main/m-Q8_0.gguf"), Some("Bearer secret".into()));
    assert_eq!(token("/whole/m.gguf"), None);
    let short = failure(&pull(&server, "hf:o/r:Q2_K", &folder.0));
    assert!(short.contains("has 1000 bytes, expected"), "{short}");
    assert!(failure(&pull(&server, "hf:o/r:Q3_K_M", &folder.0)).contains("sends more than"));
    let full = failure(&pull(&server, "hf:o/r:F32", &folder.0));
    assert!(full.contains("--dir") && full.contains("make room"), "{full}");
    let output = pull(&server, "hf:o/r:Q6_K", &folder.0);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("which file?"));
    let whole: Vec<String> = folder.names().into_iter().filter(|name| name.ends_with(".gguf")).collect();
    assert_eq!(whole, ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]);
}

#[test]
fn a_signal_keeps_what_has_come_for_the_next_time() {
    let (server, folder) = (Server::start(), Folder::new("signal"));
    let url = server.url("/slow/m.gguf");
    let child = command(&server, &url, &folder.0).stderr(Stdio::piped()).spawn().expect("the program");
    std::thread::sleep(Duration::from_millis(500));
    // A second one at the same file is told so.
    assert!(failure(&pull(&server, &url, &folder.0)).contains("another process"));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    let output = child.wait_with_output().expect("its end");
    assert!(killed.success() && output.status.code() == Some(130), "{output:?}");
    assert!(!folder.names().contains(&"m.gguf".to_owned()));
    let file = &fetched(&pull(&server, &url, &folder.0))[0];
    assert!(file["received_bytes"].as_u64() < file["bytes"].as_u64(), "{file}");
    assert_eq!(file["sha256"], MODEL_SHA256);
    // Found by its name from now on.
    let output = lowkey!().args(["plan", "-m", "m"]).env("LOWKEY_MODELS", &folder.0).output().expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // A name of the manifest is the manifest's file, whatever else has that name.
    std::fs::write(folder.0.join("smollm2-135m-instruct.gguf"), "another").expect("a file");
    let output =
        lowkey!().args(["plan", "-m", "smollm2-135m-instruct"]).env("LOWKEY_MODELS", &folder.0).output().expect("the program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
