//! The program itself, given model files with things wrong at random, under limits of address space and time: it ends with 0, 1
//! or 2, says what is wrong in one line, and takes no more memory than it said it would. `make fuzz` tries many more files.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::gguf_writer::{GgufWriter, take_apart};
use lowkey_test_kit::mutate::mutated;
use lowkey_test_kit::{families, golden};

/// Address space of the process, in KiB: some hundred times what these files need.
const ADDRESS_SPACE: u64 = 512 << 10;
const TIME: Duration = Duration::from_secs(30);
/// What memory may pass the plan by.
const SLACK: u64 = 64 << 10;
/// And that of a binary for tests, of which more is written as it is loaded than the plan knows of.
const TEST_SLACK: u64 = 512 << 10;

fn originals() -> Vec<GgufWriter> {
    let (golden, spm) = (golden("families.json"), golden("spm.json"));
    let families = [
        "qwen2-q8",
        "llama-mix",
        "smollm3-q8",
        "phi3-factors",
        "llama-yarn",
        "gemma2-q8",
        "gemma3-q8",
        "lfm2-q8",
        "granite-q8",
        "qwen35-q8",
        "qwen35moe-q8",
        "gemma4-q8",
        "gemma4-moe-q8",
        "granitehybrid-moe-q8",
        "falcon-h1-q8",
        "gpt-oss-q8",
    ];
    let families = families.iter().map(|&name| families::family_model(name, &golden["models"][name]));
    let tiny = ["tiny-gqa.gguf", "tiny-freqs.gguf", "tiny-gqa-f32.gguf"].map(take_apart);
    tiny.into_iter().chain(families).chain([families::spm_vocabulary(&spm["models"]["phi-3"])]).collect()
}

/// The arguments of case `i` and whether their answer tells the plan.
fn arguments(i: u64, model: &Path, text: &Path) -> (Vec<String>, bool) {
    let (model, text) = (model.display().to_string(), text.display().to_string());
    let line = match i % 10 {
        0..=4 => format!("run -m {model} -p Hello-world -n 6 --json --ignore-eos --kv-budget 256KiB --threads 2"),
        5 => format!(
            "run -m {model} -f {text} -n 2 --json --kv-budget 64KiB --evict keydiff --k-type q4_h --v-type q4_h --threads 1"
        ),
        6 => format!("eval ppl -m {model} -f {text} --ctx 64 --windows 1 --keep 50% -o json --threads 2"),
        7 => format!("plan -m {model} --json"),
        8 => format!("info {model} --json"),
        _ => format!("tokenize -m {model} Hello,_w\u{f6}rld<|im_start|>"),
    };
    (line.split(' ').map(str::to_owned).collect(), i % 10 < 6)
}

struct Outcome {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
    /// What was private at the highest, as far as the system tells: of the peak what the files did not take.
    private: u64,
    in_time: bool,
}

