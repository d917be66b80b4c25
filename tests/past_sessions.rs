//! A session and the file of its past. A stream that is restored goes on with the same bits; of a file that a later run wrote on in,
//! that a cut of the power tore, or that was damaged, just those tiles are missing that are not as the session left them, and
//! they are counted. Where sessions have files of their own, many streams go on from one, and none sees what another writes.

#[path = "past_sessions/saves.rs"]
mod saves;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lowkey::kv::past::PastShape;
use lowkey::kv::past::disk::{Disk, PastFile, Pasts, Pulse};
use lowkey::kv::past::shape::TILE;
use lowkey::kv::store::KvScratch;
use lowkey::kv::{KvType, Past, PastParams, Policy, Recent};
use lowkey::mem::arena::Arena;
use lowkey::session::{Session, SessionParams, StreamState};
use lowkey::session_file::name::Short;
use lowkey::session_file::{Fingerprint, Limits, Name, Restored, Resumed, Saved, Shelf, Why};
use lowkey_test_kit::sessions::{Log, restore, save};
use lowkey_test_kit::test_disk::TestDisk;
use lowkey_test_kit::tiny::{Tiny, Unturned};
use lowkey_test_kit::{budget_for, data};

fn shelf(disk: &TestDisk) -> Shelf<&TestDisk> {
    Shelf::on(disk, Limits::of(1 << 30), 4096).expect("a shelf")
}

/// A folder of this test's own, gone at its end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("lowkey-past-sessions-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Temp(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("s.past")
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A stream of a tiny model, 40 entries of it in the arena, with its past in the folder.
fn session(model: &str, folder: &Path, change: impl FnOnce(&mut SessionParams)) -> Session {
    let (path, mut params) = (data(model), lowkey_test_kit::params(0));
    (params.n_batch, params.n_log, params.kv.policy) = (16, 4096, Policy::L2Attn);
    params.kv.recent = Some(Recent::Tokens(16));
    (params.k_type, params.v_type) = (Some(KvType::Q5H), Some(KvType::Q4H));
    params.past = Some(PastParams { folder: folder.into(), name: Some("s.past".into()), space_bytes: 1 << 20, n_recall: 4 });
    change(&mut params);
    params.kv.budget_bytes = budget_for(&path, 40, &params);
    lowkey_test_kit::session(&path, &params)
}

fn feed(session: &mut Session, piece: &[u32]) -> Vec<u32> {
    let logits = session.prefill(piece, |_| true).expect("prefill").expect("nobody stopped it");
    logits.iter().map(|x| x.to_bits()).collect()
}

fn pieces(seed: u64, n: usize) -> Vec<Vec<u32>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n)
        .map(|_| {
            let len = if rng.bool() { 1 } else { rng.usize(1..60) };
            (0..len).map(|_| rng.u32(..200)).collect()
        })
        .collect()
}

#[test]
fn a_restored_stream_goes_on_with_the_same_bits() {
    let n_pieces = if lowkey_test_kit::emulated().is_some() { 16 } else { 40 };
    for (model, k_type) in [("tiny-gqa.gguf", KvType::Q5H), ("tiny-gqa-f32.gguf", KvType::F16), ("tiny-mqa.gguf", KvType::Q8_0)] {
        let (temp, disk, mut log) = (Temp::new(&format!("bits-{model}")), TestDisk::default(), Log::with_room(10));
        let make =
            |n_threads| session(model, &temp.0, |params| (params.k_type, params.n_threads) = (Some(k_type), Some(n_threads)));
        let (mut shelf, mut one) = (shelf(&disk), make(1));
        let mut logits = Vec::new();
        for (i, piece) in pieces(5, n_pieces).iter().enumerate() {
            save(&mut one, &log, &mut shelf, &i.to_string()).expect("it is saved");
            logits.push(feed(&mut one, piece));
        }
        let counts = one.cache().past().expect("a past").counts();
        assert!(counts.n_pieces > 10 * n_pieces as u64 && counts.n_lost + counts.n_unread == 0, "{model}: {counts:?}");
        assert!(one.cache().n_renumbered() > 0 || n_pieces < 40, "{model}: {} tokens", one.n_past());
        drop(one);
        for start in (0..n_pieces).step_by(3) {
            let mut other = make(2);
            // What was there before is forgotten, in memory and in the file.
            feed(&mut other, &[7; 20]);
            let resumed = restore(&mut other, &mut log, &mut shelf, &start.to_string()).expect("it is restored");
            assert_eq!(resumed.n_past as usize, pieces(5, n_pieces)[..start].concat().len());
            for (i, piece) in pieces(5, n_pieces).iter().enumerate().skip(start) {
                assert!(feed(&mut other, piece) == logits[i], "{model}: restored before piece {start}, other logits at {i}");
            }
            assert_eq!(other.cache().past().expect("a past").counts().n_lost, 0);
        }
    }
}

