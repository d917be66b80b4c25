//! Tests of `cli::writer`.

use super::*;

fn feed(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
    let mut kept = String::new();
    let mut writer = Writer::new(&stops, |text: &str| {
        kept.push_str(text);
        Ok(())
    });
    let stopped = pieces.iter().any(|piece| writer.push(piece.as_bytes()).unwrap());
    if !stopped {
        writer.finish().unwrap();
    }
    drop(writer);
    (kept, stopped)
}

#[test]
fn stop_texts_are_found_across_tokens_and_not_printed() {
    assert_eq!(feed(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
    assert_eq!(feed(&["END"], &["one E", "N", "x"]), ("one ENx".into(), false));
    assert_eq!(feed(&["\n\n", "é!"], &["a\n", "b caf\u{e9}", "!"]), ("a\nb caf".into(), true));
    assert_eq!(feed(&[], &["plain"]), ("plain".into(), false));
    assert_eq!(feed(&[""], &["plain"]), ("plain".into(), false));
}
