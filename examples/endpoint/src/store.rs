//! Buckets of objects, in memory, changed under one lock.
//!
//! A condition is checked and the object replaced without letting go of the lock, so that of any
//! number of concurrent conditional writes to one key exactly one wins. Bodies are collected and
//! hashed before the lock is taken: it is held for a map operation, never for bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use s3s::crypto::{Checksum, Md5};

/// Uploads that may be open at once. A client that leaves more behind has a bug worth hearing of.
const UPLOADS_MAX: usize = 1_000;
/// S3's own bound on part numbers.
const PART_NUMBER_MAX: i32 = 10_000;
/// S3's own bound: every part but the last has at least 5 MiB.
const PART_BYTES_MIN: usize = 5 << 20;

/// The bytes of an object at one moment, and what names them.
#[derive(Clone, Debug)]
pub struct Object {
    /// The body. Slices of it share the memory.
    pub bytes: Bytes,
    /// The entity tag without its quotes: MD5 in hexadecimal, or `md5-of-md5s-parts`.
    pub etag: String,
    /// When it was written.
    pub modified: SystemTime,
    /// The headers stored with it.
    pub meta: Meta,
    /// Bytes of memory that are the store's own: none for a mapped file.
    heap_bytes: u64,
}

/// The headers stored with an object.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// `Content-Type`, as the writer gave it.
    pub content_type: Option<String>,
    /// The `x-amz-meta-` headers, without their prefix.
    pub user: BTreeMap<String, String>,
}

/// What must hold of a key for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the last writer wins.
    #[default]
    None,
    /// There is no object (`If-None-Match: *`).
    Absent,
    /// There is an object, whatever its tag (`If-Match: *`).
    Present,
    /// The object has this tag (`If-Match: "tag"`).
    Tag(String),
}

/// Why the store refused. The names are S3's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such bucket.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// No such object.
    #[error("the key does not exist")]
    NoSuchKey,
    /// No such multipart upload, or it is finished.
    #[error("the upload does not exist")]
    NoSuchUpload,
    /// The bucket is there already.
    #[error("the bucket exists and is yours")]
    BucketAlreadyOwnedByYou,
    /// Only empty buckets can be deleted.
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    /// The condition of the write does not hold.
    #[error("at least one of the preconditions did not hold")]
    PreconditionFailed,
    /// A part is missing, or its tag is another.
    #[error("a part is missing or has another tag")]
    InvalidPart,
    /// Parts are named out of order.
    #[error("parts must be in ascending order")]
    InvalidPartOrder,
    /// A part number outside 1 to 10,000.
    #[error("part numbers go from 1 to 10000")]
    InvalidPartNumber,
    /// A part other than the last has less than 5 MiB.
    #[error("every part but the last has at least 5 MiB")]
    EntityTooSmall,
    /// The store holds as many bytes as it may.
    #[error("the store is full")]
    Full,
    /// Too many multipart uploads are open.
    #[error("too many uploads are open; complete or abort some")]
    TooManyUploads,
}

/// The keys of a listing, in order.
#[derive(Debug, Default)]
pub struct Listing {
    /// Objects with their keys.
    pub objects: Vec<(String, Arc<Object>)>,
    /// Prefixes up to the delimiter, each once.
    pub prefixes: Vec<String>,
    /// The last key or prefix, where there is more to list.
    pub next: Option<String>,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only keys that start with this.
    pub prefix: String,
    /// Only keys and common prefixes that sort after this.
    pub after: String,
    /// Where common prefixes end.
    pub delimiter: Option<String>,
    /// The most keys and prefixes to return.
    pub limit: usize,
}

/// Buckets of objects. A handle: clones share the contents.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    bytes_max: u64,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    buckets: BTreeMap<String, BTreeMap<String, Arc<Object>>>,
    uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
    /// Bytes of bodies and parts on the heap. Mapped files cost none.
    bytes: u64,
}

