"""Who says whether a document is valid: the package `jsonschema`, with patterns as ECMA-262 has them.

`jsonschema` gives patterns to Python's `re`, whose `$` also stands before a last line break, whose `\\d` holds every script's
digits and which knows no `\\p{…}`. A schema means ECMA-262's, so patterns are rewritten for the package `regex`. Multiples are told
by decimals, not by doubles. `faults` holds the judge itself to the suite: where it errs there, its word is not taken.
"""

import decimal
import json
import re as python_re

import jsonschema
import jsonschema._keywords
import jsonschema._utils
import jsonschema.validators
import regex

SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
# What an escape means, outside of a class and within one.
CLASSES = {
    "d": ("[0-9]", "0-9"), "D": ("[^0-9]", None), "w": ("[A-Za-z0-9_]", "A-Za-z0-9_"), "W": ("[^A-Za-z0-9_]", None),
    "s": (f"[{SPACE}]", SPACE), "S": (f"[^{SPACE}]", None),
}  # fmt: skip


# A letter beyond U+FFFF by its two halves, behind an even number of backslashes.
SURROGATES = python_re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


def joined(halves) -> str:
    high, low = int(halves[2], 16), int(halves[3], 16)
    return f"{halves[1]}\\U{0x10000 + ((high & 0x3FF) << 10 | low & 0x3FF):08x}"


def from_ecma(pattern: str) -> str:
    """A pattern of ECMA-262 for the package `regex`."""
    out, in_class, i = "", False, 0
    pattern = SURROGATES.sub(joined, pattern)
    while i < len(pattern):
        c = pattern[i]
        if c == "\\" and i + 1 < len(pattern):
            escaped = pattern[i + 1]
            i += 2
            if escaped == "c" and i < len(pattern) and pattern[i].isalpha():
                out += f"\\x{ord(pattern[i]) % 32:02x}"
                i += 1
            elif escaped in CLASSES:
                outside, inside = CLASSES[escaped]
                out += outside if not in_class else inside if inside is not None else "\\" + escaped
            elif escaped in "aZzAGRKXNmMhH":
                # ECMA-262 has no such escapes: the letter itself, or an error with `u`.
                out += escaped
            else:
                out += "\\" + escaped
            continue
        if in_class and c == "[":
            out += "\\["
        elif c == "$" and not in_class:
            out += r"\Z"
        elif c == "." and not in_class:
            out += r"[^\n\r\u2028\u2029]"
        else:
            out += c
        in_class = c == "[" or (in_class and c != "]")
        i += 1
    return out


class Patterns:
    """In place of the module `re`, where jsonschema looks for patterns."""

    def __getattr__(self, name):
        return getattr(python_re, name)

    @staticmethod
    def search(pattern, text, *_):
        return regex.search(from_ecma(pattern), text, regex.V0)


class Number(float):
    """A number of a document, with its digits: whether it is a multiple is a question of decimals."""

    digits = "0"

    @classmethod
    def read(cls, text: str):
        number = cls(text)
        number.digits = text
        return number


def multiple_of(_validator, unit, instance, _schema):
    if isinstance(instance, (int, float)) and not isinstance(instance, bool):
        with decimal.localcontext(prec=400):
            value, unit = decimal.Decimal(getattr(instance, "digits", repr(instance))), decimal.Decimal(repr(unit))
            if value % unit:
                yield jsonschema.ValidationError(f"{value} is not a multiple of {unit}")


DRAFTS = {
    "draft7": jsonschema.validators.extend(jsonschema.Draft7Validator, {"multipleOf": multiple_of}),
    "draft2020-12": jsonschema.validators.extend(jsonschema.Draft202012Validator, {"multipleOf": multiple_of}),
}
jsonschema._keywords.re = jsonschema._utils.re = Patterns()


def validators(draft: str, schema) -> list:
    """Of its draft; formats are held to here, so that they are checked too."""
    kind = DRAFTS[draft]
    return [kind(schema, format_checker=kind.FORMAT_CHECKER)]


def faults(draft: str, schema, tests, file: str) -> list:
    """The suite's documents that the judge is wrong about. (Beside `optional/format`, formats are notes to the suite.)"""
    checker = DRAFTS[draft].FORMAT_CHECKER if "optional/format/" in file else None
    judge = DRAFTS[draft](schema, format_checker=checker)
    return [test["description"] for test in tests if judge.is_valid(test["data"]) != test["valid"]]


def problem(text: str, judges) -> str:
    """What is wrong with an answer, or nothing."""
    try:
        value = json.loads(text, parse_float=Number.read)
    except ValueError as error:
        return f"no JSON: {error}"
    for judge in judges:
        error = next(iter(judge.iter_errors(value)), None)
        if error is not None:
            return f"{type(judge).__name__}: {error.message[:200]}"
    return ""
