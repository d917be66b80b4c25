//! Tests of `mem::available`.

use super::*;

#[test]
fn meminfo_and_groups_are_read_as_linux_writes_them() {
    assert_eq!(
        meminfo("MemTotal:  436168 kB\nMemAvailable:     340228 kB\nBuffers: 1 kB\n", "MemAvailable:"),
        Some(340_228 << 10)
    );
    for text in ["", "MemAvailable: 12 MB\n", "MemAvailable: -1 kB\n", "MemAvailable: 99999999999999999999 kB"] {
        assert_eq!(meminfo(text, "MemAvailable:"), None, "{text}");
    }
    let folders = group_folders("12:cpu,cpuacct:/a\n4:memory:/docker/x\n0::/user.slice/run\nnonsense\n");
    assert_eq!(folders, [Path::new("/sys/fs/cgroup/memory/docker/x"), Path::new("/sys/fs/cgroup/user.slice/run")]);
    assert_eq!(file_pages("anon 5\nfile 9\ninactive_file 4096\nactive_file 100\nslab 1\n"), 4196);
}

#[test]
fn a_group_s_limit_counts_and_its_file_pages_do_not() {
    let folder = std::env::temp_dir().join(format!("lowkey-available-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    assert_eq!(left_in_group(&folder, false), None);
    write("memory.max", "1000\n");
    write("memory.current", "700\n");
    assert_eq!(left_in_group(&folder, false), Some(300));
    write("memory.stat", "active_file 300\ninactive_file 100\n");
    assert_eq!(left_in_group(&folder, false), Some(700));
    write("memory.swap.current", "50\n");
    write("memory.swap.max", "80\n");
    assert_eq!((left_in_group(&folder, false), left_in_group(&folder, true)), (Some(700), Some(730)));
    write("memory.max", "max\n");
    assert_eq!(left_in_group(&folder, false), None);
    std::fs::remove_dir_all(&folder).unwrap();
}
