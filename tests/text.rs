//! Text to ids and back, and chat templates: on the demo model against ids that llama.cpp gives, and on small vocabularies written
//! here where each rule can be seen alone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use lowkey::gguf::GgufFile;
use lowkey::text::{ChatTemplate, Message, Piece, Tokenizer, Utf8Stream};
use lowkey_test_kit::families::spm_vocabulary;
use lowkey_test_kit::gguf_writer::GgufWriter;

fn demo_file() -> GgufFile {
    GgufFile::open(&lowkey_test_kit::demo_model()).expect("the demo model")
}

/// `of` over the file on the disk; the error as its one line.
fn with_file<T>(writer: &GgufWriter, of: impl FnOnce(&GgufFile) -> lowkey::Result<T>) -> Result<T, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("lowkey-text-{}-{}.gguf", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, writer.build()).expect("a temporary file");
    let result = GgufFile::open(&path).and_then(|file| of(&file)).map_err(|error| error.to_string());
    std::fs::remove_file(&path).expect("the temporary file");
    result
}

const CONTROL: i32 = 3;
const USER: i32 = 4;
const UNUSED: i32 = 5;
const NORMAL: i32 = 1;

/// Text, type; the place is the id.
const SMALL: [(&str, i32); 16] = [
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    ("a", NORMAL),
    ("b", NORMAL),
    ("c", NORMAL),
    ("Ġ", NORMAL),
    ("ab", NORMAL),
    ("Ġa", NORMAL),
    ("abc", NORMAL),
    ("cab", NORMAL),
    ("<u>", USER),
    ("a|b", USER),
    ("|bcc", USER),
    ("<pad>", UNUSED),
    ("Ã", NORMAL),
    ("<|im_end|>", NORMAL),
];

fn small(pre: &str) -> GgufWriter {
    small_of(pre, &SMALL, &["a b", "Ġ a", "ab c"])
}

fn small_of(pre: &str, tokens: &[(&str, i32)], merges: &[&str]) -> GgufWriter {
    let mut file = GgufWriter::new();
    let (texts, types): (Vec<&str>, Vec<i32>) = tokens.iter().copied().unzip();
    file.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strs("tokenizer.ggml.tokens", &texts)
        .i32s("tokenizer.ggml.token_type", &types)
        .strs("tokenizer.ggml.merges", merges)
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1);
    file
}

fn small_tokenizer(writer: &GgufWriter) -> Tokenizer {
    with_file(writer, Tokenizer::from_gguf).expect("a small vocabulary")
}

#[test]
fn merges_specials_and_bytes_on_a_small_vocabulary() {
    let tokenizer = small_tokenizer(&small("gpt-2"));
    let encode = |text, parse_special| tokenizer.encode(text, parse_special, false).unwrap();
    for (text, parse_special, want) in [
        ("", true, &[][..]),
        ("abc a", true, &[8, 7]),
        ("cab", true, &[4, 6]),
        ("a<s>b", true, &[2, 0, 3]),
        // Read as text: no byte of `<s>` has a token.
        ("a<s>b", false, &[2, 3]),
        ("a<u>b", true, &[2, 10, 3]),
        ("a<u>b", false, &[2, 10, 3]),
        // The longer special token claims its text although the shorter one begins before it.
        ("a|bcc", true, &[2, 12]),
        ("a|bc", true, &[11, 4]),
        ("a|ba|b", true, &[11, 11]),
        // `z` has no token: it drops out, and `a` and `b` on its sides do not merge.
        ("azb", true, &[2, 3]),
        ("<pad>", true, &[2]),
        // Its first byte has a token, its second has none.
        ("é", true, &[14]),
    ] {
        assert_eq!(encode(text, parse_special), want, "{text:?}, special {parse_special}");
    }
    assert_eq!(tokenizer.n_vocab(), 16);
    for (id, plain, shown) in [
        (0, &b""[..], &b"<s>"[..]),
        (7, b" a", b" a"),
        (10, b"<u>", b"<u>"),
        (13, b"", b""),
        (14, b"\xc3", b"\xc3"),
        (15, b"", b"<|im_end|>"),
        (16, b"", b""),
        (u32::MAX, b"", b""),
    ] {
        assert_eq!(tokenizer.token_bytes(id, false), plain, "token {id}");
        assert_eq!(tokenizer.token_bytes(id, true), shown, "token {id}");
    }
    assert_eq!(tokenizer.decode(&[0, 8, 7, 14]), "<s>abc a\u{fffd}");
    // Ends by their role, and by their text whatever their type.
    assert_eq!(tokenizer.eog_ids(), [1, 15]);
    assert!(
        tokenizer.is_eog(15)
            && tokenizer.is_control(15)
            && !tokenizer.is_eog(0)
            && tokenizer.is_control(0)
            && !tokenizer.is_control(10)
    );
}

