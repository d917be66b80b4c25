//! Ids against llama.cpp's on the vocabularies that its source package carries (tests/golden/vocabs.json, by vocabs.py), and
//! on one small vocabulary under the name of every rule for cutting words (bpe.json, by bpe.py).
//!
//! The large files are not in the repository: `make peer-files` fetches them and runs the first test.

use std::path::PathBuf;

use lowkey::gguf::GgufFile;
use lowkey::text::Tokenizer;
use lowkey_test_kit::gguf_writer::GgufWriter;
use lowkey_test_kit::{data, golden, ids};
use serde_json::Value;

/// Files that this engine refuses, and what its message must name.
const REFUSED: [(&str, &str); 4] = [
    ("ggml-vocab-aquila.gguf", "tokenizer.ggml.pre is missing"),
    ("ggml-vocab-bert-bge.gguf", "tokenizer.ggml.model is 'bert'"),
    ("ggml-vocab-gpt-neox.gguf", "tokenizer.ggml.pre is missing"),
    ("ggml-vocab-nomic-bert-moe.gguf", "tokenizer.ggml.model is 't5'"),
];

const N_RANDOM: usize = 1000;
const GROUP: usize = 50;

fn fnv1a(bytes: impl IntoIterator<Item = u8>, state: u64) -> u64 {
    bytes.into_iter().fold(state, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// Over the ids, and an end that is no id.
fn hash_of(ids: &[u32], state: u64) -> u64 {
    fnv1a(ids.iter().chain([&u32::MAX]).flat_map(|id| id.to_le_bytes()), state)
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("an array").iter().map(|v| v.as_str().expect("a string")).collect()
}

/// Knuth's 64-bit generator, as in vocabs.py.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// What differs on one file, if anything.
fn differences(name: &str, file: &GgufFile, row: &Value, parts: &[&str], nasty: &[&str]) -> Vec<String> {
    let tokenizer = Tokenizer::from_gguf(file).expect("a tokenizer");
    let ids_of = |text: &str, special: bool| tokenizer.encode(text, special, false).expect("ids");
    let mut wrong = Vec::new();
    if tokenizer.eog_ids() != ids(&row["eog"]) {
        wrong.push(format!("{name}: {:?} end a generation, not {}", tokenizer.eog_ids(), row["eog"]));
    }
    let with_added = tokenizer.encode("a", false, true).expect("ids");
    let plain = ids_of("a", false);
    let adds = [with_added[0] != plain[0], with_added.last() != plain.last()];
    if row["adds"].as_array().expect("two").iter().zip(adds).any(|(want, got)| want.as_bool() != Some(got)) {
        wrong.push(format!("{name}: adds {adds:?} and not {}", row["adds"]));
    }
    for (special, hashes) in [true, false].into_iter().zip(strings(&row["nasty"])) {
        for (i, text) in nasty.iter().enumerate() {
            let (got, want) = (hash_of(&ids_of(text, special), EMPTY) & 0xffff, &hashes[4 * i..4 * i + 4]);
            if format!("{got:04x}") != want {
                wrong.push(format!("{name}: {text:?}, special {special}: {:?}", ids_of(text, special)));
            }
        }
    }
    let mut dice = Dice(fnv1a(name.bytes(), EMPTY));
    let texts: Vec<String> = (0..N_RANDOM)
        .map(|_| {
            let n = 1 + dice.below(14);
            (0..n).map(|_| parts[dice.below(parts.len())]).collect()
        })
        .collect();
    for (group, want) in texts.chunks(GROUP).zip(strings(&row["random"])) {
        let hash = group.iter().enumerate().fold(EMPTY, |h, (i, text)| hash_of(&ids_of(text, i % 2 == 0), h));
        if format!("{hash:016x}") != want {
            wrong.push(format!("{name}: among the random texts from {:?} on", group[0]));
        }
    }
    wrong
}

#[test]
#[ignore = "`make peer-files`, a stage of .ci/run, fetches what it needs and runs it"]
fn ids_are_those_of_llama_cpp_on_its_own_vocabularies() {
    let folder = std::env::var_os("LOWKEY_PEER_FILES").map_or_else(|| data("../../models/peer"), PathBuf::from);
    let golden = golden("vocabs.json");
    let nasty: Value = serde_json::from_str(&std::fs::read_to_string(data("nasty.json")).expect("texts")).expect("JSON");
    let (parts, nasty) = (strings(&golden["parts"]), strings(&nasty));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, row) in golden["files"].as_object().expect("files") {
        let path = folder.join(name);
        let file = GgufFile::open(&path).unwrap_or_else(|e| panic!("{e}: run `make peer-files`"));
        if let Some((_, word)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            let message = Tokenizer::from_gguf(&file).err().expect(name).to_string();
            assert!(message.contains(word), "{name}: {message}");
            continue;
        }
        seen += 1;
        let off = differences(name, &file, row, &parts, &nasty);
        println!("{name}: {} texts, {} differences", 2 * nasty.len() + N_RANDOM, off.len());
        wrong.extend(off);
    }
    assert_eq!(seen + REFUSED.len(), golden["files"].as_object().expect("files").len());
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_rule_for_cutting_words_gives_the_ids_of_llama_cpp() {
    let golden = golden("bpe.json");
    let (tokens, texts) = (strings(&golden["tokens"]), strings(&golden["strings"]));
    let bos = golden["bos"].as_u64().expect("an id") as u32;
    let kinds: Vec<i32> = (0..tokens.len() as u32).map(|id| if id == bos || id == bos + 1 { 3 } else { 1 }).collect();
    let mut n_names = 0;
    for rule in golden["rules"].as_array().expect("rules") {
        for name in strings(&rule["names"]) {
            let mut writer = GgufWriter::new();
            writer
                .str("tokenizer.ggml.model", "gpt2")
                .str("tokenizer.ggml.pre", name)
                .strs("tokenizer.ggml.tokens", &tokens)
                .i32s("tokenizer.ggml.token_type", &kinds)
                .strs("tokenizer.ggml.merges", &strings(&golden["merges"]))
                .u32("tokenizer.ggml.bos_token_id", bos)
                .u32("tokenizer.ggml.eos_token_id", bos + 1);
            let path = std::env::temp_dir().join(format!("lowkey-vocabs-{}.gguf", std::process::id()));
            std::fs::write(&path, writer.build()).expect("a temporary file");
            let tokenizer = Tokenizer::from_gguf(&GgufFile::open(&path).expect("a file")).expect(name);
            std::fs::remove_file(&path).expect("the temporary file");
            assert_eq!(tokenizer.eog_ids(), ids(&rule["eog"]), "{name}");
            let adds_bos = tokenizer.encode("", false, true).expect("ids") == [bos];
            assert_eq!(Some(adds_bos), rule["adds_bos"].as_bool(), "{name}");
            let hashes = rule["ids"].as_str().expect("hashes");
            for (i, text) in texts.iter().enumerate() {
                let got = tokenizer.encode(text, i % 2 == 0, false).expect("ids");
                let hash = format!("{:04x}", hash_of(&got, EMPTY) & 0xffff);
                assert_eq!(hash, hashes[4 * i..4 * i + 4], "{name}: {text:?}: {got:?}");
            }
            n_names += 1;
        }
    }
    assert!(n_names > 40);
}

/// The special tokens of gpt-oss: what ends an answer and what is shown of it, as llama.cpp (llama-cpp-python 0.3.36) has it of this
/// vocabulary; but that a user's text holds none of them.
#[test]
fn a_message_of_gpt_oss_ends_where_it_does_in_llama_cpp() {
    let special = "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>";
    let tokens: Vec<&str> = ["a", "b", "c"].into_iter().chain(special.split(' ')).collect();
    let kinds: Vec<i32> = (0..tokens.len()).map(|id| if id < 3 { 1 } else { 3 }).collect();
    let mut writer = GgufWriter::new();
    writer
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "gpt-4o")
        .strs("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strs("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 3)
        .u32("tokenizer.ggml.eos_token_id", 5);
    let path = std::env::temp_dir().join(format!("lowkey-harmony-{}.gguf", std::process::id()));
    std::fs::write(&path, writer.build()).expect("a temporary file");
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(&path).expect("a file")).expect("a tokenizer");
    std::fs::remove_file(&path).expect("the temporary file");
    assert_eq!(tokenizer.eog_ids(), [4, 5, 11], "<|endoftext|>, <|return|> and <|call|>, not <|end|>");
    let frame = "<|start|>a<|channel|>b<|constrain|><|message|>c<|end|>";
    let got = tokenizer.encode(frame, true, false).expect("ids");
    assert_eq!(got, [8, 0, 7, 1, 6, 10, 2, 9]);
    assert_eq!(tokenizer.decode(&got), frame, "the frame of a message");
    assert_eq!(
        got.iter().flat_map(|id| tokenizer.token_bytes(*id, false)).copied().collect::<Vec<u8>>(),
        frame.as_bytes(),
        "and shown"
    );
    let said = tokenizer.encode("a<|start|>b<|end|>", false, false).expect("ids");
    assert!(said.iter().all(|id| *id < 3), "what a user writes is no frame: {said:?}");
}

