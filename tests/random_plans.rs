//! Random plans: random flags and prompts, on a small model that carries the vocabulary of SmolLM2 or Gemma; the private memory of
//! the process, as the system counts it from outside, stays within what was planned, and the plan is not far above it.
//!
//! Twenty by default, with prompts of up to 1 MB; `make plans` runs five hundred, of up to 20 MB (`LOWKEY_PLANS`, and `LOWKEY_PLANS_SEED` for others). Linux only.
#![cfg(target_os = "linux")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lowkey::gguf::{GgufFile, Value, ValueType};
use lowkey::kv::policy::Policy;
use lowkey::kv::types::KvType;
use lowkey_test_kit::gguf_writer::GgufWriter;

/// What the system's count may lag behind or round.
const SLACK_BYTES: u64 = 64 << 10;

const N_EMBD: u64 = 64;

/// One layer over the vocabulary of another model.
fn model_with_vocabulary_of(file: &GgufFile, path: &Path, rng: &mut fastrand::Rng) {
    let n_vocab = file.strings("tokenizer.ggml.tokens").expect("tokens").len() as u64;
    let mut writer = GgufWriter::new();
    writer.str("general.architecture", "llama");
    for (key, value) in [("embedding_length", N_EMBD), ("block_count", 1), ("feed_forward_length", 64), ("context_length", 4096)]
    {
        writer.u32(&format!("llama.{key}"), value as u32);
    }
    writer.u32("llama.attention.head_count", 2).u32("llama.attention.head_count_kv", 1);
    writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for (key, value) in file.metadata().filter(|(key, _)| key.starts_with("tokenizer.")) {
        match value {
            Value::U32(value) => writer.u32(key, value),
            Value::F32(value) => writer.f32(key, value),
            Value::Bool(value) => writer.bool(key, value),
            Value::Str(value) => writer.str(key, value),
            Value::Array(array) if array.elem_type() == ValueType::Str => {
                writer.strs(key, &file.strings(key).expect("strings").iter().collect::<Vec<_>>())
            }
            Value::Array(array) if array.elem_type() == ValueType::F32 => {
                writer.f32s(key, &file.f32s(key).expect("floats").collect::<Vec<_>>())
            }
            Value::Array(_) => writer.i32s(key, &file.i32s(key).expect("numbers").collect::<Vec<_>>()),
            other => panic!("{key} is {other:?}"),
        };
    }
    let mut floats = |n: u64| -> Vec<f32> { (0..n).map(|_| rng.f32() - 0.5).collect() };
    let (kv_dim, ones) = (32, vec![1.0; N_EMBD as usize]);
    // The table as Q8_0, so that the file stays small: scales of 2^-7 and random bytes.
    let mut table = Vec::with_capacity((n_vocab * N_EMBD / 32 * 34) as usize);
    for _ in 0..n_vocab * N_EMBD / 32 {
        table.extend_from_slice(&0x2000u16.to_le_bytes());
        table.extend((0..32).map(|_| fastrand::u8(..)));
    }
    writer.tensor("token_embd.weight", &[N_EMBD, n_vocab], 8, table);
    writer.tensor_f32("output_norm.weight", &[N_EMBD], &ones);
    for (name, dims) in [
        ("attn_q", [N_EMBD, N_EMBD]),
        ("attn_k", [N_EMBD, kv_dim]),
        ("attn_v", [N_EMBD, kv_dim]),
        ("attn_output", [N_EMBD, N_EMBD]),
        ("ffn_gate", [N_EMBD, 64]),
        ("ffn_up", [N_EMBD, 64]),
        ("ffn_down", [64, N_EMBD]),
    ] {
        writer.tensor_f32(&format!("blk.0.{name}.weight"), &dims, &floats(dims[0] * dims[1]));
    }
    for name in ["attn_norm", "ffn_norm"] {
        writer.tensor_f32(&format!("blk.0.{name}.weight"), &[N_EMBD], &ones);
    }
    std::fs::write(path, writer.build()).expect("a model");
}

