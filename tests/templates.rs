//! Chat templates of many models against Jinja2, set up as Hugging Face `transformers` sets it up (tests/golden/templates.json, by
//! templates.py). The templates are not in the repository: `make peer-files` fetches them and runs this.

use std::path::PathBuf;

use lowkey::text::{ChatTemplate, Message};
use lowkey_test_kit::{data, golden};

fn fnv1a(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
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
    let conversations: Vec<Vec<Message>> = golden["conversations"]
        .as_array()
        .expect("conversations")
        .iter()
        .map(|c| {
            let turns = c.as_array().expect("turns").iter();
            turns.map(|t| Message::new(t[0].as_str().expect("a role"), t[1].as_str().expect("text"))).collect()
        })
        .collect();
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
                (Err(error), want) if want.starts_with("failed: ") => error.to_string().contains("--template FILE"),
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
