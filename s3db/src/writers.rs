//! Who may write to a collection, where that is not everybody who may write to the log.
//!
//! ```text
//!   create   --put-->   writers/TAG, then the entry of the collection in the catalogue
//!   commit   is the client one of them?                 no: refused, nothing was put
//!   drain    is it one of them whose log this is?       no: quarantine
//! ```
//!
//! The log is one for all collections, so a service that knows names alone cannot tell whose records a commit
//! has. It can tell the client, in s3-log: all objects of its log begin with `log/CLIENT/`. So the services
//! bind somebody to one client (`policy`), and whoever brings records to their pages looks whether that client
//! may write there. What the record itself says of its client is not believed.
//!
//! A message of a queue tells nothing of who sent it, so there the client of the stamp counts: that keeps honest
//! programs honest, and no one else.
//!
//! The list is put once, before the collection is named: nothing was committed there before. It does not change.
//! Databases in which collections can have one are of version 4 (`catalog`): no older program drains their log.
//!
//! A frame of magic `s3dA`, version 1: the number of clients (4), and each (8), rising.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    catalog::Collection,
    cloud::{Get, Put, PutIf},
    error::StoreError,
    frame::{FrameError, Reader, Writer},
    log::Entry,
    names::WRITERS,
    page::PageId,
    retry::Attempts,
    store::Store,
    tag::Tag,
};

const MAGIC: &str = "s3dA";
const VERSION: u8 = 1;
/// Clients that one collection names.
const WRITERS_MAX: usize = 1000;
/// Collections of which a process remembers the writers, and trees of which it remembers that they have none.
const KNOWN_MAX: usize = 10_000;

/// The clients that may write to a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writers(BTreeSet<u64>);

