use super::*;

/// What comes of a text that arrives so many bytes at a time.
fn read(source: &str, text: &str, n: usize) -> (String, Vec<(String, String)>, Vec<Told>) {
    let mut calls = Calls::new(Some(Family::of(&format!("tools {source}"))));
    let mut told = Vec::new();
    for piece in text.as_bytes().chunks(n) {
        calls.push(std::str::from_utf8(piece).expect("ASCII"), &mut told);
    }
    calls.finish(&mut told);
    let said = told.iter().filter_map(|told| if let Told::Text(text) = told { Some(text.as_str()) } else { None }).collect();
    (said, calls.calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect(), told)
}

const ARGUMENTS: &str = r#"{"a": "}\"]{", "b": [1, {"c": null}]}"#;

#[test]
fn calls_of_every_family_are_found_however_the_text_arrives() {
    let one = |key: &str, name: &str| format!(r#"{{"name": "{name}", "{key}": {ARGUMENTS}}}"#);
    for (source, text, said, n_calls) in [
        ("<tool_call>", format!("I look.\n<tool_call>\n{}\n</tool_call>", one("arguments", "f")), "I look.\n", 1),
        (
            "<tool_call>",
            format!("<tool_call>\n{}\n</tool_call>\n<tool_call>\n{}\n</tool_call>", one("arguments", "f"), one("arguments", "f")),
            "",
            2,
        ),
        ("\"parameters\":", one("parameters", "f"), "", 1),
        ("[TOOL_CALLS]", format!("[TOOL_CALLS][{}, {}]", one("arguments", "f"), one("arguments", "f")), "", 2),
        ("<|tool_call|>", format!("<|tool_call|>[{}]", one("arguments", "f")), "", 1),
        ("<|tool_list_start|>", format!("Yes<|tool_call_start|>[{}]<|tool_call_end|>", one("arguments", "f")), "Yes", 1),
    ] {
        for n in [1, 2, 3, 7, 1000] {
            let (text_told, calls, _) = read(source, &text, n);
            assert_eq!(text_told, said, "{text} by {n}");
            assert_eq!(calls, vec![("f".to_owned(), ARGUMENTS.to_owned()); n_calls], "{text} by {n}");
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (source, text) in [
        ("<tool_call>", "a < b and <tool_x> {\"name\": 1}"),
        ("<tool_call>", "<tool_call>\nnothing of the kind"),
        ("<tool_call>", "<tool_call>\n{\"name\": \"f\", \"arguments\": 3}"),
        ("<tool_call>", "it ends in <tool_"),
        ("\"parameters\":", "{\"answer\": 3}"),
        ("\"parameters\":", "[1, 2]"),
        ("\"parameters\":", "{\"name\": \"f\""),
        ("[TOOL_CALLS]", "[TOOL] list"),
    ] {
        for n in [1, 4, 1000] {
            let (said, calls, _) = read(source, text, n);
            assert_eq!((said.as_str(), calls.len()), (text, 0), "by {n}");
        }
    }
    let mut told = Vec::new();
    Calls::new(None).push("<tool_call>", &mut told);
    assert_eq!(told, [Told::Text("<tool_call>".into())]);
}

#[test]
fn arguments_are_told_as_they_come() {
    let (.., told) = read("<tool_call>", &format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {ARGUMENTS}}}"), 5);
    assert!(matches!(&told[0], Told::Begin { index: 0, name, .. } if name == "f"));
    assert!(
        told.len() > 4 && told[1..].iter().all(|told| matches!(told, Told::Arguments { index: 0, text } if !text.is_empty()))
    );
}