#[test]
fn control_tokens_are_matched_only_in_the_pieces_that_say_so() {
    let tokenizer = small_tokenizer(&small("gpt-2"));
    let marks = |text| Piece { text, parse_special: true };
    let says = |text| Piece { text, parse_special: false };
    for (pieces, want) in [
        (&[][..], &[][..]),
        (&[marks("<s>"), says("a<s>"), marks("b</s>")], &[0, 2, 3, 1]),
        // A token may lie in several pieces that are parsed, with nothing between them.
        (&[marks("<"), marks("s"), says(""), marks(">a")], &[0, 2]),
        (&[marks("<"), says("s>a")], &[2]),
        (&[says("<s"), marks(">a")], &[2]),
        (&[says("a<s"), marks("></s>")], &[2, 1]),
        // User-defined tokens are matched in all of them, and across.
        (&[says("a|"), marks("b"), says("<u"), says(">")], &[11, 10]),
        // Merges reach across pieces.
        (&[says("a"), marks("b"), says("c a")], &[8, 7]),
    ] {
        assert_eq!(tokenizer.encode_pieces(pieces, false).unwrap(), want, "{pieces:?}");
    }
}

/// Converters write -1, the largest number or another beyond the vocabulary for a token that a model does not have.
#[test]
fn a_special_id_that_is_no_token_is_none() {
    type Write = fn(&mut GgufWriter, &str);
    let sentinels: [Write; 5] = [
        |file, key| _ = file.i32(key, -1),
        |file, key| _ = file.u32(key, u32::MAX),
        |file, key| _ = file.u32(key, 1 << 20),
        |file, key| _ = file.u64(key, u64::MAX),
        |file, key| _ = file.i32(key, 1_000_000),
    ];
    for write in sentinels {
        for name in
            ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_pad", "fim_sep", "prefix"]
        {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let mut file = small("gpt-2");
            file.keys.retain(|entry| entry.0 != key);
            write(&mut file, &key);
            // What is none is not added either.
            file.bool("tokenizer.ggml.add_bos_token", true).bool("tokenizer.ggml.add_eos_token", true);
            let tokenizer = small_tokenizer(&file);
            let (bos, eos) = (Some(0).filter(|_| name != "bos"), Some(1).filter(|_| name != "eos"));
            assert_eq!((tokenizer.bos(), tokenizer.eos()), (bos, eos), "{key}");
            let want: Vec<u32> = bos.into_iter().chain([2]).chain(eos).collect();
            assert_eq!(tokenizer.encode("a", true, true).unwrap(), want, "{key}");
        }
        // SentencePiece's usual ids stand for a missing key, not for one that says none.
        let golden = lowkey_test_kit::golden("spm.json");
        let mut file = spm_vocabulary(&golden["models"]["usual"]);
        file.keys.retain(|entry| entry.0 != "tokenizer.ggml.bos_token_id");
        assert_eq!(small_tokenizer(&file).bos(), Some(1));
        write(&mut file, "tokenizer.ggml.bos_token_id");
        assert_eq!(small_tokenizer(&file).bos(), None);
    }
}

#[test]
fn keys_are_read_in_the_types_that_converters_write() {
    let mut file = small("gpt-2");
    file.keys.retain(|entry| entry.0 != "tokenizer.ggml.eos_token_id");
    file.i32("tokenizer.ggml.eos_token_id", 8).u8("tokenizer.ggml.add_bos_token", 1).u32("tokenizer.ggml.add_eos_token", 0);
    assert_eq!(small_tokenizer(&file).encode("a", true, true).unwrap(), [0, 2]);
    assert_eq!(small_tokenizer(&file).eos(), Some(8));
    let mut odd = small("gpt-2");
    odd.u8("tokenizer.ggml.add_bos_token", 7);
    let error = with_file(&odd, Tokenizer::from_gguf).err().expect("a refusal");
    assert!(error.contains("tokenizer.ggml.add_bos_token") && error.contains("bool"), "{error}");
}

