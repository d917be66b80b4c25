//! The binary as a user meets it: answers on stdout, one line for each mistake, exit codes, signals.

use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use lowkey_test_kit::{demo_model, emulated, lowkey};
use serde_json::Value;

fn run(args: &[&str]) -> Output {
    lowkey!().args(args).stdin(Stdio::null()).output().expect("the binary starts")
}

fn model() -> String {
    demo_model().to_str().expect("a path in UTF-8").to_owned()
}

fn json(args: &[&str]) -> Value {
    let out = run(args);
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{args:?}: {stderr}");
    assert_eq!(stdout.lines().count(), 1, "one object on stdout: {stdout}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout}"))
}

/// Exit code and the one line on stderr.
fn mistake(args: &[&str]) -> (i32, String) {
    let out = run(args);
    let stderr = String::from_utf8(out.stderr).expect("text");
    assert!(out.stdout.is_empty(), "{args:?} answers nothing: {}", String::from_utf8_lossy(&out.stdout));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("lowkey: "), "{args:?}: one line, not: {stderr}");
    (out.status.code().expect("a code"), lines[0].to_owned())
}

#[test]
fn run_answers_in_json() {
    let m = model();
    let n = if emulated().is_some() { "4" } else { "24" };
    let args = [
        "run",
        "-m",
        &m,
        "-p",
        "The capital of France is",
        "-n",
        n,
        "--temp",
        "0",
        "--kv-budget",
        "2MiB",
        "--json",
        "--top-logprobs",
        "3",
    ];
    let answer = measured(&args);
    assert_eq!(answer["prompt_tokens"], serde_json::json!([504, 3575, 282, 4649, 314]));
    let tokens = lowkey_test_kit::ids(&answer["tokens"]);
    assert_eq!(tokens.len().to_string(), n);
    assert!(answer["text"].as_str().expect("text").starts_with(" Paris"), "{}", answer["text"]);
    assert_eq!(answer["stop"], "length");
    let logprobs = answer["logprobs"].as_array().expect("logprobs");
    assert_eq!(logprobs.len(), tokens.len());
    for (top, token) in logprobs.iter().zip(&tokens) {
        assert_eq!(top.as_array().expect("three").len(), 3);
        assert_eq!(top[0][0].as_u64(), Some(u64::from(*token)), "greedy takes the most likely");
        assert!(top[0][1].as_f64() >= top[1][1].as_f64() && top[0][1].as_f64().expect("a logarithm") <= 0.0);
    }
    for name in ["load_ms", "prefill_ms", "prefill_tok_s", "decode_ms", "decode_tok_s", "first_token_ms"] {
        assert!(answer["timings"][name].as_f64().is_some_and(|v| v > 0.0), "{name}: {}", answer["timings"]);
    }
    let kv = &answer["kv"];
    assert_eq!(
        (kv["budget_bytes"].as_u64(), &kv["policy"], &kv["k_type"], &kv["v_type"]),
        (Some(2 << 20), &"l2-attn".into(), &"f16".into(), &"f16".into())
    );
    assert!(kv["arena_bytes"].as_u64() <= Some(2 << 20) && kv["n_slot"].as_u64() > Some(50));
    assert_eq!(kv["live"].as_u64(), Some(5 + tokens.len() as u64 - 1));
    let memory = &answer["memory"];
    assert_eq!(memory["weights_bytes"].as_u64(), Some(std::fs::metadata(demo_model()).expect("the model").len()));
    if emulated().is_none() {
        let (plan, peak) = (memory["plan_bytes"].as_u64(), memory["rss_anon_peak_bytes"].as_u64());
        assert!(peak > plan.map(|plan| plan / 2) && peak <= plan, "peak {peak:?} within the plan {plan:?}");
    }
    assert!(answer["threads"].as_u64() >= Some(1));
    assert_choice(&answer);
}

