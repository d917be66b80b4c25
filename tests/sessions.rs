//! A stream that was saved and restored goes on with the same bits as one that never stopped: for every policy, layers with a window,
//! convolutions, every way to store keys and values, on every kernel set. What it cannot go on in is refused with the reason,
//! and so are numbers that cannot be, their sums put right.

use std::path::{Path, PathBuf};

use lowkey::kernels::Kernels;
use lowkey::kv::policy::Rule;
use lowkey::kv::{KvType, PastParams, Policy, Recent, Share};
use lowkey::session::{Session, SessionParams};
use lowkey::session_file::format::{HEAD_BYTES, SUM_BYTES};
use lowkey::session_file::{Failure, Head, Limits, Shelf, Why};
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::sessions::{Log, restore, save};
use lowkey_test_kit::test_disk::TestDisk;
use lowkey_test_kit::{budget_for, data, golden, kernel_sets, params};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

const MODEL: &str = "tiny-gqa.gguf";
const ROOM: usize = 1 << 16;

fn session(path: &Path, n_slot: usize, change: impl FnOnce(&mut SessionParams)) -> Session {
    let mut params = params(0);
    (params.n_batch, params.n_log) = (16, 4096);
    params.kv.recent = Some(Recent::Tokens(6));
    change(&mut params);
    params.kv.budget_bytes = budget_for(path, n_slot, &params);
    lowkey_test_kit::session(path, &params)
}

fn shelf(disk: &TestDisk) -> Shelf<&TestDisk> {
    Shelf::on(disk, Limits::of(1 << 30), 4096).expect("a shelf")
}

/// Tokens in pieces, as prompts and answers bring them.
fn pieces(seed: u64, n: usize, n_vocab: usize) -> Vec<Vec<u32>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let piece = |rng: &mut fastrand::Rng| {
        let len = if rng.bool() { 1 } else { rng.usize(1..40) };
        (0..len).map(|_| rng.u32(..n_vocab as u32)).collect()
    };
    (0..n).map(|_| piece(&mut rng)).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}

fn feed(session: &mut Session, log: &mut Log, piece: &[u32]) -> Vec<u32> {
    log.tokens.extend(piece);
    log.text.extend(piece.iter().map(|&token| token as u8));
    match piece {
        [token] => bits(session.step(*token).expect("a step")),
        _ => bits(session.prefill(piece, |_| true).expect("prefill").expect("nobody stopped it")),
    }
}

/// Positions and scores of every head.
fn kept(session: &Session) -> Vec<(Vec<u32>, Vec<u32>)> {
    let (cache, shape) = (session.cache(), *session.cache().shape());
    let heads = shape.all_heads();
    let scores = |layer, head| if shape.is_ring(layer) { Vec::new() } else { bits(cache.scores(layer, head)) };
    heads.map(|(layer, head)| (cache.kept(layer, head).to_vec(), scores(layer, head))).collect()
}

/// Saves the stream after each piece, and goes on from every one of those in another stream, whose arena holds other things.
fn check_everywhere(what: &str, make: impl Fn() -> Session, n_pieces: usize) {
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut shelf) = (make(), shelf(&disk));
    let n_vocab = session.model().config.n_vocab;
    let pieces = pieces(n_pieces as u64, n_pieces, n_vocab);
    let mut logits = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        save(&mut session, &log, &mut shelf, &i.to_string()).expect("it is saved");
        logits.push(feed(&mut session, &mut log, piece));
    }
    let end = kept(&session);
    let (mut other, mut other_log) = (make(), Log::with_room(ROOM));
    for (start, foreign) in self::pieces(99, n_pieces, n_vocab).iter().enumerate() {
        feed(&mut other, &mut other_log, foreign);
        let resumed = restore(&mut other, &mut other_log, &mut shelf, &start.to_string()).expect("it is restored");
        let before: Vec<u32> = pieces[..start].concat();
        assert!(resumed.n_past == before.len() as u64 && other.n_past() == resumed.n_past && resumed.generator == 1234);
        assert!(other_log.tokens == before && other_log.text.len() == before.len(), "{what}: tokens and text");
        let (engine, _) = other.parts();
        assert!(
            resumed.has_logits == (start > 0) && (start == 0 || bits(engine.logits()) == logits[start - 1]),
            "{what}: logits"
        );
        for (i, piece) in pieces.iter().enumerate().skip(start) {
            let got = feed(&mut other, &mut other_log, piece);
            assert!(got == logits[i], "{what}: restored after {} tokens, other logits at piece {i}", before.len());
        }
        assert!(kept(&other) == end && other.n_past() == session.n_past(), "{what}: other entries after {} tokens", before.len());
        assert!(other_log == log);
    }
    assert!(session.n_past() > 2 * session.cache().n_slot() as u64, "{what}: entries were evicted");
}

