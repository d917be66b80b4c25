//! `lowkey serve` as a service manager meets it: ready, alive, stopping; and what `deploy/` says of the program.
#![cfg(feature = "serve")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::{demo_model, emulated, lowkey};

/// How long a server may take to be ready, to say that it lives, and to end.
fn patience() -> Duration {
    Duration::from_secs(if emulated().is_some() { 240 } else { 60 })
}

/// The manager's end of the protocol.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let path = std::env::temp_dir().join(format!("lowkey-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Manager { socket, path }
    }

    /// What is said next, if anything is within `patience`.
    fn hears(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).expect("a time");
        let mut text = [0; 512];
        let n = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8(text[..n].to_vec()).expect("text"))
    }

    /// What is said next that is no sign of life.
    fn hears_news(&self) -> String {
        loop {
            let said = self.hears(patience()).expect("the server says something");
            if said != "WATCHDOG=1" {
                return said;
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A server that does not outlive its test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command, model: &Path) -> Server {
        command.arg("serve").env("LOWKEY_MODEL", model).env("LOWKEY_KV_BUDGET", "2MiB").env("LOWKEY_PORT", "0");
        Server(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    fn terminate(&self) {
        self.signal("-TERM");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(status.expect("kill starts").success());
    }

    /// The exit code, which must come within `patience`.
    fn ended(&mut self, patience: Duration) -> i32 {
        let since = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code().expect("no signal ends it");
            }
            assert!(since.elapsed() < patience, "the server has not ended after {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it printed until the line that has its address, and the address.
    fn address(&mut self) -> String {
        let stderr = self.0.stderr.as_mut().expect("piped");
        let (mut text, mut byte) = (Vec::new(), [0]);
        while stderr.read(&mut byte).expect("a pipe") == 1 {
            text.push(byte[0]);
            let line = String::from_utf8_lossy(&text);
            if let Some((_, rest)) = line.split_once("http://")
                && let Some(end) = rest.find([';', ',', ' ', '\n'])
            {
                return rest[..end].to_owned();
            }
        }
        panic!("no address: {}", String::from_utf8_lossy(&text));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status line that /health answers.
fn health(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(patience())).expect("a time");
    write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_manager_hears_when_the_server_is_ready_alive_and_stopping() {
    let manager = Manager::new("notify");
    let mut command = lowkey!();
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "1500000");
    let mut server = Server::start(&mut command, &demo_model());

    let ready = manager.hears(patience()).expect("the server says something");
    assert!(ready.lines().any(|line| line == "READY=1"), "the first thing said: {ready}");
    let address = server.address();
    assert!(health(&address).contains(" 200 "), "who is told of a server that is ready may use it");
    server.signal("-HUP");
    // Nothing is asked of it, and it is alive all the same, more often than it must be.
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(manager.hears(patience()).as_deref(), Some("WATCHDOG=1"));
        assert!(since.elapsed() < Duration::from_millis(1500) || emulated().is_some(), "{:?}", since.elapsed());
    }
    assert!(health(&address).contains(" 200 "), "a terminal that goes away ends no server");
    server.terminate();
    let stopping = manager.hears_news();
    assert!(
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=20000000"].iter().all(|word| stopping.lines().any(|line| line == *word)),
        "{stopping}"
    );
    assert_eq!(
        server.ended(Duration::from_secs(if emulated().is_some() { 60 } else { 5 })),
        0,
        "a stop that was asked for is no failure"
    );
}

/// A card may be slow: whoever waits for the end of the server hears at once that it has begun, and while sessions are saved that it
/// goes on and asks for time.
#[test]
fn a_manager_hears_of_the_stop_before_sessions_are_saved_and_while_they_are() {
    let (manager, folder) = (Manager::new("saving"), std::env::temp_dir().join(format!("lowkey-saved-{}", std::process::id())));
    let mut command = lowkey!();
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "3");
    command.env("LOWKEY_SESSIONS", &folder).env("LOWKEY_PAST", "/tmp").env("LOWKEY_PAST_SPACE", "16MiB");
    let mut server = Server::start(&mut command, &demo_model());
    // A pass is followed by a sign of life, and the manager has to read it.
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut heard: Vec<String> = Vec::new();
            while let Some(said) = manager.hears(patience()).filter(|said| said != "END") {
                heard.push(said);
            }
            heard
        });
        let address = server.address().parse().expect("an address");
        let prompt = "The cat is on the mat, and the dog is in the fog. ".repeat(if emulated().is_some() { 8 } else { 40 });
        let body =
            serde_json::json!({ "messages": [{ "role": "user", "content": prompt }], "session": "kitchen", "max_tokens": 1 });
        let reply = lowkey_test_kit::client::post(address, "/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        server.terminate();
        assert_eq!(server.ended(patience()), 0);
        let end = UnixDatagram::unbound().expect("a socket");
        end.send_to(b"END", &manager.path).expect("it hears");
        let heard = heard.join().expect("what was heard");
        assert!(folder.join("kitchen.past").exists() && folder.join("kitchen.lks").exists(), "it is saved");
        let _ = std::fs::remove_dir_all(&folder);
        let after: Vec<&String> = heard.iter().skip_while(|said| !said.starts_with("STOPPING=1")).collect();
        let n_alive = after.iter().filter(|said| **said == "WATCHDOG=1").count();
        // At least one for each tile, twice as many as it would take without them.
        assert!(n_alive >= if emulated().is_some() { 4 } else { 12 }, "{n_alive} signs of life: {after:?}");
    });
}

