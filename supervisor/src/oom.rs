//! How many processes of this container the kernel's OOM killer ended.

use std::fs;
use std::path::{Path, PathBuf};

use crate::mounts::{self, Mount};

/// The file that counts, of either version of cgroups; found once, at the start.
pub(crate) struct OomCounter(Option<PathBuf>);

impl OomCounter {
    pub(crate) fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self(candidates(&own, &mounts::read()).into_iter().find(|path| count(path).is_some()))
    }

    /// As of now; `None` where the host counts nothing. A count that is looked at after a process was reaped has its
    /// kill in it: the kernel counts before it kills.
    pub(crate) fn read(&self) -> Option<u64> {
        count(self.0.as_deref()?)
    }
}

/// A line of `memory.oom_control` (version 1) or `memory.events` (version 2): the same in both.
fn count(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Where the file may be. Inside a container the own part of the tree is mounted, and named as the host names it
/// or, with a cgroup namespace, as `/`.
fn candidates(own: &str, mounts: &[Mount]) -> Vec<PathBuf> {
    let place = |path: &str, mount: &Mount, file: &str| {
        let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        mount.at.join(below).join(file)
    };
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let is_memory = |list: &str| list.split(',').any(|one| one == "memory");
        for mount in mounts {
            if mount.kind == "cgroup" && is_memory(controllers) && is_memory(&mount.options) {
                found.push(place(path, mount, "memory.oom_control"));
            }
            if mount.kind == "cgroup2" && controllers.is_empty() {
                found.push(place(path, mount, "memory.events"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, root: &str, at: &str, options: &str) -> Mount {
        let (kind, options) = (kind.to_owned(), options.to_owned());
        Mount { root: root.into(), at: at.into(), read_only: true, kind, options }
    }

    #[test]
    fn the_counter_is_found_in_both_versions() {
        let hybrid = [
            mount("cgroup", "/docker/1", "/sys/fs/cgroup/cpu", "rw,cpu"),
            mount("cgroup", "/docker/1", "/sys/fs/cgroup/memory", "rw,memory"),
            mount("cgroup2", "/", "/sys/fs/cgroup/unified", "rw"),
        ];
        let own = "9:cpu:/docker/1\n4:memory:/docker/1\n0::/\n";
        let expected = ["/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/unified/memory.events"];
        assert_eq!(candidates(own, &hybrid), expected.map(PathBuf::from));
        let below = candidates("4:memory:/docker/1/inner\n", &hybrid);
        assert_eq!(below, [PathBuf::from("/sys/fs/cgroup/memory/inner/memory.oom_control")]);
        let unified = [mount("cgroup2", "/", "/sys/fs/cgroup", "rw,nsdelegate")];
        assert_eq!(candidates("0::/\n", &unified), [PathBuf::from("/sys/fs/cgroup/memory.events")]);
        assert!(candidates("", &hybrid).is_empty());
    }
}
