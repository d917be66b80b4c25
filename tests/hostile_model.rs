//! Real model files with one thing changed: each is refused with one line or runs to some logits. None may panic, plan
//! more than so small a file can ask for, or take more from the heap than a small multiple of the file.
//!
//! The files are tests/data/tiny-*.gguf, taken apart into keys and tensors, and one of each other family
//! (tests/golden/families.json), changed, and written again; then bytes of the whole file are flipped at random with a fixed seed. What a weight becomes does not matter: logits may be anything.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowkey::gguf::{GgmlType, GgufFile};
use lowkey::kernels::Kernels;
use lowkey::kv::{AttnLayer, Head, Recent};
use lowkey::mem::plan::Plan;
use lowkey::model::forward::Model;
use lowkey::session::{Session, SessionParams};
use lowkey::text::{ChatTemplate, Sampler, SamplerParams, Tokenizer, top_logprobs};
use lowkey_test_kit::gguf_writer::{self as w, GgufWriter, array, string, take_apart};
use lowkey_test_kit::mutate::{MORE_KEYS, values};

/// Counts what is on the heap, and gives nothing beyond a cap: a test binary that asks for more ends with a message.
struct Capped;

/// The heap of this process at most: files of 150 KB, their tokenizers and indices, several tests at once.
const HEAP_CAP: usize = 256 << 20;
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator, or refuses.
unsafe impl GlobalAlloc for Capped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size() > HEAP_CAP {
            return std::ptr::null_mut();
        }
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Capped = Capped;

/// A path of this test's own, removed at its end.
struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> Self {
        TempPath(std::env::temp_dir().join(format!("lowkey-hostile-{}-{name}.gguf", std::process::id())))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Refused,
    /// Loaded, and ran to logits.
    Ran,
}

/// The plan of a model that fits into the file it came from, with a small arena: what the shapes allow, from above.
const PLAN_CAP: u64 = 64 << 20;

fn params(n_threads: usize) -> SessionParams {
    let mut params = lowkey_test_kit::params(256 << 10);
    (params.n_batch, params.n_threads, params.kv.recent) = (8, Some(n_threads), Some(Recent::Tokens(4)));
    // By name, so that twenty thousand starts do not each measure what is fastest.
    params.kernels = Kernels::choose("auto").expect("a set").name().into();
    params
}

/// One line that a terminal can bear.
fn one_line(label: &str, error: &lowkey::Error) {
    let line = error.to_string();
    assert!(!line.contains(['\n', '\r', '\u{1b}', '\0']) && line.len() < 1000, "{label}: not one short line: {line:?}");
}

/// Tokenizer and template of a file, built and tried.
fn run_text(label: &str, path: &TempPath) {
    let Ok(file) = GgufFile::open(&path.0) else { return };
    let text = "Hello world, 123 <|im_start|> and  more\n\n\u{e9}\u{1f600}";
    if let (Ok(tokenizer), Ok(_)) = (Tokenizer::from_gguf(&file), Tokenizer::plan_bytes(&file)) {
        for ids in [tokenizer.encode(text, true, true), tokenizer.encode(text, false, false)].into_iter().flatten() {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()), "{label}: an id beyond the vocabulary");
            tokenizer.decode(&ids);
        }
    }
    let _ = ChatTemplate::from_gguf(&file);
}

