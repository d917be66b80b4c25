use super::super::calls::Calls;
use super::super::tools::Family;
use super::*;

fn light() -> Value {
    json!({
        "name": "set_light",
        "description": "Turn a light on or off. It is fast.",
        "parameters": {
            "type": "object",
            "properties": {
                "light": { "type": "string", "enum": ["kitchen", "guest room", "hall"], "description": "Which light" },
                "level": { "type": "integer", "minimum": 0, "maximum": 10 },
                "note": { "type": "string" },
            },
            "required": ["light", "level"],
        },
    })
}

/// What comes of a call that arrives so many bytes at a time.
fn read(text: &str, n: usize) -> Vec<(String, String)> {
    let (mut calls, mut told) = (Calls::new(Some(Family::of("no such thing"))), Vec::new());
    for piece in text.as_bytes().chunks(n) {
        calls.push(std::str::from_utf8(piece).expect("ASCII"), &mut told);
    }
    calls.finish(&mut told);
    assert_eq!(calls.raw, text);
    calls.calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect()
}

#[test]
fn what_is_written_is_read_again() {
    let tool = light();
    for (arguments, text) in [
        (json!({ "light": "guest room", "level": 3 }), "set_light(light: guest room, level: 3)"),
        (
            json!({ "light": "hall", "level": 3, "note": "a, (b): \"c\"" }),
            r#"set_light(light: hall, level: 3, note: "a, (b): \"c\"")"#,
        ),
        // None of the values.
        (json!({ "light": "attic" }), r#"set_light(light: "attic")"#),
        (json!({ "level": [1, { "a": ")" }] }), r#"set_light(level: [1,{"a":")"}])"#),
        (json!({}), "set_light()"),
        (json!({ "with space": null }), r#"set_light({"with space":null})"#),
    ] {
        assert_eq!(written("set_light", &arguments, Some(&tool)), text);
        for n in [1, 2, 5, 1000] {
            let calls = read(&format!("<call>{text}\n<call>{text}"), n);
            assert_eq!(calls.len(), 2, "{text} by {n}");
            for (name, told) in calls {
                let told: Value = serde_json::from_str(&told).expect("JSON");
                assert_eq!((name.as_str(), &told), ("set_light", &arguments), "{text} by {n}");
            }
        }
    }
    assert_eq!(written("two words", &json!({}), None), "\"two words\"()");
    assert_eq!(read("<call>\"two words\"()", 3), [("two words".to_owned(), "{}".to_owned())]);
}

#[test]
fn only_plain_parameters_are_written_one_by_one() {
    let bare = |values: Value| bare_values(&json!({ "type": "string", "enum": values })).is_some();
    assert!(bare(json!(["on", "off", "3d printer"])));
    // These would be read as something else.
    for values in [json!(["1"]), json!(["true"]), json!(["a, b"]), json!(["f(x)"]), json!([" a"]), json!([1]), json!([])] {
        assert!(!bare(values.clone()), "{values}");
    }
    let property = |schema: Value| json!({ "type": "object", "properties": { "a": schema } });
    assert!(properties(&property(json!({ "type": "integer" }))).is_some());
    for other in [
        property(json!({ "$ref": "#/$defs/b" })),
        json!({ "type": "object", "properties": { "a b": {} } }),
        json!({ "type": "object", "properties": {}, "additionalProperties": true }),
        json!({ "type": "object", "properties": {}, "required": ["a"] }),
        json!({ "type": "object", "properties": {}, "minProperties": 1 }),
        json!({ "anyOf": [] }),
    ] {
        assert!(properties(&other).is_none(), "{other}");
    }
}

#[test]
fn examples_show_other_values_each_time() {
    let tools = [json!({ "function": light() }), json!({ "function": { "name": "stop_all" } })];
    assert_eq!(
        told(&tools),
        "Tools:\nset_light(light: kitchen | guest room | hall, level: {\"type\":\"integer\",\"minimum\":0,\"maximum\":10}, note?: string) \
         - Turn a light on or off. It is fast. light: Which light.\nstop_all()"
    );
    let turns = examples(&tools, "<call>", "", false);
    let content: Vec<&str> = turns.iter().filter_map(|turn| turn["content"].as_str()).collect();
    assert_eq!(
        content[2..6],
        [
            "guest room, 4: Turn a light on or off.",
            "<call>set_light(light: guest room, level: 4)",
            "stop all.",
            "<call>stop_all()"
        ]
    );
    assert_eq!(content[6], "hall, 10: Turn a light on or off.");
    // The same, and no call is the last that is read, where one must come.
    let must_call = examples(&tools, "<call>", "", true);
    assert_eq!((&must_call[..turns.len() - 2], &must_call[turns.len() - 2..]), (&turns[2..], &turns[..2]));
    assert_eq!(turns.len(), 2 + 2 * 2 * MOST_EXAMPLES);
    // Of many tools one each, and of a tool whose values nobody can guess none.
    let many: Vec<Value> = (0..20).map(|_| tools[0].clone()).collect();
    assert_eq!(examples(&many, "<call>", "", false).len(), 2 + 2 * 20);
    let strange =
        json!({ "function": { "name": "f", "parameters": { "type": "object", "properties": { "a": { "pattern": "x" } } } } });
    assert_eq!(examples(&[strange], "<call>", "", false).len(), 2);
}
