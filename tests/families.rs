//! Every family of models and head layout against llama.cpp (tests/golden/families.json, by families.py), on small random
//! models that both sides write by one rule. Each kernel set of this CPU, in batches that take each way through a matrix.

use lowkey::kernels::Kernels;
use lowkey::kv::{AttnLayer, Head, KvType, Policy, Recent};
use lowkey::mem::plan::Plan;
use lowkey::session::{Session, SessionParams};
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::gguf_writer::GgufWriter;
use lowkey_test_kit::{budget_for, emulated, floats, golden, ids, kernel_sets, params, session, tried};
use serde_json::Value;

/// A file of this test's own, removed at its end.
struct Temp(std::path::PathBuf);

impl Temp {
    fn new(name: &str, file: &GgufWriter) -> Temp {
        let path = std::env::temp_dir().join(format!("lowkey-families-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, file.build()).expect("a temporary file");
        Temp(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The sets that are tried: under emulation not the specification, whose bits the library's own tests hold the others to, unless
/// there is no other.
fn sets() -> Vec<Kernels> {
    let mut sets = kernel_sets();
    if emulated().is_some() && sets.len() > 1 {
        sets.retain(|set| set.name() != "scalar");
    }
    sets
}

/// The golden, or another that `families.py --cross` wrote: too large to be kept.
fn described() -> Value {
    let Some(path) = std::env::var_os("LOWKEY_FAMILIES") else { return golden("families.json") };
    serde_json::from_str(&std::fs::read_to_string(path).expect("LOWKEY_FAMILIES")).expect("JSON")
}

fn files() -> Vec<(String, Value, GgufWriter)> {
    let golden = described();
    let models = golden["models"].as_object().expect("models");
    models.iter().map(|(name, row)| (name.clone(), row.clone(), family_model(name, row))).collect()
}

fn worst(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).abs()).fold(0.0, f64::max)
}

/// Logits reach 5 to 12 in these models. F32: what f16 keys and values lose. F16: llama.cpp rounds activations to f16 too.
/// Q8_0: both round activations to int8 blocks alike, but a rounding that falls the other way is a whole step; it lives on in the
/// state of a delta net, and counts more against weights that are all of one size (Q1_0). With K-quants among others llama.cpp
/// rounds by blocks of 256 where this engine has 32.
fn tolerance(name: &str, row: &Value) -> f64 {
    // Of many more models the furthest is further off.
    let more = std::env::var_os("LOWKEY_FAMILIES").is_some();
    match row["tensors"][0][2].as_str() {
        _ if name.ends_with("-mix") => 0.3,
        Some("F32") => {
            if more {
                0.02
            } else {
                0.01
            }
        }
        Some("F16") => {
            if more {
                0.04
            } else {
                0.02
            }
        }
        Some("Q8_0" | "Q1_0" | "Q2_0") if more => 0.5,
        Some("Q1_0") => 0.3,
        Some("Q8_0") if name.starts_with("qwen35") => 0.25,
        Some("Q8_0" | "Q2_0") => 0.15,
        other => panic!("{name}: no tolerance for {other:?}"),
    }
}

#[test]
fn every_family_computes_what_llama_cpp_computes() {
    let golden = described();
    let (tokens, positions) = (ids(&golden["ids"]), ids(&golden["positions"]));
    for (name, row, file) in files() {
        let path = Temp::new(&name, &file);
        let mut furthest = 0f64;
        for kernels in sets() {
            // The specification is slow, and the library's own tests hold batches to it.
            for n_batch in if kernels.name() == "scalar" { vec![5] } else { tried(vec![1, 5, 24], vec![5]) } {
                let mut p = params(0);
                (p.kernels, p.kv.policy, p.n_batch, p.n_logits) = (kernels.name().into(), Policy::Off, n_batch, n_batch);
                p.n_threads = Some(1);
                p.kv.budget_bytes = budget_for(&path.0, 32, &p);
                let mut session = session(&path.0, &p);
                let mut rows: Vec<f32> = Vec::new();
                for batch in tokens.chunks(n_batch) {
                    rows.extend_from_slice(session.prefill_all(batch).expect("logits"));
                }
                let n_vocab = session.model().config.n_vocab;
                for (&position, want) in positions.iter().zip(row["logits"].as_array().expect("rows")) {
                    let off = worst(&rows[position as usize * n_vocab..][..n_vocab], &floats(want));
                    furthest = furthest.max(off);
                    let allowed = tolerance(&name, &row);
                    assert!(
                        off < allowed,
                        "{name}, {}, batches of {n_batch}, position {position}: off by {off:.4}, allowed {allowed}",
                        kernels.name()
                    );
                }
            }
        }
        println!("{name}: off by {furthest:.4} at most");
    }
}

/// What layers with Mamba-2 remember is a line of the plan, for each stream, and of the sizes that the file gives.
#[test]
fn the_state_of_mamba_is_in_the_plan() {
    let golden = golden("families.json");
    for (name, n_layers, [inner_dim, n_state, n_group]) in
        [("granitehybrid-q8", 3, [256, 32, 1]), ("falcon-h1-q8", 3, [192, 32, 2]), ("granite-q8", 0, [0; 3])]
    {
        let path = Temp::new(&format!("{name}-plan"), &family_model(name, &golden["models"][name]));
        let model = lowkey_test_kit::model(&path.0);
        for n_streams in [1, 3] {
            let p = SessionParams { n_streams, ..params(1 << 20) };
            let mut plan = Plan::default();
            p.layout(&model).expect("a layout").plan(&model, &mut plan);
            let planned: u64 =
                plan.regions.iter().filter(|region| region.name == "recurrent state").map(|region| region.bytes).sum();
            let of_layer = inner_dim * n_state + 3 * (inner_dim + 2 * n_group * n_state);
            // Memory is carved in whole cache lines.
            let want = (n_streams * n_layers * of_layer * 4) as u64;
            assert!((want..want + 64 * n_streams as u64).contains(&planned), "{name}: {planned} of {want}");
        }
    }
}

/// Qwen 2.5 has heads whose keys are little but their bias.
#[test]
fn a_model_with_long_key_biases_keeps_no_keys_of_few_bits() {
    let golden = golden("families.json");
    let mut file = family_model("qwen2-mha", &golden["models"]["qwen2-mha"]);
    let types = |file: &GgufWriter, name: &str| {
        let path = Temp::new(name, file);
        let p = SessionParams { k_type: None, v_type: None, ..params(40 << 10) };
        let shape = p.shape(&lowkey_test_kit::model(&path.0)).expect("a shape");
        (shape.k_type, shape.v_type)
    };
    assert_eq!(types(&file, "short-biases"), (KvType::Q5H, KvType::Q4H));
    let bias = file.tensors.iter_mut().find(|tensor| tensor.name == "blk.1.attn_k.bias").expect("biases");
    bias.data[..4].copy_from_slice(&32f32.to_le_bytes());
    assert_eq!(types(&file, "a-long-bias"), (KvType::Q8_0, KvType::Q4H));
}

/// Without what gpt-oss has beside other mixtures its logits would be far from llama.cpp's: the logit of each head, each bias.
#[test]
fn logits_of_heads_and_biases_count() {
    let golden = golden("families.json");
    let (tokens, row) = (ids(&golden["ids"]), &golden["models"]["gpt-oss-gqa"]);
    let file = family_model("gpt-oss-gqa", row);
    let off = |end: &str, number: f32| {
        let mut other = file.clone();
        let tensors = other.tensors.iter_mut().filter(|t| !end.is_empty() && t.name.ends_with(end));
        tensors.for_each(|t| t.data = number.to_le_bytes().repeat(t.data.len() / 4));
        let path = Temp::new("gpt-oss-without", &other);
        let mut session = session(&path.0, &SessionParams { n_batch: 24, ..params(1 << 20) });
        let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped");
        worst(logits, &floats(&row["logits"][2]))
    };
    assert!(off("", 0.0) < 0.01);
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    let without = names.map(|name| (format!("{name}.bias"), 0.0)).into_iter().chain([("attn_sinks.weight".into(), f32::MIN)]);
    for (end, number) in without {
        let off = off(&end, number);
        assert!(off > 0.05, "without {end} logits are off by {off} only");
    }
}

/// Where some layers have a window and the others evict, with more slots than the window and with fewer: a batch is the same
/// as token by token, and all sets are the same, bit for bit.
#[test]
fn windows_beside_eviction_give_the_same_bits_in_batches_and_on_every_set() {
    let tokens = ids(&golden("families.json")["ids"]);
    let tokens: Vec<u32> = tokens.iter().cycle().take(60).copied().collect();
    for (name, _, file) in
        files().into_iter().filter(|(name, ..)| ["gemma2-q8", "gemma3-q8", "gemma4-q8", "gpt-oss-q8"].contains(&name.as_str()))
    {
        let path = Temp::new(&format!("{name}-windows"), &file);
        for n_slot in [4, 12, 60] {
            let run = |n_batch: usize, kernels: &str| {
                let mut p = params(0);
                (p.kv.policy, p.kv.sinks, p.n_batch, p.kernels) = (Policy::L2, 1, n_batch, kernels.into());
                p.kv.budget_bytes = budget_for(&path.0, n_slot, &p);
                let mut session = session(&path.0, &p);
                let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped");
                let bits: Vec<u32> = logits.iter().map(|l| l.to_bits()).collect();
                let layers = session.cache().shape().layers();
                let kept: Vec<_> = layers.map(|layer| session.cache().kept(layer, Head(0)).to_vec()).collect();
                assert_eq!(
                    (kept[0].len(), session.cache().n_live()),
                    (5.min(session.cache().n_slot()), session.cache().n_slot())
                );
                (bits, kept)
            };
            let want = run(1, "scalar");
            for kernels in sets() {
                for n_batch in [1, 3, 24] {
                    assert!(run(n_batch, kernels.name()) == want, "{name}, {n_slot}, batches of {n_batch}, {}", kernels.name());
                }
            }
        }
    }
}

/// How keys are rounded is learned from the first tokens, in batches as token by token; what that costs is small wherever scores are capped,
/// windows limit layers, or heads are of any size.
#[test]
fn few_bits_cost_little_in_every_family_and_batches_change_nothing() {
    let tokens = ids(&golden("families.json")["ids"]);
    let tokens: Vec<u32> = tokens.iter().cycle().take(90).copied().collect();
    // Under emulation one of four, which is one of most families: they stand in the file by family.
    for (name, row, file) in files().into_iter().step_by(if emulated().is_some() { 4 } else { 1 }) {
        let path = Temp::new(&format!("{name}-bits"), &file);
        // Within the trained context, for when positions are renumbered depends on the batch.
        let tokens = &tokens[..session(&path.0, &params(u64::MAX)).model().config.n_ctx.min(90)];
        let run = |k_type: KvType, v_type: KvType, n_slot: usize, n_batch: usize| -> Vec<f32> {
            let mut p = params(0);
            (p.kv.policy, p.kv.sinks, p.n_batch) = (Policy::L2, 1, n_batch);
            (p.k_type, p.v_type) = (Some(k_type), Some(v_type));
            p.kv.budget_bytes = budget_for(&path.0, n_slot, &p);
            let logits = session(&path.0, &p).prefill(tokens, |_| true).expect("logits").expect("not stopped").to_vec();
            assert!(logits.iter().all(|l| l.is_finite()), "{name}");
            logits
        };
        let exact = run(KvType::F16, KvType::F16, 90, 24);
        let rounded = run(KvType::Q6H, KvType::Q6H, 90, 24);
        let square = |x: &[f32]| x.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let off: Vec<f32> = exact.iter().zip(&rounded).map(|(a, b)| a - b).collect();
        let share = (square(&off) / square(&exact)).sqrt();
        println!("{name}, {} tokens: off by {share:.4} of the logits", tokens.len());
        assert!(share < 0.15, "{name}: off by {share} of the logits");
        // Float weights add up otherwise in batches, by the crate gemm.
        for n_slot in if row["tensors"][0][2] == "Q8_0" { vec![90, 20] } else { vec![] } {
            let want = run(KvType::Q5H, KvType::Q4H, n_slot, 1);
            assert!(run(KvType::Q5H, KvType::Q4H, n_slot, 24) == want, "{name}, {n_slot} slots, in batches");
        }
    }
}

/// What recurrent layers remember of a stream is a state beside the arena: whatever is evicted or renumbered, however the stream is
/// cut into batches, on every set and for any threads the bits are the same; a cleared session begins anew.
#[test]
fn recurrent_layers_experts_and_shared_keys_give_the_same_bits_in_batches_on_every_set_and_after_clear() {
    // Layers with keys and values, and all.
    for (name, layers) in [
        ("lfm2-q8", (2, 5)),
        ("qwen35-q8", (1, 5)),
        ("lfm2moe-q8", (1, 4)),
        ("qwen35moe-q8", (1, 4)),
        ("gemma4-q8", (4, 7)),
        ("gemma4-moe-q8", (4, 4)),
        ("granitehybrid-q8", (1, 4)),
        ("granitehybrid-moe-q8", (1, 3)),
        ("falcon-h1-q8", (3, 3)),
        ("gpt-oss-q8", (4, 4)),
    ] {
        gives_the_same_bits(name, layers);
    }
}

fn gives_the_same_bits(name: &str, layers: (usize, usize)) {
    let golden = golden("families.json");
    let tokens: Vec<u32> = ids(&golden["ids"]).iter().cycle().take(60).copied().collect();
    let mut file = family_model(name, &golden["models"][name]);
    let path = Temp::new(&format!("{name}-recurrent"), &file);
    let prefill = |session: &mut Session| -> Vec<u32> {
        let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped");
        logits.iter().map(|l| l.to_bits()).collect()
    };
    for n_slot in [6, 20, 60] {
        let start = |n_batch: usize, kernels: &str, n_threads: usize| {
            let mut p = params(0);
            (p.kv.policy, p.kv.sinks, p.n_batch, p.kernels) = (Policy::L2, 1, n_batch, kernels.into());
            p.n_threads = Some(n_threads);
            p.kv.budget_bytes = budget_for(&path.0, n_slot, &p);
            session(&path.0, &p)
        };
        let want = prefill(&mut start(1, "scalar", 1));
        for kernels in sets() {
            let cut = [(3, 3), (1, 2), (2, 1), (32, 2)];
            for (n_batch, n_threads) in cut.into_iter().take(if kernels.name() == "scalar" { 1 } else { 4 }) {
                let mut session = start(n_batch, kernels.name(), n_threads);
                let label = format!("{name}, {n_slot} slots, {}, batches of {n_batch}, {n_threads} threads", kernels.name());
                assert!(prefill(&mut session) == want, "{label}");
                session.clear();
                assert!(prefill(&mut session) == want, "{label}: after clear");
            }
        }
        let mut session = start(4, "auto", 2);
        assert_eq!((session.cache().shape().n_layer, session.model().config.n_layer), layers);
        session.prefill(&tokens[..3], |_| true).expect("logits");
        assert!(prefill(&mut session) != want, "what went before is remembered");
    }
    // Past the trained context, where what is kept is renumbered more than once.
    let at = file.keys.iter().position(|key| key.0.ends_with(".context_length")).expect("a context");
    file.keys[at].2 = 24u32.to_le_bytes().to_vec();
    let path = Temp::new(&format!("{name}-short"), &file);
    let short = |n_batch: usize, kernels: &str| {
        let mut p = params(0);
        (p.kv.policy, p.kv.sinks, p.n_batch, p.kernels) = (Policy::L2, 1, n_batch, kernels.into());
        p.kv.budget_bytes = budget_for(&path.0, 12, &p);
        prefill(&mut session(&path.0, &p))
    };
    let want = short(1, "scalar");
    assert!(kernel_sets().into_iter().all(|kernels| short(1, kernels.name()) == want));
}

/// Layers that hold nothing look at what others hold as it stood for each token of a batch, whatever that batch evicts or pushes out of a
/// window; and where a prompt's logits are not wanted they need not be computed.
#[test]
fn shared_keys_are_seen_as_they_stand_for_each_token() {
    let golden = golden("families.json");
    let tokens: Vec<u32> = ids(&golden["ids"]).iter().cycle().take(60).copied().collect();
    let path = Temp::new("gemma4-shared", &family_model("gemma4-q8", &golden["models"]["gemma4-q8"]));
    for (n_slot, policy) in [(8, Policy::L2), (20, Policy::Attn), (60, Policy::L2)] {
        let start = |n_batch: usize| {
            let mut p = params(0);
            (p.kv.policy, p.kv.sinks, p.n_batch, p.n_logits) = (policy, 1, n_batch, n_batch);
            p.kv.budget_bytes = budget_for(&path.0, n_slot, &p);
            session(&path.0, &p)
        };
        let bits = |logits: &[f32]| logits.iter().map(|l| l.to_bits()).collect::<Vec<u32>>();
        // A policy that goes by attention judges by batches: there the batch is the same.
        let size = if policy == Policy::Attn { start(7).n_batch() } else { 7 };
        let mut alone = start(if policy == Policy::Attn { size } else { 1 });
        let mut single = Vec::new();
        if policy != Policy::Attn {
            tokens.iter().for_each(|&token| single.extend(bits(alone.step(token).expect("a step"))));
        }
        let (mut all, mut last) = (start(size), start(size));
        let mut of_all = Vec::new();
        for batch in tokens.chunks(size) {
            of_all.extend(bits(all.prefill_all(batch).expect("logits")));
            let of_last = bits(last.prefill(batch, |_| true).expect("logits").expect("not stopped"));
            assert!(of_all.ends_with(&of_last), "{n_slot} slots, {policy:?}");
        }
        assert!(policy == Policy::Attn || of_all == single, "{n_slot} slots, {policy:?}");
        let kept = |s: &Session| s.cache().shape().all_heads().map(|(l, h)| s.cache().kept(l, h).to_vec()).collect::<Vec<_>>();
        assert_eq!(kept(&all), kept(&last));
        assert_eq!(all.cache().n_evicted() > 0, n_slot < 60);
    }
}

/// With no sinks and the oldest going first, what is kept is always the latest tokens in a row: renumbering moves all by one
/// distance, and RoPE sees distances only. So a short context gives the logits of a long one, but for f16 keys rounded once
/// more. A key turned in a layer that knows no positions, or scaled twice, would show.
#[test]
fn renumbering_changes_no_distance_in_any_family() {
    let tokens = ids(&golden("families.json")["ids"]);
    for (name, row, file) in files() {
        // Factors are for one context, queries that grow do so by their new positions, and where weights of norms come behind turning,
        // scores depend on both positions and not on their distance alone.
        if name.ends_with("-factors") || name.ends_with("-growth") || name.starts_with("hunyuan-dense") {
            continue;
        }
        let logits = |n_ctx: u32| {
            let mut file = file.clone();
            let at = file.keys.iter().position(|key| key.0.ends_with(".context_length")).expect("a context");
            file.keys[at].2 = n_ctx.to_le_bytes().to_vec();
            let path = Temp::new(&format!("{name}-{n_ctx}"), &file);
            let mut p = params(0);
            (p.kv.policy, p.kv.sinks, p.n_batch) = (Policy::Window, 0, 3);
            p.kv.budget_bytes = budget_for(&path.0, 12, &p);
            let mut session = session(&path.0, &p);
            let mut rows = Vec::new();
            for batch in tokens.iter().cycle().take(60).copied().collect::<Vec<_>>().chunks(3) {
                rows.extend_from_slice(session.prefill(batch, |_| true).expect("logits").expect("not stopped"));
            }
            rows
        };
        let (short, long) = (logits(24), logits(256));
        let long: Vec<f64> = long.into_iter().map(f64::from).collect();
        let (off, allowed) =
            (worst(&short, &long), if tolerance(&name, &row) > 0.1 { tolerance(&name, &row).max(0.3) } else { 0.03 });
        println!("{name}: off by {off:.4}");
        assert!(off < allowed, "{name}: off by {off}, allowed {allowed}");
    }
}

/// A window of all layers is a ring in each: what it shows is what a model without one keeps of the latest tokens, bit for
/// bit, past the trained context too, whatever the policy; the budget beyond it is not taken. A smaller arena is ruled by the
/// policy within the window.
#[test]
fn a_window_of_all_layers_is_the_latest_tokens() {
    const N_WINDOW: usize = 16;
    let tokens = ids(&golden("families.json")["ids"]);
    let tokens: Vec<u32> = tokens.iter().cycle().take(300).copied().collect();
    for (name, _, file) in files().into_iter().filter(|(name, ..)| ["phi3-q8", "llama-yarn"].contains(&name.as_str())) {
        let arch = name.split('-').next().expect("a family");
        let mut windowed = file.clone();
        windowed.u32(&format!("{arch}.attention.sliding_window"), N_WINDOW as u32);
        let (plain, windowed) = (Temp::new(&format!("{name}-plain"), &file), Temp::new(&format!("{name}-rings"), &windowed));
        let run = |path: &Temp, policy: Policy, n_batch: usize, kv_budget: Option<u64>| {
            let mut p = params(0);
            (p.kv.policy, p.kv.sinks, p.n_batch) = (policy, 0, n_batch);
            p.kv.budget_bytes = kv_budget.unwrap_or_else(|| budget_for(&path.0, N_WINDOW, &p));
            let mut session = session(&path.0, &p);
            let mut bits = Vec::new();
            for part in tokens.chunks(75) {
                let logits = session.prefill(part, |_| true).expect("logits").expect("not stopped");
                bits.extend(logits.iter().map(|l| l.to_bits()));
            }
            (bits, session)
        };
        // Float weights in batches take another product: there batches are of one size.
        for n_batch in if name.ends_with("-q8") { vec![1, 7, 32] } else { vec![1] } {
            let (want, _) = run(&plain, Policy::Window, n_batch, None);
            // Near the end of the context batches are renumbered earlier than single tokens; before it they are the same.
            let (single, _) = run(&plain, Policy::Window, 1, None);
            assert!(want[..3 * want.len() / 4] == single[..3 * want.len() / 4], "{name}, batches of {n_batch}");
            for policy in [Policy::L2, Policy::Off, Policy::Tova] {
                let (got, session) = run(&windowed, policy, n_batch, Some(64 << 20));
                let cache = session.cache();
                assert!(got == want, "{name}, {policy:?}, batches of {n_batch}");
                assert_eq!((cache.n_slot(), cache.n_live(), cache.shape().n_ctx), (N_WINDOW, N_WINDOW, 256));
                assert!(cache.arena_bytes() < 64 * cache.shape().bytes_per_slot(), "the budget beyond the window is not taken");
            }
        }
        let single = SessionParams { n_batch: 1, ..params(0) };
        let one_less = budget_for(&windowed.0, N_WINDOW, &single) - 1;
        let (_, session) = run(&windowed, Policy::L2, 1, Some(one_less));
        let cache = session.cache();
        assert_eq!((cache.n_slot() < N_WINDOW, cache.shape().n_ctx, cache.shape().window), (true, N_WINDOW, None));
    }
}

/// What is kept in every layer with keys, and the logits at the end, are those of a naive model in numpy (evicting.json), in
/// families that differ from Llama before keys are rated: biases, norms of heads, convolutions.
#[test]
fn other_families_evict_what_the_reference_evicts() {
    let (described, golden) = (golden("families.json"), golden("evicting.json"));
    let tokens = ids(&golden["ids"]);
    for (name, row) in golden["models"].as_object().expect("models") {
        let path = Temp::new(&format!("{name}-evicting"), &family_model(name, &described["models"][name]));
        for stream in row["streams"].as_array().expect("streams") {
            let number = |key: &str| stream[key].as_u64().expect("a number") as u32;
            let policy: Policy = stream["policy"].as_str().expect("a name").parse().expect("a policy");
            for (kernels, n_batch) in sets().into_iter().flat_map(|k| [1, 3, 20].map(|n| (k, n))) {
                let mut p = params(0);
                (p.kernels, p.kv.policy, p.n_batch) = (kernels.name().into(), policy, n_batch);
                (p.kv.sinks, p.kv.recent) = (number("sinks"), Some(Recent::Tokens(number("recent"))));
                p.kv.budget_bytes = budget_for(&path.0, number("n_slot") as usize, &p);
                let mut session = session(&path.0, &p);
                let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped").to_vec();
                let label = format!("{name}, {policy:?}, {}, batches of {n_batch}", kernels.name());
                for (layer, heads) in stream["kept"].as_array().expect("layers").iter().enumerate() {
                    for (head, want) in heads.as_array().expect("heads").iter().enumerate() {
                        let mut got = session.cache().kept(AttnLayer(layer), Head(head)).to_vec();
                        got.sort_unstable();
                        assert_eq!(got, ids(want), "{label}, layer {layer}, head {head}");
                    }
                }
                let off = worst(&logits, &floats(&stream["logits"][0]));
                assert!(off < 0.01, "{label}: off by {off}");
            }
        }
    }
}

/// What converters write beyond what a family needs, or leave out, and values of these that change what is computed.
#[test]
fn keys_that_repeat_or_lack_what_a_family_has_anyway() {
    let changed = |name: &str, change: &dyn Fn(&mut GgufWriter)| {
        let row = &golden("families.json")["models"][name];
        let mut file = family_model(name, row);
        change(&mut file);
        let temp = Temp::new(&format!("keys-{name}"), &file);
        lowkey::gguf::GgufFile::open(&temp.0).map_err(|e| e.to_string()).and_then(|file| {
            let model = lowkey::model::forward::Model::load(file);
            model.map(|model| model.config.clone()).map_err(|e| e.to_string())
        })
    };
    let without = |file: &mut GgufWriter, key: &str| file.keys.retain(|(name, ..)| name != key);
    let window = changed("gemma2-gqa", &|file| without(file, "gemma2.attention.sliding_window")).expect("a model").window;
    assert_eq!(window.map(|window| (window.n_tok, window.global_every)), Some((4096, 2)));
    let with = |name: &str, key: &str, bits: u32, kind: u32| {
        changed(name, &|file| {
            file.raw(key, kind, bits.to_le_bytes().into());
        })
    };
    with("hunyuan-dense-gqa", "hunyuan-dense.expert_count", 1, 4).expect("a model without experts");
    let squeezed = changed("llama-yarn", &|file| {
        without(file, "llama.rope.scaling.factor");
        file.f32("llama.rope.scaling.factor", 0.5);
    });
    assert!(squeezed.expect_err("a factor below 1").contains("llama.rope.scaling.factor is 0.5"));
    let refused = [
        ("olmo2-windows", "olmo2.rope.scaling.yarn_attn_factor", 1.25f32.to_bits(), 6),
        ("olmo2-gqa", "olmo2.rope.scaling.yarn_attn_factor", 1.25f32.to_bits(), 6),
        ("llama-factor-only", "llama.rope.scaling.yarn_attn_factor", 1.25f32.to_bits(), 6),
        ("hunyuan-dense-gqa", "hunyuan-dense.expert_count", 2, 4),
        ("qwen35-gqa", "qwen35.attention.recurrent_layers", 1, 4),
        ("llama-linear", "llama.ssm.conv_kernel", 4, 4),
    ];
    for (name, key, bits, kind) in refused {
        let error = with(name, key, bits, kind).expect_err(name);
        assert!(error.contains(key), "{name}: {error}");
    }
}