/// Opens, loads, plans, starts and runs what `path` holds.
fn run(label: &str, path: &TempPath, n_threads: usize) -> Fate {
    let file = match GgufFile::open(&path.0) {
        Ok(file) => file,
        Err(error) => {
            one_line(label, &error);
            return Fate::Refused;
        }
    };
    let params = params(n_threads);
    let start = Model::load(file).and_then(|model| {
        let layout = params.layout(&model)?;
        let mut plan = Plan::default();
        layout.plan(&model, &mut plan);
        let bytes = plan.private_bytes();
        assert!(bytes < PLAN_CAP, "{label}: a plan of {bytes} bytes for a file of {}", model.file.file_bytes());
        Session::new(model, &layout)
    });
    let mut session = match start {
        Ok(session) => session,
        Err(error) => {
            one_line(label, &error);
            return Fate::Refused;
        }
    };
    let n_vocab = session.model().config.n_vocab;
    let mut sampler = Sampler::new(SamplerParams { repeat_penalty: 1.1, ..Default::default() }, n_vocab).expect("a sampler");
    let tokens: Vec<u32> = (0..11).map(|t| (t * 29 + 1) % n_vocab as u32).collect();
    let mut top = Vec::new();
    let mut take = |logits: &[f32]| {
        assert_eq!(logits.len(), n_vocab, "{label}");
        top_logprobs(logits, 3, &mut top);
        match sampler.sample(logits) {
            Ok(token) => {
                assert!((token as usize) < n_vocab, "{label}: token {token}");
                sampler.accept(token);
            }
            Err(error) => one_line(label, &error),
        }
    };
    // A policy that evicts never stops; what may is a weight that is not a number.
    let stopped = |error: lowkey::Error| {
        one_line(label, &error);
        let line = error.to_string();
        assert!(line.contains("fetch it again") || line.contains("use another quantisation"), "{label}: {line}");
        Fate::Refused
    };
    match session.prefill(&tokens, |_| true) {
        Ok(logits) => take(logits.expect("nobody stopped it")),
        Err(error) => return stopped(error),
    }
    for &token in &tokens[..3] {
        match session.step(token) {
            Ok(logits) => take(logits),
            Err(error) => return stopped(error),
        }
    }
    Fate::Ran
}

/// Runs a case, its tokenizer and template included; a panic fails the test with the case's name.
fn case(label: &str, path: &TempPath, bytes: &[u8], n_threads: usize) -> Fate {
    std::fs::write(&path.0, bytes).expect("a temporary file");
    let run = || {
        run_text(label, path);
        run(label, path, n_threads)
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| panic!("{label}: panicked, see above"))
}

/// The same for a change that neither tokenizer nor template reads: building them takes longer than all the rest.
fn case_without_text(label: &str, path: &TempPath, bytes: &[u8]) -> Fate {
    std::fs::write(&path.0, bytes).expect("a temporary file");
    catch_unwind(AssertUnwindSafe(|| run(label, path, 1))).unwrap_or_else(|_| panic!("{label}: panicked, see above"))
}

/// A sound file of each family, Llama's first; under emulation that one alone.
fn one_of_each_family() -> Vec<(&'static str, GgufWriter)> {
    let golden = lowkey_test_kit::golden("families.json");
    #[rustfmt::skip]
    let others = [
        "qwen2-q8", "qwen3-q8", "smollm3-q8", "phi3-factors", "llama-yarn", "gemma2-q8", "gemma3-q8", "lfm2-q8", "granite-q8",
        "minicpm-q8", "mistral3-q8-growth", "ernie4_5-q8", "hunyuan-dense-q8", "exaone4-gqa", "olmo2-q8", "arcee-q8", "apertus-q8",
        "seed_oss-q8", "qwen35-q8", "qwen3moe-q8", "lfm2moe-q8", "qwen35moe-q8", "granitemoe-q8", "qwen3-q1", "qwen3-q2",
        "gemma4-q8", "gemma4-moe-q8", "granitehybrid-q8", "granitehybrid-moe-q8", "falcon-h1-q8", "gpt-oss-q8",
    ];
    let others = others.map(|name| (name, lowkey_test_kit::families::family_model(name, &golden["models"][name])));
    let all = [("tiny-freqs", take_apart("tiny-freqs.gguf"))].into_iter().chain(others);
    all.take(if lowkey_test_kit::emulated().is_some() { 1 } else { usize::MAX }).collect()
}

