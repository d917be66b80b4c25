//! A session and the file of its past. A stream that is restored goes on with the same bits; of a file that a later run wrote on in,
//! that a cut of the power tore, or that was damaged, just those tiles are missing that are not as the session left them, and
//! they are counted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lowkey::kv::past::PastShape;
use lowkey::kv::past::disk::Disk;
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
