//! The folder of sessions as a file system has it: rights, leftovers, strangers' files, space and who goes for it, two processes at the
//! same name, and `kill -9` at random moments of saving.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lowkey::kv::Policy;
use lowkey::session::Session;
use lowkey::session_file::disk::Disk;
use lowkey::session_file::{Folder, Limits, Name, Shelf, Why};
use lowkey_test_kit::sessions::{Log, restore, save};
use lowkey_test_kit::{binary, budget_for, data, params};

const ROOM: usize = 4096;

struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("lowkey-folder-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Temp(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn session() -> Session {
    let (path, mut params) = (data("tiny-gqa.gguf"), params(0));
    (params.kv.policy, params.n_threads, params.n_log) = (Policy::L2, Some(1), 1000);
    params.kv.budget_bytes = budget_for(&path, 64, &params);
    lowkey_test_kit::session(&path, &params)
}

/// However full the disk of the test is.
fn limits(space_bytes: u64) -> Limits {
    Limits { free_percent: 0, ..Limits::of(space_bytes) }
}

fn shelf(path: &Path, space_bytes: u64) -> Shelf {
    Shelf::open(path, limits(space_bytes)).expect("a shelf")
}

fn named(text: &str) -> Name {
    Name::any(text).expect("a name")
}

/// A stream that has read `n` tokens, which follow from `start`.
fn read(session: &mut Session, log: &mut Log, start: u32, n: u32) {
    session.clear();
    let tokens: Vec<u32> = (0..n).map(|i| (start + 7 * i) % 280).collect();
    session.prefill(&tokens, |_| true).expect("prefill");
    (log.tokens, log.text) = (tokens, vec![start as u8; n as usize]);
}

fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("a folder");
    let mut names: Vec<String> = entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

#[test]
fn a_session_is_its_owners_alone_and_a_second_shelf_finds_it() {
    let temp = Temp::new("rights");
    let (mut session, mut log) = (session(), Log::with_room(ROOM));
    let deep = temp.0.join("a/b");
    let mut first = shelf(&deep, 1 << 30);
    read(&mut session, &mut log, 3, 100);
    let n_bytes = save(&mut session, &log, &mut first, "s").expect("it is saved");
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&deep.join("s.lks")), mode(&deep)), (0o600, 0o700));
    assert_eq!(std::fs::metadata(deep.join("s.lks")).expect("a file").len(), n_bytes);
    assert_eq!(names(&deep), ["s.lks"]);
    let mut second = shelf(&deep, 1 << 30);
    assert_eq!(second.sessions().collect::<Vec<_>>(), [(named("s"), n_bytes)]);
    let want = log.clone();
    session.clear();
    restore(&mut session, &mut log, &mut second, "s").expect("it is restored");
    assert_eq!((session.n_past(), &log), (100, &want));
    second.verify(&named("s")).expect("it is whole");
    second.remove(&named("s")).expect("it goes");
    assert!(names(&deep).is_empty() && matches!(second.remove(&named("s")).expect_err("gone").why, Why::Missing));
    assert!(matches!(restore(&mut session, &mut log, &mut first, "s").expect_err("gone").why, Why::Missing));
    assert_eq!((session.n_past(), first.sessions().len()), (100, 0));
}

#[test]
fn leftovers_of_dead_writers_go_and_what_is_strange_stays() {
    let temp = Temp::new("leftovers");
    let (mut session, mut log) = (session(), Log::with_room(ROOM));
    read(&mut session, &mut log, 1, 10);
    save(&mut session, &log, &mut shelf(&temp.0, 1 << 30), "good").expect("it is saved");
    let write = |name: &str, bytes: &[u8]| std::fs::write(temp.0.join(name), bytes).expect("a file");
    let good = std::fs::read(temp.0.join("good.lks")).expect("a file");
    write(".dead.tmp", &good[..5000]);
    write("cut.lks", &good[..good.len() - 1]);
    write("empty.lks", b"");
    write("notes.txt", b"notes");
    write("a b.lks", b"no name");
    std::fs::create_dir(temp.0.join("folder.lks")).expect("a folder");
    std::os::unix::fs::symlink(temp.0.join("good.lks"), temp.0.join("link.lks")).expect("a link");
    let living = Folder::open(&temp.0).expect("a folder");
    let writer = (&living).writer(".living.tmp");
    let mut shelf = shelf(&temp.0, 1 << 30);
    let stay = [".living.tmp", "a b.lks", "cut.lks", "empty.lks", "folder.lks", "good.lks", "link.lks", "notes.txt"];
    assert_eq!(names(&temp.0), stay);
    assert_eq!((shelf.sessions().len(), shelf.n_wrong()), (1, 2));
    let why = save(&mut session, &log, &mut shelf, "living").expect_err("another one is at it").why;
    assert!(matches!(why, Why::Busy), "{why:?}");
    drop(writer);
    for name in ["living", "empty"] {
        save(&mut session, &log, &mut shelf, name).expect("nobody is at it");
    }
    // A link is not followed, and is replaced.
    assert!(
        restore(&mut session, &mut log, &mut shelf, "link").is_err()
            && restore(&mut session, &mut log, &mut shelf, "folder").is_err()
    );
    save(&mut session, &log, &mut shelf, "link").expect("in place of the link");
    assert_eq!(std::fs::read(temp.0.join("good.lks")).expect("a file"), good);
    save(&mut session, &log, &mut shelf, "folder").expect_err("a folder is in its place");
    assert!(!names(&temp.0).contains(&".folder.tmp".to_owned()));
    assert_eq!(shelf.sessions().len(), 4);
}

/// A living writer.
trait Writing {
    fn writer(&self, name: &str) -> std::fs::File;
}

