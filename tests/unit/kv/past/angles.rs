//! Tests of `kv::past::angles`.

use super::*;
use crate::kernels::RopeOrder;

/// One frequency, by which position `n` turns by `n / 100`.
struct Slow;

impl Rotary for Slow {
    fn magnitude(&self, _: AttnLayer) -> Option<f32> {
        Some(1.0)
    }
    fn pairs(&self, _: AttnLayer) -> Option<(RopeOrder, usize)> {
        Some((RopeOrder::Norm, 4))
    }
    fn set_angles(&self, _: AttnLayer, steps: i64, angles: &mut [f32]) {
        let angle = steps as f64 / 100.0;
        angles.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| *pair = [angle.cos() as f32, angle.sin() as f32]);
    }
    fn turn(&self, _: AttnLayer, _: &mut [f32], _: &[f32]) {}
    fn mean_squares(&self, _: AttnLayer, _: &mut [f32]) {}
    fn mean_key(&self, _: AttnLayer, _: &mut [f32], _: &mut [f32]) {}
}

#[test]
fn angles_are_sums_of_two_and_turn_both_ways() {
    let mut angles = Arena::fill(|arena| Angles::carve(arena, 4, 1000, 300)).unwrap();
    angles.fill(AttnLayer(0), &Slow);
    for pos in [-300, -256, -1, 0, 1, 255, 256, 700, 1000] {
        for (back, sign) in [(false, 1.0), (true, -1.0)] {
            let (mut out, angle) = ([f32::NAN; 4], pos as f64 / 100.0);
            angles.at(pos).interleaved(back, &mut out);
            for pair in out.as_chunks::<2>().0 {
                assert!((f64::from(pair[0]) - angle.cos()).abs() < 1e-6, "{pos}: {pair:?}");
                assert!((f64::from(pair[1]) - sign * angle.sin()).abs() < 1e-6, "{pos}: {pair:?}");
            }
        }
    }
}
