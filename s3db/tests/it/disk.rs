//! The disk tier, on a real disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::{
    Collection, Db, Options, Payload, PoolCounts,
    cloud::{
        CallKind, Cloud, Disk, DiskSpace,
        disk::{Folder, Kept},
    },
};

use crate::{
    mishaps::{key, memory, settings},
    sealed::keys,
};

const RECORDS: usize = 200;

/// Leaves of some records, and copies that are young for long.
fn options(folder: Option<&Path>) -> Options {
    let mut settings = settings();
    (settings.leaf_bytes_max, settings.inner_bytes_max) = (900, 900);
    settings.ttl = Duration::from_secs(1000);
    let disk = folder.map(|path| DiskSpace::folder(path, 16 << 20).unwrap());
    Options { settings, disk, has_worker: false, budget_bytes: 1 << 20, ..Options::default() }
}

async fn fill(cloud: &Cloud, options: &Options, value: &str) -> Collection {
    fill_with(cloud, options, value, 100).await
}

/// Payloads of so many bytes.
async fn fill_with(cloud: &Cloud, options: &Options, value: &str, bytes: usize) -> Collection {
    let db = Db::over(cloud.clone(), options).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    let mut txn = db.begin();
    for n in 0..RECORDS {
        let payload = Payload::new(format!("{value}{}", "x".repeat(bytes))).unwrap();
        txn.put(&things, &key(&format!("{n:05}")), payload).unwrap();
    }
    txn.commit().await.unwrap();
    db.close().await.unwrap();
    things
}

/// Reads everything, as a process that has just started. Its gets, and the bytes that came.
async fn read(cloud: &Cloud, options: &Options, value: &str) -> (PoolCounts, u64, u64) {
    let db = Db::over(cloud.clone(), options).await.unwrap();
    read_of(&db, value).await;
    let gets = db.ledger().charge(CallKind::Get);
    (db.pool_counts(), gets.calls, gets.bytes_in)
}

async fn read_of(db: &Db, value: &str) {
    let things = db.collection("things").await.unwrap();
    let txn = db.begin();
    let mut records = txn.scan(&things);
    for n in 0..RECORDS {
        let record = records.next().await.unwrap().expect("there are so many");
        assert_eq!(record.key, key(&format!("{n:05}")));
        assert!(record.payload.to_string().starts_with(value), "{record:?}");
    }
    assert!(records.next().await.unwrap().is_none());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.collect();
    files.sort();
    files
}

async fn create(cloud: &Cloud, options: &Options) {
    let made = s3db::Store::create(cloud, &options.settings, options.backend, options.shards);
    made.await.unwrap();
}

/// What one process has written, the next one asks about, and gets without its bytes.
#[tokio::test]
async fn pages_survive_their_process() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let options = options(Some(folder.path()));
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    let (counts, gets, bytes) = read(&cloud, &options, "one").await;
    assert!(counts.disk_confirmed > 20 && counts.disk_damaged == 0, "{counts:?}");
    assert_eq!((counts.fetched, counts.disk_misses), (0, 0), "{counts:?}");
    // Database and collection.
    assert!(gets > counts.disk_confirmed && bytes < 1000, "{gets} {bytes}");

    // Others change everything meanwhile: what is there is asked about, not believed.
    fill(&cloud, &self::options(None), "two").await;
    let (counts, ..) = read(&cloud, &options, "two").await;
    assert!(counts.fetched > 20, "{counts:?}");
    let (counts, ..) = read(&cloud, &options, "two").await;
    assert_eq!(counts.fetched, 0, "{counts:?}");
}

/// Memory lets go of a page that is young: it comes back from the disk, and nobody is asked.
#[tokio::test]
async fn a_young_page_comes_back_without_a_request() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    // Versions of all pages are known, and not all pages are there.
    let mut options = Options { budget_bytes: 640 << 10, ..options(Some(folder.path())) };
    (options.settings.leaf_bytes_max, options.settings.inner_bytes_max) = (16_000, 16_000);
    create(&cloud, &options).await;
    fill_with(&cloud, &options, "one", 4000).await;
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    read_of(&db, "one").await;
    let before = db.ledger().charge(CallKind::Get).calls;
    read_of(&db, "one").await;
    let (counts, gets) = (db.pool_counts(), db.ledger().charge(CallKind::Get).calls - before);
    assert!(counts.evicted > 20 && counts.disk_hits > 10, "{counts:?}");
    assert!(counts.disk_hits > 2 * gets, "{gets}: {counts:?}");
    assert!(counts.budget_peak <= 640 << 10, "{counts:?}");
}

