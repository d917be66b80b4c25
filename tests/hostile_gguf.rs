//! Hostile and damaged GGUF files: each is refused with one line that names what is wrong, and none makes the reader
//! panic, overflow or allocate what the file has no bytes for.
//!
//! Files are built in memory by the writer beside this test; only the few cases about the file system touch the disk.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lowkey::gguf::{GgmlType, GgufError, GgufFile, Value, parse};
use lowkey_test_kit::gguf_writer::{self as w, GgufWriter, array, string};

/// One of each kind of value, four tensors, everything right.
fn small() -> GgufWriter {
    let mut file = GgufWriter::new();
    file.str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.rope.freq_base", 10000.0)
        .bool("tokenizer.ggml.add_bos_token", true)
        .raw("test.u8", w::U8, vec![7])
        .raw("test.u64", w::U64, (1_u64 << 40).to_le_bytes().to_vec())
        .strs("tokenizer.ggml.tokens", &["<s>", "a", "", "é\u{10348}"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, -1, 6])
        .f32s("tokenizer.ggml.scores", &[0.0, -1.5])
        .raw("test.bools", w::ARRAY, array(w::BOOL, 2, &[0, 1]))
        .raw("test.nested", w::ARRAY, array(w::ARRAY, 1, &array(w::STRING, 1, &string(b"in"))))
        .tensor_f32("norm.weight", &[5], &[1.0, 2.0, 3.0, 4.0, 5.0])
        .tensor("embd.weight", &[64, 2], GgmlType::Q8_0.id(), (0..136).collect())
        .tensor("ffn.weight", &[32, 2, 1, 2], GgmlType::Q4_0.id(), vec![0x11; 72])
        .tensor("last.weight", &[2, 2], GgmlType::F16.id(), vec![0x3c; 8]);
    file
}

/// A file on the disk until the test ends.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("lowkey-test-{}-{name}", std::process::id()));
        fs::write(&path, bytes).expect("write a temporary file");
        TempFile(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn open(name: &str, file: &GgufWriter) -> (TempFile, GgufFile) {
    let temp = TempFile::new(name, &file.build());
    let opened = GgufFile::open(&temp.0).expect("a valid file");
    (temp, opened)
}

/// The error of a file that must not parse, checked to be one line of bearable length.
fn refusal(bytes: &[u8]) -> (GgufError, String) {
    let error = parse(bytes).expect_err("this file must be refused");
    let line = error.to_string();
    assert!(!line.contains(['\n', '\r', '\u{1b}']) && line.len() < 400, "not one short line: {line}");
    assert!(line.contains(": "), "says what to do: {line}");
    (error, line)
}

/// Changes the valid file, and expects every one of `names` in the message.
fn refused(names: &[&str], change: impl FnOnce(&mut GgufWriter)) -> GgufError {
    let mut file = small();
    change(&mut file);
    let (error, line) = refusal(&file.build());
    for name in names {
        assert!(line.contains(name), "'{name}' is not in: {line}");
    }
    error
}

/// Reads all that a file offers.
fn walk(bytes: &[u8]) -> Result<usize, GgufError> {
    let index = parse(bytes)?;
    let mut seen = 0;
    for (key, value) in index.metadata(bytes) {
        seen += key.len();
        let _ = (value.to_u32(key), value.to_f32(key), value.to_bool(key), value.to_str(key));
        if let Ok(strings) = value.to_strings(key) {
            assert!(strings.iter().map(str::len).eq(strings.lengths()), "{key}: each string is as long as it is said to be");
            seen += strings.lengths().sum::<usize>();
        }
        seen += value.to_i32s(key).map_or(0, |ints| ints.map(|v| v as usize & 1).sum());
        seen += value.to_f32s(key).map_or(0, |floats| floats.count());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len(), "{key}: an array iterates over all that it says it has");
            for inner in array.iter() {
                seen += if let Value::Array(inner) = inner { inner.iter().count() } else { 1 };
            }
        }
        assert_eq!(index.get(bytes, key).map(|found| found.type_name()), Some(value.type_name()), "{key}");
    }
    for tensor in index.tensors() {
        let data = &bytes[tensor.offset as usize..][..tensor.n_bytes as usize];
        assert_eq!(data.len(), tensor.row_bytes() * tensor.n_rows(), "{}", tensor.name);
        assert_eq!(tensor.n_elems() % tensor.ty.block_elems(), 0);
        assert!(std::ptr::eq(index.tensor(&tensor.name).expect("found by its name"), tensor));
        seen += data.first().map_or(0, |&byte| byte.into());
    }
    Ok(seen)
}