#[test]
fn every_policy_goes_on_with_the_same_bits() {
    for policy in Policy::all() {
        let row = policy.row();
        let n_slot = if policy == Policy::Off { 256 } else { 24 };
        let variants = [(Some(0.3), Some(2), KvType::Q5H, KvType::Q4H), (None, None, KvType::F16, KvType::F16)];
        for (rare, pool, k_type, v_type) in variants {
            let make = || {
                session(&data(MODEL), n_slot, |s| {
                    (s.kv.policy, s.kv.rare, s.kv.pool) = (policy, rare.map(Share), pool);
                    (s.k_type, s.v_type) = (Some(k_type), Some(v_type));
                })
            };
            match policy {
                Policy::Off => check_until_full(&make),
                _ => check_everywhere(&format!("{} in {}", row.name, k_type.name()), make, 30),
            }
        }
    }
}

/// `off` ends where the arena is full; a restored stream ends at the same token.
fn check_until_full(make: &dyn Fn() -> Session) {
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut shelf, mut other, mut other_log) = (make(), shelf(&disk), make(), Log::with_room(ROOM));
    let prompt: Vec<u32> = (0..200).collect();
    feed(&mut session, &mut log, &prompt);
    save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    restore(&mut other, &mut other_log, &mut shelf, "s").expect("it is restored");
    for token in 0..60 {
        let [got, want] = [&mut other, &mut session].map(|s| s.step(token).map(bits).map_err(|e| e.to_string()));
        assert_eq!(got, want);
        assert_eq!(got.is_err(), token >= 56, "it holds 256 tokens");
    }
}

/// A model of tests/golden/families.json, with some of its numbers changed.
struct Family(PathBuf);

