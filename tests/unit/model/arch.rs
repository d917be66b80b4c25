//! Tests of `model::arch`.

use super::*;

#[test]
fn every_fourth_layer_of_smollm3_is_unturned() {
    let unturned = |name| (0..9).filter(|&i| !Arch::by_name(name).expect("listed").turns(ModelLayer(i))).collect::<Vec<_>>();
    assert_eq!((unturned("smollm3"), unturned("llama")), (vec![3, 7], vec![]));
    assert_eq!(Arch::by_name("Llama"), None);
}
