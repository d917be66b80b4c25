//! Tests of `kv::store::renumber`.

use crate::kv::testkit::Tiny;
use crate::kv::{AttnLayer, KvCache, KvType, Policy};

/// Renumbering rounds keys again, in the basis they are stored in, and moves them no further than that.
#[test]
fn renumbered_keys_are_those_of_before_whatever_they_are_stored_in() {
    for k_type in KvType::ALL {
        let mut tiny = Tiny::with(8, |shape, params| {
            (shape.each.head_dim, shape.n_ctx, shape.k_type) = (64, 64, k_type);
            (params.policy, params.sinks) = (Policy::Window, 1);
        });
        let (shape, mut rng) = (*tiny.cache.shape(), fastrand::Rng::with_seed(5));
        for _ in 0..16 {
            let key: Vec<f32> = (0..64).map(|_| rng.f32() - 0.5).collect();
            tiny.feed(&key, &key);
        }
        let keys = |cache: &KvCache| -> Vec<f32> {
            let rows = cache.keys(AttnLayer(0)).chunks_exact(shape.k_bytes(AttnLayer(0))).take(cache.n_live());
            rows.flat_map(|row| {
                let mut key = [0f32; 64];
                k_type.row().load(row, &mut key);
                k_type.turn_back(&mut key, 64);
                key
            })
            .collect()
        };
        let before = keys(&tiny.cache);
        tiny.cache.renumber(&mut tiny.pool, &mut tiny.scratch, &());
        assert!(tiny.kept(0, 0).iter().all(|&pos| (pos as usize) < tiny.cache.n_live()), "{}", k_type.name());
        let moved = keys(&tiny.cache).iter().zip(&before).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
        // Half a step of the coarsest type is a thirty-second of its largest element; turned back it is spread.
        assert!(moved < 0.05, "{}: moved by {moved}", k_type.name());
    }
}
