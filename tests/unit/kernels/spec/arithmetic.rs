//! Tests of `kernels::spec::arithmetic`.

use super::*;

#[test]
fn exp_is_exact_to_two_units() {
    let mut x = -87.0f32;
    let mut worst = 0f64;
    while x < 88.0 {
        let want = f64::from(x).exp();
        let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
        worst = worst.max((f64::from(exp(x)) - want).abs() / ulp);
        x += 0.000_731;
    }
    assert!(worst < 2.0, "{worst} units in the last place");
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(-1e9) > 0.0 && exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
}

#[test]
fn gelu_and_the_soft_cap_are_what_f64_says() {
    let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.01).collect();
    let (mut gelu, mut capped) = (x.clone(), x.clone());
    gelu_mul(&mut gelu, &vec![1.0; x.len()]);
    soft_cap(&mut capped, 5.0);
    for ((&x, &gelu), &capped) in x.iter().zip(&gelu).zip(&capped) {
        let x = f64::from(x);
        let want = 0.5 * x * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh());
        assert!((f64::from(gelu) - want).abs() <= 1e-6 * want.abs() + 1e-7, "gelu of {x}: {gelu}, {want}");
        assert!((f64::from(capped) - 5.0 * (x / 5.0).tanh()).abs() < 3e-6, "cap of {x}: {capped}");
    }
    assert!(capped.iter().all(|capped| capped.abs() <= 5.0) && gelu[0].abs() < 1e-30);
}

#[test]
fn f16_by_bits_is_exact_for_every_finite_value() {
    for h in (0..=u16::MAX).filter(|h| h & 0x7c00 != 0x7c00) {
        let bytes = [h; 8];
        // SAFETY: 16 bytes on the stack.
        let got = unsafe { Bits::load8(bytes.as_ptr().cast()) };
        assert_eq!(got[3].to_bits(), half::f16::from_bits(h).to_f32().to_bits(), "{h:#06x}");
    }
}

#[test]
fn f16_is_rounded_as_half_does_it() {
    for h in (0..=u16::MAX).map(half::f16::from_bits).filter(|h| h.is_finite()) {
        let x = h.to_f32();
        let next = half::f16::from_bits(h.to_bits() + 1).to_f32();
        // The value, what lies on either side of half way to the next, and half way itself.
        let middle = x + (next - x) / 2.0;
        for y in [x, middle, f32::from_bits(middle.to_bits() + 1), f32::from_bits(middle.to_bits().wrapping_sub(1))] {
            if y.abs() <= HUGE {
                assert_eq!(f16_of(y), half::f16::from_f32(y).to_bits(), "{y}");
            }
        }
    }
}

#[test]
fn rms_norm_by_hand() {
    let mut out = [0f32; 4];
    rms_norm(&[3.0, -4.0, 0.0, 0.0], &[1.0, 2.0, 1.0, 1.0], 0.0, &mut out);
    assert_eq!(out, [1.2, -3.2, 0.0, 0.0]); // rms = sqrt(25/4) = 2.5
}

#[test]
fn hadamard_by_hand() {
    let mut x = [1.0, 2.0, 3.0, 4.0];
    hadamard(&mut x);
    assert_eq!(x, [5.0, -1.0, -2.0, 0.0]);
}

#[test]
fn quantize_by_hand() {
    let mut x = [0f32; 64];
    (x[0], x[1], x[2]) = (127.0, -63.5, 0.5);
    let (mut q, mut d, mut s, mut sum) = ([9i8; 64], [9f32; 2], [9f32; 2], [9i32; 2]);
    quantize(&x, &mut q, &mut d, &mut s, &mut sum);
    assert_eq!((&q[..3], d[0], sum[0], s[0]), (&[127i8, -64, 0][..], 1.0, 63, 63.0)); // ties to even
    assert!(q[32..].iter().all(|&q| q == 0) && d[1] == 0.0 && sum[1] == 0 && s[1] == 0.0);
}