/// From nothing to `most` bytes, more often short than long.
fn random_text(rng: &mut fastrand::Rng, most: f64) -> (&'static str, String) {
    let kinds = [
        "7",
        " ",
        "😀",
        "\n",
        "سلام ",
        "a",
        "<|im_end|>",
        "<|im_<|im_start|>",
        "<end_of_turn>\n\n",
        "漢字。",
        "\t",
        "e\u{301}",
        "<",
        "👩\u{200d}👧 ",
        "the lamp of the town was lit, and 42 boats came home.\n",
    ];
    let kind = kinds[rng.usize(..kinds.len())];
    let n_bytes = if rng.u8(..20) == 0 { 0.0 } else { most.powf(rng.f64()) };
    (kind, kind.repeat((n_bytes as usize).div_ceil(kind.len())))
}

fn random_flags(rng: &mut fastrand::Rng) -> Vec<String> {
    let mut flags: Vec<String> = Vec::new();
    let log = |rng: &mut fastrand::Rng, low: f64, high: f64| (low * (high / low).powf(rng.f64())) as u64;
    let mut set = |flag: &str, value: String| flags.extend([flag.to_string(), value]);
    set("-n", log(rng, 1.0, 200.0).to_string());
    set("--kv-budget", format!("{}KiB", log(rng, 64.0, 8192.0)));
    set("--threads", rng.u8(1..4).to_string());
    set("--seed", "1".into());
    if rng.bool() {
        set("--evict", Policy::all().nth(rng.usize(..Policy::all().len())).expect("a policy").name().into());
    }
    if rng.bool() {
        set("--k-type", KvType::ALL[rng.usize(..KvType::ALL.len())].name().into());
    }
    if rng.bool() {
        set("--v-type", KvType::ALL[rng.usize(..KvType::ALL.len())].name().into());
    }
    if rng.bool() {
        set("--batch", log(rng, 1.0, 1024.0).to_string());
    }
    if rng.u8(..4) == 0 {
        set("--kernels", "scalar".into());
    }
    if rng.u8(..3) == 0 {
        set("--top-logprobs", log(rng, 1.0, 49152.0).to_string());
    }
    if rng.u8(..3) == 0 {
        set("--repeat-last-n", log(rng, 1.0, 200_000.0).to_string());
        set("--repeat-penalty", "1.1".into());
    }
    if rng.u8(..3) == 0 {
        (0..rng.u8(1..13)).for_each(|i| set("--stop", "z".repeat(log(rng, 1.0, 100_000.0) as usize) + &i.to_string()));
    }
    if rng.u8(..3) == 0 {
        set("--temp", "0".into());
    }
    if rng.u8(..4) == 0 {
        set("--memory", format!("{}MiB", log(rng, 8.0, 400.0)));
    }
    flags
}