struct Upload {
    bucket: String,
    key: String,
    meta: Meta,
    parts: BTreeMap<i32, Part>,
}

#[derive(Clone)]
struct Part {
    bytes: Bytes,
    digest: [u8; 16],
}

impl Store {
    /// An empty store that holds at most `bytes_max` bytes of bodies and parts.
    pub fn new(bytes_max: u64) -> Store {
        Store { shared: Arc::new(Shared { bytes_max, contents: Mutex::default() }) }
    }

    /// Creates a bucket.
    pub fn create_bucket(&self, bucket: &str) -> Result<(), Refusal> {
        let mut contents = self.lock();
        if contents.buckets.contains_key(bucket) {
            return Err(Refusal::BucketAlreadyOwnedByYou);
        }
        contents.buckets.insert(bucket.to_owned(), BTreeMap::new());
        Ok(())
    }

    /// Deletes an empty bucket.
    pub fn delete_bucket(&self, bucket: &str) -> Result<(), Refusal> {
        let mut contents = self.lock();
        if !contents.bucket(bucket)?.is_empty() {
            return Err(Refusal::BucketNotEmpty);
        }
        contents.buckets.remove(bucket);
        Ok(())
    }

    /// The names of all buckets.
    pub fn buckets(&self) -> Vec<String> {
        self.lock().buckets.keys().cloned().collect()
    }

    /// Refuses where there is no such bucket.
    pub fn check_bucket(&self, bucket: &str) -> Result<(), Refusal> {
        self.lock().bucket(bucket).map(drop)
    }

    /// The object at `key`.
    pub fn get(&self, bucket: &str, key: &str) -> Result<Arc<Object>, Refusal> {
        self.lock().bucket(bucket)?.get(key).cloned().ok_or(Refusal::NoSuchKey)
    }

    /// Replaces the object at `key` if `condition` holds, in one step.
    pub fn put(
        &self,
        bucket: &str,
        key: &str,
        bytes: Bytes,
        meta: Meta,
        condition: &Condition,
    ) -> Result<Arc<Object>, Refusal> {
        let object = Object::written(hex(&Md5::checksum(&bytes)), bytes, meta);
        let mut contents = self.lock();
        contents.check(bucket, key, condition)?;
        contents.install(bucket, key, object, self.shared.bytes_max)
    }

