//! Curated collections (paper, section 10): changes wait until a curator approves them.
//!
//! ```text
//!   commit  --put-->  proposal/TAG/HASH    what a client proposes; nobody sees it yet
//!   approve --put-->  approved/TAG/HASH    the same bytes, where curators alone may put
//!           --delete  proposal/TAG/HASH
//!           --apply-> pages, then delete approved/TAG/HASH
//!   reject  --delete  proposal/TAG/HASH
//! ```
//!
//! HASH is SHA-256 of the bytes. So who approves a hash approves what was shown under it, whatever lies at
//! that name by then; both objects are put with `If-None-Match`, and what does not have its name's hash is
//! nothing.
//!
//! The records keep the stamps that they were proposed with. So to approve twice, by two curators at once or
//! after a crash anywhere between the steps, is to approve once (H1). What is approved counts from when it
//! was proposed: over what was there then, not over what was proposed later and approved before.
//!
//! Nothing else comes to the pages of a curated collection: a record of one in the log is put into
//! quarantine by whoever drains it. The name of its tree says that it is one (see `tag`).

use std::{collections::BTreeMap, fmt, str::FromStr};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{
    catalog::Collection,
    checkpoint::{self, Checkpointed},
    cloud::{Delete, Fault, Get, Put, PutIf},
    commit::{Committed, Session, Txn, Write},
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{Entry, Poison, Transaction, queues::quarantine, transaction::Body},
    names::{APPROVED, PROPOSALS},
    page::PageId,
    retry::{Attempts, read_surely},
    settings::{Rule, Rules, Settings},
    store::Store,
    tag::Tag,
};

/// Names a proposal by what is in it: SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProposalId([u8; 32]);

impl ProposalId {
    pub(crate) fn of(bytes: &[u8]) -> ProposalId {
        let mut id = [0; 32];
        id.copy_from_slice(&Sha256::digest(bytes)[..]);
        ProposalId(id)
    }
}

impl fmt::Display for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ProposalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// 64 hexadecimal digits, in small letters.
impl FromStr for ProposalId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<ProposalId, StoreError> {
        let mut id = [0; 32];
        for (n, byte) in id.iter_mut().enumerate() {
            let digits = text.get(2 * n..2 * n + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        let id = ProposalId(id);
        match id.to_string() == text {
            true => Ok(id),
            // Written in one way: it is part of an object's name.
            false => Err(StoreError::Invalid(format!(
                "{:?} names no proposal: 64 hexadecimal digits, as s3db pending list shows them",
                text.escape_default().to_string()
            ))),
        }
    }
}

/// Changes that wait for a curator, as somebody looked at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its name.
    pub id: ProposalId,
    /// Who proposed it, and the changes. Nothing but its keys limits who that says it is.
    pub transaction: Transaction,
    /// What was looked at, and nothing else, is what is approved.
    bytes: Bytes,
}

impl Proposal {
    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What these bytes propose, under the name that they have. `None` when they are no transaction with its
    /// records in it.
    pub fn decode(bytes: &Bytes) -> Option<Proposal> {
        Proposal::of(ProposalId::of(bytes), bytes, Rules::HARDENED)
    }

    /// Why it may not be approved for this collection at this time, in microseconds by the object store's clock:
    /// a record of something else, a stamp that is further ahead than [`Settings::clock_ahead_max`], or one that
    /// is older than half of [`Settings::tombstone_age`].
    pub fn objection(&self, of: &Collection, now_us: u64, settings: &Settings) -> Option<String> {
        let ahead_us = settings.clock_ahead_max.as_micros() as u64;
        let most_us = settings.commit_age_us();
        self.transaction.entries.iter().find_map(|entry| {
            if entry.tree != of.root || entry.is_secondary {
                return Some(format!("it changes something else than records of {}", of.name));
            }
            if entry.record.stamp.clock > now_us.saturating_add(ahead_us) {
                let why = "it was proposed in the future, and would win over all of it";
                return Some(why.to_owned());
            }
            let age_us = now_us.saturating_sub(entry.oldest_us());
            (age_us > most_us).then(|| {
                let (age, most) = (age_us / 1_000_000, most_us / 1_000_000);
                format!(
                    "it was proposed {age} s ago, and can be approved within {most} s: propose it again"
                )
            })
        })
    }