#[test]
fn the_files_as_they_are_run() {
    let path = TempPath::new("plain");
    for name in ["tiny-gqa.gguf", "tiny-gqa-f32.gguf", "tiny-mqa.gguf", "tiny-mha.gguf", "tiny-freqs.gguf"] {
        for n_threads in [1, 2] {
            assert_eq!(case(name, &path, &take_apart(name).build(), n_threads), Fate::Ran, "{name}");
        }
    }
}

/// Which of a list of changes a family is given: all of them to a key or tensor that no family before it had, else every fourth,
/// and of the next family those after.
fn share<T>(all: impl Iterator<Item = T>, family: usize, seen: bool) -> impl Iterator<Item = T> {
    let (first, step) = if seen { (family % 4, 4) } else { (0, 1) };
    all.skip(first).step_by(step)
}

#[test]
fn one_metadata_value_changed() {
    let path = TempPath::new("metadata");
    let mut known = HashSet::new();
    for (family, (name, original)) in one_of_each_family().into_iter().enumerate() {
        let (mut n_ran, mut n) = (0, 0);
        let n_keys = original.keys.len();
        let dashed = ["hunyuan-dense", "gpt-oss", "falcon-h1"].into_iter().find(|arch| name.starts_with(arch));
        let arch = dashed.unwrap_or(name.split('-').next().unwrap_or_default());
        let arch = if arch == "tiny" { "llama" } else { arch };
        for i in 0..n_keys + MORE_KEYS.len() {
            let mut file = original.clone();
            if i >= n_keys {
                file.u32(&MORE_KEYS[i - n_keys].replace("ARCH", arch), 0);
            }
            let i = i.min(n_keys);
            let key = file.keys[i].0.clone();
            let run = |label: &str, file: &GgufWriter| match key.contains("token") {
                true => case(label, &path, &file.build(), 1),
                false => case_without_text(label, &path, &file.build()),
            };
            let seen = !known.insert(key.replacen(arch, "ARCH", 1));
            for (what, ty, bytes) in share(values().into_iter(), family, seen) {
                (file.keys[i].1, file.keys[i].2) = (ty, bytes);
                n_ran += usize::from(run(&format!("{name}: {key} = {what}"), &file) == Fate::Ran);
                n += 1;
            }
            file.keys.remove(i);
            run(&format!("{name}: {key} is gone"), &file);
        }
        println!("{name}: {n_ran} of {n} ran");
        assert!(n_ran > 50 && n_ran < n, "{name}: both fates occur: {n_ran} of {n} ran");
    }
}

/// A file of a SentencePiece vocabulary and nothing else: never a model, but its tokenizer is built and tried.
#[test]
fn one_value_of_a_sentencepiece_vocabulary_changed() {
    let path = TempPath::new("spm");
    let golden = lowkey_test_kit::golden("spm.json");
    let original = lowkey_test_kit::families::spm_vocabulary(&golden["models"]["phi-3"]);
    for i in 0..original.keys.len() {
        let key = original.keys[i].0.clone();
        let mut file = original.clone();
        for (what, ty, bytes) in values() {
            (file.keys[i].1, file.keys[i].2) = (ty, bytes);
            case(&format!("{key} = {what}"), &path, &file.build(), 1);
        }
        file.keys.remove(i);
        case(&format!("{key} is gone"), &path, &file.build(), 1);
    }
    // Scores and types of the right number, and absurd.
    let n = golden["models"]["phi-3"]["tokens"].as_array().expect("tokens").len() + 256;
    let at = |key: &str| original.keys.iter().position(|k| k.0 == key).expect("a key");
    for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX] {
        let mut file = original.clone();
        file.keys[at("tokenizer.ggml.scores")].2 = array(w::F32, n as u64, &score.to_le_bytes().repeat(n));
        case(&format!("all scores {score}"), &path, &file.build(), 1);
    }
    for kind in [-1i32, 0, 1, 2, 3, 4, 5, 6, 7] {
        let mut file = original.clone();
        file.keys[at("tokenizer.ggml.token_type")].2 = array(w::I32, n as u64, &kind.to_le_bytes().repeat(n));
        case(&format!("all types {kind}"), &path, &file.build(), 1);
    }
}

