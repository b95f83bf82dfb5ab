//! Which version of an object a client may see that comes back without a hello.
//!
//! A client of V000 names the version that it reads only by having said hello at some time. When its
//! connection is lost it goes on with `READ` on a new one. So it is remembered, across restarts,
//! which versions of each address clients have begun with and not yet left:
//!
//! ```text
//!   V000 s3://b/k   (now at v1)      {v1}           READ without V000 reads v1
//!   V000 s3://b/k   (now at v2)      {v1, v2}       ... fails: it may be either client
//!   EXIT of the first                {v2}           ... reads v2
//! ```
//!
//! Never newer bytes to an old handle: in doubt the answer is `FAIL`. A client that vanished without
//! `EXIT` may come back at any time, so its version is never forgotten while there is a newer one.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use pager::{ObjectStat, Strength, Version};
use serde_json::{Value, json};

/// Addresses that are remembered. Of others, clients that come back must say hello.
const ADDRESSES_MAX: usize = 65_536;
/// Versions of one address. Beyond that, only hellos are served.
const VERSIONS_MAX: usize = 16;
/// No file of ours is longer.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A version of an object, and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) version: Version,
    pub(super) len: u64,
}

impl Pinned {
    pub(super) fn of(stat: &ObjectStat) -> Pinned {
        Pinned { version: stat.version.clone(), len: stat.len }
    }
}

#[derive(Debug)]
struct Begun {
    pinned: Pinned,
    /// Clients that began with it and did not say goodbye.
    clients: u64,
}

/// What a client gets that does not say hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Only this one can be meant.
    One(Pinned),
    /// Nobody ever asked for this address.
    None,
    /// It cannot be told.
    Unclear,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Handles {
    folder: PathBuf,
    /// By address; the latest version last.
    begun: Mutex<HashMap<String, Vec<Begun>>>,
}

impl Handles {
    /// Reads what earlier runs wrote.
    pub(super) fn open(folder: &Path) -> io::Result<Handles> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut begun = HashMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                // One that cannot be read is gone: its clients must say hello.
                if let Some((url, versions)) = read(&path) {
                    begun.insert(url, versions);
                }
            } else {
                // Left half written by one who was killed.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(Handles { folder: folder.to_owned(), begun: Mutex::new(begun) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Vec<Begun>>) -> T) -> T {
        work(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A client begins to read `url` at this version. Must have returned before the client is told.
    pub(super) fn begin(&self, url: &str, pinned: &Pinned) -> io::Result<()> {
        self.with(|begun| {
            if begun.len() >= ADDRESSES_MAX && !begun.contains_key(url) {
                return Ok(());
            }
            let versions = begun.entry(url.to_owned()).or_default();
            if let Some(last) = versions.last_mut().filter(|last| last.pinned == *pinned) {
                last.clients += 1;
                return Ok(());
            }
            let again = versions.iter().position(|one| one.pinned == *pinned);
            let before = again.map_or(0, |at| versions.remove(at).clients);
            versions.retain(|one| one.clients > 0);
            if versions.len() >= VERSIONS_MAX {
                // The oldest two can no longer be told from each other, nor need they be: with this
                // many, none is served without a hello.
                versions.remove(0);
            }
            versions.push(Begun { pinned: pinned.clone(), clients: before + 1 });
            self.write(url, versions)
        })
    }

    /// A client that began with this version says goodbye.
    pub(super) fn end(&self, url: &str, pinned: &Pinned) {
        self.with(|begun| {
            let Some(versions) = begun.get_mut(url) else { return };
            let latest = versions.len() - 1;
            let Some(at) = versions.iter().position(|one| one.pinned == *pinned) else { return };
            versions[at].clients = versions[at].clients.saturating_sub(1);
            if versions[at].clients == 0 && at != latest {
                versions.remove(at);
                // Not written: the next run knows of one version too many, and is careful.
                let _ = self.write(url, versions);
            }
        });
    }

    /// The version that a client means who does not say hello.
    pub(super) fn known(&self, url: &str) -> Known {
        self.with(|begun| match begun.get(url).map(Vec::as_slice) {
            None if begun.len() >= ADDRESSES_MAX => Known::Unclear,
            None | Some([]) => Known::None,
            Some([one]) => Known::One(one.pinned.clone()),
            Some(versions) => {
                let mut used = versions.iter().filter(|one| one.clients > 0);
                match (used.next(), used.next()) {
                    (Some(one), None) => Known::One(one.pinned.clone()),
                    _ => Known::Unclear,
                }
            }
        })
    }

    fn write(&self, url: &str, versions: &[Begun]) -> io::Result<()> {
        let versions: Vec<Value> = versions
            .iter()
            .map(|one| {
                let version = &one.pinned.version;
                json!({
                    "version": version.token(),
                    "strong": version.strength() == Strength::Strong,
                    "bytes": one.pinned.len,
                })
            })
            .collect();
        let text = json!({ "url": url, "versions": versions }).to_string();
        let name = super::digest(url.as_bytes());
        let path = self.folder.join(format!("{name}.json"));
        let temporary = self.folder.join(format!("{name}.tmp"));
        let mut how = OpenOptions::new();
        let mut file = how.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &path)
    }
}

