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
//! `EXIT` may come back at any time, so its version is never forgotten while there is a newer one. A
//! connection that goes on takes the place of one that was lost; where none was, its `EXIT` takes
//! nobody along.
//!
//! Addresses may be signed, so they are written nowhere: files are named by their hashes.

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
/// No object is longer.
const LEN_MAX: u64 = 1 << 62;
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

    /// Whether there can be an object of this length: sums of offsets must not overflow.
    pub(super) fn is_sound(&self) -> bool {
        self.len <= LEN_MAX
    }
}

#[derive(Clone, Debug)]
struct Begun {
    pinned: Pinned,
    /// Clients that began with it and did not say goodbye.
    clients: u64,
    /// Of these, the ones whose connections were lost.
    lost: u64,
}

/// What is known of an address.
#[derive(Clone, Debug, Default)]
struct Address {
    /// The latest version last.
    versions: Vec<Begun>,
    /// There are clients of versions that are not known any more.
    forgotten: bool,
}

/// What a client gets that does not say hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Only this one can be meant. With `counted` it takes the place of a client that was lost.
    One { pinned: Pinned, counted: bool },
    /// Nobody ever asked for this address.
    None,
    /// It cannot be told.
    Unclear,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Handles {
    folder: PathBuf,
    /// By the hash of the address.
    begun: Mutex<HashMap<String, Address>>,
}

impl Handles {
    /// Reads what earlier runs wrote.
    pub(super) fn open(folder: &Path) -> io::Result<Handles> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut begun = HashMap::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == "json") {
                // Of one that cannot be read it is still known that there is something to know.
                let lost = Address { versions: Vec::new(), forgotten: true };
                begun.insert(name.to_owned(), read(&path).unwrap_or(lost));
            } else {
                // Left half written by one who was killed.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(Handles { folder: folder.to_owned(), begun: Mutex::new(begun) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Address>) -> T) -> T {
        work(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A client begins to read `url` at this version. Must have returned before the client is told.
    pub(super) fn begin(&self, url: &str, pinned: &Pinned) -> io::Result<()> {
        let key = super::digest(url.as_bytes());
        self.with(|begun| {
            if begun.len() >= ADDRESSES_MAX && !begun.contains_key(&key) {
                return Ok(());
            }
            let address = begun.entry(key.clone()).or_default();
            let Address { versions, forgotten } = address;
            let again = versions.iter().position(|one| one.pinned == *pinned);
            let mut this = match again {
                Some(at) => versions.remove(at),
                None => Begun { pinned: pinned.clone(), clients: 0, lost: 0 },
            };
            this.clients += 1;
            versions.retain(|one| one.clients > 0);
            if versions.len() >= VERSIONS_MAX {
                // Its clients may come back, and would be given another one.
                versions.remove(0);
                *forgotten = true;
            }
            versions.push(this);
            self.write(&key, address)
        })
    }

    /// A client that began with this version says goodbye.
    pub(super) fn end(&self, url: &str, pinned: &Pinned) {
        self.change(url, pinned, |one| one.clients = one.clients.saturating_sub(1));
    }

    /// The connection of a client that began with this version is gone, without a goodbye.
    pub(super) fn lost(&self, url: &str, pinned: &Pinned) {
        self.change(url, pinned, |one| one.lost = (one.lost + 1).min(one.clients));
    }

    fn change(&self, url: &str, pinned: &Pinned, work: impl FnOnce(&mut Begun)) {
        let key = super::digest(url.as_bytes());
        self.with(|begun| {
            let Some(address) = begun.get_mut(&key) else { return };
            let versions = &mut address.versions;
            let Some(at) = versions.iter().position(|one| one.pinned == *pinned) else { return };
            let before = versions[at].clients;
            work(&mut versions[at]);
            if versions[at].clients == before {
                return;
            }
            if versions[at].clients == 0 && at + 1 < versions.len() {
                versions.remove(at);
            }
            // Not written: the next run knows of one client too many, and is careful.
            let _ = self.write(&key, address);
        });
    }

    /// The version that a client means who does not say hello.
    pub(super) fn resume(&self, url: &str) -> Known {
        self.with(|begun| {
            let full = begun.len() >= ADDRESSES_MAX;
            let Some(address) = begun.get_mut(&super::digest(url.as_bytes())) else {
                return if full { Known::Unclear } else { Known::None };
            };
            if address.forgotten {
                return Known::Unclear;
            }
            let versions = &mut address.versions;
            let (is_none, is_only) = (versions.is_empty(), versions.len() == 1);
            let mut used = versions.iter_mut().filter(|one| is_only || one.clients > 0);
            match (used.next(), used.next()) {
                (Some(one), None) => {
                    let counted = one.lost > 0;
                    one.lost -= u64::from(counted);
                    Known::One { pinned: one.pinned.clone(), counted }
                }
                (None, _) if is_none => Known::None,
                _ => Known::Unclear,
            }
        })
    }

    fn write(&self, key: &str, address: &Address) -> io::Result<()> {
        let as_json = |one: &Begun| {
            let version = &one.pinned.version;
            json!({
                "version": version.token(),
                "strong": version.strength() == Strength::Strong,
                "bytes": one.pinned.len,
                "clients": one.clients,
            })
        };
        let versions: Vec<Value> = address.versions.iter().map(as_json).collect();
        let text = json!({ "versions": versions, "forgotten": address.forgotten }).to_string();
        let path = self.folder.join(format!("{key}.json"));
        let temporary = self.folder.join(format!("{key}.tmp"));
        let mut how = OpenOptions::new();
        let mut file = how.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &path)
    }
}