#[test]
fn the_valid_file_reads_back() {
    for version in [2, 3] {
        let (_temp, file) = open(&format!("valid-{version}"), &GgufWriter { version, ..small() });
        assert_eq!((file.version(), file.alignment(), file.file_bytes()), (version, 32, small().build().len() as u64));
        let names: Vec<&str> = file.metadata().map(|(key, _)| key).collect();
        assert_eq!(names, small().keys.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>());
        assert_eq!(file.str("general.architecture").unwrap(), "llama");
        assert_eq!(file.u32("llama.block_count").unwrap(), 2);
        assert_eq!(file.f32("llama.rope.freq_base").unwrap(), 10000.0);
        assert!(file.bool("tokenizer.ggml.add_bos_token").unwrap());
        let tokens = file.strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!((tokens.len(), tokens.iter().collect::<Vec<_>>()), (4, vec!["<s>", "a", "", "é\u{10348}"]));
        assert_eq!(tokens.lengths().collect::<Vec<_>>(), [3, 1, 0, 6]);
        assert_eq!(file.i32s("tokenizer.ggml.token_type").unwrap().collect::<Vec<_>>(), [3, 1, -1, 6]);
        assert_eq!(file.f32s("tokenizer.ggml.scores").unwrap().collect::<Vec<_>>(), [0.0, -1.5]);
        assert_eq!(file.get("test.nested").unwrap().type_name(), "array of array");

        assert_eq!(
            file.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
            ["norm.weight", "embd.weight", "ffn.weight", "last.weight"]
        );
        for (info, written) in file.tensors().iter().zip(small().tensors) {
            assert_eq!(
                (info.offset % 32, file.data(info), info.shape()),
                (0, &written.data[..], &written.dims[..]),
                "{}",
                info.name
            );
        }
        let ffn = file.tensor("ffn.weight").expect("ffn.weight");
        assert_eq!(
            (ffn.ty, ffn.dims, ffn.n_dims, ffn.row_len(), ffn.n_rows(), ffn.row_bytes()),
            (GgmlType::Q4_0, [32, 2, 1, 2], 4, 32, 4, 18)
        );
        assert_eq!(file.data(ffn).as_ptr() as usize % 8, 0);
        assert!(file.tensor("ffn").is_none() && file.get("zzz").is_none());
    }
}

#[test]
fn cut_anywhere_it_is_refused() {
    let bytes = small().build();
    assert!(walk(&bytes).is_ok());
    for len in 0..bytes.len() {
        refusal(&bytes[..len]);
    }
    // Where the cut can be named, it is.
    assert_eq!(
        refusal(&bytes[..bytes.len() - 1]).1,
        format!(
            "tensor last.weight ends at byte {}, file has {}: the download is incomplete; fetch it again",
            bytes.len(),
            bytes.len() - 1
        )
    );
    let at = bytes.windows(6).position(|at| at == b"scores").expect("a key");
    let line = refusal(&bytes[..at + 3]).1;
    assert!(line.contains("metadata entry 8 needs 21 bytes") && line.contains("incomplete"), "{line}");
}

