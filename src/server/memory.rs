//! How much memory there is: what `server.memory = "auto"` goes by.

use std::fs;
use std::path::Path;

/// Where nobody can tell.
const UNKNOWN: u64 = 2 << 30;

/// Half of what this process may use: of the machine's memory, or of the limit of its control group.
pub(crate) fn auto() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).as_deref().and_then(total);
    let groups = read(Path::new("/proc/self/cgroup")).map(|text| limits(&text)).unwrap_or_default();
    let group = groups.iter().filter_map(|path| read(Path::new(path))).filter_map(|text| limit(&text)).min();
    [machine, group].into_iter().flatten().min().unwrap_or(UNKNOWN) / 2
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files that may hold a limit, by `/proc/self/cgroup`: those of the group and of all above it. Within a container
/// the group's path is often that of the host, and only the top is there.
fn limits(cgroup: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match kinds {
            "" => ("/sys/fs/cgroup", "memory.max"),
            kinds if kinds.split(',').any(|kind| kind == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let above = Path::new(path.trim_start_matches('/')).ancestors();
        files.extend(above.map(|group| Path::new(root).join(group).join(file).to_string_lossy().into_owned()));
    }
    files
}

/// The number in such a file; none when it says `max`.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_its_memory() {
        assert_eq!(total("MemTotal:        8028116 kB\nMemFree: 1 kB\n"), Some(8_028_116 * 1024));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_group_and_all_above_it_may_hold_a_limit() {
        let unified = limits("0::/a.slice/b.scope\n");
        let files = ["a.slice/b.scope/", "a.slice/", ""].map(|group| format!("/sys/fs/cgroup/{group}memory.max"));
        assert_eq!(unified, files);
        let legacy = limits("5:cpu:/x\n4:memory,hugetlb:/docker/1\n");
        assert_eq!(legacy.first().map(String::as_str), Some("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes"));
        assert_eq!(legacy.len(), 3);
        assert_eq!((limit("max\n"), limit("1048576\n")), (None, Some(1 << 20)));
    }

    #[test]
    fn here_it_is_something() {
        assert!(auto() > 16 << 20);
    }
}
