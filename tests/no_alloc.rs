//! After a session has started nothing is allocated: an allocator that counts is armed around prefill and steps, through
//! the filling of the arena, eviction and renumbering.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lowkey::kv::{KvType, PastParams, Policy, Share};
use lowkey::model::forward::Logits;
use lowkey::session::{Engine, Stream};
use lowkey::session_file::{Limits, Name, Shelf};

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_in(job: impl FnOnce()) -> usize {
    COUNT.store(0, Ordering::Relaxed);
    ARMED.store(true, Ordering::Relaxed);
    job();
    ARMED.store(false, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed)
}

/// A program of its own (`harness = false`): the counter sees every thread of the process, and a test runner that reports
/// on a slow test allocates for it.
fn main() {
    prefill_and_steps_allocate_nothing();
    passes_of_several_streams_allocate_nothing();
    saving_and_restoring_allocate_nothing();
    a_past_in_a_file_allocates_nothing();
    println!("test prefill_and_steps_allocate_nothing ... ok\n\n1 passed, 0 failed");
}

fn prefill_and_steps_allocate_nothing() {
    assert!(allocations_in(|| drop(std::hint::black_box(vec![1u8; 100]))) > 0, "the counter counts");

    // The real model: 2 MiB hold some 80 tokens, so 200 evict in prefill and in decode (emulated: 1 MiB and 70).
    let path = lowkey_test_kit::demo_model();
    let (n_prompt, n_steps, budget) = if lowkey_test_kit::emulated().is_some() { (70, 3, 1 << 20) } else { (200, 20, 2 << 20) };
    let prompt = lowkey_test_kit::prose(n_prompt);
    let mut params = lowkey_test_kit::params(budget);
    params.n_batch = 16;
    let mut session = lowkey_test_kit::session(&path, &params);
    let n = allocations_in(|| {
        session.prefill(&prompt, |_| true).expect("prefill");
        for &token in &prompt[..n_steps] {
            session.step(token).expect("a step");
        }
    });
    assert!(session.cache().n_evicted() > 20);
    assert_eq!(n, 0, "allocations with the demo model");

    // Small models: float weights go through another matrix product, a short context is renumbered again and again.
    // So are families with biases, normed heads, layers that know no positions, fused matrices, windows, convolutions, delta nets, Mamba-2, experts, and shared keys.
    let golden = lowkey_test_kit::golden("families.json");
    let own = std::env::temp_dir().join(format!("lowkey-no-alloc-{}.gguf", std::process::id()));
    for name in [
        "tiny-gqa-f32.gguf",
        "tiny-mqa.gguf",
        "qwen2-q8",
        "qwen3-q8",
        "smollm3-q8",
        "phi3-q8",
        "gemma2-q8",
        "gemma3-q8",
        "lfm2-q8",
        "mistral3-q8-growth",
        "olmo2-q8",
        "apertus-q8",
        "qwen35-q8",
        "lfm2moe-q8",
        "qwen35moe-q8",
        "gemma4-q8",
        "gemma4-moe-q8",
        "granitehybrid-q8",
        "falcon-h1-q8",
        "gpt-oss-q8",
    ] {
        let path = if name.starts_with("tiny") { lowkey_test_kit::data(name) } else { own.clone() };
        if path == own {
            let file = lowkey_test_kit::families::family_model(name, &golden["models"][name]);
            std::fs::write(&own, file.build()).expect("a temporary file");
        }
        let mut params = lowkey_test_kit::params(0);
        if name == "tiny-mqa.gguf" {
            (params.k_type, params.v_type) = (Some(KvType::Q5H), Some(KvType::Q4H));
            (params.kv.policy, params.kv.rare, params.kv.pool) = (Policy::L2Attn, Some(Share(0.3)), Some(2));
        }
        params.kv.budget_bytes = lowkey_test_kit::budget_for(&path, 40, &params);
        // Some of what follows is guessed, and wrong.
        let config = lowkey_test_kit::model(&path).config;
        params.n_draft = if config.recurrent.is_some() || config.n_shared > 0 { 0 } else { 6 };
        let mut session = lowkey_test_kit::session(&path, &params);
        let (n_ctx, n_vocab) = (session.model().config.n_ctx, session.model().config.n_vocab as u32);
        let n = allocations_in(|| {
            for i in 0..(2 * n_ctx / 30) as u32 {
                let tokens: [u32; 30] = std::array::from_fn(|t| (i * 7 + t as u32 * 13) % n_vocab);
                session.prefill(&tokens, |_| true).expect("prefill");
                let mut steps = session.steps();
                for token in [tokens[0], tokens[1], tokens[2], 5] {
                    steps.step(token, 9).expect("a step");
                }
            }
        });
        assert!(session.n_past() > n_ctx as u64, "{name} has passed its context");
        assert!(params.n_draft == 0 || session.draft_counts().n_guessed > 0, "{name} has guessed");
        assert_eq!(n, 0, "allocations with {name}");
    }
    std::fs::remove_file(&own).expect("the temporary file");
}