#[test]
fn the_watchdog_of_another_process_is_not_fed() {
    let manager = Manager::new("watchdog");
    let mut command = lowkey!();
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "30000").env("WATCHDOG_PID", "1");
    let server = Server::start(&mut command, &demo_model());
    let ready = manager.hears(patience()).expect("the server says something");
    assert!(ready.starts_with("READY=1"), "{ready}");
    assert_eq!(manager.hears(Duration::from_millis(300)), None);
    drop(server);
}

/// A limit of exactly the plan would take pages of the model away: the program's own file and the kernel's tables count, too.
#[test]
fn the_limit_of_the_unit_is_the_plan_and_some_room() {
    let plan = |form: &[&str]| {
        let mut command = lowkey!();
        let out = command.args(["plan", "--serve"]).args(form).arg("-m").arg(demo_model()).output().expect("the binary starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    };
    let json: serde_json::Value = serde_json::from_str(&plan(&["--json"])).expect("JSON");
    let planned = json["private_bytes"].as_u64().expect("bytes") + json["file_bytes"].as_u64().expect("bytes");
    let unit = plan(&["--unit"]);
    let (max, swap) = unit.trim_end().split_once('\n').expect("two lines");
    let max: u64 = max.strip_prefix("MemoryMax=").expect("the limit").parse().expect("bytes");
    assert!((planned + (12 << 20)..planned + (32 << 20)).contains(&max), "{max} for a plan of {planned}");
    assert_eq!(swap, "MemorySwapMax=0");
    assert_eq!(plan(&["-o", "unit"]), unit);
    let n_mib = max.div_ceil(1 << 20);
    let k8s = format!("resources:\n  requests:\n    memory: {n_mib}Mi\n  limits:\n    memory: {n_mib}Mi\n");
    assert_eq!(plan(&["-o", "k8s"]), k8s);
}

fn deploy(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn each_setting_of_the_service_is_a_flag() {
    let command = lowkey::cli::command();
    let serve = command.find_subcommand("serve").expect("lowkey serve");
    let flags: Vec<String> =
        serve.get_arguments().map(|arg| format!("LOWKEY_{}", arg.get_id().as_str().to_uppercase())).collect();
    let settings = deploy("default");
    let names: Vec<&str> = settings.lines().filter_map(|line| Some(line.trim_start_matches('#').split_once('=')?.0)).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| name.starts_with("LOWKEY_") && !name.contains(' ')).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(flags.iter().any(|flag| flag == name), "deploy/default has {name}, which no flag of `lowkey serve` reads");
    }
}

#[test]
fn the_package_has_the_version_of_the_program() {
    let newest = deploy("debian/changelog").lines().next().unwrap_or_default().to_owned();
    assert!(newest.starts_with(&format!("lowkey ({}) ", env!("CARGO_PKG_VERSION"))), "deploy/debian/changelog: {newest}");
}
