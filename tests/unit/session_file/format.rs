//! Tests of `session_file::format`.

use super::*;

fn head() -> Head {
    Head {
        fingerprint: Fingerprint { model: 1 << 100, template: 5, settings: Short::of("l2 ä"), model_name: Short::of("") },
        lengths: Lengths { tokens: 8, text: 3, logits: 0, marks: 100, rows: 1000 },
        counts: Counts { n_live: 2, next_pos: 2, has_sink_rows: true, ..Counts::default() },
        log_hash: u128::MAX - 5,
        is_exact: true,
        generator: u64::MAX,
        saved_at: 1_800_000_000,
    }
}

#[test]
fn a_head_is_read_as_it_was_written() {
    let (bytes, seed) = head().bytes();
    let n = head().lengths.file_bytes().expect("a length");
    assert_eq!(n, 4096 + 8 + 3 + 100 + 1000 + 5 * 8 + 16);
    let (read, read_seed) = Head::parse(&bytes, n).expect("a head");
    assert_eq!((read, read_seed, read.n_tokens()), (head(), seed, 2));
    assert!(matches!(Head::parse(&bytes, n - 1), Err(Why::Damaged(_))));
}

#[test]
fn lengths_that_overflow_are_no_lengths() {
    let lengths = Lengths { rows: u64::MAX - 100, ..head().lengths };
    assert_eq!(lengths.file_bytes(), None);
    let (bytes, _) = Head { lengths, ..head() }.bytes();
    assert!(matches!(Head::parse(&bytes, 4096), Err(Why::Damaged(_))));
}

#[test]
fn other_versions_are_named() {
    let (mut bytes, _) = head().bytes();
    bytes[8] = 9;
    assert!(matches!(Head::parse(&bytes, 0), Err(Why::Version(9))));
    bytes[0] = 0;
    assert!(matches!(Head::parse(&bytes, 0), Err(Why::Foreign)));
}