impl Writing for &Folder {
    fn writer(&self, name: &str) -> std::fs::File {
        self.create(name).expect("a writer")
    }
}

#[test]
fn what_was_saved_by_itself_goes_for_the_space_and_named_sessions_only_if_they_may() {
    let temp = Temp::new("space");
    let (mut session, mut log) = (session(), Log::with_room(ROOM));
    read(&mut session, &mut log, 1, 50);
    let n_bytes = save(&mut session, &log, &mut shelf(&temp.0, 1 << 30), "kept").expect("it is saved");
    let space = 3 * n_bytes;
    let mut first = shelf(&temp.0, space);
    for name in ["auto-1", "auto-2"] {
        save(&mut session, &log, &mut first, name).expect("it is saved");
    }
    // Used again, and so the other one goes first.
    restore(&mut session, &mut log, &mut first, "auto-1").expect("it is restored");
    save(&mut session, &log, &mut first, "mine").expect("one goes for it");
    assert_eq!((names(&temp.0), first.used_bytes()), (vec!["auto-1.lks".into(), "kept.lks".into(), "mine.lks".into()], space));
    save(&mut session, &log, &mut first, "mine").expect("in its own place");
    save(&mut session, &log, &mut first, "yours").expect("one goes for it");
    assert_eq!(names(&temp.0), ["kept.lks", "mine.lks", "yours.lks"]);
    let failure = save(&mut session, &log, &mut first, "more").expect_err("named sessions stay");
    assert!(matches!(failure.why, Why::TooLarge { left_bytes: 0, .. }) && failure.to_string().contains("session"), "{failure}");
    assert_eq!(names(&temp.0), ["kept.lks", "mine.lks", "yours.lks"]);
    // The order of use is known to the next shelf.
    restore(&mut session, &mut log, &mut first, "kept").expect("it is restored");
    let may = Limits { may_remove_named: true, ..limits(space) };
    let mut second = Shelf::open(&temp.0, may).expect("a shelf");
    save(&mut session, &log, &mut second, "more").expect("one goes for it");
    assert_eq!(names(&temp.0), ["kept.lks", "more.lks", "yours.lks"]);
    let large = save(&mut session, &log, &mut shelf(&temp.0, n_bytes - 1), "large").expect_err("larger than the space");
    assert!(matches!(large.why, Why::TooLarge { .. }));
}

/// What the child saves, time after time: streams that follow from their number alone.
fn stream_of(session: &mut Session, log: &mut Log, number: u32) {
    read(session, log, number, 20 + number % 40);
}

/// A child that saves until it is killed, and says so after each; without its variable no test at all.
#[test]
fn child_that_saves() {
    let Some(folder) = std::env::var_os("SESSIONS_OF_CHILD") else { return };
    let (mut session, mut log) = (session(), Log::with_room(ROOM));
    let mut shelf = shelf(Path::new(&folder), 1 << 30);
    let first: u32 = std::env::var("FIRST_OF_CHILD").expect("a number").parse().expect("a number");
    for number in first.. {
        stream_of(&mut session, &mut log, number);
        save(&mut session, &log, &mut shelf, "s").expect("it is saved");
    }
}

#[test]
fn kill_9_at_any_moment_leaves_a_session_that_was_saved() {
    let n_kills: u32 = std::env::var("LOWKEY_KILLS").map_or(50, |n| n.parse().expect("a number of kills"));
    let n_kills = if lowkey_test_kit::emulated().is_some() { 3 } else { n_kills };
    let temp = Temp::new("kills");
    let (mut session, mut log, mut rng) = (session(), Log::with_room(ROOM), fastrand::Rng::new());
    let (mut last, mut n_leftovers, mut n_new) = (None, 0, 0);
    let this = std::env::current_exe().expect("this test");
    for kill in 0..n_kills {
        let first = kill * 10_000;
        let mut child = binary(this.to_str().expect("a path"))
            .args(["--exact", "child_that_saves", "--nocapture"])
            .env("SESSIONS_OF_CHILD", &temp.0)
            .env("FIRST_OF_CHILD", first.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        // From the first that it has saved on, at any moment.
        let file = temp.0.join("s.lks");
        let before = std::fs::metadata(&file).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
        for _ in 0..6000 {
            let now = std::fs::metadata(&file).ok().map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
            if now.is_some() && now != before {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..30_000)));
        child.kill().expect("it is there");
        child.wait().expect("it ends");
        n_leftovers += usize::from(names(&temp.0).contains(&".s.tmp".to_owned()));
        let mut shelf = shelf(&temp.0, 1 << 30);
        assert_eq!(names(&temp.0), ["s.lks"], "leftovers go");
        let resumed = restore(&mut session, &mut log, &mut shelf, "s").expect("a session");
        // Its number is in its text but for multiples of 256; its length is too.
        let (found, after) = (log.clone(), session.step(5).expect("a step").to_vec());
        let number = (first..first + 10_000).find(|&n| 20 + n % 40 == found.tokens.len() as u32 && n as u8 == found.text[0]);
        let number = number.expect("one of this child's");
        stream_of(&mut session, &mut log, number);
        assert_eq!((&log, resumed.n_past), (&found, found.tokens.len() as u64));
        assert_eq!(session.step(5).expect("a step"), after, "the stream that was saved");
        n_new += usize::from(last.replace(found.clone()).as_ref() != Some(&found));
    }
    println!("{n_kills} kills, {n_leftovers} of them while a file was being written");
    assert!(n_new as u32 > n_kills / 2, "hardly any child saved anything");
    assert!(n_leftovers > 0 || n_kills < 50, "no kill fell into a write");
}