#[test]
fn any_byte_of_the_head_may_be_wrong() {
    let (bytes, head) = (small().build(), small().head().len());
    let (mut refused, mut read) = (0, 0);
    for at in 0..head {
        for change in [0x01, 0x80, 0xff, 0x40, 0x10, bytes[at], !bytes[at]] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            match walk(&bytes) {
                Ok(_) => read += 1,
                Err(_) => drop(refusal(&bytes)),
            }
            refused += usize::from(parse(&bytes).is_err());
        }
    }
    // A changed letter in a name or digit in a value makes another valid file; the rest must not pass.
    assert!(refused > 2500 && read > 1000, "{refused} refused, {read} read");
}

#[test]
fn random_damage_never_panics() {
    let mut rng = fastrand::Rng::with_seed(0x6c6f776b6579);
    let (whole, head) = (small().build(), small().head().len());
    let began = Instant::now();
    for case in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..rng.usize(1..=6) {
            let at = rng.usize(..head);
            match rng.u8(..6) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes[at] ^= 1 << rng.u8(..8),
                // Integers at the edges, over whatever stands there.
                2 => {
                    let edge = [0, 1, u64::MAX, i64::MAX as u64, u32::MAX.into(), 1 << 32, 1 << 63][rng.usize(..7)];
                    let n = bytes.len().min(at + 8) - at;
                    bytes[at..at + n].copy_from_slice(&edge.to_le_bytes()[..n]);
                }
                3 => drop(bytes.drain(at..(at + rng.usize(..24)).min(head))),
                4 => {
                    let from = rng.usize(..head);
                    let piece = bytes[from.min(bytes.len())..(from + rng.usize(..32)).min(bytes.len())].to_vec();
                    bytes.splice(at.min(bytes.len())..at.min(bytes.len()), piece);
                }
                _ => bytes.truncate(rng.usize(head / 2..=whole.len())),
            }
            bytes.resize(bytes.len().max(head), 0);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| walk(&bytes).map_err(|error| error.to_string())));
        assert!(outcome.is_ok(), "case {case} panicked on {}", bytes.escape_ascii());
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn what_is_not_gguf_is_named() {
    let tar = [&[b'x'; 257][..], b"ustar"].concat();
    let index = "{\"metadata\": {}, \"weight_map\": {\"a\": \"b.safetensors\"}}";
    for (start, names) in [
        (&b"lmgg"[..], ["older than GGUF", "convert"]),
        (b"tjgg\x03\0\0\0", ["older than GGUF", "convert"]),
        (b"algg", ["LoRA adapter", "merge"]),
        (b"PK\x03\x04\x14\0\0\0weights.txt", ["a zip archive", "unpack"]),
        (b"PK\x03\x04\0\0\x08\x08\0\0model/data.pkl", ["PyTorch checkpoint", "convert"]),
        (b"\x80\x02\x8a\nl\xfc", ["pickle", "convert"]),
        (b"\x1f\x8b\x08", ["gzip", "unpack"]),
        (b"\xfd7zXZ\0", ["compressed with xz", "unpack"]),
        (b"\x28\xb5\x2f\xfd", ["zstd", "unpack"]),
        (b"7z\xbc\xaf\x27\x1c", ["7-Zip", "unpack"]),
        (&tar, ["tar archive", "unpack"]),
        (b"\x40\x01\0\0\0\0\0\0{\"__metadata__\":", ["safetensors", "convert"]),
        (b"<!DOCTYPE html>", ["web page", "fetch"]),
        (b"\n  <html lang=en>", ["web page", "fetch"]),
        (b"<?xml version=\"1.0\"?><Error>", ["refusal", "fetch"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["LFS pointer", "git lfs pull"]),
        (b"{\"error\":\"Repository not found\"}", ["refusal", "fetch"]),
        (b"{\n  \"architectures\": [", ["JSON", ".gguf"]),
        (index.as_bytes(), ["index of safetensors", "convert"]),
        (b"\xd2\0\0\0\x16\0\0\0blk.0.attn_q.weight", ["importance matrix", "model"]),
        (b"LOWKEYPK", ["pack", "named after"]),
        (b"Invalid username or password.", ["text file", ".gguf"]),
        (&[0; 600], ["zeros", "fetch it again"]),
        (b"\x1b[2J\xff", ["\\x1b", ".gguf"]),
    ] {
        let (_, line) = refusal(start);
        assert!(line.starts_with("not a GGUF file but ") && names.iter().all(|name| line.contains(name)), "{names:?}: {line}");
        let temp = TempFile::new("foreign", start);
        assert!(GgufFile::open(&temp.0).is_err_and(|e| e.to_string().ends_with(&line)), "from the disk");
    }
    assert_eq!(refused(&["big-endian", "little-endian"], |file| file.magic = *b"FUGG"), GgufError::BigEndian);
    assert_eq!(refused(&["big-endian"], |file| file.version = 3_u32.swap_bytes()), GgufError::BigEndian);
    refused(&["version 1", "convert"], |file| file.version = 1);
    refused(&["version 4", "byte 4"], |file| file.version = 4);
    refused(&["version 0"], |file| file.version = 0);
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    for count in [5, 1000, 1 << 32, 1 << 62, u64::MAX] {
        refused(&[], |file| file.n_tensors = Some(count));
    }
    for count in [1 << 20, 1 << 62, u64::MAX] {
        refused(&["number of tensors", &count.to_string(), "room"], |file| file.n_tensors = Some(count));
        refused(&["number of metadata keys", &count.to_string(), "room"], |file| file.n_keys = Some(count));
        for elem in [w::U8, w::STRING, w::ARRAY, w::BOOL, w::U64] {
            refused(&["array length", "test.bools", "room"], |file| file.keys[9].2 = array(elem, count, &[0, 1]));
        }
        refused(&["metadata key general.architecture"], |file| file.keys[0].2 = [&count.to_le_bytes()[..], b"llama"].concat());
    }
    // A key or a tensor whose name claims to be longer than the format allows.
    let mut bytes = small().build();
    bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(refusal(&bytes).0, GgufError::NameLength { at: 24, found: u64::MAX, .. }));
    refused(&["tensor entry 1", "65 bytes"], |file| file.tensors[1].name = "x".repeat(65));
    refused(&["tensor entry 0", "0 bytes"], |file| file.tensors[0].name.clear());
}

