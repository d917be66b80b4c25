use super::*;
use crate::gguf::GgufFile;

fn tokenizer() -> Tokenizer {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2-135m-instruct-q4_1.gguf");
    Tokenizer::from_gguf(&GgufFile::open(&path).expect("the demo model: run `make model`")).expect("its tokenizer")
}

fn sampled(id: u32) -> (Sampled, Vec<(u32, f32)>) {
    (Sampled { id, logprob: -1.0, n_top: 0 }, Vec::new())
}

/// What comes of tokens whose text comes in `texts`, one for each token and one for the end.
fn paired(tokenizer: &Tokenizer, ids: &[u32], texts: &[&str], finish: Finish, by_token: bool) -> Vec<(String, Vec<u32>)> {
    let (mut pairing, mut ready) = (Pairing::default(), VecDeque::new());
    for (id, text) in ids.iter().zip(texts) {
        pairing.push(tokenizer, vec![sampled(*id)], text);
        pairing.pair(tokenizer, by_token, None, &mut ready);
    }
    pairing.push(tokenizer, Vec::new(), texts.last().expect("a text"));
    pairing.pair(tokenizer, by_token, Some(finish), &mut ready);
    ready.into_iter().map(|piece| (piece.text, piece.tokens.iter().map(|token| token.id).collect())).collect()
}

#[test]
fn tokens_come_with_their_text() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("Hello there, world", false, false).expect("ids");
    let texts: Vec<String> = ids.iter().map(|id| tokenizer.decode(&[*id])).collect();
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    texts.push("");
    let told = paired(&tokenizer, &ids, &texts, Finish::Length, true);
    assert_eq!(told.len(), ids.len());
    for ((text, tokens), (id, want)) in told.iter().zip(ids.iter().zip(&texts)) {
        assert_eq!((text.as_str(), &tokens[..]), (*want, &[*id][..]));
    }
    // Held back to the end, they come then; and together, where nobody wants them one by one.
    let all: String = texts.concat();
    let held: Vec<&str> = ids.iter().map(|_| "").chain([all.as_str()]).collect();
    assert_eq!(paired(&tokenizer, &ids, &held, Finish::Length, true), told);
    assert_eq!(paired(&tokenizer, &ids, &held, Finish::Length, false), [(all.clone(), ids.clone())]);
    // Those of a stop text do not come.
    let stopped: Vec<&str> = ids.iter().map(|_| "").chain([texts[0]]).collect();
    assert_eq!(paired(&tokenizer, &ids, &stopped, Finish::Stop, false), [(texts[0].to_owned(), vec![ids[0]])]);
}

#[test]
fn tokens_within_a_character_wait_for_the_one_that_completes_it() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("媽🤗", false, false).expect("ids");
    assert!(ids.len() > 2, "these characters are several tokens: {ids:?}");
    let (mut pairing, mut ready) = (Pairing::default(), VecDeque::new());
    let mut characters = Utf8Stream::new();
    for id in &ids {
        let mut text = String::new();
        characters.push(tokenizer.token_bytes(*id, false), &mut text);
        pairing.push(&tokenizer, vec![sampled(*id)], &text);
        pairing.pair(&tokenizer, true, None, &mut ready);
    }
    let texts: Vec<&str> = ready.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(texts, ["媽", "🤗"]);
    assert_eq!(ready.iter().flat_map(|piece| piece.tokens.iter().map(|token| token.id)).collect::<Vec<_>>(), ids);
}

#[test]
fn a_token_that_ends_is_not_told() {
    let tokenizer = tokenizer();
    let eos = tokenizer.eos().expect("one");
    let ids = [tokenizer.encode("Hi", false, false).expect("ids"), vec![eos]].concat();
    assert_eq!(paired(&tokenizer, &ids, &["Hi", "", ""], Finish::Eos, false), [("Hi".to_owned(), vec![ids[0]])]);
    assert_eq!(paired(&tokenizer, &ids, &["Hi", "", ""], Finish::Length, true).len(), 2, "ignored, it is one as others are");
}
