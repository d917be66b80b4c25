use super::*;

#[test]
fn patterns_mean_the_same_written_anew() {
    for (pattern, written) in [
        ("^a.b$", r"^a[^\n\r\u{2028}\u{2029}]b$"),
        (r"\d\D[\d\D]", "[0-9][^0-9][0-9[^0-9]]"),
        (r"\w[\W_]", "[0-9A-Za-z_][[^0-9A-Za-z_]_]"),
        (r"^[[a]b$", r"^[\[a]b$"),
        ("[[:alpha:]]", r"[\[:alpha:]\]"),
        ("[a&&b~~c]", r"[a\&\&b\~\~c]"),
        ("[+--]", r"[\+-\-]"),
        ("[-a-]", r"[\-a\-]"),
        (r"[\w-a]", r"[0-9A-Za-z_\-a]"),
        (r"[\w.-]", r"[0-9A-Za-z_\.\-]"),
        (r"[^\]\\]", r"[^\]\\]"),
        ("[^]", "(?s:.)"),
        (r"\<\/\-", r"</\-"),
        (r"\cA\x41\u0042\u{43}\0", r"\u{1}ABC\u{0}"),
        (r"\ud83d\ude00", "😀"),
        (r"\p{Lu}\P{Script=Greek}", r"\p{Lu}\P{Script=Greek}"),
        ("a{2}b{2,}c{2,3}?", "a{2}b{2,}c{2,3}?"),
        ("a{,2}{x}]", r"a\{,2\}\{x\}\]"),
        ("(?<year>a)(?:b)(c)(?i:d)", "(?:a)(?:b)(c)(?i:d)"),
        ("é 媽", "é 媽"),
    ] {
        assert_eq!(from_ecma(pattern).as_deref(), Ok(written), "{pattern}");
    }
}

#[test]
fn what_cannot_be_held_to_is_named() {
    for (pattern, told) in [
        ("(?=a)", "look-around"),
        ("(?<!a)", "look-around"),
        (r"a\b", "a word boundary"),
        (r"(a)\1", "a reference back"),
        (r"\k<a>", "a reference back"),
        (r"\Aa\z", r"`\A`"),
        (r"\a", r"`\a`"),
        ("(?m)a", "`(?m`"),
        ("[]a", "`[]`"),
        ("[z-a]", "upside down"),
        ("[a", "a class without an end"),
        ("a\\", "a backslash at the end"),
        (r"\ud83d", "no character"),
        (r"\p", "a property in braces"),
        ("(?<a", "a group without an end"),
    ] {
        match from_ecma(pattern) {
            Err(what) => assert!(what.contains(told), "{pattern}: {what}"),
            Ok(written) => panic!("{pattern}: {written}"),
        }
    }
}
