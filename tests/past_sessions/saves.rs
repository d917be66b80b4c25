//! What a save asks of a disk: room for what it writes, a place of its own where others read, and time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lowkey::kv::past::disk::{PastFile, PastFolder, Pasts, SYNC_BYTES};
use lowkey::kv::past::shape::TILE;
use lowkey::session_file::{Limits, Name, Shelf, Why};
use lowkey_test_kit::test_disk::TestDisk;

use super::{Stream, Temp, deep_shelf};

/// What a save may take of a disk that is nearly full is what it writes: the session and its new tiles, where these go to their places,
/// and all where all is written.
#[test]
fn a_save_asks_the_disk_for_what_it_writes() {
    let disk = TestDisk::default();
    let (mut shelf, mut stream) = (deep_shelf(&disk), Stream::keeping(&disk));
    stream.feed(3 * TILE);
    stream.save(&mut shelf).expect("it is saved");
    stream.feed(TILE);
    let (kept, shape) = ((1 << 30) / 10 + 1, stream.shape());
    let session = |disk: &TestDisk| disk.bytes("s.lks").len() as u64 + 4096;
    for (is_alone, n_tile) in [(false, 4), (true, 1)] {
        let mut other = (!is_alone).then(|| Stream::keeping(&disk));
        if let Some(other) = &mut other {
            // Of another conversation: its whole past is to be written.
            other.feed(4 * TILE);
        }
        let saving = other.as_mut().unwrap_or(&mut stream);
        disk.record();
        disk.set_free_bytes(kept + session(&disk) / 2 + shape.taken_bytes(n_tile));
        assert!(matches!(saving.save(&mut shelf), Err(Why::DiskFull { .. })), "{n_tile} tiles");
        assert_eq!((disk.n_recorded(), disk.names().len()), (0, 2), "nothing is written");
        disk.set_free_bytes(kept + session(&disk) + shape.taken_bytes(n_tile));
        if is_alone {
            saving.save(&mut shelf).expect("there is room for what is new");
            assert_eq!(disk.n_placed(), shape.tile_bytes());
        }
    }
}

/// Cards come with file systems on which no file has two names.
#[test]
fn where_no_file_has_two_names_a_past_that_gets_another_name_is_written_once() {
    let disk = TestDisk::default();
    disk.forbid_links();
    let (mut shelf, mut stream) = (deep_shelf(&disk), Stream::keeping(&disk));
    stream.feed(2 * TILE);
    stream.save_text(None, b"a text", &mut shelf).expect("it is saved");
    disk.record();
    stream.feed(TILE);
    stream.save_text(Some(b"a text"), b"a text and more", &mut shelf).expect("it is saved");
    assert_eq!(disk.n_placed(), 3 * stream.shape().tile_bytes(), "all of it, and nothing twice");
    assert_eq!(disk.names().len(), 2, "{:?}", disk.names());
    let mut other = Stream::keeping(&disk);
    other.restore_text(b"a text and more", &mut shelf).expect("it is restored");
    assert_eq!(other.n_lost(), 0);
}

/// At any operation; afterwards there is the session before, and later the new one, each with its past.
#[test]
fn a_full_disk_costs_a_conversation_without_a_name_nothing() {
    let texts = [&b"a text"[..], b"a text and more"];
    let saved_once = || {
        let disk = TestDisk::default();
        let mut stream = Stream::keeping(&disk);
        stream.feed(70);
        stream.save_text(None, texts[0], &mut deep_shelf(&disk)).expect("it is saved");
        disk.record();
        stream.feed(50);
        (disk, stream)
    };
    let (disk, mut stream) = saved_once();
    stream.save_text(Some(texts[0]), texts[1], &mut deep_shelf(&disk)).expect("it is saved");
    for n in 0..disk.n_recorded() {
        let (disk, mut stream) = saved_once();
        let mut shelf = deep_shelf(&disk);
        disk.fail_at(Some(n));
        let is_saved = stream.save_text(Some(texts[0]), texts[1], &mut shelf).is_ok();
        disk.fail_at(None);
        let names = disk.names();
        let has = |text: &[u8]| {
            let name = Name::of_text(text);
            [name.file().as_str(), name.past().as_str()].map(|file| names.iter().any(|found| found == file))
        };
        let found = [has(texts[0]), has(texts[1])];
        assert!(found.iter().all(|[session, past]| session == past) && found[0][0] | found[1][0], "operation {n}: {names:?}");
        assert!(names.len() == 2 || found == [[true; 2]; 2], "operation {n}: {names:?}");
        stream.feed(TILE);
        stream.save_text((!is_saved).then_some(texts[0]), b"more still", &mut shelf).expect("there is room again");
        let mut other = Stream::keeping(&disk);
        other.restore_text(b"more still", &mut shelf).expect("it is restored");
        assert_eq!(other.n_lost(), 0, "operation {n}");
    }
}

