use super::*;

const ANALYSIS: &str = "<|channel|>analysis<|message|>hm.<|end|><|start|>assistant";
const ARGUMENTS: &str = r#"{"a": "}\"]{<|end|>é", "b": [1, {"c": null}]}"#;

fn names(names: &[&str]) -> Option<Arc<[String]>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

fn pieces<'a>(mut messages: Messages, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Got> {
    let mut got = Vec::new();
    pieces.into_iter().for_each(|piece| messages.push(piece, &mut got));
    messages.finish(&mut got);
    got
}

/// Cut in three in all ways, and character by character, a text gives the same.
#[track_caller]
fn read(text: &str, fresh: &Messages) -> Vec<Got> {
    let whole = pieces(fresh.clone(), [text]);
    let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    for (i, &a) in places.iter().enumerate() {
        for &b in &places[i..] {
            assert_eq!(pieces(fresh.clone(), [&text[..a], &text[a..b], &text[b..]]), whole, "{text:?} cut at {a} and {b}");
        }
    }
    let ones = places.windows(2).map(|pair| &text[pair[0]..pair[1]]);
    assert_eq!(pieces(fresh.clone(), ones), whole, "{text:?} one by one");
    whole
}

fn with_f() -> Messages {
    Messages::new(names(&["f", "get weather", "a<|b"]), true)
}

fn thought(text: &str) -> Got {
    Got::Thought(text.into())
}

fn text(text: &str) -> Got {
    Got::Text(text.into())
}

fn call(name: &str, arguments: &str) -> Vec<Got> {
    vec![Got::Call(name.into()), Got::Arguments(arguments.into())]
}

#[test]
fn calls_are_found_behind_every_header_that_models_write() {
    for head in [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f json<|message|>",
        "<|channel|>commentary to=functions.f<|message|>",
        "<|channel|>commentary to=functions.f code<|message|> ",
        "<|channel|>commentary to=f <|constrain|>json<|message|>\n",
        "<|channel|>commentary to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.f <|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
        " to=functions.f<|channel|>analysis<|message|>",
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>",
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
    ] {
        for end in ["", "<|call|>", "<|end|>", "\n"] {
            assert_eq!(read(&format!("{head}{ARGUMENTS}{end}"), &with_f()), call("f", ARGUMENTS), "{head} {end}");
        }
    }
    let other = "<|channel|>commentary to=functions.no_such-1.2 <|constrain|>json<|message|>{}";
    assert_eq!(read(other, &with_f()), call("no_such-1.2", "{}"), "a function that is not there is called all the same");
}

#[test]
fn thoughts_and_a_preamble_come_before_a_call_and_more_calls_behind_it() {
    let head = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>";
    let preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
    let said = format!("{ANALYSIS}{preamble}{ANALYSIS}{head}{{\"a\": 1}}<|call|>");
    let want = [vec![thought("hm."), text("I look."), thought("hm.")], call("f", "{\"a\": 1}")].concat();
    assert_eq!(read(&said, &with_f()), want);

    let behind = "<|start|>assistant to=functions.get weather<|channel|>commentary json<|message|>{}";
    let want = [call("f", "{}"), call("get weather", "{}")].concat();
    assert_eq!(read(&format!("{head}{{}}<|end|>{behind}"), &with_f()), want);
    // A thought may come between them; what is said there, and behind them, nobody asked for.
    let want = [call("f", "{}"), vec![thought("hm.")], call("get weather", "{}")].concat();
    let (between, bare) = (format!("<|end|><|start|>assistant{ANALYSIS}"), behind.replacen(PROMPT_END, "", 1));
    let said = format!("{head}{{}}{between}{bare}<|end|><|start|>assistant{FINAL}It is noon.");
    assert_eq!(read(&said, &with_f()), want);
    let want = [call("f", "{}"), call("get weather", "{}")].concat();
    assert_eq!(read(&format!("{head}{{}}words{behind} words"), &with_f()), want);
    // A message that nothing ended.
    let want = [vec![thought("hm"), text("Yes.")], call("f", "{}")].concat();
    assert_eq!(read(&format!("{SIGN}hm<|end|><|start|>assistant{FINAL}Yes.{head}{{}}"), &with_f()), want);
    let want = [vec![thought("hm")], call("f", "{}")].concat();
    assert_eq!(read(&format!("{SIGN}hm <|start|>assistant{head}{{}}"), &with_f()), want);
}