/// What is said; asked for again where a busy machine left no time to measure.
fn again<T>(ask: impl Fn() -> T, was_measured: impl Fn(&T) -> bool) -> T {
    (0..4).map(|_| ask()).find(|said| emulated().is_some() || was_measured(said)).unwrap_or_else(ask)
}

fn measured(args: &[&str]) -> Value {
    again(|| json(args), |answer| answer["read_gb_s"].is_number())
}

/// What was measured: decoding of each type, unless time was up, and how fast weights were read then.
fn assert_choice(answer: &Value) {
    let choice = answer["kernel_choice"].as_array().expect("a list");
    for row in choice {
        assert!(row["kernels"].is_string() && row["gain"].as_f64().is_some_and(|gain| gain >= 1.0), "{row}");
        let (op, has_type) = (row["op"].as_str().expect("a name"), row["type"].is_string());
        assert!(matches!((op, has_type), ("decode" | "few" | "batch", true) | ("attention", false)), "{row}");
        assert_eq!(row["read_gb_s"].is_number(), op == "decode", "{row}");
    }
    assert_eq!(answer["read_gb_s"].is_number(), choice.iter().any(|row| row["op"] == "decode"));
    // Emulated, the first piece may take all the time there is.
    assert!(emulated().is_some() || answer["read_gb_s"].as_f64().is_some_and(|gb_s| gb_s > 0.0), "{choice:?}");
}

#[test]
fn info_says_which_set_is_fastest_at_what() {
    let m = model();
    let answer = measured(&["info", &m, "--json"]);
    assert_choice(&answer);
    assert!(answer["kernel_choice"].as_array().expect("a list").iter().all(|row| row["op"] != "attention"));
    let line = || {
        let text = String::from_utf8(run(&["info", &m]).stdout).expect("UTF-8");
        text.lines().find(|line| line.starts_with("measured on these weights: ")).expect("a line").to_owned()
    };
    let line = again(line, |line| line.contains(" GB/s"));
    assert!(line.contains(" thread") && (emulated().is_some() || line.contains(" GB/s")), "{line}");
}

#[test]
fn a_bench_holds_decoding_against_a_plain_read() {
    let m = model();
    let args = ["bench", "-m", &m, "-p", "8", "-n", "2", "-r", "2", "-t", "2", "--kv-budget", "2MiB", "--bandwidth"];
    let rows = json(&[&args[..], &["--json"]].concat());
    let tests: Vec<(&str, u64)> =
        rows.as_array().expect("rows").iter().map(|r| (r["test"].as_str().unwrap(), r["threads"].as_u64().unwrap())).collect();
    assert_eq!(tests, [("pp8", 2), ("tg2", 2), ("read", 1), ("read", 2)]);
    assert!(rows[0].get("gb_s").is_none());
    let number = |row: usize, name: &str| rows[row][name].as_f64().expect("a number");
    assert!(number(2, "gb_s_min") <= number(2, "gb_s_median") && number(2, "gb_s_median") <= number(2, "gb_s_max"));
    // A token reads all matrices once, which are nearly all of the file.
    let file_bytes = std::fs::metadata(demo_model()).expect("the model").len() as f64;
    let token_bytes = number(1, "gb_s") * 1e9 / number(1, "tok_s_median");
    assert!(token_bytes > 0.9 * file_bytes && token_bytes < file_bytes, "{token_bytes} of {file_bytes}");
    assert!((number(1, "of_read") - number(1, "gb_s") / number(3, "gb_s_median")).abs() < 1e-9);
    let text = lowkey!().args(args).output().expect("it starts");
    let text = String::from_utf8(text.stdout).expect("UTF-8");
    assert!(text.contains("| threads | GB/s |") && text.contains("tg2 at depth 0 reads "), "{text}");
}

