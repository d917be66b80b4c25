//! Tests of `text::utf8`.

use super::*;

fn streamed(parts: &[&[u8]]) -> String {
    let mut stream = Utf8Stream::new();
    let mut out = String::new();
    parts.iter().for_each(|part| stream.push(part, &mut out));
    stream.finish(&mut out);
    out
}

#[test]
fn every_split_in_three_equals_the_lossy_whole() {
    let cases: [&[u8]; 12] = [
        b"",
        b"plain",
        "é€😀!".as_bytes(),
        b"\xf0\x9f\x98",
        b"\xf0\x9fa\x98\x80",
        b"\xe2\x82\xe2\x82\xac\xff\xc3",
        b"\xed\xa0\x80x",
        b"\xf4\x90\x80\x80",
        b"\xc0\xaf\xe0\x80\xbf",
        b"\xf0\x80\x80\x41",
        b"\x80\xbf\xf0\x9f\x98\x80\xf0",
        b"\xe0\xa0\xf0\x90\x80\xc2\xa9",
    ];
    for bytes in cases {
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let got = streamed(&[&bytes[..first], &bytes[first..second], &bytes[second..]]);
                assert_eq!(got, String::from_utf8_lossy(bytes), "{bytes:x?} split at {first}, {second}");
            }
        }
    }
}

#[test]
fn random_bytes_in_random_pieces_equal_the_lossy_whole() {
    let mut rng = fastrand::Rng::with_seed(7);
    // Lead and continuation bytes far more often than chance, so that nearly-valid sequences abound.
    let alphabet = b"a\x80\x8f\x90\x9f\xa0\xbf\xc2\xdf\xe0\xe1\xed\xef\xf0\xf1\xf4\xf5\xff";
    for round in 0..20_000 {
        let bytes: Vec<u8> = (0..rng.usize(..12))
            .map(|_| if rng.u8(..8) == 0 { rng.u8(..) } else { alphabet[rng.usize(..alphabet.len())] })
            .collect();
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rng.usize(..=rest.len().min(3)));
            parts.push(part);
            rest = after;
        }
        assert_eq!(streamed(&parts), String::from_utf8_lossy(&bytes), "round {round}: {bytes:x?} as {parts:x?}");
    }
}

#[test]
fn a_bad_byte_is_shown_as_soon_as_it_is_known() {
    let mut stream = Utf8Stream::new();
    let mut out = String::with_capacity(16);
    let place = out.as_ptr();
    stream.push(b"\xf0\x9f", &mut out);
    assert!(out.is_empty() && stream.is_pending());
    stream.push(b"x", &mut out);
    assert_eq!(out, "\u{fffd}x");
    assert!(!stream.is_pending());
    assert_eq!(out.as_ptr(), place, "a string with spare capacity moved");
}