fn read(path: &Path) -> Option<Address> {
    if fs::metadata(path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let mut versions = Vec::new();
    for one in value["versions"].as_array().filter(|all| all.len() <= VERSIONS_MAX)? {
        let token = one["version"].as_str()?;
        let version = match one["strong"].as_bool()? {
            true => Version::strong(token),
            false => Version::weak(token),
        };
        let pinned = Pinned { version, len: one["bytes"].as_u64()? };
        if !pinned.is_sound() {
            return None;
        }
        // Whoever began with it may still be there, and has no connection any more.
        let clients = one["clients"].as_u64().unwrap_or(1);
        versions.push(Begun { pinned, clients, lost: clients });
    }
    Some(Address { versions, forgotten: value["forgotten"].as_bool().unwrap_or(false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "s3://b/k";

    fn pinned(token: &str) -> Pinned {
        Pinned { version: Version::strong(token), len: 10 }
    }

    fn is(known: Known, pinned: &Pinned) -> bool {
        matches!(known, Known::One { pinned: found, .. } if found == *pinned)
    }

    #[test]
    fn an_old_client_sees_its_own_version_or_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let handles = Handles::open(folder.path()).expect("open");
        let (v1, v2) = (pinned("v1"), pinned("v2"));
        assert_eq!(handles.resume(URL), Known::None);
        handles.begin(URL, &v1).expect("begin");
        handles.begin(URL, &v1).expect("begin");
        assert!(is(handles.resume(URL), &v1));
        handles.begin(URL, &v2).expect("begin");
        assert_eq!(handles.resume(URL), Known::Unclear);
        handles.end(URL, &v1);
        assert_eq!(handles.resume(URL), Known::Unclear, "the other one may come back");
        handles.end(URL, &v1);
        assert!(is(handles.resume(URL), &v2));
        handles.end(URL, &v2);
        assert!(is(handles.resume(URL), &v2), "nobody is left, nothing is lost");
        handles.begin(URL, &v1).expect("begin");
        assert!(is(handles.resume(URL), &v1), "back to the old version");
    }

    #[test]
    fn who_comes_back_takes_the_place_of_one_that_was_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let handles = Handles::open(folder.path()).expect("open");
        let v1 = pinned("v1");
        let counted = |handles: &Handles| match handles.resume(URL) {
            Known::One { counted, .. } => counted,
            other => panic!("{other:?}"),
        };
        handles.begin(URL, &v1).expect("begin");
        handles.begin(URL, &v1).expect("begin");
        assert!(!counted(&handles), "both are there");
        handles.lost(URL, &v1);
        assert!(counted(&handles) && !counted(&handles));
        handles.lost(URL, &v1);
        assert!(counted(&handles));
        handles.end(URL, &v1);
        let again = Handles::open(folder.path()).expect("open");
        assert!(counted(&again) && !counted(&again), "one had left, one has lost its connection");
    }

    #[test]
    fn a_restart_remembers_and_does_not_guess() {
        let folder = tempfile::tempdir().expect("a folder");
        let (v1, v2) = (pinned("v1"), pinned("v2"));
        let handles = Handles::open(folder.path()).expect("open");
        handles.begin(URL, &v1).expect("begin");
        let again = Handles::open(folder.path()).expect("open");
        assert!(is(again.resume(URL), &v1));
        again.begin(URL, &v2).expect("begin");
        let again = Handles::open(folder.path()).expect("open");
        assert_eq!(again.resume(URL), Known::Unclear);
        for (name, text) in [("x.json", "{"), ("y.json", "{\"versions\": 5}"), ("z.tmp", "half")] {
            fs::write(folder.path().join(name), text).expect("write");
        }
        let again = Handles::open(folder.path()).expect("what is damaged says so much");
        assert_eq!(again.resume(URL), Known::Unclear);
        assert!(!folder.path().join("z.tmp").exists());
        let mine = folder.path().join(format!("{}.json", super::super::digest(URL.as_bytes())));
        fs::write(mine, "{").expect("write");
        let again = Handles::open(folder.path()).expect("open");
        assert_eq!(again.resume(URL), Known::Unclear, "somebody began, nobody knows with what");
    }

    #[test]
    fn many_versions_stay_unclear() {
        let folder = tempfile::tempdir().expect("a folder");
        let handles = Handles::open(folder.path()).expect("open");
        for n in 0..100 {
            handles.begin(URL, &pinned(&format!("v{n}"))).expect("begin");
        }
        assert_eq!(handles.resume(URL), Known::Unclear);
        let held = |handles: &Handles| {
            handles.with(|begun| begun.values().map(|one| one.versions.len()).max())
        };
        assert_eq!(held(&handles), Some(VERSIONS_MAX));
        for n in 0..99 {
            handles.end(URL, &pinned(&format!("v{n}")));
        }
        assert_eq!(held(&handles), Some(1));
        assert_eq!(handles.resume(URL), Known::Unclear, "83 that were forgotten may come back");
        let again = Handles::open(folder.path()).expect("open");
        assert_eq!(again.resume(URL), Known::Unclear);
    }
}