fn read(path: &Path) -> Option<(String, Vec<Begun>)> {
    if fs::metadata(path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let url = value["url"].as_str()?.to_owned();
    let mut versions = Vec::new();
    for one in value["versions"].as_array()?.iter().take(VERSIONS_MAX) {
        let token = one["version"].as_str()?;
        let version = match one["strong"].as_bool()? {
            true => Version::strong(token),
            false => Version::weak(token),
        };
        // Whoever began with it may still be there.
        versions
            .push(Begun { pinned: Pinned { version, len: one["bytes"].as_u64()? }, clients: 1 });
    }
    Some((url, versions))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "s3://b/k";

    fn pinned(token: &str) -> Pinned {
        Pinned { version: Version::strong(token), len: 10 }
    }

    #[test]
    fn an_old_client_sees_its_own_version_or_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let handles = Handles::open(folder.path()).expect("open");
        let (v1, v2) = (pinned("v1"), pinned("v2"));
        assert_eq!(handles.known(URL), Known::None);
        handles.begin(URL, &v1).expect("begin");
        handles.begin(URL, &v1).expect("begin");
        assert_eq!(handles.known(URL), Known::One(v1.clone()));
        handles.begin(URL, &v2).expect("begin");
        assert_eq!(handles.known(URL), Known::Unclear);
        handles.end(URL, &v1);
        assert_eq!(handles.known(URL), Known::Unclear, "the other one may come back");
        handles.end(URL, &v1);
        assert_eq!(handles.known(URL), Known::One(v2.clone()));
        handles.end(URL, &v2);
        assert_eq!(handles.known(URL), Known::One(v2.clone()), "nobody is left, nothing is lost");
        handles.begin(URL, &v1).expect("begin");
        assert_eq!(handles.known(URL), Known::One(v1), "back to the old version");
    }

    #[test]
    fn a_restart_remembers_and_does_not_guess() {
        let folder = tempfile::tempdir().expect("a folder");
        let (v1, v2) = (pinned("v1"), pinned("v2"));
        let handles = Handles::open(folder.path()).expect("open");
        handles.begin(URL, &v1).expect("begin");
        let again = Handles::open(folder.path()).expect("open");
        assert_eq!(again.known(URL), Known::One(v1.clone()));
        again.begin(URL, &v2).expect("begin");
        let again = Handles::open(folder.path()).expect("open");
        assert_eq!(again.known(URL), Known::Unclear);
        for (name, text) in [("x.json", "{"), ("y.json", "{\"url\": 5}"), ("z.tmp", "half")] {
            fs::write(folder.path().join(name), text).expect("write");
        }
        let again = Handles::open(folder.path()).expect("what is damaged is left out");
        assert_eq!(again.known(URL), Known::Unclear);
        assert!(!folder.path().join("z.tmp").exists());
    }

    #[test]
    fn many_versions_stay_unclear() {
        let folder = tempfile::tempdir().expect("a folder");
        let handles = Handles::open(folder.path()).expect("open");
        for n in 0..100 {
            handles.begin(URL, &pinned(&format!("v{n}"))).expect("begin");
        }
        assert_eq!(handles.known(URL), Known::Unclear);
        assert_eq!(handles.with(|begun| begun[URL].len()), VERSIONS_MAX);
    }
}