#[test]
fn beginning_and_end_are_added_once_and_only_where_the_file_asks() {
    let adding = |pre, bos: Option<bool>, eos: Option<bool>| {
        let mut file = small(pre);
        bos.map(|bos| file.bool("tokenizer.ggml.add_bos_token", bos));
        eos.map(|eos| file.bool("tokenizer.ggml.add_eos_token", eos));
        small_tokenizer(&file)
    };
    let plain = adding("gpt-2", None, None);
    assert_eq!(plain.encode("a", true, true).unwrap(), [2]);
    let both = adding("gpt-2", Some(true), Some(true));
    for (text, parse_special, add_special, want) in [
        ("a", true, true, &[0, 2, 1][..]),
        ("a", true, false, &[2]),
        ("", true, true, &[0, 1]),
        ("<s>a</s>", true, true, &[0, 2, 1]),
        ("<s>a</s>", true, false, &[0, 2, 1]),
        ("<s>a</s>", false, true, &[0, 2, 1]),
        ("<s>", true, true, &[0, 1]),
        ("</s><s>", true, true, &[0, 1, 0, 1]),
        ("a<s>", true, true, &[0, 2, 0, 1]),
    ] {
        assert_eq!(both.encode(text, parse_special, add_special).unwrap(), want, "{text:?}, {parse_special}, {add_special}");
    }
    // Llama 3's rule adds a beginning unless the file says no, and takes a word that is a token whole.
    assert_eq!(adding("llama-bpe", None, None).encode("cab", true, true).unwrap(), [0, 9]);
    assert_eq!(adding("llama-bpe", Some(false), None).encode("cab", true, true).unwrap(), [9]);
}

#[test]
fn vocabularies_that_cannot_be_used_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = small("gpt-2");
        change(&mut file);
        let error = with_file(&file, Tokenizer::from_gguf).err().expect("a refusal");
        assert!(!error.contains('\n') && error.contains(".gguf: "), "{error}");
        error
    };
    let set = |key: &'static str, value: &'static str| {
        move |file: &mut GgufWriter| {
            file.keys.retain(|entry| entry.0 != key);
            file.str(key, value);
        }
    };
    let without = |key: &'static str| move |file: &mut GgufWriter| file.keys.retain(|entry| entry.0 != key);
    let with_tokens = |tokens: &'static [&'static str], merges: &'static [&'static str]| {
        move |file: &mut GgufWriter| {
            for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"] {
                without(key)(file);
            }
            file.strs("tokenizer.ggml.tokens", tokens).strs("tokenizer.ggml.merges", merges);
        }
    };
    type Change<'a> = &'a dyn Fn(&mut GgufWriter);
    let cases: [(Change<'_>, &[&str]); 10] = [
        (&set("tokenizer.ggml.model", "bert"), &["tokenizer.ggml.model", "'bert'"]),
        (&set("tokenizer.ggml.pre", "frobnitz"), &["tokenizer.ggml.pre", "'frobnitz'"]),
        (&without("tokenizer.ggml.pre"), &["tokenizer.ggml.pre", "missing"]),
        (&without("tokenizer.ggml.model"), &["tokenizer.ggml.model"]),
        (&without("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens"]),
        (&without("tokenizer.ggml.merges"), &["tokenizer.ggml.merges"]),
        (&with_tokens(&["a", "b", "a"], &[]), &["tokens 0 and 2", "'a'"]),
        (&with_tokens(&["a", "b"], &["a b"]), &["merges", "ab"]),
        (&with_tokens(&["a", "b"], &["ab"]), &["merges 0", "'ab'"]),
        (&with_tokens(&["a", "b"], &["a "]), &["merges 0", "'a '"]),
    ];
    for (change, words) in cases {
        let error = refusal(change);
        assert!(words.iter().all(|word| error.contains(word)), "{error} lacks one of {words:?}");
    }
    let short = |file: &mut GgufWriter| {
        without("tokenizer.ggml.token_type")(file);
        file.i32s("tokenizer.ggml.token_type", &[1, 1]);
    };
    assert!(refusal(&short).contains("tokenizer.ggml.token_type has 2 values"));
    // A file that says nothing of types has normal tokens only, and empty texts do no harm.
    let mut bare = GgufWriter::new();
    bare.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2");
    bare.strs("tokenizer.ggml.tokens", &["a", "", "", "<s>"]).strs("tokenizer.ggml.merges", &[]);
    let tokenizer = small_tokenizer(&bare);
    assert_eq!(tokenizer.encode("a<s>a", true, true).unwrap(), [0, 0]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.is_eog(3)), (None, None, false));
}

