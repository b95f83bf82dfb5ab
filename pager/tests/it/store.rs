//! An object that is replaced through a sink, and whatever a test wants to happen meanwhile.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use pager::{
    BlockSink, BlockSource, ByteStream, Bytes, Hint, ObjectStat, RegionMut, SinkError, SourceError,
    Version, Writing, async_trait,
};
use tokio::sync::Semaphore;

use crate::support::{bytes_of, until};

/// An object with versions of its own, and whatever a test wants to happen to it.
#[derive(Clone)]
pub(crate) struct Store(pub(crate) Arc<Shelf>);

pub(crate) struct Shelf {
    pub(crate) object: Mutex<(Vec<u8>, u64)>,
    /// How long a read takes until it is answered.
    pub(crate) delay: Mutex<Duration>,
    /// Where a request stops, and is counted, until it is given a permit.
    pub(crate) read: Stop,
    /// Within a body, when half of it was sent.
    pub(crate) body: Stop,
    pub(crate) begin: Stop,
    pub(crate) write: Stop,
    pub(crate) commit: Stop,
    /// After the object was replaced, before that is told.
    pub(crate) committed: Stop,
    /// What happens to the next writes and commits.
    pub(crate) writes: Mutex<VecDeque<Fate>>,
    pub(crate) commits: Mutex<VecDeque<Fate>>,
    /// Before what was written is taken away.
    pub(crate) abort: Stop,
    pub(crate) aborts: Mutex<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Goes,
    Fails,
    Panics,
    /// It happens, or not, and nobody hears.
    Lost {
        happens: bool,
    },
}

#[derive(Default)]
pub(crate) struct Stop {
    gate: Mutex<Option<Arc<Semaphore>>>,
    waiting: Mutex<u32>,
}

/// One who waits, also where that is given up.
struct Waits<'a>(&'a Mutex<u32>);

impl Waits<'_> {
    fn new(waiting: &Mutex<u32>) -> Waits<'_> {
        *waiting.lock().unwrap() += 1;
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap() -= 1;
    }
}

impl Stop {
    /// Whoever comes waits until the permits that this returns are given.
    pub(crate) fn close(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    pub(crate) fn open(&self) {
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.close();
        }
    }

    async fn pass(&self) {
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            let _waits = Waits::new(&self.waiting);
            let _ = gate.acquire().await.map(|permit| permit.forget());
        }
    }

    pub(crate) fn until_reached(&self, what: &str) {
        until(what, || *self.waiting.lock().unwrap() > 0);
    }
}

impl Store {
    pub(crate) fn new(bytes: Vec<u8>) -> Store {
        Store(Arc::new(Shelf {
            object: Mutex::new((bytes, 1)),
            delay: Mutex::default(),
            read: Stop::default(),
            body: Stop::default(),
            begin: Stop::default(),
            write: Stop::default(),
            commit: Stop::default(),
            committed: Stop::default(),
            writes: Mutex::default(),
            commits: Mutex::default(),
            abort: Stop::default(),
            aborts: Mutex::default(),
        }))
    }

    pub(crate) fn known(len: u64) -> Store {
        Store::new(bytes_of(0..len))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.object.lock().unwrap().0.clone()
    }

    fn at(&self, number: u64) -> Version {
        Version::strong(format!("v{number}"))
    }

    pub(crate) fn now(&self) -> Version {
        self.at(self.0.object.lock().unwrap().1)
    }

    /// Somebody else replaces it.
    pub(crate) fn replace(&self, bytes: Vec<u8>) {
        let mut object = self.0.object.lock().unwrap();
        *object = (bytes, object.1 + 1);
    }

    fn changed(&self, expected: &Version) -> SourceError {
        SourceError::Changed {
            object: "test://store".to_owned(),
            expected: expected.to_string(),
            found: self.now().to_string(),
        }
    }

    fn bytes_at(&self, version: &Version, range: Range<u64>) -> Result<Bytes, SourceError> {
        if self.now() != *version {
            return Err(self.changed(version));
        }
        let (bytes, _) = &*self.0.object.lock().unwrap();
        Ok(Bytes::copy_from_slice(&bytes[range.start as usize..range.end as usize]))
    }
}

