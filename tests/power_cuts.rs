//! Saving on a disk whose power fails after any operation, that is full at any of them, or that lies about having written: there is the
//! old session, or the new one, or none that can be read. Never a wrong one.

use lowkey::kv::store::KvScratch;
use lowkey::kv::store::saved::Counts;
use lowkey::kv::{KvCache, KvType, Policy, Recent};
use lowkey::mem::arena::Arena;
use lowkey::session::StreamState;
use lowkey::session_file::name::Short;
use lowkey::session_file::{Fingerprint, Limits, Name, Restored, Saved, Shelf, Why};
use lowkey_test_kit::test_disk::TestDisk;
use lowkey_test_kit::tiny::Tiny;

const N_SLOT: usize = 30;
const N_VOCAB: usize = 200;
const BUFFER: usize = 1000;
const LOG_HASH: u128 = 1 << 100;

/// Everything that a session holds.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    tokens: Vec<u32>,
    text: Vec<u8>,
    logits: Vec<f32>,
    counts: Counts,
    cache: Vec<u8>,
    convs: Vec<f32>,
}

struct Stream {
    tiny: Tiny,
    scratch: KvScratch,
    content: Content,
}

fn cache_bytes(cache: &mut KvCache) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut see = |part: &mut [u8]| -> Result<(), ()> {
        bytes.extend_from_slice(part);
        Ok(())
    };
    cache.visit_marks(&mut see).and_then(|()| cache.visit_rows(&mut see)).expect("nothing fails");
    bytes
}

impl Stream {
    fn new() -> Stream {
        let tiny = Tiny::with(N_SLOT, |shape, params| {
            (shape.n_layer, shape.each.n_head_kv, shape.each.head_dim, shape.n_ctx) = (2, 2, 32, 256);
            (shape.k_type, shape.v_type) = (KvType::Q5H, KvType::Q4H);
            (params.policy, params.sinks, params.recent) = (Policy::L2Attn, 2, Some(Recent::Tokens(4)));
        });
        let shape = *tiny.cache.shape();
        let scratch = Arena::fill(|arena| KvScratch::carve(arena, tiny.cache.n_slot(), shape.each.head_dim)).expect("memory");
        let (tokens, text) = (Vec::new(), Vec::new());
        let counts = tiny.cache.counts();
        let content = Content { tokens, text, logits: vec![0.0; N_VOCAB], counts, cache: Vec::new(), convs: vec![0.0; 100] };
        Stream { tiny, scratch, content }
    }

    /// One that has taken in tokens made of `seed`.
    fn after(seed: u64, n_tokens: usize) -> Stream {
        let (mut stream, mut rng) = (Stream::new(), fastrand::Rng::with_seed(seed));
        for _ in 0..n_tokens {
            let rows: Vec<[Vec<f32>; 3]> =
                (0..2).map(|_| [(); 3].map(|()| (0..64).map(|_| rng.f32() * 4.0 - 2.0).collect())).collect();
            assert!(stream.tiny.feed(1, |layer| rows[layer.0].clone(), |_, _| ()));
            stream.content.tokens.push(rng.u32(..N_VOCAB as u32));
            stream.content.text.push(rng.u8(..));
        }
        stream.content.logits.iter_mut().chain(&mut stream.content.convs).for_each(|x| *x = rng.f32());
        stream.content.counts = stream.tiny.cache.counts();
        stream.content.cache = cache_bytes(&mut stream.tiny.cache);
        stream
    }

    fn fingerprint(&self) -> Fingerprint {
        let settings = Short::of(&self.tiny.cache.settings());
        Fingerprint { model: 1, template: 2, settings, model_name: Short::of("tiny") }
    }

    fn save(&mut self, name: &str, shelf: &mut Shelf<&TestDisk>) -> Result<u64, Why> {
        let fingerprint = self.fingerprint();
        let Content { tokens, text, logits, convs, .. } = &mut self.content;
        let n_first = tokens.len();
        let stream = StreamState {
            cache: &mut self.tiny.cache,
            recurrent: convs,
            first_tokens: tokens,
            n_first,
            log_hash: LOG_HASH,
            is_exact: false,
        };
        let saved = Saved { stream, text, logits, generator: 7 };
        shelf.save(&Name::new(name).expect("a name"), &fingerprint, saved).map_err(|failure| failure.why)
    }

    /// What the shelf has under the name; `None`: there is none, or it is refused. A stream that was touched is then empty.
    fn restore(&mut self, name: &str, shelf: &mut Shelf<&TestDisk>) -> Option<Content> {
        let fingerprint = self.fingerprint();
        let Content { tokens, text, logits, convs, .. } = &mut self.content;
        tokens.resize(1000, 0);
        text.resize(1000, 0);
        let stream = StreamState {
            cache: &mut self.tiny.cache,
            recurrent: convs,
            first_tokens: tokens,
            n_first: 0,
            log_hash: 0,
            is_exact: true,
        };
        let restored = Restored { stream, text: Some(text), logits, scratch: &mut self.scratch };
        match shelf.restore(&Name::new(name).expect("a name"), &fingerprint, restored) {
            Ok(resumed) => {
                self.content.tokens.truncate(resumed.n_first);
                self.content.text.truncate(resumed.n_text);
                assert!(resumed.generator == 7 && resumed.has_logits && resumed.n_past == resumed.n_first as u64);
                assert!(resumed.log_hash == LOG_HASH && !resumed.is_exact);
                self.content.counts = self.tiny.cache.counts();
                self.content.cache = cache_bytes(&mut self.tiny.cache);
                Some(self.content.clone())
            }
            Err(failure) => {
                assert!(!failure.was_cleared || self.tiny.cache.n_live() == 0);
                None
            }
        }
    }
}

