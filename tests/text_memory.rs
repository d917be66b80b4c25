//! What the pieces between strings and ids take of private memory: the tokenizer's estimate against a counting allocator, and
//! that nothing is allocated for a token once they stand. One test, since the count is of the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use lowkey::gguf::GgufFile;
use lowkey::text::{Sampler, SamplerParams, Tokenizer, Utf8Stream, top_logprobs};

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

    // SentencePiece: the same two figures, and what merging a word takes beside the ids, as `cli/text.rs` plans it.
    let golden = lowkey_test_kit::golden("spm.json");
    for name in ["usual", "over-spaces"] {
        let path = std::env::temp_dir().join(format!("lowkey-text-memory-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, lowkey_test_kit::families::spm_vocabulary(&golden["models"][name]).build()).expect("a file");
        let file = GgufFile::open(&path).expect("a vocabulary");
        let plan = Tokenizer::plan_bytes(&file).unwrap() as usize;
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let spm = Tokenizer::from_gguf(&file).unwrap();
        let peak = PEAK.load(Relaxed) - before;
        assert!(peak <= plan, "{name}: the tokenizer took {peak} bytes and planned {plan}");
        for text in ["the lamp of the town was lit ".repeat(300), "x".repeat(20_000), "\u{4e2d}".repeat(5_000), " ".repeat(9_000)]
        {
            let plan = text.len() * 5 + Tokenizer::longest_word(&file, &text).unwrap() * 128;
            let before = LIVE.load(Relaxed);
            PEAK.store(before, Relaxed);
            let ids = spm.encode(&text, true, true).unwrap();
            let peak = PEAK.load(Relaxed) - before;
            println!("{name}: {} ids, planned {plan} with the text, took {peak} without", ids.len());
            assert!(peak + text.len() <= plan, "{name}: encoding took {peak} bytes and planned {plan}");
        }
        std::fs::remove_file(&path).expect("the file");
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