/// A number of `/proc/PID/status` in bytes.
fn status(child: &Child, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Runs the binary with a full pipe for its answer, so that it waits with its memory still to be seen.
fn run(binary: &str, args: &[String], errors: &Path) -> Outcome {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    const PIPE: usize = 64 << 10;
    writer.write_all(&[b' '; PIPE]).expect("an empty pipe takes as much");
    let stderr = fs::File::create(errors).expect("a file");
    let limits = format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"");
    let mut child = Command::new("sh")
        .args(["-c", &limits, binary])
        .args(args)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(stderr)
        .spawn()
        .expect("sh starts");
    let (began, mut private, mut waits, mut before) = (Instant::now(), 0, 0, String::new());
    let code = loop {
        if let Some(status) = child.try_wait().expect("its state") {
            break status.code();
        }
        if let (Some(peak), Some(file)) = (status(&child, "VmHWM"), status(&child, "RssFile")) {
            private = private.max(peak.saturating_sub(file)).max(status(&child, "RssAnon").unwrap_or(0));
        }
        // Asleep, and no processor time in as long: it waits for the pipe.
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
        waits = if stat == before && stat.contains(") S ") { waits + 1 } else { 0 };
        before = stat;
        if waits > 40 || began.elapsed() > TIME {
            break None;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut stdout = Vec::new();
    let in_time = began.elapsed() <= TIME;
    if code.is_none() && !in_time {
        child.kill().expect("it runs");
    }
    reader.read_to_end(&mut stdout).expect("its answer");
    let code = child.wait().expect("an end").code();
    let stderr = String::from_utf8_lossy(&fs::read(errors).expect("a file")).into_owned();
    Outcome { code, stdout: stdout.split_off(PIPE), stderr, private, in_time }
}

/// What is wrong with an outcome.
fn complaint(outcome: &Outcome, tells_plan: bool, slack: u64) -> Option<String> {
    let last = outcome.stderr.lines().last().unwrap_or_default();
    if !outcome.in_time || !matches!(outcome.code, Some(0..=2)) {
        return Some(format!("ended with {:?}, in time: {}", outcome.code, outcome.in_time));
    }
    if outcome.code != Some(0) && !(last.starts_with("lowkey: ") && last.len() < 1200) {
        return Some("does not end with one line of lowkey".into());
    }
    if outcome.stderr.contains("panicked") || outcome.stderr.contains("backtrace") {
        return Some("panicked".into());
    }
    if tells_plan && outcome.code == Some(0) {
        let answer: serde_json::Value = serde_json::from_slice(&outcome.stdout).ok()?;
        let plan = answer["memory"]["plan_bytes"].as_u64()?;
        return (outcome.private > plan + slack).then(|| format!("{} private, {plan} planned", outcome.private));
    }
    None
}

#[test]
fn mutated_files_end_in_order() {
    let n_cases: u64 = std::env::var("LOWKEY_FUZZ_CASES").map_or(200, |n| n.parse().expect("LOWKEY_FUZZ_CASES is a number"));
    if lowkey_test_kit::emulated().is_some() {
        return; // The emulator's own memory is what the system sees.
    }
    let release = std::env::var("LOWKEY_FUZZ_BINARY").ok();
    let slack = if release.is_some() { SLACK } else { TEST_SLACK };
    let binary = release.as_deref().unwrap_or(env!("CARGO_BIN_EXE_lowkey"));
    let folder = std::env::temp_dir().join(format!("lowkey-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let text = folder.join("text");
    fs::write(&text, "The quick brown fox jumps over the lazy dog. ".repeat(12)).expect("a file");
    let (originals, folder, text) = (&originals(), &folder, &text);
    let half = |worker: u64| -> (u64, Vec<String>) {
        let (mut n_done, mut failures) = (0, Vec::new());
        for i in (worker..n_cases).step_by(2) {
            let mut rng = fastrand::Rng::with_seed(i);
            let model: PathBuf = folder.join(format!("case-{i}.gguf"));
            fs::write(&model, mutated(&originals[rng.usize(..originals.len())], &mut rng)).expect("a file");
            let (args, tells_plan) = arguments(rng.u64(..), &model, text);
            let outcome = run(binary, &args, &folder.join(format!("errors-{worker}")));
            n_done += u64::from(outcome.code == Some(0));
            match complaint(&outcome, tells_plan, slack) {
                None => fs::remove_file(&model).expect("its own file"),
                Some(what) => failures.push(format!("lowkey {}: {what}: {}", args.join(" "), outcome.stderr)),
            }
        }
        (n_done, failures)
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        (half(0), other.join().expect("see above"))
    });
    let (n_done, failures) = (one.0 + two.0, [one.1, two.1].concat());
    println!("{n_cases} files: {n_done} did what was asked, {} failed", failures.len());
    assert!(failures.is_empty(), "the files stay in {}:\n{}", folder.display(), failures.join("\n"));
    fs::remove_dir_all(folder).expect("its own folder");
    assert!(n_done > n_cases / 20 && n_done < n_cases, "both fates occur: {n_done} of {n_cases}");
}