impl Family {
    fn new(name: &str, window: Option<u32>) -> Family {
        let golden = golden("families.json");
        let mut file = family_model(name, &golden["models"][name]);
        for (key, _, value) in &mut file.keys {
            if let Some(window) = window.filter(|_| key.ends_with("sliding_window")) {
                *value = window.to_le_bytes().to_vec();
            }
        }
        let path = std::env::temp_dir().join(format!("lowkey-sessions-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, file.build()).expect("a temporary file");
        Family(path)
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn windows_convolutions_and_soft_caps_go_on_with_the_same_bits() {
    for (name, window) in [
        ("gemma3-q8", None),
        ("gemma2-q8", Some(40)),
        ("phi3-window", Some(30)),
        ("lfm2-q8", None),
        ("qwen35-q8", None),
        ("granitehybrid-q8", None),
        ("falcon-h1-q8", None),
        ("gemma4-q8", None),
    ] {
        let family = Family::new(name, window);
        for (policy, k_type) in [(Policy::L2Attn, KvType::Q5H), (Policy::L2, KvType::Q8_0)] {
            let make = || session(&family.0, 24, |s| (s.kv.policy, s.k_type, s.v_type) = (policy, Some(k_type), Some(k_type)));
            check_everywhere(&format!("{name} with {}", policy.name()), make, 14);
        }
    }
}

#[test]
fn a_stream_whose_first_layers_were_left_whole_goes_on_with_the_same_bits() {
    let make = || {
        let mut s = session(&data(MODEL), 40, |s| s.kv.policy = Policy::L2);
        let mut log = Log::default();
        feed(&mut s, &mut log, &(0..40).collect::<Vec<_>>());
        s.compress(20, 1, Rule { n_reserved: 0, ..Rule::RING });
        s
    };
    let (disk, log, mut other_log) = (TestDisk::default(), Log::default(), Log::with_room(ROOM));
    let (mut session, mut shelf) = (make(), shelf(&disk));
    save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    let mut other = self::session(&data(MODEL), 40, |s| s.kv.policy = Policy::L2);
    restore(&mut other, &mut other_log, &mut shelf, "s").expect("it is restored");
    for token in 0..100 {
        assert_eq!(bits(other.step(token).expect("a step")), bits(session.step(token).expect("a step")), "token {token}");
    }
}

#[test]
fn what_is_pinned_stays_pinned_and_a_new_stream_has_nothing_pinned() {
    let make = || session(&data(MODEL), 24, |s| s.kv.policy = Policy::L2);
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut other, mut shelf) = (make(), make(), shelf(&disk));
    assert!(session.parts().1.pin(10));
    feed(&mut session, &mut log, &(0..30).collect::<Vec<_>>());
    save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    restore(&mut other, &mut log, &mut shelf, "s").expect("it is restored");
    assert_eq!(other.cache().n_pinned(), 10);
    feed(&mut other, &mut log, &(0..30).collect::<Vec<_>>());
    assert!(kept(&other).iter().all(|(positions, _)| (0..10).all(|pos| positions.contains(&pos))));
    other.clear();
    assert_eq!(other.cache().n_pinned(), 4);
}

#[test]
fn a_session_goes_on_on_every_kernel_set_with_any_threads_and_batch() {
    let with = |kernels: &str, n_threads: usize| {
        session(&data(MODEL), 24, |s| {
            (s.kv.policy, s.kernels, s.n_threads) = (Policy::L2, kernels.into(), Some(n_threads));
            (s.k_type, s.v_type) = (Some(KvType::Q5H), Some(KvType::Q4H));
        })
    };
    let pieces = pieces(5, 30, 280);
    let run = |session: &mut Session, log: &mut Log, pieces: &[Vec<u32>]| -> Vec<Vec<u32>> {
        pieces.iter().map(|piece| feed(session, log, piece)).collect()
    };
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut shelf) = (with("scalar", 1), shelf(&disk));
    run(&mut session, &mut log, &pieces[..12]);
    save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    let want = run(&mut session, &mut log, &pieces[12..]);
    for kernels in Kernels::available() {
        for n_threads in [1, 3] {
            let (mut other, mut log) = (with(kernels.name(), n_threads), Log::with_room(ROOM));
            restore(&mut other, &mut log, &mut shelf, "s").expect("it is restored");
            assert!(run(&mut other, &mut log, &pieces[12..]) == want, "{} with {n_threads} threads", kernels.name());
        }
    }
}

/// The session of another machine and another day: `a_kept_session_goes_on_with_the_same_bits` made it.
fn kept_session(session: &mut Session) -> Vec<u32> {
    let mut log = Log::with_room(ROOM);
    pieces(77, 14, 280).iter().fold(Vec::new(), |_, piece| feed(session, &mut log, piece))
}

/// Where this fails, the arithmetic has changed: raise `ARITHMETIC`, so that sessions of before are refused, and make the file
/// anew with LOWKEY_KEEP_SESSION=1.
#[test]
fn a_kept_session_goes_on_with_the_same_bits() {
    let path = data("kept.lks");
    for kernels in kernel_sets() {
        let make = || {
            session(&data(MODEL), 24, |s| {
                (s.kv.policy, s.kernels) = (Policy::L2Attn, kernels.name().into());
                (s.k_type, s.v_type) = (Some(KvType::Q5H), Some(KvType::Q4H));
            })
        };
        let (disk, mut log, mut session) = (TestDisk::default(), Log::with_room(ROOM), make());
        let mut shelf = shelf(&disk);
        if std::env::var_os("LOWKEY_KEEP_SESSION").is_some() {
            // Before its last piece, with the logits after it as its text.
            let all = pieces(77, 14, 280);
            all[..13].iter().for_each(|piece| drop(feed(&mut session, &mut log, piece)));
            let text = kept_session(&mut make()).iter().flat_map(|bits| bits.to_le_bytes()).collect();
            save(&mut session, &Log { text, ..log.clone() }, &mut shelf, "kept").expect("it is saved");
            std::fs::write(&path, disk.bytes("kept.lks")).expect("the kept session");
        }
        disk.put("kept.lks", std::fs::read(&path).expect("tests/data/kept.lks"));
        restore(&mut session, &mut log, &mut shelf, "kept").expect("it is restored");
        let want: Vec<u32> = log.text.as_chunks().0.iter().map(|&bits| u32::from_le_bytes(bits)).collect();
        let got = feed(&mut session, &mut log, &pieces(77, 14, 280)[13]);
        assert!(got == want && !want.is_empty(), "{}", kernels.name());
    }
}

fn refusal(failure: Failure) -> (Why, String) {
    let text = failure.to_string();
    assert!(!text.contains('\n'), "{text}");
    (failure.why, text)
}

#[test]
fn what_a_session_is_not_of_is_refused_with_the_reason_and_touches_nothing() {
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut shelf) = (session(&data(MODEL), 24, |_| ()), shelf(&disk));
    feed(&mut session, &mut log, &(0..30).collect::<Vec<_>>());
    save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    let others: [(&str, Session); 7] = [
        ("another model", self::session(&data("tiny-mha.gguf"), 24, |_| ())),
        ("24 slots", self::session(&data(MODEL), 25, |_| ())),
        ("h2o", self::session(&data(MODEL), 24, |s| s.kv.policy = Policy::H2o)),
        ("q8_0", self::session(&data(MODEL), 24, |s| s.k_type = Some(KvType::Q8_0))),
        ("5 sinks", self::session(&data(MODEL), 24, |s| s.kv.sinks = 5)),
        ("7 recent", self::session(&data(MODEL), 24, |s| s.kv.recent = Some(Recent::Tokens(7)))),
        ("pool 3", self::session(&data(MODEL), 24, |s| s.kv.pool = Some(3))),
    ];
    for (reason, mut other) in others {
        let mut other_log = Log::with_room(ROOM);
        feed(&mut other, &mut other_log, &[1, 2, 3]);
        let before = kept(&other);
        let failure = restore(&mut other, &mut other_log, &mut shelf, "s").expect_err(reason);
        assert!(!failure.was_cleared && kept(&other) == before, "{reason}: the stream is as it was");
        let (why, text) = refusal(failure);
        assert!(matches!(why, Why::Other(_)) && text.contains(reason), "{reason}: {text}");
    }
    let mut small = Log::with_room(29);
    let (why, text) = refusal(restore(&mut session, &mut small, &mut shelf, "s").expect_err("no room"));
    assert!(matches!(why, Why::NoRoom { text_bytes: 30, room: 29 }), "{text}");
    let (why, _) = refusal(restore(&mut session, &mut log, &mut shelf, "t").expect_err("none"));
    assert!(matches!(why, Why::Missing));
    disk.put("t.lks", vec![7; 5000]);
    let (why, _) = refusal(restore(&mut session, &mut log, &mut shelf, "t").expect_err("no session"));
    assert!(matches!(why, Why::Foreign));
}

/// The file with its sums put right after it was changed.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = xxh3_128(&bytes[..HEAD_BYTES - 16]);
    bytes[HEAD_BYTES - 16..HEAD_BYTES].copy_from_slice(&hash.to_le_bytes());
    let lengths: Vec<usize> =
        bytes[16..56].chunks(8).map(|n| u64::from_le_bytes(n.try_into().expect("eight")) as usize).collect();
    let mut at = HEAD_BYTES;
    for len in lengths {
        let Some(region) = bytes.get(at..at.saturating_add(len)) else { break };
        let sum = xxh3_64_with_seed(region, hash as u64);
        at += len;
        match bytes.get_mut(at..at + SUM_BYTES) {
            Some(place) => place.copy_from_slice(&sum.to_le_bytes()),
            None => break,
        }
        at += SUM_BYTES;
    }
    bytes
}

