//! Chat templates: the Jinja source that a model file carries, rendered over a conversation as the Hugging Face `transformers`
//! library would render it (block trimming, Python's string and dict methods, `raise_exception`, `strftime_now`, `tojson`).
//!
//! Refuses a template that does not parse and a conversation that the template itself refuses, saying where. Never guesses
//! another template: the user names one.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Message as Text, Result, Setting};
use crate::gguf::GgufFile;
use crate::message;

use super::named_templates::NAMED;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

pub struct ChatTemplate {
    environment: Environment<'static>,
}

const NAME: &str = "chat template";

impl ChatTemplate {
    pub fn new(source: &str) -> Result<Self> {
        Self::with_clock(source, now)
    }

    /// `clock`: the seconds since 1970 that `strftime_now` writes.
    pub fn with_clock(source: &str, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::stopped(describe(&error)))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(format, clock()));
        environment.add_filter("tojson", tojson);
        // To Python `none` is not iterable: templates ask `tools is iterable` before they count tools.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        let source = without_generation_marks(source);
        environment.add_template_owned(NAME, source).map_err(|error| Error::stopped(describe(&error)))?;
        Ok(ChatTemplate { environment })
    }

    /// A template of `named_templates.rs`, or that of a file; a file stands before a name.
    pub fn named(name: &str) -> Result<Self> {
        let known = NAMED.iter().find(|(known, ..)| *known == name).filter(|_| !Path::new(name).exists());
        if let Some((.., source)) = known {
            return Self::new(source);
        }
        let source = std::fs::read_to_string(name).map_err(|e| {
            let names = NAMED.map(|(known, models, _)| format!("{known} ({models})")).join(", ");
            Error::usage(Setting::Template, format!("{name}: {e}; give a file, or one of these names: {names}"))
        })?;
        Self::new(&source).map_err(|e| Error::usage(Setting::Template, message![format!("{name}: "), e.message()]))
    }

    /// The template in the model file, `tokenizer.chat_template`.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let Some(source) = file.opt_str("tokenizer.chat_template")? else {
            let what = "has no chat template (metadata tokenizer.chat_template), so it may not be a chat model; set ";
            let what = message![what, Setting::Template, " to one, by name or file"];
            return Err(Error::unsupported(file.path(), what));
        };
        Self::new(source).map_err(|error| Error::unsupported(file.path(), error.message()))
    }

    /// The text of the conversation; with `add_generation_prompt` it ends where the assistant's answer begins. `bos` and `eos` are
    /// the texts of those tokens: encode the result with special tokens parsed.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, bos: &str, eos: &str) -> Result<String> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            bos_token => bos,
            eos_token => eos,
            tools => (),
            documents => (),
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| Error::stopped(describe(&error)))
    }
}

/// Marks an error as one that the template raised by its own will.
const RAISED: &str = "raise_exception: ";

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn describe(error: &minijinja::Error) -> Text {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().unwrap_or_default().replace('\n', " ");
    let what = match detail.strip_prefix(RAISED) {
        Some(message) => format!("it refuses this conversation: {message}; change the messages or "),
        None if detail.is_empty() => format!("{}; ", error.kind()),
        None => format!("{}: {detail}; ", error.kind()),
    };
    message![format!("{NAME}{line}: {what}set "), Setting::Template, " to another, by name or file"]
}

/// Training templates mark the assistant's words with `{% generation %}` and `{% endgeneration %}`, an extension of `transformers`
/// that changes no text. The marks become comments, which keep their whitespace control and the count of lines.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + len]);
        out.push_str(before);
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        if word == "generation" || word == "endgeneration" {
            // An `if` that is always true: unlike a comment it is a block, so the newline after it is trimmed alike.
            let inner = if word == "generation" { "if true" } else { "endif" };
            out.push_str("{%");
            out.push_str(&tag.replace(word, inner));
            out.push_str("%}");
        } else {
            out.push_str(&rest[start..start + len + 2]);
        }
        rest = &rest[start + len + 2..];
    }
    out.push_str(rest);
    out
}