/// A vocabulary of characters with merges, its byte tokens and runs of newlines; with texts longer than a window too.
#[test]
fn merges_of_characters_give_the_ids_of_llama_cpp() {
    let golden = golden("char_bpe.json");
    let tokens = golden["tokens"].as_array().expect("tokens");
    let texts: Vec<&str> = tokens.iter().map(|token| token[0].as_str().expect("a text")).collect();
    let kinds: Vec<i32> = tokens.iter().map(|token| token[1].as_i64().expect("a kind") as i32).collect();
    let mut writer = GgufWriter::new();
    writer
        .str("tokenizer.ggml.model", "gemma4")
        .strs("tokenizer.ggml.tokens", &texts)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strs("tokenizer.ggml.merges", &strings(&golden["merges"]))
        .u32("tokenizer.ggml.bos_token_id", 2)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", false);
    let path = std::env::temp_dir().join(format!("lowkey-chars-{}.gguf", std::process::id()));
    std::fs::write(&path, writer.build()).expect("a temporary file");
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(&path).expect("a file")).expect("a tokenizer");
    std::fs::remove_file(&path).expect("the temporary file");
    assert_eq!(tokenizer.eog_ids(), ids(&golden["eog"]));
    let added = tokenizer.encode("a", false, true).expect("ids");
    assert_eq!(Some(added[0] == 2), golden["adds_bos"].as_bool());
    for (special, key) in [(true, "parse_special"), (false, "no_special")] {
        for (text, want) in strings(&golden["strings"]).into_iter().zip(golden[key].as_array().expect("rows")) {
            let got = tokenizer.encode(text, special, false).expect("ids");
            assert_eq!(got, ids(want), "{text:?}, special {special}");
            // What is no token and no byte token is lost; of other texts all comes back.
            if special && !text.as_bytes().contains(&0xb7) && !text.contains('\u{2581}') {
                assert_eq!(tokenizer.decode(&got), text);
            }
        }
    }
    // A long text is merged window by window: as its sentences are, where no merge crosses a line.
    let lines: Vec<String> =
        (0..200).map(|i| format!("the {i} words that a text is made of and of which it has many\n")).collect();
    let apart: Vec<u32> = lines.iter().flat_map(|line| tokenizer.encode(line, false, false).expect("ids")).collect();
    assert_eq!(tokenizer.encode(&lines.concat(), false, false).expect("ids"), apart);
    let spaced = "of the tale and so on ".repeat(400);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&spaced, false, false).expect("ids")), spaced);
}
