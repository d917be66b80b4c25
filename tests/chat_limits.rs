//! A chat template is a stranger's program. Whatever it says, rendering ends soon, within the memory that is planned for it, with a
//! text or one line: templates that were made to break that, and thousands made by cutting and joining others.
//!
//! The allocator counts what each thread takes, beside the program's own, which holds rendering to its share. Thousands of templates
//! run in child processes, since an overflow of the stack ends a process.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lowkey::text::{ChatTemplate, Message, named_templates::NAMED};
use lowkey_test_kit::counting::{Counting, Since, alone};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Set in a child: the first seed and the number of templates.
const CHILD: &str = "LOWKEY_FUZZ_CHILD";
const PER_CHILD: u64 = 500;
/// On the slowest machine that tests run on, emulated ones apart.
const SLOW: Duration = Duration::from_secs(5);

/// What came of a template, one line if it was refused.
fn outcome(source: &str, messages: &[Message]) -> Result<String, String> {
    let text_bytes: usize = messages.iter().map(|turn| turn.content.len() + turn.role.len()).sum();
    let (begun, since) = (Instant::now(), Since::now());
    let template = ChatTemplate::new(source);
    let plan = template.as_ref().map_or(0, |template| template.plan_bytes(text_bytes));
    let outcome = template.and_then(|template| template.render(messages, true, "<s>", "</s>"));
    let (peak, took) = (since.most(), begun.elapsed());
    let shown = || format!("{:?} … ({} bytes)", source.chars().take(300).collect::<String>(), source.len());
    assert!(took < SLOW || lowkey_test_kit::emulated().is_some(), "{took:?}: {}", shown());
    if std::env::var_os("LOWKEY_SHOW").is_some() {
        println!("{peak} of {plan}, {text_bytes} of text, {took:?}, {:?}", source.chars().take(40).collect::<String>());
    }
    assert!(plan == 0 || peak <= plan, "{peak} bytes of {plan} planned: {}", shown());
    outcome.map_err(|error| {
        let line = error.to_string();
        assert!(error.exit_code() == 1 && line.lines().count() == 1 && line.contains("by name or file"), "{line}");
        assert!(line.len() < 2000, "{line}");
        line
    })
}

fn greeting() -> Vec<Message> {
    vec![Message::new("user", "hi")]
}

