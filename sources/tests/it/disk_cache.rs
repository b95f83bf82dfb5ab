//! The disk cache: on real disks, with processes that are killed, disks that are full and bytes that
//! flip.

use std::{
    fs,
    io::{BufRead, BufReader},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use sources::{
    BlockSource, ByteStream, Cache, CacheKey, CachePolicy, DiskCache, Faulty, Frame, Local, Memory,
    ObjectStat, Retry, RetryPolicy, SourceError, Version,
    conformance::check,
    faulty::{Rates, Schedule},
};

use crate::servers::sample;

/// An object that is the same in every process, and counts its requests.
struct Fixed {
    bytes: Bytes,
    version: Version,
    reads: Arc<AtomicU64>,
    delay: Duration,
}

impl Fixed {
    fn new(bytes: &[u8]) -> Fixed {
        Fixed {
            bytes: Bytes::copy_from_slice(bytes),
            version: Version::strong("\"v1\""),
            reads: Arc::default(),
            delay: Duration::ZERO,
        }
    }
}

#[sources::async_trait]
impl BlockSource for Fixed {
    fn name(&self) -> &str {
        "fixed:object"
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let (len, version) = (self.bytes.len() as u64, self.version.clone());
        Ok(ObjectStat::new(len, version).with_part_bytes(1 << 20))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.reads.fetch_add(1, Relaxed);
        if *version != self.version {
            return Err(SourceError::Changed {
                object: self.name().to_owned(),
                expected: version.to_string(),
                found: self.version.to_string(),
            });
        }
        if range.start >= range.end || range.end > self.bytes.len() as u64 {
            return Err(SourceError::bad_range(self.name(), range, self.bytes.len() as u64));
        }
        tokio::time::sleep(self.delay).await;
        let mut rest = self.bytes.slice(range.start as usize..range.end as usize);
        // Odd chunks: blocks begin and end anywhere in them.
        let chunks = std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(50_021))))
        });
        Ok(Box::pin(stream::iter(chunks)))
    }
}

/// Bounds that fit on any disk that tests run on.
fn policy() -> CachePolicy {
    CachePolicy { bytes_max: Some(256 << 20), free_bytes_min: 0, ..CachePolicy::default() }
}