/// Two at a time, for products that overflow where each factor alone is only large.
#[test]
fn two_huge_numbers() {
    let path = TempPath::new("two");
    let original = take_apart("tiny-gqa.gguf");
    let numbers: Vec<usize> = (0..original.keys.len()).filter(|&i| original.keys[i].1 == w::U32).collect();
    for (n, &i) in numbers.iter().enumerate() {
        for &j in &numbers[n + 1..] {
            for (a, b) in [(u32::MAX, u32::MAX - 31), (u32::MAX - 31, u32::MAX - 31), (1 << 31, 1 << 31), (1, 1 << 24)] {
                let mut file = original.clone();
                (file.keys[i].2, file.keys[j].2) = (a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec());
                let label = format!("{} = {a}, {} = {b}", file.keys[i].0, file.keys[j].0);
                case(&label, &path, &file.build(), 1);
            }
        }
    }
}

#[test]
fn every_tensor_renamed_dropped_reshaped_and_retyped() {
    let path = TempPath::new("tensors");
    let mut known = HashSet::new();
    for (family, (model, original)) in one_of_each_family().into_iter().enumerate() {
        disturb_tensors((family, model), &original, &path, &mut known);
    }
}

fn disturb_tensors((family, model): (usize, &str), original: &GgufWriter, path: &TempPath, known: &mut HashSet<String>) {
    for i in 0..original.tensors.len() {
        let name = original.tensors[i].name.clone();
        if name.starts_with("blk.1.") {
            continue; // as in layer 0
        }
        let seen = !known.insert(name.clone());
        let try_with = |what: &str, change: &dyn Fn(&mut GgufWriter)| {
            let mut file = original.clone();
            change(&mut file);
            case_without_text(&format!("{model}, {name}: {what}"), path, &file.build())
        };
        let of_others = if name == "blk.0.attn_output.bias" { "blk.0.attn_q_norm.weight" } else { "blk.0.attn_output.bias" };
        assert_eq!(try_with("renamed", &|f| f.tensors[i].name = of_others.into()), Fate::Refused, "{model}, {name}");
        let dropped = try_with("dropped", &|f| drop(f.tensors.remove(i)));
        // Without it the embeddings are the output, and the frequencies are the plain ones: other models, well-formed.
        let optional = ["output.weight", "rope_freqs.weight", "blk.0.attn_qkv.bias"].contains(&name.as_str())
            && !(model.starts_with("gemma4") && name.starts_with("rope") || model.starts_with("gpt-oss"));
        assert_eq!(dropped, if optional { Fate::Ran } else { Fate::Refused }, "{model}, {name} dropped");
        assert_eq!(try_with("a line break in its name", &|f| f.tensors[i].name = "a\nb".into()), Fate::Refused);
        for d in 0..original.tensors[i].dims.len() {
            let dims = [0, 1, 2, 31, 32, 96, 1 << 20, 1 << 32, u64::MAX, u64::MAX / 2 + 1];
            for dim in share(dims.into_iter(), family, seen) {
                let fate = try_with(&format!("dimension {d} is {dim}"), &|f| f.tensors[i].dims[d] = dim);
                let same = original.tensors[i].dims[d] == dim;
                assert!(same || fate == Fate::Refused, "{model}, {name}: dimension {d} is {dim}, and it ran");
            }
        }
        try_with("its dimensions reversed", &|f| f.tensors[i].dims.reverse());
        assert_eq!(try_with("flat", &|f| f.tensors[i].dims = vec![f.tensors[i].dims.iter().product(), 1, 1, 2]), Fate::Refused);
        for &ty in share(GgmlType::ALL.iter(), family, seen) {
            try_with(ty.name(), &|f| {
                let t = &mut f.tensors[i];
                let n = t.dims.iter().product::<u64>() as usize;
                t.type_id = ty.id();
                t.data = (0..n.div_ceil(ty.block_elems()) * ty.block_bytes()).map(|b| (b * 37) as u8).collect();
            });
        }
        for fill in [0u8, 0x7f, 0x80, 0xff] {
            try_with(&format!("filled with {fill:#x}"), &|f| f.tensors[i].data.fill(fill));
        }
    }
}

