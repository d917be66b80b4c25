//! Tests of `model/choice`.

use super::*;

fn measuring<'c>(clock: &'c mut dyn FnMut() -> Duration) -> Measuring<'c> {
    Measuring {
        kernels: Kernels::choose("auto").expect("a set"),
        clock,
        start: Duration::ZERO,
        counts_reading: false,
        n_left: 1,
        found: Vec::new(),
    }
}

/// Rounds in which the default set took 100 microseconds, the first of the others what is said, and the rest longer.
fn rounds(sets: &Sets, other: &[u64]) -> Times {
    let mut times = Times { of: [[Duration::from_micros(300); MOST_ROUNDS]; N_SETS], n_rounds: other.len() };
    times.of[sets.n - 1] = [Duration::from_micros(100); MOST_ROUNDS];
    if sets.n > 1 {
        other.iter().zip(&mut times.of[0]).for_each(|(&other, time)| *time = Duration::from_micros(other));
    }
    times
}

/// Ten per cent decide, in three rounds of four. (A CPU with one set has nothing to choose.)
#[test]
fn another_set_must_be_clearly_faster() {
    let op = Op::Decode(GgmlType::Q8_0);
    let cases: [(&[u64], f64, bool); 8] = [
        (&[200; 3], 200.0, false),
        (&[100; 15], 100.0, false),
        (&[92; 15], 92.0, false),
        (&[90; 15], 90.0, true),
        (&[50; 4], 50.0, true),
        // It was lucky, or the default set unlucky, now and then.
        (&[20, 99, 99, 99, 99], 99.0, false),
        (&[80, 101, 80, 80, 101, 80, 101, 80], 80.0, false),
        (&[80, 101, 80, 80, 101, 80, 80, 80], 80.0, true),
    ];
    for (other, median, wins) in cases {
        let mut clock = || Duration::ZERO;
        let mut measuring = measuring(&mut clock);
        let own = measuring.kernels.set();
        let sets = Sets::of(measuring.kernels, op, false);
        measuring.take(op, &sets, Some(rounds(&sets, other)), Some(1_000_000));
        let first = sets.kernels[0].of(op);
        let want = if wins { first } else { own };
        assert_eq!(measuring.kernels.of(op), want, "{other:?} against 100");
        let [found] = measuring.found[..] else { panic!("one operation") };
        let seconds = if wins && sets.n > 1 { median } else { 100.0 } / 1e6;
        assert_eq!((found.op, found.set), (op, want));
        assert!((found.read_gb_s.expect("of decoding") - 1e-3 / seconds).abs() < 1e-9);
        assert!((found.gain - 1e-4 / seconds).abs() < 1e-9);
    }
}

/// What the clock says, `step` later at each look, and how many pieces were done and rounds seen.
fn timed(step: Duration, n_left: usize) -> (usize, Option<usize>, usize) {
    let (mut now, mut done) = (Duration::ZERO, 0);
    let mut clock = || {
        now += step;
        now
    };
    let mut measuring = measuring(&mut clock);
    measuring.n_left = n_left;
    let op = Op::Decode(GgmlType::Q8_0);
    let sets = Sets::of(measuring.kernels, op, false);
    let times = measuring.time(&sets, |_| (), |_, _| done += 1);
    let n_rounds = times.as_ref().map(|times| times.n_rounds);
    measuring.take(op, &sets, times, None);
    assert_eq!(measuring.found.is_empty(), n_rounds.is_none());
    (done, n_rounds, sets.n)
}

/// Nothing is decided by fewer than three rounds, and no work begins once time is up.
#[test]
fn time_that_is_up_stops_in_the_middle_of_a_round() {
    // A look at the clock first, two for the reading, which takes one that does not count, and two for each piece: the second would
    // begin after 5 ms.
    let (done, n_rounds, n_sets) = timed(Duration::from_millis(1), 1);
    assert!(done == 1 && n_rounds.is_none(), "{done} pieces, {n_rounds:?} rounds of {n_sets}");
}

/// An operation goes on while its share of the time lasts; where that is short it has three rounds all the same.
#[test]
fn an_operation_takes_its_share_of_the_time() {
    let (_, n_rounds, _) = timed(Duration::from_nanos(100), 1);
    assert_eq!(n_rounds, Some(MOST_ROUNDS));
    let (done, n_rounds, n_sets) = timed(Duration::from_micros(10), 100);
    assert_eq!((done, n_rounds), (LEAST_ROUNDS * n_sets, Some(LEAST_ROUNDS)));
    // 499 of 5,000 microseconds, of which each piece before takes two looks of 10, and each round begun one, beside the first.
    let (done, n_rounds, n_sets) = timed(Duration::from_micros(10), 10);
    let too_late = (0..).find(|k| 2 * k + 2 + k / n_sets >= 50).expect("some piece");
    assert_eq!(done, too_late.min(MOST_ROUNDS * n_sets));
    assert_eq!(n_rounds, Some((done / n_sets).min(MOST_ROUNDS)));
}

#[test]
fn pieces_lie_apart_and_inside() {
    let n_cols = 64;
    for (n_matrices, n_rows, rows, n) in [(1, 1000, 64, 9), (2, 100, 32, 9), (60, 192, 192, 9), (1, 40, 40, 6), (1, 8, 8, 3)] {
        let data: Vec<Vec<u8>> = (0..n_matrices).map(|_| vec![0; n_rows * n_cols / 32 * 34]).collect();
        let w = |data| Matrix { ty: GgmlType::Q8_0, n_rows, n_cols, data, packed: false };
        let group = Group { ty: GgmlType::Q8_0, bytes: 1, largest: data.iter().map(|d| w(&d[..])).collect() };
        let pieces = Pieces { group: &group, n_rows: rows, rows_per_task: 16, n };
        let starts: Vec<usize> = (0..n).map(|k| pieces.get(k).data.as_ptr() as usize).collect();
        assert!((0..n).all(|k| pieces.get(k).n_rows == rows && pieces.get(k).data.len() == pieces.bytes()));
        let distinct: std::collections::BTreeSet<usize> = starts.iter().copied().collect();
        if n_matrices * (n_rows / rows) >= n {
            assert_eq!(distinct.len(), n, "{n_matrices} matrices of {n_rows} rows");
        }
    }
}
