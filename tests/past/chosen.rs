//! What is chosen of the past, and where it stands.

use std::sync::Arc;

use fastrand::Rng;
use lowkey::kernels::RopeOrder;
use lowkey::kv::{AttnLayer, Head, KvCache, Rotary};

use super::{Memory, Played, shown, with_past, with_past_on};

/// Among pieces whose keys say little there is one that a query asks for.
#[test]
fn the_piece_that_is_asked_for_is_chosen() {
    let mut rng = Rng::with_seed(9);
    for case in 0..8 {
        let (mut tiny, _) = with_past(24, 16, 1, 1, |shape| (shape.each.head_dim, shape.n_batch) = (32, 1));
        let wanted = rng.usize(0..300);
        let needle: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        for t in 0..400 {
            let mut random = || (0..32).map(|_| rng.f32() - 0.5).collect::<Vec<f32>>();
            let (q, k, v) =
                (random(), if t == wanted { needle.clone() } else { random() }, vec![if t == wanted { 7.0 } else { 0.0 }; 32]);
            assert!(tiny.feed(1, |_| [q.clone(), k.clone(), v.clone()], |_, _| ()));
        }
        let held = tiny.cache.kept(AttnLayer(0), Head(0)).contains(&(wanted as u32));
        let asks: Vec<f32> = needle.iter().map(|x| x * 2.0).collect();
        let mut out = Vec::new();
        assert!(tiny.attend(1, |_| [asks.clone(), vec![0.0; 32], vec![0.0; 32]], |_, _| (), |_, given| out = given.to_vec()));
        assert!(out[0] > 6.9, "case {case}: token {wanted} gives {} (held: {held})", out[0]);
    }
}

/// While one token after the other asks, a piece that was read stays until another is asked for twice as much, whichever came first.
#[test]
fn what_the_step_before_read_stays_until_another_is_asked_for_twice_as_much() {
    let mut rng = Rng::with_seed(12);
    let mut between = || -> f32 {
        let (mut tiny, _) = with_past(24, 64, 1, 1, |shape| (shape.each.head_dim, shape.n_batch) = (32, 1));
        let one: Vec<f32> = (0..32).map(|_| if rng.bool() { 1.0 } else { -1.0 }).collect();
        let other: Vec<f32> = one.iter().zip([1.0, -1.0].into_iter().cycle()).map(|(x, sign)| x * sign).collect();
        // Each fills a piece; their keys are the longest, so the arena lets them go first.
        for t in 0..120 {
            let (k, v) = match t {
                32..36 => (one.clone(), 1.0),
                40..44 => (other.clone(), -1.0),
                _ => (vec![0.0; 32], 0.0),
            };
            assert!(tiny.feed(1, |_| [vec![0.0; 32], k.clone(), vec![v; 32]], |_, _| ()));
        }
        // Asks with a logit that is so much higher for the other: whether that is what is read.
        let mut is_other = |above: f32| {
            let q: Vec<f32> = one.iter().zip(&other).map(|(a, b)| ((a + b) * 4.0 + (b - a) * above / 2.0) / 32.0).collect();
            let mut out = Vec::new();
            assert!(tiny.attend(1, |_| [q.clone(), vec![0.0; 32], vec![0.0; 32]], |_, _| (), |_, given| out = given.to_vec()));
            out[0] < 0.0
        };
        assert!(!is_other(-4.0));
        let up = (0..400).map(|i| -4.0 + i as f32 / 50.0).find(|&above| is_other(above)).expect("the other in the end");
        let down = (0..400).map(|i| 4.0 - i as f32 / 50.0).find(|&above| !is_other(above)).expect("the one again");
        up - down
    };
    // Twice as much is ln 2 of a logit, either way, and keys of two bits leave 0.8825 of a logit (Max 1960).
    let mean = (0..32).map(|_| between()).sum::<f32>() / 32.0;
    let want = 2.0 * 2f32.ln() / 0.8825;
    assert!((mean - want).abs() < 0.1, "{mean} between where the other is read and where the one is again, not {want}");
}

/// One token reads the pieces that get a tenth of an even part of what it gives to the past, at most `--recall` of them; a batch, whose
/// tokens share what is read, the best that there are.
#[test]
fn one_token_reads_only_what_is_worth_it() {
    const N_RECALL: usize = 4;
    let wide: Vec<f32> = (0..32).map(|i| if i % 3 == 0 { 1.0 } else { -1.0 }).collect();
    let (mut tiny, _) = with_past(24, 64, N_RECALL, 1, |shape| (shape.each.head_dim, shape.n_batch) = (32, 2));
    // Each fills a piece; their keys are the longest, so the arena lets them go first.
    for t in 0..240 {
        let height = match t {
            32..36 => 2.0,
            40..44 => 1.0,
            _ => 0.01,
        };
        let k: Vec<f32> = wide.iter().map(|x| x * height).collect();
        assert!(tiny.feed(1, |_| [vec![0.0; 32], k.clone(), vec![height; 32]], |_, _| ()));
    }
    // How many are read where the first gets so much more than the second, in logits, and than all others twice as much.
    let mut n_read = |n_tok: usize, above: f32| {
        let n_before = tiny.cache.past().expect("it has one").counts().n_pieces;
        let q: Vec<f32> = wide.iter().map(|x| x * above / 32.0).collect();
        let mut first = 0.0;
        let rows = |_| [q.repeat(n_tok), vec![0.0; 32 * n_tok], vec![0.0; 32 * n_tok]];
        assert!(tiny.attend(n_tok, rows, |_, _| (), |_, given| first = given[0]));
        ((tiny.cache.past().expect("it has one").counts().n_pieces - n_before) as usize, first)
    };
    assert_eq!(n_read(1, 0.0).0, N_RECALL, "all are worth the same");
    let (n, first) = n_read(1, 12.0);
    assert!(n == 1 && first > 1.9, "{n} pieces, {first}");
    // Below a fortieth is what is e^3.7 below; what was read before counts double.
    assert_eq!(n_read(1, 6.0).0, 1);
    assert_eq!(n_read(1, 2.5).0, 2);
    assert_eq!(n_read(2, 12.0).0, N_RECALL, "two share what is read");
}