    /// Makes the file at `path` the object at `key`, mapped and not read into memory.
    ///
    /// The file must stay as it is for as long as it is served; its tag is the MD5 of its bytes at
    /// this moment. The bucket is created if it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn put_file(&self, bucket: &str, key: &str, path: &Path) -> io::Result<Arc<Object>> {
        let bytes = map_file(path)?;
        let etag = hex(&Md5::checksum(&bytes));
        let modified = std::fs::metadata(path)?.modified()?;
        let object = Object { bytes, etag, modified, meta: Meta::default(), heap_bytes: 0 };
        let mut contents = self.lock();
        contents.buckets.entry(bucket.to_owned()).or_default();
        contents.install(bucket, key, object, u64::MAX).map_err(io::Error::other)
    }

    /// Deletes the object at `key` if `condition` holds. Deleting what is not there succeeds.
    pub fn delete(&self, bucket: &str, key: &str, condition: &Condition) -> Result<(), Refusal> {
        let mut contents = self.lock();
        contents.check(bucket, key, condition)?;
        let old = contents.bucket_mut(bucket)?.remove(key);
        contents.bytes -= old.map_or(0, |old| old.heap_bytes);
        Ok(())
    }

    /// Lists keys in order.
    pub fn list(&self, bucket: &str, query: &Query) -> Result<Listing, Refusal> {
        let contents = self.lock();
        let objects = contents.bucket(bucket)?;
        let mut listing = Listing::default();
        let mut last = None;
        let from = query.prefix.as_str().max(query.after.as_str());
        for (key, object) in objects.range(from.to_owned()..) {
            if !key.starts_with(&query.prefix) {
                break;
            }
            let common = query.delimiter.as_deref().and_then(|delimiter| {
                let at = key[query.prefix.len()..].find(delimiter)?;
                Some(&key[..query.prefix.len() + at + delimiter.len()])
            });
            let name = common.unwrap_or(key);
            if name <= query.after.as_str() || last.as_deref() == Some(name) {
                continue;
            }
            if listing.objects.len() + listing.prefixes.len() == query.limit {
                listing.next = last;
                break;
            }
            match common {
                Some(common) => listing.prefixes.push(common.to_owned()),
                None => listing.objects.push((key.clone(), object.clone())),
            }
            last = Some(name.to_owned());
        }
        Ok(listing)
    }

    /// Opens a multipart upload and names it.
    pub fn begin_upload(&self, bucket: &str, key: &str, meta: Meta) -> Result<String, Refusal> {
        let mut contents = self.lock();
        contents.bucket(bucket)?;
        if contents.uploads.len() >= UPLOADS_MAX {
            return Err(Refusal::TooManyUploads);
        }
        contents.uploads_begun += 1;
        let id = format!("upload-{}", contents.uploads_begun);
        let upload =
            Upload { bucket: bucket.into(), key: key.into(), meta, parts: BTreeMap::new() };
        contents.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    /// Stores one part and returns its tag. The same number again replaces the part.
    pub fn put_part(
        &self,
        (bucket, key, id): (&str, &str, &str),
        number: i32,
        bytes: Bytes,
    ) -> Result<String, Refusal> {
        if !(1..=PART_NUMBER_MAX).contains(&number) {
            return Err(Refusal::InvalidPartNumber);
        }
        let digest = Md5::checksum(&bytes);
        let mut contents = self.lock();
        let (len, full) = (bytes.len() as u64, self.shared.bytes_max);
        let upload = contents.upload(bucket, key, id)?;
        let old = upload.parts.get(&number).map_or(0, |part| part.bytes.len() as u64);
        let held = contents.bytes - old + len;
        if held > full {
            return Err(Refusal::Full);
        }
        contents.upload(bucket, key, id)?.parts.insert(number, Part { bytes, digest });
        contents.bytes = held;
        Ok(hex(&digest))
    }

    /// Joins the named parts into the object, if `condition` holds, and ends the upload.
    pub fn complete_upload(
        &self,
        (bucket, key, id): (&str, &str, &str),
        named: &[(i32, Option<String>)],
        condition: &Condition,
    ) -> Result<Arc<Object>, Refusal> {
        let (parts, meta) = self.named_parts((bucket, key, id), named)?;
        let mut joined = Vec::with_capacity(parts.iter().map(|part| part.bytes.len()).sum());
        let mut digests = Md5::new();
        for part in &parts {
            joined.extend_from_slice(&part.bytes);
            digests.update(&part.digest);
        }
        let etag = format!("{}-{}", hex(&digests.finalize()), parts.len());
        let object = Object::written(etag, joined.into(), meta);

        let mut contents = self.lock();
        contents.check(bucket, key, condition)?;
        contents.upload(bucket, key, id)?;
        contents.abort(id);
        // The object is no larger than the parts whose place it takes.
        contents.install(bucket, key, object, u64::MAX)
    }

    /// Multipart uploads that are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    /// Drops an upload and its parts.
    pub fn abort_upload(&self, (bucket, key, id): (&str, &str, &str)) -> Result<(), Refusal> {
        let mut contents = self.lock();
        contents.upload(bucket, key, id)?;
        contents.abort(id);
        Ok(())
    }

    /// The bytes and digests of the parts that a completion names, checked as S3 checks them.
    fn named_parts(
        &self,
        (bucket, key, id): (&str, &str, &str),
        named: &[(i32, Option<String>)],
    ) -> Result<(Vec<Part>, Meta), Refusal> {
        let mut contents = self.lock();
        let upload = contents.upload(bucket, key, id)?;
        if named.is_empty() {
            return Err(Refusal::InvalidPart);
        }
        if !named.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(Refusal::InvalidPartOrder);
        }
        let mut parts = Vec::with_capacity(named.len());
        for (at, (number, tag)) in named.iter().enumerate() {
            let part = upload.parts.get(number).ok_or(Refusal::InvalidPart)?;
            if tag.as_ref().is_some_and(|tag| *tag != hex(&part.digest)) {
                return Err(Refusal::InvalidPart);
            }
            if at + 1 < named.len() && part.bytes.len() < PART_BYTES_MIN {
                return Err(Refusal::EntityTooSmall);
            }
            parts.push(part.clone());
        }
        Ok((parts, upload.meta.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // Every change is one map operation, so a panic elsewhere leaves the contents whole.
        self.shared.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn bucket(&self, bucket: &str) -> Result<&BTreeMap<String, Arc<Object>>, Refusal> {
        self.buckets.get(bucket).ok_or(Refusal::NoSuchBucket)
    }

    fn bucket_mut(&mut self, bucket: &str) -> Result<&mut BTreeMap<String, Arc<Object>>, Refusal> {
        self.buckets.get_mut(bucket).ok_or(Refusal::NoSuchBucket)
    }

    fn upload(&mut self, bucket: &str, key: &str, id: &str) -> Result<&mut Upload, Refusal> {
        let upload = self.uploads.get_mut(id).ok_or(Refusal::NoSuchUpload)?;
        if upload.bucket != bucket || upload.key != key {
            return Err(Refusal::NoSuchUpload);
        }
        Ok(upload)
    }

    fn abort(&mut self, id: &str) {
        if let Some(upload) = self.uploads.remove(id) {
            self.bytes -= upload.parts.values().map(|part| part.bytes.len() as u64).sum::<u64>();
        }
    }

    /// Whether a write may happen. S3 answers an `If-Match` on a missing key with `NoSuchKey`.
    fn check(&self, bucket: &str, key: &str, condition: &Condition) -> Result<(), Refusal> {
        let object = self.bucket(bucket)?.get(key);
        match (condition, object) {
            (Condition::None, _) | (Condition::Absent, None) | (Condition::Present, Some(_)) => {
                Ok(())
            }
            (Condition::Absent, Some(_)) => Err(Refusal::PreconditionFailed),
            (Condition::Present | Condition::Tag(_), None) => Err(Refusal::NoSuchKey),
            (Condition::Tag(tag), Some(object)) if object.etag == *tag => Ok(()),
            (Condition::Tag(_), Some(_)) => Err(Refusal::PreconditionFailed),
        }
    }

    fn install(
        &mut self,
        bucket: &str,
        key: &str,
        object: Object,
        bytes_max: u64,
    ) -> Result<Arc<Object>, Refusal> {
        let object = Arc::new(object);
        let bytes = self.bytes;
        let objects = self.bucket_mut(bucket)?;
        let old = objects.get(key).map_or(0, |old| old.heap_bytes);
        let held = bytes - old + object.heap_bytes;
        if held > bytes_max {
            return Err(Refusal::Full);
        }
        objects.insert(key.to_owned(), object.clone());
        self.bytes = held;
        Ok(object)
    }
}

impl Object {
    fn written(etag: String, bytes: Bytes, meta: Meta) -> Object {
        let heap_bytes = bytes.len() as u64;
        Object { bytes, etag, modified: SystemTime::now(), meta, heap_bytes }
    }
}

/// Maps a whole file. An empty one cannot be mapped and needs no map.
pub(crate) fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    Ok(Bytes::from_owner(map(&file)?))
}

#[expect(unsafe_code, reason = "mapping a file is unsafe wherever it is done")]
fn map(file: &File) -> io::Result<memmap2::Mmap> {
    // SAFETY: nobody truncates or rewrites the file while it is served: `put_file` asks for that.
    unsafe { memmap2::Mmap::map(file) }
}

fn hex(digest: &[u8; 16]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
