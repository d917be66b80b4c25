//! Answers that obey: what grammars and schemas let through, what is refused by name, and that hostile ones stay within their memory
//! and time. The vocabulary is the demo model's; in place of the model stands chance. Where memory is counted nothing else runs.
#![cfg(feature = "constraint")]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use lowkey::constraint::{Constraints, Grammar, Refused, Rules};
use lowkey::gguf::GgufFile;
use lowkey::text::{Filter, Sampler, SamplerParams, Tokenizer};
use lowkey_test_kit::counting::{Counting, Since};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REGION: usize = 8 << 20;

struct Bench {
    tokenizer: Tokenizer,
    constraints: Constraints,
}

/// One test at a time: the counts are of the whole process.
fn bench() -> MutexGuard<'static, Bench> {
    static BENCH: OnceLock<Mutex<Bench>> = OnceLock::new();
    let make = || {
        let file = GgufFile::open(&lowkey_test_kit::demo_model()).expect("the demo model");
        let tokenizer = Tokenizer::from_gguf(&file).expect("its tokenizer");
        let since = Since::now();
        let constraints = Constraints::new(&tokenizer, REGION);
        let (most, planned) = (since.most(), Constraints::plan_bytes(&file, 0).expect("a plan"));
        println!("vocabulary: {} kept, {most} at most, {planned} planned", since.kept());
        assert!(most <= planned && planned < 3 * most, "{most} bytes taken for the vocabulary, {planned} planned");
        Mutex::new(Bench { tokenizer, constraints })
    };
    BENCH.get_or_init(make).lock().unwrap_or_else(|e| e.into_inner())
}

/// How far a text gets.
#[derive(Debug, PartialEq)]
enum Way {
    /// To its end, where the answer may end.
    Whole,
    /// To its end, where more must follow.
    Part,
    /// No further than so many bytes.
    Stops(usize),
}

