//! `--speculate`: guesses change nothing but the time. The logits after each token, and all that a stream holds at
//! any place where it could be saved, are to the last bit those of a stream without guesses: for every policy,
//! evicting or not, with rings, mixtures, renumbering and every type of keys and values.

use std::path::Path;

use lowkey::error::Error;
use lowkey::kv::{KvType, Policy, Recent, Share};
use lowkey::session::{DraftCounts, MAX_GUESSES, Session, SessionParams, Stream};
use lowkey::text::{Sampler, SamplerParams};
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::{budget_for, data, demo_model, golden, model, params, prose, session, tried};

/// Everything that is saved of a stream.
fn state(stream: &mut Stream) -> Vec<u8> {
    let state = stream.state_mut();
    let mut bytes: Vec<u8> = state.cache.counts().words().iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(state.log_hash.to_le_bytes());
    let mut see = |part: &mut [u8]| -> Result<(), ()> {
        bytes.extend_from_slice(part);
        Ok(())
    };
    state.cache.visit_marks(&mut see).expect("marks");
    state.cache.visit_rows(&mut see).expect("rows");
    bytes
}

/// Words that come again and again, in part: what is guessed of them is right for a while.
fn repetitive(n: usize, n_vocab: usize, seed: u64) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let words: Vec<u32> = (0..23).map(|_| rng.u32(..n_vocab as u32)).collect();
    let mut tokens = Vec::new();
    while tokens.len() < n {
        let (from, len) = (rng.usize(..words.len()), rng.usize(2..14));
        tokens.extend(words.iter().cycle().skip(from).take(len));
        if rng.bool() {
            tokens.push(rng.u32(..n_vocab as u32));
        }
    }
    tokens.truncate(n);
    tokens
}

/// Takes in a prompt and steps on the rest, with guesses and without: compares logits at each token, and states at
/// some.
fn compare(path: &Path, params: &SessionParams, tokens: &[u32], n_prompt: usize, what: &str) -> (DraftCounts, Session) {
    let mut plain = session(path, &SessionParams { n_draft: 0, ..params.clone() });
    let mut drafting = session(path, params);
    assert_eq!(plain.cache().n_slot(), drafting.cache().n_slot(), "{what}: guesses take nothing from the arena");
    for session in [&mut plain, &mut drafting] {
        session.prefill(&tokens[..n_prompt], |_| true).expect("a prompt");
    }
    let rest = &tokens[n_prompt..];
    for (nth, part) in rest.chunks(29).enumerate() {
        let mut steps = drafting.steps();
        for (i, &token) in part.iter().enumerate() {
            let want = plain.step(token).expect("a step");
            // More is asked for than comes: the last guesses are wrong for sure, or none were made.
            let got = steps.step(token, 99).expect("a step");
            let same = want.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: logits of token {}", nth * 29 + i);
        }
        drop(steps);
        let same = plain.logits().iter().zip(drafting.logits()).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{what}: logits that stay after {} tokens", nth * 29 + part.len());
        let same = state(plain.parts().1) == state(drafting.parts().1);
        assert!(same, "{what}: what the stream holds after {} tokens", nth * 29 + part.len());
    }
    (drafting.draft_counts(), drafting)
}

fn drafted(counts: DraftCounts, what: &str) {
    let DraftCounts { n_drafts, n_guessed, n_right } = counts;
    assert!(n_drafts > 5 && n_right > 10 && n_right < n_guessed, "{what}: {counts:?} leave little to be told apart");
}

/// A small model and every policy of the table, with reserve and pool where it may have them.
#[test]
fn guesses_leave_no_trace_with_any_policy() {
    let path = data("tiny-mqa.gguf");
    for policy in Policy::all() {
        for n_slot in [40, 200] {
            let few_bits = (KvType::Q5H, KvType::Q4H);
            for (k_type, v_type) in tried(vec![(KvType::F16, KvType::F16), few_bits], vec![few_bits]) {
                let mut p = params(0);
                (p.kv.policy, p.kv.recent, p.n_batch, p.n_draft) = (policy, Some(Recent::Percent(40.0)), 8, 6);
                (p.kv.rare, p.kv.pool) = (policy.row().reserve.map(|_| Share(0.3)), policy.row().pool.map(|_| 3));
                (p.k_type, p.v_type) = (Some(k_type), Some(v_type));
                p.kv.budget_bytes = budget_for(&path, n_slot, &p);
                let n = if policy == Policy::Off { n_slot.min(190) } else { 190 };
                let tokens = repetitive(n, 32, 7);
                let what = format!("{}, {n_slot} slots, {k_type:?}", policy.name());
                let (counts, session) = compare(&path, &p, &tokens, 20.min(n), &what);
                if n > 100 {
                    drafted(counts, &what);
                }
                assert_eq!(session.cache().n_evicted() > 0, n_slot == 40 && policy != Policy::Off, "{what}");
            }
        }
    }
}