fn open(folder: &Path) -> Cache {
    Cache::open(folder.join("cache"), policy()).expect("a cache")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

async fn read(source: &impl BlockSource, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
    let version = source.stat().await?.version;
    let body = source.read(&version, range).await?;
    let chunks: Vec<Bytes> = body.try_collect().await?;
    Ok(chunks.concat())
}

async fn read_all(source: &impl BlockSource) -> Vec<u8> {
    let len = source.stat().await.expect("stat").len;
    read(source, 0..len).await.expect("read")
}

/// What the directory takes on disk, as `du` counts it.
fn du(path: &Path) -> u64 {
    let found = fs::symlink_metadata(path).expect("metadata");
    let mut bytes = found.blocks() * 512;
    if found.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            bytes += du(&entry.expect("an entry").path());
        }
    }
    bytes
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for object in fs::read_dir(folder.join("cache/objects")).expect("objects") {
        for file in fs::read_dir(object.expect("an object").path()).expect("segments") {
            let path = file.expect("a file").path();
            if path.extension().is_some_and(|extension| extension == "seg") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_cold_warm_encrypted_and_in_small_blocks() {
    let bytes = sample(3_000_001);
    let folder = folder();
    let key = CachePolicy { key: Some(CacheKey::new([3; 32])), ..policy() };
    let small = CachePolicy { block_bytes: 4096, ..policy() };
    for (what, policy) in [("plain", policy()), ("encrypted", key), ("small blocks", small)] {
        let place = folder.path().join(what);
        for state in ["cold", "warm"] {
            let cache = Cache::open(&place, policy.clone()).expect("a cache");
            let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
            check(source, &bytes).await.unwrap_or_else(|wrong| panic!("{what}, {state}: {wrong}"));
            let count = cache.count();
            assert!(count.hit_blocks > 0, "{what}, {state}: {count:?}");
            assert_eq!(count.skipped_blocks + count.damaged_blocks, 0, "{what}, {state}");
            if state == "warm" {
                assert_eq!(count.missed_blocks, 0, "{what}: {count:?}");
            }
            // The last blocks are behind their readers.
            cache.flush().await.expect("flushed");
            let verified = cache.verify(false, |_, _| {}).expect("verify");
            assert!(
                verified.damaged.is_empty() && verified.good_bytes >= 3_000_001,
                "{verified:?}"
            );
        }
    }
    // Nothing of the bytes, nor the name, lies there in plain.
    for file in walk(&folder.path().join("encrypted")) {
        let found = fs::read(&file).expect("a file");
        for plain in [&bytes[..32], b"fixed:object"] {
            assert!(!found.windows(plain.len()).any(|part| part == plain), "{}", file.display());
        }
    }
    let stranger = Cache::open(folder.path().join("encrypted"), self::policy()).expect("a cache");
    let listed = stranger.list().expect("list");
    assert_eq!((listed[0].name.as_deref(), listed[0].len), (None, 3_000_001));
    assert_eq!(listed[0].key_id.as_deref(), Some(CacheKey::new([3; 32]).id().as_str()));
}

fn walk(path: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_around_faults() {
    let bytes = sample(1_000_001);
    let rates = Rates {
        fail: 0.1,
        truncate: 0.1,
        broken: 0.1,
        delay: 0.2,
        delay_max: Duration::from_millis(2),
        ..Rates::default()
    };
    for seed in 0..3 {
        let folder = folder();
        let cache = open(folder.path());
        let faulty = Faulty::new(Fixed::new(&bytes), Schedule::seeded(seed, rates));
        let policy = RetryPolicy {
            attempts_max: 50,
            backoff_min: Duration::from_micros(10),
            throttle_min: Duration::from_micros(10),
            ..RetryPolicy::default()
        };
        let source = DiskCache::new(Retry::with(faulty, policy), cache);
        check(source, &bytes).await.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        // Without Retry errors come out, and only right bytes stay.
        let cache = Cache::open(folder.path().join("bare"), self::policy()).expect("a cache");
        let faulty = Faulty::new(Fixed::new(&bytes), Schedule::seeded(seed + 100, rates));
        let source = DiskCache::new(faulty, cache);
        let mut failures = 0;
        for start in (0..1_000_001u64).step_by(37_000).cycle().take(200) {
            let range = start..(start + 50_000).min(1_000_001);
            match read(&source, range.clone()).await {
                Ok(got) => assert!(got == bytes[range.start as usize..range.end as usize]),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    failures += 1;
                }
            }
        }
        assert!(failures > 0, "seed {seed}");
        // Until they are written, blocks come from memory.
        source.cache().flush().await.expect("flushed");
        while read(&source, 0..1000).await.is_err() {}
        assert!(source.cache().count().hit_blocks > 0, "{:?}", source.cache().count());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_what_was_read() {
    let bytes = sample(5_000_000);
    let folder = folder();
    {
        let source = DiskCache::new(Fixed::new(&bytes), open(folder.path()));
        assert!(read_all(&source).await == bytes);
    }
    let fixed = Fixed::new(&bytes);
    let reads = fixed.reads.clone();
    let source = DiskCache::new(fixed, open(folder.path()));
    assert!(read_all(&source).await == bytes);
    assert_eq!(reads.load(Relaxed), 0, "dropping the first one wrote everything");
    let frame = Frame::with_capacity(100_000);
    let version = source.stat().await.expect("stat").version;
    let frame = source.read_into(&version, 1_000_000..1_100_000, frame).await.expect("read");
    assert!(*frame.filled() == bytes[1_000_000..1_100_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_make_one_request() {
    let bytes = sample(4_000_000);
    let folder = folder();
    let mut fixed = Fixed::new(&bytes);
    fixed.delay = Duration::from_millis(50);
    let reads = fixed.reads.clone();
    let fixed: Arc<dyn BlockSource> = Arc::new(fixed);
    let cache = open(folder.path());
    // Different sources of the same object, too.
    let readers = (0..16).map(|_| {
        let source = DiskCache::new(fixed.clone(), cache.clone());
        async move { read(&source, 0..4_000_000).await }
    });
    for got in try_join_all(readers).await.expect("reads") {
        assert!(got == bytes);
    }
    assert_eq!(reads.load(Relaxed), 1);
    assert_eq!(cache.count().missed_blocks, 4_000_000u64.div_ceil(65_536));
}

/// What lies on the disk is not asked for at the source because the runtime is shut down, as it is
/// when a program ends that reads ahead.
#[test]
fn a_runtime_that_stops_asks_for_nothing() {
    let folder = folder();
    let (bytes, cache) = (sample(3_000_000), open(folder.path()));
    let source = Arc::new(DiskCache::new(Fixed::new(&bytes), cache));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    assert!(runtime.block_on(read_all(&source)) == bytes);
    runtime.block_on(source.cache().flush()).expect("flushed");
    let missed = source.cache().count().missed_blocks;
    let handle = runtime.handle().clone();
    runtime.shutdown_background();
    let (told, end) = std::sync::mpsc::channel();
    let late = source.clone();
    std::thread::spawn(move || {
        let version = Version::strong("\"v1\"");
        let read = handle.block_on(late.read(&version, 70_000..140_000));
        let _ = told.send(read.map(drop));
    });
    let error = end.recv_timeout(Duration::from_secs(30)).expect("an end").expect_err("no runtime");
    assert!(error.to_string().contains("runtime stopped"), "{error}");
    assert_eq!(source.cache().count().missed_blocks, missed);
}

/// A request belongs to the runtime of the reader that began it, which may be driven no more.
#[test]
fn a_request_that_nobody_drives_is_not_waited_for() {
    use tokio::{runtime::Builder, time::timeout};
    let folder = folder();
    let (bytes, cache) = (sample(300_000), open(folder.path()));
    let stopped = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let never = Fixed { delay: Duration::from_secs(100_000), ..Fixed::new(&bytes) };
    let reads = never.reads.clone();
    let source = DiskCache::new(never, cache.clone());
    stopped.block_on(async {
        tokio::select! {
            _ = read(&source, 0..300_000) => panic!("it is never answered"),
            () = async { while reads.load(Relaxed) == 0 { tokio::task::yield_now().await } } => {}
        }
    });
    let other = Builder::new_current_thread().enable_all().start_paused(true).build();
    let other = other.expect("a runtime");
    let source = DiskCache::new(Fixed::new(&bytes), cache);
    // Of a clock that goes on when nothing else does.
    let got = other
        .block_on(async { timeout(Duration::from_secs(120), read(&source, 1000..200_000)).await });
    assert!(got.expect("in time").expect("bytes") == bytes[1000..200_000]);
    drop(stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_nobody_up() {
    let bytes = sample(32 << 20);
    let folder = folder();
    let source = DiskCache::new(Fixed::new(&bytes), open(folder.path()));
    let version = source.stat().await.expect("stat").version;
    let mut slow = source.read(&version, 0..32 << 20).await.expect("read");
    let first = slow.next().await.expect("a chunk").expect("bytes");
    let all = tokio::time::timeout(Duration::from_secs(20), read_all(&source)).await;
    assert!(all.expect("in time") == bytes);
    let rest: Vec<Bytes> = slow.try_collect().await.expect("the rest");
    assert!([vec![first], rest].concat().concat() == bytes, "the slow one gets everything, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stays_below_its_bound_and_keeps_what_is_asked_for_again() {
    let bytes = sample(96 << 20);
    let folder = folder();
    let bound = 24 << 20;
    let policy = CachePolicy { bytes_max: Some(bound), ..policy() };
    let cache = Cache::open(folder.path().join("cache"), policy.clone()).expect("a cache");
    let fixed = Fixed::new(&bytes);
    let reads = fixed.reads.clone();
    let source = DiskCache::new(fixed, cache.clone());
    let hot = 0..4u64 << 20;
    for _ in 0..3 {
        read(&source, hot.clone()).await.expect("read");
        cache.flush().await.expect("flushed");
    }
    for start in (4..96u64).step_by(2) {
        let range = start << 20..(start + 2) << 20;
        let got = read(&source, range.clone()).await.expect("read");
        assert!(got == bytes[range.start as usize..range.end as usize]);
        cache.flush().await.expect("flushed");
        let taken = du(&folder.path().join("cache"));
        assert!(taken <= bound + (64 << 10), "{taken} bytes after {start} MiB");
    }
    assert!(cache.count().evicted_bytes > 64 << 20, "{:?}", cache.count());
    let before = reads.load(Relaxed);
    assert!(read(&source, hot.clone()).await.expect("read") == bytes[..4 << 20]);
    assert_eq!(reads.load(Relaxed), before, "the scan pushed out what was asked for again");
    assert!(du(&folder.path().join("cache")) > bound / 2, "and it is used");
    // Random single blocks: holes take no room.
    for n in 0..2000u64 {
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (96 << 20);
        assert_eq!(read(&source, at..at + 1).await.expect("read")[0], bytes[at as usize]);
    }
    cache.flush().await.expect("flushed");
    let taken = du(&folder.path().join("cache"));
    assert!(taken <= bound + (64 << 10), "{taken}");
    assert!(cache.used_bytes().expect("used") <= bound);
}

/// A program that was told nothing neither evicts what another keeps nor takes more than it allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_belongs_to_the_directory() {
    let folder = folder();
    let place = folder.path().join("cache");
    let bound =
        |bytes_max| Cache::open(&place, CachePolicy { bytes_max, ..policy() }).expect("a cache");
    let bytes = sample(40 << 20);
    let fill = async |cache: Cache| {
        read_all(&DiskCache::new(Fixed::new(&bytes), cache.clone())).await;
        cache.flush().await.expect("flushed");
        du(&place)
    };
    let (keeper, guest) = (bound(Some(16 << 20)), bound(None));
    let taken = fill(guest.clone()).await;
    assert!(taken <= (16 << 20) + (128 << 10), "{taken} bytes by one who was told nothing");
    let larger = bound(Some(64 << 20));
    let taken = fill(keeper).await;
    assert!(taken > 40 << 20, "{taken} bytes: whoever says more says it for all");
    assert_eq!((guest.count().evicted_bytes > 0, larger.count().evicted_bytes), (true, 0));
    let again = bound(None);
    assert!(fill(again.clone()).await > 40 << 20 && again.count().evicted_bytes == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bytes_are_fetched_again() {
    let bytes = sample(9_000_000);
    let folder = folder();
    let source = DiskCache::new(Fixed::new(&bytes), open(folder.path()));
    read_all(&source).await;
    source.cache().flush().await.expect("flushed");
    drop(source);
    let files = segments(folder.path());
    assert_eq!(files.len(), 5);
    for (n, path) in files.iter().enumerate() {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("open");
        let len = file.metadata().expect("metadata").len();
        // In the data, in the table, in the header, and a file cut short.
        let at = [1000, len / 2, len - 300, len - 150][n % 4];
        if n == 4 {
            file.set_len(len - 1).expect("cut");
            continue;
        }
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 0x20], at).expect("write");
    }
    let cache = open(folder.path());
    let found = cache.verify(false, |_, _| {}).expect("verify");
    // A flipped entry of the table is no entry: that block is just not there.
    assert!(found.damaged.len() >= 4 && found.removed == 0, "{found:?}");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    assert!(read_all(&source).await == bytes);
    cache.flush().await.expect("flushed");
    let count = cache.count();
    assert!(count.damaged_blocks > 0 && count.missed_blocks > 32, "{count:?}");
    assert!(read_all(&source).await == bytes);
    let found = cache.verify(false, |_, _| {}).expect("verify");
    assert!(found.damaged.is_empty(), "{found:?}");
    // And a person may throw away what is damaged.
    let path = &segments(folder.path())[0];
    let file = fs::OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(b"x", 77).expect("write");
    let found = cache.verify(true, |_, _| {}).expect("verify");
    assert_eq!((found.damaged.len(), found.removed), (1, 1), "{found:?}");
}

/// Whoever announces what is there has it read by nobody: a scan through a block server read the disk
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_and_there_is_not_read() {
    let bytes = sample(9_000_000);
    let folder = folder();
    let fixed = Fixed::new(&bytes);
    let version = fixed.version.clone();
    let source = DiskCache::new(fixed, open(folder.path()));
    // All but a gap in the middle.
    for range in [0..2 << 20, 4 << 20..9_000_000] {
        read(&source, range).await.expect("read");
    }
    source.cache().flush().await.expect("flushed");
    drop(source);
    // A byte that is there flips: whoever reads it finds out.
    let file = fs::OpenOptions::new().read(true).write(true).open(&segments(folder.path())[0]);
    let (file, mut byte) = (file.expect("open"), [0]);
    file.read_exact_at(&mut byte, 1000).expect("read");
    file.write_all_at(&[byte[0] ^ 0x20], 1000).expect("write");
    let (fixed, cache) = (Fixed::new(&bytes), open(folder.path()));
    let reads = fixed.reads.clone();
    let source = DiskCache::new(fixed, cache.clone());
    source.prefetch(&version, 0..9_000_000).await.expect("fetched");
    cache.flush().await.expect("flushed");
    let gap = reads.load(Relaxed);
    assert!(gap > 0 && cache.count().damaged_blocks == 0, "{gap}: {:?}", cache.count());
    source.prefetch(&version, 0..9_000_000).await.expect("nothing to do");
    assert_eq!(reads.load(Relaxed), gap, "all is there");
    assert!(read_all(&source).await == bytes);
    assert_eq!(cache.count().damaged_blocks, 1, "{:?}", cache.count());
    assert_eq!(reads.load(Relaxed), gap + 1, "the block that was damaged, and no other");
}

/// A source whose answers wait, each until it is let go.
struct Held {
    inner: Fixed,
    asked: tokio::sync::mpsc::UnboundedSender<Range<u64>>,
    go: Arc<tokio::sync::Semaphore>,
}

#[sources::async_trait]
impl BlockSource for Held {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.inner.stat().await
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.asked.send(range.clone()).expect("the test");
        self.go.acquire().await.expect("leave").forget();
        self.inner.read(version, range).await
    }
}

/// Whoever announced what somebody had begun to read waited for that first, block by block, before the
/// rest was asked for: a round trip more, and a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_bring_holds_up_no_announcement() {
    let bytes = sample(9_000_000);
    let folder = folder();
    let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
    let go = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Held { inner: Fixed::new(&bytes), asked, go: go.clone() };
    let version = held.inner.version.clone();
    let source = Arc::new(DiskCache::new(held, open(folder.path())));
    let in_time = Duration::from_secs(20);
    let mut next = async || tokio::time::timeout(in_time, asks.recv()).await.ok().flatten();
    let reader = source.clone();
    let first = tokio::spawn(async move { read(&*reader, 1 << 20..2 << 20).await });
    assert_eq!(next().await, Some(1 << 20..2 << 20));
    let announcer = (source.clone(), version.clone());
    let ahead = tokio::spawn(async move { announcer.0.prefetch(&announcer.1, 0..6 << 20).await });
    // Nothing has come yet. They may be asked for in any order.
    let mut both = [next().await, next().await].map(|range| range.expect("another request"));
    both.sort_by_key(|range| range.start);
    assert_eq!(both, [0..1 << 20, 2 << 20..6 << 20], "before what is on its way, and behind it");
    let announced = source.announce(&version, 5 << 20..9_000_000).await.expect("announced");
    assert_eq!(next().await, Some(6 << 20..9_000_000), "it is under way now");
    go.add_permits(4);
    announced.expect("something was missing").arrive().await.expect("bytes");
    ahead.await.expect("a task").expect("bytes");
    assert!(first.await.expect("a task").expect("bytes") == bytes[1 << 20..2 << 20]);
    assert!(source.announce(&version, 0..9_000_000).await.expect("an answer").is_none());
    assert!(read_all(&*source).await == bytes);
    assert!(asks.try_recv().is_err(), "no byte was asked for twice");
}

/// A request for what was announced ends early where others want more of it than anybody has taken: what
/// it did not bring was nobody's, and the announcement said that all had come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_comes_whole_though_others_are_faster() {
    let bytes = sample(12 << 20);
    let folder = folder();
    let fixed = Fixed::new(&bytes);
    let (version, reads) = (fixed.version.clone(), fixed.reads.clone());
    let source = DiskCache::new(fixed, open(folder.path()));
    let announced = source.announce(&version, 0..12 << 20).await.expect("announced");
    let announced = announced.expect("all of it is missing");
    // It waits for its reader by now, and goes on as far as this one wants it to.
    assert!(read(&source, 6 << 20..7 << 20).await.expect("read") == bytes[6 << 20..7 << 20]);
    source.cache().flush().await.expect("flushed");
    announced.arrive().await.expect("bytes");
    source.cache().flush().await.expect("flushed");
    let all = reads.load(Relaxed);
    assert!(read_all(&source).await == bytes);
    assert_eq!(reads.load(Relaxed), all, "nothing was missing any more");
    assert_eq!(source.cache().count().missed_blocks, (12 << 20) / 65_536, "nor fetched twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_object_is_never_mixed() {
    let (first, second) = (sample(3_000_000), vec![9u8; 3_000_000]);
    let folder = folder();
    let memory = Arc::new(Memory::new("changing", first.clone()));
    let source = DiskCache::new(memory.clone(), open(folder.path()));
    let old = source.stat().await.expect("stat").version;
    assert!(read(&source, 0..1_000_000).await.expect("read") == first[..1_000_000]);
    source.cache().flush().await.expect("flushed");
    memory.replace(second.clone());
    let cached = source.read(&old, 0..1_000_000).await.expect("the old version is still here");
    let cached: Vec<Bytes> = cached.try_collect().await.expect("read");
    assert!(cached.concat() == first[..1_000_000]);
    let gone = source.read(&old, 2_000_000..3_000_000).await.map(drop).expect_err("not cached");
    assert!(matches!(gone, SourceError::Changed { .. }), "{gone}");
    assert!(read_all(&source).await == second);
}

#[tokio::test]
async fn weak_versions_are_cached_only_when_told() {
    let folder = folder();
    let path = folder.path().join("object");
    fs::write(&path, sample(200_000)).expect("write");
    let cache = open(folder.path());
    let source = DiskCache::new(Local::new(&path), cache.clone());
    read_all(&source).await;
    cache.flush().await.expect("flushed");
    assert_eq!(cache.list().expect("list"), []);
    let weak = CachePolicy { weak: true, ..policy() };
    let cache = Cache::open(folder.path().join("weak"), weak).expect("a cache");
    let source = DiskCache::new(Local::new(&path), cache.clone());
    assert!(read_all(&source).await == sample(200_000));
    cache.flush().await.expect("flushed");
    let listed = cache.list().expect("list");
    assert_eq!((listed.len(), listed[0].cached_bytes), (1, 200_000));
    assert!(cache.remove(listed[0].name.as_deref().expect("a name")).expect("remove") > 0);
    assert_eq!(cache.list().expect("list"), []);
    assert!(read_all(&source).await == sample(200_000), "and it is fetched again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_room_is_no_cache_and_no_error() {
    let bytes = sample(3_000_000);
    let folder = folder();
    // All of the disk must stay free.
    let policy = CachePolicy { free_bytes_min: u64::MAX / 2, ..policy() };
    let cache = Cache::open(folder.path().join("cache"), policy).expect("a cache");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    for _ in 0..2 {
        assert!(read_all(&source).await == bytes);
        cache.flush().await.expect("flushed");
    }
    let count = cache.count();
    assert_eq!((count.stored_blocks, count.hit_blocks), (0, 0), "{count:?}");
    assert_eq!(count.skipped_blocks, count.missed_blocks, "{count:?}");
    // Nothing is fetched to be placed where nothing stays.
    let version = source.stat().await.expect("stat").version;
    let placed = source.place(&version, 0..1000, 1 << 20).await.expect("no error");
    assert!(placed.is_none() && !source.holds(&version, 0..1000).await);
    assert_eq!(cache.count().missed_blocks, count.missed_blocks);
    let trouble = cache.trouble().expect("it says so");
    assert!(trouble.contains("no room") && trouble.contains("must stay free"), "{trouble}");
    check(source, &bytes).await.expect("it conforms without a disk");
}

/// A file system of its own, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Option<Tmpfs> {
        fs::create_dir_all(path).expect("a folder");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", size, "none"]).arg(path).output();
        match mount {
            Ok(output) if output.status.success() => Some(Tmpfs(path.to_owned())),
            _ => {
                println!("left out: full and read-only disks: mounting a tmpfs needs root");
                None
            }
        }
    }

    /// Waits until nobody has a file of it open for writing: the cache's writer ends after the last
    /// handle is dropped, and a child of another test has our descriptors until it becomes its program.
    fn remount(&self, how: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let done =
                Command::new("mount").args(["-o", how]).arg(&self.0).output().expect("mount");
            let said = String::from_utf8_lossy(&done.stderr);
            match done.status.success() {
                true => return,
                false if said.contains("busy") && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                false => panic!("{how}: {said}"),
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_are_full_or_read_only_are_no_error() {
    let bytes = sample(20 << 20);
    let folder = folder();
    let Some(disk) = Tmpfs::mount(&folder.path().join("disk"), "size=6m") else { return };
    // The bound says 256 MiB, and nothing must stay free: the disk is what ends.
    let cache = Cache::open(disk.0.join("cache"), policy()).expect("a cache");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    for _ in 0..2 {
        assert!(read_all(&source).await == bytes, "on a full disk");
        cache.flush().await.expect("flushed");
    }
    let count = cache.count();
    assert!(count.stored_blocks > 0 && count.evicted_bytes > 0, "older blocks make way: {count:?}");
    let found = cache.verify(false, |_, _| {}).expect("verify");
    assert!(found.damaged.is_empty(), "{found:?}");
    drop((source, cache));
    disk.remount("remount,ro");
    let cache = Cache::open(disk.0.join("cache"), policy()).expect("a cache that can only be read");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    assert!(read_all(&source).await == bytes, "on a read-only disk");
    let count = cache.count();
    assert!(count.hit_blocks > 0 && count.stored_blocks == 0, "{count:?}");
    drop((source, cache));
    // A disk that has bytes and refuses files.
    let disk = Tmpfs::mount(&folder.path().join("no-files"), "size=64m,nr_inodes=12");
    let disk = disk.expect("one could be mounted before");
    let cache = Cache::open(disk.0.join("cache"), policy()).expect("a cache");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    for _ in 0..2 {
        assert!(read_all(&source).await == bytes, "on a disk that refuses");
        cache.flush().await.expect("flushed");
    }
    let count = cache.count();
    assert!(count.stored_blocks > 0 && count.skipped_blocks > 0, "{count:?}");
    drop((source, cache));
    // A directory that vanishes under a cache that is open.
    let cache = Cache::open(folder.path().join("other"), policy()).expect("a cache");
    fs::remove_dir_all(folder.path().join("other")).expect("remove");
    let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
    assert!(read_all(&source).await == bytes, "without its directory");
    cache.flush().await.expect("flushed");
    assert_eq!(cache.count().stored_blocks, 0);
}

#[test]
fn what_is_no_cache_is_refused_and_said() {
    let folder = folder();
    fs::write(folder.path().join("thesis.txt"), "dear to somebody").expect("write");
    let foreign = Cache::open(folder.path(), policy()).expect_err("not empty");
    assert!(foreign.to_string().contains("not empty"), "{foreign}");
    let later = folder.path().join("later");
    fs::create_dir(&later).expect("a folder");
    let text = r#"{"format":2,"block_bytes":65536,"segment_bytes":2097152}"#;
    fs::write(later.join("cache.json"), text).expect("write");
    let later = Cache::open(&later, policy()).expect_err("a later format");
    assert!(later.to_string().contains("format 2"), "{later}");
    for policy in [
        CachePolicy { block_bytes: 5000, ..policy() },
        CachePolicy { block_bytes: 2048, ..policy() },
        CachePolicy { segment_bytes: 1 << 20, ..policy() },
        CachePolicy { bytes_max: Some(1 << 20), ..policy() },
    ] {
        let error = Cache::open(folder.path().join("new"), policy).expect_err("impossible");
        assert!(error.to_string().contains("use"), "{error}");
    }
}

const OBJECT: usize = 24 << 20;

/// What the processes of the tests below do: read the object in an order of their own, for ever or
/// once, and compare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the tests below"]
async fn child() {
    let Ok(place) = std::env::var("DISK_CACHE_CHILD") else { return };
    let forever = std::env::var("DISK_CACHE_FOREVER").is_ok();
    let bytes = sample(OBJECT);
    let policy = CachePolicy { bytes_max: Some(16 << 20), ..policy() };
    let cache = Cache::open(place, policy).expect("a cache");
    let source = DiskCache::new(Fixed::new(&bytes), cache);
    println!("\nready");
    let mut state = u64::from(std::process::id());
    for _ in 0..if forever { u64::MAX } else { 400 } {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = (state >> 20) % (OBJECT as u64 - 300_000);
        let range = start..start + 1 + (state >> 40) % 300_000;
        let got = read(&source, range.clone()).await.expect("read");
        assert!(got == bytes[range.start as usize..range.end as usize], "wrong bytes");
    }
    println!("\ndone");
}

fn spawn(place: &Path, forever: bool) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["disk_cache::child", "--exact", "--ignored", "--nocapture"]);
    command.env("DISK_CACHE_CHILD", place).stdout(Stdio::piped()).stderr(Stdio::inherit());
    if forever {
        command.env("DISK_CACHE_FOREVER", "1");
    }
    let mut child = command.spawn().expect("a process");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    (child, out)
}

fn wait_for(out: &mut impl BufRead, word: &str) -> bool {
    out.lines().map_while(Result::ok).any(|line| line == word)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_is_whole() {
    let folder = folder();
    let place = folder.path().join("cache");
    let bytes = sample(OBJECT);
    for round in 0..12u64 {
        let (mut child, mut out) = spawn(&place, true);
        assert!(wait_for(&mut out, "ready"), "round {round}");
        std::thread::sleep(Duration::from_millis(3 + round * 17 % 97));
        child.kill().expect("kill -9");
        child.wait().expect("it is dead");
        let policy = CachePolicy { bytes_max: Some(16 << 20), ..policy() };
        let cache = Cache::open(&place, policy).expect("a cache");
        let found = cache.verify(false, |_, _| {}).expect("verify");
        assert!(found.damaged.is_empty(), "round {round}: {found:?}");
        assert_eq!(fs::read_dir(place.join("tmp")).expect("tmp").count(), 0, "left behind");
        let source = DiskCache::new(Fixed::new(&bytes), cache.clone());
        assert!(read_all(&source).await == bytes, "round {round}");
        cache.flush().await.expect("flushed");
        assert!(du(&place) <= (16 << 20) + (64 << 10), "round {round}: {}", du(&place));
        assert!(round == 0 || cache.count().hit_blocks > 0, "{:?}", cache.count());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_a_directory() {
    let folder = folder();
    let place = folder.path().join("cache");
    let mut children: Vec<_> = (0..3).map(|_| spawn(&place, false)).collect();
    let (mut victim, mut out) = spawn(&place, true);
    assert!(wait_for(&mut out, "ready"));
    std::thread::sleep(Duration::from_millis(100));
    victim.kill().expect("kill -9");
    victim.wait().expect("it is dead");
    for (child, out) in &mut children {
        assert!(wait_for(out, "done"));
        assert!(child.wait().expect("an end").success());
    }
    let policy = CachePolicy { bytes_max: Some(16 << 20), ..policy() };
    let cache = Cache::open(&place, policy).expect("a cache");
    let found = cache.verify(false, |_, _| {}).expect("verify");
    assert!(found.damaged.is_empty() && found.good_blocks > 0, "{found:?}");
    assert!(du(&place) <= (16 << 20) + (64 << 10), "{}", du(&place));
    assert_eq!(cache.list().expect("list").len(), 1, "one object, whoever read it");
}
