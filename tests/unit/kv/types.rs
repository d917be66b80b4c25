//! Tests of `kv::types`.

use super::*;

#[test]
fn turning_keeps_products_and_turns_back() {
    let mut rng = fastrand::Rng::with_seed(7);
    for head_dim in [8, 64, 80, 96, 128] {
        let mut vector = || -> Vec<f32> { (0..2 * head_dim).map(|_| rng.f32() - 0.5).collect() };
        let (a, b) = (vector(), vector());
        let (mut ta, mut tb) = (a.clone(), b.clone());
        KvType::Q4H.turn(&mut ta, head_dim);
        KvType::Q4H.turn(&mut tb, head_dim);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert!((dot(&a, &b) - dot(&ta, &tb)).abs() < 1e-4);
        assert!(a.iter().zip(&ta).any(|(a, t)| (a - t).abs() > 0.01));
        KvType::Q4H.turn_back(&mut ta, head_dim);
        assert!(a.iter().zip(&ta).all(|(a, t)| (a - t).abs() < 1e-5));
    }
}

#[test]
fn an_outlier_is_spread() {
    let mut x = [0f32; 64];
    x[5] = 8.0;
    KvType::Q4H.turn(&mut x, 64);
    assert!(x.iter().all(|x| x.abs() == 1.0));
}
