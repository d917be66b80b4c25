//! The pack beside a model: the same bits out of it, and whatever is wrong with one, the model is read without it. No pack,
//! cut, changed or made to lie, may panic or be taken for the model's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use lowkey::gguf::GgufFile;
use lowkey::kernels::Kernels;
use lowkey::model::forward::Model;
use lowkey::model::pack::{Contents, Pack, Unusable};
use lowkey::session::Session;
use lowkey_test_kit::{data, lowkey};
use xxhash_rust::xxh3::xxh3_64;

/// A folder with a copy of a small model of all packed types, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("lowkey-pack-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::copy(data("tiny-gqa.gguf"), folder.join("m.gguf")).expect("a copy");
        Folder(folder)
    }

    fn model(&self) -> PathBuf {
        self.0.join("m.gguf")
    }

    fn pack(&self) -> PathBuf {
        self.0.join("m.gguf.lowkey-pack")
    }

    fn file(&self) -> GgufFile {
        GgufFile::open(&self.model()).expect("the model")
    }

    /// A sound pack.
    fn packed(&self) -> Vec<u8> {
        let model = Model::load_without_pack(self.file()).expect("a model");
        let contents = Contents::of(&model.file, model.weights.matrices().map(|t| t.index()));
        let mut bytes = Vec::new();
        assert!(contents.write(&model.file, &mut bytes, &mut || true).expect("a vector takes all"));
        assert_eq!(bytes.len() as u64, contents.file_bytes);
        fs::write(self.pack(), &bytes).expect("a file");
        bytes
    }

    fn open(&self) -> Result<Pack, Unusable> {
        let file = self.file();
        Pack::open(&self.pack(), &file).expect("it is there").and_then(|pack| pack.in_time(&file))
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).expect("the folder").map(|e| e.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|n| n.into_string().expect("a name in UTF-8")).collect();
        names.sort();
        names
    }

    fn run(&self, args: &[&str]) -> Output {
        lowkey!().args(args).current_dir(&self.0).output().expect("the binary starts")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The bits of the logits after a batch and two steps.
fn logits(model: &Path, kernels: &str, with_pack: bool) -> Vec<u32> {
    let mut params = lowkey_test_kit::params(256 << 10);
    (params.kernels, params.n_batch) = (kernels.into(), 8);
    let model = Model::load(GgufFile::open(model).expect("a model")).expect("a model this engine runs");
    assert_eq!(model.files(Kernels::choose(kernels).expect("a set")).pack.is_some(), with_pack, "{kernels}");
    let layout = params.layout(&model).expect("a layout");
    let mut session = Session::new(model, &layout).expect("a session");
    let bits = |logits: &[f32]| logits.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let mut all = bits(session.prefill(&[1, 7, 30, 200, 5], |_| true).expect("logits").expect("logits"));
    all.extend(bits(session.step(9).expect("logits")));
    all.extend(bits(session.step(299).expect("logits")));
    all
}

#[test]
fn the_same_logits_with_and_without() {
    let folder = Folder::new("bits");
    let sets: Vec<Kernels> = Kernels::available().collect();
    let want: Vec<_> = sets.iter().map(|set| logits(&folder.model(), set.name(), false)).collect();
    folder.packed();
    let pack = folder.open().expect("a sound pack");
    assert_eq!(pack.n_tensors(), 14, "all matrices but the table, whose 300 rows are no multiple of 8");
    for (set, want) in sets.iter().zip(want) {
        assert_eq!(logits(&folder.model(), set.name(), set.reads_packed()), want, "{}", set.name());
    }
    let mut bytes = fs::read(folder.pack()).expect("the pack");
    let last = bytes.len() - 5;
    bytes[last] ^= 0x10;
    fs::write(folder.pack(), bytes).expect("a file");
    assert_ne!(logits(&folder.model(), "scalar", true), logits(&data("tiny-gqa.gguf"), "scalar", false), "it is what is read");
}

#[test]
fn a_pack_cut_anywhere_is_left_aside() {
    let folder = Folder::new("cut");
    let bytes = folder.packed();
    for n in (0..1000).chain((1000..bytes.len()).step_by(997)) {
        fs::write(folder.pack(), &bytes[..n]).expect("a file");
        let wanted = if (1..8).contains(&n) { "this is no pack" } else { "damaged" };
        let why = folder.open().err().unwrap_or_else(|| panic!("{n} bytes of it were taken for a pack")).message().to_string();
        assert!(why.starts_with(wanted), "{n} bytes: {why}");
    }
    let longer = [&bytes[..], &[0]].concat();
    fs::write(folder.pack(), longer).expect("a file");
    assert!(matches!(folder.open(), Err(Unusable::Damaged(_))));
    logits(&folder.model(), "scalar", false);
}

#[test]
fn every_byte_of_header_and_directory_counts() {
    let folder = Folder::new("flip");
    let bytes = folder.packed();
    let n_summed = 72 + 14 * 24;
    for at in 0..n_summed {
        for change in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            fs::write(folder.pack(), &bytes).expect("a file");
            assert!(folder.open().is_err(), "byte {at} changed by {change:#x} makes no difference");
        }
    }
}