/// On processors with one set there is nothing to compare; elsewhere sets have as many turns as there are whole rounds.
#[test]
fn a_bench_lets_kernel_sets_take_turns() {
    let m = model();
    let sets = json(&["info", &m, "--json"])["kernels"].as_array().expect("names").len() - 1;
    let args = ["bench", "-m", &m, "-p", "0", "-n", "9", "-r", "2", "-t", "1", "--kv-budget", "2MiB", "--sets"];
    let refused = |args: &[&str], flag: &str| {
        let (code, line) = mistake(args);
        assert!(code == 2 && line.contains(flag), "{line}");
    };
    if sets < 2 {
        return refused(&args, "--sets");
    }
    let rows = json(&[&args[..], &["--json"]].concat());
    let rows = rows.as_array().expect("rows");
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().expect("a test")).collect();
    assert_eq!(tests, ["tg9", "tg9 in turn"]);
    let names: Vec<&str> =
        rows[1]["sets"].as_array().expect("sets").iter().map(|s| s["kernels"].as_str().expect("a set")).collect();
    assert_eq!((names.len(), names[0], names[sets]), (1 + sets, "auto", rows[0]["kernels"].as_str().expect("a set")));
    assert_eq!(rows[1]["rounds"], 2 * (9 / (1 + sets)));
    assert!(rows[1]["of_best"].as_f64().is_some_and(|share| share > 0.0));
    refused(&[&args[..], &["--kernels", names[1]]].concat(), "--sets");
    refused(&["bench", "-m", &m, "-p", "8", "-n", "0", "-r", "9", "--kv-budget", "2MiB", "--sets"], "--prompt");
}

#[test]
fn every_kernel_set_gives_the_same_greedy_tokens() {
    let m = model();
    let n = if emulated().is_some() { "8" } else { "16" };
    let tokens = |kernels: &str| {
        let args = [
            "run",
            "-m",
            &m,
            "-p",
            "Once upon a time",
            "-n",
            n,
            "--temp",
            "0",
            "--kv-budget",
            "2MiB",
            "--json",
            "--kernels",
            kernels,
        ];
        let answer = json(&args);
        (answer["tokens"].clone(), answer["kernels"].as_str().expect("a name").to_owned())
    };
    let (want, _) = tokens("scalar");
    let (got, set) = tokens("auto");
    if let Ok(expected) = std::env::var("LOWKEY_EXPECT_KERNELS") {
        assert_eq!(set, expected, "auto picks the expected set on this CPU");
    }
    assert_eq!(got, want, "{set} against scalar");
    if emulated().is_none() {
        for kernels in lowkey::kernels::Kernels::available() {
            assert_eq!(tokens(kernels.name()).0, want, "{} against scalar", kernels.name());
        }
    }
}

