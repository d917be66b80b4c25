//! Tests of `kv::policy::lagkv`.

use super::*;

/// Two tokens of two channels, by hand: in ranges of 0..2 and 0..4 the first fills both by half, the second the first channel
/// only; deviations 0 and 1/2.
#[test]
fn spreads_by_hand() {
    let rows = [[1.0, 2.0], [2.0, 0.0], [0.0, 4.0], [2.0, 0.0]];
    let mut ratings = [1.0, 1.0];
    add_spreads(&[0, 1], &[2, 3], |slot, out| out.copy_from_slice(&rows[slot]), 2, &mut ratings);
    let e = 0.5f32.exp();
    assert!((ratings[0] - (1.0 + 1.0 / (1.0 + e))).abs() < 1e-6 && (ratings[1] - (1.0 + e / (1.0 + e))).abs() < 1e-6);
    // A channel that is the same in all tells nothing.
    add_spreads(&[0], &[0], |slot, out| out.copy_from_slice(&rows[slot]), 2, &mut ratings[..1]);
    assert!(ratings[0].is_finite());
}