    /// `None` when these bytes have another name, or are no transaction.
    fn of(id: ProposalId, bytes: &Bytes, rules: Rules) -> Option<Proposal> {
        let is_it = ProposalId::of(bytes) == id || !rules.hold(Rule::ShownBytes);
        match Transaction::decode(bytes) {
            Ok(Body::Here(transaction)) if is_it => {
                Some(Proposal { id, transaction, bytes: bytes.clone() })
            }
            _ => None,
        }
    }
}

fn proposal(tag: Tag, id: ProposalId) -> String {
    format!("{PROPOSALS}{tag}/{id}")
}

fn approved(tag: Tag, id: ProposalId) -> String {
    format!("{APPROVED}{tag}/{id}")
}

/// The collection and the proposal that an approved object is of.
fn parse_approved(name: &str) -> Option<(Tag, ProposalId)> {
    let (tag, id) = name.strip_prefix(APPROVED)?.split_once('/')?;
    Some((Tag::parse(tag)?, id.parse().ok()?))
}

impl Txn {
    /// The collection that the changes of this transaction are to be proposed for, if it is curated.
    pub(crate) fn curated(&self, store: &Store) -> Result<Option<Tag>, StoreError> {
        let mut trees: Vec<PageId> = self.writes.keys().map(|(tree, _)| *tree).collect();
        trees.dedup();
        let Some(curated) = trees.iter().find(|tree| store.is_curated(**tree)) else {
            return Ok(None);
        };
        if trees.len() > 1 {
            let what = "a transaction that changes a curated collection changes nothing else: what is \
                        proposed becomes true later than the rest, or never";
            return Err(StoreError::Invalid(what.into()));
        }
        if self.writes.values().any(|write| matches!(write, Write::Secondary { .. })) {
            let what = "entries of an index of a curated collection follow from its records";
            return Err(StoreError::Invalid(what.into()));
        }
        Ok(Some(Tag::of_page(*curated)))
    }
}

/// A put that came to nothing, as far as is known.
#[derive(Debug)]
struct PutFailed {
    /// What the last attempt met.
    error: StoreError,
    /// What an attempt met that had no answer: it may have happened all the same.
    unclear: Option<Fault>,
}

impl From<PutFailed> for StoreError {
    fn from(failed: PutFailed) -> StoreError {
        match failed {
            PutFailed {
                error: error @ StoreError::Cloud { source: Fault::Unknown { .. }, .. },
                ..
            } => error,
            // Not that it is not allowed: that would say that nothing was done.
            PutFailed { unclear: Some(source), .. } => StoreError::Cloud { attempts: 1, source },
            PutFailed { error, .. } => error,
        }
    }
}

/// What the services said, of an error that ends a call.
fn fault_of(error: StoreError) -> Fault {
    match error {
        StoreError::Cloud { source, .. } => source,
        StoreError::Denied { object: what, action, cause, .. } => {
            Fault::Forbidden { what, action, cause }
        }
        error => Fault::Invalid { what: "the commit".into(), cause: error.to_string() },
    }
}

impl Session {
    /// Puts a transaction where curators find it. Nothing of it is laid over what this session reads.
    pub(crate) async fn propose(
        &self,
        txn: &mut Txn,
        tag: Tag,
        transaction: &Transaction,
    ) -> Result<Committed, StoreError> {
        let was_unclear = std::mem::replace(&mut txn.is_unclear, true);
        let Transaction { number, total: records, .. } = *transaction;
        match self.store().propose(tag, transaction).await {
            Ok(id) => Ok(Committed { number, records, proposed: Some(id) }),
            // It may wait for a curator already, whatever this error says of the last attempt.
            Err(PutFailed { unclear: Some(source), .. }) => {
                Err(StoreError::CommitUnknown { source })
            }
            Err(PutFailed { error, .. }) if was_unclear => {
                Err(StoreError::CommitUnknown { source: fault_of(error) })
            }
            Err(PutFailed { error, .. }) => {
                txn.is_unclear = false;
                Err(error)
            }
        }
    }
}

impl Store {
    /// Whether this is a tree of a curated collection.
    pub(crate) fn is_curated(&self, tree: PageId) -> bool {
        self.database().has_tags && Tag::of_page(tree).is_curated()
    }

    fn tag_of(&self, of: &Collection) -> Result<Tag, StoreError> {
        match self.is_curated(of.root) {
            true => Ok(Tag::of_page(of.root)),
            false => Err(StoreError::Invalid(format!(
                "collection {} is not curated: what is committed there needs no approval",
                of.name
            ))),
        }
    }