impl Bench {
    fn gbnf(&self, text: &str) -> Arc<Grammar> {
        self.constraints.compile(&Rules::Gbnf(text.into())).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn schema(&self, schema: &Value) -> Result<Arc<Grammar>, Refused> {
        self.constraints.compile(&Rules::Schema(schema.clone()))
    }

    fn walk(&self, grammar: &Arc<Grammar>, text: &str) -> Way {
        let (mut live, mut n_bytes, mut is_over) = (grammar.begin(), 0, false);
        for token in self.tokenizer.encode(text, false, false).expect("ids") {
            if is_over || !live.allows(token) {
                return Way::Stops(n_bytes);
            }
            // What is allowed is in the mask too.
            let mask = live.mask().expect("a mask").to_vec();
            assert!(mask[token as usize / 32] >> (token % 32) & 1 == 1, "{text}: token {token} is allowed and not in the mask");
            is_over = live.accept(token);
            n_bytes += self.tokenizer.token_bytes(token, false).len();
        }
        if is_over || live.allows(self.tokenizer.eos().expect("an end")) { Way::Whole } else { Way::Part }
    }

    /// A text by chance; none: it has not come to its end.
    fn chance(&self, grammar: &Arc<Grammar>, random: &mut fastrand::Rng, n_most: usize) -> Option<String> {
        let params =
            SamplerParams { seed: random.u64(..), temp: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerParams::default() };
        let n_vocab = self.tokenizer.n_vocab();
        let mut sampler = Sampler::new(params, n_vocab).expect("a sampler");
        // Marks of JSON and ends are likelier, or nothing would end.
        let weight = |id: u32| {
            let text = self.tokenizer.token_bytes(id, false);
            let is_mark = text.iter().all(|b| b"\"{}[],:0123456789.-".contains(b)) && !text.is_empty();
            if self.tokenizer.is_eog(id) {
                8.0
            } else if is_mark {
                7.0
            } else {
                0.0
            }
        };
        let base: Vec<f32> = (0..n_vocab as u32).map(weight).collect();
        let (mut live, mut bytes) = (grammar.begin(), Vec::new());
        for _ in 0..n_most {
            let logits: Vec<f32> = base.iter().map(|weight| weight + random.f32() * 3.0).collect();
            let token = sampler.sample_filtered(&logits, &[], &mut live).ok()?;
            if self.tokenizer.is_eog(token) {
                return Some(String::from_utf8(bytes).expect("whole characters"));
            }
            bytes.extend_from_slice(self.tokenizer.token_bytes(token, false));
            if live.accept(token) {
                return Some(String::from_utf8(bytes).expect("whole characters"));
            }
        }
        None
    }
}

#[test]
fn grammars_let_through_what_they_say() {
    let bench = bench();
    let arithmetic = "root ::= sum\nsum ::= term ((\"+\" | \"-\") term)* # a comment\nterm ::= number | \"(\" sum \")\"\nnumber ::= [0-9]+ (\".\" [0-9]{1,2})?";
    for (grammar, whole, not) in [
        (r#"root ::= "yes" | "no""#, &["yes", "no"][..], &["maybe", "yesno", "ye"][..]),
        ("root ::= [a-c]+ \"\\n\"", &["abc\n", "a\n"], &["abd\n", "\n", "a"]),
        ("root ::= [^\"\\\\]{2,3}", &["ab", "é媽x"], &["a", "abcd", "a\""]),
        ("root ::= \"\\x41\\u00e9\\U0001F600\" .?", &["Aé😀", "Aé😀z"], &["Aé", "Aé😀zz"]),
        ("# first\nroot ::= (\n  \"a\" |\n  item\n)\n\nitem ::=\n  \"b\"{2}", &["a", "bb"], &["b", "bbb", "ab"]),
        ("root ::= \"a\"{0} \"b\"* \"\" \"c\"?", &["", "bb", "bc", "c"], &["a", "cc"]),
        ("root ::= [-a\\]^]+", &["-a]^"], &["b"]),
        (arithmetic, &["1+2", "(1.25-3)+(4)", "7"], &["1+", "(1", "1.234", "+1"]),
        (
            "root ::= list\nlist ::= \"[\" (item (\",\" item)*)? \"]\"\nitem ::= list | \"x\"",
            &["[]", "[x,[x,x]]"],
            &["[x,]", "[", "x"],
        ),
        ("root ::= \"ab\" \"c\" | \"a\" \"bd\"", &["abc", "abd"], &["ab", "abcd"]),
    ] {
        let compiled = bench.gbnf(grammar);
        for text in whole {
            assert_eq!(bench.walk(&compiled, text), Way::Whole, "{grammar}: {text:?}");
        }
        for text in not {
            assert_ne!(bench.walk(&compiled, text), Way::Whole, "{grammar}: {text:?}");
        }
    }
    let compiled = bench.gbnf("root ::= <|im_start|> \"x\" <[2]>");
    let mut live = compiled.begin();
    assert!(!live.allows(5) && live.allows(1) && !live.accept(1));
    let x = bench.tokenizer.encode("x", false, false).expect("ids")[0];
    assert!(!live.allows(1) && live.allows(x));
}

#[test]
fn bad_grammars_are_refused_by_line_and_rule() {
    let bench = bench();
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(65), ")".repeat(65));
    let chain: String = (0..400).map(|i| format!("r{i} ::= r{} | \"x\"\n", i + 1)).collect();
    let chain = format!("root ::= r0\n{chain}r400 ::= \"y\"");
    for (grammar, told) in [
        ("", "no rule 'root'"),
        ("a ::= \"x\"", "no rule 'root'"),
        ("root ::= \"x\"\nroot ::= \"y\"", "line 2: rule 'root' is there twice"),
        ("root ::= \"x\"\n\na ::= b", "line 3: there is no rule 'b'"),
        ("root ::= \"x", "line 1: a quotation mark is missing"),
        ("root ::= \"x\"\nb = \"y\"", "line 2: `::=` is wanted"),
        ("root ::= [z-a]", "holds nothing"),
        ("root ::= [abc", "`]` is missing"),
        ("root ::= (\"a\"\n", "`)` is missing"),
        ("root ::= \"a\"{3,2}", "the second is the smaller"),
        ("root ::= \"a\"{100000}", "more than 2000 times"),
        ("root ::= \"a\" )", "something follows"),
        ("root ::= \"\\q\"", "is no escape"),
        ("root ::= \"\\ud800\"", "4 hexadecimal digits"),
        ("root ::= <nothing>", "is no token"),
        ("root ::= root", "never ends"),
        ("root ::= \"a\" b\nb ::= \"c\" b", "line 2: rule 'b' leads to itself"),
        (deep.as_str(), "more than 64 parentheses"),
        (chain.as_str(), "256 deep"),
    ] {
        match bench.constraints.compile(&Rules::Gbnf(grammar.into())) {
            Err(Refused::Invalid(what)) => assert!(what.contains(told), "{grammar}: {what}"),
            other => panic!("{grammar}: {other:?}"),
        }
    }
    for grammar in ["start: \"a", "start: b", &"(".repeat(60_000)] {
        assert!(bench.constraints.compile(&Rules::Lark(grammar.into())).is_err(), "{grammar}");
    }
    assert_eq!(
        bench.walk(&bench.constraints.compile(&Rules::Lark("start: /[0-9]{2}/ \"!\"".into())).expect("a grammar"), "12!"),
        Way::Whole
    );
}

#[test]
fn what_a_schema_cannot_be_held_to_is_refused_by_name() {
    let bench = bench();
    let far: Value = (0..70).fold(json!({ "type": "null" }), |inner, _| json!({ "items": inner, "type": "array" }));
    for (schema, word) in [
        (json!({ "if": { "type": "string" }, "then": { "minLength": 1 } }), "`if`"),
        (json!({ "type": "string", "not": { "const": "x" } }), "`not`"),
        (json!({ "properties": { "a": { "type": "array", "uniqueItems": true } } }), "`properties.a.uniqueItems`"),
        (json!({ "type": "array", "contains": { "type": "null" } }), "`contains`"),
        (json!({ "type": "object", "dependentRequired": { "a": ["b"] } }), "`dependentRequired`"),
        (json!({ "type": "object", "propertyNames": { "maxLength": 3 } }), "`propertyNames`"),
        (json!({ "type": "object", "allOf": [{}], "unevaluatedProperties": false }), "`unevaluatedProperties`"),
        (json!({ "type": "string", "minLength": 435_063_862_499_u64 }), "`minLength`"),
        (json!({ "type": "string", "pattern": "(^a|b$)c" }), "`pattern`"),
        (json!({ "type": "string", "pattern": "\\Aa\\z" }), "`\\A`"),
        (json!({ "patternProperties": { "a": {}, "ab": {} } }), "`patternProperties`"),
        (json!({ "patternProperties": { "^\\d": {}, "^[0-9]": {} } }), "the same"),
        (
            json!({ "patternProperties": (0..65).map(|i| (format!("^k{i}$"), json!({}))).collect::<serde_json::Map<_, _>>() }),
            "at most 64",
        ),
        (json!({ "type": "string", "pattern": "^(?!x).*$" }), "look-around"),
        (json!({ "type": "string", "pattern": "(a)\\1" }), "reference back"),
        (json!({ "type": "string", "pattern": "(" }), "`pattern`"),
        (json!({ "type": "string", "format": "idn-email" }), "`format`"),
        (json!({ "type": "string", "format": "unknown" }), "`format`"),
        (json!({ "type": "object", "minProperties": 2 }), "`minProperties`"),
        (json!({ "$ref": "https://example.com/s.json" }), "`$ref`"),
        (json!({ "$ref": "#/$defs/nothing" }), "nowhere"),
        (json!({ "$ref": "#" }), "leads to itself"),
        (
            json!({ "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/a" }], "$defs": { "a": { "allOf": [{ "$ref": "#" }] } } }),
            "leads to itself",
        ),
        (json!({ "x-guidance": { "lenient": true }, "not": {} }), "`x-guidance`"),
        (json!({ "type": "integer", "maximum": 1e300 }), "2^53"),
        (json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }), "oneOf"),
        (json!({ "type": "array", "maxItems": 1_000_000_000 }), "`maxItems`"),
        (json!(false), "false"),
        (json!({ "allOf": [{ "type": "string" }, { "type": "null" }] }), ""),
    ] {
        match bench.schema(&schema) {
            Err(Refused::Invalid(what)) => assert!(what.contains(word), "{schema}: {what}"),
            other => panic!("{schema}: {other:?}"),
        }
    }
    // Deep, and held to.
    bench.schema(&far).expect("a schema of seventy levels");
    assert_eq!(
        bench.walk(&bench.schema(&json!({ "type": "array", "uniqueItems": false })).expect("a schema"), "[1, 1]"),
        Way::Whole
    );
    // Names are no keywords.
    let named =
        json!({ "type": "object", "properties": { "not": { "type": "integer" }, "if": { "const": "x" } }, "required": ["not"] });
    assert_eq!(bench.walk(&bench.schema(&named).expect("a schema"), r#"{"not": 3, "if": "x"}"#), Way::Whole);
}

#[test]
fn what_schemas_say_is_what_is_let_through() {
    let bench = bench();
    let text = |keyword: &str, value: &str| json!({ "type": "string", keyword: value });
    let long_name = format!("\"{}a\"", "abcdefg.".repeat(40));
    for (schema, whole, not) in [
        // Patterns are ECMA-262's.
        (text("pattern", "^.{1,2}$"), &[r#""a""#][..], &[r#""\r""#, "\"\u{2028}\"", r#""abc""#][..]),
        (text("pattern", r"^\s$"), &["\" \"", "\"\u{feff}\""], &["\"\u{85}\"", r#""a""#]),
        (text("pattern", "^[[:alpha:]]$"), &[r#""a]""#, r#"":]""#], &[r#""a""#, r#""z]""#]),
        (text("pattern", "^[a-f--c]$"), &[r#""a""#], &[r#""-c""#, r#""z""#]),
        (text("pattern", "^[^<>()[\\]\\\\.,;:\\s@\"]+$"), &[r#""ab""#], &[r#""a[""#, r#""a@""#]),
        (
            json!({ "type": "object", "patternProperties": { "^[[]$": { "type": "null" } }, "additionalProperties": false }),
            &[r#"{"[": null}"#],
            &[r#"{"a": null}"#],
        ),
        // Dates are days that there were.
        (
            text("format", "date"),
            &[r#""2024-02-29""#, r#""2000-02-29""#],
            &[r#""2023-02-29""#, r#""1900-02-29""#, r#""2024-04-31""#, r#""0000-01-01""#],
        ),
        (text("format", "time"), &[r#""23:59:59.5+02:00""#], &[r#""12:30:60Z""#]),
        (
            text("format", "date-time"),
            &[r#""2024-02-29T10:00:00Z""#],
            &[r#""2023-02-29T10:00:00Z""#, r#""2024-01-01T10:00:60Z""#],
        ),
        (json!({ "type": "string", "format": "date", "pattern": "^2" }), &[r#""2024-02-29""#], &[r#""1024-02-29""#, r#""2""#]),
        (text("format", "hostname"), &[r#""a.b""#], &[long_name.as_str()]),
        // Counts may be written as fractions, and words that say nothing are none.
        (json!({ "type": "array", "minItems": 1.0, "maxItems": 2.0 }), &["[1]", "[1, 2]"], &["[]", "[1, 2, 3]"]),
        (json!({ "type": "integer", "then": { "maximum": 3 }, "maxContains": 2, "dependentRequired": {} }), &["7"], &["x"]),
        (
            json!({ "type": "object", "properties": { "a": { "type": "null" } }, "unevaluatedProperties": false }),
            &[r#"{"a": null}"#, "{}"],
            &[r#"{"b": null}"#],
        ),
        (json!({ "type": "array", "prefixItems": [{ "type": "null" }], "unevaluatedItems": false }), &["[null]"], &["[null, 1]"]),
    ] {
        let compiled = bench.schema(&schema).unwrap_or_else(|e| panic!("{schema}: {e}"));
        for text in whole {
            assert_eq!(bench.walk(&compiled, text), Way::Whole, "{schema}: {text:?}");
        }
        for text in not {
            assert_ne!(bench.walk(&compiled, text), Way::Whole, "{schema}: {text:?}");
        }
    }
}

/// Whether a value is valid against the keywords that `random_schema` writes.
fn is_valid(value: &Value, schema: &Value) -> bool {
    let Some(map) = schema.as_object() else { return schema != &Value::Bool(false) };
    map.iter().all(|(key, want)| match key.as_str() {
        "const" => value == want,
        "enum" => want.as_array().expect("a list").contains(value),
        "anyOf" => want.as_array().expect("a list").iter().any(|one| is_valid(value, one)),
        "type" => match want.as_str().expect("a type") {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
            _ => value.is_number(),
        },
        "minimum" => value.as_f64().is_none_or(|n| n >= want.as_f64().expect("a number")),
        "maximum" => value.as_f64().is_none_or(|n| n <= want.as_f64().expect("a number")),
        "minLength" => value.as_str().is_none_or(|s| s.chars().count() as u64 >= want.as_u64().expect("a number")),
        "maxLength" => value.as_str().is_none_or(|s| s.chars().count() as u64 <= want.as_u64().expect("a number")),
        "minItems" => value.as_array().is_none_or(|a| a.len() as u64 >= want.as_u64().expect("a number")),
        "maxItems" => value.as_array().is_none_or(|a| a.len() as u64 <= want.as_u64().expect("a number")),
        "items" => value.as_array().is_none_or(|a| a.iter().all(|item| is_valid(item, want))),
        "required" => {
            let names = want.as_array().expect("a list");
            value.as_object().is_none_or(|o| names.iter().all(|name| o.contains_key(name.as_str().expect("a name"))))
        }
        "properties" => value.as_object().is_none_or(|o| {
            want.as_object().expect("an object").iter().all(|(name, one)| o.get(name).is_none_or(|value| is_valid(value, one)))
        }),
        "additionalProperties" => {
            let own = map.get("properties").and_then(Value::as_object);
            value.as_object().is_none_or(|o| {
                o.iter().all(|(name, value)| own.is_some_and(|own| own.contains_key(name)) || is_valid(value, want))
            })
        }
        "pattern" => {
            value.as_str().is_none_or(|s| s.starts_with("ab") && s.len() == 4 && s[2..].bytes().all(|b| b.is_ascii_digit()))
        }
        other => panic!("{other}"),
    })
}

fn random_schema(random: &mut fastrand::Rng, depth: usize) -> Value {
    let low = random.i32(-20..20);
    match random.usize(0..if depth > 2 { 8 } else { 11 }) {
        0 => json!({ "type": "integer", "minimum": low, "maximum": low + random.i32(0..300) }),
        1 => json!({ "type": "number", "minimum": f64::from(low) / 4.0, "maximum": f64::from(low) / 4.0 + 2.5 }),
        2 => json!({ "type": "string", "minLength": random.usize(0..3), "maxLength": random.usize(3..6) }),
        3 => json!({ "type": "string", "pattern": "^ab[0-9]{2}$" }),
        4 => json!({ "enum": ["red", "a\"b", 3, null, [1, "x"], { "k": true }] }),
        5 => {
            let constant = [json!("é"), json!(7), json!(false)][random.usize(0..3)].clone();
            json!({ "const": constant })
        }
        6 => json!({ "type": "boolean" }),
        7 => json!({ "type": "null" }),
        8 => json!({ "type": "array", "items": random_schema(random, depth + 1), "minItems": random.usize(0..3), "maxItems": 4 }),
        9 => {
            let names = ["a", "b\"c", "long name", "d"];
            let n = random.usize(1..names.len());
            let properties: serde_json::Map<String, Value> =
                names[..n].iter().map(|name| ((*name).to_owned(), random_schema(random, depth + 1))).collect();
            let required: Vec<&str> = names[..n].iter().copied().filter(|_| random.bool()).collect();
            let more = [json!(false), json!({ "type": "boolean" })][random.usize(0..2)].clone();
            json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": more })
        }
        _ => json!({ "anyOf": [random_schema(random, depth + 1), random_schema(random, depth + 1)] }),
    }
}

#[test]
fn whatever_chance_writes_is_valid() {
    let bench = bench();
    let mut random = fastrand::Rng::with_seed(7);
    let n_schemas = if lowkey_test_kit::emulated().is_some() { 6 } else { 60 };
    let (mut n_whole, mut n_all) = (0, 0);
    for _ in 0..n_schemas {
        let schema = random_schema(&mut random, 0);
        let grammar = bench.schema(&schema).unwrap_or_else(|e| panic!("{schema}: {e}"));
        for _ in 0..3 {
            n_all += 1;
            let Some(text) = bench.chance(&grammar, &mut random, 120) else { continue };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
            assert!(is_valid(&value, &schema), "{schema}: {text}");
            n_whole += 1;
        }
    }
    assert!(2 * n_whole > n_all, "only {n_whole} of {n_all} came to their end");
}

/// Grammars and schemas that want much.
fn hostile() -> Vec<(String, Rules)> {
    let many = |n: usize, item: &dyn Fn(usize) -> String, between: &str| (0..n).map(item).collect::<Vec<_>>().join(between);
    let schema = |value: Value| Rules::Schema(value);
    let text = |text: String| Rules::Gbnf(text);
    let word = |i: usize| format!("w{}x{}", i * 7919 % 10007, i);
    let nested = (0..60).fold(json!({ "type": "string", "maxLength": 50 }), |inner, i| {
        json!({ "type": "object", "properties": { (format!("p{i}")): inner, "q": { "type": "string", "pattern": "^[a-z]{3,40}[0-9]+$" } } })
    });
    let choices = Value::Array((0..2500).map(|i| word(i).into()).collect());
    let refs: serde_json::Map<String, Value> = (0..90)
        .map(|i| {
            (
                format!("d{i}"),
                json!({ "type": "object", "properties": { "next": { "$ref": format!("#/$defs/d{}", (i + 1) % 90) } } }),
            )
        })
        .collect();
    let long: serde_json::Map<String, Value> =
        (0..90).map(|i| (format!("d{i}"), json!({ "$ref": format!("#/$defs/d{}", i + 1) }))).collect();
    let wide: serde_json::Map<String, Value> = (0..1500).map(|i| (word(i), json!({ "type": "integer" }))).collect();
    let any_of = |n: usize| {
        Value::Array((0..n).map(|i| json!({ "properties": { (word(i)): { "type": "string" } }, "type": "object" })).collect())
    };
    let all = vec![
        ("length", schema(json!({ "type": "string", "maxLength": 1_000_000_000 }))),
        ("least length", schema(json!({ "type": "string", "minLength": 1_000_000_000 }))),
        ("lengths", schema(json!({ "type": "string", "minLength": 99_999, "maxLength": 100_000 }))),
        ("items", schema(json!({ "type": "array", "minItems": 9_000, "maxItems": 10_000 }))),
        (
            "items of items",
            schema(
                json!({ "type": "array", "maxItems": 9999, "items": { "type": "array", "maxItems": 9999, "items": { "type": "array", "maxItems": 9999 } } }),
            ),
        ),
        ("pattern", schema(json!({ "type": "string", "pattern": "^(([a-z]{1,500}){1,500}){1,500}$" }))),
        ("patterns", schema(json!({ "type": "string", "pattern": "(a|b)*a(a|b){300}$" }))),
        ("classes", schema(json!({ "type": "string", "pattern": "^\\p{L}{1,1000}\\p{N}{1,1000}$" }))),
        ("nested", schema(nested)),
        ("choices", schema(json!({ "enum": choices }))),
        (
            "objects to choose from",
            schema(json!({ "enum": (0..700).map(|i| json!({ (word(i)): [i, { (word(i)): null }] })).collect::<Vec<_>>() })),
        ),
        (
            "more objects",
            schema(json!({ "enum": (0..1500).map(|i| json!({ (word(i)): [i, { (word(i)): null }] })).collect::<Vec<_>>() })),
        ),
        (
            "one large object",
            schema(json!({ "const": (0..1500).map(|i| json!({ (word(i)): [i, { (word(i)): null }] })).collect::<Vec<_>>() })),
        ),
        ("circle", schema(json!({ "$ref": "#/$defs/d0", "$defs": refs }))),
        ("self", schema(json!({ "$ref": "#" }))),
        ("chain", schema(json!({ "$ref": "#/$defs/d0", "$defs": long }))),
        ("wide", schema(json!({ "type": "object", "properties": wide }))),
        (
            "wide, closed",
            schema(json!({ "type": "object", "properties": wide, "additionalProperties": false, "minProperties": 1 })),
        ),
        ("all of any", schema(json!({ "allOf": [{ "anyOf": any_of(60) }, { "anyOf": any_of(60) }] }))),
        ("any of many", schema(json!({ "anyOf": any_of(700) }))),
        (
            "many patterns",
            schema(
                json!({ "type": "object", "patternProperties": (0..40).map(|i| (format!("^k{i}_[a-z]*$"), json!({ "type": "null" }))).collect::<serde_json::Map<_, _>>() }),
            ),
        ),
        ("multiples", schema(json!({ "type": "integer", "multipleOf": 999_983 }))),
        ("numbers", schema(json!({ "type": "number", "minimum": -1234567.891, "maximum": 9876543.21 }))),
        ("addresses", schema(json!({ "type": "array", "items": { "type": "string", "format": "uri" }, "minItems": 50 }))),
        ("alternatives", text(format!("root ::= {}", many(4000, &|i| format!("\"{}\"", word(i)), " | ")))),
        (
            "rules",
            text(format!(
                "root ::= {}\n{}",
                many(3000, &|i| format!("r{i}"), " | "),
                many(3000, &|i| format!("r{i} ::= \"{}\" root?", word(i)), "\n")
            )),
        ),
        ("repeats", text("root ::= ((([a-z]{0,2000}){0,2000}){0,2000}){0,2000}".into())),
        ("recursive repeats", text("root ::= (\"a\" root?){0,2000}{0,2000}".into())),
        ("ambiguous", text("root ::= root root | \"a\" | \"aa\" | \"\"".into())),
        ("ambiguous too", text("root ::= x*\nx ::= y* \nx-y ::= x\ny ::= \"a\" | \"b\" x y | x".into())),
        ("left", text("root ::= root \"a\" | root \"b\" | root [a-z] | \"\"".into())),
        ("characters", text("root ::= ([a-z] | [b-y] | [c-x] | \"a\" root \"z\")*".into())),
        ("long text", text(format!("root ::= \"{}\"", "lorem ipsum ".repeat(5000)))),
        ("exponential", text(format!("root ::= [ab]* \"a\" {}", "[ab] ".repeat(400)))),
        ("lark", Rules::Lark("start: A\nA: /(.*a){1,200}b{1,2000}/ & /.*c.*d(.|\\n){1,2000}/".into())),
        ("lark alternatives", Rules::Lark(format!("start: {}", many(9000, &|i| format!("\"{i}\""), "|")))),
        ("lark not", Rules::Lark("start: A\nA: ~(/(a|b)*a(a|b){40}/)".into())),
    ];
    all.into_iter().map(|(name, rules)| (name.to_owned(), rules)).collect()
}

/// Of the whole process, in which nothing else runs: the machine may be busy with other things.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("a status");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * ticks)
}

/// One after the other in one process, as a server would meet them.
#[test]
fn hostile_rules_stay_within_their_memory_and_time() {
    let mut bench = bench();
    let mut lost = Vec::new();
    let mut random = fastrand::Rng::with_seed(3);
    let n_tokens = if lowkey_test_kit::emulated().is_some() { 5 } else { 150 };
    let mut worst = (0, String::new());
    for (name, rules) in hostile() {
        let rules_bytes = format!("{rules:?}").len();
        let since = Since::now();
        let begun = cpu_time();
        let made = bench.constraints.compile(&rules);
        let took = cpu_time() - begun;
        let made_peak = since.most();
        let mut what = match &made {
            Ok(_) => "made".to_owned(),
            Err(refused) => format!("{refused}").chars().take(90).collect(),
        };
        let (mut slowest, mut n_taken) = (Duration::ZERO, 0);
        if let Ok(grammar) = &made {
            let mut live = grammar.begin();
            while n_taken < n_tokens {
                let begun = Instant::now();
                let Some(mask) = live.mask().map(<[u32]>::to_vec) else { break };
                let n_set = mask.iter().map(|word| word.count_ones() as usize).sum::<usize>();
                let nth = random.usize(0..n_set.max(1));
                let set = (0..mask.len() * 32).filter(|i| mask[i / 32] >> (i % 32) & 1 == 1).nth(nth);
                let Some(token) = set else { break };
                if !live.allows(token as u32) || live.accept(token as u32) {
                    break;
                }
                slowest = slowest.max(begun.elapsed());
                n_taken += 1;
            }
            what += &format!(", {n_taken} tokens, {:?}", live.stuck());
        }
        let most = since.most();
        // Beside the region: the rules themselves as they are read and written anew.
        let allowed = REGION + 8 * rules_bytes;
        println!("{name}: {took:.1?}, {made_peak} made, {most} at most, slowest token {slowest:.1?}: {what}");
        assert!(most <= allowed, "{name}: {most} bytes of {allowed}");
        let limit = Duration::from_secs(if cfg!(debug_assertions) { 3 } else { 1 });
        assert!(took <= limit || lowkey_test_kit::emulated().is_some(), "{name}: made in {took:?}");
        drop(made);
        if bench.constraints.left() < REGION {
            // What a thread was stopped with never comes back.
            lost.push(name.clone());
            bench.constraints = Constraints::new(&bench.tokenizer, REGION);
        }
        if most > worst.0 {
            worst = (most, name);
        }
    }
    println!("the most: {worst:?}");
    assert_eq!(lost, Vec::<String>::new(), "everything is given back");
}

#[test]
fn the_memory_of_an_answer_that_has_just_ended_is_waited_for() {
    let bench = bench();
    let schema = Rules::Schema(json!({ "enum": (0..40).map(|i| format!("value {i}")).collect::<Vec<_>>() }));
    let held = bench.constraints.compile(&schema).expect("a grammar");
    let taken = REGION - bench.constraints.left();
    drop(held);
    // Three grammars take more than a third of this, so that there is no room to make a fourth.
    let small = Constraints::new(&bench.tokenizer, taken * 7);
    let held: Vec<Arc<Grammar>> = (0..3).map(|_| small.compile(&schema).expect("a grammar")).collect();
    let began = Instant::now();
    assert!(matches!(small.compile(&schema), Err(Refused::Busy)), "the answers go on");
    assert!(began.elapsed() < Duration::from_secs(5), "nobody waits for long: {:?}", began.elapsed());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        assert!(small.compile(&schema).is_ok(), "the answers have ended meanwhile");
    });
}
