//! Split models, `NAME-00001-of-00003.gguf` …: any part opens the whole and computes what the unsplit file does, bit for
//! bit; a part that is missing, repeated, renamed, cut or of another model is refused by its name.

use std::fs;
use std::path::PathBuf;

use lowkey::gguf::GgufFile;
use lowkey::model::forward::Model;
use lowkey::model::pack::{Contents, Pack, Unusable};
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::gguf_writer::{self as w, GgufWriter};
use lowkey_test_kit::{golden, ids, lowkey, params, session};

const N: usize = 4;

/// A folder with a model in one piece and in four, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("lowkey-split-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let folder = Folder(folder);
        fs::write(folder.0.join("whole.gguf"), whole().build()).expect("a file");
        whole().split(N).iter().enumerate().for_each(|(no, part)| folder.write(no, part));
        folder
    }

    fn part(&self, no: usize) -> PathBuf {
        self.0.join(format!("m-{:05}-of-{N:05}.gguf", no + 1))
    }

    fn write(&self, no: usize, part: &GgufWriter) {
        fs::write(self.part(no), part.build()).expect("a file");
    }

    /// What opening part `by` says, one line that names part `blamed`.
    fn refused(&self, by: usize, blamed: usize, says: &str) {
        let line = GgufFile::open(&self.part(by)).expect_err(says).to_string();
        let name = self.part(blamed).file_name().expect("a name").to_string_lossy().into_owned();
        assert!(line.split(": ").next().expect("a path").ends_with(&name), "not of {name}: {line}");
        assert!(line.contains(says) && !line.contains('\n') && line.matches(": ").count() >= 2, "'{says}' is not in: {line}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn whole() -> GgufWriter {
    let name = "qwen2-q8";
    family_model(name, &golden("families.json")["models"][name])
}

fn value(part: &mut GgufWriter, key: &str, value: u16) {
    let key = part.keys.iter_mut().find(|k| k.0 == key).expect("a key");
    (key.1, key.2) = (w::U16, value.to_le_bytes().to_vec());
}

#[test]
fn any_part_opens_the_whole_and_gives_its_bits() {
    let folder = Folder::new("bits");
    let tokens = ids(&golden("families.json")["ids"]);
    let logits = |path: PathBuf| {
        let mut session = session(&path, &params(1 << 20));
        let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped");
        logits.iter().map(|l| l.to_bits()).collect::<Vec<_>>()
    };
    let want = logits(folder.0.join("whole.gguf"));
    for no in 0..N {
        assert!(logits(folder.part(no)) == want, "opened by part {}", no + 1);
    }
    let file = GgufFile::open(&folder.part(2)).expect("a split model");
    assert_eq!((file.path(), file.paths().count()), (folder.part(0).as_path(), N));
    let bytes = |no| fs::metadata(folder.part(no)).expect("a file").len();
    assert_eq!(file.file_bytes(), (0..N).map(bytes).sum::<u64>());
    assert_eq!(file.tensors().len(), whole().tensors.len());
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() {
    let folder = Folder::new("refused");
    let parts = whole().split(N);
    let restore = |no: usize| folder.write(no, &parts[no]);
    for by in [0, 3] {
        fs::remove_file(folder.part(1)).expect("a file");
        folder.refused(by, 1, "part 2 of 4 of a split model is missing: put it beside");
        fs::copy(folder.part(2), folder.part(1)).expect("a copy");
        folder.refused(by, 1, "by its name this is part 2 of 4, and the file says that it is part 3");
        fs::copy(folder.0.join("whole.gguf"), folder.part(1)).expect("a copy");
        folder.refused(by, 1, "and the file is no part of a split model");
        folder.write(1, &whole().split(3)[1]);
        folder.refused(by, 1, "and the file is of another model, of 3 parts");
        let bytes = parts[1].build();
        fs::write(folder.part(1), &bytes[..bytes.len() - 1]).expect("a file");
        folder.refused(by, 1, "the download is incomplete");
        // A tensor of the next part, in the place of its own.
        let mut twice = parts[1].clone();
        twice.tensors[0] = parts[2].tensors[0].clone();
        folder.write(1, &twice);
        folder.refused(by, 2, "is there twice");
        let mut fewer = parts[1].clone();
        fewer.tensors.pop();
        folder.write(1, &fewer);
        folder.refused(by, 0, "split.tensors.count asks for");
        let mut other = parts[1].clone();
        other.str("general.architecture", "llama");
        folder.write(1, &other);
        folder.refused(by, 1, "metadata key general.architecture is another than in the first part");
        let mut same = parts[1].clone();
        same.str("general.architecture", "qwen2");
        folder.write(1, &same);
        assert!(GgufFile::open(&folder.part(by)).is_ok(), "the same key with the same value is no contradiction");
        restore(1);
    }
    let mut beyond = parts[0].clone();
    value(&mut beyond, "split.no", 4);
    folder.write(0, &beyond);
    folder.refused(0, 0, "split.no is 4, of 4 parts");
    let mut nameless = parts[0].clone();
    nameless.keys.retain(|key| key.0 != "split.no");
    folder.write(0, &nameless);
    folder.refused(0, 0, "split.no or split.tensors.count is missing");
    restore(0);
    let renamed = folder.0.join("model.gguf");
    fs::copy(folder.part(0), &renamed).expect("a copy");
    let line = GgufFile::open(&renamed).expect_err("a name without a number").to_string();
    assert!(line.contains("its name does not end in -00001-of-00004.gguf"), "{line}");
    // One part of one is a whole file, whatever its name.
    let mut alone = whole();
    alone.raw("split.no", w::U16, vec![0, 0]).raw("split.count", w::U16, vec![1, 0]);
    fs::write(&renamed, alone.build()).expect("a file");
    assert!(GgufFile::open(&renamed).is_ok());
}

/// No byte of a part, changed, makes another part's bytes be read past their end: opening refuses, or loading runs.
#[test]
fn flipped_bytes_of_a_part_are_refused_or_run() {
    let folder = Folder::new("flips");
    let parts = whole().split(N);
    let bytes = parts[1].build();
    let head = parts[1].head().len();
    let (mut opened, mut refused) = (0, 0);
    for at in 0..head {
        for flip in [1u8, 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            fs::write(folder.part(1), bytes).expect("a file");
            match GgufFile::open(&folder.part(0)).and_then(Model::load) {
                Ok(model) => {
                    model.file.tensors().iter().for_each(|t| assert_eq!(model.file.data(t).len() as u64, t.n_bytes));
                    opened += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().contains('\n'));
                    refused += 1;
                }
            }
        }
    }
    assert!(opened > 0 && refused > head, "both fates occur: {opened} opened, {refused} refused");
}

#[test]
fn a_pack_is_of_all_parts() {
    let folder = Folder::new("pack");
    let model = Model::load_without_pack(GgufFile::open(&folder.part(1)).expect("a split model")).expect("a model");
    let path = Pack::path_of(model.file.path());
    assert!(path.ends_with("m-00001-of-00004.gguf.lowkey-pack"));
    let mut bytes = Vec::new();
    assert!(
        Contents::of(&model.file, model.weights.matrices().map(|t| t.index()))
            .write(&model.file, &mut bytes, &mut || true)
            .expect("a vector takes all")
    );
    fs::write(&path, bytes).expect("a file");
    let open = || {
        let file = GgufFile::open(&folder.part(3)).expect("a split model");
        Pack::open(&path, &file).expect("it is there").and_then(|pack| pack.in_time(&file))
    };
    let pack = open().unwrap_or_else(|why| panic!("{}", why.message()));
    assert!(matches!(pack.verify(&model.file, &mut || true), Some(Ok(()))));
    let touched = fs::File::options().write(true).open(folder.part(2)).expect("a part");
    touched.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("a time");
    assert_eq!(open().err(), Some(Unusable::OtherTime));
}

#[test]
fn the_command_line_takes_any_part() {
    let folder = Folder::new("cli");
    let plan = |name: PathBuf| {
        let out = lowkey!().args(["plan", "--json", "-m"]).arg(name).output().expect("it runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).expect("JSON")
    };
    let (whole, split) = (plan(folder.0.join("whole.gguf")), plan(folder.part(3)));
    assert_eq!(whole["kv"], split["kv"]);
    fs::remove_file(folder.part(0)).expect("a file");
    let out = lowkey!().args(["info"]).arg(folder.part(1)).output().expect("it runs");
    let line = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && line.contains("part 1 of 4 of a split model is missing"), "{line}");
}