/// A card may be slow, and whoever looks after the process must hear of it meanwhile.
#[test]
fn a_long_save_is_on_the_disk_piece_by_piece_and_says_that_it_goes_on() {
    let disk = TestDisk::default();
    let mut shelf = Shelf::on(&disk, Limits::of(1 << 30), 1 << 20).expect("a shelf").with_pasts(Arc::new(disk.clone()));
    let (mut stream, text) = (Stream::keeping(&disk), vec![7; 3 * SYNC_BYTES]);
    stream.feed(4 * TILE);
    disk.record();
    stream.save_text(None, &text, &mut shelf).expect("it is saved");
    let (most, n_beats) = (disk.most_unsynced(), disk.n_beats());
    assert!(most <= SYNC_BYTES + (1 << 20), "{most} bytes wait for the card at once");
    assert!(n_beats > text.len() >> 20, "{n_beats} signs of life, for each buffer and for each tile");
    let mut other = Stream::keeping(&disk);
    other.restore_text(&text, &mut shelf).expect("it is restored");
    assert!(disk.n_beats() > n_beats + 4 + (text.len() >> 20), "{} signs", disk.n_beats());
}

/// Two that read one file ask by turns whether they are alone: neither is, and neither loses its lock by asking.
#[test]
fn who_reads_a_file_keeps_it_also_while_others_ask_for_it() {
    let temp = Temp::new("locks");
    std::fs::write(temp.file(), [0; 100]).expect("a file");
    let folders = [(); 2].map(|()| PastFolder::open(&temp.0).expect("a folder"));
    let readers = folders.each_ref().map(|folder| Pasts::open(folder, "s.past").expect("a file"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = readers.each_ref().map(|reader| {
            scope.spawn(|| {
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(400) {
                    assert!(!reader.begin_change("s.past").expect("nobody changes it"), "alone, and is not");
                }
            })
        });
        let run = scope.spawn(|| {
            while !is_over.load(Relaxed) {
                let error = PastFile::kept(&temp.0, "s.past", 1).expect_err("two read it");
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let came_of = asking.map(|asking| asking.join());
        is_over.store(true, Relaxed);
        assert!(run.join().is_ok() && came_of.iter().all(Result::is_ok), "somebody got it");
    });
    // Under another name it is another's, and so is another file under its name.
    let [one, other] = readers;
    drop(other);
    assert!(one.begin_change("s.past").expect("nobody changes it"));
    one.end_change().expect("nobody changes it");
    std::fs::rename(temp.file(), temp.0.join("t.past")).expect("it is renamed");
    assert!(!one.begin_change("s.past").expect("nobody changes it"), "there is none of this name");
    std::fs::write(temp.file(), [1; 100]).expect("a file");
    assert!(!one.begin_change("s.past").expect("nobody changes it"), "another one has its name");
    assert!(one.begin_change("t.past").expect("nobody changes it"));
}

/// Where somebody changes the file all the same (a file system may lose a lock), nothing of it is read any more, and that is counted.
#[test]
fn what_another_process_may_change_is_not_read_any_more() {
    let disk = TestDisk::default();
    let (mut shelf, mut stream) = (deep_shelf(&disk), Stream::keeping(&disk));
    stream.feed(3 * TILE);
    stream.save(&mut shelf).expect("it is saved");
    stream.feed(TILE);
    disk.snatch();
    stream.save(&mut shelf).expect("what is left of it");
    assert_eq!(stream.n_lost(), 3);
    stream.feed(TILE);
    let mut other = Stream::keeping(&disk);
    other.restore(&mut shelf).expect("it is restored");
    other.feed(TILE);
    for stream in [&stream, &other] {
        assert_eq!(stream.past().counts().n_unread, 0);
    }
    assert_eq!(other.n_lost(), 0, "what was lost before is no loss of the session");
}
