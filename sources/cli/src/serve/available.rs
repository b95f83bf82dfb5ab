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

/// Clients that map objects get this part of the memory that is available, unless told otherwise: what
/// is shared cannot be reclaimed without swap, and others have use for the rest.
const SHARE: u64 = 4;
/// And no more than this: in pieces of 1 MiB as many as there may be descriptors for.
pub(super) const BYTES_MAX: u64 = 16 << 30;

/// What memory for clients is where nobody says how much. 0 where the system does not say what is
/// available.
pub(super) fn share() -> u64 {
    share_of(Path::new("/"))
}

/// The same, of a system whose files are below `root`.
fn share_of(root: &Path) -> u64 {
    let available = available(root).unwrap_or(0);
    let least = limits(root).into_iter().fold(available, u64::min);
    (least / SHARE).min(BYTES_MAX)
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
        limits.extend(files.filter_map(|file| limit(&file)));
    }
    limits
}

/// `max` is no number, and none.
fn limit(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// What it is, the system's files, and the share.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u64);

    #[test]
    fn it_is_a_quarter_of_the_least_limit() {
        let meminfo = |gib: u64| format!("MemTotal: 1 kB\nMemAvailable:   {} kB\n", gib << 20);
        let (large, small) = (meminfo(200), meminfo(8));
        let cases: [Case; 9] = [
            ("nothing is known", &[], 0),
            ("the machine's", &[("proc/meminfo", &small)], 2 * GIB),
            ("a large machine's", &[("proc/meminfo", &large)], BYTES_MAX),
            ("no number", &[("proc/meminfo", "MemAvailable: much kB\n")], 0),
            ("no unit", &[("proc/meminfo", "MemAvailable: 18446744073709551615 kB\n")], 0),
            (
                "its group's",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/system.slice/extmem.service\n"),
                    ("sys/fs/cgroup/system.slice/extmem.service/memory.max", "1073741824\n"),
                    ("sys/fs/cgroup/system.slice/extmem.service/memory.high", "max\n"),
                    ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
                ],
                GIB / 4,
            ),
            (
                "that of a group above",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/a/b/c\n"),
                    ("sys/fs/cgroup/a/memory.high", "2147483648\n"),
                    ("sys/fs/cgroup/a/b/c/memory.max", "4294967296\n"),
                ],
                GIB / 2,
            ),
            (
                "a container's, which sees its own group at the top",
                &[
                    ("proc/meminfo", &small),
                    ("proc/self/cgroup", "0::/../../other\n"),
                    ("sys/fs/cgroup/memory.max", "1073741824\n"),
                ],
                GIB / 4,
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
                GIB / 2,
            ),
        ];
        for (what, files, expected) in cases {
            let root = tempfile::tempdir().expect("a folder");
            for (name, text) in files {
                let path = root.path().join(name);
                fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
                fs::write(path, text).expect("write");
            }
            assert_eq!(share_of(root.path()), expected, "{what}");
        }
    }

    /// Of this very machine.
    #[test]
    fn it_is_no_more_than_the_machine_has() {
        let available = available(Path::new("/")).expect("every Linux of today says so");
        assert!((1..=available.min(BYTES_MAX)).contains(&share()), "{} of {available}", share());
    }
}
