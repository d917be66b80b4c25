//! What the pieces between strings and ids take of private memory: the tokenizer's estimate against a counting allocator, and
//! that nothing is allocated for a token once they stand. One test, since the count is of the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lowkey::gguf::GgufFile;
use lowkey::text::{Piece, Sampler, SamplerParams, Tokenizer, Utf8Stream, top_logprobs};
use lowkey_test_kit::gguf_writer::GgufWriter;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

fn grew(bytes: usize) {
    CALLS.fetch_add(1, Relaxed);
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator with the arguments as they came; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from `System` above with this layout.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The old and the new block may both be there for a moment.
        grew(new_size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `block` came from `System` with this layout; the caller's promise about `new_size` is passed on.
        unsafe { System.realloc(block, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `work` takes at its highest point beside what was there.
fn peak_of<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (PEAK.load(Relaxed) - before, result)
}

/// The demo model's vocabulary, SentencePiece's, Gemma's where it is there, and the rules for cutting words whose words are longest.
fn vocabularies() -> Vec<(String, GgufFile)> {
    let golden = lowkey_test_kit::golden("spm.json");
    let mut files = Vec::new();
    for name in ["usual", "over-spaces"] {
        files.push((name.to_string(), lowkey_test_kit::families::spm_vocabulary(&golden["models"][name])));
    }
    let golden = lowkey_test_kit::golden("bpe.json");
    let list = |key: &str| -> Vec<String> { serde_json::from_value(golden[key].clone()).expect(key) };
    let (tokens, merges) = (list("tokens"), list("merges"));
    for pre in ["deepseek-coder", "deepseek-llm", "llama-bpe"] {
        // Thousands of special tokens, some of which overlap.
        let specials = (0..4000).map(|i| format!("<|special_{i}|>")).chain(["<|im_<|im_start|>".into()]);
        let kind = |text: &str| if text.starts_with("<|im_") { 3 } else { 1 };
        let own = tokens.iter().map(|text| (text.clone(), kind(text)));
        let all: Vec<(String, i32)> = own.chain(specials.map(|text| (text, 3))).collect();
        let mut file = GgufWriter::new();
        file.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", pre);
        file.strs("tokenizer.ggml.tokens", &all.iter().map(|token| token.0.as_str()).collect::<Vec<_>>());
        file.i32s("tokenizer.ggml.token_type", &all.iter().map(|token| token.1).collect::<Vec<_>>());
        file.strs("tokenizer.ggml.merges", &merges.iter().map(String::as_str).collect::<Vec<_>>());
        files.push((pre.to_string(), file));
    }
    let open = |(name, writer): (String, GgufWriter)| {
        let path = std::env::temp_dir().join(format!("lowkey-text-memory-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, writer.build()).expect("a file");
        let file = GgufFile::open(&path).expect("a vocabulary");
        std::fs::remove_file(&path).expect("the file");
        (name, file)
    };
    let mut files: Vec<(String, GgufFile)> = files.into_iter().map(open).collect();
    let demo = lowkey_test_kit::demo_model();
    files.push(("demo".into(), GgufFile::open(&demo).expect("the demo model")));
    let gemma = demo.with_file_name("gemma3-270m-q4_k_m.gguf");
    if gemma.is_file() {
        files.push(("gemma".into(), GgufFile::open(&gemma).expect("Gemma")));
    }
    files
}

/// What a window may take that short words do not fill.
const FIXED_BYTES: usize = 160 << 10;

/// Texts of every kind: ids and working memory within the plan, of which most is used, in a time that grows as the text does.
fn texts_take_what_is_planned(name: &str, file: &GgufFile, tokenizer: &Tokenizer) {
    let kinds = [
        "7",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\u{3000}",
        "😀",
        "😀 ",
        "👩\u{200d}👩\u{200d}👧 ",
        "سلام ",
        "م",
        "中",
        "漢字。",
        "ไทย",
        "e\u{301}",
        "\u{301}",
        "a",
        "A",
        "aB",
        "É",
        "éA",
        "'",
        "'s ",
        "<",
        "</",
        "<u<u",
        "<|im_end|>",
        "<|im_<|im_start|>",
        "<|special_77|><|special_3999|>",
        "<unused1><unused12>\n\n",
        "\u{2581}",
        "\u{fffd}\u{0}",
        "~/",
        "12a",
        " 1",
        "the lamp of the town was lit ",
        "x = y;\n\t",
    ];
    let mut over = Vec::new();
    for kind in kinds {
        for n_bytes in [0, 1, 700, 100_000] {
            let text = kind.repeat(n_bytes / kind.len() + 1);
            let begun = std::time::Instant::now();
            let (peak, ids) = peak_of(|| tokenizer.encode(&text, true, true).unwrap());
            let took = begun.elapsed().as_secs_f64();
            let pieces = [Piece { text: &text, parse_special: true }, Piece { text: &text, parse_special: false }];
            let plan = tokenizer.encode_bytes(&pieces[..1], ids.len()) - text.len();
            assert!(peak <= plan, "{name}: {} bytes of {kind:?} took {peak} bytes and planned {plan}", text.len());
            assert!(plan - 4 * ids.len() <= Tokenizer::most_work_bytes(file, text.len()).unwrap() + 64);
            assert!(took < 5.0, "{name}: {} bytes of {kind:?} took {took} s", text.len());
            if n_bytes > 1000 {
                over.push((text.len() + plan - FIXED_BYTES.min(plan)) as f64 / (text.len() + peak) as f64);
                println!("{name}: {kind:?}: {} ids, peak {peak} of {plan}, {took:.3} s", ids.len());
            }
            if n_bytes > 1000 {
                continue;
            }
            let (peak, ids) = peak_of(|| tokenizer.encode_pieces(&pieces, true).unwrap());
            let plan = tokenizer.encode_bytes(&pieces, ids.len()) - 2 * text.len();
            assert!(peak <= plan, "{name}: two pieces of {kind:?} took {peak} bytes and planned {plan}");
        }
    }
    over.sort_by(f64::total_cmp);
    let median = over[over.len() / 2];
    println!("{name}: the plan is {median:.2} times the peak in the median");
    assert!(median <= 1.25, "{name}: the plan is {median:.2} times the peak");
}

#[test]
fn memory_is_as_planned_and_tokens_cost_none() {
    let file = GgufFile::open(&lowkey_test_kit::demo_model()).expect("the demo model");

    let plan = Tokenizer::plan_bytes(&file).unwrap() as usize;
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let peak = PEAK.load(Relaxed) - before;
    let held = LIVE.load(Relaxed) - before;
    println!("tokenizer: planned {plan}, peak {peak}, held {held} bytes");
    assert!(peak <= plan, "the tokenizer took {peak} bytes and planned {plan}");
    assert!(peak > plan / 2, "the tokenizer took {peak} bytes and planned {plan}: the estimate is of no use");

    // Text flows: what encoding holds goes with the ids it returns.
    let text = "The quick brown fox, 42 years old, says <|im_end|> 😀 to 中文.\n".repeat(200);
    let warm = tokenizer.encode(&text, true, true).unwrap();
    let live = LIVE.load(Relaxed);
    for round in 0..20 {
        let fresh = format!("{round} {text} new words every time {}", round * 7919);
        assert!(tokenizer.encode(&fresh, true, true).unwrap().len() > warm.len());
    }
    assert_eq!(LIVE.load(Relaxed), live, "encoding left memory behind");

    for (name, file) in vocabularies() {
        let plan = Tokenizer::plan_bytes(&file).unwrap() as usize;
        let (peak, tokenizer) = peak_of(|| Tokenizer::from_gguf(&file).unwrap());
        println!("{name}: planned {plan}, peak {peak}");
        assert!(peak <= plan, "{name}: the tokenizer took {peak} bytes and planned {plan}");
        texts_take_what_is_planned(&name, &file, &tokenizer);
    }

    let logits: Vec<f32> = (0..tokenizer.n_vocab()).map(|id| (id as f32 * 0.7).sin() * 8.0).collect();
    let before = LIVE.load(Relaxed);
    let params = SamplerParams { repeat_penalty: 1.1, seed: 3, ..SamplerParams::default() };
    let mut samplers: Vec<Sampler> = Vec::with_capacity(3);
    for params in [params, SamplerParams { top_k: 0, ..params }, SamplerParams { temp: 0.0, ..params }] {
        samplers.push(Sampler::new(params, logits.len()).unwrap());
    }
    let list = samplers.capacity() * size_of::<Sampler>();
    assert_eq!(LIVE.load(Relaxed) - before, list + 3 * Sampler::bytes(logits.len(), params.repeat_last_n));

    let mut stream = Utf8Stream::new();
    let mut out = String::with_capacity(64 << 10);
    let mut logprobs = Vec::with_capacity(10);
    let calls = CALLS.load(Relaxed);
    for _ in 0..20 {
        for sampler in &mut samplers {
            let id = sampler.sample(&logits).unwrap();
            sampler.accept(id);
            top_logprobs(&logits, 10, &mut logprobs);
            stream.push(tokenizer.token_bytes(id, true), &mut out);
            assert!(!tokenizer.is_eog(id) || tokenizer.is_control(id));
        }
    }
    stream.finish(&mut out);
    assert_eq!(CALLS.load(Relaxed) - calls, 0, "a token allocated memory");
    assert!(!out.is_empty());
}
