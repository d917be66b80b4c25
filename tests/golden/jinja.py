"""What Jinja2 makes of small templates, set up as Hugging Face `transformers` sets it up: jinja.json.

Owns: the templates, one for each thing that minijinja lacks or does otherwise, and the times that `strftime_now` is asked for.
Keeps: the text, or null where Jinja2 or Python fails.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import time

import jinja2
import jinja2.ext
import jinja2.sandbox

TEXTS = ["a,b,,c", " a  b c ", "x-a-x", "", "Straße ΟΔΟΣ", "-42", "a\tb\n\tc", "l1\nl2\r\nl3\r\x0bl4\n", "é中😀", "aXbXc"]
METHODS = [
    "split(',')", "split(',', 1)", "split(',', -1)", "split(sep=',', maxsplit=2)", "split()", "split(None, 1)", "rsplit(',', 1)", "rsplit()",
    "rsplit(None, 1)", "rsplit('-')", "rsplit(maxsplit=1)", "split('')", "partition('-')", "rpartition('-')", "partition('X')", "partition('')",
    "removeprefix('x-')", "removesuffix('-x')", "removeprefix('')", "find('a')", "find('a', 1)", "find('', 2)", "rfind('x')", "rfind('x', 0, -1)", "find('中')",
    "index('a')", "rindex('a')", "index('q')", "count('a')", "count('')", "ljust(7)", "ljust(7, '*')", "rjust(12, '中')", "center(4)", "center(9, '.')", "center(10, '.')",
    "zfill(6)", "casefold()", "swapcase()", "expandtabs()", "expandtabs(4)", "splitlines()", "splitlines(True)", "splitlines(keepends=True)", "strip()", "strip('xa-')",
    "lstrip()", "rstrip(' c')", "upper()", "lower()", "title()", "capitalize()", "isdigit()", "isalpha()", "isspace()", "isupper()", "islower()", "isalnum()",
    "startswith('a')", "startswith(('x', 'a'))", "endswith('x')", "replace('a', 'bb')", "replace('a', 'bb', 1)", "nothing()",
]  # fmt: skip
VALUES = ["'x'", "''", "5", "-3", "2.5", "true", "none", "missing", "[]", "[1, 'a']", "(1, 2)", "{}", "{'b': 1, 'a': 'é\"<'}", "{'k': [none, {}]}", "range(3)", "' 7 '", "'7.9'", "'0x1f'", "'inf'"]  # fmt: skip
TESTS = ["sequence", "mapping", "iterable", "string", "number", "integer", "float", "boolean", "none", "defined", "undefined", "callable", "true", "false"]
FILTERS = ["int", "int(7)", "int(default=7)", "int(base=16)", "float", "float(1.5)", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)",
    "tojson(separators=(',', ':'))", "tojson(indent=1, separators=(';', '='))", "tojson(true, 3)", "tojson(indent=0)", "tojson(indent='--')", "tojson(nothing=1)", "length", "list", "string"]  # fmt: skip
OTHERS = [
    "a\r\nb\rc\n", "{{ 'a\r\nb' }}|", "{% if true %}\r\nx\r\n{% endif %}\r\ny",
    "{{ '%s' % 'v' }}", "{{ '%s and %s' % ('a', 2) }}", "{{ '%d' % 3 }}|{{ '%5d|%-5d|%05d' % (1, 2, 3) }}", "{{ '%.2f' % 3.14159 }}", "{{ '%(a)s-%(b)d' % {'a': 'x', 'b': 2} }}",
    "{{ '%x %X %o' % (255, 255, 8) }}", "{{ '%%' % () }}", "{{ '%s' % [1, 2] }}", "{{ '%s' % messages[0].role | upper }}", "{{ '%s' % messages[0]['content'] ~ '!' }}",
    "{{ '%r' % 'a' }}", "{{ '%e' % 12345.678 }}", "{{ '%s %s' % ('a',) }}", "{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7.5 % 2 }}", "{{ ('%s' % 'a') ~ ('%s' % 'b') }}",
    "{{ '{} {}'.format('a', 1) }}", "{{ '{0:>5}|{1:<5}|{x:^5}'.format('a', 'b', x='c') }}", "{{ '{:.3f}'.format(2.5) }}",
    "{% set l = [1] %}{{ l.append(2) }}", "{% set d = {} %}{{ d.update({'a': 1}) }}", "{{ [3, 1].sort() }}", "{{ {}.setdefault('a', 1) }}", "{{ [1, 2].pop() }}",
    "{{ [1, 2, 1].index(2) }}", "{{ [1].index(5) }}", "{{ [1, 2, 1].count(1) }}", "{{ [1, 2].copy() }}", "{{ {'a': 1}.copy() }}", "{{ {'a': 1}.get('b', 3) }}", "{{ {'a': 1}.get('b') }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "{{ {'a': 1}.keys() | list }}", "{{ {'a': 1}.values() | list }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set x %}in{% endset %}{{ x }}", "{% set x | upper %}in{% endset %}{{ x }}", "{% set x = missing %}{{ x is defined }}",
    "{% set m = messages[1:] %}{{ m is sequence }}{{ m | length }}{{ m[0].role }}", "{% set ns = namespace(a=1, b=[2]) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% set ns.b = ns.b + [i] %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace({'a': 1}) %}{{ ns.a }}", "{% set ns = namespace() %}{% set ns.t = (1, [2]) %}{{ ns.t }}", "{% set x = 'a' if false else 'b' %}{{ x }}", "{% set x = {'a': (1, 2)} %}{{ x }}",
    "{% for m in messages %}{{ m.role }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}", "{{ 'a' in 'cab' }}{{ 'a' not in ['b'] }}", "{{ messages | map(attribute='role') | join('-') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "{{ 'abc'[::-1] }}{{ 'abcdef'[1:-1:2] }}", "{{ [1, 2] == [1, 2] }}{{ {'a': 1} == {'a': 1} }}", "{{ 3 // 2 }}{{ 3 / 2 }}{{ 2 ** 3 }}",
    "{{ ' ' * 3 ~ '|' }}{{ [0] * 2 }}", "{{ messages | tojson }}", "{{ messages[0] | tojson(indent=4) }}", "{{ 'é' | tojson }}", "{{ [1e20, 1e-7, 0.0001, 1e16, 1.5, -0.0, 123456789.125] | tojson }}", "{{ '<a> & \\'b\\'' | tojson }}", "{{ '\x7f\u2028' | tojson(ensure_ascii=true) }}{{ '\x01\x1f\x08' | tojson }}",
]  # fmt: skip
TIMES = [0, 951_782_400, 1_709_251_199, 1_735_689_599, 1_753_000_000, 4_107_542_400, 1_767_225_600, 1_798_761_599]
ZONES = ["UTC", "JST-9", "PST8PDT,M3.2.0,M11.1.0", "Europe/Berlin", "Asia/Kolkata", "<+0330>-3:30"]
CODES = "a A b B c C d D e F g G h H I j k l m M n p P r R S s t T u U V w W x X y Y z Z f % Q E N i".split()
FORMAT = "|".join(f"{c}=%{c}" for c in CODES) + "|%-d|%-m|%-H|%-I|%-M|%-S|%-j|%_d|%^a|%^B|%#Z|%02d|%Ey|%Od|%"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi <b>\"you\"</b> "}, {"role": "assistant", "content": "Hello!"}]


def environment():
    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    return env


def row(env, source):
    try:
        return [source, env.from_string(source).render(messages=MESSAGES)]
    except Exception:
        return [source, None]


def main():
    env = environment()
    sources = [f"{{{{ {text!r}.{method} }}}}" for method in METHODS for text in TEXTS]
    sources += [f"{{{{ {value} is {test} }}}}" for test in TESTS for value in VALUES]
    sources += [f"{{{{ {value} | {name} }}}}" for name in FILTERS for value in VALUES]
    rows = [row(env, source) for source in sources + OTHERS]
    clock = []
    for zone in ZONES:
        os.environ["TZ"] = zone
        time.tzset()
        clock += [[zone, at, datetime.datetime.fromtimestamp(at).strftime(FORMAT)] for at in TIMES]
    source = {"command": "python tests/golden/jinja.py", "python": platform.python_version(), "jinja2": importlib.metadata.version("jinja2")}
    whole = {"provenance": source, "format": FORMAT, "clock": clock, "messages": MESSAGES}
    lines = ",\n".join(json.dumps(r, ensure_ascii=True) for r in rows)
    text = json.dumps(whole, indent=1)[:-2] + ',\n "rows": [\n' + lines + "\n]}\n"
    pathlib.Path(__file__).with_name("jinja.json").write_text(text)
    print(len(rows), sum(r[1] is None for r in rows))


if __name__ == "__main__":
    main()
