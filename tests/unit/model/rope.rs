//! Tests of `model::rope`.

use super::*;

fn rope(order: RopeOrder, n_rot: usize, factors: Option<&[f32]>) -> Rope {
    let (scaling, attn_factor) = (RopeScaling::None, 1.0);
    Rope::new(&RopeConfig { order, n_rot, freq_base: 10_000.0, scaling, attn_factor }, factors)
}

#[test]
fn pairs_are_turned_by_position_times_frequency() {
    // n_rot 4: frequencies 1 and 1/100. Position 2: angles 2 and 0.02. The fifth element passes.
    for (order, pairs) in [(RopeOrder::Norm, [(0, 1), (2, 3)]), (RopeOrder::Neox, [(0, 2), (1, 3)])] {
        let rope = rope(order, 4, None);
        let (mut angles, mut head) = ([0f32; 4], [1.0f32, 2.0, 3.0, 4.0, 5.0]);
        rope.angles(2, &mut angles);
        let before = head;
        rope.turn(&mut head, &angles);
        for ((i, j), angle) in pairs.into_iter().zip([2f64, 0.02]) {
            let (a, b) = (f64::from(before[i]), f64::from(before[j]));
            assert!((f64::from(head[i]) - (a * angle.cos() - b * angle.sin())).abs() < 1e-6, "{order:?}");
            assert!((f64::from(head[j]) - (a * angle.sin() + b * angle.cos())).abs() < 1e-6, "{order:?}");
        }
        assert_eq!(head[4], 5.0);
    }
}

#[test]
fn turning_back_restores_and_factors_slow_down() {
    let (plain, slow) = (rope(RopeOrder::Norm, 4, None), rope(RopeOrder::Norm, 4, Some(&[1.0, 8.0])));
    let (mut there, mut back, mut slowed) = ([0f32; 4], [0f32; 4], [0f32; 4]);
    plain.angles(700, &mut there);
    plain.angles(-700, &mut back);
    slow.angles(5600, &mut slowed);
    assert_eq!(slowed[2..], there[2..]);
    let mut head = [0.3f32, -1.0, 2.0, 0.5];
    plain.turn(&mut head, &there);
    plain.turn(&mut head, &back);
    assert!(head.iter().zip([0.3, -1.0, 2.0, 0.5]).all(|(a, b)| (a - b).abs() < 1e-6));
}
