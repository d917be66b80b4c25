//! Tests of `kv::store::key_rounding`.

use super::*;
use crate::kv::Policy;
use crate::kv::testkit::Tiny;

const DIM: usize = 32;
const ONE: (AttnLayer, Head) = (AttnLayer(0), Head(0));

/// The magnitude of an element of every query.
fn weight(i: usize) -> f32 {
    0.1 + i as f32
}

/// A cache of one head after 100 keys, `n_batch` at a time, and the keys.
fn filled(k_type: KvType, capped: bool, n_batch: usize) -> (KvCache, Vec<f32>) {
    let mut tiny = Tiny::with(120, |shape, params| {
        (shape.each.head_dim, shape.n_batch, shape.n_ctx, shape.k_type, shape.capped) = (DIM, n_batch, 128, k_type, capped);
        (params.policy, params.sinks) = (Policy::Window, 1);
    });
    let mut rng = fastrand::Rng::with_seed(3);
    // What keys have in common is larger than what they differ in.
    let common: Vec<f32> = (0..DIM).map(|_| 8.0 * (rng.f32() - 0.5)).collect();
    let keys: Vec<f32> = (0..100 * DIM).map(|i| common[i % DIM] + rng.f32() - 0.5).collect();
    let mut done = 0;
    while done < 100 {
        let n = tiny.cache.together(n_batch.min(100 - done));
        let batch = &keys[done * DIM..][..n * DIM];
        // What queries weigh most is the last elements.
        let queries: Vec<f32> = (0..n * DIM).map(|i| weight(i % DIM)).collect();
        tiny.feed_asked(&queries, batch, batch);
        done += n;
    }
    (tiny.cache, keys)
}

/// The mean square between the keys that came once the centre was fixed and what is stored of them, with what was taken off.
fn error(cache: &KvCache, keys: &[f32]) -> f32 {
    errors(cache, keys).iter().sum()
}

/// The same by element.
fn errors(cache: &KvCache, keys: &[f32]) -> [f32; DIM] {
    let ty = cache.shape.k_type;
    let rows = keys.chunks_exact(DIM).zip(cache.keys(AttnLayer(0)).chunks_exact(cache.shape.k_bytes(AttnLayer(0))));
    let mut squares = [0f32; DIM];
    for (key, row) in rows.skip(SEEN) {
        let mut back = [0f32; DIM];
        cache.roundings.of_head(ONE.0, ONE.1).load(ty, row, &mut back);
        ty.turn_back(&mut back, DIM);
        squares.iter_mut().zip(back.iter().zip(key)).for_each(|(sum, (back, key))| *sum += (back - key) * (back - key));
    }
    squares
}

#[test]
fn keys_less_what_they_share_are_rounded_more_finely_and_what_was_taken_off_is_known() {
    for k_type in [KvType::Q6H, KvType::Q5H, KvType::Q4H] {
        let (centred, keys) = filled(k_type, false, 16);
        let (plain, _) = filled(k_type, true, 16);
        assert!(!centred.roundings.centres.is_empty() && plain.roundings.centres.is_empty());
        let (fine, coarse) = (error(&centred, &keys), error(&plain, &keys));
        assert!(fine < 0.25 * coarse, "{}: {fine}, plainly {coarse}", k_type.name());
    }
    for k_type in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        assert!(filled(k_type, false, 16).0.roundings.query_weights.is_empty(), "{}", k_type.name());
    }
}

/// What queries weigh is rounded more finely, at the cost of the rest.
#[test]
fn errors_lie_where_queries_do_not_look() {
    let (cache, keys) = filled(KvType::Q5H, false, 16);
    let weights = cache.roundings.of_head(ONE.0, ONE.1).query_weight;
    let mean = (0..DIM).map(|i| weight(i) * weight(i)).sum::<f32>() / DIM as f32;
    for (i, &got) in weights.iter().enumerate() {
        assert!((got - weight(i) * weight(i) / mean - UNSEEN).abs() < 1e-4, "{i}: {got}");
    }
    let by_element = errors(&cache, &keys);
    let [first, last] = [&by_element[..DIM / 2], &by_element[DIM / 2..]].map(|half| half.iter().sum::<f32>());
    assert!(last < 0.5 * first, "{last} {first}");
}

#[test]
fn batches_end_where_centres_are_fixed_and_change_nothing() {
    let (one, _) = filled(KvType::Q5H, false, 1);
    for n_batch in [3, 16] {
        assert!(
            filled(KvType::Q5H, false, n_batch).0.keys(AttnLayer(0))[..one.shape.k_bytes(AttnLayer(0)) * 100]
                == one.keys(AttnLayer(0))[..one.shape.k_bytes(AttnLayer(0)) * 100]
        );
    }
}
