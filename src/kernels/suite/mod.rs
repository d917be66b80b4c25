//! One suite for every set: each that this CPU can run against the scalar one, bit for bit, at the sizes where tiles
//! begin and end, with outputs pre-filled with NaN so that a result nobody wrote cannot pass. The scalar one against f64.

mod attention;
mod elementwise;
mod fixtures;
mod products;

use super::Kernels;

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

/// `make test-arm` besides says which set each CPU must get.
#[test]
fn the_expected_set_is_picked() {
    let picked = Kernels::choose("auto").unwrap().name();
    assert_eq!(picked, best_set());
    if let Ok(expected) = std::env::var("LOWKEY_EXPECT_KERNELS") {
        assert_eq!(picked, expected);
    }
}