/// Passes of several streams, of which one or another rests, through eviction; a stream that is taken back and pinned anew.
fn passes_of_several_streams_allocate_nothing() {
    let path = lowkey_test_kit::demo_model();
    let mut params = lowkey_test_kit::params(1 << 20);
    (params.n_streams, params.n_log, params.n_batch, params.kv.policy) = (4, 256, 16, Policy::L2Attn);
    let model = lowkey_test_kit::model(&path);
    let layout = params.layout(&model).expect("a layout");
    let mut engine = Engine::new(model, &layout).expect("an engine");
    let mut streams: Vec<Stream> = (0..4).map(|_| engine.stream(&layout).expect("a stream")).collect();
    let (prompt, n_steps) = (lowkey_test_kit::prose(64), if lowkey_test_kit::emulated().is_some() { 4 } else { 40 });
    let n = allocations_in(|| {
        for (i, stream) in streams.iter_mut().enumerate() {
            for batch in prompt[..16 * (i + 1)].chunks(16) {
                engine.prefill(stream, batch, Logits::None).expect("a batch");
            }
        }
        let prefix = streams[0].prefix(&prompt[..10]);
        streams[0].keep(prefix.n_cached);
        streams[0].pin(6);
        for step in 0..n_steps {
            let lanes = streams.iter_mut().enumerate().filter(|(i, _)| i % 3 != step % 3).map(|(_, stream)| stream);
            engine.step_all(lanes.zip(&prompt)).expect("a pass");
        }
    });
    assert!(streams[3].cache().n_evicted() > 0, "{} slots", layout.n_slot);
    assert_eq!(n, 0, "allocations with four streams");
}

/// Through the filling of its ring, which then overwrites itself.
fn a_past_in_a_file_allocates_nothing() {
    let path = lowkey_test_kit::data("tiny-mqa.gguf");
    let mut params = lowkey_test_kit::params(0);
    (params.kv.policy, params.k_type, params.v_type) = (Policy::L2Attn, Some(KvType::Q5H), Some(KvType::Q4H));
    params.kv.budget_bytes = lowkey_test_kit::budget_for(&path, 40, &params);
    params.past = Some(PastParams { folder: std::env::temp_dir(), name: None, space_bytes: 256 << 10, n_recall: 4 });
    let mut session = lowkey_test_kit::session(&path, &params);
    let n_tok = session.cache().past().expect("a past").shape().n_tok();
    let n = allocations_in(|| {
        for _ in 0..2 * n_tok / 100 {
            session.prefill(&[7; 90], |_| true).expect("prefill");
            (0..10).for_each(|token| assert!(!session.step(token).expect("a step").is_empty()));
        }
    });
    let counts = session.cache().past().expect("a past").counts();
    assert!(session.n_past() > n_tok as u64 && counts.n_pieces > 1000, "{n_tok} tokens, {counts:?}");
    assert_eq!(n, 0, "allocations with a past in a file");
}

/// In a folder of the file system, with sessions that go for the space.
fn saving_and_restoring_allocate_nothing() {
    let (path, folder) =
        (lowkey_test_kit::data("tiny-mqa.gguf"), std::env::temp_dir().join(format!("lowkey-no-alloc-{}", std::process::id())));
    let mut params = lowkey_test_kit::params(0);
    (params.n_log, params.kv.policy, params.k_type, params.v_type) = (256, Policy::L2Attn, Some(KvType::Q5H), Some(KvType::Q4H));
    params.kv.budget_bytes = lowkey_test_kit::budget_for(&path, 40, &params);
    let mut session = lowkey_test_kit::session(&path, &params);
    let fingerprint = lowkey_test_kit::sessions::fingerprint(&session);
    let limits = Limits { free_percent: 0, ..Limits::of(100_000) };
    let mut shelf = Shelf::open(&folder, limits).expect("a shelf");
    session.prefill(&[7; 100], |_| true).expect("prefill");
    let (text, mut room) = ([b'x'; 500], [0; 500]);
    let (mut n_saved, mut n_bytes) = (0, 0);
    let n = allocations_in(|| {
        for i in 0..20u8 {
            let (engine, stream) = session.parts();
            let (name, text) = (Name::of_text(&[i]), &text[..usize::from(i)]);
            n_bytes = shelf.save_stream(&name, &fingerprint, stream, Some(engine), (text, 1)).expect("it is saved");
            let resumed = shelf.restore_stream(&name, &fingerprint, engine, stream, Some(&mut room)).expect("it is restored");
            n_saved += usize::from(resumed.n_past == 100);
        }
    });
    assert!(
        n_saved == 20 && shelf.sessions().len() < 20 && n_bytes > 5000,
        "{} sessions of {n_bytes} bytes stay",
        shelf.sessions().len()
    );
    std::fs::remove_dir_all(&folder).expect("the folder");
    assert_eq!(n, 0, "allocations while a stream is saved and restored");
}