/// With the sum put right, so that the checks behind it are met.
#[test]
fn a_directory_that_lies_is_refused() {
    let folder = Folder::new("lies");
    let sound = folder.packed();
    let n = u32::from_le_bytes(sound[48..52].try_into().expect("four")) as usize;
    let lie = |at: usize, value: &[u8]| {
        let mut bytes = sound.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        // The directory as the header now has it, where there is so much.
        let n = u32::from_le_bytes(bytes[48..52].try_into().expect("four")) as usize;
        if let Some(directory) = bytes.get(72..72usize.saturating_add(n.saturating_mul(24))) {
            let sum = xxh3_64(&[&bytes[..64], directory].concat());
            bytes[64..72].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(folder.pack(), &bytes).expect("a file");
        folder.open().err().map(|why| why.message().to_string())
    };
    assert_eq!(lie(0, b"L"), None, "no lie, no refusal");
    for count in [n as u32 + 1, 100_000, u32::MAX] {
        assert!(lie(48, &count.to_le_bytes()).is_some(), "{count} tensors");
    }
    assert!(lie(16, &1u64.to_le_bytes()).is_some_and(|why| why.contains("another model")));
    assert!(lie(24, &1u64.to_le_bytes()).is_some_and(|why| why.contains("check of the pack")));
    for i in 0..n {
        let entry = 72 + i * 24;
        for index in [21u32, u32::MAX] {
            assert!(lie(entry, &index.to_le_bytes()).is_some(), "index {index} of entry {i}");
        }
        for ty in [0u32, 1, 6, 12, 999, u32::MAX] {
            assert!(lie(entry + 4, &ty.to_le_bytes()).is_some(), "type {ty} of entry {i}");
        }
        let offset = u64::from_le_bytes(sound[entry + 8..entry + 16].try_into().expect("eight"));
        for offset in [
            0,
            64,
            offset - 1,
            offset - 16,
            offset + 1,
            offset + 16,
            sound.len() as u64 / 64 * 64,
            u64::MAX,
            u64::MAX - 63,
            1 << 63,
        ] {
            assert!(lie(entry + 8, &offset.to_le_bytes()).is_some(), "offset {offset} of entry {i}");
        }
        for bytes in [0, 1, u64::MAX, u64::MAX / 2] {
            assert!(lie(entry + 16, &bytes.to_le_bytes()).is_some(), "{bytes} bytes of entry {i}");
        }
        if i > 0 {
            let before = sound[entry - 24..entry - 20].to_vec();
            assert!(lie(entry, &before).is_some(), "entry {i} is the tensor before it");
        }
    }
}

#[test]
fn a_folder_or_another_file_in_its_place_is_left_aside() {
    let folder = Folder::new("place");
    fs::create_dir(folder.pack()).expect("a folder");
    assert!(matches!(folder.open(), Err(Unusable::Unreadable(_))));
    fs::remove_dir(folder.pack()).expect("it is empty");
    fs::write(folder.pack(), b"notes of somebody else").expect("a file");
    assert_eq!(folder.open().err(), Some(Unusable::Foreign));
    logits(&folder.model(), "scalar", false);
    let out = folder.run(&["pack", "m.gguf"]);
    assert_eq!(out.status.code(), Some(1), "what is not ours is not overwritten unasked");
    assert!(String::from_utf8_lossy(&out.stderr).contains("--force"));
    assert!(folder.run(&["pack", "m.gguf", "--force"]).status.success());
    assert!(folder.open().is_ok());
}

#[test]
fn an_interrupted_pack_leaves_nothing_and_the_next_removes_what_a_killed_one_left() {
    let folder = Folder::new("interrupt");
    fs::remove_file(folder.model()).expect("the small model goes");
    std::os::unix::fs::symlink(lowkey_test_kit::demo_model().canonicalize().expect("a path"), folder.model()).expect("a link");
    for (signal, code) in [("-INT", Some(130)), ("-TERM", Some(143)), ("-KILL", None)] {
        let mut child = lowkey!().args(["pack", "m.gguf"]).current_dir(&folder.0).spawn().expect("the binary starts");
        while folder.names().len() < 2 {
            assert_eq!(child.try_wait().expect("its state"), None, "it ended before it wrote");
            std::thread::sleep(Duration::from_millis(1));
        }
        let kill = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        assert_eq!(child.wait().expect("an end").code(), code, "{signal}");
        assert_eq!(folder.names().len(), if code.is_some() { 1 } else { 2 }, "{signal}: {:?}", folder.names());
    }
    // What another process holds is its own, and so is what is named otherwise.
    let held = fs::File::create(folder.0.join("m.gguf.lowkey-pack.1.part")).expect("a file");
    held.lock().expect("a lock");
    fs::write(folder.0.join("m.gguf.lowkey-pack.a.part"), b"").expect("a file");
    assert!(folder.run(&["pack", "m.gguf"]).status.success());
    let pack = "m.gguf.lowkey-pack";
    assert_eq!(folder.names(), ["m.gguf", pack, &format!("{pack}.1.part"), &format!("{pack}.a.part")]);
    drop(held);
    assert!(folder.run(&["pack", "m.gguf"]).status.success(), "it is there already");
    assert_eq!(folder.names(), ["m.gguf", pack, &format!("{pack}.a.part")]);
}

#[test]
fn another_model_of_the_same_size_and_time_is_seen_at_start() {
    let folder = Folder::new("other");
    let (packed, model) = (folder.packed(), fs::read(folder.model()).expect("the model"));
    let time = fs::metadata(folder.model()).and_then(|meta| meta.modified()).expect("a time");
    let info = folder.run(&["info", "m.gguf"]);
    assert!(String::from_utf8_lossy(&info.stdout).contains("not every byte: `lowkey pack --verify` does that"));
    let mut other = model.clone();
    for tensor in folder.file().tensors() {
        other[tensor.offset as usize..][..tensor.n_bytes as usize].chunks_mut(16).for_each(|part| part[3] ^= 0x10);
    }
    fs::write(folder.model(), other).expect("a file");
    fs::File::options().append(true).open(folder.model()).and_then(|file| file.set_modified(time)).expect("a time");
    assert!(matches!(folder.open(), Err(Unusable::Wrong(_))));
    let run = folder.run(&["run", "-m", "m.gguf", "-p", "a", "-n", "1", "--kernels", "scalar", "--ignore-eos"]);
    assert!(run.status.success() && String::from_utf8_lossy(&run.stderr).contains("is not the model's: run `lowkey pack"));
    fs::write(folder.model(), model).expect("a file");
    fs::File::options().append(true).open(folder.model()).and_then(|file| file.set_modified(time)).expect("a time");
    assert!(folder.open().is_ok());
    let data = 72 + 14 * 24;
    let damaged: Vec<u8> = packed.iter().enumerate().map(|(i, byte)| byte ^ u8::from(i >= data && i % 512 == 0)).collect();
    fs::write(folder.pack(), damaged).expect("a file");
    assert!(matches!(folder.open(), Err(Unusable::Wrong(_))), "a damaged byte in each half KiB");
}

#[test]
fn the_command_writes_keeps_verifies_and_accepts_a_copy() {
    let folder = Folder::new("cli");
    let outcome = |args: &[&str]| {
        let out = folder.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).expect("one object")
    };
    let missing = folder.run(&["pack", "--verify", "m.gguf"]);
    assert_eq!(missing.status.code(), Some(1));
    let written = outcome(&["pack", "m.gguf", "--json"]);
    assert_eq!((&written["outcome"], &written["n_packed"], &written["n_left"]), (&"written".into(), &14.into(), &1.into()));
    assert_eq!(written["bytes"].as_u64(), fs::metadata(folder.pack()).ok().map(|meta| meta.len()));
    assert_eq!(folder.names(), ["m.gguf", "m.gguf.lowkey-pack"], "nothing else is left");
    let first = fs::read(folder.pack()).expect("the pack");
    assert_eq!(first, folder.packed(), "the library writes the same");
    assert_eq!(outcome(&["pack", "m.gguf", "--json"])["outcome"], "present");
    assert_eq!(outcome(&["pack", "m.gguf", "--json", "--force"])["outcome"], "written");
    assert_eq!(outcome(&["pack", "m.gguf", "--json", "--verify"])["outcome"], "verified");

    // Touched: left aside with one line, until verified.
    let touched = fs::File::options().append(true).open(folder.model()).expect("the model");
    touched.set_modified(SystemTime::now() - Duration::from_secs(1000)).expect("a time");
    assert_eq!(folder.open().err(), Some(Unusable::OtherTime));
    let plan = folder.run(&["plan", "-m", "m.gguf", "--kernels", "scalar", "--kv-budget", "256KiB"]);
    let (said, planned) = (String::from_utf8_lossy(&plan.stderr), String::from_utf8_lossy(&plan.stdout));
    assert!(said.lines().count() == 1 && said.contains("--verify") && !planned.contains("packed weights"), "{said}{planned}");
    assert_eq!(outcome(&["pack", "m.gguf", "--json", "--verify"])["outcome"], "verified");
    let plan = folder.run(&["plan", "-m", "m.gguf", "--kernels", "scalar", "--kv-budget", "256KiB"]);
    assert!(plan.stderr.is_empty() && String::from_utf8_lossy(&plan.stdout).contains("packed weights"));

    // Another byte in the pack's tensors, then in the model's.
    let mut bytes = fs::read(folder.pack()).expect("the pack");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(folder.pack(), bytes).expect("a file");
    let out = folder.run(&["pack", "--verify", "m.gguf"]);
    assert!(out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("is not the model's"));
    folder.packed();
    let mut bytes = fs::read(folder.model()).expect("the model");
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    fs::write(folder.model(), bytes).expect("a file");
    let out = folder.run(&["pack", "--verify", "m.gguf"]);
    assert!(out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("another model"));
}

