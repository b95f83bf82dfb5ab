//! Objects of any [`object_store::ObjectStore`]: Google, Azure, memory, or one of your own.
//!
//! ```text
//!   stat:  get_opts(head) ------------------> size, ETag, version id, date
//!   read:  get_opts(range, if_match, version) --> the same ETag, the range checked, body exact
//! ```
//!
//! **Version.** The ETag is pinned on every read and compared with what comes back, together with
//! the version id where the store tells one. Where the id is refused, or names nothing any more,
//! the ETag alone decides between the same bytes and [`SourceError::Changed`]. Without a strong
//! ETag the version is weak: date and size. Weak are also the ETags of stores that read files of
//! this machine, since they are made of nothing but inode, time and size.
//!
//! **What it was tried on.** The crate's own stores in memory and over files, and for `gs` and `az` a
//! server that answers ranges, conditions and versions as these clouds document it. It has not met
//! the clouds themselves: their credentials and their throttling are the crate's word. A
//! `Retry-After` does not come through it, so that throttled requests wait as
//! [`RetryPolicy`](crate::RetryPolicy) says.
//!
//! **Attempts.** One; wrap it in [`Retry`](crate::Retry). The stores that [`open`](crate::open())
//! builds do not retry either. A store that you bring should not, or both will.

use std::{
    error::Error,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta,
    ObjectStore, path::Path,
};
use pager::{BlockSource, ByteStream, ObjectStat, SourceError, Strength, Version};

use crate::{
    body::{Body, WAIT_MAX, check_range, check_shape},
    encoding::{chain_text, foreign},
    wire::Failure,
};

/// An object in a store of the crate `object_store`.
pub struct Store {
    name: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    first_byte: Duration,
    stall: Duration,
    /// Reads that name a version id were denied; the ETag serves.
    versions_denied: AtomicBool,
    /// What `stat` found last: the length that ranges are checked against.
    known: Mutex<Option<(Version, u64)>>,
}

impl Store {
    /// A source for the object `key` of `store`, named `name` in metrics and errors, such as
    /// `gs://bucket/key`. Nothing is sent before the first `stat` or `read`.
    ///
    /// # Errors
    /// When the store cannot have such a key.
    pub fn new(
        name: impl Into<String>,
        store: Arc<dyn ObjectStore>,
        key: &str,
    ) -> Result<Store, SourceError> {
        let name = name.into();
        let path = path_of(&name, key)?;
        Ok(Store {
            name,
            store,
            path,
            first_byte: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            versions_denied: AtomicBool::new(false),
            known: Mutex::new(None),
        })
    }

    /// Sets the longest wait for the head of an answer, and the longest silence within a body.
    /// Default: 10 s each.
    pub fn patience(mut self, first_byte: Duration, stall: Duration) -> Store {
        (self.first_byte, self.stall) = (first_byte, stall);
        self
    }

