//! Tests of `eval::correlation`.

use super::*;

#[test]
fn coefficients_by_hand() {
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    close(pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]), 1.0);
    close(pearson(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]), 0.5);
    close(pearson(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    assert_eq!(ranks(&[5.0, 1.0, 5.0, 9.0]), [1.5, 0.0, 1.5, 3.0]);
    // A relation that is monotone and not straight: ranks see all of it.
    let (x, y) = ([1.0, 2.0, 3.0, 4.0], [-1.0, -8.0, -27.0, -64.0]);
    close(pearson(&ranks(&x), &ranks(&y)), -1.0);
    assert!(pearson(&x, &y) > -0.96);
    assert!(ranks(&[f64::NAN, 1.0]).len() == 2 && pearson(&[], &[]) == 0.0);
}

#[test]
fn probabilities_by_hand() {
    let mut out = [0f32; 3];
    // Scores 0, ln 2, ln 5.
    let keys: Vec<f32> = [1f32, 2.0, 5.0].iter().flat_map(|s| [s.ln(), 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.0]).collect();
    probabilities(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &keys, None, &mut out);
    out.iter().zip([0.125, 0.25, 0.625]).for_each(|(out, p)| assert!((out - p).abs() < 1e-6));
    // A logit of the head's own, ln 8, takes half of it.
    probabilities(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &keys, Some(8f32.ln()), &mut out);
    out.iter().zip([0.0625, 0.125, 0.3125]).for_each(|(out, p)| assert!((out - p).abs() < 1e-6));
}