/// Whatever stands in a file whose sums are right: it is refused, or the stream goes on, or ends with an error; nothing panics
/// and nothing hangs.
#[test]
fn numbers_that_cannot_be_are_refused_or_harmless() {
    let mut rng = fastrand::Rng::with_seed(9);
    let n_tries = if lowkey_test_kit::emulated().is_some() { 20 } else { 300 };
    let all =
        [Policy::L2Attn, Policy::L2, Policy::LagKv, Policy::KeyDiff, Policy::H2o, Policy::Off].map(|policy| (policy, false));
    let (folder, file) = (std::env::temp_dir(), format!("lowkey-sessions-{}.past", std::process::id()));
    for (policy, has_past) in all.into_iter().chain([(Policy::L2Attn, true)]) {
        let n_slot = if policy == Policy::LagKv { 80 } else { 24 };
        let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
        let mut session = session(&data(MODEL), n_slot, |s| {
            (s.kv.policy, s.kv.rare, s.kv.pool) = (policy, Some(Share(0.3)), Some(2));
            (s.k_type, s.v_type) = (Some(KvType::Q5H), Some(KvType::Q4H));
            let (folder, name) = (folder.clone(), Some(file.clone()));
            s.past = has_past.then_some(PastParams { folder, name, space_bytes: 300 << 10, n_recall: 4 });
        });
        let mut shelf = shelf(&disk);
        let n_past = if policy == Policy::Off { 20 } else { 90 };
        feed(&mut session, &mut log, &(0..n_past).collect::<Vec<_>>());
        save(&mut session, &log, &mut shelf, "s").expect("it is saved");
        let whole = disk.bytes("s.lks");
        assert_eq!(summed(whole.clone()), whole, "the sums are put as they are");
        let (mut n_refused, mut n_went_on) = (0, 0);
        for i in 0..n_tries {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..4) {
                // Every other time among the lengths and counts of the head.
                let words = if i % 2 == 0 { 2..25 } else { HEAD_BYTES / 8..bytes.len() / 8 };
                let at = 8 * rng.usize(words);
                let word = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
                let choice =
                    [0, u64::MAX, word.wrapping_add(1), word.wrapping_sub(1), rng.u64(..), rng.u64(..300), 0x7fc0_0000_7f80_0000];
                bytes[at..at + 8].copy_from_slice(&rng.choice(choice).expect("one").to_le_bytes());
            }
            disk.put("s.lks", summed(bytes));
            match restore(&mut session, &mut log, &mut shelf, "s") {
                Ok(_) => {
                    n_went_on += 1;
                    let token = |i: usize| log.tokens.get(i).copied().unwrap_or(i as u32);
                    let more: Vec<u32> = (0..40).map(token).collect();
                    let _ = session.prefill(&more, |_| true).map(drop).and_then(|()| session.step(1).map(drop));
                }
                Err(failure) => {
                    n_refused += 1;
                    assert!(!failure.was_cleared || session.cache().n_live() == 0, "{failure}");
                }
            }
        }
        assert!(
            n_refused > n_tries / 5 && n_went_on > n_tries / 20,
            "{}: {n_refused} refused, {n_went_on} went on",
            policy.name()
        );
    }
    let _ = std::fs::remove_file(folder.join(file));
}

