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
#[path = "../../tests/unit/mem/available.rs"]
mod tests;
