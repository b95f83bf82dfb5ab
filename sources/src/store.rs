//! Any `object_store::ObjectStore` as a source: Google Cloud Storage, Azure, memory, one's own.
//!
//! **Version.** The ETag, or the store's own version, is pinned on every read; without either the
//! version is weak: the date of the last change.
//!
//! **Attempts.** One. The stores that [`google`] and [`azure`] make have their own retries off; turn
//! them off in a store of yours, too, so that [`Retry`](crate::Retry) alone decides.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, path::Path,
};
use pager::{BlockSource, ByteStream, Cause, ObjectStat, SourceError, Strength, Version};

use crate::{
    body::{Body, WAIT_MAX, check_range, check_shape},
    encoding::chain_text,
};

/// One object of a store.
pub struct Store {
    name: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    first_byte: Duration,
    stall: Duration,
    /// What `stat` found last. Stores cut a range that goes beyond the end, instead of refusing it.
    known: Mutex<Option<(Version, u64)>>,
}

impl Store {
    /// A source for the object `key` of `store`, named `name` in metrics and errors. Nothing is
    /// sent before the first `stat` or `read`.
    ///
    /// # Errors
    /// When the store cannot have such a key.
    pub fn new(
        name: impl Into<String>,
        store: Arc<dyn ObjectStore>,
        key: &str,
    ) -> Result<Store, SourceError> {
        let name = name.into();
        let path = Path::parse(key).map_err(|error| permanent(&name, error))?;
        let (first_byte, stall) = (Duration::from_secs(10), Duration::from_secs(10));
        Ok(Store { name, store, path, first_byte, stall, known: Mutex::new(None) })
    }

    /// Sets the longest waits: for the head of an answer, and within a body. Default: 10 s each.
    pub fn patience(mut self, first_byte: Duration, stall: Duration) -> Store {
        (self.first_byte, self.stall) = (first_byte, stall);
        self
    }

    fn known_len(&self, version: &Version) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(known, _)| known == version).map(|(_, len)| *len)
    }

    async fn in_time<T>(
        &self,
        what: &'static str,
        range: Option<&Range<u64>>,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, SourceError> {
        let wait = self.first_byte.min(WAIT_MAX);
        match tokio::time::timeout(wait, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(failed(&self.name, what, range, error)),
            Err(_) => Err(SourceError::Transient {
                object: self.name.clone(),
                what,
                range: range.cloned(),
                attempts: 1,
                reason: format!("no answer for {wait:?}"),
                cause: None,
            }),
        }
    }

    fn changed(&self, version: &Version, found: String) -> SourceError {
        SourceError::Changed { object: self.name.clone(), expected: version.to_string(), found }
    }
}

fn permanent(object: &str, error: impl std::error::Error + Send + Sync + 'static) -> SourceError {
    let (object, reason) = (object.to_owned(), chain_text(&error));
    SourceError::Permanent { object, reason, cause: Some(Arc::new(error)) }
}

/// The HTTP status in an error of a store's client, which tells it in text alone.
fn status_in(text: &str) -> Option<u16> {
    let after = ["status ", "status code: ", "status: "];
    let at = after.iter().find_map(|mark| text.find(mark).map(|at| at + mark.len()))?;
    text.get(at..at + 3)?.parse().ok()
}

fn failed(
    object: &str,
    what: &'static str,
    range: Option<&Range<u64>>,
    error: StoreError,
) -> SourceError {
    let name = object.to_owned();
    let reason = chain_text(&error);
    let kind = match &error {
        StoreError::NotFound { .. } => "not found",
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => "denied",
        StoreError::Precondition { .. } | StoreError::NotModified { .. } => "changed",
        StoreError::Generic { .. } => match status_in(&reason) {
            Some(429 | 503) => "throttled",
            Some(416) => "permanent",
            _ => "transient",
        },
        StoreError::JoinError { .. } => "transient",
        _ => "permanent",
    };
    let cause: Option<Cause> = Some(Arc::new(error));
    match kind {
        "not found" => SourceError::NotFound { object: name, cause },
        "denied" => SourceError::Denied { object: name, reason, cause },
        "throttled" => SourceError::Throttled { object: name, retry_after: None, cause },
        "changed" => SourceError::Changed {
            object: name,
            expected: "the version that was opened".to_owned(),
            found: "another version".to_owned(),
        },
        "transient" => {
            let range = range.cloned();
            SourceError::Transient { object: name, what, range, attempts: 1, reason, cause }
        }
        _ => SourceError::Permanent { object: name, reason, cause },
    }
}

fn version_of(meta: &ObjectMeta) -> Version {
    match (&meta.e_tag, &meta.version) {
        (Some(etag), _) if !etag.starts_with("W/") => Version::strong(format!("etag {etag}")),
        (_, Some(version)) => Version::strong(format!("version {version}")),
        _ => Version::weak(format!(
            "modified {} length {}",
            meta.last_modified.timestamp_micros(),
            meta.size
        )),
    }
}

