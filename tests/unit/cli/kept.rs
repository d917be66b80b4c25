//! Tests of `cli::kept`.

use super::*;

#[test]
fn sizes_that_no_machine_has_are_none() {
    assert_eq!(Kept::bytes(10, 0), Some(40));
    assert_eq!(Kept::bytes(10, 2), Some(10 * (4 + size_of::<usize>() + 32) + 32));
    for (n, n_top) in [(usize::MAX, 0), (1, usize::MAX), (usize::MAX >> 24, 1 << 30), (usize::MAX / 4, 0)] {
        assert_eq!(Kept::bytes(n, n_top), None, "{n} tokens, {n_top} each");
    }
}

#[test]
fn rows_may_be_short() {
    let mut kept = Kept::new(2, 2).unwrap();
    kept.logprobs.push(&[0.0, f32::NAN, f32::NAN]);
    kept.logprobs.push(&[0.0, 0.0, f32::NEG_INFINITY]);
    let half = 0.5f64.ln();
    let want = format!("[[[0,0.0]],[[0,{half}],[1,{half}]]]");
    assert_eq!(serde_json::to_string(&kept.logprobs).unwrap(), want);
}
