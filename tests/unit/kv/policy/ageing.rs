//! Tests of `kv::policy::ageing`.

use super::*;

/// Of two entries the older one's score has doubled as often as half-lives lie between them, however long the stream is and
/// whenever the unit was renewed.
#[test]
fn scores_double_with_age() {
    let mut ageing = Ageing { unit_at: 0, half_life: 100 };
    let mut kept: Option<(u64, f32)> = None;
    for n_past in (0..2_000_000u64).step_by(10) {
        if let Some(unit) = ageing.renew_unit(n_past) {
            kept = kept.map(|(at, score)| (at, score * unit));
        }
        let score = 3.0 * ageing.youth(n_past);
        assert!(score.is_normal());
        let (at, old) = *kept.get_or_insert((n_past, score));
        let doubled = 2f64.powf((n_past - at) as f64 / 100.0);
        assert!((f64::from(old / score) / doubled - 1.0).abs() < 1e-4, "{n_past}");
        if n_past - at > 1500 {
            kept = None;
        }
    }
    assert_eq!(Ageing::default().youth(12345), 1.0);
}

/// It is told beforehand when a new unit is due, to the token.
#[test]
fn a_unit_lasts_as_long_as_it_says() {
    let mut ageing = Ageing { unit_at: 0, half_life: 100 };
    for n_past in [0, 17, 6399, 6400, 12_000] {
        ageing.renew_unit(n_past);
        let due = n_past + ageing.unit_lasts(n_past);
        assert_eq!((due % 6400, ageing.renew_unit(due - 1)), (0, None));
        assert!({ ageing }.renew_unit(due).is_some());
    }
    assert_eq!(Ageing::default().unit_lasts(9), u64::MAX);
    // What a session says may be many units behind.
    assert_eq!(Ageing { unit_at: 0, half_life: 100 }.unit_lasts(1 << 50), 0);
}