/// Whatever happens to a file, it is a miss, it is gone, and no error.
#[tokio::test]
async fn a_file_that_is_not_what_it_should_be_is_a_miss() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let options = options(Some(folder.path()));
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    // The root's is read first: where it is damaged the others are all the same.
    let (whole, ..) = read(&cloud, &options, "one").await;
    let there = files(folder.path());
    let copies: Vec<Vec<u8>> = there.iter().map(|path| fs::read(path).unwrap()).collect();
    type Damage = fn(&[u8], &[u8]) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("empty", |_, _| Vec::new()),
        ("cut off", |bytes, _| bytes[..bytes.len() / 2].to_vec()),
        ("a bit flipped", |bytes, _| {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("another page", |_, other| other.to_vec()),
        ("longer", |bytes, other| [bytes, other].concat()),
    ];
    for (what, damage) in damages {
        for (at, path) in there.iter().enumerate() {
            let other = &copies[(at + 1) % copies.len()];
            fs::write(path, damage(&copies[at], other)).unwrap();
        }
        let (counts, ..) = read(&cloud, &options, "one").await;
        assert_eq!(counts.disk_confirmed, 0, "{what}: {counts:?}");
        assert_eq!(counts.disk_damaged, whole.disk_confirmed, "{what}: {counts:?}");
        assert_eq!((counts.fetched, counts.disk_off), (counts.disk_damaged, 0), "{what}");
        let (counts, ..) = read(&cloud, &options, "one").await;
        assert_eq!(counts.disk_confirmed, whole.disk_confirmed, "{what}: written again");
    }
}

/// What lies on the disk is what lies in the object store: sealed. Of another database it is a miss.
#[tokio::test]
async fn a_disk_tells_no_more_than_the_object_store() {
    let folder = tempfile::tempdir().unwrap();
    let sealed = Options { keys: Some(keys(&[1])), ..options(Some(folder.path())) };
    let cloud = memory();
    s3db::Store::create_encrypted(&cloud, &sealed.settings, sealed.backend, 1).await.unwrap();
    fill(&cloud, &sealed, "secret").await;
    for path in files(folder.path()) {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret"), "{}", path.display());
    }
    let (counts, ..) = read(&cloud, &sealed, "secret").await;
    assert!(counts.disk_confirmed > 20 && counts.fetched == 0, "{counts:?}");

    // Under the names of another one's pages.
    let other = memory();
    let names = tempfile::tempdir().unwrap();
    let mut plain = options(Some(names.path()));
    create(&other, &plain).await;
    fill(&other, &plain, "public").await;
    let from = files(folder.path());
    for (to, from) in files(names.path()).iter().zip(from.iter().cycle()) {
        fs::copy(from, to).unwrap();
    }
    let (counts, ..) = read(&other, &plain, "public").await;
    assert!(counts.disk_confirmed == 0 && counts.disk_damaged > 20, "{counts:?}");
    // Two databases share one folder, and neither is in the other's way.
    plain.disk = sealed.disk.clone();
    for _ in 0..2 {
        read(&other, &plain, "public").await;
        read(&cloud, &sealed, "secret").await;
    }
    let (counts, ..) = read(&other, &plain, "public").await;
    assert!(counts.disk_damaged == 0 && counts.fetched == 0, "{counts:?}");
}

/// However much is read, by two at once, it holds no more than it may.
#[tokio::test]
async fn a_disk_is_bounded() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let mut options = options(None);
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    // Some sixteen files, of more than twice that many: each takes a block.
    let bytes = 64 << 10;
    options.disk = Some(DiskSpace::folder(folder.path(), bytes).unwrap());
    for _ in 0..3 {
        let dbs = [0, 1].map(|_| Db::over(cloud.clone(), &options));
        let [one, other] = dbs;
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        tokio::join!(read_of(&one, "one"), read_of(&other, "one"));
        let total: u64 = files(folder.path())
            .iter()
            .map(|path| fs::metadata(path).unwrap().len().next_multiple_of(4096))
            .sum();
        assert!(total > 4096 && total <= bytes, "{total}");
        assert!(one.pool_counts().disk_removed + other.pool_counts().disk_removed > 0);
    }
}

/// A disk that fails as it is told.
struct Failing {
    beneath: Folder,
    /// Writes fail, as those of one that is full.
    is_full: bool,
    /// The next list is never answered.
    hangs: AtomicBool,
    /// No read and no write is ever answered.
    is_dead: AtomicBool,
}