#[test]
fn metadata_is_checked() {
    refused(&["test.u8", "twice"], |file| {
        file.raw("test.u8", w::U8, vec![1]);
    });
    refused(&["test.u8", "unknown value type 13"], |file| file.keys[4].1 = 13);
    refused(&["test.bools", "unknown value type 99"], |file| file.keys[9].2 = array(99, 2, &[0, 1]));
    refused(&["add_bos_token", "is 2", "0 or 1"], |file| file.keys[3].2 = vec![2]);
    refused(&["test.bools, element 1", "is 255"], |file| file.keys[9].2 = array(w::BOOL, 2, &[1, 255]));
    refused(&["general.architecture", "UTF-8"], |file| file.keys[0].2 = string(b"ll\xff"));
    refused(&["tokenizer.ggml.tokens, element 2", "UTF-8"], |file| {
        file.keys[6].2 = array(w::STRING, 3, &[string(b"a"), string(b""), string(b"\xc3")].concat());
    });
    // Arrays of one array each, then one byte.
    let nest = |levels: usize| [array(w::ARRAY, 1, &[]).repeat(levels), array(w::U8, 1, &[1])].concat();
    refused(&["test.nested", "deeper than 4"], |file| file.keys[10].2 = nest(4));
    refused(&["test.nested", "deeper than 4"], |file| file.keys[10].2 = nest(100_000));
    let mut deep = small();
    deep.keys[10].2 = nest(3);
    assert!(walk(&deep.build()).is_ok());
}