#[test]
fn the_demo_model_gives_the_ids_of_llama_cpp() {
    let tokenizer = Tokenizer::from_gguf(&demo_file()).unwrap();
    assert_eq!((tokenizer.n_vocab(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    // As llama.cpp's llama_vocab_is_eog says: <|endoftext|>, <|im_end|>, <reponame>.
    assert_eq!(tokenizer.eog_ids(), [0, 2, 4]);
    // llama_tokenize of llama-cpp-python 0.3.36 on this file.
    for (text, parse_special, want) in [
        ("Hello world", true, &[19556, 905][..]),
        ("I'm 42 years old.\n\n\tfn main() {}", true, &[57, 5248, 216, 36, 34, 929, 1573, 30, 1116, 197, 7853, 1085, 1000, 4548]),
        (
            "😀👩\u{200d}👩\u{200d}👧 ½",
            true,
            &[10813, 242, 218, 10813, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117, 216, 16738],
        ),
        ("a  b   c\u{a0}\u{3000}d", true, &[81, 216, 278, 256, 265, 15442, 12109, 218, 84]),
        ("<|im_start|>user\nHi<|im_end|>", true, &[1, 4093, 198, 26843, 2]),
        (
            "<|im_start|>user\nHi<|im_end|>",
            false,
            &[44, 108, 306, 79, 3738, 108, 46, 4093, 198, 26843, 44, 108, 306, 79, 486, 108, 46],
        ),
    ] {
        let ids = tokenizer.encode(text, parse_special, true).unwrap();
        assert_eq!(ids, want, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

/// Files that `tests/golden/make.py tokens` wrote from llama.cpp: 278 awkward strings, each with special tokens parsed and not,
/// and two long texts (their count of tokens and the first of them; that the rest is right shows in the text coming back).
#[test]
fn the_demo_model_gives_the_golden_ids() {
    golden_ids(&Tokenizer::from_gguf(&demo_file()).unwrap());
    golden_ids(&Tokenizer::with_tables(&demo_file()).unwrap());
}

fn golden_ids(tokenizer: &Tokenizer) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let golden: serde_json::Value = serde_json::from_str(&read("golden/tokens.json")).unwrap();
    let strings: Vec<String> = serde_json::from_str(&read("data/nasty.json")).unwrap();
    let ids_of = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).expect("ids") };
    for (key, parse_special) in [("parse_special", true), ("no_special", false)] {
        let lists = golden[key].as_array().expect(key);
        assert_eq!(lists.len(), strings.len());
        for (text, want) in strings.iter().zip(lists) {
            assert_eq!(tokenizer.encode(text, parse_special, false).unwrap(), ids_of(want), "{text:?}, {key}");
        }
    }
    for (name, want) in golden["texts"].as_object().expect("texts") {
        let text = read(&format!("data/{name}.txt"));
        let ids = tokenizer.encode(&text, true, false).unwrap();
        assert_eq!(Some(ids.len() as u64), want["count"].as_u64(), "{name}");
        let first = ids_of(&want["first"]);
        assert_eq!(ids[..first.len()], first, "{name}");
        assert_eq!(tokenizer.decode(&ids), text, "{name}");
    }
}

/// SentencePiece on small vocabularies: ids that llama.cpp gives (tests/golden/spm.py), and the text that comes back.
#[test]
fn sentencepiece_gives_the_golden_ids() {
    let golden = lowkey_test_kit::golden("spm.json");
    let strings: Vec<String> = serde_json::from_value(golden["strings"].clone()).unwrap();
    for (name, model) in golden["models"].as_object().expect("models") {
        let tokenizer = small_tokenizer(&spm_vocabulary(model));
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.is_eog(2)), (Some(1), Some(2), true));
        for (key, parse_special) in [("parse_special", true), ("no_special", false)] {
            for (text, want) in strings.iter().zip(model[key].as_array().expect(key)) {
                let ids = tokenizer.encode(text, parse_special, false).unwrap();
                assert_eq!(ids, lowkey_test_kit::ids(want), "{name}, {key}: {text:?}");
                let back = tokenizer.decode(&ids);
                let text = text.replace('\u{2581}', " ");
                // Prefixes may stand behind each special token, and Phi-3's swallow white space.
                let plain = name == "over-spaces" || !parse_special && !text.contains("<u u>");
                let back = if name == "over-spaces" || text.is_empty() { &back } else { back.strip_prefix(' ').unwrap_or(&back) };
                assert!(!plain || *back == text, "{name}: {text:?} came back as {back:?}");
            }
        }
        assert_eq!(tokenizer.encode("", true, true).unwrap(), [1], "a beginning is added where the file does not say");
        assert_eq!(tokenizer.token_bytes(3 + 0x41, false), b"A");
    }
}

#[test]
fn sentencepiece_vocabularies_that_cannot_be_used_are_refused() {
    let golden = lowkey_test_kit::golden("spm.json");
    let refusal = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = spm_vocabulary(&golden["models"]["usual"]);
        change(&mut file);
        with_file(&file, Tokenizer::from_gguf).err().expect("a refusal")
    };
    let without = |key: &'static str| move |file: &mut GgufWriter| file.keys.retain(|entry| entry.0 != key);
    assert!(refusal(&without("tokenizer.ggml.scores")).contains("tokenizer.ggml.scores"));
    let short = |file: &mut GgufWriter| {
        without("tokenizer.ggml.scores")(file);
        file.f32s("tokenizer.ggml.scores", &[0.0]);
    };
    assert!(refusal(&short).contains("tokenizer.ggml.scores has 1 values"));
    let no_number = |file: &mut GgufWriter| {
        without("tokenizer.ggml.scores")(file);
        let n = golden["models"]["usual"]["tokens"].as_array().expect("tokens").len() + 256;
        file.f32s("tokenizer.ggml.scores", &(0..n).map(|id| if id == 7 { f32::NAN } else { 0.0 }).collect::<Vec<_>>());
    };
    assert!(refusal(&no_number).contains("tokenizer.ggml.scores 7 is not a number"));
    let few = |tokens: &'static [&'static str]| {
        move |file: &mut GgufWriter| {
            for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.scores"] {
                without(key)(file);
            }
            file.strs("tokenizer.ggml.tokens", tokens).f32s("tokenizer.ggml.scores", &vec![0.0; tokens.len()]);
        }
    };
    assert!(refusal(&few(&["a", "b", "c"])).contains("0x00"));
    assert!(refusal(&few(&["a", "b", "a"])).contains("tokens 0 and 2 are both 'a'"));
}