#[test]
fn tensors_and_vocabularies_that_do_not_belong() {
    let path = TempPath::new("extra");
    let original = take_apart("tiny-gqa.gguf");
    let refused = |what: &str, change: &dyn Fn(&mut GgufWriter)| {
        let mut file = original.clone();
        change(&mut file);
        assert_eq!(case(what, &path, &file.build(), 1), Fate::Refused, "{what}");
    };
    for name in ["blk.0.attn_q.bias", "blk.2.attn_norm.weight", "blk.0.attn_q_norm.weight", "x", "blk.-1.attn_q.weight"] {
        refused(name, &|f| {
            f.tensor_f32(name, &[4], &[1.0; 4]);
        });
    }
    let tokens = |n: usize| -> Vec<u8> {
        let elems: Vec<u8> = (0..n).flat_map(|i| string(format!("t{i}").as_bytes())).collect();
        array(w::STRING, n as u64, &elems)
    };
    let at = original.keys.iter().position(|k| k.0 == "tokenizer.ggml.tokens").expect("a vocabulary");
    for n in [0, 1, 299, 301, 100_000] {
        refused(&format!("{n} tokens"), &|f| f.keys[at].2 = tokens(n));
    }
}

/// A list of KV heads, one for each layer: only one that gives the same number to some layers, and none to those that the file
/// has convolutions for, is run.
#[test]
fn kv_heads_that_do_not_fit_the_layers() {
    let path = TempPath::new("heads");
    let golden = lowkey_test_kit::golden("families.json");
    let family = |name: &str| lowkey_test_kit::families::family_model(name, &golden["models"][name]);
    let try_list = |file: &GgufWriter, heads: &[i32]| {
        let mut file = file.clone();
        let at = file.keys.iter().position(|k| k.0.ends_with(".head_count_kv")).expect("a key");
        let bytes: Vec<u8> = heads.iter().flat_map(|n| n.to_le_bytes()).collect();
        (file.keys[at].1, file.keys[at].2) = (w::ARRAY, array(w::I32, heads.len() as u64, &bytes));
        case(&format!("{heads:?}"), &path, &file.build(), 1)
    };
    let lfm2 = family("lfm2-q8");
    assert_eq!(try_list(&lfm2, &[0, 0, 2, 0, 2]), Fate::Ran);
    for heads in [
        &[0, 0, 2, 0][..],
        &[0, 0, 2, 0, 2, 2],
        &[0, 0, 2, 2, 2],
        &[0, 0, 0, 0, 2],
        &[0, 0, 0, 0, 0],
        &[2, 2, 2, 2, 2],
        &[0, 0, 2, 0, 4],
        &[0, 0, 2, 0, -2],
        &[0, 0, 3, 0, 3],
        &[0, 0, 1, 0, 1],
        &[],
    ] {
        assert_eq!(try_list(&lfm2, heads), Fate::Refused, "{heads:?}");
    }
    // In place of attention there is Mamba-2, which has its tensors.
    let hybrid = family("granitehybrid-q8");
    assert_eq!(try_list(&hybrid, &[0, 0, 2, 0]), Fate::Ran);
    for heads in [&[0, 0, 2][..], &[0, 0, 2, 0, 0], &[0, 2, 2, 0], &[0, 0, 0, 2], &[0, 0, 0, 0], &[0, 0, 3, 0], &[]] {
        assert_eq!(try_list(&hybrid, heads), Fate::Refused, "{heads:?}");
    }
    let qwen2 = family("qwen2-q8");
    assert_eq!(try_list(&qwen2, &[2, 2]), Fate::Ran, "a list of equal numbers is one number");
    for heads in [[0, 2], [2, 0], [2, 1]] {
        assert_eq!(try_list(&qwen2, &heads), Fate::Refused, "{heads:?}");
    }
}