/// Templates made to take time, memory or stack, and what a refusal names; nothing where a text may come of it.
fn attacks() -> Vec<(String, &'static str)> {
    let many = |part: &str| part.repeat(25_000);
    let looped = |body: &str| {
        format!("{{% set ns = namespace(a='x', l=[], m={{}}) %}}{{% for i in range(100000) %}}{body}{{% endfor %}}{{{{ ns.a }}}}")
    };
    let work = "more work";
    let memory = "more memory";
    let mut list: Vec<(String, &str)> = vec![
        ("{{ 'a' | indent(10000000000) }}".into(), ""),
        ("{{ ' ' * 1000000000 }}".into(), ""),
        ("{{ 'ab' * 1000000 }}".into(), memory),
        ("{{ 'x' | center(100000000) }}".into(), ""),
        ("{{ 'x'.ljust(10000000000) }}".into(), "filled up"),
        ("{{ 'x'.center(100000000000000000000) }}".into(), ""),
        ("{{ 'a\tb'.expandtabs(10000000000) }}".into(), ""),
        ("{{ '%10000000000d' % 3 }}{{ '%.10000000000f' % 3 }}".into(), ""),
        ("{{ '{:>10000000000}'.format('x') }}".into(), "width"),
        ("{{ '%.70000f' % 3 }}".into(), "width"),
        ("{{ '%(a)070000d' % {'a': 3} }}".into(), "width"),
        ("{{ '{:x<70000}{:.70000f}'.format(1, 2) }}".into(), "width"),
        ("{{ '%.70000f' | format(3) }}".into(), "width"),
        ("{{ [1] | tojson(indent=10000000000) }}".into(), ""),
        ("{{ [[[[[[[[1]]]]]]]] | tojson(indent=1000000) }}".into(), memory),
        ("{{ range(1000000000) | list }}".into(), "too many"),
        ("{{ range(100000) | list | string | length }}".into(), memory),
        ("{{ '\\\\'".to_owned() + &" | tojson".repeat(100) + " }}", memory),
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into(), work),
        ("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".into(), "namespace"),
        ("{% set ns = namespace() %}{% set ns.a = [{'b': ns}] %}{{ ns ~ '' }}".into(), "namespace"),
        ("{% set ns = namespace() %}{% set ns.a, x = ns, 1 %}{{ ns | string }}".into(), "namespace"),
        ("{% set a = namespace() %}{% set b = namespace(a=a) %}".into(), "namespace"),
        ("{% set ns = namespace() %}{% set ns.a | default(ns, true) %}{% endset %}{{ ns }}".into(), "namespace"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}".into(), "recursion"),
        ("{% macro m(x) %}{{ m([[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]) }}{% endmacro %}{{ m(1) }}".into(), "recursion"),
        ("{% for x in [[1]] recursive %}{{ loop([[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]) }}{% endfor %}".into(), "recursion"),
        (looped("{% set ns.a = ns.a ~ ns.a %}"), memory),
        (looped("{% set ns.a = ns.a + ns.a %}"), memory),
        (looped("{% set ns.a = ns.a.replace('x', 'xxxx') %}"), memory),
        (looped("{% set ns.a = [ns.a, ns.a] | join('x') %}"), memory),
        (looped("{% set ns.a = '%s%s' % (ns.a, ns.a) %}"), memory),
        (looped("{% set ns.a = '{0}{0}'.format(ns.a) %}"), memory),
        (looped("{% set ns.a = ns.a | tojson %}"), memory),
        (looped("{% set ns.l = ns.l + ns.l + [i] %}"), memory),
        (looped("{% set ns.l = [ns.l] %}"), "lists in lists"),
        (looped("{% set ns.m = {'m': ns.m} %}"), "lists in lists"),
        (looped("{% set ns.l = [[[[ns.l[0:]]]]] %}"), "lists in lists"),
        (looped("{% set ns.l = ns.l[0:] %}"), work),
        (looped("{% set ns.l | default([ns.l], true) %}{% endset %}"), "lists in lists"),
        (many("{% set l = [l] %}"), "longer than"),
        ("{% set l = [l] %}\n".repeat(5000), "lists in lists"),
        ("{% set l = (l or [])[0:] %}\n".repeat(4000), ""),
        ("{% macro m() %}{{ m }}{% endmacro %}\n".repeat(3000), ""),
        (format!("{{{{ {}1{} }}}}", "[".repeat(32), "]".repeat(32)), ""),
        ("a\n".repeat(59_000), ""),
        ("a\n".repeat(65_536), "more lines"),
        (format!("{{{{ '{}", "x".repeat(65_534)), "longer one"),
        (format!("{}{{{{ '", "{% set a = 1 %}".repeat(3_900)), "longer one"),
        (many("{% if a %}"), "longer than"),
        ("{% if a %}\n".repeat(11_000), "recursion"),
        ("{% for a in b %}\n".repeat(7000), "recursion"),
        (format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}\n".repeat(9_000)), "branches"),
        (many("{{ a }}"), "longer than"),
    ];
    for (before, part, behind) in [
        ("a", " ~ a", ""),
        ("", "not ", "a"),
        ("a", ".a", ""),
        ("a", " + a", ""),
        ("a", " if a else a", ""),
        ("a", " | a", ""),
        ("", "-", "1"),
        ("a", "()", ""),
    ] {
        let tag = |n: usize| format!("{{{{ {before}{}{behind} }}}}\n", part.repeat(n));
        list.push((tag(25_000), ""));
        list.push((tag(3_000), "words and signs"));
        // As many as there may be, in as many tags as there may be.
        let longest = tag(490 / part.split_whitespace().count().max(1 + part.len() / 3).min(4));
        list.push((longest.repeat((100 << 10) / longest.len()), ""));
    }
    for sign in ["(", "[", "{"] {
        list.push((format!("{{{{ {}", sign.repeat(25_000)), "brackets"));
    }
    list
}

#[test]
fn a_template_that_asks_for_too_much_is_refused_in_a_line() {
    let _alone = alone();
    for (source, word) in attacks() {
        let begun = Instant::now();
        let outcome = outcome(&source, &greeting());
        let shown: String = source.chars().take(80).collect();
        println!("{:>5} ms {shown:?}: {:?}", begun.elapsed().as_millis(), outcome.as_ref().map(|text| text.len()));
        if !word.is_empty() {
            let line = outcome.expect_err(&shown);
            assert!(line.contains(word), "{shown}: {line}");
        }
    }
}