#[test]
fn streamed_tokens_are_the_text() {
    let tokenizer = Tokenizer::from_gguf(&demo_file()).unwrap();
    let text = "naïve 😀 中文 한국어 مرحبا e\u{301} — fn main() { println!(\"½\"); }\n\n\u{1F469}\u{200d}\u{1F4BB}";
    let (mut stream, mut out) = (Utf8Stream::new(), String::new());
    let mut split = 0;
    for id in tokenizer.encode(text, true, false).unwrap() {
        stream.push(tokenizer.token_bytes(id, false), &mut out);
        assert!(text.starts_with(&out), "{out:?}");
        split += stream.is_pending() as u32;
    }
    stream.finish(&mut out);
    assert_eq!(out, text);
    assert!(split > 0, "no token of this text ends within a character, so nothing was seen");
}

#[test]
fn the_demo_models_own_template() {
    let file = demo_file();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    let template = ChatTemplate::from_gguf(&file).unwrap();
    let render = |messages: &[Message], prompt| template.render(messages, prompt, "<|im_start|>", "<|im_end|>").unwrap();
    let text = render(&[Message::new("user", "Hi")], true);
    let want = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
        <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text, want);
    let ids = tokenizer.encode(&text, true, true).unwrap();
    assert_eq!((ids[0], ids.iter().filter(|id| **id == 1).count(), ids.iter().filter(|id| **id == 2).count()), (1, 3, 2));
    let text = render(&[Message::new("system", "S"), Message::new("user", "U"), Message::new("assistant", "A")], false);
    assert_eq!(text, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n");
}

#[test]
fn a_model_without_a_usable_template_says_what_to_do() {
    let error = with_file(&small("gpt-2"), ChatTemplate::from_gguf).err().expect("a refusal");
    assert!(error.contains("tokenizer.chat_template") && error.contains("by name or file"), "{error}");
    let mut broken = small("gpt-2");
    broken.str("tokenizer.chat_template", "{% for m in messages %}\n{{ m.content }");
    let error = with_file(&broken, ChatTemplate::from_gguf).err().expect("a refusal");
    assert!(error.contains(".gguf: ") && error.contains("line 2") && error.contains("by name or file"), "{error}");
}