    fn known_len(&self, version: &Version) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(known, _)| known == version).map(|(_, len)| *len)
    }

    /// Waits for the head of an answer as long as is allowed.
    async fn in_time<T>(
        &self,
        asked: &Asked<'_>,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let wait = self.first_byte.min(WAIT_MAX);
        let answer = tokio::time::timeout(wait, work).await;
        answer.unwrap_or_else(|_| Err(asked.transient(format!("no answer for {wait:?}"), None)))
    }

    async fn get(
        &self,
        pin: &Pin<'_>,
        version_id: Option<&str>,
        range: &Range<u64>,
    ) -> Result<GetResult, StoreError> {
        let mut options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            version: version_id.map(str::to_owned),
            ..GetOptions::default()
        };
        match pin {
            Pin::Tag { etag, .. } => options.if_match = Some((*etag).to_owned()),
            // A date that cannot be read is none that this source gave out; the answer is compared.
            Pin::Modified { date, .. } => options.if_unmodified_since = date.parse().ok(),
        }
        self.store.get_opts(&self.path, options).await
    }

    /// The range, with the version id as long as that is of use.
    async fn get_pinned(
        &self,
        asked: &Asked<'_>,
        pin: &Pin<'_>,
        range: &Range<u64>,
    ) -> Result<GetResult, SourceError> {
        let denied = self.versions_denied.load(Ordering::Relaxed);
        let version_id = pin.version_id().filter(|_| !denied);
        let error = match self.get(pin, version_id, range).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let refused = matches!(error, StoreError::PermissionDenied { .. });
        // A store that keeps one version only has no object of an older one.
        let gone = matches!(error, StoreError::NotFound { .. });
        if version_id.is_none() || !(refused || gone) {
            return Err(asked.failed(error));
        }
        let answer = self.get(pin, None, range).await.map_err(|error| asked.failed(error))?;
        // Remembered only now that it is known to help: else the object itself is denied.
        self.versions_denied.fetch_or(refused, Ordering::Relaxed);
        Ok(answer)
    }

    /// That the answer is the range and the version that were asked for.
    fn check(
        &self,
        answer: &GetResult,
        version: &Version,
        pin: &Pin<'_>,
        range: &Range<u64>,
        len: Option<u64>,
    ) -> Result<(), SourceError> {
        let meta = &answer.meta;
        let same = match pin {
            Pin::Tag { etag, .. } => meta.e_tag.as_deref() == Some(*etag),
            Pin::Modified { date, size } => date_of(meta) == *date && meta.size == *size,
        };
        if !same || len.is_some_and(|len| len != meta.size) {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: version_of(meta, version.strength() == Strength::Weak).to_string(),
            });
        }
        check_range(&self.name, range, meta.size)?;
        if answer.range != *range {
            return Err(SourceError::Corrupt {
                object: self.name.clone(),
                range: Some(range.clone()),
                reason: format!(
                    "the store sent bytes {}..{} instead",
                    answer.range.start, answer.range.end
                ),
            });
        }
        Ok(())
    }
}

/// What a version of this source pins a read to.
enum Pin<'a> {
    Tag {
        etag: &'a str,
        version_id: Option<&'a str>,
    },
    /// For stores that tell no ETag.
    Modified {
        date: &'a str,
        size: u64,
    },
}

/// Between ETag and version id in the text of a version. An ETag cannot hold a space.
const VERSION_ID: &str = " version-id ";

impl Pin<'_> {
    /// `None` for a text that no version of this source has.
    fn of(version: &Version) -> Option<Pin<'_>> {
        if let Some(modified) = version.token().strip_prefix("modified ") {
            let (date, size) = modified.split_once(" size ")?;
            return Some(Pin::Modified { date, size: size.parse().ok()? });
        }
        let (etag, version_id) = match version.token().split_once(VERSION_ID) {
            Some((etag, id)) => (etag, Some(id)),
            None => (version.token(), None),
        };
        let sendable = |text: &str| text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        let good = sendable(etag) && version_id.is_none_or(sendable) && !etag.is_empty();
        // A star would match every object.
        (good && etag != "*").then_some(Pin::Tag { etag, version_id })
    }

    fn version_id(&self) -> Option<&str> {
        match self {
            Pin::Tag { version_id, .. } => *version_id,
            Pin::Modified { .. } => None,
        }
    }
}

fn date_of(meta: &ObjectMeta) -> String {
    meta.last_modified.to_rfc3339()
}

fn version_of(meta: &ObjectMeta, weak: bool) -> Version {
    let etag = meta.e_tag.as_deref().filter(|etag| !etag.is_empty() && !etag.starts_with("W/"));
    let version_id = meta.version.as_deref().filter(|id| !id.is_empty());
    match (etag, version_id) {
        (Some(etag), _) if weak => Version::weak(etag),
        (Some(etag), Some(id)) => Version::strong(format!("{etag}{VERSION_ID}{id}")),
        (Some(etag), None) => Version::strong(etag),
        (None, _) => Version::weak(format!("modified {} size {}", date_of(meta), meta.size)),
    }
}

/// Whether the bytes come from a file of this machine.
fn is_file(payload: &GetResultPayload) -> bool {
    !matches!(payload, GetResultPayload::Stream(_))
}