#[test]
fn a_run_makes_the_pack_that_its_kernels_read_where_it_can() {
    let folder = Folder::new("auto");
    let run = |more: &[&str]| {
        let args = ["run", "-m", "m.gguf", "-p", "a", "-n", "2", "--temp", "0", "--ignore-eos", "--kv-budget", "256KiB"];
        let out = folder.run(&[&args[..], more].concat());
        assert!(out.status.success(), "{more:?}: {}", String::from_utf8_lossy(&out.stderr));
        (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (text, _) = run(&["--kernels", "scalar"]);
    assert_eq!(folder.names(), ["m.gguf"], "nobody asked");
    let (packed, said) = run(&["--kernels", "scalar", "--pack", "auto"]);
    assert!(packed == text && !said.contains("pack"), "{said}");
    assert!(folder.open().is_ok());
    let plan = folder.run(&["plan", "-m", "m.gguf", "--kernels", "scalar", "--kv-budget", "256KiB"]);
    assert!(String::from_utf8_lossy(&plan.stdout).contains("packed weights"));

    // One that does not fit is made again; what is no pack is not touched, nor is what cannot be written. A plan writes nothing.
    fs::write(folder.pack(), &folder.packed()[..100]).expect("a file");
    let plan = ["plan", "run", "-m", "m.gguf", "--kernels", "scalar", "--kv-budget", "256KiB", "--pack", "auto"];
    assert!(folder.run(&plan).status.success() && folder.open().is_err());
    assert_eq!(run(&["--kernels", "scalar", "--pack", "auto"]).0, text);
    assert!(folder.open().is_ok());
    fs::write(folder.pack(), "a diary").expect("a file");
    let (plain, said) = run(&["--kernels", "scalar", "--pack", "auto"]);
    assert!(plain == text && said.contains("--pack auto: running without a pack: ") && said.contains("is no pack"), "{said}");
    assert_eq!(fs::read(folder.pack()).expect("the file"), b"a diary");
    fs::remove_file(folder.pack()).expect("the file");

    // A set that reads none says so; where one that does is the default, a line says what a pack would give, unless it is declined.
    for set in Kernels::available().filter(|set| !set.reads_packed()) {
        let (plain, said) = run(&["--kernels", set.name(), "--pack", "auto"]);
        assert!(plain == text && said.contains("so no pack is written") && folder.names() == ["m.gguf"], "{said}");
    }
    let hints = Kernels::choose("auto").is_ok_and(|kernels| kernels.reads_packed() && kernels.name() != "scalar");
    assert_eq!(run(&[]).1.contains("a pack would save"), hints);
    assert!(!run(&["--pack", "use"]).1.contains("a pack would save"));
}