/// Whole families: rings shorter and longer than the slots beside them, normed heads, experts, queries that grow,
/// float matrices, and contexts that are renumbered on the way.
#[test]
fn guesses_leave_no_trace_in_any_family() {
    let described = golden("families.json");
    for (name, n_slot, policy) in [
        ("gemma2-q8", 12, Policy::L2Attn),
        ("gemma3-q8", 60, Policy::Attn),
        ("gemma3-q8", 12, Policy::KeyDiff),
        ("qwen3-q8", 30, Policy::Attn),
        ("mistral3-q8-growth", 30, Policy::H2o),
        ("qwen2-gqa", 30, Policy::L2Attn),
        ("qwen3moe-q8", 30, Policy::Attn),
        ("olmo2-q8", 30, Policy::Tova),
        ("smollm3-q8", 30, Policy::LagKv),
        ("gemma4-mha-keys", 12, Policy::Attn),
        ("gpt-oss-q8", 30, Policy::Tova),
    ] {
        let Some(row) = described["models"].get(name) else { panic!("{name} is not among {:?}", described["models"]) };
        let path = std::env::temp_dir().join(format!("lowkey-speculate-{}-{name}-{n_slot}.gguf", std::process::id()));
        std::fs::write(&path, family_model(name, row).build()).expect("a temporary file");
        let mut p = params(0);
        (p.kv.policy, p.kv.sinks, p.n_batch, p.n_draft) = (policy, 1, 4, 8);
        p.kv.budget_bytes = budget_for(&path, n_slot, &p);
        let file = model(&path);
        let tokens = repetitive(3 * file.config.n_ctx / 2, file.config.n_vocab, 3);
        let (counts, session) = compare(&path, &p, &tokens, 10, name);
        std::fs::remove_file(&path).expect("the temporary file");
        drafted(counts, name);
        assert!(session.cache().n_evicted() > 0 && session.cache().n_renumbered() > 0, "{name}");
    }
}

/// A stream so long that scores get another unit on the way: between steps, never among guesses.
#[test]
fn scores_get_another_unit_between_steps() {
    let path = data("tiny-mqa.gguf");
    let mut p = params(0);
    (p.kv.policy, p.kv.sinks, p.kv.recent, p.n_batch, p.n_draft) = (Policy::L2Attn, 1, Some(Recent::Tokens(3)), 2, 6);
    (p.kv.rare, p.kv.pool) = (Some(Share(0.3)), Some(2));
    p.kv.budget_bytes = budget_for(&path, 8, &p);
    // 64 half-lives of 8 times 8 tokens.
    let tokens = repetitive(64 * 8 * 8 + 100, 32, 11);
    let (counts, mut session) = compare(&path, &p, &tokens, 10, "a long stream");
    drafted(counts, "a long stream");
    assert!(session.parts().1.state_mut().cache.counts().unit_at > 0);
}

