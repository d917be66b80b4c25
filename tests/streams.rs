//! Several streams through one engine: what comes out for one does not depend on the others, and a stream that is taken back is as
//! if it had never gone on.

use lowkey::kv::{KvType, Policy, Share};
use lowkey::model::forward::Logits;
use lowkey::session::{Engine, SessionParams, Stream};
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::{budget_for, data, golden, model, params, session};

/// Families with all that a pass may hold: plain, biases, windows, normed heads, convolutions, queries that grow, delta nets, Mamba-2 and experts.
const FAMILIES: [&str; 10] = [
    "tiny-mqa.gguf",
    "qwen2-q8",
    "gemma2-q8",
    "gemma3-q8",
    "smollm3-q8",
    "lfm2-q8",
    "mistral3-q8-growth",
    "qwen35moe-q8",
    "granitehybrid-moe-q8",
    "falcon-h1-q8",
];

/// Runs `job` with the file of each family.
fn for_families(name: &str, job: impl Fn(&std::path::Path)) {
    let golden = golden("families.json");
    for family in FAMILIES {
        if family.starts_with("tiny") {
            job(&data(family));
            continue;
        }
        let path = std::env::temp_dir().join(format!("lowkey-streams-{name}-{}-{family}.gguf", std::process::id()));
        std::fs::write(&path, family_model(family, &golden["models"][family]).build()).expect("a temporary file");
        job(&path);
        std::fs::remove_file(&path).expect("the temporary file");
    }
}

fn engine(path: &std::path::Path, params: &SessionParams) -> (Engine, Vec<Stream>) {
    let model = model(path);
    let layout = params.layout(&model).expect("a layout");
    let engine = Engine::new(model, &layout).expect("an engine");
    let streams = (0..params.n_streams).map(|_| engine.stream(&layout).expect("a stream")).collect();
    (engine, streams)
}