impl Failing {
    async fn answers(&self) {
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Disk for Failing {
    async fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        self.answers().await;
        self.beneath.read(name, bytes_max).await
    }

    async fn write(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.answers().await;
        match self.is_full {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => self.beneath.write(name, bytes).await,
        }
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.beneath.remove(name).await
    }

    async fn list(&self) -> io::Result<Vec<Kept>> {
        if self.hangs.swap(false, Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.beneath.list().await
    }
}

fn failing(folder: &Path, bytes: u64, is_full: bool, hangs: bool) -> DiskSpace {
    let beneath = Folder::open(folder).unwrap();
    let (hangs, is_dead) = (AtomicBool::new(hangs), AtomicBool::new(false));
    DiskSpace { disk: Arc::new(Failing { beneath, is_full, hangs, is_dead }), bytes }
}

/// One that does not answer any more, as a network's or one that dies: who reads and who writes waits for it
/// for some seconds in all, and never again.
#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_left_alone() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let mut options = options(None);
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    let beneath = Folder::open(folder.path()).unwrap();
    let (hangs, is_dead) = (AtomicBool::new(false), AtomicBool::new(true));
    let disk = Arc::new(Failing { beneath, is_full: false, hangs, is_dead });
    options.disk = Some(DiskSpace { disk, bytes: 1 << 20 });
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    let began = tokio::time::Instant::now();
    read_of(&db, "one").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(db.pool_counts().disk_off, 1);
    let began = tokio::time::Instant::now();
    fill(&cloud, &options, "two").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Pages of a bucket that others of this machine may not read; and a client without the key of one leaves
/// its file to those who have it.
#[tokio::test]
async fn a_file_is_for_those_who_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let path = folder.path().join("pages");
    let of = |ids: &[u8]| Options { keys: Some(keys(ids)), ..options(Some(&path)) };
    let first = of(&[1]);
    s3db::Store::create_encrypted(&cloud, &first.settings, first.backend, 1).await.unwrap();
    fill(&cloud, &first, "one").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let there = files(&path);
    assert!(there.len() > 20 && there.iter().all(|path| mode(path) == 0o600));
    // Those of the old key stay there, though the object store has them under the new one.
    let aside = tempfile::tempdir().unwrap();
    for path in &there {
        fs::copy(path, aside.path().join(path.file_name().unwrap())).unwrap();
    }
    let both = Options { disk: None, ..of(&[2, 1]) };
    let db = Db::over(cloud.clone(), &both).await.unwrap();
    db.store().rekey(|_| {}).await.unwrap();
    let of_aside =
        |ids: &[u8]| Options { disk: Some(DiskSpace::folder(aside.path(), 0).unwrap()), ..of(ids) };
    // So little space that nothing is written over them.
    let (counts, ..) = read(&cloud, &of_aside(&[2]), "one").await;
    assert_eq!((counts.disk_damaged, counts.disk_off), (0, 0), "{counts:?}");
    assert_eq!(files(aside.path()).len(), there.len(), "they are left to others");
}

/// One that can be read and listed, and is full: it was asked to take each page for ever.
#[tokio::test]
async fn a_disk_that_is_full_is_left_alone() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let mut options = options(None);
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    options.disk = Some(failing(folder.path(), 1 << 20, true, false));
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    read_of(&db, "one").await;
    assert_eq!(db.pool_counts().disk_off, 1);
    assert!(db.store().disk_failure().is_some());
}

/// Who looks at what is there may never come back, as a scan that reads ahead and is left alone: nobody waits
/// for that, and what is there is bounded nevertheless.
#[tokio::test]
async fn a_look_that_never_ends_is_in_nobodys_way() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let mut options = options(None);
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    let bytes = 64 << 10;
    options.disk = Some(failing(folder.path(), bytes, false, true));
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    let things = db.collection("things").await.unwrap();
    let txn = db.begin();
    let mut rests = txn.scan(&things);
    let _ = tokio::time::timeout(Duration::from_millis(100), rests.next()).await;
    read_of(&db, "one").await;
    let total: u64 = files(folder.path())
        .iter()
        .map(|path| fs::metadata(path).unwrap().len().next_multiple_of(4096))
        .sum();
    assert!(total > 4096 && total <= bytes, "{total}");
    assert_eq!(db.pool_counts().disk_off, 0);
}

/// Nothing depends on it: one that fails is left alone, and says why.
#[tokio::test]
async fn a_disk_that_fails_is_left_alone() {
    let (cloud, folder) = (memory(), tempfile::tempdir().unwrap());
    let path = folder.path().join("a file");
    fs::write(&path, "no folder").unwrap();
    let options = options(Some(&path));
    create(&cloud, &options).await;
    fill(&cloud, &options, "one").await;
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    read_of(&db, "one").await;
    let counts = db.pool_counts();
    assert_eq!((counts.disk_off, counts.disk_confirmed, counts.disk_written), (1, 0, 0));
    assert!(db.store().disk_failure().is_some_and(|why| why.to_lowercase().contains("not a dir")));
    assert_eq!(fs::read(&path).unwrap(), b"no folder");
}