/// Random merges over three letters, some of equal results, in words of any length: against the crate `tokenizers`, which merges
/// each as a whole.
#[test]
fn merges_are_those_of_the_crate_tokenizers() {
    use tokenizers::Model;
    let mut rng = fastrand::Rng::with_seed(3);
    for pre in ["gpt-2", "llama-bpe"] {
        for round in 0..20 {
            let mut tokens: Vec<String> = ["a", "b", "c"].map(String::from).into();
            let mut merges: Vec<(String, String)> = Vec::new();
            for _ in 0..25 {
                let pair = (tokens[rng.usize(..tokens.len())].clone(), tokens[rng.usize(..tokens.len())].clone());
                let made = format!("{}{}", pair.0, pair.1);
                // Among them some whose tokens are longer than a window.
                if made.len() > if round == 7 { 6000 } else { 9 } || merges.contains(&pair) {
                    continue;
                }
                if !tokens.contains(&made) {
                    tokens.push(made);
                }
                merges.push(pair);
            }
            if round == 7 {
                let mut a = "a".to_string();
                while a.len() < 6000 {
                    if !merges.contains(&(a.clone(), a.clone())) {
                        merges.push((a.clone(), a.clone()));
                    }
                    a = a.repeat(2);
                    tokens.push(a.clone());
                }
                (tokens.sort(), tokens.dedup());
            }
            // A word that no merge makes.
            tokens.push("cacbbca".into());
            let kinds: Vec<(&str, i32)> = tokens.iter().map(|text| (text.as_str(), NORMAL)).collect();
            let lines: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
            let file = small_of(pre, &kinds, &lines.iter().map(String::as_str).collect::<Vec<_>>());
            let (library, tables) = (small_tokenizer(&file), with_file(&file, Tokenizer::with_tables).expect("tables"));
            let vocab = tokens.iter().cloned().zip(0u32..).collect::<tokenizers::models::bpe::Vocab>();
            let whole = tokenizers::models::bpe::BPE::builder().vocab_and_merges(vocab, merges).cache_capacity(0);
            let whole = whole.ignore_merges(pre == "llama-bpe").build().expect("merges");
            for n in (0..200).map(|i| i % 17).chain([2047, 2048, 2049, 10_000, 100_000]) {
                let letters = if n > 17 && rng.bool() { 1 } else { 3 };
                let word: String = (0..n).map(|_| ['a', 'b', 'c'][rng.usize(..letters)]).collect();
                let want: Vec<u32> = whole.tokenize(&word).expect("tokens").iter().map(|token| token.id).collect();
                assert_eq!(library.encode(&word, false, false).expect("ids"), want, "{pre}: {word:.40}");
                assert_eq!(tables.encode(&word, false, false).expect("ids"), want, "{pre}: {word:.40}, by tables");
            }
        }
    }
}

/// The best two neighbours of the whole text, again and again.
fn joined_naively(text: &str, scores: &HashMap<String, f32>) -> Vec<String> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    let score = |pair: &[String]| scores.get(&pair.concat()).copied().unwrap_or(f32::NEG_INFINITY);
    let mut pairs: Vec<f32> = parts.windows(2).map(score).collect();
    while let Some(best) = pairs.iter().copied().reduce(f32::max).filter(|best| best.is_finite()) {
        let at = pairs.iter().position(|score| *score == best).expect("it is there");
        let right = parts.remove(at + 1);
        parts[at] += &right;
        pairs.remove(at);
        for left in at.saturating_sub(1)..(at + 1).min(pairs.len()) {
            pairs[left] = score(&parts[left..left + 2]);
        }
    }
    parts
}