#[test]
fn a_file_is_one_process_s_and_must_be_the_session_s() {
    let (temp, disk, mut log) = (Temp::new("one"), TestDisk::default(), Log::with_room(10));
    let (mut shelf, mut one) = (shelf(&disk), session("tiny-gqa.gguf", &temp.0, |_| ()));
    feed(&mut one, &[3; 200]);
    save(&mut one, &log, &mut shelf, "s").expect("it is saved");
    let (path, mut params) = (data("tiny-gqa.gguf"), lowkey_test_kit::params(1 << 20));
    params.past = Some(PastParams { folder: temp.0.clone(), name: Some("s.past".into()), space_bytes: 2 << 20, n_recall: 4 });
    let model = lowkey_test_kit::model(&path);
    let layout = params.layout(&model).expect("a layout");
    let error = Session::new(model, &layout).err().expect("it is taken").to_string();
    assert!(error.contains("another process has s.past"), "{error}");
    drop(one);
    let space = |params: &mut SessionParams| params.past.as_mut().expect("a past").space_bytes = 600 << 10;
    let recall = |params: &mut SessionParams| params.past.as_mut().expect("a past").n_recall = 5;
    let changes: [&dyn Fn(&mut SessionParams); 3] = [&space, &recall, &|params| params.past = None];
    for change in changes {
        let mut other = session("tiny-gqa.gguf", &temp.0, change);
        let failure = restore(&mut other, &mut log, &mut shelf, "s").expect_err("another past");
        let text = failure.to_string();
        assert!(matches!(failure.why, Why::Other(_)) && text.contains("a past of ") && text.contains("recall 4"), "{text}");
    }
    let mut other = session("tiny-gqa.gguf", &temp.0, |_| ());
    restore(&mut other, &mut log, &mut shelf, "s").expect("nothing was lost by those");
    assert_eq!(other.cache().past().expect("a past").counts().n_lost, 0);
    drop(other);
    // Another file of this name, or none that is longer than nothing.
    std::fs::write(temp.file(), [1; 100]).expect("a file");
    let mut other = session("tiny-gqa.gguf", &temp.0, |_| ());
    restore(&mut other, &mut log, &mut shelf, "s").expect("the rest goes on");
    assert_eq!(other.cache().past().expect("a past").counts().n_lost as usize, 200 / TILE);
    feed(&mut other, &[4; 100]);
}

/// A card that has what was synced for certain, and of what was written since any part.
#[derive(Default)]
struct Card {
    now: Vec<u8>,
    synced: Vec<u8>,
    writes: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Default)]
struct Played(Arc<Mutex<Card>>);