    /// Puts what a client proposes where curators find it.
    async fn propose(&self, tag: Tag, transaction: &Transaction) -> Result<ProposalId, PutFailed> {
        let bytes = transaction.encode();
        let id = ProposalId::of(&bytes);
        self.put_once(&proposal(tag, id), bytes).await?;
        Ok(id)
    }

    /// Puts an object whose name says what is in it. To find that name taken is success.
    async fn put_once(&self, object: &str, bytes: Bytes) -> Result<(), PutFailed> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        let mut unclear = None;
        loop {
            let again = match self.cloud.objects.put(object, bytes.clone(), PutIf::Absent).await {
                Put::Stored(_) | Put::Refused => return Ok(()),
                Put::Conflict | Put::Missing => attempts.after_loss(object).await,
                Put::Failed(fault) => attempts.after(fault).await,
                Put::Unknown(fault) => {
                    unclear = Some(fault.clone());
                    attempts.after(fault).await
                }
            };
            if let Err(error) = again {
                return Err(PutFailed { error, unclear });
            }
        }
    }

    /// Deletes an object that has served its turn. To find it gone is success.
    pub(crate) async fn let_go(&self, object: &str) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.delete(object, None).await {
                Delete::Gone | Delete::Refused => return Ok(()),
                Delete::Conflict => attempts.after_loss(object).await?,
                Delete::Unknown(fault) | Delete::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }

    async fn read_whole(&self, object: &str) -> Result<Option<Bytes>, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.get(object, None).await {
                Ok(Get::Found { bytes, .. }) => return Ok(Some(bytes)),
                Ok(_) => return Ok(None),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// Names of what waits for a curator of this collection, in no order that means anything: `most` of
    /// them, from the one behind `after` on. One list for each thousand; what was decided on is not there
    /// any more, and costs nothing.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection is not curated, and whatever the object store says.
    pub async fn proposals(
        &self,
        of: &Collection,
        after: Option<ProposalId>,
        most: usize,
    ) -> Result<Vec<ProposalId>, StoreError> {
        let tag = self.tag_of(of)?;
        let prefix = format!("{PROPOSALS}{tag}/");
        let mut after = after.map(|id| proposal(tag, id));
        let mut found: Vec<ProposalId> = Vec::new();
        while found.len() < most {
            let part = self.list_after(&prefix, after.as_deref()).await?;
            let ids = part
                .names
                .iter()
                .filter_map(|name| name.strip_prefix(&prefix)?.parse::<ProposalId>().ok());
            found.extend(ids);
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                break;
            }
        }
        found.truncate(most);
        Ok(found)
    }

    /// What waits under a name; `None` when nothing does: it was decided on, or never proposed.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection is not curated, or when what lies there is not what the
    /// name says: somebody replaced it, and it can only be rejected. And whatever the object store says.
    pub async fn proposal(
        &self,
        of: &Collection,
        id: ProposalId,
    ) -> Result<Option<Proposal>, StoreError> {
        let object = proposal(self.tag_of(of)?, id);
        let Some(bytes) = self.read_whole(&object).await? else { return Ok(None) };
        Proposal::of(id, &bytes, self.settings.rules).map(Some).ok_or_else(|| {
            let what =
                "does not hold what its name says: it was replaced, or is damaged; reject it";
            StoreError::Invalid(format!("{object} {what}"))
        })
    }

    /// Approves what was looked at, those very bytes, and brings it to its pages. From the first put on it is
    /// approved: what is left then any sweep does, and so does this, called again. Called twice, or by two
    /// curators at once, it counts once.
    ///
    /// A rejection at the same moment does not undo it.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection is not curated, when a record of the proposal is of
    /// another one, when it has a stamp of the future, or one that is so old that it could win over what
    /// was deleted since: half of [`Settings::tombstone_age`](crate::Settings). Such a one is to be proposed
    /// again. [`StoreError::Unapplied`] when it is approved and something was in the way of the rest. And
    /// whatever the services say.
    pub async fn approve(
        &self,
        of: &Collection,
        shown: &Proposal,
    ) -> Result<Checkpointed, StoreError> {
        let tag = self.tag_of(of)?;
        self.ask_date().await?;
        // It decides whether the stamps of others are of the future, or too old to win.
        let date_ms = self.asked_date_ms().await?;
        self.check(of, shown, date_ms)?;
        // Where it may not be put by anyone else. This is what approves it.
        let object = approved(tag, shown.id);
        if !self.settings.rules.hold(Rule::ApprovedFirst) {
            self.let_go(&proposal(tag, shown.id)).await?;
        }
        self.put_once(&object, shown.bytes.clone()).await?;
        reached(&self.cloud, FailPoint::Approved).await;
        let finished = async {
            self.let_go(&proposal(tag, shown.id)).await?;
            reached(&self.cloud, FailPoint::Decided).await;
            let mut done = Checkpointed::default();
            let applies_first = self.settings.rules.hold(Rule::ApplyFirst);
            if !applies_first {
                self.let_go(&object).await?;
            }
            self.apply_approved(of.root, shown.transaction.entries.clone(), &mut done).await?;
            if applies_first {
                self.let_go(&object).await?;
            }
            Ok::<_, StoreError>(done)
        };
        let unapplied = |source| StoreError::Unapplied { id: shown.id.to_string(), source };
        finished.await.map_err(|error| unapplied(Box::new(error)))
    }

    fn check(&self, of: &Collection, shown: &Proposal, date_ms: u64) -> Result<(), StoreError> {
        let now_us = date_ms.saturating_mul(1000);
        match shown.objection(of, now_us, &self.settings) {
            None => Ok(()),
            Some(why) => Err(StoreError::Invalid(format!("{}: {why}", shown.id))),
        }
    }

    /// Rejects what waits under a name, whatever lies there. False when nothing does any more.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when somebody approved it, and it is on its way to its pages;
    /// [`StoreError::Invalid`] when the collection is not curated; and whatever the object store says.
    pub async fn reject(&self, of: &Collection, id: ProposalId) -> Result<bool, StoreError> {
        let tag = self.tag_of(of)?;
        if self.read_whole(&approved(tag, id)).await?.is_some() {
            return Err(StoreError::Exists(format!("an approval of {id}")));
        }
        let object = proposal(tag, id);
        let is_there = self.read_whole(&object).await?.is_some();
        self.let_go(&object).await?;
        Ok(is_there)
    }

    async fn apply_approved(
        &self,
        root: PageId,
        entries: Vec<Entry>,
        done: &mut Checkpointed,
    ) -> Result<(), StoreError> {
        done.records += entries.len() as u64;
        checkpoint::apply_to_tree(self, root, vec![entries], done).await
    }

    /// Brings to their pages what curators approved and left, and puts aside what none can have approved.
    /// One list where there is nothing.
    pub(crate) async fn sweep_approved(&self) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        if !self.database().has_tags {
            return Ok(done);
        }
        let mut after: Option<String> = None;
        let mut outcome = Ok(());
        loop {
            let part = self.list_after(APPROVED, after.as_deref()).await?;
            for object in &part.names {
                // One that cannot be brought to its page is not in the way of the others.
                let finished = self.finish(object, &mut done).await;
                outcome = outcome.and(finished);
            }
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                return outcome.map(|()| done);
            }
        }
    }

    async fn finish(&self, object: &str, done: &mut Checkpointed) -> Result<(), StoreError> {
        let named = parse_approved(object);
        let is_it = |bytes: &Bytes| {
            named.is_some_and(|(_, id)| Proposal::of(id, bytes, self.settings.rules).is_some())
        };
        // One damaged answer is not taken for what was approved. Gone since the list: it is on its pages.
        let read = read_surely(&self.cloud, &self.settings, object, is_it);
        let Some(bytes) = read.await? else { return Ok(()) };
        let mut trees: BTreeMap<PageId, Vec<Entry>> = BTreeMap::new();
        let decided = named.map(|(tag, id)| proposal(tag, id));
        let found =
            named.and_then(|(tag, id)| Some((tag, Proposal::of(id, &bytes, self.settings.rules)?)));
        let is_sound = found.is_some_and(|(tag, proposal)| {
            let entries = proposal.transaction.entries;
            // A curator of one collection approves nothing for another one.
            let is_of = |entry: &Entry| Tag::of_page(entry.tree) == tag && !entry.is_secondary;
            let is_sound = tag.is_curated() && entries.iter().all(is_of);
            for entry in entries {
                trees.entry(entry.tree).or_default().push(entry);
            }
            is_sound
        });
        if is_sound {
            // Who approved it may have died before it did that: nobody is to decide on it again.
            let decided = match decided {
                Some(object) => self.let_go(&object).await,
                None => Ok(()),
            };
            for (root, entries) in trees {
                self.apply_approved(root, entries, done).await?;
            }
            match decided {
                // A keeper under a policy that was printed by an older version.
                Ok(()) | Err(StoreError::Denied { .. }) => {}
                Err(error) => return Err(error),
            }
        } else {
            let name = format!("approved-{}", ProposalId::of(&bytes));
            quarantine(&self.cloud, &self.settings, &Poison { name, bytes }).await?;
            done.poison += 1;
        }
        self.let_go(object).await
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use pager::{Budget, policy, pool::Pool};

    use super::*;
    use crate::{
        catalog::Backend,
        cloud::{
            Cloud,
            embedded::{self, Memory},
        },
        commit::Level,
        log::{Append, transaction},
        names::QUARANTINE,
        page::{Entries, Follower, Link, Page},
        record::{Key, Payload},
        stamp::Stamp,
        watch::Watcher,
    };

    async fn store(cloud: &Cloud) -> Arc<Store> {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        Store::open(cloud.clone(), Settings::default(), &pool).await.unwrap()
    }

    /// Whoever may write to the log writes what it likes. Nobody who drains it brings that to the pages of a
    /// curated collection, whatever page of it is called the root of a tree; and no fresh read shows it.
    #[tokio::test]
    async fn no_record_comes_by_the_log() {
        for backend in Backend::ALL {
            let cloud = embedded::memory(Arc::new(Memory::new()));
            Store::create(&cloud, &Settings::default(), backend, 2).await.unwrap();
            let store = store(&cloud).await;
            let curated = store.create_curated("prices").await.unwrap();
            let open = store.create_collection("open").await.unwrap();
            let other_page = Tag::of_page(curated.root).page(PageId(7));
            let key = |name: &str| Key::new(name).unwrap();
            let entry = |n: usize, tree: PageId| {
                let stamp = Stamp {
                    clock: cloud.clock.wall_us() + n as u64,
                    client: 9,
                    sequence: n as u64 + 1,
                };
                let payload = Some(Payload::new("mine").unwrap());
                transaction::primary(tree, tree, stamp, key("k"), payload)
            };
            let nowhere = Tag::of_page(open.root).page(PageId(8));
            let trees = [curated.root, other_page, open.root, nowhere];
            let entries: Vec<Entry> =
                trees.iter().enumerate().map(|(n, tree)| entry(n, *tree)).collect();
            let total = entries.len() as u32;
            let forged = Transaction { client: 9, epoch: 1, number: 1, total, entries };
            let appender = store.log.open(9, 1, 1).await.unwrap();
            assert_eq!(appender.append(&forged, true).await, Append::Committed);

            let session = Session::reader(store.clone(), 5);
            let mut txn = session.begin(Level::Atomic);
            txn.fresh();
            let read = async |tree: PageId| session.read(&txn, tree, &key("k")).await.unwrap();
            assert_eq!(read(curated.root).await, None, "{backend:?}");
            assert!(read(open.root).await.is_some(), "{backend:?}");
            store.sweep().await.unwrap();
            let txn = session.begin(Level::Basic);
            let read = async |tree: PageId| session.read(&txn, tree, &key("k")).await.unwrap();
            assert_eq!(read(curated.root).await, None, "{backend:?}");
            assert!(read(open.root).await.is_some(), "{backend:?}");
            let aside = store.list(QUARANTINE).await.unwrap();
            let count = aside.iter().filter(|name| name.contains("not-approved-")).count();
            assert_eq!(count, 2, "{backend:?}: {aside:?}");
            // What is put aside comes to no page, and nobody waits for it.
            let look = Watcher::new(store.clone()).look().await.unwrap();
            assert_eq!((look.waiting(), look.lag_ms()), (0, None), "{backend:?}");
            assert_eq!(store.verify(|_, _| {}).await.unwrap().waiting, 0, "{backend:?}");
        }
    }

    /// A curator of one collection approves nothing for another, and a stamp of the future wins over nothing.
    #[tokio::test]
    async fn what_is_approved_is_checked() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create(&cloud, &Settings::default(), Backend::S3Log, 2).await.unwrap();
        let store = store(&cloud).await;
        let own = store.create_curated("own").await.unwrap();
        let other = store.create_curated("other").await.unwrap();
        let key = Key::new("k").unwrap();
        let of = |tree: PageId, clock: u64| {
            let stamp = Stamp { clock, client: 9, sequence: 1 };
            let payload = Some(Payload::new("mine").unwrap());
            let entries = vec![transaction::primary(tree, tree, stamp, key.clone(), payload)];
            Transaction { client: 9, epoch: 1, number: 1, total: 1, entries }
        };
        let tag = Tag::of_page(own.root);
        let now_us = cloud.clock.wall_us();
        for forged in [of(other.root, now_us), of(own.root, now_us + 3_600_000_000)] {
            let id = store.propose(tag, &forged).await.unwrap();
            let shown = store.proposal(&own, id).await.unwrap().unwrap();
            let refused = store.approve(&own, &shown).await;
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
        }
        // By a program that checks nothing.
        let forged = of(other.root, now_us).encode();
        let object = approved(tag, ProposalId::of(&forged));
        store.put_once(&object, forged).await.unwrap();
        assert_eq!(store.sweep().await.unwrap().poison, 1);
        let session = Session::reader(store.clone(), 5);
        let txn = session.begin(Level::Basic);
        assert_eq!(session.read(&txn, other.root, &key).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_entry_that_leads_to_another_collection_is_not_followed() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create(&cloud, &Settings::default(), Backend::S3Log, 2).await.unwrap();
        let store = store(&cloud).await;
        let own = store.create_collection("own").await.unwrap();
        let other = store.create_collection("other").await.unwrap();
        let misled = Collection { root: other.root, ..own };
        cloud.objects.put("catalog/own", misled.encode(), PutIf::Always).await;
        let error = store.collection("own").await.unwrap_err();
        assert!(matches!(error, StoreError::Misled { .. }), "{error}");
        let index = store.create_index("own", "i", &crate::SearchBy::Payload).await.unwrap_err();
        assert!(matches!(index, StoreError::Misled { .. }), "{index}");
        assert_eq!(store.verify(|_, _| {}).await.unwrap().problem_count, 1);
    }

    /// Whoever may put pages of his collection alone had a sweep put what he liked into a curated one, and
    /// garbage collection delete its root.
    #[tokio::test]
    async fn a_page_that_leads_to_another_collection_is_not_followed() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create(&cloud, &Settings::default(), Backend::S3Log, 2).await.unwrap();
        let store = store(&cloud).await;
        let own = store.create_collection("own").await.unwrap().root;
        let victim = store.create_curated("victim").await.unwrap().root;
        let sound = Page { version: 1, ..Page::root(own) };
        let follower = Follower { root: victim, by: crate::SearchBy::Payload };
        let link = Link { key: Bytes::new(), child: victim };
        let forged = [
            Page { followers: vec![follower], ..sound.clone() },
            Page { high: Some("b".into()), right: Some(victim), ..sound.clone() },
            Page { level: 1, entries: Entries::Inner(vec![link]), ..sound.clone() },
        ];
        let key = Key::new("k").unwrap();
        let stamp = Stamp { clock: cloud.clock.wall_us(), client: 9, sequence: 1 };
        let payload = Some(Payload::new("mine").unwrap());
        let entries = vec![transaction::primary(own, own, stamp, key.clone(), payload)];
        let one = Transaction { client: 9, epoch: 1, number: 1, total: 1, entries };
        let appender = store.log.open(9, 1, 1).await.unwrap();
        assert_eq!(appender.append(&one, true).await, Append::Committed);
        let there = async |page: PageId| match cloud.objects.get(&page.object(), None).await {
            Ok(Get::Found { bytes, .. }) => Page::decode(&bytes).unwrap(),
            other => panic!("{page}: {other:?}"),
        };
        let before = there(victim).await;
        for page in forged {
            cloud.objects.put(&own.object(), page.encode(), PutIf::Always).await;
            let store = self::store(&cloud).await;
            let swept = store.sweep().await.map(drop);
            let collected = store.collect_garbage(Duration::ZERO).await.map(drop);
            let read = Session::reader(store.clone(), 5);
            let read = read.read(&read.begin(Level::Basic), own, &key).await.map(drop);
            for outcome in [swept, collected, read] {
                assert!(matches!(outcome, Err(StoreError::Tree { .. })), "{outcome:?}");
            }
            assert_eq!(there(victim).await, before);
            assert!(store.verify(|_, _| {}).await.unwrap().problem_count > 0);
        }
        cloud.objects.put(&own.object(), sound.encode(), PutIf::Always).await;
        assert_eq!(self::store(&cloud).await.sweep().await.unwrap().applied, 1);
    }
}
