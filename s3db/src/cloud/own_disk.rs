//! Whether a folder lies on a disk of this machine, by what statfs(2) says of its file system.
//!
//! A network file system promises too little of what is counted on here: that a lock keeps out others, on other
//! machines too, that a rename is seen by all at once, that fsync means the disk, and that calls end. What cannot
//! be told is refused as well: a database that loses what it acknowledged is worse than none.
//!
//! FUSE is refused whatever is behind it. The kernel keeps locks of its files to itself unless the program
//! there asks for them, so two machines that mount the same thing, by sshfs or s3fs, never meet.

use std::{fs, io, path::Path};

use crate::error::StoreError;

/// File systems that a folder may not lie on, by their magic: statfs(2) and the headers of the kernel and of
/// stat(1) list these. All others are taken for local.
const NETWORK: [(u32, &str); 24] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (FUSE, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x6b41_4653, "kAFS"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x7461_636f, "OCFS2"),
    (0xaad7_aaea, "PanFS"),
    (0x7375_7245, "Coda"),
    (0x564c, "NCP"),
    (0x2003_0528, "OrangeFS"),
    (0x6163_6673, "ACFS"),
    (0x0131_11a8, "IBRIX"),
    (0xbeef_dead, "StorNext"),
    (0x786f_4256, "a shared folder of VirtualBox"),
    (0xbacb_acbc, "a shared folder of VMware"),
    (0x7c7c_6673, "a shared folder of Parallels"),
];
const FUSE: u32 = 0x6573_5546;
/// Bytes of the list of mounts that are looked through for a name.
const MOUNTS_BYTES_MAX: u64 = 1 << 20;

/// The network file system of this magic, if it is one.
pub(crate) fn network(magic: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(of, _)| *of == magic).map(|(_, name)| *name)
}

/// Asks the kernel for the magic of the file system that a file or folder lies on. 0, which no file system has,
/// where there is no such thing as a magic.
pub(crate) fn magic(path: &Path) -> io::Result<u32> {
    #[cfg(target_os = "linux")]
    return loop {
        match nix::sys::statfs::statfs(path) {
            Ok(about) => break Ok(about.filesystem_type().0 as u32),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => break Err(error.into()),
        }
    };
    #[cfg(not(target_os = "linux"))]
    return fs::metadata(path).map(|_| 0);
}

/// Refuses a folder that lies on a network file system, or of which that cannot be told. It need not be there:
/// then it is about the folder that it would be made in. `why` says what for it would be too little.
pub(crate) fn require(
    folder: &Path,
    magic: impl Fn(&Path) -> io::Result<u32>,
    why: &str,
) -> Result<(), StoreError> {
    let shown = folder.display();
    let untold = |error: io::Error| {
        let what = "it cannot be told what file system it lies on";
        StoreError::Invalid(format!("{shown}: {what}: {error}"))
    };
    let folder = std::path::absolute(folder).map_err(untold)?;
    let mut there = folder.as_path();
    while !there.try_exists().map_err(untold)?
        && let Some(parent) = there.parent()
    {
        there = parent;
    }
    let magic = magic(there).map_err(untold)?;
    let Some(kind) = network(magic) else { return Ok(()) };
    let of = if magic == FUSE { mounted(there) } else { None };
    let of = of.map(|of| format!(" ({of})")).unwrap_or_default();
    Err(StoreError::Invalid(format!("{shown} lies on {kind}{of}: {why}")))
}

/// What is mounted there, as `fuse.sshfs`, if the kernel tells.
#[cfg(target_os = "linux")]
fn mounted(path: &Path) -> Option<String> {
    use std::{io::Read, os::unix::fs::MetadataExt};
    let device = fs::metadata(path).ok()?.dev();
    let mut mounts = String::new();
    let file = fs::File::open("/proc/self/mountinfo").ok()?;
    file.take(MOUNTS_BYTES_MAX).read_to_string(&mut mounts).ok()?;
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    kind_of_mount(&mounts, &format!("{major}:{minor}")).map(str::to_owned)
}

#[cfg(not(target_os = "linux"))]
fn mounted(_: &Path) -> Option<String> {
    None
}

/// The kind of the mount with this device, from lines as in proc(5): `36 35 0:42 / /mnt rw shared:1 - fuse.sshfs
/// host:/ rw`.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn kind_of_mount<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    let of = |line: &&str| line.split(' ').nth(2) == Some(device);
    mounts.lines().find(of)?.split(" - ").nth(1)?.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_file_system_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (magic, name) in [
            (0x6969, "NFS"),
            (0x517b, "SMB"),
            (0xff53_4d42, "CIFS"),
            (0xfe53_4d42, "SMB2"),
            (0x6573_5546, "FUSE"),
            (0x0102_1997, "9P"),
            (0x00c3_6400, "Ceph"),
        ] {
            for path in [folder.path().to_owned(), folder.path().join("not/there/yet")] {
                let error = require(&path, |_| Ok(magic), "use another").unwrap_err().to_string();
                assert!(error.contains(&format!("lies on {name}")), "{error}");
                assert!(error.ends_with(": use another"), "{error}");
                assert!(error.contains(path.to_str().unwrap()), "{error}");
            }
        }
        // ext4, XFS, btrfs, tmpfs, overlayfs, and what nobody has heard of.
        for magic in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x1234_5678] {
            require(folder.path(), |_| Ok(magic), "use another").unwrap();
        }
    }

    /// It was taken for a local disk.
    #[test]
    fn what_cannot_be_told_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let failing = |_: &Path| Err(io::Error::other("the server does not answer"));
        let error = require(folder.path(), failing, "use another").unwrap_err().to_string();
        assert!(error.contains("cannot be told") && error.contains("does not answer"), "{error}");
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = require(&file.join("within"), magic, "use another").unwrap_err().to_string();
        assert!(error.contains("cannot be told"), "{error}");
    }

    /// It is the folder that is there that is asked about.
    #[test]
    fn the_kernel_is_asked_about_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let asked = |path: &Path| {
            assert_eq!(path, folder.path());
            magic(path)
        };
        require(&folder.path().join("a/b"), asked, "use another").unwrap();
        magic(&folder.path().join("a")).unwrap_err();
    }

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      40 22 0:42 / /mnt/a rw,nosuid shared:7 master:1 - fuse.sshfs host:/a rw\n\
                      41 22 0:43 / /mnt/b rw - fuse.s3fs s3fs rw\n\
                      short\n";
        let cases = [("0:42", Some("fuse.sshfs")), ("0:43", Some("fuse.s3fs")), ("0:4", None)];
        for (device, expected) in cases {
            assert_eq!(kind_of_mount(mounts, device), expected, "{device}");
        }
    }
}
