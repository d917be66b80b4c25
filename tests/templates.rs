//! Chat templates of many models against Jinja2, set up as Hugging Face `transformers` sets it up (tests/golden/templates.json, by
//! templates.py). The templates are not in the repository: `make peer-files` fetches them and runs this.

use std::path::PathBuf;

use lowkey::text::named_templates::NAMED;
use lowkey::text::{ChatTemplate, Message};
use lowkey_test_kit::{data, golden};
use serde_json::Value;

fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

fn conversations(golden: &Value) -> Vec<Vec<Message>> {
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let turns = |c: &Value| c.as_array().expect("turns").iter().map(|t| Message::new(text(&t[0]), text(&t[1]))).collect();
    golden["conversations"].as_array().expect("conversations").iter().map(turns).collect()
}

#[test]
fn named_templates_give_the_texts_of_llama_cpp() {
    let golden = golden("templates.json");
    let conversations = conversations(&golden);
    let named = golden["named"].as_object().expect("names");
    // All but one, which llama.cpp has no name for.
    assert_eq!(named.len() + 1, NAMED.len());
    for (name, rows) in named {
        let eos = if name == "zephyr" { "<|endoftext|>" } else { "</s>" };
        let template = ChatTemplate::named(name).expect(name);
        for (case, want) in rows.as_array().expect("hashes").iter().enumerate() {
            let text = template.render(&conversations[case / 2], case % 2 == 0, "<s>", eos).expect(name);
            assert_eq!(Some(fnv1a(&text).as_str()), want.as_str(), "{name}, case {case}: {text:?}");
        }
    }
    let phi = ChatTemplate::named("phi4-mini").expect("a name").render(&conversations[1], true, "", "").expect("a text");
    assert_eq!(phi, "<|system|>Be brief.<|end|><|user|> What is 1 < 2 & \"3\"? <|end|><|assistant|>");
    let error = ChatTemplate::named("chatm").err().expect("no such name").to_string();
    assert!(error.contains("--template") && error.contains("chatml (Qwen") && error.contains("gemma"), "{error}");
}

/// Templates that loop over tools without asking whether there are any. Python fails; to minijinja `none` is an empty list,
/// so that they speak of no tools.
const LENIENT: [&str; 3] = [
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
];

#[test]
#[ignore = "needs files that `make peer-files` fetches"]
fn templates_are_rendered_as_jinja2_renders_them() {
    let folder = std::env::var_os("LOWKEY_PEER_FILES").map_or_else(|| data("../../models/peer"), PathBuf::from);
    let golden = golden("templates.json");
    let clock = golden["clock"].as_u64().expect("seconds");
    let conversations = conversations(&golden);
    let (mut wrong, mut n_texts) = (Vec::new(), 0);
    for (name, row) in golden["templates"].as_object().expect("templates") {
        let source = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}: run `make peer-files`"));
        let template = match ChatTemplate::with_clock(&source, move || clock) {
            Ok(template) => template,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (case, want) in row["texts"].as_array().expect("texts").iter().enumerate() {
            let want = want.as_str().expect("a hash or an error");
            let got = template.render(&conversations[case / 2], case % 2 == 0, "<s>", "</s>");
            n_texts += 1;
            let same = match (&got, want) {
                (Err(error), want) if want.starts_with("refused: ") => {
                    error.to_string().contains(want.strip_prefix("refused: ").expect("a prefix"))
                }
                (Err(error), want) if want.starts_with("failed: ") => error.to_string().contains("by name or file"),
                (Ok(_), "failed: 'NoneType' object is not iterable") => LENIENT.contains(&name.as_str()),
                (Ok(text), want) => fnv1a(text) == want,
                (Err(_), _) => false,
            };
            if !same {
                let got = got.unwrap_or_else(|e| format!("ERROR {e}"));
                wrong.push(format!("{name}, case {case}: {want}, but: {got:?}"));
            }
        }
    }
    println!("{n_texts} texts, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
