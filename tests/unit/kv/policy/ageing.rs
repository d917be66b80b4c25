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