/// Token `t` of stream `i`.
fn token(i: usize, t: usize, n_vocab: usize) -> u32 {
    ((i * 31 + t * 7 + t * t % 11) % n_vocab) as u32
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Three streams of different lengths, through eviction: each gives the bits that it gives alone.
#[test]
fn streams_that_share_a_pass_give_the_bits_that_each_gives_alone() {
    for_families("together", |path| {
        for (policy, k_type, v_type) in [
            (Policy::L2Attn, KvType::Q5H, KvType::Q4H),
            (Policy::L2, KvType::F16, KvType::F16),
            (Policy::KeyDiff, KvType::Q8_0, KvType::Q8_0),
        ] {
            if !path.ends_with("tiny-mqa.gguf") && policy == Policy::KeyDiff {
                continue;
            }
            let mut params = params(0);
            (params.kv.policy, params.n_streams, params.n_batch) = (policy, 3, 8);
            // Small heads have no turned types.
            if path.ends_with("tiny-mqa.gguf") {
                (params.k_type, params.v_type) = (Some(k_type), Some(v_type));
            }
            params.kv.budget_bytes = budget_for(path, 40, &params);
            let (mut engine, mut streams) = engine(path, &params);
            let n_vocab = engine.model().config.n_vocab;
            let mut alone = Vec::new();
            for i in 0..3 {
                let mut own = session(path, &SessionParams { n_streams: 1, ..params.clone() });
                let prompt: Vec<u32> = (0..5 + 9 * i).map(|t| token(i, t, n_vocab)).collect();
                own.prefill(&prompt, |_| true).expect("a prompt");
                let steps = (0..60).map(|t| bits(own.step(token(i, 100 + t, n_vocab)).expect("a step")));
                alone.push(steps.collect::<Vec<_>>());
                let mut done = 0;
                while done < prompt.len() {
                    let n = engine.together(&streams[i], prompt.len() - done);
                    engine.prefill(&mut streams[i], &prompt[done..done + n], Logits::None).expect("a batch");
                    done += n;
                }
            }
            // Stream 1 pauses now and then; the others do not wait for it.
            let mut at = [0usize; 3];
            for round in 0..80 {
                let takes: Vec<usize> = (0..3).filter(|&i| at[i] < 60 && (i != 1 || round % 3 != 0)).collect();
                if takes.is_empty() {
                    continue;
                }
                let tokens: Vec<u32> = takes.iter().map(|&i| token(i, 100 + at[i], n_vocab)).collect();
                let lanes = streams.iter_mut().enumerate().filter(|(i, _)| takes.contains(i)).map(|(_, stream)| stream);
                let logits = engine.step_all(lanes.zip(&tokens)).expect("a pass");
                for (&i, logits) in takes.iter().zip(logits.chunks_exact(n_vocab)) {
                    assert_eq!(bits(logits), alone[i][at[i]], "{}: {policy:?}, stream {i}, step {}", path.display(), at[i]);
                    at[i] += 1;
                }
            }
            assert!(streams[0].cache().n_evicted() > 0 && at[0] == 60, "{}", path.display());
        }
    });
}

/// Back to a place in the middle and on with other tokens: as a stream that never went elsewhere, as long as nothing is evicted; what may
/// not be taken back says why.
#[test]
fn a_stream_that_is_taken_back_is_as_if_it_had_never_gone_on() {
    for_families("back", |path| {
        for (k_type, v_type) in [(KvType::F16, KvType::F16), (KvType::Q6H, KvType::Q4H)] {
            let mut params = params(0);
            (params.kv.policy, params.kv.rare) = (Policy::L2Attn, Some(Share(0.3)));
            let is_turned = k_type == KvType::Q6H;
            if is_turned && !path.ends_with("tiny-mqa.gguf") {
                continue;
            }
            (params.k_type, params.v_type) = (Some(k_type), Some(v_type));
            params.kv.budget_bytes = budget_for(path, 200, &params);
            params.n_log = 200;
            let (mut engine, mut streams) = engine(path, &params);
            let (n_vocab, n_ctx) = (engine.model().config.n_vocab, engine.model().config.n_ctx);
            let n_all = 90.min(n_ctx - 8);
            let mut put = |stream: &mut Stream, tokens: &[u32]| {
                let (mut done, mut last) = (0, Vec::new());
                while done < tokens.len() {
                    let n = engine.together(stream, tokens.len() - done);
                    last = bits(engine.prefill(stream, &tokens[done..done + n], Logits::Last).expect("a batch"));
                    done += n;
                }
                last
            };
            let first: Vec<u32> = (0..n_all).map(|t| token(0, t, n_vocab)).collect();
            let stream = &mut streams[0];
            put(stream, &first);
            let keep = n_all - 10;
            match stream.cannot_rewind(keep as u64) {
                Some(why) => {
                    let window = engine.model().config.window.is_some_and(|w| w.n_tok < n_all);
                    let is_recurrent = engine.model().config.recurrent.is_some();
                    assert!(window || is_recurrent || is_turned && keep < 64, "{}: {why}", path.display());
                }
                None => {
                    stream.keep(keep);
                    assert_eq!((stream.n_past(), stream.cache().n_live()), (keep as u64, keep));
                    let on: Vec<u32> = (0..6).map(|t| token(5, t, n_vocab)).collect();
                    let again = put(stream, &on);
                    stream.clear();
                    let fresh = put(stream, &[&first[..keep], &on].concat());
                    assert_eq!(again, fresh, "{}: {k_type:?}", path.display());
                }
            }
            if is_turned {
                assert!(streams[0].cannot_rewind(10).is_some(), "rounding was learned from later tokens");
            }
        }
    });
}

/// What is pinned stays, whatever comes; a stream that begins anew has nothing pinned.
#[test]
fn a_pinned_beginning_is_never_evicted() {
    let path = data("tiny-mqa.gguf");
    let mut params = params(0);
    params.kv.policy = Policy::L2Attn;
    params.kv.budget_bytes = budget_for(&path, 40, &params);
    let (mut engine, mut streams) = engine(&path, &params);
    let stream = &mut streams[0];
    assert!(!stream.pin(39), "beside the recent ones there is no room");
    assert!(stream.pin(15));
    for t in 0..90 {
        engine.prefill(stream, &[token(1, t, 32)], Logits::Last).expect("a token");
    }
    let shape = *stream.cache().shape();
    for (layer, head) in shape.all_heads() {
        let kept = stream.cache().kept(layer, head);
        assert!((0..15).all(|pos| kept.contains(&pos)), "{kept:?}");
    }
    assert!(stream.cannot_rewind(20).is_some(), "tokens have been evicted");
    stream.clear();
    assert_eq!(stream.cache().n_pinned(), 4);
}
