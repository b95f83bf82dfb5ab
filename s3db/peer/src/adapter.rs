//! The same objects as SlateDB asks for them: crate `object_store`'s trait over [`Store`].
//!
//! What SlateDB does not use is refused. A multipart upload is put when it is completed, as one
//! object: each part counts and takes as long as a put of its size. When an object was changed is not
//! known: it is always now, so that SlateDB's garbage collection finds nothing old enough.

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, stream::BoxStream};
use s3db::cloud::{Delete, ETag, Fault, Get, Objects, Put, PutIf};
use slatedb::object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart, path::Path,
};

use crate::model::Store;

/// Names that one list returns.
const LIST_MAX: usize = 1000;

/// See the module.
#[derive(Clone)]
pub(crate) struct Adapter(pub(crate) Arc<Store>);

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adapter")
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

fn fault(fault: Fault) -> Error {
    Error::Generic { store: "memory", source: Box::new(fault) }
}

fn not_found(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "there is no such object".into() }
}

fn refused(what: &str) -> Error {
    Error::NotSupported { source: what.into() }
}

fn bytes_of(payload: PutPayload) -> Bytes {
    let mut bytes = BytesMut::with_capacity(payload.content_length());
    payload.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.freeze()
}

impl Adapter {
    /// What the object is, without any latency.
    async fn look(&self, path: &Path) -> Result<(Bytes, ObjectMeta)> {
        match self.0.objects.get(path.as_ref(), None).await.map_err(fault)? {
            Get::Found { bytes, etag, date_ms } => {
                let now = DateTime::<Utc>::from_timestamp_millis(date_ms as i64);
                let meta = ObjectMeta {
                    location: path.clone(),
                    last_modified: now.unwrap_or_default(),
                    size: bytes.len() as u64,
                    e_tag: Some(etag.as_str().to_owned()),
                    version: None,
                };
                Ok((bytes, meta))
            }
            _ => Err(not_found(path)),
        }
    }

    async fn store(&self, path: &Path, bytes: Bytes, mode: PutMode) -> Result<PutResult> {
        let condition = match &mode {
            PutMode::Overwrite => PutIf::Always,
            PutMode::Create => PutIf::Absent,
            PutMode::Update(version) => {
                let etag =
                    version.e_tag.as_deref().ok_or_else(|| refused("an update of no tag"))?;
                PutIf::Matches(ETag::new(etag))
            }
        };
        let path_text = || path.to_string();
        match self.0.objects.put(path.as_ref(), bytes, condition).await {
            Put::Stored(etag) => Ok(PutResult {
                e_tag: Some(etag.as_str().to_owned()),
                version: None,
                extensions: Default::default(),
            }),
            Put::Refused if mode == PutMode::Create => {
                Err(Error::AlreadyExists { path: path_text(), source: "it is there".into() })
            }
            Put::Refused | Put::Missing | Put::Conflict => {
                Err(Error::Precondition { path: path_text(), source: "another version".into() })
            }
            Put::Unknown(why) | Put::Failed(why) => Err(fault(why)),
        }
    }

    /// All objects whose names begin with `prefix` and come after `after`.
    async fn all(self, prefix: String, after: Option<String>) -> Vec<Result<ObjectMeta>> {
        let (mut found, mut last) = (Vec::new(), after);
        loop {
            self.0.list_of().await;
            let part = match self.0.objects.list(&prefix, last.as_deref(), LIST_MAX).await {
                Ok(part) => part,
                Err(why) => {
                    found.push(Err(fault(why)));
                    return found;
                }
            };
            last = part.names.last().cloned();
            for name in &part.names {
                // Gone meanwhile: not there.
                if let Ok((_, meta)) = self.look(&Path::from(name.as_str())).await {
                    found.push(Ok(meta));
                }
            }
            if !part.more || last.is_none() {
                return found;
            }
        }
    }

    fn listed(
        &self,
        prefix: Option<&Path>,
        after: Option<&Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let all = self.clone().all(directory(prefix), after.map(ToString::to_string));
        futures::stream::once(all).flat_map(futures::stream::iter).boxed()
    }
}

/// A prefix is made of whole parts of a path.
fn directory(prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => format!("{prefix}/"),
        _ => String::new(),
    }
}