#[test]
fn names_of_functions_may_hold_anything() {
    for name in ["get weather", "a<|b", "a", "a b", "a b json", "<|message|>", "é{", "to=functions.f"] {
        let fresh = Messages::new(names(&["a", "a b", "a b json", name]), true);
        for head in [
            format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
            format!(" to=functions.{name}<|channel|>commentary json<|message|>"),
        ] {
            assert_eq!(read(&format!("{head}{{}}"), &fresh), call(name, "{}"), "{name:?}");
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    let long = format!("<|channel|>commentary to=functions.{}<|message|>{{}}", "x".repeat(600));
    for said in [
        "Yes.",
        "",
        " ",
        "to be or not",
        " to=functions.f of words",
        "<|channel|>commentary to=functions.f <|constrain|>json",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|> print(1)",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>[1]",
        "<|channel|>commentary to=functions.f <|constrain|>json{}",
        "<|channel|>commentary to=functions. <|constrain|>json<|message|>{}",
        "<|channel|>commentary to= <|constrain|>json<|message|>{}",
        "<|channel|>commentary to=functions.f: {}<|message|>{}",
        "<|channel|>comments to=functions.f<|message|>{}",
        "<|start|>user<|message|>{}",
        "<|start|>assist",
        "<|channel|>",
        "<|message|>{}",
        "a <|channel|> is no <|start|>",
        "Yes.<|end|> to=functions.f<|channel|>commentary<|message|>{}",
        long.as_str(),
    ] {
        let want = if said.is_empty() { vec![] } else { vec![text(said)] };
        assert_eq!(read(said, &with_f()), want);
    }
    // What goes to nobody's tool is a message like others.
    assert_eq!(read("<|channel|>commentary to=assistant<|channel|>analysis<|message|>hm", &with_f()), [thought("hm")]);
    // Marks that a text speaks of are text, where no header follows.
    assert_eq!(
        read(&format!("{FINAL} It ends with <|end|>, or <|call|>.<|return|>"), &with_f()),
        [text("It ends with <|end|>, or <|call|>.")]
    );
    let code = "<|channel|>commentary to=python code<|message|>1<|end|>";
    assert_eq!(read(&format!("{FINAL}Yes.<|end|><|start|>assistant{code}"), &with_f()), [text(&format!("Yes.{code}"))]);
    // A call that is cut off has begun.
    let cut = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": \"b";
    assert_eq!(read(cut, &with_f()), call("f", "{\"a\": \"b"));
}

/// In a time that the network can spare: what does not grow with the square of the text.
#[test]
fn long_texts_of_marks_are_read_in_no_time() {
    let begun = std::time::Instant::now();
    for mark in ["<|end|>", "<|channel|>", "<|start|>", "<|start|>assistant", "<|channel|>analysis", " to=functions.f", "<|"] {
        let said = mark.repeat((512 << 10) / mark.len());
        let got = pieces(with_f(), [said.as_str()]);
        // What ends the last message is no text.
        let is_all = matches!(&got[..], [Got::Text(text)] if said.starts_with(text) && said.len() - text.len() <= mark.len());
        assert!(is_all, "{mark}: {} events", got.len());
    }
    let calls = " to=functions.f<|message|>{}<|end|><|start|>assistant".repeat(10_000);
    assert_eq!(pieces(with_f(), [calls.as_str()]).len(), 20_000);
    // White space without end is no call's.
    let said = format!(" to=functions.f<|message|>{}{{}}", "\n".repeat(600));
    assert_eq!(read(&said[..40], &with_f()), [text(&said[..40])]);
    for n in [1, 7, 1000] {
        let cut = said.as_bytes().chunks(n).map(|piece| std::str::from_utf8(piece).expect("ASCII"));
        assert_eq!(pieces(with_f(), cut), [text(&said)], "by {n}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn where_nothing_may_be_called_or_parted_all_is_told_as_it_is() {
    let written = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>";
    assert_eq!(read(&format!("{ANALYSIS}{written}"), &Messages::new(None, true)), [thought("hm."), text(written)]);
    let raw = Messages::new(names(&["f"]), false);
    let said = format!("{ANALYSIS}{written}");
    let want = [vec![text("<|channel|>analysis<|message|>hm.<|end|>")], call("f", "{}")].concat();
    assert_eq!(read(&said, &raw), want);
    let said = format!("{ANALYSIS}{FINAL} Yes.");
    assert_eq!(read(&said, &raw), [text(&said)]);
}

#[test]
fn earlier_calls_are_made_what_the_template_takes() {
    let call = |id: &str, name: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": {} } });
    let result = |id: &str, text: &str| json!({ "role": "tool", "tool_call_id": id, "content": text });
    let asks = json!({ "role": "user", "content": "hi" });
    let mut calls = json!({ "role": "assistant", "content": "I look.", "reasoning_content": "hm" });
    calls["tool_calls"] = json!([call("1", "a"), call("2", "b")]);
    // As OpenAI's responses have it: a message for each call.
    let other = json!({ "role": "assistant", "content": "", "tool_calls": [call("3", "c")] });
    let tools = json!([{ "type": "function", "function": { "name": "a" } }]);
    let mut conversation = Conversation {
        messages: vec![asks.clone(), calls, other, result("3", "of c"), result("1", "of a"), result("2", "of b"), asks],
        tools: Some(tools),
        ..Conversation::default()
    };
    prepare(&mut conversation);
    let told = |message: &Value| {
        let name = &message["tool_calls"][0]["function"]["name"];
        let said = name.as_str().or(message["content"].as_str()).expect("a text").to_owned();
        assert!(name.is_null() || message["tool_calls"].as_array().is_some_and(|calls| calls.len() == 1), "{message}");
        said
    };
    let all: Vec<String> = conversation.messages.iter().map(told).collect();
    assert_eq!(all, ["hi", "a", "of a", "b", "of b", "c", "of c", "hi"]);
    let first = &conversation.messages[1];
    assert_eq!((&first["thinking"], &first["content"]), (&json!("hm"), &json!("")));
    assert!(conversation.messages[3].get("thinking").is_none());
    assert_eq!(conversation.tools.expect("tools")[0]["function"]["description"], "");

    // Results without ids, in the order of the calls, or by name as Ollama's clients have them; and one that is nobody's.
    let mut calls = json!({ "role": "assistant", "content": "", "tool_calls": [call("1", "a"), call("2", "b")] });
    let free = |name: Option<&str>, text: &str| json!({ "role": "tool", "name": name, "content": text });
    for (results, want) in [
        (vec![free(None, "x"), free(None, "y")], vec!["a", "x", "b", "y"]),
        (vec![free(Some("b"), "x"), free(Some("a"), "y")], vec!["a", "y", "b", "x"]),
        (vec![result("2", "x"), result("9", "y"), result("9", "z")], vec!["a", "y", "b", "x", "z"]),
        (vec![], vec!["a", "b"]),
    ] {
        calls["content"] = "".into();
        let mut conversation = Conversation { messages: [vec![calls.clone()], results].concat(), ..Conversation::default() };
        prepare(&mut conversation);
        assert_eq!(conversation.messages.iter().map(told).collect::<Vec<_>>(), want);
    }
}

/// What the grammar of answers lets through, by the demo model's vocabulary, in which the marks are text.
#[cfg(feature = "constraint")]
mod grammar {
    use super::super::super::fields::Fields;
    use super::super::super::tools::{Family, Tools, in_last_message};
    use super::*;
    use crate::constraint::{Constraints, Rules};
    use crate::gguf::GgufFile;
    use crate::text::{Filter, Tokenizer};

    #[derive(Debug, PartialEq)]
    enum Way {
        Whole,
        Part,
        Stops(usize),
    }

    struct Bench {
        tokenizer: Tokenizer,
        constraints: Constraints,
    }

    impl Bench {
        fn new() -> Bench {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/smollm2-135m-instruct-q4_1.gguf");
            let file = GgufFile::open(&path).expect("the demo model: run `make model`");
            let tokenizer = Tokenizer::from_gguf(&file).expect("its tokenizer");
            let constraints = Constraints::new(&tokenizer, 8 << 20);
            Bench { tokenizer, constraints }
        }

        fn of_tools(&self, choice: Value, is_parallel: bool) -> Rules {
            let a = json!({ "type": "object", "properties": { "a": { "enum": ["b", "c"] } }, "required": ["a"] });
            let function = |name: &str, parameters: &Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
            let tools = json!([function("f", &a), function("f more", &json!({ "type": "object", "properties": {} }))]);
            let body = json!({ "tools": tools, "tool_choice": choice, "parallel_tool_calls": is_parallel });
            let fields = Fields::of_body(&body).expect("a body");
            let tools = Tools::read(&fields, body.get("tools")).expect("tools").expect("some");
            tools.rules(Family::of(&format!("tools {SIGN}")), &self.tokenizer).expect("rules")
        }

        fn walk(&self, rules: &Rules, text: &str) -> Way {
            let grammar = self.constraints.compile(rules).unwrap_or_else(|error| panic!("{rules:?}: {error}"));
            let (mut live, mut n_bytes, mut is_over) = (grammar.begin(), 0, false);
            for token in self.tokenizer.encode(text, false, false).expect("ids") {
                if is_over || !live.allows(token) {
                    return Way::Stops(n_bytes);
                }
                is_over = live.accept(token);
                n_bytes += self.tokenizer.token_bytes(token, false).len();
            }
            if is_over || live.allows(self.tokenizer.eos().expect("an end")) { Way::Whole } else { Way::Part }
        }
    }

    const CALL: &str = r#"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "b"}"#;
    const BY_ROLE: &str = r#" to=functions.f<|channel|>commentary json<|message|>{"a": "c"}"#;
    const MORE: &str = "<|channel|>analysis to=functions.f more<|message|>{}";

    #[test]
    fn a_demanded_call_comes_behind_thoughts_and_in_either_form() {
        let bench = Bench::new();
        let (any, one) = (bench.of_tools("required".into(), true), bench.of_tools("required".into(), false));
        let named = bench.of_tools(json!({ "type": "function", "function": { "name": "f more" } }), true);
        let preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
        for call in [CALL, BY_ROLE, MORE] {
            for lead in ["", ANALYSIS, preamble, &format!("{ANALYSIS}{preamble}{ANALYSIS}")] {
                assert_eq!(bench.walk(&any, &format!("{lead}{call}")), Way::Whole, "{lead}{call}");
                assert_eq!(bench.walk(&one, &format!("{lead}{call}")), Way::Whole, "{lead}{call}");
                assert_eq!(bench.walk(&named, &format!("{lead}{call}")) == Way::Whole, call == MORE, "{lead}{call}");
            }
        }
        let two = format!("{CALL}<|end|><|start|>assistant{BY_ROLE}");
        assert_eq!(bench.walk(&any, &two), Way::Whole);
        assert!(matches!(bench.walk(&one, &two), Way::Stops(n) if n == CALL.len()));
        for (said, want) in [
            ("Yes.".to_owned(), Way::Stops(0)),
            (format!("{FINAL}Yes."), Way::Stops("<|channel|>".len())),
            (ANALYSIS.to_owned(), Way::Part),
            (CALL.replace('b', "d"), Way::Stops(CALL.len() - 3)),
        ] {
            let got = bench.walk(&any, &said);
            let is_near = matches!((&got, &want), (Way::Stops(got), Way::Stops(want)) if got.abs_diff(*want) < 3);
            assert!(got == want || is_near, "{said}: {got:?}, not {want:?}");
        }
    }

    #[test]
    fn a_free_answer_is_held_to_the_tools_from_the_recipient_on() {
        let bench = Bench::new();
        let free = bench.of_tools("auto".into(), true);
        let preamble = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
        for said in [
            "",
            "Yes.",
            &format!("{ANALYSIS}{FINAL}Yes."),
            &format!("{ANALYSIS}{preamble}{CALL}"),
            CALL,
            BY_ROLE,
            &format!("{ANALYSIS}{BY_ROLE}"),
            &format!("{BY_ROLE}<|end|><|start|>assistant{MORE}"),
            "<|channel|>commentary to=python code<|message|>1",
            "words, and to=functions.none of them",
        ] {
            assert_eq!(bench.walk(&free, said), Way::Whole, "{said}");
        }
        for said in [
            CALL.replace("functions.f", "functions.g"),
            BY_ROLE.replace("functions.f", "functions.g"),
            format!("{ANALYSIS}{}", BY_ROLE.replace("functions.f", "functions.g")),
            CALL.replace("\"a\"", "\"x\""),
            CALL.replace("json", "text"),
            format!("{CALL}<|end|><|start|>assistant{FINAL}Yes."),
            format!("{CALL} and more"),
        ] {
            assert!(matches!(bench.walk(&free, &said), Way::Stops(n) if n > 0), "{said}");
        }
        assert_eq!(bench.walk(&free, &CALL[..CALL.len() - 1]), Way::Part);
        let one = bench.of_tools("auto".into(), false);
        assert!(matches!(bench.walk(&one, &format!("{CALL}<|end|><|start|>assistant{MORE}")), Way::Stops(n) if n == CALL.len()));
    }

    #[test]
    fn an_answer_to_a_form_stands_in_the_last_message() {
        let bench = Bench::new();
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
        for rules in [Rules::Json, Rules::Schema(schema)] {
            let rules = in_last_message(rules, "response_format").expect("rules");
            for said in [
                format!("{FINAL}{{\"a\": 3}}"),
                format!("{ANALYSIS}{ANALYSIS}{FINAL}{{\"a\": 3}}"),
                format!("{ANALYSIS}<|channel|>final <|constrain|>json<|message|>{{\"a\": 3}}"),
            ] {
                assert_eq!(bench.walk(&rules, &said), Way::Whole, "{said}");
            }
            assert_eq!(bench.walk(&rules, ANALYSIS), Way::Part);
            for said in ["{\"a\": 3}".to_owned(), format!("{FINAL}words"), format!("{FINAL}{{\"a\": 3}} words"), CALL.to_owned()]
            {
                assert!(matches!(bench.walk(&rules, &said), Way::Stops(_)), "{said}");
            }
        }
        let own = Rules::Gbnf("root ::= \"yes\"".into());
        assert_eq!(bench.walk(&in_last_message(own, "lark").expect("rules"), "yes"), Way::Whole, "whose grammar it is says all");
    }
}
