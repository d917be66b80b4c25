//! Tests of `session_file::name`.

use super::*;

#[test]
fn names_are_parts_of_paths_and_nothing_more() {
    for good in ["a", "A-1_b.c", "0", &"x".repeat(64), "a..b", "-"] {
        assert_eq!(Name::new(good).expect(good).as_str(), good);
    }
    for bad in ["", ".", "..", ".a", "a/b", "/", "a b", "ä", "a\0", "a\n", &"x".repeat(65), "a\\b", "~", "a:b", "auto-1"] {
        assert!(Name::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn files_are_known_by_their_names() {
    let name = Name::new(&"x".repeat(64)).expect("a name");
    assert_eq!(name.file().as_str(), format!("{}.lks", "x".repeat(64)));
    assert_eq!(name.part().as_str(), format!(".{}.tmp", "x".repeat(64)));
    assert_eq!((Name::of_file(name.file().as_str()), Name::of_part(name.part().as_str())), (Some(name), Some(name)));
    for other in [".lks", "..lks", "a.txt", "a", ".a.lks", "a/b.lks", ".tmp", "a.tmp"] {
        assert_eq!((Name::of_file(other), Name::of_part(other)), (None, None), "{other}");
    }
}

#[test]
fn automatic_names_are_of_the_text_alone() {
    let [a, b] = [Name::of_text(b"a"), Name::of_text(b"b")];
    assert!(a != b && a.is_automatic() && Name::any(a.as_str()) == Ok(a) && a == Name::of_text(b"a"));
}

#[test]
fn short_texts_are_cut_at_a_character() {
    assert_eq!(Short::<4>::of("abc").as_str(), "abc");
    assert_eq!(Short::<4>::of("abcä").as_str(), "abc");
    assert_eq!(Short::<5>::of("abcä").as_str(), "abcä");
}