fn shelf(disk: &TestDisk) -> Shelf<&TestDisk> {
    Shelf::on(disk, Limits::of(1 << 20), BUFFER).expect("a shelf")
}

/// A disk with a session, or none, on which another one of the same name was saved while it was recorded.
fn saved_twice(old: Option<&mut Stream>, new: &mut Stream) -> TestDisk {
    let disk = TestDisk::default();
    if let Some(old) = old {
        old.save("s", &mut shelf(&disk)).expect("it is saved");
    }
    disk.record();
    new.save("s", &mut shelf(&disk)).expect("it is saved");
    disk
}

#[test]
fn a_power_cut_leaves_the_old_session_or_the_new_one() {
    let (mut old, mut new, mut reader) = (Stream::after(1, 25), Stream::after(2, 70), Stream::new());
    for has_old in [true, false] {
        let disk = saved_twice(Some(&mut old).filter(|_| has_old), &mut new);
        let (mut n_disks, mut n_new) = (0, 0);
        for n in 0..=disk.n_recorded() {
            disk.after_cut(n, false, &mut |left| {
                n_disks += 1;
                let mut shelf = shelf(&left);
                assert!(left.names().iter().all(|name| name == "s.lks"), "leftovers are removed: {:?}", left.names());
                match reader.restore("s", &mut shelf) {
                    Some(found) if found == new.content => n_new += 1,
                    Some(found) => assert!(has_old && found == old.content, "after {n} operations: a session that nobody saved"),
                    None => assert!(!has_old, "after {n} operations: the old session is lost"),
                }
                if n == disk.n_recorded() {
                    assert!(reader.content == new.content, "what was saved is on the disk");
                }
            });
        }
        assert!(disk.n_recorded() > 15 && n_disks > 500 && n_new > 0, "{n_disks} disks, {n_new} with the new session");
    }
}

/// Cards that say they have written and have not: then a session may be lost, and is told from a whole one.
#[test]
fn a_disk_that_lies_never_gives_a_wrong_session() {
    let (mut old, mut new, mut reader) = (Stream::after(3, 40), Stream::after(4, 41), Stream::new());
    let disk = saved_twice(Some(&mut old), &mut new);
    let mut n_lost = 0;
    for n in 0..=disk.n_recorded() {
        disk.after_cut(n, true, &mut |left| match reader.restore("s", &mut shelf(&left)) {
            Some(found) => assert!(found == old.content || found == new.content, "after {n} operations: a wrong session"),
            None => n_lost += 1,
        });
    }
    assert!(n_lost > 100, "only {n_lost} disks lost something: the lie is not seen");
}

#[test]
fn a_full_disk_at_any_operation_leaves_the_old_session_and_nothing_else() {
    let (mut old, mut new, mut reader) = (Stream::after(5, 40), Stream::after(6, 50), Stream::new());
    let n_operations = saved_twice(Some(&mut old), &mut new).n_recorded();
    for n in 0..n_operations {
        let disk = TestDisk::default();
        let mut shelf = shelf(&disk);
        old.save("s", &mut shelf).expect("it is saved");
        disk.record();
        disk.fail_at(Some(n));
        let why = new.save("s", &mut shelf).expect_err("the disk is full");
        assert!(matches!(&why, Why::Disk(e) if e.kind() == std::io::ErrorKind::StorageFull), "{why:?}");
        disk.fail_at(None);
        assert_eq!(disk.names(), ["s.lks"], "operation {n} of {n_operations}");
        // The last one is the sync of the folder: the new session is there, though it is not certain to stay.
        let expected = if n + 1 == n_operations { &new.content } else { &old.content };
        assert!(reader.restore("s", &mut shelf).as_ref() == Some(expected), "operation {n} of {n_operations}");
        new.save("s", &mut shelf).expect("there is room again");
        assert!(reader.restore("s", &mut shelf).as_ref() == Some(&new.content));
    }
}

#[test]
fn nothing_is_written_to_a_disk_that_is_nearly_full() {
    let (disk, mut stream) = (TestDisk::default(), Stream::after(7, 10));
    disk.set_free_bytes((1 << 30) / 10);
    let why = stream.save("s", &mut shelf(&disk)).expect_err("a tenth is left, and would not be afterwards");
    assert!(matches!(why, Why::DiskFull { .. }) && disk.n_recorded() == 0, "{why:?}");
}

/// Each byte of a file changed, in two ways, and the file cut at each byte.
#[test]
fn a_file_with_any_byte_changed_is_refused() {
    let (disk, mut stream, mut reader) = (TestDisk::default(), Stream::after(8, 9), Stream::new());
    stream.save("s", &mut shelf(&disk)).expect("it is saved");
    let bytes = disk.bytes("s.lks");
    let mut refused = |bytes: Vec<u8>| {
        let damaged = TestDisk::default();
        damaged.put("s.lks", bytes);
        let mut shelf = shelf(&damaged);
        let is_verified = shelf.verify(&Name::new("s").expect("a name")).is_ok();
        reader.restore("s", &mut shelf).is_none() && !is_verified
    };
    for at in 0..bytes.len() {
        for change in [0x01, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            assert!(refused(changed), "byte {at} of {} changed by {change:#x}", bytes.len());
        }
        assert!(refused(bytes[..at].to_vec()), "cut after {at} bytes");
    }
    assert!(refused([&bytes[..], &[0]].concat()), "a byte too many");
    assert!(!refused(bytes));
}