/// SentencePiece merges over the whole text, whatever its length.
#[test]
fn long_texts_are_merged_as_a_whole() {
    let golden = lowkey_test_kit::golden("spm.json");
    let mut rng = fastrand::Rng::with_seed(5);
    for (name, model) in golden["models"].as_object().expect("models") {
        let file = spm_vocabulary(model);
        let tokenizer = small_tokenizer(&file);
        let rows: Vec<(String, f32, i32)> = serde_json::from_value(model["tokens"].clone()).expect("tokens");
        let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6));
        let rows: Vec<_> = rows[..3].iter().cloned().chain(bytes).chain(rows[3..].iter().cloned()).collect();
        let scores: HashMap<String, f32> = rows.iter().map(|row| (row.0.clone(), row.1)).collect();
        let prefix = if model["space_prefix"] == true { "\u{2581}" } else { "" };
        let alphabet: Vec<char> = rows[259..].iter().flat_map(|row| row.0.chars()).chain(" é中<".chars()).collect();
        for n in [1, 50, 2047, 3000, 7000] {
            for letters in [1, 3, alphabet.len()] {
                let some: Vec<char> = (0..letters).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
                let text: String = (0..n).map(|_| some[rng.usize(..letters)]).collect();
                // Such tokens are cut out first.
                if rows.iter().any(|row| row.2 == USER && text.contains(&row.0)) {
                    continue;
                }
                let ids = tokenizer.encode(&text, false, false).unwrap();
                let got: Vec<&str> = ids.iter().map(|id| rows[*id as usize].0.as_str()).collect();
                let parts = joined_naively(&(prefix.to_string() + &text).replace(' ', "\u{2581}"), &scores);
                // Bytes of a character without a token are tokens of their own.
                let as_tokens = |part: String| match scores.contains_key(&part) {
                    true => vec![part],
                    false => part.bytes().map(|byte| format!("<0x{byte:02X}>")).collect(),
                };
                let want: Vec<String> = parts.into_iter().flat_map(as_tokens).collect();
                assert_eq!(got, want, "{name}: {text:.60}");
            }
        }
    }
}

/// Special tokens as llama.cpp cuts them out, one after the other through the whole text.
#[test]
fn special_tokens_claim_the_text_in_order() {
    let mut rng = fastrand::Rng::with_seed(9);
    for round in 0..300 {
        let letters = ["a", "b", "<", "é"];
        let word =
            |rng: &mut fastrand::Rng, n: usize| -> String { (0..n).map(|_| letters[rng.usize(..letters.len())]).collect() };
        let mut tokens: Vec<(String, i32)> = ["a", "b", "<", "Ã", "©"].map(|text| (text.to_string(), NORMAL)).into();
        for _ in 0..rng.usize(1..12) {
            let n = rng.usize(1..5);
            let text = word(&mut rng, n);
            if tokens.iter().all(|token| token.0 != text) {
                tokens.push((text, [CONTROL, USER][rng.usize(..2)]));
            }
        }
        let kinds: Vec<(&str, i32)> = tokens.iter().map(|(text, kind)| (text.as_str(), *kind)).collect();
        let tokenizer = small_tokenizer(&small_of("gpt-2", &kinds, &[]));
        let texts: Vec<(String, bool)> = (0..rng.usize(1..6)).map(|_| (word(&mut rng, round % 9), rng.bool())).collect();
        let text: String = texts.iter().map(|(text, _)| text.as_str()).collect();
        let parsed: Vec<bool> = texts.iter().flat_map(|(text, parse)| text.bytes().map(|_| *parse)).collect();
        let mut owner: Vec<Option<(usize, usize)>> = vec![None; text.len()];
        let mut order: Vec<usize> = (0..tokens.len()).filter(|&id| tokens[id].1 != NORMAL).collect();
        order.sort_by_key(|&id| std::cmp::Reverse(tokens[id].0.len()));
        for id in order {
            for start in 0..text.len() {
                let range = start..start + tokens[id].0.len();
                let may = text.as_bytes()[start..].starts_with(tokens[id].0.as_bytes())
                    && owner[range.clone()].iter().all(Option::is_none)
                    && (tokens[id].1 == USER || parsed[range.clone()].iter().all(|parse| *parse));
                if may {
                    owner[range].fill(Some((id, start)));
                }
            }
        }
        let plain = |byte: u8| {
            ["a", "b", "<"].iter().position(|text| text.as_bytes() == [byte]).unwrap_or(if byte == 0xc3 { 3 } else { 4 })
        };
        let want: Vec<u32> = owner
            .iter()
            .enumerate()
            .filter_map(|(at, owner)| match owner {
                Some((id, start)) => (*start == at).then_some(*id as u32),
                None => Some(plain(text.as_bytes()[at]) as u32),
            })
            .collect();
        let pieces: Vec<Piece> = texts.iter().map(|(text, parse)| Piece { text, parse_special: *parse }).collect();
        assert_eq!(tokenizer.encode_pieces(&pieces, false).unwrap(), want, "{texts:?} with {tokens:?}");
    }
}