#[test]
fn mistakes_are_one_line_that_names_the_flag_and_the_way_out() {
    let m = model();
    let not_gguf = std::env::temp_dir().join(format!("lowkey-not-a-model-{}.gguf", std::process::id()));
    std::fs::write(&not_gguf, "this is a text").expect("a temporary file");
    let not_gguf_path = not_gguf.to_str().expect("UTF-8").to_owned();
    let cases: [(&[&str], i32, &[&str]); 20] = [
        (&["run", "-m", &m, "-p", "x", "--kv-budget", "10KiB"], 1, &["--kv-budget", "give at least", "--batch"]),
        (
            &["run", "-m", &m, "-p", "x", "--kv-budget", "150KiB", "--sinks", "4", "--recent", "16"],
            1,
            &["--kv-budget", "give at least"],
        ),
        (&["run", "-m", &m, "-p", "x", "--memory", "5MiB"], 1, &["--memory", "give at least", "kv arena"]),
        (&["run", "-m", &m, "-p", ""], 1, &["--prompt", "0 tokens"]),
        (&["run", "-m", &m, "-f", "-"], 1, &["--file", "0 tokens"]),
        (&["run", "-m", &not_gguf_path, "-p", "x"], 1, &[&not_gguf_path, "GGUF"]),
        (&["run", "-m", "/no/such/file.gguf", "-p", "x"], 1, &["/no/such/file.gguf", "no such file"]),
        (&["run", "-m", "no-such-name", "-p", "x"], 2, &["--model", "no-such-name", "smollm2-135m-instruct"]),
        (&["run", "-m", &m, "-p", "x", "--kv-budget", "4MB"], 2, &["--kv-budget", "4MiB"]),
        (&["run", "-m", &m, "-p", "x", "--kernels", "mmx"], 2, &["--kernels", "mmx", "scalar"]),
        (&["run", "-m", &m, "-p", "x", "--evict", "lru"], 2, &["--evict", "lru", "window"]),
        (&["run", "-m", &m, "-p", "x", "--rare", "45"], 2, &["--rare", "25%"]),
        (&["run", "-m", &m, "-p", "x", "--pool", "1000"], 2, &["--pool"]),
        (&["run", "-m", &m, "-p", "x", "--threads", "0"], 2, &["--threads"]),
        (&["run", "-m", &m, "-p", "x", "--top-p", "7"], 2, &["--top-p"]),
        (&["run", "-m", &m, "-p", "x", "--json", "-n", "-1"], 2, &["-n", "--json"]),
        (&["run", "-m", &m], 2, &["--prompt", "-f"]),
        (&["run", "-m", &m, "-p", "x", "--chat", "--template", "chatmll"], 2, &["--template", "chatmll", "chatml (", "a file"]),
        (&["run", "-m", &m, "-p", "x", "--no-such-flag"], 2, &["--no-such-flag"]),
        (&["eval", "ppl", "-m", &m, "-f", &not_gguf_path], 2, &["--file", "fewer than one window", "--ctx"]),
    ];
    for (args, code, parts) in cases {
        let (got, line) = mistake(args);
        assert_eq!(got, code, "{args:?}: {line}");
        for part in parts {
            assert!(line.contains(part), "{args:?}: '{part}' is missing in: {line}");
        }
    }
    std::fs::remove_file(not_gguf).expect("the temporary file");
}

/// `plan` is told what `run` is told, and says the same sum; what the system sees at the peak is within it, and not far below.
#[test]
fn the_plan_is_the_run_s_whatever_the_flags() {
    let m = model();
    let long: Vec<String> = (0..12).map(|i| format!("{i}{}", "stop".repeat(30_000))).collect();
    let stops: Vec<&str> = long.iter().flat_map(|stop| ["--stop", stop]).collect();
    let text = lowkey_test_kit::data("prose.txt").to_str().expect("UTF-8").to_owned();
    let sets: [&[&str]; 6] = [
        &["-p", "The capital of France is", "-n", "8", "--kv-budget", "2MiB"],
        &["-p", "x", "-n", "30", "--top-logprobs", "49152"],
        &stops,
        &["-p", "x", "-n", "4", "--repeat-last-n", "500000", "--repeat-penalty", "1.1"],
        &["--chat", "--system", "Be brief.", "-p", "Hello", "-n", "4"],
        &["-f", &text, "-n", "4", "--kv-budget", "3MiB", "--batch", "32", "--threads", "1"],
    ];
    // Emulated, the prose takes minutes to read.
    let n_sets = if emulated().is_some() { 5 } else { 6 };
    for flags in &sets[..n_sets] {
        let flags = *flags;
        let of = |command: &[&'static str]| -> Vec<String> {
            let prompt: &[&str] = if flags.contains(&"-p") || flags.contains(&"-f") { &[] } else { &["-p", "x", "-n", "4"] };
            [command, &["-m", &m, "--json", "--temp", "0"], prompt, flags].concat().iter().map(|arg| arg.to_string()).collect()
        };
        let planned = |command: &[&'static str]| {
            let args = of(command);
            json(&args.iter().map(String::as_str).collect::<Vec<_>>())["private_bytes"].as_u64()
        };
        let (out, peak) = lowkey_test_kit::watched(lowkey!().args(of(&["run"])));
        let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let plan = answer["memory"]["plan_bytes"].as_u64().expect("a plan");
        let name = flags[..flags.len().min(2)].concat().chars().take(40).collect::<String>();
        assert_eq!((planned(&["plan"]), planned(&["plan", "run"])), (Some(plan), Some(plan)), "{name}");
        if emulated().is_none() {
            assert!(peak <= plan && peak > plan / 2, "{name}: peak {peak}, plan {plan}");
        }
    }
    let bench = ["-m", &m, "-p", "8", "-n", "2", "-d", "0,300", "-r", "1", "-o", "json"];
    let plan = json(&[&["plan", "bench"], &bench[..]].concat())["private_bytes"].as_u64().expect("bytes");
    if emulated().is_none() {
        let (_, peak) = lowkey_test_kit::watched(lowkey!().arg("bench").args(bench));
        assert!(peak <= plan && peak > plan / 2, "peak {peak}, plan {plan}");
    }
}

