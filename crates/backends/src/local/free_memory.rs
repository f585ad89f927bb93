//! [`free_memory`]: how much memory this process may still take.

use std::fs;
use std::path::Path;

/// Bytes that this process can take without swapping: what the system has available, or what is left of the control
/// group's limit if that is less. `None` where the system doesn't say (it is Linux that does).
pub fn free_memory() -> Option<u64> {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text))?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(groups.lines().filter_map(left_in_group).fold(available, u64::min))
}

/// Of `/proc/meminfo`: caches that can be dropped count as available.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// What a line of `/proc/self/cgroup` leaves, version 2 (`0::/path`) or 1 (`5:memory:/path`).
fn left_in_group(line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    let (root, limit, usage) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
        "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        _ => return None,
    };
    // In a container the group is often mounted as the root.
    let folders = [Path::new(root).join(path), root.into()];
    let number = |folder: &Path, file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    folders.iter().find_map(|folder| {
        let used = number(folder, usage)?.saturating_sub(droppable(folder).unwrap_or(0));
        Some(number(folder, limit)?.saturating_sub(used))
    })
}

/// Of what a group uses: the cached files that were not read lately.
fn droppable(folder: &Path) -> Option<u64> {
    let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
    let line = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    line("total_inactive_file ").or_else(|| line("inactive_file "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_available_memory_is_read() {
        let text = "MemTotal:       24690788 kB\nMemFree:        1000 kB\nMemAvailable:   23560112 kB\n";
        assert_eq!(available(text), Some(23_560_112 * 1024));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
        assert_eq!(left_in_group("3:cpu:/"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_says() {
        assert!(free_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