#[async_trait]
impl BlockSource for Store {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let asked = Asked { object: &self.name, what: "stat", range: None, version: None };
        let work = async {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let answer = self.store.get_opts(&self.path, options).await;
            answer.map_err(|error| asked.failed(error))
        };
        let answer = self.in_time(&asked, work).await?;
        let len = answer.meta.size;
        let version = version_of(&answer.meta, is_file(&answer.payload));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((version.clone(), len));
        Ok(ObjectStat::new(len, version))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let len = self.known_len(version);
        match len {
            Some(len) => check_range(&self.name, &range, len)?,
            None => check_shape(&self.name, &range)?,
        }
        let Some(pin) = Pin::of(version) else {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: "an object to which no such version can belong".to_owned(),
            });
        };
        let asked = Asked {
            object: &self.name,
            what: "read",
            range: Some(range.clone()),
            version: Some(version),
        };
        let answer = self.in_time(&asked, self.get_pinned(&asked, &pin, &range)).await?;
        self.check(&answer, version, &pin, &range, len)?;
        let (object, part) = (self.name.clone(), range.clone());
        let chunks = answer.into_stream().map_err(move |error| {
            let reason = format!("the body broke: {}", short_text(&error));
            SourceError::transient_read(&object, part.clone(), reason, Some(Arc::new(error)))
        });
        Ok(Body::stream(&self.name, range, self.stall, Box::pin(chunks)))
    }
}

/// What a request asked for: every error names it.
struct Asked<'a> {
    object: &'a str,
    what: &'static str,
    range: Option<Range<u64>>,
    version: Option<&'a Version>,
}

impl Asked<'_> {
    fn transient(&self, reason: String, cause: Option<pager::Cause>) -> SourceError {
        let (object, range) = (self.object.to_owned(), self.range.clone());
        SourceError::Transient { object, what: self.what, range, attempts: 1, reason, cause }
    }

    /// What a failed request means for the caller.
    fn failed(&self, error: StoreError) -> SourceError {
        let (object, reason) = (self.object.to_owned(), short_text(&error));
        match (&error, self.version) {
            (StoreError::NotFound { .. }, _) => {
                SourceError::NotFound { object, cause: Some(Arc::new(error)) }
            }
            (StoreError::Precondition { .. } | StoreError::NotModified { .. }, Some(version)) => {
                SourceError::Changed {
                    object,
                    expected: version.to_string(),
                    found: "another version".to_owned(),
                }
            }
            (StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }, _) => {
                SourceError::Denied { object, reason, cause: Some(Arc::new(error)) }
            }
            (StoreError::Generic { .. }, _) => self.unsorted(error, reason),
            _ => SourceError::Permanent { object, reason, cause: Some(Arc::new(error)) },
        }
    }

    /// An error that the store did not sort. The types of its causes are private for the most part,
    /// so that the status can only be read from their text.
    fn unsorted(&self, error: StoreError, reason: String) -> SourceError {
        let object = self.object.to_owned();
        let permanent = |reason| SourceError::Permanent { object, reason, cause: None };
        if let Some(status) = status_in(&reason) {
            let failure = Failure {
                object: self.object,
                what: self.what,
                range: self.range.clone(),
                status,
                phrase: after_status(&reason),
                retry_after: None,
                cause: Some(Arc::new(error)),
            };
            return failure.error();
        }
        if reason.contains("invalid peer certificate")
            || reason.contains("Wanted range starting at")
            || reason.contains("non-partial response")
        {
            return permanent(reason);
        }
        match find::<io::Error>(&error).map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => SourceError::NotFound {
                object: self.object.to_owned(),
                cause: Some(Arc::new(error)),
            },
            Some(io::ErrorKind::PermissionDenied) => SourceError::Denied {
                object: self.object.to_owned(),
                reason,
                cause: Some(Arc::new(error)),
            },
            _ => self.transient(reason, Some(Arc::new(error))),
        }
    }
}

/// How the stores of the crate write the status of an answer.
const STATUS: &str = "non-2xx status code: ";

fn status_in(text: &str) -> Option<u16> {
    let (_, after) = text.split_once(STATUS)?;
    after.get(..3)?.parse().ok()
}