/// What limits are for is not what they hinder: long texts and long conversations, in every template that we know.
#[test]
fn honest_templates_have_place_for_long_conversations() {
    let _alone = alone();
    let long = "What <b>is</b> this? \"é\" 中 😀\n".repeat(30_000);
    let turn = |role: &str, text: &str| Message::new(role, text);
    let mut many = Vec::new();
    (0..100).for_each(|_| many.extend([turn("user", "Why is that?"), turn("assistant", "<think>\nhm\n</think>\n\nBecause.")]));
    many.push(turn("user", "And now?"));
    let conversations = [
        vec![turn("user", &long)],
        vec![turn("system", &long), turn("user", &long), turn("assistant", &long), turn("user", &long)],
        many,
    ];
    for (place, source) in honest().iter().enumerate() {
        // A template may refuse a system's turn.
        let willing = outcome(source, &greeting()).is_ok() && outcome(source, &[turn("system", "x"), turn("user", "y")]).is_ok();
        for messages in conversations.iter().filter(|messages| messages[0].role == "user" || willing) {
            let result = outcome(source, messages);
            assert!(
                result.is_ok() || place >= NAMED.len() && !result.as_ref().unwrap_err().contains("more"),
                "{source}\n{result:?}"
            );
        }
    }
}

/// Parts of templates as they are and as they should not be.
fn mutated(sources: &[String], random: &mut fastrand::Rng) -> String {
    const NUMBERS: [&str; 6] = ["10000000000", "-1", "0", "65536", "9223372036854775807", "1e308"];
    const PIECES: [&str; 16] = [
        "{{ ns }}",
        "{% set ns = namespace(a=1) %}",
        "{% set ns.a = [ns.a] %}",
        "{% for i in range(1000) %}",
        "{% endfor %}",
        " | tojson",
        " ~ messages",
        "[",
        "(",
        "{% if x %}",
        "{% elif x %}",
        ".split('')",
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        " | indent(99999)",
        "'%999999s' % 1",
        " * 99999",
    ];
    let pick = |random: &mut fastrand::Rng| sources[random.usize(..sources.len())].clone();
    let boundary = |text: &str, at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let place = |text: &str, random: &mut fastrand::Rng| boundary(text, random.usize(..=text.len()));
    let mut text = pick(random);
    for _ in 0..random.usize(1..6) {
        let at = place(&text, random);
        let end = if random.bool() { place(&text, random) } else { boundary(&text, at + 40) };
        let (at, end) = (at.min(end), at.max(end));
        match random.u8(..8) {
            0 => text.replace_range(at..end, ""),
            1 => text.insert_str(at, PIECES[random.usize(..PIECES.len())]),
            2 => {
                let n = 1 << random.u32(1..15);
                let part = text[at..end].repeat(n.min((200 << 10) / (end - at).max(1)));
                text.insert_str(at, &part);
            }
            3 => {
                let n = 1 << random.u32(1..15);
                text.insert_str(at, &PIECES[random.usize(..PIECES.len())].repeat(n));
            }
            4 => {
                let other = pick(random);
                let cut = place(&other, random);
                text.truncate(at);
                text.push_str(&other[cut..]);
            }
            5 => {
                let digit = text[at..].find(|c: char| c.is_ascii_digit()).map(|found| found + at);
                if let Some(digit) = digit {
                    text.replace_range(digit..digit + 1, NUMBERS[random.usize(..NUMBERS.len())]);
                }
            }
            6 => text.insert_str(at, NUMBERS[random.usize(..NUMBERS.len())]),
            _ => {
                let part = text[at..end].to_owned();
                let there = place(&text, random);
                text.insert_str(there, &part);
            }
        }
    }
    text
}

/// By name, and those that `make peer-files` has fetched.
fn honest() -> Vec<String> {
    let mut sources: Vec<String> = NAMED.iter().map(|(.., source)| (*source).to_owned()).collect();
    let others = std::fs::read_dir(lowkey_test_kit::data("../../models/peer")).into_iter().flatten().flatten();
    let mut paths: Vec<_> =
        others.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "jinja")).collect();
    paths.sort();
    sources.extend(paths.iter().map(|path| std::fs::read_to_string(path).expect("a template")));
    sources
}

