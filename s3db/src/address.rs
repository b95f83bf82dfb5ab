//! Where a database is.

use std::{
    collections::HashMap,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
};

use url::Url;

use crate::{
    cloud::{
        Cloud,
        embedded::{self, Memory},
    },
    error::StoreError,
};

/// The address of a database.
///
/// ```text
///   file:///var/lib/app/db    a directory of this machine
///   mem:                      memory, gone with the last handle; mem:NAME is shared in the process
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A directory.
    Directory(PathBuf),
    /// Memory of this process, with a name if others in the process are to find it.
    Memory(Option<String>),
}

impl FromStr for Address {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Address, StoreError> {
        let invalid = |why: &str| {
            Err(StoreError::Invalid(format!("{text:?} is no address of a database: {why}")))
        };
        if let Some(name) = text.strip_prefix("mem:") {
            let name = name.trim_start_matches('/');
            return Ok(Address::Memory((!name.is_empty()).then(|| name.to_owned())));
        }
        let forms = "use file:///PATH or mem:";
        let Ok(url) = Url::parse(text) else { return invalid(forms) };
        match url.scheme() {
            "file" => match url.to_file_path() {
                Ok(path) if url.query().is_none() => Ok(Address::Directory(path)),
                Ok(_) => invalid("a file address takes no options"),
                Err(()) => invalid("write file:// and an absolute path, as in file:///tmp/db"),
            },
            _ => invalid(forms),
        }
    }
}

impl Address {
    /// The services at this address.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when there can be no database.
    pub fn cloud(&self) -> Result<Cloud, StoreError> {
        match self {
            Address::Directory(path) => embedded::directory(path),
            Address::Memory(name) => Ok(embedded::memory(match name {
                Some(name) => shared(name),
                None => Arc::default(),
            })),
        }
    }
}

/// The memory of this name, as long as someone uses it.
fn shared(name: &str) -> Arc<Memory> {
    static SHARED: OnceLock<Mutex<HashMap<String, Weak<Memory>>>> = OnceLock::new();
    let mut shared =
        SHARED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    shared.retain(|_, memory| memory.strong_count() > 0);
    if let Some(memory) = shared.get(name).and_then(Weak::upgrade) {
        return memory;
    }
    let memory = Arc::new(Memory::new());
    shared.insert(name.to_owned(), Arc::downgrade(&memory));
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let cases = [
            ("file:///tmp/db", Some(Address::Directory("/tmp/db".into()))),
            ("file:///tmp/a%20b", Some(Address::Directory("/tmp/a b".into()))),
            ("file://host/db", None),
            ("file:///tmp/db?sync=no", None),
            ("mem:", Some(Address::Memory(None))),
            ("mem:test", Some(Address::Memory(Some("test".into())))),
            ("/tmp/db", None),
            ("ftp://host/db", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