fn after_status(text: &str) -> &str {
    text.split_once(STATUS).and_then(|(_, after)| after.get(4..)).unwrap_or("")
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The error with its causes in one line that is not too long.
fn short_text(error: &StoreError) -> String {
    foreign(&chain_text(error))
}

/// A path that names exactly the object `key`: the crate's own parser would drop slashes at the
/// ends, and so read another object.
fn path_of(name: &str, key: &str) -> Result<Path, SourceError> {
    match Path::parse(key) {
        Ok(path) if path.as_ref() == key && !key.is_empty() => Ok(path),
        other => Err(SourceError::Permanent {
            object: name.to_owned(),
            reason:
                "a key of such a store has no empty part, no \".\" or \"..\" as a part, and no \
                     slash at its ends"
                    .to_owned(),
            cause: other.err().map(|error| Arc::new(error) as pager::Cause),
        }),
    }
}

#[cfg(any(feature = "gs", feature = "azure"))]
fn unbuildable(name: &str, error: StoreError) -> SourceError {
    let reason = short_text(&error);
    SourceError::Permanent { object: name.to_owned(), reason, cause: Some(Arc::new(error)) }
}

/// The store's own retries off, since ours are on.
#[cfg(any(feature = "gs", feature = "azure"))]
fn no_retries() -> object_store::RetryConfig {
    object_store::RetryConfig { max_retries: 0, ..object_store::RetryConfig::default() }
}

/// Settings of the store's client: one connection for each range, no limit on the time of a whole
/// body (its silence is limited), and five seconds to connect.
#[cfg(any(feature = "gs", feature = "azure"))]
const CLIENT: [(object_store::ClientConfigKey, &str); 3] = [
    (object_store::ClientConfigKey::Http1Only, "true"),
    (object_store::ClientConfigKey::Timeout, "86400 seconds"),
    (object_store::ClientConfigKey::ConnectTimeout, "5 seconds"),
];

/// The object `key` of a bucket of Google Cloud Storage, with credentials as Google's tools find
/// them, or none.
///
/// # Errors
/// When the store cannot have such a key, or the credentials that were found cannot be used.
#[cfg(feature = "gs")]
pub fn google(bucket: &str, key: &str, anonymous: bool) -> Result<Store, SourceError> {
    google_with(object_store::gcp::GoogleCloudStorageBuilder::from_env(), bucket, key, anonymous)
}

#[cfg(feature = "gs")]
fn google_with(
    builder: object_store::gcp::GoogleCloudStorageBuilder,
    bucket: &str,
    key: &str,
    anonymous: bool,
) -> Result<Store, SourceError> {
    use object_store::gcp::GoogleConfigKey;
    let name = format!("gs://{bucket}/{key}");
    let mut builder = builder.with_bucket_name(bucket).with_retry(no_retries());
    for (setting, value) in CLIENT {
        builder = builder.with_config(GoogleConfigKey::Client(setting), value);
    }
    if anonymous {
        builder = builder.with_skip_signature(true);
    }
    let store = builder.build().map_err(|error| unbuildable(&name, error))?;
    Store::new(name, Arc::new(store), key)
}

/// The object `key` of a container of Azure Blob Storage, with credentials as Azure's tools find
/// them, or none. `account` of `None` is that of the environment.
///
/// # Errors
/// When the store cannot have such a key, there is no account, or the credentials that were found
/// cannot be used.
#[cfg(feature = "azure")]
pub fn azure(
    container: &str,
    key: &str,
    account: Option<&str>,
    anonymous: bool,
) -> Result<Store, SourceError> {
    let builder = object_store::azure::MicrosoftAzureBuilder::from_env();
    azure_with(builder, container, key, account, anonymous)
}

#[cfg(feature = "azure")]
fn azure_with(
    builder: object_store::azure::MicrosoftAzureBuilder,
    container: &str,
    key: &str,
    account: Option<&str>,
    anonymous: bool,
) -> Result<Store, SourceError> {
    use object_store::azure::AzureConfigKey;
    let name = format!("az://{container}/{key}");
    let mut builder = builder.with_container_name(container).with_retry(no_retries());
    for (setting, value) in CLIENT {
        builder = builder.with_config(AzureConfigKey::Client(setting), value);
    }
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if anonymous {
        builder = builder.with_skip_signature(true);
    }
    let store = builder.build().map_err(|error| unbuildable(&name, error))?;
    Store::new(name, Arc::new(store), key)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use object_store::{ObjectStoreExt, local::LocalFileSystem, memory::InMemory};

    use super::*;
    use crate::conformance::check;

    fn sample(len: u32) -> Vec<u8> {
        (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
    }

    async fn put(store: &Arc<dyn ObjectStore>, key: &str, bytes: &[u8]) -> Store {
        let path = path_of("test", key).expect("a path");
        store.put(&path, bytes.to_vec().into()).await.expect("put");
        Store::new(format!("test:{key}"), store.clone(), key).expect("a source")
    }

    async fn stores_pass(store: Arc<dyn ObjectStore>, strength: Strength) {
        for (key, len) in [("empty", 0), ("one", 1), ("a folder/some", 100_003), ("long", 9 << 20)]
        {
            let bytes = sample(len);
            let source = put(&store, key, &bytes).await;
            assert_eq!(source.stat().await.expect("stat").version.strength(), strength, "{key}");
            check(source, &bytes).await.unwrap_or_else(|wrong| panic!("{key}: {wrong}"));
        }
    }

    async fn overwritten_and_deleted(store: Arc<dyn ObjectStore>) {
        let source = put(&store, "object", &sample(1000)).await;
        let stat = source.stat().await.expect("stat");
        let mut body = source.read(&stat.version, 0..1000).await.expect("read");
        assert!(body.next().await.expect("a chunk").is_ok());
        put(&store, "object", &sample(1001)).await;
        let error = source.read(&stat.version, 0..10).await.map(drop).expect_err("changed");
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
        store.delete(&source.path).await.expect("delete");
        let error = source.read(&stat.version, 0..10).await.map(drop).expect_err("gone");
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        let error = source.stat().await.expect_err("gone");
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    }

    /// A source that has not called `stat` knows no length to check a range against.
    async fn ranges_before_stat(store: Arc<dyn ObjectStore>) {
        let version = put(&store, "short", &sample(100)).await.stat().await.expect("stat").version;
        let source = Store::new("test:short", store, "short").expect("a source");
        for range in [90..101, 100..101, 500..600] {
            let error = source.read(&version, range.clone()).await.map(drop).expect_err("outside");
            assert!(matches!(error, SourceError::Permanent { .. }), "{range:?}: {error}");
        }
        assert!(source.read(&version, 90..100).await.is_ok());
    }

    #[tokio::test]
    async fn memory() {
        stores_pass(Arc::new(InMemory::new()), Strength::Strong).await;
        overwritten_and_deleted(Arc::new(InMemory::new())).await;
        ranges_before_stat(Arc::new(InMemory::new())).await;
    }

    #[tokio::test]
    async fn files_have_weak_versions() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = || Arc::new(LocalFileSystem::new_with_prefix(folder.path()).expect("a store"));
        stores_pass(store(), Strength::Weak).await;
        overwritten_and_deleted(store()).await;
        ranges_before_stat(store()).await;
    }

    #[test]
    fn versions_pin_what_the_store_told() {
        let meta = |etag: Option<&str>, id: Option<&str>| ObjectMeta {
            location: Path::from("k"),
            last_modified: "2024-05-06T07:08:09Z".parse().expect("a date"),
            size: 12,
            e_tag: etag.map(str::to_owned),
            version: id.map(str::to_owned),
        };
        let cases = [
            (meta(Some("\"a\""), None), false, Strength::Strong, "\"a\""),
            (meta(Some("\"a\""), Some("7")), false, Strength::Strong, "\"a\" version-id 7"),
            (meta(Some("\"a\""), None), true, Strength::Weak, "\"a\""),
            (meta(Some("W/\"a\""), Some("7")), false, Strength::Weak, "modified "),
            (meta(None, None), false, Strength::Weak, "modified "),
        ];
        for (meta, weak, strength, token) in cases {
            let version = version_of(&meta, weak);
            assert_eq!(version.strength(), strength, "{version}");
            assert!(version.token().starts_with(token), "{version}");
            match Pin::of(&version).expect("a pin") {
                Pin::Tag { etag, .. } => assert_eq!(Some(etag), meta.e_tag.as_deref()),
                Pin::Modified { date, size } => {
                    assert_eq!((date, size), (date_of(&meta).as_str(), 12));
                }
            }
        }
        for foreign in ["", "*", "two words", "line\nbreak", "modified yesterday"] {
            assert!(Pin::of(&Version::strong(foreign)).is_none(), "{foreign:?}");
        }
    }

    #[test]
    fn statuses_in_texts() {
        let cases = [
            ("Server returned non-2xx status code: 503 Slow", Some(503), "Slow"),
            ("Server returned non-2xx status code: 503", Some(503), ""),
            ("Server returned non-2xx status code: ", None, ""),
            ("no status", None, ""),
        ];
        for (text, status, phrase) in cases {
            assert_eq!((status_in(text), after_status(text)), (status, phrase), "{text}");
        }
    }

    #[test]
    fn keys_that_would_name_another_object_are_refused() {
        for key in ["a", "a/b c", "\u{e4}/%25"] {
            assert_eq!(path_of("n", key).expect(key).as_ref(), key);
        }
        for key in ["a/", "/a", "a//b", "../a", "a/./b", ""] {
            assert!(path_of("n", key).is_err(), "{key:?}");
        }
    }

    #[cfg(any(feature = "gs", feature = "azure"))]
    mod servers {
        use std::{
            io::{Read, Write},
            net::TcpListener,
            sync::{Arc, Mutex},
            thread,
        };

        use super::*;

        const BYTES: &[u8] = b"0123456789";
        const TAG: &str = "\"v\"";

        /// Heads of requests, in lower case.
        type Heads = Arc<Mutex<Vec<String>>>;

        /// A server that answers each request with what `answer` makes of its head. Its thread ends
        /// with the process: it waits for a connection that nobody makes.
        fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> (String, Heads) {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let base = format!("http://{}", listener.local_addr().expect("an address"));
            let heads = Heads::default();
            let seen = heads.clone();
            thread::spawn(move || {
                for socket in listener.incoming() {
                    let Ok(mut socket) = socket else { return };
                    let mut head = Vec::new();
                    let mut byte = [0u8; 1];
                    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
                        head.push(byte[0]);
                    }
                    if !head.ends_with(b"\r\n\r\n") {
                        // Somebody who left.
                        continue;
                    }
                    let head = String::from_utf8_lossy(&head).to_lowercase();
                    let bytes = answer(&head);
                    seen.lock().expect("heads").push(head);
                    let _ = socket.write_all(&bytes);
                }
            });
            (base, heads)
        }

        fn refuse(status: &str) -> Vec<u8> {
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .into_bytes()
        }

        /// The object `bytes` at the tag `TAG` and the version 17, as both clouds document it:
        /// ranges are cut to the object, conditions come before ranges, and another version is not
        /// found. Told in `version_header`, if that is not empty.
        fn object(head: &str, bytes: &[u8], version_header: &str) -> Vec<u8> {
            let value = |name: &str| {
                let mut lines = head.lines();
                lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let target = head.split(' ').nth(1).unwrap_or("");
            let named = target.split(['?', '&']).find_map(|part| {
                part.strip_prefix("generation=").or(part.strip_prefix("versionid="))
            });
            if named.is_some_and(|version| version != "17") {
                return refuse("404 Not Found");
            }
            if value("if-match").is_some_and(|tag| tag != TAG) {
                return refuse("412 Precondition Failed");
            }
            let version = match version_header {
                "" => String::new(),
                header => format!("{header}: 17\r\n"),
            };
            let common = format!(
                "Connection: close\r\nETag: {TAG}\r\n{version}\
                 Last-Modified: Mon, 06 May 2024 07:08:09 GMT\r\n"
            );
            let len = bytes.len();
            if head.starts_with("head ") {
                return format!("HTTP/1.1 200 OK\r\n{common}Content-Length: {len}\r\n\r\n")
                    .into_bytes();
            }
            // Azure has a header of its own for ranges.
            let range = value("range").or(value("x-ms-range"));
            let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
            let (first, last) = range.expect("every read names a range");
            let (first, last): (usize, usize) =
                (first.parse().expect("a number"), last.parse().expect("a number"));
            if first >= len {
                return refuse("416 Range Not Satisfiable");
            }
            let body = &bytes[first..=last.min(len - 1)];
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\n{common}Content-Range: bytes {first}-{}/{len}\r\n\
                 Content-Length: {}\r\n\r\n",
                last.min(len - 1),
                body.len()
            );
            [head.as_bytes(), body].concat()
        }

        #[tokio::test]
        async fn clouds_conform() {
            for len in [1, 300_001] {
                let bytes = sample(len);
                let served = bytes.clone();
                let (base, _) = serve(move |head| object(head, &served, ""));
                for (what, source) in clouds(&base) {
                    check(source, &bytes).await.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
                }
            }
        }

        /// Every cloud that this build knows, over a server at `base`: name, header, source.
        fn clouds(base: &str) -> Vec<(&'static str, Store)> {
            let mut clouds = Vec::new();
            #[cfg(feature = "gs")]
            {
                use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
                let allow = GoogleConfigKey::Client(object_store::ClientConfigKey::AllowHttp);
                let builder = GoogleCloudStorageBuilder::new().with_base_url(base);
                let builder = builder.with_config(allow, "true");
                let source = google_with(builder, "bucket", "a/key", true).expect("a source");
                clouds.push(("x-goog-generation", source));
            }
            #[cfg(feature = "azure")]
            {
                let builder = object_store::azure::MicrosoftAzureBuilder::new()
                    .with_endpoint(base.to_owned())
                    .with_allow_http(true);
                let source =
                    azure_with(builder, "box", "a/key", Some("me"), true).expect("a source");
                clouds.push(("x-ms-version-id", source));
            }
            clouds
        }

        #[tokio::test]
        async fn reads_pin_tag_and_version() {
            let (base, heads) = serve(|head| {
                let header =
                    if head.contains("/box/") { "x-ms-version-id" } else { "x-goog-generation" };
                object(head, BYTES, header)
            });
            for (what, source) in clouds(&base) {
                heads.lock().expect("heads").clear();
                let stat = source.stat().await.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(stat.version, Version::strong("\"v\" version-id 17"), "{what}");
                assert_eq!(stat.len, 10, "{what}");
                let body = source.read(&stat.version, 2..6).await.expect("read");
                let got: Vec<_> = body.try_collect().await.expect("bytes");
                assert_eq!(got.concat(), b"2345", "{what}");
                let heads = heads.lock().expect("heads");
                assert!(heads[1].contains("if-match: \"v\""), "{what}: {}", heads[1]);
                assert!(heads[1].contains("=17 http/1.1"), "{what}: {}", heads[1]);
                assert!(!heads[1].contains("authorization"), "{what}: {}", heads[1]);
                assert_eq!(heads.len(), 2, "{what}: {heads:?}");
            }
        }

        #[tokio::test]
        async fn refusals_say_what_to_do_and_are_asked_once() {
            let cases = [
                ("404 Not Found", "not_found", 1),
                ("412 Precondition Failed", "changed", 1),
                ("403 Forbidden", "denied", 1),
                ("401 Unauthorized", "denied", 1),
                ("503 Slow Down", "throttled", 1),
                ("429 Too Many Requests", "throttled", 1),
                ("500 Internal Server Error", "transient", 1),
                ("416 Range Not Satisfiable", "permanent", 1),
                ("400 Bad Request", "permanent", 1),
            ];
            for (status, kind, requests) in cases {
                let (base, heads) = serve(move |_| refuse(status));
                for (what, source) in clouds(&base) {
                    heads.lock().expect("heads").clear();
                    let error = source.read(&Version::strong(TAG), 2..6).await.map(drop);
                    let error = error.expect_err(status);
                    assert_eq!(error.kind(), kind, "{what}, {status}: {error}");
                    assert_eq!(heads.lock().expect("heads").len(), requests, "{what}, {status}");
                }
            }
        }

        /// A version id that is denied, or that names nothing any more, is left out; then the tag
        /// decides.
        #[tokio::test]
        async fn version_ids_that_do_not_serve_are_left_out() {
            for (refused, then, kind) in [
                ("403 Forbidden", None, "ok"),
                ("404 Not Found", None, "ok"),
                ("404 Not Found", Some("412 Precondition Failed"), "changed"),
                ("404 Not Found", Some("404 Not Found"), "not_found"),
                ("403 Forbidden", Some("403 Forbidden"), "denied"),
            ] {
                let (base, _) = serve(move |head| match (head.contains("=17 http/1.1"), then) {
                    (true, _) => refuse(refused),
                    (false, Some(status)) => refuse(status),
                    (false, None) => object(head, BYTES, ""),
                });
                for (what, source) in clouds(&base) {
                    let version = Version::strong("\"v\" version-id 17");
                    let got = source.read(&version, 2..6).await.map(drop);
                    let got = got.as_ref().map_or_else(|error| error.kind(), |()| "ok");
                    assert_eq!(got, kind, "{what}: {refused}, then {then:?}");
                }
            }
        }

        #[tokio::test]
        async fn a_server_that_cannot_be_reached_is_transient() {
            for (what, source) in clouds("http://127.0.0.1:1") {
                let error = source.stat().await.expect_err("nobody listens");
                assert_eq!(error.kind(), "transient", "{what}: {error}");
            }
        }
    }
}
