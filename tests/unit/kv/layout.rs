//! Tests of `kv::layout`.

use super::*;

#[test]
fn slots_add_up_layer_by_layer() {
    for (n_tok, global_every, n_slot) in [(4, 2, 9), (4, 6, 9), (9, 3, 4), (4, 1, 9), (1, 6, 1), (4, 0, 9)] {
        let window = Window { n_tok, global_every };
        let mut sum = 0;
        for layer in 0..20 {
            assert_eq!(window.slots_of(layer, n_slot), sum, "{window:?}, {layer}");
            assert_eq!(window.n_local(layer), (0..layer).filter(|&l| window.limits(AttnLayer(l))).count());
            sum += window.slots(AttnLayer(layer), n_slot);
        }
    }
    let six = Window { n_tok: 4, global_every: 6 };
    assert_eq!((0..13).filter(|&layer| !six.limits(AttnLayer(layer))).collect::<Vec<_>>(), [5, 11]);
}