/// A context as short as is allowed: batches of one token, renumbering at almost every step.
#[test]
fn a_context_of_eight_tokens_streams() {
    let path = TempPath::new("short");
    let mut file = take_apart("tiny-gqa.gguf");
    let at = file.keys.iter().position(|k| k.0 == "llama.context_length").expect("a context");
    for n_ctx in [8u32, 9, 15, 16, 17] {
        file.keys[at].2 = n_ctx.to_le_bytes().to_vec();
        std::fs::write(&path.0, file.build()).expect("a temporary file");
        for (sinks, recent) in
            [(4, Recent::Tokens(2)), (0, Recent::Percent(100.0)), (7, Recent::Tokens(1)), (0, Recent::Tokens(0))]
        {
            let mut params = params(2);
            (params.kv.sinks, params.kv.recent) = (sinks, Some(recent));
            let mut session = lowkey_test_kit::session(&path.0, &params);
            assert_eq!(session.cache().n_slot(), n_ctx as usize);
            for t in 0..4 * n_ctx {
                let logits = session.step(t % 250).expect("a step");
                assert!(logits.iter().all(|l| l.is_finite()), "context {n_ctx}, step {t}");
                let mut kept = session.cache().kept(AttnLayer(0), Head(0)).to_vec();
                kept.sort_unstable();
                assert!(kept.windows(2).all(|p| p[0] < p[1]), "distinct positions: {kept:?}");
                assert!(kept.contains(&(session.cache().next_pos() - 1)), "the newcomer is kept: {kept:?}");
            }
        }
    }
}

#[test]
fn bytes_flipped_anywhere() {
    let n_cases = if lowkey_test_kit::emulated().is_some() { 100 } else { 500 };
    let threads: Vec<_> = ["tiny-gqa.gguf", "tiny-freqs.gguf", "tiny-mqa.gguf", "tiny-gqa-f32.gguf"]
        .into_iter()
        .enumerate()
        .map(|(seed, name)| {
            std::thread::spawn(move || {
                let path = TempPath::new(name);
                let original = std::fs::read(lowkey_test_kit::data(name)).expect(name);
                let index = lowkey::gguf::parse(&original).expect(name);
                let head = index.tensors().iter().map(|t| t.offset as usize).min().expect("tensors");
                let mut rng = fastrand::Rng::with_seed(seed as u64);
                let (mut bytes, mut n_ran) = (original.clone(), 0);
                for i in 0..n_cases {
                    bytes.copy_from_slice(&original);
                    // Half of the cases hit what describes the tensors, the others mostly the weights; one byte or many.
                    let range = if rng.bool() { head } else { bytes.len() };
                    for _ in 0..1 << rng.u32(0..8) {
                        let at = rng.usize(..range);
                        match rng.u8(..4) {
                            0 => bytes[at] ^= 1 << rng.u8(..8),
                            1 => bytes[at] = 0xff,
                            2 => bytes[at] = 0,
                            _ => bytes[at] = rng.u8(..),
                        }
                    }
                    let cut = if rng.u8(..16) == 0 { rng.usize(1..bytes.len()) } else { bytes.len() };
                    let fate = case(&format!("{name}, case {i}"), &path, &bytes[..cut], 1 + i % 2);
                    n_ran += usize::from(fate == Fate::Ran);
                }
                println!("{name}: {n_ran} of {n_cases} ran");
                assert!(n_ran > n_cases / 20 && n_ran < n_cases, "{name}: both fates occur: {n_ran} of {n_cases} ran");
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("see above"));
}