fn put(all: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    all.resize(all.len().max(at + bytes.len()), 0);
    all[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Disk for Played {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut card = self.0.lock().expect("one at a time");
        put(&mut card.now, at as usize, bytes);
        card.writes.push((at as usize, bytes.to_vec()));
        Ok(())
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let card = self.0.lock().expect("one at a time");
        let from = card.now.get(at as usize..at as usize + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut card = self.0.lock().expect("one at a time");
        (card.synced, card.writes) = (card.now.clone(), Vec::new());
        Ok(())
    }
}

impl Played {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("one at a time").now.clone()
    }

    /// What a cut of the power now may leave: of each write since the latest sync all, nothing, or some sectors.
    fn after_cut(&self, rng: &mut fastrand::Rng) -> Played {
        let card = self.0.lock().expect("one at a time");
        let mut left = card.synced.clone();
        for (at, bytes) in &card.writes {
            match rng.u32(..3) {
                0 => {}
                1 => put(&mut left, *at, bytes),
                _ => {
                    bytes.chunks(512).enumerate().filter(|_| rng.bool()).for_each(|(i, part)| put(&mut left, at + i * 512, part))
                }
            }
        }
        Played::of(left)
    }

    fn of(now: Vec<u8>) -> Played {
        Played(Arc::new(Mutex::new(Card { now, ..Card::default() })))
    }
}

/// A tiny cache with a kept past on a card.
struct Stream {
    tiny: Tiny,
    scratch: KvScratch,
    rng: fastrand::Rng,
}

const N_SLOT: usize = 40;
const N_TILE: usize = 4;

impl Stream {
    fn on(card: &Played) -> Stream {
        let mut tiny = Tiny::with(N_SLOT, |shape, params| {
            (shape.n_layer, shape.each.n_head_kv, shape.each.head_dim, shape.n_ctx) = (2, 2, 8, 4096);
            (shape.keeps.token, params.policy, params.recent) = (true, Policy::L2, Some(Recent::Tokens(4)));
        });
        let kv = *tiny.cache.shape();
        let shape = PastShape { kv, n_q: 1, soft_cap: 0.0, n_threads: 1, n_recall: 8, n_tile: N_TILE };
        tiny.cache.attach(Past::on(shape, Box::new(card.clone()), &Unturned).expect("memory").kept());
        let scratch = Arena::fill(|arena| KvScratch::carve(arena, tiny.cache.n_slot(), 8)).expect("memory");
        Stream { tiny, scratch, rng: fastrand::Rng::with_seed(1) }
    }

    /// One whose sessions have pasts of their own on a disk.
    fn keeping(disk: &TestDisk) -> Stream {
        let mut stream = Stream::on(&Played::default());
        stream.tiny.cache.keep_past_in(Arc::new(disk.clone()));
        stream
    }

    fn shape(&self) -> PastShape {
        *self.past().shape()
    }

    fn past(&self) -> &Past {
        self.tiny.cache.past().expect("a past")
    }

    fn feed(&mut self, n_tokens: usize) {
        for _ in 0..n_tokens {
            let rows = [(); 2].map(|()| [(); 3].map(|()| (0..16).map(|_| self.rng.f32() * 4.0 - 2.0).collect::<Vec<f32>>()));
            assert!(self.tiny.feed(1, |layer| rows[layer.0].clone(), |_, _| ()));
        }
    }

    fn state(&mut self) -> (StreamState<'_>, &mut KvScratch) {
        let state = StreamState {
            cache: &mut self.tiny.cache,
            recurrent: &mut [],
            first_tokens: &mut [],
            n_first: 0,
            log_hash: 1,
            is_exact: true,
        };
        (state, &mut self.scratch)
    }

    fn fingerprint(&self) -> Fingerprint {
        let settings = Short::of(&self.tiny.cache.settings());
        Fingerprint { model: 1, template: 2, settings, model_name: Short::of("tiny") }
    }

    fn save(&mut self, shelf: &mut Shelf<&TestDisk>) -> Result<u64, Why> {
        let fingerprint = self.fingerprint();
        let saved = Saved { stream: self.state().0, text: &[], logits: &[], generator: 7 };
        shelf.save(&Name::new("s").expect("a name"), &fingerprint, saved).map_err(|failure| failure.why)
    }

    fn restore(&mut self, shelf: &mut Shelf<&TestDisk>) -> Result<Resumed, Why> {
        let fingerprint = self.fingerprint();
        let (stream, scratch) = self.state();
        let restored = Restored { stream, text: None, logits: &mut [], scratch };
        shelf.restore(&Name::new("s").expect("a name"), &fingerprint, restored).map_err(|failure| failure.why)
    }
}

impl Stream {
    /// Saves it by itself as what has read this text, in place of what has read that.
    fn save_text(&mut self, before: Option<&[u8]>, text: &[u8], shelf: &mut Shelf<&TestDisk>) -> Result<u64, Why> {
        let (fingerprint, before) = (self.fingerprint(), before.map(Name::of_text));
        let saved = Saved { stream: self.state().0, text, logits: &[], generator: 7 };
        shelf.save_text(before.as_ref(), &fingerprint, saved).map_err(|failure| failure.why)
    }

    fn restore_text(&mut self, text: &[u8], shelf: &mut Shelf<&TestDisk>) -> Result<Resumed, Why> {
        let fingerprint = self.fingerprint();
        let (stream, scratch) = self.state();
        let restored = Restored { stream, text: None, logits: &mut [], scratch };
        shelf.restore_text(text, &fingerprint, restored).map_err(|failure| failure.why)
    }

    fn n_lost(&self) -> usize {
        self.past().counts().n_lost as usize
    }
}

/// The bytes of a tile's place.
fn of_slot(shape: &PastShape, slot: usize, bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut take = |at: u64, n: usize| all.extend((at as usize..at as usize + n).map(|i| bytes.get(i).copied()));
    for layer in 0..shape.n_layer() {
        take(shape.rows_at(layer, slot), shape.layer_bytes());
        (0..shape.kv.each.n_head_kv).for_each(|h| take(shape.index_at(layer, h, slot), shape.index_tile_bytes()));
    }
    all.into_iter().map(|byte| byte.unwrap_or(0xaa)).collect()
}

/// At every token of a stream that is saved twice, and goes round its ring meanwhile.
#[test]
fn after_a_cut_of_the_power_every_tile_is_the_session_s_or_counted_as_lost() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (disk, card) = (TestDisk::default(), Played::default());
    let (mut shelf, mut stream) = (shelf(&disk), Stream::on(&card));
    let (mut n_whole, mut n_torn, mut saved) = (0, 0, (0, Vec::new()));
    for n in 0..N_TILE * TILE * 2 {
        if [90, N_TILE * TILE + 50].contains(&n) {
            stream.save(&mut shelf).expect("it is saved");
            assert!(card.0.lock().expect("one").writes.is_empty(), "the past is on the disk before the session");
            saved = (n, card.bytes());
        }
        for _ in 0..3 {
            let left = card.after_cut(&mut rng);
            let mut other = Stream::on(&left);
            if saved.0 == 0 {
                assert!(matches!(other.restore(&mut shelf), Err(Why::Missing)));
                continue;
            }
            let resumed = other.restore(&mut shelf).expect("the session is whole");
            assert_eq!(resumed.n_past as usize, saved.0);
            let (shape, now) = (other.shape(), left.bytes());
            let is_lost = |slot: &usize| of_slot(&shape, *slot, &now) != of_slot(&shape, *slot, &saved.1);
            let n_lost = (0..N_TILE.min(saved.0 / TILE)).filter(is_lost).count();
            assert_eq!(other.past().counts().n_lost as usize, n_lost, "token {n}, saved after {}", saved.0);
            (n_whole, n_torn) = (n_whole + usize::from(n_lost == 0), n_torn + usize::from(n_lost > 0));
            // It goes on, over what is there and what is not.
            other.feed(40);
            assert_eq!(other.past().counts().n_unread, 0);
        }
        stream.feed(1);
    }
    assert!(n_whole > 50 && n_torn > 50, "{n_whole} whole, {n_torn} torn");
}

