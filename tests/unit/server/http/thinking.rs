use super::*;

/// Thoughts and text of what has come.
fn sums(got: Vec<Got>) -> (String, String) {
    let (mut thoughts, mut text) = (String::new(), String::new());
    for got in got {
        match got {
            Got::Thought(more) => thoughts.push_str(&more),
            Got::Text(more) => text.push_str(&more),
            call => panic!("{call:?}"),
        }
    }
    (thoughts, text)
}

fn pieces(mut splitter: Splitter, pieces: &[&str]) -> (String, String) {
    let mut got = Vec::new();
    pieces.iter().for_each(|piece| splitter.push(piece, &mut got));
    splitter.finish(&mut got);
    sums(got)
}

/// All ways to cut a text in three give the same.
fn all_ways(text: &str, is_thinking: bool) -> (String, String) {
    let whole = pieces(Splitter::new(is_thinking), &[text]);
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for (i, &a) in places.iter().enumerate() {
        for &b in &places[i..] {
            let cut = pieces(Splitter::new(is_thinking), &[&text[..a], &text[a..b], &text[b..]]);
            assert_eq!(cut, whole, "{text:?} cut at {a} and {b}");
        }
    }
    whole
}

fn parted(reasoning: &str, content: &str) -> (String, String) {
    (reasoning.into(), content.into())
}

#[test]
fn thoughts_at_the_beginning_are_told_apart_however_they_come() {
    assert_eq!(all_ways("<think>\nhm, é\n</think>\n\nYes.\n", false), parted("hm, é", "Yes.\n"));
    assert_eq!(all_ways("\n<think></think>Yes", false), parted("", "Yes"));
    assert_eq!(all_ways("hm\n</think>\n\nYes", true), parted("hm", "Yes"));
    assert_eq!(all_ways("hm </thin k> on", true), parted("hm </thin k> on", ""));
    assert_eq!(all_ways("<|channel>thought\nhm </think>\n<channel|>Yes.", false), parted("hm </think>", "Yes."));
}

/// gpt-oss puts a header before each message, of which the answer is the last.
#[test]
fn messages_with_headers_are_thoughts_and_an_answer() {
    let analysis = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant";
    let answer = "<|channel|>final<|message|>Yes.";
    assert_eq!(all_ways(&format!("{analysis}{answer}"), false), parted("hm", "Yes."));
    assert_eq!(all_ways(answer, false), parted("", "Yes."));
    assert_eq!(all_ways(&format!("{analysis}{analysis}{answer}"), false), parted("hmhm", "Yes."));
    // What is no answer and no thought, such as a call, is told as it is.
    let call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}";
    assert_eq!(all_ways(&format!("{analysis}{call}"), false), parted("hm", call));
    assert_eq!(all_ways("<|channel|>analysis<|message|>hm<|en", false), parted("hm<|en", ""));
    assert_eq!(all_ways("<|channel|>analysis<|message|>hm<|end|><|start|>assi", false), parted("hm", "<|start|>assi"));
}

#[test]
fn what_is_no_thought_is_as_it_was() {
    for text in ["Yes.", "  <b> x", "<thinker>", "a <think>b</think>", "<th", "<|channel>final", " ", "", "</think> x"] {
        assert_eq!(all_ways(text, false), parted("", text), "{text:?}");
    }
    assert_eq!(pieces(Splitter::off(), &["<think>a</think>b"]), parted("", "<think>a</think>b"));
}

#[test]
fn a_thought_that_is_cut_off_is_a_thought() {
    assert_eq!(all_ways("<think>a b </thi", false), parted("a b </thi", ""));
    assert_eq!(all_ways("<think> \n ", false), parted("", ""));
}