/// What a version of this source asks the store for.
fn pinned(version: &Version, range: &Range<u64>) -> Option<GetOptions> {
    let options = GetOptions::new().with_range(Some(GetRange::Bounded(range.clone())));
    let token = version.token();
    match version.strength() {
        Strength::Weak => Some(options),
        Strength::Strong => match token.strip_prefix("etag ") {
            Some(etag) => Some(options.with_if_match(Some(etag))),
            None => token.strip_prefix("version ").map(|id| options.with_version(Some(id))),
        },
    }
}

#[async_trait]
impl BlockSource for Store {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let work = self.store.get_opts(&self.path, GetOptions::new().with_head(true));
        let meta = self.in_time("stat", None, work).await?.meta;
        let (len, version) = (meta.size, version_of(&meta));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((version.clone(), len));
        Ok(ObjectStat { len, version, alignment: 1, part_bytes: 8 << 20 })
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        match self.known_len(version) {
            Some(len) => check_range(&self.name, &range, len)?,
            None => check_shape(&self.name, &range)?,
        }
        let Some(options) = pinned(version, &range) else {
            let found = "an object to which no such version can belong".to_owned();
            return Err(self.changed(version, found));
        };
        let work = self.store.get_opts(&self.path, options);
        let answer =
            self.in_time("read", Some(&range), work).await.map_err(|error| match error {
                SourceError::Changed { found, .. } => self.changed(version, found),
                other => other,
            })?;
        let found = version_of(&answer.meta);
        if found != *version {
            return Err(self.changed(version, found.to_string()));
        }
        check_range(&self.name, &range, answer.meta.size)?;
        if answer.range != range {
            return Err(SourceError::Corrupt {
                object: self.name.clone(),
                range: Some(range),
                reason: format!("the store sent bytes {:?} instead", answer.range),
            });
        }
        let (object, part) = (self.name.clone(), range.clone());
        let chunks = answer.into_stream().map_err(move |error| {
            let reason = format!("the body broke: {}", chain_text(&error));
            SourceError::transient_read(&object, part.clone(), reason, Some(Arc::new(error)))
        });
        Ok(Body::stream(&self.name, range, self.stall, Box::pin(chunks)))
    }
}

#[cfg(any(feature = "gs", feature = "azure"))]
fn no_retries() -> object_store::RetryConfig {
    object_store::RetryConfig { max_retries: 0, ..Default::default() }
}

/// The object `key` of a bucket of Google Cloud Storage, with credentials as Google's tools find
/// them, or none.
///
/// # Errors
/// When the credentials that were found cannot be used.
#[cfg(feature = "gs")]
pub fn google(bucket: &str, key: &str, anonymous: bool) -> Result<Store, SourceError> {
    let name = format!("gs://{bucket}/{key}");
    let store = object_store::gcp::GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_skip_signature(anonymous)
        .with_retry(no_retries())
        .build()
        .map_err(|error| permanent(&name, error))?;
    Store::new(name, Arc::new(store), key)
}

/// The object `key` of a container of Azure Blob Storage, with credentials as Azure's tools find
/// them, or none. `account` of `None` is that of the environment.
///
/// # Errors
/// When there is no account, or the credentials that were found cannot be used.
#[cfg(feature = "azure")]
pub fn azure(
    container: &str,
    key: &str,
    account: Option<&str>,
    anonymous: bool,
) -> Result<Store, SourceError> {
    let name = format!("az://{container}/{key}");
    let mut builder = object_store::azure::MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_skip_signature(anonymous)
        .with_retry(no_retries());
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    let store = builder.build().map_err(|error| permanent(&name, error))?;
    Store::new(name, Arc::new(store), key)
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, memory::InMemory};

    use super::*;
    use crate::conformance::check;

    #[tokio::test]
    async fn a_store_conforms_and_a_replaced_object_is_changed() {
        for len in [0usize, 1, 100_001] {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7 >> 3) as u8).collect();
            let store = Arc::new(InMemory::new());
            let path = Path::parse("a/key").expect("a path");
            store.put(&path, bytes.clone().into()).await.expect("put");
            let source = Store::new("memory", store.clone(), "a/key").expect("a source");
            check(source, &bytes).await.unwrap_or_else(|wrong| panic!("{len}: {wrong}"));

            let source = Store::new("memory", store.clone(), "a/key").expect("a source");
            let stat = source.stat().await.expect("stat");
            store.put(&path, vec![1u8; 10].into()).await.expect("put");
            let error = source.read(&stat.version, 0..1).await.map(drop).expect_err("changed");
            let expected = if len == 0 { "permanent" } else { "changed" };
            assert_eq!(error.kind(), expected, "{error}");
            store.delete(&path).await.expect("delete");
            let error = source.stat().await.expect_err("gone");
            assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        }
    }

    #[test]
    fn statuses_in_texts() {
        let cases = [
            ("Server returned non-2xx status code: 503 Slow", Some(503)),
            ("got status 429", Some(429)),
            ("no number", None),
            ("status ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(status_in(text), expected, "{text}");
        }
    }
}
