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
///   s3://bucket/prefix        a bucket, or a part of one; with SQS, where the log backend needs it
/// ```
///
/// Behind an `s3` address options can stand: `?region=`, `profile=`, `endpoint=` (of S3), `sqs=` (the
/// endpoint of SQS), `path-style`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A directory.
    Directory(PathBuf),
    /// Memory of this process, with a name if others in the process are to find it.
    Memory(Option<String>),
    /// A bucket, and queues beside it.
    #[cfg(feature = "aws")]
    Aws(crate::cloud::aws::Place),
}

impl FromStr for Address {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Address, StoreError> {
        let invalid = |why: &str| {
            let shown = Address::shown(text);
            Err(StoreError::Invalid(format!("{shown:?} is no address of a database: {why}")))
        };
        if let Some(name) = text.strip_prefix("mem:") {
            let name = name.trim_start_matches('/');
            return Ok(Address::Memory((!name.is_empty()).then(|| name.to_owned())));
        }
        let forms = "use file:///PATH, s3://BUCKET/PREFIX or mem:";
        let Ok(url) = Url::parse(text) else { return invalid(forms) };
        match url.scheme() {
            "file" => match url.to_file_path() {
                Ok(path) if url.query().is_none() => Ok(Address::Directory(path)),
                Ok(_) => invalid("a file address takes no options"),
                Err(()) => invalid("write file:// and an absolute path, as in file:///tmp/db"),
            },
            #[cfg(feature = "aws")]
            "s3" => match place(&url) {
                Ok(place) => Ok(Address::Aws(place)),
                Err(why) => invalid(&why),
            },
            _ => invalid(forms),
        }
    }
}

#[cfg(feature = "aws")]
fn place(url: &Url) -> Result<crate::cloud::aws::Place, String> {
    let mut place = crate::cloud::aws::Place::default();
    match url.host_str() {
        Some(bucket) if url.username().is_empty() && url.port().is_none() => {
            bucket.clone_into(&mut place.bucket);
        }
        _ => return Err("write s3://BUCKET/PREFIX".into()),
    }
    let prefix = url.path().trim_matches('/');
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    if prefix.len() > 500 || !prefix.bytes().all(is_fine) {
        return Err("a prefix has up to 500 ASCII letters, digits and / - _ .".into());
    }
    if !prefix.is_empty() {
        place.prefix = format!("{prefix}/");
    }
    for (name, value) in url.query_pairs() {
        let value = Some(value.into_owned()).filter(|value| !value.is_empty());
        match &*name {
            "region" => place.aws.region = value,
            "profile" => place.aws.profile = value,
            "endpoint" => place.aws.endpoint = value,
            "sqs" => place.sqs_endpoint = value,
            "path-style" => place.aws.path_style = Some(true),
            // What does not look like a name is not shown: it may be a part of a secret.
            name if name.len() <= 20 && name.bytes().all(|it| it.is_ascii_lowercase()) => {
                return Err(format!("there is no option {name}"));
            }
            _ => return Err("there is no such option".to_owned()),
        }
    }
    Ok(place)
}

impl Address {
    /// An address as errors show it: without what may be a secret, before an `@` or after a `?`. Any text
    /// has such a form, also one that is no address.
    pub fn shown(text: &str) -> String {
        let (text, options) = match text.split_once(['?', '#']) {
            Some((text, options)) => (text, Some(options)),
            None => (text, None),
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), text),
        };
        let rest = match rest.rsplit_once('@') {
            // A secret may have a question mark in it.
            _ if options.is_some_and(|options| options.contains('@')) => "...".to_owned(),
            Some((_, rest)) => format!("...@{rest}"),
            None => rest.to_owned(),
        };
        format!("{scheme}{rest}{}", options.map_or("", |_| "?..."))
    }

    /// The services at this address.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when there can be no database.
    pub fn cloud(&self) -> Result<Cloud, StoreError> {
        match self {
            Address::Directory(path) => embedded::directory(path),
            #[cfg(feature = "aws")]
            Address::Aws(place) => crate::cloud::aws::connect(place),
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

    #[cfg(feature = "aws")]
    #[test]
    fn buckets_have_prefixes_and_options() {
        let text =
            "s3://bucket/a/b/?region=eu-west-1&endpoint=http://127.0.0.1:1&sqs=http://127.0.0.1:2";
        let Address::Aws(place) = text.parse().unwrap() else { panic!("not AWS") };
        assert_eq!((&*place.bucket, &*place.prefix), ("bucket", "a/b/"));
        assert_eq!(place.aws.region.as_deref(), Some("eu-west-1"));
        assert_eq!(place.aws.endpoint.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(place.sqs_endpoint.as_deref(), Some("http://127.0.0.1:2"));
    }

    #[test]
    fn errors_keep_secrets() {
        for text in [
            "s3://KEYID:SECRET@bucket/prefix",
            "s3://bucket/prefix?secret=SECRET",
            "s3://bucket:1/p?endpoint=http://a:SECRET@h",
            "SECRET@bucket",
            "ftp://user:SE/CRET@SECRET@host/x",
            "s3://bucket/a b#SECRET",
            "s3://KEYID:SECRET?SECRET@bucket",
            "s3://bucket?SECRET",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("SECRET") && !error.contains("CRET"), "{error}");
        }
        let endpoint = "s3://bucket/db?endpoint=http://u:SECRET@host&sqs=http://SECRET@host";
        assert_eq!(Address::shown(endpoint), "s3://...?...");
        assert_eq!(Address::shown("s3://bucket/db?region=here"), "s3://bucket/db?...");
        assert_eq!(Address::shown("file:///tmp/db"), "file:///tmp/db");
        let error = "s3:///db".parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("s3:///db"), "{error}");
    }

    proptest::proptest! {
        /// Any text: an address or an error, and no secret in that.
        #[test]
        fn noise_keeps_secrets(
            start in proptest::sample::select(vec!["", "s3://", "s3:", "file://", "mem", "ftp://"]),
            mut parts in proptest::collection::vec(
                proptest::sample::select("a / @ ? # & = : % é \0".split(' ').collect::<Vec<_>>()),
                0..12,
            ),
            at in proptest::prelude::any::<proptest::sample::Index>(),
        ) {
            let at = at.index(parts.len() + 1);
            parts.insert(at, "SECRET");
            let text = format!("{start}{}", parts.concat());
            // Behind a scheme, and behind or before what says that there is more than a name.
            let (before, after) = text.split_once("SECRET").unwrap();
            let is_behind = before.contains("://") || !after.contains("://");
            let is_hidden = is_behind && (before.contains(['?', '#']) || after.contains('@'));
            if let Err(error) = text.parse::<Address>() {
                let error = error.to_string();
                proptest::prop_assert!(!is_hidden || !error.contains("SECRET"), "{}", error);
            }
        }
    }

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
            ("s3://bucket/db?speed=high", None),
            ("s3:///db", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
