//! Tests of `model::arch`.

use super::*;

#[test]
fn every_family_has_a_name_of_its_own() {
    let names: Vec<&str> = ARCHS.iter().map(|arch| arch.name).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name} twice");
        assert_eq!(Arch::by_name(name).map(|arch| arch.name), Some(*name));
    }
    assert_eq!(Arch::by_name("Llama"), None);
    assert!(REFUSED.iter().all(|refused| Arch::by_name(refused.0).is_none()));
}
