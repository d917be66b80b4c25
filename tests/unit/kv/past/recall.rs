//! Tests of `kv::past::recall`: what is passed over, and where fetched tokens stand.

use super::{PIECES, draw_near, least_of_best, stand};

fn stood(fetched: &[u32], live: &[(u32, u32)], renumbered: (u64, i64)) -> Vec<i32> {
    let (tokens, at): (Vec<u32>, Vec<u32>) = live.iter().copied().unzip();
    let mut positions = vec![7; fetched.len()];
    stand(fetched, &tokens, &at, u64::from, renumbered, &mut positions);
    positions
}

#[test]
fn before_positions_were_given_anew_all_stand_where_they_stood() {
    assert_eq!(stood(&[4, 5, 90], &[(0, 0), (91, 91), (50, 50)], (0, 0)), [4, 5, 90]);
    assert_eq!(stood(&[], &[(0, 0)], (100, 30)), [0; 0]);
}

#[test]
fn after_it_old_ones_keep_their_order_below_all_that_is_younger() {
    // Tokens 0, 40, 60 were live when token 100 was given position 3.
    let live = [(60, 2), (0, 0), (40, 1), (101, 4), (120, 23)];
    assert_eq!(stood(&[10, 20, 45, 50, 70, 110], &live, (100, 3)), [-2, -1, 0, 1, 2, 13]);
    // Where many lie between two of the arena, they reach below the older one, and below zero.
    assert_eq!(stood(&[10, 41, 42, 43], &live, (100, 3)), [-2, -1, 0, 1]);
    // None of those that were live then is left: below what came after it, and in order with what is fetched of that.
    assert_eq!(stood(&[10, 20, 100, 105], &[(120, 23), (130, 33)], (100, 3)), [1, 2, 3, 8]);
}

#[test]
fn what_lies_far_back_comes_nearer_in_its_order() {
    let drawn = |positions: &[i32], nearest: i32| {
        let mut positions = positions.to_vec();
        draw_near(&mut positions, nearest);
        positions
    };
    assert_eq!(drawn(&[3, 4, 90, 200, 201], 150), [145, 146, 147, 200, 201]);
    // What is near enough stays, and where all is, all.
    assert_eq!(drawn(&[149, 150, 151], 150), [149, 150, 151]);
    assert_eq!(drawn(&[0, 1, 2], -5), [0, 1, 2]);
    assert_eq!(drawn(&[-9, -8, 2], -5), [-8, -7, 2]);
    assert_eq!(drawn(&[], 3), [0; 0]);
}

/// What is passed over is never one of the best, of equal ones neither, and most are.
#[test]
fn what_is_not_among_the_best_is_passed_over() {
    let mut rng = fastrand::Rng::with_seed(3);
    for (n_tile, n) in [(1, 1), (5, 8), (125, 32), (300, 256), (41, 40)] {
        let mut shares: Vec<f32> = (0..n_tile * PIECES).map(|_| rng.f32().powi(8)).collect();
        for _ in 0..n_tile {
            let (a, b) = (rng.usize(..shares.len()), rng.usize(..shares.len()));
            shares[a] = [shares[b], f32::NEG_INFINITY, 0.0][rng.usize(..3)];
        }
        let least = least_of_best(&shares, n);
        let mut sorted = shares.clone();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        assert!(least <= sorted[n - 1] || sorted[n - 1] == f32::NEG_INFINITY, "{n_tile} tiles, {n}");
        let n_left = shares.iter().filter(|share| **share >= least).count();
        assert!(n_tile < 100 || n_left < n.max(shares.len() / 4) * 3, "{n_left} of {}", shares.len());
    }
}
