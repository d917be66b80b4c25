//! Tests of `kv::store::sink_row`.

use super::*;
use crate::kv::layout::LayerShape;
use crate::kv::policy::Rule;
use crate::kv::testkit::Tiny;
use crate::kv::{KvCache, Policy};

/// Eight slots or so for 64 positions; the oldest goes.
fn tiny(k_type: KvType, v_type: KvType, sinks: u32) -> Tiny {
    Tiny::with(8, |shape, params| {
        (shape.each.head_dim, shape.n_ctx, shape.k_type, shape.v_type) = (64, 64, k_type, v_type);
        (params.policy, params.sinks) = (Policy::Window, sinks);
    })
}

fn first(cache: &KvCache) -> Option<(&[u8], &[u8])> {
    cache.sink_rows(AttnLayer(0))
}

#[test]
fn it_is_kept_exactly_for_as_long_as_it_is_protected() {
    let key: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    let close = |got: &[u8], ty: KvType, want: &[f32]| {
        let mut back = [0f32; 64];
        RowType::F16.load(got, &mut back);
        ty.turn_back(&mut back, 64);
        back.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-3)
    };
    for (k_type, v_type, sinks) in [(KvType::Q5H, KvType::Q4H, 1), (KvType::F16, KvType::Q4H, 1), (KvType::Q5H, KvType::Q4H, 0)] {
        let mut tiny = tiny(k_type, v_type, sinks);
        for t in 0..40 {
            let key: Vec<f32> = key.iter().map(|k| k * (1 + t) as f32).collect();
            tiny.feed(&key, &key);
        }
        assert!(tiny.cache.n_evicted() > 0);
        assert_eq!(first(&tiny.cache).is_some(), sinks > 0, "{k_type:?} {v_type:?} {sinks}");
        if let Some((keys, values)) = first(&tiny.cache) {
            assert!(close(keys, k_type, &key) && close(values, v_type, &key), "{k_type:?} {v_type:?}");
            // By a rule that protects none it may have gone.
            let rule = tiny.cache.rule;
            tiny.cache.compress(8, 0, rule, &mut tiny.scratch[0]);
            assert!(first(&tiny.cache).is_some());
            tiny.cache.compress(4, 0, Rule { protect: Default::default(), ..rule }, &mut tiny.scratch[0]);
            assert!(first(&tiny.cache).is_none());
            tiny.cache.clear();
            assert!(first(&tiny.cache).is_some());
        }
    }
    let exact = tiny(KvType::F16, KvType::Q8_0, 1).cache;
    assert!(first(&exact).is_none() && exact.sink_rows.keys.is_empty());
}

#[test]
fn rings_have_none_and_a_policy_that_evicts_nothing_keeps_it_without_a_sink() {
    let shape = KvShape {
        n_layer: 6,
        each: LayerShape { n_head_kv: 2, head_dim: 64 },
        ..*tiny(KvType::Q5H, KvType::Q4H, 1).cache.shape()
    };
    let layer = 2 * 2 * RowType::F16.row_bytes(shape.each.head_dim);
    for (global_every, n_unlimited) in [(0, 0), (1, 6), (3, 2), (6, 1)] {
        let shape = KvShape { window: Some(Window { n_tok: 16, global_every }), ..shape };
        let mut rows = Arena::fill(|arena| SinkRows::carve(arena, &shape)).unwrap();
        assert_eq!(rows.keys.len() + rows.values.len(), n_unlimited * layer);
        rows.clear(true);
        for layer in shape.layers() {
            let is_there = !shape.is_ring(layer);
            assert_eq!(rows.rows(layer).is_some(), is_there);
            assert_eq!(rows.rows_mut(layer).take(2).flatten().count(), if is_there { 2 } else { 0 });
        }
    }
    let off = Tiny::with(8, |of, params| (*of, params.policy) = (shape, Policy::Off));
    assert!(off.cache.sink_rows(AttnLayer(5)).is_some());
}