impl Writers {
    pub(crate) fn encode(&self) -> Bytes {
        let mut to = Writer::new(MAGIC, VERSION);
        to.u32(self.0.len() as u32);
        self.0.iter().for_each(|client| to.u64(*client));
        to.finish()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Writers, FrameError> {
        let mut from = Reader::new(bytes, MAGIC, VERSION)?;
        let count = from.u32()? as usize;
        if count == 0 || count > WRITERS_MAX {
            return Err(from.field("1 to 1,000 writers"));
        }
        let mut all = BTreeSet::new();
        for _ in 0..count {
            let client = from.u64()?;
            if all.last().is_some_and(|last| *last >= client) {
                return Err(from.field("writers that do not rise"));
            }
            all.insert(client);
        }
        from.done()?;
        Ok(Writers(all))
    }

    pub(crate) fn of(clients: &[u64]) -> Writers {
        Writers(clients.iter().copied().collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }

    fn has(&self, client: u64) -> bool {
        self.0.contains(&client)
    }
}

/// What one process knows of lists. One that is there stays as it is; that there is none is known for as long
/// as a page is young.
#[derive(Default)]
pub(crate) struct Known(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    /// By collection.
    there: HashMap<Tag, Arc<Writers>>,
    /// Trees whose collection had none, and when that was asked, in microseconds of the monotonic clock. Not
    /// by collection: whoever sends what is not his can do so before the collection is there, for a tree that
    /// never is, and its list would be overlooked. Nobody knows the name of its own tree before.
    none: HashMap<PageId, u64>,
}

fn object(tag: Tag) -> String {
    format!("{WRITERS}{tag}")
}

impl Store {
    /// Creates a collection that these clients alone write to, or finds that it is there with the same ones. See
    /// [`Options::client`](crate::Options) for what a client is, and PROTOCOL.md, 1.13, for who enforces it.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the database was not created for it
    /// ([`Options::has_writers`](crate::Options)), and for no client or more than 1,000;
    /// [`StoreError::Exists`] when the collection is there with other writers, or with none; and as
    /// [`Store::create_collection`].
    pub async fn create_for_writers(
        &self,
        name: &str,
        clients: &[u64],
    ) -> Result<Collection, StoreError> {
        if !self.database().has_writers {
            let what = "this database was not created for collections that name their writers: \
                        make a new one";
            return Err(StoreError::Invalid(what.into()));
        }
        crate::catalog::check_name(name)?;
        let wanted = Writers::of(clients);
        if wanted.0.is_empty() || wanted.0.len() > WRITERS_MAX {
            return Err(StoreError::Invalid("a collection names 1 to 1,000 writers".into()));
        }
        let tag = Tag::of(name, false);
        let others = || Err(StoreError::Exists(format!("collection {name}, with other writers,")));
        match self.read_writers(tag).await? {
            Some(there) if there != wanted => return others(),
            Some(_) => {}
            None => match self.peek_collection(name).await {
                // What was committed there may be of anybody.
                Ok(_) => return others(),
                Err(StoreError::NotFound(_)) => self.put_writers(tag, &wanted).await?,
                Err(error) => return Err(error),
            },
        }
        // Somebody may have been faster.
        match self.read_writers(tag).await? {
            Some(there) if there == wanted => {}
            _ => return others(),
        }
        self.remember(tag, Arc::new(wanted));
        self.create_collection(name).await
    }

    /// The clients that alone may write to a collection; `None`: all may that may write to the log.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn writers(&self, of: &Collection) -> Result<Option<Vec<u64>>, StoreError> {
        let writers = self.writers_of(of.root).await?;
        Ok(writers.map(|writers| writers.iter().collect()))
    }

    /// Whether this client may write to a tree, as far as its collection says.
    pub(crate) async fn may_write(&self, tree: PageId, client: u64) -> Result<bool, StoreError> {
        let writers = self.writers_of(tree).await?;
        Ok(writers.is_none_or(|writers| writers.has(client)))
    }

    /// Parts what was drained of one tree, piece by piece, each with the client whose it is, into what may come
    /// to its page, and what is of clients that may not write there.
    pub(crate) async fn part_by_writers(
        &self,
        tree: PageId,
        pieces: Vec<(u64, Vec<Entry>)>,
    ) -> Result<(Vec<Vec<Entry>>, Vec<Vec<Entry>>), StoreError> {
        let writers = self.writers_of(tree).await?;
        let may_write = |client| writers.as_ref().is_none_or(|writers| writers.has(client));
        let (mut own, mut strange) = (Vec::with_capacity(pieces.len()), Vec::new());
        for (client, piece) in pieces {
            if may_write(client) { own.push(piece) } else { strange.push(piece) }
        }
        Ok((own, strange))
    }

    async fn writers_of(&self, tree: PageId) -> Result<Option<Arc<Writers>>, StoreError> {
        if !self.database().has_writers {
            return Ok(None);
        }
        let tag = Tag::of_page(tree);
        let now_us = self.cloud.clock.monotonic_us();
        let ttl_us = self.settings.ttl.as_micros() as u64;
        {
            let known = self.known();
            if let Some(writers) = known.there.get(&tag) {
                return Ok(Some(writers.clone()));
            }
            if known.none.get(&tree).is_some_and(|at_us| now_us.saturating_sub(*at_us) < ttl_us) {
                return Ok(None);
            }
        }
        let writers = self.read_writers(tag).await?.map(Arc::new);
        match &writers {
            Some(writers) => self.remember(tag, writers.clone()),
            None => {
                let mut known = self.known();
                if known.none.len() >= KNOWN_MAX {
                    known.none.clear();
                }
                // When it was asked for, not when the answer came.
                known.none.insert(tree, now_us);
            }
        }
        Ok(writers)
    }

    /// Whether there is a list for collections of this name.
    pub(crate) async fn has_list_of_writers(&self, name: &str) -> Result<bool, StoreError> {
        if !self.database().has_writers {
            return Ok(false);
        }
        Ok(self.read_writers(Tag::of(name, false)).await?.is_some())
    }

    fn known(&self) -> MutexGuard<'_, Lists> {
        self.writers.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, tag: Tag, writers: Arc<Writers>) {
        let mut known = self.known();
        if known.there.len() >= KNOWN_MAX {
            known.there.clear();
        }
        known.there.insert(tag, writers);
    }