/// A layer that cannot forget is no place for guesses; more of them than a step takes are refused too.
#[test]
fn what_cannot_be_taken_back_is_not_guessed() {
    let described = golden("families.json");
    for (name, word) in
        [("lfm2-q8", "forget"), ("qwen35-q8", "forget"), ("granitehybrid-q8", "forget"), ("falcon-h1-q8", "forget")]
    {
        let path = std::env::temp_dir().join(format!("lowkey-speculate-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, family_model(name, &described["models"][name]).build()).expect("a temporary file");
        let model = model(&path);
        std::fs::remove_file(&path).expect("the temporary file");
        let with = |n_draft| SessionParams { n_draft, ..params(1 << 20) }.layout(&model).err();
        let refused = |error: Option<Error>| error.map(|error| (error.exit_code(), error.to_string().contains(word)));
        assert_eq!((refused(with(4)), with(0).is_none()), (Some((2, true)), true), "{name}");
    }
    let model = model(&data("tiny-mqa.gguf"));
    for (n_draft, fits) in [(MAX_GUESSES, true), (MAX_GUESSES + 1, false)] {
        let layout = SessionParams { n_draft, ..params(1 << 20) }.layout(&model);
        assert_eq!(layout.is_ok(), fits, "{n_draft} guesses");
    }
    // Float matrices sum in another order from eight tokens on.
    let floats = lowkey_test_kit::model(&data("tiny-gqa-f32.gguf"));
    let layout = SessionParams { n_draft: 16, ..params(1 << 20) }.layout(&floats).expect("a layout");
    assert_eq!(layout.n_draft, 6);
}

/// What a sampler draws, with its seed, is the same too, and as many random numbers are used up.
#[test]
fn texts_are_the_same_at_any_temperature() {
    let path = demo_model();
    let (mut prompt, n) = (prose(60), 90);
    prompt.extend_from_within(1..);
    for (budget, policy) in [(8 << 20, Policy::L2Attn), (1 << 20, Policy::L2Attn), (1 << 20, Policy::L2)] {
        for temp in [0.0, 0.8] {
            let generate = |n_draft| {
                let mut p = params(budget);
                (p.kv.policy, p.n_draft, p.k_type, p.v_type) = (policy, n_draft, Some(KvType::Q5H), Some(KvType::Q4H));
                let mut session = session(&path, &p);
                let sampling = SamplerParams { temp, seed: 5, repeat_penalty: 1.05, ..SamplerParams::default() };
                let mut sampler = Sampler::new(sampling, session.model().config.n_vocab).expect("a sampler");
                session.prefill(&prompt, |_| true).expect("a prompt");
                let (mut tokens, mut steps) = (Vec::new(), session.steps());
                let mut logits = steps.logits();
                for i in 0..n {
                    let token = sampler.sample(logits).expect("a token");
                    sampler.accept(token);
                    tokens.push(token);
                    logits = steps.step(token, n - i - 1).expect("a step");
                }
                drop(steps);
                let counts = session.draft_counts();
                (tokens, sampler.rng_state(), state(session.parts().1), counts, session.cache().n_evicted())
            };
            let (plain, drafting) = (generate(0), generate(8));
            assert_eq!(plain.0, drafting.0, "{budget} bytes, {policy:?}, temperature {temp}");
            assert!(plain.1 == drafting.1 && plain.2 == drafting.2, "{budget} bytes, {policy:?}, temperature {temp}");
            assert_eq!(plain.3, DraftCounts::default());
            assert!(drafting.3.n_guessed > 0, "{:?}", drafting.3);
            assert_eq!(drafting.4 > 0, budget == 1 << 20);
        }
    }
}

/// By the flags of the command line: the same answer, saved or not, and how much of it was guessed.
#[test]
fn the_command_line_guesses_and_tells_how_much() {
    let folder = std::env::temp_dir().join(format!("lowkey-speculate-{}", std::process::id()));
    let run = |guesses: &str, session: &str| {
        let mut command = lowkey_test_kit::lowkey!();
        command.args(["run", "-m"]).arg(demo_model()).args(["-p", "red, green, blue, red, green, blue, red, green, blue, red,"]);
        command.args([
            "-n",
            "24",
            "--temp",
            "0.8",
            "--seed",
            "3",
            "--kv-budget",
            "1MiB",
            "--kv-type",
            "f16",
            "--json",
            "--ignore-eos",
        ]);
        command.args(["--speculate", guesses, "--session", session, "--sessions"]).arg(&folder);
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (answer, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for _ in 0..2 {
        let ((plain, said), (guessed, told)) = (run("0", "plain"), run("8", "guessed"));
        assert_eq!((&plain["tokens"], &plain["kv"]), (&guessed["tokens"], &guessed["kv"]));
        let [n, n_right] = ["draft_n", "draft_n_accepted"].map(|name| guessed["timings"][name].as_u64().expect("a number"));
        assert!(n > 0 && n_right <= n && plain["timings"]["draft_n"].is_null(), "{guessed}");
        assert!(told.contains(&format!("{n_right} of {n} guessed tokens right")) && !said.contains("guessed"), "{told}");
    }
    // What was saved is the same, but for the time.
    let file = |name: &str| std::fs::read(folder.join(format!("{name}.lks"))).expect("a session");
    let (plain, guessed) = (file("plain"), file("guessed"));
    // Behind the head only the sums of the five regions differ, whose seed is the head's.
    let n_unlike = plain[4096..].iter().zip(&guessed[4096..]).filter(|(a, b)| a != b).count();
    assert!(plain.len() == guessed.len() && n_unlike <= 5 * 8, "{n_unlike} bytes of sessions differ");
    std::fs::remove_dir_all(&folder).expect("the folder");

    let mut command = lowkey_test_kit::lowkey!();
    let output = command.args(["run", "-m"]).arg(demo_model()).args(["-p", "x", "--speculate", "17"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--speculate: 17 tokens"), "{said}");
}