#[test]
fn every_byte_of_a_tile_that_is_changed_is_noticed_and_no_other() {
    let (disk, card) = (TestDisk::default(), Played::default());
    let (mut shelf, mut stream) = (shelf(&disk), Stream::on(&card));
    stream.feed(2 * TILE + 5);
    stream.save(&mut shelf).expect("it is saved");
    let (shape, bytes) = (stream.shape(), card.bytes());
    let mut n_noticed = 0;
    for at in 0..bytes.len() {
        // Of what pads a page some.
        if bytes[at] == 0 && at % 37 > 0 {
            continue;
        }
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let n_lost = (0..2).filter(|&slot| of_slot(&shape, slot, &changed) != of_slot(&shape, slot, &bytes)).count();
        let mut other = Stream::on(&Played::of(changed));
        other.restore(&mut shelf).expect("the session is whole");
        assert_eq!(other.past().counts().n_lost as usize, n_lost, "byte {at}");
        n_noticed += n_lost;
    }
    assert!(n_noticed > 2000, "{n_noticed}");
}

/// A disk that does not take the past: then there is no session that relies on it.
#[test]
fn a_session_is_not_saved_where_its_past_is_not_on_the_disk() {
    struct Broken(Played);
    impl Disk for Broken {
        fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
            self.0.write(bytes, at)
        }
        fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
            self.0.read(into, at)
        }
        fn sync(&self) -> io::Result<()> {
            Err(io::Error::other("the card is gone"))
        }
    }
    let (disk, mut stream) = (TestDisk::default(), Stream::on(&Played::default()));
    let past = Past::on(stream.shape(), Box::new(Broken(Played::default())), &Unturned).expect("memory").kept();
    stream.tiny.cache.attach(past);
    stream.feed(100);
    let why = stream.save(&mut shelf(&disk)).expect_err("the past is not on the disk");
    assert!(matches!(why, Why::Past(_)) && why.message().to_string().contains("the card is gone"), "{why:?}");
    assert!(disk.names().is_empty());
}