/// What of a prompt a restored stream need not read, where fewer of its tokens are kept than there were, or more.
#[test]
fn prompts_are_compared_with_a_restored_stream_as_with_the_one_that_was_saved() {
    let make = |n_log: usize| session(&data(MODEL), 24, |s| s.n_log = n_log);
    let tokens: Vec<u32> = (0..60).collect();
    for (n_saved, n_restored) in [(100, 100), (10, 100), (100, 10), (10, 5), (0, 100), (60, 60)] {
        let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
        let (mut saved, mut restored, mut shelf) = (make(n_saved), make(n_restored), shelf(&disk));
        feed(&mut saved, &mut log, &tokens);
        save(&mut saved, &log, &mut shelf, "s").expect("it is saved");
        restore(&mut restored, &mut log, &mut shelf, "s").expect("it is restored");
        let n_first = n_saved.min(n_restored).min(60);
        let (_, stream) = restored.parts();
        assert_eq!(stream.first_tokens(), &tokens[..n_first]);
        let mut prompt = tokens.clone();
        prompt.push(7);
        assert_eq!(stream.prefix(&prompt).n_cached, 60, "{n_saved} kept, {n_restored} restored");
        prompt[59] = 0;
        assert_eq!(stream.prefix(&prompt).n_cached, 0);
        feed(&mut restored, &mut log, &[1, 2, 3]);
        let more = [&tokens[..], &[1, 2, 3, 4]].concat();
        assert_eq!(restored.parts().1.prefix(&more).n_cached, 63);
    }
}

#[test]
fn a_text_that_is_used_again_is_worth_saving_and_found_by_its_bytes() {
    let (disk, mut log) = (TestDisk::default(), Log::with_room(ROOM));
    let (mut session, mut shelf) = (session(&data(MODEL), 24, |_| ()), shelf(&disk));
    let fingerprint = lowkey_test_kit::sessions::fingerprint(&session);
    feed(&mut session, &mut log, &(0..30).collect::<Vec<_>>());
    let text = log.text.clone();
    assert!(!shelf.is_worth_saving(&text, &fingerprint) && shelf.is_worth_saving(&text, &fingerprint));
    let name = lowkey::session_file::Name::of_text(&text);
    save(&mut session, &log, &mut shelf, name.as_str()).expect("it is saved");
    assert!(!shelf.is_worth_saving(&text, &fingerprint) && shelf.has(&name, &fingerprint));
    let head: Head = shelf.head(&name).expect("a head");
    assert_eq!((head.n_tokens(), head.lengths.text), (30, 30));
    // Under the name of a text whose hash is the same there may be another text.
    disk.put(lowkey::session_file::Name::of_text(b"other").file().as_str(), disk.bytes(name.file().as_str()));
    for (text, is_found) in [(&text[..], true), (b"other", false), (b"none", false)] {
        let (engine, stream) = session.parts();
        assert_eq!(shelf.restore_text_stream(text, &fingerprint, engine, stream).is_ok(), is_found);
    }
}