/// Bytes of a line of /proc/PID/status.
fn status_bytes(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

struct Outcome {
    code: Option<i32>,
    peak_bytes: u64,
    /// The last 16 KiB of its answer.
    answer: String,
    message: String,
}

/// Runs the command and looks at its memory all the time; what takes too long is asked to end.
fn watched(mut command: std::process::Command) -> Outcome {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let (mut stdout, mut stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let tail = |read: &mut dyn Read| -> String {
        let (mut kept, mut block) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(n @ 1..) = read.read(&mut block) {
            kept.extend_from_slice(&block[..n]);
            kept.drain(..kept.len().saturating_sub(16 << 10));
        }
        String::from_utf8_lossy(&kept).into_owned()
    };
    let (pid, begun) = (child.id(), Instant::now());
    std::thread::scope(|scope| {
        let (answer, message) = (scope.spawn(move || tail(&mut stdout)), scope.spawn(move || tail(&mut stderr)));
        let (mut peak_bytes, mut asked) = (0, 0);
        let status = loop {
            peak_bytes = status_bytes(pid, "RssAnon").unwrap_or(0).max(peak_bytes);
            if let Some(status) = child.try_wait().expect("a process of ours") {
                break status;
            }
            if begun.elapsed() > Duration::from_secs(20 * (asked + 1)) {
                asked += 1;
                let ended = std::process::Command::new("kill").args(["-INT", &pid.to_string()]).status();
                assert!(ended.is_ok_and(|status| status.success()) || child.try_wait().is_ok_and(|end| end.is_some()));
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        let (answer, message) = (answer.join().expect("an answer"), message.join().expect("a message"));
        Outcome { code: status.code(), peak_bytes, answer, message }
    })
}

/// The number behind a key of the answer, which is too long to be parsed.
fn number(answer: &str, key: &str) -> Option<u64> {
    let at = answer.rfind(&format!("\"{key}\":"))? + key.len() + 3;
    let digits: String = answer[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn vocabularies(folder: &Path, rng: &mut fastrand::Rng) -> Vec<PathBuf> {
    let demo = lowkey_test_kit::demo_model();
    let all = [demo.clone(), demo.with_file_name("gemma3-270m-q4_k_m.gguf")];
    let there = all.iter().filter(|path| path.is_file());
    let of = there.enumerate().map(|(i, path)| {
        let small = folder.join(format!("vocabulary-{i}.gguf"));
        model_with_vocabulary_of(&GgufFile::open(path).expect("a model"), &small, rng);
        small
    });
    of.collect()
}

#[test]
fn random_runs_stay_within_their_plans() {
    if lowkey_test_kit::emulated().is_some() {
        // The emulator's own memory would be counted.
        return;
    }
    let wanted = |name: &str, usual: u64| std::env::var(name).map_or(usual, |n| n.parse().expect(name));
    let (n_plans, seed) = (wanted("LOWKEY_PLANS", 20), wanted("LOWKEY_PLANS_SEED", 17));
    let folder = std::env::temp_dir().join(format!("lowkey-plans-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (models, prompt) = (vocabularies(&folder, &mut rng), folder.join("prompt.txt"));
    let (mut ratios, mut wrong, mut refused) = (Vec::new(), Vec::new(), 0);
    for i in 0..n_plans {
        let (kind, text) = random_text(&mut rng, if n_plans < 100 { 1e6 } else { 20e6 });
        std::fs::write(&prompt, &text).expect("a prompt");
        let model = &models[rng.usize(..models.len())];
        let flags = random_flags(&mut rng);
        let mut command = lowkey_test_kit::lowkey!();
        command.arg("run").arg("-m").arg(model).arg("-f").arg(&prompt).args(["--json", "--ignore-eos"]).args(&flags);
        let shown: Vec<String> =
            flags.iter().map(|flag| if flag.len() > 24 { format!("{} bytes", flag.len()) } else { flag.clone() }).collect();
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let what = format!("{i}: {name}, {} bytes of {kind:?}, {}", text.len(), shown.join(" "));
        let begun = Instant::now();
        let outcome = watched(command);
        let (took, peak) = (begun.elapsed().as_secs_f64(), outcome.peak_bytes);
        let Some(plan) = number(&outcome.answer, "plan_bytes") else {
            // A refusal is one line; a run that was cut short before it began says nothing.
            let line = outcome.message.lines().last().unwrap_or_default();
            println!("{what}: {:?} after {took:.1} s: {line:.200}", outcome.code);
            if !matches!(outcome.code, Some(1 | 2 | 130)) || (outcome.code != Some(130) && line.is_empty()) {
                wrong.push(format!("{what}: ended with {:?}: {line:.200}", outcome.code));
            }
            refused += 1;
            continue;
        };
        let ratio = plan as f64 / peak as f64;
        println!("{what}: plan {plan}, peak {peak}, {ratio:.2}, {took:.1} s");
        ratios.push(ratio);
        if peak > plan + SLACK_BYTES {
            wrong.push(format!("{what}: took {peak} bytes and planned {plan}"));
        }
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
    println!("{} ran, {refused} were refused or cut short; the plan is {median:.3} times the peak in the median", ratios.len());
    assert!(wrong.is_empty(), "{} of {n_plans}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ratios.len() as u64 > n_plans / 4, "only {} of {n_plans} ran", ratios.len());
    assert!(median <= 1.25, "the plan is {median:.3} times the peak in the median");
}
