//! What the integration tests share: a writer of small GGUF files, right or wrong on purpose, and the demo model.
//!
//! No assertions about the engine here; each test says itself what it expects.

pub mod client;
pub mod counting;
pub mod families;
pub mod gguf_writer;
pub mod mutate;
pub mod sessions;
pub mod test_disk;
pub mod tiny;

use std::path::{Path, PathBuf};

use lowkey::gguf::GgufFile;
use lowkey::kernels::Kernels;
use lowkey::kv::{KvParams, KvType, Policy, Recent};
use lowkey::model::forward::Model;
use lowkey::session::{Session, SessionParams};

/// The folder of the repository.
fn root() -> &'static Path {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).expect("the kit lies in tests/kit")
}

pub fn demo_model() -> PathBuf {
    let path = std::env::var_os("LOWKEY_TEST_MODEL")
        .map_or_else(|| root().join("models/smollm2-135m-instruct-q4_1.gguf"), PathBuf::from);
    assert!(path.is_file(), "the demo model is not at {}: run `make model`", path.display());
    path
}

pub fn data(name: &str) -> PathBuf {
    root().join("tests/data").join(name)
}

pub fn golden(name: &str) -> serde_json::Value {
    let path = root().join("tests/golden").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Ids of a JSON array.
pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("an array").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

pub fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

pub fn params(budget_bytes: u64) -> SessionParams {
    SessionParams {
        n_streams: 1,
        n_log: 0,
        kv: KvParams {
            budget_bytes,
            policy: Policy::L2,
            sinks: 4,
            pinned: 0,
            recent: Some(Recent::Percent(50.0)),
            rare: None,
            pool: None,
        },
        k_type: Some(KvType::F16),
        v_type: Some(KvType::F16),
        past: None,
        n_stream: None,
        n_batch: 64,
        n_threads: Some(2),
        kernels: "auto".into(),
        n_logits: 1,
        n_draft: 0,
        memory_bytes: None,
        mlock: false,
    }
}

pub fn model(path: &Path) -> Model {
    Model::load(GgufFile::open(path).expect("a GGUF file")).expect("a model this engine runs")
}

pub fn session(path: &Path, params: &SessionParams) -> Session {
    let model = model(path);
    let layout = params.layout(&model).expect("a layout");
    Session::new(model, &layout).expect("a session")
}

/// The bytes that give exactly `n_slot` slots to a session with these parameters.
pub fn budget_for(path: &Path, n_slot: usize, params: &SessionParams) -> u64 {
    let mut wide = params.clone();
    wide.kv.budget_bytes = u64::MAX;
    wide.layout(&model(path)).expect("a layout").kv.arena_bytes(n_slot) as u64
}

/// A text of the project's own (tests/data) as tokens of the demo model.
pub fn text(name: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(data(name)).unwrap_or_else(|e| panic!("tests/data/{name}: {e}"));
    let tokenizer =
        lowkey::text::Tokenizer::from_gguf(&GgufFile::open(&demo_model()).expect("the demo model")).expect("its tokenizer");
    tokenizer.encode(&text, true, false).expect("ids")
}

/// The first `n` tokens of the project's prose.
pub fn prose(n: usize) -> Vec<u32> {
    let mut tokens = text("prose.txt");
    assert!(tokens.len() >= n, "prose.txt has {} tokens, {n} are wanted", tokens.len());
    tokens.truncate(n);
    tokens
}

/// Whether this is an emulated CPU (the test runner names it): correctness counts there, long runs do not fit.
pub fn emulated() -> Option<String> {
    std::env::var("QEMU_CPU").ok().filter(|cpu| cfg!(any(target_arch = "aarch64", target_arch = "arm")) && !cpu.is_empty())
}

/// What a test of every combination tries: all `here`, and under emulation, where each takes many times as long, those of `emulated`.
pub fn tried<T>(here: Vec<T>, emulated_too: Vec<T>) -> Vec<T> {
    if emulated().is_some() { emulated_too } else { here }
}

/// The kernel sets that a test of whole models tries: all that this CPU has. Where `cross/arm-tests` runs the same test on several
/// processors it names the one set (LOWKEY_TEST_KERNELS) that no processor before has run.
pub fn kernel_sets() -> Vec<Kernels> {
    let named = std::env::var("LOWKEY_TEST_KERNELS").ok();
    let sets: Vec<Kernels> = Kernels::available().filter(|set| named.as_ref().is_none_or(|name| name == set.name())).collect();
    assert!(!sets.is_empty(), "LOWKEY_TEST_KERNELS={}: this CPU has no such set", named.unwrap_or_default());
    sets
}

/// See `lowkey!`: the binary under test, by the emulator where the tests themselves are emulated.
pub fn binary(binary: &str) -> std::process::Command {
    let mut command = match emulated() {
        Some(cpu) => {
            let mut qemu =
                std::process::Command::new(if cfg!(target_arch = "arm") { "qemu-arm-static" } else { "qemu-aarch64-static" });
            qemu.args(["-cpu", &cpu, binary]);
            qemu
        }
        None => std::process::Command::new(binary),
    };
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LOWKEY_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

/// A command that runs the binary under test, whose path cargo tells only to integration tests themselves.
#[macro_export]
macro_rules! lowkey {
    () => {
        $crate::binary(env!("CARGO_BIN_EXE_lowkey"))
    };
}

/// Runs a command to its end: its output, and the most anonymous memory that the system saw it hold, looked at from outside
/// every half of a millisecond.
pub fn watched(command: &mut std::process::Command) -> (std::process::Output, u64) {
    use std::process::Stdio;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let ended = std::thread::spawn(move || child.wait_with_output().expect("its output"));
    let mut peak = 0;
    while !ended.is_finished() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let kib = text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    (ended.join().expect("a thread"), peak)
}
