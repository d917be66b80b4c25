//! Tests of `kv::layout`.

use super::*;
use crate::kv::testkit::tiny_shape;

const ONE: LayerShape = LayerShape { n_head_kv: 1, head_dim: 8 };
const TWO: LayerShape = LayerShape { n_head_kv: 3, head_dim: 16 };

/// What is said of the first layers at once is what it is for each of them, together.
#[test]
fn slots_rows_and_heads_add_up_layer_by_layer() {
    for (n_tok, global_every, n_slot) in [(4, 2, 9), (4, 6, 9), (9, 3, 4), (4, 1, 9), (1, 6, 1), (4, 0, 9)] {
        let window = Window { n_tok, global_every };
        for local in [None, Some(TWO)] {
            let shape = KvShape { n_layer: 20, each: ONE, local, window: Some(window), ..tiny_shape() };
            let (mut slots, mut heads, mut dims, mut rows) = (0, 0, 0, [0; 2]);
            for layer in shape.layers() {
                assert_eq!(shape.slots_of(layer.0, n_slot), slots, "{window:?}, {layer:?}");
                assert_eq!((shape.heads_before(layer), shape.dims_of(layer.0)), (heads, dims));
                assert_eq!([0, 1].map(|store| shape.rows_of(store, layer.0, n_slot)), rows);
                assert_eq!(window.n_local(layer.0), (0..layer.0).filter(|&l| window.limits(AttnLayer(l))).count());
                let of = if window.limits(layer) { local.unwrap_or(ONE) } else { ONE };
                assert_eq!(shape.of(layer), of);
                rows[shape.store(layer)] += of.n_head_kv * window.slots(layer, n_slot);
                slots += of.n_head_kv * window.slots(layer, n_slot);
                (heads, dims) = (heads + of.n_head_kv, dims + of.row_dim());
            }
            assert_eq!(shape.all_heads().count(), shape.n_heads());
        }
    }
    let six = Window { n_tok: 4, global_every: 6 };
    assert_eq!((0..13).filter(|&layer| !six.limits(AttnLayer(layer))).collect::<Vec<_>>(), [5, 11]);
}

#[test]
fn the_last_layers_of_each_kind_are_shared() {
    let window = Some(Window { n_tok: 4, global_every: 3 });
    let shape = KvShape { n_layer: 6, each: ONE, local: Some(TWO), window, shared: true, ..tiny_shape() };
    let shared: Vec<usize> = shape.layers().filter(|&layer| shape.is_shared(layer)).map(|layer| layer.0).collect();
    assert_eq!(shared, [4, 5]);
    assert!(shape.layers().all(|layer| !KvShape { shared: false, ..shape }.is_shared(layer)));
}