#[async_trait]
impl ObjectStore for Adapter {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let bytes = bytes_of(payload);
        self.0.put_of(bytes.len()).await;
        self.store(location, bytes, opts.mode).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        // To begin one is a call as well.
        self.0.put_of(0).await;
        let (at, path) = (self.clone(), location.clone());
        Ok(Box::new(Upload { at, path, parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let found = self.look(location).await;
        let (bytes, meta) = match found {
            Ok(found) => found,
            Err(error) => {
                self.0.get_of(0).await;
                return Err(error);
            }
        };
        let range = match (&options.range, options.head) {
            (_, true) => 0..0,
            (Some(range), false) => range
                .as_range(meta.size)
                .map_err(|error| Error::Generic { store: "memory", source: Box::new(error) })?,
            (None, false) => 0..meta.size,
        };
        let part = bytes.slice(range.start as usize..range.end as usize);
        self.0.get_of(part.len()).await;
        options.check_preconditions(&meta)?;
        Ok(GetResult {
            payload: GetResultPayload::Stream(
                futures::stream::once(async move { Ok(part) }).boxed(),
            ),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (bytes, _) = self.look(location).await?;
        let mut parts = Vec::new();
        for range in ranges {
            let end = (range.end as usize).min(bytes.len());
            let part = bytes.slice((range.start as usize).min(end)..end);
            self.0.get_of(part.len()).await;
            parts.push(part);
        }
        Ok(parts)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let at = self.clone();
        let delete = move |path: Result<Path>| {
            let at = at.clone();
            async move {
                let path = path?;
                at.0.get_of(0).await;
                match at.0.objects.delete(path.as_ref(), None).await {
                    Delete::Unknown(why) | Delete::Failed(why) => Err(fault(why)),
                    _ => Ok(path),
                }
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let base = directory(prefix);
        let mut objects = Vec::new();
        let mut common_prefixes: Vec<Path> = Vec::new();
        for meta in self.clone().all(base.clone(), None).await {
            let meta = meta?;
            let rest = meta.location.as_ref().strip_prefix(&base).unwrap_or_default();
            match rest.split_once('/') {
                None => objects.push(meta),
                Some((part, _)) => {
                    let common = Path::from(format!("{base}{part}"));
                    // In the order of names, those of one folder come one after the other.
                    if common_prefixes.last() != Some(&common) {
                        common_prefixes.push(common);
                    }
                }
            }
        }
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(refused("a copy"))
    }
}

#[derive(Debug)]
struct Upload {
    at: Adapter,
    path: Path,
    parts: Vec<Bytes>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (at, bytes) = (self.at.clone(), bytes_of(data));
        let len = bytes.len();
        self.parts.push(bytes);
        Box::pin(async move {
            at.0.put_of(len).await;
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.at.0.put_of(0).await;
        let whole: Bytes = std::mem::take(&mut self.parts).concat().into();
        self.at.store(&self.path, whole, PutMode::Overwrite).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use slatedb::object_store::{ObjectStoreExt as _, UpdateVersion};

    use super::*;
    use crate::model::Latency;

    #[tokio::test]
    async fn conditions_ranges_and_lists_are_those_of_a_bucket() {
        let store = Adapter(Store::new(Latency::MEMORY));
        let path = |name: &str| Path::from(name);
        let put = |name, bytes: &'static [u8], mode| {
            let (store, opts) = (store.clone(), PutOptions { mode, ..Default::default() });
            async move { store.put_opts(&path(name), bytes.into(), opts).await }
        };
        let first = put("a/b", b"0123456789", PutMode::Create).await.unwrap();
        let again = put("a/b", b"x", PutMode::Create).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        let version = UpdateVersion { e_tag: first.e_tag, version: None };
        put("a/b", b"abcdefghij", PutMode::Update(version.clone())).await.unwrap();
        let stale = put("a/b", b"x", PutMode::Update(version)).await;
        assert!(matches!(stale, Err(Error::Precondition { .. })), "{stale:?}");
        assert_eq!(&store.get_range(&path("a/b"), 2..5).await.unwrap()[..], b"cde");
        assert_eq!(&store.get_range(&path("a/b"), 8..50).await.unwrap()[..], b"ij");
        assert_eq!(store.head(&path("a/b")).await.unwrap().size, 10);
        assert!(matches!(store.get(&path("a")).await, Err(Error::NotFound { .. })));
        put("a/c/d", b"", PutMode::Overwrite).await.unwrap();
        put("ab", b"", PutMode::Overwrite).await.unwrap();
        let names = |listed: Vec<ObjectMeta>| -> Vec<String> {
            listed.into_iter().map(|meta| meta.location.to_string()).collect()
        };
        let all = store.list(Some(&path("a"))).try_collect().await.unwrap();
        assert_eq!(names(all), ["a/b", "a/c/d"]);
        let after = store.list_with_offset(None, &path("a/b")).try_collect().await.unwrap();
        assert_eq!(names(after), ["a/c/d", "ab"]);
        let level = store.list_with_delimiter(Some(&path("a"))).await.unwrap();
        assert_eq!(
            (names(level.objects), level.common_prefixes),
            (vec!["a/b".into()], vec![path("a/c")])
        );
        let mut upload = store.put_multipart(&path("m")).await.unwrap();
        upload.put_part("one".into()).await.unwrap();
        upload.put_part("two".into()).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(&store.get(&path("m")).await.unwrap().bytes().await.unwrap()[..], b"onetwo");
        store.delete(&path("m")).await.unwrap();
        assert!(matches!(store.head(&path("m")).await, Err(Error::NotFound { .. })));
    }
}