/// As Python's `json.dumps(value, ensure_ascii=False)`: `", "` and `": "`, nothing escaped for HTML. `indent` as there.
fn tojson(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted, since `transformers` does, and without an effect on text that is JSON already.
    let _: (Option<bool>, Option<bool>, Option<Value>) =
        (options.get("ensure_ascii")?, options.get("sort_keys")?, options.get("separators")?);
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    let spaces = [b' '; 16];
    match indent {
        Some(width) => {
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces[..width.min(spaces.len())]);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing)).map_err(failed)?,
    }
    String::from_utf8(out).map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Seconds since 1970. A clock that is set before then counts as 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0)
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `strftime` in UTC, the codes that templates use; an unknown code stays as it is written.
fn strftime(format: &str, seconds: u64) -> String {
    let days = seconds / 86_400;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day, day_of_year) = civil_date(days);
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = rest.next();
        // `%-d`: without the leading zero.
        let width = if code == Some('-') { 1 } else { 2 };
        if width == 1 {
            code = rest.next();
        }
        match code {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:0width$}")),
            Some('d') => out.push_str(&format!("{day:0width$}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('j') => out.push_str(&format!("{day_of_year:03}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{hour:0width$}")),
            Some('I') => out.push_str(&format!("{hour12:0width$}")),
            Some('M') => out.push_str(&format!("{minute:0width$}")),
            Some('S') => out.push_str(&format!("{second:0width$}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month, day and day of the year of a day counted from 1970-01-01.
fn civil_date(days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have 146097 days; what is left is under that, so the loops are short.
    let mut year = 1970 + days / 146_097 * 400;
    let mut left = days % 146_097;
    while left >= 365 + leap(year) as u64 {
        left -= 365 + leap(year) as u64;
        year += 1;
    }
    let day_of_year = left + 1;
    let lengths = [31, 28 + leap(year) as u64, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message> {
        vec![
            Message::new("system", "Be brief."),
            Message::new("user", " Hi <b>\"you\"</b> "),
            Message::new("assistant", "Hello!"),
            Message::new("user", "Bye"),
        ]
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::new(source)?.render(messages, true, "<s>", "</s>")
    }

    #[test]
    fn chatml_shape_with_default_system() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}\
            {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let text = render(source, &conversation()[1..2]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n Hi <b>\"you\"</b> <|im_end|>\n<|im_start|>assistant\n"
        );
        let template = ChatTemplate::new(source).unwrap();
        let text = template.render(&conversation(), false, "", "").unwrap();
        assert!(
            text.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n") && text.ends_with("<|im_start|>user\nBye<|im_end|>\n")
        );
    }

    #[test]
    fn header_shape_with_slices_namespace_dates_and_macros() {
        let source = "{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now(\"%Y\") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = \"\" %}
{%- endif %}
{%- macro header(role) %}<|start_header_id|>{{ role }}<|end_header_id|>

{% endmacro %}
{{- header('system') }}
{%- if tools is not none %}{{- 'TOOLS' }}{%- endif %}
{{- 'Year: ' + date_string|string|length|string + '\\n' + system_message + '<|eot_id|>' }}
{%- set state = namespace(count=0) %}
{%- for message in messages %}
    {%- set state.count = state.count + 1 %}
    {{- header(message.role) + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
{{- state.count }}";
        let header = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
        let want = format!(
            "<s>{}Year: 4\nBe brief.<|eot_id|>{}Hi <b>\"you\"</b><|eot_id|>{}Hello!<|eot_id|>{}Bye<|eot_id|>{}3",
            header("system"),
            header("user"),
            header("assistant"),
            header("user"),
            header("assistant")
        );
        assert_eq!(render(source, &conversation()).unwrap(), want);
    }

    /// As Gemma's: the system's words open the user's first turn, and the assistant is `model`.
    #[test]
    fn turns_shape_that_puts_the_system_into_the_first_turn() {
        let source = "{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('must alternate') }}{%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (opening if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}{{ item['text'] }}{%- endfor -%}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}";
        let want = "<s><start_of_turn>user\nBe brief.\n\nHi <b>\"you\"</b><end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n\
            <start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n";
        assert_eq!(render(source, &conversation()).unwrap(), want);
    }

    #[test]
    fn instruct_shape_that_insists_on_alternation() {
        let source = "{{ bos_token }}{% for message in messages %}\
            {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
            {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
            {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}\
            {% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
            {% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";
        assert_eq!(
            render(source, &conversation()[1..]).unwrap(),
            "<s>[INST] Hi <b>\"you\"</b> [/INST]Hello!</s>[INST] Bye [/INST]"
        );
        let error = render(source, &conversation()).unwrap_err().to_string();
        assert!(error.contains("must alternate") && error.contains("by name or file") && error.contains("line 1"), "{error}");
        assert!(!error.contains('\n') && !error.contains("raise_exception"), "{error}");
    }

    #[test]
    fn think_shape_with_python_methods_and_reversal() {
        let source = "{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == 'user' and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- message.role ~ ':' ~ content ~ '\\n' }}
    {%- if message.reasoning_content is defined %}{{- 'never' }}{%- endif %}
    {%- if message.get('name') %}{{- 'never' }}{%- endif %}
{%- endfor %}
{{- ns.last }}";
        let messages = [Message::new("user", "<tool>x</tool>y"), Message::new("assistant", "<think>\nhm\n</think>\n\nyes")];
        assert_eq!(render(source, &messages).unwrap(), "user:<tool>x</tool>y\nassistant:yes\n0");
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let source = "A\n  {% if true %}\nB {{ '' }}\n  {% endif %}\n{# note #}\nC\n";
        assert_eq!(render(source, &[]).unwrap(), "A\nB \nC");
    }

    #[test]
    fn generation_marks_change_no_text() {
        let source = "{% for m in messages %}{% generation %}{{ m.content }}{%- endgeneration -%}  .{% endfor %}";
        assert_eq!(render(source, &conversation()[2..]).unwrap(), "Hello!.Bye.");
    }

    #[test]
    fn loop_controls_and_json_as_python_writes_it() {
        let source = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}";
        let want = r#"{"role": "system", "content": "Be brief."}{"role": "user", "content": " Hi <b>\"you\"</b> "}"#;
        assert_eq!(render(source, &conversation()).unwrap(), want);
        let source = "{{ {'a': [1, 2.5, none, true, 'é<&'], 'b': {}} | tojson }}";
        assert_eq!(render(source, &[]).unwrap(), r#"{"a": [1, 2.5, null, true, "é<&"], "b": {}}"#);
        assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}", &[]).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }

    #[test]
    fn none_is_not_iterable_and_the_rest_as_in_python() {
        let source = "{% for x in [none, 'ab', [], {}, 1, true, missing, messages] %}{{ x is iterable }} {% endfor %}";
        assert_eq!(render(source, &[]).unwrap().to_lowercase(), "false true true true false false true true ");
    }

    #[test]
    fn a_broken_template_says_where_and_what_to_do() {
        for (source, line, word) in [
            ("a\n{% for m in messages %}\n{{ m.content ", "line 3", "syntax error"),
            ("a\n\n{% frobnicate %}", "line 3", "frobnicate"),
            ("{% if true %}", "line 1", "end of input"),
        ] {
            let error = ChatTemplate::new(source).err().expect(source).to_string();
            assert!(error.contains(line) && error.contains(word) && error.contains("by name or file"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for (source, word) in
            [("x\n{{ messages.nothing.more }}", "undefined"), ("x\n{{ missing_function() }}", "missing_function")]
        {
            let error = render(source, &[]).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(word) && error.contains("by name or file"), "{error}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%Y-%m-%d %H:%M:%S %j %a %A %b %B %-d %e %y %I %p %F %T %% %Q %";
        let want = "1970-01-01 00:00:00 001 Thu Thursday Jan January 1  1 70 12 AM 1970-01-01 00:00:00 % %Q %";
        assert_eq!(strftime(all, 0), want);
        for (seconds, date) in [
            (951_782_400, "Tue 29 Feb 2000 060"),
            (1_709_251_199, "Thu 29 Feb 2024 060"),
            (1_735_689_599, "Tue 31 Dec 2024 366"),
            (4_107_542_400, "Mon 01 Mar 2100 060"),
            (13_574_563_200, "Tue 29 Feb 2400 060"),
        ] {
            assert_eq!(strftime("%a %d %b %Y %j", seconds), date);
        }
    }
}