/// A shelf whose sessions have pasts.
fn deep_shelf(disk: &TestDisk) -> Shelf<&TestDisk> {
    shelf(disk).with_pasts(Arc::new(disk.clone()))
}

/// Into an empty folder, into free places of the ring, over its oldest tiles, and by another stream in place of the first one's.
#[test]
fn a_cut_of_the_power_leaves_the_old_session_or_the_new_one_and_what_is_lost_of_its_past_is_told() {
    for (n_first, n_more, is_other) in [(0, 90, false), (90, 50, false), (140, 60, false), (140, 100, true)] {
        let disk = TestDisk::default();
        let (mut shelf, mut stream) = (deep_shelf(&disk), Stream::keeping(&disk));
        if n_first > 0 {
            stream.feed(n_first);
            stream.save(&mut shelf).expect("it is saved");
        }
        disk.record();
        if is_other {
            stream = Stream::keeping(&disk);
            stream.rng = fastrand::Rng::with_seed(2);
        }
        stream.feed(n_more);
        stream.save(&mut shelf).expect("it is saved");
        let n_before = if is_other { 0 } else { n_first };
        let (n_all, n_new) = ((n_before + n_more) / TILE, (n_before + n_more) / TILE - n_before / TILE);
        assert_eq!(disk.n_placed(), n_new * stream.shape().tile_bytes(), "what is new, and no more");
        // The old one loses what the new one has in its places.
        let most = if is_other { N_TILE } else { n_all.saturating_sub(N_TILE) };
        let (mut n_old, mut n_torn) = (0, 0);
        for n in 0..=disk.n_recorded() {
            disk.after_cut(n, false, &mut |left| {
                let (mut shelf, mut other) = (deep_shelf(&left), Stream::keeping(&left));
                assert!(left.names().iter().all(|name| ["s.lks", "s.past"].contains(&&**name)), "{:?}", left.names());
                let resumed = match other.restore(&mut shelf) {
                    Err(Why::Missing) if n_first == 0 && n < disk.n_recorded() => return,
                    resumed => resumed.expect("the session is whole"),
                };
                if resumed.n_past as usize == n_before + n_more {
                    assert_eq!(other.n_lost(), 0, "after {n} operations");
                } else {
                    assert!(n < disk.n_recorded() && resumed.n_past as usize == n_first, "after {n} operations");
                    assert!(other.n_lost() <= most, "{} of {most}, after {n} operations", other.n_lost());
                    (n_old, n_torn) = (n_old + 1, n_torn + usize::from(other.n_lost() > 0));
                }
                other.feed(40);
                assert_eq!(other.past().counts().n_unread, 0);
            });
        }
        assert_eq!((n_old > 20, n_torn > 0), (n_first > 0, most > 0), "{n_old} old, {n_torn} of them with less");
    }
}

