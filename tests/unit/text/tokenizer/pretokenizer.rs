//! Tests of `text::tokenizer::pretokenizer`.

use super::*;

fn words(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let pre = PreTokenizer::by_name(name).expect(name);
    pre.split::<()>(text, &mut |word| {
        assert!(!word.is_empty());
        out.push(word.to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(out.concat(), text, "the words are the text");
    out
}

#[test]
fn kinds_are_those_of_the_unicode_tables() {
    let table = KindTable::new();
    for (c, kind) in [
        ('a', Kind::Letter),
        ('é', Kind::Letter),
        ('中', Kind::Letter),
        ('ا', Kind::Letter),
        ('7', Kind::Number),
        ('Ⅷ', Kind::Number),
        ('½', Kind::Number),
        ('٣', Kind::Number),
        ('\u{301}', Kind::Mark),
        ('!', Kind::Punctuation),
        ('，', Kind::Punctuation),
        ('$', Kind::Other),
        ('😀', Kind::Other),
        ('\u{200d}', Kind::Other),
        (' ', Kind::Space),
        ('\u{3000}', Kind::Space),
        ('\u{a0}', Kind::Space),
        ('\u{85}', Kind::Space),
        ('\u{0}', Kind::Other),
        ('\u{10ffff}', Kind::Other),
    ] {
        assert_eq!(table.of(c), kind, "{c:?}");
    }
    assert!(table.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges overlap");
}

#[test]
fn gpt2_words() {
    for (text, want) in [
        ("Hello world", &["Hello", " world"][..]),
        ("I'm you'll 'S", &["I", "'m", " you", "'ll", " '", "S"]),
        ("a   b", &["a", "  ", " b"]),
        ("a  ", &["a", "  "]),
        ("a \n\n b", &["a", " \n\n", " b"]),
        ("x1234 y", &["x", "1234", " y"]),
        ("foo(bar);", &["foo", "(", "bar", ");"]),
        (" \u{3000}x", &[" ", "\u{3000}", "x"]),
        ("'", &["'"]),
        (" ", &[" "]),
        ("", &[]),
        ("e\u{301}a", &["e", "\u{301}", "a"]),
    ] {
        assert_eq!(words("gpt-2", text), want, "{text:?}");
    }
}

#[test]
fn smollm_splits_digits_before_all_else() {
    // The digit ends its piece, so both spaces stay together: the second expression cannot see past it.
    assert_eq!(words("smollm", "a  12"), ["a", "  ", "1", "2"]);
    assert_eq!(words("smollm", "a 1½b"), ["a", " ", "1", "½", "b"]);
}

#[test]
fn llama3_and_qwen2_words() {
    for (text, want) in [
        ("Hello world", &["Hello", " world"][..]),
        ("I'M you'Ll", &["I", "'M", " you", "'Ll"]),
        ("12345 6", &["123", "45", " ", "6"]),
        ("a  6", &["a", " ", " ", "6"]),
        ("x = y;\n\n\tz", &["x", " =", " y", ";\n\n", "\tz"]),
        ("a \n \n b", &["a", " \n \n", " b"]),
        ("a\r\n  ", &["a", "\r\n", "  "]),
        ("!b (c", &["!b", " (", "c"]),
        (" 'quoted'", &[" '", "quoted", "'"]),
        ("\u{301}a", &["\u{301}a"]),
    ] {
        assert_eq!(words("llama-bpe", text), want, "{text:?}");
    }
    assert_eq!(words("qwen2", "12345"), ["1", "2", "3", "4", "5"]);
    assert_eq!(words("qwen2", "e\u{301}e"), ["e", "\u{301}e"]);
    assert_eq!(words("qwen35", "e\u{301}e \u{301}\u{301}"), ["e\u{301}e", " \u{301}\u{301}"]);
    assert_eq!(words("minicpm5", "12345"), ["123", "45"]);
}

#[test]
fn falcon_and_default_words() {
    assert_eq!(words("falcon", "a, `b` 1234"), ["a", ",", " ", "`", "b", "`", " ", "123", "4"]);
    assert_eq!(words("default", "a `1234 $5"), ["a", " `", "123", "4", " ", "$", "5"]);
}

#[test]
fn deepseek_words() {
    assert_eq!(words("deepseek-coder", "a  b\n\nc, 12中文!"), ["a", " ", " b", "\n", "\n", "c", ",", " ", "1", "2", "中文", "!"]);
    assert_eq!(words("deepseek-llm", "Ab  é, ж 12\t "), ["Ab", " ", " é", ",", " ж", " ", "12", "\t "]);
    // Georgian has two cases and is not in the list, nor is mathematical bold.
    assert_eq!(words("deepseek-llm", "aბ \u{1d400}b"), ["a", "ბ", " \u{1d400}", "b"]);
}

#[test]
fn unknown_names_are_not_guessed() {
    for name in ["", "GPT-2", "gpt-5", "llama-spm"] {
        assert!(PreTokenizer::by_name(name).is_none(), "{name}");
    }
}

/// The scanners against the published expressions in a regex engine, on random text of awkward characters.
#[test]
fn scanners_agree_with_the_published_expressions() {
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const THREE: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let marks =
        THREE.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]").replace("{1,3}", "");
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let alphabet: Vec<char> =
        " \u{20}\u{20}\t\n\r\u{a0}\u{3000}''''stdmrevlSTLEaZé中ا1٣½Ⅷ!.,($`~|</_\u{301}\u{200d}😀\u{85}\u{0}".chars().collect();
    let mut rng = fastrand::Rng::with_seed(11);
    for (name, expression) in [("gpt-2", GPT2), ("llama-bpe", THREE), ("qwen35", &marks), ("tekken", TEKKEN), ("gpt-4o", GPT4O)] {
        let regex = tokenizers::utils::SysRegex::new(expression).unwrap();
        for _ in 0..3000 {
            let text: String = (0..rng.usize(..14)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let want: Vec<&str> = regex.find_iter(&text).map(|(start, end)| &text[start..end]).collect();
            assert_eq!(words(name, &text), want, "{name} on {text:?}");
        }
    }
}
