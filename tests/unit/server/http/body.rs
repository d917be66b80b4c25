use super::*;

const MAX: usize = 256 << 10;

fn parse(bytes: &[u8]) -> Checked<Value> {
    super::parse(&mut bytes.to_vec(), &Settings::default())
}

fn refused(bytes: &[u8]) -> String {
    let refusal = parse(bytes).expect_err("a refusal");
    assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    refusal.message().to_owned()
}

#[test]
fn bodies_that_are_no_json_are_refused_and_say_where() {
    assert!(refused(b"").contains("empty") && refused(b" \n\t").contains("empty"));
    assert!(refused(b"{\"a\":\"\xff\"}").contains("UTF-8 at byte 6"));
    assert!(refused(b"{\"a\":}").contains("column 6"));
    assert!(refused(b"{} {}").contains("no JSON"));
    assert_eq!(parse(br#"{"a":"\u00e9"}"#).expect("JSON")["a"], "é");
    assert_eq!(parse(b"\xef\xbb\xbf{\"a\":1}").expect("JSON behind a mark")["a"], 1);
}

#[test]
fn half_a_character_is_replaced_and_whole_ones_stay() {
    let read = |text: &str| parse(format!("{{\"a\":\"{text}\"}}").as_bytes()).expect("JSON")["a"].clone();
    for (written, right) in [
        (r"\ud83d\ude00", "😀"),
        (r"\ud83d", "\u{fffd}"),
        (r"\uDE00 x", "\u{fffd} x"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ud83d\n\ude00", "\u{fffd}\n\u{fffd}"),
        (r"\\ud83d \\\ud83d", "\\ud83d \\\u{fffd}"),
    ] {
        assert_eq!(read(written), right, "{written}");
    }
    for wrong in [r"\ud8", r"\uzzzz", r"\u", r"\"] {
        assert!(refused(format!("{{\"a\":\"{wrong}\"}}").as_bytes()).contains("no JSON"), "{wrong}");
    }
}

#[test]
fn lists_in_lists_have_a_limit_and_brackets_in_strings_do_not_count() {
    let nested = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    assert!(refused(&nested(MAX_DEPTH + 1)).contains("64 lists"));
    // Long before a parser's stack is asked for.
    assert!(refused(&vec![b'['; MAX]).contains("64 lists"));
    let text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(100), "{".repeat(100));
    assert!(parse(text.as_bytes()).is_ok());
}

#[test]
fn many_small_values_are_refused_before_they_are_made() {
    let (n_values, n_names) = most_values(&Settings::default());
    let list = |n: usize| format!("[{}]", vec!["1"; n].join(",")).into_bytes();
    assert!(parse(&list(n_values)).is_ok());
    assert!(refused(&list(n_values + 1)).contains("values"));
    let object = |n: usize| format!("{{{}}}", (0..n).map(|i| format!("\"{i}\":1")).collect::<Vec<_>>().join(",")).into_bytes();
    assert!(parse(&object(n_names)).is_ok());
    assert!(refused(&object(n_names + 1)).contains("names"));
}
