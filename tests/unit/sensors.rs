//! Tests of `sensors`, on files as a Raspberry Pi has them.

use super::Sensors;

#[test]
fn a_board_that_tells_is_understood_and_others_say_nothing() {
    let root = std::env::temp_dir().join(format!("lowkey-sensors-{}", std::process::id()));
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    std::fs::create_dir_all(&root).expect("a folder");
    assert_eq!((Sensors::below(&root), Sensors::below(&root).line()), (Sensors::default(), String::new()));
    write("sys/class/thermal/thermal_zone0/temp", "63250\n");
    write("sys/class/thermal/thermal_zone1/temp", "81300\n");
    write("sys/class/thermal/thermal_zone2/temp", "-274000\n");
    write("sys/class/thermal/cooling_device0/temp", "99000\n");
    write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n");
    write("proc/self/status", "Name:\tlowkey\nVmSwap:\t    2048 kB\n");
    let seen = Sensors::below(&root);
    let want = Sensors { temperature_c: Some(81.3), throttled: Some(0x50005), swapped_bytes: Some(2 << 20) };
    assert_eq!(seen, want);
    assert_eq!(seen.line(), "81 °C; the voltage is too low, throttled; 2 MiB of this program are in swap");
    write("sys/devices/platform/soc/soc:firmware/get_throttled", "0x10000");
    write("proc/self/status", "VmSwap:\t0 kB\n");
    assert_eq!(Sensors::below(&root).line(), "81 °C; not throttled now; since it was started: the voltage is too low");
    std::fs::remove_dir_all(&root).expect("the folder goes");
}
