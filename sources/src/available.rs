//! Memory that this process may take, as the system says.
//!
//! ```text
//!   /proc/meminfo         MemAvailable: free, or freed without swapping
//!   /proc/self/cgroup     in which groups we are; each may have a limit, and so may those above it
//!   /sys/fs/cgroup        the limits
//! ```

use std::{
    fs,
    path::{Component, Path},
};

/// Bytes of memory that this process may take: what the machine has available, or the least limit of
/// the process's cgroups and of those above them, if that is less. `None` where the system says neither.
pub fn memory() -> Option<u64> {
    memory_below(Path::new("/"))
}

/// The least limit of memory of the process's cgroups and of those above them, in bytes. `None` where none has
/// one.
pub fn limit() -> Option<u64> {
    limits(Path::new("/")).into_iter().min()
}

/// The same as [`memory`], of a system whose files are below `root`.
fn memory_below(root: &Path) -> Option<u64> {
    available(root).into_iter().chain(limits(root)).min()
}

/// Bytes that the whole machine has to give.
fn available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Limits of this process's groups, of either version.
fn limits(root: &Path) -> Vec<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (top, names): (_, &[&str]) = match controllers {
            "" => (root.join("sys/fs/cgroup"), &["memory.max", "memory.high"]),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("sys/fs/cgroup/memory"), &["memory.limit_in_bytes"])
            }
            _ => continue,
        };
        let mut group = top.clone();
        let mut groups = vec![top];
        // A group that lies outside of what we see begins with `..`.
        for part in Path::new(path).components() {
            if let Component::Normal(name) = part {
                group.push(name);
                groups.push(group.clone());
            }
        }
        let files = groups.iter().flat_map(|group| names.iter().map(|name| group.join(name)));
        limits.extend(files.filter_map(|file| limit_in(&file)));
    }
    limits
}

/// `max` is no number, and none.
fn limit_in(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// What it is, the system's files, and the memory.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<u64>);

    #[test]
    fn it_is_the_least_limit() {
        let meminfo = |gib: u64| format!("MemTotal: 1 kB\nMemAvailable:   {} kB\n", gib << 20);
        let small = meminfo(8);
        let cases: [Case; 9] = [
            ("nothing is known", &[], None),
            ("the machine's", &[("proc/meminfo", &small)], Some(8 * GIB)),
            ("no number", &[("proc/meminfo", "MemAvailable: much kB\n")], None),
            (
                "too large a number",
                &[("proc/meminfo", "MemAvailable: 18446744073709551615 kB\n")],
                None,
            ),
            (
                "a limit, where the machine says nothing",
                &[("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "1073741824\n")],
                Some(GIB),
            ),
            (
                "its group's",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/system.slice/extmem.service\n"),
                    ("sys/fs/cgroup/system.slice/extmem.service/memory.max", "1073741824\n"),
                    ("sys/fs/cgroup/system.slice/extmem.service/memory.high", "max\n"),
                    ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
                ],
                Some(GIB),
            ),
            (
                "that of a group above",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/a/b/c\n"),
                    ("sys/fs/cgroup/a/memory.high", "2147483648\n"),
                    ("sys/fs/cgroup/a/b/c/memory.max", "4294967296\n"),
                ],
                Some(2 * GIB),
            ),
            (
                "a container's, which sees its own group at the top",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/../../other\n"),
                    ("sys/fs/cgroup/memory.max", "1073741824\n"),
                ],
                Some(GIB),
            ),
            (
                "that of the first version",
                &[
                    ("proc/meminfo", &small),
                    (
                        "proc/self/cgroup",
                        "5:cpu,memory:/docker/x\n1:name=systemd:/docker/x\n0::/\n",
                    ),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "2147483648\n"),
                ],
                Some(2 * GIB),
            ),
        ];
        for (what, files, expected) in cases {
            let root = tempfile::tempdir().expect("a folder");
            for (name, text) in files {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
                fs::write(path, text).expect("write");
            }
            assert_eq!(memory_below(root.path()), expected, "{what}");
            // The limits alone, where they are less than what the machine has.
            let least = limits(root.path()).into_iter().filter(|&bytes| bytes < 8 * GIB).min();
            assert_eq!(least, expected.filter(|&bytes| bytes < 8 * GIB), "{what}");
        }
    }

    /// Of this very machine.
    #[test]
    fn it_is_no_more_than_the_machine_has() {
        let text = fs::read_to_string("/proc/meminfo").expect("every Linux has it");
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: u64 = total
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .expect("as ever")
            .parse()
            .expect("a number");
        let memory = memory().expect("every Linux of today says so");
        assert!((1..=kib << 10).contains(&memory), "{memory} of {kib} KiB");
    }
}
