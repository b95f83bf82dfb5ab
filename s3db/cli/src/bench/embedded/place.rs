//! Where it is measured: a folder that goes afterwards, memory, and the databases in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use s3db::{Backend, Collection, Db, Key, Level, Options, Payload};

use super::super::told;
use crate::output::Failure;

/// Bytes of each record's payload.
pub(super) const PAYLOAD_BYTES: usize = 100;
/// The collection that everything happens in.
pub(super) const COLLECTION: &str = "things";
/// Records of a transaction that fills a database.
const FILL: u32 = 500;

/// What a database lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Directory,
    Memory,
}

impl Medium {
    pub(super) const ALL: [Medium; 2] = [Medium::Directory, Medium::Memory];

    pub(super) fn name(self) -> &'static str {
        match self {
            Medium::Directory => "directory",
            Medium::Memory => "memory",
        }
    }

    /// What survives what, once a commit returned.
    pub(super) fn durability(self) -> &'static str {
        match self {
            Medium::Directory => "fsync",
            Medium::Memory => "none",
        }
    }
}

/// A folder of this run's own, removed with all that is in it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(within: &Path) -> Result<Folder, Failure> {
        let path = within.join(format!("s3db-bench-{}", std::process::id()));
        fs::create_dir_all(within).map_err(|error| told(within, &error))?;
        fs::create_dir(&path).map_err(|error| told(&path, &error))?;
        // Absolute, as an address has it.
        let path = path.canonicalize().map_err(|error| told(&path, &error))?;
        Ok(Folder(path))
    }

    /// The kind of file system that it lies on.
    pub(super) fn file_system(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        file_system_of(&self.0, &mounts).unwrap_or_else(|| "an unknown file system".to_owned())
    }

    /// The address of a database in it, or in memory.
    pub(super) fn url(&self, medium: Medium, name: &str) -> String {
        match medium {
            // The option would be read where a path has a question mark.
            Medium::Directory => {
                let path = self.0.to_string_lossy();
                let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
                format!("file://{path}/{name}")
            }
            Medium::Memory => format!("mem:{name}"),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is left for people to see.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The file system of the longest mount point above `path`, of lines as `proc(5)` describes them.
fn file_system_of(path: &Path, mounts: &str) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        // A blank in it is \040.
        let at = before.split(' ').nth(4)?.replace("\\040", " ");
        let kind = after.split(' ').next()?;
        path.starts_with(&at).then(|| (at.len(), kind.to_owned()))
    });
    // Of two that lie on one another the later one is seen.
    mounts.max_by_key(|(len, _)| *len).map(|(_, kind)| kind)
}

/// A database with records in it, all on their pages.
pub(super) struct Filled {
    pub(super) url: String,
    pub(super) medium: Medium,
    pub(super) backend: Backend,
    pub(super) records: u32,
    /// Keeps what lies in memory.
    _holder: Db,
}

impl Filled {
    pub(super) async fn new(
        folder: &Folder,
        medium: Medium,
        backend: Backend,
        records: u32,
    ) -> Result<Filled, Failure> {
        let url = folder.url(medium, &format!("filled-{}", backend.name()));
        let options = Options { backend, has_worker: false, ..Options::default() };
        let db = match medium {
            Medium::Directory => Db::create(&url, &options).await?,
            Medium::Memory => Db::open_with(&url, &options).await?,
        };
        let of = db.create_collection(COLLECTION).await?;
        let mut number = 0;
        while number < records {
            let mut txn = db.begin_at(Level::Basic);
            for _ in 0..FILL.min(records - number) {
                txn.put(&of, &key(number)?, payload(number)?)?;
                number += 1;
            }
            txn.commit().await?;
            db.checkpoint().await?;
        }
        Ok(Filled { url, medium, backend, records, _holder: db })
    }

    /// A client of its own, with a pool of its own.
    pub(super) async fn open(&self, options: &Options) -> Result<(Db, Collection), Failure> {
        let db = Db::open_with(&self.url, options).await?;
        let of = db.collection(COLLECTION).await?;
        Ok((db, of))
    }
}

pub(super) fn key(number: u32) -> Result<Key, Failure> {
    Ok(Key::new(format!("{number:08}"))?)
}

pub(super) fn payload(number: u32) -> Result<Payload, Failure> {
    let mut bytes = vec![b'x'; PAYLOAD_BYTES];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Ok(Payload::new(bytes)?)
}

/// The number that [`payload`] was made of.
pub(super) fn number_of(payload: &Payload) -> u32 {
    payload.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Numbers that look like chance: splitmix64 (Steele, Lea and Flood, 2014).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The high bits of a product: nearly even, and without a division.
        ((u128::from(mixed ^ mixed >> 31) * u128::from(bound)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_says_what_a_folder_lies_on() {
        let mounts = "22 27 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      25 24 0:23 / /tmp rw - tmpfs tmpfs rw\n\
                      26 24 0:24 / /tmp/a\\040b rw shared:1 - xfs /dev/vdb rw\n\
                      27 24 0:25 / /tmp rw - btrfs /dev/vdc rw\n\
                      nonsense\n";
        for (path, expected) in
            [("/var/x", "ext4"), ("/tmpx", "ext4"), ("/tmp/x", "btrfs"), ("/tmp/a b/c", "xfs")]
        {
            assert_eq!(
                file_system_of(Path::new(path), mounts).as_deref(),
                Some(expected),
                "{path}"
            );
        }
        assert_eq!(file_system_of(Path::new("/"), ""), None);
    }

    #[test]
    fn a_folder_goes_with_what_is_in_it() {
        let within = std::env::temp_dir().join(format!("s3db bench?{}", std::process::id()));
        let folder = Folder::new(&within).unwrap();
        let url = folder.url(Medium::Directory, "db");
        assert!(url.ends_with("/db") && url.contains("%3f") && !url.contains('?'), "{url}");
        fs::write(folder.0.join("file"), "x").unwrap();
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists() && within.exists());
        fs::remove_dir(within).unwrap();
    }
}
