//! One suite for every set: each that this CPU can run against the scalar one, bit for bit, at the sizes where tiles
//! begin and end, with outputs pre-filled with NaN so that a result nobody wrote cannot pass. The scalar one against f64.

mod attention;
mod elementwise;
mod fixtures;
mod products;

use super::{Kernels, Op};
use crate::gguf::quant::GgmlType;

/// The best set by what the system says of the CPU, which under emulation is the emulated one's.
#[cfg(target_arch = "aarch64")]
fn best_set() -> &'static str {
    let auxv = std::fs::read("/proc/self/auxv").expect("the auxiliary vector");
    let words: Vec<u64> = auxv.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    // AT_HWCAP and AT_HWCAP2, with HWCAP_ASIMDDP and HWCAP2_I8MM in them.
    let has = |kind: u64, bit: u32| words.as_chunks::<2>().0.iter().any(|[k, caps]| *k == kind && caps >> bit & 1 == 1);
    match (has(16, 20), has(26, 13)) {
        (true, true) => "i8mm",
        (true, false) => "dotprod",
        _ => "neon",
    }
}

#[cfg(target_arch = "x86_64")]
fn best_set() -> &'static str {
    let info = std::fs::read_to_string("/proc/cpuinfo").expect("what the system says of the CPU");
    let flags: Vec<&str> = info.lines().find(|line| line.starts_with("flags")).expect("a line of flags").split(' ').collect();
    let has = |wanted: &[&str]| wanted.iter().all(|flag| flags.contains(flag));
    match (has(&["avx2", "fma", "f16c"]), has(&["avx512f", "avx512bw", "avx512vl", "avx512_vnni"])) {
        (true, true) => "avx512",
        (true, false) => "avx2",
        _ => "scalar",
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best_set() -> &'static str {
    "scalar"
}

/// `make test-arm` besides says which set each CPU must get.
#[test]
fn the_expected_set_is_picked() {
    let picked = Kernels::choose("auto").unwrap().name();
    assert_eq!(picked, best_set());
    if let Ok(expected) = std::env::var("LOWKEY_EXPECT_KERNELS") {
        assert_eq!(picked, expected);
    }
}

/// What `auto` carves and fills is what every set needs that it may leave something to.
#[test]
fn buffers_of_the_default_set_serve_all_it_leaves_work_to() {
    let auto = Kernels::choose("auto").unwrap();
    for set in auto.candidates() {
        let forced = Kernels::choose(set.name()).unwrap();
        assert!(forced.quads_len(13, 576) <= auto.quads_len(13, 576), "{}", set.name());
        assert!(forced.wide_len(64) == auto.wide_len(64), "{}", set.name());
        for &ty in GgmlType::ALL {
            assert!(auto.wants_halves(ty) || !forced.wants_halves(ty), "{} {ty}", set.name());
        }
    }
}

#[test]
fn a_named_set_does_everything_and_float_matrices_have_no_choice() {
    for kernels in Kernels::available() {
        let own = kernels.set();
        for &ty in GgmlType::ALL {
            assert!(kernels.alternatives(Op::Decode(ty)).chain(kernels.alternatives(Op::Batch(ty))).eq([own, own]));
        }
        assert!(kernels.alternatives(Op::Attention).eq([own]) && kernels.describe() == kernels.name());
    }
    let auto = Kernels::choose("auto").unwrap();
    for ty in GgmlType::ALL.iter().filter(|ty| ty.is_float()) {
        assert!(auto.alternatives(Op::Batch(*ty)).eq([auto.set()]));
    }
    // All the others with vectors, this one last.
    let sets: Vec<_> = auto.alternatives(Op::Decode(GgmlType::Q8_0)).collect();
    let with_vectors = Kernels::available().filter(|k| k.name() != "scalar" || auto.name() == "scalar").count();
    assert!(sets.len() == with_vectors && sets.last() == Some(&auto.set()), "{sets:?}");
    for &set in &sets[..sets.len() - 1] {
        let mixed = auto.with(Op::Decode(GgmlType::Q8_0), set).with(Op::Decode(GgmlType::Q4_1), set);
        assert_eq!(mixed.describe(), format!("{} (decode of Q4_1, Q8_0: {})", auto.name(), set.name()));
        assert_eq!((mixed.of(Op::Decode(GgmlType::Q8_0)), mixed.of(Op::Batch(GgmlType::Q8_0))), (set, auto.set()));
        assert_eq!(mixed.name(), auto.name());
    }
}