#[test]
fn tensors_are_checked() {
    refused(&["tensor embd.weight", "twice"], |file| file.tensors[0].name = "embd.weight".into());
    refused(&["tensor embd.weight", "unknown type 99"], |file| file.tensors[1].type_id = 99);
    refused(&["tensor embd.weight", "type 31 (Q4_0_4_4)", "as Q4_0"], |file| file.tensors[1].type_id = 31);
    refused(&["tensor ffn.weight", "0 dimensions"], |file| file.tensors[2].dims.clear());
    refused(&["tensor ffn.weight", "5 dimensions"], |file| file.tensors[2].dims = vec![32, 1, 1, 1, 1]);
    refused(&["tensor ffn.weight", "dimension 1 equal to 0"], |file| file.tensors[2].dims[1] = 0);
    refused(&["tensor ffn.weight", "rows of 33", "Q4_0", "blocks of 32"], |file| file.tensors[2].dims[0] = 33);
    for dims in [[1 << 32, 1 << 32, 1, 1], [32, u64::MAX, 2, 1], [1 << 63, 1, 1, 2]] {
        refused(&["tensor ffn.weight", "larger than any file"], |file| file.tensors[2].dims = dims.to_vec());
    }
    // As many bytes as a u64 can count, and past the end of any file.
    // More than 32 bits can count is so there, wherever the file ends.
    let too_many = if usize::BITS == 64 {
        ["tensor ffn.weight ends at byte", "incomplete"]
    } else {
        ["tensor ffn.weight", "larger than any file"]
    };
    refused(&too_many, |file| file.tensors[2].dims = vec![1 << 62]);
    refused(&["tensor last.weight ends at byte", "incomplete"], |file| file.tensors[3].offset = Some(u64::MAX - 31));
    refused(&["tensor last.weight ends at byte", "incomplete"], |file| file.tensors[3].offset = Some(1 << 20));
    // The start fits a u64, the end does not.
    let data_start = small().head().len().next_multiple_of(32) as u64;
    refused(&["tensor ffn.weight ends at byte", "incomplete"], |file| file.tensors[2].offset = Some(u64::MAX - 31 - data_start));
    refused(&["tensor last.weight", "offset 8", "multiple of 32"], |file| file.tensors[3].offset = Some(8));
    refused(&["tensor last.weight", "overlaps", "norm.weight"], |file| file.tensors[3].offset = Some(0));
    refused(&["tensor ffn.weight overlaps tensor embd.weight"], |file| file.tensors[2].offset = Some(32 + 128));
    for alignment in [0, 4, 33, u32::MAX] {
        refused(&["general.alignment", &alignment.to_string()], |file| {
            file.u32("general.alignment", alignment);
        });
    }
    refused(&["general.alignment", "type string", "u32"], |file| {
        file.str("general.alignment", "32");
    });
    refused(&["tensor embd.weight", "offset 32", "multiple of 64"], |file| {
        file.u32("general.alignment", 64);
    });
    let mut aligned = GgufWriter { alignment: 64, ..small() };
    aligned.u32("general.alignment", 64);
    assert!(walk(&aligned.build()).is_ok());
}