/// More threads than cores are let through, slow as they are, and said to be slow.
#[test]
fn more_threads_than_cores_are_warned_of() {
    let m = model();
    let cores = std::thread::available_parallelism().expect("a count").get();
    for (threads, warned) in [(cores, false), (cores + 1, true)] {
        let out = run(&["run", "-m", &m, "-p", "x", "-n", "1", "--threads", &threads.to_string()]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{stderr}");
        let line = format!("--threads {threads} on {cores} cores");
        assert_eq!(stderr.contains(&line), warned, "{threads}: {stderr}");
    }
}

#[test]
fn a_flag_that_a_policy_does_not_know_is_said_to_change_nothing() {
    let m = model();
    for (policy, rare, pool) in [("tova", true, true), ("outlier", true, false), ("l2", false, false), ("l2-attn", false, false)]
    {
        let out = run(&["run", "-m", &m, "-p", "x", "-n", "1", "--evict", policy, "--rare", "10%", "--pool", "2"]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{stderr}");
        for (flag, said) in [("--rare", rare), ("--pool", pool)] {
            let line = format!("{flag} changes nothing with --evict {policy}");
            assert_eq!(stderr.contains(&line), said, "{policy}: {stderr}");
        }
    }
}

#[test]
fn plan_adds_up_and_refuses() {
    let m = model();
    let plan = json(&["plan", "-m", &m, "--kv-budget", "4MiB", "--threads", "2", "--json"]);
    let sum = |kind: &str| -> u64 {
        let regions = plan["regions"].as_array().expect("regions");
        regions.iter().filter(|r| r["kind"] == kind).map(|r| r["bytes"].as_u64().expect("bytes")).sum()
    };
    assert_eq!((plan["private_bytes"].as_u64(), plan["file_bytes"].as_u64()), (Some(sum("private")), Some(sum("file"))));
    let kv = &plan["kv"];
    // 30 layers, 3 KV heads: a key of 64 in 5 bits and a value in 4, an f16 scale for 32 of them; u32 position, f32 score and
    // attention received.
    assert_eq!(kv["bytes_per_slot"], 30 * 3 * ((40 + 4) + (32 + 4) + 12));
    assert_eq!((&kv["k_type"], &kv["v_type"], &kv["policy"]), (&"q5_h".into(), &"q4_h".into(), &"l2-attn".into()));
    // In f16, by the norm alone: no attention received.
    let plain = json(&["plan", "-m", &m, "--kv-budget", "4MiB", "--evict", "l2", "--kv-type", "f16", "--json"]);
    assert_eq!(plain["kv"]["bytes_per_slot"], 30 * 3 * (2 * 64 * 2 + 8));
    assert!(kv["arena_bytes"].as_u64() <= Some(4 << 20) && kv["arena_bytes"].as_u64() > Some((4 << 20) - 30_000));
    assert_eq!(plan["fits"], true);
    let refused = run(&["plan", "-m", &m, "--memory", "4MiB", "--json"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&refused.stdout).expect("JSON")["fits"], false);
}

#[test]
fn a_plan_for_boards_says_what_fits_and_fails_where_it_does_not() {
    let m = model();
    let plan = json(&["plan", "-m", &m, "--kv-budget", "4MiB", "--board", "all", "--json"]);
    let rows = plan["boards"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["board"].as_str().expect("a name")).collect();
    assert_eq!((names, &plan["fits"]), (vec!["pi-zero-2w", "pi-4-2g", "pi-5-8g"], &true.into()));
    let n = |row: &Value, key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"));
    for row in rows {
        let contexts = row["contexts"].as_array().expect("contexts");
        assert_eq!(contexts.len(), 6);
        assert_eq!(n(row, "left_bytes"), n(row, "usable_bytes") - n(row, "file_bytes") - n(row, "private_bytes"));
        for context in contexts {
            // What it promises holds when it is asked for.
            let (ty, budget) = (context["kv_type"].as_str().expect("a type"), n(context, "kv_budget_bytes").to_string());
            let again = json(&[
                "plan",
                "-m",
                &m,
                "--kv-type",
                ty,
                "--kv-budget",
                &budget,
                "--board",
                row["board"].as_str().expect("a name"),
                "--json",
            ]);
            assert_eq!((&again["fits"], &again["kv"]["n_slot"]), (&true.into(), &context["n_slot"]), "{ty} on {}", row["board"]);
            assert_eq!(context["whole"], context["n_slot"] == 8192);
        }
    }
    // Large batches and many threads leave the Zero no room for all of the context in f16.
    let large = ["plan", "-m", &m, "--kv-budget", "300MiB", "--batch", "1024", "--threads", "32", "--board", "pi-zero-2w"];
    let refused = run(&[&large[..], &["--json"]].concat());
    assert_eq!(refused.status.code(), Some(1));
    let plan: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    let row = &plan["boards"][0];
    assert_eq!(
        (&plan["fits"], &row["fits"], &row["starts"], &row["left_bytes"]),
        (&false.into(), &false.into(), &true.into(), &0.into())
    );
    let most = n(&row["contexts"][0], "n_slot");
    assert!((4096..8192).contains(&most) && row["contexts"][1]["whole"] == true, "{most}");
    assert!(String::from_utf8_lossy(&run(&large).stdout).contains("does not fit; it would start"));
    let unknown = run(&["plan", "-m", &m, "--board", "pi-9"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("pi-zero-2w, pi-4-2g, pi-5-8g, all, or here"));
}

#[test]
fn a_full_arena_without_eviction_ends_with_what_was_generated_and_a_line() {
    let m = model();
    let args = [
        "run",
        "-m",
        &m,
        "-p",
        "Once upon a time",
        "-n",
        "100",
        "--temp",
        "0",
        "--kv-budget",
        "500KiB",
        "--batch",
        "8",
        "--evict",
        "off",
    ];
    let out = run(&[&args[..], &["--json"]].concat());
    assert_eq!(out.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(answer["stop"], "full");
    assert_eq!(answer["kv"]["live"], answer["kv"]["n_slot"]);
    assert!(String::from_utf8_lossy(&out.stderr).lines().last().is_some_and(|l| l.contains("--evict off")));
}

#[test]
fn flags_read_the_environment_and_tokenize_and_info_answer() {
    let m = model();
    let out =
        lowkey!().env("LOWKEY_MODEL", &m).env("LOWKEY_KV_BUDGET", "3MiB").args(["plan", "--json"]).output().expect("starts");
    let plan: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(plan["kv"]["budget_bytes"], 3 << 20);
    assert_eq!(json(&["tokenize", "-m", &m, "The capital of France is"]), serde_json::json!([504, 3575, 282, 4649, 314]));
    let info = json(&["info", &m, "--json"]);
    assert_eq!(
        (&info["metadata"]["general.architecture"], info["tensors"].as_array().map(Vec::len), &info["runs"]),
        (&"llama".into(), Some(272), &true.into())
    );
    let (summary, types) = (&info["summary"], info["summary"]["weight_types"].as_array().expect("types"));
    let sum = |key: &str| types.iter().map(|ty| ty[key].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((sum("n_tensors"), sum("n_elems")), (272, summary["n_params"].as_u64().expect("a number")));
    let shape = &summary["model"];
    assert_eq!(
        [&shape["n_layer"], &shape["n_head"], &shape["n_head_kv"], &shape["head_dim"], &shape["n_ctx"]],
        [&30, &9, &3, &64, &8192]
    );
    assert_eq!((&summary["architecture"], &summary["has_chat_template"]), (&"llama".into(), &true.into()));
    let f16 = &summary["kv"][0];
    assert_eq!((&f16["type"], &f16["bytes_per_token"], &f16["tokens_in_4mib"]), (&"f16".into(), &24_120.into(), &170.into()));
    assert!(info["pack"]["state"].is_string() && info["pack"]["used_here"].is_boolean());
    let text = run(&["info", &m]);
    assert!(text.status.success() && String::from_utf8_lossy(&text.stdout).contains("this engine runs it"));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    if emulated().is_some() {
        return;
    }
    let m = model();
    let answer =
        json(&["run", "-m", &m, "-p", "The capital of France is", "-n", "40", "--temp", "0", "--stop", "United", "--json"]);
    assert_eq!(answer["stop"], "stop");
    assert!(answer["text"].as_str().is_some_and(|t| t.ends_with("The ") && !t.contains("United")), "{}", answer["text"]);
}

#[test]
fn chat_goes_through_the_model_s_template() {
    let m = model();
    let n = if emulated().is_some() { "2" } else { "40" };
    let answer = json(&["run", "-m", &m, "--chat", "-p", "Say hello.", "-n", n, "--temp", "0", "--json"]);
    let prompt = lowkey_test_kit::ids(&answer["prompt_tokens"]);
    assert_eq!(prompt[0], 1, "<|im_start|> comes first");
    assert!(prompt.len() > 10);
    if emulated().is_none() {
        assert_eq!(answer["stop"], "eos", "{}", answer["text"]);
    }
}

/// A system's turn that is pinned is still obeyed once the prompt has pushed everything else of its beginning out; and one that
/// leaves no room is refused with the way out.
#[test]
fn the_system_s_turn_is_pinned_or_refused() {
    let m = model();
    let system = "You are a terse clerk. ".repeat(8);
    let ask = |budget: &str, pin: &str| {
        let args = ["run", "-m", &m, "--chat", "--system", &system, pin, "-p", "Hello.", "-n", "1", "--temp", "0"];
        run(&[&args[..], &["--kv-budget", budget, "--kv-type", "f16", "--evict", "l2", "--batch", "8", "--log-level", "info"]]
            .concat())
    };
    let refused = ask("2MiB", "--pin-system");
    let line = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{line}");
    assert!(line.contains("pinned tokens of the system's turn") && line.contains("--pin-system=false"), "{line}");
    let pinned = ask("8MiB", "--pin-system");
    let line = String::from_utf8_lossy(&pinned.stderr);
    assert!(pinned.status.success() && line.contains("tokens of the system's turn are pinned"), "{line}");
    // As many whatever the user says, also if that is nothing.
    let n_pinned = |line: &str| {
        line.split_once(" tokens of the system's turn are pinned").map(|(n, _)| n.rsplit(' ').next().map(str::to_owned))
    };
    let args = ["run", "-m", &m, "--chat", "--system", &system, "-p", "", "-n", "1", "--temp", "0", "--log-level", "info"];
    assert_eq!(n_pinned(&String::from_utf8_lossy(&run(&args).stderr)), n_pinned(&line));
    let free = ask("2MiB", "--pin-system=false");
    let line = String::from_utf8_lossy(&free.stderr);
    assert!(free.status.success() && !line.contains("pinned"), "{line}");
}

#[test]
fn the_seed_decides_the_sample() {
    if emulated().is_some() {
        return;
    }
    let m = model();
    let sample = |seed: &str| {
        json(&["run", "-m", &m, "-p", "My favourite", "-n", "12", "--temp", "1.2", "--seed", seed, "--json"])["tokens"].clone()
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
}

/// Starts a run that would go on for long, and waits until text flows.
fn endless() -> (std::process::Child, Vec<u8>) {
    let mut child = lowkey!()
        .args(["run", "-m", &model(), "-p", "Once upon a time", "-n", "-1", "--ignore-eos", "--kv-budget", "2MiB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut first = vec![0; 1];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("text");
    (child, first)
}

#[test]
fn ctrl_c_finishes_the_line_prints_statistics_and_exits_with_130() {
    let (mut child, _) = endless();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill").success());
    let started = Instant::now();
    let out = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "it goes on after Ctrl-C");
        std::thread::sleep(Duration::from_millis(20));
    };
    let (mut stdout, mut stderr) = (Vec::new(), String::new());
    child.stdout.take().expect("a pipe").read_to_end(&mut stdout).expect("text");
    child.stderr.take().expect("a pipe").read_to_string(&mut stderr).expect("text");
    assert_eq!(out.code(), Some(130), "{stderr}");
    assert!(stdout.ends_with(b"\n") && stderr.contains("[interrupt]") && stderr.contains("tok/s"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (mut child, _) = endless();
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

#[test]
fn standard_input_is_a_prompt() {
    let m = model();
    let mut child = lowkey!()
        .args(["run", "-m", &m, "-f", "-", "-n", "1", "--temp", "0", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(b"The capital of France is").expect("written");
    let out = child.wait_with_output().expect("output");
    let answer: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(answer["text"], " Paris");
}

#[test]
fn eval_ppl_gives_a_row_for_each_budget() {
    let m = model();
    let text = lowkey_test_kit::data("prose.txt");
    let (ctx, keep) = if emulated().is_some() { ("24", "100%,50%") } else { ("256", "100%,50%,25%") };
    let args = [
        "eval",
        "ppl",
        "-m",
        &m,
        "-f",
        text.to_str().expect("UTF-8"),
        "--ctx",
        ctx,
        "--windows",
        "1",
        "--keep",
        keep,
        "--batch",
        "8",
        "-o",
        "json",
    ];
    let rows = json(&args);
    let rows = rows.as_array().expect("rows");
    assert_eq!(rows.len(), keep.split(',').count());
    let ctx: u64 = ctx.parse().expect("a number");
    let full_bytes = ctx * 30 * 3 * 2 * 64 * 2;
    for row in rows {
        let keep = row["keep"].as_f64().expect("a share");
        assert_eq!(row["n_tokens"].as_u64(), Some(ctx - 1));
        assert!((row["ppl"].as_f64().expect("ppl").ln() - row["nll"].as_f64().expect("nll")).abs() < 1e-9);
        if keep == 1.0 {
            assert_eq!((row["n_slot"].as_u64(), row["ppl_ratio_to_full"].as_f64()), (Some(ctx), Some(1.0)));
        } else {
            assert!(
                row["arena_bytes"].as_f64().expect("bytes") <= full_bytes as f64 * keep,
                "the budget is a share of the full cache"
            );
            let ratio = row["ppl_ratio_to_full"].as_f64().expect("a ratio");
            // A dozen tokens (emulated) say little: any sane ratio will do.
            let (least, most) = if emulated().is_some() { (0.2, 50.0) } else { (0.9, 2.0) };
            assert!(ratio > least && ratio < most, "{row}");
        }
    }
}
