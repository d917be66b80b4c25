//! Resident private memory, as the system counts it, from the moment the arena is carved: flat, and within the plan.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

fn rss_anon_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// A prompt of many tokens through a small arena. `LOWKEY_SOAK_TOKENS` makes the stream longer (20000 in docs/performance.md).
#[test]
fn resident_private_memory_is_flat_once_the_arena_is_carved() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("an emulated process's memory is the emulator's");
    }
    let n_tokens: usize = std::env::var("LOWKEY_SOAK_TOKENS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let story = std::fs::read_to_string(lowkey_test_kit::data("prose.txt")).expect("tests/data/prose.txt");
    // About four bytes a token.
    let text: String = story.chars().cycle().take(n_tokens * 9 / 2).collect();
    let path = std::env::temp_dir().join(format!("lowkey-long-prompt-{}.txt", std::process::id()));
    std::fs::write(&path, &text).expect("a temporary file");
    let model = lowkey_test_kit::demo_model();
    let mut child = lowkey_test_kit::lowkey!()
        .args(["run", "-m", model.to_str().expect("UTF-8"), "-f", path.to_str().expect("UTF-8")])
        .args([
            "-n",
            "50",
            "--temp",
            "0.9",
            "--seed",
            "3",
            "--ignore-eos",
            "--kv-budget",
            "2MiB",
            "--threads",
            "2",
            "--log-level",
            "info",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("all memory is taken") {
        line.clear();
        assert!(stderr.read_line(&mut line).expect("text") > 0, "it ended before it began");
    }
    let pid = child.id();
    let start = rss_anon_kib(pid).expect("a running process");
    let (mut peak, mut samples) = (start, 0);
    while child.try_wait().expect("a child").is_none() {
        if let Some(now) = rss_anon_kib(pid) {
            (peak, samples) = (peak.max(now), samples + 1);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (mut out, mut rest) = (String::new(), String::new());
    child.stdout.take().expect("a pipe").read_to_string(&mut out).expect("text");
    stderr.read_to_string(&mut rest).expect("text");
    std::fs::remove_file(&path).expect("the temporary file");
    println!("{start} KiB when the arena was carved, {peak} KiB at most in {samples} samples; {}", rest.trim());
    assert!(samples > 20 && rest.contains("evicted"), "{rest}");
    assert_eq!(peak, start, "KiB of anonymous memory");
}

/// Variables are looked up and parsed like flags: the start takes no more with them.
#[test]
fn variables_cost_no_memory_beside_the_plan() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("an emulated process's memory is the emulator's");
    }
    let watched = |set: &dyn Fn(&mut Command)| {
        let mut command = lowkey_test_kit::lowkey!();
        command.args(["run", "-t", "1", "-n", "3", "-p", "a", "--json", "--kv-budget", "1MiB", "-m"]);
        set(command.arg(lowkey_test_kit::data("tiny-gqa.gguf")));
        let (out, peak) = lowkey_test_kit::watched(&mut command);
        let answer: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let number = |name: &str| answer["memory"][name].as_u64().expect("a number");
        (peak.max(number("rss_anon_peak_bytes")), number("plan_bytes"))
    };
    let (_, plan) = watched(&|_| ());
    let limit = plan.to_string();
    for (name, value) in [("LOWKEY_FOO", "1"), ("LOWKEY_TEMP", "0"), ("LOWKEY_SPACE", "1"), ("LOWKEY_MEMORY", &limit)] {
        let (peak, plan) = watched(&|command| {
            command.env(name, value);
        });
        assert!(peak <= plan, "{name}={value}: {peak} bytes of {plan} planned");
    }
}