#[test]
fn typed_reads_name_the_key_and_both_types() {
    let (temp, file) = open("typed", &small());
    let line = |error: lowkey::Error| {
        let line = error.to_string();
        assert!(line.starts_with(&format!("{}: metadata key ", temp.0.display())), "{line}");
        line
    };
    let missing = line(file.u32("no.such").expect_err("missing"));
    assert!(missing.contains("no.such (u32) is missing"), "{missing}");
    assert_eq!(file.opt_u32("no.such").unwrap(), None);
    assert!(file.opt_strings("no.such").unwrap().is_none() && file.opt_i32s("no.such").unwrap().is_none());

    let wrong = |error: lowkey::Error, key: &str, found: &str, wanted: &str| {
        let line = line(error);
        assert!(line.contains(key) && line.contains(&format!("of type {found}, and {wanted} is wanted")), "{line}");
    };
    wrong(file.u32("general.architecture").expect_err("a string"), "general.architecture", "string", "u32");
    wrong(file.opt_f32("llama.block_count").expect_err("an integer"), "llama.block_count", "u32", "f32");
    wrong(file.bool("test.u8").expect_err("an integer"), "test.u8", "u8", "bool");
    wrong(file.str("tokenizer.ggml.tokens").expect_err("an array"), "tokens", "array of string", "string");
    wrong(file.strings("tokenizer.ggml.scores").expect_err("floats"), "scores", "array of f32", "array of string");
    wrong(file.i32s("tokenizer.ggml.scores").err().expect("floats"), "scores", "array of f32", "array of i32");
    wrong(file.f32s("llama.block_count").err().expect("a scalar"), "block_count", "u32", "array of f32");

    assert_eq!(file.u32("test.u8").unwrap(), 7, "narrow integers widen");
    let range = line(file.u32("test.u64").expect_err("too large"));
    assert!(range.contains("test.u64 is 1099511627776, which does not fit u32"), "{range}");
    let range = line(file.u32s("tokenizer.ggml.token_type").err().expect("a negative element"));
    assert!(range.contains("token_type, element 2, is -1, which does not fit u32"), "{range}");

    let tensor = file.tensor_shaped("embd.weight", &[64, 2]).expect("as written");
    assert_eq!(tensor.shape(), [64, 2]);
    assert!(file.tensor_shaped("norm.weight", &[5, 1]).is_ok());
    let shape = file.tensor_shaped("embd.weight", &[64, 3]).expect_err("another shape").to_string();
    assert!(shape.contains("tensor embd.weight has shape 64x2, and the metadata asks for 64x3"), "{shape}");
    let missing = file.tensor_shaped("output.weight", &[1]).expect_err("missing").to_string();
    assert!(missing.contains("tensor output.weight is missing"), "{missing}");
}

#[test]
fn what_cannot_be_mapped_is_named() {
    let told = |path: &std::path::Path| {
        let error = GgufFile::open(path).expect_err("cannot be opened");
        assert_eq!(error.exit_code(), 1);
        let line = error.to_string();
        assert!(line.starts_with(&path.display().to_string()) && !line.contains('\n'), "{line}");
        line
    };
    let empty = TempFile::new("empty", b"");
    assert!(told(&empty.0).contains("the file is empty"));
    assert!(told(&std::env::temp_dir()).contains("this is a directory"));
    assert!(told(&empty.0.with_extension("missing")).contains("no such file"));
    assert!(told(&empty.0.join("below")).contains("not a directory"));
    assert!(told(std::path::Path::new("/dev/null")).contains("not a regular file"));
    assert!(told(&TempFile::new("short", b"GGU").0).contains("the header needs 4 bytes from byte 0, file has 3"));
}

/// The real model, where there is one: its header, and one value from each kind of key.
#[test]
fn the_demo_model_opens() {
    let file = GgufFile::open(&lowkey_test_kit::demo_model()).expect("the demo model");
    assert_eq!((file.version(), file.tensors().len(), file.str("general.architecture").unwrap()), (3, 272, "llama"));
    let n_vocab = file.strings("tokenizer.ggml.tokens").unwrap().len();
    let embd = file.tensor_shaped("token_embd.weight", &[576, n_vocab as u64]).expect("token_embd.weight");
    assert_eq!((embd.ty, embd.row_bytes()), (GgmlType::Q8_0, 612));
    let mut row = vec![f32::NAN; embd.row_len()];
    lowkey::gguf::quant::dequantize_row(embd.ty, &file.data(embd)[..embd.row_bytes()], &mut row).expect("a row");
    assert!(row.iter().all(|x| x.is_finite() && x.abs() < 10.0) && row.iter().any(|&x| x != 0.0));
}

#[test]
fn messages_are_one_line_whatever_the_name() {
    let key = format!("a\nb\u{1b}[31m{}", "x".repeat(500));
    let shown = GgufError::DuplicateKey { key }.to_string();
    assert!(shown.starts_with("metadata key a\\nb\\u{1b}[31mxxx"), "{shown}");
    assert!(!shown.contains('\n') && shown.len() < 200, "{shown}");
}
