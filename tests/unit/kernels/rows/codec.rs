//! Tests of `kernels::rows::codec`.

use super::*;

#[test]
fn bytes_of_rows_by_hand() {
    // A head of 64: two blocks of 2 + 32, 24, 20, 16 bytes; a head of 80 takes three.
    let sizes = |head_dim| RowType::ALL.map(|ty| ty.row_bytes(head_dim));
    assert_eq!((sizes(64), sizes(80)), ([128, 68, 52, 44, 36], [160, 102, 78, 66, 54]));
}

#[test]
fn what_is_stored_comes_back_closer_than_by_the_farthest_element_alone() {
    let mut rng = fastrand::Rng::with_seed(3);
    for ty in RowType::ALL {
        let (mut squares, mut plain_squares) = (0.0, 0.0);
        for n in [8, 32, 40, 64, 80, 128] {
            let x: Vec<f32> = (0..n).map(|_| (rng.f32() - 0.5) * 10.0).collect();
            let (mut row, mut back) = (vec![0xaa; ty.row_bytes(n)], vec![f32::NAN; n]);
            ty.store(&x, &mut row);
            ty.load(&row, &mut back);
            for (x, back) in x.chunks(ROW_BLOCK).zip(back.chunks(ROW_BLOCK)) {
                let far = x.iter().fold(0f32, |far, &x| if x.abs() > far.abs() { x } else { far });
                let lowest = -((1 << (ty.bits() - 1)) as f32);
                let step = if ty == RowType::F16 { far.abs() / 1024.0 } else { far / lowest };
                for (x, back) in x.iter().zip(back) {
                    let plain = (x / step).round().clamp(lowest, -lowest - 1.0) * step;
                    squares += (x - back) * (x - back);
                    plain_squares += (x - plain) * (x - plain);
                    // At the far end there is no level for the other sign, and the scale may leave a step out.
                    assert!((x - back).abs() <= 2.3 * step.abs(), "{ty:?} of {n}: {x} became {back}, step {step}");
                }
            }
        }
        assert!(squares < 1.01 * plain_squares, "{ty:?}: {squares}, plainly {plain_squares}");
        assert!(ty.bits() >= 8 || squares < 0.9 * plain_squares, "{ty:?}: {squares}, plainly {plain_squares}");
    }
}

#[test]
fn extremes_stay_finite() {
    for ty in RowType::ALL {
        for x in [[0.0; 32], [f32::MAX; 32], [f32::MIN; 32], [1e-30; 32], [f32::INFINITY; 32]] {
            let (mut row, mut back) = (vec![0; ty.row_bytes(32)], [f32::NAN; 32]);
            ty.store(&x, &mut row);
            ty.load(&row, &mut back);
            assert!(back.iter().all(|b| b.is_finite()), "{ty:?} {}", x[0]);
        }
    }
}