fn broken() -> SourceError {
    SourceError::Transient {
        object: "test://store".to_owned(),
        what: "write",
        range: None,
        attempts: 1,
        reason: "the test asked for it".to_owned(),
        cause: None,
    }
}

#[async_trait]
impl BlockSource for Store {
    fn name(&self) -> &str {
        "test://store"
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(ObjectStat::new(self.bytes().len() as u64, self.now()))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let delay = *self.0.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.0.read.pass().await;
        // Half by half, each as it is then: a body may be cut off by another version.
        let middle = range.start + (range.end - range.start) / 2;
        let first = self.bytes_at(version, range.start..middle)?;
        let (store, version) = (self.clone(), version.clone());
        let second = async move {
            store.0.body.pass().await;
            store.bytes_at(&version, middle..range.end)
        };
        let first = futures::stream::once(async { Ok(first) });
        Ok(first.chain(futures::stream::once(second)).boxed())
    }
}

struct NewVersion {
    store: Store,
    base: Version,
    bytes: Vec<u8>,
    upto: u64,
    /// A write has failed.
    torn: bool,
    happened: Option<Version>,
}

#[async_trait]
impl BlockSink for Store {
    fn name(&self) -> &str {
        "test://store"
    }

    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
        self.0.begin.pass().await;
        let bytes = self.bytes();
        assert_eq!(bytes.len() as u64, len);
        let (store, base) = (self.clone(), base.clone());
        Ok(Box::new(NewVersion { store, base, bytes, upto: 0, torn: false, happened: None }))
    }
}

impl NewVersion {
    fn happen(&mut self) -> Result<Version, SinkError> {
        let mut object = self.store.0.object.lock().unwrap();
        if self.store.at(object.1) != self.base {
            let found = self.store.at(object.1).to_string();
            let (object, expected) = ("test://store".to_owned(), self.base.to_string());
            return Err(SinkError::Conflict { object, expected, found });
        }
        *object = (self.bytes.clone(), object.1 + 1);
        let version = self.store.at(object.1);
        self.happened = Some(version.clone());
        Ok(version)
    }
}

#[async_trait]
impl Writing for NewVersion {
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        assert!(offset >= self.upto && !bytes.is_empty(), "upwards");
        self.store.0.write.pass().await;
        let fate = self.store.0.writes.lock().unwrap().pop_front().unwrap_or(Fate::Goes);
        self.torn |= fate != Fate::Goes;
        match fate {
            Fate::Goes => {}
            Fate::Panics => panic!("the test asked for it"),
            Fate::Lost { .. } => {
                let (object, reason) = ("test://store".to_owned(), "no answer".to_owned());
                return Err(SinkError::Unsettled { object, reason, cause: None });
            }
            Fate::Fails => return Err(broken().into()),
        }
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        self.upto = offset + bytes.len() as u64;
        Ok(())
    }

    async fn commit(&mut self) -> Result<Version, SinkError> {
        assert!(!self.torn, "what is not whole is not committed");
        self.store.0.commit.pass().await;
        let fate = self.store.0.commits.lock().unwrap().pop_front().unwrap_or(Fate::Goes);
        let outcome = match (fate, &self.happened) {
            (Fate::Goes, Some(version)) => Ok(version.clone()),
            (Fate::Goes, None) => self.happen(),
            (Fate::Fails, _) => Err(broken().into()),
            (Fate::Panics, _) => panic!("the test asked for it"),
            (Fate::Lost { happens }, happened) => {
                if happens && happened.is_none() {
                    let _ = self.happen();
                }
                let (object, reason) = ("test://store".to_owned(), "no answer".to_owned());
                Err(SinkError::Unsettled { object, reason, cause: None })
            }
        };
        self.store.0.committed.pass().await;
        outcome
    }

    async fn abort(self: Box<Self>) {
        self.store.0.abort.pass().await;
        *self.store.0.aborts.lock().unwrap() += 1;
    }
}

/// All bytes of `region`, read through it.
pub(crate) fn all(region: &RegionMut) -> Vec<u8> {
    let mut bytes = vec![0; region.len() as usize];
    region.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Gives up what is not pinned, so that it is fetched again.
pub(crate) fn give_up(region: &RegionMut) {
    region.advise(Hint::DontNeed(0..region.len())).unwrap();
}
