//! Tests of `units`.

use super::*;

#[test]
fn sizes_parse_or_say_how_to_write_them() {
    for (text, bytes) in [("0", 0), ("4096", 4096), ("4MiB", 4 << 20), ("1.5KiB", 1536), ("2 GiB", 2 << 30), ("0.5MiB", 1 << 19)]
    {
        assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
    }
    for text in ["", "MiB", "4MB", "4M", "-1", "1.5", "1e3KiB", "+.5MiB", "nanMiB", "infGiB", "99999999999GiB", "0x10"] {
        let error = text.parse::<Bytes>().expect_err(text);
        assert!(error.contains("KiB, MiB or GiB"), "{error}");
    }
}

#[test]
fn sizes_print_short() {
    for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (4 << 20, "4 MiB"), (1536, "1.5 KiB"), (98_362_432, "93.8 MiB")] {
        assert_eq!(Bytes(bytes).to_string(), text);
    }
}