/// What was saved by itself goes on under another name, and the past with it: nothing is copied twice, and nothing is left behind.
#[test]
fn a_cut_of_the_power_leaves_a_conversation_without_a_name_with_all_of_its_past() {
    let (disk, texts) = (TestDisk::default(), [&b"a text"[..], b"a text and more"]);
    let (mut shelf, mut stream) = (deep_shelf(&disk), Stream::keeping(&disk));
    stream.feed(70);
    stream.save_text(None, texts[0], &mut shelf).expect("it is saved");
    disk.record();
    stream.feed(50);
    stream.save_text(Some(texts[0]), texts[1], &mut shelf).expect("it is saved");
    assert_eq!(disk.n_placed(), stream.shape().tile_bytes());
    for n in 0..=disk.n_recorded() {
        disk.after_cut(n, false, &mut |left| {
            let (mut shelf, mut other) = (deep_shelf(&left), Stream::keeping(&left));
            let names = left.names();
            let has_session = |past: &str| names.iter().any(|name| name.strip_suffix(".lks") == past.strip_suffix(".past"));
            assert!(names.iter().filter(|name| !name.ends_with(".lks")).all(|past| has_session(past)), "{names:?}");
            let n_tokens = match other.restore_text(texts[1], &mut shelf) {
                Ok(resumed) => (resumed.n_past, 120),
                Err(_) => (other.restore_text(texts[0], &mut shelf).expect("the one before").n_past, 70),
            };
            assert_eq!((n_tokens.0, other.n_lost()), (n_tokens.1, 0), "after {n} operations");
            // The next save is of this stream alone, whatever else has the same file.
            other.feed(80);
            other.save(&mut shelf).expect("it is saved");
            let mut third = Stream::keeping(&left);
            third.restore(&mut shelf).expect("it is restored");
            assert_eq!((third.n_lost(), third.past().counts().n_unread), (0, 0));
        });
    }
    assert_eq!(disk.names().len(), 2, "{:?}", disk.names());
}

#[test]
fn what_goes_for_the_space_takes_its_past_along_and_a_session_without_one_is_refused() {
    let disk = TestDisk::default();
    let mut stream = Stream::keeping(&disk);
    stream.feed(100);
    let n_bytes = stream.save_text(None, b"text 0", &mut deep_shelf(&disk)).expect("it is saved");
    assert!(n_bytes > 3 * stream.shape().tile_bytes() as u64, "its past is counted: {n_bytes}");
    let limits = Limits { free_percent: 0, ..Limits::of(3 * n_bytes + n_bytes / 2) };
    let mut shelf = Shelf::on(&disk, limits, 4096).expect("a shelf").with_pasts(Arc::new(disk.clone()));
    for i in 1..8 {
        stream.save_text(None, format!("text {i}").as_bytes(), &mut shelf).expect("it is saved");
        assert_eq!(disk.names().len(), 2 * (i + 1).min(3), "{:?}", disk.names());
        assert_eq!(shelf.used_bytes(), n_bytes * (i as u64 + 1).min(3));
    }
    // Without its past it is of no use to a stream that would have one, and that is told once; an empty file gives it up.
    let past = Name::of_text(b"text 7").past();
    Pasts::remove(&disk, past.as_str()).expect("it is there");
    let before = stream.past().counts();
    assert!(matches!(stream.restore_text(b"text 7", &mut shelf), Err(Why::Past(e)) if e.kind() == io::ErrorKind::NotFound));
    assert_eq!(stream.past().counts(), before);
    assert!(shelf.longest_of(b"text 7", 0, &stream.fingerprint()).is_none());
    disk.put(past.as_str(), Vec::new());
    stream.restore_text(b"text 7", &mut shelf).expect("the rest goes on");
    assert_eq!(stream.n_lost(), 3);
    shelf.remove(&Name::of_text(b"text 7")).expect("it goes");
    assert_eq!(disk.names().len(), 4);
}

/// A stream of a tiny model whose file goes with the process, and whose sessions have pasts of their own.
fn apart(temp: &Temp, shelf: &Shelf) -> Session {
    let change = |params: &mut SessionParams| {
        params.past = Some(PastParams { folder: temp.0.clone(), name: None, space_bytes: 192 << 10, n_recall: 4 });
    };
    let mut session = session("tiny-gqa.gguf", &temp.0, change);
    session.parts().1.keep_past_in(shelf.pasts().expect("pasts").clone());
    session
}