const DIM: usize = 64;

/// Turns pairs of neighbours, each more slowly than the one before.
struct Turning;

impl Rotary for Turning {
    fn magnitude(&self, _: AttnLayer) -> Option<f32> {
        Some(1.0)
    }
    fn pairs(&self, _: AttnLayer) -> Option<(RopeOrder, usize)> {
        Some((RopeOrder::Norm, DIM))
    }
    fn set_angles(&self, _: AttnLayer, steps: i64, angles: &mut [f32]) {
        for (i, pair) in angles.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let angle = steps as f64 * 0.3 / (1.0 + i as f64);
            *pair = [angle.cos() as f32, angle.sin() as f32];
        }
    }
    fn turn(&self, _: AttnLayer, key: &mut [f32], angles: &[f32]) {
        for (pair, [cos, sin]) in key.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
            *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
        }
    }
    fn mean_squares(&self, _: AttnLayer, _: &mut [f32]) {}
    fn mean_key(&self, _: AttnLayer, _: &mut [f32], _: &mut [f32]) {}
}

/// While positions are the tokens' own, what is read again stands at its own, or where it lies further back than a quarter of the
/// trained context, there: one token below the other.
#[test]
fn what_lies_far_back_is_read_again_from_a_quarter_of_the_trained_context() {
    const NEAR: i64 = 64;
    // Two pieces that all ask for, and the arena loses first, for their keys are the longest.
    let is_wanted = |token: i64| matches!(token, 8..12 | 40..44);
    let turned = |row: &[f32], position: i64| {
        let (mut row, mut angles) = (row.to_vec(), [0.0; DIM]);
        Turning.set_angles(AttnLayer(0), position, &mut angles);
        Turning.turn(AttnLayer(0), &mut row, &angles);
        row
    };
    let memory = Arc::new(Memory { full_from: u64::MAX.into(), ..Memory::default() });
    let mut tiny = with_past_on(Box::new(Played(memory)), &Turning, (24, 16, 2, 1), |shape| {
        (shape.n_ctx, shape.each.head_dim) = (4 * NEAR as usize, DIM);
    });
    let mut rng = Rng::with_seed(11);
    let mut rows: Vec<[Vec<f32>; 3]> = Vec::new();
    let (mut worst, mut own) = (0f64, 0f64);
    for now in 0..200i64 {
        let mut row = |size: f32, about: f32| -> Vec<f32> { (0..DIM).map(|_| about + size * (rng.f32() - 0.5)).collect() };
        rows.push([row(0.1, 0.5), if is_wanted(now) { row(0.1, 0.5) } else { row(0.2, 0.0) }, row(2.0, 0.0)]);
        let [q, k, v] = &rows[now as usize];
        let (new, asks, mut held, mut given) = ([q.clone(), k.clone(), v.clone()], turned(q, now), Vec::new(), Vec::new());
        let before = vec![vec![tiny.cache.kept(AttnLayer(0), Head(0)).to_vec()]];
        let see = |layer, cache: &KvCache| held = shown(cache, layer, Head(0), 0, &before, now as usize);
        assert!(tiny.attend_turned(&Turning, 1, |_| new.clone(), see, |_, out| given = out.to_vec()));
        if now < 64 {
            continue; // not both pieces are in the file and lost
        }
        let given_by = |stands: &dyn Fn(i64, i64) -> i64| -> Vec<f64> {
            let fetched = (0..now).rev().filter(|&token| is_wanted(token)).zip(1..).map(|(token, n)| (token, stands(token, n)));
            let all = held.iter().map(|&token| (token as i64, token as i64)).chain(fetched);
            let (mut out, mut sum) = (vec![0.0; DIM], 0.0);
            for (token, position) in all {
                let key = turned(&rows[token as usize][1], position);
                let weight = key.iter().zip(&asks).map(|(k, q)| f64::from(k * q)).sum::<f64>().exp();
                sum += weight;
                out.iter_mut().zip(&rows[token as usize][2]).for_each(|(out, v)| *out += weight * f64::from(*v));
            }
            out.iter().map(|x| x / sum).collect()
        };
        let off = |want: Vec<f64>| given.iter().zip(want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(0.0, f64::max);
        worst = worst.max(off(given_by(&|token, n| token.max(now - NEAR - n))));
        own = own.max(off(given_by(&|token, _| token)));
    }
    assert!(worst < 3e-3 && own > 0.1, "off by {worst}, at their own positions {own}");
    assert_eq!(tiny.cache.n_renumbered(), 0);
}
