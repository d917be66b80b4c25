//! Tests of `model/choice`.

use super::*;

fn measuring<'c>(clock: &'c mut dyn FnMut() -> Duration) -> Measuring<'c> {
    Measuring {
        kernels: Kernels::choose("auto").expect("a set"),
        clock,
        start: Duration::ZERO,
        counts_reading: false,
        found: Vec::new(),
    }
}

/// Five per cent decide. (A CPU with one set has nothing to choose.)
#[test]
fn another_set_must_be_clearly_faster() {
    let op = Op::Decode(GgmlType::Q8_0);
    for (other, wins) in [(200, false), (100, false), (96, false), (94, true), (50, true)] {
        let mut clock = || Duration::ZERO;
        let mut measuring = measuring(&mut clock);
        let own = measuring.kernels.set();
        let sets = Sets::of(measuring.kernels, op, false);
        let mut least = [Duration::from_micros(300); N_SETS];
        least[sets.n - 1] = Duration::from_micros(100);
        if sets.n > 1 {
            least[0] = Duration::from_micros(other);
        }
        measuring.take(op, &sets, Some(least), Some(1_000_000));
        let first = sets.kernels[0].of(op);
        let want = if wins { first } else { own };
        assert_eq!(measuring.kernels.of(op), want, "{other} against 100");
        let [found] = measuring.found[..] else { panic!("one operation") };
        let seconds = if wins && sets.n > 1 { other } else { 100 } as f64 / 1e6;
        assert_eq!((found.op, found.set), (op, want));
        assert!((found.read_gb_s.expect("of decoding") - 1e-3 / seconds).abs() < 1e-9);
        assert!((found.gain - 1e-4 / seconds).abs() < 1e-9);
    }
}

/// Nothing is decided by half of the rounds, and no work begins once time is up.
#[test]
fn time_that_is_up_stops_in_the_middle_of_a_round() {
    let op = Op::Decode(GgmlType::Q8_0);
    let (mut now, mut done) = (Duration::ZERO, 0);
    let mut clock = || {
        now += Duration::from_millis(1);
        now
    };
    let mut measuring = measuring(&mut clock);
    let sets = Sets::of(measuring.kernels, op, false);
    let least = measuring.least(&sets, |_, _| done += 1);
    // Three looks at the clock for each piece: at 1, 4 and 7 ms, the last of which is too late.
    assert!(least.is_none() && done == 2, "{done} pieces");
    measuring.take(op, &sets, least, None);
    assert!(measuring.found.is_empty());
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
