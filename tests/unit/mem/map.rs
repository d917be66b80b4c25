//! Tests of `mem::map`.

use super::*;

/// The flags that the kernel keeps for what is mapped at an address.
fn flags_at(address: usize) -> String {
    let maps = fs::read_to_string("/proc/self/smaps").expect("what this process has mapped");
    let mut is_here = false;
    for line in maps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Ok(from), Ok(to))) = range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)))
        {
            is_here = (from..to).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_here) {
            return flags.to_owned();
        }
    }
    panic!("nothing is mapped at {address:x}");
}

#[test]
fn advice_is_of_the_part_that_is_named_and_changes_no_byte() {
    let bytes: Vec<u8> = (0..1_000_000u32).map(|i| (i / 7) as u8).collect();
    let path = std::env::temp_dir().join(format!("lowkey-map-{}", std::process::id()));
    fs::write(&path, &bytes).expect("a file");
    let (map, other) = (Map::open(&path).expect("a map"), Map::open(&path).expect("another"));
    fs::remove_file(&path).expect("it goes");
    for part in [map.bytes(), &map.bytes()[700_000..700_001], &map.bytes()[..0], other.bytes(), &bytes[..]] {
        map.will_need(part);
    }
    let part = &map.bytes()[300_000..500_000];
    other.is_read_here_and_there(part);
    // An emulator of processes keeps advice to itself.
    let asks_kernel = cfg!(target_os = "linux") && std::env::var_os("QEMU_CPU").is_none();
    let is_random = |at: usize| flags_at(map.bytes().as_ptr() as usize + at).split(' ').any(|flag| flag == "rr");
    assert!(!asks_kernel || [0, 300_000, 999_999].iter().all(|&at| !is_random(at)), "advice of another map");
    map.is_read_here_and_there(part);
    if asks_kernel {
        assert_eq!([0, 200_000, 300_000, 499_999, 600_000, 999_999].map(is_random), [false, false, true, true, false, false]);
    }
    assert!(map.bytes() == bytes && other.bytes() == bytes);
}