fn sources() -> Vec<String> {
    let mut sources = honest();
    sources.extend(attacks().into_iter().map(|(source, _)| source).filter(|source| source.len() < 5000));
    let rows = lowkey_test_kit::golden("jinja.json");
    sources.extend(rows["rows"].as_array().expect("rows").iter().step_by(7).filter_map(|row| row[0].as_str()).map(str::to_owned));
    sources
}

/// `LOWKEY_FUZZ=25000` for so many templates, as `make fuzz` has it.
#[test]
fn mutated_templates_end_in_a_text_or_a_line() {
    if lowkey_test_kit::emulated().is_some() {
        return println!("a child under limits would be the emulator");
    }
    let _alone = alone();
    let n: u64 = std::env::var("LOWKEY_FUZZ").map_or(1000, |n| n.parse().expect("a number"));
    if let Ok(first) = std::env::var(CHILD) {
        let (sources, first) = (sources(), first.parse::<u64>().expect("a seed"));
        for seed in first..first + PER_CHILD {
            let source = mutated(&sources, &mut fastrand::Rng::with_seed(seed));
            std::fs::write(std::env::temp_dir().join(format!("lowkey-fuzz-{first}.jinja")), &source).expect("a file");
            let _ = outcome(&source, &greeting());
        }
        return;
    }
    for first in (0..n).step_by(PER_CHILD as usize) {
        // Two gigabytes of addresses: a template that takes much is seen.
        let mut child = Command::new("sh");
        child.args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\""]).arg(std::env::current_exe().expect("this test"));
        child.args(["--exact", "mutated_templates_end_in_a_text_or_a_line", "--nocapture"]);
        let output = child.env(CHILD, first.to_string()).stdin(Stdio::null()).output().expect("a child");
        let kept = std::env::temp_dir().join(format!("lowkey-fuzz-{first}.jinja"));
        assert!(output.status.success(), "{}: {}: {}", kept.display(), output.status, String::from_utf8_lossy(&output.stderr));
        std::fs::remove_file(kept).expect("the file");
    }
}

/// The binary on the tiny model, with `--chat` and a template of its own.
fn program(template: &str, zone: &str, extra: &[&str]) -> (Option<i32>, String, String) {
    let path = std::env::temp_dir().join(format!("lowkey-chat-{}-{:x}.jinja", std::process::id(), template.len()));
    std::fs::write(&path, template).expect("a file");
    let mut command = lowkey_test_kit::binary(env!("CARGO_BIN_EXE_lowkey"));
    command
        .args(["run", "-p", "hi", "-n", "1", "--chat", "--json", "--ignore-eos", "-m"])
        .arg(lowkey_test_kit::data("tiny-gqa.gguf"));
    let output = command.arg("--template").arg(&path).args(extra).env("TZ", zone).output().expect("the program");
    std::fs::remove_file(&path).expect("the file");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_refuses_such_templates_in_a_line_and_plans_the_others() {
    for (source, word) in attacks().into_iter().filter(|(_, word)| !word.is_empty()).step_by(3) {
        let (code, _, error) = program(&source, "UTC", &["--memory", "16MiB", "--evict", "off"]);
        let shown: String = source.chars().take(60).collect();
        assert!(matches!(code, Some(1 | 2)) && error.lines().count() == 1 && error.contains(word), "{shown}: {code:?} {error}");
    }
    // A text that is allowed, and too long for the memory that is.
    let (code, _, error) = program("{{ 'ab ' * 60000 }}", "UTC", &["--memory", "4MiB", "--evict", "off"]);
    assert!(code == Some(1) && error.lines().count() == 1 && error.contains("--memory"), "{code:?} {error}");
}

#[test]
fn the_program_reads_the_time_zone() {
    // Offsets that no clock on Earth makes the same hour of, nor a change of hour between two runs.
    let ids = |zone: &str| {
        let (code, answer, error) = program("{{ strftime_now('%d %H') }}", zone, &[]);
        assert_eq!(code, Some(0), "{error}");
        serde_json::from_str::<serde_json::Value>(&answer).expect("JSON")["prompt_tokens"].clone()
    };
    assert_ne!(ids("UTC"), ids("JST-9"));
    assert_ne!(ids("UTC"), ids("PST8PDT"));
    assert_ne!(ids("JST-9"), ids("PST8PDT"));
}
