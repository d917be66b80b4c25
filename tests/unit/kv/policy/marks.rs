//! Tests of `kv::policy::marks`.

use super::*;
use crate::kv::policy::{Policy, Protection};

/// Ten million steps: means neither run away nor stand still, and a change of subject is learned.
#[test]
fn means_are_sound_after_ten_million_steps() {
    let n = if cfg!(any(target_arch = "aarch64", target_arch = "arm")) { 1_000_000u32 } else { 10_000_000 };
    let rule = Rule { policy: Policy::L2Attn, protect: Protection::default(), n_reserved: 0 };
    let [scores, common, received, mean, entering] = &mut [1, 0, 1, 8, 2].map(|n| vec![0.0; n]);
    let (positions, latest, latest_slots, limit) = (&mut [0][..], &mut [][..], &mut [][..], &mut [][..]);
    let (ageing, tokens) = (Ageing::default(), &mut [][..]);
    let mut head =
        HeadMarks { rule, ageing, positions, scores, common, received, tokens, mean, latest, latest_slots, entering, limit };
    head.enter(0, 0, 0, 0);
    for now in 0..n {
        head.settle(1, &[if now % 2 == 0 { 0.001 } else { 0.003 }], 1, 1, now);
    }
    assert!((head.received[0] - 0.002).abs() < 1e-5, "{}", head.received[0]);
    (n..n + 40_000).for_each(|now| head.settle(1, &[0.5], 1, 1, now));
    assert!((head.received[0] - 0.5).abs() < 1e-3, "{}", head.received[0]);

    let unit = |i: usize| -> [f32; 8] { std::array::from_fn(|j| if i == j { 1.0 } else { 0.0 }) };
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    (0..u64::from(n)).for_each(|past| head.rate(0, past, &unit(past as usize % 2), &[1.0; 8], 0.0, norm));
    assert!((head.mean[0] - 0.5).abs() < 1e-3 && (head.mean[1] - 0.5).abs() < 1e-3, "{:?}", head.mean);
    (0..40_000).for_each(|past| head.rate(0, u64::from(n) + past, &unit(2), &[1.0; 8], 0.0, norm));
    assert!(head.mean[2] > 0.999 && head.mean[0] < 1e-3, "{:?}", head.mean);
}