    async fn read_writers(&self, tag: Tag) -> Result<Option<Writers>, StoreError> {
        let object = object(tag);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.get(&object, None).await {
                Ok(Get::Found { bytes, .. }) => {
                    let damaged = |source| StoreError::Damaged { object: object.clone(), source };
                    return Writers::decode(&bytes).map(Some).map_err(damaged);
                }
                Ok(_) => return Ok(None),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// To find it there is no error: somebody else's, perhaps.
    async fn put_writers(&self, tag: Tag, writers: &Writers) -> Result<(), StoreError> {
        let object = object(tag);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.put(&object, writers.encode(), PutIf::Absent).await {
                Put::Stored(_) | Put::Refused => return Ok(()),
                Put::Conflict | Put::Missing => attempts.after_loss(&object).await?,
                Put::Unknown(fault) | Put::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pager::{Budget, policy, pool::Pool};

    use super::*;
    use crate::{
        catalog::{Backend, Isolation},
        cloud::{
            Cloud,
            embedded::{self, Memory},
        },
        commit::{Level, Session},
        log::{Append, Transaction, transaction},
        names::QUARANTINE,
        record::{Key, Payload},
        settings::Settings,
        stamp::Stamp,
    };

    async fn store(cloud: &Cloud) -> Arc<Store> {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        Store::open(cloud.clone(), Settings::default(), &pool).await.unwrap()
    }

    async fn database(backend: Backend) -> (Cloud, Arc<Store>) {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create_with_writers(&cloud, &Settings::default(), backend, 2).await.unwrap();
        let store = store(&cloud).await;
        (cloud, store)
    }

    /// Who may put into the log of client 9 writes what it likes there, in whose name it likes.
    #[tokio::test]
    async fn what_is_of_no_writer_comes_to_no_page() {
        for backend in Backend::ALL {
            let (cloud, store) = database(backend).await;
            let own = store.create_for_writers("own", &[7, 8]).await.unwrap().root;
            let open = store.create_collection("open").await.unwrap().root;
            let other_page = Tag::of_page(own).page(PageId(7));
            let has_names = backend == Backend::S3Log;
            // Whose log, whose stamp, which tree, and whether it counts.
            let cases = [
                (9, 9, own, false),
                // A message says nothing of who sent it.
                (9, 7, own, !has_names),
                (9, 7, other_page, false),
                (9, 9, open, true),
                (7, 7, own, true),
                (8, 8, own, true),
            ];
            let mut logs = BTreeMap::new();
            for client in [7, 8, 9] {
                logs.insert(client, store.log.open(client, 1, 1).await.unwrap());
            }
            let key = |n: usize| Key::new(format!("k{n}")).unwrap();
            for (n, (client, named, tree, _)) in cases.into_iter().enumerate() {
                let (clock, sequence) = (cloud.clock.wall_us() + n as u64, n as u64 + 1);
                let stamp = Stamp { clock, client: named, sequence };
                let payload = Some(Payload::new("mine").unwrap());
                let entries = vec![transaction::primary(tree, tree, stamp, key(n), payload)];
                let one = Transaction { client, epoch: 1, number: sequence, total: 1, entries };
                assert_eq!(logs[&client].append(&one, true).await, Append::Committed);
            }
            for is_swept in [false, true] {
                let reader = Session::reader(self::store(&cloud).await, 5);
                let mut txn = reader.begin(Level::Atomic);
                if is_swept {
                    // An ordered queue gives out some of a group at a time.
                    for _ in 0..3 {
                        store.sweep().await.unwrap();
                    }
                } else {
                    txn.fresh();
                }
                for (n, (client, named, tree, counts)) in cases.into_iter().enumerate() {
                    if tree == other_page {
                        continue;
                    }
                    let seen = reader.read(&txn, tree, &key(n)).await.unwrap().is_some();
                    let what = format!("{backend:?}: {named} in the log of {client}, {is_swept}");
                    assert_eq!(seen, counts, "{what}");
                }
            }
            let aside = store.list(QUARANTINE).await.unwrap();
            let count = aside.iter().filter(|name| name.contains("not-its-writer-")).count();
            assert!(count >= 1, "{backend:?}: {aside:?}");
            assert!(aside.len() >= 2, "{backend:?}: {aside:?}");
        }
    }

    /// That a name had no list yet was remembered for all trees of the name: what somebody sent for a tree that
    /// never was let his records into the collection that was made after it.
    #[tokio::test]
    async fn a_list_that_comes_later_is_not_overlooked() {
        for backend in Backend::ALL {
            let (cloud, keeper) = database(backend).await;
            let appender = keeper.log.open(9, 1, 1).await.unwrap();
            let key = Key::new("k").unwrap();
            let forge = async |number: u64, tree: PageId| {
                let (clock, sequence) = (cloud.clock.wall_us(), number);
                let stamp = Stamp { clock, client: 9, sequence };
                let payload = Some(Payload::new("mine").unwrap());
                let entries = vec![transaction::primary(tree, tree, stamp, key.clone(), payload)];
                let forged = Transaction { client: 9, epoch: 1, number, total: 1, entries };
                assert_eq!(appender.append(&forged, true).await, Append::Committed);
            };
            forge(1, Tag::of("orders", false).page(PageId(7))).await;
            assert_eq!(keeper.sweep().await.unwrap().poison, 1, "{backend:?}");
            let other = store(&cloud).await;
            let orders = other.create_for_writers("orders", &[7]).await.unwrap().root;
            forge(2, orders).await;
            let done = keeper.sweep().await.unwrap();
            assert_eq!((done.poison, done.applied), (1, 0), "{backend:?}: {done:?}");
            let reader = Session::reader(store(&cloud).await, 5);
            let txn = reader.begin(Level::Basic);
            assert_eq!(reader.read(&txn, orders, &key).await.unwrap(), None, "{backend:?}");
        }
    }

    /// A list stays with its name when the collection is dropped, and nobody asks for it who commits by the
    /// sequencer: whoever was none of the writers wrote there.
    #[tokio::test]
    async fn no_isolated_collection_has_a_list() {
        let (_, store) = database(Backend::S3Log).await;
        store.create_for_writers("orders", &[7]).await.unwrap();
        store.drop_collection("orders").await.unwrap();
        let refused = store.create_collection_for("orders", Some(Isolation::Serializable)).await;
        assert!(matches!(refused, Err(StoreError::Exists(_))), "{refused:?}");
        assert!(matches!(store.collection("orders").await, Err(StoreError::NotFound(_))));
        store.create_collection_for("others", Some(Isolation::Serializable)).await.unwrap();
        store.create_for_writers("orders", &[7]).await.unwrap();
    }

    /// Whoever is none of the writers is told so before anything is put.
    #[tokio::test]
    async fn who_may_not_write_is_told_at_once() {
        for backend in Backend::ALL {
            let (cloud, store) = database(backend).await;
            let own = store.create_for_writers("own", &[7]).await.unwrap();
            assert_eq!(store.writers(&own).await.unwrap(), Some(vec![7]));
            let open = store.create_collection("open").await.unwrap();
            assert_eq!(store.writers(&open).await.unwrap(), None);
            for (client, is_writer) in [(7, true), (9, false)] {
                let session = Session::open(self::store(&cloud).await, client).await.unwrap();
                let mut txn = session.begin(Level::Atomic);
                let (key, payload) = (Key::new("k").unwrap(), Payload::new("mine").unwrap());
                txn.put(own.root, &key, payload.clone()).unwrap();
                txn.put(open.root, &key, payload.clone()).unwrap();
                let outcome = session.commit(&mut txn).await;
                match outcome {
                    Err(StoreError::Denied { action: "write", cause, .. }) if !is_writer => {
                        assert_eq!(cause, "client 9 is none of them");
                    }
                    outcome => assert!(outcome.is_ok() && is_writer, "{backend:?}: {outcome:?}"),
                }
                let mut txn = session.begin(Level::Atomic);
                txn.put(open.root, &key, payload).unwrap();
                session.commit(&mut txn).await.unwrap();
            }
        }
    }

    /// A list is there before its collection is, and stays as it is.
    #[tokio::test]
    async fn writers_are_named_once() {
        let (_, store) = database(Backend::S3Log).await;
        let own = store.create_for_writers("own", &[8, 7, 7]).await.unwrap();
        assert_eq!(store.create_for_writers("own", &[7, 8]).await.unwrap().root, own.root);
        assert_eq!(store.create_collection("own").await.unwrap().root, own.root);
        store.create_collection("open").await.unwrap();
        for (name, writers) in [("own", &[7][..]), ("open", &[7])] {
            let refused = store.create_for_writers(name, writers).await;
            assert!(matches!(refused, Err(StoreError::Exists(_))), "{name}: {refused:?}");
        }
        assert_eq!(store.list(WRITERS).await.unwrap().len(), 1);
        for (name, writers) in [("none", vec![]), ("many", (0..1001).collect()), ("a/b", vec![7])] {
            let refused = store.create_for_writers(name, &writers).await;
            assert!(refused.is_err(), "{name}: {refused:?}");
        }
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create(&cloud, &Settings::default(), Backend::S3Log, 2).await.unwrap();
        let before = self::store(&cloud).await;
        let refused = before.create_for_writers("own", &[7]).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
}
