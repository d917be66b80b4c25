//! Tests of `text::tokenizer::bytes`.

use super::*;

#[test]
fn the_byte_alphabet_goes_both_ways() {
    for byte in 0..=255u8 {
        let mut back = Vec::new();
        push_byte_of(BYTE_CHARS[byte as usize], &mut back);
        assert_eq!(back, [byte]);
    }
    assert_eq!(
        [BYTE_CHARS[b' ' as usize], BYTE_CHARS[b'\n' as usize], BYTE_CHARS[0xad], BYTE_CHARS[b'a' as usize]],
        ['Ġ', 'Ċ', 'Ń', 'a']
    );
    let mut out = Vec::new();
    push_byte_of('中', &mut out);
    assert_eq!(out, "中".as_bytes());
}