/// Three conversations that begin with what one stream has read, by turns in two streams: each goes on with the bits that it has in a
/// stream of its own, round the ring, and also where two streams go on from the same session at once.
#[test]
fn many_streams_go_on_from_one_session_and_none_sees_what_another_writes() {
    let is_emulated = lowkey_test_kit::emulated().is_some();
    let (temp, mut log, n_pieces) = (Temp::new("apart"), Log::with_room(10), if is_emulated { 8 } else { 30 });
    let limits = Limits { free_percent: 0, ..Limits::of(1 << 30) };
    let mut shelf = Shelf::open_with_pasts(&temp.0, limits, Pulse::default()).expect("a shelf");
    let (common, more) = (pieces(1, 8), pieces(99, 20));
    let own: Vec<_> = (0..3).map(|c| pieces(c + 10, n_pieces)).collect();
    let alone: Vec<Vec<Vec<u32>>> = own
        .iter()
        .map(|own| {
            let mut stream = apart(&temp, &shelf);
            common.iter().for_each(|piece| drop(feed(&mut stream, piece)));
            own.iter().chain(&more).map(|piece| feed(&mut stream, piece)).collect()
        })
        .collect();
    let mut streams = [apart(&temp, &shelf), apart(&temp, &shelf)];
    common.iter().for_each(|piece| drop(feed(&mut streams[0], piece)));
    save(&mut streams[0], &log, &mut shelf, "start").expect("it is saved");
    for i in 0..n_pieces {
        for c in 0..3 {
            let stream = &mut streams[(i + c) % 2];
            let name = if i == 0 { "start".into() } else { format!("c{c}") };
            restore(stream, &mut log, &mut shelf, &name).expect("it is restored");
            assert!(feed(stream, &own[c][i]) == alone[c][i], "conversation {c}: other logits at {i}");
            save(stream, &log, &mut shelf, &format!("c{c}")).expect("it is saved");
        }
    }
    let n_ring = streams[0].cache().past().expect("a past").shape().n_tok();
    let n_tokens = [&common, &own[0]].map(|pieces| pieces.concat().len());
    assert!(n_tokens[0] > 2 * TILE && (n_tokens[1] > n_ring || is_emulated), "{n_tokens:?}, {n_ring} in the ring");
    // The same conversation twice: one goes on and is saved in its place, and the other does not notice.
    let [one, other] = &mut streams;
    for stream in [&mut *one, other] {
        restore(stream, &mut log, &mut shelf, "c0").expect("it is restored");
    }
    for piece in &pieces(77, 20) {
        feed(one, piece);
        save(one, &log, &mut shelf, "c0").expect("it is saved");
    }
    for (i, piece) in more.iter().enumerate() {
        assert!(feed(other, piece) == alone[0][n_pieces + i], "other logits at {i} after it was saved over");
    }
    restore(other, &mut log, &mut shelf, "c0").expect("it is restored");
    let piece = &more[0];
    assert!(feed(other, piece) == feed(one, piece), "what was saved over it");
    for stream in [&*one, &*other] {
        let counts = stream.cache().past().expect("a past").counts();
        assert!(counts.n_lost + counts.n_unread == 0 && counts.n_pieces > 300, "{counts:?}");
    }
    // A file with another name is another session's too.
    let before = std::fs::read(temp.0.join("c2.past")).expect("a file");
    std::fs::hard_link(temp.0.join("c2.past"), temp.0.join("d.past")).expect("a link");
    restore(other, &mut log, &mut shelf, "c2").expect("it is restored");
    feed(other, &[9; 100]);
    save(other, &log, &mut shelf, "c2").expect("it is saved");
    assert!(std::fs::read(temp.0.join("d.past")).expect("a file") == before);
    // What a run has, a server does not touch, and the other way round.
    drop(streams);
    let mut stream = apart(&temp, &shelf);
    restore(&mut stream, &mut log, &mut shelf, "c1").expect("it is restored");
    let run = || PastFile::kept(&temp.0, "c1.past", 1);
    assert_eq!(run().expect_err("the stream reads it").kind(), io::ErrorKind::WouldBlock);
    stream.clear();
    let held = run().expect("nobody has it");
    assert!(matches!(restore(&mut stream, &mut log, &mut shelf, "c1").expect_err("a run has it").why, Why::Busy));
    feed(&mut stream, &[3; 100]);
    assert!(matches!(save(&mut stream, &log, &mut shelf, "c1").expect_err("a run has it").why, Why::Busy));
    drop(held);
    save(&mut stream, &log, &mut shelf, "c1").expect("nobody has it");
}
