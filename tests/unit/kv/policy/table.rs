//! Tests of `kv::policy::table`.

use super::*;

#[test]
fn a_policy_is_its_row_and_scores_are_those_by_hand() {
    let e = Entering { key_norm: 6.0, value_norm: 2.0, cos: 0.25, noise: 0.5 };
    let by_hand = [
        6.0,
        6.0,
        -6.0,
        6.0 / (0.75 * 2.0 * 0.1),
        1.0 / (0.75 * 2.0 * 0.1),
        0.25,
        0.25,
        -1.5,
        3.0,
        f32::NEG_INFINITY,
        -0.1,
        -0.1,
        0.0,
        0.5,
        0.0,
    ];
    for (i, (row, by_hand)) in TABLE.iter().zip(by_hand).enumerate() {
        assert!(row.policy as usize == i && row.policy.row().name == row.name && row.name.parse() == Ok(row.policy));
        let priority = row.priority.of((row.score)(&e), 0.1);
        assert!(priority == by_hand || (priority - by_hand).abs() < 1e-5, "{}: {priority}", row.name);
    }
}
