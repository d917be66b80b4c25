//! How much memory this process could still be given: what the system calls available, or what its control group has left,
//! whichever is less. Read from Linux's own files; a number where they are there, nothing where they are not (other systems).
//! Refuses to guess, and to count swap for weights: file pages are never swapped out but read again.

use std::path::{Path, PathBuf};

/// What Linux says, or `None` where it does not.
pub fn available_bytes() -> Option<u64> {
    left(|folder| left_in_group(folder, false), |text| meminfo(text, "MemAvailable:"))
}

/// What private memory could still take: as above, and what it could be swapped to.
pub fn private_left_bytes() -> Option<u64> {
    left(
        |folder| left_in_group(folder, true),
        |text| Some(meminfo(text, "MemAvailable:")? + meminfo(text, "SwapFree:").unwrap_or(0)),
    )
}

/// The least of what the system and each group around this process have left.
fn left(in_group: impl Fn(&Path) -> Option<u64>, in_system: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| in_system(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").map(|text| group_folders(&text)).unwrap_or_default();
    let groups = groups.iter().flat_map(|folder| folder.ancestors()).filter_map(in_group).min();
    system.into_iter().chain(groups).min()
}

/// A limit of this process as /proc/self/limits names it; `None` where it has none.
pub fn limit_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/limits").ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// A line of /proc/meminfo, which is in KiB.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Folders of the groups that may limit memory: of version 2 (`0::/path`), and of version 1's memory controller. In a
/// container the path may be the host's, and the root is then what the container sees.
fn group_folders(text: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => Path::new("/sys/fs/cgroup"),
            _ if controllers.split(',').any(|c| c == "memory") => Path::new("/sys/fs/cgroup/memory"),
            _ => continue,
        };
        folders.push(root.join(path.trim_start_matches('/')));
    }
    folders
}

/// What a group has left: its limit less what it holds that the kernel could not drop, and the same of swap if that counts.
/// `None` without a limit.
fn left_in_group(folder: &Path, swap: bool) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let held = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    // Version 1 writes a huge number for no limit.
    let left = (limit < 1 << 60).then(|| limit.saturating_sub(held.saturating_sub(file_pages(&stat))))?;
    // Without a limit of its own (`max`) a group may swap as much as the system has; without the file it may not.
    let swap_left = || Some(number("memory.swap.max").unwrap_or(u64::MAX).saturating_sub(number("memory.swap.current")?));
    Some(left.saturating_add(swap_left().filter(|_| swap).unwrap_or(0)))
}

/// Pages of files that a group holds, in bytes: they can be dropped.
fn file_pages(stat: &str) -> u64 {
    let value = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    value("inactive_file ").unwrap_or(0) + value("active_file ").unwrap_or(0)
}

#[cfg(test)]
mod tests {
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
}
